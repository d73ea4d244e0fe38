"""Text for ``accel_lab.augmentation``: the same sentence reworded, misheard, or shortened.

Four operations, each from a seed: a share of the words is replaced by synonyms, or by homophones
(what a tired typist or a speech recognizer writes), or deleted, or swapped. Everything that is not
a word (spaces, punctuation, emoji, any other script, even NUL) stays: the pieces of an unchanged
text join to the same text.

Stop words ("the", "but") get no synonym. A word that carries a negation ("not", "mustn’t", 不满) is
neither replaced, deleted nor moved, and none is brought in (know → no), unless ``unsafe``, because
the label would change.

Source: Wei and Zou 2019, "EDA: Easy Data Augmentation", arXiv:1901.11196, section 2 (synonyms,
swap, deletion).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Literal

from accel_lab.workbench.data import words
from accel_lab.workbench.knobs import no_such

Language = Literal["english", "chinese"]

APOSTROPHES = "'’ʼ＇‘`´"  # as they are typed
WORD = re.compile(rf"[^\W\d_]+(?:[{APOSTROPHES}][^\W\d_]+)*")  # of any script, apostrophes inside
HAN = re.compile(r"[\u4e00-\u9fff]+")
NEGATION = re.compile(
    "no|not|non|nope|nor|none|nothing|neither|nobody|nowhere|never|without|cannot"
    rf"|hardly|barely|scarcely|rarely|seldom|ne[{APOSTROPHES}]er"
    rf"|.*n[{APOSTROPHES}]t.*"  # each contraction; and as it is typed in haste:
    "|(ai|are|ca|could|did|do|does|had|has|have|is|might|must|need|sha|should|was|were|wo|would)?nt"
    "|.*[不没沒无無非未别別莫勿毋弗甭否].*"  # 非常, 特别 are kept along: no harm is done
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


STOP_WORDS = _words("""
a an and are as at be been but by can could did do does for from had has have he her him his how i
if in into is it its just me my of on only or our she so some such than that the their them then
there these they this those to too up us very was we were what when where which who why will with
would yet you your
""")


@lru_cache(2**14)  # texts repeat their words
def negates(word: str) -> bool:
    """Whether a word carries a negation, in English or Chinese, in whatever case."""
    return NEGATION.fullmatch(word.lower()) is not None


def synonyms(text: str, seed: int, share: float = 0.1, *, unsafe: bool = False) -> str:
    """Replace a share of the words of an English text, at least one, by WordNet synonyms.

    share: of the words, 0…1. unsafe: replace negations, too, and by them. Case is kept.
    """
    return _replace(text, words.synonyms(), seed, share, unsafe, "english", passed_over=STOP_WORDS)


def homophones(
    text: str,
    seed: int,
    share: float = 0.1,
    language: Language = "english",
    *,
    unsafe: bool = False,
) -> str:
    """Replace a share of the words, at least one, by words that sound the same.

    Chinese: the same syllables, tones aside. Other arguments as in ``synonyms``.
    Raises ValueError for an unknown language.
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
    """Delete each word with probability ``share``, and the space before it; keep at least one."""
    rng, pieces = _start(text, seed, share, language)
    places = range(1, len(pieces), 2)
    gone = [
        place for place in places if rng.random() < share and (unsafe or not negates(pieces[place]))
    ]
    if len(gone) == len(places) and gone:
        gone.remove(rng.choice(gone))
    for place in gone:
        pieces[place] = ""
        pieces[place - 1] = pieces[place - 1].removesuffix(" ")
    return "".join(pieces)


def swap(
    text: str,
    seed: int,
    share: float = 0.1,
    language: Language = "english",
    *,
    unsafe: bool = False,
) -> str:
    """Exchange two words, ``share`` · words times, at least once where two may move.

    A negation and the word after it stay where they are: in "not bad but good" only "but" and
    "good" move.
    """
    rng, pieces = _start(text, seed, share, language)
    places = range(1, len(pieces), 2)
    fixed = set() if unsafe else {p + i for p in places if negates(pieces[p]) for i in (0, 2)}
    able = [place for place in places if place not in fixed]
    for _ in range(_how_many(share, len(places)) if len(able) > 1 else 0):
        one, other = rng.sample(able, 2)
        pieces[one], pieces[other] = pieces[other], pieces[one]
    return "".join(pieces)


TEXT_OPERATIONS: dict[str, Callable[..., str]] = {
    "synonyms": synonyms,
    "homophones": homophones,
    "delete": delete,
    "swap": swap,
}


def augment_texts(
    texts: list[str], operation: Callable[..., str], seed: int, **options
) -> list[str]:
    """Apply an operation to each text, by a seed that depends on ``seed`` and its place alone."""
    return [
        operation(text, seed * 1_000_003 + place, **options) for place, text in enumerate(texts)
    ]


def split_words(text: str, language: Language = "english") -> list[str]:
    """Split a text into pieces that join to it: words at odd places, what is between at even ones.

    Chinese has no spaces: from the left, two characters are one word if it is known, else one is.
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
            size = 2 if place + 2 <= run.end() and pair in known else 1
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
    others = {
        place: table[word]
        for place in places
        if (word := pieces[place].lower()) in table and word not in passed_over
    }
    if not unsafe:
        others = {
            place: [word for word in those if not negates(word)]
            for place, those in others.items()
            if not negates(pieces[place])
        }
    able = [place for place, those in others.items() if those]
    for place in rng.sample(able, min(len(able), _how_many(share, len(places)))):
        pieces[place] = _in_case_of(pieces[place], rng.choice(others[place]))
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
    return random.Random(seed), split_words(text, language)


def _how_many(share: float, of: int) -> int:
    return max(1, round(share * of)) if share and of else 0


def _in_case_of(old: str, new: str) -> str:
    if old.isupper() and len(old) > 1:
        return new.upper()
    return new[:1].upper() + new[1:] if old[:1].isupper() else new
