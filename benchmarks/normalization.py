"""Normalized floats from uint8 pictures, statistics of a data set, and batch norm, beside peers.

The limit is a copy: writing these bytes cannot be faster than reading and writing floats. Results
go either into a buffer that is kept (``out=``), or into new memory, which the system must first
provide; the peers always take new memory. For the small batch malloc sometimes keeps that memory
between calls and sometimes returns it, which makes the same expression several times as slow: where
it is kept, what remains is the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator

import kornia
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from accel_lab.normalization import BatchNorm, fit, naive_normalize, to_unit_variance
from accel_lab.workbench.measure.comparison import compare


def cases() -> Iterator[str]:
    generator = torch.Generator().manual_seed(0)
    for shape in ((256, 3, 32, 32), (64, 3, 224, 224), (256, 3, 224, 224)):
        yield from pictures(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))
    yield from statistics(
        torch.randint(0, 256, (2000, 3, 64, 64), dtype=torch.uint8, generator=generator)
    )
    yield from batch_norm(torch.randn(64, 32, 28, 28, generator=generator))


def pictures(x: Tensor) -> Iterator[str]:
    normalize = to_unit_variance(fit(x))
    mean, deviation = normalize.centre.float(), (1 / normalize.scale).float()
    floats, out = x.float(), torch.empty(x.shape)
    module = kornia.augmentation.Normalize(mean, deviation)
    peers = {
        "the naive expression": lambda: naive_normalize(x, mean, deviation),
        "kornia.enhance.normalize": lambda: kornia.enhance.normalize(x.float(), mean, deviation),
        "kornia.augmentation.Normalize": lambda: module(x.float()),
    }
    size = "×".join(map(str, x.shape))
    for name, peer in peers.items():
        torch.testing.assert_close(normalize(x), peer(), rtol=1e-4, atol=1e-4)
        yield compare(lambda: normalize(x, out), peer).line(
            f"{size} uint8 into a kept buffer", name
        )
    yield compare(lambda: normalize(x, out), lambda: out.copy_(floats)).line(
        f"{size} uint8 into a kept buffer", "a copy of as many floats"
    )
    yield compare(lambda: normalize(x), peers["the naive expression"]).line(
        f"{size} uint8 into new memory", "the naive expression"
    )
    yield compare(lambda: normalize(x), floats.clone).line(
        f"{size} uint8 into new memory", "a copy into new memory"
    )


def statistics(x: Tensor) -> Iterator[str]:
    """Fit in 20 batches, as from a disk; scikit-learn needs rows of channels, torch all at once."""
    batches = x.split(100)

    def scikit_learn() -> StandardScaler:
        scaler = StandardScaler()
        for batch in batches:
            scaler.partial_fit(batch.movedim(1, -1).reshape(-1, 3).numpy())
        return scaler

    def naive() -> tuple[Tensor, Tensor]:
        floats = x.double()
        return floats.mean((0, 2, 3)), floats.var((0, 2, 3), correction=0)

    ours = fit(batches)
    torch.testing.assert_close(ours.mean, torch.tensor(scikit_learn().mean_), rtol=1e-9, atol=0)
    torch.testing.assert_close(ours.variance, naive()[1], rtol=1e-9, atol=0)
    yield compare(lambda: fit(batches), scikit_learn).line(
        "statistics of 25 M pixels in 20 batches", "scikit-learn's partial_fit"
    )
    yield compare(lambda: fit(batches), naive).line(
        "statistics of 25 M pixels in 20 batches", "all at once in float64"
    )


def batch_norm(x: Tensor) -> Iterator[str]:
    """Compare batch norms: PyTorch's is one kernel, ours passes over memory per operation."""
    ours, theirs = BatchNorm(32), nn.BatchNorm2d(32)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.running_var, theirs.running_var)

    def forward_and_backward(module: nn.Module) -> None:
        module(x).square().sum().backward()

    yield compare(lambda: forward_and_backward(ours), lambda: forward_and_backward(theirs)).line(
        "batch norm 64×32×28×28, forward and backward", "nn.BatchNorm2d"
    )
