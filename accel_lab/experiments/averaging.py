"""Averaging along one run and between two, on a small network; and famous mistakes."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from accel_lab.averaging import EMA, SWA, Average, fresh_statistics, mean_of, sorted_like
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.device import pick_device
from accel_lab.workbench.effort import effort
from accel_lab.workbench.knobs import KnobError, TrainingKnobs, dial
from accel_lab.workbench.loop import classifier_update, train
from accel_lab.workbench.step import Step
from accel_lab.workbench.watched import told

EVALUATE_EVERY = 20  # updates
MOMENT_EVERY = 10  # updates of a walk
MICRO_BATCHES = 4  # of the mistake that averages after each
CHECKPOINTS = 10  # of "last ten"
SECONDS = ("same start", "other start", "other start, units sorted")
OTHER_SEED = 1000  # added to a seed: another start, or another order of the data


class Knobs(TrainingKnobs):
    average: Literal["none", "EMA", "SWA", "last ten"] = dial(
        "EMA", description="which average of the weights is evaluated"
    )
    window: int = dial(
        100, ge=2, le=1000, log=True, description="updates that the EMA averages, 1/(1 - decay)"
    )
    learning_rate: float = dial(
        0.2, ge=0.01, le=1.0, log=True, description="step size of the optimizer"
    )
    second_model: Literal["none", "same start", "other start"] = dial(
        "none", description="a second run, whose weights are averaged with the first one's"
    )
    mistake: Literal[
        "none",
        "buffers of the start",
        "buffers of the last",
        "no warm-up",
        "per micro-batch",
        "never swapped back",
    ] = dial("none", description="made on purpose")
    network: Literal["mlp", "mlp with batch norm", "cnn"] = dial(
        "mlp", panel=False, description="what is trained"
    )
    schedule: Literal["constant", "cosine"] = dial(
        "constant", panel=False, description="learning rate over the run; cosine falls to zero"
    )
    updates: int = dial(
        800,
        ge=10,
        le=100_000,
        panel=False,
        description="length of a run of the chapter, and of the cosine schedule",
    )
    start_at: int = dial(
        400, ge=0, le=100_000, panel=False, description="updates before SWA takes in its first"
    )
    every: int = dial(
        1, ge=1, le=100, panel=False, description="updates from one averaging to the next"
    )
    start: Literal["warm-up", "debiased", "first weights"] = dial(
        "warm-up", panel=False, description="how an EMA takes in its first weights"
    )
    wrong_labels: float = dial(
        0.0, ge=0, le=0.9, panel=False, description="share of the labels that are drawn anew"
    )
    batch_size: int = dial(16, ge=4, le=512, panel=False, description="samples per update")

    @model_validator(mode="after")
    def _fit_together(self) -> Knobs:
        if self.every >= self.window:
            raise KnobError("every", f"{self.every} is not below the window, {self.window} updates")
        if self.mistake != "none" and self.average != "EMA":
            raise KnobError(
                "mistake", f"{self.mistake!r} is one of the EMA, not of {self.average!r}"
            )
        return self


# ---- averages ----


class LastTen:
    """The mean of ten checkpoints, evenly spaced over a window of updates."""

    def __init__(self, window: int):
        self._apart = max(1, window // CHECKPOINTS)
        self._kept: deque[nn.Module] = deque(maxlen=CHECKPOINTS)
        self.updates = 0

    def update(self, model: nn.Module) -> None:
        if self.updates % self._apart == 0:
            self._kept.append(copy.deepcopy(model))
        self.updates += 1

    @property
    def model(self) -> nn.Module:
        return mean_of(list(self._kept)).eval()


class BuffersOfTheStart(EMA):
    """``zip(average.parameters(), model.parameters())``: buffers stay what they were at first."""

    def update(self, model: nn.Module) -> None:
        kept = [buffer.clone() for buffer in self._model.buffers()]
        super().update(model)
        _restore(self._model.buffers(), kept)


class BuffersOfTheLast(EMA):
    """Parameters are averaged, buffers copied: they belong to the last weights, not to the mean."""

    def update(self, model: nn.Module) -> None:
        super().update(model)
        _restore(self._model.buffers(), model.buffers())


@torch.no_grad()
def _restore(tensors: Iterator[Tensor], values: object) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


class PerMicroBatch(EMA):
    """Update the average after every micro-batch: the window is as many times shorter."""

    def update(self, model: nn.Module) -> None:
        for _ in range(MICRO_BATCHES):
            super().update(model)


def never_swapped_back(average: Average, model: nn.Module) -> None:
    """Load the average to evaluate it, and train on from there."""
    model.load_state_dict(average.model.state_dict())


MISTAKES: dict[str, type[EMA]] = {
    "buffers of the start": BuffersOfTheStart,
    "buffers of the last": BuffersOfTheLast,
    "per micro-batch": PerMicroBatch,
}


def average_of(knobs: Knobs, model: nn.Module, check: bool = True) -> Average | LastTen | None:
    """Make the average that the knobs ask for; None for none."""
    if knobs.average == "none":
        return None
    if knobs.average == "SWA":
        return SWA(model, check=check)
    if knobs.average == "last ten":
        return LastTen(knobs.window)
    start = "first weights" if knobs.mistake == "no warm-up" else knobs.start
    kind, decay = MISTAKES.get(knobs.mistake, EMA), 1 - knobs.every / knobs.window
    return kind(model, decay, start=start, check=check)


# ---- the experiment ----


def run(knobs: Knobs) -> Generator[Step, None, None]:
    """Train a small network on 4,000 MNIST digits: until the generator is closed, or with the
    cosine schedule for ``updates``.

    Metrics of each Step: loss. Of every twentieth, evaluated outside the timed update:
    accuracy: of the average on 1,000 test digits, 0 to 1; of the last weights where there is none.
    last_accuracy: of the last weights.
    gain: the difference, in points.
    merged_accuracy (with a second model): of the mean of both models' last weights.

    The time of an update is that of the first model and its average.
    """
    digits = data(knobs).to(pick_device(knobs.device))
    first, second = Training(knobs, digits), None
    if knobs.second_model == "same start":
        second = Training(knobs, digits, order=OTHER_SEED)
    elif knobs.second_model == "other start":
        second = Training(knobs, digits, order=OTHER_SEED, start=OTHER_SEED)
    steps = knobs.updates if knobs.schedule == "cosine" else None
    for step in train(first.update, first.batches, steps=steps):
        if second:
            second.advance()
        yield replace(step, metrics={**step.metrics, **_evaluated(knobs, step, first, second)})


class Training:
    """A model, its optimizer and its average, on the way.

    start, order: added to the seed of the weights, and to that of the order of the data.
    """

    def __init__(self, knobs: Knobs, digits: datasets.Data, start: int = 0, order: int = 0):
        torch.manual_seed(knobs.seed + start)
        self.knobs, self.digits = knobs, digits
        self.model = network(knobs.network).to(digits.train_x.device)
        self.average = average_of(knobs, self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=knobs.learning_rate)
        self.batches = digits.batches(knobs.batch_size, knobs.seed + order)
        self._classify = classifier_update(self.model, self.optimizer)
        self.done = 0

    def update(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        self.optimizer.param_groups[0]["lr"] = rate(self.knobs, self.done)
        metrics = self._classify(x, y)
        self.done += 1
        begun = self.knobs.average != "SWA" or self.done > self.knobs.start_at
        if self.average and begun and self.done % self.knobs.every == 0:
            self.average.update(self.model)
        return metrics

    def advance(self, updates: int = 1) -> Training:
        for _ in train(self.update, self.batches, steps=updates):
            pass
        return self

    @property
    def averaged(self) -> nn.Module:
        """The averaged model; the model itself while there is none."""
        return self.average.model if self.average and self.average.updates else self.model


def _evaluated(knobs: Knobs, step: Step, first: Training, second: Training | None) -> dict:
    if (step.index + 1) % EVALUATE_EVERY:
        return {}
    digits = first.digits
    last, found = accuracy(first.model, digits), accuracy(first.averaged, digits)
    metrics = {"accuracy": found, "last_accuracy": last, "gain": 100 * (found - last)}
    if second:
        metrics["merged_accuracy"] = accuracy(mean_of([first.model, second.model]), digits)
    if knobs.mistake == "never swapped back" and first.averaged is not first.model:
        never_swapped_back(first.average, first.model)
    return metrics


@torch.no_grad()
def accuracy(model: nn.Module, digits: datasets.Data) -> float:
    """The share of the test digits that the model recognises, in evaluation mode; 0 to 1."""
    training = model.training
    model.eval()
    right = model(digits.test_x).argmax(1) == digits.test_y
    model.train(training)
    return float(right.double().mean())


def network(kind: str, width: int = 64, layers: int = 4) -> nn.Sequential:
    """Make one: [n, 1, 28, 28] → [n, 10]."""
    if kind == "cnn":
        return models.cnn(8)
    if kind == "mlp":
        return models.mlp(784, *[width] * layers, 10)
    parts: list[nn.Module] = [nn.Flatten()]
    for layer in range(layers):
        linear = nn.Linear(width if layer else 784, width)
        parts += [linear, nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(width, 10))


def rate(knobs: Knobs, done: int) -> float:
    """The learning rate after so many updates."""
    if knobs.schedule == "constant":
        return knobs.learning_rate
    return knobs.learning_rate * (1 + math.cos(math.pi * done / knobs.updates)) / 2


def data(knobs: Knobs) -> datasets.Data:
    """Digits, a share of whose training labels was drawn anew: of those, a tenth is right."""
    return _data(knobs.wrong_labels)


@lru_cache(maxsize=2)
def _data(wrong_labels: float) -> datasets.Data:
    digits = datasets.mnist5k()
    generator = torch.Generator().manual_seed(0)
    labels, count = digits.train_y.clone(), len(digits.train_y)
    drawn = torch.rand(count, generator=generator) < wrong_labels
    labels[drawn] = torch.randint(10, (count,), generator=generator)[drawn]
    return replace(digits, train_y=labels)


# ---- what the chapter measures ----


def updates_of(knobs: Knobs) -> int:
    """How long the chapter's runs are: those of the schedule, fewer for a quick look."""
    return max(40, round(knobs.updates * effort()))


@dataclass(frozen=True)
class Gain:
    """One run. last: mean accuracy of its last fifty updates, evaluated every fifth, in percent;
    low, high: the worst and the best of them · averaged: name of an average → its accuracy.
    """

    last: float
    low: float
    high: float
    averaged: dict[str, float]

    def of(self, name: str) -> float:
        """Points that this average gains over the mean of the last weights."""
        return self.averaged[name] - self.last


def gain(knobs: Knobs, averages: dict[str, Knobs]) -> Gain:
    """Train once, with several averages watching: the same weights for all of them."""
    digits, updates = data(knobs), updates_of(knobs)
    training = Training(knobs.turned(average="none", updates=updates), digits)
    watching = {
        name: average_of(turned, training.model, check=False) for name, turned in averages.items()
    }
    tail = []
    for done in range(1, updates + 1):
        training.advance()
        for name, average in watching.items():
            if averages[name].average != "SWA" or done > updates // 2:
                average.update(training.model)
        if done > updates - 50 and done % 5 == 0:
            tail.append(100 * accuracy(training.model, digits))
    found = {name: 100 * accuracy(one.model, digits) for name, one in watching.items()}
    return Gain(sum(tail) / len(tail), min(tail), max(tail), found)


@lru_cache(maxsize=32)  # of a quarter of a megabyte
def trained(knobs: Knobs, start: int = 0, order: int = 0) -> nn.Module:
    """A model as it is after the chapter's number of updates: its last weights."""
    turned = knobs.turned(average="none")
    return Training(turned, data(knobs), start, order).advance(updates_of(knobs)).model.eval()


def parents(knobs: Knobs) -> dict[str, nn.Module]:
    """A model, one that shares its start, and one that shares neither start nor order."""
    return {
        "first": trained(knobs),
        "same start": trained(knobs, order=OTHER_SEED),
        "other start": trained(knobs, OTHER_SEED, OTHER_SEED),
    }


def along(one: nn.Module, other: nn.Module, shares: list[float], knobs: Knobs) -> dict:
    """Accuracy in percent on the straight line between two models: {share of the other: %}."""
    between = {share: mean_of([one, other], [1 - share, share]) for share in shares}
    return {share: 100 * accuracy(model, data(knobs)) for share, model in between.items()}


def between(knobs: Knobs, shares: list[float], seeds: range) -> dict[str, dict[float, list]]:
    """Accuracy in percent between a model and a second one, one value for each seed.

    Returns {second model: {its share in the mean: [%, …]}}; the last second model is the one of
    another start, with its units sorted like the first one's.
    """
    found: dict[str, dict[float, list]] = {}
    for seed in told(seeds, "seed"):
        turned = knobs.turned(seed=knobs.seed + seed)
        first, same, other = parents(turned).values()
        alike = sorted_like(first, other)
        for name, second in zip(SECONDS, (same, other, alike), strict=True):
            for share, value in along(first, second, shares, turned).items():
                found.setdefault(name, {}).setdefault(share, []).append(value)
    return found


def shares(average: Average, updates: int) -> list[float]:
    """The share of each update in an average of so many, the oldest first."""
    found = [1.0]
    for before in range(1, updates):
        new = average.weight(before)
        found = [*((1 - new) * share for share in found), new]
    return found


def statistics(knobs: Knobs) -> dict[str, float]:
    """Accuracy in percent of an SWA with batch normalization: the same averaged parameters, with
    different running statistics.
    """
    turned = knobs.turned(network="mlp with batch norm", average="none")
    training = Training(turned, data(turned))
    first = copy.deepcopy(training.model)
    half = updates_of(turned) // 2
    average = SWA(training.advance(half).model)
    for _ in range(half):
        average.update(training.advance().model)
    found = {}
    for name, source in (("the start", first), ("the last weights", training.model)):
        model = copy.deepcopy(average.model)
        _restore(model.buffers(), source.buffers())
        found[name] = 100 * accuracy(model, training.digits)
    found["their average"] = 100 * accuracy(average.model, training.digits)
    fresh_statistics(average.model, training.digits.train_x.split(500))
    return found | {"measured anew": 100 * accuracy(average.model, training.digits)}


def early(knobs: Knobs, starts: tuple[str, ...], at: tuple[int, ...]) -> dict[str, dict]:
    """Accuracy in percent of a young average: {"last weights" or the EMA's start: {update: %}}."""
    digits = data(knobs)
    training = Training(knobs.turned(average="none"), digits)
    watching = {one: average_of(knobs.turned(start=one), training.model) for one in starts}
    found: dict[str, dict] = {name: {} for name in ("last weights", *starts)}
    for done in range(1, max(at) + 1):
        training.advance()
        for average in watching.values():
            average.update(training.model)
        if done in at:
            models = {"last weights": training.model}
            models |= {name: average.model for name, average in watching.items()}
            for name, model in models.items():
                found[name][done] = 100 * accuracy(model, digits)
    return found


@dataclass(frozen=True)
class Walk:
    """The end of a run, recorded. weights: of each update, [updates, some of the weights] ·
    averaged: likewise, of the average · last, average: {place in it: accuracy in percent}.
    """

    weights: Tensor
    averaged: Tensor
    last: dict[int, float]
    average: dict[int, float]


def walk(knobs: Knobs, updates: int = 400, some: int = 4096) -> Walk:
    """Record the last ``updates`` of a run: some of the weights, drawn once, suffice to see it."""
    training = Training(knobs, data(knobs)).advance(max(0, updates_of(knobs) - updates))
    size = sum(parameter.numel() for parameter in training.model.parameters())
    drawn = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:some]
    seen: tuple[list[Tensor], list[Tensor]] = [], []
    last, average = {}, {}
    for place in range(updates):
        training.advance()
        for model, kept in zip((training.model, training.averaged), seen, strict=True):
            kept.append(nn.utils.parameters_to_vector(model.parameters()).detach()[drawn])
        if place % MOMENT_EVERY == 0:
            last[place] = 100 * accuracy(training.model, training.digits)
            average[place] = 100 * accuracy(training.averaged, training.digits)
    return Walk(torch.stack(seen[0]), torch.stack(seen[1]), last, average)


def plane(found: Walk) -> tuple[Tensor, Tensor]:
    """The walk seen from above, [updates, 2] each: last weights, and average. Across: the direction
    in which the average went. Up: the one in which the noise is largest.
    """
    ahead = found.averaged[-1] - found.averaged[0]
    ahead = ahead / ahead.norm()
    rest = noise(found.weights).float()
    rest = rest - (rest @ ahead)[:, None] * ahead
    aside = torch.linalg.svd(rest, full_matrices=False).Vh[0]
    axes = torch.stack([ahead, aside], 1)
    return (found.weights - found.averaged[0]) @ axes, (found.averaged - found.averaged[0]) @ axes


def noise(weights: Tensor, around: int | None = None) -> Tensor:
    """What of each update's weights [updates, …] is not trend, the mean from ``around`` updates
    before to as many behind, by default an eighth of all. Returns [updates − 2 · around, …].
    """
    around = around or len(weights) // 8
    sums = weights.double().cumsum(0)
    sums = torch.cat([torch.zeros_like(sums[:1]), sums])
    trend = (sums[2 * around + 1 :] - sums[: -2 * around - 1]) / (2 * around + 1)
    return weights[around : len(weights) - around].double() - trend


def correlations(noise: Tensor, most: int) -> Tensor:
    """How alike the noise of two updates is: [most + 1], 1 for an update and itself."""
    size = noise.square().sum() / len(noise)
    return torch.stack(
        [
            (noise[: len(noise) - k] * noise[k:]).sum() / (len(noise) - k) / size
            for k in range(most + 1)
        ]
    )


def left_of_noise(noise: Tensor, window: int) -> float:
    """The share of the noise's variance that an EMA leaves, measured once it has forgotten zero."""
    average, kept = torch.zeros_like(noise[0]), []
    for now in noise:
        average = average.lerp(now, 1 / window)
        kept.append(average.square().sum())
    later = len(kept) // 3
    return float(torch.stack(kept[later:]).mean() / noise[later:].square().sum(1).mean())


def predicted_left(window: int, alike: Tensor | None = None) -> float:
    """The same by formula: (1 − d)/(1 + d) · (1 + 2 Σ dᵏ ρ_k), ρ_k = 0 for independent noise."""
    decay = 1 - 1 / window
    powers = decay ** torch.arange(1, len(alike) if alike is not None else 1)
    together = 1 + 2 * float((powers * alike[1:]).sum()) if alike is not None else 1.0
    return (1 - decay) / (1 + decay) * together


Score = Callable[[nn.Module], float]


def halves(knobs: Knobs) -> tuple[Score, Score]:
    """Accuracy in percent on either half of the test digits: one to choose by, one to report."""
    digits = data(knobs)
    half = len(digits.test_x) // 2
    parts = [
        replace(digits, test_x=digits.test_x[part], test_y=digits.test_y[part])
        for part in (slice(half), slice(half, None))
    ]
    return tuple(lambda model, part=part: 100 * accuracy(model, part) for part in parts)
