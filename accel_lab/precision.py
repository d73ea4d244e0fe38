"""Mixed precision: 16-bit numbers where a network multiplies, 32-bit numbers where it remembers.

A number in few bits has few neighbours. Around a weight w in [2^k, 2^(k+1)) they lie

    2^(k−7) apart in bfloat16        2^(k−10) in float16        2^(k−23) in float32

and the nearest one to w + Δ is w itself while |Δ| is less than half of that. (A power of 2 has its
neighbour towards 0 at half the distance.) So a gradient can be right, and its update vanish. Mixed
precision keeps the weights in 32 bits and casts copies of them:

    w₃₂  →  w₁₆ = cast(w₃₂)  →  loss and gradient through w₁₆  →  w₃₂ −= lr · gradient

Which number has how many bits is decided by operation: products of matrices in 16, losses in 32,
everything else in what it gets.

float16 has a second limit, its range: up to 2^−25 a gradient becomes 0, from 65,520 on infinity.
Loss scaling moves gradients into the range: multiply the loss by S, divide the gradients by S in 32
bits, and skip the update where one is not finite. bfloat16 has float32's range and needs none.

The traps:

- Half precision *of the model*, ``model.to(dtype)``, keeps no weights in 32 bits.
- Gradients carry the factor S until they are unscaled: clip, measure and compare them afterwards.
- A skipped update is no update: do not advance a schedule.
- A cast copy belongs to the weights of that moment: enter a new ``Mixed`` for each forward pass.
- ``Mixed`` sees what a model calls. What a composite function such as
  ``multi_head_attention_forward`` calls inside stays as it is; ``torch.autocast`` sees that, too.

Sources: Micikevicius et al. 2018, "Mixed precision training", arXiv:1710.03740, section 3; Kalamkar
et al. 2019, "A study of bfloat16 for deep learning training", arXiv:1905.12322; Gupta et al. 2015,
"Deep learning with limited numerical precision", arXiv:1502.02551, section 3 (stochastic rounding).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from accel_lab._numbers import (
    SIXTEEN,
    SMALLEST_SCALE,
    check_dtype,
    check_scale,
    check_weights,
    warn_of_nan,
)

LOW: set[Callable] = {
    *(F.linear, F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d),
    *(torch.matmul, torch.mm, torch.bmm, torch.addmm, F.scaled_dot_product_attention),
    *(Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm),
}
FULL: set[Callable] = {F.cross_entropy, F.nll_loss, F.mse_loss, F.binary_cross_entropy}


class Mixed(TorchFunctionMode):
    """Within it, operations of ``LOW`` compute in 16 bits and those of ``FULL`` in 32.

    Enter a new one for each forward pass, and leave it before the backward pass. Integers and
    float64 stay as they are. Raises ValueError for a dtype that is not a float of 16 bits.
    """

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        check_dtype(dtype)
        self.dtype, self.copies = dtype, {}

    def __torch_function__(
        self, func: Callable, types: Any, args: Sequence = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        dtype = self.dtype if func in LOW else torch.float32 if func in FULL else None
        if dtype:
            args = [self.cast(value, dtype) for value in args]
            kwargs = {name: self.cast(value, dtype) for name, value in kwargs.items()}
        return func(*args, **kwargs)

    def cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or value.dtype not in (torch.float32, *SIXTEEN):
            return value
        if not (value.is_leaf and value.requires_grad and torch.is_grad_enabled()):
            return value.to(dtype)
        key = value, dtype  # a weight that is used twice is cast once
        if key not in self.copies:
            self.copies[key] = value.to(dtype)
        return self.copies[key]


def pure_update(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """Update a model that was cast whole, ``model.to(dtype)``: the naive version.

    x: [n, …], cast to the weights' dtype; y: labels [n]. Returns the mean loss [] in float32.
    """
    optimizer.zero_grad()
    weights = next(model.parameters())
    loss = F.cross_entropy(model(x.to(weights.dtype)).float(), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def mixed_update(
    model: nn.Module,
    optimizer: Optimizer,
    x: Tensor,
    y: Tensor,
    *,
    dtype: torch.dtype,
    scaler: LossScaler | None = None,
) -> tuple[Tensor, bool]:
    """Update 32-bit weights by a gradient computed in 16 bits.

    x: [n, …]; y: labels [n]; dtype: of the products.
    scaler: what float16 needs; None for bfloat16.
    Returns the mean loss [] and whether the weights were updated.
    Raises ValueError for another dtype, and for a model whose weights are 16-bit numbers already.
    """
    check_weights(model.parameters())
    optimizer.zero_grad()
    with Mixed(dtype):
        loss = F.cross_entropy(model(x), y)
    if scaler is None:
        loss.backward()
        optimizer.step()
        return loss.detach(), True
    (loss * scaler.scale).backward()
    return loss.detach(), scaler.step(optimizer)


# ---- the range: loss scaling ----


class LossScaler:
    """The factor of the loss: smaller after an overflow, larger after a long time without one.

    scale: to begin with · growth, backoff: factors of the scale · interval: updates in a row, none
    of them skipped, before it grows.
    Raises ValueError for values that could not work.
    """

    def __init__(
        self,
        scale: float = 65536.0,
        growth: float = 2.0,
        backoff: float = 0.5,
        interval: int = 2000,
    ):
        check_scale(scale, growth, backoff, interval)
        self.scale, self.growth, self.backoff, self.interval = scale, growth, backoff, interval
        self.in_a_row = 0

    def step(self, optimizer: Optimizer) -> bool:
        """Unscale, and step if all gradients are finite. Returns whether it stepped."""
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        check_weights(parameters)
        finite = unscale_([one.grad for one in parameters if one.grad is not None], self.scale)
        if finite:
            optimizer.step()
        self.update(finite)
        return finite

    def update(self, finite: bool) -> None:
        """Change the scale after an update, ``finite`` or skipped."""
        self.in_a_row = self.in_a_row + 1 if finite else 0
        if not finite:
            self.scale = max(self.scale * self.backoff, SMALLEST_SCALE)
            if self.scale == SMALLEST_SCALE:
                warn_of_nan()
        elif self.in_a_row == self.interval:
            self.scale, self.in_a_row = self.scale * self.growth, 0


def naive_unscale_(gradients: Iterable[Tensor], scale: float) -> bool:
    """Divide each gradient by the scale, then look at each number: the obvious way."""
    finite = True
    for gradient in gradients:
        gradient.div_(scale)
        finite = finite and bool(gradient.isfinite().all())
    return finite


def unscale_(gradients: Sequence[Tensor], scale: float) -> bool:
    """Divide all gradients by the scale in place, if all their numbers are finite.

    Returns whether they are. A sum is finite only if each of its numbers is, and it is fast; where
    it is not, finite numbers may have overflowed it, so each one is looked at.
    """
    gradients = list(gradients)
    if not gradients:
        return True
    total = torch.stack([gradient.sum() for gradient in gradients]).sum()
    finite = bool(total.isfinite()) or all(bool(one.isfinite().all()) for one in gradients)
    if finite:
        torch._foreach_mul_(gradients, 1 / scale)
    return finite


# ---- the spacing: lost updates, and a way without 32-bit weights ----


def half_spacing(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Half the distance from each weight [any shape] to its neighbour away from 0 in ``dtype``.

    So far is the neighbour towards 0 as well, but for powers of 2, where it is half as far.
    """
    kind = torch.finfo(dtype)
    size = weight.float().abs().clamp(min=kind.tiny)
    _, exponent = torch.frexp(size)  # 2^(exponent−1) ≤ size < 2^exponent
    return torch.ldexp(torch.full_like(size, kind.eps / 4), exponent)


def lost_share(weight: Tensor, update: Tensor, dtype: torch.dtype) -> float:
    """Predict which share of the updates vanishes when w + Δ is rounded to ``dtype``, 0 to 1.

    weight, update: of the same shape. Updates of 0 do not count; 0.0 if there are no others.
    Counted as ``half_spacing`` says, so a few too many for weights that are powers of 2.
    """
    some = update != 0
    lost = some & (update.abs() < half_spacing(weight, dtype))
    return float(lost.sum() / some.sum().clamp(min=1))


def stochastic_round(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Round float32 [any shape] to bfloat16, up or down by chance, so that the mean is x.

    bfloat16 is the upper half of float32's bits: a random number is added to the lower half, whose
    carry rounds up, and the lower half is cut off. What bfloat16 can represent stays as it is.
    Raises ValueError for another dtype.
    """
    if x.dtype != torch.float32:
        raise ValueError(f"x: {x.dtype} cannot be rounded this way; hand over float32")
    noise = torch.randint(1 << 16, x.shape, dtype=torch.int32, device=x.device, generator=generator)
    rounded = ((x.view(torch.int32) + noise) & -(1 << 16)).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x).to(torch.bfloat16)
