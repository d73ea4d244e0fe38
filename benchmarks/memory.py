"""Recomputation against torch's checkpoint and against keeping all; bytes against the formula; and
Adam's state dealt out on two ranks against torch's ZeroRedundancyOptimizer.

Each rank has one thread. Gradients, or weights, of all ways are compared before any is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from accel_lab.experiments.memory import (
    Knobs,
    best_number,
    predicted_activation_bytes,
    predicted_time,
    start,
    torchs,
)
from accel_lab.memory import ShardedInSharedMemory, ShardedOptimizer
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.measure.comparison import compare
from accel_lab.workbench.measure.memory_meter import ActivationMeter
from accel_lab.workbench.measure.race import compared, race_on_ranks
from accel_lab.workbench.ranks.launch import launch

CHAINS = {
    "36 residual blocks": Knobs(),
    "36 thin blocks": Knobs(block="thin"),
    "8 transformer blocks": Knobs(block="transformer", blocks=8, batch_size=128),
}
DDP, ZERO, ALONE = "DDP and Adam", "DDP and torch's ZeRO", "no communication"
OURS = {"over the network": ShardedOptimizer, "in shared memory": ShardedInSharedMemory}
PER_RANK = 32  # samples


def cases(rounds: int = 25) -> Iterator[str]:
    for name, knobs in CHAINS.items():
        yield from recomputed(name, knobs)
    for width in (256, 1024):
        yield from dealt_out(width, rounds)


def recomputed(name: str, knobs: Knobs) -> Iterator[str]:
    k = best_number(knobs)
    x, y = next(datasets.mnist5k().batches(knobs.batch_size))
    ways = {
        "ours": start(knobs.turned(segments=k)),
        "keep all": start(knobs),
        "torch": start(knobs),
        "torch, reentrant": start(knobs),
    }
    ways["torch"].rule = lambda blocks, x: torchs(blocks, x, k)
    ways["torch, reentrant"].rule = lambda blocks, x: torchs(blocks, x, k, reentrant=True)
    steps = {way: _step(model, x, y) for way, model in ways.items()}
    for way, model in ways.items():
        steps[way]()
        for ours, other in zip(ways["ours"].parameters(), model.parameters(), strict=True):
            assert torch.equal(ours.grad, other.grad), f"{name}: ours differs from {way}"
    for peer in ("torch", "torch, reentrant", "keep all"):
        yield compare(steps["ours"], steps[peer], pairs=15).line(f"{name}, {k} segments", peer)
    more = predicted_time(knobs.turned(segments=k))
    yield f"{name}, {k} segments: with a forward pass more, {more:.2f} × keep all"
    with ActivationMeter(ways["ours"], x, y) as meter:
        steps["ours"]()
    predicted = predicted_activation_bytes(knobs.turned(segments=k))
    whole = predicted_activation_bytes(knobs)
    yield (
        f"{name}, {k} segments: {meter.peak / 2**20:.2f} MiB of activations, "
        f"{meter.peak / whole:.3f} of keeping all, {meter.peak / predicted:.4f} of the formula"
    )


def _step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        model.zero_grad()
        cross_entropy(model(x), y).backward()

    return step


def dealt_out(width: int, rounds: int) -> Iterator[str]:
    seconds, state = dict(launch(time_all, 2, width, rounds, timeout=300.0))[0]
    for way in OURS:
        for peer in (DDP, ZERO, ALONE):
            yield compared(seconds, way, peer).line(f"width {width}, Adam's state {way}", peer)
    for way in (*OURS, ZERO):
        yield f"width {width}, {way}: {state[way] / state[DDP]:.3f} of Adam's state on a rank"


def time_all(
    width: int, rounds: int, calls: int = 4
) -> tuple[dict[str, list[float]], dict[str, int]]:
    torch.manual_seed(dist.get_rank())
    x, y = torch.randn(PER_RANK, 784), torch.randint(10, (PER_RANK,))
    built = {way: _program(way, width, x, y) for way in (DDP, ZERO, *OURS, ALONE)}
    for _, step, _ in built.values():
        step(), step()
    vectors = {
        way: nn.utils.parameters_to_vector(model.parameters())
        for way, (model, _, _) in built.items()
    }
    for way in (ZERO, *OURS):
        assert torch.equal(vectors[way], vectors[DDP]), f"{way} differs from {DDP}"
    programs = {way: step for way, (_, step, _) in built.items()}
    state = {way: held() for way, (_, _, held) in built.items()}
    return race_on_ranks(programs, rounds, calls), state


def _program(
    way: str, width: int, x: torch.Tensor, y: torch.Tensor
) -> tuple[nn.Module, Callable[[], None], Callable[[], int]]:
    """A model, one training step of it, and the bytes of its optimizer's state on this rank."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # takes a second and 50 MB

    torch.manual_seed(0)
    model = forward = models.mlp(784, width, width, 10)
    optimizer: Any
    if way in OURS:
        optimizer = OURS[way](model, lambda pieces: torch.optim.Adam(pieces, lr=1e-3))
    elif way == ZERO:
        options = {"optimizer_class": torch.optim.Adam, "parameters_as_bucket_view": True}
        optimizer = ZeroRedundancyOptimizer(model.parameters(), lr=1e-3, **options)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    if way in (DDP, ZERO):
        forward = DistributedDataParallel(model, gradient_as_bucket_view=True)
    inner = optimizer.optimizer if way in OURS else getattr(optimizer, "optim", optimizer)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(forward(x), y).backward()
        optimizer.step()

    def held() -> int:
        return sum(v.nbytes for kept in inner.state.values() for v in kept.values() if v.dim())

    return model, step, held


if __name__ == "__main__":
    for line in cases():
        print(line, flush=True)
