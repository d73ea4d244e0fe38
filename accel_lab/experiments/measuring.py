"""An operation against the roofline, and the famous mistakes of measuring."""

from __future__ import annotations

import math
import os
import random
import re
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from statistics import mean, median
from typing import Literal

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from accel_lab.measuring import OPERATIONS, all_reduce, separately
from accel_lab.workbench import knobs
from accel_lab.workbench.device import pick_device, threads
from accel_lab.workbench.measure.comparison import reading
from accel_lab.workbench.measure.roofline import Operation, fastest, roofline
from accel_lab.workbench.ranks.launch import launch
from accel_lab.workbench.step import Span, Step

Program = Callable[[], object]

# ---- ways of comparing: each estimates the ratio of two programs' times ----

CALLS = 45  # of each program, in every way: all take about as long


def one_reading(ours: Program, peer: Program) -> float:
    """Read the clock once for each: what interrupts one of them counts as a difference."""
    return reading(ours, CALLS) / reading(peer, CALLS)


def one_after_the_other(ours: Program, peer: Program) -> float:
    """Average the readings of one, then of the other: a change of load counts as a difference."""
    return mean(reading(ours) for _ in range(CALLS)) / mean(reading(peer) for _ in range(CALLS))


def best_of_five(ours: Program, peer: Program) -> float:
    """Try five times, and report the best."""
    return min(reading(ours, CALLS // 5) / reading(peer, CALLS // 5) for _ in range(5))


def median_of_pairs(ours: Program, peer: Program) -> float:
    """Time both in turn, in the order of a coin, and report the median of the ratios."""
    coin, ratios = random.Random(), []
    for _ in range(CALLS):
        order = coin.sample([("ours", ours), ("the peer", peer)], 2)
        seconds = {name: reading(program) for name, program in order}
        ratios.append(seconds["ours"] / seconds["the peer"])
    return median(ratios)


WRONG_RATIOS = {
    "one reading": one_reading,
    "one after the other": one_after_the_other,
    "the best of five": best_of_five,
}
RATIOS = {**WRONG_RATIOS, "in pairs": median_of_pairs}


# ---- a machine that slows down, simulated ----

Readings = list[tuple[str, float]]  # which program, and its milliseconds, in the order taken


class SlowingMachine:
    """Times programs on a clock of its own, from "now" to the last of some readings slower by
    ``drift`` (0.5: by half). Each reading is a little longer than it should be, by chance.
    """

    def __init__(self, drift: float, readings: int, seed: int = 0):
        self.drift, self.readings, self.taken = drift, readings, 0
        self.chance = random.Random(seed)

    def reading(self, milliseconds: float) -> float:
        slower = 1 + self.drift * self.taken / (self.readings - 1)
        self.taken += 1
        return milliseconds * slower * (1 + abs(self.chance.gauss(0, 0.012)))


def in_blocks(machine: SlowingMachine, ours: float, peer: float, pairs: int) -> Readings:
    mine = [("ours", machine.reading(ours)) for _ in range(pairs)]
    return mine + [("the peer", machine.reading(peer)) for _ in range(pairs)]


def in_pairs(machine: SlowingMachine, ours: float, peer: float, pairs: int) -> Readings:
    coin, taken = random.Random(1), []
    for _ in range(pairs):
        both = [("ours", ours), ("the peer", peer)]
        if coin.random() < 0.5:  # heads: the peer goes first
            both.reverse()
        taken += [(name, machine.reading(milliseconds)) for name, milliseconds in both]
    return taken


def pairs_of(readings: Readings) -> list[tuple[float, float]]:
    """Readings, paired in the order in which they were taken: (ours, the peer's)."""
    two_by_two = zip(readings[::2], readings[1::2], strict=True)
    return [(dict(two)["ours"], dict(two)["the peer"]) for two in two_by_two]


def mean_of(readings: Readings, name: str) -> float:
    return mean(milliseconds for who, milliseconds in readings if who == name)


def as_lopsided(ratios: Sequence[float], truth: float) -> float:
    """Of all 2^n outcomes of the coin, which are equally likely if the true ratio is ``truth``, the
    share in which n pairs lean to one side at least as much as these: Wilcoxon's signed ranks.
    """
    gaps = sorted((math.log(ratio / truth) for ratio in ratios), key=abs)
    below = sum(rank for rank, gap in enumerate(gaps, 1) if gap < 0)
    outcomes = [1]  # outcomes[w]: in how many of them the ranks of one side add up to w
    for rank in range(1, len(gaps) + 1):
        shifted = [0] * rank + outcomes
        outcomes = [a + b for a, b in zip(outcomes + [0] * rank, shifted, strict=True)]
    rarer = min(below, len(outcomes) - 1 - below)
    return min(1.0, 2 * sum(outcomes[: rarer + 1]) / 2 ** len(gaps))


# ---- the experiment ----


class Knobs(knobs.Knobs):
    operation: Literal["element-wise", "matmul", "convolution", "embedding"] = knobs.dial(
        "matmul", description="what is computed"
    )
    batch_size: int = knobs.dial(1, ge=1, le=1024, log=True, description="samples at once")
    way: Literal["batched", "one by one"] = knobs.dial(
        "batched", description="one call for all samples, or one for each"
    )
    mistake: Literal["none", "one call", "data in the clock"] = knobs.dial(
        "none", description="made on purpose"
    )
    device: Literal["auto", "cpu", "cuda"] = knobs.dial(
        "auto", panel=False, description="where to compute"
    )
    cores: int = knobs.dial(
        1, ge=1, le=256, panel=False, description="threads of the CPU that compute"
    )


STEP_SECONDS = 0.005  # a small operation is called many times: more Steps would slow the run down


def run(knobs: Knobs) -> Generator[Step, None, None]:
    """Call one operation again and again, until the generator is closed.

    A Step is one reading of the clock. Its metrics, for one batch:
    seconds_a_batch: seconds.
    flops_per_second, bytes_per_second: bytes counted as the least that has to move.
    share_of_limit: 1 at the roofline.
    """
    device = pick_device(knobs.device)
    operation = operation_of(knobs, device)
    least = roofline(device, knobs.cores).least_seconds(operation)
    call, calls = operation.call, 1

    def call_with_data_made() -> object:
        return operation_of(knobs, device).call()

    if knobs.mistake == "data in the clock":
        call = call_with_data_made
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
    """Make the operation that the knobs describe, with its data on the device."""
    make = OPERATIONS[knobs.operation]
    if knobs.way == "one by one":
        return separately(make(1, device), knobs.batch_size)
    return make(knobs.batch_size, device)


def most_samples_per_second(knobs: Knobs) -> float:
    """Predict the most samples per second that the roofline allows."""
    operation = operation_of(knobs, torch.device("meta"))  # its size is enough: no data
    limits = roofline(pick_device(knobs.device), knobs.cores)
    return knobs.batch_size / limits.least_seconds(operation)


# ---- what else the chapter measures ----


def caches(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> dict[str, int]:
    """Read from Linux the caches for data of the first core: {"L1": bytes, "L2": bytes, …}.

    Empty where the system does not tell, as on other systems.
    """
    sizes = {}
    for one in folder.glob("index*"):
        try:
            kind, level, size = (
                (one / name).read_text().strip() for name in ("type", "level", "size")
            )
        except OSError:  # some virtual machines leave files out
            continue
        if kind != "Instruction" and (said := re.fullmatch(r"(\d+)([KMG])", size)):
            sizes[f"L{level}"] = int(said[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[said[2]]
    return dict(sorted(sizes.items()))


def timed_operations(
    sizes: Sequence[int], cores: int = 1
) -> dict[str, dict[int, tuple[Operation, float]]]:
    """Time every operation on the CPU, and the all-reduce between two processes.

    sizes: batch sizes. Returns {name: {batch size: (operation, seconds of its fastest call)}}.
    """
    timed: dict[str, dict[int, tuple[Operation, float]]] = {}
    with threads(cores):
        for name, make in OPERATIONS.items():
            operations = {n: make(n, torch.device("cpu")) for n in sizes}
            timed[name] = {n: (one, fastest(one.call, 0.05)) for n, one in operations.items()}
    between = all_reduce_seconds(sizes)
    timed["all-reduce"] = {n: (all_reduce(n), seconds) for n, seconds in between.items()}
    return timed


def all_reduce_seconds(
    sizes: Sequence[int], readings: int = 20, calls: int = 10
) -> dict[int, float]:
    """Time an ``all_reduce`` between two processes, by n: the fastest of some readings, in seconds.

    sizes: the values of n. calls: in one reading. The two ranks are started and ended here.
    """

    def worker() -> Iterator[float]:
        for n in sizes:
            call = all_reduce(n, dist.get_world_size()).call
            # equally often on each rank, since they wait for one another
            yield min(reading(call, calls) for _ in range(1 + readings))

    found = [seconds for rank, seconds in launch(worker, 2) if rank == 0]
    return dict(zip(sizes, found, strict=True))


def spans_of(program: Program) -> list[Span]:
    """Record the operations that a program calls, by torch.profiler, as a timeline of one lane."""
    program()
    with _quiet(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        program()
    events = [event for event in profiler.events() if event.cpu_parent is None]
    zero = min(event.time_range.start for event in events)
    return [
        Span(0, e.name, (e.time_range.start - zero) * 1e-6, (e.time_range.end - zero) * 1e-6)
        for e in events
    ]


@contextmanager
def _quiet() -> Generator[None]:
    """Silence the process's standard error, on which some builds of the profiler announce a run."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
