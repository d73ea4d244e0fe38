"""The training loop every technique shares: a generator, and its clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from accel_lab.workbench.step import Span, Step

Metrics = Mapping[str, "float | Tensor"]


class NonFiniteLoss(FloatingPointError):
    """The loss is no number any more. Training on would only spread it."""


def pick_device(name: str = "auto") -> torch.device:
    """``auto``: a CUDA machine is used where there is one. Raises ValueError, one line, for a device this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: this machine has no CUDA device that torch can use; take 'auto' or 'cpu'")
    return torch.device(name)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was asked of it: a GPU answers before it has worked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use so many cores inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def plain_update(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    """The update of a classifier by its cross-entropy, with no technique in it: what ``train`` calls where that is not the subject."""

    def update(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach()}

    return update


def train(
    update: Callable[[Tensor, Tensor], Metrics],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    spans: Spans | None = None,
    steps: int | None = None,
) -> Iterator[Step]:
    """Call ``update(x, y)`` on one batch after another and yield what each call did; for ever if ``batches`` and ``steps`` allow.

    update returns its metrics, ``loss`` among them, as floats or 0-d tensors. Only the update is timed, with the device
    synchronized on both sides. Raises NonFiniteLoss when the loss is NaN or infinite. Closing the generator ends the run.
    """
    for index, (x, y) in enumerate(batches):
        if index == steps:
            return
        if spans is not None:
            spans.restart()
        synchronize(x.device)
        start = perf_counter()
        metrics = update(x, y)
        synchronize(x.device)
        seconds = perf_counter() - start
        metrics = {name: float(value) for name, value in metrics.items()}
        if not math.isfinite(metrics.get("loss", 0.0)):
            raise NonFiniteLoss(
                f"the loss is {metrics['loss']} at step {index}: lower the learning rate, or undo the last change"
            )
        yield Step(index, len(x), seconds, metrics, tuple(spans.taken) if spans is not None else ())


class Spans:
    """Records the Spans of one update on one rank.

    Use ``with spans("forward"): …`` where the code is yours to mark, or ``watch`` to follow a model and its optimizer from
    outside, leaving the code that is being explained free of bookkeeping.
    """

    def __init__(self, device: torch.device | None = None, rank: int = 0):
        self.device, self.rank = device or torch.device("cpu"), rank
        self.restart()

    def restart(self) -> None:
        self.taken: list[Span] = []
        self._zero = perf_counter()
        self._open: tuple[str, float] | None = None

    def now(self) -> float:
        """seconds since the update began, once the device has caught up."""
        synchronize(self.device)
        return perf_counter() - self._zero

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = self.now()
        try:
            yield
        finally:
            self.taken.append(Span(self.rank, name, start, self.now()))

    def _turn(self, name: str | None) -> None:
        """End the open span, if any, and begin the next."""
        now = self.now()
        if self._open:
            self.taken.append(Span(self.rank, *self._open, now))
        self._open = (name, now) if name else None

    @contextmanager
    def watch(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Spans]:
        """Forward, backward and update of a model, seen through its hooks.

        What lies between the end of a forward pass and the next forward pass or optimizer step is called backward: the loss
        is part of it.
        """
        handles = [
            model.register_forward_pre_hook(lambda *_: self._turn("forward")),
            model.register_forward_hook(lambda *_: self._turn("backward")),
            optimizer.register_step_pre_hook(lambda *_: self._turn("optimizer step")),
            optimizer.register_step_post_hook(lambda *_: self._turn(None)),
        ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()
