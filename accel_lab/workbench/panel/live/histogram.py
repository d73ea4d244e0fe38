"""The live Histogram."""

from __future__ import annotations

from time import perf_counter

import bqplot as bq

from accel_lab.workbench.drawing.chart import MOST_CURVES, Runs, Styled
from accel_lab.workbench.drawing.histogram import Histogram
from accel_lab.workbench.drawing.record import Record
from accel_lab.workbench.knobs import Knobs
from accel_lab.workbench.look import BLUE
from accel_lab.workbench.panel.live.frame import (
    DASHES,
    LIMIT,
    FittedAxis,
    Frame,
    floats,
    mark,
    say_at,
    write,
)

SECONDS_A_HISTOGRAM = 1.0


class LiveHistogram:
    def __init__(self, chart: Histogram, knobs: Knobs):
        self._chart = chart
        self._up = FittedAxis(up=True)
        self._places = bq.LinearScale(min=0.0, max=1.0)
        self._across = bq.Axis(scale=self._places, label=chart.label, grid_lines="none")
        self._across.label_offset = "2.6em"
        self._scales = {"x": self._places, "y": self._up.scale}
        self._frame = Frame(chart.title, [self._across, self._up.axis])
        self.view = self._frame.view
        self._live = self._line(Styled(None, BLUE, "-", 2.2))
        self._live.fill, self._live.fill_opacities = "bottom", [0.35]
        self._live.fill_colors = [BLUE]
        self._marks = [bq.Lines(x=[], y=[], scales=self._scales, **LIMIT) for _ in chart.marks]
        self._names = write(self._scales, "start", x_offset=3, y_offset=12)
        self._behind: list[bq.Mark] = []
        self._kept: list[dict[int, float]] = []
        self._due = 0.0

    def keep(self, runs: Runs) -> None:
        self._due, self._kept, self._behind = 0.0, [], []
        for styled in runs.staying(MOST_CURVES):
            if bins := self._chart.bins(styled.record):
                line = self._line(styled)
                self._put(line, bins)
                self._kept.append(bins)
                self._behind.append(line)
        self._fit({})
        self._frame.show([*self._behind, *self._marks, self._names])

    def move(self, record: Record) -> None:
        if perf_counter() < self._due or not (bins := self._chart.bins(record)):
            return
        self._due = perf_counter() + SECONDS_A_HISTOGRAM
        self._fit(bins)
        self._put(self._live, bins)
        self._frame.show([*self._behind, *self._marks, self._names, self._live])

    def _fit(self, live: dict[int, float]) -> None:
        shown = [*self._kept, live]
        low, high = self._chart.reach_of([place for bins in shown for place in bins])
        if (low, high) != (self._places.min, self._places.max):
            self._places.min, self._places.max = float(low), float(high)
            mark(self._across, self._chart.ticks(low, high))
        self._up.fit([percent for bins in shown for percent in bins.values()])
        top = self._up.scale.max
        for line, value in zip(self._marks, self._chart.marks, strict=True):
            with line.hold_sync():
                line.x, line.y = floats([self._chart.place(value)] * 2), floats([0.0, top])
        marks = self._chart.marks.items()
        say_at(self._names, [(self._chart.place(value), top, text) for value, text in marks])

    def _line(self, styled: Styled) -> bq.Lines:
        look = {"colors": [styled.color], "line_style": DASHES[styled.style], "stroke_width": 1.6}
        return bq.Lines(x=[], y=[], scales=self._scales, **look)

    def _put(self, line: bq.Lines, bins: dict[int, float]) -> None:
        xs, ys = self._chart.outline(bins)
        with line.hold_sync():
            line.x, line.y = floats(xs), floats(ys)
