"""Exercises of chapter 08: batches of like length with the longest one first, the state after the
last word, a packed layer in a fraction of the time, and the share of filling to expect.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from math import comb

import torch
from torch.nn.functional import linear

from accel_lab.exercises import Case, Exercise, LessTime, Wrong
from accel_lab.exercises._data import normal, shuffled

# ---- build: batches of like length, the longest first ----


def longest_first_cases(rng: random.Random) -> Iterator[Case]:
    for left in (True, False, True):
        size, pool = rng.randrange(5, 8), rng.randrange(9, 12)
        number = 3 * size * pool + (left and 3 * size + rng.randrange(1, size))
        lengths = 1 + shuffled(rng, number)  # no ties: the longest sentence is one
        yield {"lengths": lengths, "size": size, "pool": pool, "seed": rng.randrange(2**31)}


def longest_first_drive(answer, case):
    """Two epochs from one generator, and the first one again from another with the same seed."""
    import torch

    generator = torch.Generator().manual_seed(case["seed"])
    arguments = case["lengths"], case["size"], case["pool"]
    epochs = [list(answer(*arguments, generator)) for _ in range(2)]
    generator = torch.Generator().manual_seed(case["seed"])
    epochs.append(list(answer(*arguments, generator)))
    return [[[int(place) for place in batch] for batch in epoch] for epoch in epochs]


def longest_first_assess(returned, case):
    first, second, again = returned
    lengths, size = case["lengths"].tolist(), case["size"]
    dealt = [place for batch in first for place in batch]
    if not set(dealt) <= set(range(len(lengths))):
        return {"only places of sentences": False}
    longest = [max((lengths[place] for place in batch), default=0) for batch in first]
    places = sum(len(batch) * most for batch, most in zip(first, longest, strict=True))
    full, rest = divmod(len(lengths), size)
    falling = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    cuts = [falling[start : start + size] for start in range(0, len(falling), size)]
    return {
        "only places of sentences": True,
        "sizes of the batches": sorted(map(len, first)),
        "wanted sizes": [rest] * (rest > 0) + [size] * full,
        "every sentence once": sorted(dealt) == list(range(len(lengths))),
        "at most a quarter is filling": sum(lengths[place] for place in dealt) >= 0.75 * places,
        "the longest batch first": bool(longest) and longest[0] == max(longest),
        "the others in a random order": longest[1:]
        not in (sorted(longest[1:]), sorted(longest[1:], reverse=True)),
        "shuffled before it is sorted": set(map(frozenset, first)) != set(map(frozenset, cuts)),
        "other batches in the next epoch": set(map(frozenset, first))
        != set(map(frozenset, second)),
        "the same seed, the same epoch": first == again,
    }


def longest_first(lengths, size, pool, generator):
    order = torch.randperm(len(lengths), generator=generator)
    batches = []
    for some in order.split(size * pool):
        batches += some[lengths[some].argsort()].split(size)
    batches = [batches[place] for place in torch.randperm(len(batches), generator=generator)]
    longest = lengths.max()
    batches.sort(key=lambda batch: longest not in lengths[batch])  # False before True
    return batches


def _sorted_globally(lengths, size, pool, generator):
    first, *others = lengths.argsort(descending=True).split(size)
    return [first, *(others[place] for place in torch.randperm(len(others), generator=generator))]


def _sorted_and_no_more(lengths, size, pool, generator):
    return list(lengths.argsort(descending=True).split(size))


def _left_over(lengths, size, pool, generator):
    return [batch for batch in longest_first(lengths, size, pool, generator) if len(batch) == size]


def _in_the_order_of_length(lengths, size, pool, generator):
    batches = longest_first(lengths, size, pool, generator)
    return sorted(batches, key=lambda batch: -int(lengths[batch].max()))


def _same_every_epoch(lengths, size, pool, generator):
    return longest_first(lengths, size, pool, torch.Generator().manual_seed(0))


LONGEST_FIRST = Exercise(
    name="longest_first",
    points=3,
    task="""A batch of the longest sentences needs the most memory. If it comes last, a training may
fail after an hour. So some libraries let it come first.

Write `longest_first(lengths, size, pool, generator)`: the batches of one epoch, as a list of index
tensors or lists of indices. `lengths` is `[N]`, int64. Shuffle the sentences, sort them within
pools of `pool` batches, and cut batches of `size`; only one batch of the epoch may have fewer. The
batch that holds the longest sentence comes first, all others in a random order. Every sentence
comes exactly once. All randomness comes from `generator` (a `torch.Generator`).""",
    cases=longest_first_cases,
    drive=longest_first_drive,
    assess=longest_first_assess,
    reference=longest_first,
    reasoning="""One permutation deals out each sentence once. Cut into pools of `size · pool`
sentences, every pool but the last is a whole number of batches, so only the last pool has a short
one. Sorting inside a pool puts neighbours in length into one batch; the permutation before makes
other pools, and so other batches, in every epoch. A second permutation shuffles the batches.
Sorting by a key that is the same for all batches but one moves that one to the front, and leaves
the others as they are, for Python's sort is stable.""",
    wrong=(
        Wrong(
            _sorted_globally,
            "All sentences are sorted, so every epoch has the same batches: a sentence always "
            "meets the same neighbours. Shuffle first, and sort within pools.",
            also=(_sorted_and_no_more,),
        ),
        Wrong(
            _left_over,
            "The short batch is left out. Its sentences are data, too, and the longest one may be "
            "among them.",
        ),
        Wrong.changed(
            longest_first,
            "order.split(size * pool)",
            "order.split(size)",
            "Your pools are one batch: sorting inside a batch moves no sentence to another one, so "
            "the filling stays. A pool is size · pool sentences.",
        ),
        Wrong.changed(
            longest_first,
            "order.split(size * pool)",
            "order.split(size * pool + 1)",
            "Pools are not a whole number of batches, so each of them ends in a short batch. A "
            "pool is size · pool sentences.",
        ),
        Wrong(
            _in_the_order_of_length,
            "The batches come in the order of length: long sentences first, short ones last. Only "
            "the longest batch has a place; shuffle the others.",
            also=(
                lambda lengths, size, pool, generator: (
                    _in_the_order_of_length(lengths, size, pool, generator)[:1]
                    + _in_the_order_of_length(lengths, size, pool, generator)[:0:-1]
                ),
            ),
        ),
        Wrong.changed(
            longest_first,
            "batches.sort(",
            "sorted(batches, ",
            "The longest batch comes somewhere in the epoch. Move it to the front.",
        ),
        Wrong.changed(
            longest_first,
            "torch.randperm(len(batches), generator=generator)",
            "torch.randperm(len(batches))",
            "Some of your draws do not come from `generator`, so the same seed gives another "
            "epoch. Take all of them from it.",
        ),
        Wrong(
            _same_every_epoch,
            "Each epoch has the same batches: you seed a generator anew in each call. Use the one "
            "that is given; it moves on.",
        ),
    ),
)


# ---- diagnose: the state after the last word ----


def last_states_cases(rng: random.Random) -> Iterator[Case]:
    for sentences in (rng.randrange(5, 8), rng.randrange(6, 9), rng.randrange(5, 9)):
        steps, turn = rng.randrange(6, 9), rng.randrange(2, sentences - 1)
        rows = sorted((rng.randrange(1, steps - 1) for _ in range(sentences - 2)), reverse=True)
        rows = [steps, steps - 1, *rows]
        # the sentences were turned round, so putting back is another way than sorting was
        order = [(row + turn) % sentences for row in range(sentences)]
        order[0], order[1], order[2] = order[1], order[2], order[0]
        lengths = torch.zeros(sentences, dtype=torch.int64)
        lengths[torch.tensor(order)] = torch.tensor(rows)
        outputs = normal(rng, steps, sentences, 3)
        yield {"outputs": outputs, "lengths": lengths, "order": torch.tensor(order)}


def last_states_drive(answer, case):
    return answer(case["outputs"], case["lengths"], case["order"])


def last_states(outputs, lengths, order):
    last = outputs[lengths[order] - 1, torch.arange(len(order))]
    states = torch.empty_like(last)
    states[order] = last
    return states


def _as_found(outputs, lengths, order):
    return outputs[-1]


def _mean_of_places(outputs, lengths, order):
    return outputs.mean(0)[order.argsort()]


LAST_STATES = Exercise(
    name="last_states",
    points=2,
    task="""This function is to return the state of each sentence after its last word, and it has
faults. Repair it, without changing what it takes and returns.

`outputs` `[T, B, H]`: the states of a packed batch, padded again. Its columns are sorted, the
longest sentence first: column *k* belongs to sentence `order[k]`. `lengths` `[B]`: of the sentences
in the order of the batch, **not** sorted. Return `[B, H]` in the order of the batch.""",
    cases=last_states_cases,
    drive=last_states_drive,
    reference=last_states,
    reasoning="""Column *k* is sentence `order[k]`, so its length is `lengths[order][k]`, and its
last word stands at that length − 1. That gives a row for each column. Row *k* belongs at place
`order[k]`: assign to `states[order]`. Reading `last[order]` would go the other way; it is right
only where two turns of the order change nothing.""",
    wrong=(
        Wrong(
            _as_found,
            "This is the function as found. It reads the last place of every column: for all but "
            "the longest sentence that is filling. And the columns are sorted; the result is not.",
            given=True,
        ),
        Wrong.changed(
            last_states,
            "lengths[order] - 1",
            "(lengths[order]).clamp(max=len(outputs) - 1)",
            "You read one place too far: a sentence of 3 words has its last one at place 2.",
        ),
        Wrong.changed(
            last_states,
            "lengths[order] - 1",
            "lengths - 1",
            "The columns are sorted and `lengths` is not: column k has the length of sentence "
            "order[k].",
        ),
        Wrong.changed(
            last_states,
            "    states[order] = last\n    return states",
            "    return last",
            "The states are right, and in the sorted order. Labels are in the order of the batch: "
            "put the rows back.",
        ),
        Wrong.changed(
            last_states,
            "    states[order] = last\n    return states",
            "    return last[order]",
            "`last[order]` sorts a second time. Row k belongs *at* place order[k]: assign to "
            "states[order], or index with order.argsort().",
        ),
        Wrong(
            _mean_of_places,
            "You average over all places, the filling among them. Take the state after the last "
            "word.",
        ),
    ),
)


# ---- target: a packed layer ----


def packed_rnn_cases(rng: random.Random) -> Iterator[Case]:
    for steps in (rng.randrange(4, 7), rng.randrange(5, 9)):
        rows = rng.randrange(4, 7)
        sizes = [rows, *sorted((rng.randrange(1, rows) for _ in range(steps - 1)), reverse=True)]
        yield {
            "x": normal(rng, sum(sizes), 3),
            "sizes": sizes,
            "w": normal(rng, 4, 3),
            "u": normal(rng, 4, 4) / 2,
            "b": normal(rng, 4),
        }


def packed_rnn_large(rng: random.Random) -> Case:
    rows, steps = 16, 400
    ends = sorted((rng.randrange(steps // 2, steps) for _ in range(rows - 1)), reverse=True)
    sizes = [sum(end > step for end in (steps, *ends)) for step in range(steps)]
    return {
        "x": normal(rng, sum(sizes), 128),
        "sizes": sizes,
        "w": normal(rng, 32, 128) / 12,
        "u": normal(rng, 32, 32) / 8,
        "b": normal(rng, 32) / 8,
    }


def packed_rnn_drive(answer, case):
    """States, and what comes back to all that was given."""
    given = [case[name].clone().requires_grad_() for name in ("x", "w", "u", "b")]
    x, w, u, b = given
    last = answer(x, list(case["sizes"]), w, u, b)
    last.square().sum().backward()
    gradients = [one.grad for one in given]
    return {"states": last.detach(), "gradients of x, w, u, b": gradients}


def packed_rnn(x, sizes, w, u, b):
    h = x.new_zeros(sizes[0], len(u))
    ended = []
    for words in linear(x, w, b).split(sizes):
        if len(words) < len(h):
            ended.append(h[len(words) :])
            h = h[: len(words)]
        h = (words + h @ u.T).tanh()
    return torch.cat([h, *reversed(ended)])


def _sliced(x, sizes, w, u, b):
    import torch

    h, ended, start = x.new_zeros(sizes[0], len(u)), [], 0
    for size in sizes:
        if size < len(h):
            ended.append(h[size:])
            h = h[:size]
        words = x[start : start + size]
        start += size
        h = (words @ w.T + b + h @ u.T).tanh()
    return torch.cat([h, *reversed(ended)])


def _read_on(x, sizes, w, u, b):
    """Sentences that have ended read zeros."""
    h = x.new_zeros(sizes[0], len(u))
    for words in linear(x, w, b).split(sizes):
        h = (torch.cat([words, words.new_zeros(len(h) - len(words), len(u))]) + h @ u.T).tanh()
    return h


SLICED = Wrong(
    _sliced,
    "Right, but not fast enough. The gradient of a slice is as large as all that was sliced, "
    "filled with zeros: a slice at every step slows backward. Multiply all words by w at once, and "
    "cut the product with one split.",
)

PACKED_RNN = Exercise(
    name="packed_rnn",
    points=3,
    task="""**Target:** forwards and backwards in at most 0.4 × the time of an answer that slices
`x[start:stop]` in each of 400 steps.

Write `packed_rnn(x, sizes, w, u, b)`, the layer h ← tanh(w·x + u·h + b) on packed sentences. `x`
`[n, I]`: first all first words, then all second words, …; `sizes`: how many sentences have a word
in each step, never rising. `w` `[H, I]`, `u` `[H, H]`, `b` `[H]`. All states are zero before the
first word. Return the state of each sentence after its last word `[B, H]`, in the order of the
first step.""",
    cases=packed_rnn_cases,
    drive=packed_rnn_drive,
    reference=packed_rnn,
    reasoning="""`w·x + b` waits for no state, so all words are multiplied in one product. `split`
cuts it into steps, and its gradient is one concatenation; the gradient of a slice is a tensor as
large as all that was sliced, so T slices write T times as much. The sentences are sorted, so those
that end before this step are the last rows of h: set them aside, the rows that end first at the
end. `reversed` puts what ended last, and so is longer, before it.""",
    wrong=(
        SLICED,
        Wrong(
            _read_on,
            "Sentences that have ended read zeros and change their state. Set the rows aside when "
            "their sentence has ended: h = h[:len(words)].",
        ),
        Wrong.changed(
            packed_rnn,
            "*reversed(ended)",
            "*ended",
            "The rows that ended first are the last ones of the batch: put `ended` together in the "
            "reversed order.",
        ),
        Wrong.changed(
            packed_rnn,
            "return torch.cat([h, *reversed(ended)])",
            "return torch.cat([*ended, h])",
            "The sentences come out as they ended, the shortest first. The longest is row 0.",
        ),
        Wrong.changed(
            packed_rnn,
            "return torch.cat([h, *reversed(ended)])",
            "return h",
            "Only the sentences that are there in the last step come out. Keep the state of each "
            "one that ends before.",
        ),
    ),
    target=LessTime(packed_rnn_large, 0.4, SLICED),
)


# ---- build: the share of filling to expect ----


def filling_to_expect_cases(rng: random.Random) -> Iterator[Case]:
    for number in (5, rng.randrange(9, 13), rng.randrange(60, 90)):
        lengths = [1 + int(rng.expovariate(0.1)) for _ in range(number - 2)]
        yield {"lengths": [40, 2, *lengths], "size": rng.randrange(3, 5)}


def filling_to_expect_drive(answer, case):
    return {"share": float(answer(list(case["lengths"]), case["size"]))}


def filling_to_expect(lengths, size):
    ordered = sorted(lengths)
    ways = [comb(below, size - 1) for below in range(len(ordered))]
    longest = sum(length * way for length, way in zip(ordered, ways, strict=True)) / sum(ways)
    return 1 - sum(lengths) / len(lengths) / longest


def _put_back(lengths, size):
    number, ordered = len(lengths), sorted(lengths)
    longest = sum(
        length * ((place + 1) ** size - place**size) / number**size
        for place, length in enumerate(ordered)
    )
    return 1 - sum(lengths) / number / longest


def _longest_of_all(lengths, size):
    return 1 - sum(lengths) / len(lengths) / max(lengths)


def _mean_of_shares(lengths, size):
    from itertools import combinations, islice

    shares = [
        1 - sum(batch) / size / max(batch) for batch in islice(combinations(lengths, size), 20_000)
    ]
    return sum(shares) / len(shares)


FILLING_TO_EXPECT = Exercise(
    name="filling_to_expect",
    points=2,
    task="""Is bucketing worth the trouble? Find out without a batch. Write
`filling_to_expect(lengths, size)`: `lengths` is a list of whole numbers, each sentence's words.
`size` sentences are drawn at random, none of them twice, and padded to the longest. Return the
share of filling to expect, exactly: 1 − E[words of a batch] / E[places of a batch].

The longest of a batch is the sentence at place *i* of the sorted ones (from 0) in
C(i, size − 1) of the C(N, size) batches: the others come from the *i* before it.""",
    cases=filling_to_expect_cases,
    drive=filling_to_expect_drive,
    reference=filling_to_expect,
    reasoning="""A batch has `size` times the mean length in words to expect, whatever its longest
is. It has `size` times its longest in places. Sentence *i* of the sorted ones is the longest if the
`size − 1` others are among the *i* before it: C(i, size − 1) batches. Weighed with these, the
lengths give E[longest], and `size` cancels. Equal lengths do no harm: which of them counts as the
longest changes nothing.""",
    wrong=(
        Wrong(
            _put_back,
            "You draw with replacement: a sentence may be in the batch twice. Drawn once, the "
            "longest of a batch is longer. Count batches with math.comb.",
        ),
        Wrong(
            _longest_of_all,
            "You pad every batch to the longest sentence of all. A batch is padded to its own "
            "longest.",
        ),
        Wrong(
            _mean_of_shares,
            "That is the mean of the batches' shares. It counts a batch with few places as much as "
            "one with many: divide the expected words by the expected places.",
        ),
        Wrong.changed(
            filling_to_expect,
            "return 1 - sum(lengths) / len(lengths) / longest",
            "return sum(lengths) / len(lengths) / longest",
            "That is the share of the words. The filling is what is missing to 1.",
        ),
        Wrong.changed(
            filling_to_expect,
            "ordered = sorted(lengths)",
            "ordered = lengths",
            "C(i, size − 1) counts the sentences that are shorter: sort the lengths first.",
        ),
        Wrong.changed(
            filling_to_expect,
            "comb(below, size - 1)",
            "comb(below, size)",
            "size − 1 others come from the shorter ones; the longest itself is the last of the "
            "batch.",
        ),
    ),
)
