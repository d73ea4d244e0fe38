"""Equivalence, shown: two or more ways of doing the same, compared step by step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from accel_lab.workbench.look import badge

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Agreement:
    """How one way compares with the first one. ``diverges_at``: index of the first step beyond the
    tolerance, or None.
    """

    name: str
    worst: float
    diverges_at: int | None


@dataclass(frozen=True)
class Proof:
    """What ``prove`` found. In a notebook it is a badge; as text it is one line that does not vary
    between machines.
    """

    truth: str
    steps: int
    tolerance: float
    compared: tuple[Agreement, ...]

    @property
    def holds(self) -> bool:
        return all(agreement.diverges_at is None for agreement in self.compared)

    def __str__(self) -> str:
        return "; ".join(self._say(agreement) for agreement in self.compared)

    __repr__ = __str__

    def _say(self, agreement: Agreement) -> str:
        if agreement.diverges_at is None:
            steps = f" over {self.steps} steps" if self.steps > 1 else ""
            return f"{agreement.name} = {self.truth}{steps}, within {self.tolerance:g}"
        since = f" from step {agreement.diverges_at} on" if self.steps > 1 else ""
        return f"{agreement.name} ≠ {self.truth}{since}"

    def _repr_html_(self) -> str:
        return "".join(self._badge(agreement) for agreement in self.compared)

    def _badge(self, agreement: Agreement) -> str:
        equal = agreement.diverges_at is None
        said = badge(equal, self._say(agreement))
        worst = f"{agreement.worst:.2g}" if math.isfinite(agreement.worst) else "not finite"
        return f'<div style="margin:3px 0">{said} &nbsp;max |Δ| = {worst}</div>'


def prove(
    ways: Mapping[str, Iterable[State]], *, steps: int = 10, tolerance: float = 1e-12
) -> Proof:
    """Advance every way by one step at a time and compare each with the first, the truth.

    A way is an iterable of states (name → tensor, the same names and shapes in all ways), one after
    each step. Differences are absolute, and NaN differs from everything. Raises ValueError when a
    way ends before ``steps`` or its names differ.
    """
    iterators = {name: iter(states) for name, states in ways.items()}
    truth, *others = iterators
    worst = dict.fromkeys(others, 0.0)
    diverges_at: dict[str, int | None] = dict.fromkeys(others)
    for step in range(steps):
        states = {name: _next(name, states, step) for name, states in iterators.items()}
        for name in others:
            difference = _max_difference(name, states[truth], states[name])
            worst[name] = max(worst[name], difference)
            if diverges_at[name] is None and difference > tolerance:
                diverges_at[name] = step
    return Proof(
        truth,
        steps,
        tolerance,
        tuple(Agreement(name, worst[name], diverges_at[name]) for name in others),
    )


def _next(name: str, states: Iterator[State], step: int) -> State:
    try:
        return next(states)
    except StopIteration:
        raise ValueError(
            f"proof: {name!r} ended before step {step}; every way must go the same number of steps"
        ) from None


def _max_difference(name: str, truth: State, other: State) -> float:
    if truth.keys() != other.keys():
        raise ValueError(
            f"proof: {name!r} has other tensors than the truth: "
            f"{sorted(truth.keys() ^ other.keys())}"
        )
    differences = [
        (truth[key].cpu().double() - other[key].cpu().double()).abs().max()
        for key in truth
        if truth[key].numel()
    ]
    worst = torch.stack(differences).max().item()
    return float("inf") if worst != worst else worst


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and buffers as they are now: a copy, name → tensor."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def trajectory(
    model: nn.Module,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    update: Callable[[nn.Module, torch.optim.Optimizer, Tensor, Tensor], object],
    batches: Iterable[tuple[Tensor, Tensor]],
) -> Iterator[State]:
    """A way for ``prove``: train a copy of ``model`` by ``update(model, optimizer, x, y)`` and
    yield its state after each batch.

    ``optimizer`` makes one for the copy.
    """
    model = copy.deepcopy(model)
    made = optimizer(model)
    for x, y in batches:
        update(model, made, x, y)
        yield snapshot(model)


class Twin:
    """Repeats every update by a reference rule, from exactly where the model stands: the error of
    single updates, free of drift.

    ``reference(model, optimizer, x, y)`` is applied to a copy of both.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, reference: Callable[..., object]
    ):
        self.model, self.optimizer, self.reference = model, optimizer, reference
        # One copy, brought up to date again and again: a new one each time would leave holes in
        # memory that never fill.
        self.twin, self.twins_optimizer = copy.deepcopy((model, optimizer))
        self._before = [parameter.detach().clone() for parameter in model.parameters()]

    def ahead_of(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The same batches, each passed on when the copy has had it: outside the timed update."""
        for x, y in batches:
            self.twin.load_state_dict(self.model.state_dict())
            self.twins_optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
            for before, parameter in zip(self._before, self.model.parameters(), strict=True):
                before.copy_(parameter.detach())
            self.reference(self.twin, self.twins_optimizer, x, y)
            yield x, y

    def error(self) -> float:
        """‖Δw − Δw_reference‖ / ‖Δw_reference‖ of the last update: 0 when they agree, 1 when all of
        it is wrong. Where the reference skips its update (Δw_reference = 0): 0 when ours does too,
        else inf.
        """
        off = wanted = 0.0
        for mine, twins, before in zip(
            self.model.parameters(), self.twin.parameters(), self._before, strict=True
        ):
            reference = twins.detach().double()
            off += float((mine.detach().double() - reference).square().sum())
            wanted += float((reference - before.double()).square().sum())
        if wanted == 0:
            return math.inf if off else 0.0
        return math.sqrt(off / wanted)
