"""A picture and what it depends on: moved by hand or stepped through, and drawn anew."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Sequence
from decimal import Decimal
from html import escape
from inspect import signature

import ipywidgets as w
from IPython.display import display

from accel_lab.workbench.drawing.figure import Picture
from accel_lab.workbench.panel.controls import LABEL
from accel_lab.workbench.panel.output import show
from accel_lab.workbench.panel.style import STYLE
from accel_lab.workbench.watched import someone_watches

Values = tuple[float, float, float] | range | Sequence[str]
SECONDS_TO_PLAY = 8  # for all steps, so far as a step is neither too short nor too long to be seen
SHORTEST, LONGEST = 0.25, 1.0


class Sliders:
    """``draw(**values)``, drawn anew whenever a value changes. Put last in a cell; where nobody
    watches it shows the picture of the defaults alone.

    draw: returns a picture, always of one size, and has a default for each argument · values: for
    each argument either (lowest, highest, step), which makes a slider; or a ``range``, the steps of
    something that goes on, a slider with a Play button; or a list of choices, which makes buttons
    """

    def __init__(self, draw: Callable[..., Picture], **values: Values):
        defaults = {name: signature(draw).parameters[name].default for name in values}
        self._draw = draw
        self._inputs = {name: _input(name, of, defaults[name]) for name, of in values.items()}
        self._played = {name: of for name, of in values.items() if isinstance(of, range)}
        for control in self._inputs.values():
            control.observe(self._moved, "value")

    def _picture(self) -> Picture:
        return self._draw(**{name: control.value for name, control in self._inputs.items()})

    def _moved(self, _: object) -> None:
        bundle, metadata = self._drawn()
        # what a reader finds who opens the notebook again
        self._shown.update(bundle, metadata=metadata, raw=True)

    def _drawn(self) -> tuple[dict[str, str], dict[str, str]]:
        """Draw, once, for the widget and for what stands in for it."""
        picture = self._picture()
        bundle, metadata = picture._repr_mimebundle_()
        self._image.value = b64decode(bundle["image/png"])
        said = escape(said_by(picture))
        self._said.value = f'<span class="accel-said" role="status">{said}</span>'
        return bundle, metadata

    def _ipython_display_(self) -> None:
        if not someone_watches():
            display(self._picture())
            return
        # An image of one widget takes its next picture without a flicker; an output would be empty
        # for a moment, and the page would jump.
        self._image = w.Image(layout={"max_width": "100%", "align_self": "flex-start"})
        self._said = w.HTML()
        bundle, metadata = self._drawn()
        if metadata:
            self._image.add_class("accel-picture")
        box = w.VBox([w.HTML(STYLE), *map(self._row, self._inputs), self._said, self._image])
        box.add_class("accel-sliders").add_class("accel-controls")
        self._shown = show(box, bundle, metadata)

    def _row(self, name: str) -> w.Widget:
        slider, steps = self._inputs[name], self._played.get(name)
        if steps is None:
            return slider
        seconds = min(max(SECONDS_TO_PLAY / len(steps), SHORTEST), LONGEST)
        ends = {"min": slider.min, "max": slider.max, "step": slider.step}
        play = w.Play(value=slider.value, interval=int(1e3 * seconds), show_repeat=False, **ends)
        w.jslink((play, "value"), (slider, "value"))
        return w.HBox([slider, play], layout={"flex_flow": "row wrap"})


def _input(name: str, values: Values, default: float | str) -> w.ValueWidget:
    if isinstance(values, range):
        slider = w.IntSlider(default, values[0], values[-1], values.step)
    elif isinstance(values, list):
        slider = w.ToggleButtons(options=values, value=default)
        slider.style.button_width = "auto"
    else:
        slider = w.interactive.widget_from_abbrev(values, default)
        if isinstance(slider, w.FloatSlider):
            slider.readout_format = f".{-Decimal(str(values[2])).as_tuple().exponent}f"
    slider.description = name.replace("_", " ")
    slider.style.description_width = LABEL["description_width"]
    slider.layout = {"width": "auto" if isinstance(values, list) else "min(27em, 100%)"}
    return slider


def said_by(picture: Picture) -> str:
    """The titles in a picture: what a screen reader is told of it."""
    titles = [one.get_title(loc) for one in picture.axes for loc in ("left", "center", "right")]
    return " · ".join(title for title in titles if title) or "the picture of these values"
