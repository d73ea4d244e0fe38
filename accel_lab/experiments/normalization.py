"""Normalization in training: the learning rates that pixels of each scale allow, and mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn

from accel_lab.normalization import (
    BatchNorm,
    Normalizer,
    Statistics,
    fit,
    to_minus_one_one,
    to_unit_variance,
    to_zero_one,
)
from accel_lab.workbench.data import datasets
from accel_lab.workbench.device import pick_device
from accel_lab.workbench.effort import effort, some_seeds
from accel_lab.workbench.knobs import TrainingKnobs, dial
from accel_lab.workbench.loop import NonFiniteLoss, classifier_update, train
from accel_lab.workbench.step import Step
from accel_lab.workbench.watched import told

METHODS: dict[str, Callable[[Statistics], Normalizer]] = {
    "0 to 1": to_zero_one,
    "-1 to 1": to_minus_one_one,
    "mean and deviation": to_unit_variance,
}
EVALUATE_EVERY = 10  # updates
HIGHEST_RATE = 100.0


class Knobs(TrainingKnobs):
    method: Literal["none", "0 to 1", "-1 to 1", "mean and deviation"] = dial(
        "none", description="what is done to the pixels"
    )
    learning_rate: float = dial(
        0.1, ge=1e-8, le=HIGHEST_RATE, log=True, description="step size of the optimizer"
    )
    outlier: int = dial(
        1,
        ge=1,
        le=1000,
        log=True,
        description="brightness of one broken pixel in one picture, in multiples of 255",
    )
    batch_norm: bool = dial(False, description="batch normalization after every hidden layer")
    mistake: Literal["none", "variance as divisor", "leaked statistics"] = dial(
        "none", description="made on purpose"
    )
    layers: int = dial(
        2, ge=0, le=8, panel=False, description="hidden layers, 0 for softmax regression"
    )
    batch_size: int = dial(128, ge=2, le=1024, panel=False, description="samples per update")


def run(knobs: Knobs) -> Generator[Step, None, None]:
    """Train a small network on 4,000 MNIST digits until the generator is closed.

    Metrics of each Step: loss. Of every tenth, evaluated outside the timed update:
    activation_0: root mean square of the input.
    activation_1, activation_2, …: root mean square of each hidden layer's output.
    test_accuracy: 0 to 1.

    Raises NonFiniteLoss when the loss explodes.
    """
    torch.manual_seed(knobs.seed)
    device = pick_device(knobs.device)
    digits = prepared(knobs).to(device)
    model = network(knobs.layers, knobs.batch_norm).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=knobs.learning_rate)
    batches = digits.batches(knobs.batch_size, knobs.seed)
    for step in train(classifier_update(model, optimizer), batches):
        found = evaluate(model, digits) if step.index % EVALUATE_EVERY == 0 else {}
        yield replace(step, metrics={**step.metrics, **found})


@torch.no_grad()
def evaluate(model: nn.Sequential, digits: datasets.Data) -> dict[str, float]:
    """Measure test accuracy, and the root mean square of the input and of every ReLU's output."""
    model.eval()
    *flow, logits = activations(model, digits.test_x)
    found = {f"activation_{place}": root_mean_square(x) for place, x in enumerate(flow)}
    model.train()
    return found | {"test_accuracy": float((logits.argmax(1) == digits.test_y).double().mean())}


@torch.no_grad()
def activations(model: nn.Sequential, x: Tensor) -> list[Tensor]:
    """Return what flows through the model: x, the output of every ReLU, the model's output."""
    flow = [x]
    for part in model:
        x = part(x)
        if isinstance(part, nn.ReLU):
            flow.append(x)
    return [*flow, x]


def root_mean_square(x: Tensor) -> float:
    """Return √(mean of x²), a typical size of the numbers in x."""
    return float(x.square().mean().sqrt())


def prepared(knobs: Knobs) -> datasets.Data:
    """Make the data: pixels 0…255, one of them broken, normalized by the training split."""
    return _prepared(knobs.method, knobs.outlier, knobs.mistake)


@lru_cache(maxsize=2)  # 16 MB each
def _prepared(method: str, outlier: int, mistake: str) -> datasets.Data:
    digits = datasets.mnist5k()
    train, test = digits.train_x * 255, digits.test_x * 255
    train[0, 0, 0, 0] = 255.0 * outlier if outlier > 1 else 0.0  # a corner, dark in every picture
    if method != "none":
        statistics = fit(torch.cat([train, test]) if mistake == "leaked statistics" else train)
        wrong = mistake == "variance as divisor"
        normalizer = (divided_by_the_variance if wrong else METHODS[method])(statistics)
        train, test = normalizer(train), normalizer(test)
    return replace(digits, train_x=train, test_x=test)


def divided_by_the_variance(statistics: Statistics) -> Normalizer:
    """Divide by σ² instead of σ, a famous mistake: the variance becomes 1/σ²."""
    return Normalizer.of(statistics, statistics.mean, statistics.variance)


def network(
    layers: int, batch_norm: bool, features: int = 784, width: int = 64, classes: int = 10
) -> nn.Sequential:
    """Make a perceptron, [n, 1, 28, 28] → [n, 10].

    layers: how many hidden ones, with ReLU. Without any it is softmax regression, and starts from
    weights of 0, where its curvature is known.
    batch_norm: a BatchNorm before each ReLU.
    """
    parts: list[nn.Module] = [nn.Flatten()]
    for layer in range(layers):
        parts += [
            nn.Linear(width if layer else features, width),
            *([BatchNorm(width)] if batch_norm else []),
            nn.ReLU(),
        ]
    last = nn.Linear(width if layers else features, classes)
    if not layers:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(*parts, last)


def largest_stable_rate(x: Tensor, classes: int = 10) -> float:
    """Predict the learning rate above which softmax regression on x [n, …] oscillates: 2/λ.

    λ is the largest curvature of the cross-entropy where all weights are 0: λ_max(E[x xᵀ])/classes,
    with a 1 appended to x for the bias.
    """
    rows = torch.cat([x.flatten(1).double(), torch.ones(len(x), 1, dtype=torch.float64)], 1)
    return float(2 * classes / torch.linalg.eigvalsh(rows.T @ rows / len(rows))[-1])


# ---- what the chapter measures ----

CHANCE = math.log(10)  # the loss of guessing among ten classes
LEARNED = 0.9 * CHANCE  # a dead network learns how frequent each class is: a little below chance
RAN_AWAY = 50.0  # a loss at which nothing is learned any more


def sweep(knobs: Knobs, rates: Iterable[float], updates: int = 50) -> dict[float, float]:
    """Train once with each learning rate: {rate: mean loss of the last ten updates}.

    A loss above ``RAN_AWAY``, or one that is not finite, counts as ``RAN_AWAY``.
    """
    updates = round(updates * max(0.5, effort()))
    turned = {rate: knobs.turned(learning_rate=rate) for rate in rates}
    return {rate: _loss_after(turned[rate], updates) for rate in told(turned, "learning rate")}


def _loss_after(knobs: Knobs, updates: int) -> float:
    try:
        losses = [step.metrics["loss"] for step in islice(run(knobs), updates)]
    except NonFiniteLoss:
        return RAN_AWAY
    return min(RAN_AWAY, sum(losses[-10:]) / 10)


def around(rate: float) -> list[float]:
    """Return learning rates from a hundredth of this one to a hundred times, closer near it."""
    rates = [rate * 10 ** (half / 2) for half in (-4, -2, -1, 0, 1, 2, 3, 4)]
    return [rate for rate in rates if rate <= HIGHEST_RATE]


def finer_sweep(knobs: Knobs, decades: Iterable[float], updates: int = 50) -> dict[float, float]:
    """Make a ``sweep`` of whole decades, and of the quarters between the last that trains and the
    next.
    """
    found = sweep(knobs, decades, updates)
    last = max((rate for rate, loss in found.items() if loss < LEARNED), default=HIGHEST_RATE)
    quarters = [last * 10 ** (quarter / 4) for quarter in (1, 2, 3)]
    found |= sweep(knobs, [rate for rate in quarters if rate <= HIGHEST_RATE], updates)
    return dict(sorted(found.items()))


def largest_training_rate(losses: Mapping[float, float]) -> float:
    """Find in a ``sweep`` the learning rate beyond which no loss is clearly below chance: a tenth.

    It lies between two rates of the sweep: on the straight line between them, on logarithmic axes.
    NaN where no rate of the sweep trains.
    """
    points = [(math.log(rate), math.log(loss / LEARNED)) for rate, loss in sorted(losses.items())]
    below = max((place for place, (_, y) in enumerate(points) if y < 0), default=None)
    if below is None:
        return math.nan
    if below == len(points) - 1:
        return math.exp(points[below][0])
    (x0, y0), (x1, y1) = points[below : below + 2]
    return math.exp(x0 - y0 * (x1 - x0) / (y1 - y0))


def predicted_edge(knobs: Knobs) -> float:
    """Predict the largest stable learning rate of softmax regression on the prepared pixels."""
    return largest_stable_rate(prepared(knobs).train_x)


def fresh_activations(x: Tensor, layers: int, batch_norm: bool) -> list[Tensor]:
    """Send x [n, 1, 28, 28] through an untrained network: what the ReLU of each layer lets
    through.
    """
    torch.manual_seed(0)
    return activations(network(layers, batch_norm), x)[1:-1]


def spread(knobs: Knobs) -> float:
    """Return the standard deviation of the prepared test pictures, over all of their pixels."""
    return float(prepared(knobs).test_x.std())


def accuracies(knobs: Knobs, updates: int = 250, seeds: int = 3) -> list[float]:
    """Train from several seeds: the test accuracy of each, in %, after so many updates.

    updates: a multiple of ``EVALUATE_EVERY``.
    """
    found = []
    for seed in told(some_seeds(seeds), "seed"):
        *_, last = islice(run(knobs.turned(seed=knobs.seed + seed)), updates + 1)
        found.append(100 * last.metrics["test_accuracy"])
    return found
