"""Per-channel statistics for ``accel_lab.normalization``: one pass, constant memory, any pieces.

Pixels are integers, and sums of integers are exact. For 8- and 16-bit integers ``Totals`` keeps n,
Σx and Σx² as Python integers, which never overflow. So chunks and ranks can be merged in any order,
and the mean and the variance

    μ = Σx / n        σ² = (n·Σx² − (Σx)²) / n²

are the same to the last bit, each rounded once. With floats the second formula cancels
catastrophically: it subtracts two large numbers. ``Moments`` keeps the mean and M2 = Σ(x − μ)²
instead, and merges two parts a and b by

    δ = μ_b − μ_a        μ = μ_a + δ·n_b/n        M2 = M2_a + M2_b + δ²·n_a·n_b/n

which is right up to float64 rounding, however the data is cut.

Source: Chan, Golub, LeVeque 1983, "Algorithms for Computing the Sample Variance", section 3
(merging) and section 2 (what goes wrong); Welford 1962 is the case n_b = 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from accel_lab._layout import doubt_layout

BLOCK = 2**18  # elements looked at together: in float64 they fit a core's cache
# Σx² of a BLOCK of these is below 2⁵³: float64 holds it without rounding
EXACT = (torch.uint8, torch.int8, torch.uint16, torch.int16)


@dataclass(frozen=True)
class Totals:
    """Exact sums over 8- or 16-bit integers, per channel; ``a + b`` merges, in any order."""

    counts: tuple[int, ...]
    sums: tuple[int, ...]
    squares: tuple[int, ...]
    low: Tensor  # [channels], float64 on the CPU, as are all tensors here, wherever the data is
    high: Tensor
    integers: ClassVar[bool] = True

    @classmethod
    def of(cls, block: Tensor) -> Totals:
        """Sum up a block [n, channels, …] of at most BLOCK elements."""
        x = _channels_first(block).double()
        counts = (x.shape[1],) * len(x)
        sums, squares = (tuple(map(int, part.tolist())) for part in (x.sum(1), x.square().sum(1)))
        return cls(counts, sums, squares, x.amin(1).cpu(), x.amax(1).cpu())

    def __add__(self, other: Totals) -> Totals:
        counts, sums, squares = (
            tuple(a + b for a, b in zip(getattr(self, name), getattr(other, name), strict=True))
            for name in ("counts", "sums", "squares")
        )
        low, high = torch.minimum(self.low, other.low), torch.maximum(self.high, other.high)
        return Totals(counts, sums, squares, low, high)

    @property
    def mean(self) -> Tensor:
        parts = zip(self.counts, self.sums, strict=True)
        return torch.tensor([total / n for n, total in parts], dtype=torch.float64)

    @property
    def variance(self) -> Tensor:
        """Σ(x − μ)²/n, the population's: integers up to one division at the end."""
        parts = zip(self.counts, self.sums, self.squares, strict=True)
        variances = [(n * squares - total * total) / (n * n) for n, total, squares in parts]
        return torch.tensor(variances, dtype=torch.float64)


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations, per channel; ``a + b`` merges by Chan's rule."""

    count: Tensor  # [channels], float64, as are all
    mean: Tensor
    m2: Tensor
    low: Tensor
    high: Tensor
    integers: bool = (
        False  # whether the data were; sums of 32 bits and more are rounded all the same
    )

    @classmethod
    def of(cls, block: Tensor) -> Moments:
        """Sum up a block [n, channels, …]; NaN is left out, so channels may differ in count."""
        x = _channels_first(block).double()
        missing = x.isnan()
        count = (~missing).sum(1).double()
        mean = x.nansum(1) / count.clamp(min=1)
        m2 = (x - mean[:, None]).square().nansum(1)
        low = x.masked_fill(missing, float("inf")).amin(1)
        high = x.masked_fill(missing, float("-inf")).amax(1)
        parts = (part.cpu() for part in (count, mean, m2, low, high))
        return cls(*parts, not block.is_floating_point())

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        share = other.count / count.clamp(min=1)
        delta = other.mean - self.mean
        mean = self.mean + delta * share
        m2 = self.m2 + other.m2 + delta.square() * self.count * share
        low, high = torch.minimum(self.low, other.low), torch.maximum(self.high, other.high)
        return Moments(count, mean, m2, low, high, self.integers)

    @property
    def variance(self) -> Tensor:
        """Σ(x − μ)²/n, the population's."""
        return self.m2 / self.count


Statistics = Totals | Moments


def fit(batches: Iterable[Tensor] | Tensor, *, skip_nan: bool = False) -> Statistics:
    """Compute statistics of the training split, in one pass and the memory of one batch.

    batches: of [n, channels, …]; n and picture size may differ, channels and dtype may not.
    skip_nan: leave NaN out instead of refusing it.
    Returns Totals for 8- and 16-bit integers, Moments otherwise.
    Raises ValueError, one line, for no samples; infinite values or NaN; other channels or another
    dtype than the first batch's. Warns of a layout that looks like [n, height, width, channels].
    """
    seen: Statistics | None = None
    first: tuple[int, torch.dtype] | None = None  # channels and dtype, not the batch itself
    for place, batch in enumerate([batches] if isinstance(batches, Tensor) else batches):
        _check(batch, place, first, skip_nan)
        first = first or (batch.shape[1], batch.dtype)
        for block in _blocks(batch):
            part = (Totals if batch.dtype in EXACT else Moments).of(block)
            seen = part if seen is None else seen + part
    if seen is None:
        raise ValueError("statistics: no samples, so there is nothing to fit; give at least one")
    if isinstance(seen, Moments) and not seen.count.all():
        raise ValueError(f"statistics: channel {int(seen.count.argmin())} holds nothing but NaN")
    return seen


def _check(
    batch: Tensor, place: int, first: tuple[int, torch.dtype] | None, skip_nan: bool
) -> None:
    if not isinstance(batch, Tensor) or batch.dim() < 2:
        what = f"{list(batch.shape)}" if isinstance(batch, Tensor) else type(batch).__name__
        raise ValueError(
            f"statistics: batch {place} is {what}; a tensor [n, channels, …] is needed"
        )
    if batch.dtype == torch.bool or batch.is_complex():
        raise ValueError(f"statistics: {batch.dtype} has no scale; turn it into numbers first")
    doubt_layout(batch)
    if first is not None and (batch.shape[1], batch.dtype) != first:
        raise ValueError(
            f"statistics: batch {place} has {batch.shape[1]} channels of {batch.dtype}, the first "
            f"{first[0]} of {first[1]}"
        )
    if batch.is_floating_point():
        if batch.isinf().any():
            raise ValueError(f"statistics: batch {place} holds an infinite value; repair it first")
        if not skip_nan and (missing := int(batch.isnan().sum())):
            raise ValueError(
                f"statistics: batch {place} holds {missing} NaN; repair them, or leave them out "
                "with skip_nan=True"
            )


def check_scale(x: Tensor, low: Tensor, high: Tensor, integers: bool) -> None:
    """Raise ValueError, one line, for x of other channels or another kind of number than fitted.

    Warns of fractions of 0…1 where larger numbers were fitted: they may have been scaled before.

    x: should be [n, channels, …]. low, high: fitted range [channels]. integers: fitted on integers.
    """
    if x.dim() < 2 or x.shape[1] != len(low):
        last = "; give x.movedim(-1, 1)" if x.dim() > 2 and x.shape[-1] == len(low) else ""
        raise ValueError(f"channels: {list(x.shape)} given; fitted on [n, {len(low)}, …]{last}")
    if x.is_floating_point() == integers or x.dtype == torch.bool or x.is_complex():
        fitted = f"{'integers' if integers else 'floats'} {low.min():g}…{high.max():g}"
        raise ValueError(f"scale: fitted on {fitted}, given {x.dtype}; give what was fitted on")
    if x.numel() and x.is_floating_point() and high.max() > 2 and low.min() >= 0:
        some = x.flatten()[:: max(1, x.numel() // 4096)]
        if ((some >= 0) & (some <= 1)).all() and (some != some.round()).any():
            warnings.warn(
                f"scale: fitted on values up to {high.max():g}, given fractions of 0…1; were they "
                "scaled already?",
                stacklevel=3,
            )


def across_ranks(statistics: Statistics) -> Statistics:
    """Merge all ranks' statistics, in rank order, so that rounding is the same on every rank."""
    every: list[Statistics | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, statistics)
    total, *others = every
    for other in others:
        total = total + other
    return total


def two_pass(x: Tensor) -> dict[str, Tensor]:
    """Compute the same as ``fit`` the plain way: all of x [n, channels, …] at once, in float64."""
    rows = _channels_first(x).double()
    mean = rows.mean(1)
    return {
        "mean": mean,
        "variance": (rows - mean[:, None]).square().mean(1),
        "low": rows.amin(1),
        "high": rows.amax(1),
    }


def _blocks(batch: Tensor) -> Iterator[Tensor]:
    """Cut [n, channels, …] into [samples, channels, pixels] of at most BLOCK elements a channel."""
    pixels = max(1, BLOCK // max(1, batch.shape[1]))
    for some in batch.split(max(1, BLOCK // max(1, batch[:1].numel()))):
        rows = some[:, :, None].flatten(2)
        yield from (block for block in rows.split(pixels, 2) if block.numel())


def _channels_first(x: Tensor) -> Tensor:
    """[n, channels, …] → [channels, n·…]"""
    return x.transpose(0, 1).flatten(1)
