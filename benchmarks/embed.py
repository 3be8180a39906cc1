"""The embedding stage against its bare engine fed the same titles in one call, in one run: the share that is kept.

    python benchmarks/embed.py --dataset amazon-games --encoder sentence-transformers    # about 4 minutes
    python benchmarks/embed.py --dataset amazon-games --encoder vllm --dtype bfloat16    # about 4 minutes

``ratio`` is the stage's titles a second over the engine's, both without the engine's start, which is stated by itself.
Engine and stage take turns, so that a machine whose speed drifts favours none.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import parser, print_result, settings_arguments

from alpharec.artifacts import Artifact, Store
from alpharec.config import Settings, load_settings
from alpharec.data.prepare import prepare
from alpharec.embed import embed
from alpharec.encoders import make_encoder
from alpharec.runtime import connect, show_progress
from alpharec.vectors import KIND, SHARDS, usable


def distinct_titles(catalog: Artifact, count: int | None) -> list[str]:
    """Return the texts that the stage embeds, in catalog order."""
    titles, _ = usable(catalog.read_table("items.parquet")["title"].combine_chunks())
    return list(dict.fromkeys(titles.drop_null().to_pylist()))[:count]


def bare(settings: Settings, catalog: Artifact) -> dict[str, float]:
    """Encode all titles in one call of the encoder's engine, tokenising first as the stage does."""
    texts = distinct_titles(catalog, None)
    started = time.monotonic()
    encoder = make_encoder(settings.encoder, settings.embed)
    encoder.encode(texts[:256])
    start_seconds = time.monotonic() - started
    started = time.monotonic()
    encoder.encode(texts)
    return {"start_seconds": start_seconds, "texts_per_second": len(texts) / (time.monotonic() - started)}


def stage(settings: Settings, catalog: Artifact) -> dict[str, float]:
    """Embed the catalog into an empty store; the rate counts from when the engine took the first shard's texts."""
    connect(settings)
    with tempfile.TemporaryDirectory() as root:
        started = time.monotonic()
        made = embed(Store(root), settings, catalog)
        seconds = time.monotonic() - started
        records = Store(root).files(KIND, made.name, SHARDS)
        ends = {when: name for name, when in records.items() if name.endswith(".json")}
        first, last = min(ends), max(ends)
        first_seconds = json.loads(Store(root).read(KIND, made.name, SHARDS, ends[first]))["seconds"]
        rate = made.summary["texts"] / (last - first + first_seconds)
        return {"seconds": seconds, "texts_per_second": rate, "shards": len(ends)}


def in_own_process(step: str, argv: list[str], place: tuple[str, str, str, str]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--step", step, json.dumps([argv, place])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def run_step(step: str, given: str) -> None:
    argv, (root, *place) = json.loads(given)
    show_progress()
    catalog = Store(root).find(*place)
    assert catalog is not None
    print(json.dumps({"bare": bare, "stage": stage}[step](load_settings(argv), catalog)), flush=True)


def main() -> None:
    """Measure both in turns and print the ratio of the medians."""
    arguments = parser("Titles a second of the embedding stage over those of its bare engine.")
    arguments.add_argument("--encoder", choices=["sentence-transformers", "vllm"], default="sentence-transformers")
    arguments.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    arguments.add_argument("--shard-size", type=int, default=None, help="texts a shard; unset: the setting's own")
    arguments.add_argument("--rounds", type=int, default=2)
    given = arguments.parse_args()
    options = {"encoder__backend": given.encoder, "encoder__dtype": given.dtype, "embed__shard_size": given.shard_size}
    with tempfile.TemporaryDirectory() as root:
        argv = settings_arguments(given.dataset, given.data, storage=root, **options)
        catalog = prepare(Store(root), load_settings(argv))
        place = (str(Path(root)), catalog.kind, catalog.name, catalog.version)
        rounds = [[in_own_process(step, argv, place) for step in ("bare", "stage")] for _ in range(given.rounds)]
    bare_rate, stage_rate = (statistics.median(pair[which]["texts_per_second"] for pair in rounds) for which in (0, 1))
    print_result(
        dataset=given.dataset,
        encoder=given.encoder,
        dtype=given.dtype,
        ratio=round(stage_rate / bare_rate, 3),
        texts_per_second=round(stage_rate, 1),
        bare_texts_per_second=round(bare_rate, 1),
        engine_start_seconds=round(statistics.median(pair[0]["start_seconds"] for pair in rounds), 1),
        stage_seconds=round(statistics.median(pair[1]["seconds"] for pair in rounds), 1),
        shards=rounds[0][1]["shards"],
        rounds=given.rounds,
    )


if __name__ == "__main__":
    if "--step" in sys.argv:
        run_step(*sys.argv[-2:])
    else:
        main()
