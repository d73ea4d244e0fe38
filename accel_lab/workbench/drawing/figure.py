"""Still pictures: a panel's charts drawn with matplotlib, and the pictures that chapters share."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from statistics import fmean
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from accel_lab.workbench.drawing.axis import HALO, SMALL, label_ends, limit_line
from accel_lab.workbench.drawing.chart import Chart, Runs
from accel_lab.workbench.drawing.paper import Paper, in_our_style
from accel_lab.workbench.drawing.timeline import draw_spans
from accel_lab.workbench.look import (
    BLUE,
    GREEN,
    GREY,
    LIMIT,
    ON_PAPER,
    ORANGE,
    PURPLE,
    STYLES,
    number,
)
from accel_lab.workbench.measure.comparison import Comparison
from accel_lab.workbench.measure.roofline import Roofline
from accel_lab.workbench.step import Span

__all__ = [  # chapters and techniques draw in these
    "BLUE",
    "GREEN",
    "GREY",
    "LIMIT",
    "ORANGE",
    "PURPLE",
    "STYLES",
    "Picture",
    "axes",
    "draw",
    "draw_bars",
    "draw_grid",
    "draw_guess",
    "draw_histograms",
    "draw_history",
    "draw_images",
    "draw_lines",
    "draw_over_seeds",
    "draw_ratios",
    "draw_roofline",
    "draw_spans",
    "draw_timelines",
    "label_ends",
    "limit_line",
    "png",
    "powers_of_two",
    "tell_over_seeds",
    "tidy",
]


class Picture(Figure):
    """A figure that a notebook shows without pyplot, which is neither thread-safe nor needed."""

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, str], dict[str, str]]:
        shown = {"text/plain": repr(self), "image/png": base64.b64encode(png(self)).decode()}
        photograph = any(one.images for one in self.axes)  # stays as it is on a dark page
        return shown, {} if photograph else ON_PAPER

    def __repr__(self) -> str:
        return "Picture"


@in_our_style
def axes(width: float = 7.0, height: float = 3.0, columns: int = 1) -> tuple[Picture, list[Axes]]:
    """A picture in the course's look, sizes in inches, and its axes from left to right."""
    figure = Picture((width, height), dpi=100, layout="constrained")
    of_ours = {"axes_class": Paper}
    row = list(figure.subplots(1, columns, squeeze=False, subplot_kw=of_ours)[0])
    for one in row:
        tidy(one)
    return figure, row


def tidy(one: Axes) -> None:
    one.spines[["top", "right"]].set_visible(False)
    one.grid(alpha=0.25, linewidth=0.6)
    one.set_axisbelow(True)


@in_our_style
def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


@in_our_style
def draw(charts: Sequence[Chart], runs: Runs) -> Picture:
    """All charts of a panel, two a row."""
    rows = (len(charts) + 1) // 2
    figure = Picture((9.6, 2.9 * rows), dpi=90, layout="constrained")
    grid = figure.add_gridspec(max(1, rows), 2)
    for place, chart in enumerate(charts):
        last_alone = place == len(charts) - 1 and place % 2 == 0
        part = grid[place // 2, :] if last_alone else grid[place // 2, place % 2]
        one = figure.add_subfigure(part).subplots()  # long labels of one leave room to the others
        tidy(one)
        one.set_title(chart.title, loc="left", fontsize=10)
        one.tick_params(labelsize=SMALL + 1)
        chart.draw(one, runs)
    return figure


# ---- what chapters draw ----


def powers_of_two(one: Axes, label: str, ticks: Iterable[float]) -> None:
    """A logarithmic axis for a count that doubles, each value written out."""
    ticks = list(ticks)
    one.set_xscale("log", base=2)
    one.set_xticks(ticks, [number(tick) for tick in ticks])
    one.minorticks_off()
    one.set_xlabel(label)


def draw_ratios(
    one: Axes,
    ratios: Mapping[float, Comparison],
    ylabel: str = "",
    *,
    label: str = "measured, with its 99 % interval",
    color: str = BLUE,
    style: str = "o",
) -> None:
    """Measured ratios over what was varied, with the interval that each comparison leaves possible,
    and a line at 1: equally fast. Call it again for a second series, in another colour and style.
    """
    if not any(line.get_gid() == "equal" for line in one.lines):
        one.axhline(1, **LIMIT, label="equally fast", gid="equal")
    middle = [ratio.ratio for ratio in ratios.values()]
    low, high = zip(*(ratio.interval for ratio in ratios.values()), strict=True)
    below = [max(0.0, m - end) for m, end in zip(middle, low, strict=True)]
    above = [max(0.0, end - m) for m, end in zip(middle, high, strict=True)]
    one.errorbar(
        list(ratios), middle, [below, above], fmt=style, color=color, capsize=3, label=label
    )
    one.set_ylim(0, None)
    if ylabel:
        one.set_ylabel(ylabel)


def draw_over_seeds(
    one: Axes,
    results: Mapping[float | str, Sequence[float]],
    *,
    label: str = "",
    color: str = BLUE,
    style: str = "-o",
) -> None:
    """What was varied → one result for each seed: the mean as a line, from the least to the
    greatest as a band. Names instead of numbers stand side by side, with bars.
    """
    middle = [fmean(values) for values in results.values()]
    low, high = ([end(values) for values in results.values()] for end in (min, max))
    if all(isinstance(x, str) for x in results):
        below = [m - end for m, end in zip(middle, low, strict=True)]
        above = [end - m for m, end in zip(middle, high, strict=True)]
        one.errorbar(
            [fill(str(name), 14) for name in results],
            middle,
            [below, above],
            fmt=style[-1],
            color=color,
            capsize=4,
            label=label,
        )
        one.margins(x=0.2)
        return
    one.fill_between(list(results), low, high, color=color, alpha=0.15, linewidth=0)
    one.plot(list(results), middle, style, color=color, label=label)


def tell_over_seeds(values: Sequence[float], unit: str = "") -> str:
    """One result for each seed, in words: "1.8 × (1.6 to 2.1 over 5 seeds)"."""
    low, middle, high = (
        number(float(f"{v:.3g}")) for v in (min(values), fmean(values), max(values))
    )
    unit = f" {unit}" if unit else ""
    if len(values) == 1:
        return f"{middle}{unit} (1 seed)"
    return f"{middle}{unit} ({low} to {high} over {len(values)} seeds)"


def draw_lines(
    one: Axes,
    lines: Mapping[str, Mapping[float, float]],
    *,
    limit: tuple[float, str] | None = None,
    dashed: Mapping[str, Mapping[float, float]] | None = None,
    edges: Mapping[str, float] | None = None,
    points: bool = True,
) -> None:
    """{name: {x: y}} as lines, each name beside the end of its line. Set scales first.

    limit: a value, and what it is · dashed: formulas, named alike · edges: {name of a line: x}, a
    dashed line upright in its colour · points: mark each value, where there are few
    """
    ends = []
    styles = [(BLUE, "-"), *STYLES]
    mark = {"marker": "o", "markersize": 5} if points else {}
    for place, (name, line) in enumerate(lines.items()):
        color, style = styles[place % len(styles)]
        one.plot(list(line), list(line.values()), style, color=color, **mark)
        ends.append((*list(line.items())[-1], name, color))
        if edges and name in edges:
            one.axvline(edges[name], **LIMIT | {"color": color})
    for name, line in (dashed or {}).items():
        one.plot(list(line), list(line.values()), **LIMIT)
        ends.append((*list(line.items())[-1], name, "black"))
    if limit:
        limit_line(one, *limit)
    label_ends(one, ends)


def draw_history(
    one: Axes, histories: Mapping[str, Sequence[tuple[float, int]]], unit: str = "MiB kept"
) -> None:
    """{name: (seconds, bytes) at each change} as stairs, as an ``ActivationMeter`` records them."""
    styles = [(BLUE, "-"), *STYLES]
    for (name, history), (color, style) in zip(histories.items(), cycle(styles), strict=False):
        times, held = zip((0.0, 0), *history, strict=True)
        one.step(
            [1e3 * seconds for seconds in times],
            [size / 2**20 for size in held],
            style,
            where="post",
            color=color,
            label=name,
        )
    one.set(xlabel="milliseconds", ylabel=unit, ylim=(0, None))
    one.legend(frameon=False, fontsize=SMALL + 1)


def draw_roofline(
    one: Axes, limits: Roofline, points: Mapping[str, Mapping[int, tuple[float, float]]]
) -> None:
    """Operations below the roof of a machine: {name: {batch size: (FLOP per byte, FLOP/s)}}, a line
    for each, with its batch sizes beside the marks.
    """
    across = np.geomspace(10**-1.5, 10**2.5, 100)
    for (size, speed), style in zip((limits.bandwidth[0], limits.bandwidth[-1]), ":-", strict=True):
        roof = np.minimum(across * speed, limits.flops_per_second) / 1e9
        label = f"roof, moving {size / 2**20:g} MiB"
        one.plot(across, roof, **LIMIT | {"linestyle": style}, label=label)
    styles = zip(cycle(STYLES), cycle("osD^v"), cycle((1, -1)))
    for (name, line), ((color, _), mark, side) in zip(points.items(), styles, strict=False):
        marks = [(intensity, speed / 1e9) for intensity, speed in line.values()]
        one.plot(*zip(*marks, strict=True), f"{mark}-", color=color, linewidth=1, label=name)
        place = {"xytext": (5 * side, -3), "ha": "left" if side > 0 else "right"}
        for n, mark_at in zip(line, marks, strict=True):
            one.annotate(
                f"{n}", mark_at, **place, textcoords="offset points", fontsize=SMALL, color=color
            )
    one.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="GFLOP/s")
    one.legend(frameon=False, fontsize=SMALL, loc="lower right")


def draw_histograms(
    one: Axes, values: Mapping[str, Sequence[float]], ends: tuple[float, float], bins: int = 60
) -> None:
    """{name: values above zero} as outlines on one logarithmic axis, from faint (the first) to dark
    (the last).

    ends: of the axis; values beyond them are left out
    """
    edges = np.geomspace(*ends, bins + 1)
    for place, (name, found) in enumerate(values.items(), 1):
        shade = (1 + place) / (1 + len(values))
        one.hist(found, edges, histtype="step", color=BLUE, alpha=shade, linewidth=1.3, label=name)
    one.set(xscale="log", xlim=ends, yticks=[], ylabel="how often")


def draw_guess(one: Axes, guesses: Mapping[float, float], label: str = "your prediction") -> None:
    """{x: what the reader predicted there} as stars."""
    one.plot(
        list(guesses),
        list(guesses.values()),
        "*",
        color=ORANGE,
        markersize=13,
        label=label,
        zorder=5,
    )


def draw_bars(
    one: Axes,
    values: Mapping[str, float],
    *,
    unit: str = "",
    limit: tuple[float, str] | None = None,
) -> None:
    """{case: value} as bars, one below the other, each with its value."""
    bars = one.barh(list(values), list(values.values()), color=BLUE, height=0.6)
    texts = [f"{number(float(f'{value:.3g}'))} {unit}".strip() for value in values.values()]
    one.bar_label(bars, texts, padding=4, bbox=HALO)
    high = max([*values.values(), *([limit[0]] if limit else [])])
    one.set(xlim=(0, 1.2 * high), ylim=(len(values) - 0.5, -0.5))
    if limit:
        one.axvline(limit[0], **LIMIT, zorder=0)
        one.annotate(
            limit[1],
            (limit[0], 1),
            xycoords=one.get_xaxis_transform(),
            xytext=(3, 2),
            textcoords="offset points",
            fontsize=SMALL,
        )


@in_our_style
def draw_grid(
    frames: Mapping[str, Sequence[Sequence[float]]],
    *,
    arrived: Mapping[str, Iterable[tuple[int, int]]] | None = None,
    across: str = "chunk",
    up: str = "rank",
    columns: str | Sequence[str] = "",
) -> Picture:
    """What each rank holds, turn by turn: {title: values [rank][chunk]}, a grid for each, darker
    for more.

    arrived: title → the (rank, chunk) cells that were just received, framed · columns: a name for
    each chunk
    """
    picture, row = axes(max(2.2, 2.1 * len(frames)), 2.3, columns=len(frames))
    most = max(value for frame in frames.values() for line in frame for value in line) or 1
    for one, (title, frame) in zip(row, frames.items(), strict=True):
        one.grid(False)
        one.pcolormesh(frame, cmap="Blues", vmin=0, vmax=1.7 * most, edgecolors="white")
        for rank, line in enumerate(frame):
            for place, value in enumerate(line):
                one.text(place + 0.5, rank + 0.5, number(value), ha="center", va="center")
        for rank, place in (arrived or {}).get(title, ()):
            one.add_patch(_frame(place, rank))
        names = columns or range(len(frame[0]))
        one.set_xticks([place + 0.5 for place in range(len(frame[0]))], list(map(str, names)))
        one.set_yticks(
            [rank + 0.5 for rank in range(len(frame))], list(map(str, range(len(frame))))
        )
        one.tick_params(length=0, labelleft=one is row[0])
        one.spines[:].set_visible(False)
        one.set_ylim(len(frame), 0)
        one.set_title(title, fontsize=10)
        one.set_xlabel(across)
    row[0].set_ylabel(up)
    return picture


def _frame(column: int, row: int) -> Patch:
    return Rectangle(
        (column + 0.05, row + 0.05), 0.9, 0.9, fill=False, edgecolor=ORANGE, linewidth=2.2
    )


def draw_images(
    one: Axes, rows: Mapping[str, Sequence[np.ndarray]], *, line_below: str = ""
) -> None:
    """{name: grey pictures [height, width] in 0…1}, a row for each name, ink on white.

    line_below: the name of a row to underline, where originals stand above what was made of them
    """
    wall = np.concatenate([np.concatenate(list(pictures), 1) for pictures in rows.values()], 0)
    height = wall.shape[0] / len(rows)
    one.imshow(wall, cmap="gray_r", vmin=0, vmax=1)
    one.set_yticks([height * (place + 0.5) for place in range(len(rows))], list(rows))
    one.set_xticks([])
    one.grid(False)
    one.tick_params(length=0)
    one.spines[:].set_visible(False)
    if line_below:
        below = height * (list(rows).index(line_below) + 1) - 0.5
        one.axhline(below, color=ORANGE, linewidth=2)


@in_our_style
def draw_timelines(
    spans: Mapping[str, Sequence[Span]],
    *,
    label: str = "milliseconds since the update began",
    width: float = 9.0,
) -> Picture:
    """{title: spans}, one timeline below the other, all to one scale."""
    lanes = [1 + max((span.rank for span in taken), default=0) for taken in spans.values()]
    heights = [0.55 + 0.38 * n for n in lanes]
    picture = Picture((width, 0.7 + sum(heights)), dpi=100, layout="constrained")
    rows = picture.subplots(len(spans), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    seen: set[str] = set()
    for one, (title, taken) in zip(rows, spans.items(), strict=True):
        tidy(one)
        kinds = {span.kind for span in taken}
        draw_spans(one, taken, legend=not kinds <= seen)
        seen |= kinds
        one.set_title(title, loc="right", fontsize=10)
    rows[0].set_xlim(0, 1e3 * max(span.end for taken in spans.values() for span in taken))
    rows[-1].set_xlabel(label)
    return picture
