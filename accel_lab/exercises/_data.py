"""Seeded data for cases: the same seed, the same tensors."""

from __future__ import annotations

import random

import torch
from torch import Tensor


def generator(rng: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.randrange(2**31))


def normal(rng: random.Random, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=generator(rng), dtype=dtype)


def uniform(rng: random.Random, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """From [0, 1)."""
    return torch.rand(*shape, generator=generator(rng), dtype=dtype)


def whole(
    rng: random.Random, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64
) -> Tensor:
    """From low to high - 1."""
    return torch.randint(low, high, shape, generator=generator(rng), dtype=dtype)


def shuffled(rng: random.Random, n: int) -> Tensor:
    return torch.randperm(n, generator=generator(rng))
