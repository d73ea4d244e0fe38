"""Our packed GRU and LSTM against PyTorch's, packed and padded; bucketed batches against random
ones; and the filling of bucketed batches against sorted mega-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from accel_lab.experiments.recurrent import (
    CELLS,
    FORMS,
    TESTS,
    Knobs,
    Reader,
    filled_by_slices,
    filled_bytes,
    numbered_reviews,
    one_pass,
    part_of_an_epoch,
    sentences_of,
    zeros_alone,
)
from accel_lab.recurrent import bucketed, by_length, padding_share
from accel_lab.workbench.device import threads
from accel_lab.workbench.measure.comparison import compare

PAIRS = 11
SHAPES = ((20, 64), (60, 64), (200, 32))  # mean length, sentences
PEERS = ("packed", "padded", "cell by cell")


def drawn_lengths(mean: int, number: int) -> Tensor:
    """Lengths as texts have them: a few are several times as long as the mean (gamma, shape 4)."""
    torch.manual_seed(0)
    drawn = torch.distributions.Gamma(4.0, 4.0 / mean).sample((number,))
    return drawn.round().long().clamp(min=1)


def prove() -> None:
    """All forms are one, in float64: states, and the gradients of all weights."""
    for cell in CELLS:
        torch.manual_seed(0)
        reader, lengths = Reader(cell, 16).double(), drawn_lengths(9, 20)
        ids, found = torch.randint(1, 8000, (int(lengths.sum()),)), []
        for form in FORMS.values():
            last = form(reader, ids, lengths)
            weights = list(reader.parameters())[:-2]
            found.append([last, *torch.autograd.grad(last.sin().sum(), weights)])
        for other in found[1:]:
            torch.testing.assert_close(other, found[0], rtol=0, atol=1e-12)


def cases() -> Iterator[str]:
    prove()
    with threads(1):
        yield from passes()
        yield from epochs()
        yield from limits()
        yield from filling()


def passes() -> Iterator[str]:
    """Forward and backward of one batch."""
    for cell in CELLS:
        for hidden in (64, 128):
            for mean, number in SHAPES:
                lengths = drawn_lengths(mean, number)
                programs = {form: one_pass(form, cell, hidden, lengths) for form in FORMS}
                case = f"recurrent {cell} {hidden}, mean length {mean}, packed, ours"
                for peer in PEERS:
                    ratio = compare(
                        programs["packed, ours"], programs[peer], pairs=PAIRS, patience=5.0
                    )
                    yield ratio.line(case, f"nn.{cell}, {peer}" if "cell" not in peer else peer)


def epochs() -> Iterator[str]:
    """Training on reviews, with all that makes a batch."""
    for cell in CELLS:
        knobs = Knobs(cell=cell, device="cpu")

        def program(form: str, pool: int, knobs: Knobs = knobs) -> Callable[[], None]:
            return part_of_an_epoch(knobs.turned(form=form, pool=pool))

        peer = program("padded", 1)
        for form in ("padded", "packed", "packed, ours"):
            for pool in (1, 24):
                if (form, pool) != ("padded", 1):
                    ratio = compare(program(form, pool), peer, pairs=PAIRS, patience=5.0)
                    order = "bucketed" if pool > 1 else "random"
                    case = f"recurrent {cell} 64, training on reviews, {form}, {order}"
                    yield ratio.line(case, "padded, random")


def limits() -> Iterator[str]:
    """What packing by torch writes beside its sums, and how long such writing takes alone."""
    for longest in (50, 200):
        _, lengths = sentences_of(longest)
        slow = one_pass("packed", "LSTM", 64, lengths)
        law, found = filled_bytes("LSTM", 64, lengths), filled_by_slices(slow)
        yield f"recurrent filling at {longest} words: {found / law:.3f} of the formula's bytes"
        fill = zeros_alone("LSTM", 64, lengths)
        case = f"recurrent LSTM 64, {longest} words, zeros written and added alone"
        yield compare(fill, slow, pairs=PAIRS, patience=3.0).line(case, "nn.LSTM packed")


def mega_batches(lengths: Tensor, size: int, pool: int) -> list[Tensor]:
    """As Hugging Face's LengthGroupedSampler: sort mega-batches, the longest first, no more."""
    order = torch.randperm(len(lengths))
    some = [part[lengths[part].argsort(descending=True)] for part in order.split(size * pool)]
    return list(torch.cat(some).split(size))


def filling() -> Iterator[str]:
    lengths = numbered_reviews().lengths[TESTS:]
    torch.manual_seed(0)
    for pool in (1, 8, 50):
        shares = {
            "ours": bucketed(lengths, 64, pool, torch.Generator().manual_seed(0)),
            "sorted mega-batches": mega_batches(lengths, 64, pool),
            "all sorted": by_length(lengths, 64),
        }
        said = ", ".join(
            f"{name} {padding_share(lengths, batches):.3f}" for name, batches in shares.items()
        )
        yield f"recurrent share of filling, pool {pool}: {said}"
