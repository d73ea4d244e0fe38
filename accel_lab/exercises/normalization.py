"""The exercises of the chapter on normalization."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor

from accel_lab.exercises import Case, Exercise, LessMemory, Wrong


def _seeded(rng: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.randrange(2**31))


# ---- both splits, by the training split's statistics ----


def scaled_cases(rng: random.Random) -> Iterator[Case]:
    for channels in (rng.randint(2, 3), 3):
        generator = _seeded(rng)
        spread = torch.tensor([1.0, 40.0, 7.0])[:channels].view(-1, 1, 1)
        train = torch.randn(
            rng.randint(5, 9), channels, 4, 5, generator=generator
        ) * spread + 50 * spread.flip(0)
        test = torch.randn(rng.randint(3, 4), channels, 4, 5, generator=generator) * spread * 2 + 30
        yield {"train": train, "test": test}
    train[:, 1], test[:, 1] = 3.0, 5.0  # a channel that never changes while training
    yield {"train": train, "test": test}


def scaled_drive(answer, case):
    train, test = answer(case["train"], case["test"])
    return [train, test]


def scaled_alike(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    mean = train.mean((0, 2, 3), keepdim=True)
    deviation = train.std((0, 2, 3), correction=0, keepdim=True)
    deviation[deviation == 0] = 1
    return (train - mean) / deviation, (test - mean) / deviation


def _by(divisor) -> object:
    def answer(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
        mean, by = train.mean((0, 2, 3), keepdim=True), divisor(train)
        return (train - mean) / by, (test - mean) / by

    return answer


def _no_zero(by: Tensor) -> Tensor:
    return torch.where(by == 0, 1.0, by)


def _each_by_itself(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    return scaled_alike(train, train)[0], scaled_alike(test, test)[0]


def _leaked(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    both = scaled_alike(torch.cat([train, test]), test)[0]
    return both[: len(train)], both[len(train) :]


def _all_channels_alike(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    return (train - train.mean()) / train.std(correction=0), (test - train.mean()) / train.std(
        correction=0
    )


scaled = Exercise(
    name="scaled_alike",
    points=3,
    task="""Write `scaled_alike(train, test)`. Both are float tensors `[n, channels, height,
width]`. Return the pair of them, brought to mean 0 and standard deviation 1 **for each channel**,
both by the statistics of `train` (deviation with divisor n). A channel that is constant in `train`
has deviation 0: leave its scale alone and only subtract its mean.""",
    cases=scaled_cases,
    drive=scaled_drive,
    reference=scaled_alike,
    wrong=(
        Wrong(
            _by(lambda x: _no_zero(x.var((0, 2, 3), correction=0, keepdim=True))),
            "You divided by the variance. It is in squared units: its root, the standard "
            "deviation, is what makes the variance 1.",
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
        Wrong(
            _all_channels_alike,
            "One mean and one deviation for all channels: they differ by a factor of 40. Take the "
            "statistics over (0, 2, 3).",
        ),
        Wrong(
            _by(lambda x: x.std((0, 2, 3), correction=0, keepdim=True)),
            "A constant channel has deviation 0, and 0/0 is NaN. Put 1 in the place of a deviation "
            "that is 0.",
        ),
    ),
)


# ---- merging the statistics of two parts ----


def merged_cases(rng: random.Random) -> Iterator[Case]:
    for _ in range(3):
        generator = _seeded(rng)
        parts = [
            torch.randn(n, 2, generator=generator, dtype=torch.float64) * rng.uniform(1, 4)
            for n in (rng.randint(2, 9), rng.randint(10, 30))
        ]
        parts[1] += rng.uniform(3, 9)
        sides = {"a": parts[0], "b": parts[1]}
        yield {key: [len(x), x.mean(0), x.var(0, correction=0)] for key, x in sides.items()}


def merged_drive(answer, case):
    count, mean, variance = answer(tuple(case["a"]), tuple(case["b"]))
    return {"count": count, "mean": mean, "variance": variance}


def merged(a: tuple, b: tuple) -> tuple:
    (n_a, mean_a, variance_a), (n_b, mean_b, variance_b) = a, b
    n = n_a + n_b
    mean = (n_a * mean_a + n_b * mean_b) / n
    within = (n_a * variance_a + n_b * variance_b) / n
    return n, mean, within + n_a * n_b * (mean_b - mean_a) ** 2 / n**2


def _unweighted(a: tuple, b: tuple) -> tuple:
    mean = (a[1] + b[1]) / 2
    return a[0] + b[0], mean, (a[2] + b[2]) / 2 + ((b[1] - a[1]) / 2) ** 2


def _within_only(a: tuple, b: tuple) -> tuple:
    n = a[0] + b[0]
    return n, (a[0] * a[1] + b[0] * b[1]) / n, (a[0] * a[2] + b[0] * b[2]) / n


def _distance_unweighted(a: tuple, b: tuple) -> tuple:
    n, mean, within = _within_only(a, b)
    return n, mean, within + (b[1] - a[1]) ** 2


merge = Exercise(
    name="merged",
    points=3,
    task="""Two machines have each seen a part of the data. Write `merged(a, b)`: each is `(count,
mean, variance)`, mean and variance being float64 tensors `[channels]`, the variance with divisor n.
Return the same three for both parts together, without the data.""",
    cases=merged_cases,
    drive=merged_drive,
    reference=merged,
    wrong=(
        Wrong(
            _unweighted,
            "Both parts counted the same, though one has seen more. Weigh each by its count over "
            "the sum of counts.",
        ),
        Wrong(
            _within_only,
            "That is the variance within the parts. Where their means differ, add "
            "n_a·n_b/n²·(difference)².",
        ),
        Wrong(
            _distance_unweighted,
            "The distance of the means was added whole. No sample is that far from the common "
            "mean: it counts n_a·n_b/n² times.",
        ),
    ),
    tolerance=1e-9,
)


# ---- a batch norm that is wrong in inference ----


def batch_norm_cases(rng: random.Random) -> Iterator[Case]:
    for training in (True, False, True):
        generator = _seeded(rng)
        channels = rng.randint(2, 4)
        yield {
            "x": torch.randn(
                rng.randint(4, 6), channels, 3, 3, generator=generator, dtype=torch.float64
            )
            * 3
            + 2,
            "mean": torch.randn(channels, generator=generator, dtype=torch.float64),
            "variance": torch.rand(channels, generator=generator, dtype=torch.float64) + 0.5,
            "training": training,
        }


def batch_norm_drive(answer, case):
    y, mean, variance = answer(case["x"], case["mean"], case["variance"], case["training"])
    return {"y": y, "running mean": mean, "running variance": variance}


def batch_norm(
    x: Tensor, mean: Tensor, variance: Tensor, training: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if training:
        now_mean, now_variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        mean = 0.9 * mean + 0.1 * now_mean
        variance = 0.9 * variance + 0.1 * x.var((0, 2, 3), correction=1)
    else:
        now_mean, now_variance = mean, variance
    y = (x - now_mean.view(-1, 1, 1)) / (now_variance.view(-1, 1, 1) + 1e-5).sqrt()
    return y, mean, variance


def _always_the_batch(
    x: Tensor, mean: Tensor, variance: Tensor, training: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y, new_mean, new_variance = batch_norm(x, mean, variance, True)
    return (y, new_mean, new_variance) if training else (y, mean, variance)


def _moves_in_inference(
    x: Tensor, mean: Tensor, variance: Tensor, training: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y = batch_norm(x, mean, variance, training)[0]
    return y, *batch_norm(x, mean, variance, True)[1:]


def _one_divisor(correction: int) -> object:
    def answer(
        x: Tensor, mean: Tensor, variance: Tensor, training: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        if not training:
            return batch_norm(x, mean, variance, False)
        now = x.var((0, 2, 3), correction=correction)
        y = (x - x.mean((0, 2, 3)).view(-1, 1, 1)) / (now.view(-1, 1, 1) + 1e-5).sqrt()
        return y, batch_norm(x, mean, variance, True)[1], 0.9 * variance + 0.1 * now

    return answer


def _momentum_backwards(
    x: Tensor, mean: Tensor, variance: Tensor, training: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y = batch_norm(x, mean, variance, training)[0]
    if training:
        mean, variance = (
            0.1 * mean + 0.9 * x.mean((0, 2, 3)),
            0.1 * variance + 0.9 * x.var((0, 2, 3), correction=1),
        )
    return y, mean, variance


repair = Exercise(
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
    wrong=(
        Wrong(
            _always_the_batch,
            "In inference the batch's own statistics were used: a picture's answer then depends on "
            "its neighbours.",
        ),
        Wrong(
            _moves_in_inference,
            "The running averages moved in inference: looking at test pictures changed the model.",
        ),
        Wrong(
            _one_divisor(0),
            "The running variance took in the variance with divisor n. Inference sees single "
            "pictures: divide by n − 1.",
        ),
        Wrong(
            _one_divisor(1),
            "The batch was divided by the root of the variance with divisor n − 1: its variance is "
            "not 1 then. Use n.",
        ),
        Wrong(
            _momentum_backwards,
            "Momentum backwards: 0.1 is the weight of the new batch, 0.9 that of what is "
            "remembered.",
        ),
    ),
    tolerance=1e-9,
)


# ---- no more memory than needed ----


def lean_cases(rng: random.Random) -> Iterator[Case]:
    for channels in (1, 3):
        generator = _seeded(rng)
        yield {
            "x": torch.randint(
                0,
                256,
                (rng.randint(8, 12), channels, 64, 64),
                dtype=torch.uint8,
                generator=generator,
            ),
            "mean": torch.rand(channels, generator=generator) * 200,
            "deviation": torch.rand(channels, generator=generator) * 80 + 10,
        }


def lean_drive(answer, case):
    import torch

    out = torch.full(case["x"].shape, float("nan"))
    answer(case["x"], case["mean"], case["deviation"], out)
    return out


def large_batch(rng: random.Random) -> Case:
    generator = _seeded(rng)
    return {
        "x": torch.randint(0, 256, (64, 3, 128, 128), dtype=torch.uint8, generator=generator),
        "mean": torch.rand(3, generator=generator) * 200,
        "deviation": torch.rand(3, generator=generator) * 80 + 10,
    }


def normalize_into(x: Tensor, mean: Tensor, deviation: Tensor, out: Tensor) -> None:
    out.copy_(x).sub_(mean.view(-1, 1, 1)).div_(deviation.view(-1, 1, 1))


def _with_temporaries(x: Tensor, mean: Tensor, deviation: Tensor, out: Tensor) -> None:
    out.copy_((x.float() - mean.view(-1, 1, 1)) / deviation.view(-1, 1, 1))


def _wraps_round(x: Tensor, mean: Tensor, deviation: Tensor, out: Tensor) -> None:
    out.copy_((x - mean.view(-1, 1, 1).to(torch.uint8)) / deviation.view(-1, 1, 1))


def _returns_another(x: Tensor, mean: Tensor, deviation: Tensor, out: Tensor) -> Tensor:
    return (x.float() - mean.view(-1, 1, 1)) / deviation.view(-1, 1, 1)


WITH_TEMPORARIES = Wrong(
    _with_temporaries,
    "Right values, and a batch-sized tensor for every operation on the way. Methods that end in an "
    "underscore work in place.",
)

lean = Exercise(
    name="normalize_into",
    points=4,
    task="""The target: fill `out` **without making any tensor as large as the batch**. Write
`normalize_into(x, mean, deviation, out)`: `x` is uint8 `[n, channels, height, width]`, `mean` and
`deviation` are float32 `[channels]`, `out` is float32 of x's shape, full of NaN. It must hold (x −
mean) / deviation afterwards. For a batch of 12 MB of floats you have 20 MB, `out` included; the
system counts them.""",
    cases=lean_cases,
    drive=lean_drive,
    reference=normalize_into,
    wrong=(
        WITH_TEMPORARIES,
        Wrong(
            _wraps_round,
            "uint8 minus uint8 is uint8, and 3 − 5 is 254 there. Make floats first, then subtract.",
        ),
        Wrong(
            _returns_another,
            "`out` was not filled: a new tensor was returned instead. Start with out.copy_(x).",
        ),
    ),
    target=LessMemory(large_batch, 20 << 20, WITH_TEMPORARIES),
)
