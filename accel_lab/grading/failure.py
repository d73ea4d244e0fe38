"""What came instead of an answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class GraderFault(RuntimeError):
    """The grader itself could not do its work: nothing is said of the learner's."""


@dataclass(frozen=True)
class Failure:
    """kind: the exception's name, or what ended the sandbox · text · where: the learner's line, ''
    if unknown · report: the whole traceback, for whoever has to repair it · rank: of those that
    were asked together, the one that failed.
    """

    kind: str
    text: str = ""
    where: str = ""
    report: str = ""
    rank: int | None = None

    @classmethod
    def said(cls, described: object) -> Failure:
        """From what a sandbox says of an exception in it: whatever that is, it is taken as text."""
        given = described if type(described) is dict else {}
        lengths = {"kind": 100, "text": 1000, "where": 100, "report": 4000}
        return cls(
            **{name: printable(str(given.get(name, ""))[:most]) for name, most in lengths.items()}
        )

    def __str__(self) -> str:
        """One line."""
        said = (
            self.kind
            + (f" in {self.where}" if self.where else "")
            + (f": {self.text}" if self.text else "")
        )
        return (f"rank {self.rank}: " if self.rank is not None else "") + said.partition("\n")[0]


def printable(text: str) -> str:
    """Without what could steer a terminal, or cannot be written to a file: of the characters that
    are not shown only newlines stay.
    """
    return "".join(
        letter
        if letter.isprintable() or letter == "\n"
        else letter.encode("unicode_escape").decode()
        for letter in text
    )


ECHO = Failure("stopped", "another rank failed")


def out_of_memory() -> Failure:
    return Failure("MemoryError", "more memory than the target allows")


def of_ranks(outcomes: list[object], messages: list[list[Tensor]]) -> dict[str, object] | Failure:
    """What ranks answered together, or the first failure among them: a rank that waits for one
    which failed is not to blame.
    """
    failed = [
        replace(one, rank=rank)
        for rank, one in enumerate(outcomes)
        if isinstance(one, Failure) and one != ECHO
    ]
    own = [one for one in failed if one.kind != "ExchangeError"]
    if own:  # the others then wait in vain, which is no fault of theirs
        return own[0]
    if failed:
        return replace(failed[0], rank=None, where="")  # it speaks of all ranks
    return {"ranks": outcomes, "messages": messages}
