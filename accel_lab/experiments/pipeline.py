"""A pipeline on processes of this machine: schedules, bubble, memory, and famous mistakes."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from accel_lab.pipeline import (
    SCHEDULES,
    Action,
    Schedule,
    Stage,
    balanced,
    bubble,
    gpipe,
    layer_seconds,
    one_forward_one_backward,
    stage_of,
)
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.knobs import KnobError, dial
from accel_lab.workbench.loop import train
from accel_lab.workbench.measure.load import under_watch
from accel_lab.workbench.measure.memory_meter import ActivationMeter
from accel_lab.workbench.measure.proof import Twin
from accel_lab.workbench.measure.race import Readings, race_on_ranks
from accel_lab.workbench.ranks.checkpoint import Checkpoint
from accel_lab.workbench.ranks.launch import collect
from accel_lab.workbench.ranks.rank import RankSpanRecorder, device_of_rank, die, gather
from accel_lab.workbench.ranks.world import RankKnobs, launch_steps, on_one_timeline
from accel_lab.workbench.step import Span, Step

# mistakes that are seen in the weights or shapes, and not in the time
NEED_WEIGHTS = ("skip the division", "wrong rank order", "mismatched shapes")


class Knobs(RankKnobs):
    ranks: int = dial(2, ge=1, le=4, description="stages, each in its own process")
    micro_batches: int = dial(
        4, ge=1, le=32, log=True, description="parts of a batch, sent down the pipeline one by one"
    )
    schedule: Literal["gpipe", "1f1b"] = dial(
        "gpipe", description="order of forwards and backwards"
    )
    stages: Literal["compute", "wait"] = dial(
        "compute", description="train, or wait for a set time: no core is needed, nothing learned"
    )
    mistake: Literal[
        "none",
        "skip the division",
        "wrong rank order",
        "two schedules",
        "unbalanced stages",
        "mismatched shapes",
        "slow rank",
        "dying rank",
    ] = dial("none", description="a famous mistake, or mishap")
    width: int = dial(512, ge=8, le=4096, log=True, description="units in each hidden layer")
    depth: int = dial(8, ge=2, le=16, panel=False, description="linear layers of the whole model")
    batch_size: int = dial(256, ge=1, le=1024, log=True, description="samples per update")

    @model_validator(mode="after")
    def _everything_fits(self) -> Knobs:
        if self.micro_batches > self.batch_size:
            raise KnobError(
                "micro_batches",
                f"{self.micro_batches} do not fit a batch of {self.batch_size} samples",
            )
        if self.ranks > self.depth:
            raise KnobError(
                "ranks", f"{self.ranks} stages cannot be filled with {self.depth} linear layers"
            )
        if self.stages == "wait" and (self.twin or self.mistake in NEED_WEIGHTS):
            what = f"{self.mistake!r}" if self.mistake in NEED_WEIGHTS else "twin"
            raise KnobError("stages", f"layers that only wait have no weights, as {what} needs")
        return self


def run(knobs: Knobs) -> Generator[Step, None, None]:
    """Train a deep MLP on 4,000 MNIST digits, a stage per rank, until the generator is closed.

    A Step is one update of all ranks. Its metrics:
    loss: mean over the whole batch.
    bubble_measured: idle share of all ranks' time, from the first forward to the last backward.
    bubble_predicted: the same by the formula.
    held_on_rank_R: for how many micro-batches rank R holds activations, at most.
    activation_bytes_on_rank_R: bytes that autograd holds there, at most.
    update_error (with ``twin``): ‖Δw − Δw_one‖ / ‖Δw_one‖ against one process with the whole batch.

    Spans: ``forward I`` and ``backward I`` of each rank and micro-batch I. Raises RankFailed as
    ``launch`` does.
    """
    yield from launch_steps(train_this_stage, knobs, datasets.mnist5k(), merge=merge_stages)


def merge_stages(steps: list[Step]) -> Step:
    """Make one Step of the ranks': the loss is the last one's, the bubble needs all of them."""
    spans = on_one_timeline(steps)
    work = [span for span in spans if span.kind in ("forward", "backward")]
    metrics = {
        "loss": steps[-1].metrics["loss"],
        "bubble_measured": bubble_of(work, len(steps)),
        "bubble_predicted": bubble(len(steps), int(steps[0].metrics["micro_batches"])),
        **{
            f"{name}_on_rank_{rank}": step.metrics[name]
            for name in ("held", "activation_bytes")
            for rank, step in enumerate(steps)
        },
        **{name: value for name, value in steps[0].metrics.items() if name == "update_error"},
    }
    return Step(
        steps[0].index, steps[0].samples, max(step.seconds for step in steps), metrics, spans
    )


def bubble_of(work: Sequence[Span], ranks: int) -> float:
    """Measure the idle share of all ranks' time, 0 to 1, from the first to the last of some work.

    work: forwards and backwards of one update. ranks: how many share it.
    """
    busy = sum(span.end - span.start for span in work)
    return 1 - busy / (ranks * _lasted(work))


def _lasted(work: Sequence[Span]) -> float:
    return max(span.end for span in work) - min(span.start for span in work)


def train_this_stage(knobs: Knobs, digits: datasets.Data) -> Iterator[Step]:
    """Train one stage: the worker, the same under ``launch`` and under torchrun."""
    is_faulty = dist.get_rank() == dist.get_world_size() - 1  # the rank that mishaps happen to
    device = device_of_rank()
    torch.manual_seed(knobs.seed)
    width = knobs.width + (is_faulty and knobs.mistake == "mismatched shapes")
    widths = [digits.train_x[0].numel(), *[width] * (knobs.depth - 1), digits.classes]
    waits = knobs.stages == "wait"
    whole = (waiting_layers(knobs) if waits else deep_mlp(*widths)).to(device)
    saved = Checkpoint(knobs.checkpoint, model=whole)
    batches = islice(digits.to(device).batches(knobs.batch_size, knobs.seed), saved.updates, None)
    if waits:  # one number of each picture travels
        batches = ((x[:, 0, 0, :1], y) for x, y in batches)
    x, y = next(batches)
    part, unbalanced = x.tensor_split(knobs.micro_batches)[0], knobs.mistake == "unbalanced stages"
    layers = stage_of(whole, _layers_of_this_rank(whole, part, unbalanced))
    if is_faulty and knobs.mistake == "slow rank":
        layers.register_forward_pre_hook(lambda *_: time.sleep(0.01))
    saved.parts["model"] = together = WholeModel(whole, layers)
    spans = RankSpanRecorder(device)
    stage = Stage(layers, _loss(knobs), spans)
    parameters = {"params": list(layers.parameters())}  # a stage may have none
    optimizer = torch.optim.SGD([parameters], lr=knobs.learning_rate)
    actions = _actions(knobs, stage, is_faulty)

    def forward_backward(x: Tensor, y: Tensor) -> Tensor:
        m = knobs.micro_batches
        return stage.step(actions, x.tensor_split(m), y.tensor_split(m))

    def update(x: Tensor, y: Tensor) -> dict[str, Tensor | float]:
        optimizer.zero_grad()
        loss = forward_backward(x, y)
        with spans("optimizer step"):
            optimizer.step()
        return {"loss": loss, "held": stage.peak_held, "micro_batches": knobs.micro_batches}

    with ActivationMeter(whole, x) as meter:  # once: the sizes do not change, and counting is slow
        forward_backward(x, y)
    twin = None
    if knobs.twin:
        rule = torch.optim.SGD(whole.parameters(), lr=knobs.learning_rate)
        twin = Twin(whole, rule, _in_one_process)
    batches = chain([(x, y)], batches)
    steps = train(update, twin.ahead_of(batches) if twin else batches, spans=spans)
    for step in saved.steps(steps, knobs.checkpoint_every):
        metrics = {**step.metrics, "activation_bytes": meter.peak}
        if twin:
            together.state_dict()
            metrics["update_error"] = twin.error()
        yield replace(step, metrics=metrics)
        if is_faulty and knobs.mistake == "dying rank" and step.index == saved.updates + 4:
            die()


@dataclass
class WholeModel:
    """Keeps the whole model up to date from the stages; every rank must call ``state_dict``."""

    whole: nn.Sequential
    layers: nn.Sequential  # some of the whole's

    def state_dict(self) -> dict[str, Tensor]:
        state = self.whole.state_dict()
        for rank, names in enumerate(gather(list(self.layers.state_dict()))):
            for name in names:
                dist.broadcast(state[name], rank)
        return state


def deep_mlp(*widths: int) -> nn.Sequential:
    """Make an MLP with the weights of He et al. 2015, arXiv:1502.01852.

    torch's default weights make the signal vanish in so many layers.
    """
    model = models.mlp(*widths)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return model


def waiting_layers(knobs: Knobs) -> nn.Sequential:
    """Make a model whose layers wait, equally long, and divide evenly among 1 to 4 stages."""
    seconds = BATCH_SECONDS / 3 / (LAYERS_THAT_WAIT * knobs.micro_batches)
    return nn.Sequential(*(Waits(seconds) for _ in range(LAYERS_THAT_WAIT)))


def _layers_of_this_rank(whole: nn.Sequential, x: Tensor, unbalanced: bool) -> range:
    """Let rank 0 measure and decide for all: each rank for itself would measure something else."""
    rank, world = dist.get_rank(), dist.get_world_size()
    box: list[list[range]] = [[]]
    if rank == 0 and unbalanced:
        first = len(whole) - 2 * (world - 1)  # the other stages have one linear layer and its ReLU
        box = [[range(first), *(range(layer, layer + 2) for layer in range(first, len(whole), 2))]]
    elif rank == 0:
        waits = [layer.seconds for layer in whole if isinstance(layer, Waits)]
        box = [balanced(waits or layer_seconds(whole, x), world)]
    dist.broadcast_object_list(box, 0)
    return box[0][rank]


def _loss(knobs: Knobs) -> Callable[[Tensor, Tensor], Tensor]:
    if knobs.stages == "wait":
        return lambda out, y: 0 * out.sum()
    if knobs.mistake == "skip the division":  # each micro-batch's own mean, as if it were the whole
        return lambda out, y: cross_entropy(out, y) * knobs.batch_size
    return lambda out, y: cross_entropy(out, y, reduction="sum")


def _actions(knobs: Knobs, stage: Stage, is_faulty: bool) -> list[Action]:
    m = knobs.micro_batches
    if knobs.mistake == "two schedules":
        # the last stage waits for all forwards, the others turn back before they have sent them
        return (gpipe if is_faulty else one_forward_one_backward)(stage.rank, stage.world, m)
    if is_faulty and knobs.mistake == "wrong rank order":
        # two gradients change places, and arrive at each other's activations
        pairs = [[i, i + 1] if i + 1 < m else [i] for i in range(0, m, 2)]
        both = [(("forward", pair), ("backward", pair[::-1])) for pair in pairs]
        return [(kind, i) for turns in both for kind, pair in turns for i in pair]
    return SCHEDULES[knobs.schedule](stage.rank, stage.world, m)


def _in_one_process(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> None:
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    optimizer.step()


# ---- what the chapter looks at: a schedule on paper ----

UNIT = 1e-3  # seconds that stand for one unit of time, so that a timeline in milliseconds shows it


def play(
    schedule: Schedule,
    stages: int,
    micro_batches: int,
    *,
    forward: float = 1.0,
    backward: float = 2.0,
    message: float = 0.0,
) -> list[Span]:
    """Play a schedule on paper: every action begins as soon as what it needs is there.

    forward, backward, message: how long each takes, in units of time.
    Returns the spans of all stages, a unit being a millisecond.
    Raises ValueError, one line, for a deadlock: what every stage waits for.
    """
    to_do = [list(schedule(stage, stages, micro_batches)) for stage in range(stages)]
    lasts = {"forward": forward * UNIT, "backward": backward * UNIT}
    ends: dict[tuple[str, int, int], float] = {}
    clock, spans = [0.0] * stages, []
    while any(to_do):
        before = len(spans)
        for stage, actions in enumerate(to_do):
            while actions:
                kind, i = actions[0]
                source = stage - 1 if kind == "forward" else stage + 1
                needs = [(kind, i, source)] if 0 <= source < stages else []
                needs += [("forward", i, stage)] if kind == "backward" else []
                if any(need not in ends for need in needs):
                    break  # not there yet: look at the other stages first
                travel = [message * UNIT * (need[2] != stage) for need in needs]
                ready = [ends[need] + time for need, time in zip(needs, travel, strict=True)]
                start = max([clock[stage], *ready])
                clock[stage] = ends[kind, i, stage] = start + lasts[kind]
                spans.append(Span(stage, f"{kind} {i}", start, clock[stage]))
                actions.pop(0)
        if len(spans) == before:
            waits = [f"stage {s} for {todo[0]}" for s, todo in enumerate(to_do) if todo]
            raise ValueError(f"a deadlock: {', '.join(waits)}")
    return spans


def play_one_batch(schedule: Schedule, stages: int, micro_batches: int) -> list[Span]:
    """Play a schedule for one model and one batch, however they are cut: what one process computes
    in 100 units, a third of it forwards, is shared out evenly to stages and micro-batches.
    """
    third = 100 / 3 / (stages * micro_batches)
    return play(schedule, stages, micro_batches, forward=third, backward=2 * third)


def over_slow_wires(
    yours: Callable[..., list[Action]],
    stages: int = 4,
    micro_batches: int = 12,
    message: float = 1.5,
) -> dict[str, list[Span]]:
    """Play GPipe, 1F1B and the schedule of the chapter's exercise where a message is under way for
    a while; yours is left out as long as it cannot be played.
    """

    def mine(stage: int, stages: int, micro_batches: int) -> list[Action]:
        return yours(stage, stages, micro_batches, message)

    spans = {}
    for name, order in (("GPipe", gpipe), ("1F1B", one_forward_one_backward), ("yours", mine)):
        try:
            played = play(order, stages, micro_batches, message=message)
        except Exception as error:
            if not isinstance(error, NotImplementedError):
                print(f"{name} cannot be played: {error}")
            continue
        lasted, held = _lasted(played), max(held_at(played, 0, span.end) for span in played)
        spans[f"{name}: {lasted / UNIT:g} units of time, stage 0 holds up to {held}"] = played
    return spans


def held_at(spans: Iterable[Span], stage: int, seconds: float) -> int:
    """Count for how many micro-batches a stage holds activations at some moment."""
    mine = [span for span in spans if span.rank == stage]
    begun = sum(span.kind == "forward" and span.start < seconds for span in mine)
    return begun - sum(span.kind == "backward" and span.end <= seconds for span in mine)


def most_held(actions: Iterable[Action]) -> int:
    """Count for how many micro-batches a stage holds activations at once, at most."""
    held = most = 0
    for kind, _ in actions:
        held += 1 if kind == "forward" else -1
        most = max(most, held)
    return most


# ---- stages that only wait, and stages that compute ----

BATCH_SECONDS = 0.6  # that one process waits for a batch in the panel, a third of it forwards
LAYERS_THAT_WAIT = 12


def least_disturbed(updates: Iterable[Sequence[Span]]) -> list[Span]:
    """Pick the forwards and backwards of the fastest update: other programs can only add to its
    time.
    """
    work = [[s for s in spans if s.kind in ("forward", "backward")] for spans in updates]
    return min(work, key=_lasted)


class Wait(torch.autograd.Function):
    """Waits forwards, and twice as long backwards; computes nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        time.sleep(seconds)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        time.sleep(2 * ctx.seconds)
        return *gradients, None


class Waits(nn.Module):
    """A layer that waits so many seconds for each micro-batch, and twice as long backwards."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds
        self.nothing = nn.Parameter(torch.zeros(()))  # something to go back for, on the first rank

    def forward(self, x: Tensor) -> Tensor:
        return Wait.apply(x + self.nothing, self.seconds)


def waiting_stages(
    ranks: int, schedule: str, counts: Sequence[int], updates: int = 2
) -> dict[int, list[Span]]:
    """Run a pipeline of stages that only wait; return {micro-batches: spans of one update}."""
    with under_watch():
        heard = collect(_wait_in_line, ranks, schedule, counts, updates)
    everyone = [list(chain(*parts)) for parts in zip(*heard.values(), strict=True)]
    return {
        m: least_disturbed(everyone[place * updates : (place + 1) * updates])
        for place, m in enumerate(counts)
    }


def _wait_in_line(schedule: str, counts: Sequence[int], updates: int) -> Iterator[list[Span]]:
    x, spans = torch.zeros(max(counts), 1), RankSpanRecorder()
    stage = Stage(Waits(0.008), lambda out, y: out.sum(), spans)
    for m in counts:
        actions = SCHEDULES[schedule](stage.rank, stage.world, m)
        for _ in range(updates):
            spans.restart()
            stage.step(actions, x.tensor_split(m), x.tensor_split(m))
            yield list(spans.taken)


def computing_stages(knobs: Knobs, updates: int = 10, warmup: int = 2) -> list[Span]:
    """Run some updates; return the forwards and backwards of the fastest one."""
    with under_watch(), closing(run(knobs)) as steps:
        return least_disturbed([step.spans for step in islice(steps, updates)][warmup:])


def activations_held(
    knobs: Knobs, counts: Sequence[int]
) -> dict[tuple[str, int], dict[int, float]]:
    """Count what autograd keeps: {(schedule, rank): {micro-batches: bytes, at most}}."""
    heard = collect(_count_held, knobs.ranks, knobs, counts, datasets.mnist5k())
    held: dict[tuple[str, int], dict[int, float]] = {}
    for rank, found in heard.items():
        for schedule, m, peak in found:
            held.setdefault((schedule, rank), {})[m] = peak
    return held


def _count_held(
    knobs: Knobs, counts: Sequence[int], digits: datasets.Data
) -> Iterator[tuple[str, int, int]]:
    _, stage, x, y = _stage_alone(knobs, digits)
    for schedule, plan in SCHEDULES.items():
        for m in counts:
            with ActivationMeter(stage.layers, x) as meter:
                stage.step(plan(stage.rank, stage.world, m), x.tensor_split(m), y.tensor_split(m))
            yield schedule, m, meter.peak


def _stage_alone(
    knobs: Knobs, digits: datasets.Data
) -> tuple[nn.Sequential, Stage, Tensor, Tensor]:
    """Make the whole model, this rank's stage of it, and a batch; nothing is trained."""
    torch.manual_seed(knobs.seed)
    x, y = next(digits.batches(knobs.batch_size, knobs.seed))
    whole = deep_mlp(x[0].numel(), *[knobs.width] * (knobs.depth - 1), digits.classes)
    layers = stage_of(whole, _layers_of_this_rank(whole, x, unbalanced=False))
    return whole, Stage(layers, _loss(knobs)), x, y


# ---- a pipeline against one process, on the same ranks ----

Way = str | int  # "one process", "threads", or a number of micro-batches


def race(knobs: Knobs, counts: Sequence[int], rounds: int = 9) -> Readings[Way]:
    """Let one process and the pipeline take turns: {way: seconds of a forward and backward}."""
    digits = datasets.mnist5k()
    with under_watch() as load:
        heard = collect(_race, knobs.ranks, knobs, counts, rounds, digits, timeout=300.0)
        readings = Readings(heard[0][0])
        readings.others = load.others
    return readings


def _race(
    knobs: Knobs, counts: Sequence[int], rounds: int, digits: datasets.Data
) -> dict[Way, list[float]]:
    ways = competitors(*_stage_alone(knobs, digits), SCHEDULES[knobs.schedule], counts)
    return race_on_ranks(ways, rounds, calls=1, warmup=1)


def competitors(
    whole: nn.Sequential,
    stage: Stage,
    x: Tensor,
    y: Tensor,
    schedule: Schedule,
    counts: Sequence[int],
) -> dict[Way, Callable[[], object]]:
    """List what takes turns: one process while the other ranks wait for it, and the pipeline."""

    def alone(threads: int) -> None:
        if stage.is_first:
            torch.set_num_threads(threads)
            cross_entropy(whole(x), y).backward()
            torch.set_num_threads(1)

    def pipeline(m: int) -> None:
        actions = schedule(stage.rank, stage.world, m)
        stage.step(actions, x.tensor_split(m), y.tensor_split(m))

    one = {"one process": partial(alone, 1), "threads": partial(alone, stage.world)}
    return {**one, **{m: partial(pipeline, m) for m in counts}}
