"""Averaging against PyTorch's AveragedModel, the usual loop, and a copy; what averages gain."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from accel_lab.averaging import EMA, naive_ema_update, sorted_like
from accel_lab.experiments import averaging as experiment
from accel_lab.experiments.averaging import Knobs
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.device import pick_device
from accel_lab.workbench.drawing.figure import tell_over_seeds
from accel_lab.workbench.measure.comparison import compare

PAIRS, DECAY, SEEDS = 15, 0.99, range(5)
MODELS: dict[str, Callable[[], nn.Module]] = {
    "cnn": models.cnn,
    "mlp of 100 layers": lambda: models.mlp(784, *[64] * 100, 10),
    "mlp of 1.9 million": lambda: models.mlp(784, 1024, 1024, 10),
    "mlp of 10 million": lambda: models.mlp(784, 2048, 2048, 2048, 10),
}


def contestants(make_model: Callable[[], nn.Module]) -> dict[str, Callable[[], object]]:
    """Ours, without and with its check; PyTorch's; the usual loop; a copy of the weights; and an
    update of the model itself. The averages are proved equal for three updates first.
    """
    device = pick_device()
    torch.manual_seed(0)
    model = make_model().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x, y = next(datasets.mnist5k().to(device).batches(64))

    def update() -> None:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()

    ours = EMA(model, DECAY, start="first weights", check=False)
    checked = EMA(model, DECAY, start="first weights")
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    naive, kept = copy.deepcopy(model), copy.deepcopy(model)
    for place in range(3):
        update()
        for average in (ours.update, checked.update, theirs.update_parameters):
            average(model)
        if place:
            naive_ema_update(naive, model, DECAY)
        else:
            naive.load_state_dict(model.state_dict())
    for other in (checked.model, theirs.module, naive):
        for one, two in zip(ours.model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one, two.detach(), rtol=1e-5, atol=1e-6)
    sources = [parameter.detach() for parameter in model.parameters()]
    targets = [parameter.detach() for parameter in kept.parameters()]
    return {
        "ours": lambda: ours.update(model),
        "ours, checked": lambda: checked.update(model),
        "AveragedModel": lambda: theirs.update_parameters(model),
        "the usual loop": lambda: naive_ema_update(naive, model, DECAY),
        "a copy of the weights": lambda: torch._foreach_copy_(targets, sources),
        "an update, batch 64": update,
    }


def cases() -> Iterator[str]:
    for what, make_model in MODELS.items():
        ways = contestants(make_model)
        for ours, peer in (
            ("ours", "AveragedModel"),
            ("ours", "a copy of the weights"),
            ("ours", "the usual loop"),
            ("ours, checked", "AveragedModel"),
            ("ours, checked", "an update, batch 64"),
        ):
            case = f"averaging {what}, {ours}"
            yield compare(ways[ours], ways[peer], pairs=PAIRS).line(case, peer)
    yield from one_run()
    yield from two_runs()


def one_run() -> Iterator[str]:
    """Points of test accuracy over the mean of the last fifty updates; five seeds."""
    tasks = {
        "constant rate": {},
        "cosine": {"schedule": "cosine"},
        "constant rate, 30 % of the labels drawn anew": {"wrong_labels": 0.3},
    }
    averages = {
        "EMA, window 100": Knobs(),
        "SWA of the second half": Knobs(average="SWA"),
        "last ten": Knobs(average="last ten"),
    }
    for task, changes in tasks.items():
        results = [experiment.gain(Knobs(seed=seed, **changes), averages) for seed in SEEDS]
        told = tell_over_seeds([result.last for result in results], "%")
        yield f"accuracy mlp 4x64, {task}: last weights {told}"
        for name in averages:
            gains = [result.of(name) for result in results]
            yield f"gain mlp 4x64, {task}, {name}: {tell_over_seeds(gains, 'points')}"


def two_runs() -> Iterator[str]:
    """Accuracy of the mean of two models, in percent; five seeds."""
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        knobs = Knobs(seed=seed)
        model = experiment.parents(knobs)
        first, other = model["first"], model["other start"]
        second = {
            "the models themselves": first,
            "same start": model["same start"],
            "other start": other,
            "other start, units sorted": sorted_like(first, other),
        }
        for name, one in second.items():
            middle = experiment.along(first, one, [0.5], knobs)[0.5]
            found.setdefault(name, []).append(middle)
    for name, values in found.items():
        yield f"mean of two mlps 4x64, {name}: {tell_over_seeds(values, '%')}"
