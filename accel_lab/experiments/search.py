"""Searches for a network's learning rate, momentum, weight decay and dropout: by a grid, at random,
and by successive halving.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from accel_lab.minibatch import batches
from accel_lab.search import (
    Judged,
    Population,
    Range,
    Settings,
    Space,
    grid,
    halving,
    random_points,
    rungs,
)
from accel_lab.workbench.data import datasets
from accel_lab.workbench.device import pick_device, synchronize
from accel_lab.workbench.knobs import TrainingKnobs, dial
from accel_lab.workbench.measure.load import under_watch
from accel_lab.workbench.step import Step
from accel_lab.workbench.watched import told

SPACE: Space = {
    "learning_rate": Range(1e-4, 10.0, log=True),
    "momentum": Range(0.0, 0.95),
    "weight_decay": Range(1e-6, 1e-1, log=True),
    "dropout": Range(0.0, 0.6),
}
# values of each knob on the grid; the learning rate, of which most is known to depend on it, first
SIDES = {9: (3, 3, 1, 1), 27: (3, 3, 3, 1), 81: (3, 3, 3, 3), 243: (9, 3, 3, 3)}
TRAINED_ON = 1078  # pictures; the other training pictures judge the candidates
BATCH = 64
FEW = 60  # pictures that judge where a famous mistake saves on them

Mistake = Literal["none", "winner by test", "60 pictures judge", "linear rates", "old velocity"]


class Knobs(TrainingKnobs):
    strategy: Literal["grid", "random", "halving"] = dial(
        "halving", description="how candidates are chosen, and who is trained to the end"
    )
    candidates: Literal[9, 27, 81, 243] = dial(81, description="settings that are tried")
    eta: int = dial(3, ge=2, le=9, description="halving keeps one candidate in so many")
    first: int = dial(1, ge=1, le=27, log=True, description="epochs before the first cut")
    longest: int = dial(27, ge=1, le=81, panel=False, description="epochs of a whole training")
    hidden: int = dial(32, ge=4, le=256, log=True, panel=False, description="units between")
    searches: int = dial(
        2, ge=1, le=50, panel=False, description="searches with a seed each, side by side"
    )
    mistake: Mistake = dial("none", description="made on purpose")

    def plan(self, candidates: int) -> list[tuple[int, int]]:
        """(candidates, epochs) of each rung."""
        first = min(self.first, self.longest) if self.strategy == "halving" else self.longest
        return rungs(candidates, self.longest, self.eta, first)


def spent_by(plan: Sequence[tuple[int, int]]) -> int:
    """Epochs of all candidates together."""
    before = [0, *(epochs for _, epochs in plan)]
    return sum(
        number * (epochs - start) for (number, epochs), start in zip(plan, before, strict=False)
    )


# ---- the data ----


@dataclass(frozen=True)
class Digits:
    """8 × 8 digits in three parts: to train, to choose the winner, and to judge it. Each is
    (x [n, 64], y [n]).
    """

    train: tuple[Tensor, Tensor]
    choose: tuple[Tensor, Tensor]
    judge: tuple[Tensor, Tensor]


def parts_of(knobs: Knobs) -> Digits:
    digits = datasets.digits().to(pick_device(knobs.device))
    x, y = digits.train_x.flatten(1), digits.train_y
    train, choose = (x[:TRAINED_ON], y[:TRAINED_ON]), (x[TRAINED_ON:], y[TRAINED_ON:])
    judge = digits.test_x.flatten(1), digits.test_y
    if knobs.mistake == "winner by test":
        choose = judge
    if knobs.mistake == "60 pictures judge":
        choose = choose[0][:FEW], choose[1][:FEW]
    return Digits(train, choose, judge)


# ---- the famous mistakes ----


class OldVelocity(Population):
    """A cut that forgets the optimizer: survivors go on with the velocity of the first in line."""

    def keep(self, places: Tensor) -> None:
        velocity = [one[: len(places)] for one in self.velocity]
        super().keep(places)
        self.velocity = velocity


def linear(space: Space) -> Space:
    """The same ranges with equal differences in place of equal ratios."""
    return {name: Range(one.low, one.high) for name, one in space.items()}


# ---- the experiment ----


def candidates_of(knobs: Knobs, seed: int) -> list[Settings]:
    """The settings that a search begins with; those of a grid are the same for all seeds."""
    space = linear(SPACE) if knobs.mistake == "linear rates" else SPACE
    if knobs.strategy == "grid":
        return grid(space, dict(zip(space, SIDES[knobs.candidates], strict=True)))
    return random_points(space, knobs.candidates, random.Random(seed))


@dataclass
class Searching:
    """A search at work. seconds: of the training alone, which grows."""

    knobs: Knobs
    digits: Digits
    seed: int
    candidates: list[Settings]
    seconds: float = 0.0

    def __post_init__(self) -> None:
        kind = OldVelocity if self.knobs.mistake == "old velocity" else Population
        shape, device = (64, self.knobs.hidden, 10), self.digits.train[0].device
        self.population = kind(self.candidates, shape, self.seed, device=device)
        self._order = torch.Generator().manual_seed(self.seed)

    def epochs(self) -> Iterator[Judged]:
        plan = self.knobs.plan(len(self.candidates))
        return halving(self.population, self._train, self._judge, plan)

    def _train(self, population: Population) -> None:
        start = perf_counter()
        for x, y in batches(*self.digits.train, BATCH, self._order):
            population.update(x, y)
        synchronize(x.device)
        self.seconds += perf_counter() - start

    def _judge(self, population: Population) -> Tensor:
        return population.accuracy(*self.digits.choose).cpu()

    def found(self, judged: Judged) -> Found:
        place = judged.winner
        claimed, kept = (
            float(self.population.accuracy(*part)[place].nan_to_num(0.1))  # as good as guessing
            for part in (self.digits.choose, self.digits.judge)
        )
        member = int(judged.members[place])
        return Found(self.candidates[member], claimed, kept, judged.spent)


@dataclass(frozen=True)
class Found:
    """The winner's settings, its accuracy on the pictures that chose it, and on fresh ones, as
    shares, and the epochs that all candidates together were trained.
    """

    settings: Settings
    claimed: float
    accuracy: float
    spent: int


def run(knobs: Knobs) -> Generator[Step, None, None]:
    """Search with several seeds side by side. A Step is one epoch of all candidates that are left;
    the run ends with the search. Its seconds hold the training alone.

    Metrics, means over the searches:
    accuracy: of the winner up to now, on pictures that chose nothing.
    claimed: the same on the pictures that chose it.
    epochs_spent: of all candidates of a search up to now.
    candidates_left: in a search.
    worst, best: the accuracy in the worst and in the best search.
    """
    digits = parts_of(knobs)
    seeds = [knobs.seed * 1000 + place for place in range(knobs.searches)]
    searches = [Searching(knobs, digits, seed, candidates_of(knobs, seed)) for seed in seeds]
    for index, judged in enumerate(zip(*(one.epochs() for one in searches), strict=True)):
        found = [one.found(what) for one, what in zip(searches, judged, strict=True)]
        accuracies = [one.accuracy for one in found]
        metrics = {
            "accuracy": sum(accuracies) / len(found),
            "claimed": sum(one.claimed for one in found) / len(found),
            "epochs_spent": float(judged[0].spent),
            "candidates_left": float(len(judged[0].members)),
            "worst": min(accuracies),
            "best": max(accuracies),
        }
        networks = sum(len(one.members) for one in judged)
        seconds = sum(one.seconds for one in searches)
        yield Step(index, networks * TRAINED_ON, seconds, metrics)
        for one in searches:
            one.seconds = 0.0


def search(knobs: Knobs, seed: int) -> tuple[list[Judged], Found]:
    """Search once. Returns what was found after each epoch, and the winner of the last."""
    return search_among(candidates_of(knobs, seed), knobs, seed)


def search_among(candidates: list[Settings], knobs: Knobs, seed: int) -> tuple[list[Judged], Found]:
    """The same, among these."""
    one = Searching(knobs, parts_of(knobs), seed, candidates)
    judged = list(one.epochs())
    return judged, one.found(judged[-1])


@lru_cache(maxsize=128)
def searched(knobs: Knobs, seed: int) -> tuple[list[Judged], Found]:
    """The same as ``search``, once for each of these."""
    return search(knobs, seed)


def searches(knobs: Knobs, seeds: Sequence[int]) -> list[Found]:
    """The winner of a search with each seed."""
    return [searched(knobs, seed)[1] for seed in told(seeds, "search")]


# ---- one update of all candidates, three ways ----

Update = Callable[[Tensor, Tensor], Tensor]  # x [B, in], y [B] → losses [K]


def networks_of(population: Population) -> list[nn.Sequential]:
    """The members as networks of PyTorch's, with the weights that they have now."""
    made = []
    for first, first_bias, last, last_bias in zip(*population.weights, strict=True):
        (fan_in, hidden), classes = first.shape, last.shape[1]
        network = nn.Sequential(nn.Linear(fan_in, hidden), nn.ReLU(), nn.Linear(hidden, classes))
        weights = (first.T, first_bias[0], last.T, last_bias[0])
        for name, one in zip(network.state_dict(), weights, strict=True):
            setattr(network[int(name[0])], name[2:], nn.Parameter(one.clone()))
        made.append(network)
    return made


def one_by_one(population: Population) -> Update:
    """Train copies of the members one after the other, by ``torch.optim.SGD``."""
    networks = networks_of(population)
    knobs = {name: one.flatten().tolist() for name, one in population.knobs.items()}
    optimizers = [
        torch.optim.SGD(network.parameters(), lr=rate, momentum=momentum, weight_decay=decay)
        for network, rate, momentum, decay in zip(
            networks, knobs["learning_rate"], knobs["momentum"], knobs["weight_decay"], strict=True
        )
    ]

    def update(x: Tensor, y: Tensor) -> Tensor:
        losses = []
        for network, optimizer in zip(networks, optimizers, strict=True):
            optimizer.zero_grad()
            loss = cross_entropy(network(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    return update


def by_vmap(population: Population) -> Update:
    """Train copies of them by ``torch.func``: one network's gradient, mapped over all weights."""
    networks = networks_of(population)
    weights, _ = stack_module_state(networks)
    weights = {name: one.detach() for name, one in weights.items()}
    velocity = {name: torch.zeros_like(one) for name, one in weights.items()}

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(networks[0], weights, (x,)), y)

    gradients = vmap(grad_and_value(loss), in_dims=(0, None, None))

    def update(x: Tensor, y: Tensor) -> Tensor:
        found, losses = gradients(weights, x, y)
        for name, gradient in found.items():
            rate, momentum, decay = (
                population.knobs[knob].view(-1, *[1] * (gradient.ndim - 1))
                for knob in ("learning_rate", "momentum", "weight_decay")
            )
            velocity[name].mul_(momentum).add_(gradient + decay * weights[name])
            weights[name].sub_(rate * velocity[name])
        return losses

    return update


WAYS: Mapping[str, Callable[[Population], Update]] = {
    "one by one": one_by_one,
    "vmap": by_vmap,
    "population": lambda population: population.update,
}


def candidates_without_dropout(number: int, hidden: int, seed: int = 0) -> Population:
    """Random candidates, all of which three ways can train alike."""
    points = random_points(SPACE, number, random.Random(seed))
    return Population([{**one, "dropout": 0.0} for one in points], (64, hidden, 10), seed)


def epoch_of(update: Update, digits: Digits, batch: int = BATCH) -> Callable[[], None]:
    """One epoch of the training pictures."""

    def epoch() -> None:
        for x, y in batches(*digits.train, batch):
            update(x, y)

    return epoch


# ---- each by itself ----


def trained_alone(
    settings: Settings, network: nn.Sequential, knobs: Knobs, seed: int
) -> Iterator[nn.Sequential]:
    """Train a network with these settings and yield it after each epoch."""
    digits, order = parts_of(knobs), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=settings["learning_rate"],
        momentum=settings["momentum"],
        weight_decay=settings["weight_decay"],
    )
    first, activation, last = network
    whole = nn.Sequential(first, activation, nn.Dropout(settings["dropout"]), last)
    for _ in range(knobs.longest):
        whole.train()
        for x, y in batches(*digits.train, BATCH, order):
            optimizer.zero_grad()
            cross_entropy(whole(x), y).backward()
            optimizer.step()
        yield whole.eval()


@torch.no_grad()
def share_right(network: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((network(x).argmax(1) == y).float().mean())


def score_alone(settings: Settings, epochs: int) -> float:
    """A trial as a separate process runs it: accuracy on the pictures that choose."""
    torch.set_num_threads(1)
    knobs = Knobs(device="cpu", longest=epochs)
    (network,) = networks_of(Population([settings], (64, knobs.hidden, 10)))
    *_, trained = trained_alone(settings, network, knobs, 0)
    return share_right(trained, *parts_of(knobs).choose)


def objective(candidates: list[Settings], knobs: Knobs, seed: int) -> Callable[[Any], float]:
    """What Optuna maximizes: the networks and batches of our search, each network by itself."""
    networks = networks_of(Population(candidates, (64, knobs.hidden, 10), seed))

    def of_trial(trial: Any) -> float:
        settings = {
            name: trial.suggest_float(name, one.low, one.high, log=one.log)
            for name, one in SPACE.items()
        }
        *_, trained = trained_alone(settings, networks[trial.number], knobs, seed)
        return share_right(trained, *parts_of(knobs).choose)

    return of_trial


# ---- what else the chapter measures ----


def update_seconds(numbers: Sequence[int], hidden: int, rounds: int = 7) -> dict[int, float]:
    """Networks in a population → seconds of an update; the numbers take turns, medians count."""
    digits = parts_of(Knobs(device="cpu"))
    x, y = (part[:BATCH] for part in digits.train)
    made = {number: candidates_without_dropout(number, hidden) for number in numbers}
    taken: dict[int, list[float]] = {number: [] for number in numbers}
    with under_watch():
        for _ in range(rounds + 1):
            for number, population in made.items():
                start = perf_counter()
                for _ in range(10):
                    population.update(x, y)
                taken[number].append((perf_counter() - start) / 10)
    return {number: sorted(seconds[1:])[rounds // 2] for number, seconds in taken.items()}


def ranks_along(knobs: Knobs, seed: int, at: Sequence[int]) -> dict[int, Tensor]:
    """Epoch → the rank of every candidate there, 0 the best, in a search that cuts nobody."""
    judged, _ = searched(knobs.turned(strategy="random"), seed)
    return {
        epoch: judged[epoch - 1].scores.nan_to_num(-1).argsort(descending=True).argsort()
        for epoch in at
    }


def luck_of_choice(
    knobs: Knobs, seed: int, sizes: Sequence[int], draws: int = 300
) -> dict[int, float]:
    """Pictures that choose the winner → by how many points its accuracy on them is above that on
    all others: a mean over random choices of pictures, among those that trained nobody.
    """
    one = Searching(knobs, parts_of(knobs), seed, candidates_of(knobs, seed))
    list(one.epochs())
    parts = (one.digits.choose, one.digits.judge)
    x, y = (torch.cat(both) for both in zip(*parts, strict=True))
    right = (one.population.logits(x, one.population.weights).argmax(2) == y).double()  # [K, n]
    generator, found = torch.Generator().manual_seed(seed), {}
    for size in sizes:
        gaps = []
        for _ in range(draws):
            order = torch.randperm(len(y), generator=generator)
            claimed = right[:, order[:size]].mean(1)
            winner = int(claimed.argmax())
            gaps.append(float(claimed[winner] - right[winner, order[size:]].mean()))
        found[size] = 100 * sum(gaps) / draws
    return found


def correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's, between two rankings."""
    return float(torch.corrcoef(torch.stack([one, other]).float())[0, 1])
