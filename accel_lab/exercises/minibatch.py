"""Exercises of chapter 02: the batches of an epoch, the mean loss of an epoch, the noise of a
gradient from what ranks know, and fetching in a quarter of the time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch.nn.functional import cross_entropy

from accel_lab.exercises import Case, Exercise, LessTime, Wrong
from accel_lab.exercises._data import normal, shuffled, whole

CLASSES, WIDTH, PADDING = 5, 6, -100

# ---- build: the batches of an epoch ----


def epoch_batches_cases(rng: random.Random) -> Iterator[Case]:
    for ragged in (True, False, True):
        size = rng.randrange(13, 20)
        n = 4 * size + ragged * rng.randrange(1, size)
        yield {"n": n, "size": size, "seed": rng.randrange(2**31)}


def epoch_batches_drive(answer, case):
    """Two epochs from one generator, and the first one again from another with the same seed."""
    import torch

    torch.manual_seed(case["seed"] + 1)
    before = torch.get_rng_state()
    generator = torch.Generator().manual_seed(case["seed"])
    epochs = [list(answer(case["n"], case["size"], generator)) for _ in range(2)]
    unmoved = torch.equal(before, torch.get_rng_state())
    generator = torch.Generator().manual_seed(case["seed"])
    epochs.append(list(answer(case["n"], case["size"], generator)))
    dealt = [[[int(i) for i in batch] for batch in epoch] for epoch in epochs]
    return {"epochs": dealt, "global generator left alone": unmoved}


def epoch_batches_assess(returned, case):
    first, second, again = returned["epochs"]
    flat = [[i for batch in epoch for i in batch] for epoch in (first, second, again)]
    everything = list(range(case["n"]))
    return {
        "sizes of the batches": [len(batch) for batch in first],
        "an index twice in one batch": any(len(set(batch)) < len(batch) for batch in first),
        "an index in two batches": sum(len(set(batch)) for batch in first) > len(set(flat[0])),
        "an index out of range": any(not 0 <= i < case["n"] for i in flat[0]),
        "every index dealt out": set(flat[0]) >= set(everything),
        "shuffled": flat[0] != sorted(flat[0]),
        "a full batch of neighbours in the data": any(
            len(batch) == case["size"] and max(batch) - min(batch) == len(batch) - 1
            for batch in first
        ),
        "the next epoch in another order": flat[0] != flat[1],
        "the same seed, the same epoch": flat[0] == flat[2],
        "global generator left alone": returned["global generator left alone"],
    }


def epoch_batches(n, size, generator):
    order = torch.randperm(n, generator=generator)
    return [order[first : first + size] for first in range(0, n, size)]


def _from_the_global_generator(n, size, generator):
    order = torch.randperm(n)
    return [order[first : first + size] for first in range(0, n, size)]


def _by_python(n, size, generator):
    order = torch.tensor(random.sample(range(n), n))
    return [order[first : first + size] for first in range(0, n, size)]


def _shuffled_inside(n, size, generator):
    parts = torch.arange(n).split(size)
    return [part[torch.randperm(len(part), generator=generator)] for part in parts]


def _batches_shuffled(n, size, generator):
    parts = torch.arange(n).split(size)
    return [parts[i] for i in torch.randperm(len(parts), generator=generator).tolist()]


def _seeded_anew(n, size, generator):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return [order[first : first + size] for first in range(0, n, size)]


EPOCH_BATCHES = Exercise(
    name="epoch_batches",
    points=2,
    task="""Write `epoch_batches(n, size, generator)`: the batches of one epoch over `n` samples, as
a list of index tensors, or lists of indices. Every index comes exactly once, in an order drawn from
`generator` (a `torch.Generator`); each batch has `size` indices, only the last one may have fewer,
and none is empty. The next call with the same generator gives another order.""",
    cases=epoch_batches_cases,
    drive=epoch_batches_drive,
    assess=epoch_batches_assess,
    reference=epoch_batches,
    reasoning="""One permutation a call, cut into pieces: a permutation holds each index once, so no
sample is missed or repeated, however it is cut. `range(0, n, size)` has one start for each batch,
the short one included, and none beyond the end. `randperm(…, generator=generator)` moves that
generator on, so the next epoch differs, and a seed repeats the whole training.""",
    wrong=(
        Wrong.changed(
            epoch_batches,
            "range(0, n, size)",
            "range(0, n - n % size, size)",
            "The samples of the short batch at the end are left out. They are data, too.",
        ),
        Wrong.changed(
            epoch_batches,
            "range(0, n, size)",
            "range(0, n + 1, size)",
            "Where size divides n you add an empty batch, whose mean loss is 0/0. Stop at n.",
            also=(
                lambda n, size, generator: [
                    epoch_batches(n, size, generator)[place]
                    if place * size < n
                    else torch.empty(0, dtype=torch.int64)
                    for place in range(n // size + 1)
                ],
            ),
        ),
        Wrong.changed(
            epoch_batches,
            "torch.randperm(n, generator=generator)",
            "torch.randint(n, (n,), generator=generator)",
            "You draw with replacement: some indices come twice, even in one batch, and about a "
            "third never. An epoch is a permutation: torch.randperm.",
        ),
        Wrong.changed(
            epoch_batches,
            "order[first : first + size] for first",
            "torch.randperm(n, generator=generator)[:size][: n - first] for first",
            "Each batch is drawn from all samples anew, so batches overlap and some samples are "
            "never dealt out. Draw one order for the epoch and cut it.",
        ),
        Wrong.changed(
            epoch_batches,
            "torch.randperm(n, generator=generator)",
            "torch.arange(n)",
            "The indices come in the order of the data. Where that is sorted by class, a batch "
            "holds one class: shuffle.",
        ),
        Wrong(
            _shuffled_inside,
            "Each batch holds neighbours in the data: chance picks the order inside batches, or "
            "that of the batches. Where the data are sorted by class, a batch still holds one "
            "class. Draw one order of all samples, and cut that.",
            also=(_batches_shuffled,),
        ),
        Wrong.changed(
            epoch_batches,
            "[order[first : first + size] for first in range(0, n, size)]",
            "list(order.chunk(size))",
            "chunk(size) makes `size` batches, split(size) makes batches of `size`.",
        ),
        Wrong(
            _from_the_global_generator,
            "The order is drawn from PyTorch's global generator, so the seed of yours repeats "
            "nothing. Pass generator=generator.",
        ),
        Wrong(
            _by_python,
            "The order does not come from `generator`, so its seed repeats nothing. "
            "torch.randperm takes it: generator=generator.",
        ),
        Wrong(
            _seeded_anew,
            "Every epoch has the same order: you seed a generator anew in each call. Use the one "
            "that is given; it moves on.",
            also=(
                lambda n, size, generator: epoch_batches(
                    n, size, torch.Generator().manual_seed(generator.initial_seed())
                ),
            ),
        ),
    ),
)


# ---- diagnose: the mean loss of an epoch ----


def epoch_mean_loss_cases(rng: random.Random) -> Iterator[Case]:
    for kind in ("ragged", "padded", "whole"):
        size, count = rng.randrange(5, 9), rng.randrange(3, 5)
        left = rng.randrange(1, size - 2)
        sizes = [size] * (count - 1) + [left if kind == "ragged" else size]
        loader = [[3 * normal(rng, n, WIDTH), whole(rng, 0, CLASSES, n)] for n in sizes]
        if kind == "padded":
            loader[-1][1][left:] = PADDING
        yield {"weight": normal(rng, CLASSES, WIDTH), "loader": loader}


def epoch_mean_loss_drive(answer, case):
    import torch

    weight = case["weight"]
    model = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    with torch.no_grad():
        model.weight.copy_(weight)
    return float(answer(model, [(x, y) for x, y in case["loader"]]))


def epoch_mean_loss(model, loader):
    total, samples = 0.0, 0
    for x, y in loader:
        real = int((y != PADDING).sum())
        total += cross_entropy(model(x), y).item() * real
        samples += real
    return total / samples


def _as_found(model, loader):
    total = 0.0
    for x, y in loader:
        total += cross_entropy(model(x), y).item()
    return total / len(loader)


def _full_batches(model, loader):
    size = len(loader[0][1])
    total = 0.0
    for x, y in loader:
        total += cross_entropy(model(x), y, reduction="sum").item()
    return total / (len(loader) * size)


def _sums_over_all_places(model, loader):
    total, samples = 0.0, 0
    for x, y in loader:
        total += cross_entropy(model(x), y, reduction="sum").item()
        samples += len(y)
    return total / samples


def _without_the_last(model, loader):
    return epoch_mean_loss(model, loader[:-1])


EPOCH_MEAN_LOSS = Exercise(
    name="epoch_mean_loss",
    points=2,
    task="""This function is to return the mean loss **per sample** over an epoch, and it has a
fault that shows only with some loaders. Repair it, without changing what it takes and returns.

`loader` is a list of batches (x, y). The last batch may be shorter. Or it is *padded* to the size
of the others, as compiled programs like it: where `y` is -100 there is no sample, and
`cross_entropy` leaves that row out of its mean. No batch is all padding.""",
    cases=epoch_mean_loss_cases,
    drive=epoch_mean_loss_drive,
    reference=epoch_mean_loss,
    reasoning="""`cross_entropy` returns the mean over the samples of *its* batch. Multiplied by
their number it is their sum, and sums may be added. Samples are the rows whose label is not -100,
both in the product and in the division at the end. Then batches may have any size, and the result
does not depend on how the data were cut.""",
    wrong=(
        Wrong(
            _as_found,
            "This is the function as found, a mean of means: a last batch of one sample counts as "
            "much as a full one. How would you weigh 60 samples of loss 1 and one of loss 10?",
            given=True,
        ),
        Wrong.changed(
            epoch_mean_loss,
            "int((y != PADDING).sum())",
            "len(y)",
            "You weigh by rows. In a padded batch some rows are no samples: count where y is not "
            "-100.",
        ),
        Wrong(
            _full_batches,
            "You divide by batches × size of a batch. The last batch holds fewer samples, so the "
            "mean comes out too small. Count the samples.",
        ),
        Wrong(
            _sums_over_all_places,
            "The sum is right, but you divide by all rows. Padding is no sample: count where y is "
            "not -100.",
        ),
        Wrong(
            _without_the_last, "The last batch is left out. Its samples belong to the epoch, too."
        ),
        Wrong.changed(
            epoch_mean_loss,
            "return total / samples",
            "return total",
            "That is the sum of all losses. Divide it by the number of samples.",
        ),
    ),
)


# ---- build: the noise of a gradient, from what ranks know ----


def noise_of_ranks_cases(rng: random.Random) -> Iterator[Case]:
    for ranks, signal in ((2, 1.0), (4, 0.7), (3, 1.0), (4, 0.0)):
        samples, updates, numbers = rng.randrange(4, 9), rng.randrange(5, 8), 12
        truth = signal * (1.5 + normal(rng, numbers).abs())
        scales = [1 + 2 * place / updates for place in range(updates)]
        gradients = [scale * (truth + normal(rng, ranks, numbers)) for scale in scales]
        if not signal:  # the ranks contradict one another: only noise is left
            gradients = [one - one.mean(0) * 0.999 for one in gradients]
        yield {"gradients": gradients, "samples": samples}


def noise_of_ranks_drive(answer, case):
    found = answer(case["gradients"], case["samples"])
    return {"noise scale": None if found is None else float(found)}


def noise_of_ranks(gradients, samples):
    ranks = len(gradients[0])
    small, big = samples, samples * ranks
    small_sq = sum(one.square().sum(1).mean() for one in gradients) / len(gradients)
    big_sq = sum(one.mean(0).square().sum() for one in gradients) / len(gradients)
    trace = (small_sq - big_sq) / (1 / small - 1 / big)
    square = (big * big_sq - small * small_sq) / (big - small)
    if square <= 0:
        return None
    return trace / square


def _mean_without_noise(gradients, samples):
    ranks = len(gradients[0])
    trace = samples * sum(one.var(0, correction=0).sum() for one in gradients) / len(gradients)
    big_sq = sum(one.mean(0).square().sum() for one in gradients) / len(gradients)
    square = big_sq - trace / (samples * ranks)
    return trace / square if square > 0 else None


def _mean_of_ratios(gradients, samples):
    if noise_of_ranks(gradients, samples) is None:
        return None
    ratios = []
    for one in gradients:
        small, big = samples, samples * len(one)
        small_sq, big_sq = one.square().sum(1).mean(), one.mean(0).square().sum()
        trace = (small_sq - big_sq) / (1 / small - 1 / big)
        ratios.append(trace * (big - small) / (big * big_sq - small * small_sq))
    return sum(ratios) / len(ratios)


NOISE_OF_RANKS = Exercise(
    name="noise_of_ranks",
    points=3,
    task="""Several ranks train together. In each update every rank has the gradient of its own
`samples` samples, and the mean of these gradients is that of the large batch. So the noise scale
costs nothing extra.

Write `noise_of_ranks(gradients, samples)`: `gradients` is a list with one tensor `[ranks, numbers]`
for each update. Return the estimate of tr(Σ)/‖G‖², in samples. Average ‖g‖² over all ranks and
updates, and ‖mean of the ranks‖² over all updates; then solve the two equations of part 4. Return
`None` where the estimate of ‖G‖² is not above 0.""",
    cases=noise_of_ranks_cases,
    drive=noise_of_ranks_drive,
    reference=noise_of_ranks,
    reasoning="""The expected ‖g‖² is ‖G‖² + tr(Σ)/B. A rank has B = samples, the mean of all ranks
B = samples · ranks: two equations for two unknowns. Subtracting them leaves tr(Σ); the other
combination leaves ‖G‖², from which the noise of the large batch is removed as well. Both are linear
in the squares, so averages over updates stay right. A ratio is not, so it is taken last.""",
    wrong=(
        Wrong.changed(
            noise_of_ranks,
            "small, big = samples, samples * ranks",
            "small, big = samples / ranks, samples",
            "`samples` is what one rank has. The mean over the ranks is a gradient of samples · "
            "ranks.",
        ),
        Wrong.changed(
            noise_of_ranks,
            "square = (big * big_sq - small * small_sq) / (big - small)",
            "square = big_sq",
            "‖mean of the ranks‖² still holds the noise of the large batch, tr(Σ)/B, so it is too "
            "large. Take that off, too.",
        ),
        Wrong.changed(
            noise_of_ranks,
            "square = (big * big_sq - small * small_sq) / (big - small)",
            "square = big_sq - trace / small",
            "From ‖mean of the ranks‖² you take off the noise of one rank's gradient. The mean has "
            "less noise: it is a gradient of samples · ranks.",
        ),
        Wrong.changed(
            noise_of_ranks,
            "(small_sq - big_sq) / (1 / small - 1 / big)",
            "(small_sq - big_sq) * small",
            "tr(Σ) is too small: the mean of the ranks is noisy itself, and this noise is missing "
            "in the difference of the squares. Divide that by 1/small − 1/big; a variance over the "
            "ranks is divided by ranks − 1.",
            also=(_mean_without_noise,),
        ),
        Wrong.changed(
            noise_of_ranks,
            "(big * big_sq - small * small_sq)",
            "(small * small_sq - big * big_sq)",
            "The two sizes are swapped in the estimate of ‖G‖²: the large batch comes first, in "
            "the product and in the difference of the sizes.",
        ),
        Wrong.changed(
            noise_of_ranks,
            "return trace / square",
            "return trace",
            "This is tr(Σ), the size of the noise. The noise scale is its ratio to ‖G‖².",
        ),
        Wrong(
            _mean_of_ratios,
            "You take a ratio in each update and average the ratios. A single update is mostly "
            "noise, and a small divisor gives any number: average both squares first.",
        ),
        Wrong.changed(
            noise_of_ranks,
            "one.square().sum(1).mean()",
            "one.square().sum()",
            "‖g‖² is added up over the ranks. It is to be the mean over them.",
        ),
        Wrong.changed(
            noise_of_ranks,
            "one.square().sum(1).mean()",
            "one.square().sum(1).sqrt().mean() ** 2",
            "You average the norms of the ranks' gradients, and square the mean. Square first: the "
            "equations are about the mean of ‖g‖².",
        ),
        Wrong.changed(
            noise_of_ranks,
            "    if square <= 0:\n        return None\n",
            "",
            "Where the estimate of ‖G‖² is not above 0 the noise hides the gradient, and the ratio "
            "means nothing: return None.",
        ),
    ),
)


# ---- target: fetching ----


def fetch_batches_cases(rng: random.Random) -> Iterator[Case]:
    for count in (rng.randrange(20, 30), rng.randrange(30, 40)):
        n = count + rng.randrange(3, 9)  # more samples than are asked for
        size = rng.randrange(5, 9)
        count -= count % size == 0
        yield {
            "x": normal(rng, n, 2, 3),
            "y": torch.arange(n) % 7 + 1,
            "order": shuffled(rng, n)[:count],
            "size": size,
        }


def fetch_batches_large(rng: random.Random) -> Case:
    n = 4096
    order = shuffled(rng, n)
    return {"x": normal(rng, n, 8, 8), "y": whole(rng, 0, 10, n), "order": order, "size": 64}


def fetch_batches_drive(answer, case):
    batches = [(x, y) for x, y in answer(case["x"], case["y"], case["order"], case["size"])]
    return {
        "sizes": [len(y) for _, y in batches],
        "x": [x for x, _ in batches],
        "y": [y for _, y in batches],
    }


def fetch_batches(x, y, order, size):
    return [(x.index_select(0, part), y.index_select(0, part)) for part in order.split(size)]


def _stacked(x, y, order, size):
    import torch

    batches = []
    for first in range(0, len(order), size):
        part = order[first : first + size]
        samples, labels = [x[i] for i in part], [y[i] for i in part]
        batches.append((torch.stack(samples), torch.stack(labels)))
    return batches


STACKED = Wrong(
    _stacked,
    "Right, but not fast enough. A sample fetched alone is a call, and stacking copies it once "
    "more. Index with the whole tensor of indices: one call for a batch of x, one for y.",
)

FETCH_BATCHES = Exercise(
    name="fetch_batches",
    points=2,
    task="""**Target:** at most a quarter of the time of the usual loader, which fetches one sample
after the other and stacks them.

Write `fetch_batches(x, y, order, size)`: `x` is `[n, …]`, `y` is `[n]`, `order` a tensor of
indices. Return the list of batches (x, y): the samples that `order` names, in its order, `size` in
each batch, the last one shorter where they run out.""",
    cases=fetch_batches_cases,
    drive=fetch_batches_drive,
    reference=fetch_batches,
    reasoning="""A call costs some microseconds, whether it fetches one sample or a hundred.
`order.split(size)` cuts the indices, which are small, and `index_select` copies all samples of a
batch in one call, straight to where they belong. Labels take the same indices as samples.""",
    wrong=(
        STACKED,
        Wrong.changed(
            fetch_batches,
            "y.index_select(0, part)) for part in order.split(size)]",
            "labels) for part, labels in zip(order.split(size), y.split(size))]",
            "The samples follow the order and the labels do not: almost every label belongs to "
            "another sample. Fetch both with the same indices.",
        ),
        Wrong(
            lambda x, y, order, size: list(
                zip(x[: len(order)].split(size), y[: len(order)].split(size), strict=True)
            ),
            "The batches come in the order of the data. Take the samples that `order` names.",
        ),
        Wrong.changed(
            fetch_batches,
            "order.split(size)",
            "order[: len(order) - len(order) % size].split(size)",
            "The short batch at the end is missing.",
        ),
        Wrong.changed(
            fetch_batches,
            "order.split(size)",
            "order.sort().values.split(size)",
            "You sort the indices first, so the batches are other ones. Keep the order as it is.",
        ),
        Wrong.changed(
            fetch_batches,
            "order.split(size)",
            "order.chunk(size)",
            "chunk(size) makes `size` batches, split(size) makes batches of `size`.",
        ),
    ),
    target=LessTime(fetch_batches_large, 0.25, STACKED),
)
