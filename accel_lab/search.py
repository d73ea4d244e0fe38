"""Hyper-parameter search: try many settings, and spend little on the bad ones.

A grid of 27 trials over three knobs holds three values of each. If only one knob matters, it has
tried three settings; 27 random trials have tried 27. Both train every candidate to the end.
Successive halving trains all of them a little, keeps the best 1/η, trains these η times as long,
and so on:

    rung        1      2      3      4
    candidates  81     27     9      3         divided by η = 3
    epochs      1      3      9      27        multiplied by η

A rung costs n_i · (r_i − r_{i−1}) epochs: here 81, 54, 54, 54 instead of 81 · 27.

Candidates of one shape need not take turns either. A small network's update is mostly the cost of
its calls, so K networks with their weights in one tensor [K, …] are trained by the calls of one,
each with its own learning rate, momentum, weight decay and dropout: a ``Population``.

The traps:

- A learning rate belongs on a logarithmic scale: of linear draws from 10⁻⁴ to 10, nine in ten are
  above 1.
- A candidate that diverges scores NaN, and ``max``, ``argmax`` and ``topk`` of PyTorch put NaN
  first.
- A cut must take the state of the optimizer along, or the survivors go on with others' momentum.
- Whatever chose the winner says too much of it: the best of many scores is partly luck. Judge it on
  data that chose nothing.

Sources: Bergstra and Bengio 2012, "Random Search for Hyper-Parameter Optimization", JMLR 13,
section 1 and figure 1; Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification and
Hyperparameter Optimization", arXiv:1502.07943, section 2; Li et al. 2018, "Hyperband",
arXiv:1603.06560, section 2.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

Settings = dict[str, float]  # a value for each knob

# ---- where to look ----


@dataclass(frozen=True)
class Range:
    """The values that a knob may take, both ends included. log: equal steps are equal ratios.

    Raises ValueError, one line, unless low < high, both are finite, and low > 0 where ``log``.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"low, high: {self.low} is not below {self.high}, or not finite")
        if self.log and self.low <= 0:
            raise ValueError(f"low: {self.low} is not above 0, and log takes its logarithm")

    def at(self, share: float) -> float:
        """The value so far along the range: low at 0, high at 1."""
        if self.log:
            return self.low ** (1 - share) * self.high**share
        return self.low * (1 - share) + self.high * share


Space = Mapping[str, Range]


def grid(space: Space, points: Mapping[str, int]) -> list[Settings]:
    """Combine some values of each knob with all those of the others: the middles of equal parts.

    points: knob → how many values; all others have one.
    """
    _refuse(space, *points.values())
    middles = [
        [one.at((place + 0.5) / number) for place in range(number)]
        for one, number in ((one, points.get(name, 1)) for name, one in space.items())
    ]
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*middles)]


def random_points(space: Space, number: int, rng: random.Random) -> list[Settings]:
    """Draw every knob anew for each candidate. Returns ``number`` settings.

    Raises ValueError, one line, as ``grid`` does, for an empty space or a number below 1.
    """
    _refuse(space, number)
    return [{name: one.at(rng.random()) for name, one in space.items()} for _ in range(number)]


def _refuse(space: Space, *numbers: int) -> None:
    if not space:
        raise ValueError("space: has no knob to search over")
    for number in numbers:
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"candidates: {number} is not a whole number of at least 1")


# ---- how long to train whom ----


def rungs(candidates: int, longest: int, eta: int = 3, first: int = 1) -> list[tuple[int, int]]:
    """Plan a halving: [(candidates, epochs that each has had at its end), …], a pair per rung.

    first: epochs of the first rung. With first = longest nobody is cut: plain search.
    Raises ValueError, one line, unless candidates ≥ 1, η ≥ 2 and 1 ≤ first ≤ longest.
    """
    if not isinstance(candidates, int) or candidates < 1:
        raise ValueError(f"candidates: {candidates} is not a whole number of at least 1")
    if eta < 2:
        raise ValueError(f"eta: {eta} would keep everybody; at least 2")
    if not 1 <= first <= longest:
        raise ValueError(f"first: {first} is not within 1 and the longest, {longest}")
    plan = [(candidates, first)]
    while first < longest:
        candidates, first = max(1, candidates // eta), min(longest, first * eta)
        plan.append((candidates, first))
    return plan


@dataclass(frozen=True)
class Judged:
    """After one more epoch of all candidates that are left.

    epoch: how many they have had · members [n]: who they are · scores [n]: how good each is, NaN
    where it diverged · spent: epochs of all candidates up to now.
    """

    epoch: int
    members: Tensor
    scores: Tensor
    spent: int

    @property
    def winner(self) -> int:
        """The place of the best among ``members``."""
        return int(best(self.scores, 1))


def halving(
    population: Population,
    train: Callable[[Population], None],
    judge: Callable[[Population], Tensor],
    plan: Sequence[tuple[int, int]],
) -> Iterator[Judged]:
    """At each rung keep the best, and train them until they have had its epochs.

    train: trains all members for one epoch · judge: returns their scores [n], more is better ·
    plan: (candidates, epochs) of each rung, see ``rungs``.
    Yields what was found after each epoch.
    """
    done, spent, scores = 0, 0, torch.zeros(len(population))
    for candidates, epochs in plan:
        population.keep(best(scores, candidates))
        while done < epochs:
            train(population)
            done, spent = done + 1, spent + len(population)
            scores = judge(population)
            yield Judged(done, population.members, scores, spent)


def best(scores: Tensor, number: int) -> Tensor:
    """Find the places of the highest scores [n], best first; NaN counts as the lowest.

    Returns [number]; equal scores keep their order. Raises ValueError where all are NaN.
    """
    if scores.isnan().all():
        raise ValueError("scores: all candidates diverged; search lower learning rates")
    return scores.nan_to_num(-math.inf).argsort(descending=True, stable=True)[:number]


# ---- all candidates at once ----


class Population:
    """K perceptrons in → hidden → 10 classes, trained in one go, each with its own settings.

    settings: of each, with ``learning_rate``, and where wanted ``momentum``, ``weight_decay`` and
    ``dropout`` · shape: (in, hidden, classes) · seed: of the weights, drawn as ``nn.Linear`` does,
    and of the dropout.
    The update is ``torch.optim.SGD``'s. Raises ValueError, one line, without candidates, for a
    setting that has no such name, is below 0 or not finite, for a dropout of 1 or more, and for
    candidates without a learning rate.
    """

    KNOBS = ("learning_rate", "momentum", "weight_decay", "dropout")

    def __init__(
        self,
        settings: Sequence[Settings],
        shape: tuple[int, int, int],
        seed: int = 0,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ):
        if not settings:
            raise ValueError("settings: there are no candidates")
        for name in set().union(*settings) - set(self.KNOBS):
            raise ValueError(f"settings: {name!r} is not one of {', '.join(self.KNOBS)}")
        for place, one in enumerate(settings):
            if "learning_rate" not in one:
                raise ValueError(f"settings: candidate {place} has no learning_rate")
            for name, value in one.items():
                if not 0 <= value < (1 if name == "dropout" else math.inf):
                    raise ValueError(f"settings: {name} of candidate {place} cannot be {value}")
        self.generator = torch.Generator(device).manual_seed(seed)
        rand = partial(torch.rand, generator=self.generator, dtype=dtype, device=device)
        self.members = torch.arange(len(settings))
        self.knobs = {
            name: torch.tensor(
                [one.get(name, 0.0) for one in settings], dtype=dtype, device=device
            )[:, None, None]
            for name in self.KNOBS
        }
        self.weights = []
        for fan_in, fan_out in itertools.pairwise(shape):
            for rows in (fan_in, 1):  # a weight [K, in, out] and a bias [K, 1, out]
                drawn = 2 * rand(len(self), rows, fan_out) - 1
                self.weights.append(drawn / math.sqrt(fan_in))
        self.velocity = [torch.zeros_like(one) for one in self.weights]

    def __len__(self) -> int:
        return len(self.members)

    def logits(self, x: Tensor, weights: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
        """x: [B, in] → [K, B, classes]."""
        first, first_bias, last, last_bias = weights
        hidden = torch.baddbmm(first_bias, x.expand(len(self), *x.shape), first).relu()
        return torch.baddbmm(last_bias, hidden if mask is None else hidden * mask, last)

    def update(self, x: Tensor, y: Tensor) -> Tensor:
        """One update of all on the same batch, x: [B, in], y: [B]. Returns their losses [K]."""
        weights = [one.requires_grad_() for one in self.weights]
        logits = self.logits(x, weights, self._dropout(len(x)))
        losses = cross_entropy(logits.flatten(0, 1), y.repeat(len(self)), reduction="none")
        losses = losses.view(len(self), -1).mean(1)
        # none of the losses depends on another's weights, so their sum has each one's gradient
        gradients = torch.autograd.grad(losses.sum(), weights)
        self.weights = [one.detach() for one in weights]
        for weight, gradient, velocity in zip(self.weights, gradients, self.velocity, strict=True):
            gradient = gradient + self.knobs["weight_decay"] * weight
            velocity.mul_(self.knobs["momentum"]).add_(gradient)
            weight.sub_(self.knobs["learning_rate"] * velocity)
        return losses.detach()

    def _dropout(self, samples: int) -> Tensor | None:
        share = self.knobs["dropout"]
        if not share.any():
            return None
        shape = len(self), samples, self.weights[0].shape[2]
        drawn = torch.rand(shape, generator=self.generator, dtype=share.dtype, device=share.device)
        return (drawn >= share) / (1 - share)

    @torch.no_grad()
    def accuracy(self, x: Tensor, y: Tensor) -> Tensor:
        """Share of right answers of each, [K]; NaN where the answers are not finite."""
        logits = self.logits(x, self.weights)
        right = (logits.argmax(2) == y).to(logits.dtype).mean(1)
        return right.where(logits.isfinite().flatten(1).all(1), math.nan)

    def keep(self, places: Tensor) -> None:
        """Go on with these alone: their settings, their weights and their velocity."""
        self.members = self.members[places.cpu()]
        self.knobs = {name: one[places] for name, one in self.knobs.items()}
        self.weights = [one[places] for one in self.weights]
        self.velocity = [one[places] for one in self.velocity]
