"""Mixed equals torch.autocast to the bit, the scaler equals GradScaler, and updates are lost as the
formula says.
"""

import copy
import math
import time
import warnings
from itertools import islice

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from accel_lab.experiments import precision as experiment
from accel_lab.experiments.precision import (
    MISTAKES,
    Knobs,
    Listening,
    Rounded,
    Stored,
    arithmetic_of,
    outcome,
    run,
)
from accel_lab.precision import (
    SIXTEEN,
    SMALLEST_SCALE,
    LossScaler,
    Mixed,
    half_spacing,
    lost_share,
    mixed_update,
    naive_unscale_,
    pure_update,
    stochastic_round,
    unscale_,
)
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.knobs import KnobError
from accel_lab.workbench.loop import NonFiniteLoss
from accel_lab.workbench.measure import comparison
from accel_lab.workbench.measure.proof import prove, trajectory

SMALL_KNOBS = {"batch_size": 32, "seed": 1}  # the chapter in little, for papermill
both = pytest.mark.parametrize("dtype", SIXTEEN, ids=["bf16", "fp16"])


class Tied(nn.Module):
    """A weight that is used twice, a frozen layer, and a product that is not a layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.frozen = nn.Linear(64, 64).requires_grad_(False)
        self.last = nn.Linear(64, 10)

    def forward(self, x):
        x = self.first(torch.tanh(self.frozen(self.first(x.flatten(1)))))
        return self.last(x @ self.first.weight)


MODELS = {
    "mlp": lambda: models.mlp(64, 20, 10),
    "cnn": lambda: models.cnn(channels=3, side=8),
    "cnn with batch norm": lambda: models.cnn(channels=3, side=8, batch_norm=True),
    "tied": Tied,
}


def start(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]()


def batches(size: int = 13, steps: int = 5) -> list:
    return list(islice(datasets.digits().batches(size), steps))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


def with_torch(dtype):
    def update(model, optimizer, x, y):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()

    return update


def ours(dtype, **options):
    return lambda model, optimizer, x, y: mixed_update(
        model, optimizer, x, y, dtype=dtype, **options
    )


def by_hand(dtype):
    """The slow truth for an mlp of two layers: each cast written out."""

    def update(model, optimizer, x, y):
        optimizer.zero_grad()
        _, first, _, last = model
        low = x.flatten(1).to(dtype)
        hidden = F.relu(F.linear(low, first.weight.to(dtype), first.bias.to(dtype)))
        logits = F.linear(hidden, last.weight.to(dtype), last.bias.to(dtype))
        F.cross_entropy(logits.float(), y).backward()
        optimizer.step()

    return update


def same(one: nn.Module, two: nn.Module) -> bool:
    return all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))


# ---- Mixed ----


@both
@pytest.mark.parametrize("name", MODELS)
def test_mixed_is_torchs_autocast_to_the_bit(name, dtype):
    ends = []
    for update in (with_torch(dtype), ours(dtype)):
        model = start(name)
        optimizer = sgd(model)
        for x, y in batches():
            update(model, optimizer, x, y)
        ends.append(model)
    assert same(*ends)
    assert not same(ends[0], start(name))


@both
def test_mixed_is_the_casts_written_by_hand_and_not_float32(dtype):
    ten, ways = batches(steps=10), {"by hand": by_hand(dtype), "ours": ours(dtype)}
    exact = {way: trajectory(start("mlp"), sgd, one, ten) for way, one in ways.items()}
    assert prove(exact, tolerance=1e-9).holds

    def full(model, optimizer, x, y):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    ways = {"float32": full, "ours": ours(dtype)}
    found = {way: trajectory(start("mlp"), sgd, one, ten) for way, one in ways.items()}
    assert not prove(found, tolerance=1e-9).holds


@pytest.fixture
def accelerate_anew():
    """A process has one precision for good, as far as Accelerate is concerned."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_mixed_is_accelerates(accelerate_anew):
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    assert accelerator.mixed_precision == "bf16"
    theirs = accelerator.prepare_model(start("mlp"))
    mine = start("mlp")
    optimizers = sgd(theirs), sgd(mine)
    for x, y in batches():
        optimizers[0].zero_grad()
        with accelerator.autocast():
            loss = F.cross_entropy(theirs(x), y)
        loss.backward()
        optimizers[0].step()
        mixed_update(mine, optimizers[1], x, y, dtype=torch.bfloat16)
    assert same(accelerator.unwrap_model(theirs), mine)


@both
def test_which_dtype_is_decided_by_operation(dtype):
    name = str(dtype).removeprefix("torch.")
    x, y = batches()[0]
    for size in (4, 400):
        with Listening() as heard, Mixed(dtype):
            F.cross_entropy(models.mlp(64, size, 10)(x), y)
        assert heard.seen["addmm"] == heard.seen["relu"] == {name}
        assert heard.seen["nll_loss_forward"] == {"float32"}


def test_what_is_no_float_of_32_bits_stays_as_it_is():
    double = torch.ones(2, 2, dtype=torch.float64)
    with Mixed(torch.bfloat16):
        assert (double @ double).dtype == torch.float64
        assert (torch.ones(2, 2, dtype=torch.int64) @ torch.ones(2, 2).long()).dtype == torch.int64
        words = nn.Embedding(5, 3)(torch.tensor([1, 2]))
        assert F.linear(words, torch.ones(4, 3)).dtype == torch.bfloat16
        assert F.linear(input=words, weight=torch.ones(4, 3)).dtype == torch.bfloat16
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_a_weight_that_is_used_twice_is_cast_once_and_not_without_its_gradient():
    weight, x = nn.Parameter(torch.ones(3, 3)), torch.ones(1, 3)
    with Mixed(torch.bfloat16):
        with torch.no_grad():
            F.linear(x, weight)
        with Listening() as heard:
            F.linear(F.linear(x, weight), weight).sum().backward()
    assert weight.grad.abs().sum() > 0
    assert heard.seen["_to_copy"] >= {"bfloat16"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int16, None])
def test_a_dtype_of_other_bits_is_refused_in_one_line(dtype):
    with pytest.raises(ValueError, match=r"^dtype: .* is not torch.bfloat16 or torch.float16.*$"):
        Mixed(dtype)


@both
def test_a_model_of_16_bits_is_refused_in_one_line(dtype):
    model = start("mlp").to(dtype)
    with pytest.raises(ValueError, match=r"^model: its weights are .* keep them in float32") as no:
        mixed_update(model, sgd(model), *batches()[0], dtype=dtype)
    assert "\n" not in str(no.value)
    with pytest.raises(ValueError, match=r"^model: its weights"):
        LossScaler().step(sgd(model))


# ---- the scaler ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_scaler_is_torchs_to_the_bit(dtype):
    one, two = start("mlp"), start("mlp")
    optimizers = sgd(one), sgd(two)
    theirs = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=5)
    scaler, skipped = LossScaler(2.0**24, interval=5), 0
    for number, (x, y) in enumerate(batches(16, 60)):
        x = x * math.inf if number % 17 == 3 else x
        for model, optimizer, mine in ((one, optimizers[0], False), (two, optimizers[1], True)):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16, enabled=dtype == torch.float16):
                loss = F.cross_entropy(model(x), y)
            if mine:
                (loss * scaler.scale).backward()
                skipped += not scaler.step(optimizer)
            else:
                theirs.scale(loss).backward()
                theirs.step(optimizer)
                theirs.update()
        assert scaler.scale == theirs.get_scale()
    assert skipped >= 4
    assert same(one, two)


def test_mixed_update_with_a_scaler_says_whether_it_stepped():
    model = start("mlp")
    optimizer, scaler = sgd(model), LossScaler(2.0**100)
    (x, y), before = batches()[0], copy.deepcopy(model)
    loss, stepped = mixed_update(model, optimizer, x, y, dtype=torch.float16, scaler=scaler)
    assert (stepped, scaler.scale) == (False, 2.0**99)
    assert loss.isfinite()
    assert same(model, before)
    scaler = LossScaler(1024.0, interval=1)
    _, stepped = mixed_update(model, optimizer, x, y, dtype=torch.float16, scaler=scaler)
    assert (stepped, scaler.scale) == (True, 2048.0)
    assert not same(model, before)


@settings(max_examples=60)
@given(
    place=st.integers(0, 11),
    value=st.sampled_from([0.0, 1.0, 3e38, -3e38, math.inf, -math.inf, math.nan]),
    scale=st.sampled_from([1.0, 1024.0, 2.0**-20, 3.0]),
)
def test_unscaling_is_the_obvious_way(place, value, scale):
    """Finite numbers whose sum overflows are finite; what is not finite is left alone."""
    numbers = torch.full((12,), value if abs(value) == 3e38 else 2.0)
    numbers[place] = value
    mine = [numbers[:5].clone().view(1, 5), numbers[5:].clone(), torch.zeros(0)]
    plain = [one.clone() for one in mine]
    finite = unscale_(mine, scale)
    naive = naive_unscale_(plain, scale)
    assert finite is bool(numbers.isfinite().all())
    if finite and naive:  # a small scale can make finite numbers overflow
        for one, two in zip(mine, plain, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-6, atol=0)
    if not finite:
        assert not naive
        assert torch.equal(mine[1].nan_to_num(), numbers[5:].nan_to_num())
    assert unscale_([], 2.0) is True


def test_a_batch_of_nan_does_not_lower_the_scale_for_ever():
    parameter = nn.Parameter(torch.ones(3))
    optimizer, scaler = torch.optim.SGD([parameter], lr=0.1), LossScaler(2.0**-30)

    def five_updates():
        for _ in range(5):
            parameter.grad = torch.full((3,), math.nan)
            assert scaler.step(optimizer) is False

    with pytest.warns(UserWarning, match=r"^the gradient is not finite at any scale: look for"):
        five_updates()
    assert scaler.scale == SMALLEST_SCALE
    assert torch.equal(parameter.detach(), torch.ones(3))


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": 0.0},
        {"scale": -1.0},
        {"scale": math.nan},
        {"scale": math.inf},
        {"growth": 0.5},
        {"backoff": 0.0},
        {"backoff": 2.0},
        {"interval": 0},
        {"interval": 2.5},
        {"interval": math.nan},
    ],
)
def test_a_scaler_that_could_not_work_is_refused_in_one_line(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))) as no:
        LossScaler(**wrong)
    assert "\n" not in str(no.value)


# ---- the spacing ----


@both
@given(exponent=st.integers(-12, 12), mantissa=st.floats(1, 1.99), sign=st.sampled_from([-1, 1]))
def test_half_the_spacing_is_where_rounding_moves_on(dtype, exponent, mantissa, sign):
    weight = torch.tensor([sign * mantissa * 2.0**exponent]).to(dtype).float()
    half = half_spacing(weight, dtype)
    assert torch.equal((weight + sign * 0.99 * half).to(dtype).float(), weight)
    moved = (weight + sign * 1.01 * half).to(dtype).float()
    assert torch.equal(moved, weight + sign * 2 * half)


def test_half_the_spacing_is_computed_in_float32_whatever_the_weights_are_stored_in():
    small = torch.tensor([1e-6], dtype=torch.float16)
    expected = half_spacing(small.float(), torch.bfloat16)
    assert torch.equal(half_spacing(small, torch.bfloat16), expected)
    assert float(expected) > 0


@both
def test_the_share_of_lost_updates_is_the_measured_one(dtype):
    torch.manual_seed(0)
    weight = (torch.randn(200_000) / 10).to(dtype).float()
    for size in (1e-1, 1e-2, 1e-3, 1e-4):
        update = size * torch.randn(200_000) / 10
        update[::3] = 0
        measured = float(((weight + update).to(dtype) == weight)[update != 0].double().mean())
        assert lost_share(weight, update, dtype) == pytest.approx(measured, abs=0.005)
    assert lost_share(weight, torch.zeros(200_000), dtype) == 0.0
    tiny = torch.zeros(4), torch.full((4,), 1e-9)
    assert lost_share(*tiny, torch.float16) == 1.0
    assert lost_share(*tiny, torch.bfloat16) == 0.0


def test_stochastic_rounding_is_right_on_average_and_never_far():
    chance = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    x = torch.cat([torch.randn(50), 1e-30 * torch.randn(10), torch.tensor([1.001, -1.001])])
    draws = stochastic_round(x.expand(10_000, -1), chance)
    assert draws.dtype == torch.bfloat16
    spacing = 2 * half_spacing(x, torch.bfloat16)
    assert ((draws.float() - x).abs() < spacing).all()
    assert ((draws.double().mean(0) - x).abs() < 0.03 * spacing).all()


def test_stochastic_rounding_leaves_what_needs_none():
    exact = torch.tensor([0.0, -0.0, 1.0, -1.5, 2.0**-130, math.inf, -math.inf, math.nan])
    for _ in range(20):
        rounded = stochastic_round(exact).float()
        assert torch.equal(rounded.nan_to_num(7.0), exact.nan_to_num(7.0))
        assert torch.equal(rounded.signbit()[:-1], exact.signbit()[:-1])
    odd = torch.tensor([0x7F800001, 0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)
    assert stochastic_round(odd).isnan().all()  # also NaN whose bits lie where the noise goes
    grid = torch.randn(6, 4).bfloat16().float()
    assert torch.equal(stochastic_round(grid.T).float(), grid.T)
    with pytest.raises(ValueError, match=r"^x: torch.float64 cannot be rounded"):
        stochastic_round(exact.double())


# ---- the experiment ----


@both
def test_rounded_products_are_nearly_the_native_ones(dtype):
    torch.manual_seed(0)
    x, layer = torch.randn(5, 40).to(dtype), nn.Linear(40, 7).to(dtype)
    native = layer(x)
    with Rounded():
        mine = layer(x)
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert mine.dtype == dtype
    torch.testing.assert_close(mine, native, rtol=0, atol=4 * torch.finfo(dtype).eps)
    mine.float().square().sum().backward()
    assert layer.weight.grad.dtype == dtype
    assert Knobs(arithmetic="rounded").turned().arithmetic == "rounded"


def test_the_arithmetic_is_chosen_by_what_it_costs(monkeypatch):
    for cost, chosen in ((1.0, "native"), (50.0, "rounded")):
        monkeypatch.setattr(experiment, "slowdown", lambda *_, cost=cost: cost)
        assert arithmetic_of(Knobs()) == chosen
    monkeypatch.setattr(experiment, "slowdown", lambda *given: 50.0 if "cnn" in given else 1.0)
    for model, chosen in (("mlp", "native"), ("cnn", "rounded")):
        assert arithmetic_of(Knobs(model=model)) == chosen
    assert arithmetic_of(Knobs(precision="fp32")) == "native"
    assert arithmetic_of(Knobs(arithmetic="native")) == "native"


@pytest.mark.parametrize(
    ("model", "operations"), [("mlp", {"mm"}), ("cnn", {"convolution", "convolution_backward"})]
)
def test_what_it_costs_is_asked_of_the_operations_of_the_model(model, operations):
    with experiment.Listening() as listening:
        experiment.slowdown.__wrapped__(torch.bfloat16, torch.device("cpu"), model)
    for name in operations:
        assert listening.seen[name] == {"float32", "bfloat16"}


def test_what_it_costs_is_told_by_a_clock_with_coarse_ticks(monkeypatch):
    monkeypatch.setattr(comparison, "perf_counter", lambda: round(time.perf_counter(), 2))
    cost = experiment.slowdown.__wrapped__(torch.bfloat16, torch.device("cpu"))
    assert 0 < cost < math.inf


def test_storing_by_the_nearest_number_is_the_pure_update():
    one, two = (start("mlp").bfloat16() for _ in range(2))
    plain = torch.optim.SGD(one.parameters(), lr=0.125)
    stored = Stored(two.parameters(), lambda all: torch.optim.SGD(all, lr=0.125), "nearest", 0)
    for x, y in batches():
        pure_update(one, plain, x, y)
        pure_update(two, stored, x, y)
    assert same(one, two)


@pytest.fixture(scope="module")
def found():
    """200 updates of each precision, by name."""
    shared = {"device": "cpu", "arithmetic": "rounded", "learning_rate": 0.015}
    ways = {
        name: Knobs(precision=name, **shared)
        for name in ("fp32", "mixed bf16", "mixed fp16", "pure bf16")
    }
    for rounding in ("stochastic", "kahan"):
        ways[rounding] = Knobs(precision="pure bf16", rounding=rounding, **shared)
    return {name: outcome(knobs, 200) for name, knobs in ways.items()}


@pytest.mark.slow
def test_most_updates_vanish_and_32_bit_weights_save_them(found):
    exact = found["fp32"].loss
    assert exact < 2.2
    assert found["pure bf16"].loss > exact + 0.1
    assert found["pure bf16"].lost > 80
    for name in ("mixed bf16", "mixed fp16", "stochastic", "kahan"):
        assert found[name].loss == pytest.approx(exact, abs=0.01)
        assert found[name].lost < (1 if name.startswith("mixed") else 95)


@pytest.mark.parametrize("precision", ["pure bf16", "pure fp16"])
@pytest.mark.parametrize(
    ("rate", "optimizer"),
    [(0.003, "sgd"), (0.03, "sgd"), (0.3, "sgd"), (1.0, "sgd"), (1e-4, "adam")],
)
def test_lost_updates_are_predicted(precision, rate, optimizer):
    shared = {"device": "cpu", "arithmetic": "rounded", "optimizer": optimizer}
    knobs = Knobs(precision=precision, learning_rate=rate, **shared)
    if optimizer == "adam" and precision == "pure fp16":
        assert outcome(knobs, 20).loss == math.inf  # its ε is 0 in float16
        return
    predicted = 100 * experiment.predicted_lost(knobs)
    assert outcome(knobs, 60).lost == pytest.approx(predicted, abs=8)
    assert experiment.predicted_lost(knobs.turned(precision="fp32")) == 0


def test_a_panel_that_switches_the_model_trains_nothing_to_predict(monkeypatch):
    pure = Knobs(precision="pure bf16", device="cpu", arithmetic="rounded")
    experiment.learn_to_predict(pure)
    monkeypatch.setattr(experiment, "start", None)  # what a training would begin with
    for model in ("mlp", "cnn"):
        for precision in ("pure bf16", "pure fp16"):
            found = [
                experiment.predicted_lost(
                    pure.turned(model=model, precision=precision, learning_rate=rate)
                )
                for rate in (1e-4, 0.02, 1.0)
            ]
            assert found == sorted(found, reverse=True)


def scaled(scale: int, updates: int = 60, **knobs):
    settings = {"precision": "mixed fp16", "learning_rate": 0.1, "scaling": "fixed"}
    settings |= {"device": "cpu", "arithmetic": "rounded", "loss_scale": scale}
    return outcome(Knobs(**settings | knobs), updates)


def test_the_scale_has_two_cliffs_and_a_wide_plateau():
    flat = scaled(0)
    assert scaled(-8).loss == pytest.approx(flat.loss, abs=0.02)
    assert scaled(16).loss == pytest.approx(flat.loss, abs=0.02)
    low, high = scaled(-20), scaled(24)
    assert low.loss > flat.loss + 0.3
    assert low.lost_gradients > 95
    assert (high.skipped, flat.skipped) == (60, 0)


def test_a_mean_over_more_moves_the_cliff_by_as_much():
    far = scaled(8, 20, mean_over=2**16)
    assert far.lost_gradients == pytest.approx(scaled(-8, 20).lost_gradients, abs=0.5)
    assert scaled(0, 20, mean_over=2**16).lost_gradients > 85
    predicted = [
        experiment.predicted_lost_gradients(
            Knobs(precision="mixed fp16", learning_rate=0.1, loss_scale=scale, device="cpu")
        )
        for scale in (-20, -12, 0)
    ]
    assert predicted == sorted(predicted, reverse=True)
    assert 100 * predicted[1] == pytest.approx(scaled(-12).lost_gradients, abs=6)


# ---- mistakes ----


def mistaken(mistake: str, updates: int = 60, **knobs):
    base = {"precision": "mixed fp16", "learning_rate": 0.1, "mean_over": 2**16, "interval": 5}
    base |= {"device": "cpu", "arithmetic": "rounded", "mistake": mistake}
    return outcome(Knobs(**base | knobs), updates)


def test_the_mistakes_do_what_they_are_said_to_do():
    right = mistaken("none")
    assert right.loss < 1.9
    assert mistaken("no scaling").loss > right.loss + 0.3
    assert mistaken("no scaling").lost_gradients > 85
    assert mistaken("clipped too early").loss > right.loss + 0.1
    assert mistaken("old copies").loss > 2.2
    assert mistaken("not unscaled").loss == math.inf
    soon = {"loss_scale": 24, "interval": 1, "updates": 20}
    assert mistaken("never checked", **soon).loss == math.inf
    assert mistaken("none", **soon).loss < 2.3
    assert mistaken("none", **soon).skipped > 0


def test_without_scaling_the_scale_is_1():
    knobs = Knobs(precision="mixed fp16", mistake="no scaling", device="cpu")
    assert {step.metrics["scale"] for step in islice(experiment.run(knobs), 3)} == {0.0}


def test_a_quick_look_takes_fewer_seeds(monkeypatch):
    for quick, seeds in (("0", 3), ("1", 1)):
        monkeypatch.setenv("ACCEL_LAB_QUICK", quick)
        assert len(experiment.outcomes(Knobs(device="cpu"), 2, seeds=3)) == seeds


def test_every_mistake_can_be_chosen():
    assert set(Knobs.model_fields["mistake"].annotation.__args__) == {"none", *MISTAKES}


# ---- run ----


def test_run_trains_and_reports():
    knobs = Knobs(precision="mixed fp16", learning_rate=0.1, device="cpu", arithmetic="rounded")
    steps = list(islice(run(knobs), 31))
    assert steps[-1].metrics["loss"] < 0.95 * steps[0].metrics["loss"]
    assert {step.metrics["scale"] for step in steps} == {16.0}
    measured = [step.index for step in steps if "lost_updates" in step.metrics]
    assert measured == [0, 10, 20, 30]
    assert steps[30].metrics["test_accuracy"] > 0.25
    assert steps[30].metrics["lost_gradients"] < 0.05


def test_the_same_knobs_train_the_same_model():
    def losses(**knobs):
        shared = {"device": "cpu", "arithmetic": "rounded", "precision": "pure bf16"}
        return [step.metrics["loss"] for step in islice(run(Knobs(**shared | knobs)), 4)]

    assert losses() == losses()
    assert losses(rounding="stochastic") == losses(rounding="stochastic")
    assert losses() != losses(seed=1)
    assert losses(learning_rate=0.3) != losses(learning_rate=0.3, optimizer="adam")
    assert losses(model="cnn") != losses()


def test_an_overflow_that_nobody_checked_ends_the_run_with_one_line():
    knobs = Knobs(precision="mixed fp16", mistake="not unscaled", arithmetic="rounded")
    with pytest.raises(NonFiniteLoss, match=r"^the loss is nan at step") as error:
        list(islice(run(knobs), 20))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("knobs", "line"),
    [
        ({"precision": "fp8"}, "precision: should be 'fp32'"),
        ({"loss_scale": 30}, "loss_scale: should be less than or equal to 24"),
        ({"interval": 0}, "interval: should be greater than or equal to 1"),
        ({"rounding": "kahan"}, "rounding: weights are stored in 16 bits in pure bf16"),
        ({"rounding": "stochastic", "precision": "pure fp16"}, "rounding: stochastic rounding is"),
        ({"mistake": "old copies"}, "mistake: these are mistakes of mixed fp16"),
    ],
)
def test_a_wrong_knob_is_named_in_one_line(knobs, line):
    with pytest.raises(KnobError) as error:
        Knobs(**knobs)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_training_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(islice(run(Knobs(precision="mixed fp16", arithmetic="rounded", device="cpu")), 2))
