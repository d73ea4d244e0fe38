"""What has been done so far: one line of JSON for each piece of work, written as it comes, so that
nothing is done twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Generic, TypeVar

Entry = TypeVar("Entry")


class Journal(Generic[Entry]):
    """entries: the last one of each key. A line that was cut off, by a full disk say, or that
    another version wrote in another form, is left out.
    """

    def __init__(
        self,
        path: Path,
        to_json: Callable[[Entry], dict],
        from_json: Callable[[Any], Entry],
        key: Callable[[Entry], Hashable],
    ):
        self._path, self._to_json, self._key = path, to_json, key
        self.entries: dict[Hashable, Entry] = {}
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        self._cut_off = bool(lines and lines[-1])
        for line in lines:
            try:
                entry = from_json(json.loads(line))
                self.entries[key(entry)] = entry
            except (ValueError, TypeError, KeyError):
                continue

    def add(self, entry: Entry) -> None:
        """Raises OSError; what was there before stays."""
        line = ("\n" if self._cut_off else "") + json.dumps(self._to_json(entry)) + "\n"
        self._cut_off = True
        with self._path.open("a", encoding="ascii") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._cut_off = False
        self.entries[self._key(entry)] = entry
