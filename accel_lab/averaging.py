"""Averaging of weights: the mean of the models that one training run passes through.

At a constant learning rate the weights never settle: each batch pushes them about. Their mean does
settle. A running average m of the weights w takes in each new w with a weight a:

    m ← m + a · (w − m)

    EMA        a = 1 − d                   an exponential mean over about 1/(1 − d) updates
    debiased   a = (1 − d) / (1 − dᵗ)      the same, t updates old: it starts as a plain mean
    warm-up    a = 1 − min(d, t/(9 + t))   the same, with a window that grows with the run
    SWA        a = 1/t                     the plain mean of all weights since it began

A mean of weights is a good model only where the loss lies low between them. That is so along one
run. Two runs from different starts number their hidden units differently, and unit 5 of one has
nothing to do with unit 5 of the other. ``sorted_like`` brings the units of one into the order of
the other, and their mean works again.

The traps: running statistics of batch normalization are buffers, not parameters, and an average
that leaves them out keeps those of the start. Whoever loads the average into the model to evaluate
it, and does not load the weights back, trains on from the average.

Sources: Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; Izmailov
et al. 2018, "Averaging weights leads to wider optima" (SWA), arXiv:1803.05407, section 3; Wortsman
et al. 2022, "Model soups", arXiv:2203.05482, recipe 1; Ainsworth et al. 2022, "Git Re-Basin",
arXiv:2209.04836, section 3.2.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from accel_lab._sorting import matching, sorted_like
from accel_lab._weights import Weights, at, not_finite

__all__ = ["EMA", "SWA", "Average", "fresh_statistics", "greedy_soup", "mean_of"]
__all__ += ["matching", "naive_ema_update", "sorted_like"]

HALF = (torch.float16, torch.bfloat16)
STARTS = ("warm-up", "debiased", "first weights")


def naive_ema_update(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Update an EMA by the usual loop: three new tensors per parameter, and no buffers."""
    for mean, now in zip(average.parameters(), model.parameters(), strict=True):
        mean.data = decay * mean.data + (1 - decay) * now.data


class Average:
    """A running average of a model's weights, in a copy of the model; ``EMA`` and ``SWA`` are two.

    Floating-point parameters and buffers are averaged, in float32 at least: half precision would
    lose small steps. Integer buffers are copied. Tied weights are averaged once.
    check: refuse weights that are not finite, which costs one more reading of them. One NaN would
    stay in the average.
    """

    def __init__(self, model: nn.Module, *, check: bool = True):
        self.updates, self._check = 0, check
        self._model = copy.deepcopy(model).requires_grad_(False).eval()
        self._ours, self._theirs = Weights(self._model), Weights(model)
        for tensor in at(self._ours.floats):
            tensor.data = tensor.data.float() if tensor.dtype in HALF else tensor.data

    def weight(self, before: int) -> float:
        """Return the share, 0…1, of the new weights in an average of ``before`` (≥ 1) updates."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights as they are now: once per update, after the optimizer's step.

        The first call copies them.
        Raises ValueError for a model with other tensors, and for weights that are not finite.
        """
        if model is not self._theirs.model:
            self._theirs = Weights(model).like(self._ours)
        means, now = at(self._ours.floats), at(self._theirs.floats)
        norms_finite = not self._check or torch.stack(torch._foreach_norm(now)).isfinite().all()
        if not norms_finite and (name := not_finite(self._theirs.floats)):  # and no overflow
            raise ValueError(f"average: {name} is not finite, so it was not taken in")
        if self.updates:
            pairs = zip(means, now, strict=True)
            now = [w if w.dtype == mean.dtype else w.to(mean.dtype) for mean, w in pairs]
            torch._foreach_lerp_(means, now, self.weight(self.updates))
        else:
            torch._foreach_copy_(means, now)
        for kept, current in zip(at(self._ours.whole), at(self._theirs.whole), strict=True):
            kept.copy_(current)
        self.updates += 1

    @property
    def model(self) -> nn.Module:
        """The averaged model, in evaluation mode: to be used, not trained.

        Raises ValueError when nothing was averaged yet.
        """
        if not self.updates:
            raise ValueError("average: nothing averaged yet; call update(model) after a step")
        return self._model


class EMA(Average):
    """An exponential moving average: the last 1/(1 − decay) updates count most.

    start: how it takes in its first weights, see above; "first weights" is the formula at its word,
    so the first weights keep a share of decayᵗ.
    Raises ValueError unless 0 <= decay < 1, and for any other start.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float,
        *,
        start: Literal["warm-up", "debiased", "first weights"] = "warm-up",
        check: bool = True,
    ):
        if not 0 <= decay < 1:
            raise ValueError(f"decay: {decay} is not in [0, 1); 0.99 averages about 100 updates")
        if start not in STARTS:
            raise ValueError(f"start: {start!r} is not one of {', '.join(STARTS)}")
        super().__init__(model, check=check)
        self.decay, self.start = decay, start

    def weight(self, before: int) -> float:
        if self.start == "debiased":
            return (1 - self.decay) / (1 - self.decay ** (before + 1))
        if self.start == "warm-up":
            return 1 - min(self.decay, (1 + before) / (10 + before))
        return 1 - self.decay


class SWA(Average):
    """The mean of all weights that it was given, each with the same weight."""

    def weight(self, before: int) -> float:
        return 1 / (before + 1)


@torch.no_grad()
def mean_of(models: Sequence[nn.Module], shares: Sequence[float] | None = None) -> nn.Module:
    """Make one model whose weights are the mean of those of several.

    shares: of each model, divided by their sum; equal ones by default.
    Returns a copy of the first model with its integer buffers, summed in float64.
    Raises ValueError without models, unless there is a share for each, and for other tensors.
    """
    shares = [1.0] * len(models) if shares is None else list(shares)
    fit = len(shares) == len(models) and all(share >= 0 for share in shares)
    if not fit or not 0 < sum(shares) < torch.inf:
        said = f"{len(models)} models and {len(shares)} shares, {sum(shares):g} in all"
        raise ValueError(f"mean_of: {said}; give each of one or more models a share, 0 or more")
    mean = copy.deepcopy(models[0])
    ours = Weights(mean)
    theirs = [Weights(model).like(ours).named() for model in models]
    for name, (table, key) in ours.floats.items():
        total = torch.zeros_like(table[key], dtype=torch.float64)
        for share, one in zip(shares, theirs, strict=True):
            total += share / sum(shares) * one[name]
        table[key].copy_(total)
    return mean


def greedy_soup(
    models: Sequence[nn.Module], score: Callable[[nn.Module], float]
) -> tuple[nn.Module, list[int]]:
    """Average the best model with each next best one, as long as the mean does not get worse.

    score: of a model, more is better; on data that is neither trained nor tested on.
    Returns the mean, and the indices of the models in it.
    Raises ValueError without models.
    """
    if not models:
        raise ValueError("greedy_soup: no models; give it one or more")
    scores = [score(model) for model in models]
    first, *others = sorted(range(len(models)), key=scores.__getitem__, reverse=True)
    chosen, best = [first], scores[first]
    for index in others:
        found = score(mean_of([models[one] for one in [*chosen, index]]))
        if found >= best:
            chosen, best = [*chosen, index], found
    return mean_of([models[one] for one in chosen]), chosen


@torch.no_grad()
def fresh_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Measure batch normalization's mean and variance anew, as the mean over these batches.

    batches: inputs of the model, [n, …] each, of training data.
    Raises ValueError when there are none.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    modes = {module: module.training for module in model.modules()}
    batches = iter(batches)
    if (first := next(batches, None)) is None:
        raise ValueError("batches: there are none; a generator can be read only once")
    model.eval()  # dropout stays off
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean
        layer.train()
    try:
        for x in chain([first], batches):
            model(x)
    finally:
        for module, training in modes.items():
            module.training = training
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
