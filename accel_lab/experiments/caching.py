"""A small CNN fed from JPEG files: where a cache sits, in which process; seconds of an epoch."""

from __future__ import annotations

import io
import os
import random
import tempfile
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count, islice
from multiprocessing import get_all_start_methods
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import model_validator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from accel_lab.caching import Cache, DictCache, augment, draw, expected_hits, prefetch, read_picture
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.data.packages import folder_of
from accel_lab.workbench.device import pick_device
from accel_lab.workbench.effort import effort
from accel_lab.workbench.granted import usable_cores
from accel_lab.workbench.knobs import KnobError, TrainingKnobs, dial
from accel_lab.workbench.loop import classifier_update, train
from accel_lab.workbench.measure.load import under_watch
from accel_lab.workbench.step import Span, Step
from accel_lab.workbench.watched import told

CUT, KEPT, SIDE = 160, 96, 32  # pixels of a file's picture, of a kept one, of a crop
TESTED = 40  # test pictures of each class
CLASSES = len(datasets.PICTURES)
NO_LIMIT = 200  # batches ahead where a queue has no limit: here the lesson ends, not the memory


class Knobs(TrainingKnobs):
    cache: Literal["nothing", "bytes", "decoded", "augmented"] = dial(
        "decoded", description="what is kept of each picture"
    )
    workers: int = dial(0, ge=0, le=2, description="processes that load; 0: none")
    persistent: bool = dial(False, description="workers stay after an epoch")
    shared: bool = dial(False, description="one cache of pixels for all workers")
    prefetch: int = dial(0, ge=0, le=4, description="batches ahead, by a thread; 0: none")
    mistake: Literal["none", "float cache", "changed in place", "no limit", "order kept"] = dial(
        "none", description="made on purpose"
    )
    pictures: int = dial(240, ge=20, le=2000, panel=False, description="JPEG files to train on")
    batch_size: int = dial(24, ge=4, le=256, panel=False, description="pictures per update")
    channels: int = dial(16, ge=2, le=64, panel=False, description="of the first convolution")
    tested: int = dial(4, ge=0, le=100, panel=False, description="epochs between tests, 0: none")
    learning_rate: float = dial(
        0.002, ge=1e-5, le=0.1, log=True, panel=False, description="step size of Adam"
    )

    @model_validator(mode="after")
    def _fit(self) -> Knobs:
        if self.batch_size > self.pictures:
            raise KnobError("batch_size", f"{self.batch_size} of {self.pictures} pictures")
        if self.workers and "fork" not in get_all_start_methods():
            raise KnobError("workers", "this system has no fork, and a new process costs seconds")
        return self

    @property
    def one_cache(self) -> bool:
        """Do all workers have one cache? Only pixels can be shared, in a tensor."""
        pixels = self.cache in ("decoded", "augmented") and self.mistake != "float cache"
        return self.shared and pixels


# ---- files ----


@lru_cache(maxsize=2)
def _jpegs(pictures: int, of_test: bool) -> list[bytes]:
    """Parts of ten photographs, picture i of class i mod 10, encoded."""
    columns = datasets.TEST_COLUMNS if of_test else datasets.TRAIN_COLUMNS
    generator, parts = torch.Generator().manual_seed(0), []
    for place in datasets.PICTURES:
        package, _, path = place.partition("/")
        with Image.open(folder_of(package) / path) as image:
            left, right = (round(share * image.width) for share in columns)
            parts.append(image.convert("RGB").crop((left, 0, right, image.height)))
    made = []
    for number in range(pictures):
        part = parts[number % CLASSES]
        x, y = (int(torch.randint(n - CUT + 1, (), generator=generator)) for n in part.size)
        part.crop((x, y, x + CUT, y + CUT)).save(buffer := io.BytesIO(), "JPEG", quality=90)
        made.append(buffer.getvalue())
    return made


@contextmanager
def photographs(pictures: int, of_test: bool = False) -> Generator[list[Path]]:
    """JPEG files of 160 × 160 pixels in a temporary folder, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="accel_lab_") as folder:
        files = [Path(folder) / f"{number:04d}.jpg" for number in range(pictures)]
        for file, encoded in zip(files, _jpegs(pictures, of_test), strict=True):
            file.write_bytes(encoded)
        yield files


@lru_cache(maxsize=1)
def test_pictures() -> tuple[Tensor, Tensor]:
    """Crops of those parts of the photographs that no training picture shows, and their labels."""
    with photographs(TESTED * CLASSES, of_test=True) as files:
        pictures = torch.stack([read_picture(file, KEPT) for file in files])
    generator, chosen = torch.Generator().manual_seed(1), torch.arange(len(files))
    drawn = draw(chosen, KEPT - SIDE, generator)
    drawn[3:] = torch.tensor([[0], [255]])  # as they are: not flipped, not darkened
    return augment(pictures, drawn, SIDE), chosen % CLASSES


# ---- one batch ----


@dataclass
class Loaded:
    """A batch x, y · hits: pictures found in the cache · kept: bytes in it · worker: that loaded it
    · chosen: indices of its pictures · loading: (start, end) on the clock.
    """

    x: Tensor
    y: Tensor
    hits: int
    kept: int
    worker: int
    chosen: Tensor
    loading: tuple[float, float]


class Pictures(Dataset):
    """What a loader is asked for: a batch, by what was drawn for it. Each process has its copy,
    with its own cache unless that is shared.
    """

    def __init__(self, files: list[Path], knobs: Knobs):
        self.files, self.knobs = files, knobs
        self.one: Cache | None = None
        self.each = DictCache(lambda index: files[index].read_bytes())
        if knobs.mistake == "float cache":
            self.each = DictCache(lambda index: read_picture(files[index], KEPT).float())
        elif knobs.cache in ("decoded", "augmented"):
            self.one = Cache(self.decode, len(files), (3, KEPT, KEPT), shared=knobs.shared)
        self.frozen = torch.full((len(files), 5), -1)  # what was drawn at first for each picture
        if knobs.one_cache:
            self.frozen.share_memory_()

    def decode(self, index: int) -> Tensor:
        return read_picture(self.files[index], KEPT)

    def __getitem__(self, index: Tensor | np.ndarray) -> Loaded:
        """index: what was drawn, int64 [5, B], as ``draw`` returns it."""
        start, drawn = perf_counter(), torch.as_tensor(index)
        chosen, info = drawn[0], get_worker_info()
        if self.knobs.cache == "augmented":  # the first crop of each picture is what is kept
            new = self.frozen[chosen, 0] < 0
            self.frozen[chosen[new]] = drawn.T[new]
            drawn = self.frozen[chosen].T
        if self.one is not None:
            hits, kept = self.one.fill(chosen), int(self.one.have.sum()) * 3 * KEPT * KEPT
            if self.knobs.mistake == "changed in place":
                changed = self.one.pictures[chosen] * drawn[4].view(-1, 1, 1, 1) // 255
                self.one.pictures[chosen] = changed.byte()
            x = augment(self.one.pictures, drawn, SIDE)
        else:
            hits = sum(index in self.each.kept for index in chosen.tolist())
            pictures = torch.stack([self._picture(index) for index in chosen.tolist()])
            kept = sum(map(_bytes_of, self.each.kept.values()))
            x = augment(pictures, torch.cat([torch.arange(len(chosen))[None], drawn[1:]]), SIDE)
        worker, taken = info.id if info else 0, (start, perf_counter())
        return Loaded(x, chosen % CLASSES, hits, kept, worker, chosen, taken)

    def _picture(self, index: int) -> Tensor:
        if self.knobs.mistake == "float cache":
            return self.each[index]
        if self.knobs.cache == "bytes":
            return read_picture(io.BytesIO(self.each[index]), KEPT)
        return self.decode(index)


def _bytes_of(kept: bytes | Tensor) -> int:
    return kept.nbytes if isinstance(kept, Tensor) else len(kept)


# ---- epochs ----


def orders(knobs: Knobs) -> Iterator[list[Tensor]]:
    """Epoch after epoch, what is drawn for each of its batches: in this process, so that the
    batches do not depend on the process that loads them.
    """
    generator = torch.Generator().manual_seed(knobs.seed)
    for number in count():
        if number == 0 or knobs.mistake != "order kept":
            order = torch.randperm(knobs.pictures, generator=generator)
        yield [draw(one, KEPT - SIDE, generator) for one in order.split(knobs.batch_size)]


class _Coming:
    """Hands a DataLoader that stays what is drawn for the next epoch."""

    def __init__(self) -> None:
        self.epoch: list[Tensor] = []

    def __iter__(self) -> Iterator[np.ndarray]:
        return (drawn.numpy() for drawn in self.epoch)

    def __len__(self) -> int:
        return len(self.epoch)


def loaded_by(knobs: Knobs, pictures: Pictures) -> Generator[Loaded, None, None]:
    """Batches without end, the same from any process. Closing it ends the workers."""
    if not knobs.workers:
        for epoch in orders(knobs):
            for drawn in epoch:
                yield pictures[drawn]
    coming = _Coming()
    loader = DataLoader(
        pictures,
        batch_size=None,
        sampler=coming,
        num_workers=knobs.workers,
        persistent_workers=knobs.persistent,
        multiprocessing_context="fork",
        collate_fn=_as_it_is,
    )
    batches = None
    try:
        for coming.epoch in orders(knobs):
            batches = iter(loader)
            yield from batches
    finally:
        if batches is not None:
            batches._shutdown_workers()  # at once, and not when it is collected some time


def _as_it_is(loaded: Loaded) -> Loaded:
    return loaded


# ---- the experiment ----


def run(knobs: Knobs) -> Generator[Step, None, None]:
    """Train a small CNN from JPEG files until the generator is closed; then no process, no thread
    and no file is left.

    A Step's seconds hold the wait for its batch and the update. Metrics of each Step:
    loss: mean over the batch · wait_seconds: the wait for the batch
    kept_bytes: in the caches of all processes · ahead_bytes: of batches that wait to be trained on
    Of the last whole epoch, once there is one:
    epoch_seconds · hits: share of pictures found in a cache · wait_share: waiting, of all seconds
    test_accuracy: 0…1, every ``tested`` epochs, measured outside these seconds.
    """
    torch.manual_seed(knobs.seed)
    device = pick_device(knobs.device)
    model = models.cnn(knobs.channels, CLASSES, SIDE, colors=3).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=knobs.learning_rate)
    length, epoch, whole = -(-knobs.pictures // knobs.batch_size), [], {}
    latest: list[Loaded] = []
    kept: dict[int, int] = {}  # worker → bytes
    with photographs(knobs.pictures) as files, closing(Feed(knobs, files)) as feed:

        def pairs() -> Iterator[tuple[Tensor, Tensor]]:
            for loaded in feed:
                latest[:] = [loaded]
                yield loaded.x.to(device), loaded.y.to(device)

        for step in train(classifier_update(model, optimizer), pairs(), count_wait=True):
            loaded = latest[0]
            epoch.append((step, loaded.hits))
            kept[loaded.worker] = loaded.kept
            told = {"ahead_bytes": float(feed.ahead * loaded.x.nbytes)}
            told["kept_bytes"] = float((max if knobs.one_cache else sum)(kept.values()))
            if len(epoch) == length:
                whole, epoch = _whole_epoch(epoch), []
                if knobs.tested and (step.index + 1) % (knobs.tested * length) == 0:
                    told["test_accuracy"] = accuracy(model)
            yield replace(step, metrics={**step.metrics, **told, **whole})


class Feed:
    """All that loads for a run: in this process, in a thread, or in workers. Iterate once."""

    def __init__(self, knobs: Knobs, files: list[Path]):
        self._made = self._taken = 0
        self._batches = self._counted(loaded_by(knobs, Pictures(files, knobs)))
        if depth := NO_LIMIT if knobs.mistake == "no limit" else knobs.prefetch:
            self._batches = prefetch(self._batches, depth)

    def _counted(self, batches: Generator[Loaded, None, None]) -> Generator[Loaded, None, None]:
        with closing(batches):
            for batch in batches:
                self._made += 1
                yield batch

    @property
    def ahead(self) -> int:
        """Batches loaded by now, beyond those handed out."""
        return self._made - self._taken

    def __iter__(self) -> Iterator[Loaded]:
        for batch in self._batches:
            self._taken += 1
            yield batch

    def close(self) -> None:
        self._batches.close()


def _whole_epoch(epoch: list[tuple[Step, int]]) -> dict[str, float]:
    seconds = sum(step.seconds for step, _ in epoch)
    waited = sum(step.metrics["wait_seconds"] for step, _ in epoch)
    hits = sum(hits for _, hits in epoch) / sum(step.samples for step, _ in epoch)
    return {"epoch_seconds": seconds, "wait_share": waited / seconds, "hits": hits}


@torch.no_grad()
def accuracy(model: torch.nn.Module) -> float:
    x, y = test_pictures()
    device = next(model.parameters()).device
    return float((model(x.to(device)).argmax(1).cpu() == y).float().mean())


# ---- predicted beforehand ----

STAGES = ("read", "decode", "augment", "train")


@lru_cache
def costs(device: str = "cpu", channels: int = 16) -> dict[str, float]:
    """Seconds per picture of each stage on this machine, medians over some batches."""
    model = models.cnn(channels, CLASSES, SIDE, colors=3).to(pick_device(device))
    update = classifier_update(model, torch.optim.Adam(model.parameters()))
    taken: dict[str, list[float]] = {stage: [] for stage in STAGES}
    with under_watch(), photographs(96) as files:
        for number in range(3 + max(6, round(20 * effort()))):
            some = [files[(8 * number + place) % 96] for place in range(8)]
            drawn = draw(torch.arange(8), KEPT - SIDE, torch.Generator().manual_seed(number))
            clock = [perf_counter()]
            read = [file.read_bytes() for file in some]
            clock.append(perf_counter())
            pictures = torch.stack([read_picture(io.BytesIO(one), KEPT) for one in read])
            clock.append(perf_counter())
            x = augment(pictures.repeat(4, 1, 1, 1), torch.cat([drawn] * 4, 1), SIDE)
            clock.append(perf_counter())
            update(x.to(next(model.parameters()).device), torch.arange(32) % CLASSES)
            clock.append(perf_counter())
            for stage, start, end, of in zip(
                STAGES, clock, clock[1:], (8, 8, 32, 32), strict=False
            ):
                taken[stage].append((end - start) / of)
    return {stage: median(seconds[3:]) for stage, seconds in taken.items()}


def predicted_epoch_seconds(knobs: Knobs) -> float:
    """Seconds of an epoch once the cache holds what it can: N (load + train), or the larger of both
    where another core loads ahead. What it takes to start workers is not in it.
    """
    cost = costs(knobs.device, knobs.channels)
    load = cost["augment"]
    filled = expected_hits(1000, knobs.workers, knobs.persistent, knobs.one_cache) == 1
    if knobs.cache in ("nothing", "bytes") or not filled:
        load += cost["decode"]
    if knobs.cache == "nothing" or not filled:
        load += cost["read"]
    seconds, cores = load + cost["train"], usable_cores()
    if cores > 1 and (knobs.workers or knobs.prefetch):
        seconds = max(cost["train"], load / max(1, knobs.workers), seconds / cores)
    return knobs.pictures * seconds


def predicted_kept(knobs: Knobs) -> float:
    """Bytes in the caches of all processes, once each holds what it will: files, or uint8
    pictures.
    """
    if knobs.cache == "nothing":
        return 0.0
    each = knobs.pictures * 3 * KEPT * KEPT
    if knobs.cache == "bytes":
        each = sum(map(len, _jpegs(knobs.pictures, False)))
    caches = max(1, knobs.workers) if knobs.persistent and not knobs.one_cache else 1
    return float(caches * each)


# ---- what else the chapter measures ----


class Epoch(NamedTuple):
    """hits, wait: shares, 0…1 · seconds: of the whole epoch."""

    hits: float
    seconds: float
    wait: float


def by_epoch(knobs: Knobs, epochs: int) -> list[Epoch]:
    """Train for so many epochs."""
    length, found = -(-knobs.pictures // knobs.batch_size), []
    with closing(run(knobs.turned(tested=0))) as steps:
        for step in islice(steps, length - 1, epochs * length, length):
            told = step.metrics
            found.append(Epoch(told["hits"], told["epoch_seconds"], told["wait_share"]))
    return found


def ways_by_epoch(
    ways: Mapping[str, Knobs], seeds: Iterable[int], epochs: int
) -> dict[str, list[list[Epoch]]]:
    """Way → for each seed, its epochs. The ways take turns, in an order that chance picks."""
    found: dict[str, list[list[Epoch]]] = {way: [] for way in ways}
    with under_watch():
        by_epoch(next(iter(ways.values())), 1)  # warms up
        for seed in told(seeds, "seed"):
            for way in random.sample(list(ways), len(ways)):
                found[way].append(by_epoch(ways[way].turned(seed=seed), epochs))
    return found


def trained(knobs: Knobs, epochs: int) -> tuple[float, float]:
    """(test accuracy, mean training loss of the last epoch) after so many epochs."""
    length = -(-knobs.pictures // knobs.batch_size)
    with closing(run(knobs.turned(tested=epochs))) as steps:
        last = list(islice(steps, (epochs - 1) * length, epochs * length))
    return last[-1].metrics["test_accuracy"], sum(s.metrics["loss"] for s in last) / length


def read_seconds() -> dict[str, float]:
    """Seconds to read a picture's file: ``warm``, from the memory where the system keeps what was
    read of late, and ``cold``, from the disk, where the system can be asked to forget.
    """
    found: dict[str, list[float]] = {}
    with under_watch(), photographs(160) as files:
        for number in range(6):
            name = "cold" if number % 2 else "warm"
            if name == "cold" and not _forget(files):
                continue
            start = perf_counter()
            for file in files:
                file.read_bytes()
            found.setdefault(name, []).append((perf_counter() - start) / len(files))
    return {name: median(seconds) for name, seconds in found.items()}


def _forget(files: list[Path]) -> bool:
    """Ask the system to drop what it keeps of these files. False where it cannot be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def lanes(knobs: Knobs, batches: int) -> list[Span]:
    """When each batch was loaded, lane 0, and trained on, lane 1, in seconds since the start."""
    model = models.cnn(knobs.channels, CLASSES, SIDE, colors=3)
    update = classifier_update(model, torch.optim.Adam(model.parameters()))
    taken = []
    with under_watch(), photographs(knobs.pictures) as files, closing(Feed(knobs, files)) as feed:
        start = perf_counter()
        for number, loaded in enumerate(islice(feed, batches)):
            begin = perf_counter()
            update(loaded.x, loaded.y)
            taken.append(Span(1, f"train {number}", begin - start, perf_counter() - start))
            loading = (time - start for time in loaded.loading)
            taken.append(Span(0, f"load {number}", *loading))
    return taken


def holders(knobs: Knobs, epochs: int) -> list[list[Tensor]]:
    """After each epoch: for each process that loads, which pictures its cache holds, bool [N]."""
    caches, length = max(1, knobs.workers), -(-knobs.pictures // knobs.batch_size)
    held = [torch.zeros(knobs.pictures, dtype=torch.bool) for _ in range(caches)]
    found = []
    with photographs(knobs.pictures) as files, closing(Feed(knobs, files)) as feed:
        batches = iter(feed)
        for _ in range(epochs):
            if knobs.workers and not knobs.persistent and not knobs.one_cache:
                held = [torch.zeros_like(one) for one in held]
            for loaded in islice(batches, length):
                for worker in range(caches) if knobs.one_cache else [loaded.worker]:
                    held[worker][loaded.chosen] = True
            found.append([one.clone() for one in held])
    return found


def hits_of_a_part(policy: str, share: float, pictures: int, epochs: int, seed: int) -> list[float]:
    """Hits of each epoch of a cache with room for a share of the pictures, in a new order each
    epoch. policy: "recent", which evicts the least recently used, or "first", which evicts nothing.
    """
    generator, room = torch.Generator().manual_seed(seed), round(share * pictures)
    kept: OrderedDict[int, None] = OrderedDict()
    found = []
    for _ in range(epochs):
        hits = 0
        for index in torch.randperm(pictures, generator=generator).tolist():
            if index in kept:
                hits += 1
                kept.move_to_end(index)
            elif len(kept) < room or policy == "recent":
                kept[index] = None
                if len(kept) > room:
                    kept.popitem(last=False)
        found.append(hits / pictures)
    return found
