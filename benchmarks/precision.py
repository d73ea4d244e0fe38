"""Mixed precision against torch.autocast and float32; unscaling against PyTorch's kernel."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from accel_lab.experiments.precision import Stored, slowdown
from accel_lab.precision import SIXTEEN, mixed_update, naive_unscale_, unscale_
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.device import threads
from accel_lab.workbench.loop import classifier_update
from accel_lab.workbench.measure.comparison import compare
from accel_lab.workbench.measure.machine import low_precision
from accel_lab.workbench.measure.memory_meter import ActivationMeter

PAIRS = 9
BATCH = 64
MODELS: dict[str, Callable[[], nn.Module]] = {
    "cnn": lambda: models.cnn(8),
    "mlp 128": lambda: models.mlp(784, 128, 128, 10),
    "mlp 1024": lambda: models.mlp(784, 1024, 1024, 10),
    "transformer": lambda: nn.Sequential(
        nn.Flatten(1, 2),
        nn.Linear(28, 32),
        models.transformer_block(32),
        nn.Flatten(),
        nn.Linear(28 * 32, 10),
    ),
}


Update = Callable[[], object]


def updates(
    make: Callable[[], nn.Module], dtype: torch.dtype
) -> tuple[dict[str, Update], dict[str, nn.Module]]:
    """An update of each kind, each of a model of its own, all begun alike."""
    torch.manual_seed(0)
    start = make()
    x, y = next(datasets.mnist5k().batches(BATCH))
    names = ("fp32", "torch.autocast", "ours")
    made = {name: copy.deepcopy(start) for name in names}
    sgd = {name: torch.optim.SGD(one.parameters(), lr=1e-3) for name, one in made.items()}
    plain = classifier_update(made["fp32"], sgd["fp32"])

    def theirs() -> None:
        model, optimizer = made["torch.autocast"], sgd["torch.autocast"]
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()

    programs: dict[str, Update] = {
        "fp32": lambda: plain(x, y),
        "torch.autocast": theirs,
        "ours": lambda: mixed_update(made["ours"], sgd["ours"], x, y, dtype=dtype),
    }
    return programs, made


def cases() -> Iterator[str]:
    with threads(1):
        yield f"precision: instructions of this CPU: {low_precision() or 'none for fewer bits'}"
        for dtype in SIXTEEN:
            name = str(dtype).removeprefix("torch.")
            times = slowdown(dtype, torch.device("cpu"))
            yield f"precision 256 × 256 product, {name}: {times:.2f} × the time of float32"
        for name, make in MODELS.items():
            yield from training(name, make, torch.bfloat16)
            yield activations(name, make)
        yield from training("mlp 128", MODELS["mlp 128"], torch.float16)
        yield from unscaling()
        yield from storing()


def training(name: str, make: Callable[[], nn.Module], dtype: torch.dtype) -> Iterator[str]:
    programs, made = updates(make, dtype)
    for _ in range(3):
        programs["torch.autocast"](), programs["ours"]()
    ends = made["torch.autocast"].parameters(), made["ours"].parameters()
    assert all(map(torch.equal, *ends))
    kind = f"precision {name}, batch {BATCH}, {str(dtype).removeprefix('torch.')}"
    for one, peer in (("ours", "torch.autocast"), ("ours", "fp32")):
        yield compare(programs[one], programs[peer], pairs=PAIRS).line(kind, peer)


def activations(name: str, make: Callable[[], nn.Module]) -> str:
    """Bytes are counted, so they do not vary."""
    programs, made = updates(make, torch.bfloat16)
    x, y = next(datasets.mnist5k().batches(BATCH))
    peaks = {}
    for kind in ("fp32", "ours"):
        with ActivationMeter(made[kind], x, y) as meter:
            programs[kind]()
        peaks[kind] = meter.peak
    share = peaks["ours"] / peaks["fp32"]
    return f"activation bytes {name}, batch {BATCH}, bfloat16: {share:.2f} of float32's"


def unscaling() -> Iterator[str]:
    """Of many numbers, which do not stay in the caches, and of few in many tensors."""
    sizes = {"4 × 1M numbers": [(1024, 1024)] * 4, "200 × 4k numbers": [(64, 64)] * 200}
    for name, shapes in sizes.items():
        torch.manual_seed(0)
        gradients = [torch.randn(shape) for shape in shapes]
        twins = [torch.empty_like(gradient) for gradient in gradients]
        found, one = torch.zeros(()), torch.ones(())
        peers: dict[str, Update] = {
            "PyTorch's kernel": lambda g=gradients, f=found, o=one: (
                torch._amp_foreach_non_finite_check_and_unscale_(g, f, o),
                bool(f),
            ),
            "a copy": lambda t=twins, g=gradients: torch._foreach_copy_(t, g),
            "the naive way": lambda g=gradients: naive_unscale_(g, 1.0),
        }
        for peer, program in peers.items():
            ratio = compare(lambda g=gradients: unscale_(g, 1.0), program, pairs=PAIRS)
            yield ratio.line(f"precision unscaling {name}", peer)


def storing() -> Iterator[str]:
    """What weights in 16 bits cost in time, beside SGD on weights in float32."""
    torch.manual_seed(0)
    full = [nn.Parameter(torch.randn(512, 512)) for _ in range(4)]
    gradients = [torch.randn_like(one) for one in full]
    for one, gradient in zip(full, gradients, strict=True):
        one.grad = gradient
    plain = torch.optim.SGD(full, lr=1e-9)
    for rounding in ("nearest", "stochastic", "kahan"):
        low = [nn.Parameter(one.detach().bfloat16()) for one in full]
        for one, gradient in zip(low, gradients, strict=True):
            one.grad = gradient.bfloat16()
        stored = Stored(low, lambda all: torch.optim.SGD(all, lr=1e-9), rounding, 0)
        ratio = compare(stored.step, plain.step, pairs=PAIRS)
        yield ratio.line(f"precision a step of 16-bit weights, {rounding}", "SGD in float32")
