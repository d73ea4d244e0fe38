"""Exercises of chapter 18: a schedule for slow links, a cut under a memory limit, and a backward
pass that kept nothing but its input.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import combinations, pairwise

import torch

from accel_lab.exercises import Case, Exercise, Wrong
from accel_lab.exercises._data import normal

UNIT = 1.5  # what a message takes, in multiples of this: half of a forward and a backward

# ---- target: a schedule for slow links ----


def schedule_over_wires_cases(rng: random.Random) -> Iterator[Case]:
    def case(stages, micro_batches, slow):
        return {"stages": stages, "micro_batches": micro_batches, "message": UNIT * slow}

    for slow in (0, 1, 2, 1):
        stages = rng.randrange(3, 6)
        yield case(stages, rng.randrange(3 * stages + 6, 3 * stages + 12), slow)
    yield case(4, rng.randrange(1, 4), 1)


def schedule_over_wires_drive(answer, case):
    stages, micro_batches, message = case["stages"], case["micro_batches"], case["message"]
    return [
        [[kind, i] for kind, i in answer(stage, stages, micro_batches, message)]
        for stage in range(stages)
    ]


def schedule_over_wires_assess(plans, case: Case):
    """Play the plan of every stage: what comes too late, and what is held beyond the limit."""
    stages, micro_batches, message = case["stages"], case["micro_batches"], case["message"]
    plans = [[(kind, i) for kind, i in plan] for plan in plans]
    if amiss := _amiss(plans, stages, micro_batches):
        return {"amiss in the lists": amiss}
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
    stuck = [
        f"stage {stage} cannot do {plan[at][0]} {plan[at][1]}"
        for stage, (at, plan) in enumerate(zip(next_one, plans, strict=True))
        if at < len(plan)
    ]
    gpipe = 3.0 * (micro_batches + stages - 1) + 2 * message * (stages - 1)
    held = {}
    for stage, plan in enumerate(plans):
        may_hold = round((1 + message / UNIT) * (stages - 1 - stage)) + 1
        held[f"micro-batches held too many by stage {stage}"] = max(0, _most_held(plan) - may_hold)
    return {
        "amiss in the lists": "nothing",
        "what waits in vain": ", ".join(stuck) or "nothing",
        "units of time longer than GPipe": 0.0 if stuck else max(0.0, max(clock) - gpipe),
        **held,
    }


def _amiss(plans, stages, micro_batches):
    """What a stage leaves out or does too often; '' where each micro-batch goes forward and back
    once.
    """
    if len(plans) != stages:
        return f"{len(plans)} stages instead of {stages}"
    every = {(kind, i) for kind in ("forward", "backward") for i in range(micro_batches)}
    for stage, plan in enumerate(plans):
        for kind, i in sorted(every - set(plan)):
            return f"stage {stage} lacks {kind} {i}"
        for kind, i in plan:
            if (kind, i) not in every or plan.count((kind, i)) > 1:
                return f"stage {stage} does {kind} {i} {plan.count((kind, i))} times"
    return ""


def _most_held(plan):
    held = [0]
    for kind, _ in plan:
        held.append(held[-1] + (1 if kind == "forward" else -1))
    return max(held)


def schedule_over_wires(stage, stages, micro_batches, message):
    ahead = round((1 + message / UNIT) * (stages - 1 - stage))
    ahead = min(ahead, micro_batches)
    actions = [("forward", i) for i in range(ahead)]
    for i in range(ahead, micro_batches):
        actions += [("forward", i), ("backward", i - ahead)]
    return actions + [("backward", i) for i in range(micro_batches - ahead, micro_batches)]


def _all_forwards_first(stage, stages, micro_batches, message):
    return [(kind, i) for kind in ("forward", "backward") for i in range(micro_batches)]


def _only_forwards(stage, stages, micro_batches, message):
    return [("forward", i) for i in range(micro_batches)]


def _one_at_a_time(stage, stages, micro_batches, message):
    return [(kind, i) for i in range(micro_batches) for kind in ("forward", "backward")]


ROUND_TRIP = "(1 + message / UNIT) * (stages - 1 - stage)"

SCHEDULE_OVER_WIRES = Exercise(
    name="schedule_over_wires",
    points=4,
    task="""**Target:** as fast as GPipe, and no more memory than that takes.

Between two machines a message is under way for a while. Let a forward take 1 unit of time, a
backward 2, and a message between neighbours `message` units, a multiple of 1.5; a stage computes
while messages travel. 1F1B now waits: the first gradient comes back later, and stage `stage` has
too few micro-batches under way to be busy until then.

Write `schedule_over_wires(stage, stages, micro_batches, message)`: the list of that stage's
actions, `("forward", i)` and `("backward", i)`, each micro-batch once. The whole step may last no
longer than with GPipe, and stage *s* of *p* may hold at most (1 + `message` / 1.5) · (*p* − 1 −
*s*) + 1 micro-batches at once. A small simulator plays all stages together.""",
    cases=schedule_over_wires_cases,
    drive=schedule_over_wires_drive,
    assess=schedule_over_wires_assess,
    reference=schedule_over_wires,
    reasoning="""How many forwards must a stage have begun before the first gradient comes back?
There are stages − 1 − stage later stages. A micro-batch passes each of them forward and back: 3
units of computing and 2 messages, 3 + 2 · message for each later stage. The stage itself needs 3
units for each further micro-batch (a forward and a backward). So it must be (3 + 2 · message) / 3
= 1 + message / 1.5 micro-batches ahead for each later stage. After that, forward and backward in
turn.""",
    wrong=(
        Wrong.changed(
            schedule_over_wires,
            ROUND_TRIP,
            "stages - 1 - stage",
            "That is 1F1B for messages that take no time. A gradient is back only after a round "
            "trip: count how many micro-batches a stage could begin until then.",
        ),
        Wrong(
            _all_forwards_first,
            "That is GPipe: fast enough, but every stage holds all micro-batches.",
        ),
        Wrong(
            _only_forwards,
            "No backward is in the lists: each stage takes each micro-batch forward once and back "
            "once.",
        ),
        Wrong.changed(
            schedule_over_wires,
            ' + [("backward", i) for i in range(micro_batches - ahead, micro_batches)]',
            "",
            "The last micro-batches never come back: when no forward is left, a stage still owes "
            "the backward of each micro-batch it is ahead.",
        ),
        Wrong(
            _one_at_a_time,
            "Each micro-batch comes back before the next one starts: nothing runs beside "
            "anything else.",
        ),
        Wrong.changed(
            schedule_over_wires,
            ROUND_TRIP,
            "(1 + message / UNIT) * (stages - 1)",
            "Later stages need fewer forwards ahead: their round trip to the last stage and back "
            "is shorter.",
        ),
        Wrong.changed(
            schedule_over_wires,
            ROUND_TRIP,
            "(1 + message / UNIT) * stage",
            "Stage 0 is the farthest from the loss and needs the most forwards ahead; the last "
            "stage needs none. The other way round all stages wait for one another.",
        ),
        Wrong.changed(
            schedule_over_wires,
            ROUND_TRIP,
            "(1 + message / (2 * UNIT)) * (stages - 1 - stage)",
            "You count the messages of one direction. The activations travel out and the gradient "
            "travels back.",
        ),
        Wrong.changed(
            schedule_over_wires,
            ROUND_TRIP,
            "(1 + message) * (stages - 1 - stage)",
            "You count a message's units as micro-batches. A micro-batch takes a stage 3 units, "
            "forward and backward, and a round trip has two messages: that is message / 1.5.",
        ),
        Wrong.changed(
            schedule_over_wires,
            ROUND_TRIP,
            "message / UNIT * (stages - 1 - stage)",
            "You count the messages of a round trip alone. The later stages compute on the way, "
            "too: 3 units, one more micro-batch, for each of them.",
        ),
        Wrong.changed(
            schedule_over_wires,
            "    ahead = min(ahead, micro_batches)\n",
            "",
            "Where there are few micro-batches you start some that do not exist: a stage can be "
            "ahead by `micro_batches` at most.",
        ),
        Wrong.changed(
            schedule_over_wires,
            '("forward", i), ("backward", i - ahead)]',
            '("backward", i - ahead), ("forward", i)]',
            "In the steady part a forward comes first, then a backward. The other way round the "
            "last stage begins with the backward of what it has not computed yet.",
        ),
        Wrong.changed(
            schedule_over_wires,
            ROUND_TRIP,
            "(1 + message / UNIT) * (stages - stage)",
            "Fast enough, and more is held than needed: the last stage can turn back at once, so "
            "it needs no forward ahead.",
        ),
    ),
)


# ---- build: balance under a memory limit ----


def cut_cases(rng: random.Random) -> Iterator[Case]:
    def some(count, low, high):
        return [rng.randrange(low, high) for _ in range(count)]

    # The limit is what matters: by time alone one stage would get the many cheap layers, which keep
    # too much.
    for _ in range(3):
        slow, much = some(2, 20, 30)
        quick, little = some(2, 1, 4)
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
    # Runs of 11, 12 and 6 are fastest; those of 8, 8 and 13 differ least.
    more = rng.randrange(1, 5)
    seconds = [more * each for each in (8, 2, 1, 5, 7, 6)]
    yield {"seconds": seconds, "bytes_held": [1] * len(seconds), "stages": 3, "limit": 9}
    # One layer takes longer than all others: two runs are as fast as three, and three are asked for
    seconds = [rng.randrange(50, 60), *some(5, 1, 10)]
    yield {"seconds": seconds, "bytes_held": some(6, 10, 20), "stages": 3, "limit": 1000}
    # The only cut within the limit fills it to the last byte.
    much = rng.randrange(10, 20)
    yield {"seconds": some(4, 1, 10), "bytes_held": [much] * 4, "stages": 2, "limit": 2 * much}
    # No cut will do: one layer alone keeps too much.
    bytes_held = some(6, 10, 20)
    bytes_held[rng.randrange(6)] = 99
    yield {"seconds": some(6, 1, 10), "bytes_held": bytes_held, "stages": 2, "limit": 98}


def cut_drive(answer, case):
    sizes = answer(case["seconds"], case["bytes_held"], case["stages"], case["limit"])
    return None if sizes is None else list(sizes)


def cut_assess(sizes, case: Case):
    seconds, bytes_held = case["seconds"], case["bytes_held"]
    if sizes is None:
        return {"returned": "None"}
    if len(sizes) != case["stages"] or min(sizes) < 1 or sum(sizes) != len(seconds):
        layers = f"{len(seconds)} layers in {case['stages']} runs of at least one"
        return {"returned": f"{sizes}, which does not cut {layers}"}
    slowest = keeps = first = 0
    for size in sizes:
        slowest = max(slowest, sum(seconds[first : first + size]))
        keeps = max(keeps, sum(bytes_held[first : first + size]))
        first += size
    return {
        "returned": "a cut into runs",
        "bytes kept more than the limit allows": max(0, keeps - case["limit"]),
        "seconds of the slowest run": slowest,
    }


def _sums(costs, sizes):
    ends = [0, *(sum(sizes[: i + 1]) for i in range(len(sizes)))]
    return [sum(costs[start:end]) for start, end in pairwise(ends)]


def cut(seconds, bytes_held, stages, limit):
    best, least = None, float("inf")
    for inner in combinations(range(1, len(seconds)), stages - 1):
        sizes = [b - a for a, b in pairwise((0, *inner, len(seconds)))]
        slowest = max(_sums(seconds, sizes))
        if slowest < least and max(_sums(bytes_held, sizes)) <= limit:
            best, least = sizes, slowest
    return best


def _nothing(seconds, bytes_held, stages, limit):
    return None


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


def _as_few_as_will_do(seconds, bytes_held, stages, limit):
    """The least time for which filling run after run needs no more than ``stages`` of them."""
    layers = range(len(seconds))
    for most in sorted({sum(seconds[i : j + 1]) for i in layers for j in layers[i:]}):
        sizes, spent, kept = [0], 0, 0
        for time, room in zip(seconds, bytes_held, strict=True):
            if sizes[-1] and (spent + time > most or kept + room > limit):
                sizes.append(0)
                spent = kept = 0
            sizes[-1] += 1
            spent, kept = spent + time, kept + room
        fits = max(_sums(seconds, sizes)) <= most and max(_sums(bytes_held, sizes)) <= limit
        if fits and len(sizes) <= stages:
            return sizes
    return None


def _fastest_or_none(seconds, bytes_held, stages, limit):
    fastest = cut(seconds, bytes_held, stages, sum(bytes_held))
    return fastest if max(_sums(bytes_held, fastest)) <= limit else None


CUT = Exercise(
    name="cut",
    points=3,
    task="""A pipeline is as fast as its slowest stage. In the chapter, layers were dealt out by
their times; now each worker also has only so much memory.

Write `cut(seconds, bytes_held, stages, limit)`: `seconds[k]` is what layer *k* takes,
`bytes_held[k]` what it keeps. Cut the layers, in their order, into `stages` runs of at least one
layer each. No run may keep more than `limit` bytes, and the slowest run must be as fast as
possible. Return the number of layers in each run, such as `[3, 2, 4]`, or `None` when no cut keeps
within the limit.""",
    cases=cut_cases,
    drive=cut_drive,
    assess=cut_assess,
    reference=cut,
    reasoning="""A cut is given by the places between layers where a new run begins: choose stages
− 1 of them. The reference simply tries all, keeps those within the limit, and takes the one whose
slowest run is fastest. (For many layers one would fill a table instead: the best cut of the first
k layers into j runs follows from those into j − 1.)""",
    wrong=(
        Wrong.changed(
            cut,
            " and max(_sums(bytes_held, sizes)) <= limit",
            "",
            "As fast as can be, but one run keeps more than the limit: leave such cuts out.",
        ),
        Wrong.changed(
            cut,
            "max(_sums(bytes_held, sizes)) <= limit",
            "max(_sums(bytes_held, sizes)) < limit",
            "A run may keep exactly `limit` bytes: only more than that is too much.",
        ),
        Wrong(
            _nothing,
            "None says that no cut keeps within the limit, and it always came. Return the best "
            "cut where there is one.",
        ),
        Wrong(
            _same_count,
            "The same number of layers for all: layers differ in what they take, and the slowest "
            "run decides.",
        ),
        Wrong.changed(
            cut,
            "slowest = max(_sums(seconds, sizes))",
            "slowest = max(_sums(bytes_held, sizes))",
            "You share out the bytes evenly. They only have to fit: what is to be even is "
            "the time.",
        ),
        Wrong(
            _fills_to_the_mean,
            "Filling run after run up to the mean decides too early: what is left over falls to "
            "the last run. Compare whole cuts.",
        ),
        Wrong.changed(
            cut,
            "slowest = max(_sums(seconds, sizes))",
            "slowest = max(_sums(seconds, sizes)) - min(_sums(seconds, sizes))",
            "You make the runs as equal as can be. The slowest run decides: how quick the others "
            "are beside it does not matter.",
        ),
        Wrong(
            _as_few_as_will_do,
            "Where fewer runs are just as fast you return too few of them: cut what is left into "
            "`stages` runs, each of one layer at least.",
        ),
        Wrong(
            _fastest_or_none,
            "You take the fastest cut and give None where it keeps too much. A slower one may fit: "
            "look for the fastest among those within the limit.",
        ),
        Wrong.changed(
            cut,
            "            best, least = sizes, slowest\n",
            "            return sizes\n",
            "You return the first cut that keeps within the limit. A later one may be faster: "
            "compare them all.",
        ),
        Wrong.changed(
            cut,
            "    return best\n",
            "    return best or _same_count(seconds, bytes_held, stages, limit)\n",
            "Where no cut keeps within the limit there is none to return: give None.",
        ),
    ),
)


# ---- build: the backward pass of a stage that kept nothing but its input ----


def backward_again_cases(rng: random.Random) -> Iterator[Case]:
    for _ in range(3):
        inputs, middle, outputs = rng.randrange(3, 6), rng.randrange(3, 6), rng.randrange(2, 5)
        yield {
            "weights": [normal(rng, middle, inputs), normal(rng, outputs, middle)],
            "xs": [normal(rng, n, inputs) for n in (4, 4, 2)],
            "gradients": [normal(rng, n, outputs) for n in (4, 4, 2)],
        }


def backward_again_drive(answer, case):
    import torch

    first, second = case["weights"]
    layers = torch.nn.Sequential(
        torch.nn.Linear(*first.shape[::-1]), torch.nn.Tanh(), torch.nn.Linear(*second.shape[::-1])
    ).to(first.dtype)
    with torch.no_grad():
        for layer, weight in ((layers[0], first), (layers[2], second)):
            layer.weight.copy_(weight)
            layer.bias.fill_(0.1)
    sent = {}
    for number, (x, gradient) in enumerate(zip(case["xs"], case["gradients"], strict=True)):
        back = answer(layers, x, gradient)
        back = back.detach().clone() if isinstance(back, torch.Tensor) else None
        sent[f"returned for micro-batch {number}"] = back
    gradients = {
        f"gradient of {name}": None if p.grad is None else p.grad.detach().clone()
        for name, p in layers.named_parameters()
    }
    touched = any(x.requires_grad or x.grad is not None for x in case["xs"])
    return {**sent, **gradients, "x was left as it is": not touched}


def backward_again(layers, x, gradient):
    received = x.detach().requires_grad_()
    layers(received).backward(gradient)
    return received.grad


def _of_the_output(layers, x, gradient):
    out = layers(x.detach()).detach().requires_grad_()
    out.backward(gradient)
    return out.grad


def _only_sends(layers, x, gradient):
    received = x.detach().requires_grad_()
    return torch.autograd.grad(layers(received), received, gradient)[0]


BACKWARD_AGAIN = Exercise(
    name="backward_again",
    points=2,
    task="""GPipe holds the activations of all micro-batches, unless a stage keeps only what it
*received* and computes the rest anew when the gradient comes back.

Write `backward_again(layers, x, gradient)`. The forward pass of this micro-batch ran without
keeping anything; `x` is what had entered, and `gradient` is what the next stage sent: the gradient
of the loss with respect to `layers(x)`. Add this micro-batch's part to the `.grad` of the
parameters, and return what the stage before waits for: the gradient with respect to `x`. Leave `x`
itself as it is.""",
    cases=backward_again_cases,
    drive=backward_again_drive,
    reference=backward_again,
    reasoning="""`detach()` makes a new tensor that shares the values of `x` and begins a graph of
its own; `requires_grad_()` asks for its gradient. The forward pass runs again, this time with a
graph. `backward(gradient)` begins with the gradient that came from the next stage, adds to `.grad`
of every parameter on its way, and leaves the gradient for the stage before in `received.grad`.""",
    wrong=(
        Wrong.changed(
            backward_again,
            "x.detach().requires_grad_()",
            "x.detach()",
            "None is returned. Either the `return` is missing, or the gradient of the input was "
            "not kept: autograd does so only after `requires_grad_()`, called before the layers "
            "see it.",
        ),
        Wrong.changed(
            backward_again,
            ".backward(gradient)",
            ".sum().backward()",
            "You go back from the output itself. How it changes the loss is in `gradient`: "
            "`out.backward(gradient)`.",
        ),
        Wrong.changed(
            backward_again,
            "    layers(received)",
            "    layers.zero_grad()\n    layers(received)",
            "Only the last micro-batch is left in `.grad`: the parts of all micro-batches are "
            "to add up.",
        ),
        Wrong.changed(
            backward_again,
            "    layers(received).backward(gradient)\n",
            "    with torch.no_grad():\n"
            "        out = layers(received)\n"
            "    out.backward(gradient)\n",
            "There is no graph to go back through. This forward pass is the one that needs it: "
            "run the layers outside of no_grad, and do not detach what comes out.",
        ),
        Wrong.changed(
            backward_again,
            ".backward(gradient)",
            ".backward()",
            "Without an argument `backward` starts from one number alone, a loss. Here it starts "
            "from a tensor: give it that tensor's gradient, `out.backward(gradient)`.",
        ),
        Wrong.changed(
            backward_again,
            ".backward(gradient)",
            ".backward(gradient / len(x))",
            "You divide by the number of samples. `gradient` is that of the loss, whose mean is "
            "taken already: pass it on as it came.",
        ),
        Wrong(
            _only_sends,
            "The message is right, but the layers' own parameters got no gradient: `backward` "
            "serves both, `autograd.grad` only what you name.",
        ),
        Wrong.changed(
            backward_again,
            "x.detach().requires_grad_()",
            "x.requires_grad_()",
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
