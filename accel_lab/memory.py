"""Training in less memory: forget activations and recompute them, free gradients early, shard.

Memory is filled by four things. Of P weights in float32, the *weights* take 4P bytes, the
*gradients* 4P, and Adam's *state* 8P. *Activations*, what the forward pass keeps for the backward
pass, grow with the batch and the depth: a chain of n blocks, each of which keeps s tensors, keeps
s·n. Recomputation cuts the chain into k segments and keeps only what enters each. Backward computes
one segment again, from its input, at a time:

    keep all        s·n
    k segments      s·n/k + k − 1, where k divides n        least near k = √(s·n)

Both ends of this curve are high: a single segment needs everything at once, and n segments keep n
inputs. The price is at most one more forward pass; where backward costs two forwards, 4/3 of the
time. The last segment is kept: its backward comes next, so that to forget it would free nothing.

The other three: ``step_in_backward`` frees each gradient as soon as it is used;
``ShardedOptimizer`` deals the optimizer's state out to the ranks; a block that is used several
times, ``nn.Sequential(*[block] * n)``, has its weights, gradient and state once.

The traps: dropout must draw the same mask again; running statistics must not be updated twice; what
a segment was given must not be changed in place afterwards.

Sources: T. Chen et al. 2016, "Training deep nets with sublinear memory cost", arXiv:1604.06174,
section 4; Griewank and Walther 2000, "Algorithm 799: revolve"; Rajbhandari et al. 2020, "ZeRO",
arXiv:1910.02054, sections 3 and 5; Lv et al. 2023, "LOMO", arXiv:2306.09782, section 3.1 (gradients
freed early).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from accel_lab._again import Context, refuse
from accel_lab._sharding import ShardedInSharedMemory, ShardedOptimizer

__all__ = ["Recompute", "ShardedInSharedMemory", "ShardedOptimizer", "best_segments"]
__all__ += ["cut", "in_segments", "keep_all", "peak_tensors", "recompute", "step_in_backward"]

Block = TypeVar("Block")

# ---- activations: forget and recompute ----


def keep_all(blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Run the blocks one after another, and keep all activations: the plain version."""
    for block in blocks:
        x = block(x)
    return x


def in_segments(blocks: Sequence[nn.Module], x: Tensor, segments: int, **options: Any) -> Tensor:
    """Run the blocks one after another; keep what enters each segment, and all of the last one.

    Returns what ``keep_all`` returns, with the same gradients. options: see ``recompute``.
    Raises ValueError unless 1 ≤ segments ≤ the number of blocks.
    """
    *forgotten, last = cut(blocks, segments)
    for part in forgotten:
        x = recompute(nn.Sequential(*part), x, **options)
    return keep_all(last, x)


def recompute(run: nn.Module, x: Tensor, *, keep_rng: bool = True) -> Tensor:
    """Call ``run(x)``, keep only x, and compute the rest again when backward asks for it.

    run: a module that takes one tensor and returns one. keep_rng: draw the same random numbers
    again, torch's, as dropout needs it. Without gradients to compute it is ``run(x)``.
    Raises TypeError when run returns anything else, and RuntimeError when x or a weight is changed
    in place before backward has used it.
    """
    parameters = [p for p in run.parameters() if p.requires_grad]
    if not torch.is_grad_enabled() or not (parameters or x.requires_grad):
        return run(x)
    return Recompute.apply(run, keep_rng, x, *parameters)


class Recompute(torch.autograd.Function):
    """A module as one operation of autograd, whose backward runs the module a second time."""

    @staticmethod
    def forward(ctx, run, keep_rng, x, *parameters):  # torch calls this without a graph
        ctx.run, ctx.parameters = run, parameters
        ctx.context = Context(x.device, keep_rng)
        buffers = {name: buffer.clone() for name, buffer in run.named_buffers()}
        version = x._version
        with ctx.context.of_now():
            y = run(x)
        refuse(y, changed_in_place=x._version != version)
        now = dict(run.named_buffers()) if buffers else {}  # kept where this run has changed them
        ctx.buffers = {name: old for name, old in buffers.items() if not old.equal(now[name])}
        ctx.save_for_backward(x, *parameters)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x = ctx.saved_tensors[0].detach().requires_grad_(ctx.needs_input_grad[2])
        buffers = {name: old.clone() for name, old in ctx.buffers.items()}  # not run's own
        with torch.enable_grad(), ctx.context.of_then():
            y = functional_call(ctx.run, buffers, (x,)) if buffers else ctx.run(x)
        wanted = [tensor for tensor in (x, *ctx.parameters) if tensor.requires_grad]
        found = torch.autograd.grad(y, wanted, gradient, allow_unused=True)
        return None, None, *((None,) * (not x.requires_grad)), *found


# ---- how many segments ----


def cut(blocks: Sequence[Block], segments: int) -> list[Sequence[Block]]:
    """Cut a chain into so many segments; the first n mod k ones are one block longer.

    Raises ValueError unless 1 ≤ segments ≤ the number of blocks.
    """
    n = len(blocks)
    if n == 0:
        raise ValueError("blocks: there are none to cut into segments")
    if not 1 <= segments <= n:
        raise ValueError(f"segments: {segments} do not fit {n} blocks; choose 1 to {n}")
    ends = [0]
    for place in range(segments):
        ends.append(ends[-1] + n // segments + (place < n % segments))
    return [list(blocks)[a:b] for a, b in pairwise(ends)]


def peak_tensors(blocks: int, saved: int, segments: int) -> int:
    """Count the tensors that exist at once: a segment's own, and one input for each before it.

    blocks: n. saved: tensors that a block keeps, s, all of one size, its input among them.
    """
    sizes = map(len, cut(range(blocks), segments))
    return max(saved * size + before for before, size in enumerate(sizes))


def best_segments(blocks: int, saved: int) -> int:
    """Find the number of segments with the lowest peak, the first of equals: near √(s·n).

    Raises ValueError without blocks.
    """
    return min(range(1, max(1, blocks) + 1), key=lambda k: peak_tensors(blocks, saved, k))


# ---- gradients: free them early ----


def step_in_backward(
    parameters: Iterable[nn.Parameter], make: Callable[[list[nn.Parameter]], Optimizer]
) -> list[RemovableHandle]:
    """Update each parameter as soon as its gradient is complete, and free that gradient.
    Frozen parameters stay as they are.

    Call ``backward()`` alone; there is no ``step()``. What needs the whole gradient, such as
    clipping by its norm or accumulation, is not possible.
    make: [parameter] → its optimizer, as in ``lambda p: torch.optim.Adam(p)``.
    Returns the hooks; ``remove()`` each to end it.
    """
    optimizers = {p: make([p]) for p in parameters if p.requires_grad}

    def update(parameter: nn.Parameter) -> None:
        optimizers[parameter].step()
        parameter.grad = None

    return [parameter.register_post_accumulate_grad_hook(update) for parameter in optimizers]
