"""What has been graded so far: one line of JSON for each submission, written as it comes, so that
nothing is graded twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from accel_lab.grading.marking import Entry


class Journal:
    """entries: the last one for each (learner, technique). A line that was cut off, by a full disk
    say, or that another version wrote in another form, is left out.
    """

    def __init__(self, path: Path):
        self._path = path
        self.entries: dict[tuple[str, str], Entry] = {}
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        self._cut_off = bool(lines and lines[-1])
        for line in lines:
            try:
                entry = Entry.from_json(json.loads(line))
                self.entries[entry.learner, entry.technique] = entry
            except (ValueError, TypeError, KeyError):
                continue

    def add(self, entry: Entry) -> None:
        """Raises OSError; what was there before stays."""
        line = ("\n" if self._cut_off else "") + json.dumps(entry.to_json()) + "\n"
        self._cut_off = True
        with self._path.open("a", encoding="ascii") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._cut_off = False
        self.entries[entry.learner, entry.technique] = entry


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file anew, in such a way that there is always a whole one: the old or the new."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(fresh)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
