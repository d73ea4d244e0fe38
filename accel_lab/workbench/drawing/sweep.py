"""Sweep: what a knob does to a metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING

from accel_lab.workbench.drawing.axis import KnobAxis, knob_across, label_dots, label_line, upward
from accel_lab.workbench.drawing.chart import Runs, dial_of
from accel_lab.workbench.drawing.record import Record, Summary
from accel_lab.workbench.knobs import Knobs
from accel_lab.workbench.look import GREY, LIMIT

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Sweep:
    """One dot a run: a knob of any kind across, a metric up.

    label: of the metric, with its unit · scale: from the metric's unit to the label's · predicted:
    the metric by formula, drawn over the knob's whole range · formula: what to call that · log:
    ends of a logarithmic axis up, or True for whole decades around the values · summary: how a run
    becomes a dot
    """

    knob: str
    metric: str
    label: str
    scale: float = 1.0
    predicted: Callable[[Knobs], float] | None = None
    formula: str = ""
    log: tuple[float, float] | bool = False
    summary: Summary = "median"

    @property
    def title(self) -> str:
        return self.label

    def across(self, knobs: Knobs) -> KnobAxis:
        return KnobAxis.of(dial_of(knobs, self.knob))

    def prediction(self, knobs: Knobs) -> tuple[list[float], list[float]]:
        """(places on the axis across, predicted metric in the label's unit), one for each value of
        the knob that the others allow.
        """
        dial, across = dial_of(knobs, self.knob), self.across(knobs)
        xs, ys = [], []
        for value in dial.values():
            try:
                turned = knobs.turned(**{self.knob: value})
            except ValueError:
                continue
            xs.append(across.place(value))
            ys.append(self.predicted(turned) * self.scale)
        return xs, ys

    def predicted_line(self, knobs: Knobs) -> tuple[list[float], list[float]]:
        """The prediction as a line: through numbers, or a dash at each choice, NaN before each."""
        xs, ys = self.prediction(knobs)
        if not self.across(knobs).choices:
            return xs, ys
        dashes = [end for x in xs for end in (x, x - 0.3, x + 0.3)]
        return dashes, [end for y in ys for end in (nan, y, y)]

    def dot(self, record: Record) -> tuple[float, float] | None:
        """Where a run stands; None until it has measured the metric."""
        value = record.typical(self.metric, self.summary)
        place = self.across(record.knobs).place(getattr(record.knobs, self.knob))
        return None if value is None else (place, value * self.scale)

    def draw(self, axes: Axes, runs: Runs) -> None:
        styled = runs.styled()
        line = ([], [])
        if self.predicted:
            line = self.predicted_line(runs.foreseen)
            axes.plot(*line, **LIMIT)
        dots = []
        for one in styled:
            if at := self.dot(one.record):
                size = 5 if one.color == GREY else 7
                axes.plot(*at, "o", color=one.color, markersize=size, zorder=4)
                says_more = not one.record.label.startswith(self.knob.replace("_", " "))
                named = one.color != GREY and (says_more or "," in one.record.label)
                dots.append((*at, one.record.label if named else "", one.color))
        knob_across(axes, self.across(runs.knobs))
        upward(axes, self.log, room=0.06)
        label_line(axes, line, self.formula, dots)
        label_dots(axes, [dot for dot in dots if dot[2]])
