"""Whether an answer is the expected one. Looks at plain data alone: no method of a learner's object
is ever called.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from accel_lab.exercises import Plain

ROUNDING = 10  # times what the reference itself is off by: other orders of the same sums


def difference(got: object, want: Plain, tolerance: float, exact: Plain = None) -> str:
    """'' when ``got`` is ``want``, otherwise in what it differs, in one line.

    exact: the same, computed in float64; left out, ``want`` is. Types, shapes and dtypes must be
    those of ``want``, values those of ``exact``: floating-point numbers may differ by tolerance ·
    (1 + |exact|), and by ``ROUNDING`` times as much as ``want`` does, which tells how far rounding
    can lead. NaN is wanted only where it is expected.
    """
    kind = type(want)
    if type(exact) is not kind:
        exact = want
    if kind is float and type(got) in (int, float):
        slack = ROUNDING * abs(want - exact) if math.isfinite(want - exact) else 0.0
        close = _close(float(got), exact, tolerance * (1 + abs(exact)) + slack)
        return "" if close else f"{float(got):.6g} instead of {exact:.6g}"
    if type(got) is not kind:
        return f"{_a(want)} was expected, {_a(got)} came"
    if kind is Tensor:
        return _tensor_difference(got, want, tolerance, exact)
    if kind is list:
        if len(got) != len(want):
            return f"{len(got)} values instead of {len(want)}"
        exact = exact if len(exact) == len(want) else want
        parts = [
            (f"value {i}", *three) for i, three in enumerate(zip(got, want, exact, strict=True))
        ]
    elif kind is dict:
        parts = [
            (key, got[key], want[key], exact.get(key, want[key])) for key in want if key in got
        ]
    else:
        return "" if got == want else f"{got!r} instead of {want!r}"
    for name, g, w, e in parts:
        if why := difference(g, w, tolerance, e):
            return f"{name}: {why}"
    if kind is dict and got.keys() != want.keys():
        return _names_that_differ(got, want)
    return ""


def _names_that_differ(got: dict, want: dict) -> str:
    missing = [f"{key!r} is missing" for key in want if key not in got]
    return (missing or [f"{str(key)!r} was not asked for" for key in got if key not in want])[0]


def _tensor_difference(got: Tensor, want: Tensor, tolerance: float, exact: Tensor) -> str:
    if got.shape != want.shape:
        return f"shape {list(got.shape)} instead of {list(want.shape)}"
    if got.dtype != want.dtype:
        return f"dtype {got.dtype} instead of {want.dtype}"
    if not want.is_floating_point():
        wrong = int((got != want).sum())
        return f"{wrong} of {want.numel()} values differ" if wrong else ""
    finite = want.isfinite()
    if exact.shape != want.shape or not torch.equal(exact.isfinite(), finite):
        exact = want
    if not torch.equal(got.isfinite(), finite) or not torch.equal(
        got[~finite].nan_to_num(0.0), want[~finite].nan_to_num(0.0)
    ):
        return "NaN or infinite values"
    got, want, exact = (one[finite].double() for one in (got, want, exact))
    if not want.numel():
        return ""
    off, slack = (got - exact).abs(), ROUNDING * (want - exact).abs().max()
    wrong = int((off > tolerance * (1 + exact.abs()) + slack).sum())
    return f"{wrong} of {finite.numel()} values differ, by up to {off.max():.2g}" if wrong else ""


def _close(got: float, want: float, allowed: float) -> bool:
    return got == want or (got != got and want != want) or abs(got - want) <= allowed < math.inf


def _a(thing: object) -> str:
    if type(thing) is dict:
        return f"a dict of {', '.join(map(str, thing))}"
    return {type(None): "None", Tensor: "a tensor", int: "an integer"}.get(
        type(thing), f"a {type(thing).__name__}"
    )
