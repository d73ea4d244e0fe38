"""Hidden units of one network in the order of another's, for ``accel_lab.averaging``.

Source: Ainsworth, Hayase, Srinivasa 2022, "Git Re-Basin", arXiv:2209.04836, section 3.2 (matching
weights).
"""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn

from accel_lab._weights import Weights


@torch.no_grad()
def sorted_like(model: nn.Module, other: nn.Module, rounds: int = 8) -> nn.Module:
    """Return a copy of ``other`` whose hidden units stand in the order of ``model``'s.

    It answers as ``other`` does. Two units are alike when their weights, in and out, point the same
    way; each layer is matched while the others stay, a few rounds long.
    model, other: chains of linear layers with an activation between them.
    Raises ValueError for any other kind of model, other shapes, tied layers, and weights that are
    not finite.
    """
    Weights(other).like(Weights(model))
    copied = copy.deepcopy(other)
    ours, theirs = _linear_layers(model), _linear_layers(copied)
    for _ in range(rounds):
        for (a, after_a), (b, after_b) in zip(pairwise(ours), pairwise(theirs), strict=True):
            order = matching(
                a.weight @ b.weight.T  # [unit of model, unit of other]
                + a.bias[:, None] * b.bias
                + after_a.weight.T @ after_b.weight
            )
            b.weight.copy_(b.weight[order])
            b.bias.copy_(b.bias[order])
            after_b.weight.copy_(after_b.weight[:, order])
    return copied


def _linear_layers(model: nn.Module) -> list[nn.Linear]:
    layers = []
    for layer in model.modules():
        if not list(layer.parameters(recurse=False)):
            continue
        if not isinstance(layer, nn.Linear) or layer.bias is None:
            raise ValueError(f"sorted_like: {layer} is not a linear layer with a bias")
        layers.append(layer)
    if len({id(p) for layer in layers for p in layer.parameters()}) < 2 * len(layers):
        raise ValueError("sorted_like: two layers share a weight, so it has no order of its own")
    return layers


def matching(alike: Tensor) -> Tensor:
    """Pair rows [n] with columns [n], the most alike first: return the column of each row.

    The paper solves for the pairs with the largest sum instead.
    Raises ValueError for a likeness that is not finite.
    """
    if not alike.isfinite().all():
        raise ValueError("matching: a likeness is not finite; do the models hold NaN or infinity?")
    alike, order = alike.to(torch.float64, copy=True), torch.zeros(len(alike), dtype=torch.int64)
    for _ in range(len(alike)):
        row, column = divmod(int(alike.argmax()), len(alike))
        order[row] = column
        alike[row], alike[:, column] = -torch.inf, -torch.inf
    return order
