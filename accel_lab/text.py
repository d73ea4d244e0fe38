"""Text as vectors: an embedding table, and an update that touches only the rows of the batch.

A table W [V, d] has a row for each word. The product of a one-hot row with W is that word's row, so
looking it up gives the same without V − 1 products with zero:

    one_hot(i) @ W = W[i]        and backwards        ∂L/∂W = one_hotᵀ @ ∂L/∂out

The gradient has a row for each word of the vocabulary, and all rows but those of the batch are
zero. An optimizer that does not know this reads and writes the whole table, its gradient and its
moments at each update. With u different words in a batch, updating only theirs costs u rows
instead of V.

The traps:

- A word that occurs twice must get both gradients: ``table[ids] -= g`` keeps one of them.
- A mean over padded length makes short texts small. An empty text has no mean: it gets zeros.
- Adam moves words that are not in the batch, by their momentum. Updating only the batch's rows is
  another rule, "lazy" Adam (torch.optim.SparseAdam). For SGD without momentum both are equal.
- Where a batch touches much of the table, collecting rows costs more than it saves.

What becomes a token: ``accel_lab/_cleaning.py``.

Sources: Joulin et al. 2016, "Bag of Tricks for Efficient Text Classification", arXiv:1607.01759,
section 2 (means of word vectors, hashed pairs of words); Kingma and Ba 2015, "Adam",
arXiv:1412.6980, algorithm 1; PyTorch, ``torch.optim.SparseAdam``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from accel_lab._cleaning import (
    CHINESE_STOP_WORDS,
    TOKEN,
    Cleaning,
    cut_chinese,
    in_lower_case,
    keeping_negations,
    most_likely_words,
    split,
    to_lemmas,
    without_punctuation,
    without_stop_words,
)

__all__ = [
    "CHINESE_STOP_WORDS",
    "TOKEN",
    "Cleaning",
    "cut_chinese",
    "in_lower_case",
    "keeping_negations",
]
__all__ += ["most_likely_words", "split", "to_lemmas", "without_punctuation", "without_stop_words"]

Bags = tuple[Tensor, Tensor]  # the words of all texts [n], and where each text begins [texts]


def one_hot_lookup(ids: Tensor, table: Tensor) -> Tensor:
    """Look words up as a product: ids [n] of a table [V, d] → [n, d], by n · V · d products.

    ids: int64, 0…V − 1.
    """
    return functional.one_hot(ids, len(table)).to(table.dtype) @ table


def lookup(ids: Tensor, table: Tensor) -> Tensor:
    """Look words up: ids [n] of a table [V, d] → [n, d], no product at all.

    Raises ValueError, one line, for ids that are not whole numbers of 0…V − 1.
    """
    check_ids(ids, len(table))
    return table.index_select(0, ids)


def embedding_bag(ids: Tensor, begins: Tensor, table: Tensor) -> Tensor:
    """Average the rows of each text: [texts, d], zeros for a text without words.

    ids: the words of all texts, one after another [n]. begins: where each text begins [texts].
    Raises ValueError, one line, as ``lookup`` does, and for begins that do not rise from 0 to n.
    """
    lengths = lengths_of(begins, len(ids))
    text_of = torch.arange(len(begins), device=ids.device).repeat_interleave(lengths)
    sums = table.new_zeros(len(begins), table.shape[1])
    sums = sums.index_add(0, text_of, lookup(ids, table))
    return sums / lengths.clamp(min=1)[:, None]


def dense_update(
    table: nn.Parameter, layer: nn.Module, optimizer: Optimizer, bags: Bags, y: Tensor
) -> Tensor:
    """Update table and layer by one optimizer: the plain version. y: labels [texts]."""
    optimizer.zero_grad()
    ids, begins = bags
    loss = cross_entropy(layer(functional.embedding_bag(ids, table, begins)), y)
    loss.backward()  # table.grad has V rows, nearly all of them zero
    optimizer.step()
    return loss.detach()


def row_update(
    rows: RowSGD, layer: nn.Module, optimizer: Optimizer, bags: Bags, y: Tensor
) -> Tensor:
    """Update the layer by its optimizer, and of the table only the rows of the batch."""
    optimizer.zero_grad()
    ids, begins = bags
    part, places = rows.take(ids)
    loss = cross_entropy(layer(functional.embedding_bag(places, part, begins)), y)
    loss.backward()  # part.grad has u rows
    rows.step()
    optimizer.step()
    return loss.detach()


class RowSGD:
    """SGD on the rows taken; equals dense SGD without momentum.

    table: [V, d], changed in place; it needs no gradient. lr: learning rate.
    """

    def __init__(self, table: Tensor, lr: float):
        self.table, self.lr = table.detach(), lr
        self.touched, self.part = torch.zeros(0, dtype=torch.int64), self.table[:0]

    def take(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Copy the rows of these words [n], each once: the rows [u, d], which collect a gradient,
        and for each word its place among them [n].

        Raises ValueError, one line, as ``lookup`` does.
        """
        check_ids(ids, len(self.table))
        self.touched, places = torch.unique(ids, return_inverse=True)
        self.part = self.table.index_select(0, self.touched).requires_grad_()
        return self.part, places

    @torch.no_grad()
    def step(self) -> None:
        """Write the rows back, moved against their gradient.

        Raises ValueError, one line, when they have none.
        """
        moved = self.part.detach().add_(self.gradient(), alpha=-self.lr)
        self.table.index_copy_(0, self.touched, moved)

    def gradient(self) -> Tensor:
        if self.part.grad is None:
            raise ValueError("step: the rows have no gradient; call take, backward, and then step")
        return self.part.grad


class RowAdam(RowSGD):
    """Adam on the rows taken; all others keep their values and their moments. Equals SparseAdam.

    table, lr: see ``RowSGD``. betas: what the moments keep of themselves at each update. eps: added
    to the root of the second moment.
    """

    def __init__(
        self,
        table: Tensor,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        super().__init__(table, lr)
        self.betas, self.eps, self.updates = betas, eps, 0
        self.first, self.second = torch.zeros_like(self.table), torch.zeros_like(self.table)

    @torch.no_grad()
    def step(self) -> None:
        """Update the moments of the rows taken, and move the rows by them."""
        (b1, b2), rows, gradient = self.betas, self.touched, self.gradient()
        self.updates += 1
        first = self.first.index_select(0, rows).lerp_(gradient, 1 - b1)
        second = self.second.index_select(0, rows).mul_(b2)
        second.addcmul_(gradient, gradient, value=1 - b2)
        self.first.index_copy_(0, rows, first)
        self.second.index_copy_(0, rows, second)
        rate = self.lr * (1 - b2**self.updates) ** 0.5 / (1 - b1**self.updates)
        moved = self.part.detach().addcdiv_(first, second.sqrt_().add_(self.eps), value=-rate)
        self.table.index_copy_(0, rows, moved)


def expected_rows(counts: Tensor, words: int) -> float:
    """Predict how many different words so many words drawn at random are: Σ 1 − (1 − p_w)^words.

    counts: how often each word of the vocabulary occurs [V]. Raises ValueError, one line, for
    counts that are all zero, and for a negative number of words.
    """
    if not counts.sum() > 0:
        raise ValueError("counts: no word occurs, so none can be drawn")
    if words < 0:
        raise ValueError(f"words: {words} can not be drawn; it should be 0 or more")
    shares = counts.double() / counts.sum()
    return float((1 - (1 - shares) ** words).sum())


def lengths_of(begins: Tensor, words: int) -> Tensor:
    """How many words each text has [texts]. Raises ValueError, one line, unless begins are one row
    of whole numbers that rise from 0 to at most ``words``.
    """
    if begins.dtype not in (torch.int64, torch.int32) or begins.dim() != 1:
        found = f"{begins.dtype} {list(begins.shape)}"
        raise ValueError(f"begins: {found} should be one row of int64, a place for each text")
    lengths = torch.cat([begins, begins.new_tensor([words])]).diff()
    if len(begins) and (begins[0] != 0 or (lengths < 0).any()):
        raise ValueError(f"begins: should rise from 0 to at most {words}, where the words end")
    if words and not len(begins):
        raise ValueError(f"begins: there are {words} words and no text that they belong to")
    return lengths


def check_ids(ids: Tensor, size: int) -> None:
    """Raise ValueError, one line, unless ids are one row of whole numbers of 0…size − 1."""
    if ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"ids: {ids.dtype} are not word numbers; they should be int64")
    if ids.dim() != 1:
        raise ValueError(f"ids: {list(ids.shape)} should be one row [n]: flatten it first")
    if ids.numel() and not size:
        raise ValueError("ids: the table has no rows, so no word can be looked up")
    if ids.numel():
        low, high = map(int, torch.aminmax(ids))
        if low < 0 or high >= size:
            wrong = low if low < 0 else high
            raise ValueError(
                f"ids: {wrong} is not a row of a table of {size}: rows are 0 to {size - 1}; give "
                "unknown words a row of their own"
            )
