"""Precision in training: weights and products in 16 or 32 bits, loss scaling, famous mistakes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import islice
from statistics import fmean
from typing import Any, Literal, NamedTuple

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from accel_lab.precision import (
    LOW,
    SIXTEEN,
    LossScaler,
    Mixed,
    half_spacing,
    mixed_update,
    pure_update,
    stochastic_round,
    unscale_,
)
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.device import pick_device
from accel_lab.workbench.effort import some_seeds
from accel_lab.workbench.knobs import KnobError, TrainingKnobs, dial
from accel_lab.workbench.loop import NonFiniteLoss, classifier_update, train
from accel_lab.workbench.measure.comparison import reading
from accel_lab.workbench.step import Step
from accel_lab.workbench.watched import told

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SLOW = 10.0  # times float32's: from there on products are rounded instead of computed in 16 bits
EVALUATE_EVERY = 10  # updates
MAX_NORM = 1.0
CHANCE = math.log(10)  # the loss of guessing among ten classes


# ---- products in 16 bits on a CPU that has no instructions for them ----


class Rounded(TorchFunctionMode):
    """Within it, a product of 16-bit numbers is computed in float32 and its result is rounded.

    So do processors that have instructions for it: they add up in float32. Backward passes round
    their results as well, because they go through the same casts.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: Sequence = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in LOW:  # asked first, because nearly all calls are such
            return func(*args, **kwargs)
        low = [one.dtype for one in args if isinstance(one, Tensor) and one.dtype in SIXTEEN]
        if not low:
            return func(*args, **kwargs)
        kwargs = {name: _widened(value) for name, value in kwargs.items()}
        return func(*map(_widened, args), **kwargs).to(low[0])


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in SIXTEEN else value


@cache
def slowdown(dtype: torch.dtype, device: torch.device, model: str = "mlp") -> float:
    """How many times float32's time a model's products take in ``dtype``: those of two square
    matrices for "mlp", a convolution and its gradient for "cnn".
    """
    seconds = {}
    for kind in (torch.float32, dtype):
        program = (_convolved if model == "cnn" else _multiplied)(kind, device)
        reading(program)
        calls = 2
        while not (least := min(reading(program, calls) for _ in range(3))):
            calls *= 2  # the clock has coarse ticks
        seconds[kind] = least
    return seconds[dtype] / seconds[torch.float32]


def _multiplied(dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    a = torch.ones(256, 256, dtype=dtype, device=device)
    return lambda: a @ a


def _convolved(dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    x = torch.ones(8, 8, 14, 14, dtype=dtype, device=device, requires_grad=True)
    weight = torch.ones(16, 8, 3, 3, dtype=dtype, device=device, requires_grad=True)
    return lambda: torch.autograd.grad(conv2d(x, weight, padding=1).sum(), [x, weight])


def arithmetic_of(knobs: Knobs) -> str:
    """How products of 16-bit numbers are computed with these knobs: native or rounded."""
    dtype = DTYPES[knobs.precision.split()[-1]]
    if knobs.arithmetic != "auto" or dtype == torch.float32:
        return knobs.arithmetic.replace("auto", "native")
    slow = slowdown(dtype, pick_device(knobs.device), knobs.model) > SLOW
    return "rounded" if slow else "native"


# ---- weights stored in 16 bits, rounded in better ways than to the nearest number ----


class Stored:
    """An optimizer for weights that are stored in 16 bits: it computes in 32 bits, then rounds.

    make: of the optimizer, from a list of parameters · rounding: "nearest"; "stochastic", by
    chance; or "kahan", which keeps what rounding took away in a second 16-bit number.
    """

    def __init__(
        self, stored: Iterable[Tensor], make: Callable[[list], Optimizer], rounding: str, seed: int
    ):
        self.stored = list(stored)
        self.wide = [nn.Parameter(one.detach().float()) for one in self.stored]
        self.inner, self.rounding = make(self.wide), rounding
        self.rests = [torch.zeros_like(one) for one in self.stored]
        self.chance = torch.Generator(self.stored[0].device).manual_seed(seed)

    def zero_grad(self) -> None:
        for one in self.stored:
            one.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for stored, wide, rest in zip(self.stored, self.wide, self.rests, strict=True):
            wide.copy_(stored).add_(rest)
            wide.grad = None if stored.grad is None else stored.grad.float()
        self.inner.step()
        for stored, wide, rest in zip(self.stored, self.wide, self.rests, strict=True):
            by_chance = self.rounding == "stochastic"
            stored.copy_(stochastic_round(wide, self.chance) if by_chance else wide)
            if self.rounding == "kahan":
                rest.copy_(wide - stored)


# ---- the famous mistakes: each is mixed_update with one thing wrong ----


def no_scaling(
    model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, *, dtype: torch.dtype, **_: Any
) -> tuple[Tensor, bool]:
    """float16 without a scale: small gradients are 0."""
    return mixed_update(model, optimizer, x, y, dtype=dtype)


def not_unscaled(
    model: nn.Module,
    optimizer: Optimizer,
    x: Tensor,
    y: Tensor,
    *,
    dtype: torch.dtype,
    scaler: LossScaler,
) -> tuple[Tensor, bool]:
    """Step with the gradient of the scaled loss."""
    optimizer.zero_grad()
    with Mixed(dtype):
        loss = cross_entropy(model(x), y)
    (loss * scaler.scale).backward()
    optimizer.step()
    return loss.detach(), True


def clipped_too_early(
    model: nn.Module,
    optimizer: Optimizer,
    x: Tensor,
    y: Tensor,
    *,
    dtype: torch.dtype,
    scaler: LossScaler,
) -> tuple[Tensor, bool]:
    """Clip the gradient of the scaled loss, then unscale: steps of 1/scale of the limit."""
    optimizer.zero_grad()
    with Mixed(dtype):
        loss = cross_entropy(model(x), y)
    (loss * scaler.scale).backward()
    clip_grad_norm_(model.parameters(), MAX_NORM)
    return loss.detach(), scaler.step(optimizer)


def never_checked(
    model: nn.Module,
    optimizer: Optimizer,
    x: Tensor,
    y: Tensor,
    *,
    dtype: torch.dtype,
    scaler: LossScaler,
) -> tuple[Tensor, bool]:
    """Step whether the gradient is finite or not: one overflow makes all weights NaN."""
    optimizer.zero_grad()
    with Mixed(dtype):
        loss = cross_entropy(model(x), y)
    (loss * scaler.scale).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    finite = unscale_(gradients, scaler.scale)
    optimizer.step()
    scaler.update(finite)
    return loss.detach(), True


class OldCopies:
    """One ``Mixed`` for all updates: its 16-bit copies are those of the first weights."""

    def __init__(self):
        self.mixed: dict[torch.dtype, Mixed] = {}

    def __call__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        x: Tensor,
        y: Tensor,
        *,
        dtype: torch.dtype,
        scaler: LossScaler | None = None,
    ) -> tuple[Tensor, bool]:
        optimizer.zero_grad()
        with self.mixed.setdefault(dtype, Mixed(dtype)):
            loss = cross_entropy(model(x), y)
        (loss * (scaler.scale if scaler else 1)).backward()
        if scaler:
            return loss.detach(), scaler.step(optimizer)
        optimizer.step()
        return loss.detach(), True


Update = Callable[..., tuple[Tensor, bool]]
MISTAKES: dict[str, Callable[[], Update]] = {
    "no scaling": lambda: no_scaling,
    "not unscaled": lambda: not_unscaled,
    "clipped too early": lambda: clipped_too_early,
    "never checked": lambda: never_checked,
    "old copies": OldCopies,
}


# ---- the experiment ----


class Knobs(TrainingKnobs):
    precision: Literal["fp32", "mixed bf16", "mixed fp16", "pure bf16", "pure fp16"] = dial(
        "mixed bf16", description="of weights and products; mixed keeps the weights in fp32"
    )
    learning_rate: float = dial(
        0.01, ge=1e-4, le=1.0, log=True, description="step size of the optimizer"
    )
    loss_scale: int = dial(
        16, ge=-24, le=24, description="power of 2 that the loss is multiplied by, in mixed fp16"
    )
    model: Literal["mlp", "cnn"] = dial(
        "mlp", description="two hidden layers of 128 units, or two convolutions"
    )
    scaling: Literal["dynamic", "fixed"] = dial(
        "dynamic", panel=False, description="whether the loss scale follows overflows"
    )
    interval: int = dial(
        2000, ge=1, le=100_000, panel=False, description="good updates until the scale doubles"
    )
    mean_over: int = dial(
        1,
        ge=1,
        le=2**20,
        log=True,
        panel=False,
        description="divides the loss and multiplies SGD's learning rate, as a mean over more does",
    )
    optimizer: Literal["sgd", "adam"] = dial(
        "sgd", panel=False, description="rule that turns a gradient into an update"
    )
    rounding: Literal["nearest", "stochastic", "kahan"] = dial(
        "nearest", panel=False, description="how weights stored in 16 bits are rounded"
    )
    arithmetic: Literal["auto", "native", "rounded"] = dial(
        "auto",
        panel=False,
        description="16-bit products: of the processor, or in float32 and rounded",
    )
    mistake: Literal[
        "none", "no scaling", "not unscaled", "clipped too early", "never checked", "old copies"
    ] = dial("none", description="made on purpose, in mixed fp16")
    batch_size: int = dial(64, ge=8, le=512, panel=False, description="samples per update")

    @model_validator(mode="after")
    def _fits(self) -> Knobs:
        if self.rounding != "nearest" and not self.precision.startswith("pure"):
            raise KnobError("rounding", "weights are stored in 16 bits in pure bf16 and pure fp16")
        if self.rounding == "stochastic" and self.precision != "pure bf16":
            raise KnobError("rounding", "stochastic rounding is for pure bf16; take kahan")
        if self.mistake != "none" and self.precision != "mixed fp16":
            raise KnobError("mistake", "these are mistakes of mixed fp16; take that precision")
        return self


class Training(NamedTuple):
    """What ``run`` trains: model, the update of the knobs, its scaler if any, and all data."""

    model: nn.Module
    update: Callable[[Tensor, Tensor], dict[str, Any]]
    scaler: LossScaler | None
    batches: Iterator[tuple[Tensor, Tensor]]
    digits: datasets.Data


def network(knobs: Knobs) -> nn.Sequential:
    torch.manual_seed(knobs.seed)
    model = models.cnn(8) if knobs.model == "cnn" else models.mlp(784, 128, 128, 10)
    if knobs.mean_over > 1:
        model.register_forward_hook(_mean_over(knobs.mean_over))
    return model.to(pick_device(knobs.device))


def _mean_over(places: int) -> Callable[..., Tensor]:
    """A hook that divides the gradient of the logits, as if the loss were a mean over more."""

    def hook(model: nn.Module, x: object, logits: Tensor) -> Tensor:
        logits = logits.float()
        if logits.requires_grad:
            logits.register_hook(lambda gradient: gradient / places)
        return logits

    return hook


def _optimizer_of(knobs: Knobs) -> Callable[[Iterable[Tensor]], Optimizer]:
    if knobs.optimizer == "adam":
        return lambda parameters: torch.optim.Adam(parameters, lr=knobs.learning_rate)
    rate = knobs.learning_rate * knobs.mean_over
    return lambda parameters: torch.optim.SGD(parameters, lr=rate)


def start(knobs: Knobs) -> Training:
    """Make the model and all that trains it."""
    model = network(knobs)
    digits = datasets.mnist5k().to(pick_device(knobs.device))
    kind, dtype = knobs.precision.split()[0], DTYPES[knobs.precision.split()[-1]]
    if kind == "pure":
        model.to(dtype)
    optimizer: Any = _optimizer_of(knobs)(model.parameters())
    if knobs.rounding != "nearest":
        make = _optimizer_of(knobs)
        optimizer = Stored(model.parameters(), make, knobs.rounding, knobs.seed)
    way = MISTAKES[knobs.mistake]() if knobs.mistake != "none" else mixed_update
    scaler = _scaler(knobs) if knobs.precision == "mixed fp16" else None
    rounded = arithmetic_of(knobs) == "rounded"

    def update(x: Tensor, y: Tensor) -> dict[str, Any]:
        with Rounded() if rounded else nullcontext():
            if kind == "fp32":
                return classifier_update(model, optimizer)(x, y)
            if kind == "pure":
                return {"loss": pure_update(model, optimizer, x, y)}
            loss, stepped = way(model, optimizer, x, y, dtype=dtype, scaler=scaler)
        return {"loss": loss, "skipped": float(not stepped)}

    return Training(model, update, scaler, digits.batches(knobs.batch_size, knobs.seed), digits)


def _scaler(knobs: Knobs) -> LossScaler:
    if knobs.mistake == "no scaling":
        return LossScaler(1.0, growth=1.0, backoff=1.0)
    if knobs.scaling == "fixed":
        return LossScaler(2.0**knobs.loss_scale, growth=1.0, backoff=1.0)
    return LossScaler(2.0**knobs.loss_scale, interval=knobs.interval)


def run(knobs: Knobs) -> Generator[Step, None, None]:
    """Train a small network on 4,000 MNIST digits until the generator is closed.

    Metrics of each Step:
    loss: mean over the batch.
    skipped (mixed): 1 where the gradient was not finite and the weights were left alone, else 0.
    scale (mixed fp16): power of 2 of the loss scale for the next update; 0 without scaling.
    Of every tenth Step, measured outside the timed update:
    lost_updates: share of the weights with a gradient that the update did not change, 0 to 1.
    lost_gradients: share of the weights' gradients that float32 has and that are 0 here, 0 to 1.
    gradient_error: ‖g − g₃₂‖ / ‖g₃₂‖, g₃₂ what float32 computes from the same weights.
    test_accuracy: 0 to 1.
    Raises NonFiniteLoss when the loss explodes.
    """
    training = start(knobs)
    watch = Watch(training.model)
    for step in train(training.update, watch.ahead_of(training.batches)):
        found = watch.found() if step.index % EVALUATE_EVERY == 0 else {}
        if found:
            found["test_accuracy"] = accuracy(training)
        if training.scaler:
            found["scale"] = math.log2(training.scaler.scale)
        yield replace(step, metrics={**step.metrics, **found})


class Watch:
    """What every tenth update did to the weights, and what its gradients lost."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.before: list[Tensor] = []
        self.exact: list[Tensor] = []

    def ahead_of(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The same batches, each passed on when weights and true gradients have been noted."""
        for number, (x, y) in enumerate(batches):
            if number % EVALUATE_EVERY == 0:
                self.before = [one.detach().clone() for one in self.model.parameters()]
                self.exact = exact_gradients(self.model, x, y)
            yield x, y

    def found(self) -> dict[str, float]:
        now = list(self.model.parameters())
        there = [torch.ne(one.grad, 0) for one in now]
        same = sum(
            int((some & (was == one)).sum())
            for some, was, one in zip(there, self.before, now, strict=True)
        )
        gone = sum(
            int(((true != 0) & some.logical_not()).sum())
            for true, some in zip(self.exact, there, strict=True)
        )
        return {
            "lost_updates": same / max(1, sum(int(some.sum()) for some in there)),
            "lost_gradients": gone / max(1, sum(int((true != 0).sum()) for true in self.exact)),
            "gradient_error": _relative([one.grad.float() for one in now], self.exact),
        }


def _relative(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """‖found − exact‖ / ‖exact‖, over all tensors."""
    off = sum(float((a - b).square().sum()) for a, b in zip(found, exact, strict=True))
    return math.sqrt(off / max(sum(float(one.square().sum()) for one in exact), 1e-300))


def exact_gradients(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """The gradients of the weights as float32 computes them, from where the model stands."""
    wide = copy.deepcopy(model).float()
    return list(torch.autograd.grad(cross_entropy(wide(x), y), list(wide.parameters())))


@torch.no_grad()
def accuracy(training: Training) -> float:
    """Share of the 1,000 test digits that are recognised, computed in float32."""
    wide = copy.deepcopy(training.model).float()
    return float((wide(training.digits.test_x).argmax(1) == training.digits.test_y).float().mean())


# ---- predictions ----


def predicted_lost(knobs: Knobs) -> float:
    """Predict the share of updates that vanish when weights are rounded to the nearest, 0 to 1.

    An update vanishes while it is less than half the spacing around its weight. Weights and
    updates are those of a float32 run with this learning rate; between the rates of a few such
    runs, the share is interpolated.
    """
    if not knobs.precision.startswith("pure"):
        return 0.0
    rate = knobs.learning_rate
    below = max((one for one in RATES if one <= rate), default=RATES[0])
    above = min((one for one in RATES if one >= rate), default=RATES[-1])
    way = 0.5 if below == above else math.log(rate / below) / math.log(above / below)
    return (1 - way) * _lost_at(rate, knobs, below) + way * _lost_at(rate, knobs, above)


def learn_to_predict(knobs: Knobs) -> None:
    """Train what ``predicted_lost`` needs, once and for both models: a panel that switches between
    them then answers at once.
    """
    for model in ("mlp", "cnn"):
        for rate in RATES:
            _moves(knobs.turned(**AS_FP32, model=model, learning_rate=rate))


def _lost_at(rate: float, knobs: Knobs, like: float) -> float:
    dtype = DTYPES[knobs.precision.split()[-1]]
    needed = _needed_rates(knobs.turned(**AS_FP32, learning_rate=like), dtype)
    return float((needed > rate).double().mean())


RATES = (1e-4, 0.03, 0.1, 0.3, 1.0)
AS_FP32 = {"precision": "fp32", "rounding": "nearest", "mistake": "none", "mean_over": 1}


@lru_cache(maxsize=32)
def _needed_rates(knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """For some of the updates of a run, the learning rate from which on they survive."""
    weights, per_rate = _moves(knobs)
    return half_spacing(weights, dtype) / per_rate.abs()


@lru_cache(maxsize=16)
def _moves(knobs: Knobs, updates: int = 41) -> tuple[Tensor, Tensor]:
    """Some of the weights during a run [n], and their updates, divided by the learning rate [n]."""
    training, weights, moves = start(knobs), [], []
    for number, (x, y) in enumerate(islice(training.batches, updates)):
        before = [one.detach().clone() for one in training.model.parameters()]
        training.update(x, y)
        if number % EVALUATE_EVERY == 0:
            for was, one in zip(before, training.model.parameters(), strict=True):
                some = one.grad != 0
                weights.append(was[some])
                moves.append((one.detach() - was)[some] / knobs.learning_rate)
    return torch.cat(weights)[::7], torch.cat(moves)[::7]


def gradient_sizes(knobs: Knobs, updates: int = 60) -> Tensor:
    """Absolute values [numbers] of the weights' gradients after some updates, without zeros."""
    training = start(knobs.turned(**AS_FP32))
    for x, y in islice(training.batches, updates):
        training.update(x, y)
    found = torch.cat([g.flatten().abs() for g in exact_gradients(training.model, x, y)])
    return found[found > 0] / knobs.mean_over


def predicted_lost_gradients(knobs: Knobs) -> float:
    """Predict the share of the weights' gradients that float16 rounds to 0: |g| · S ≤ 2^−25."""
    if knobs.precision != "mixed fp16":
        return 0.0
    sizes = _sizes(knobs.turned(precision="fp32", loss_scale=0, mistake="none"))
    return float((sizes * 2.0**knobs.loss_scale <= 2.0**-25).double().mean())


@lru_cache(maxsize=16)
def _sizes(knobs: Knobs) -> Tensor:
    return gradient_sizes(knobs)


# ---- what the chapter measures ----


@dataclass(frozen=True)
class Outcome:
    """A finished run: mean loss of its last 20 updates, and the rest in %.

    accuracy: of test digits · lost, lost_gradients, gradient_error: as the metrics of ``run`` say ·
    skipped: number of updates that were · curve: the loss after each update.
    """

    loss: float
    accuracy: float
    lost: float
    lost_gradients: float
    gradient_error: float
    skipped: int
    curve: tuple[float, ...]


def outcome(knobs: Knobs, updates: int) -> Outcome:
    """Train for so many updates. A loss that is not finite ends the run: inf, and chance."""
    training, steps, founds = start(knobs), [], []
    watch = Watch(training.model)
    try:
        for step in train(training.update, watch.ahead_of(training.batches), steps=updates):
            steps.append(step.metrics)
            if step.index % EVALUATE_EVERY == 0:
                founds.append(watch.found())
    except NonFiniteLoss:
        return Outcome(math.inf, 10.0, math.nan, math.nan, math.nan, 0, ())
    lost, gone, off = (
        100 * fmean(found[name] for found in founds)
        for name in ("lost_updates", "lost_gradients", "gradient_error")
    )
    curve = tuple(step["loss"] for step in steps)
    skipped = round(sum(step.get("skipped", 0.0) for step in steps))
    reached = 100 * accuracy(training)
    return Outcome(fmean(curve[-20:]), reached, lost, gone, off, skipped, curve)


def outcomes(knobs: Knobs, updates: int, seeds: int = 5) -> list[Outcome]:
    """Train from so many seeds; from the first quarter of them, rounded up, for a quick look."""
    turned = [knobs.turned(seed=knobs.seed + seed) for seed in some_seeds(seeds)]
    return [outcome(one, updates) for one in told(turned, "seed")]


def one_weight(start: float, update: float, updates: int, draws: int = 8) -> dict[str, Tensor]:
    """One weight and equal updates of it: its value after each, stored in three ways.

    Returns name → [runs, updates + 1]: one run each, and by chance as many as there are draws.
    """
    chance = torch.Generator().manual_seed(0)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "fp32": lambda w: w,
        "bf16, nearest": lambda w: w.bfloat16().float(),
        "bf16, by chance": lambda w: stochastic_round(w, chance).float(),
    }
    found = {}
    for name, store in ways.items():
        weight = torch.full((draws if "chance" in name else 1,), start).bfloat16().float()
        path = [weight]
        for _ in range(updates):
            weight = store(weight + update)
            path.append(weight)
        found[name] = torch.stack(path, 1)
    return found


def speed_models() -> dict[str, tuple[nn.Module, int]]:
    """Networks to time and to weigh, with the size of their batch."""
    reader = [nn.Flatten(1, 2), nn.Linear(28, 32), models.transformer_block(32), nn.Flatten()]
    return {
        "mlp": (models.mlp(784, 128, 128, 10), 64),
        "cnn": (models.cnn(8), 32),
        "transformer": (nn.Sequential(*reader, nn.Linear(28 * 32, 10)), 32),
    }


class Listening(TorchDispatchMode):
    """Notes which operation gave results of which dtype: ``seen``, name → names of dtypes."""

    def __init__(self):
        super().__init__()
        self.seen: dict[str, set[str]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        first = result[0] if isinstance(result, tuple | list) else result
        if isinstance(first, Tensor) and first.is_floating_point():
            name = func.overloadpacket.__name__
            self.seen.setdefault(name, set()).add(str(first.dtype).removeprefix("torch."))
        return result
