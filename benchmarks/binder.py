"""Every chapter on a machine like Binder's: run from top to bottom with one core and a gigabyte for
all of its processes.

The process that runs the notebook stands for JupyterLab's server, which shares the gigabyte there.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

COURSE = Path(__file__).parents[1] / "course"
MOST = 1 << 30  # bytes


def cases() -> Iterator[str]:
    for chapter in sorted(COURSE.glob("[0-9]*.ipynb")):
        yield f"{chapter.stem}: {executed(chapter)}"


def executed(chapter: Path) -> str:
    with tempfile.TemporaryDirectory() as folder, Group(f"accel_lab-{os.getpid()}") as group:
        command = [
            sys.executable,
            "-m",
            "papermill",
            chapter,
            f"{folder}/out.ipynb",
            "--cwd",
            COURSE,
            "--no-progress-bar",
        ]
        start, most = time.perf_counter(), 0
        with Path(folder, "said").open("w+") as said:
            process = subprocess.Popen(command, stdout=said, stderr=said, preexec_fn=group.enter)
            while process.poll() is None:
                most = max(most, group.bytes())
                time.sleep(0.1)
            seconds, said = (
                time.perf_counter() - start,
                Path(folder, "said").read_text().strip().rpartition("\n")[2],
            )
        outcome = f"{seconds:.0f} s, {most >> 20} MB at most of {MOST >> 20}"
        if group.killed():
            return f"{outcome}, and ended for want of memory"
        return f"{outcome}, and failed: {said}" if process.returncode else outcome


class Group:
    """A cgroup (version 1 or 2) that holds whoever enters it to MOST bytes."""

    def __init__(self, name: str):
        self._second = Path("/sys/fs/cgroup/cgroup.controllers").exists()
        self._folder = Path("/sys/fs/cgroup" if self._second else "/sys/fs/cgroup/memory", name)

    def __enter__(self) -> Group:
        try:
            self._folder.mkdir()
            (self._folder / ("memory.max" if self._second else "memory.limit_in_bytes")).write_text(
                str(MOST)
            )
        except OSError as error:
            raise SystemExit(
                f"binder: no cgroup can be made to hold a chapter to its memory ({error}): try "
                "it as root"
            ) from None
        return self

    def enter(self) -> None:
        """The process that calls this enters, with all that come from it, on one core."""
        (self._folder / "cgroup.procs").write_text("0")
        os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])

    def bytes(self) -> int:
        """What its processes hold that no file could be read for again."""
        names = ("anon", "shmem") if self._second else ("total_rss", "total_shmem")
        return sum(self._numbers("memory.stat")[name] for name in names)

    def killed(self) -> int:
        """How many processes were ended because they took more."""
        return self._numbers("memory.events" if self._second else "memory.oom_control")["oom_kill"]

    def _numbers(self, file: str) -> dict[str, int]:
        lines = (self._folder / file).read_text().splitlines()
        return {name: int(number) for name, number in map(str.split, lines)}

    def __exit__(self, *exception: object) -> None:
        for _ in range(100):  # what has just ended is forgotten soon
            with contextlib.suppress(OSError):
                self._folder.rmdir()
                return
            time.sleep(0.1)
