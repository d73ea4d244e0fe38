"""A picture and the sliders that it depends on: moved by hand, and drawn anew."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as w
from IPython.display import display

from accel_lab.workbench.figure import Picture
from accel_lab.workbench.notebook import someone_watches
from accel_lab.workbench.panel.output import show


class Sliders:
    """``draw(**values)``, drawn anew whenever a slider is moved. Put last in a cell; where nobody watches it shows the picture alone.

    draw: returns a picture, and has a default for each argument · ranges: for each argument (lowest, highest, step)
    """

    def __init__(self, draw: Callable[..., Picture], **ranges: tuple[float, float, float]):
        self._draw, self._ranges = draw, ranges

    def _ipython_display_(self) -> None:
        picture = self._draw()
        if not someone_watches():
            display(picture)
            return
        box = w.interactive(self._draw, **self._ranges)
        box.add_class("accel-sliders")
        show(box, *picture._repr_mimebundle_())
