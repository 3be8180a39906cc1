"""What every stage that runs on Ray needs: the cluster, work mapped on actors, a fair share of CPUs, progress lines."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import ray.data

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


def map_on_actors(
    settings: Settings,
    worker: type,
    work: Sequence[Mapping[str, Any]],
    *given: object,
    num_actors: int,
    num_cpus: int | None,
    num_gpus: float,
    calls_each: int = 1,
) -> Iterable[dict[str, Any]]:
    """Return the rows that actors make of each row of ``work``, as they are done.

    An actor is ``worker(*given)``, called with one row as a batch, ``calls_each`` calls at a time. There are at most
    ``num_actors``, each with ``num_cpus``, unset: with its share of the cluster's.
    """
    connect(settings)
    num_actors = min(num_actors, len(work))
    context = ray.data.DataContext.get_current()
    context.max_consecutive_actor_init_deaths = 2
    context.enable_progress_bars = False
    results = ray.data.from_items(list(work), override_num_blocks=len(work)).map_batches(
        worker,
        fn_constructor_args=given,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            size=num_actors, enable_true_multi_threading=calls_each > 1, max_concurrent_calls_per_actor=calls_each
        ),
        num_cpus=num_cpus or cpus_each(num_actors),
        num_gpus=num_gpus,
    )
    return results.iter_rows()


def use_own_cpus() -> None:
    """Have torch run on as many threads as this actor has CPUs."""
    import torch  # an actor that only hashes does without

    torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))


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
