"""How much time to spend on what only refines a result."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TypeVar

Value = TypeVar("Value")
QUICK = 0.25


def effort() -> float:
    """1, or a quarter where ACCEL_LAB_QUICK=1 asks for a quick look: panels run for less time, and
    undecided comparisons are given up sooner. Nothing is left out.
    """
    return QUICK if os.environ.get("ACCEL_LAB_QUICK") == "1" else 1.0


def some_seeds(number: int) -> range:
    """So many seeds, 0, 1, …, to repeat a run with; the first quarter of them for a quick look."""
    return range(math.ceil(number * effort()))


def along(values: Sequence[Value]) -> Sequence[Value]:
    """Where to measure a curve: at all these values, or at its two ends for a quick look."""
    return values if effort() == 1.0 else (values[0], values[-1])
