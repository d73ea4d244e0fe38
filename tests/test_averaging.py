"""Averages equal stored trajectories and PyTorch's, in float64; sorting changes no answer."""

import copy
from itertools import islice, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from accel_lab.averaging import (
    EMA,
    SWA,
    fresh_statistics,
    greedy_soup,
    matching,
    mean_of,
    naive_ema_update,
    sorted_like,
)
from accel_lab.experiments import averaging as experiment
from accel_lab.experiments.averaging import MISTAKES, Knobs, run
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.knobs import KnobError
from accel_lab.workbench.measure.proof import prove, snapshot

SMALL_KNOBS = {"updates": 200, "seed": 1}  # the chapter in little, for papermill


class Mixed(nn.Module):
    """What is awkward, in one: tied, frozen and empty parameters, buffers of both kinds, a scalar,
    and a layer that is used twice.
    """

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.frozen = nn.Linear(64, 64).requires_grad_(False)
        self.again = self.frozen
        self.last = nn.Linear(64, 64)
        self.last.weight = self.first.weight
        self.normal = nn.BatchNorm1d(64)
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("nothing", None)
        self.register_buffer("fleeting", torch.zeros(2), persistent=False)

    def forward(self, x):
        self.fleeting += 1
        x = self.normal(self.frozen(self.first(x.flatten(1)))).tanh()
        return self.scale * self.last(x)[:, :10] + self.empty.sum()


MODELS = {
    "mlp": lambda: models.mlp(64, 20, 10),
    "batch norm": lambda: models.cnn(channels=2, side=8, batch_norm=True),
    "mixed": Mixed,
}


def start(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().to(dtype)


def training(model: nn.Module, steps: int = 10, size: int = 33, rate: float = 0.1):
    """The model itself, after each of so many updates."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(wanted, lr=rate, momentum=0.9)
    dtype = next(model.parameters()).dtype
    for x, y in islice(datasets.digits().batches(size), steps):
        optimizer.zero_grad()
        cross_entropy(model(x.to(dtype)), y).backward()
        optimizer.step()
        yield model


def averages(average, model):
    """The state of an average after each update."""
    for now in training(model):
        average.update(now)
        yield snapshot(average.model)


def by_formula(model, shares_of):
    """Recomputed at every step from the stored trajectory: Σ share · weights, the slow truth.

    shares_of: number of updates → the share of each
    """
    stored = []
    for now in training(model):
        stored.append(snapshot(now))
        shares = shares_of(len(stored))
        assert sum(shares) == pytest.approx(1, abs=1e-12)
        yield {
            name: sum(share * one[name] for share, one in zip(shares, stored, strict=True))
            if last.is_floating_point()
            else last
            for name, last in stored[-1].items()
        }


def shares_of_an_ema(decay):
    def shares(count):  # the first weights have what is left
        later = [(1 - decay) * decay**age for age in range(count - 1)]
        return [1 - sum(later), *reversed(later)]

    return shares


def shares_debiased(decay):
    def shares(count):
        raw = [(1 - decay) * decay**age for age in reversed(range(count))]
        return [share / (1 - decay**count) for share in raw]

    return shares


def shares_with_warm_up(decay):
    def shares(count):
        found = [1.0]
        for before in range(1, count):
            kept = min(decay, (1 + before) / (10 + before))
            found = [*(kept * share for share in found), 1 - kept]
        return found

    return shares


WAYS = {
    "first weights": (lambda model: EMA(model, 0.9, start="first weights"), shares_of_an_ema(0.9)),
    "debiased": (lambda model: EMA(model, 0.9, start="debiased"), shares_debiased(0.9)),
    "warm-up": (lambda model: EMA(model, 0.3), shares_with_warm_up(0.3)),
    "warm-up all along": (lambda model: EMA(model, 0.999), shares_with_warm_up(0.999)),
    "no memory": (lambda model: EMA(model, 0.0), lambda count: [0.0] * (count - 1) + [1.0]),
    "SWA": (SWA, lambda count: [1 / count] * count),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_ten_updates_equal_the_formula_on_the_stored_trajectory(name, way):
    make, shares = WAYS[way]
    model = start(name)
    proof = prove(
        {
            "the formula": by_formula(copy.deepcopy(model), shares),
            "ours": averages(make(model), model),
        },
        tolerance=1e-12,
    )
    assert proof.holds, proof


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["EMA", "SWA"])
def test_ten_updates_equal_pytorchs(name, kind):
    model = start(name)
    if name == "mixed":
        model.flags = torch.tensor([1, 0])  # PyTorch's SWA cannot subtract booleans
    ours = EMA(model, 0.9, start="first weights") if kind == "EMA" else SWA(model)
    rule = {"multi_avg_fn": get_ema_multi_avg_fn(0.9)} if kind == "EMA" else {}
    theirs = AveragedModel(model, use_buffers=True, **rule)
    for now in training(model):
        ours.update(now)
        theirs.update_parameters(now)
        mine, others = snapshot(ours.model), snapshot(theirs.module)
        for name, tensor in mine.items():
            if tensor.is_floating_point():
                torch.testing.assert_close(tensor, others[name], rtol=0, atol=1e-12)
            else:  # PyTorch averages these too, and cuts off what is behind the point
                assert torch.equal(tensor, now.state_dict()[name])


def test_the_usual_loop_is_an_ema_of_the_parameters_and_forgets_buffers():
    model = start("batch norm")
    naive, ours = copy.deepcopy(model), EMA(model, 0.9, start="first weights")
    for place, now in enumerate(training(model)):
        ours.update(now)
        if place:
            naive_ema_update(naive, now, 0.9)
        else:
            naive.load_state_dict(now.state_dict())
    for one, other in zip(naive.parameters(), ours.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert not torch.allclose(naive[1].running_mean, ours.model[1].running_mean)


@settings(max_examples=30)
@given(decay=st.floats(0, 0.9999), count=st.integers(1, 60), seed=st.integers(0, 2**16))
def test_a_constant_stays_what_it_is_and_a_mean_lies_within(decay, count, seed):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2).double()
    for make in (
        lambda: EMA(model, decay),
        lambda: EMA(model, decay, start="debiased"),
        lambda: EMA(model, decay, start="first weights"),
        lambda: SWA(model),
    ):
        average, low, high = make(), torch.inf, -torch.inf
        for place in range(count):
            with torch.no_grad():
                model.weight.fill_(torch.randn(()).item())
            now = model.weight[0, 0].item()
            low, high = min(low, now), max(high, now)
            average.update(model)
            if place == 0:
                assert torch.equal(average.model.weight, model.weight)
        assert torch.equal(average.model.bias, model.bias)  # never moved
        assert low - 1e-12 <= float(average.model.weight[0, 0]) <= high + 1e-12


def test_the_average_stands_apart_from_the_model():
    model = start("batch norm")
    average = EMA(model, 0.9)
    average.update(model)
    before = snapshot(average.model)
    for _ in training(model, 3):
        pass
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in snapshot(average.model).items()
    )
    assert not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert model.training


def test_tied_weights_stay_tied_and_are_averaged_once():
    model = start("mixed")
    average = EMA(model, 0.5, start="first weights")
    for now in training(model, 4):
        average.update(now)
    assert average.model.last.weight is average.model.first.weight
    untied = copy.deepcopy(model)
    untied.last.weight = nn.Parameter(untied.last.weight.detach().clone())
    with pytest.raises(ValueError, match=r"^models differ: last\.weight is \[64, 64\] in one"):
        average.update(untied)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_averaged_in_float32(dtype):
    """In bfloat16 a hundredth of a small step is lost: the average would stay where it is."""
    model = nn.Linear(4, 4).to(dtype)
    with torch.no_grad():
        model.weight.fill_(1.0)
    average = EMA(model, 0.999, start="first weights")
    average.update(model)
    with torch.no_grad():
        model.weight.fill_(1.25)
    for _ in range(1000):
        average.update(model)
    assert average.model.weight.dtype == torch.float32
    expected = 1.25 - 0.25 * 0.999**1000
    torch.testing.assert_close(
        average.model.weight, torch.full((4, 4), expected), rtol=1e-4, atol=0
    )
    assert average.model(torch.ones(2, 4)).shape == (2, 4)


def test_tensors_that_were_replaced_are_read_where_they_stand_now():
    """``model.to`` gives a module new buffers."""
    model = start("batch norm", torch.float32)
    average = EMA(model, 0.5, start="first weights")
    for place, now in enumerate(training(model, 4)):
        if place == 2:
            now[1].running_mean = torch.full((2,), 7.0)
        average.update(now)
        if place == 2:
            before = 7.0 - average.model[1].running_mean
            assert (before.abs() < 5).all()


def test_another_model_of_the_same_shapes_can_be_taken_in():
    one, other = (nn.Linear(3, 2) for _ in range(2))
    average = SWA(one)
    for model in (one, other, one):
        average.update(model)
    mean = (2 * one.weight + other.weight) / 3
    torch.testing.assert_close(average.model.weight, mean)


# ---- bad input ----


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_a_decay_out_of_range_is_refused_in_one_line(decay):
    with pytest.raises(ValueError, match=r"^decay: .* is not in \[0, 1\)") as error:
        EMA(nn.Linear(2, 2), decay)
    assert "\n" not in str(error.value)


def test_nothing_averaged_yet_is_said():
    with pytest.raises(ValueError, match=r"^average: nothing averaged yet; call update\(model\)"):
        _ = EMA(nn.Linear(2, 2), 0.9).model


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: nn.Linear(3, 3), r"models differ: weight is \[3, 3\] in one, \[2, 3\] in"),
        (lambda: nn.Linear(3, 2, bias=False), "models differ: bias is missing in one, "),
        (lambda: nn.Sequential(nn.Linear(3, 2)), "models differ: weight is missing in one"),
    ],
)
def test_another_kind_of_model_is_refused_by_the_name_of_its_tensor(other, said):
    model = nn.Linear(3, 2)
    average = EMA(model, 0.9)
    average.update(model)
    before = snapshot(average.model)
    for ask in (lambda: average.update(other()), lambda: mean_of([model, other()])):
        with pytest.raises(ValueError, match=said) as error:
            ask()
        assert "\n" not in str(error.value)
    assert all(torch.equal(before[name], now) for name, now in snapshot(average.model).items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_taken_in(bad):
    model = start("mlp")
    average = EMA(model, 0.9)
    average.update(model)
    before = snapshot(average.model)
    with torch.no_grad():
        model[3].weight[0, 0] = bad
    with pytest.raises(ValueError, match=r"^average: 3\.weight is not finite, so it was not taken"):
        average.update(model)
    assert all(torch.equal(before[name], now) for name, now in snapshot(average.model).items())
    assert average.updates == 1
    unchecked = EMA(model, 0.9, check=False)
    unchecked.update(model)
    assert not unchecked.model[3].weight.isfinite().all()


def test_large_weights_are_finite_although_their_norm_is_not():
    for dtype, size in ((torch.float16, 60_000.0), (torch.float32, 1e30)):
        model = nn.Linear(40, 40).to(dtype)
        with torch.no_grad():
            model.weight.fill_(size)
        average = EMA(model, 0.9)
        average.update(model)
        average.update(model)
        assert average.model.weight[0, 0] == model.weight[0, 0]


def test_shares_that_do_not_fit_are_refused():
    model = nn.Linear(2, 2)
    for models_, shares in (([], None), ([model], [0.5, 0.5]), ([model, model], [2, -1])):
        with pytest.raises(ValueError, match=r"^mean_of: "):
            mean_of(models_, shares)


# ---- several models ----


@settings(max_examples=30)
@given(count=st.integers(1, 5), seed=st.integers(0, 2**16))
def test_a_mean_of_models_is_the_mean_of_each_tensor(count, seed):
    torch.manual_seed(seed)
    several = [models.cnn(channels=2, side=8, batch_norm=True) for _ in range(count)]
    shares = torch.rand(count).add(0.1).tolist()
    for given_shares in (None, shares):
        weights = torch.tensor(given_shares or [1.0] * count, dtype=torch.float64)
        mean = mean_of(several, given_shares)
        for name, tensor in mean.state_dict().items():
            stacked = torch.stack([model.state_dict()[name].double() for model in several], -1)
            expected = (stacked * weights).sum(-1) / weights.sum()
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-6)
        assert mean[0].weight is not several[0][0].weight


def test_an_swa_is_the_mean_of_the_stored_models():
    model = start("batch norm")
    average, stored = SWA(model), []
    for now in training(model):
        average.update(now)
        stored.append(copy.deepcopy(now))
    for one, other in zip(average.model.parameters(), mean_of(stored).parameters(), strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=0, atol=1e-12)


def test_a_greedy_soup_leaves_out_what_harms():
    def scalar(value):
        model = nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            model.weight.fill_(value)
        return model

    several = [scalar(value) for value in (-9.0, 1.2, 0.7, 5.0)]
    scored = []

    def score(model):
        scored.append(model.weight.item())
        return -abs(scored[-1] - 1)

    soup, chosen = greedy_soup(several, score)
    assert chosen == [1, 2]
    assert float(soup.weight) == pytest.approx(0.95)
    assert len(scored) == 4 + 3  # each model, and each mean that was tried: an evaluation is dear
    alone, chosen = greedy_soup(several[:1], lambda model: 0.0)
    assert chosen == [0]
    assert float(alone.weight) == -9.0


def shuffled(model: nn.Sequential, seed: int) -> nn.Sequential:
    """The same function with its hidden units in another order."""
    copied, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    layers = [layer for layer in copied if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer, following in pairwise(layers):
            order = torch.randperm(layer.out_features, generator=generator)
            layer.weight.copy_(layer.weight[order])
            layer.bias.copy_(layer.bias[order])
            following.weight.copy_(following.weight[:, order])
    return copied


@settings(max_examples=30)
@given(widths=st.lists(st.integers(1, 12), min_size=0, max_size=4), seed=st.integers(0, 2**16))
def test_sorting_changes_no_answer(widths, seed):
    torch.manual_seed(seed)
    one, other = (models.mlp(7, *widths, 3).double() for _ in range(2))
    x = torch.randn(20, 7).double()
    before = snapshot(other)
    there = sorted_like(one, other)
    torch.testing.assert_close(there(x), other(x), rtol=0, atol=1e-12)
    assert all(torch.equal(before[name], now) for name, now in snapshot(other).items())


@pytest.mark.parametrize("widths", [(12,), (12, 9), (12, 9, 14)])
def test_shuffled_units_are_put_back(widths):
    torch.manual_seed(0)
    model = models.mlp(30, *widths, 5).double()
    for seed in range(5):
        back = sorted_like(model, shuffled(model, seed))
        for one, other in zip(back.parameters(), model.parameters(), strict=True):
            assert torch.equal(one, other)


@given(n=st.integers(1, 12), seed=st.integers(0, 2**16))
def test_a_matching_uses_each_once_and_the_best_pair_first(n, seed):
    alike = torch.rand(n, n, generator=torch.Generator().manual_seed(seed))
    order = matching(alike)
    assert sorted(order.tolist()) == list(range(n))
    row, column = divmod(int(alike.argmax()), n)
    assert order[row] == column


@pytest.mark.parametrize(
    "model",
    [
        lambda: models.cnn(channels=2, side=8),
        lambda: nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 2)),
        lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)),
    ],
)
def test_what_cannot_be_sorted_is_refused_by_name(model):
    with pytest.raises(ValueError, match=r"^sorted_like: .* is not a linear layer with a bias$"):
        sorted_like(model(), model())


def test_fresh_statistics_are_pytorchs():
    model = start("batch norm")
    for _ in training(model, 3):
        pass
    x = datasets.digits().train_x[:300].double()
    theirs = copy.deepcopy(model)
    update_bn(((part,) for part in x.split(60)), theirs)
    fresh_statistics(model, x.split(60))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, theirs.state_dict()[name], rtol=0, atol=1e-12)
    assert model.training
    assert model[1].momentum == 0.1


def test_fresh_statistics_are_those_without_dropout():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3))
    x = torch.randn(400, 3)
    fresh_statistics(model, [x])
    torch.testing.assert_close(model[1].running_var, x.var(0))


def test_fresh_statistics_leave_each_layer_in_its_mode():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.BatchNorm1d(3))
    model[0].eval()  # as frozen ones are
    fresh_statistics(model, [torch.randn(8, 3)])
    assert [layer.training for layer in model] == [False, True, True]


def test_no_batches_are_said_and_the_statistics_kept():
    model = start("batch norm")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"^batches: there are none"):
        fresh_statistics(model, iter([]))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


# ---- the experiment ----


def last_of(updates: int, **knobs) -> dict[str, float]:
    """Metrics of the last update, of so many, a multiple of twenty."""
    return list(islice(run(Knobs(device="cpu", **knobs)), updates))[-1].metrics


def test_run_trains_and_reports():
    steps = list(islice(run(Knobs(second_model="same start", batch_size=32)), 300))
    assert [step.index for step in steps] == list(range(300))
    assert {step.samples for step in steps} == {32}
    evaluated = [step for step in steps if "accuracy" in step.metrics]
    assert [step.index for step in evaluated] == list(range(19, 300, 20))
    last = evaluated[-1].metrics
    assert last["accuracy"] > 0.6
    assert last["gain"] == pytest.approx(100 * (last["accuracy"] - last["last_accuracy"]))
    assert 0 <= last["merged_accuracy"] <= 1


def test_an_average_watches_and_changes_nothing():
    def losses(**knobs):
        steps = islice(run(Knobs(device="cpu", **knobs)), 30)
        return [step.metrics["loss"] for step in steps]

    alone = losses(average="none")
    for average in ("EMA", "SWA", "last ten"):
        assert losses(average=average, start_at=5) == alone
    assert losses(second_model="other start") == alone
    assert losses(seed=1) != alone


def test_without_an_average_the_last_weights_are_evaluated():
    for knobs in ({"average": "none"}, {"average": "SWA", "start_at": 400}):
        found = last_of(20, **knobs)
        assert found["accuracy"] == found["last_accuracy"]
        assert found["gain"] == 0
    assert last_of(100, average="SWA", start_at=5)["gain"] != 0


def test_the_cosine_schedule_ends_at_zero():
    knobs = Knobs(schedule="cosine", updates=30)
    assert len(list(run(knobs))) == 30
    assert experiment.rate(knobs, 0) == knobs.learning_rate
    assert experiment.rate(knobs, 15) == pytest.approx(knobs.learning_rate / 2)
    assert experiment.rate(knobs, 30) == pytest.approx(0)


def test_labels_are_drawn_anew_and_test_labels_are_not():
    clean, noisy = (experiment.data(Knobs(wrong_labels=share)) for share in (0.0, 0.3))
    assert float((clean.train_y != noisy.train_y).double().mean()) == pytest.approx(0.27, abs=0.03)
    assert torch.equal(clean.test_y, noisy.test_y)


@pytest.mark.slow
def test_the_mean_of_two_starts_collapses_and_sorting_brings_it_back():
    for seed in range(3):
        knobs = Knobs(seed=seed)
        model = experiment.parents(knobs)
        one, other = model["first"], model["other start"]
        middle = experiment.along(one, other, [0.0, 0.5, 1.0], knobs)
        back = experiment.along(one, sorted_like(one, other), [0.5, 1.0], knobs)
        assert min(middle[0.0], middle[1.0]) > 70
        assert middle[0.5] < 50
        assert back[0.5] > 80
        assert back[1.0] == pytest.approx(middle[1.0], abs=0.2)
        assert experiment.along(one, model["same start"], [0.5], knobs)[0.5] > 75


@pytest.mark.slow
def test_the_ema_gains_at_a_constant_rate_and_not_with_a_falling_one():
    gains = {}
    for schedule in ("constant", "cosine"):
        results = [
            experiment.gain(Knobs(seed=seed, schedule=schedule), {"EMA": Knobs()})
            for seed in range(3)
        ]
        gains[schedule] = sum(result.of("EMA") for result in results) / 3
    assert gains["constant"] > 1
    assert abs(gains["cosine"]) < 1


def test_the_noise_that_an_ema_leaves_is_the_formulas():
    """White noise by the formula of independent noise, correlated noise by that of its ρ."""
    torch.manual_seed(0)
    white = torch.randn(4000, 50).double()
    slow = [white[0]]
    for now in white[1:]:
        slow.append(0.8 * slow[-1] + now)
    for noise, independent in ((white, True), (torch.stack(slow), False)):
        alike = experiment.correlations(noise, 100)
        for window in (3, 10, 30):
            left = experiment.left_of_noise(noise, window)
            assert left == pytest.approx(experiment.predicted_left(window, alike), rel=0.1)
            assert (
                left == pytest.approx(experiment.predicted_left(window), rel=0.1)
            ) is independent


def test_noise_has_no_trend():
    steps = torch.linspace(0, 1, 301)[:, None] * torch.tensor([[1.0, -3.0]])
    assert experiment.noise(steps, around=20).abs().max() < 1e-6
    assert len(experiment.noise(steps, around=20)) == 261


# ---- mistakes ----


def broken(mistake: str, **knobs) -> dict[str, float]:
    settings_ = {"network": "mlp with batch norm", "mistake": mistake, "window": 20, **knobs}
    return last_of(200, **settings_)


def test_mistakes_with_buffers_cost_accuracy():
    right = broken("none")["accuracy"]
    assert broken("buffers of the start")["accuracy"] < right - 0.03


def test_buffers_are_those_that_the_mistake_says():
    model = start("batch norm")
    first = snapshot(model)
    wrong = {name: rule(model, 0.9) for name, rule in MISTAKES.items()}
    right = EMA(model, 0.9)
    for now in training(model, 4):
        for average in (right, *wrong.values()):
            average.update(now)
    mean = {name: average.model[1].running_mean for name, average in wrong.items()}
    assert torch.equal(mean["buffers of the start"], first["1.running_mean"])
    assert torch.equal(mean["buffers of the last"], model[1].running_mean)
    for name in ("buffers of the start", "buffers of the last"):
        assert torch.equal(wrong[name].model[0].weight, right.model[0].weight)


def test_per_micro_batch_the_window_is_shorter():
    model = nn.Linear(1, 1)
    often, once = MISTAKES["per micro-batch"](model, 0.9, start="first weights"), None
    once = EMA(model, 0.9**experiment.MICRO_BATCHES, start="first weights")
    for value in (0.0, 1.0, 5.0, 2.0):
        with torch.no_grad():
            model.weight.fill_(value)
        often.update(model)
        once.update(model)
    torch.testing.assert_close(often.model.weight, once.model.weight)


def test_without_warm_up_the_first_weights_count():
    late = last_of(100, mistake="no warm-up", window=1000)["accuracy"]
    assert late < last_of(100, window=1000)["accuracy"] - 0.05


def test_never_swapped_back_the_training_goes_on_from_the_average():
    right, wrong = last_of(200), last_of(200, mistake="never swapped back")
    assert wrong["loss"] != right["loss"]
    assert wrong["last_accuracy"] < right["last_accuracy"] - 0.05


def test_every_mistake_can_be_chosen():
    named = {"none", "no warm-up", "never swapped back", *MISTAKES}
    assert set(Knobs.model_fields["mistake"].annotation.__args__) == named


@pytest.mark.parametrize(
    ("knobs", "line"),
    [
        ({"window": 1}, "window: should be greater than or equal to 2 (updates that the EMA"),
        ({"window": 2.5}, "window: should be a valid integer"),
        ({"average": "EWA"}, "average: should be 'none'"),
        ({"window": 10, "every": 10}, "every: 10 is not below the window, 10 updates"),
        ({"decay": 0.9}, "no knob is called 'decay'; "),
        (
            {"average": "SWA", "mistake": "no warm-up"},
            "mistake: 'no warm-up' is one of the EMA, not of 'SWA'",
        ),
    ],
)
def test_a_wrong_knob_is_named_in_one_line(knobs, line):
    with pytest.raises(KnobError) as error:
        Knobs(**knobs)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_a_model_that_changes_its_precision_is_averaged_on():
    model = torch.nn.Linear(3, 2)
    average, first = SWA(model), model.weight.detach().clone()
    average.update(model)
    average.update(model.double())
    average.update(model.bfloat16())
    assert average.model.weight.dtype == torch.float32
    torch.testing.assert_close(average.model.weight, (2 * first + first.bfloat16().float()) / 3)


def tied_chain():
    one = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4))
    one[2].weight = one[0].weight
    return one


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: EMA(torch.nn.Linear(1, 1), 0.9, start="warmup"), "start: 'warmup' is not one of"),
        (lambda: greedy_soup([], lambda model: 0.0), "greedy_soup: no models"),
        (lambda: sorted_like(tied_chain(), tied_chain()), "sorted_like: two layers share a weight"),
        (lambda: matching(torch.full((2, 2), torch.nan)), "matching: a likeness is not finite"),
        (lambda: mean_of([torch.nn.Linear(1, 1)], [torch.nan]), "mean_of: "),
    ],
)
def test_what_would_go_wrong_in_silence_is_one_clear_line(ask, said):
    with pytest.raises(ValueError, match="^" + said) as told:
        ask()
    assert "\n" not in str(told.value)
