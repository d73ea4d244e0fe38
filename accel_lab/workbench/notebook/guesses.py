"""What the reader predicted: kept beside the speed log, and held against what was measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from accel_lab.workbench.look import number
from accel_lab.workbench.measure.comparison import Comparison
from accel_lab.workbench.notebook import reader

TABLE = "predictions"
CLOSE = 1.1  # a factor that is as good as none


@dataclass(frozen=True)
class Guess:
    """An answer to a question, in its unit. final: the reader has committed to it."""

    question: str
    value: float
    unit: str
    final: bool = False

    @property
    def said(self) -> str:
        return in_unit(self.value, self.unit)


@dataclass(frozen=True)
class Measured:
    """The answer: a value, and where the measurement knows it, within which ends the truth lies."""

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, found: float | Comparison, inverse: bool = False) -> Measured:
        """inverse: of a comparison, how many times *faster* ours is, not how long it takes."""
        if not isinstance(found, Comparison):
            return cls(float(found))
        one = cls(found.ratio, *found.interval)
        if not inverse:
            return one
        low, high = one.low, one.high
        return cls(1 / one.value, 1 / high if high else None, 1 / low if low else None)

    def in_unit(self, unit: str) -> str:
        text = in_unit(self.value, unit)
        if self.low and self.high and self.high < float("inf"):
            text += f" ({_short(self.low)}–{_short(self.high)})"
        return text

    def verdict(self, guess: float) -> str:
        """How far off the guess was, which an uncertain measurement cannot always tell."""
        factor = max(guess / self.value, self.value / guess)
        if factor < CLOSE:
            return "spot on"
        if self.low and self.high and self.low <= guess <= self.high:
            return "within what was measured"
        return f"a factor of {_short(factor)} between them"


_of_this_notebook: dict[str, tuple[Guess, Measured]] = {}


def kept(question: str) -> Guess | None:
    """The reader's last answer to this question, from whichever day."""
    rows = reader.read(TABLE, ("question", "value", "unit", "final"))
    for row in reversed(rows):
        value, of_a_reader = row["value"], row["question"] == question
        if of_a_reader and isinstance(value, (int, float)) and value > 0:
            return Guess(question, float(value), str(row["unit"]), row["final"] is True)
    return None


def keep(guess: Guess) -> None:
    rows = reader.read(TABLE, ("question",))
    others = [row for row in rows if row["question"] != guess.question]
    reader.write(TABLE, [*others, asdict(guess)])


def hold(guess: Guess | None, question: str, measured: Measured, unit: str) -> None:
    """Remember it for the table at the chapter's end."""
    if guess is None:
        _of_this_notebook.pop(question, None)
    else:
        _of_this_notebook[question] = replace(guess, unit=unit), measured


def table_of_guesses() -> str:
    """What was said and what was measured in this notebook, in Markdown; "" without any."""
    if not _of_this_notebook:
        return ""
    rows = [
        f"| {guess.question.replace('|', '/')} | {guess.said} | {measured.in_unit(guess.unit)} | "
        f"{measured.verdict(guess.value)} |"
        for guess, measured in _of_this_notebook.values()
    ]
    return "\n".join(
        ["| you were asked | you said | measured | |", "| --- | --- | --- | --- |", *rows]
    )


def in_unit(value: float, unit: str) -> str:
    return f"{_short(value)} {unit}"


def _short(value: float) -> str:
    """In the two digits that mean something."""
    return number(float(f"{value:.2g}"))
