"""Cached pictures against a DataLoader that augments one by one, and against a copy; epochs with
and without a cache; hits against their formula.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count, islice
from statistics import fmean, median

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from accel_lab.caching import augment, draw, expected_hits, hits_of_recent, prefetch
from accel_lab.experiments import caching as experiment
from accel_lab.experiments.caching import KEPT, SIDE, Feed, Knobs, photographs
from accel_lab.workbench import models
from accel_lab.workbench.device import threads
from accel_lab.workbench.granted import usable_cores
from accel_lab.workbench.loop import classifier_update
from accel_lab.workbench.measure.comparison import Comparison, compare

PAIRS = 15
ROUNDS = 8
SIZE = 64


class OneByOne(Dataset):
    """As people write it: a picture at a time, from a list; the loader collects them."""

    def __init__(self, pictures: Tensor, drawn: Tensor):
        self.pictures, self.drawn = list(pictures), drawn.T.tolist()

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Tensor:
        _, row, column, flip, light = self.drawn[index]
        crop = self.pictures[index][:, row : row + SIDE, column : column + SIDE]
        crop = crop.flip(2) if flip else crop
        return crop * (light / 255**2)


def cases() -> Iterator[str]:
    with threads(1):
        yield from augmenting()
        yield from epochs()
        yield from overlap()
        yield from hits()


def augmenting() -> Iterator[str]:
    """An epoch of pictures that are cached already, loader alone."""
    pictures = torch.randint(256, (1000, 3, KEPT, KEPT), dtype=torch.uint8)
    drawn = draw(torch.randperm(1000), KEPT - SIDE, torch.Generator().manual_seed(0))
    order, of_picture = drawn[0], torch.empty_like(drawn)
    of_picture[:, order] = drawn
    data = OneByOne(pictures, of_picture)

    def ours() -> list[Tensor]:
        return [augment(pictures, part, SIDE) for part in drawn.split(SIZE, 1)]

    def loader(workers: int) -> Callable[[], list[Tensor]]:
        how = {"num_workers": workers}
        how |= {"multiprocessing_context": "fork"} if workers else {}
        return lambda: list(DataLoader(data, SIZE, sampler=order.tolist(), **how))

    def copy() -> list[Tensor]:
        """The least there is: crops as floats, all at one place."""
        return [pictures[part, :, :SIDE, :SIDE].float().div_(255) for part in order.split(SIZE)]

    def ready() -> list[tuple[Tensor, ...]]:
        return list(DataLoader(TensorDataset(floats), SIZE, shuffle=True))

    floats = torch.cat(ours())
    torch.testing.assert_close(floats, torch.cat(loader(0)()))
    for name, peer in (
        ("DataLoader, 0 workers", loader(0)),
        ("float copy", copy),
        ("TensorDataset of ready crops", ready),
    ):
        yield compare(ours, peer, pairs=PAIRS).line("caching augment 1,000 cached", name)
    spent = [(_cpu(ours), _cpu(loader(2))) for _ in range(5)]
    ratio = Comparison.of(spent)
    yield ratio.line("caching augment 1,000 cached, CPU of all", "DataLoader, 2 workers")


def _cpu(program: Callable[[], object]) -> float:
    """CPU seconds of this process and of those that it has started and that have ended."""

    def used() -> float:
        who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return sum(one.ru_utime + one.ru_stime for one in map(resource.getrusage, who))

    before = used()
    program()
    return used() - before


def epochs() -> Iterator[str]:
    """Seconds of a later epoch with its training, ways in turn."""
    ways = {
        "cached": Knobs(),
        "cached, ahead": Knobs(prefetch=2),
        "no cache": Knobs(cache="nothing"),
        "2 workers, private caches": Knobs(workers=2),
        "2 persistent workers, private caches, epoch 3": Knobs(workers=2, persistent=True),
        "2 workers, shared cache": Knobs(workers=2, shared=True),
    }
    found = experiment.ways_by_epoch(ways, range(ROUNDS), 3)
    later = {way: [run[2].seconds for run in runs] for way, runs in found.items()}
    for way in list(ways)[1:]:
        pairs = zip(later["cached"], later[way], strict=True)
        yield Comparison.of(pairs).line("caching epoch 3 with training, cached", way)
    yield _against_memory().line("caching epoch with training, cached", "crops in memory")


def _against_memory() -> Comparison:
    """The limit: crops that are ready, so that nothing is loaded at all."""
    settings = Knobs()
    model = models.cnn(settings.channels, 10, SIDE, colors=3)
    update = classifier_update(model, torch.optim.Adam(model.parameters()))
    pictures = torch.randint(256, (settings.pictures, 3, KEPT, KEPT), dtype=torch.uint8)
    x, y = torch.rand(settings.pictures, 3, SIDE, SIDE), torch.arange(settings.pictures) % 10
    epochs = experiment.orders(settings)

    def cached() -> None:
        for drawn in next(epochs):
            update(augment(pictures, drawn, SIDE), drawn[0] % 10)

    def ready() -> None:
        for batch in DataLoader(TensorDataset(x, y), settings.batch_size, shuffle=True):
            update(*batch)

    return compare(cached, ready, pairs=PAIRS)


def overlap() -> Iterator[str]:
    """Without a cache: loading in a thread and in persistent workers; second epochs."""
    ways = {
        "none": Knobs(cache="nothing"),
        "a thread": Knobs(cache="nothing", prefetch=2),
        "1 persistent worker": Knobs(cache="nothing", workers=1, persistent=True),
        "2 persistent workers": Knobs(cache="nothing", workers=2, persistent=True),
    }
    found = experiment.ways_by_epoch(ways, range(ROUNDS), 2)
    seconds = {way: [run[1].seconds for run in runs] for way, runs in found.items()}
    for way in list(ways)[1:]:
        ratio = Comparison.of(zip(seconds[way], seconds["none"], strict=True))
        yield ratio.line(f"caching loading ahead by {way}, {usable_cores()} cores", "none")
    for way, taken in seconds.items():
        predicted = experiment.predicted_epoch_seconds(ways[way])
        found = f"{median(taken):.3f} s, {predicted:.3f} foretold"
        yield f"caching epoch without a cache, {way}: {found}"


def hits() -> Iterator[str]:
    private = Knobs(workers=2, persistent=True)
    runs = experiment.ways_by_epoch({"private": private}, range(5), 6)["private"]
    for epoch in range(6):
        found = fmean(run[epoch].hits for run in runs)
        formula = expected_hits(epoch + 1, 2, persistent=True)
        told = f"{found:.3f}, formula {formula:.3f}"
        yield f"caching hits of 2 private caches, epoch {epoch + 1}: {told}"
    for share in (0.25, 0.5, 0.75):
        found = fmean(experiment.hits_of_a_part("recent", share, 2000, 4, 0)[1:])
        yield (
            f"caching hits with room for {share:.0%}: least recently used evicted {found:.3f}, "
            f"formula {hits_of_recent(share):.3f}; nothing evicted {share:.3f}"
        )
    settings = Knobs(prefetch=2)
    with photographs(settings.pictures) as files, closing(Feed(settings, files)) as feed:
        ahead = [feed.ahead for _ in islice(feed, 30)]
    assert max(ahead) <= 4
    with closing(prefetch(count(), 2)) as batches:
        assert list(islice(batches, 5)) == list(range(5))
