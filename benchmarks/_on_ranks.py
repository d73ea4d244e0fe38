"""Programs that run on ranks, timed beside each other: every round times each of them, in an order
that a coin decides.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
import torch.distributed as dist


def seconds_on_ranks(
    programs: dict[str, Callable[[], object]], rounds: int, calls: int, warmup: int = 3
) -> dict[str, list[float]]:
    """seconds a call of each program in each round, every rank's slowest included. To be called on
    all ranks alike.

    A round goes through the programs in a random order and then back, and keeps the faster of the
    two readings.
    """
    coin = random.Random(0)  # the same on all ranks
    for program in programs.values():
        for _ in range(warmup):
            program()
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        order = coin.sample(list(programs), len(programs))
        readings: dict[str, list[float]] = {name: [] for name in programs}
        for name in (*order, *reversed(order)):
            readings[name].append(_seconds(programs[name], calls))
        for name, read in readings.items():
            seconds[name].append(min(read))
    return seconds


def _seconds(program: Callable[[], object], calls: int) -> float:
    _meet()
    start = perf_counter()
    for _ in range(calls):
        program()
    _meet()
    return (perf_counter() - start) / calls


def _meet() -> None:
    dist.all_reduce(torch.zeros(1))  # gloo's barrier may let the first rank go early


def best(seconds: dict[str, list[float]], of: list[str]) -> str:
    """Which of these programs has the lowest median."""
    return min(of, key=lambda name: median(seconds[name]))


def pairs(seconds: dict[str, list[float]], ours: str, peer: str) -> list[tuple[float, float]]:
    return list(zip(seconds[ours], seconds[peer], strict=True))
