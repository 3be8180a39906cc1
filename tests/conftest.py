"""What several test files share: an S3 server on the loopback and one local Ray, started only where a test asks."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import numpy as np
import pytest

# No test reaches a network; set before any library that could reads it.
os.environ["HF_HUB_OFFLINE"] = "1"
# The tests' tensors are small: a second thread costs more than it does. Also read at import.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Of Ray's own watchers, a tenth of the tests' processor time: of nodes about to go (test_elastic asks for it), of log
# files, ten times a second, and of the machine.
os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
os.environ |= {"RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0", "REPORTER_UPDATE_INTERVAL_MS": "60000"}
# ranx, an oracle on tiny data, would compile for a minute.
os.environ["NUMBA_DISABLE_JIT"] = "1"

# The same examples every time, and no time limit: a loaded machine fails no test.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tests")

BUCKET = "alpharec-tests"
S3_SECRET = "kept-out-of-every-record"


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Serve S3 from a thread; every client of this process and of Ray workers started later reaches it."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "alpharec",
        "AWS_SECRET_ACCESS_KEY": S3_SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield f"s3://{BUCKET}"
    server.stop()


@pytest.fixture(scope="session")
def ray_local(s3: str) -> Iterator[None]:
    """Start Ray on this machine; its workers inherit the environment, so S3 is there first."""
    import ray

    from alpharec.runtime import start_local

    start_local(num_cpus=2)
    yield
    ray.shutdown()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Have threads that renew leases wait for a hundredth of their time; return the times.

    So a lease is long enough for any machine, and is renewed soon.
    """
    times: list[float] = []

    class Hurried(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            times.append(timeout)
            return super().wait(timeout / 100)

    monkeypatch.setattr("alpharec.artifacts.threading", SimpleNamespace(Event=Hurried, Thread=threading.Thread))
    return times


@pytest.fixture
def in_process(tmp_path: Path) -> Iterator[None]:
    """``in_this_process`` for one test."""
    with in_this_process(tmp_path):
        yield


@contextlib.contextmanager
def in_this_process(folder: Path) -> Iterator[None]:
    """Have this process do what actors and training workers do, one of which takes seconds to start.

    For tests of what is made there. Nothing of a training is left but its last state, in ``folder``.
    """
    from alpharec import embed, propagate, recommend, train

    def map_here(_: Any, worker: type, work: Sequence[Mapping[str, Any]], *given: object, **__: Any) -> Iterator[Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_assigned_resources=dict))
            actor = worker(*given)
        for row in work:
            made = actor({name: np.array([value]) for name, value in row.items()})
            yield {name: column[0] for name, column in made.items()}

    def train_here(store: Any, settings: Any, run: str, *inputs: Any) -> SimpleNamespace:
        training = train.Training.build(settings, *inputs)
        assert all(training.run()), "each step of training is due"
        state = folder / f"state-of-{run}"
        state.mkdir()
        training.state.save(state)
        return SimpleNamespace(
            return_value="", checkpoint=SimpleNamespace(as_directory=lambda: contextlib.nullcontext(state))
        )

    with pytest.MonkeyPatch.context() as patch:
        for module in (embed, propagate, recommend):
            patch.setattr(module, "map_on_actors", map_here)
        patch.setattr(train, "run_workers", train_here)
        yield
