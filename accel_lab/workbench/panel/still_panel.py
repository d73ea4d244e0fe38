"""The panel where nobody watches (papermill, nbclient, nbval): the same runs, made in the
foreground and briefly, and the picture alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from IPython.display import DisplayHandle, display

from accel_lab.workbench.drawing.chart import Chart
from accel_lab.workbench.drawing.record import Record
from accel_lab.workbench.knobs import Knobs
from accel_lab.workbench.look import ON_PAPER
from accel_lab.workbench.panel.base import Baselines, Bench
from accel_lab.workbench.panel.trainer import Run, observe


class StillPanel(Bench):
    """Runs its tour when it is made: the last stop is the run at hand, the others are pinned."""

    def __init__(
        self,
        run: Run,
        knobs: Knobs,
        charts: Sequence[Chart],
        baselines: Baselines,
        tour: Sequence[Knobs],
        seconds: float,
    ):
        super().__init__(run, knobs, charts, baselines, seconds)
        self._shown: DisplayHandle | None = None
        toured = [observe(run, Record(stop, self._label(stop)), seconds) for stop in tour]
        for stop in toured[:-1]:
            self.live = stop
            self.pin()
        self.live = toured[-1] if toured else None

    @property
    def knobs(self) -> Knobs:
        """Nobody turns them."""
        return self._base

    @property
    def training(self) -> bool:
        """Never: ``start`` returns when its run has ended."""
        return False

    def start(self) -> None:
        """Train with the knobs for a few seconds, and keep the record as the run at hand."""
        self.error = None
        self._retire(self.live)
        self.live = None
        try:
            record = Record(self.knobs, self._label(self.knobs))
            self.live = observe(self._run, record, self._seconds)
        except Exception as error:  # as beside a live panel, where it is shown
            self.error = error
        self._renew()

    def stop(self) -> None:
        """Nothing trains."""

    def wait(self) -> None:
        """Nothing trains."""

    def pin(self) -> str:
        said = super().pin()
        self._renew()
        return said

    def clear(self) -> None:
        super().clear()
        self._renew()

    def reset(self) -> None:
        """Nobody has turned a knob."""

    def _renew(self) -> None:
        if self._shown:
            self._shown.update(self._bundle(), metadata=ON_PAPER, raw=True)

    def _ipython_display_(self) -> None:
        self._shown = display(self._bundle(), metadata=ON_PAPER, raw=True, display_id=True)
