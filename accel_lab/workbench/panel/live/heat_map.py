"""The live HeatMap."""

from __future__ import annotations

from dataclasses import replace

import bqplot as bq
import numpy as np

from accel_lab.workbench.drawing.chart import Runs
from accel_lab.workbench.drawing.heat_map import COLORS, HeatMap, said, short
from accel_lab.workbench.drawing.record import Record
from accel_lab.workbench.knobs import Knobs
from accel_lab.workbench.panel.live.frame import MARGIN, Frame, floats, mark, say_at, write


class LiveHeatMap:
    def __init__(self, chart: HeatMap, knobs: Knobs):
        self._chart = chart
        self._scales = {"x": bq.LinearScale(), "y": bq.LinearScale()}
        labels = (chart.across.replace("_", " "), chart.up.replace("_", " "))
        self._across, self._up = (
            bq.Axis(scale=self._scales[side], label=label, grid_lines="none", **place)
            for (side, place), label in zip(
                (("x", {"label_offset": "2.6em"}), ("y", {"orientation": "vertical"})),
                labels,
                strict=True,
            )
        )
        self._up.label_offset = "5em"
        margin = MARGIN | {"left": 78}
        self._frame = Frame(chart.title, [self._across, self._up], margin=margin)
        self.view = self._frame.view
        self._runs = Runs(knobs)
        self._drawn: float | None = None

    def keep(self, runs: Runs) -> None:
        self._runs = runs
        self._draw()

    def move(self, record: Record) -> None:
        value = self._chart.value(record)
        if value is None or (self._runs.live is record and not self._visibly(value)):
            return
        self._runs, self._drawn = replace(self._runs, live=record), value
        self._draw()

    def _visibly(self, value: float) -> bool:
        return self._drawn is None or abs(value - self._drawn) > 0.005 * abs(self._drawn)

    def _draw(self) -> None:
        cells = self._chart.cells(self._runs)
        for axis, scale, values in (
            (self._across, self._scales["x"], cells.across),
            (self._up, self._scales["y"], cells.up),
        ):
            scale.min, scale.max = 0.0, float(max(1, len(values)))
            mark(axis, {place + 0.5: said(value) for place, value in enumerate(values)})
        known = cells.values[np.isfinite(cells.values)]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        marks, dark, light = [], [], []
        for (row, column), value in np.ndenumerate(cells.values):
            share = (value - low) / (high - low) if high > low else 0.0
            marks.append(self._cell(row, column, None if np.isnan(value) else share))
            if not np.isnan(value):
                text = (column + 0.5, row + 0.5, short(value))
                (light if share > 0.5 else dark).append(text)
        for color, texts in (("#222222", dark), ("#ffffff", light)):
            label = write(self._scales, "middle", y_offset=4, colors=[color])
            say_at(label, texts)
            marks.append(label)
        self._frame.show(marks)

    def _cell(self, row: int, column: int, share: float | None) -> bq.Lines:
        x, y = floats([0, 1, 1, 0, 0]) * 0.96 + 0.02, floats([0, 0, 1, 1, 0]) * 0.94 + 0.03
        look = {"fill": "inside", "stroke_width": 0.5, "colors": ["#999999"]}
        if share is None:
            look["fill_opacities"] = [0.0]
        else:
            look["fill_colors"], look["fill_opacities"] = [_between(share)], [1.0]
        return bq.Lines(x=x + column, y=y + row, scales=self._scales, **look)


def _between(share: float) -> str:
    ends = [[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in COLORS]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(*ends, strict=True))
