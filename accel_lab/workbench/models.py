"""Small models for small data: big enough to show an effect, small enough for two slow cores."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


def mlp(*widths: int) -> nn.Sequential:
    """[n, …] → [n, widths[-1]]: linear layers with ReLU between them.

    widths[0] is the size of the flattened input.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn(
    channels: int = 16, classes: int = 10, side: int = 28, batch_norm: bool = False, colors: int = 1
) -> nn.Sequential:
    """[n, colors, side, side] → [n, classes]: two convolutions that halve the picture, one linear.

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


class Residual(nn.Module):
    """x → x + branch(x): the gradient also goes straight through, however deep the stack.

    Source: He et al. 2016, "Identity mappings in deep residual networks", arXiv:1603.05027,
    section 2.
    """

    def __init__(self, branch: nn.Module):
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def residual_block(channels: int) -> Residual:
    """[n, channels, h, w] → the same shape: twice batch norm, ReLU and a 3 × 3 convolution."""
    half = [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)]
    other = [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)]
    return Residual(nn.Sequential(*half, *other))


class SelfAttention(nn.Module):
    """[n, length, width] → the same shape: every position looks at every other one.

    width must divide by heads. Source: Vaswani et al. 2017, "Attention is all you need",
    arXiv:1706.03762, section 3.2.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"heads: {heads} do not divide a width of {width}")
        self.heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = (
            part.view(n, length, self.heads, -1).transpose(1, 2)
            for part in self.queries_keys_values(x).chunk(3, dim=2)
        )
        seen = scaled_dot_product_attention(q, k, v)
        return self.out(seen.transpose(1, 2).reshape(n, length, width))


def transformer_block(width: int, heads: int = 4, dropout: float = 0.0) -> nn.Sequential:
    """[n, length, width] → the same shape: attention, then a two-layer perceptron, each residual.

    Source: Vaswani et al. 2017, section 3.1, with the normalization first (Xiong et al. 2020,
    arXiv:2002.04745, section 3).
    """
    attention = [nn.LayerNorm(width), SelfAttention(width, heads), nn.Dropout(dropout)]
    up, down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
    perceptron = [nn.LayerNorm(width), up, nn.GELU(), down, nn.Dropout(dropout)]
    return nn.Sequential(Residual(nn.Sequential(*attention)), Residual(nn.Sequential(*perceptron)))
