"""A run of several ranks, seen as one: what techniques that train on ranks have in common."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from typing import Any

from accel_lab.workbench.device import pick_device
from accel_lab.workbench.knobs import TrainingKnobs, dial
from accel_lab.workbench.loop import NonFiniteLoss
from accel_lab.workbench.ranks.checkpoint import NotACheckpoint
from accel_lab.workbench.ranks.launch import RankFailed, launch, under_torchrun
from accel_lab.workbench.step import Span, Step


class RankKnobs(TrainingKnobs):
    """The knobs of every run on ranks."""

    ranks: int = dial(2, ge=1, le=4, description="processes that train together")
    threads: int = dial(1, ge=1, le=64, panel=False, description="torch threads per rank")
    learning_rate: float = dial(
        0.1, ge=0.0001, le=10, log=True, panel=False, description="step size of the optimizer"
    )
    twin: bool = dial(
        False, panel=False, description="compare each update with that of one process"
    )
    checkpoint: str = dial(
        "", panel=False, description="file to resume from and to save to, on rank 0's machine"
    )
    checkpoint_every: int = dial(
        10, ge=1, panel=False, description="updates between two checkpoints"
    )
    timeout: float = dial(
        30.0, gt=0, panel=False, description="seconds that a rank waits for another"
    )


def launch_steps(
    worker: Callable[..., Iterator[Step]],
    knobs: RankKnobs,
    *args: Any,
    merge: Callable[[list[Step]], Step] | None = None,
    in_step: bool = True,
) -> Generator[Step, None, None]:
    """``launch`` ``worker(knobs, *args)``, which yields Steps, and yield the Steps of the world.

    in_step: ranks update together, and their Steps of one index are made one by ``merge``
    (``side_by_side`` unless given). Without it (asynchronous workers) each rank's Step is passed on
    as it comes, numbered anew in order of arrival, with ``rank`` among its metrics.
    Raises RankFailed; and NonFiniteLoss and NotACheckpoint as they are, wherever that happened: it
    is the run that failed, not a rank.
    """
    pick_device(knobs.device)
    world = int(os.environ["WORLD_SIZE"]) if under_torchrun() else knobs.ranks
    options: dict[str, Any] = {"threads": knobs.threads, "timeout": knobs.timeout}
    options["backend"] = knobs.device
    try:
        with contextlib.closing(launch(worker, knobs.ranks, knobs, *args, **options)) as stream:
            if in_step:
                yield from _together(stream, world, merge or side_by_side)
            else:
                yield from _as_they_come(stream)
    except RankFailed as failed:
        if isinstance(failed.cause, NonFiniteLoss | NotACheckpoint):
            raise failed.cause from failed
        raise


def _together(
    stream: Iterable[tuple[int, Step]], world: int, merge: Callable[[list[Step]], Step]
) -> Iterator[Step]:
    arrived: dict[int, dict[int, Step]] = {}
    for rank, step in stream:
        of_this_index = arrived.setdefault(step.index, {})
        of_this_index[rank] = step
        if len(of_this_index) == world:
            del arrived[step.index]
            yield merge([of_this_index[rank] for rank in sorted(of_this_index)])


def _as_they_come(stream: Iterable[tuple[int, Step]]) -> Iterator[Step]:
    for index, (rank, step) in enumerate(stream):
        yield replace(step, index=index, metrics={**step.metrics, "rank": float(rank)})


def side_by_side(steps: list[Step]) -> Step:
    """The Step of ranks that share a batch: samples add up, the slowest sets the time, metrics are
    means over the samples.
    """
    samples = sum(step.samples for step in steps)
    metrics = {
        name: sum(step.metrics[name] * step.samples for step in steps if step.samples) / samples
        for name in steps[0].metrics
    }
    return Step(
        steps[0].index,
        samples,
        max(step.seconds for step in steps),
        metrics,
        on_one_timeline(steps),
    )


def on_one_timeline(steps: list[Step]) -> tuple[Span, ...]:
    """The spans of all ranks, the first of them beginning at 0: waking up after waiting for one
    another is not the step's.
    """
    spans = [span for step in steps for span in step.spans]
    zero = min((span.start for span in spans), default=0.0)
    return tuple(replace(span, start=span.start - zero, end=span.end - zero) for span in spans)
