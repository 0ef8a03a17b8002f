"""The forms a weight can take in a model, and how its numbers get into them."""
