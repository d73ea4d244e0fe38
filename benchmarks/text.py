"""An update of the batch's rows against PyTorch's optimizers; looking up against multiplying; and
cutting texts into words against scikit-learn and jieba.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from accel_lab import text
from accel_lab.experiments.text import CHINESE_PAIRS, Knobs, Training, all_reviews
from accel_lab.workbench.device import threads
from accel_lab.workbench.measure.comparison import compare

PAIRS = 15
WIDTH = 64
SHAPES = [(2000, 64, 20), (8000, 64, 20), (30_000, 64, 20), (100_000, 64, 20)]
SHAPES += [(30_000, 8, 20), (30_000, 64, 100), (30_000, 64, 470), (30_000, 256, 470)]


def zipf(vocabulary: int, texts: int, length: int) -> tuple[text.Bags, Tensor]:
    """Texts of words that occur as 1/rank, which is nearly how words of a language do."""
    generator = torch.Generator().manual_seed(0)
    shares = 1 / torch.arange(1, vocabulary + 1)
    ids = torch.multinomial(shares, texts * length, True, generator=generator)
    y = torch.randint(2, (texts,), generator=generator)
    return (ids, torch.arange(texts) * length), y


def training(update: str, vocabulary: int) -> Training:
    torch.manual_seed(0)
    table, layer = torch.randn(vocabulary, WIDTH), nn.Linear(WIDTH, 2)
    knobs = Knobs(update=update, learning_rate=1e-3)
    return Training(knobs, table, layer)


def prove() -> None:
    """Ours is SparseAdam after three updates; on words that are all there it is dense Adam."""
    bags, y = zipf(500, 64, 20)
    ways = {name: training(name, 500) for name in ("rows", "SparseAdam")}
    for _ in range(3):
        for way in ways.values():
            way.update(bags, y)
    ours, theirs = (way.table.detach() for way in ways.values())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def cases() -> Iterator[str]:
    with threads(1):
        prove()
        yield from updates()
        yield from lookups()
        yield from cutting()


def updates() -> Iterator[str]:
    for vocabulary, texts, length in SHAPES:
        bags, y = zipf(vocabulary, texts, length)
        touched = len(bags[0].unique()) / vocabulary
        ours = training("rows", vocabulary)
        case = f"text update, {vocabulary:,} rows, {texts} × {length} words, {touched:.1%} touched"
        for peer in ("dense Adam", "fused Adam", "SparseAdam", "no table"):
            theirs = training(peer, vocabulary)
            ratio = compare(_updating(ours, bags, y), _updating(theirs, bags, y), pairs=PAIRS)
            yield ratio.line(case, peer)


def _updating(one: Training, bags: text.Bags, y: Tensor) -> Callable[[], object]:
    return lambda: one.update(bags, y)


def lookups() -> Iterator[str]:
    for vocabulary in (1000, 5000, 20_000):
        (ids, _), _ = zipf(vocabulary, 64, 20)
        table = torch.randn(vocabulary, WIDTH)
        hot = one_hot(ids, vocabulary).float()
        begins = torch.arange(len(ids) + 1)
        sparse = torch.sparse_csr_tensor(begins, ids, torch.ones(len(ids)), hot.shape)
        for peer in (hot, sparse):
            assert torch.equal(peer @ table, text.lookup(ids, table))
        case = f"text lookup, {len(ids):,} words, {vocabulary:,} rows"
        peers = {"a one-hot product, made before": hot, "a sparse product, made before": sparse}
        for name, peer in peers.items():
            ratio = compare(
                lambda ids=ids, table=table: text.lookup(ids, table),
                lambda peer=peer, table=table: peer @ table,
                pairs=PAIRS,
            )
            yield (
                f"{case}: ratio {ratio.ratio:.4f} ({ratio.low:.4f}–{ratio.high:.4f} of "
                f"{len(ratio.pairs)} pairs) vs {name}"
            )


def cutting() -> Iterator[str]:
    from sklearn.feature_extraction.text import CountVectorizer

    sentences, _ = all_reviews()
    sentences = sentences[:2000]
    theirs = CountVectorizer(lowercase=False, token_pattern=text.TOKEN.pattern)
    vocabulary = theirs.fit(sentences).vocabulary_

    def counted() -> Tensor:
        ids = [vocabulary[word] for sentence in sentences for word in text.split(sentence)]
        return torch.bincount(torch.tensor(ids), minlength=len(vocabulary))

    matrix = theirs.transform(sentences)
    assert counted().tolist() == matrix.sum(0).tolist()[0]
    ratio = compare(counted, lambda: theirs.transform(sentences), pairs=PAIRS)
    yield ratio.line(f"words of {len(sentences):,} sentences as numbers", "CountVectorizer")
    import jieba

    jieba.setLogLevel(logging.ERROR)
    jieba.initialize()
    chinese = [sentence for pair in CHINESE_PAIRS for sentence in pair]
    ours = [text.cut_chinese(text.split(sentence)) for sentence in chinese]
    assert ours == [jieba.lcut(sentence, HMM=False) for sentence in chinese]
    ratio = compare(
        lambda: [text.cut_chinese(text.split(sentence)) for sentence in chinese],
        lambda: [jieba.lcut(sentence, HMM=False) for sentence in chinese],
        pairs=PAIRS,
    )
    yield ratio.line("Chinese sentences cut into words", "jieba")
