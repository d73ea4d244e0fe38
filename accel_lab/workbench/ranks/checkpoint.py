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


class NotACheckpoint(ValueError):
    """A file that a run cannot go on from, or cannot be kept in: it is left as it is."""


class Checkpoint:
    """Saves ``parts`` (model, optimizer, …) on rank 0 and, where the file exists, restores them on
    every rank.

    ``updates``: how many had been made when the file was written, 0 without one. Only rank 0 needs
    the file: it tells the others, which may be on other machines. An empty path saves nothing.
    Every rank has to construct it.
    Raises NotACheckpoint, one line on every rank, for a file of something else, of other parts or
    other sizes, and for a path where no file can be.
    """

    def __init__(self, path: str, **parts: Stateful):
        self.path, self.parts = Path(path) if path else None, parts
        box: list[Any] = [self._read() if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(box, 0)
        if isinstance(box[0], NotACheckpoint):
            raise box[0]
        state = box[0] or {}
        self.updates: int = state.pop("updates", 0)
        for name, saved in state.items():
            try:
                parts[name].load_state_dict(saved)
            except Exception as error:  # each part has its own
                why = " ".join(str(error).split())
                raise NotACheckpoint(f"{self.path}: of another run: {why}") from error

    def _read(self) -> dict[str, Any] | NotACheckpoint | None:
        """What the file holds, or why that cannot be gone on from."""
        if self.path is None:
            return None
        if not os.access(self.path.parent, os.W_OK):
            return NotACheckpoint(f"{self.path}: there is no folder {self.path.parent} to write to")
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            return NotACheckpoint(f"{self.path}: no checkpoint ({type(error).__name__})")
        wanted = {"updates", *self.parts}
        if not isinstance(state, dict) or state.keys() != wanted:
            return NotACheckpoint(
                f"{self.path}: no checkpoint of this run, which holds {', '.join(sorted(wanted))}; "
                "it is left as it is, name another file"
            )
        return state

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
