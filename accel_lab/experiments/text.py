"""A reader of film reviews: cleaning on and off, updates of the whole table or of its rows."""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import islice, pairwise
from statistics import fmean
from time import process_time
from typing import Literal, NamedTuple

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy

from accel_lab.text import (
    Bags,
    Cleaning,
    RowAdam,
    dense_update,
    expected_rows,
    keeping_negations,
    row_update,
)
from accel_lab.workbench.data import words
from accel_lab.workbench.device import pick_device
from accel_lab.workbench.effort import effort, some_seeds
from accel_lab.workbench.knobs import KnobError, TrainingKnobs, dial
from accel_lab.workbench.loop import train
from accel_lab.workbench.step import Step
from accel_lab.workbench.watched import told

WIDTH = 64  # numbers of a word's vector
EVALUATE_EVERY = 20  # updates
STOP = words.english_stop_words()
CLEANINGS: dict[str, Cleaning] = {
    "spaces only": Cleaning(words=False),
    "none": Cleaning(),
    "lower case": Cleaning(lower=True),
    "punctuation": Cleaning(punctuation=True),
    "stop words": Cleaning(stop=STOP),
    "stop words but not": Cleaning(stop=keeping_negations(STOP)),
    "lemmas": Cleaning(lemmas=True),
    "all": Cleaning(lower=True, punctuation=True, stop=STOP, lemmas=True),
}


# ---- the famous mistakes ----


class LostDuplicates(RowAdam):
    """Take a row for each occurrence: of the gradients of a word that occurs twice, one is kept."""

    def take(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        self.touched = ids
        self.part = self.table.index_select(0, ids).requires_grad_()
        return self.part, torch.arange(len(ids), device=ids.device)


def padded(bags: Bags) -> Bags:
    """Fill all texts up to the longest with word 0: it counts in the mean, and is trained."""
    ids, begins = bags
    texts = ids.tensor_split(begins[1:].cpu())
    rectangle = nn.utils.rnn.pad_sequence(texts, batch_first=True)
    return rectangle.flatten(), torch.arange(len(texts), device=ids.device) * rectangle.shape[1]


# ---- the data ----


class Texts(NamedTuple):
    """The words of many texts as numbers [words], and where each text begins [texts + 1]."""

    ids: Tensor
    begins: Tensor

    def bags(self, places: Tensor) -> Bags:
        """The texts at these places, one after another."""
        lengths = self.begins[places + 1] - self.begins[places]
        begins = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        source = (self.begins[places] - begins[:-1]).repeat_interleave(lengths)
        return self.ids[source + torch.arange(len(source))], begins[:-1]

    def hashed(self, vocabulary: int) -> Texts:
        """With so many different numbers: now and then two words share one."""
        return Texts(self.ids % vocabulary, self.begins)

    def only(self, known: Tensor) -> Texts:
        """Without the words that are not known [largest + 1], and the others numbered anew."""
        kept = known[self.ids]
        before = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)])
        return Texts((known.cumsum(0) - 1)[self.ids[kept]], before[self.begins])


def as_texts(tokens_of: Iterable[Sequence[str]], number: Callable[[str], int]) -> Texts:
    """Number the words of each text."""
    ids, begins = [], [0]
    for tokens in tokens_of:
        ids += map(number, tokens)
        begins.append(len(ids))
    return Texts(torch.tensor(ids, dtype=torch.int64), torch.tensor(begins))


def with_pairs(tokens: Sequence[str]) -> list[str]:
    """The words of a text, and each two neighbours as one more: "not good"."""
    return [*tokens, *(f"{one} {other}" for one, other in pairwise(tokens))]


@lru_cache(2**18)
def hash_of(word: str) -> int:
    """A number of 32 bits, the same in each process: no dictionary is needed."""
    return zlib.crc32(word.encode("utf-8", "surrogatepass"))


@cache
def all_reviews() -> tuple[list[str], Tensor]:
    """All 8,530 sentences of ``words.reviews()``, and their labels."""
    texts, labels = zip(*(pair for part in words.reviews() for pair in part), strict=True)
    return list(texts), torch.tensor(labels)


@cache
def whole_reviews(number: int = 3000) -> tuple[list[str], Tensor]:
    """So many whole reviews, as they were typed, and their labels; fewer for a quick look."""
    texts, labels = zip(*words.long_reviews(round(number * effort())), strict=True)
    return list(texts), torch.tensor(labels)


@lru_cache(2)
def hashed_reviews(cleaning: str) -> Texts:
    """All sentences, each with its pairs of words, as hashes."""
    cleaned = map(CLEANINGS[cleaning], all_reviews()[0])
    return as_texts(map(with_pairs, cleaned), hash_of)


# ---- the experiment ----


class Knobs(TrainingKnobs):
    vocabulary: int = dial(
        60_000, ge=1000, le=60_000, log=True, description="rows of the embedding table"
    )
    update: Literal["dense Adam", "fused Adam", "SparseAdam", "rows", "no table"] = dial(
        "rows", description="rule for the table"
    )
    cleaning: Literal[
        "spaces only",
        "none",
        "lower case",
        "punctuation",
        "stop words",
        "stop words but not",
        "lemmas",
        "all",
    ] = dial("none", description="what is done to the texts before")
    batch_size: int = dial(32, ge=1, le=1024, log=True, description="texts per update")
    mistake: Literal["none", "duplicates lost", "padded length"] = dial(
        "none", description="made on purpose, by rows"
    )
    learning_rate: float = dial(
        0.01, ge=1e-4, le=1, log=True, panel=False, description="step size of Adam"
    )
    twin: bool = dial(False, panel=False, description="compare each update with the right one")

    @model_validator(mode="after")
    def _mistakes_are_made_by_rows(self) -> Knobs:
        if self.update != "rows" and (self.mistake != "none" or self.twin):
            raise KnobError("update", "mistakes are made, and compared, by update='rows' alone")
        return self


def run(knobs: Knobs) -> Generator[Step, None, None]:
    """Train on sentences of film reviews, words and pairs of words hashed, until it is closed.

    Metrics of each Step:
    loss: mean over the batch.
    touched: share of the table's rows that the batch needs, 0 to 1.
    words_per_second: of the batch, pairs counted as words; left out where a clock with coarse ticks
    has seen no time pass.
    update_ms: milliseconds of this update.
    update_error (with ``twin``): ‖Δtable − Δright‖ / ‖Δright‖ against the right update.

    Every 20th also has test_accuracy, 0 to 1.
    """
    torch.manual_seed(knobs.seed)
    device = pick_device(knobs.device)
    texts = hashed_reviews(knobs.cleaning).hashed(knobs.vocabulary)
    labels = all_reviews()[1]
    tests = len(labels) // 5
    table = (0.1 * torch.randn(knobs.vocabulary, WIDTH)).to(device)
    layer = nn.Linear(WIDTH, 2).to(device)
    training = Training(knobs, table, layer)
    test_bags = _moved(texts.bags(torch.arange(tests)), device)
    bags = test_bags
    right = table  # as the right update leaves it

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal bags, right
        for places in shuffled(tests, len(labels), knobs.batch_size, knobs.seed):
            bags, y = _moved(texts.bags(places), device), labels[places].to(device)
            right = training.right_table(bags, y) if knobs.twin else table
            yield bags[0], y

    before = table.clone() if knobs.twin else table
    for step in train(lambda _, y: {"loss": training.update(bags, y)}, batches()):
        found = {
            "touched": len(bags[0].unique()) / knobs.vocabulary,
            "update_ms": 1e3 * step.seconds,
        }
        if step.seconds:
            found["words_per_second"] = len(bags[0]) / step.seconds
        if knobs.twin:
            found["update_error"] = float((table - right).norm() / (right - before).norm())
            before = table.clone()
        if step.index % EVALUATE_EVERY == 0:
            found["test_accuracy"] = accuracy(table, layer, test_bags, labels[:tests].to(device))
        yield replace(step, samples=len(bags[1]), metrics={**step.metrics, **found})


def _moved(bags: Bags, device: torch.device) -> Bags:
    return bags[0].to(device), bags[1].to(device)


def shuffled(first: int, last: int, size: int, seed: int) -> Iterator[Tensor]:
    """Places from first to last − 1, shuffled anew in each epoch, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from (first + torch.randperm(last - first, generator=generator)).split(size)


class Training:
    """A table and a layer, and the update that the knobs ask for."""

    def __init__(self, knobs: Knobs, table: Tensor, layer: nn.Module):
        self.layer, self.knobs = layer, knobs
        way, lr = knobs.update, knobs.learning_rate
        self.table = table.detach().requires_grad_(way not in ("rows", "no table"))
        trained = list(layer.parameters())
        if way in ("dense Adam", "fused Adam"):
            trained.append(self.table)
        self.adam = torch.optim.Adam(trained, lr, fused=way != "dense Adam")
        rows = LostDuplicates if knobs.mistake == "duplicates lost" else RowAdam
        self.rows = rows(table, lr) if way == "rows" else None
        self.sparse = torch.optim.SparseAdam([self.table], lr) if way == "SparseAdam" else None

    def update(self, bags: Bags, y: Tensor) -> Tensor:
        if self.rows is not None:
            bags = padded(bags) if self.knobs.mistake == "padded length" else bags
            return row_update(self.rows, self.layer, self.adam, bags, y)
        if self.sparse is None:
            return dense_update(self.table, self.layer, self.adam, bags, y)
        self.sparse.zero_grad()
        self.adam.zero_grad()
        means = functional.embedding_bag(bags[0], self.table, bags[1], sparse=True)
        loss = cross_entropy(self.layer(means), y)
        loss.backward()
        self.sparse.step()
        self.adam.step()
        return loss.detach()

    def right_table(self, bags: Bags, y: Tensor) -> Tensor:
        """The table as the right update of rows would leave it, from where all of this stands."""
        rows = RowAdam(self.table.clone(), self.rows.lr)
        rows.first, rows.second = self.rows.first.clone(), self.rows.second.clone()
        rows.updates = self.rows.updates
        part, places = rows.take(bags[0])
        means = functional.embedding_bag(places, part, bags[1])
        (rows.part.grad,) = torch.autograd.grad(cross_entropy(self.layer(means), y), part)
        rows.step()
        return rows.table


@torch.no_grad()
def accuracy(table: Tensor, layer: nn.Module, bags: Bags, y: Tensor) -> float:
    """Measure the share of texts told right, 0…1."""
    scores = layer(functional.embedding_bag(bags[0], table.detach(), bags[1]))
    return float((scores.argmax(1) == y).double().mean())


def predicted_touched(knobs: Knobs) -> float:
    """Predict the share of the table that a batch needs, 0 to 1, from the counts of the words."""
    texts = hashed_reviews(knobs.cleaning).hashed(knobs.vocabulary)
    counts = torch.bincount(texts.ids)
    of_batch = round(knobs.batch_size * len(texts.ids) / (len(texts.begins) - 1))
    return expected_rows(counts, of_batch) / knobs.vocabulary


# ---- what else the chapter measures ----


@dataclass(frozen=True)
class Cleaned:
    """What a cleaning makes of some texts: how many words, how many different ones, in how many
    seconds of the processor; and the accuracy of a reader for each seed, in percent.
    """

    tokens: int
    vocabulary: int
    seconds: float
    accuracies: list[float]

    def gains(self, base: Cleaned) -> list[float]:
        """By how many points it is better than another one, seed by seed."""
        return [one - other for one, other in zip(self.accuracies, base.accuracies, strict=True)]


def cleaned(
    texts: Sequence[str],
    labels: Tensor,
    cleaning: Cleaning,
    *,
    seeds: int = 5,
    training: int,
    epochs: int = 5,
) -> Cleaned:
    """Clean these texts, and train a reader on ``training`` of them for each seed, which draws the
    texts and the weights; the others test it.

    epochs: enough for all cleanings. Few texts make few updates, and before it has learned what it
    can, a reader of longer texts is behind for that reason alone.
    """
    seconds = 0.0

    def one_by_one() -> Iterator[list[str]]:  # all tokens at once would take much memory
        nonlocal seconds
        for one in texts:
            start = process_time()
            tokens = cleaning(one)
            seconds += process_time() - start
            yield tokens

    numbers: defaultdict[str, int] = defaultdict()
    numbers.default_factory = numbers.__len__  # a word not seen before gets the next number
    numbered = as_texts(one_by_one(), numbers.__getitem__)
    found = [
        reader_accuracy(numbered, labels, seed, training, epochs)
        for seed in told(some_seeds(seeds), "seed")
    ]
    return Cleaned(len(numbered.ids), len(numbers), seconds, found)


def reader_accuracy(
    texts: Texts, labels: Tensor, seed: int, training: int, epochs: int = 5, width: int = 16
) -> float:
    """Train on the mean of word vectors and return the accuracy on the other texts, in percent.

    Words seen once in the training texts, or never, are left out.
    """
    torch.manual_seed(seed)
    order = torch.randperm(len(labels))
    known = torch.bincount(texts.bags(order[:training])[0], minlength=int(texts.ids.max()) + 1) > 1
    texts = texts.only(known)
    table, layer = 0.1 * torch.randn(int(known.sum()), width), nn.Linear(width, 2)
    rows, adam = RowAdam(table, 0.02), torch.optim.Adam(layer.parameters(), 0.02, fused=True)
    for _ in range(epochs):
        for places in order[:training][torch.randperm(training)].split(128):
            row_update(rows, layer, adam, texts.bags(places), labels[places])
    return 100 * accuracy(table, layer, texts.bags(order[training:]), labels[order[training:]])


def judged(gains: Sequence[float]) -> str:
    """What gains in points say, a gain for each seed: at least three, all of one sign, and a point
    or more on average; or nothing.
    """
    if len(gains) < 3:
        return "not told apart"
    if max(gains) < 0 and fmean(gains) <= -1:
        return "worse"
    return "better" if min(gains) > 0 and fmean(gains) >= 1 else "not told apart"


def sorted_out(found: Mapping[str, Cleaned]) -> dict[str, list[str]]:
    """What is judged of each cleaning, against "none" → the cleanings it is judged of."""
    names: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
    for name, one in found.items():
        if name != "none":
            names[judged(one.gains(found["none"]))].append(name)
    return names


def rows_moved(update: str, updates: int, vocabulary: int = 1500) -> list[Tensor]:
    """By how much each row of the table moved, in each of the first updates [vocabulary]."""
    torch.manual_seed(0)
    knobs = Knobs(vocabulary=vocabulary, update=update, batch_size=4)
    texts, labels = hashed_reviews("none").hashed(vocabulary), all_reviews()[1]
    table, layer, moved = 0.1 * torch.randn(vocabulary, WIDTH), nn.Linear(WIDTH, 2), []
    training = Training(knobs, table, layer)
    for places in islice(shuffled(0, len(labels), knobs.batch_size, 0), updates):
        before = table.clone()
        training.update(texts.bags(places), labels[places])
        moved.append((table - before).norm(dim=1))
    return moved


# Praise and blame that differ by a negation alone.
ENGLISH_PAIRS = [
    ("This film is good.", "This film is not good."),
    ("I would watch it again.", "I would never watch it again."),
    ("The story is convincing.", "The story is not convincing."),
    ("There is hope for this director.", "There is no hope for this director."),
    ("The jokes are funny.", "The jokes aren't funny."),
    ("I liked the ending.", "I didn't like the ending."),
]
CHINESE_PAIRS = [
    ("这部电影好看。", "这部电影不好看。"),
    ("我会再看一次。", "我不会再看一次。"),
    ("故事有意思。", "故事没有意思。"),
    ("演员的表演令人满意。", "演员的表演不令人满意。"),
    ("结局很合理！", "结局很不合理！"),
    ("我推荐大家去看。", "我不推荐大家去看。"),
]


def told_apart(pairs: Sequence[tuple[str, str]], cleaning: Cleaning) -> int:
    """How many of the pairs a reader that does not see the order of words can tell apart."""
    return sum(Counter(cleaning(one)) != Counter(cleaning(other)) for one, other in pairs)


def accuracy_after(knobs: Knobs, updates: int = 201) -> float:
    """Train for so many updates and return the test accuracy, in percent; fewer for a quick look.

    updates: one more than a multiple of 20, for the last one measures.
    """
    looks = max(1, round(effort() * (updates - 1) / EVALUATE_EVERY))
    with closing(run(knobs)) as steps:
        *_, last = islice(steps, looks * EVALUATE_EVERY + 1)
    return 100 * last.metrics["test_accuracy"]
