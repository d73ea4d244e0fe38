"""How much of the machine other programs use while something is measured.

A pair's ratio bears a load that both programs meet alike. A verdict about cores does not: where two
ranks have one core between them, the second gains nothing. So what was measured beside others is
marked, and not written down.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from time import monotonic
from typing import Any

import psutil

from accel_lab.workbench.granted import own_cores, usable_cores, used_of_quota
from accel_lab.workbench.measure.quiet import make_quiet
from accel_lab.workbench.watched import kernel

BUSY = 0.25  # of the machine's cores: as much of a core of two as halves the speed of one program
LEAST_SECONDS = 0.5  # the system counts in hundredths of a second
_of_cells: dict[str, tuple[int, float]] = {}  # cell → its last execution, the largest share in it


class Load:
    """From when it is made: ``others`` is the share, 0…1, that other programs took of the cores
    that we may use. In a container with a quota these are the programs that share it.
    """

    def __init__(self) -> None:
        self._start, self._used = monotonic(), _used()

    @property
    def others(self) -> float:
        """0 while it is too soon to tell."""
        seconds = monotonic() - self._start
        if seconds < LEAST_SECONDS:
            return 0.0
        by_all, by_us = (now - then for now, then in zip(_used(), self._used, strict=True))
        # Who lets programs run side by side knows it, and leaves a core to each.
        expected = int(os.environ.get("ACCEL_LAB_BESIDE", "0"))
        return min(1.0, max(0.0, ((by_all - by_us) / seconds - expected) / usable_cores()))


@contextlib.contextmanager
def under_watch() -> Generator[Load]:
    """For whatever is to be measured: stop who trains, and remember for ``busiest`` how busy the
    machine was meanwhile, until this cell is run again.
    """
    make_quiet()
    load = Load()
    yield load
    cell, execution = _this_cell()
    before, worst = _of_cells.get(cell, (execution, 0.0))
    _of_cells[cell] = execution, max(worst if before == execution else 0.0, load.others)


def busiest() -> float:
    """The largest share that others took during what was measured, as far as it was not measured
    again.
    """
    return max((share for _, share in _of_cells.values()), default=0.0)


def _this_cell() -> tuple[str, int]:
    """Which cell of a notebook runs, and its execution count; ("", 0) elsewhere."""
    shell = kernel()
    if shell is None:
        return "", 0
    parent = shell.get_parent()
    told = parent.get("metadata", {}).get("cellId") or parent.get("content", {}).get("code", "")
    return told, shell.execution_count


def busy_words(others: float) -> str:
    return f"other programs used {100 * others:.0f} % of the machine meanwhile"


def _used() -> tuple[float, float]:
    """Seconds of CPU since some time in the past: of all programs on the cores that we may use, and
    of this one with all that it has started, ended ones too.
    """
    ours = 0.0
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            ours += sum(process.cpu_times()[:4])
    by_all = used_of_quota()
    if by_all is None:
        every = psutil.cpu_times(percpu=True)
        by_all = sum(_busy(every[core]) for core in own_cores() if core < len(every))
    return by_all, ours


def _busy(times: Any) -> float:
    """Of a core's times, those in which it worked; guest time is counted in user time already."""
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - guests
