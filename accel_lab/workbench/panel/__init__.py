"""The panel: knobs, live charts and the still picture of one experiment. The only part of the house
that draws widgets.

Training runs in a daemon thread, so that the cell returns at once and the kernel hears the sliders;
the panel redraws at most five times a second and never while an update is timed. Where nobody
watches (papermill, nbclient, nbval) the same runs are made in the foreground, briefly, and only the
picture is shown.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

import ipywidgets as w
from IPython.display import DisplayHandle, display

from accel_lab.workbench.drawing import figure
from accel_lab.workbench.drawing.chart import Badge, Chart
from accel_lab.workbench.drawing.record import Record
from accel_lab.workbench.knobs import Knobs
from accel_lab.workbench.look import BLUE, GREY, ON_PAPER, badge
from accel_lab.workbench.notebook.watched import someone_watches
from accel_lab.workbench.panel.controls import Controls
from accel_lab.workbench.panel.live import live_chart, styled
from accel_lab.workbench.panel.output import show
from accel_lab.workbench.panel.prediction import Prediction
from accel_lab.workbench.panel.sliders import Sliders
from accel_lab.workbench.panel.trainer import Run, Trainer, observe

__all__ = ["Panel", "Prediction", "Sliders"]

MOST_GHOSTS = 3
MOST_PINNED = 3  # as many as there are line styles
WORTH_A_GHOST = 3  # windows: a run that was hardly seen leaves no ghost

STYLE = """<style>
.accel-panel { --bq-axis-tick-text-fill: var(--jp-ui-font-color1); --bq-axislabel-fill: var(--jp-ui-font-color1);
  --bq-axis-path-stroke: var(--jp-ui-font-color2); --bq-axis-tick-stroke: var(--jp-border-color2);
  --bq-background: transparent; --bq-plotarea-background-fill: transparent;
  border: 1px solid var(--jp-border-color2); border-radius: 6px; padding: 10px 14px; }
.accel-panel .bqplot > svg { font: 12px var(--jp-ui-font-family); }
.accel-panel .bqplot text.legendtext { font: 12px var(--jp-ui-font-family); fill: var(--jp-ui-font-color1) !important; }
.accel-panel .bqplot text.axislabel { fill: var(--jp-ui-font-color1) !important; }
.accel-panel .bqplot > canvas { display: none; } /* for WebGL; it keeps its width while its graph is out of sight */
.accel-panel .widget-label, .accel-panel .widget-readout { color: var(--jp-ui-font-color1); }
.accel-panel .widget-button.mod-success { background: #00664b; color: #fff; }
.accel-panel :is(.widget-button, .noUi-handle, input, select):focus-visible {
  outline: 2px solid var(--jp-brand-color1); outline-offset: 1px; }
.accel-panel .widget-box { overflow: visible; }
.accel-note { color: var(--jp-ui-font-color2); }
.accel-error { color: var(--jp-error-color0, #a00); font-weight: 600; }
.accel-panel .widget-readout { min-width: 5em; }
.accel-panel .widget-inline-hbox { margin: 2px; }
.accel-panel .widget-toggle-buttons { display: flex; flex-flow: row nowrap; align-items: baseline; height: auto; }
.accel-panel .widget-toggle-buttons > .widget-label { text-align: right; margin-right: 12px; }
.accel-panel .widget-toggle-buttons > .widget-button, .accel-panel .widget-toggle-buttons > div { min-width: 0; flex-wrap: wrap; }
.accel-status { font-variant-numeric: tabular-nums; }
.accel-entry { margin-right: 1.4em; white-space: nowrap; }
</style>"""


class Panel:
    """Show an experiment: ``run(knobs)`` under its knobs, drawn as ``charts``.

    controls: names of the knobs to show, by default those declared for the panel · baselines: name
    → knobs, each run for ``seconds`` when the panel is made, and pinned · tour: what to run, for as
    long, where nobody watches · badge: a verdict on the latest window. Put the panel last in a cell
    to show it. ``start``, ``stop``, ``pin`` and ``wait`` do what the buttons do.
    """

    def __init__(
        self,
        run: Run,
        knobs: Knobs,
        charts: Sequence[Chart],
        *,
        controls: Sequence[str] | None = None,
        baselines: Mapping[str, Knobs] | None = None,
        tour: Sequence[Knobs] = (),
        badge: Badge | None = None,
        seconds: float = 2.0,
    ):
        self.charts, self.badge, self.error = list(charts), badge, None
        self.pinned: list[Record] = []
        self.ghosts: list[Record] = []
        self.live: Record | None = None
        self._base = knobs
        self._shown: DisplayHandle | None = None
        self._trainer = Trainer(
            run, label=self._label, began=self._began, moved=self._moved, ended=self._ended
        )
        Trainer.stop_whoever_trains()
        for name, baseline in (baselines or {}).items():
            self.pinned.append(observe(run, baseline, name, seconds))
        self._watched = someone_watches()
        if self._watched:
            self._build(knobs, controls)
        else:
            toured = [observe(run, stop, self._label(stop), seconds) for stop in tour]
            self.pinned += toured[:-1]
            self.live = toured[-1] if toured else None

    # ---- what the buttons do ----

    @property
    def training(self) -> bool:
        return self._trainer.training

    @property
    def knobs(self) -> Knobs:
        return self._controls.knobs

    def start(self) -> None:
        """Train with the knobs as they stand. While training, nothing."""
        if not self.training:
            self.error = None
            self._say("starting …")
            self._show_buttons(training=True)
            self._trainer.train(self.knobs)

    def stop(self) -> None:
        self._trainer.stop()

    def wait(self) -> None:
        """Return when training has ended. Interrupting the kernel meanwhile stops it."""
        self._trainer.wait()

    def pin(self) -> None:
        """Keep the run at hand, by its knobs' names, until three later ones are pinned."""
        if self.live and self.live.seconds:
            baselines, later = (
                self.pinned[:1],
                [record for record in self.pinned[1:] if record.label != self.live.label],
            )
            self.pinned = baselines + [*later, self.live][1 - MOST_PINNED :]
            self._redraw_what_stays()

    # ---- called from the training thread ----

    def _began(self, record: Record) -> None:
        self._retire(self.live)
        self.live = record
        self._redraw_what_stays()

    def _moved(self, record: Record) -> None:
        for chart in self._live_charts:
            chart.move(record)
        throughput, loss = record.latest("throughput"), record.latest("loss")
        self._say(
            f"training · update {record.updates[-1]:,.0f} · <b>{throughput:,.0f} samples/s</b>"
            + (f" · loss {loss:.3f}" if loss is not None else "")
        )
        self._judge(record)

    def _ended(self, error: Exception | None) -> None:
        self.error = error
        if error is not None:
            self._say(f'<span class="accel-error" role="alert">{escape(_one_line(error))}</span>')
        else:
            at = (
                f" after {self.live.updates[-1]:,.0f} updates, {self.live.samples:,} samples"
                if self.live.seconds
                else ""
            )
            self._say(f"stopped{at}")
        self._show_buttons(training=False)
        if self._shown:
            self._shown.update(self._bundle(), metadata=ON_PAPER, raw=True)

    # ---- drawing ----

    def _build(self, knobs: Knobs, controls: Sequence[str] | None) -> None:
        self._controls = Controls(knobs, controls, self._turned)
        self._live_charts = [live_chart(chart) for chart in self.charts]
        self._start = w.Button(
            description="Start",
            icon="play",
            button_style="success",
            tooltip="train with these knobs",
        )
        self._stop = w.Button(
            description="Stop", icon="stop", tooltip="stop training", disabled=True
        )
        self._pin = w.Button(
            description="Pin", icon="thumb-tack", tooltip="keep this run to compare with"
        )
        for button, action in (
            (self._start, self.start),
            (self._stop, self.stop),
            (self._pin, self.pin),
        ):
            button.on_click(lambda _, action=action: action())
            button.layout.width = "6.5em"
        self._status = w.HTML()
        self._legend = w.HTML(
            layout={"min_height": "30px"}
        )  # room for what comes: nothing below may jump
        self._verdict = w.HTML(layout={"min_height": "30px"})
        self._say("ready: press Start, then move a knob")
        rows = [
            w.HTML(STYLE),
            self._controls.box,
            w.HBox(
                [self._start, self._stop, self._pin, self._status],
                layout={"flex_flow": "row wrap", "margin": "6px 0"},
            ),
            *([self._verdict] if self.badge else []),
            self._legend,
            w.HBox([chart.view for chart in self._live_charts], layout={"flex_flow": "row wrap"}),
        ]
        self.box = w.VBox(rows)
        self.box.add_class("accel-panel")
        self._redraw_what_stays()

    def _turned(self, knobs: Knobs) -> None:
        if self.training:
            self._trainer.train(knobs)

    def _redraw_what_stays(self) -> None:
        pinned = [record for record in self.pinned if record is not self.live]
        for chart in self._live_charts:
            chart.keep(pinned, self.ghosts)
        entries = [(self.live.label, BLUE, "-")] if self.live else []
        entries += [
            (record.label, color, style) for record, color, style in reversed(styled(pinned, []))
        ]
        entries += [("former runs", GREY, "-")] if self.ghosts else []
        entries += [
            (chart.formula, "currentColor", "--")
            for chart in self.charts
            if getattr(chart, "formula", "")
        ]
        self._legend.value = "".join(_legend_entry(*entry) for entry in entries)

    def _retire(self, record: Record | None) -> None:
        """A run that is over becomes a ghost; with the knobs of a baseline it renews that one,
        whose curve was taken in a hurry.
        """
        if record is None or record in self.pinned or len(record.seconds) < WORTH_A_GHOST:
            return
        for place, pinned in enumerate(self.pinned):
            if pinned.knobs == record.knobs:
                record.label = pinned.label
                self.pinned[place] = record
                return
        self.ghosts = [*self.ghosts, record][-MOST_GHOSTS:]

    def _judge(self, record: Record) -> None:
        if self.badge and (value := record.latest(self.badge.metric)) is not None:
            holds = value <= self.badge.tolerance
            said = badge(holds, self.badge.equal if holds else self.badge.differs)
            self._verdict.value = f'<span class="accel-badge">{said}</span> {value:.1e}'

    def _say(self, html: str) -> None:
        self._status.value = f'<span class="accel-status" role="status">{html}</span>'

    def _show_buttons(self, training: bool) -> None:
        self._start.disabled, self._stop.disabled = training, not training

    def _label(self, knobs: Knobs) -> str:
        """The knobs that differ from the panel's own."""
        changes = [
            f"{name.replace('_', ' ')} {value:.3g}"
            if isinstance(value, float)
            else f"{name.replace('_', ' ')} {value}"
            for name, value in knobs
            if value != getattr(self._base, name)
        ]
        return ", ".join(changes) or "as given"

    # ---- the picture that stays ----

    def _bundle(self) -> dict[str, str]:
        picture = figure.png(figure.draw(self.charts, self.pinned, self.ghosts, self.live))
        return {"text/plain": "Panel", "image/png": base64.b64encode(picture).decode()}

    def _ipython_display_(self) -> None:
        if self._watched:
            self._shown = show(self.box, self._bundle(), ON_PAPER)
        else:
            display(self._bundle(), metadata=ON_PAPER, raw=True)


def _legend_entry(text: str, color: str, style: str) -> str:
    dash = {"-": "", "--": "6 3", "-.": "7 3 2 3", ":": "2 3"}[style]
    line = (
        f'<line x1="0" y1="5" x2="26" y2="5" stroke="{color}" stroke-width="2.5" '
        f'stroke-dasharray="{dash}"/>'
    )
    return (
        '<span class="accel-entry"><svg width="26" height="10" '
        f'aria-hidden="true">{line}</svg> '
        f"{escape(text)}</span>"
    )


def _one_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return (
        text
        if isinstance(error, (ValueError, FloatingPointError)) and text
        else f"{type(error).__name__}: {text}"
    )
