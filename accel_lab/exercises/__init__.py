"""Exercises: what is asked, how an answer is judged, and the wrong answers that must be refused.

Plain data only: what judges them is ``accel_lab.grading``. One file for each technique, all written
alike. For a function ``mend`` that learners are to write, in this order:

- ``mend_cases(rng)``: fresh cases from a seed, at least two; ``mend_large(rng)``: that of a target
- ``mend_deal(case)``: one part for each rank, where the answer runs on several
- ``mend_drive(answer, case)``: asks the answer, returns plain data; its source stands by itself
- ``mend_assess(returned, case)``: on the trusted side, what of it counts
- ``mend``: the reference, written out, so that its source can be changed
- ``_without_this``, ``_with_that``: wrong answers that take more than a changed line
- ``MEND = Exercise(name="mend", …)``

A wrong answer stands for one misconception and has a hint of its own. Most are the reference with
one place changed (``Wrong.changed``): two of those can be combined, and a learner who makes both
mistakes gets both hints. Random data come from ``exercises._data``.
"""

from __future__ import annotations

import inspect
import linecache
import random
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from torch import Tensor

Plain = None | bool | int | float | str | Tensor | list["Plain"] | dict[str, "Plain"]
Case = dict[str, Plain]
Answer = Callable[..., object]
_CHANGES = count(1)


def changed(function: Answer, old: str, new: str) -> Answer:
    """The function with one place of its source changed.

    Raises ValueError when ``old`` does not occur exactly once. The changed source can be read with
    ``inspect.getsource``, as a sandbox needs it.
    """
    source = textwrap.dedent(inspect.getsource(function))
    if source.count(old) != 1:
        raise ValueError(f"{function.__name__} has {old!r} {source.count(old)} times, not once")
    source = source.replace(old, new)
    file = f"<{function.__module__}.{function.__name__}, change {next(_CHANGES)}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    names: dict[str, Answer] = {}
    exec(compile(source, file, "exec"), function.__globals__, names)
    return names[function.__name__]


@dataclass(frozen=True)
class Wrong:
    """A wrong answer that people give, and what to tell them.

    also: other ways to write the same mistake · change: (function, old, new), where ``answer`` is
    that function with one place changed · given: it is what the chapter gives to be repaired.
    """

    answer: Answer
    hint: str
    also: tuple[Answer, ...] = ()
    change: tuple[Answer, str, str] | None = None
    given: bool = False

    @classmethod
    def changed(
        cls, reference: Answer, old: str, new: str, hint: str, also: tuple[Answer, ...] = ()
    ) -> Wrong:
        """The reference with one place changed. Raises ValueError unless ``old`` is there once."""
        return cls(changed(reference, old, new), hint, also, (reference, old, new))

    @property
    def answers(self) -> tuple[Answer, ...]:
        return (self.answer, *self.also)


@dataclass(frozen=True)
class LessMemory:
    """A target: one larger case within so many bytes, beyond what is there when it is asked.

    bytes: three times what the reference takes, or more, and a third of what each answer of
    ``refuses`` takes, or less, so that luck decides nothing.
    """

    case: Callable[[random.Random], Case]
    bytes: int
    refuses: Wrong


@dataclass(frozen=True)
class LessTime:
    """A target: at most ``ratio`` of the time of a plain answer, ``refuses``, on larger cases.

    The plain answer's source stands by itself: it is asked where this package is not.
    """

    case: Callable[[random.Random], Case]
    ratio: float
    refuses: Wrong


@dataclass(frozen=True)
class Exercise:
    """What is asked of learners.

    name: of the function to write · points · task: Markdown · cases(rng): fresh cases, at least two
    · drive(answer, case) → plain data; its source must stand by itself, imports included, for it
    runs where this package is not, beside the learner's code · reference: the right answer ·
    reasoning: why it is right, Markdown, for who has tried · wrong: what must be refused ·
    tolerance: of floating-point results, see ``grading.difference``.

    deal(case): one part for each rank, when the answer is to run on several; ``drive(answer, part,
    links)`` then runs on each, and the links' ``send(to, tensor)``, ``receive(source)`` and
    ``all_reduce(tensor)`` are all that a rank has of the others. assess(returned, case): what of it
    counts. This runs on the trusted side, so here belongs whatever judges; of ranks it gets
    {"ranks": what each returned, "messages": the tensors that each sent}. target: what a right
    answer must reach as well.

    The right result is computed in float64, on the case's float32 tensors in float64; so a driver
    that makes a model gives it the dtype of the case.
    """

    name: str
    points: int
    task: str
    cases: Callable[[random.Random], Iterator[Case]]
    drive: Callable[..., Plain]
    reference: Answer
    wrong: tuple[Wrong, ...]
    reasoning: str = ""
    tolerance: float = 1e-5
    deal: Callable[[Case], list[Case]] | None = None
    assess: Callable[[Plain, Case], Plain] | None = None
    target: LessMemory | LessTime | None = None
