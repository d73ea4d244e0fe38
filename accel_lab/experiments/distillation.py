"""Distillation of a CNN into an eighth of its size: gain, price, and famous mistakes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import cache, lru_cache
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, pad, softmax

from accel_lab.distillation import distillation_loss, hint_loss, logits_of, perplexity, soft_loss
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.device import pick_device
from accel_lab.workbench.effort import effort, some_seeds
from accel_lab.workbench.knobs import TrainingKnobs, dial
from accel_lab.workbench.loop import train
from accel_lab.workbench.step import Step
from accel_lab.workbench.watched import told

EVALUATE_EVERY = 30  # updates

# ---- the famous mistakes: each is distillation_loss with one thing wrong ----


def swapped(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, soft_share: float
) -> Tensor:
    """Swap the roles: −log(p_T) · softmax(logits_S), with T the teacher and S the student.

    It is least when the student puts everything on the teacher's first choice, so the teacher's
    other probabilities are lost. It has no temperature either.
    """
    soft = -(softmax(student, 1) * log_softmax(teacher, 1)).sum(1).mean()
    return (1 - soft_share) * cross_entropy(student, labels) + soft_share * soft


def no_square(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, soft_share: float
) -> Tensor:
    """Leave out T²: the higher the temperature, the weaker the teacher's term."""
    soft = soft_loss(student, teacher, temperature) / temperature**2
    return (1 - soft_share) * cross_entropy(student, labels) + soft_share * soft


def mean_of_all(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, soft_share: float
) -> Tensor:
    """Use kl_div's default reduction: it averages over classes too, which weakens the teacher."""
    soft = soft_loss(student, teacher, temperature) / student.shape[1]
    return (1 - soft_share) * cross_entropy(student, labels) + soft_share * soft


def no_logarithm(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, soft_share: float
) -> Tensor:
    """Give kl_div the student's probabilities instead of their logarithms: no error, wrong way."""
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


# ---- the experiment ----


class Knobs(TrainingKnobs):
    temperature: float = dial(
        4.0, ge=1, le=20, log=True, description="T: divides the logits before the softmax"
    )
    soft_share: float = dial(
        0.9,
        ge=0,
        le=1,
        description="weight of the teacher's term, 0 (labels only) to 1 (teacher only)",
    )
    samples: int = dial(
        200, ge=50, le=4000, log=True, description="training samples that the student sees"
    )
    mistake: Literal[
        "none", "the article's formula", "no T squared", "mean of all", "no logarithm"
    ] = dial("none", description="made on purpose")
    data: Literal["mnist5k", "rgb_crops"] = dial(
        "mnist5k", panel=False, description="what to recognise"
    )
    withheld: int = dial(
        -1, ge=-1, le=9, panel=False, description="class that the student never sees, -1 for none"
    )
    views: int = dial(
        1,
        ge=1,
        le=16,
        panel=False,
        description="shifted copies of each sample, 1 for no augmentation",
    )
    hint_weight: float = dial(
        0.0,
        ge=0,
        le=10,
        panel=False,
        description="weight of matching the teacher's features, 0 for none",
    )
    teacher: Literal["cached", "every step"] = dial(
        "cached", panel=False, description="when the teacher's logits are computed"
    )
    teacher_channels: int = dial(
        24, ge=1, le=64, panel=False, description="width of the teacher's first layer"
    )
    teacher_updates: int = dial(
        120, ge=0, le=5000, panel=False, description="updates that the teacher was trained for"
    )
    student_channels: int = dial(
        4, ge=1, le=64, panel=False, description="width of the student's first layer"
    )
    batch_size: int = dial(50, ge=1, le=500, panel=False, description="samples per update")
    learning_rate: float = dial(
        3e-3, ge=1e-5, le=0.1, log=True, panel=False, description="step size of Adam"
    )


def run(knobs: Knobs) -> Generator[Step, None, None]:
    """Train a student, by a teacher that is trained first, once, until the generator is closed.

    Metrics of each Step: loss. Of the first, and of every 30th:
    accuracy: on the test samples, 0 to 1.
    withheld_accuracy: on those of the withheld class alone, if there is one.
    perplexity: how many classes the teacher names per sample at this temperature, where the student
    hears it (with ``cached``).
    """
    device = pick_device(knobs.device)
    data = transfer_set(knobs).to(device)
    teacher = teacher_of(knobs.data, knobs.teacher_channels, knobs.teacher_updates).to(device)
    torch.manual_seed(knobs.seed)
    student = models.cnn(knobs.student_channels, *_shape(data)).to(device)
    regressor = nn.Conv2d(2 * knobs.student_channels, 2 * knobs.teacher_channels, 1).to(device)
    parameters = [*student.parameters(), *regressor.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=knobs.learning_rate)
    rule = MISTAKES.get(knobs.mistake, distillation_loss)
    kept = kept_features = None
    if knobs.teacher == "cached":
        kept, kept_features = teacher_outputs(_what_the_teacher_sees(knobs))

    def update(x: Tensor, index: Tensor) -> dict[str, Tensor]:
        features = student[:-2](x)  # all but flattening and the linear layer
        logits, labels = student[-2:](features), data.train_y[index]
        if knobs.soft_share == 0:
            loss = cross_entropy(logits, labels)  # the student alone: the teacher is not asked
        else:
            soft = logits_of(teacher, x) if kept is None else kept[index]
            loss = rule(logits, soft, labels, knobs.temperature, knobs.soft_share)
        if knobs.hint_weight:
            hint = logits_of(teacher[:-2], x) if kept_features is None else kept_features[index]
            loss = loss + knobs.hint_weight * hint_loss(features, hint, regressor)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach()}

    heard = kept is not None and knobs.soft_share > 0
    named = {"perplexity": perplexity(kept, knobs.temperature)} if heard else {}
    for step in train(update, _batches(data, knobs.batch_size, knobs.seed)):
        found: dict[str, float] = {}
        if step.index == 0 or step.index % EVALUATE_EVERY == EVALUATE_EVERY - 1:
            found = named | evaluate(student, data, knobs.withheld)
        yield replace(step, metrics={**step.metrics, **found})


@torch.no_grad()
def evaluate(student: nn.Module, data: datasets.Data, withheld: int = -1) -> dict[str, float]:
    """Measure accuracy (0…1) on the test samples, and on those of the withheld class, if any."""
    right = (student(data.test_x).argmax(1) == data.test_y).float()
    found = {"accuracy": float(right.mean())}
    if withheld >= 0:
        found["withheld_accuracy"] = float(right[data.test_y == withheld].mean())
    return found


def share_right(logits: Tensor, labels: Tensor) -> float:
    """Measure the share (0…1) of samples whose largest logit [n, classes] is their label's [n]."""
    return float((logits.argmax(1) == labels).float().mean())


@cache
def accuracy_after(knobs: Knobs, updates: int = 120) -> float:
    """Train for so many updates and return the test accuracy, in percent; once for each knobs.

    updates: a multiple of 30, the last of which measures; fewer for a quick look, see ``effort``.
    """
    looks = max(1, round(effort() * updates / EVALUATE_EVERY))
    *_, last = islice(run(knobs), looks * EVALUATE_EVERY)
    return 100 * last.metrics["accuracy"]


def over_seeds(knobs: Knobs, seeds: int) -> list[float]:
    """Return ``accuracy_after`` for the seeds 0, 1, …, each with its own weights and order."""
    turned = [knobs.turned(seed=seed) for seed in some_seeds(seeds)]
    return [accuracy_after(one) for one in told(turned, "seed")]


@cache
def teacher_of(name: str, channels: int = 24, updates: int = 120) -> nn.Sequential:
    """Train a CNN on the labels of all training samples of a data set; once, and keep it.

    name: a function of ``workbench.data.datasets``. channels: of its first layer.
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


def teacher_accuracy(knobs: Knobs) -> float:
    """Measure the accuracy of these knobs' teacher on the test samples, in percent."""
    test = getattr(datasets, knobs.data)()
    teacher = teacher_of(knobs.data, knobs.teacher_channels, knobs.teacher_updates)
    return 100 * share_right(logits_of(teacher, test.test_x), test.test_y)


@lru_cache(maxsize=4)
def teacher_outputs(knobs: Knobs) -> tuple[Tensor, Tensor | None]:
    """Compute the teacher's logits, and its features for hints, and keep them from run to run."""
    device = pick_device(knobs.device)
    teacher = teacher_of(knobs.data, knobs.teacher_channels, knobs.teacher_updates).to(device)
    x = transfer_set(knobs).train_x.to(device)
    return logits_of(teacher, x), logits_of(teacher[:-2], x) if knobs.hint_weight else None


def _what_the_teacher_sees(knobs: Knobs) -> Knobs:
    """Keep only the knobs that change the teacher's outputs: the key to the cached ones."""
    names = ("data", "samples", "withheld", "views", "teacher_channels", "teacher_updates")
    kept = {name: getattr(knobs, name) for name in (*names, "device")}
    return Knobs(**kept, hint_weight=float(knobs.hint_weight > 0))


def transfer_set(knobs: Knobs) -> datasets.Data:
    """Make the student's data: the first samples without the withheld class, in several views."""
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
    """Move x [n, channels, height, width] by up to two pixels; the border is repeated."""
    padded = pad(x, (2, 2, 2, 2), mode="replicate")
    height, width = x.shape[2:]
    return padded[:, :, 2 - down : 2 - down + height, 2 - right : 2 - right + width]


def _batches(data: datasets.Data, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (x, index): the index finds a sample's label, and the teacher's logits for it."""
    numbers = torch.arange(len(data.train_x), device=data.train_x.device)
    for index, _ in replace(data, train_x=numbers).batches(batch_size, seed):
        yield data.train_x[index], index


def _shape(of: datasets.Data) -> tuple[int, int, bool, int]:
    """List the arguments of models.cnn after the first, for a data set."""
    return of.classes, of.train_x.shape[-1], False, of.train_x.shape[1]
