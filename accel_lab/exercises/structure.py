"""Exercises of chapter 07: the width that a budget of bytes allows, a dropout layer with three
faults, a linear layer that multiplies only what is kept, and two layers that are one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from math import isqrt

import torch

from accel_lab.exercises import Case, Exercise, LessTime, Wrong
from accel_lab.exercises._data import normal, shuffled

# ---- build: the width that fits into memory ----


def width_within_cases(rng: random.Random) -> Iterator[Case]:
    yield _budget(rng, 1, rng.randrange(3, 6), rng.randrange(2, 4), rng.randrange(3, 6))
    for depth in (1, 2, rng.randrange(5, 12), rng.randrange(20, 40)):
        inputs, outputs, batch = (rng.randrange(*ends) for ends in ((50, 90), (11, 20), (20, 60)))
        yield _budget(rng, depth, inputs, outputs, batch)
    for beyond in (0, -1):  # a width fits exactly, and one byte is missing for it
        depth, *ends = (rng.randrange(*ends) for ends in ((1, 12), (50, 90), (11, 20), (20, 60)))
        yield _budget(rng, depth, *ends, beyond=beyond)


def _budget(
    rng: random.Random, depth: int, inputs: int, outputs: int, batch: int, beyond: int | None = None
) -> Case:
    """A budget of a whole width and so many bytes, or the better part of the next width."""
    width = rng.randrange(60, 120)
    numbers = 4 * ((depth - 1) * width**2 + (inputs + outputs + depth) * width + outputs)
    numbers += batch * (depth * width + outputs)
    step = 4 * ((depth - 1) * (2 * width + 1) + inputs + outputs + depth) + batch * depth
    more = 4 * rng.randrange(3 * step // 5, 4 * step // 5)
    return {
        "depth": depth,
        "budget": 4 * numbers + (more if beyond is None else beyond),
        "batch": batch,
        "inputs": inputs,
        "outputs": outputs,
    }


def width_within_drive(answer, case):
    return answer(case["depth"], case["budget"], case["batch"], case["inputs"], case["outputs"])


def width_within(depth, budget, batch, inputs, outputs):
    numbers = budget // 4
    a = 4 * (depth - 1)
    b = 4 * (inputs + outputs + depth) + batch * depth
    room = numbers - 4 * outputs - batch * outputs
    if a == 0:
        return room // b
    return (isqrt(b * b + 4 * a * room) - b) // (2 * a)


def _by_the_root(depth, budget, batch, inputs, outputs):
    return isqrt(budget // 16 // depth)


def _rounded_up(depth, budget, batch, inputs, outputs):
    return width_within(depth, budget, batch, inputs, outputs) + 1


def _less_than_the_budget(depth, budget, batch, inputs, outputs):
    return width_within(depth, budget - 1, batch, inputs, outputs)


def _bytes_of_activations(depth, budget, batch, inputs, outputs):
    a, b = 16 * (depth - 1), 16 * (inputs + outputs + depth) + batch * depth
    room = budget - 16 * outputs - batch * outputs
    return room // b if a == 0 else (isqrt(b * b + 4 * a * room) - b) // (2 * a)


WIDTH_WITHIN = Exercise(
    name="width_within",
    points=3,
    task="""A network has `inputs` inputs, `depth` hidden layers of the same width with ReLU, and
`outputs` outputs; each linear layer has a bias. All numbers take 4 bytes. While it trains, it has
to keep the weights and biases, their gradients, and the two numbers that Adam keeps for each of
them; and for each of `batch` samples one number for every hidden unit and every output.

Write `width_within(depth, budget, batch, inputs, outputs)`: the largest width whose training fits
into `budget` bytes, as an `int`. The budget is large enough for a width of at least 1.""",
    cases=width_within_cases,
    drive=width_within_drive,
    reference=width_within,
    reasoning="""Count the parameters: `inputs·w + (depth − 1)·w² + w·outputs` weights, and
`depth·w + outputs` biases. Each of them is kept four times: weight, gradient, and two numbers of
Adam. The activations are `batch · (depth·w + outputs)` numbers. Together that is
`a·w² + b·w + c` numbers, with `a = 4·(depth − 1)`, so w is the positive root of a quadratic
equation, rounded down. With one hidden layer `a` is 0, and the equation is linear. `isqrt` and
`//` stay exact for large whole numbers.""",
    wrong=(
        Wrong(
            _by_the_root,
            "√(parameters / depth) forgets the first and the last layer, and that there are only "
            "depth − 1 layers between them. Write down all numbers as a·w² + b·w + c.",
        ),
        Wrong.changed(
            width_within,
            "4 * (inputs + outputs + depth)",
            "4 * (inputs + outputs)",
            "The biases of the hidden units are missing: depth · w of them.",
        ),
        Wrong.changed(
            width_within,
            " - 4 * outputs",
            "",
            "The biases of the outputs are missing: `outputs` of them, whatever the width.",
        ),
        Wrong.changed(
            width_within,
            " - batch * outputs",
            "",
            "The activations of the outputs are missing: one number for each sample and output.",
        ),
        Wrong(_less_than_the_budget, "A training that takes exactly `budget` bytes fits, too."),
        Wrong(_rounded_up, "This width is one too large: it exceeds the budget. Round down."),
        Wrong.changed(
            width_within,
            "a = 4 * (depth - 1)",
            "a = 4 * depth",
            "Between `depth` hidden layers there are depth − 1 square matrices.",
        ),
        Wrong.changed(
            width_within,
            " + batch * depth",
            "",
            "The activations are missing: one number for each sample and each hidden unit.",
        ),
        Wrong.changed(
            width_within,
            " + batch * depth",
            " + depth",
            "You counted the activations of one sample. The whole batch has to be kept.",
        ),
        Wrong(
            _bytes_of_activations,
            "The activations are counted as one byte each. They are numbers of 4 bytes, as the "
            "weights are.",
        ),
        Wrong.changed(
            width_within,
            "budget // 4",
            "budget",
            "A number takes 4 bytes: divide the budget by 4 first.",
        ),
        Wrong(
            lambda depth, budget, batch, inputs, outputs: _kept(
                1, depth, budget, batch, inputs, outputs
            ),
            "You counted the weights once. Their gradients, and the two numbers of Adam, have the "
            "same size each.",
        ),
        Wrong(
            lambda depth, budget, batch, inputs, outputs: _kept(
                2, depth, budget, batch, inputs, outputs
            ),
            "Weights and gradients are there, the optimizer is not: Adam keeps two numbers for "
            "each parameter.",
        ),
        Wrong(
            lambda depth, budget, batch, inputs, outputs: _kept(
                3, depth, budget, batch, inputs, outputs
            ),
            "Adam keeps two numbers for each parameter, a mean of its gradients and one of their "
            "squares. With weight and gradient that is four.",
        ),
    ),
)


def _kept(times, depth, budget, batch, inputs, outputs):
    numbers = budget // 4
    a = times * (depth - 1)
    b = times * (inputs + outputs + depth) + batch * depth
    room = numbers - times * outputs - batch * outputs
    return room // b if a == 0 else (isqrt(b * b + 4 * a * room) - b) // (2 * a)


# ---- diagnose: a dropout layer with three faults ----


def drop_units_cases(rng: random.Random) -> Iterator[Case]:
    for p in (0.25, 0.5, 0.75):
        h = normal(rng, 60, 40).abs() + 0.5
        yield {"h": h, "p": p, "seed": rng.randrange(2**31)}


def drop_units_drive(answer, case):
    import torch

    h, p = case["h"], case["p"]
    torch.manual_seed(case["seed"])
    trained = answer(h.clone(), p, True)
    again = answer(h.clone(), p, True)
    answered = answer(h.clone(), p, False)
    return {
        "h": h,
        "in training": trained,
        "in training again": again,
        "in use": answered,
        "none dropped": answer(h.clone(), 0.0, True),
    }


def drop_units_assess(returned, case):
    h, p = case["h"].double(), case["p"]
    trained, again = (returned[f"in training{more}"].double() for more in ("", " again"))
    kept = trained != 0
    ratios = (trained / h)[kept]
    columns, rows = kept.double().mean(0), kept.double().mean(1)
    spread = (p * (1 - p)) ** 0.5
    close = torch.allclose
    return {
        "h with training=False": close(returned["in use"].double(), h, rtol=1e-6),
        "h with p=0": close(returned["none dropped"].double(), h, rtol=1e-6),
        "share of units dropped is p": abs(float(kept.double().mean()) - (1 - p)) < 0.08,
        "kept units times 1 / (1 − p)": close(ratios, ratios.new_tensor(1 / (1 - p)), rtol=1e-5),
        "kept units as they were": close(ratios, torch.ones_like(ratios), rtol=1e-5),
        "samples differ in their units": float(columns.std()) < 0.7 * spread,
        "units differ in a sample": float(rows.std()) < 0.7 * spread,
        "another pattern each time": not torch.equal(kept, again != 0),
        "shape": list(trained.shape) == list(h.shape),
    }


def drop_units(h, p, training):
    if not training:
        return h
    mask = torch.rand(h.shape) >= p
    return h * mask / (1 - p)


def _as_found(h, p, training):
    mask = torch.rand(h.shape[1]) >= p
    return h * mask


def _scaled_at_use(h, p, training):
    if not training:
        return h * (1 - p)
    mask = torch.rand(h.shape) >= p
    return h * mask


DROP_UNITS = Exercise(
    name="drop_units",
    points=3,
    task="""This function is to do what `torch.nn.Dropout` does: in training, set each number of `h`
[n, width] to 0 with probability `p`, independently for each sample and each unit, so that the
expected value of every number stays as it was. When `training` is false, return `h` as it is.

It has three faults. Repair it, without changing what it takes.""",
    cases=drop_units_cases,
    drive=drop_units_drive,
    assess=drop_units_assess,
    reference=drop_units,
    reasoning="""The first fault: `training` is never looked at, so answers are random. The second:
the mask has one entry for each unit, so all samples of the batch lose the same ones; it needs the
shape of `h`. The third: of a number h the share 1 − p is left on average, so what is kept has to be
divided by 1 − p. Then nothing has to be done when the network is used.""",
    wrong=(
        Wrong(
            _as_found,
            "This is the function as found. What does it return when training is false? What is "
            "the mean of many answers? And do two samples lose different units?",
            given=True,
        ),
        Wrong.changed(
            drop_units,
            "    if not training:\n        return h\n",
            "",
            "Units are dropped in use as well: ask the same thing twice, and the answers differ. "
            "Return h when training is false.",
        ),
        Wrong.changed(
            drop_units,
            " / (1 - p)",
            "",
            "In training the numbers are too small on average: only 1 − p of them is left, and the "
            "next layer gets larger sums in use. Divide what is kept by 1 − p.",
        ),
        Wrong.changed(
            drop_units,
            " / (1 - p)",
            " / p",
            "You divide by p. The share of units that is kept is 1 − p.",
        ),
        Wrong.changed(
            drop_units,
            "h.shape)",
            "h.shape[1])",
            "The mask has one entry for each unit, so all samples of a batch lose the same units. "
            "It needs one for each sample and unit: the shape of h.",
        ),
        Wrong.changed(
            drop_units,
            "h.shape)",
            "h.shape[0], 1)",
            "The mask has one entry for each sample, so a sample keeps all of its units or none. "
            "It needs one for each sample and unit.",
        ),
        Wrong.changed(
            drop_units,
            ">= p",
            "< p",
            "You keep the share p and drop the rest. Keep a unit with probability 1 − p.",
        ),
        Wrong(
            _scaled_at_use,
            "Multiplying by 1 − p in use is the older form of dropout. Asked for is h as it is "
            "when training is false: divide by 1 − p in training.",
        ),
        Wrong.changed(
            drop_units,
            "h.shape)",
            "h.shape, generator=torch.Generator().manual_seed(0))",
            "The pattern is the same at every call: a smaller network is trained, and the other "
            "units never are. Draw a new one each time.",
        ),
    ),
)


# ---- target: multiply only what is kept ----


def cut_linear_cases(rng: random.Random) -> Iterator[Case]:
    for n in (3, 5, 4):
        yield _layer(rng, n, rng.randrange(12, 16), rng.randrange(8, 11))


def cut_linear_large(rng: random.Random) -> Case:
    return _layer(rng, 512, 2048, 512, one_of=4)


def _layer(rng: random.Random, n: int, inputs: int, outputs: int, one_of: int = 2) -> Case:
    return {
        "x": normal(rng, n, inputs),
        "weight": normal(rng, outputs, inputs) / inputs**0.5,
        "bias": normal(rng, outputs),
        "rows": shuffled(rng, outputs)[: outputs // one_of],
        "columns": shuffled(rng, inputs)[: inputs // one_of],
    }


def cut_linear_drive(answer, case):
    return answer(case["x"], case["weight"], case["bias"], case["rows"], case["columns"])


def cut_linear(x, weight, bias, rows, columns):
    small = weight.index_select(0, rows).index_select(1, columns)
    kept = x.index_select(1, columns) * (weight.shape[1] / len(columns))
    y = x.new_zeros(len(x), weight.shape[0])
    y[:, rows] = torch.nn.functional.linear(kept, small, bias[rows])
    return y


def _masked(x, weight, bias, rows, columns):
    import torch

    mask_in = torch.zeros_like(x).index_fill(1, columns, weight.shape[1] / len(columns))
    y = torch.nn.functional.linear(x * mask_in, weight, bias)
    return y * torch.zeros_like(y).index_fill(1, rows, 1.0)


FULL_PRODUCT = Wrong(
    _masked,
    "Right, but not fast enough. Multiply the kept rows and columns alone: cut both out of "
    "the weight, the rows first. Scale what is small, after the cut.",
)

CUT_LINEAR = Exercise(
    name="cut_linear",
    points=3,
    task="""A linear layer stands between two hidden layers with dropout, and one pattern serves the
whole batch: `columns` holds the indices of the inputs that are kept, `rows` those of the outputs.

Write `cut_linear(x, weight, bias, rows, columns)` for x [n, inputs], weight [outputs, inputs] and
bias [outputs]. It returns [n, outputs]. The kept outputs are those of the layer when the dropped
inputs are 0 and the kept ones are multiplied by inputs / len(columns); the dropped outputs are 0.

On 512 samples, with 2,048 inputs and 512 outputs of which a quarter each is kept, it must take at
most 0.35 of the time of a mask before and after the full product.""",
    cases=cut_linear_cases,
    drive=cut_linear_drive,
    reference=cut_linear,
    reasoning="""A quarter of the rows and of the columns is a sixteenth of the weight, so that a
sixteenth of the sums is left. Cutting copies that part, which costs little beside the product, as
long as the batch is large. The rows are selected first: then the second selection reads a quarter
as much. The scale can be applied to the kept inputs, which are few numbers. The dropped outputs are
zeros that nobody computes.""",
    wrong=(
        FULL_PRODUCT,
        Wrong.changed(
            cut_linear,
            " * (weight.shape[1] / len(columns))",
            "",
            "The scale is missing. Some of the inputs are left out, so the kept ones are "
            "multiplied by inputs / len(columns).",
        ),
        Wrong.changed(
            cut_linear,
            "weight.shape[1] / len(columns)",
            "len(columns) / weight.shape[1]",
            "The scale is upside down: multiply the kept inputs by inputs / len(columns), which "
            "is above 1.",
        ),
        Wrong.changed(
            cut_linear,
            "    kept = x.index_select(1, columns) * (weight.shape[1] / len(columns))\n",
            "    kept = x * (weight.shape[1] / len(columns))\n"
            "    small = weight.index_select(0, rows)\n",
            "The columns are not cut: the dropped inputs still take part.",
        ),
        Wrong.changed(
            cut_linear,
            "x.index_select(1, columns)",
            "x[:, : len(columns)]",
            "You take the first inputs in place of the kept ones. Select them by `columns`.",
        ),
        Wrong.changed(
            cut_linear,
            "weight.index_select(0, rows).index_select(1, columns)",
            "weight[rows, columns]",
            "weight[rows, columns] pairs each row with one column, so it needs as many of both. "
            "Select the rows first, and of them the columns: weight[rows][:, columns].",
        ),
        Wrong.changed(
            cut_linear,
            "bias[rows]",
            "bias[: len(rows)]",
            "You add the first biases in place of those of the kept outputs: bias[rows].",
        ),
        Wrong.changed(
            cut_linear,
            ", bias[rows]",
            "",
            "The bias is missing. The kept outputs have theirs: bias[rows].",
        ),
        Wrong.changed(
            cut_linear,
            "bias[rows])",
            "bias[rows] * (weight.shape[1] / len(columns)))",
            "The bias is scaled, too. Only the inputs are: nothing of the bias was left out.",
        ),
        Wrong.changed(
            cut_linear,
            "    y = x.new_zeros(len(x), weight.shape[0])\n",
            "    y = x.new_zeros(len(x), weight.shape[0]) + bias\n",
            "The dropped outputs hold their bias. They are 0.",
        ),
        Wrong.changed(
            cut_linear,
            "    return y",
            "    return y[:, rows]",
            "You return the kept outputs alone. The result has all of them, the dropped ones as 0.",
        ),
    ),
    target=LessTime(cut_linear_large, 0.35, FULL_PRODUCT),
)


# ---- build: two layers that are one ----


def collapse_cases(rng: random.Random) -> Iterator[Case]:
    for _ in range(3):
        inputs, width, outputs = rng.sample(range(3, 9), 3)
        yield {
            "w1": normal(rng, width, inputs),
            "b1": normal(rng, width),
            "w2": normal(rng, outputs, width),
            "b2": normal(rng, outputs),
        }
    n = rng.randrange(3, 6)
    yield {
        "w1": normal(rng, n, n),
        "b1": normal(rng, n),
        "w2": normal(rng, n, n),
        "b2": normal(rng, n),
    }


def collapse_drive(answer, case):
    weight, bias = answer(case["w1"], case["b1"], case["w2"], case["b2"])
    return {"weight": weight, "bias": bias}


def collapse(w1, b1, w2, b2):
    return w2 @ w1, w2 @ b1 + b2


def _the_other_way_round(w1, b1, w2, b2):
    if w1.shape[1] != w2.shape[0]:
        return w2 @ w1, w2 @ b1 + b2
    return w1 @ w2, w2 @ b1 + b2


COLLAPSE = Exercise(
    name="collapse",
    points=2,
    task="""Between two linear layers somebody forgot the ReLU: first `w1` [width, inputs] and `b1`
[width] are applied, then `w2` [outputs, width] and `b2` [outputs], as `torch.nn.Linear` does. So
the two express no more than one.

Write `collapse(w1, b1, w2, b2)`: weight [outputs, inputs] and bias [outputs] of the one layer that
does the same, as a pair.""",
    cases=collapse_cases,
    drive=collapse_drive,
    reference=collapse,
    reasoning="""w2·(w1·x + b1) + b2 = (w2·w1)·x + (w2·b1 + b2). The layer that comes second stands
on the left, and the first bias goes through it. So a stack of linear layers is one linear layer,
however deep: only the ReLU between them makes depth express more.""",
    wrong=(
        Wrong(
            lambda w1, b1, w2, b2: (w1 @ w2, w2 @ b1 + b2),
            "The order is the other way round: the layer that comes second stands on the left, "
            "w2 @ w1.",
            also=(_the_other_way_round,),
        ),
        Wrong.changed(
            collapse,
            "w2 @ b1 + b2",
            "b2",
            "The first bias is lost. It goes through the second layer: w2 @ b1.",
        ),
        Wrong.changed(collapse, "w2 @ b1 + b2", "w2 @ b1", "The second bias is lost: add b2."),
        Wrong.changed(
            collapse,
            "w2 @ b1 + b2",
            "b1.sum() + b2",
            "The first bias is added as it is. It goes through the second layer, as the units do: "
            "w2 @ b1.",
            also=(lambda w1, b1, w2, b2: (w2 @ w1, b1 + b2),),
        ),
        Wrong.changed(
            collapse,
            "w2 @ w1,",
            "(w2 @ w1).T,",
            "The weight is transposed. torch.nn.Linear has [outputs, inputs].",
        ),
    ),
)
