"""Recomputed gradients are bitwise those of the whole graph; sharded weights bitwise DDP's."""

import copy
import sys
import warnings
from contextlib import nullcontext
from itertools import islice

import cloudpickle
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from accel_lab.ddp import DataParallel
from accel_lab.experiments import memory as experiment
from accel_lab.experiments.memory import Knobs, ShardKnobs, predicted_activation_bytes, run
from accel_lab.memory import (
    ShardedInSharedMemory,
    ShardedOptimizer,
    best_segments,
    cut,
    in_segments,
    keep_all,
    peak_tensors,
    recompute,
    step_in_backward,
)
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.knobs import KnobError
from accel_lab.workbench.measure.memory_meter import ActivationMeter
from accel_lab.workbench.measure.proof import prove, trajectory
from accel_lab.workbench.ranks.launch import collect, failure_of, launch
from accel_lab.workbench.ranks.rank import RanksDiffer

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks need not import pytest

SMALL_KNOBS = {"blocks": 9, "batch_size": 64, "seed": 1}  # the chapter in little, for papermill


class Residual(nn.Module):
    """x + relu(Linear(x)), as it may have a dropout, batch norm or a frozen layer inside."""

    def __init__(self, width=8, *inside):
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, width), *inside)

    def forward(self, x):
        return x + torch.relu(self.branch(x))


def shared(n):
    block = Residual()
    return [block] * n


CHAINS = {
    "plain": lambda: [Residual() for _ in range(7)],
    "dropout": lambda: [Residual(8, nn.Dropout(0.5)) for _ in range(7)],
    "batch norm": lambda: [Residual(8, nn.BatchNorm1d(8)) for _ in range(7)],
    "frozen": lambda: [Residual().requires_grad_(i % 2 == 0) for i in range(7)],
    "shared": lambda: shared(7),
    "transformer": lambda: [models.transformer_block(8, 2, dropout=0.2) for _ in range(5)],
    "spectral norm": lambda: [
        nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)) for _ in range(4)
    ],
}


class Chain(nn.Module):
    """[n, …, 8] → [n, 3], through blocks that are run by a rule."""

    def __init__(self, blocks, rule, first=True):
        super().__init__()
        self.first = nn.Linear(8, 8) if first else nn.Identity()
        self.blocks, self.head, self.rule = nn.ModuleList(blocks), nn.Linear(8, 3), rule

    def forward(self, x):
        x = self.rule(self.blocks, self.first(x))
        return self.head(x.flatten(1, -2).mean(1) if x.dim() > 2 else x)


def torchs(reentrant):
    return lambda blocks, x: checkpoint_sequential(list(blocks), 3, x, use_reentrant=reentrant)


def segments(k, **options):
    return lambda blocks, x: in_segments(blocks, x, k, **options)


def every_one(blocks, x):
    """The last one too."""
    for block in blocks:
        x = recompute(block, x)
    return x


def after_backward(name, rule, *, dtype=torch.float32, cast=False, first=True):
    """Loss, gradients, buffers, and what the generator draws next."""
    torch.manual_seed(0)
    model = Chain(CHAINS[name](), rule, first).to(dtype)
    x = torch.randn(6, 5, 8, dtype=dtype) if name == "transformer" else torch.randn(6, 8).to(dtype)
    y = torch.randint(3, (6,))
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16) if cast else nullcontext():
        loss = cross_entropy(model(x), y)
    loss.backward()
    gradients = [torch.zeros(()) if p.grad is None else p.grad for p in model.parameters()]
    return [loss.detach(), *gradients, *model.buffers(), torch.rand(3)]


def assert_equal(ours, truth, atol=0.0):
    assert len(ours) == len(truth)
    for one, other in zip(ours, truth, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


def rounding(name):
    """A shared weight's gradient is a sum over its uses, which segments add up in another order."""
    return 1e-5 if name == "shared" else 0.0


# ---- recomputation ----


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("first", [True, False], ids=["", "x without gradient"])
def test_gradients_buffers_and_draws_are_bitwise_those_of_the_whole_graph(name, first):
    truth = after_backward(name, keep_all, first=first)
    n = len(CHAINS[name]())
    for k in (1, 2, 3, n):  # 2 and 3 do not divide 7
        assert_equal(after_backward(name, segments(k), first=first), truth, rounding(name))
    assert_equal(after_backward(name, every_one, first=first), truth, rounding(name))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["plain", "dropout", "shared", "transformer"])
def test_gradients_are_bitwise_torchs(name, reentrant):
    theirs = after_backward(name, torchs(reentrant))
    assert_equal(after_backward(name, segments(3)), theirs, rounding(name))


@pytest.mark.parametrize("name", ["plain", "shared", "dropout"])
def test_under_autocast_they_are_those_of_the_whole_graph(name):
    truth = after_backward(name, keep_all, cast=True)
    for k in (2, 7):
        ours = after_backward(name, segments(k), cast=True)
        for one, other in zip(ours, truth, strict=True):
            torch.testing.assert_close(one, other, rtol=0.02, atol=0.002)
        assert all(gradient.abs().sum() > 0 for gradient in ours[1:-1])


@pytest.mark.parametrize("name", ["dropout", "batch norm", "shared"])
def test_ten_updates_in_float64(name):
    torch.manual_seed(0)
    start = Chain(CHAINS[name](), keep_all).double()
    batches = [(torch.randn(6, 8).double(), torch.randint(3, (6,))) for _ in range(10)]

    def way(rule):
        def update(model, optimizer, x, y):
            model.rule = rule
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()

        torch.manual_seed(2)
        yield from trajectory(start, lambda m: torch.optim.Adam(m.parameters()), update, batches)

    ways = {"keep all": list(way(keep_all)), "ours": list(way(segments(3)))}
    proof = prove(ways, tolerance=1e-12)
    assert proof.holds, proof


def test_within_one_another_and_with_torchs():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(CHAINS["dropout"]()[:3])

        def forward(self, x):
            x = checkpoint(self.blocks[0], x, use_reentrant=False)
            return in_segments(self.blocks[1:], x, 2)

    def gradients(rule):
        torch.manual_seed(0)
        run, x = Inner(), torch.randn(4, 8, requires_grad=True)
        torch.manual_seed(1)
        rule(run, x).square().sum().backward()
        return [x.grad, *(p.grad for p in run.parameters())]

    assert_equal(gradients(recompute), gradients(lambda run, x: keep_all(run.blocks, x)))


def test_gradients_can_be_asked_for_one_by_one_and_hooks_hear_of_them():
    torch.manual_seed(0)
    block, x = Residual(), torch.randn(4, 8, requires_grad=True)
    wanted = [x, block.branch[0].weight]
    truth = torch.autograd.grad(block(x).sum(), wanted)
    assert_equal(torch.autograd.grad(recompute(block, x).sum(), wanted), truth)
    heard = []
    block.branch[0].weight.register_post_accumulate_grad_hook(lambda p: heard.append(p.grad))
    recompute(block, x).sum().backward()
    assert_equal(heard, truth[1:])


def test_backward_twice_with_retain_graph():
    torch.manual_seed(0)
    block, x = Residual(8, nn.BatchNorm1d(8)), torch.randn(4, 8, requires_grad=True)
    loss = recompute(block, x).square().sum()
    first = torch.autograd.grad(loss, x, retain_graph=True)
    assert_equal(torch.autograd.grad(loss, x), first)


def test_where_nothing_is_to_be_learned_it_is_the_call():
    block, x = Residual(), torch.randn(4, 8)
    with torch.no_grad():
        assert recompute(block, x).grad_fn is None
        assert torch.equal(recompute(block.eval(), x), block(x))
    assert recompute(block.requires_grad_(False), x).grad_fn is None


class Pair(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


@pytest.mark.parametrize(
    ("run", "error", "line"),
    [
        (Pair(8, 8), TypeError, "recompute: the module returns tuple, not one tensor; wrap it"),
        (
            nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 8)),
            RuntimeError,
            "recompute: the module changes its input in place, so it cannot be computed again",
        ),
    ],
)
def test_what_cannot_be_run_again_is_refused_in_one_line(run, error, line):
    with pytest.raises(error) as caught:
        recompute(run, torch.randn(4, 8))
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", ["input", "weight"])
def test_what_is_changed_before_backward_is_refused(what):
    block, x = Residual(), torch.randn(4, 8)
    loss = recompute(block, x).sum()
    with torch.no_grad():
        (x if what == "input" else block.branch[0].weight).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("k", [0, -1, 8])
def test_segments_that_do_not_fit_are_refused(k):
    with pytest.raises(ValueError, match=rf"^segments: {k} do not fit 7 blocks; choose 1 to 7$"):
        in_segments(CHAINS["plain"](), torch.randn(2, 8), k)


# ---- bytes ----


@given(n=st.integers(1, 60), k=st.integers(1, 60))
def test_cut_loses_nothing_and_is_as_equal_as_can_be(n, k):
    if k > n:
        with pytest.raises(ValueError, match="do not fit"):
            cut(range(n), k)
        return
    parts = cut(range(n), k)
    assert [block for part in parts for block in part] == list(range(n))
    assert [len(part) for part in parts] == [n // k + (place < n % k) for place in range(k)]


@settings(max_examples=30)
@given(n=st.integers(1, 60), s=st.integers(1, 20))
def test_the_best_number_of_segments_is_near_the_root(n, s):
    best = peak_tensors(n, s, best_segments(n, s))
    assert best == min(peak_tensors(n, s, k) for k in range(1, n + 1))
    near = min(n, max(1, round((s * n) ** 0.5)))
    assert best <= peak_tensors(n, s, near) <= s * -(-n // near) + near - 1


def bytes_kept(rule, n):
    torch.manual_seed(0)
    blocks, x = nn.Sequential(*(Residual(16) for _ in range(n))), torch.randn(32, 16) + 0
    with ActivationMeter(blocks) as meter:
        rule(blocks, x).sum().backward()
    return meter.peak, meter.held


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6, 12])
def test_the_formula_is_what_is_counted(k):
    assert bytes_kept(segments(k), 12) == (4 * 32 * 16 * peak_tensors(12, 2, k), 0)


@pytest.mark.parametrize("reentrant", [True, False])
def test_torchs_keeps_as_many_bytes(reentrant):
    """Its first input needs a gradient, or its reentrant way would find no parameter's."""

    def theirs(blocks, x):
        return checkpoint_sequential(blocks, 3, x.requires_grad_(), use_reentrant=reentrant)

    assert bytes_kept(theirs, 12)[0] == bytes_kept(segments(3), 12)[0]


# ---- gradients freed early ----


def test_without_blocks_there_is_nothing_to_cut():
    for call in (lambda: cut([], 1), lambda: best_segments(0, 2)):
        with pytest.raises(ValueError, match="there are none to cut"):
            call()


def test_a_step_in_backward_leaves_frozen_weights_alone():
    layer = nn.Linear(3, 3)
    layer.bias.requires_grad_(False)
    before = {name: weight.clone() for name, weight in layer.state_dict().items()}
    assert len(step_in_backward(layer.parameters(), lambda p: torch.optim.SGD(p, lr=1.0))) == 1
    layer(torch.ones(2, 3)).sum().backward()
    assert not layer.weight.equal(before["weight"])
    assert layer.bias.equal(before["bias"])


def test_a_step_in_backward_is_the_step_after_it_and_frees_the_gradients():
    torch.manual_seed(0)
    start, adam = models.mlp(64, 20, 20, 10).double(), lambda p: torch.optim.Adam(p, lr=0.01)
    most = 0

    def early(batches):
        nonlocal most
        model = copy.deepcopy(start)
        parameters = list(model.parameters())
        for parameter in parameters:  # heard before the update's own hook
            parameter.register_post_accumulate_grad_hook(lambda _: count(parameters))
        step_in_backward(parameters, adam)
        for x, y in batches:
            cross_entropy(model(x), y).backward()
            yield {name: p.detach().clone() for name, p in model.named_parameters()}

    def count(parameters):
        nonlocal most
        most = max(most, sum(p.grad is not None for p in parameters))

    def plain(model, optimizer, x, y):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()

    batches = [(x.double(), y) for x, y in islice(datasets.digits().batches(32), 10)]
    ways = {
        "after": trajectory(start, lambda m: adam(m.parameters()), plain, batches),
        "in backward": early(batches),
    }
    assert prove(ways).holds
    assert most == 1


def test_its_hooks_can_be_removed():
    layer = nn.Linear(3, 2)
    for hook in step_in_backward(layer.parameters(), lambda p: torch.optim.SGD(p, lr=1.0)):
        hook.remove()
    before = layer.weight.detach().clone()
    layer(torch.ones(1, 3)).sum().backward()
    assert torch.equal(layer.weight, before)
    assert layer.weight.grad is not None


# ---- the optimizer's state on ranks ----

MAKE = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}


def network(seed=0):
    torch.manual_seed(seed)
    model = models.mlp(12, 7, 5, 3)
    model[3].bias.requires_grad_(False)
    return model


def train_on_rank(kind, make, max_norm=None, steps=5):
    """Yields all weights after each step; of a sharded optimizer also its state's bytes at last."""
    rank, world = dist.get_rank(), dist.get_world_size()
    model = forward = network(rank)  # ranks start apart
    trained = [p for p in model.parameters() if p.requires_grad]
    if kind == "torch":
        forward, optimizer = DistributedDataParallel(model), MAKE[make](trained)
    elif kind == "ddp":
        DataParallel(model)
        optimizer = MAKE[make](trained)
    else:
        optimizer = kind(model, MAKE[make])
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        x = torch.randn(6 * world, 12, generator=generator)[rank::world]
        y = torch.randint(3, (6 * world,), generator=generator)[rank::world]
        optimizer.zero_grad()
        cross_entropy(forward(x), y).backward()
        if isinstance(optimizer, ShardedOptimizer):
            optimizer.step(max_norm)
        else:
            if max_norm:
                nn.utils.clip_grad_norm_(trained, max_norm)
            optimizer.step()
        yield nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    if isinstance(optimizer, ShardedOptimizer):
        yield optimizer.state_bytes()


@pytest.mark.parametrize(
    ("kind", "make"),
    [(ShardedOptimizer, "adam"), (ShardedOptimizer, "momentum"), (ShardedInSharedMemory, "adam")],
)
def test_two_ranks_end_bitwise_where_ddp_ends(kind, make):
    truth = collect(train_on_rank, 2, "torch", make)[0]
    for rank, ours in collect(train_on_rank, 2, kind, make).items():
        assert_equal(ours[:-1], truth)
        n = sum(p.numel() for p in network().parameters() if p.requires_grad)
        share = -(-n // 2) if rank == 1 else n // 2  # the first piece, the larger one, is rank 1's
        assert ours[-1] == 4 * share * (2 if make == "adam" else 1) + 4 * (make == "adam")


@pytest.mark.parametrize("kind", [ShardedOptimizer, ShardedInSharedMemory])
@pytest.mark.parametrize("world", [1, 3])
def test_other_worlds_and_clipping_by_the_whole_norm(kind, world):
    truth = collect(train_on_rank, world, "torch", "adam", 0.1)[0]
    for ours in collect(train_on_rank, world, kind, "adam", 0.1).values():
        for one, other in zip(ours[:-1], truth, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def without_shared_memory(batches=3):
    import accel_lab._sharding

    accel_lab._sharding.shared_between_ranks = lambda size, dtype: []
    yield from train_on_rank(ShardedInSharedMemory, "adam", steps=batches)


def test_where_ranks_cannot_share_memory_it_goes_over_the_network():
    truth = collect(train_on_rank, 2, ShardedOptimizer, "adam", None, 3)
    ours = collect(without_shared_memory, 2)
    for rank in truth:
        assert_equal(ours[rank][:-1], truth[rank][:-1])


def cleared_by_the_model():
    """``model.zero_grad()`` sets gradients to None, so backward puts new ones in their place."""
    model = network()
    optimizer = ShardedOptimizer(model, MAKE["momentum"])
    x, y = torch.randn(4, 12), torch.randint(3, (4,))
    before = model[1].weight.detach().clone()
    for _ in range(2):
        model.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return not torch.equal(before, model[1].weight)


def test_gradients_that_the_model_has_cleared_are_found():
    assert dict(launch(cleared_by_the_model, 1)) == {0: True}


def sharding(what):
    model = network()
    if what == "ranks differ" and dist.get_rank() == 1:
        model = models.mlp(12, 8, 5, 3)
    if what == "two dtypes":
        model[1].double()
    if what == "too few weights":
        model = nn.Linear(1, 1, bias=False)
    make = MAKE["adam"]
    if what == "another optimizer":
        extra = nn.Parameter(torch.zeros(1))
        make = lambda parameters: torch.optim.SGD([*parameters, extra], lr=0.1)  # noqa: E731
    ShardedOptimizer(model, make)


@pytest.mark.parametrize(
    ("what", "error", "line"),
    [
        ("ranks differ", RanksDiffer, "rank 1 has 1.weight [8, 12]"),
        ("two dtypes", ValueError, "model: its weights are torch.float32 on cpu and torch.float64"),
        ("too few weights", ValueError, "model: 1 weights to train cannot be dealt out to 2 ranks"),
        ("another optimizer", ValueError, "make: should return an optimizer of the piece"),
    ],
)
def test_what_cannot_be_sharded_is_refused_in_one_line(what, error, line):
    failed = failure_of(launch(sharding, 2, what))
    assert isinstance(failed.cause, error)
    assert str(failed.cause).startswith(line)


# ---- the experiment ----

LITTLE = {"blocks": 9, "batch_size": 32}


@pytest.mark.parametrize("block", ["residual", "thin", "transformer"])
@pytest.mark.parametrize("k", [1, 4, 9])
def test_the_prediction_is_what_run_counts(block, k):
    knobs = Knobs(**LITTLE, block=block, segments=k)
    counted = next(run(knobs)).metrics["activation_bytes"]
    assert counted == pytest.approx(predicted_activation_bytes(knobs), rel=0.01, abs=2000)


def test_half_is_left_when_all_is_forgotten_and_a_fifth_near_the_root():
    """The surprise: exact, and the same on every machine."""
    peaks = [predicted_activation_bytes(Knobs(segments=k)) for k in (1, 8, 36)]
    assert 0.5 < peaks[2] / peaks[0] < 0.55
    assert peaks[1] / peaks[0] < 0.23
    thin = [predicted_activation_bytes(Knobs(block="thin", segments=k)) for k in (1, 6, 36)]
    assert thin[2] == thin[0]
    assert thin[1] < thin[0] / 3


def test_the_time_of_a_forward_pass_more_is_predicted():
    assert experiment.predicted_time(Knobs(blocks=8, segments=1)) == 1
    assert experiment.predicted_time(Knobs(blocks=8, segments=8)) == 1 + 7 / 8 / 3


def losses(**knobs):
    return [step.metrics["loss"] for step in islice(run(Knobs(**LITTLE, **knobs)), 4)]


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_forgotten_it_is_the_same_training(seed):
    for options in ({"dropout": 0.3}, {"batch_norm": True}):
        truth = losses(seed=seed, **options)
        assert losses(seed=seed, segments=4, **options) == truth
    assert losses(seed=seed, segments=9, last_too=True, **options) == truth


def test_run_trains():
    steps = list(islice(run(Knobs(segments=4, **LITTLE | {"batch_size": 128})), 40))
    assert [step.index for step in steps] == list(range(40))
    assert steps[-1].metrics["loss"] < 0.6 * steps[0].metrics["loss"]


@pytest.mark.parametrize(
    ("mistake", "least", "most"),
    [
        ("none", 0, 1e-7),
        ("other masks", 0.05, 2),
        ("statistics twice", 0.01, 1),
        ("input without gradient", 0.1, 1.01),
    ],
)
def test_a_mistake_is_as_wrong_as_it_is_said_to_be(mistake, least, most):
    knobs = Knobs(**LITTLE, segments=3, dropout=0.3, batch_norm=True, twin=True, mistake=mistake)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch's warning names a file of this machine
        assert least <= next(run(knobs)).metrics["error"] <= most


def test_one_block_several_times_has_its_weights_once():
    several, one = (next(run(Knobs(**LITTLE, shared=shared))).metrics for shared in (False, True))
    assert one["activation_bytes"] == several["activation_bytes"]
    block = 4 * (128 * 128 + 128)
    for name, times in (("weight_bytes", 1), ("gradient_bytes", 1)):
        assert several[name] - one[name] == 8 * times * block
    assert several["state_bytes"] - one["state_bytes"] == 8 * (2 * block + 2 * 4)


def test_moments_tell_what_each_block_holds():
    taken = experiment.moments(Knobs(**LITTLE, segments=3))
    whats = [one.what for one in taken]
    assert [whats.count(what) for what in ("forward", "forward again", "backward")] == [9, 6, 9]
    unit = 4 * 32 * 128 / 2**20
    before_backward = taken[8].held
    assert before_backward == pytest.approx([unit, 0, 0, unit, 0, 0, 2 * unit, 2 * unit, 2 * unit])
    assert taken[-1].held[1:] == [0] * 8
    by_formula = unit * peak_tensors(9, 2, 3)
    assert max(sum(one.held) for one in taken) == pytest.approx(by_formula)


def test_gradients_over_time():
    plain, early = (
        experiment.gradient_bytes_over_time((784, 64, 64, 10), e) for e in (False, True)
    )
    assert plain == sorted(plain)
    assert max(early) == pytest.approx(4 * 784 * 64 / 2**20)


@pytest.mark.skipif(not experiment.has_pool(), reason="the C library is not glibc")
def test_new_memory_is_new_pages_and_a_pool_needs_hardly_any():
    pages = [
        dict(launch(experiment.new_pages, 1, pool, 9 * 2**20, 3, backend=None))[0]
        for pool in (False, True)
    ]
    assert pages[0] >= 36 / 2  # MiB: a page has 4 KiB, or 2 MiB where the system joins them
    assert pages[1] < 0.1 * pages[0]


@pytest.mark.parametrize(
    ("knobs", "knob", "line"),
    [
        ({"segments": 9, "blocks": 8}, "segments", "segments: 9 do not fit 8 blocks"),
        ({"segments": 0}, "segments", "segments: should be greater than or equal to 1"),
        ({"block": "transformer", "batch_norm": True}, "batch_norm", "batch_norm: a transformer"),
        ({"mistake": "other masks"}, "mistake", "mistake: other masks need a dropout above 0"),
        ({"mistake": "statistics twice"}, "mistake", "mistake: statistics twice need batch_norm"),
        ({"segment": 2}, "", "no knob is called 'segment'; did you mean 'segments'?"),
    ],
)
def test_a_wrong_knob_is_named_in_one_line(knobs, knob, line):
    with pytest.raises(KnobError) as error:
        Knobs(**knobs)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)
    assert error.value.knob == knob


SHARED = "in shared memory"


def on_ranks(**knobs):
    knobs = ShardKnobs(width=32, batch_size=30, twin=True, **knobs)
    return list(islice(experiment.run_on_ranks(knobs), 8))[-1].metrics


def test_on_ranks_the_state_is_dealt_out_and_the_weights_are_those_of_one_process():
    whole = on_ranks(sharded="no")
    for how in ("over the network", "in shared memory"):
        ours = on_ranks(sharded=how)
        assert ours["drift"] < 1e-4
        assert ours["state_bytes"] <= 0.501 * whole["state_bytes"]
        once = how == "in shared memory"
        assert ours["weight_bytes"] == whole["weight_bytes"] / (2 if once else 1)
        assert ours["bytes_sent"] == (0 if once else whole["bytes_sent"])


def test_settings_one_after_another_train_as_each_does_alone():
    knobs = {name: ShardKnobs(width=16, batch_size=30, sharded=name) for name in ("no", SHARED)}
    taken = experiment.several_on_ranks(knobs, updates=3)
    assert list(taken) == list(knobs)
    for name, steps in taken.items():
        alone = list(islice(experiment.run_on_ranks(knobs[name]), 3))
        assert [step.metrics for step in steps] == [step.metrics for step in alone]
    with pytest.raises(ValueError, match="as many ranks as the first"):
        experiment.several_on_ranks({2: ShardKnobs(), 3: ShardKnobs(ranks=3)}, updates=1)


def test_mistakes_on_ranks_drift():
    assert on_ranks(max_norm=0.1)["drift"] < 1e-4
    assert on_ranks(max_norm=0.1, mistake="own norm")["drift"] > 1e-3
    assert on_ranks(mistake="not gathered")["drift"] > 0.1


def test_each_stage_of_zero_deals_out_one_thing_more():
    totals = [sum(stage.values()) for stage in experiment.stages_of_zero(1e6, 4).values()]
    assert totals == [16e6, 10e6, 7e6, 4e6]
