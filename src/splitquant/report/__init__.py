"""What was done, as values, and their forms for people: tables, JSON, model card."""
