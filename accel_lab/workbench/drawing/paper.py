"""The course's pictures look the same whatever a reader's matplotlib is set to, by a file of theirs
or by a cell that says how their own pictures are to look.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import wraps
from threading import RLock
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes

# as matplotlib comes; its backend is no matter of looks
DEFAULTS = {
    name: value
    for name, value in matplotlib.rcParamsDefault.items()
    if not name.startswith("backend")
}
# matplotlib's settings are those of the process, and a run that ends is drawn by its own thread
_LOCK, _inside = RLock(), False


@contextmanager
def our_style() -> Generator[None]:
    """Matplotlib's own settings inside; afterwards the reader's again."""
    global _inside
    with _LOCK:
        if _inside:
            yield
            return
        _inside = True
        try:
            with matplotlib.rc_context(DEFAULTS):
                yield
        finally:
            _inside = False


def in_our_style(function: Callable) -> Callable:
    @wraps(function)
    def styled(*given: Any, **named: Any) -> Any:
        with our_style():
            return function(*given, **named)

    return styled


class Paper(Axes):
    """Axes for cells to draw on: how text and lines look is settled when they are made. An end left
    open, as in ``set(ylim=(0, None))``, follows what is drawn, then and later; matplotlib's own
    would stay where it happened to be.
    """

    def __init__(self, *given: Any, **named: Any):
        self._ends: dict[str, tuple] = {}
        super().__init__(*given, **named)

    def set_xlim(self, left: Any = None, right: Any = None, **named: Any) -> tuple[float, float]:
        return self._set_ends("x", super().set_xlim, left, right, **named)

    def set_ylim(self, bottom: Any = None, top: Any = None, **named: Any) -> tuple[float, float]:
        return self._set_ends("y", super().set_ylim, bottom, top, **named)

    def _set_ends(
        self, axis: str, setter: Callable, low: Any, high: Any, **named: Any
    ) -> tuple[float, float]:
        if high is None and np.iterable(low):
            low, high = low
        if named.get("auto", False) is False:  # asked for, not by autoscaling
            self._ends[axis] = low, high
            named["auto"] = (low is None) != (high is None)
        return setter(low, high, **named)

    def autoscale_view(self, *given: Any, **named: Any) -> None:
        super().autoscale_view(*given, **named)
        for axis, (low, high) in self._ends.items():
            setter = super().set_xlim if axis == "x" else super().set_ylim
            setter(low, high, auto=None)


for _name, _method in inspect.getmembers(Axes, inspect.isfunction):
    if not _name.startswith("_") and _name not in vars(Paper):
        setattr(Paper, _name, in_our_style(_method))
