"""Prepare a dataset from a generated log of interactions, in CSV and in Parquet: rows a second and peak memory.

    python benchmarks/reading.py --rows 10000000    # 3 minutes and 1 GB of disk

A row is a user of a tenth as many users, an item of a hundredth, an ISO time and a rating. Each preparation runs in a
process of its own. ``quoted``: the same CSV with every field in quotes, which Python's ``csv`` reads.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from common import peak_rss_mb, print_result

from alpharec.artifacts import Store
from alpharec.config import Settings
from alpharec.data.formats import open_inputs
from alpharec.data.prepare import prepare
from alpharec.data.read import read_inputs


def write_log(folder: str, rows: int) -> None:
    """Write items and interactions in each format."""
    draw = np.random.default_rng(101)
    items = np.arange(max(rows // 100, 10))
    pl.DataFrame({"item_id": items, "title": [f"title {item}" for item in items]}).write_csv(f"{folder}/items.csv")
    log = pl.DataFrame(
        {
            "user_id": draw.integers(0, max(rows // 10, 3), rows),
            "item_id": draw.integers(0, len(items), rows),
            "when": pl.from_epoch(pl.Series(draw.integers(1_500_000_000, 1_600_000_000, rows)), time_unit="s"),
            "rating": draw.integers(1, 11, rows) / 2,
        }
    ).with_columns(pl.format("A{}X", "user_id").alias("user_id"))
    log.write_csv(f"{folder}/plain.csv", datetime_format="%Y-%m-%dT%H:%M:%S")
    log.write_csv(f"{folder}/quoted.csv", datetime_format="%Y-%m-%dT%H:%M:%S", quote_style="always")
    log.write_parquet(f"{folder}/log.parquet")


def prepare_log(folder: str, name: str) -> dict[str, Any]:
    """Read the log, then prepare the dataset."""
    data = {"path": folder, "interactions": name, "time_column": "when", "rating_column": "rating", "min_rating": 1}
    given = {"name": "log", "data": data | {"split": "ratio-time", "on_duplicate": "first"}}
    settings = Settings.model_validate(given)
    started = time.monotonic()
    read_inputs(open_inputs(settings.data), settings.data)
    reading = time.monotonic() - started
    rss = peak_rss_mb()
    started = time.monotonic()
    prepare(Store(f"{folder}/store-{name}"), settings)
    return {
        "read_seconds": round(reading, 1),
        "read_peak_rss_mb": rss,
        "prepare_seconds": round(time.monotonic() - started, 1),
        "peak_rss_mb": peak_rss_mb(),
    }


def main() -> None:
    """Write the log, then prepare it from each of its files."""
    arguments = argparse.ArgumentParser(description="Speed and memory of reading a log of interactions.")
    arguments.add_argument("--rows", type=int, default=10_000_000)
    arguments.add_argument("--folder", default=None, help="where the files go; a temporary folder is made in it")
    given = arguments.parse_args()
    context, results = multiprocessing.get_context("spawn"), {}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        with context.Pool(1) as pool:
            pool.apply(write_log, (folder, given.rows))
        for name in ("plain.csv", "quoted.csv", "log.parquet"):
            with context.Pool(1) as pool:
                found = pool.apply(prepare_log, (folder, name))
            found["rows_per_second"] = round(given.rows / found["read_seconds"])
            found["file_mb"] = round(Path(folder, name).stat().st_size / 1e6)
            results[name.replace(".", "_")] = found
            print(f"{name}: {found}", flush=True)
    print_result(rows=given.rows, **results)


if __name__ == "__main__":
    main()
