"""The same run on ranks that torchrun has started: two agents on one machine, two network
namespaces, a rank that dies.
"""

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.alone]
ROOT = Path(__file__).parent.parent
DRIVER = """
    import itertools, json, sys
    from importlib import import_module
    for request in sys.argv[1:]:
        name, count, knobs = json.loads(request)
        experiment = import_module("accel_lab.experiments." + name)
        steps = experiment.run(experiment.Knobs(**knobs))
        for step in itertools.islice(steps, count):
            print(step.to_json(), flush=True)
        steps.close()
"""
SMALL = {"width": 32, "twin": True, "timeout": 20.0}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def driver(tmp_path):
    path = tmp_path / "driver.py"
    path.write_text(textwrap.dedent(DRIVER))
    return path


def agent(program, *options, before=(), interface="lo"):
    """One torchrun; several make up the nodes of a cluster."""
    command = [
        *before,
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "1",
        *options,
        *program,
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "GLOO_SOCKET_IFNAME": interface,
        # without it a restart finds the former ranks' keys
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def command_line(technique, steps, knobs):
    """What a reader of the README would type."""
    given = [
        word
        for name, value in knobs.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    return ["-m", "accel_lab", "run", technique, "--jsonl", "--steps", str(steps), *given]


def steps_from(agents):
    """The Steps that rank 0 printed; whichever agent it is under."""
    try:
        outputs = [agent.communicate(timeout=90) for agent in agents]
    finally:
        for agent in agents:
            agent.terminate()  # torchrun ends its ranks
    for agent, (_, errors) in zip(agents, outputs, strict=True):
        assert agent.returncode == 0, errors[-3000:]
    said = [
        [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        for out, _ in outputs
    ]
    assert sum(bool(lines) for lines in said) == 1
    return max(said, key=len)


def nodes(address, port, node):
    """torchrun cannot tell by itself which of several agents on one machine is to hold the
    rendezvous.
    """
    where = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{address}:{port}", "--rdzv-id", "test"]
    return ["--nnodes", "2", *where, "--rdzv-conf", f"is_host={int(node == 0)}"]


BOTH = [("ddp", 6, SMALL), ("pipeline", 6, {**SMALL, "depth": 4})]


def assert_both_went_well(steps):
    assert [step["index"] for step in steps] == [*range(6), *range(6)]
    assert all(step["metrics"]["update_error"] < 1e-5 for step in steps)
    assert all({span["rank"] for span in step["spans"]} == {0, 1} for step in steps)


def test_two_agents_on_one_machine(driver):
    port = free_port()
    options = [[*nodes("127.0.0.1", port, node), "--local-addr", "127.0.0.1"] for node in (0, 1)]
    program = [str(driver), *(json.dumps(request) for request in BOTH)]
    assert_both_went_well(steps_from([agent(program, *option) for option in options]))


def test_a_rank_that_was_killed_and_started_again_resumes_from_its_checkpoint(tmp_path):
    knobs = {
        **SMALL,
        "mistake": "dying rank",
        "checkpoint": str(tmp_path / "run.pt"),
        "checkpoint_every": 2,
    }
    options = [
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "1",
        "--local-addr",
        "127.0.0.1",
    ]
    steps = steps_from([agent(command_line("ddp", 9, knobs), *options)])
    indices = [step["index"] for step in steps]
    # rank 1 died after the fifth; the file knew of 4
    assert indices == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert all(step["metrics"]["update_error"] < 1e-5 for step in steps)
    assert steps[5]["metrics"]["loss"] == pytest.approx(steps[4]["metrics"]["loss"], rel=1e-5)


@pytest.fixture
def two_hosts():
    """Two network namespaces joined by a cable: each sees the other, and nothing else."""
    names = [f"accel-{os.getpid()}-{end}" for end in "ab"]
    ip = ["ip"]
    made = subprocess.run([*ip, "netns", "add", names[0]], capture_output=True)
    if made.returncode:
        pytest.skip("no right to make network namespaces")
    try:
        subprocess.run([*ip, "netns", "add", names[1]], check=True)
        ends = [f"ve{os.getpid() % 100000}{end}" for end in "ab"]
        subprocess.run(
            [*ip, "link", "add", ends[0], "type", "veth", "peer", "name", ends[1]], check=True
        )
        for number, (name, end) in enumerate(zip(names, ends, strict=True), 1):
            subprocess.run([*ip, "link", "set", end, "netns", name], check=True)
            inside = [*ip, "-n", name]
            subprocess.run([*inside, "link", "set", end, "name", "eth0"], check=True)
            subprocess.run(
                [*inside, "addr", "add", f"10.99.0.{number}/24", "dev", "eth0"], check=True
            )
            subprocess.run([*inside, "link", "set", "eth0", "up"], check=True)
            subprocess.run([*inside, "link", "set", "lo", "up"], check=True)
        yield names
    finally:
        for name in names:
            subprocess.run([*ip, "netns", "delete", name], capture_output=True)


@pytest.mark.needs("ip")
@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="network namespaces are root's"
)
def test_two_hosts_joined_by_a_cable(two_hosts):
    agents = []
    for node, host in enumerate(two_hosts):
        options = [*nodes("10.99.0.1", 29400, node), "--local-addr", f"10.99.0.{node + 1}"]
        inside = ["ip", "netns", "exec", host]
        agents.append(
            agent(command_line("ddp", 6, SMALL), *options, before=inside, interface="eth0")
        )
    steps = steps_from(agents)
    assert [step["index"] for step in steps] == list(range(6))
    assert all(step["metrics"]["update_error"] < 1e-5 for step in steps)
