"""The side of an answer whose definitions come from a notebook: it is asked in sandboxes, one for
each rank.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from time import monotonic

from accel_lab.exercises import Case, Exercise, Plain
from accel_lab.grading.exchange import Exchange
from accel_lab.grading.factory import SandboxFactory
from accel_lab.grading.failure import Failure, of_ranks, out_of_memory
from accel_lab.grading.sandbox import Sandbox, converse, request


class Sandboxed:
    """In sandboxes: definitions read from a notebook, or any source. ``close`` ends them."""

    def __init__(self, factory: SandboxFactory, statements: list, function: str):
        self._factory, self._statements, self._function = factory, statements, function
        self._sandboxes: list[Sandbox] = []
        self._deadline: float | None = None

    def ask(self, exercise: Exercise, case: Case, most_bytes: int | None = None) -> Plain | Failure:
        if exercise.deal is None:
            [got] = self._converse([self._request(exercise, case, bytes=most_bytes)])
            return out_of_memory() if most_bytes is not None and _ran_out_of_memory(got) else got
        parts = exercise.deal(case)
        exchange = Exchange(len(parts))
        requests = [self._request(exercise, part, linked=True) for part in parts]
        return of_ranks(self._converse(requests, exchange), exchange.messages)

    def _request(self, exercise: Exercise, case: Case, **more: object) -> dict:
        return request(
            self._statements,
            self._function,
            _source(exercise.drive),
            exercise.drive.__name__,
            case,
            **more,
        )

    def _converse(
        self, requests: list[dict], exchange: Exchange | None = None
    ) -> list[Plain | Failure]:
        while len(self._sandboxes) < len(requests):
            self._sandboxes.append(self._factory.open_sandbox())
        if self._deadline is None:  # not before: the first sandbox may have waited for the zygote
            self._deadline = monotonic() + self._factory.limits.seconds
        return converse(
            self._sandboxes[: len(requests)],
            requests,
            max(0.0, self._deadline - monotonic()),
            exchange,
        )

    def ask_again(self, exercise: Exercise, case: Case) -> tuple[Plain | Failure, float]:
        before = sum(sandbox.computed() for sandbox in self._sandboxes)
        [got] = self._converse([self._request(exercise, case, again=True)])
        seconds = sum(sandbox.computed() for sandbox in self._sandboxes) - before
        if seconds <= 0 and not isinstance(got, Failure):
            got = Failure("ended", "the process did not wait to be asked again")
        return got, seconds

    @contextmanager
    def beside(self, answer: Callable) -> Generator[Sandboxed]:
        side = Sandboxed(self._factory, [[0, 1, _source(answer)]], answer.__name__)
        try:
            yield side
        finally:
            side.close()

    @contextmanager
    def still(self) -> Generator[None]:
        with ExitStack() as stack:
            for sandbox in self._sandboxes:
                stack.enter_context(sandbox.still())
            yield

    def close(self) -> None:
        for sandbox in self._sandboxes:
            sandbox.close()
        self._sandboxes.clear()


def _source(function: Callable) -> str:
    return textwrap.dedent(inspect.getsource(function))


def _ran_out_of_memory(got: Plain | Failure) -> bool:
    return isinstance(got, Failure) and (
        got.kind == "MemoryError" or "can't allocate memory" in got.text
    )
