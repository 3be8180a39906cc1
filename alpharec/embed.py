"""The embedding stage: every distinct title through the encoder once, in shards that Ray Data hands to encoder actors.

A shard is committed when its record is written; a run that was killed does only the shards without one.

Shapes: I items, T text width.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import time
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import torch

from alpharec.artifacts import Artifact, Draft, Store, digest
from alpharec.config import Settings
from alpharec.encoders import Encoder, EncoderDied, EncoderError, fingerprint, make_encoder

logger = logging.getLogger(__name__)


def vectors_version(dataset: Artifact, settings: Settings) -> str:
    """Return the version of the vectors of a catalog under an encoder; splits and shards do not matter to it."""
    return digest([dataset.files["items.parquet"]["sha256"], fingerprint(settings.encoder)])[:16]


def embed(store: Store, settings: Settings, dataset: Artifact) -> Artifact:
    """Return the title vectors of a dataset, computing those shards the store does not have.

    Writes ``items.parquet`` (item_id, row of its vector) and ``vectors-*.parquet`` (fixed-size lists of fp16).

    Raises:
        EncoderError: the model cannot be loaded, or gives a vector that is not finite in fp16.
    """
    version = vectors_version(dataset, settings)
    found = store.find("vectors", settings.name, version)
    if found is not None:
        return found
    items = dataset.read_table("items.parquet")
    encoded = items["title"].combine_chunks().dictionary_encode()
    texts, size = encoded.dictionary, settings.embed.shard_size
    draft = store.draft("vectors", settings.name, version)
    draft.write_table("items.parquet", pa.table({"item_id": items["item_id"], "row": encoded.indices}))
    draft.write_table("texts.parquet", pa.table({"text": texts}), row_group_size=size)
    records = _run_shards(draft, settings, num_texts=len(texts))
    for record in records:
        draft.adopt(f"vectors-{record['shard']:05d}.parquet", record["file"])
    width = records[0]["width"]
    return draft.commit(
        settings=settings.model_dump(mode="json", include={"name", "encoder"}),
        inputs={"dataset": dataset},
        summary={
            "items": len(items),
            "texts": len(texts),
            "width": width,
            "shards": len(records),
            "fingerprint": fingerprint(settings.encoder),
        },
    )


def load_vectors(artifact: Artifact) -> npt.NDArray[np.float16]:
    """Load the vectors of a version, one row an item. Shapes: -> [I, T], fp16."""
    rows = artifact.read_table("items.parquet")["row"].to_numpy()
    shards = sorted(file for file in artifact.files if file.startswith("vectors-"))
    width = artifact.summary["width"]
    parts = [artifact.read_table(shard)["vector"].combine_chunks().flatten().to_numpy() for shard in shards]
    return cast(npt.NDArray[np.float16], np.concatenate(parts).reshape(-1, width)[rows])


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


def cpus_each(num_actors: int) -> int:
    """Return the most CPUs that each of ``num_actors`` actors can have on the cluster, none divided over nodes."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    fits = [cpus for cpus in range(1, max(nodes) + 1) if sum(node // cpus for node in nodes) >= num_actors]
    return max(fits, default=1)


def _run_shards(draft: Draft, settings: Settings, *, num_texts: int) -> list[dict[str, Any]]:
    size = settings.embed.shard_size
    num_shards = -(-num_texts // size)
    records = {shard: record for shard in range(num_shards) if (record := _read_record(draft, size, shard)) is not None}
    missing = [shard for shard in range(num_shards) if shard not in records]
    logger.info("embed: %s distinct titles in %s shards, %s already done", num_texts, num_shards, len(records))
    if missing:
        done = min(num_texts, len(records) * size)
        started, first = time.monotonic(), done
        for record in _compute(draft, settings, missing):
            records[record["shard"]] = record
            done += record["file"]["rows"]
            rate = (done - first) / (time.monotonic() - started)
            logger.info(
                "embed: %s / %s titles, %.0f a second, %.0f s left", done, num_texts, rate, (num_texts - done) / rate
            )
    return [records[shard] for shard in range(num_shards)]


def _compute(draft: Draft, settings: Settings, shards: list[int]) -> Iterator[dict[str, Any]]:
    embed = settings.embed
    ray.data.DataContext.get_current().max_consecutive_actor_init_deaths = 2
    ray.data.DataContext.get_current().enable_progress_bars = False
    num_actors = min(embed.num_workers, len(shards))
    texts = draft.store.at(draft.kind, draft.name, draft.version, draft.files["texts.parquet"]["path"])
    work = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
    results = work.map_batches(
        _ShardEncoder,
        fn_constructor_args=(draft.store, draft.kind, draft.name, draft.version, texts, settings),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=num_actors),
        num_cpus=embed.num_cpus or cpus_each(num_actors),
        num_gpus=embed.num_gpus,
    )
    for row in results.iter_rows():
        if row["error"]:
            raise EncoderError(row["error"])
        yield json.loads(row["record"])


def _record_name(size: int, shard: int) -> str:
    return f"shard-{size}-{shard:05d}.json"


def _read_record(draft: Draft, size: int, shard: int) -> dict[str, Any] | None:
    place = (draft.kind, draft.name, draft.version, _record_name(size, shard))
    return cast(dict[str, Any], json.loads(draft.store.read(*place))) if draft.store.exists(*place) else None


class _ShardEncoder:
    """An actor with one encoder: reads a shard's texts, writes its vectors, then its record."""

    def __init__(self, store: Store, kind: str, name: str, version: str, texts: str, settings: Settings) -> None:
        self.store, self.place, self.texts, self.settings = store, (kind, name, version), texts, settings
        torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))

    @functools.cached_property
    def encoder(self) -> Encoder:
        return make_encoder(self.settings.encoder, self.settings.embed)

    def __call__(self, batch: dict[str, npt.NDArray[np.int64]]) -> dict[str, list[str]]:
        try:
            return {"record": [json.dumps(self._encode(int(batch["shard"][0])))], "error": [""]}
        except EncoderDied:
            os._exit(1)  # the engine is gone: only a new actor can start another
        except EncoderError as error:  # the driver raises it: a person sees the message, not an actor's traceback
            return {"record": [""], "error": [str(error)]}

    def _encode(self, shard: int) -> dict[str, Any]:
        with self.store.fs.open(self.texts, "rb") as file:
            texts = pq.ParquetFile(file).read_row_group(shard)["text"].to_pylist()
        vectors = self.encoder.encode(texts).astype(np.float16)
        if not np.isfinite(vectors).all():
            text = texts[int(np.argmin(np.isfinite(vectors).all(1)))]
            raise EncoderError(f"the vector of {text[:60]!r} does not fit fp16; pass --encoder.normalize")
        draft, width = Draft(self.store, *self.place), vectors.shape[1]
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), width)
        draft.write_table("vectors.parquet", pa.table({"vector": column}))
        record = {"shard": shard, "width": width, "file": draft.files["vectors.parquet"]}
        self.store.write(json.dumps(record).encode(), *self.place, _record_name(self.settings.embed.shard_size, shard))
        return record
