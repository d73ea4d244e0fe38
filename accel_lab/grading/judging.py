"""From an answer to a verdict: draw cases, ask, compute what is right, compare, explain. The same
for practice and for a mark.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from itertools import takewhile

from accel_lab.exercises import Case, Exercise, Plain
from accel_lab.grading import hints, shown, targets
from accel_lab.grading.difference import difference
from accel_lab.grading.failure import Failure, printable
from accel_lab.grading.sides import Side, assessed, expected
from accel_lab.workbench import look

NOT_ATTEMPTED = "not attempted yet"
MOST_REASON = 300  # characters
NO_CRASH = ("stopped", "timeout", "ended", "ExchangeError", "MemoryError")  # it did something
LASTING = ("stopped", "timeout", "NotImplementedError")  # it would only be so again


@dataclass(frozen=True)
class Verdict:
    """points of most · reason: one line, '' when right · hint: what to think about, a line for each
    mistake, '' if none fits · report: a traceback, or '' · right: what is right already, one line ·
    case: what went in where the reason shows, a line for each name · no_answer: it crashed in every
    case, or returned nothing.
    """

    exercise: str
    points: int
    most: int
    reason: str = ""
    hint: str = ""
    report: str = ""
    right: str = ""
    case: str = ""
    no_answer: bool = False

    def __post_init__(self):
        # it may quote what came out of a sandbox
        line = printable(self.reason[:MOST_REASON]).replace("\n", "\\n")
        if len(line) > MOST_REASON:
            line = line[: MOST_REASON - 1] + "…"
        object.__setattr__(self, "reason", line)

    @property
    def attempted(self) -> bool:
        return self.reason != NOT_ATTEMPTED

    def __repr__(self) -> str:
        said = f"{self.exercise}: {self.points} of {look.counted(self.most, 'point')}"
        why = f" ({self.reason})" if self.reason else ""
        lines = [f"Right already: {self.right}"] * bool(self.right)
        lines += [f"The case: {self.case}".replace("\n", "\n          ")] * bool(self.case)
        lines += [f"Hint: {hint}" for hint in self.hint.splitlines()]
        return "\n".join([said + why, *lines])

    def _repr_html_(self) -> str:
        right, lines = self.points == self.most, repr(self).splitlines()
        said = "\n".join(
            look.marked_up(line) if line.startswith("Hint: ") else escape(line) for line in lines
        )
        color, sign = look.VERDICTS[right if right or self.attempted else None]
        return (
            f'<div style="border-left:4px solid {color};padding:4px 10px;white-space:pre-wrap">'
            f"<b>{sign}</b> {said}</div>"
        )


def judge(
    exercise: Exercise, side: Side, seed: int, say: Callable[[str], None] = lambda how_far: None
) -> Verdict:
    """All points when every case comes out as the reference's, and the target is met where there is
    one; none otherwise.

    The smallest of the cases that differ is explained, up to the first that fails: that one may
    have spoiled the later ones. say: is told how far it is.
    """

    def refused(reason: str, hint: str = "", *more: str, no_answer: bool = False) -> Verdict:
        return Verdict(exercise.name, 0, exercise.points, reason, hint, *more, no_answer=no_answer)

    rng = random.Random(seed)
    cases, got = list(exercise.cases(rng)), []
    for number, case in enumerate(cases, start=1):
        say(f"case {number} of {len(cases)}")
        got.append(assessed(exercise, side.ask(exercise, case), case))
        if isinstance(got[-1], Failure) and got[-1].kind in LASTING:
            break
    failures = [one for one in got if isinstance(one, Failure)]
    if any(one.kind == "NotImplementedError" for one in failures):
        return refused(NOT_ATTEMPTED)
    cases = cases[: len(got)]
    right = [expected(exercise, case) for case in cases]
    reasons = [
        str(one) if isinstance(one, Failure) else difference(one, want, exercise.tolerance, exact)
        for one, (want, exact) in zip(got, right, strict=True)
    ]
    if any(reasons):
        told = _to_explain(cases, got, reasons)
        report = next((one.report for one in failures), "")
        hint = hints.hint(exercise, cases, got, right)
        already = shown.right_already(reasons, got[told], right[told][0], exercise.tolerance)
        nothing = all(map(_is_no_answer, got, reasons))
        case = shown.brief(cases[told])
        return refused(reasons[told], hint, report, already, case, no_answer=nothing)
    if exercise.target:
        say("the target")
        reason, hint = targets.missed(exercise, side, rng)
        if reason:
            return refused(reason, hint)
    return Verdict(exercise.name, exercise.points, exercise.points)


def _is_no_answer(got: Plain | Failure, reason: str) -> bool:
    if isinstance(got, Failure):
        return got.kind not in NO_CRASH
    return reason.endswith("None came")


def _to_explain(cases: list[Case], got: list[Plain | Failure], reasons: list[str]) -> int:
    """The number of a case."""
    wrong = [number for number, reason in enumerate(reasons) if reason]
    differ = list(takewhile(lambda number: not isinstance(got[number], Failure), wrong))
    return shown.smallest(cases, differ) if differ else wrong[0]
