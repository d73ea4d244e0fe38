"""Networks that techniques stumble over."""

import torch
from torch import nn


class Tied(nn.Module):
    """[n, 64] → [n, 10]: an input and an output layer that share a weight, a frozen one between."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.frozen = nn.Linear(64, 64).requires_grad_(False)
        self.last = nn.Linear(64, 64)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(torch.tanh(self.frozen(self.first(x.flatten(1)))))[:, :10]


class Awkward(Tied):
    """And an unused layer, a scalar, a parameter without elements."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.empty = nn.Parameter(torch.zeros(0, 3))

    def forward(self, x):
        return self.scale * super().forward(x) + self.empty.sum()
