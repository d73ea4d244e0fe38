"""Knobs: one declaration, and one line for whatever is wrong."""

from types import SimpleNamespace
from typing import Literal

import IPython
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import model_validator

from accel_lab import catalog
from accel_lab.workbench.knobs import Dial, KnobError, Knobs, dial, no_such
from accel_lab.workbench.notebook.settings import settings


class Some(Knobs):
    count: int = dial(4, ge=1, le=32, log=True, description="things at a time")
    rate: float = dial(0.1, ge=0.001, le=1.0, unit="1/s", description="per second")
    kind: Literal["a", "b"] = dial("a", panel=False, description="of thing")
    on: bool = dial(False, description="whether at all")

    @model_validator(mode="after")
    def _rule(self):
        if self.on and self.count > 16:
            raise KnobError("count", f"{self.count} are too many when on")
        return self


def test_dials_say_what_a_control_needs():
    count, rate, kind, on = Some.dials()
    assert count == Dial("count", int, 4, "things at a time", low=1, high=32, log=True)
    assert (rate.type, rate.low, rate.high, rate.label) == (float, 0.001, 1.0, "rate")
    assert (rate.axis_label, count.axis_label) == ("rate (1/s)", "count")
    assert (kind.type, kind.choices, kind.panel) == (str, ("a", "b"), False)
    assert (on.type, on.default) == (bool, False)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"count": 33}, "count: should be less than or equal to 32 (things at a time), not 33"),
        (
            {"rate": "fast"},
            "rate: should be a valid number, unable to parse string as a number (per second), "
            "not 'fast'",
        ),
        ({"kind": "c"}, "kind: should be 'a' or 'b' (of thing), not 'c'"),
        ({"counts": 3}, "no knob is called 'counts'; did you mean 'count'?"),
        ({"zzz": 3}, "no knob is called 'zzz'; there are: count, rate, kind, on"),
        ({"on": True, "count": 20}, "count: 20 are too many when on"),
        ({"rate": float("inf")}, "rate: should be a finite number (per second), not inf"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(values, line):
    with pytest.raises(KnobError) as error:
        Some(**values)
    assert str(error.value) == line


def test_turning_checks_again_and_leaves_the_original():
    knobs = Some(count=8)
    assert knobs.turned(rate=0.5) == Some(count=8, rate=0.5)
    assert knobs == Some(count=8)
    with pytest.raises(KnobError):
        knobs.turned(count=0)
    with pytest.raises(ValueError, match="frozen"):
        knobs.count = 3


@given(count=st.integers(1, 32), rate=st.floats(0.001, 1.0), kind=st.sampled_from("ab"))
def test_text_from_a_command_line_gives_the_same_knobs(count, rate, kind):
    assert Some(
        count=str(count), rate=repr(rate), kind=kind, on="true" if count <= 16 else "false"
    ) == Some(count=count, rate=rate, kind=kind, on=count <= 16)


def read(knobs, name, choice):
    """What the knob is when the choice is given as text; alone it may not go with the others."""
    try:
        return getattr(knobs(**{name: str(choice)}), name)
    except KnobError as error:
        return error if "should be" in str(error) else choice


def test_every_choice_of_a_run_can_be_written_on_a_command_line():
    """Numbers among them, too."""
    for technique in catalog.with_exercises():
        knobs = catalog.experiment(technique).Knobs
        choices = [(one.name, choice) for one in knobs.dials() for choice in one.choices]
        assert [read(knobs, *one) for one in choices] == [choice for _, choice in choices]


def test_the_nearest_name_is_offered():
    assert no_such("technique", "acumulation", ["accumulation", "ddp"]) == (
        "no technique is called 'acumulation'; did you mean 'accumulation'?"
    )


# ---- the settings of a chapter ----


def test_a_chapter_sets_what_its_reader_does_not():
    for given_ in ({"count": 8}, '{"count": 8}'):  # papermill -p gives text
        assert settings(Some, given_, count=2, rate=0.5) == Some(count=8, rate=0.5)
    for wrong in ("{count: 8}", "8", 8):
        with pytest.raises(KnobError, match="knobs: should be names with values"):
            settings(Some, wrong)


@pytest.mark.parametrize(
    ("cell", "line"),
    [
        ("# Parameters\nknobs = {'count': 8}\n", ""),
        ("# Parameters\nknobs = {}\ncount = 8\n", "count: is a knob; papermill is to say it as"),
        ("# Parameters\ncuont = 8\n", "no knob is called 'cuont'; did you mean 'count'?"),
        ("count = 8", ""),  # a cell of the reader's
    ],
)
def test_a_parameter_that_nothing_reads_is_named(monkeypatch, cell, line):
    history = SimpleNamespace(input_hist_raw=["", "knobs = {}", cell, "settings(Some, knobs)"])
    around = SimpleNamespace(history_manager=history, get_parent=dict)
    monkeypatch.setattr(IPython, "get_ipython", lambda: around)
    if not line:
        assert settings(Some, {}) == Some()
        return
    with pytest.raises(KnobError) as error:
        settings(Some, {})
    assert str(error.value).startswith(line)
