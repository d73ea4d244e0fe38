"""Thirty epochs on kept answers, the first pass included, against asking the frozen network,
against training all of it, and against a small network from scratch; the head against
scikit-learn's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from math import ceil
from statistics import fmean

import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from accel_lab.experiments import transfer as experiment
from accel_lab.transfer import answers, asked_update, kept_update, split, train_head
from accel_lab.workbench.device import threads
from accel_lab.workbench.measure.comparison import Comparison, reading

EPOCHS, PAIRS, SEEDS = 30, 5, 5


def prove() -> None:
    """Kept answers train the same head as asked ones."""
    knobs = experiment.Knobs(pictures=3, side=32, device="cpu")
    data = experiment.photographs(knobs)
    x, _ = experiment.pictures_of(knobs, data)
    heads = []
    for keep in (True, False):
        torch.manual_seed(0)
        trunk, head = split(experiment.photo_network(), 18)[0], nn.Linear(1280, 10)
        optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
        kept = answers(trunk, x)
        for places in torch.arange(30).split(16):
            if keep:
                kept_update(head, optimizer, kept[places], data.train_y[places])
            else:
                asked_update(trunk, head, optimizer, x[places], data.train_y[places])
        heads.append(head.weight.detach())
    torch.testing.assert_close(*heads, rtol=1e-3, atol=1e-5)


def seconds(epochs: int, **knobs: object) -> float:
    """Of a whole training, by the clock of its updates: the first pass is in, the tests are not."""
    turned = experiment.Knobs(device="cpu", every=10_000, judged=50, **knobs)
    with closing(experiment.run(turned)) as steps:
        return sum(step.seconds for step in islice(steps, ceil(epochs * turned.updates)))


def in_turn(**peer: object) -> Callable[[int], Comparison]:
    """So many epochs of the peer are timed, and stand for thirty."""

    def measured(epochs: int) -> Comparison:
        seconds(1), seconds(1, **peer)
        pairs = []
        for number in range(PAIRS):
            both = [lambda: seconds(EPOCHS), lambda: EPOCHS / epochs * seconds(epochs, **peer)]
            if number % 2:
                theirs, ours = both[1](), both[0]()
            else:
                ours, theirs = both[0](), both[1]()
            pairs.append((ours, theirs))
        return Comparison.of(pairs)

    return measured


def cases() -> Iterator[str]:
    prove()
    with threads(1):
        case = f"transfer {EPOCHS} epochs of 100 pictures, kept answers"
        for name, epochs, peer in (
            ("asked at every update", 5, {"way": "asked"}),
            ("all of it trained", 1, {"learns": "all", "way": "asked"}),
            ("a small CNN from scratch", EPOCHS, {"way": "small CNN"}),
        ):
            yield in_turn(**peer)(epochs).line(case, f"{name}, {epochs} epochs timed")
        knobs = experiment.Knobs(device="cpu")
        x, _ = experiment.pictures_of(knobs, experiment.photographs(knobs))
        network = experiment.photo_network()
        passes = [(seconds(EPOCHS), reading(lambda: answers(network, x))) for _ in range(PAIRS)]
        yield Comparison.of(passes).line(case, "one pass over the pictures")
        yield from accuracies()
        yield from heads()


def accuracies() -> Iterator[str]:
    for way in ("kept", "small CNN"):
        knobs = experiment.Knobs(device="cpu", way=way, judged=500)
        found = [one.accuracy for one in experiment.over_seeds(knobs, EPOCHS, range(SEEDS))]
        ends = f"{min(found):.1f}–{max(found):.1f} of {SEEDS} seeds"
        yield f"transfer accuracy, {way}: {fmean(found):.1f} % ({ends})"


def heads() -> Iterator[str]:
    """The same kept answers: our linear layer, and logistic regression to its end."""
    ours_right, peers_right, ratios = [], [], []
    for seed in range(SEEDS):
        knobs = experiment.Knobs(device="cpu", seed=seed, judged=500)
        data = experiment.photographs(knobs)
        x, test_x = experiment.pictures_of(knobs, data)
        kept, seen = (answers(experiment.photo_network(), one) for one in (x, test_x))
        numbers, labels = kept.numpy(), data.train_y.numpy()

        def ours(kept=kept, y=data.train_y, seed=seed) -> nn.Linear:
            torch.manual_seed(seed)
            order = [p for _ in range(EPOCHS) for p in torch.randperm(len(y)).split(32)]
            return train_head(kept, y, 10, order)

        def peers(numbers=numbers, labels=labels) -> LogisticRegression:
            return LogisticRegression(max_iter=200).fit(numbers, labels)

        ours(), peers()
        ratios += [(reading(ours), reading(peers)) for _ in range(3)]
        ours_right.append(100 * experiment.share_right(ours(), seen, data.test_y))
        peers_right.append(100 * float(peers().score(seen.numpy(), data.test_y.numpy())))
    said = f"{fmean(ours_right):.1f} % right, theirs {fmean(peers_right):.1f} %"
    yield Comparison.of(ratios).line(f"transfer head, {said}", "scikit-learn LogisticRegression")
