"""A parameter server on processes of this machine, beside an all-reduce: rules, a slow worker."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import count, islice
from statistics import fmean
from time import perf_counter
from typing import Any, Literal, NamedTuple

import torch.distributed as dist
from pydantic import model_validator
from torch import Tensor

from accel_lab.experiments._serving import Lanes, Overwriting, Trainer, Witness, mishap
from accel_lab.parameter_server import (
    Push,
    Server,
    gradients_per_second,
    local_update,
    meet,
    serve,
    work,
)
from accel_lab.workbench.data import datasets
from accel_lab.workbench.knobs import KnobError, dial
from accel_lab.workbench.loop import NonFiniteLoss, train
from accel_lab.workbench.measure.load import under_watch
from accel_lab.workbench.ranks.checkpoint import Checkpoint, NotACheckpoint
from accel_lab.workbench.ranks.launch import RankFailed, collect, launch, under_torchrun
from accel_lab.workbench.ranks.rank import RankSpanRecorder, die, start_together
from accel_lab.workbench.ranks.wires import bytes_on_the_ring
from accel_lab.workbench.ranks.world import RankKnobs, launch_steps
from accel_lab.workbench.step import Span, Step

SERVED = ("sync", "bounded", "async")  # modes with a server
NOTES = 5  # that come with a push: loss; returned, called, woken, done, in seconds
OF_A_SERVER = ("lost update", "forgotten bound", "momentum on the server", "dying server")


class Knobs(RankKnobs):
    ranks: int = dial(3, ge=1, le=4, description="processes: a server and its workers")
    mode: Literal["all-reduce", "sync", "bounded", "async", "local"] = dial(
        "sync", description="how workers share what they learn"
    )
    slow: float = dial(
        20.0, ge=0, le=100, unit="ms", description="ms asleep per gradient, last worker"
    )
    shards: Literal["mixed", "by digit"] = dial(
        "mixed", description="by digit: 5 to 9 on the last worker alone"
    )
    lag: Literal[0, 1, 2, 4, 8, 16] = dial(0, description="age of the weights that are handed out")
    mistake: Literal[
        "none",
        "lost update",
        "sum instead of mean",
        "forgotten bound",
        "momentum on the server",
        "one worker's NaN",
        "stuck worker",
        "dying worker",
        "dying server",
    ] = dial("none", description="made on purpose")
    learning_rate: float = dial(
        0.2, ge=0.0001, le=10, log=True, panel=False, description="step size of the optimizer"
    )
    bound: int = dial(4, ge=0, le=16, panel=False, description="bounded: pushes ahead, at most")
    every: int = dial(8, ge=1, le=64, panel=False, description="local: updates per average")
    batch_size: int = dial(32, ge=1, le=512, panel=False, description="samples per gradient")
    width: int = dial(64, ge=8, le=1024, panel=False, description="units in each hidden layer")
    momentum: float = dial(0.0, ge=0, lt=1, panel=False, description="of the server's updates")
    discount: bool = dial(False, panel=False, description="divide a push by 1 + staleness")
    judge_every: int = dial(20, ge=1, panel=False, description="gradients between two test runs")
    timeline: bool = dial(True, panel=False, description="record what each rank did when")

    @model_validator(mode="after")
    def _everything_fits(self) -> Knobs:
        if self.ranks < 2:
            raise KnobError("ranks", "1 process is a server without a worker: take 2 or more")
        if self.device == "cuda":
            raise KnobError("device", "a server answers whoever comes first, on the CPU alone")
        if self.mode not in SERVED:
            served = ", ".join(SERVED)
            if self.twin:
                raise KnobError("mode", f"a server repeats each update here: take {served}")
            alone = {"lag": self.lag, "mistake": self.mistake in OF_A_SERVER}
            if needs := next((name for name, wanted in alone.items() if wanted), ""):
                raise KnobError(needs, f"needs a server: mode {served}")
        if self.mistake == "forgotten bound" and self.mode != "bounded":
            raise KnobError("mistake", "'forgotten bound' needs mode bounded")
        return self

    @property
    def workers(self) -> int:
        return self.ranks - 1


def run(knobs: Knobs) -> Generator[Step, None, None]:
    """Train an MLP on 4,000 MNIST digits with a server, or without, until the generator is closed.

    With a server a Step is one update of its weights, by one push or in ``sync`` by a round; its
    seconds are those since the former one, for workers go on while nobody asks. Its metrics:
    loss: mean over the samples of the update, at the weights that the workers had.
    pace: gradients per second of all workers, over the last ones.
    gradients: all until now. slow_share: those of the last worker among them.
    staleness: updates between a pull and its push. ahead: pushes of the fastest over the slowest.
    bytes_moved: received and sent by the server, or by each rank.
    accuracy_0_4, accuracy_5_9: of test digits, now and then.
    refused: pushes that were not finite. lost: workers that have died, which ends all modes but
    ``async``.
    update_error (with ``twin``): ‖Δw − Δw_right‖ / ‖Δw_right‖ of the same pushes, made right.

    Spans: waiting, asleep, compute, serve; rank 0 is the server. Raises RankFailed as ``launch``
    does, NonFiniteLoss when no worker has a finite gradient, and KnobError under torchrun, whose
    ranks have to keep in step, for a mode with a server.
    """
    digits = datasets.mnist5k()
    knobs = knobs.model_copy(update={"device": "cpu"})
    if knobs.mode not in SERVED:
        alone = knobs.model_copy(update={"ranks": knobs.workers})
        yield from launch_steps(train_together, alone, digits)
        return
    if under_torchrun():
        raise KnobError("mode", "torchrun's ranks keep in step: take all-reduce or local")
    options: dict[str, Any] = {"threads": knobs.threads, "timeout": knobs.timeout, "backend": "cpu"}
    options["may_die"] = range(1, knobs.ranks) if knobs.mode == "async" else ()
    lost = 0
    try:
        with closing(launch(serve_or_work, knobs.ranks, knobs, digits, **options)) as stream:
            for _, step in stream:
                if isinstance(step, RankFailed):
                    lost += 1
                else:
                    yield replace(step, metrics=step.metrics | {"lost": lost})
    except RankFailed as failed:
        if isinstance(failed.cause, NonFiniteLoss | NotACheckpoint):
            raise failed.cause from failed
        raise


def share_of(knobs: Knobs, workers: int) -> float:
    return 1.0 if knobs.mistake == "sum instead of mean" else 1 / workers


# ---- with a server ----


def serve_or_work(knobs: Knobs, digits: datasets.Data) -> Iterator[Step]:
    """Serve on rank 0, which yields the Steps; work on the others, which yield nothing."""
    rank = dist.get_rank()
    trainer = Trainer(knobs, digits, knobs.workers)
    saved = Checkpoint(knobs.checkpoint, model=trainer.model)
    trainer.first = saved.updates
    meet(trainer.weights, NOTES)
    zero = start_together()
    if rank:
        work(_computing(trainer, rank, zero), trainer.weights, notes=NOTES)
        return
    steps = _served(trainer, zero)
    for step in saved.steps(steps, knobs.checkpoint_every):
        yield step
        if knobs.mistake == "dying server" and step.index == saved.updates + 10:
            die()


def _computing(trainer: Trainer, worker: int, zero: float) -> Any:
    """What this worker does for each push, and when; zero: of its clock."""
    knobs, workers = trainer.knobs, trainer.knobs.workers
    asleep = knobs.slow / 1e3 if worker == workers else 0.0
    returned = perf_counter() - zero

    def compute(number: int) -> tuple[Tensor, float, Sequence[float]]:
        nonlocal returned
        called = perf_counter() - zero
        if asleep:
            time.sleep(asleep)
        woken = perf_counter() - zero
        loss = trainer.gradient(worker, number)
        mishap(trainer, worker, workers, number)
        done = perf_counter() - zero
        notes, returned = (loss, returned, called, woken, done), done
        return trainer.gradients, share_of(knobs, workers), notes

    return compute


def server_of(knobs: Knobs, weights: Tensor) -> Server:
    """Make the server that the knobs ask for, with its mistake."""
    mistake = knobs.mistake
    momentum = 0.9 if mistake == "momentum on the server" else knobs.momentum
    kind = Overwriting if mistake == "lost update" else Server
    return kind(
        weights,
        range(1, knobs.workers + 1),
        rate=knobs.learning_rate,
        rule="async" if mistake == "forgotten bound" else knobs.mode,
        bound=knobs.bound,
        momentum=momentum,
        lag=knobs.lag,
        discount=knobs.discount,
    )


def _served(trainer: Trainer, zero: float) -> Iterator[Step]:
    """Serve until closed; yield a Step for each update."""
    knobs, in_a_row = trainer.knobs, 0
    server = server_of(knobs, trainer.weights)
    lanes = Lanes(zero, knobs.workers, knobs.mode == "sync")
    witness = None
    if knobs.twin:
        right = server_of(knobs.model_copy(update={"mistake": "none"}), server.weights.clone())
        witness = Witness(trainer, server, right)
    times: deque[float] = deque(maxlen=100)
    pushes = serve(server, notes=NOTES, receive=partial(lanes.receive, server))
    former, losses, moved = 0.0, list[float](), 0
    for number, push in enumerate(pushes, 1):
        now, refused = lanes.add(push), len(server.refused) > lanes.refused
        lanes.refused = len(server.refused)
        in_a_row = in_a_row + 1 if refused else 0
        if in_a_row > 2 * knobs.workers:
            raise NonFiniteLoss(f"no worker's gradient is finite at push {number}: lower the rate")
        losses += [] if refused else [push.notes[0]]
        moved += push.bytes
        times.append(now)
        found = {"update_error": witness.error(push, refused)} if witness else {}
        if not push.updated:
            continue
        if number % knobs.judge_every < len(losses):
            found |= trainer.judged()
        clocks = server.clock.values()
        metrics = {
            "loss": fmean(losses),
            "pace": (len(times) - 1) / (now - times[0]) if len(times) > 1 else math.nan,
            "gradients": number,
            "slow_share": server.clock[knobs.workers] / number,
            "staleness": push.staleness,
            "ahead": max(clocks) - min(clocks),
            "bytes_moved": moved,
            "refused": len(server.refused),
        }
        spans = lanes.latest(push, former) if knobs.timeline else ()
        samples = knobs.batch_size * len(losses)
        yield Step(server.version - 1, samples, now - former, metrics | found, spans)
        former, losses, moved = now, [], 0


# ---- without a server ----


def train_together(knobs: Knobs, digits: datasets.Data) -> Iterator[Step]:
    """Train on one rank by all-reduce or local SGD: the worker, also under torchrun."""
    worker, workers = dist.get_rank() + 1, dist.get_world_size()
    trainer = Trainer(knobs, digits, workers)
    saved = Checkpoint(knobs.checkpoint, model=trainer.model)
    trainer.first, numbers = saved.updates, count()
    meet(trainer.weights)
    spans = RankSpanRecorder()

    def update(x: Tensor, y: Tensor) -> dict[str, float]:
        number = next(numbers)
        if worker == workers and knobs.slow:
            with spans("asleep"):
                time.sleep(knobs.slow / 1e3)
        with spans("compute"):
            loss = trainer.gradient_of(x, y)
            mishap(trainer, worker, workers, number)
        with spans("waiting"):
            moved = exchange(trainer, number, workers)
        return {"loss": loss, "bytes_moved": moved}

    batches = (trainer.batch(worker, number) for number in count())
    steps = train(update, batches, spans=spans if knobs.timeline else None)
    round_of = knobs.every if knobs.mode == "local" else 1  # updates from one meeting to the next
    times: deque[float] = deque(maxlen=round_of)
    for step in saved.steps(steps, knobs.checkpoint_every):
        times.append(step.seconds)
        made = workers * (step.index + 1)
        pace = workers * round_of / sum(times) if len(times) == round_of else math.nan
        metrics = {**step.metrics, "pace": pace, "gradients": made}
        metrics |= {"slow_share": 1 / workers, "staleness": 0.0}
        if made % knobs.judge_every < workers:
            metrics |= trainer.judged()
        yield replace(step, metrics=metrics)


def exchange(
    trainer: Trainer, number: int, workers: int, group: dist.ProcessGroup | None = None
) -> int:
    """Update this rank's weights together with the others; returns bytes received and sent."""
    knobs, weights, gradients = trainer.knobs, trainer.weights, trainer.gradients
    share, rate = share_of(knobs, workers), knobs.learning_rate
    ring = 2 * bytes_on_the_ring(gradients, workers)
    if knobs.mode == "local":
        local_update(weights, gradients, rate, number, knobs.every, share, group=group)
        return ring if (number + 1) % knobs.every == 0 else 0
    dist.all_reduce(gradients.mul_(share), group=group)
    weights.add_(gradients, alpha=-rate)
    return ring


# ---- what the chapter looks at ----


class Outcome(NamedTuple):
    """Of a run of so many gradients. clock: pushes of each worker. pushes: none without a server.
    low, high: accuracy on the test digits 0 to 4, and on 5 to 9; from 0 to 1.
    """

    seconds: float
    clock: dict[int, int]
    low: float
    high: float
    pushes: list[Push]
    weights: Tensor

    @property
    def pace(self) -> float:
        return sum(self.clock.values()) / self.seconds


def outcomes(runs: Sequence[Knobs], gradients: int) -> list[Outcome]:
    """Make so many gradients in each of some runs, one after the other on the same ranks."""
    digits, ranks = datasets.mnist5k(), max(knobs.ranks for knobs in runs)
    with under_watch():
        return collect(_one_after_the_other, ranks, runs, gradients, digits)[0]


def _one_after_the_other(
    runs: Sequence[Knobs], gradients: int, digits: datasets.Data
) -> Iterator[Outcome | None]:
    rank, counts = dist.get_rank(), sorted({knobs.workers for knobs in runs})
    groups = {workers: dist.new_group(range(1, workers + 1)) for workers in counts}
    for knobs in runs:
        trainer = Trainer(knobs, digits, knobs.workers)
        meet(trainer.weights, NOTES)
        zero = start_together()
        if rank == 0:
            yield _led(trainer, gradients, zero)
            continue
        compute = _computing(trainer, rank, zero)
        if rank <= knobs.workers and knobs.mode in SERVED:
            work(compute, trainer.weights, notes=NOTES)
        elif rank <= knobs.workers:
            for number in range(gradients // knobs.workers):
                compute(number)
                exchange(trainer, number, knobs.workers, groups[knobs.workers])
        if rank == 1 and knobs.mode not in SERVED:
            dist.send(trainer.weights, 0)
        yield None


def _led(trainer: Trainer, gradients: int, zero: float) -> Outcome:
    """What rank 0 sees of a run: it serves, or waits for worker 1's weights."""
    knobs, weights = trainer.knobs, trainer.weights
    if knobs.mode not in SERVED:
        dist.recv(weights, 1)
        clock = dict.fromkeys(range(1, knobs.ranks), gradients // knobs.workers)
        return Outcome(perf_counter() - zero, clock, *trainer.judged().values(), [], weights)
    server, pushes, seconds = server_of(knobs, weights), [], 0.0
    for push in serve(server, gradients, notes=NOTES):
        pushes.append(push)
        seconds = perf_counter() - zero
    return Outcome(seconds, server.clock, *trainer.judged().values(), pushes, weights)


def lone(knobs: Knobs) -> Knobs:
    """Take away the other workers and the sleep."""
    changes = {"lag": 0, "mistake": "none", "twin": False, "shards": "mixed"}
    return knobs.turned(ranks=2, mode="async", slow=0.0, **changes)


def predicted_pace(knobs: Knobs, alone: float) -> float:
    """Predict gradients per second: the last worker sleeps, too. alone: seconds of one ``lone``."""
    seconds = [alone] * (knobs.workers - 1) + [alone + knobs.slow / 1e3]
    return gradients_per_second(seconds, waits=knobs.mode != "async")


def a_timeline(knobs: Knobs, which: int = 3) -> tuple[Span, ...]:
    """Run until the third timeline, and return it."""
    with closing(run(knobs)) as steps:
        return [*islice((step.spans for step in steps if step.spans), which)][-1]
