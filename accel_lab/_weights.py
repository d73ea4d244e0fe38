"""The tensors of a model: found once, read anew as often as wanted, compared with another's."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

Place = tuple[dict[str, Any], str]  # the dict in which a module keeps it, and its key


class Weights:
    """The parameters and buffers of a model, a tied one once.

    floats, whole: name → place, of floating-point and of integer tensors. What stands at a place
    may be replaced, as ``model.to(device)`` does with buffers; the place stays.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.floats: dict[str, Place] = {}
        self.whole: dict[str, Place] = {}
        seen = set()
        for prefix, module in model.named_modules():
            for table in (module._parameters, module._buffers):
                for key, tensor in table.items():
                    if tensor is not None and id(tensor) not in seen:
                        seen.add(id(tensor))
                        kind = self.floats if tensor.is_floating_point() else self.whole
                        kind[f"{prefix}.{key}".removeprefix(".")] = table, key

    def named(self) -> dict[str, Tensor]:
        return {name: table[key] for name, (table, key) in (self.floats | self.whole).items()}

    def like(self, other: Weights) -> Weights:
        """These weights, if their names and shapes are the other's.

        Raises ValueError, one line, that names the first tensor that differs.
        """
        shapes = [{name: list(t.shape) for name, t in one.named().items()} for one in (self, other)]
        for name in shapes[1] | shapes[0]:
            here, there = (one.get(name, "missing") for one in shapes)
            if here != there:
                raise ValueError(f"models differ: {name} is {here} in one, {there} in the other")
        return self


def at(places: dict[str, Place]) -> list[Tensor]:
    """What stands there now."""
    return [table[key] for table, key in places.values()]


def not_finite(places: dict[str, Place]) -> str:
    """The first name of a tensor that holds NaN or infinity, "" if none does."""
    named = ((name, table[key]) for name, (table, key) in places.items())
    return next((name for name, tensor in named if not tensor.isfinite().all()), "")
