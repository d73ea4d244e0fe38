"""Our loss is torch's, in value and gradient; kept logits are the teacher's; the student learns."""

import math
from contextlib import nullcontext
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, one_hot, softmax

from accel_lab.distillation import distillation_loss, hint_loss, logits_of, perplexity, soft_loss
from accel_lab.experiments import distillation as experiment
from accel_lab.experiments.distillation import Knobs
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.knobs import KnobError

SMALL_KNOBS = {
    "samples": 100,
    "teacher_updates": 60,
    "seed": 1,
}  # the chapter in little, for papermill

temperatures = st.floats(0.5, 50)
sizes = st.tuples(st.integers(1, 9), st.integers(2, 12))
seeds = st.integers(0, 2**31 - 1)


def logits(
    size: tuple[int, int], seed: int, spread: float = 3.0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        spread * torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return student.requires_grad_(), teacher


def torchs(student: torch.Tensor, teacher: torch.Tensor, t: float) -> torch.Tensor:
    return (
        kl_div(log_softmax(student / t, 1), softmax(teacher / t, 1), reduction="batchmean") * t**2
    )


# ---- the loss ----


@given(sizes, seeds, temperatures)
def test_equal_to_torchs_in_value_and_gradient(size, seed, t):
    student, teacher = logits(size, seed)
    values = [loss(student, teacher, t) for loss in (soft_loss, torchs)]
    gradients = [torch.autograd.grad(value, student)[0] for value in values]
    torch.testing.assert_close(*values, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@given(sizes, seeds, temperatures)
def test_its_gradient_is_the_difference_of_the_opinions(size, seed, t):
    student, teacher = logits(size, seed)
    (gradient,) = torch.autograd.grad(soft_loss(student, teacher, t), student)
    expected = t * (softmax(student / t, 1) - softmax(teacher / t, 1)) / size[0]
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-9, atol=1e-12)


@given(sizes, seeds)
def test_hot_enough_it_is_matching_centred_logits(size, seed):
    """Hinton et al. 2015, section 2.1."""
    student, teacher = logits(size, seed, spread=1.0)
    (gradient,) = torch.autograd.grad(soft_loss(student, teacher, 1e4), student)
    centred = [value - value.mean(1, keepdim=True) for value in (student, teacher)]
    torch.testing.assert_close(
        gradient, ((centred[0] - centred[1]) / (size[0] * size[1])).detach(), rtol=1e-2, atol=1e-3
    )


@given(sizes, seeds, temperatures)
def test_never_negative_and_nothing_where_they_agree(size, seed, t):
    student, teacher = logits(size, seed)
    assert soft_loss(student, teacher, t) >= -1e-12
    # a constant added to all logits changes nothing
    assert soft_loss(teacher + 7, teacher, t) == pytest.approx(0, abs=1e-9)


def test_a_teacher_without_doubts_gives_the_labels():
    student, _ = logits((5, 4), 0)
    labels = torch.tensor([0, 1, 2, 3, 0])
    certain = 1e3 * one_hot(labels, 4).double()
    torch.testing.assert_close(soft_loss(student, certain, 1.0), cross_entropy(student, labels))
    assert torch.isfinite(torch.autograd.grad(soft_loss(student, certain, 1.0), student)[0]).all()


def masked(logits: torch.Tensor, *columns: int) -> torch.Tensor:
    return logits.index_fill(1, torch.tensor(columns), -torch.inf)


def test_a_class_that_the_teacher_rules_out_costs_nothing():
    student, teacher = logits((5, 4), 0)
    values = [loss(student, masked(teacher, 1, 3), 2.0) for loss in (soft_loss, torchs)]
    gradients = [torch.autograd.grad(value, student)[0] for value in values]
    assert torch.isfinite(values[0])
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


def test_a_class_that_both_rule_out_is_as_good_as_absent():
    student, teacher = logits((5, 4), 0)
    without = soft_loss(student[:, ::2], teacher[:, ::2], 2.0)
    both = soft_loss(masked(student, 1, 3), masked(teacher, 1, 3), 2.0)
    torch.testing.assert_close(both, without)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (both, without)]
    torch.testing.assert_close(*gradients)


def test_a_class_that_only_the_student_rules_out_costs_everything():
    student, teacher = logits((5, 4), 0)
    for loss in (soft_loss, torchs):
        assert loss(masked(student, 1), teacher, 2.0) == torch.inf


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("cast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("labelled", ["all", "padded"])
def test_in_every_precision_it_is_torchs(dtype, cast, labelled):
    labels = torch.arange(6) % 4
    if labelled == "padded":
        labels[2:4] = -100  # torch's cross_entropy passes over these
    values, gradients = [], []
    for soft in (soft_loss, torchs):
        student, teacher = (one.detach().to(dtype) for one in logits((6, 4), 1))
        student.requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
            if soft is soft_loss:
                value = distillation_loss(student, teacher, labels, 3.0, 0.7)
            else:
                value = 0.3 * cross_entropy(student, labels) + 0.7 * soft(student, teacher, 3.0)
        values.append(value)
        gradients += torch.autograd.grad(value, student)
    tolerance = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(*values, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(*gradients, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("student", "teacher", "temperature", "line"),
    [
        (
            (2, 7, 5),
            (2, 7, 5),
            1.0,
            r"^logits: \[2, 7, 5\] given; \[n, classes\] is needed: flatten",
        ),
        ((5,), (5,), 1.0, r"^logits: \[5\] given"),
        ((4, 5), (1, 5), 1.0, r"^shapes: the student's \[4, 5\] is not the teacher's \[1, 5\]$"),
        ((4, 5), (4, 5), 0, r"^temperature: 0 is not above 0$"),
        ((4, 5), (4, 5), -1.0, r"^temperature: -1.0 is not above 0$"),
        ((4, 5), (4, 5), math.nan, r"^temperature: nan is not above 0$"),
    ],
)
def test_what_is_no_pair_of_logits_is_refused_in_one_line(student, teacher, temperature, line):
    with pytest.raises(ValueError, match=line) as error:
        soft_loss(torch.zeros(student), torch.zeros(teacher), temperature)
    assert "\n" not in str(error.value)
    if student == teacher:
        with pytest.raises(ValueError, match=line):
            perplexity(torch.zeros(student), temperature)


def test_hints_of_another_shape_are_refused_in_one_line():
    with pytest.raises(ValueError, match=r"^shapes: .*\[2, 3, 1, 1\].*\[2, 3, 4, 4\]$"):
        hint_loss(torch.zeros(2, 3, 1, 1), torch.zeros(2, 3, 4, 4), nn.Identity())


def test_the_shares_add_up():
    student, teacher = logits((6, 3), 1)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    assert distillation_loss(student, teacher, labels, 2.0, 0) == cross_entropy(student, labels)
    assert distillation_loss(student, teacher, labels, 2.0, 1) == soft_loss(student, teacher, 2.0)
    half = (cross_entropy(student, labels) + torchs(student, teacher, 2.0)) / 2
    torch.testing.assert_close(distillation_loss(student, teacher, labels, 2.0, 0.5), half)


@pytest.mark.parametrize("mistake", experiment.MISTAKES)
def test_each_mistake_is_one_whatever_the_logits(mistake):
    student, teacher = logits((8, 10), 2)
    labels = torch.arange(8)
    rules = (distillation_loss, experiment.MISTAKES[mistake])
    gradients = [
        torch.autograd.grad(rule(student, teacher, labels, 4.0, 0.9), student)[0] for rule in rules
    ]
    assert (gradients[0] - gradients[1]).norm() > 0.3 * gradients[0].norm()


def test_the_articles_formula_is_least_at_the_teachers_first_choice_alone():
    teacher = torch.tensor([[2.0, 1.0, 0.0]])
    agreeing, choosing = teacher, torch.tensor([[50.0, 0.0, 0.0]])
    labels = torch.tensor([0])
    assert experiment.swapped(choosing, teacher, labels, 1.0, 1.0) < experiment.swapped(
        agreeing, teacher, labels, 1.0, 1.0
    )
    assert soft_loss(choosing, teacher, 1.0) > soft_loss(agreeing, teacher, 1.0)


def test_perplexity_grows_from_one_to_all_classes_with_the_temperature():
    _, teacher = logits((20, 10), 3)
    named = [perplexity(teacher, t) for t in (1e-3, 1, 4, 20, 1e4)]
    assert named == sorted(named)
    assert (named[0], named[-1]) == pytest.approx((1, 10), rel=1e-2)


def test_hints_pass_through_the_regressor():
    torch.manual_seed(0)
    regressor = nn.Conv2d(2, 6, 1)
    student, teacher = torch.randn(3, 2, 4, 4, requires_grad=True), torch.randn(3, 6, 4, 4)
    loss = hint_loss(student, teacher, regressor)
    torch.testing.assert_close(loss, ((regressor(student) - teacher) ** 2).mean())
    loss.backward()
    assert student.grad.abs().sum() > 0
    assert regressor.weight.grad.abs().sum() > 0


# ---- the logits that are kept ----


@pytest.mark.parametrize("samples", [1, 7, 20])
def test_kept_logits_are_what_the_teacher_would_say(samples):
    torch.manual_seed(0)
    teacher = nn.Sequential(models.cnn(2, batch_norm=True), nn.Dropout())
    x = torch.rand(samples, 1, 28, 28)
    kept = logits_of(teacher.train(), x, batch_size=6)  # it uses evaluation mode
    assert not kept.requires_grad
    torch.testing.assert_close(kept, teacher.eval()(x))


def tied():
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    return model, torch.randn(7, 6)


def frozen():
    return nn.Linear(6, 3).requires_grad_(False), torch.randn(7, 6)


def double():
    return nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)).double(), torch.randn(7, 6).double()


def half():
    return nn.Sequential(nn.Linear(6, 3), nn.Dropout()).bfloat16(), torch.randn(7, 6).bfloat16()


def sparse():
    return nn.EmbeddingBag(9, 3, sparse=True), torch.randint(9, (7, 4))


def nothing_to_ask_about():
    return nn.Linear(6, 3), torch.randn(0, 6)


def features():
    return models.cnn(2, batch_norm=True)[:-2], torch.rand(5, 1, 28, 28)


@pytest.mark.parametrize(
    "ask", [tied, frozen, double, half, sparse, nothing_to_ask_about, features]
)
@pytest.mark.parametrize("batch_size", [1, 3, 200])
def test_kept_logits_are_right_for_every_kind_of_teacher(ask, batch_size):
    torch.manual_seed(0)
    teacher, x = ask()
    kept = logits_of(teacher.train(), x, batch_size)
    expected = teacher.eval()(x)
    assert (kept.dtype, kept.requires_grad) == (expected.dtype, False)
    torch.testing.assert_close(kept, expected.detach())


def quick(**changes) -> Knobs:
    return Knobs(
        **{
            "teacher_updates": 5,
            "teacher_channels": 4,
            "student_channels": 2,
            "device": "cpu",
            **changes,
        }
    )


@pytest.mark.parametrize("changes", [{}, {"views": 3}, {"hint_weight": 1.0}, {"withheld": 3}])
def test_asking_at_every_step_teaches_the_same(changes):
    losses = [
        [
            step.metrics["loss"]
            for step in islice(experiment.run(quick(teacher=teacher, **changes)), 6)
        ]
        for teacher in ("cached", "every step")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# ---- the lesson ----


def test_a_lesson_holds_what_was_asked_for():
    lesson = experiment.transfer_set(Knobs(samples=100, withheld=3, views=4))
    assert len(lesson.train_x) == len(lesson.train_y) == 400
    assert 3 not in lesson.train_y
    assert 3 in lesson.test_y
    assert torch.equal(lesson.train_y[:100], lesson.train_y[300:])
    assert torch.equal(
        lesson.train_x[:100], experiment.transfer_set(Knobs(samples=100, withheld=3)).train_x
    )


def test_a_view_is_the_picture_moved():
    x = torch.zeros(1, 1, 6, 6)
    x[0, 0, 2, 3] = 1
    assert torch.nonzero(experiment.shifted(x, 1, -2)[0, 0]).tolist() == [[3, 1]]
    assert len(set(experiment.SHIFTS[:16])) == 16
    assert experiment.SHIFTS[0] == (0, 0)


@pytest.mark.parametrize("name", ["mnist5k", "rgb_crops"])
def test_every_data_set_trains(name):
    first, second = islice(experiment.run(quick(data=name, samples=50)), 2)
    assert 0 <= first.metrics["accuracy"] <= 1
    assert second.metrics.keys() == {"loss"}  # a metric comes with the step that measured it
    assert math.isfinite(second.metrics["loss"])
    assert second.samples == 50


def test_a_student_alone_hears_no_classes_from_the_teacher():
    def told(**changes) -> bool:
        return "perplexity" in next(experiment.run(quick(**changes))).metrics

    assert told()
    assert told(soft_share=0.1)
    assert not told(soft_share=0.0)
    assert not told(teacher="every step")


def test_a_teachers_accuracy_is_that_of_its_own_data_set_and_training():
    found = {
        name: experiment.teacher_accuracy(quick(**changes))
        for name, changes in {
            "trained": {"teacher_updates": 60, "teacher_channels": 8},
            "fresh": {"teacher_updates": 0},
        }.items()
    }
    assert 0 <= found["fresh"] < 40 < found["trained"] <= 100
    crops = {"data": "rgb_crops", "teacher_updates": 0}
    test = datasets.rgb_crops()
    right = experiment.teacher_of("rgb_crops", quick().teacher_channels, 0)(test.test_x).argmax(1)
    share = float((right == test.test_y).float().mean())
    assert experiment.teacher_accuracy(quick(**crops)) == pytest.approx(100 * share, abs=0.5)


def test_training_and_test_crops_share_no_pixel():
    crops = datasets.rgb_crops()
    assert crops.train_x.shape[1:] == (3, 32, 32)
    assert set(crops.train_y.tolist()) == set(crops.test_y.tolist()) == set(range(10))
    left, right = datasets.TRAIN_COLUMNS, datasets.TEST_COLUMNS
    assert left[1] < right[0]


def test_the_student_is_an_eighth_of_its_teacher_at_most():
    default = Knobs()
    teacher, student = (
        models.cnn(channels) for channels in (default.teacher_channels, default.student_channels)
    )
    sizes = [
        sum(parameter.numel() for parameter in model.parameters()) for model in (teacher, student)
    ]
    assert sizes[0] >= 8 * sizes[1]


@pytest.mark.slow
def test_a_taught_student_beats_one_alone_and_knows_what_it_never_saw():
    def after(updates: int, **changes) -> dict[str, float]:
        knobs = Knobs(teacher_channels=8, teacher_updates=120, device="cpu", **changes)
        return dict(list(islice(experiment.run(knobs), updates))[-1].metrics)

    assert after(120)["accuracy"] > after(120, soft_share=0.0)["accuracy"] + 0.05
    withheld = {"withheld": 3, "samples": 2000, "batch_size": 100, "soft_share": 1.0}
    assert after(210, **withheld)["withheld_accuracy"] > 0.1
    assert after(60, **withheld | {"soft_share": 0.0})["withheld_accuracy"] == 0


def test_a_wrong_knob_is_one_line():
    with pytest.raises(KnobError, match=r"^temperature: "):
        Knobs(temperature=0)
    with pytest.raises(ValueError, match=r"^batch_size: "):
        next(experiment.run(quick(samples=50, batch_size=100)))


class Unsaying(nn.Module):
    def forward(self, x):
        raise RuntimeError("no answer")


@pytest.mark.parametrize("ends", [nn.Identity(), Unsaying()], ids=["answers", "raises"])
@pytest.mark.parametrize("training", [True, False])
def test_each_part_of_a_teacher_is_left_in_the_mode_in_which_it_came(training, ends):
    """A frozen part of one that trains, and the layers of a slice, which is a module of its own."""
    teacher = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.BatchNorm1d(3), ends)
    teacher.train(training)
    teacher[2].eval()
    before = {part: part.training for part in teacher.modules()}
    for asked in (teacher, teacher[1:]):
        with nullcontext() if isinstance(ends, nn.Identity) else pytest.raises(RuntimeError):
            first, again = (
                logits_of(asked, torch.ones(2, 4 if asked is teacher else 3)) for _ in range(2)
            )
            assert torch.equal(first, again)
        assert {part: part.training for part in teacher.modules()} == before
