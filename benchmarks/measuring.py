"""How sure verdicts are on this machine under load, what they cost, and how near the roof is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

import torch
from torch.utils.benchmark import Timer

from accel_lab import measuring
from accel_lab.experiments import measuring as experiment
from accel_lab.workbench.device import threads
from accel_lab.workbench.measure.comparison import Comparison, compare, reading
from accel_lab.workbench.measure.roofline import fastest, roofline

TRIES = 100


def cases() -> Iterator[str]:
    with two_busy_programs():
        yield from verdicts()
    yield from cost()
    yield from roof()


@contextmanager
def two_busy_programs() -> Iterator[None]:
    load = [
        subprocess.Popen([sys.executable, "-c", "while True: sum(range(10_000))"]) for _ in range(2)
    ]
    try:
        yield
    finally:
        for process in load:
            process.kill()
            process.wait()


def verdicts() -> Iterator[str]:
    """Of a hundred tries: the same program twice, and one that works 10 % more."""
    same = sum(not compare(work(100), work(100)).differs for _ in range(TRIES))
    yield (
        f"under load, a program with itself: {same} of {TRIES} say no difference shown "
        "(at least 95 wanted)"
    )
    slower = sum(compare(work(110), work(100)).differs for _ in range(TRIES))
    yield f"under load, one that works 10 % more: {slower} of {TRIES} find it (at least 90 wanted)"
    for name, wrong in experiment.WRONG_RATIOS.items():
        claims = sum(abs(wrong(work(100), work(100)) - 1) > 0.05 for _ in range(TRIES))
        yield (
            f"under load, a program with itself, {name}: {claims} of {TRIES} are more than 5 % off"
        )
    medians = [timers_ratio(work(100), work(100)) for _ in range(TRIES)]
    off = sum(abs(ratio - 1) > 0.05 for ratio in medians)
    yield (
        "under load, a program with itself, the medians of two torch.utils.benchmark.Timer: "
        f"{off} of {TRIES} are more than 5 % off"
    )


def work(hundreds: int) -> Callable[[], int]:
    return lambda: sum(range(50 * hundreds))


def timers_ratio(
    ours: Callable[[], object], peer: Callable[[], object], seconds: float = 0.05
) -> float:
    """Measure as a careful user of torch's timer does, in about the time of ``compare``."""
    medians = [
        Timer("f()", globals={"f": f}).blocked_autorange(min_run_time=seconds).median
        for f in (ours, peer)
    ]
    return medians[0] / medians[1]


def cost() -> Iterator[str]:
    """Seconds until the verdict on a difference of 10 %, beside torch's timer, which gives none."""
    pairs = []
    for _ in range(9):
        start = perf_counter()
        assert compare(work(110), work(100)).differs
        ours = perf_counter() - start
        start = perf_counter()
        timers_ratio(work(110), work(100))
        pairs.append((ours, perf_counter() - start))
    yield Comparison.of(pairs).line(
        "time to a verdict", "torch.utils.benchmark.Timer, 2 × 0.05 s, without a verdict"
    )
    program = work(100)
    pairs = [
        (reading(program, 10), Timer("f()", globals={"f": program}).timeit(10).median)
        for _ in range(9)
    ]
    yield Comparison.of(pairs).line("the seconds it reads", "torch.utils.benchmark.Timer")


def roof() -> Iterator[str]:
    """Each operation against the physical limit: the roofline of one core."""
    cpu = torch.device("cpu")
    limits = roofline(cpu, 1)
    for name, make in measuring.OPERATIONS.items():
        for n in (1, 256):
            operation = make(n, cpu)
            least = limits.least_seconds(operation)
            with threads(1):
                pairs = [(fastest(operation.call, 0.05), least) for _ in range(9)]
            yield Comparison.of(pairs).line(
                f"{name}, batch {n}", f"roofline of one core, bound by {limits.bound(operation)}"
            )
    for n in (1, 256):
        operation = measuring.all_reduce(n)
        least = limits.least_seconds(operation)
        pairs = [(experiment.all_reduce_seconds([n])[n], least) for _ in range(9)]
        yield Comparison.of(pairs).line(
            f"all-reduce between 2 processes, batch {n}",
            "the same roofline, as if its bytes went through memory",
        )
    x, weight = torch.rand(64, 784), torch.rand(784, 10)
    for way in (measuring.python_loop, measuring.one_by_one):
        torch.testing.assert_close(way(x, weight), measuring.batched(x, weight))
        with threads(1):
            comparison = compare(
                lambda way=way: way(x, weight), lambda: measuring.batched(x, weight)
            )
        yield comparison.line(f"64 samples, {way.__name__.replace('_', ' ')}", "batched")
