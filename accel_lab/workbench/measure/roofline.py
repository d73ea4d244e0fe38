"""The roofline: what this machine can do at most, measured, and where an operation stands below it.

An operation moves bytes and does arithmetic on them. However well it is written, it lasts at least
as long as the slower of the two: bytes / (bytes/s) or FLOPs / (FLOP/s). Drawn over the arithmetic
intensity, FLOPs for each byte moved, the two limits make a slanted roof and a flat one. They meet
at the ridge: left of it more arithmetic would cost nothing, right of it moving less would gain
nothing. Small operations stay below both roofs, because calling one costs a while whatever it does.

Memory is no single number: what fits in a cache moves faster. So bytes/s are measured at several
sizes, and an operation is held against those of its own size.

Source: Williams, Waterman and Patterson 2009, "Roofline: an insightful visual performance model for
multicore architectures"; the sizes after Ilic, Pratas and Sousa 2014, "Cache-aware roofline model".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from accel_lab.workbench.device import threads
from accel_lab.workbench.measure.comparison import enough_calls, reading

SIZES = tuple(2**power for power in range(18, 28))  # bytes moved: 256 KiB … 128 MiB
# Rows and columns of the product that shows the FLOP/s: enough work, and short enough to escape
# interruptions; a GPU has more to fill.
MATRIX, MATRIX_OF_A_GPU = 512, 4096
TICK = 1e-7  # seconds: what a coarse clock calls no time took some


@dataclass(frozen=True)
class Operation:
    """Work on a batch, done by ``call``.

    samples: of the batch · flops: additions and multiplications · bytes: the least that has to
    move, each input read once and the result written once · pieces: in how many calls of an
    operation, each with its share of the work.
    """

    name: str
    call: Callable[[], Tensor]
    samples: int
    flops: int
    bytes: int
    pieces: int = 1

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return self.flops / self.bytes


@dataclass(frozen=True)
class Roofline:
    """The limits of one device. ``bandwidth``: (bytes moved, bytes/s) at growing sizes ·
    ``call_seconds``: of the smallest operation.
    """

    bandwidth: tuple[tuple[int, float], ...]
    flops_per_second: float
    call_seconds: float

    @property
    def bytes_per_second(self) -> float:
        """of the largest size: memory, not cache."""
        return self.bandwidth[-1][1]

    @property
    def ridge(self) -> float:
        """FLOP per byte at which the two roofs meet, for what comes from memory."""
        return self.flops_per_second / self.bytes_per_second

    def bandwidth_at(self, size: float) -> float:
        """bytes/s when ``size`` bytes move, on the straight line between the sizes measured (on a
        logarithmic scale).
        """
        sizes, speeds = zip(*self.bandwidth, strict=True)
        return float(np.interp(math.log(size), np.log(sizes), speeds))

    def limits(self, operation: Operation) -> dict[str, float]:
        """Seconds that each limit alone imposes. Bytes and FLOPs can go on at the same time,
        calling takes its own.
        """
        speed = self.bandwidth_at(operation.bytes / operation.pieces)
        return {
            "calls": operation.pieces * self.call_seconds,
            "bytes": operation.bytes / speed,
            "FLOPs": operation.flops / self.flops_per_second,
        }

    def least_seconds(self, operation: Operation) -> float:
        """What no program for this operation can beat here."""
        limits = self.limits(operation)
        return limits["calls"] + max(limits["bytes"], limits["FLOPs"])

    def bound(self, operation: Operation) -> str:
        """Which limit is the hardest: ``calls``, ``bytes`` or ``FLOPs``."""
        limits = self.limits(operation)
        return max(limits, key=limits.__getitem__)


@cache
def roofline(device: torch.device, cores: int = 1) -> Roofline:
    """Measure the limits of a device (of a CPU: of so many cores), in about two seconds; once for
    each.
    """
    with threads(cores):
        speeds = [size / _moving_seconds(size, device) for size in SIZES]
        flops_per_second = _flops_per_second(device)
        one = torch.ones(1, device=device)
        calling = fastest(lambda: torch.neg(one))
    # Less to move is never slower: a size that was measured slower than a larger one had been
    # disturbed.
    speeds = [max(speeds[place:]) for place in range(len(speeds))]
    return Roofline(tuple(zip(SIZES, speeds, strict=True)), flops_per_second, calling)


def _flops_per_second(device: torch.device) -> float:
    """Of a product of float32 matrices. On a GPU in TF32, where it may: convolutions take it
    unasked, and a limit is what nothing can beat.
    """
    size = MATRIX_OF_A_GPU if device.type == "cuda" else MATRIX
    square = torch.ones(size, size, device=device)
    product = torch.empty_like(square)
    asked = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        return 2 * size**3 / fastest(lambda: torch.mm(square, square, out=product))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = asked


def _moving_seconds(size: int, device: torch.device) -> float:
    """The faster of copying, half of the bytes read and half written, and of a dot product, which
    only reads.
    """
    source = torch.ones(size // 8, device=device)  # half of the bytes, in numbers of 4
    target = torch.ones_like(source)
    return min(
        fastest(lambda: target.copy_(source), 0.05),
        fastest(lambda: torch.dot(source, target), 0.05),
    )


def fastest(call: Callable[[], object], seconds: float = 0.1) -> float:
    """Seconds of one call: the fastest of all readings that fit in ``seconds``, at least three. A
    limit is what can be reached.
    """
    call()
    calls, end = enough_calls(call), perf_counter() + seconds
    least = min(reading(call, calls) for _ in range(3))
    while perf_counter() < end:
        least = min(least, reading(call, calls))
    return max(least, TICK)
