"""Starting two ranks: the first value of a warm start, their memory, and what is left after many
launches and many kills.

The peers start the same worker by torch.multiprocessing and wait for its first value. Anything left
behind is an error, not a figure.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

from accel_lab.experiments import ddp
from accel_lab.workbench.measure.comparison import Comparison, compare
from accel_lab.workbench.ranks.launch import RankFailed, launch

LIMIT_SECONDS, LIMIT_MB = 0.5, 900
HALF_A_SECOND = "half a second"


def cases(pairs: int = 9, launches: int = 500, kills: int = 100) -> Iterator[str]:
    first_value(), first_step()  # the fork server starts once
    yield compare(first_value, spawned, pairs=3, warmup=0, patience=0).line(
        "two ranks, first value", "torch.multiprocessing spawn"
    )
    for name, program in (
        ("two ranks, first value", first_value),
        ("two ranks of ddp.run, first Step", first_step),
    ):
        taken = [(_seconds(program), LIMIT_SECONDS) for _ in range(pairs)]
        yield Comparison.of(taken).line(name, HALF_A_SECOND)
    yield from _memory()
    yield f"{launches} launches in a row: {_many(launches)}"
    yield f"4 launches at once, {launches // 20} times: {_four_at_once(launches // 20)}"
    yield f"{kills} ranks killed at a random moment: {_killed(kills)}"


def sums(rounds: int) -> Iterator[float]:
    for _ in range(rounds):
        total = torch.ones(1)
        dist.all_reduce(total)
        yield total.item()


def first_value() -> None:
    stream = launch(sums, 2, 1000)
    next(stream)
    stream.close()


def first_step() -> None:
    steps = ddp.run(ddp.Knobs())
    next(steps)
    steps.close()


def spawned() -> None:
    """What torch's own spawn takes for the same."""
    context = torch.multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        ranks = torch.multiprocessing.start_processes(
            _spawned_rank, (folder, answers), nprocs=2, join=False, start_method="spawn"
        )
        answers.get()
        while not ranks.join():
            pass


def _spawned_rank(rank: int, folder: str, answers: multiprocessing.SimpleQueue) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for value in sums(1):
        answers.put(value)
    dist.barrier()


def _seconds(program: Callable[[], None]) -> float:
    start = time.perf_counter()
    program()
    return time.perf_counter() - start


def _memory() -> Iterator[str]:
    if sys.platform != "linux":
        return
    steps = ddp.run(ddp.Knobs())
    for _ in range(5):
        next(steps)
    family = {"this process": os.getpid()} | {
        f"child {pid}": pid for pid in _descendants(os.getpid())
    }
    mb = {name: _pss(pid) for name, pid in family.items()}
    steps.close()
    total, ranks = sum(mb.values()), " + ".join(f"{value:.0f}" for value in mb.values())
    yield (
        f"two ranks of ddp.run and all they need: ratio {total / LIMIT_MB:.2f} ({ranks} MB PSS) "
        f"vs {LIMIT_MB} MB"
    )


def _descendants(pid: int) -> list[int]:
    children = [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return children + [pid for child in children for pid in _descendants(child)]


def _pss(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e3


# ---- what is left behind ----


def _left() -> tuple[int, int, int]:
    gc.collect()
    if sys.platform != "linux":
        return 0, 0, len(list(Path(tempfile.gettempdir()).glob("ranks-*")))
    processes, files = len(_descendants(os.getpid())), len(os.listdir("/proc/self/fd"))
    return processes, files, len(list(Path(tempfile.gettempdir()).glob("ranks-*")))


def _nothing_left(before: tuple[int, int, int]) -> str:
    after = _left()
    assert after == before, (
        f"(processes, descriptors, folders) were {before} before, and are {after}"
    )
    return "no process, descriptor or folder left"


def _many(launches: int) -> str:
    before = _left()
    for _ in range(launches):
        assert len(list(launch(sums, 2, 2))) == 4
    return _nothing_left(before)


def _four_at_once(times: int) -> str:
    before = _left()
    for _ in range(times):
        heard: list[int] = []
        threads = [
            threading.Thread(target=lambda heard=heard: heard.append(len(list(launch(sums, 2, 2)))))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert heard == [4] * 4
    return _nothing_left(before)


def _killed(kills: int, timeout: float = 10.0) -> str:
    before, moments, slowest = _left(), random.Random(), 0.0
    for _ in range(kills):
        victim, moment = moments.randrange(3), moments.uniform(0.0, 0.4)
        slowest = max(slowest, _kill(victim, moment, timeout))
    return f"always the right one named, after {slowest:.1f} s at most; {_nothing_left(before)}"


def _kill(victim: int, moment: float, timeout: float) -> float:
    """Kill one of three ranks ``moment`` seconds after the last came to be; seconds from then until
    it was named.
    """
    known, killed_at = set(_descendants(os.getpid())), [0.0]

    def kill() -> None:
        while len(ranks := sorted(set(_descendants(os.getpid())) - known)) < 3:
            pass
        time.sleep(moment)
        killed_at[0] = time.monotonic()
        os.kill(ranks[victim], signal.SIGKILL)

    killer, named = threading.Thread(target=kill), None
    killer.start()
    try:
        for _ in launch(sums, 3, 1_000_000, timeout=timeout):
            pass
    except RankFailed as failed:
        named = failed
    took = time.monotonic() - killed_at[0]
    killer.join()
    assert named is not None, "a rank was killed and nobody noticed"
    assert (named.rank, named.how) == (victim, "died"), named
    assert took < timeout + 2, took
    return took


if __name__ == "__main__":
    for line in cases():
        print(line, flush=True)
