"""Budget: what fills the memory, the time, the bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from accel_lab.workbench.drawing.axis import LEGEND, SMALL, round_ends, upward
from accel_lab.workbench.drawing.chart import Runs
from accel_lab.workbench.drawing.record import Record, Summary
from accel_lab.workbench.knobs import Knobs
from accel_lab.workbench.look import LIMIT, colors_of, ink_on, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_BARS = 5


class Bar(NamedTuple):
    """A run: its parts as (name, start, end), and its predicted total; in the label's unit."""

    label: str
    parts: list[tuple[str, float, float]]
    predicted: float | None

    @property
    def end(self) -> float:
        return max((end for *_, end in self.parts), default=0.0)


@dataclass(frozen=True)
class Budget:
    """Stacked bars, one a run: what each of some metrics adds to the whole.

    parts: metric → name, in the order in which they are stacked · label: of the whole, with its
    unit · scale: from the metrics' unit to the label's · predicted: the whole by formula, a mark at
    each bar · limit: a value to draw as a line, and what it is · summary: how a run becomes a bar
    """

    parts: Mapping[str, str]
    label: str
    scale: float = 1.0
    predicted: Callable[[Knobs], float] | None = None
    formula: str = "predicted"
    limit: tuple[float, str] | None = None
    summary: Summary = "median"

    @property
    def title(self) -> str:
        return self.label

    @property
    def colors(self) -> dict[str, str]:
        return colors_of(self.parts.values())

    def bars(self, runs: Runs) -> list[Bar]:
        """The latest runs, that at hand first."""
        found = [self.bar(styled.record) for styled in reversed(runs.styled())]
        return [bar for bar in found if bar.parts][:MOST_BARS]

    def bar(self, record: Record) -> Bar:
        """A part that was never measured is left out."""
        sizes = {
            name: value * self.scale
            for metric, name in self.parts.items()
            if (value := record.typical(metric, self.summary)) is not None
        }
        ends = list(accumulate(sizes.values()))
        parts = [
            (name, end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)
        ]
        predicted = self.predicted(record.knobs) * self.scale if self.predicted else None
        return Bar(record.label, parts, predicted)

    def reach(self, bars: list[Bar]) -> float:
        """What the axis must hold."""
        marks = [bar.predicted for bar in bars if bar.predicted is not None]
        limit = [self.limit[0]] if self.limit else []
        return max([bar.end for bar in bars] + marks + limit, default=0.0)

    def inside(self, name: str, start: float, end: float, width: float) -> str:
        """What is written inside a part: its name and size, its size, or nothing, by the room
        there is; ``width``: of the whole axis, in letters.
        """
        room = (end - start) / max(width, 1e-12)
        size = number(float(f"{end - start:.3g}"))
        return next((text for text in (f"{name} {size}", size) if len(text) + 1 < room), "")

    def draw(self, axes: Axes, runs: Runs) -> None:
        from matplotlib.patches import Patch

        bars = self.bars(runs)
        reach = round_ends(0.0, self.reach(bars)).high
        for row, bar in enumerate(bars):
            axes.text(0, row - 0.15, bar.label, fontsize=SMALL, va="bottom")
            for name, start, end in bar.parts:
                color = self.colors[name]
                axes.barh(row + 0.12, end - start, 0.46, start, color=color, edgecolor="white")
                text = self.inside(name, start, end, reach / 52)
                axes.text(
                    (start + end) / 2,
                    row + 0.12,
                    text,
                    color=ink_on(color),
                    fontsize=SMALL,
                    ha="center",
                    va="center",
                )
            if bar.predicted is not None:
                mark = {"color": "black", "linewidth": 2}
                axes.plot([bar.predicted] * 2, [row - 0.16, row + 0.4], **mark)
        if self.limit:
            axes.axvline(self.limit[0], **LIMIT)
            at = {"fontsize": SMALL, "ha": "right", "va": "center"}
            axes.text(self.limit[0] - 0.01 * reach, -0.85, self.limit[1], **at)
        axes.set_yticks([])
        axes.set_ylim(max(len(bars), 2) - 0.5, -1.2 if self.limit else -0.7)
        axes.grid(False, axis="y")
        upward(axes, False, (0, 1.02 * reach), vertical=False)
        shown = [
            name for name in self.parts.values() if any(name == p[0] for b in bars for p in b.parts)
        ]
        handles = [Patch(color=self.colors[name], label=name) for name in shown]
        if any(bar.predicted is not None for bar in bars):
            handles += axes.plot([], [], "|", color="black", markeredgewidth=2, label=self.formula)
        if handles:
            axes.legend(
                handles=handles, ncols=3, loc="upper left", bbox_to_anchor=(0, -0.12), **LEGEND
            )
