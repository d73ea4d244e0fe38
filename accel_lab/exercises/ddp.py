"""Exercises of the chapter on data parallelism. The ranks' messages are carried, and counted, by
whoever judges.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch.nn.functional import cross_entropy

from accel_lab.exercises import Case, Exercise, Wrong

CLASSES, WIDTH = 4, 5


def _normal(rng: random.Random, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(rng.randrange(2**31)))


# 1. build: a weighted average, round the ring to the left, under a byte budget
#   --------------------------------------------

RING_TASK = """Every rank has a gradient of *n* numbers and the `share` of the batch it came from;
the shares of all ranks add up to 1, and they are not equal.

Write `ring_average(gradient, share, rank, world, send, receive)`: return, on every rank, the sum
over the ranks of share × gradient. This ring turns **to the left**: `send(tensor)` goes to rank −
1, `receive()` waits for what rank + 1 has sent, and rank 0's left neighbour is the last rank. No
rank may send more than 2 · (world − 1) · ⌈n / world⌉ numbers. *n* need not divide by `world`, and
`world` may be 1."""


def ring_cases(rng: random.Random) -> Iterator[Case]:
    for world in (3, 2, 4, 1, 5):
        n = world * rng.randrange(2, 6) + (rng.randrange(1, world) if world > 1 else 0)
        samples = [rng.randrange(1, 9) for _ in range(world)]
        samples[0] += 10  # never equal
        yield {
            "gradients": [_normal(rng, n) for _ in range(world)],
            "shares": [count / sum(samples) for count in samples],
        }


def deal_ring(case: Case) -> list[Case]:
    world = len(case["gradients"])
    return [
        {"gradient": gradient, "share": share, "rank": rank, "world": world}
        for rank, (gradient, share) in enumerate(
            zip(case["gradients"], case["shares"], strict=True)
        )
    ]


def drive_ring_average(answer, part, wires):
    rank, world = part["rank"], part["world"]
    left, right = (rank - 1) % world, (rank + 1) % world
    return answer(
        part["gradient"],
        part["share"],
        rank,
        world,
        lambda tensor: wires.send(left, tensor),
        lambda: wires.receive(right),
    )


def assess_ring(returned, case: Case):
    n, world = len(case["gradients"][0]), len(case["gradients"])
    sent = [
        sum(max(1, -(-tensor.nbytes // 4)) + 4 * max(0, tensor.dim() - 1) for tensor in tensors)
        for tensors in returned["messages"]
    ]  # a shape carries numbers, too, and so does the dtype of nothing
    return {
        "averages": returned["ranks"],
        "within the budget": max(sent) <= 2 * (world - 1) * -(-n // world),
    }


def ring_average(gradient, share, rank, world, send, receive):
    total = gradient * share
    chunks = total.tensor_split(world)
    for turn in range(world - 1):
        send(chunks[(rank + turn) % world])
        chunks[(rank + turn + 1) % world].add_(receive())
    for turn in range(world - 1):
        send(chunks[(rank + turn - 1) % world])
        chunks[(rank + turn) % world].copy_(receive())
    return total


def _all_of_it_round(gradient, share, rank, world, send, receive):
    total = passing = gradient * share
    for _ in range(world - 1):
        send(passing)
        passing = receive()
        total = total + passing
    return total


def _plain_sum(gradient, share, rank, world, send, receive):
    return ring_average(gradient, 1.0, rank, world, send, receive)


def _mean_over_ranks(gradient, share, rank, world, send, receive):
    return ring_average(gradient, 1 / world, rank, world, send, receive)


def _first_half_only(gradient, share, rank, world, send, receive):
    total = gradient * share
    chunks = total.tensor_split(world)
    for turn in range(world - 1):
        send(chunks[(rank + turn) % world])
        chunks[(rank + turn + 1) % world].add_(receive())
    return total


def _adds_twice(gradient, share, rank, world, send, receive):
    total = _first_half_only(gradient, share, rank, world, send, receive)
    chunks = total.tensor_split(world)
    for turn in range(world - 1):
        send(chunks[(rank + turn - 1) % world])
        chunks[(rank + turn) % world].add_(receive())
    return total


def _forgets_the_rest(gradient, share, rank, world, send, receive):
    size = len(gradient) // world * world
    whole = ring_average(gradient[:size], share, rank, world, send, receive)
    return torch.cat([whole, gradient[size:] * share])


RING = Exercise(
    name="ring_average",
    points=3,
    task=RING_TASK,
    cases=ring_cases,
    deal=deal_ring,
    drive=drive_ring_average,
    assess=assess_ring,
    reference=ring_average,
    wrong=(
        Wrong(
            _all_of_it_round,
            "The averages are right, but whole gradients went round: (world − 1) · n numbers from "
            "each rank. Cut the gradient into "
            "`world` chunks and let one chunk go on at each turn.",
        ),
        Wrong(
            _plain_sum,
            "You add up what the ranks have, without their shares: the step grows with the number "
            "of ranks.",
        ),
        Wrong(
            _mean_over_ranks,
            "1/world gives every rank the same say. The shares are not equal: a rank with more "
            "samples counts for more.",
        ),
        Wrong(
            _first_half_only,
            "After world − 1 turns each rank has one chunk complete, and only that one. The "
            "complete chunks have to go round, too.",
        ),
        Wrong(
            _adds_twice,
            "In the second half the chunks that arrive are complete: they replace what is there. "
            "Yours adds them to it.",
        ),
        Wrong(
            _forgets_the_rest,
            "n does not divide by the number of ranks, and the numbers left over at the end never "
            "went round. "
            "`tensor_split(world)` makes chunks of unequal size.",
        ),
    ),
)


# 2. diagnose: two workers, one shard
#   --------------------------------------------------------------------------------------

SHARD_TASK = """This worker runs on every rank. Nothing crashes, the loss falls, and it is not the
training of one process with the whole batch: it has several faults. Repair it.

`batches` is a list of index tensors, the same on all ranks, of different lengths; each is one
update with the mean loss over **all** its samples. Every sample is to be computed by one rank
alone, and the parts of the ranks may differ by one sample at most. A batch may have fewer samples
than there are ranks. The models begin equal; `all_reduce(tensor)` replaces a tensor by its sum over
the ranks, and all ranks have to call it equally often. What a rank gives to it must be its part of
the gradient: it tells who computed what."""


def shard_cases(rng: random.Random) -> Iterator[Case]:
    for world, smallest in ((2, 2), (3, 4), (3, 1), (2, 1)):
        n = 24
        order = torch.randperm(n, generator=torch.Generator().manual_seed(rng.randrange(2**31)))
        sizes = [world * rng.randrange(2, 4) + 1, smallest, world * 2]
        yield {
            "world": world,
            "weight": _normal(rng, CLASSES, WIDTH),
            "x": _normal(rng, n, WIDTH),
            "y": torch.randint(
                CLASSES, (n,), generator=torch.Generator().manual_seed(rng.randrange(2**31))
            ),
            "batches": [batch.clone() for batch in order[: sum(sizes)].split(sizes)],
        }


def deal_shards(case: Case) -> list[Case]:
    return [{**case, "rank": rank} for rank in range(case["world"])]


def drive_train_on_rank(answer, part, wires):
    import torch

    model = torch.nn.Linear(part["weight"].shape[1], part["weight"].shape[0], bias=False)
    model.weight.data.copy_(part["weight"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    answer(
        model,
        optimizer,
        part["x"],
        part["y"],
        part["batches"],
        part["rank"],
        part["world"],
        wires.all_reduce,
    )
    return model.weight.detach().clone()


def assess_shards(returned, case: Case):
    """Who computed what: a rank's part of the gradient is a sum over samples, and tells which ones."""
    weight, shared_out = case["weight"].double(), True
    shape = weight.shape
    parts = [
        [m.double().reshape(shape) for m in given if m.numel() == weight.numel()]
        for given in returned["messages"]
    ]
    for number, batch in enumerate(case["batches"]):
        x, y = case["x"][batch].double(), case["y"][batch]
        residual = (x @ weight.T).softmax(1) - torch.nn.functional.one_hot(y, CLASSES)
        each = residual.unsqueeze(2) * x.unsqueeze(
            1
        )  # the gradient of each sample [n, classes, width]
        if all(number < len(given) for given in parts):
            mine = torch.stack([given[number].flatten() for given in parts], 1)
            share = torch.linalg.lstsq(each.flatten(1).T, mine).solution  # of each sample [n, rank]
            has = share > share.max() / 2
            counts = has.sum(0)
            shared_out &= bool((has.sum(1) == 1).all() and counts.max() - counts.min() <= 1)
        else:
            shared_out = False
        weight = weight - 0.5 * each.mean(0)
    return {
        "weights": returned["ranks"],
        "each sample is one rank's, and all have equally many": shared_out,
    }


def train_on_rank(model, optimizer, x, y, batches, rank, world, all_reduce):
    for batch in batches:
        mine = batch[rank::world]
        optimizer.zero_grad()
        (cross_entropy(model(x[mine]), y[mine], reduction="sum") / len(batch)).backward()
        for parameter in model.parameters():
            all_reduce(parameter.grad)
        optimizer.step()


def _worker(
    part=lambda batch, rank, world: batch[rank::world], weight=None, reduction="mean", clear=True
):
    """A worker with other habits: ``weight(samples of mine, samples of the batch, ranks)`` times
    the loss of ``part``.
    """

    def answer(model, optimizer, x, y, batches, rank, world, all_reduce):
        for batch in batches:
            mine = part(batch, rank, world)
            if clear:
                optimizer.zero_grad()
            loss = (
                cross_entropy(model(x[mine]), y[mine], reduction=reduction)
                if len(mine)
                else model(x[mine]).sum()
            )
            (loss * weight(len(mine), len(batch), world)).backward()
            for parameter in model.parameters():
                all_reduce(parameter.grad)
            optimizer.step()

    return answer


_as_found = _worker(
    lambda batch, rank, world: batch[: -(-len(batch) // world)],
    lambda mine, all_, world: 1 / world,
    clear=False,
)
_one_shard = _worker(
    lambda batch, rank, world: batch[: -(-len(batch) // world)], lambda mine, all_, world: 1 / world
)
_no_division = _worker(weight=lambda mine, all_, world: 1.0)
_mean_of_means = _worker(weight=lambda mine, all_, world: 1 / world)
_drops_the_rest = _worker(
    lambda batch, rank, world: batch[
        rank * (len(batch) // world) : (rank + 1) * (len(batch) // world)
    ],
    lambda mine, all_, world: 1 / world,
)
_everything_everywhere = _worker(
    lambda batch, rank, world: batch, lambda mine, all_, world: 1 / world
)
_never_clears = _worker(weight=lambda mine, all_, world: 1 / all_, reduction="sum", clear=False)

SHARD = Exercise(
    name="train_on_rank",
    points=3,
    task=SHARD_TASK,
    cases=shard_cases,
    deal=deal_shards,
    drive=drive_train_on_rank,
    assess=assess_shards,
    reference=train_on_rank,
    wrong=(
        Wrong(
            _as_found,
            "As it was found: every rank takes the first part of the batch, whatever its number, "
            "so the rest trains nothing; and "
            "the gradients of former batches are never cleared.",
        ),
        Wrong(
            _one_shard,
            "All ranks still take the same part of the batch. Which part is a rank's must depend "
            "on its number.",
        ),
        Wrong(
            _no_division,
            "Each rank's mean is added up and nothing is divided: the step is as many times too "
            "long as there are ranks.",
        ),
        Wrong(
            _mean_of_means,
            "A mean of the ranks' means gives each rank the same say, although one of them has a "
            "sample more, or none at all.",
        ),
        Wrong(
            _drops_the_rest,
            "Parts of len(batch) // world samples leave some over, and these take part in "
            "no update.",
        ),
        Wrong(
            _everything_everywhere,
            "The weights are right, but each rank computes the whole batch: nothing is shared out, "
            "and nothing can be gained.",
        ),
        Wrong(
            _never_clears,
            "The first update is right, the later ones repeat former gradients: clear them before "
            "each backward.",
        ),
    ),
)


# 3. target: as many ranks as pay
#   ------------------------------------------------------------------------------------------

PLAN_TASK = """**Target:** the shortest step, by the model of this chapter. With *p* ranks a step
takes

- ⌈`batch_size` / p⌉ · `seconds_per_sample`, for the rank that has most to compute, and
- 2(p − 1) · `latency` + 2(p − 1)/p · `gradient_bytes` / `bytes_per_second`, for the ring, none of
  it hidden.

Write `best_ranks(batch_size, seconds_per_sample, gradient_bytes, latency, bytes_per_second, most)`:
return two things, the number of ranks from 1 to `most` with the shortest step (the smallest such
number, where some are equal), and the seconds of that step."""


def plan_cases(rng: random.Random) -> Iterator[Case]:
    plain = {
        "batch_size": 13,
        "seconds_per_sample": 1e-3,
        "gradient_bytes": 4_000_000,
        "latency": 5e-5,
        "bytes_per_second": 1e9,
    }
    yield {**plain, "most": 6}  # 13 samples leave one over for any even number of ranks
    yield {
        **plain,
        "batch_size": 32,
        "latency": 2e-3,
        "most": 16,
    }  # waiting for turns outweighs all else beyond a few ranks
    yield {**plain, "seconds_per_sample": 1e-6, "most": 8}  # best left to one
    for _ in range(8):
        yield {
            "batch_size": rng.randrange(16, 200),
            "seconds_per_sample": 10 ** rng.uniform(-4, -3),
            "gradient_bytes": rng.randrange(10**5, 10**7),
            "latency": 10 ** rng.uniform(-4.5, -3),
            "bytes_per_second": 10 ** rng.uniform(8.5, 10),
            "most": rng.randrange(4, 32),
        }


def drive_best_ranks(answer, case):
    names = (
        "batch_size",
        "seconds_per_sample",
        "gradient_bytes",
        "latency",
        "bytes_per_second",
        "most",
    )
    ranks, seconds = answer(*(case[name] for name in names))
    return {"ranks": ranks, "microseconds": 1e6 * seconds}  # a number that the tolerance can see


def _best(seconds_with):
    def answer(batch_size, seconds_per_sample, gradient_bytes, latency, bytes_per_second, most):
        rules = {
            p: seconds_with(
                p, batch_size, seconds_per_sample, gradient_bytes, latency, bytes_per_second
            )
            for p in range(1, most + 1)
        }
        best = min(rules, key=rules.get)
        return best, rules[best]

    return answer


def _seconds(p, n, per_sample, size, latency, speed):
    return -(-n // p) * per_sample + 2 * (p - 1) * latency + 2 * (p - 1) / p * size / speed


best_ranks = _best(_seconds)
_no_latency = _best(
    lambda p, n, per_sample, size, latency, speed: _seconds(p, n, per_sample, size, 0.0, speed)
)
_rounds_nothing = _best(
    lambda p, n, per_sample, size, latency, speed: (
        n / p * per_sample + 2 * (p - 1) * latency + 2 * (p - 1) / p * size / speed
    )
)
_all_to_all = _best(
    lambda p, n, per_sample, size, latency, speed: (
        -(-n // p) * per_sample + 2 * (p - 1) * latency + (p - 1) * size / speed
    )
)


def _the_more_the_better(
    batch_size, seconds_per_sample, gradient_bytes, latency, bytes_per_second, most
):
    return most, _seconds(
        most, batch_size, seconds_per_sample, gradient_bytes, latency, bytes_per_second
    )


PLAN = Exercise(
    name="best_ranks",
    points=2,
    task=PLAN_TASK,
    cases=plan_cases,
    drive=drive_best_ranks,
    reference=best_ranks,
    wrong=(
        Wrong(
            _no_latency,
            "Each of the ring's 2(p − 1) turns takes its `latency`, however small the chunk: it is "
            "missing.",
        ),
        Wrong(
            _rounds_nothing,
            "A sample cannot be cut: the rank with most to compute has ⌈batch_size / p⌉ of them. "
            "Round up.",
        ),
        Wrong(
            _all_to_all,
            "You let each rank send its gradient to all others. Round the ring it sends 2(p − 1)/p "
            "of it, less than twice its size.",
        ),
        Wrong(
            _the_more_the_better,
            "More ranks are not always better: beyond some number each adds more waiting than it "
            "takes off the computing. Try "
            "all from 1 to `most`.",
        ),
    ),
)
