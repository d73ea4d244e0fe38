"""The training loop every technique shares: a generator, and its clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import nullcontext
from itertools import count
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from accel_lab.workbench.device import synchronize
from accel_lab.workbench.spans import SpanRecorder
from accel_lab.workbench.step import Step

Metrics = Mapping[str, "float | Tensor"]


class NonFiniteLoss(FloatingPointError):
    """The loss is no number any more. Training on would only spread it."""


def classifier_update(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    """The update of a classifier by its cross-entropy, with no technique in it: what ``train``
    calls where that is not the subject.
    """

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
    spans: SpanRecorder | None = None,
    steps: int | None = None,
    count_wait: bool = False,
) -> Generator[Step, None, None]:
    """Call ``update(x, y)`` on one batch after another and yield what each call did, until
    ``batches`` or ``steps`` end.

    update returns its metrics, ``loss`` among them, as floats or 0-d tensors. Only the update is
    timed, with the device synchronized on both sides.

    count_wait: time the wait for each batch too, where what happens before the update is the
    subject. A Step's ``seconds`` then hold the wait and the update, its metric ``wait_seconds`` the
    wait, and its spans begin with ``wait for batch``.
    Raises NonFiniteLoss when the loss is NaN or infinite. Closing the generator ends the run.
    """
    feed = iter(batches)
    for index in count() if steps is None else range(steps):
        if count_wait and spans is not None:
            spans.restart()
        asked = perf_counter()
        with spans("wait for batch") if count_wait and spans is not None else nullcontext():
            batch = next(feed, None)
        if batch is None:
            return
        x, y = batch
        if not count_wait and spans is not None:
            spans.restart()
        synchronize(x.device)
        start = perf_counter()
        metrics = update(x, y)
        synchronize(x.device)
        end = perf_counter()
        metrics = {name: float(value) for name, value in metrics.items()}
        if not math.isfinite(metrics.get("loss", 0.0)):
            raise NonFiniteLoss(
                f"the loss is {metrics['loss']} at step {index}: lower the learning rate, or undo "
                "the last change"
            )
        if count_wait:
            metrics["wait_seconds"] = start - asked
        seconds = end - (asked if count_wait else start)
        yield Step(index, len(x), seconds, metrics, tuple(spans.taken) if spans is not None else ())
