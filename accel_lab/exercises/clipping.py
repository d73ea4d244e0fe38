"""Exercises of chapter 12: one clip for a gradient that is scaled and accumulated, a loop with
three faults, and a gradient that lies on several ranks.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from accel_lab.exercises import Case, Exercise, Wrong, changed
from accel_lab.exercises._data import normal, whole

CLASSES, WIDTH = 5, 6
CALM, STEEP = 0.05, 8.0  # how large the inputs are, and with them the gradient

# ---- build: accumulate, unscale, clip once, or skip ----


def _micro_batches(rng: random.Random, size: float) -> list:
    sizes = [rng.randrange(6, 9), rng.randrange(2, 5), rng.randrange(9, 12)]
    return [[size * normal(rng, n, WIDTH), whole(rng, 0, CLASSES, n)] for n in sizes]


def clip_accumulated_cases(rng: random.Random) -> Iterator[Case]:
    for scale in (1024.0, 256.0, 65536.0):
        sizes = (STEEP, CALM, STEEP, CALM, STEEP, CALM, STEEP)
        batches = [_micro_batches(rng, size) for size in sizes]
        batches[3][rng.randrange(3)][0][0, 0] = float("inf")  # makes loss and norm NaN
        yield {
            "weight": 0.3 * normal(rng, CLASSES, WIDTH),
            "bias": 0.1 * normal(rng, CLASSES),
            "batches": batches,
            "max_norm": rng.uniform(0.9, 1.2),
            "scale": scale,
            "overflow_in_batch": 5,
        }


def clip_accumulated_drive(answer, case):
    import torch

    weight = case["weight"]
    model = torch.nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    with torch.no_grad():
        model.weight.copy_(weight)
        model.bias.copy_(case["bias"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    returned, number = {}, 0

    def overflow(gradient):  # as in float16: the loss stays finite, the norm becomes infinite
        return gradient + float("inf") if number == case["overflow_in_batch"] else gradient

    model.weight.register_hook(overflow)
    for number, batch in enumerate(case["batches"]):
        pairs = [(x, y) for x, y in batch]
        norm = answer(model, optimizer, pairs, case["max_norm"], case["scale"])
        returned[f"norm of batch {number}"] = None if norm is None else float(norm)
        returned[f"weight after batch {number}"] = model.weight.detach().clone()
        returned[f"bias after batch {number}"] = model.bias.detach().clone()
    return returned


def clip_accumulated(model, optimizer, micro_batches, max_norm, scale):
    samples = sum(len(y) for _, y in micro_batches)
    optimizer.zero_grad()
    for x, y in micro_batches:
        (scale * cross_entropy(model(x), y) * len(y) / samples).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    for gradient in gradients:
        gradient.div_(scale)
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    if not norm.isfinite():
        return None
    if norm > max_norm:
        for gradient in gradients:
            gradient.mul_(max_norm / norm)
    optimizer.step()
    return norm


def _clips_the_scaled(model, optimizer, micro_batches, max_norm, scale):
    samples = sum(len(y) for _, y in micro_batches)
    optimizer.zero_grad()
    for x, y in micro_batches:
        (scale * cross_entropy(model(x), y) * len(y) / samples).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    if not norm.isfinite():
        return None
    for gradient in gradients:
        gradient.mul_((max_norm / norm).clamp(max=1) / scale)
    optimizer.step()
    return norm / scale


def _clips_each_micro_batch(model, optimizer, micro_batches, max_norm, scale):
    samples = sum(len(y) for _, y in micro_batches)
    optimizer.zero_grad()
    for x, y in micro_batches:
        (scale * cross_entropy(model(x), y) * len(y) / samples).backward()
        norm = clip_grad_norm_(model.parameters(), max_norm * scale) / scale
    for parameter in model.parameters():
        parameter.grad.div_(scale)
    if not norm.isfinite():
        return None
    optimizer.step()
    return norm


def _clips_each_by_itself(model, optimizer, micro_batches, max_norm, scale):
    samples, parameters = sum(len(y) for _, y in micro_batches), list(model.parameters())
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for x, y in micro_batches:
        optimizer.zero_grad()
        (scale * cross_entropy(model(x), y)).backward()
        norm = clip_grad_norm_(parameters, max_norm * scale) / scale
        for part, parameter in zip(total, parameters, strict=True):
            part.add_(parameter.grad * len(y) / samples / scale)
    for part, parameter in zip(total, parameters, strict=True):
        parameter.grad = part
    norm = torch.stack([part.norm() for part in total]).norm()
    if not norm.isfinite():
        return None
    optimizer.step()
    return norm


def _looks_at_the_loss(model, optimizer, micro_batches, max_norm, scale):
    samples, total = sum(len(y) for _, y in micro_batches), 0.0
    optimizer.zero_grad()
    for x, y in micro_batches:
        loss = cross_entropy(model(x), y) * len(y) / samples
        total += loss.item()
        (scale * loss).backward()
    for parameter in model.parameters():
        parameter.grad.div_(scale)
    if not math.isfinite(total):
        return None
    norm = clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return norm


def _unscales_each_time(model, optimizer, micro_batches, max_norm, scale):
    samples = sum(len(y) for _, y in micro_batches)
    optimizer.zero_grad()
    for x, y in micro_batches:
        (scale * cross_entropy(model(x), y) * len(y) / samples).backward()
        for parameter in model.parameters():
            parameter.grad.div_(scale)
    norm = clip_grad_norm_(model.parameters(), max_norm)
    if not norm.isfinite():
        return None
    optimizer.step()
    return norm


def _clips_copies(model, optimizer, micro_batches, max_norm, scale):
    samples = sum(len(y) for _, y in micro_batches)
    optimizer.zero_grad()
    for x, y in micro_batches:
        (scale * cross_entropy(model(x), y) * len(y) / samples).backward()
    gradients = [parameter.grad / scale for parameter in model.parameters()]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    if not norm.isfinite():
        return None
    optimizer.step()  # with .grad, which still is what backward() left there
    return norm


UNSCALE = """\
    for gradient in gradients:
        gradient.div_(scale)
"""
CLIP = """\
    if norm > max_norm:
        for gradient in gradients:
            gradient.mul_(max_norm / norm)
"""
SKIP = "    if not norm.isfinite():\n        return None\n"
ZEROS = """\
    if not norm.isfinite():
        for gradient in gradients:
            gradient.zero_()
        optimizer.step()
        return None
"""

CLIP_ACCUMULATED = Exercise(
    name="clip_accumulated",
    points=3,
    task="""A loop for half precision multiplies the loss by `scale`, so that small gradients are
not lost, and accumulates the gradient over micro-batches of different sizes.

Write `clip_accumulated(model, optimizer, micro_batches, max_norm, scale)`: make one update from the
mean loss over **all samples**, with each micro-batch's loss multiplied by `scale` before its
`backward()`, and the global norm of the gradient limited to `max_norm`. `micro_batches` is a list
of pairs (x, y) for `cross_entropy(model(x), y)`. Return the norm before clipping: that of the mean
loss, without the scale. If it is NaN or infinite, take no step and return `None`.""",
    cases=clip_accumulated_cases,
    drive=clip_accumulated_drive,
    reference=clip_accumulated,
    reasoning="""The limit speaks of the gradient that the optimizer is to get: of the whole batch,
and without the scale. So the order is: accumulate, unscale, measure, clip, step. The global norm is
the norm of the tensors' norms: their squares are added up. It shortens a gradient that is too long
and leaves a shorter one alone. A norm that is not finite cannot be repaired by a factor, and a step
of zeros would still move the weights, by the momentum; so there is no step at all.""",
    wrong=(
        Wrong(
            _clips_the_scaled,
            "You clip the gradient of the scaled loss and unscale it afterwards: what is left is "
            "max_norm / scale long. Divide by the scale first, or multiply the limit by it.",
        ),
        Wrong.changed(
            clip_accumulated,
            UNSCALE,
            "",
            "The gradients are never divided by the scale, so the norm that you measure is scale "
            "times too large. Unscale after the last micro-batch, before you measure and clip.",
        ),
        Wrong(
            _unscales_each_time,
            "You divide .grad by the scale after each micro-batch. It holds the earlier ones, too, "
            "and they are divided again each time. Unscale once, after the last one.",
        ),
        Wrong(
            _clips_copies,
            "The norm is right, but the step is taken with .grad as backward() left it: "
            "`p.grad / scale` makes a new tensor, and the optimizer does not see it. Write into "
            ".grad, with `p.grad.div_(scale)` and `p.grad.mul_(factor)`.",
        ),
        Wrong(
            _clips_each_micro_batch,
            "You clip .grad after each micro-batch, while the gradient is still incomplete. Clip "
            "once, after the last one.",
        ),
        Wrong(
            _clips_each_by_itself,
            "You clip the gradient of each micro-batch by itself and add up what is left. The "
            "limit is for their weighted sum: clip once, after the last one.",
        ),
        Wrong.changed(
            clip_accumulated,
            CLIP,
            "    for gradient in gradients:\n"
            "        gradient.mul_((max_norm / gradient.norm()).clamp(max=1))\n",
            "Each tensor is clipped by its own norm, which turns the gradient. One factor, from "
            "the norm of all tensors together, is for all of them.",
        ),
        Wrong.changed(
            clip_accumulated,
            CLIP,
            "    for gradient in gradients:\n        gradient.clamp_(-max_norm, max_norm)\n",
            "You limit each number by itself: the norm may still exceed max_norm, and the gradient "
            "turns. Multiply all gradients by one factor.",
        ),
        Wrong.changed(
            clip_accumulated,
            CLIP,
            "    for gradient in gradients:\n        gradient.mul_(max_norm / norm)\n",
            "A gradient shorter than max_norm is made longer. Clipping only shortens: the factor "
            "is 1 at most.",
        ),
        Wrong.changed(
            clip_accumulated,
            SKIP,
            "",
            "Where the norm is NaN or infinite you take a step nevertheless, and the weights are "
            "NaN from then on. Take no step, and return None.",
            also=(
                changed(
                    changed(clip_accumulated, SKIP, ""),
                    "    return norm",
                    "    return norm if norm.isfinite() else None",
                ),
            ),
        ),
        Wrong.changed(
            clip_accumulated,
            "if not norm.isfinite()",
            "if norm.isnan()",
            "You skip the update where the norm is NaN, but not where it is infinite: a gradient "
            "overflows although the loss is finite. Test the norm with isfinite().",
            also=(_looks_at_the_loss,),
        ),
        Wrong.changed(
            clip_accumulated,
            SKIP,
            ZEROS,
            "A step with a gradient of zeros is a step: the momentum moves the weights. Do not "
            "call optimizer.step() where the norm is not finite.",
        ),
        Wrong.changed(
            clip_accumulated,
            "for gradient in gradients]).norm()",
            "for gradient in gradients]).sum()",
            "You add up the norms of the tensors. The global norm is the root of the sum of their "
            "squares, which is smaller.",
        ),
        Wrong.changed(
            clip_accumulated,
            "* len(y) / samples",
            "",
            "You add up the mean losses of the micro-batches, which is too large. Weigh each by "
            "its share of the samples, len(y) / samples.",
        ),
        Wrong.changed(
            clip_accumulated,
            "* len(y) / samples",
            "/ len(micro_batches)",
            "1/m gives each micro-batch the same weight. They differ in size: weigh each by its "
            "share of the samples.",
        ),
        Wrong.changed(
            clip_accumulated,
            "    optimizer.zero_grad()\n",
            "",
            "The first batch is right and the later ones are not: the gradients of earlier batches "
            "were never cleared.",
        ),
        Wrong.changed(
            clip_accumulated,
            "    optimizer.step()\n    return norm",
            "    optimizer.step()\n    return norm.clamp(max=max_norm)",
            "The weights are right, but you return the norm after clipping. Return what was "
            "measured before.",
        ),
    ),
)


# ---- diagnose: the loop that did not clip ----


def train_clipped_cases(rng: random.Random) -> Iterator[Case]:
    for scale in (8.0, 64.0):  # an old gradient that was not cleared shows beside them
        yield {
            "weight": 0.3 * normal(rng, CLASSES, WIDTH),
            "batches": [_micro_batches(rng, STEEP) for _ in range(3)],
            "max_norm": rng.uniform(0.1, 0.3),
            "scale": scale,
        }


def train_clipped_drive(answer, case):
    import warnings

    import torch

    weight = case["weight"]
    model = torch.nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    with torch.no_grad():
        model.weight.copy_(weight)
        model.bias.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=case["scale"])
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.8)
    batches = [[(x, y) for x, y in batch] for batch in case["batches"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a generator that has been read: the verdict says more
        answer(model, optimizer, scaler, schedule, batches, case["max_norm"])
    return {
        "weight": model.weight.detach().clone(),
        "bias": model.bias.detach().clone(),
        "learning rate at the end": optimizer.param_groups[0]["lr"],
    }


def train_clipped(model, optimizer, scaler, schedule, batches, max_norm):
    parameters = list(model.parameters())
    for micro_batches in batches:
        samples = sum(len(y) for _, y in micro_batches)
        optimizer.zero_grad()
        for x, y in micro_batches:
            loss = cross_entropy(model(x), y) * len(y) / samples
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        clip_grad_norm_(parameters, max_norm)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()


def _as_found(model, optimizer, scaler, schedule, batches, max_norm):
    parameters = model.parameters()
    for micro_batches in batches:
        samples = sum(len(y) for _, y in micro_batches)
        optimizer.zero_grad()
        for x, y in micro_batches:
            loss = cross_entropy(model(x), y) * len(y) / samples
            scaler.scale(loss).backward()
            clip_grad_norm_(parameters, max_norm)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()


CLIP_ONCE = "        scaler.unscale_(optimizer)\n        clip_grad_norm_(parameters, max_norm)\n"
ADVANCE, BACKWARD = "        schedule.step()\n", "            scaler.scale(loss).backward()\n"
DIVIDED = "(parameters, max_norm / scaler.get_scale())"
LIST = "list(model.parameters())"
STEP = "        scaler.step(optimizer)\n        scaler.update()\n"
PAST_THE_SCALER = "        clip_grad_norm_(parameters, max_norm * scaler.get_scale())\n"

TRAIN_CLIPPED = Exercise(
    name="train_clipped",
    points=3,
    task="""This loop scales the loss, accumulates, clips and lowers the learning rate, as loops for
half precision do. Nothing crashes, and it hardly clips at all: it has three faults. Repair it,
without changing what it takes.

`batches` is a list of batches, each a list of micro-batches (x, y); each batch is to make one
update, from its mean loss over all samples, whose gradient has a global norm of at most `max_norm`.
`scaler` is a `torch.amp.GradScaler`: `scaler.unscale_(optimizer)` divides the gradients by the
scale, and `scaler.step(optimizer)` does so only if that has not been done yet.""",
    cases=train_clipped_cases,
    drive=train_clipped_drive,
    reference=train_clipped,
    reasoning="""The three faults are in one line. `model.parameters()` is a generator: the first
call of `clip_grad_norm_` reads it to its end, and every later call finds nothing to clip, so it
becomes a list. The line stands in the loop over micro-batches, where the gradient is incomplete, so
it moves behind it. And there the gradients still carry the scale, so that a limit of `max_norm`
means `max_norm / scale`: `scaler.unscale_(optimizer)` comes first, and `scaler.step` then does not
divide again.""",
    wrong=(
        Wrong(
            _as_found,
            "This is the loop as found. What is left in `parameters` after the line that clips has "
            "run once? By how much are the gradients scaled there? And how many micro-batches have "
            "gone through?",
            given=True,
        ),
        Wrong.changed(
            train_clipped,
            LIST,
            "model.parameters()",
            "A generator can be read only once: the first batch is clipped, and all later ones "
            "are not. Make a list of it.",
        ),
        Wrong.changed(
            train_clipped,
            "        scaler.unscale_(optimizer)\n",
            "",
            "The steps are scale times too short, or shorter still: either the gradients carry the "
            "scale when you clip them, or the limit is divided by it. Call "
            "scaler.unscale_(optimizer) first, then clip to max_norm itself.",
            also=(
                changed(train_clipped, CLIP_ONCE, f"        clip_grad_norm_{DIVIDED}\n"),
                changed(train_clipped, "(parameters, max_norm)", DIVIDED),
            ),
        ),
        Wrong(
            changed(
                changed(train_clipped, CLIP_ONCE, PAST_THE_SCALER),
                STEP,
                "        optimizer.step()\n",
            ),
            "The steps are scale times too long: optimizer.step() takes the gradients as they are, "
            "and they still carry the scale. Call scaler.unscale_(optimizer) before you clip, and "
            "scaler.step(optimizer), which skips an update whose gradient is not finite.",
        ),
        Wrong.changed(
            train_clipped,
            CLIP_ONCE,
            "            clip_grad_norm_(parameters, max_norm * scaler.get_scale())\n",
            "You clip after each micro-batch, while the gradient is still incomplete. Clip once a "
            "batch, behind the loop over its micro-batches.",
        ),
        Wrong.changed(
            train_clipped,
            CLIP_ONCE,
            "            clip_grad_norm_(parameters, max_norm)\n",
            "Two faults are left: you clip after each micro-batch, while the gradient is still "
            "incomplete, and it carries the scale there. Behind the loop, unscale, then clip.",
        ),
        Wrong.changed(
            train_clipped,
            "        clip_grad_norm_(parameters, max_norm)\n        scaler.step(optimizer)\n",
            "        scaler.step(optimizer)\n        clip_grad_norm_(parameters, max_norm)\n",
            "You clip after the step, when the optimizer has used the gradients already: nothing "
            "is limited.",
        ),
        Wrong.changed(
            train_clipped,
            "        clip_grad_norm_(parameters, max_norm)\n",
            "        for parameter in parameters:\n"
            "            parameter.grad.clamp_(-max_norm, max_norm)\n",
            "You limit each number by itself: the norm may still exceed max_norm, and the gradient "
            "turns. Limit the global norm.",
        ),
        Wrong(
            changed(changed(train_clipped, ADVANCE, ""), BACKWARD, f"{BACKWARD}    {ADVANCE}"),
            "The learning rate is lowered after each micro-batch. Advance the schedule once a "
            "batch.",
            also=(changed(train_clipped, BACKWARD, f"{BACKWARD}    {ADVANCE}"),),
        ),
        Wrong.changed(
            train_clipped,
            "        optimizer.zero_grad()\n",
            "",
            "The gradients of earlier batches are never cleared: clear them once a batch, before "
            "its first backward.",
        ),
    ),
)


# ---- build: the gradient lies on several ranks, and one number may travel ----


def clip_sharded_cases(rng: random.Random) -> Iterator[Case]:
    for world, share in ((2, 0.5), (3, 0.6), (4, 0.3), (3, 1.2), (2, 1.1), (1, 0.5)):
        sizes = [rng.randrange(3, 9) + rank for rank in range(world)]
        sizes[-1] = 0 if world == 4 else sizes[-1]  # a rank may be left without any number
        pieces = [normal(rng, size) for size in sizes]
        replicated = normal(rng, 5)
        norm = torch.cat([*pieces, replicated]).norm().item()
        yield {"pieces": pieces, "replicated": replicated, "max_norm": share * norm}


def clip_sharded_deal(case: Case) -> list[Case]:
    alike = {"replicated": case["replicated"], "max_norm": case["max_norm"]}
    return [{"piece": piece, **alike} for piece in case["pieces"]]


def clip_sharded_drive(answer, part, links):
    piece, replicated = part["piece"].clone(), part["replicated"].clone()
    norm = answer(piece, replicated, part["max_norm"], links.all_reduce)
    return {"norm": float(norm), "piece": piece, "replicated": replicated}


def clip_sharded_assess(returned, case: Case):
    ranks = {
        f"{what} on rank {rank}": value
        for rank, found in enumerate(returned["ranks"])
        for what, value in found.items()
    }
    sent = [sum(tensor.numel() for tensor in tensors) for tensors in returned["messages"]]
    if len(sent) == 1:  # a rank by itself need not send anything
        return ranks
    return {**ranks, "numbers sent by a rank": max(sent)}


def clip_sharded(piece, replicated, max_norm, all_reduce):
    squares = piece.square().sum()
    all_reduce(squares)
    norm = (squares + replicated.square().sum()).sqrt()
    if norm > max_norm:
        piece.mul_(max_norm / norm)
        replicated.mul_(max_norm / norm)
    return norm


def _adds_norms(piece, replicated, max_norm, all_reduce):
    norm = piece.norm()
    all_reduce(norm)
    norm = norm + replicated.norm()
    if norm > max_norm:
        piece.mul_(max_norm / norm)
        replicated.mul_(max_norm / norm)
    return norm


def _adds_norms_of_all(piece, replicated, max_norm, all_reduce):
    norm = torch.cat([piece, replicated]).norm()
    all_reduce(norm)
    if norm > max_norm:
        piece.mul_(max_norm / norm)
        replicated.mul_(max_norm / norm)
    return norm


def _averages_norms(piece, replicated, max_norm, all_reduce):
    norm_and_ranks = torch.stack([torch.cat([piece, replicated]).norm(), piece.new_ones(())])
    all_reduce(norm_and_ranks)
    norm = norm_and_ranks[0] / norm_and_ranks[1]
    if norm > max_norm:
        piece.mul_(max_norm / norm)
        replicated.mul_(max_norm / norm)
    return norm


def _counts_the_ranks(piece, replicated, max_norm, all_reduce):
    squares = torch.stack([piece.square().sum(), piece.new_ones(())])
    all_reduce(squares)
    norm = (squares[0] + replicated.square().sum()).sqrt()
    if norm > max_norm:
        piece.mul_(max_norm / norm)
        replicated.mul_(max_norm / norm)
    return norm


CLIP_SHARDED = Exercise(
    name="clip_sharded",
    points=3,
    task="""A model is spread over several ranks. Each of them holds `piece`, a part of the gradient
that no other rank has, and `replicated`, the gradient of the small layers that every rank has: it
is complete, and the same everywhere.

Write `clip_sharded(piece, replicated, max_norm, all_reduce)`, which runs on every rank: limit the
global norm of the **whole** gradient to `max_norm`, by changing `piece` and `replicated` in place,
and return the norm before. The whole gradient is the pieces of all ranks, and `replicated` once.
`all_reduce(tensor)` replaces a tensor by its sum over the ranks, in place, and returns nothing.
Each rank may send **one number**. A piece may be empty.""",
    cases=clip_sharded_cases,
    deal=clip_sharded_deal,
    drive=clip_sharded_drive,
    assess=clip_sharded_assess,
    reference=clip_sharded,
    reasoning="""Norms do not add up, squares do: ‖g‖² is the sum over the ranks of the squares of
their pieces, plus the squares of what is replicated, once. The first sum is one number a rank, and
one all-reduce gives it to all. The second is known to every rank already, so it is added behind the
all-reduce, or it would count as often as there are ranks. All ranks then compute the same norm and
the same factor, and the replicated part stays the same everywhere.""",
    wrong=(
        Wrong.changed(
            clip_sharded,
            "    all_reduce(squares)\n",
            "",
            "Each rank clips by the norm of what it holds itself: the ranks use different factors, "
            "and what is replicated differs from then on. Add up the squares of all ranks.",
        ),
        Wrong(
            _adds_norms,
            "You add up norms. The norm of the whole is the root of the sum of the squares, which "
            "is smaller.",
            also=(_adds_norms_of_all,),
        ),
        Wrong(
            _averages_norms,
            "You average the ranks' norms. Each rank has another piece: the squares of the pieces "
            "add up to the square of the whole norm.",
        ),
        Wrong.changed(
            clip_sharded,
            "    all_reduce(squares)\n    norm = (squares + replicated.square().sum()).sqrt()\n",
            "    squares += replicated.square().sum()\n"
            "    all_reduce(squares)\n"
            "    norm = squares.sqrt()\n",
            "What is replicated goes into the sum on every rank, so it counts as often as there "
            "are ranks. Add it once, behind the all-reduce.",
        ),
        Wrong.changed(
            clip_sharded,
            "(squares + replicated.square().sum())",
            "squares",
            "The replicated part is missing in the norm: it belongs to the whole gradient, once.",
        ),
        Wrong.changed(
            clip_sharded,
            "        replicated.mul_(max_norm / norm)\n",
            "",
            "The norm is right, but only `piece` is clipped. One factor is for the whole gradient, "
            "`replicated` as well.",
        ),
        Wrong.changed(
            clip_sharded,
            "    if norm > max_norm:\n"
            "        piece.mul_(max_norm / norm)\n"
            "        replicated.mul_(max_norm / norm)\n",
            "    piece.mul_(max_norm / norm)\n    replicated.mul_(max_norm / norm)\n",
            "A gradient shorter than max_norm is made longer. Clipping only shortens.",
        ),
        Wrong.changed(
            clip_sharded,
            "        piece.mul_(max_norm / norm)\n        replicated.mul_(max_norm / norm)\n",
            "        piece = piece * (max_norm / norm)\n"
            "        replicated = replicated * (max_norm / norm)\n",
            "The norm is right, but neither tensor has changed: `piece = piece * factor` makes a "
            "new one. Write into the old one, with `piece.mul_(factor)`.",
        ),
        Wrong.changed(
            clip_sharded,
            "    return norm",
            "    return norm.clamp(max=max_norm)",
            "The gradients are right, but you return the norm after clipping. Return what was "
            "measured before.",
        ),
        Wrong(
            _counts_the_ranks,
            "The gradients are right, but each rank sent more than one number. The sum of the "
            "squares of its piece is all that the others need.",
        ),
    ),
)
