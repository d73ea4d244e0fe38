"""Knobs: the dials of an experiment, declared once.

A technique declares a subclass; the same declaration becomes the panel's controls, command-line
options, papermill parameters and validation with a one-line message::

    class Knobs(workbench.knobs.Knobs):
        micro_batches: int = dial(4, ge=1, le=32, description="backward passes per update")
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isclose
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class KnobError(ValueError):
    """A knob was given something it cannot take. ``knob`` names it; the message is one line."""

    def __init__(self, knob: str, reason: str):
        super().__init__(f"{knob}: {reason}" if knob else reason)
        self.knob, self.reason = knob, reason

    def __reduce__(self):
        return type(self), (self.knob, self.reason)


@dataclass(frozen=True, slots=True)
class Dial:
    """What a control or a command-line option needs to know of one knob. ``log``: steps are ratios,
    not differences. ``unit``: what an axis says beside the name.

    ``panel``: worth a control; the others (seed, number of steps, …) stay at the command line and
    in papermill.
    """

    name: str
    type: type
    default: Any
    description: str
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] = ()
    log: bool = False
    panel: bool = True
    unit: str = ""

    @property
    def label(self) -> str:
        label = self.name.replace("_", " ")
        # The name may end in its unit, whose letters are not all small.
        unit = self.unit.lower()
        return label.removesuffix(unit) + self.unit if label.endswith(f" {unit}") else label

    @property
    def axis_label(self) -> str:
        said = not self.unit or self.label.endswith(f" {self.unit}")
        return self.label if said else f"{self.label} ({self.unit})"

    def within(self, value: Any) -> Any:
        """The value, or the end that it lies beyond by rounding."""
        for end in (self.low, self.high):
            if end is not None and isinstance(value, float) and isclose(value, end, rel_tol=1e-9):
                return float(end)
        return value

    def values(self, most: int = 64) -> list[Any]:
        """At most ``most`` values from low to high, to draw a curve over this knob: each choice,
        each whole number, or evenly spaced ones (in ratio where ``log``). Without bounds, its
        default alone.
        """
        if self.choices or self.type is bool:
            return list(self.choices or (False, True))
        if self.low is None or self.high is None or (self.log and self.low <= 0):
            return [self.default]
        if self.type is int and self.high - self.low < most:
            return list(range(int(self.low), int(self.high) + 1))
        shares = [place / (most - 1) for place in range(most)]
        low, high = float(self.low), float(self.high)
        if self.log:
            values = [low ** (1 - share) * high**share for share in shares]
        else:
            values = [low * (1 - share) + high * share for share in shares]
        values[0], values[-1] = low, high  # to the last bit, or the knobs would refuse them
        return sorted({round(value) for value in values}) if self.type is int else values


def dial(
    default: Any, *, log: bool = False, panel: bool = True, unit: str = "", **field: Any
) -> Any:
    """pydantic's ``Field``, with what a control also wants to know: ``log`` scale, whether it is on
    the ``panel``, and the ``unit`` of a value that has one.
    """
    return Field(default, json_schema_extra={"log": log, "panel": panel, "unit": unit}, **field)


class Knobs(BaseModel):
    """Base of every technique's knobs: frozen, nothing unknown, one line when something is wrong.

    Raises ``KnobError`` (a ``ValueError``) on a value out of range, of the wrong type, or a knob
    that does not exist. A rule between two knobs is a ``model_validator`` that raises
    ``KnobError(knob, reason)`` itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _one_line(type(self), error) from None

    @model_validator(mode="before")
    @classmethod
    def _choices_from_text(cls, values: dict[str, Any]) -> dict[str, Any]:
        """A choice among numbers can be given as text, as any other number can."""
        written = {dial.name: {str(one): one for one in dial.choices} for dial in cls.dials()}
        return {
            name: written.get(name, {}).get(value, value) if isinstance(value, str) else value
            for name, value in values.items()
        }

    @classmethod
    def dials(cls) -> list[Dial]:
        return [_dial(name, field) for name, field in cls.model_fields.items()]

    def turned(self, **changes: Any) -> Knobs:
        """The same knobs with some turned, checked again (pydantic's ``model_copy`` does not
        check).
        """
        return type(self)(**{**self.model_dump(), **changes})

    def changed_from_default(self) -> dict[str, Any]:
        """The knobs that are not at their default: what to call a run by."""
        default = type(self)()
        return {name: value for name, value in self if value != getattr(default, name)}

    def __str__(self) -> str:
        return (
            ", ".join(f"{name} {value}" for name, value in self.changed_from_default().items())
            or "defaults"
        )


class TrainingKnobs(Knobs):
    """The knobs of every run that trains a model."""

    seed: int = dial(
        0,
        ge=0,
        le=2**31 - 1,
        panel=False,
        description="random seed (weights, data order, augmentation)",
    )
    device: Literal["auto", "cpu", "cuda"] = dial("auto", panel=False, description="where to train")


def _dial(name: str, field: Any) -> Dial:
    bounds = {}
    for constraint in field.metadata:
        for attribute in ("ge", "gt", "le", "lt"):
            if (bound := getattr(constraint, attribute, None)) is not None:
                bounds["low" if attribute[0] == "g" else "high"] = bound
    is_choice = get_origin(field.annotation) is Literal
    choices = get_args(field.annotation) if is_choice else ()
    return Dial(
        name,
        type(choices[0]) if choices else field.annotation,
        field.default,
        field.description or "",
        choices=choices,
        **bounds,
        **(field.json_schema_extra or {}),
    )


def _one_line(knobs: type[Knobs], error: ValidationError) -> KnobError:
    first = error.errors()[0]
    own = first.get("ctx", {}).get("error")
    if isinstance(own, KnobError):
        return own
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return KnobError("", no_such("knob", name, knobs.model_fields))
    return KnobError(
        name, f"{_reason(first)} ({knobs.model_fields[name].description}), not {first['input']!r}"
    )


def _reason(error: Mapping[str, Any]) -> str:
    """pydantic's reason in our words: its subject ("Input …") is the knob, which the line already
    names.
    """
    return error["msg"].removeprefix("Input ").removeprefix("Value error, ")


def no_such(what: str, name: str, known: Iterable[str]) -> str:
    """One line for a name that does not exist, with the nearest one that does."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"no {what} is called {name!r}; " + (
        f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
    )
