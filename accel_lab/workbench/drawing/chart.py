"""What a panel shows, as plain data: runs, and charts of them.

A kind of chart is two files of one name. ``drawing/NAME.py`` declares it, a frozen dataclass that
can ``draw`` itself with matplotlib. ``panel/live/NAME.py`` holds its live form, which the panel
finds by that name. Both draw the same ``Runs``; nothing here knows the panel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from accel_lab.workbench.drawing.record import Record
from accel_lab.workbench.knobs import Dial, Knobs
from accel_lab.workbench.look import BLUE, GREY, STYLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CURVES = 3  # former runs drawn as curves; dots and cells have room for all of them


class Styled(NamedTuple):
    """A run, and how it is drawn: colour, line style, line width."""

    record: Record
    color: str
    style: str
    width: float


@dataclass(frozen=True)
class Runs:
    """What is there to draw: the knobs as they stand, runs kept by name, former runs (the latest
    last), and the run at hand.
    """

    knobs: Knobs
    pinned: Sequence[Record] = ()
    former: Sequence[Record] = ()
    live: Record | None = None

    def staying(self, former: int | None = None) -> list[Styled]:
        """All but the run at hand, back to front: the last few ``former`` ones, by default all."""
        ghosts = self.former[-former:] if former else self.former
        return [Styled(record, GREY, "-", 1.0) for record in ghosts] + [
            Styled(record, *STYLES[_place_of(record, place) % len(STYLES)], 1.8)
            for place, record in enumerate(self.pinned)
            if record is not self.live
        ]

    def styled(self, former: int | None = None) -> list[Styled]:
        """All of them, the run at hand in front."""
        return self.staying(former) + ([Styled(self.live, BLUE, "-", 2.2)] if self.live else [])

    @property
    def foreseen(self) -> Knobs:
        """The knobs to predict for: those of the run at hand, else of the one that would begin."""
        return self.live.knobs if self.live else self.knobs

    @property
    def shown(self) -> Record | None:
        """The one run to draw where there is room for one: the run at hand, else the last kept."""
        return self.live or (self.pinned[-1] if self.pinned else None)


class Chart(Protocol):
    """What every kind of chart offers: its title, and its still picture. It needs no front end."""

    @property
    def title(self) -> str:
        """What its axis up shows, with the unit; it stands above."""
        ...

    def draw(self, axes: Axes, runs: Runs) -> None: ...


def _place_of(record: Record, in_its_order: int) -> int:
    return in_its_order if record.place is None else record.place


def dial_of(knobs: Knobs, name: str) -> Dial:
    return next(dial for dial in type(knobs).dials() if dial.name == name)


@dataclass(frozen=True)
class Badge:
    """A verdict on the latest window of a run: ``equal`` while the metric of every step in it is at
    or below ``tolerance``, else ``differs``.
    """

    metric: str
    tolerance: float
    equal: str
    differs: str
