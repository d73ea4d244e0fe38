"""The live Timeline: one mark for each kind of span, its bars separated by gaps."""

from __future__ import annotations

from time import perf_counter

import bqplot as bq
import ipywidgets as w
import numpy as np

from accel_lab.workbench.drawing.chart import Runs
from accel_lab.workbench.drawing.record import Record
from accel_lab.workbench.drawing.timeline import Timeline, kinds_of
from accel_lab.workbench.knobs import Knobs
from accel_lab.workbench.look import colors_of
from accel_lab.workbench.panel.live.frame import MARGIN, FittedAxis, Frame, floats, mark, swatches

# A timeline is many marks: redrawn more rarely, it takes nothing from the training.
SECONDS_A_TIMELINE = 1.0
HEIGHT = 170  # pixels, of which the lanes have what the margins leave
BAR, THICKEST = 0.7, 30  # a bar's share of its lane, and pixels at most
BESIDE = (0.42, 0.18)  # the same where a thin bar below goes on beside it


class LiveTimeline:
    def __init__(self, chart: Timeline, knobs: Knobs):
        self._across = FittedAxis(chart.label, filled=0.6)
        self._ranks = bq.LinearScale(min=-0.6, max=0.6, reverse=True)
        self._lanes = bq.Axis(scale=self._ranks, orientation="vertical", grid_lines="none")
        self._scales = {"x": self._across.scale, "y": self._ranks}
        self._names = w.HTML(layout={"min_height": "28px"})
        axes = [self._across.axis, self._lanes]
        self._frame = Frame(chart.title, axes, height=f"{HEIGHT}px", above=[self._names])
        self.view = self._frame.view
        self._marks: dict[str, bq.Lines] = {}
        self._lanes_shown = 0
        self._due = 0.0
        self._show_ranks(1)

    def keep(self, runs: Runs) -> None:
        self._due = 0.0
        if runs.shown is None or not runs.shown.spans:  # a run begins: the last one's go with it
            for line in self._marks.values():
                with line.hold_sync():
                    line.x = line.y = floats([])
        elif not self._marks:
            self.move(runs.shown)

    def move(self, record: Record) -> None:
        if perf_counter() < self._due or not record.spans:
            return
        self._due = perf_counter() + SECONDS_A_TIMELINE
        self._show_ranks(max(span.rank for span in record.spans) + 1)
        end = max(span.end for span in record.spans)
        self._across.fit([end * 1e3])
        kinds = kinds_of(record.spans)
        self._show_kinds([*self._marks, *kinds])
        thickness = self._thickness(any(kinds.values()))
        bars: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in self._marks}
        seam = 0.003 * end  # or neighbours of one kind would look like one
        for span in record.spans:
            until = max(span.end - seam, (span.start + span.end) / 2)
            lane = span.rank + (0.32 if kinds[span.kind] else 0.0)
            bars[span.kind].append((span.start * 1e3, until * 1e3, lane))
        for kind, times in bars.items():
            line = self._marks[kind]
            line.stroke_width = thickness[kinds.get(kind, False)]
            with line.hold_sync():
                line.x = floats([x for start, until, _ in times for x in (start, start, until)])
                # The gap first: a line must not end in one.
                line.y = floats([y for _, _, lane in times for y in (np.nan, lane, lane)])

    def _thickness(self, beside: bool) -> tuple[float, float]:
        """Pixels of a bar, and of a thin one beside it. bqplot leaves half a bar's room at either
        end of the lanes.
        """
        shares = BESIDE if beside else (BAR, BAR)
        room = HEIGHT - MARGIN["top"] - MARGIN["bottom"]
        lane = room / (self._lanes_shown + 0.2 + shares[0])
        return min(THICKEST, shares[0] * lane), min(THICKEST, shares[1] * lane)

    def _show_ranks(self, ranks: int) -> None:
        if self._lanes_shown != ranks:
            self._lanes_shown = ranks
            self._ranks.max = ranks - 0.4
            mark(self._lanes, {float(rank): f"rank {rank}" for rank in range(ranks)})

    def _show_kinds(self, kinds: list[str]) -> None:
        colors = colors_of(kinds)
        if set(colors) == set(self._marks):
            return
        for kind in dict.fromkeys(kinds):
            if kind not in self._marks:
                self._marks[kind] = bq.Lines(x=[], y=[], scales=self._scales)
            self._marks[kind].colors = [colors[kind]]
        self._frame.show(self._marks.values())
        self._names.value = swatches({kind: colors[kind] for kind in self._marks})
