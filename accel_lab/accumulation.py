"""Gradient accumulation: the gradient of a large batch in the memory of a small one.

The loss of a batch with n labels is a mean, and a mean splits into weighted parts. For
micro-batches with n_i labels each

    L = (1/n) Σ_j l_j = Σ_i (n_i/n) L_i        hence        ∇L = Σ_i (n_i/n) ∇L_i

and ``backward()`` adds to ``.grad``. Calling it once per micro-batch leaves the gradient of the
whole batch there, while only one micro-batch's activations exist at a time: with m equal
micro-batches, activation memory peaks at 1/m of the full batch's. The arithmetic is the same, so
accumulation by itself makes nothing faster.

The traps:

- A sum of means without the weights n_i/n is m times too large.
- The weight 1/m instead of n_i/n is wrong as soon as micro-batches differ in size.
- n counts what the mean runs over. Padding, labelled −100, is not among it: padded micro-batches of
  one size still differ in n_i, and where n_i is 0 the mean L_i is 0/0. So add up the l_j/n.
- A layer that looks across samples, such as batch normalization, sees a different batch.

Sources: Goyal et al. 2017, "Accurate, Large Minibatch SGD", arXiv:1706.02677, section 2 and remark
3 of section 3; Huang et al. 2019, "GPipe", arXiv:1811.06965, section 2.2 (micro-batches).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from accel_lab.workbench.knobs import KnobError

MicroBatches = Sequence[tuple[Tensor, Tensor]]  # of (x [n_i, …], y [n_i, …])
IGNORED = -100  # cross_entropy leaves this label out of its mean: no loss, and not counted


def full_batch_update(
    model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, **options: Any
) -> Tensor:
    """Update once from the whole batch: the plain version.

    x, y: [n, …] and targets as cross_entropy takes them: labels [n, …], or probabilities
    [n, classes, …].
    options: see ``apply_gradient``.
    Returns the mean loss [] over all labels but those that are ``IGNORED``.
    """
    optimizer.zero_grad()
    loss = cross_entropy(model(x), y)
    loss.backward()
    apply_gradient(model, optimizer, **options)
    return loss.detach()


def accumulated_update(
    model: nn.Module,
    optimizer: Optimizer,
    micro_batches: Iterable[tuple[Tensor, Tensor]],
    **options: Any,
) -> Tensor:
    """Update once from all micro-batches, in the memory of the largest of them.

    Equals ``full_batch_update`` on all samples together, up to rounding, for every model that looks
    at each sample by itself.

    micro_batches: pairs (x [n_i, …], y [n_i, …]) as there; sizes may differ, and one may be all
    padding.
    options: see ``apply_gradient``; clipping and schedule act once, on the whole gradient.
    Returns the mean loss [] over all labels.
    Raises ValueError when there are no micro-batches.
    """
    micro_batches = list(micro_batches)  # gone through twice, which a generator cannot be
    labels = count_labels(y for _, y in micro_batches)
    optimizer.zero_grad()
    total = 0.0
    for x, y in micro_batches:
        shares = cross_entropy(model(x), y, reduction="none") / labels  # of the whole batch's mean
        loss = shares.sum()
        loss.backward()  # adds to .grad, and frees this micro-batch's activations
        total += loss.detach()
    apply_gradient(model, optimizer, **options)
    return total


def count_labels(targets: Iterable[Tensor]) -> Tensor | int:
    """Count what the mean of cross_entropy over all these targets runs over.

    targets: class labels [n_i, …], of which ``IGNORED`` ones do not count; or probabilities of the
    classes [n_i, classes, …], one label to each place.
    Raises ValueError when there are none.
    """
    counts = [
        y.numel() // y.shape[1] if y.is_floating_point() else (y != IGNORED).sum() for y in targets
    ]
    if not counts:
        raise ValueError("micro_batches: there are none; a generator can be read only once")
    return sum(counts)


def apply_gradient(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    max_norm: float | None = None,
    schedule: LRScheduler | None = None,
) -> None:
    """Clip, step, advance the schedule: once per update, when the gradient is complete.

    max_norm: upper limit of the gradient's global norm, None for no clipping.
    schedule: advanced by one, if given.
    """
    if max_norm is not None:
        clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    if schedule is not None:
        schedule.step()


def split(x: Tensor, y: Tensor, micro_batches: int) -> list[tuple[Tensor, Tensor]]:
    """Split a batch into exactly ``micro_batches`` micro-batches of almost equal size.

    x, y: [n, …] each.
    Returns views, no copies; the first n mod m hold one sample more. (``Tensor.chunk`` can return
    fewer than asked for: 9 samples in 4 chunks come out as 3.)
    Raises KnobError when there are more micro-batches than samples.
    """
    check_fit(micro_batches, len(x))
    return list(zip(x.tensor_split(micro_batches), y.tensor_split(micro_batches), strict=True))


def check_fit(micro_batches: int, batch_size: int) -> None:
    """Raise KnobError unless every micro-batch gets at least one sample."""
    if not 1 <= micro_batches <= batch_size:
        raise KnobError(
            "micro_batches",
            f"{micro_batches} do not fit a batch of {batch_size}: each needs at least one sample",
        )
