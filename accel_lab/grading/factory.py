"""The outside's handle on the zygote (``inside.zygote``): start it, have sandboxes opened, end
it.
"""

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

from accel_lab.grading.failure import GraderFault
from accel_lab.grading.isolation import STARTING, Isolation, Limits, best, command

if TYPE_CHECKING:
    from accel_lab.grading.sandbox import Sandbox

FIRST_USER, USERS = 60_001, 4_000


class SandboxFactory:
    """The zygote in isolation, which gets ready while others get on with theirs: nothing here
    imports torch.

    Start it once; then a sandbox takes hundredths of a second. ``close`` leaves nothing behind.
    """

    def __init__(self, limits: Limits | None = None, isolation: Isolation | None = None):
        self.limits, self.isolation = limits or Limits(), isolation or best()
        self._lock, self._users, self._closed = threading.Lock(), count(), False
        self._start()

    def _start(self) -> None:
        # a folder would outlive a worker that is killed, so there is none where each sandbox has
        # its own
        self._scratch = (
            None if self.isolation.has_namespaces else Path(tempfile.mkdtemp(prefix="grading-"))
        )
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 open until the zygote ends
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        line, environment = command(self.isolation, theirs.fileno(), self.limits, self._scratch)
        self._process = subprocess.Popen(
            line,
            env=environment,
            cwd=self._scratch or "/",
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
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
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip()
            why = said.rpartition("\n")[2] or "it took too long"
            self._stop()
            raise GraderFault(f"no sandbox could be prepared with {self.isolation.name}: {why}")

    def open_sandbox(self) -> Sandbox:
        """Raises GraderFault. Where the isolation does not keep sandboxes apart there must be only
        one at a time.
        """
        with self._lock:
            for _ in range(2):
                self._await_ready()
                try:
                    return self._open_sandbox()
                except OSError as error:  # the zygote ended: a machine out of memory, for instance
                    if self._closed:
                        raise GraderFault("grading was ended") from None
                    why = error
                    self._stop()
                    self._start()
            raise GraderFault(f"no sandbox could be opened with {self.isolation.name}: {why}")

    def _open_sandbox(self) -> Sandbox:
        from accel_lab.grading.sandbox import Sandbox  # and torch: not needed to start

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
                raise OSError(said.decode() or "the zygote is gone")
        except BaseException:
            line.close(), channel.close()
            os.close(output)
            raise
        finally:
            their_line.close(), their_channel.close()
            os.close(writing)
        return Sandbox(line, channel, output, handles[0], self.limits, self.isolation)

    def close(self) -> None:
        self._closed = True
        self._stop()

    def _stop(self) -> None:
        self._control.close()  # the zygote ends when it sees this, and the isolation with it
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._errors.close()
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def __enter__(self) -> SandboxFactory:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
