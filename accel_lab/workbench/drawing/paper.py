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
    """Axes for cells to draw on: how text and lines look is settled when they are made."""


for _name, _method in inspect.getmembers(Axes, inspect.isfunction):
    if not _name.startswith("_"):
        setattr(Paper, _name, in_our_style(_method))
