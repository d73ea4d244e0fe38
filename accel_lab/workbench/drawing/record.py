"""Record: what is kept of one run, as windows of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from accel_lab.workbench.knobs import Knobs
from accel_lab.workbench.step import Span, Step


@dataclass
class Record:
    """What is kept of one run: windows of its steps, thinned so that an hour takes no more room
    than a minute.
    """

    knobs: Knobs
    label: str
    seconds: list[float] = field(
        default_factory=list
    )  # at the end of each window, since the run began
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
        """Join windows two by two (the latest stays as it is), each series by its mean, weighted by
        steps.
        """
        last = len(self.seconds) - len(self.seconds) % 2
        weights = self._steps_of_window
        for name, values in self.series.items():
            pairs = [(i, weights[i] + weights[i + 1]) for i in range(0, last, 2)]
            self.series[name] = [
                (values[i] * weights[i] + values[i + 1] * weights[i + 1]) / both
                for i, both in pairs
            ] + values[last:]
        self._steps_of_window = [weights[i] + weights[i + 1] for i in range(0, last, 2)] + weights[
            last:
        ]
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
    means = {
        "throughput": sum(step.samples for step in steps) / sum(step.seconds for step in steps)
    }
    for name in steps[-1].metrics:
        values = [step.metrics[name] for step in steps if name in step.metrics]
        means[name] = sum(values) / len(values)
    return means
