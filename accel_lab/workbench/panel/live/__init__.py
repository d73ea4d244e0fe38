"""Live charts: one file for each kind of chart, found by the name of the file that declares it.

``live/NAME.py`` holds a class ``LiveKIND`` for the ``KIND`` declared in ``drawing/NAME.py``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

import ipywidgets as w

from accel_lab.workbench.drawing.chart import Chart, Runs
from accel_lab.workbench.drawing.record import Record
from accel_lab.workbench.knobs import Knobs


class LiveChart(Protocol):
    """A chart drawn with widgets and moved by assigning to its marks. Made from its declaration and
    the panel's knobs; ``keep`` and ``move`` are called from the training thread.
    """

    view: w.Widget

    def keep(self, runs: Runs) -> None:
        """Draw what stays: kept and former runs. ``move`` follows, if the run at hand has begun."""

    def move(self, record: Record) -> None:
        """Draw the run at hand, a window longer than before."""


def live_chart(chart: Chart, knobs: Knobs) -> LiveChart:
    name = type(chart).__module__.rpartition(".")[2]
    module = import_module(f"{__name__}.{name}")
    return getattr(module, f"Live{type(chart).__name__}")(chart, knobs)
