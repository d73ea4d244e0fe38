"""The fork server: has loaded torch once, and forks a box whenever it is asked to. No learner's code ever runs in this process.

    python -m inside.server CONTROL WALL LIMITS

CONTROL is a socket of the grader's. For each message there, which carries the two descriptors of a box (its channel and where
its output goes) and the number of its user, a child is forked that walls itself in and answers; its pidfd goes back. The grader then
speaks with the box alone, and with the pidfd it can tell when the box is gone and end it, whatever runs in there.
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

import numpy  # noqa: F401
import torch
import torch._dynamo
import torch.optim

from . import keeper


def main(control: socket.socket, wall: str, limits: dict) -> None:
    torch.set_num_threads(1)
    keeper.keep_large_memory_apart()
    gc.freeze()  # a collection in a child would write to, and so copy, all that it shares
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # a box that has ended leaves nothing behind to be waited for
    walled = wall == "bubblewrap"
    own_processes = os.open("/proc/self/ns/pid", os.O_RDONLY) if walled else -1
    keeper.adopt_orphans()
    control.sendall(b"ready")
    while True:
        message, descriptors, *_ = socket.recv_fds(control, 16, 2)
        if not walled:
            end_strays()
        if not message:
            return
        if walled:
            keeper.unshare(keeper.NEW_PROCESSES)  # for the next child, which is number 1 there: when it ends, all in it do
        child = os.fork()
        if child == 0:
            keeper.live(*descriptors, wall, limits, user=int(message))
        if walled:
            keeper.enter(own_processes, keeper.NEW_PROCESSES)
        handle = os.pidfd_open(child)  # it is there still: it waits for the grader's first word
        socket.send_fds(control, [b"forked"], [handle])
        for descriptor in (*descriptors, handle):
            os.close(descriptor)


def end_strays() -> None:
    """Without processes of its own, what a box has started outlives it; but then boxes are opened one at a time."""
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
