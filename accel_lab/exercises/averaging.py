"""Exercises of chapter 14: a debiased average of passing states, a training loop with four faults,
units brought into order, and one call instead of two hundred.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch.nn.functional import cross_entropy

from accel_lab.exercises import Case, Exercise, LessTime, Wrong, changed
from accel_lab.exercises._data import normal, shuffled, whole

CLASSES, WIDTH, TENSORS = 4, 6, 200

# ---- build: an average without a start ----


def debiased_ema_cases(rng: random.Random) -> Iterator[Case]:
    for count in (2, rng.randrange(3, 5), rng.randrange(5, 8)):
        states = [
            {
                "weight": normal(rng, 3, 2) + 2,
                "halves": (normal(rng, 5) + 1).bfloat16(),
                "running_mean": normal(rng, 3) + 1,
                "batches": whole(rng, 0, 1000, 5),
            }
            for _ in range(count)
        ]
        yield {"states": states, "decay": rng.uniform(0.6, 0.95)}


def debiased_ema_drive(answer, case):
    live = {name: tensor.clone() for name, tensor in case["states"][0].items()}

    def passing():  # as a model in training: the same tensors, with other numbers in them
        for state in case["states"]:
            for name, tensor in state.items():
                live[name].copy_(tensor)
            yield dict(live)

    return answer(passing(), case["decay"])


def debiased_ema(states, decay):
    sums, averages = {}, []
    for count, state in enumerate(states, 1):
        average = {}
        for name, now in state.items():
            if now.is_floating_point():
                now = now.to(torch.promote_types(now.dtype, torch.float32))
                sums[name] = decay * sums.get(name, 0) + (1 - decay) * now
                average[name] = sums[name] / (1 - decay**count)
            else:
                average[name] = now.clone()
        averages.append(average)
    return averages


def _in_half(states, decay):
    return [
        {name: one.float() if one.dtype == torch.bfloat16 else one for name, one in state.items()}
        for state in _IN_THEIR_OWN_DTYPE(states, decay)
    ]


_IN_THEIR_OWN_DTYPE = changed(
    debiased_ema,
    "                now = now.to(torch.promote_types(now.dtype, torch.float32))\n",
    "",
)


def _as_they_are(states, decay):
    return list(states)


DEBIASED_EMA = Exercise(
    name="debiased_ema",
    points=3,
    task="""Write `debiased_ema(states, decay)`: the EMA of a model's states, without a start.

`states` can be gone through once: after each update it yields the model's `state_dict`, name →
tensor, **the same tensors each time, with other numbers in them**. Start the sums at 0; after t
states an average is its sum / (1 − decayᵗ). Return a list: for each state a dict, name → average.
Floating-point tensors are averaged, bfloat16 in float32, and stay float32; integer tensors are what
they were at that state.""",
    cases=debiased_ema_cases,
    drive=debiased_ema_drive,
    reference=debiased_ema,
    reasoning="""A sum that starts at 0 holds the shares (1 − d)·dᵏ of the last t states, and these
add up to 1 − dᵗ: dividing by that makes them a mean. The sum itself stays undivided, because it
goes on. Each average is a new tensor, and integers are cloned, because the model overwrites its
tensors with the next update. Half precision is converted first: a step of 1 − d, a few percent of a
difference, is below its last digit.""",
    wrong=(
        Wrong.changed(
            debiased_ema,
            " / (1 - decay**count)",
            "",
            "Not debiased: the shares of t states add up to 1 - decay**t, so a young average is "
            "too small. Divide by that.",
        ),
        Wrong(
            _as_they_are,
            "The states come back as they came: nothing is averaged. And the tensors in all of "
            "them hold the last state by now: the model's own.",
        ),
        Wrong.changed(
            debiased_ema,
            "enumerate(states, 1)",
            "enumerate(states)",
            "The count is one behind: after the first state it is 1, not 0, and 1 - decay**0 is 0.",
        ),
        Wrong.changed(
            debiased_ema,
            "if now.is_floating_point():",
            "if True:",
            "Integer tensors were averaged. A count of batches has no mean: return what it is.",
        ),
        Wrong.changed(
            debiased_ema,
            "now.clone()",
            "now",
            "The integers of all states are those of the last one: you kept the model's own "
            "tensor, which the next update overwrites. Clone it.",
        ),
        Wrong(
            _IN_THEIR_OWN_DTYPE,
            "The average of bfloat16 was kept in bfloat16, where a small step is lost to rounding. "
            "Convert to float32 before you add, and return float32.",
            also=(_in_half,),
        ),
        Wrong.changed(
            debiased_ema,
            "decay * sums.get(name, 0) + (1 - decay) * now",
            "(1 - decay) * sums.get(name, 0) + decay * now",
            "The shares are swapped: decay is the share of what is remembered, 1 - decay that of "
            "the new state.",
        ),
        Wrong.changed(
            debiased_ema,
            "                average[name] = sums[name] / (1 - decay**count)\n",
            "                sums[name] = sums[name] / (1 - decay**count)\n"
            "                average[name] = sums[name]\n",
            "You divided the sum itself, and the next state divides it again. Keep the sum as it "
            "is, and divide a copy.",
        ),
        Wrong(
            changed(
                changed(debiased_ema, "        average = {}\n", ""),
                "sums, averages = {}, []",
                "sums, averages, average = {}, [], {}",
            ),
            "All averages are the last one: the list holds one and the same dict many times. Make "
            "a new one for each state.",
        ),
        Wrong.changed(
            debiased_ema,
            "sums.get(name, 0)",
            "sums.get(name, now)",
            "You divide by 1 - decay**t, but the sums do not start at 0: with the first state in "
            "them twice the averages are too large. Start at 0.",
        ),
        Wrong(
            changed(
                changed(debiased_ema, " / (1 - decay**count)", ""),
                "sums.get(name, 0)",
                "sums.get(name, now)",
            ),
            "Your average begins at the first state, whose share then stays decay**t. Start at 0, "
            "and divide by 1 - decay**t.",
        ),
    ),
)


# ---- diagnose: a loop that evaluates its average ----


def train_averaged_cases(rng: random.Random) -> Iterator[Case]:
    for _ in range(3):
        count, size = rng.randrange(2, 4), rng.randrange(4, 7)
        batches = [
            [[normal(rng, size, WIDTH) * 2 + 1, whole(rng, 0, CLASSES, size)] for _ in range(count)]
            for _ in range(rng.randrange(3, 5))
        ]
        yield {
            "weight": normal(rng, CLASSES, WIDTH),
            "batches": batches,
            "decay": rng.uniform(0.5, 0.8),
            "x": normal(rng, 5, WIDTH),
        }


def train_averaged_drive(answer, case):
    import torch

    weight = case["weight"]
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(weight.shape[1]), linear).to(weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    batches = [[(x, y) for x, y in batch] for batch in case["batches"]]
    answers = answer(model, optimizer, batches, case["decay"], case["x"])
    states = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return {"answers": list(answers), "model": states}


def train_averaged(model, optimizer, batches, decay, x):
    average = copy.deepcopy(model).requires_grad_(False).eval()
    pairs = list(zip(average.state_dict().values(), model.state_dict().values(), strict=True))
    answers = []
    for micro_batches in batches:
        optimizer.zero_grad()
        for inputs, y in micro_batches:
            loss = cross_entropy(model(inputs), y) / len(micro_batches)
            loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mean, now in pairs:
                if mean.is_floating_point():
                    mean.lerp_(now, 1 - decay)
                else:
                    mean.copy_(now)
            answers.append(average(x))
    return answers


def _as_found(model, optimizer, batches, decay, x):
    average = copy.deepcopy(model)
    answers = []
    for micro_batches in batches:
        optimizer.zero_grad()
        for inputs, y in micro_batches:
            for mean, now in zip(average.parameters(), model.parameters(), strict=True):
                mean.data = decay * mean.data + (1 - decay) * now.data
            loss = cross_entropy(model(inputs), y) / len(micro_batches)
            loss.backward()
        optimizer.step()
        model.load_state_dict(average.state_dict())
        model.eval()
        with torch.no_grad():
            answers.append(model(x))
        model.train()
    return answers


def _averages_too_soon(model, optimizer, batches, decay, x):
    average = copy.deepcopy(model).requires_grad_(False).eval()
    pairs = list(zip(average.state_dict().values(), model.state_dict().values(), strict=True))
    answers = []
    for micro_batches in batches:
        optimizer.zero_grad()
        for inputs, y in micro_batches:
            with torch.no_grad():
                for mean, now in pairs:
                    if mean.is_floating_point():
                        mean.lerp_(now, 1 - decay)
                    else:
                        mean.copy_(now)
            loss = cross_entropy(model(inputs), y) / len(micro_batches)
            loss.backward()
        optimizer.step()
        with torch.no_grad():
            answers.append(average(x))
    return answers


_STEP_AFTER = changed(
    changed(train_averaged, "        optimizer.step()\n", ""),
    "            answers.append(average(x))\n",
    "            answers.append(average(x))\n        optimizer.step()\n",
)
_OF_PARAMETERS = "list(zip(average.parameters(), model.parameters(), strict=True))"

TRAIN_AVERAGED = Exercise(
    name="train_averaged",
    points=4,
    task="""This loop trains a model with batch normalization, keeps an EMA of it, and evaluates the
EMA after each update. It has four faults. Repair it, without changing what it takes and returns.

`batches` is a list of batches, each a list of micro-batches (x, y) of one size; a batch makes one
update. The EMA starts as a copy of the model, and takes in the model **once after each update**:
all floating-point tensors are averaged, the running statistics, too; integers are copied. Return a
list: after each update, the answers of the averaged model, in evaluation mode, to `x`. The model
itself is to be trained as if there were no EMA.""",
    cases=train_averaged_cases,
    drive=train_averaged_drive,
    reference=train_averaged,
    reasoning="""The average belongs behind `optimizer.step()`: the weights before it are those of
the update before, and within a batch they do not change, so taking them in once per micro-batch
shortens the window. `state_dict` holds parameters and buffers, `parameters()` only the former. The
average is a model of its own and can answer by itself; nothing has to be loaded into the model in
training, so nothing has to be loaded back.""",
    wrong=(
        Wrong(
            _as_found,
            "This is the loop as found. Write down for two updates of two micro-batches each which "
            "weights the average takes in, and when; then what the model's weights are after the "
            "evaluation.",
            given=True,
        ),
        Wrong(
            _STEP_AFTER,
            "The average takes in the weights before the optimizer's step: it is one update "
            "behind. Update it after step().",
        ),
        Wrong.changed(
            train_averaged,
            "mean.lerp_(now, 1 - decay)",
            "mean.lerp_(now, 1 - decay if answers else 1.0)",
            "The first update overwrites the average, as the first call of `AveragedModel` does. "
            "Here it starts as a copy of the model before its first update, and keeps a share.",
        ),
        Wrong.changed(
            train_averaged,
            "in pairs:",
            "in pairs * len(micro_batches):",
            "The average is updated once per micro-batch, so its window spans fewer updates. "
            "Take the weights in once, after the optimizer's step.",
        ),
        Wrong(
            _averages_too_soon,
            "The average is updated before each micro-batch: as often as there are micro-batches, "
            "and with the weights before the step. Take them in once, after optimizer.step().",
        ),
        Wrong.changed(
            train_averaged,
            "mean.lerp_(now, 1 - decay)",
            "mean = mean.lerp(now, 1 - decay)",
            "The average stays as it was at the start: `mean = …` gives a new tensor that name, "
            "and leaves the average's own alone. Write into it, as with `mean.copy_(…)`.",
        ),
        Wrong.changed(
            train_averaged,
            "list(zip(average.state_dict().values(), model.state_dict().values(), strict=True))",
            _OF_PARAMETERS,
            "Buffers were forgotten: parameters() has no running mean and variance, so the average "
            "keeps those of the start. state_dict() has them.",
        ),
        Wrong.changed(
            train_averaged,
            "mean.lerp_(now, 1 - decay)",
            "mean.copy_(now) if mean.shape == model[0].running_mean.shape and now is not None "
            "and any(now.data_ptr() == b.data_ptr() for b in model.buffers()) "
            "else mean.lerp_(now, 1 - decay)",
            "The running statistics were copied, not averaged: they belong to the last weights, "
            "not to the mean of the weights.",
        ),
        Wrong.changed(
            train_averaged,
            "            answers.append(average(x))\n",
            "            model.load_state_dict(average.state_dict())\n"
            "            answers.append(average(x))\n",
            "After the evaluation the model holds the average, and trains on from there. Evaluate "
            "the averaged copy, or load the weights back.",
        ),
        Wrong.changed(
            train_averaged,
            ".eval()",
            "",
            "The average answers in training mode: batch normalization then divides by the "
            "statistics of x. Call eval() on it.",
        ),
        Wrong.changed(
            train_averaged,
            "            answers.append(average(x))\n",
            "            answers.append(average(x))\n            model.eval()\n",
            "The model is left in evaluation mode: its running statistics no longer move. Call "
            "train() before the next update, or leave the model alone.",
        ),
        Wrong.changed(
            train_averaged,
            "1 - decay",
            "decay",
            "The shares are swapped: the new weights have the share 1 - decay.",
        ),
    ),
)


# ---- build: the same units in the same order ----


def sort_units_cases(rng: random.Random) -> Iterator[Case]:
    for hidden in (1, 2, 3):
        widths = [5, *(rng.randrange(6, 10) for _ in range(hidden)), 4]
        a = [[normal(rng, after, before), normal(rng, after)] for before, after in pairwise(widths)]
        for weight, bias in a[:-1]:  # a unit so weak that its product with others is the larger one
            weight[0], bias[0] = 0.05 * weight[0], 0.05 * bias[0]
        b = [[weight.clone(), bias.clone()] for weight, bias in a]
        for layer in range(hidden):
            order = shuffled(rng, widths[layer + 1])
            while torch.equal(order, order.argsort()):  # its own inverse would hide a mistake
                order = shuffled(rng, widths[layer + 1])
            b[layer] = [tensor[order] for tensor in b[layer]]
            b[layer + 1][0] = b[layer + 1][0][:, order]
        b = [[tensor + 0.02 * normal(rng, *tensor.shape) for tensor in pair] for pair in b]
        yield {"a": a, "b": b}


def sort_units_drive(answer, case):
    layers = answer(case["a"], case["b"])
    return [{"weight": weight, "bias": bias} for weight, bias in layers]


def sort_units(a, b):
    b = [list(pair) for pair in b]
    for layer in range(len(b) - 1):
        ours, theirs = (torch.cat([w, bias[:, None]], 1) for w, bias in (a[layer], b[layer]))
        order = torch.cdist(ours, theirs).argmin(1)
        b[layer] = [b[layer][0][order], b[layer][1][order]]
        b[layer + 1][0] = b[layer + 1][0][:, order]
    return b


def _the_last_layer_too(a, b):
    b = [list(pair) for pair in sort_units(a, b)]
    order = torch.cdist(a[-1][0], b[-1][0]).argsort(1, descending=True)[:, 0]
    return [*b[:-1], [b[-1][0][order], b[-1][1][order]]]


def _each_by_itself(a, b):
    found, orders = [list(pair) for pair in b], []
    for one, other in zip(a, b, strict=True):
        ours, theirs = (torch.cat([w, bias[:, None]], 1) for w, bias in (one, other))
        orders.append(torch.cdist(ours, theirs).argmin(1))
    for layer, order in enumerate(orders[:-1]):
        found[layer] = [found[layer][0][order], found[layer][1][order]]
        found[layer + 1][0] = found[layer + 1][0][:, order]
    return found


SORT_UNITS = Exercise(
    name="sort_units",
    points=4,
    task="""Two networks are chains of linear layers with a ReLU between them. `a` and `b` are their
layers, a list of pairs `[weight [out, in], bias [out]]`. `b` is `a` with the units of each hidden
layer in another order, and a little noise on top.

Write `sort_units(a, b)`: return b's layers with its hidden units in a's order, as a list of pairs.
The function that b computes must not change. Two units are the same where the incoming weights and
the bias are nearest.""",
    cases=sort_units_cases,
    drive=sort_units_drive,
    reference=sort_units,
    reasoning="""A unit is a row of its layer's weight, an entry of its bias, and a column of the
next layer's weight: all three move together, or the network computes something else. Because the
columns of layer 2 move with the units of layer 1, layer 2 can only be compared with a's once layer
1 is in order. So the layers are sorted from the first to the last hidden one. The outputs are
classes, which have an order already.""",
    wrong=(
        Wrong.changed(
            sort_units,
            "b[layer][1][order]]",
            "b[layer][1]]",
            "The bias was left behind: a unit's entry of the bias moves with its row.",
        ),
        Wrong.changed(
            sort_units,
            "        b[layer + 1][0] = b[layer + 1][0][:, order]\n",
            "",
            "The next layer still reads the units in their old order: move the columns of its "
            "weight, too. Otherwise b computes another function.",
        ),
        Wrong.changed(
            sort_units,
            "[:, order]",
            "[order]",
            "You moved rows of the next layer. What it reads from a unit is a column of its "
            "weight: [:, order].",
        ),
        Wrong.changed(
            sort_units,
            "torch.cdist(ours, theirs).argmin(1)",
            "(ours @ theirs.T).argmax(1)",
            "A product says how far two units point the same way, and a large one has large "
            "products with all. Nearest is a distance: torch.cdist.",
        ),
        Wrong(
            _the_last_layer_too,
            "The output layer was reordered: its rows are the classes, and their order means "
            "something. Only hidden units may move.",
        ),
        Wrong(
            _each_by_itself,
            "Each layer was matched as it came. Its columns stand in the order of the layer "
            "before: sort that one first, move the columns, and compare then.",
        ),
        Wrong.changed(
            sort_units,
            "argmin(1)",
            "argmin(0)",
            "This is the inverse order: for each unit of a you need the index of the unit of b, "
            "because weight[order] takes row order[i] to place i.",
        ),
    ),
)


# ---- target: two hundred tensors at once ----


def ema_update_cases(rng: random.Random) -> Iterator[Case]:
    for count in (1, 3, 5):
        shapes = [(rng.randrange(2, 6), rng.randrange(2, 6)) for _ in range(count)]
        yield {
            "averages": [normal(rng, *shape) for shape in shapes],
            "weights": [normal(rng, *shape) for shape in shapes],
            "decay": rng.uniform(0.6, 0.99),
            "times": 1,
        }


def ema_update_large(rng: random.Random) -> Case:
    return {
        "averages": [normal(rng, 32, 32) for _ in range(TENSORS)],
        "weights": [normal(rng, 32, 32) for _ in range(TENSORS)],
        "decay": rng.uniform(0.9, 0.99),
        "times": 20,
    }


def ema_update_drive(answer, case):
    averages, weights = case["averages"], case["weights"]
    for _ in range(case["times"]):
        averages = answer(averages, weights, case["decay"])
    return {"averages": list(averages), "weights": weights}


def ema_update(averages, weights, decay):
    torch._foreach_lerp_(averages, weights, 1 - decay)
    return averages


def _one_by_one(averages, weights, decay):
    updated = []
    for mean, now in zip(averages, weights, strict=True):
        updated.append(decay * mean + (1 - decay) * now)
    return updated


ONE_BY_ONE = Wrong(
    _one_by_one,
    "Right, but not fast enough. With 200 small tensors, calls for one tensor at a time cost more "
    "than the arithmetic. torch._foreach_lerp_ takes whole lists, and works in place.",
)

EMA_UPDATE = Exercise(
    name="ema_update",
    points=3,
    task="""**Target:** with 200 tensors, at most 0.4 × the time of the usual loop, which makes
`decay * mean + (1 - decay) * now` for one tensor after the other.

Write `ema_update(averages, weights, decay)`: two lists of tensors of the same shapes. Return the
list of the new averages. You may change `averages`, but not `weights`: they are the model's.""",
    cases=ema_update_cases,
    drive=ema_update_drive,
    reference=ema_update,
    reasoning="""An update of a small tensor takes less time than the call that asks for it. So ask
once for the whole list: `torch._foreach_lerp_` moves each average in place by a share 1 − decay of
the way to its weight, without a single new tensor.""",
    wrong=(
        ONE_BY_ONE,
        Wrong.changed(
            ema_update,
            "1 - decay",
            "decay",
            "The shares are swapped: lerp's third argument is how far to go towards the weights, "
            "1 - decay.",
        ),
        Wrong.changed(
            ema_update,
            "    torch._foreach_lerp_(averages, weights, 1 - decay)\n    return averages",
            "    torch._foreach_lerp_(weights, averages, decay)\n    return weights",
            "The numbers are right, but they stand in the model's weights: lerp_ changes its first "
            "argument. The averages are to move, the weights to stay.",
        ),
        Wrong.changed(
            ema_update,
            "torch._foreach_lerp_(averages, weights, 1 - decay)",
            "torch._foreach_add_(averages, weights, alpha=1 - decay)",
            "You add the share of the weights and take nothing off the average, so it grows with "
            "every update. Multiply it by decay first, or use lerp.",
        ),
    ),
    target=LessTime(ema_update_large, 0.4, ONE_BY_ONE),
)
