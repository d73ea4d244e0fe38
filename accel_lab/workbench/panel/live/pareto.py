"""The live Pareto chart."""

from __future__ import annotations

import bqplot as bq

from accel_lab.workbench.drawing.axis import apart
from accel_lab.workbench.drawing.chart import Runs, Styled
from accel_lab.workbench.drawing.pareto import Dot, Pareto
from accel_lab.workbench.drawing.record import Record
from accel_lab.workbench.knobs import Knobs
from accel_lab.workbench.look import BLUE, GREY, in_short
from accel_lab.workbench.panel.live.frame import (
    LIMIT,
    FittedAxis,
    Frame,
    floats,
    say_at,
    share,
    tooltip,
    value_at,
    write,
)


class LivePareto:
    def __init__(self, chart: Pareto, knobs: Knobs):
        self._chart = chart
        self._across = FittedAxis(chart.x_label, log=chart.x_log)
        self._up = FittedAxis(up=True, log=chart.log)
        self._scales = {"x": self._across.scale, "y": self._up.scale}
        self._frame = Frame(chart.title, [self._across.axis, self._up.axis])
        self.view = self._frame.view
        self._front = bq.Lines(x=[], y=[], scales=self._scales, **LIMIT)
        self._dots: dict[str, bq.Scatter] = {}
        # Names on the side of their dot where there is room.
        self._right = write(self._scales, "start", x_offset=8, y_offset=4)
        self._left = write(self._scales, "end", x_offset=-8, y_offset=4)
        self._kept: list[Dot] = []
        self._live: Dot | None = None

    def keep(self, runs: Runs) -> None:
        self._kept = self._chart.dots(runs.staying())
        live = self._chart.dots([one for one in runs.styled() if one.record is runs.live])
        self._live = live[0] if live else None
        self._draw()

    def move(self, record: Record) -> None:
        dots = self._chart.dots([Styled(record, BLUE, "-", 2.2)])
        if dots and (self._live is None or self._visibly(dots[0])):
            self._live = dots[0]
            self._draw()

    def _visibly(self, dot: Dot) -> bool:
        before = self._live
        return dot.run.record is not before.run.record or any(
            abs(new - old) > 0.005 * abs(old) for new, old in ((dot.x, before.x), (dot.y, before.y))
        )

    def _draw(self) -> None:
        dots = [*self._kept, *([self._live] if self._live else [])]
        self._across.fit([dot.x for dot in dots])
        self._up.fit([dot.y for dot in dots])
        front = self._chart.front(dots)
        _put(self._front, front)
        for color in dict.fromkeys([*self._dots, *(dot.run.color for dot in dots)]):
            _put(self._mark(color), [dot for dot in dots if dot.run.color == color])
        named = [dot for dot in dots if dot.run.color != GREY or dot in front]
        ups = apart([share(self._up.scale, dot.y) for dot in named], [0.075] * len(named))
        sides: dict[bool, list[tuple[float, float, str]]] = {True: [], False: []}
        for dot, up in zip(named, ups, strict=True):
            text = in_short(dot.run.record.label, 30)
            across = share(self._across.scale, dot.x)
            sides[across < 0.5].append((dot.x, value_at(self._up.scale, up), text))
        say_at(self._right, sides[True])
        say_at(self._left, sides[False])
        self._frame.show([self._front, *self._dots.values(), self._right, self._left])

    def _mark(self, color: str) -> bq.Scatter:
        if color not in self._dots:
            self._dots[color] = bq.Scatter(
                x=[],
                y=[],
                scales=self._scales,
                colors=[color],
                default_size=45 if color == GREY else 110,
                tooltip=tooltip(x=self._chart.x_label, y=self._chart.label),
            )
        return self._dots[color]


def _put(mark: bq.Mark, dots: list[Dot]) -> None:
    with mark.hold_sync():
        mark.x, mark.y = floats([dot.x for dot in dots]), floats([dot.y for dot in dots])
