"""Normalization: bring every input to a scale on which ordinary learning rates train.

Whatever is called normalization of inputs is one map, channel by channel, and its inverse:

    y = (x − centre) · scale        x = y / scale + centre

    to 0…1                centre = min             scale = 1 / (max − min)
    to −1…1               centre = (min + max)/2   scale = 2 / (max − min)
    mean and deviation    centre = μ               scale = 1 / σ

σ is the standard deviation, the root of the variance: dividing by the variance gives variance 1/σ²,
not 1. Minimum and maximum are at the mercy of one broken pixel; μ and σ hardly move. All of them
belong to the training split: fitted on anything else, the test set has a say in the training.

Why it matters: gradient descent is stable below 2/λ, with λ the largest curvature of the loss. For
a linear layer λ grows with the second moment of its inputs, E[x xᵀ]. Pixels 255 times as large need
a learning rate 255² times as small.

Inside the network, batch normalization does the same to each channel of each batch: y = γ·(x −
μ_B)/√(σ²_B + ε) + β. Behind the first layer it makes the scale of the inputs irrelevant: BN(W·s·x)
= BN(W·x) for every s, and so are all gradients.

Source: LeCun, Bottou, Orr, Müller 1998, "Efficient BackProp", sections 4.3 and 5; Ioffe and Szegedy
2015, "Batch Normalization", arXiv:1502.03167, algorithms 1 and 2. Streaming statistics:
``accel_lab/_statistics.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

from accel_lab._statistics import (
    Moments,
    Statistics,
    Totals,
    across_ranks,
    fit,
    refuse_channels_last,
    slow,
)
from accel_lab.workbench import knobs
from accel_lab.workbench.data import datasets
from accel_lab.workbench.device import pick_device
from accel_lab.workbench.loop import classifier_update, train
from accel_lab.workbench.step import Step

__all__ = [
    "Moments",
    "Statistics",
    "Totals",
    "across_ranks",
    "fit",
    "slow",
]  # what comes from _statistics and belongs here

BLOCK = (
    2**18
)  # elements a thread, 1 MiB of float32: what a core's cache holds from one operation to the next


def naive_normalize(x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """x [n, channels, …] → float32: the expression everyone writes. Each operation makes a new
    tensor of the full size.
    """
    shape = (-1, *[1] * (x.dim() - 2))
    return (x.float() - mean.float().view(shape)) / deviation.float().view(shape)


@dataclass(frozen=True)
class Normalizer:
    """y = (x − centre)·scale per channel, fitted once. centre, scale, low, high: float64
    [channels]; low…high is the fitted range.

    A constant channel has scale 1 and comes out as 0. NaN stays NaN. Values outside the fitted
    range go outside the target range: they are not clipped. ``whole``: fitted on integers, so it
    takes integers only; a float picture would be on another scale.
    """

    centre: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor
    whole: bool

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """x [n, channels, …] → the same shape, float64 for float64 and float32 for everything else;
        may be empty.

        One pass over memory: a BLOCK of the pictures for each thread is converted, shifted and
        scaled in ``out`` while it is in the caches. Give ``out`` (the same shape, that dtype) to
        reuse a buffer: new memory costs more than the arithmetic. Raises ValueError, one line, on
        other channels, another kind of number, or values on another scale than fitted.
        """
        self._check(x)
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
            done.copy_(raw).sub_(centre).mul_(
                scale
            )  # subtract first: (x − μ) is exact where x·(1/σ) − μ/σ has lost its digits
        return out

    def inverse(self, y: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """y [n, channels, …] → x. To an integer dtype it rounds and stops at the ends: 255.4 is
        255, and 300 is too, not 44.
        """
        shape = (-1, *[1] * (y.dim() - 2))
        x = y.double() / self.scale.to(y.device).view(shape) + self.centre.to(y.device).view(shape)
        if not dtype.is_floating_point:
            ends = torch.iinfo(dtype)
            x = x.round().clamp(ends.min, ends.max)
        return x.to(dtype)

    def _check(self, x: Tensor) -> None:
        refuse_channels_last(x)
        if x.dim() < 2 or x.shape[1] != len(self.scale):
            raise ValueError(
                f"channels: {list(x.shape)} given; fitted on [n, {len(self.scale)}, …]"
            )
        if x.is_floating_point() == self.whole or x.dtype == torch.bool or x.is_complex():
            fitted = "integers" if self.whole else "floats"
            raise ValueError(
                f"scale: fitted on {fitted} {float(self.low.min()):g}…{float(self.high.max()):g}, "
                f"given {x.dtype}"
            )
        if (
            x.numel()
            and x.is_floating_point()
            and float(self.high.max()) > 2
            and float(self.low.min()) >= 0
        ):
            few = x.flatten()[:: max(1, x.numel() // 4096)]
            if ((few >= 0) & (few <= 1)).all() and (few != few.round()).any():
                raise ValueError(
                    f"scale: fitted on values up to {float(self.high.max()):g}, given fractions of "
                    "0…1: scaled already?"
                )


def to_zero_one(statistics: Statistics) -> Normalizer:
    """The fitted minimum goes to 0 and the maximum to 1."""
    return _normalizer(statistics, statistics.low, statistics.high - statistics.low)


def to_minus_one_one(statistics: Statistics) -> Normalizer:
    """The fitted minimum goes to −1 and the maximum to 1."""
    return _normalizer(
        statistics, (statistics.low + statistics.high) / 2, (statistics.high - statistics.low) / 2
    )


def to_unit_variance(statistics: Statistics) -> Normalizer:
    """Mean 0 and variance 1 over the fitted data."""
    return _normalizer(statistics, statistics.mean, statistics.variance.sqrt())


def divided_by_the_variance(statistics: Statistics) -> Normalizer:
    """A famous mistake: σ² where σ belongs. The variance comes out as 1/σ²."""
    return _normalizer(statistics, statistics.mean, statistics.variance)


def _normalizer(statistics: Statistics, centre: Tensor, divisor: Tensor) -> Normalizer:
    divisor = torch.where(
        statistics.high == statistics.low, 1.0, divisor
    )  # a constant channel has no scale of its own
    return Normalizer(
        centre, 1 / divisor, statistics.low, statistics.high, isinstance(statistics, Totals)
    )


METHODS: dict[str, Callable[[Statistics], Normalizer]] = {
    "0 to 1": to_zero_one,
    "-1 to 1": to_minus_one_one,
    "mean and deviation": to_unit_variance,
}


class BatchNorm(nn.Module):
    """nn.BatchNorm1d and nn.BatchNorm2d from scratch: the same numbers, the same names in the
    state_dict.

    x [n, channels, …]. In training each channel of the batch is normalized by the batch's own mean
    and variance (divided by n), and the running averages are updated (their variance divides by n −
    1). In inference the running averages are used. Raises ValueError when training on a single
    value per channel: its deviation is 0 whatever it is.
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
        over = [0, *range(2, x.dim())]
        mean, variance = (
            (x.mean(over), x.var(over, correction=0))
            if self.training
            else (self.running_mean, self.running_var)
        )
        if self.training:
            self._remember(mean.detach(), variance.detach(), x.numel() // x.shape[1])
        shape = (-1, *[1] * (x.dim() - 2))
        centred = (x - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        return centred * self.weight.view(shape) + self.bias.view(shape)

    def _remember(self, mean: Tensor, variance: Tensor, values: int) -> None:
        if values < 2:
            raise ValueError(
                "batch norm: one value per channel cannot be normalized; train on two "
                "samples or more"
            )
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (values / (values - 1)), self.momentum)
        self.num_batches_tracked += 1


def network(
    layers: int, batch_norm: bool, features: int = 784, width: int = 64, classes: int = 10
) -> nn.Sequential:
    """[n, 1, 28, 28] → [n, 10]: ``layers`` hidden ones of ``width`` with ReLU, each behind a
    BatchNorm if asked.

    Without hidden layers it is softmax regression, and starts from weights of 0, where its
    curvature is known.
    """
    parts: list[nn.Module] = [nn.Flatten()]
    for layer in range(layers):
        parts += [
            nn.Linear(width if layer else features, width),
            *([BatchNorm(width)] if batch_norm else []),
            nn.ReLU(),
        ]
    last = nn.Linear(width if layers else features, classes)
    if not layers:
        nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
    return nn.Sequential(*parts, last)


def largest_stable_rate(x: Tensor, classes: int = 10) -> float:
    """Predicted: the learning rate beyond which softmax regression on x [n, …] leaves its starting
    point by oscillating.

    2/λ with λ the largest curvature of the cross-entropy where all weights are 0: λ_max(E[x
    xᵀ])/classes, x with a 1 for the bias.
    """
    rows = torch.cat([x.flatten(1).double(), torch.ones(len(x), 1, dtype=torch.float64)], 1)
    return float(2 * classes / torch.linalg.eigvalsh(rows.T @ rows / len(rows))[-1])


class Knobs(knobs.Knobs):
    method: Literal["none", "0 to 1", "-1 to 1", "mean and deviation"] = knobs.dial(
        "none", description="what is done to the pixels"
    )
    learning_rate: float = knobs.dial(
        0.1, ge=1e-8, le=100, log=True, description="step size of the optimizer"
    )
    outlier: int = knobs.dial(
        1,
        ge=1,
        le=1000,
        log=True,
        description="brightness of one broken pixel in one picture, in multiples of 255",
    )
    batch_norm: bool = knobs.dial(
        False, description="batch normalization behind every hidden layer"
    )
    mistake: Literal["none", "variance as divisor", "leaked statistics"] = knobs.dial(
        "none", description="a famous mistake to make"
    )
    layers: int = knobs.dial(
        2, ge=0, le=8, panel=False, description="hidden layers, 0 for softmax regression"
    )
    batch_size: int = knobs.dial(128, ge=2, le=1024, panel=False, description="samples per update")
    seed: int = knobs.dial(
        0,
        ge=0,
        le=2**31 - 1,
        panel=False,
        description="of the weights and of the order of the samples",
    )
    device: Literal["auto", "cpu", "cuda"] = knobs.dial(
        "auto", panel=False, description="where to train"
    )


def prepared(knobs: Knobs) -> datasets.Data:
    """The 5,000 digits as the knobs want them: pixels 0…255, one of them broken, then normalized by
    the training split's statistics.
    """
    return _prepared(knobs.method, knobs.outlier, knobs.mistake)


@lru_cache(maxsize=4)  # 16 MB each
def _prepared(method: str, outlier: int, mistake: str) -> datasets.Data:
    digits = datasets.mnist5k()
    train, test = digits.train_x * 255, digits.test_x * 255
    train[0, 0, 0, 0] = 255.0 * outlier if outlier > 1 else 0.0  # a corner, dark in every picture
    if method != "none":
        statistics = fit(torch.cat([train, test]) if mistake == "leaked statistics" else train)
        normalizer = (
            divided_by_the_variance if mistake == "variance as divisor" else METHODS[method]
        )(statistics)
        train, test = normalizer(train), normalizer(test)
    return replace(digits, train_x=train, test_x=test)


def run(knobs: Knobs) -> Iterator[Step]:
    """Train a small network on 4,000 MNIST digits, for ever. The metrics of each Step:

    loss · activation_1, activation_2, …: root mean square of what leaves each hidden layer
    (activation_0 is the input) and test_accuracy, both looked at outside the timed update, every
    tenth time. Raises NonFiniteLoss when the loss explodes.
    """
    torch.manual_seed(knobs.seed)
    device = pick_device(knobs.device)
    digits = prepared(knobs).to(device)
    model = network(knobs.layers, knobs.batch_norm).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=knobs.learning_rate)

    seen: dict[str, float] = {}
    for step in train(
        classifier_update(model, optimizer), digits.batches(knobs.batch_size, knobs.seed)
    ):
        if step.index % 10 == 0:
            seen = look(model, digits)
        yield replace(step, metrics={**step.metrics, **seen})


@torch.no_grad()
def look(model: nn.Sequential, digits: datasets.Data) -> dict[str, float]:
    """Test accuracy (0…1) and the root mean square of the input and of every ReLU's output, in
    inference mode.
    """
    model.eval()
    x, seen = digits.test_x, {"activation_0": float(digits.test_x.square().mean().sqrt())}
    for part in model:
        x = part(x)
        if isinstance(part, nn.ReLU):
            seen[f"activation_{len(seen)}"] = float(x.square().mean().sqrt())
    model.train()
    return seen | {"test_accuracy": float((x.argmax(1) == digits.test_y).double().mean())}
