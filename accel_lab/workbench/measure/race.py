"""Several ways of the same work take turns, so that all meet the same moments of a busy machine.

``race`` keeps whole runs open and lets each make some updates in turn; ``race_on_ranks`` times
programs that all ranks execute together. Every round goes through the ways in a random order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Hashable, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import TypeVar

import torch
import torch.distributed as dist

from accel_lab.workbench.effort import effort
from accel_lab.workbench.knobs import Knobs
from accel_lab.workbench.measure.comparison import Comparison
from accel_lab.workbench.measure.load import under_watch
from accel_lab.workbench.step import Step
from accel_lab.workbench.watched import telling

Way = TypeVar("Way", bound=Hashable)
Run = Callable[[Knobs], Generator[Step, None, None]]


class Readings(dict[Way, list[float]]):
    """Way → seconds in each round. ``others``: the share of the machine that other programs used
    meanwhile, 0…1.
    """

    others = 0.0


def race(run: Run, ways: Mapping[Way, Knobs], rounds: int = 9, updates: int = 3) -> Readings[Way]:
    """Seconds of an update of each way in each round: the fastest of so many ``updates``.

    Two updates before these are not timed: they were begun while another way was. One whole round
    warms up. A quick look takes fewer rounds, see ``effort``.
    """
    rounds = _fewer(rounds)
    seconds: dict[Way, list[float]] = {way: [] for way in ways}
    with ExitStack() as stack:
        load = stack.enter_context(under_watch())
        say = stack.enter_context(telling("the ways take turns"))
        runs = {way: stack.enter_context(closing(run(knobs))) for way, knobs in ways.items()}
        for number in range(1 + rounds):
            say(f"round {number} of {rounds}")
            for way in random.sample(list(runs), len(runs)):
                next(runs[way]), next(runs[way])
                seconds[way].append(min(next(runs[way]).seconds for _ in range(updates)))
        readings = Readings({way: taken[1:] for way, taken in seconds.items()})
        readings.others = load.others
    return readings


def race_on_ranks(
    programs: Mapping[Way, Callable[[], object]], rounds: int, calls: int, warmup: int = 3
) -> dict[Way, list[float]]:
    """Seconds of a call of each program in each round, on the slowest rank. All ranks call this.

    A round goes through the programs in a random order and then back, and keeps the faster of the
    two readings. A quick look takes fewer rounds.
    """
    rounds = _fewer(rounds)
    coin = random.Random(0)  # the same on all ranks
    for program in programs.values():
        for _ in range(warmup):
            program()
    seconds: dict[Way, list[float]] = {way: [] for way in programs}
    for _ in range(rounds):
        order = coin.sample(list(programs), len(programs))
        readings: dict[Way, list[float]] = {way: [] for way in programs}
        for way in (*order, *reversed(order)):
            readings[way].append(_seconds(programs[way], calls))
        for way, read in readings.items():
            seconds[way].append(min(read))
    return seconds


def _fewer(rounds: int) -> int:
    return max(min(rounds, 2), round(rounds * effort()))


def _seconds(program: Callable[[], object], calls: int) -> float:
    _meet()
    start = perf_counter()
    for _ in range(calls):
        program()
    _meet()
    return (perf_counter() - start) / calls


def _meet() -> None:
    dist.all_reduce(torch.zeros(1))  # gloo's barrier may let the first rank go early


def compared(
    seconds: Mapping[Way, list[float]], ours: Way, peer: Way, names: tuple[str, str] | None = None
) -> Comparison:
    """Two of the ways that raced, round by round."""
    pairs = zip(seconds[ours], seconds[peer], strict=True)
    found = Comparison.of(pairs, names or (str(ours), str(peer)))
    return replace(found, others=getattr(seconds, "others", 0.0))


def fastest_of(seconds: Mapping[Way, list[float]], ways: list[Way]) -> Way:
    """Which of these ways has the lowest median."""
    return min(ways, key=lambda way: median(seconds[way]))


def break_even(ratios: Mapping[float, Comparison], what: str) -> str:
    """From which size on ours is surely faster, and up to which it is surely slower, in words.

    ratios: size → comparison · what: the size's name, as in "surely faster from width 256 on".
    """
    sizes = sorted(ratios)
    slower = [size for size in sizes if ratios[size].proved and ratios[size].ratio > 1]
    surely = {size: ratios[size].proved and ratios[size].ratio < 1 for size in sizes}
    faster = [size for size in sizes if all(surely[larger] for larger in sizes if larger >= size)]
    said = [f"surely slower up to {what} {max(slower):g}"] if slower else []
    said.append(
        f"surely faster from {what} {min(faster):g} on" if faster else f"at no {what} surely faster"
    )
    return ", ".join(said)
