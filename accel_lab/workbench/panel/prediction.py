"""Commit to a number, then see: the reader's prediction, and how far off it was."""

from __future__ import annotations

from html import escape
from math import log10

import ipywidgets as w
from IPython.display import HTML, display

from accel_lab.workbench.notebook.watched import someone_watches
from accel_lab.workbench.panel.output import show

STYLE = (
    "<style>.accel-ask .widget-button.mod-primary:enabled { background: #0b62a4; color: #fff; "
    "}</style>"
)


class Prediction:
    """A question whose answer is a number above zero: put last in a cell it shows a slider and a
    button.

    low, high: the ends of a logarithmic slider · default: what stands in for an answer that was
    never given · unit: as in "2 ×". ``against(measured)`` says how far off it was. Skipping is
    fine; then it says that none was made.
    """

    def __init__(self, question: str, *, low: float, high: float, default: float, unit: str):
        self.question, self.unit, self.value, self.committed = question, unit, default, False
        if someone_watches():
            self._slider = w.FloatLogSlider(
                value=default,
                min=log10(low),
                max=log10(high),
                step=0.02,
                readout_format=".2g",
                layout={"width": "min(28em, 100%)"},
            )
            self._slider.description, self._slider.style = (
                f"in {unit}",
                {"description_width": "initial"},
            )
            self._button = w.Button(description="Commit", icon="lock", button_style="primary")
            self._button.on_click(lambda _: self._commit())
            self._note = w.HTML()
            title = w.HTML(f"{STYLE}<b>{escape(question)}</b>")
            self.box = w.VBox(
                [
                    title,
                    w.HBox(
                        [self._slider, self._button, self._note], layout={"flex_flow": "row wrap"}
                    ),
                ]
            )
            self.box.add_class("accel-ask")

    def _commit(self) -> None:
        self.value, self.committed = self._slider.value, True
        self._slider.disabled = self._button.disabled = True
        self._note.value = (
            f"You said {self.value:.2g} {escape(self.unit)}. It will be held "
            "against the measurement below."
        )

    def against(self, measured: float) -> HTML:
        """The prediction beside the measured value, and the factor between them."""
        factor = max(self.value / measured, measured / self.value)
        who = (
            "You said"
            if self.committed
            else "No prediction was made; the one that stands in for it says"
        )
        close = "spot on" if factor < 1.1 else f"a factor of {factor:.2g} between them"
        return HTML(
            f"{who} <b>{self.value:.2g} {escape(self.unit)}</b>; measured: <b>{measured:.2g} "
            f"{escape(self.unit)}</b>, {close}."
        )

    def _ipython_display_(self) -> None:
        question = f"<b>{escape(self.question)}</b>"
        if someone_watches():
            show(self.box, {"text/html": question})
        else:
            display(HTML(question))
