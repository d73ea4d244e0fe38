"""A training step on two ranks: our buckets, torch's DistributedDataParallel, no communication.

Each rank has one thread. The weights of all programs are compared before any is timed. torch is
tuned by ``gradient_as_bucket_view`` and the best of some bucket sizes; ours runs as it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from accel_lab.ddp import (
    DataParallel,
    average_flat,
    average_per_parameter,
    broadcast_state,
    trainable,
)
from accel_lab.workbench import models
from accel_lab.workbench.measure.race import compared, fastest_of, race_on_ranks
from accel_lab.workbench.ranks.launch import launch

MODELS = {
    "MLP of 1.9 M parameters": lambda: models.mlp(784, 1024, 1024, 10),
    "small CNN": lambda: models.cnn(32),
}
TORCH, PLAIN, ALONE = "torch, default", ("per parameter", "flat"), "no communication"
TUNED = {f"torch, {mib} MiB, views": mib for mib in (1, 4, 8, 25)}
OURS = {
    f"buckets {through}{' as bfloat16' * compress}": {"wire": wire, "compress": compress}
    for wire, through in (("auto", "in shared memory"), ("network", "over the network"))
    for compress in (False, True)
}
PER_RANK = 32  # samples


def cases(rounds: int = 25) -> Iterator[str]:
    for name in MODELS:
        seconds = dict(launch(time_all, 2, name, rounds, timeout=300.0))[0]
        tuned = fastest_of(seconds, list(TUNED))
        for way in (*OURS, *PLAIN):
            for peer in (TORCH, tuned, ALONE):
                yield compared(seconds, way, peer).line(f"{name}, {way}", peer)


def time_all(name: str, rounds: int, calls: int = 4) -> dict[str, list[float]]:
    torch.manual_seed(dist.get_rank())
    x, y = torch.randn(PER_RANK, 1, 28, 28), torch.randint(10, (PER_RANK,))
    built = {way: _program(way, MODELS[name], x, y) for way in (TORCH, *TUNED, *OURS, *PLAIN)}
    _assert_equal(
        {way: model for way, (model, _) in built.items()}, [step for _, step in built.values()]
    )
    programs = {way: step for way, (_, step) in built.items()}
    programs[ALONE] = _program(ALONE, MODELS[name], x, y)[1]
    return race_on_ranks(programs, rounds, calls)


def _program(
    way: str, build: Callable[[], nn.Module], x: torch.Tensor, y: torch.Tensor
) -> tuple[nn.Module, Callable[[], None]]:
    """A model of its own, and one training step of it."""
    torch.manual_seed(dist.get_rank())
    model = forward = build()
    after = None
    if way == TORCH:
        forward = DistributedDataParallel(model)
    elif way in TUNED:
        forward = DistributedDataParallel(
            model, gradient_as_bucket_view=True, bucket_cap_mb=TUNED[way]
        )
    elif way in OURS:
        DataParallel(model, **OURS[way])
    elif way in PLAIN:
        broadcast_state(model)
        after = {"per parameter": average_per_parameter, "flat": average_flat}[way]
    optimizer, parameters = torch.optim.SGD(model.parameters(), lr=0.01), trainable(model)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(forward(x), y).backward()
        if after:
            after(parameters, 1 / dist.get_world_size())
        optimizer.step()

    return model, step


def _assert_equal(models: dict[str, nn.Module], steps: list[Callable[[], None]]) -> None:
    for step in steps:
        step(), step()
    truth = torch.nn.utils.parameters_to_vector(models[TORCH].parameters())
    for way, model in models.items():
        tolerance = 1e-4 if "bfloat16" in way else 1e-6
        difference = (
            (torch.nn.utils.parameters_to_vector(model.parameters()) - truth).abs().max().item()
        )
        assert difference < tolerance, f"{way} differs from {TORCH} by {difference}"


if __name__ == "__main__":
    for line in cases():
        print(line, flush=True)
