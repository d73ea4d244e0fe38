"""python -m accel_lab: what it prints, and one line and exit 2 for what is wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from accel_lab import command_line


def call(*arguments: str, capsys) -> tuple[int, str, str]:
    code = 0
    try:
        command_line.main(list(arguments))
    except SystemExit as stop:
        code = stop.code or 0
    out, err = capsys.readouterr()
    return code, out, err


def test_list_names_the_techniques(capsys):
    code, out, _ = call("list", capsys=capsys)
    assert code == 0
    assert any(line.startswith("accumulation ") and line.endswith(".") for line in out.splitlines())


def test_run_ends_with_a_summary(capsys):
    code, out, _ = call(
        "run",
        "accumulation",
        "--micro-batches",
        "4",
        "--batch-size",
        "32",
        "--steps",
        "3",
        capsys=capsys,
    )
    assert code == 0
    assert out.startswith("3 updates, median ")
    assert "activation_bytes" in out


def test_run_prints_steps_as_json_lines(capsys):
    options = ["--batch-size", "32", "--steps", "2", "--twin", "--jsonl"]
    code, out, _ = call("run", "accumulation", *options, capsys=capsys)
    steps = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [step["index"] for step in steps] == [0, 1]
    assert "update_error" in steps[0]["metrics"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["run", "accumulation", "--micro-batches", "99"],
            "micro_batches: should be less than or equal to 64",
        ),
        (
            ["run", "accumulation", "--micro-batches", "x"],
            "micro_batches: should be a valid integer",
        ),
        (
            ["run", "accumulation", "--micro-batch", "9"],
            "no option is called '--micro-batch'; did you mean '--micro-batches'?",
        ),
        (
            ["run", "accumulation", "--batch-size", "8", "--micro-batches", "16"],
            "micro_batches: 16 do not fit a batch of 8",
        ),
        (["run", "accumulation", "--steps", "x"], "argument --steps: invalid int value: 'x'"),
        (
            ["run", "acumulation"],
            "no technique is called 'acumulation'; did you mean 'accumulation'?",
        ),
        (["run"], "the following arguments are required: technique"),
        (["list", "x"], "list takes no 'x'"),
        (["nonsense"], "argument list | run"),
        ([], "the following arguments are required"),
        (["run", "ddp", "--steps", "-5"], "--steps -5: at least 0"),
        (["run", "ddp", "--seconds", "-1"], "--seconds -1.0: at least 0"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_2(arguments, line, capsys):
    code, out, err = call(*arguments, capsys=capsys)
    assert (code, out) == (2, "")
    assert err.startswith(f"accel_lab: {line}")
    assert err.count("\n") == 1


def test_a_loss_that_is_no_number_is_one_line_and_exit_2(capsys, monkeypatch):
    from accel_lab.experiments import accumulation

    monkeypatch.setattr(
        accumulation, "accumulated_update", lambda *arguments, **options: float("nan")
    )
    code, _, err = call("run", "accumulation", "--batch-size", "8", "--steps", "2", capsys=capsys)
    assert code == 2
    assert (
        err == "accel_lab: the loss is nan at step 0: lower the learning rate, or undo the last "
        "change\n"
    )


def test_doctor_says_what_is_here_and_how_to_get_what_is_not(capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda program: None)
    code, out, _ = call("doctor", capsys=capsys)
    assert code == 0
    assert "torch " in out
    assert "bwrap          missing; needed for" in out
    assert "apt-get install chromium" in out


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_an_interrupt_ends_with_the_summary():
    command = [
        sys.executable,
        "-m",
        "accel_lab",
        "run",
        "accumulation",
        "--batch-size",
        "32",
        "--seconds",
        "60",
        "--jsonl",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()  # it trains
    # as SIGINT, which a test run in the background may have been told to ignore
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert err == ""


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error():
    command = (
        f"{sys.executable} -m accel_lab run accumulation --batch-size 32 --steps 50 --jsonl "
        "| head -n 1"
    )
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_importing_the_package_brings_in_nothing():
    """What ``import accel_lab`` adds to ``import torch`` is next to nothing, because it imports
    nothing that is not there already.
    """
    code = (
        "import sys, torch; before = set(sys.modules); import accel_lab; "
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "['accel_lab']"
