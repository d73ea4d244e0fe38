"""The outside's handle on the fork server (``inside.server``): start it, have boxes opened, end it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from accel_lab.grading import walls
from accel_lab.grading.walls import Limits, Wall

if TYPE_CHECKING:
    from accel_lab.grading.boxes import Box

STARTING = 60.0  # seconds: for importing torch on a busy machine
FIRST_USER, USERS = 60_001, 4_000


class GraderFault(RuntimeError):
    """The grader itself could not do its work: nothing is said of the learner's."""


class Server:
    """The fork server behind its wall, which gets ready while others get on with theirs: nothing
    here imports torch.

    Start it once; then a box takes hundredths of a second. ``close`` leaves nothing behind.
    """

    def __init__(self, limits: Limits | None = None, wall: Wall | None = None):
        self.limits, self.wall = limits or Limits(), wall or walls.best()
        self._lock, self._users, self._closed = threading.Lock(), count(), False
        self._start()

    def _start(self) -> None:
        self._scratch = Path(tempfile.mkdtemp(prefix="grading-"))
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command, environment = walls.command(self.wall, theirs.fileno(), self.limits, self._scratch)
        with (self._scratch / "errors").open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                env=environment,
                cwd=self._scratch,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is the grader's alone
            )
        theirs.close()
        self._is_ready = False

    def _await_ready(self) -> None:
        if self._is_ready:
            return
        self._control.settimeout(STARTING)
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            self._is_ready = self._control.recv(16) == b"ready"
        if not self._is_ready:
            why = (self._scratch / "errors").read_text(errors="replace").strip().rpartition("\n")[2]
            self._stop()
            raise GraderFault(
                f"no box could be prepared behind {self.wall.name}: {why or 'it took too long'}"
            )

    def open_box(self) -> Box:
        """Raises GraderFault. Behind a wall that does not keep boxes apart there must be only one
        at a time.
        """
        with self._lock:
            for _ in range(2):
                self._await_ready()
                try:
                    return self._open_box()
                except (
                    OSError
                ) as error:  # the server was ended, by a machine out of memory for instance
                    if self._closed:
                        raise GraderFault("grading was ended") from None
                    why = error
                    self._stop()
                    self._start()
            raise GraderFault(f"no box could be opened behind {self.wall.name}: {why}")

    def _open_box(self) -> Box:
        from accel_lab.grading.boxes import Box

        (line, their_line), (channel, their_channel) = socket.socketpair(), socket.socketpair()
        output, writing = os.pipe()
        user = FIRST_USER + next(self._users) % USERS
        try:
            socket.send_fds(
                self._control,
                [str(user).encode()],
                [their_line.fileno(), their_channel.fileno(), writing],
            )
            said, handles, *_ = socket.recv_fds(self._control, 100, 1)
            if not handles:
                raise OSError(said.decode() or "the server is gone")
        except BaseException:
            line.close(), channel.close()
            os.close(output)
            raise
        finally:
            their_line.close(), their_channel.close()
            os.close(writing)
        return Box(line, channel, output, handles[0], self)

    def close(self) -> None:
        self._closed = True
        self._stop()

    def _stop(self) -> None:
        self._control.close()  # the server ends when it sees this, and the wall with it
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
