"""The speed log: what this machine has shown its reader, one verdict for each technique."""

from __future__ import annotations

from datetime import UTC, datetime

from accel_lab.workbench.measure.load import BUSY, busiest, busy_words
from accel_lab.workbench.notebook import reader
from accel_lab.workbench.notebook.guesses import table_of_guesses
from accel_lab.workbench.watched import someone_watches

TABLE, COLUMNS = "speed_log", ("when", "technique", "verdict")


def log_verdict(technique: str, verdict: str) -> SpeedLog:
    """Add this machine's verdict on a technique to the reader's speed log, and return the log, to
    show, with what was predicted in this notebook.

    Where nobody watches nothing is written: a test's verdict is not the reader's. Nor is one that
    was measured while other programs used much of the machine: a former one stays.
    """
    entry = {
        "when": datetime.now(UTC).strftime("%Y-%m-%d"),
        "technique": technique,
        "verdict": verdict,
    }
    log = SpeedLog.of_the_reader()
    log.guesses = table_of_guesses()
    if (others := busiest()) > BUSY:
        log.refused = f"Not recorded, {technique}: {verdict}. Busy machine: {busy_words(others)}; "
        log.refused += "close what else runs, run the cells again that measured, then this one."
        return log
    log.entries = [old for old in log.entries if old["technique"] != technique] + [entry]
    if someone_watches():
        log.write()
    return log


class SpeedLog:
    """One verdict for each technique, the latest; in a notebook a table."""

    def __init__(self, entries: list[dict[str, str]]):
        self.entries = entries
        self.guesses = ""  # what the reader predicted, as a table
        self.refused = ""  # the verdict that was not recorded, and why

    @classmethod
    def read(cls) -> SpeedLog:
        return cls(reader.read(TABLE, COLUMNS))

    @classmethod
    def of_the_reader(cls) -> SpeedLog:
        """What is on disk; empty where nobody watches, so that what is built or tested shows
        nobody's own.
        """
        return cls.read() if someone_watches() else cls([])

    def write(self) -> None:
        reader.write(TABLE, self.entries)

    def __repr__(self) -> str:
        return "Speed log: " + ", ".join(entry["technique"] for entry in self.entries)

    def _repr_markdown_(self) -> str:
        parts = (self.refused, self._table(), self.guesses)
        return "\n\n".join(part for part in parts if part)

    def _table(self) -> str:
        if not self.entries:
            return "Your speed log is empty: the verdict at the end of each chapter goes in here."
        days = [e["when"].replace("-", "\N{NON-BREAKING HYPHEN}") for e in self.entries]
        rows = [
            f"| {e['technique']} | {e['verdict'].replace('|', '/')} | {d} |"
            for e, d in zip(self.entries, days, strict=True)
        ]
        table = [
            "| your speed log | what this machine showed | when |",
            "| --- | --- | --- |",
            *rows,
        ]
        return "\n".join(table)
