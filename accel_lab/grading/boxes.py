"""Boxes: open one, ask it a question, hold it to its limits from outside, and see that nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

from accel_lab.grading.exchange import Exchange, ExchangeError
from accel_lab.grading.failure import ECHO, Failure
from accel_lab.grading.inside import wire
from accel_lab.grading.server import STARTING, GraderFault, Server

LOOKS = 0.1  # seconds between two looks at the memory and the processes of a box


class Box:
    """One box, seen from outside. What comes out of it is taken for data of unknown origin."""

    def __init__(self, channel: socket.socket, output: int, handle: int, server: Server):
        self.channel, self.output, self.handle, self.limits, self.wall = channel, output, handle, server.limits, server.wall
        self.channel.setblocking(False)
        os.set_blocking(output, False)
        self.pid = _pid_behind(handle)
        self.written = 0  # bytes of output so far
        self._incoming, self._outgoing = bytearray(), memoryview(b"")
        self.ended: Failure | None = None
        self._expect_ready()

    def _expect_ready(self) -> None:
        said = converse([self], None, STARTING)
        if said != [{"ready": True}]:
            self.close()
            raise GraderFault(f"a box could not be walled in: {said[0]}")

    def put(self, frame: bytes) -> None:
        self._outgoing = memoryview(bytes(self._outgoing) + frame)

    @property
    def wants_to_write(self) -> bool:
        return bool(self._outgoing)

    def write(self) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            self._outgoing = self._outgoing[self.channel.send(self._outgoing[: 1 << 20]) :]

    def read(self) -> Iterator[object]:
        """The frames that have come. Raises EOFError when no more can come, wire.BadFrame for what is none."""
        with contextlib.suppress(BlockingIOError):
            part = self.channel.recv(1 << 20)
            if not part:
                raise EOFError
            self._incoming += part
        while len(self._incoming) >= wire.LENGTHS.size:
            header, body = wire.lengths(self._incoming[: wire.LENGTHS.size])
            start = wire.LENGTHS.size
            if len(self._incoming) < start + header + body:
                return
            frame = bytes(self._incoming[start : start + header]), bytes(self._incoming[start + header : start + header + body])
            del self._incoming[: start + header + body]
            yield wire.unpack(*frame)

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.written += len(os.read(self.output, 1 << 16))

    def beyond_limits(self) -> Failure | None:
        if self.written > self.limits.output:
            return Failure("stopped", f"it wrote more than {self.limits.output >> 20} MB of output")
        processes, memory = _family(self.pid)
        if processes > self.limits.processes:
            return Failure("stopped", f"it started more than {self.limits.processes} processes")
        if memory > self.limits.memory:
            return Failure("stopped", f"it took more than {self.limits.memory >> 20} MB of memory")
        return None

    def end(self, failure: Failure) -> Failure:
        self.ended = failure
        self.close()
        return failure

    def close(self) -> None:
        """End all that runs in there, and wait until the system has forgotten it."""
        if self.handle < 0:
            return
        if not self.wall.makes_a_mark:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)  # number 1 of its own processes takes all along, this one does not
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, signal.SIGKILL)
        if not select.select([self.handle], [], [], 10)[0]:
            raise GraderFault("a box would not end")
        self.channel.close()
        os.close(self.output)
        os.close(self.handle)
        self.handle = -1


def _pid_behind(handle: int) -> int:
    with open(f"/proc/self/fdinfo/{handle}") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pid:"))


def _family(pid: int) -> tuple[int, int]:
    """How many processes come from this one, itself included, and their memory in bytes: shared pages count in shares."""
    processes, memory, found = 0, 0, [pid]
    while found:
        one = found.pop()
        with contextlib.suppress(OSError, ValueError, StopIteration):
            processes += 1
            for task in os.listdir(f"/proc/{one}/task"):
                found += map(int, Path(f"/proc/{one}/task/{task}/children").read_text().split())
            memory += _memory(one)
    return processes, memory


def _memory(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) * 1024
    except (OSError, StopIteration):
        _, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def request(statements: list, function: str, driver: str, drive: str, case: object, **more: object) -> dict[str, object]:
    """A question. Its number is used once, so that no answer can be there before the question. more: ``again``, ``on wires``, ``bytes``."""
    return {
        "id": secrets.token_hex(8), "statements": statements, "function": function, "driver": driver, "drive": drive, "case": case,
        "again": False, "on wires": False, "bytes": None, **more,
    }  # fmt: skip


def converse(boxes: list[Box], requests: list[dict] | None, seconds: float, exchange: Exchange | None = None) -> list[object]:
    """Put one question to each box, and carry what they say to one another; what each answered, or the Failure that came instead.

    The first answer counts. When one fails, the others are not waited for.
    """
    if any(box.ended for box in boxes):
        return [box.ended or ECHO for box in boxes]
    talk = _Talk(boxes, requests, exchange)
    for box, one in zip(boxes, requests or (), strict=False):
        box.put(wire.pack(one))
    deadline, next_look = monotonic() + seconds, monotonic() + LOOKS
    while not talk.over:
        readable, writable, _ = select.select(
            [box.channel for box in talk.open] + [box.output for box in talk.open],
            [box.channel for box in talk.open if box.wants_to_write],
            [],
            LOOKS,
        )
        now = monotonic()
        for rank, box in enumerate(boxes):
            if talk.is_done(rank):
                continue
            if box.channel in writable:
                box.write()
            if box.output in readable:
                box.drain()
            if box.channel in readable:
                talk.hear(rank)
            if not talk.is_done(rank) and now > next_look and (failure := box.beyond_limits()):
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

    def __init__(self, boxes: list[Box], requests: list[dict] | None, exchange: Exchange | None):
        self.boxes, self.requests, self.exchange = boxes, requests, exchange
        self.outcomes: list[object] = [None] * len(boxes)
        self.finished: set[int] = set()
        self._answered: set[int] = set()
        self._failed = False

    @property
    def over(self) -> bool:
        return self._failed or len(self.finished) == len(self.boxes)

    @property
    def open(self) -> list[Box]:
        return [box for rank, box in enumerate(self.boxes) if not self.is_done(rank)]

    def is_done(self, rank: int) -> bool:
        return self._failed or rank in self.finished

    def hear(self, rank: int) -> None:
        try:
            for frame in self.boxes[rank].read():
                self._heard(rank, frame)
                if self.is_done(rank):
                    return
        except (EOFError, ConnectionResetError):
            self.fail(rank, Failure("stopped", "the box ended without an answer"))
        except wire.BadFrame as error:
            self.fail(rank, Failure("stopped", f"not an answer: {error}"))
        except ExchangeError as error:
            self.fail_all(Failure("ExchangeError", str(error)))

    def _heard(self, rank: int, frame: object) -> None:
        if self.requests is None:
            self.outcomes[rank] = frame
            self.finished.add(rank)
            return
        asked = self.requests[rank]
        if type(frame) is not dict or frame.get("id") != asked["id"]:
            self.fail(rank, Failure("stopped", "not an answer to the question that was asked"))
        elif "exit" in frame:
            if rank not in self._answered:
                self.outcomes[rank] = Failure("ended", _how_it_ended(frame["exit"]))
            self._finish(rank)
        elif "does" in frame and self.exchange:
            for other, tensor in self.exchange.hear(
                rank, *(frame.get(key) for key in ("does", "other", "tensor", "where"))
            ).items():
                self.boxes[other].put(wire.pack(tensor))
        elif rank not in self._answered and ("value" in frame or "failed" in frame):
            self._answered.add(rank)
            self.outcomes[rank] = frame["value"] if "value" in frame else Failure.said(frame["failed"])
            if asked["again"]:
                self._finish(rank)

    def _finish(self, rank: int) -> None:
        self.finished.add(rank)
        if isinstance(self.outcomes[rank], Failure) and len(self.boxes) > 1:
            self._end_the_others(rank)

    def fail(self, rank: int, failure: Failure) -> None:
        self.outcomes[rank] = self.boxes[rank].end(failure)
        self._end_the_others(rank)

    def fail_all(self, failure: Failure) -> None:
        self._failed = True
        self.outcomes = [box.end(failure) for box in self.boxes]

    def too_late(self, seconds: float) -> None:
        """The first that is still computing is the one to blame; where the others wait comes along."""
        late = [rank for rank in range(len(self.boxes)) if rank not in self.finished]
        waiting = self.exchange.waiting() if self.exchange else {}
        blamed = next((rank for rank in late if rank not in waiting), late[0])
        stands = "".join(f"; rank {rank} {stand}" for rank, stand in waiting.items() if rank != blamed)
        self.fail(blamed, Failure("timeout", f"no answer within {seconds:.3g} s{stands}"))

    def _end_the_others(self, rank: int) -> None:
        self._failed = True
        for other, box in enumerate(self.boxes):
            if other != rank:
                self.outcomes[other] = box.end(ECHO)


def _how_it_ended(code: object) -> str:
    if type(code) is not int:
        return "the process ended without an answer"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"the process was killed by {signal.Signals(-code).name}"
    return f"the process ended with code {code} and without an answer"
