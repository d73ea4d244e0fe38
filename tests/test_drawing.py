"""Records and charts without a front end: every kind of chart draws any record, still and live."""

import random
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from math import isnan, nan
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
import pytest

from accel_lab.workbench import look
from accel_lab.workbench.drawing import axis, figure, motion
from accel_lab.workbench.drawing.budget import Budget
from accel_lab.workbench.drawing.chart import Runs, dial_of
from accel_lab.workbench.drawing.curve import Curve
from accel_lab.workbench.drawing.heat_map import HeatMap
from accel_lab.workbench.drawing.histogram import Histogram
from accel_lab.workbench.drawing.pareto import Pareto
from accel_lab.workbench.drawing.record import Record
from accel_lab.workbench.drawing.sweep import Sweep
from accel_lab.workbench.drawing.timeline import Timeline, draw_spans
from accel_lab.workbench.knobs import KnobError, Knobs, dial
from accel_lab.workbench.measure.comparison import Comparison
from accel_lab.workbench.measure.roofline import Roofline
from accel_lab.workbench.panel import live as live_charts
from accel_lab.workbench.panel.live import live_chart
from accel_lab.workbench.panel.live.frame import FittedAxis, share
from accel_lab.workbench.step import Span, Step


class Every(Knobs):
    parts: int = dial(4, ge=1, le=64, log=True, description="a count that doubles")
    ranks: int = dial(2, ge=1, le=4, description="a small count")
    rate: float = dial(0.1, ge=1e-4, le=1.0, log=True, unit="1/s", description="a ratio")
    share: float = dial(0.5, ge=0, le=1, description="a share")
    precision: Literal["float32", "bfloat16"] = dial("float32", description="a choice")
    compiled: bool = dial(False, description="a switch")
    free: float = dial(3.0, description="without bounds")


KNOBS = tuple(dial.name for dial in Every.dials())
CHARTS = [
    Curve("throughput", "samples/s"),
    Curve("accuracy", "accuracy, %", scale=100, over="updates", ends=(0, 100)),
    Curve("loss", "loss", over="updates", log=True, limit=(2.3, "chance")),
    Curve("gap", "gap, %", scale=100),
    *(Sweep(knob, "loss", "loss", predicted=lambda _: 1.0, formula="one") for knob in KNOBS),
    Sweep("precision", "throughput", "samples/s", log=(1, 1e6)),
    Timeline(),
    Budget({"weights": "weights", "late": "activations"}, "MiB", limit=(9.0, "memory")),
    Budget({"weights": "weights"}, "MiB", predicted=lambda knobs: 8.0 / knobs.parts),
    HeatMap("ranks", "precision", "throughput", "samples/s"),
    HeatMap("rate", "compiled", "loss", "loss"),
    Pareto("weights", "accuracy", "MiB", "accuracy, %", scale=100, x_log=True),
    Histogram("seconds", "milliseconds a step", scale=1e3),
    Histogram("bin:", "size", powers=True, marks={2.0**-14: "the end"}),
]


def steps(knobs, updates):
    luck = random.Random(0)
    for index in range(updates):
        metrics = {"loss": 2.0 / (1 + index), "weights": 8 / knobs.parts, "gap": -0.01}
        metrics |= {f"bin:{place}": 1.0 for place in range(-16, -8)}
        if index % 25 == 24:
            metrics["accuracy"] = 0.5
        if index >= 30:
            metrics["late"] = 3.0
        spans = (Span(0, "forward 0", 0.0, 0.001), Span(1, "backward 0", 0.001, 0.002))
        yield Step(index, 8, 0.004 * 2 ** luck.gauss(0, 1), metrics, spans)


def record(knobs, label="run", updates=120, a_window=10):
    made = Record(knobs, label)
    for step in steps(knobs, updates):
        made.add(step)
        if step.index % a_window == 0:
            made.close_window(0.01 * (step.index + 1))
    made.close_window(0.01 * updates)
    return made


@pytest.fixture(scope="module")
def runs():
    former = [record(Every(ranks=ranks, rate=0.01 * ranks), "", 60) for ranks in (1, 3, 4)]
    pinned = [record(Every(), "as it was"), record(Every(precision="bfloat16"), "bfloat16", 3)]
    return Runs(Every(), pinned, former, record(Every(parts=16, compiled=True), "now"))


# ---- the record ----


def test_a_metric_may_come_late_or_seldom():
    made = record(Every())
    assert {len(values) for values in made.series.values()} == {len(made.seconds)}
    assert isnan(made.series["late"][0])
    assert made.latest("late") == made.typical("late") == 3.0
    updates, accuracy = made.points("accuracy")
    assert accuracy.tolist() == [0.5] * 4
    assert updates.tolist() == [25.0, 50.0, 75.0, 100.0]  # those that measured it
    assert made.latest("unheard of") is made.typical("unheard of") is None


def test_a_metric_that_comes_after_the_record_was_thinned():
    made = Record(Every(), "run")
    for index in range(1700):
        late = {"late": float(index)} if index >= 1000 else {}
        seldom = {"seldom": 7.0} if index % 100 == 0 else {"seldom": nan}
        made.add(Step(index, 1, 1.0, {"loss": float(index), **seldom, **late}))
        made.close_window(index + 1.0)
    assert len(made.seconds) <= Record.MOST_WINDOWS
    assert {len(values) for values in made.series.values()} == {len(made.seconds)}
    assert {v for v in made.series["seldom"] if not isnan(v)} == {7.0}
    weighted = np.nansum(np.multiply(made.series["late"], made._measured["late"]))
    assert weighted / 700 == pytest.approx(np.mean(range(1000, 1700)))
    assert max(made.largest["loss"]) == 1699.0
    assert sum(made.bins["loss"].values()) == 1700


def test_a_window_knows_the_mean_the_median_and_the_largest():
    made = Record(Every(), "run")
    for index, ratio in enumerate((1.0, 1.0, 1.0, 1.0, 100.0)):
        made.add(Step(index, 1, 1.0, {"ratio": ratio}))
    made.close_window(5.0)
    assert [made.latest("ratio", way) for way in ("mean", "median", "max")] == [20.8, 1.0, 100.0]
    drawn = Curve("ratio", "×", summary="median").points(made)[1]
    assert drawn.tolist() == [1.0]


def test_the_same_loss_lies_on_the_same_curve_however_many_updates_a_window_has():
    """Also where windows were joined: the mean stands at its updates' mean."""
    for a_window, most in ((1, 400), (7, 400), (10, 6), (1, 4)):
        made = Record(Every(), "run")
        made.MOST_WINDOWS = most
        for index in range(100):
            made.add(Step(index, 1, 1.0, {"loss": 2.0 * (index + 1)}))
            if index % a_window == a_window - 1:
                made.close_window(float(index))
        made.close_window(100.0)
        across, up = made.points("loss")
        assert len(up) > 1
        assert up == pytest.approx(2.0 * across)
        assert made.updates[-1] == 100.0  # how many were done, not where the mean is


def test_the_spans_kept_are_those_of_a_typical_update():
    made = Record(Every(), "run")
    for index, seconds in enumerate((0.1, 0.2, 0.2, 0.2, 9.0)):
        made.add(Step(index, 1, seconds, {}, (Span(0, "forward", 0.0, seconds),)))
    made.close_window(1.0)
    assert made.spans[0].end == 0.2
    made.add(Step(5, 1, 8.0, {}, (Span(0, "forward", 0.0, 8.0),)))
    made.close_window(2.0)  # a window of one update, which took long
    assert made.spans[0].end == 0.2


@pytest.mark.parametrize("length", [0, 1, 3, 9, 10, 40])
def test_a_running_median_has_a_value_for_each_and_bears_an_outlier(length):
    values = np.arange(float(length))
    slow = [np.median(values[max(0, i - 4) : i + 5]) for i in range(length)]
    assert axis.running_median(values).tolist() == slow
    if length == 40:
        values[20] = 1e9
        assert axis.running_median(values).max() < 40


# ---- knobs as axes ----


def test_the_values_of_a_knob():
    values = {name: dial_of(Every(), name).values(10) for name in KNOBS}
    assert values["precision"] == ["float32", "bfloat16"]
    assert values["compiled"] == [False, True]
    assert values["ranks"] == [1, 2, 3, 4]
    assert values["free"] == [3.0]
    assert (values["rate"][0], values["rate"][-1]) == (1e-4, 1.0)
    ratios = [b / a for a, b in pairwise(values["rate"])]
    assert ratios == pytest.approx([ratios[0]] * 9)
    assert all(isinstance(value, int) for value in values["parts"])
    assert (values["parts"][0], values["parts"][-1]) == (1, 64)


def test_the_axis_of_a_knob_has_whole_ticks_for_whole_numbers_and_a_place_for_each_choice():
    axes = {name: axis.KnobAxis.of(dial_of(Every(), name)) for name in KNOBS}
    assert list(axes["ranks"].ticks.values()) == ["1", "2", "3", "4"]
    assert list(axes["parts"].ticks.values()) == ["1", "2", "4", "8", "16", "32", "64"]
    assert axes["precision"].ticks == {0.0: "float32", 1.0: "bfloat16"}
    assert axes["compiled"].ticks == {0.0: "off", 1.0: "on"}
    assert axes["precision"].place("bfloat16") == axes["compiled"].place(True) == 1.0
    assert axes["rate"].log
    assert (axes["rate"].label, axes["ranks"].label) == ("rate (1/s)", "ranks")
    assert axes["free"].low is None


def test_a_prediction_over_choices_is_a_dash_at_each():
    class Picky(Every):
        def turned(self, **changes):
            if changes.get("precision") == "bfloat16":
                raise KnobError("precision", "not here")
            return super().turned(**changes)

    sweep = Sweep("precision", "loss", "loss", predicted=lambda k: len(k.precision))
    xs, ys = sweep.predicted_line(Every())
    assert [y for y in ys if not isnan(y)] == [7, 7, 8, 8]
    assert xs[1] < 0 < xs[2] < xs[4] < 1 < xs[5]
    assert sweep.prediction(Picky()) == ([0.0], [7.0])


@pytest.mark.parametrize(
    ("low", "high", "whole", "ends"),
    [
        (0, 3, True, (0, 3)),
        (0, 1, True, (0, 1)),
        (-0.3, 2, False, (-0.5, 2)),
        (0, 0, False, (0, 1)),
        (0, 7e6, False, (0, 8e6)),
    ],
)
def test_an_axis_ends_at_round_numbers_and_holds_zero(low, high, whole, ends):
    found = axis.round_ends(low, high, whole)
    assert (found.low, found.high) == pytest.approx(ends)
    assert 0.0 in found.ticks
    if whole:
        assert all(tick == int(tick) for tick in found.ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1250000, "1,250,000"),
        (0.25, "0.25"),
        (-2.5, "−2.5"),
        (1e-8, "10⁻⁸"),
        (3.2e9, "3.2·10⁹"),
        (0.30000000000000004, "0.3"),
        (89_123, "89,123"),
    ],
)
def test_a_number_for_people(value, text):
    assert look.number(value) == text


def test_numbers_at_the_side_are_short_and_things_are_counted_in_words():
    axis_up, axis_across = FittedAxis(up=True), FittedAxis()
    for one in (axis_up, axis_across):
        one.fit([3e6])
    assert "10⁶" in axis_up.axis.tick_labels["1000000"]
    assert axis_across.axis.tick_labels["2000000"] == "2,000,000"
    assert (look.counted(1, "point"), look.counted(2, "point")) == ("1 point", "2 points")


# ---- every kind, still and live ----


def kinds():
    """The charts that are declared, by the names of their files on both sides."""
    here, there = (
        {path.stem for path in Path(import_module(name).__file__).parent.glob("*.py")}
        for name in ("accel_lab.workbench.drawing.chart", live_charts.__name__)
    )
    return here & there


def test_every_kind_is_drawn_below():
    assert {type(chart).__module__.rpartition(".")[2] for chart in CHARTS} == kinds() - {"__init__"}


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: f"{type(chart).__name__}")
def test_a_chart_draws_the_same_runs_still_and_live(chart, runs):
    for shown in (runs, Runs(Every()), Runs(Every(), runs.pinned), Runs(Every(), (), runs.former)):
        picture = figure.draw([chart], shown)
        assert figure.png(picture).startswith(b"\x89PNG")
        live = live_chart(chart, Every())
        live.keep(shown)
        live.move(runs.live)
        live.keep(runs)
        live.move(runs.live)
        assert live.view.children
    drawn = [mark for mark in live._frame.graph.marks if getattr(mark, "x", None) is not None]
    assert any(len(np.atleast_1d(mark.x)) for mark in drawn)


def test_a_chart_that_is_not_yet_measured_draws_nothing_and_later_it_all():
    chart = Curve("late", "late", over="updates")
    live, young, old = live_chart(chart, Every()), record(Every(), updates=20), record(Every())
    live.keep(Runs(Every(), live=young))
    live.move(young)
    assert live._frame.graph.marks == []
    live.move(old)
    line = live._front
    (still,) = figure.draw([chart], Runs(Every(), live=old)).axes[0].lines
    assert line.x.tolist() == still.get_xdata().tolist() == old.points("late")[0].tolist()
    assert np.isfinite(line.y).all()


def test_names_of_curves_stay_apart_when_the_axis_becomes_longer():
    """Nearly equal runs, then one that dwarfs them: what was apart would lie on one another."""

    def made(loss, name):
        run = Record(Every(), name)
        for index in range(40):
            run.add(Step(index, 1, 1.0, {"loss": loss}))
            run.close_window(index + 1.0)
        return run

    live = live_chart(Curve("loss", "loss", over="updates", limit=(1.02, "chance")), Every())
    live.keep(Runs(Every(), former=[made(1.0 + 0.05 * number, str(number)) for number in range(3)]))
    for loss in (1.0, 20.0):
        live.move(made(loss, "now"))
        heights = sorted(share(live._up.scale, y) for y in live._names["end"].y)
        assert len(heights) == 4
        assert min(np.diff(heights)) > 0.069


def test_another_kind_is_two_more_files(monkeypatch):
    """Found by the name of the module that declares it, nothing else."""
    from types import SimpleNamespace

    @dataclass(frozen=True)
    class Gauge:
        pass

    Gauge.__module__ = "accel_lab.workbench.drawing.gauge"
    wanted = {"accel_lab.workbench.panel.live.gauge": SimpleNamespace(LiveGauge=lambda *made: made)}
    monkeypatch.setattr(live_charts, "import_module", wanted.__getitem__)
    chart, knobs = Gauge(), Every()
    assert live_chart(chart, knobs) == (chart, knobs)


def test_the_latest_run_fills_its_cell(runs):
    cells = HeatMap("ranks", "precision", "weights", "MiB").cells(runs)
    assert (cells.across, cells.up) == ([1, 2, 3, 4], ["float32", "bfloat16"])
    assert cells.values[0].tolist() == [2.0, 0.5, 2.0, 2.0]  # at ranks 2 the run at hand
    assert np.isnan(cells.values[1]).tolist() == [True, False, True, True]


def test_the_front_is_what_no_other_beats_in_both(runs):
    chart = Pareto("weights", "loss", "MiB", "loss")
    dots = chart.dots(runs.styled())
    points = [dots[0]._replace(x=x, y=y) for x, y in ((1, 1), (2, 3), (3, 2), (4, 5), (1, 0.5))]
    assert [(dot.x, dot.y) for dot in chart.front(points)] == [(1, 1), (2, 3), (4, 5)]
    less = Pareto("weights", "loss", "MiB", "loss", more_x=True, more_y=False)
    assert [(dot.x, dot.y) for dot in less.front(points)] == [(1, 0.5), (3, 2), (4, 5)]


def test_a_budget_stacks_what_was_measured():
    chart = Budget({"weights": "weights", "nothing": "nothing", "late": "rest"}, "KiB", scale=2.0)
    bar = chart.bar(record(Every()))
    assert bar.parts == [("weights", 0.0, 4.0), ("rest", 4.0, 10.0)]
    assert chart.bar(Record(Every(), "young")).parts == []
    assert [chart.inside("rest", 4.0, 10.0, width) for width in (0.5, 2.0, 9.0)] == [
        "rest 6",
        "6",
        "",
    ]


def test_a_histogram_counts_every_step():
    made = record(Every())
    chart = Histogram("seconds", "ms", scale=1e3, octave=1)
    bins = chart.bins(made)
    assert sum(bins.values()) == pytest.approx(100)
    assert -8 in bins  # 4 ms lies between 2⁻⁸ and 2⁻⁷ s
    ticks = chart.ticks(min(bins), max(bins) + 1)
    assert "4" in ticks.values()
    (at,) = (place for place, text in ticks.items() if text == "4")
    assert at == pytest.approx(chart.place(4.0))
    assert set(Histogram("bin:", "size").bins(made)) == set(range(-16, -8))
    with pytest.raises(ValueError, match="octave"):
        Histogram("seconds", "ms", octave=3)


# ---- colours ----


def test_a_kind_of_work_has_one_colour_live_and_still_and_no_run_has_it():
    spans = (*record(Every()).spans, Span(0, "bucket 0", 0.0, 1.0), Span(0, "wait", 0.0, 1.0))
    _, (one,) = figure.axes()
    draw_spans(one, spans)
    still = {bars.get_label(): look_of(bars) for bars in one.containers}
    live = live_chart(Timeline(), Every())
    live.move(Record(Every(), "", spans=spans[::-1]))
    assert {kind: line.colors[0].lower() for kind, line in live._marks.items()} == still
    assert len(set(still.values())) == 4
    runs = {look.BLUE, look.GREY, *(color for color, _ in look.STYLES)}
    assert not runs & {*look.MEANINGS, *look.OTHER_COLORS}


def look_of(bars):
    from matplotlib.colors import to_hex

    return to_hex(bars.patches[0].get_facecolor())


def test_colours_depend_on_the_names_alone():
    names = ["forward", "chunk A", "chunk B", "backward", "all-reduce"]
    assert look.colors_of(names) == look.colors_of(names[::-1])
    assert len(set(look.colors_of(names).values())) == 5
    assert look.colors_of(["backward"])["backward"] == look.colors_of(names)["backward"]


# ---- what chapters draw ----


def test_results_over_seeds_are_drawn_and_told():
    results = {1: [1.6, 1.8, 2.1, 1.7, 1.8], 2: [3.0, 3.0, 3.0]}
    _, (one,) = figure.axes()
    figure.draw_over_seeds(one, results, label="ours")
    assert one.lines[0].get_ydata().tolist() == pytest.approx([1.8, 3.0])
    assert figure.tell_over_seeds(results[1], "×") == "1.8 × (1.6 to 2.1 over 5 seeds)"
    assert figure.tell_over_seeds([0.5]) == "0.5 (1 seed)"
    figure.draw_over_seeds(figure.axes()[1][0], {"sgd": [1.0, 2.0], "adam": [3.0]})


def test_the_pictures_that_chapters_share():
    holds = [[1, 2], [2, 1]]
    picture = figure.draw_grid({"at first": holds, "turn 1": holds}, arrived={"turn 1": [(0, 1)]})
    assert [one.get_title() for one in picture.axes] == ["at first", "turn 1"]
    assert len(picture.axes[1].patches) == 1
    spans = record(Every()).spans
    picture = figure.draw_timelines({"one": spans, "two": [Span(0, "forward", 0.0, 0.004)]})
    assert {one.get_xlim() for one in picture.axes} == {(0.0, 4.0)}
    assert picture.axes[1].get_legend() is None  # its kinds are named above
    _, (one,) = figure.axes()
    ratio = Comparison.of([(1.0, 2.0 + place / 10) for place in range(9)])
    figure.draw_ratios(one, {1: ratio, 2: ratio}, "time, ×")
    figure.draw_ratios(one, {1: ratio}, color=look.GREEN, style="s--", label="the other")
    assert sum(line.get_label() == "equally fast" for line in one.lines) == 1
    figure.draw_guess(one, {1: 2.0})
    _, (one,) = figure.axes()
    figure.draw_lines(one, {"a": {1: 1.0, 2: 2.0}}, limit=(3.0, "most"), dashed={"f": {1: 2.0}})
    assert [text.get_text() for text in one.texts] == ["most", "a", "f"]
    figure.draw_bars(figure.axes()[1][0], {"a": 1.0, "b": 2.0}, unit="×", limit=(1.0, "equal"))


def test_an_edge_of_a_line_is_dashed_in_its_colour():
    _, (one,) = figure.axes()
    figure.draw_lines(one, {"a": {1: 1.0, 2: 2.0}, "b": {1: 2.0, 2: 3.0}}, edges={"b": 1.5})
    upright = [line for line in one.lines if list(line.get_xdata()) == [1.5, 1.5]]
    assert [line.get_color() for line in upright] == [one.lines[1].get_color()]


def test_names_stand_beside_ends_also_before_the_axes_had_their_scale():
    _, (one,) = figure.axes()
    one.set(yscale="log")
    figure.draw_lines(one, {"high": {1: 100.0, 2: 100.0}, "low": {1: 1.0, 2: 0.1}})
    high, low = (text.xyann[1] for text in one.texts)
    assert high > 0.9
    assert low < 0.1


def test_distributions_are_outlines_on_one_logarithmic_axis():
    _, (one,) = figure.axes()
    figure.draw_histograms(one, {"first": [0.1, 1.0], "second": [1.0, 1.0]}, (1e-3, 1e3))
    assert (one.get_xscale(), one.get_xlim()) == ("log", (1e-3, 1e3))
    faint, dark = (patch.get_alpha() for patch in one.patches)
    assert faint < dark == 1


def test_operations_stand_below_the_roof_with_their_batch_sizes():
    limits = Roofline(((2**18, 4e9), (2**27, 1e9)), flops_per_second=8e9, call_seconds=1e-6)
    _, (one,) = figure.axes()
    figure.draw_roofline(one, limits, {"matmul": {1: (0.5, 4e8), 16: (8.0, 8e9)}})
    assert [line.get_label() for line in one.lines] == [
        "roof, moving 0.25 MiB",
        "roof, moving 128 MiB",
        "matmul",
    ]
    assert max(one.lines[1].get_ydata()) == 8
    assert list(one.lines[2].get_ydata()) == [0.4, 8]
    assert [text.get_text() for text in one.texts] == ["1", "16"]


# ---- one moment of what goes on ----


def places(picture):
    """Where its axes lie, and from where to where they go."""
    return [(one.get_position().bounds, one.get_xlim(), one.get_ylim()) for one in picture.axes]


def test_a_turn_shows_what_has_just_arrived_and_from_whom():
    at_first = [(None, [1, 1])] * 2
    turns = [at_first, [(1, [1, 2]), (0, [2, 1])], [(0, [2, 2]), (1, [2, 2])]]
    before, after, last = (
        motion.draw_turn(turns, turn, f"turn {turn}", columns="AB") for turn in range(3)
    )
    framed = [[p.get_linewidth() > 1 for p in one.axes[0].patches] for one in (before, after)]
    assert framed == [[False] * 4, [False, True, True, False]]
    said = [text.get_text() for text in after.axes[0].texts]
    assert "from rank 1" in said
    assert "to rank 0" in said
    assert places(before) == places(after) == places(last)


def test_lanes_are_played_up_to_a_moment_and_idle_time_is_shaded():
    spans = [Span(0, "forward 0", 0.0, 0.01), Span(1, "forward 0", 0.01, 0.02)]
    options = {"longest": 40, "lanes": 3, "label": "time"}
    pictures = {
        until: motion.draw_lanes(spans, "", until=until, notes=["a", "b"], **options)
        for until in (0, 0.25, 1)
    }
    lasts = {until: bars(one) for until, one in pictures.items()}
    assert lasts == {0: [], 0.25: [5.0], 1: [10.0, 10.0]}
    assert {str(places(one)) for one in pictures.values()} == {str(places(pictures[1]))}
    legends = [one.axes[0].get_legend().get_texts() for one in pictures.values()]
    assert {len(texts) for texts in legends} == {2}  # the kinds, and what is idle


def bars(picture):
    return [pytest.approx(one.get_width()) for one in picture.axes[0].patches]


def test_readings_and_refusals_stay_in_their_places():
    ways = {"in blocks": [("ours", 1.0), ("the peer", 2.0)]}
    small, large = (
        motion.draw_two_ways(ways, {"in blocks": (ratio, None)}, 1.0, seconds=(0, 3), ratios=(0, 2))
        for ratio in (0.5, 1.5)
    )
    assert places(small) == places(large)
    comparison = Comparison.of([(1 + place / 100, 1.0) for place in range(9)])
    one, other = (
        motion.draw_refusals(comparison, lambda _: 0.5, candidate=candidate, ends=(0.9, 1.2))
        for candidate in (0.95, 1.045)
    )
    assert one.axes[0].get_title("left").startswith("9 of 9 pairs lie above 0.950: 50.0 %")
    assert other.axes[0].get_title("left").startswith("4 of 9 pairs")
    assert places(one) == places(other)


# ---- whatever matplotlib is set to ----


def the_pictures():
    """One of a panel, and one that a cell draws on, as files."""
    picture, (left, right) = figure.axes(columns=2)
    left.plot([1, 2], [3, 4], label="a line")
    left.legend()
    left.set(title="how it went", xlabel="a", ylabel="b")
    figure.draw_lines(right, {"one": {1: 2, 3: 4}, "other": {1: 1, 3: 2}}, limit=(2, "most"))
    timelines = figure.draw_timelines({"a title": [Span(0, "forward", 0.0, 1.0)]})
    made = [picture, timelines, figure.draw([Curve("loss", "loss")], Runs(Every()))]
    return [figure.png(one) for one in made]


@pytest.mark.parametrize(
    "set_to",
    [
        {"text.usetex": True},  # a RuntimeError where there is no LaTeX
        {"font.size": 30, "axes.facecolor": "black", "savefig.dpi": 30, "lines.linewidth": 9},
    ],
)
def test_pictures_are_the_same_whatever_a_readers_matplotlib_is_set_to(set_to):
    plain = the_pictures()
    with matplotlib.rc_context(set_to):
        assert the_pictures() == plain
        assert {name: matplotlib.rcParams[name] for name in set_to} == set_to  # theirs still


def test_an_end_of_an_axis_that_is_left_open_follows_what_is_drawn_later():
    drawn, (one,) = figure.axes()
    one.set(ylim=(0, None))
    one.plot([1, 2], [3, 40])
    figure.png(drawn)
    assert one.get_ylim()[0] == 0
    assert one.get_ylim()[1] > 40
    one.set_ylim(1, 50)
    one.plot([1], [60])
    figure.png(drawn)
    assert one.get_ylim() == (1, 50)


def test_a_prediction_is_of_the_run_at_hand_or_of_the_one_that_would_begin(runs):
    """Not of a baseline with other knobs, which stands there before the first start."""
    sweep = Sweep("parts", "loss", "loss", predicted=lambda knobs: 1.0 + knobs.rate)
    live = live_chart(sweep, Every())
    for shown, rate in (
        (Runs(Every(rate=0.5), runs.pinned), 0.5),
        (Runs(Every(rate=0.5), runs.pinned, live=record(Every(rate=0.25))), 0.25),
    ):
        _, one = figure.axes()
        sweep.draw(one[0], shown)
        assert set(one[0].lines[0].get_ydata()) == {1.0 + rate}
        live.keep(shown)
        assert set(live._formula.y) == {1.0 + rate}


def test_names_that_begin_alike_stay_apart_when_they_are_cut():
    begin = "micro batches 8, batch size 512, learning rate "
    assert look.in_short("student alone", 28) == "student alone"
    cut = [look.in_short(begin + rate, 28) for rate in ("0.1", "0.02")]
    assert cut == ["micro batche … ning rate 0.1", "micro batche … ing rate 0.02"]
