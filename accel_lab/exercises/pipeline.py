"""Exercises of the chapter on pipeline parallelism."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import combinations, pairwise

import torch

from accel_lab.exercises import Case, Exercise, Wrong

# 1. target: a schedule for slow wires
#   -------------------------------------------------------------------------------------

WIRES_TASK = """**Target:** as fast as GPipe, and no more memory than that takes.

Between two machines a message is under way for a while. Let a forward take 1 unit of time, a
backward 2, and a message between neighbours `message` units, a multiple of 1.5; a stage computes
while messages travel. 1F1B now waits: the first gradient comes back later, and stage `stage` has
too few micro-batches under way to be busy until then.

Write `schedule_over_wires(stage, stages, micro_batches, message)`: the list of that stage's
actions, `("forward", i)` and `("backward", i)`, each micro-batch once. The whole step may last no
longer than with GPipe, and stage *s* of *p* may hold at most (1 + `message` / 1.5) · (*p* − 1 −
*s*) + 1 micro-batches at once. A small simulator plays all stages together."""

UNIT = 1.5  # what a message takes, in multiples of this: half of a forward and a backward


def wires_cases(rng: random.Random) -> Iterator[Case]:
    for slow in (0, 1, 2, 1):
        stages = rng.randrange(3, 6)
        yield {
            "stages": stages,
            "micro_batches": rng.randrange(3 * stages + 6, 3 * stages + 12),
            "message": UNIT * slow,
            "limits": [(1 + slow) * (stages - 1 - stage) + 1 for stage in range(stages)],
        }
    yield {
        "stages": 4,
        "micro_batches": rng.randrange(1, 4),
        "message": UNIT,
        "limits": [7, 5, 3, 1],
    }


def drive_schedule_over_wires(answer, case):
    stages, micro_batches, message = case["stages"], case["micro_batches"], case["message"]
    return [
        [[kind, i] for kind, i in answer(stage, stages, micro_batches, message)]
        for stage in range(stages)
    ]


def assess_schedule(plans, case: Case):
    """Play the plan of every stage: what comes too late, and what is held beyond the limit."""
    stages, micro_batches, message = case["stages"], case["micro_batches"], case["message"]
    plans = [[(kind, i) for kind, i in plan] for plan in plans]
    every = sorted((kind, i) for kind in ("backward", "forward") for i in range(micro_batches))
    if len(plans) != stages or any(sorted(plan) != every for plan in plans):
        return {"each micro-batch goes forward and back once on every stage": False}
    ends, clock, next_one = {}, [0.0] * stages, [0] * stages
    moving = True
    while moving:
        moving = False
        for stage, plan in enumerate(plans):
            while next_one[stage] < len(plan):
                kind, i = plan[next_one[stage]]
                source = stage - 1 if kind == "forward" else stage + 1
                needs = [(kind, i, source)] if 0 <= source < stages else []
                if kind == "backward":
                    needs.append(("forward", i, stage))
                if any(need not in ends for need in needs):
                    break
                ready = [ends[need] + (message if need[2] != stage else 0.0) for need in needs]
                clock[stage] = max([clock[stage], *ready]) + (1.0 if kind == "forward" else 2.0)
                ends[kind, i, stage] = clock[stage]
                next_one[stage] += 1
                moving = True
    if any(at < len(plan) for at, plan in zip(next_one, plans, strict=True)):
        return {"no stage waits for ever": False}
    most = []
    for plan in plans:
        held = [0]
        for kind, _ in plan:
            held.append(held[-1] + (1 if kind == "forward" else -1))
        most.append(max(held))
    gpipe = 3.0 * (micro_batches + stages - 1) + 2 * message * (stages - 1)
    return {
        "time beyond GPipe's": max(0.0, max(clock) - gpipe),
        "micro-batches held beyond the limit, by stage": [
            max(0, one - limit) for one, limit in zip(most, case["limits"], strict=True)
        ],
    }


def _ahead(count):
    """1F1B with count(stage, stages, message) forwards before the first pair."""

    def schedule(stage, stages, micro_batches, message):
        ahead = min(count(stage, stages, message), micro_batches)
        actions = [("forward", i) for i in range(ahead)]
        for i in range(ahead, micro_batches):
            actions += [("forward", i), ("backward", i - ahead)]
        return actions + [("backward", i) for i in range(micro_batches - ahead, micro_batches)]

    return schedule


schedule_over_wires = _ahead(
    lambda stage, stages, message: round((1 + message / UNIT) * (stages - 1 - stage))
)
_as_if_wires_were_fast = _ahead(lambda stage, stages, message: stages - 1 - stage)
_same_on_every_stage = _ahead(
    lambda stage, stages, message: round((1 + message / UNIT) * (stages - 1))
)
_counts_from_the_wrong_end = _ahead(
    lambda stage, stages, message: round((1 + message / UNIT) * stage)
)
_one_way_only = _ahead(
    lambda stage, stages, message: round((1 + message / (2 * UNIT)) * (stages - 1 - stage))
)
_one_too_many = _ahead(
    lambda stage, stages, message: round((1 + message / UNIT) * (stages - stage))
)


def _all_forwards_first(stage, stages, micro_batches, message):
    return [(kind, i) for kind in ("forward", "backward") for i in range(micro_batches)]


def _one_at_a_time(stage, stages, micro_batches, message):
    return [(kind, i) for i in range(micro_batches) for kind in ("forward", "backward")]


WIRES = Exercise(
    name="schedule_over_wires",
    points=4,
    task=WIRES_TASK,
    cases=wires_cases,
    drive=drive_schedule_over_wires,
    assess=assess_schedule,
    reference=schedule_over_wires,
    wrong=(
        Wrong(
            _as_if_wires_were_fast,
            "That is 1F1B for messages that take no time. A gradient is back only after a round "
            "trip: count how many "
            "micro-batches a stage could begin until then.",
        ),
        Wrong(
            _all_forwards_first,
            "That is GPipe: fast enough, but every stage holds all micro-batches.",
        ),
        Wrong(
            _one_at_a_time,
            "Each micro-batch comes back before the next one starts: nothing runs beside "
            "anything else.",
        ),
        Wrong(
            _same_on_every_stage,
            "Later stages need fewer forwards ahead: their round trip to the last stage and back "
            "is shorter.",
        ),
        Wrong(
            _counts_from_the_wrong_end,
            "Stage 0 is the farthest from the loss and needs the most forwards ahead; the last "
            "stage needs none. All stages "
            "wait for one another when it is the other way round.",
        ),
        Wrong(
            _one_way_only,
            "You count the messages of one direction. The activations travel out and the gradient "
            "travels back.",
        ),
        Wrong(
            _one_too_many,
            "Fast enough, and more is held than needed: the last stage can turn back at once, so "
            "it needs no forward ahead.",
        ),
    ),
)


# 2. build: balance under a memory limit
#   -----------------------------------------------------------------------------------

CUT_TASK = """A pipeline is as fast as its slowest stage. In the chapter, layers were dealt out by
their times; now each worker also has only so much memory.

Write `cut(seconds, bytes_held, stages, limit)`: `seconds[k]` is what layer *k* takes,
`bytes_held[k]` what it keeps. Cut the layers, in their order, into `stages` runs of at least one
layer each. No run may keep more than `limit` bytes, and the slowest run must be as fast as
possible. Return the number of layers in each run, such as `[3, 2, 4]`, or `None` when no cut keeps
within the limit."""


def cut_cases(rng: random.Random) -> Iterator[Case]:
    def some(count, low, high):
        return [rng.randrange(low, high) for _ in range(count)]

    # The limit is what matters: by time alone one stage would get the many cheap layers, which keep
    # too much.
    for _ in range(3):
        slow, quick, much, little = (
            rng.randrange(20, 30),
            rng.randrange(1, 4),
            rng.randrange(20, 30),
            rng.randrange(1, 4),
        )
        yield {
            "seconds": [slow, slow, *[quick] * 6],
            "bytes_held": [little, little, *[much] * 6],
            "stages": 2,
            "limit": 4 * much + 2 * little,
        }
    # Time is what matters, and the limit leaves it free: a fill up to the mean, or the same count
    # for all, is not the best.
    for _ in range(6):
        seconds = [*some(3, 1, 10), rng.randrange(25, 40), *some(4, 1, 10)]
        yield {"seconds": seconds, "bytes_held": some(8, 10, 20), "stages": 3, "limit": 1000}
    yield {"seconds": [9, 1, 1, 9, 9, 1, 1, 1], "bytes_held": [1] * 8, "stages": 3, "limit": 8}
    # No cut will do: one layer alone keeps too much.
    bytes_held = some(6, 10, 20)
    bytes_held[rng.randrange(6)] = 99
    yield {"seconds": some(6, 1, 10), "bytes_held": bytes_held, "stages": 2, "limit": 98}


def drive_cut(answer, case):
    sizes = answer(case["seconds"], case["bytes_held"], case["stages"], case["limit"])
    return None if sizes is None else list(sizes)


def assess_cut(sizes, case: Case):
    seconds, bytes_held = case["seconds"], case["bytes_held"]
    if sizes is None:
        return {"a cut": None}
    if len(sizes) != case["stages"] or min(sizes) < 1 or sum(sizes) != len(seconds):
        return {"every layer lies in one run, none is empty": False}
    slowest = keeps = first = 0
    for size in sizes:
        slowest = max(slowest, sum(seconds[first : first + size]))
        keeps = max(keeps, sum(bytes_held[first : first + size]))
        first += size
    return {
        "seconds of the slowest run": slowest,
        "bytes beyond the limit": max(0, keeps - case["limit"]),
    }


def _all_cuts(layers, stages):
    for inner in combinations(range(1, layers), stages - 1):
        yield [b - a for a, b in pairwise((0, *inner, layers))]


def _sums(costs, sizes):
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [sum(costs[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def _best_cut(judge, heeds_the_limit=True, otherwise=None):
    """The cut for which judge(sums of seconds, sums of bytes) is least."""

    def answer(seconds, bytes_held, stages, limit):
        cuts = [
            sizes
            for sizes in _all_cuts(len(seconds), stages)
            if not heeds_the_limit or max(_sums(bytes_held, sizes)) <= limit
        ]
        best = min(
            cuts,
            key=lambda sizes: judge(_sums(seconds, sizes), _sums(bytes_held, sizes)),
            default=None,
        )
        return otherwise(seconds, stages) if best is None and otherwise else best

    return answer


def _same_count(seconds, bytes_held, stages, limit):
    layers = len(seconds)
    return [layers * (stage + 1) // stages - layers * stage // stages for stage in range(stages)]


def _fills_to_the_mean(seconds, bytes_held, stages, limit):
    """From the front: go on to the next run as soon as one has its share of the time, and keep
    within the limit.
    """
    if max(bytes_held) > limit:
        return None
    sizes, spent, kept = [0], 0, 0
    for layer, (time, room) in enumerate(zip(seconds, bytes_held, strict=True)):
        left = len(seconds) - layer
        full = spent >= sum(seconds) / stages or kept + room > limit or left <= stages - len(sizes)
        if sizes[-1] and full and len(sizes) < stages:
            sizes.append(0)
            spent = kept = 0
        sizes[-1] += 1
        spent, kept = spent + time, kept + room
    return sizes


cut = _best_cut(lambda times, room: max(times))
_forgets_the_limit = _best_cut(lambda times, room: max(times), heeds_the_limit=False)
_balances_bytes = _best_cut(lambda times, room: max(room))
_never_none = _best_cut(
    lambda times, room: max(times),
    otherwise=lambda seconds, stages: _same_count(seconds, None, stages, 0),
)

CUT = Exercise(
    name="cut",
    points=3,
    task=CUT_TASK,
    cases=cut_cases,
    drive=drive_cut,
    assess=assess_cut,
    reference=cut,
    wrong=(
        Wrong(
            _forgets_the_limit,
            "As fast as can be, but one run keeps more than the limit: leave such cuts out.",
        ),
        Wrong(
            _same_count,
            "The same number of layers for all: layers differ in what they take, and the slowest "
            "run decides.",
        ),
        Wrong(
            _balances_bytes,
            "You share out the bytes evenly. They only have to fit: what is to be even is "
            "the time.",
        ),
        Wrong(
            _fills_to_the_mean,
            "Filling run after run up to the mean decides too early: what is left over falls to "
            "the last run. Compare whole cuts.",
        ),
        Wrong(
            _never_none, "Where no cut keeps within the limit there is none to return: give None."
        ),
    ),
)


# 3. build: the backward pass of a stage that kept nothing but its input
#   ----------------------------------------------------

AGAIN_TASK = """GPipe holds the activations of all micro-batches, unless a stage keeps only what it
*received* and computes the rest anew when the gradient comes back.

Write `backward_again(layers, x, gradient)`. The forward pass of this micro-batch ran without
keeping anything; `x` is what had entered, and `gradient` is what the next stage sent: the gradient
of the loss with respect to `layers(x)`. Add this micro-batch's part to the `.grad` of the
parameters, and return what the stage before waits for: the gradient with respect to `x`. Leave `x`
itself as it is."""


def again_cases(rng: random.Random) -> Iterator[Case]:
    for _ in range(3):
        seeded = torch.Generator().manual_seed(rng.randrange(2**31))
        inside, middle, outside = rng.randrange(3, 6), rng.randrange(3, 6), rng.randrange(2, 5)
        yield {
            "weights": [
                torch.randn(middle, inside, generator=seeded),
                torch.randn(outside, middle, generator=seeded),
            ],
            "xs": [torch.randn(n, inside, generator=seeded) for n in (4, 4, 2)],
            "gradients": [torch.randn(n, outside, generator=seeded) for n in (4, 4, 2)],
        }


def drive_backward_again(answer, case):
    import torch

    first, second = case["weights"]
    layers = torch.nn.Sequential(
        torch.nn.Linear(*first.shape[::-1]), torch.nn.Tanh(), torch.nn.Linear(*second.shape[::-1])
    )
    with torch.no_grad():
        for layer, weight in ((layers[0], first), (layers[2], second)):
            layer.weight.copy_(weight)
            layer.bias.fill_(0.1)
    sent = []
    for x, gradient in zip(case["xs"], case["gradients"], strict=True):
        back = answer(layers, x, gradient)
        sent.append(back.detach().clone() if isinstance(back, torch.Tensor) else None)
    return {
        "sent to the stage before": sent,
        "gradients": [
            None if p.grad is None else p.grad.detach().clone() for p in layers.parameters()
        ],
        "x was left as it is": not any(x.requires_grad or x.grad is not None for x in case["xs"]),
    }


def _again(
    prepare=lambda layers, x: x.detach().requires_grad_(),
    pull=lambda out, gradient: out.backward(gradient),
):
    """prepare(layers, x) → what to put through the layers · pull(out, gradient) goes back."""

    def answer(layers, x, gradient):
        received = prepare(layers, x)
        pull(layers(received), gradient)
        return received.grad

    return answer


def _clears_first(layers, x):
    layers.zero_grad()
    return x.detach().requires_grad_()


def _of_the_output(layers, x, gradient):
    out = layers(x.detach()).detach().requires_grad_()
    out.backward(gradient)
    return out.grad


def _only_sends(layers, x, gradient):
    received = x.detach().requires_grad_()
    return torch.autograd.grad(layers(received), received, gradient)[0]


backward_again = _again()

AGAIN = Exercise(
    name="backward_again",
    points=2,
    task=AGAIN_TASK,
    cases=again_cases,
    drive=drive_backward_again,
    reference=backward_again,
    wrong=(
        Wrong(
            _again(prepare=lambda layers, x: x.detach()),
            "Nothing is sent back: autograd keeps a gradient for an input only if it is told so, "
            "with `requires_grad_()`, "
            "before the layers see it.",
        ),
        Wrong(
            _again(pull=lambda out, gradient: out.sum().backward()),
            "You go back from the output itself. What the loss thinks of it is in `gradient`: "
            "`out.backward(gradient)`.",
        ),
        Wrong(
            _again(prepare=_clears_first),
            "Only the last micro-batch is left in `.grad`: the parts of all micro-batches are "
            "to add up.",
        ),
        Wrong(
            _only_sends,
            "The message is right, but the layers' own parameters got no gradient: `backward` "
            "serves both, `autograd.grad` "
            "only what you name.",
        ),
        Wrong(
            _again(prepare=lambda layers, x: x.requires_grad_()),
            "You changed the x you were given. Detach it first: the copy shares its data and "
            "belongs to you.",
        ),
        Wrong(
            _of_the_output,
            "That is the gradient you were given, of what leaves the stage. The stage before waits "
            "for that of what enters.",
        ),
    ),
)
