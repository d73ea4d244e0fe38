"""Exercises of chapter 13: rounding by chance to any number of bits, a float16 loop with three
faults, and 16-bit weights that forget nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from accel_lab.exercises import Case, Exercise, Wrong, changed
from accel_lab.exercises._data import normal, whole

CLASSES, WIDTH = 4, 5

# ---- build: up or down by chance, for any number of bits ----


def round_by_chance_cases(rng: random.Random) -> Iterator[Case]:
    for bits in (11, 5):
        values = []
        for quarter in (0, 1, 2, 3):
            for sign in (1, -1):
                number = rng.randrange(2 ** (bits - 1), 2**bits - 1) + quarter / 4
                values.append(sign * number * 2.0 ** rng.randrange(-30, 30))
        yield {"values": torch.tensor(values), "bits": bits, "special": False}
    values = [0.0, float("inf"), float("-inf"), float("nan"), 1.0]
    yield {"values": torch.tensor(values), "bits": 8, "special": True}


def round_by_chance_drive(answer, case):
    import torch

    torch.manual_seed(11)
    x = case["values"]
    draws = 20 if case["special"] else 1500
    return {"rounded": answer(x.expand(draws, -1).clone(), case["bits"]).detach().clone()}


def round_by_chance_assess(returned, case: Case):
    x, rounded = case["values"], returned["rounded"]
    if tuple(rounded.shape[1:]) != tuple(x.shape) or rounded.dtype != x.dtype:
        return {"rounded, the first draw": rounded[0] if rounded.dim() else rounded}
    if case["special"]:
        return {f"round {float(one):g}": f"{float(rounded[0, i]):g}" for i, one in enumerate(x)}
    _, exponent = torch.frexp(x.double())
    spacing = torch.ldexp(torch.ones_like(x).double(), exponent - case["bits"])
    low = torch.floor(x.double().abs() / spacing)
    off = rounded.double().abs() / spacing - low
    up = ((off == 1).double().mean(0) * 4).round() / 4
    astray = (((off != 0) & (off != 1)).double().mean(0) * 4).round() / 4
    wrong_sign = (rounded.sign() != x.sign()).double().mean(0)
    found = {}
    for i, value in enumerate(x):
        name = f"{float(value):.8g}"
        found[f"share of draws in which {name} goes away from zero"] = float(up[i])
        found[f"share of draws in which {name} becomes no neighbour"] = float(astray[i])
        found[f"share of draws in which {name} changes its sign"] = float(wrong_sign[i])
    first, second = (i for i in range(len(x)) if x[i].double().abs() / spacing[i] - low[i] == 0.5)
    both = ((off[:, first] == off[:, second]).double().mean() * 4).round() / 4
    names = f"{float(x[first]):.8g} and {float(x[second]):.8g}"
    found[f"share of draws in which {names} go the same way"] = float(both)
    return found


def round_by_chance(x, bits):
    mantissa, exponent = torch.frexp(x)
    spacings = torch.ldexp(mantissa, torch.tensor(bits))
    below = torch.floor(spacings)
    whole_part = below + (torch.rand_like(x) < spacings - below)
    rounded = torch.ldexp(whole_part, exponent - bits)
    return torch.where(x.isfinite(), rounded, x)


def _with_one_bit_more(x, bits):
    mantissa, exponent = torch.frexp(x)
    spacings = torch.ldexp(mantissa, torch.tensor(bits + 1))
    below = torch.floor(spacings)
    whole_part = below + (torch.rand_like(x) < spacings - below)
    rounded = torch.ldexp(whole_part, exponent - bits - 1)
    return torch.where(x.isfinite(), rounded, x)


def _with_one_bit_less(x, bits):
    mantissa, exponent = torch.frexp(x)
    spacings = torch.ldexp(mantissa, torch.tensor(bits - 1))
    below = torch.floor(spacings)
    whole_part = below + (torch.rand_like(x) < spacings - below)
    rounded = torch.ldexp(whole_part, exponent - bits + 1)
    return torch.where(x.isfinite(), rounded, x)


def _adds_noise_afterwards(x, bits):
    mantissa, exponent = torch.frexp(x)
    spacings = torch.ldexp(mantissa, torch.tensor(bits)).round()
    whole_part = spacings + torch.randint(-1, 2, x.shape)
    rounded = torch.ldexp(whole_part, exponent - bits)
    return torch.where(x.isfinite(), rounded, x)


FLOOR = "below + (torch.rand_like(x) < spacings - below)"

ROUND_BY_CHANCE = Exercise(
    name="round_by_chance",
    points=3,
    task="""The chapter rounds to bfloat16 by cutting off bits, and bfloat16 has 8 significant
ones. Round to any number of them.

Write `round_by_chance(x, bits)`: return a tensor like `x`, of the same dtype, in which each number
has been replaced by one of its two neighbours that have `bits` significant bits. A number that lies
a quarter of the way from one neighbour to the other becomes the other one in a quarter of all
draws, so that the mean is `x`. Draw for each number anew, with torch's random numbers. Negative
numbers are rounded in the same way. Zero, infinity and NaN stay as they are.

`torch.frexp(x)` gives a mantissa m, 0.5 ≤ |m| < 1, and an exponent e with x = m · 2^e;
`torch.ldexp(m, e)` is m · 2^e.""",
    cases=round_by_chance_cases,
    drive=round_by_chance_drive,
    assess=round_by_chance_assess,
    reference=round_by_chance,
    reasoning="""In units of the spacing, x is m · 2^bits: a whole number and a fraction f. A random
number from [0, 1) is below f with probability f, and then the next whole number is taken. This
holds for negative numbers as well, because `floor` goes down and f is counted from there. A number
without a fraction never moves. Multiplied by the spacing, 2^(e − bits), the whole number is the
rounded one.""",
    wrong=(
        Wrong.changed(
            round_by_chance,
            FLOOR,
            "torch.round(spacings)",
            "You round to the nearest neighbour: every draw is the same, and a small update always "
            "vanishes. Go to the other neighbour in as many draws as x lies towards it.",
        ),
        Wrong.changed(
            round_by_chance,
            FLOOR,
            "torch.trunc(spacings)",
            "The bits are cut off, and the result is always the neighbour nearer to zero. Add a "
            "random number between 0 and 1, in units of the spacing, before you cut.",
        ),
        Wrong.changed(
            round_by_chance,
            FLOOR,
            "torch.trunc(spacings + torch.rand_like(x))",
            "Positive numbers are right. For negative ones `trunc`, or a cast to int, cuts towards "
            "zero, and adding noise moves them towards zero, too: use `floor`, or noise with their "
            "sign.",
        ),
        Wrong.changed(
            round_by_chance,
            FLOOR,
            "below + (torch.rand_like(x) < 0.5) * (spacings > below)",
            "Each number goes up or down by the toss of a coin, however near it is to one of the "
            "two. The chance of a neighbour has to grow with its nearness.",
        ),
        Wrong.changed(
            round_by_chance,
            "torch.rand_like(x)",
            "torch.rand(x.shape[0], *[1] * (x.dim() - 1))",
            "One random number decides for several numbers of x, so their errors have the same "
            "direction and do not cancel in a sum. Draw one for each: `torch.rand_like(x)`.",
            also=(
                changed(round_by_chance, "torch.rand_like(x)", "torch.rand(())"),
                changed(round_by_chance, "torch.rand_like(x)", "torch.rand(x.shape[-1])"),
            ),
        ),
        Wrong(
            _with_one_bit_more,
            "A bit too many: the neighbours that you take are half as far apart as they should be. "
            "The leading 1 is one of the `bits`, and m · 2^bits has them all before the point.",
        ),
        Wrong(
            _with_one_bit_less,
            "A bit too few: the neighbours that you take are twice as far apart as they should be. "
            "m is at least 0.5, not 1, so m · 2^bits has `bits` of them before the point.",
        ),
        Wrong.changed(
            round_by_chance,
            FLOOR,
            "torch.round(spacings + torch.rand_like(x))",
            "The mean is half a spacing too large: the noise is between 0 and 1, and `round` adds "
            "another half. Take `floor`, or noise between −0.5 and 0.5.",
        ),
        Wrong(
            _adds_noise_afterwards,
            "The noise is added after the rounding, when the fraction is gone, and the result can "
            "lie two spacings off. Add it before.",
        ),
        Wrong.changed(
            round_by_chance,
            "    return torch.where(x.isfinite(), rounded, x)",
            "    return rounded.nan_to_num()",
            "Infinity and NaN have no neighbours: return them as they are.",
        ),
        Wrong.changed(
            round_by_chance,
            "exponent - bits)",
            "exponent - bits).to(torch.bfloat16)",
            "You return bfloat16, which has 8 significant bits, and not as many as were asked "
            "for. Return the dtype of x.",
        ),
    ),
)


# ---- diagnose: the float16 loop ----


def train_scaled_cases(rng: random.Random) -> Iterator[Case]:
    for scale, interval in ((256.0, 3), (4096.0, 2), (1024.0, 4)):
        count = 4 * interval + 2
        bad = {interval - 1, 2 * interval + 1}  # just before the scale would grow
        batches = []
        for number in range(count):
            x = (4, 0.05)[number % 2] * normal(rng, 6, WIDTH)
            if number in bad:
                x[rng.randrange(6), rng.randrange(WIDTH)] = float("inf")
            batches.append([x, whole(rng, 0, CLASSES, 6)])
        yield {
            "weight": 0.2 * normal(rng, CLASSES, WIDTH),
            "batches": batches,
            "max_norm": rng.uniform(0.4, 0.6),
            "scale": scale,
            "interval": interval,
        }


def train_scaled_drive(answer, case):
    import torch

    weight = case["weight"]
    model = torch.nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    with torch.no_grad():
        model.weight.copy_(weight)
        model.bias.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    rates = []
    batches = [(x, y) for x, y in case["batches"]]

    class Schedule:
        def step(self):
            rates.append(0)
            for group in optimizer.param_groups:
                group["lr"] *= 0.9

    options = (case["max_norm"], case["scale"], case["interval"])
    scales = answer(model, optimizer, Schedule(), batches, *options)
    return {
        "scales": [float(scale) for scale in scales],
        "weight": model.weight.detach().clone(),
        "bias": model.bias.detach().clone(),
        "times the schedule advanced": len(rates),
    }


def train_scaled(model, optimizer, schedule, batches, max_norm, scale, interval):
    parameters, in_a_row, scales = list(model.parameters()), 0, []
    for x, y in batches:
        optimizer.zero_grad()
        (scale * cross_entropy(model(x), y)).backward()
        for parameter in parameters:
            parameter.grad.div_(scale)
        norm = clip_grad_norm_(parameters, max_norm)
        if norm.isfinite():
            optimizer.step()
            schedule.step()
            in_a_row += 1
        else:
            scale, in_a_row = scale / 2, 0
        if in_a_row == interval:
            scale, in_a_row = 2 * scale, 0
        scales.append(scale)
    return scales


def _as_found(model, optimizer, schedule, batches, max_norm, scale, interval):
    parameters, in_a_row, scales = list(model.parameters()), 0, []
    for x, y in batches:
        optimizer.zero_grad()
        (scale * cross_entropy(model(x), y)).backward()
        norm = clip_grad_norm_(parameters, max_norm)
        for parameter in parameters:
            parameter.grad.div_(scale)
        if norm.isfinite():
            optimizer.step()
            in_a_row += 1
        else:
            scale = scale / 2
        schedule.step()
        if in_a_row == interval:
            scale, in_a_row = 2 * scale, 0
        scales.append(scale)
    return scales


UNSCALE = "        for parameter in parameters:\n            parameter.grad.div_(scale)\n"
CLIP = "        norm = clip_grad_norm_(parameters, max_norm)\n"
GOOD = """\
            optimizer.step()
            schedule.step()
            in_a_row += 1
"""
GROW = "        if in_a_row == interval:\n"
ALWAYS_ADVANCES = """\
            optimizer.step()
            in_a_row += 1
        else:
            scale, in_a_row = scale / 2, 0
        schedule.step()
"""
RESETS = "scale, in_a_row = scale / 2, 0"

TRAIN_SCALED = Exercise(
    name="train_scaled",
    points=3,
    task="""This is a training loop for float16 that adjusts its loss scale itself. The loss falls,
but the loop has three faults. Repair them, without changing what it takes and returns.

For each batch (x, y) there is to be one update, from a gradient of the unscaled mean loss whose
global norm is at most `max_norm`. Where that gradient is not finite, the update is skipped and the
scale is halved. After `interval` updates **in a row**, none of them skipped, the scale doubles.
`schedule` advances once for each update that was made, and not for a skipped one. Return the scale
after each batch.""",
    cases=train_scaled_cases,
    drive=train_scaled_drive,
    reference=train_scaled,
    reasoning="""The gradient carries the scale until it is divided out, so the division comes
before the clipping; otherwise `max_norm / scale` is left. A skipped update leaves the weights
alone, so the schedule waits as well. And an overflow ends the row of good updates: the count
restarts at 0, or the scale grows back right after it was found too large.""",
    wrong=(
        Wrong(
            _as_found,
            "This is the loop as found. By how much are the gradients scaled in the line that "
            "clips? What else happens in an update that is skipped, and what should happen to the "
            "count?",
            given=True,
        ),
        Wrong.changed(
            train_scaled,
            UNSCALE + CLIP,
            CLIP + UNSCALE,
            "You clip while the gradients carry the scale: max_norm / scale is left. Divide by the "
            "scale first, then clip.",
        ),
        Wrong.changed(
            train_scaled,
            GOOD + f"        else:\n            {RESETS}\n",
            ALWAYS_ADVANCES,
            "The schedule advances in skipped updates, too, so the learning rate falls although "
            "nothing was learned. Advance it only when the optimizer steps.",
        ),
        Wrong.changed(
            train_scaled,
            "            optimizer.step()\n            schedule.step()\n",
            "            schedule.step()\n            optimizer.step()\n",
            "The schedule advances before the optimizer steps, so each update takes the learning "
            "rate of the next one. Step the optimizer first.",
        ),
        Wrong.changed(
            train_scaled,
            RESETS,
            "scale = scale / 2",
            "The scale grows after `interval` good updates altogether. It has to be in a row: set "
            "the count to 0 when an update is skipped.",
        ),
        Wrong.changed(
            train_scaled,
            "        if norm.isfinite():\n",
            "        if True:\n",
            "A gradient that is not finite reaches the weights, and they are NaN from then on. "
            "Step only if the norm is finite.",
        ),
        Wrong.changed(
            train_scaled,
            UNSCALE,
            "",
            "The gradients are never divided by the scale. The clipping hides it: each update is "
            "max_norm long, also where the gradient is shorter, and overflows come from a norm "
            "that is scale times too large. Divide before you clip.",
        ),
        Wrong.changed(
            train_scaled,
            "            scale, in_a_row = 2 * scale, 0\n",
            "            scale = 2 * scale\n",
            "After the scale has grown once it never grows again: the count goes on past "
            "`interval`. Set it to 0 when the scale doubles.",
        ),
        Wrong.changed(
            train_scaled,
            "        optimizer.zero_grad()\n",
            "",
            "The gradients of earlier batches are never cleared, and one that was infinite stays "
            "so. Clear them before each backward.",
        ),
    ),
)


# ---- build: 16 bits twice ----


def compensated_step_cases(rng: random.Random) -> Iterator[Case]:
    for size in (1e-3, 3e-4, 1e-2):
        weight = (1024 * normal(rng, 4, 6)).bfloat16()
        yield {
            "weight": weight,
            "rest": torch.zeros(4, 6, dtype=torch.bfloat16),
            "updates": [1024 * size * normal(rng, 4, 6).abs() for _ in range(12)],
        }


def compensated_step_drive(answer, case):
    weight, rest = case["weight"].clone(), case["rest"].clone()
    returned = {}
    for number, update in enumerate(case["updates"]):
        answer(weight, rest, update)
        if number in (0, 1, 11):
            returned[f"weight after update {number + 1}"] = weight.float()
            returned[f"rest after update {number + 1}"] = rest.float()
    return returned


def compensated_step(weight, rest, update):
    exact = weight.float() + rest.float() + update.float()
    weight.copy_(exact)
    rest.copy_(exact - weight.float())


def _adds_the_rest_in_16_bits(weight, rest, update):
    total = weight + rest + update  # the first + rounds to bfloat16, and the rest is gone
    weight.copy_(total)
    rest.copy_(total - weight.float())


def _in_16_bits(weight, rest, update):
    exact = weight + (rest + update.to(weight.dtype))
    rest.copy_(exact - weight)
    weight.copy_(exact)


def _with_the_other_sign(weight, rest, update):
    exact = weight.float() - rest.float() + update.float()
    weight.copy_(exact)
    rest.copy_(weight.float() - exact)


COMPENSATED_STEP = Exercise(
    name="compensated_step",
    points=3,
    task="""A weight in bfloat16 cannot take small updates. But what rounding takes away can be
kept in a second bfloat16 number, `rest`, and be given back later. (This is compensated summation,
W. Kahan 1965.) Together they need 4 bytes, and no random numbers.

Write `compensated_step(weight, rest, update)`, which changes `weight` and `rest` in place. Both are
bfloat16, `update` is float32, all of one shape, and the stored value is meant to be
`weight + rest`. Add `update` to it, computing in float32; then `weight` is to be the exact sum
rounded to bfloat16, and `rest` what this rounding took away, rounded to bfloat16 itself.""",
    cases=compensated_step_cases,
    drive=compensated_step_drive,
    reference=compensated_step,
    reasoning="""The three numbers are added in float32, where nothing of this size is lost.
`weight.copy_` rounds the sum to bfloat16. What is missing is the difference between the sum and the
weight *as it was rounded*, again in float32. It is smaller than half a spacing of the weight, so
its own bfloat16 number describes it well; the next update begins with it.""",
    wrong=(
        Wrong.changed(
            compensated_step,
            " + rest.float()",
            "",
            "`rest` never comes back, so small updates vanish as before: either it is not added, "
            "or it is added to a bfloat16 weight, where it is rounded away. Cast the weight to "
            "float32, then add `rest` and `update`.",
            also=(_adds_the_rest_in_16_bits,),
        ),
        Wrong.changed(
            compensated_step,
            "    rest.copy_(exact - weight.float())\n",
            "",
            "The first weight is right, but `rest` never changes: what rounding takes away is "
            "forgotten. Store exact − weight in it.",
        ),
        Wrong.changed(
            compensated_step,
            "exact - weight.float()",
            "weight.float() - exact",
            "The sign of `rest` is turned round, so every error is added once more. It is what is "
            "missing in the weight: exact − weight.",
        ),
        Wrong(
            _with_the_other_sign,
            "The weight is right, and `rest` has the other sign: you keep what is too much, and "
            "take it off. Here the value is weight + rest, so keep what is missing.",
        ),
        Wrong.changed(
            compensated_step,
            "rest.copy_(exact - weight.float())",
            "rest.add_(exact - weight.float())",
            "The old rest is in the sum already; adding the new one to it counts it twice. Replace "
            "it.",
        ),
        Wrong.changed(
            compensated_step,
            "    weight.copy_(exact)\n    rest.copy_(exact - weight.float())\n",
            "    rest.copy_(exact - weight.float())\n    weight.copy_(exact)\n",
            "`rest` is taken before the weight is rounded, so it holds the whole update, which the "
            "weight has got as well. Round first, then take the difference.",
            also=(
                changed(
                    compensated_step, "exact - weight.float()", "rest.float() + update.float()"
                ),
            ),
        ),
        Wrong(
            _in_16_bits,
            "The sum is made in bfloat16, where the update vanishes before anything can be kept. "
            "Cast to float32 first.",
        ),
        Wrong.changed(
            compensated_step,
            "weight.copy_(exact)",
            "weight = exact.to(weight.dtype)",
            "`weight = …` makes a new tensor, and the one that was handed over stays as it is. "
            "Write into it, with `weight.copy_(…)`.",
        ),
    ),
)
