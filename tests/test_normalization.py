"""Normalization equals the slow, obvious way, streams, inverts, and refuses other inputs."""

import copy
import math
import subprocess
import sys
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from accel_lab import normalization as n
from accel_lab._statistics import two_pass
from accel_lab.experiments import normalization as experiment
from accel_lab.workbench.knobs import KnobError
from accel_lab.workbench.loop import NonFiniteLoss
from accel_lab.workbench.measure.proof import prove, snapshot

SMALL_KNOBS = {"layers": 1, "batch_size": 32, "seed": 1}
METHODS = [n.to_zero_one, n.to_minus_one_one, n.to_unit_variance]
few = settings(max_examples=40)


def pixels(*shape, seed=0):
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def floats(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(a, b, tolerance=1e-12):
    return torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance)


def same(a, b):
    """Equal to the last bit."""
    pairs = [(getattr(a, field.name), getattr(b, field.name)) for field in fields(a)]
    return type(a) is type(b) and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs
    )


# ---- statistics ----


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.float32, torch.float64]
)
@pytest.mark.parametrize("shape", [(7, 3), (5, 1, 9), (6, 3, 5, 4), (1, 2, 3, 3, 2)])
def test_statistics_are_the_slow_ones(dtype, shape):
    x = (floats(*shape) * 50).to(dtype)
    fitted = n.fit(x.split(2))
    for name, expected in two_pass(x).items():
        assert close(getattr(fitted, name), expected), name


@few
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 4), st.integers(0, 1000))
def test_pixels_in_any_pieces_give_the_same_to_the_last_bit(pieces, channels, seed):
    x = pixels(sum(pieces), channels, 3, 5, seed=seed)
    parts = [n.fit(part) for part in x.split(pieces)]
    backwards = parts[-1]
    for part in reversed(parts[:-1]):
        backwards = part + backwards
    assert same(n.fit(x), n.fit(x.split(pieces)))
    assert same(n.fit(x), backwards)


@few
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=6), st.floats(-1e6, 1e6), st.integers(0, 1000)
)
def test_floats_far_from_zero_keep_their_digits(pieces, far, seed):
    x = floats(sum(pieces) + 1, 2, 4, seed=seed) + far
    fitted, truth = n.fit(x.split([*pieces, 1])), two_pass(x)
    assert close(fitted.mean, truth["mean"])
    assert close(fitted.variance, truth["variance"], 1e-9)


def test_the_textbook_formula_would_have_failed_there():
    x = floats(1000, 1) + 1e9
    textbook = x.square().mean() - x.mean().square()
    assert abs(textbook - two_pass(x)["variance"]) > 0.5
    assert close(n.fit(x.split(10)).variance, two_pass(x)["variance"], 1e-6)


def test_sums_do_not_overflow():
    fitted = n.fit(pixels(1, 1, 2, 2) * 0 + 255)
    for _ in range(70):  # 2⁷⁰ pictures
        fitted = fitted + fitted
    assert fitted.mean.item() == 255
    assert fitted.variance.item() == 0
    int16 = n.fit(torch.full((2**10, 1, 2**9), -(2**15), dtype=torch.int16))
    assert (int16.mean.item(), int16.variance.item()) == (-(2.0**15), 0)


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [(torch.int16, -(2**15), 2**15), (torch.uint16, 0, 2**16), (torch.uint8, 0, 256)],
)
def test_the_sums_of_one_huge_picture_are_exact(dtype, low, high):
    """2²⁴ squares of up to 2³² are more than a float64 holds without rounding."""
    x = torch.randint(low, high, (1, 1, 4096, 4096), generator=torch.Generator().manual_seed(0))
    fitted = n.fit(x.to(dtype))
    assert fitted.sums == (int(x.sum()),)
    assert fitted.squares == (int(x.square().sum()),)
    x = torch.full((1, 1, 4096, 4097), high - 1)  # odd, and the most that there can be
    assert n.fit(x.to(dtype)).squares == (x.numel() * (high - 1) ** 2,)


def test_a_data_set_is_read_once_in_the_memory_of_a_batch():
    seen, most = [], 0

    def batches():
        nonlocal most
        for seed in range(20):
            batch = pixels(4, 3, 8, 9, seed=seed)
            seen.append(weakref.ref(batch))
            most = max(most, sum(ref() is not None for ref in seen))
            yield batch
            del batch

    assert n.fit(batches()).counts == (20 * 4 * 72,) * 3
    assert most <= 2  # the one being read, and the one just made


def test_pictures_may_differ_in_size():
    fitted = n.fit([pixels(2, 3, 8, 9), pixels(3, 3, 5, 5)])
    assert fitted.counts == (2 * 72 + 3 * 25,) * 3


def test_nan_is_refused_or_left_out():
    x = floats(6, 2, 4)
    x[1, 0, 2] = float("nan")
    with pytest.raises(ValueError, match="1 NaN"):
        n.fit(x)
    fitted = n.fit(x.split(1), skip_nan=True)
    assert close(
        fitted.variance[0], x[:, 0].flatten()[~x[:, 0].flatten().isnan()].var(correction=0)
    )
    assert fitted.count.tolist() == [23, 24]
    assert n.to_unit_variance(fitted)(x).isnan().sum() == 1  # and it stays where it was


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no samples"),
        ([pixels(0, 3, 4, 4)], "no samples"),
        ([floats(3)], "a tensor"),
        ([[1, 2, 3]], "a tensor"),
        ([pixels(2, 3, 4), pixels(2, 4, 4)], "batch 1 has 4 channels"),
        ([pixels(2, 3, 4), pixels(2, 3, 4).float()], "batch 1 has 3 channels of torch.float32"),
        ([floats(2, 2) / 0], "infinite"),
        ([floats(2, 2) > 0], "no scale"),
    ],
)
def test_what_cannot_be_fitted_is_said_in_one_line(batches, message):
    with pytest.raises(ValueError, match=message) as error:
        n.fit(batches)
    assert "\n" not in str(error.value)


def test_a_channel_of_nothing_but_nan():
    x = torch.stack([floats(4), floats(4) * float("nan")], 1)
    with pytest.raises(ValueError, match="channel 1"):
        n.fit(x, skip_nan=True)


@pytest.mark.slow
def test_ranks_agree_to_the_last_bit(tmp_path):
    """Two real ranks, each with its own part."""
    script = tmp_path / "rank.py"
    script.write_text(
        "import sys, torch, torch.distributed as dist\n"
        "from accel_lab import normalization as n\n"
        "rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]\n"
        "dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=2)\n"
        "x = torch.randint(0, 256, (9, 3, 4, 4), dtype=torch.uint8, "
        "generator=torch.Generator().manual_seed(0))\n"
        "found = n.across_ranks(n.fit(x[:2] if rank == 0 else x[2:]))\n"
        "floats = n.across_ranks(n.fit(x.float()[:2] if rank == 0 else x.float()[2:]))\n"
        "torch.save([found.mean, found.variance, floats.mean, floats.variance], f'{out}{rank}')\n"
        # or gloo's threads may be found running as the process ends, and abort it
        "dist.destroy_process_group()\n"
    )

    def start(rank):
        return subprocess.run(
            [
                sys.executable,
                str(script),
                str(rank),
                str(tmp_path / "store"),
                str(tmp_path / "out"),
            ],
            timeout=60,
        )

    with ThreadPoolExecutor(2) as both:
        assert all(done.returncode == 0 for done in both.map(start, range(2)))
    first, second = (torch.load(tmp_path / f"out{rank}") for rank in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    whole = n.fit(pixels(9, 3, 4, 4))
    assert torch.equal(first[0], whole.mean)
    assert torch.equal(first[1], whole.variance)
    assert close(first[3], whole.variance)


# ---- the map ----


@pytest.mark.parametrize(
    "shape",
    [(5, 3, 7, 6), (2, 3, 900, 700), (700, 3, 31, 33), (1, 3, 2_000_003), (5, 3), (0, 3, 4, 4)],
)
def test_one_pass_is_the_naive_expression(shape):
    x = pixels(*shape)
    fitted = n.fit(pixels(9, 3, 8, 9))
    ours = n.to_unit_variance(fitted)(x)
    assert ours.dtype == torch.float32
    assert close(ours, n.naive_normalize(x, fitted.mean, fitted.variance.sqrt()), 1e-5)


def test_strides_do_not_matter():
    x = pixels(90, 3, 90, 70)
    normalize = n.to_unit_variance(n.fit(x))
    assert torch.equal(normalize(x.contiguous(memory_format=torch.channels_last)), normalize(x))
    assert torch.equal(normalize(x)[40:50], normalize(x[40:50]))  # in tiles and at once
    assert torch.equal(normalize(x[::2, :, 1:, ::3]), normalize(x)[::2, :, 1:, ::3])


def test_a_given_buffer_is_filled_and_returned():
    x = pixels(6, 3, 9, 7)
    normalize = n.to_zero_one(n.fit(x))
    out = torch.full(x.shape, float("nan"))
    assert normalize(x, out) is out
    assert torch.equal(out, normalize(x))
    with pytest.raises(ValueError, match="out:"):
        normalize(x, out.double())


@few
@given(
    st.sampled_from(METHODS),
    st.integers(2, 6),
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(0, 1000),
)
def test_what_each_map_promises(method, samples, channels, side, seed):
    x = floats(samples, channels, side, seed=seed) * 7 + 3
    y = method(n.fit(x.split(2)))(x).transpose(0, 1).flatten(1)
    if method is n.to_unit_variance:
        assert close(y.mean(1), torch.zeros(channels), 1e-9)
        assert close(y.var(1, correction=0), torch.ones(channels), 1e-9)
    else:
        assert close(y.amax(1), torch.ones(channels))
        assert close(
            y.amin(1), torch.zeros(channels) if method is n.to_zero_one else -torch.ones(channels)
        )


@few
@given(st.sampled_from(METHODS), st.integers(1, 6), st.integers(1, 3), st.integers(0, 1000))
def test_the_inverse_gives_every_pixel_back(method, samples, channels, seed):
    x = pixels(samples, channels, 3, 2, seed=seed)
    normalize = method(n.fit(x))
    assert torch.equal(normalize.inverse(normalize(x), torch.uint8), x)
    y = floats(samples, channels, 3, seed=seed)
    normalize = method(
        n.fit(y.repeat(2, 1, 1) * torch.tensor([1, 2]).repeat_interleave(samples).view(-1, 1, 1))
    )
    assert close(normalize.inverse(normalize(y), torch.float64), y, 1e-9)


def test_the_inverse_stops_at_the_ends_instead_of_wrapping_round():
    normalize = n.to_zero_one(n.fit(torch.tensor([[0], [255]], dtype=torch.uint8)))
    assert normalize.inverse(
        torch.tensor([[-0.2], [1.2], [0.5]]), torch.uint8
    ).flatten().tolist() == [0, 255, 128]


@pytest.mark.parametrize("method", [*METHODS, experiment.divided_by_the_variance])
def test_a_constant_channel_is_zero_and_comes_back(method):
    x = torch.full((4, 1, 2, 2), 7, dtype=torch.uint8)
    normalize = method(n.fit(x))
    assert normalize(x).eq(0).all()
    assert torch.equal(normalize.inverse(normalize(x), torch.uint8), x)


def test_one_outlier_ruins_one_map_and_not_the_other():
    x = floats(10_000, 1).clamp(-3, 3)
    broken = torch.cat([x, torch.full((1, 1), 3000.0, dtype=torch.float64)])
    squeezed, steady = (
        (method(n.fit(broken))(x)).std() / method(n.fit(x))(x).std()
        for method in (n.to_zero_one, n.to_unit_variance)
    )
    assert squeezed < 0.01
    assert steady > 0.03
    assert n.fit(broken).variance.item() == pytest.approx(
        n.fit(x).variance.item() + 3000**2 / 10_001, rel=1e-2
    )


def test_the_wrong_divisor_gives_variance_one_over_the_variance():
    x = floats(1000, 1) * 50
    y = experiment.divided_by_the_variance(n.fit(x))(x)
    assert y.var(correction=0).item() == pytest.approx(1 / x.var(correction=0).item())


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.rand(2, 3, 8, 8), "fitted on integers 0…255, given torch.float32"),
        (pixels(2, 4, 8, 8), "channels:"),
        (pixels(2, 9, 9, 3), "movedim"),
        (pixels(3), "channels:"),
    ],
)
def test_pixels_fitted_and_something_else_given(x, message):
    normalize = n.to_unit_variance(
        n.fit(torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16))
    )
    with pytest.raises(ValueError, match=message):
        normalize(x)


def test_floats_that_look_scaled_already_are_taken_with_a_warning():
    x = pixels(4, 3, 8, 8).float()
    normalize = n.to_unit_variance(n.fit(x))
    with pytest.warns(UserWarning, match=r"^scale: .* scaled already\?$") as seen:
        done = normalize(x / 255)
    assert [one.filename for one in seen] == [__file__]
    assert close(done, n.naive_normalize(x / 255, normalize.centre, 1 / normalize.scale), 1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        normalize(torch.zeros_like(x))  # a black picture is a picture
    small = torch.tensor([[0.5, 0.3, 0.2, 0.9]])
    normalize = n.to_zero_one(n.fit(torch.tensor([[0.0, 0, 0, 0], [5, 5, 5, 5]])))
    with pytest.warns(UserWarning, match="scaled already"):
        assert close(normalize(small) * 5, small, 1e-6)


@pytest.mark.parametrize("shape", [(4, 28, 28, 3), (5, 16, 100, 1), (5, 32, 32, 2)])
def test_a_doubtful_layout_is_taken_as_given_with_a_warning(shape):
    x = pixels(*shape)
    with pytest.warns(UserWarning, match=r"^layout: .* give x\.movedim\(-1, 1\)$") as seen:
        fitted = n.fit(x)
    assert [one.filename for one in seen] == [__file__]
    assert len(fitted.mean) == shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was said once
        assert n.to_zero_one(fitted)(x).shape == x.shape


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64),
        *(torch.bfloat16, torch.float16, torch.float32, torch.float64),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", METHODS)
def test_what_was_fitted_can_be_normalized_and_comes_back(method, dtype):
    x = (torch.arange(288).view(6, 3, 4, 4) * 7 % 100).to(dtype)
    normalize = method(n.fit(x.split(4)))
    done = normalize(x)
    assert done.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert close(
        done, (x.double() - normalize.centre.view(3, 1, 1)) * normalize.scale.view(3, 1, 1), 1e-5
    )
    assert close(normalize.inverse(done, dtype), x, torch.finfo(torch.float32).eps * 100)
    with pytest.raises(
        ValueError, match=r"^scale: fitted on .* 0…99, given .*; give what was fitted on$"
    ):
        normalize(x.int() if dtype.is_floating_point else x.float())


# ---- batch norm ----


@pytest.mark.parametrize(
    ("shape", "theirs"),
    [((6, 4, 5, 3), nn.BatchNorm2d), ((7, 4), nn.BatchNorm1d), ((3, 4, 5), nn.BatchNorm1d)],
)
def test_batch_norm_is_pytorchs_in_training_and_inference(shape, theirs):
    theirs, ours = theirs(4).double(), n.BatchNorm(4).double()
    nn.init.normal_(theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    for step in range(4):
        results = []
        for module in (theirs, ours):
            x = (floats(*shape, seed=step) * 3 + 5).requires_grad_()
            y = module(x)
            module.zero_grad()
            (y**3).sum().backward()
            results.append([y, x.grad, module.weight.grad, module.bias.grad])
        assert all(close(a, b, 1e-9) for a, b in zip(*results, strict=True))
        assert snapshot(theirs).keys() == snapshot(ours).keys()
        assert all(
            close(a, b)
            for a, b in zip(theirs.state_dict().values(), ours.state_dict().values(), strict=True)
        )
    x = floats(*shape, seed=9)
    assert close(theirs.eval()(x), ours.eval()(x))


def test_batch_norm_refuses_a_single_value():
    with pytest.raises(ValueError, match="one value per channel"):
        n.BatchNorm(3)(torch.rand(1, 3))
    assert n.BatchNorm(3).eval()(torch.rand(1, 3)).shape == (1, 3)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(6, 1, 3, 3), (6, 5), (4,)])
def test_batch_norm_refuses_other_channels(shape, training):
    """One channel would be spread over all four."""
    layer = n.BatchNorm(4).train(training)
    with pytest.raises(ValueError, match=r"^batch norm: \[.*\] given, of \[n, 4, …\]$"):
        layer(torch.rand(shape))
    assert not layer.running_mean.any()


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize(
    ("dtype", "own", "cast"),
    [
        (torch.float64, torch.float64, False),
        (torch.float32, torch.float32, False),
        (torch.bfloat16, torch.bfloat16, False),
        (torch.float16, torch.float16, False),
        (torch.bfloat16, torch.float32, False),
        (torch.float16, torch.float32, False),
        (torch.float32, torch.float32, True),
        (torch.bfloat16, torch.float32, True),
    ],
    ids=lambda thing: str(thing).removeprefix("torch."),
)
def test_batch_norm_is_pytorchs_in_every_precision(dtype, own, cast, training):
    results = []
    for layer in (nn.BatchNorm2d(4), n.BatchNorm(4)):
        layer.load_state_dict({**layer.state_dict(), "weight": torch.tensor([1.0, 2, 0.5, -1])})
        layer = layer.to(own)
        for step in range(3):  # first in training, so that there are running averages
            x = (floats(6, 4, 5, 3, seed=step) + 3).to(dtype).requires_grad_()
            layer.train(training or step < 2)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
                y = layer(x)
            layer.zero_grad()
            (y.double() ** 3).sum().backward()
        gradients = [layer.weight.grad, layer.bias.grad, x.grad]
        results.append([y.detach(), *layer.state_dict().values(), *gradients])
    for theirs, ours in zip(*results, strict=True):
        assert theirs.dtype == ours.dtype
        coarse = 30 * torch.finfo(dtype).eps * (1 + theirs.double().abs().max())
        assert (theirs.double() - ours.double()).abs().max() <= coarse


def twice(layer):
    """One layer at two places: its running averages move twice in each forward."""
    return nn.Sequential(nn.Conv2d(2, 4, 3), layer, nn.Conv2d(4, 4, 1), layer)


def frozen(layer):
    return nn.Sequential(nn.Conv2d(2, 4, 3), layer.requires_grad_(False))


def in_inference(layer):
    layer.running_mean += 1
    return nn.Sequential(nn.Conv2d(2, 4, 3), layer.eval())


def slow_to_learn(layer):
    layer.momentum, layer.eps = 0.01, 0.1
    return nn.Sequential(nn.Conv2d(2, 4, 3), layer)


class Checkpointed(nn.Sequential):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


def computed_again(layer):
    return Checkpointed(nn.Conv2d(2, 4, 3), layer, nn.ReLU())


def channels_last(layer):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), layer)
    return model.to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "network", [twice, frozen, in_inference, slow_to_learn, computed_again, channels_last]
)
def test_batch_norm_is_pytorchs_wherever_it_stands(network):
    ends = []
    for layer in (nn.BatchNorm2d(4), n.BatchNorm(4)):
        torch.manual_seed(0)
        model = network(layer).double()
        optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
        for step in range(3):
            optimizer.zero_grad()
            model(floats(5, 2, 6, 6, seed=step)).square().sum().sqrt().backward()
            optimizer.step()
        ends.append(model.state_dict())
    assert ends[0].keys() == ends[1].keys()
    for name, theirs in ends[0].items():
        assert close(theirs, ends[1][name], 1e-9), name


def test_batch_norm_trains_under_autocast():
    def trained(layer):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), layer, nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = cross_entropy(model(torch.rand(9, 1, 8, 8)), torch.arange(9) % 3)
            loss.backward()
            optimizer.step()
        return loss.detach(), layer.running_var

    for theirs, ours in zip(trained(nn.BatchNorm2d(4)), trained(n.BatchNorm(4)), strict=True):
        assert close(theirs, ours, 0.02)


def test_behind_a_batch_norm_the_scale_of_the_inputs_changes_nothing():
    """In exact arithmetic and with ε = 0: same losses, same weights, update after update."""
    torch.manual_seed(0)
    start = experiment.network(2, batch_norm=True).double()
    start[2].eps = 0.0
    x, y = torch.rand(64, 1, 28, 28, dtype=torch.float64), torch.randint(10, (64,))

    def way(scale, shift):
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        for _ in range(8):
            optimizer.zero_grad()
            cross_entropy(model(x * scale + shift), y).backward()
            optimizer.step()
            # The bias before a batch norm has no effect, and the running averages follow the scale:
            # what is left must agree.
            yield {
                name: value
                for name, value in snapshot(model).items()
                if "running" not in name and name != "1.bias"
            }

    assert prove({"0 to 1": way(1, 0), "0 to 255": way(255, 0)}, steps=8, tolerance=1e-9).holds
    plain = experiment.network(2, batch_norm=False).double()
    start = plain
    assert not prove({"0 to 1": way(1, 0), "0 to 255": way(255, 0)}, steps=2, tolerance=1e-9).holds


# ---- the run ----


def test_run_yields_steps_and_stops():
    steps = list(islice(experiment.run(experiment.Knobs(method="mean and deviation")), 3))
    assert [step.index for step in steps] == [0, 1, 2]
    assert steps[0].samples == 128
    evaluated = {"test_accuracy", "activation_0", "activation_1", "activation_2"}
    assert {"loss"} | evaluated == steps[0].metrics.keys()
    assert steps[1].metrics.keys() == {"loss"}  # a metric comes with the step that measured it
    assert steps[0].metrics["activation_0"] == pytest.approx(1, abs=0.05)


def test_a_run_repeats_itself():
    losses = [
        [
            step.metrics["loss"]
            for step in islice(experiment.run(experiment.Knobs(method="0 to 1", seed=3)), 3)
        ]
        for _ in range(2)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_a_run_at_the_ends(layers):
    knobs = experiment.Knobs(
        layers=layers, batch_size=2, batch_norm=True, outlier=1000, method="-1 to 1"
    )
    assert len(list(islice(experiment.run(knobs), 2))) == 2


def test_the_scale_moves_the_stable_range_by_its_square():
    x = experiment.prepared(experiment.Knobs(method="0 to 1")).train_x
    rate, scaled = experiment.largest_stable_rate(x), experiment.largest_stable_rate(x * 255)
    assert scaled * 255**2 == pytest.approx(rate, rel=0.05)  # the bias does not scale


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_of_epsilon_and_weight_decay_only_epsilon_has_a_scale(decay):
    def trained(scale, eps):
        torch.manual_seed(2)
        model, x, y = experiment.network(2, batch_norm=True).double(), floats(32, 784), pixels(32)
        model[2].eps = eps
        optimizer = torch.optim.SGD(model.parameters(), 0.5, weight_decay=decay)
        for _ in range(10):
            optimizer.zero_grad()
            cross_entropy(model(x * scale), y.long() % 10).backward()
            optimizer.step()
        return torch.cat([one.flatten() for one in model.parameters()]).detach()

    for eps, is_same in ((0.0, True), (1e-5, False)):
        assert close(trained(1, eps), trained(1 / 255, eps), 1e-9) == is_same


def test_what_flows_through_is_given_layer_by_layer():
    torch.manual_seed(0)
    model, x = experiment.network(2, batch_norm=True), torch.rand(6, 1, 28, 28)
    first, *hidden, last = experiment.activations(model, x)
    assert torch.equal(first, x)
    assert [one.shape for one in hidden] == [(6, 64)] * 2
    assert all(one.min() == 0 for one in hidden)
    assert last.shape == (6, 10)
    fresh = experiment.fresh_activations(x, 3, batch_norm=False)
    assert [one.shape for one in fresh] == [(6, 64)] * 3


def test_a_sweep_notes_where_training_ends():
    bar, rates = experiment.LEARNED, (1.0, 10.0, 100.0)
    found = [
        experiment.largest_training_rate(dict(zip(rates, (bar * f for f in factors), strict=True)))
        for factors in ((0.5, 0.5, 2), (2, 0.1, 10), (0.5, 0.5, 0.5), (2, 2, 2))
    ]
    assert found[:3] == pytest.approx([10 * 10**0.5, 10 * 10**0.5, 100])
    assert math.isnan(found[3])


def test_dead_networks_do_not_train_and_the_end_lies_between_quarter_decades():
    knobs, decades = experiment.Knobs(), [1e-3, 1e-2, 1e-1, 1.0]
    losses = experiment.finer_sweep(knobs, decades, updates=100)
    assert list(losses) == sorted(losses)
    assert losses[1e-2] < experiment.LEARNED < min(losses[1e-1], losses[1.0])
    quarters = [rate for rate in losses if 1e-2 < rate < 1e-1]
    assert quarters == pytest.approx([1e-2 * 10 ** (quarter / 4) for quarter in (1, 2, 3)])
    assert 1e-2 < experiment.largest_training_rate(losses) < quarters[1]


def test_a_run_that_diverges_ends_a_sweep_high():
    knobs = experiment.Knobs(method="none", layers=8)
    losses = experiment.sweep(knobs, (1e-6, experiment.HIGHEST_RATE), updates=20)
    with pytest.raises(NonFiniteLoss):
        list(islice(experiment.run(knobs.turned(learning_rate=experiment.HIGHEST_RATE)), 20))
    assert losses[experiment.HIGHEST_RATE] == experiment.RAN_AWAY > losses[1e-6]


def test_the_edge_is_found_where_it_was_predicted():
    knobs = experiment.Knobs(method="mean and deviation", layers=0)
    edge = experiment.predicted_edge(knobs)
    end = experiment.largest_training_rate(experiment.sweep(knobs, experiment.around(edge)))
    assert edge < end < 100 * edge


def test_accuracies_come_one_a_seed_in_percent():
    found = experiment.accuracies(experiment.Knobs(method="0 to 1"), updates=10, seeds=2)
    assert len(found) == 2
    assert all(5 < one < 100 for one in found)


def test_one_broken_pixel_shrinks_all_pictures():
    knobs = experiment.Knobs(method="0 to 1")
    broken = experiment.spread(knobs.turned(outlier=10))
    assert broken == pytest.approx(experiment.spread(knobs) / 10, rel=1e-4)


def test_leaked_statistics_listen_to_the_test_set():
    train, test = pixels(20, 1, 4, 4).float(), pixels(5, 1, 4, 4, seed=1).float()
    honest, leaked = (
        n.to_unit_variance(n.fit(train)),
        n.to_unit_variance(n.fit(torch.cat([train, test * 100]))),
    )
    assert torch.equal(honest(train), n.to_unit_variance(n.fit(train))(train))
    assert not close(honest(train), leaked(train), 1e-2)


def test_a_knob_out_of_range_is_one_line():
    with pytest.raises(KnobError, match="outlier"):
        experiment.Knobs(outlier=0)
