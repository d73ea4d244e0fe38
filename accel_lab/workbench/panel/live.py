"""The live charts: each kind of chart drawn with bqplot, and moved by assigning to its marks."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import floor, isfinite, log10
from time import perf_counter

import bqplot as bq
import ipywidgets as w
import numpy as np

from accel_lab.workbench.drawing.chart import Chart, Curve, Sweep, Timeline, kinds_of
from accel_lab.workbench.drawing.record import Record
from accel_lab.workbench.look import BLUE, GREY, SPAN_COLORS, STYLES

INK = "var(--jp-ui-font-color1, #222)"
DASHES = {"--": "dashed", "-.": "dash_dotted", ":": "dotted", "-": "solid"}
SECONDS_A_TIMELINE = (
    1.0  # a timeline is many marks: redrawn more rarely, it takes nothing from the training
)
MARGIN = {"top": 12, "bottom": 44, "left": 72, "right": 18}


def styled(pinned: Sequence[Record], ghosts: Sequence[Record]) -> list[tuple[Record, str, str]]:
    """The records that stay, back to front, each with its colour and line style."""
    return [(ghost, GREY, "-") for ghost in ghosts] + [
        (record, *STYLES[place % len(STYLES)]) for place, record in enumerate(pinned)
    ]


def live_chart(chart: Chart) -> LiveCurve | LiveSweep | LiveTimeline:
    return _KINDS[type(chart)](chart)


def _floats(values: Sequence[float], scale: float = 1.0) -> np.ndarray:
    return np.asarray(values, dtype="float32") * scale


PLACE = {"min_width": "320px", "flex": "1 1 380px"}  # two charts a row where there is room for two


def _figure(
    x: bq.Axis, y: bq.Axis, height: str = "250px", place: dict[str, str] = PLACE
) -> bq.Figure:
    return bq.Figure(
        axes=[x, y], fig_margin=MARGIN, layout={"height": height, **place}, animation_duration=0
    )


def _axis(scale: bq.Scale, label: str, vertical: bool = False, **more: object) -> bq.Axis:
    place = (
        {"orientation": "vertical", "label_offset": "4.4em"}
        if vertical
        else {"label_offset": "2.6em"}
    )
    return bq.Axis(
        scale=scale,
        label=label,
        grid_lines="solid" if vertical else "none",
        **place,
        **{"tick_format": "~g", **more},
    )


def _upward(chart: Curve | Sweep) -> bq.Axis:
    """From zero upwards, or logarithmic within fixed ends: bqplot cannot draw a log axis before
    there are data.
    """
    if not chart.log:
        return _axis(bq.LinearScale(min=0.0), chart.label, vertical=True)
    low, high = (round(log10(end)) for end in chart.log)
    decades = np.array([10.0**i for i in range(low, high + 1, max(1, (high - low) // 5))])
    return _axis(
        bq.LogScale(min=chart.log[0], max=chart.log[1]),
        chart.label,
        vertical=True,
        tick_values=decades,
        tick_format=".0e",
    )


def _knob_axis(chart: Sweep) -> bq.Axis:
    label = chart.knob.replace("_", " ")
    if not chart.log_x:
        return _axis(bq.LinearScale(min=0.0), label)
    low, high = chart.log_x
    powers = [float(2**i) for i in range(64) if low <= 2**i <= high]
    return _axis(bq.LogScale(min=low / 1.15, max=high * 1.15), label, tick_values=np.array(powers))


# Where an axis may end, and the steps of its ticks: never so many that their numbers touch.
NICE = {1.0: 0.2, 1.5: 0.5, 2.0: 0.5, 3.0: 0.5, 4.0: 1.0, 5.0: 1.0, 6.0: 1.0, 8.0: 2.0, 10.0: 2.0}


def _reach(axis: bq.Axis, value: float) -> None:
    """Let an axis from 0 end at a round number above the value, and leave it alone while that fits.

    An axis that follows every point would be drawn anew with it, and drawing takes time from the
    training.
    """
    end = axis.scale.max
    if end is not None and end / 3 < value <= end:
        return
    if value > 0 and isfinite(value):
        decade = 10.0 ** floor(log10(value))
        nice = next(nice for nice in NICE if nice * decade >= value * 0.999)
        axis.scale.max = nice * decade
        axis.tick_values = np.arange(0, nice + NICE[nice] / 2, NICE[nice]) * decade


class LiveCurve:
    def __init__(self, chart: Curve):
        self.chart = chart
        self._across, self._upward = _axis(bq.LinearScale(min=0.0), chart.over), _upward(chart)
        self._scales = {"x": self._across.scale, "y": self._upward.scale}
        self._live = bq.Lines(x=[], y=[], scales=self._scales, colors=[BLUE], stroke_width=2.5)
        self._behind: list[bq.Lines] = []
        self._kept = (0.0, 0.0)  # how far right and up what stays reaches
        self.view = _figure(self._across, self._upward)

    def keep(self, pinned: Sequence[Record], ghosts: Sequence[Record]) -> None:
        """Draw what stays: pinned records and ghosts behind the live line, and the limit."""
        marks = []
        shown = [
            (*self._points(record), color, style) for record, color, style in styled(pinned, ghosts)
        ]
        shown = [(xs, ys, color, style) for xs, ys, color, style in shown if len(ys)]
        right = max((float(xs.max()) for xs, *_ in shown), default=0.0)
        up = max((float(ys.max()) for _, ys, *_ in shown), default=0.0)
        for xs, ys, color, style in shown:
            look = {"colors": [color], "line_style": DASHES[style], "stroke_width": 1.6}
            marks.append(bq.Lines(x=xs, y=ys, scales=self._scales, **look))
        if self.chart.limit:
            right, up = max(1.0, right), max(self.chart.limit[0], up)
            line = {"x": [0.0, right], "y": [self.chart.limit[0]] * 2}
            marks.append(
                bq.Lines(
                    **line, scales=self._scales, colors=[INK], line_style="dashed", stroke_width=1
                )
            )
        self._kept = (right, up)
        self._behind = marks
        self.view.marks = marks
        self._fit(0.0, 0.0)

    def move(self, record: Record) -> None:
        xs, ys = self._points(record)
        if not len(ys):
            return
        self._fit(float(xs[-1]), float(ys.max()))
        with self._live.hold_sync():
            self._live.x, self._live.y = xs, ys
        if self._live not in self.view.marks:
            self.view.marks = [*self._behind, self._live]

    def _points(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        values = record.series.get(self.chart.metric, [])
        across = record.seconds if self.chart.over == "seconds" else record.updates
        return _floats(across[len(across) - len(values) :]), _floats(values, self.chart.scale)

    def _fit(self, right: float, up: float) -> None:
        _reach(self._across, max(right, self._kept[0]))
        if not self.chart.log:
            _reach(self._upward, max(up, self._kept[1]))


class LiveSweep:
    def __init__(self, chart: Sweep):
        self.chart = chart
        across, upward = _knob_axis(chart), _upward(chart)
        self._scales = {"x": across.scale, "y": upward.scale}
        self._live = bq.Scatter(x=[], y=[], scales=self._scales, colors=[BLUE], default_size=110)
        self._formula = bq.Lines(
            x=[], y=[], scales=self._scales, colors=[INK], line_style="dashed", stroke_width=1
        )
        self._predicted_for = None
        self._shown: tuple[float, float] | None = None
        self.view = _figure(across, upward)

    def keep(self, pinned: Sequence[Record], ghosts: Sequence[Record]) -> None:
        marks = []
        for record, color, _ in styled(pinned, ghosts):
            if (value := record.typical(self.chart.metric)) is not None:
                at = {
                    "x": [float(getattr(record.knobs, self.chart.knob))],
                    "y": [value * self.chart.scale],
                }
                marks.append(bq.Scatter(**at, scales=self._scales, colors=[color], default_size=70))
            self._predict(record)
        self._behind = [self._formula, *marks] if self._predicted_for else marks
        self.view.marks = self._behind

    def move(self, record: Record) -> None:
        self._predict(record)
        if (value := record.typical(self.chart.metric)) is None:
            return
        at = float(getattr(record.knobs, self.chart.knob)), value * self.chart.scale
        if (
            self._shown is None
            or self._shown[0] != at[0]
            or abs(at[1] - self._shown[1]) > 0.005 * abs(self._shown[1])
        ):
            self._shown = at  # a dot that would not visibly move is not drawn again
            with self._live.hold_sync():
                self._live.x, self._live.y = _floats([at[0]]), _floats([at[1]])
        if self._live not in self.view.marks:
            self.view.marks = [*self._behind, self._live]

    def _predict(self, record: Record) -> None:
        if self.chart.predicted is None or self._predicted_for == record.knobs:
            return
        self._predicted_for = record.knobs
        xs, ys = self.chart.prediction(record.knobs)
        with self._formula.hold_sync():
            self._formula.x, self._formula.y = _floats(xs), _floats(ys)


class LiveTimeline:
    """One mark for each kind of span, its bars separated by gaps: as many marks as kinds, not as
    spans.
    """

    def __init__(self, chart: Timeline):
        self._ranks = bq.LinearScale(min=-0.6, max=0.6, reverse=True)
        self._scales = {"x": bq.LinearScale(min=0.0), "y": self._ranks}
        self._lanes = bq.Axis(
            scale=self._ranks,
            orientation="vertical",
            label="rank",
            tick_format="d",
            grid_lines="none",
        )
        self._lanes.label_offset, self._lanes.tick_values = "3.6em", np.array([0.0])
        self._across = _axis(self._scales["x"], chart.label)
        self._figure = _figure(self._across, self._lanes, height="170px", place={"width": "100%"})
        self._names = w.HTML()
        self.view = w.VBox([self._names, self._figure], layout=PLACE)
        self._marks: dict[str, bq.Lines] = {}
        self._due = 0.0

    def keep(self, pinned: Sequence[Record], ghosts: Sequence[Record]) -> None:
        self._due = 0.0
        if not self._marks and pinned:
            self.move(pinned[-1])

    def move(self, record: Record) -> None:
        if perf_counter() < self._due or not record.spans:
            return
        self._due = perf_counter() + SECONDS_A_TIMELINE
        self._show_ranks(max(span.rank for span in record.spans) + 1)
        _reach(self._across, max(span.end for span in record.spans) * 1e3)
        kinds = kinds_of(record.spans)
        bars: dict[str, list[tuple[float, float, float]]] = {
            kind: [] for kind in [*self._marks, *kinds]
        }
        seam = 0.003 * max(
            span.end for span in record.spans
        )  # or neighbours of one kind would look like one
        for span in record.spans:
            end = max(span.end - seam, (span.start + span.end) / 2)
            lane = span.rank + (0.32 if kinds[span.kind] else 0.0)
            bars[span.kind].append((span.start * 1e3, end * 1e3, lane))
        for kind, times in bars.items():
            mark = self._mark(kind)
            mark.stroke_width = 7 if kinds.get(kind) else 15 if any(kinds.values()) else 22
            with mark.hold_sync():
                mark.x = _floats([x for start, end, _ in times for x in (start, start, end)])
                # The gap first: a line must not end in one.
                mark.y = _floats([y for _, _, lane in times for y in (np.nan, lane, lane)])

    def _show_ranks(self, ranks: int) -> None:
        if len(self._lanes.tick_values) != ranks:
            self._ranks.max = ranks - 0.4
            self._lanes.tick_values = np.arange(ranks, dtype=float)

    def _mark(self, kind: str) -> bq.Lines:
        if kind not in self._marks:
            color = SPAN_COLORS[len(self._marks) % len(SPAN_COLORS)]
            self._marks[kind] = bq.Lines(
                x=[], y=[], scales=self._scales, colors=[color], stroke_width=22
            )
            self._figure.marks = list(self._marks.values())
            self._names.value = "".join(
                _swatch(kind, mark.colors[0]) for kind, mark in self._marks.items()
            )
        return self._marks[kind]


def _swatch(kind: str, color: str) -> str:
    square = (
        '<svg width="12" height="12" aria-hidden="true"><rect width="12" height="12" '
        f'fill="{color}"/></svg>'
    )
    return f'<span class="accel-entry">{square} {escape(kind)}</span>'


_KINDS = {Curve: LiveCurve, Sweep: LiveSweep, Timeline: LiveTimeline}
