"""What a panel is, watched or not: its charts, the runs it keeps, and the picture of them."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from accel_lab.workbench.drawing import figure
from accel_lab.workbench.drawing.chart import Chart, Runs
from accel_lab.workbench.drawing.record import Record
from accel_lab.workbench.knobs import KnobError, Knobs
from accel_lab.workbench.look import STYLES, number
from accel_lab.workbench.panel.trainer import Run, Trainer, observe

MOST_GHOSTS = 40  # former runs: dots and cells; curves show the last of them
WORTH_A_GHOST = 3  # windows: a run that was hardly seen leaves no ghost
NOW, FIRST = "now", "first settings"  # a run with the panel's own knobs, at hand and afterwards
MISTAKE = "mistake"  # the knob whose every choice keeps its latest run, to compare with
Baselines = Mapping[str, Mapping[str, Any]]


class Bench:
    """An experiment with its runs: the one at hand (``live``), those kept by name (``pinned``: the
    baselines, the mistakes made, what was pinned) and former ones (``ghosts``, the latest last).

    baselines: name → the knobs that make it one; all others follow the panel's.
    """

    def __init__(
        self, run: Run, knobs: Knobs, charts: Sequence[Chart], baselines: Baselines, seconds: float
    ):
        self.charts = list(charts)
        self.baselines: dict[str, Record] = {}
        self.pins: list[Record] = []
        self.mistakes: dict[str, Record] = {}
        self.ghosts: list[Record] = []
        self.live: Record | None = None
        self.error: Exception | None = None  # what ended the latest run, if anything did
        self._run, self._base, self._seconds = run, knobs, seconds
        self._turned_for = baselines
        self._known: dict[tuple[str, Knobs], Record] = {}  # baseline, knobs → its record
        self._short: dict[
            tuple[str, Knobs], Record
        ] = {}  # the same, before a longer run renewed it
        Trainer.stop_whoever_trains()
        for name, wanted in self._missing_baselines(knobs):
            self._keep_baseline(observe(run, Record(wanted, name), seconds))
        self._choose_baselines(knobs)

    @property
    def knobs(self) -> Knobs:
        raise NotImplementedError

    @property
    def pinned(self) -> list[Record]:
        return [*self.baselines.values(), *self.mistakes.values(), *self.pins]

    @property
    def runs(self) -> Runs:
        return Runs(self.knobs, tuple(self.pinned), tuple(self.ghosts), self.live)

    # ---- runs kept by name ----

    def pin(self) -> str:
        """Keep the run at hand, by its knobs' names, or keep it no longer; says what was done."""
        live = self.live
        if live is None or not live.seconds:
            return "nothing to pin: no run is at hand"
        if live in self.pins:
            self.pins.remove(live)
            return f"unpinned: {live.label}"
        if live in self.pinned:
            return f"{live.label} is kept already"
        if self._keep_mistake(live):
            return f"pinned ✓ {live.label}"
        taken = {record.place for record in self.pinned}
        free = [place for place in range(len(STYLES)) if place not in taken]
        if not free:
            return "not pinned: as many runs are kept as can be told apart; Clear makes room"
        live.place, live.label = free[0], _afterwards(live.label)
        self.pins.append(live)
        return f"pinned ✓ {live.label}"

    def clear(self) -> None:
        """Keep the baselines alone, each as short as it was run on purpose: beside one that went on
        for minutes, the next run would be drawn in the axis's first part.
        """
        self.pins, self.mistakes, self.ghosts = [], {}, []
        self.live = None
        self._known.update(self._short)
        self.baselines = {
            name: self._known[name, kept.knobs] for name, kept in self.baselines.items()
        }

    def _retire(self, record: Record | None) -> None:
        """A run that is over becomes a ghost. One with a mistake is kept by its name; one with the
        knobs of a baseline renews that one, if it lasted longer.
        """
        if record is None or record in self.pinned or len(record.seconds) < WORTH_A_GHOST:
            return
        for name, kept in self.baselines.items():
            if kept.knobs == record.knobs:
                if record.updates[-1] > kept.updates[-1]:
                    record.label, record.place = kept.label, kept.place
                    self._known[name, record.knobs] = self.baselines[name] = record
                return
        if not self._keep_mistake(record):
            record.label = _afterwards(record.label)
            self.ghosts = [*self.ghosts, record][-MOST_GHOSTS:]

    def _keep_mistake(self, record: Record) -> bool:
        """Each mistake has a look of its own, whenever it is made."""
        dial = next((dial for dial in self._base.dials() if dial.name == MISTAKE), None)
        if dial is None or (mistake := getattr(record.knobs, MISTAKE)) == dial.default:
            return False
        record.place = len(self._turned_for) + dial.choices.index(mistake) - 1
        self.mistakes[mistake] = record
        return True

    # ---- baselines, which follow the knobs ----

    def _baseline_knobs(self, knobs: Knobs) -> Iterator[tuple[str, Knobs]]:
        for name, turned in self._turned_for.items():
            try:
                yield name, knobs.turned(**turned)
            except KnobError:  # there is none that goes with these knobs
                continue

    def _missing_baselines(self, knobs: Knobs) -> list[tuple[str, Knobs]]:
        """Those still to be run before they can stand beside a run with these knobs."""
        return [
            (name, wanted)
            for name, wanted in self._baseline_knobs(knobs)
            if (name, wanted) not in self._known
        ]

    def _keep_baseline(self, record: Record) -> None:
        record.place = list(self._turned_for).index(record.label)
        self._known[record.label, record.knobs] = self._short[record.label, record.knobs] = record

    def _choose_baselines(self, knobs: Knobs) -> None:
        """Show those that go with these knobs."""
        known = ((name, (name, wanted)) for name, wanted in self._baseline_knobs(knobs))
        records = {name: self._known[key] for name, key in known if key in self._known}
        # one that failed at once has nothing to show
        self.baselines = {name: record for name, record in records.items() if record.seconds}

    def _label(self, knobs: Knobs) -> str:
        """The knobs that differ from the panel's own."""
        changes = [
            _change(name, value) for name, value in knobs if value != getattr(self._base, name)
        ]
        return ", ".join(changes) or NOW

    def _bundle(self) -> dict[str, str]:
        picture = figure.png(figure.draw(self.charts, self.runs))
        return {"text/plain": "Panel", "image/png": base64.b64encode(picture).decode()}


def _afterwards(label: str) -> str:
    return FIRST if label == NOW else label


def _change(name: str, value: object) -> str:
    if name == MISTAKE:
        return "no mistake" if value == "none" else str(value)
    return f"{name.replace('_', ' ')} {_said(value)}"


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return number(float(f"{value:.3g}")) if isinstance(value, float) else str(value)
