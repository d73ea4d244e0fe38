"""A chapter's knobs, as its parameters cell leaves them, or papermill."""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from accel_lab.workbench.knobs import KnobError, Knobs, no_such
from accel_lab.workbench.watched import kernel

K = TypeVar("K", bound=Knobs)
EXAMPLE = '{"width": 512}'
INJECTED = "# Parameters\n"  # how the cell begins that papermill adds


def settings(kind: type[K], knobs: Mapping[str, Any] | str, **of_the_chapter: Any) -> K:
    """``knobs`` of this kind, and where it is silent what the chapter sets.

    papermill's ``-p knobs '{"width": 512}'`` arrives as text. Raises KnobError, also for what
    papermill was given beside ``knobs``, which nothing would read.
    """
    if isinstance(knobs, str):
        with contextlib.suppress(ValueError):
            knobs = json.loads(knobs)
    if not isinstance(knobs, Mapping):
        raise KnobError("knobs", f"should be names with values, {EXAMPLE}, not {knobs!r}")
    for name in sorted(_injected() - {"knobs"}):
        if name not in kind.model_fields:
            raise KnobError("", no_such("knob", name, kind.model_fields))
        raise KnobError(name, f"is a knob; papermill is to say it as -y 'knobs: {{{name}: …}}'")
    return kind(**{**of_the_chapter, **knobs})


def _injected() -> set[str]:
    """The names that papermill's cell gives values to; where it has added none there are none."""
    history = getattr(kernel(), "history_manager", None)
    for cell in reversed(history.input_hist_raw if history else []):
        if cell.startswith(INJECTED):
            return {
                node.id
                for node in ast.walk(ast.parse(cell))
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            }
    return set()
