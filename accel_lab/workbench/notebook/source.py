"""Source code shown in a notebook: short pieces, highlighted as the front end does cells."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import dataclass
from typing import Any

MOST_LINES = 25  # what is read at a glance
MOST_COLUMNS = 100


@dataclass(frozen=True)
class Source:
    """Python source: in a notebook a highlighted block, as text the source itself."""

    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        return f"```python\n{self.text}\n```"


def show_source(*things: Any, first: str = "", last: str = "", docstring: bool = True) -> Source:
    """The source of functions, methods or classes, one below the other, at most 25 lines in all.

    first, last: show the piece from the line that holds ``first`` to the one that holds ``last`` ·
    docstring: leave it out where the prose beside it says the same.
    Raises ValueError, one line, for a piece that is too long or too wide, or for a line that is not
    there.
    """
    text = "\n\n".join(_source(thing, docstring) for thing in things)
    lines = text.splitlines()
    start = _place(lines, first, 0) if first else 0
    end = _place(lines, last, start) + 1 if last else len(lines)
    lines = textwrap.dedent("\n".join(lines[start:end])).splitlines()
    if len(lines) > MOST_LINES:
        raise ValueError(
            f"show_source: {len(lines)} lines are too many to read at a glance, at most "
            f"{MOST_LINES}: show pieces, with first= and last=, or leave the docstring out"
        )
    if wide := [line for line in lines if len(line) > MOST_COLUMNS]:
        raise ValueError(f"show_source: a line is wider than {MOST_COLUMNS} columns: {wide[0]!r}")
    return Source("\n".join(lines))


def _source(thing: Any, docstring: bool) -> str:
    text = textwrap.dedent(inspect.getsource(thing)).rstrip()
    return text if docstring else _without_docstring(text)


def _without_docstring(text: str) -> str:
    definition: Any = ast.parse(text).body[0]
    first = definition.body[0]
    if ast.get_docstring(definition, clean=False) is None:
        return text
    lines = text.splitlines()
    del lines[first.lineno - 1 : first.end_lineno]
    while len(lines) >= first.lineno and not lines[first.lineno - 1].strip():
        del lines[first.lineno - 1]
    return "\n".join(lines)


def _place(lines: list[str], text: str, start: int) -> int:
    for place in range(start, len(lines)):
        if text in lines[place]:
            return place
    raise ValueError(f"show_source: no line holds {text!r}")
