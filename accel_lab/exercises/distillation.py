"""Exercises of chapter 19: a loss for a lesson half of which has no labels, logits worth keeping,
and a bias for what was never seen.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from accel_lab.exercises import Exercise, Wrong

# ---- 1: build ----


def _loss(
    student,
    teacher,
    labels,
    temperature,
    soft_share,
    *,
    square=True,
    hard_heat=1.0,
    swap=False,
    every_class=False,
    all_hard=False,
):
    seen = labels >= 0
    if swap:
        student_for_soft, teacher_for_soft = teacher, student
    else:
        student_for_soft, teacher_for_soft = student, teacher
    soft = kl_div(
        log_softmax(student_for_soft / temperature, 1),
        softmax(teacher_for_soft / temperature, 1),
        reduction="sum",
    ) / (student.numel() if every_class else len(student))
    hard = cross_entropy(student[seen] / hard_heat, labels[seen], reduction="sum") / (
        len(labels) if all_hard else seen.sum()
    )
    return (1 - soft_share) * hard + soft_share * soft * (temperature**2 if square else 1)


def half_labelled_loss(student, teacher, labels, temperature, soft_share):
    return _loss(student, teacher, labels, temperature, soft_share)


def without_square(student, teacher, labels, temperature, soft_share):
    return _loss(student, teacher, labels, temperature, soft_share, square=False)


def wrong_way_round(student, teacher, labels, temperature, soft_share):
    return _loss(student, teacher, labels, temperature, soft_share, swap=True)


def mean_over_classes(student, teacher, labels, temperature, soft_share):
    return _loss(student, teacher, labels, temperature, soft_share, every_class=True)


def hard_part_heated(student, teacher, labels, temperature, soft_share):
    return _loss(student, teacher, labels, temperature, soft_share, hard_heat=temperature)


def unlabelled_counted(student, teacher, labels, temperature, soft_share):
    return _loss(student, teacher, labels, temperature, soft_share, all_hard=True)


def _lessons(rng):
    for samples, classes in (
        (2, 3),
        (rng.randint(5, 9), rng.randint(3, 6)),
        (rng.randint(10, 30), 10),
    ):
        generator = torch.Generator().manual_seed(rng.randrange(2**31))
        labels = torch.randint(classes, (samples,), generator=generator)
        labels[torch.randperm(samples, generator=generator)[: max(1, samples // 3)]] = -1
        yield {
            "student": 2 * torch.randn(samples, classes, generator=generator, dtype=torch.float64),
            "teacher": 2 * torch.randn(samples, classes, generator=generator, dtype=torch.float64),
            "labels": labels,
            "temperature": rng.uniform(2, 8),
            "soft_share": rng.uniform(0.3, 0.8),
        }


def _value_and_gradient(answer, case):
    import torch

    student = case["student"].requires_grad_()
    loss = answer(student, case["teacher"], case["labels"], case["temperature"], case["soft_share"])
    (gradient,) = torch.autograd.grad(loss, student)
    return {"loss": float(loss.detach()), "gradient": gradient}


loss_of_a_lesson = Exercise(
    name="half_labelled_loss",
    points=3,
    task="""A teacher needs no labels, so a lesson may hold samples that nobody labelled: their
label is −1. `half_labelled_loss(student, teacher, labels, temperature, soft_share)` gets logits
`[n, classes]` of both and labels `[n]`, at least one of them known, and returns the loss `[]`: `1 −
soft_share` times the mean cross-entropy **over the labelled samples**, plus `soft_share` times
Hinton's soft loss, T² included, **over all samples**. Value and gradient must be right.""",
    cases=_lessons,
    drive=_value_and_gradient,
    reference=half_labelled_loss,
    wrong=(
        Wrong(without_square, "Without T² the teacher's gradient fades as the temperature rises."),
        Wrong(
            wrong_way_round,
            "KL(teacher ‖ student): the logarithm of the student's probabilities comes first in "
            "kl_div, the teacher's second.",
        ),
        Wrong(
            mean_over_classes,
            "This divides by the number of classes as well. kl_div's reduction is 'batchmean'.",
        ),
        Wrong(
            hard_part_heated,
            "The labels are held against the student's own probabilities: no temperature in the "
            "hard part.",
        ),
        Wrong(
            unlabelled_counted,
            "The mean of the hard part is over the labelled samples alone; the others say nothing "
            "about it.",
        ),
    ),
)


# ---- 2: diagnose ----


def keep_logits(teacher, x, batch_size):
    training = teacher.training
    teacher.eval()
    with torch.no_grad():
        kept = torch.cat([teacher(part) for part in x.split(batch_size)])
    teacher.train(training)
    return kept


def while_training(teacher, x, batch_size):
    with torch.no_grad():
        return torch.cat([teacher(part) for part in x.split(batch_size)])


def with_gradient(teacher, x, batch_size):
    training = teacher.training
    teacher.eval()
    kept = torch.cat([teacher(part) for part in x.split(batch_size)])
    teacher.train(training)
    return kept


def full_batches_only(teacher, x, batch_size):
    return keep_logits(teacher, x[: len(x) // batch_size * batch_size], batch_size)


def left_in_evaluation(teacher, x, batch_size):
    kept = keep_logits(teacher, x, batch_size)
    teacher.eval()
    return kept


def _teachers(rng):
    for training in (True, False, True):
        batch_size = rng.randint(2, 5)
        yield {
            "seed": rng.randrange(2**31),
            "samples": 3 * batch_size + 1,
            "batch_size": batch_size,
            "training": training,
        }


def _ask(answer, case):
    import torch
    from torch import nn

    torch.manual_seed(case["seed"])
    teacher = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
    )
    teacher[1].running_mean.normal_()
    x = torch.randn(case["samples"], 6)
    kept = answer(teacher.train(case["training"]), x, case["batch_size"])
    statistics = [teacher[1].running_mean, teacher[1].running_var]
    return {
        "logits": kept.detach(),
        "gradient": kept.requires_grad,
        "training": teacher.training,
        "statistics": statistics,
    }


keep_what_it_says = Exercise(
    name="keep_logits",
    points=2,
    task="""`keep_logits(teacher, x, batch_size)` asks a teacher about all samples of `x [n, …]`,
`batch_size` at a time, and returns its logits `[n, classes]`, to be kept for the whole training.
The version below spoils them. Repair it: the logits are those of evaluation mode, hold no graph,
and cover every sample; and the teacher is in the mode in which it came when the function returns.""",
    cases=_teachers,
    drive=_ask,
    reference=keep_logits,
    wrong=(
        Wrong(
            while_training,
            "A teacher in training mode drops features by chance, and its batch statistics follow "
            "your samples. eval() first.",
        ),
        Wrong(
            with_gradient,
            "These logits still hold the teacher's graph: memory for a backward pass that never "
            "comes. no_grad().",
        ),
        Wrong(
            full_batches_only,
            "The last, smaller batch is missing: some samples have no opinion to learn from.",
        ),
        Wrong(left_in_evaluation, "The teacher came in another mode than it left in. Put it back."),
    ),
)


# ---- 3: build ----


def bias_for_share(logits, column, share):
    count = round(share * len(logits))
    others = logits.clone()
    others[:, column] = -torch.inf
    missing = others.max(1).values - logits[:, column]
    return float(missing.sort().values[count - 1])


def by_own_logit(logits, column, share):
    count = round(share * len(logits))
    return float(-logits[:, column].sort(descending=True).values[count - 1])


def one_too_many(logits, column, share):
    count = round(share * len(logits))
    others = logits.clone()
    others[:, column] = -torch.inf
    return float((others.max(1).values - logits[:, column]).sort().values[count])


def mean_gap(logits, column, share):
    others = logits.clone()
    others[:, column] = -torch.inf
    return float((others.max(1).values - logits[:, column]).mean())


def _students(rng):
    for samples in (10, rng.randint(20, 60), rng.randint(60, 200)):
        generator = torch.Generator().manual_seed(rng.randrange(2**31))
        column = rng.randrange(5)
        logits = 2 * torch.randn(samples, 5, generator=generator, dtype=torch.float64)
        logits[:, column] -= rng.uniform(3, 8)
        yield {"logits": logits, "column": column, "share": rng.choice((0.2, 0.3, 0.4))}


def _bias(answer, case):
    return float(answer(case["logits"], case["column"], case["share"]))


bias_of_the_unseen = Exercise(
    name="bias_for_share",
    points=2,
    task="""A student that never saw a class gives it too little. You have no labels, but you know
how common the class is. `bias_for_share(logits, column, share)` gets a student's logits `[n,
classes]` and returns the **smallest** number that, added to the logits of class `column`, makes it
the highest of (or level with the highest in) at least `round(share · n)` samples.""",
    cases=_students,
    drive=_bias,
    reference=bias_for_share,
    wrong=(
        Wrong(
            by_own_logit,
            "A class wins against the others, not against zero: look at how much it lacks to the "
            "highest of them.",
        ),
        Wrong(one_too_many, "That lets one sample more in than asked for. Lists count from 0."),
        Wrong(
            mean_gap,
            "The mean gap lets in about half of the samples. Which sample is the last that has to "
            "come in?",
        ),
    ),
    tolerance=1e-9,
)
