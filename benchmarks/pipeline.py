"""A training step of a pipeline on two ranks: ours, torch.distributed.pipelining, the limit.

Each rank has one thread. The limit is (m + p − 1)/m times what the slower stage needs for its m
micro-batches when nothing is sent or waited for, measured in the same run, while the other stage is
as busy. Gradients are compared before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn.functional import cross_entropy

from accel_lab.pipeline import SCHEDULES, Stage, balanced, stage_of
from accel_lab.workbench import models
from accel_lab.workbench.measure.race import compared, race_on_ranks
from accel_lab.workbench.ranks.launch import launch

TORCH = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
WIDTH, DEPTH, BATCH = 1024, 8, 512
LIMIT = "the bubble formula's limit"


def cases(rounds: int = 11) -> Iterator[str]:
    for micro_batches in (4, 8):
        seconds = dict(launch(time_all, 2, micro_batches, rounds, timeout=300.0))[0]
        stretch = (micro_batches + 2 - 1) / micro_batches
        seconds[LIMIT] = [stretch * second for second in seconds["work alone"]]
        for schedule in SCHEDULES:
            for peer in (f"torch, {schedule}", LIMIT):
                ours = compared(seconds, schedule, peer)
                yield ours.line(f"p = 2, m = {micro_batches}, {schedule}", peer)
            theirs = compared(seconds, f"torch, {schedule}", LIMIT)
            yield theirs.line(f"p = 2, m = {micro_batches}, torch, {schedule}", LIMIT)


def time_all(micro_batches: int, rounds: int) -> dict[str, list[float]]:
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    x, y = torch.randn(BATCH, WIDTH), torch.randint(10, (BATCH,))
    whole = models.mlp(*[WIDTH] * DEPTH, 10)
    costs = [float(isinstance(layer, nn.Linear)) for layer in whole]
    layers = stage_of(whole, balanced(costs, world)[rank])
    programs = {schedule: _ours(schedule, layers, x, y, micro_batches) for schedule in SCHEDULES}
    programs |= {
        f"torch, {schedule}": _torchs(schedule, layers, x, y, micro_batches)
        for schedule in SCHEDULES
    }
    _assert_equal_gradients(layers, programs)
    programs["work alone"] = _alone(layers, x, y, micro_batches)
    return race_on_ranks(programs, rounds, calls=1)


def _ours(
    schedule: str, layers: nn.Module, x: torch.Tensor, y: torch.Tensor, m: int
) -> Callable[[], None]:
    stage = Stage(layers, lambda out, y: cross_entropy(out, y, reduction="sum"))
    actions = SCHEDULES[schedule](dist.get_rank(), dist.get_world_size(), m)

    def step() -> None:
        layers.zero_grad()
        stage.step(actions, x.chunk(m), y.chunk(m))

    return step


def _torchs(
    schedule: str, layers: nn.Module, x: torch.Tensor, y: torch.Tensor, m: int
) -> Callable[[], None]:
    rank, world = dist.get_rank(), dist.get_world_size()
    stage = PipelineStage(layers, rank, world, torch.device("cpu"))
    stepper = TORCH[schedule](stage, n_microbatches=m, loss_fn=cross_entropy)

    def step() -> None:
        layers.zero_grad()
        if rank == 0:
            stepper.step(x)
        else:
            stepper.step(target=y, losses=[])

    return step


def _alone(layers: nn.Module, x: torch.Tensor, y: torch.Tensor, m: int) -> Callable[[], None]:
    """This stage's forwards and backwards, of inputs that are there already."""
    is_first, is_last = dist.get_rank() == 0, dist.get_rank() == dist.get_world_size() - 1
    inputs = [part.detach().clone().requires_grad_(not is_first) for part in x.chunk(m)]

    def step() -> None:
        layers.zero_grad()
        for given, target in zip(inputs, y.chunk(m), strict=True):
            out = layers(given)
            if is_last:
                cross_entropy(out, target).backward()
            else:
                out.backward(out.detach())
            given.grad = None

    return step


def _assert_equal_gradients(layers: nn.Module, programs: dict[str, Callable[[], None]]) -> None:
    found = {}
    for name, program in programs.items():
        program()
        found[name] = torch.cat([parameter.grad.flatten() for parameter in layers.parameters()])
    for name, gradient in found.items():
        difference = (gradient - found["gpipe"]).norm() / found["gpipe"].norm()
        assert difference < 1e-5, f"{name} differs from gpipe by {difference}"


if __name__ == "__main__":
    for line in cases():
        print(line, flush=True)
