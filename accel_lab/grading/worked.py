"""What a right answer looks like, read from the reference: the line where a wrong one goes wrong,
and the whole, so that it can be pasted.
"""

from __future__ import annotations

import inspect
import re
import textwrap

from accel_lab.exercises import Answer, Exercise, Wrong


def lines(exercise: Exercise, hint: str) -> str:
    """Of a right answer, where those of this hint go wrong."""
    given = [wrong for wrong in exercise.wrong if wrong.hint in hint.splitlines()]
    return "\n".join(filter(None, map(_line, given)))


def _line(wrong: Wrong) -> str:
    """'' where the mistake is more than a changed line, or a line too many."""
    if not wrong.change or wrong.change[1] in wrong.change[2]:
        return ""
    text = inspect.getsource(wrong.change[0])
    first = text.index(wrong.change[1])
    start, end = text.rfind("\n", 0, first) + 1, first + len(wrong.change[1].rstrip("\n"))
    line = textwrap.dedent(text[start : text.find("\n", end)])
    return "\n".join([*_constants(wrong.change[0], line), line])


def source(function: Answer) -> str:
    """With what it uses of its own file: what that imports, constants, and helpers."""
    text = textwrap.dedent(inspect.getsource(function))
    imports, helpers = [], []
    for name, thing in _uses(function, text).items():
        home = getattr(thing, "__module__", None)
        if inspect.ismodule(thing):
            imports.append(f"import {name}")
        elif home == function.__module__:
            helpers.append(inspect.getsource(thing))
        elif callable(thing):
            imports.append(f"from {home} import {name}")
    head = "\n".join(imports + _constants(function, text))
    return "\n\n".join([head, *helpers, text]).strip()


def _constants(function: Answer, text: str) -> list[str]:
    known = _uses(function, text).items()
    return [f"{name} = {thing!r}" for name, thing in known if type(thing) in (int, float, str)]


def _uses(function: Answer, text: str) -> dict[str, object]:
    """Names of the function's file that the text mentions, itself left out."""
    known = {name: function.__globals__.get(name) for name in re.findall(r"[A-Za-z_]\w*", text)}
    return {name: thing for name, thing in known.items() if thing not in (None, function)}
