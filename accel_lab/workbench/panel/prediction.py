"""Say a number, then see: the reader's prediction, and how far off it was."""

from __future__ import annotations

from html import escape
from math import isclose, log10

import ipywidgets as w
from IPython.display import HTML, display

from accel_lab.workbench.measure.comparison import Comparison
from accel_lab.workbench.notebook.guesses import Guess, Measured, hold, in_unit, keep, kept
from accel_lab.workbench.panel.output import show
from accel_lab.workbench.watched import someone_watches

STYLE = (
    "<style>.accel-ask .widget-button.mod-primary:enabled { background: #0b62a4; color: #fff; "
    "}</style>"
)


class Prediction:
    """A question whose answer is a number above zero: put last in a cell it shows a slider and a
    button.

    low, high: the ends of a logarithmic slider · default: what stands in for an answer that was
    never given · unit: as in "2 ×". ``against(measured)`` says how far off it was. A slider that
    was moved counts, committed or not; the answer outlives the kernel. Skipping is fine; then it
    says that none was made. Raises ValueError, one line, unless 0 < low ≤ default ≤ high.
    """

    def __init__(self, question: str, *, low: float, high: float, default: float, unit: str):
        if (
            not 0 < low <= default <= high
        ):  # where nobody watches, too, or only readers would see it
            raise ValueError(
                f"low, default, high: {low}, {default}, {high} do not rise from above 0"
            )
        self.question, self.unit, self.default = question, unit, default
        self.guess: Guess | None = None
        if someone_watches():
            self.guess = kept(question)
            self._build(low, high)

    @property
    def value(self) -> float:
        """What was said, or what stands in for it."""
        return self.guess.value if self.guess else self.default

    def _build(self, low: float, high: float) -> None:
        ends = log10(low), log10(high)
        step = (ends[1] - ends[0]) / round((ends[1] - ends[0]) / 0.02)
        stands = (log10(min(max(self.value, low), high)) - ends[0]) / step
        self._slider = w.FloatLogSlider(
            # Between two steps the front end would move it, and that would count as a guess.
            value=10 ** (ends[0] + round(stands) * step),
            min=ends[0],
            max=ends[1],
            step=step,
            readout_format=".2r",
            layout={"width": "min(28em, 100%)"},
            description=f"your guess, {self.unit}",
            style={"description_width": "initial"},
        )
        self._button = w.Button(button_style="primary")
        self._note = w.HTML()
        self._slider.observe(self._moved, "value")
        self._button.on_click(lambda _: self._commit())
        parts = [self._slider, self._button, self._note]
        reach = f"{in_unit(low, self.unit)} to {in_unit(high, self.unit)}"
        title = w.HTML(f"{STYLE}<b>{escape(self.question)}</b> <small>({escape(reach)})</small>")
        self.box = w.VBox([title, w.HBox(parts, layout={"flex_flow": "row wrap"})])
        self.box.add_class("accel-ask")
        self._show()

    def _moved(self, change: dict) -> None:
        if not isclose(
            change["new"], change["old"], rel_tol=1e-6
        ):  # rounding on its way is no move
            self._say(final=False)

    def _commit(self) -> None:
        if self.guess and self.guess.final:  # another one, please
            self._say(final=False)
        else:
            self._say(final=True)

    def _say(self, final: bool) -> None:
        self.guess = Guess(self.question, self._slider.value, self.unit, final)
        keep(self.guess)
        self._show()

    def _show(self) -> None:
        final = self.guess is not None and self.guess.final
        self._slider.disabled = final
        self._button.description, self._button.icon = (
            ("Guess again", "undo") if final else ("Commit", "lock")
        )
        self._note.value = (
            f"You said {escape(self.guess.said)}. The measurement comes below."
            if self.guess
            else ""
        )

    def against(self, measured: float | Comparison, *, inverse: bool = False) -> HTML:
        """The prediction beside what was measured, and the factor between them.

        inverse: a comparison answers how many times faster ours is, not how long it takes.
        """
        found = Measured.of(measured, inverse)
        hold(self.guess, self.question, found, self.unit)
        who = "You said" if self.guess else "No prediction was made; a first guess would be"
        said, was = (
            escape(text) for text in (in_unit(self.value, self.unit), found.in_unit(self.unit))
        )
        return HTML(f"{who} <b>{said}</b>; measured: <b>{was}</b>, {found.verdict(self.value)}.")

    def _ipython_display_(self) -> None:
        question = f"<b>{escape(self.question)}</b>"
        if someone_watches():
            show(self.box, {"text/html": question})
        else:
            display(HTML(question))
