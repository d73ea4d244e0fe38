"""Augmentation of few MNIST digits, and of texts; and a denoiser, for which noise is the task."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache
from itertools import islice, pairwise, product
from statistics import median
from time import perf_counter
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from accel_lab._wording import split_words
from accel_lab.augmentation import Policy, augment, naive_augment
from accel_lab.workbench.data import datasets
from accel_lab.workbench.device import pick_device, synchronize
from accel_lab.workbench.effort import effort, some_seeds
from accel_lab.workbench.knobs import TrainingKnobs, dial
from accel_lab.workbench.loop import classifier_update, train
from accel_lab.workbench.measure.load import under_watch
from accel_lab.workbench.step import Step
from accel_lab.workbench.watched import told

EVALUATE_EVERY = 25  # updates
Way = TypeVar("Way", bound=Hashable)


class Knobs(TrainingKnobs):
    pictures: int = dial(10, ge=1, le=400, log=True, description="training pictures per digit")
    shift: float = dial(
        0.0, ge=0, le=0.5, description="shift each picture by up to this share of its side"
    )
    rotate: float = dial(
        0.0,
        ge=0,
        le=180,
        unit="degrees",
        description="turn each picture by up to this many degrees, either way",
    )
    zoom: float = dial(
        0.0, ge=0, le=0.9, description="enlarge or shrink each picture by up to this share"
    )
    flip: float = dial(
        0.0, ge=0, le=1, description="probability of mirroring a picture (unsafe for digits)"
    )
    noise: float = dial(
        0.0,
        ge=0,
        le=2,
        panel=False,
        description="standard deviation of noise added to pixels of 0…1",
    )
    one_by_one: bool = dial(
        False, description="augment picture after picture instead of the batch at once"
    )
    batch_size: int = dial(64, ge=1, le=512, panel=False, description="samples per update")
    learning_rate: float = dial(
        0.05, ge=1e-4, le=1, log=True, panel=False, description="step size of the optimizer"
    )

    @property
    def policy(self) -> Policy:
        return Policy(
            flip=self.flip, rotate=self.rotate, zoom=self.zoom, shift=self.shift, noise=self.noise
        )


def run(knobs: Knobs) -> Generator[Step, None, None]:
    """Train a small CNN on a few MNIST digits, unsafe transforms included, until it is closed.

    Metrics of each Step:
    loss: mean over the batch.
    augment_seconds: for this batch, outside the update's clock.
    augment_share: of augmentation and update together, 0 to 1; left out where a clock with coarse
    ticks has seen neither.

    Every 25th also has train_accuracy (on pictures without augmentation), test_accuracy, and their
    gap, 0 to 1.
    """
    torch.manual_seed(knobs.seed)
    device = pick_device(knobs.device)
    digits = few(datasets.mnist5k(), knobs.pictures, knobs.seed).to(device)
    model = network().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=knobs.learning_rate, momentum=0.9)
    generator = torch.Generator().manual_seed(knobs.seed)
    way = naive_augment if knobs.one_by_one else augment
    seconds = 0.0  # of the latest batch's augmentation

    def augmented() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal seconds
        for x, y in digits.batches(min(knobs.batch_size, len(digits.train_y)), knobs.seed):
            start = perf_counter()
            x = way(x, knobs.policy, generator, kind="digits", unsafe=True)
            synchronize(device)
            seconds = perf_counter() - start
            yield x, y

    for step in train(classifier_update(model, optimizer), augmented()):
        cost = {"augment_seconds": seconds}
        if both := seconds + step.seconds:
            cost["augment_share"] = seconds / both
        found = evaluate(model, digits) if step.index % EVALUATE_EVERY == 0 else {}
        yield replace(step, metrics={**step.metrics, **cost, **found})


@torch.no_grad()
def evaluate(model: nn.Module, digits: datasets.Data) -> dict[str, float]:
    """Measure accuracy (0…1) on at most 1,000 samples of each split, and the gap between them."""
    train, test = (
        float((model(x[:1000]).argmax(1) == y[:1000]).double().mean())
        for x, y in ((digits.train_x, digits.train_y), (digits.test_x, digits.test_y))
    )
    return {"train_accuracy": train, "test_accuracy": test, "gap": train - test}


@cache
def accuracy_after(knobs: Knobs, updates: int = 201) -> float:
    """Train for so many updates and return the test accuracy, in percent; once for each knobs.

    updates: one more than a multiple of 25, for the last measures; fewer for a quick look, see
    ``effort``.
    """
    looks = max(1, round(effort() * (updates - 1) / EVALUATE_EVERY))
    *_, last = islice(run(knobs), looks * EVALUATE_EVERY + 1)
    return 100 * last.metrics["test_accuracy"]


def accuracies_at(knobs: Knobs, updates: Sequence[int]) -> list[float]:
    """Train once, for as long as the last of ``updates`` says, and return the test accuracy at each
    of them, in percent. Each is a multiple of 25, for those measure; a quick look takes fewer.
    """
    places = [max(1, round(effort() * one / EVALUATE_EVERY)) * EVALUATE_EVERY for one in updates]
    with closing(run(knobs)) as steps:
        seen = {step.index: step.metrics for step in islice(steps, places[-1] + 1)}
    return [100 * seen[place]["test_accuracy"] for place in places]


def gains_over_seeds(
    plain: Knobs, augmented: Knobs, updates: Sequence[int], seeds: int
) -> dict[int, list[float]]:
    """Updates → by how many points the augmented run is better after so many, one for each seed."""
    gains: dict[int, list[float]] = {one: [] for one in updates}
    for seed in told(some_seeds(seeds), "seed"):
        ours, theirs = (accuracies_at(one.turned(seed=seed), updates) for one in (augmented, plain))
        for place, one in enumerate(updates):
            gains[one].append(ours[place] - theirs[place])
    return gains


def accuracies_over_seeds(ways: Mapping[Way, Knobs], seeds: int) -> dict[Way, list[float]]:
    """Way → ``accuracy_after`` for the seeds 0, 1, …, each with its own pictures and weights."""
    found: dict[Way, list[float]] = {way: [] for way in ways}
    for way, seed in told(product(ways, some_seeds(seeds)), "training"):
        found[way].append(accuracy_after(ways[way].turned(seed=seed)))
    return found


def worth(accuracy: float, by_pictures: Mapping[int, float], pictures: int = 10) -> float:
    """Read off how many real pictures reach an accuracy, as a multiple of ``pictures``.

    by_pictures: real pictures of each class → accuracy, in growing order. Between its points the
    accuracy is taken to grow with the logarithm, beyond them as along the ends.
    """
    points = [(math.log(count), score) for count, score in by_pictures.items()]
    pairs = list(pairwise(points))
    (x0, y0), (x1, y1) = next((pair for pair in pairs if accuracy <= pair[1][1]), pairs[-1])
    return math.exp(x0 + (accuracy - y0) * (x1 - x0) / (y1 - y0)) / pictures


def augmentation_share(knobs: Knobs, updates: int = 40) -> tuple[float, float]:
    """Return median seconds of augmenting a batch, and of the update it feeds; 5 warm up."""
    with under_watch(), closing(run(knobs)) as running:
        steps = list(islice(running, updates))[5:]
    return (
        median(step.metrics["augment_seconds"] for step in steps),
        median(step.seconds for step in steps),
    )


def few(digits: datasets.Data, pictures: int, seed: int) -> datasets.Data:
    """Keep ``pictures`` training samples of each class, or all where there are fewer."""
    generator, labels = torch.Generator().manual_seed(seed), digits.train_y
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    kept = torch.cat([order[labels[order] == label][:pictures] for label in range(digits.classes)])
    return replace(digits, train_x=digits.train_x[kept], train_y=labels[kept])


def network(channels: int = 8) -> nn.Sequential:
    """Make a quick CNN, [n, 1, 28, 28] → [n, 10]: two strided convolutions and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * channels * 7 * 7, 10),
    )


# ---- a denoiser ----


def denoiser(channels: int = 16) -> nn.Sequential:
    """Make a small autoencoder, [n, 1, 28, 28] → the same: two convolutions down, two up."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(channels, 1, 4, stride=2, padding=1),
    )


def train_denoiser(
    x: Tensor, policy: Policy, *, updates: int = 150, batch_size: int = 64, seed: int = 0
) -> nn.Sequential:
    """Train a denoiser: shifts and turns make other pictures, noise is what it must remove.

    x: pictures [n, 1, 28, 28]. Without noise in the policy it learns to copy, noise included.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = denoiser().to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    moves = replace(policy, noise=0.0)
    for _ in told(range(updates), "update"):
        clean = x[torch.randint(len(x), (batch_size,), generator=generator).to(x.device)]
        clean = augment(clean, moves, generator, kind="digits", unsafe=True)  # there is no label
        noisy = augment(clean, Policy(noise=policy.noise), generator, kind="digits")
        optimizer.zero_grad()
        mse_loss(model(noisy), clean).backward()
        optimizer.step()
    return model


def best_linear_error(x: Tensor, noise: float) -> float:
    """Predict the mean squared error per pixel of the best affine denoiser, Wiener's filter.

    Along each principal direction of the pictures x [n, …], of variance λ, noise of variance σ²
    leaves λσ²/(λ + σ²).
    """
    variances = torch.linalg.eigvalsh(x.flatten(1).double().T.cov(correction=0)).clamp(min=0)
    return float((variances * noise**2 / (variances + noise**2)).mean())


# ---- texts ----


class SentimentClassifier:
    """Tells praise from blame by the mean of word vectors, so it cannot see the order of words.

    texts, labels: sentences, and 0 or 1 for each. Words that occur only once there are ignored.
    """

    def __init__(self, texts: list[str], labels: list[int], *, epochs: int = 4, seed: int = 0):
        torch.manual_seed(seed)
        counts = Counter(word for text in texts for word in self._words(text))
        self.known = {
            word: place
            for place, word in enumerate((word for word, n in counts.items() if n > 1), start=1)
        }
        self.vectors = nn.EmbeddingBag(len(self.known) + 1, 32, padding_idx=0)  # 0: unknown words
        nn.init.normal_(self.vectors.weight, std=0.1)
        self.layer = nn.Linear(32, 2)
        optimizer = torch.optim.Adam(
            [*self.vectors.parameters(), *self.layer.parameters()], lr=5e-3
        )
        bags, truth = [self._bag(text) for text in texts], torch.tensor(labels)
        for _ in range(epochs):
            for batch in torch.randperm(len(texts)).split(128):
                optimizer.zero_grad()
                scores = self._scores([bags[place] for place in batch.tolist()])
                cross_entropy(scores, truth[batch]).backward()
                optimizer.step()

    @torch.no_grad()
    def accuracy(self, texts: list[str], labels: list[int]) -> float:
        """Measure the share that it gets right, 0…1."""
        found = self._scores([self._bag(text) for text in texts]).argmax(1)
        return float((found == torch.tensor(labels)).double().mean())

    @staticmethod
    def _words(text: str) -> list[str]:
        return [word.lower() for word in split_words(text)[1::2]]

    def _bag(self, text: str) -> Tensor:
        return torch.tensor([self.known.get(word, 0) for word in self._words(text)] or [0])

    def _scores(self, bags: list[Tensor]) -> Tensor:
        """Score bags of word numbers: [n, 2]."""
        begins = torch.tensor([0, *(len(bag) for bag in bags[:-1])]).cumsum(0)
        return self.layer(self.vectors(torch.cat(bags), begins))
