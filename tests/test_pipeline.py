"""Ours = one process with the whole batch = torch.distributed.pipelining, after every step."""

import itertools
import random
import sys
import warnings
from functools import partial

import cloudpickle
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn.functional import mse_loss
from torch.utils.checkpoint import checkpoint

from accel_lab.experiments import pipeline as experiment
from accel_lab.experiments.pipeline import Knobs, run
from accel_lab.pipeline import (
    SCHEDULES,
    Stage,
    balanced,
    bubble,
    gpipe,
    layer_seconds,
    one_forward_one_backward,
    stage_of,
)
from accel_lab.workbench.data import datasets
from accel_lab.workbench.drawing.sweep import Sweep
from accel_lab.workbench.knobs import KnobError
from accel_lab.workbench.measure import load, quiet
from accel_lab.workbench.measure.proof import prove, snapshot
from accel_lab.workbench.panel.controls import Controls
from accel_lab.workbench.ranks.launch import RankFailed, launch
from accel_lab.workbench.ranks.rank import RanksDiffer
from accel_lab.workbench.ranks.world import launch_steps

# the chapter in little, for papermill
SMALL_KNOBS = {"batch_size": 64, "width": 64, "depth": 4, "micro_batches": 4, "seed": 1}

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks need not import pytest


def seeded(frozen=()):
    """Nine layers, of which some may be frozen."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 7),
        nn.Tanh(),
        nn.Linear(7, 7),
        nn.Tanh(),
        nn.Linear(7, 4),
        nn.Tanh(),
        nn.Linear(4, 4),
        nn.Tanh(),
        nn.Linear(4, 3),
    ).double()
    for layer in frozen:
        model[layer].requires_grad_(False)
    return model


def batches(steps=10):
    generator = torch.Generator().manual_seed(1)
    return [
        [torch.randn(13, width, dtype=torch.float64, generator=generator) for width in (5, 3)]
        for _ in range(steps)
    ]


def optimizer_of(layers):
    parameters = [parameter for parameter in layers.parameters() if parameter.requires_grad]
    return torch.optim.SGD(parameters or [torch.zeros(1)], lr=0.1, momentum=0.9, weight_decay=0.01)


def one_process(frozen):
    model = seeded(frozen)
    optimizer = optimizer_of(model)
    for x, y in batches():
        optimizer.zero_grad()
        mse_loss(model(x), y).backward()
        optimizer.step()
        yield snapshot(model)


def summed_loss(out, y):
    return (out - y).square().sum()


def cut(model):
    return stage_of(model, balanced([1.0] * len(model), dist.get_world_size())[dist.get_rank()])


PIECES = {"even": (4, 4, 4, 1), "one": (13,), "two": (6, 7), "single samples": (1,) * 13}


def train_ours(schedule, pieces, frozen):
    layers = cut(seeded(frozen))
    stage, optimizer = Stage(layers, summed_loss), optimizer_of(layers)
    actions = SCHEDULES[schedule](dist.get_rank(), dist.get_world_size(), len(pieces))
    for x, y in batches():
        optimizer.zero_grad()
        stage.step(actions, x.split(pieces), y.split(pieces))
        optimizer.step()
        yield snapshot(layers), stage.peak_held


def states_of(heard, world):
    """One state of the whole model after each step, put together from the stages'."""
    of_rank = [[value[0] for rank, value in heard if rank == each] for each in range(world)]
    return [
        {name: tensor for part in parts for name, tensor in part.items()}
        for parts in zip(*of_rank, strict=True)
    ]


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("world", [2, 3, 4])
def test_a_pipeline_equals_one_process_after_each_of_ten_steps(world, schedule, pieces):
    heard = list(launch(train_ours, world, schedule, PIECES[pieces], ()))
    proof = prove({"one process": one_process(()), "pipeline": states_of(heard, world)})
    assert proof.holds, proof


@pytest.mark.parametrize("frozen", [(0,), (0, 2), (4,), (8,)])
def test_frozen_layers_wherever_they_are(frozen):
    heard = list(launch(train_ours, 3, "1f1b", PIECES["even"], frozen))
    proof = prove({"one process": one_process(frozen), "pipeline": states_of(heard, 3)})
    assert proof.holds, proof


def train_torchs(schedule):
    """torch wants micro-batches of one size, and averages over them."""
    rank, world = dist.get_rank(), dist.get_world_size()
    layers = cut(seeded())
    optimizer = optimizer_of(layers)
    stage = PipelineStage(layers, rank, world, torch.device("cpu"))
    stepper = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}[schedule](
        stage, n_microbatches=4, loss_fn=mse_loss
    )
    for x, y in batches():
        optimizer.zero_grad()
        stepper.step(
            *([x[:12]] if rank == 0 else []),
            **({"target": y[:12], "losses": []} if rank == world - 1 else {}),
        )
        optimizer.step()
        yield snapshot(layers), 0


def train_ours_beside_torch(schedule):
    layers = cut(seeded())
    stage, optimizer = Stage(layers, summed_loss), optimizer_of(layers)
    actions = SCHEDULES[schedule](dist.get_rank(), dist.get_world_size(), 4)
    for x, y in batches():
        optimizer.zero_grad()
        stage.step(actions, x[:12].split(3), y[:12].split(3))
        optimizer.step()
        yield snapshot(layers), 0


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("world", [2, 4])
def test_a_pipeline_equals_torch_s(world, schedule):
    ours, torchs = (
        states_of(list(launch(worker, world, schedule)), world)
        for worker in (train_ours_beside_torch, train_torchs)
    )
    proof = prove({"torch": torchs, "ours": ours})
    assert proof.holds, proof


# ---- schedules ----


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("stages", "micro_batches"), list(itertools.product((1, 2, 3, 4), (1, 2, 3, 4, 8)))
)
def test_a_schedule_runs_through_in_the_time_the_formula_allows(schedule, stages, micro_batches):
    plans = [SCHEDULES[schedule](stage, stages, micro_batches) for stage in range(stages)]
    assert all(sorted(actions) == sorted(plans[0]) for actions in plans)
    spans = experiment.play(SCHEDULES[schedule], stages, micro_batches)
    assert len(spans) == 2 * stages * micro_batches
    assert experiment.bubble_of(spans, stages) == pytest.approx(bubble(stages, micro_batches))


def test_playing_finds_a_deadlock_and_waits_for_messages():
    def two_schedules(stage, *sizes):
        return (one_forward_one_backward, gpipe)[stage](stage, *sizes)

    with pytest.raises(ValueError, match=r"a deadlock: stage 0 for \('backward', 0\), stage 1"):
        experiment.play(two_schedules, 2, 4)
    ends = [
        max(span.end for span in experiment.play(gpipe, 3, 4, message=message))
        for message in (0.0, 1.5)
    ]
    # a message more on the way down, and on the way up
    assert ends == pytest.approx([0.001 * 3 * 6, 0.001 * (3 * 6 + 4 * 1.5)])


def test_most_held_counts_what_a_stage_holds():
    held = [
        [experiment.most_held(plan(stage, 4, 16)) for stage in range(4)]
        for plan in SCHEDULES.values()
    ]
    assert held == [[16] * 4, [4, 3, 2, 1]]


def test_stages_that_only_wait_keep_to_the_formula():
    spans = experiment.waiting_stages(2, "gpipe", [1, 4])
    for m, taken in spans.items():
        assert len(taken) == 4 * m
        assert bubble(2, m) - 0.01 < experiment.bubble_of(taken, 2) < bubble(2, m) + 0.25


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_layers_that_wait_divide_evenly(ranks):
    knobs = Knobs(ranks=ranks, micro_batches=5, stages="wait")
    layers = experiment.waiting_layers(knobs)
    runs = balanced([layer.seconds for layer in layers], ranks)
    assert {len(run) for run in runs} == {len(layers) // ranks}
    both_ways = 3 * 5 * sum(layer.seconds for layer in layers)
    assert both_ways == pytest.approx(experiment.BATCH_SECONDS)


def test_a_run_of_stages_that_wait_keeps_to_the_formula(monkeypatch):
    monkeypatch.setattr(experiment, "BATCH_SECONDS", 0.2)
    knobs = Knobs(micro_batches=2, stages="wait")
    even, uneven = (
        next(run(knobs.turned(mistake=mistake))) for mistake in ("none", "unbalanced stages")
    )
    assert bubble(2, 2) - 0.01 < even.metrics["bubble_measured"] < bubble(2, 2) + 0.2
    assert uneven.metrics["bubble_measured"] > bubble(2, 2) + 0.05
    assert even.metrics["loss"] == 0
    assert {span.name for span in even.spans if span.kind == "backward"} == {
        "backward 0",
        "backward 1",
    }
    assert {span.rank for span in even.spans if span.kind == "backward"} == {0, 1}


@pytest.mark.parametrize("settings", [{"mistake": "mismatched shapes"}, {"twin": True}])
def test_stages_that_wait_have_no_weights_to_be_wrong(settings):
    with pytest.raises(KnobError, match="stages: layers that only wait have no weights"):
        Knobs(stages="wait", **settings)


def test_a_learners_schedule_is_played_beside_the_others_once_it_can_be(capsys):
    def unwritten(stage, stages, micro_batches, message):
        raise NotImplementedError

    def no_end(stage, stages, micro_batches, message):
        return [("backward", 0), ("forward", 0)]

    def as_gpipe(stage, stages, micro_batches, message):
        return gpipe(stage, stages, micro_batches)

    others = list(experiment.over_slow_wires(unwritten))
    assert [name.partition(":")[0] for name in others] == ["GPipe", "1F1B"]
    assert capsys.readouterr().out == ""
    assert list(experiment.over_slow_wires(no_end)) == others
    assert "yours cannot be played: a deadlock: stage 0" in capsys.readouterr().out
    gpipes, _, yours = (name.split(": ")[1] for name in experiment.over_slow_wires(as_gpipe))
    assert yours == gpipes == "54 units of time, stage 0 holds up to 12"


def test_one_batch_played_lasts_what_the_formula_says_of_one_process():
    for schedule, stages, m in itertools.product(SCHEDULES.values(), (1, 2, 4), (1, 3, 8)):
        spans = experiment.play_one_batch(schedule, stages, m)
        lasts = max(span.end for span in spans)
        assert lasts == pytest.approx(0.1 * (m + stages - 1) / (m * stages))
        held = {
            most: max(experiment.held_at(spans, stage, at / 999 * lasts) for at in range(999))
            for stage, most in enumerate(
                experiment.most_held(schedule(stage, stages, m)) for stage in range(stages)
            )
        }
        assert all(found == most for most, found in held.items())
        assert experiment.held_at(spans, 0, lasts) == 0


def test_what_the_chapter_measures_on_ranks():
    knobs = Knobs(width=16, depth=4, batch_size=32, micro_batches=4)
    held = experiment.activations_held(knobs, [1, 4])
    assert held.keys() == {(schedule, rank) for schedule in SCHEDULES for rank in (0, 1)}
    assert held["1f1b", 1][4] < held["gpipe", 1][4]
    seconds = experiment.race(knobs, [1, 4], rounds=2)
    assert list(seconds) == ["one process", "threads", 1, 4]
    assert all(len(taken) == 2 for taken in seconds.values())
    assert len(experiment.computing_stages(knobs, updates=3)) == 2 * 2 * 4


@pytest.mark.parametrize("world", [2, 4])
def test_1f1b_holds_as_many_as_there_are_stages_gpipe_all(world):
    held = {schedule: dict(launch(peak_held, world, schedule)) for schedule in SCHEDULES}
    assert held["gpipe"] == dict.fromkeys(range(world), 13)
    assert held["1f1b"] == {rank: world - rank for rank in range(world)}


def peak_held(schedule):
    *_, (_, held) = train_ours(schedule, PIECES["single samples"], ())
    return held


# ---- cutting ----


def test_balanced_minds_the_costliest_stage_then_the_next():
    assert balanced([1, 1, 1, 1], 2) == [range(0, 2), range(2, 4)]
    assert balanced([5, 1, 1, 1], 2) == [range(0, 1), range(1, 4)]
    assert balanced([0, 9, 0, 1, 0, 1], 3) == [range(0, 2), range(2, 4), range(4, 6)]
    with pytest.raises(ValueError, match="2 layers do not fill 3 stages"):
        balanced([1, 1], 3)


def slowly_balanced(costs, stages):
    """Of all cuts, the first whose costs, the dearest first, are the least."""
    cuts = (
        (0, *inner, len(costs))
        for inner in itertools.combinations(range(1, len(costs)), stages - 1)
    )
    best = min(
        cuts,
        key=lambda cut: sorted((sum(costs[a:b]) for a, b in itertools.pairwise(cut)), reverse=True),
    )
    return [range(a, b) for a, b in itertools.pairwise(best)]


def test_balanced_is_what_trying_all_cuts_finds():
    rng = random.Random(0)
    for _ in range(300):
        costs = [rng.choice([0, 0.1, 1, 1, 2, 3, rng.random()]) for _ in range(rng.randint(1, 9))]
        for stages in range(1, len(costs) + 1):
            assert balanced(costs, stages) == slowly_balanced(costs, stages), (costs, stages)
    with pytest.raises(ValueError, match="2 layers do not fill 0 stages"):
        balanced([1, 1], 0)


def test_balanced_does_not_try_all_cuts():
    """There are 10¹⁴ of them here."""
    costs = [1 + layer % 3 for layer in range(96)]
    assert max(sum(costs[layer] for layer in run) for run in balanced(costs, 12)) == 17


def test_layers_are_timed_without_a_trace():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2000), nn.ReLU(), nn.Linear(2000, 2))
    seconds = layer_seconds(model, torch.randn(64, 4, 4))
    assert len(seconds) == 4
    assert min(seconds) > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_parameter_tied_across_stages_is_refused():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU())
    with pytest.raises(ValueError, match=r"0\.weight.* is tied across stages"):
        stage_of(model, range(0, 2))
    # both uses in one stage: one parameter, as before
    assert len(stage_of(model, range(0, 3))) == 3


def test_stages_that_do_not_fit_are_refused_before_anything_is_sent():
    def misfit():
        stage = Stage(nn.Sequential(nn.Linear(3 + dist.get_rank(), 3)), summed_loss)
        stage.step(gpipe(0, 1, 1), [torch.zeros(4, 3)], [torch.zeros(4, 3)])

    with pytest.raises(
        RankFailed,
        match=r"rank 0 sends \[3\] per sample, torch.float32, which does not fit the layers of",
    ) as failed:
        list(launch(misfit, 2))
    assert isinstance(failed.value.cause, RanksDiffer)
    assert failed.value.rank == 1


# ---- a table of cases: ours beside torch's ----


class Returns(nn.Module):
    """Gives what a function makes of its input, as layers of all kinds may."""

    def __init__(self, layer, function=lambda layer, x: layer(x)):
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, x):
        return self.function(self.layer, x)


def through_checkpoint(reentrant):
    return Returns(nn.Linear(6, 6), lambda layer, x: checkpoint(layer, x, use_reentrant=reentrant))


def tied():
    layer = nn.Linear(6, 6)
    return [nn.Sequential(layer, nn.Tanh(), layer), nn.Linear(6, 3)]


CASES = {
    "float64": lambda: [nn.Linear(6, 6), nn.Linear(6, 3)],
    "float32": lambda: [nn.Linear(6, 6), nn.Linear(6, 3)],
    "bfloat16": lambda: [nn.Linear(6, 6), nn.Linear(6, 3)],
    "autocast": lambda: [nn.Linear(6, 6), nn.Linear(6, 3)],
    "tied in a stage": tied,
    "frozen": lambda: [nn.Linear(6, 6).requires_grad_(False), nn.Linear(6, 3)],
    "sparse": lambda: [nn.Embedding(9, 6, sparse=True), nn.Linear(6, 3)],
    "zero-size": lambda: [
        Returns(nn.Linear(6, 6), lambda layer, x: layer(x)[:, :0]),
        Returns(nn.Linear(6, 3), lambda layer, x: layer(x.new_zeros(len(x), 6)) + x.sum()),
    ],
    "batch norm": lambda: [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)), nn.Linear(6, 3)],
    "dropout": lambda: [nn.Dropout(0.5), nn.Linear(6, 3)],
    "a tensor made in forward": lambda: [
        Returns(nn.Linear(6, 6), lambda layer, x: layer(x + torch.ones(6))),
        Returns(nn.Linear(6, 3), lambda layer, x: layer(x * torch.ones(6))),
    ],
    "checkpointed": lambda: [through_checkpoint(False), nn.Linear(6, 3)],
    "checkpointed, reentrant": lambda: [
        nn.Sequential(nn.Linear(6, 6), through_checkpoint(True)),
        nn.Linear(6, 3),
    ],
    "tokens": lambda: [nn.Embedding(9, 6), nn.Linear(6, 5)],
}
TOLERANCES = {"float32": 1e-5, "bfloat16": 0.02, "autocast": 0.02}


def material(name):
    """The two stages' layers, a batch of 8, and its targets and losses: summed, and the mean."""
    torch.manual_seed(0)
    stages, (x, y) = CASES[name](), (torch.randn(8, 6), torch.randn(8, 3))
    if name in ("sparse", "tokens"):
        x = torch.randint(9, (8, 4) if name == "tokens" else (8,))
    losses = nn.MSELoss(reduction="sum"), nn.MSELoss()
    if name == "tokens":
        y = torch.randint(5, (8, 4))

        def tokens(out, y, **kind):
            return nn.functional.cross_entropy(out.flatten(0, 1), y.flatten(), **kind)

        losses = partial(tokens, reduction="sum"), tokens
    dtype = {"float32": torch.float32, "autocast": torch.float32, "bfloat16": torch.bfloat16}
    to = partial(torch.Tensor.to, dtype=dtype.get(name, torch.float64))
    x, y = (tensor if tensor.dtype == torch.int64 else to(tensor) for tensor in (x, y))
    return [layers.to(dtype.get(name, torch.float64)) for layers in stages], x, y, losses


def one_update(name, way):
    """(loss, this rank's gradients and buffers) after one step in four micro-batches."""
    rank = dist.get_rank()
    stages, x, y, (summed, mean) = material(name)
    layers = stages[rank]
    torch.manual_seed(rank)  # for dropout
    with torch.autocast("cpu", enabled=name == "autocast"):
        if way == "ours":
            loss = Stage(layers, summed).step(gpipe(rank, 2, 4), x.chunk(4), y.chunk(4))
        else:
            stage = PipelineStage(layers, rank, 2, torch.device("cpu"))
            losses, stepper = [], ScheduleGPipe(stage, n_microbatches=4, loss_fn=mean)
            stepper.step(
                *([] if rank else [x]), **({"target": y, "losses": losses} if rank else {})
            )
            loss = torch.stack(losses).double().mean() if rank else torch.zeros(())
    gradients = [p.grad.to_dense() for p in layers.parameters() if p.grad is not None]
    return [loss.double(), *gradients]


def ours_beside_torch():
    """{case: the largest difference, relative to what is right}"""
    warnings.simplefilter("ignore")
    found = {}
    for name in CASES:
        ours, truth = one_update(name, "ours"), one_update(name, "torch")
        off = [
            ((a - b).abs().max() / b.abs().max().clamp(min=1e-3)).item()
            for a, b in zip(ours, truth, strict=True)
            if b.numel()
        ]
        found[name] = max(off)
    return found


@pytest.fixture(scope="module")
def beside_torch():
    return dict(launch(ours_beside_torch, 2))


@pytest.mark.parametrize("name", CASES)
def test_ours_equals_torch_s_pipeline(beside_torch, name):
    for rank in (0, 1):
        assert beside_torch[rank][name] <= TOLERANCES.get(name, 1e-12)


# ---- what is refused, in one line ----


def refused(layers, *, xs=None, ys=None, actions=None, again=None):
    """What the step says on this rank, or the next one after something has changed."""
    x = torch.zeros(8, 6)
    xs, ys = xs or x.split(2), ys or x.split(2)
    stage = Stage(layers[dist.get_rank()], summed_loss)
    if again:
        stage.step(gpipe(0, 1, 4), xs, ys)
        again(stage)
    with torch.autocast("cpu", enabled=again is cast_from_now_on):
        stage.step(actions or gpipe(0, 1, 4), xs, ys)


def two():
    return [nn.Linear(6, 6), nn.Linear(6, 6)]


def cast_from_now_on(stage):
    pass


def other_dtype(stage):
    stage.layers.double()
    stage.layers.register_forward_pre_hook(lambda _, inputs: inputs[0].double())


REFUSED = {
    "a tuple": (lambda: refused([nn.LSTM(6, 6), *two()]), "the layers of rank 0 return tuple"),
    "integers": (lambda: refused([Returns(None, lambda _, x: x.long()), *two()]), "torch.int64"),
    "a first misfit": (
        lambda: refused([nn.Linear(5, 6), *two()]),
        r"the batch has \[6\] per sample, torch.float32, which does not fit the layers of rank 0",
    ),
    "another dtype afterwards": (
        lambda: refused(two(), again=other_dtype),
        r"rank 0 would send \[2, 6\] torch.float64, but its first step agreed on .*float32",
    ),
    "autocast afterwards": (lambda: refused(two(), again=cast_from_now_on), "torch.bfloat16"),
    "other rows": (
        lambda: refused([Returns(None, lambda _, x: x.repeat(2, 1)), *two()]),
        r"would send \[4, 6\] .* agreed on \[2, 6\]",
    ),
    "too few actions": (
        lambda: refused(two(), actions=gpipe(0, 1, 2)),
        "4 xs and 4 ys do not fit 4 actions",
    ),
    "too few targets": (lambda: refused(two(), ys=[torch.zeros(2, 6)]), "4 xs and 1 ys"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_travel_is_refused_in_one_line(name):
    act, why = REFUSED[name]
    with pytest.raises(RankFailed, match=why) as failed:
        list(launch(act, 2, timeout=10.0))
    assert isinstance(failed.value.cause, ValueError)
    assert "\n" not in str(failed.value.cause)


def test_batch_norm_equals_one_process_with_the_same_micro_batches():
    """torch's counts its look at the shapes as one more of them."""

    def off():
        warnings.simplefilter("ignore")
        ours, truth = [], []
        for found in (ours, truth):
            stages, x, y, (summed, _) = material("batch norm")
            if found is ours:
                layers = stages[dist.get_rank()]
                Stage(layers, summed).step(gpipe(0, 1, 3), x.split((3, 3, 2)), y.split((3, 3, 2)))
            else:
                for x_part, y_part in zip(x.split((3, 3, 2)), y.split((3, 3, 2)), strict=True):
                    (summed(stages[1](stages[0](x_part)), y_part) / y.numel()).backward()
                layers = stages[dist.get_rank()]
            found += [p.grad for p in layers.parameters()] + list(layers.buffers())
        return max((a - b).abs().max().item() for a, b in zip(ours, truth, strict=True))

    assert all(difference < 1e-15 for _, difference in launch(off, 2))


def test_layers_may_keep_what_they_have_computed():
    """The copy that was asked for shapes keeps it as well: there it has no data."""

    def kept():
        class Keeps(nn.Module):
            mask = None

            def forward(self, x):
                if self.mask is None:
                    self.mask = torch.full((6,), 2.0)
                return x * self.mask

        x = torch.ones(4, 6, requires_grad=True)
        stage = Stage(Keeps(), lambda out, y: out.sum())
        return stage.step(gpipe(0, 1, 2), x.split(2), x.split(2)).item()

    assert list(launch(kept, 1)) == [(0, 2.0)]


def test_padding_is_not_counted_where_one_says_so():
    def padded():
        torch.manual_seed(0)
        layers = nn.Linear(6, 5).double()
        x, y = torch.randn(4, 6).double(), torch.tensor([1, -100, 2, 3])
        summed = partial(nn.functional.cross_entropy, reduction="sum")
        stage = Stage(layers, summed, count=lambda y: (y != -100).sum())
        loss = stage.step(gpipe(0, 1, 2), x.split(2), y.split(2))
        return (loss - nn.functional.cross_entropy(layers(x), y)).abs().item()

    [(_, off)] = launch(padded, 1)
    assert off < 1e-15


def test_asking_for_forms_computes_nothing_and_leaves_all_as_it_was():
    def forms():
        layers = nn.Sequential(nn.LayerNorm(3), nn.Dropout(0.5), nn.BatchNorm1d(3))
        with warnings.catch_warnings(record=True, action="always") as said:
            stage = Stage(layers, summed_loss)
        before, drawn = snapshot(layers), torch.get_rng_state()
        stage._agree(torch.randn(4, 3, generator=torch.Generator()))
        same = all(torch.equal(before[name], t) for name, t in layers.state_dict().items())
        return same, torch.equal(drawn, torch.get_rng_state()), [str(one.message) for one in said]

    [(_, (same, undrawn, said))] = launch(forms, 1)
    assert same
    assert undrawn
    assert [text.partition(",")[0] for text in said] == ["batch normalization sees micro-batches"]


# ---- the experiment ----


def some_steps(n=3, **dials):
    steps = run(Knobs(**{"width": 64, "depth": 4, "twin": True, **dials}))
    try:
        return list(itertools.islice(steps, n))
    finally:
        steps.close()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 3), (2, 4), (3, 5)])
def test_a_run_makes_the_updates_of_one_process(schedule, ranks, micro_batches):
    for step in some_steps(
        ranks=ranks, schedule=schedule, micro_batches=micro_batches, batch_size=101
    ):
        assert step.metrics["update_error"] < 1e-5
        assert step.samples == 101
        assert step.metrics["bubble_predicted"] == bubble(ranks, micro_batches)
        assert 0 <= step.metrics["bubble_measured"] < 1
        assert {span.rank for span in step.spans} == set(range(ranks))
        assert sum(span.name.startswith("forward") for span in step.spans) == ranks * micro_batches


def with_an_idle_stage(knobs, digits):
    """Give one stage nothing to learn, as a cut of layers that take no time may."""
    experiment._layers_of_this_rank = lambda whole, *_: [
        range(1),
        range(1, 2),
        range(2, len(whole)),
    ][dist.get_rank()]
    yield from experiment.train_this_stage(knobs, digits)


def test_a_stage_may_have_nothing_to_learn():
    stream = launch_steps(
        with_an_idle_stage,
        Knobs(ranks=3, width=16, depth=4, twin=True),
        datasets.mnist5k(),
        merge=experiment.merge_stages,
    )
    for step in itertools.islice(stream, 3):
        assert step.metrics["update_error"] < 1e-5
    stream.close()


def test_gpipe_holds_more_than_1f1b():
    gpipe, turns = (
        some_steps(1, schedule=schedule, micro_batches=8)[0].metrics for schedule in SCHEDULES
    )
    assert (gpipe["held_on_rank_0"], turns["held_on_rank_0"], turns["held_on_rank_1"]) == (8, 2, 1)
    assert gpipe["activation_bytes_on_rank_1"] > 4 * turns["activation_bytes_on_rank_1"]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("mistake", ["skip the division", "wrong rank order"])
def test_a_mistake_shows_in_the_first_update(mistake, schedule):
    assert some_steps(1, mistake=mistake, schedule=schedule)[0].metrics["update_error"] > 0.02


def test_mishaps():
    with pytest.raises(RankFailed, match="rank 1 of 2 was killed by SIGKILL"):
        some_steps(10, mistake="dying rank")
    with pytest.raises(RankFailed, match="does not fit the layers of rank 1"):
        some_steps(mistake="mismatched shapes")
    # Rank 1 may have found messages for all it waited for, in the wrong order, and be done with its
    # step.
    with pytest.raises(
        RankFailed, match=r"(?s)rank 0 stands here.*_receive.*rank 1 stands here"
    ) as failed:
        some_steps(mistake="two schedules", timeout=1.0)
    assert failed.value.how == "hung"


def test_a_slow_or_overloaded_stage_makes_all_wait():
    fair, slow, unbalanced = (
        some_steps(6, width=512, mistake=mistake)[-1]
        for mistake in ("none", "slow rank", "unbalanced stages")
    )
    assert slow.seconds > 0.04
    assert (
        unbalanced.metrics["activation_bytes_on_rank_0"]
        > fair.metrics["activation_bytes_on_rank_0"]
    )


def test_the_micro_batches_of_the_slider_are_evenly_spaced_on_the_axis():
    (row,) = Controls(Knobs(), ["micro_batches"], lambda knobs: None).box.children
    assert [value for _, value in row.children[0].options] == [1, 2, 4, 8, 16, 32]
    assert Sweep("micro_batches", "bubble_measured", "bubble").across(Knobs()).log


def test_knobs_that_do_not_go_together():
    with pytest.raises(KnobError, match="micro_batches: 8 do not fit a batch of 4 samples"):
        Knobs(micro_batches=8, batch_size=4)
    with pytest.raises(KnobError, match="ranks: 4 stages cannot be filled with 3 linear layers"):
        Knobs(ranks=4, depth=3)


def test_a_run_resumes_from_its_checkpoint(tmp_path):
    dials = {"checkpoint": str(tmp_path / "run.pt"), "checkpoint_every": 4}
    whole = [step.metrics["loss"] for step in some_steps(10)]
    some_steps(6, **dials)
    resumed = some_steps(6, **dials)
    assert [step.index for step in resumed] == [4, 5, 6, 7, 8, 9]
    assert [step.metrics["loss"] for step in resumed] == pytest.approx(whole[4:], rel=1e-5)


@pytest.mark.parametrize(
    "measure",
    [
        lambda knobs: experiment.race(knobs, [1], rounds=1),
        lambda knobs: experiment.waiting_stages(2, "gpipe", [1], updates=1),
        lambda knobs: experiment.computing_stages(knobs, updates=3),
    ],
    ids=["race", "waiting", "computing"],
)
def test_what_ranks_measure_stops_who_trains_and_notes_the_load(measure, monkeypatch):
    """Else a verdict from a busy machine is written down."""
    stopped = []
    monkeypatch.setattr(quiet, "_stop", [lambda: stopped.append(True)])
    monkeypatch.setattr(load, "_of_cells", {})
    measure(Knobs(width=16, depth=4, batch_size=32, micro_batches=4))
    assert stopped == [True]
    assert len(load._of_cells) == 1
