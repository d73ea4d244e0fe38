"""HeatMap: what two knobs do together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from accel_lab.workbench.drawing.axis import SMALL
from accel_lab.workbench.drawing.chart import Runs, dial_of
from accel_lab.workbench.drawing.record import Record, Summary
from accel_lab.workbench.knobs import Dial
from accel_lab.workbench.look import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CELLS = 9  # in a row or column: a knob with more values shows those that were run
COLORS = ("#f3f7fb", "#0B4A7D")  # the least and the most


class Cells(NamedTuple):
    """values [up, across], NaN where nothing was run, and what stands along the sides."""

    across: list[Any]
    up: list[Any]
    values: np.ndarray


@dataclass(frozen=True)
class HeatMap:
    """One cell a run: a knob across, a knob up, and a metric as the colour and in figures. Every
    run that is kept fills a cell, the latest one last.

    label: of the metric, with its unit · scale: from the metric's unit to the label's · summary:
    how a run becomes a cell
    """

    across: str
    up: str
    metric: str
    label: str
    scale: float = 1.0
    summary: Summary = "median"

    @property
    def title(self) -> str:
        return self.label

    def cells(self, runs: Runs) -> Cells:
        found: dict[tuple[Any, Any], float] = {}
        for styled in runs.styled():
            if (value := self.value(styled.record)) is not None:
                found[self.at(styled.record)] = value
        across, up = (
            _along(dial_of(runs.knobs, name), [at[place] for at in found])
            for place, name in enumerate((self.across, self.up))
        )
        values = np.full((len(up), len(across)), np.nan)
        for (x, y), value in found.items():
            values[up.index(y), across.index(x)] = value
        return Cells(across, up, values)

    def at(self, record: Record) -> tuple[Any, Any]:
        return getattr(record.knobs, self.across), getattr(record.knobs, self.up)

    def value(self, record: Record) -> float | None:
        value = record.typical(self.metric, self.summary)
        return None if value is None else value * self.scale

    def draw(self, axes: Axes, runs: Runs) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        cells = self.cells(runs)
        axes.grid(False)
        axes.set(xlabel=self.across.replace("_", " "), ylabel=self.up.replace("_", " "))
        if not cells.values.size:
            return
        colors = LinearSegmentedColormap.from_list("cells", COLORS).with_extremes(bad="#ffffff00")
        known = cells.values[np.isfinite(cells.values)]
        low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
        axes.pcolormesh(
            cells.values, cmap=colors, vmin=low, vmax=high, edgecolors="#dddddd", linewidth=0.8
        )
        for (row, column), value in np.ndenumerate(cells.values):
            if np.isfinite(value):
                ink = "white" if value - low > 0.5 * (high - low) > 0 else "black"
                text = short(value)
                at = (column + 0.5, row + 0.5)
                axes.text(*at, text, ha="center", va="center", fontsize=SMALL, color=ink)
        axes.set_xticks(np.arange(len(cells.across)) + 0.5, [said(v) for v in cells.across])
        axes.set_yticks(np.arange(len(cells.up)) + 0.5, [said(v) for v in cells.up])
        axes.tick_params(length=0)


def short(value: float) -> str:
    """A number that fits into a cell: 0.25, 980, 12.1k, 3.4M."""
    for from_, size, sign in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= from_:
            return f"{value / size:.3g}{sign}"
    return number(float(f"{value:.3g}"))


def said(value: Any) -> str:
    """A knob's value beside its row or column."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return value if isinstance(value, str) else number(float(f"{value:.3g}"))


def _along(dial: Dial, found: list[Any]) -> list[Any]:
    """All values of a knob that has few; else those found, in order."""
    if dial.choices or dial.type is bool:
        return list(dial.values())
    few = []
    if dial.type is int and dial.low is not None and dial.high is not None:
        if dial.log and dial.low > 0:
            few = [int(dial.low) << i for i in range(64) if int(dial.low) << i <= dial.high]
        elif dial.high - dial.low < MOST_CELLS:
            few = dial.values()
    return sorted({*found, *(few if len(few) <= MOST_CELLS else [])})
