"""How sums over ranks travel: through the network, or, on one machine, through memory that they
share.

gloo sends even to a neighbour by TCP, and copying in and out of the kernel takes as much processor
time as a small model's training. NCCL and MPI use shared memory between processes of one machine
for the same reason.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from accel_lab.workbench.ranks.rank import shared_between_ranks


def bytes_on_the_ring(tensor: Tensor, world: int | None = None) -> int:
    """What each rank sends in an all-reduce of this tensor by a ring: an even part of the least
    that ranks which send to one another can send together. world: ranks, by default those there
    are.
    """
    world = world or dist.get_world_size()
    return 2 * (world - 1) * tensor.nbytes // world


class Network:
    """Carries gradients by all-reduce, from one machine to another if need be. flat: [n], where
    their averages go.
    """

    def __init__(self, flat: Tensor, dtype: torch.dtype):
        self.flat, self._out = flat, flat.to(dtype)  # the same tensor, unless compressed

    def outgoing(self) -> Tensor:
        """[n], where this rank's share is to be written in this step."""
        return self._out

    def send(self, piece: slice) -> Any:
        return dist.all_reduce(self._out[piece], async_op=True)

    def take(self, piece: slice) -> None:
        """Put the average in its place, once the message is through."""
        if self._out is not self.flat:
            self.flat[piece] = self._out[piece]

    def bytes(self, piece: slice) -> int:
        return bytes_on_the_ring(self._out[piece])


class SharedMemory:
    """Carries gradients between ranks of one machine: each writes its share where all can read it,
    and only says so.

    There are two pages for alternate steps. Who writes on a page again has heard of all, in the
    step between, that they have read it; so nobody is ever waited for twice.
    """

    def __init__(self, flat: Tensor, pages: list[list[Tensor]]):
        self.flat, self._pages = flat, pages
        self._written = torch.zeros(1)

    def outgoing(self) -> Tensor:
        self._pages.reverse()
        return self._pages[0][dist.get_rank()]

    def send(self, piece: slice) -> Any:
        return dist.all_reduce(self._written, async_op=True)  # through when all have called it

    def take(self, piece: slice) -> None:
        first, second, *others = (page[piece] for page in self._pages[0])
        total = torch.add(first, second, out=self.flat[piece])
        for other in others:
            total += other  # in the order of the ranks, everywhere: the same to the last bit

    def bytes(self, piece: slice) -> int:
        return self._pages[0][0][piece].nbytes


Wire = Network | SharedMemory


def wire_for(flat: Tensor, compress: bool, wire: str) -> Network | SharedMemory:
    """``auto`` takes shared memory where the ranks have it: on one Linux machine, for what is
    computed on the CPU. compress: send real numbers as bfloat16; there is no complex one.
    """
    dtype = torch.bfloat16 if compress and flat.is_floating_point() else flat.dtype
    may_share = wire == "auto" and flat.device.type == "cpu" and dist.get_world_size() > 1
    if may_share and all(pages := [shared_between_ranks(len(flat), dtype) for _ in range(2)]):
        return SharedMemory(flat, pages)
    return Network(flat, dtype)
