"""What a panel shows and remembers, as plain data: the live panel and the still picture both draw from this."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from accel_lab.workbench.knobs import Knobs
from accel_lab.workbench.step import Span, Step

SHORTEST_OVERLAP = 50e-6  # seconds: below, two spans only touch


@dataclass(frozen=True)
class Curve:
    """A metric over the seconds of a run (or over its updates). ``limit``: a value to draw as a line, and what it is."""

    metric: str
    label: str  # with its unit
    scale: float = 1.0  # from the metric's unit to the label's
    over: str = "seconds"
    log: tuple[float, float] | None = None  # ends of a logarithmic axis; without, a linear one from 0
    limit: tuple[float, str] | None = None


@dataclass(frozen=True)
class Sweep:
    """One dot a run: a knob across, a metric up; with ``predicted(knobs)`` drawn as a curve through the knob's whole range."""

    knob: str
    metric: str
    label: str
    scale: float = 1.0
    predicted: Callable[[Knobs], float] | None = None
    formula: str = ""
    log: tuple[float, float] | None = None
    log_x: tuple[float, float] | None = None  # the same for the knob, marked at powers of two

    def prediction(self, knobs: Knobs) -> tuple[list[float], list[float]]:
        """(knob values, predicted metric in the label's unit); settings that the knobs refuse are left out."""
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
    """The kinds of some spans in the order in which they begin, and whether each goes on beside another on the same rank.

    Messages that travel while backward works overlap it: such kinds are drawn in a lane of their own, below.
    """
    kinds: dict[str, bool] = {}
    for kind in dict.fromkeys(span.kind for span in sorted(spans, key=lambda span: span.start)):
        ahead = [span for span in spans if kinds.get(span.kind) is False]
        own = [span for span in spans if span.kind == kind]
        kinds[kind] = any(_overlap(one, other) for one in own for other in ahead)
    return kinds


def _overlap(one: Span, other: Span) -> bool:
    return one.rank == other.rank and min(one.end, other.end) - max(one.start, other.start) > SHORTEST_OVERLAP


@dataclass(frozen=True)
class Badge:
    """A verdict on every window of a run: ``equal`` while the metric stays at or below ``tolerance``, else ``differs``."""

    metric: str
    tolerance: float
    equal: str
    differs: str


Chart = Curve | Sweep | Timeline


@dataclass
class Record:
    """What is kept of one run: windows of its steps, thinned so that an hour takes no more room than a minute."""

    knobs: Knobs
    label: str
    seconds: list[float] = field(default_factory=list)  # at the end of each window, since the run began
    updates: list[float] = field(default_factory=list)  # done by then
    series: dict[str, list[float]] = field(default_factory=dict)  # metric → its mean in each window
    spans: tuple[Span, ...] = ()  # of the latest update that had any
    samples: int = 0
    _window: list[Step] = field(default_factory=list)
    _steps_of_window: list[int] = field(default_factory=list)

    MOST_WINDOWS = 400

    def add(self, step: Step) -> None:
        self._window.append(step)
        self.samples += step.samples
        if step.spans:
            self.spans = step.spans

    def close_window(self, seconds: float) -> None:
        """Turn the steps since the last call into one point of every curve; without steps, nothing."""
        if not self._window:
            return
        steps, self._window = self._window, []
        self.seconds.append(seconds)
        self.updates.append(steps[-1].index + 1.0)
        self._steps_of_window.append(len(steps))
        for name, value in _means(steps).items():
            self.series.setdefault(name, []).append(value)
        if len(self.seconds) > self.MOST_WINDOWS:
            self._halve()

    def _halve(self) -> None:
        """Join windows two by two (the latest stays as it is), each series by its mean, weighted by steps."""
        last = len(self.seconds) - len(self.seconds) % 2
        weights = self._steps_of_window
        for name, values in self.series.items():
            pairs = [(i, weights[i] + weights[i + 1]) for i in range(0, last, 2)]
            self.series[name] = [(values[i] * weights[i] + values[i + 1] * weights[i + 1]) / both for i, both in pairs] + values[
                last:
            ]
        self._steps_of_window = [weights[i] + weights[i + 1] for i in range(0, last, 2)] + weights[last:]
        self.seconds = self.seconds[1:last:2] + self.seconds[last:]
        self.updates = self.updates[1:last:2] + self.updates[last:]

    def latest(self, metric: str) -> float | None:
        values = self.series.get(metric)
        return values[-1] if values else None

    def typical(self, metric: str) -> float | None:
        """The median over the run's windows, the first of which still warms up."""
        values = self.series.get(metric, [])
        return median(values[1:] or values) if values else None


def _means(steps: list[Step]) -> Mapping[str, float]:
    means = {"throughput": sum(step.samples for step in steps) / sum(step.seconds for step in steps)}
    for name in steps[-1].metrics:
        values = [step.metrics[name] for step in steps if name in step.metrics]
        means[name] = sum(values) / len(values)
    return means
