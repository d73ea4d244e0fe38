"""Accumulation against Hugging Face Accelerate and the full batch; memory against the formula."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import cross_entropy

from accel_lab.accumulation import accumulated_update, full_batch_update, split
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.device import pick_device
from accel_lab.workbench.measure.comparison import compare
from accel_lab.workbench.measure.memory_meter import memory_of

PAIRS = 15


def accelerate_update(
    model: nn.Module, optimizer: torch.optim.Optimizer, parts: list, accelerator: Accelerator
) -> None:
    """As its documentation has it, the micro-batches already on the device."""
    for x, y in parts:
        with accelerator.accumulate(model):
            loss = cross_entropy(model(x), y)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()


def contestants(
    make_model: Callable[[], nn.Module], size: int, m: int
) -> tuple[Callable, Callable, Callable, nn.Module]:
    """Ours, Accelerate's and the full batch's update, each with its own model.

    They are proved equal for three updates first.
    """
    device = pick_device()
    torch.manual_seed(0)
    start = make_model().to(device)
    x, y = next(datasets.mnist5k().to(device).batches(size))
    parts = split(x, y, m)
    accelerator = Accelerator(cpu=device.type == "cpu", gradient_accumulation_steps=m)
    ours, theirs, full = (copy.deepcopy(start) for _ in range(3))
    sgd = [torch.optim.SGD(model.parameters(), lr=1e-3) for model in (ours, theirs, full)]
    sgd[1] = accelerator.prepare(sgd[1])
    updates = (
        lambda: accumulated_update(ours, sgd[0], parts),
        lambda: accelerate_update(theirs, sgd[1], parts, accelerator),
        lambda: full_batch_update(full, sgd[2], x, y),
    )
    for _ in range(3):
        for update in updates:
            update()
    for other in (theirs, full):
        for one, two in zip(ours.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    return *updates, ours


def cases() -> Iterator[str]:
    for what, make_model in (("cnn", models.cnn), ("mlp", lambda: models.mlp(784, 512, 512, 10))):
        for m in (2, 8, 32):
            ours, theirs, full, _ = contestants(make_model, 256, m)
            case = f"accumulation {what}, batch 256, m={m}"
            yield compare(ours, theirs, pairs=PAIRS).line(case, "accelerate")
            yield compare(ours, full, pairs=PAIRS).line(case, "full batch")
    yield from memory()


def memory() -> Iterator[str]:
    """Memory, in bytes: counted, so it does not vary."""
    x, y = next(datasets.mnist5k().batches(250))
    model = models.cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    peaks = {
        m: memory_of(lambda m=m: accumulated_update(model, optimizer, split(x, y, m)), model, x, y)
        for m in (1, 2, 8, 32)
    }
    for m in (2, 8, 32):
        share = peaks[m]["activation_bytes"] / peaks[1]["activation_bytes"]
        process = peaks[m]["process_peak_bytes"] / peaks[1]["process_peak_bytes"]
        allowed = -(-250 // m) / 250
        yield (
            f"activation bytes cnn, batch 250, m={m}: {share:.4f} of the full batch's, largest "
            f"micro-batch {allowed:.4f} of its samples; "
            f"process peak {process:.2f}"
        )
