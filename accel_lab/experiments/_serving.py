"""What the parameter server's experiment is made of: batches, mistakes, a witness, timelines."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from accel_lab.parameter_server import Push, Server, flatten, from_anyone
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.ranks.rank import die
from accel_lab.workbench.ranks.world import RankKnobs
from accel_lab.workbench.step import Span

TIMELINE_EVERY = 0.1  # seconds between two updates that bring a timeline


class Trainer:
    """A flat model, and the batch of each number of each worker, the same wherever it is asked."""

    def __init__(self, knobs: RankKnobs, digits: datasets.Data, workers: int, first: int = 0):
        torch.manual_seed(knobs.seed)
        self.model = models.mlp(28 * 28, knobs.width, knobs.width, 10)
        self.weights, self.gradients = flatten(self.model)
        self.knobs, self.digits, self.first = knobs, digits, first
        high = digits.train_y >= 5
        parts = [~high] * (workers - 1) + [high] if workers > 1 else [high | ~high]
        by_digit = [part.nonzero()[:, 0] for part in parts]
        everything = torch.arange(len(high))
        self.pools = by_digit if knobs.shards == "by digit" else [everything] * workers

    def batch(self, worker: int, number: int) -> tuple[Tensor, Tensor]:
        seed = hash((self.knobs.seed, worker, self.first + number)) % 2**63
        pool = self.pools[worker - 1]
        generator = torch.Generator().manual_seed(seed)
        drawn = pool[torch.randint(len(pool), (self.knobs.batch_size,), generator=generator)]
        return self.digits.train_x[drawn], self.digits.train_y[drawn]

    def gradient_of(self, x: Tensor, y: Tensor) -> float:
        """Leave in ``gradients`` those of a batch; returns its loss."""
        self.gradients.zero_()
        loss = cross_entropy(self.model(x), y)
        loss.backward()
        return loss.item()

    def gradient(self, worker: int, number: int) -> float:
        return self.gradient_of(*self.batch(worker, number))

    @torch.no_grad()
    def judged(self) -> dict[str, float]:
        x, y = self.digits.test_x, self.digits.test_y
        right, high = (self.model(x).argmax(1) == y).float(), y >= 5
        return {
            "accuracy_0_4": right[~high].mean().item(),
            "accuracy_5_9": right[high].mean().item(),
        }


def mishap(trainer: Trainer, worker: int, workers: int, number: int) -> None:
    """What happens to the last worker at its tenth gradient, or spoils every fifth."""
    mistake = trainer.knobs.mistake if worker == workers else "none"
    if mistake == "dying worker" and number == 10:
        die()
    if mistake == "stuck worker" and number == 10:
        time.sleep(86_400)
    if mistake == "one worker's NaN" and number % 5 == 4:
        trainer.gradients[0] = math.nan


class Overwriting(Server):
    """Writes the weights that the worker had, less its gradient: the others' updates are lost."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.held = dict.fromkeys(self.clock, self.weights.clone())

    def apply(self, gradient: Tensor, worker: int, share: float) -> bool:
        self.weights.copy_(self.held[worker])
        return super().apply(gradient, worker, share)

    def ready(self) -> list[int]:
        ready = super().ready()
        self.held.update((worker, self.handed_out.clone()) for worker in ready)
        return ready


class Witness:
    """Repeats each push on the server's rank as it should be: gradient, share, update."""

    def __init__(self, trainer: Trainer, server: Server, right: Server):
        knobs = trainer.knobs
        self.trainer = Trainer(knobs, trainer.digits, knobs.workers, trainer.first)
        self.server, self.right = server, right
        self.before = server.weights.clone()
        self.held = dict.fromkeys(server.clock, self.before)

    def error(self, push: Push, refused: bool) -> float:
        """‖Δw − Δw_right‖ / ‖Δw_right‖ of the push that the server has just taken."""
        self.trainer.weights.copy_(self.held[push.worker])
        self.trainer.gradient(push.worker, push.batch)
        if refused:
            self.trainer.gradients.fill_(math.nan)
        self.right.weights.copy_(self.before)
        self.right.apply(self.trainer.gradients, push.worker, 1 / len(self.held))
        answered = set(self.right.waiting) - set(self.server.waiting)
        self.right.ready()
        self.right.waiting = [*self.server.waiting]
        self.held.update((worker, self.server.handed_out.clone()) for worker in answered)
        off = (self.server.weights - self.right.weights).norm().item()
        wanted = (self.right.weights - self.before).norm().item()
        self.before = self.server.weights.clone()
        return off / wanted if wanted else math.nan


@dataclass
class Lanes:
    """What server and workers did when, from the notes of the pushes."""

    zero: float
    slowest: int
    in_rounds: bool
    spans: deque[Span] = field(default_factory=lambda: deque(maxlen=1000))
    given: float = -1.0  # when a timeline was passed on
    since: float = 0.0  # when the server began to wait …
    got: float = 0.0  # … and had a push
    refused: int = 0
    before: float = 0.0  # when the round before began

    def now(self) -> float:
        return perf_counter() - self.zero

    def receive(self, server: Server, note: Tensor) -> int:
        self.since = self.now()
        try:
            worker = from_anyone(note)
        except RuntimeError as error:
            if "Timed out" not in str(error):
                raise
            late = [worker for worker in server.clock if worker not in server.waiting]
            names = ", ".join(map(str, late))
            raise TimeoutError(f"worker {names} pushes no more, and all others wait") from error
        self.got = self.now()
        return worker

    def add(self, push: Push) -> float:
        """Returns the time now."""
        now = self.now()
        _, returned, called, woken, done = push.notes
        for rank, name, start, end in (
            (push.worker, "waiting", returned, called),
            (push.worker, "asleep", called, woken),
            (push.worker, "compute", woken, done),
            (0, "waiting", self.since, self.got),
            (0, "serve", self.got, now),
        ):
            if end - start > 1e-4 or name in ("compute", "serve"):
                self.spans.append(Span(rank, name, start, end))
        return now

    def latest(self, push: Push, former: float) -> tuple[Span, ...]:
        """The spans of the round before, or of the last worker's latest push; now and then.

        They begin at 0 and end where one rank is not known any further: how long a worker waited
        is known when it pushes again.
        """
        before, self.before = self.before, former
        ends = {span.rank: span.end for span in self.spans}
        heard_of_all = len(ends) > self.slowest and (self.in_rounds or push.worker == self.slowest)
        if not heard_of_all or self.got - self.given < TIMELINE_EVERY:
            return ()
        self.given, end = self.got, min(ends.values())
        cycle = push.notes[-1] - push.notes[1]
        start = before if self.in_rounds else end - min(0.06, max(0.01, 1.2 * cycle))
        return tuple(
            replace(span, start=max(span.start, start) - start, end=min(span.end, end) - start)
            for span in self.spans
            if span.end > start and span.start < end
        )
