"""A limit of time for code that runs in this process: practice. A mark's code has a sandbox."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Generator
from contextlib import contextmanager


class TooLong(BaseException):
    """Raised within code whose time is up. No Exception: that code may catch those."""


def end(thread: int | None) -> None:
    """Raise TooLong in the thread of this identity, at its next line of Python."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread or 0), ctypes.py_object(TooLong)
    )


@contextmanager
def within(seconds: float) -> Generator[None]:
    """Raises TooLong when what is inside takes longer. A single long call into C ends first."""
    here, lock, inside = threading.get_ident(), threading.Lock(), True

    def time_is_up() -> None:
        with lock:
            if inside:
                end(here)

    timer = threading.Timer(max(0.0, seconds), time_is_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            inside = False
        timer.cancel()
        timer.join()
