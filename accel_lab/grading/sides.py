"""The side that an answer is on: ``Here`` calls the function in this process, for practice;
``sandboxed.Sandboxed`` asks it in a sandbox, for a mark. All else is the same for both.
"""

from __future__ import annotations

import copy
import ctypes
import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from accel_lab.exercises import Case, Exercise, Plain
from accel_lab.grading.exchange import on_threads
from accel_lab.grading.failure import Failure, of_ranks, out_of_memory
from accel_lab.grading.inside import frames
from accel_lab.grading.inside.answer import describe, driven
from accel_lab.grading.limit import TooLong, within
from accel_lab.workbench.measure.memory_meter import process_peak

# times the bytes of a target: what is resident counts more than an answer's own, such as pages of
# libraries that are touched for the first time
RESIDENT = 1.75
OURS = 600.0  # seconds: an answer of our own ends long before


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
    """In this process: for practice, and for answers of our own.

    seconds: what the answer may take for all that it is asked
    """

    def __init__(self, answer: Callable, seconds: float = OURS):
        code = getattr(answer, "__code__", None)
        self._answer, self._file = answer, getattr(code, "co_filename", "")
        self._seconds = self._left = seconds

    def ask(self, exercise: Exercise, case: Case, most_bytes: int | None = None) -> Plain | Failure:
        case = copy.deepcopy(case)
        if most_bytes is None:
            return self._call(exercise, case)[0]
        with _large_memory_apart(), process_peak() as peak:
            got, _ = self._call(exercise, case, as_it_is=True)
        if isinstance(got, Failure) or peak.grown <= RESIDENT * most_bytes:
            return got
        return out_of_memory()

    def ask_again(self, exercise: Exercise, case: Case) -> tuple[Plain | Failure, float]:
        return self._call(exercise, case)

    def _call(
        self, exercise: Exercise, case: Case, as_it_is: bool = False
    ) -> tuple[Plain | Failure, float]:
        """What came, and the seconds that it took."""
        start = perf_counter()
        try:
            if exercise.deal is None:
                with within(self._left):
                    start = perf_counter()
                    got = driven(exercise.drive, self._answer, case)
                    seconds = perf_counter() - start
                return got if as_it_is else _plain(got), seconds
            parts = exercise.deal(case)
            came, exchange = on_threads(self._answer, exercise.drive, parts, self._left)
            outcomes = [
                self._failure(one) if isinstance(one, BaseException) else _plain(one)
                for one in came
            ]
            return of_ranks(outcomes, exchange.messages), perf_counter() - start
        except (Exception, TooLong) as error:
            return self._failure(error), perf_counter() - start
        finally:
            self._left -= perf_counter() - start

    def _failure(self, error: BaseException) -> Failure:
        failure = Failure.said(describe(error, self._file))
        if isinstance(error, TooLong):
            said = f"no answer within {self._seconds:g} s"
            return replace(failure, kind="timeout", text=said)
        return failure

    @contextmanager
    def beside(self, answer: Callable) -> Generator[Here]:
        yield Here(answer)

    @contextmanager
    def still(self) -> Generator[None]:
        yield


@contextmanager
def _large_memory_apart() -> Generator[None]:
    """Blocks of a MB and more are given back when freed, as in a sandbox: what the process holds is
    what the answer uses. Afterwards they are kept for reuse, as glibc does after some time.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    mallopt = getattr(library, "mallopt", lambda *_: None)  # glibc has it, musl does not
    map_threshold, largest = -3, 32 << 20
    mallopt(map_threshold, 1 << 20)
    try:
        yield
    finally:
        mallopt(map_threshold, largest)


def _plain(thing: object) -> Plain:
    """What would have come out of a sandbox. Raises frames.NotPlain."""
    frame = frames.pack(thing)
    header, _ = frames.lengths(frame[: frames.LENGTHS.size])
    start = frames.LENGTHS.size + header
    return frames.unpack(frame[frames.LENGTHS.size : start], frame[start:])


def assessed(exercise: Exercise, got: Plain | Failure, case: Case) -> Plain | Failure:
    """What of an answer counts."""
    if isinstance(got, Failure) or exercise.assess is None:
        return got
    try:
        return exercise.assess(got, copy.deepcopy(case))
    except Exception as error:  # data of another shape than was asked for
        return Failure(type(error).__name__, f"what came back cannot be read: {error}")


def outcome(exercise: Exercise, answer: Callable, case: Case) -> Plain | Failure:
    """Of an answer of ours."""
    return assessed(exercise, Here(answer).ask(exercise, case), case)


def expected(exercise: Exercise, case: Case) -> tuple[Plain | Failure, Plain | Failure]:
    """What is right, as the reference computes it on this case, and on the case in float64."""
    want, doubled = outcome(exercise, exercise.reference, case), _in_double(case)
    if doubled is case:
        return want, want
    return want, outcome(exercise, exercise.reference, doubled)


def _in_double(thing: Plain) -> Plain:
    """With float64 in place of float32; the thing itself where there is none in it."""
    if type(thing) is Tensor:
        return thing.double() if thing.dtype == torch.float32 else thing
    if type(thing) is list:
        inner = [_in_double(one) for one in thing]
        return inner if any(a is not b for a, b in zip(inner, thing, strict=True)) else thing
    if type(thing) is dict:
        inner = {key: _in_double(one) for key, one in thing.items()}
        return inner if any(inner[key] is not thing[key] for key in thing) else thing
    return thing
