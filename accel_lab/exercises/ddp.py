"""Exercises of chapter 16: a weighted average round a ring, a worker to repair, and how many ranks
pay. The ranks' messages are carried, and counted, by whoever judges.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch.nn.functional import cross_entropy

from accel_lab.exercises import Case, Exercise, Wrong, changed
from accel_lab.exercises._data import normal, shuffled, whole

CLASSES, WIDTH, SAMPLES = 4, 5, 24

# ---- build: a weighted average, round the ring to the left, under a byte budget ----


def ring_average_cases(rng: random.Random) -> Iterator[Case]:
    sizes = [(world, world * rng.randrange(2, 6) + rng.randrange(1, world)) for world in (3, 2, 5)]
    for world, n in (*sizes, (4, 9), (3, 3 * rng.randrange(2, 6)), (1, rng.randrange(2, 6))):
        samples = [rng.randrange(1, 9) for _ in range(world)]
        samples[0] += 10  # never equal
        yield {
            "gradients": [normal(rng, n) for _ in range(world)],
            "shares": [count / sum(samples) for count in samples],
        }


def ring_average_deal(case: Case) -> list[Case]:
    pairs = zip(case["gradients"], case["shares"], strict=True)
    return [
        {"gradient": gradient, "share": share, "rank": rank, "world": len(case["shares"])}
        for rank, (gradient, share) in enumerate(pairs)
    ]


def ring_average_drive(answer, part, links):
    rank, world = part["rank"], part["world"]
    left, right = (rank - 1) % world, (rank + 1) % world
    return answer(
        part["gradient"],
        part["share"],
        rank,
        world,
        lambda tensor: links.send(left, tensor),
        lambda: links.receive(right),
    )


def ring_average_assess(returned, case: Case):
    n, world, size = len(case["gradients"][0]), len(case["shares"]), case["gradients"][0].itemsize
    # a shape carries numbers, too, and so does the dtype of nothing
    sent = [
        sum(max(1, -(-tensor.nbytes // size)) + 4 * max(0, tensor.dim() - 1) for tensor in tensors)
        for tensors in returned["messages"]
    ]
    averages = {f"average on rank {rank}": one for rank, one in enumerate(returned["ranks"])}
    return {**averages, "within the budget": max(sent) <= 2 * (world - 1) * -(-n // world)}


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


def _turns_right(gradient, share, rank, world, send, receive):
    total = gradient * share
    chunks = total.tensor_split(world)
    for turn in range(world - 1):
        send(chunks[(rank - turn) % world])
        chunks[(rank - turn - 1) % world].add_(receive())
    for turn in range(world - 1):
        send(chunks[(rank + 1 - turn) % world])
        chunks[(rank - turn) % world].copy_(receive())
    return total


def _weighed_at_every_turn(gradient, share, rank, world, send, receive):
    total = gradient.clone()
    chunks = total.tensor_split(world)
    for turn in range(world - 1):
        send(chunks[(rank + turn) % world] * share)
        chunks[(rank + turn + 1) % world].add_(receive())
    chunks[(rank - 1) % world].mul_(share)
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


def _forgets_the_rest(gradient, share, rank, world, send, receive):
    size = len(gradient) // world * world
    whole = ring_average(gradient[:size], share, rank, world, send, receive)
    return torch.cat([whole, gradient[size:] * share])


def _chunks_beside_the_total(gradient, share, rank, world, send, receive):
    total = gradient * share
    chunks = list(total.tensor_split(world))
    for turn in range(world - 1):
        send(chunks[(rank + turn) % world])
        chunks[(rank + turn + 1) % world] = chunks[(rank + turn + 1) % world] + receive()
    for turn in range(world - 1):
        send(chunks[(rank + turn - 1) % world])
        chunks[(rank + turn) % world] = receive()
    return total


REDUCE_SCATTER = """\
    for turn in range(world - 1):
        send(chunks[(rank + turn) % world])
"""

ALL_GATHER = """\
    for turn in range(world - 1):
        send(chunks[(rank + turn - 1) % world])
        chunks[(rank + turn) % world].copy_(receive())
"""

ALL_GATHER_TOO_FAR = """\
    for turn in range(world - 1):
        send(chunks[(rank + turn) % world])
        chunks[(rank + turn + 1) % world].copy_(receive())
"""

RING_AVERAGE = Exercise(
    name="ring_average",
    points=3,
    task="""Every rank has a gradient of *n* numbers and the `share` of the batch it came from;
the shares of all ranks add up to 1, and they are not equal.

Write `ring_average(gradient, share, rank, world, send, receive)`: return, on every rank, the sum
over the ranks of share × gradient. This ring turns **to the left**: `send(tensor)` goes to rank −
1, `receive()` waits for what rank + 1 has sent, and rank 0's left neighbour is the last rank. No
rank may send more than 2 · (world − 1) · ⌈n / world⌉ numbers. *n* need not divide by `world`, and
`world` may be 1.""",
    cases=ring_average_cases,
    deal=ring_average_deal,
    drive=ring_average_drive,
    assess=ring_average_assess,
    reference=ring_average,
    reasoning="""Weighting comes first: the sum over the ranks of share × gradient is an ordinary
sum of `gradient * share`. Then two halves of world − 1 turns. In reduce-scatter a rank sends the
chunk that it completed in the turn before, and adds what comes from the right to the next one;
after them rank r owns the complete chunk r − 1. In all-gather the complete chunks go round and
replace what was there. Every turn sends one chunk, 1/world of the gradient. The indices count
upwards because this ring turns to the left.""",
    wrong=(
        Wrong(
            _all_of_it_round,
            "The averages are right, but whole gradients went round: (world − 1) · n numbers from "
            "each rank. Cut the gradient into `world` chunks and pass one chunk on at each turn.",
        ),
        Wrong(
            _turns_right,
            "These chunk numbers are those of a ring that turns to the right. Here rank + 1 sends "
            "to you: in turn 0 you get its chunk number rank + 1, so count up, not down.",
        ),
        Wrong.changed(
            ring_average,
            "gradient * share",
            "gradient * 1.0",
            "You add up what the ranks have, without their shares: the step grows with the number "
            "of ranks.",
        ),
        Wrong.changed(
            ring_average,
            "gradient * share",
            "gradient / world",
            "1/world gives every rank the same weight. The shares are not equal: a rank with more "
            "samples counts for more.",
        ),
        Wrong.changed(
            ring_average,
            "    return total\n",
            "    return total / world\n",
            "You divide by the number of ranks as well. The shares add up to 1, so the sum of "
            "share × gradient is the average already.",
        ),
        Wrong(
            _weighed_at_every_turn,
            "A rank's share belongs to its own gradient alone. You also weigh what came from the "
            "other ranks: multiply once, before the first turn.",
        ),
        Wrong.changed(
            ring_average,
            ALL_GATHER,
            "",
            "After world − 1 turns each rank has one complete chunk, and only that one. The "
            "complete chunks have to go round, too.",
        ),
        Wrong.changed(
            ring_average,
            ALL_GATHER,
            ALL_GATHER_TOO_FAR,
            "The first half is right, and the second begins with the wrong chunk: after it rank r "
            "owns the complete chunk r − 1, so this one goes out first.",
        ),
        Wrong.changed(
            ring_average,
            ".copy_(receive())",
            ".add_(receive())",
            "In the second half the chunks that arrive are complete: they replace what is there. "
            "Yours adds them to it.",
        ),
        Wrong.changed(
            ring_average,
            "tensor_split(world)",
            "chunk(world)",
            "chunk(world) can give fewer than `world` chunks: 9 numbers in 4 make 3, 3, 3. "
            "`tensor_split(world)` always makes `world` of them.",
        ),
        Wrong(
            _chunks_beside_the_total,
            "You return your own share × gradient: nothing that came from the others is in it. "
            "Add to the chunks in place, as add_ does, or put the new chunks together: torch.cat.",
        ),
        Wrong.changed(
            ring_average,
            REDUCE_SCATTER,
            REDUCE_SCATTER.replace("world - 1", "world"),
            "Reduce-scatter takes world − 1 turns. Yours goes on for one more, which adds to a "
            "chunk what is in it already.",
        ),
        Wrong(
            _forgets_the_rest,
            "n does not divide by the number of ranks, and the numbers left over at the end never "
            "went round. `tensor_split(world)` makes chunks of unequal size.",
        ),
    ),
)


# ---- diagnose: two workers, one shard ----


def train_on_rank_cases(rng: random.Random) -> Iterator[Case]:
    for world, smallest in ((2, 2), (3, 4), (3, 1), (2, 1)):
        sizes = [world * rng.randrange(2, 4) + 1, smallest, world * 2]
        order = shuffled(rng, SAMPLES)
        yield {
            "world": world,
            "weight": normal(rng, CLASSES, WIDTH),
            "x": normal(rng, SAMPLES, WIDTH),
            "y": whole(rng, 0, CLASSES, SAMPLES),
            "batches": [batch.clone() for batch in order[: sum(sizes)].split(sizes)],
        }


def train_on_rank_deal(case: Case) -> list[Case]:
    return [{**case, "rank": rank} for rank in range(case["world"])]


def train_on_rank_drive(answer, part, links):
    import torch

    weight = part["weight"]
    model = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    model.weight.data.copy_(weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    answer(
        model,
        optimizer,
        part["x"],
        part["y"],
        part["batches"],
        part["rank"],
        part["world"],
        links.all_reduce,
    )
    return model.weight.detach().clone()


def train_on_rank_assess(returned, case: Case):
    """Who computed what: a rank's part of the gradient is a sum over samples, and tells which."""
    weight, shared_out = case["weight"].double(), True
    shape = weight.shape
    parts = [
        [m.double().reshape(shape) for m in given if m.numel() == weight.numel()]
        for given in returned["messages"]
    ]
    for number, batch in enumerate(case["batches"]):
        x, y = case["x"][batch].double(), case["y"][batch]
        residual = (x @ weight.T).softmax(1) - torch.nn.functional.one_hot(y, CLASSES)
        # the gradient of each sample [n, classes, width]
        each = residual.unsqueeze(2) * x.unsqueeze(1)
        if all(number < len(given) for given in parts):
            mine = torch.stack([given[number].flatten() for given in parts], 1)
            share = torch.linalg.lstsq(each.flatten(1).T, mine).solution  # of each sample [n, rank]
            has = share > share.max() / 2
            counts = has.sum(0)
            shared_out &= bool((has.sum(1) == 1).all() and counts.max() - counts.min() <= 1)
        else:
            shared_out = False
        weight = weight - 0.5 * each.mean(0)
    weights = {f"weight on rank {rank}": one for rank, one in enumerate(returned["ranks"])}
    return {**weights, "each sample is one rank's, and the parts differ by one at most": shared_out}


def train_on_rank(model, optimizer, x, y, batches, rank, world, all_reduce):
    for batch in batches:
        mine = batch[rank::world]
        optimizer.zero_grad()
        loss = cross_entropy(model(x[mine]), y[mine], reduction="sum") / len(batch)
        loss.backward()
        for parameter in model.parameters():
            all_reduce(parameter.grad)
        optimizer.step()


SUM_OVER_BATCH = 'y[mine], reduction="sum") / len(batch)'
FIRST_PART = "batch[: -(-len(batch) // world)]"
CLEAR = "        optimizer.zero_grad()\n"
_first_part = changed(train_on_rank, "batch[rank::world]", FIRST_PART)
_no_step_without_samples = changed(
    train_on_rank,
    "        optimizer.step()\n",
    "        if len(mine):\n            optimizer.step()\n",
)
_in_a_row = changed(train_on_rank, "batch[rank::world]", "batch.tensor_split(world)[rank]")

TRAIN_ON_RANK = Exercise(
    name="train_on_rank",
    points=3,
    task="""This worker runs on every rank. Nothing crashes, the loss falls, and it is not the
training of one process with the whole batch: it has several faults. Repair it.

`batches` is a list of index tensors, the same on all ranks, of different lengths; each is one
update with the mean loss over **all** its samples. Every sample is to be computed by one rank
alone, and the parts of the ranks may differ by one sample at most. A batch may have fewer samples
than there are ranks. The models begin equal; `all_reduce(tensor)` replaces a tensor by its sum over
the ranks, and all ranks have to call it equally often. What a rank gives to it must be its part of
the gradient: it tells who computed what.""",
    cases=train_on_rank_cases,
    deal=train_on_rank_deal,
    drive=train_on_rank_drive,
    assess=train_on_rank_assess,
    reference=train_on_rank,
    reasoning="""`batch[rank::world]` deals the samples out like cards: every sample to one rank,
and the parts differ by one at most; a part may even be empty. Each rank's loss is a *sum* divided
by the size of the whole batch, so that adding up the ranks' gradients gives the gradient of the
mean over the batch, however unequal the parts are. An empty part gives a sum of 0 and a gradient
of 0, and the rank still takes part in every all-reduce.""",
    wrong=(
        Wrong(
            changed(changed(_first_part, SUM_OVER_BATCH, "y[mine]) / world"), CLEAR, ""),
            "This is the worker as found. Take a batch of five samples on two ranks: which of them "
            "does rank 0 compute, which does rank 1? And what is in .grad when the second batch "
            "begins?",
            given=True,
        ),
        Wrong.changed(
            train_on_rank,
            "batch[rank::world]",
            FIRST_PART,
            "All ranks take the same part of the batch. Which part is a rank's must depend on its "
            "number.",
            also=(changed(_first_part, SUM_OVER_BATCH, "y[mine]) / world"),),
        ),
        Wrong.changed(
            train_on_rank,
            SUM_OVER_BATCH,
            "y[mine])",
            "Each rank's mean is added up and nothing is divided: the step is as many times too "
            "large as there are ranks.",
        ),
        Wrong.changed(
            train_on_rank,
            SUM_OVER_BATCH,
            "y[mine]) / world",
            "A mean of the ranks' means gives each rank the same weight, although one of them has "
            "a sample more, or none at all.",
            also=(changed(_in_a_row, SUM_OVER_BATCH, "y[mine]) / world"),),
        ),
        Wrong.changed(
            train_on_rank,
            SUM_OVER_BATCH,
            'y[mine], reduction="sum")',
            "The step is that of the sum over the batch, and grows with its size. The mean over "
            "all samples of the batch is asked for: divide by len(batch).",
        ),
        Wrong.changed(
            train_on_rank,
            SUM_OVER_BATCH,
            SUM_OVER_BATCH + " / world",
            "The step is too small, by the number of ranks. Each rank's sum, divided by the size "
            "of the whole batch, is its part of the mean: the parts have only to be added up.",
            also=(
                changed(
                    train_on_rank,
                    "            all_reduce(parameter.grad)\n",
                    "            all_reduce(parameter.grad)\n            parameter.grad /= world\n",
                ),
            ),
        ),
        Wrong(
            _no_step_without_samples,
            "A rank without a sample takes part in all_reduce, and then leaves its own weights as "
            "they are. It has to step as the others do, or the models differ.",
        ),
        Wrong.changed(
            train_on_rank,
            CLEAR,
            CLEAR + "        if not len(mine):\n            continue\n",
            "A rank without a sample leaves the update out, and the others wait for it in "
            "all_reduce. It has to take part in each, with a gradient of 0, and to step.",
        ),
        Wrong.changed(
            train_on_rank,
            "batch[rank::world]",
            "batch[rank * (len(batch) // world) : (rank + 1) * (len(batch) // world)]",
            "Parts of len(batch) // world samples leave some over, and these take part in "
            "no update.",
        ),
        Wrong(
            changed(
                changed(train_on_rank, "batch[rank::world]", "batch"),
                SUM_OVER_BATCH,
                "y[mine]) / world",
            ),
            "The weights are right, but each rank computes the whole batch: nothing is shared out, "
            "and nothing can be gained.",
        ),
        Wrong.changed(
            train_on_rank,
            CLEAR,
            "",
            "The first update is right, the later ones repeat earlier gradients: clear them before "
            "each backward.",
        ),
        Wrong.changed(
            train_on_rank,
            "        for parameter in model.parameters():\n"
            "            all_reduce(parameter.grad)\n",
            "",
            "The gradients are not exchanged before the step: each rank trains a model on its own "
            "part.",
        ),
    ),
)


# ---- target: as many ranks as pay ----


def best_ranks_cases(rng: random.Random) -> Iterator[Case]:
    plain = {
        "batch_size": 13,
        "seconds_per_sample": 1e-3,
        "gradient_bytes": 4_000_000,
        "latency": 5e-5,
        "bytes_per_second": 1e9,
    }
    yield {**plain, "most": 6}  # 13 samples leave one over for any even number of ranks
    # waiting for turns outweighs all else beyond a few ranks
    yield {**plain, "batch_size": 32, "latency": 2e-3, "most": 16}
    yield {**plain, "seconds_per_sample": 1e-6, "most": 8}  # best left to one
    # equal steps with one rank and with two, to the last digit
    second = 2.0 ** -rng.randrange(4, 9)
    latency, size = second * rng.randrange(1, 3), 2 ** rng.randrange(20, 23)
    yield {
        "batch_size": 12,
        "seconds_per_sample": second,
        "gradient_bytes": size,
        "latency": latency,
        "bytes_per_second": size / (6 * second - 2 * latency),
        "most": 4,
    }
    # a third rank brings nothing, and a fourth does
    yield {**plain, "batch_size": 4, "seconds_per_sample": 1e-2, "most": rng.randrange(4, 7)}
    # more than there are would pay
    yield {**plain, "batch_size": 64, "seconds_per_sample": 1e-2, "most": rng.randrange(3, 6)}
    for _ in range(8):
        yield {
            "batch_size": rng.randrange(16, 200),
            "seconds_per_sample": 10 ** rng.uniform(-4, -3),
            "gradient_bytes": rng.randrange(10**5, 10**7),
            "latency": 10 ** rng.uniform(-4.5, -3),
            "bytes_per_second": 10 ** rng.uniform(8.5, 10),
            "most": rng.randrange(4, 32),
        }


def best_ranks_drive(answer, case):
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


def best_ranks(batch_size, seconds_per_sample, gradient_bytes, latency, bytes_per_second, most):
    seconds = {}
    for p in range(1, most + 1):
        compute = -(-batch_size // p) * seconds_per_sample
        turns = 2 * (p - 1)
        seconds[p] = compute + turns * latency + turns / p * gradient_bytes / bytes_per_second
    best = min(seconds, key=seconds.get)
    return best, seconds[best]


def _until_it_rises(
    batch_size, seconds_per_sample, gradient_bytes, latency, bytes_per_second, most
):
    best, least = 1, batch_size * seconds_per_sample
    for p in range(2, most + 1):
        compute, turns = -(-batch_size // p) * seconds_per_sample, 2 * (p - 1)
        seconds = compute + turns * latency + turns / p * gradient_bytes / bytes_per_second
        if seconds >= least:
            break
        best, least = p, seconds
    return best, least


BEST_RANKS = Exercise(
    name="best_ranks",
    points=2,
    task="""**Target:** the shortest step, by the model of this chapter. With *p* ranks a step
takes

- ⌈`batch_size` / p⌉ · `seconds_per_sample`, for the rank that has most to compute, and
- 2(p − 1) · `latency` + 2(p − 1)/p · `gradient_bytes` / `bytes_per_second`, for the ring, none of
  it hidden.

Write `best_ranks(batch_size, seconds_per_sample, gradient_bytes, latency, bytes_per_second, most)`:
return two things, the number of ranks from 1 to `most` with the shortest step (the smallest such
number, where some are equal), and the seconds of that step.""",
    cases=best_ranks_cases,
    drive=best_ranks_drive,
    reference=best_ranks,
    reasoning="""Computing gets shorter in steps, because the slowest rank has ⌈batch / p⌉ samples.
The ring costs 2(p − 1) messages, each with its latency, and moves 2(p − 1)/p gradients. The first
falls with p and the second grows, so somewhere there is a best; with `most` this small it is
simplest to try all. `min` returns the first of equal ones, which is the smallest p.""",
    wrong=(
        Wrong.changed(
            best_ranks,
            "turns * latency + ",
            "",
            "Each of the ring's 2(p − 1) turns takes its `latency`, however small the chunk: it is "
            "missing.",
        ),
        Wrong.changed(
            best_ranks,
            "-(-batch_size // p)",
            "batch_size / p",
            "A sample cannot be cut: the rank with most to compute has ⌈batch_size / p⌉ of them. "
            "Round up.",
            also=(changed(best_ranks, "-(-batch_size // p)", "batch_size // p"),),
        ),
        Wrong.changed(
            best_ranks,
            "turns / p *",
            "(p - 1) *",
            "You let each rank send its gradient to all others. Round the ring it sends 2(p − 1)/p "
            "of it, less than twice its size.",
        ),
        Wrong.changed(
            best_ranks,
            "turns = 2 * (p - 1)",
            "turns = p - 1",
            "You count one half of the ring's turns. It goes round twice, once to add up and once "
            "to hand out the sums: 2(p − 1) turns.",
        ),
        Wrong.changed(
            best_ranks,
            "min(seconds, key=seconds.get)",
            "min(reversed(seconds), key=seconds.get)",
            "Where several numbers of ranks give the same shortest step, the smallest of them is "
            "asked for. Yours gives the largest.",
        ),
        Wrong(
            _until_it_rises,
            "You stop at the first number of ranks that makes the step no shorter. A later one may "
            "be better: ⌈batch_size / p⌉ falls in steps. Try all from 1 to `most`.",
        ),
        Wrong.changed(
            best_ranks,
            "min(seconds, key=seconds.get)",
            "most",
            "More ranks are not always better: beyond some number each adds more waiting than it "
            "takes off the computing. Try all from 1 to `most`.",
        ),
        Wrong.changed(
            best_ranks,
            "range(1, most + 1)",
            "range(1, batch_size + 1)",
            "There are only `most` ranks: look at the numbers from 1 to `most`.",
        ),
        Wrong.changed(
            best_ranks,
            "range(1, most + 1)",
            "range(1, most)",
            "range(1, most) leaves out `most` itself, which may be the best.",
        ),
    ),
)
