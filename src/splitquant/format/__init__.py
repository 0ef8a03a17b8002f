"""The stored form of weights: dtypes, planes and their names, the table in config.json. Normative text: docs/format.md."""
