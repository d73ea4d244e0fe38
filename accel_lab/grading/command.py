"""Grades a class: finds the submissions, spreads them over the cores or a cluster, and writes down
what came of each at once.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from accel_lab.grading import isolation, marking, reader, report
from accel_lab.grading.factory import SandboxFactory
from accel_lab.grading.failure import GraderFault
from accel_lab.grading.journal import Journal
from accel_lab.grading.marking import Entry
from accel_lab.grading.submissions import Submission
from accel_lab.workbench.granted import usable_cores
from accel_lab.workbench.tasks import WorkerDied
from accel_lab.workbench.tasks.cluster import NoCluster, on_cluster


class Stopped(RuntimeError):
    """Grading could not go on: one line that says why, and what is kept."""


def grade(
    submissions: list[Submission],
    out: Path,
    factory: SandboxFactory | None,
    jobs: int | None = None,
    scheduler: str = "",
    again: bool = False,
) -> Generator[dict, None, None]:
    """Grade submissions; yields each entry as it comes, as JSON.

    Beside ``out``, a CSV, a folder of its name holds the pages and the journal, from which grading
    goes on where it was interrupted. scheduler: where they are spread over a cluster, instead of
    the factory's sandboxes here · again: everything anew, with the seeds of the time before.

    Closing the iterator writes what has been graded so far, and closes the factory. Raises
    Stopped.
    """
    folder = out.with_suffix("")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        journal = Journal(folder / "journal.jsonl")
        (folder / "journal.jsonl").touch()
    except OSError as error:
        raise Stopped(
            f"{error.filename or folder}: {error.strerror}; --out names the table, and a folder "
            "beside it is needed"
        ) from None
    todo = submissions if again else [one for one in submissions if not _is_known(one, journal)]
    seeds = {key: entry.seed for key, entry in journal.entries.items()} if again else {}
    if len(todo) < len(submissions):
        print(
            f"{len(submissions) - len(todo)} of {len(submissions)} were graded before and have "
            "not changed",
            file=sys.stderr,
        )
    tasks = [(one, seeds.get((one.learner, one.technique))) for one in todo]
    marked = _on_cluster(tasks, scheduler) if scheduler else _on_this_machine(tasks, factory, jobs)
    written = 0
    try:
        for submission, entry in tqdm(
            marked, total=len(todo), unit=" notebooks", disable=not sys.stderr.isatty()
        ):
            entry = replace(entry, learner=submission.learner, path=str(submission.path))
            try:
                journal.add(entry)
            except OSError as error:
                kept = (
                    f"{written} of {len(todo)} are graded and kept, the same command goes on "
                    "from there"
                )
                raise Stopped(f"{folder}: {error.strerror}; {kept}") from None
            written += 1
            yield entry.to_json()
    except GraderFault as error:
        raise Stopped(f"{error}; {written} of {len(todo)} are graded and kept") from None
    finally:
        marked.close()
        try:
            report.write(journal.entries.values(), out, folder)
        except OSError as error:
            raise Stopped(
                f"{out}: {error.strerror}; the verdicts themselves are kept in "
                f"{folder / 'journal.jsonl'}"
            ) from None


def _is_known(submission: Submission, journal: Journal) -> bool:
    entry = journal.entries.get((submission.learner, submission.technique))
    if (
        not entry
        or entry.tasks != marking.tasks(submission.technique)
        or (not entry.isolated and isolation.best().makes_a_mark)
    ):
        return False
    try:
        return entry.notebook == hashlib.sha256(reader.content(submission.path)).hexdigest()
    except (reader.Unreadable, OSError):
        return False


def _on_this_machine(
    tasks: list, factory: SandboxFactory, jobs: int | None
) -> Iterator[tuple[Submission, Entry]]:
    torch.set_num_threads(1)  # each job has a core of its own
    jobs = jobs or usable_cores()
    if not factory.isolation.makes_a_mark:
        jobs = 1  # weaker isolation does not keep sandboxes apart
    pool = ThreadPoolExecutor(jobs)
    try:
        futures = {
            pool.submit(marking.mark, factory, one.path, one.technique, seed): one
            for one, seed in tasks
        }
        for future in as_completed(futures):
            yield futures.pop(future), future.result()
    finally:
        factory.close()  # first, so that nobody waits for what is still being asked
        pool.shutdown(cancel_futures=True)


def _on_cluster(tasks: list, address: str) -> Iterator[tuple[Submission, Entry]]:
    """What cannot be read is refused here, at the end."""
    unreadable = []

    def readable() -> Iterator[tuple[Submission, tuple]]:
        for submission, seed in tasks:
            try:
                yield submission, (reader.content(submission.path), submission.technique, seed)
            except (reader.Unreadable, OSError) as error:
                unreadable.append((submission, marking.refused(submission.technique, error)))

    try:
        for submission, entry in on_cluster(marking.mark_elsewhere, readable(), address):
            if isinstance(entry, WorkerDied):
                raise GraderFault(str(entry))
            yield submission, entry
    except NoCluster as error:
        raise Stopped(str(error)) from None
    yield from unreadable
