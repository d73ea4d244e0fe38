"""What surrounds a chapter: who watches, what was found, which chapters there are."""
