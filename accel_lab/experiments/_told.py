"""A loop that takes seconds tells who waits how far it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from accel_lab.workbench.watched import telling

Item = TypeVar("Item")


def told(items: Iterable[Item], what: str) -> Iterator[Item]:
    """Yield the items; say meanwhile which of them is at work, in one line that goes at the end.

    what: one of them, as in ``seed``.
    """
    taken = list(items)
    with telling("at work") as say:
        for place, item in enumerate(taken, start=1):
            say(f"{what} {place} of {len(taken)}")
            yield item
