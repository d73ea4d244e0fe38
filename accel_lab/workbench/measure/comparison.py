"""Which of two programs is faster, and how sure is that? Paired, alternated, and judged by a test
that load cannot mislead.

A machine's speed drifts while it is measured: clocks change, other programs come and go. So both
programs are timed within moments of each other, again and again, and only the ratio of each such
pair counts. Inside a pair they alternate, A B B A A B …, which cancels what drifts steadily, and a
coin decides who is A. The coin is what makes the verdict safe: between equal programs it alone
decides which way a pair leans, whatever the load does. How *much* faster one is depends on more: a
load that slows one program by another factor than the other moves the ratio itself.

A program is timed a few times within each pair and its fastest time taken, because other programs
can only add to it. One reading of the clock spans as many calls as the program needs to outlast
the clock's own cost: each program has a number of its own, for a short one read a single call at a
time would seem slower than it is.

The verdict is Wilcoxon's signed-rank test, shown as the interval of ratios it does not refuse. It
needs no bell curve and bears outliers. While it is undecided and time permits, more pairs are
taken, and looking again is paid for by being 99 % sure each time.

Sources: Fisher 1935, "The Design of Experiments", section 21 (why a coin); Wilcoxon 1945,
"Individual comparisons by ranking methods"; Hodges and Lehmann 1963, "Estimates of location based
on rank tests" (the interval); Mytkowicz et al. 2009, "Producing wrong data without doing anything
obviously wrong!" (why a fraction of a percent proves nothing).
"""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations_with_replacement, islice
from statistics import median
from time import perf_counter

import torch

from accel_lab.workbench.effort import effort
from accel_lab.workbench.measure.load import BUSY, busy_words, under_watch
from accel_lab.workbench.watched import telling

SURE = 0.99  # certainty of each look at the pairs; there are at most three
NO_LOAD_MAKES = 10.0
WORTH_SAYING = 0.01  # where a function lies in memory alone moves its speed by nearly as much
# Of one reading: the clock itself takes a three-hundredth of it, and a short one escapes
# interruptions.
LEAST_SECONDS = 50e-6
LONG_SECONDS = 100 * LEAST_SECONDS  # no interruption makes a short one last so long
MOST_CALLS = 2**20
# A pair of short programs times each of them up to MOST_ROUNDS times, if that fits in here.
PAIR_SECONDS = 0.1
MOST_ROUNDS = 7

Pair = tuple[float, float]  # seconds of ours, of the peer


@dataclass(frozen=True, repr=False)
class Comparison:
    """Two programs, timed in pairs.

    pairs: (seconds of ours, seconds of the peer), at least one, all above zero · names: of the two
    programs · sure: the certainty of the interval, 0…1 · others: the share of the machine that
    other programs used meanwhile.
    """

    pairs: list[Pair]
    names: tuple[str, str] = ("ours", "peer")
    sure: float = SURE
    others: float = 0.0

    @classmethod
    def of(
        cls, pairs: Iterable[Pair], names: tuple[str, str] = ("ours", "peer"), sure: float = SURE
    ) -> Comparison:
        """From pairs already measured: each within moments of each other, the order within a pair
        left to chance.

        Raises ValueError, one line, without pairs, for seconds that are not above zero, or for a
        certainty that is not between 0.5 and 1.
        """
        if not 0.5 <= sure < 1:
            raise ValueError(f"sure: {sure} is not a certainty from 0.5 to below 1")
        pairs = [(float(ours), float(peer)) for ours, peer in pairs]
        if not pairs:
            raise ValueError("pairs: there are none to compare")
        if not all(0 < seconds < math.inf for pair in pairs for seconds in pair):
            raise ValueError("pairs: seconds must be above zero and finite")
        return cls(pairs, names, sure)

    @property
    def ratios(self) -> list[float]:
        """Our time over the peer's, pair by pair: below 1, ours is faster."""
        return [ours / peer for ours, peer in self.pairs]

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return median(self.ratios)

    @property
    def low(self) -> float:
        return min(self.ratios)

    @property
    def high(self) -> float:
        return max(self.ratios)

    @property
    def interval(self) -> tuple[float, float]:
        """The ratios that these pairs leave possible, with the certainty ``sure``; (0, ∞) with too
        few pairs to prove anything (fewer than eight at 99 %).
        """
        logs = [math.log(ratio) for ratio in self.ratios]
        at_each_end = _refused(len(logs), self.sure)
        if at_each_end == 0:
            return 0.0, math.inf
        means = sorted((one + other) / 2 for one, other in combinations_with_replacement(logs, 2))
        return math.exp(means[at_each_end - 1]), math.exp(means[-at_each_end])

    @property
    def differs(self) -> bool:
        """Surely not equal, and by more than ``WORTH_SAYING``."""
        low, high = self.interval
        return low > 1 + WORTH_SAYING or high < 1 / (1 + WORTH_SAYING)

    @property
    def settled(self) -> bool:
        """More pairs would not change the verdict: it differs, or what it could differ by is not
        ``WORTH_SAYING``.
        """
        low, high = self.interval
        return self.differs or (low > 1 / (1 + WORTH_SAYING) and high < 1 + WORTH_SAYING)

    @property
    def proved(self) -> bool:
        """It differs, and not because of a load that the two meet unlike each other, as programs on
        one core and on two do: the machine was quiet, or the factor is beyond ``NO_LOAD_MAKES``.
        """
        quiet = self.others <= BUSY
        return self.differs and (quiet or not 1 / NO_LOAD_MAKES < self.ratio < NO_LOAD_MAKES)

    def __str__(self) -> str:
        ours, peer = self.names
        low, high = self.interval
        if low == 0:
            return f"no verdict: {len(self.pairs)} pairs of {ours} and {peer} are too few to tell"
        spread = f"{_factor(low)}–{_factor(high)} over {len(self.pairs)} pairs"
        if self.others > BUSY:
            spread += f" ({busy_words(self.others)})"
        if self.differs and not self.proved:
            return f"not settled: {ours} took {_factor(self.ratio)} × the time of {peer}, {spread}"
        if self.differs:
            return f"{ours} takes {_factor(self.ratio)} × the time of {peer}, {spread}"
        return f"no difference shown between {ours} and {peer}: {_factor(self.ratio)} ×, {spread}"

    __repr__ = __str__

    def line(self, case: str, peer: str) -> str:
        """How a benchmark reports it: the median, and the least and the greatest ratio of all
        pairs.
        """
        return (
            f"{case}: ratio {self.ratio:.2f} ({self.low:.2f}–{self.high:.2f} of "
            f"{len(self.pairs)} pairs) vs {peer}"
        )


def compare(
    ours: Callable[[], object],
    peer: Callable[[], object],
    pairs: int = 9,
    warmup: int = 1,
    names: tuple[str, str] = ("ours", "peer"),
    patience: float = 10.0,
    sure: float = SURE,
) -> Comparison:
    """Time two programs that do the same work, both on this machine, now. A panel that trains is
    stopped first.

    warmup: how often each runs before it is timed · patience: seconds within which an undecided
    comparison may take up to four times as many pairs; the first ``pairs`` are always taken,
    however long they last · sure: the certainty wanted of each look. Who compares k candidates with
    one another needs 1 − 0.01/k, or one in a hundred equal ones wins by luck *each time*; that
    takes more pairs. Raises ValueError for pairs < 1, or as ``Comparison.of`` does; TypeError for
    what would only be made by a call and not run, a coroutine or a generator.
    """
    if pairs < 1:
        raise ValueError(f"pairs: {pairs}; a comparison needs at least one")
    for program, name in zip((ours, peer), names, strict=True):
        _refuse_what_does_not_run(program, name)
    with under_watch() as load, telling(f"{names[0]} and {names[1]} take turns") as say:
        for _ in range(warmup):
            ours(), peer()
        start, patience = perf_counter(), patience * effort()
        measured = _counted(_measure(ours, peer), say)
        taken = list(islice(measured, pairs))
        for most in (2 * pairs, 4 * pairs):
            if Comparison.of(taken, names, sure).settled:
                break
            while len(taken) < most and perf_counter() - start < patience:
                taken.append(next(measured))
    return replace(Comparison.of(taken, names, sure), others=load.others)


def _counted(pairs: Iterator[Pair], say: Callable[[str], None]) -> Iterator[Pair]:
    for number, pair in enumerate(pairs, start=1):
        say(f"pair {number}")
        yield pair


def _refuse_what_does_not_run(program: Callable[[], object], name: str) -> None:
    called = program if inspect.isroutine(program) else type(program).__call__
    lazy = {
        "a coroutine": inspect.iscoroutinefunction,
        "a generator": inspect.isgeneratorfunction,
        "an asynchronous generator": inspect.isasyncgenfunction,
    }
    for made, is_one in lazy.items():
        if is_one(program) or is_one(called):
            raise TypeError(
                f"{name}: a call of it only makes {made}, which is not run; compare a function "
                "that does the work before it returns"
            )


def _measure(ours: Callable[[], object], peer: Callable[[], object]) -> Iterator[Pair]:
    """Pairs of seconds a call, without end."""
    coin = random.Random()  # not the global one: a learner's seed stays untouched
    programs = (ours, peer)
    calls = _calls_of_each(*(enough_calls(program) for program in programs))
    both = sum(
        count * reading(program, count) for program, count in zip(programs, calls, strict=True)
    )
    rounds = min(max(1, int(PAIR_SECONDS / both)), MOST_ROUNDS)
    while True:
        seconds: tuple[list[float], list[float]] = ([], [])
        first = coin.getrandbits(1)
        for round in range(rounds):
            a, b = (first, 1 - first) if round % 2 == 0 else (1 - first, first)
            seconds[a].append(reading(programs[a], calls[a]))
            seconds[b].append(reading(programs[b], calls[b]))
        if min(*seconds[0], *seconds[1]) > 0:
            yield min(seconds[0]), min(seconds[1])
        else:  # the clock has coarse ticks
            calls = 2 * calls[0], 2 * calls[1]


def _calls_of_each(ours: int, peer: int) -> tuple[int, int]:
    """The same number for two programs that may be equal: else the clock's share of a reading
    would differ, in all pairs alike, and look like a difference.
    """
    most = max(ours, peer)
    return (most, most) if most <= 2 * min(ours, peer) else (ours, peer)


def reading(program: Callable[[], object], calls: int = 1) -> float:
    """Seconds of one call, read off the clock once over ``calls`` of them.

    A GPU answers before it has worked, so it is waited for on both sides.
    """
    _wait_for_device()
    start = perf_counter()
    for _ in range(calls):
        program()
    _wait_for_device()
    return (perf_counter() - start) / calls


def enough_calls(program: Callable[[], object]) -> int:
    """How many calls last so long, ``LEAST_SECONDS``, that reading the clock does not count: a
    power of two. The fastest of three readings decides, for one that was interrupted asks for too
    few.
    """
    calls = 1
    while calls < MOST_CALLS:
        if (first := calls * reading(program, calls)) > LONG_SECONDS:
            break
        least = min(first, *(calls * reading(program, calls) for _ in range(2)))
        if least >= LEAST_SECONDS:
            break
        calls *= 2
    return calls


def _wait_for_device() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@cache
def _refused(pairs: int, sure: float = SURE) -> int:
    """How many of the sorted means of two log-ratios to leave out at each end, so that the rest
    holds the truth with the certainty ``sure``.

    Each pair leans either way with a chance of one half: ways[w] counts in how many of the 2^pairs
    outcomes the ranks of the pairs that lean one way add up to w.
    """
    ways = [1]
    for rank in range(1, pairs + 1):
        ways = [a + b for a, b in zip(ways + [0] * rank, [0] * rank + ways, strict=True)]
    allowed, refused = (1 - sure) / 2 * 2**pairs, 0
    while sum(ways[: refused + 1]) <= allowed:
        refused += 1
    return refused


def _factor(ratio: float) -> str:
    """In as many digits as mean something: 0.97, 12.34, 1,070."""
    return f"{ratio:.2f}" if ratio < 100 else f"{float(f'{ratio:.3g}'):,.0f}"
