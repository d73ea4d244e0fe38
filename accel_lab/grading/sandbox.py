"""One sandbox: ask it a question, hold it to its limits from outside, and see that nothing of it is
left.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import socket
from collections import deque
from collections.abc import Generator
from pathlib import Path
from time import clock_gettime, monotonic, sleep

from accel_lab.grading.exchange import Exchange, ExchangeError
from accel_lab.grading.failure import ECHO, Failure, GraderFault
from accel_lab.grading.inside import frames
from accel_lab.grading.isolation import STARTING, Isolation, Limits

LOOKS = 0.1  # seconds between two looks at the memory and the processes of a sandbox
# with a process, to clock_gettime: what it has computed, see clock_getcpuclockid(3)
CLOCK_OF_PROCESS = 2


class Line:
    """One end of a socket: frames to and fro, without ever waiting."""

    def __init__(self, end: socket.socket):
        end.setblocking(False)
        self.end = end
        self._incoming, self._outgoing = bytearray(), deque()

    def fileno(self) -> int:
        return self.end.fileno()

    def put(self, frame: bytes) -> None:
        self._outgoing.append(memoryview(frame))

    @property
    def wants_to_write(self) -> bool:
        return bool(self._outgoing)

    def write(self) -> None:
        try:
            with contextlib.suppress(BlockingIOError):
                left = self._outgoing[0][self.end.send(self._outgoing[0][: 1 << 20]) :]
                self._outgoing.popleft()
                if left:
                    self._outgoing.appendleft(left)
        except (BrokenPipeError, ConnectionResetError):
            self._outgoing.clear()  # nobody reads any more

    def read(self, to_the_end: bool = False) -> list[object]:
        """The frames that have come. Raises EOFError when no more can come, frames.BadFrame for
        what is none. to_the_end: all that is there, where nobody writes any more.
        """
        with contextlib.suppress(BlockingIOError):
            while part := self.end.recv(1 << 20):
                self._incoming += part
                if not to_the_end:
                    break
            if not part:
                raise EOFError
        came = []
        while len(self._incoming) >= frames.LENGTHS.size:
            header, body = frames.lengths(self._incoming[: frames.LENGTHS.size])
            start, end = frames.LENGTHS.size + header, frames.LENGTHS.size + header + body
            if len(self._incoming) < end:
                break
            came.append(
                frames.unpack(
                    bytes(self._incoming[frames.LENGTHS.size : start]),
                    bytes(self._incoming[start:end]),
                )
            )
            del self._incoming[:end]
        return came

    def close(self) -> None:
        self.end.close()


class Sandbox:
    """One sandbox, seen from outside. ``supervisor``: the line to its own first process, which is
    ours · ``channel``: to the process that answers; what comes from there is taken for data of
    unknown origin.
    """

    def __init__(
        self,
        supervisor: socket.socket,
        channel: socket.socket,
        output: int,
        handle: int,
        limits: Limits,
        isolation: Isolation,
    ):
        self.supervisor, self.channel = Line(supervisor), Line(channel)
        self.output, self.handle = output, handle
        self.limits, self.isolation = limits, isolation
        os.set_blocking(output, False)
        self.pid = _pid_behind(handle)
        self.written = 0  # bytes of output so far
        self.has_process = False  # one that was asked, and may be asked again
        self.ended: Failure | None = None
        self._expect_ready()

    def _expect_ready(self) -> None:
        said = converse([self], None, STARTING)
        if said != [{"ready": True}]:
            self.close()
            raise GraderFault(f"a sandbox could not be isolated: {said[0]}")

    def ask(self, question: dict) -> None:
        (self.channel if self.has_process else self.supervisor).put(frames.pack(question))
        self.has_process = True

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.written += len(os.read(self.output, 1 << 16))

    def beyond_limits(self) -> Failure | None:
        if self.written > self.limits.output:
            return Failure("stopped", f"it wrote more than {self.limits.output >> 20} MB of output")
        family = _family(self.pid)
        # First of all: to count the memory of very many would take too long.
        if len(family) > self.limits.processes:
            return Failure("stopped", f"it started more than {self.limits.processes} processes")
        memory = 0
        for process in family:
            memory += _memory(process)
            if memory > self.limits.memory:
                most = self.limits.memory >> 20
                return Failure("stopped", f"it took more than {most} MB of memory")
        return None

    def computed(self) -> float:
        """Seconds on a core, of the process that may be asked again, as the system counts them:
        nobody can set that clock, and waiting, for a busy core or a busy grader, is not on it. 0
        when it has ended.
        """
        processes, patience = _family(self.pid)[1:], monotonic() + LOOKS
        # what it does just now is counted when it comes to rest
        while any(map(_runs, processes)) and monotonic() < patience:
            sleep(0.0005)
        with contextlib.suppress(OSError):
            return sum(clock_gettime(~process << 3 | CLOCK_OF_PROCESS) for process in processes)
        return 0.0

    @contextlib.contextmanager
    def still(self) -> Generator[None]:
        """Nothing in the sandbox runs meanwhile, as long as what runs there can start nothing new
        (``again``).
        """
        family = _family(self.pid)
        _tell(family, signal.SIGSTOP)
        try:
            yield
        finally:
            _tell(family, signal.SIGCONT)

    def end(self, failure: Failure) -> Failure:
        self.ended = failure
        self.close()
        return failure

    def close(self) -> None:
        """End all that runs in there, and wait until the system has forgotten it."""
        if self.handle < 0:
            return
        if not self.isolation.makes_a_mark:
            # number 1 of its own processes takes all along, this one does not
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, signal.SIGKILL)
        if not select.select([self.handle], [], [], STARTING)[0]:
            raise GraderFault("a sandbox would not end")
        patience = monotonic() + LOOKS
        with contextlib.suppress(ProcessLookupError):
            # it has ended; until the zygote has taken note of that, it can still be seen
            while monotonic() < patience:
                signal.pidfd_send_signal(self.handle, 0)
                sleep(0.0005)
        self.supervisor.close()
        self.channel.close()
        os.close(self.output)
        os.close(self.handle)
        self.handle = -1


def _pid_behind(handle: int) -> int:
    with open(f"/proc/self/fdinfo/{handle}") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pid:"))


def _family(pid: int) -> list[int]:
    """The processes that come from this one, itself included."""
    family, found = [], [pid]
    while found:
        one = found.pop()
        family.append(one)
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{one}/task"):
                found += map(int, Path(f"/proc/{one}/task/{task}/children").read_text().split())
    return family


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return (
            Path(f"/proc/{pid}/stat")
            .read_text(errors="replace")
            .rpartition(") ")[2]
            .startswith("R")
        )
    return False


def _memory(pid: int) -> int:
    """bytes: shared pages count in shares. 0 for a process that is gone."""
    with contextlib.suppress(OSError, StopIteration), open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) * 1024
    with contextlib.suppress(OSError, ValueError):
        _, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _tell(processes: list[int], what: signal.Signals) -> None:
    for one in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, what)


def request(
    statements: list, function: str, driver: str, drive: str, case: object, **more: object
) -> dict[str, object]:
    """A question. Its number is used once, so that no answer can be there before the question.
    more: ``again``, ``linked``, ``bytes``.
    """
    return {
        "id": secrets.token_hex(8),
        "statements": statements,
        "function": function,
        "driver": driver,
        "drive": drive,
        "case": case,
        "again": False,
        "linked": False,
        "bytes": None,
        **more,
    }


def converse(
    sandboxes: list[Sandbox],
    requests: list[dict] | None,
    seconds: float,
    exchange: Exchange | None = None,
) -> list[object]:
    """Put one question to each sandbox, and carry what they say to one another; what each answered,
    or the Failure that came instead.

    The first answer counts. When one fails, the others are not waited for.
    """
    if any(sandbox.ended for sandbox in sandboxes):
        return [sandbox.ended or ECHO for sandbox in sandboxes]
    talk = _Talk(sandboxes, requests, exchange)
    for sandbox, one in zip(sandboxes, requests or (), strict=False):
        sandbox.ask(one)
    deadline, next_look = monotonic() + seconds, monotonic() + LOOKS
    while not talk.over:
        lines = [line for sandbox in talk.open for line in (sandbox.supervisor, sandbox.channel)]
        readable, writable, _ = select.select(
            lines + [sandbox.output for sandbox in talk.open],
            [line for line in lines if line.wants_to_write],
            [],
            LOOKS,
        )
        now = monotonic()
        for rank, sandbox in enumerate(sandboxes):
            if talk.is_done(rank):
                continue
            for line in (sandbox.supervisor, sandbox.channel):
                if line in writable:
                    line.write()
            if sandbox.output in readable:
                sandbox.drain()
            if sandbox.channel in readable:
                talk.hear(rank)
            if not talk.is_done(rank) and sandbox.supervisor in readable:
                talk.hear_supervisor(rank)
            if not talk.is_done(rank) and now > next_look and (failure := sandbox.beyond_limits()):
                talk.fail(rank, failure)
        if now > next_look:
            next_look = monotonic() + LOOKS
        if exchange and not talk.over and (why := exchange.stuck(talk.finished)):
            talk.fail_all(Failure("ExchangeError", why))
        if monotonic() > deadline and not talk.over:
            talk.too_late(seconds)
    return talk.outcomes


class _Talk:
    """Who has answered what, while a question is open."""

    def __init__(
        self, sandboxes: list[Sandbox], requests: list[dict] | None, exchange: Exchange | None
    ):
        self.sandboxes, self.requests, self.exchange = sandboxes, requests, exchange
        self.outcomes: list[object] = [None] * len(sandboxes)
        self.finished: set[int] = set()
        self._answered: set[int] = set()
        self._failed = False

    @property
    def over(self) -> bool:
        return self._failed or len(self.finished) == len(self.sandboxes)

    @property
    def open(self) -> list[Sandbox]:
        return [sandbox for rank, sandbox in enumerate(self.sandboxes) if not self.is_done(rank)]

    def is_done(self, rank: int) -> bool:
        return self._failed or rank in self.finished

    def hear_supervisor(self, rank: int) -> None:
        """It is ready, or the process that it had answer has ended."""
        sandbox = self.sandboxes[rank]
        try:
            for frame in sandbox.supervisor.read():
                if self.requests is None:
                    self.outcomes[rank] = frame
                    self.finished.add(rank)
                    return
                if "exit" not in frame:
                    raise EOFError  # the sandbox itself is at its end, of what it was done in there
                sandbox.has_process = False
                self.hear(rank, to_the_end=True)
                if not self.is_done(rank):
                    if rank not in self._answered:
                        self.outcomes[rank] = Failure("ended", _how_it_ended(frame["exit"]))
                    self._finish(rank)
        except (EOFError, ConnectionResetError):
            self.fail(rank, Failure("stopped", "the sandbox ended without an answer"))

    def hear(self, rank: int, to_the_end: bool = False) -> None:
        """What the answering process says."""
        try:
            for frame in self.sandboxes[rank].channel.read(to_the_end):
                if not self.is_done(rank):
                    self._heard(rank, frame)
        except (EOFError, ConnectionResetError):
            self.fail(rank, Failure("stopped", "the sandbox ended without an answer"))
        except frames.BadFrame as error:
            self.fail(rank, Failure("stopped", f"not an answer: {error}"))
        except ExchangeError as error:
            self.fail_all(Failure("ExchangeError", str(error)))

    def _heard(self, rank: int, frame: object) -> None:
        asked = self.requests[rank]
        of_this = type(frame) is dict and frame.get("id") == asked["id"]
        if of_this and "does" in frame and self.exchange:
            for other, tensor in self.exchange.hear(
                rank, *(frame.get(key) for key in ("does", "other", "tensor", "where"))
            ).items():
                self.sandboxes[other].channel.put(frames.pack(tensor))
        elif of_this and ("value" in frame or "failed" in frame):
            if rank not in self._answered:
                self._answered.add(rank)
                self.outcomes[rank] = (
                    frame["value"] if "value" in frame else Failure.said(frame["failed"])
                )
            if asked["again"]:
                self._finish(rank)
        else:
            self.fail(rank, Failure("stopped", "not an answer to the question that was asked"))

    def _finish(self, rank: int) -> None:
        self.finished.add(rank)
        if isinstance(self.outcomes[rank], Failure) and len(self.sandboxes) > 1:
            self._end_the_others(rank)

    def fail(self, rank: int, failure: Failure) -> None:
        self.outcomes[rank] = self.sandboxes[rank].end(failure)
        self._end_the_others(rank)

    def fail_all(self, failure: Failure) -> None:
        self._failed = True
        self.outcomes = [sandbox.end(failure) for sandbox in self.sandboxes]

    def too_late(self, seconds: float) -> None:
        """The first that is still computing is to blame; where the others wait comes along."""
        late = [rank for rank in range(len(self.sandboxes)) if rank not in self.finished]
        waiting = self.exchange.waiting() if self.exchange else {}
        blamed = next((rank for rank in late if rank not in waiting), late[0])
        stands = "".join(
            f"; rank {rank} {stand}" for rank, stand in waiting.items() if rank != blamed
        )
        self.fail(blamed, Failure("timeout", f"no answer within {seconds:.3g} s{stands}"))

    def _end_the_others(self, rank: int) -> None:
        self._failed = True
        for other, sandbox in enumerate(self.sandboxes):
            if other != rank:
                self.outcomes[other] = sandbox.end(ECHO)


def _how_it_ended(code: object) -> str:
    if type(code) is not int:
        return "the process ended without an answer"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"the process was killed by {signal.Signals(-code).name}"
    return f"the process ended with code {code} and without an answer"
