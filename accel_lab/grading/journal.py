"""What has been graded so far."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from accel_lab.grading.marking import Entry
from accel_lab.workbench.tasks import journal


class Journal(journal.Journal[Entry]):
    """entries: the last one for each (learner, technique)."""

    def __init__(self, path: Path):
        super().__init__(
            path, Entry.to_json, Entry.from_json, lambda entry: (entry.learner, entry.technique)
        )


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file anew, in such a way that there is always a whole one: the old or the new."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(fresh)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
