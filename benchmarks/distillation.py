"""Distillation beside plain training, a student beside its teacher, and its gain, seed by seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from statistics import mean

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, softmax

from accel_lab.distillation import logits_of, soft_loss
from accel_lab.experiments.distillation import Knobs, run
from accel_lab.workbench import models
from accel_lab.workbench.device import threads
from accel_lab.workbench.measure.comparison import Comparison, compare
from accel_lab.workbench.step import Step

SEEDS = range(5)
UPDATES = 300


def cases() -> Iterator[str]:
    with threads(1):  # models this small gain nothing from more
        yield from loss()
        yield from epoch()
        yield from student_and_teacher()
        yield from gains()


def loss() -> Iterator[str]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(500, 10, generator=generator) for _ in range(2))
    student.requires_grad_()

    def torchs() -> Tensor:
        return (
            kl_div(log_softmax(student / 4, 1), softmax(teacher / 4, 1), reduction="batchmean") * 16
        )

    gradients = [
        torch.autograd.grad(way(), student)[0]
        for way in (lambda: soft_loss(student, teacher, 4.0), torchs)
    ]
    torch.testing.assert_close(*gradients)
    yield compare(
        lambda: torch.autograd.grad(soft_loss(student, teacher, 4.0), student),
        lambda: torch.autograd.grad(torchs(), student),
    ).line("soft loss and its gradient, 500 samples", "torch's kl_div")


def epoch() -> Iterator[str]:
    """An epoch of 1,000 samples, 20 updates: the seconds inside the updates, run by run in turn."""

    def seconds(**changes: object) -> Callable[[], float]:
        knobs = Knobs(samples=1000, **changes)
        return lambda: sum(step.seconds for step in islice(run(knobs), 20))

    plain = seconds(soft_share=0.0)
    for name, ours in (
        ("logits kept", seconds()),
        ("teacher asked at every step", seconds(teacher="every step")),
    ):
        yield alternated(ours, plain).line(
            f"epoch of distillation, {name}", "an epoch of the student alone"
        )


def alternated(ours: Callable[[], float], peer: Callable[[], float], pairs: int = 9) -> Comparison:
    """Like ``compare``, of programs that time themselves."""
    ours(), peer()
    coin = torch.Generator()
    coin.seed()
    measured = []
    for _ in range(pairs):
        if torch.randint(2, (), generator=coin):
            first = ours()
            measured.append((first, peer()))
        else:
            first = peer()
            measured.append((ours(), first))
    return Comparison.of(measured)


def student_and_teacher() -> Iterator[str]:
    default = Knobs()
    teacher, student = (
        models.cnn(default.teacher_channels).eval(),
        models.cnn(default.student_channels).eval(),
    )
    sizes = [
        sum(parameter.numel() for parameter in model.parameters()) for model in (student, teacher)
    ]
    yield (
        f"student's parameters: ratio {sizes[0] / sizes[1]:.3f} vs the teacher's {sizes[1]:,} "
        "(at most 0.125 wanted)"
    )
    x = torch.rand(500, 1, 28, 28)
    for samples in (1, 500):
        yield compare(
            lambda samples=samples: logits_of(student, x[:samples]),
            lambda samples=samples: logits_of(teacher, x[:samples]),
        ).line(f"student's answers, batch {samples}", "its teacher's (at most 0.25 wanted)")


def gains() -> Iterator[str]:
    """Compare accuracy in percent, taught and alone: the same start, samples and order."""
    for name, lesson in {
        "mnist5k, 200 samples": {},
        "mnist5k, 200 samples in 9 views": {"views": 9},
        "mnist5k, 200 samples, hints alone": {"hint_weight": 1.0, "soft_share": 0.0},
        "mnist5k, all samples": {"samples": 4000},
        "rgb_crops, 200 samples": {"data": "rgb_crops"},
        "rgb_crops, all samples": {"data": "rgb_crops", "samples": 3000},
    }.items():
        alone = [
            accuracy(**{**lesson, "soft_share": 0.0, "hint_weight": 0.0}, seed=seed)
            for seed in SEEDS
        ]
        taught = [accuracy(**lesson, seed=seed) for seed in SEEDS]
        gain = [b - a for a, b in zip(alone, taught, strict=True)]
        yield (
            f"{name}: taught {spread(taught)} %, alone {spread(alone)} %, gain {spread(gain)} "
            f"points over {len(gain)} seeds"
        )


def spread(values: list[float]) -> str:
    return f"{mean(values):.1f} ({min(values):.1f}–{max(values):.1f})"


def accuracy(**changes: object) -> float:
    steps: list[Step] = list(islice(run(Knobs(**changes)), UPDATES))
    return 100 * steps[-1].metrics["accuracy"]
