"""Charts as data, and their still pictures."""
