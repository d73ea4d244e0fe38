"""The notebook around a chapter: whether somebody watches it, and a line for who waits."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from html import escape
from time import monotonic
from typing import Any, TypeVar

Item = TypeVar("Item")
FIRST, EVERY = 2.0, 1.0  # seconds until a line appears, and until it changes


def kernel() -> Any:
    """IPython's shell of a notebook, None elsewhere. Where there is one IPython is there already;
    ranks do without its memory.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell if hasattr(shell, "get_parent") else None


def someone_watches() -> bool:
    """Whether a person sits at the front end: one who could answer an ``input()``.
    ACCEL_LAB_HEADLESS=1 or 0 overrides.
    """
    if (told := os.environ.get("ACCEL_LAB_HEADLESS")) is not None:
        return told == "0"
    shell = kernel()
    return shell is not None and bool(shell.get_parent().get("content", {}).get("allow_stdin"))


@contextmanager
def telling(what: str) -> Generator[Callable[[str], None]]:
    """Tell who watches a long cell what it is at, in one line that goes when it is done.

    Yields ``say(how_far)``, which costs nothing where nobody watches.
    """
    line, due = None, monotonic() + FIRST
    watched = someone_watches()

    def say(how_far: str) -> None:
        nonlocal line, due
        if not watched or monotonic() < due:
            return
        from IPython.display import HTML, display

        due = monotonic() + EVERY
        shown = HTML(f'<span role="status">{escape(f"{what}: {how_far} …")}</span>')
        if line is None:
            line = display(shown, display_id=True)
        else:
            line.update(shown)

    try:
        yield say
    finally:
        if line is not None:
            from IPython.display import HTML

            line.update(HTML(""))


def told(items: Iterable[Item], what: str) -> Iterator[Item]:
    """Yield the items; say meanwhile which of them is at work, in one line that goes at the end.

    what: one of them, as in ``seed``.
    """
    taken = list(items)
    with telling("at work") as say:
        for place, item in enumerate(taken, start=1):
            say(f"{what} {place} of {len(taken)}")
            yield item
