"""Ranks: start them, stream what they say, tell who failed, leave nothing behind.

    for rank, value in launch(worker, 2, "an argument"):
        ...

runs ``worker("an argument")`` in two new processes that have already found each other
(``torch.distributed`` is initialized), and yields what either of them yields, as it comes.
``worker`` may be defined in a notebook cell. Closing the iterator ends the ranks. Under
``torchrun`` the same call starts nothing and uses the ranks that are there, on however many
machines: rank 0 then yields what all have yielded, the others yield nothing.

Four traps, and what is done about them here:

- ``fork`` after torch has run a thread pool hangs in the child, and ``spawn`` imports torch anew
  for each rank. A *fork server*, a process that has only imported torch, is forked instead: a rank
  is up in a tenth of a second, and shares its memory.
- A rank that fails breaks the connections of the others, whose errors then bury its own. Here a
  failed rank tells its error and stays, so that nobody else fails; of a rank that died without a
  word the others' errors are only the echo.
- A rank that hangs lets the others wait for gloo's 30 minutes. Here a wait ends after ``timeout``
  seconds, and those that did not come are asked where they stand.
- A caller that is killed cleans nothing up. Here every rank holds a line to its caller and dies
  with it.

A notebook's ■ or Ctrl-C is for the caller alone: ranks, and the fork server while it imports torch,
do not hear it. A caller may itself be a daemon, such as a worker of a pool or of dask.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from multiprocessing import forkserver, resource_tracker, spawn
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic
from typing import Any, Literal
from unittest import mock

import cloudpickle
import torch
import torch.distributed as dist

from accel_lab.workbench.interrupt import SLICE, go_on_or_raise, meanwhile
from accel_lab.workbench.ranks import rank as rank_side
from accel_lab.workbench.watched import telling

PRELOADED = ["torch", "torch.distributed", "accel_lab.workbench.ranks.fork_server"]
GATHERING = 1.0  # seconds: how long to look for the cause when a rank has failed because of another
IMPORTING = 60.0  # seconds: how long a rank may take to load what its worker needs
SOCKET_PATH = 70  # bytes of a temporary folder that leave room for the name of a socket in it
_starting = threading.Lock()


class RankFailed(RuntimeError):
    """A rank failed: the first one, the others failed because of it or were ended.

    rank: which · how: "raised" an exception, "died" without a word, or "hung" · cause: its
    exception, where it can travel between processes. The message has its traceback, or where it
    stands, and what it wrote last.
    """

    def __init__(
        self,
        rank: int,
        how: Literal["raised", "died", "hung"],
        message: str,
        cause: BaseException | None = None,
    ):
        super().__init__(message)
        self.rank, self.how, self.cause = rank, how, cause

    def __reduce__(self):
        return type(self), (self.rank, self.how, str(self), self.cause)

    @property
    def headline(self) -> str:
        """The first line of the message: which rank, and what happened to it."""
        return str(self).partition("\n")[0]


def launch(
    worker: Callable[..., Any],
    world_size: int,
    *args: Any,
    timeout: float = 30.0,
    threads: int = 1,
    backend: str | None = "auto",
    may_die: Collection[int] = (),
) -> Generator[tuple[int, Any], None, None]:
    """Run ``worker(*args)`` on ``world_size`` ranks; yield (rank, value) for all that they yield,
    or return.

    timeout: seconds that a rank may wait for another, or the caller for any of them · threads:
    torch's, per rank · backend: ``cpu`` is gloo, ``cuda`` NCCL, ``auto`` the latter where each rank
    can have a GPU of its own; None starts no process group · may_die: ranks without which the
    others go on: for one that dies (rank, RankFailed) is yielded. What ranks print is printed here,
    with the rank's number. Like any generator, the ranks stand still while nobody asks for more.

    Under torchrun its world is used, whatever ``world_size`` says, each rank has to yield equally
    often, and a death ends all; closing the iterator on rank 0 ends it on all. Raises RankFailed,
    OSError where there is no network between processes, Interrupted where another thread asks for
    the end (see ``workbench.interrupt``), and whatever pickling the worker raises.
    """
    if under_torchrun():
        yield from _with_torchrun(worker, args, timeout, threads, backend or "cpu")
        return
    ranks = _Ranks(world_size, timeout, may_die)
    try:
        resolved = rank_side.resolve_backend(backend, world_size) if backend else None
        task = rank_side.Task(
            worker, args, world_size, str(ranks.directory), timeout, threads, resolved
        )
        if backend and (interface := _loopback()):
            task.environment.setdefault("GLOO_SOCKET_IFNAME", interface)
        ranks.start(task)
        yield from ranks.stream()
    finally:
        ranks.stop()


def collect(
    worker: Callable[..., Any], world_size: int, *args: Any, **options: Any
) -> dict[int, list[Any]]:
    """``launch`` a worker and wait for its end: rank → all that it yielded, or returned.

    options, and what is raised: see ``launch``.
    """
    heard: dict[int, list[Any]] = {rank: [] for rank in range(world_size)}
    began = monotonic()
    with (
        telling(f"ranks at work: {world_size}") as say,
        meanwhile(lambda: say(f"for {monotonic() - began:.0f} s")),
    ):
        for rank, value in launch(worker, world_size, *args, **options):
            heard[rank].append(value)
    return heard


def failure_of(heard: Generator[Any, None, None], most: int = 20) -> RankFailed:
    """Listen to ranks, by ``launch`` or a run on ranks, until one fails; return the failure.

    Raises ValueError when none has failed by the end, or after the first ``most`` things heard.
    """
    with contextlib.closing(heard):
        try:
            for _ in itertools.islice(heard, most):
                pass
        except RankFailed as failed:
            return failed
    raise ValueError("no rank has failed")


def under_torchrun() -> bool:
    """Did torchrun start this process, as one rank of several?"""
    return dist.is_torchelastic_launched()


def _with_torchrun(
    worker: Callable, args: tuple, timeout: float, threads: int, backend: str
) -> Iterator[tuple[int, Any]]:
    """Rank 0 hands out what all have yielded, and tells the others whether to go on."""
    rank_side.join(timeout, threads, backend)
    is_first, going_on = dist.get_rank() == 0, torch.ones(())
    try:
        for value in rank_side.values(worker, args):
            everyone = [None] * dist.get_world_size() if is_first else None
            dist.gather_object(value, everyone)
            try:
                yield from enumerate(everyone or ())
            except GeneratorExit:
                dist.broadcast(torch.zeros(()), 0)
                raise
            dist.broadcast(going_on, 0)
            if not going_on:
                return
    finally:
        dist.destroy_process_group()


class _Ranks:
    """The processes of one launch, seen from the caller."""

    def __init__(self, world_size: int, timeout: float, may_die: Collection[int]):
        self.world_size, self.timeout, self.may_die = world_size, timeout, may_die
        self.missed: dict[int, RankFailed] = {}  # of those, who has died
        self.directory = Path(tempfile.mkdtemp(prefix="ranks-"))
        self.processes: list[multiprocessing.process.BaseProcess] = []
        self.answers: list[Connection] = []
        self.lifelines: list[Connection] = []
        self.working, self.importing, self.finished = (
            set(range(world_size)),
            set(range(world_size)),
            set(),
        )

    @property
    def patience(self) -> float:
        """seconds without a word after which a rank hangs: more while it imports, and the ranks'
        own timeouts come first.
        """
        return (max(self.timeout, IMPORTING) if self.importing else self.timeout) + GATHERING

    def start(self, task: rank_side.Task) -> None:
        if main := sys.modules.get("__mp_main__"):  # this process is itself multiprocessing's
            cloudpickle.register_pickle_by_value(main)
        # sent as arguments, each rank would keep the bytes
        rank_side.task_in(self.directory).write_bytes(cloudpickle.dumps(task))
        context = _context()
        for rank in range(self.world_size):
            answers, answering = context.Pipe(duplex=False)
            listening, lifeline = context.Pipe(duplex=False)
            self.answers.append(answers)
            self.lifelines.append(lifeline)
            process = context.Process(
                target=rank_side.main,
                args=(rank, str(self.directory), answering, listening),
                name=f"rank {rank}",
            )
            process.daemon = True
            with _starting, _undisturbed():
                process.start()
            self.processes.append(process)
            answering.close()
            listening.close()

    def stop(self) -> None:
        """End every rank with all that it has started, and wait until the system has forgotten
        them.
        """
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError, PermissionError, AttributeError):
                if process.pid is not None:
                    os.killpg(process.pid, signal.SIGKILL)
            process.kill()
        for connection in self.lifelines + self.answers:
            connection.close()
        for process in self.processes:
            wait([process.sentinel], timeout=5)
            if _exit_code(process) is not None:
                process.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def stream(self) -> Iterator[tuple[int, Any]]:
        taken, allowed = [0] * self.world_size, 1
        for rank, value in self._values():
            yield rank, value
            if rank in self.missed:
                continue
            taken[rank] += 1
            # The first to be asked for more: all get leave, so that none waits for another's.
            if taken[rank] == allowed:
                allowed += 1
                self._command(rank_side.LEAVE, self.working)

    def _values(self) -> Iterator[tuple[int, Any]]:
        while self.working:
            messages = list(self._hear(self.patience))
            if not messages:
                raise self._hung(
                    sorted(self.working), f"nothing was heard for {self.patience - GATHERING:g} s"
                )
            for rank, kind, content in messages:
                if kind == "value":
                    yield rank, content
                elif kind == "up":
                    self.importing.discard(rank)
                elif kind == "done":
                    self.working.discard(rank)
                    self.finished.add(rank)
                elif kind == "died" and rank in self.may_die:
                    self.working.discard(rank)
                    self.importing.discard(rank)
                    self.missed[rank] = self._died(rank, content)
                    yield rank, self.missed[rank]
            # Not before all have been read: what is dropped here would be missing from the
            # explanation.
            if failed := {
                rank: (kind, content)
                for rank, kind, content in messages
                if kind in ("failed", "died") and rank not in self.missed
            }:
                raise self._explained(failed)

    def _hear(self, patience: float) -> Iterator[tuple[int, str, Any]]:
        """One message from each rank that has something to say within ``patience``, and the deaths:
        (rank, kind, content).
        """
        sentinels = {rank: self.processes[rank].sentinel for rank in sorted(self.working)}
        ready = _wait([*sentinels.values(), *(self.answers[rank] for rank in sentinels)], patience)
        for rank, sentinel in sentinels.items():
            try:
                if self.answers[rank].poll():  # a rank that has died may have said something before
                    message = self._read(rank)
                elif sentinel in ready:
                    message = "died", _exit_code(self.processes[rank])
                else:
                    continue
            except (EOFError, OSError):
                message = "died", _exit_code(self.processes[rank])
            yield rank, *message

    def _read(self, rank: int) -> tuple[str, Any]:
        kind, content = cloudpickle.loads(self.answers[rank].recv_bytes())
        if kind == "said":
            print(*(f"rank {rank}: {line}" for line in content), sep="\n")
        return kind, content

    def _command(self, command: bytes, ranks: Iterable[int]) -> None:
        for rank in ranks:
            with contextlib.suppress(OSError):  # it is dying: its answers will tell
                self.lifelines[rank].send_bytes(command)

    def _explained(self, seen: dict[int, tuple[str, Any]]) -> RankFailed:
        """Who is to blame? A rank that failed of its own; else one that died; else one that let the
        others wait.
        """
        deadline = monotonic() + GATHERING
        while (
            all(_is_echo(*entry) for entry in seen.values())
            and (left := deadline - monotonic()) > 0
        ):
            self.working -= seen.keys()
            if not self.working:
                break
            for rank, kind, content in self._hear(left):
                if kind in ("failed", "died"):
                    seen[rank] = kind, content
        for rank, (kind, content) in sorted(
            seen.items(), key=lambda item: getattr(item[1][1], "time", 0.0)
        ):
            if kind == "died":
                return self._died(rank, content)
            if not content.victim:
                return self._raised(rank, content)
        if self.missed:
            return next(iter(self.missed.values()))
        victims = {rank: failure for rank, (_, failure) in seen.items()}
        first, failure = next(iter(victims.items()))
        why = "".join(f"rank {rank} has already finished; " for rank in sorted(self.finished))
        why += f"rank {first} waited in vain ({failure.headline})"
        return self._hung(sorted(self.working - seen.keys()), why, victims)

    def _raised(self, rank: int, failure: rank_side.Failure) -> RankFailed:
        report = "".join(failure.report.format())
        message = (
            f"rank {rank} of {self.world_size} raised "
            f"{failure.headline}\n{report}{self._output(rank)}"
        )
        return RankFailed(rank, "raised", message, failure.exception)

    def _died(self, rank: int, code: int | None) -> RankFailed:
        how = (
            f"was killed by {signal.Signals(-code).name}"
            if code and code < 0
            else f"ended with code {code} amid its work"
        )
        return RankFailed(
            rank, "died", f"rank {rank} of {self.world_size} {how}{self._output(rank)}"
        )

    def _hung(
        self, absent: list[int], why: str, victims: Mapping[int, rank_side.Failure] | None = None
    ) -> RankFailed:
        """Name the first rank that others waited for; if there is none, all wait for one another.
        Quote where each stands.
        """
        stands = {rank: failure.report.stack for rank, failure in (victims or {}).items()}
        self.working = set(absent)
        self._command(rank_side.WHERE, absent)
        deadline = monotonic() + GATHERING / 2
        while self.working - stands.keys() and (left := deadline - monotonic()) > 0:
            for rank, kind, content in self._hear(left):
                # a rank may have given up waiting just before it was asked
                if kind in ("stands", "failed"):
                    stands.setdefault(rank, content if kind == "stands" else content.report.stack)
        where = "".join(
            f"\nrank {rank} stands here:\n{''.join(stands[rank].format())}"
            if rank in stands
            else f"\nrank {rank} does not even tell where it stands: it is stopped, or deep "
            "inside C code"
            for rank in sorted({*absent, *stands})
        )
        blamed = absent[0] if absent else min(stands)
        short = ", ".join(f"rank {rank} in {_function(stands[rank])}" for rank in sorted(stands))
        headline = f"rank {blamed} of {self.world_size} hangs: {why}" + f"; {short}" * bool(short)
        return RankFailed(blamed, "hung", f"{headline}{where}{self._output(blamed)}")

    def _output(self, rank: int, last: int = 2000) -> str:
        with contextlib.suppress(OSError):
            text = (self.directory / f"output-{rank}").read_text(errors="replace").strip()[-last:]
            return f"\nthe last it wrote:\n{text}" if text else ""
        return ""


def _wait(things: list[Any], patience: float) -> list[Any]:
    """Those of the connections and sentinels that have something to say within ``patience``."""
    end = monotonic() + patience
    while True:
        left = end - monotonic()
        if (ready := wait(things, timeout=max(0.0, min(SLICE, left)))) or left <= 0:
            return ready
        go_on_or_raise()


def _function(stack: traceback.StackSummary) -> str:
    """The innermost function there that is not a library's."""
    own = [one.name for one in stack if "site-packages" not in one.filename]
    return own[-1] if own else stack[-1].name if stack else "no function"


def _is_echo(kind: str, content: Any) -> bool:
    return kind == "failed" and content.victim


def _exit_code(process: multiprocessing.process.BaseProcess) -> int | None:
    # multiprocessing reads an exit code only once, from whichever thread comes first
    with _starting:
        process.join(1)
        return process.exitcode


def _context() -> Any:
    if sys.platform == "win32":
        warnings.warn(
            "Windows has no fork server: each rank imports torch anew, which takes seconds",
            stacklevel=2,
        )
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _loopback() -> str | None:
    """The interface on which ranks of one machine meet; None where gloo has to look for itself:
    Windows has no name for it, and the environment may name another one.
    """
    names = {name for _, name in socket.if_nameindex()} & {"lo", "lo0"}
    if not names or "GLOO_SOCKET_IFNAME" in os.environ:
        return None
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), timeout=1),
        ):
            return names.pop()
    except OSError as error:
        raise OSError(
            f"no usable network interface: 127.0.0.1, where ranks meet, does not answer ({error}); "
            "bring it up (ip link set lo up), or name another one in GLOO_SOCKET_IFNAME"
        ) from error


@contextlib.contextmanager
def _undisturbed() -> Generator[None]:
    """Start a process whatever this one is: a script, a daemon, or one that is interrupted now."""
    usual = spawn.get_preparation_data
    config = multiprocessing.current_process()._config  # ty: ignore[missing-attribute]

    def without_main(name: str) -> dict[str, Any]:
        # A rank needs nothing of ``__main__``, cloudpickle sends along what it uses: importing it
        # would run a script again.
        return {key: value for key, value in usual(name).items() if not key.startswith("init_main")}

    with contextlib.ExitStack() as undo:
        undo.enter_context(mock.patch.object(spawn, "get_preparation_data", without_main))
        # A daemon may start no others, lest they outlive it; ranks do not.
        undo.callback(config.__setitem__, "daemon", config.get("daemon"))
        config["daemon"] = False
        if len(os.fsencode(tempfile.gettempdir())) > SOCKET_PATH:
            undo.enter_context(mock.patch.object(tempfile, "tempdir", "/tmp"))
        if hasattr(signal, "pthread_sigmask"):
            resource_tracker.ensure_running()  # it would let SIGINT through again
            # inherited by what is started, which cannot look after itself yet
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            undo.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
        yield


def _forget_the_fork_server() -> None:
    """A forked process is no parent of its parent's server, and may not wait for it."""
    forkserver._forkserver = forkserver.ForkServer()
    for function in ("ensure_running", "connect_to_new_process", "set_forkserver_preload"):
        setattr(forkserver, function, getattr(forkserver._forkserver, function))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_fork_server)
