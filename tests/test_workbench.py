"""The loop and its clock, memory, proofs, data, and what a panel remembers."""

import json
import math
import os
import re
import subprocess
import sys
import tomllib
from contextlib import nullcontext
from html import unescape
from itertools import islice, repeat
from pathlib import Path
from time import sleep
from types import SimpleNamespace

import psutil
import pytest
import torch
from packaging.requirements import Requirement
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint_sequential

from accel_lab.workbench import granted, models, watched
from accel_lab.workbench.data import datasets
from accel_lab.workbench.device import pick_device
from accel_lab.workbench.drawing.record import Record
from accel_lab.workbench.drawing.sweep import Sweep
from accel_lab.workbench.drawing.timeline import kinds_of
from accel_lab.workbench.effort import along, effort, some_seeds
from accel_lab.workbench.interrupt import SLICE
from accel_lab.workbench.knobs import Knobs, dial
from accel_lab.workbench.loop import NonFiniteLoss, train
from accel_lab.workbench.measure import machine
from accel_lab.workbench.measure.memory_meter import ActivationMeter, process_peak
from accel_lab.workbench.measure.proof import Twin, prove, snapshot, trajectory
from accel_lab.workbench.notebook.source import show_source
from accel_lab.workbench.ranks.launch import collect
from accel_lab.workbench.spans import SpanRecorder
from accel_lab.workbench.step import Span, Step
from accel_lab.workbench.watched import told

X, Y = torch.randn(6, 4), torch.zeros(6, dtype=torch.int64)


# ---- the loop ----


def test_only_the_update_is_timed():
    def slow_batches():
        while True:
            sleep(0.05)
            yield X, Y

    steps = list(islice(train(lambda x, y: {"loss": torch.tensor(1.0)}, slow_batches()), 3))
    assert [step.index for step in steps] == [0, 1, 2]
    assert all(step.samples == 6 and 0 < step.seconds < 0.03 for step in steps)
    assert steps[0].metrics == {"loss": 1.0}
    assert steps[0].throughput == 6 / steps[0].seconds


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_it(loss):
    with pytest.raises(NonFiniteLoss, match=f"the loss is {loss} at step 1"):
        list(
            train(lambda x, y: {"loss": next(losses)}, repeat((X, Y)))
            if (losses := iter([1.0, loss]))
            else []
        )


def test_closing_the_loop_closes_what_feeds_it():
    closed = []

    def batches():
        try:
            while True:
                yield X, Y
        finally:
            closed.append(True)

    feed = batches()
    steps = train(lambda x, y: {"loss": 0.0}, feed)
    next(steps)
    steps.close()
    del feed, steps
    assert closed == [True]


def test_a_run_ends_after_its_steps():
    assert len(list(train(lambda x, y: {}, repeat((X, Y)), steps=4))) == 4


def test_spans_see_a_model_from_outside_and_leave_no_hook():
    model = nn.Sequential(nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    spans = SpanRecorder()

    def update(x, y):
        for _ in range(2):
            model(x).sum().backward()
        with spans("own"):
            optimizer.step()
        return {}

    with spans.watch(model, optimizer):
        (step,) = train(update, [(X, Y)], spans=spans)
    assert [span.name for span in step.spans] == [
        "forward",
        "backward",
        "forward",
        "backward",
        "optimizer step",
        "own",
    ]
    assert all(one.start <= one.end for one in step.spans)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks


def test_a_step_is_one_line_of_json():
    step = Step(3, 64, 0.5, {"loss": 1.25}, (Span(0, "forward", 0.0, 0.25),))
    line = step.to_json()
    assert "\n" not in line
    assert json.loads(line)["spans"] == [{"rank": 0, "name": "forward", "start": 0.0, "end": 0.25}]


def test_a_device_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(
        ValueError,
        match="device: this machine has no CUDA device that torch can use; take 'auto' or 'cpu'",
    ):
        pick_device("cuda")


def test_the_wait_for_a_batch_counts_where_that_is_the_subject():
    def slow_batches():
        while True:
            sleep(0.05)
            yield X, Y

    spans = SpanRecorder()
    feed = train(lambda x, y: {}, slow_batches(), spans=spans, steps=2, count_wait=True)
    for step in feed:
        assert 0.05 <= step.metrics["wait_seconds"] < step.seconds
        assert [span.name for span in step.spans] == ["wait for batch"]
        assert step.spans[0].end == pytest.approx(step.metrics["wait_seconds"], rel=0.2)


def test_a_run_asks_for_no_batch_that_it_does_not_need():
    asked = []

    def batches():
        while True:
            asked.append(True)
            yield X, Y

    list(train(lambda x, y: {}, batches(), steps=3))
    assert len(asked) == 3


# ---- memory ----


def test_activations_are_counted_to_the_byte():
    """A linear layer keeps its input (which exists anyway); tanh keeps its output: n · width · 4
    bytes each.
    """
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 8), nn.Tanh())
    with ActivationMeter(model, X) as meter:
        out = model(X)
        # the first tanh's output and the second layer's input are one tensor
        assert meter.held == 6 * 32 * 4 + 6 * 8 * 4
        out.sum().backward()
        assert meter.held == 0
    assert meter.peak == 6 * 32 * 4 + 6 * 8 * 4
    assert max(held for _, held in meter.history) == meter.peak
    assert [t for t, _ in meter.history] == sorted(t for t, _ in meter.history)


def test_activations_that_are_dropped_without_a_backward_pass_are_not_held():
    """tanh keeps its own output: held by what it holds, it must go all the same."""
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 8), nn.Tanh())
    with ActivationMeter(model, X) as meter:
        for _ in range(3):
            model(X).detach()
            assert meter.held == 0
    assert meter.peak == 6 * 32 * 4 + 6 * 8 * 4


def test_a_meter_leaves_second_derivatives_as_they_were():
    x, found = torch.randn(5, dtype=torch.float64, requires_grad=True), []
    for meter in (nullcontext(), ActivationMeter(x)):
        with meter:
            (first,) = torch.autograd.grad((x.tanh() * x.exp()).sum(), x, create_graph=True)
            found += torch.autograd.grad(first.square().sum(), x)
    assert torch.equal(*found)


def chain(layers: int = 6, width: int = 32) -> nn.Sequential:
    pieces = (
        nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Dropout(0.1)) for _ in range(layers)
    )
    return nn.Sequential(*pieces)


@pytest.mark.parametrize("segments", [1, 2, 3, 6])
def test_activations_that_nested_hooks_keep_are_counted_to_the_byte(segments):
    """torch's two ways of checkpointing keep the same; only one brings hooks of its own."""
    model, x = chain(), torch.randn(64, 32, requires_grad=True)
    peaks = {}
    for use_reentrant in (True, False):
        with ActivationMeter(model, x) as meter:
            out = checkpoint_sequential(model, segments, x, use_reentrant=use_reentrant)
            out.sum().backward()
        assert meter.held == 0
        peaks[use_reentrant] = meter.peak
    with ActivationMeter(model, x) as meter:
        model(x).sum().backward()
    assert peaks[True] == peaks[False]
    assert peaks[True] < meter.peak or segments == 1


def test_a_meter_leaves_hooks_as_they_were():
    before = saved_tensors_hooks.__enter__
    with pytest.raises(RuntimeError, match="stop"), ActivationMeter():
        raise RuntimeError("stop")
    assert saved_tensors_hooks.__enter__ is before


def test_the_process_grows_by_what_is_taken():
    with process_peak() as peak:
        taken = torch.ones(25_000_000)
        del taken
    assert 0.9e8 < peak.grown < 1.5e8, peak.how
    with process_peak() as peak:
        pass
    assert peak.grown < 1e7


# ---- proofs ----


def test_a_proof_finds_the_first_step_that_diverges():
    def way(wrong_at: int, by: float):
        for step in range(5):
            yield {"w": torch.full((2, 2), float(step) + (by if step >= wrong_at else 0.0))}

    proof = prove(
        {"truth": way(9, 0), "same": way(9, 0), "off": way(3, 0.5), "nan": way(1, math.nan)},
        steps=5,
    )
    assert not proof.holds
    assert (
        str(proof)
        == "same = truth over 5 steps, within 1e-12; off ≠ truth from step 3 on; nan ≠ truth from "
        "step 1 on"
    )
    assert [agreement.worst for agreement in proof.compared] == [0.0, 0.5, math.inf]
    assert "✓" in proof._repr_html_()
    assert "✗" in proof._repr_html_()


def test_a_proof_refuses_ways_that_cannot_be_compared():
    with pytest.raises(ValueError, match="'short' ended before step 1"):
        prove({"truth": repeat({"w": X}), "short": [{"w": X}]}, steps=2)
    with pytest.raises(ValueError, match="'other' has other tensors than the truth"):
        prove({"truth": repeat({"w": X}), "other": repeat({"v": X})}, steps=1)


def test_a_trajectory_leaves_its_model_alone():
    model = nn.Linear(4, 3)
    before = snapshot(model)

    def update(model, optimizer, x, y):
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()

    states = list(
        trajectory(model, lambda m: torch.optim.SGD(m.parameters(), lr=0.1), update, [(X, Y)] * 2)
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in snapshot(model).items())
    assert not torch.equal(states[0]["weight"], states[1]["weight"])


def test_a_twin_measures_each_update_by_itself():
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def update(model, optimizer, x, y, factor=1.0):
        optimizer.zero_grad()
        (model(x).square().sum() * factor).backward()
        optimizer.step()

    twin = Twin(model, optimizer, update)
    errors = []
    for factor, (x, y) in zip((1.0, 3.0), twin.ahead_of([(X, Y)] * 2), strict=True):
        update(model, optimizer, x, y, factor)
        errors.append(twin.error())
    assert errors == pytest.approx([0.0, 2.0], abs=1e-5)


@pytest.mark.parametrize(("ours", "error"), [(0.0, 0.0), (1.0, math.inf)])
def test_a_twin_whose_reference_skips_its_update(ours, error):
    """As a gradient scaler does: no update is right, any update is wrong beyond measure."""
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=ours)
    twin = Twin(model, optimizer, lambda model, optimizer, x, y: None)
    for x, _ in twin.ahead_of([(X, Y)]):
        model(x).sum().backward()
        optimizer.step()
    assert twin.error() == error


# ---- the machine ----


def test_the_machine_knows_what_it_computes_in_few_bits(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "avx2": True})
    assert machine.low_precision() == {"bfloat16": ["avx512_bf16"]}
    assert "bfloat16: avx512_bf16" in str(machine.Machine())
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert machine.low_precision() == {}
    assert "no instructions for bfloat16" in str(machine.Machine())
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # an older torch
    assert machine.low_precision() == {}


def test_the_machine_lists_every_package_that_the_project_needs():
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    needed = [Requirement(line).name for line in tomllib.loads(text)["project"]["dependencies"]]
    assert [fact.name for fact in machine.packages()] == needed


# What the system says of itself where a limit of 7000 bytes and of one core is in force for us, in
# the group /a/b: where it is mounted, and what the limits of each group are.
SECOND = "30 20 0:26 {} /groups rw - cgroup2 cgroup2 rw"
FIRST = """31 20 0:28 / /groups rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /groups/cpu rw - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /groups/memory rw - cgroup cgroup rw,memory
34 31 0:31 / /groups/unified rw - cgroup2 cgroup2 rw"""
SYSTEMS = {
    "ours": (SECOND.format("/"), {"a/b/memory.max": "7000", "a/b/cpu.max": "100 100"}),
    "above": (
        SECOND.format("/"),
        {"a/memory.max": "7000", "a/cpu.max": "50 100"}
        | {"a/b/memory.max": "max", "a/b/cpu.max": "max 100"},
    ),
    "the least": (
        SECOND.format("/"),
        {"a/memory.max": "7000", "a/cpu.max": "900 100"}
        | {"a/b/memory.max": "9000", "a/b/cpu.max": "100 100"},
    ),
    "shown as the top": (SECOND.format("/a/b"), {"memory.max": "7000", "cpu.max": "100 100"}),
    "of elsewhere": (SECOND.format("/c"), {"memory.max": "7000", "cpu.max": "100 100"}),
    "the first version": (
        FIRST,
        {"memory/a/memory.limit_in_bytes": "7000"}
        | {"memory/a/b/memory.limit_in_bytes": "9223372036854771712"}
        | {"cpu/a/cpu.cfs_quota_us": "100", "cpu/a/cpu.cfs_period_us": "100"}
        | {"cpu/a/b/cpu.cfs_quota_us": "-1", "cpu/a/b/cpu.cfs_period_us": "100"},
    ),
}


def a_system(folder, mounts, limits):
    ours = "9:cpu,cpuacct:/a/b\n4:memory:/a/b\n1:name=systemd:/\n0::/a/b"
    said = {"proc/self/cgroup": ours, "proc/self/mountinfo": mounts}
    for name, text in (said | {f"groups/{name}": text for name, text in limits.items()}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")
    return folder


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_limit_holds_wherever_above_us_it_stands(tmp_path, monkeypatch, system):
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: range(64), raising=False)
    root = a_system(tmp_path, *SYSTEMS[system])
    assert granted.usable_cores(root) == 1
    assert granted.granted_memory(root) == 7000


@pytest.mark.parametrize(
    ("mounts", "quota", "used"),
    [
        (SECOND.format("/"), {"a/cpu.max": "50 100"}, {"a/cpu.stat": "usage_usec 7500000\nnr 3"}),
        (
            FIRST,
            {"cpu/a/b/cpu.cfs_quota_us": "100", "cpu/a/b/cpu.cfs_period_us": "100"},
            {"cpu/a/b/cpuacct.usage": "7500000000", "cpu/a/cpuacct.usage": "9900000000"},
        ),
    ],
    ids=["the second version", "the first version"],
)
def test_what_all_took_of_the_quota_in_force_is_known(tmp_path, monkeypatch, mounts, quota, used):
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: range(64), raising=False)
    root = a_system(tmp_path, mounts, quota | used)
    assert granted.used_of_quota(root) == 7.5
    assert granted.used_of_quota(a_system(tmp_path / "none", mounts, used)) is None


def test_without_a_limit_all_that_we_are_not_kept_from_is_usable(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: range(3), raising=False)
    beside = {"c/memory.max": "7000", "c/cpu.max": "100 100", "a/b/cpu.max": "max 100"}
    for root in (tmp_path / "none", a_system(tmp_path / "beside", SECOND.format("/"), beside)):
        assert granted.usable_cores(root) == 3
        assert granted.granted_memory(root) is None


def test_a_container_counts_with_what_it_grants(monkeypatch):
    monkeypatch.setattr(machine, "granted_memory", lambda: 2**30)
    assert machine.usable_memory() == (2**30, "granted")
    assert "one open at a time" in machine.Machine()._repr_markdown_()
    for limit in (None, 2**62):
        monkeypatch.setattr(machine, "granted_memory", lambda limit=limit: limit)
        assert "free of" in machine.usable_memory()[1]


@pytest.mark.slow
@pytest.mark.parametrize("way_in", ["accel_lab.workbench.chapter", "accel_lab.experiments.ddp"])
def test_torch_takes_no_more_threads_than_the_cores_that_are_granted(way_in):
    """Whatever way a process of the course comes in: with more, an update took 7 times as long."""
    cores = granted.usable_cores()
    script = f"import torch, {way_in}; print(torch.get_num_threads())"
    for wanted in (1, cores + 3):
        asked = {**os.environ, "OMP_NUM_THREADS": str(wanted)}
        said = subprocess.check_output([sys.executable, "-c", script], env=asked, text=True)
        assert int(said) == min(wanted, cores)


def test_the_cores_decide_what_ranks_can_show(monkeypatch):
    said = {}
    for cores in (1, 2, 16):
        monkeypatch.setattr(machine, "usable_cores", lambda cores=cores: cores)
        said[cores] = machine.hardware()[0].meaning
    assert "take turns" in said[1]
    assert "up to 16" in said[16]
    assert len(set(said.values())) == 3


def test_a_package_that_is_missing_is_in_the_table(monkeypatch):
    assert "missing" not in machine.Machine()._repr_markdown_()
    lines = ["torch>=2.9", "no-such-package>=1", "another-one>=2; extra == 'test'"]
    monkeypatch.setattr(machine, "requires", lambda name: lines)
    table = machine.Machine()._repr_markdown_()
    assert "| no-such-package | missing; pip install no-such-package |" in table
    assert "another-one" not in table


# ---- data ----


@pytest.mark.parametrize(
    ("load", "total", "side"), [(datasets.digits, 1797, 8), (datasets.mnist5k, 5000, 28)]
)
def test_the_data_are_whole_and_split_by_class(load, total, side):
    found = load()
    assert len(found.train_x) + len(found.test_x) == total
    assert found.train_x.shape[1:] == (1, side, side)
    assert (found.train_x.min(), found.train_x.max()) == (0.0, 1.0)
    shares = found.test_y.bincount() / (found.test_y.bincount() + found.train_y.bincount())
    assert torch.allclose(shares, torch.full((10,), 0.2), atol=0.01)


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    ours = torch.cat([datasets.digits().train_x, datasets.digits().test_x]).flatten(1) * 16
    theirs = torch.from_numpy(load_digits().data).float()
    assert torch.equal(ours.sort(dim=0).values, theirs.sort(dim=0).values)


def test_batches_go_through_every_sample_once_an_epoch():
    digits = datasets.digits()
    feed = digits.batches(100, seed=3)
    seen = torch.cat([x for x, _ in islice(feed, 15)])[: len(digits.train_x)].flatten(1)
    assert torch.equal(seen.sort(dim=0).values, digits.train_x.flatten(1).sort(dim=0).values)
    again = next(digits.batches(100, seed=3))
    assert torch.equal(again[0], seen[:100].view_as(again[0]))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"train_x": torch.empty(0, 1, 8, 8), "train_y": torch.empty(0)},
            "data: the train part of 'toy' is empty",
        ),
        (
            {"test_y": torch.zeros(5).long()},
            "data: the test part of 'toy' has 4 samples but 5 labels",
        ),
        (
            {"train_y": torch.tensor([0, 1, 2, 0])},
            "data: label 2 in the train part of 'toy'; labels are 0 to 1",
        ),
        ({"test_y": torch.tensor([0, -1, 1, 0])}, "data: label -1 in the test part of 'toy'"),
    ],
)
def test_data_that_cannot_be_trained_on_are_refused_in_one_line(change, line):
    whole = {"train_x": torch.rand(4, 1, 8, 8), "train_y": torch.tensor([0, 1, 1, 0])}
    whole |= {"test_x": torch.rand(4, 1, 8, 8), "test_y": torch.tensor([0, 1, 1, 0])}
    datasets.Data("toy", 2, **whole)
    with pytest.raises(ValueError, match=line):
        datasets.Data("toy", 2, **(whole | change))


@pytest.mark.parametrize("size", [0, 5000])
def test_a_batch_that_cannot_be_is_refused_at_once(size):
    with pytest.raises(
        ValueError,
        match=f"batch_size: {size} is not within 1 and the 1438 training samples of 'digits'",
    ):
        datasets.digits().batches(size)


def test_a_missing_package_is_named():
    with pytest.raises(
        ModuleNotFoundError, match="the package 'no_such_package' carries this data set"
    ):
        datasets._table("no_such_package", "x")


def test_models_have_the_shapes_they_say():
    assert models.mlp(64, 5, 10)(torch.rand(3, 1, 8, 8)).shape == (3, 10)
    block = models.residual_block(4)
    assert block(torch.rand(3, 4, 8, 8)).shape == (3, 4, 8, 8)
    assert models.transformer_block(8, heads=2)(torch.rand(3, 5, 8)).shape == (3, 5, 8)
    with pytest.raises(ValueError, match="heads: 3 do not divide a width of 8"):
        models.transformer_block(8, heads=3)
    for batch_norm in (False, True):
        assert models.cnn(channels=2, side=8, batch_norm=batch_norm)(
            torch.rand(3, 1, 8, 8)
        ).shape == (3, 10)


def test_attention_is_torchs():
    torch.manual_seed(0)
    ours, x = models.SelfAttention(8, 2), torch.rand(3, 5, 8)
    theirs = nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.in_proj_weight.data.copy_(ours.queries_keys_values.weight)
    theirs.in_proj_bias.data.copy_(ours.queries_keys_values.bias)
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    assert torch.allclose(ours(x), theirs(x, x, x, need_weights=False)[0], atol=1e-6)


# ---- source, shown ----


def shown_in_pieces(x):
    """What it does."""
    first = x + 1
    second = first * 2
    return second


def test_source_is_shown_highlighted_and_in_pieces():
    whole = show_source(shown_in_pieces)
    assert repr(whole).splitlines()[1] == '    """What it does."""'
    assert whole._repr_markdown_() == f"```python\n{whole}\n```"
    without = repr(show_source(shown_in_pieces, docstring=False)).splitlines()
    assert without[1] == "    first = x + 1"
    piece = show_source(shown_in_pieces, first="first =", last="second =")
    assert repr(piece) == "first = x + 1\nsecond = first * 2"


def test_source_that_cannot_be_read_at_a_glance_is_refused():
    with pytest.raises(ValueError, match="lines are too many to read at a glance, at most 25"):
        show_source(ActivationMeter)
    with pytest.raises(ValueError, match="no line holds 'third'"):
        show_source(shown_in_pieces, first="third")


# ---- records ----


class Half(Knobs):
    parts: int = dial(1, ge=1, le=6, description="parts")
    size: int = dial(6, ge=1, le=6, description="samples")


def test_a_record_keeps_means_of_windows():
    record = Record(Half(), "run")
    for index, seconds in enumerate((0.1, 0.3)):
        record.add(Step(index, 10, seconds, {"loss": float(index)}))
    record.close_window(1.0)
    record.close_window(2.0)  # nothing since: no point
    assert (record.seconds, record.updates, record.samples) == ([1.0], [2.0], 20)
    assert record.series == {"throughput": [pytest.approx(50.0)], "loss": [0.5]}


def test_a_long_record_is_thinned_and_keeps_its_means_and_its_end():
    record = Record(Half(), "run")
    for index in range(5000):
        record.add(Step(index, 1, 1.0, {"loss": float(index)}))
        record.close_window(index + 1.0)
    assert len(record.seconds) <= Record.MOST_WINDOWS
    assert (
        len(record.seconds)
        == len(record.updates)
        == len(record.series["loss"])
        == len(record._steps_of_window)
    )
    assert sum(record._steps_of_window) == 5000
    mean = (
        sum(v * n for v, n in zip(record.series["loss"], record._steps_of_window, strict=True))
        / 5000
    )
    assert mean == pytest.approx(4999 / 2)
    assert (record.seconds[-1], record.updates[-1]) == (5000.0, 5000.0)
    assert record.seconds == sorted(record.seconds)


def test_a_prediction_leaves_out_what_the_knobs_refuse():
    sweep = Sweep("parts", "bytes", "bytes", scale=2.0, predicted=lambda knobs: 6 / knobs.parts)
    assert sweep.prediction(Half()) == (
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        [12.0, 6.0, 4.0, 3.0, pytest.approx(2.4), 2.0],
    )


def test_what_goes_on_beside_other_work_gets_a_lane_of_its_own():
    spans = [
        Span(0, "forward 0", 0.0, 1.0),
        Span(0, "backward 0", 1.0, 2.0),
        Span(1, "bucket 0", 1.2, 2.0),
    ]
    assert kinds_of(spans) == {"forward": False, "backward": False, "bucket": False}
    assert kinds_of([*spans, Span(0, "bucket 1", 1.5, 2.5)]) == {
        "forward": False,
        "backward": False,
        "bucket": True,
    }


def test_a_quick_look_measures_a_curve_at_its_ends_and_repeats_less(monkeypatch):
    for asked, share, values, seeds in (("0", 1.0, (1, 2, 4), [5, 3]), ("1", 0.25, (1, 4), [2, 1])):
        monkeypatch.setenv("ACCEL_LAB_QUICK", asked)
        assert (effort(), tuple(along((1, 2, 4)))) == (share, values)
        assert [len(some_seeds(number)) for number in (5, 3)] == seeds


@pytest.fixture
def lines_for_the_reader(monkeypatch):
    """What long cells tell, from their first moment on; an empty line when they are done."""
    shown = []

    def tell(html):
        shown.append(unescape(re.sub("<.*?>", "", html.data)))

    def display(html, display_id):
        tell(html)
        return SimpleNamespace(update=tell)

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(watched, "FIRST", 0.0)
    monkeypatch.setattr(watched, "EVERY", 0.0)
    monkeypatch.setenv("ACCEL_LAB_HEADLESS", "0")
    return shown


def test_a_long_cell_tells_a_reader_what_it_is_at(lines_for_the_reader, monkeypatch):
    with watched.telling("<i> and b") as say:
        say("pair 1")
        say("pair 2")
    assert lines_for_the_reader == ["<i> and b: pair 1 …", "<i> and b: pair 2 …", ""]
    lines_for_the_reader.clear()
    for first in (60.0, 0.0):
        monkeypatch.setattr(watched, "FIRST", first)
        with watched.telling("a short one, then one that nobody watches") as say:
            say("pair 1")
        monkeypatch.setenv("ACCEL_LAB_HEADLESS", "1")
    assert lines_for_the_reader == []


def test_a_loop_over_seeds_tells_how_far_it_is_and_clears_its_line(lines_for_the_reader):
    assert list(told(range(2), "seed")) == [0, 1]
    lines = ["at work: seed 1 of 2 …", "at work: seed 2 of 2 …", ""]
    assert lines_for_the_reader == lines
    lines_for_the_reader.clear()

    def interrupted():
        for seed in told(range(2), "seed"):
            if seed == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as kept:  # its traceback keeps the frame alive
        interrupted()
    assert lines_for_the_reader == lines
    assert kept.tb


def test_who_waits_for_ranks_is_told_so(lines_for_the_reader):
    assert collect(sleep, 1, 3 * SLICE, backend=None) == {0: [None]}
    *waiting, last = lines_for_the_reader
    assert waiting
    assert all(re.fullmatch(r"ranks at work: 1: for \d+ s …", line) for line in waiting)
    assert last == ""
