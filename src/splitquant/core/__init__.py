"""The mathematics: NumPy arrays in, frozen values out. No paths, no frameworks, no logging."""
