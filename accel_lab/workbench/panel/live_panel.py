"""The panel that somebody watches: knobs, buttons and live charts.

Training runs in a daemon thread, so that the cell returns at once and the kernel hears the sliders.
The panel redraws at most five times a second, and never while an update is timed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import ipywidgets as w
from IPython.display import DisplayHandle

from accel_lab.workbench.drawing.chart import MOST_CURVES, Badge, Chart
from accel_lab.workbench.drawing.record import Record
from accel_lab.workbench.knobs import Knobs
from accel_lab.workbench.look import ON_PAPER, badge
from accel_lab.workbench.panel.base import Bench
from accel_lab.workbench.panel.controls import Controls
from accel_lab.workbench.panel.live import live_chart
from accel_lab.workbench.panel.output import show
from accel_lab.workbench.panel.style import STYLE
from accel_lab.workbench.panel.trainer import Run, Trainer

# One line, whatever is in it: the graphs below stay where they are. What does not fit is scrolled.
LEGEND = '<div class="accel-legend" tabindex="0" role="region" aria-label="runs">{}</div>'


class LivePanel(Bench):
    def __init__(
        self,
        run: Run,
        knobs: Knobs,
        charts: Sequence[Chart],
        controls: Sequence[str] | None,
        baselines: Mapping[str, Knobs],
        badge: Badge | None,
        seconds: float,
    ):
        super().__init__(run, knobs, charts, baselines, seconds)
        self.badge = badge
        self._shown: DisplayHandle | None = None
        self._trainer = Trainer(
            run, label=self._label, began=self._began, moved=self._moved, ended=self._ended
        )
        self._controls = Controls(knobs, controls, self._turned)
        self._live_charts = [live_chart(chart, knobs) for chart in self.charts]
        self._build()

    # ---- what the buttons do ----

    @property
    def training(self) -> bool:
        return self._trainer.training

    @property
    def knobs(self) -> Knobs:
        """As they stand."""
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
        super().pin()
        self._redraw_what_stays()

    def _turned(self, knobs: Knobs) -> None:
        if self.training:
            self._say("restarting …")
            self._trainer.train(knobs)

    # ---- called from the training thread ----

    def _began(self, record: Record) -> None:
        self._retire(self.live)
        self.live = record
        self._redraw_what_stays()

    def _moved(self, record: Record) -> None:
        for chart in self._live_charts:
            chart.move(record)
        loss = record.latest("loss")
        self._say(
            f"training · update {record.updates[-1]:,.0f} · "
            f"<b>{record.latest('throughput'):,.0f} samples/s</b>"
            + (f" · loss {loss:.3f}" if loss is not None else "")
        )
        self._judge(record)

    def _ended(self, error: Exception | None) -> None:
        self.error = error
        if error is not None:
            self._say(f'<span class="accel-error" role="alert">{escape(_one_line(error))}</span>')
        elif self.live and self.live.seconds:
            updates, samples = self.live.updates[-1], self.live.samples
            self._say(f"stopped after {updates:,.0f} updates, {samples:,} samples")
        else:
            self._say("stopped")
        self._show_buttons(training=False)
        self._redraw_what_stays()
        if self._shown:
            self._shown.update(self._bundle(), metadata=ON_PAPER, raw=True)

    def _judge(self, record: Record) -> None:
        if self.badge and (value := record.latest(self.badge.metric, "max")) is not None:
            holds = value <= self.badge.tolerance
            said = badge(holds, self.badge.equal if holds else self.badge.differs)
            self._verdict.value = f'<span class="accel-badge">{said}</span> {value:.1e}'

    # ---- what it looks like ----

    def _build(self) -> None:
        self._start, self._stop, self._pin = (
            w.Button(layout={"width": "6.5em"}, **look)
            for look in (
                {
                    "description": "Start",
                    "icon": "play",
                    "button_style": "success",
                    "tooltip": "train with these knobs",
                },
                {"description": "Stop", "icon": "stop", "tooltip": "stop training"},
                {
                    "description": "Pin",
                    "icon": "thumb-tack",
                    "tooltip": "keep this run to compare with",
                },
            )
        )
        self._stop.disabled = True
        self._start.on_click(lambda _: self.start())
        self._stop.on_click(lambda _: self.stop())
        self._pin.on_click(lambda _: self.pin())
        self._status = w.HTML()
        # Room for what comes: nothing below may jump.
        self._legend = w.HTML(layout={"height": "30px"})
        self._verdict = w.HTML(layout={"min_height": "30px"})
        self._say("ready: press Start, then move a knob")
        buttons = [self._start, self._stop, self._pin, self._status]
        row = {"flex_flow": "row wrap"}
        self.box = w.VBox(
            [
                w.HTML(STYLE),
                self._controls.box,
                w.HBox(buttons, layout={**row, "margin": "6px 0"}),
                *([self._verdict] if self.badge else []),
                self._legend,
                w.HBox([chart.view for chart in self._live_charts], layout=row),
            ]
        )
        self.box.add_class("accel-panel")
        self._redraw_what_stays()

    def _redraw_what_stays(self) -> None:
        runs = self.runs
        for chart in self._live_charts:
            chart.keep(runs)
            if self.live and self.live.seconds:
                chart.move(self.live)
        named = [one for one in reversed(runs.styled(MOST_CURVES)) if one.record not in self.ghosts]
        entries = [_legend_entry(one.record.label, one.color, one.style) for one in named]
        if runs.former:
            entries.append(_legend_entry("former runs", *runs.staying()[0][1:3]))
        formulas = [getattr(chart, "formula", "") for chart in self.charts]
        entries += [_legend_entry(text, "currentColor", "--") for text in filter(None, formulas)]
        self._legend.value = LEGEND.format("".join(entries))

    def _say(self, html: str) -> None:
        self._status.value = f'<span class="accel-status" role="status">{html}</span>'

    def _show_buttons(self, training: bool) -> None:
        self._start.disabled, self._stop.disabled = training, not training

    def _ipython_display_(self) -> None:
        self._shown = show(self.box, self._bundle(), ON_PAPER)


def _legend_entry(text: str, color: str, style: str) -> str:
    dash = {"-": "", "--": "6 3", "-.": "7 3 2 3", ":": "2 3"}[style]
    return (
        '<span class="accel-entry"><svg width="26" height="10" aria-hidden="true">'
        f'<line x1="0" y1="5" x2="26" y2="5" stroke="{color}" stroke-width="2.5" '
        f'stroke-dasharray="{dash}"/></svg> {escape(text)}</span>'
    )


def _one_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    if isinstance(error, (ValueError, FloatingPointError)) and text:
        return text
    return f"{type(error).__name__}: {text}"
