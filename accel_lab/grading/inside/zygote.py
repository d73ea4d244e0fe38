"""The zygote: has loaded torch once, and forks a sandbox whenever it is asked to. No learner's
code ever runs in this process.

    python -m inside.zygote CONTROL ISOLATION LIMITS

CONTROL is a socket of the grader's. For each message there, which carries the three descriptors of
a sandbox (its line, its channel and where its output goes) and the number of its user, a child is
forked that isolates itself and answers; its pidfd goes back. The grader then speaks with the
sandbox alone, and with the pidfd it can tell when the sandbox is gone and end it, whatever runs in
there.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import time
from typing import NoReturn

import numpy  # noqa: F401
import torch
import torch._dynamo
import torch.optim

from . import supervisor


def main(control: socket.socket, isolation: str, limits: dict) -> None:
    torch.set_num_threads(1)
    supervisor.keep_large_memory_apart()
    gc.freeze()  # a collection in a child would write to, and so copy, all that it shares
    # a sandbox that has ended leaves nothing behind to be waited for
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    own_namespaces = isolation == "bubblewrap"
    supervisor.adopt_orphans()
    control.sendall(b"ready")
    while True:
        message, descriptors, *_ = socket.recv_fds(control, 16, 3)
        if not own_namespaces:
            end_strays()
        if not message:
            return
        if os.fork() == 0:
            open_sandbox(control, descriptors, isolation, limits, int(message))
        for descriptor in descriptors:
            os.close(descriptor)


def open_sandbox(
    control: socket.socket, descriptors: list[int], isolation: str, limits: dict, user: int
) -> NoReturn:
    """In a process between the zygote and the sandbox: it alone can give its child processes of its
    own, and then it is gone.
    """
    try:
        if isolation == "bubblewrap":
            # the child is number 1 there: when it ends, all in it do
            supervisor.unshare(supervisor.NEW_PROCESSES)
        sandbox = os.fork()
        if sandbox == 0:
            supervisor.live(*descriptors, isolation, limits, user)
        handle = os.pidfd_open(sandbox)  # it is there still: it waits for the grader's first word
        socket.send_fds(control, [b"forked"], [handle])
    except OSError as error:
        control.send(str(error).encode()[:100])
    finally:
        os._exit(0)


def end_strays() -> None:
    """Without processes of its own, what a sandbox has started outlives it; but then sandboxes are
    opened one at a time.
    """
    me = os.getpid()
    for _ in range(100):
        with open(f"/proc/{me}/task/{me}/children") as file:
            strays = file.read().split()
        if not strays:
            return
        for stray in strays:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(stray), signal.SIGKILL)
        time.sleep(0.01)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2], json.loads(sys.argv[3]))
