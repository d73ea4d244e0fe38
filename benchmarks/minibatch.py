"""Fetching against DataLoader and against one copy; training to a target with each; and how well
the best batch is predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from statistics import fmean

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from accel_lab.experiments import minibatch as experiment
from accel_lab.minibatch import Batch, batches, fit_line, gradient_of_batch, gradients_of_samples
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.device import threads
from accel_lab.workbench.loop import classifier_update
from accel_lab.workbench.measure.comparison import compare

PAIRS = 15
SIZES = (16, 64, 256, 1024)
FETCHED = 1024  # samples in a timed call


def data_loader(x: Tensor, y: Tensor, size: int) -> Iterable[Batch]:
    return DataLoader(TensorDataset(x, y), size, shuffle=True)


def batch_sampler(x: Tensor, y: Tensor, size: int) -> Iterable[Batch]:
    """The faster way that its documentation has: indices of a whole batch at once."""
    data = TensorDataset(x, y)
    return DataLoader(data, sampler=BatchSampler(RandomSampler(data), size, False), batch_size=None)


def one_copy(x: Tensor, y: Tensor, size: int) -> Iterable[Batch]:
    """The least there is: each batch is copied, in the order in which it lies there."""
    return ((a.clone(), b.clone()) for a, b in zip(x.split(size), y.split(size), strict=True))


PEERS = {"DataLoader": data_loader, "BatchSampler": batch_sampler, "one copy": one_copy}


def prove() -> None:
    """Each deals out every sample once, with its label; a batch's gradient is the mean one."""
    x, labels = torch.arange(1000.0)[:, None], torch.arange(1000)
    for way in (batches, *PEERS.values()):
        dealt = list(way(x, labels, 64))
        assert all(torch.equal(one[:, 0].long(), y) for one, y in dealt)
        assert sorted(torch.cat([y for _, y in dealt]).tolist()) == list(range(1000))
    model, digits = models.mlp(784, 64, 10), datasets.mnist5k()
    x, y = digits.train_x[:64], digits.train_y[:64]
    each = [one.mean(0) for one in gradients_of_samples(model, x, y)]
    torch.testing.assert_close(each, gradient_of_batch(model, x, y), rtol=1e-4, atol=1e-6)


def cases() -> Iterator[str]:
    prove()
    with threads(1):
        yield from fetching()
        yield from training()
        yield from gradients()
        yield from prediction()


def fetching() -> Iterator[str]:
    """An epoch of fetching; a pair has the whole of it, for a loader begins anew with each."""
    digits = datasets.mnist5k()
    x, y = digits.train_x, digits.train_y

    def epoch(way: Callable[..., Iterable[Batch]], size: int) -> Callable[[], None]:
        def program() -> None:
            for _ in way(x, y, size):
                pass

        return program

    for size in SIZES:
        for name, peer in PEERS.items():
            ratio = compare(epoch(batches, size), epoch(peer, size), pairs=PAIRS)
            yield ratio.line(f"minibatch fetching, batch {size}", name)


def training() -> Iterator[str]:
    """Updates with their fetching, as many as reach the target: both loaders' data are alike."""
    digits = datasets.mnist5k()
    x, y = digits.train_x, digits.train_y
    updates = int(experiment.way_to_target(experiment.Knobs(device="cpu")).updates)

    def program(way: Callable[..., Iterable[Batch]]) -> Callable[[], None]:
        model = models.mlp(784, 64, 10)
        update = classifier_update(model, torch.optim.SGD(model.parameters(), lr=0.0))

        def feed() -> Iterator[Batch]:
            while True:
                yield from way(x, y, 64)

        def train() -> None:
            for batch in islice(feed(), updates):
                update(*batch)

        return train

    ratio = compare(program(batches), program(data_loader), pairs=PAIRS)
    yield ratio.line("minibatch training to the target, batch 64", "DataLoader")


def gradients() -> Iterator[str]:
    model, digits = models.mlp(784, 64, 10), datasets.mnist5k()
    for size in (64, 256):
        x, y = digits.train_x[:size], digits.train_y[:size]

        def loop(x: Tensor = x, y: Tensor = y) -> None:
            for a, b in zip(x, y, strict=True):
                model.zero_grad()
                cross_entropy(model(a[None]), b[None]).backward()

        def batched(x: Tensor = x, y: Tensor = y) -> None:
            gradient_of_batch(model, x, y)

        def each(x: Tensor = x, y: Tensor = y) -> None:
            gradients_of_samples(model, x, y)

        for name, peer in (("one by one", loop), ("per sample, vmap", each)):
            yield compare(batched, peer, pairs=PAIRS).line(f"minibatch gradient of {size}", name)


def prediction() -> Iterator[str]:
    """From one run and the costs: the best batch, against all that were tried."""
    sizes = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
    knobs = experiment.Knobs(device="cpu")
    cost = experiment.costs("index", "cpu")
    ways = experiment.ways_to_target(knobs, sizes, range(5))
    seconds = experiment.mean_seconds(ways)
    updates = {size: fmean(way.updates for way in runs) for size, runs in ways.items()}
    best = min(seconds, key=seconds.get)
    per_update = fit_line({size: seconds[size] / updates[size] for size in sizes})
    fitted = experiment.fitted_laws(updates, per_update)
    for name, laws in (
        ("one run", experiment.laws_of_one_run(experiment.one_run(knobs), cost)),
        ("all sizes", fitted),
    ):
        near = min(sizes, key=lambda size: abs(torch.tensor(size / laws.best).log()))
        yield (
            f"minibatch best batch predicted from {name}: {laws.best:.0f}, fastest {best}; "
            f"seconds at {near} are {seconds[near] / seconds[best]:.2f} of the least"
        )
    off = {size: fitted.seconds(size) / seconds[size] for size in sizes}
    yield "minibatch seconds by the fitted laws over measured: " + ", ".join(
        f"{size}: {ratio:.2f}" for size, ratio in off.items()
    )
    yield "minibatch seconds over the least: " + ", ".join(
        f"{size}: {one / seconds[best]:.2f}" for size, one in seconds.items()
    )
