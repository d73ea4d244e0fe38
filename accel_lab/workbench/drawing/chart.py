"""What a panel shows and remembers, as plain data: the live panel and the still picture both draw
from this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from accel_lab.workbench.knobs import Knobs
from accel_lab.workbench.step import Span

SHORTEST_OVERLAP = 50e-6  # seconds: below, two spans only touch


@dataclass(frozen=True)
class Curve:
    """A metric over the seconds of a run (or over its updates). ``limit``: a value to draw as a
    line, and what it is.
    """

    metric: str
    label: str  # with its unit
    scale: float = 1.0  # from the metric's unit to the label's
    over: str = "seconds"
    log: tuple[float, float] | None = (
        None  # ends of a logarithmic axis; without, a linear one from 0
    )
    limit: tuple[float, str] | None = None


@dataclass(frozen=True)
class Sweep:
    """One dot a run: a knob across, a metric up; with ``predicted(knobs)`` drawn as a curve through
    the knob's whole range.
    """

    knob: str
    metric: str
    label: str
    scale: float = 1.0
    predicted: Callable[[Knobs], float] | None = None
    formula: str = ""
    log: tuple[float, float] | None = None
    log_x: tuple[float, float] | None = None  # the same for the knob, marked at powers of two

    def prediction(self, knobs: Knobs) -> tuple[list[float], list[float]]:
        """(knob values, predicted metric in the label's unit); settings that the knobs refuse are
        left out.
        """
        dial = next(dial for dial in type(knobs).dials() if dial.name == self.knob)
        xs, ys = [], []
        for value in dial.choices or range(int(dial.low), int(dial.high) + 1):
            try:
                turned = knobs.turned(**{self.knob: value})
            except ValueError:
                continue
            xs.append(float(value))
            ys.append(self.predicted(turned) * self.scale)
        return xs, ys


@dataclass(frozen=True)
class Timeline:
    """When each piece of the latest update ran, a lane for each rank."""

    label: str = "milliseconds since the update began"


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


@dataclass(frozen=True)
class Badge:
    """A verdict on every window of a run: ``equal`` while the metric stays at or below
    ``tolerance``, else ``differs``.
    """

    metric: str
    tolerance: float
    equal: str
    differs: str


Chart = Curve | Sweep | Timeline
