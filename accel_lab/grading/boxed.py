"""The side of an answer whose definitions come from a notebook: it is asked in boxes, one for each
rank.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from time import monotonic

from accel_lab.exercises import Case, Exercise
from accel_lab.grading.boxes import Box, converse, request
from accel_lab.grading.comparison import Plain
from accel_lab.grading.exchange import Exchange
from accel_lab.grading.failure import Failure, of_ranks, out_of_memory
from accel_lab.grading.server import Server


class Boxed:
    """In a box: definitions read from a notebook, or any source. ``close`` ends its boxes."""

    def __init__(self, server: Server, statements: list, function: str):
        self._server, self._statements, self._function = server, statements, function
        self._boxes: list[Box] = []
        self._deadline: float | None = None

    def ask(self, exercise: Exercise, case: Case, most_bytes: int | None = None) -> Plain | Failure:
        if exercise.deal is None:
            [got] = self._converse([self._request(exercise, case, bytes=most_bytes)])
            return out_of_memory() if most_bytes is not None and _ran_out_of_memory(got) else got
        parts = exercise.deal(case)
        exchange = Exchange(len(parts))
        requests = [self._request(exercise, part, **{"on wires": True}) for part in parts]
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
        while len(self._boxes) < len(requests):
            self._boxes.append(self._server.open_box())
        self._deadline = (
            self._deadline or monotonic() + self._server.limits.seconds
        )  # the first box may have waited for the server
        return converse(
            self._boxes[: len(requests)], requests, max(0.0, self._deadline - monotonic()), exchange
        )

    def ask_again(self, exercise: Exercise, case: Case) -> tuple[Plain | Failure, float]:
        before = sum(box.computed() for box in self._boxes)
        [got] = self._converse([self._request(exercise, case, again=True)])
        seconds = sum(box.computed() for box in self._boxes) - before
        if seconds <= 0 and not isinstance(got, Failure):
            got = Failure("ended", "the process did not wait to be asked again")
        return got, seconds

    @contextmanager
    def beside(self, answer: Callable) -> Iterator[Boxed]:
        side = Boxed(self._server, [[0, 1, _source(answer)]], answer.__name__)
        try:
            yield side
        finally:
            side.close()

    @contextmanager
    def still(self) -> Iterator[None]:
        with ExitStack() as stack:
            for box in self._boxes:
                stack.enter_context(box.still())
            yield

    def close(self) -> None:
        for box in self._boxes:
            box.close()
        self._boxes.clear()


def _source(function: Callable) -> str:
    return textwrap.dedent(inspect.getsource(function))


def _ran_out_of_memory(got: Plain | Failure) -> bool:
    return isinstance(got, Failure) and (
        got.kind == "MemoryError" or "can't allocate memory" in got.text
    )
