"""Gradient accumulation on a small CNN: memory against samples per second, and famous mistakes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import cache
from itertools import islice
from statistics import median
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR

from accel_lab.accumulation import (
    MicroBatches,
    accumulated_update,
    apply_gradient,
    check_fit,
    full_batch_update,
    split,
)
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.device import pick_device
from accel_lab.workbench.knobs import TrainingKnobs, dial
from accel_lab.workbench.loop import NonFiniteLoss, train
from accel_lab.workbench.measure.memory_meter import ActivationMeter, memory_of
from accel_lab.workbench.measure.proof import Twin
from accel_lab.workbench.spans import SpanRecorder
from accel_lab.workbench.step import Step
from accel_lab.workbench.watched import told

# ---- the famous mistakes: each is accumulated_update with one thing wrong ----


def no_scaling(
    model: nn.Module, optimizer: Optimizer, micro_batches: MicroBatches, **options: Any
) -> Tensor:
    """Add up means: the gradient comes out m times too large, with m micro-batches."""
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
    """Divide by the number of micro-batches: silently wrong where their sizes differ."""
    optimizer.zero_grad()
    total = _backward_of_each(model, micro_batches)
    apply_gradient(model, optimizer, **options)
    return total


def off_by_one(
    model: nn.Module, optimizer: Optimizer, micro_batches: MicroBatches, **options: Any
) -> Tensor:
    """Update on the first micro-batch, as ``step % accumulate_steps == 0`` does.

    The first update uses a fragment of a batch, every later one a mixture of two.
    """
    total = _backward_of_each(model, micro_batches[:1], of=len(micro_batches))
    apply_gradient(model, optimizer, **options)
    optimizer.zero_grad()
    return total + _backward_of_each(model, micro_batches[1:], of=len(micro_batches))


def forgotten_clear(
    model: nn.Module, optimizer: Optimizer, micro_batches: MicroBatches, **options: Any
) -> Tensor:
    """Never clear ``.grad``: every update repeats all gradients since the first."""
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
    "batch norm": accumulated_update,  # the loop is right; it is the model that cannot be split
}


# ---- the experiment ----


class Knobs(TrainingKnobs):
    batch_size: int = dial(256, ge=8, le=512, description="samples per update")
    micro_batches: int = dial(1, ge=1, le=64, log=True, description="backward passes per update")
    learning_rate: float = dial(
        0.1, ge=0.001, le=1.0, log=True, description="step size of the optimizer"
    )
    mistake: Literal[
        "none", "no scaling", "unweighted", "off by one", "forgotten clear", "batch norm"
    ] = dial("none", description="made on purpose")
    optimizer: Literal["sgd", "adam"] = dial(
        "sgd", panel=False, description="rule that turns a gradient into an update"
    )
    max_norm: float = dial(
        0.0, ge=0, le=100, panel=False, description="limit of the gradient's norm, 0 for no limit"
    )
    warmup_updates: int = dial(
        0, ge=0, le=1000, panel=False, description="updates until the learning rate is reached"
    )
    twin: bool = dial(False, panel=False, description="compare each update with the full batch's")
    timeline: bool = dial(
        False, panel=False, description="record when each forward and backward pass ran"
    )

    @model_validator(mode="after")
    def _micro_batches_fit(self) -> Knobs:
        check_fit(self.micro_batches, self.batch_size)
        return self


def run(knobs: Knobs) -> Generator[Step, None, None]:
    """Train a small CNN on 4,000 MNIST digits until the generator is closed.

    Metrics of each Step:
    loss: mean over the batch.
    activation_bytes: most bytes that autograd held at once in an update, measured once.
    process_peak_bytes: by how much the process grew during that update.
    update_error (with ``twin``): ‖Δw − Δw_full‖ / ‖Δw_full‖ against the full batch's update.
    """
    torch.manual_seed(knobs.seed)
    device = pick_device(knobs.device)
    digits = datasets.mnist5k().to(device)
    model = models.cnn(batch_norm=knobs.mistake == "batch norm").to(device)
    optimizer, schedule = _optimizer(model, knobs)
    rule = MISTAKES.get(knobs.mistake, accumulated_update)
    clip = {"max_norm": knobs.max_norm or None}

    def update(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        parts = split(x, y, knobs.micro_batches)
        return {"loss": rule(model, optimizer, parts, schedule=schedule, **clip)}

    def reference(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor) -> Tensor:
        return full_batch_update(model, optimizer, x, y, **clip)

    batches = digits.batches(knobs.batch_size, knobs.seed)
    memory = _memory_of_one_update(rule, model, optimizer, *next(batches), knobs.micro_batches)
    spans = SpanRecorder(device) if knobs.timeline else None
    twin = Twin(model, optimizer, reference) if knobs.twin else None
    with spans.watch(model, optimizer) if spans else nullcontext():
        for step in train(update, twin.ahead_of(batches) if twin else batches, spans=spans):
            error = {"update_error": twin.error()} if twin else {}
            yield replace(step, metrics={**step.metrics, **memory, **error})


def predicted_activation_bytes(knobs: Knobs) -> float:
    """Predict the peak of activation memory, in bytes: ⌈n/m⌉ · a.

    a, the bytes that one more sample adds, is counted on this experiment's model.
    """
    largest = math.ceil(knobs.batch_size / knobs.micro_batches)
    return largest * _bytes_per_sample(knobs.mistake == "batch norm")


@cache
def _bytes_per_sample(batch_norm: bool) -> int:
    model, digits = models.cnn(batch_norm=batch_norm), datasets.mnist5k()
    peaks = []
    for samples in (1, 2):
        x, y = digits.train_x[:samples], digits.train_y[:samples]
        with ActivationMeter(model, x, y) as meter:
            cross_entropy(model(x), y).backward()
        peaks.append(meter.peak)
    return peaks[1] - peaks[0]


def _optimizer(model: nn.Module, knobs: Knobs) -> tuple[Optimizer, LinearLR | None]:
    rule = torch.optim.Adam if knobs.optimizer == "adam" else torch.optim.SGD
    optimizer = rule(model.parameters(), lr=knobs.learning_rate)
    updates = knobs.warmup_updates
    return optimizer, LinearLR(optimizer, 1 / updates, total_iters=updates) if updates else None


def _memory_of_one_update(
    rule: Callable[..., Tensor],
    model: nn.Module,
    optimizer: Optimizer,
    x: Tensor,
    y: Tensor,
    micro_batches: int,
) -> dict[str, float]:
    """Measure on a copy, once: an update's size does not change, and counting slows updates."""
    model, optimizer = copy.deepcopy((model, optimizer))
    return memory_of(lambda: rule(model, optimizer, split(x, y, micro_batches)), model, x, y)


# ---- what else the chapter measures ----

RATES = (1.0, 2.0, 4.0)  # times the knobs' own


def with_best_rate(knobs: Knobs, samples: int) -> Knobs:
    """The knobs with the learning rate, of some tried, that has the lowest loss after so many
    samples: the median of its last five updates, for one update's loss is noisy.
    """
    rates = sorted({min(1.0, factor * knobs.learning_rate) for factor in RATES})
    turned = [knobs.turned(learning_rate=rate) for rate in rates]
    return min(told(turned, "learning rate"), key=lambda k: _loss(k, samples))


def _loss(knobs: Knobs, samples: int) -> float:
    with closing(run(knobs)) as steps:
        try:
            taken = [step.metrics["loss"] for step in islice(steps, samples // knobs.batch_size)]
        except NonFiniteLoss:
            return math.inf
    return median(taken[-5:])
