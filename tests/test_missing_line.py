"""The missing line: what is chosen is run, as the function would read; a chapter with two right
choices, or none, is refused where nobody watches.
"""

import pytest
import torch

from accel_lab.workbench.measure.proof import prove
from accel_lab.workbench.panel import missing_line
from accel_lab.workbench.panel.missing_line import GAP, MissingLine


def mean_of_squares(values: torch.Tensor) -> torch.Tensor:
    """The mean of the squares [] of values [n]."""
    total = torch.zeros(())
    for value in values:
        total = total + value.square()  # one after the other
    return total / len(values)


OWN, TWICE, CRASH = (
    "total = total + value.square()",
    "total = total + 2 * value.square()",
    "total = total + valeu.square()",
)
CHOICES = {TWICE: "Twice as large.", OWN: "The square.", CRASH: "A misprint."}
VALUES = torch.tensor([1.0, 2.0, 3.0])


def same(function):
    ways = {"torch": VALUES.square().mean(), "yours": function(VALUES)}
    return prove({name: [{"mean": value}] for name, value in ways.items()}, steps=1, tolerance=1e-6)


@pytest.fixture
def watched(monkeypatch):
    monkeypatch.setenv("ACCEL_LAB_HEADLESS", "0")


def test_what_is_chosen_is_run_and_said(watched):
    asked = MissingLine(mean_of_squares, CHOICES, same)
    assert asked._radio.value is None
    assert asked._note.value == ""
    asked._radio.value = TWICE
    assert "✗ yours ≠ torch<" in asked._note.value
    assert "Twice as large." in asked._note.value
    asked._radio.value = CRASH
    assert "✗ it raises NameError: name &#x27;valeu&#x27; is not defined" in asked._note.value
    asked._radio.value = OWN
    assert "✓ yours = torch, within 1e-06" in asked._note.value
    assert mean_of_squares(VALUES) == pytest.approx(14 / 3)  # the function itself is as it was


def test_a_judge_may_just_say_yes(watched):
    asked = MissingLine(mean_of_squares, CHOICES, lambda mean: mean(VALUES) > 5)
    assert not asked.try_(OWN)[0]
    assert asked.try_(TWICE)[0]


def test_a_judge_may_say_what_came_and_what_should_have_come(watched):
    asked = MissingLine(mean_of_squares, CHOICES, lambda mean: (round(3 * float(mean(VALUES))), 14))
    assert asked.try_(OWN)[0]
    assert "✓ what comes is 14<" in asked.try_(OWN)[1]
    assert not asked.try_(TWICE)[0]
    assert "✗ what comes is 28, and not 14<" in asked.try_(TWICE)[1]


def test_the_line_is_left_out_with_its_comment():
    asked = MissingLine(mean_of_squares, CHOICES, same)
    assert asked.right == OWN
    shown = asked.with_line(GAP)
    assert "square()" not in shown
    assert "one after" not in shown
    assert f"        {GAP}\n    return total" in shown
    assert '"""' not in shown


def test_where_nobody_watches_the_choices_are_listed_and_the_answer_is_folded(monkeypatch):
    shown = []
    monkeypatch.setattr(missing_line, "display", lambda bundle, raw: shown.append(bundle))
    MissingLine(mean_of_squares, CHOICES, same)._ipython_display_()
    code, listed, fold = (bundle["text/markdown"] for bundle in shown)
    assert "square()" not in code
    assert all(f"- `{line}`" in listed for line in CHOICES)
    assert "<summary>The whole function</summary>\n\n```python\ndef" in fold
    assert f"{OWN}  # one after the other\n" in fold
    assert "square()" not in shown[0]["text/plain"] + shown[2]["text/plain"]


@pytest.mark.parametrize(
    ("choices", "judge", "said"),
    [
        (CHOICES, lambda mean: True, "judged right in mean_of_squares: .*, .*; it should be"),
        (CHOICES, lambda mean: False, "judged right in mean_of_squares: none"),
        ({TWICE: ""}, same, "0 lines of mean_of_squares are among the choices"),
        ({OWN: "", "total = torch.zeros(())": ""}, same, "2 lines of mean_of_squares"),
    ],
)
def test_a_chapter_that_asks_wrongly_is_refused(choices, judge, said):
    with pytest.raises(ValueError, match=said):
        MissingLine(mean_of_squares, choices, judge)


def test_a_function_that_its_source_does_not_hold_whole_is_refused():
    factor = 2

    def scaled(value):
        return value * factor

    with pytest.raises(ValueError, match="scaled uses names around its definition"):
        MissingLine(scaled, {"return value * factor": ""}, lambda function: True)
