"""Networks with the same number of weights, deep or wide, with dropout or without it."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import cycle, islice
from statistics import median
from typing import Literal, get_args

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

from accel_lab.structure import Net, as_mask, count, cut_forward, draw_kept, width_for
from accel_lab.workbench.data import datasets
from accel_lab.workbench.device import pick_device, synchronize, threads
from accel_lab.workbench.effort import effort
from accel_lab.workbench.knobs import KnobError, TrainingKnobs, dial
from accel_lab.workbench.loop import train
from accel_lab.workbench.measure.comparison import Comparison, compare, reading
from accel_lab.workbench.measure.load import under_watch
from accel_lab.workbench.measure.memory_meter import ActivationMeter
from accel_lab.workbench.step import Step
from accel_lab.workbench.watched import told

INPUTS, OUTPUTS = 784, 10
EVALUATE_EVERY = 25  # updates
JUDGED = 500  # training pictures that the training loss is measured on
TOUR = (  # what a panel that nobody watches shows
    {"depth": 64},
    {"depth": 16, "residual": True},
    {"depth": 2, "dropout": "cut"},
    {"depth": 8, "dropout": "mask"},
)
Answer = Callable[[Tensor], Tensor]


class Knobs(TrainingKnobs):
    depth: int = dial(1, ge=1, le=64, log=True, description="hidden layers")
    parameters: Literal[100_000, 400_000, 1_000_000] = dial(
        100_000, description="weights and biases, which the width is solved for"
    )
    residual: bool = dial(False, description="add to each hidden layer what went into it")
    dropout: Literal["none", "mask", "cut"] = dial(
        "none", description="leave units out: not at all, by a mask, or cut out of the weights"
    )
    mistake: Literal[
        "none", "left on", "not scaled", "on the logits", "one pattern", "weights N(0, 1)"
    ] = dial("none", description="made on purpose")
    p: float = dial(0.5, ge=0, le=0.95, panel=False, description="share of units left out, 0…0.95")
    samples: int = dial(
        4000, ge=100, le=4000, panel=False, description="training pictures that may be used"
    )
    batch_size: int = dial(64, ge=1, le=2048, panel=False, description="samples per update")
    learning_rate: float = dial(
        1e-3, ge=1e-5, le=1.0, log=True, panel=False, description="step size of Adam"
    )

    @property
    def width(self) -> int:
        """Units of each hidden layer."""
        return width_for(self.depth, self.parameters, INPUTS, OUTPUTS)

    @model_validator(mode="after")
    def _fit_together(self) -> Knobs:
        if self.dropout == "cut" and self.residual:
            raise KnobError("dropout", "'cut' needs a network without residual connections")
        if self.mistake in DROPOUT_MISTAKES and self.dropout != "mask":
            raise KnobError("mistake", f"{self.mistake!r} is about dropout by 'mask'; choose that")
        return self


# ---- the network of the knobs ----


def net_of(knobs: Knobs) -> Net:
    """The network, drawn from torch's global generator."""
    hidden = [knobs.width] * knobs.depth
    net = Net(INPUTS, *hidden, OUTPUTS, residual=knobs.residual)
    if knobs.mistake == "weights N(0, 1)":
        for layer in net.layers:
            nn.init.normal_(layer.weight)
    return net.to(pick_device(knobs.device))


def training_answer(net: Net, knobs: Knobs) -> Answer:
    """How the network answers in training: with dropout, and with its mistake."""
    if knobs.mistake in DROPOUT_MISTAKES:
        return DROPOUT_MISTAKES[knobs.mistake](net, knobs.p)
    if knobs.dropout == "mask":
        return partial(net, drop=partial(dropout, p=knobs.p))
    if knobs.dropout == "cut":
        return lambda x: cut_forward(net, x, draw_kept(net, knobs.p))
    return net


# ---- the famous mistakes: how the network answers in training ----


def left_on(net: Net, p: float) -> Answer:
    """Right in training. But the same forward pass is used for answers afterwards."""
    return partial(net, drop=partial(dropout, p=p))


def not_scaled(net: Net, p: float) -> Answer:
    """Forget 1 / (1 − p): when all units answer, each layer's sums are larger than in training."""

    def drop(h: Tensor) -> Tensor:
        return h * torch.empty_like(h).bernoulli_(1 - p)

    return partial(net, drop=drop)


def on_the_logits(net: Net, p: float) -> Answer:
    """Drop the network's answers: half of the time the right class has a logit of 0."""
    return lambda x: dropout(net(x), p)


def one_pattern(net: Net, p: float) -> Answer:
    """Draw the units once, for all batches: a smaller network, beside units that never learn."""
    widths = [layer.out_features for layer in net.layers[:-1]]
    masks = cycle([as_mask(kept, w) for kept, w in zip(draw_kept(net, p), widths, strict=True)])
    return partial(net, drop=lambda h: h * next(masks))


DROPOUT_MISTAKES: dict[str, Callable[[Net, float], Answer]] = {
    "left on": left_on,
    "not scaled": not_scaled,
    "on the logits": on_the_logits,
    "one pattern": one_pattern,
}


# ---- the experiment ----


def run(knobs: Knobs) -> Generator[Step, None, None]:
    """Train a network of the wanted shape on MNIST digits until the generator is closed.

    Metrics of each Step:
    loss: mean over the batch.
    update_seconds: the Step's seconds.
    weight_bytes, gradient_bytes, optimizer_bytes: by the number of parameters, in float32.
    activation_bytes: what autograd held in an update, measured once.
    Of some Steps, measured outside their seconds:
    test_loss, test_accuracy, train_loss: of the network as it answers after training.
    gap: test_loss − train_loss.
    """
    torch.manual_seed(knobs.seed)
    net = net_of(knobs)
    answer = training_answer(net, knobs)
    final = answer if knobs.mistake == "left on" else net
    optimizer = torch.optim.Adam(net.parameters(), lr=knobs.learning_rate)
    digits = some_digits(knobs)
    batches = digits.batches(min(knobs.batch_size, knobs.samples), knobs.seed)
    memory = memory_of_one_update(net, answer, *next(batches))

    def update(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"loss": one_update(answer, optimizer, x, y)}

    for step in train(update, batches):
        due = (step.index + 1) % EVALUATE_EVERY == 0
        found = {"update_seconds": step.seconds, **memory}
        found |= evaluate(final, digits) if due else {}
        yield replace(step, metrics={**step.metrics, **found})


def one_update(answer: Answer, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """An ordinary update, whatever the forward pass. Returns the mean loss []."""
    optimizer.zero_grad()
    loss = cross_entropy(answer(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def some_digits(knobs: Knobs) -> datasets.Data:
    """The first of MNIST's training pictures, as many as may be used, and all of its test ones."""
    data = datasets.mnist5k()
    few = replace(
        data, train_x=data.train_x[: knobs.samples], train_y=data.train_y[: knobs.samples]
    )
    return few.to(pick_device(knobs.device))


@torch.no_grad()
def evaluate(answer: Answer, digits: datasets.Data) -> dict[str, float]:
    logits = answer(digits.test_x)
    test = float(cross_entropy(logits, digits.test_y))
    known = float(cross_entropy(answer(digits.train_x[:JUDGED]), digits.train_y[:JUDGED]))
    accuracy = float((logits.argmax(1) == digits.test_y).double().mean())
    return {"test_loss": test, "train_loss": known, "gap": test - known, "test_accuracy": accuracy}


def memory_of_one_update(net: Net, answer: Answer, x: Tensor, y: Tensor) -> dict[str, float]:
    """What fills the memory of an update, in bytes. Adam keeps two numbers for each weight."""
    with ActivationMeter(net, x, y) as meter:
        cross_entropy(answer(x), y).backward()
    net.zero_grad()
    weights = 4.0 * count(net, len(x)).parameters
    return {
        "weight_bytes": weights,
        "gradient_bytes": weights,
        "optimizer_bytes": 2 * weights,
        "activation_bytes": float(meter.peak),
    }


def predicted_bytes(knobs: Knobs) -> float:
    """All of it by formula, without dropout."""
    found = count(net_of(knobs.turned(mistake="none")), min(knobs.batch_size, knobs.samples))
    return 16.0 * found.parameters + found.activation_bytes


# ---- predicted beforehand: one wide layer, and the calls of each further one ----


@dataclass(frozen=True)
class Costs:
    """wide: number of parameters → seconds of an update of one hidden layer · layer: seconds that
    the calls of one further layer add.
    """

    wide: dict[int, float]
    layer: float


@lru_cache
def costs(batch_size: int, device: str) -> Costs:
    """Measure both on this machine, taking turns: medians."""
    knobs = Knobs(batch_size=batch_size, device=device)
    sizes = get_args(Knobs.model_fields["parameters"].annotation)
    nets = {size: net_of(knobs.turned(parameters=size)) for size in sizes}
    taken = updates_in_turn(nets, knobs, rounds=12)
    return Costs({size: median(taken[size]) for size in sizes}, layer_seconds(taken))


def predicted_seconds(knobs: Knobs) -> float:
    """Seconds of an update without dropout: the sums of the wide network, the calls of the deep."""
    found = costs(knobs.batch_size, knobs.device)
    return found.wide[knobs.parameters] + (knobs.depth - 1) * found.layer


FEW, MANY = 4, 36  # layers of four units, with next to nothing to add up: their calls are all


def updates_in_turn(nets: dict[int, Net], knobs: Knobs, rounds: int) -> dict[int, list[float]]:
    """Seconds of an update of each network in each round, and at −4 and −36 those of so many
    layers of four units.
    """
    nets = nets | {-depth: Net(INPUTS, *[4] * depth, OUTPUTS) for depth in (FEW, MANY)}
    x, y = next(some_digits(knobs).batches(knobs.batch_size))
    programs = {}
    for name, net in nets.items():
        net.to(x.device)
        optimizer = torch.optim.Adam(net.parameters(), lr=knobs.learning_rate)
        programs[name] = partial(one_update, net, optimizer, x, y)
    return in_turn(programs, rounds)


def layer_seconds(taken: dict[int, list[float]]) -> float:
    """What one further layer adds by its calls, from the seconds of ``updates_in_turn``."""
    return (median(taken[-MANY]) - median(taken[-FEW])) / (MANY - FEW)


def depths_in_turn(knobs: Knobs, depths: Iterable[int], rounds: int = 15) -> dict[int, list[float]]:
    """Depth → seconds of an update in each round, with equal parameters; −4 and −36 as above."""
    nets = {depth: net_of(knobs.turned(depth=depth)) for depth in depths}
    return updates_in_turn(nets, knobs, rounds)


def in_turn(programs: dict[int, Callable[[], object]], rounds: int) -> dict[int, list[float]]:
    """Seconds of a call of each program in each round: the faster of two, after one to warm up."""
    taken: dict[int, list[float]] = {name: [] for name in programs}
    with under_watch():
        for _ in range(1 + max(4, round(rounds * effort()))):
            for name in random.sample(list(programs), len(programs)):
                programs[name]()
                taken[name].append(min(reading(programs[name]) for _ in range(2)))
    return {name: times[1:] for name, times in taken.items()}


# ---- what else the chapter measures ----


@dataclass(frozen=True)
class Outcome:
    """Of one run: test accuracy in %, losses, the gap between them, and the median seconds of an
    update.
    """

    accuracy: float
    test_loss: float
    train_loss: float
    seconds: float

    @property
    def gap(self) -> float:
        return self.test_loss - self.train_loss


def outcome(knobs: Knobs, updates: int) -> Outcome:
    """Train for so many updates, a multiple of ``EVALUATE_EVERY``."""
    with under_watch(), closing(run(knobs)) as steps:
        taken = list(islice(steps, updates))
    last = taken[-1].metrics
    return Outcome(
        100 * last["test_accuracy"],
        last["test_loss"],
        last["train_loss"],
        median(step.seconds for step in taken),
    )


def outcomes(knobs: Knobs, seeds: Iterable[int], updates: int) -> list[Outcome]:
    turned = [knobs.turned(seed=knobs.seed + seed) for seed in seeds]
    return [outcome(one, updates) for one in told(turned, "seed")]


@torch.no_grad()
def growth(knobs: Knobs) -> float:
    """How many times as large the last hidden layer's units are as the first one's, in a new
    network, by the root of their mean square over one batch.
    """
    torch.manual_seed(knobs.seed)
    net = net_of(knobs)
    x, _ = next(some_digits(knobs).batches(knobs.batch_size, knobs.seed))
    seen: list[Tensor] = []  # what the second layer is given, and the last one
    for layer in (net.layers[1], net.layers[-1]):
        layer.register_forward_hook(lambda _layer, given, _out: seen.append(given[0]))
    net(x)
    return float(seen[-1].norm() / seen[0].norm())


@torch.no_grad()
def answer_seconds(depths: Iterable[int], knobs: Knobs, samples: int) -> dict[int, float]:
    """Depth → median seconds of an answer to so many samples, without gradients."""
    x = some_digits(knobs).test_x[:samples]
    nets = {depth: net_of(knobs.turned(depth=depth)) for depth in depths}
    programs = {depth: partial(_ten_times, net, x) for depth, net in nets.items()}
    taken = in_turn(programs, rounds=15)
    return {depth: median(seconds) / 10 for depth, seconds in taken.items()}


@torch.no_grad()
def _ten_times(net: Net, x: Tensor) -> None:
    for _ in range(10):
        net(x)
    synchronize(x.device)


def update_of(knobs: Knobs, halved: bool = False) -> Callable[[], Tensor]:
    """A program that makes one update, always with the same batch. halved: of a network of half
    the width, without dropout: what cutting one half could reach at best.
    """
    torch.manual_seed(knobs.seed)
    widths = [knobs.width // (2 if halved else 1)] * knobs.depth
    net = Net(INPUTS, *widths, OUTPUTS, residual=knobs.residual).to(pick_device(knobs.device))
    answer = net if halved else training_answer(net, knobs)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    x, y = next(some_digits(knobs).batches(knobs.batch_size, knobs.seed))
    return lambda: one_update(answer, optimizer, x, y)


def price(knobs: Knobs, how: str, peer: str, patience: float = 1.0) -> Comparison:
    """An update with dropout by ``how`` against one by ``peer``: "none", "mask", "cut" or "half the
    width", which is no dropout in a network of the kept units alone.
    """
    halved = peer == "half the width"
    ours = update_of(knobs.turned(dropout=how))
    theirs = update_of(knobs.turned(dropout="none" if halved else peer), halved=halved)
    names = (how, "no dropout" if peer == "none" else peer)
    return compare(ours, theirs, names=names, patience=patience)


def second_core(knobs: Knobs) -> Comparison:
    """An update on one core against the same on two; above 1, two are faster.

    Two pairs alone, which tell nothing, where two cores take more than twice the time of one: then
    other programs hold the second one, and threads wait for each other.
    """
    update = update_of(knobs)

    def on(cores: int) -> None:
        with threads(cores):
            update()

    one, two, names = partial(on, 1), partial(on, 2), ("one core", "two cores")
    one(), two()
    trial = Comparison.of([(reading(one), reading(two)) for _ in range(2)], names)
    return trial if trial.ratio < 0.5 else compare(one, two, names=names, patience=1.0)


def with_momentum(knobs: Knobs, rate: float, updates: int = 100) -> dict[str, float]:
    """Train by SGD with a momentum of 0.9 in place of Adam; return what ``evaluate`` finds.

    A loss that is no number any more does not end this run: it is what may be found.
    """
    torch.manual_seed(knobs.seed)
    net, digits = net_of(knobs), some_digits(knobs)
    answer = training_answer(net, knobs)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9)
    for x, y in islice(digits.batches(knobs.batch_size, knobs.seed), updates):
        one_update(answer, optimizer, x, y)
    return evaluate(net, digits)
