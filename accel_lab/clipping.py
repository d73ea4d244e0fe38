"""Gradient clipping: an upper limit for what one batch can do to the weights.

A gradient is large where the loss is steep, and no learning rate fits a batch that is a hundred
times as steep as the others. Clipping changes large gradients between ``backward()`` and
``step()``, and leaves all others as they are. Three rules carry the name, g the whole gradient and
g_i the part of one tensor:

    value        each number:   clamp(g, −c, c)                     turns the direction
    each norm    each tensor:   g_i · min(1, c / ‖g_i‖)             turns the direction
    global norm  all at once:   g · min(1, c / ‖g‖)                 keeps the direction

With the last one a step of SGD is never longer than learning rate · c, and with momentum µ never
longer than learning rate · c / (1 − µ).

The traps:

- The norm is that of the gradient which the optimizer gets: sum it over micro-batches, average it
  over ranks and divide it by the loss scale first.
- ‖g‖² is the sum of the squares of the parts' norms. The sum of the norms is larger.
- No factor repairs a gradient whose norm is NaN or infinite: scaled by it, every number becomes NaN
  or zero. The update has to be skipped.
- A negative limit turns the gradient round, and the training climbs.

Sources: Pascanu, Mikolov, Bengio 2013, "On the difficulty of training recurrent neural networks",
arXiv:1211.5063, section 3.2 (global norm); Mikolov 2012, "Statistical language models based on
neural networks", section 3.2.2 (value).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

Rule = Callable[[Iterable[Tensor], float], Tensor]  # changes gradients, returns their norm before
EXACT = {torch.float32, torch.float64}
EPSILON = 1e-6  # added to a norm, as PyTorch does: a norm of 0 does not divide


def plain_update(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """Update without clipping. x: [n, …], y: labels [n]. Returns the mean loss []."""
    optimizer.zero_grad()
    loss = cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def clipped_update(
    model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, *, rule: Rule, limit: float
) -> tuple[Tensor, Tensor]:
    """Update with a clipped gradient; skip the update if the gradient is not finite.

    x: [n, …], y: labels [n].
    rule, limit: one of the rules below, and its limit c.
    Returns the mean loss [] and the norm [] before clipping; a norm that is NaN or infinite says
    that the weights were left alone.
    """
    optimizer.zero_grad()
    loss = cross_entropy(model(x), y)
    loss.backward()
    norm = rule(gradients_of(model), limit)
    if norm.isfinite():
        optimizer.step()
    return loss.detach(), norm


def gradients_of(model: nn.Module) -> list[Tensor]:
    """Collect the gradients: a tied one once, frozen and unused parameters left out."""
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


# ---- the rules: each changes the gradients in place and returns their global norm before ----


def clip_value_(gradients: Iterable[Tensor], limit: float) -> Tensor:
    """Limit each number to −limit…limit, infinity too; NaN stays NaN.

    Arguments, what is returned and errors: see ``clip_global_norm_``.
    """
    gradients = _checked(gradients, limit)
    norm = global_norm(gradients)
    for gradient in gradients:
        gradient.clamp_(-limit, limit)
    return norm


def clip_each_norm_(gradients: Iterable[Tensor], limit: float) -> Tensor:
    """Limit the norm of each tensor by itself (Keras calls this ``clipnorm``)."""
    gradients = _checked(gradients, limit)
    norm = global_norm(gradients)
    for gradient in gradients:
        clip_global_norm_([gradient], limit)
    return norm


def naive_clip_global_norm_(gradients: Iterable[Tensor], limit: float) -> Tensor:
    """Limit the norm of all gradients together: the formula, tensor by tensor."""
    gradients = _checked(gradients, limit)
    norm = math.sqrt(sum(gradient.norm().item() ** 2 for gradient in gradients))
    scale = min(1.0, limit / (norm + EPSILON))
    for gradient in gradients:
        gradient.mul_(scale)
    return torch.tensor(norm)


def clip_global_norm_(gradients: Iterable[Tensor], limit: float, order: float = 2) -> Tensor:
    """Limit the norm of all gradients together: read them once, write only if they change.

    gradients: of any shapes and floating dtypes, on one device.
    limit: above zero; infinity measures and clips nothing.
    order: of the norm; 2 for its length, infinity for its largest number.
    Returns the norm [] before. On a CPU, a gradient whose norm is not finite stays as it is.
    Raises ValueError for a limit that is not above zero, for parameters in place of gradients, and
    for gradients that are None, sparse, complex or integers. Warns when there are no gradients.
    """
    gradients = _checked(gradients, limit)
    norm = global_norm(gradients, order)
    if norm.is_cuda:  # reading the norm would make the CPU wait for the GPU: multiply by 1 instead
        torch._foreach_mul_(gradients, (limit / (norm + EPSILON)).clamp(max=1))
    elif 0 < (scale := limit / (norm.item() + EPSILON)) < 1:
        torch._foreach_mul_(gradients, norm.new_tensor(scale))  # faster than by a Python number
    return norm


def global_norm(gradients: Iterable[Tensor], order: float = 2) -> Tensor:
    """√(sum of all squares) [], computed in float32 at least; 0 without gradients."""
    gradients = [gradient for gradient in gradients if gradient.numel()]
    if not gradients:
        return torch.zeros(())
    dtypes = {gradient.dtype for gradient in gradients}
    exact = reduce(torch.promote_types, dtypes, torch.float32)
    norms = torch._foreach_norm(gradients, order, None if dtypes == {exact} else exact)
    return torch.linalg.vector_norm(torch.stack(norms), order)


def _checked(gradients: Iterable[Tensor], limit: float) -> list[Tensor]:
    gradients = list(gradients)
    if not limit > 0:
        raise ValueError(
            f"limit: {limit} is not above zero; to keep weights as they are, freeze them instead"
        )
    if strangers := [one for one in gradients if not isinstance(one, Tensor)]:
        kind = type(strangers[0]).__name__
        raise ValueError(f"gradients: {kind} is not a tensor; gradients_of(model) leaves out None")
    if any(gradient.is_leaf and gradient.requires_grad for gradient in gradients):
        raise ValueError("gradients: these are parameters; hand over gradients_of(model) instead")
    kinds = {(gradient.layout, gradient.dtype) for gradient in gradients}
    if any(layout != torch.strided or not dtype.is_floating_point for layout, dtype in kinds):
        raise ValueError(
            "gradients: sparse, complex or integer ones cannot be clipped; make them dense and real"
        )
    if not gradients:
        warnings.warn(
            "there are no gradients to clip: call backward() first, and hand over a list, for a "
            "generator can be read only once",
            stacklevel=3,
        )
    return gradients


# ---- all gradients in one buffer ----


def flat_gradients(model: nn.Module) -> Tensor:
    """Lay the gradients of all trained parameters side by side: clipping then is one pass.

    Returns the buffer [numbers], zeros at first. Every ``.grad`` is a view of it, as long as it is
    cleared by ``zero_grad(set_to_none=False)``. The gradient of an unused parameter is 0, not None.
    Raises ValueError unless all of them, and at least one, are float32, or all float64, on one
    device.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kinds = {(parameter.dtype, parameter.device) for parameter in parameters}
    if len(kinds) != 1 or not {dtype for dtype, _ in kinds} <= EXACT:
        raise ValueError(
            "model: one buffer holds float32 or float64 parameters of one device, at least one of "
            "them trained"
        )
    sizes = [parameter.numel() for parameter in parameters]
    flat = parameters[0].new_zeros(sum(sizes))
    for parameter, part in zip(parameters, flat.split(sizes), strict=True):
        parameter.grad = part.view_as(parameter)
    return flat


def clip_flat_(flat: Tensor, limit: float) -> Tensor:
    """``clip_global_norm_`` on the buffer of ``flat_gradients``: one dot product reads it."""
    _checked([flat], limit)
    numbers = flat.reshape(-1)
    norm = torch.dot(numbers, numbers).sqrt()
    if 0 < (scale := limit / (norm.item() + EPSILON)) < 1:
        flat.mul_(scale)
    return norm
