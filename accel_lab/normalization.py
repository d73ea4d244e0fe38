"""Normalization: bring every input to a scale at which ordinary learning rates train.

Every normalization of inputs is one map per channel, and its inverse:

    y = (x − centre) · scale        x = y / scale + centre

    to 0…1                centre = min             scale = 1 / (max − min)
    to −1…1               centre = (min + max)/2   scale = 2 / (max − min)
    mean and deviation    centre = μ               scale = 1 / σ

σ is the standard deviation, the root of the variance: dividing by the variance gives variance 1/σ²,
not 1. One broken pixel changes minimum and maximum, but hardly μ and σ. All of them must be fitted
on the training split only: otherwise the test set leaks into training.

Why it matters: gradient descent is stable below the learning rate 2/λ, with λ the largest curvature
of the loss. For a linear model λ grows with the second moment of its inputs, E[x xᵀ]: pixels 255
times as large need a learning rate 255² times as small. With hidden layers the factor is smaller.

Batch normalization does the same inside the network, per channel and batch: y = γ·(x − μ_B)/√(σ²_B
+ ε) + β. After the first layer it makes the scale of the inputs irrelevant: BN(W·s·x) = BN(W·x) for
every s > 0, up to ε.

Statistics of data that comes in pieces, and the checks of a batch: ``accel_lab/_statistics.py``.

Sources: LeCun, Bottou, Orr, Müller 1998, "Efficient BackProp", sections 4.3 and 5; Ioffe and
Szegedy 2015, "Batch Normalization", arXiv:1502.03167, algorithms 1 and 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from accel_lab._statistics import Moments, Statistics, Totals, across_ranks, check_scale, fit

__all__ = ["Moments", "Statistics", "Totals", "across_ranks", "fit"]

BLOCK = 2**18  # elements per thread, 1 MiB of float32: fits a core's cache


def naive_normalize(x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Normalize by the usual expression: each operation allocates a tensor of the full size.

    x: [n, channels, …]. mean, deviation: [channels]. Returns float32 of x's shape.
    """
    shape = (-1, *[1] * (x.dim() - 2))
    return (x.float() - mean.float().view(shape)) / deviation.float().view(shape)


@dataclass(frozen=True)
class Normalizer:
    """Maps x to (x − centre) · scale per channel, by statistics fitted once, and back.

    centre, scale, low, high: float64 [channels]; low…high is the fitted range.
    integers: fitted on integers, so it takes integers only; floats would be on another scale.

    A constant channel has scale 1 and becomes 0. NaN stays NaN. Values outside the fitted range are
    not clipped: they end outside the target range.
    """

    centre: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor
    integers: bool

    @classmethod
    def of(cls, statistics: Statistics, centre: Tensor, divisor: Tensor) -> Normalizer:
        """Make the map x → (x − centre) / divisor; centre and divisor are [channels]."""
        low, high = statistics.low, statistics.high
        divisor = torch.where(high == low, 1.0, divisor)  # a constant channel has no scale
        return cls(centre, 1 / divisor, low, high, statistics.integers)

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Normalize in one pass over memory: block by block, each while it is in the caches.

        x: [n, channels, …], may be empty.
        out: buffer to reuse, of x's shape and the result's dtype; new memory costs more than the
        arithmetic.
        Returns x's shape, in float64 for float64 and in float32 for every other dtype.
        Raises ValueError for other channels or another kind of number than the fitted ones.
        Warns of what looks scaled already.
        """
        check_scale(x, self.low, self.high, self.integers)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        if out is None:
            out = torch.empty_like(x, dtype=dtype)
        elif out.shape != x.shape or out.dtype != dtype:
            raise ValueError(
                f"out: {list(out.shape)} of {out.dtype}; {list(x.shape)} of {dtype} is needed"
            )
        shape = (-1, *[1] * (x.dim() - 2))
        centre, scale = (part.to(x.device, dtype).view(shape) for part in (self.centre, self.scale))
        samples = len(x) if x.is_cuda else torch.get_num_threads() * BLOCK // max(1, x[:1].numel())
        for raw, done in zip(x.split(max(1, samples)), out.split(max(1, samples)), strict=True):
            # subtract first: x − μ is exact, while x·(1/σ) − μ/σ would cancel digits
            done.copy_(raw).sub_(centre).mul_(scale)
        return out

    def inverse(self, y: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Map y [n, channels, …] back to x; integers are rounded and clipped to their range."""
        shape = (-1, *[1] * (y.dim() - 2))
        x = y.double() / self.scale.to(y.device).view(shape) + self.centre.to(y.device).view(shape)
        if not dtype.is_floating_point:
            x = x.round().clamp(torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        return x.to(dtype)


def to_zero_one(statistics: Statistics) -> Normalizer:
    """Map the fitted minimum to 0 and the maximum to 1."""
    return Normalizer.of(statistics, statistics.low, statistics.high - statistics.low)


def to_minus_one_one(statistics: Statistics) -> Normalizer:
    """Map the fitted minimum to −1 and the maximum to 1."""
    low, high = statistics.low, statistics.high
    return Normalizer.of(statistics, (low + high) / 2, (high - low) / 2)


def to_unit_variance(statistics: Statistics) -> Normalizer:
    """Map to mean 0 and variance 1 over the fitted data."""
    return Normalizer.of(statistics, statistics.mean, statistics.variance.sqrt())


class BatchNorm(nn.Module):
    """Batch normalization from scratch, equal to nn.BatchNorm1d and 2d, state_dict included.

    Takes and returns x [n, channels, …]. Training uses each batch's own mean and variance (divided
    by n) and updates the running averages (whose variance divides by n − 1); inference uses those.
    Computes in float32 at least, and returns x's dtype, whatever its own: under autocast, too.
    Raises ValueError for other channels, and when training on one value per channel: its deviation
    is always 0.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        exact = x.to(torch.promote_types(x.dtype, torch.float32))  # half precision is too coarse
        mean, variance = self.running_mean.to(exact), self.running_var.to(exact)
        if self.training:
            over = [0, *range(2, x.dim())]
            mean, variance = exact.mean(over), exact.var(over, correction=0)
            self._track(mean.detach(), variance.detach(), x.numel() // x.shape[1])
        shape = (-1, *[1] * (x.dim() - 2))
        centred = (exact - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        return (centred * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)

    def _check(self, x: Tensor) -> None:
        channels = len(self.weight)
        if x.dim() < 2 or x.shape[1] != channels:
            raise ValueError(f"batch norm: {list(x.shape)} given, of [n, {channels}, …]")
        if self.training and x.numel() < 2 * channels:
            raise ValueError(
                "batch norm: one value per channel cannot be normalized; train on at least two "
                "samples"
            )

    def _track(self, mean: Tensor, variance: Tensor, n: int) -> None:
        averages = (self.running_mean, mean), (self.running_var, variance * (n / (n - 1)))
        for average, now in averages:
            average.copy_(average.to(now).lerp(now, self.momentum))
        self.num_batches_tracked += 1
