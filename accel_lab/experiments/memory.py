"""Training in less memory: a deep chain in segments, what else fills the memory, and mistakes."""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import islice
from statistics import median
from typing import Literal, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint_sequential

from accel_lab.ddp import DataParallel, sharded, trainable
from accel_lab.memory import (
    ShardedInSharedMemory,
    ShardedOptimizer,
    cut,
    in_segments,
    keep_all,
    recompute,
    step_in_backward,
)
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.device import pick_device
from accel_lab.workbench.knobs import KnobError, TrainingKnobs, dial
from accel_lab.workbench.loop import train
from accel_lab.workbench.measure.memory_meter import ActivationMeter, memory_of
from accel_lab.workbench.ranks.launch import collect
from accel_lab.workbench.ranks.world import RankKnobs, launch_steps, side_by_side
from accel_lab.workbench.step import Step

WIDTH, TOKENS, TOKEN_WIDTH = 128, 7, 16
Rule = Callable[[nn.ModuleList, Tensor], Tensor]  # runs blocks, one after another
Setting = TypeVar("Setting", bound=Hashable)

# ---- a chain of blocks ----


class Thin(nn.Sequential):
    """[n, WIDTH] → the same shape: linear and ReLU. Backward needs one tensor of each block."""

    def __init__(self, *inside: nn.Module):
        linear = nn.Linear(WIDTH, WIDTH)
        nn.init.kaiming_normal_(linear.weight)
        super().__init__(linear, *inside, nn.ReLU())


class ResidualBlock(nn.Module):
    """x → x + relu(linear(x)). Backward needs two tensors of each block."""

    def __init__(self, *inside: nn.Module):
        super().__init__()
        linear = nn.Linear(WIDTH, WIDTH)
        with torch.no_grad():  # small steps away from x: as deep a chain as this stays trainable
            linear.weight.mul_(0.5)
        self.branch = nn.Sequential(linear, *inside, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Rows(nn.Module):
    """[n, 1, 28, 28] → [n, TOKENS, 784 / TOKENS]: a few rows of the picture make a token."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).unflatten(1, (TOKENS, -1))


class Mean(nn.Module):
    """[n, tokens, width] → [n, width]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Chain(nn.Module):
    """[n, 1, 28, 28] → [n, 10]: a layer, blocks that ``rule`` runs, and a layer."""

    def __init__(self, knobs: Knobs):
        super().__init__()
        if knobs.block == "transformer":
            self.first = nn.Sequential(Rows(), nn.Linear(784 // TOKENS, TOKEN_WIDTH))
            self.head = nn.Sequential(Mean(), nn.Linear(TOKEN_WIDTH, 10))
        else:
            self.first = nn.Sequential(nn.Flatten(), nn.Linear(784, WIDTH))
            self.head = nn.Linear(WIDTH, 10)
        one = [block_of(knobs)] * knobs.blocks
        several = [block_of(knobs) for _ in range(knobs.blocks - 1)]
        self.blocks = nn.ModuleList(one if knobs.shared else one[:1] + several)
        self.rule: Rule = keep_all

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rule(self.blocks, self.first(x)))


def block_of(knobs: Knobs) -> nn.Module:
    if knobs.block == "transformer":
        return models.transformer_block(TOKEN_WIDTH, heads=2, dropout=knobs.dropout)
    inside: list[nn.Module] = [nn.BatchNorm1d(WIDTH)] if knobs.batch_norm else []
    inside += [nn.Dropout(knobs.dropout)] if knobs.dropout else []
    return Thin(*inside) if knobs.block == "thin" else ResidualBlock(*inside)


# ---- the experiment ----


class Knobs(TrainingKnobs):
    segments: int = dial(
        1, ge=1, le=64, log=True, description="parts of the chain; 1 keeps all activations"
    )
    blocks: int = dial(36, ge=2, le=64, description="blocks in the chain")
    batch_size: int = dial(512, ge=8, le=1024, log=True, description="samples per update")
    block: Literal["residual", "thin", "transformer"] = dial(
        "residual", description="what the chain is made of"
    )
    mistake: Literal["none", "other masks", "statistics twice", "input without gradient"] = dial(
        "none", description="made on purpose"
    )
    learning_rate: float = dial(
        0.001, ge=1e-5, le=0.1, log=True, panel=False, description="step size of Adam"
    )
    dropout: float = dial(
        0.0, ge=0, lt=1, panel=False, description="share of each block's units that are dropped"
    )
    batch_norm: bool = dial(
        False, panel=False, description="batch normalization in each thin or residual block"
    )
    shared: bool = dial(False, panel=False, description="one block, used as often as there are")
    last_too: bool = dial(False, panel=False, description="forget the last segment, too")
    twin: bool = dial(
        False, panel=False, description="compare each gradient with that of keeping all"
    )

    @model_validator(mode="after")
    def _segments_fit(self) -> Knobs:
        if self.segments > self.blocks:
            fits = f"{self.segments} do not fit {self.blocks} blocks; choose {self.blocks} or fewer"
            raise KnobError("segments", fits)
        if self.batch_norm and self.block == "transformer":
            raise KnobError("batch_norm", "a transformer block has layer normalization")
        if self.mistake == "other masks" and not self.dropout:
            raise KnobError("mistake", "other masks need a dropout above 0 to be seen")
        if self.mistake == "statistics twice" and not self.batch_norm:
            raise KnobError("mistake", "statistics twice need batch_norm to be seen")
        return self


def rule_of(knobs: Knobs) -> Rule:
    """How the blocks are run."""
    k = knobs.segments
    if knobs.mistake == "other masks":
        return lambda blocks, x: in_segments(blocks, x, k, keep_rng=False)
    if knobs.mistake in ("statistics twice", "input without gradient"):
        return lambda blocks, x: torchs(blocks, x, k, knobs.mistake == "input without gradient")
    if knobs.last_too:
        return lambda blocks, x: all_forgotten(blocks, x, k)
    return lambda blocks, x: in_segments(blocks, x, k)


def torchs(blocks: nn.ModuleList, x: Tensor, segments: int, reentrant: bool = False) -> Tensor:
    """PyTorch's own. It updates running statistics in both passes. Its older, reentrant way finds
    no gradient for a segment whose input needs none; its warning of that is not shown here.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
        return checkpoint_sequential(list(blocks), segments, x, use_reentrant=reentrant)


def all_forgotten(blocks: nn.ModuleList, x: Tensor, segments: int) -> Tensor:
    """Forget the last segment as well, and compute it again at once."""
    for part in cut(blocks, segments):
        x = recompute(nn.Sequential(*part), x)
    return x


def start(knobs: Knobs) -> Chain:
    torch.manual_seed(knobs.seed)
    model = Chain(knobs)
    model.rule = rule_of(knobs)
    if knobs.mistake == "input without gradient":
        model.first.requires_grad_(False)  # as one freezes an embedding
    return model


def run(knobs: Knobs) -> Generator[Step, None, None]:
    """Train a deep chain on 4,000 MNIST digits by Adam until the generator is closed.

    Metrics of each Step:
    loss: mean over the batch.
    activation_bytes: most bytes that autograd held at once in an update, measured once.
    process_peak_bytes: by how much the process grew during that update.
    weight_bytes, gradient_bytes, state_bytes: of weights, gradients and Adam's state.
    error (with ``twin``): ‖g − g_all‖ / ‖g_all‖ of the gradient against keeping all, or the same of
    the running statistics, if that is larger.
    """
    device = pick_device(knobs.device)
    digits = datasets.mnist5k().to(device)
    model = start(knobs).to(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=knobs.learning_rate)
    truth: list[Tensor] = []

    def update(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach()}

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in digits.batches(knobs.batch_size, knobs.seed):
            truth[:] = kept_all(model, x, y) if knobs.twin else []
            yield x, y

    bytes_ = bytes_of_one_update(knobs, *next(digits.batches(knobs.batch_size, knobs.seed)))
    for step in train(update, batches()):
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        found.append(statistics_of(model))
        error = {"error": worst_error(found, truth)} if knobs.twin else {}
        yield replace(step, metrics={**step.metrics, **bytes_, **error})


def bytes_of_one_update(knobs: Knobs, x: Tensor, y: Tensor) -> dict[str, float]:
    """Measure on a model of its own, once: an update's size does not change."""
    model = start(knobs).to(x.device)
    optimizer = torch.optim.Adam(model.parameters())

    def update() -> None:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()

    return memory_of(update, model, x, y) | standing_bytes(model, optimizer)


def standing_bytes(model: nn.Module, optimizer: Optimizer) -> dict[str, float]:
    """Bytes that are there whatever the batch: of weights, gradients, and the optimizer's state."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    state = [v for kept in optimizer.state.values() for v in kept.values()]
    groups = {"weight": model.parameters(), "gradient": gradients, "state": state}
    return {
        f"{name}_bytes": float(sum(one.nbytes for one in tensors if isinstance(one, Tensor)))
        for name, tensors in groups.items()
    }


def kept_all(model: Chain, x: Tensor, y: Tensor) -> list[Tensor]:
    """The gradients that keeping all activations gives, and the running statistics after it.

    The model and the random numbers stay as they are.
    """
    before = [buffer.clone() for buffer in model.buffers()]
    rule, model.rule = model.rule, keep_all
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.random.fork_rng():
        gradients = torch.autograd.grad(cross_entropy(model(x), y), trained)
    truth = [*gradients, statistics_of(model)]
    model.rule = rule
    for buffer, old in zip(model.buffers(), before, strict=True):
        buffer.copy_(old)
    return truth


def statistics_of(model: nn.Module) -> Tensor:
    """All running means and variances, as one tensor."""
    floats = [buffer.flatten() for buffer in model.buffers() if buffer.is_floating_point()]
    return torch.cat(floats) if floats else torch.zeros(0)


def worst_error(found: list[Tensor], truth: list[Tensor]) -> float:
    """The gradient's relative error, or that of the statistics, whichever is larger."""

    def off(ours: list[Tensor], theirs: list[Tensor]) -> float:
        one, other = (torch.cat([part.flatten() for part in parts]) for parts in (ours, theirs))
        return float((one - other).norm() / other.norm()) if len(other) else 0.0

    return max(off(found[:-1], truth[:-1]), off(found[-1:], truth[-1:]))


# ---- predictions ----


class Kept(NamedTuple):
    """Bytes per sample: of a block, of what stands between two blocks, of what a segment keeps
    beside its blocks, and of what the last segment and the head keep beside theirs.
    """

    block: float
    boundary: float
    beside: float
    after: float


def kept_per_sample(knobs: Knobs) -> Kept:
    """Count on chains of one and of two blocks."""
    return _kept(knobs.block, knobs.dropout, knobs.batch_norm)


@cache
def _kept(block: str, dropout: float, batch_norm: bool) -> Kept:
    knobs = Knobs(block=block, dropout=dropout, batch_norm=batch_norm, blocks=2)
    digits = datasets.mnist5k()

    def peak(blocks: int, samples: int, with_head: bool) -> int:
        model, x = Chain(knobs), digits.train_x[:samples]
        model.blocks = model.blocks[:blocks]
        with ActivationMeter(model, x) as meter:
            out = model(x) if with_head else keep_all(model.blocks, model.first(x))
            out.sum().backward()
        return meter.peak

    def per_sample(blocks: int, with_head: bool) -> float:
        return (peak(blocks, 16, with_head) - peak(blocks, 8, with_head)) / 8

    one, two = per_sample(1, False), per_sample(2, False)
    boundary = TOKENS * TOKEN_WIDTH if block == "transformer" else WIDTH
    return Kept(two - one, 4.0 * boundary, 2 * one - two, per_sample(2, True) - 2 * (two - one))


def predicted_activation_bytes(knobs: Knobs) -> float:
    """Predict the peak, in bytes: a segment's own activations, and one input for each before it."""
    kept = kept_per_sample(knobs)
    sizes = [len(part) for part in cut(range(knobs.blocks), knobs.segments)]
    held = [kept.block * size + kept.boundary * place for place, size in enumerate(sizes)]
    ends = [kept.beside] * (len(sizes) - 1) + [kept.after]
    return knobs.batch_size * max(own + end for own, end in zip(held, ends, strict=True))


def best_number(knobs: Knobs) -> int:
    """The number of segments with the lowest predicted peak."""
    turned = {k: knobs.turned(segments=k) for k in range(1, knobs.blocks + 1)}
    return min(turned, key=lambda k: predicted_activation_bytes(turned[k]))


def predicted_time(knobs: Knobs) -> float:
    """Predict the time of an update, in those of keeping all: what is forgotten is run once more,
    and a forward pass is a third of an update.
    """
    forgotten = knobs.blocks - len(cut(range(knobs.blocks), knobs.segments)[-1])
    return 1 + forgotten / knobs.blocks / 3


# ---- what else the chapter measures ----


def updating(knobs: Knobs) -> Callable[[], None]:
    """Forward and backward of one batch, with a model of its own, to be timed."""
    model = start(knobs)
    x, y = next(datasets.mnist5k().batches(knobs.batch_size, knobs.seed))

    def update() -> None:
        model.zero_grad()
        cross_entropy(model(x), y).backward()

    return update


class Moment(NamedTuple):
    """One moment of an update: what has just been done with which block, and MiB held by each."""

    what: str
    block: int
    held: list[float]


def moments(knobs: Knobs) -> list[Moment]:
    """Record one update, block by block."""
    model = start(knobs)
    x, y = next(datasets.mnist5k().batches(knobs.batch_size, knobs.seed))
    meter = MeterOfBlocks(model, x, y)
    for place, block in enumerate(model.blocks):
        meter.watch(block, place)
    with meter:
        cross_entropy(model(x), y).backward()
    return meter.moments


class MeterOfBlocks(ActivationMeter):
    """Counts the bytes that autograd keeps for each block; the first that saves a tensor has it."""

    def __init__(self, *exist_anyway: nn.Module | Tensor):
        super().__init__(*exist_anyway)
        self.block, self.count = 0, 0
        self.held_by: Counter[int] = Counter()
        self.owner: dict[int, int] = {}
        self.inputs: dict[int, int] = {}  # of blocks that run without a graph: address → block
        self.moments: list[Moment] = []

    def watch(self, block: nn.Module, place: int) -> None:
        self.count += 1

        def enter(_: nn.Module, arguments: tuple[Tensor]) -> None:
            self.block, x = place, arguments[0]
            if not torch.is_grad_enabled():
                self.inputs[x.untyped_storage().data_ptr()] = place
                return
            self.inputs.clear()
            x.register_hook(lambda _: self.note("backward", place))

        def leave(*_: object) -> None:
            again = torch._C._current_graph_task_id() != -1
            self.note("forward again" if again else "forward", place)

        block.register_forward_pre_hook(enter)
        block.register_forward_hook(leave)

    def note(self, what: str, place: int) -> None:
        held = [self.held_by[block] / 2**20 for block in range(self.count)]
        self.moments.append(Moment(what, place, held))

    def _count(self, address: int, size: int, users: int) -> None:
        before = self.held
        super()._count(address, size, users)
        if self.held > before:
            self.owner[address] = self.inputs.get(address, self.block)
        if self.held != before:
            self.held_by[self.owner[address]] += self.held - before


def gradient_bytes_over_time(widths: tuple[int, ...], early: bool) -> list[float]:
    """Train an MLP by one batch of Adam; MiB of gradients that exist after each one is complete."""
    torch.manual_seed(0)
    model, held = models.mlp(*widths), []
    parameters = list(model.parameters())

    def count(_: Tensor) -> None:
        held.append(sum(p.grad.nbytes for p in parameters if p.grad is not None) / 2**20)

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(count)
    if early:
        step_in_backward(parameters, torch.optim.Adam)
    x, y = next(datasets.mnist5k().batches(8))
    cross_entropy(model(x), y).backward()
    return held


# ---- new memory, and memory that was used before ----

# mallopt's: from which size on memory is asked from the system, and from which on it is given back
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def has_pool() -> bool:
    """Can this system's allocator be told to keep what is freed? glibc's can."""
    if sys.platform != "linux":
        return False
    with suppress(OSError):
        return hasattr(ctypes.CDLL(None), "mallopt")
    return False


def new_pages(pool: bool, size: int, times: int) -> float:
    """Add to so many float32 numbers, again and again, each time into new memory: a worker.

    pool: tell the allocator to keep all that is freed. This holds for the whole process and cannot
    be taken back, so it is done in a process of its own.
    Returns how many pages the system had to provide for an addition, by the median.
    """
    import resource  # Windows has none, and no such allocator

    if pool:
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            ctypes.CDLL(None).mallopt(option, 2**31 - 1)
    numbers, taken = torch.zeros(1).expand(size), []
    warmup = 8  # it takes some rounds until what was freed, and cut, fits what is asked for
    for _ in range(warmup + times):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.add(numbers, 1)
        taken.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return median(taken[warmup:])


# ---- the optimizer's state on ranks ----


class ShardKnobs(RankKnobs):
    sharded: Literal["no", "over the network", "in shared memory"] = dial(
        "over the network", description="is the optimizer's state dealt out, and how"
    )
    optimizer: Literal["sgd", "momentum", "adam"] = dial(
        "adam", description="rule that turns a gradient into an update"
    )
    width: int = dial(
        512, ge=8, le=2048, log=True, description="units in each of the two hidden layers"
    )
    learning_rate: float = dial(
        0.001, ge=1e-5, le=1, log=True, panel=False, description="step size of the optimizer"
    )
    batch_size: int = dial(
        128, ge=4, le=1024, log=True, panel=False, description="samples per update, over all ranks"
    )
    mistake: Literal["none", "own norm", "not gathered"] = dial(
        "none", panel=False, description="made on purpose"
    )
    max_norm: float = dial(
        0.0, ge=0, panel=False, description="upper limit of the gradient's norm, 0 for no limit"
    )


class NotGathered(ShardedOptimizer):
    """Each rank updates its piece, and nobody hears of the others' pieces."""

    def _all_gather(self) -> None:
        pass


class OwnNorm(ShardedOptimizer):
    """Each rank clips by the norm of its own piece: the pieces are scaled differently."""

    def step(self, max_norm: float | None = None) -> None:
        self.max_norm = max_norm
        super().step()

    def _reduce_scatter(self) -> Tensor:
        gradient = super()._reduce_scatter()
        if self.max_norm is not None:
            gradient.mul_((self.max_norm / (gradient.norm() + 1e-6)).clamp(max=1))
        return gradient


SHARDED = {"over the network": ShardedOptimizer, "in shared memory": ShardedInSharedMemory}
MISTAKES_ON_RANKS = {"own norm": OwnNorm, "not gathered": NotGathered}


def run_on_ranks(knobs: ShardKnobs) -> Generator[Step, None, None]:
    """Train an MLP on 4,000 MNIST digits, on several ranks, until the generator is closed.

    A Step is one update of all ranks. Its metrics, on each rank:
    loss: mean over the whole batch.
    weight_bytes, gradient_bytes, state_bytes: what a rank holds; weights in shared memory are
    counted in equal parts.
    bytes_sent: what a rank sends to the others.
    drift (with ``twin``): ‖w − w_one‖ / ‖w_one − w_start‖ against one process with the whole batch.
    """
    digits = datasets.mnist5k()
    yield from launch_steps(train_on_this_rank, knobs, digits.train_x, digits.train_y)


def train_on_this_rank(knobs: ShardKnobs, images: Tensor, labels: Tensor) -> Iterator[Step]:
    """Train on one rank: the worker."""
    rank, world = dist.get_rank(), dist.get_world_size()
    max_norm = knobs.max_norm or None
    torch.manual_seed(knobs.seed)
    model, alone = (models.mlp(784, knobs.width, knobs.width, 10) for _ in range(2))
    alone.load_state_dict(model.state_dict())
    begin = nn.utils.parameters_to_vector(alone.parameters()).detach()
    parallel = None if knobs.sharded != "no" else DataParallel(model)
    optimizer = _optimizer_of(knobs, model)
    of_one = make_optimizer(knobs)(list(alone.parameters()))
    batch = torch.empty(0)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal batch
        for mine, batch in sharded(len(images), knobs.batch_size, rank, world, knobs.seed):
            (parallel or optimizer).share = len(mine) / len(batch)
            yield images[mine], labels[mine]

    def update(x: Tensor, y: Tensor) -> dict[str, Tensor | float]:
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        _step(optimizer, model, max_norm)
        return {"loss": loss.detach()}

    def drift() -> float:
        of_one.zero_grad()
        cross_entropy(alone(images[batch]), labels[batch]).backward()
        _step(of_one, alone, max_norm)
        ours, theirs = (
            nn.utils.parameters_to_vector(one.parameters()).detach() for one in (model, alone)
        )
        return float((ours - theirs).norm() / (theirs - begin).norm())

    sent = 0
    for step in train(update, batches()):
        bytes_ = _bytes_on_rank(knobs, model, optimizer, world)
        total = (parallel or optimizer).bytes_sent
        bytes_["bytes_sent"], sent = float(total - sent), total
        error = {"drift": drift()} if knobs.twin else {}
        yield replace(step, metrics={**step.metrics, **bytes_, **error})


def make_optimizer(knobs: ShardKnobs) -> Callable[[list[nn.Parameter]], Optimizer]:
    if knobs.optimizer == "adam":
        return lambda parameters: torch.optim.Adam(parameters, lr=knobs.learning_rate)
    momentum = 0.9 if knobs.optimizer == "momentum" else 0.0
    return lambda parameters: torch.optim.SGD(parameters, lr=knobs.learning_rate, momentum=momentum)


def _optimizer_of(knobs: ShardKnobs, model: nn.Module) -> Optimizer | ShardedOptimizer:
    make = make_optimizer(knobs)
    if knobs.sharded == "no":
        return make(list(model.parameters()))
    return MISTAKES_ON_RANKS.get(knobs.mistake, SHARDED[knobs.sharded])(model, make)


def _step(
    optimizer: Optimizer | ShardedOptimizer, model: nn.Module, max_norm: float | None
) -> None:
    if isinstance(optimizer, ShardedOptimizer):
        optimizer.step(max_norm)
        return
    if max_norm is not None:
        nn.utils.clip_grad_norm_(trainable(model).values(), max_norm)
    optimizer.step()


def _bytes_on_rank(
    knobs: ShardKnobs, model: nn.Module, optimizer: Optimizer | ShardedOptimizer, world: int
) -> dict[str, float]:
    inner = optimizer.optimizer if isinstance(optimizer, ShardedOptimizer) else optimizer
    held = standing_bytes(model, inner)
    once = isinstance(optimizer, ShardedInSharedMemory) and optimizer.pages
    return held | {"weight_bytes": held["weight_bytes"] / (world if once else 1)}


def several_on_ranks(
    settings: Mapping[Setting, ShardKnobs], updates: int
) -> dict[Setting, list[Step]]:
    """Train with each of these knobs in turn, on ranks that are started once.

    settings: name → knobs, at least one, all with as many ranks · updates: of each.
    Returns the Steps of each, as ``run_on_ranks`` yields them.
    Raises ValueError for knobs that differ in their ranks.
    """
    first, *others = settings.values()
    if any(knobs.ranks != first.ranks for knobs in others):
        raise ValueError("settings: all should have as many ranks as the first")
    digits = datasets.mnist5k()
    work = list(settings.values()), updates, digits.train_x, digits.train_y
    options = {"threads": first.threads, "timeout": first.timeout, "backend": first.device}
    heard = collect(_one_after_another, first.ranks, *work, **options)
    return {
        name: [side_by_side(list(steps)) for steps in zip(*of_ranks, strict=True)]
        for name, of_ranks in zip(settings, zip(*heard.values(), strict=True), strict=True)
    }


def _one_after_another(
    settings: list[ShardKnobs], updates: int, images: Tensor, labels: Tensor
) -> Iterator[list[Step]]:
    for knobs in settings:
        yield list(islice(train_on_this_rank(knobs, images, labels), updates))


def stages_of_zero(weights: float, ranks: int) -> dict[str, dict[str, float]]:
    """Bytes on a rank by formula: weights, gradients and Adam's state of so many float32 weights,
    in data parallelism and in the stages of ZeRO, each of which deals out one thing more.
    """
    size, names = 4 * weights, ("weights", "gradients", "optimizer state")
    whole = dict(zip(names, (size, size, 2 * size), strict=True))
    stages = {"data parallel": whole}
    for stage, dealt_out in enumerate(reversed(names), 1):
        before = list(stages.values())[-1]
        stages[f"ZeRO {stage}"] = before | {dealt_out: whole[dealt_out] / ranks}
    return stages
