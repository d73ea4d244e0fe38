"""Sync = all-reduce = one process; async = what a replay of the arrivals makes, to the last bit."""

import contextlib
import itertools
import math
import os
import random
import re
import signal
import sys
import threading
import time

import cloudpickle
import psutil
import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.nn.functional import mse_loss

from accel_lab import parameter_server as ps
from accel_lab.experiments import parameter_server as experiment
from accel_lab.experiments._serving import Trainer
from accel_lab.experiments.parameter_server import NOTES, Knobs, run
from accel_lab.parameter_server import (
    HEADER,
    NOTE,
    Server,
    flatten,
    in_turn,
    meet,
    replay,
    serve,
    work,
)
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.knobs import KnobError
from accel_lab.workbench.loop import NonFiniteLoss
from accel_lab.workbench.ranks.launch import RankFailed, collect, launch
from accel_lab.workbench.ranks.rank import RanksDiffer

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks need not import pytest

SMALL_KNOBS = {"batch_size": 8, "width": 16, "seed": 1}  # the chapter in little, for papermill
MODES = ("all-reduce", "sync", "bounded", "async", "local")
RATE, SIZES = 0.1, (7, 12, 7, 1, 2, 9, 6, 7, 11, 4)  # one sample leaves some workers none


def small(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return models.mlp(5, 7, 3).to(dtype)


def samples(batch, dtype=torch.float64, n=None):
    generator = torch.Generator().manual_seed(batch)
    n = SIZES[batch % len(SIZES)] if n is None else n
    return [
        torch.randn(n, width, dtype=torch.float64, generator=generator).to(dtype)
        for width in (5, 3)
    ]


def part(batch, worker, workers, dtype=torch.float64):
    """A worker's samples of a batch, and its share."""
    x, y = samples(batch, dtype)
    mine = slice(worker - 1, None, workers)
    return x[mine], y[mine], len(x[mine]) / len(x)


def gradient_of(model, gradients, x, y):
    gradients.zero_()
    (((model(x) - y) ** 2).sum() / max(1, y.numel())).backward()
    return gradients


def one_process(updates, momentum=0.0, dtype=torch.float64):
    model = small(dtype=dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=momentum)
    for batch in range(updates):
        optimizer.zero_grad()
        x, y = samples(batch, dtype)
        mse_loss(model(x), y).backward()
        optimizer.step()
    return flatten(model)[0]


def with_server(options, pushes, plain=False, dtype=torch.float64, slow=0.0):
    """One rank of a run: rank 0 returns its arrivals and weights, a worker its pushes."""
    rank, workers = dist.get_rank(), dist.get_world_size() - 1
    model = small(rank, dtype)  # other weights everywhere, until they meet
    weights, gradients = flatten(model)
    meet(weights)
    if rank == 0:
        server = Server(weights, range(1, workers + 1), rate=RATE, **options)
        receive = {"receive": in_turn(server.clock)} if plain else {}
        heard = list(serve(server, pushes, **receive))
        return heard, weights, server.clock, server.refused

    def compute(batch):
        x, y, share = part(batch, rank, workers, dtype)
        if slow and rank == workers:
            time.sleep(slow)
        return gradient_of(model, gradients, x, y), share, ()

    return work(compute, weights)


def by_all_reduce(updates):
    rank, world = dist.get_rank(), dist.get_world_size()
    model = small()
    weights, gradients = flatten(model)
    for batch in range(updates):
        x, y, share = part(batch, rank + 1, world)
        gradient = gradient_of(model, gradients, x, y).mul_(share)
        dist.all_reduce(gradient)
        weights.add_(gradient, alpha=-RATE)
    return weights


def server_rank(workers, options, pushes, **more):
    return collect(lambda: with_server(options, pushes, **more), workers + 1)


# ---- the three rules ----


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("plain", [False, True])
def test_sync_is_an_all_reduce_and_one_process_with_the_whole_batch(workers, plain):
    heard, weights, clock, _ = server_rank(workers, {}, 10 * workers, plain=plain)[0][0]
    reduced = collect(by_all_reduce, workers, 10)[0][0]
    assert (weights - reduced).abs().max() <= 1e-12
    assert (weights - one_process(10)).abs().max() <= 1e-12
    assert set(clock.values()) == {10}
    assert [push.updated for push in heard].count(True) == 10
    assert {push.staleness for push in heard} == {0}


def test_momentum_of_a_sync_server_is_that_of_one_process():
    weights = server_rank(2, {"momentum": 0.9}, 20)[0][0][1]
    assert (weights - one_process(10, 0.9)).abs().max() <= 1e-12


@pytest.mark.parametrize("rule", ["sync", "async", "bounded"])
def test_one_worker_is_plain_sgd_to_the_last_bit(rule):
    weights = server_rank(1, {"rule": rule}, 25, dtype=torch.float32)[0][0][1]
    model = small(dtype=torch.float32)
    plain, gradients = flatten(model)
    for batch in range(25):
        plain.add_(gradient_of(model, gradients, *samples(batch, torch.float32)), alpha=-RATE)
    assert torch.equal(weights, plain)
    assert (weights - one_process(25, dtype=torch.float32)).abs().max() < 1e-6


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "async"},
        {"rule": "async", "momentum": 0.5, "lag": 3},
        {"rule": "async", "discount": True},
        {"rule": "bounded", "bound": 2},
        {"rule": "sync"},
    ],
)
@pytest.mark.parametrize("workers", [2, 3])
def test_a_race_replayed_in_one_process_ends_in_the_same_bits(options, workers):
    dtype = torch.float32
    heard, weights, clock, _ = server_rank(workers, options, 120, dtype=dtype)[0][0]
    model = small(dtype=dtype)
    held, gradients = flatten(model)

    def gradient(weights, worker, batch):
        held.copy_(weights)
        x, y, share = part(batch, worker, workers, dtype)
        return gradient_of(model, gradients, x, y), share

    again = Server(held.clone(), range(1, workers + 1), rate=RATE, **options)
    assert torch.equal(replay([push.worker for push in heard], again, gradient), weights)
    assert again.clock == clock
    assert len(heard) == 120
    assert [push.batch for push in heard] == list(numbered([push.worker for push in heard]))


def numbered(workers):
    """The number of each worker's pushes before each."""
    before = dict.fromkeys(workers, 0)
    for worker in workers:
        yield before[worker]
        before[worker] += 1


def test_async_goes_on_while_the_slow_worker_sleeps_and_bounded_does_not():
    clocks, ahead = {}, {}
    for rule in ("sync", "bounded", "async"):
        options = {"rule": rule, "bound": 3}
        heard, _, clocks[rule], _ = server_rank(2, options, 60, slow=0.02)[0][0]
        lead = itertools.accumulate(1 if push.worker == 1 else -1 for push in heard)
        ahead[rule] = max(lead)
    assert clocks["sync"] == {1: 30, 2: 30}
    assert ahead["sync"] <= 1
    assert ahead["bounded"] == 4  # three, and the one under way
    assert clocks["async"][2] < clocks["async"][1] / 2


def test_in_turn_the_fast_worker_waits_for_the_slow_one():
    clock = server_rank(2, {"rule": "async"}, 20, slow=0.01, plain=True)[0][0][2]
    assert clock == {1: 10, 2: 10}


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_mean_staleness_is_the_number_of_other_workers(workers):
    """Each update ages all gradients under way: none is lost, in whatever order they arrive."""
    server = Server(torch.zeros(1), range(workers), rate=1.0, rule="async")
    coin, pulled, staleness = random.Random(0), dict.fromkeys(range(workers), 0), []
    for number in range(500):
        worker = min(coin.randrange(workers), coin.randrange(workers))  # some are faster
        arrive(server, worker)
        staleness.append(server.staleness)
        pulled[worker] = number + 1
    under_way = sum(500 - version for version in pulled.values())
    assert sum(staleness) + under_way == 500 * (workers - 1)


def test_no_push_is_asked_for():
    heard, weights, clock, _ = server_rank(2, {"rule": "async"}, 0)[0][0]
    assert (heard, clock) == ([], {1: 0, 2: 0})
    assert torch.equal(weights, flatten(small())[0])


def test_every_byte_is_counted():
    heard, weights, _, _ = server_rank(2, {}, 20)[0][0]
    number = weights.numel()
    moved = sum(push.bytes for push in heard)
    # the workers' last answers are among them; headers are 2 numbers up and 1 down
    assert moved == 20 * 8 * (number + 2) + 20 * 8 * (number + 1)


# ---- what a server does without any rank ----


def arrive(server, *workers, gradient=1.0, share=1.0):
    """Pushes of ones; who was answered after each."""
    answered = []
    for worker in workers:
        server.apply(torch.full_like(server.weights, gradient), worker, share)
        answered.append(server.ready())
    return answered


def test_who_is_answered_when():
    assert arrive(Server(torch.zeros(2), [1, 2, 3], rate=1.0), 2, 1, 3) == [[], [], [2, 1, 3]]
    async_ = Server(torch.zeros(2), [1, 2], rate=1.0, rule="async")
    assert arrive(async_, 1, 1, 2) == [[1], [1], [2]]
    bounded = Server(torch.zeros(2), [1, 2], rate=1.0, rule="bounded", bound=1)
    assert arrive(bounded, 1, 1, 2) == [[1], [], [1, 2]]
    lockstep = Server(torch.zeros(2), [1, 2], rate=1.0, rule="bounded", bound=0)
    assert arrive(lockstep, 1, 2) == [[], [1, 2]]


def test_lag_hands_out_old_weights():
    server = Server(torch.zeros(1), [1], rate=1.0, rule="async", lag=2)
    handed = []
    for _ in range(5):
        arrive(server, 1)
        handed.append(server.handed_out.item())
    assert handed == [0, 0, -1, -2, -3]
    assert server.weights.item() == -5
    assert server.staleness == 2


def test_discount_divides_by_one_plus_staleness():
    server = Server(torch.zeros(1), [1, 2], rate=1.0, rule="async", discount=True)
    arrive(server, 1, 1, 1, 2)
    assert server.staleness == 3
    assert server.weights.item() == -3.25


def test_a_push_that_is_not_finite_is_refused_and_the_others_go_on():
    bad = float("nan")
    sync = Server(torch.zeros(2), [1, 2], rate=1.0)
    arrive(sync, 1, share=0.5)
    assert arrive(sync, 2, share=0.5, gradient=bad) == [[1, 2]]
    assert sync.weights.tolist() == [-1, -1]  # worker 1 alone makes up the average
    arrive(sync, 1, 2, gradient=math.inf)
    assert (sync.weights.tolist(), sync.version) == ([-1, -1], 1)
    async_ = Server(torch.zeros(2), [7], rate=1.0, rule="async")
    assert arrive(async_, 7, gradient=bad) == [[7]]
    assert async_.weights.tolist() == [0, 0]
    assert async_.refused == ["push 1 of worker 7 is not finite"]


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (lambda: Server(torch.zeros(1), [], rate=1.0), "workers: a server needs at least one"),
        (lambda: Server(torch.zeros(1), [1], rate=1.0, bound=-1), "bound, lag: -1, 0; both must"),
        (lambda: Server(torch.zeros(1), [1], rate=1.0, lag=-1), "bound, lag: 0, -1; both must"),
        (lambda: arrive(Server(torch.zeros(1), [1], rate=1.0), 2), "worker 2 is unknown, or"),
        (
            lambda: arrive(Server(torch.zeros(1), [1, 2], rate=1.0), 1, 1),
            "worker 1 is unknown, or pushes before it was answered",
        ),
        (
            lambda: Server(torch.zeros(2), [1], rate=1.0).apply(torch.zeros(3), 1, 1.0),
            r"worker 1 pushes \[3\], not \[2\]",
        ),
        (
            lambda: list(ps.delayed(lambda w, i: w, torch.ones(1), 0.1, 10, 10)),
            "lag: 10 is not within 0 and the 10 updates",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(act, why):
    with pytest.raises(ValueError, match=why) as told:
        act()
    assert "\n" not in str(told.value)


def test_ranks_with_other_weights_are_refused_before_anything_is_sent():
    def differing():
        meet(torch.zeros(3 + dist.get_rank()))

    with pytest.raises(
        RankFailed, match=r"rank 0 has 3 weights of torch\.float32, 0 notes; rank 1"
    ) as failed:
        list(launch(differing, 2))
    assert isinstance(failed.value.cause, RanksDiffer)


def test_a_flat_model_trains_as_before():
    plain, flat = small(), small()
    weights, gradients = flatten(flat)
    x, y = samples(0)
    for model in (plain, flat):
        mse_loss(model(x), y).backward()
    assert torch.equal(gradients, torch.cat([p.grad.flatten() for p in plain.parameters()]))
    weights.add_(gradients, alpha=-1.0)
    moved = [p - p.grad for p in plain.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(flat.parameters(), moved, strict=True))


# ---- without a server ----


def local(every, updates):
    rank, world = dist.get_rank(), dist.get_world_size()
    ours, theirs = small(), small()
    weights, gradients = flatten(ours)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=RATE)
    averager = PeriodicModelAverager(period=every, warmup_steps=every - 1)
    for number in range(updates):
        x, y = samples(number * world + rank, n=4)
        gradient = gradient_of(ours, gradients, x, y)
        ps.local_update(weights, gradient, RATE, number, every, 1 / world)
        optimizer.zero_grad()
        mse_loss(theirs(x), y).backward()
        optimizer.step()
        averager.average_parameters(theirs.parameters())
    return weights, (weights - flatten(theirs)[0]).abs().max().item()


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.filterwarnings("ignore")
def test_local_sgd_is_torch_s_periodic_averaging(every):
    found = [value for _, value in launch(local, 2, every, 10)]
    assert max(off for _, off in found) <= 1e-12
    assert torch.equal(found[0][0], found[1][0]) == (10 % every == 0)


def local_every_time(updates):
    rank, world = dist.get_rank(), dist.get_world_size()
    model = small()
    weights, gradients = flatten(model)
    for number in range(updates):
        x, y, share = part(number, rank + 1, world)
        gradient = gradient_of(model, gradients, x, y)
        ps.local_update(weights, gradient, RATE, number, 1, share)
    return weights


def test_local_sgd_that_averages_each_time_is_an_all_reduce_whatever_the_shares():
    ours = collect(local_every_time, 3, 10)[0][0]
    assert (ours - collect(by_all_reduce, 3, 10)[0][0]).abs().max() <= 1e-12


def quadratic(curvatures, rate, lag, updates):
    """‖w‖ at the end, over that at the start."""
    curvatures = torch.tensor(curvatures, dtype=torch.float64)
    start = torch.ones_like(curvatures)
    *_, last = ps.delayed(lambda w, _: curvatures * w, start, rate, lag, updates)
    return float(last.norm() / start.norm())


@pytest.mark.parametrize("lag", [0, 1, 2, 4, 8, 16])
def test_the_largest_stable_rate_under_a_lag(lag):
    limit = ps.largest_rate(4.0, lag)
    assert quadratic([4.0, 0.5], 0.98 * limit, lag, 400 * (1 + lag)) < 0.5
    assert quadratic([4.0, 0.5], 1.02 * limit, lag, 400 * (1 + lag)) > 2


def test_delayed_takes_the_gradient_where_it_should():
    seen = []
    list(ps.delayed(lambda w, i: seen.append(w.item()) or torch.ones(1), torch.zeros(1), 1.0, 2, 5))
    assert seen == [0, 0, 0, -1, -2]


def test_the_pace_of_workers_that_wait_and_that_do_not():
    assert ps.gradients_per_second([0.5, 0.25], waits=True) == 4
    assert ps.gradients_per_second([0.5, 0.25], waits=False) == 6


def test_a_round_adds_up_alike_in_whatever_order_it_arrives():
    pushes = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    ends = []
    for order in itertools.permutations([1, 2, 3]):
        server = Server(torch.zeros(50), [1, 2, 3], rate=1.0)
        for worker in order:
            server.apply(pushes[worker - 1], worker, 1 / 3)
        ends.append(server.weights)
    assert all(torch.equal(end, ends[0]) for end in ends[1:])


# ---- the experiment ----


def some_steps(n=30, **dials):
    steps = run(Knobs(**{"width": 16, "batch_size": 8, "slow": 0.0, "timeout": 20.0} | dials))
    try:
        return list(itertools.islice(steps, n))
    finally:
        steps.close()


@pytest.mark.parametrize("mode", ["all-reduce", "sync", "bounded", "async", "local"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_run_in_each_mode(mode, ranks):
    workers, seen = ranks - 1, set[int]()
    lanes = set(range(workers if mode in ("all-reduce", "local") else ranks))
    knobs = Knobs(width=16, batch_size=8, slow=0.0, timeout=20.0, ranks=ranks, mode=mode)
    with contextlib.closing(run(knobs)) as going:
        steps = list(itertools.islice(going, 30))
        for step in itertools.chain(steps, itertools.islice(going, 5000)):  # timelines are rare
            seen |= {span.rank for span in step.spans}
            if seen == lanes:
                break
    number = sum(p.numel() for p in models.mlp(784, 16, 16, 10).parameters())
    each = 1 if mode in ("async", "bounded") else workers
    assert [step.index for step in steps] == list(range(30))
    assert all(step.samples == 8 * each for step in steps)
    assert [step.metrics["gradients"] for step in steps] == [each * (i + 1) for i in range(30)]
    assert any("accuracy_5_9" in step.metrics for step in steps)
    assert seen == lanes
    moved = sum(step.metrics["bytes_moved"] for step in steps)
    if mode in ("sync", "async"):
        assert moved == each * 30 * (2 * 4 * number + 8 * (HEADER + NOTES + 1))
    if mode == "all-reduce":
        assert moved == 30 * 2 * (2 * (workers - 1) * 4 * number // workers)
    if mode == "local":
        assert moved == 3 * 2 * (2 * (workers - 1) * 4 * number // workers)


@pytest.mark.parametrize("mode", ["sync", "bounded", "async"])
@pytest.mark.parametrize("options", [{}, {"lag": 2}, {"momentum": 0.5}, {"discount": True}])
def test_every_update_is_the_one_of_its_pushes(mode, options):
    for step in some_steps(mode=mode, twin=True, slow=2.0, **options):
        assert step.metrics["update_error"] == 0


@pytest.mark.parametrize("lag", [0, 8])
def test_a_lag_makes_every_push_that_much_older(lag):
    found = [step.metrics["staleness"] for step in some_steps(60, mode="sync", lag=lag)]
    assert found[-20:] == [lag] * 20


@pytest.mark.parametrize(
    ("mistake", "mode"),
    [
        ("lost update", "async"),
        ("lost update", "bounded"),
        ("sum instead of mean", "sync"),
        ("sum instead of mean", "async"),
        ("momentum on the server", "async"),
        ("momentum on the server", "sync"),
    ],
)
def test_a_mistake_shows_in_the_updates(mistake, mode):
    steps = some_steps(mode=mode, mistake=mistake, twin=True, slow=2.0)
    assert max(step.metrics["update_error"] for step in steps) > 0.5


def test_a_forgotten_bound_shows_in_who_is_ahead():
    ahead = {
        mistake: max(
            step.metrics["ahead"]
            for step in some_steps(60, mode="bounded", mistake=mistake, slow=20.0)
        )
        for mistake in ("none", "forgotten bound")
    }
    assert ahead["none"] == 5 < 10 < ahead["forgotten bound"]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_run_goes_on_without_the_pushes_that_are_not_finite(mode):
    last = some_steps(60, mode=mode, mistake="one worker's NaN", twin=True)[-1]
    assert last.metrics["refused"] >= 4
    assert last.metrics["update_error"] == 0


def all_nan():
    experiment.mishap = lambda trainer, *_: trainer.gradients.fill_(math.nan)
    knobs = Knobs(width=16, batch_size=8, slow=0.0, mode="async")
    yield from experiment.serve_or_work(knobs, datasets.mnist5k())


def test_a_run_without_a_finite_gradient_ends():
    with pytest.raises(NonFiniteLoss):
        some_steps(40, mode="all-reduce", mistake="one worker's NaN")
    with pytest.raises(RankFailed, match="no worker's gradient is finite at push 5") as failed:
        list(launch(all_nan, 3))
    assert isinstance(failed.value.cause, NonFiniteLoss)


@pytest.mark.parametrize(
    ("mode", "mistake", "why"),
    [
        ("sync", "dying worker", "rank 2 of 3 was killed by SIGKILL"),
        ("bounded", "dying worker", "rank 2 of 3 was killed by SIGKILL"),
        ("async", "dying server", "rank 0 of 3 was killed by SIGKILL"),
        ("all-reduce", "dying worker", "rank 1 of 2 was killed by SIGKILL"),
    ],
)
def test_who_has_died_is_said_in_one_line(mode, mistake, why):
    began = time.monotonic()
    with pytest.raises(RankFailed) as failed:
        some_steps(400, mode=mode, mistake=mistake)
    assert failed.value.headline == why
    assert time.monotonic() - began < 15  # and not the 20 s of the timeout


def test_an_async_run_goes_on_without_a_dead_worker():
    steps = some_steps(400, mode="async", mistake="dying worker")
    assert [len(steps), steps[0].metrics["lost"], steps[-1].metrics["lost"]] == [400, 0, 1]
    assert steps[-1].metrics["slow_share"] < 0.1  # ten pushes, and none since


def the_last_worker_dies(pushes, amid):
    rank = dist.get_rank()
    weights = torch.zeros(100)
    meet(weights)
    if rank == 0:
        server = Server(weights, (1, 2), rate=1.0, rule="async")
        return [push.worker for push in serve(server, pushes)], weights[0].item()

    def compute(batch):
        if rank == 2 and batch == 3:
            if amid:
                dist.send(torch.tensor([3.0, 0.5], dtype=torch.float64), 0, tag=NOTE)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
        return torch.ones(100), 0.5, ()

    return work(compute, weights)


@pytest.mark.parametrize("amid", [False, True])
def test_a_server_ends_although_a_worker_has_died(amid):
    answers = dict(launch(the_last_worker_dies, 3, 100, amid, may_die={2}, timeout=20.0))
    heard, weight = answers[0]
    assert (len(heard), heard.count(2), weight) == (100, 3, -50.0)
    assert answers[1] == 97
    assert answers[2].headline == "rank 2 of 3 was killed by SIGKILL"


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (torch.zeros(3), "compute gives [3] of torch.float32 and 0 notes, not [4]"),
        (torch.zeros(4).double(), "compute gives [4] of torch.float64 and 0 notes, not [4]"),
    ],
)
def test_a_gradient_of_another_kind_is_not_sent(wrong, line):
    with pytest.raises(ValueError, match=re.escape(line)):
        work(lambda batch: (wrong, 1.0, ()), torch.zeros(4))


def test_a_stuck_worker_stops_a_sync_run_and_not_an_async_one():
    with pytest.raises(RankFailed) as failed:
        some_steps(400, mode="sync", mistake="stuck worker", timeout=3.0)
    late = "worker 2 pushes no more, and all others wait"
    assert failed.value.headline == f"rank 0 of 3 raised TimeoutError: {late}"
    steps = some_steps(100, mode="async", mistake="stuck worker", timeout=3.0)
    assert len(steps) == 100


def test_who_steps_through_a_run_may_pause():
    steps = run(Knobs(width=16, batch_size=8, slow=0.0, mode="async", timeout=2.0))
    with contextlib.closing(steps):
        list(itertools.islice(steps, 10))
        time.sleep(5)
        assert len(list(itertools.islice(steps, 20))) == 20


def test_nothing_is_left_behind():
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    threads = threading.active_count()
    some_steps(5)  # starts the fork server, which stays
    server = {child.pid for child in psutil.Process().children(recursive=True)} - before
    some_steps(5, mode="async")
    left = {child.pid for child in psutil.Process().children(recursive=True)} - before
    assert left == server
    assert threading.active_count() == threads


def test_a_run_resumes_from_its_checkpoint(tmp_path):
    dials = {"checkpoint": str(tmp_path / "run.pt"), "checkpoint_every": 4, "mode": "sync"}
    whole = [step.metrics["loss"] for step in some_steps(10)]
    first = some_steps(6, **dials)
    resumed = some_steps(6, **dials)
    assert [step.index for step in resumed] == [4, 5, 6, 7, 8, 9]
    found = [step.metrics["loss"] for step in (*first[:4], *resumed)]
    assert found == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize(
    ("dials", "why"),
    [
        ({"ranks": 1}, "ranks: 1 process is a server without a worker: take 2 or more"),
        ({"bound": -1}, "bound: should be greater than or equal to 0"),
        ({"lag": 3}, "lag: should be 0, 1, 2, 4, 8 or 16"),
        ({"lag": 2, "mode": "local"}, "lag: needs a server: mode sync, bounded, async"),
        ({"twin": True, "mode": "local"}, "mode: a server repeats each update here"),
        ({"mistake": "lost update", "mode": "all-reduce"}, "mistake: needs a server"),
        ({"mistake": "forgotten bound"}, "mistake: 'forgotten bound' needs mode bounded"),
        ({"device": "cuda"}, "device: a server answers whoever comes first, on the CPU"),
    ],
)
def test_knobs_that_cannot_be(dials, why):
    with pytest.raises(KnobError) as told:
        Knobs(**dials)
    assert str(told.value).startswith(why)
    assert "\n" not in str(told.value)


def test_under_torchrun_a_server_is_refused(monkeypatch):
    monkeypatch.setattr(experiment, "under_torchrun", lambda: True)
    with pytest.raises(KnobError, match="mode: torchrun's ranks keep in step"):
        next(run(Knobs(mode="async")))


def test_each_worker_has_its_digits_and_every_rank_the_same_batches():
    digits = datasets.mnist5k()
    for workers in (1, 2, 3):
        trainers = [Trainer(Knobs(shards="by digit", seed=3), digits, workers) for _ in range(2)]
        for worker in range(1, workers + 1):
            (x, y), (again, _) = (trainer.batch(worker, 5) for trainer in trainers)
            assert torch.equal(x, again)
            if workers > 1:
                assert bool((y >= 5).all() if worker == workers else (y < 5).all())
            assert not torch.equal(x, trainers[0].batch(worker, 6)[0])


def test_an_outcome_in_each_mode_agrees_with_a_run():
    knobs = [Knobs(width=16, batch_size=8, slow=0.0, mode=mode) for mode in MODES]
    found = dict(zip(MODES, experiment.outcomes(knobs, 20), strict=True))
    assert all(sum(outcome.clock.values()) == 20 for outcome in found.values())
    assert found["sync"][2:4] == pytest.approx(found["all-reduce"][2:4], abs=0.01)
    assert [len(outcome.pushes) for outcome in found.values()] == [0, 20, 20, 20, 0]
    assert all(outcome.seconds > 0 for outcome in found.values())


def test_the_pace_of_local_sgd_is_that_of_whole_periods():
    """Most of its updates wait for nobody: the sleep of the other worker shows in every eighth."""
    knobs = Knobs(width=16, batch_size=8, slow=50.0, mode="local", every=8, timeline=False)
    with contextlib.closing(run(knobs)) as steps:
        paces = [next(steps).metrics["pace"] for _ in range(24)]
    assert all(math.isnan(pace) for pace in paces[:7])
    assert max(paces[8:]) < 1.5 * experiment.predicted_pace(knobs, 0.001)


def test_the_predicted_pace():
    assert experiment.predicted_pace(Knobs(mode="sync", slow=10.0), 0.01) == pytest.approx(100)
    assert experiment.predicted_pace(Knobs(mode="async", slow=10.0), 0.01) == pytest.approx(150)
