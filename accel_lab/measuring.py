"""Measuring honestly: is it really faster, and how much faster could it be?

The first question is answered by pairs. One reading of a clock says little: the first call pays for
starting up, and the load of the machine changes all the time.
``accel_lab.workbench.measure.comparison.compare`` times two programs close together, in random
order, again and again, and says "no difference shown" where the pairs do not agree.

The second question is answered by the roofline, ``accel_lab.workbench.measure.roofline``: an
operation lasts at least

    seconds ≥ calls · overhead + max(bytes / (bytes/s), FLOPs / (FLOP/s))

with all three constants measured on this machine. A larger batch helps where it moves fewer bytes
per sample, or needs fewer calls. ``matmul`` reads its weights once for all samples, so it climbs
from the slanted roof (memory) to the flat one (arithmetic). ``element_wise`` has nothing to share,
so its bytes per sample, and its place below the slanted roof, stay the same.

Below are operations to place under the roof, and the same sums computed in three ways.

Sources: Williams, Waterman and Patterson 2009, "Roofline"; Hoefler and Belli 2015, "Scientific
benchmarking of parallel computing systems", rules 4 to 8; Kalibera and Jones 2013, "Rigorous
benchmarking in reasonable time".
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import conv2d, embedding_bag

from accel_lab.workbench.measure.roofline import Operation
from accel_lab.workbench.ranks.wires import bytes_on_the_ring

# ---- the same sums, in three ways: x [n, inputs] times weight [inputs, outputs] ----


def python_loop(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply number by number; Python looks up the types each time. Returns [n, outputs]."""
    rows, columns = x.tolist(), weight.T.tolist()
    return torch.tensor(
        [
            [sum(a * b for a, b in zip(row, column, strict=True)) for column in columns]
            for row in rows
        ]
    )


def one_by_one(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply sample by sample: each call reads all the weights again. Returns [n, outputs]."""
    return torch.stack([row @ weight for row in x])


def batched(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply all samples in one call, which reads the weights once. Returns [n, outputs]."""
    return x @ weight


# ---- operations to place below the roof, each on a batch of n samples of float32 (4 bytes) ----

PIXELS = 28 * 28
WORDS, DIMENSIONS, LENGTH = 20_000, 128, 64  # in the vocabulary, in a word's vector, in a text
CHANNELS, KERNEL = 16, 3


def element_wise(n: int, device: torch.device) -> Operation:
    """Double x [n, 784]: one multiplication per number that is read and written."""
    x = torch.rand(n, PIXELS, device=device)
    return Operation("element-wise", lambda: x * 2, n, flops=n * PIXELS, bytes=4 * 2 * n * PIXELS)


def matmul(n: int, device: torch.device) -> Operation:
    """Multiply x [n, 784] by weight [784, 784]: the larger n, the more FLOPs per weight read."""
    x, weight = torch.rand(n, PIXELS, device=device), torch.rand(PIXELS, PIXELS, device=device)
    numbers = 2 * n * PIXELS + PIXELS**2
    return Operation("matmul", lambda: x @ weight, n, flops=2 * n * PIXELS**2, bytes=4 * numbers)


def convolution(n: int, device: torch.device) -> Operation:
    """Convolve x [n, 16, 28, 28] with 16 kernels of 3 × 3: few weights, many FLOPs per byte."""
    x = torch.rand(n, CHANNELS, 28, 28, device=device)
    weight = torch.rand(CHANNELS, CHANNELS, KERNEL, KERNEL, device=device)
    numbers = n * CHANNELS * PIXELS
    flops, moved = 2 * numbers * CHANNELS * KERNEL**2, 4 * (2 * numbers + weight.numel())
    return Operation("convolution", lambda: conv2d(x, weight, padding=1), n, flops, moved)


def embedding(n: int, device: torch.device) -> Operation:
    """Sum up the vectors of words [n, 64] to [n, 128]: rows from all over a table of 20,000. A row
    that several texts need has to be read from memory once.
    """
    table = torch.rand(WORDS, DIMENSIONS, device=device)
    words = torch.randint(WORDS, (n, LENGTH), device=device)
    rows = round(WORDS * (1 - (1 - 1 / WORDS) ** words.numel()))  # different ones, on average
    added, numbers = words.numel() * DIMENSIONS, (rows + n) * DIMENSIONS
    moved = 8 * words.numel() + 4 * numbers
    return Operation("embedding", lambda: embedding_bag(words, table, mode="sum"), n, added, moved)


def all_reduce(n: int, ranks: int = 2) -> Operation:
    """Add up numbers [n, 784] over ranks; to be called on all of them at once.

    Counts what one rank sends and adds in a ring: the same FLOPs per byte as ``element_wise``, for
    any number of ranks.
    """
    numbers = torch.rand(n, PIXELS)
    added, sent = (ranks - 1) * numbers.numel() // ranks, bytes_on_the_ring(numbers, ranks)
    return Operation("all-reduce", lambda: _summed(numbers), n, flops=added, bytes=sent)


def _summed(numbers: Tensor) -> Tensor:
    dist.all_reduce(numbers)
    return numbers


OPERATIONS: dict[str, Callable[[int, torch.device], Operation]] = {
    "element-wise": element_wise,
    "matmul": matmul,
    "convolution": convolution,
    "embedding": embedding,
}


def separately(operation: Operation, n: int) -> Operation:
    """Call an operation on one sample n times, instead of once on n samples."""

    def call() -> Tensor:
        for _ in range(n):
            result = operation.call()
        return result

    name, flops, moved = f"{operation.name}, one by one", operation.flops, operation.bytes
    return Operation(name, call, n, n * flops, n * moved, pieces=n)
