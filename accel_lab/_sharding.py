"""The optimizer's state, dealt out to the ranks: stage 1 of ZeRO.

In data parallelism (``accel_lab.ddp``) each rank keeps the whole state and makes the same update.
Here all weights lie in one flat tensor, cut into a piece per rank, and a rank keeps the state of
its piece alone. The ring's all-reduce has two halves, and the update moves in between:

    reduce-scatter   each rank gets the complete gradient of its piece
    update           of that piece
    all-gather       the new weights go round, where gradients went before

So the bytes sent are those of the all-reduce, and the state is 1/p on p ranks. The weights come out
the same for a rule that treats each weight by itself, such as SGD or Adam.

Source: Rajbhandari et al. 2020, "ZeRO", arXiv:1910.02054, sections 5.1 and 7.2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from accel_lab.ddp import broadcast_state, ring_all_gather, ring_reduce_scatter, trainable
from accel_lab.workbench.ranks.rank import shared_between_ranks
from accel_lab.workbench.ranks.wires import bytes_on_the_ring


class ShardedOptimizer:
    """An optimizer whose state is dealt out: ``zero_grad()``, backward, ``step()``, on every rank.

    model: its weights and gradients become views of two flat tensors; ranks start from rank 0's.
    make: [piece] → an optimizer that treats each weight by itself, the same rule for all.
    ``share``: this rank's part of the batch; set it where it is not 1/world.
    Raises RanksDiffer when the ranks' models differ, and ValueError for weights of several dtypes,
    fewer weights than ranks, or an optimizer of anything but the piece.
    """

    def __init__(self, model: nn.Module, make: Callable[[list[nn.Parameter]], Optimizer]):
        broadcast_state(model)
        self.parameters, world = list(trainable(model).values()), dist.get_world_size()
        self.share, self.bytes_sent = 1 / world, 0
        self.weights, self.gradients = self._memory(_checked_size(self.parameters, world))
        self.homes, end = [], 0
        for parameter in self.parameters:
            start, end = end, end + parameter.numel()
            home = self.weights[start:end].view_as(parameter)
            home.copy_(parameter.detach())
            parameter.data = home
            self.homes.append(self.gradients[start:end].view_as(parameter))
        self.place = (dist.get_rank() + 1) % world  # the piece that the ring completes here
        self.piece = nn.Parameter(self.weights.tensor_split(world)[self.place])
        self.optimizer = make([self.piece])
        if [p for group in self.optimizer.param_groups for p in group["params"]] != [self.piece]:
            raise ValueError("make: should return an optimizer of the piece that it is given")
        self.zero_grad()

    def zero_grad(self) -> None:
        self.gradients.zero_()
        for parameter, home in zip(self.parameters, self.homes, strict=True):
            parameter.grad = home

    def step(self, max_norm: float | None = None) -> None:
        """Update this rank's piece of the weights, and share it with the others.

        max_norm: upper limit of the *whole* gradient's norm, to which all ranks' pieces add up.
        """
        self._collect()
        self.piece.grad = gradient = self._reduce_scatter()
        if max_norm is not None:
            squares = gradient.square().sum()
            dist.all_reduce(squares)
            gradient.mul_((max_norm / (squares.sqrt() + 1e-6)).clamp(max=1))
        self.optimizer.step()
        self._all_gather()

    def _collect(self) -> None:
        """Bring home gradients that ``model.zero_grad()`` has sent elsewhere; weigh them."""
        for parameter, home in zip(self.parameters, self.homes, strict=True):
            if parameter.grad is None:
                home.zero_()
            elif parameter.grad.data_ptr() != home.data_ptr():
                home.copy_(parameter.grad)
            parameter.grad = home
        self.gradients.mul_(self.share)

    def _memory(self, n: int) -> tuple[Tensor, Tensor]:
        """[n] for all weights, [n] for this rank's gradients."""
        return self.parameters[0].new_zeros(n), self.parameters[0].new_zeros(n)

    def _reduce_scatter(self) -> Tensor:
        """The complete gradient of this rank's piece."""
        pieces = self.gradients.tensor_split(dist.get_world_size())
        ring_reduce_scatter(pieces)
        self.bytes_sent += bytes_on_the_ring(self.gradients)  # with the all-gather's half
        return pieces[self.place]

    def _all_gather(self) -> None:
        ring_all_gather(self.weights.tensor_split(dist.get_world_size()))

    def state_bytes(self) -> int:
        """Count the bytes of the optimizer's state on this rank."""
        return sum(
            _nbytes(value) for kept in self.optimizer.state.values() for value in kept.values()
        )


class ShardedInSharedMemory(ShardedOptimizer):
    """The same on one machine, where ranks share memory: the weights exist once for all of them.

    Each rank adds up its piece of all gradients, and updates its piece of the weights, in place.
    Where ranks cannot share memory, ``pages`` is empty, and it is a ShardedOptimizer.
    """

    def _memory(self, n: int) -> tuple[Tensor, Tensor]:
        weights, self.pages = (shared_between_ranks(n, self.parameters[0].dtype) for _ in range(2))
        if not (weights and self.pages):
            self.pages = []
            return super()._memory(n)
        return weights[0], self.pages[dist.get_rank()]

    def _reduce_scatter(self) -> Tensor:
        if not self.pages:
            return super()._reduce_scatter()
        _meet()  # all gradients are there
        first, *others = (page.tensor_split(len(self.pages))[self.place] for page in self.pages)
        total = first.clone()
        for piece in others:
            total += piece
        return total

    def _all_gather(self) -> None:
        if not self.pages:
            super()._all_gather()
            return
        _meet()  # all weights are new


def _meet() -> None:
    dist.all_reduce(torch.zeros(1))


def _checked_size(parameters: list[nn.Parameter], world: int) -> int:
    kinds = {f"{parameter.dtype} on {parameter.device}" for parameter in parameters}
    if len(kinds) > 1:
        raise ValueError(
            f"model: its weights are {' and '.join(sorted(kinds))}; one kind is wanted"
        )
    n = sum(parameter.numel() for parameter in parameters)
    if n < world:
        raise ValueError(f"model: {n} weights to train cannot be dealt out to {world} ranks")
    return n


def _nbytes(value: object) -> int:
    return value.nbytes if isinstance(value, Tensor) else 0
