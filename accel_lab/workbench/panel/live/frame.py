"""What all live charts are made of: a titled graph, axes that leave room, tooltips, swatches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from math import inf, isfinite, log10

import bqplot as bq
import ipywidgets as w
import numpy as np

from accel_lab.workbench.drawing.axis import Ends, KnobAxis, decades, log_ends, round_ends
from accel_lab.workbench.look import number

INK = "var(--jp-ui-font-color1, #222)"
DASHES = {"--": "dashed", "-.": "dash_dotted", ":": "dotted", "-": "solid"}
LIMIT = {"colors": [INK], "line_style": "dashed", "stroke_width": 1}
# Two charts a row where there is room for two, and never flat.
PLACE = {"min_width": "320px", "max_width": "760px", "flex": "1 1 380px"}
# Right: half of the last number, which stands at the very end of an axis.
MARGIN = {"top": 14, "bottom": 44, "left": 58, "right": 28}


def floats(values: Sequence[float], scale: float = 1.0) -> np.ndarray:
    return np.asarray(values, dtype="float32") * scale


class Frame:
    """A graph with its title above it; the titles and ticks need no room at its side."""

    def __init__(
        self,
        title: str,
        axes: list[bq.Axis],
        *,
        height: str = "250px",
        place: Mapping[str, str] = PLACE,
        above: Sequence[w.Widget] = (),
        margin: Mapping[str, int] = MARGIN,
    ):
        self.graph = bq.Figure(
            axes=axes,
            fig_margin=dict(margin),
            layout={"height": height, "width": "100%"},
            animation_duration=0,
        )
        heading = w.HTML(f'<span class="accel-title">{escape(title)}</span>')
        self.view = w.VBox([heading, *above, self.graph], layout=dict(place))

    def show(self, marks: Iterable[bq.Mark]) -> None:
        """Draw just these, in this order; nothing is sent where they are there already."""
        marks = list(marks)
        if marks != self.graph.marks:
            self.graph.marks = marks


class FittedAxis:
    """An axis that follows what it shows, in leaps: an axis that follows every point would be drawn
    anew with each, and drawing takes time from the training.

    log: ends, or True for whole decades · ends: fixed ones of a linear axis; else from zero to a
    round number · whole: no ticks between whole numbers · filled: the least share of a linear axis
    that its values take before it becomes shorter
    """

    def __init__(
        self,
        label: str = "",
        *,
        up: bool = False,
        log: tuple[float, float] | bool = False,
        ends: tuple[float, float] | None = None,
        whole: bool = False,
        filled: float = 1 / 3,
    ):
        self._log, self._fixed, self._whole, self._up = log, ends, whole, up
        self._filled = filled
        self.scale = bq.LogScale() if log else bq.LinearScale()
        self.axis = _axis(self.scale, label, up)
        self._low = self._high = 0.0
        if log:
            low, high = log_ends([]) if log is True else log
            self._set(Ends(low, high, decades(low, high)))
        elif ends:
            ticks = [tick for tick in round_ends(*ends).ticks if ends[0] <= tick <= ends[1]]
            self._set(Ends(*ends, ticks))
        else:
            self._set(round_ends(0, 1, whole))

    def fit(self, values: Iterable[float]) -> None:
        """Hold these, and end not far beyond them."""
        there = [float(value) for value in values if isfinite(value)]
        if not there or self._fixed or isinstance(self._log, tuple):
            return
        if self._log:
            low, high = log_ends(there)
            if low < self._low or high > self._high or high / low < self._high / self._low / 100:
                self._set(Ends(low, high, decades(low, high)))
            return
        low, high = min(0.0, *there), max(0.0, *there)
        fits = self._low <= low and high <= self._high
        if fits and (high - low) > self._filled * (self._high - self._low):
            return
        if high > low:
            digits = len(number(round_ends(low, high, self._whole).high))
            most = 6 if self._up or digits <= 4 else 4 if digits <= 7 else 3
            self._set(round_ends(low, high, self._whole, most))

    def _set(self, ends: Ends) -> None:
        self._low, self._high = ends.low, ends.high
        with self.scale.hold_sync():
            self.scale.min, self.scale.max = ends.low, ends.high
        most = 6 if self._up else 7  # "1,000,000" has no room at the side
        mark(self.axis, {tick: number(tick, most) for tick in ends.ticks})


def knob_axis(across: KnobAxis, up: bool = False) -> bq.Axis:
    """The axis of a knob, over its whole range."""
    scale = bq.LogScale() if across.log else bq.LinearScale()
    axis = _axis(scale, across.label, up)
    if across.low is not None:
        scale.min, scale.max = across.low, across.high
        mark(axis, across.ticks)
    return axis


def _axis(scale: bq.Scale, label: str, up: bool) -> bq.Axis:
    side = {"orientation": "vertical", "label_offset": "3.6em"} if up else {"label_offset": "2.6em"}
    lines = "solid" if up else "none"
    return bq.Axis(scale=scale, label=label, grid_lines=lines, tick_format="~g", **side)


def mark(axis: bq.Axis, ticks: Mapping[float, str]) -> None:
    """Ticks at these values, with these texts: the texts first, for bqplot draws new ticks a moment
    later and with the texts that were there when it heard of them.
    """
    axis.tick_labels = {_as_in_javascript(value): text for value, text in ticks.items()}
    axis.tick_values = np.array(list(ticks), dtype=float)


def _as_in_javascript(value: float) -> str:
    """The number as the browser writes it, which is how it looks its text up."""
    value = float(value)
    if value == int(value) and abs(value) < 1e21:
        return str(int(value))
    if abs(value) >= 1e-6:
        return np.format_float_positional(value, trim="-")
    return np.format_float_scientific(value, trim="-", exp_digits=1)


def tooltip(**labels: str) -> bq.Tooltip:
    """x, y, name … → what to call them."""
    formats = ["" if name == "name" else ",.4~r" for name in labels]
    return bq.Tooltip(fields=list(labels), labels=list(labels.values()), formats=formats)


def write(scales: Mapping[str, bq.Scale], align: str = "end", **more: object) -> bq.Label:
    """Text beside a place in the graph, none at first."""
    look = {"colors": [INK], "default_size": 11, "font_weight": "normal", "y_offset": -7, **more}
    return bq.Label(x=[], y=[], text=[], scales=dict(scales), align=align, **look)


def say_at(label: bq.Label, at: Sequence[tuple[float, float, str]]) -> None:
    with label.hold_sync():
        label.x, label.y = floats([x for x, _, _ in at]), floats([y for _, y, _ in at])
        label.text = [text for *_, text in at]


def share(scale: bq.Scale, value: float) -> float:
    """Where a value stands between the ends of a scale that has some, 0 to 1."""
    low, high = scale.min, scale.max
    if isinstance(scale, bq.LogScale):
        low, high, value = log10(low), log10(high), log10(value) if value > 0 else -inf
    return (value - low) / (high - low)


def value_at(scale: bq.Scale, place: float) -> float:
    """The value that stands there: the inverse of ``share``."""
    low, high = scale.min, scale.max
    if isinstance(scale, bq.LogScale):
        return low ** (1 - place) * high**place
    return low + (high - low) * place


def swatches(colors: Mapping[str, str]) -> str:
    """Names beside squares of their colour, as HTML."""
    return "".join(
        '<span class="accel-entry"><svg width="12" height="12" aria-hidden="true"><rect '
        f'width="12" height="12" fill="{color}"/></svg> {escape(name)}</span>'
        for name, color in colors.items()
    )
