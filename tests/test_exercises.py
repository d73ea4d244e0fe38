"""All exercises of all techniques: the stub earns nothing, the reference everything, however it is
rounded, and every wrong answer is refused by its own hint.
"""

import ast
import copy
import inspect
import random
import subprocess
import sys
import textwrap
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import count

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from accel_lab import _wording, accumulation, augmentation, catalog, distillation, normalization
from accel_lab.exercises import LessMemory, Wrong, changed
from accel_lab.grading import hints, worked
from accel_lab.grading.difference import difference
from accel_lab.grading.exchange import on_threads
from accel_lab.grading.failure import Failure
from accel_lab.grading.judging import NOT_ATTEMPTED, Verdict, judge
from accel_lab.grading.lookup import exercises, find
from accel_lab.grading.practice import Practice, check
from accel_lab.grading.practice import exercises as practices
from accel_lab.grading.shown import brief
from accel_lab.grading.sides import Here, expected, outcome
from accel_lab.workbench import look
from accel_lab.workbench.notebook import points

ALL = [exercise for word in catalog.with_exercises() for exercise in exercises(word)]
SEEDS = range(12)

# One seed for the inner loop, the others where everything is run.
one_seed_and_more = pytest.mark.parametrize(
    "seeds", [SEEDS[:1], pytest.param(SEEDS[1:], marks=pytest.mark.slow)], ids=["one", "more"]
)
every_exercise = pytest.mark.parametrize("exercise", ALL, ids=lambda exercise: exercise.name)


def test_names_are_given_once():
    names = [exercise.name for exercise in ALL]
    assert len(names) == len(set(names)) > 0


def test_exercises_are_data_and_know_no_grader():
    code = "import sys, accel_lab.catalog as c\nfor w in c.with_exercises(): c.exercises_of(w)\n"
    code += "assert not [m for m in sys.modules if m.startswith('accel_lab.grading')]"
    subprocess.run([sys.executable, "-c", code], check=True)


@every_exercise
def test_the_parts_have_the_names_of_the_dialect(exercise):
    module = sys.modules[exercise.drive.__module__]
    assert vars(module)[exercise.name.upper()] is exercise
    parts = {"": exercise.reference, "_cases": exercise.cases, "_drive": exercise.drive}
    parts |= {"_deal": exercise.deal, "_assess": exercise.assess}
    if exercise.target:
        parts["_large"] = exercise.target.case
    for ending, part in parts.items():
        assert part is None or part.__name__ == exercise.name + ending


@one_seed_and_more
@every_exercise
def test_the_reference_earns_everything(exercise, seeds):
    for seed in seeds[:2]:
        assert judge(exercise, Here(exercise.reference), seed).points == exercise.points > 0


# ---- right, however it is rounded ----


def exactly(answer):
    """The answer in float64, and what it returns, or leaves in its arguments, cast back."""

    def asked(*arguments):
        models = [one for one in arguments if isinstance(one, torch.nn.Module)]
        dtypes = [next(model.parameters()).dtype for model in models]
        inner = [_converted(one, _double) for one in arguments]
        for model in models:
            model.double()
        try:
            returned = answer(*inner)
        finally:
            for model, dtype in zip(models, dtypes, strict=True):
                model.to(dtype)
        _put_back(arguments, inner)
        return _converted(returned, _single_if(_is_single(arguments) or torch.float32 in dtypes))

    return asked


def _double(tensor):
    return tensor.double() if tensor.dtype == torch.float32 else tensor


def _single_if(single):
    def convert(tensor):
        return tensor.float() if single and tensor.dtype == torch.float64 else tensor

    return convert


def _is_single(thing):
    if isinstance(thing, torch.Tensor):
        return thing.dtype == torch.float32
    return isinstance(thing, list | tuple) and any(map(_is_single, thing))


def _converted(thing, convert):
    if isinstance(thing, torch.Tensor):
        return convert(thing)
    if isinstance(thing, list | tuple):
        return type(thing)(_converted(one, convert) for one in thing)
    if inspect.isfunction(thing) or inspect.ismethod(thing):

        def called(*arguments):
            single = [_converted(one, _single_if(True)) for one in arguments]
            returned = thing(*single)
            _put_back(arguments, single)
            return _converted(returned, convert)

        return called
    return thing


def _put_back(outer, inner):
    """What was done to converted arguments in place is done to the arguments themselves."""
    for one, other in zip(outer, inner, strict=True):
        if isinstance(one, torch.Tensor) and one is not other:
            with torch.no_grad():
                one.copy_(other)


class OtherOrder(TorchDispatchMode):
    """Sums run from the end to the beginning."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("sum", "mean", "var", "std") and args[0].is_floating_point():
            args = (args[0].flip(tuple(range(args[0].dim()))), *args[1:])
            return self._flipped_back(function(*args, **(kwargs or {})))
        if name in ("mm", "addmm"):
            *bias, a, b = args
            args = (*bias, a.flip(1), b.flip(0))
        return function(*args, **(kwargs or {}))

    def _flipped_back(self, returned):
        return returned.flip(tuple(range(returned.dim())))


def in_another_order(answer):
    def asked(*arguments):
        with OtherOrder():
            return answer(*arguments)

    return asked


def on_views(answer):
    """On views of the tensors that are not contiguous."""

    def spread(tensor):
        if tensor.requires_grad:
            return torch.stack([tensor, tensor], -1)[..., 0]
        return torch.stack([tensor, tensor], -1)[..., 0].detach()

    def asked(*arguments):
        functions = [inspect.isfunction(one) or inspect.ismethod(one) for one in arguments]
        inner = [
            one if is_function else _converted(one, spread)
            for one, is_function in zip(arguments, functions, strict=True)
        ]
        returned = answer(*inner)
        if not any(isinstance(one, torch.Tensor) and one.requires_grad for one in arguments):
            _put_back(arguments, inner)
        return returned

    return asked


@one_seed_and_more
@pytest.mark.parametrize("rounded", [exactly, in_another_order, on_views])
@every_exercise
def test_rounding_costs_nothing(exercise, rounded, seeds):
    """More exact, in another order of summation, on tensors that lie in memory otherwise."""
    exercise = replace(exercise, target=None)
    for seed in seeds[:9]:
        verdict = judge(exercise, Here(rounded(exercise.reference)), seed)
        assert verdict.points == exercise.points, (seed, verdict)


# ---- right, by the library's own functions ----


def _token_update(model, optimizer, micro_batches):
    def classes_second(x):
        return model(x).movedim(-1, 1)

    return accumulation.accumulated_update(classes_second, optimizer, micro_batches)


def _train_epoch(model, optimizer, loader, accumulate):
    groups = [loader[first : first + accumulate] for first in range(0, len(loader), accumulate)]
    for group in groups:
        accumulation.accumulated_update(model, optimizer, group)
    return len(groups)


def _half_labelled_loss(student, teacher, labels, temperature, soft_share):
    labels = labels.where(labels >= 0, accumulation.IGNORED)
    return distillation.distillation_loss(student, teacher, labels, temperature, soft_share)


def _scaled_alike(train, test):
    scale = normalization.to_unit_variance(normalization.fit(train))
    return scale(train), scale(test)


def _merged(a, b):
    parts = [
        normalization.Moments(torch.full_like(mean, n), mean, variance * n, mean, mean)
        for n, mean, variance in (a, b)
    ]
    both = parts[0] + parts[1]
    return int(both.count[0]), both.mean, both.variance


def _batch_norm(x, mean, variance, training):
    layer = normalization.BatchNorm(x.shape[1]).to(x.dtype).train(training)
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(variance)
    return layer(x).detach(), layer.running_mean, layer.running_var


def _normalize_into(x, mean, deviation, out):
    low, high = torch.zeros_like(mean), torch.full_like(mean, 255)
    normalization.Normalizer(mean, 1 / deviation, low, high, integers=True)(x, out)


def _shift_each(x, right, down):
    border = 3
    return augmentation.crop(x, border, border - right, border - down)


def _misheard(text, table, keep):
    """With the exercise's table instead of the library's, which brings no such word in."""
    alike = {word: (other,) for word, other in table.items() if other not in keep}
    return _wording._replace(text, alike, 0, 1.0, True, "english", passed_over=frozenset(keep))


LIBRARY = {
    "token_update": _token_update,
    "train_epoch": _train_epoch,
    "half_labelled_loss": _half_labelled_loss,
    "keep_logits": distillation.logits_of,
    "scaled_alike": _scaled_alike,
    "merged": _merged,
    "batch_norm": _batch_norm,
    "normalize_into": _normalize_into,
    "shift_each": _shift_each,
    "misheard": _misheard,
}
# What these ask for, no function of the library does: it is the next thought, not the chapter's.
BEYOND_THE_LIBRARY = {
    "serve_bounded",  # the library's server keeps no time
    "train_with_server",
    "best_mode",
    "candidates_for",  # the library's plan has a number, and no budget
    "winner_of",
    "train_all",  # the library's members have a hidden layer
    "draw_rates",
    "longest_first",  # the library's batches come in any order
    "last_states",
    "packed_rnn",  # the library has the other two cells
    "filling_to_expect",  # the library draws with replacement
    "bag_means",  # the library's has no weights
    "apply_rows",
    "adagrad_rows",
    "clean_tokens",
    "clip_accumulated",  # the library's update has one batch, and no scale
    "train_clipped",
    "clip_sharded",
    "measure_pairs",  # compare() has a clock of its own
    "paired_speedup",
    "intensity_of_linear",
    "enlarged",
    "fewest_micro_batches",
    "ring_average",  # the library's ring turns the other way
    "train_on_rank",
    "best_ranks",
    "schedule_over_wires",
    "cut",
    "backward_again",
    "bias_for_share",
    "round_by_chance",
    "train_scaled",  # the library's scaler checks before it clips
    "compensated_step",
    "debiased_ema",  # of states that pass by, not of a model
    "train_averaged",
    "width_within",  # the library's width has a budget of parameters, not of bytes
    "drop_units",
    "cut_linear",  # the library's layer returns the kept units alone
    "collapse",
    "sort_units",  # by nearest weights, of units that are nearly equal
    "ema_update",
    "recompute_with",  # the library's has one input
    "sharded_update",  # the library's pieces are dealt out otherwise
    "segments_for",  # the library looks for the lowest peak
    "epoch_batches",  # the library deals out samples, not indices
    "epoch_mean_loss",
    "noise_of_ranks",  # the library's parts belong to one model
    "fetch_batches",  # the library draws the order itself
    "decodes",  # the library foretells the hits of one epoch
    "keep_first",
    "augmented_batches",
    "read_ahead",  # the library reads batches that come by themselves
    "cut_crops",  # the library also flips and darkens
    "freeze_first",  # the library wraps what it freezes
    "tune_head",
    "epochs_on_kept",
    "epochs_to_pay",
}


def test_of_each_exercise_it_is_known_whether_the_library_does_it():
    assert LIBRARY.keys() | BEYOND_THE_LIBRARY == {exercise.name for exercise in ALL}
    assert not LIBRARY.keys() & BEYOND_THE_LIBRARY


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARY)
def test_the_librarys_own_function_earns_everything(name):
    exercise = find(name)
    for seed in SEEDS[:3]:
        verdict = judge(exercise, Here(LIBRARY[name]), seed)
        assert verdict.points == exercise.points, (seed, verdict)


# ---- wrong, and why ----


@one_seed_and_more
@every_exercise
def test_every_wrong_answer_is_refused_by_its_own_hint(exercise, seeds, monkeypatch):
    """On every seed. What an answer of ours returns for a case is computed once for all."""
    known = {}

    def once(exercise, answer, case):
        if (answer, id(case)) not in known:
            known[answer, id(case)] = outcome(exercise, answer, case)
        return known[answer, id(case)]

    monkeypatch.setattr(hints, "outcome", once)
    for seed in seeds:
        cases = list(exercise.cases(random.Random(seed)))
        right = [expected(exercise, case) for case in cases]
        for wrong in exercise.wrong:
            if exercise.target and wrong is exercise.target.refuses:
                continue
            for answer in wrong.answers:
                got = [once(exercise, answer, case) for case in cases]
                assert not any(getattr(one, "kind", "") == "NameError" for one in got), got
                assert hints.hint(exercise, cases, got, right) == wrong.hint, seed
        known.clear()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("exercise", "answer"),
    [(one, answer) for one in ALL if one.target for answer in one.target.refuses.answers],
    ids=lambda thing: getattr(thing, "name", None),
)
def test_what_misses_the_target_is_refused_by_its_hint(exercise, answer):
    verdict = judge(exercise, Here(answer), 0)
    assert (verdict.points, verdict.hint) == (0, exercise.target.refuses.hint)
    assert verdict.reason.startswith("right, but")
    assert "\n" not in verdict.reason


@pytest.mark.parametrize("name", ["normalize_into", "shift_each"])
@pytest.mark.parametrize(
    ("later", "reason"),
    [(lambda out: 1 / 0, "ZeroDivisionError"), (lambda out: out.mul_(2), "values differ")],
)
def test_what_goes_wrong_on_the_larger_case_alone_is_not_told_the_target_s_hint(
    name, later, reason
):
    exercise, calls = find(name), []
    cases = len(list(exercise.cases(random.Random(0))))

    def answer(*arguments):
        calls.append(1)
        made = exercise.reference(*arguments)
        return later(arguments[-1] if made is None else made) if len(calls) > cases else made

    verdict = judge(exercise, Here(answer), 0)
    assert verdict.reason.startswith("right, but on a larger case: ")
    assert reason in verdict.reason
    assert verdict.hint == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "exercise",
    [one for one in ALL if isinstance(one.target, LessMemory)],
    ids=lambda exercise: exercise.name,
)
def test_a_limit_of_memory_is_far_from_right_and_from_wrong(exercise):
    """So that no luck decides: three times on either side, and a little of that for luck here."""
    target, far = exercise.target, 2.5
    for answer, factor in (
        (exercise.reference, 1 / far),
        *((answer, far) for answer in target.refuses.answers),
    ):
        moved = replace(target, bytes=int(target.bytes * factor))
        verdict = judge(replace(exercise, target=moved), Here(answer), 1)
        assert bool(verdict.points) == (answer is exercise.reference), verdict


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_room_that_was_free_before_is_not_taken_for_the_answers_memory():
    """What the kernel has freed leaves gaps, and a block that lies in one would stay when freed."""
    exercise = find("normalize_into")
    case = next(exercise.cases(random.Random(0)))
    sizes = range(300_000, 700_000, 10_000)  # floats

    def answer(x, mean, deviation, out):
        for size in sizes:
            torch.ones(size)

    Here(answer).ask(exercise, case, 1 << 30)  # what is allocated from now on lies in the heap
    lie = [(torch.ones(size), torch.ones(30_000)) for size in sizes]
    between = [small for _, small in lie]
    del lie
    assert not isinstance(Here(answer).ask(exercise, case, 8 << 20), Failure)
    assert len(between) == len(sizes)


UPDATED_ROWS = "table.index_copy(0, present, rows - lr * (sums + decay * rows))"
COMBINATIONS = [
    ("half_labelled_loss", " * temperature**2", "student[seen], labels[seen]"),
    ("batch_norm", "momentum = (0, 2, 3), 0.1", "now_mean, now_variance = mean, variance"),
    ("train_epoch", " * len(y) / samples", "        optimizer.zero_grad()\n"),
    ("paired_speedup", "median(speedups)", "max(wins, losses)"),
    ("scaled_alike", "correction=0", "(0, 2, 3)"),
    ("measure_pairs", "    ours(), peer()\n", "index % 2 == 0"),
    # the function as given has these two mistakes, and a third one that was repaired already
    ("apply_rows", "sums = sums.index_add(0, places, gradients)", UPDATED_ROWS),
    ("clean_tokens", "dropped = stop - negations", "if token.lower() not in"),
]


@pytest.mark.parametrize(("name", "one", "other"), COMBINATIONS, ids=lambda text: text[:20])
def test_two_mistakes_at_once_get_both_hints(name, one, other):
    exercise = replace(find(name), target=None)
    pair = [
        next(wrong for wrong in exercise.wrong if wrong.change and wrong.change[1] == old)
        for old in (one, other)
    ]
    both = changed(pair[0].answer, *pair[1].change[1:])
    hint = judge(exercise, Here(both), 0).hint
    assert sorted(hint.splitlines()) == sorted(wrong.hint for wrong in pair)


def test_a_mistake_in_one_component_is_recognized_beside_another_one():
    def merged(a, b):
        n, _, variance = find("merged").reference(a, b)
        return n, (a[1] + b[1]) / 2, variance * 1.2345

    assert "mean of the two means" in judge(find("merged"), Here(merged), 0).hint


UNRELATED = [
    ("fewest_micro_batches", lambda *arguments: 7),
    ("paired_speedup", lambda ours, peer: {"speedup": 1.0, "agreeing": 3}),
    ("bias_for_share", lambda logits, column, share: 0.5),
    ("cut", lambda seconds, bytes_held, stages, limit: [1] * stages),
    ("merged", lambda a, b: (a[0] + b[0], a[1] * 0, b[2] * 0)),
    ("best_ranks", lambda *arguments: (2, 0.5)),
    ("misheard", lambda text, table, keep: "what?"),
]


@pytest.mark.parametrize(("name", "answer"), UNRELATED, ids=[name for name, _ in UNRELATED])
def test_no_hint_without_evidence(name, answer):
    for seed in SEEDS:
        verdict = judge(find(name), Here(answer), seed)
        assert (verdict.points, verdict.hint) == (0, "")


@every_exercise
def test_hints_differ(exercise):
    assert len({wrong.hint for wrong in exercise.wrong}) == len(exercise.wrong) >= 3


def test_a_change_has_to_fit_in_one_place():
    def twice(x):
        return x + x

    assert changed(twice, "x + x", "x * 3")(2) == 6
    assert "x * 3" in inspect.getsource(changed(twice, "x + x", "x * 3"))
    for old in ("x", "y"):
        with pytest.raises(ValueError, match="not once"):
            Wrong.changed(twice, old, "z", "A hint.")


@every_exercise
def test_a_stub_is_not_attempted(exercise):
    def stub(*arguments):
        raise NotImplementedError

    verdict = judge(exercise, Here(stub), 0)
    assert (verdict.points, verdict.reason, verdict.attempted) == (0, NOT_ATTEMPTED, False)


@every_exercise
def test_a_crash_earns_nothing_and_is_named(exercise):
    def divides_by_zero(*arguments):
        return 1 / 0

    verdict = judge(exercise, Here(divides_by_zero), 0)
    assert verdict.points == 0
    assert "ZeroDivisionError in line" in verdict.reason


@pytest.mark.slow
@pytest.mark.parametrize("nonsense", [None, "42"])
@every_exercise
def test_nonsense_earns_nothing(exercise, nonsense):
    assert judge(exercise, Here(lambda *arguments: nonsense), 0).points == 0


MESSAGES = [
    ("measure_pairs", lambda *arguments: None, "you returned nothing: end the function with ret"),
    ("half_labelled_loss", lambda *arguments: None, "you returned nothing"),
    ("token_update", lambda *arguments: None, "you returned nothing"),
    ("shift_each", lambda x, right, down: x.numpy(), "not plain data: return a tensor"),
    ("measure_pairs", lambda ours, peer, clock, pairs: [[1, 2]] * pairs, "pair 0, seconds of ours"),
    ("schedule_over_wires", lambda *arguments: [], "'stage 0 lacks backward 0'"),
    ("cut", lambda *arguments: [1, 1], "which does not cut"),
]


@pytest.mark.parametrize(("name", "answer", "said"), MESSAGES, ids=[one[2] for one in MESSAGES])
def test_a_reason_names_the_place_and_what_to_do(name, answer, said):
    assert said in judge(find(name), Here(answer), 0).reason


def test_a_rank_that_raises_is_named_and_not_those_that_wait_for_it():
    def ring_average(gradient, share, rank, world, send, receive):
        if rank == 1:
            raise LookupError("lost")
        return receive() if world > 1 else gradient * share

    assert "rank 1: LookupError" in judge(find("ring_average"), Here(ring_average), 0).reason


# ---- cases and drivers ----


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
            on_threads(exercise.reference, drive, exercise.deal(case), 60.0)[0]
            if exercise.deal
            else drive(exercise.reference, case)
        )
        assert is_plain(alone)
        with_all = Here(exercise.reference).ask(exercise, same_case)
        assert not difference(alone, with_all["ranks"] if exercise.deal else with_all, 0.0)


@every_exercise
def test_the_driver_follows_a_case_into_float64(exercise):
    for case in exercise.cases(random.Random(3)):
        want, exact = expected(exercise, case)
        assert type(exact) is type(want)  # and not a Failure
        assert not difference(want, want, 1e-4, exact)


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

    assert Practice(exercise).check(answer).points == exercise.points
    answer.__name__ = exercise.name
    assert check(answer).points == exercise.points
    with pytest.raises(ValueError, match="no exercise asks for a function called 'nonsense'"):
        check(_named("nonsense"))
    with pytest.raises(ValueError, match="give it the function itself"):
        check(42)


def _named(name: str):
    def function():
        pass

    function.__name__ = name
    return function


def test_a_chapter_shows_the_task_of_each_exercise():
    for word in catalog.with_exercises():
        for practice, exercise in zip(practices(word), exercises(word), strict=True):
            assert exercise.task in practice._repr_markdown_()
            points = "1 point" if exercise.points == 1 else f"{exercise.points} points"
            assert repr(practice) == f"Exercise {exercise.name}, {points}"


# ---- what a chapter says to a learner ----

COURSE = catalog.HERE.parent / "course" / "source"
SOURCES = list(catalog.chapters(COURSE, ".py"))


def as_found() -> list:
    """The functions that chapters give to be repaired, each with what its chapter has imported."""
    found = []
    for file in SOURCES:
        imports, names = [], {exercise.name for exercise in ALL}
        for node in ast.parse(file.path.read_text(encoding="utf-8")).body:
            text = ast.unparse(node)
            if isinstance(node, ast.Import | ast.ImportFrom):
                imports.append(text)
            if not isinstance(node, ast.FunctionDef) or node.name not in names:
                continue
            if "NotImplementedError" not in text:  # else it is to be written
                code = "\n".join([*imports, text])
                found.append(pytest.param(node.name, code, id=node.name))
    return found


@pytest.mark.parametrize(("name", "code"), as_found())
def test_what_is_to_be_repaired_runs_and_is_refused_with_a_word(name, code):
    names: dict = {}
    exec(compile(code, "<chapter>", "exec"), names)
    for seed in SEEDS[:3]:
        verdict = judge(find(name), Here(names[name]), seed)
        assert verdict.points == 0
        assert "Error" not in verdict.reason
        assert verdict.hint, verdict


GIVEN = [(one.name, wrong.answer) for one in ALL for wrong in one.wrong if wrong.given]


@pytest.mark.parametrize(("name", "answer"), GIVEN, ids=[name for name, _ in GIVEN])
def test_what_is_taken_for_the_chapters_code_is_the_chapters_code(name, answer):
    """Else a reader's untouched cell would count as a try."""
    (code,) = [one.values[1] for one in as_found() if one.id == name]
    theirs = ast.parse(code).body[-1]
    (ours,) = ast.parse(textwrap.dedent(inspect.getsource(answer))).body
    assert ast.unparse(theirs.body) == ast.unparse(ours.body)
    assert [one.arg for one in theirs.args.args] == [one.arg for one in ours.args.args]


@every_exercise
def test_a_solution_comes_with_its_reasoning(exercise):
    assert len(exercise.reasoning.split()) > 30
    assert max(map(len, exercise.reasoning.splitlines())) <= 100


def test_help_comes_in_rungs():
    exercise = find("fewest_micro_batches")
    practice = Practice(exercise)
    rounds_down, all_of_them = exercise.wrong[1].answer, exercise.wrong[2].answer
    first = practice.check(rounds_down, 0)
    assert "of 15 cases" in first.right
    assert "budget = " in first.case
    assert len(first.case.splitlines()) == 3
    assert "round up" in first.hint
    assert first.lines == "return -(-batch_size // min(fit, batch_size))"
    assert not first.solution
    assert not practice.check(rounds_down, 1).solution  # the same answer again is no other try
    html = practice.check(all_of_them, 0)._repr_html_()
    assert html.count("<details") == 2
    assert "<details open" not in html
    assert "find how many whole samples fit" in html
    right = practice.check(exercise.reference, 0)
    assert (right.lines, right.solution, right.right, right.case) == ("", "", "", "")


@every_exercise
def test_a_worked_solution_can_be_pasted(exercise):
    names: dict = {}
    exec(compile(worked.source(exercise.reference), "<pasted>", "exec"), names)
    assert judge(exercise, Here(names[exercise.name]), 0).points == exercise.points


def test_what_a_chapter_gives_is_no_try():
    exercise = find("train_on_rank")
    given = next(wrong.answer for wrong in exercise.wrong if wrong.given)
    others = [wrong.answer for wrong in exercise.wrong if not wrong.given]
    practice = Practice(exercise)
    for answer, offered in ((given, False), (others[0], False), (given, False), (others[1], True)):
        assert bool(practice.check(answer, 0).solution) == offered


def test_a_reasoning_is_marked_up():
    said = look.marked_up("`a * b` and *sum*, 2 * 3 * 4 < 9")
    assert said == "<code>a * b</code> and <em>sum</em>, 2 * 3 * 4 &lt; 9"


def test_a_hint_is_marked_up_and_what_a_learner_wrote_is_not():
    html = Verdict("mend", 0, 2, "a `b` <i>", "use `split(x)`, not <b>")._repr_html_()
    assert "Hint: use <code>split(x)</code>, not &lt;b&gt;" in html
    assert "a `b` &lt;i&gt;" in html


def test_a_stub_is_no_try():
    def ring_average(*arguments):
        raise NotImplementedError

    for _ in range(3):
        said = check(ring_average)
    assert (said.solution, said.case) == ("", "")


def raises(*arguments):
    return unknown_name + 1  # noqa: F821


def with_words_alone(*arguments):
    """Not written yet."""


def without_return(*arguments):
    sum([1, 2])


@pytest.mark.parametrize("answer", [raises, with_words_alone, without_return])
@pytest.mark.parametrize("name", ["bias_for_share", "ring_average", "merged"])
def test_a_crash_or_nothing_returned_is_no_try(name, answer, monkeypatch):
    tries: defaultdict = defaultdict(set)
    monkeypatch.setattr("accel_lab.grading.practice._refused", tries)
    said = Practice(find(name)).check(answer, 0)
    assert (said.points, said.attempted, tries[name]) == (0, True, set())


def test_what_fills_nothing_is_a_try_only_where_it_does_something(monkeypatch):
    tries: defaultdict = defaultdict(set)
    monkeypatch.setattr("accel_lab.grading.practice._refused", tries)
    exercise = find("normalize_into")
    for answer, counted in ((with_words_alone, 0), (raises, 0), (without_return, 1)):
        Practice(exercise).check(answer, 0)
        assert len(tries[exercise.name]) == counted


def test_a_crash_in_one_case_of_many_is_a_try(monkeypatch):
    """The rest of an answer is there."""
    tries: defaultdict = defaultdict(set)
    monkeypatch.setattr("accel_lab.grading.practice._refused", tries)
    Practice(find("fewest_micro_batches")).check(fails_in_case(2), 0)
    assert len(tries["fewest_micro_batches"]) == 1


def test_the_smallest_case_is_explained():
    exercise = find("shift_each")
    cases = list(exercise.cases(random.Random(0)))
    fewest = min(case["x"].numel() for case in cases)
    said = judge(exercise, Here(lambda x, right, down: x + 1), 0).case
    shape = eval(said.splitlines()[0].partition("float32 ")[2])
    assert torch.Size(shape).numel() == fewest


def fails_in_case(place: int) -> Callable[..., int]:
    """An answer that returns what is wrong, and cannot even do that in one of its cases."""
    asked = count()

    def fewest_micro_batches(batch_size, bytes_per_sample, budget):
        return 1 // 0 if next(asked) == place else -1

    return fewest_micro_batches


def test_what_fails_is_explained_before_what_differs_later():
    """It may have spoiled the later cases: their processes may be gone."""
    verdict = judge(find("fewest_micro_batches"), Here(fails_in_case(0)), 0)
    assert verdict.reason.startswith("ZeroDivisionError")


def test_what_differs_is_explained_before_what_fails_later():
    verdict = judge(find("fewest_micro_batches"), Here(fails_in_case(2)), 0)
    assert "-1 instead of" in verdict.reason
    assert "ZeroDivisionError" in verdict.report


CASES = [
    ({"n": 3, "rate": 0.1 + 0.2}, "n = 3\nrate = 0.3"),
    ({"x": torch.ones(2, 2)}, "x = [[1, 1], [1, 1]]"),
    ({"x": torch.ones(5, 4)}, "x = float32 [5, 4]"),
    ({"y": torch.ones(50, dtype=torch.int64)}, "y = int64 [50]"),
    ({"parts": [[0, 1], [2]], "none": None}, "parts = [[0, 1], [2]]\nnone = None"),
    ({"parts": [[7]] * 40}, "parts = [[7], … 40 in all]"),
    ({"texts": [["not", "a", "bad", "film"], []]}, "texts = [['not', 'a', 'bad', 'film'], []]"),
    (
        {"pair": [torch.ones(9, 9), torch.ones(9)]},
        "pair = [float32 [9, 9], [1, 1, 1, 1, 1, 1, 1, 1, 1]]",
    ),
    ({"text": "word " * 40}, "text = '" + "word " * 11 + "wor…"),
    ({str(i): i for i in range(10)}, "\n".join(f"{i} = {i}" for i in range(8)) + "\n…"),
]


@pytest.mark.parametrize(("case", "said"), CASES, ids=[one[1][:9] for one in CASES])
def test_a_case_is_told_in_short(case, said):
    assert brief(case) == said


@pytest.mark.parametrize("name", ["fewest_micro_batches", "ring_average"])
def test_an_answer_that_does_not_end_is_ended(name, monkeypatch):
    """And nothing of it runs on."""

    def never(*arguments):
        while True:
            with suppress(Exception):  # what ends it is no Exception
                time.sleep(0.001)

    threads = threading.active_count()
    monkeypatch.setattr("accel_lab.grading.practice.SECONDS", 0.5)
    reason = Practice(find(name)).check(never).reason
    assert "timeout in line" in reason
    assert "no answer within 0.5 s" in reason
    assert threading.active_count() == threads


def test_a_rank_that_does_not_end_is_named():
    def ring_average(gradient, share, rank, world, send, receive):
        while rank == 1:
            pass
        return receive() if world > 1 else gradient * share

    reason = judge(find("ring_average"), Here(ring_average, 1.0), 0).reason
    assert "rank 1: timeout" in reason


def test_points_are_kept_for_the_reader_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCEL_LAB_HOME", str(tmp_path))
    exercise = find("intensity_of_linear")
    for watched, kept in (("1", {}), ("0", {exercise.name: exercise.points})):
        monkeypatch.setenv("ACCEL_LAB_HEADLESS", watched)
        Practice(exercise).check(lambda *arguments: 0.0)
        assert points.earned() == {}
        Practice(exercise).check(exercise.reference)
        assert points.earned() == kept
        Practice(exercise).check(lambda *arguments: 0.0)
        assert points.earned() == kept  # what is earned stays


# ---- differences ----

t = torch.tensor
UNEQUAL = [
    (1, 2, "1 instead of 2"),
    (True, 1, "an integer was expected, a bool came"),
    (1.5, 1, "an integer was expected, a float came"),
    (None, 1.0, "a float was expected, None came"),
    (float("nan"), 1.0, "nan instead of 1"),
    (0.0, float("inf"), "0 instead of inf"),
    ([1], [1, 2], "1 values instead of 2"),
    ({"b": 1}, {"a": 1, "b": 1}, "'a' is missing"),
    ({"a": 1, "b": 1}, {"a": 1}, "'b' was not asked for"),
    ({"a": 2}, {"a": 1, "b": 1}, "a: 2 instead of 1"),
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


def test_what_rounding_does_to_the_reference_is_allowed_and_no_more():
    want, exact = t([100.0]), t([100.01]).double()  # 1e-4 off, ten times the tolerance
    for got, is_right in ((exact.float(), True), (want, True), (t([100.2]), False)):
        assert (difference(got, want, 1e-5, exact) == "") == is_right
    assert difference(100.01, 100.0, 1e-5, 100.01) == ""
    assert difference(100.2, 100.0, 1e-5, 100.01)


@every_exercise
def test_a_number_one_percent_off_is_seen(exercise):
    """Whatever its size: what is tiny beside the tolerance would pass as anything."""
    for case in exercise.cases(random.Random(3)):
        want, exact = expected(exercise, case)
        for off in one_off(want):
            assert difference(off, want, exercise.tolerance, exact)


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
