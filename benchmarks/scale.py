"""Measure memory and seconds of training at sizes that grow tenfold, beside what ``alpharec.estimate`` says.

    python benchmarks/scale.py    # about 10 minutes and 12 GB on 2 cores

Generated graphs of users : items : interactions = 10 : 1 : 100, popularity by a power law, activity log-normal; a tenth
of the interactions again is held out. Random title vectors of width 384; paper's batch. Each size runs in a process of
its own: ``setup_mb`` and ``step_mb`` are the largest resident sizes while ``Training.build`` and while the steps run,
less what the process held after its imports. ``processor_seconds_per_step``, of all threads together, is less disturbed
by other programs than seconds are; the estimate's is its seconds times its 2 cores. ``ratio``: measured / estimated.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from common import print_result

from alpharec.artifacts import Artifact, Store
from alpharec.config import load_settings
from alpharec.estimate import DEVICES, estimate, size_of
from alpharec.train import Training

TEXT_WIDTH, CORES = 384, 2
RUNS = [(10**5, 1536), (10**5, 108), (10**6, 1536), (10**6, 108), (10**7, 108), (10**7, 1536), (3 * 10**7, 108)]
STEPS = {10**5: 12, 10**6: 8, 10**7: 3, 3 * 10**7: 2}


def resident_mb(kind: str) -> float:
    """Return VmRSS (now) or VmHWM (the most since ``forget_peak``), in MB."""
    found = re.search(kind + r":\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024 / 1e6


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def generate(num_pairs: int, folder: str) -> tuple[Artifact, Artifact]:
    """Write a dataset with train pairs and a tenth of their number to validate on, each once, and random vectors."""
    num_users, num_items = num_pairs // 10, num_pairs // 100
    generator = torch.Generator().manual_seed(0)
    activity_U = torch.randn(num_users, generator=generator).exp()
    popularity_I = torch.arange(1, num_items + 1).float().pow(-0.6)[torch.randperm(num_items, generator=generator)]
    keys = torch.empty(0, dtype=torch.int64)
    while len(keys) < num_pairs * 11 // 10:
        users = torch.multinomial(activity_U, num_pairs, replacement=True, generator=generator)
        items = torch.multinomial(popularity_I, num_pairs, replacement=True, generator=generator)
        keys = torch.unique(torch.cat([keys, users * num_items + items]))
    keys = keys[torch.randperm(len(keys), generator=generator)[: num_pairs * 11 // 10]]
    train, valid = keys.split([num_pairs, num_pairs // 10])
    store, summary = Store(folder), {"users": num_users, "items": num_items}
    draft = store.draft("datasets", "scale", "v1")
    for split, part in {"train": train, "valid": valid, "test": valid[:0]}.items():
        pairs = np.stack(np.divmod(part.sort().values.numpy(), num_items)).astype(np.int32)
        draft.write_table(f"{split}.parquet", pa.table(list(pairs), names=["user", "item"]))
        summary[split] = len(part)
    dataset = draft.commit(settings={}, inputs={}, summary=summary)
    draft = store.draft("vectors", "scale", "v1")
    places = pa.table({"shard": pa.array(np.zeros(num_items, np.int32)), "row": np.arange(num_items)})
    draft.write_table("items.parquet", places)
    vectors = torch.randn(num_items, TEXT_WIDTH, generator=generator).half().numpy()
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), TEXT_WIDTH)
    draft.write_table("vectors-00000.parquet", pa.table({"vector": column}))
    summary = {"items": num_items, "width": TEXT_WIDTH}
    return dataset, draft.commit(settings={}, inputs={}, summary=summary)


def measure(num_pairs: int, hidden: int, precision: str, dataset: Artifact, vectors: Artifact) -> dict[str, Any]:
    """Build a run and take steps, as a Ray Train worker does."""
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    torch.randn(512, 512) @ torch.randn(512, 512)  # the products' own buffers and threads
    libraries = resident_mb("VmRSS")
    options = {"model.hidden-width": hidden, "train.precision": precision}
    settings = load_settings([word for name, value in options.items() for word in (f"--{name}", str(value))])
    forget_peak()
    training = Training.build(settings, dataset, vectors)
    setup = resident_mb("VmHWM") - libraries
    size = size_of(settings, dataset.summary, vectors.summary)
    forget_peak()
    seconds, busy = [], []
    for _ in range(STEPS[num_pairs]):
        started, worked = time.perf_counter(), time.process_time()
        training.step()
        seconds.append(time.perf_counter() - started)
        busy.append(time.process_time() - worked)
    measured = {"setup_mb": setup, "step_mb": resident_mb("VmHWM") - libraries}
    measured["seconds_per_step"] = statistics.median(seconds[1:])
    measured["processor_seconds_per_step"] = statistics.median(busy[1:])
    expected = estimate(size, DEVICES["cpu"])
    estimated = {
        "setup_mb": expected.setup_host / 1e6,
        "step_mb": sum(expected.memory.values()) / 1e6,
        "seconds_per_step": expected.seconds_per_step,
        "processor_seconds_per_step": expected.seconds_per_step * CORES,
    }
    return {
        "interactions": num_pairs,
        "hidden": hidden,
        "precision": precision,
        "libraries_mb": round(libraries),
        "measured": {name: round(value, 3) for name, value in measured.items()},
        "estimated": {name: round(value, 3) for name, value in estimated.items()},
        "ratio": {name: round(measured[name] / estimated[name], 2) for name in measured},
    }


def in_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in a new process: its memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def main() -> None:
    """Measure the sizes one by one."""
    arguments = argparse.ArgumentParser(description="Memory and seconds of training by size, beside the estimate.")
    arguments.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    arguments.add_argument("--least", type=int, default=min(STEPS), help="leave out fewer interactions than this")
    arguments.add_argument("--hidden", type=int, nargs="+", default=[108, 1536])
    arguments.add_argument("--most", type=int, default=max(STEPS), help="leave out more interactions than this")
    given = arguments.parse_args()
    found = []
    for num_pairs, hidden in RUNS:
        if given.least <= num_pairs <= given.most and hidden in given.hidden:
            with tempfile.TemporaryDirectory() as folder:
                written = in_process(generate, num_pairs, folder)
                found.append(in_process(measure, num_pairs, hidden, given.precision, *written))
            print(found[-1], flush=True)
    print_result(runs=found, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
