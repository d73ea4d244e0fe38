"""Augmentation: more training pictures made of those there are.

A picture that is shifted, turned or enlarged a little is a new picture of the same thing. Every
transform here is one affine map from output to input pixels, about the centre,

    p_in = F · R(−angle) · (p_out − shift) / zoom          F mirrors left and right, or not

so however many are asked for, a picture is resampled once, and the whole batch in one call, each
picture by its own map. Flips and crops alone move whole pixels: they are copied, exactly.

It helps when the label survives. A mirrored 2 is no 2, and half a turn makes a 6 a 9; so what a
*kind* of picture endures is part of the interface, and what it does not is refused unless
``unsafe``.

Source: Simard, Steinkraus, Platt 2003, "Best Practices for Convolutional Neural Networks", section
2 (affine distortions of digits); Shorten and Khoshgoftaar 2019, "A survey on Image Data
Augmentation", section "safety"; Vincent et al. 2008, "Extracting and Composing Robust Features with
Denoising Autoencoders", section 2.3. Text: ``accel_lab/_text.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, mse_loss, pad

from accel_lab._text import OPERATIONS, Reader, delete, homophones, many, swap, synonyms
from accel_lab.workbench import knobs
from accel_lab.workbench.data import datasets
from accel_lab.workbench.device import pick_device, synchronize
from accel_lab.workbench.knobs import no_such
from accel_lab.workbench.loop import classifier_update, train
from accel_lab.workbench.step import Step

__all__ = [
    "OPERATIONS",
    "Reader",
    "delete",
    "homophones",
    "many",
    "swap",
    "synonyms",
]  # what comes from _text and belongs here


@dataclass(frozen=True)
class Policy:
    """How much is done to each picture; 0 for nothing. Each picture draws its own amounts, evenly
    within the range.

    flip: probability of mirroring left and right · rotate: degrees, in ± · zoom: factor, in 1 ± ·
    shift: share of the side, in ± · crop: pixels of black around, out of which a window of the old
    size is cut · noise: standard deviation, in the picture's units. Raises ValueError, one line,
    for an amount out of its range.
    """

    flip: float = 0.0
    rotate: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    crop: int = 0
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (
            ("flip", 1),
            ("rotate", 180),
            ("zoom", 0.9),
            ("shift", 1),
            ("crop", 1024),
            ("noise", float("inf")),
        ):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name}: {getattr(self, name)} is not within 0 and {most}")

    @property
    def resamples(self) -> bool:
        return bool(self.rotate or self.zoom or self.shift)


@dataclass(frozen=True)
class Kind:
    """What a kind of picture endures with its label unchanged. ``why``: what happens beyond."""

    mirrored: bool
    degrees: float
    why: str


KINDS = {
    "digits": Kind(
        mirrored=False, degrees=30, why="a mirrored 2 is no 2, and a 6 on its head is a 9"
    ),
    "letters": Kind(
        mirrored=False, degrees=30, why="b, d, p and q are one shape, mirrored and turned"
    ),
    "photographs": Kind(mirrored=True, degrees=45, why="the sky is above"),
    "from above": Kind(mirrored=True, degrees=180, why=""),
}


def refuse_unsafe(policy: Policy, kind: str) -> None:
    """Raises ValueError, one line, when the policy does to this kind of picture what its label does
    not survive.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: {no_such('kind of picture', kind, KINDS)}")
    endures = KINDS[kind]
    if policy.flip and not endures.mirrored:
        raise ValueError(
            f"flip: not for {kind}, since {endures.why}; unsafe=True to do it all the same"
        )
    if policy.rotate > endures.degrees:
        raise ValueError(
            f"rotate: at most {endures.degrees:g} degrees for {kind}, since {endures.why}; "
            "unsafe=True to do it all the same"
        )


def augment(
    x: Tensor, policy: Policy, generator: torch.Generator, *, kind: str, unsafe: bool = False
) -> Tensor:
    """x [n, channels, height, width] → the same shape, every picture changed by its own draw; x
    itself when nothing is asked for.

    The same generator state gives the same pictures. n may be 0. Raises ValueError, one line, on
    another shape, on whole-number pixels where pixels must be mixed (rotate, zoom, shift, noise),
    and on what this kind of picture does not endure.
    """
    if not unsafe:
        refuse_unsafe(policy, kind)
    _check(x, policy)
    return transform(x, policy, draw(len(x), generator), _noise(x, policy, generator))


def naive_augment(
    x: Tensor, policy: Policy, generator: torch.Generator, *, kind: str, unsafe: bool = False
) -> Tensor:
    """The same, one picture after the other, as a data set's ``__getitem__`` would do it."""
    if not unsafe:
        refuse_unsafe(policy, kind)
    _check(x, policy)
    every = zip(
        x.split(1),
        draw(len(x), generator).split(1),
        _noise(x, policy, generator).split(1),
        strict=True,
    )
    return torch.cat(
        [transform(picture, policy, draws, noise) for picture, draws, noise in every]
        if len(x)
        else [x]
    )


def draw(n: int, generator: torch.Generator) -> Tensor:
    """[n, 7] in 0…1: all that could be needed for each picture, whatever is asked for. So moving
    one amount leaves the others' draws alone, and two policies are compared on the same luck.
    Columns: flip, angle, zoom, right, down, crop right, crop down.
    """
    return torch.rand(n, 7, generator=generator)


def transform(x: Tensor, policy: Policy, draws: Tensor, noise: Tensor) -> Tensor:
    """x [n, c, h, w] by draws [n, 7]: resample once, or copy if pixels stay whole; then crop; then
    add noise [n, c, h, w] or [n].
    """
    flip = draws[:, 0] < policy.flip
    if policy.resamples:
        x = warp(x, maps(policy, flip, draws, *x.shape[2:]).to(x.device, x.dtype))
    elif policy.flip:
        x = torch.where(flip.to(x.device)[:, None, None, None], x.flip(-1), x)
    if policy.crop:
        x = crop(x, policy.crop, *((draws[:, 5:7] * (2 * policy.crop + 1)).long().to(x.device).T))
    return x + policy.noise * noise if policy.noise else x


def maps(policy: Policy, flip: Tensor, draws: Tensor, height: int, width: int) -> Tensor:
    """[n, 2, 3]: from output to input pixels, both counted from the centre: x to the right, y down."""
    plus_minus = 2 * draws[:, 1:5] - 1
    angle = torch.deg2rad(plus_minus[:, 0] * policy.rotate)
    zoom = 1 + plus_minus[:, 1] * policy.zoom
    right, down = plus_minus[:, 2] * policy.shift * width, plus_minus[:, 3] * policy.shift * height
    cos, sin, mirror = angle.cos() / zoom, angle.sin() / zoom, 1.0 - 2.0 * flip
    rows = [
        [mirror * cos, mirror * -sin, mirror * (sin * down - cos * right)],
        [sin, cos, -sin * right - cos * down],
    ]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def warp(x: Tensor, maps: Tensor) -> Tensor:
    """x [n, c, h, w], maps [n, 2, 3] as ``maps`` makes them → the same shape: bilinear, black
    outside.

    The grid is built a plane for x and a plane for y: rows plus columns, one broadcast addition.
    (torch's affine_grid multiplies a matrix for every pixel instead, and takes longer than the
    sampling itself.)
    """
    height, width = x.shape[2:]
    halves = maps.new_tensor([width / 2, height / 2]).view(
        1, 2, 1
    )  # grid_sample wants −1…1 from edge to edge
    across, along, offset = (maps / halves).unbind(2)
    xs = torch.arange(width, device=x.device, dtype=x.dtype) - (width - 1) / 2
    ys = torch.arange(height, device=x.device, dtype=x.dtype) - (height - 1) / 2
    columns = across[..., None] * xs
    rows = along[..., None] * ys + offset[..., None]
    grid = rows[..., :, None] + columns[..., None, :]
    return grid_sample(
        x, grid.permute(0, 2, 3, 1), mode="bilinear", padding_mode="zeros", align_corners=False
    )


def crop(x: Tensor, border: int, right: Tensor, down: Tensor) -> Tensor:
    """x [n, c, h, w] with ``border`` black pixels around, and of that a window [h, w] that begins
    at (down, right), both [n].
    """
    height, width = x.shape[2:]
    windows = (
        pad(x, (border,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    )  # views: [n, c, 2·border + 1, 2·border + 1, h, w]
    return windows[torch.arange(len(x), device=x.device), :, down, right]


def _noise(x: Tensor, policy: Policy, generator: torch.Generator) -> Tensor:
    """Standard normal, of x's shape; without noise in the policy nothing is drawn, and [n] zeros
    stand in.
    """
    if not policy.noise:
        return torch.zeros(len(x))
    return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)


def _check(x: Tensor, policy: Policy) -> None:
    if not isinstance(x, Tensor) or x.dim() != 4:
        what = (
            f"{list(x.shape)}"
            if isinstance(x, Tensor)
            else f"{type(x).__name__}; pictures of one size, stacked,"
        )
        raise ValueError(f"pictures: {what} given; a tensor [n, channels, height, width] is needed")
    if x.shape[3] in (1, 3, 4) and min(x.shape[1:3]) >= 8:
        raise ValueError(
            f"layout: {list(x.shape)} looks like [n, height, width, channels]; give "
            "x.movedim(-1, 1)"
        )
    if not x.is_floating_point() and (policy.resamples or policy.noise):
        raise ValueError(
            f"pictures: {x.dtype} cannot be mixed; make floats of them first "
            "(accel_lab.normalization)"
        )


class Knobs(knobs.Knobs):
    pictures: int = knobs.dial(
        10, ge=1, le=400, log=True, description="training pictures of each digit"
    )
    shift: float = knobs.dial(
        0.0, ge=0, le=0.5, description="shift each picture by up to this share of its side"
    )
    rotate: float = knobs.dial(
        0.0, ge=0, le=180, description="turn each picture by up to this many degrees either way"
    )
    zoom: float = knobs.dial(
        0.0,
        ge=0,
        le=0.9,
        description="enlarge or shrink each picture by up to this factor's distance from 1",
    )
    flip: float = knobs.dial(
        0.0, ge=0, le=1, description="probability of mirroring a picture (unsafe: these are digits)"
    )
    noise: float = knobs.dial(
        0.0,
        ge=0,
        le=2,
        panel=False,
        description="standard deviation of noise added to pixels of 0…1",
    )
    one_by_one: bool = knobs.dial(
        False, description="augment picture after picture instead of the batch at once"
    )
    batch_size: int = knobs.dial(64, ge=1, le=512, panel=False, description="samples per update")
    learning_rate: float = knobs.dial(
        0.05, ge=1e-4, le=1, log=True, panel=False, description="step size of the optimizer"
    )
    seed: int = knobs.dial(
        0,
        ge=0,
        le=2**31 - 1,
        panel=False,
        description="of weights, choice of pictures and every draw",
    )
    device: Literal["auto", "cpu", "cuda"] = knobs.dial(
        "auto", panel=False, description="where to train"
    )

    @property
    def policy(self) -> Policy:
        return Policy(
            flip=self.flip, rotate=self.rotate, zoom=self.zoom, shift=self.shift, noise=self.noise
        )


def few(digits: datasets.Data, pictures: int, seed: int) -> datasets.Data:
    """The same data set with ``pictures`` training samples of each class, or all that there are."""
    order = torch.randperm(len(digits.train_y), generator=torch.Generator().manual_seed(seed)).to(
        digits.train_y.device
    )
    kept = torch.cat(
        [order[digits.train_y[order] == label][:pictures] for label in range(digits.classes)]
    )
    return replace(digits, train_x=digits.train_x[kept], train_y=digits.train_y[kept])


def network(channels: int = 8) -> nn.Sequential:
    """[n, 1, 28, 28] → [n, 10]: two convolutions that halve the picture by their stride, and one
    linear layer: quick on a CPU.
    """
    return nn.Sequential(
        nn.Conv2d(1, channels, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * channels * 7 * 7, 10),
    )


def run(knobs: Knobs) -> Iterator[Step]:
    """Train a small CNN on a few MNIST digits, for ever; what is unsafe is done all the same: to
    see what comes of it.

    The metrics of each Step: loss · augment_seconds, outside the update's clock · augment_share of
    both together · test_accuracy, train_accuracy (on the pictures as they are) and their gap,
    looked at every 25th time, 0…1.
    """
    torch.manual_seed(knobs.seed)
    device = pick_device(knobs.device)
    digits = few(datasets.mnist5k(), knobs.pictures, knobs.seed).to(device)
    model = network().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=knobs.learning_rate, momentum=0.9)
    generator = torch.Generator().manual_seed(knobs.seed)
    way = naive_augment if knobs.one_by_one else augment
    seconds = [0.0]  # of the latest batch's augmentation

    def augmented() -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in digits.batches(min(knobs.batch_size, len(digits.train_y)), knobs.seed):
            start = perf_counter()
            x = way(x, knobs.policy, generator, kind="digits", unsafe=True)
            synchronize(device)
            seconds[0] = perf_counter() - start
            yield x, y

    seen: dict[str, float] = {}
    for step in train(classifier_update(model, optimizer), augmented()):
        if step.index % 25 == 0:
            seen = look(model, digits)
        cost = {
            "augment_seconds": seconds[0],
            "augment_share": seconds[0] / (seconds[0] + step.seconds),
        }
        yield replace(step, metrics={**step.metrics, **cost, **seen})


@torch.no_grad()
def look(model: nn.Module, digits: datasets.Data) -> dict[str, float]:
    """Accuracy (0…1) on at most 1,000 samples of either split, and the gap between them."""
    train, test = (
        float((model(x[:1000]).argmax(1) == y[:1000]).double().mean())
        for x, y in ((digits.train_x, digits.train_y), (digits.test_x, digits.test_y))
    )
    return {"train_accuracy": train, "test_accuracy": test, "gap": train - test}


def denoiser(channels: int = 16) -> nn.Sequential:
    """A small autoencoder, [n, 1, 28, 28] → the same: two convolutions down to 7 × 7, two up."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(channels, 1, 4, stride=2, padding=1),
    )


def train_denoiser(
    x: Tensor, policy: Policy, *, updates: int = 150, batch_size: int = 64, seed: int = 0
) -> nn.Sequential:
    """Train a denoiser on pictures x [n, 1, 28, 28]: flips, turns and the like make other pictures,
    noise is what it must undo.

    Without noise in the policy it learns to copy, and copies noise as well.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = denoiser().to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    moves = replace(policy, noise=0.0)
    for _ in range(updates):
        clean = x[torch.randint(len(x), (batch_size,), generator=generator).to(x.device)]
        clean = augment(
            clean, moves, generator, kind="digits", unsafe=True
        )  # no label here that could be lost
        noisy = augment(clean, Policy(noise=policy.noise), generator, kind="digits")
        optimizer.zero_grad()
        mse_loss(model(noisy), clean).backward()
        optimizer.step()
    return model


def best_linear_error(x: Tensor, noise: float) -> float:
    """Predicted: the mean squared error per pixel of the best affine denoiser (Wiener's) of
    pictures x [n, …].

    Along each principal direction of the pictures, of variance λ, noise of variance σ² leaves
    λσ²/(λ + σ²).
    """
    variances = torch.linalg.eigvalsh(x.flatten(1).double().T.cov(correction=0)).clamp(min=0)
    return float((variances * noise**2 / (variances + noise**2)).mean())
