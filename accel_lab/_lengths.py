"""What recurrent networks refuse about lengths, in one line each, for ``accel_lab.recurrent``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def check_lengths(
    lengths: Tensor, words: int | None = None, most: int | None = None, sentences: int | None = None
) -> None:
    """Raise ValueError unless these are lengths of sentences: so many, which add up to so many
    words, and of which none is longer than ``most``.
    """
    if not isinstance(lengths, Tensor):
        raise ValueError(
            f"lengths: {type(lengths).__name__} should be a tensor, a length for each sentence"
        )
    counts = not lengths.is_floating_point() and lengths.dtype != torch.bool
    if not counts or lengths.dim() != 1 or not len(lengths):
        found = f"{lengths.dtype} {list(lengths.shape)}"
        raise ValueError(f"lengths: {found} should be one row of int64, a length for each sentence")
    if sentences is not None and len(lengths) != sentences:
        raise ValueError(f"lengths: {len(lengths)} of them, and {sentences} sentences are there")
    if (low := int(lengths.min())) < 1:
        place = int((lengths == low).nonzero()[0])
        raise ValueError(
            f"lengths: sentence {place} has {low} words, so it has no last one; leave it out, or "
            "give it a word that stands for nothing"
        )
    if most is not None and (high := int(lengths.max())) > most:
        place = int((lengths == high).nonzero()[0])
        raise ValueError(f"lengths: sentence {place} has {high} words, and {most} places are there")
    if words is not None and (total := int(lengths.sum())) != words:
        raise ValueError(f"lengths: they add up to {total} words, and {words} are there")


def check_sizes(sizes: Sequence[int], words: int) -> None:
    """Raise ValueError unless these are the sentences in each step of a packed batch."""
    if not len(sizes):
        raise ValueError("sizes: there is no step, so no sentence has a last word")
    for step, (one, after) in enumerate(pairwise(sizes), start=1):
        if after > one:
            raise ValueError(
                f"sizes: {one} rise to {after} at step {step}; sort the sentences, the longest "
                "first, as pack does"
            )
    if sizes[-1] < 1 or sum(sizes) != words:
        raise ValueError(f"sizes: {sum(sizes)} words in {len(sizes)} steps, and x has {words}")


def check_batches(size: int, pool: int = 1) -> None:
    """Raise ValueError for batches of no sentence, and pools of no batch."""
    if min(size, pool) < 1:
        raise ValueError(f"size {size}, pool {pool}: both should be 1 or more")
