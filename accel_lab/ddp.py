"""Data parallelism: every rank holds the whole model and a part of each batch; their gradients are
averaged.

The loss of a batch of n samples is a mean. If rank r has n_r of them, and L_r is its mean loss,

    ∇L = Σ_r (n_r/n) ∇L_r

so each rank weighs its gradient by its *share* n_r/n, all add up what they have (an *all-reduce*),
and then every rank makes the same update: weights that began equal stay equal, and equal those of
one process with the whole batch. What a popular formula says, new = average(old + gradient ×
ranks), has no learning rate, climbs instead of descending, and by a step that grows with the ranks;
``article_update`` is that formula, to be watched.

An all-reduce of b bytes over p ranks takes each of them at least 2(p−1)/p · b bytes to send: the
ring does just that (Patarasuk & Yuan 2009, "Bandwidth optimal all-reduce algorithms", section 3).
Backward finishes the last layer's gradients first, so sending can begin while it still works:
gradients are collected in *buckets*, each sent as soon as it is full (Li et al. 2020, "PyTorch
Distributed", arXiv:2006.15704, section 3.2). Where ranks outnumber idle cores nothing is hidden by
that: carrying bytes is work too.

The traps: ranks that begin from different weights; a shard that is the same everywhere; a mean of
means over shards that differ in size; collectives that ranks call in different orders, which add up
unlike things without a word.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.knobs import dial
from accel_lab.workbench.loop import train
from accel_lab.workbench.measure.proof import Twin
from accel_lab.workbench.ranks.checkpoint import Checkpoint
from accel_lab.workbench.ranks.rank import (
    RanksDiffer,
    RankSpanRecorder,
    device_of_rank,
    die,
    gather,
)
from accel_lab.workbench.ranks.wires import Network, SharedMemory, bytes_on_the_ring, wire_for
from accel_lab.workbench.ranks.world import RankKnobs, launch_steps
from accel_lab.workbench.step import Span, Step

Parameters = dict[str, nn.Parameter]  # those that get a gradient, by name; a tied one is in it once

# ---- the collective ----


def ring_moves(rank: int, world: int) -> Iterator[tuple[int, int, bool]]:
    """(chunk to send right, chunk to receive from the left, add it or take it over) at each of the
    ring's 2(world−1) turns.

    In the first half sums grow on their way round, until each rank has one chunk complete; in the
    second these go round.
    """
    for turn in range(world - 1):
        yield (rank - turn) % world, (rank - turn - 1) % world, True
    for turn in range(world - 1):
        yield (rank - turn + 1) % world, (rank - turn) % world, False


def ring_all_reduce(tensor: Tensor, spans: RankSpanRecorder | None = None) -> None:
    """Replace a contiguous tensor by its sum over all ranks, with nothing but messages between
    neighbours.

    spans: where to record when each chunk went on to the next rank, as ``chunk 2``.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    left, right = (rank - 1) % world, (rank + 1) % world
    chunks = tensor.view(-1).tensor_split(world)
    inbox = torch.empty_like(chunks[0])  # the first chunk is the largest
    for out, into, adds in ring_moves(rank, world):
        arrived = inbox[: len(chunks[into])] if adds else chunks[into]
        with spans(f"chunk {out}") if spans else nullcontext():
            messages = [
                dist.P2POp(dist.irecv, arrived, left),
                dist.P2POp(dist.isend, chunks[out], right),
            ]
            for message in dist.batch_isend_irecv(messages):
                message.wait()
        if adds:
            chunks[into].add_(arrived)


# ---- averaging, the plain ways: after backward ----


def average_each(parameters: Parameters, share: float) -> int:
    """One all-reduce per parameter: simple, and for many small parameters all waiting. Returns the
    bytes this rank sent.
    """
    for parameter in parameters.values():
        dist.all_reduce(parameter.grad.mul_(share))
    return sum(bytes_on_the_ring(parameter.grad) for parameter in parameters.values())


def average_flat(
    parameters: Parameters, share: float, all_reduce: Callable[[Tensor], Any] = dist.all_reduce
) -> int:
    """All gradients in one long tensor, one all-reduce. Returns the bytes this rank sent."""
    gradients = [parameter.grad for parameter in parameters.values()]
    flat = torch.cat([gradient.flatten() for gradient in gradients]).mul_(share)
    all_reduce(flat)
    for gradient, averaged in zip(
        gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True
    ):
        gradient.copy_(averaged.view_as(gradient))
    return bytes_on_the_ring(flat)


class Afterwards:
    """Averages by one of the plain ways, ``rule``, and counts as Buckets does."""

    def __init__(self, parameters: Parameters, rule: Callable[[Parameters, float], int]):
        self.parameters, self.rule, self.share = parameters, rule, 1 / dist.get_world_size()
        self.bytes_sent, self.seconds_waited = 0, 0.0

    def average(self) -> None:
        start = time.perf_counter()
        self.bytes_sent += self.rule(self.parameters, self.share)
        self.seconds_waited += time.perf_counter() - start


# ---- averaging while backward works ----


class UnusedParameters(RuntimeError):
    """A parameter got no gradient in this backward pass: the other ranks may be waiting for it."""


@dataclass(eq=False)
class Bucket:
    """A piece of all gradients, sent as soon as all of it is there."""

    name: str
    wire: Network | SharedMemory
    piece: slice
    parameters: int = 0  # how many have a part in this bucket …
    missing: int = 0  # … and how many of them have no gradient yet
    message: Any = None


class Buckets:
    """Averages the gradients of ``parameters`` over all ranks while backward still works; they are
    whole when it returns.

    The parameters' order is the order in which they are packed and sent, and must be the same on
    all ranks: best that in which backward reaches them. bucket_mib: MiB of gradients per message ·
    compress: send bfloat16, half the bytes and 8 bits of mantissa · wire: ``auto`` or ``network``,
    see ``wire_for`` · spans: where to record when each bucket travelled. ``share``: this rank's
    part of the batch, to be set before backward where it is not 1/world. ``bytes_sent`` and
    ``seconds_waited`` count since the start. Raises UnusedParameters, from ``backward``, when a
    parameter got no gradient.
    """

    def __init__(
        self,
        parameters: Parameters,
        *,
        bucket_mib: float = 8.0,
        compress: bool = False,
        wire: str = "auto",
        spans: RankSpanRecorder | None = None,
    ):
        self.parameters, self.spans = parameters, spans
        self.share = 1 / dist.get_world_size()
        self.bytes_sent, self.seconds_waited = 0, 0.0
        self._syncs, self._pass = True, None
        self._watcher = ThreadPoolExecutor(1) if spans else None
        self._home: dict[nn.Parameter, tuple[Tensor, slice, list[Bucket]]] = {}
        self.buckets: list[Bucket] = []
        for kind in sorted(
            {(parameter.dtype, parameter.device) for parameter in parameters.values()}, key=str
        ):
            alike = [
                parameter
                for parameter in parameters.values()
                if (parameter.dtype, parameter.device) == kind
            ]
            flat = alike[0].new_zeros(sum(parameter.numel() for parameter in alike))
            self._pack(
                alike,
                wire_for(flat, compress, wire),
                max(1, int(bucket_mib * 2**20) // flat.element_size()),
            )
        if dist.get_world_size() > 1:
            for parameter in parameters.values():
                parameter.register_post_accumulate_grad_hook(self._has_gradient)

    def _pack(
        self, parameters: list[nn.Parameter], wire: Network | SharedMemory, size: int
    ) -> None:
        """All gradients in one flat tensor, cut into buckets of one size; a large parameter lies in
        several.
        """
        starts = range(0, len(wire.flat), size)
        buckets = [
            Bucket(f"bucket {i}", wire, slice(start, start + size))
            for i, start in enumerate(starts, len(self.buckets))
        ]
        end = 0
        for parameter in parameters:
            start, end = end, end + parameter.numel()
            touched = buckets[start // size : (end - 1) // size + 1]
            self._home[parameter] = (
                wire.flat[start:end].view_as(parameter),
                slice(start, end),
                touched,
            )
            for bucket in touched:
                bucket.parameters += 1
        self.buckets += buckets

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes in here only add to the gradients; the next one outside averages the sum.
        For accumulation.
        """
        self._syncs = False
        try:
            yield
        finally:
            self._syncs = True

    def _has_gradient(self, parameter: nn.Parameter) -> None:
        if not self._syncs:
            return
        if self._pass != (now := torch._C._current_graph_task_id()):
            self._begin(now)
        home, place, buckets = self._home[parameter]
        torch.mul(
            parameter.grad,
            self.share,
            out=self._outgoing[buckets[0].wire][place].view_as(parameter),
        )
        parameter.grad = home
        self._seen.add(parameter)
        for bucket in buckets:
            bucket.missing -= 1
        while (
            self._unsent and not self._unsent[0].missing
        ):  # in one order on all ranks, whatever becomes ready first
            self._send(self._unsent.pop(0))

    def _begin(self, this_pass: int) -> None:
        self._pass, self._seen, self._unsent = this_pass, set(), list(self.buckets)
        self._outgoing = {
            wire: wire.outgoing() for wire in {bucket.wire: None for bucket in self.buckets}
        }
        for bucket in self.buckets:
            bucket.missing = bucket.parameters
        torch.autograd.Variable._execution_engine.queue_callback(self._finish)

    def _send(self, bucket: Bucket) -> None:
        bucket.message = bucket.wire.send(bucket.piece)
        self.bytes_sent += bucket.wire.bytes(bucket.piece)
        if (
            self.spans
        ):  # a thread waits too, to see when the message is through and not when somebody asks
            bucket.message = Watched(
                self._watcher.submit(
                    _watch, bucket.message, self.spans, bucket.name, self.spans.now()
                )
            )

    def _finish(self) -> None:
        """The end of backward: wait for what still travels."""
        if unused := [
            name for name, parameter in self.parameters.items() if parameter not in self._seen
        ]:
            raise UnusedParameters(
                f"no gradient reached {', '.join(unused)} on rank {dist.get_rank()}: the loss must "
                "depend on every parameter that "
                f"requires a gradient, on every rank; freeze the others with requires_grad_(False)"
            )
        for bucket in self.buckets:
            start = time.perf_counter()
            bucket.message.wait()
            self.seconds_waited += time.perf_counter() - start
            bucket.wire.take(bucket.piece)


def _watch(message: Any, spans: RankSpanRecorder, name: str, start: float) -> None:
    message.wait()
    spans.taken.append(Span(spans.rank, name, start, spans.now()))


@dataclass
class Watched:
    future: Future

    def wait(self) -> None:
        self.future.result()


class DataParallel(Buckets):
    """The one line that the plain loop needs more: ``parallel = DataParallel(model)``, on every
    rank, before it trains.

    All ranks start from rank 0's weights and buffers; each backward pass then leaves the whole
    batch's gradient. Afterwards the model is used as before. What looks across samples, as batch
    normalization does, sees this rank's samples alone. options: see Buckets. Raises RanksDiffer
    when the ranks' models differ.
    """

    def __init__(self, model: nn.Module, **options: Any):
        start_equal(model)
        super().__init__(dict(reversed(trainable(model).items())), **options)


def trainable(model: nn.Module) -> Parameters:
    return {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def start_equal(model: nn.Module) -> None:
    """Give all ranks rank 0's parameters and buffers, frozen ones too. Raises RanksDiffer, on every
    rank alike.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    mine = [
        f"{name} {list(tensor.shape)} {tensor.dtype}, trained {tensor.requires_grad}"
        for name, tensor in tensors.items()
    ]
    everyone = gather(mine)
    for rank, theirs in enumerate(everyone):
        if different := [
            pair for pair in zip(everyone[0], theirs, strict=False) if pair[0] != pair[1]
        ]:
            raise RanksDiffer(f"rank {rank} has {different[0][1]}, rank 0 has {different[0][0]}")
        if len(theirs) != len(everyone[0]):
            raise RanksDiffer(
                f"rank {rank} has {len(theirs)} parameters and buffers, rank 0 has "
                f"{len(everyone[0])}"
            )
    for tensor in tensors.values():
        dist.broadcast(tensor.detach(), 0)


def sharded(
    n: int, batch_size: int, rank: int, world: int, seed: int = 0, start: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each batch from number ``start`` on: the indices [≈ batch_size/world] that are this
    rank's, and the whole batch's.

    All ranks shuffle alike and deal the cards out, so that no sample is taken twice and the ranks'
    parts make up exactly the batch that one process would take. The last batch of an epoch has what
    is left; a rank may get nothing of it.
    """
    per_epoch = -(-n // batch_size)
    for batch in count(start):
        epoch, position = divmod(batch, per_epoch)
        if position == 0 or batch == start:
            order = torch.randperm(n, generator=torch.Generator().manual_seed(seed + epoch))
        whole = order[position * batch_size : (position + 1) * batch_size]
        yield whole[rank::world], whole


def article_update(parameters: Parameters) -> None:
    """new = average(old + gradient × ranks), word for word. It climbs, and faster the more ranks
    there are.
    """
    world = dist.get_world_size()
    with torch.no_grad():
        for parameter in parameters.values():
            parameter += parameter.grad * world
            dist.all_reduce(parameter.detach())
            parameter /= world


# ---- the experiment ----


class Knobs(RankKnobs):
    ranks: int = dial(2, ge=1, le=4, description="processes that train together")
    method: Literal["buckets", "flat", "per parameter", "ring"] = dial(
        "buckets", description="how gradients are averaged"
    )
    bucket_mib: float = dial(
        1.0, ge=0.0625, le=64, log=True, description="MiB of gradients per message"
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


def run(knobs: Knobs) -> Iterator[Step]:
    """Train an MLP on 4,000 MNIST digits on ranks of their own processes, for ever. A Step is one
    update of them all; its metrics:

    loss, of the whole batch · bytes_sent, by each rank · seconds_waited, by each rank, for messages
    that backward did not hide · update_error (with ``twin``), ‖Δw − Δw_one‖ / ‖Δw_one‖ against one
    process that takes the whole batch. The spans of each rank (with ``timeline``) are forward,
    backward, optimizer step, and each bucket's or chunk's travel. Raises RankFailed as ``launch``
    does.
    """
    digits = datasets.mnist5k()
    return launch_steps(train_on_this_rank, knobs, digits.train_x, digits.train_y)


def train_on_this_rank(knobs: Knobs, images: Tensor, labels: Tensor) -> Iterator[Step]:
    """The worker: images [n, 1, 28, 28], labels [n]; the same code under ``launch`` and under
    torchrun.
    """
    rank, world, device = dist.get_rank(), dist.get_world_size(), device_of_rank()
    odd = rank == world - 1  # the rank that mishaps happen to
    images, labels = images.to(device), labels.to(device)
    torch.manual_seed(knobs.seed + rank)  # every rank begins with weights of its own …
    width = knobs.width + (odd and knobs.mistake == "mismatched shapes")
    model = models.mlp(images[0].numel(), width, width, 10).to(device)
    if knobs.mistake != "forget the broadcast":
        start_equal(model)  # … and takes rank 0's
    optimizer = torch.optim.SGD(model.parameters(), lr=knobs.learning_rate, momentum=knobs.momentum)
    saved = Checkpoint(knobs.checkpoint, model=model, optimizer=optimizer)
    spans = RankSpanRecorder(device)
    record = spans if knobs.timeline else lambda name: nullcontext()
    parallel = _averager(knobs, model, spans if knobs.timeline else None, odd)
    batch = torch.empty(0)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal batch
        dealt_to = 0 if knobs.mistake == "same shard everywhere" else rank
        for mine, batch in sharded(
            len(images), knobs.batch_size, dealt_to, world, knobs.seed, saved.updates
        ):
            parallel.share = 1.0 if knobs.mistake == "skip the division" else len(mine) / len(batch)
            yield images[mine], labels[mine]

    def update(x: Tensor, y: Tensor) -> dict[str, Tensor | float]:
        sent, waited = parallel.bytes_sent, parallel.seconds_waited
        optimizer.zero_grad()
        if odd and knobs.mistake == "slow rank":
            with record("asleep"):
                time.sleep(0.05)
        loss = _backward(model, x, y, knobs, parallel, record)
        if isinstance(parallel, Afterwards):
            with record("all-reduce"):
                parallel.average()
        with record("optimizer step"):
            article_update(
                parallel.parameters
            ) if knobs.mistake == "the article's formula" else optimizer.step()
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
        yield (
            replace(step, metrics={**step.metrics, "update_error": twin.error()}) if twin else step
        )
        if odd and knobs.mistake == "dying rank" and step.index == saved.updates + 4:
            die()


def _averager(
    knobs: Knobs, model: nn.Module, spans: RankSpanRecorder | None, odd: bool
) -> Buckets | Afterwards:
    backwards = not (odd and knobs.mistake == "wrong rank order")
    parameters = dict(reversed(trainable(model).items()) if backwards else trainable(model).items())
    if knobs.method == "buckets":
        return Buckets(
            parameters,
            bucket_mib=knobs.bucket_mib,
            compress=knobs.compress,
            wire=knobs.wire,
            spans=spans,
        )
    if knobs.method == "per parameter":
        return Afterwards(parameters, average_each)
    reduce = partial(ring_all_reduce, spans=spans) if knobs.method == "ring" else dist.all_reduce
    return Afterwards(parameters, partial(average_flat, all_reduce=reduce))


def _backward(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    knobs: Knobs,
    parallel: Buckets | Afterwards,
    record: Callable[[str], Any],
) -> Tensor:
    """Forward and backward in micro-batches; returns the mean loss of x, 0 where this rank has no
    sample.
    """
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
