"""A parameter server: one rank keeps the weights; workers pull them and push gradients.

Worker r computes the gradient g_r of its batch, whose *share* of all samples is s_r, at the weights
that it pulled last. The server makes them an update by one of three rules:

    sync      w ← w − η Σ_r s_r g_r     when all have pushed: the update of an all-reduce
    async     w ← w − η s_r g_r         at once, whoever it is; nobody waits
    bounded   as async, but who is more than ``bound`` pushes ahead of the slowest has to wait

If worker r takes t_r seconds for a gradient, W workers make W / max t_r gradients a second where
they wait for each other, and Σ 1/t_r where they do not. The price: while a worker computes, the
others move the weights away. The *staleness* of a push is the number of updates since its pull.
Each update ages the W − 1 gradients under way, so the mean is W − 1, whatever the speeds.

A quadratic of curvature λ is stable under a lag of τ updates up to η = (2/λ) sin(π / (2(2τ + 1))).
In a round the server receives and sends 2·W gradients, each rank of a ring 4(W − 1)/W.
*Local SGD* sends less instead: K updates at each worker by itself, then an average of the weights.

The traps: a server that writes the pulled weights minus the gradient, which erases what others did;
momentum, which adds to what staleness does; a slow worker with data that nobody else has.

Sources: Dean et al. 2012, "Large scale distributed deep networks", section 4.1 (async); Ho et al.
2013, "More effective distributed ML via a stale synchronous parallel parameter server", section 2;
Zhang et al. 2016, arXiv:1511.05950, section 3 (discount); Stich 2019, arXiv:1805.09767 (local SGD);
Levin and May 1976, "A note on difference-delay equations" (the limit of a lag).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import cycle
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from accel_lab.workbench.ranks.rank import RanksDiffer, gather

Rule = Literal["sync", "bounded", "async"]
PATIENCE = timedelta(days=1)  # of a worker: the server may pause, and itself sees who is late
HEADER = 2  # numbers before the notes of a push: its batch, its share
EXACT = torch.float64  # of a note: a batch's number and a time keep their digits
NOTE, VECTOR = 1, 0  # tags: a push is a note and a gradient, an answer whether to go on and weights
Compute = Callable[[int], tuple[Tensor, float, Sequence[float]]]  # batch → gradient, share, notes
Receive = Callable[[Tensor], int]  # receives the note of a push → who has pushed


def flatten(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Move a model's parameters, of one dtype, into a tensor [n], and their gradients into another.

    The model goes on with views of them.
    """
    parameters = list(model.parameters())
    weights = torch.cat([p.detach().flatten() for p in parameters])
    gradients, end = torch.zeros_like(weights), 0
    for p in parameters:
        start, end = end, end + p.numel()
        p.data, p.grad = (one[start:end].view_as(p) for one in (weights, gradients))
    return weights, gradients


def meet(weights: Tensor, notes: int = 0) -> None:
    """Give all ranks rank 0's weights; every rank calls it before any message.

    Raises RanksDiffer, on every rank, when weights or notes differ in number or dtype.
    """
    found = gather(f"{weights.numel()} weights of {weights.dtype}, {notes} notes")
    if len(set(found)) > 1:
        raise RanksDiffer("; ".join(f"rank {rank} has {has}" for rank, has in enumerate(found)))
    dist.broadcast(weights, 0)


# ---- the server: weights, and who may go on ----


class Server:
    """Keeps the weights, applies what is pushed, and decides who gets new weights when.

    weights: flat [n], updated in place. workers: their ranks. rate: η. momentum: of SGD.
    lag: hand out weights this many updates old. discount: divide a push by 1 + its staleness.
    ``clock``: pushes of each worker. ``version``: updates made. ``staleness``: of the last push.
    ``refused``: a line for each push that was not finite. Raises ValueError for wrong options.
    """

    def __init__(
        self,
        weights: Tensor,
        workers: Iterable[int],
        *,
        rate: float,
        rule: Rule = "sync",
        bound: int = 0,
        momentum: float = 0.0,
        lag: int = 0,
        discount: bool = False,
    ):
        self.clock = dict.fromkeys(workers, 0)
        if not self.clock:
            raise ValueError("workers: a server needs at least one")
        if min(bound, lag) < 0:
            raise ValueError(f"bound, lag: {bound}, {lag}; both must be 0 or more")
        self.weights, self.rate, self.rule, self.bound = weights, rate, rule, bound
        self.momentum, self.lag, self.discount = momentum, lag, discount
        self.version, self.staleness, self.refused = 0, 0, list[str]()
        self.waiting: list[int] = []
        self._pulled = dict.fromkeys(self.clock, 0)  # worker → version of the weights it has
        self._round: dict[int, Tensor | None] = {}  # sync: what has been pushed, or refused
        self._shares = 0.0
        self._velocity = torch.zeros_like(weights) if momentum else None
        self._old = deque([weights.clone()] if lag else [], maxlen=lag + 1)

    def apply(self, gradient: Tensor, worker: int, share: float) -> bool:
        """Take a push; returns whether the weights were updated.

        gradient: [n]. share: this worker's part of the samples. A gradient that is not finite is
        left out, and in sync the others' shares make up for it.
        Raises ValueError for another shape, or a worker that is unknown or has not been answered.
        """
        if (there := gradient.shape) != (wanted := self.weights.shape):
            raise ValueError(f"worker {worker} pushes {list(there)}, not {list(wanted)}")
        if worker not in self.clock or worker in self.waiting:
            raise ValueError(f"worker {worker} is unknown, or pushes before it was answered")
        self.staleness = self.version - self._pulled[worker]
        self.clock[worker] += 1
        self.waiting.append(worker)
        share /= 1 + self.staleness * self.discount
        good = bool(torch.stack(torch.aminmax(gradient)).isfinite().all())  # one pass over it
        if not good:
            self.refused.append(f"push {self.clock[worker]} of worker {worker} is not finite")
        if self.rule != "sync":
            return good and self._update(gradient, share)
        self._round[worker] = share * gradient if good else None
        self._shares += share * good
        return len(self._round) == len(self.clock) and self._end_round()

    def _end_round(self) -> bool:
        """Add up in the order of the workers, not of arrival: the same bits in every run."""
        there = [part for worker in self.clock if (part := self._round[worker]) is not None]
        complete, shares = len(there) == len(self._round), self._shares
        self._round, self._shares = {}, 0.0
        return bool(there) and self._update(
            torch.stack(there).sum(0), 1 if complete else 1 / shares
        )

    def _update(self, gradient: Tensor, share: float) -> bool:
        if self._velocity is not None:
            gradient, share = self._velocity.mul_(self.momentum).add_(gradient, alpha=share), 1.0
        self.weights.add_(gradient, alpha=-self.rate * share)
        self.version += 1
        if self.lag:
            self._old.append(self.weights.clone())
        return True

    def may_reply(self, worker: int) -> bool:
        """May this worker have new weights, and go on?"""
        if self.rule == "sync":
            return worker not in self._round
        ahead = self.clock[worker] - min(self.clock.values())
        return self.rule == "async" or ahead <= self.bound

    def ready(self) -> list[int]:
        """Take those who may go on off the waiting list: each is to be sent ``handed_out``."""
        ready = [worker for worker in self.waiting if self.may_reply(worker)]
        self.waiting = [worker for worker in self.waiting if worker not in ready]
        self._pulled.update(dict.fromkeys(ready, max(0, self.version - self.lag)))
        return ready

    @property
    def handed_out(self) -> Tensor:
        """[n], the weights to send: the newest, or those of ``lag`` updates ago."""
        return self._old[0] if self.lag else self.weights


# ---- over the wires: rank 0 serves, the others work ----


class Push(NamedTuple):
    """What a worker pushed. updated: whether the weights changed. bytes: received and sent."""

    worker: int
    batch: int
    notes: tuple[float, ...]
    updated: bool
    staleness: int
    bytes: int


def from_anyone(note: Tensor) -> int:
    """Receive from the worker that comes first."""
    return dist.recv(note, tag=NOTE)


def in_turn(workers: Iterable[int]) -> Receive:
    """Receive in the order of the workers, the plain way: each waits for the one before it."""
    turns = cycle(workers)
    return lambda note: dist.recv(note, next(turns), tag=NOTE)


def serve(
    server: Server, pushes: float = math.inf, *, notes: int = 0, receive: Receive = from_anyone
) -> Iterator[Push]:
    """Serve on rank 0 until so many pushes have come, and then tell the workers to stop.

    notes: numbers that come with each push. receive: takes the next note, by default whoever's.
    Yields each push once those who may go on are answered. Later ones, and an incomplete round of
    ``sync``, are not applied; ``async`` goes on without a worker that has died.
    Ranks must meet before the next run, or a push of it comes too soon.
    """
    note, gradient = torch.empty(HEADER + notes, dtype=EXACT), torch.empty_like(server.weights)
    goes_on, number = torch.tensor([pushes > 0], dtype=EXACT), 0
    while goes_on:
        worker = receive(note)
        try:
            dist.recv(gradient, worker, tag=VECTOR)
        except RuntimeError:  # it has died amid its push
            continue
        number += 1
        goes_on[0] = number < pushes
        batch, share, *noted = note.tolist()
        updated = server.apply(gradient, worker, share)
        ready = server.ready() if goes_on else server.waiting
        for each in ready:
            _answer(each, goes_on, server.handed_out)
        moved = note.nbytes + gradient.nbytes + len(ready) * (goes_on.nbytes + gradient.nbytes)
        yield Push(worker, round(batch), tuple(noted), updated, server.staleness, moved)
    for worker in server.clock.keys() - server.waiting:  # a push of each is under way
        with suppress(RuntimeError):
            dist.recv(note, worker, tag=NOTE), dist.recv(gradient, worker, tag=VECTOR)
            _answer(worker, goes_on, server.handed_out)


def _answer(worker: int, goes_on: Tensor, weights: Tensor) -> None:
    with suppress(RuntimeError):  # it has died since its push
        for message in _messages(dist.isend, worker, goes_on, weights):
            message.wait()


def work(compute: Compute, weights: Tensor, *, notes: int = 0) -> int:
    """Compute, push, pull, until the server says stop; returns the number of pushes.

    compute: gives gradient [n], share and notes for the batch of a number, from 0 on.
    weights: [n], those that compute reads; replaced in place by each pull.
    Raises ValueError for a gradient, or notes, that are not as the server expects them.
    """
    goes_on, batch = torch.ones(1, dtype=EXACT), 0
    while goes_on:
        gradient, share, noted = compute(batch)
        note = torch.tensor([batch, share, *noted], dtype=EXACT)
        _check(gradient, weights, len(noted), notes)
        pushed = _messages(dist.isend, 0, note, gradient)
        for message in pushed + _messages(dist.irecv, 0, goes_on, weights):
            message.wait(PATIENCE)
        batch += 1
    return batch


def _check(gradient: Tensor, weights: Tensor, *notes: int) -> None:
    given, wanted = (
        f"{list(one.shape)} of {one.dtype} and {number} notes"
        for one, number in zip((gradient, weights), notes, strict=True)
    )
    if given != wanted:
        raise ValueError(f"compute gives {given}, not {wanted}")


def _messages(send_or_receive: Callable, rank: int, note: Tensor, vector: Tensor) -> list:
    """A push or an answer: a few numbers, and a vector that is copied nowhere."""
    both = (note, NOTE), (vector, VECTOR)
    return [send_or_receive(tensor, rank, tag=tag) for tensor, tag in both]


def replay(
    arrivals: Iterable[int],
    server: Server,
    gradient: Callable[[Tensor, int, int], tuple[Tensor, float]],
) -> Tensor:
    """Repeat a run in one process: the order of arrival is all that a race leaves open.

    arrivals: the worker of each push. server: with the weights of the start, updated in place.
    gradient: (weights, worker, batch) → gradient [n], share. Returns the weights at the end.
    """
    held = dict.fromkeys(server.clock, server.weights.clone())
    for worker in arrivals:
        pushed, share = gradient(held[worker], worker, server.clock[worker])
        server.apply(pushed, worker, share)
        held.update((each, server.handed_out.clone()) for each in server.ready())
    return server.weights


def local_update(
    weights: Tensor, gradient: Tensor, rate: float, number: int, every: int, share: float, **of: Any
) -> None:
    """Local SGD: update this rank's weights [n] in place; average all ranks' after every K-th.

    number: of this update, from 0. every: K. share: this rank's part of the samples. of: a group.
    """
    weights.add_(gradient, alpha=-rate)
    if (number + 1) % every == 0:
        dist.all_reduce(weights.mul_(share), **of)


def delayed(
    gradient: Callable[[Tensor, int], Tensor], weights: Tensor, rate: float, lag: int, updates: int
) -> Iterator[Tensor]:
    """SGD in one process, by gradients at the weights of ``lag`` updates ago; yields the weights.

    gradient: (weights, number of the update) → its gradient, of the shape of the weights.
    Raises ValueError when lag is below 0, or no less than the updates: none would see a new weight.
    """
    if not 0 <= lag < updates:
        raise ValueError(f"lag: {lag} is not within 0 and the {updates} updates, less one")
    old = deque([weights], maxlen=lag + 1)
    for number in range(updates):
        weights = weights - rate * gradient(old[0], number)
        old.append(weights)
        yield weights


def largest_rate(curvature: float, lag: int) -> float:
    """Predict the largest stable learning rate on a quadratic of this curvature."""
    return 2 / curvature * math.sin(math.pi / (2 * (2 * lag + 1)))


def gradients_per_second(seconds: Sequence[float], waits: bool) -> float:
    """Predict the pace of workers that take so many seconds each, and may wait for each other."""
    return len(seconds) / max(seconds) if waits else sum(1 / each for each in seconds)
