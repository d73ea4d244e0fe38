"""Time, memory, limits and equality, measured."""
