"""Gradient accumulation: the gradient of a large batch in the memory of a small one.

The loss of a batch of n samples is a mean, and a mean splits into weighted parts. For micro-batches
of n_i samples

    L = (1/n) Σ_j l_j = Σ_i (n_i/n) L_i        hence        ∇L = Σ_i (n_i/n) ∇L_i

and ``backward()`` adds to ``.grad``: calling it once for each micro-batch leaves the gradient of
the whole batch there, while only one micro-batch's activations exist at a time. With m equal
micro-batches the activations peak at 1/m of the full batch's. The arithmetic is the same, so
nothing makes it faster by itself.

The traps are in the weights. A sum of means without n_i/n is m times too large; 1/m instead of
n_i/n is wrong as soon as the micro-batches differ in size. And what looks across samples, as batch
normalization does, sees another batch.

Source: Goyal et al. 2017, "Accurate, Large Minibatch SGD", arXiv:1706.02677, section 2 and remark 3
of section 3; Huang et al. 2019, "GPipe", arXiv:1811.06965, section 2.2, for micro-batches as such.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler

from accel_lab.workbench import knobs, models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.device import pick_device
from accel_lab.workbench.loop import train
from accel_lab.workbench.measure.memory_meter import ActivationMeter, memory_of
from accel_lab.workbench.measure.proof import Twin
from accel_lab.workbench.spans import SpanRecorder
from accel_lab.workbench.step import Step

MicroBatches = Sequence[tuple[Tensor, Tensor]]  # of (x [n_i, …], y [n_i]), n_i ≥ 1


def plain_update(
    model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, **options: Any
) -> Tensor:
    """One update from the whole batch, x [n, …] and y [n], at once. Returns its mean loss [].

    options: what ``apply_gradient`` takes.
    """
    optimizer.zero_grad()
    loss = cross_entropy(model(x), y)
    loss.backward()
    apply_gradient(model, optimizer, **options)
    return loss.detach()


def accumulated_update(
    model: nn.Module, optimizer: Optimizer, micro_batches: MicroBatches, **options: Any
) -> Tensor:
    """The update ``plain_update`` would make of all the micro-batches together, in the memory of
    the largest of them.

    The micro-batches may differ in size. Equal up to rounding for every model that looks at each
    sample by itself; batch normalization does not. options: what ``apply_gradient`` takes; clipping
    and schedule act once, on the whole gradient.
    """
    samples = sum(len(y) for _, y in micro_batches)
    optimizer.zero_grad()
    total = 0.0
    for x, y in micro_batches:
        loss = cross_entropy(model(x), y) * (
            len(y) / samples
        )  # this micro-batch's share of the mean
        loss.backward()  # adds to .grad, and lets this micro-batch's activations go
        total += loss.detach()
    apply_gradient(model, optimizer, **options)
    return total


def apply_gradient(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    max_norm: float | None = None,
    schedule: LRScheduler | None = None,
) -> None:
    """What follows once the gradient is whole: clip its global norm to ``max_norm``, step, advance
    the schedule by one.
    """
    if max_norm is not None:
        clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    if schedule is not None:
        schedule.step()


def split(x: Tensor, y: Tensor, micro_batches: int) -> list[tuple[Tensor, Tensor]]:
    """x [n, …] and y [n] → exactly ``micro_batches`` pairs, as equal as can be: the first n mod m
    hold one sample more.

    Views, no copies. ``Tensor.chunk`` can return fewer than asked for: 9 samples in 4 chunks come
    out as 3. Raises KnobError when there are more micro-batches than samples.
    """
    _must_fit(micro_batches, len(x))
    return list(zip(x.tensor_split(micro_batches), y.tensor_split(micro_batches), strict=True))


def _must_fit(micro_batches: int, batch_size: int) -> None:
    if not 1 <= micro_batches <= batch_size:
        raise knobs.KnobError(
            "micro_batches",
            f"{micro_batches} do not fit a batch of {batch_size}: each needs at least one sample",
        )


# The famous mistakes: each is accumulated_update with one thing wrong.


def no_scaling(
    model: nn.Module, optimizer: Optimizer, micro_batches: MicroBatches, **options: Any
) -> Tensor:
    """Adds up means: the gradient comes out as many times too large as there are micro-batches."""
    optimizer.zero_grad()
    total = 0.0
    for x, y in micro_batches:
        loss = cross_entropy(model(x), y)
        loss.backward()
        total += loss.detach() / len(micro_batches)
    apply_gradient(model, optimizer, **options)
    return total


def unweighted(
    model: nn.Module, optimizer: Optimizer, micro_batches: MicroBatches, **options: Any
) -> Tensor:
    """Divides by the number of micro-batches: right while all have one size, and silently wrong
    when they do not.
    """
    optimizer.zero_grad()
    total = _backward_of_each(model, micro_batches)
    apply_gradient(model, optimizer, **options)
    return total


def off_by_one(
    model: nn.Module, optimizer: Optimizer, micro_batches: MicroBatches, **options: Any
) -> Tensor:
    """``step % accumulate_steps == 0`` fires on the first micro-batch: every update mixes two
    batches, the first is a fragment.
    """
    total = _backward_of_each(model, micro_batches[:1], of=len(micro_batches))
    apply_gradient(model, optimizer, **options)
    optimizer.zero_grad()
    return total + _backward_of_each(model, micro_batches[1:], of=len(micro_batches))


def forgotten_clear(
    model: nn.Module, optimizer: Optimizer, micro_batches: MicroBatches, **options: Any
) -> Tensor:
    """Never clears ``.grad``: every update repeats all the gradients since the first one."""
    total = _backward_of_each(model, micro_batches)
    apply_gradient(model, optimizer, **options)
    return total


def _backward_of_each(
    model: nn.Module, micro_batches: MicroBatches, of: int | None = None
) -> Tensor:
    losses = [torch.zeros(())]
    for x, y in micro_batches:
        loss = cross_entropy(model(x), y) / (of or len(micro_batches))
        loss.backward()
        losses.append(loss.detach().cpu())
    return torch.stack(losses).sum()


MISTAKES: dict[str, Callable[..., Tensor]] = {
    "no scaling": no_scaling,
    "unweighted": unweighted,
    "off by one": off_by_one,
    "forgotten clear": forgotten_clear,
    "batch norm": accumulated_update,  # the loop is right; the model is what does not split
}


class Knobs(knobs.Knobs):
    batch_size: int = knobs.dial(256, ge=8, le=512, description="samples per update")
    micro_batches: int = knobs.dial(
        1, ge=1, le=64, log=True, description="backward passes per update"
    )
    learning_rate: float = knobs.dial(
        0.1, ge=0.001, le=1.0, log=True, description="step size of the optimizer"
    )
    mistake: Literal[
        "none", "no scaling", "unweighted", "off by one", "forgotten clear", "batch norm"
    ] = knobs.dial("none", description="a famous mistake to make")
    optimizer: Literal["sgd", "adam"] = knobs.dial(
        "sgd", panel=False, description="rule that turns a gradient into an update"
    )
    max_norm: float = knobs.dial(
        0.0,
        ge=0,
        le=100,
        panel=False,
        description="clip the gradient's norm to this, 0 for no clipping",
    )
    warmup_updates: int = knobs.dial(
        0,
        ge=0,
        le=1000,
        panel=False,
        description="updates in which the learning rate grows to its value",
    )
    twin: bool = knobs.dial(
        False,
        panel=False,
        description="repeat each update with the full batch and report the difference",
    )
    timeline: bool = knobs.dial(
        False, panel=False, description="record when each forward and backward pass ran"
    )
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

    @model_validator(mode="after")
    def _micro_batches_fit(self) -> Knobs:
        _must_fit(self.micro_batches, self.batch_size)
        return self


def run(knobs: Knobs) -> Iterator[Step]:
    """Train a small CNN on 4,000 MNIST digits, for ever. The metrics of each Step:

    loss · activation_bytes, the most that autograd kept at once in an update · process_peak_bytes,
    by how much the process grew in that update · update_error (with ``twin``), ‖Δw − Δw_full‖ /
    ‖Δw_full‖ of this update against the full batch's.
    """
    torch.manual_seed(knobs.seed)
    device = pick_device(knobs.device)
    digits = datasets.mnist5k().to(device)
    model = models.cnn(batch_norm=knobs.mistake == "batch norm").to(device)
    optimizer = _optimizer(model, knobs)
    warmup = (
        LinearLR(optimizer, 1 / knobs.warmup_updates, total_iters=knobs.warmup_updates)
        if knobs.warmup_updates
        else None
    )
    rule = MISTAKES.get(knobs.mistake, accumulated_update)
    clip = {"max_norm": knobs.max_norm or None}

    def update(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {
            "loss": rule(
                model, optimizer, split(x, y, knobs.micro_batches), schedule=warmup, **clip
            )
        }

    batches = digits.batches(knobs.batch_size, knobs.seed)
    memory = _memory_of_one_update(rule, model, optimizer, *next(batches), knobs.micro_batches)
    spans = SpanRecorder(device) if knobs.timeline else None
    twin = (
        Twin(model, optimizer, lambda *copy_and_batch: plain_update(*copy_and_batch, **clip))
        if knobs.twin
        else None
    )
    with spans.watch(model, optimizer) if spans else nullcontext():
        for step in train(update, twin.ahead_of(batches) if twin else batches, spans=spans):
            error = {"update_error": twin.error()} if twin else {}
            yield replace(step, metrics={**step.metrics, **memory, **error})


def predicted_activation_bytes(knobs: Knobs) -> float:
    """The largest micro-batch's samples times the bytes that one more sample adds: ⌈n/m⌉ · a, with
    a counted on this model.
    """
    return math.ceil(knobs.batch_size / knobs.micro_batches) * _bytes_of_a_sample(
        knobs.mistake == "batch norm"
    )


@cache
def _bytes_of_a_sample(batch_norm: bool) -> int:
    model, digits = models.cnn(batch_norm=batch_norm), datasets.mnist5k()
    peaks = []
    for samples in (1, 2):
        x, y = digits.train_x[:samples], digits.train_y[:samples]
        with ActivationMeter(model, x, y) as meter:
            cross_entropy(model(x), y).backward()
        peaks.append(meter.peak)
    return peaks[1] - peaks[0]


def _optimizer(model: nn.Module, knobs: Knobs) -> Optimizer:
    if knobs.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=knobs.learning_rate)
    return torch.optim.SGD(model.parameters(), lr=knobs.learning_rate)


def _memory_of_one_update(
    rule: Callable[..., Tensor],
    model: nn.Module,
    optimizer: Optimizer,
    x: Tensor,
    y: Tensor,
    micro_batches: int,
) -> dict[str, float]:
    """Measured on a copy, before training starts: the size of an update does not change, and
    counting would slow every one.
    """
    model, optimizer = copy.deepcopy((model, optimizer))
    return memory_of(lambda: rule(model, optimizer, split(x, y, micro_batches)), model, x, y)
