"""The speed log: what this machine has shown its reader, one verdict for each technique."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from accel_lab.workbench.notebook.watched import someone_watches


def speed_log_path() -> Path:
    """Below the home directory, or where ACCEL_LAB_HOME says."""
    return Path(os.environ.get("ACCEL_LAB_HOME") or Path.home() / ".accel_lab") / "speed_log.jsonl"


def log_verdict(technique: str, verdict: str) -> SpeedLog:
    """Add this machine's verdict on a technique to the reader's speed log, and return the log, to
    show.

    Where nobody watches nothing is written: a test's verdict is not the reader's.
    """
    entry = {
        "when": datetime.now(UTC).strftime("%Y-%m-%d"),
        "technique": technique,
        "verdict": verdict,
    }
    log = SpeedLog.of_the_reader()
    log.entries = [old for old in log.entries if old["technique"] != technique] + [entry]
    if someone_watches():
        log.write()
    return log


class SpeedLog:
    """One verdict for each technique, the latest; in a notebook a table."""

    def __init__(self, entries: list[dict[str, str]]):
        self.entries = entries

    @classmethod
    def read(cls) -> SpeedLog:
        """What is on disk; lines that are no entries (a half-written one, say) are passed over."""
        entries = []
        if speed_log_path().is_file():
            for line in speed_log_path().read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict) and {"when", "technique", "verdict"} <= entry.keys():
                    entries.append(entry)
        return cls(entries)

    @classmethod
    def of_the_reader(cls) -> SpeedLog:
        """What is on disk; empty where nobody watches, so that what is built or tested shows
        nobody's own.
        """
        return cls.read() if someone_watches() else cls([])

    def write(self) -> None:
        """All at once or not at all."""
        path = speed_log_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_text(
            "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in self.entries),
            encoding="utf-8",
        )
        beside.replace(path)

    def __repr__(self) -> str:
        return "Speed log: " + ", ".join(entry["technique"] for entry in self.entries)

    def _repr_markdown_(self) -> str:
        if not self.entries:
            return "Your speed log is empty: the verdict at the end of each chapter goes in here."
        days = [e["when"].replace("-", "\N{NON-BREAKING HYPHEN}") for e in self.entries]
        rows = [
            f"| {e['technique']} | {e['verdict'].replace('|', '/')} | {d} |"
            for e, d in zip(self.entries, days, strict=True)
        ]
        return "\n".join(
            ["| your speed log | what this machine showed | when |", "| --- | --- | --- |", *rows]
        )
