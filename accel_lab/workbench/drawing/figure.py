"""The still picture: a panel's charts drawn with matplotlib, and the few figures that chapters
share.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from accel_lab.workbench.drawing.chart import Chart, Curve, Sweep, Timeline, kinds_of
from accel_lab.workbench.drawing.record import Record
from accel_lab.workbench.look import (
    BLUE,
    GREEN,
    GREY,
    LIMIT,
    ON_PAPER,
    ORANGE,
    PURPLE,
    SPAN_COLORS,
    STYLES,
)
from accel_lab.workbench.measure.comparison import Comparison
from accel_lab.workbench.step import Span

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "LIMIT",
    "ORANGE",
    "PURPLE",
    "STYLES",
]  # chapters and techniques draw in these


class Picture(Figure):
    """A figure that a notebook shows without pyplot, which is neither thread-safe nor needed."""

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, str], dict[str, str]]:
        shown = {"text/plain": repr(self), "image/png": base64.b64encode(png(self)).decode()}
        return shown, {} if any(
            one.images for one in self.axes
        ) else ON_PAPER  # a photograph stays as it is

    def __repr__(self) -> str:
        return "Picture"


def axes(width: float = 7.0, height: float = 3.0, columns: int = 1) -> tuple[Picture, list[Axes]]:
    """A picture in the course's look, sizes in inches, and its axes from left to right."""
    figure = Picture((width, height), dpi=100, layout="constrained")
    row = list(figure.subplots(1, columns, squeeze=False)[0])
    for one in row:
        tidy(one)
    return figure, row


def tidy(one: Axes) -> None:
    one.spines[["top", "right"]].set_visible(False)
    one.grid(alpha=0.25, linewidth=0.6)
    one.set_axisbelow(True)


def powers_of_two(one: Axes, label: str, ticks: Iterable[float]) -> None:
    """A logarithmic axis for a count that doubles, each value written out."""
    one.set_xscale("log", base=2)
    one.set_xticks(list(ticks), [f"{tick:g}" for tick in ticks])
    one.minorticks_off()
    one.set_xlabel(label)


def draw_ratios(one: Axes, ratios: Mapping[float, Comparison], ylabel: str) -> None:
    """Measured ratios over what was varied, with the interval each comparison leaves possible, and
    a line at 1: no difference.
    """
    one.axhline(1, **LIMIT, label="no difference")
    middle = [ratio.ratio for ratio in ratios.values()]
    low, high = zip(*(ratio.interval for ratio in ratios.values()), strict=True)
    below = [max(0.0, m - end) for m, end in zip(middle, low, strict=True)]
    above = [max(0.0, end - m) for m, end in zip(middle, high, strict=True)]
    one.errorbar(
        list(ratios),
        middle,
        [below, above],
        color=BLUE,
        marker="o",
        capsize=3,
        label="measured, with its 99 % interval",
    )
    one.set(ylabel=ylabel, ylim=(0, None))


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def draw(
    charts: Sequence[Chart], pinned: Sequence[Record], ghosts: Sequence[Record], live: Record | None
) -> Picture:
    """All charts of a panel, two a row, with the live run in front of pinned ones and ghosts."""
    rows = (len(charts) + 1) // 2
    figure = Picture((9.0, 2.9 * rows), dpi=90, layout="constrained")
    grid = figure.add_gridspec(rows, 2)
    for place, chart in enumerate(charts):
        last_alone = place == len(charts) - 1 and place % 2 == 0
        one = figure.add_subplot(grid[place // 2, :] if last_alone else grid[place // 2, place % 2])
        tidy(one)
        _DRAW[type(chart)](one, chart, pinned, ghosts, live)
    return figure


def _styled(
    pinned: Sequence[Record], ghosts: Sequence[Record], live: Record | None
) -> list[tuple[Record, str, str, float]]:
    styled = [(record, GREY, "-", 1.0) for record in ghosts]
    styled += [(record, *STYLES[place % len(STYLES)], 1.8) for place, record in enumerate(pinned)]
    return styled + ([(live, BLUE, "-", 2.2)] if live else [])


def _curve(one: Axes, chart: Curve, *records: Sequence[Record] | Record | None) -> None:
    for record, color, style, width in _styled(*records):
        if values := record.series.get(chart.metric):
            xs = record.seconds if chart.over == "seconds" else record.updates
            one.plot(
                xs,
                [v * chart.scale for v in values],
                style,
                color=color,
                linewidth=width,
                label=record.label,
            )
    if chart.limit:
        one.axhline(chart.limit[0], **LIMIT, label=chart.limit[1])
    one.set(xlabel=chart.over, ylabel=chart.label)
    _upward(one, chart.log)
    _legend(one)


def _legend(one: Axes) -> None:
    if one.get_legend_handles_labels()[0]:
        one.legend(frameon=False, fontsize=8)


def _upward(one: Axes, log: tuple[float, float] | None) -> None:
    if log:
        one.set_yscale("log")
    one.set_ylim(*(log or (0, None)))


def _sweep(
    one: Axes, chart: Sweep, pinned: Sequence[Record], ghosts: Sequence[Record], live: Record | None
) -> None:
    styled = _styled(pinned, ghosts, live)
    if chart.predicted and styled:
        one.plot(*chart.prediction(styled[-1][0].knobs), **LIMIT, label=chart.formula)
    for record, color, _, _ in styled:
        if (value := record.typical(chart.metric)) is not None:
            one.plot(
                getattr(record.knobs, chart.knob),
                value * chart.scale,
                "o",
                color=color,
                markersize=7,
                label=record.label,
            )
    one.set(xlabel=chart.knob.replace("_", " "), ylabel=chart.label)
    if chart.log_x:
        one.set_xscale("log", base=2)
        one.xaxis.set_major_formatter("{x:g}")
    elif styled and type(getattr(styled[-1][0].knobs, chart.knob)) is int:
        one.xaxis.get_major_locator().set_params(integer=True)
    _upward(one, chart.log)
    _legend(one)


def _timeline(
    one: Axes,
    chart: Timeline,
    pinned: Sequence[Record],
    ghosts: Sequence[Record],
    live: Record | None,
) -> None:
    record = live or (pinned[-1] if pinned else None)
    if record:
        draw_spans(one, record.spans)
    one.set_xlabel(chart.label)


def draw_spans(one: Axes, spans: Sequence[Span]) -> None:
    """A bar for each span, a lane for each rank, a colour for each kind, with its number where
    there is room.

    What goes on beside other work has a thin lane below.
    """
    kinds = kinds_of(spans)
    room = 0.02 * max((span.end for span in spans), default=0.0)
    for color, (kind, beside) in zip(cycle(SPAN_COLORS), kinds.items(), strict=False):
        bars = [span for span in spans if span.kind == kind]
        drawn = one.barh(
            [span.rank + (0.3 if beside else 0.0) for span in bars],
            [(span.end - span.start) * 1e3 for span in bars],
            left=[span.start * 1e3 for span in bars],
            height=0.2 if beside else 0.4 if any(kinds.values()) else 0.7,
            color=color,
            edgecolor="white",
            linewidth=0.5,
            label=kind,
        )
        roomy = [span.end - span.start > room and not beside for span in bars]
        numbers = [
            span.name.removeprefix(kind).strip() if fits else ""
            for span, fits in zip(bars, roomy, strict=True)
        ]
        one.bar_label(drawn, numbers, label_type="center", color="white", fontsize=8)
    ranks = sorted({span.rank for span in spans})
    one.set_yticks(ranks, [f"rank {rank}" for rank in ranks])
    one.set_ylim(max(ranks, default=0) + 0.9, -0.9)  # rank 0 on top
    if kinds:
        one.legend(
            frameon=False, fontsize=8, ncols=len(kinds), loc="lower left", bbox_to_anchor=(0, 1)
        )


_DRAW = {Curve: _curve, Sweep: _sweep, Timeline: _timeline}
