"""A picture and the sliders that it depends on: moved by hand, and drawn anew."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature

import ipywidgets as w
from IPython.display import display

from accel_lab.workbench.drawing.figure import Picture
from accel_lab.workbench.notebook.watched import someone_watches
from accel_lab.workbench.panel.output import show


class Sliders:
    """``draw(**values)``, drawn anew whenever a slider is moved. Put last in a cell; where nobody
    watches it shows the picture alone.

    draw: returns a picture, and has a default for each argument · ranges: for each argument
    (lowest, highest, step)
    """

    def __init__(self, draw: Callable[..., Picture], **ranges: tuple[float, float, float]):
        defaults = {name: signature(draw).parameters[name].default for name in ranges}
        self._draw = draw
        self._sliders = {
            name: w.interactive.widget_from_abbrev(ends, defaults[name])
            for name, ends in ranges.items()
        }
        for name, slider in self._sliders.items():
            slider.description = name
            slider.observe(self._moved, "value")

    def _picture(self) -> Picture:
        return self._draw(**{name: slider.value for name, slider in self._sliders.items()})

    def _moved(self, _: object) -> None:
        self._shown.update(self._picture())

    def _ipython_display_(self) -> None:
        if someone_watches():
            box = w.VBox(list(self._sliders.values()))
            box.add_class("accel-sliders")
            show(box, {"text/html": ""})  # the picture needs nothing that stands in for it
        self._shown = display(self._picture(), display_id=True)
