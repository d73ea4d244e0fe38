"""Practice: what a chapter imports to show its exercises and to check answers.

Help comes as a ladder: what is right already, and a small case where the answer is wrong; a hint
for each misconception that shows; the line of a right answer, folded; and after ``TRIES`` different
answers that were refused a worked solution with its reasoning, folded as well. What does nothing,
returns nothing or crashes in all cases does not count, unless a crash shows a known misconception.
"""

from __future__ import annotations

import dis
import random
from collections import defaultdict
from dataclasses import dataclass
from html import escape
from types import CodeType

from accel_lab.exercises import Answer, Exercise
from accel_lab.grading import lookup, worked
from accel_lab.grading.judging import Verdict, judge
from accel_lab.grading.sides import Here
from accel_lab.workbench import look
from accel_lab.workbench.notebook import points
from accel_lab.workbench.watched import telling

__all__ = ["Practice", "check", "exercises"]

TRIES = 2  # refused answers before a solution is offered
SECONDS = 20.0  # for all that one check asks of an answer
_refused: defaultdict[str, set[tuple]] = defaultdict(set)  # of each exercise, different answers


@dataclass(frozen=True, repr=False)
class Feedback(Verdict):
    """A verdict with the upper rungs of the ladder: ``lines`` of a right answer, a ``solution`` and
    its ``reasoning``; "" as long as they are not offered.
    """

    lines: str = ""
    solution: str = ""
    reasoning: str = ""

    def _repr_html_(self) -> str:
        rungs = [super()._repr_html_()]
        if self.lines:
            rungs.append(_folded("Show the line of a right answer", _code(self.lines)))
        if self.solution:
            why = f"<p>{look.marked_up(self.reasoning)}</p>"
            rungs.append(_folded("Show a worked solution", why + _code(self.solution)))
        return "".join(rungs)


@dataclass(frozen=True, repr=False)
class Practice:
    """An exercise as a chapter shows it: its task, and ``check`` for answers."""

    exercise: Exercise

    def check(self, answer: Answer, seed: int | None = None) -> Feedback:
        """Judge a function here and now, whatever its name. Fresh cases, unless a seed is given.

        Raises ValueError, one line, for what is no function.
        """
        if not callable(answer):
            raise ValueError(
                "check: give it the function itself, as in check(my_function), not "
                f"{type(answer).__name__}"
            )
        seed = random.SystemRandom().randrange(2**32) if seed is None else seed
        name = self.exercise.name
        with telling(f"checking {name}") as say:
            verdict = judge(self.exercise, Here(answer, SECONDS), seed, say)
        if verdict.points == verdict.most:
            points.keep(name, verdict.points)
            return Feedback(**vars(verdict))
        if self._is_a_try(answer, verdict):
            _refused[name].add(_what_it_does(answer))
        solved = len(_refused[name]) >= TRIES
        return Feedback(
            **vars(verdict),
            lines=worked.lines(self.exercise, verdict.hint),
            solution=worked.source(self.exercise.reference) if solved else "",
            reasoning=self.exercise.reasoning if solved else "",
        )

    def _is_a_try(self, answer: Answer, verdict: Verdict) -> bool:
        if not verdict.attempted or _as_given(self.exercise, verdict.hint) or _does_nothing(answer):
            return False
        return bool(verdict.hint) or not verdict.no_answer

    def _repr_markdown_(self) -> str:
        return markdown(self.exercise)

    def __repr__(self) -> str:
        return f"Exercise {self.exercise.name}, {look.counted(self.exercise.points, 'point')}"


def exercises(technique: str) -> list[Practice]:
    """The exercises of a technique's chapter, in the order in which they are written."""
    return [Practice(exercise) for exercise in lookup.exercises(technique)]


def check(answer: Answer, seed: int | None = None) -> Feedback:
    """Judge a function by the exercise that asks for one of its name, here and now.

    Each call draws fresh cases, unless a seed is given. Raises ValueError, one line, when no
    exercise asks for it.
    """
    name = getattr(answer, "__name__", "")
    return Practice(lookup.find(name) if callable(answer) else None).check(answer, seed)


def markdown(exercise: Exercise) -> str:
    return f"**{exercise.name}** ({look.counted(exercise.points, 'point')})\n\n{exercise.task}"


def _as_given(exercise: Exercise, hint: str) -> bool:
    """Whether it is the function that the chapter gives to be repaired: nothing was tried yet."""
    return any(wrong.given and wrong.hint in hint.splitlines() for wrong in exercise.wrong)


def _does_nothing(answer: Answer) -> bool:
    """A body of ``...``, ``pass`` or a docstring alone."""
    code, empty = getattr(answer, "__code__", None), (lambda: None).__code__
    if code is None:
        return False
    ways = [[one.opname for one in dis.get_instructions(body)] for body in (code, empty)]
    returned = [one.argval for one in dis.get_instructions(code) if "CONST" in one.opname]
    return ways[0] == ways[1] and returned == [None]


def _what_it_does(answer: Answer) -> tuple:
    """The same for a cell that is only run again."""
    code = getattr(answer, "__code__", None)
    return (answer,) if code is None else _instructions(code)


def _instructions(code: CodeType) -> tuple:
    inner = (
        _instructions(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts
    )
    return (code.co_code, code.co_names, *inner)


def _folded(title: str, body: str) -> str:
    return f'<details style="margin:4px 0 0 14px"><summary>{title}</summary>{body}</details>'


def _code(source: str) -> str:
    return f'<pre style="padding:4px 10px">{escape(source)}</pre>'
