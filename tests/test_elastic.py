"""A training run on two nodes that loses a raylet, then a worker, gets a node back, and is told that it will go.

One run, because nodes and worker groups take seconds to come up; the losses of every epoch must be those of a run that
was never disturbed. A disturbance waits for the run to record what it needs, so no machine is too slow for it.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from test_train import build, make_inputs, make_settings, title

from alpharec import train

LIMIT_S = 1800  # a hang's end; it takes 2 minutes on two idle cores


def settings_of(root: Path, **train: Any) -> Any:
    # Many short epochs, each a chance to see which workers computed it. Adam carries rounding on, hence the low rate.
    schedule = {"max_epochs": 100_000, "patience": 100_000, "batch_size": 8, "learning_rate": 1e-4}
    return make_settings(root, **schedule, run="elastic", num_workers=(1, 2), resize_seconds=2, **train)


class Witness(ray.train.UserCallback):
    """Writes down, in the controller, each state that the run can go back to and each failure, in their order.

    A checkpoint in the store is no evidence: one that the controller has not met yet is forgotten with its workers.
    """

    def __init__(self, log: Path) -> None:
        self.log = log

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if checkpoint is not None:
            self._note(json.loads(Path(checkpoint.path, "state.json").read_text()))

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        self._note({"failed": {rank: repr(error) for rank, error in worker_exceptions.items()}})

    def _note(self, entry: dict[str, Any]) -> None:
        with self.log.open("a") as log:
            log.write(json.dumps(entry) + "\n")


def disturb(root: Path) -> None:
    """Train on two nodes of one CPU and disturb the run."""
    from ray.cluster_utils import Cluster

    from alpharec.artifacts import Store

    # The head has no CPU for workers: the controller lives where the driver does, and must not go.
    cluster = Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    settings, store = settings_of(root), Store(str(root))
    dataset = store.find("datasets", "board", sys.argv[2])
    inputs = (store, settings, dataset, store.find("vectors", "board", "by-hand"))
    train.run_workers = functools.partial(train.run_workers, callbacks=[Witness(root / "seen")])
    run = threading.Thread(target=train.fit, args=inputs, daemon=True)
    run.start()
    seen = follow(root / "seen", run)

    epoch_of(2, seen)
    going = nodes.pop()
    assert workers_on(going), "the raylet has a worker of the run"
    cluster.remove_node(going, allow_graceful=False)  # SIGKILL to its raylet
    epoch_of(1, seen)
    while len(workers := workers_on(nodes[0])) != 1:  # one of the group that lost the other may not be gone yet
        time.sleep(0.05)
    workers[0].kill()
    next(entry for entry in seen if "failed" in entry)
    epoch_of(1, seen)
    nodes.append(cluster.add_node(num_cpus=1))
    epoch_of(2, seen)
    going = nodes.pop()
    leaving = workers_on(going)
    assert leaving, "the node that will go has a worker of the run"
    # Its last hour is told when the checkpoint is there: any other could be too soon for a machine.
    notify(cluster.address, going.node_id, LIMIT_S)
    inside = next(entry for entry in seen if entry.get("epoch_seconds"))
    notify(cluster.address, going.node_id, 0)
    assert psutil.wait_procs(leaving, LIMIT_S)[1] == [], "the run leaves the node"
    cluster.remove_node(going, allow_graceful=False)
    while epoch_of(1, seen) <= inside["epoch"] + 1:
        pass
    (root / "end").write_text(str(inside["step"]))


def workers_on(node: Any) -> list[psutil.Process]:
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [process for process in raylet.children(recursive=True) if "RayTrainWorker" in title(process)]


def notify(address: str, node_id: str, seconds: int) -> None:
    """Tell a node of a cluster that it will go, as of a spot instance."""
    command = [Path(sys.executable).with_name("ray"), "drain-node", "--address", address, "--node-id", node_id]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    command += ["--deadline-remaining-seconds", str(seconds)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def follow(log: Path, run: threading.Thread) -> Iterator[dict[str, Any]]:
    """Yield what the witness wrote and what it goes on to write."""
    limit, rest = time.monotonic() + LIMIT_S, ""
    log.touch()
    with log.open() as file:
        while run.is_alive() and time.monotonic() < limit:
            *whole, rest = (rest + file.read()).split("\n")
            yield from map(json.loads, whole)
            time.sleep(0.05)
    raise RuntimeError(f"the run {'did not get there' if run.is_alive() else 'has ended'}")


def epoch_of(workers: int, seen: Iterator[dict[str, Any]]) -> int:
    """Wait for the run to record an epoch that so many workers ended; return its number."""
    return next(entry["epoch"] for entry in seen if workers_of(entry) == workers)


def workers_of(entry: dict[str, Any]) -> int:
    """Return how many workers ended the last epoch of a state, or 0."""
    return int(entry["history"][-1]["workers"]) if entry.get("history") else 0


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
        subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=LIMIT_S + 30, check=False)
    log_end = (tmp_path / "log").read_text()[-5000:]
    assert (tmp_path / "end").exists(), log_end  # what the driver wrote decides, not how Ray ends it
    seen = [json.loads(line) for line in (tmp_path / "seen").read_text().split("\n")[:-1]]
    states = [entry for entry in seen if "history" in entry]
    for before, after in itertools.pairwise(states):
        assert after["step"] > before["step"]
        assert after["history"][: len(before["history"])] == before["history"], "no recorded epoch is computed again"
    alone, history = build(inputs, settings_of(tmp_path)), states[-1]["history"]
    inside = int((tmp_path / "end").read_text())
    assert inside % alone.sampler.steps_per_epoch != 0, "the notice made a checkpoint between two epochs' ends"
    for _ in alone.run():
        if alone.state.epoch == len(history):
            break
    for key in ("epoch", "step"):
        assert [entry[key] for entry in history] == [entry[key] for entry in alone.state.history]
    for key in ("loss", "valid_recall@5"):
        found, expected = ([entry.get(key) for entry in each] for each in (history, alone.state.history))
        # Other numbers of workers add in another order than one.
        assert found == pytest.approx(expected, abs=1e-4)


if __name__ == "__main__":
    try:
        disturb(Path(sys.argv[1]))
    except BaseException:
        traceback.print_exc()
    # Not Ray's own way to end: the thread that trains still talks to the cluster, and Ray exits with 1 before nodes are
    # gone.
    for process in psutil.Process().children(recursive=True):
        process.kill()
    os._exit(0)
