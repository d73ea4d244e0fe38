"""A push and a pull against torch.distributed.rpc; rounds with a server against an all-reduce;
local SGD against torch's averager; and the pace of workers, one of them slow, against its formula.

Each rank has one thread. What a program leaves is compared with its peer's before any is timed.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from statistics import median

import torch
import torch.distributed as dist
import torch.distributed.rpc as rpc
from torch import Tensor
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from accel_lab.experiments import parameter_server as experiment
from accel_lab.parameter_server import (
    Server,
    flatten,
    gradients_per_second,
    local_update,
    serve,
    work,
)
from accel_lab.workbench import models
from accel_lab.workbench.measure.race import compared, race_on_ranks
from accel_lab.workbench.ranks.launch import launch
from accel_lab.workbench.ranks.rank import shared_between_ranks

SIZES = {"0.5 MB": 130_000, "7.4 MB": 1_860_000}
WIDTHS = (64, 512)
RATE, PER_WORKER, ROUNDS, EVERY = 0.01, 32, 8, 8
OURS, RPC, SHARED, BARE = "push and pull", "torch.distributed.rpc", "shared memory", "bare messages"
SYNC, ASYNC, REDUCED = "sync server", "async server", "one flat all-reduce"
DDP, ALONE = "DistributedDataParallel", "no communication"
LOCAL, THEIRS = "local SGD", "torch's PostLocalSGDOptimizer"


def cases(rounds: int = 25) -> Iterator[str]:
    for size, n in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:  # where the two of rpc meet
            where = f"file://{folder}/rpc"
            seconds = dict(launch(time_messages, 2, n, rounds, where, timeout=300.0))[0]
        for peer in (RPC, SHARED, BARE):
            yield compared(seconds, OURS, peer).line(f"{OURS} of {size}", peer)
    for width in WIDTHS:
        seconds = dict(launch(time_rounds, 3, width, rounds, timeout=300.0))[0]
        for way in (SYNC, ASYNC):
            for peer in (REDUCED, DDP, ALONE):
                case = f"{2 * ROUNDS} gradients of 2 workers, width {width}, {way}"
                yield compared(seconds, way, peer).line(case, peer)
        seconds = dict(launch(time_local, 2, width, rounds, timeout=300.0))[0]
        for peer in (THEIRS, DDP, ALONE):
            case = f"{EVERY} updates of 2 workers, width {width}, {LOCAL}"
            yield compared(seconds, LOCAL, peer).line(case, peer)
    yield from paces()


# ---- a push and a pull ----

KEPT = Tensor()  # the weights of a server that is asked through rpc


def push_pull(gradient: Tensor) -> Tensor:
    return KEPT.add_(gradient, alpha=-RATE)


def time_messages(n: int, rounds: int, where: str, exchanges: int = 8) -> dict[str, list[float]]:
    """A call is so many pushes and pulls of one worker."""
    global KEPT
    rank = dist.get_rank()
    weights, gradient, inbox = torch.zeros(n), torch.ones(n), torch.zeros(n)
    pages, note = shared_between_ranks(n, torch.float32), torch.zeros(1)
    KEPT = torch.zeros(n)

    def ours() -> None:
        if rank:
            work(lambda batch: (gradient, 1.0, ()), weights)
        else:
            list(serve(Server(weights, [1], rate=RATE, rule="async"), exchanges))

    def bare() -> None:
        for _ in range(exchanges):
            if rank:
                dist.send(gradient, 0)
                dist.recv(inbox, 0)
            else:
                dist.recv(inbox)
                dist.send(weights.add_(inbox, alpha=-RATE), 1)

    def through_memory() -> None:
        """The worker writes its gradient where the server reads it, and reads the weights there."""
        for _ in range(exchanges):
            if rank:
                pages[1].copy_(gradient)
                dist.send(note, 0)
                dist.recv(note, 0)
                inbox.copy_(pages[0])
            else:
                dist.recv(note)
                pages[0].add_(pages[1], alpha=-RATE)
                dist.send(note, 1)

    def through_rpc() -> None:
        for _ in range(exchanges * rank):
            inbox.copy_(rpc.rpc_sync("rank0", push_pull, args=(gradient,)))

    options = rpc.TensorPipeRpcBackendOptions(init_method=where, num_worker_threads=2)
    os.environ["TP_SOCKET_IFNAME"] = "lo"
    rpc.init_rpc(f"rank{rank}", rank=rank, world_size=2, rpc_backend_options=options)
    ours(), through_rpc()
    if rank:
        assert torch.equal(weights, inbox)
    programs = {OURS: ours, RPC: through_rpc, SHARED: through_memory, BARE: bare}
    seconds = race_on_ranks(programs, rounds, calls=1)
    rpc.shutdown()
    return seconds


# ---- rounds of two workers, with a server and without ----


class Worker:
    """A flat model and a batch of this rank; all ranks begin with the same weights."""

    def __init__(self, width: int):
        torch.manual_seed(0)
        self.model = models.mlp(784, width, width, 10)
        self.weights, self.gradients = flatten(self.model)
        torch.manual_seed(1 + dist.get_rank())
        self.x, self.y = torch.randn(PER_WORKER, 784), torch.randint(10, (PER_WORKER,))

    def gradient(self) -> Tensor:
        self.gradients.zero_()
        cross_entropy(self.model(self.x), self.y).backward()
        return self.gradients


def time_rounds(width: int, rounds: int) -> dict[str, list[float]]:
    """A call is ``ROUNDS`` gradients of each worker; rank 0 has nothing to do without a server.

    The ranks meet before each: a push of the next run would be taken for a late one of this.
    """
    rank, workers = dist.get_rank(), dist.new_group([1, 2])
    built = {way: Worker(width) for way in (SYNC, ASYNC, REDUCED, ALONE)}

    def served(one: Worker, rule: str) -> Callable[[], None]:
        def program() -> None:
            if rank:
                work(lambda batch: (one.gradient(), 1 / 2, ()), one.weights)
            else:
                list(serve(Server(one.weights, [1, 2], rate=RATE, rule=rule), 2 * ROUNDS))

        return program

    def updates(one: Worker, together: bool) -> Callable[[], None]:
        def program() -> None:
            for _ in range(ROUNDS if rank else 0):
                gradient = one.gradient()
                if together:
                    dist.all_reduce(gradient.mul_(1 / 2), group=workers)
                one.weights.add_(gradient, alpha=-RATE)

        return program

    programs = {
        SYNC: served(built[SYNC], "sync"),
        ASYNC: served(built[ASYNC], "async"),
        REDUCED: updates(built[REDUCED], True),
        ALONE: updates(built[ALONE], False),
    }
    programs[DDP], theirs = _with_ddp(width, workers, ROUNDS if rank else 0)
    for way in (SYNC, REDUCED, DDP):
        _after_meeting(programs[way])
    if rank:
        torch.testing.assert_close(built[SYNC].weights, built[REDUCED].weights, rtol=0, atol=1e-6)
        torch.testing.assert_close(built[SYNC].weights, theirs(), rtol=0, atol=1e-6)
    met = {way: partial(_after_meeting, program) for way, program in programs.items()}
    return race_on_ranks(met, rounds, calls=1)


def _after_meeting(program: Callable[[], None]) -> None:
    dist.all_reduce(torch.zeros(1))
    program()


def _with_ddp(
    width: int, workers: dist.ProcessGroup | None, updates: int
) -> tuple[Callable[[], None], Callable[[], Tensor]]:
    """So many updates by torch, and its weights."""
    one = Worker(width)
    if not updates:
        return lambda: None, lambda: one.weights
    torch.manual_seed(0)
    model = models.mlp(784, width, width, 10)
    forward = DistributedDataParallel(model, process_group=workers, gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def program() -> None:
        for _ in range(updates):
            optimizer.zero_grad()
            cross_entropy(forward(one.x), one.y).backward()
            optimizer.step()

    return program, lambda: torch.nn.utils.parameters_to_vector(model.parameters())


def time_local(width: int, rounds: int, calls: int = 2) -> dict[str, list[float]]:
    """A call is ``EVERY`` updates of each worker, and then an average of their weights."""
    ours, alone = Worker(width), Worker(width)
    programs: dict[str, Callable[[], None]] = {}

    def local() -> None:
        for number in range(EVERY):
            local_update(ours.weights, ours.gradient(), RATE, number, EVERY, 1 / 2)

    def by_itself() -> None:
        for _ in range(EVERY):
            alone.weights.add_(alone.gradient(), alpha=-RATE)

    one, (torch_s, weights) = Worker(width), _post_local(width)
    programs = {LOCAL: local, THEIRS: lambda: torch_s(one), ALONE: by_itself}
    programs[DDP] = _with_ddp(width, None, EVERY)[0]
    local(), programs[THEIRS]()
    torch.testing.assert_close(ours.weights, weights(), rtol=0, atol=1e-6)
    return race_on_ranks(programs, rounds, calls)


def _post_local(width: int) -> tuple[Callable[[Worker], None], Callable[[], Tensor]]:
    torch.manual_seed(0)
    model = models.mlp(784, width, width, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it will be moved
        averager = PeriodicModelAverager(period=EVERY, warmup_steps=EVERY - 1)
        optimizer = PostLocalSGDOptimizer(torch.optim.SGD(model.parameters(), lr=RATE), averager)

    def updates(one: Worker) -> None:
        for _ in range(EVERY):
            optimizer.zero_grad()
            cross_entropy(model(one.x), one.y).backward()
            optimizer.step()

    return updates, lambda: torch.nn.utils.parameters_to_vector(model.parameters())


# ---- one worker sleeps ----


def paces(slow: float = 50.0, updates: int = 60, repeats: int = 5) -> Iterator[str]:
    """Gradients per second beside what the workers' own seconds lead one to expect."""
    base = experiment.Knobs(slow=slow, timeline=False, judge_every=10**6)
    alone = base.turned(ranks=2, slow=0.0)
    per_gradient = 1 / median(_pace(alone, updates) for _ in range(repeats))
    seconds = [per_gradient, per_gradient + slow / 1e3]
    for mode in ("all-reduce", "sync", "bounded", "async"):
        found = [_pace(base.turned(mode=mode), updates) for _ in range(repeats)]
        predicted = gradients_per_second(seconds, waits=mode != "async")
        yield (
            f"one of 2 workers asleep {slow:g} ms, {mode}: {median(found):.0f} gradients/s "
            f"({min(found):.0f}–{max(found):.0f} in {repeats} runs), predicted {predicted:.0f}"
        )


def _pace(knobs: experiment.Knobs, updates: int) -> float:
    with closing(experiment.run(knobs)) as steps:
        return [step.metrics["pace"] for step in islice(steps, updates)][-1]


if __name__ == "__main__":
    for line in cases():
        print(line, flush=True)
