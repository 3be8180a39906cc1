"""What every stage that runs on Ray needs: the cluster, a fair share of its CPUs, and quiet progress lines."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from alpharec.config import Settings


def connect(settings: Settings) -> None:
    """Join the cluster the job was submitted to or the one the settings name; else start a local one."""
    if ray.is_initialized():
        return
    if settings.ray.address or "RAY_ADDRESS" in os.environ:
        ray.init(address=settings.ray.address or None)
    else:
        start_local(settings.ray.num_cpus)


def start_local(num_cpus: int | None = None) -> None:
    """Start a Ray of this process's own, whatever other Rays this machine has or had.

    Train's actors ask the dashboard whether their controller lives. Unless the environment they start with says where
    it is, they look for a Ray on the machine, and ask another one, wait for one that is gone, or give up.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with environment(RAY_API_SERVER_ADDRESS=f"http://127.0.0.1:{port}"):
        ray.init(
            address="local",  # else Ray may join a stale cluster of this machine
            num_cpus=num_cpus,
            include_dashboard=True,
            dashboard_port=port,
            logging_level=logging.WARNING,
        )


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Have these environment variables inside; processes started there keep them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def cpus_each(num_actors: int) -> int:
    """Return the most CPUs that each of ``num_actors`` actors can have on the cluster, none divided over nodes."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    fits = [cpus for cpus in range(1, max(nodes) + 1) if sum(node // cpus for node in nodes) >= num_actors]
    return max(fits, default=1)


def memory_each(num_actors: int) -> float:
    """Return the bytes of memory for each of ``num_actors`` actors spread evenly, by its smallest node with CPUs."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = [node["memory"] for node in found if node.get("memory") and node.get("CPU")]
    return float(min(nodes)) / -(-num_actors // len(nodes)) if nodes else math.inf


def gpu_kinds() -> list[str]:
    """Return the cluster's kinds of GPU, as Ray names them: H100, H200, ..."""
    mark = "accelerator_type:"
    return sorted({name.removeprefix(mark) for name in ray.cluster_resources() if name.startswith(mark)})


def show_progress() -> None:
    """Print this library's progress lines; Ray's own only from a warning up."""
    own = logging.getLogger("alpharec")
    if not own.handlers:
        own.addHandler(logging.StreamHandler())
        own.handlers[0].setFormatter(logging.Formatter("%(message)s"))
    own.setLevel(logging.INFO)
    own.propagate = False
    for chatty in ("ray.data", "ray.train"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # says that its bars are off
