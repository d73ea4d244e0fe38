"""Text augmentation: the same sentence said otherwise, misheard, or cut short.

Four operations, each from a seed: a share of the words is replaced by synonyms, or by homophones
(what a tired typist or a speech recognizer writes), or deleted, or swapped. What is not a word
(spaces, punctuation, emoji, any other script, even NUL) stays as it is: joined together again, an
unchanged text is the same text. A text without a known word comes back unchanged.

Words that say nothing by themselves ("the", "but") get no synonym. Class-safe: a word that turns a
sentence round ("not", "never", 不) is neither replaced nor deleted unless ``unsafe``.

Source: Wei and Zou 2019, "EDA: Easy Data Augmentation", arXiv:1901.11196, section 2 (synonyms,
swap, deletion).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from accel_lab.workbench.data import words
from accel_lab.workbench.knobs import no_such

Language = Literal["english", "chinese"]

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")  # letters of any script, with apostrophes inside
HAN = re.compile(r"[\u4e00-\u9fff]+")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


TURNS_ROUND = _words("""
not no never nor none nothing neither nobody without hardly barely cannot can't don't doesn't didn't isn't wasn't won't couldn't
wouldn't shouldn't aren't weren't ain't 不 没 没有 不是 无 非 未 别 莫 勿
""")
SAYS_NOTHING = _words("""
a an and are as at be been but by can could did do does for from had has have he her him his how i if in into is it its just me my of
on only or our she so some such than that the their them then there these they this those to too up us very was we were what when
where which who why will with would yet you your
""")


def synonyms(text: str, seed: int, share: float = 0.1, *, unsafe: bool = False) -> str:
    """Replace ``share`` of the words of an English text, at least one, by a WordNet synonym; the
    case is kept.
    """
    return _replace(
        text, words.synonyms(), seed, share, unsafe, "english", passed_over=SAYS_NOTHING
    )


def homophones(
    text: str,
    seed: int,
    share: float = 0.1,
    language: Language = "english",
    *,
    unsafe: bool = False,
) -> str:
    """Replace ``share`` of the words, at least one, by a word that sounds the same. Chinese: same
    syllables, tones aside.
    """
    tables = {"english": words.english_homophones, "chinese": words.chinese_homophones}
    if language not in tables:
        raise ValueError(f"language: {no_such('language', language, tables)}")
    return _replace(text, tables[language](), seed, share, unsafe, language)


def delete(
    text: str,
    seed: int,
    share: float = 0.1,
    language: Language = "english",
    *,
    unsafe: bool = False,
) -> str:
    """Leave out each word with probability ``share``, and the space before it; one word at least is
    kept.
    """
    rng, pieces = _start(text, seed, share, language)
    places = range(1, len(pieces), 2)
    gone = [
        place
        for place in places
        if rng.random() < share and (unsafe or pieces[place].lower() not in TURNS_ROUND)
    ]
    if len(gone) == len(places) and gone:
        gone.remove(rng.choice(gone))
    for place in gone:
        pieces[place] = ""
        pieces[place - 1] = pieces[place - 1].removesuffix(" ")
    return "".join(pieces)


def swap(text: str, seed: int, share: float = 0.1, language: Language = "english") -> str:
    """Exchange two words, ``share`` · words times, at least once where there are two."""
    rng, pieces = _start(text, seed, share, language)
    places = range(1, len(pieces), 2)
    for _ in range(_how_many(share, len(places)) if len(places) > 1 else 0):
        one, other = rng.sample(places, 2)
        pieces[one], pieces[other] = pieces[other], pieces[one]
    return "".join(pieces)


OPERATIONS: dict[str, Callable[..., str]] = {
    "synonyms": synonyms,
    "homophones": homophones,
    "delete": delete,
    "swap": swap,
}


def many(texts: list[str], operation: Callable[..., str], seed: int, **options) -> list[str]:
    """Each text by a seed of its own, which depends on ``seed`` and on its place alone."""
    return [
        operation(text, seed * 1_000_003 + place, **options) for place, text in enumerate(texts)
    ]


def split(text: str, language: Language = "english") -> list[str]:
    """Pieces whose join is the text: what lies between words at even places, words at odd ones.

    Chinese has no spaces: from the left, two characters that are a known word together are one,
    else one alone.
    """
    spans = (
        _chinese_spans(text)
        if language == "chinese"
        else (match.span() for match in WORD.finditer(text))
    )
    pieces, end = [], 0
    for start, stop in spans:
        pieces += [text[end:start], text[start:stop]]
        end = stop
    return [*pieces, text[end:]]


def _chinese_spans(text: str) -> Iterator[tuple[int, int]]:
    known = words.chinese_homophones()
    for run in HAN.finditer(text):
        place = run.start()
        while place < run.end():
            pair = text[place : place + 2]
            size = 2 if place + 2 <= run.end() and (pair in known or pair in TURNS_ROUND) else 1
            yield place, place + size
            place += size


def _replace(
    text: str,
    table: words.Table,
    seed: int,
    share: float,
    unsafe: bool,
    language: Language,
    passed_over: frozenset[str] = frozenset(),
) -> str:
    rng, pieces = _start(text, seed, share, language)
    places = range(1, len(pieces), 2)
    kept = passed_over if unsafe else passed_over | TURNS_ROUND
    able = [
        place for place in places if (word := pieces[place].lower()) in table and word not in kept
    ]
    for place in rng.sample(able, min(len(able), _how_many(share, len(places)))):
        pieces[place] = _in_case_of(pieces[place], rng.choice(table[pieces[place].lower()]))
    return "".join(pieces)


def _start(
    text: str, seed: int, share: float, language: Language
) -> tuple[random.Random, list[str]]:
    if not isinstance(text, str):
        raise TypeError(
            f"text: a str is needed, not {type(text).__name__}; bytes must be decoded first"
        )
    if not 0 <= share <= 1:
        raise ValueError(f"share: {share} is not a share of the words, 0…1")
    return random.Random(seed), split(text, language)


def _how_many(share: float, of: int) -> int:
    return max(1, round(share * of)) if share and of else 0


def _in_case_of(old: str, new: str) -> str:
    if old.isupper() and len(old) > 1:
        return new.upper()
    return new[:1].upper() + new[1:] if old[:1].isupper() else new


class Reader:
    """Tells praise from blame: the mean of a sentence's word vectors, and one linear layer. It
    cannot see the order of words.

    Knows the words that occur twice in what it was trained on. texts: sentences · labels: 0 or 1
    for each.
    """

    def __init__(self, texts: list[str], labels: list[int], *, epochs: int = 4, seed: int = 0):
        torch.manual_seed(seed)
        counts = Counter(word for text in texts for word in self._words(text))
        self.known = {
            word: place
            for place, word in enumerate((word for word, n in counts.items() if n > 1), start=1)
        }
        self.vectors = nn.EmbeddingBag(
            len(self.known) + 1, 32, padding_idx=0
        )  # 0: a word it never met, which counts for nothing
        nn.init.normal_(self.vectors.weight, std=0.1)
        self.layer = nn.Linear(32, 2)
        optimizer = torch.optim.Adam(
            [*self.vectors.parameters(), *self.layer.parameters()], lr=5e-3
        )
        bags, truth = [self._bag(text) for text in texts], torch.tensor(labels)
        for _ in range(epochs):
            for batch in torch.randperm(len(texts)).split(128):
                optimizer.zero_grad()
                cross_entropy(
                    self._scores([bags[place] for place in batch.tolist()]), truth[batch]
                ).backward()
                optimizer.step()

    @torch.no_grad()
    def accuracy(self, texts: list[str], labels: list[int]) -> float:
        """The share it gets right, 0…1."""
        found = self._scores([self._bag(text) for text in texts]).argmax(1)
        return float((found == torch.tensor(labels)).double().mean())

    @staticmethod
    def _words(text: str) -> list[str]:
        return [word.lower() for word in split(text)[1::2]]

    def _bag(self, text: str) -> Tensor:
        return torch.tensor([self.known.get(word, 0) for word in self._words(text)] or [0])

    def _scores(self, bags: list[Tensor]) -> Tensor:
        """[n, 2]; the bags end to end, and where each begins."""
        begins = torch.tensor([0, *(len(bag) for bag in bags[:-1])]).cumsum(0)
        return self.layer(self.vectors(torch.cat(bags), begins))
