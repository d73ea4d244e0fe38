"""Where training stands, in one file: ranks that are started again go on from there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from accel_lab.workbench.step import Step


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Checkpoint:
    """Saves ``parts`` (model, optimizer, …) on rank 0 and, where the file exists, restores them on
    every rank.

    ``updates``: how many had been made when the file was written, 0 without one. Only rank 0 needs
    the file: it tells the others, which may be on other machines. An empty path saves nothing.
    Every rank has to construct it.
    """

    def __init__(self, path: str, **parts: Stateful):
        self.path, self.parts = Path(path) if path else None, parts
        box: list[dict[str, Any] | None] = [self._read() if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(box, 0)
        state = box[0] or {}
        self.updates: int = state.get("updates", 0)
        for name, part in parts.items():
            if name in state:
                part.load_state_dict(state[name])

    def _read(self) -> dict[str, Any] | None:
        return (
            torch.load(self.path, map_location="cpu", weights_only=True)
            if self.path and self.path.exists()
            else None
        )

    def save(self, updates: int) -> None:
        """Replace the file in one go: a rank that dies while writing leaves the former one. To be
        called by all ranks alike.
        """
        if self.path is None:
            return
        state = {
            "updates": updates,
            **{name: part.state_dict() for name, part in self.parts.items()},
        }
        if dist.get_rank() == 0:
            fresh = self.path.with_name(self.path.name + ".new")
            torch.save(state, fresh)
            os.replace(fresh, self.path)

    def steps(self, steps: Iterable[Step], every: int) -> Iterator[Step]:
        """These Steps, numbered on from where the file left off; saves after each ``every``-th
        update, before passing it on.
        """
        for step in steps:
            index = self.updates + step.index
            if (index + 1) % every == 0:
                self.save(index + 1)
            yield replace(step, index=index)
