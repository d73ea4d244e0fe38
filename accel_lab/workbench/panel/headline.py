"""The headline of a panel: how the run at hand stands to its baseline, in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from accel_lab.workbench.drawing.record import Record
from accel_lab.workbench.look import number

# Windows, the first left out, which still warms up: fewer tell nothing of the spread.
FEWEST = 3
SMALLEST = 0.05  # points: less is written as 0.0


@dataclass(frozen=True)
class Headline:
    """A metric of the run at hand against the baseline's: ``2.1 × the samples/s of one rank``.

    what: the metric's name in that sentence · points: the difference in hundredths, at the same
    update, in place of the ratio: for a share, ``3.1 points more test accuracy than …``
    """

    metric: str = "throughput"
    what: str = "samples/s"
    points: bool = False

    def say(self, live: Record, baseline: Record) -> tuple[str, str]:
        """The sentence, and beside it how certain it is; "" while there is too little to compare,
        and where there is no spread. Where the spread reaches to both sides of 1, it says so.
        """
        return self._difference(live, baseline) if self.points else self._ratio(live, baseline)

    def _ratio(self, live: Record, baseline: Record) -> tuple[str, str]:
        ours, theirs = (self._windows(record) for record in (live, baseline))
        if len(ours) < FEWEST or not len(theirs) or theirs.min() <= 0:
            return "", ""
        low, middle, high = np.quantile(np.divide.outer(ours, theirs), (0.25, 0.5, 0.75))
        said = f"{times(middle)} × the {self.what} of {baseline.label}"
        if len(theirs) < FEWEST:  # its updates are slow, and it comes to no more
            return said, f"too few windows of {baseline.label} to tell the spread"
        if times(low) == times(high):  # counted rather than timed
            return said, ""
        if low <= 1 <= high:
            said += ": no clear difference"
        return said, f"half of the windows within {times(low)}–{times(high)} ×"

    def _difference(self, live: Record, baseline: Record) -> tuple[str, str]:
        (at, ours), (theirs_at, theirs) = (one.points(self.metric) for one in (live, baseline))
        if not len(at) or not len(theirs_at):
            return "", ""
        update = min(at[-1], theirs_at[-1])  # the last that both have seen
        gained = 100 * (np.interp(update, at, ours) - np.interp(update, theirs_at, theirs))
        at_update = f"at update {update:,.0f}"
        if abs(gained) < SMALLEST:
            return f"the same {self.what} as {baseline.label}", at_update
        more = "more" if gained > 0 else "less"
        return f"{abs(gained):.1f} points {more} {self.what} than {baseline.label}", at_update

    def _windows(self, record: Record) -> np.ndarray:
        return record.points(self.metric, summary="median")[1][1:]


SPEED = Headline()


def times(ratio: float) -> str:
    """A factor in as many digits as mean something: 0.26, 2.1, 340."""
    return number(float(f"{ratio:.2g}"))
