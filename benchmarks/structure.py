"""An update with dropout by cutting against nn.Dropout, against no dropout and against half the
width; and deep against wide networks of the same number of weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from accel_lab.experiments import structure as experiment
from accel_lab.structure import Net, as_mask, count, cut_forward, draw_kept, masked_dropout
from accel_lab.workbench.data import datasets
from accel_lab.workbench.device import threads
from accel_lab.workbench.measure.comparison import compare

PAIRS = 11
SHAPES = ((256, 64), (512, 64), (512, 256), (1024, 128), (1024, 512), (2048, 256))
DEPTHS = (1, 4, 16, 64)


def with_dropout_layers(net: Net, p: float) -> nn.Sequential:
    """The same layers with PyTorch's dropout behind each ReLU."""
    *hidden, last = copy.deepcopy(net.layers)
    parts: list[nn.Module] = [nn.Flatten()]
    for layer in hidden:
        parts += [layer, nn.ReLU(), nn.Dropout(p)]
    return nn.Sequential(*parts, last)


def prove() -> None:
    """Cutting is masking with one pattern, outputs and gradients; the layers are the same net."""
    torch.manual_seed(0)
    net = Net(784, 96, 96, 10).double()
    x, y = datasets.mnist5k().train_x[:32].double(), datasets.mnist5k().train_y[:32]
    torch.testing.assert_close(with_dropout_layers(net, 0.5).eval()(x), net(x))
    kept = draw_kept(net, 0.5)
    masks = iter([as_mask(one, 96, x.dtype) for one in kept])
    cut, masked = cut_forward(net, x, kept), net(x, lambda h: h * next(masks))
    torch.testing.assert_close(cut, masked)
    ours, theirs = (
        torch.autograd.grad(cross_entropy(one, y), list(net.parameters())) for one in (cut, masked)
    )
    torch.testing.assert_close(ours, theirs)


def cases() -> Iterator[str]:
    prove()
    with threads(1):
        yield from dropout()
        yield from depth()
        yield counts()


def update(answer: Callable[[Tensor], Tensor], net: nn.Module, samples: int) -> Callable[[], None]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    digits = datasets.mnist5k()
    x, y = digits.train_x[:samples], digits.train_y[:samples]
    return lambda: experiment.one_update(answer, optimizer, x, y)


def dropout() -> Iterator[str]:
    """An update of 784-w-w-10, half of the hidden units left out."""
    for width, samples in SHAPES:
        net = Net(784, width, width, 10)
        theirs, half = with_dropout_layers(net, 0.5), Net(784, width // 2, width // 2, 10)
        cut = update(lambda x, net=net: cut_forward(net, x, draw_kept(net, 0.5)), net, samples)
        mask = update(partial(net, drop=partial(masked_dropout, p=0.5)), net, samples)
        layers, plain = update(theirs, theirs, samples), update(net, net, samples)
        smaller = update(half, half, samples)
        case = f"structure dropout, width {width}, batch {samples}"
        for name, peer in (
            ("nn.Dropout", layers),
            ("no dropout", plain),
            ("half the width", smaller),
        ):
            yield compare(cut, peer, pairs=PAIRS).line(f"{case}, cut", name)
        yield compare(mask, layers, pairs=PAIRS).line(f"{case}, our mask", "nn.Dropout")
        yield compare(layers, plain, pairs=PAIRS).line(f"{case}, nn.Dropout", "no dropout")


def depth() -> Iterator[str]:
    """A fact rather than a contest: the same number of weights, one layer or many."""
    for parameters in (100_000, 400_000):
        knobs = experiment.Knobs(parameters=parameters, device="cpu")
        for samples in (64, 256):
            wide = experiment.update_of(knobs.turned(batch_size=samples))
            for layers in DEPTHS[1:]:
                deep = experiment.update_of(knobs.turned(batch_size=samples, depth=layers))
                ratio = compare(deep, wide, pairs=PAIRS)
                case = f"structure {parameters:,} parameters, batch {samples}, {layers} layers"
                yield ratio.line(case, "one layer")


def counts() -> str:
    same = 0
    for layers in DEPTHS:
        knobs = experiment.Knobs(depth=layers, device="cpu")
        net = experiment.net_of(knobs)
        x, y = next(experiment.some_digits(knobs).batches(64))
        with FlopCounterMode(display=False) as counter:
            cross_entropy(net(x), y).backward()
        same += counter.get_total_flops() == count(net, 64).update_flops
    return (
        f"structure FLOPs of an update: equal to torch's counter at {same} of {len(DEPTHS)} depths"
    )
