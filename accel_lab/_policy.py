"""What ``accel_lab.augmentation`` may do to a picture: how much, and what its label allows."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from accel_lab._layout import doubt_layout
from accel_lab.workbench.knobs import no_such

MOST = {"flip": 1, "rotate": 180, "zoom": 0.9, "shift": 1, "crop": 1024, "noise": float("inf")}


@dataclass(frozen=True)
class Policy:
    """How much is done to each picture, 0 for nothing; amounts are uniform within their range.

    flip: probability of mirroring left and right.
    rotate: degrees, ±.
    zoom: factor, 1 ±.
    shift: share of the side, ±.
    crop: black pixels padded on each side, before a window of the old size is cut out.
    noise: standard deviation, in the picture's units.
    Raises ValueError, one line, for an amount out of its range.
    """

    flip: float = 0.0
    rotate: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    crop: int = 0
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name}: {getattr(self, name)} is not within 0 and {most}")

    @property
    def resamples(self) -> bool:
        """Whether pixels are interpolated, not only moved."""
        return bool(self.rotate or self.zoom or self.shift)

    @property
    def computes(self) -> bool:
        """Whether new values come about, for which pixels must be floats."""
        return bool(self.resamples or self.noise)


@dataclass(frozen=True)
class Kind:
    """Which transforms keep the label of a kind of picture: a mirror, and up to so many degrees.

    why: what happens beyond.
    """

    mirrored: bool
    degrees: float
    why: str


KINDS = {
    "digits": Kind(
        mirrored=False, degrees=30, why="a mirrored 2 is not a 2, and a 6 upside down is a 9"
    ),
    "letters": Kind(
        mirrored=False, degrees=30, why="b, d, p and q are one shape, mirrored and turned"
    ),
    "photographs": Kind(mirrored=True, degrees=45, why="the sky is above"),
    "from above": Kind(mirrored=True, degrees=180, why=""),
}


def refuse_unsafe(policy: Policy, kind: str) -> None:
    """Raise ValueError, one line, for a policy that can change this kind of picture's label."""
    if kind not in KINDS:
        raise ValueError(f"kind: {no_such('kind of picture', kind, KINDS)}")
    allowed = KINDS[kind]
    anyway = "; unsafe=True does it anyway"
    if policy.flip and not allowed.mirrored:
        raise ValueError(f"flip: not for {kind}, since {allowed.why}{anyway}")
    if policy.rotate > allowed.degrees:
        raise ValueError(
            f"rotate: at most {allowed.degrees:g} degrees for {kind}, since {allowed.why}{anyway}"
        )


def check_pictures(x: Tensor, policy: Policy) -> None:
    """Raise ValueError, one line, unless x is [n, channels, height, width], of a suitable dtype.

    Warns of what looks like [n, height, width, channels].
    """
    if not isinstance(x, Tensor) or x.dim() != 4:
        is_tensor = isinstance(x, Tensor)
        what = list(x.shape) if is_tensor else f"{type(x).__name__}; pictures of one size, stacked,"
        raise ValueError(f"pictures: {what} given; a tensor [n, channels, height, width] is needed")
    doubt_layout(x)
    if not x.is_floating_point() and policy.computes:
        raise ValueError(
            f"pictures: {x.dtype} cannot be interpolated; convert to floats first "
            "(accel_lab.normalization)"
        )
