"""Clipping by the global norm against PyTorch's clip_grad_norm_, and against one copy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from accel_lab.clipping import (
    clip_flat_,
    clip_global_norm_,
    flat_gradients,
    gradients_of,
    naive_clip_global_norm_,
    plain_update,
)
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.device import threads
from accel_lab.workbench.measure.comparison import compare

PAIRS = 15
NEVER = 1e9  # a limit that nothing exceeds
LARGE = 1_000_000  # gradients of more numbers than this do not stay in the caches
MODELS: dict[str, Callable[[], nn.Module]] = {
    "cnn": models.cnn,
    "mlp 0.1M": lambda: models.mlp(784, 128, 128, 10),
    "100 layers": lambda: models.mlp(784, *[64] * 100, 10),
    "mlp 1.9M": lambda: models.mlp(784, 1024, 1024, 10),
    "mlp 10M": lambda: models.mlp(784, 2048, 2048, 2048, 10),
}


def with_gradients(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = make()
    x, y = next(datasets.mnist5k().batches(64))
    cross_entropy(model(x), y).backward()
    return model


class Gradients:
    """Equal gradients for each contestant, and what clips them."""

    def __init__(self, model: nn.Module):
        models = {who: copy.deepcopy(model) for who in ("theirs", "ours", "naive", "flat")}
        self.flat = flat_gradients(models["flat"])
        self.parameters = {who: list(one.parameters()) for who, one in models.items()}
        originals = gradients_of(model)
        for who, parameters in self.parameters.items():
            for parameter, original in zip(parameters, originals, strict=True):
                parameter.grad = original.clone() if who != "flat" else parameter.grad
        for gradient, original in zip(self.gradients("flat"), originals, strict=True):
            gradient.copy_(original)

    def gradients(self, who: str) -> list[Tensor]:
        """As ``gradients_of`` collects them, from a list, which is what PyTorch's gets as well."""
        return [one.grad for one in self.parameters[who] if one.grad is not None]

    def clip(self, who: str, limit: float) -> None:
        if who == "flat":
            clip_flat_(self.flat, limit)
        elif who == "theirs":
            clip_grad_norm_(self.parameters[who], limit)
        else:
            rule = {"ours": clip_global_norm_, "naive": naive_clip_global_norm_}[who]
            rule(self.gradients(who), limit)

    def prove(self) -> None:
        """All of them leave the same gradients, where nothing is clipped and where all is."""
        for limit in (NEVER, 0.1):
            for who in self.parameters:
                self.clip(who, limit)
            for who in ("ours", "naive", "flat"):
                pairs = zip(self.gradients(who), self.gradients("theirs"), strict=True)
                for one, two in pairs:
                    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-9)

    def clipping(self, who: str, every_time: bool) -> Callable[[], None]:
        """A program that clips: never, or every time, by a limit that falls slowly."""
        limit = 0.1 if every_time else NEVER
        shrink = 0.999 if every_time else 1.0

        def program() -> None:
            nonlocal limit
            limit *= shrink
            self.clip(who, limit)
            if limit < 1e-9:  # long before the gradients lose digits
                self.renew(who)
                limit = 0.1

        return program

    def renew(self, who: str) -> None:
        for gradient in self.gradients(who):
            gradient.mul_(1e8)


def cases() -> Iterator[str]:
    with threads(1):
        for name, make in MODELS.items():
            model = with_gradients(make)
            Gradients(model).prove()
            for when in ("not clipped", "clipped"):
                for who in ("ours", "flat", "naive"):
                    gradients = Gradients(model)
                    programs = [
                        gradients.clipping(one, when == "clipped") for one in (who, "theirs")
                    ]
                    case = f"clipping {name}, {when}, {who}"
                    yield compare(*programs, pairs=PAIRS).line(case, "clip_grad_norm_")
            yield from limits(name, model)


def limits(name: str, model: nn.Module) -> Iterator[str]:
    """Against one copy of the gradient, the least that reads and writes it, and as a share of an
    update.
    """
    gradients = Gradients(model)
    twin = torch.empty_like(gradients.flat)
    flat = gradients.clipping("flat", every_time=False)
    ratio = compare(flat, lambda: twin.copy_(gradients.flat), pairs=PAIRS)
    cached = "" if gradients.flat.numel() > LARGE else " (in the caches)"
    yield ratio.line(f"clipping {name}, flat{cached}", "a copy of the gradient")
    x, y = next(datasets.mnist5k().batches(64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for who in ("ours", "theirs"):
        alone = gradients.clipping(who, every_time=True)
        share = compare(alone, lambda: plain_update(model, optimizer, x, y), pairs=PAIRS)
        yield share.line(f"clipping {name}, {who} as a share of an update", "an SGD update")
