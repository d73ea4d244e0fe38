"""Before a measurement whoever trains is stopped: two that run would measure each other."""

from __future__ import annotations

from collections.abc import Callable

_stop: list[Callable[[], None]] = []


def stop_before_measuring(stop: Callable[[], None]) -> None:
    """Have ``stop`` called whenever a measurement begins. It returns when nothing runs any more."""
    _stop.append(stop)


def make_quiet() -> None:
    """To be called where a measurement begins."""
    for stop in _stop:
        stop()
