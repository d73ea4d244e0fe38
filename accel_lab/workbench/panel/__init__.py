"""The panel: knobs, live charts and the still picture of one experiment. The only part of the house
that draws widgets.
"""

from __future__ import annotations

from collections.abc import Sequence

from accel_lab.workbench.drawing.chart import Badge, Chart
from accel_lab.workbench.effort import effort
from accel_lab.workbench.knobs import Knobs
from accel_lab.workbench.panel.base import Baselines
from accel_lab.workbench.panel.headline import SPEED, Headline
from accel_lab.workbench.panel.live_panel import LivePanel
from accel_lab.workbench.panel.missing_line import MissingLine
from accel_lab.workbench.panel.prediction import Prediction
from accel_lab.workbench.panel.sliders import Sliders
from accel_lab.workbench.panel.still_panel import StillPanel
from accel_lab.workbench.panel.trainer import Run
from accel_lab.workbench.watched import someone_watches

__all__ = ["Headline", "LivePanel", "MissingLine", "Panel", "Prediction", "Sliders", "StillPanel"]


def Panel(
    run: Run,
    knobs: Knobs,
    charts: Sequence[Chart],
    *,
    controls: Sequence[str] | None = None,
    baselines: Baselines | None = None,
    headline: Headline | None = SPEED,
    tour: Sequence[Knobs] = (),
    badge: Badge | None = None,
    seconds: float = 2.0,
) -> LivePanel | StillPanel:
    """Show an experiment: ``run(knobs)`` under its knobs, drawn as ``charts``. Put it last in a
    cell.

    controls: names of the knobs to show, by default those declared for the panel · baselines: name
    → the knobs that make it one; all others follow the panel's. Each is run for ``seconds`` when
    the panel is made, and again when a knob that it follows is turned · headline: how the run at
    hand is held against the first baseline · tour: what to run, for as long, where nobody watches ·
    badge: a verdict on the latest window

    Both kinds of panel have ``knobs``, ``start``, ``stop``, ``wait``, ``pin``, ``clear`` and
    ``reset``, which do what the buttons do, and ``training``, ``live``, ``baselines``, ``pinned``,
    ``ghosts`` and ``error``.
    """
    seconds *= effort()
    if someone_watches():
        return LivePanel(run, knobs, charts, controls, baselines or {}, headline, badge, seconds)
    return StillPanel(run, knobs, charts, baselines or {}, tour, seconds)
