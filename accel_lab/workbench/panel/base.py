"""What a panel is, watched or not: its charts, the runs it keeps, and the picture of both."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

from accel_lab.workbench.drawing import figure
from accel_lab.workbench.drawing.chart import Chart, Runs
from accel_lab.workbench.drawing.record import Record
from accel_lab.workbench.knobs import Knobs
from accel_lab.workbench.look import number
from accel_lab.workbench.panel.trainer import Run, Trainer, observe

MOST_GHOSTS = 40  # former runs: dots and cells; curves show the last of them
MOST_PINNED = 3  # as many as can be told apart
WORTH_A_GHOST = 3  # windows: a run that was hardly seen leaves no ghost


class Bench:
    """An experiment with its runs: the one at hand (``live``), those kept by name (``pinned``, the
    baselines first) and former ones (``ghosts``, the latest last).
    """

    def __init__(
        self,
        run: Run,
        knobs: Knobs,
        charts: Sequence[Chart],
        baselines: Mapping[str, Knobs],
        seconds: float,
    ):
        self.charts = list(charts)
        self.pinned: list[Record] = []
        self.ghosts: list[Record] = []
        self.live: Record | None = None
        self.error: Exception | None = None  # what ended the latest run, if anything did
        self._run, self._base, self._seconds = run, knobs, seconds
        Trainer.stop_whoever_trains()
        for name, baseline in baselines.items():
            self.pinned.append(observe(run, baseline, name, seconds))

    @property
    def knobs(self) -> Knobs:
        raise NotImplementedError

    @property
    def runs(self) -> Runs:
        return Runs(self.knobs, tuple(self.pinned), tuple(self.ghosts), self.live)

    def pin(self) -> None:
        """Keep the run at hand, by its knobs' names, until three later ones are pinned."""
        if self.live and self.live.seconds:
            label = self.live.label
            later = [record for record in self.pinned[1:] if record.label != label]
            self.pinned = self.pinned[:1] + [*later, self.live][1 - MOST_PINNED :]

    def _retire(self, record: Record | None) -> None:
        """A run that is over becomes a ghost; with the knobs of a baseline it renews that one,
        which was run in a hurry.
        """
        if record is None or record in self.pinned or len(record.seconds) < WORTH_A_GHOST:
            return
        for place, pinned in enumerate(self.pinned):
            if pinned.knobs == record.knobs:
                record.label = pinned.label
                self.pinned[place] = record
                return
        self.ghosts = [*self.ghosts, record][-MOST_GHOSTS:]

    def _label(self, knobs: Knobs) -> str:
        """The knobs that differ from the panel's own."""
        changes = [
            f"{name.replace('_', ' ')} {_said(value)}"
            for name, value in knobs
            if value != getattr(self._base, name)
        ]
        return ", ".join(changes) or "now"

    def _bundle(self) -> dict[str, str]:
        picture = figure.png(figure.draw(self.charts, self.runs))
        return {"text/plain": "Panel", "image/png": base64.b64encode(picture).decode()}


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return number(float(f"{value:.3g}")) if isinstance(value, float) else str(value)
