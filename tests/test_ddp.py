"""Ours = one process with the whole batch = torch's DistributedDataParallel, after every step."""

import copy
import itertools
import pickle
import sys
import warnings
from functools import partial

import cloudpickle
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from accel_lab import ddp
from accel_lab.ddp import (
    DataParallel,
    all_gather_turns,
    average_flat,
    average_per_parameter,
    reduce_scatter_turns,
    ring_all_gather,
    ring_all_reduce,
    ring_reduce_scatter,
    sharded,
    trainable,
)
from accel_lab.experiments.ddp import Knobs, run
from accel_lab.workbench.loop import NonFiniteLoss
from accel_lab.workbench.measure.proof import prove, snapshot
from accel_lab.workbench.ranks.checkpoint import NotACheckpoint
from accel_lab.workbench.ranks.launch import RankFailed, launch
from accel_lab.workbench.ranks.rank import RanksDiffer, gather

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks need not import pytest

SMALL_KNOBS = {"batch_size": 32, "width": 32, "seed": 1}  # the chapter in little, for papermill


class Awkward(nn.Module):
    """A tied layer, a frozen one, a buffer, a parameter without dimensions, odd sizes."""

    def __init__(self):
        super().__init__()
        self.into, self.tied, self.frozen, self.out = (
            nn.Linear(5, 7),
            nn.Linear(7, 7),
            nn.Linear(7, 7),
            nn.Linear(7, 3),
        )
        self.frozen.requires_grad_(False)
        self.gain = nn.Parameter(torch.ones(()))
        self.register_buffer("offset", torch.randn(7))

    def forward(self, x):
        x = torch.tanh(self.into(x))
        x = torch.tanh(self.frozen(self.tied(x)) + self.offset)
        return self.out(self.gain * self.tied(x))


def seeded(seed):
    torch.manual_seed(seed)
    return Awkward().double()


def batches(sizes=(7, 12, 7, 1, 2, 9, 6, 7, 11, 4)):
    generator = torch.Generator().manual_seed(1)
    return [
        [torch.randn(n, width, dtype=torch.float64, generator=generator) for width in (5, 3)]
        for n in sizes
    ]


def optimizer_of(model):
    return torch.optim.SGD(trainable(model).values(), lr=0.1, momentum=0.9, weight_decay=0.01)


def one_process():
    model = seeded(0)
    optimizer = optimizer_of(model)
    for x, y in batches():
        optimizer.zero_grad()
        mse_loss(model(x), y).backward()
        optimizer.step()
        yield snapshot(model)


def in_micro_batches(parallel, model, x, y):
    """Each rank's part in three pieces, of which the last one sends."""
    pieces = list(zip(x.tensor_split(3), y.tensor_split(3), strict=True))
    for piece, (x_piece, y_piece) in enumerate(pieces):
        loss = ((model(x_piece) - y_piece) ** 2).sum() / max(1, y.numel())
        if piece < 2:
            with parallel.no_sync():
                loss.backward()
        else:
            loss.backward()


def plainly(model, x, y):
    (((model(x) - y) ** 2).sum() / max(1, y.numel())).backward()


def way(name):
    """Make (model, backward(x, y, share)) of one way to train; ranks start from other weights."""
    model = seeded(dist.get_rank())
    if name in ("torch", "torch, views"):
        wrapped = DistributedDataParallel(model, gradient_as_bucket_view="views" in name)
        weight = dist.get_world_size()
        return model, lambda x, y, share: (
            mse_loss(wrapped(x), y) * weight * share if len(x) else wrapped(x).sum() * 0
        ).backward()
    if name.startswith("buckets"):
        parallel = DataParallel(
            model,
            bucket_mib=1e-4 if "small" in name else 8.0,
            wire="network" if "network" in name else "auto",
        )

        def backward(x, y, share):
            parallel.share = share
            in_micro_batches(parallel, model, x, y) if "accumulated" in name else plainly(
                model, x, y
            )

        return model, backward
    ddp.broadcast_state(model)
    rule = {
        "per parameter": average_per_parameter,
        "flat": average_flat,
        "ring": lambda parameters, share: average_flat(parameters, share, ring_all_reduce),
    }[name]

    def backward(x, y, share):
        plainly(model, x, y)
        rule(trainable(model), share)

    return model, backward


WAYS = [
    "torch",
    "torch, views",
    "buckets",
    "buckets, small",
    "buckets, accumulated",
    "per parameter",
    "flat",
    "ring",
]
WAYS += [f"{name}, network" for name in WAYS if name.startswith("buckets")]


def train_all_ways():
    rank, world = dist.get_rank(), dist.get_world_size()
    ways = {name: way(name) for name in WAYS}
    optimizers = {name: optimizer_of(model) for name, (model, _) in ways.items()}
    for x, y in batches():
        for name, (_, backward) in ways.items():
            optimizers[name].zero_grad()
            backward(x[rank::world], y[rank::world], len(x[rank::world]) / len(x))
            optimizers[name].step()
        yield {name: snapshot(model) for name, (model, _) in ways.items()}


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_way_equals_one_process_after_each_of_ten_steps(world):
    heard = list(launch(train_all_ways, world))
    of_rank = [[value for rank, value in heard if rank == each] for each in range(world)]
    for states in of_rank:
        proof = prove(
            {
                "one process": one_process(),
                **{name: [state[name] for state in states] for name in WAYS},
            }
        )
        assert proof.holds, proof


def test_ranks_stay_equal_to_the_last_bit():
    heard = list(launch(train_all_ways, 3))
    last = [[value for rank, value in heard if rank == each][-1] for each in range(3)]
    for name, tensors in last[0].items():
        for key, tensor in tensors.items():
            assert all(torch.equal(tensor, other[name][key]) for other in last[1:]), (name, key)


# ---- the ring ----


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_the_ring_s_turns_fit_together_and_complete_every_chunk(world):
    everyone = range(world)
    holds = [[{rank} for _ in everyone] for rank in everyone]  # whose parts, by rank and chunk
    for turns, adds in ((reduce_scatter_turns, True), (all_gather_turns, False)):
        of_rank = [turns(rank, world) for rank in everyone]
        for turn in range(world - 1):
            sent = [holds[rank][of_rank[rank][turn][0]] for rank in everyone]
            for rank in everyone:
                left = (rank - 1) % world
                into = of_rank[rank][turn][1]
                assert into == of_rank[left][turn][0]
                holds[rank][into] = holds[rank][into] | sent[left] if adds else sent[left]
        for rank in everyone:
            complete = [chunk for chunk in everyone if holds[rank][chunk] == set(everyone)]
            assert complete == ([(rank + 1) % world] if adds and world > 1 else list(everyone))


def ring_beside_gloo(sizes):
    results = []
    for size in sizes:
        ours = torch.randn(
            size, dtype=torch.float64, generator=torch.Generator().manual_seed(dist.get_rank())
        )
        gloo = ours.clone()
        ring_all_reduce(ours)
        dist.all_reduce(gloo)
        results.append((ours - gloo).abs().max().item() if size else 0.0)
    return results


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_ring_adds_up_what_gloo_adds_up(world):
    for _, differences in launch(ring_beside_gloo, world, [0, 1, 2, 5, 1000]):
        assert max(differences) < 1e-14


def halves_of_the_ring():
    """The chunk that reduce-scatter completes here, and all chunks after all-gather."""
    rank, world = dist.get_rank(), dist.get_world_size()
    chunks = (torch.arange(10.0) * (rank + 1)).tensor_split(world)
    ring_reduce_scatter(chunks)
    scattered = chunks[(rank + 1) % world].clone()
    ring_all_gather(chunks)
    return scattered, torch.cat(chunks)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_reduce_scatter_completes_one_chunk_and_all_gather_the_others(world):
    total = torch.arange(10.0) * sum(range(1, world + 1))
    for rank, (scattered, gathered) in launch(halves_of_the_ring, world):
        assert torch.equal(scattered, total.tensor_split(world)[(rank + 1) % world])
        assert torch.equal(gathered, total)


# ---- bytes, compression, complaints ----


def bytes_of_one_update(micro_batches, **options):
    model = nn.Linear(100, 10)
    parallel = DataParallel(model, **options, wire="network")
    for _ in range(micro_batches - 1):
        with parallel.no_sync():
            model(torch.ones(1, 100)).sum().backward()
    model(torch.ones(1, 100)).sum().backward()
    return parallel.bytes_sent


def test_accumulation_sends_once_and_compression_half():
    assert {value for _, value in launch(bytes_of_one_update, 2, 1)} == {4040}
    assert {value for _, value in launch(bytes_of_one_update, 2, 5)} == {4040}
    assert {value for _, value in launch(lambda: bytes_of_one_update(1, compress=True), 2)} == {
        2020
    }


def compressed_beside_exact(wire):
    torch.manual_seed(dist.get_rank())
    model = nn.Linear(50, 20)
    ddp.broadcast_state(model)
    models = [model, copy.deepcopy(model)]
    x = torch.randn(8, 50)
    for each, compress in zip(models, (False, True), strict=True):
        DataParallel(each, compress=compress, wire=wire)
        each(x).square().mean().backward()
    exact, compressed = (each.weight.grad for each in models)
    return ((exact - compressed).norm() / exact.norm()).item(), compressed


@pytest.mark.parametrize("wire", ["network", "auto"])
@pytest.mark.parametrize("world", [2, 3])
def test_compression_rounds_but_keeps_ranks_equal(world, wire):
    results = [value for _, value in launch(compressed_beside_exact, world, wire)]
    assert all(0 < error < 2**-7 for error, _ in results)
    assert all(torch.equal(results[0][1], gradient) for _, gradient in results[1:])


# ---- a table of cases: ours beside torch's ----


class Noted(nn.Module):
    """A layer between two others, and parameters that no two of our cases treat alike."""

    def __init__(self, middle=None, *, dtype=torch.float64, empty=False, reentrant=None):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.middle, self.reentrant = middle or nn.Tanh(), reentrant
        self.empty = nn.Parameter(torch.zeros(0, 3)) if empty else None
        self.to(dtype)

    def forward(self, x):
        x = self.first(x)
        x = (
            self.middle(x)
            if self.reentrant is None
            else checkpoint(self.middle, x, use_reentrant=self.reentrant)
        )
        return self.last(x) + (0 if self.empty is None else self.empty.sum())


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.last = nn.Embedding(9, 4, sparse=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.table(x))


class TwiceUsed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


class Cast(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        return x.to(self.dtype)


def two_dtypes():
    into, out = Cast(torch.float32), Cast(torch.float64)
    model = Noted(nn.Sequential(into, nn.Linear(6, 6), out))
    model.middle.float()
    return model


def frozen():
    model = Noted(nn.Linear(6, 6))
    model.middle.requires_grad_(False)
    return model


CASES = {
    "float64": Noted,
    "float32": lambda: Noted(dtype=torch.float32),
    "float16": lambda: Noted(dtype=torch.float16),
    "bfloat16": lambda: Noted(dtype=torch.bfloat16),
    "complex": lambda: Noted(dtype=torch.complex128),
    "two dtypes": two_dtypes,
    "tied": TwiceUsed,
    "frozen": frozen,
    "sparse": Words,
    "zero-size": lambda: Noted(empty=True),
    "batch norm": lambda: Noted(nn.BatchNorm1d(6)),
    "checkpointed": lambda: Noted(nn.Linear(6, 6), reentrant=False),
    "autocast": lambda: Noted(nn.Linear(6, 6), dtype=torch.float32),
    "wrapped twice": Noted,
}
ROUGH = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def gradients(name, wrap):
    """Two backward passes of one case on this rank, the second without zeroing: its gradients."""
    torch.manual_seed(0)
    model = CASES[name]()
    forward = wrap(model)
    rank = dist.get_rank()
    dtype = next(model.parameters()).dtype
    x = torch.arange(6) + rank if name == "sparse" else torch.randn(12, 4).to(dtype)[rank::2]
    for _ in range(2):
        with torch.autocast("cpu", enabled=name == "autocast"):
            out = forward(x)
        out.abs().square().mean().backward()
    return [p.grad.detach().clone() for p in model.parameters() if p.requires_grad]


def ours_beside_torch():
    """{(case, wire): how far ours is from torch's, relative to that, and what differs otherwise}"""
    warnings.simplefilter("ignore")  # torch's own, of complex modules and second backward passes

    def ours(model, wire, times):
        for _ in range(times):
            DataParallel(model, wire=wire, bucket_mib=1e-4)
        return model

    found = {}
    for name in CASES:
        truth = gradients(name, DistributedDataParallel)
        for wire in ("auto", "network"):
            times = 1 + (name == "wrapped twice")
            mine = gradients(name, partial(ours, wire=wire, times=times))
            pairs = [(a.to_dense(), b.to_dense()) for a, b in zip(mine, truth, strict=True)]
            off = [((a - b).abs().max() / b.abs().max()).item() for a, b in pairs if b.numel()]
            kinds = [[(t.layout, t.dtype, t.shape) for t in way] for way in (mine, truth)]
            found[name, wire] = max(off), kinds[0] == kinds[1]
    return found


@pytest.fixture(scope="module")
def beside_torch():
    return list(launch(ours_beside_torch, 2))


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("wire", ["auto", "network"])
@pytest.mark.parametrize("name", CASES)
def test_ours_equals_torch_s(beside_torch, name, wire):
    dtypes = {p.dtype for p in CASES[name]().parameters()}
    for _, found in beside_torch:
        off, alike = found[name, wire]
        assert alike
        assert off <= max(ROUGH.get(dtype, 1e-12) for dtype in dtypes)


def told(act):
    try:
        act()
    except Exception as error:
        return str(error)


def awkward_uses():
    """What each says on this rank, by name."""
    rank, said = dist.get_rank(), {}
    plain = nn.Linear(3, 2)
    parallel = DataParallel(plain)
    seen = []
    plain.bias.register_post_accumulate_grad_hook(lambda bias: seen.append(bias.grad.tolist()))
    (plain(torch.ones(1, 3)).sum() * (1 + rank)).backward()
    said["a hook added later"] = list(seen)
    said["pickled"] = told(lambda: pickle.dumps(parallel))
    said["the model, pickled"] = len(pickle.loads(pickle.dumps(plain)).state_dict())

    plain.zero_grad()
    (plain(torch.ones(1, 3)).square().sum() * (1 + rank)).backward(create_graph=True)
    once = 2 * plain(torch.ones(1, 3))[0].detach()  # torch's default cannot do it at all
    said["create_graph"] = torch.allclose(plain.bias.grad, 1.5 * once), plain.bias.grad.grad_fn

    again = Noted(nn.Linear(6, 6), reentrant=True)
    DataParallel(again)
    said["reentrant"] = told(again(torch.ones(2, 4).double()).sum().backward)

    normed = nn.BatchNorm1d(3)
    DataParallel(normed)
    normed(torch.randn(4, 3, generator=torch.Generator().manual_seed(rank))).sum().backward()
    apart = gather(normed.running_mean.tolist())
    ddp.broadcast_state(normed)
    together = gather(normed.running_mean.tolist())
    said["batch norm"] = apart[0] != apart[1], together[0] == together[1]
    return said


def test_awkward_uses():
    for rank, said in launch(awkward_uses, 2):
        assert said == {
            "a hook added later": [[(1.0 + rank) / 2] * 2],  # this rank's share of the average
            "pickled": "DataParallel belongs to its ranks: save the model without it",
            "the model, pickled": 2,
            "create_graph": (True, None),
            "reentrant": "a backward inside of backward would be averaged by itself: "
            "checkpoint with use_reentrant=False",
            "batch norm": (True, True),
        }


def test_complex_gradients_are_not_compressed():
    def halved():
        warnings.simplefilter("ignore")
        model = nn.Linear(4, 3, dtype=torch.complex64)
        parallel = DataParallel(model, compress=True, wire="network")
        model(torch.ones(1, 4, dtype=torch.complex64)).abs().sum().backward()
        return parallel.bytes_sent

    assert {sent for _, sent in launch(halved, 2)} == {15 * 8}


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x, branch):
        return self.used(x) if branch else self.spare(self.used(x))


def unused_on_rank(which):
    model = Branches()
    DataParallel(model)
    model(torch.ones(1, 3), dist.get_rank() == which or which == "all").sum().backward()


@pytest.mark.parametrize("which", [0, 1, "all"])
def test_an_unused_parameter_is_named_at_once(which):
    with pytest.raises(
        RankFailed, match=r"no gradient reached spare\.bias, spare\.weight on rank"
    ) as failed:
        list(launch(unused_on_rank, 2, which))
    assert isinstance(failed.value.cause, ddp.UnusedParameters)
    assert failed.value.rank == which or which == "all"


def after_a_broken_backward():
    """An exception amid backward must not leave the next one without its averaging."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    DataParallel(model)
    handle = model[0].weight.register_hook(lambda gradient: 1 / 0)
    try:
        model(torch.ones(1, 2)).sum().backward()
    except ZeroDivisionError:
        handle.remove()
    dist.barrier()
    model.zero_grad()
    (model(torch.ones(1, 2)).sum() * (1 + 2 * dist.get_rank())).backward()
    return model[1].bias.grad.item()


def test_a_broken_backward_does_no_harm_to_the_next():
    assert {value for _, value in launch(after_a_broken_backward, 3)} == {3.0}


def test_models_that_differ_are_refused_before_anything_is_sent():
    def differing(kind):
        rank = dist.get_rank()
        model = {
            "shape": nn.Linear(3, 3 + rank),
            "dtype": nn.Linear(3, 3).to([torch.float32, torch.float64][rank]),
            "frozen": nn.Linear(3, 3).requires_grad_(rank == 0),
            "more": nn.Sequential(*[nn.Linear(3, 3)] * 1, *[nn.Linear(3, 3) for _ in range(rank)]),
        }[kind]
        DataParallel(model)

    for kind in ("shape", "dtype", "frozen", "more"):
        with pytest.raises(RankFailed, match="rank 1 has") as failed:
            list(launch(differing, 2, kind))
        assert isinstance(failed.value.cause, RanksDiffer)


# ---- the sampler ----


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shards_make_up_the_batch_without_overlap(world):
    ranks = [itertools.islice(sharded(50, 16, rank, world, seed=3), 9) for rank in range(world)]
    for batch, dealt in enumerate(zip(*ranks, strict=True)):
        wholes = [whole.tolist() for _, whole in dealt]
        assert all(whole == wholes[0] for whole in wholes)
        assert len(wholes[0]) == (2 if batch % 4 == 3 else 16)
        assert sorted(index for mine, _ in dealt for index in mine.tolist()) == sorted(wholes[0])
    first_epoch = [whole for _, whole in itertools.islice(sharded(50, 16, 0, 1, seed=3), 4)]
    assert sorted(torch.cat(first_epoch).tolist()) == list(range(50))


def test_sharding_resumes_anywhere():
    whole_run = [mine.tolist() for mine, _ in itertools.islice(sharded(50, 16, 1, 2), 12)]
    for start in range(10):
        assert next(sharded(50, 16, 1, 2, start=start))[0].tolist() == whole_run[start]


# ---- the experiment ----


def some_steps(n=3, **dials):
    steps = run(Knobs(width=32, twin=True, **dials))
    try:
        return list(itertools.islice(steps, n))
    finally:
        steps.close()


@pytest.mark.parametrize("method", ["buckets", "flat", "per parameter", "ring"])
@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 1), (3, 2)])
def test_a_run_makes_the_updates_of_one_process(method, ranks, micro_batches):
    for step in some_steps(ranks=ranks, method=method, micro_batches=micro_batches, batch_size=50):
        assert step.metrics["update_error"] < 1e-5
        assert step.samples == 50
        assert {span.rank for span in step.spans} == set(range(ranks))
        assert step.metrics["bytes_sent"] > 0


@pytest.mark.parametrize(
    "mistake",
    [
        "skip the division",
        "forget the broadcast",
        "same shard everywhere",
        "wrong rank order",
        "the article's formula",
    ],
)
def test_a_mistake_shows_in_the_first_update(mistake):
    assert some_steps(1, mistake=mistake)[0].metrics["update_error"] > 0.05


def test_the_article_s_formula_diverges():
    with pytest.raises(NonFiniteLoss):
        some_steps(200, mistake="the article's formula")


def test_mishaps():
    assert some_steps(2, mistake="slow rank")[1].seconds > 0.05
    with pytest.raises(RankFailed, match="rank 2 of 3 was killed by SIGKILL"):
        some_steps(10, ranks=3, mistake="dying rank")
    with pytest.raises(RankFailed, match=r"rank 1 has 1.weight \[33, 784\]"):
        some_steps(mistake="mismatched shapes")


def test_no_sync_saves_bytes():
    once, often = (
        some_steps(1, micro_batches=4, no_sync=no_sync)[0].metrics["bytes_sent"]
        for no_sync in (True, False)
    )
    assert often == 4 * once


def test_a_run_resumes_from_its_checkpoint(tmp_path):
    dials = {"checkpoint": str(tmp_path / "run.pt"), "checkpoint_every": 4}
    whole = [step.metrics["loss"] for step in some_steps(10)]
    first = some_steps(6, **dials)
    resumed = some_steps(6, **dials)
    assert [step.index for step in resumed] == [4, 5, 6, 7, 8, 9]
    assert [step.metrics["loss"] for step in first] == pytest.approx(whole[:6], rel=1e-6)
    assert [step.metrics["loss"] for step in resumed] == pytest.approx(whole[4:], rel=1e-6)


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory without a name is Linux's")
def test_ranks_of_one_machine_share_memory():
    def wires():
        return [
            type(DataParallel(nn.Linear(2, 2), wire=wire).buckets[0].wire).__name__
            for wire in ("auto", "network")
        ]

    assert {tuple(names) for _, names in launch(wires, 2)} == {("SharedMemory", "Network")}


def test_a_file_that_is_no_checkpoint_is_refused_and_left_alone(tmp_path):
    foreign, garbage, ours = (tmp_path / name for name in ("foreign.pt", "garbage.pt", "ours.pt"))
    torch.save(nn.Linear(2, 2).state_dict(), foreign)
    garbage.write_text("hello")
    some_steps(2, checkpoint=str(ours), checkpoint_every=1)
    for path, why in (
        (foreign, "which holds"),
        (garbage, "no checkpoint"),
        (ours, "size mismatch"),
    ):
        before = path.read_bytes()
        with pytest.raises(NotACheckpoint, match=why) as told:
            list(
                itertools.islice(run(Knobs(width=16, checkpoint=str(path), checkpoint_every=1)), 3)
            )
        assert str(told.value).startswith(f"{path}: ")
        assert "\n" not in str(told.value)
        assert path.read_bytes() == before
    with pytest.raises(NotACheckpoint, match="there is no folder"):
        some_steps(1, checkpoint=str(tmp_path / "nowhere" / "run.pt"))
