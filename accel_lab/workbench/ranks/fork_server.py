"""What the fork server imports before it forks ranks, so that no rank has to: torch, and what the
first optimizer pulls in.

Only imported there. A server whose caller was killed also removes the folder of its socket, which
multiprocessing leaves.
"""

import atexit
import contextlib
import os
from multiprocessing.forkserver import _forkserver

import cloudpickle  # noqa: F401
import numpy  # noqa: F401
import pydantic  # noqa: F401
import torch._dynamo
import torch.distributed
import torch.optim  # noqa: F401


@atexit.register
def remove_socket() -> None:
    if address := _forkserver._forkserver_address:  # ty: ignore[missing-attribute]
        with contextlib.suppress(OSError):  # gone; or the folder of another process's socket too
            os.unlink(address)
            os.rmdir(os.path.dirname(address))
