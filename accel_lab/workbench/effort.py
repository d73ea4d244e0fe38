"""How much time to spend on what only refines a result."""

from __future__ import annotations

import os

QUICK = 0.25


def effort() -> float:
    """1, or a quarter where ACCEL_LAB_QUICK=1 asks for a quick look: panels run for less time, and
    undecided comparisons are given up sooner. Nothing is left out.
    """
    return QUICK if os.environ.get("ACCEL_LAB_QUICK") == "1" else 1.0
