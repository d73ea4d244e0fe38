"""Recurrent networks over sentences of unequal length: padding, packing, and bucketing.

A recurrent network reads one word after another, and each state waits for the one before:

    h_t = cell(W_in · x_t + b_in, h_{t-1})        h_T, after the last word, stands for the sentence

A batch of sentences makes large products again, but sentences end at different words. Three ways:

- Padding fills each one up to the longest of its batch, and computes the filling as well.
- Packing computes no filling. Sorted by length, the sentences that still go on are the first rows:
  at each step the batch loses those that have ended.
- Bucketing puts sentences of like length into one batch, so that there is little to fill.

What a packed step needs is small, so what surrounds it counts. The products with W_in wait for no
state: all words are multiplied at once, before the first step. And the words are cut into steps by
one split, whose gradient is one concatenation. A slice for each step has a gradient as large as the
whole batch, filled with zeros: T steps write T · n numbers, which is quadratic in the length.

The traps:

- The state after the last *place* of a padded sentence has read the filling. Take the last word's.
- Packed sentences are sorted; labels are not. Put the states back into the order of the batch.
- Batches of like length have to be shuffled, or all short sentences come before the long ones.

Sources: Appleyard, Kocisky, Blunsom 2016, "Optimizing Performance of Recurrent Neural Networks on
GPUs", arXiv:1604.01946, section 3 (all input products at once); Cho et al. 2014, arXiv:1406.1078
(the GRU, in PyTorch's variant); Hochreiter and Schmidhuber 1997, and Gers et al. 2000 (the LSTM
with a forget gate); Khomenko et al. 2016, arXiv:1708.05604 (bucketing).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from accel_lab._lengths import check_batches, check_lengths, check_sizes

States = tuple[Tensor, ...]  # h [rows, H], and for an LSTM c [rows, H]
Weights = Sequence[Tensor]  # W_in [gH, I], W_state [gH, H], b_in [gH], b_state [gH]
Cell = Callable[[Tensor, States, Tensor, Tensor], States]


# ---- one step ----


def gru_cell(words: Tensor, states: States, weight: Tensor, bias: Tensor) -> States:
    """Read a word in each row: words [rows, 3H], already times W_in; states (h,) → (h,)."""
    (h,) = states
    (r, z, n), (hr, hz, hn) = words.chunk(3, 1), linear(h, weight, bias).chunk(3, 1)
    reset, keep = (r + hr).sigmoid(), (z + hz).sigmoid()
    return (torch.lerp((n + reset * hn).tanh(), h, keep),)


def lstm_cell(words: Tensor, states: States, weight: Tensor, bias: Tensor) -> States:
    """Read a word in each row: words [rows, 4H], already times W_in; states (h, c) → (h, c)."""
    h, c = states
    i, f, new, o = (words + linear(h, weight, bias)).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * new.tanh()
    return o.sigmoid() * c.tanh(), c


# ---- padded: every place is computed ----


def pad(ids: Tensor, lengths: Tensor, filling: int = 0) -> Tensor:
    """Make sentences a rectangle [T, B], filled up to the longest.

    ids: the words of all sentences, one after another [n]. lengths: words of each [B].
    Raises ValueError, one line, for an empty sentence, and where the lengths do not add up to n.
    """
    check_lengths(lengths, len(ids))
    here = torch.arange(int(lengths.max()), device=ids.device)[None] < lengths[:, None]
    return ids.new_full(here.shape, filling).masked_scatter(here, ids).T


def unrolled(x: Tensor, lengths: Tensor, weights: Weights, cell: Cell, states: int = 1) -> Tensor:
    """The state after the last word of each sentence [B, H], cell by cell: the naive form.

    x: padded vectors of words [T, B, I]. lengths: [B]. states: 1, and 2 for an LSTM.
    Raises ValueError, one line, for an empty sentence, for one longer than T, and for other than B
    lengths.
    """
    check_lengths(lengths, most=len(x), sentences=x.shape[1])
    w_in, w_state, b_in, b_state = weights
    held = (x.new_zeros(x.shape[1], w_state.shape[1]),) * states
    seen = []
    for words in x:
        held = cell(linear(words, w_in, b_in), held, w_state, b_state)
        seen.append(held[0])
    return torch.stack(seen)[lengths - 1, torch.arange(len(lengths), device=x.device)]


# ---- packed: no filling is computed ----


class Packed(NamedTuple):
    """Sentences, step by step: first words, then second words, …

    ids: [n] · sizes: how many sentences have a word in each step, never rising [T] · order: which
    sentence each row is, the longest first [B].
    """

    ids: Tensor
    sizes: list[int]
    order: Tensor

    def in_order(self, rows: Tensor) -> Tensor:
        """Put a row for each packed sentence [B, …] back into the order of the batch."""
        return torch.zeros_like(rows).index_copy(0, self.order, rows)


def pack(ids: Tensor, lengths: Tensor) -> Packed:
    """Sort sentences by length, the longest first, and their words by step.

    ids, lengths, Raises: as ``pad``.
    """
    check_lengths(lengths, len(ids))
    order = lengths.argsort(descending=True, stable=True)
    begins = (lengths.cumsum(0) - lengths)[order]
    steps = torch.arange(int(lengths.max()), device=ids.device)[:, None]
    here = steps < lengths[order]  # [T, B]
    return Packed(ids[(begins + steps)[here]], here.sum(1).tolist(), order)


def packed_last(
    x: Tensor, sizes: Sequence[int], weights: Weights, cell: Cell, states: int = 1
) -> Tensor:
    """The state after the last word of each sentence [B, H], the longest first.

    x: vectors of the packed words [n, I]. sizes: sentences that have a word in each step [T].
    states: 1, and 2 for an LSTM. Raises ValueError, one line, for sizes that rise, or do not add up
    to n.
    """
    check_sizes(sizes, len(x))
    w_in, w_state, b_in, b_state = weights
    held = (x.new_zeros(sizes[0], w_state.shape[1]),) * states
    ended = []
    for words in linear(x, w_in, b_in).split(sizes):  # one product, one split
        if len(words) < len(held[0]):  # some have ended: they are the last rows
            ended.append(held[0][len(words) :])
            held = tuple(state[: len(words)] for state in held)
        held = cell(words, held, w_state, b_state)
    return torch.cat([held[0], *reversed(ended)])


# ---- batches ----


def bucketed(lengths: Tensor, size: int, pool: int, generator: torch.Generator) -> list[Tensor]:
    """Deal out all sentences once, in batches of like length that come in a random order.

    Sentences are shuffled, ``pool`` batches at a time sorted by length, and the batches shuffled.
    lengths: words of each sentence [N]. size: sentences of a batch. pool: 1 is plain shuffling.
    Returns the places of each batch [size]; one of them may be shorter.
    Raises ValueError, one line, for a size or a pool below 1, and for an empty sentence.
    """
    check_lengths(lengths)
    check_batches(size, pool)
    shuffled = torch.randperm(len(lengths), generator=generator)
    batches: list[Tensor] = []
    for some in shuffled.split(size * pool):
        batches += some[lengths[some].argsort(stable=True)].split(size)
    return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]


def by_length(lengths: Tensor, size: int) -> list[Tensor]:
    """Sort all sentences, never shuffle: the naive form. The least filling, and short first."""
    check_lengths(lengths)
    check_batches(size)
    return list(lengths.argsort(stable=True).split(size))


def padding_share(lengths: Tensor, batches: Iterable[Tensor]) -> float:
    """Compute what share of the places is filling, 0…1, if a batch is filled up to its longest.

    lengths: of all sentences [n]. batches: numbers of the sentences of each.
    Raises ValueError when there is no batch, or an empty one.
    """
    check_lengths(lengths)
    some = [lengths[batch] for batch in batches]
    if not some or not all(map(len, some)):
        raise ValueError("batches: there is none, or an empty one, so it has no share of filling")
    places = sum(len(one) * int(one.max()) for one in some)
    return 1 - sum(int(one.sum()) for one in some) / places


def expected_padding(lengths: Tensor, size: int, pool: int = 1) -> float:
    """Predict ``padding_share`` of ``bucketed`` from the lengths alone, as if each were drawn.

    Of n = size · pool sentences, F(x)^k (1 − F(x))^(n−k) C(n, k) is the chance that k have at most
    x words. The batches' longest are the size-th, the 2·size-th, … of them.
    Raises ValueError, one line, for a size or a pool below 1, and for an empty sentence.
    """
    check_lengths(lengths)
    check_batches(size, pool)
    n = min(size * pool, max(size, len(lengths) - len(lengths) % size))
    at_most = torch.bincount(lengths).double().cumsum(0)[:, None] / len(lengths)  # F(x)
    k = torch.arange(n + 1, dtype=torch.float64)
    ways = torch.lgamma(k[-1] + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    chance = (ways + torch.xlogy(k, at_most) + torch.xlogy(n - k, 1 - at_most)).exp()
    fewer = chance.cumsum(1)[:, torch.arange(size, n + 1, size) - 1]  # P(a batch's longest > x)
    return 1 - float(lengths.double().mean() / fewer.sum(0).mean())
