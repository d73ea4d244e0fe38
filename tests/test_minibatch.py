"""Batches are a DataLoader's, gradients one gradient, the noise scale the exact one; a batch with
more samples per second reaches the target later.
"""

import copy
import math
from functools import partial
from itertools import count, islice
from statistics import median

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from accel_lab.experiments import minibatch as experiment
from accel_lab.experiments.minibatch import Knobs, run, way_to_target
from accel_lab.minibatch import (
    Laws,
    batches,
    fit_line,
    gradient_of_batch,
    gradient_one_by_one,
    gradients_of_samples,
    naive_batches,
    noise_scale,
    squares_of_parts,
)
from accel_lab.workbench import loop, models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.knobs import KnobError
from accel_lab.workbench.loop import NonFiniteLoss
from tests.networks import Awkward

SMALL_KNOBS = {"batch_size": 32, "seed": 1}  # the chapter in little, for papermill


def samples(n: int, *shape: int, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, *shape, generator=generator, dtype=dtype)
    return x, torch.randint(10, (n,), generator=generator)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- fetching ----


@settings(max_examples=60)
@given(n=st.integers(1, 40), size=st.integers(1, 40), seed=st.integers(0, 2**16))
def test_an_epoch_deals_out_every_sample_once(n, size, seed):
    x, y = torch.arange(n), torch.arange(n) + 100
    size = min(size, n)
    dealt = list(batches(x, y, size, seeded(seed)))
    assert sorted(torch.cat([one for one, _ in dealt]).tolist()) == list(range(n))
    assert all(torch.equal(labels, one + 100) for one, labels in dealt)
    assert [len(one) for one, _ in dealt] == [size] * (n // size) + [n % size] * (n % size > 0)
    kept = list(batches(x, y, size, seeded(seed), last="drop"))
    assert [len(one) for one, _ in kept] == [size] * (n // size)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(kept, dealt, strict=False))


@pytest.mark.parametrize("ours", [batches, naive_batches])
@pytest.mark.parametrize("shape", [(), (7,), (1, 4, 4)])
@pytest.mark.parametrize(("n", "size"), [(23, 5), (20, 5), (7, 7), (6, 1)])
@pytest.mark.parametrize("last", ["shorter", "drop"])
def test_the_batches_are_those_of_a_data_loader_with_the_same_order(ours, shape, n, size, last):
    x, y = samples(n, *shape)
    order = torch.randperm(n, generator=seeded(3)).tolist()
    theirs = DataLoader(TensorDataset(x, y), size, sampler=order, drop_last=last == "drop")
    for mine, other in zip(ours(x, y, size, seeded(3), last), theirs, strict=True):
        assert torch.equal(mine[0], other[0])
        assert torch.equal(mine[1], other[1])


def test_batches_are_copies_of_data_however_they_lie_in_memory():
    x, y = samples(12, 3, 5)
    turned = x.transpose(1, 2)
    (one, _), *_ = batches(turned, y, 5, seeded(0))
    assert torch.equal(one, next(naive_batches(turned, y, 5, seeded(0)))[0])
    before = x.clone()
    one.zero_()
    assert torch.equal(x, before)


def test_each_epoch_has_an_order_of_its_own():
    x, generator = torch.arange(30), seeded(0)
    one, two = (torch.cat([a for a, _ in batches(x, x, 7, generator)]) for _ in range(2))
    assert not torch.equal(one, two)
    assert not torch.equal(one, x)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "batch_size: 0 is not within 1 and the 5 samples"),
        (-1, "batch_size: -1 is not within"),
        (6, "batch_size: 6 is not within 1 and the 5 samples"),
        (True, "batch_size: should be a whole number, not True"),
        (2.0, "batch_size: should be a whole number, not 2.0"),
    ],
)
def test_a_size_that_cannot_be_is_named_before_anything_is_fetched(size, said):
    x, y = samples(5)
    for fetch in (batches, naive_batches):
        with pytest.raises(KnobError) as error:
            fetch(x, y, size)
        assert str(error.value).startswith(said)


def test_data_that_do_not_fit_are_refused_in_one_line():
    x, y = samples(5)
    for bad, said in (((x, y[:4], 2), "x, y: 5 samples, but 4"), ((x[:0], y[:0], 1), "x: there")):
        with pytest.raises(ValueError, match=said) as error:
            batches(*bad)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="x: should be a tensor, not list"):
        batches(x.tolist(), y, 2)
    with pytest.raises(ValueError, match="'shorter' or 'drop', not 'keep'"):
        batches(x, y, 2, last="keep")


# ---- gradients ----

MODELS = {
    "mlp": lambda: models.mlp(64, 12, 10),
    "cnn": lambda: models.cnn(channels=2, side=8),
    "group norm": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    ),
    "tied, frozen, unused, empty": Awkward,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("n", [1, 2, 13])
def test_three_ways_to_one_gradient(name, n):
    torch.manual_seed(0)
    model = MODELS[name]().double()
    x, y = samples(n, 1, 8, 8)
    cross_entropy(model(x), y).backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    truth = [torch.zeros_like(one) if one.grad is None else one.grad for one in trained]
    each = gradients_of_samples(model, x, y)
    for way in (
        gradient_one_by_one(model, x, y),
        gradient_of_batch(model, x, y),
        [one.mean(0) for one in each],
    ):
        torch.testing.assert_close(way, truth, rtol=0, atol=1e-13)
    assert [list(one.shape) for one in each] == [[n, *one.shape] for one in truth]


# ---- noise ----


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("parts", [2, 4, 8])
def test_parts_leave_the_gradient_of_the_whole_batch(name, parts):
    torch.manual_seed(0)
    model, (x, y) = MODELS[name]().double(), samples(16, 1, 8, 8)
    whole = gradient_of_batch(model, x, y)
    small_sq, big_sq = squares_of_parts(model, x, y, parts)
    left = [p.grad for p in model.parameters() if p.requires_grad]
    torch.testing.assert_close(left, whole, rtol=0, atol=1e-13)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    squares = [
        sum(float(g.square().sum()) for g in gradient_of_batch(model, a, b))
        for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True)
    ]
    assert small_sq == pytest.approx(sum(squares) / parts)
    assert big_sq == pytest.approx(sum(float(one.square().sum()) for one in whole))


@pytest.mark.parametrize("parts", [0, 1, 3, 17, 32, 2.0, True])
def test_parts_that_do_not_divide_are_refused(parts):
    with pytest.raises(KnobError, match="parts: "):
        squares_of_parts(models.mlp(64, 10), *samples(16, 1, 8, 8), parts)


@pytest.mark.parametrize(
    "of", [gradient_of_batch, gradients_of_samples, partial(squares_of_parts, parts=2)]
)
def test_a_model_that_is_frozen_is_refused(of):
    with pytest.raises(ValueError, match="model: no parameter is trained"):
        of(models.mlp(64, 10).double().requires_grad_(False), *samples(16, 1, 8, 8))


def test_squares_in_half_precision_are_finite():
    """Gradients of some hundred have squares beyond the 65,504 of float16."""
    torch.manual_seed(0)
    model, (x, y) = models.mlp(64, 10), samples(16, 1, 8, 8, dtype=torch.float32)
    half = squares_of_parts(copy.deepcopy(model).half(), 1000 * x.half(), y, 4)
    assert half == pytest.approx(squares_of_parts(model, 1000 * x, y, 4), rel=0.05)


def test_with_single_samples_the_noise_scale_is_the_exact_one():
    torch.manual_seed(0)
    model, (x, y) = models.mlp(64, 12, 10).double(), samples(40, 1, 8, 8)
    small_sq, big_sq = squares_of_parts(model, x, y, 40)
    exact = experiment.exact_noise(model, x, y)
    assert noise_scale(small_sq, big_sq, 1, 40) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(("small", "big"), [(1, 4), (4, 64), (16, 20)])
def test_the_noise_scale_is_unbiased_where_the_noise_is_known(small, big):
    """Gradients of 30 numbers with mean 1 and variance 4: tr(Σ)/‖G‖² is 120/30."""

    def mean_square(size):
        draws = 1 + 2 / math.sqrt(size) * torch.randn(40_000, 30, generator=seeded(size))
        return float(draws.double().square().sum(1).mean())

    found = noise_scale(mean_square(small), mean_square(big), small, big)
    assert found == pytest.approx(4, rel=0.06)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((2.0, 1.0, 8, 8), "small, big: 8 is not above 0 and below 8"),
        ((2.0, 1.0, 0, 8), "small, big: 0 is not"),
        ((8.0, 1.0, 1, 8), "big_sq: the noise hides the gradient"),
        ((math.nan, 1.0, 1, 8), "small_sq, big_sq: nan and 1.0 are not both finite"),
        ((8.0, math.inf, 1, 8), "small_sq, big_sq: 8.0 and inf are not"),
        ((1.0, 2.0, 1, 8), "small_sq: 1 is below big_sq, 2; are they swapped"),
    ],
)
def test_a_noise_scale_that_cannot_be_told_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said) as error:
        noise_scale(*arguments)
    assert "\n" not in str(error.value)


# ---- the laws ----


@settings(max_examples=40)
@given(
    st.builds(
        Laws,
        call=st.floats(1e-5, 1e-2),
        sample=st.floats(1e-7, 1e-4),
        least=st.floats(10, 1e4),
        critical=st.floats(1, 1e4),
    )
)
def test_no_batch_is_sooner_than_the_best_one(laws):
    here = laws.seconds(laws.best)
    for factor in (0.25, 0.9, 1.1, 4):
        assert here < laws.seconds(factor * laws.best)
    most = 1 / laws.sample
    half = laws.half_speed / laws.update_seconds(laws.half_speed)
    assert half == pytest.approx(most / 2)
    assert laws.updates(laws.critical) == pytest.approx(2 * laws.least)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["call", "sample", "least", "critical"])
def test_laws_that_cannot_be_are_refused(name, wrong):
    with pytest.raises(ValueError, match=f"{name}: should be finite and above 0"):
        Laws(**({"call": 1e-4, "sample": 1e-6, "least": 40.0, "critical": 70.0} | {name: wrong}))


def test_a_line_is_found_again_and_small_values_count_like_large_ones():
    assert fit_line({x: 3 + 0.5 * x for x in (1, 10, 100, 1000)}) == pytest.approx((3, 0.5))
    off = {1: 1.1, 2: 2.0, 1000: 1000.0}
    p, q = fit_line(off)
    assert (p, q) == pytest.approx((0.0968, 0.9838), abs=0.0001)  # plain least squares: 0.05, 1.00
    for bad in ({1: 2.0}, {1: 2.0, 2: 0.0}, {1: math.inf, 2: 1.0}):
        with pytest.raises(ValueError, match="points: "):
            fit_line(bad)


# ---- the experiment ----


def knobs(**changes) -> Knobs:
    return Knobs(device="cpu", **changes)


def steps_of(count: int, **changes):
    return list(islice(run(knobs(**changes)), count))


def test_a_clock_with_coarse_ticks_says_no_share_of_no_time_and_tells_the_costs(monkeypatch):
    ticks = count()  # it moves at each fiftieth look alone
    monkeypatch.setattr(loop, "perf_counter", lambda: next(ticks) // 50 / 1000)
    steps = steps_of(30, batch_size=8)
    assert 0 in [step.seconds for step in steps]
    for step in steps:
        assert ("wait_share" in step.metrics) == (step.seconds > 0)
    seconds = experiment.update_seconds(knobs(), sizes=(1, 8), rounds=4)
    assert all(0 < one < 1e-3 for one in seconds.values())


def test_run_trains_counts_the_wait_and_reports():
    steps = steps_of(140, batch_size=64)
    assert [step.samples for step in steps[:64]] == [64] * 62 + [32, 64]
    for step in steps:
        assert 0 < step.metrics["wait_seconds"] < step.seconds
        share = step.metrics["wait_share"]
        assert share == pytest.approx(step.metrics["wait_seconds"] / step.seconds)
    assert ["target_loss" in step.metrics for step in steps[:4]] == [False, True, False, True]
    first = next(i for i, step in enumerate(steps) if "seconds_to_target" in step.metrics)
    assert steps[first].metrics["updates_to_target"] == first + 1
    assert steps[first].metrics["target_loss"] < 0.3
    total = sum(step.seconds for step in steps[: first + 1])
    assert steps[-1].metrics["seconds_to_target"] == pytest.approx(total)


def test_how_a_batch_is_fetched_does_not_change_the_training():
    def losses(**changes):
        return [step.metrics["loss"] for step in steps_of(5, **changes)]

    assert losses() == losses(fetch="one by one") != losses(seed=1)


@pytest.mark.slow
def test_large_batches_need_fewer_updates_down_to_a_least_number():
    """Counted, so that no machine matters: each factor of 4 brings less than the one before."""
    updates = {
        size: median(way_to_target(knobs(batch_size=size, seed=s)).updates for s in range(3))
        for size in (16, 64, 256, 1024)
    }
    saved = [updates[16] / updates[64], updates[64] / updates[256], updates[256] / updates[1024]]
    assert saved[0] > 2 > saved[1] > 1.25 > saved[2] > 0.8
    laws = experiment.fitted_laws(updates, (1e-3, 1e-5))
    assert all(laws.updates(size) == pytest.approx(n, rel=0.2) for size, n in updates.items())


def test_one_run_tells_the_noise_and_is_the_plain_training():
    found = experiment.one_run(knobs(seed=2))  # of 93 updates
    assert 20 < found.noise < 110
    plain = way_to_target(knobs(batch_size=64, seed=2))
    assert abs(found.updates - plain.updates) <= 6  # which skips no shorter batch
    laws = experiment.laws_of_one_run(found, (1e-3, 1e-5))
    assert laws.updates(64) == pytest.approx(found.updates)


def test_a_target_that_is_easier_is_predicted_sooner(monkeypatch):
    monkeypatch.setattr(experiment, "costs", lambda fetch, device: (1e-4, 1e-6))
    easy, usual = (experiment.predicted_seconds(knobs(target=target)) for target in (0.8, 0.3))
    assert easy < usual / 2


def test_the_noise_grows_in_the_end():
    along = experiment.noise_along(knobs(), (0, 20, 120))
    assert along[120] > 2 * along[20] > 0


def test_updates_cost_a_fixed_time_and_a_time_per_sample():
    seconds = experiment.update_seconds(knobs(), (1, 16, 1024), rounds=5)
    assert seconds[1] < seconds[1024]
    assert 1024 / seconds[1024] > 5 / seconds[1]


# ---- mistakes ----


@pytest.mark.parametrize("mistake", ["rate of a batch of 8", "not shuffled"])
def test_a_mistake_reaches_the_target_late_or_never(mistake):
    right = int(way_to_target(knobs(batch_size=128)).updates)
    steps = steps_of(2 * right, batch_size=128, mistake=mistake)
    assert "seconds_to_target" not in steps[-1].metrics


def test_a_sum_of_losses_steps_as_many_times_too_far_as_the_batch_is_large():
    torch.manual_seed(0)
    model = models.mlp(784, 10).double()
    other = copy.deepcopy(model)
    digits = datasets.mnist5k()
    x, y = digits.train_x[:32].double(), digits.train_y[:32]
    experiment.sum_of_losses(model, torch.optim.SGD(model.parameters(), lr=0.01))(x, y)
    mean = experiment.classifier_update(other, torch.optim.SGD(other.parameters(), lr=0.32))
    mean(x, y)
    torch.testing.assert_close(model[1].weight, other[1].weight, rtol=0, atol=1e-12)


def test_a_third_is_never_drawn_with_replacement():
    x = torch.arange(4000)
    drawn = torch.cat(list(experiment.with_replacement(x, x, 64, seeded(0))))
    assert len(drawn.unique()) / 4000 == pytest.approx(1 - math.exp(-1), abs=0.02)


def test_every_mistake_can_be_chosen():
    for mistake in Knobs.model_fields["mistake"].annotation.__args__:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(experiment, "TYPICAL_NOISE", 10_000)  # steps so short that none diverges
            assert len(steps_of(3, mistake=mistake)) == 3


def test_a_loss_that_is_no_number_ends_the_run_with_one_line(monkeypatch):
    def broken(model, optimizer):
        return lambda x, y: {"loss": torch.tensor(math.nan)}

    monkeypatch.setattr(experiment, "classifier_update", broken)
    with pytest.raises(NonFiniteLoss, match="lower the learning rate") as error:
        steps_of(1)
    assert "\n" not in str(error.value)
    assert math.isinf(way_to_target(knobs()).seconds)


def test_a_target_that_is_missed_ends_after_so_many_epochs(monkeypatch):
    monkeypatch.setattr(experiment, "MOST_EPOCHS", 2)
    way = way_to_target(knobs(batch_size=512))
    assert (way.seconds, way.updates, way.losses[-1][1]) == (math.inf, math.inf, 8000)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"batch_size": 0},
            "batch_size: should be greater than or equal to 1 (samples per update)",
        ),
        ({"batch_size": 4096}, "batch_size: should be less than or equal to 2048"),
        ({"batch_size": 2.5}, "batch_size: should be a valid integer"),
        ({"learning_rate": 10}, "learning_rate: should be less than or equal to 4"),
        ({"fetch": "stack"}, "fetch: should be 'index' or 'one by one'"),
    ],
)
def test_a_wrong_knob_is_named_in_one_line(changes, line):
    with pytest.raises(KnobError) as error:
        Knobs(**changes)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_the_system_takes_a_share():
    found = experiment.system_shares(lambda: models.mlp(784, 10), (8, 64), seconds=0.1)
    assert all(speed > 0 and 0 <= share <= 1 for speed, share in found.values())


def test_one_run_that_misses_its_target_says_so(monkeypatch):
    monkeypatch.setattr(experiment, "MOST_EPOCHS", 1)
    assert experiment.one_run(knobs(seed=2, target=2.0)).reached
    missed = experiment.one_run(knobs(seed=2, target=0.05))
    assert not missed.reached
    assert missed.updates == 63  # of 64 samples: an epoch of 4,000, and a little


@pytest.mark.parametrize(("rate", "left"), [(1.0, [0.5, 1.3]), (4.0, [0.5]), (0.01, [1.3])])
def test_other_rates_are_those_that_the_knob_can_take(rate, left):
    base = knobs(learning_rate=rate)
    assert experiment.other_rates(base, (0.5, 1.3)) == left
    for factor in left:
        base.turned(learning_rate=factor * rate)


def test_a_rate_at_which_no_size_reaches_the_target_is_named():
    there, missed = (experiment.Way(seconds, 1.0, ()) for seconds in (1.0, math.inf))
    experiment.check_reached({8: [there, there], 64: [missed, there]}, knobs())
    with pytest.raises(KnobError, match=r"learning_rate: at 0\.01 no batch size") as error:
        experiment.check_reached({8: [missed, there], 64: [missed]}, knobs(learning_rate=0.01))
    assert "\n" not in str(error.value)
