"""A recurrent reader of film reviews: padded, packed by PyTorch or by us, at random or bucketed."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import cache
from itertools import islice
from statistics import fmean
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from accel_lab.experiments.text import CLEANINGS, Texts, all_reviews, as_texts, hash_of
from accel_lab.recurrent import (
    bucketed,
    by_length,
    expected_padding,
    gru_cell,
    lstm_cell,
    pack,
    packed_last,
    pad,
    padding_share,
    unrolled,
)
from accel_lab.workbench.device import pick_device
from accel_lab.workbench.effort import effort
from accel_lab.workbench.knobs import TrainingKnobs, dial
from accel_lab.workbench.loop import train
from accel_lab.workbench.measure.comparison import reading
from accel_lab.workbench.measure.load import under_watch
from accel_lab.workbench.measure.proof import snapshot
from accel_lab.workbench.step import Step

VOCABULARY, WIDTH = 8000, 64  # rows of the embedding, and numbers of a word's vector
TESTS = 1000  # sentences
CELLS = {"GRU": gru_cell, "LSTM": lstm_cell}
STATES = {"GRU": 1, "LSTM": 2}


class Knobs(TrainingKnobs):
    form: Literal["padded", "packed", "packed, ours", "cell by cell"] = dial(
        "padded", description="how a batch is computed"
    )
    pool: int = dial(1, ge=1, le=64, log=True, description="batches sorted together; 1: random")
    cell: Literal["GRU", "LSTM"] = dial("LSTM", description="kind of recurrent layer")
    batch_size: int = dial(64, ge=1, le=512, log=True, description="sentences per update")
    mistake: Literal["none", "last place", "off by one", "order lost", "never shuffled"] = dial(
        "none", description="made on purpose"
    )
    hidden: int = dial(64, ge=1, le=512, panel=False, description="numbers of a state")
    every: int = dial(20, ge=1, le=10_000, panel=False, description="updates between two tests")
    twin: bool = dial(False, panel=False, description="compare the states with the right ones")
    learning_rate: float = dial(
        0.01, ge=1e-5, le=1, log=True, panel=False, description="step size of Adam"
    )


# ---- the reader, and the ways to compute a batch ----


class Reader(nn.Module):
    """Vectors of words, a recurrent layer, and a linear layer on the last state."""

    def __init__(self, cell: str, hidden: int, vocabulary: int = VOCABULARY):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, WIDTH, padding_idx=0)
        self.layer = getattr(nn, cell)(WIDTH, hidden)
        self.out = nn.Linear(hidden, 2)
        self.how = {"cell": CELLS[cell], "states": STATES[cell]}

    @property
    def weights(self) -> tuple[Tensor, ...]:
        return tuple(self.layer.parameters())


Form = Callable[[Reader, Tensor, Tensor], Tensor]  # ids [n], lengths [B] → last states [B, H]


def padded(reader: Reader, ids: Tensor, lengths: Tensor) -> Tensor:
    seen, _ = reader.layer(reader.embedding(pad(ids, lengths)))
    return seen[lengths - 1, torch.arange(len(lengths), device=ids.device)]


def packed_by_torch(reader: Reader, ids: Tensor, lengths: Tensor) -> Tensor:
    x = reader.embedding(pad(ids, lengths))
    packed = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
    _, last = reader.layer(packed)
    return (last[0] if isinstance(last, tuple) else last)[0]


def packed_by_ours(reader: Reader, ids: Tensor, lengths: Tensor) -> Tensor:
    packed = pack(ids, lengths)
    x = reader.embedding(packed.ids)
    return packed.in_order(packed_last(x, packed.sizes, reader.weights, **reader.how))


def cell_by_cell(reader: Reader, ids: Tensor, lengths: Tensor) -> Tensor:
    x = reader.embedding(pad(ids, lengths))
    return unrolled(x, lengths, reader.weights, **reader.how)


FORMS: dict[str, Form] = {
    "padded": padded,
    "packed": packed_by_torch,
    "packed, ours": packed_by_ours,
    "cell by cell": cell_by_cell,
}


# ---- the famous mistakes ----


def last_place(reader: Reader, ids: Tensor, lengths: Tensor) -> Tensor:
    """Take the state after the last place: short sentences have read the filling as well."""
    seen, _ = reader.layer(reader.embedding(pad(ids, lengths)))
    return seen[-1]


def off_by_one(reader: Reader, ids: Tensor, lengths: Tensor) -> Tensor:
    """Take the state at ``lengths``: one place too far, where there is one."""
    seen, _ = reader.layer(reader.embedding(pad(ids, lengths)))
    return seen[lengths.clamp(max=len(seen) - 1), torch.arange(len(lengths), device=ids.device)]


def order_lost(reader: Reader, ids: Tensor, lengths: Tensor) -> Tensor:
    """Return the states as they were packed, the longest first: labels of other sentences."""
    packed = pack(ids, lengths)
    x = reader.embedding(packed.ids)
    return packed_last(x, packed.sizes, reader.weights, **reader.how)


MISTAKES: dict[str, Form] = {
    "last place": last_place,
    "off by one": off_by_one,
    "order lost": order_lost,
}


# ---- the data ----


class Reviews(NamedTuple):
    """Sentences as numbers, their lengths [N], and their labels [N]."""

    texts: Texts
    lengths: Tensor
    labels: Tensor


@cache
def numbered_reviews() -> Reviews:
    """All sentences; words are numbers from 1 on, and 0 is the filling. None is empty."""
    tokens = map(CLEANINGS["none"], all_reviews()[0])
    texts = as_texts(tokens, lambda word: 1 + hash_of(word) % (VOCABULARY - 1))
    return Reviews(texts, texts.begins.diff(), all_reviews()[1])


def epoch(knobs: Knobs, lengths: Tensor, generator: torch.Generator) -> list[Tensor]:
    """The places of each batch of one epoch."""
    if knobs.mistake == "never shuffled":
        return by_length(lengths, knobs.batch_size)
    return bucketed(lengths, knobs.batch_size, knobs.pool, generator)


def fetched(places: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The words of these sentences [n], their lengths [B] and labels [B]."""
    texts, lengths, labels = numbered_reviews()
    ids, _ = texts.bags(places)
    return ids.to(device), lengths[places].to(device), labels[places].to(device)


# ---- the experiment ----


def run(knobs: Knobs) -> Generator[Step, None, None]:
    """Train a reader on sentences of film reviews until it is closed. The clock includes making
    the batch: finding it, and padding or packing it.

    Metrics of each Step:
    loss: mean over the batch.
    words_per_second: of the batch; the filling is not counted. Left out where a clock with coarse
    ticks has seen no time pass.
    ns_per_word: nanoseconds of this update for each word.
    padding: share of the places that is filling where the batch is padded, 0 to 1.
    words_per_sentence: of the batch, on average.
    state_error (with ``twin``): ‖h − h_right‖ / ‖h_right‖ of the states that the reader judges by.

    Every 20th, or as ``every`` says, also has test_accuracy, 0 to 1.
    """
    torch.manual_seed(knobs.seed)
    device = pick_device(knobs.device)
    reader = Reader(knobs.cell, knobs.hidden).to(device)
    update = updater(reader, knobs)
    lengths = numbered_reviews().lengths[TESTS:]
    batch = fetched(torch.arange(TESTS), device)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal batch
        generator = torch.Generator().manual_seed(knobs.seed)
        while True:
            for places in epoch(knobs, lengths, generator):
                batch = fetched(TESTS + places, device)
                yield batch[1:]

    for step in train(lambda *_: {"loss": update(*batch)}, batches(), count_wait=True):
        words = len(batch[0])
        found = {
            "ns_per_word": 1e9 * step.seconds / words,
            "words_per_sentence": words / step.samples,
            "padding": padding_share(batch[1], [torch.arange(step.samples)]),
        }
        if step.seconds:
            found["words_per_second"] = words / step.seconds
        if knobs.twin:
            found["state_error"] = state_error(reader, knobs, *batch[:2])
        if (step.index + 1) % knobs.every == 0:
            found["test_accuracy"] = accuracy(reader, knobs)
        yield replace(step, metrics={**step.metrics, **found})


def updater(reader: Reader, knobs: Knobs) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """An update with words [n], lengths [B] and labels [B], which returns the mean loss []."""
    form = MISTAKES.get(knobs.mistake, FORMS[knobs.form])
    adam = torch.optim.Adam(reader.parameters(), knobs.learning_rate, fused=True)

    def update(ids: Tensor, lengths: Tensor, y: Tensor) -> Tensor:
        adam.zero_grad()
        loss = cross_entropy(reader.out(form(reader, ids, lengths)), y)
        loss.backward()
        adam.step()
        return loss.detach()

    return update


def weights_along(form: str, cell: str, updates: int = 10) -> Iterator[dict[str, Tensor]]:
    """Train a small reader in float64, and yield its weights after each update."""
    torch.manual_seed(0)
    reader = Reader(cell, 8, vocabulary=VOCABULARY).double()
    update = updater(reader, Knobs(form=form, cell=cell))
    for places_of in torch.arange(32 * updates).split(32):
        update(*fetched(places_of, torch.device("cpu")))
        yield snapshot(reader)


@torch.no_grad()
def accuracy(reader: Reader, knobs: Knobs) -> float:
    """Measure the share of test sentences told right, 0…1, in batches as they come."""
    form = MISTAKES.get(knobs.mistake, padded)
    right = 0
    for places in torch.arange(TESTS).split(100):
        ids, lengths, y = fetched(places, reader.out.weight.device)
        right += int((reader.out(form(reader, ids, lengths)).argmax(1) == y).sum())
    return right / TESTS


@torch.no_grad()
def state_error(reader: Reader, knobs: Knobs, ids: Tensor, lengths: Tensor) -> float:
    """How far the states are from those after each sentence's last word, relative to them."""
    form = MISTAKES.get(knobs.mistake, FORMS[knobs.form])
    right = padded(reader, ids, lengths)
    return float((form(reader, ids, lengths) - right).norm() / right.norm())


def predicted_padding(knobs: Knobs) -> float:
    """Predict the share of filling, 0 to 1, from how long the sentences are."""
    return expected_padding(numbered_reviews().lengths[TESTS:], knobs.batch_size, knobs.pool)


def accuracy_after(knobs: Knobs, updates: int = 200) -> float:
    """Train for so many updates, and return the test accuracy, in percent."""
    with closing(run(knobs.turned(every=updates))) as steps:
        *_, last = islice(steps, updates)
    return 100 * last.metrics["test_accuracy"]


# ---- what the ways take ----

Way = TypeVar("Way", bound=Hashable)


def in_turn(programs: Mapping[Way, Callable[[], object]], rounds: int) -> dict[Way, list[float]]:
    """Seconds of each program in each round, in a random order, after one round to warm up."""
    taken: dict[Way, list[float]] = {way: [] for way in programs}
    with under_watch():
        for _ in range(1 + max(2, round(rounds * effort()))):
            for way in random.sample(list(programs), len(programs)):
                taken[way].append(reading(programs[way]))
    return {way: seconds[1:] for way, seconds in taken.items()}


def part_of_an_epoch(knobs: Knobs, batches: int = 24) -> Callable[[], None]:
    """A program that trains on so many batches, made anew each time from the same sentences."""
    torch.manual_seed(knobs.seed)
    device = pick_device(knobs.device)
    reader = Reader(knobs.cell, knobs.hidden).to(device)
    update, generator = updater(reader, knobs), torch.Generator().manual_seed(knobs.seed)
    lengths = numbered_reviews().lengths[TESTS : TESTS + batches * knobs.batch_size]

    def program() -> None:
        for places in epoch(knobs, lengths, generator):
            update(*fetched(TESTS + places, device))

    return program


def sentences_of(longest: int, number: int = 32) -> tuple[Tensor, Tensor]:
    """Words without a meaning, and lengths from a quarter of the longest up to it."""
    lengths = torch.linspace(longest / 4, longest, number).round().long()
    return torch.ones(int(lengths.sum()), dtype=torch.int64), lengths


def one_pass(form: str, cell: str, hidden: int, lengths: Tensor) -> Callable[[], None]:
    """A program: forward and backward of one batch, without an optimizer."""
    torch.manual_seed(0)
    reader = Reader(cell, hidden, vocabulary=2)
    ids = torch.ones(int(lengths.sum()), dtype=torch.int64)

    def program() -> None:
        reader.zero_grad()
        FORMS[form](reader, ids, lengths).sum().backward()

    return program


class FilledBySlices(TorchDispatchMode):
    """Counts the bytes that gradients of slices write: each is as large as what was sliced."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.slice_backward.default:
            self.bytes += out.nbytes
        return out


def filled_by_slices(program: Callable[[], None]) -> int:
    with FilledBySlices() as filled:
        program()
    return filled.bytes


GATES = {"GRU": 3, "LSTM": 4}


def filled_bytes(cell: str, hidden: int, lengths: Tensor) -> int:
    """Predict that: T slices, each with a gradient of all n words' g · H numbers of 4 bytes."""
    return int(lengths.max()) * int(lengths.sum()) * GATES[cell] * hidden * 4


def zeros_alone(cell: str, hidden: int, lengths: Tensor) -> Callable[[], None]:
    """A program that does what the slices' gradients do, and nothing else: make so many zeros in
    each step, and add them up.
    """
    shape = int(lengths.sum()), GATES[cell] * hidden

    def program() -> None:
        total = torch.zeros(shape)
        for _ in range(int(lengths.max())):
            total = total + torch.zeros(shape)

    return program


def shares_of(pools: Iterable[int], size: int, seed: int = 0) -> dict[int, float]:
    """Pool → the share of filling in one epoch of bucketed batches, in percent."""
    lengths, generator = numbered_reviews().lengths[TESTS:], torch.Generator().manual_seed(seed)
    return {
        pool: 100 * padding_share(lengths, bucketed(lengths, size, pool, generator))
        for pool in pools
    }


def places(lengths: Tensor, step: int, packed: bool) -> Tensor:
    """What has become of each place [B, T] after so many steps: 0 nothing, 1 a word to come, 2 a
    word read, 3 filling computed.
    """
    lengths = lengths.sort(descending=True).values if packed else lengths
    words = torch.arange(int(lengths.max())) < lengths[:, None]
    done = torch.arange(words.shape[1]) < step
    return words.long() + (words & done) + 3 * (~words & done & (not packed))


# ---- how far back a state remembers ----

LAYERS = {"RNN": 0.0, "LSTM": 0.0, "LSTM, gate +2": 2.0, "GRU": 0.0}


def layer_of(name: str, inputs: int, hidden: int) -> nn.RNNBase:
    """A new recurrent layer; "gate +2" adds 2 to the bias of its forget gate."""
    layer = getattr(nn, name.split(",")[0])(inputs, hidden)
    if LAYERS[name]:
        with torch.no_grad():
            layer.bias_ih_l0[hidden : 2 * hidden] += LAYERS[name]
    return layer


def first_word_share(name: str, length: int, seed: int = 0) -> float:
    """How large the last state's gradient is at the first word, over that at the last word."""
    torch.manual_seed(seed)
    x = torch.randn(length, 32, 32, requires_grad=True)
    layer_of(name, 32, 64)(x)[0][-1].sum().backward()
    norms = x.grad.norm(dim=2).mean(1)
    return float(norms[0] / norms[-1])


def recalled(name: str, length: int, seed: int, updates: int = 120) -> float:
    """Train a layer to tell the first of so many symbols at the last one, and return the share of
    right answers in the last 20 updates, in percent. Guessing gives 50.
    """
    torch.manual_seed(seed)
    table, layer, out = nn.Embedding(8, 16), layer_of(name, 16, 32), nn.Linear(32, 2)
    model = nn.ModuleList([table, layer, out])
    adam = torch.optim.Adam(model.parameters(), 5e-3, fused=True)
    right = []
    for _ in range(updates):
        symbols = torch.randint(2, 8, (length, 32))
        symbols[0] = y = torch.randint(2, (32,))
        scores = out(layer(table(symbols))[0][-1])
        adam.zero_grad()
        cross_entropy(scores, y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        right.append(float((scores.argmax(1) == y).double().mean()))
    return 100 * fmean(right[-20:])
