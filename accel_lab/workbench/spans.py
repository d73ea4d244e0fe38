"""SpanRecorder: when each piece of an update ran, recorded."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from time import perf_counter

import torch
from torch import nn

from accel_lab.workbench.device import synchronize
from accel_lab.workbench.step import Span


class SpanRecorder:
    """Records the Spans of one update on one rank.

    Use ``with spans("forward"): …`` where the code is yours to mark, or ``watch`` to follow a model
    and its optimizer from outside, leaving the code that is being explained free of bookkeeping.
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
    def __call__(self, name: str) -> Generator[None]:
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
    def watch(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Generator[SpanRecorder]:
        """Forward, backward and update of a model, seen through its hooks.

        What lies between the end of a forward pass and the next forward pass or optimizer step is
        called backward: the loss is part of it.
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
