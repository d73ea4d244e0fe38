"""Exercises of chapter 19: a loss for a lesson half of which has no labels, logits worth keeping,
and a bias for what was never seen.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from accel_lab.exercises import Exercise, Wrong
from accel_lab.exercises._data import normal, shuffled, uniform, whole

# ---- build: a loss where half of the labels are missing ----


def half_labelled_loss_cases(rng):
    for samples, classes in (
        (3, 3),
        (rng.randint(5, 9), rng.randint(4, 6)),
        (rng.randint(10, 30), 10),
    ):
        labels = whole(rng, 0, classes, samples)
        order = shuffled(rng, samples)
        labels[order[: samples // 3]] = -1
        labels[order[-1]] = 0  # a label like any other
        labels[order[-2]] = classes - 1
        yield {
            "student": 2 * normal(rng, samples, classes, dtype=torch.float64),
            "teacher": 2 * normal(rng, samples, classes, dtype=torch.float64),
            "labels": labels,
            "temperature": rng.uniform(2, 8),
            "soft_share": rng.choice((rng.uniform(0.2, 0.4), rng.uniform(0.6, 0.8))),
        }


def half_labelled_loss_drive(answer, case):
    import torch

    student = case["student"].requires_grad_()
    loss = answer(student, case["teacher"], case["labels"], case["temperature"], case["soft_share"])
    (gradient,) = torch.autograd.grad(loss, student)
    return {"loss": float(loss.detach()), "gradient": gradient}


def half_labelled_loss(student, teacher, labels, temperature, soft_share):
    seen = labels >= 0
    hard = cross_entropy(student[seen], labels[seen])
    soft = kl_div(
        log_softmax(student / temperature, 1),
        softmax(teacher / temperature, 1),
        reduction="batchmean",
    )
    return (1 - soft_share) * hard + soft_share * temperature**2 * soft


HALF_LABELLED_LOSS = Exercise(
    name="half_labelled_loss",
    points=3,
    task="""A teacher needs no labels, so a lesson may hold samples that nobody labelled: their
label is −1. `half_labelled_loss(student, teacher, labels, temperature, soft_share)` gets logits
`[n, classes]` of both and labels `[n]`, at least one of them known, and returns the loss `[]`: `1 −
soft_share` times the mean cross-entropy **over the labelled samples**, plus `soft_share` times
Hinton's soft loss, T² included, **over all samples**. The soft loss is the mean KL divergence of
the student from the teacher, KL(teacher ‖ student). Value and gradient must be right.""",
    cases=half_labelled_loss_cases,
    drive=half_labelled_loss_drive,
    reference=half_labelled_loss,
    reasoning="""The two terms run over different samples. The labels' term takes the mean over
those that have a label. The teacher's term takes the mean over *all* samples ("batchmean" divides
by n, not by n · classes). `kl_div(log of the student, teacher)` is KL(teacher ‖ student). T² makes
up for the 1/T² by which the temperature shrinks the gradient.""",
    wrong=(
        Wrong.changed(
            half_labelled_loss,
            " * temperature**2",
            "",
            "Without T² the teacher's gradient fades as the temperature rises.",
        ),
        Wrong.changed(
            half_labelled_loss,
            "        log_softmax(student / temperature, 1),\n"
            "        softmax(teacher / temperature, 1),\n",
            "        log_softmax(teacher / temperature, 1),\n"
            "        softmax(student / temperature, 1),\n",
            "KL(teacher ‖ student): the logarithm of the student's probabilities comes first in "
            "kl_div, the teacher's second.",
        ),
        Wrong.changed(
            half_labelled_loss,
            "log_softmax(student / temperature, 1)",
            "softmax(student / temperature, 1)",
            "kl_div got the student's probabilities: its first argument is their logarithm, "
            "log_softmax.",
        ),
        Wrong.changed(
            half_labelled_loss,
            "        softmax(teacher / temperature, 1),\n",
            "        log_softmax(teacher / temperature, 1),\n",
            "kl_div got the logarithm of the teacher's probabilities, and takes it for the "
            "probabilities. Give it softmax as its second argument, or say log_target=True.",
        ),
        Wrong.changed(
            half_labelled_loss,
            "        softmax(teacher / temperature, 1),\n",
            "        softmax(teacher / temperature, 1),\n        log_target=True,\n",
            "With log_target=True kl_div expects the logarithm of the teacher's probabilities: "
            "log_softmax, or leave log_target out.",
        ),
        Wrong.changed(
            half_labelled_loss,
            'reduction="batchmean",\n    )',
            'reduction="sum",\n    ) / student.numel()',
            "This divides by the number of classes as well. kl_div's reduction is 'batchmean'.",
        ),
        Wrong.changed(
            half_labelled_loss,
            "softmax(teacher / temperature, 1)",
            "softmax(teacher, 1)",
            "The temperature divides the logits of both: the teacher's as well as the student's.",
        ),
        Wrong.changed(
            half_labelled_loss,
            "student[seen], labels[seen]",
            "student[seen] / temperature, labels[seen]",
            "The labels are compared with the student's own probabilities: no temperature in the "
            "hard part.",
        ),
        Wrong.changed(
            half_labelled_loss,
            "labels >= 0",
            "labels > 0",
            "0 is a label like any other. Only −1 stands for none: keep the samples with "
            "`labels >= 0`.",
        ),
        Wrong.changed(
            half_labelled_loss,
            "student[seen], labels[seen]",
            "student, labels",
            "cross_entropy takes −1 for a class. Give it the labelled samples alone, or say "
            "ignore_index=-1.",
        ),
        Wrong.changed(
            half_labelled_loss,
            " * temperature**2",
            " * temperature",
            "The temperature shrinks the gradient twice: it divides the logits, and brings the "
            "probabilities closer together. So the soft part is multiplied by T², not by T.",
        ),
        Wrong.changed(
            half_labelled_loss,
            "(1 - soft_share) * hard + soft_share * temperature**2 * soft",
            "temperature**2 * ((1 - soft_share) * hard + soft_share * soft)",
            "You multiply the hard part by T², too. No temperature is in it: T² belongs to the "
            "soft part alone.",
        ),
        Wrong.changed(
            half_labelled_loss,
            "labels[seen])",
            'labels[seen], reduction="sum") / len(labels)',
            "The mean of the hard part is over the labelled samples alone; the others say nothing "
            "about it.",
        ),
        Wrong.changed(
            half_labelled_loss,
            "        log_softmax(student / temperature, 1),\n"
            "        softmax(teacher / temperature, 1),\n",
            "        log_softmax(student[seen] / temperature, 1),\n"
            "        softmax(teacher[seen] / temperature, 1),\n",
            "The soft part leaves out the samples without a label. The teacher has an opinion of "
            "all of them.",
        ),
        Wrong.changed(
            half_labelled_loss,
            "kl_div(\n"
            "        log_softmax(student / temperature, 1),\n"
            "        softmax(teacher / temperature, 1),\n"
            '        reduction="batchmean",\n'
            "    )",
            "cross_entropy(student / temperature, softmax(teacher / temperature, 1))",
            "The gradient is right, the value is not: that is the cross-entropy with the teacher. "
            "The KL divergence is smaller by the teacher's own entropy.",
        ),
        Wrong.changed(
            half_labelled_loss,
            "(1 - soft_share) * hard + soft_share * temperature**2 * soft",
            "soft_share * hard + (1 - soft_share) * temperature**2 * soft",
            "The shares are swapped: soft_share belongs to the teacher's part.",
        ),
    ),
)


# ---- diagnose: logits worth keeping ----


def keep_logits_cases(rng):
    for training in (True, False, True):
        batch_size = rng.choice((2, 3, 5))  # as many parts are of another size
        yield {
            "x": normal(rng, 3 * batch_size + 1, 6),
            "weights": [normal(rng, 8, 6), normal(rng, 3, 8)],
            "mean": normal(rng, 8),
            "variance": uniform(rng, 8) + 0.5,
            "batch_size": batch_size,
            "training": training,
            "seed": rng.randrange(2**31),
        }


def keep_logits_drive(answer, case):
    import torch
    from torch import nn

    norm = nn.BatchNorm1d(8)
    teacher = nn.Sequential(nn.Linear(6, 8), norm, nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    teacher.to(case["x"].dtype)
    with torch.no_grad():
        for layer, weight in zip((teacher[0], teacher[4]), case["weights"], strict=True):
            layer.weight.copy_(weight)
            layer.bias.fill_(0.1)
        norm.running_mean.copy_(case["mean"]), norm.running_var.copy_(case["variance"])
    asked = []
    teacher.register_forward_pre_hook(lambda _, inputs: asked.append(len(inputs[0])))
    torch.manual_seed(case["seed"])
    kept = answer(teacher.train(case["training"]), case["x"], case["batch_size"])
    return {
        "logits": kept.detach(),
        "the logits hold a graph": kept.requires_grad,
        "most samples at a time": max(asked, default=0),
        "the teacher is in training mode afterwards": teacher.training,
        "its batch statistics afterwards": [norm.running_mean, norm.running_var],
    }


def keep_logits(teacher, x, batch_size):
    training = teacher.training
    teacher.eval()
    with torch.no_grad():
        kept = torch.cat([teacher(part) for part in x.split(batch_size)])
    teacher.train(training)
    return kept


def _as_found(teacher, x, batch_size):
    logits = []
    for start in range(0, len(x) - batch_size + 1, batch_size):
        logits.append(teacher(x[start : start + batch_size]))
    return torch.cat(logits)


KEEP_LOGITS = Exercise(
    name="keep_logits",
    points=2,
    task="""`keep_logits(teacher, x, batch_size)` asks a teacher about all samples of `x [n, …]`,
`batch_size` at a time, and returns its logits `[n, classes]`, to be kept for the whole training.
The version below spoils them. Repair it: the logits are those of evaluation mode, hold no graph,
and cover every sample; and when the function returns, the teacher is in the mode in which it
came.""",
    cases=keep_logits_cases,
    drive=keep_logits_drive,
    reference=keep_logits,
    reasoning="""Evaluation mode, or dropout and batch statistics would enter the teacher's
opinion; no graph, or the memory of every forward pass would stay; `split`, whose last part is just
smaller. The mode is remembered before and restored after: whoever lent the teacher may be training
it.""",
    wrong=(
        Wrong(
            _as_found,
            "This is the version as found. Ask it for 7 samples, 3 at a time: how many come back, "
            "in which mode is the teacher asked, and what hangs on the logits?",
            given=True,
        ),
        Wrong.changed(
            keep_logits,
            "    teacher.eval()\n",
            "",
            "A teacher in training mode drops features by chance, and its batch statistics follow "
            "your samples. eval() first.",
        ),
        Wrong.changed(
            keep_logits,
            "with torch.no_grad():",
            "if True:",
            "These logits still hold the teacher's graph: memory for a backward pass that never "
            "comes. no_grad().",
        ),
        Wrong.changed(
            keep_logits,
            "x.split(batch_size)",
            "x[: len(x) // batch_size * batch_size].split(batch_size)",
            "The last, smaller batch is missing: some samples have no opinion to learn from.",
        ),
        Wrong.changed(
            keep_logits,
            "torch.cat([teacher(part) for part in x.split(batch_size)])",
            "teacher(x)",
            "You ask about all samples at once, which takes the memory of all. Ask `batch_size` at "
            "a time, and put the answers together.",
        ),
        Wrong.changed(
            keep_logits,
            "x.split(batch_size)",
            "x.chunk(batch_size)",
            "chunk(n) makes n parts, whatever their size. `batch_size` samples at a time are what "
            "split(batch_size) gives.",
        ),
        Wrong.changed(
            keep_logits,
            "teacher(part) for",
            "teacher(part).softmax(1) for",
            "These are probabilities. The logits are asked for: the loss divides them by its "
            "temperature before the softmax.",
        ),
        Wrong.changed(
            keep_logits,
            "    teacher.train(training)\n",
            "",
            "The teacher left in another mode than it came in. Put it back.",
        ),
        Wrong.changed(
            keep_logits,
            "teacher.train(training)",
            "teacher.train()",
            "The teacher came in evaluation mode and left in training mode. Remember the mode in "
            "which it came, and put that back.",
        ),
    ),
)


# ---- build: a bias for a class that was never seen ----


def bias_for_share_cases(rng):
    for samples, least, most in (
        (10, -8, -3),
        (10 * rng.randint(2, 5) + 1, -8, -3),  # every share of it has to be rounded down
        (10 * rng.randint(6, 19) + 9, -8, -3),  # and of this one up
        (rng.randint(40, 60), 4, 6),  # the class wins too often
    ):
        column = rng.randrange(5)
        logits = 2 * normal(rng, samples, 5, dtype=torch.float64)
        logits[:, column] += rng.uniform(least, most)
        if samples == 10:
            logits -= logits.max() + 1  # softmax does not see it, and no class is above 0
        yield {"logits": logits, "column": column, "share": rng.choice((0.2, 0.3, 0.4))}


def bias_for_share_drive(answer, case):
    return float(answer(case["logits"], case["column"], case["share"]))


def bias_for_share(logits, column, share):
    count = round(share * len(logits))
    others = logits.clone()
    others[:, column] = -torch.inf
    missing = others.max(1).values - logits[:, column]
    return float(missing.sort().values[count - 1])


BIAS_FOR_SHARE = Exercise(
    name="bias_for_share",
    points=2,
    task="""A student that never saw a class gives it too little. You have no labels, but you know
how common the class is. `bias_for_share(logits, column, share)` gets a student's logits `[n,
classes]` and returns the **smallest** number that, added to the logits of class `column`, makes it
the highest of (or level with the highest in) at least `round(share · n)` samples. Where the class
wins more often already, that number is below 0.""",
    cases=bias_for_share_cases,
    drive=bias_for_share_drive,
    reference=bias_for_share,
    reasoning="""For each sample, find by how much the class lacks to the highest of the *others*:
a negative number where it wins already. Sort these. A bias of b makes the class win wherever at
most b is lacking, so the smallest bias that wins `count` samples is the number in place `count` of
the sorted list.""",
    wrong=(
        Wrong.changed(
            bias_for_share,
            "others.max(1).values - logits[:, column]",
            "-logits[:, column]",
            "A class wins against the others, not against zero: look at how much it lacks to the "
            "highest of them.",
        ),
        Wrong.changed(
            bias_for_share,
            "[count - 1]",
            "[count]",
            "That lets one sample more in than asked for. Lists count from 0.",
        ),
        Wrong.changed(
            bias_for_share,
            "missing.sort().values",
            "missing.sort(descending=True).values",
            "You count from the samples that lack most. The smallest bias wins those that lack "
            "least: sort upwards.",
        ),
        Wrong.changed(
            bias_for_share,
            "round(share * len(logits))",
            "int(share * len(logits))",
            "int() always rounds down, and one sample is missing. How many are asked for is "
            "round(share · n).",
        ),
        Wrong.changed(
            bias_for_share,
            "round(share * len(logits))",
            "-int(-share * len(logits) // 1)",
            "You always round up, and let one sample more in. How many are asked for is round("
            "share · n).",
        ),
        Wrong.changed(
            bias_for_share,
            "missing.sort().values[count - 1]",
            "missing.quantile(share)",
            "A quantile lies between two samples, and its place is share · (n − 1). The smallest "
            "bias is that of one sample: the one in place round(share · n).",
        ),
        Wrong.changed(
            bias_for_share,
            "= -torch.inf",
            "= 0",
            "You put 0 in the class's own place, and 0 can be the highest of a sample. Leave the "
            "class out, or put −inf there.",
        ),
        Wrong.changed(
            bias_for_share,
            "missing.sort().values[count - 1]",
            "missing.mean()",
            "The mean gap lets in about half of the samples. Which sample is the last that has to "
            "come in?",
        ),
        Wrong.changed(
            bias_for_share,
            "    others[:, column] = -torch.inf\n",
            "",
            "Where the class wins already you return 0, but a number below 0 would do. Compare it "
            "with the highest of the *other* classes.",
            also=(lambda *arguments: max(0.0, bias_for_share(*arguments)),),
        ),
    ),
    tolerance=1e-9,
)
