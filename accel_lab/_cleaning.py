"""Cleaning for ``accel_lab.text``: from a text to its tokens, each step a function of its own.

    text → tokens → lower case → no punctuation → no stop words → lemmas

Each step takes tokens and gives tokens, so each can be switched off. Each one makes the vocabulary
smaller, by making tokens equal or by leaving some out. What differed before can not be told apart
afterwards: "US" and "us", "good!" and "good", "not bad" and "bad", "worst" and "bad".

The traps:

- Stop words are compared in lower case, or "The" stays.
- Published stop lists hold "not", "no" and "never".
- Chinese has no spaces, no capitals and no inflection. Its punctuation is not in
  ``string.punctuation``, and a step that works by the character tears words apart: 不错 (good)
  without 不 (not) is 错 (wrong).

Sources: Saif et al. 2014, "On stopwords, filtering and data sparsity for sentiment analysis of
Twitter", section 5; simplemma (lemmas); jieba (Chinese words and their counts).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from math import log

from accel_lab._wording import HAN, _words, negates
from accel_lab.workbench.data import words

Tokens = list[str]

TAG = re.compile(r"<[^<>]*>")
TOKEN = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")  # a word, apostrophes inside; or one other sign
LONGEST_LEMMA = 40  # characters; nothing longer is a word
CHINESE_STOP_WORDS = _words("""
的 了 着 是 在 和 也 都 就 又 还 很 把 被 让 我 你 他 她 它 我们 你们 他们 这 那 这部 那部 一个
一 个 而 与 及 或 但 但是 因为 所以 如果 不 没 没有 无 未 别
""")


@dataclass(frozen=True)
class Cleaning:
    """Which steps are on. Call it with a text to get its tokens.

    words: cut at words and signs, tags left out; otherwise at spaces alone. stop: the words to
    leave out. chinese: cut runs of Chinese characters into words by the dictionary.
    """

    words: bool = True
    lower: bool = False
    punctuation: bool = False
    stop: frozenset[str] = frozenset()
    lemmas: bool = False
    chinese: bool = False

    def __call__(self, text: str) -> Tokens:
        """Raises TypeError, one line, for what is not a string."""
        if not isinstance(text, str):
            kind = type(text).__name__
            raise TypeError(
                f"text: {kind} is not a string; decode bytes, and leave out what is None"
            )
        tokens = split(text) if self.words else text.split()
        tokens = cut_chinese(tokens) if self.chinese else tokens
        tokens = in_lower_case(tokens) if self.lower else tokens
        tokens = without_punctuation(tokens) if self.punctuation else tokens
        tokens = without_stop_words(tokens, self.stop) if self.stop else tokens
        return to_lemmas(tokens) if self.lemmas else tokens


def split(text: str) -> Tokens:
    """Cut a text into words and signs: "Don't stop!" → Don't · stop · !"""
    return TOKEN.findall(TAG.sub(" ", text))


def in_lower_case(tokens: Iterable[str]) -> Tokens:
    return [token.lower() for token in tokens]


def without_punctuation(tokens: Iterable[str]) -> Tokens:
    """Leave out tokens without a letter or a digit of any script, 。 and ！ as well."""
    return [token for token in tokens if any(map(str.isalnum, token))]


def without_stop_words(tokens: Iterable[str], stop: frozenset[str]) -> Tokens:
    """Leave out the words of a list that is in lower case. "The" counts as "the"."""
    return [token for token in tokens if token.lower() not in stop]


def to_lemmas(tokens: Iterable[str]) -> Tokens:
    """Replace English words by their base forms: films → film, was → be."""
    return [lemma(token) for token in tokens]


@cache
def lemma(token: str) -> str:
    """Look a token up, once for each that is different; what is not a word stays as it is."""
    from simplemma import lemmatize

    strange = len(token) > LONGEST_LEMMA or not token.isprintable() or not token
    return token if strange else lemmatize(token, lang="en")


def keeping_negations(stop: Iterable[str]) -> frozenset[str]:
    """The stop list without the words that turn a meaning round: no, not, never, 不, 没有."""
    return frozenset(word for word in stop if not negates(word))


# ---- Chinese ----


@dataclass(frozen=True)
class Lexicon:
    """Words with their counts, the logarithm of all counts together, and the longest word."""

    counts: Mapping[str, int]
    log_total: float
    longest: int

    @classmethod
    def of(cls, counts: Mapping[str, int]) -> Lexicon:
        return cls(counts, log(sum(counts.values())), max(map(len, counts)))


@cache
def lexicon() -> Lexicon:
    return Lexicon.of(words.chinese_words())


def cut_chinese(tokens: Iterable[str], known: Lexicon | None = None) -> Tokens:
    """Cut the tokens that are Chinese characters into words, and leave the others."""
    known = known or lexicon()
    pieces = (piece for token in tokens for piece in re.split(f"({HAN.pattern})", token) if piece)
    cut: Tokens = []
    for piece in pieces:
        cut += most_likely_words(piece, known) if HAN.fullmatch(piece) else [piece]
    return cut


def most_likely_words(text: str, known: Lexicon) -> Tokens:
    """Cut a run of characters so that the product of its words' shares is largest.

    best[i] holds the largest log-product for text[i:] and where its first word ends; it is found
    from the end. A character that is no word counts as seen once.
    """
    counts, best = known.counts, [(0.0, 0)] * (len(text) + 1)
    for start in reversed(range(len(text))):
        ends = range(start + 2, min(start + known.longest, len(text)) + 1)
        possible = [start + 1, *(end for end in ends if counts.get(text[start:end]))]
        best[start] = max(
            (log(counts.get(text[start:end]) or 1) - known.log_total + best[end][0], end)
            for end in possible
        )
    found, place = [], 0
    while place < len(text):
        found.append(text[place : best[place][1]])
        place = best[place][1]
    return found
