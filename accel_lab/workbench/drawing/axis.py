"""Axes: where values stand, which ticks are marked, and how lines are labelled; the same in live
charts and still pictures.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, isfinite, log10
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from accel_lab.workbench.knobs import Dial
from accel_lab.workbench.look import LIMIT, in_short, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_TICKS = 8


class Ends(NamedTuple):
    """Where an axis begins and ends, and its ticks."""

    low: float
    high: float
    ticks: list[float]


def round_ends(low: float, high: float, whole: bool = False, most: int = 6) -> Ends:
    """An axis through zero that holds low to high and ends at round numbers, with at most ``most``
    steps between its ticks; ``whole``: no ticks between whole numbers.
    """
    low, high = min(0.0, low), max(0.0, high)
    high = high if high > low else 1.0
    step = _round_step(high - low, whole, most)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    last = max(last, first + 1)
    ticks = [place * step for place in range(first, last + 1)]
    return Ends(ticks[0], ticks[-1], ticks)


def _round_step(span: float, whole: bool = False, most: int = 6) -> float:
    """The smallest of 1, 2, 2.5, 5 and their tenfolds that takes at most ``most`` steps."""
    decade = 10.0 ** floor(log10(span / most))
    steps = [nice * decade for nice in (1, 2, 2.5, 5, 10, 20)]
    if whole:
        steps = [step for step in steps if step >= 1 and step == round(step)] or [1.0]
    return next(step for step in steps if ceil(span / step - 1e-9) <= most)


def decades(low: float, high: float, most: int = 6) -> list[float]:
    """Powers of ten from low to high, thinned to about ``most``."""
    first, last = ceil(log10(low) - 1e-9), floor(log10(high) + 1e-9)
    return [10.0**i for i in range(first, last + 1, max(1, ceil((last - first) / most)))]


def log_ends(values: Iterable[float]) -> tuple[float, float]:
    """The whole decades that hold all values above zero; (0.1, 10) without any."""
    there = [value for value in values if value > 0 and isfinite(value)]
    if not there:
        return 0.1, 10.0
    low, high = 10.0 ** floor(log10(min(there))), 10.0 ** ceil(log10(max(there)))
    return low, high if high > low else 10 * low


@dataclass(frozen=True)
class KnobAxis:
    """An axis for a knob: its whole range, logarithmic where the knob is, whole ticks for whole
    numbers, a place for each choice. ``low`` is None for a knob without bounds.
    """

    label: str
    choices: tuple[Any, ...] = ()
    log: bool = False
    low: float | None = None
    high: float | None = None
    ticks: dict[float, str] = field(default_factory=dict)

    @classmethod
    def of(cls, dial: Dial) -> KnobAxis:
        label = dial.axis_label
        if dial.choices or dial.type is bool:
            choices = tuple(dial.values())
            names = [
                ("off", "on")[value] if isinstance(value, bool) else value for value in choices
            ]
            ticks = {float(place): str(name) for place, name in enumerate(names)}
            return cls(label, choices, low=-0.5, high=len(choices) - 0.5, ticks=ticks)
        if dial.low is None or dial.high is None or (dial.log and dial.low <= 0):
            return cls(label)
        low, high, whole = float(dial.low), float(dial.high), dial.type is int
        if dial.log:
            pad, ticks = (high / low) ** 0.04, _ratio_ticks(low, high, whole)
            return cls(label, (), True, low / pad, high * pad, {t: number(t) for t in ticks})
        step = _round_step(high - low, whole, MOST_TICKS - 1)
        first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
        ticks = [place * step for place in range(first, last + 1)]
        if whole and low not in ticks and low + step / 2 <= ticks[0]:
            ticks = [low, *ticks]
        pad = 0.04 * (high - low)
        return cls(label, (), False, low - pad, high + pad, {t: number(t) for t in ticks})

    def place(self, value: Any) -> float:
        return float(self.choices.index(value)) if self.choices else float(value)


def _ratio_ticks(low: float, high: float, whole: bool) -> list[float]:
    if whole:
        powers = [2.0**i for i in range(64) if low <= 2**i <= high]
        return powers[:: ceil(len(powers) / MOST_TICKS)]
    if high / low >= 100:
        return decades(low, high)
    step = [
        10.0**i * nice for i in range(floor(log10(low)), ceil(log10(high))) for nice in (1, 2, 5)
    ]
    return [tick for tick in step if low <= tick * 1.0001 and tick <= high * 1.0001]


# ---- still pictures ----

HALO = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
SMALL = 8
LEGEND = {"frameon": False, "fontsize": SMALL, "handlelength": 1.0, "columnspacing": 1.2}


def knob_across(axes: Axes, across: KnobAxis, up: bool = False) -> None:
    """Make the axis across (or ``up``) that of a knob."""
    one, scale, ends = (
        (axes.yaxis, axes.set_yscale, axes.set_ylim)
        if up
        else (axes.xaxis, axes.set_xscale, axes.set_xlim)
    )
    if across.log:
        scale("log")
    if across.low is not None:
        one.set_ticks(list(across.ticks), list(across.ticks.values()))
        one.minorticks_off()
        ends(across.low, across.high)
    one.set_label_text(across.label)


def upward(
    axes: Axes,
    log: tuple[float, float] | bool,
    ends: tuple[float, float] | None = None,
    vertical: bool = True,
    whole: bool = False,
    room: float = 0.0,
    hold: Sequence[float] = (),
) -> None:
    """Finish the axis up (or across) once all is drawn: logarithmic between ends, or within whole
    decades if True; else linear, from ``ends`` or from zero to a round number. room: a share of the
    values, left free above them · hold: the values to hold, by default all that are drawn
    """
    one = axes.yaxis if vertical else axes.xaxis
    low, high = axes.dataLim.intervaly if vertical else axes.dataLim.intervalx
    least = _least(axes, vertical)
    if hold:
        low, high, least = min(hold), max(hold), max(least, min(hold))
    set_ends = axes.set_ylim if vertical else axes.set_xlim
    if log:
        (axes.set_yscale if vertical else axes.set_xscale)("log")
        low, high = log_ends([least, high]) if log is True else log
        one.set_ticks(decades(low, high))
    elif ends:
        low, high = ends
        one.set_ticks([tick for tick in round_ends(low, high).ticks if low <= tick <= high])
    else:
        there = isfinite(low) and isfinite(high)
        low, high, ticks = (
            round_ends(low, high * (1 + room), whole) if there else round_ends(0, 1, whole)
        )
        one.set_ticks(ticks)
    one.set_major_formatter(lambda value, _: number(value))
    one.minorticks_off()
    set_ends(low, high)


def _least(axes: Axes, vertical: bool) -> float:
    """The least value above zero that is drawn."""
    return float(axes.dataLim.minposy if vertical else axes.dataLim.minposx)


def limit_line(axes: Axes, value: float, text: str) -> None:
    """A dashed line across, labelled where it ends."""
    axes.axhline(value, **LIMIT)
    axes.annotate(
        text,
        (1, value),
        xycoords=axes.get_yaxis_transform(),
        xytext=(-2, 2),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=SMALL,
        bbox=HALO,
    )


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Beside the axes the (x, y, text, colour) of each line's end, moved apart where they would
    touch. Call it when the axes have their scales.
    """
    axes.autoscale_view()  # or the ends stand where they stood before the last line
    texts = [_folded(text) for *_, text, _ in ends]
    to_axes = axes.transData + axes.transAxes.inverted()
    wanted = [float(to_axes.transform((x, y))[1]) for x, y, *_ in ends]
    inches = max(0.5, axes.bbox.height / axes.figure.dpi)
    heights = [0.14 * (text.count("\n") + 1) / inches for text in texts]
    for end, text, place in zip(ends, texts, apart(wanted, heights), strict=True):
        x, y, _, color = end
        axes.annotate(
            text,
            (x, y),
            xytext=(1.03, place),
            textcoords="axes fraction",
            va="center",
            fontsize=SMALL,
            color=color,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "alpha": 0.4},
        )


def label_dots(axes: Axes, dots: Sequence[tuple[float, float, str, str]]) -> None:
    """Beside each (x, y, text, colour) its text, towards the middle, and moved apart where they
    would touch. Call it when the axes have their scales.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    height = max(0.5, axes.bbox.height / axes.figure.dpi)
    texts = [in_short(text, 30) for *_, text, _ in dots]
    heights = [0.14 / height] * len(texts)
    places = [to_axes.transform((x, y)) for x, y, *_ in dots]
    ups = apart([up for _, up in places], heights)
    for (across, _), up, text, (*_, color) in zip(places, ups, texts, dots, strict=True):
        right = across < 0.5
        axes.annotate(
            text,
            (across, up),
            xycoords="axes fraction",
            xytext=(7 if right else -7, 0),
            textcoords="offset points",
            ha="left" if right else "right",
            va="center",
            fontsize=SMALL,
            color=color,
            bbox=HALO,
        )


def clear_place(
    line: Sequence[tuple[float, float]], dots: Sequence[tuple[float, float]], text: str
) -> int | None:
    """Which point of a line has most room for a text on its right, all in shares of the axes."""
    width = 0.022 * len(text)
    inside = [i for i, (x, y) in enumerate(line) if 0 <= x <= 0.99 - width and 0 <= y <= 0.92]

    def room(i: int) -> float:
        x, y = line[i][0] + width / 2, line[i][1] + 0.05
        return min((max(abs(x - u) - width / 2, abs(y - v)) for u, v in dots), default=1.0)

    return max(inside, key=room, default=None)


def label_line(
    axes: Axes, line: tuple[Sequence[float], Sequence[float]], text: str, dots: Sequence
) -> None:
    """Beside a line, where it is farthest from the dots (x, y, …)."""
    to_axes = axes.transData + axes.transAxes.inverted()
    points = [to_axes.transform(point) for point in zip(*line, strict=True) if isfinite(point[1])]
    best = clear_place(points, [to_axes.transform(dot[:2]) for dot in dots], text)
    if best is None or not text:
        return
    axes.annotate(
        text,
        points[best],
        xycoords="axes fraction",
        xytext=(6, 4),
        textcoords="offset points",
        fontsize=SMALL,
        bbox=HALO,
    )


def _folded(text: str) -> str:
    return textwrap.fill(text, 17, max_lines=3, placeholder=" …")


def apart(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Places between 0 and 1 as near as may be to those wanted, so far apart that no two touch."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    places = [min(1.0, max(0.0, place)) for place in wanted]
    floor_ = -1.0
    for i in order:
        places[i] = max(places[i], floor_ + heights[i] / 2)
        floor_ = places[i] + heights[i] / 2
    ceiling = max(1.0 + heights[order[-1]] / 2, 0.0) if order else 1.0
    for i in reversed(order):
        places[i] = min(places[i], ceiling - heights[i] / 2)
        ceiling = places[i] - heights[i] / 2
    return places


def running_median(values: np.ndarray, width: int = 9) -> np.ndarray:
    """The median of each value and its neighbours, ``width`` in all, fewer at the ends."""
    half = width // 2
    if len(values) <= width:
        edges = range(len(values))
        inside = values[:0]
    else:
        edges = [*range(half), *range(len(values) - half, len(values))]
        inside = np.median(np.lib.stride_tricks.sliding_window_view(values, width), axis=1)
    ends = [np.median(values[max(0, i - half) : i + half + 1]) for i in edges]
    return np.concatenate([ends[:half], inside, ends[half:]]) if len(inside) else np.array(ends)
