"""Data parallelism: each rank trains the whole model on its shard; gradients are averaged.

The loss of a batch of n samples is a mean. If rank r has n_r of them, and L_r is its mean loss,

    ∇L = Σ_r (n_r/n) ∇L_r

so each rank weights its gradient by its *share* n_r/n, and an *all-reduce* adds them up. Then every
rank makes the same update: weights that start equal stay equal, and equal those of one process that
takes the whole batch.

The ring all-reduce has two halves. *Reduce-scatter*: after world − 1 turns, each rank holds the
complete sum of one chunk. *All-gather*: in world − 1 more turns, the complete chunks go round. Of a
gradient of b bytes, p ranks that send to one another must send 2(p−1) · b together. The ring deals
that out evenly, 2(p−1)/p · b to each. In memory that all can read, each writes b and reads the
others'.

Backward computes the last layer's gradients first, so sending can start while it still runs:
gradients are collected in *buckets*, each sent as soon as it is full. Where ranks have no idle
cores this hides little, because copying bytes is work too.

The traps: ranks that start from different weights; the same shard on every rank; a mean of means
over shards of different sizes; collectives that ranks call in different orders, which add up
unrelated tensors without an error.

Sources: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms", section 3; Li et al.
2020, "PyTorch Distributed", arXiv:2006.15704, section 3.2.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count, zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from accel_lab.workbench.ranks.rank import RanksDiffer, gather
from accel_lab.workbench.ranks.wires import Wire, bytes_on_the_ring, wire_for
from accel_lab.workbench.spans import SpanRecorder

Parameters = dict[str, nn.Parameter]  # those that get a gradient, by name; a tied one is in it once
_hooks = WeakIdKeyDictionary()  # parameter → the hook of the one Buckets that averages it

# ---- the collective: ring all-reduce ----


def reduce_scatter_turns(rank: int, world: int) -> list[tuple[int, int]]:
    """List (chunk to send right, chunk to receive from the left and add) of each turn.

    rank: of 0…world − 1. A ring of ``world`` ranks has as many chunks, and a turn less.
    """
    return [((rank - turn) % world, (rank - turn - 1) % world) for turn in range(world - 1)]


def all_gather_turns(rank: int, world: int) -> list[tuple[int, int]]:
    """List (complete chunk to send right, chunk to receive from the left) of each turn.

    Begins where ``reduce_scatter_turns`` ends: this rank has the complete chunk rank + 1.
    """
    return [((rank - turn + 1) % world, (rank - turn) % world) for turn in range(world - 1)]


def ring_reduce_scatter(chunks: Sequence[Tensor], spans: SpanRecorder | None = None) -> None:
    """Add up chunks over all ranks, in place, until rank r holds the complete chunk r + 1.

    chunks: one [n_i] per rank, the first one the largest; the other chunks end as partial sums.
    spans: records when each chunk travelled, as ``chunk 2``.
    """
    inbox = torch.empty_like(chunks[0])
    for out, into in reduce_scatter_turns(dist.get_rank(), dist.get_world_size()):
        arrived = inbox[: len(chunks[into])]
        with spans(f"chunk {out}") if spans else nullcontext():
            ring_exchange(chunks[out], arrived)
        chunks[into].add_(arrived)


def ring_all_gather(chunks: Sequence[Tensor], spans: SpanRecorder | None = None) -> None:
    """Send complete chunks round, in place: from rank r's chunk r + 1 to all chunks everywhere."""
    for out, into in all_gather_turns(dist.get_rank(), dist.get_world_size()):
        with spans(f"chunk {out}") if spans else nullcontext():
            ring_exchange(chunks[out], chunks[into])


def ring_all_reduce(tensor: Tensor, spans: SpanRecorder | None = None) -> None:
    """Replace a contiguous tensor by its sum over all ranks: reduce-scatter, then all-gather."""
    chunks = tensor.view(-1).tensor_split(dist.get_world_size())
    ring_reduce_scatter(chunks, spans)
    ring_all_gather(chunks, spans)


def ring_exchange(outgoing: Tensor, incoming: Tensor) -> None:
    """Send a tensor to the next rank while receiving one from the previous rank."""
    rank, world = dist.get_rank(), dist.get_world_size()
    messages = [
        dist.P2POp(dist.irecv, incoming, (rank - 1) % world),
        dist.P2POp(dist.isend, outgoing, (rank + 1) % world),
    ]
    for message in dist.batch_isend_irecv(messages):
        message.wait()


# ---- averaging after backward: the plain ways ----


def average_per_parameter(parameters: Parameters, share: float) -> int:
    """All-reduce each gradient by itself: simple, but many small messages, each waited for.

    share: this rank's part of the batch, n_r/n. Returns the bytes that this rank sent.
    """
    for parameter in parameters.values():
        dist.all_reduce(parameter.grad.mul_(share))
    return sum(bytes_on_the_ring(parameter.grad) for parameter in parameters.values())


def average_flat(
    parameters: Parameters, share: float, all_reduce: Callable[[Tensor], Any] = dist.all_reduce
) -> int:
    """Copy all gradients into one flat tensor, and all-reduce that. Returns the bytes sent.

    share: this rank's part of the samples. all_reduce: adds a tensor up over the ranks, in place.
    """
    gradients = [parameter.grad for parameter in parameters.values()]
    flat = torch.cat([gradient.flatten() for gradient in gradients]).mul_(share)
    all_reduce(flat)
    averages = flat.split([gradient.numel() for gradient in gradients])
    for gradient, average in zip(gradients, averages, strict=True):
        gradient.copy_(average.view_as(gradient))
    return bytes_on_the_ring(flat)


# ---- averaging during backward: buckets ----


class UnusedParameters(RuntimeError):
    """A parameter got no gradient in this backward pass; other ranks may be waiting for it."""


@dataclass(eq=False)
class Bucket:
    """A piece of the flat gradient, sent as soon as all of it is there."""

    name: str
    wire: Wire
    piece: slice
    parameters: int = 0  # how many have a part in this bucket …
    missing: int = 0  # … and how many of them have no gradient yet
    message: Any = None


class Buckets:
    """Averages gradients over all ranks during backward; they are complete when it returns.

    parameters: in the order to send them, the same on all ranks; best that of backward.
    bucket_mib: MiB of gradients per message. compress: send bfloat16, half the bytes.
    wire: ``auto`` or ``network``, see ``accel_lab.workbench.ranks.wires.wire_for``.

    ``share``, this rank's part of the batch: set it before backward where it is not 1/world.
    ``bytes_sent`` and ``seconds_waited`` count from the start.
    Until backward returns, ``.grad`` is this rank's part of the sum, or None where compressed.
    Buckets made later for the same parameters take them over. A sparse gradient travels whole, and
    is sparse again afterwards; of ``create_graph``, no graph is left.
    Raises UnusedParameters, from ``backward``, when a parameter got no gradient.
    """

    def __init__(
        self,
        parameters: Parameters,
        *,
        bucket_mib: float = 8.0,
        compress: bool = False,
        wire: str = "auto",
    ):
        self.parameters, self.share = parameters, 1 / dist.get_world_size()
        self.bytes_sent, self.seconds_waited = 0, 0.0
        self.buckets: list[Bucket] = []
        self._syncs, self._pass = True, None
        self._wires: list[Wire] = []
        self._home: dict[nn.Parameter, tuple[Tensor, Wire, slice, list[Bucket]]] = {}
        kinds: dict[tuple, list[nn.Parameter]] = {}  # a flat tensor has one dtype and one device
        for parameter in parameters.values():
            kinds.setdefault((str(parameter.dtype), str(parameter.device)), []).append(parameter)
        for _, alike in sorted(kinds.items()):
            flat = alike[0].new_zeros(sum(parameter.numel() for parameter in alike))
            size = max(1, int(bucket_mib * 2**20) // flat.element_size())
            self._pack(alike, wire_for(flat, compress, wire), size)
        if dist.get_world_size() > 1:
            for parameter in parameters.values():
                if parameter in _hooks:
                    _hooks[parameter].remove()
                _hooks[parameter] = parameter.register_post_accumulate_grad_hook(self._has_gradient)

    def _pack(self, parameters: list[nn.Parameter], wire: Wire, size: int) -> None:
        """Cut the flat gradient into buckets of one size; a large parameter lies in several."""
        first, starts = len(self.buckets), range(0, len(wire.flat), size)
        pieces = [slice(start, start + size) for start in starts]
        buckets = [Bucket(f"bucket {i}", wire, piece) for i, piece in enumerate(pieces, first)]
        end = 0
        for parameter in parameters:
            start, end = end, end + parameter.numel()
            home, touched = wire.flat[start:end], buckets[start // size : (end - 1) // size + 1]
            self._home[parameter] = home.view_as(parameter), wire, slice(start, end), touched
            for bucket in touched:
                bucket.parameters += 1
        self.buckets += buckets
        self._wires.append(wire)

    @contextmanager
    def no_sync(self) -> Generator[None]:
        """Only accumulate in the backward passes in here; the next one outside averages the sum."""
        self._syncs = False
        try:
            yield
        finally:
            self._syncs = True

    def _has_gradient(self, parameter: nn.Parameter) -> None:
        """Put a gradient into its buckets, and send those that are full: torch's hook."""
        if not self._syncs:
            return
        if self._pass != (now := torch._C._current_graph_task_id()):
            self._begin(now)
        _, wire, place, buckets = self._home[parameter]
        outgoing = self._outgoing[wire][place].view_as(parameter)
        torch.mul(parameter.grad.detach().to_dense(), self.share, out=outgoing)
        if not parameter.grad.is_sparse:  # its memory is free for the next layer's backward
            parameter.grad = outgoing if outgoing.dtype == parameter.dtype else None
        self._seen.add(parameter)
        for bucket in buckets:
            bucket.missing -= 1
        while self._unsent and not self._unsent[0].missing:  # in one order on all ranks
            self.send(self._unsent.pop(0))

    def _begin(self, this_pass: int) -> None:
        self._pass, self._seen, self._unsent = this_pass, set(), list(self.buckets)
        self._outgoing = {wire: wire.outgoing() for wire in self._wires}
        for bucket in self.buckets:
            bucket.missing = bucket.parameters
        torch.autograd.Variable._execution_engine.queue_callback(self._finish)

    def send(self, bucket: Bucket) -> None:
        """Start sending a full bucket, without waiting for it."""
        bucket.message = bucket.wire.send(bucket.piece)
        self.bytes_sent += bucket.wire.bytes(bucket.piece)

    def _finish(self) -> None:
        """Wait for the messages under way, and hand over the averages, at the end of backward."""
        if torch._C._current_autograd_node() is not None:  # another backward is waiting for this
            raise RuntimeError(
                "a backward inside of backward would be averaged by itself: checkpoint with "
                "use_reentrant=False"
            )
        if unused := [name for name, p in self.parameters.items() if p not in self._seen]:
            raise UnusedParameters(
                f"no gradient reached {', '.join(unused)} on rank {dist.get_rank()}: the loss must "
                "depend on every parameter that requires a gradient, on every rank; freeze the "
                "others with requires_grad_(False)"
            )
        for bucket in self.buckets:
            start = time.perf_counter()
            bucket.message.wait()
            self.seconds_waited += time.perf_counter() - start
            bucket.wire.take(bucket.piece)
        for parameter, (average, *_) in self._home.items():
            is_sparse = parameter.grad is not None and parameter.grad.is_sparse
            parameter.grad = average.to_sparse(1) if is_sparse else average

    def __reduce__(self):
        raise TypeError(f"{type(self).__name__} belongs to its ranks: save the model without it")


class DataParallel(Buckets):
    """Adds one line to the plain loop: ``DataParallel(model)``, on every rank, before training.

    Ranks start from rank 0's weights and buffers; each backward then leaves the whole batch's
    gradient. Batch normalization sees this rank's samples only, and its running averages drift
    apart, where torch copies rank 0's before each forward: ``broadcast_state`` does so, at the end.

    options: see Buckets.
    Raises RanksDiffer when the ranks' models differ.
    """

    def __init__(self, model: nn.Module, **options: Any):
        broadcast_state(model)
        super().__init__(dict(reversed(trainable(model).items())), **options)


# ---- what every rank needs before it trains: equal weights, and its shard ----


def trainable(model: nn.Module) -> Parameters:
    """Select the parameters that get a gradient, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def broadcast_state(model: nn.Module) -> None:
    """Give all ranks rank 0's parameters and buffers, frozen ones too.

    Raises RanksDiffer, on every rank, when names, shapes, dtypes or what is frozen differ.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    mine = [f"{n} {list(t.shape)} {t.dtype}, trained {t.requires_grad}" for n, t in tensors.items()]
    rank_0, *others = gather(mine)
    for rank, theirs in enumerate(others, 1):
        for wanted, found in zip_longest(rank_0, theirs, fillvalue="nothing more"):
            if found != wanted:
                raise RanksDiffer(f"rank {rank} has {found}, rank 0 has {wanted}")
    for tensor in tensors.values():
        dist.broadcast(tensor.detach(), 0)


def sharded(
    n: int, batch_size: int, rank: int, world: int, seed: int = 0, start: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Deal out batches: yield (indices of this rank's shard, indices of the whole batch).

    All ranks shuffle alike, so their shards make up exactly the batch that one process would take.
    An epoch's last batch may leave a rank without samples.

    n: samples in the data set. batch_size: of them per update. start: number of the first batch.
    """
    per_epoch = -(-n // batch_size)
    for batch in count(start):
        epoch, position = divmod(batch, per_epoch)
        if position == 0 or batch == start:
            order = torch.randperm(n, generator=torch.Generator().manual_seed(seed + epoch))
        whole = order[position * batch_size : (position + 1) * batch_size]
        yield whole[rank::world], whole
