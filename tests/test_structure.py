"""The width solved for is the largest that fits, counts are PyTorch's, cutting is masking with one
pattern; deep networks take longer and learn less than wide ones of the same number of weights.
"""

import math
from functools import partial
from itertools import islice
from statistics import fmean, median

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, dropout
from torch.utils.flop_counter import FlopCounterMode

from accel_lab.experiments import structure as experiment
from accel_lab.experiments.structure import Knobs, outcomes, run
from accel_lab.structure import (
    Net,
    as_mask,
    count,
    cut_forward,
    cut_layer,
    draw_kept,
    masked_dropout,
    width_for,
)
from accel_lab.workbench.knobs import KnobError
from accel_lab.workbench.loop import NonFiniteLoss
from accel_lab.workbench.measure.comparison import Comparison
from accel_lab.workbench.measure.memory_meter import ActivationMeter

SMALL_KNOBS = {"depth": 2, "parameters": 100_000, "seed": 1}  # the chapter in little, for papermill


def batch(n: int, inputs: int = 12, classes: int = 5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, inputs, generator=generator, dtype=dtype)
    return x, torch.randint(classes, (n,), generator=generator)


def small(*hidden: int, residual: bool = False) -> Net:
    torch.manual_seed(0)
    return Net(12, *hidden, 5, residual=residual).double()


def gradients(net: nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(net.parameters())))


# ---- the shape ----


def parameters_of(depth: int, width: int, inputs: int, outputs: int) -> int:
    net = Net(inputs, *[width] * depth, outputs)
    return sum(parameter.numel() for parameter in net.parameters())


@settings(max_examples=60)
@given(
    depth=st.integers(1, 9),
    width=st.integers(1, 30),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 9),
    more=st.integers(0, 10_000),
)
def test_the_width_is_the_largest_that_fits(depth, width, inputs, outputs, more):
    exact = parameters_of(depth, width, inputs, outputs)
    assert width_for(depth, exact, inputs, outputs) == width
    found = width_for(depth, exact + more, inputs, outputs)
    assert parameters_of(depth, found, inputs, outputs) <= exact + more
    assert parameters_of(depth, found + 1, inputs, outputs) > exact + more


def test_the_width_is_exact_for_very_large_networks():
    width = 2**40 + 1
    parameters = 3 * width**2 + (7 + 5 + 4) * width + 5
    assert width_for(4, parameters, 7, 5) == width
    assert width_for(4, parameters - 1, 7, 5) == width - 1


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("n", [1, 7])
def test_the_counts_are_those_of_pytorch_and_of_the_meter(depth, residual, n):
    torch.manual_seed(0)
    net = Net(12, *[9] * depth, 5, residual=residual)
    x, y = batch(n, dtype=torch.float32)
    found = count(net, n)
    assert found.parameters == sum(parameter.numel() for parameter in net.parameters())
    with FlopCounterMode(display=False) as answer:
        net(x)
    assert found.answer_flops == answer.get_total_flops()
    with FlopCounterMode(display=False) as update:
        cross_entropy(net(x), y).backward()
    assert found.update_flops == update.get_total_flops()
    with ActivationMeter(net, x, y) as meter:
        cross_entropy(net(x), y).backward()
    assert found.activation_bytes == meter.peak - 4  # the sum of the samples' weights, one number


def test_the_network_is_the_layers_one_after_the_other():
    net = small(9, 7)
    x, _ = batch(6)
    first, second, last = net.layers
    plain = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)
    assert torch.equal(net(x), plain(x))
    assert torch.equal(net(x.view(6, 3, 4)), plain(x))


def test_residual_connections_add_what_went_in():
    net = small(9, 9, 9, residual=True)
    x, _ = batch(6)
    first, *others, last = net.layers
    h = first(x).relu()
    for layer in others:
        h = h + layer(h).relu()
    assert torch.equal(net(x), last(h))


# ---- dropout ----


@pytest.mark.parametrize("hidden", [(8,), (8, 6), (9, 7, 11)])
@pytest.mark.parametrize("p", [0.0, 0.25, 0.5, 0.9])
def test_cutting_is_masking_with_one_pattern_for_all_samples(hidden, p):
    net = small(*hidden)
    x, y = batch(10)
    for _ in range(3):
        kept = draw_kept(net, p)
        masks = iter([as_mask(one, w, x.dtype) for one, w in zip(kept, hidden, strict=True)])
        cut, masked = cut_forward(net, x, kept), net(x, lambda h: h * next(masks))  # noqa: B023
        torch.testing.assert_close(cut, masked, rtol=1e-12, atol=1e-12)
        ours, theirs = (gradients(net, cross_entropy(one, y)) for one in (cut, masked))
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_masked_dropout_is_pytorchs(p):
    h = torch.randn(50, 30, dtype=torch.float64)
    torch.manual_seed(3)
    ours = masked_dropout(h, p)
    torch.manual_seed(3)
    torch.testing.assert_close(ours, dropout(h, p))
    assert ((ours == 0).double().mean() - p).abs() < 0.1


def test_without_dropout_nothing_changes():
    net = small(8, 6)
    x, _ = batch(4)
    torch.testing.assert_close(net(x, partial(masked_dropout, p=0.0)), net(x))
    torch.testing.assert_close(cut_forward(net, x, draw_kept(net, 0.0)), net(x))


@pytest.mark.parametrize("p", [0.5, 0.7])
def test_the_mean_over_patterns_is_the_layer(p):
    """Of a layer behind dropout, which is linear in the units: five units, all their patterns."""
    x, _ = batch(4, inputs=5)
    layer = nn.Linear(5, 3, dtype=torch.float64)
    width, k = 5, max(1, round(5 * (1 - p)))
    every = list(torch.combinations(torch.arange(width), k))
    outputs = [cut_layer(layer, x[:, kept] * (width / k), None, kept) for kept in every]
    torch.testing.assert_close(torch.stack(outputs).mean(0), layer(x))


def test_units_are_drawn_anew_and_evenly():
    net = small(10)
    drawn = [draw_kept(net, 0.7)[0] for _ in range(400)]
    assert {len(one.unique()) for one in drawn} == {3}
    often = torch.cat(drawn).bincount(minlength=10)
    assert often.min() > 70  # of 120 expected
    assert len({tuple(sorted(one.tolist())) for one in drawn}) > 50


def test_one_unit_at_least_is_kept():
    assert len(draw_kept(small(6), 0.99)[0]) == 1


def test_a_mask_does_not_remove_a_broken_unit_and_a_cut_does():
    net = small(8)
    x, _ = batch(4)
    with torch.no_grad():
        net.layers[0].weight[0] = math.nan
    kept = torch.arange(1, 8)
    assert net(x, lambda h: h * as_mask(kept, 8)).isnan().all()
    assert cut_forward(net, x, [kept]).isfinite().all()


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: width_for(0, 100, 7, 5), "depth: 0; a network needs at least 1 hidden layer"),
        (lambda: width_for(3, 20, 7, 5), "parameters: 20 are too few; this depth needs at least"),
        (lambda: Net(784, 10), "widths: (784, 10); give inputs, hidden layers, outputs"),
        (lambda: Net(784, 0, 10), "widths: (784, 0, 10); give inputs, hidden layers"),
        (lambda: Net(7, 6, 5, 4, residual=True), "widths: (6, 5); residual connections need"),
        (lambda: masked_dropout(torch.ones(2), 1.0), "p: 1.0 is not within 0 and below 1; at 1"),
        (lambda: masked_dropout(torch.ones(2), -0.1), "p: -0.1 is not within 0 and below 1"),
        (lambda: draw_kept(small(6), 1), "p: 1 is not within 0 and below 1"),
        (lambda: draw_kept(small(6), math.nan), "p: nan is not within 0 and below 1"),
        (
            lambda: cut_forward(small(6, 6, residual=True), batch(2)[0], []),
            "net: residual connections need all units; use masked_dropout there",
        ),
        *(
            (partial(cut_forward, small(6, 6), batch(2)[0], kept), "kept: give the indices of at")
            for kept in ([], [torch.arange(3)], [torch.arange(0)] * 2)
        ),
        (lambda: as_mask(torch.arange(0), 6), "kept: give the index of at least one unit"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, line):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_the_least_that_fits_is_said():
    with pytest.raises(ValueError, match=r"at least (\d+)$") as error:
        width_for(3, 20, 7, 5)
    least = int(str(error.value).split()[-1])
    assert width_for(3, least, 7, 5) == 1


# ---- the experiment ----


def steps_of(number: int = 25, **knobs) -> list:
    return list(islice(run(Knobs(device="cpu", **knobs)), number))


def test_run_trains_and_reports():
    steps = steps_of(50)
    assert [step.index for step in steps] == list(range(50))
    assert {step.samples for step in steps} == {64}
    judged = steps[-1].metrics
    assert judged["test_accuracy"] > 0.7
    assert judged["gap"] == judged["test_loss"] - judged["train_loss"]
    assert "test_loss" not in steps[-2].metrics
    assert median(step.metrics["loss"] for step in steps[-5:]) < steps[0].metrics["loss"] / 2


@pytest.mark.parametrize("depth", [1, 6])
@pytest.mark.parametrize("residual", [False, True])
def test_the_memory_is_predicted_to_the_byte(depth, residual):
    knobs = Knobs(depth=depth, residual=residual, device="cpu")
    (step,) = islice(run(knobs), 1)
    names = ("weight_bytes", "gradient_bytes", "optimizer_bytes", "activation_bytes")
    assert sum(step.metrics[name] for name in names) == experiment.predicted_bytes(knobs) + 4


@pytest.mark.parametrize("dropout", ["none", "mask", "cut"])
def test_the_same_knobs_train_the_same_network(dropout):
    def losses(**knobs):
        return [step.metrics["loss"] for step in steps_of(4, dropout=dropout, depth=2, **knobs)]

    assert losses() == losses()
    assert losses(seed=1) != losses()


def test_cutting_trains_every_unit():
    knobs = Knobs(device="cpu", depth=2, dropout="cut")
    torch.manual_seed(0)
    net = experiment.net_of(knobs)
    before = [layer.weight.detach().clone() for layer in net.layers]
    answer = experiment.training_answer(net, knobs)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    x, y = batch(16, inputs=784, dtype=torch.float32)
    for _ in range(12):
        experiment.one_update(answer, optimizer, x, y)
    moved = [(layer.weight != old).any(1) for layer, old in zip(net.layers, before, strict=True)]
    assert all(one.double().mean() > 0.9 for one in moved)


@pytest.mark.slow
def test_deep_and_thin_keeps_more_and_learns_worse():
    def accuracy(**knobs):
        turned = Knobs(device="cpu", **knobs)
        return fmean(run.accuracy for run in outcomes(turned, range(1), 150))

    wide, deep = accuracy(), accuracy(depth=32)
    assert wide > 80 > 40 > deep
    assert accuracy(depth=32, residual=True) > deep + 20
    kept = {d: count(experiment.net_of(Knobs(depth=d)), 64).activation_bytes for d in (1, 64)}
    assert kept[64] > 8 * kept[1]


@pytest.mark.slow
def test_both_kinds_of_dropout_close_the_gap_where_data_are_few():
    few = Knobs(device="cpu", depth=2, samples=400)
    plain, mask, cut = (
        fmean(run.gap for run in outcomes(few.turned(dropout=how), range(1), 150))
        for how in ("none", "mask", "cut")
    )
    assert max(mask, cut) < 0.95 * plain


def test_the_predicted_seconds_grow_by_the_same_for_each_layer(monkeypatch):
    found = experiment.Costs({100_000: 2.0, 400_000: 3.0}, 0.5)
    monkeypatch.setattr(experiment, "costs", lambda batch_size, device: found)
    assert experiment.predicted_seconds(Knobs(depth=1)) == 2.0
    assert experiment.predicted_seconds(Knobs(depth=11, parameters=400_000)) == 8.0


@pytest.mark.slow
def test_the_costs_are_measured_for_all_sizes():
    found = experiment.costs(64, "cpu")
    assert set(found.wide) == set(Knobs.model_fields["parameters"].annotation.__args__)
    assert min(*found.wide.values(), found.layer) > 0


def test_what_a_layer_adds_is_the_slope_between_few_and_many():
    taken = {-4: [5.0, 6.0, 90.0], -36: [70.0, 69.0, 71.0]}
    assert experiment.layer_seconds(taken) == 2.0
    both = experiment.depths_in_turn(Knobs(device="cpu"), (1, 2), rounds=1)
    assert set(both) == {1, 2, -4, -36}


def test_units_grow_with_every_residual_connection():
    def growth(depth, residual):
        return experiment.growth(Knobs(device="cpu", depth=depth, residual=residual))

    assert growth(1, False) == growth(1, True) == 1.0
    assert growth(16, False) < 1 < 10 < growth(16, True) < growth(64, True) / 1000


def test_answers_are_timed_at_each_depth():
    seconds = experiment.answer_seconds((1, 4), Knobs(device="cpu"), 1)
    assert set(seconds) == {1, 4}
    assert min(seconds.values()) > 0


def test_the_limit_of_cutting_has_half_the_width():
    knobs = Knobs(device="cpu", depth=2)
    whole, half = experiment.update_of(knobs), experiment.update_of(knobs, halved=True)
    assert whole().isfinite()
    assert half().isfinite()


def test_a_price_is_called_by_what_it_compares(monkeypatch):
    seen = []
    monkeypatch.setattr(experiment, "compare", lambda one, two, names, **_: seen.append(names))
    knobs = Knobs(device="cpu", depth=2)
    for peer in ("none", "mask", "half the width"):
        experiment.price(knobs, "cut", peer)
    assert seen == [("cut", "no dropout"), ("cut", "mask"), ("cut", "half the width")]


@pytest.mark.parametrize(("two_cores", "pairs"), [(5.0, 2), (0.6, 9)])
def test_a_second_core_that_others_hold_is_given_up_soon(two_cores, pairs, monkeypatch):
    def reading(program):
        return 1.0 if program.args == (1,) else two_cores

    full = Comparison.of([(1.0, two_cores)] * 9)
    monkeypatch.setattr(experiment, "reading", reading)
    monkeypatch.setattr(experiment, "compare", lambda *programs, **_: full)
    assert len(experiment.second_core(Knobs(device="cpu")).pairs) == pairs


def test_one_pattern_a_batch_needs_a_lower_rate_with_momentum():
    few = Knobs(device="cpu", depth=2, samples=500)
    cut = experiment.with_momentum(few.turned(dropout="cut"), 0.1, 60)
    plain = experiment.with_momentum(few, 0.1, 60)
    assert plain["test_accuracy"] > 0.6 > 0.4 > cut["test_accuracy"]


# ---- mistakes ----


def mistake(name: str, **knobs):
    masked = {"dropout": "mask"} if name in experiment.DROPOUT_MISTAKES else {}
    return Knobs(device="cpu", mistake=name, **masked, **knobs)


def test_every_mistake_can_be_chosen():
    names = set(Knobs.model_fields["mistake"].annotation.__args__)
    assert names == {"none", "weights N(0, 1)", *experiment.DROPOUT_MISTAKES}
    for name in names:
        assert [step.index for step in islice(run(mistake(name)), 2)] == [0, 1]


def test_dropout_left_on_answers_differently_each_time():
    knobs = mistake("left on")
    net = experiment.net_of(knobs)
    x, _ = batch(8, inputs=784, dtype=torch.float32)
    answer = experiment.training_answer(net, knobs)
    assert not torch.equal(answer(x), answer(x))
    assert torch.equal(net(x), net(x))


def test_not_scaled_units_are_zero_or_as_they_were():
    net = small(40)
    x, _ = batch(30)
    seen = []
    answer = experiment.not_scaled(net, 0.5)
    net.layers[1].register_forward_hook(lambda layer, given, out: seen.append(given[0]))
    answer(x), net(x)
    kept = seen[0] != 0
    assert torch.equal(seen[0][kept], seen[1][kept])
    assert 0.2 < kept.double().mean() / (seen[1] != 0).double().mean() < 0.8


def test_one_pattern_is_the_same_for_every_batch():
    net = small(8, 6)
    x, _ = batch(5)
    answer = experiment.one_pattern(net, 0.5)
    assert torch.equal(answer(x), answer(x))
    assert not torch.equal(answer(x), net(x))


def test_the_logits_are_dropped():
    net = small(8)
    x, _ = batch(40)
    assert (experiment.on_the_logits(net, 0.5)(x) == 0).double().mean() == pytest.approx(
        0.5, abs=0.2
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["left on", "one pattern"])
def test_a_mistake_costs_something(name):
    def loss(knobs):
        return fmean(run.test_loss for run in outcomes(knobs, range(1), 150))

    right = mistake("none", samples=400, depth=2).turned(dropout="mask")
    assert loss(mistake(name, samples=400, depth=2)) > 1.03 * loss(right)


def test_a_loss_that_is_no_number_ends_the_run_with_one_line(monkeypatch):
    monkeypatch.setattr(experiment, "one_update", lambda *_: torch.tensor(math.nan))
    with pytest.raises(NonFiniteLoss, match=r"^the loss is nan at step 0: lower") as error:
        steps_of(1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("knobs", "line"),
    [
        ({"depth": 0}, "depth: should be greater than or equal to 1 (hidden layers), not 0"),
        ({"parameters": 5}, "parameters: should be 100000, 400000 or 1000000"),
        ({"p": 1.0}, "p: should be less than or equal to 0.95"),
        ({"dropout": "half"}, "dropout: should be 'none', 'mask' or 'cut'"),
        ({"dropout": "cut", "residual": True}, "dropout: 'cut' needs a network without residual"),
        ({"mistake": "left on"}, "mistake: 'left on' is about dropout by 'mask'; choose that"),
        ({"dept": 1}, "no knob is called 'dept'; did you mean 'depth'?"),
    ],
)
def test_a_wrong_knob_is_named_in_one_line(knobs, line):
    with pytest.raises(KnobError) as error:
        Knobs(**knobs)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)
