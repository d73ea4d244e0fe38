"""Work that another thread may end, and that may say that it goes on, however long it waits.

A run is closed between two steps. One whose ranks wait for each other, for half a minute if it has
to be, gets to no next step: so whoever waits does it in slices, and asks in between whether it
still should.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator

SLICE = 0.2  # seconds
_of_this_thread = threading.local()


class Interrupted(RuntimeError):
    """The work at hand was asked to end."""


@contextlib.contextmanager
def ends_when(asked: threading.Event | None) -> Generator[None]:
    """While inside, ``go_on_or_raise`` in this thread raises once ``asked`` is set."""
    with _set("asked", asked):
        yield


@contextlib.contextmanager
def meanwhile(call: Callable[[], object]) -> Generator[None]:
    """While inside, each ``go_on_or_raise`` in this thread calls this, too."""
    with _set("call", call):
        yield


@contextlib.contextmanager
def _set(name: str, value: object) -> Generator[None]:
    before = getattr(_of_this_thread, name, None)
    setattr(_of_this_thread, name, value)
    try:
        yield
    finally:
        setattr(_of_this_thread, name, before)


def go_on_or_raise() -> None:
    if call := getattr(_of_this_thread, "call", None):
        call()
    asked = getattr(_of_this_thread, "asked", None)
    if asked is not None and asked.is_set():
        raise Interrupted("asked to end")
