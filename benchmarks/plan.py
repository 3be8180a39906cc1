"""Plan the embedding of a generated catalog against the version before it: seconds, peak memory, and how both grow.

    python benchmarks/plan.py --rows 10000000    # about 5 minutes and 4 GB of disk

In the second catalog 1% of the titles changed, 1% of the items are gone and 1% are new. Each step runs in a process of
its own; vectors are 2 wide, as planning does not read them. Both catalogs lie in a temporary folder (``--folder``).
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from common import peak_rss_mb, print_result

from alpharec.artifacts import Artifact, Draft, Store
from alpharec.embed import vector_column
from alpharec.vectors import ITEMS, KIND, SHARDS, key_column, make_plan, shard_file, text_keys

LINE, SHARD_SIZE, PART = "shop-generated", 16_384, 1 << 20
NOUNS = [
    a + b for a in ("astro", "brick", "cloud", "drift", "ember", "frost") for b in ("cade", "ling", "mark", "wood")
]
KINDS = [
    "Deluxe Edition",
    "for Nintendo Wii",
    "Paperback",
    "4-pack, black",
    "with guide book",
    "PlayStation 4",
    "Vol. 2",
]


def write_catalog(store: Store, name: str, rows: int, *, changed: bool) -> Artifact:
    """Write items with titles of about 40 characters; 3% of the titles are another item's."""
    draft = store.draft("datasets", "shop", name)
    schema = pa.schema({"item_id": pa.string(), "title": pa.string()})
    with draft.stream_table(ITEMS, schema) as write:
        for start in range(0, rows, PART):
            item = np.arange(start, min(start + PART, rows))
            text = np.where(item % 100 < 3, item // 2, item)
            if changed:
                text = np.where((item % 100 == 50) | (item % 100 == 70), text + 10 * rows, text)
                item = np.where(item % 100 == 70, item + 10 * rows, item)
            write(pa.table({"item_id": ids(item), "title": titles(text)}, schema=schema))
    return draft.commit(settings={}, inputs={}, summary={"items": rows})


def ids(item: np.ndarray) -> pa.Array:
    return pc.binary_join_element_wise("B", pa.array(item).cast(pa.string()), "")


def titles(text: np.ndarray) -> pa.Array:
    first, second, kind = pa.array(NOUNS), pa.array(NOUNS), pa.array(KINDS)
    words = [first.take(pa.array(text % len(NOUNS))), second.take(pa.array(text // 7 % len(NOUNS)))]
    words += [pa.array(text).cast(pa.string()), kind.take(pa.array(text % len(KINDS)))]
    return pc.binary_join_element_wise(*words, " ")


def first_version(root: str, rows: int) -> dict[str, Any]:
    """Plan a first version, then write it with vectors that stand in for an encoder's."""
    store = Store(root)
    catalog = write_catalog(store, f"before-{rows}", rows, changed=False)
    with tempfile.TemporaryDirectory(dir=root) as folder:
        started = time.monotonic()
        plan = make_plan(catalog, None, Path(folder))
        seconds = time.monotonic() - started
        rss = peak_rss_mb()
        draft = store.draft(KIND, LINE, f"before-{rows}")
        for number, name, texts in plan.shards(SHARD_SIZE):
            shard = Draft(store, KIND, LINE, SHARDS)
            column = key_column(text_keys(texts), np.ones(len(texts), bool))
            shard.write_table(name, pa.table({"key": column, "vector": vector_column(np.ones((len(texts), 2), "f2"))}))
            draft.adopt(shard_file(number), shard.files[name] | {"folder": SHARDS})
        started = time.monotonic()
        plan.write_items(draft, {})
        items_seconds = time.monotonic() - started
        draft.commit(settings={}, inputs={}, summary={"items": rows, "published": True})
    return {"first_seconds": seconds, "first_peak_rss_mb": rss, "write_items_seconds": items_seconds}


def second_version(root: str, rows: int) -> dict[str, Any]:
    """Plan the changed catalog; what an embedding run does before its first text."""
    store = Store(root)
    base, catalog = store.find(KIND, LINE, f"before-{rows}"), store.find("datasets", "shop", f"after-{rows}")
    assert base is not None
    assert catalog is not None
    with tempfile.TemporaryDirectory(dir=root) as folder:
        started = time.monotonic()
        plan = make_plan(catalog, base, Path(folder))
        sampled = len(plan.sample(1024))
        seconds = time.monotonic() - started
    counts = plan.counts
    assert counts.unchanged + counts.new + counts.changed + counts.moved == rows
    assert counts.changed == counts.new == counts.deleted == rows // 100
    assert sampled >= 1024 or sampled == counts.to_embed
    return {"seconds": seconds, "peak_rss_mb": peak_rss_mb(), "to_embed": counts.to_embed}


def in_own_process(step: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(step, given)


def write_second(root: str, rows: int) -> dict[str, Any]:
    write_catalog(Store(root), f"after-{rows}", rows, changed=True)
    return {}


def main() -> None:
    """Plan at a tenth of the rows and at all of them."""
    arguments = argparse.ArgumentParser(description="Seconds and memory of planning an embedding run.")
    arguments.add_argument("--rows", type=int, default=10_000_000)
    arguments.add_argument("--folder", default=None, help="where the catalogs go; a temporary folder is made in it")
    given = arguments.parse_args()
    found = {}
    for rows in (given.rows // 10, given.rows):
        with tempfile.TemporaryDirectory(dir=given.folder) as root:
            steps = [in_own_process(step, root, rows) for step in (first_version, write_second, second_version)]
        found[rows] = {name: round(value, 2) for step in steps for name, value in step.items()}
        print(f"{rows:,} rows: {found[rows]}", flush=True)
    small, large = found[given.rows // 10], found[given.rows]
    growth = {f"{name}_growth": round(large[name] / small[name], 2) for name in ("seconds", "peak_rss_mb")}
    print_result(rows=given.rows, **large, **growth, at_a_tenth=small)


if __name__ == "__main__":
    main()
