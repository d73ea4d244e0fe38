"""From one notebook to the verdicts on all exercises of its chapter."""

from __future__ import annotations

import atexit
import functools
import hashlib
import inspect
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter, strftime

import torch

from accel_lab import __version__, catalog
from accel_lab.exercises import _data
from accel_lab.grading import isolation, reader
from accel_lab.grading.factory import SandboxFactory
from accel_lab.grading.failure import GraderFault, printable
from accel_lab.grading.isolation import Isolation
from accel_lab.grading.judging import Verdict, judge
from accel_lab.grading.lookup import exercises
from accel_lab.grading.sandboxed import Sandboxed


@dataclass(frozen=True)
class Entry:
    """What came of one notebook: a line of the journal.

    unreadable: why, '' for one that was judged · isolation, isolated, why: what held the answers,
    whether that makes a mark, and if not, why there was nothing better · seed: of the cases ·
    notebook, tasks: digests of what was handed in and of the exercises · seconds: it took.
    """

    learner: str
    path: str
    technique: str
    points: int
    most: int
    unreadable: str
    verdicts: list[Verdict]
    isolation: str
    isolated: bool
    why: str
    seed: int | None
    notebook: str
    tasks: str
    version: str = __version__
    graded: str = field(default_factory=lambda: strftime("%Y-%m-%d %H:%M:%S"))
    seconds: float = 0.0

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, line: dict) -> Entry:
        """Raises TypeError or KeyError for what is no entry."""
        return cls(**line | {"verdicts": [Verdict(**one) for one in line["verdicts"]]})


def mark(factory: SandboxFactory, path: Path, technique: str, seed: int | None = None) -> Entry:
    """Read a submission and judge it. Raises GraderFault where that says nothing about the
    learner.
    """
    try:
        content = reader.content(path)
    except (reader.Unreadable, OSError) as error:
        return refused(technique, error)
    return mark_content(factory, content, technique, seed)


def mark_content(
    factory: SandboxFactory, content: bytes, technique: str, seed: int | None = None
) -> Entry:
    start, seed = perf_counter(), random.SystemRandom().randrange(2**32) if seed is None else seed
    digest = hashlib.sha256(content).hexdigest()
    try:
        notebook = reader.parse(content)
    except Exception as error:
        return _entry(factory.isolation, technique, seed, digest, [], unreadable=_why(error))
    verdicts = []
    for exercise in exercises(technique):
        try:
            side = Sandboxed(factory, notebook.answer(exercise.name), exercise.name)
        except Exception as error:
            verdicts.append(
                Verdict(exercise.name, 0, exercise.points, f"unreadable: {_why(error)}")
            )
            continue
        try:
            verdicts.append(judge(exercise, side, seed))
        except GraderFault:
            raise
        except Exception as error:
            verdicts.append(Verdict(exercise.name, 0, exercise.points, _why(error)))
        finally:
            side.close()
    seconds = round(perf_counter() - start, 3)
    return _entry(factory.isolation, technique, seed, digest, verdicts, seconds=seconds)


def _why(error: Exception) -> str:
    """The class goes on, whatever one notebook does to the grader; the teacher sees it."""
    kind = (
        ""
        if isinstance(error, reader.Unreadable)
        else f"the grader failed on this: {type(error).__name__}: "
    )
    return printable(kind + _one_line(error)[:200])


def _entry(
    isolation: Isolation,
    technique: str,
    seed: int | None,
    digest: str,
    verdicts: list[Verdict],
    unreadable: str = "",
    seconds: float = 0.0,
) -> Entry:
    return Entry(
        learner="",
        path="",
        technique=technique,
        points=sum(verdict.points for verdict in verdicts),
        most=sum(exercise.points for exercise in exercises(technique)),
        unreadable=unreadable,
        verdicts=verdicts,
        isolation=isolation.name,
        isolated=isolation.makes_a_mark,
        why=isolation.why,
        seed=seed,
        notebook=digest,
        tasks=tasks(technique),
        seconds=seconds,
    )


@functools.cache
def tasks(technique: str) -> str:
    """Changes when the exercises do: what was graded by other ones has to be graded again."""
    source = "".join(map(inspect.getsource, (catalog.exercises_of(technique), _data)))
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def refused(technique: str, error: Exception) -> Entry:
    """For what could not even be opened."""
    return _entry(isolation.best(), technique, None, "", [], unreadable=_one_line(error))


def _one_line(error: Exception) -> str:
    known = isinstance(error, OSError) and error.strerror
    return str(known or error).partition("\n")[0]


@functools.cache
def _factory_of_this_process() -> SandboxFactory:
    torch.set_num_threads(1)
    factory = SandboxFactory()
    atexit.register(factory.close)
    return factory


def mark_elsewhere(content: bytes, technique: str, seed: int | None) -> Entry:
    """The same on a worker of a cluster, whose process keeps its factory for the next one."""
    return mark_content(_factory_of_this_process(), content, technique, seed)
