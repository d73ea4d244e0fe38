"""Small models for small data: big enough to show an effect, small enough for two slow cores."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


def mlp(*widths: int) -> nn.Sequential:
    """[n, …] → [n, widths[-1]]: linear layers of these widths with ReLU between them. widths[0] is
    the flattened input.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn(
    channels: int = 16, classes: int = 10, side: int = 28, batch_norm: bool = False, colors: int = 1
) -> nn.Sequential:
    """[n, colors, side, side] → [n, classes]: two convolutions that halve the picture, and one
    linear layer.

    Its activations outweigh its parameters many times: memory here is a matter of the batch. side
    must divide by 4.
    """

    def block(before: int, after: int) -> list[nn.Module]:
        normalization = [nn.BatchNorm2d(after)] if batch_norm else []
        return [nn.Conv2d(before, after, 3, padding=1), *normalization, nn.ReLU(), nn.MaxPool2d(2)]

    return nn.Sequential(
        *block(colors, channels),
        *block(channels, 2 * channels),
        nn.Flatten(),
        nn.Linear(2 * channels * (side // 4) ** 2, classes),
    )
