"""Pipeline parallelism: the layers of one model on several ranks, kept busy with micro-batches.

Each rank holds a *stage*, a run of consecutive layers: it receives activations from the stage
before, sends its own to the one after, and gradients travel back. With the whole batch in one piece
only one stage works at a time, and p ranks are no faster than one. Cut into m micro-batches, stage
1 starts on the second while stage 2 has the first. If every stage takes the time t for a
micro-batch, forward and backward, a step takes (m + p − 1) · t where p·m·t of work is done on p
ranks: idle is

    bubble = (p − 1) / (m + p − 1)

GPipe (Huang et al. 2019, arXiv:1811.06965, section 2.3) runs all forwards, then all backwards, and
holds the activations of all m micro-batches. 1F1B (Narayanan et al. 2019, "PipeDream", section 3.2;
2021, arXiv:2104.04473, section 2.2) turns back as soon as it can: the same bubble, but stage s
holds at most p − s of them.

The traps: stages of unequal time make everybody wait for the slowest; a loss that is each
micro-batch's mean without its weight; neighbours that disagree about the order of messages, which
mix gradients up without a word, or wait for ever.
"""

from __future__ import annotations

import copy
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain, combinations, islice, pairwise
from statistics import median
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.device import synchronize
from accel_lab.workbench.knobs import KnobError, dial
from accel_lab.workbench.loop import train
from accel_lab.workbench.measure.memory_meter import ActivationMeter
from accel_lab.workbench.measure.proof import Twin
from accel_lab.workbench.ranks.checkpoint import Checkpoint
from accel_lab.workbench.ranks.rank import (
    RanksDiffer,
    RankSpanRecorder,
    device_of_rank,
    die,
    gather,
)
from accel_lab.workbench.ranks.world import RankKnobs, launch_steps, on_one_timeline
from accel_lab.workbench.step import Step

Action = tuple[Literal["forward", "backward"], int]  # what to do, with which micro-batch
Schedule = Callable[
    [int, int, int], list[Action]
]  # (stage, stages, micro-batches) → this stage's actions in order

# ---- who does what when ----


def gpipe(stage: int, stages: int, micro_batches: int) -> list[Action]:
    """All forwards, then all backwards: every micro-batch's activations are held at once."""
    return [("forward", i) for i in range(micro_batches)] + [
        ("backward", i) for i in range(micro_batches)
    ]


def one_forward_one_backward(stage: int, stages: int, micro_batches: int) -> list[Action]:
    """Just as many forwards ahead as there are stages behind this one, then in turns, then the
    backwards that remain.
    """
    ahead = min(stages - 1 - stage, micro_batches)
    actions: list[Action] = [("forward", i) for i in range(ahead)]
    for i in range(ahead, micro_batches):
        actions += [("forward", i), ("backward", i - ahead)]
    return actions + [("backward", i) for i in range(micro_batches - ahead, micro_batches)]


SCHEDULES: dict[str, Schedule] = {"gpipe": gpipe, "1f1b": one_forward_one_backward}


def bubble(stages: int, micro_batches: int) -> float:
    """The idle part of all ranks' time, by the formula."""
    return (stages - 1) / (micro_batches + stages - 1)


# ---- who holds what ----


def layer_seconds(model: nn.Sequential, x: Tensor, repeats: int = 5) -> list[float]:
    """Forward and backward time of each layer for a micro-batch x [n, …]: the median of some
    repeats. Leaves no gradients.
    """
    seconds: list[list[float]] = [[] for _ in model]
    for _ in range(repeats + 1):  # the first warms up
        given = x.detach()
        for layer, times in zip(model, seconds, strict=True):
            given = given.requires_grad_(given.is_floating_point())
            synchronize(x.device)
            start = time.perf_counter()
            out = layer(given)
            if out.requires_grad:
                out.backward(out)
            synchronize(x.device)
            times.append(time.perf_counter() - start)
            given = out.detach()
    model.zero_grad()
    return [median(times[1:]) for times in seconds]


def balanced(costs: Sequence[float], stages: int) -> list[range]:
    """Cut layers with these costs into runs so that the costliest is as cheap as can be, then the
    second, and so on.

    Raises ValueError when there are fewer layers than stages.
    """
    if stages > len(costs):
        raise ValueError(f"{len(costs)} layers do not fill {stages} stages")
    cuts = ((0, *inner, len(costs)) for inner in combinations(range(1, len(costs)), stages - 1))
    best = min(
        cuts, key=lambda cut: sorted((sum(costs[a:b]) for a, b in pairwise(cut)), reverse=True)
    )
    return [range(a, b) for a, b in pairwise(best)]


def stage_of(model: nn.Sequential, layers: range) -> nn.Sequential:
    """Some layers of a model, under the names they have there. Raises ValueError when they share a
    parameter with others.
    """
    named = list(model._modules.items())  # named_children() leaves out a layer's second appearance
    inside, outside = (
        dict(named[layers.start : layers.stop]),
        dict(named[: layers.start] + named[layers.stop :]),
    )
    mine, others = (
        {parameter for layer in part.values() for parameter in layer.parameters()}
        for part in (inside, outside)
    )
    if mine & others:
        names = [name for name, parameter in model.named_parameters() if parameter in mine & others]
        raise ValueError(
            f"{', '.join(names)} is tied across stages: each stage would train a copy of its own"
        )
    return nn.Sequential(OrderedDict(inside))


# ---- one rank's part ----


class Stage:
    """One rank's layers, and the messages to and from its neighbours.

    layers: this rank's, see ``stage_of`` · example: a batch as it enters the first stage, the
    others ignore it · loss(output, y): **summed** over samples, so that parts add up to the whole
    whatever their sizes; used on the last rank · spans: where to record ``forward 3`` and
    ``backward 3``. ``peak_held``: for how many micro-batches activations were held at once. Raises
    RanksDiffer when these layers do not take what the stage before sends.
    """

    def __init__(
        self,
        layers: nn.Sequential,
        example: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor],
        spans: RankSpanRecorder | None = None,
    ):
        self.layers, self.loss, self.device = layers, loss, device_of_rank()
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.is_first, self.is_last = self.rank == 0, self.rank == self.world - 1
        self.record = spans or (lambda name: nullcontext())
        self.peak_held = 0
        self.enters, self.leaves = self._agree_on_shapes(example)

    def _agree_on_shapes(self, example: Tensor) -> tuple[Tensor, Tensor]:
        """What enters and what leaves, passed on from stage to stage as tensors without data:
        nothing is computed.
        """
        box, cpu = [example[:2].to("meta")], torch.device("cpu")
        if not self.is_first:
            dist.recv_object_list(box, self.rank - 1, device=cpu)
        enters = box[0]
        try:
            box = [copy.deepcopy(self.layers).to("meta")(enters).detach()]
        except RuntimeError as error:
            sends = f"rank {self.rank - 1} sends {list(enters.shape[1:])} per sample"
            raise RanksDiffer(
                f"{sends}, which does not fit the layers of rank {self.rank}: {error}"
            ) from error
        if not self.is_last:
            dist.send_object_list(box, self.rank + 1, device=cpu)
        return enters, box[0]

    def step(self, actions: Sequence[Action], xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
        """Forward and backward of one batch, in micro-batches xs [n_i, …] with targets ys [n_i, …];
        gradients add up in ``.grad``.

        Every rank gets the same micro-batches; only the first looks at xs and only the last at ys,
        the others at their sizes. Returns the mean loss [] of the whole batch on the last rank, 0
        on the others.
        """
        self.samples = sum(len(y) for y in ys)
        self.held: dict[int, tuple[Tensor, Tensor]] = {}
        self.total = torch.zeros((), device=self.device)
        self._sending: list[tuple[Any, Tensor]] = []
        self._expect(actions, [len(y) for y in ys])
        for kind, i in actions:
            if kind == "forward":
                self._forward(i, xs[i], ys[i])
            else:
                self._backward(i)
        for message, _ in self._sending:
            message.wait()
        return self.total

    def _forward(self, i: int, x: Tensor, y: Tensor) -> None:
        if not self.is_first:
            x = self._receive().requires_grad_()
        with self.record(f"forward {i}"):
            out = self.layers(x)
            if self.is_last:
                out = self.loss(out, y) / self.samples
                self.total += out.detach()
        if not self.is_last:
            self._send(out.detach(), self.rank + 1)
        self.held[i] = x, out
        self.peak_held = max(self.peak_held, len(self.held))

    def _backward(self, i: int) -> None:
        x, out = self.held.pop(i)
        gradient = None if self.is_last else self._receive()
        with self.record(f"backward {i}"):
            if out.requires_grad:  # not in a stage of frozen layers at the front
                out.backward(gradient)
        if not self.is_first:
            self._send(x.grad, self.rank - 1)

    def _send(self, tensor: Tensor, to: int) -> None:
        tensor = tensor.contiguous()
        self._sending.append((dist.isend(tensor, to), tensor))  # kept until it has gone

    def _expect(self, actions: Sequence[Action], sizes: list[int]) -> None:
        """A message travels only once its receiver is ready: two are always announced, one from
        each neighbour.
        """
        self._to_come = deque(
            (self.rank - 1, sizes[i], self.enters)
            if kind == "forward"
            else (self.rank + 1, sizes[i], self.leaves)
            for kind, i in actions
            if not (self.is_first if kind == "forward" else self.is_last)
        )
        self._announced: deque[tuple[Any, Tensor]] = deque()
        for _ in range(2):
            self._announce()

    def _announce(self) -> None:
        if self._to_come:
            sender, size, like = self._to_come.popleft()
            tensor = torch.empty(size, *like.shape[1:], dtype=like.dtype, device=self.device)
            self._announced.append((dist.irecv(tensor, sender), tensor))

    def _receive(self) -> Tensor:
        message, tensor = self._announced.popleft()
        message.wait()
        self._announce()
        return tensor


# ---- the experiment ----


class Knobs(RankKnobs):
    ranks: int = dial(2, ge=1, le=4, description="stages, each a process of its own")
    micro_batches: int = dial(
        4, ge=1, le=32, description="pieces of a batch that follow one another"
    )
    schedule: Literal["gpipe", "1f1b"] = dial(
        "gpipe", description="order of forwards and backwards"
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
        return self


def run(knobs: Knobs) -> Iterator[Step]:
    """Train a deep MLP on 4,000 MNIST digits for ever, its layers dealt out to ranks of their own
    processes. Metrics of a Step:

    loss · bubble_measured, the idle part of all ranks' time between the first forward's start and
    the last backward's end · bubble_predicted, by the formula · held_on_rank_R, for how many
    micro-batches rank R holds activations at most · activation_bytes_on_rank_R, what autograd holds
    there at most · update_error (with ``twin``), ‖Δw − Δw_one‖ / ‖Δw_one‖ against one process with
    the whole batch. Spans: ``forward I`` and ``backward I`` of each rank and micro-batch I. Raises
    RankFailed as ``launch`` does.
    """
    return launch_steps(train_this_stage, knobs, datasets.mnist5k(), merge=one_behind_the_other)


def one_behind_the_other(steps: list[Step]) -> Step:
    """The Step of ranks that share a model: the last one knows the loss, and all of them together
    how long each was idle.
    """
    spans = on_one_timeline(steps)
    work = [span for span in spans if span.kind in ("forward", "backward")]
    lasted = max(span.end for span in work) - min(span.start for span in work)
    busy = sum(span.end - span.start for span in work)
    metrics = {
        "loss": steps[-1].metrics["loss"],
        "bubble_measured": 1 - busy / (len(steps) * lasted),
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


def train_this_stage(knobs: Knobs, digits: datasets.Data) -> Iterator[Step]:
    """The worker; the same code under ``launch`` and under torchrun."""
    odd = dist.get_rank() == dist.get_world_size() - 1  # the rank that mishaps happen to
    device = device_of_rank()
    torch.manual_seed(knobs.seed)
    width = knobs.width + (odd and knobs.mistake == "mismatched shapes")
    whole = _deep_mlp(digits.train_x[0].numel(), *[width] * (knobs.depth - 1), digits.classes).to(
        device
    )
    saved = Checkpoint(knobs.checkpoint, model=whole)
    batches = islice(digits.to(device).batches(knobs.batch_size, knobs.seed), saved.updates, None)
    x, y = next(batches)
    layers = stage_of(
        whole,
        _my_layers(
            whole, x.tensor_split(knobs.micro_batches)[0], knobs.mistake == "unbalanced stages"
        ),
    )
    if odd and knobs.mistake == "slow rank":
        layers.register_forward_pre_hook(lambda *_: time.sleep(0.01))
    saved.parts["model"] = together = Together(whole, layers)
    spans = RankSpanRecorder(device)
    stage = Stage(layers, x, _loss(knobs), spans)
    optimizer = torch.optim.SGD(
        [{"params": list(layers.parameters())}], lr=knobs.learning_rate
    )  # a stage may have none
    actions = _actions(knobs, stage, odd)

    def update(x: Tensor, y: Tensor) -> dict[str, Tensor | float]:
        optimizer.zero_grad()
        loss = stage.step(
            actions, x.tensor_split(knobs.micro_batches), y.tensor_split(knobs.micro_batches)
        )
        with spans("optimizer step"):
            optimizer.step()
        return {"loss": loss, "held": stage.peak_held, "micro_batches": knobs.micro_batches}

    with ActivationMeter(
        whole, x
    ) as meter:  # once, without an update: the sizes do not change, and counting takes time
        stage.step(
            actions, x.tensor_split(knobs.micro_batches), y.tensor_split(knobs.micro_batches)
        )
    twin = (
        Twin(whole, torch.optim.SGD(whole.parameters(), lr=knobs.learning_rate), _in_one_process)
        if knobs.twin
        else None
    )
    batches = chain([(x, y)], batches)
    steps = train(update, twin.ahead_of(batches) if twin else batches, spans=spans)
    for step in saved.steps(steps, knobs.checkpoint_every):
        metrics = {**step.metrics, "activation_bytes": meter.peak}
        if twin:
            together.state_dict()
            metrics["update_error"] = twin.error()
        yield replace(step, metrics=metrics)
        if odd and knobs.mistake == "dying rank" and step.index == saved.updates + 4:
            die()


@dataclass
class Together:
    """The whole model, brought up to date from the stages that train its layers; to be asked on all
    ranks alike.
    """

    whole: nn.Sequential
    layers: nn.Sequential  # some of the whole's

    def state_dict(self) -> dict[str, Tensor]:
        state = self.whole.state_dict()
        for rank, names in enumerate(gather(list(self.layers.state_dict()))):
            for name in names:
                dist.broadcast(state[name], rank)
        return state


def _deep_mlp(*widths: int) -> nn.Sequential:
    """torch's usual weights let the signal die away in so many layers; those of He et al. 2015,
    arXiv:1502.01852, keep it.
    """
    model = models.mlp(*widths)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return model


def _my_layers(whole: nn.Sequential, x: Tensor, unbalanced: bool) -> range:
    """Rank 0 measures and decides for all: on their own, the ranks would measure differently and
    cut differently.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    runs: list[list[range]] = [[]]
    if rank == 0 and unbalanced:
        first = len(whole) - 2 * (
            world - 1
        )  # all but one linear layer, and its ReLU, for each other stage
        runs = [[range(first), *(range(layer, layer + 2) for layer in range(first, len(whole), 2))]]
    elif rank == 0:
        runs = [balanced(layer_seconds(whole, x), world)]
    dist.broadcast_object_list(runs, 0)
    return runs[0][rank]


def _loss(knobs: Knobs) -> Callable[[Tensor, Tensor], Tensor]:
    if knobs.mistake == "skip the division":  # each micro-batch's own mean, as if it were the whole
        return lambda out, y: cross_entropy(out, y) * knobs.batch_size
    return lambda out, y: cross_entropy(out, y, reduction="sum")


def _actions(knobs: Knobs, stage: Stage, odd: bool) -> list[Action]:
    m = knobs.micro_batches
    if (
        knobs.mistake == "two schedules"
    ):  # the last stage waits for all, the others turn back before they have sent all
        return (gpipe if odd else one_forward_one_backward)(stage.rank, stage.world, m)
    if (
        odd and knobs.mistake == "wrong rank order"
    ):  # two gradients change places, and arrive at each other's activations
        pairs = [[i, i + 1] if i + 1 < m else [i] for i in range(0, m, 2)]
        return [
            action
            for pair in pairs
            for action in [
                *(("forward", i) for i in pair),
                *(("backward", i) for i in reversed(pair)),
            ]
        ]
    return SCHEDULES[knobs.schedule](stage.rank, stage.world, m)


def _in_one_process(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> None:
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    optimizer.step()
