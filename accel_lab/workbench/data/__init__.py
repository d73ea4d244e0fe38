"""Data sets and words, read from the packages that carry them."""
