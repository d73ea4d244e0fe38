"""Exercises of chapter 11: padded sequences, a loop with three faults, and as few micro-batches as
fit.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch.nn.functional import cross_entropy

from accel_lab.exercises import Case, Exercise, LessMemory, Wrong, changed
from accel_lab.exercises._data import normal, whole

CLASSES, WIDTH, LENGTH, PADDING = 5, 6, 7, -100
MANY, WIDE = 64, 10  # micro-batches and classes of a target's case: their logits outweigh the data

# ---- build: padded sequences ----


def token_update_cases(rng: random.Random) -> Iterator[Case]:
    for number in range(4):
        batches = []
        for _ in range(3):
            micro_batches = []
            for place in range(rng.randrange(2, 5)):
                samples = rng.randrange(1, 5)
                y = whole(rng, 0, CLASSES, samples, LENGTH)
                for row in y:
                    row[rng.randrange(1, LENGTH + 1) :] = PADDING
                if number % 2 == 1 and place == 0:
                    y[:] = PADDING
                micro_batches.append([normal(rng, samples, LENGTH, WIDTH), y])
            batches.append(micro_batches)
        yield {"weight": normal(rng, CLASSES, WIDTH), "batches": batches}


def token_update_large(rng: random.Random) -> Case:
    batch = [[normal(rng, 500, 64, 2), whole(rng, 0, WIDE, 500, 64)] for _ in range(MANY)]
    return {"weight": normal(rng, WIDE, 2), "batches": [batch]}


def token_update_drive(answer, case):
    import torch

    weight = case["weight"]
    model = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    with torch.no_grad():
        model.weight.copy_(weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = {}
    for number, batch in enumerate(case["batches"]):
        loss = answer(model, optimizer, [(x, y) for x, y in batch])
        losses[f"loss of batch {number}"] = float(loss.detach() if torch.is_tensor(loss) else loss)
    return {**losses, "weight": model.weight.detach().clone()}


def token_update(model, optimizer, micro_batches):
    tokens = sum((y != PADDING).sum() for _, y in micro_batches)
    optimizer.zero_grad()
    total = 0.0
    for x, y in micro_batches:
        loss = cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum") / tokens
        loss.backward()
        total += loss.detach()
    optimizer.step()
    return total


def _all_at_once(model, optimizer, micro_batches):
    x, y = (torch.cat(parts) for parts in zip(*micro_batches, strict=True))
    return token_update(model, optimizer, [(x, y)])


def _one_backward(model, optimizer, micro_batches):
    tokens = sum((y != PADDING).sum() for _, y in micro_batches)
    optimizer.zero_grad()
    losses = [
        cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")
        for x, y in micro_batches
    ]
    loss = sum(losses) / tokens
    loss.backward()
    optimizer.step()
    return loss.detach()


def _leaves_padding_out(model, optimizer, micro_batches):
    some = [(x, y) for x, y in micro_batches if (y != PADDING).any()]
    optimizer.zero_grad()
    total = 0.0
    for x, y in some:
        loss = cross_entropy(model(x).flatten(0, 1), y.flatten()) / len(some)
        loss.backward()
        total += loss.detach()
    optimizer.step()
    return total


ALL_AT_ONCE = Wrong(
    _all_at_once,
    "The weights are right, but the activations of the whole batch are in memory at once: either "
    "all of it goes through the model together, or the losses are added up before one backward. Go "
    "backward after each micro-batch.",
    also=(_one_backward,),
)
SUM_OVER_TOKENS = 'reduction="sum") / tokens'

TOKEN_UPDATE = Exercise(
    name="token_update",
    points=3,
    task="""Sequences have different lengths, so they are padded: where `y` is `-100` there is
no token, and `cross_entropy` leaves it out of its mean. The loss of a batch is the mean over **all
its tokens**.

Write `token_update(model, optimizer, micro_batches)`: make one update from that loss, one
micro-batch in memory at a time, and return the loss. `micro_batches` is a list of pairs: x of shape
[n_i, length, width] and y of shape [n_i, length]; `model(x)` has the shape [n_i, length, classes].
Flatten both for `cross_entropy`: `model(x).flatten(0, 1)` and `y.flatten()`.
A micro-batch may be all padding; the whole batch never is. On a batch of 64 large micro-batches you
have 20 MB beyond the batch itself; the system counts them.""",
    cases=token_update_cases,
    drive=token_update_drive,
    reference=token_update,
    reasoning="""The loss of the batch is a sum over its tokens divided by their number. Sums can
be taken in parts: each micro-batch adds `sum / tokens`, where `tokens` is counted over the whole
batch beforehand, and `backward` adds the gradients up in `.grad`. A micro-batch of padding adds 0,
not 0/0. Going backward at once frees its activations before the next one comes.""",
    wrong=(
        Wrong.changed(
            token_update,
            SUM_OVER_TOKENS,
            ") * len(y) / sum(len(y) for _, y in micro_batches)",
            "You weigh by samples. The mean runs over tokens, and a micro-batch of short sequences "
            "holds fewer of them.",
        ),
        Wrong.changed(
            token_update,
            SUM_OVER_TOKENS,
            ") / len(micro_batches)",
            "1/m gives every micro-batch the same weight, however few tokens it holds.",
            also=(_leaves_padding_out,),
        ),
        Wrong.changed(
            token_update,
            SUM_OVER_TOKENS,
            'reduction="sum")',
            "The losses are added up and nothing is divided: the loss is a mean. Divide each sum "
            "by the number of tokens in the whole batch.",
        ),
        Wrong.changed(
            token_update,
            SUM_OVER_TOKENS,
            ") * (y != PADDING).sum() / tokens",
            "The mean over a micro-batch without a single token is 0/0, and NaN times a share of 0 "
            "is still NaN. Add up sums, and divide them by the tokens of the whole batch.",
        ),
        Wrong.changed(
            token_update,
            "(y != PADDING).sum()",
            "y.numel()",
            "You divide by all places of y. Padding is not a token: count where y is not -100.",
        ),
        Wrong.changed(
            token_update,
            "    optimizer.zero_grad()\n",
            "",
            "The first batch is right and the later ones are not: the gradients of earlier batches "
            "were never cleared.",
        ),
        Wrong.changed(
            token_update,
            "    optimizer.step()\n",
            "",
            "The weights never change: call optimizer.step() once, after the last backward.",
        ),
        Wrong.changed(
            token_update,
            "        total += loss.detach()\n",
            "        total += loss.detach()\n"
            "        optimizer.step()\n"
            "        optimizer.zero_grad()\n",
            "There is to be one step a batch, after the gradient is complete; yours steps after "
            "each micro-batch.",
            also=(
                changed(
                    changed(token_update, "    optimizer.step()\n", ""),
                    "        total += loss.detach()\n",
                    "        total += loss.detach()\n"
                    "        optimizer.step()\n"
                    "        optimizer.zero_grad()\n",
                ),
            ),
        ),
        Wrong.changed(
            token_update,
            "total += loss.detach()",
            "total = loss.detach()",
            "The update is right, but you return the loss of the last micro-batch alone. Add up "
            "the losses of all of them.",
        ),
        ALL_AT_ONCE,
    ),
    target=LessMemory(token_update_large, 20 << 20, ALL_AT_ONCE),
)


# ---- diagnose: the loop that went round ----


def train_epoch_cases(rng: random.Random) -> Iterator[Case]:
    for leftover in (0, 1, 1):
        accumulate, size = rng.randrange(2, 5), rng.randrange(3, 6)
        count = accumulate * rng.randrange(2, 4) + leftover * rng.randrange(1, accumulate)
        sizes = [size] * (count - 1) + [rng.randrange(1, size)]
        loader = [[normal(rng, n, WIDTH), whole(rng, 0, CLASSES, n)] for n in sizes]
        yield {"weight": normal(rng, CLASSES, WIDTH), "loader": loader, "accumulate": accumulate}


def train_epoch_large(rng: random.Random) -> Case:
    loader = [[normal(rng, 32_000, 2), whole(rng, 0, WIDE, 32_000)] for _ in range(MANY)]
    return {"weight": normal(rng, WIDE, 2), "loader": loader, "accumulate": MANY}


def train_epoch_drive(answer, case):
    import torch

    weight = case["weight"]
    model = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    with torch.no_grad():
        model.weight.copy_(weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    updates = answer(model, optimizer, [(x, y) for x, y in case["loader"]], case["accumulate"])
    return {"updates": updates, "weight": model.weight.detach().clone()}


def train_epoch(model, optimizer, loader, accumulate):
    updates = 0
    for first in range(0, len(loader), accumulate):
        group = loader[first : first + accumulate]
        samples = sum(len(y) for _, y in group)
        optimizer.zero_grad()
        for x, y in group:
            (cross_entropy(model(x), y) * len(y) / samples).backward()
        optimizer.step()
        updates += 1
    return updates


def _as_found(model, optimizer, loader, accumulate):
    updates = 0
    for step, (x, y) in enumerate(loader):
        loss = cross_entropy(model(x), y) / accumulate
        loss.backward()
        if step % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
            updates += 1
    return updates


def _each_group_at_once(model, optimizer, loader, accumulate):
    joined = [
        tuple(torch.cat(parts) for parts in zip(*loader[first : first + accumulate], strict=True))
        for first in range(0, len(loader), accumulate)
    ]
    return train_epoch(model, optimizer, joined, 1)


def _one_backward_a_group(model, optimizer, loader, accumulate):
    updates = 0
    for first in range(0, len(loader), accumulate):
        group = loader[first : first + accumulate]
        optimizer.zero_grad()
        losses = [cross_entropy(model(x), y, reduction="sum") for x, y in group]
        (sum(losses) / sum(len(y) for _, y in group)).backward()
        optimizer.step()
        updates += 1
    return updates


GROUP_AT_ONCE = Wrong(
    _each_group_at_once,
    "The weights are right, but the activations of a whole group are in memory at once: either its "
    "micro-batches are put together, or their losses are added up before one backward. Go backward "
    "after each micro-batch.",
    also=(_one_backward_a_group,),
)

TRAIN_EPOCH = Exercise(
    name="train_epoch",
    points=3,
    task="""This loop is all over the internet, and it has three faults. Repair it, without
changing what it takes and returns.

`loader` is a list of micro-batches (x, y), all of one size except that the last one may be shorter.
Each update is to use `accumulate` micro-batches and the mean loss over **their samples**; what is
left at the end makes one smaller update. Return the number of updates. With 64 large micro-batches
to an update you have 20 MB beyond the data; the system counts them.""",
    cases=train_epoch_cases,
    drive=train_epoch_drive,
    reference=train_epoch,
    reasoning="""The loop goes over groups, so that a group always has its first micro-batch and
the last group may be short. Each loss is weighted by the micro-batch's share of the *samples* of
its group, which is right for short micro-batches and for short groups alike. Gradients are cleared
once a group, before its first backward.""",
    wrong=(
        Wrong(
            _as_found,
            "This is the loop as found. Which micro-batches take part in the first update, and "
            "which in the last? Write down `step` and what happens, for seven of them.",
            given=True,
        ),
        Wrong.changed(
            train_epoch,
            "range(0, len(loader), accumulate)",
            "range(0, len(loader) - len(loader) % accumulate, accumulate)",
            "The micro-batches left over at the end take part in no update. They are data, too.",
        ),
        Wrong.changed(
            train_epoch,
            "* len(y) / samples",
            "/ accumulate",
            "Dividing by `accumulate` shrinks the last update, whose group is smaller, or whose "
            "last micro-batch is.",
        ),
        Wrong.changed(
            train_epoch,
            "* len(y) / samples",
            "/ len(group)",
            "A mean of means is the mean only when all parts have one size. The last micro-batch "
            "of the loader is shorter.",
        ),
        Wrong.changed(
            train_epoch,
            "sum(len(y) for _, y in group)",
            "accumulate * len(group[0][1])",
            "You take all groups, and all micro-batches of a group, for full ones. At the end of "
            "the loader they are shorter: count the samples that the group really has.",
        ),
        Wrong.changed(
            train_epoch,
            " * len(y) / samples",
            "",
            "The losses of a group are added up and nothing is divided: the step is as many times "
            "too large as the group has micro-batches.",
        ),
        Wrong.changed(
            train_epoch,
            "for _, y in group)",
            "for _, y in loader[: first + accumulate])",
            "The first update is right and the later ones are too small: you count the samples of "
            "all groups so far. Begin each group's count at 0.",
        ),
        Wrong.changed(
            train_epoch,
            "        optimizer.zero_grad()\n",
            "",
            "Each update repeats the gradients of all earlier ones: clear them once a group, "
            "before its first backward.",
        ),
        GROUP_AT_ONCE,
    ),
    target=LessMemory(train_epoch_large, 20 << 20, GROUP_AT_ONCE),
)


# ---- target: as few micro-batches as fit ----


def fewest_micro_batches_cases(rng: random.Random) -> Iterator[Case]:
    def case(batch_size, bytes_per_sample, budget):
        return {"batch_size": batch_size, "bytes_per_sample": bytes_per_sample, "budget": budget}

    yield case(5, 2, 5)  # ⌈5 · 2 / 5⌉ = 2 would put 3 samples, 6 bytes, in one
    yield case(rng.randrange(2, 99), 1000, rng.randrange(1, 1000))
    for _ in range(12):
        size = rng.randrange(100, 10_000)
        yield case(rng.randrange(1, 513), size, size * rng.randrange(1, 40) + rng.randrange(size))
    samples = rng.randrange(2, 20)
    yield case(samples * 7, 64, 64 * samples)  # fits to the byte


def fewest_micro_batches_drive(answer, case):
    return {"micro_batches": answer(case["batch_size"], case["bytes_per_sample"], case["budget"])}


def fewest_micro_batches(batch_size, bytes_per_sample, budget):
    fit = budget // bytes_per_sample
    if fit == 0:
        return None
    return -(-batch_size // min(fit, batch_size))


FEWEST_MICRO_BATCHES = Exercise(
    name="fewest_micro_batches",
    points=2,
    task="""**Target:** the whole batch goes through, never more than `budget` bytes of
activations are kept, and no backward pass is wasted.

Write `fewest_micro_batches(batch_size, bytes_per_sample, budget)`: the smallest number of
micro-batches, as equal as can be, whose largest one fits the budget; `None` when not even one
sample fits. All three are whole numbers above zero.""",
    cases=fewest_micro_batches_cases,
    drive=fewest_micro_batches_drive,
    reference=fewest_micro_batches,
    reasoning="""First find how many whole samples fit the budget, because a sample cannot be cut;
if none does, there is no answer. Then divide the batch by that number and round *up*, because the
samples left over need one more micro-batch.""",
    wrong=(
        Wrong.changed(
            fewest_micro_batches,
            "-(-batch_size // min(fit, batch_size))",
            "-(-batch_size * bytes_per_sample // budget)",
            "A sample cannot be cut: find how many whole samples fit the budget first. 5 samples "
            "of 2 bytes need 3 parts of 5 bytes.",
        ),
        Wrong.changed(
            fewest_micro_batches,
            "-(-batch_size // min(fit, batch_size))",
            "max(1, batch_size // fit)",
            "Rounding down leaves samples over, and they make the largest micro-batch too large: "
            "round up.",
            also=(
                changed(
                    fewest_micro_batches,
                    "-(-batch_size // min(fit, batch_size))",
                    "max(1, batch_size * bytes_per_sample // budget)",
                ),
            ),
        ),
        Wrong.changed(
            fewest_micro_batches,
            "-(-batch_size // min(fit, batch_size))",
            "batch_size // fit + 1",
            "Where the samples that fit divide the batch, yours is one more than needed. Round up "
            "the quotient instead of adding 1 to it.",
        ),
        Wrong.changed(
            fewest_micro_batches,
            "-(-batch_size // min(fit, batch_size))",
            "batch_size",
            "It fits, but with more backward passes than needed. As few micro-batches as fit.",
        ),
        Wrong.changed(
            fewest_micro_batches,
            "    if fit == 0:\n        return None\n",
            "    fit = max(fit, 1)\n",
            "Where not even one sample fits the budget no number of micro-batches helps: "
            "return None.",
            also=(changed(fewest_micro_batches, "return None", "return 0"),),
        ),
    ),
)
