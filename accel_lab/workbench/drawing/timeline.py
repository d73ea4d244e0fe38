"""Timeline: when each piece of an update ran, a lane for each rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from accel_lab.workbench.drawing.axis import LEGEND, SMALL
from accel_lab.workbench.drawing.chart import Runs
from accel_lab.workbench.look import colors_of, ink_on, number
from accel_lab.workbench.step import Span

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHORTEST_OVERLAP = 50e-6  # seconds: below, two spans only touch


@dataclass(frozen=True)
class Timeline:
    """When each piece of a typical update of the latest ones ran, a lane for each rank."""

    label: str = "milliseconds since the update began"

    @property
    def title(self) -> str:
        return "one typical update"

    def draw(self, axes: Axes, runs: Runs) -> None:
        if record := runs.shown:
            draw_spans(axes, record.spans)
        axes.set_xlabel(self.label)
        axes.set_title("", loc="left")  # there the names of the kinds stand


def kinds_of(spans: Sequence[Span]) -> dict[str, bool]:
    """The kinds of some spans in the order in which they begin, and whether each goes on beside
    another on the same rank.

    Messages that travel while backward works overlap it: such kinds are drawn in a lane of their
    own, below.
    """
    kinds: dict[str, bool] = {}
    for kind in dict.fromkeys(span.kind for span in sorted(spans, key=lambda span: span.start)):
        ahead = [span for span in spans if kinds.get(span.kind) is False]
        own = [span for span in spans if span.kind == kind]
        kinds[kind] = any(_overlap(one, other) for one in own for other in ahead)
    return kinds


def _overlap(one: Span, other: Span) -> bool:
    return (
        one.rank == other.rank
        and min(one.end, other.end) - max(one.start, other.start) > SHORTEST_OVERLAP
    )


def draw_spans(
    axes: Axes, spans: Sequence[Span], legend: bool = True, room: float | None = None
) -> None:
    """A bar for each span, a lane for each rank, a colour for each kind, and its number where there
    is room. What goes on beside other work has a thin lane below.

    room: seconds that a number takes; by default 1.6 % of the whole
    """
    kinds = kinds_of(spans)
    colors = colors_of(kinds)
    if room is None:
        room = 0.016 * max((span.end for span in spans), default=0.0)
    for kind, beside in kinds.items():
        bars = [span for span in spans if span.kind == kind]
        drawn = axes.barh(
            [span.rank + (0.3 if beside else 0.0) for span in bars],
            [(span.end - span.start) * 1e3 for span in bars],
            left=[span.start * 1e3 for span in bars],
            height=0.2 if beside else 0.4 if any(kinds.values()) else 0.7,
            color=colors[kind],
            edgecolor="white",
            linewidth=0.5,
            label=kind,
        )
        numbers = [
            span.name.removeprefix(kind).strip() if span.end - span.start > room else ""
            for span in bars
        ]
        if not beside:
            ink = ink_on(colors[kind])
            axes.bar_label(drawn, numbers, label_type="center", color=ink, fontsize=SMALL)
    ranks = sorted({span.rank for span in spans})
    axes.set_yticks(ranks, [f"rank {rank}" for rank in ranks])
    axes.set_ylim(max(ranks, default=0) + 0.9, -0.9)  # rank 0 on top
    axes.xaxis.set_major_formatter(lambda value, _: number(value))
    if legend and kinds:
        axes.legend(ncols=len(kinds), loc="lower left", bbox_to_anchor=(0, 1), **LEGEND)
