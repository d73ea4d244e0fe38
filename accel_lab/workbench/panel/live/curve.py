"""The live Curve."""

from __future__ import annotations

import bqplot as bq
import numpy as np

from accel_lab.workbench.drawing.axis import apart, running_median
from accel_lab.workbench.drawing.chart import MOST_CURVES, Runs
from accel_lab.workbench.drawing.curve import Curve
from accel_lab.workbench.drawing.record import Record
from accel_lab.workbench.knobs import Knobs
from accel_lab.workbench.look import BLUE, GREY, in_short
from accel_lab.workbench.panel.live.frame import (
    DASHES,
    INK,
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

MOST_HOVERED = 40  # points of a run that tell their values under the mouse


class LiveCurve:
    def __init__(self, chart: Curve, knobs: Knobs):
        self._chart = chart
        self._across = FittedAxis(chart.across, whole=chart.counts)
        self._up = FittedAxis(up=True, log=chart.log, ends=chart.ends)
        self._scales = {"x": self._across.scale, "y": self._up.scale}
        self._frame = Frame(chart.title, [self._across.axis, self._up.axis])
        self.view = self._frame.view
        self._raw = self._line(BLUE, "-", 1.0, opacities=[0.35])
        self._front = self._line(BLUE, "-", 2.5)
        self._hover = self._points(BLUE)
        self._limit = bq.Lines(x=[], y=[], scales=self._scales, **LIMIT)
        # What lies at the right end of the graph is named to the left.
        self._names = {align: write(self._scales, align, y_offset=-6) for align in ("start", "end")}
        self._ends: list[tuple[float, float, str, str]] = []  # of the lines: x, y, name, color
        self._behind: list[bq.Mark] = []
        self._kept: list[np.ndarray] = [np.array([]), np.array([])]  # what stays: across, up

    def keep(self, runs: Runs) -> None:
        # Points under the mouse cost the browser as much as all the rest: those of the run at hand
        # are drawn when it rests.
        live = self._chart.points(runs.live) if runs.live else (np.array([]), np.array([]))
        _put(self._hover, *_some(live[0], self._front_of(live[1])))
        marks, kept, self._ends = [], [[], []], []
        for record, color, style, _ in runs.staying(MOST_CURVES):
            xs, ys = self._chart.points(record)
            if not len(ys):
                continue
            kept[0].append(xs[-1:])
            kept[1].append(np.array(self._chart.reach(ys)))
            ys = self._front_of(ys)
            name = in_short(record.label, 28)
            self._ends.append((xs[-1], ys[-1], name, color))
            line, points = self._line(color, style, 1.6), self._points(color)
            _put(line, xs, ys)
            _put(points, *_some(xs, ys))
            marks += [line] if color == GREY else [line, points]
        if self._chart.limit:
            kept[1].append(np.array([self._chart.limit[0]]))
            marks.append(self._limit)
        self._kept = [np.concatenate(parts) if parts else np.array([]) for parts in kept]
        self._fit(np.array([]), np.array([]))
        self._name()
        named = self._ends or self._chart.limit
        self._behind = [*marks, *(self._names.values() if named else ())]
        self._frame.show(self._behind)

    def move(self, record: Record) -> None:
        xs, ys = self._chart.points(record)
        if not len(ys):
            return
        self._fit(xs[-1:], ys)
        _put(self._front, xs, self._front_of(ys))
        raw = [self._raw] if self._chart.smoothed else []
        if raw:
            _put(self._raw, xs, ys)
        self._frame.show([*self._behind, *raw, self._front, self._hover])

    def _front_of(self, ys: np.ndarray) -> np.ndarray:
        return running_median(ys) if self._chart.smoothed else ys

    def _fit(self, xs: np.ndarray, ys: np.ndarray) -> None:
        before = self._reach()
        self._across.fit([*self._kept[0], *xs])
        if len(ys):
            ys = np.array(self._chart.reach(ys))
        self._up.fit([*self._kept[1], *ys])
        if self._reach() != before:
            self._name()

    def _reach(self) -> list[float]:
        return [end for scale in self._scales.values() for end in (scale.min, scale.max)]

    def _name(self) -> None:
        """The limit, and each line at its end; moved apart where names would touch."""
        ends, across, up = [*self._ends], self._scales["x"], self._scales["y"]
        if self._chart.limit:
            value, name = self._chart.limit
            _put(self._limit, np.array([0.0, across.max]), np.array([value, value]))
            ends.append((across.max, value, name, INK))
        wanted = [share(up, y) for _, y, *_ in ends]
        places = apart(wanted, [0.07] * len(ends))
        for align, label in self._names.items():
            said = [
                (x, value_at(up, place), text, color)
                for (x, _, text, color), place in zip(ends, places, strict=True)
                if (share(across, x) > 0.6) == (align == "end")
            ]
            label.colors = [color for *_, color in said] or [GREY]
            say_at(label, [at for *at, _ in said])

    def _line(self, color: str, style: str, width: float, **more: object) -> bq.Lines:
        look = {"colors": [color], "line_style": DASHES[style], "stroke_width": width, **more}
        return bq.Lines(x=[], y=[], scales=self._scales, **look)

    def _points(self, color: str) -> bq.Scatter:
        """Points that nobody sees, until the mouse finds them."""
        return bq.Scatter(
            x=[],
            y=[],
            scales=self._scales,
            colors=[color],
            default_size=90,
            opacities=[0.0],
            hovered_style={"opacity": "1"},
            tooltip=tooltip(x=self._chart.across, y=self._chart.label),
        )


def _put(mark: bq.Mark, xs: np.ndarray, ys: np.ndarray) -> None:
    with mark.hold_sync():
        mark.x, mark.y = floats(xs), floats(ys)


def _some(xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(xs) <= MOST_HOVERED:
        return xs, ys
    places = np.linspace(0, len(xs) - 1, MOST_HOVERED).astype(int)
    return xs[places], ys[places]
