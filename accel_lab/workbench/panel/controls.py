"""Controls made from the declaration of the knobs: a slider, a choice or a switch each, with its
unit, and room for a complaint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape
from math import log10
from typing import Any

import ipywidgets as w

from accel_lab.workbench.knobs import Dial, KnobError, Knobs

LABEL = {"description_width": "8.5em"}


class Controls:
    """The controls of some knobs. ``on_change(knobs)`` hears each change that leaves valid knobs;
    others are shown beside the knob.
    """

    def __init__(
        self, knobs: Knobs, names: Iterable[str] | None, on_change: Callable[[Knobs], None]
    ):
        self.knobs = knobs
        self._on_change, self._held = on_change, False
        dials = self._dials = {dial.name: dial for dial in knobs.dials()}
        names = (
            list(names)
            if names is not None
            else [name for name, dial in dials.items() if dial.panel]
        )
        self._inputs = {name: _input(dials[name], getattr(knobs, name)) for name in names}
        self._notes = {name: w.HTML(_note(dials[name].description)) for name in names}
        self._descriptions = {name: dials[name].description for name in names}
        for control in self._inputs.values():
            control.observe(lambda change: self._changed(), "value")
        rows = [w.HBox([self._inputs[name], self._notes[name]]) for name in names]
        for row in rows:
            row.layout.align_items = "center"
            row.add_class("accel-knob")
        self.box = w.VBox(rows)

    def turn_to(self, knobs: Knobs) -> None:
        """Show these, as one change."""
        self._held = True
        for name, control in self._inputs.items():
            control.value = getattr(knobs, name)
        self._held = False
        self._changed()

    def _changed(self) -> None:
        if self._held:
            return
        for name, note in self._notes.items():
            note.value = _note(self._descriptions[name])
        try:
            knobs = self.knobs.turned(**{name: self._value_of(name) for name in self._inputs})
        except KnobError as error:
            at = error.knob if error.knob in self._notes else next(iter(self._notes))
            self._notes[at].value = _complaint(error.reason)
            return
        if knobs != self.knobs:
            self.knobs = knobs
            self._on_change(knobs)

    def _value_of(self, name: str) -> Any:
        """A logarithmic slider's end is one only to the last bit but one."""
        return self._dials[name].within(self._inputs[name].value)


def _written(value: object) -> str:
    """1,000,000 · none"""
    return f"{value:,}" if isinstance(value, int) else str(value)


def _note(text: str) -> str:
    return f'<span class="accel-note" title="{escape(text)}">{escape(text)}</span>'


def _complaint(text: str) -> str:
    return f'<span class="accel-error" role="alert">{escape(text)}</span>'


def _input(dial: Dial, value: Any) -> w.ValueWidget:
    common = {
        "value": value,
        "description": dial.label,
        "tooltip": dial.description,
        "style": LABEL,
    }
    choices = [(_written(choice), choice) for choice in dial.choices]
    if choices and sum(len(name) for name, _ in choices) <= 70:  # few enough for a row of buttons
        wide = {"width": "auto", "max_width": "100%"}
        buttons = {"style": {**LABEL, "button_width": "auto"}, "layout": wide}
        return w.ToggleButtons(options=choices, **{**common, **buttons})
    common["layout"] = {"width": "min(27em, 100%)"}
    if choices:
        return w.Dropdown(options=choices, **common)
    if dial.type is bool:
        return w.Checkbox(**common, indent=True)
    common["continuous_update"] = False
    if dial.low is None or dial.high is None:
        return {int: w.IntText, float: w.FloatText}.get(dial.type, w.Text)(**common)
    if dial.type is int and dial.log:
        powers = [int(dial.low) << i for i in range(64) if int(dial.low) << i <= dial.high]
        values = sorted({*powers, int(dial.high), value})
        return w.SelectionSlider(options=[(_written(one), one) for one in values], **common)
    if dial.type is int:
        return w.IntSlider(min=int(dial.low), max=int(dial.high), readout_format=",d", **common)
    if dial.log:
        low, high = log10(dial.low), log10(dial.high)
        step = (high - low) / round((high - low) / 0.05)  # so that the last one ends at the end
        return w.FloatLogSlider(min=low, max=high, step=step, readout_format=".3g", **common)
    return w.FloatSlider(
        min=dial.low,
        max=dial.high,
        step=(dial.high - dial.low) / 100,
        readout_format=".3g",
        **common,
    )
