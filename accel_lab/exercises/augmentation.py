"""Exercises of chapter 04: moving every picture by its own way, splitting before augmenting, and
words that sound alike.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import torch
from torch import Tensor

from accel_lab.exercises import Case, Exercise, LessTime, Wrong
from accel_lab.exercises._data import uniform, whole

# ---- build: every picture by its own whole number of pixels ----


def shift_each_cases(rng: random.Random) -> Iterator[Case]:
    for height, width in ((5, 7), (6, 6), (4, 3)):
        n = rng.randint(4, 6)
        yield {
            "x": uniform(rng, n, rng.randint(1, 3), height, width) + 0.5,
            "right": whole(rng, 1, 3, n) * torch.tensor([1, -1]).repeat(n)[:n],
            "down": whole(rng, 1, 3, n) * torch.tensor([1, 1, -1]).repeat(n)[:n],
        }


def shift_each_large(rng: random.Random) -> Case:
    right, down = (whole(rng, -3, 4, 4096) for _ in range(2))
    return {"x": uniform(rng, 4096, 1, 8, 8), "right": right, "down": down}


def shift_each_drive(answer, case):
    shifted = answer(case["x"], case["right"], case["down"])
    return {"shifted": shifted, "x afterwards": case["x"]}


def shift_each(x: Tensor, right: Tensor, down: Tensor) -> Tensor:
    height, width = x.shape[2:]
    rows = torch.arange(height) - down[:, None]
    columns = torch.arange(width) - right[:, None]
    row_inside = ((rows >= 0) & (rows < height))[:, None, :, None]
    column_inside = ((columns >= 0) & (columns < width))[:, None, None, :]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    each = torch.arange(len(x))[:, None, None]
    taken = x.movedim(1, -1)[each, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
    return taken * (row_inside & column_inside)


def _rolled(x: Tensor, right: Tensor, down: Tensor) -> Tensor:
    moves = zip(x, right.tolist(), down.tolist(), strict=True)
    return torch.stack([picture.roll((d, r), (1, 2)) for picture, r, d in moves])


def _one_by_one(x, right, down):
    import torch

    moved, (height, width) = torch.zeros_like(x), x.shape[2:]
    for i, (r, d) in enumerate(zip(right.tolist(), down.tolist(), strict=True)):
        comes_from = x[i, :, max(-d, 0) : height - max(d, 0), max(-r, 0) : width - max(r, 0)]
        moved[i, :, max(d, 0) : height - max(-d, 0), max(r, 0) : width - max(-r, 0)] = comes_from
    return moved


ONE_BY_ONE = Wrong(
    _one_by_one,
    "The pictures are right, but too many small operations are made: each costs about the same, "
    "however small its picture is. Give every picture row and column numbers of its own, and fetch "
    "all pixels with one index.",
)

SHIFT_EACH = Exercise(
    name="shift_each",
    points=4,
    task="""Write `shift_each(x, right, down)`: `x` is `[n, channels, height, width]`, `right` and
`down` are integer tensors `[n]`, which may be negative. Return the pictures, each moved by **its
own** whole number of pixels, black (0) where nothing came in. No interpolation: pixels are copied.
Leave `x` as it is. **Target:** on 4,096 pictures of 8 × 8, at most a third of the time that a loop
over the pictures takes.""",
    cases=shift_each_cases,
    drive=shift_each_drive,
    reference=shift_each,
    reasoning="""A picture that moved right by r has at column c what was at column c − r. So for
each picture there is one list of rows and one of columns to take from, and indexing with both
takes all pictures in one call. Indices outside the picture are clamped, only so that indexing is
legal; what they brought in is then multiplied by 0.""",
    wrong=(
        Wrong(
            _rolled,
            "What left on one side came back on the other: roll() goes round. What comes in must "
            "be black.",
        ),
        Wrong.changed(
            shift_each,
            " * (row_inside & column_inside)",
            "",
            "The pixels at the edge were smeared into what came in: clamp() repeats them. What "
            "comes in must be black.",
        ),
        Wrong(
            lambda x, right, down: shift_each(x, right[:1].expand(len(x)), down[:1].expand(len(x))),
            "All pictures moved like the first one. Each has its own right and down.",
        ),
        Wrong(
            lambda x, right, down: shift_each(x, -right, -down),
            "The wrong way: moving right by 2 means that column j shows what was in column j − 2.",
        ),
        Wrong(
            lambda x, right, down: shift_each(x, down, right),
            "Right and down were exchanged. The last dimension is the width: right moves along it.",
        ),
        Wrong(
            lambda x, right, down: x.copy_(shift_each(x, right, down)),
            "The pictures are right, but x was overwritten: the next epoch would move what has "
            "been moved already.",
        ),
        ONE_BY_ONE,
    ),
    target=LessTime(shift_each_large, 1 / 3, ONE_BY_ONE),
)


# ---- diagnose: augment, then split? ----


def enlarged_cases(rng: random.Random) -> Iterator[Case]:
    for _ in range(3):
        n = rng.randint(8, 12)
        yield {
            "x": uniform(rng, n, 1, 3, 3),
            "y": whole(rng, 0, 5, n),
            "tests": rng.randint(2, 4),
            "copies": rng.randint(2, 3),
        }


def enlarged_drive(answer, case):
    def change(pictures, seed):
        """Stands for any random transform: another one for each seed."""
        return pictures * (1 + seed) + pictures.flip(-1)

    train_x, train_y, test_x, test_y = answer(
        case["x"], case["y"], case["tests"], case["copies"], change
    )
    return {"train_x": train_x, "train_y": train_y, "test_x": test_x, "test_y": test_y}


def enlarged(x, y, tests, copies, change) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    train_x, train_y, test_x, test_y = x[tests:], y[tests:], x[:tests], y[:tests]
    train_x = torch.cat([train_x, *(change(train_x, seed) for seed in range(copies))])
    train_y = train_y.repeat(copies + 1)
    return train_x, train_y, test_x, test_y


def _as_found(x, y, tests, copies, change) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = torch.cat([x, *(change(x, seed) for seed in range(copies))])
    y = y.repeat(copies + 1)
    return x[tests:], y[tests:], x[:tests], y[:tests]


def _changed_again(x, y, tests, copies, change) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    train_x, train_y = x[tests:], y[tests:]
    for seed in range(copies):
        train_x = torch.cat([train_x, change(train_x, seed)])
        train_y = train_y.repeat(2)
    return train_x, train_y, x[:tests], y[:tests]


ENLARGED = Exercise(
    name="enlarged",
    points=3,
    task="""A colleague reports 99.9 % on the test set, and half of that in the field: every test
picture had changed copies of itself in the training set. Write `enlarged(x, y, tests, copies,
change)`: the first `tests` samples are for testing, as they are; the others are for training.
Return `(train_x, train_y, test_x, test_y)`, where training holds the originals and then `copies`
changed versions of all of them, `change(pictures, seed)` with seed 0, 1, …, in this order, and
their labels.""",
    cases=enlarged_cases,
    drive=enlarged_drive,
    reference=enlarged,
    reasoning="""Split first: then no changed copy of a test picture can get into training. After
that the training pictures are followed by one whole changed set for each seed, so their labels are
repeated as a whole as well, `repeat` and not `repeat_interleave`. The test pictures stay as they
are, because they stand for what the model will meet.""",
    wrong=(
        Wrong(
            _as_found,
            "This is the colleague's version. Follow one test picture through it: where else do "
            "changed copies of it end up?",
            given=True,
        ),
        Wrong(
            _changed_again,
            "Each round changes what the rounds before have made, so the set doubles every time. "
            "Give change() the originals alone.",
        ),
        Wrong.changed(
            enlarged,
            "x[tests:], y[tests:], x[:tests], y[:tests]",
            "x[:-tests], y[:-tests], x[-tests:], y[-tests:]",
            "You test on the last samples, after a split that is right otherwise. The first "
            "`tests` samples are for testing.",
        ),
        Wrong.changed(
            enlarged,
            "    return train_x, train_y, test_x, test_y",
            "    test_x = torch.cat([test_x, *(change(test_x, seed) for seed in range(copies))])\n"
            "    return train_x, train_y, test_x, test_y.repeat(copies + 1)",
            "The test pictures were augmented as well. The test asks about pictures as they come.",
        ),
        Wrong.changed(
            enlarged,
            "torch.cat([train_x, *(change(train_x, seed) for seed in range(copies))])\n"
            "    train_y = train_y.repeat(copies + 1)",
            "torch.cat([change(train_x, seed) for seed in range(copies)])\n"
            "    train_y = train_y.repeat(copies)",
            "The originals are missing from the training set. They come first, the changed copies "
            "after them.",
        ),
        Wrong.changed(
            enlarged,
            "change(train_x, seed) for",
            "change(train_x, 0) for",
            "All copies are the same. Give change() another seed each time: 0, 1, …",
        ),
        Wrong.changed(
            enlarged,
            "range(copies)",
            "range(1, copies + 1)",
            "Your seeds count from 1. The first copy has seed 0.",
        ),
        Wrong.changed(
            enlarged,
            "train_y.repeat(copies + 1)",
            "train_y.repeat_interleave(copies + 1)",
            "The labels do not belong to the pictures: the copies come one whole set after the "
            "other. repeat(), not repeat_interleave().",
        ),
    ),
)


# ---- build: words that sound alike ----

HOMOPHONES = {
    "their": "there",
    "there": "their",
    "know": "no",
    "no": "know",
    "see": "sea",
    "son": "sun",
    "to": "too",
    "right": "write",
    "not": "knot",
}


def misheard_cases(rng: random.Random) -> Iterator[Case]:
    first = ["Their reasons", "There, a person", "See", "TO whom", "Right", "No reason", "NOT see"]
    middle = ["and the son", "to see it", "was their story", "I know to", "is right there"]
    last = ["is not right.", "— no prison!", "🙂 their son?", "not to see", "know no unknown."]
    texts = [" ".join(rng.choice(part) for part in (first, middle, last)) for _ in range(6)]
    for text in (
        *texts,
        "Their son is not right: no unknown reason to see THERE.",
        "Not to see their son2? NO! No person is right_here.",
    ):
        yield {"text": text, "table": HOMOPHONES, "keep": ["not", "no"]}


def misheard_drive(answer, case):
    return answer(case["text"], case["table"], set(case["keep"]))


def misheard(text: str, table: dict[str, str], keep: set[str]) -> str:
    def one(match: re.Match) -> str:
        word = match.group()
        other = table.get(word.lower())
        if other is None or word.lower() in keep or other in keep:
            return word
        if word.isupper() and len(word) > 1:
            return other.upper()
        return other.capitalize() if word[0].isupper() else other

    return re.sub(r"[A-Za-z]+", one, text)


def _inside_words(text: str, table: dict[str, str], keep: set[str]) -> str:
    for word, other in table.items():
        if word not in keep and other not in keep:
            text = text.replace(word, other)
    return text


def _split_by_spaces(text: str, table: dict[str, str], keep: set[str]) -> str:
    return " ".join(
        misheard(word, table, keep) if word.isalpha() else word for word in text.split(" ")
    )


MISHEARD = Exercise(
    name="misheard",
    points=3,
    task="""Write `misheard(text, table, keep)`: replace every word that `table` (lower case →
homophone) knows, unless it or its homophone is in `keep`, the set of words that reverse the meaning
of a sentence: such a word is neither replaced, in whatever case, nor brought in. A word is a run of
the letters A to Z, large or small. Its case is kept: `their`, `Their` and `THEIR` become `there`,
`There` and `THERE`. Everything else, to the last space and emoji, stays as it is.""",
    cases=misheard_cases,
    drive=misheard_drive,
    reference=misheard,
    reasoning="""A regular expression finds each run of letters, so nothing inside a word is
touched, and what lies between words is never looked at. Every decision is made in lower case, the
form that the table and `keep` have. A word stays where it, or what would take its place, reverses
the meaning. At the end the case of the old word is given to the new one.""",
    wrong=(
        Wrong.changed(
            misheard,
            "[A-Za-z]+",
            r"\w+",
            r"\w takes digits and underscores as well. A word is a run of letters: "
            "`son2` becomes `sun2`.",
        ),
        Wrong(
            _inside_words,
            'Parts of words were replaced: there is a "son" in "person". And what was replaced may '
            "be replaced again.",
        ),
        Wrong.changed(
            misheard,
            " or word.lower() in keep or other in keep",
            "",
            'A word to be kept was replaced. Without its "not" a sentence says the opposite, and '
            "its label is wrong.",
        ),
        Wrong.changed(
            misheard,
            " or other in keep",
            "",
            'A word came in that reverses the meaning: "I know" is not "I no". Look at what would '
            "take the place of a word, too.",
        ),
        Wrong.changed(
            misheard,
            "word.lower() in keep",
            "word in keep",
            'A capitalized word to be kept was replaced: `keep` holds "not", and the text says '
            '"Not". Compare in lower case.',
        ),
        Wrong.changed(
            misheard,
            "        if word.isupper() and len(word) > 1:\n"
            "            return other.upper()\n"
            "        return other.capitalize() if word[0].isupper() else other",
            "        return other",
            "The case was lost: a word at the start of a sentence stays capitalized, a shouted one "
            "stays shouted.",
        ),
        Wrong.changed(
            misheard,
            "        if word.isupper() and len(word) > 1:\n            return other.upper()\n",
            "",
            "A word in capitals came back with one capital only: `THEIR` becomes `THERE`.",
        ),
        Wrong(
            _split_by_spaces,
            "Words beside punctuation were passed over. Look for runs of letters, not for what "
            "lies between spaces.",
        ),
    ),
)
