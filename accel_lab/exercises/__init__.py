"""Exercises: what is asked, how an answer is judged, and the wrong answers that must be refused.

An exercise lives in ``accel_lab/exercises/<technique>.py`` as a module-level ``Exercise``. Its cases are plain data made afresh
from a seed; ``drive`` hands one case to an answer and returns plain data; the expected data come from the reference by the same
driver. Every wrong answer stands for one misconception and carries the hint that explains it.
"""

from __future__ import annotations

import copy
import importlib
import pkgutil
import random
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape

from accel_lab.grading.comparison import Plain, difference

Case = dict[str, Plain]
Answer = Callable[..., object]


@dataclass(frozen=True)
class Wrong:
    """A wrong answer that people give, and what to tell them."""

    answer: Answer
    hint: str


@dataclass(frozen=True)
class Exercise:
    """name: of the function to write · points · task: Markdown · cases(rng): fresh cases, at least two · drive(answer, case) →
    plain data; its source must stand by itself, imports included, for it may run where this package is not · reference: the
    right answer · wrong: what must be refused · tolerance: of floating-point results, see ``difference``.
    """

    name: str
    points: int
    task: str
    cases: Callable[[random.Random], Iterator[Case]]
    drive: Callable[[Answer, Case], Plain]
    reference: Answer
    wrong: tuple[Wrong, ...]
    tolerance: float = 1e-5

    def _repr_markdown_(self) -> str:
        return f"**{self.name}** ({self.points} points)\n\n{self.task}"

    def __repr__(self) -> str:
        return f"Exercise {self.name}, {self.points} points"


@dataclass(frozen=True)
class Verdict:
    """points of most · reason: one line, '' when right · hint: what to think about, '' if none fits."""

    exercise: str
    points: int
    most: int
    reason: str = ""
    hint: str = ""

    @property
    def attempted(self) -> bool:
        return self.reason != NOT_ATTEMPTED

    def __repr__(self) -> str:
        said = f"{self.exercise}: {self.points} of {self.most} points"
        return said + (f" ({self.reason})" if self.reason else "") + (f"\nHint: {self.hint}" if self.hint else "")

    def _repr_html_(self) -> str:
        right, said = self.points == self.most, escape(repr(self)).replace("\n", "<br>")
        color = "#00664b" if right else "#a33c00" if self.attempted else "#555"
        sign = "✓" if right else "✗" if self.attempted else "○"
        return f'<div style="border-left:4px solid {color};padding:4px 10px"><b style="color:{color}">{sign}</b> {said}</div>'


NOT_ATTEMPTED = "not attempted yet"


def exercises(technique: str) -> list[Exercise]:
    """The exercises of a technique's chapter, in the order in which they are written."""
    module = importlib.import_module(f"{__name__}.{technique}")
    return [thing for thing in vars(module).values() if isinstance(thing, Exercise)]


def find(name: str) -> Exercise:
    """The exercise that asks for a function of this name. Raises ValueError, one line, when none does."""
    known = []
    for module in pkgutil.iter_modules(__path__):
        for exercise in exercises(module.name):
            if exercise.name == name:
                return exercise
            known.append(exercise.name)
    raise ValueError(f"no exercise asks for a function called {name!r}; there are: {', '.join(known)}")


def check(answer: Answer, seed: int | None = None) -> Verdict:
    """Judge a function by the exercise that asks for one of its name, here and now: practice, with hints.

    Each call draws fresh cases, unless a seed is given.
    """
    if not callable(answer):
        raise ValueError(f"check: give it the function itself, as in check(my_function), not {type(answer).__name__}")
    return judge(find(answer.__name__), answer, random.SystemRandom().randrange(2**32) if seed is None else seed)


def judge(exercise: Exercise, answer: Answer, seed: int) -> Verdict:
    """All points when every case comes out as the reference's, none otherwise; the first case that differs is explained."""
    cases = list(exercise.cases(random.Random(seed)))
    got = [_outcome(exercise, answer, case) for case in cases]
    if any(isinstance(one, NotImplementedError) for one in got):
        return Verdict(exercise.name, 0, exercise.points, NOT_ATTEMPTED)
    want = [_outcome(exercise, exercise.reference, case) for case in cases]
    reasons = [_reason(answer, one, other, exercise.tolerance) for one, other in zip(got, want, strict=True)]
    if not any(reasons):
        return Verdict(exercise.name, exercise.points, exercise.points)
    return Verdict(exercise.name, 0, exercise.points, next(filter(None, reasons)), _hint(exercise, cases, got, reasons))


def _outcome(exercise: Exercise, answer: Answer, case: Case) -> object:
    """What the driver returned, or the exception that came instead; the case itself stays as it is."""
    try:
        return exercise.drive(answer, copy.deepcopy(case))
    except Exception as error:
        return error


def _reason(answer: Answer, got: object, want: Plain, tolerance: float) -> str:
    return _where(got, answer) if isinstance(got, Exception) else difference(got, want, tolerance)


def _hint(exercise: Exercise, cases: list[Case], got: list[object], reasons: list[str]) -> str:
    """The hint of the known wrong answer that does the same in most cases, at least one of those that are wrong among them."""

    def alike(wrong: Wrong) -> tuple[int, int]:
        same = [
            _same(one, _outcome(exercise, wrong.answer, case), exercise.tolerance) for one, case in zip(got, cases, strict=True)
        ]
        return sum(both and bool(reason) for both, reason in zip(same, reasons, strict=True)), sum(same)

    scores = [(alike(wrong), wrong.hint) for wrong in exercise.wrong]
    (wrong_alike, _), hint = max(scores, key=lambda score: sum(score[0]))
    return hint if wrong_alike else ""


def _same(one: object, other: object, tolerance: float) -> bool:
    if isinstance(one, Exception) or isinstance(other, Exception):
        return type(one) is type(other)
    return not difference(one, other, tolerance)


def _where(error: Exception, answer: Answer) -> str:
    """What was raised, and at which line of the answer."""
    file = getattr(getattr(answer, "__code__", None), "co_filename", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    at = f" in line {lines[-1]} of its cell" if lines else ""
    return f"{type(error).__name__}{at}: {str(error).partition(chr(10))[0]}"
