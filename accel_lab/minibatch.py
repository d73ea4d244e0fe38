"""Mini-batches: how many samples an update takes, how they are fetched, and which number is best.

An update may look at one sample, at all of them, or at any number B between. Two laws say what B
does to the time of a training. An update costs a fixed time and a time per sample; and the noise of
a gradient from B samples falls like 1/B, so that a large batch needs fewer updates, down to a least
number:

    t(B) = a + b·B                     seconds of an update
    S(B) = S_min · (1 + B_crit / B)    updates until a target loss is reached
    T(B) = S(B) · t(B)                 seconds until then, least at B* = √(B_crit · a/b)

a/b is the batch at which an update has half of the highest samples/s: what the machine wants.
B_crit, the critical batch size, is what the data allow. The best batch is their geometric mean.

B_crit can be estimated from a single run. With g_i the gradient of one sample, G the mean of all
g_i, and Σ the covariance of the g_i, the gradient of B samples has E‖g‖² = ‖G‖² + tr(Σ)/B. Two
sizes of batch give two equations, and B_noise = tr(Σ)/‖G‖², the noise scale. Expect its order of
magnitude: it changes during the training, and B_crit is an average over it.

The traps:

- The most samples per second is not the least time to a target.
- The learning rate belongs to the batch: rate · B/(B + B_noise) keeps the updates comparable.
- Fetching a batch sample by sample can cost more than the update.
- A mean over an epoch weighs each batch by its samples, for the last one may be shorter.

Sources: McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", arXiv:1812.06162,
sections 2.2 and 2.3, equations 2.7 and 2.11, and appendix A.1; Shallue et al. 2019, "Measuring the
Effects of Data Parallelism on Neural Network Training", arXiv:1811.03600.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from accel_lab.workbench.knobs import KnobError

Batch = tuple[Tensor, Tensor]  # x [B, …], y [B, …]


# ---- fetching ----


def batches(
    x: Tensor,
    y: Tensor,
    batch_size: int,
    generator: torch.Generator | None = None,
    last: Literal["shorter", "drop"] = "shorter",
) -> Iterator[Batch]:
    """Deal out all samples once, in an order that chance picks: one epoch of mini-batches.

    x, y: [n, …] each.
    last: what becomes of the n mod batch_size samples at the end: a shorter batch, or nothing.
    Returns an iterator over copies (x [B, …], y [B, …]); each is fetched when it is asked for, by
    one call per tensor.
    Raises KnobError when batch_size is not a whole number in 1…n; ValueError, one line, for data
    that are empty, differ in length, or are not tensors, and for another ``last``.
    """
    parts = _parts(x, y, batch_size, generator, last)
    return ((x.index_select(0, part), y.index_select(0, part)) for part in parts)


def naive_batches(
    x: Tensor,
    y: Tensor,
    batch_size: int,
    generator: torch.Generator | None = None,
    last: Literal["shorter", "drop"] = "shorter",
) -> Iterator[Batch]:
    """The same batches, fetched sample by sample and stacked: what a DataLoader does by default."""
    parts = _parts(x, y, batch_size, generator, last)
    return (
        (torch.stack([x[i] for i in part]), torch.stack([y[i] for i in part])) for part in parts
    )


def _parts(
    x: Tensor, y: Tensor, batch_size: int, generator: torch.Generator | None, last: str
) -> list[Tensor]:
    for name, data in (("x", x), ("y", y)):
        if not isinstance(data, Tensor):
            raise ValueError(f"{name}: should be a tensor, not {type(data).__name__}")
    if len(x) != len(y):
        raise ValueError(f"x, y: {len(x)} samples, but {len(y)} labels")
    if len(x) == 0:
        raise ValueError("x: there are no samples to make batches of")
    if last not in ("shorter", "drop"):
        raise ValueError(f"last: should be 'shorter' or 'drop', not {last!r}")
    check_size(batch_size, len(x))
    order = torch.randperm(len(x), generator=generator).to(x.device)
    parts = list(order.split(batch_size))
    return parts[:-1] if last == "drop" and len(parts[-1]) < batch_size else parts


def check_size(batch_size: int, samples: int) -> None:
    """Raise KnobError unless a batch has a whole number of samples, at least 1 and at most all."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int):
        raise KnobError("batch_size", f"should be a whole number, not {batch_size!r}")
    if not 1 <= batch_size <= samples:
        raise KnobError("batch_size", f"{batch_size} is not within 1 and the {samples} samples")


# ---- one gradient, three ways ----


def gradient_one_by_one(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """Compute the gradient of the mean loss in a loop over the samples. x: [n, …], y: labels [n].

    Returns one tensor per parameter that is trained, of its shape.
    """
    total = [torch.zeros_like(parameter) for parameter in trained(model)]
    for sample, label in zip(x, y, strict=True):
        for whole, part in zip(
            total, gradient_of_batch(model, sample[None], label[None]), strict=True
        ):
            whole += part / len(x)
    return total


def gradient_of_batch(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """Compute the same gradient from all samples at once."""
    loss = cross_entropy(model(x), y)
    return list(torch.autograd.grad(loss, trained(model), materialize_grads=True))


def trained(model: nn.Module) -> list[nn.Parameter]:
    """List the parameters: a tied one once, frozen ones left out.

    Raises ValueError, one line, when all of them are frozen.
    """
    found = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not found:
        raise ValueError("model: no parameter is trained; set requires_grad for one")
    return found


def gradients_of_samples(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """Compute the gradient of each sample by itself, all at once.

    For models that look at each sample by itself.
    Returns one tensor [n, …] per trained parameter: n times the memory of the mean.
    """
    trained(model)  # refuses a frozen one
    named = model.named_parameters()
    parameters = {name: one.detach() for name, one in named if one.requires_grad}

    def loss(parameters: dict[str, Tensor], sample: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, parameters, (sample[None],)), label[None])

    return list(vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, y).values())


# ---- the noise of a gradient ----


def squares_of_parts(model: nn.Module, x: Tensor, y: Tensor, parts: int) -> tuple[float, float]:
    """Leave the gradient of the batch in ``.grad``, and return what the noise scale needs of it.

    x: [B, …], y: labels [B]; taken in ``parts`` of B/parts samples, one at a time.
    Returns (mean of the parts' ‖g‖², ‖G‖² of the whole batch).
    Raises KnobError unless parts is a whole number, at least 2, that divides B.
    """
    if not isinstance(parts, int) or not 2 <= parts <= len(x) or len(x) % parts:
        wanted = f"a whole number, at least 2, that divides a batch of {len(x)}"
        raise KnobError("parts", f"should be {wanted}, not {parts!r}")
    total, small_sq = [torch.zeros_like(parameter) for parameter in trained(model)], 0.0
    for part in zip(x.chunk(parts), y.chunk(parts), strict=True):
        gradient = gradient_of_batch(model, *part)
        small_sq += _square(gradient) / parts
        torch._foreach_add_(total, gradient, alpha=1 / parts)
    for parameter, whole in zip(trained(model), total, strict=True):
        parameter.grad = whole
    return small_sq, _square(total)


def _square(gradient: list[Tensor]) -> float:
    """‖g‖², in float32 at least: in float16 the square of 256 is infinite already."""
    wide = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in gradient)
    return float(sum(part.square().sum() for part in wide))


def noise_scale(small_sq: float, big_sq: float, small: int, big: int) -> float:
    """Estimate tr(Σ)/‖G‖², in samples, from the mean ‖g‖² at two sizes of batch.

    small_sq, big_sq: means over many batches of ``small`` and of ``big`` samples. Average them
    before, for a single pair is mostly noise.
    Raises ValueError, one line, unless small < big and both squares are finite, when the larger
    batches have the larger square, and when no gradient is left beside the noise.
    """
    if not 0 < small < big:
        raise ValueError(f"small, big: {small} is not above 0 and below {big}; take two sizes")
    if not (math.isfinite(small_sq) and math.isfinite(big_sq)):
        raise ValueError(f"small_sq, big_sq: {small_sq} and {big_sq} are not both finite")
    if small_sq < big_sq:
        raise ValueError(f"small_sq: {small_sq:g} is below big_sq, {big_sq:g}; are they swapped?")
    trace = (small_sq - big_sq) / (1 / small - 1 / big)
    square = (big * big_sq - small * small_sq) / (big - small)
    if not square > 0:
        raise ValueError("big_sq: the noise hides the gradient; average over more batches")
    return trace / square


# ---- the two laws, and the best batch ----


@dataclass(frozen=True)
class Laws:
    """What a batch of B samples costs, and what it brings.

    call: a, seconds of an update beside its samples · sample: b, seconds per sample · least: S_min,
    updates to the target with perfect gradients · critical: B_crit, in samples.
    Raises ValueError, one line, unless all four are finite and above 0.
    """

    call: float
    sample: float
    least: float
    critical: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: should be finite and above 0, not {value:g}")

    def update_seconds(self, batch_size: float) -> float:
        """Predict the seconds of one update: a call, and so much for each sample."""
        return self.call + self.sample * batch_size

    def updates(self, batch_size: float) -> float:
        """Predict how many updates reach the target."""
        return self.least * (1 + self.critical / batch_size)

    def seconds(self, batch_size: float) -> float:
        """Until the target is reached."""
        return self.updates(batch_size) * self.update_seconds(batch_size)

    @property
    def half_speed(self) -> float:
        """The batch whose update has half of the highest samples/s, a/b."""
        return self.call / self.sample

    @property
    def best(self) -> float:
        """The batch with the fewest seconds to the target, √(B_crit · a/b)."""
        return math.sqrt(self.critical * self.half_speed)


def fit_line(points: Mapping[float, float]) -> tuple[float, float]:
    """Fit y = p + q·x so that the *relative* errors are least: small values count like large ones.

    points: x → y, at least two.
    Returns (p, q). Raises ValueError, one line, for fewer points, for an x that is not finite, or
    for a y that is not finite and above 0.
    """
    told = all(math.isfinite(x) and 0 < y < math.inf for x, y in points.items())
    if len(points) < 2 or not told:
        raise ValueError(f"points: {dict(points)} are not two or more, finite, with y above 0")
    x, y = (torch.tensor(list(one), dtype=torch.float64) for one in (points, points.values()))
    rows = torch.stack([1 / y, x / y], 1)
    p, q = torch.linalg.lstsq(rows, torch.ones(len(y), 1, dtype=torch.float64)).solution.flatten()
    return float(p), float(q)
