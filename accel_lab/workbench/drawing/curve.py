"""Curve: a metric while the run goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from accel_lab.workbench.drawing.axis import label_ends, limit_line, running_median, upward
from accel_lab.workbench.drawing.chart import MOST_CURVES, Runs
from accel_lab.workbench.drawing.record import Record, Summary
from accel_lab.workbench.look import GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# How many times its first values, or its usual ones, a curve may rise and still be followed.
FAR, FAR_ON_A_LOG_AXIS = 4.0, 1e4


@dataclass(frozen=True)
class Curve:
    """A metric over the seconds of a run, over its updates, or over another metric that grows.

    label: with its unit · scale: from the metric's unit to the label's · over: "seconds",
    "updates" or the name of a metric, a count · log: ends of a logarithmic axis, or True for whole
    decades around the values · ends: of a linear axis, by default from zero to a round number, as
    in (0, 100) for percentages · limit: a value to draw as a line, and what it is · summary: how
    the steps of a window become a point · noisy: draw the curve faint and its running median in
    front; by default only the throughput
    """

    metric: str
    label: str
    scale: float = 1.0
    over: str = "seconds"
    log: tuple[float, float] | bool = False
    ends: tuple[float, float] | None = None
    limit: tuple[float, str] | None = None
    summary: Summary = "mean"
    noisy: bool | None = None

    @property
    def title(self) -> str:
        return self.label

    @property
    def across(self) -> str:
        """What stands across."""
        return self.over.replace("_", " ")

    @property
    def counts(self) -> bool:
        """Whether whole numbers stand across."""
        return self.over != "seconds"

    @property
    def smoothed(self) -> bool:
        return self.metric == "throughput" if self.noisy is None else self.noisy

    def points(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        """(across, up) in the label's unit, where the metric was measured."""
        across, up = record.points(self.metric, self.over, self.summary)
        up = up * self.scale
        if self.log:  # nothing else can be drawn there
            across, up = across[up > 0], up[up > 0]
        return across, up

    def reach(self, up: np.ndarray) -> tuple[float, float]:
        """(least, most) of a curve that an axis should hold. One that runs away leaves the picture:
        an axis that held all of it would make a flat line of every other.
        """
        usual = max(abs(up[0]), np.quantile(np.abs(up), 0.25)) or np.abs(up).max()
        far = usual * (FAR_ON_A_LOG_AXIS if self.log else FAR)
        return max(float(up.min()), -far), min(float(up.max()), far)

    def draw(self, axes: Axes, runs: Runs) -> None:
        ends, reached = [], []
        for record, color, style, width in runs.styled(MOST_CURVES):
            xs, ys = self.points(record)
            if not len(ys):
                continue
            reached += self.reach(ys)
            if self.smoothed and color != GREY:
                axes.plot(xs, ys, color=color, linewidth=0.8, alpha=0.35)
                ys = running_median(ys)
            axes.plot(xs, ys, style, color=color, linewidth=width, marker="o" * (len(ys) == 1))
            ends.append((xs[-1], ys[-1], record.label, color))
        if self.limit:
            limit_line(axes, *self.limit)
            reached.append(self.limit[0])
        axes.set_xlabel(self.across)
        upward(axes, self.log, self.ends, hold=reached)
        upward(axes, False, vertical=False, whole=self.counts)
        label_ends(axes, ends)
