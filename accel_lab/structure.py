"""Depth, width and dropout: what the shape of a network costs, beside the number of its weights.

A network with the same number of weights can be deep and thin, or wide. The weights say how many
sums an answer takes and how many bytes the model needs. They do not say how long it takes:

    parameters  in·w + (depth − 1)·w² + w·out, and a bias for each unit    solved for w: width_for
    seconds     layers · c + sums / speed        c: the calls of one layer, whatever its width
    activations 4 · B · depth · w bytes          grows with depth, at equal parameters too

A layer has to wait for the one before, so depth is serial. The units of one layer wait for nobody:
width is parallel.

Dropout trains with some units left out, other ones each time. It is usually done by a mask, and a
mask is more work: all units are computed, then some are multiplied by zero. If one pattern serves
the whole batch, the units that are left out can be cut out: two smaller matrices are multiplied.

    mask   h · m / (1 − p)           m: zeros and ones [n, width], for each sample another row
    cut    W[rows][:, columns]       rows, columns: the units kept by both layers, once a batch

The traps:

- Without the factor 1 / (1 − p) the sums are larger when all units answer than in training.
- Dropout is for training: an answer needs all units.
- Counting sums, or weights, is not measuring time.
- A deep network without residual connections may learn nothing.
- 0 · NaN is NaN: a mask does not remove a broken unit. A cut does.

Sources: Zagoruyko, Komodakis 2016, "Wide residual networks", arXiv:1605.07146, section 3; He et al.
2015, "Deep residual learning for image recognition", arXiv:1512.03385, section 3.2; Srivastava et
al. 2014, "Dropout", JMLR 15, section 4; Graham, Reizenstein, Robinson 2015, "Efficient batchwise
dropout training using submatrices", arXiv:1502.02478, section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

NUMBER = 4  # bytes of a float32


# ---- the shape ----


def width_for(depth: int, parameters: int, inputs: int, outputs: int) -> int:
    """Find the width at which ``depth`` hidden layers have at most so many parameters.

    parameters: weights and biases of all layers, the first and the last one included.
    Returns the largest width that fits.
    Raises ValueError for a depth below 1, or when not even one unit a layer fits.
    """
    if depth < 1:
        raise ValueError(f"depth: {depth}; a network needs at least 1 hidden layer")
    squares, singles = depth - 1, inputs + outputs + depth  # squares·w² + singles·w + outputs
    if parameters < (least := squares + singles + outputs):
        raise ValueError(f"parameters: {parameters} are too few; this depth needs at least {least}")
    room = parameters - outputs
    if squares == 0:
        return room // singles
    return (isqrt(singles**2 + 4 * squares * room) - singles) // (2 * squares)


class Net(nn.Module):
    """[n, …] → [n, widths[-1]]: linear layers with ReLU between them.

    widths: of the flattened input, of each hidden layer, and of the output.
    residual: add to each hidden layer but the first what went into it.
    Raises ValueError, one line, without a hidden layer, for a width below 1, and for residual
    connections between hidden layers of different widths.
    """

    def __init__(self, *widths: int, residual: bool = False):
        super().__init__()
        if len(widths) < 3 or min(widths) < 1:
            raise ValueError(f"widths: {widths}; give inputs, hidden layers, outputs, each above 0")
        if residual and len(set(widths[1:-1])) > 1:
            raise ValueError(
                f"widths: {widths[1:-1]}; residual connections need hidden layers of equal width"
            )
        layers = [nn.Linear(before, after) for before, after in pairwise(widths)]
        self.layers: Sequence[nn.Linear] = nn.ModuleList(layers)  # ty: ignore[invalid-assignment]
        self.residual = residual

    def forward(self, x: Tensor, drop: Callable[[Tensor], Tensor] = lambda h: h) -> Tensor:
        """drop: what dropout does to the units [n, width] of each hidden layer."""
        first, *others, last = self.layers
        h = drop(first(x.flatten(1)).relu())
        for layer in others:
            new = drop(layer(h).relu())
            h = h + new if self.residual else new
        return last(h)


@dataclass(frozen=True)
class Count:
    """What a network costs on paper. answer_flops: additions and multiplications of its matrix
    products for one batch · update_flops: the same with the gradients · activation_bytes: what is
    kept between forward and backward, with cross-entropy behind it.
    """

    parameters: int
    answer_flops: int
    update_flops: int
    activation_bytes: int


def count(net: Net, batch_size: int) -> Count:
    """Count by formula, for a batch of so many samples, in float32."""
    sizes = [(layer.in_features, layer.out_features) for layer in net.layers]
    products = [before * after for before, after in sizes]
    after = [width for _, width in sizes]
    answer = 2 * batch_size * sum(products)
    # Gradients of weights and of inputs take as much again each; the pictures need none.
    update = 3 * answer - 2 * batch_size * products[0]
    kept = sum(after) + (sum(after[1:-1]) if net.residual else 0)
    return Count(sum(products) + sum(after), answer, update, NUMBER * batch_size * kept)


# ---- dropout ----


def masked_dropout(h: Tensor, p: float) -> Tensor:
    """Multiply each unit of each sample by 0 with probability p, and the others by 1 / (1 − p).

    h: of any shape. Returns the same shape.
    Raises ValueError unless 0 ≤ p < 1.
    """
    _check(p)
    mask = torch.empty_like(h).bernoulli_(1 - p)
    return h * mask / (1 - p)


def draw_kept(net: Net, p: float) -> list[Tensor]:
    """Choose the units that one batch keeps: for each hidden layer their indices [kept].

    Keeps the share 1 − p, rounded, and at least one unit. Raises ValueError unless 0 ≤ p < 1.
    """
    _check(p)
    widths = [layer.out_features for layer in net.layers[:-1]]
    device = net.layers[0].weight.device
    return [
        torch.randperm(width, device=device)[: max(1, round(width * (1 - p)))] for width in widths
    ]


def cut_forward(net: Net, x: Tensor, kept: Sequence[Tensor]) -> Tensor:
    """Answer with the kept units alone: smaller matrices, cut out of the weights.

    x: [n, …] · kept: of each hidden layer, from ``draw_kept``. Returns [n, outputs].
    Raises ValueError for residual connections, which need the same units on both sides, and unless
    each hidden layer keeps a unit.
    """
    if net.residual:
        raise ValueError("net: residual connections need all units; use masked_dropout there")
    if [len(rows) > 0 for rows in kept] != [True] * (len(net.layers) - 1):
        raise ValueError("kept: give the indices of at least one unit for each hidden layer")
    h, columns = x.flatten(1), None
    for layer, rows in zip(net.layers[:-1], kept, strict=True):
        h = cut_layer(layer, h, rows, columns).relu() * (layer.out_features / len(rows))
        columns = rows
    return cut_layer(net.layers[-1], h, None, columns)


def cut_layer(layer: nn.Linear, h: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """Apply a part of a linear layer. h: [n, kept inputs]; returns [n, kept outputs].

    rows, columns: indices of the outputs and inputs that are kept; None keeps all.
    """
    weight, bias = layer.weight, layer.bias
    if rows is not None:
        weight, bias = weight.index_select(0, rows), bias.index_select(0, rows)
    if columns is not None:
        weight = weight.index_select(1, columns)
    return linear(h, weight, bias)


def as_mask(kept: Tensor, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The mask [width] that does to every sample what cutting does: 0, or width / kept.

    Raises ValueError if no unit is kept.
    """
    if len(kept) == 0:
        raise ValueError("kept: give the index of at least one unit")
    mask = torch.zeros(width, dtype=dtype, device=kept.device)
    return mask.index_fill(0, kept, width / len(kept))


def _check(p: float) -> None:
    if not 0 <= p < 1:
        raise ValueError(f"p: {p} is not within 0 and below 1; at 1 no unit would be left")
