"""Clipping in training: one batch that nobody divided by 255, three rules, and famous mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from statistics import fmean
from typing import Literal, NamedTuple

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from accel_lab.clipping import (
    EPSILON,
    Rule,
    clip_each_norm_,
    clip_global_norm_,
    clip_value_,
    clipped_update,
    global_norm,
    gradients_of,
)
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.device import pick_device
from accel_lab.workbench.effort import effort, some_seeds
from accel_lab.workbench.knobs import KnobError, TrainingKnobs, dial
from accel_lab.workbench.loop import NonFiniteLoss, train
from accel_lab.workbench.measure.proof import Twin
from accel_lab.workbench.step import Step
from accel_lab.workbench.watched import told

RULES: dict[str, Rule] = {
    "value": clip_value_,
    "each norm": clip_each_norm_,
    "global norm": clip_global_norm_,
}
CHANCE = math.log(10)  # the loss of guessing among ten classes
EVALUATE_EVERY = 10  # updates
LOSS_SCALE = 65_536.0  # what a loop for float16 multiplies the loss by, to begin with
MICRO_BATCHES = 4


def unclipped(gradients: Iterable[Tensor], limit: float) -> Tensor:
    """Leave the gradients as they are; return their norm."""
    return global_norm(gradients)


# ---- the famous mistakes: each is clipped_update, or the global norm, with one thing wrong ----


def before_unscale(
    model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, *, rule: Rule, limit: float
) -> tuple[Tensor, Tensor]:
    """Clip the gradient of the scaled loss, then divide it by the scale: steps of 1/65,536."""
    optimizer.zero_grad()
    loss = cross_entropy(model(x), y)
    (LOSS_SCALE * loss).backward()
    norm = rule(gradients_of(model), limit)
    for gradient in gradients_of(model):
        gradient.div_(LOSS_SCALE)
    optimizer.step()
    return loss.detach(), norm / LOSS_SCALE


def each_micro_batch(
    model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, *, rule: Rule, limit: float
) -> tuple[Tensor, Tensor]:
    """Clip what each of 4 micro-batches brings, and average: less than what the limit allows."""
    optimizer.zero_grad()
    losses, norms, total = [], [], []
    for x_i, y_i in zip(x.tensor_split(MICRO_BATCHES), y.tensor_split(MICRO_BATCHES), strict=True):
        loss, share = cross_entropy(model(x_i), y_i), len(y_i) / len(y)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norms.append(rule(gradients, limit))
        total.append([share * gradient for gradient in gradients])
        losses.append(share * loss.detach())
    for parameter, parts in zip(model.parameters(), zip(*total, strict=True), strict=True):
        parameter.grad = torch.stack(parts).sum(0)
    optimizer.step()
    return torch.stack(losses).sum(), torch.stack(norms).mean()


def after_the_step(
    model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, *, rule: Rule, limit: float
) -> tuple[Tensor, Tensor]:
    """Clip what the optimizer has used already."""
    optimizer.zero_grad()
    loss = cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach(), rule(gradients_of(model), limit)


def added_norms(gradients: Iterable[Tensor], limit: float) -> Tensor:
    """Add up the norms of the tensors, not their squares: too large a norm, too small a step."""
    gradients = list(gradients)
    norm = torch.stack([gradient.norm() for gradient in gradients]).sum()
    for gradient in gradients:
        gradient.mul_((limit / (norm + EPSILON)).clamp(max=1))
    return norm


def always_scaled(gradients: Iterable[Tensor], limit: float) -> Tensor:
    """Scale to the limit always: small gradients grow."""
    gradients = list(gradients)
    norm = global_norm(gradients)
    for gradient in gradients:
        gradient.mul_(limit / (norm + EPSILON))
    return norm


Update = Callable[..., tuple[Tensor, Tensor]]


def _by(wrong_rule: Rule) -> Update:
    def update(
        model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, *, rule: Rule, limit: float
    ) -> tuple[Tensor, Tensor]:
        return clipped_update(model, optimizer, x, y, rule=wrong_rule, limit=limit)

    return update


MISTAKES: dict[str, Update] = {
    "before unscale": before_unscale,
    "each micro-batch": each_micro_batch,
    "after the step": after_the_step,
    "added norms": _by(added_norms),
    "always scaled": _by(always_scaled),
}


# ---- the experiment ----


class Knobs(TrainingKnobs):
    rule: Literal["none", "value", "each norm", "global norm"] = dial(
        "global norm", description="what of the gradient is limited"
    )
    limit: float = dial(1.0, ge=1e-3, le=10, log=True, description="largest value or norm allowed")
    learning_rate: float = dial(
        0.05, ge=1e-3, le=10, log=True, description="step size of the optimizer"
    )
    spike: float = dial(255, ge=1, le=255, log=True, description="factor of the bad batch's pixels")
    mistake: Literal[
        "none",
        "before unscale",
        "each micro-batch",
        "after the step",
        "added norms",
        "always scaled",
    ] = dial("none", description="made on purpose")
    spike_at: int = dial(100, ge=1, le=10_000, panel=False, description="update of the bad batch")
    optimizer: Literal["sgd", "adam"] = dial(
        "sgd", panel=False, description="rule that turns a gradient into an update"
    )
    momentum: float = dial(0.9, ge=0, le=0.99, panel=False, description="of SGD, 0 for none")
    batch_size: int = dial(64, ge=8, le=512, panel=False, description="samples per update")
    model: Literal["mlp", "cnn"] = dial(
        "mlp", panel=False, description="two hidden layers of 128 units, or two convolutions"
    )
    watch: bool = dial(
        False, panel=False, description="measure angle and length of each update, not with mistakes"
    )
    twin: bool = dial(
        False, panel=False, description="compare each update with the right one, from where it is"
    )

    @model_validator(mode="after")
    def _mistakes_are_not_watched(self) -> Knobs:
        if self.watch and self.mistake != "none":
            raise KnobError("watch", "a mistake is not watched; compare it by twin instead")
        return self


class Training(NamedTuple):
    """What ``run`` trains: model, optimizer, the update of the knobs, batches, and all data."""

    model: nn.Sequential
    optimizer: Optimizer
    update: Callable[[Tensor, Tensor], dict[str, Tensor]]
    batches: Iterator[tuple[Tensor, Tensor]]
    digits: datasets.Data


def start(knobs: Knobs, rule: Rule | None = None) -> Training:
    """Make the model and all that trains it, with the bad batch among the others.

    rule: in place of that of the knobs.
    """
    torch.manual_seed(knobs.seed)
    device = pick_device(knobs.device)
    digits = datasets.mnist5k().to(device)
    model = (models.cnn() if knobs.model == "cnn" else models.mlp(784, 128, 128, 10)).to(device)
    if knobs.optimizer == "adam":
        optimizer: Optimizer = torch.optim.Adam(model.parameters(), lr=knobs.learning_rate)
    else:
        rate = {"lr": knobs.learning_rate, "momentum": knobs.momentum}
        optimizer = torch.optim.SGD(model.parameters(), **rate)
    way = MISTAKES.get(knobs.mistake, clipped_update)
    options = {"rule": rule or rule_of(knobs), "limit": knobs.limit}

    def update(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        loss, norm = way(model, optimizer, x, y, **options)
        return {"loss": loss, "norm": norm}

    batches = with_bad_batch(digits.batches(knobs.batch_size, knobs.seed), knobs)
    return Training(model, optimizer, update, batches, digits)


def with_bad_batch(
    batches: Iterable[tuple[Tensor, Tensor]], knobs: Knobs
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches, the pixels of one of them multiplied by ``knobs.spike``."""
    for number, (x, y) in enumerate(batches):
        yield (knobs.spike * x if number == knobs.spike_at else x), y


def run(knobs: Knobs) -> Generator[Step, None, None]:
    """Train a small network on 4,000 MNIST digits, one bad batch among them, until closed.

    Metrics of each Step:
    loss: mean over the batch.
    norm: of the gradient before clipping.
    clipped: 1 where the gradient was shortened, else 0.
    skipped: 1 where the gradient was not finite and the weights were left alone, else 0.
    angle (with ``watch``): between the gradient and what the optimizer got of it, in degrees.
    moved (with ``watch``): ‖Δw‖, the length of the update.
    update_error (with ``twin``): ‖Δw − Δw_right‖ / ‖Δw_right‖ against ``clipped_update``.
    test_accuracy, units_alive: of every tenth Step, 0 to 1, evaluated outside the timed update.
    Raises NonFiniteLoss when the loss explodes.
    """
    watch = Watch(rule_of(knobs)) if knobs.watch else None
    training = start(knobs, watch.rule if watch else None)
    model, batches = training.model, training.batches
    batches = watch.ahead_of(batches, model) if watch else batches
    twin = Twin(model, training.optimizer, right_update(knobs)) if knobs.twin else None
    for step in train(training.update, twin.ahead_of(batches) if twin else batches):
        norm, left = step.metrics["norm"], float(global_norm(gradients_of(model)))
        found = {"clipped": float(left < (1 - 1e-5) * norm)}
        found["skipped"] = float(not math.isfinite(norm))
        found |= watch.found(model) if watch else {}
        found |= {"update_error": twin.error()} if twin else {}
        found |= evaluate(training) if step.index % EVALUATE_EVERY == 0 else {}
        yield replace(step, metrics={**step.metrics, **found})


def rule_of(knobs: Knobs) -> Rule:
    return RULES.get(knobs.rule, unclipped)


def right_update(knobs: Knobs) -> Callable[..., object]:
    """What each update of these knobs is to equal."""

    def update(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor) -> None:
        clipped_update(model, optimizer, x, y, rule=rule_of(knobs), limit=knobs.limit)

    return update


class Watch:
    """What each update did to the gradient and to the weights."""

    def __init__(self, rule: Rule):
        self._rule = rule
        self.raw: list[Tensor] = []  # the gradient before it is clipped

    def rule(self, gradients: Iterable[Tensor], limit: float) -> Tensor:
        gradients = list(gradients)
        self.raw = [gradient.clone() for gradient in gradients]
        return self._rule(gradients, limit)

    def ahead_of(
        self, batches: Iterable[tuple[Tensor, Tensor]], model: nn.Module
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The same batches, each passed on when the weights have been noted."""
        for x, y in batches:
            self.before = [parameter.detach().clone() for parameter in model.parameters()]
            yield x, y

    def found(self, model: nn.Module) -> dict[str, float]:
        now = [parameter.detach() for parameter in model.parameters()]
        moved = [one - other for one, other in zip(now, self.before, strict=True)]
        return {"angle": angle(self.raw, gradients_of(model)), "moved": float(global_norm(moved))}


def angle(one: Iterable[Tensor], other: Iterable[Tensor]) -> float:
    """Degrees between two gradients, 0 to 180; NaN where one of them is 0 or not finite."""
    a, b = (torch.cat([part.flatten() for part in parts]) for parts in (one, other))
    a, b = a / a.norm(), b / b.norm()
    return float(torch.rad2deg(2 * torch.atan2((a - b).norm(), (a + b).norm())))  # exact near 0


@torch.no_grad()
def evaluate(training: Training) -> dict[str, float]:
    """Measure the test accuracy, and the share of hidden units that any test picture excites."""
    active, logits = _flow(training.model, training.digits.test_x)
    right = (logits.argmax(1) == training.digits.test_y).double().mean()
    return {"test_accuracy": float(right), "units_alive": float((active > 0).double().mean())}


def _flow(model: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    """(for each unit behind a ReLU the share of pictures that excite it [units], logits)."""
    active = []
    for part in model:
        x = part(x)
        if isinstance(part, nn.ReLU):
            active.append((x > 0).flatten(1).double().mean(0))
    return torch.cat(active), x


# ---- predictions ----


def longest_step(knobs: Knobs) -> float:
    """Predict the longest update that the global norm's limit leaves to SGD: lr · c / (1 − µ)."""
    return knobs.learning_rate * knobs.limit / (1 - knobs.momentum)


def predicted_share_clipped(knobs: Knobs, updates: int = 150) -> float:
    """Predict the share of updates that a limit clips, 0 to 1, from a run without clipping.

    It counts the updates whose largest number, tensor's norm or global norm exceeds the limit. The
    run has no bad batch: after one, nothing moves any more.
    """
    if knobs.rule == "none":
        return 0.0
    calm = knobs.turned(rule="none", limit=1.0, spike=1.0, mistake="none", twin=False, watch=False)
    sizes = _sizes(calm, updates)[knobs.rule]
    return fmean(size > knobs.limit for size in sizes)


@lru_cache(maxsize=16)
def _sizes(knobs: Knobs, updates: int) -> Mapping[str, list[float]]:
    """What each rule compares with its limit, at every update of a run."""
    training = start(knobs)
    sizes: dict[str, list[float]] = {name: [] for name in RULES}
    for x, y in islice(training.batches, updates):
        training.update(x, y)
        gradients = gradients_of(training.model)
        sizes["value"].append(max(float(gradient.abs().max()) for gradient in gradients))
        sizes["each norm"].append(max(float(gradient.norm()) for gradient in gradients))
        sizes["global norm"].append(float(global_norm(gradients)))
    return sizes


# ---- what the chapter measures ----


@dataclass(frozen=True)
class Outcome:
    """A run with a bad batch: mean losses, and how many test pictures are recognised at the end.

    before: the 20 updates before the bad batch · after: the 5th to 15th after it · end: the last
    20 updates · accuracy: in %.
    """

    before: float
    after: float
    end: float
    accuracy: float


def outcomes(knobs: Knobs, seeds: int = 5, updates: int = 300) -> list[Outcome]:
    """Train from some seeds. A loss that is not finite ends a run: inf, and chance."""
    turned = [knobs.turned(seed=knobs.seed + seed) for seed in some_seeds(seeds)]
    return [outcome(one, updates) for one in told(turned, "seed")]


def outcome(knobs: Knobs, updates: int = 300) -> Outcome:
    training = start(knobs)
    try:
        steps = list(train(training.update, training.batches, steps=updates))
    except NonFiniteLoss:
        return Outcome(math.inf, math.inf, math.inf, 10.0)
    losses, at = [step.metrics["loss"] for step in steps], min(knobs.spike_at, updates - 16)
    accuracy = 100 * evaluate(training)["test_accuracy"]
    before, after = losses[max(0, at - 20) : at], losses[at + 5 : at + 16]
    return Outcome(fmean(before), fmean(after), fmean(losses[-20:]), accuracy)


def units_over_time(knobs: Knobs, updates: int) -> list[Tensor]:
    """After each update, for each hidden unit the share of 500 test pictures that excite it."""
    training, taken = start(knobs), []
    for _ in train(training.update, training.batches, steps=updates):
        with torch.no_grad():
            taken.append(_flow(training.model, training.digits.test_x[:500])[0])
    return taken


def angles(knobs: Knobs, factor: float, share: float = 0.5, updates: int = 60) -> dict[str, float]:
    """By how many degrees each rule turns the gradient, with limits that leave the same norm.

    factor: what the pixels of the batch that is looked at are multiplied by.
    share: of the smaller one of its norm and 1, the norm that each rule is to leave.
    updates: trained before.
    """
    training = start(knobs.turned(rule="none", spike=1.0))
    for x, y in islice(training.batches, updates):
        training.update(x, y)
    x, y = next(training.batches)
    loss = cross_entropy(training.model(factor * x), y)
    raw = torch.autograd.grad(loss, list(training.model.parameters()))
    wanted = share * min(1.0, float(global_norm(raw)))
    return {name: angle(raw, _clipped_to(wanted, raw, rule)) for name, rule in RULES.items()}


def _clipped_to(norm: float, raw: Iterable[Tensor], rule: Rule) -> list[Tensor]:
    """The gradient that the rule leaves, with the limit that gives it this norm, by bisection."""
    low, high = 1e-9, float(global_norm(raw))
    for _ in range(40):
        limit = math.sqrt(low * high)
        gradients = [gradient.clone() for gradient in raw]
        rule(gradients, limit)
        low, high = (low, limit) if global_norm(gradients) > norm else (limit, high)
    return gradients


class Reader(nn.Module):
    """[n, 1, 28, 28] → [n, 10]: a plain recurrent network that reads a picture row by row."""

    def __init__(self, width: int = 48):
        super().__init__()
        self.rows = nn.RNN(28, width, batch_first=True)
        self.last = nn.Linear(width, 10)
        nn.init.orthogonal_(self.rows.weight_hh_l0)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.rows(x[:, 0])[0][:, -1])


def recurrent_loss(rate: float, limit: float | None, seed: int = 0, updates: int = 120) -> float:
    """Train a ``Reader`` with this learning rate and limit: the mean loss of the last 20 updates.

    A loss above chance counts as chance.
    """
    torch.manual_seed(seed)
    model = Reader()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    rule = clip_global_norm_ if limit else unclipped
    losses = []
    for x, y in islice(datasets.mnist5k().batches(32, seed), max(25, round(updates * effort()))):
        loss, _ = clipped_update(model, optimizer, x, y, rule=rule, limit=limit or math.inf)
        losses.append(float(loss))
    end = fmean(losses[-20:])
    return min(end, CHANCE) if math.isfinite(end) else CHANCE
