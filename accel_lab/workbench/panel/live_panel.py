"""The panel that somebody watches: knobs, buttons and live charts.

Training runs in a daemon thread, so that the cell returns at once and the kernel hears the sliders.
The panel redraws at most five times a second, and never while an update is timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from threading import Event

import ipywidgets as w
from IPython.display import DisplayHandle

from accel_lab.workbench.drawing.chart import MOST_CURVES, Badge, Chart
from accel_lab.workbench.drawing.record import Record
from accel_lab.workbench.knobs import Knobs
from accel_lab.workbench.look import ON_PAPER, badge, counted, number
from accel_lab.workbench.panel import trainer
from accel_lab.workbench.panel.base import Baselines, Bench
from accel_lab.workbench.panel.controls import Controls
from accel_lab.workbench.panel.headline import Headline
from accel_lab.workbench.panel.live import live_chart
from accel_lab.workbench.panel.output import show
from accel_lab.workbench.panel.style import STYLE
from accel_lab.workbench.panel.trainer import Run, Trainer, Watcher, observe

READY = "ready: press Start, then move a knob"
SHORT_NAME = 16  # letters, which are never cut
# One line, whatever is in it: the graphs below stay where they are. A name that is cut shows under
# the mouse; what does not fit even so is scrolled.
LEGEND = '<div class="accel-legend" tabindex="0" role="region" aria-label="runs">{}</div>'


class LivePanel(Bench):
    def __init__(
        self,
        run: Run,
        knobs: Knobs,
        charts: Sequence[Chart],
        controls: Sequence[str] | None,
        baselines: Baselines,
        headline: Headline | None,
        badge: Badge | None,
        seconds: float,
    ):
        super().__init__(run, knobs, charts, baselines, seconds)
        self.headline, self.badge = headline, badge
        self._shown: DisplayHandle | None = None
        self._focus_to_start = False  # as soon as it can be pressed again
        watcher = Watcher(
            self._label, self._before, self._began, self._moved, self._silent, self._ended
        )
        self._trainer = Trainer(run, watcher)
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
            self._begin("starting …")

    def stop(self) -> None:
        self._trainer.stop()

    def wait(self) -> None:
        """Return when training has ended. Interrupting the kernel meanwhile stops it."""
        self._trainer.wait()

    def pin(self) -> str:
        said = super().pin()
        self._noted.value = said
        self._redraw_what_stays()
        return said

    def clear(self) -> None:
        live = self.live if self.training else None
        super().clear()
        self.live = live
        self._noted.value = "cleared ✓"
        if live is None:  # what is said of a run goes with it
            self._headline.value = self._verdict.value = ""
            self._say(READY)
        self._redraw_what_stays()

    def reset(self) -> None:
        """Turn the knobs back to where they stood."""
        self._controls.turn_to(self._base)

    def _turned(self, knobs: Knobs) -> None:
        if self.training or self.error is not None:  # what failed is tried anew
            self._begin("restarting …")

    def _begin(self, said: str) -> None:
        self.error = None
        self._say(said)
        self._headline.value = self._verdict.value = self._noted.value = ""
        self._show_buttons(training=True)
        self._trainer.train(self.knobs)

    # ---- told by the trainer, from its thread ----

    def _before(self, knobs: Knobs, interrupted: Event) -> None:
        """The baselines that go with these knobs."""
        for name, wanted in self._missing_baselines(knobs):
            self._say(f"first {escape(name)}, with these knobs …")
            record = Record(wanted, name)
            try:
                observe(self._run, record, self._seconds, interrupted, self._baseline_moved)
            except Exception as error:  # with these knobs it fails: what is asked for may not
                if not interrupted.is_set():
                    self._noted.value = escape(f"{name}: {_one_line(error)}")
            if interrupted.is_set():
                return
            self._keep_baseline(record)

    def _baseline_moved(self, record: Record) -> None:
        self._trainer.heard()
        self._say(f"first {escape(record.label)}, with these knobs · {_progress(record)}")

    def _began(self, record: Record) -> None:
        self._retire(self.live)
        self.live = record
        self._choose_baselines(record.knobs)
        self._headline.value = self._verdict.value = ""
        self._redraw_what_stays()

    def _moved(self, record: Record) -> None:
        for chart in self._live_charts:
            chart.move(record)
        loss = record.latest("loss")
        self._say(
            f"running · {_progress(record)}" + (f" · loss {loss:.3f}" if loss is not None else "")
        )
        self._judge(record)
        self._compare(record)

    def _silent(self, seconds: float) -> None:
        ranks = getattr(self.knobs, "ranks", 1)
        why = "an update takes long" + ", or ranks wait for each other in vain" * (ranks > 1)
        self._say(f"no update for {seconds:.0f} s: {why}. Stop ends it")

    def _ended(self, error: Exception | None, by_itself: bool) -> None:
        self.error = error
        if error is not None:
            self._verdict.value = ""  # of the updates before: a green badge would belie the line
            self._say(f'<span class="accel-error" role="alert">{escape(_one_line(error))}</span>')
        elif self.live and self.live.seconds:
            updates, samples = self.live.updates[-1], self.live.samples
            how = "ended by itself" if by_itself else "stopped"
            said = f"{how} after {counted(updates, 'update')}, {counted(samples, 'sample')}"
            if self.live.seconds[-1] >= trainer.MOST_SECONDS:
                said += f": no run takes more than {trainer.MOST_SECONDS:g} s"
            self._say(said)
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
            self._verdict.value = f'<span class="accel-badge">{said}</span> {number(value)}'

    def _compare(self, record: Record) -> None:
        others = [one for one in self.baselines.values() if one.knobs != record.knobs]
        if not self.headline or not others:
            return
        said, beside = self.headline.say(record, others[0])
        if said:
            self._headline.value = (
                f'<div class="accel-headline" title="{escape(beside)}"><span>{escape(said)}</span> '
                f"<small>{escape(beside)}</small></div>"
            )

    # ---- what it looks like ----

    def _build(self) -> None:
        self._start = _button("Start", "play", "train with these knobs", button_style="success")
        self._stop = _button("Stop", "stop", "stop training", disabled=True)
        self._pin = _button("Pin", "thumb-tack", "keep this run to compare with, or no longer")
        self._clear = _button("Clear", "eraser", "keep the baselines alone")
        self._reset = _button("Reset", "undo", "turn the knobs back to where they stood")
        self._start.on_click(lambda _: self._started_by_hand())
        self._stop.on_click(lambda _: self._stopped_by_hand())
        self._pin.on_click(lambda _: self.pin())
        self._clear.on_click(lambda _: self.clear())
        self._reset.on_click(lambda _: self.reset())
        self._status, self._noted = w.HTML(), w.HTML()
        # Room for what comes: nothing below may jump.
        self._headline = w.HTML(layout={"height": "34px"})
        self._legend = w.HTML(layout={"height": "30px"})
        self._verdict = w.HTML(layout={"min_height": "30px"})
        self._say(READY)
        buttons = [self._start, self._stop, self._pin, self._clear, self._reset, self._noted]
        row = {"flex_flow": "row wrap"}
        compares = self.headline is not None and bool(self.baselines)
        self.box = w.VBox(
            [
                w.HTML(STYLE),
                self._controls.box,
                w.HBox(buttons, layout={**row, "margin": "6px 0 0"}),
                self._status,
                *([self._headline] if compares else []),
                *([self._verdict] if self.badge else []),
                self._legend,
                w.HBox([chart.view for chart in self._live_charts], layout=row),
            ]
        )
        self.box.add_class("accel-panel").add_class("accel-controls")
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
        predicting = [chart for chart in self.charts if getattr(chart, "predicted", None)]
        formulas = dict.fromkeys(chart.formula for chart in predicting if chart.formula)
        entries += [_legend_entry(text, "currentColor", "--") for text in formulas]
        self._legend.value = LEGEND.format("".join(entries))

    def _say(self, html: str) -> None:
        self._status.value = f'<span class="accel-status" role="status">{html}</span>'

    def _show_buttons(self, training: bool) -> None:
        self._start.disabled, self._stop.disabled = training, not training
        if not training and self._focus_to_start:
            self._focus_to_start = False
            self._start.focus()

    # A button that is disabled loses the keyboard's focus: it goes to the other one of the two.

    def _started_by_hand(self) -> None:
        self.start()
        self._stop.focus()

    def _stopped_by_hand(self) -> None:
        self._focus_to_start = True
        self.stop()

    def _ipython_display_(self) -> None:
        self._shown = show(self.box, self._bundle(), ON_PAPER)


def _button(text: str, icon: str, tooltip: str, **more: object) -> w.Button:
    look = {"description": text, "icon": icon, "tooltip": tooltip, **more}
    return w.Button(layout={"width": "6em"}, **look)


def _progress(record: Record) -> str:
    speed = record.latest("throughput")  # None until a coarse clock has seen time pass
    said = f" · <b>{speed:,.0f} samples/s</b>" if speed is not None else ""
    return f"update {record.updates[-1]:,.0f}{said}"


def _legend_entry(text: str, color: str, style: str) -> str:
    dash = {"-": "", "--": "6 3", "-.": "7 3 2 3", ":": "2 3"}[style]
    room = "flex: none" if len(text) <= SHORT_NAME else "min-width: 11em"
    return (
        f'<span class="accel-entry" title="{escape(text)}" style="{room}">'
        '<svg width="26" height="10" aria-hidden="true">'
        f'<line x1="0" y1="5" x2="26" y2="5" stroke="{color}" stroke-width="2.5" '
        f'stroke-dasharray="{dash}"/></svg> {escape(text)}</span>'
    )


def _one_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    if isinstance(error, (ValueError, FloatingPointError)) and text:
        return text
    return f"{type(error).__name__}: {text}"
