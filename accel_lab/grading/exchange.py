"""The links between ranks, held by the grader: it carries each message, so it knows what was sent
and who waits for whom.

A rank is asked like any other answer, in a sandbox of its own or, for practice, in a thread. It has
no other way to reach its neighbours.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from time import perf_counter

from torch import Tensor

from accel_lab.grading.limit import TooLong, end

MOST = 256 << 20  # bytes that all ranks together may send in one case


class ExchangeError(RuntimeError):
    """The ranks do not fit together: one line that says which, and where they stand."""


class Exchange:
    """What the ranks of one case say to each other. ``messages[rank]``: the tensors it has sent, or
    given to be summed, in turn.
    """

    def __init__(self, world: int):
        self.messages: list[list[Tensor]] = [[] for _ in range(world)]
        self._under_way: dict[tuple[int, int], deque[Tensor]] = {}
        self._waiting: dict[int, tuple[str, int | None, str]] = {}
        self._given: dict[int, Tensor] = {}
        self._bytes = 0

    def hear(
        self, rank: int, does: object, other: object, tensor: object, where: object
    ) -> dict[int, Tensor]:
        """One thing that a rank does; what is due to which rank now. Raises ExchangeError."""
        world = len(self.messages)
        if does in ("send", "receive") and not (
            type(other) is int and 0 <= other < world and other != rank
        ):
            raise ExchangeError(
                f"rank {rank} cannot {does} {'to' if does == 'send' else 'from'} rank {other!r}: "
                f"there are {world}"
            )
        if does in ("send", "all_reduce"):
            if type(tensor) is not Tensor:
                raise ExchangeError(
                    f"rank {rank} gave {type(tensor).__name__} to {does}, not a tensor"
                )
            self.messages[rank].append(tensor)
            self._bytes += tensor.nbytes + 64
            if self._bytes > MOST:
                raise ExchangeError(f"rank {rank} sends without end")
        if does == "send":
            self._under_way.setdefault((rank, other), deque()).append(tensor)
            return self._delivered(other)
        self._waiting[rank] = str(does), other, str(where)[:100]
        if does == "receive":
            return self._delivered(rank)
        if does == "all_reduce":
            self._given[rank] = tensor
            return self._summed() if len(self._given) == world else {}
        raise ExchangeError(f"rank {rank} does something unknown")

    def _delivered(self, rank: int) -> dict[int, Tensor]:
        does, source, _ = self._waiting.get(rank, ("", None, ""))
        if does == "receive" and self._under_way.get((source, rank)):
            del self._waiting[rank]
            return {rank: self._under_way[source, rank].popleft()}
        return {}

    def _summed(self) -> dict[int, Tensor]:
        kinds = {
            rank: f"{list(tensor.shape)} {str(tensor.dtype)[6:]}"
            for rank, tensor in sorted(self._given.items())
        }
        if len(set(kinds.values())) > 1:
            raise ExchangeError(
                "all_reduce of tensors that differ: "
                + ", ".join(f"rank {rank} has {kind}" for rank, kind in kinds.items())
            )
        first, *others = (tensor for _, tensor in sorted(self._given.items()))
        # the sum has their dtype, whichever it is
        replies = dict.fromkeys(self._given, sum(others, start=first))
        self._given.clear()
        self._waiting.clear()
        return replies

    def stuck(self, finished: set[int]) -> str:
        """'' while somebody can still go on, otherwise why nobody ever will."""
        if not self._waiting or self._waiting.keys() | finished != set(range(len(self.messages))):
            return ""
        stands = [f"rank {rank} {stand}" for rank, stand in self.waiting().items()]
        stands += [f"rank {rank} has finished" for rank in sorted(finished)]
        return "deadlock: " + ", ".join(stands)

    def waiting(self) -> dict[int, str]:
        return {rank: self._stand(rank) for rank in sorted(self._waiting)}

    def _stand(self, rank: int) -> str:
        does, source, where = self._waiting[rank]
        whom = f"rank {source}" if does == "receive" else "all in all_reduce"
        return f"waits in {where} for {whom}" if where else f"waits for {whom}"


class ThreadedLinks:
    """The same exchange for ranks that are threads of this process: practice."""

    def __init__(self, world: int):
        self.exchange, self._lock, self._finished = Exchange(world), threading.Lock(), set()
        self._replies: list[queue.SimpleQueue] = [queue.SimpleQueue() for _ in range(world)]

    def of(self, rank: int) -> _RankLinks:
        return _RankLinks(self, rank)

    def ask(self, rank: int, does: str, other: int | None, tensor: Tensor | None) -> Tensor | None:
        with self._lock:
            try:
                for due, reply in self.exchange.hear(rank, does, other, tensor, "").items():
                    self._replies[due].put(reply)
                self._end_if_stuck()
            except ExchangeError as error:
                self._tell_all(error)
                raise
        if does == "send":
            return None
        reply = self._replies[rank].get()
        if isinstance(reply, ExchangeError):
            raise reply
        return reply

    def finish(self, rank: int) -> None:
        with self._lock:
            self._finished.add(rank)
            self._end_if_stuck()

    def _end_if_stuck(self) -> None:
        if why := self.exchange.stuck(self._finished):
            self._tell_all(ExchangeError(why))

    def _tell_all(self, error: ExchangeError) -> None:
        for replies in self._replies:
            replies.put(error)


class _RankLinks:
    def __init__(self, links: ThreadedLinks, rank: int):
        self._links, self._rank = links, rank

    def send(self, to: int, tensor: Tensor) -> None:
        self._links.ask(self._rank, "send", to, tensor.detach().clone())

    def receive(self, source: int) -> Tensor:
        return self._links.ask(self._rank, "receive", source, None)

    def all_reduce(self, tensor: Tensor) -> None:
        tensor.detach().copy_(
            self._links.ask(self._rank, "all_reduce", None, tensor.detach().clone())
        )


def on_threads(answer, drive, parts: list[dict], seconds: float) -> tuple[list[object], Exchange]:
    """Run ``drive(answer, part, links)`` for each rank's part: what each returned or raised, and
    what they said to each other. A rank that takes longer is ended with TooLong.
    """
    links, came = ThreadedLinks(len(parts)), [None] * len(parts)

    def run(rank: int) -> None:
        try:
            came[rank] = drive(answer, parts[rank], links.of(rank))
        except (Exception, TooLong) as error:
            came[rank] = error
        links.finish(rank)

    threads = [
        threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(len(parts))
    ]
    for thread in threads:
        thread.start()
    until = perf_counter() + max(0.0, seconds)
    for thread in threads:
        thread.join(max(0.0, until - perf_counter()))
    waiting = links.exchange.waiting()
    for rank, thread in enumerate(threads):
        if thread.is_alive() and rank not in waiting:  # the others end when these have
            came[rank] = TooLong()
            end(thread.ident)
    for thread in threads:
        thread.join(1.0)
    return came, links.exchange
