"""Exercises of chapter 10: parts that stay frozen, a loop that only seems to freeze, epochs on kept
answers, and when keeping pays.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch.nn.functional import cross_entropy

from accel_lab.exercises import Case, Exercise, LessTime, Wrong
from accel_lab.exercises._data import normal, shuffled, whole

# ---- build: the first parts stay as they are ----


def freeze_first_cases(rng: random.Random) -> Iterator[Case]:
    for parts in rng.sample(range(1, 4), 3):
        yield {
            "parts": parts,
            "x": normal(rng, 12, 5) + 1,
            "weights": [normal(rng, 5, 5) for _ in range(4)],
        }


def freeze_first_drive(answer, case):
    import torch
    from torch import nn

    def part(weight):
        linear = nn.Linear(5, 5, bias=False, dtype=weight.dtype)
        with torch.no_grad():
            linear.weight.copy_(weight)
        return nn.Sequential(linear, nn.BatchNorm1d(5, dtype=weight.dtype), nn.Dropout(0.5))

    model = nn.Sequential(*map(part, case["weights"]))
    parts, x = case["parts"], case["x"]
    answer(model, parts)
    at_first = [one.training for one in model]
    model.eval()
    used = [one.training for one in model]
    model.train()
    once, again = model[:parts](x), model[:parts](x)
    model(x)
    return {
        "in training mode before anything is called": at_first,
        "weights that learn": [bool(one[0].weight.requires_grad) for one in model],
        "scales of batch norm that learn": [bool(one[1].weight.requires_grad) for one in model],
        "running mean moved by training": [bool(one[1].running_mean.any()) for one in model],
        "batch norm in training mode": [bool(one[1].training) for one in model],
        "dropout on in training": [bool(one[2].training) for one in model],
        "frozen parts answer twice the same": bool(torch.equal(once, again)),
        "in training mode after model.eval()": used,
    }


def freeze_first(model, parts):
    for part in model[:parts]:
        part.requires_grad_(False)
        part.eval()
        part.train = lambda mode=True, part=part: part


def _only_batch_norm(model, parts):
    for part in model[:parts]:
        part.requires_grad_(False)
        for module in part.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.eval()
                module.train = lambda mode=True, module=module: module


def _never_in_training(model, parts):
    model[:parts].requires_grad_(False)
    model.eval()
    model.train = lambda mode=True: model


FREEZE_FIRST = Exercise(
    name="freeze_first",
    points=3,
    task="""`Frozen` wraps a network, and so the names in its state change. Freeze in place instead.

Write `freeze_first(model, parts)` for an `nn.Sequential` whose parts hold linear layers, batch
normalization and dropout. It changes the first `parts` parts so that no weight of theirs learns,
and that they stay in evaluation mode, with all that is inside, also when somebody calls
`model.train()` afterwards. The other parts go on as before: they learn, and `model.train()` and
`model.eval()` switch them. Nothing has to be returned.""",
    cases=freeze_first_cases,
    drive=freeze_first_drive,
    reference=freeze_first,
    reasoning="""Two things have to be stopped. `requires_grad_(False)` stops the weights. The
running statistics of batch normalization are not weights: they change whenever it runs in training
mode, and dropout is on there, too. `eval()` switches both off, and the next `model.train()`
switches them on again, for it calls `train` of each part. So that method is replaced for the frozen
parts, after `eval()`, which uses it.""",
    wrong=(
        Wrong.changed(
            freeze_first,
            "        part.eval()\n        part.train = lambda mode=True, part=part: part\n",
            "",
            "The weights are frozen, the statistics are not: in training mode batch normalization "
            "goes on averaging, and dropout is on. Keep the frozen parts in evaluation mode.",
        ),
        Wrong.changed(
            freeze_first,
            "        part.train = lambda mode=True, part=part: part\n",
            "",
            "model.train() puts your frozen parts back into training mode. Replace their method "
            "`train` by one that leaves them as they are.",
        ),
        Wrong.changed(
            freeze_first,
            "        part.requires_grad_(False)\n",
            "",
            "Evaluation mode keeps the statistics, but the weights still learn: "
            "requires_grad_(False).",
        ),
        Wrong(
            _only_batch_norm,
            "Batch normalization is frozen and dropout is not: the frozen parts answer differently "
            "each time. Keep everything inside in evaluation mode.",
        ),
        Wrong(
            _never_in_training,
            "The whole model stays in evaluation mode. Only the first parts are to be frozen; the "
            "others must still follow model.train().",
        ),
        Wrong.changed(
            freeze_first,
            "model[:parts]",
            "model",
            "You freeze all parts. Those from `parts` on must still learn.",
        ),
        Wrong.changed(
            freeze_first,
            "model[:parts]",
            "model[parts:]",
            "You freeze the last parts, and the first ones learn. It is the other way round.",
        ),
        Wrong.changed(
            freeze_first, "model[:parts]", "model[: parts + 1]", "You freeze one part too many."
        ),
    ),
)


# ---- diagnose: it only looks frozen ----


def tune_head_cases(rng: random.Random) -> Iterator[Case]:
    for _ in range(3):
        yield {
            "trunk": normal(rng, 6, 4),
            "head": normal(rng, 3, 6),
            "batches": [[normal(rng, 8, 4) + 0.5, whole(rng, 0, 3, 8)] for _ in range(6)],
        }


def tune_head_drive(answer, case):
    import torch
    from torch import nn

    dtype = case["trunk"].dtype
    trunk = nn.Sequential(
        nn.Linear(4, 6, bias=False, dtype=dtype), nn.BatchNorm1d(6, dtype=dtype), nn.ReLU()
    )
    head = nn.Linear(6, 3, bias=False, dtype=dtype)
    with torch.no_grad():
        trunk[0].weight.copy_(case["trunk"])
        head.weight.copy_(case["head"])
    losses = answer(trunk, head, [(x, y) for x, y in case["batches"]])
    return {
        "losses": [float(loss) for loss in losses],
        "weight of the trunk moved by": trunk[0].weight.detach() - case["trunk"],
        "running mean of the trunk": trunk[1].running_mean.clone(),
        "weight of the head": head.weight.detach().clone(),
        "gradients were computed for the trunk": trunk[0].weight.grad is not None,
    }


def tune_head(trunk, head, batches):
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    trunk.eval()
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        with torch.no_grad():
            h = trunk(x)
        loss = cross_entropy(head(h), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _as_found(trunk, head, batches):
    both = torch.nn.Sequential(trunk, head)
    optimizer = torch.optim.SGD(both.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    both.train()
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = cross_entropy(both(x), y)
        loss.backward()
        for parameter in trunk.parameters():
            parameter.grad.zero_()  # frozen
        optimizer.step()
        losses.append(loss.item())
    return losses


def _zeroed(trunk, head, batches):
    both = torch.nn.Sequential(trunk, head)
    optimizer = torch.optim.SGD(both.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    both.eval()
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = cross_entropy(both(x), y)
        loss.backward()
        for parameter in trunk.parameters():
            parameter.grad.zero_()
        optimizer.step()
        losses.append(loss.item())
    return losses


TUNE_HEAD = Exercise(
    name="tune_head",
    points=3,
    task="""This loop is to train the head on a frozen trunk by SGD, and return the loss of each
batch. It has three faults. Repair it, without changing what it takes.

Frozen means that the trunk answers as it does after training, that neither its weights nor its
statistics change, and that nobody computes gradients for it. The head's rate, momentum and weight
decay stay as they are.""",
    cases=tune_head_cases,
    drive=tune_head_drive,
    reference=tune_head,
    reasoning="""The first fault: `both.train()` makes batch normalization use the batch, and
average it into its statistics. The second: a gradient of zero does not stop an optimizer. Weight
decay shrinks the trunk's weights at every step, and momentum would go on moving them, so the
optimizer must not get them. The third: a backward pass through the trunk is most of the work, and
its result is thrown away; `no_grad` avoids it.""",
    wrong=(
        Wrong(
            _as_found,
            "This is the loop as found. Which mode is the trunk in? What does weight decay do "
            "where the gradient is zero? And what is computed only to be set to zero?",
            given=True,
        ),
        Wrong.changed(
            tune_head,
            "    trunk.eval()\n",
            "",
            "The trunk is in training mode: batch normalization uses the batch, and averages it "
            "into its running mean. trunk.eval().",
        ),
        Wrong(
            _zeroed,
            "A gradient of zero does not freeze a weight: weight decay still shrinks it. Give the "
            "optimizer the head's parameters alone.",
        ),
        Wrong.changed(
            tune_head,
            "        with torch.no_grad():\n            h = trunk(x)\n",
            "        h = trunk(x)\n",
            "Gradients are still computed for the trunk, which is most of the work of an update. "
            "Ask it under torch.no_grad().",
        ),
        Wrong.changed(
            tune_head,
            "        optimizer.zero_grad()\n",
            "",
            "The head's gradients are never cleared: each update repeats all earlier ones.",
        ),
        Wrong.changed(
            tune_head,
            ", weight_decay=0.01",
            "",
            "The head has lost its weight decay. Only the trunk is to be left alone.",
        ),
        Wrong.changed(
            tune_head,
            ", momentum=0.9",
            "",
            "The head has lost its momentum. Only the trunk is to be left alone.",
        ),
        Wrong.changed(
            tune_head,
            "        optimizer.step()\n",
            "",
            "The head does not learn: optimizer.step() is missing.",
        ),
    ),
)


# ---- target: epochs on kept answers ----


def epochs_on_kept_cases(rng: random.Random) -> Iterator[Case]:
    for n in (7, 9, 10):
        yield _epochs(rng, n, 5, 6, rng.randrange(2, 5), 3)


def epochs_on_kept_large(rng: random.Random) -> Case:
    return _epochs(rng, 256, 512, 3072, 20, 128)


def _epochs(rng: random.Random, n: int, inputs: int, width: int, epochs: int, batch: int) -> Case:
    return {
        "x": normal(rng, n, inputs),
        "y": whole(rng, 0, 3, n),
        "trunk": [normal(rng, width, inputs) / inputs**0.5, normal(rng, 8, width) / width**0.5],
        "head": normal(rng, 3, 8),
        "order": [list(shuffled(rng, n).split(batch)) for _ in range(epochs)],
    }


def epochs_on_kept_drive(answer, case):
    import torch
    from torch import nn

    def linear(weight):  # random numbers for a start would take longer than the answer
        outputs, inputs = weight.shape
        layer = torch.nn.utils.skip_init(nn.Linear, inputs, outputs, bias=False, dtype=weight.dtype)
        layer.weight.data.copy_(weight)
        return layer

    first, second = map(linear, case["trunk"])
    trunk, head = nn.Sequential(first, nn.ReLU(), nn.Dropout(0.5), second), linear(case["head"])
    answer(trunk, head, case["x"], case["y"], case["order"])
    return {
        "weight of the head": head.weight.detach().clone(),
        "weight of the trunk": trunk[0].weight.detach().clone(),
    }


def epochs_on_kept(trunk, head, x, y, order):
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5)
    trunk.eval()
    with torch.no_grad():
        kept = trunk(x)
    for epoch in order:
        for places in epoch:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(head(kept[places]), y[places]).backward()
            optimizer.step()


def _asking(trunk, head, x, y, order):
    import torch

    optimizer = torch.optim.SGD(head.parameters(), lr=0.5)
    trunk.eval()
    for epoch in order:
        for places in epoch:
            with torch.no_grad():
                h = trunk(x[places])
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(head(h), y[places]).backward()
            optimizer.step()


def _by_number_of_batch(trunk, head, x, y, order):
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5)
    trunk.eval()
    with torch.no_grad():
        kept = [trunk(x[places]) for places in order[0]]
    for epoch in order:
        for h, places in zip(kept, epoch, strict=True):
            optimizer.zero_grad()
            cross_entropy(head(h), y[places]).backward()
            optimizer.step()


def _first_order_only(trunk, head, x, y, order):
    epochs_on_kept(trunk, head, x, y, [order[0]] * len(order))


ASKING = Wrong(
    _asking,
    "Right, but not fast enough. The trunk's answers to a picture never change: ask it once about "
    "each, before the first epoch, and train the head on what it said.",
)

EPOCHS_ON_KEPT = Exercise(
    name="epochs_on_kept",
    points=3,
    task="""Write `epochs_on_kept(trunk, head, x, y, order)`: train the linear layer `head` by
`torch.optim.SGD` with a rate of 0.5, on what the frozen `trunk` answers. `order` holds a list for
each epoch, and in it a tensor for each batch: the places of its samples in x [n, inputs] and y [n].
The trunk contains dropout, and comes in training mode; it is to answer as it does in use. Nothing
has to be returned.

For 20 epochs, and a trunk that is much larger than the head, it must take at most a third of the
time of asking the trunk at each update, and lead to the same weights.""",
    cases=epochs_on_kept_cases,
    drive=epochs_on_kept_drive,
    reference=epochs_on_kept,
    reasoning="""The answers are computed once, in evaluation mode and without gradients, for all
samples in the order of x. Then each batch picks its own by `kept[places]`, and its labels by
`y[places]`. Answers kept batch by batch would fit the first epoch only, since each epoch is
shuffled anew. What is left of an update is one small product.""",
    wrong=(
        ASKING,
        Wrong.changed(
            epochs_on_kept,
            "    trunk.eval()\n",
            "",
            "The trunk answers in training mode: dropout leaves out half of its units, and what "
            "you keep is one random draw for all epochs. trunk.eval().",
        ),
        Wrong.changed(
            epochs_on_kept,
            "    with torch.no_grad():\n        kept = trunk(x)\n",
            "    kept = trunk(x)\n",
            "What you keep still hangs on the trunk's graph, and the first backward() frees that. "
            "Ask the trunk under torch.no_grad().",
        ),
        Wrong(
            _by_number_of_batch,
            "You keep the answers of the first epoch's batches, but later epochs are shuffled "
            "anew: the labels belong to other samples. Keep them in the order of x, and pick "
            "kept[places].",
        ),
        Wrong(
            _first_order_only,
            "Every epoch of yours goes through the first epoch's batches. Use its own order.",
        ),
        Wrong.changed(
            epochs_on_kept,
            "y[places]",
            "y[: len(places)]",
            "The labels do not belong to the samples: pick both by `places`.",
        ),
        Wrong.changed(
            epochs_on_kept,
            "            optimizer.zero_grad()\n",
            "",
            "Gradients are never cleared: each update repeats all earlier ones.",
        ),
        Wrong.changed(
            epochs_on_kept,
            "for epoch in order:",
            "for epoch in order[:1]:",
            "You train for one epoch. There is one for each list in `order`.",
        ),
    ),
    target=LessTime(epochs_on_kept_large, 1 / 3, ASKING),
)


# ---- build: when does keeping pay? ----


def epochs_to_pay_cases(rng: random.Random) -> Iterator[Case]:
    def case(forward, update, write, read, views):
        return {
            "pictures": rng.randrange(50, 5000),
            "forward": forward,
            "update": update,
            "write": write,
            "read": read,
            "views": views,
        }

    yield case(1000, 50, 200, 400, 3)  # exactly 6 epochs cost the same
    yield case(rng.randrange(100, 200), 20, 50, rng.randrange(200, 300), 1)
    read = rng.randrange(100, 200)
    yield case(read, 20, 50, read, 2)  # nothing is ever gained
    for _ in range(6):
        forward = rng.randrange(1000, 5000)
        read = rng.randrange(forward // 5, forward // 2)
        yield case(
            forward,
            rng.randrange(30, 300),
            rng.randrange(forward // 3, forward),
            read,
            rng.randrange(2, 9),
        )


def epochs_to_pay_drive(answer, case):
    names = ("pictures", "forward", "update", "write", "read", "views")
    return {"epochs": answer(*(case[name] for name in names))}


def epochs_to_pay(pictures, forward, update, write, read, views):
    if read >= forward:
        return None
    once = views * (forward + write)
    saved = forward - read
    return once // saved + 1


EPOCHS_TO_PAY = Exercise(
    name="epochs_to_pay",
    points=2,
    task="""Augmentation and kept answers do go together, if several views of each picture are
drawn and kept. All times are whole microseconds for one picture: `forward` through the trunk,
`update` in the head, `write` an answer to the disk, `read` it again.

Asking costs forward + update for each of the `pictures` in each epoch. Keeping asks about `views`
views of each picture and writes their answers, once; then each epoch reads one answer for each
picture, and updates.

Write `epochs_to_pay(pictures, forward, update, write, read, views)`: the smallest number of epochs
after which keeping has taken less time than asking, in all, or `None` if it never does.""",
    cases=epochs_to_pay_cases,
    drive=epochs_to_pay_drive,
    reference=epochs_to_pay,
    reasoning="""For each picture keeping costs views · (forward + write) once, and read + update an
epoch; asking costs forward + update an epoch. The updates are in both, so each epoch saves
forward − read. If that is not above zero, nothing is ever gained. Otherwise the epochs E must
satisfy E · (forward − read) > views · (forward + write): the quotient rounded down, and one more,
because with equal times keeping is not faster yet. The number of pictures cancels out.""",
    wrong=(
        Wrong.changed(
            epochs_to_pay,
            "views * (forward + write)",
            "0",
            "You forgot what keeping costs once: all views go through the trunk and are written.",
        ),
        Wrong.changed(
            epochs_to_pay,
            "views * (forward + write)",
            "views * write",
            "Writing is not all that keeping costs once: the trunk is asked about all views first.",
        ),
        Wrong.changed(
            epochs_to_pay,
            "views * (forward + write)",
            "views * forward",
            "Writing the answers takes time, too.",
        ),
        Wrong.changed(
            epochs_to_pay,
            "views * (forward + write)",
            "forward + write",
            "You ask about one view of each picture. There are `views` of them.",
        ),
        Wrong.changed(
            epochs_to_pay,
            "views * (forward + write)",
            "pictures * views * (forward + write)",
            "The number of pictures is on one side only. All times are for one picture, and it "
            "cancels out.",
        ),
        Wrong.changed(
            epochs_to_pay,
            "saved = forward - read",
            "saved = forward",
            "An epoch on kept answers is not free: each answer is read again.",
        ),
        Wrong.changed(
            epochs_to_pay,
            "saved = forward - read",
            "saved = forward - read + update",
            "The update of the head is done either way. It saves nothing.",
        ),
        Wrong.changed(
            epochs_to_pay,
            "once // saved + 1",
            "-(-once // saved)",
            "Where both take the same time, keeping is not faster yet. One epoch more.",
        ),
        Wrong.changed(
            epochs_to_pay,
            "once // saved + 1",
            "once // saved",
            "Rounded down, keeping has not caught up yet. One epoch more.",
        ),
        Wrong.changed(
            epochs_to_pay,
            "    if read >= forward:\n        return None\n",
            "    if read == forward:\n        return None\n",
            "Where reading takes longer than asking, keeping never pays: return None.",
        ),
        Wrong.changed(
            epochs_to_pay,
            "if read >= forward:",
            "if read > forward:",
            "Where reading takes as long as asking, an epoch saves nothing: return None.",
        ),
    ),
)
