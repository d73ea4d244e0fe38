"""The points that the reader has earned in practice: the best of each exercise."""

from __future__ import annotations

from accel_lab.workbench.notebook import reader
from accel_lab.workbench.watched import someone_watches

TABLE, COLUMNS = "points", ("exercise", "points")


def keep(exercise: str, points: int) -> None:
    """Where nobody watches nothing is kept: a test's points are not the reader's."""
    if someone_watches():
        rows = [row for row in reader.read(TABLE, COLUMNS) if row["exercise"] != exercise]
        reader.write(TABLE, [*rows, {"exercise": exercise, "points": points}])


def earned() -> dict[str, int]:
    """exercise → points; empty where nobody watches."""
    if not someone_watches():
        return {}
    rows = reader.read(TABLE, COLUMNS)
    return {row["exercise"]: row["points"] for row in rows if type(row["points"]) is int}
