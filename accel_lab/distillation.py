"""Distillation: a small student learns a large teacher's opinion of every class, not only which
class is right.

A label says "this is a 7". A trained teacher says "a 7, a little like a 1, hardly like a 9": which
mistakes are near ones, for this very sample. Divided by a temperature T before the softmax, the
small probabilities grow large enough to teach:

    p = softmax(teacher / T)      q = softmax(student / T)      L = (1 − a) · CE(labels, student) +
    a · T² · KL(p ‖ q)

The gradient of KL(p ‖ q) by the student's logits is (q − p) / T, and q − p itself shrinks as 1/T:
T² keeps the soft part's weight where a has put it, whatever T. As T grows, the soft part becomes
matching the logits themselves.

The teacher has nothing to learn, so its logits for a sample are always the same: computed once for
the whole data set and kept, they make a step of distillation cost little more than a step of plain
training. With augmentation the kept views must be the very ones the student sees.

Nothing is removed for free: what the student gains is what the teacher knows and the student's data
does not say.

Sources: Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network",
arXiv:1503.02531, sections 2, 2.1 and 3; Romero et al. 2015, "FitNets", arXiv:1412.6550, section 2.2
(hints); Beyer et al. 2022, "A good teacher is patient and consistent", arXiv:2106.05237, section 3
(same views for both).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, lru_cache
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, mse_loss, pad, softmax

from accel_lab.workbench import knobs, models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.device import pick_device
from accel_lab.workbench.loop import train
from accel_lab.workbench.step import Step


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(p ‖ q) of logits [n, classes], the mean over the samples: []. 0 where the student
    agrees with its teacher.
    """
    log_q, log_p = log_softmax(student / temperature, 1), log_softmax(teacher / temperature, 1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(1).mean()


def distillation_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, soft_share: float
) -> Tensor:
    """Logits [n, classes] of both and labels [n] → the loss []. soft_share: a, from 0 (no teacher)
    to 1 (no labels).
    """
    hard = cross_entropy(student, labels)
    return (1 - soft_share) * hard + soft_share * soft_loss(student, teacher, temperature)


def hint_loss(student_features: Tensor, teacher_features: Tensor, bridge: nn.Module) -> Tensor:
    """The second form: match what a layer sees, [n, channels, height, width], before any class is
    decided. Returns [].

    ``bridge`` takes the student's channels to the teacher's; it is trained along, and thrown away.
    """
    return mse_loss(bridge(student_features), teacher_features)


@torch.no_grad()
def logits_of(teacher: nn.Module, x: Tensor, batch_size: int = 200) -> Tensor:
    """The teacher's logits [n, classes] for all of x [n, …], in evaluation mode: to be computed
    once for each data set.

    Given the first layers of a teacher alone, its features.
    """
    teacher.eval()
    return torch.cat([teacher(part) for part in x.split(batch_size)])


def classes_named(logits: Tensor, temperature: float) -> float:
    """exp(entropy) of the soft labels, the mean over samples: 1 for a label, the number of classes
    for no opinion at all.
    """
    p = softmax(logits / temperature, 1)
    return float(torch.special.entr(p).sum(1).exp().mean())


# The famous mistakes: each is distillation_loss with one thing wrong.


def swapped(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, soft_share: float
) -> Tensor:
    """−log(p_T) · softmax(logits_S), with T the teacher and S the student as everywhere in the
    field: the wrong way round.

    It is least when the student puts everything on the teacher's first choice: the other opinions
    are lost. There is no temperature in it either.
    """
    soft = -(softmax(student, 1) * log_softmax(teacher, 1)).sum(1).mean()
    return (1 - soft_share) * cross_entropy(student, labels) + soft_share * soft


def no_square(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, soft_share: float
) -> Tensor:
    """T² left out: the hotter, the less the teacher is heard."""
    soft = soft_loss(student, teacher, temperature) / temperature**2
    return (1 - soft_share) * cross_entropy(student, labels) + soft_share * soft


def mean_of_all(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, soft_share: float
) -> Tensor:
    """kl_div's default reduction, so far: a mean over the classes too, so that the teacher is heard
    that much less.
    """
    soft = soft_loss(student, teacher, temperature) / student.shape[1]
    return (1 - soft_share) * cross_entropy(student, labels) + soft_share * soft


def no_logarithm(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, soft_share: float
) -> Tensor:
    """kl_div wants the logarithm of the student's probabilities; given the probabilities it says
    nothing, and pushes the wrong way.
    """
    soft = kl_div(
        softmax(student / temperature, 1), softmax(teacher / temperature, 1), reduction="batchmean"
    )
    return (1 - soft_share) * cross_entropy(student, labels) + soft_share * temperature**2 * soft


MISTAKES: dict[str, Callable[..., Tensor]] = {
    "the article's formula": swapped,
    "no T squared": no_square,
    "mean of all": mean_of_all,
    "no logarithm": no_logarithm,
}


class Knobs(knobs.Knobs):
    temperature: float = knobs.dial(
        4.0, ge=1, le=20, log=True, description="T: divides the logits before the softmax"
    )
    soft_share: float = knobs.dial(
        0.9, ge=0, le=1, description="of the teacher in the loss; 0 is the student alone"
    )
    samples: int = knobs.dial(
        200, ge=50, le=4000, log=True, description="training samples that the student sees"
    )
    mistake: Literal[
        "none", "the article's formula", "no T squared", "mean of all", "no logarithm"
    ] = knobs.dial("none", description="a famous mistake to make")
    data: Literal["mnist5k", "rgb_crops"] = knobs.dial(
        "mnist5k", panel=False, description="what to recognise"
    )
    withheld: int = knobs.dial(
        -1, ge=-1, le=9, panel=False, description="class that the student never sees, -1 for none"
    )
    views: int = knobs.dial(
        1,
        ge=1,
        le=16,
        panel=False,
        description="shifted copies of each sample, 1 for no augmentation",
    )
    hint_weight: float = knobs.dial(
        0.0, ge=0, le=10, panel=False, description="of matching the teacher's features, 0 for none"
    )
    teacher: Literal["cached", "every step"] = knobs.dial(
        "cached", panel=False, description="when the teacher is asked"
    )
    teacher_channels: int = knobs.dial(
        24, ge=1, le=64, panel=False, description="width of the teacher's first layer"
    )
    teacher_updates: int = knobs.dial(
        120, ge=0, le=5000, panel=False, description="how long the teacher was trained"
    )
    student_channels: int = knobs.dial(
        4, ge=1, le=64, panel=False, description="width of the student's first layer"
    )
    batch_size: int = knobs.dial(50, ge=1, le=500, panel=False, description="samples per update")
    learning_rate: float = knobs.dial(
        3e-3, ge=1e-5, le=0.1, log=True, panel=False, description="step size of Adam"
    )
    seed: int = knobs.dial(
        0,
        ge=0,
        le=2**31 - 1,
        panel=False,
        description="of the student's weights and of the samples' order",
    )
    device: Literal["auto", "cpu", "cuda"] = knobs.dial(
        "auto", panel=False, description="where to train"
    )


EVALUATE_EVERY = 30  # updates


def run(knobs: Knobs) -> Iterator[Step]:
    """Teach a student, for ever; its teacher is trained first, once. The metrics of each Step:

    loss · accuracy, on the test samples · of_withheld, the same on those of the withheld class
    alone · classes_named, among how many classes the teacher spreads its opinion of a sample at
    this temperature (with ``cached``).
    """
    device = pick_device(knobs.device)
    lesson = lesson_of(knobs).to(device)
    teacher = teacher_of(knobs.data, knobs.teacher_channels, knobs.teacher_updates).to(device)
    torch.manual_seed(knobs.seed)
    student = models.cnn(knobs.student_channels, *_shape(lesson)).to(device)
    bridge = nn.Conv2d(2 * knobs.student_channels, 2 * knobs.teacher_channels, 1).to(device)
    optimizer = torch.optim.Adam(
        [*student.parameters(), *bridge.parameters()], lr=knobs.learning_rate
    )
    rule = MISTAKES.get(knobs.mistake, distillation_loss)
    kept, kept_features = (
        asked_once(_lesson_alone(knobs)) if knobs.teacher == "cached" else (None, None)
    )

    def update(x: Tensor, index: Tensor) -> dict[str, Tensor]:
        features = student[:-2](x)  # all but flattening and the linear layer
        logits, labels = student[-2:](features), lesson.train_y[index]
        if knobs.soft_share == 0:
            loss = cross_entropy(logits, labels)  # the student alone: nobody asks the teacher
        else:
            opinion = logits_of(teacher, x) if kept is None else kept[index]
            loss = rule(logits, opinion, labels, knobs.temperature, knobs.soft_share)
        if knobs.hint_weight:
            seen = logits_of(teacher[:-2], x) if kept_features is None else kept_features[index]
            loss = loss + knobs.hint_weight * hint_loss(features, seen, bridge)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach()}

    named = {} if kept is None else {"classes_named": classes_named(kept, knobs.temperature)}
    found: dict[str, float] = {}
    for step in train(update, _batches(lesson, knobs.batch_size, knobs.seed)):
        if step.index % EVALUATE_EVERY == EVALUATE_EVERY - 1 or not found:
            found = _accuracies(student, lesson, knobs.withheld)
        yield replace(step, metrics={**step.metrics, **named, **found})


@cache
def teacher_of(name: str, channels: int = 24, updates: int = 120) -> nn.Sequential:
    """A CNN trained on the labels of all training samples of a data set of ``workbench.data``;
    trained once, and kept.
    """
    torch.manual_seed(0)
    everything: datasets.Data = getattr(datasets, name)()
    teacher = models.cnn(channels, *_shape(everything))
    optimizer = torch.optim.Adam(teacher.parameters(), lr=2e-3)
    for x, y in islice(everything.batches(100), updates):
        optimizer.zero_grad()
        cross_entropy(teacher(x), y).backward()
        optimizer.step()
    return teacher.eval().requires_grad_(False)


@lru_cache(maxsize=4)
def asked_once(knobs: Knobs) -> tuple[Tensor, Tensor | None]:
    """The teacher's logits, and if hints are wanted its features, for all samples of a lesson: kept
    from run to run.
    """
    device = pick_device(knobs.device)
    teacher = teacher_of(knobs.data, knobs.teacher_channels, knobs.teacher_updates).to(device)
    x = lesson_of(knobs).train_x.to(device)
    return logits_of(teacher, x), logits_of(teacher[:-2], x) if knobs.hint_weight else None


def _lesson_alone(knobs: Knobs) -> Knobs:
    """Without what makes no difference to the lesson and its teacher."""
    says = ("data", "samples", "withheld", "views", "teacher_channels", "teacher_updates", "device")
    return Knobs(
        **{name: getattr(knobs, name) for name in says}, hint_weight=float(knobs.hint_weight > 0)
    )


def lesson_of(knobs: Knobs) -> datasets.Data:
    """What the student is shown: the first samples without the withheld class, each in so many
    views.
    """
    everything: datasets.Data = getattr(datasets, knobs.data)()
    shown = torch.nonzero(everything.train_y != knobs.withheld).flatten()[: knobs.samples]
    x, y = everything.train_x[shown], everything.train_y[shown]
    views = torch.cat([shifted(x, *SHIFTS[view]) for view in range(knobs.views)])
    return replace(everything, train_x=views, train_y=y.repeat(knobs.views))


SHIFTS = sorted(
    ((down, right) for down in (-2, -1, 0, 1, 2) for right in (-2, -1, 0, 1, 2)),
    key=lambda shift: (max(map(abs, shift)), shift),
)


def shifted(x: Tensor, down: int, right: int) -> Tensor:
    """x [n, channels, height, width], moved by up to two pixels; what comes in from outside repeats
    the border.
    """
    padded = pad(x, (2, 2, 2, 2), mode="replicate")
    height, width = x.shape[2:]
    return padded[:, :, 2 - down : 2 - down + height, 2 - right : 2 - right + width]


def _batches(lesson: datasets.Data, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(x, index): which samples they are, so that their labels and the teacher's opinion of them
    can be looked up.
    """
    numbered = replace(
        lesson, train_x=torch.arange(len(lesson.train_x), device=lesson.train_x.device)
    )
    for index, _ in numbered.batches(batch_size, seed):
        yield lesson.train_x[index], index


def _shape(of: datasets.Data) -> tuple[int, int, bool, int]:
    """What models.cnn needs to know of a data set: classes, side, no batch normalization, colours."""
    return of.classes, of.train_x.shape[-1], False, of.train_x.shape[1]


@torch.no_grad()
def _accuracies(student: nn.Module, lesson: datasets.Data, withheld: int) -> dict[str, float]:
    right = (student(lesson.test_x).argmax(1) == lesson.test_y).float()
    of_withheld = (
        {"of_withheld": float(right[lesson.test_y == withheld].mean())} if withheld >= 0 else {}
    )
    return {"accuracy": float(right.mean()), **of_withheld}
