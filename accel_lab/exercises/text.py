"""Exercises of chapter 05: weighted means without padding, an update with three faults, rows of
Adagrad in little time, and a cleaning that loses more than it says.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

import torch

from accel_lab.exercises import Case, Exercise, LessTime, Wrong, changed
from accel_lab.exercises._data import normal, uniform, whole

ROWS, WIDTH = 12, 3
MANY_ROWS, WIDE, UPDATES = 40_000, 32, 12

# ---- build: weighted means ----


def bag_means_cases(rng: random.Random) -> Iterator[Case]:
    for _ in range(3):
        lengths = [rng.randrange(2, 5), 0, rng.randrange(5, 8), 1, 0, rng.randrange(2, 5)]
        ids = whole(rng, 0, ROWS, sum(lengths))
        begins = torch.tensor([0, *lengths[:-1]]).cumsum(0)
        weights = uniform(rng, len(ids)) + 0.25
        weights[begins[3]] /= 2  # the weight of a text of one word is below 1
        table = normal(rng, ROWS, WIDTH)
        yield {"ids": ids, "begins": begins, "table": table, "weights": weights}


def bag_means_drive(answer, case):
    return {"means": answer(case["ids"], case["begins"], case["table"], case["weights"])}


def bag_means(ids, begins, table, weights):
    lengths = torch.cat([begins, begins.new_tensor([len(ids)])]).diff()
    text = torch.arange(len(begins)).repeat_interleave(lengths)
    rows = table[ids] * weights[:, None]
    sums = table.new_zeros(len(begins), table.shape[1]).index_add(0, text, rows)
    totals = weights.new_zeros(len(begins)).index_add(0, text, weights)
    return sums / totals.where(totals > 0, torch.ones_like(totals))[:, None]


def _without_the_last(ids, begins, table, weights):
    means = []
    for begin, end in pairwise(begins.tolist()):
        share = weights[begin:end] / weights[begin:end].sum().clamp(min=1e-9)
        means.append((table[ids[begin:end]] * share[:, None]).sum(0))
    return torch.stack(means)


def _the_last_is_empty(ids, begins, table, weights):
    found = bag_means(ids, begins, table, weights)
    found[-1] = 0
    return found


DIVISOR = "totals.where(totals > 0, torch.ones_like(totals))"

BAG_MEANS = Exercise(
    name="bag_means",
    points=3,
    task="""Rare words say more than frequent ones, so a text is often represented by a **weighted**
mean of its words' vectors.

Write `bag_means(ids, begins, table, weights)`: `ids` `[n]` holds the words of all texts, one text
after another, and `begins` `[texts]` says where each text begins. `table` is `[V, d]`, and
`weights` `[n]`, above zero, has one weight for each place. Return `[texts, d]`: for each text the
sum of weight × vector, divided by the sum of its weights. A text without words gets zeros. Nothing
is padded.""",
    cases=bag_means_cases,
    drive=bag_means_drive,
    reference=bag_means,
    reasoning="""`begins` with `n` behind it, and the differences of neighbours: these are the
lengths. Repeating each text's number by its length says for every word which text it belongs to.
Then `index_add` adds the weighted rows of a text up, and its weights as well. Where the weights sum
to 0 the text is empty: dividing by 1 there leaves the zeros.""",
    wrong=(
        Wrong.changed(
            bag_means,
            DIVISOR,
            "lengths.clamp(min=1)",
            "You divide by the number of words. A weighted mean is divided by the sum of the "
            "weights.",
        ),
        Wrong.changed(
            bag_means,
            DIVISOR,
            "lengths.max().expand(len(begins))",
            "You divide each text by the length of the longest one, as if all were padded to it: "
            "short texts come out too small.",
        ),
        Wrong.changed(
            bag_means,
            DIVISOR,
            "lengths",
            "You divide by the number of words, and a text without words gives 0/0. Divide by the "
            "sum of the weights, and let an empty text get zeros.",
        ),
        Wrong.changed(
            bag_means, DIVISOR, "totals", "A text without words gives 0/0. It has to get zeros."
        ),
        Wrong.changed(
            bag_means,
            DIVISOR,
            "totals.clamp(min=1)",
            "A text whose weights sum to less than 1 is divided by 1. Only a sum of 0 may be "
            "replaced.",
        ),
        Wrong.changed(
            bag_means,
            f"sums / {DIVISOR}[:, None]",
            "sums",
            "These are sums. For a mean, divide each by the sum of its weights.",
        ),
        Wrong.changed(
            bag_means,
            " * weights[:, None]",
            "",
            "The vectors are added up without their weights, and only the divisor knows them.",
        ),
        Wrong(
            lambda ids, begins, table, weights: bag_means(
                ids, begins, table, torch.ones_like(weights)
            ),
            "This is the plain mean: the weights are not used.",
        ),
        Wrong(
            _without_the_last,
            "The last text is lost: it has a beginning, and its end is where `ids` ends.",
            also=(_the_last_is_empty,),
        ),
    ),
)


# ---- diagnose: an update with three faults ----


def apply_rows_cases(rng: random.Random) -> Iterator[Case]:
    for _ in range(3):
        twice, thrice, *others = rng.sample(range(ROWS), 5)
        ids = [twice, thrice, *others, twice, thrice, thrice]
        rng.shuffle(ids)
        yield {
            "table": normal(rng, ROWS, WIDTH),
            "ids": torch.tensor(ids),
            "gradients": normal(rng, len(ids), WIDTH),
            "lr": rng.uniform(0.2, 0.5),
            "decay": rng.uniform(0.2, 0.5),
        }


def apply_rows_drive(answer, case):
    table = case["table"]
    moved = answer(table, case["ids"], case["gradients"], case["lr"], case["decay"])
    return {"returned": moved, "the table that was handed over": table.clone()}


def apply_rows(table, ids, gradients, lr, decay):
    present, places = torch.unique(ids, return_inverse=True)
    sums = gradients.new_zeros(len(present), gradients.shape[1])
    sums = sums.index_add(0, places, gradients)
    rows = table[present]
    return table.index_copy(0, present, rows - lr * (sums + decay * rows))


def _apply_as_found(table, ids, gradients, lr, decay):
    table *= 1 - lr * decay
    table[ids] -= lr * gradients
    return table


def _in_place(table, ids, gradients, lr, decay):
    return table.copy_(apply_rows(table, ids, gradients, lr, decay))


def _decay_of_each_occurrence(table, ids, gradients, lr, decay):
    return table.index_add(0, ids, gradients + decay * table[ids], alpha=-lr)


def _one_after_another(table, ids, gradients, lr, decay):
    table = table.clone()
    for word, gradient in zip(ids.tolist(), gradients, strict=True):
        table[word] -= lr * (gradient + decay * table[word])
    return table


LAST = "rows - lr * (sums + decay * rows)"

APPLY_ROWS = Exercise(
    name="apply_rows",
    points=3,
    task="""This update of an embedding table looks right and has three faults. Repair it, without
changing what it takes.

`table` is `[V, d]`; `ids` `[n]` are the words of a batch, and a word may occur **several times**;
`gradients` `[n, d]` has a gradient for each occurrence. A word of the batch moves from w to
w − lr · (sum of its gradients + decay · w). Words that are not in the batch keep their rows.
Return the new table, and leave the one that was handed over as it is.""",
    cases=apply_rows_cases,
    drive=apply_rows_drive,
    reference=apply_rows,
    reasoning="""`torch.unique` lists each word once, and says for every occurrence which of them it
is. So the gradients of a word are added up first, and its row decays once, however often it occurs.
Only rows of the batch are computed. `index_copy` without an underscore makes a new table, so the
caller's stays.""",
    wrong=(
        Wrong(
            _apply_as_found,
            "This is the update as found. Hand it a table, a word twice and a gradient of ones: "
            "how far does this word move, what do the other words do, and what is in the table "
            "that you handed over?",
            given=True,
        ),
        Wrong.changed(
            apply_rows,
            "sums = sums.index_add(0, places, gradients)",
            "sums[places] = gradients",
            "A word that occurs several times gets the gradient of one occurrence; the others are "
            "overwritten. Add them up.",
        ),
        Wrong.changed(
            apply_rows,
            LAST,
            "rows - lr * (sums / places.bincount()[:, None] + decay * rows)",
            "The gradients of a word are averaged over its occurrences. They are to be added up.",
        ),
        Wrong.changed(
            apply_rows,
            "table.index_copy(0, present, rows - lr * (sums + decay * rows))",
            "((1 - lr * decay) * table).index_add(0, present, sums, alpha=-lr)",
            "Words that are not in the batch decay as well. Only rows of the batch may change.",
        ),
        Wrong.changed(
            apply_rows,
            LAST,
            "rows - lr * sums",
            "The decay is missing: rows of the batch shrink by lr · decay of themselves.",
        ),
        Wrong(
            _decay_of_each_occurrence,
            "A word that occurs twice decays twice. Add up its gradients, and let its row decay "
            "once.",
            also=(_one_after_another,),
        ),
        Wrong.changed(
            apply_rows,
            LAST,
            "(1 - lr * decay) * (rows - lr * sums)",
            "The row decays after its step, so a part of the gradient is lost as well. Let the row "
            "as it was decay.",
        ),
        Wrong.changed(
            apply_rows,
            LAST,
            "(1 - decay) * rows - lr * sums",
            "The decay is not multiplied by lr: rows shrink too fast.",
        ),
        Wrong(
            _in_place,
            "The new table is right, but the one that was handed over was changed as well. Methods "
            "that end in an underscore, and `-=`, work in place.",
        ),
    ),
)


# ---- target: rows of Adagrad ----


def adagrad_rows_cases(rng: random.Random) -> Iterator[Case]:
    for _ in range(2):
        batches = []
        for _ in range(3):
            ids = whole(rng, 0, ROWS // 2, 7)
            batches.append([ids, normal(rng, 7, WIDTH)])  # of six words one at least is twice there
        squares = uniform(rng, ROWS) + 0.1
        yield {"table": normal(rng, ROWS, WIDTH), "squares": squares, "batches": batches, "lr": 0.5}


def adagrad_rows_large(rng: random.Random) -> Case:
    table, squares = normal(rng, MANY_ROWS, WIDE), uniform(rng, MANY_ROWS) + 0.1
    batches = [[whole(rng, 0, 500, 64), normal(rng, 64, WIDE)] for _ in range(UPDATES)]
    return {"table": table, "squares": squares, "batches": batches, "lr": 0.5}


def adagrad_rows_drive(answer, case):
    table, squares = case["table"], case["squares"]
    for ids, gradients in case["batches"]:
        answer(table, squares, ids, gradients, case["lr"])
    return {"table": table[:500].clone(), "squares": squares[:500].clone()}


def adagrad_rows(table, squares, ids, gradients, lr):
    present, places = torch.unique(ids, return_inverse=True)
    sums = gradients.new_zeros(len(present), gradients.shape[1])
    sums.index_add_(0, places, gradients)
    squares.index_add_(0, present, sums.square().mean(1))
    steps = sums / squares[present].sqrt()[:, None]
    table.index_add_(0, present, steps, alpha=-lr)


def _whole_table(table, squares, ids, gradients, lr):
    import torch

    gradient = torch.zeros_like(table).index_add_(0, ids, gradients)
    squares += gradient.square().mean(1)
    table -= lr * gradient / squares.sqrt()[:, None]


WHOLE_TABLE = Wrong(
    _whole_table,
    "The table is right, but an update takes too long: as long as one of the whole table, or not "
    "much less. Find the rows of the batch with torch.unique, and work on those alone, all of them "
    "at once instead of one by one in a loop.",
)

ADAGRAD_ROWS = Exercise(
    name="adagrad_rows",
    points=4,
    task="""Recommenders have tables of millions of rows, and often train them with *row-wise
Adagrad*: it remembers one number per row. With g the sum of a word's gradients in this batch,

> squares ← squares + mean of g², and then row ← row − lr · g / √squares

Write `adagrad_rows(table, squares, ids, gradients, lr)`: change `table` `[V, d]` and `squares`
`[V]` **in place**, for the words `ids` `[n]` with their gradients `[n, d]`. A word may occur
several times. **Target:** with 40,000 rows and 64 words, at most a fifth of the time of a version
that works on the whole table.""",
    cases=adagrad_rows_cases,
    drive=adagrad_rows_drive,
    reference=adagrad_rows,
    reasoning="""`torch.unique` gives each word of the batch once, so that its gradients can be
added up before they are squared: the square of a sum is not the sum of the squares. From there all
tensors have as many rows as the batch has different words. `index_add_` writes into the caller's
tensors, and in `present` no row occurs twice. The squares are read after they have grown.""",
    wrong=(
        WHOLE_TABLE,
        Wrong.changed(
            adagrad_rows,
            "squares.index_add_(0, present, sums.square().mean(1))",
            "squares.index_add_(0, ids, gradients.square().mean(1))",
            "You add the squares of single gradients. A word that occurs twice has one gradient, "
            "the sum: add up first, then square.",
        ),
        Wrong.changed(
            adagrad_rows,
            "sums.index_add_(0, places, gradients)",
            "sums[places] = gradients",
            "A word that occurs several times gets the gradient of one occurrence; the others are "
            "overwritten.",
        ),
        Wrong.changed(
            adagrad_rows,
            "    squares.index_add_(",
            "    sums /= places.bincount()[:, None]\n    squares.index_add_(",
            "The gradients of a word are averaged over its occurrences. They are to be added up.",
        ),
        Wrong.changed(
            adagrad_rows,
            "squares.index_add_(0, present, sums.square().mean(1))",
            "squares[present] = sums.square().mean(1)",
            "The squares of earlier batches are lost: add those of this batch to them.",
        ),
        Wrong.changed(
            adagrad_rows,
            ".square().mean(1)",
            ".square().sum(1)",
            "The squares of a row's numbers are added up. Row-wise Adagrad takes their mean.",
        ),
        Wrong.changed(
            adagrad_rows,
            ".sqrt()",
            "",
            "The gradient is divided by the squares. Divide it by their root.",
        ),
        Wrong(
            changed(
                changed(
                    adagrad_rows, "    squares.index_add_(0, present, sums.square().mean(1))\n", ""
                ),
                "alpha=-lr)",
                "alpha=-lr)\n    squares.index_add_(0, present, sums.square().mean(1))",
            ),
            "The row moves by the squares from before this batch. They grow first.",
        ),
        Wrong(
            lambda table, squares, ids, gradients, lr: adagrad_rows(
                table.clone(), squares.clone(), ids, gradients, lr
            ),
            "Nothing has changed in the tensors that were handed over: work in place.",
        ),
    ),
    target=LessTime(adagrad_rows_large, 0.2, WHOLE_TABLE),
)


# ---- diagnose: a cleaning that loses more than it says ----

STOP = ["the", "of", "a", "is", "it", "not", "never", "no", "was"]
NEGATIONS = ["not", "never", "no", "nor", "cannot"]
WORDS = ["Film", "story", "Good", "bad", "US", "actors", "great"]


def clean_tokens_cases(rng: random.Random) -> Iterator[Case]:
    for _ in range(3):
        once, twice = rng.sample(WORDS, 2)
        texts = [
            ["The", twice, once, rng.choice(["Not", "Never"]), twice],
            rng.choices(["the", "of", "a", "is"], k=3),  # nothing is left of this one
            [rng.choice(WORDS), "was", "not", rng.choice(WORDS), "of", "nor"],
            [],
            ["it", *rng.sample(WORDS, 3), rng.choice(["OF", "Is"])],
        ]
        yield {"texts": texts, "stop": list(STOP), "negations": list(NEGATIONS)}


def clean_tokens_drive(answer, case):
    stop, negations = frozenset(case["stop"]), frozenset(case["negations"])
    found = answer([list(tokens) for tokens in case["texts"]], stop, negations)
    return {"texts": found if isinstance(found, list) else None}


def clean_tokens(texts, stop, negations):
    dropped = stop - negations
    return [[token.lower() for token in tokens if token.lower() not in dropped] for tokens in texts]


def _clean_as_found(texts, stop, negations):
    cleaned = []
    for tokens in texts:
        kept = [token.lower() for token in tokens if token not in stop]
        if kept:
            cleaned.append(kept)
    return cleaned


CLEAN_TOKENS = Exercise(
    name="clean_tokens",
    points=2,
    task="""A cleaning was added, the accuracy fell, and training complained that texts and labels
are not equally many. This function has three faults. Repair it, without changing what it takes.

`texts` is a list of lists of tokens; `stop` and `negations` are sets of words in lower case.
Return the texts in lower case without the stop words, as many texts as came in. A word of
`negations` always stays.""",
    cases=clean_tokens_cases,
    drive=clean_tokens_drive,
    reference=clean_tokens,
    reasoning="""A token is compared in lower case: the lists are in lower case, so "The" is not
found in them as it stands. The negations are taken out of the stop list, and stay in the text. A
text of which nothing is left becomes an empty list, an empty bag: its label has a place, so the
text must have one as well.""",
    wrong=(
        Wrong(
            _clean_as_found,
            'This is the function as found. Give it the texts "The film", "it is" and "not good": '
            "what is left of each, and how many are left?",
            given=True,
        ),
        Wrong.changed(
            clean_tokens,
            "dropped = stop - negations",
            "dropped = stop",
            'The negations are lost: "not good" becomes "good". Take them out of the stop list.',
        ),
        Wrong.changed(
            clean_tokens,
            "if token.lower() not in",
            "if token not in",
            '"The" is compared as it stands, and the list holds "the". Lower the case first.',
        ),
        Wrong.changed(
            clean_tokens,
            "[token.lower() for",
            "[token for",
            "The right words are left, but not in lower case.",
        ),
        Wrong.changed(
            clean_tokens,
            "for tokens in texts]",
            "for tokens in texts if {token.lower() for token in tokens} - dropped]",
            "A text of which nothing is left disappears, and all later labels belong to another "
            "text. Return an empty list for it.",
        ),
        Wrong.changed(
            clean_tokens,
            "not in dropped]",
            "not in dropped | negations]",
            "Each word of `negations` is dropped, those that are no stop words as well. They all "
            "stay.",
        ),
    ),
)
