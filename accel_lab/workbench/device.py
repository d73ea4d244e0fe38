"""Where to compute: the device, waiting for it, and how many cores torch may use."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

from accel_lab.workbench.granted import usable_cores

# torch counts the machine's cores, of which a container may grant a few; threads beyond those only
# wait for one another. Every process of the course comes by here: kernel, command line and ranks.
if torch.get_num_threads() > (_usable := usable_cores()):
    torch.set_num_threads(_usable)


def pick_device(name: str = "auto") -> torch.device:
    """``auto``: a CUDA machine is used where there is one. Raises ValueError, one line, for a
    device this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device: this machine has no CUDA device that torch can use; take 'auto' or 'cpu'"
        )
    return torch.device(name)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was asked of it: a GPU answers before it has worked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def threads(count: int) -> Generator[None]:
    """Let torch use so many cores inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
