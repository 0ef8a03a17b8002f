"""A report as one HTML file that needs nothing else: its data, its page, and the script that draws it."""
