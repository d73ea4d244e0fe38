"""Exercises of the chapter on gradient accumulation."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch.nn.functional import cross_entropy

from accel_lab.exercises import Case, Exercise, LessMemory, Wrong

CLASSES, WIDTH, LENGTH, PADDING = 5, 6, 7, -100


def _normal(rng: random.Random, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(rng.randrange(2**31)))


def _labels(rng: random.Random, *shape: int) -> torch.Tensor:
    return torch.randint(
        CLASSES, shape, generator=torch.Generator().manual_seed(rng.randrange(2**31))
    )


# 1. build: padded sequences
#   -----------------------------------------------------------------------------------------------

TOKENS_TASK = """Sequences have different lengths, so they are padded: where `y` is `-100` there is
no token, and `cross_entropy` leaves it out of its mean. The loss of a batch is the mean over **all
its tokens**.

Write `token_update(model, optimizer, micro_batches)`: make one update from that loss, one
micro-batch in memory at a time, and return the loss. `micro_batches` is a list of pairs: x of shape
[n_i, length, width] and y of shape [n_i, length]; `model(x)` has the shape [n_i, length, classes].
A micro-batch may be all padding; the whole batch never is. On a batch of 16 large micro-batches you
have 20 MB beyond the batch itself; the system counts them."""


def token_cases(rng: random.Random) -> Iterator[Case]:
    for number in range(4):
        batches = []
        for _ in range(3):
            micro_batches = []
            for place in range(rng.randrange(2, 5)):
                samples = rng.randrange(1, 5)
                y = _labels(rng, samples, LENGTH)
                for row in y:
                    row[rng.randrange(1, LENGTH + 1) :] = PADDING
                if number % 2 == 1 and place == 0:
                    y[:] = PADDING
                micro_batches.append([_normal(rng, samples, LENGTH, WIDTH), y])
            batches.append(micro_batches)
        yield {"weight": _normal(rng, CLASSES, WIDTH), "batches": batches}


def drive_token_update(answer, case):
    import torch

    model = torch.nn.Linear(case["weight"].shape[1], case["weight"].shape[0], bias=False)
    with torch.no_grad():
        model.weight.copy_(case["weight"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = [
        float(answer(model, optimizer, [(x, y) for x, y in batch])) for batch in case["batches"]
    ]
    return {"losses": losses, "weight": model.weight.detach().clone()}


def _tokens(y):
    return int((y != PADDING).sum())


def _all_tokens(micro_batches):
    return sum(_tokens(y) for _, y in micro_batches)


def token_update(model, optimizer, micro_batches):
    tokens = _all_tokens(micro_batches)
    optimizer.zero_grad()
    total = 0.0
    for x, y in micro_batches:
        loss = cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum") / tokens
        loss.backward()
        total += loss.detach()
    optimizer.step()
    return total


def _weighted(weight, clear=True, step_each_time=False, reduction="mean"):
    """A wrong answer: weight(y, micro_batches) times the loss of each micro-batch, and what else
    goes wrong.
    """

    def answer(model, optimizer, micro_batches):
        if clear:
            optimizer.zero_grad()
        total = 0.0
        for x, y in micro_batches:
            loss = cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction=reduction) * weight(
                y, micro_batches
            )
            loss.backward()
            total += loss.detach()
            if step_each_time:
                optimizer.step()
                optimizer.zero_grad()
        optimizer.step()
        return total

    return answer


by_samples = _weighted(lambda y, all_: len(y) / sum(len(y) for _, y in all_))
by_micro_batches = _weighted(lambda y, all_: 1 / len(all_))
mean_times_share = _weighted(lambda y, all_: _tokens(y) / _all_tokens(all_))
counts_padding = _weighted(lambda y, all_: 1 / sum(y.numel() for _, y in all_), reduction="sum")
never_clears = _weighted(lambda y, all_: 1 / _all_tokens(all_), reduction="sum", clear=False)
steps_each_time = _weighted(
    lambda y, all_: 1 / _all_tokens(all_), reduction="sum", step_each_time=True
)


def all_at_once(model, optimizer, micro_batches):
    x, y = (torch.cat(parts) for parts in zip(*micro_batches, strict=True))
    optimizer.zero_grad()
    loss = cross_entropy(model(x).flatten(0, 1), y.flatten())
    loss.backward()
    optimizer.step()
    return loss.detach()


ALL_AT_ONCE = Wrong(
    all_at_once,
    "The weights are right, but you put the whole batch through the model at once. That is the "
    "memory to be saved.",
)


def long_token_cases(rng: random.Random) -> Case:
    batch = [[_normal(rng, 500, 64, WIDTH), _labels(rng, 500, 64)] for _ in range(16)]
    return {"weight": _normal(rng, CLASSES, WIDTH), "batches": [batch]}


TOKENS = Exercise(
    name="token_update",
    points=3,
    task=TOKENS_TASK,
    cases=token_cases,
    drive=drive_token_update,
    reference=token_update,
    wrong=(
        Wrong(
            by_samples,
            "You weigh by samples. The mean runs over tokens, and a micro-batch of short sequences "
            "holds fewer of them.",
        ),
        Wrong(
            by_micro_batches,
            "1/m gives every micro-batch the same say, however few tokens it holds.",
        ),
        Wrong(
            mean_times_share,
            "The mean over a micro-batch without a single token is 0/0, and NaN times a share of 0 "
            "is still NaN. Add up sums, "
            "and divide them by the tokens of the whole batch.",
        ),
        Wrong(
            counts_padding,
            "You divide by all places of y. The padded ones are no tokens: count where y is "
            "not -100.",
        ),
        Wrong(
            never_clears,
            "The first batch is right and the later ones are not: the gradients of former batches "
            "were never cleared.",
        ),
        Wrong(
            steps_each_time,
            "There is to be one step a batch, after the gradient is whole; yours steps after each "
            "micro-batch.",
        ),
        ALL_AT_ONCE,
    ),
    target=LessMemory(long_token_cases, 20 << 20, ALL_AT_ONCE),
)


# 2. diagnose: the loop that went round
#   ------------------------------------------------------------------------------------

LOOP_TASK = """This loop is all over the internet, and it has three faults. Repair it, without
changing what it takes and returns.

`loader` is a list of micro-batches (x, y), all of one size except that the last one may be shorter.
Each update is to use `accumulate` micro-batches and the mean loss over **their samples**; what is
left at the end makes one smaller update. Return the number of updates. With 16 large micro-batches
to an update you have 20 MB beyond the data; the system counts them."""


def loop_cases(rng: random.Random) -> Iterator[Case]:
    for leftover in (0, 1, 1):
        accumulate, size = rng.randrange(2, 5), rng.randrange(3, 6)
        count = accumulate * rng.randrange(2, 4) + leftover * rng.randrange(1, accumulate)
        sizes = [size] * (count - 1) + [rng.randrange(1, size)]
        loader = [[_normal(rng, n, WIDTH), _labels(rng, n)] for n in sizes]
        yield {"weight": _normal(rng, CLASSES, WIDTH), "loader": loader, "accumulate": accumulate}


def drive_train_epoch(answer, case):
    import torch

    model = torch.nn.Linear(case["weight"].shape[1], case["weight"].shape[0], bias=False)
    with torch.no_grad():
        model.weight.copy_(case["weight"])
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
        (cross_entropy(model(x), y) / accumulate).backward()
        if step % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
            updates += 1
    return updates


def _drops_the_rest(model, optimizer, loader, accumulate):
    whole = len(loader) - len(loader) % accumulate
    return train_epoch(model, optimizer, loader[:whole], accumulate)


def _one_over_accumulate(model, optimizer, loader, accumulate):
    updates = 0
    optimizer.zero_grad()
    for step, (x, y) in enumerate(loader, 1):
        (cross_entropy(model(x), y) / accumulate).backward()
        if step % accumulate == 0 or step == len(loader):
            optimizer.step()
            optimizer.zero_grad()
            updates += 1
    return updates


def _mean_of_means(model, optimizer, loader, accumulate):
    updates = 0
    for first in range(0, len(loader), accumulate):
        group = loader[first : first + accumulate]
        optimizer.zero_grad()
        for x, y in group:
            (cross_entropy(model(x), y) / len(group)).backward()
        optimizer.step()
        updates += 1
    return updates


def _forgets_to_clear(model, optimizer, loader, accumulate):
    updates = 0
    for first in range(0, len(loader), accumulate):
        group = loader[first : first + accumulate]
        samples = sum(len(y) for _, y in group)
        for x, y in group:
            (cross_entropy(model(x), y) * len(y) / samples).backward()
        optimizer.step()
        updates += 1
    return updates


def _each_group_at_once(model, optimizer, loader, accumulate):
    joined = [
        tuple(torch.cat(parts) for parts in zip(*loader[first : first + accumulate], strict=True))
        for first in range(0, len(loader), accumulate)
    ]
    return train_epoch(model, optimizer, joined, 1)


GROUP_AT_ONCE = Wrong(
    _each_group_at_once,
    "The weights are right, but the micro-batches of a group were put together again: nothing is "
    "saved then.",
)


def long_loop(rng: random.Random) -> Case:
    loader = [[_normal(rng, 32_000, WIDTH), _labels(rng, 32_000)] for _ in range(16)]
    return {"weight": _normal(rng, CLASSES, WIDTH), "loader": loader, "accumulate": 16}


LOOP = Exercise(
    name="train_epoch",
    points=3,
    task=LOOP_TASK,
    cases=loop_cases,
    drive=drive_train_epoch,
    reference=train_epoch,
    wrong=(
        Wrong(
            _as_found,
            "`step % accumulate == 0` is true at step 0: the first update sees one micro-batch, "
            "and all later ones are shifted.",
        ),
        Wrong(
            _drops_the_rest,
            "The micro-batches left over at the end take part in no update. They are data, too.",
        ),
        Wrong(
            _one_over_accumulate,
            "Dividing by `accumulate` shrinks the last update, whose group is smaller, or whose "
            "last micro-batch is.",
        ),
        Wrong(
            _mean_of_means,
            "A mean of means is the mean only when all parts have one size. The last micro-batch "
            "of the loader is shorter.",
        ),
        Wrong(
            _forgets_to_clear,
            "Each update repeats the gradients of all former ones: clear them once a group, before "
            "its first backward.",
        ),
        GROUP_AT_ONCE,
    ),
    target=LessMemory(long_loop, 20 << 20, GROUP_AT_ONCE),
)


# 3. target: as few micro-batches as fit
#   -----------------------------------------------------------------------------------

PLAN_TASK = """**Target:** the whole batch goes through, never more than `budget` bytes of
activations are kept, and no backward pass is made in vain.

Write `fewest_micro_batches(batch_size, bytes_per_sample, budget)`: the smallest number of
micro-batches, as equal as can be, whose largest one fits the budget; `None` when not even one
sample fits. All three are whole numbers above zero."""


def plan_cases(rng: random.Random) -> Iterator[Case]:
    yield {
        "batch_size": 5,
        "bytes_per_sample": 2,
        "budget": 5,
    }  # ⌈5 · 2 / 5⌉ = 2 would put 3 samples, 6 bytes, in one
    yield {
        "batch_size": rng.randrange(2, 99),
        "bytes_per_sample": 1000,
        "budget": rng.randrange(1, 1000),
    }
    for _ in range(12):
        bytes_per_sample = rng.randrange(100, 10_000)
        budget = bytes_per_sample * rng.randrange(1, 40) + rng.randrange(bytes_per_sample)
        yield {
            "batch_size": rng.randrange(1, 513),
            "bytes_per_sample": bytes_per_sample,
            "budget": budget,
        }
    samples = rng.randrange(2, 20)
    yield {
        "batch_size": samples * 7,
        "bytes_per_sample": 64,
        "budget": 64 * samples,
    }  # fits to the byte


def drive_fewest_micro_batches(answer, case):
    return {"micro_batches": answer(case["batch_size"], case["bytes_per_sample"], case["budget"])}


def fewest_micro_batches(batch_size, bytes_per_sample, budget):
    fit = budget // bytes_per_sample
    return -(-batch_size // min(fit, batch_size)) if fit else None


def _divides_bytes(batch_size, bytes_per_sample, budget):
    return -(-batch_size * bytes_per_sample // budget) if bytes_per_sample <= budget else None


def _rounds_down(batch_size, bytes_per_sample, budget):
    fit = budget // bytes_per_sample
    return max(1, batch_size // fit) if fit else None


def _one_sample_each(batch_size, bytes_per_sample, budget):
    return batch_size if bytes_per_sample <= budget else None


def _ignores_the_impossible(batch_size, bytes_per_sample, budget):
    return -(-batch_size // max(1, budget // bytes_per_sample))


PLAN = Exercise(
    name="fewest_micro_batches",
    points=2,
    task=PLAN_TASK,
    cases=plan_cases,
    drive=drive_fewest_micro_batches,
    reference=fewest_micro_batches,
    wrong=(
        Wrong(
            _divides_bytes,
            "A sample cannot be cut: find how many whole samples fit the budget first. 5 samples "
            "of 2 bytes need 3 parts of 5.",
        ),
        Wrong(
            _rounds_down,
            "Rounding down leaves samples over, and they make the largest micro-batch too large: "
            "round up.",
        ),
        Wrong(
            _one_sample_each,
            "It fits, but with more backward passes than needed. As few micro-batches as fit.",
        ),
        Wrong(
            _ignores_the_impossible,
            "Where not even one sample fits the budget no number of micro-batches helps: "
            "return None.",
        ),
    ),
)
