"""Tasks on the workers of a dask.distributed scheduler."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from itertools import islice
from typing import Any, TypeVar

from accel_lab.workbench.tasks import WorkerDied

Task = TypeVar("Task")


class NoCluster(RuntimeError):
    """There is no such cluster: one line that says why."""


def on_cluster(
    function: Callable[..., Any], tasks: Iterable[tuple[Task, tuple]], address: str
) -> Generator[tuple[Task, Any], None, None]:
    """Call ``function(*arguments)`` for each (task, arguments); yield (task, value) as they come.

    What a worker has not finished when it dies is given to another one; where several die of it,
    its value is a WorkerDied. Tasks are asked for a few ahead, so that they are never all in
    memory. Raises NoCluster, and what function raises.
    """
    try:
        from distributed import Client, KilledWorker, as_completed
    except ModuleNotFoundError:
        raise NoCluster(
            "--scheduler needs the package distributed: pip install distributed"
        ) from None
    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise NoCluster(f"--scheduler {address}: {str(error).partition(chr(10))[0]}") from None
    with client:
        left, running, ahead = iter(tasks), as_completed(), {}
        places = 2 * max(1, sum(client.nthreads().values()))
        while True:
            for task, arguments in islice(left, places - len(ahead)):
                future = client.submit(function, *arguments, pure=False)
                ahead[future] = task
                running.add(future)
            if not ahead:
                return
            future = next(running)
            try:
                value = future.result()
            except KilledWorker as error:
                value = WorkerDied(str(error).partition("\n")[0])
            yield ahead.pop(future), value
