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
from accel_lab.grading.inside.answer import APART, MAP_THRESHOLD, describe, driven
from accel_lab.grading.limit import TooLong, within
from accel_lab.workbench.measure.memory_meter import process_peak

OURS = 600.0  # seconds: an answer of our own ends long before
# glibc's heap: of a block's size, which stands before it, the bit that says that it lies apart
IS_APART = 2
MOST_GAPS = 8192


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
        if isinstance(got, Failure) or peak.grown <= most_bytes:
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
    """Blocks of ``APART`` bytes and more are given back when freed, as in a sandbox: what the
    process holds is what the answer uses. Afterwards they are kept for reuse, as glibc does after
    some time.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    mallopt = getattr(library, "mallopt", None)  # glibc has it, musl does not
    if library is None or mallopt is None:
        yield
        return
    largest = 32 << 20
    mallopt(MAP_THRESHOLD, APART)
    gaps = _gaps(library, APART)
    try:
        yield
    finally:
        for gap in gaps:
            library.__libc_free(ctypes.c_void_p(gap))
        mallopt(MAP_THRESHOLD, largest)


def _gaps(library: ctypes.CDLL, least: int) -> list[int]:
    """All that is free in glibc's heap in pieces of at least so many bytes, taken and not touched:
    there a large block of an answer would lie instead of apart, and stay when freed.
    """
    malloc = library.__libc_malloc  # glibc's, where another allocator stands in front of it, too
    malloc.restype = ctypes.c_void_p
    taken: list[int] = []
    while len(taken) < MOST_GAPS and (place := malloc(ctypes.c_size_t(least))):
        taken.append(place)
        size = ctypes.c_size_t.from_address(place - ctypes.sizeof(ctypes.c_size_t)).value
        if size & IS_APART:
            break
    return taken


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
