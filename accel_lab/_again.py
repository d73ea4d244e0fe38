"""What a module needs, beside its input, to compute the same a second time."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor


class Context:
    """What decides, beside its input, what a module computes: random numbers and autocast."""

    def __init__(self, device: torch.device, keep_rng: bool):
        self.device, self.keep_rng = device, keep_rng
        self.devices = [device] if device.type == "cuda" else []
        self.rng = (torch.get_rng_state(), *map(torch.cuda.get_rng_state, self.devices))
        self.dtype = torch.get_autocast_dtype(device.type)
        self.casts = torch.is_autocast_enabled(device.type)

    def of_now(self) -> torch.autocast:
        # no cache: what was cast without a graph would be taken for what is cast with one
        return torch.autocast(self.device.type, self.dtype, self.casts, cache_enabled=False)

    @contextmanager
    def of_then(self) -> Generator[None]:
        with torch.random.fork_rng(self.devices, enabled=self.keep_rng), self.of_now():
            if self.keep_rng:
                torch.set_rng_state(self.rng[0])
                for device, state in zip(self.devices, self.rng[1:], strict=True):
                    torch.cuda.set_rng_state(state, device)
            yield


def refuse(y: object, *, changed_in_place: bool) -> None:
    """Refuse a module that cannot be run again from what it was given, with one line."""
    if changed_in_place:
        raise RuntimeError(
            "recompute: the module changes its input in place, so it cannot be computed again "
            "from it; use inplace=False in its first layer"
        )
    if not isinstance(y, Tensor):
        raise TypeError(
            f"recompute: the module returns {type(y).__name__}, not one tensor; wrap it in a "
            "module that returns the tensor"
        )
