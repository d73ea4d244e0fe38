"""Whether an answer is the expected one. Looks at plain data alone: no method of a learner's object
is ever called.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Plain = None | bool | int | float | str | Tensor | list["Plain"] | dict[str, "Plain"]


def difference(got: object, want: Plain, tolerance: float) -> str:
    """'' when ``got`` is ``want``, otherwise in what it differs, in one line.

    Types, shapes and dtypes must be the same; floating-point numbers may differ by tolerance · (1 +
    |want|), and NaN is wanted only where it is expected.
    """
    kind = type(want)
    if kind is float and type(got) in (int, float):
        return (
            "" if _close(float(got), want, tolerance) else f"{float(got):.6g} instead of {want:.6g}"
        )
    if type(got) is not kind:
        return f"{_a(want)} was expected, {_a(got)} came"
    if kind is Tensor:
        return _tensor_difference(got, want, tolerance)
    if kind is list:
        if len(got) != len(want):
            return f"{len(got)} values instead of {len(want)}"
        pairs = [(f"value {i}", g, w) for i, (g, w) in enumerate(zip(got, want, strict=True))]
    elif kind is dict:
        if got.keys() != want.keys():
            return f"the names {sorted(map(str, got))} instead of {sorted(want)}"
        pairs = [(key, got[key], want[key]) for key in want]
    else:
        return "" if got == want else f"{got!r} instead of {want!r}"
    return next(
        (f"{name}: {why}" for name, g, w in pairs if (why := difference(g, w, tolerance))), ""
    )


def _tensor_difference(got: Tensor, want: Tensor, tolerance: float) -> str:
    if got.shape != want.shape:
        return f"shape {list(got.shape)} instead of {list(want.shape)}"
    if got.dtype != want.dtype:
        return f"dtype {got.dtype} instead of {want.dtype}"
    if not want.is_floating_point():
        wrong = int((got != want).sum())
        return f"{wrong} of {want.numel()} values differ" if wrong else ""
    finite = want.isfinite()
    if not torch.equal(got.isfinite(), finite) or not torch.equal(
        got[~finite].nan_to_num(0.0), want[~finite].nan_to_num(0.0)
    ):
        return "NaN or infinite values"
    off = (got.double() - want.double()).abs()[finite]
    wrong = int((off > tolerance * (1 + want[finite].double().abs())).sum())
    return f"{wrong} of {want.numel()} values differ, by up to {off.max():.2g}" if wrong else ""


def _close(got: float, want: float, tolerance: float) -> bool:
    return (
        got == want
        or (got != got and want != want)
        or abs(got - want) <= tolerance * (1 + abs(want)) < math.inf
    )


def _a(thing: object) -> str:
    if type(thing) is dict:
        return f"a dict of {', '.join(map(str, thing))}"
    return {type(None): "None", Tensor: "a tensor", int: "an integer"}.get(
        type(thing), f"a {type(thing).__name__}"
    )
