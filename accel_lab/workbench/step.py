"""Step and Span: what one turn of a run did. Everything that shows or stores a run eats Steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import nan


@dataclass(frozen=True, slots=True)
class Span:
    """One piece of work on one rank, for timelines. Times are seconds since its Step began.

    A name may end in a number, as ``forward 3``: which of its ``kind`` this one is.
    """

    rank: int
    name: str
    start: float
    end: float

    @property
    def kind(self) -> str:
        return self.name.rstrip("0123456789").rstrip()


@dataclass(frozen=True, slots=True)
class Step:
    """One update of a model.

    index: 0 for the first update · samples: how many the update used · seconds: wall time inside
    the update alone (loading, drawing and waiting between updates are not in it) · metrics: name →
    float, with ``loss`` among them where there is one · spans: when each piece of the update ran,
    may be empty.
    """

    index: int
    samples: int
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    spans: tuple[Span, ...] = ()

    @property
    def throughput(self) -> float:
        """samples per second of this update; NaN where a coarse clock saw no time pass."""
        return self.samples / self.seconds if self.seconds else nan

    def to_json(self) -> str:
        """One JSON line, as ``python -m accel_lab run TECHNIQUE --jsonl`` prints it."""
        return json.dumps(asdict(self))
