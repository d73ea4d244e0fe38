"""Measuring honestly: is it faster, surely? And how much faster could it be?

The first question is answered by pairs. One reading of a clock says little: the first call pays for
starting up, and what else the machine does comes and goes.
``accel_lab.workbench.measure.comparison`` times two programs within moments of each other, in an
order that a coin decides, again and again, and says "no difference shown" until the pairs agree.
Below stand the usual ways of doing it wrong.

The second question is answered by the roofline, ``accel_lab.workbench.measure.roofline``: an
operation lasts at least

    seconds ≥ calling it + max(bytes / (bytes/s), FLOPs / (FLOP/s))

with all three constants measured on this machine. A batch helps where it moves fewer bytes a sample
or calls less often: the weights of ``matmul`` are read once for all samples, so it climbs from the
slanted roof to the flat one; ``element-wise`` has nothing to share and stays where it is, however
large the batch.

Sources: Williams, Waterman and Patterson 2009, "Roofline"; Hoefler and Belli 2015, "Scientific
benchmarking of parallel computing systems", rules 4 to 8; Kalibera and Jones 2013, "Rigorous
benchmarking in reasonable time".
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from statistics import mean
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import conv2d, embedding_bag
from torch.profiler import ProfilerActivity, profile

from accel_lab.workbench import knobs
from accel_lab.workbench.device import pick_device, threads
from accel_lab.workbench.measure.comparison import Comparison, compare, reading
from accel_lab.workbench.measure.roofline import Operation, Roofline, fastest, roofline
from accel_lab.workbench.ranks.launch import launch
from accel_lab.workbench.ranks.wires import bytes_on_the_ring
from accel_lab.workbench.step import Span, Step

__all__ = [
    "Comparison",
    "Operation",
    "Roofline",
    "compare",
    "fastest",
    "reading",
    "roofline",
    "threads",
]

Program = Callable[[], object]


# The same sums, three ways: x [n, inputs] times weight [inputs, outputs].


def python_loop(x: Tensor, weight: Tensor) -> Tensor:
    """One multiplication at a time, each asking Python what kind of numbers these are. Returns [n,
    outputs].
    """
    columns = weight.T.tolist()
    return torch.tensor(
        [
            [sum(a * b for a, b in zip(row, column, strict=True)) for column in columns]
            for row in x.tolist()
        ]
    )


def one_by_one(x: Tensor, weight: Tensor) -> Tensor:
    """Vectorised: each sample in one call, which reads all the weights again. Returns [n, outputs]."""
    return torch.stack([row @ weight for row in x])


def batched(x: Tensor, weight: Tensor) -> Tensor:
    """All samples in one call, which reads the weights once. Returns [n, outputs]."""
    return x @ weight


# Operations to place below the roof, each on a batch of n samples of float32 (4 bytes).

PIXELS = 28 * 28
WORDS, DIMENSIONS, LENGTH = 20_000, 128, 64  # of the vocabulary, of a word's vector, of a text
CHANNELS, KERNEL = 16, 3


def element_wise(n: int, device: torch.device) -> Operation:
    """x [n, 784] → 2x: one multiplication for each number read and each written."""
    x = torch.rand(n, PIXELS, device=device)
    return Operation("element-wise", lambda: x * 2, n, flops=n * PIXELS, bytes=4 * 2 * n * PIXELS)


def matmul(n: int, device: torch.device) -> Operation:
    """x [n, 784] times weight [784, 784]: a linear layer. The larger n, the more is done with each
    weight read.
    """
    x, weight = torch.rand(n, PIXELS, device=device), torch.rand(PIXELS, PIXELS, device=device)
    return Operation(
        "matmul",
        lambda: x @ weight,
        n,
        flops=2 * n * PIXELS**2,
        bytes=4 * (2 * n * PIXELS + PIXELS**2),
    )


def convolution(n: int, device: torch.device) -> Operation:
    """x [n, 16, 28, 28] → the same shape by 16 kernels of 3 × 3. Its weights are few: it does much
    with each byte at any n.
    """
    x = torch.rand(n, CHANNELS, 28, 28, device=device)
    weight = torch.rand(CHANNELS, CHANNELS, KERNEL, KERNEL, device=device)
    numbers = n * CHANNELS * PIXELS
    flops = 2 * numbers * CHANNELS * KERNEL**2
    return Operation(
        "convolution",
        lambda: conv2d(x, weight, padding=1),
        n,
        flops,
        bytes=4 * (2 * numbers + weight.numel()),
    )


def embedding(n: int, device: torch.device) -> Operation:
    """words [n, 64] → the sum of their vectors, [n, 128]: rows fetched from all over a table of
    20,000, one addition for each number.
    """
    table, words = (
        torch.rand(WORDS, DIMENSIONS, device=device),
        torch.randint(WORDS, (n, LENGTH), device=device),
    )
    fetched = n * LENGTH * DIMENSIONS
    least = 8 * n * LENGTH + 4 * (fetched + n * DIMENSIONS)
    return Operation(
        "embedding", lambda: embedding_bag(words, table, mode="sum"), n, flops=fetched, bytes=least
    )


def all_reduce(n: int, ranks: int = 2) -> Operation:
    """numbers [n, 784] of each rank → their sum over all ranks, on each. To be called on so many
    ranks at once.

    What one of them has to send and to add by a ring: the same FLOPs for each byte as
    ``element-wise``, however many ranks.
    """
    numbers = torch.rand(n, PIXELS)
    added = (ranks - 1) * numbers.numel() // ranks
    return Operation(
        "all-reduce",
        lambda: _summed(numbers),
        n,
        flops=added,
        bytes=bytes_on_the_ring(numbers, ranks),
    )


def _summed(numbers: Tensor) -> Tensor:
    dist.all_reduce(numbers)
    return numbers


def all_reduce_seconds(
    sizes: Sequence[int], readings: int = 20, calls: int = 10
) -> dict[int, float]:
    """Seconds of an ``all_reduce`` between two processes, by n: the fastest of so many readings.
    The ranks are started here, and ended.
    """

    def worker() -> Iterator[float]:
        for n in sizes:
            call = all_reduce(n, dist.get_world_size()).call
            yield min(
                reading(call, calls) for _ in range(1 + readings)
            )  # as often on each rank: they wait for one another

    found = [seconds for rank, seconds in launch(worker, 2) if rank == 0]
    return dict(zip(sizes, found, strict=True))


OPERATIONS: dict[str, Callable[[int, torch.device], Operation]] = {
    "element-wise": element_wise,
    "matmul": matmul,
    "convolution": convolution,
    "embedding": embedding,
}


def separately(operation: Operation, n: int) -> Operation:
    """An operation on one sample, called n times instead of once for n samples."""

    def call() -> Tensor:
        for _ in range(n):
            result = operation.call()
        return result

    return Operation(
        f"{operation.name}, one by one", call, n, n * operation.flops, n * operation.bytes, pieces=n
    )


# The famous mistakes of comparing: each returns what it takes for the ratio of two programs' times.


def one_reading(ours: Program, peer: Program) -> float:
    """Each once, and the first one pays for whatever had to start up."""
    return reading(ours) / reading(peer)


def one_after_the_other(ours: Program, peer: Program) -> float:
    """The mean of nine readings of one, then of the other: whatever happened meanwhile is taken for
    a difference.
    """
    return mean(reading(ours) for _ in range(9)) / mean(reading(peer) for _ in range(9))


def best_of_five(ours: Program, peer: Program) -> float:
    """Try again until it looks good, and report that."""
    return min(reading(ours) / reading(peer) for _ in range(5))


WRONG_RATIOS = {
    "one reading": one_reading,
    "one after the other": one_after_the_other,
    "the best of five": best_of_five,
}


def spans_of(program: Program) -> list[Span]:
    """What torch.profiler saw while ``program`` ran, as a timeline: the operations that it called
    itself, one lane.
    """
    program()
    with _hushed(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        program()
    events = [event for event in profiler.events() if event.cpu_parent is None]
    zero = min(event.time_range.start for event in events)
    return [
        Span(0, e.name, (e.time_range.start - zero) * 1e-6, (e.time_range.end - zero) * 1e-6)
        for e in events
    ]


@contextmanager
def _hushed() -> Iterator[None]:
    """Some builds of the profiler announce each start and stop on the process's standard error,
    below Python's.
    """
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class Knobs(knobs.Knobs):
    operation: Literal["element-wise", "matmul", "convolution", "embedding"] = knobs.dial(
        "matmul", description="what is computed"
    )
    batch_size: int = knobs.dial(1, ge=1, le=1024, log=True, description="samples at once")
    way: Literal["batched", "one by one"] = knobs.dial(
        "batched", description="one call for all samples, or one for each"
    )
    mistake: Literal["none", "one call", "data in the clock"] = knobs.dial(
        "none", description="a famous mistake to make"
    )
    device: Literal["auto", "cpu", "cuda"] = knobs.dial(
        "auto", panel=False, description="where to compute"
    )
    cores: int = knobs.dial(
        1, ge=1, le=256, panel=False, description="threads of the CPU that compute"
    )


# many calls of a small operation: more Steps than can be looked at would only slow the run down
STEP_SECONDS = 0.005


def run(knobs: Knobs) -> Iterator[Step]:
    """Call one operation again and again, for ever. A Step is one reading of the clock; its
    metrics, for one batch:

    seconds_a_batch · flops_per_second · bytes_per_second, counting the least that has to move ·
    share_of_limit, 1 at the roofline.
    """
    device = pick_device(knobs.device)
    operation = operation_of(knobs, device)
    least = roofline(device, knobs.cores).least_seconds(operation)
    call, calls = operation.call, 1
    if knobs.mistake == "data in the clock":
        call = lambda: operation_of(knobs, device).call()  # noqa: E731
    elif knobs.mistake == "none":
        calls = math.ceil(STEP_SECONDS / fastest(call, 0))
    for index in count():
        with threads(knobs.cores):
            seconds = reading(call, calls)
        metrics = {
            "seconds_a_batch": seconds,
            "flops_per_second": operation.flops / seconds,
            "bytes_per_second": operation.bytes / seconds,
            "share_of_limit": least / seconds,
        }
        yield Step(index, calls * operation.samples, calls * seconds, metrics)


def operation_of(knobs: Knobs, device: torch.device) -> Operation:
    """The operation that these knobs describe, with data made for it on the device."""
    make = OPERATIONS[knobs.operation]
    return (
        make(knobs.batch_size, device)
        if knobs.way == "batched"
        else separately(make(1, device), knobs.batch_size)
    )


def most_samples_per_second(knobs: Knobs) -> float:
    """What the roofline allows: the curve to hold a measured one against."""
    operation = operation_of(knobs, torch.device("meta"))  # its size is enough: no data
    return knobs.batch_size / roofline(pick_device(knobs.device), knobs.cores).least_seconds(
        operation
    )
