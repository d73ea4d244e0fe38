"""What belongs to the reader and outlives the kernel: small tables below the home directory."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_unwritten: dict[str, list[Row]] = {}  # tables that the disk does not take, for as long as we live


def path_of(table: str) -> Path:
    """Below the home directory, or where ACCEL_LAB_HOME says."""
    home = os.environ.get("ACCEL_LAB_HOME")
    try:
        folder = Path(home) if home else Path.home() / ".accel_lab"
    except RuntimeError:  # there is no home
        folder = Path(".accel_lab")
    return folder / f"{table}.jsonl"


def read(table: str, columns: Collection[str]) -> list[Row]:
    """The rows that have these columns; a line that holds no such row, half-written say, is passed
    over.
    """
    if table in _unwritten:
        return list(_unwritten[table])
    try:
        text = path_of(table).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and set(columns) <= row.keys():
            rows.append(row)
    return rows


def write(table: str, rows: list[Row]) -> None:
    """All at once or not at all. Where the disk takes nothing, one line says so and the rows are
    kept until the kernel ends.
    """
    path = path_of(table)
    beside = path.with_suffix(f".{os.getpid()}")
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text("".join(lines), encoding="utf-8")
        beside.replace(path)
        _unwritten.pop(table, None)
    except OSError as error:
        if table not in _unwritten:
            print(
                f"accel_lab: {path} cannot be written ({error.strerror}); kept until the kernel "
                "ends. ACCEL_LAB_HOME=… names another place",
                file=sys.stderr,
            )
        _unwritten[table] = list(rows)
