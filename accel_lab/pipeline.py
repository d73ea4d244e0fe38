"""Pipeline parallelism: consecutive layers on different ranks, kept busy by micro-batches.

Each rank holds a *stage*, a run of consecutive layers. It receives activations from the previous
stage and sends its own to the next; gradients travel back. With the whole batch in one piece only
one stage works at a time, and p ranks are no faster than one. Cut into m micro-batches, stage 0
starts on the second while stage 1 works on the first. If every stage takes the time t for a
micro-batch, forward and backward, a step takes (m + p − 1) · t, of which each rank works m · t. The
idle share is

    bubble = (p − 1) / (m + p − 1)

*GPipe* runs all forwards, then all backwards, and holds the activations of all m micro-batches;
the paper holds their inputs alone, and computes the rest again before each backward. *1F1B* (one
forward, one backward) turns back as soon as possible: the same bubble, but stage s, of 0 to p − 1,
holds at most p − s of them. As here, with one update after the whole batch, it is DAPPLE's or
PipeDream-Flush; PipeDream's own never waits, and trains with weights of different age.

The traps: stages of unequal time, since all wait for the slowest; a mean of micro-batch losses
without weights; batch normalization, which sees one micro-batch at a time; neighbours that disagree
about the order of messages, which mixes gradients up without an error, or deadlocks.

Sources: Huang et al. 2019, "GPipe", arXiv:1811.06965, section 2.3; Narayanan et al. 2019,
"PipeDream", sections 3.1 (balance) and 3.2 (1F1B); Fan et al. 2021, "DAPPLE", arXiv:2007.01045,
section 3; Narayanan et al. 2021, arXiv:2104.04473, section 2.2 (PipeDream-Flush).
"""

from __future__ import annotations

import copy
import logging
import time
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from statistics import median
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm

from accel_lab.workbench.device import synchronize
from accel_lab.workbench.ranks.rank import RanksDiffer, device_of_rank
from accel_lab.workbench.spans import SpanRecorder

Action = tuple[Literal["forward", "backward"], int]  # what to do, with which micro-batch
Schedule = Callable[[int, int, int], list[Action]]  # (stage, stages, micro-batches) → its actions
Form = tuple[torch.Size, torch.dtype]  # of activations: one sample's shape, and the dtype

logging.getLogger(FakeTensorMode.__module__).setLevel(logging.CRITICAL)  # Stage says it better

# ---- schedules: the order of forwards and backwards ----


def gpipe(stage: int, stages: int, micro_batches: int) -> list[Action]:
    """List all forwards, then all backwards: all micro-batches' activations are held at once."""
    return [(kind, i) for kind in ("forward", "backward") for i in range(micro_batches)]


def one_forward_one_backward(stage: int, stages: int, micro_batches: int) -> list[Action]:
    """Turn back early: at most stages − stage micro-batches' activations are held at once.

    Warm-up: one forward per later stage. Steady state: forward and backward in turn. Cool-down: the
    remaining backwards.
    """
    ahead = min(stages - 1 - stage, micro_batches)
    actions: list[Action] = [("forward", i) for i in range(ahead)]
    for i in range(ahead, micro_batches):
        actions += [("forward", i), ("backward", i - ahead)]
    return actions + [("backward", i) for i in range(micro_batches - ahead, micro_batches)]


SCHEDULES: dict[str, Schedule] = {"gpipe": gpipe, "1f1b": one_forward_one_backward}


def bubble(stages: int, micro_batches: int) -> float:
    """Predict the idle share of all ranks' time, 0 to 1, for stages of equal speed."""
    return (stages - 1) / (micro_batches + stages - 1)


# ---- stages: which layers each rank holds ----


def layer_seconds(model: nn.Sequential, x: Tensor, repeats: int = 5) -> list[float]:
    """Measure forward plus backward of each layer, in seconds: the median of some repeats.

    x: a micro-batch [n, …]. Leaves no gradients.
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
    """Cut layers into consecutive stages whose costliest one is as cheap as possible.

    costs: of each layer, in any unit. Among equal cuts, the second costliest stage decides, etc.
    A best cut into s stages is a best cut into s − 1 of the layers before some place, and one stage
    more: dynamic programming over places.
    Raises ValueError when there are fewer layers than stages, or no stages.
    """
    if not 1 <= stages <= len(costs):
        raise ValueError(f"{len(costs)} layers do not fill {stages} stages")
    best: dict[int, tuple[list[float], tuple[int, ...]]] = {0: ([], (0,))}
    for stage in range(1, stages + 1):  # best: so many layers → their stages' costs, and the cuts
        best = {
            end: min(
                (sorted([*before, sum(costs[start:end])], reverse=True), (*cuts, end))
                for start, (before, cuts) in best.items()
                if start < end
            )
            for end in range(stage, len(costs) + 1)
        }
    return [range(a, b) for a, b in pairwise(best[len(costs)][1])]


def stage_of(model: nn.Sequential, layers: range) -> nn.Sequential:
    """Take some layers out of a model, under the names that they have there.

    Raises ValueError when they share a parameter with the other layers.
    """
    named = list(model._modules.items())  # named_children() leaves out a layer's second appearance
    inside, outside = (
        named[layers.start : layers.stop],
        named[: layers.start] + named[layers.stop :],
    )
    mine, others = (
        {parameter for _, layer in part for parameter in layer.parameters()}
        for part in (inside, outside)
    )
    if tied := [name for name, p in model.named_parameters() if p in mine & others]:
        raise ValueError(
            f"{', '.join(tied)} is tied across stages: each stage would train a copy of its own"
        )
    return nn.Sequential(OrderedDict(inside))


# ---- training: one rank's stage, and its messages ----


class Stage:
    """Runs one rank's layers, and exchanges activations and gradients with its neighbours.

    layers: this rank's, see ``stage_of``. All but the last rank's return one tensor [n_i, …].
    loss: (output, y) → [], **summed** over what its mean runs over, so that micro-batches of any
    sizes add up to the whole batch; used on the last rank.
    spans: records ``forward 3`` and ``backward 3``.
    count: how many summands the loss of some targets has; by default one for each number in them.
    With padding, ``lambda y: (y != -100).sum()``; with probabilities of classes, ``len``.

    ``peak_held`` counts for how many micro-batches activations were held at once.
    Batch normalization takes its statistics from each micro-batch, and counts each as an update: it
    equals one process with the same micro-batches, not with the whole batch. Here, as in torch's.
    """

    def __init__(
        self,
        layers: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        spans: SpanRecorder | None = None,
        count: Callable[[Tensor], Any] = Tensor.numel,
    ):
        self.layers, self.loss, self.count, self.device = layers, loss, count, device_of_rank()
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.is_first, self.is_last = self.rank == 0, self.rank == self.world - 1
        self.record = spans or (lambda name: nullcontext())
        self.peak_held = 0
        self.enters: Form | None = None
        self.leaves: Form | None = None
        if any(isinstance(layer, _BatchNorm) for layer in layers.modules()):
            warnings.warn(
                "batch normalization sees micro-batches, not the batch: more of them, other "
                "gradients; nn.GroupNorm looks at each sample by itself",
                stacklevel=2,
            )

    def step(self, actions: Sequence[Action], xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
        """Run forward and backward of one batch; gradients add up in ``.grad``.

        actions: this stage's schedule.
        xs, ys: micro-batches [n_i, …] and targets [n_i, …], the same on every rank; only the first
        rank reads xs, only the last reads ys, the others need their sizes.
        Returns the mean loss [] of the whole batch on the last rank, 0 on the others; in float64.
        Raises RanksDiffer when these layers do not take what the previous stage sends, or no longer
        give what they gave in the first step; ValueError when the actions are for other pieces.
        """
        if not len(xs) == len(ys) == len(actions) / 2 or {*actions} != {*gpipe(0, 1, len(ys))}:
            raise ValueError(f"{len(xs)} xs and {len(ys)} ys do not fit {len(actions)} actions")
        if self.enters is None:
            self._agree(xs[0])
        self.summands = sum(self.count(y) for y in ys)
        self.held: dict[int, tuple[Tensor, Tensor]] = {}
        self.total = torch.zeros((), dtype=torch.float64, device=self.device)
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

    def _agree(self, x: Tensor) -> None:
        """Find what enters and leaves, by tensors without data: nothing is computed.

        In the first step and not before: the layers then have their dtype, and autocast is on.
        """
        box, cpu = [(x.shape[1:], x.dtype)], torch.device("cpu")
        if not self.is_first:
            dist.recv_object_list(box, self.rank - 1, device=cpu)
        self.enters = shape, dtype = box[0]
        sender = "the batch has" if self.is_first else f"rank {self.rank - 1} sends"
        tensors = (*self.layers.parameters(), *self.layers.buffers())
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        try:  # a copy, which may keep what it computes; its state is there already, without data
            layers = copy.deepcopy(self.layers, {id(t): fake.from_tensor(t) for t in tensors})
            with torch.no_grad(), fake:
                out = layers(torch.empty(2, *shape, dtype=dtype, device=self.device))
        except RuntimeError as error:
            raise RanksDiffer(
                f"{sender} {list(shape)} per sample, {dtype}, which does not fit the layers of "
                f"rank {self.rank}: {error}"
            ) from None
        if self.is_last:
            return
        if not isinstance(out, Tensor) or not out.is_floating_point():
            what = out.dtype if isinstance(out, Tensor) else type(out).__name__
            raise RanksDiffer(
                f"the layers of rank {self.rank} return {what}: what travels on is one tensor "
                "of floats, for which a gradient can come back; cut the model at another place"
            )
        self.leaves = out.shape[1:], out.dtype
        dist.send_object_list([self.leaves], self.rank + 1, device=cpu)

    def _forward(self, i: int, x: Tensor, y: Tensor) -> None:
        if not self.is_first:
            x = self._receive().requires_grad_()
        with self.record(f"forward {i}"):
            out = self.layers(x)
            if self.is_last:
                out = self.loss(out, y) / self.summands
                self.total += out.detach()
        if not self.is_last:
            self._send(self._as_agreed(out, len(y)), self.rank + 1)
        self.held[i] = x, out
        self.peak_held = max(self.peak_held, len(self.held))

    def _backward(self, i: int) -> None:
        x, out = self.held.pop(i)
        gradient = None if self.is_last else self._receive()
        with self.record(f"backward {i}"):
            if out.requires_grad:  # not in a stage of frozen layers at the front
                out.backward(gradient)
        if not self.is_first:
            self._send(torch.zeros_like(x) if x.grad is None else x.grad, self.rank - 1)

    def _as_agreed(self, out: Tensor, n: int) -> Tensor:
        """Cut activations from their graph; the receiver has room for what was agreed, no other."""
        shape, dtype = self.leaves
        if (found := (list(out.shape), out.dtype)) != (wanted := ([n, *shape], dtype)):
            raise RanksDiffer(
                f"rank {self.rank} would send {found[0]} {found[1]}, but its first step agreed on "
                f"{wanted[0]} {wanted[1]}: for other shapes, dtypes or autocast make a new Stage"
            )
        return out.detach()

    def _send(self, tensor: Tensor, to: int) -> None:
        tensor = tensor.contiguous()
        self._sending.append((dist.isend(tensor, to), tensor))  # kept until it is sent

    def _expect(self, actions: Sequence[Action], sizes: list[int]) -> None:
        """Keep two receives posted, since a message is sent only when its receiver is ready."""
        self._to_come = deque(
            (self.rank - 1, sizes[i], *self.enters)
            if kind == "forward"
            else (self.rank + 1, sizes[i], *self.leaves)
            for kind, i in actions
            if not (self.is_first if kind == "forward" else self.is_last)
        )
        self._announced: deque[tuple[Any, Tensor]] = deque()
        for _ in range(2):
            self._announce()

    def _announce(self) -> None:
        if self._to_come:
            sender, size, shape, dtype = self._to_come.popleft()
            tensor = torch.empty(size, *shape, dtype=dtype, device=self.device)
            self._announced.append((dist.irecv(tensor, sender), tensor))

    def _receive(self) -> Tensor:
        message, tensor = self._announced.popleft()
        message.wait()
        self._announce()
        return tensor
