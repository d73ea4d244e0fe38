"""Record: one run, summarised as windows of its steps."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from math import isnan, nan
from statistics import fmean, median
from typing import Literal

import numpy as np

from accel_lab.workbench.knobs import Knobs
from accel_lab.workbench.step import Span, Step

# How several steps become one number. The mean suits a loss, a count, a switch that is 0 or 1. The
# mean of ratios favours their outliers, so a ratio or a speed takes the median. An error takes the
# max: one wrong update among a hundred must be seen.
Summary = Literal["mean", "median", "max"]
BINS_PER_OCTAVE = 8
LATEST = 15  # updates, of which the timeline shows the one in the middle


@dataclass
class Record:
    """One run, as windows of its steps, thinned so that an hour takes no more room than a minute.

    A metric may be there at every step, at some, or only later: its series holds NaN for each
    window that lacks it, and all series are as long as ``seconds``. ``throughput`` (samples over
    seconds, of the window as a whole) is there unless the clock was too coarse for it. ``of``,
    ``points``, ``latest`` and ``typical`` read a metric; ``bins`` counts all of its values.
    """

    knobs: Knobs
    label: str
    place: int | None = None  # among the styles of runs that are kept by name
    seconds: list[float] = field(default_factory=list)  # at each window's end, since the start
    updates: list[float] = field(default_factory=list)  # done by then
    series: dict[str, list[float]] = field(default_factory=dict)  # metric → its mean in each window
    medians: dict[str, list[float]] = field(default_factory=dict)
    largest: dict[str, list[float]] = field(default_factory=dict)
    # Metric (and "seconds" of a step) → eighth of an octave → values v with 2^(bin/8) <= v <
    # 2^((bin+1)/8); None counts those that are zero or below.
    bins: dict[str, Counter[int | None]] = field(default_factory=lambda: defaultdict(Counter))
    spans: tuple[Span, ...] = ()  # of the update that took the median time, of the latest ones
    samples: int = 0
    _window: list[Step] = field(default_factory=list)
    _timed: deque[Step] = field(default_factory=lambda: deque(maxlen=LATEST))
    _steps_of_window: list[int] = field(default_factory=list)
    _measured: dict[str, list[int]] = field(default_factory=dict)  # metric → values in each window
    _at: dict[str, list[float]] = field(default_factory=dict)  # … → their updates' mean number

    MOST_WINDOWS = 400

    def add(self, step: Step) -> None:
        self._window.append(step)
        self.samples += step.samples

    def close_window(self, seconds: float) -> None:
        """Turn the steps since the last call into one point of every curve; without steps, do
        nothing.
        """
        if not self._window:
            return
        steps, self._window = self._window, []
        self._timed.extend(step for step in steps if step.spans)
        if timed := sorted(self._timed, key=lambda step: step.seconds):
            self.spans = timed[len(timed) // 2].spans
        before = len(self.seconds)
        self.seconds.append(seconds)
        self.updates.append(steps[-1].index + 1.0)
        self._steps_of_window.append(len(steps))
        measured = _measured(steps)
        middle = fmean(step.index for step in steps) + 1.0
        for name in dict.fromkeys(("throughput", *self.series, *measured)):
            values, at = measured.get(name, []), middle
            if name == "throughput":
                lasted = sum(step.seconds for step in steps)  # 0: a coarse clock saw no time pass
                values = [sum(step.samples for step in steps) / lasted] if lasted else []
            elif values:
                own = (s.index for s in steps if not isnan(s.metrics.get(name, nan)))
                at = fmean(own) + 1.0
            self._append(name, values, before)
            self._at.setdefault(name, [nan] * before).append(at)
        for name, values in {"seconds": [s.seconds for s in steps], **measured}.items():
            _count(self.bins[name], values)
        if len(self.seconds) > self.MOST_WINDOWS:
            self._halve()

    def _append(self, name: str, values: list[float], before: int) -> None:
        for kept, summary in ((self.series, fmean), (self.medians, median), (self.largest, max)):
            kept.setdefault(name, [nan] * before).append(summary(values) if values else nan)
        self._measured.setdefault(name, [0] * before).append(len(values))

    def _halve(self) -> None:
        """Join windows two by two (the latest stays as it is): means and medians weighted by how
        many values they stand for, the larger one of two maxima.
        """
        last = len(self.seconds) - len(self.seconds) % 2
        for name, counts in self._measured.items():
            weights = np.array(counts[:last], float).reshape(-1, 2)
            both = weights.sum(1)
            for kept in (self.series, self.medians, self._at):
                pairs = np.array(kept[name][:last]).reshape(-1, 2)
                sums = np.where(weights > 0, pairs * weights, 0.0).sum(1)
                joined = np.divide(sums, both, out=np.full(len(both), nan), where=both > 0)
                kept[name] = joined.tolist() + kept[name][last:]
            pairs = np.array(self.largest[name][:last]).reshape(-1, 2)
            self.largest[name] = np.fmax(*pairs.T).tolist() + self.largest[name][last:]
            self._measured[name] = [int(n) for n in both] + counts[last:]
        steps = self._steps_of_window
        joined = [steps[i] + steps[i + 1] for i in range(0, last, 2)]
        self._steps_of_window = joined + steps[last:]
        self.seconds = self.seconds[1:last:2] + self.seconds[last:]
        self.updates = self.updates[1:last:2] + self.updates[last:]

    # ---- reading it ----

    def of(self, metric: str, summary: Summary = "mean") -> list[float]:
        """One number for each window, NaN where the metric was not measured; [] if it never was."""
        kept = {"mean": self.series, "median": self.medians, "max": self.largest}[summary]
        return kept.get(metric, [])

    def points(
        self, metric: str, over: str = "updates", summary: Summary = "mean"
    ) -> tuple[np.ndarray, np.ndarray]:
        """(across, values) of the windows that measured the metric: a curve connects over the
        others. over: "seconds", "updates", or another metric, measured in the same windows.

        A window's value stands at the mean of the updates that it is of: at the last of them, the
        same loss would lie further right the faster a run is.
        """
        values = np.asarray(self.of(metric, summary), float)
        own = {"seconds": self.seconds, "updates": self._at.get(metric, self.updates)}
        across = np.asarray(own[over] if over in own else self.of(over, "max"), float)
        across = across[: len(values)]
        there = np.isfinite(values[: len(across)]) & np.isfinite(across)
        return across[there], values[: len(across)][there]

    def latest(self, metric: str, summary: Summary = "mean") -> float | None:
        """In the last window that measured it; None if none did."""
        return next((v for v in reversed(self.of(metric, summary)) if not isnan(v)), None)

    def typical(self, metric: str, summary: Summary = "median") -> float | None:
        """Over all windows of the run but the first, which still warms up; None if never measured.

        The median of the windows' medians, the mean of their means, or the largest of all.
        """
        values = self.of(metric, summary)
        later = [value for value in values[1:] if not isnan(value)]
        known = later or [value for value in values if not isnan(value)]
        if not known:
            return None
        return {"mean": fmean, "median": median, "max": max}[summary](known)


def _measured(steps: list[Step]) -> dict[str, list[float]]:
    """Metric → its values, in the steps that have one."""
    measured: dict[str, list[float]] = {}
    for step in steps:
        for name, value in step.metrics.items():
            if not isnan(value):
                measured.setdefault(name, []).append(value)
    return measured


def _count(bins: Counter[int | None], values: list[float]) -> None:
    sizes = np.asarray(values, float)
    above = sizes[(sizes > 0) & np.isfinite(sizes)]
    if len(above) < len(sizes):
        bins[None] += int((sizes <= 0).sum())
    places, counts = np.unique(np.floor(BINS_PER_OCTAVE * np.log2(above)), return_counts=True)
    for place, count in zip(places.tolist(), counts.tolist(), strict=True):
        bins[int(place)] += count
