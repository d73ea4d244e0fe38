"""All exercises of all techniques: the stub earns nothing, the reference everything, every wrong
answer is refused by its own hint.
"""

import copy
import inspect
import pkgutil
import random

import pytest
import torch

import accel_lab.exercises as folder
from accel_lab.exercises import Exercise, check, exercises, find
from accel_lab.grading.comparison import difference
from accel_lab.grading.exchange import on_threads
from accel_lab.grading.judging import NOT_ATTEMPTED, Here, _assessed, judge

ALL = [
    exercise
    for module in pkgutil.iter_modules(folder.__path__)
    for exercise in exercises(module.name)
]
WRONG = [(exercise, wrong) for exercise in ALL for wrong in exercise.wrong]
SEEDS = range(6)


def each(items: list) -> pytest.MarkDecorator:
    def name(item: object) -> str:
        return item.name if isinstance(item, Exercise) else item.hint[:30]

    return pytest.mark.parametrize(("exercise", "wrong"), items, ids=name)


every_exercise = pytest.mark.parametrize("exercise", ALL, ids=lambda exercise: exercise.name)


def test_names_are_given_once():
    names = [exercise.name for exercise in ALL]
    assert len(names) == len(set(names)) > 0


@every_exercise
def test_the_reference_earns_everything(exercise):
    for seed in SEEDS[:3] if exercise.target else SEEDS:
        assert judge(exercise, Here(exercise.reference), seed).points == exercise.points > 0


@every_exercise
def test_a_stub_is_not_attempted(exercise):
    def stub(*arguments):
        raise NotImplementedError

    verdict = judge(exercise, Here(stub), 0)
    assert (verdict.points, verdict.reason, verdict.attempted) == (0, NOT_ATTEMPTED, False)


@each(WRONG)
def test_a_wrong_answer_is_refused_by_its_own_hint(exercise, wrong):
    for seed in SEEDS:
        verdict = judge(exercise, Here(wrong.answer), seed)
        assert (verdict.points, verdict.hint) == (0, wrong.hint)
        assert "\n" not in verdict.reason
        if exercise.target and wrong is exercise.target.refuses:
            break  # one try takes as long as all others together


@every_exercise
def test_hints_differ(exercise):
    assert len({wrong.hint for wrong in exercise.wrong}) == len(exercise.wrong) >= 3


@every_exercise
def test_nonsense_and_crashes_earn_nothing(exercise):
    def divides_by_zero(*arguments):
        return 1 / 0

    for answer in (lambda *arguments: None, lambda *arguments: "42", divides_by_zero):
        assert judge(exercise, Here(answer), 0).points == 0
    assert "ZeroDivisionError in line" in judge(exercise, Here(divides_by_zero), 0).reason


@every_exercise
def test_cases_are_plain_fresh_and_reproducible(exercise):
    first, again, other = (list(exercise.cases(random.Random(seed))) for seed in (1, 1, 2))
    assert len(first) >= 2
    assert all(is_plain(case) for case in first)
    assert not difference(first, again, 0.0)
    assert difference(first, other, 0.0)


@every_exercise
def test_the_driver_stands_by_itself(exercise):
    """Its source alone, run where this package is unknown, gives the same answer."""
    source = inspect.getsource(exercise.drive)
    assert "accel_lab" not in source
    namespace: dict = {}
    exec(compile(source, "<driver>", "exec"), namespace)
    drive = namespace[exercise.drive.__name__]
    for case, same_case in zip(*(exercise.cases(random.Random(3)) for _ in range(2)), strict=True):
        alone = (
            on_threads(exercise.reference, drive, exercise.deal(case))[0]
            if exercise.deal
            else drive(exercise.reference, case)
        )
        assert is_plain(alone)
        with_all = Here(exercise.reference).ask(exercise, same_case)
        assert not difference(alone, with_all["ranks"] if exercise.deal else with_all, 0.0)


def is_plain(thing: object) -> bool:
    if type(thing) is dict:
        return all(type(key) is str and is_plain(value) for key, value in thing.items())
    if type(thing) is list:
        return all(map(is_plain, thing))
    return thing is None or type(thing) in (bool, int, float, str, torch.Tensor)


def test_check_finds_the_exercise_by_the_functions_name():
    exercise = ALL[0]

    def answer(*arguments):
        return exercise.reference(*arguments)

    answer.__name__ = exercise.name
    assert check(answer).points == exercise.points
    with pytest.raises(ValueError, match="no exercise asks for a function called 'nonsense'"):
        find("nonsense")
    with pytest.raises(ValueError, match="give it the function itself"):
        check(42)


t = torch.tensor
UNEQUAL = [
    (1, 2, "1 instead of 2"),
    (True, 1, "an integer was expected, a bool came"),
    (1.5, 1, "an integer was expected, a float came"),
    (None, 1.0, "a float was expected, None came"),
    (float("nan"), 1.0, "nan instead of 1"),
    (0.0, float("inf"), "0 instead of inf"),
    ([1], [1, 2], "1 values instead of 2"),
    ({"a": 1}, {"b": 1}, "the names"),
    ({"a": [1, 3]}, {"a": [1, 2]}, "a: value 1: 3 instead of 2"),
    (t([1.0]), t([[1.0]]), "shape [1] instead of [1, 1]"),
    (t([1.0]), t([1.0]).double(), "dtype torch.float32 instead of torch.float64"),
    (t([float("nan"), 1.0]), t([1.0, 1.0]), "NaN or infinite values"),
    (t([1.0, 1.1]), t([1.0, 1.0]), "1 of 2 values differ, by up to 0.1"),
    (t([1, 2]), t([1, 3]), "1 of 2 values differ"),
    (torch.nn.Parameter(t([1.0])), t([1.0]), "a tensor was expected, a Parameter came"),
]


@pytest.mark.parametrize(("got", "want", "reason"), UNEQUAL)
def test_a_difference_is_told(got, want, reason):
    assert reason in difference(got, want, 1e-5)


@pytest.mark.parametrize(
    "thing", [None, True, 3, 2.5, "a", [1, [2.0]], {"a": torch.ones(2, 3)}, torch.ones(0)], ids=str
)
def test_what_is_equal_is_equal(thing):
    assert difference(thing, thing, 1e-5) == ""


def test_a_whole_number_may_stand_for_a_float():
    assert difference(1, 1.0, 1e-5) == ""


@every_exercise
def test_a_number_one_percent_off_is_seen(exercise):
    """Whatever its size: what is tiny beside the tolerance would pass as anything."""
    side = Here(exercise.reference)
    for case in exercise.cases(random.Random(3)):
        want = _assessed(exercise, side.ask(exercise, case), case)
        for off in one_off(want):
            assert difference(off, want, exercise.tolerance)


def one_off(thing):
    """All that come from a thing by making one of its numbers or tensors 1 % smaller."""
    if isinstance(thing, dict | list):
        for place in thing if isinstance(thing, dict) else range(len(thing)):
            for off in one_off(thing[place]):
                changed = copy.copy(thing)
                changed[place] = off
                yield changed
    elif (isinstance(thing, float) and thing) or (
        isinstance(thing, torch.Tensor) and thing.is_floating_point() and thing.any()
    ):
        yield thing * 0.99
