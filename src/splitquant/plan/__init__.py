"""Decisions: names, shapes and dtypes in, a printable plan out. No file is opened here."""
