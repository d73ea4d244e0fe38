"""Work that another thread may end, however long it happens to wait.

A run is closed between two steps. One whose ranks wait for each other, for half a minute if it has
to be, gets to no next step: so whoever waits does it in slices, and asks in between whether it
still should.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator

SLICE = 0.2  # seconds
_of_this_thread = threading.local()


class Interrupted(RuntimeError):
    """The work at hand was asked to end."""


@contextlib.contextmanager
def ends_when(asked: threading.Event | None) -> Generator[None]:
    """While inside, ``go_on_or_raise`` in this thread raises once ``asked`` is set."""
    before = getattr(_of_this_thread, "asked", None)
    _of_this_thread.asked = asked
    try:
        yield
    finally:
        _of_this_thread.asked = before


def go_on_or_raise() -> None:
    asked = getattr(_of_this_thread, "asked", None)
    if asked is not None and asked.is_set():
        raise Interrupted("asked to end")
