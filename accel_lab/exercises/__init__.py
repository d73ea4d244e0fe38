"""Exercises: what is asked, how an answer is judged, and the wrong answers that must be refused.

An exercise lives in ``accel_lab/exercises/<technique>.py`` as a module-level ``Exercise``. Its
cases are plain data made afresh from a seed; ``drive`` hands one case to an answer and returns
plain data; the expected data come from the reference by the same driver. Every wrong answer stands
for one misconception and carries the hint that explains it.
"""

from __future__ import annotations

import importlib
import pkgutil
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from accel_lab.grading.comparison import Plain
from accel_lab.grading.judging import Here, LessMemory, LessTime, Verdict, judge

__all__ = [
    "Case",
    "Exercise",
    "LessMemory",
    "LessTime",
    "Verdict",
    "Wrong",
    "check",
    "exercises",
    "find",
]

Case = dict[str, Plain]
Answer = Callable[..., object]


@dataclass(frozen=True)
class Wrong:
    """A wrong answer that people give, and what to tell them."""

    answer: Answer
    hint: str


@dataclass(frozen=True)
class Exercise:
    """name: of the function to write · points · task: Markdown · cases(rng): fresh cases, at least
    two · drive(answer, case) → plain data; its source must stand by itself, imports included, for
    it runs where this package is not, beside the learner's code · reference: the right answer ·
    wrong: what must be refused · tolerance: of floating-point results, see ``difference``.

    deal(case): one part for each rank, when the answer is to run on several; ``drive(answer, part,
    wires)`` then runs on each, and the wires' ``send(to, tensor)``, ``receive(source)`` and
    ``all_reduce(tensor)`` are all that a rank has of the others. assess(returned, case): what of it
    counts. This runs on the trusted side, so here belongs whatever judges; of ranks it gets
    {"ranks": what each returned, "messages": the tensors that each sent}. target: what a right
    answer must reach as well.
    """

    name: str
    points: int
    task: str
    cases: Callable[[random.Random], Iterator[Case]]
    drive: Callable[..., Plain]
    reference: Answer
    wrong: tuple[Wrong, ...]
    tolerance: float = 1e-5
    deal: Callable[[Case], list[Case]] | None = None
    assess: Callable[[Plain, Case], Plain] | None = None
    target: LessMemory | LessTime | None = None

    def _repr_markdown_(self) -> str:
        return f"**{self.name}** ({self.points} points)\n\n{self.task}"

    def __repr__(self) -> str:
        return f"Exercise {self.name}, {self.points} points"


def exercises(technique: str) -> list[Exercise]:
    """The exercises of a technique's chapter, in the order in which they are written."""
    module = importlib.import_module(f"{__name__}.{technique}")
    return [thing for thing in vars(module).values() if isinstance(thing, Exercise)]


def find(name: str) -> Exercise:
    """The exercise that asks for a function of this name. Raises ValueError, one line, when none
    does.
    """
    known = []
    for module in pkgutil.iter_modules(__path__):
        for exercise in exercises(module.name):
            if exercise.name == name:
                return exercise
            known.append(exercise.name)
    raise ValueError(
        f"no exercise asks for a function called {name!r}; there are: {', '.join(known)}"
    )


def check(answer: Answer, seed: int | None = None) -> Verdict:
    """Judge a function by the exercise that asks for one of its name, here and now: practice, with
    hints.

    Each call draws fresh cases, unless a seed is given.
    """
    if not callable(answer):
        raise ValueError(
            "check: give it the function itself, as in check(my_function), not "
            f"{type(answer).__name__}"
        )
    return judge(
        find(answer.__name__),
        Here(answer),
        random.SystemRandom().randrange(2**32) if seed is None else seed,
    )
