"""The rules equal PyTorch's in float64, on odd gradients too; a bad batch is fatal without them."""

import math
from itertools import islice

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from accel_lab.clipping import (
    clip_each_norm_,
    clip_flat_,
    clip_global_norm_,
    clip_value_,
    clipped_update,
    flat_gradients,
    gradients_of,
    naive_clip_global_norm_,
    plain_update,
)
from accel_lab.experiments import clipping as experiment
from accel_lab.experiments.clipping import MISTAKES, Knobs, angle, outcomes, run
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.knobs import KnobError
from accel_lab.workbench.loop import NonFiniteLoss
from accel_lab.workbench.measure.proof import prove, trajectory
from tests.networks import Awkward

SMALL_KNOBS = {"seed": 1, "batch_size": 32}  # the chapter in little, for papermill
RULES = [clip_value_, clip_each_norm_, naive_clip_global_norm_, clip_global_norm_]


MODELS = {
    "mlp": lambda: models.mlp(64, 20, 10),
    "cnn": lambda: models.cnn(channels=2, side=8),
    "awkward": Awkward,
}


def start(name: str = "mlp") -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().double()


def batches(steps: int = 10, bad: int = 4) -> list:
    """Digits, one batch of them 255 times too bright."""
    found = [(x.double(), y) for x, y in islice(datasets.digits().batches(16), steps)]
    found[bad] = (255 * found[bad][0], found[bad][1])
    return found


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def ours(rule, limit):
    def update(model, optimizer, x, y):
        clipped_update(model, optimizer, x, y, rule=rule, limit=limit)

    return update


def theirs(clip):
    """The update as PyTorch's documentation has it; clip gets the list of parameters."""

    def update(model, optimizer, x, y):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        clip(list(model.parameters()))
        optimizer.step()

    return update


def each(parameters, limit):
    for parameter in parameters:
        clip_grad_norm_([parameter], limit)


TRUTHS = {
    clip_value_: clip_grad_value_,
    clip_each_norm_: each,
    naive_clip_global_norm_: clip_grad_norm_,
    clip_global_norm_: clip_grad_norm_,
}


@pytest.mark.parametrize("limit", [0.02, 0.5, 1e9])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("model", MODELS)
def test_training_is_that_of_pytorchs_rule(model, rule, limit):
    ways = {
        "torch": theirs(lambda parameters: TRUTHS[rule](parameters, limit)),
        "ours": ours(rule, limit),
    }
    states = {way: trajectory(start(model), sgd, one, batches()) for way, one in ways.items()}
    assert prove(states).holds


def test_training_is_that_of_accelerate():
    accelerator = Accelerator(cpu=True)
    witness = theirs(lambda parameters: accelerator.clip_grad_norm_(parameters, 0.5))
    ways = {"accelerate": witness, "ours": ours(clip_global_norm_, 0.5)}
    states = {way: trajectory(start(), sgd, one, batches()) for way, one in ways.items()}
    assert prove(states).holds


def test_without_anything_to_clip_it_is_the_plain_update():
    ways = {"plain": plain_update, "ours": ours(clip_global_norm_, math.inf)}
    states = {way: trajectory(start(), sgd, one, batches()) for way, one in ways.items()}
    assert prove(states, tolerance=0).holds
    clipped = {"plain": plain_update, "ours": ours(clip_global_norm_, 0.5)}
    states = {way: trajectory(start(), sgd, one, batches()) for way, one in clipped.items()}
    assert not prove(states).holds


def odd_gradients(size: float = 1.0) -> list:
    generator = torch.Generator().manual_seed(0)

    def random(*shape, dtype=torch.float32):
        return size * torch.randn(shape, generator=generator, dtype=dtype)

    return [
        random(5, 7),
        random(7, 5).t(),  # not contiguous
        random(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        random(),
        random(0, 3),
        random(6, dtype=torch.float64),
    ]


def as_parameters(gradients: list) -> list:
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    return [*parameters, nn.Parameter(torch.zeros(2))]  # the last one has no gradient


@pytest.mark.parametrize("size", [0, 1e-8, 1.0, 1e10])
@pytest.mark.parametrize("rule", RULES)
def test_odd_gradients_are_clipped_as_pytorch_does(rule, size):
    gradients = odd_gradients(size)
    parameters = as_parameters(gradients)
    before = torch.cat([gradient.double().flatten() for gradient in gradients]).norm()
    TRUTHS[rule](parameters, 1.0)
    norm = rule(iter(gradients), 1.0)
    torch.testing.assert_close(norm.double(), before, rtol=1e-6, atol=0)
    for gradient, parameter in zip(gradients, parameters, strict=False):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize("order", [1, 2, 3, math.inf])
def test_other_norms_are_pytorchs(order):
    gradients = [gradient for gradient in odd_gradients() if gradient.numel()]
    parameters = as_parameters(gradients)
    theirs = clip_grad_norm_(parameters, 0.5, norm_type=order)
    norm = clip_global_norm_(gradients, 0.5, order)
    torch.testing.assert_close(norm.double(), theirs.double(), rtol=1e-6, atol=0)
    for gradient, parameter in zip(gradients, parameters, strict=False):
        torch.testing.assert_close(gradient, parameter.grad)


@pytest.mark.parametrize("rule", RULES[1:])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_norm_of_half_precision_does_not_overflow(rule, dtype):
    """It is about 95,000: more than float16 holds."""
    gradient = torch.full((10,), 30_000.0, dtype=dtype)
    rule([gradient], 1.0)
    if rule is not naive_clip_global_norm_:
        expected = torch.full((10,), 1 / math.sqrt(10), dtype=dtype)
        torch.testing.assert_close(gradient, expected)


@given(
    limit=st.floats(1e-3, 1e3),
    sizes=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=9),
)
def test_the_global_norm_keeps_the_direction_and_the_limit(limit, sizes):
    before = torch.tensor(sizes, dtype=torch.float64)
    after = before.clone()
    clip_global_norm_(list(after.split(2)), limit)
    assert after.norm() <= limit * (1 + 1e-12)
    scale = min(1.0, limit / (float(before.norm()) + 1e-6))
    torch.testing.assert_close(after, scale * before, rtol=1e-12, atol=0)


def test_what_is_not_clipped_is_not_written_to():
    gradients = odd_gradients()
    versions = [gradient._version for gradient in gradients]
    clip_global_norm_(gradients, 1e9)
    assert [gradient._version for gradient in gradients] == versions
    clip_global_norm_(gradients, 1e-3)
    assert [gradient._version for gradient in gradients] != versions


# ---- what is not finite ----


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("rule", RULES)
def test_an_update_whose_gradient_is_not_finite_is_skipped(rule, bad):
    model = start()
    optimizer = sgd(model)
    (good, y), *_ = batches(1, bad=0)
    clipped_update(model, optimizer, good, y, rule=rule, limit=1.0)  # fills the momentum
    before = [parameter.detach().clone() for parameter in model.parameters()]
    x = good.clone()
    x[0, 0, 0, 0] = bad
    _, norm = clipped_update(model, optimizer, x, y, rule=rule, limit=1.0)
    assert not norm.isfinite()
    assert all(map(torch.equal, before, model.parameters()))
    _, norm = clipped_update(model, optimizer, good, y, rule=rule, limit=1.0)
    assert norm.isfinite()
    assert not any(map(torch.equal, before, model.parameters()))


def test_one_number_that_is_not_finite_spoils_no_other():
    """PyTorch's rule makes all of them NaN, or 0."""
    for bad in (math.nan, math.inf):
        spoilt, whole = torch.tensor([1.0, bad]), torch.tensor([2.0, 3.0])
        assert not clip_global_norm_([spoilt, whole], 1.0).isfinite()
        assert whole.tolist() == [2.0, 3.0]


# ---- wrong input ----


def test_a_buffer_of_any_shape_is_clipped():
    for flat in (torch.ones(9), torch.ones(3, 3), torch.ones(6, 6)[::2, ::2]):
        assert float(clip_flat_(flat, 1.5)) == 3
        torch.testing.assert_close(flat, torch.full_like(flat, 0.5))


@pytest.mark.parametrize("limit", [0, -1.0, math.nan])
@pytest.mark.parametrize("rule", RULES)
def test_a_limit_that_is_not_above_zero_is_refused_in_one_line(rule, limit):
    gradients = [torch.ones(3)]
    with pytest.raises(ValueError, match=r"^limit: \S+ is not above zero; .*freeze.*$"):
        rule(gradients, limit)
    with pytest.raises(ValueError, match=r"^limit: "):
        clip_flat_(gradients[0], limit)
    assert gradients[0].tolist() == [1, 1, 1]  # PyTorch would turn them round


def test_sparse_and_complex_gradients_are_refused_in_one_line():
    embedding = nn.Embedding(9, 4, sparse=True)
    embedding(torch.tensor([1, 1])).sum().backward()
    for gradients in (gradients_of(embedding), [torch.ones(2, dtype=torch.complex64)]):
        with pytest.raises(ValueError, match=r"^gradients: sparse, complex or .*dense and real$"):
            clip_global_norm_(gradients, 1.0)


@pytest.mark.parametrize("rule", RULES)
def test_what_is_no_gradient_is_refused_in_one_line(rule):
    model = nn.Linear(2, 2)
    weights = model.weight.detach().clone()
    with torch.no_grad(), pytest.raises(ValueError, match=r"^gradients: .*gradients_of\(model\)"):
        rule(model.parameters(), 1e-3)  # would clip the weights
    assert torch.equal(model.weight, weights)
    with pytest.raises(ValueError, match=r"^gradients: NoneType is not a tensor; .*None$"):
        rule([parameter.grad for parameter in model.parameters()], 1.0)
    with pytest.raises(ValueError, match=r"^gradients: .* integer ones cannot be clipped"):
        rule([torch.tensor([3, 4])], 1.0)


@pytest.mark.parametrize("rule", RULES)
def test_no_gradients_are_told_of(rule):
    spent = iter([torch.ones(2)])
    list(spent)
    for nothing in ([], spent, gradients_of(start())):
        with pytest.warns(UserWarning, match=r"^there are no gradients to clip: call backward"):
            assert rule(nothing, 1.0) == 0


# ---- one buffer ----


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_one_buffer_is_the_same_training(model):
    def flat(model, optimizer, x, y):
        optimizer.zero_grad(set_to_none=False)
        cross_entropy(model(x), y).backward()
        clip_flat_(model.flat, 0.5)
        optimizer.step()

    def with_buffer(model):
        object.__setattr__(model, "flat", flat_gradients(model))
        return sgd(model)

    states = {
        "torch": trajectory(
            start(model),
            sgd,
            theirs(lambda parameters: clip_grad_norm_(parameters, 0.5)),
            batches(),
        ),
        "one buffer": trajectory(start(model), with_buffer, flat, batches()),
    }
    assert prove(states).holds


def test_one_buffer_holds_one_kind():
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    for model in (mixed, nn.Linear(2, 2).half(), nn.Linear(2, 2).requires_grad_(False)):
        with pytest.raises(ValueError, match=r"^model: one buffer holds float32 or float64"):
            flat_gradients(model)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("limit", [1e-3, 1e9])
def test_on_a_gpu_it_is_the_same(limit):
    gradients = [gradient for gradient in odd_gradients() if gradient.dtype == torch.float32]
    on_gpu = [gradient.cuda() for gradient in gradients]
    norms = clip_global_norm_(gradients, limit), clip_global_norm_(on_gpu, limit)
    torch.testing.assert_close(norms[0], norms[1].cpu())
    for gradient, other in zip(gradients, on_gpu, strict=True):
        torch.testing.assert_close(gradient, other.cpu())


# ---- the bad batch ----


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "limit", "seeds"),
    [
        ("none", 1.0, 5),
        ("global norm", 1.0, 5),
        ("global norm", 5.0, 2),
        ("each norm", 1.0, 2),
        ("value", 0.01, 2),
    ],
)
def test_one_bad_batch_is_fatal_without_clipping_alone(rule, limit, seeds):
    for found in outcomes(Knobs(rule=rule, limit=limit, device="cpu"), seeds):
        assert found.before < 0.6
        if rule == "none":
            assert found.after > 2.0
            assert found.end == pytest.approx(experiment.CHANCE, abs=0.05)
            assert found.accuracy < 15
        else:
            assert found.after < 0.6
            assert found.end < 0.3
            assert found.accuracy > 80


def test_a_run_that_explodes_counts_as_chance(monkeypatch):
    nothing = torch.tensor(math.nan)
    monkeypatch.setattr(experiment, "clipped_update", lambda *_, **options: (nothing, nothing))
    (found,) = outcomes(Knobs(device="cpu"), seeds=1)
    assert (found.end, found.accuracy) == (math.inf, 10)


def test_a_milder_batch_is_not_fatal():
    (mild,) = outcomes(Knobs(rule="none", spike=30.0, device="cpu"), seeds=1, updates=400)
    assert mild.accuracy > 70


def steps_of(count: int = 110, **knobs) -> list:
    return list(islice(run(Knobs(device="cpu", **knobs)), count))


def test_no_update_is_longer_than_predicted():
    knobs = Knobs(device="cpu", watch=True)
    moved = [step.metrics["moved"] for step in islice(run(knobs), 110)]
    assert 0.1 < max(moved) <= experiment.longest_step(knobs)
    unclipped = [step.metrics["moved"] for step in steps_of(rule="none", watch=True)]
    assert max(unclipped) > 10 * experiment.longest_step(knobs)


def test_the_global_norm_alone_keeps_the_direction():
    turned = {
        rule: steps_of(101, rule=rule, limit=limit, watch=True)[100].metrics["angle"]
        for rule, limit in (("value", 0.01), ("each norm", 1.0), ("global norm", 1.0))
    }
    assert turned["global norm"] < 1e-3
    assert turned["value"] > 20
    assert turned["each norm"] > 10
    for factor in (1.0, 255.0):
        found = experiment.angles(Knobs(device="cpu"), factor, updates=30)
        assert found["global norm"] < 1e-3
        assert min(found["value"], found["each norm"]) > 8


def test_the_angle_is_exact():
    along, across = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1e-3])
    assert angle([along], [5 * along]) == 0
    assert angle([along], [across]) == pytest.approx(90)
    assert angle([along], [-along]) == pytest.approx(180)
    assert angle([along], [along + across]) == pytest.approx(math.degrees(1e-3), rel=1e-3)
    assert math.isnan(angle([along], [0 * along]))


@pytest.mark.parametrize(
    ("rule", "limits"), [("value", (0.01, 0.1)), ("each norm", (0.5, 1)), ("global norm", (1, 2))]
)
def test_the_share_of_clipped_updates_is_predicted(rule, limits):
    for limit in limits:
        steps = steps_of(150, rule=rule, limit=limit, spike=1.0)
        share = sum(step.metrics["clipped"] for step in steps) / 150
        predicted = experiment.predicted_share_clipped(Knobs(rule=rule, limit=limit, device="cpu"))
        assert share == pytest.approx(predicted, abs=0.2)
    assert experiment.predicted_share_clipped(Knobs(rule="none", device="cpu")) == 0


def test_sgd_that_is_always_clipped_knows_only_rate_times_limit():
    def losses(**knobs):
        return [step.metrics["loss"] for step in steps_of(40, **knobs)]

    assert losses(limit=0.001, learning_rate=5.0) == pytest.approx(
        losses(limit=0.005, learning_rate=1.0), rel=1e-2
    )


def test_adam_divides_the_limit_out():
    adam = {"optimizer": "adam", "learning_rate": 1e-3}
    one, other = (steps_of(100, limit=limit, **adam) for limit in (0.01, 0.001))
    assert one[-1].metrics["loss"] == pytest.approx(other[-1].metrics["loss"], rel=0.05)


def test_units_die_of_the_bad_batch():
    def alive(**knobs):
        over_time = experiment.units_over_time(Knobs(device="cpu", **knobs), 130)
        return [float((units > 0).double().mean()) for units in over_time]

    dying, kept = alive(rule="none"), alive()
    assert min(dying[99], *kept[99:]) > 0.9
    assert dying[-1] < 0.5


def test_clipping_widens_the_learning_rates_of_a_recurrent_network():
    assert experiment.recurrent_loss(0.1, None) > 2.2
    assert experiment.recurrent_loss(0.1, 0.25) < 1.6


# ---- mistakes ----


def update_errors(**knobs) -> list[float]:
    return [step.metrics["update_error"] for step in steps_of(101, twin=True, **knobs)]


@pytest.mark.parametrize(
    ("mistake", "at_the_bad_batch"),
    [
        ("before unscale", (0.9, 1.1)),
        ("each micro-batch", (0.2, 1.0)),
        ("after the step", (30, 1000)),
        ("added norms", (0.1, 1.0)),
        ("always scaled", (0, 1e-4)),  # right, for what is above the limit
    ],
)
def test_a_mistake_is_as_wrong_as_it_is_said_to_be(mistake, at_the_bad_batch):
    errors = update_errors(mistake=mistake)
    least, most = at_the_bad_batch
    assert least <= errors[100] <= most
    assert max(errors) > 0.05
    assert max(update_errors()) == 0


def test_clipping_before_unscaling_learns_nothing():
    (found,) = outcomes(Knobs(mistake="before unscale", device="cpu"), seeds=1)
    assert found.end == pytest.approx(experiment.CHANCE, abs=0.02)


def test_every_mistake_can_be_chosen():
    assert set(Knobs.model_fields["mistake"].annotation.__args__) == {"none", *MISTAKES}
    assert set(Knobs.model_fields["rule"].annotation.__args__) == {"none", *experiment.RULES}


# ---- run ----


def test_run_trains_and_reports():
    steps = steps_of(101)
    assert [step.index for step in steps] == list(range(101))
    assert {step.samples for step in steps} == {64}
    bad = steps[100].metrics
    assert bad["norm"] > 50
    assert (bad["clipped"], bad["skipped"]) == (1, 0)
    assert steps[0].metrics["test_accuracy"] < 0.5 < bad["test_accuracy"]
    assert "test_accuracy" not in steps[99].metrics
    assert not {"angle", "moved", "update_error"} & set(bad)
    assert all(step.metrics["clipped"] == 0 for step in steps_of(20, rule="none"))


def test_the_same_knobs_train_the_same_model():
    def losses(**knobs):
        return [step.metrics["loss"] for step in steps_of(5, **knobs)]

    assert losses() == losses()
    assert losses(watch=True) == losses(twin=True) == losses()
    assert losses(seed=1) != losses()


def test_a_loss_that_is_no_number_ends_the_run_with_one_line(monkeypatch):
    nothing = torch.tensor(math.nan)
    monkeypatch.setattr(experiment, "clipped_update", lambda *_, **options: (nothing, nothing))
    with pytest.raises(NonFiniteLoss, match=r"^the loss is \S+ at step \d+: lower") as error:
        steps_of(1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("knobs", "line"),
    [
        ({"limit": 0}, "limit: should be greater than or equal to 0.001 (largest value or norm"),
        ({"limit": -1}, "limit: should be greater than or equal to 0.001"),
        ({"limit": float("nan")}, "limit: should be a finite number"),
        ({"spike": 1000}, "spike: should be less than or equal to 255"),
        ({"rule": "norm"}, "rule: should be 'none', 'value', 'each norm' or 'global norm'"),
        ({"limits": 1}, "no knob is called 'limits'; did you mean 'limit'?"),
        ({"watch": True, "mistake": "added norms"}, "watch: a mistake is not watched"),
    ],
)
def test_a_wrong_knob_is_named_in_one_line(knobs, line):
    with pytest.raises(KnobError) as error:
        Knobs(**knobs)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)
