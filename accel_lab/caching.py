"""Caching: what is expensive and always the same is computed once, and kept.

A loader reads a file, decodes it, augments the picture by chance, and collects a batch. Where the
cache sits decides what it is worth:

    read → decode → [cache] → augment → batch → train

In front of it stands what is expensive and the same in every epoch, behind it what is random. With
seconds r, d, a, t per picture for reading, decoding, augmenting and training, an epoch of N
pictures takes N(r + d + a + t) the first time and N(a + t) from then on. If another core loads
ahead, the first is N · max(r + d + a, t).

The traps:

- A cache belongs to a process. A worker that is started anew for each epoch begins with an empty
  one; W workers that stay have W caches, and a picture is found with the chance
  1 − (1 − 1/W)^(e−1) in epoch e. In shared memory there is one cache for all of them.
- Cached behind the augmentation, every epoch sees the same crops.
- What a cache hands out must be a copy, or what is done to it stays in the cache.
- Where only a share c of the data fits, keeping the most recently used hits c + (1 − c) ln(1 − c)
  under random order. Keeping the first that came, and evicting nothing, hits c.

Sources: Mohan et al. 2021, "Analyzing and mitigating data stalls in DNN training",
arXiv:2007.06775, "The MinIO cache", which evicts nothing; Murray et al. 2021, "tf.data",
arXiv:2101.12127, on prefetching and on the order of the steps.
"""

from __future__ import annotations

import math
import queue
import shutil
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from accel_lab.workbench.knobs import KnobError

Batch = TypeVar("Batch")
Decode = Callable[[int], Tensor]  # index → uint8 [channels, height, width]
_END = object()


def read_picture(file: Path | str, side: int) -> Tensor:
    """Read, decode and resize a picture: the same in every epoch, and most of the work.

    Returns uint8 [3, side, side], of grey, CMYK and transparent pictures as well.
    Raises ValueError, one line with the name of the file, for one that is cut off or no picture,
    and for more than 8 bits a channel; FileNotFoundError for one that is gone.
    """
    try:
        with Image.open(file) as image:
            if image.mode in ("F", "I") or image.mode.startswith("I;"):
                raise ValueError(f"{file}: {image.mode!r} has more than 8 bits; convert it first")
            small = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{file}: not a whole picture ({error}); write it anew") from None
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()


# ---- caches ----


class DictCache:
    """The naive cache: a dict in whichever process asks, each picture by itself."""

    def __init__(self, decode: Decode):
        self.decode, self.kept = decode, {}

    def __getitem__(self, index: int) -> Tensor:
        if index not in self.kept:
            self.kept[index] = self.decode(index)
        return self.kept[index]  # the kept picture itself: who changes it changes the cache


class Cache:
    """All pictures in one uint8 tensor, each decoded when it is asked for the first time.

    decode: index → uint8 of ``shape`` · count: of the pictures · shape: of one, (C, H, W) ·
    shared: keep them in memory that worker processes share, one cache for all.
    ``pictures`` [count, C, H, W], ``have`` bool [count]: which of them are there.
    Raises ValueError, one line, when there are no pictures, or no room for all of them.
    """

    def __init__(self, decode: Decode, count: int, shape: Sequence[int], shared: bool = False):
        check_room(count, shape, shared)
        self.decode = decode
        self.pictures = torch.empty(count, *shape, dtype=torch.uint8)
        self.have = torch.zeros(count, dtype=torch.bool)
        if shared:
            self.pictures.share_memory_()
            self.have.share_memory_()

    def fill(self, indices: Tensor) -> int:
        """Decode those of the pictures that are missing. indices: [B]. Returns how many were there.

        Raises IndexError for other indices than int64 [B], and for one out of range; ValueError for
        a picture of another shape or dtype, which is not kept.
        """
        self._refuse_others(indices)
        there = self.have[indices]
        for index in indices[~there].unique().tolist():
            self.pictures[index] = self._whole(index)
            self.have[index] = True  # last, so that no other worker sees half a picture
        return int(there.sum())

    def _refuse_others(self, indices: Tensor) -> None:
        found, shape = (
            getattr(indices, "dtype", type(indices).__name__),
            getattr(indices, "shape", ()),
        )
        if found not in (torch.int64, torch.int32) or len(shape) != 1:  # True would be picture 1
            raise IndexError(f"indices: {found} {list(shape)}, and not an int64 tensor [B]")
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self.have):
            raise IndexError(f"indices: {indices.tolist()} are not all in 0…{len(self.have) - 1}")

    def _whole(self, index: int) -> Tensor:
        picture, shape = self.decode(index), self.pictures.shape[1:]
        if not isinstance(picture, Tensor):
            raise ValueError(f"picture {index}: {type(picture).__name__}, and not a tensor")
        if picture.shape != shape or picture.dtype != torch.uint8:
            found = f"{picture.dtype} {list(picture.shape)}"
            raise ValueError(f"picture {index}: {found}, and not uint8 {list(shape)}")
        return picture

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Copies of the pictures, [B, C, H, W]."""
        self.fill(indices)
        return self.pictures[indices]


def check_room(count: int, shape: Sequence[int], shared: bool = False) -> None:
    """Raise ValueError, before anything is filled, unless so many uint8 pictures fit in memory."""
    if count < 1:
        raise ValueError(f"count: {count} pictures; there must be one at least")
    if min(shape, default=1) < 1:
        raise ValueError(f"shape: {list(shape)}; a picture has one pixel at least")
    free = psutil.virtual_memory().available
    if shared and Path("/dev/shm").is_dir():  # 64 MB in many containers
        free = min(free, shutil.disk_usage("/dev/shm").free)
    if (needed := count * math.prod(shape)) > free:
        where = "shared memory" if shared else "memory"
        raise ValueError(
            f"count: {count} pictures take {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB of "
            f"{where} are free; keep smaller pictures, or a part of them"
        )


# ---- what is random, and stays behind the cache ----


def draw(indices: Tensor, room: int, generator: torch.Generator) -> Tensor:
    """Draw what chance decides about a batch: where to crop, whether to flip, how bright.

    indices: [B] · room: crops have the corners 0…room in both directions.
    Returns int64 [5, B]: indices, rows, columns, flips (0 or 1), light (of 255).
    """
    size = (len(indices),)
    rows, columns = torch.randint(room + 1, (2, *size), generator=generator)
    flips = torch.randint(2, size, generator=generator)
    light = torch.randint(128, 256, size, generator=generator)
    return torch.stack([indices, rows, columns, flips, light])


def augment(pictures: Tensor, drawn: Tensor, side: int) -> Tensor:
    """Crop, flip and darken as drawn, the whole batch by a few calls.

    pictures: uint8 [N, C, H, W], of which a batch takes some · drawn: int64 [5, B], see ``draw``.
    Returns float32 [B, C, side, side] in 0…1, new memory. The windows are a view of all crops that
    could be cut: only the chosen ones are copied.
    """
    indices, rows, columns, flips, light = drawn
    windows = pictures.unfold(2, side, 1).unfold(3, side, 1)  # [N, C, H−side+1, W−side+1, side, …]
    crops = windows[indices, :, rows, columns].float()
    turned = flips.bool()
    crops[turned] = crops[turned].flip(3)
    return crops.mul_((light / 255**2).view(-1, 1, 1, 1))


# ---- loading ahead ----


def prefetch(batches: Iterable[Batch], depth: int) -> Generator[Batch, None, None]:
    """Load in a thread, at most ``depth`` batches ahead, while the caller trains.

    Hands out the same batches in the same order; what the loading raises is raised here, in its
    place. When it is closed, or left by an exception, the thread ends, and ``batches`` is closed.
    Raises KnobError unless depth is a whole number, at least 1: a queue without a limit fills the
    memory.
    """
    if not isinstance(depth, int) or depth < 1:
        raise KnobError("depth", f"{depth} batches; a queue needs a limit of at least 1")
    return _prefetch(batches, queue.Queue(depth))


def _prefetch(batches: Iterable[Batch], ready: queue.Queue) -> Generator[Batch, None, None]:
    left = threading.Event()

    def load() -> None:
        error = None
        try:
            for batch in batches:
                ready.put((batch, None))
                if left.is_set():
                    break
        except BaseException as raised:  # nobody else would hear of it
            error = raised
        finally:
            if isinstance(batches, Generator):
                batches.close()
            ready.put((_END, error))

    thread = threading.Thread(target=load, name="prefetch", daemon=True)
    thread.start()
    try:
        while (got := ready.get())[0] is not _END:
            yield got[0]
        if got[1] is not None:
            raise got[1]
    finally:
        left.set()
        while thread.is_alive():  # it may wait for room in the queue
            while not ready.empty():
                ready.get()
            thread.join(0.01)


# ---- what can be foretold ----


def expected_hits(
    epoch: int, workers: int, persistent: bool = False, shared: bool = False
) -> float:
    """Predict the share of pictures, 0…1, that an epoch, 1, 2, …, finds in the cache.

    workers: processes that load; 0: the training process itself. persistent: they outlive an epoch.
    shared: all have one cache. Raises ValueError for an epoch below 1 or workers below 0.
    """
    if epoch < 1 or workers < 0:
        raise ValueError(f"epoch, workers: {epoch} and {workers}; epochs begin at 1, workers at 0")
    if epoch == 1 or (workers and not persistent and not shared):
        return 0.0
    return 1.0 if shared else 1 - (1 - 1 / max(1, workers)) ** (epoch - 1)


def hits_of_recent(share: float) -> float:
    """Predict the hits, 0…1, of a cache that evicts the least recently used picture (LRU).

    share: of the data that it has room for. Raises ValueError for one below 0.
    """
    if not share >= 0:
        raise ValueError(f"share: {share}; there is room for a share of the data, 0…1")
    return 1.0 if share >= 1 else share + (1 - share) * math.log(1 - share)
