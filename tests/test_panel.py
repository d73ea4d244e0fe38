"""The panel without a browser: one trainer at a time, stopped and restarted safely; complaints
beside the knob; headless pictures.
"""

import base64
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from math import isnan, log10
from typing import Literal

import ipywidgets as widgets
import pytest
import torch
import torch.distributed as dist
from pydantic import model_validator

from accel_lab import catalog
from accel_lab.workbench import look
from accel_lab.workbench.drawing.budget import Budget
from accel_lab.workbench.drawing.chart import Badge, Runs
from accel_lab.workbench.drawing.curve import Curve
from accel_lab.workbench.drawing.figure import Picture, axes
from accel_lab.workbench.drawing.record import Record
from accel_lab.workbench.drawing.sweep import Sweep
from accel_lab.workbench.drawing.timeline import Timeline, draw_spans
from accel_lab.workbench.knobs import KnobError, Knobs, dial
from accel_lab.workbench.loop import NonFiniteLoss
from accel_lab.workbench.measure import load
from accel_lab.workbench.measure.comparison import Comparison, compare
from accel_lab.workbench.measure.race import race
from accel_lab.workbench.notebook import guesses, reader
from accel_lab.workbench.notebook.speed_log import SpeedLog, log_verdict
from accel_lab.workbench.panel import Headline, Panel, Prediction, Sliders, trainer
from accel_lab.workbench.panel.controls import Controls
from accel_lab.workbench.panel.live import live_chart
from accel_lab.workbench.panel.output import VIEW
from accel_lab.workbench.ranks.launch import launch
from accel_lab.workbench.step import Span, Step

CHARTS = [
    Curve("throughput", "samples/s"),
    Sweep("parts", "bytes", "bytes", predicted=lambda k: 8 / k.parts),
    Timeline(),
]


class Some(Knobs):
    parts: int = dial(1, ge=1, le=8, description="parts of it")
    fault: str = dial("", panel=False, description="what goes wrong")

    @model_validator(mode="after")
    def _rule(self):
        if self.parts == 7:
            raise KnobError("parts", "7 is not to be had")
        return self


class World:
    """Counts the runs that are open, and how many ever were at once."""

    def __init__(self):
        self.open = self.most = self.runs = 0

    def run(self, knobs):
        self.open, self.runs = self.open + 1, self.runs + 1
        self.most = max(self.most, self.open)
        try:
            for index in range(10_000_000):
                time.sleep(0.004)
                if knobs.fault == "nan" and index == 2:
                    raise NonFiniteLoss("the loss is nan at step 2: lower the learning rate")
                if knobs.fault == "end" and index == 5:
                    return
                if knobs.fault == "crash":
                    raise RuntimeError("first line\nsecond line")
                yield Step(
                    index,
                    8,
                    0.004,
                    {"loss": 1.0, "bytes": 8 / knobs.parts},
                    (Span(0, "forward", 0.0, 0.004),),
                )
        finally:
            self.open -= 1


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.005)


@pytest.fixture
def world():
    return World()


@pytest.fixture
def panel(world, monkeypatch):
    monkeypatch.setenv("ACCEL_LAB_HEADLESS", "0")
    made = Panel(world.run, Some(), CHARTS, badge=Badge("loss", 2.0, "fine", "not fine"))
    yield made
    made.stop()
    made.wait()
    assert world.open == 0
    assert "training" not in {thread.name for thread in threading.enumerate()}


def turn(panel: Panel, **values: int) -> None:
    for name, value in values.items():
        panel._controls._inputs[name].value = value


def test_start_train_stop(panel, world):
    panel.start()
    until(lambda: panel.live is not None and len(panel.live.seconds) >= 2)
    assert panel.training
    assert "samples/s" in panel._status.value
    assert "fine" in panel._verdict.value
    assert panel._start.disabled
    assert not panel._stop.disabled
    panel.stop()
    panel.wait()
    assert not panel.training
    assert "stopped after" in panel._status.value
    assert not panel._start.disabled


def test_start_twice_is_start_once(panel, world):
    for _ in range(3):
        panel.start()
    until(lambda: world.open == 1)
    time.sleep(0.1)
    assert (world.most, world.runs) == (1, 1)


def test_clear_takes_the_length_from_a_baseline_that_was_trained_on(world, monkeypatch):
    monkeypatch.setenv("ACCEL_LAB_HEADLESS", "0")
    made = Panel(world.run, Some(), CHARTS, baselines={"base": {"parts": 1}}, seconds=0.3)
    short = made.baselines["base"]
    made.start()
    until(lambda: made.live is not None and made.live.updates[-1:] > [2 * short.updates[-1]], 30)
    long = made.live
    turn(made, parts=2)
    until(lambda: made.live is not long and made.live.samples > 0)
    assert made.baselines["base"] is long
    made.stop()
    made.wait()
    made.clear()
    assert made.baselines["base"] is short


def test_the_keyboard_goes_on_to_the_button_that_can_be_pressed(panel, monkeypatch):
    focused = []
    for name in ("_start", "_stop"):
        monkeypatch.setattr(getattr(panel, name), "focus", lambda name=name: focused.append(name))
    panel._start.click()
    until(lambda: panel.live is not None and panel.live.samples > 0)
    panel._stop.click()
    panel.wait()
    assert focused == ["_stop", "_start"]
    panel.start()  # by a line of code: the cursor stays where somebody types
    panel.stop()
    panel.wait()
    assert len(focused) == 2


def test_a_run_that_comes_to_its_end_is_not_called_stopped(panel):
    panel._controls.knobs = Some(fault="end")
    panel.start()
    panel.wait()
    assert "ended by itself after 5 updates, 40 samples" in panel._status.value
    assert not panel._start.disabled
    assert panel._stop.disabled
    panel._controls.knobs = Some()
    panel.start()
    until(lambda: panel.live.samples > 40)
    panel.stop()
    panel.wait()
    assert "stopped after" in panel._status.value


def test_stop_before_the_first_step(panel, world):
    panel.start()
    panel.stop()
    panel.wait()
    assert world.open == 0
    panel.start()
    until(lambda: panel.live is not None and panel.live.samples > 0)


def test_a_knob_moved_while_training_starts_a_fresh_curve_and_leaves_a_ghost(panel, world):
    panel.start()
    until(lambda: len(panel.live.seconds if panel.live else []) >= 4)
    former = panel.live
    turn(panel, parts=4)
    until(lambda: panel.live is not former and len(panel.live.seconds) >= 1)
    assert panel.live.knobs == Some(parts=4)
    assert panel.live.label == "parts 4"
    assert panel.ghosts == [former]
    assert world.most == 1


def test_many_knob_moves_never_train_twice_at_once(panel, world):
    panel.start()
    for value in (2, 3, 4, 5, 6, 8, 1, 2, 3):
        turn(panel, parts=value)
        time.sleep(0.01)
    until(lambda: panel.live is not None and panel.live.knobs.parts == 3 and panel.live.samples > 0)
    assert world.most == 1
    assert len(panel.ghosts) <= 3


def test_a_knob_that_is_refused_is_told_beside_it_and_training_goes_on(panel, world):
    panel.start()
    until(lambda: world.open == 1)
    turn(panel, parts=7)
    assert "7 is not to be had" in panel._controls._notes["parts"].value
    assert panel.knobs == Some()
    assert panel.training
    turn(panel, parts=6)
    assert "parts of it" in panel._controls._notes["parts"].value
    until(lambda: panel.live is not None and panel.live.knobs.parts == 6)


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("nan", "the loss is nan at step 2: lower the learning rate"),
        ("crash", "RuntimeError: first line"),
    ],
)
def test_what_ends_a_run_is_shown_in_one_line_and_the_panel_lives_on(panel, world, fault, line):
    panel._controls.knobs = Some(fault=fault)
    panel.start()
    until(lambda: panel.error is not None)
    panel.wait()
    assert line in panel._status.value
    assert "second line" not in panel._status.value
    assert panel._verdict.value == ""  # no green badge beside it
    panel._controls.knobs = Some()
    panel.start()
    until(lambda: panel.live.samples > 0 and world.open == 1)


def test_a_second_panel_takes_over(panel, world):
    panel.start()
    until(lambda: world.open == 1)
    other = Panel(
        world.run, Some(parts=2), CHARTS
    )  # making it is enough: a cell run again must not leave its trainer behind
    assert world.open == 0
    panel.start()
    other.start()
    until(lambda: other.live is not None and other.live.samples > 0)
    assert not panel.training
    assert world.most == 1
    other.stop()
    other.wait()


@pytest.mark.parametrize(
    "measure",
    [
        lambda world: compare(lambda: sum(range(50)), lambda: sum(range(50)), pairs=1, patience=0),
        lambda world: race(world.run, {"one": Some(), "other": Some(parts=2)}, rounds=1),
    ],
    ids=["compare", "race"],
)
def test_a_measurement_stops_whoever_trains(measure, panel, world):
    panel.start()
    until(lambda: world.open)
    measure(world)
    assert not panel.training
    assert world.open == 0


def test_a_run_that_measures_is_not_stopped_by_its_own_measurement(panel, world):
    def measuring_run(knobs):
        for step in world.run(knobs):
            compare(lambda: None, lambda: None, pairs=1, patience=0)
            yield step

    panel._trainer._run = measuring_run
    panel.start()
    until(lambda: panel.live and len(panel.live.seconds) > 2)
    assert panel.training
    panel.stop()
    panel.wait()


def test_a_run_that_has_ended_stays_in_sight_and_tells_its_values(panel):
    panel.start()
    until(lambda: len(panel.live.seconds if panel.live else []) >= 3)
    curve, sweep = panel._live_charts[:2]
    assert len(curve._hover.x) == 0
    panel.stop()
    panel.wait()
    panel.pin()
    assert len(curve._hover.x) == len(panel.live.seconds)
    assert curve._front in curve._frame.graph.marks
    assert sweep._live in sweep._frame.graph.marks


def seen(panel, windows: int = 3) -> Record:
    """The run at hand, once it has been going on for a while."""
    until(lambda: panel.live and len(panel.live.seconds) >= windows and panel.training)
    return panel.live


def test_a_pinned_run_is_kept_by_name_until_it_is_unpinned(panel, world):
    panel.start()
    first = seen(panel)
    assert panel.pin() == "pinned ✓ first settings"
    assert "pinned" in panel._noted.value
    turn(panel, parts=2)
    until(lambda: panel.live is not first)
    assert (panel.pinned, panel.ghosts) == ([first], [])
    second = seen(panel)
    panel.stop()
    panel.wait()
    panel.pin()
    assert panel.pinned == [first, second]
    assert first.place != second.place
    assert panel.pin() == "unpinned: parts 2"
    assert panel.pinned == [first]
    panel.clear()
    assert (panel.pinned, panel.ghosts, panel.live) == ([], [], None)
    assert panel._verdict.value == panel._headline.value == ""
    assert "ready" in panel._status.value
    assert "no run is at hand" in panel.pin()


def test_no_pin_pushes_out_another(panel):
    faults = [f"fault {place}" for place in range(len(look.STYLES) + 1)]
    for fault in faults:
        panel.live = a_record(Some(fault=fault))
        said = panel.pin()
    assert "Clear makes room" in said
    assert [record.knobs.fault for record in panel.pinned] == faults[:-1]


def test_knobs_passed_through_on_the_way_are_never_run(panel, world):
    panel.start()
    seen(panel)
    for value in (2, 3, 4, 5, 6):
        turn(panel, parts=value)
        time.sleep(0.02)
    assert "restarting" in panel._status.value
    until(lambda: panel.live.knobs.parts == 6 and panel.live.samples > 0)
    assert world.runs == 2


def test_reset_turns_the_knobs_back_as_one_change(panel):
    turn(panel, parts=4)
    panel.reset()
    assert panel.knobs == Some()
    assert panel._controls._inputs["parts"].value == 1


def test_what_was_said_of_the_run_before_is_gone_when_the_next_begins(panel, world):
    panel.start()
    seen(panel)
    panel.stop()
    panel.wait()
    assert panel._verdict.value
    panel.start()
    assert panel._verdict.value == panel._headline.value == ""
    assert "starting" in panel._status.value


def test_a_knob_turned_after_a_failure_tries_again(panel, world):
    panel._controls.knobs = Some(fault="nan")
    panel.start()
    until(lambda: panel.error is not None)
    panel.wait()
    panel._controls.knobs = Some()
    turn(panel, parts=3)
    until(lambda: panel.live.samples > 0 and panel.training)
    assert panel.error is None


def test_a_wish_uttered_while_a_run_fails_is_not_lost(world, monkeypatch):
    monkeypatch.setenv("ACCEL_LAB_HEADLESS", "0")
    slow = threading.Event()

    def run(knobs):
        if knobs.fault == "late":
            slow.wait(5)
            raise RuntimeError("as a rank that was ended")
        yield from world.run(knobs)

    panel = Panel(run, Some(fault="late"), CHARTS)
    panel.start()
    until(lambda: panel.live is not None)
    panel._controls.knobs = Some()
    turn(panel, parts=2)
    slow.set()
    until(lambda: panel.live.knobs.parts == 2 and panel.live.samples > 0)
    assert panel.error is None
    panel.stop()
    panel.wait()


def test_a_run_that_nobody_stops_ends_by_itself(panel, monkeypatch):
    monkeypatch.setattr(trainer, "MOST_SECONDS", 0.5)
    panel.start()
    panel.wait()
    assert panel.live.seconds[-1] >= 0.5
    assert "ended by itself after" in panel._status.value
    assert "no run takes more than 0.5 s" in panel._status.value


def test_a_run_that_waits_says_so(panel, monkeypatch):
    monkeypatch.setattr(trainer, "SILENT", 0.1)
    stuck = threading.Event()

    def run(knobs):
        yield Step(0, 1, 0.1, {"loss": 1.0})
        stuck.wait(5)

    panel._trainer._run = run
    panel.start()
    until(lambda: "no update for" in panel._status.value)
    stuck.set()
    panel.wait()


def never(rank_that_waits: int) -> Iterator[Step]:
    yield Step(0, 1, 0.1, {"loss": 1.0})
    if dist.get_rank() == rank_that_waits:
        dist.recv(torch.zeros(1))


def ranks_that_wait(knobs: Knobs) -> Iterator[Step]:
    yield from (step for rank, step in launch(never, 2, 0) if rank == 0)


def test_stop_is_heard_while_ranks_wait_for_each_other(panel):
    panel._trainer._run = ranks_that_wait
    panel.start()
    until(lambda: panel.live is not None and panel.live.samples > 0, seconds=60)
    time.sleep(0.3)
    panel.stop()
    asked = time.monotonic()
    panel.wait()
    assert time.monotonic() - asked < 10  # not the 30 s after which ranks give up
    assert panel.error is None
    assert "stopped" in panel._status.value


# ---- baselines ----


@pytest.fixture
def compared(world, monkeypatch):
    """A panel whose baseline has one part and all else as the knobs say."""
    monkeypatch.setenv("ACCEL_LAB_HEADLESS", "0")
    baselines = {"one part": {"parts": 1}}
    made = Panel(
        world.run,
        Some(parts=2),
        CHARTS,
        baselines=baselines,
        controls=["parts", "fault"],
        headline=Headline("bytes", "bytes"),
        seconds=0.6,
    )
    yield made
    made.stop()
    made.wait()


def test_the_baseline_follows_every_knob_but_its_own(compared, world):
    (first,) = compared.baselines.values()
    assert (first.knobs, first.label) == (Some(parts=1), "one part")
    compared.start()
    until(lambda: compared._headline.value)
    assert "0.5 × the bytes of one part" in compared._headline.value
    turn(compared, parts=4)  # its own: the baseline stays
    until(lambda: compared.live.knobs.parts == 4 and "0.25 ×" in compared._headline.value)
    assert compared.baselines["one part"] is first
    turn(compared, fault="other")
    until(lambda: compared.live.knobs.fault == "other" and compared.live.samples > 0)
    second = compared.baselines["one part"]
    assert second.knobs == Some(parts=1, fault="other")
    assert world.runs == 5  # a baseline, two runs, a baseline, a run
    turn(compared, fault="")
    until(lambda: compared.live.knobs.fault == "" and compared.live.samples > 0)
    assert compared.baselines["one part"] is first
    assert world.runs == 6  # known already
    assert world.most == 1


def test_a_baseline_that_fails_is_told_and_the_run_goes_on(compared):
    turn(compared, fault="nan")
    compared.start()
    until(lambda: compared.error is not None)  # the run itself fails, too
    compared.wait()
    assert "one part: the loss is nan at step 2" in compared._noted.value


def test_a_longer_run_with_the_baselines_knobs_takes_its_place_and_a_shorter_one_does_not(compared):
    (first,) = compared.baselines.values()
    for windows, kept in ((3, first), (len(first.seconds) + 5, None)):
        record = a_record(Some(parts=1), windows)
        record.updates[-1] = first.updates[-1] * (2 if kept is None else 0.5)
        compared._retire(record)
        (now,) = compared.baselines.values()
        assert now is (kept or record)
        assert now.label == "one part"
    assert compared.ghosts == []


def a_record(knobs: Knobs, windows: int = 3, **metrics: float) -> Record:
    record = Record(knobs, f"parts {knobs.parts}")
    for index in range(windows):
        record.add(Step(index, 8, 0.004, {"loss": 1.0, **metrics}))
        record.close_window(0.2 * (index + 1))
    return record


class WithMistakes(Some):
    mistake: Literal["none", "first", "second"] = dial("none", description="a mistake to make")


def test_each_mistake_keeps_its_latest_run_with_a_look_of_its_own(world, monkeypatch):
    monkeypatch.setenv("ACCEL_LAB_HEADLESS", "0")
    panel = Panel(
        world.run,
        WithMistakes(),
        CHARTS,
        baselines={"no mistake": {"mistake": "none"}},
        seconds=0.1,
    )
    for mistake in ("second", "first", "second"):
        panel._retire(a_record(WithMistakes(mistake=mistake)))
    assert {name: record.place for name, record in panel.mistakes.items()} == {
        "second": 2,
        "first": 1,
    }
    assert panel.ghosts == []
    colors = {one.record.knobs.mistake: one.color for one in panel.runs.staying()}
    assert len(set(colors.values())) == 3


def test_a_mistake_is_called_by_its_own_name(world):
    made = Panel(world.run, WithMistakes(mistake="first"), CHARTS, seconds=0.1)
    assert made._label(WithMistakes(mistake="second")) == "second"
    assert made._label(WithMistakes()) == "no mistake"


def test_there_is_a_look_for_each_mistake_of_a_chapter():
    for name in catalog.with_exercises():
        experiment = catalog.experiment(name)
        for one in experiment.Knobs.dials():
            if one.name == "mistake":
                assert 1 + len(one.choices[1:]) <= len(set(look.STYLES)), name


def test_the_legend_names_a_formula_once_and_only_where_there_is_one(world, monkeypatch):
    monkeypatch.setenv("ACCEL_LAB_HEADLESS", "0")
    bare = Budget({"bytes": "bytes"}, "MiB")
    for charts, times in (
        ([bare], 0),
        ([bare, Budget({"bytes": "bytes"}, "MiB", predicted=lambda k: 1.0)], 1),
        ([Sweep("parts", "bytes", "bytes", predicted=lambda k: 1.0, formula="predicted")] * 2, 1),
    ):
        made = Panel(world.run, Some(), charts)
        made._redraw_what_stays()
        assert made._legend.value.count("predicted</span>") == times


def test_headlines_in_words():
    fast, slow = (
        a_record(Some(parts=parts), 6, bytes=value, share=value / 10)
        for parts, value in ((2, 6.0), (1, 2.0))
    )
    slow.label = "one part"
    assert Headline("bytes", "bytes").say(fast, slow) == (
        "3 × the bytes of one part",
        "",
    )  # counted
    for index in range(6, 12):
        slow.add(Step(index, 8, 0.004, {"bytes": 2.0 + index}))
        slow.close_window(0.2 * (index + 1))
    assert Headline("bytes", "bytes").say(fast, slow) == (
        "0.75 × the bytes of one part: no clear difference",
        "half of the windows within 0.55–3 ×",
    )
    assert Headline("bytes", "bytes").say(fast, a_record(Some(parts=4), 2, bytes=4.0)) == (
        "1.5 × the bytes of parts 4",
        "too few windows of parts 4 to tell the spread",
    )
    assert Headline("share", "accuracy", points=True).say(slow, fast) == (
        "40.0 points less accuracy than parts 2",
        "at update 6",
    )
    assert Headline("share", "accuracy", points=True).say(slow, slow) == (
        "the same accuracy as one part",
        "at update 6",
    )
    assert Headline("bytes").say(a_record(Some(), 2, bytes=1.0), slow) == ("", "")
    assert Headline("bytes").say(fast, a_record(Some(), 1, bytes=1.0)) == ("", "")
    assert Headline("bytes").say(fast, a_record(Some(), 6)) == ("", "")


def test_interrupting_wait_stops_the_run(panel, world, monkeypatch):
    panel.start()
    until(lambda: world.open == 1)
    monkeypatch.setattr(
        threading.Thread, "join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        panel.wait()
    monkeypatch.undo()
    until(lambda: world.open == 0)


def test_where_nobody_watches_the_tour_is_run_and_a_picture_shown(world, monkeypatch):
    monkeypatch.setenv("ACCEL_LAB_HEADLESS", "1")
    panel = Panel(
        world.run,
        Some(),
        CHARTS,
        baselines={"base": {}},
        tour=[Some(parts=2), Some(parts=4)],
        seconds=0.05,
    )
    assert [record.label for record in panel.pinned] == ["base", "parts 2"]
    assert panel.live.label == "parts 4"
    assert world.open == 0
    bundle = panel._bundle()
    assert bundle.keys() == {"text/plain", "image/png"}
    assert bundle["text/plain"] == "Panel"


def test_where_nobody_watches_the_panel_answers_to_the_same_names(world, monkeypatch):
    shown, renewed = [], []
    Handle = type("Handle", (), {"update": lambda self, bundle, **_: renewed.append(bundle)})
    monkeypatch.setattr(
        "accel_lab.workbench.panel.still_panel.display",
        lambda bundle, **_: shown.append(bundle) or Handle(),
    )
    monkeypatch.setenv("ACCEL_LAB_HEADLESS", "1")
    still = Panel(world.run, Some(parts=3), CHARTS, seconds=0.2)
    monkeypatch.setenv("ACCEL_LAB_HEADLESS", "0")
    watched = Panel(world.run, Some(parts=3), CHARTS)
    assert public(still) == public(watched) - {"badge", "box", "headline"}
    assert (still.knobs, still.live, still.training) == (Some(parts=3), None, False)
    still._ipython_display_()
    assert [bundle["text/plain"] for bundle in shown] == ["Panel"]
    still.start()
    first = still.live
    assert len(first.seconds) >= 4
    assert first.label == "now"
    still.pin()
    assert still.pinned == [first]
    assert first.label == "first settings"  # the next one is called now
    still.start()
    still.stop()
    still.wait()
    second = still.live
    assert second is not first
    assert still.ghosts == []
    still.start()
    assert (still.pinned, still.ghosts) == ([first], [second])
    assert [bundle["text/plain"] for bundle in renewed] == ["Panel"] * 4
    assert world.open == 0


def public(panel) -> set[str]:
    return {name for name in dir(panel) if not name.startswith("_")}


def test_a_run_that_fails_where_nobody_watches_is_kept_as_an_error(world, monkeypatch):
    monkeypatch.setenv("ACCEL_LAB_HEADLESS", "1")
    panel = Panel(world.run, Some(fault="nan"), CHARTS, seconds=0.05)
    panel.start()
    assert "lower the learning rate" in str(panel.error)
    assert panel.live is None
    assert world.open == 0


def test_one_wrong_update_turns_the_badge(panel):
    record = Record(Some(), "run")
    for index, error in enumerate((1.0, 1.0, 9.0, 1.0)):
        record.add(Step(index, 1, 0.1, {"loss": error}))
    record.close_window(0.4)
    panel._judge(record)
    assert "not fine" in panel._verdict.value


def test_a_watched_panel_shows_widgets_and_a_picture_that_is_renewed(panel, monkeypatch):
    shown, renewed = [], []
    monkeypatch.setattr(
        "accel_lab.workbench.panel.output.display",
        lambda bundle, **_: shown.append(bundle) or Handle(),
    )
    Handle = type("Handle", (), {"update": lambda self, bundle, **_: renewed.append(bundle)})
    panel._ipython_display_()
    script, view, picture = shown
    assert script.keys() == {"application/javascript"}
    assert view == {VIEW: {"version_major": 2, "version_minor": 0, "model_id": panel.box.model_id}}
    assert picture.keys() == {"text/plain", "image/png"}
    panel.start()
    until(lambda: panel.live is not None and panel.live.samples > 0)
    panel.stop()
    panel.wait()
    assert [bundle["text/plain"] for bundle in renewed] == ["Panel"]
    assert renewed[0]["image/png"] != picture["image/png"]


def test_every_kind_of_knob_gets_its_control():
    from typing import Literal

    import ipywidgets as w

    class All(Knobs):
        count: int = dial(4, ge=1, le=9, description="c")
        power: int = dial(4, ge=1, le=1024, log=True, description="p")
        share: float = dial(0.5, ge=0, le=1, description="s")
        rate: float = dial(0.1, ge=0.001, le=1, log=True, description="r")
        few: Literal["a", "b"] = dial("a", description="f")
        on: bool = dial(False, description="o")
        hidden: int = dial(3, panel=False, description="h")

    heard = []
    controls = Controls(All(), None, heard.append)
    kinds = [type(control) for control in controls._inputs.values()]
    assert kinds == [
        w.IntSlider,
        w.SelectionSlider,
        w.FloatSlider,
        w.FloatLogSlider,
        w.ToggleButtons,
        w.Checkbox,
    ]
    assert controls._inputs["power"].options[-1] == ("1,024", 1024)
    controls._inputs["power"].value = 32
    controls._inputs["on"].value = True
    assert heard == [All(power=32), All(power=32, on=True)]


@pytest.fixture
def ask(monkeypatch) -> Callable[[], Prediction]:
    """The same question, each time as in a kernel of its own."""
    monkeypatch.setenv("ACCEL_LAB_HEADLESS", "0")
    monkeypatch.setattr(guesses, "_of_this_notebook", {})
    return lambda: Prediction("How many?", low=0.1, high=1e4, default=1.0, unit="×")


def test_a_prediction_is_held_against_what_was_measured(ask):
    prediction = ask()
    assert "No prediction was made" in prediction.against(2.0).data
    prediction._slider.value = 2.0
    prediction._button.click()
    assert prediction.against(0.97).data == (
        "You said <b>2 ×</b>; measured: <b>0.97 ×</b>, a factor of 2.1 between them."
    )
    assert "spot on" in prediction.against(2.05).data
    assert "measured: <b>89,000 ×</b>" in prediction.against(89_123.0).data


def test_a_prediction_outlives_its_kernel_and_counts_when_it_was_only_moved(ask):
    ask()._slider.value = 3.0
    again = ask()
    assert (again.value, again._slider.disabled) == (3.0, False)
    assert abs(again._slider.value - 3.0) < 0.05  # on its nearest step
    assert "You said 3 ×" in again._note.value
    again._button.click()
    third = ask()
    assert third._slider.disabled
    assert third._button.description == "Guess again"
    third._button.click()
    assert not third._slider.disabled
    third._slider.value = 5.0
    assert ask().value == 5.0
    assert len(reader.read("predictions", ["question"])) == 1


def test_what_is_uncertain_is_not_called_a_miss(ask):
    undecided = Comparison.of([(s, 1.0) for s in (0.9, 1.1, 2, 0.5, 1.4, 0.7, 1.0, 1.2, 0.8, 3)])
    low, high = undecided.interval
    prediction = ask()
    prediction._slider.value = high / 1.05
    said = prediction.against(undecided).data
    assert f"({low:.2g}–{high:.2g})" in said
    assert "within what was measured" in said
    faster = prediction.against(undecided, inverse=True).data
    assert f"<b>{1 / undecided.ratio:.2g} × ({1 / high:.2g}–{1 / low:.2g})</b>" in faster


def test_the_chapter_ends_in_what_was_said_and_what_was_measured(ask):
    assert "you said" not in log_verdict("one", "fast")._repr_markdown_()
    prediction = ask()
    prediction.against(2.0)  # nothing was said
    assert "you said" not in log_verdict("one", "fast")._repr_markdown_()
    prediction._slider.value = 300.0
    prediction.against(89_000)
    table = log_verdict("one", "fast")._repr_markdown_()
    assert "| How many? | 300 × | 89,000 × | a factor of 300 between them |" in table


def test_a_question_nobody_watches_tells_nothing_of_the_reader(ask, monkeypatch):
    ask()._slider.value = 3.0
    monkeypatch.setenv("ACCEL_LAB_HEADLESS", "1")
    assert "No prediction was made" in ask().against(2.0).data


def test_the_reader_loses_nothing_where_the_disk_takes_nothing(ask, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(reader, "_unwritten", {})
    monkeypatch.setenv("ACCEL_LAB_HOME", str(tmp_path / "file" / "below"))
    ask()._slider.value = 3.0
    ask()._slider.value = 4.0
    log_verdict("one", "fast")
    assert ask().value == 4.0
    assert [row["verdict"] for row in SpeedLog.read().entries] == ["fast"]
    complaints = capsys.readouterr().err.splitlines()
    assert len(complaints) == 2  # one for each table
    assert all("cannot be written" in line and "ACCEL_LAB_HOME" in line for line in complaints)


def line_up_to(end=4, color="blue"):
    picture, (one,) = axes(2, 2)
    one.plot([0, end], color=color)
    one.set_title(f"up to {end}")
    return picture


def test_sliders_are_shown_to_who_can_move_them_and_draw_the_picture_anew(monkeypatch):
    shown, renewed = [], []
    Handle = type("Handle", (), {"update": lambda self, one, *_, **__: renewed.append(one)})
    for module in ("output", "sliders"):
        monkeypatch.setattr(
            f"accel_lab.workbench.panel.{module}.display",
            lambda one, *_, **__: shown.append(one) or Handle(),
        )
    sliders = Sliders(line_up_to, end=(0, 9, 1))
    monkeypatch.setenv("ACCEL_LAB_HEADLESS", "1")
    sliders._ipython_display_()
    assert [type(one) for one in shown] == [Picture]
    monkeypatch.setenv("ACCEL_LAB_HEADLESS", "0")
    sliders._ipython_display_()
    _, _, view, stand_in = shown
    assert VIEW in view
    before = sliders._image.value
    assert stand_in["image/png"] == base64.b64encode(before).decode()
    sliders._inputs["end"].value = 7
    assert sliders._image.value != before
    assert renewed[0]["image/png"] == base64.b64encode(sliders._image.value).decode()
    assert ">up to 7<" in sliders._said.value


def test_steps_can_be_played_and_choices_are_buttons():
    sliders = Sliders(line_up_to, end=range(0, 9, 2), color=["blue", "red"])
    row = sliders._row("end")
    slider, play = row.children
    for one in (slider, play):
        assert (one.min, one.max, one.step, one.value) == (0, 8, 2, 4)
    assert isinstance(sliders._row("color"), widgets.ToggleButtons)
    assert sliders._row("color").options == ("blue", "red")
    fine = Sliders(line_up_to, end=(0.0, 9.0, 0.005))._row("end")
    assert (fine.step, fine.readout_format) == (0.005, ".3f")


def test_the_speed_log_keeps_one_verdict_a_technique_and_survives_a_broken_line(monkeypatch):
    monkeypatch.setenv("ACCEL_LAB_HEADLESS", "0")
    log_verdict("one", "slow")
    with reader.path_of("speed_log").open("ab") as file:
        file.write('{"half a lié'.encode()[:-1])
    log_verdict("two", "a|b")
    log_verdict("one", "fast")
    assert [(e["technique"], e["verdict"]) for e in SpeedLog.read().entries] == [
        ("two", "a|b"),
        ("one", "fast"),
    ]
    assert "| one | fast |" in SpeedLog.read()._repr_markdown_()
    monkeypatch.setenv("ACCEL_LAB_HEADLESS", "1")
    assert repr(log_verdict("three", "x")) == "Speed log: three"
    assert len(SpeedLog.read().entries) == 2


def test_what_was_measured_on_a_busy_machine_is_not_recorded(monkeypatch):
    monkeypatch.setenv("ACCEL_LAB_HEADLESS", "0")
    log_verdict("one", "fast")
    monkeypatch.setattr(load, "_of_cells", {"a": (1, 0.63), "b": (2, 0.0)})
    shown = log_verdict("one", "slow")._repr_markdown_()
    assert "Not recorded, one: slow. Busy machine: other programs used 63 %" in shown
    assert "| one | fast |" in shown
    assert [row["verdict"] for row in SpeedLog.read().entries] == ["fast"]
    assert "Not recorded" in log_verdict("one", "slow")._repr_markdown_()  # asked again: no quieter


@pytest.mark.parametrize(
    ("low", "default", "high"), [(-10, 1.0, 10), (0, 1.0, 10), (2.0, 1.0, 10), (1.0, 20.0, 10)]
)
def test_a_question_whose_slider_cannot_be_is_refused_where_nobody_watches_too(low, default, high):
    with pytest.raises(ValueError, match="do not rise from above 0"):
        Prediction("how much?", low=low, high=high, default=default, unit="points")


def test_a_slider_that_only_a_front_end_has_moved_is_no_guess(monkeypatch):
    """It moves a value that lies between two steps, and rounds on its way there and back."""
    monkeypatch.setenv("ACCEL_LAB_HEADLESS", "0")
    asked = Prediction("how much?", low=0.3, high=20, default=2.0, unit="×")
    slider = asked._slider
    steps = (log10(slider.value) - slider.min) / slider.step
    assert abs(steps - round(steps)) < 1e-9
    assert abs(slider.value / 2.0 - 1) < 0.03
    slider.value *= 1 + 1e-12
    assert asked.guess is None
    slider.value = 5.0
    assert asked.guess.value == 5.0


def test_a_cell_that_is_run_again_measures_anew(monkeypatch):
    shares = iter([0.1, 0.7, 0.2, 0.6, 0.3])
    monkeypatch.setattr(load.Load, "others", property(lambda _: next(shares)))
    monkeypatch.setattr(load, "_of_cells", {})
    expected = {("a", 1): (0.1, 0.7), ("b", 2): (0.7,), ("a", 3): (0.6,), ("b", 4): (0.6,)}
    for cell, shown in expected.items():
        monkeypatch.setattr(load, "_this_cell", lambda cell=cell: cell)
        for busiest in shown:
            with load.under_watch():
                pass
            assert load.busiest() == busiest


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("kinds", [("forward", "backward"), ("backward", "bucket")])
def test_bars_of_a_live_timeline_do_not_touch(ranks, kinds):
    """Those of neighbouring lanes, nor a thin one and that above it."""
    spans = tuple(Span(r, f"{kind} 0", 0.0, 0.01) for r in range(ranks) for kind in kinds)
    record = Record(Some(), "now", spans=spans)
    drawn = live_chart(Timeline(), Some())
    drawn.move(record)
    scale = drawn._ranks
    thickest = max(line.stroke_width for line in drawn._marks.values())
    pixels = (170 - 14 - 44 - thickest) / (scale.max - scale.min)  # of one lane
    middles = sorted({(y, line.stroke_width) for line in drawn._marks.values() for y in line.y[1:]})
    for (low, one), (high, other) in pairwise(middles):
        if not (isnan(low) or isnan(high)) and high - low > 0.1:
            assert pixels * (high - low) > (one + other) / 2


def test_a_timeline_has_a_colour_for_each_kind_and_a_number_in_each_bar():
    names = [f"{kind} {i}" for kind in ("forward", "backward") for i in range(3)]
    spans = tuple(
        Span(rank, name, place, place + 1) for rank in range(2) for place, name in enumerate(names)
    )
    _, (one,) = axes()
    draw_spans(one, spans)
    assert [text.get_text() for text in one.get_legend().get_texts()] == ["forward", "backward"]
    assert sorted(text.get_text() for text in one.texts) == sorted(["0", "1", "2"] * 4)
    live = live_chart(Timeline(), Some())
    live.move(Record(Some(), "", spans=spans))
    assert [len(mark.x) for mark in live._frame.graph.marks] == [
        18,
        18,
    ]  # three bars on each of two ranks: gap, start, end
    forward = live._frame.graph.marks[0]
    assert forward.x[2] < forward.x[4]  # a seam between neighbours


def test_the_timeline_of_the_run_before_goes_when_a_run_begins():
    live = live_chart(Timeline(), Some())
    before = Record(Some(), "", spans=(Span(0, "forward 0", 0.0, 1.0),))
    live.keep(Runs(Some(), live=before))
    assert [len(mark.x) for mark in live._frame.graph.marks] == [3]
    live.keep(Runs(Some(), former=[before], live=Record(Some(), "")))
    assert [len(mark.x) for mark in live._frame.graph.marks] == [0]


@pytest.mark.parametrize("updates", [3, 11, 151, 300, 470, 1_000_000])
def test_an_axis_ends_where_its_last_tick_is_and_has_room_for_the_numbers(updates):
    live = live_chart(Curve("loss", "loss", over="updates"), Some())
    live.move(Record(Some(), "", updates=[1, updates], series={"loss": [2.3, 0.07]}))
    for axis, value in zip(live._frame.graph.axes, (updates, 2.3), strict=True):
        assert axis.tick_values[-1] == pytest.approx(axis.scale.max)
        assert value <= axis.scale.max <= 2 * value
        assert 2 < len(axis.tick_values) < 8
