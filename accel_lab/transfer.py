"""Transfer learning: train a small part, and ask the frozen rest of the network only once.

A network that was trained on many photographs is cut in two. The *trunk* keeps its weights; the
*rest*, in the simplest case one new linear layer, the *head*, learns the new task:

    picture → trunk → kept numbers → rest → class

A frozen trunk gives the same answer to the same picture in every epoch. So it has to be asked once.
With n pictures, E epochs, f seconds for a picture through the trunk and h for an update's share of
a picture in the rest,

    asked at every update   E · n · (f + h)
    answers kept            n · f + E · n · h

and the ratio goes towards E where h is small. Training everything costs a backward pass as well:
about E · n · 3f, by the number of products.

The traps:

- Batch normalization has two kinds of memory. ``requires_grad_(False)`` stops its weights; its
  running mean and variance go on changing in training mode, and ``model.train()`` turns that on.
- An optimizer moves what it was given: weights whose gradient is zero still move by momentum and by
  weight decay, and a head that was made later never moves.
- What is drawn at random (augmentation, dropout) cannot be kept: it would be drawn only once.
- A network expects the sizes and the scale of pictures that it was trained with.

Sources: Yosinski et al. 2014, "How transferable are features in deep neural networks?",
arXiv:1411.1792, section 4; Kumar et al. 2022, "Fine-tuning can distort pretrained features",
arXiv:2202.10054, section 3 (first the head, then the rest).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

# ---- freezing, and where to cut ----


class Frozen(nn.Module):
    """A network that does not change: neither its weights nor any buffer, whatever is called.

    ``train()`` of a model that contains it leaves it in evaluation mode, so that batch
    normalization uses the statistics that it learned, and dropout is off. Gradients still pass
    through to its input.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Frozen:
        """Stay in evaluation mode, with everything inside."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def split(network: nn.Sequential, cut: int) -> tuple[Frozen, nn.Sequential]:
    """Cut a network into a frozen trunk, its first ``cut`` parts, and the rest, which can learn.

    cut: 0 freezes nothing, len(network) everything. Both halves share the network's tensors.
    Raises ValueError when the network has no such place.
    """
    if not 0 <= cut <= len(network):
        raise ValueError(f"cut: {cut} is not within 0 and the {len(network)} parts of the network")
    parts = list(network)
    return Frozen(nn.Sequential(*parts[:cut])), nn.Sequential(*parts[cut:])


# ---- the two ways to train on a frozen trunk ----


def asked_update(
    trunk: Frozen, rest: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor
) -> Tensor:
    """Update the rest, and ask the trunk about the batch: the usual way.

    x: pictures [n, …] · y: labels [n] · Returns the mean loss [].
    """
    return kept_update(rest, optimizer, trunk(x), y)


def kept_update(rest: nn.Module, optimizer: Optimizer, kept: Tensor, y: Tensor) -> Tensor:
    """Update the rest from what the trunk has answered before. Equals ``asked_update``.

    kept: the trunk's answers to the batch [n, …], see ``answers`` · y: labels [n]
    Returns the mean loss [].
    """
    optimizer.zero_grad()
    loss = cross_entropy(rest(kept), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def answers(trunk: nn.Module, x: Tensor, batch_size: int = 10) -> Tensor:
    """Ask a network about all pictures, once: its answers [n, …], to be kept.

    x: pictures [n, …]. They go through in batches, so that only one batch's activations exist.
    Raises ValueError when there are no pictures, or when the network is in training mode, where an
    answer depends on the other pictures of the batch.
    """
    if len(x) == 0:
        raise ValueError("x: there are no pictures to ask about")
    if any(module.training for module in trunk.modules()):
        raise ValueError("trunk: it is in training mode; call trunk.eval(), or use Frozen(trunk)")
    return torch.cat([trunk(part) for part in x.split(batch_size)])


def train_head(
    kept: Tensor, y: Tensor, classes: int, order: Iterable[Tensor], learning_rate: float = 3e-3
) -> nn.Linear:
    """Train a linear layer on kept answers by Adam: all that transfer needs, in its simplest form.

    kept: [n, width] · y: labels [n] in 0…classes − 1 · order: for each update the places of its
    batch. Raises ValueError for a label that the head has no output for.
    """
    if not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ValueError(f"y: labels {int(y.min())} to {int(y.max())}, but {classes} classes")
    head = nn.Linear(kept.shape[1], classes).to(kept)
    optimizer = torch.optim.Adam(head.parameters(), lr=learning_rate)
    for places in order:
        kept_update(head, optimizer, kept[places], y[places])
    return head
