"""The exercises of the chapter on augmentation."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import torch
from torch import Tensor

from accel_lab.exercises import Case, Exercise, LessTime, Wrong


def _seeded(rng: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.randrange(2**31))


# ---- every picture by its own whole number of pixels ----


def shift_cases(rng: random.Random) -> Iterator[Case]:
    for height, width in ((5, 7), (6, 6), (4, 3)):
        generator = _seeded(rng)
        n = rng.randint(4, 6)
        x = torch.rand(n, rng.randint(1, 3), height, width, generator=generator) + 0.5
        right = torch.randint(1, 3, (n,), generator=generator) * torch.tensor([1, -1]).repeat(n)[:n]
        down = (
            torch.randint(1, 3, (n,), generator=generator) * torch.tensor([1, 1, -1]).repeat(n)[:n]
        )
        yield {"x": x, "right": right, "down": down}


def shift_drive(answer, case):
    shifted = answer(case["x"], case["right"], case["down"])
    return {"shifted": shifted, "x afterwards": case["x"]}


def shift_each(x: Tensor, right: Tensor, down: Tensor) -> Tensor:
    height, width = x.shape[2:]
    rows = torch.arange(height) - down[:, None]
    columns = torch.arange(width) - right[:, None]
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & (
        (columns >= 0) & (columns < width)
    )[:, None, None, :]
    each = torch.arange(len(x))[:, None, None]
    taken = x.movedim(1, -1)[
        each, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]
    ]
    return taken.movedim(-1, 1) * inside


def _rolled(x: Tensor, right: Tensor, down: Tensor) -> Tensor:
    moves = zip(x, right.tolist(), down.tolist(), strict=True)
    return torch.stack([picture.roll((d, r), (1, 2)) for picture, r, d in moves])


def _all_like_the_first(x: Tensor, right: Tensor, down: Tensor) -> Tensor:
    return shift_each(x, right[:1].expand(len(x)), down[:1].expand(len(x)))


def _in_place(x: Tensor, right: Tensor, down: Tensor) -> Tensor:
    return x.copy_(shift_each(x, right, down))


def _one_by_one(x, right, down):
    import torch

    moved, (height, width) = torch.zeros_like(x), x.shape[2:]
    for i, (r, d) in enumerate(zip(right.tolist(), down.tolist(), strict=True)):
        comes_from = x[i, :, max(-d, 0) : height - max(d, 0), max(-r, 0) : width - max(r, 0)]
        moved[i, :, max(d, 0) : height - max(-d, 0), max(r, 0) : width - max(-r, 0)] = comes_from
    return moved


ONE_BY_ONE = Wrong(
    _one_by_one,
    "Right pictures, one after the other: a small operation costs the same however small its "
    "picture is. Give every picture row and "
    "column numbers of its own, and fetch all pixels with one index.",
)


def many_pictures(rng: random.Random) -> Case:
    generator = _seeded(rng)
    right, down = (torch.randint(-3, 4, (4096,), generator=generator) for _ in range(2))
    return {"x": torch.rand(4096, 1, 8, 8, generator=generator), "right": right, "down": down}


shift = Exercise(
    name="shift_each",
    points=4,
    task="""Write `shift_each(x, right, down)`: `x` is `[n, channels, height, width]`, `right` and
`down` are integer tensors `[n]`, which may be negative. Return the pictures, each moved by **its
own** whole number of pixels, black (0) where nothing came in. No interpolation: pixels are copied.
Leave `x` as it is. **Target:** on 4,096 pictures of 8 × 8, at most a third of the time that a loop
over the pictures takes.""",
    cases=shift_cases,
    drive=shift_drive,
    reference=shift_each,
    wrong=(
        Wrong(
            _rolled,
            "What left on one side came back on the other: roll() goes round. What comes in must "
            "be black.",
        ),
        Wrong(
            _all_like_the_first,
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
            _in_place,
            "Right pictures, but x was overwritten: the next epoch would move what has been moved "
            "already.",
        ),
        ONE_BY_ONE,
    ),
    target=LessTime(many_pictures, 1 / 3, ONE_BY_ONE),
)


# ---- augment, then split? ----


def enlarge_cases(rng: random.Random) -> Iterator[Case]:
    for _ in range(3):
        generator = _seeded(rng)
        n = rng.randint(8, 12)
        x = torch.rand(n, 1, 3, 3, generator=generator)
        yield {
            "x": x,
            "y": torch.randint(0, 5, (n,), generator=generator),
            "tests": rng.randint(2, 4),
            "copies": rng.randint(1, 3),
        }


def enlarge_drive(answer, case):
    def change(pictures, seed):
        """Stands for any random transform: another one for each seed."""
        return pictures * (1 + seed) + pictures.flip(-1)

    train_x, train_y, test_x, test_y = answer(
        case["x"], case["y"], case["tests"], case["copies"], change
    )
    return {"train_x": train_x, "train_y": train_y, "test_x": test_x, "test_y": test_y}


def enlarged(x, y, tests, copies, change) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    train_x, train_y = x[tests:], y[tests:]
    more = [change(train_x, seed) for seed in range(copies)]
    return torch.cat([train_x, *more]), train_y.repeat(copies + 1), x[:tests], y[:tests]


def _augments_first(x, y, tests, copies, change) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = torch.cat([x, *(change(x, seed) for seed in range(copies))])
    y = y.repeat(copies + 1)
    return x[tests:], y[tests:], x[:tests], y[:tests]


def _tests_too(x, y, tests, copies, change) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    train_x, train_y, test_x, test_y = enlarged(x, y, tests, copies, change)
    return (
        train_x,
        train_y,
        torch.cat([test_x, *(change(test_x, seed) for seed in range(copies))]),
        test_y.repeat(copies + 1),
    )


def _without_originals(x, y, tests, copies, change) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    train_x, train_y, test_x, test_y = enlarged(x, y, tests, copies, change)
    originals = len(x) - tests
    return train_x[originals:], train_y[originals:], test_x, test_y


def _the_same_copies(x, y, tests, copies, change) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return enlarged(x, y, tests, copies, lambda pictures, seed: change(pictures, 0))


def _labels_side_by_side(x, y, tests, copies, change) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    train_x, _, test_x, test_y = enlarged(x, y, tests, copies, change)
    return train_x, y[tests:].repeat_interleave(copies + 1), test_x, test_y


leak = Exercise(
    name="enlarged",
    points=3,
    task="""A colleague reports 99.9 % on the test set, and half of that in the field: every test
picture had changed copies of itself in the training set. Write `enlarged(x, y, tests, copies,
change)`: the first `tests` samples are for testing, as they are; the others are for training.
Return `(train_x, train_y, test_x, test_y)`, where training holds the originals and then `copies`
changed versions of all of them, `change(pictures, seed)` with seed 0, 1, …, in this order, and
their labels.""",
    cases=enlarge_cases,
    drive=enlarge_drive,
    reference=enlarged,
    wrong=(
        Wrong(
            _augments_first,
            "Augmented first, split afterwards: changed copies of test pictures are in the "
            "training set. Split first.",
        ),
        Wrong(
            _tests_too,
            "The test pictures were augmented as well. The test asks about pictures as they come.",
        ),
        Wrong(_without_originals, "The originals are missing from the training set."),
        Wrong(
            _the_same_copies,
            "All copies are the same. Give change() another seed each time: 0, 1, …",
        ),
        Wrong(
            _labels_side_by_side,
            "The labels are not those of the pictures: the copies come one whole set after the "
            "other. repeat(), not repeat_interleave().",
        ),
    ),
)


# ---- words ----

GROUPS = {
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


def homophone_cases(rng: random.Random) -> Iterator[Case]:
    first = ["Their reasons", "There, a person", "See", "TO whom", "Right"]
    middle = ["and the son", "to see it", "was their story", "I know to", "is right there"]
    last = ["is not right.", "— no prison!", "🙂 their son?", "not to see", "know no unknown."]
    for _ in range(6):
        yield {
            "text": " ".join(rng.choice(part) for part in (first, middle, last)),
            "table": GROUPS,
            "keep": ["not", "no"],
        }
    yield {
        "text": "Their son is not right: no unknown reason to see THERE.",
        "table": GROUPS,
        "keep": ["not", "no"],
    }


def homophone_drive(answer, case):
    return answer(case["text"], case["table"], set(case["keep"]))


def misheard(text: str, table: dict[str, str], keep: set[str]) -> str:
    def one(match: re.Match) -> str:
        word = match.group()
        other = table.get(word.lower())
        if other is None or word.lower() in keep:
            return word
        if word.isupper() and len(word) > 1:
            return other.upper()
        return other.capitalize() if word[0].isupper() else other

    return re.sub(r"[A-Za-z]+", one, text)


def _inside_words(text: str, table: dict[str, str], keep: set[str]) -> str:
    for word, other in table.items():
        if word not in keep:
            text = text.replace(word, other)
    return text


def _lower_case(text: str, table: dict[str, str], keep: set[str]) -> str:
    return re.sub(
        r"[A-Za-z]+",
        lambda m: (
            m.group() if m.group().lower() in keep else table.get(m.group().lower(), m.group())
        ),
        text,
    )


def _split_by_spaces(text: str, table: dict[str, str], keep: set[str]) -> str:
    return " ".join(
        misheard(word, table, keep) if word.isalpha() else word for word in text.split(" ")
    )


words = Exercise(
    name="misheard",
    points=3,
    task="""Write `misheard(text, table, keep)`: replace every word that `table` (lower case →
homophone) knows, unless it is in `keep`, the set of words that turn a sentence round. A word is a
run of the letters A to Z, large or small. Its case is kept: `their`, `Their` and `THEIR` become
`there`, `There` and `THERE`. Everything else, to the last space and emoji, stays as it is.""",
    cases=homophone_cases,
    drive=homophone_drive,
    reference=misheard,
    wrong=(
        Wrong(
            _inside_words,
            'Parts of words were replaced: there is a "son" in "person". And what was replaced may '
            "be replaced again.",
        ),
        Wrong(
            lambda text, table, keep: misheard(text, table, set()),
            'A word to be kept was replaced. Without its "not" a sentence says the opposite, and '
            "its label is wrong.",
        ),
        Wrong(
            _lower_case,
            "The case was lost: a word at the start of a sentence stays capitalized, a shouted one "
            "stays shouted.",
        ),
        Wrong(
            _split_by_spaces,
            "Words beside punctuation were passed over. Look for runs of letters, not for what "
            "lies between spaces.",
        ),
    ),
)
