"""The grader: no wrong answer is credited, no right one refused, whatever is handed in; and nothing
of it is left behind.
"""

import contextlib
import gc
import json
import os
import random
import re
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy
import psutil
import pytest
import torch

from accel_lab.exercises import Exercise, LessMemory, LessTime, Wrong
from accel_lab.grading import factory as starting
from accel_lab.grading import isolation
from accel_lab.grading.factory import SandboxFactory
from accel_lab.grading.inside import frames
from accel_lab.grading.isolation import Isolation, Limits
from accel_lab.grading.judging import judge
from accel_lab.grading.lookup import find
from accel_lab.grading.reader import Unreadable, content, parse
from accel_lab.grading.sandboxed import Sandboxed
from accel_lab.grading.sides import Here

pytestmark = [
    pytest.mark.needs("bwrap"),
    pytest.mark.alone,
]  # limits of time are watched by the clock
LIMIT = 3.0  # seconds
PROMPT = 12.0  # after it, also on a busy machine


def notebook(*cells: str, **more) -> bytes:
    made = [
        {
            "cell_type": "code",
            "metadata": {},
            "outputs": [],
            "execution_count": None,
            "source": cell,
        }
        for cell in cells
    ]
    return json.dumps(
        {"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5, **more}
    ).encode()


def doubled(x):
    return x * 2


def cases(rng):
    for _ in range(2):
        yield {"x": torch.randn(8, generator=torch.Generator().manual_seed(rng.randrange(2**31)))}


def drive(answer, case):
    return answer(case["x"])


WRONG = Wrong(lambda x: x, "Twice.")
DOUBLE = Exercise("double", 2, "Twice x.", cases, drive, doubled, (WRONG,))


@pytest.fixture(scope="module")
def factory():
    with SandboxFactory(Limits(seconds=LIMIT, memory=600 << 20)) as factory:
        factory.open_sandbox().close()  # from here on its own processes are there
        yield factory


def grade(factory, code, exercise=DOUBLE, seed=0, function=None):
    side = Sandboxed(
        factory, parse(notebook(code)).answer(function or exercise.name), function or exercise.name
    )
    try:
        return judge(exercise, side, seed)
    finally:
        side.close()


def is_right(factory):
    return grade(factory, "def double(x):\n    return x * 2").points == 2


def strangers() -> set[int]:
    """Processes that come from this one."""
    return {process.pid for process in psutil.Process().children(recursive=True)}


# ---- A: cheating ----

CHEATS = {
    "A1 allclose": """\
import torch
torch.allclose = lambda *a, **k: True
def double(x):
    torch.allclose = lambda *a, **k: True
    return x""",
    "A1 eq": """\
import torch
def double(x):
    torch.Tensor.__eq__ = lambda *a: True
    torch.equal = lambda *a: True
    return x""",
    "A1 modules": """\
import sys
def double(x):
    sys.modules['inside.frames'] = sys.modules['accel_lab'] = sys
    return x""",
    "A2 equal": """\
class Same:
    def __eq__(self, other):
        return True
def double(x):
    return Same()""",
    "A2 subclass": """\
import torch
class T(torch.Tensor):
    pass
def double(x):
    return x.mul(2).as_subclass(T)""",
    "A2 reduce": """\
import os
class R:
    def __reduce__(self):
        return os.system, ('touch /tmp/reduced',)
def double(x):
    return R()""",
    "A2 dict": """\
class D(dict):
    pass
def double(x):
    return D(x=1)""",
    "A3 printed": """\
def double(x):
    print('points: 2 of 2', flush=True)
    return x""",
    "A3 written": """\
import os
def double(x):
    for fd in range(3, 256):
        try: os.write(fd, b'{"points": 2}' * 100)
        except OSError: pass
    return x""",
    "A3 forged": """\
import sys
def double(x):
    f = sys._getframe()
    while 'number' not in f.f_locals: f = f.f_back
    from inside import frames
    frames.send(f.f_locals['channel'], {'id': f.f_locals['number'], 'value': x})
    return x * 2""",
    "A3 another question": """\
import sys
def double(x):
    f = sys._getframe()
    while 'number' not in f.f_locals: f = f.f_back
    from inside import frames
    frames.send(f.f_locals['channel'], {'id': 'guessed', 'value': x * 2})
    return x * 2""",
    "A3 exit": """\
import sys, torch
def double(x):
    f = sys._getframe()
    while 'number' not in f.f_locals: f = f.f_back
    from inside import frames
    frames.send(f.f_locals['channel'], {'id': f.f_locals['number'], 'exit': 0})
    return x * 2""",
    "A4 reference": """\
def double(x):
    try: import accel_lab.exercises
    except ImportError: return x
    return x * 2""",
    "A4 gc": """\
import gc, torch
def double(x):
    right = [o for o in gc.get_objects() if type(o) is torch.Tensor and o.shape == x.shape
        and o is not x]
    return right[0] if right else x""",
    "A4 frames": """\
import sys
def double(x):
    f, found = sys._getframe(1), []
    while f:
        found += [v for k, v in f.f_locals.items()
            if k in ('want', 'right', 'reference', 'expected')]
        f = f.f_back
    return found[0] if found else x""",
    "A4 disk": """\
import os
def double(x):
    for place, _, files in os.walk('/'):
        if place.startswith(('/usr', '/proc', '/sys')): continue
        for one in files:
            if one in ('judging.py', 'lookup.py', 'accumulation.py') and 'accel_lab' in place:
                return x * 2
    return x""",
    "A4 proc": """\
import os
def double(x):
    mine = {str(os.getpid()), str(os.getppid()), '1', 'self', 'thread-self'}
    return x * 2 if [p for p in os.listdir('/proc') if p.isdigit() and p not in mine] else x""",
    "A5 network": """\
import socket
def double(x):
    try: socket.create_connection(('1.1.1.1', 53), 1)
    except OSError: return x
    return x * 2""",
    "A5 loopback": """\
import socket
def double(x):
    s = socket.socket(); s.settimeout(1)
    try: s.connect(('127.0.0.1', 22))
    except OSError: return x
    return x * 2""",
    "A5 kill": """\
import os
def double(x):
    try: os.kill(os.getppid(), 9)
    except OSError: pass
    return x""",
    "A5 kill all": """\
import os
def double(x):
    try: os.kill(-1, 9)
    except OSError: pass
    return x""",
    "A5 ptrace": """\
import ctypes
def double(x):
    c = ctypes.CDLL(None, use_errno=True)
    return x * 2 if c.ptrace(16, 1, 0, 0) == 0 else x""",
    "A5 namespaces": """\
import ctypes
def double(x):
    c = ctypes.CDLL(None)
    return x * 2 if c.unshare(0x10000000) == 0 else x""",
    "A5 mount": """\
import ctypes
def double(x):
    c = ctypes.CDLL(None)
    return x * 2 if c.mount(b'n', b'/tmp', b'tmpfs', 0, b'') == 0 else x""",
    "A5 locks": """\
import fcntl, inside
def double(x):
    try: fcntl.lockf(open(inside.__file__), fcntl.LOCK_SH)
    except OSError: return x
    return x * 2""",
    "A5 virtual machines": """\
import socket
def double(x):
    try: socket.socket(40, socket.SOCK_STREAM)
    except OSError: return x
    return x * 2""",
    "A5 terminals": """\
import os
def double(x):
    try: os.openpty()
    except OSError: return x
    return x * 2""",
    "A5 what others read": """\
import ctypes
def double(x):
    c = ctypes.CDLL(None)
    return x * 2 if c.inotify_add_watch(c.inotify_init(), b'/usr/lib', 32) >= 0 else x""",
    "A5 interrupt": """\
import os, signal
def double(x):
    os.kill(os.getppid(), signal.SIGINT)
    return x""",
    "A5 root": """\
import os
def double(x):
    try: os.setuid(0)
    except OSError: return x
    return x * 2""",
    "A5 write": """\
def double(x):
    import inside
    try: open(inside.__file__, 'a')
    except OSError: return x
    return x * 2""",
}


@pytest.mark.parametrize("code", CHEATS.values(), ids=CHEATS)
def test_cheating_earns_nothing(factory, code):
    verdict = grade(factory, code)
    assert verdict.points == 0
    assert verdict.reason
    assert is_right(factory)


@pytest.mark.parametrize("what", ["A2 equal", "A2 subclass", "A2 reduce", "A2 dict"])
def test_what_is_not_plain_is_called_so(factory, what):
    assert "not plain data" in grade(factory, CHEATS[what]).reason


# ---- R: running wild ----

WILD = {
    "exit": (
        """\
import sys
def double(x):
    sys.exit(0)""",
        "SystemExit",
    ),
    "_exit": (
        """\
import os
def double(x):
    os._exit(0)""",
        "ended with code 0 and without an answer",
    ),
    "segfault": (
        """\
import ctypes
def double(x):
    ctypes.string_at(0)""",
        "killed by SIGSEGV",
    ),
    "recursion": (
        """\
def double(x):
    return double(x)""",
        "RecursionError",
    ),
    "loop": (
        """\
def double(x):
    while True: pass""",
        "timeout: no answer within",
    ),
    "deaf loop": (
        """\
import signal
def double(x):
    for s in range(1, 64):
        try: signal.signal(s, signal.SIG_IGN)
        except (OSError, ValueError): pass
    while True: pass""",
        "timeout",
    ),
    "fork bomb": (
        """\
import os
def double(x):
    while True:
        try: os.fork()
        except OSError: pass""",
        "more than 64 processes",
    ),
    "empty files": (
        """\
import os, tempfile
def double(x):
    for i in range(10_000): os.mknod(f'{tempfile.gettempdir()}/{i}')
    return x * 2""",
        "No space left on device",
    ),
    "a sandbox that can do nothing more": (
        """\
import resource
def double(x):
    resource.prlimit(1, resource.RLIMIT_NPROC, (0, 0))
    return x * 2""",
        "the sandbox ended without an answer|timeout",
    ),
    "memory": (
        """\
def double(x):
    return [bytearray(1 << 20) for _ in range(10**6)]""",
        "MemoryError|of memory",
    ),
    "memory of many": (
        """\
import os, time
def double(x):
    for _ in range(5):
        if os.fork() == 0: break
    kept = [bytes(range(256)) * 4096 for _ in range(200)]
    time.sleep(60)""",
        "of memory",
    ),
    "output": (
        """\
def double(x):
    while True: print('x' * 10000)""",
        "of output",
    ),
    "disk": (
        """\
import tempfile
def double(x):
    with open(tempfile.gettempdir() + '/large', 'wb') as file:
        while True: file.write(bytes(1 << 20))""",
        "No space left on device|File too large",
    ),
    "reply": (
        """\
import torch
def double(x):
    return torch.zeros(1 << 25)""",
        "too much for an answer",
    ),
    "nested": (
        """\
def double(x):
    for _ in range(500): x = [x]
    return x""",
        "without end",
    ),
    "raises": (
        """\
def double(x):
    y = 1
    return y / 0""",
        "ZeroDivisionError in line 3 of cell 1: division by zero",
    ),
    "no import": (
        """\
from accel_lab.accumulation import nothing
def double(x):
    return nothing(x)""",
        "No module named 'accel_lab'",
    ),
}


@pytest.mark.parametrize(("code", "reason"), WILD.values(), ids=WILD)
def test_what_runs_wild_is_stopped_and_named(factory, code, reason):
    before, start = strangers(), time.monotonic()
    verdict = grade(factory, code)
    assert time.monotonic() - start < LIMIT + PROMPT
    assert verdict.points == 0
    assert re.search(reason, verdict.reason), verdict.reason
    assert "\n" not in verdict.reason
    assert strangers() <= before
    assert is_right(factory)


def test_a_daemon_left_behind_is_gone_and_costs_nothing(factory):
    before = strangers()
    code = (
        "import os, time\ndef double(x):\n    if os.fork() == 0:\n        os.setsid()\n        if "
        "os.fork() == 0:\n"
        "            while True: time.sleep(1)\n        os._exit(0)\n    return x * 2"
    )
    assert grade(factory, code).points == 2
    assert strangers() <= before


def test_a_traceback_comes_along_with_the_learners_line(factory):
    report = grade(factory, "def double(x):\n    return x.nonsense  # here").report
    assert "return x.nonsense  # here" in report
    assert 'File "<cell 1>", line 2' in report


# ---- V: values ----

VALUES = {
    "NaN": (
        """\
def double(x):
    return x * float('nan')""",
        "NaN",
    ),
    "dtype": (
        """\
def double(x):
    return (x * 2).double()""",
        "dtype torch.float64 instead of torch.float32",
    ),
    "shape": (
        """\
def double(x):
    return (x * 2)[None]""",
        "shape \\[1, 8\\] instead of \\[8\\]",
    ),
    "broadcast": (
        """\
def double(x):
    return (x * 2)[:1]""",
        "shape \\[1\\] instead",
    ),
    "random": (
        """\
import torch
def double(x):
    return torch.randn(8)""",
        "8 of 8 values differ|7 of 8",
    ),
    "nothing": (
        """\
def double(x):
    pass""",
        "a tensor was expected, None came",
    ),
}


@pytest.mark.parametrize(("code", "reason"), VALUES.values(), ids=VALUES)
def test_wrong_values_are_refused_precisely(factory, code, reason):
    verdict = grade(factory, code)
    assert verdict.points == 0
    assert re.search(reason, verdict.reason), verdict.reason


RIGHT = {
    "changes its input": """\
def double(x):
    return x.mul_(2)""",
    "keeps state": """\
calls = []
def double(x):
    calls.append(x)
    return calls[0] * 2""",
    "a constant of another cell": """\
two = 2
def double(x):
    return x * two""",
    "a helper, a class and an import": """\
import math as m
class A:
    two = m.floor(2.9)
def helper(x):
    return x * A.two
def double(x):
    return helper(x)""",
    "a line that begins with a percent sign": """\
def double(x):
    two = (
        7
        % 5
    )
    return x * two""",
    "a lambda": "double = lambda x: x * 2",
    "defined twice": """\
def double(x):
    return x
def double(x):
    return x * 2""",
    "what fails elsewhere": """\
import not_there
x = 1 / 0
def double(x):
    return x * 2""",
    "a decorator": """\
import torch
@torch.no_grad()
def double(x):
    return x * 2""",
    "recursion": """\
def double(x, n=2):
    return x * 0 if n == 0 else x + double(x, n - 1)""",
    "threads": """\
import threading
def double(x):
    out = []
    t = threading.Thread(target=lambda: out.append(x * 2))
    t.start(); t.join()
    return out[0]""",
    "processes": """\
import os
def double(x):
    if os.fork() == 0: os._exit(0)
    os.wait()
    return x * 2""",
    "locals of a training loop's name": """\
def double(x):
    two = 2
    return x * two
two = [double(1) for _ in range(10**9)]""",
    "made in a loop": """\
for two in range(3):
    pass
def double(x):
    return x * two""",
    "made where it can be": """\
try:
    import not_there as np
except ImportError:
    import numpy as np
def double(x):
    return x * int(np.int64(2))""",
    "an entry that is filled": """\
known = {}
known['two'] = 2
def double(x):
    return x * known['two']""",
    "a list that is filled": """\
squares = []
for i in range(3):
    squares.append(i)
def double(x):
    return x * squares[2]""",
    "a method for each type": """\
from functools import singledispatch
import torch
@singledispatch
def of(x): return x
@of.register
def _(x: torch.Tensor): return x * 2
def double(x):
    return of(x)""",
    "a class that takes a name over": """\
two = 2
class A:
    two = two
def double(x):
    return x * A.two""",
    "as a program": """\
if __name__ == '__main__':
    two = 2
def double(x):
    return x * two""",
    "shown": """\
def double(x):
    display(x)
    return x * 2""",
    "what it is used for": """\
seen = []
def double(x):
    seen.append(x)
    return x * 2
for i in range(10**9): seen.append(double(i))""",
    "pictures in words": "text = '"
    + "🙂" * 350_000
    + "'\ndef double(x):\n    return x * 2 if text else x",
    "grad": """\
import torch
def double(x):
    x.requires_grad_()
    (x * x).sum().backward()
    return x.grad""",
}


@pytest.mark.parametrize("code", RIGHT.values(), ids=RIGHT)
def test_right_is_right_however_it_is_written(factory, code):
    assert repr(grade(factory, code)) == "double: 2 of 2 points"


def test_a_right_answer_beside_a_fork_bomb_is_right(factory):
    bomb = threading.Thread(target=grade, args=(factory, WILD["fork bomb"][0]))
    bomb.start()
    time.sleep(0.3)
    assert is_right(factory)
    bomb.join()
    assert is_right(factory)


def test_no_right_answer_is_refused_and_verdicts_repeat(factory):
    assert all(is_right(factory) for _ in range(100))
    for name in ("A3 forged", "A4 gc"):
        assert len({repr(grade(factory, CHEATS[name])) for _ in range(10)}) == 1


# ---- D: ranks ----

RING = find("ring_average")
RANKS = {
    "raises": ("if rank == 1: return 1 / 0", r"rank 1: ZeroDivisionError in line 3 of cell 1"),
    "segfault": ("if rank == 1:\n        import ctypes; ctypes.string_at(0)", "rank 1: .*SIGSEGV"),
    "leaves": ("if rank == 1:\n        import os; os._exit(3)", "rank 1: .*code 3"),
    "deadlock": (
        "if world > 1: receive()",
        r"deadlock: rank 0 waits in line 3 of cell 1 for rank 1.*rank 1 waits in line 3",
    ),
    "skips": ("if rank != 1 and world > 1: receive()", "deadlock: .*rank 1 has finished"),
    "hangs": (
        "while rank == 1: pass\n    if world > 1: receive()",
        "rank 1: timeout.*rank 0 waits in line 4",
    ),
    "no tensor": ("send(3)", "NotPlain|not a tensor|AttributeError"),
}


@pytest.mark.parametrize(("line", "reason"), RANKS.values(), ids=RANKS)
def test_the_rank_at_fault_is_named(factory, line, reason):
    before, start = strangers(), time.monotonic()
    verdict = grade(
        factory,
        "def ring_average(gradient, share, rank, world, send, receive):\n    # what goes wrong\n  "
        f"  {line}\n    return gradient",
        RING,
    )
    assert time.monotonic() - start < LIMIT + PROMPT
    assert verdict.points == 0
    assert re.search(reason, verdict.reason), verdict.reason
    assert strangers() <= before


def test_shapes_that_do_not_match_are_told(factory):
    code = (
        "import torch\ndef train_on_rank(model, optimizer, x, y, batches, rank, world, "
        "all_reduce):\n    all_reduce(torch.ones(rank + 1))"
    )
    verdict = grade(factory, code, find("train_on_rank"))
    assert (
        "all_reduce of tensors that differ: rank 0 has [1] float32, rank 1 has [2] float32"
        in verdict.reason
    )


def test_a_missing_division_is_never_silent(factory):
    code = (
        "from torch.nn.functional import cross_entropy\n"
        "def train_on_rank(model, optimizer, x, y, batches, rank, world, all_reduce):\n    for "
        "batch in batches:\n"
        "        optimizer.zero_grad()\n        mine = batch[rank::world]\n"
        "        cross_entropy(model(x[mine]), y[mine], reduction='sum').backward()\n        "
        "all_reduce(model.weight.grad)\n        optimizer.step()"
    )
    assert "values differ" in grade(factory, code, find("train_on_rank")).reason


SMUGGLERS = {  # each sends all it has round the ring, for (almost) nothing
    "numbers alone": ("for one in passing: send(one)", "torch.stack([receive() for _ in passing])"),
    "the dtypes of nothing": (
        "for one in passing.view(torch.int32).tolist():\n            for at in range(0, 33, 3): "
        "send(torch.empty(0, dtype=DTYPES[one + 2**31 >> at & 7]))",
        "torch.tensor([sum(DTYPES.index(receive().dtype) << at for at in range(0, 33, 3)) - 2**31 "
        "for _ in passing],\n"
        "            dtype=torch.int32).view(torch.float32)",
    ),
}


@pytest.mark.parametrize(("sends", "receives"), SMUGGLERS.values(), ids=SMUGGLERS)
def test_nothing_goes_past_a_byte_budget(sends, receives):
    code = (
        "import torch\nDTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, "
        "torch.int64, torch.int32, torch.int16, torch.int8]\n"
        "def ring_average(gradient, share, rank, world, send, receive):\n    total = passing = "
        "gradient * share\n    for _ in range(world - 1):\n"
        f"        {sends}\n        passing = {receives}\n        total = total + passing\n    "
        "return total"
    )
    # These thousands of messages take a busy machine seconds.
    with SandboxFactory(Limits(seconds=60.0, memory=600 << 20)) as patient:
        verdict = grade(patient, code, RING)
    assert "within the budget: False" in verdict.reason


def test_a_sum_over_ranks_has_their_dtype(factory):
    code = (
        "import torch\ndef train_on_rank(model, optimizer, x, y, batches, rank, world, "
        "all_reduce):\n"
        "    flags = torch.ones(9 << 20, dtype=torch.bool)\n    all_reduce(flags)\n    raise "
        "LookupError('summed')"
    )
    assert (
        "summed" in grade(factory, code, find("train_on_rank")).reason
    )  # it was eight times as large then


def test_a_rank_does_not_see_what_the_others_have(factory):
    code = (
        "import sys\ndef ring_average(gradient, share, rank, world, send, receive):\n    f = "
        "sys._getframe()\n    while f:\n"
        "        if 'gradients' in (f.f_locals.get('request') or {}).get('case', {}): return "
        "gradient\n        f = f.f_back\n    raise LookupError('alone')"
    )
    assert "LookupError" in grade(factory, code, RING).reason


# ---- targets: evidence from outside ----


def large(rng):
    return {"x": torch.ones(1 << 20)}


IN_12_MB = replace(DOUBLE, target=LessMemory(large, 12 << 20, WRONG))


def test_memory_is_counted_by_the_system(factory):
    exercise = IN_12_MB
    assert grade(factory, "def double(x):\n    return x.mul_(2)", exercise).points == 2
    wasteful = "def double(x):\n    return x * 2 if len(x) < 99 else (x.repeat(8) * 2)[:len(x)]"
    verdict = grade(factory, wasteful, exercise)
    assert verdict.points == 0
    assert "more memory than the target allows (12 MB)" in verdict.reason
    unlimited = (
        "import resource\ndef double(x):\n    try: "
        "resource.setrlimit(resource.RLIMIT_DATA, (-1, -1))\n    except (OSError, "
        "ValueError): pass\n"
    )
    assert grade(factory, unlimited + wasteful[wasteful.index("\n") + 1 :], exercise).points == 0
    for elsewhere in ELSEWHERE.values():
        verdict = grade(factory, elsewhere, exercise)
        assert verdict.points == 0
        assert re.search(
            "Cannot allocate memory|File too large|Errno 11|more memory", verdict.reason
        )


@pytest.mark.parametrize(
    "imports",
    ["import torch, matplotlib.pyplot\ndef double(x):\n", "def double(x):\n    import pandas\n"],
    ids=["beside it", "in it"],
)
def test_what_an_import_holds_is_not_counted(imports):
    code = f"import torch\n{imports}    return torch.mul(x, 2, out=x)"
    # A busy machine takes seconds for such an import.
    with SandboxFactory(Limits(seconds=60.0, memory=600 << 20)) as patient:
        assert grade(patient, code, IN_12_MB).points == 2


ELSEWHERE = {  # than in its own memory, right as all of these are
    "shared": """\
import mmap
def double(x):
    m = mmap.mmap(-1, 16 << 20)
    for i in range(0, 16 << 20, 4096): m[i] = 1
    return x.mul_(2)""",
    "a file": """\
import tempfile
def double(x):
    with open(tempfile.gettempdir() + '/a', 'wb') as file: file.write(bytes(1 << 20))
    return x.mul_(2)""",
    "another process": """\
import os
def double(x):
    if os.fork() == 0:
        os._exit(len(bytes(1 << 24)) * 0)
    os.wait()
    return x.mul_(2)""",
    "one that outlives the question before": """\
import os, sys
def double(x):
    f = sys._getframe()
    while 'number' not in f.f_locals: f = f.f_back
    from inside import frames
    if len(x) < 99 and os.fork() == 0:
        os.setsid()
        while True:
            asked = frames.receive(f.f_locals['channel'])
            frames.send(f.f_locals['channel'], {'id': asked['id'], 'value': asked['case']['x'] * 2})
    return x * 2 if len(x) < 99 else (x.repeat(8) * 2)[: len(x)]""",
}


def test_time_is_taken_on_our_clock(factory):
    def slow(x):
        for _ in range(500_000):
            pass
        return x * 2

    def one(rng):
        return next(cases(rng))

    plain = Wrong(slow, "Slow.")
    exercise = Exercise(
        "double", 2, "", cases, drive, doubled, (plain,), target=LessTime(one, 0.5, plain)
    )
    assert grade(factory, "def double(x):\n    return x * 2", exercise).points == 2
    liar = (
        "import time\ntime.perf_counter = time.monotonic = time.time = lambda: 0.0\ndef "
        "double(x):\n    for _ in range(500_000): pass\n    return x * 2"
    )
    verdict = grade(factory, liar, exercise)
    assert verdict.points == 0
    assert "right, but slow" in verdict.reason
    assert verdict.hint == "Slow."
    busy = (
        "import threading\ndef double(x):\n    threading.Thread(target=lambda: [0 for _ in "
        "iter(int, 1)], daemon=True).start()\n    return x * 2"
    )
    assert "can't start new thread" in grade(factory, busy, exercise).reason
    gone = (
        "import os, sys\ndef double(x):\n    f = sys._getframe()\n    while 'number' not in "
        "f.f_locals: f = f.f_back\n    asked = f.f_locals\n"
        "    for _ in range(500_000): pass\n    if asked['request']['again']:\n        from inside "
        "import frames\n"
        "        frames.send(asked['channel'], {'id': asked['number'], 'value': x * 2})\n        "
        "os._exit(0)\n    return x * 2"
    )
    assert re.search("did not wait|ended with code 0", grade(factory, gone, exercise).reason)


def test_what_was_answered_in_no_time_is_charged_all_the_same(factory):
    """The system counts what a process has computed when it comes to rest, which may be after its
    answer is here.
    """
    side, case = (
        Sandboxed(factory, parse(notebook(GOOD)).answer("double"), "double"),
        {"x": torch.ones(3)},
    )
    assert all(side.ask_again(DOUBLE, case)[1] > 0 for _ in range(500))
    side.close()


def test_who_is_not_asked_stands_still_while_the_other_is_timed(factory):
    side = Sandboxed(factory, parse(notebook(GOOD)).answer("double"), "double")
    case = {"x": torch.ones(3)}
    side.ask_again(DOUBLE, case)
    with side.still():
        inside = [
            one
            for sandbox in side._sandboxes
            for one in (
                psutil.Process(sandbox.pid),
                *psutil.Process(sandbox.pid).children(recursive=True),
            )
        ]
        deadline = time.monotonic() + 5  # a signal has to be noticed
        while (states := [one.status() for one in inside]) != [psutil.STATUS_STOPPED] * 2:
            assert time.monotonic() < deadline, states
            time.sleep(0.01)
    assert side.ask_again(DOUBLE, case)[0].tolist() == [2.0, 2.0, 2.0]
    side.close()


def test_a_busy_grader_is_not_on_the_clock(factory):
    side = Sandboxed(factory, parse(notebook(GOOD)).answer("double"), "double")
    done, interval = threading.Event(), sys.getswitchinterval()
    busy = threading.Event()

    def grade_another():
        while not done.is_set():
            sum(range(1000))
            busy.set()

    case = {"x": torch.ones(3)}
    side.ask_again(DOUBLE, case)
    other = threading.Thread(target=grade_another)
    # Each of our dozens of system calls waits as long, which alone would use up the limit.
    side._deadline = time.monotonic() + 60
    sys.setswitchinterval(0.1)
    other.start()
    busy.wait()
    try:
        start = time.monotonic()
        _, seconds = side.ask_again(DOUBLE, case)
        assert time.monotonic() - start > 0.1
    finally:
        done.set()
        sys.setswitchinterval(interval)
    other.join()
    side.close()
    assert 0 < seconds < 0.05


def test_what_is_said_of_an_answer_is_one_printable_line(factory):
    verdict = grade(factory, "def double(x):\n    return {'\\x1b[2J\\n\\ud800' * 1000: 1}")
    assert verdict.points == 0
    assert verdict.reason.isprintable()
    assert len(verdict.reason) <= 300
    report = grade(factory, "def double(x):\n    raise ValueError('\\x1b[2J')").report
    assert "\\x1b[2J" in report
    assert "\x1b" not in report


# ---- the reader ----

GOOD = "def double(x):\n    return x * 2"
UNREADABLE = {
    "truncated": (notebook(GOOD)[:-20], "not a notebook"),
    "NUL": (b"\0" * 100, "not a notebook"),
    "deep": (
        b'{"cells":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "nested too deep|not a notebook",
    ),
    "no cells": (b"[1, 2]", "no list of cells"),
    "no function": (notebook("def other(x):\n    return x"), "no cell defines the function double"),
    "a class of that name": (notebook("class double: pass"), "no cell defines the function double"),
    "syntax": (
        notebook("1", "def double(x):\n    return x *"),
        "cell 2, which defines double, is not valid Python: line 2",
    ),
    "long": (
        notebook("x = 12345678901234567890123456789\n" * 15_000),
        "characters or 20000 lines of code",
    ),
    "of many statements": (notebook("0\n" * 15_000, "0;" * 15_000), "lines of code"),
    "many cells": (notebook(*["1"] * 3000), "3000 cells"),
    "latin": ("{'cells': é}".encode("latin-1"), "not a notebook"),
}


@pytest.mark.parametrize(("data", "reason"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_told_in_one_line(data, reason):
    with pytest.raises(Unreadable, match=reason) as error:
        parse(data).answer("double")
    assert "\n" not in str(error.value)


READABLE = {
    "BOM": b"\xef\xbb\xbf" + notebook(GOOD),
    "CRLF": notebook(GOOD.replace("\n", "\r\n")),
    "magics": notebook("%matplotlib inline\n!ls\n" + GOOD),
    "what a shell says": notebook("files = !ls\n" + GOOD),
    "help": notebook(GOOD + "\ndouble?"),
    "a command in a branch": notebook("if True:\n    !ls\n" + GOOD),
    "indented": notebook("    " + GOOD.replace("\n", "\n    ")),
    "a magic on top": notebook("%%time\n" + GOOD),
    "a cell switched off": notebook(GOOD, "%%script false\n" + GOOD.replace("2", "3")),
    "cell magic elsewhere": notebook("%%bash\nls |", GOOD),
    "another cell broken": notebook("this is (", GOOD),
    "lines": notebook(GOOD).replace(
        json.dumps(GOOD).encode(), json.dumps(GOOD.splitlines(keepends=True)).encode()
    ),
    "ids": json.dumps(
        {
            "cells": [
                {"cell_type": "code", "id": "x" * 500, "source": GOOD},
                7,
                {"cell_type": 3},
                None,
            ]
        }
    ).encode(),
    "one line": notebook("import os; double = lambda x: x * 2"),
}


@pytest.mark.parametrize("data", READABLE.values(), ids=READABLE)
def test_what_can_be_read_is_graded(factory, data):
    side = Sandboxed(factory, parse(data).answer("double"), "double")
    assert judge(DOUBLE, side, 1).points == 2
    side.close()


def test_files_that_are_none(tmp_path):
    (tmp_path / "a.ipynb").write_bytes(notebook(GOOD))
    (tmp_path / "link.ipynb").symlink_to("a.ipynb")
    with (tmp_path / "large.ipynb").open("wb") as file:
        file.truncate(100 << 20)
    os.mkfifo(tmp_path / "pipe.ipynb")
    assert content(tmp_path / "a.ipynb") == notebook(GOOD)
    for name, reason in (
        ("link", "a link"),
        ("large", "100 MB, more than 20"),
        ("pipe", "not a file"),
    ):
        with pytest.raises(Unreadable, match=reason):
            content(tmp_path / f"{name}.ipynb")


def test_a_line_of_spaces_is_read_in_time():
    start = time.monotonic()
    assert parse(notebook(" " * 100_000 + "$\n" + "a " * 100_000 + "$", GOOD)).answer("double")
    assert time.monotonic() - start < PROMPT


def test_a_long_chain_is_followed_in_time():
    chain = "\n".join(
        [
            "a0 = 1",
            *(f"a{i} = a{i - 1}" for i in range(1, 16_000)),
            "def double(x):\n    return a15999",
        ]
    )
    start = time.monotonic()
    assert len(parse(notebook(chain)).answer("double")) == 16_001
    assert time.monotonic() - start < 20  # it was 160 s


def test_notebooks_are_read_side_by_side():
    """CPython 3.11 counts the depth of all trees that are being made together, if the collector
    lets another thread in.
    """
    code, failed = "\n".join(f"def f{i}(x):\n    return [x + {i}]" for i in range(300)), []

    def read():
        try:
            for _ in range(20):
                parse(notebook(code))
        except SystemError as error:
            failed.append(error)

    def look_aside(*_):
        sum(range(50))

    threshold, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.callbacks.append(look_aside)
    try:
        gc.set_threshold(50), sys.setswitchinterval(1e-5)
        readers = [threading.Thread(target=read) for _ in range(4)]
        for one in readers:
            one.start()
        for one in readers:
            one.join()
    finally:
        gc.callbacks.remove(look_aside)
        gc.set_threshold(*threshold), sys.setswitchinterval(interval)
    assert not failed


def test_only_what_the_answer_needs_is_run():
    cells = [
        "import torch\nimport os",
        "model = os.fork()",
        "scale = 2\nscale = scale + 0",
        GOOD.replace("2", "scale"),
    ]
    assert [text for _, _, text in parse(notebook(*cells)).answer("double")] == [
        "scale = 2",
        "scale = scale + 0",
        GOOD.replace("2", "scale"),
    ]


# ---- frames ----


def test_numbers_of_numpy_are_numbers():
    came = frames.unpack(
        *parts(frames.pack([numpy.int64(3), numpy.float32(0.5), numpy.bool_(True)]))
    )
    assert [(type(one), one) for one in came] == [(int, 3), (float, 0.5), (bool, True)]


def parts(frame: bytes) -> tuple[bytes, bytes]:
    header, _ = frames.lengths(frame[:8])
    return frame[8 : 8 + header], frame[8 + header :]


@pytest.mark.parametrize(
    "thing",
    [
        None,
        True,
        -3,
        2.5,
        float("inf"),
        "ü\ud800",
        [1, [2.0]],
        {"a": {"tensor": [1]}},
        torch.ones(0, 3),
        torch.tensor(True),
        torch.arange(6).reshape(2, 3).T,
        torch.ones(2, dtype=torch.bfloat16),
    ],
    ids=str,
)
def test_plain_data_arrive_as_they_left(thing):
    came = frames.unpack(*parts(frames.pack(thing)))
    assert type(came) is type(thing)
    assert (
        came.equal(thing) and came.dtype == thing.dtype
        if isinstance(thing, torch.Tensor)
        else came == thing
    )


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[1",
        b'{"tensor": ["float32", [4]]}',
        b'{"tensor": ["object", [0]]}',
        b'{"tensor": ["float32", [-1]]}',
        b'{"what": 1}',
        b'{"tensor": 5}',
        b"NaN",
        b'{"a": 1, "b": 2}',
        b"{}",
        b"[" * 1000 + b"]" * 1000,
        b'{"dict": [[1]]}',
        b'{"float": "1e5"}',
        b'{"float": []}',
    ],
)
def test_forged_frames_are_refused(header):
    with pytest.raises(frames.BadFrame):
        frames.unpack(header, b"")


def test_random_bytes_are_never_more_than_a_bad_frame():
    rng = random.Random(0)
    right, body = parts(frames.pack({"a": [torch.ones(3), 2.5, "x"]}))
    for _ in range(3000):
        forged = bytearray(right)
        for _ in range(rng.randrange(1, 6)):
            forged[rng.randrange(len(forged))] = rng.randrange(256)
        with contextlib.suppress(frames.BadFrame):
            frames.unpack(bytes(forged), body)


# ---- isolation ----


def test_walls_that_do_not_isolate_make_no_mark():
    assert isolation.best() == Isolation("bubblewrap")
    for name in ("landlock", "none"):
        with SandboxFactory(Limits(seconds=LIMIT), Isolation(name, "asked for")) as weak:
            assert not weak.isolation.makes_a_mark
            assert is_right(weak)
            assert grade(weak, WILD["loop"][0]).reason.startswith("timeout")
            assert grade(weak, CHEATS["A2 equal"]).points == 0
            if name == "landlock":
                code = f"def double(x):\n    open({str(Path(__file__))!r}).read()\n    return x * 2"
                assert "PermissionError" in grade(weak, code).reason


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(starting.tempfile, "tempdir", None)
    before, open_files = strangers(), len(os.listdir("/proc/self/fd"))
    with SandboxFactory(Limits(seconds=LIMIT)) as mine:
        for _ in range(5):
            grade(mine, GOOD)
        grade(mine, WILD["loop"][0])
    gc.collect()
    assert strangers() <= before
    assert len(os.listdir("/proc/self/fd")) == open_files
    assert not list(tmp_path.iterdir())


def test_a_zygote_that_was_killed_is_started_again(factory):
    own = SandboxFactory(Limits(seconds=LIMIT))
    own.open_sandbox().close()
    own._process.kill()
    own._process.wait()
    assert is_right(own)
    own.close()


def test_practice_and_mark_agree(factory):
    for code, _ in [*VALUES.values(), WILD["raises"]]:
        scope = {"torch": torch}
        exec(code, scope)
        here, there = judge(DOUBLE, Here(scope["double"]), 0), grade(factory, code)
        assert here.points == there.points == 0
        if "randn" not in code:
            assert here.reason.partition(" in line")[0] == there.reason.partition(" in line")[0]


GRID = torch.arange(20.0).reshape(4, 5)
VIEWS = [
    GRID.T,
    GRID[::2],
    GRID[1:2, 2],
    GRID[:1, :1].T,
    GRID[3, 4],
    GRID[:0],
    GRID[:1, :1].expand(2, 2),
]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: f"{tuple(view.shape)} {view.stride()}")
def test_any_view_of_a_tensor_travels(view):
    _, header, *body = frames.parts(view)
    assert torch.equal(frames.unpack(header, b"".join(body)), view)
