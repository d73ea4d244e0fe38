"""The live Sweep."""

from __future__ import annotations

import bqplot as bq

from accel_lab.workbench.drawing.axis import clear_place
from accel_lab.workbench.drawing.chart import Runs
from accel_lab.workbench.drawing.record import Record
from accel_lab.workbench.drawing.sweep import Sweep
from accel_lab.workbench.knobs import Knobs
from accel_lab.workbench.look import BLUE, GREY
from accel_lab.workbench.panel.live.frame import (
    LIMIT,
    FittedAxis,
    Frame,
    floats,
    knob_axis,
    say_at,
    share,
    tooltip,
    write,
)


class LiveSweep:
    def __init__(self, chart: Sweep, knobs: Knobs):
        self._chart = chart
        self._choices = chart.across(knobs).choices
        across = knob_axis(chart.across(knobs))
        self._up = FittedAxis(up=True, log=chart.log)
        self._scales = {"x": across.scale, "y": self._up.scale}
        self._frame = Frame(chart.title, [across, self._up.axis])
        self.view = self._frame.view
        self._live = self._dots(BLUE, 110)
        self._formula = bq.Lines(x=[], y=[], scales=self._scales, **LIMIT)
        self._formula_name = write(self._scales, "start", x_offset=5)
        self._predicted_for: Knobs | None = None
        self._behind: list[bq.Mark] = []
        self._dot: tuple[float, float] | None = None
        self._kept: list[float] = []
        self._foreseen_at: list[float] = []
        self._foreseen: list[float] = []

    def keep(self, runs: Runs) -> None:
        dots: dict[str, list[tuple[float, float]]] = {}
        for styled in runs.staying():
            if at := self._chart.dot(styled.record):
                dots.setdefault(styled.color, []).append(at)
        self._predict(runs.foreseen)
        marks = [self._formula, self._formula_name] if self._chart.predicted else []
        for color, places in dots.items():
            mark = self._dots(color, 45 if color == GREY else 80)
            mark.x, mark.y = floats([x for x, _ in places]), floats([y for _, y in places])
            marks.append(mark)
        self._kept = [y for places in dots.values() for _, y in places]
        self._behind = marks
        self._frame.show(marks)
        self._up.fit([*self._kept, *self._foreseen])
        self._name_formula([at for places in dots.values() for at in places])

    def _name_formula(self, dots: list[tuple[float, float]]) -> None:
        """Where it keeps clear of the dots."""
        if self._scales["x"].min is None:
            return
        line = list(zip(self._foreseen_at, self._foreseen, strict=True))
        best = clear_place(
            [self._at(*point) for point in line],
            [self._at(*dot) for dot in dots],
            self._chart.formula,
        )
        said = [] if best is None else [(*line[best], self._chart.formula)]
        say_at(self._formula_name, said)

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return share(self._scales["x"], x), share(self._scales["y"], y)

    def move(self, record: Record) -> None:
        self._predict(record.knobs)
        if (at := self._chart.dot(record)) is None:
            return
        if self._dot is None or self._dot[0] != at[0] or _visibly(self._dot[1], at[1]):
            self._dot = at
            self._up.fit([*self._kept, *self._foreseen, at[1]])
            with self._live.hold_sync():
                self._live.x, self._live.y = floats([at[0]]), floats([at[1]])
        self._frame.show([*self._behind, self._live])

    def _dots(self, color: str, size: int) -> bq.Scatter:
        knob = {} if self._choices else {"x": self._chart.knob.replace("_", " ")}
        said = tooltip(**knob, y=self._chart.label)
        return bq.Scatter(
            x=[], y=[], scales=self._scales, colors=[color], default_size=size, tooltip=said
        )

    def _predict(self, knobs: Knobs) -> None:
        """The formula at the other knobs; it is drawn over the whole range of its own."""
        if self._chart.predicted is None:
            return
        others = knobs.model_dump(exclude={self._chart.knob})
        if self._predicted_for == others:
            return
        self._predicted_for = others
        xs, ys = self._chart.predicted_line(knobs)
        self._foreseen = ys
        with self._formula.hold_sync():
            self._formula.x, self._formula.y = floats(xs), floats(ys)
        self._foreseen_at = xs


def _visibly(before: float, now: float) -> bool:
    return abs(now - before) > 0.005 * abs(before)
