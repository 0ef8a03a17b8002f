"""The transformers plug-in. Importing this package imports neither transformers nor torch."""
