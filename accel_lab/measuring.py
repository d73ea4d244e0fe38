"""Measuring honestly."""

from accel_lab.workbench.comparison import Comparison, compare

__all__ = ["Comparison", "compare"]
