"""What happens inside a rank: joining the others, running the worker, answering its caller, and
dying in time.

``workbench.launch`` starts the process and reads what it says; under ``torchrun`` the process is
already there and only ``join`` and ``values`` are used. A rank must never outlive its caller,
whatever happens to either, so it hangs on two threads:

- the *parent-death signal* (Linux): the kernel kills the rank when the fork server that made it
  dies;
- the *lifeline*: a pipe of which only the caller holds the other end. When the caller dies, even by
  SIGKILL, the pipe ends.

Each rank leads a session of its own, so Ctrl-C in a terminal or a notebook's interrupt reaches the
caller alone, and one ``killpg`` takes whatever processes the worker has started along.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import inspect
import io
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import cloudpickle
import torch
import torch.distributed as dist

from accel_lab.workbench.spans import SpanRecorder

IN_C = re.compile(r"\[[^\]\s]+\.(cc|cpp|h):\d+\] ")  # where in gloo's source an error was raised

_launches = count()  # by this process, which torchrun has started
# what the caller writes into the lifeline: leave for one more value; tell where you stand
LEAVE, WHERE = (b"+", b"?")


@dataclass(frozen=True)
class Task:
    """What every rank is to do. timeout: seconds a collective may last · directory: vanishes with
    the ranks.
    """

    worker: Callable[..., Any]
    args: tuple
    world_size: int
    directory: str
    timeout: float
    threads: int
    backend: str | None
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))


@dataclass(frozen=True)
class Failure:
    """A worker's exception on its way to the caller, who prints it with the source lines that only
    he knows.

    A *victim* failed only because another rank did: it waited in vain for one, or lost the
    connection to it.
    """

    time: float
    headline: str
    report: traceback.TracebackException
    exception: BaseException | None
    victim: bool

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        report = traceback.TracebackException.from_exception(error, lookup_lines=False)
        report.stack[:] = [frame for frame in report.stack if frame.filename != __file__]
        headline = IN_C.sub("", traceback.format_exception_only(error)[-1].strip())
        return cls(
            monotonic(), headline, report, error if _travels(error) else None, _is_victim(error)
        )


def _travels(error: BaseException) -> bool:
    try:
        return type(cloudpickle.loads(cloudpickle.dumps(error))) is type(error)
    except Exception:
        return False


def _is_victim(error: BaseException) -> bool:
    """gloo reports a lost or a late peer as a plain RuntimeError: only its text tells."""
    lost = (
        "Connection closed by peer",
        "Connection reset by peer",
        "Broken pipe",
        "Connection refused",
        "Socket closed",
    )
    late = ("Timed out waiting", "timed out", "Timeout", "timeout")
    return isinstance(error, dist.DistError) or (
        type(error) is RuntimeError and any(sign in str(error) for sign in lost + late)
    )


def task_in(directory: str | Path) -> Path:
    """Where the task of all ranks lies in their directory, pickled."""
    return Path(directory, "task")


def main(rank: int, directory: str, answers: Connection, lifeline: Connection) -> None:
    """The whole life of a rank that ``launch`` has started; the caller ends it."""
    _hang_on(directory)
    caller = Caller(rank, directory, answers, lifeline)
    try:
        with task_in(directory).open("rb") as file:
            task: Task = cloudpickle.load(file)
        os.environ.clear()
        os.environ.update(task.environment)
        tempfile.tempdir = directory
        torch.set_num_threads(task.threads)
        if task.backend:
            _join_local(task, rank)
        caller.tell("up")
        for value in values(task.worker, task.args):
            caller.tell("value", value)
            caller.await_leave()
        caller.tell("done")
    except BaseException as error:
        caller.tell("failed", Failure.of(error))
    # Staying, with every socket open, keeps the other ranks from failing too, and the first failure
    # the only one.
    threading.Event().wait()


def values(worker: Callable[..., Any], args: tuple) -> Iterator[Any]:
    """What the worker yields, or the one thing it returns."""
    result = worker(*args)
    if inspect.isgenerator(result):
        yield from result
    else:
        yield result


def _hang_on(directory: str) -> None:
    with contextlib.suppress(AttributeError, OSError):  # Windows has no sessions
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):  # what the worker starts need not be deaf to it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)


def end_at_once() -> None:
    """End this rank and all that it has started."""
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def die() -> None:
    """A mishap to study: this rank is killed. One that torchrun has started again is spared, to
    show how the run goes on.
    """
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        os.kill(os.getpid(), signal.SIGKILL)


class Caller:
    """The rank's end of the line: tells the caller things, waits for its leave, and dies when it
    does.
    """

    def __init__(self, rank: int, directory: str, answers: Connection, lifeline: Connection):
        self._answers, self._lifeline, self._directory = answers, lifeline, directory
        self._sending, self._leave = threading.Lock(), threading.Semaphore(0)
        # Descriptors 1 and 2 take what C++ libraries say: a rank that aborts explains itself there
        # and nowhere else.
        log = os.open(
            os.path.join(directory, f"output-{rank}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
        )
        os.dup2(log, 1), os.dup2(log, 2)
        sys.stdout = sys.stderr = _Voice(self)
        threading.Thread(target=self._listen, name="lifeline", daemon=True).start()

    def tell(self, kind: str, content: Any = None) -> None:
        message = cloudpickle.dumps((kind, content))
        with self._sending:
            self._answers.send_bytes(message)

    def await_leave(self) -> None:
        """A rank is at most one value ahead of its caller, so that a caller who pauses finds no
        collective timed out.
        """
        self._leave.acquire()

    def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while command := self._lifeline.recv_bytes():
                if command == LEAVE:
                    self._leave.release()
                elif command == WHERE:
                    self.tell("stands", _main_thread_stack())
        shutil.rmtree(self._directory, ignore_errors=True)
        end_at_once()


def _main_thread_stack() -> traceback.StackSummary:
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    stack = traceback.StackSummary.extract(traceback.walk_stack(frame), lookup_lines=False)
    stack.reverse()
    theirs = [i for i, entry in enumerate(stack) if entry.filename == __file__]
    return traceback.StackSummary.from_list(stack[theirs[-1] + 1 :] if theirs else stack)


class _Voice(io.TextIOBase):
    """What a worker prints, sent to the caller line by line."""

    def __init__(self, caller: Caller):
        self._caller, self._rest = caller, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        if lines:
            self._caller.tell("said", lines)
        return len(text)


def _join_local(task: Task, rank: int) -> None:
    """Find the others through a file in a directory that is fresh for each launch: a port could
    clash, an old file hangs.
    """
    # not as a URL, in which a folder with a space or % in its name would be another one
    store = dist.FileStore(str(Path(task.directory) / "store"), task.world_size)
    where = {"store": store, "rank": rank, "world_size": task.world_size}
    _join(task.backend or "gloo", rank, task.timeout, **where)


def join(timeout: float, threads: int, backend: str) -> None:
    """Join the ranks that ``torchrun`` has started, on this machine and on others."""
    torch.set_num_threads(threads)
    local_world = int(os.environ["LOCAL_WORLD_SIZE"])
    store, rank, world = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout)))
    # a second launch must not find the first one's addresses
    fresh = dist.PrefixStore(f"launch {next(_launches)}", store)
    backend = resolve_backend(backend, local_world)
    _join(backend, int(os.environ["LOCAL_RANK"]), timeout, store=fresh, rank=rank, world_size=world)


def _join(backend: str, local_rank: int, timeout: float, **where: Any) -> None:
    if "nccl" in backend:
        torch.cuda.set_device(local_rank)
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout), **where)


def resolve_backend(backend: str, local_world: int) -> str:
    """``cuda`` is NCCL, beside gloo for what lies on the CPU; ``auto`` takes it where every rank
    can have a GPU of its own.
    """
    if backend == "auto":
        backend = "cuda" if torch.cuda.device_count() >= local_world else "cpu"
    return {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}.get(backend, backend)


def device_of_rank() -> torch.device:
    """Where this rank computes: a GPU of its own, or the CPU."""
    return (
        torch.device("cuda", torch.cuda.current_device())
        if "nccl" in dist.get_backend_config()
        else torch.device("cpu")
    )


class RanksDiffer(ValueError):
    """Ranks hold what does not fit together. gloo would abort, or leave a rank with sums that are
    none.
    """


def gather(mine: Any) -> list[Any]:
    """What every rank has given, in their order, on every rank."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


@functools.cache
def _on_one_host() -> bool:
    boot = Path("/proc/sys/kernel/random/boot_id")
    return len(set(gather(boot.read_text() if boot.exists() else platform.node()))) == 1


def shared_between_ranks(size: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """One tensor [size] of each rank, zeros at first, in memory that all can read and write. Empty
    where that cannot be had.

    It has no name in any folder: when the last rank is gone, so is the memory. To be called by all
    ranks alike.
    """
    tensors, mine = [], -1
    with contextlib.suppress(AttributeError, OSError):  # only Linux has these files
        mine = os.memfd_create("gradients")
        os.ftruncate(mine, max(1, size) * dtype.itemsize)
    files = gather(f"/proc/{os.getpid()}/fd/{mine}")
    if _on_one_host() and mine >= 0:
        # containers of one machine cannot see each other's processes
        with contextlib.suppress(OSError, RuntimeError):
            tensors = [torch.from_file(file, shared=True, size=size, dtype=dtype) for file in files]
    everyone_has_them = all(gather(bool(tensors)))
    if mine >= 0:
        os.close(mine)
    return tensors if everyone_has_them else []


def start_together() -> float:
    """Wait for every rank and return the moment the last one came, on this process's
    ``perf_counter``.

    The processes of one machine share that clock, so their timelines fit exactly. Between machines
    each takes its own moment of leaving, and the timelines fit to within a message's travel time.
    """
    arrival = torch.tensor(perf_counter(), dtype=torch.float64)
    dist.all_reduce(arrival, dist.ReduceOp.MAX)
    return arrival.item() if _on_one_host() else perf_counter()


class RankSpanRecorder(SpanRecorder):
    """Spans of this rank; zero is the moment at which all ranks were ready to begin the step."""

    def __init__(self, device: torch.device | None = None):
        super().__init__(device, dist.get_rank())

    def restart(self) -> None:
        super().restart()
        self._zero = start_together()
