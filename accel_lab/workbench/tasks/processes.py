"""Tasks on processes of this machine: a fresh one for each, several at a time."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, TypeVar

from accel_lab.workbench.granted import usable_cores
from accel_lab.workbench.interrupt import ends_when
from accel_lab.workbench.ranks.launch import RankFailed, launch
from accel_lab.workbench.tasks import WorkerDied

Task = TypeVar("Task")
ATTEMPTS = 3


def on_processes(
    function: Callable[..., Any], tasks: Iterable[tuple[Task, tuple]], jobs: int | None = None
) -> Generator[tuple[Task, Any], None, None]:
    """Call ``function(*arguments)`` for each (task, arguments); yield (task, value) as they come.

    jobs: how many at a time, by default as many as there are cores. A task whose process dies is
    given to another one; after the third its value is a WorkerDied. Closing the generator ends all
    processes. Raises what function raises.
    """
    jobs = jobs or usable_cores()
    end, left, running = threading.Event(), iter(tasks), {}

    def ask(arguments: tuple) -> Any:
        with ends_when(end):
            return _asked(function, arguments)

    pool = ThreadPoolExecutor(jobs)  # each waits for a process
    try:
        while True:
            for task, arguments in islice(left, jobs - len(running)):
                running[pool.submit(ask, arguments)] = task
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    finally:
        end.set()
        pool.shutdown(cancel_futures=True)


def _asked(function: Callable[..., Any], arguments: tuple) -> Any:
    for _ in range(ATTEMPTS):
        try:
            [(_, value)] = launch(function, 1, *arguments, backend=None, timeout=math.inf)
            return value
        except RankFailed as failed:
            if failed.how == "raised":
                raise failed.cause or failed from None
            death = failed.headline
    return WorkerDied(f"{ATTEMPTS} processes died of it; {death}")
