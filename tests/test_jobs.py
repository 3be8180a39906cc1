"""The jobs as a user submits them: to a running Ray, by ``ray job submit``, with success and failure told apart."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RAY = str(Path(sys.executable).parent / "ray")
LIMIT_S = 240


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Ray head of its own on free ports, with token authentication; yields the environment of its clients."""
    folder = tmp_path_factory.mktemp("head")
    (folder / "token").write_text("only-for-this-test")
    (folder / "token").chmod(0o600)
    # The agent's default port belongs to the first Ray of a machine, and a job is submitted through an agent.
    port, dashboard, agent = _free_ports(3)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",
    }
    ports = [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command = [RAY, "start", "--head", "--block", "--num-cpus=2", *ports]
    log = (folder / "head.log").open("w")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    for each in (dashboard, agent):  # asked sooner, by a command that takes seconds, it would only refuse
        _wait_for_port(each)
    yield environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    pytest.fail(f"the head never listened on port {port}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop of 30 items and 20 users who keep to items of their own parity, and its settings file."""
    folder = tmp_path_factory.mktemp("shop")
    items = "".join(f"i{item},{'even' if item % 2 == 0 else 'odd'} thing {item}\n" for item in range(30))
    pairs = "".join(
        f"u{user},i{item}\n" for user in range(20) for item in range(user % 2, 30, 2) if item % 5 != user % 5
    )
    (folder / "items.csv").write_text("item_id,title\n" + items)
    (folder / "pairs.csv").write_text("user_id,item_id\n" + pairs)
    (folder / "shop.toml").write_text(
        f'name = "shop"\nstorage = "{folder}/store"\n'
        f'[data]\npath = "{folder}"\nitems = "items.csv"\ninteractions = "pairs.csv"\n'
        '[encoder]\nbackend = "hash"\n'
        "[model]\nhidden_width = 16\nwidth = 8\n"
        "[train]\nmax_epochs = 2\nevaluate_every = 1\nbatch_size = 64\nnum_negatives = 4\n"
    )
    return folder / "shop.toml"


def _submit(head: dict[str, str], *job: str) -> subprocess.CompletedProcess[str]:
    """Submit and wait for the end; a head that is still starting refuses, and is asked again."""
    command = [RAY, "job", "submit", "--working-dir", str(ROOT), "--", sys.executable, *job]
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        done = subprocess.run(command, env=head, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        done.stdout += done.stderr
        if "submitted successfully" in done.stdout:
            return done
        time.sleep(1)
    pytest.fail(f"the head never took a job: {done.stdout[-2000:]}")


def test_train_submitted_to_a_cluster_leaves_a_model(head: dict[str, str], config: Path) -> None:
    done = _submit(head, "jobs/train.py", "--config", str(config))
    assert done.returncode == 0, done.stdout[-3000:]
    models = list(config.parent.glob("store/models/shop/*/manifest.json"))
    assert len(models) == 1
    assert str(models[0].parent) in done.stdout, "the job says where its result is"
    assert json.loads(models[0].read_text())["summary"]["epochs"] == 2


def test_a_failing_submitted_job_exits_non_zero_and_says_why(head: dict[str, str], config: Path) -> None:
    done = _submit(head, "jobs/train.py", "--config", str(config), "--data.items", "nowhere.csv")
    assert done.returncode != 0
    assert "nowhere.csv" in done.stdout
    assert "Traceback" not in done.stdout
    records = [json.loads(path.read_text()) for path in config.parent.glob("store/runs/shop/train-*.json")]
    failed = [record for record in records if record["status"] == "failed"]
    assert len(failed) == 1
    assert "nowhere.csv" in failed[0]["error"]
