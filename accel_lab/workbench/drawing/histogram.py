"""Histogram: how the values of a metric are spread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import ceil, floor, log2
from typing import TYPE_CHECKING

from accel_lab.workbench.drawing.axis import SMALL, upward
from accel_lab.workbench.drawing.chart import MOST_CURVES, Runs
from accel_lab.workbench.drawing.record import BINS_PER_OCTAVE, Record
from accel_lab.workbench.look import GREY, LIMIT, RAISED, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_TICKS = 8


@dataclass(frozen=True)
class Histogram:
    """The spread of a metric above zero over all steps of a run, in bins of equal ratio, in percent
    of the steps.

    A name that ends in ":" stands for a group of metrics instead: ``bin:-14`` is then how much lies
    in the bin that begins at 2⁻¹⁴, for spreads that the technique takes itself. "seconds" is the
    time of a step.

    label: of the values, with their unit · scale: from the metric's unit to the label's · octave:
    bins between a value and its double: 1, 2, 4 or 8 · powers: mark the axis 2⁻¹⁴, not 0.00006 ·
    marks: value in the label's unit → what is there, drawn as lines
    """

    metric: str
    label: str
    scale: float = 1.0
    octave: int = 4
    powers: bool = False
    marks: Mapping[float, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.octave not in (1, 2, 4, BINS_PER_OCTAVE):
            raise ValueError(f"octave: 1, 2, 4 or {BINS_PER_OCTAVE} bins, not {self.octave}")

    @property
    def title(self) -> str:
        return "% of them" if self.metric.endswith(":") else "% of the steps"

    @property
    def bins_per_octave(self) -> int:
        return 1 if self.metric.endswith(":") else self.octave

    def bins(self, record: Record) -> dict[int, float]:
        """Bin k, from 2^(k/octave) on → percent of all values, in order; gaps are filled with 0."""
        if self.metric.endswith(":"):
            names = [name for name in record.series if name.startswith(self.metric)]
            known = {int(name.removeprefix(self.metric)): record.latest(name) for name in names}
            found = {place: value or 0.0 for place, value in known.items()}
        else:
            found, joined = {}, BINS_PER_OCTAVE // self.octave
            for place, count in record.bins.get(self.metric, {}).items():
                if place is not None:
                    found[place // joined] = found.get(place // joined, 0) + count
        total = sum(found.values())
        if not total:
            return {}
        return {
            place: 100 * found.get(place, 0) / total for place in range(min(found), max(found) + 1)
        }

    def ticks(self, low: int, high: int) -> dict[float, str]:
        """Place on the axis → text, at powers of two of the label's unit."""
        per, shift = self.bins_per_octave, log2(self.scale)
        first, last = ceil(low / per + shift), floor(high / per + shift)
        every = next(
            n for n in (1, 2, 4, 8, 16, 32, 64, 128, 512) if (last - first) / n < MOST_TICKS
        )
        powers = [power for power in range(first, last + 1) if power % every == 0]
        texts = {
            power: f"2{str(power).translate(RAISED)}" if self.powers else number(2.0**power)
            for power in powers
        }
        return {(power - shift) * per: text for power, text in texts.items()}

    def place(self, value: float) -> float:
        """Where a value, in the label's unit, stands on the axis."""
        return log2(value / self.scale) * self.bins_per_octave

    def outline(self, bins: Mapping[int, float]) -> tuple[list[float], list[float]]:
        """The bins as the steps of one line."""
        xs = [end for place in bins for end in (float(place), place + 1.0)]
        ys = [percent for percent in bins.values() for _ in range(2)]
        return [xs[0], *xs, xs[-1]], [0.0, *ys, 0.0]

    def reach_of(self, places: Iterable[int]) -> tuple[int, int]:
        """Where the axis begins and ends to hold these bins, and the marks."""
        places = [*places, *(floor(self.place(value)) for value in self.marks)]
        return (min(places) - 1, max(places) + 2) if places else (0, 1)

    def draw(self, axes: Axes, runs: Runs) -> None:
        lines, places = [], []
        for record, color, style, width in runs.styled(MOST_CURVES):
            if not (bins := self.bins(record)):
                continue
            places += bins
            xs, ys = self.outline(bins)
            if record is runs.shown:
                axes.fill_between(xs, ys, color=color, alpha=0.35, linewidth=0)
            (line,) = axes.plot(xs, ys, style, color=color, linewidth=width, label=record.label)
            if color != GREY:
                lines.insert(0, line)
        low, high = self.reach_of(places)
        for value, text in self.marks.items():
            axes.axvline(self.place(value), **LIMIT)
            axes.annotate(
                text,
                (self.place(value), 1),
                xycoords=axes.get_xaxis_transform(),
                xytext=(2, -8),
                textcoords="offset points",
                fontsize=SMALL,
            )
        ticks = self.ticks(low, high)
        axes.set_xlim(low, high)
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.set_xlabel(self.label)
        upward(axes, False)
        if len(lines) > 1:
            axes.legend(handles=lines, frameon=False, fontsize=SMALL)
