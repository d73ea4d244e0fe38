"""From an answer to a verdict: draw cases, ask, compute what is right, compare, explain. The same
for practice and for a mark.

All that differs is the *side* that an answer is on: ``Here`` calls the function in this process,
``boxed.Boxed`` asks it in a box.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from html import escape
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from accel_lab.grading.comparison import Plain, difference
from accel_lab.grading.exchange import on_threads
from accel_lab.grading.failure import Failure, of_ranks, out_of_memory, printable
from accel_lab.grading.inside import wire
from accel_lab.grading.inside.answer import describe
from accel_lab.workbench import look
from accel_lab.workbench.device import threads
from accel_lab.workbench.measure.comparison import Comparison
from accel_lab.workbench.measure.memory_meter import process_peak

if TYPE_CHECKING:
    from accel_lab.exercises import Case, Exercise, Wrong

NOT_ATTEMPTED = "not attempted yet"
MOST_REASON = 300  # characters
# timed; they are doubled, twice at most, while the target lies within what they leave possible
PAIRS = 9


@dataclass(frozen=True)
class Verdict:
    """points of most · reason: one line, '' when right · hint: what to think about, '' if none fits
    · report: a traceback, or ''.
    """

    exercise: str
    points: int
    most: int
    reason: str = ""
    hint: str = ""
    report: str = ""

    def __post_init__(self):
        line = printable(self.reason[:MOST_REASON]).replace(
            "\n", "\\n"
        )  # it may quote what came out of a box
        object.__setattr__(
            self, "reason", line if len(line) <= MOST_REASON else line[: MOST_REASON - 1] + "…"
        )

    @property
    def attempted(self) -> bool:
        return self.reason != NOT_ATTEMPTED

    def __repr__(self) -> str:
        said = f"{self.exercise}: {self.points} of {self.most} points"
        return (
            said
            + (f" ({self.reason})" if self.reason else "")
            + (f"\nHint: {self.hint}" if self.hint else "")
        )

    def _repr_html_(self) -> str:
        right, said = self.points == self.most, escape(repr(self)).replace("\n", "<br>")
        color, sign = look.VERDICTS[right if right or self.attempted else None]
        return (
            f'<div style="border-left:4px solid {color};padding:4px 10px"><b>{sign}</b> '
            f"{said}</div>"
        )


class Side(Protocol):
    """Where an answer is asked. ``most_bytes``: of memory for one answer, beyond what is there when
    it is asked.
    """

    def ask(
        self, exercise: Exercise, case: Case, most_bytes: int | None = None
    ) -> Plain | Failure: ...

    def ask_again(self, exercise: Exercise, case: Case) -> tuple[Plain | Failure, float]:
        """The same exercise as before, without anything being prepared in between, and the seconds
        that it computed.
        """

    def beside(self, answer: Callable) -> AbstractContextManager[Side]:
        """An answer of ours on the same side: a function that needs nothing from outside itself."""

    def still(self) -> AbstractContextManager[None]:
        """Nothing that belongs to this answer runs meanwhile."""


class Here:
    """In this process: for practice, and for answers of our own."""

    def __init__(self, answer: Callable):
        self._answer, self._file = (
            answer,
            getattr(getattr(answer, "__code__", None), "co_filename", ""),
        )

    def ask(self, exercise: Exercise, case: Case, most_bytes: int | None = None) -> Plain | Failure:
        case = copy.deepcopy(case)
        if most_bytes is None:
            return self._call(exercise, case)
        with process_peak() as peak:
            got = self._call(exercise, case, as_it_is=True)
        if isinstance(got, Failure) or peak.grown <= most_bytes:
            return got
        return out_of_memory()

    def _call(self, exercise: Exercise, case: Case, as_it_is: bool = False) -> Plain | Failure:
        try:
            if exercise.deal is None:
                got = exercise.drive(self._answer, case)
                return got if as_it_is else _plain(got)
            came, exchange = on_threads(self._answer, exercise.drive, exercise.deal(case))
            outcomes = [
                self._failure(one) if isinstance(one, Exception) else _plain(one) for one in came
            ]
            return of_ranks(outcomes, exchange.messages)
        except Exception as error:
            return self._failure(error)

    def _failure(self, error: Exception) -> Failure:
        return Failure.said(describe(error, self._file))

    def ask_again(self, exercise: Exercise, case: Case) -> tuple[Plain | Failure, float]:
        start = perf_counter()
        return self._call(exercise, case), perf_counter() - start

    @contextmanager
    def beside(self, answer: Callable) -> Iterator[Here]:
        yield Here(answer)

    @contextmanager
    def still(self) -> Iterator[None]:
        yield


def _plain(thing: object) -> Plain:
    """What would have come out of a box. Raises wire.NotPlain."""
    frame = wire.pack(thing)
    header, _ = wire.lengths(frame[: wire.LENGTHS.size])
    start = wire.LENGTHS.size + header
    return wire.unpack(frame[wire.LENGTHS.size : start], frame[start:])


def judge(exercise: Exercise, side: Side, seed: int) -> Verdict:
    """All points when every case comes out as the reference's, and the target is met where there is
    one; none otherwise.

    The first case that differs is explained.
    """
    rng = random.Random(seed)
    cases, got = list(exercise.cases(rng)), []
    for case in cases:
        got.append(_assessed(exercise, side.ask(exercise, case), case))
        if isinstance(got[-1], Failure) and got[-1].kind in (
            "stopped",
            "timeout",
            "NotImplementedError",
        ):
            break  # it would only be so again
    failures = [one for one in got if isinstance(one, Failure)]
    if any(one.kind == "NotImplementedError" for one in failures):
        return Verdict(exercise.name, 0, exercise.points, NOT_ATTEMPTED)
    cases, right = cases[: len(got)], Here(exercise.reference)
    want = [_assessed(exercise, right.ask(exercise, case), case) for case in cases]
    reasons = [
        str(one) if isinstance(one, Failure) else difference(one, other, exercise.tolerance)
        for one, other in zip(got, want, strict=True)
    ]
    if any(reasons):
        report = next((one.report for one in failures), "")
        return Verdict(
            exercise.name,
            0,
            exercise.points,
            next(filter(None, reasons)),
            _hint(exercise, cases, got, reasons),
            report,
        )
    if exercise.target and (reason := exercise.target.missed(exercise, side, rng)):
        return Verdict(exercise.name, 0, exercise.points, reason, exercise.target.refuses.hint)
    return Verdict(exercise.name, exercise.points, exercise.points)


def _assessed(exercise: Exercise, got: Plain | Failure, case: Case) -> Plain | Failure:
    if isinstance(got, Failure) or exercise.assess is None:
        return got
    try:
        return exercise.assess(got, copy.deepcopy(case))
    except Exception as error:  # data of another shape than was asked for
        return Failure(type(error).__name__, f"what came back cannot be read: {error}")


def _hint(
    exercise: Exercise, cases: list[Case], got: list[Plain | Failure], reasons: list[str]
) -> str:
    """The hint of the known wrong answer that does the same in most cases, at least one of those
    that are wrong among them.
    """

    def alike(wrong: Wrong) -> tuple[int, int]:
        side = Here(wrong.answer)
        theirs = [_assessed(exercise, side.ask(exercise, case), case) for case in cases]
        same = [
            _same(one, other, exercise.tolerance) for one, other in zip(got, theirs, strict=True)
        ]
        return sum(both and bool(reason) for both, reason in zip(same, reasons, strict=True)), sum(
            same
        )

    scores = [(alike(wrong), wrong.hint) for wrong in exercise.wrong]
    (wrong_alike, _), hint = max(scores, key=lambda score: sum(score[0]))
    return hint if wrong_alike else ""


def _same(one: Plain | Failure, other: Plain | Failure, tolerance: float) -> bool:
    if isinstance(one, Failure) or isinstance(other, Failure):
        return isinstance(one, Failure) and isinstance(other, Failure) and one.kind == other.kind
    return not difference(one, other, tolerance)


@dataclass(frozen=True)
class LessMemory:
    """A target: one larger case within so many bytes, beyond what is there when it is asked.
    refuses: the answer that needs more.

    In a box the system itself refuses what goes beyond; in practice the process is watched.
    """

    case: Callable[[random.Random], Case]
    bytes: int
    refuses: Wrong

    def missed(self, exercise: Exercise, side: Side, rng: random.Random) -> str:
        case = self.case(rng)
        got = _assessed(exercise, side.ask(exercise, case, self.bytes), case)
        if isinstance(got, Failure):
            return f"right, but on a larger case: {got}" + (
                f" ({self.bytes >> 20} MB)" if got == out_of_memory() else ""
            )
        want = _assessed(exercise, Here(exercise.reference).ask(exercise, case), case)
        return difference(got, want, exercise.tolerance)


@dataclass(frozen=True)
class LessTime:
    """A target: at most ``ratio`` of a plain answer's time on larger cases, a fresh one for each
    pair. refuses: the plain answer.

    In a box the system counts what an answer computes, whatever else runs meanwhile; in practice
    the clock on the wall does.
    """

    case: Callable[[random.Random], Case]
    ratio: float
    refuses: Wrong

    def missed(self, exercise: Exercise, side: Side, rng: random.Random) -> str:
        # One thread, as in a box: waiting for a busy core is no part of an answer.
        with side.beside(self.refuses.answer) as plain, threads(1):
            return self._missed(exercise, side, plain, rng)

    def _missed(self, exercise: Exercise, ours: Side, theirs: Side, rng: random.Random) -> str:
        pairs, right = [], Here(exercise.reference)
        for most in (1 + PAIRS, 1 + 2 * PAIRS, 1 + 4 * PAIRS):
            while len(pairs) < most:
                case, seconds, answers = self.case(rng), {}, {}
                for who, other in rng.sample(((ours, theirs), (theirs, ours)), 2):
                    mine = copy.deepcopy(case)
                    with other.still():
                        answers[who], seconds[who] = who.ask_again(exercise, mine)
                    if isinstance(
                        answers[who], Failure
                    ):  # the plain version fails only where no time was left for it
                        return f"right, but on a larger case: {answers[who]}"
                if wrong := difference(
                    answers[ours], right.ask(exercise, case), exercise.tolerance
                ):
                    return f"right, but on a larger case: {wrong}"
                pairs.append((seconds[ours], seconds[theirs]))
            comparison = Comparison.of(
                pairs[1:], ("yours", "the plain version")
            )  # the first is a rehearsal
            low, high = comparison.interval
            if not low <= self.ratio <= high:
                break
        return (
            ""
            if comparison.ratio <= self.ratio
            else f"right, but slow: {comparison}; the target is {self.ratio:g}×"
        )
