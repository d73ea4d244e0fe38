"""Ranks start, stream, fail by name, and leave nothing behind."""

import contextlib
import importlib
import inspect
import io
import linecache
import os
import pickle
import pkgutil
import random
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import cloudpickle
import pytest
import torch
import torch.distributed as dist

import accel_lab
from accel_lab.workbench.loop import train
from accel_lab.workbench.ranks.launch import RankFailed, _loopback, failure_of, launch
from accel_lab.workbench.ranks.rank import RankSpanRecorder
from accel_lab.workbench.ranks.world import RankKnobs, launch_steps
from accel_lab.workbench.step import Step

pytestmark = pytest.mark.alone  # what must end in time is watched by the clock

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks need not import pytest
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture(autouse=True)
def own_temporary_directory(tmp_path_factory, monkeypatch):
    """Other tests may launch at the same time: what is left behind must be ours."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))


def sums(rounds):
    for _ in range(rounds):
        total = torch.tensor(dist.get_rank() + 1.0)
        dist.all_reduce(total)
        yield total.item()


def gone_wrong(how, who=1, patience=60.0):
    """All ranks add up for ever, but one does something else after the first sum."""
    total = torch.ones(1)
    dist.all_reduce(total)
    yield "started"
    if dist.get_rank() == who:
        if how == "raise":
            raise ValueError("no good")
        if how == "exit":
            os._exit(3)
        if how == "sleep":
            time.sleep(patience)
        if how == "return":
            return
        os.kill(os.getpid(), getattr(signal, how))
    while True:
        dist.all_reduce(total)


def left_behind():
    """What launches could leave: processes, descriptors, directories (the fork server and its
    tracker stay for the next).
    """
    me = os.getpid()
    processes = subprocess.run(
        ["ps", "-eo", "pid=,ppid="], capture_output=True, text=True
    ).stdout.split("\n")
    parents = {
        int(pid): int(parent)
        for pid, parent in (line.split() for line in processes if line.strip())
    }
    servers = {
        pid
        for pid, parent in parents.items()
        if parent == me and "multiprocessing" in command_line(pid)
    }
    ranks = {pid for pid, parent in parents.items() if parent in servers}
    return ranks, len(os.listdir("/proc/self/fd")), {*Path(tempfile.gettempdir()).glob("ranks-*")}


def command_line(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


@contextlib.contextmanager
def nothing_left():
    list(launch(sums, 1, 1))  # the fork server is up before we count
    before = left_behind()
    yield
    ranks, descriptors, directories = left_behind()
    assert ranks <= before[0]
    assert descriptors <= before[1]
    assert directories <= before[2]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_values_of_all_ranks_are_streamed(world_size):
    heard = list(launch(sums, world_size, 3))
    total = world_size * (world_size + 1) / 2
    assert sorted(heard) == [(rank, total) for rank in range(world_size) for _ in range(3)]


def test_a_plain_function_answers_once():
    assert sorted(launch(lambda a, b: (dist.get_rank(), a + b), 2, 3, 4)) == [
        (0, (0, 7)),
        (1, (1, 7)),
    ]


def test_without_a_process_group():
    assert list(launch(lambda: dist.is_initialized(), 1, backend=None)) == [(0, False)]


def test_one_thread_a_rank_unless_told_otherwise():
    assert list(launch(torch.get_num_threads, 1)) == [(0, 1)]
    assert list(launch(torch.get_num_threads, 1, threads=2)) == [(0, 2)]


def test_ranks_see_the_caller_s_environment_and_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCEL_LAB_TEST", "seen")
    monkeypatch.chdir(tmp_path)
    assert list(launch(lambda: (os.environ["ACCEL_LAB_TEST"], os.getcwd()), 1)) == [
        (0, ("seen", str(tmp_path)))
    ]


def test_what_ranks_print_is_printed_with_their_number(capsys):
    list(launch(lambda: print("good\nmorning"), 1))
    assert capsys.readouterr().out == "rank 0: good\nrank 0: morning\n"


def test_ranks_stand_still_while_nobody_asks(tmp_path):
    def count():
        for i in range(10):
            (tmp_path / str(i)).touch()
            yield i

    stream = launch(count, 1)
    next(stream)
    time.sleep(0.2)
    assert len(list(tmp_path.iterdir())) == 1
    stream.close()


@linux
def test_a_caller_s_pause_times_nothing_out():
    with nothing_left():
        stream = launch(sums, 2, 20, timeout=1.0)
        for _ in range(5):
            next(stream)
        time.sleep(1.5)
        assert len(list(stream)) == 35


FAILURES = {
    "raise": ("raised", "ValueError: no good"),
    "exit": ("died", "ended with code 3"),
    "SIGKILL": ("died", "killed by SIGKILL"),
    "SIGSEGV": ("died", "killed by SIGSEGV"),
    "sleep": ("hung", "time.sleep(patience)"),
    "SIGSTOP": ("hung", "does not even tell where it stands"),
}


# seconds, also on a busy machine: far below the timeouts that would end a launch anyhow
PROMPT = 8.0


@linux
@pytest.mark.parametrize(
    ("how", "who"),
    [(how, who) for how, (kind, _) in FAILURES.items() for who in (0, 1) if who or kind != "hung"],
)
def test_the_rank_that_failed_is_named(how, who):
    kind, text = FAILURES[how]
    timeout = 1.0 if kind == "hung" else 20.0
    with nothing_left():
        start = time.monotonic()
        with pytest.raises(
            RankFailed, match=text.replace("(", r"\(").replace(")", r"\)")
        ) as failed:
            list(launch(gone_wrong, 2, how, who, timeout=timeout))
        assert (failed.value.rank, failed.value.how) == (who, kind)
        assert time.monotonic() - start < (timeout if kind == "hung" else 0) + PROMPT


def alone_after(deaths):
    """Ranks that send nothing to each other, of which some die, when all have found each other."""
    store = dist.distributed_c10d._get_default_store()
    store.set(f"up {dist.get_rank()}", "")
    store.wait([f"up {rank}" for rank in range(dist.get_world_size())])
    if dist.get_rank() in deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    yield from range(3)


@linux
def test_ranks_that_may_die_are_missed_and_the_others_go_on():
    with nothing_left():
        heard = list(launch(alone_after, 3, [1], may_die={1, 2}))
        assert sorted(value for rank, value in heard if rank != 1) == [0, 0, 1, 1, 2, 2]
        [missed] = [value for rank, value in heard if rank == 1]
        assert missed.headline == "rank 1 of 3 was killed by SIGKILL"
        with pytest.raises(RankFailed, match="rank 0 of 3 was killed"):
            list(launch(alone_after, 3, [0, 1], may_die={1, 2}))


def wait_for_the_dead():
    if dist.get_rank():
        os.kill(os.getpid(), signal.SIGKILL)
    dist.recv(torch.ones(1), 1)


@linux
def test_who_cannot_go_on_without_a_dead_rank_is_not_to_blame():
    with pytest.raises(RankFailed) as failed:
        list(launch(wait_for_the_dead, 2, may_die={1}))
    assert failed.value.headline == "rank 1 of 2 was killed by SIGKILL"


def test_the_cause_comes_along():
    with pytest.raises(RankFailed) as failed:
        list(launch(gone_wrong, 3, "raise", 2))
    assert isinstance(failed.value.cause, ValueError)
    assert "Connection closed" not in str(failed.value)


def test_a_failure_is_waited_for():
    failed = failure_of(launch(gone_wrong, 2, "raise"))
    assert failed.headline == "rank 1 of 2 raised ValueError: no good"
    for most, rounds in ((20, 1), (3, 1000)):
        with pytest.raises(ValueError, match="no rank has failed"), nothing_left():
            failure_of(launch(sums, 2, rounds), most)


def test_a_rank_that_skips_a_collective_is_told_apart():
    with pytest.raises(RankFailed, match="rank 1 has already finished; rank 0 waited in vain"):
        list(launch(gone_wrong, 2, "return", timeout=1.0))


def test_a_deadlock_tells_where_each_rank_stands():
    def each_waits_for_the_other():
        dist.recv(torch.ones(1), 1 - dist.get_rank())

    with pytest.raises(
        RankFailed, match=r"(?s)rank 0 stands here.*dist\.recv.*rank 1 stands here.*dist\.recv"
    ) as failed:
        list(launch(each_waits_for_the_other, 2, timeout=1.0))
    assert failed.value.how == "hung"
    here = "each_waits_for_the_other"
    assert failed.value.headline.endswith(f"; rank 0 in {here}, rank 1 in {here}")
    assert ".cc:" not in failed.value.headline  # a place in gloo's source tells a learner nothing


def test_silence_of_all_is_a_hang_too():
    with pytest.raises(RankFailed, match=r"(?s)rank 0 stands here.*rank 1 stands here") as failed:
        list(launch(lambda: time.sleep(60), 2, timeout=0.5))
    assert failed.value.how == "hung"


def test_a_worker_from_a_notebook_cell_is_quoted_in_its_traceback():
    cell = "def worker():\n    nothing = 0\n    return 1 / nothing  # the learner's line\n"
    name = "<cell 7>"
    linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
    scope = {"__name__": "__main__"}
    exec(compile(cell, name, "exec"), scope)
    with pytest.raises(RankFailed, match="the learner's line"):
        list(launch(scope["worker"], 1))


def test_a_script_needs_no_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from accel_lab.workbench.ranks.launch import launch\nprint(list(launch(lambda: "
        "'once', 2)))\n"
    )
    ran = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, env=our_environment()
    )
    assert (ran.stdout.count("once"), ran.stderr) == (2, "")


ADD_UP = """
import torch, torch.distributed as dist, multiprocessing, sys, time
from accel_lab.workbench.ranks.launch import launch
def add_up(updates):
    for _ in range(updates):
        total = torch.ones(1)
        dist.all_reduce(total)
        time.sleep(0.05)
    return total.item()
def launched(updates):
    return sorted(launch(add_up, 2, updates, timeout=10.0))
"""


def script(*lines, **environment):
    """A process of its own that can launch ``add_up``, as leader of a group."""
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join([ADD_UP, *lines])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**our_environment(), **environment},
        start_new_session=True,
    )


def test_any_temporary_folder_will_do(tmp_path):
    folder = tmp_path / ("a space, 100 %20 and ü, and long " * 4)
    folder.mkdir()
    out, errors = script("print(launched(1))", TMPDIR=str(folder)).communicate(timeout=60)
    assert (out, errors) == ("[(0, 2.0), (1, 2.0)]\n", "")
    assert not list(folder.glob("ranks-*"))


@linux
@pytest.mark.parametrize("moment", [0.1, 1.0])
def test_ranks_do_not_hear_an_interrupt_that_their_caller_takes_lightly(moment):
    """As an idle kernel does, while its panel starts in a thread."""
    lightly = "import signal; signal.signal(signal.SIGINT, lambda *_: None)"
    caller = script(lightly, "print('starting', flush=True)", "print(launched(20))")
    caller.stdout.readline()
    time.sleep(moment)
    os.killpg(caller.pid, signal.SIGINT)
    assert caller.communicate(timeout=60) == ("[(0, 2.0), (1, 2.0)]\n", "")


@linux
def test_a_daemon_can_launch_whether_its_parent_has_or_not(tmp_path):
    """As a worker of a pool, or of dask."""
    path = tmp_path / "pool.py"
    pools = """
if __name__ == "__main__":
    for way in ("fork", "spawn"):
        with multiprocessing.get_context(way).Pool(1) as pool:
            print(pool.map(launched, [1]), launched(1))
"""
    path.write_text(ADD_UP + pools)
    ran = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, timeout=90, env=our_environment()
    )
    assert (ran.stdout, ran.stderr) == ("[[(0, 2.0), (1, 2.0)]] [(0, 2.0), (1, 2.0)]\n" * 2, "")


def test_a_loopback_that_is_down_is_told_in_one_line(monkeypatch):
    def down(*_):
        raise OSError("Network is unreachable")

    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(socket, "create_server", down)
    with pytest.raises(OSError, match=r"no usable network interface.* GLOO_SOCKET_IFNAME") as told:
        list(launch(sums, 2, 1))
    assert "\n" not in str(told.value)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")  # the user knows better
    assert len(list(launch(sums, 2, 1))) == 2


@pytest.mark.parametrize(
    ("there", "chosen"),
    [(["lo", "eth0"], "lo"), (["en0", "lo0"], "lo0"), (["ethernet_0", "loopback_0"], None)],
)
def test_an_interface_is_named_only_where_it_exists(there, chosen, monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(socket, "if_nameindex", lambda: list(enumerate(there, 1)))
    assert _loopback() == chosen


def exceptions_of_ours():
    names = [module.name for module in pkgutil.walk_packages(accel_lab.__path__, "accel_lab.")]
    apart = ("__main__", "fork_server")  # they act when they are imported
    modules = [importlib.import_module(name) for name in names if not name.endswith(apart)]
    classes = {c for module in modules for c in vars(module).values() if inspect.isclass(c)}
    ours = [c for c in classes if issubclass(c, Exception) and c.__module__ in names]
    return sorted(ours, key=lambda c: c.__name__)


def test_every_exception_of_ours_survives_pickling():
    """Pool.map waits for ever for one that does not."""
    found = exceptions_of_ours()
    assert {"KnobError", "RankFailed", "RanksDiffer"} <= {c.__name__ for c in found}
    for exception in found:
        wanted = inspect.signature(exception.__init__).parameters.values()
        named = [p.name for p in wanted if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]
        original = exception(*(named or ["one line"]))
        copied = pickle.loads(pickle.dumps(original))
        assert type(copied) is exception
        assert (str(copied), vars(copied)) == (str(original), vars(original))


def our_environment():
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}


@linux
def test_closing_early_leaves_nothing():
    with nothing_left():
        for taken in range(4):
            stream = launch(sums, 2, 1000)
            for _ in range(taken):
                next(stream)
            stream.close()


@linux
def test_what_a_rank_started_ends_with_it():
    def with_a_child():
        child = subprocess.Popen(["sleep", "300"])
        yield child.pid

    stream = launch(with_a_child, 1)
    _, pid = next(stream)
    stream.close()
    time.sleep(0.1)
    assert "sleep" not in command_line(pid)


@linux
def test_four_at_once():
    heard = [None] * 4

    def run(i):
        heard[i] = sorted(launch(sums, 2, 5))

    with nothing_left():
        threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert heard == [[(rank, 3.0) for rank in range(2) for _ in range(5)]] * 4


CALLER = """
import signal, sys, torch, torch.distributed as dist, tempfile, time, os
from accel_lab.workbench.ranks.launch import launch
# where the tests run in a shell's background it is ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
tempfile.tempdir = sys.argv[1]
def worker():
    yield os.getpid()
    while True:
        dist.all_reduce(torch.ones(1))
        yield os.getpid()
for number, (rank, pid) in enumerate(launch(worker, 2)):
    # more could fill the pipe, and a caller that is interrupted then waits for its reader
    if number < 6:
        print(pid, flush=True)
"""


@linux
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_the_caller(blow, tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(CALLER), str(tmp_path)]
    caller = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=our_environment(),
        start_new_session=True,
    )
    pids = {int(caller.stdout.readline()) for _ in range(6)}
    family = {*pids, *descendants(caller.pid)}
    assert len(pids) == 2
    os.kill(caller.pid, blow)
    caller.wait(10)
    caller.stdout.close()
    deadline = time.monotonic() + 5
    while (alive := {pid for pid in family if is_running(pid)}) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive
    assert not list(tmp_path.iterdir())


def descendants(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in children} | {
        pid for child in children for pid in descendants(int(child))
    }


def is_running(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def stepping(knobs, slow):
    """A worker that trains nothing, as the techniques' workers do."""
    spans = RankSpanRecorder()

    def update(x, y):
        with spans("work"):
            time.sleep(0.05 if dist.get_rank() == slow else 0.01)
        return {"loss": float(dist.get_rank())}

    yield from train(
        update, [(torch.zeros(2 + dist.get_rank(), 1), torch.zeros(1))] * 3, spans=spans
    )


class TwoRanks(RankKnobs):
    ranks: int = 2


def test_one_step_of_the_world_from_one_of_each_rank():
    steps = list(launch_steps(stepping, TwoRanks(), 1))
    assert [step.index for step in steps] == [0, 1, 2]
    assert {step.samples for step in steps} == {5}
    assert steps[0].metrics == {"loss": pytest.approx(3 / 5)}
    for step in steps:
        first, second = step.spans
        assert (first.rank, second.rank) == (0, 1)
        assert min(first.start, second.start) == 0
        assert max(first.start, second.start) < 0.03
        assert first.end < second.end
        assert step.seconds >= 0.05


def unequal_workers(knobs):
    """Rank 0 steps three times while rank 1 takes one step: nobody waits for anybody."""
    rank = dist.get_rank()
    for index in range(1 if rank else 3):
        yield Step(index, 8, 0.01, {"loss": float(rank)})


def test_ranks_that_do_not_step_equally_often_are_heard_as_they_come():
    steps = list(launch_steps(unequal_workers, RankKnobs(ranks=2), in_step=False))
    assert [step.index for step in steps] == [0, 1, 2, 3]
    assert sorted(step.metrics["rank"] for step in steps) == [0.0, 0.0, 0.0, 1.0]
    assert all(step.metrics["loss"] == step.metrics["rank"] for step in steps)


@linux
def test_many_launches_in_a_row():
    with nothing_left():
        for _ in range(20):
            assert len(list(launch(sums, 2, 2))) == 4


@linux
def test_a_rank_killed_at_a_random_moment_is_always_the_one_named():
    moments = random.Random(0)
    with nothing_left():
        for _ in range(10):
            assert_named_when_killed(moments.randrange(3), moments.uniform(0.0, 0.4), timeout=10.0)


def assert_named_when_killed(victim, moment, timeout):
    """Kill one of three ranks ``moment`` seconds after the first process exists; it may not even
    have joined the others.
    """
    before, stop = left_behind()[0], threading.Event()

    def kill():
        while len(ranks := sorted(left_behind()[0] - before)) < 3 and not stop.is_set():
            pass
        time.sleep(moment)
        with contextlib.suppress(ProcessLookupError):
            os.kill(ranks[victim], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    start = time.monotonic()
    try:
        with pytest.raises(RankFailed) as failed, contextlib.redirect_stdout(io.StringIO()):
            for _ in launch(sums, 3, 1_000_000, timeout=timeout):
                pass
    finally:
        stop.set()
        killer.join()
    assert (failed.value.rank, failed.value.how) == (victim, "died")
    assert time.monotonic() - start < timeout + PROMPT
