"""Practice: what a chapter imports to show its exercises and to check answers, with hints."""

from __future__ import annotations

import random
from dataclasses import dataclass

from accel_lab.exercises import Answer, Exercise
from accel_lab.grading import lookup
from accel_lab.grading.judging import Verdict, judge
from accel_lab.grading.sides import Here

__all__ = ["Practice", "check", "exercises"]


@dataclass(frozen=True, repr=False)
class Practice:
    """An exercise as a chapter shows it: its task, and ``check`` for answers."""

    exercise: Exercise

    def check(self, answer: Answer, seed: int | None = None) -> Verdict:
        """Judge a function here and now, whatever its name. Fresh cases, unless a seed is given.

        Raises ValueError, one line, for what is no function.
        """
        if not callable(answer):
            raise ValueError(
                "check: give it the function itself, as in check(my_function), not "
                f"{type(answer).__name__}"
            )
        seed = random.SystemRandom().randrange(2**32) if seed is None else seed
        return judge(self.exercise, Here(answer), seed)

    def _repr_markdown_(self) -> str:
        return markdown(self.exercise)

    def __repr__(self) -> str:
        return f"Exercise {self.exercise.name}, {self.exercise.points} points"


def exercises(technique: str) -> list[Practice]:
    """The exercises of a technique's chapter, in the order in which they are written."""
    return [Practice(exercise) for exercise in lookup.exercises(technique)]


def check(answer: Answer, seed: int | None = None) -> Verdict:
    """Judge a function by the exercise that asks for one of its name, here and now.

    Each call draws fresh cases, unless a seed is given. Raises ValueError, one line, when no
    exercise asks for it.
    """
    name = getattr(answer, "__name__", "")
    return Practice(lookup.find(name) if callable(answer) else None).check(answer, seed)


def markdown(exercise: Exercise) -> str:
    return f"**{exercise.name}** ({exercise.points} points)\n\n{exercise.task}"
