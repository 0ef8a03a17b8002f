"""The graph of a model: its scopes and constants, what its operators mean, how nodes are put in the place of others."""
