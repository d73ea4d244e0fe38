"""Exercises of chapter 03: scaling both splits alike, merging statistics, a batch norm to repair,
and normalizing without temporary copies.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor

from accel_lab.exercises import Case, Exercise, LessMemory, Wrong, changed
from accel_lab.exercises._data import normal, uniform, whole

# ---- build: both splits, by the training split's statistics ----


def scaled_alike_cases(rng: random.Random) -> Iterator[Case]:
    for channels in (rng.randint(2, 3), 3):
        spread = torch.tensor([0.5, 20.0, 3.5])[:channels].view(-1, 1, 1)
        train = normal(rng, rng.randint(5, 9), channels, 4, 5) * spread + 5 * spread.flip(0)
        test = normal(rng, rng.randint(3, 4), channels, 4, 5) * spread * 2 + 30
        yield {"train": train, "test": test}
    train, test = train.clone(), test.clone()
    train[:, 1], test[:, 1] = 3.0, 5.0  # a channel that never changes while training
    yield {"train": train, "test": test}


def scaled_alike_drive(answer, case):
    train, test = answer(case["train"], case["test"])
    return {"train": train, "test": test}


def scaled_alike(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    over = (0, 2, 3)
    mean = train.mean(over, keepdim=True)
    deviation = train.std(over, correction=0, keepdim=True)
    deviation[deviation == 0] = 1
    return (train - mean) / deviation, (test - mean) / deviation


def _each_by_itself(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    return scaled_alike(train, train)[0], scaled_alike(test, test)[0]


def _picture_by_picture(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    def alone(x: Tensor) -> Tensor:
        deviation = x.std((2, 3), correction=0, keepdim=True)
        deviation[deviation == 0] = 1
        return (x - x.mean((2, 3), keepdim=True)) / deviation

    return alone(train), alone(test)


def _leaked(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    both = scaled_alike(torch.cat([train, test]), test)[0]
    return both[: len(train)], both[len(train) :]


SCALED_ALIKE = Exercise(
    name="scaled_alike",
    points=3,
    task="""Write `scaled_alike(train, test)`. Both are float tensors `[n, channels, height,
width]`. Return the pair of them, brought to mean 0 and standard deviation 1 **for each channel**,
both by the statistics of `train` (deviation with divisor n). A channel that is constant in `train`
has deviation 0: leave its scale alone and only subtract its mean.""",
    cases=scaled_alike_cases,
    drive=scaled_alike_drive,
    reference=scaled_alike,
    reasoning="""Mean and deviation run over samples, height and width (0, 2, 3), which leaves one
number a channel; `keepdim` lets them broadcast. Both sets get the statistics of `train`: the test
set stands for data that nobody has seen yet. A deviation of 0 is replaced by 1, so that a constant
channel becomes 0 and not NaN.""",
    wrong=(
        Wrong.changed(
            scaled_alike,
            "train.std(",
            "train.var(",
            "You divided by the variance. It is in squared units: its root, the standard "
            "deviation, is what makes the variance 1.",
        ),
        Wrong.changed(
            scaled_alike,
            "correction=0",
            "correction=1",
            "Your deviation has the divisor n − 1, torch's default. Here it is n: correction=0.",
        ),
        Wrong(
            _each_by_itself,
            "The test split was scaled by its own statistics. A picture that is darker than the "
            "training pictures must stay darker.",
        ),
        Wrong(
            _leaked,
            "The statistics were taken over both splits together: the test set now has a say in "
            "what the model is trained on.",
        ),
        Wrong.changed(
            scaled_alike,
            "(0, 2, 3)",
            "(0, 1, 2, 3)",
            "One mean and one deviation for all channels: they differ by a factor of 40. Take the "
            "statistics over (0, 2, 3).",
        ),
        Wrong.changed(
            scaled_alike,
            "over = (0, 2, 3)",
            "over = 0",
            "One mean and one deviation for each pixel: that also evens out where the pictures are "
            "bright. A channel has one of each, over (0, 2, 3).",
        ),
        Wrong(
            _picture_by_picture,
            "Each picture was scaled by its own statistics, so a dark one becomes as bright as the "
            "others. Take those of all training pictures, over (0, 2, 3).",
        ),
        Wrong.changed(
            scaled_alike,
            "    deviation[deviation == 0] = 1\n",
            "",
            "A constant channel has deviation 0, and 0/0 is NaN. Put 1 in the place of a deviation "
            "that is 0.",
        ),
        Wrong.changed(
            scaled_alike,
            "deviation[deviation == 0] = 1",
            "deviation += 1e-5",
            "You added 1e-5 to the deviation: a constant channel is then multiplied by 100,000. "
            "Put 1 in the place of a deviation that is 0.",
        ),
        Wrong.changed(
            scaled_alike,
            "deviation[deviation == 0] = 1",
            "deviation.clamp_(min=1)",
            "Every deviation below 1 became 1, though only one that is 0 has to.",
        ),
    ),
    tolerance=1e-4,  # a mean of 100 and a deviation of 0.5: float32 has little to spare
)


# ---- build: merging the statistics of two parts ----


def merged_cases(rng: random.Random) -> Iterator[Case]:
    for _ in range(3):
        counts = (rng.randint(2, 9), rng.randint(10, 30))
        a, b = (normal(rng, n, 2, dtype=torch.float64) * rng.uniform(1, 4) for n in counts)
        b = b + rng.uniform(3, 9)
        parts = {"a": a, "b": b}
        yield {key: [len(x), x.mean(0), x.var(0, correction=0)] for key, x in parts.items()}


def merged_drive(answer, case):
    count, mean, variance = answer(tuple(case["a"]), tuple(case["b"]))
    return {"count": count, "mean": mean, "variance": variance}


def merged(a: tuple, b: tuple) -> tuple:
    (n_a, mean_a, variance_a), (n_b, mean_b, variance_b) = a, b
    n = n_a + n_b
    mean = (n_a * mean_a + n_b * mean_b) / n
    within = (n_a * variance_a + n_b * variance_b) / n
    return n, mean, within + n_a * n_b * (mean_b - mean_a) ** 2 / n**2


MERGED = Exercise(
    name="merged",
    points=3,
    task="""Two machines have each seen a part of the data. Write `merged(a, b)`: each is `(count,
mean, variance)`, mean and variance being float64 tensors `[channels]`, the variance with divisor n.
Return the same three for both parts together, without the data.""",
    cases=merged_cases,
    drive=merged_drive,
    reference=merged,
    reasoning="""The mean of all is the mean of the two means, each weighted by its count. The
variance of all has two parts: the variance *within* the parts, again weighted by count, and the
variance *between* them, which is there because their means differ: n_a · n_b · (difference / n)².
With equal means the second part is 0. (T. F. Chan, G. H. Golub and R. J. LeVeque, 1979.)""",
    wrong=(
        Wrong.changed(
            merged,
            "(n_a * mean_a + n_b * mean_b) / n",
            "(mean_a + mean_b) / 2",
            "That is the mean of the two means, though one part has seen more. Weigh each mean by "
            "its count over the sum of counts.",
        ),
        Wrong.changed(
            merged,
            "(n_a * variance_a + n_b * variance_b) / n",
            "(variance_a + variance_b) / 2",
            "Both variances counted the same, though one part has seen more. Weigh each by its "
            "count over the sum of counts.",
        ),
        Wrong.changed(
            merged,
            " + n_a * n_b * (mean_b - mean_a) ** 2 / n**2",
            "",
            "That is the variance within the parts. Where their means differ, add "
            "n_a·n_b/n²·(difference)².",
        ),
        Wrong.changed(
            merged,
            "(mean_b - mean_a) ** 2 / n**2",
            "(mean_b - mean_a) ** 2 / n",
            "n_a·n_b/n·(difference)² belongs to the sum of squared deviations. The variance is "
            "that sum divided by n.",
        ),
        Wrong.changed(
            merged,
            "n_a * n_b * (mean_b - mean_a) ** 2 / n**2",
            "(mean_b - mean_a) ** 2",
            "The distance of the means was added whole. No sample is that far from the common "
            "mean: it counts n_a·n_b/n² times.",
        ),
    ),
    tolerance=1e-9,
)


# ---- diagnose: a batch norm that is wrong in inference ----


def batch_norm_cases(rng: random.Random) -> Iterator[Case]:
    for training in (True, False, True):
        channels = rng.randint(2, 4)
        x = normal(rng, rng.randint(4, 6), channels, 3, 3, dtype=torch.float64)
        yield {
            "x": x * 3 + 2,
            "mean": normal(rng, channels, dtype=torch.float64),
            "variance": uniform(rng, channels, dtype=torch.float64) + 0.5,
            "training": training,
        }


def batch_norm_drive(answer, case):
    y, mean, variance = answer(case["x"], case["mean"], case["variance"], case["training"])
    return {"y": y, "running mean": mean, "running variance": variance}


def batch_norm(
    x: Tensor, mean: Tensor, variance: Tensor, training: bool
) -> tuple[Tensor, Tensor, Tensor]:
    over, momentum = (0, 2, 3), 0.1
    now_mean, now_variance = mean, variance
    if training:
        now_mean, now_variance = x.mean(over), x.var(over, correction=0)
        mean = (1 - momentum) * mean + momentum * now_mean
        variance = (1 - momentum) * variance + momentum * x.var(over, correction=1)
    y = (x - now_mean.view(-1, 1, 1)) / (now_variance.view(-1, 1, 1) + 1e-5).sqrt()
    return y, mean, variance


def _as_found(
    x: Tensor, mean: Tensor, variance: Tensor, training: bool
) -> tuple[Tensor, Tensor, Tensor]:
    now_mean, now_variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    if training:
        mean = 0.9 * mean + 0.1 * now_mean
        variance = 0.9 * variance + 0.1 * now_variance
    y = (x - now_mean.view(-1, 1, 1)) / (now_variance.view(-1, 1, 1) + 1e-5).sqrt()
    return y, mean, variance


BATCH_NORM = Exercise(
    name="batch_norm",
    points=4,
    task="""A colleague's batch norm gives other answers for the same picture, depending on who is
in the batch with it. Write `batch_norm(x, mean, variance, training)`: `x` is `[n, channels, height,
width]`, `mean` and `variance` are the running averages `[channels]`. Return `(y, mean, variance)`:
the normalized batch (no γ and β, ε = 1e-5 inside the root) and the running averages as they are
afterwards. As PyTorch does it: momentum 0.1; the batch is divided by the root of its variance with
divisor n; the running variance takes in the variance with divisor n − 1; in inference the running
averages are used, and do not move.""",
    cases=batch_norm_cases,
    drive=batch_norm_drive,
    reference=batch_norm,
    reasoning="""Two pairs of statistics are at work. In training the batch is divided by *its own*
(divisor n), and the running ones move a tenth of the way to those of the batch (divisor n − 1 for
the variance). In inference only the running ones are used: what comes out for a picture must not
depend on the pictures that happen to be beside it.""",
    wrong=(
        Wrong(
            _as_found,
            "This is the colleague's version. Take one picture, in inference, alone and beside "
            "others: what comes out for it, and which statistics is it divided by? And compare "
            "the divisors with those of the task.",
            given=True,
        ),
        Wrong.changed(
            batch_norm,
            "now_mean, now_variance = mean, variance",
            "now_mean, now_variance = x.mean(over), x.var(over, correction=0)",
            "In inference the batch's own statistics were used: a picture's answer then depends on "
            "its neighbours.",
        ),
        Wrong.changed(
            batch_norm,
            "        now_mean, now_variance = x.mean(over), x.var(over, correction=0)\n"
            "        mean = (1 - momentum) * mean + momentum * now_mean\n",
            "        mean = (1 - momentum) * mean + momentum * x.mean(over)\n",
            "In training you divide by the running averages. There the batch's own mean and "
            "variance are used.",
            also=(
                changed(
                    batch_norm,
                    "    y = (x",
                    "    now_mean, now_variance = mean, variance\n    y = (x",
                ),
            ),
        ),
        Wrong.changed(
            batch_norm,
            "    y = (x",
            "    else:\n"
            "        mean = (1 - momentum) * mean + momentum * x.mean(over)\n"
            "        variance = (1 - momentum) * variance + momentum * x.var(over)\n"
            "    y = (x",
            "The running averages moved in inference: looking at test pictures changed the model.",
        ),
        Wrong.changed(
            batch_norm,
            "momentum * x.var(over, correction=1)",
            "momentum * now_variance",
            "The running variance took in the variance with divisor n. Inference sees single "
            "pictures: divide by n − 1.",
        ),
        Wrong.changed(
            batch_norm,
            "x.var(over, correction=0)",
            "x.var(over, correction=1)",
            "The batch was divided by the root of the variance with divisor n − 1: its variance is "
            "not 1 then. Use n.",
        ),
        Wrong.changed(
            batch_norm,
            "(now_variance.view(-1, 1, 1) + 1e-5).sqrt()",
            "(now_variance.view(-1, 1, 1).sqrt() + 1e-5)",
            "ε was added to the deviation. It is added to the variance, inside the root.",
        ),
        Wrong.changed(
            batch_norm,
            "momentum = (0, 2, 3), 0.1",
            "momentum = (0, 2, 3), 0.9",
            "The weights are swapped: 0.1 is the weight of the new batch, 0.9 that of what is "
            "remembered.",
        ),
    ),
    tolerance=1e-9,
)


# ---- target: no more memory than needed ----


def normalize_into_cases(rng: random.Random) -> Iterator[Case]:
    for channels in (1, 3):
        yield {
            "x": whole(rng, 0, 256, n := rng.randint(8, 12), channels, 64, 64, dtype=torch.uint8),
            "mean": uniform(rng, channels) * 200,
            "deviation": uniform(rng, channels) * 80 + 10,
            "out": torch.zeros(n, channels, 64, 64),
        }


def normalize_into_large(rng: random.Random) -> Case:
    return {
        "x": whole(rng, 0, 256, 128, 3, 128, 128, dtype=torch.uint8),
        "mean": uniform(rng, 3) * 200,
        "deviation": uniform(rng, 3) * 80 + 10,
        "out": torch.zeros(128, 3, 128, 128),  # made before anything is counted
    }


def normalize_into_drive(answer, case):
    out = case["out"].fill_(float("nan"))
    answer(case["x"], case["mean"], case["deviation"], out)
    return out


def normalize_into(x: Tensor, mean: Tensor, deviation: Tensor, out: Tensor) -> None:
    out.copy_(x).sub_(mean.view(-1, 1, 1)).div_(deviation.view(-1, 1, 1))


def _with_temporaries(x: Tensor, mean: Tensor, deviation: Tensor, out: Tensor) -> None:
    out.copy_((x.to(out.dtype) - mean.view(-1, 1, 1)) / deviation.view(-1, 1, 1))


def _one_temporary(x: Tensor, mean: Tensor, deviation: Tensor, out: Tensor) -> None:
    out.copy_(x.to(out.dtype).sub_(mean.view(-1, 1, 1)).div_(deviation.view(-1, 1, 1)))


def _wraps_round(x: Tensor, mean: Tensor, deviation: Tensor, out: Tensor) -> None:
    out.copy_((x - mean.view(-1, 1, 1).to(torch.uint8)) / deviation.view(-1, 1, 1))


def _returns_another(x: Tensor, mean: Tensor, deviation: Tensor, out: Tensor) -> Tensor:
    return (x.float() - mean.view(-1, 1, 1)) / deviation.view(-1, 1, 1)


WITH_TEMPORARIES = Wrong(
    _with_temporaries,
    "Right values, but on the way some operation makes a new tensor as large as the batch. Methods "
    "that end in an underscore work in place.",
    also=(_one_temporary,),
)

NORMALIZE_INTO = Exercise(
    name="normalize_into",
    points=4,
    task="""The target: fill `out` **without making any tensor as large as the batch**. Write
`normalize_into(x, mean, deviation, out)`: `x` is uint8 `[n, channels, height, width]`, `mean` and
`deviation` are float32 `[channels]`, `out` is float32 of x's shape, full of NaN. It must hold (x −
mean) / deviation afterwards. For a batch whose floats take 24 MB you have 6 MB beyond `x` and
`out`; the system counts them.""",
    cases=normalize_into_cases,
    drive=normalize_into_drive,
    reference=normalize_into,
    reasoning="""`out.copy_(x)` turns uint8 into float32 in place of `out`'s NaN, so the negative
numbers have room. `sub_` and `div_` work in place: no tensor as large as the batch is ever made.
The statistics are viewed as [channels, 1, 1], so that they broadcast over height and width.""",
    wrong=(
        WITH_TEMPORARIES,
        Wrong(
            _wraps_round,
            "uint8 minus uint8 is uint8, and 3 − 5 is 254 there. Make floats first, then subtract.",
        ),
        Wrong(
            _returns_another,
            "`out` was not filled: it is still full of NaN. Start with out.copy_(x); what you "
            "return is not looked at.",
        ),
    ),
    target=LessMemory(normalize_into_large, 6 << 20, WITH_TEMPORARIES),
)
