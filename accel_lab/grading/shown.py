"""What is said of a case beside the reason: what is right already, and what went in, small enough
to be tried by hand.
"""

from __future__ import annotations

from torch import Tensor

from accel_lab.exercises import Case, Plain
from accel_lab.grading.difference import difference
from accel_lab.grading.failure import Failure

MOST_VALUES, MOST_ENTRIES, MOST_NAMES, MOST_LETTERS, MOST_LINES = 12, 2, 3, 60, 8


def right_already(reasons: list[str], got: Plain | Failure, want: Plain, tolerance: float) -> str:
    """Of all cases, and of what was returned in the one that is explained; '' when nothing is."""
    right = reasons.count("")
    said = [f"{right} of {len(reasons)} cases"] if right else []
    if type(got) is dict and type(want) is dict:
        good = [
            key for key in want if key in got and not difference(got[key], want[key], tolerance)
        ]
        if 0 < len(good) < len(want):
            more = "" if len(good) <= MOST_NAMES else f", … {len(good)} in all"
            told = ", ".join(_with_value(key, want[key]) for key in good[:MOST_NAMES])
            said.append(f"in the case below: {told}{more}")
    return "; ".join(said)


def smallest(cases: list[Case], among: list[int]) -> int:
    """The number of the case with the fewest values, the first of those that have equally few."""
    return min(among, key=lambda number: _size(cases[number]))


def brief(case: Case) -> str:
    """What went in, a line for each name."""
    lines = [f"{name} = {_brief(thing)}" for name, thing in case.items()]
    return "\n".join(lines[:MOST_LINES] + ["…"] * (len(lines) > MOST_LINES))


def _with_value(name: str, thing: Plain) -> str:
    return f"{name}: {thing}" if type(thing) in (bool, int, str) else name


def _size(thing: Plain) -> int:
    if type(thing) is Tensor:
        return thing.numel()
    if type(thing) is dict or type(thing) is list:
        return sum(_size(one) for one in (thing.values() if type(thing) is dict else thing))
    return len(thing) if type(thing) is str else 1


def _brief(thing: Plain) -> str:
    if type(thing) is Tensor:
        if thing.numel() > MOST_VALUES:
            return f"{str(thing.dtype).removeprefix('torch.')} {list(thing.shape)}"
        return _brief(thing.tolist())
    if type(thing) is list:
        whole = f"[{', '.join(map(_brief, thing))}]"
        few = len(thing) <= MOST_ENTRIES or _size(thing) <= MOST_VALUES
        if few or len(whole) <= MOST_LETTERS:
            return whole
        return f"[{_brief(thing[0])}, … {len(thing)} in all]"
    if type(thing) is dict:
        return f"{{{', '.join(f'{key!r}: {_brief(one)}' for key, one in thing.items())}}}"
    if type(thing) is float:
        return f"{thing:.4g}"
    text = repr(thing)
    return text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…"
