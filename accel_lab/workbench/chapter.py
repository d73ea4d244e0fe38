"""The one face of the workbench for chapters: all that a cell uses, from one import.

from accel_lab.workbench.chapter import Curve, Panel, Prediction, compare, prove, show_source

A rank imports this too where its worker, from a cell, uses it. So what only a notebook needs,
panels and pictures, is loaded when it is asked for: it would cost each rank 90 MB.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from accel_lab.workbench import models
from accel_lab.workbench.data import datasets, words
from accel_lab.workbench.device import pick_device, threads
from accel_lab.workbench.drawing.budget import Budget
from accel_lab.workbench.drawing.chart import Badge
from accel_lab.workbench.drawing.curve import Curve
from accel_lab.workbench.drawing.heat_map import HeatMap
from accel_lab.workbench.drawing.histogram import Histogram
from accel_lab.workbench.drawing.pareto import Pareto
from accel_lab.workbench.drawing.sweep import Sweep
from accel_lab.workbench.drawing.timeline import Timeline
from accel_lab.workbench.effort import along, effort, some_seeds
from accel_lab.workbench.granted import usable_cores
from accel_lab.workbench.loop import NonFiniteLoss, classifier_update, train
from accel_lab.workbench.measure.comparison import Comparison, compare, reading
from accel_lab.workbench.measure.machine import Machine, low_precision
from accel_lab.workbench.measure.memory_meter import ActivationMeter, memory_of, process_peak
from accel_lab.workbench.measure.proof import Twin, prove, snapshot, trajectory
from accel_lab.workbench.measure.race import break_even, compared, race, race_on_ranks
from accel_lab.workbench.measure.roofline import Operation, Roofline, fastest, roofline
from accel_lab.workbench.measure.traffic import bytes_written
from accel_lab.workbench.notebook.settings import settings
from accel_lab.workbench.notebook.source import show_source
from accel_lab.workbench.notebook.speed_log import SpeedLog, log_verdict
from accel_lab.workbench.notebook.syllabus import Syllabus
from accel_lab.workbench.ranks.launch import RankFailed, collect, failure_of, launch
from accel_lab.workbench.ranks.rank import RankSpanRecorder
from accel_lab.workbench.spans import SpanRecorder
from accel_lab.workbench.step import Span, Step
from accel_lab.workbench.tasks.processes import on_processes

if TYPE_CHECKING:
    from accel_lab.workbench.drawing import figure, motion
    from accel_lab.workbench.panel import Headline, MissingLine, Panel, Prediction, Sliders

_MODULES = {"figure": "drawing.figure", "motion": "drawing.motion"}
_WIDGETS = ("Headline", "MissingLine", "Panel", "Prediction", "Sliders")
_LATER = _MODULES | dict.fromkeys(_WIDGETS, "panel")


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"accel_lab.workbench.{_LATER[name]}")
    return home if name in _MODULES else getattr(home, name)


def __dir__() -> list[str]:
    return [*globals(), *_LATER]
