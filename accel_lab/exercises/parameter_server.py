"""Exercises of chapter 17: a server with bounded staleness, a worker and a server to repair, and
the fastest way to share gradients.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from accel_lab.exercises import Case, Exercise, Wrong, changed
from accel_lab.exercises._data import normal, shuffled

SAMPLES, WIDTH = 24, 5

# ---- build: bounded staleness, played in one process ----


def serve_bounded_cases(rng: random.Random) -> Iterator[Case]:
    # (seconds of each worker, bound): a steady straggler, ties, two speeds, nobody slow
    pace = rng.randrange(5, 8)
    shapes = [([1.0, float(pace)], 2), ([2.0, 1.0, 2.0], 0), ([1.0, 2.0, 9.0], 3)]
    shapes += [([1.0, 7.0, 3.0, 2.0], 1), ([3.0, 5.0, 4.0], 30), ([2.0], 0)]
    some = [(*shape, rng.randrange(20, 26)) for shape in shapes]
    # the last push comes while one of them waits
    for seconds, bound, pushes in (*some, ([1.5, 2.25, 7.5], 0, 3 * rng.randrange(5, 8) + 2)):
        yield {
            "seconds": seconds,
            "bound": bound,
            "pushes": pushes,
            "rate": 0.1 / len(seconds),
            "weights": normal(rng, WIDTH),
            "curvature": [0.5 + rng.random() for _ in range(WIDTH)],
            "centers": normal(rng, len(seconds), WIDTH),  # where each worker's data pull to
        }


def serve_bounded_drive(answer, case):
    import torch

    centers, weights = case["centers"], case["weights"]
    curvature = torch.tensor(case["curvature"], dtype=weights.dtype)
    weights, waited = answer(
        case["seconds"],
        lambda weights, worker: curvature * (weights - centers[worker]),
        weights.clone(),
        case["rate"],
        case["bound"],
        case["pushes"],
    )
    return {"weights": weights, "seconds waited": [float(each) for each in waited]}


def serve_bounded(seconds, gradient, weights, rate, bound, pushes):
    workers = range(len(seconds))
    clock, waited, arrived = [0 for _ in workers], [0.0 for _ in workers], [0.0 for _ in workers]
    held, due = [weights for _ in workers], dict(enumerate(seconds))
    for _ in range(pushes):
        worker = min(due, key=lambda one: (due[one], one))
        now = arrived[worker] = due.pop(worker)
        weights = weights - rate * gradient(held[worker], worker)
        clock[worker] += 1
        for one in workers:
            if one not in due and clock[one] - min(clock) <= bound:
                waited[one] += now - arrived[one]
                held[one], due[one] = weights, now + seconds[one]
    return weights, waited


_pulls_at_its_push = changed(
    changed(
        serve_bounded,
        "        clock[worker] += 1\n",
        "        clock[worker] += 1\n        held[worker] = weights\n",
    ),
    "held[one], due[one] = weights, now",
    "due[one] = now",
)
_pulls_before_its_push = changed(
    changed(
        serve_bounded,
        "        weights = weights - rate *",
        "        before = weights\n        weights = weights - rate *",
    ),
    "held[one], due[one] = weights, now",
    "held[one], due[one] = before, now",
)
_counts_open_waits = changed(
    serve_bounded,
    "    return weights, waited",
    "    return weights, [\n"
    "        waited[one] + (now - arrived[one] if one not in due else 0.0) for one in workers\n"
    "    ]",
)

SERVE_BOUNDED = Exercise(
    name="serve_bounded",
    points=3,
    task="""A parameter server with **bounded staleness**, played in one process. Worker *w* takes
`seconds[w]` for a gradient, always. Whatever else happens takes no time.

Write `serve_bounded(seconds, gradient, weights, rate, bound, pushes)`. All workers pull at second
0. `gradient(weights, worker)` is the gradient at the weights that the worker holds. When a worker
has computed it, it pushes, and the server subtracts `rate` × gradient **from its own weights**. A
worker gets new weights, and goes on, as soon as it is at most `bound` pushes ahead of the worker
with the fewest; until then it waits. Of pushes at the same second, that of the lower worker comes
first.

After `pushes` pushes return the server's weights, and a list of the seconds that each worker has
waited. A wait that ends with the last push counts; one that has not ended by then does not.""",
    cases=serve_bounded_cases,
    drive=serve_bounded_drive,
    reference=serve_bounded,
    reasoning="""The state of each worker is: how often it has pushed (`clock`), the weights that it
pulled (`held`), and when it will push next (`due`; a worker that waits has no such time). The next
event is the smallest `due`. The gradient belongs to the weights that the worker *pulled*, and is
subtracted from the weights that the server has *now*. Then look at **all** workers that wait, not
only at the one that has just pushed: if it was the slowest, its push lets others go on. A worker
that goes on begins its gradient now, so its wait is `now` minus the second at which it pushed.""",
    wrong=(
        Wrong.changed(
            serve_bounded,
            "weights = weights - rate",
            "weights = held[worker] - rate",
            "A lost update: you write what the worker pulled, minus its gradient. That erases all"
            " that others pushed in between. Subtract from the server's own weights.",
        ),
        Wrong.changed(
            serve_bounded,
            "gradient(held[worker], worker)",
            "gradient(weights, worker)",
            "You take the gradient at the server's newest weights. A worker knows only the "
            "weights that it pulled: keep them for each worker. (An update in place, with -=, "
            "changes the kept ones, too.)",
        ),
        Wrong.changed(
            serve_bounded,
            " and clock[one] - min(clock) <= bound",
            "",
            "Nobody ever waits: the bound is not looked at. A worker more than `bound` pushes "
            "ahead of the one with the fewest has to wait.",
        ),
        Wrong.changed(
            serve_bounded,
            "<= bound",
            "<= bound + 1",
            "Your bound is one too large: after a push that makes a worker bound + 1 ahead, it "
            "waits.",
        ),
        Wrong.changed(
            serve_bounded,
            "<= bound",
            "< max(1, bound)",
            "Your bound is one too small: a worker that is just `bound` pushes ahead may still go"
            " on.",
        ),
        Wrong.changed(
            serve_bounded,
            "weights - rate * gradient",
            "weights - rate / len(seconds) * gradient",
            "You divide each push by the number of workers. That is the average of a round; here "
            "there are no rounds, and each push counts in full.",
        ),
        Wrong.changed(
            serve_bounded,
            "key=lambda one: (due[one], one)",
            "key=lambda one: (clock[one], one)",
            "You take the workers' pushes in turn. They are applied in the order of arrival: the "
            "next one is that with the smallest time.",
        ),
        Wrong.changed(
            serve_bounded,
            "key=lambda one: (due[one], one)",
            "key=lambda one: (due[one], -one)",
            "Of two pushes at the same second you take that of the higher worker first.",
        ),
        Wrong.changed(
            serve_bounded,
            "one not in due and",
            "one == worker and",
            "Only the worker that has just pushed can go on in yours. Its push may let another "
            "one go on, which has waited for it: look at all that wait.",
        ),
        Wrong.changed(
            serve_bounded,
            "now + seconds[one]",
            "arrived[one] + seconds[one]",
            "A worker that has waited begins its gradient when it gets weights, not when it "
            "pushed the one before.",
        ),
        Wrong.changed(
            serve_bounded,
            "held[one], due[one] = weights, now",
            "due[one] = now",
            "Your workers never pull: all gradients are taken at the weights of second 0.",
        ),
        Wrong(
            _pulls_at_its_push,
            "A worker that has waited gets the weights of the moment when it may go on. Yours "
            "keeps those of its own push, and what others pushed meanwhile is missing.",
        ),
        Wrong(
            _pulls_before_its_push,
            "Your workers pull the weights from before the push that has just come. The server "
            "subtracts it first, and then hands out new weights.",
        ),
        Wrong.changed(
            serve_bounded,
            "now - arrived[one]",
            "now + seconds[one] - arrived[one]",
            "You count the time in which a worker computes as well. It waits from its push to the "
            "moment when it gets new weights.",
        ),
        Wrong.changed(
            serve_bounded,
            "waited[one] += now",
            "waited[one] = now",
            "You keep the last wait alone. Add up all waits of a worker.",
        ),
        Wrong(
            _counts_open_waits,
            "You count waits that have not ended at the last push. Only a wait that has ended "
            "counts.",
        ),
    ),
)


# ---- diagnose: a synchronous server that is none ----


def train_with_server_cases(rng: random.Random) -> Iterator[Case]:
    for world, extra in ((3, 1), (4, 2), (3, 0), (2, 1)):
        workers = world - 1
        first = workers * rng.randrange(2, 4) + min(extra, workers - 1)
        sizes = [first, workers + 1, 2 * workers + 1]
        order = shuffled(rng, SAMPLES)
        yield {
            "world": world,
            "rate": 0.2,
            "weights": normal(rng, WIDTH),
            "x": normal(rng, SAMPLES, WIDTH),
            "y": normal(rng, SAMPLES),
            "batches": [batch.clone() for batch in order[: sum(sizes)].split(sizes)],
        }


def train_with_server_deal(case: Case) -> list[Case]:
    return [{**case, "rank": rank} for rank in range(case["world"])]


def train_with_server_drive(answer, part, links):
    x, y = part["x"], part["y"]

    def gradient(weights, batch):
        return x[batch].T @ (x[batch] @ weights - y[batch]) / len(batch)

    return answer(
        part["weights"].clone(),
        part["batches"],
        gradient,
        part["rate"],
        part["rank"],
        part["world"],
        links.send,
        links.receive,
    )


def train_with_server_assess(returned, case: Case):
    weights = {f"weights on rank {rank}": one for rank, one in enumerate(returned["ranks"])}
    _, *pushed = returned["messages"]
    pushes = {f"pushes of rank {rank}": list(sent) for rank, sent in enumerate(pushed, 1)}
    answers = len(returned["messages"][0])
    most = (case["world"] - 1) * len(case["batches"])
    return {**weights, **pushes, "answers of the server too many": max(0, answers - most)}


def train_with_server(weights, batches, gradient, rate, rank, world, send, receive):
    workers = range(1, world)
    for batch in batches:
        if rank == 0:
            pushed = [receive(worker) for worker in workers]
            weights = weights - rate * sum(pushed)
            for worker in workers:
                send(worker, weights)
        else:
            mine = batch[rank - 1 :: world - 1]
            send(0, gradient(weights, mine) * (len(mine) / len(batch)))
            weights = receive(0)
    return weights


ANSWERS_FIRST = """\
            pushed = [receive(worker) for worker in workers]
            for worker in workers:
                send(worker, weights)
            weights = weights - rate * sum(pushed)
"""
ROUND = """\
            pushed = [receive(worker) for worker in workers]
            weights = weights - rate * sum(pushed)
            for worker in workers:
                send(worker, weights)
"""
AT_ONCE = """\
            for worker in workers:
                weights = weights - rate * receive(worker)
                send(worker, weights)
"""
MINE, SHARE = "batch[rank - 1 :: world - 1]", "* (len(mine) / len(batch))"
_at_once = changed(train_with_server, ROUND, AT_ONCE)
_as_found = changed(
    changed(changed(_at_once, SHARE, "/ (world - 1)"), MINE, "batch[rank::world]"),
    "rate * receive(worker)",
    "rate * receive(worker) / (world - 1)",
)

TRAIN_WITH_SERVER = Exercise(
    name="train_with_server",
    points=3,
    task="""This function runs on every rank: rank 0 serves, ranks 1 … `world` − 1 work. It should
be **synchronous** training, equal to one process with the whole batch. Nothing crashes, the loss
falls, and it is not: it has several faults. Repair it.

`batches` is a list of index tensors, the same on all ranks; each is one update with the mean
gradient over **all** its samples, and has more samples than there are workers. Deal them
out like cards, to the workers alone: the first sample to rank 1, the second to rank 2, and so on.
`gradient(weights, indices)` is the *mean* gradient over these samples. What a worker pushes is its
**part** of the batch's gradient, weighted already: the server has only to add up. Each worker and
batch has one push and one answer. `send(rank, tensor)` returns at once, `receive(rank)` waits for
the next tensor from that rank. Return the weights after the last batch on every rank.""",
    cases=train_with_server_cases,
    deal=train_with_server_deal,
    drive=train_with_server_drive,
    assess=train_with_server_assess,
    reference=train_with_server,
    reasoning="""The server has two loops, not one: it takes the pushes of *all* workers, makes one
update, and only then answers. With an answer inside the first loop the first worker goes on with
weights that the second has not touched. A worker's mean over its samples, times `len(mine) /
len(batch)`, is its part of the batch's mean: these parts add up to it, however unequal they are,
and nobody has to divide again. Rank 0 computes nothing, so the samples are dealt out to world − 1
workers, from rank 1 on.""",
    wrong=(
        Wrong(
            _as_found,
            "This is the code as found. Take a batch of five samples and two workers: which "
            "samples does each compute, and which does nobody? By what are their gradients "
            "divided, and how often? And what has the server applied when it answers the first of"
            " them?",
            given=True,
        ),
        Wrong(
            _at_once,
            "The server answers each worker at once: the first one goes on with weights that the "
            "others have not touched. Take all pushes, update once, then answer.",
        ),
        Wrong.changed(
            train_with_server,
            MINE,
            "batch[rank::world]",
            "batch[rank::world] deals the batch out to rank 0 as well, which computes nothing: "
            "those samples are lost. There are world − 1 workers.",
        ),
        Wrong.changed(
            train_with_server,
            MINE,
            "batch.tensor_split(world - 1)[rank - 1]",
            "Each worker has a piece of the batch, samples in a row. They are to be dealt out like "
            "cards: every (world − 1)-th sample is the same worker's.",
        ),
        Wrong.changed(
            train_with_server,
            SHARE,
            "/ (world - 1)",
            "1 / (world − 1) gives every worker the same weight, but one of them may have a "
            "sample more. The weight of a worker's mean is its share of the batch.",
        ),
        Wrong.changed(
            train_with_server,
            ROUND,
            ANSWERS_FIRST,
            "The server answers before it updates: the workers go on with the weights of the "
            "batch before. Take all pushes, update once, then answer.",
        ),
        Wrong.changed(
            train_with_server,
            MINE,
            "batch[rank :: world - 1]",
            "You begin one sample too late: the first sample of the batch is nobody's. Rank 1 "
            "takes the samples from number 0 on, rank 2 from number 1: from rank − 1.",
        ),
        Wrong.changed(
            train_with_server,
            SHARE,
            "* len(mine)",
            "A push is now the sum over the worker's samples, and the step grows with the batch. "
            "Divide by the number of samples of the whole batch.",
        ),
        Wrong.changed(
            train_with_server,
            SHARE,
            "/ len(batch)",
            "You divide a mean by the size of the batch: `gradient` has divided by the worker's "
            "samples already. Multiply by their number first.",
        ),
        Wrong.changed(
            train_with_server,
            "send(0, gradient",
            "send(0, rate * gradient",
            "The rate counts twice, in the push and in the server. Push a gradient: the server "
            "multiplies it by the rate.",
        ),
        Wrong.changed(
            train_with_server,
            SHARE,
            "",
            "The workers push means over their own samples. A push is to be a worker's part, "
            "weighted already: its mean times its share of the batch.",
        ),
        Wrong.changed(
            train_with_server,
            "sum(pushed)",
            "sum(pushed) / len(pushed)",
            "What the workers push are parts of one mean. The server divides their sum once more:"
            " the step is too small.",
        ),
        Wrong.changed(
            train_with_server,
            "weights = receive(0)",
            "weights = weights - rate * gradient(weights, mine); receive(0)",
            "A worker goes on with weights of its own making. What it works with is what the "
            "server answers.",
        ),
        Wrong.changed(
            train_with_server,
            "                send(worker, weights)\n",
            "                send(worker, weights)\n                send(worker, weights)\n",
            "The server answers more than once for each push: the answers wait in the queue, and "
            "a worker reads old weights.",
        ),
    ),
)


# ---- target: the fastest way ----


def best_mode_cases(rng: random.Random) -> Iterator[Case]:
    plain = {"gradient_bytes": 4_000_000, "latency": 1e-4, "bytes_per_second": 1e9}
    even = [0.02, 0.021, 0.019, 0.02]
    yield {**plain, "seconds": even}  # all-reduce: nobody waits long, and bytes decide
    yield {**plain, "seconds": [*even, 0.5], "gradient_bytes": 400_000}  # async: a straggler
    # sync: so small a gradient that turns decide
    yield {**plain, "seconds": [0.02] * 12, "gradient_bytes": 4_000, "latency": 5e-3}
    # async, as fast as the server's link lets it be
    yield {**plain, "seconds": [0.002] * 6 + [0.2], "bytes_per_second": 5e9}
    for _ in range(10):
        seconds = [10 ** rng.uniform(-2, -1) for _ in range(rng.randrange(2, 9))]
        if rng.random() < 0.5:
            seconds[-1] *= 10
        yield {
            "seconds": seconds,
            "gradient_bytes": rng.randrange(10**4, 10**7),
            "latency": 10 ** rng.uniform(-4, -2),
            "bytes_per_second": 10 ** rng.uniform(8.5, 10),
        }


def best_mode_drive(answer, case):
    names = ("seconds", "gradient_bytes", "latency", "bytes_per_second")
    mode, paces = answer(*(case[name] for name in names))
    return {"mode": mode, **{f"gradients/s of {name}": pace for name, pace in paces.items()}}


def best_mode(seconds, gradient_bytes, latency, bytes_per_second):
    workers, wire = len(seconds), gradient_bytes / bytes_per_second
    turns = 2 * (workers - 1)
    ring = max(seconds) + turns * (latency + wire / workers)
    server = max(seconds) + 2 * latency + 2 * workers * wire
    alone = sum(1 / (each + 2 * (latency + wire)) for each in seconds)
    paces = {
        "all-reduce": workers / ring,
        "sync": workers / server,
        "async": min(alone, 1 / (2 * wire)),
    }
    return max(paces, key=paces.get), paces


BEST_MODE = Exercise(
    name="best_mode",
    points=2,
    task="""Predict before you build. Worker *w* takes `seconds[w]` for a gradient of
`gradient_bytes`. A message takes `latency` + bytes / `bytes_per_second`, and a worker waits until
its own messages are through. For W workers:

- `"all-reduce"`: a round is the slowest worker, then 2(W − 1) turns round the ring, each one
  message of 1/W of the gradient; no server;
- `"sync"`: a round is the slowest worker, then `latency`, W gradients into the server's link one
  after another, `latency`, and W times the weights out of it;
- `"async"`: each worker goes round by itself: its gradient, a push, a pull. But the server has one
  link, which carries the bytes of one message at a time, in or out, while latencies overlap: all
  workers together make at most `bytes_per_second` / (2 · `gradient_bytes`).

Write `best_mode(seconds, gradient_bytes, latency, bytes_per_second)`: return the name of the mode
with the most **gradients per second** (a round makes W of them), and a dict from each of the three
names to its number.""",
    cases=best_mode_cases,
    drive=best_mode_drive,
    reference=best_mode,
    reasoning="""Whoever waits for others is as fast as the slowest: W gradients in max t seconds.
In async the paces add up: Σ 1 / (t + push + pull). The bytes differ as well. A ring moves 2(W −
1)/W gradients over each link, hardly more with more workers. A server moves 2·W of them over one
link: 2·W a round in sync, and in async that link cannot pass more than 1 gradient in the time of
two messages' bytes.""",
    wrong=(
        Wrong.changed(
            best_mode,
            "ring = max(seconds)",
            "ring = sum(seconds) / workers",
            "In an all-reduce all wait for the slowest worker: a round takes its time, not the "
            "mean.",
            also=(
                changed(
                    changed(best_mode, "ring = max(seconds)", "ring = sum(seconds) / workers"),
                    "server = max(seconds)",
                    "server = sum(seconds) / workers",
                ),
            ),
        ),
        Wrong.changed(
            best_mode,
            "2 * workers * wire",
            "2 * wire",
            "All W workers send to one server, and get its answer over the same link: 2·W "
            "gradients a round, not 2.",
        ),
        Wrong.changed(
            best_mode,
            "wire / workers",
            "wire",
            "Round the ring goes a chunk at a time, 1/W of the gradient. You count whole "
            "gradients.",
        ),
        Wrong.changed(
            best_mode,
            "turns * (latency + wire / workers)",
            "turns * wire / workers",
            "Each of the ring's 2(W − 1) turns takes its `latency`, however small the chunk.",
        ),
        Wrong.changed(
            best_mode,
            "min(alone, 1 / (2 * wire))",
            "alone",
            "In async, too, every push and pull goes over the server's one link: at most "
            "bytes_per_second / (2 · gradient_bytes) gradients a second.",
        ),
        Wrong.changed(
            best_mode,
            "1 / (2 * wire)",
            "1 / (2 * (latency + wire))",
            "The latencies of different workers' messages overlap: they do not fill the server's "
            "link. Only bytes do.",
        ),
        Wrong.changed(
            best_mode,
            "1 / (2 * wire)",
            "1 / wire",
            "A push comes in over the server's link, and a pull goes out over the same one: two "
            "messages' bytes for each gradient.",
        ),
        Wrong.changed(
            best_mode,
            "turns = 2 * (workers - 1)",
            "turns = workers - 1",
            "You count one half of the ring's turns. It goes round twice, once to add up and once "
            "to hand out the sums: 2(W − 1) turns.",
        ),
        Wrong.changed(
            best_mode,
            "max(paces",
            "min(paces",
            "You return the mode with the fewest gradients per second. The one with the most is "
            "asked for.",
        ),
        Wrong.changed(
            best_mode,
            "1 / (2 * wire)",
            "1 / (2 * workers * wire)",
            "You divide what the server's link can carry by the number of workers. It is the limit "
            "of all workers together.",
        ),
        Wrong.changed(
            best_mode,
            "2 * workers * wire",
            "(workers + 1) * wire",
            "The weights go out to each worker by itself: W times over the server's one link, not "
            "once.",
        ),
        Wrong.changed(
            best_mode,
            "2 * latency + 2 * workers",
            "2 * workers * latency + 2 * workers",
            "In sync all workers send at once, so their latencies overlap: one before the "
            "gradients, and one before the weights.",
        ),
        Wrong.changed(
            best_mode,
            "sum(1 / (each + 2 * (latency + wire)) for each in seconds)",
            "workers / (max(seconds) + 2 * (latency + wire))",
            "In async nobody waits for the slowest worker: the paces of all workers add up.",
        ),
        Wrong.changed(
            best_mode,
            "sum(1 / (each + 2 * (latency + wire)) for each in seconds)",
            "workers / (sum(seconds) / workers + 2 * (latency + wire))",
            "In async you take W workers of the mean time. A quick worker makes more gradients "
            "than a slow one loses: add up the paces, 1 / seconds, of all workers.",
        ),
        Wrong.changed(
            best_mode,
            "each + 2 * (latency + wire)",
            "each",
            "A worker of async computes only after its push and its pull: their time belongs to "
            "each of its gradients.",
        ),
        Wrong.changed(
            best_mode,
            '"all-reduce": workers / ring',
            '"all-reduce": 1 / ring',
            "A round of an all-reduce makes W gradients, one on each worker.",
            also=(
                changed(
                    changed(best_mode, "workers / ring", "1 / ring"),
                    "workers / server",
                    "1 / server",
                ),
            ),
        ),
    ),
)
