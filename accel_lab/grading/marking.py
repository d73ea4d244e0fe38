"""From one notebook to the verdicts on all exercises of its chapter, as plain JSON."""

from __future__ import annotations

import atexit
import functools
import hashlib
import inspect
import random
import sys
from dataclasses import asdict
from pathlib import Path
from time import perf_counter, strftime

import torch

from accel_lab import __version__
from accel_lab.exercises import exercises
from accel_lab.grading import reader, walls
from accel_lab.grading.boxed import Boxed
from accel_lab.grading.failure import printable
from accel_lab.grading.judging import Verdict, judge
from accel_lab.grading.server import GraderFault, Server
from accel_lab.grading.walls import Wall

Entry = dict


def mark(server: Server, path: Path, technique: str, seed: int | None = None) -> Entry:
    """Read a submission and judge it. Raises server.GraderFault where that says nothing about the
    learner.
    """
    try:
        content = reader.content(path)
    except (reader.Unreadable, OSError) as error:
        return refused(technique, error)
    return mark_content(server, content, technique, seed)


def mark_content(server: Server, content: bytes, technique: str, seed: int | None = None) -> Entry:
    start, seed = perf_counter(), random.SystemRandom().randrange(2**32) if seed is None else seed
    digest = hashlib.sha256(content).hexdigest()
    try:
        notebook = reader.parse(content)
    except Exception as error:
        return _entry(server.wall, technique, seed, digest, [], _why(error))
    verdicts = []
    for exercise in exercises(technique):
        try:
            side = Boxed(server, notebook.answer(exercise.name), exercise.name)
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
    return _entry(server.wall, technique, seed, digest, verdicts) | {
        "seconds": round(perf_counter() - start, 3)
    }


def _why(error: Exception) -> str:
    """The class goes on, whatever one notebook does to the grader; the teacher sees it."""
    kind = (
        ""
        if isinstance(error, reader.Unreadable)
        else f"the grader failed on this: {type(error).__name__}: "
    )
    return printable(kind + _one_line(error)[:200])


def _entry(
    wall: Wall,
    technique: str,
    seed: int | None,
    digest: str,
    verdicts: list[Verdict],
    unreadable: str = "",
) -> Entry:
    most = sum(exercise.points for exercise in exercises(technique))
    return {
        "technique": technique,
        "points": sum(verdict.points for verdict in verdicts),
        "most": most,
        "unreadable": unreadable,
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "wall": wall.name,
        "isolated": wall.makes_a_mark,
        "why": wall.why,
        "seed": seed,
        "notebook": digest,
        "tasks": tasks(technique),
        "version": __version__,
        "graded": strftime("%Y-%m-%d %H:%M:%S"),
    }


@functools.cache
def tasks(technique: str) -> str:
    """Changes when the exercises do: what was graded by other ones has to be graded again."""
    source = inspect.getsource(sys.modules[exercises(technique)[0].drive.__module__])
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def refused(technique: str, error: Exception) -> Entry:
    """For what could not even be opened."""
    return _entry(walls.best(), technique, None, "", [], _one_line(error))


def _one_line(error: Exception) -> str:
    return str(
        error.strerror if isinstance(error, OSError) and error.strerror else error
    ).partition("\n")[0]


@functools.cache
def _server_of_this_process() -> Server:
    torch.set_num_threads(1)
    server = Server()
    atexit.register(server.close)
    return server


def mark_elsewhere(content: bytes, technique: str, seed: int | None) -> Entry:
    """The same on a worker of a cluster, whose process keeps its server for the next one."""
    return mark_content(_server_of_this_process(), content, technique, seed)
