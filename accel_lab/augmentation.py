"""Augmentation: more training pictures, made of the existing ones.

A picture that is shifted, turned or enlarged a little is a new picture of the same thing. Every
transform here is one affine map from output to input pixels, about the centre,

    p_in = F · R(−angle) · (p_out − shift) / zoom          F mirrors left and right, or not

so a picture is resampled once, however many transforms are on, and the whole batch in one call,
each picture by its own map. Flips and crops alone move whole pixels: they are copied exactly.

Augmentation helps where the label survives. A mirrored 2 is not a 2, and a 6 turned by 180° is a 9.
So the interface asks for the *kind* of picture, and refuses what changes its label unless
``unsafe``.

How much is done, and what is safe: ``accel_lab/_policy.py``. Text: ``accel_lab/_wording.py``.

Sources: Simard, Steinkraus, Platt 2003, "Best Practices for Convolutional Neural Networks", section
2 (affine distortions of digits); Shorten and Khoshgoftaar 2019, "A survey on Image Data
Augmentation", section "safety".
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn.functional import grid_sample, pad

from accel_lab._policy import KINDS, Kind, Policy, check_pictures, refuse_unsafe
from accel_lab._wording import TEXT_OPERATIONS, augment_texts, delete, homophones, swap, synonyms

__all__ = ["KINDS", "TEXT_OPERATIONS", "Kind", "Policy", "augment_texts"]
__all__ += ["delete", "homophones", "refuse_unsafe", "swap", "synonyms"]


def naive_augment(
    x: Tensor, policy: Policy, generator: Generator, *, kind: str, unsafe: bool = False
) -> Tensor:
    """Augment picture after picture, as a data set's ``__getitem__`` does; see ``augment``."""
    if not unsafe:
        refuse_unsafe(policy, kind)
    check_pictures(x, policy)
    numbers, noise = random_numbers(len(x), generator), _noise(x, policy, generator)
    each = zip(x.split(1), numbers.split(1), noise.split(1), strict=True)
    done = [transform(picture, policy, *drawn) for picture, *drawn in each]
    return torch.cat(done) if len(x) else x


def augment(
    x: Tensor, policy: Policy, generator: Generator, *, kind: str, unsafe: bool = False
) -> Tensor:
    """Augment a batch at once, each picture by its own random numbers.

    x: [n, channels, height, width]; n may be 0.
    generator: the same state gives the same pictures, rounded to their dtype.
    kind: of picture, one of KINDS. unsafe: allow what changes its labels.
    Returns the same shape; x itself when the policy does nothing.
    Raises ValueError, one line, for another shape, for integer pixels that would be interpolated
    (rotate, zoom, shift, noise), and for what is unsafe.
    Warns of what looks like [n, height, width, channels].
    """
    if not unsafe:
        refuse_unsafe(policy, kind)
    check_pictures(x, policy)
    numbers, noise = random_numbers(len(x), generator), _noise(x, policy, generator)
    return transform(x, policy, numbers, noise)


def random_numbers(n: int, generator: Generator) -> Tensor:
    """Draw seven numbers of 0…1 per picture, [n, 7], whichever transforms are on.

    So turning one knob leaves the other random numbers as they are, and policies can be compared.
    Columns: flip, angle, zoom, right, down, crop right, crop down.
    """
    return torch.rand(n, 7, generator=generator, device=generator.device)


def transform(x: Tensor, policy: Policy, numbers: Tensor, noise: Tensor) -> Tensor:
    """Resample once, or copy if pixels stay whole; then crop; then add noise.

    x: [n, c, h, w]. numbers: [n, 7]. noise: [n, c, h, w], or [n] where the policy has none.
    Computes in float32 at least: bfloat16 does not even tell column 257 from 256.
    """
    flip = numbers[:, 0] < policy.flip
    done = x.to(_exact(x)) if policy.computes else x
    if policy.resamples:
        done = warp(done, affine_maps(policy, flip, numbers, *x.shape[2:]).to(done))
    elif policy.flip:
        done = torch.where(flip.to(x.device)[:, None, None, None], done.flip(-1), done)
    if policy.crop:
        right, down = (numbers[:, 5:7] * (2 * policy.crop + 1)).long().to(x.device).T
        done = crop(done, policy.crop, right, down)
    return (done + policy.noise * noise if policy.noise else done).to(x.dtype)


def affine_maps(policy: Policy, flip: Tensor, numbers: Tensor, height: int, width: int) -> Tensor:
    """Make the maps from output to input pixels, [n, 2, 3], in pixels from the centre, y down."""
    plus_minus = 2 * numbers[:, 1:5] - 1
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
    """Resample x [n, c, h, w] by maps [n, 2, 3]: bilinear, black outside. Returns the same shape.

    x, maps: float32 or float64, both alike.
    The grid is built as one plane for x and one for y, each the sum of a row and a column. (torch's
    affine_grid multiplies a matrix per pixel, which takes longer than the sampling itself.)
    """
    height, width = x.shape[2:]
    halves = maps.new_tensor([width / 2, height / 2]).view(1, 2, 1)
    across, along, offset = (maps / halves).unbind(2)  # grid_sample wants −1…1 from edge to edge
    xs = torch.arange(width, device=x.device, dtype=x.dtype) - (width - 1) / 2
    ys = torch.arange(height, device=x.device, dtype=x.dtype) - (height - 1) / 2
    columns = across[..., None] * xs
    rows = along[..., None] * ys + offset[..., None]
    grid = (rows[..., :, None] + columns[..., None, :]).permute(0, 2, 3, 1)
    return grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def crop(x: Tensor, border: int, right: Tensor, down: Tensor) -> Tensor:
    """Pad x [n, c, h, w] with black, and cut windows [h, w] that start at down, right, both [n]."""
    height, width = x.shape[2:]
    windows = pad(x, (border,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # views, not copies
    return windows[torch.arange(len(x), device=x.device), :, down, right]


def _noise(x: Tensor, policy: Policy, generator: Generator) -> Tensor:
    """Draw standard normal noise of x's shape; zeros [n], undrawn, where the policy has none."""
    if not policy.noise:
        return torch.zeros(len(x))
    device = generator.device
    return torch.randn(x.shape, generator=generator, dtype=_exact(x), device=device).to(x.device)


def _exact(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
