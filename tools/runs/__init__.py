"""A run folder: its files, metrics and checkpoints, and who writes them."""
