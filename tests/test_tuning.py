"""The command that searches a technique's knobs: what it tries, what it keeps, and what it says."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from accel_lab import _tuning, catalog, command_line
from accel_lab._tuning import Search, Trial, range_of, ranked
from accel_lab.search import Range
from accel_lab.workbench.knobs import KnobError
from accel_lab.workbench.tasks import WorkerDied
from accel_lab.workbench.tasks.processes import on_processes

ROOT = Path(__file__).parents[1]
RATES = {"learning_rate": Range(0.01, 0.5, log=True)}
SMALL = Search("accumulation", RATES, "loss", least=True, candidates=4, steps=3)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- tasks on processes ----


def square(n: int, grave: str = "") -> tuple[int, int]:
    """It dies as often as there are letters in the grave."""
    if grave and Path(grave).read_text():
        Path(grave).write_text(Path(grave).read_text()[1:])
        os.kill(os.getpid(), signal.SIGKILL)
    return n * n, os.getpid()


@pytest.mark.slow
def test_tasks_have_processes_of_their_own_and_survive_them(tmp_path):
    mortal, hopeless = tmp_path / "mortal", tmp_path / "hopeless"
    mortal.write_text("xx")
    hopeless.write_text("xxxxxxxxx")
    tasks = [(n, (n,)) for n in range(3)] + [(3, (3, str(mortal))), (4, (4, str(hopeless)))]
    found = dict(on_processes(square, tasks, jobs=2))
    assert {n: value[0] for n, value in found.items() if n < 4} == {0: 0, 1: 1, 2: 4, 3: 9}
    assert len({value[1] for n, value in found.items() if n < 4} | {os.getpid()}) == 5
    assert isinstance(found[4], WorkerDied)
    assert str(found[4]).startswith("3 processes died of it; rank 0 of 1 was killed by SIGKILL")


def touch_and_sleep(folder: str, seconds: float) -> None:
    Path(folder, str(os.getpid())).touch()
    time.sleep(seconds)


@pytest.mark.slow
def test_closing_ends_all_processes(tmp_path):
    tasks = [(seconds, (str(tmp_path), seconds)) for seconds in (0.0, 600.0, 600.0)]
    working = on_processes(touch_and_sleep, tasks, jobs=2)
    assert next(working) == (0.0, None)
    working.close()
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(int(path.name)) for path in tmp_path.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def raises(_: int) -> None:
    raise ZeroDivisionError("no such thing")


@pytest.mark.slow
def test_what_a_task_raises_is_raised():
    with pytest.raises(ZeroDivisionError, match="no such thing"):
        list(on_processes(raises, [(0, (0,))]))


# ---- what is tried ----


def test_a_range_comes_from_the_knob_itself():
    dials = {dial.name: dial for dial in catalog.experiment("accumulation").Knobs.dials()}
    rates = range_of(dials["learning_rate"])
    assert (rates.low, rates.high, rates.log) == (
        dials["learning_rate"].low,
        dials["learning_rate"].high,
        dials["learning_rate"].log,
    )
    assert range_of(dials["batch_size"], (8, 64)).at(1.0) == 64
    with pytest.raises(KnobError, match="learning_rate: low, high: 2"):
        range_of(dials["learning_rate"], (2.0, 1.0))


def test_drawn_values_are_valid_knobs_of_every_kind():
    knobs = catalog.experiment("accumulation").Knobs
    dials = {dial.name: dial for dial in knobs.dials()}
    varied = {
        name: range_of(dials[name]) for name in ("learning_rate", "batch_size", "twin", "optimizer")
    }
    trials = replace(SMALL, varied=varied, candidates=40).trials()
    for trial in trials:
        knobs(**trial.knobs)
    assert {trial.knobs["twin"] for trial in trials} == {False, True}
    assert {trial.knobs["optimizer"] for trial in trials} == set(dials["optimizer"].choices)
    assert len({trial.key for trial in trials}) == 40


def test_the_plan_of_a_halving_ends_at_the_steps_asked_for():
    assert replace(SMALL, candidates=27, steps=90, strategy="halving").plan() == [
        (27, 3),
        (9, 9),
        (3, 27),
        (1, 81),
        (1, 90),
    ]
    assert replace(SMALL, candidates=9, strategy="grid").plan() == [(9, 3)]
    assert replace(SMALL, candidates=1, strategy="halving").plan() == [(1, 3)]


def test_a_grid_over_a_choice_tries_each_once():
    (twin,) = (d for d in catalog.experiment("accumulation").Knobs.dials() if d.name == "twin")
    search = replace(SMALL, varied={"twin": range_of(twin)}, candidates=5, strategy="grid")
    assert [trial.knobs for trial in search.trials()] == [{"twin": False}, {"twin": True}]
    assert search.plan() == [(2, 3)]


def test_those_without_a_score_are_ranked_last():
    trials = [
        Trial("t", {"n": n}, "loss", 1, score) for n, score in enumerate((0.5, None, 0.2, 0.9))
    ]
    assert [one.knobs["n"] for one in ranked(trials, least=True)] == [2, 0, 3, 1]
    assert [one.knobs["n"] for one in ranked(trials, least=False)] == [3, 0, 2, 1]
    with pytest.raises(ValueError, match="all 2 candidates failed; the first one: why not"):
        ranked([Trial("t", {}, "loss", 1, None, "why not")] * 2, least=True)


def test_a_trial_says_what_went_wrong_in_one_line():
    trial = SMALL.trials()[0]
    assert _tuning.try_out(trial).score > 0
    assert _tuning.try_out(trial) == _tuning.try_out(trial)
    assert (
        "no metric is called 'los'; did you mean 'loss'?"
        in _tuning.try_out(replace(trial, metric="los")).failure
    )
    wild = _tuning.try_out(replace(trial, knobs={"learning_rate": -1.0}))
    assert wild.score is None
    assert wild.failure.startswith("KnobError: learning_rate:")
    assert "\n" not in wild.failure


# ---- the command ----


def command(*arguments: object) -> list[str]:
    head = [sys.executable, "-m", "accel_lab", "search", "accumulation"]
    tail = ["--vary", "learning_rate=0.01:0.5", "--steps", "3"]
    return [*head, *tail, *map(str, arguments)]


@pytest.mark.slow
def test_a_search_is_told_kept_and_not_run_again(tmp_path):
    out = tmp_path / "trials.jsonl"
    asked = command("--candidates", 3, "--out", out)
    first = subprocess.run(asked, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("3 trials; the best of the longest has loss ")
    kept = out.read_text()
    assert [one["failure"] for one in lines(out)] == ["", "", ""]
    again = subprocess.run(asked, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert again.stdout == first.stdout
    assert out.read_text() == kept
    out.write_text(kept[: -len(kept.splitlines()[-1]) // 2])  # cut off in mid line
    more = subprocess.run(
        [*asked, "--jsonl"], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    told = [json.loads(line) for line in more.stdout.splitlines()]
    assert sorted(one["score"] for one in told) == sorted(
        json.loads(line)["score"] for line in kept.splitlines()
    )


@pytest.mark.slow
def test_the_same_search_on_a_cluster_of_which_a_worker_is_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    from distributed import LocalCluster

    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    asked = ["--candidates", 4, "--strategy", "halving"]
    subprocess.run(command(*asked, "--out", here), check=True, cwd=ROOT, timeout=200)
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None
    ) as cluster:
        running = subprocess.Popen(
            command(*asked, "--out", there, "--jsonl", "--scheduler", cluster.scheduler_address),
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        running.stdout.readline()
        os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
        running.communicate(timeout=200)
        assert running.returncode == 0

    def results(path):
        return sorted(json.dumps(one, sort_keys=True) for one in lines(path))

    assert results(here) == results(there)


@pytest.mark.slow
def test_an_interrupt_keeps_what_has_ended_and_leaves_nothing(tmp_path):
    out = tmp_path / "trials.jsonl"
    asked = command("--candidates", 60, "--out", out, "--jsonl")
    running = subprocess.Popen(
        asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    running.stdout.readline()
    children = psutil.Process(running.pid).children(recursive=True)
    # not SIGINT, which whatever a shell runs in the background ignores
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert f"{out} keeps what has ended" in said
    assert 1 <= len(lines(out)) < 60
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["folding", "--vary", "learning_rate"], "no technique is called 'folding'"),
        (["accumulation", "--vary", "lr"], "no knob is called 'lr'"),
        (["accumulation", "--vary", "learning_rate=1"], "'1' are not two numbers"),
        (["accumulation", "--vary", "learning_rate=2:1"], "learning_rate: low, high: 2.0"),
        (["accumulation", "--vary", "learning_rate", "--candidates", "0"], "--candidates 0: at"),
        (["accumulation", "--vary", "learning_rate", "--eta", "1"], "--eta 1: at least 2"),
        (["accumulation", "--vary", "learning_rate", "--jobs", "0"], "--jobs 0: at least 1"),
        (
            ["accumulation", "--vary", "learning_rate", "--set", "learning_rate=1"],
            "learning_rate: is both varied and set",
        ),
        (["accumulation", "--vary", "learning_rate", "--set", "batch_size=x"], "batch_size: "),
    ],
)
def test_what_cannot_be_is_one_line(arguments, said, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        command_line.main(["search", *arguments, "--out", str(tmp_path / "t.jsonl")])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith("accel_lab: ")
    assert said in error
    assert error.count("\n") == 1
