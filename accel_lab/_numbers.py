"""What mixed precision refuses, in one line each."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

SIXTEEN = (torch.bfloat16, torch.float16)
SMALLEST_SCALE = 2.0**-32


def check_dtype(dtype: torch.dtype) -> None:
    """Raise ValueError for a dtype that is not a float of 16 bits."""
    if dtype not in SIXTEEN:
        raise ValueError(f"dtype: {dtype} is not torch.bfloat16 or torch.float16; take one")


def check_weights(parameters: Iterable[Tensor]) -> None:
    """Raise ValueError for weights that are 16-bit numbers."""
    for parameter in parameters:
        if parameter.dtype in SIXTEEN:
            raise ValueError(
                f"model: its weights are {parameter.dtype} already; keep them in float32, Mixed "
                "casts them"
            )


def check_scale(scale: float, growth: float, backoff: float, interval: int) -> None:
    """Raise ValueError for a scaler that could not work."""
    if not SMALLEST_SCALE <= scale < math.inf:
        raise ValueError(f"scale: {scale}; take a finite one of {SMALLEST_SCALE:.2g} or more")
    if not 1 <= growth < math.inf:
        raise ValueError(f"growth: {growth} would not raise the scale; take 1 or more")
    if not 0 < backoff <= 1:
        raise ValueError(f"backoff: {backoff}; take a factor above 0, and 1 at most")
    if not (isinstance(interval, int) and interval >= 1):
        raise ValueError(f"interval: {interval} updates; take a whole number, 1 or more")


def warn_of_nan() -> None:
    warnings.warn(
        "the gradient is not finite at any scale: look for NaN in the data or the weights",
        stacklevel=4,
    )
