"""Data parallelism on processes of this machine: methods, bytes, overlap, and famous mistakes."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from accel_lab.ddp import (
    Bucket,
    Buckets,
    Parameters,
    all_gather_turns,
    average_flat,
    average_per_parameter,
    broadcast_state,
    reduce_scatter_turns,
    ring_all_reduce,
    ring_exchange,
    sharded,
    trainable,
)
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.knobs import dial
from accel_lab.workbench.loop import NonFiniteLoss, train
from accel_lab.workbench.measure.load import under_watch
from accel_lab.workbench.measure.proof import Twin
from accel_lab.workbench.ranks.checkpoint import Checkpoint
from accel_lab.workbench.ranks.rank import RankSpanRecorder, device_of_rank, die
from accel_lab.workbench.ranks.world import RankKnobs, launch_steps
from accel_lab.workbench.spans import SpanRecorder
from accel_lab.workbench.step import Span, Step


class Knobs(RankKnobs):
    method: Literal["buckets", "flat", "per parameter", "ring"] = dial(
        "buckets", description="how gradients are averaged"
    )
    bucket_mib: float = dial(
        1.0, ge=0.0625, le=64, log=True, unit="MiB", description="gradients per message"
    )
    width: int = dial(
        256, ge=8, le=4096, log=True, description="units in each of the two hidden layers"
    )
    batch_size: int = dial(
        128, ge=1, le=1024, log=True, description="samples per update, over all ranks"
    )
    mistake: Literal[
        "none",
        "skip the division",
        "forget the broadcast",
        "same shard everywhere",
        "wrong rank order",
        "mismatched shapes",
        "slow rank",
        "dying rank",
        "the article's formula",
    ] = dial("none", description="a famous mistake, or mishap")
    wire: Literal["network", "auto"] = dial(
        "network", panel=False, description="auto: shared memory where ranks have it"
    )
    compress: bool = dial(False, panel=False, description="send gradients as bfloat16")
    micro_batches: int = dial(
        1, ge=1, le=16, panel=False, description="backward passes per update on each rank"
    )
    no_sync: bool = dial(
        True, panel=False, description="send only after the last of the micro-batches"
    )
    momentum: float = dial(
        0.9, ge=0, lt=1, panel=False, description="part of the last update that the next one keeps"
    )
    timeline: bool = dial(True, panel=False, description="record what each rank did when")


def run(knobs: Knobs) -> Generator[Step, None, None]:
    """Train an MLP on 4,000 MNIST digits, on several ranks, until the generator is closed.

    A Step is one update of all ranks. Its metrics:
    loss: mean over the whole batch.
    bytes_sent: by each rank.
    seconds_waited: by each rank, for messages that backward did not hide.
    update_error (with ``twin``): ‖Δw − Δw_one‖ / ‖Δw_one‖ against one process with the whole batch.

    Spans of each rank (with ``timeline``): forward, backward, optimizer step, and the time that
    each bucket or chunk travelled. Raises RankFailed as ``launch`` does.
    """
    digits = datasets.mnist5k()
    yield from launch_steps(train_on_this_rank, knobs, digits.train_x, digits.train_y)


def train_on_this_rank(knobs: Knobs, images: Tensor, labels: Tensor) -> Iterator[Step]:
    """Train on one rank: the worker, the same under ``launch`` and under torchrun.

    images, labels: [n, 1, 28, 28] and [n], the whole data set.
    """
    rank, world, device = dist.get_rank(), dist.get_world_size(), device_of_rank()
    is_faulty = rank == world - 1  # the rank that mishaps happen to
    images, labels = images.to(device), labels.to(device)
    torch.manual_seed(knobs.seed + rank)  # every rank starts from different weights …
    width = knobs.width + (is_faulty and knobs.mistake == "mismatched shapes")
    model = models.mlp(images[0].numel(), width, width, 10).to(device)
    if knobs.mistake != "forget the broadcast":
        broadcast_state(model)  # … and takes rank 0's
    optimizer = torch.optim.SGD(model.parameters(), lr=knobs.learning_rate, momentum=knobs.momentum)
    saved = Checkpoint(knobs.checkpoint, model=model, optimizer=optimizer)
    spans = RankSpanRecorder(device)
    record = spans if knobs.timeline else lambda name: nullcontext()
    parallel = _averager(knobs, model, spans if knobs.timeline else None, is_faulty)
    batch = torch.empty(0)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal batch
        shard = 0 if knobs.mistake == "same shard everywhere" else rank
        for mine, batch in sharded(
            len(images), knobs.batch_size, shard, world, knobs.seed, saved.updates
        ):
            parallel.share = 1.0 if knobs.mistake == "skip the division" else len(mine) / len(batch)
            yield images[mine], labels[mine]

    def update(x: Tensor, y: Tensor) -> dict[str, Tensor | float]:
        sent, waited = parallel.bytes_sent, parallel.seconds_waited
        optimizer.zero_grad()
        if is_faulty and knobs.mistake == "slow rank":
            with record("asleep"):
                time.sleep(0.05)
        loss = _backward(model, x, y, knobs, parallel, record)
        if isinstance(parallel, AfterBackward):
            with record("all-reduce"):
                parallel.average()
        with record("optimizer step"):
            if knobs.mistake == "the article's formula":
                article_update(parallel.parameters)
            else:
                optimizer.step()
        return {
            "loss": loss,
            "bytes_sent": parallel.bytes_sent - sent,
            "seconds_waited": parallel.seconds_waited - waited,
        }

    def in_one_process(
        model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
    ) -> None:
        optimizer.zero_grad()
        cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()

    twin = Twin(model, optimizer, in_one_process) if knobs.twin else None
    steps = train(update, twin.ahead_of(batches()) if twin else batches(), spans=spans)
    for step in saved.steps(steps, knobs.checkpoint_every):
        error = {"update_error": twin.error()} if twin else {}
        yield replace(step, metrics={**step.metrics, **error})
        if is_faulty and knobs.mistake == "dying rank" and step.index == saved.updates + 4:
            die()


def _averager(
    knobs: Knobs, model: nn.Module, spans: SpanRecorder | None, is_faulty: bool
) -> Buckets | AfterBackward:
    parameters = list(trainable(model).items())
    if not (is_faulty and knobs.mistake == "wrong rank order"):
        parameters.reverse()
    if knobs.method == "buckets":
        options = {"bucket_mib": knobs.bucket_mib, "compress": knobs.compress, "wire": knobs.wire}
        return RecordedBuckets(dict(parameters), spans, **options)
    if knobs.method == "per parameter":
        return AfterBackward(dict(parameters), average_per_parameter)
    reduce = partial(ring_all_reduce, spans=spans) if knobs.method == "ring" else dist.all_reduce
    return AfterBackward(dict(parameters), partial(average_flat, all_reduce=reduce))


def _backward(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    knobs: Knobs,
    parallel: Buckets | AfterBackward,
    record: Callable[[str], Any],
) -> Tensor:
    """Run forward and backward in micro-batches; returns the mean loss of x, 0 without samples."""
    parts = list(
        zip(x.tensor_split(knobs.micro_batches), y.tensor_split(knobs.micro_batches), strict=True)
    )
    total = torch.zeros((), device=x.device)
    for part, (x_part, y_part) in enumerate(parts, 1):
        with record("forward"):
            loss = cross_entropy(model(x_part), y_part, reduction="sum") / max(1, len(y))
        quiet = part < len(parts) and knobs.no_sync and isinstance(parallel, Buckets)
        with parallel.no_sync() if quiet else nullcontext(), record("backward"):
            loss.backward()
        total += loss.detach()
    return total


class AfterBackward:
    """Averages by one of the plain ways, and counts as Buckets does."""

    def __init__(self, parameters: Parameters, rule: Callable[[Parameters, float], int]):
        self.parameters, self.rule, self.share = parameters, rule, 1 / dist.get_world_size()
        self.bytes_sent, self.seconds_waited = 0, 0.0

    def average(self) -> None:
        start = time.perf_counter()
        self.bytes_sent += self.rule(self.parameters, self.share)
        self.seconds_waited += time.perf_counter() - start


class RecordedBuckets(Buckets):
    """Buckets that record when each of them travelled.

    A thread waits for each message too, and so sees when it is through, not when somebody asks.
    """

    def __init__(self, parameters: Parameters, spans: SpanRecorder | None, **options: Any):
        super().__init__(parameters, **options)
        self.spans, self._watcher = spans, ThreadPoolExecutor(1) if spans else None

    def send(self, bucket: Bucket) -> None:
        super().send(bucket)
        if self.spans:
            start = self.spans.now()
            watched = self._watcher.submit(self._watch, bucket.message, bucket.name, start)
            bucket.message = _Watched(watched)

    def _watch(self, message: Any, name: str, start: float) -> None:
        message.wait()
        self.spans.taken.append(Span(self.spans.rank, name, start, self.spans.now()))


@dataclass
class _Watched:
    future: Future

    def wait(self) -> None:
        self.future.result()


def article_update(parameters: Parameters) -> None:
    """Update by a popular formula: new = average(old + gradient × ranks).

    It has no learning rate, climbs instead of descending, and climbs faster with more ranks.
    """
    world = dist.get_world_size()
    with torch.no_grad():
        for parameter in parameters.values():
            parameter += parameter.grad * world
            dist.all_reduce(parameter.detach())
            parameter /= world


# ---- what the chapter looks at ----


def predicted_bytes_sent(knobs: Knobs) -> float:
    """Predict the bytes that each rank sends per update: 2(p − 1)/p of the gradient, on p ranks."""
    model = models.mlp(28 * 28, knobs.width, knobs.width, 10)
    gradient = sum(parameter.nbytes for parameter in model.parameters())
    return 2 * (knobs.ranks - 1) / knobs.ranks * gradient


def typical_update(knobs: Knobs, updates: int = 14, warmup: int = 4) -> Step:
    """Run some updates; return the one that takes the median time."""
    with under_watch(), closing(run(knobs)) as steps:
        taken = list(islice(steps, updates))[warmup:]
    return sorted(taken, key=lambda step: step.seconds)[len(taken) // 2]


def losses_until_it_ends(knobs: Knobs, updates: int = 25) -> tuple[dict[int, float], str]:
    """Run at most so many updates; return {update: loss}, and why it ended early, or ''."""
    losses: dict[int, float] = {}
    with closing(run(knobs)) as steps:
        try:
            losses.update((step.index, step.metrics["loss"]) for step in islice(steps, updates))
        except NonFiniteLoss as error:
            return losses, str(error)
    return losses, ""


def ring_turn_by_turn() -> Iterator[tuple[int | None, list[int]]]:
    """Add up ones on the ring: the worker of one rank, which has as many chunks as there are ranks.

    Yields, at first and after each turn, the chunk just received, and what it holds of each chunk:
    the number of ranks whose contributions are in it.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    chunks = list(torch.ones(world).split(1))
    yield None, [int(chunk) for chunk in chunks]
    for out, into in reduce_scatter_turns(rank, world):
        arrived = torch.empty_like(chunks[into])
        ring_exchange(chunks[out], arrived)
        chunks[into] += arrived
        yield into, [int(chunk) for chunk in chunks]
    for out, into in all_gather_turns(rank, world):
        ring_exchange(chunks[out], chunks[into])
        yield into, [int(chunk) for chunk in chunks]


def recorded_ring(n: int, warmup: int = 3) -> Iterator[Span]:
    """All-reduce n numbers on the ring: the worker of one rank, which yields its spans: when it
    passed on ``chunk A``, and so on.
    """
    spans, gradient = RankSpanRecorder(), torch.ones(n)
    for _ in range(warmup + 1):
        spans.restart()
        ring_all_reduce(gradient, spans)
    for span in spans.taken:
        chunk = int(span.name.removeprefix("chunk "))
        yield replace(span, name=f"chunk {chr(ord('A') + chunk)}")
