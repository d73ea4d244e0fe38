"""Pictures augmented beside kornia, and the four operations on text beside nlpaug.

nlpaug gets our tables of words. Its last release is of 2022, but no other one that can be installed
works offline: textaugment downloads word lists when it is set up.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import torch
from kornia import augmentation as kornia
from nlpaug.augmenter.word import RandomWordAug, ReservedAug
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from accel_lab._wording import STOP_WORDS, negates, split_words
from accel_lab.augmentation import (
    TEXT_OPERATIONS,
    Policy,
    affine_maps,
    augment,
    augment_texts,
    naive_augment,
    random_numbers,
    warp,
)
from accel_lab.workbench.data import words
from accel_lab.workbench.measure.comparison import compare

POLICY = Policy(flip=0.5, rotate=15, zoom=0.1, shift=0.1)
CROP = Policy(crop=4)


def cases() -> Iterator[str]:
    generator = torch.Generator().manual_seed(0)
    theirs = torch.nn.Sequential(
        kornia.RandomHorizontalFlip(p=POLICY.flip),
        kornia.RandomAffine(
            POLICY.rotate, (POLICY.shift,) * 2, (1 - POLICY.zoom, 1 + POLICY.zoom), p=1.0
        ),
    )
    for shape in ((256, 3, 32, 32), (64, 3, 224, 224)):
        x = torch.rand(shape, generator=generator)
        same_pictures(x[:64], theirs)
        same_distribution(x[:1], theirs)
        case = f"flip, rotate, zoom, shift of {'×'.join(map(str, shape))}"
        yield compare(lambda x=x: ours(x), lambda x=x: theirs(x)).line(case, "kornia")
        yield compare(lambda x=x: ours(x), lambda x=x: one_by_one(x)).line(
            case, "the same, one by one"
        )
        yield compare(lambda x=x: ours(x), lambda x=x: with_affine_grid(x)).line(
            case, "torch's affine_grid and grid_sample"
        )
        yield compare(lambda x=x: ours(x), x.clone).line(case, "a copy")
    yield from crops(torch.rand(256, 3, 32, 32, generator=generator))
    whole = [text for text, _ in words.reviews()[0] if "'" not in text]  # nlpaug splits "it's"
    yield from texts(whole[:500])


def ours(x: Tensor, policy: Policy = POLICY) -> Tensor:
    return augment(x, policy, torch.Generator().manual_seed(1), kind="photographs")


def one_by_one(x: Tensor) -> Tensor:
    return naive_augment(x, POLICY, torch.Generator().manual_seed(1), kind="photographs")


def with_affine_grid(x: Tensor) -> Tensor:
    """The two calls everyone knows, given our maps in their units: −1…1 from edge to edge."""
    draws = random_numbers(len(x), torch.Generator().manual_seed(1))
    size = torch.tensor([x.shape[3] / 2, x.shape[2] / 2])
    theta = affine_maps(POLICY, draws[:, 0] < POLICY.flip, draws, *x.shape[2:]) / size[:, None]
    theta[:, :, :2] *= size
    return grid_sample(
        x, affine_grid(theta, list(x.shape), align_corners=False), align_corners=False
    )


def same_pictures(x: Tensor, theirs: torch.nn.Sequential) -> None:
    """Given the amounts that kornia drew, we make the pictures that kornia made."""
    torch.testing.assert_close(ours(x), with_affine_grid(x), rtol=1e-3, atol=1e-3)
    expected = theirs(x)
    flip, affine = (part._params for part in theirs)  # kornia's angle counts the other way round
    flipped = flip["batch_prob"] > 0.5
    back = [
        -affine["angle"] / (2 * POLICY.rotate) + 0.5,
        (affine["scale"][:, 0] - 1) / (2 * POLICY.zoom) + 0.5,
    ]
    back += [
        affine["translations"][:, i] / (2 * POLICY.shift * x.shape[3 - i]) + 0.5 for i in (0, 1)
    ]
    draws = torch.stack([(~flipped).float(), *back], 1)
    found = warp(x, affine_maps(POLICY, flipped, draws, *x.shape[2:]))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def same_distribution(x: Tensor, theirs: torch.nn.Sequential, samples: int = 20_000) -> None:
    """Compare quartiles of angle, zoom and shift, and the share of flips, over many pictures."""
    tiny = x[:, :, :2, :2].expand(samples, -1, -1, -1)
    theirs(tiny)
    flip, affine = (part._params for part in theirs)
    drawn = random_numbers(samples, torch.Generator().manual_seed(2))
    shares = torch.tensor([0.25, 0.5, 0.75])
    pairs = [
        (flip["batch_prob"].float().mean(), (drawn[:, 0] < POLICY.flip).float().mean()),
        (affine["angle"].quantile(shares) / POLICY.rotate, (2 * drawn[:, 1] - 1).quantile(shares)),
        (
            (affine["scale"][:, 0] - 1).quantile(shares) / POLICY.zoom,
            (2 * drawn[:, 2] - 1).quantile(shares),
        ),
        (
            affine["translations"][:, 0].quantile(shares) / (2 * POLICY.shift),
            (2 * drawn[:, 3] - 1).quantile(shares),
        ),
        (
            affine["translations"][:, 1].quantile(shares) / (2 * POLICY.shift),
            (2 * drawn[:, 4] - 1).quantile(shares),
        ),
    ]
    for their_share, our_share in pairs:
        torch.testing.assert_close(our_share, their_share, rtol=0, atol=0.03)


def crops(x: Tensor) -> Iterator[str]:
    theirs = kornia.RandomCrop((32, 32), padding=4)

    def windows() -> Tensor:
        """A slice for each picture, as a data set would do it."""
        generator = torch.Generator().manual_seed(1)
        big = torch.nn.functional.pad(x, (4, 4, 4, 4))
        places = (random_numbers(len(x), generator)[:, 5:7] * 9).long().tolist()
        return torch.stack(
            [
                picture[:, down : down + 32, right : right + 32]
                for picture, (right, down) in zip(big, places, strict=True)
            ]
        )

    torch.testing.assert_close(ours(x, CROP), windows(), rtol=0, atol=0)
    assert theirs(x).shape == x.shape
    case = "crop of 256×3×32×32, 4 black pixels around"
    yield compare(lambda: ours(x, CROP), lambda: theirs(x)).line(case, "kornia")
    yield compare(lambda: ours(x, CROP), windows).line(case, "a slice for each picture")


def texts(sentences: list[str], share: float = 0.1) -> Iterator[str]:
    """Change a tenth of the words; nlpaug at least one, also when deleting. Both skip the same."""
    random.seed(0)  # nlpaug draws from the global one
    amount = {"aug_p": share, "aug_max": None}
    tables = {"synonyms": words.synonyms(), "homophones": words.english_homophones()}
    kept = {"synonyms": STOP_WORDS, "homophones": frozenset()}
    theirs = {name: ReservedAug([], **amount) for name in tables}
    for name, table in tables.items():
        # one group per word: nlpaug takes all words of a group for one another
        able = {
            word: [other for other in others if not negates(other)]
            for word, others in table.items()
            if word.isalpha() and word not in kept[name] and not negates(word)
        }
        theirs[name].reserved_tokens = [[word, *others] for word, others in able.items()]
        theirs[name].reserved_token_dict = {word: place for place, word in enumerate(able)}
    theirs |= {name: RandomWordAug(action=name, **amount) for name in ("delete", "swap")}
    for name, operation in TEXT_OPERATIONS.items():
        for changed in (
            augment_texts(sentences, operation, seed=1, share=share),
            theirs[name].augment(sentences),
        ):
            same_kind_of_change(name, sentences, changed, tables.get(name, {}))
        yield compare(
            lambda operation=operation: augment_texts(sentences, operation, seed=1, share=share),
            lambda peer=theirs[name]: peer.augment(sentences),
        ).line(f"{name} in {len(sentences)} sentences", "nlpaug")


def same_kind_of_change(name: str, before: list[str], after: list[str], table: words.Table) -> None:
    """Assert that words were replaced from the table, or deleted, or reordered, in many texts."""
    changed = 0
    for old, new in zip(before, after, strict=True):
        was, now = (
            Counter(word.lower() for word in split_words(text)[1::2]) for text in (old, new)
        )
        gone, come = was - now, now - was
        changed += old != new
        if name in ("delete", "swap"):
            assert not come, (name, old, new)
            assert name == "delete" or not gone, (name, old, new)
        else:
            offered = {
                part.lower()
                for word in was
                for other in table.get(word, ())
                for part in split_words(other)[1::2]
            }
            assert set(come) <= offered, (name, old, new)
    assert changed > len(before) / 4, (name, changed)
