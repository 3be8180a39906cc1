"""A training run on two nodes that loses a raylet, then a worker, gets a node back, and is told that it will go.

One run, because nodes and worker groups take seconds to come up; the losses of every epoch must be those of a run that
was never disturbed.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_train import build, make_inputs, make_settings

from alpharec.train import fit

LIMIT_S = 900  # a hang's end; it takes 2 minutes on two idle cores
NOTICE_S = 3


def settings_of(root: Path, **train: Any) -> Any:
    # Many short epochs, each a chance to see which workers computed it. Adam carries rounding on, hence the low rate.
    schedule = {"max_epochs": 100_000, "patience": 100_000, "batch_size": 8, "learning_rate": 1e-4}
    return make_settings(root, **schedule, run="elastic", num_workers=(1, 2), resize_seconds=2, **train)


def disturb(root: Path) -> None:
    """Train on two nodes of one CPU and disturb the run; print the state at the end. Runs in a process of its own."""
    from ray.cluster_utils import Cluster

    from alpharec.artifacts import Store

    # The head has no CPU for workers: the controller lives where the driver does, and must not go.
    cluster = Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    settings, store = settings_of(root), Store(str(root))
    dataset = store.find("datasets", "board", sys.argv[2])
    inputs = (store, settings, dataset, store.find("vectors", "board", "by-hand"))
    threading.Thread(target=fit, args=inputs, daemon=True).start()

    reached(root, lambda state: state["history"][-1]["workers"] == 2)
    cluster.remove_node(nodes.pop(), allow_graceful=False)  # SIGKILL to its raylet
    state = reached(root, lambda new: new["history"][-1]["workers"] == 1)
    (worker,) = [each for each in psutil.Process().children(recursive=True) if "RayTrainWorker" in title(each)]
    worker.kill()
    state = reached(root, lambda new: new["epoch"] > state["epoch"] + 1)
    nodes.append(cluster.add_node(num_cpus=1))
    state = reached(root, lambda new: new["history"][-1]["workers"] == 2)
    going = nodes.pop()
    command = [Path(sys.executable).with_name("ray"), "drain-node", "--address", cluster.address]
    command += ["--node-id", going.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "spot", "--deadline-remaining-seconds", str(NOTICE_S)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    inside = reached(root, lambda new: new["epoch_seconds"] > 0)
    time.sleep(NOTICE_S)
    cluster.remove_node(going, allow_graceful=False)
    state = reached(root, lambda new: new["history"][-1]["workers"] == 1 and new["epoch"] > inside["epoch"] + 1)
    (root / "end.json").write_text(json.dumps({"history": state["history"], "inside": inside["step"]}))
    # Not Ray's own way to end: the thread that trains still talks to the cluster, and Ray exits with 1 before nodes are
    # gone.
    for process in psutil.Process().children(recursive=True):
        process.kill()
    os._exit(0)


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def reached(root: Path, there: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Wait for the newest checkpoint to be one of which something holds; return its state."""
    limit = time.monotonic() + LIMIT_S
    while time.monotonic() < limit:
        states = [state for path in root.glob("training/elastic/checkpoint_*/state.json") if (state := read(path))]
        newest = max(states, key=lambda state: state["step"], default={"history": []})
        if newest["history"] and there(newest):
            return newest
        time.sleep(0.05)
    raise TimeoutError("the run did not get there")


def read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):  # just being written, or replaced by a newer one
        return {}


@pytest.mark.timeout(LIMIT_S + 60)
def test_a_run_goes_on_exactly_whatever_it_loses(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path, settings_of(tmp_path))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_TOKEN": "of-this-test"}  # a Cluster makes none, as ray.init does
    # How soon Ray asks about drained nodes, gives up on a worker group that a lost node was counted for (its placement
    # alone: nodes that are there give it in a second), looks after workers, and asks whether a node lives.
    environment |= {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5"}
    environment |= {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "3", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
    environment |= {"RAY_health_check_period_ms": "500"}
    command = [sys.executable, __file__, str(tmp_path), inputs[1].version]
    with (tmp_path / "log").open("wb") as log:
        subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=LIMIT_S, check=False)
    log_end = (tmp_path / "log").read_text()[-5000:]
    assert (tmp_path / "end.json").exists(), log_end  # what the driver wrote decides, not how Ray ends it
    end = json.loads((tmp_path / "end.json").read_text())
    sizes = [size for size, _ in itertools.groupby(entry["workers"] for entry in end["history"])]
    # A loaded machine may begin with the first node's worker alone.
    assert sizes in ([2, 1, 2, 1], [1, 2, 1, 2, 1])
    alone = build(inputs, settings_of(tmp_path))
    assert end["inside"] % alone.sampler.steps_per_epoch != 0, "the notice made a checkpoint between two epochs' ends"
    for _ in alone.run():
        if alone.state.epoch == len(end["history"]):
            break
    assert [entry["step"] for entry in end["history"]] == [entry["step"] for entry in alone.state.history]
    for key in ("loss", "valid_recall@5"):
        found, expected = ([entry.get(key) for entry in history] for history in (end["history"], alone.state.history))
        # Other numbers of workers add in another order than one.
        assert found == pytest.approx(expected, abs=1e-4)


if __name__ == "__main__":
    disturb(Path(sys.argv[1]))
