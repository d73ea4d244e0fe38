"""The live Budget: one mark for each part, a thick line for each bar."""

from __future__ import annotations

import bqplot as bq
import ipywidgets as w
import numpy as np

from accel_lab.workbench.drawing.budget import MOST_BARS, Bar, Budget
from accel_lab.workbench.drawing.chart import Runs
from accel_lab.workbench.drawing.record import Record
from accel_lab.workbench.knobs import Knobs
from accel_lab.workbench.look import ink_on
from accel_lab.workbench.panel.live.frame import (
    LIMIT,
    MARGIN,
    FittedAxis,
    Frame,
    floats,
    say_at,
    swatches,
    write,
)

BELOW = 0.12  # of its row a bar lies, its name above it
LETTERS = 40  # about as many as fit into the narrowest graph


class LiveBudget:
    def __init__(self, chart: Budget, knobs: Knobs):
        self._chart = chart
        self._across = FittedAxis()
        self._rows = bq.LinearScale(min=-0.6, max=1.6, reverse=True)
        scales = {"x": self._across.scale, "y": self._rows}
        colors = chart.colors
        self._frame = Frame(
            chart.title,
            [self._across.axis],
            above=[w.HTML(swatches(colors))],
            margin=MARGIN | {"left": 18},
        )
        self.view = self._frame.view
        self._parts = {
            name: bq.Lines(x=[], y=[], scales=scales, colors=[color], stroke_width=22)
            for name, color in colors.items()
        }
        self._inside = {
            name: write(scales, "middle", y_offset=4, colors=[ink_on(color)])
            for name, color in colors.items()
        }
        self._predicted = bq.Lines(x=[], y=[], scales=scales, **LIMIT | {"stroke_width": 2})
        self._names = write(scales, "start", y_offset=-3)
        self._limit = bq.Lines(x=[], y=[], scales=scales, **LIMIT)
        self._limit_name = write(scales)
        marks = [*self._parts.values(), *self._inside.values(), self._predicted, self._names]
        self._frame.show([*marks, self._limit, self._limit_name])
        self._kept: list[Bar] = []
        self._drawn: Bar | None = None

    def keep(self, runs: Runs) -> None:
        staying = Runs(
            runs.knobs, [one for one in runs.pinned if one is not runs.live], runs.former
        )
        self._kept = self._chart.bars(staying)
        self._drawn = self._chart.bar(runs.live) if runs.live else None
        self._draw()

    def move(self, record: Record) -> None:
        bar = self._chart.bar(record)
        if self._drawn is None or _visibly(self._drawn, bar):
            self._drawn = bar
            self._draw()

    def _draw(self) -> None:
        live = [self._drawn] if self._drawn and self._drawn.parts else []
        bars = [*live, *self._kept][:MOST_BARS]
        self._across.fit([self._chart.reach(bars)])
        rows = max(len(bars), 2)
        self._rows.max = rows - 0.4
        say_at(self._names, [(0.0, row - 0.22, bar.label) for row, bar in enumerate(bars)])
        letter = self._across.scale.max / LETTERS
        for name, line in self._parts.items():
            pieces = [
                (row + BELOW, start, end)
                for row, bar in enumerate(bars)
                for part, start, end in bar.parts
                if part == name
            ]
            line.stroke_width = max(8, min(22, 80 // rows))
            with line.hold_sync():
                line.x = floats([x for _, start, end in pieces for x in (start, start, end)])
                line.y = floats([y for row, *_ in pieces for y in (np.nan, row, row)])
            said = [
                ((start + end) / 2, row, self._chart.inside(name, start, end, letter))
                for row, start, end in pieces
            ]
            say_at(self._inside[name], said)
        foreseen = [
            (row, bar.predicted) for row, bar in enumerate(bars) if bar.predicted is not None
        ]
        with self._predicted.hold_sync():
            self._predicted.x = floats([x for _, x in foreseen for _ in range(3)])
            self._predicted.y = floats(
                [y for row, _ in foreseen for y in (np.nan, row + BELOW - 0.28, row + BELOW + 0.28)]
            )
        if self._chart.limit:
            value, text = self._chart.limit
            with self._limit.hold_sync():
                self._limit.x, self._limit.y = floats([value] * 2), floats([-0.6, rows - 0.4])
            say_at(self._limit_name, [(value, -0.6, text)])


def _visibly(before: Bar, now: Bar) -> bool:
    names = [[part[0] for part in bar.parts] for bar in (before, now)]
    moved = any(
        abs(a - b) > 0.005 * max(before.end, now.end)
        for (_, *old), (_, *new) in zip(before.parts, now.parts, strict=False)
        for a, b in zip(old, new, strict=True)
    )
    return moved or names[0] != names[1] or before.label != now.label
