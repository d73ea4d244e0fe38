"""Many networks at once against one by one and against vmap; whole searches against Optuna's."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from statistics import fmean

import optuna
import torch
from torch import nn

from accel_lab.experiments import search as experiment
from accel_lab.workbench.device import threads
from accel_lab.workbench.measure.comparison import compare
from accel_lab.workbench.measure.roofline import fastest

PAIRS = 7
KNOBS = experiment.Knobs(device="cpu")


def prove() -> None:
    """The three ways have the same losses in every update."""
    population = experiment.candidates_without_dropout(8, 32)
    updates = {name: way(population) for name, way in experiment.WAYS.items()}
    digits = experiment.parts_of(KNOBS)
    x, y = (part[:64] for part in digits.train)
    for _ in range(5):
        losses = {name: update(x, y) for name, update in updates.items()}
        slow = population.knobs["learning_rate"].flatten() < 0.1  # others part by their rounding
        for name in ("one by one", "vmap"):
            torch.testing.assert_close(
                losses[name][slow], losses["population"][slow], rtol=1e-3, atol=1e-4
            )


def cases() -> Iterator[str]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    prove()
    with threads(1):
        yield from together()
        yield from whole_searches()
        yield from quality()


def together() -> Iterator[str]:
    """An epoch of all."""
    digits = experiment.parts_of(KNOBS)
    for hidden, batch, number in (
        (32, 16, 8),
        (32, 16, 64),
        (32, 64, 8),
        (32, 64, 64),
        (128, 16, 64),
    ):
        population = experiment.candidates_without_dropout(number, hidden)
        epochs = {
            name: experiment.epoch_of(way(population), digits, batch)
            for name, way in experiment.WAYS.items()
        }
        case = f"search {number} networks 64-{hidden}-10, batch {batch}"
        for peer in ("one by one", "vmap"):
            yield compare(epochs["population"], epochs[peer], pairs=PAIRS).line(case, peer)
        yield f"{case}: {limit(number, hidden, batch):.2f} of its time is multiplying at full speed"


def limit(number: int, hidden: int, batch: int) -> float:
    """The least time of the products of an update, as large ones run here, over its time."""
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    flops = 2 * 512**3 / fastest(lambda: a @ b)
    population = experiment.candidates_without_dropout(number, hidden)
    x, y = (part[:batch] for part in experiment.parts_of(KNOBS).train)
    products = 2 * number * batch * hidden * (2 * 64 + 3 * 10)  # no gradient to the input
    return products / flops / fastest(lambda: population.update(x, y))


def whole_searches() -> Iterator[str]:
    """The same candidates, cut by the same rule."""
    for strategy, candidates, pruner in (
        ("halving", 81, lambda: optuna.pruners.SuccessiveHalvingPruner(1, 3, 0)),
        ("random", 27, optuna.pruners.NopPruner),
    ):
        knobs = KNOBS.turned(strategy=strategy, candidates=candidates)
        theirs = optuna_search(pruner, candidates)
        ratio = compare(lambda knobs=knobs: experiment.search(knobs, 0), theirs, pairs=2)
        yield ratio.line(f"search {strategy} of {candidates}", "Optuna")


def optuna_search(
    pruner: Callable[[], optuna.pruners.BasePruner],
    candidates: int,
    seed: int = 0,
    found: list[tuple[float, int]] | None = None,
) -> Callable[[], None]:
    digits = experiment.parts_of(KNOBS)

    def program() -> None:
        spent = 0

        def objective(trial: optuna.Trial) -> float:
            nonlocal spent
            settings = {
                name: trial.suggest_float(name, one.low, one.high, log=one.log)
                for name, one in experiment.SPACE.items()
            }
            network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
            trained = experiment.trained_alone(settings, network, KNOBS, seed)
            for epoch, whole in enumerate(trained, start=1):
                spent += 1
                accuracy = experiment.share_right(whole, *digits.choose)
                trial.report(accuracy, epoch)
                if trial.should_prune():
                    raise optuna.TrialPruned
            trial.set_user_attr("test", experiment.share_right(whole, *digits.judge))
            return accuracy

        sampler = optuna.samplers.RandomSampler(seed=seed)
        study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner())
        study.optimize(objective, n_trials=candidates)
        if found is not None:
            found.append((study.best_trial.user_attrs["test"], spent))

    return program


def quality() -> Iterator[str]:
    """Test accuracy of the winner, means over seeds, and what it cost."""
    seeds = range(12)
    for strategy, candidates in (("grid", 27), ("grid", 81), ("random", 27), ("halving", 81)):
        found = experiment.searches(
            KNOBS.turned(strategy=strategy, candidates=candidates), list(seeds)
        )
        mean = fmean(one.accuracy for one in found)
        yield f"search {strategy} of {candidates}: {mean:.2%}, {found[0].spent} epochs"
    found: list[tuple[float, int]] = []
    for seed in random.Random(0).sample(range(1000), 4):
        optuna_search(lambda: optuna.pruners.SuccessiveHalvingPruner(1, 3, 0), 81, seed, found)()
    mean, spent = (fmean(part) for part in zip(*found, strict=True))
    yield f"search halving of 81 by Optuna: {mean:.2%}, {spent:.0f} epochs, 4 seeds"
