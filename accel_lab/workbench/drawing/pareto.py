"""Pareto: two things one wants at once, where no setting is best in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from accel_lab.workbench.drawing.axis import label_dots, upward
from accel_lab.workbench.drawing.chart import Runs, Styled
from accel_lab.workbench.drawing.record import Summary
from accel_lab.workbench.look import GREY, LIMIT

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Dot(NamedTuple):
    x: float
    y: float
    run: Styled


@dataclass(frozen=True)
class Pareto:
    """One dot a run, a metric across and a metric up, and the front: the runs that no other beats
    in both.

    x_metric, y_metric: what stands across and up · x_label, label: with their units · more_x,
    more_y: whether more is better · x_scale, scale: from the metric's unit to the label's · x_log,
    log: ends of a logarithmic axis, or True for whole decades around the values · summary: how a
    run becomes a dot
    """

    x_metric: str
    y_metric: str
    x_label: str
    label: str
    more_x: bool = False
    more_y: bool = True
    x_scale: float = 1.0
    scale: float = 1.0
    x_log: tuple[float, float] | bool = False
    log: tuple[float, float] | bool = False
    summary: Summary = "median"

    @property
    def title(self) -> str:
        return self.label

    def dots(self, styled: Sequence[Styled]) -> list[Dot]:
        dots = []
        for one in styled:
            x = one.record.typical(self.x_metric, self.summary)
            y = one.record.typical(self.y_metric, self.summary)
            if x is not None and y is not None:
                dots.append(Dot(x * self.x_scale, y * self.scale, one))
        return dots

    def front(self, dots: Sequence[Dot]) -> list[Dot]:
        """The dots that no other one equals or beats in both, from left to right."""
        across, up = (1 if self.more_x else -1), (1 if self.more_y else -1)
        best_first = sorted(dots, key=lambda dot: (-across * dot.x, -up * dot.y))
        front: list[Dot] = []
        for dot in best_first:
            if not front or up * dot.y > up * front[-1].y:
                front.append(dot)
        return sorted(front, key=lambda dot: dot.x)

    def draw(self, axes: Axes, runs: Runs) -> None:
        dots = self.dots(runs.styled())
        front = self.front(dots)
        axes.plot([dot.x for dot in front], [dot.y for dot in front], **LIMIT)
        for dot in dots:
            size = 5 if dot.run.color == GREY else 8
            axes.plot(dot.x, dot.y, "o", color=dot.run.color, markersize=size, zorder=4)
        axes.set_xlabel(self.x_label)
        upward(axes, self.x_log, vertical=False, room=0.06)
        upward(axes, self.log, room=0.06)
        named = [dot for dot in dots if dot.run.color != GREY or dot in front]
        label_dots(axes, [(dot.x, dot.y, dot.run.record.label, dot.run.color) for dot in named])
