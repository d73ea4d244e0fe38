"""A small network and its batch size: samples per second, updates, and seconds until a target."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count, islice
from statistics import fmean, median
from time import process_time
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from accel_lab.minibatch import (
    Batch,
    Laws,
    batches,
    fit_line,
    gradients_of_samples,
    naive_batches,
    noise_scale,
    squares_of_parts,
)
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.device import pick_device
from accel_lab.workbench.effort import effort
from accel_lab.workbench.knobs import KnobError, TrainingKnobs, dial
from accel_lab.workbench.loop import NonFiniteLoss, classifier_update, train
from accel_lab.workbench.measure.load import under_watch
from accel_lab.workbench.step import Step
from accel_lab.workbench.watched import told

TYPICAL_NOISE = 70  # samples; by it the learning rate follows the batch
JUDGED = 500  # training pictures that the target is measured on, always the same
MOST_EPOCHS = 40  # after so many a run has missed its target
SMALL = 8  # the batch whose learning rate a famous mistake keeps
ONE_RUN, PARTS = 64, 8  # the batch that predicts all others, and how it is taken apart


class Knobs(TrainingKnobs):
    batch_size: int = dial(64, ge=1, le=2048, log=True, description="samples per update")
    learning_rate: float = dial(
        1.0, ge=0.01, le=4.0, log=True, description="step size of a very large batch"
    )
    scale_rate: bool = dial(
        True, description=f"multiply the step size by B/(B + {TYPICAL_NOISE}) for a batch of B"
    )
    fetch: Literal["index", "one by one"] = dial(
        "index", description="how a batch is fetched: by one call, or sample by sample"
    )
    mistake: Literal[
        "none", "rate of a batch of 8", "sum of losses", "not shuffled", "with replacement"
    ] = dial("none", description="made on purpose")
    target: float = dial(
        0.3, ge=0.05, le=2.0, panel=False, description="loss on training pictures to be reached"
    )

    @property
    def rate(self) -> float:
        """The learning rate of an update."""
        if self.mistake == "rate of a batch of 8":
            return self.learning_rate * SMALL / (SMALL + TYPICAL_NOISE)
        if not self.scale_rate:
            return self.learning_rate
        return self.learning_rate * self.batch_size / (self.batch_size + TYPICAL_NOISE)


# ---- the famous mistakes ----


def sum_of_losses(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[..., dict]:
    """Add the losses up: the gradient, and with it the step, grows with the batch."""

    def update(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y, reduction="sum")
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach() / len(y)}

    return update


def not_shuffled(x: Tensor, y: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Take the samples as a folder per class lists them: a batch has one class, or two."""
    return iter(y.argsort(stable=True).split(batch_size))


def with_replacement(
    x: Tensor, y: Tensor, batch_size: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Draw each batch anew, and call it an epoch after n samples: some came twice, others never."""
    drawn = torch.randint(len(x), (len(x),), generator=generator)
    return iter(drawn.split(batch_size))


# ---- the experiment ----


def run(knobs: Knobs) -> Generator[Step, None, None]:
    """Train a perceptron 784-64-10 on 4,000 MNIST digits until the generator is closed.

    A Step's seconds hold the wait for its batch and the update. Metrics of each Step:
    loss: mean over the batch.
    wait_seconds: the wait for the batch.
    wait_share: the same, as a share of the Step's seconds; left out where a clock with coarse ticks
    has seen none pass.
    Of some Steps, measured outside these seconds:
    target_loss: on the pictures that the target is about.
    From the Step on that reached the target: seconds_to_target, updates_to_target.
    """
    torch.manual_seed(knobs.seed)
    digits = datasets.mnist5k().to(pick_device(knobs.device))
    model = models.mlp(784, 64, 10).to(digits.train_x.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=knobs.rate)
    make = sum_of_losses if knobs.mistake == "sum of losses" else classifier_update
    every, seconds, reached = max(1, 128 // knobs.batch_size), 0.0, {}
    for step in train(make(model, optimizer), epochs(knobs, digits), count_wait=True):
        seconds += step.seconds
        metrics = {}
        if step.seconds:
            metrics["wait_share"] = step.metrics["wait_seconds"] / step.seconds
        if (step.index + 1) % (20 * every if reached else every) == 0:
            metrics["target_loss"] = judged(model, digits)
            if not reached and metrics["target_loss"] < knobs.target:
                reached = {"seconds_to_target": seconds, "updates_to_target": step.index + 1.0}
        yield replace(step, metrics={**step.metrics, **metrics, **reached})


def epochs(knobs: Knobs, digits: datasets.Data) -> Iterator[Batch]:
    """Batches of one epoch after the other, without end."""
    x, y, size = digits.train_x, digits.train_y, knobs.batch_size
    generator = torch.Generator().manual_seed(knobs.seed)
    for _ in count():
        if knobs.mistake == "not shuffled":
            yield from ((x[part], y[part]) for part in not_shuffled(x, y, size))
        elif knobs.mistake == "with replacement":
            drawn = with_replacement(x, y, size, generator)
            yield from ((x[part], y[part]) for part in drawn)
        else:
            fetch = naive_batches if knobs.fetch == "one by one" else batches
            yield from fetch(x, y, size, generator)


@torch.no_grad()
def judged(model: nn.Module, digits: datasets.Data) -> float:
    """The mean loss on the pictures that the target is about."""
    return float(cross_entropy(model(digits.train_x[:JUDGED]), digits.train_y[:JUDGED]))


# ---- one run to the target ----


@dataclass(frozen=True)
class Way:
    """A run to its target. seconds, updates: until then, infinite where it was missed · losses:
    (seconds, samples, loss on the judged pictures), in the order of time.
    """

    seconds: float
    updates: float
    losses: tuple[tuple[float, int, float], ...]


def way_to_target(knobs: Knobs) -> Way:
    """Train until the target is reached, or for ``MOST_EPOCHS``."""
    seconds, samples, losses = 0.0, 0, []
    most = MOST_EPOCHS * len(datasets.mnist5k().train_x)
    with closing(run(knobs)) as steps:
        try:
            for step in steps:
                seconds, samples = seconds + step.seconds, samples + step.samples
                if (loss := step.metrics.get("target_loss")) is not None:
                    losses.append((seconds, samples, loss))
                if "seconds_to_target" in step.metrics:
                    return Way(seconds, step.index + 1.0, tuple(losses))
                if samples >= most:
                    break
        except NonFiniteLoss:
            pass
    return Way(math.inf, math.inf, tuple(losses))


def ways_to_target(
    knobs: Knobs, sizes: Iterable[int], seeds: Iterable[int]
) -> dict[int, list[Way]]:
    """Batch size → its run with each seed. The sizes take turns, in an order that chance picks, so
    that all of them meet the same moments of a busy machine.
    """
    found: dict[int, list[Way]] = {size: [] for size in sizes}
    with under_watch():
        with closing(run(knobs.turned(batch_size=max(found)))) as steps:
            list(islice(steps, 3))  # warms up
        for seed in told(seeds, "seed"):
            for size in random.sample(list(found), len(found)):
                found[size].append(way_to_target(knobs.turned(batch_size=size, seed=seed)))
    return found


def check_reached(ways: Mapping[int, list[Way]], knobs: Knobs) -> None:
    """Raise KnobError, one line, where no batch size has reached the target with each seed."""
    if all(any(way.seconds == math.inf for way in runs) for runs in ways.values()):
        said = f"at {knobs.learning_rate:g} no batch size reaches the target of {knobs.target:g}"
        raise KnobError("learning_rate", f"{said} within {MOST_EPOCHS} epochs; choose another one")


def other_rates(knobs: Knobs, factors: Iterable[float]) -> list[float]:
    """Those of the factors by which the learning rate stays one that the knob can take."""
    rate = next(one for one in Knobs.dials() if one.name == "learning_rate")
    return [factor for factor in factors if rate.low <= factor * knobs.learning_rate <= rate.high]


# ---- predicted beforehand ----


TIMED = (1, 16, 128, 512)  # sizes of batch that tell the costs


def update_seconds(
    knobs: Knobs, sizes: Iterable[int] = TIMED, rounds: int = 15
) -> dict[int, float]:
    """Batch size → seconds of an update with its fetching, as ``run`` trains them. The sizes take
    turns for some rounds, and the median counts: or the mean, over more rounds, where the ticks of
    the clock are longer than an update.
    """
    least = 2 + max(4, round(rounds * effort()))
    taken: dict[int, list[float]] = {size: [] for size in sizes}
    with under_watch(), ExitStack() as stack:
        runs = {
            size: stack.enter_context(closing(run(knobs.turned(batch_size=size)))) for size in taken
        }
        for number in range(100 * least):
            if number >= least and all(any(seconds[4:]) for seconds in taken.values()):
                break
            for size in random.sample(list(runs), len(runs)):
                next(runs[size])  # begun while another one ran
                taken[size] += [next(runs[size]).seconds for _ in range(2)]
    return {size: median(seconds[4:]) or fmean(seconds[4:]) for size, seconds in taken.items()}


@lru_cache
def costs(fetch: str, device: str) -> tuple[float, float]:
    """(a, b): seconds of an update beside its samples, and seconds per sample, on this machine."""
    call, sample = fit_line(update_seconds(Knobs(fetch=fetch, device=device)))
    return max(call, 1e-9), max(sample, 1e-9)


@dataclass(frozen=True)
class OneRun:
    """What a single run tells: updates it took to its target, (‖g‖² of a part, ‖G‖²) of each
    update, and whether the target was reached within ``MOST_EPOCHS``.
    """

    updates: int
    squares: list[tuple[float, float]]
    reached: bool = True

    @property
    def noise(self) -> float:
        """The noise scale over the whole run, in samples."""
        small_sq, big_sq = (sum(one) / len(self.squares) for one in zip(*self.squares, strict=True))
        return noise_scale(small_sq, big_sq, ONE_RUN // PARTS, ONE_RUN)


@lru_cache
def one_run(knobs: Knobs) -> OneRun:
    """Train with a batch of ``ONE_RUN``, each taken apart: the same training, and its noise."""
    torch.manual_seed(knobs.seed)
    knobs = knobs.turned(batch_size=ONE_RUN, mistake="none", fetch="index")
    digits = datasets.mnist5k().to(pick_device(knobs.device))
    model = models.mlp(784, 64, 10).to(digits.train_x.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=knobs.rate)
    squares = []
    for x, y in epochs(knobs, digits):
        if len(x) < ONE_RUN:  # a shorter one has other parts
            continue
        squares.append(squares_of_parts(model, x, y, PARTS))
        optimizer.step()
        reached = judged(model, digits) < knobs.target
        if reached or len(squares) * ONE_RUN >= MOST_EPOCHS * len(digits.train_x):
            return OneRun(len(squares), squares, reached)
    raise AssertionError("epochs go on without end")


def laws_of_one_run(found: OneRun, cost: tuple[float, float]) -> Laws:
    """Both laws from an update's costs (a, b) and one run, with no other batch size tried."""
    return Laws(*cost, found.updates / (1 + found.noise / ONE_RUN), found.noise)


def fitted_laws(updates: Mapping[int, float], cost: tuple[float, float]) -> Laws:
    """Both laws from an update's costs (a, b) and the updates that the batch sizes took."""
    least, slope = fit_line({1 / size: needed for size, needed in updates.items()})
    return Laws(*(max(one, 1e-9) for one in cost), least, max(slope / least, 1e-9))


def predicted_throughput(knobs: Knobs) -> float:
    """Samples/s of a batch: B / (a + bB)."""
    call, sample = costs(knobs.fetch, knobs.device)
    return knobs.batch_size / (call + sample * knobs.batch_size)


def predicted_seconds(knobs: Knobs) -> float:
    """Seconds to the target, predicted from one run with the learning rate of the chapter."""
    found = one_run(Knobs(device=knobs.device, seed=knobs.seed, target=knobs.target))
    laws = laws_of_one_run(found, costs(knobs.fetch, knobs.device))
    return laws.seconds(knobs.batch_size)


# ---- what else the chapter measures ----


def noise_along(knobs: Knobs, at: tuple[int, ...], samples: int = 128) -> dict[int, float]:
    """Update → the noise scale there, from the gradients of so many samples, each by itself."""
    torch.manual_seed(knobs.seed)
    digits = datasets.mnist5k().to(pick_device(knobs.device))
    model = models.mlp(784, 64, 10).to(digits.train_x.device)
    update = classifier_update(model, torch.optim.SGD(model.parameters(), lr=knobs.rate))
    found = {}
    for done, batch in enumerate(epochs(knobs, digits)):
        if done in at:
            found[done] = exact_noise(model, digits.train_x[:samples], digits.train_y[:samples])
        if done >= max(at):
            return found
        update(*batch)
    return found


def exact_noise(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """tr(Σ)/‖G‖² from the gradient of each sample: the slow truth."""
    each = torch.cat([one.flatten(1) for one in gradients_of_samples(model, x, y)], 1)
    trace = float((each - each.mean(0)).square().sum()) / (len(x) - 1)
    return trace / (float(each.mean(0).square().sum()) - trace / len(x))


def system_shares(
    make: Callable[[], nn.Module], sizes: tuple[int, ...], seconds: float = 0.4
) -> dict[int, tuple[float, float]]:
    """Batch size → (samples per second of CPU time, share of that time that the system took)."""
    digits, found = datasets.mnist5k(), {}
    model = make()
    update = classifier_update(model, torch.optim.SGD(model.parameters(), lr=0.0))
    with under_watch():
        for size in sizes:
            batch = digits.train_x[:size], digits.train_y[:size]
            update(*batch)
            start, before, updates = process_time(), os.times(), 0
            while updates < 3 or process_time() - start < seconds * effort():
                update(*batch)
                updates += 1
            spent, after = process_time() - start, os.times()
            share = (after.system - before.system) / spent
            found[size] = updates * size / spent, min(1.0, share)
    return found


def mean_seconds(ways: Mapping[int, list[Way]]) -> dict[int, float]:
    """Batch size → seconds to the target, the mean of its runs."""
    return {size: fmean(way.seconds for way in runs) for size, runs in ways.items()}
