"""The embedding stage: a catalog's new texts through the encoder, in shards that Ray Data hands to encoder actors.

A run plans before it computes: only texts without a vector in the line reach the model. A shard is complete when its
record is written; a run that was killed does only the shards without one. One manifest makes the version visible.

Shapes: n texts, T text width.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from ray.exceptions import RayActorError

from alpharec.artifacts import LATEST, Artifact, ArtifactError, Draft, Lease, Store, digest, is_name
from alpharec.config import Settings
from alpharec.encoders import (
    Encoder,
    EncoderDied,
    EncoderError,
    RefusedTexts,
    Tokens,
    count_tokens,
    fingerprint,
    make_encoder,
)
from alpharec.runtime import map_on_actors, use_own_cpus
from alpharec.vectors import (
    ITEMS,
    KIND,
    LEASE,
    LEASE_S,
    PROBE,
    SHARDS,
    Plan,
    key_column,
    line_of,
    make_plan,
    matrix,
    read_rows,
    record_name,
    shard_digest,
    shard_file,
    text_keys,
    vector_column,
)

logger = logging.getLogger(__name__)

PROBE_TEXTS = 64
SAMPLE = 1024  # texts tokenised to estimate the tokens of all
DEATHS = 4  # of actors on one shard before the run stops
WORK = "work.parquet"

Record = dict[str, Any]


class EmbedError(RuntimeError):
    """A version cannot be embedded or published as asked; the message says what to do."""


@dataclass(frozen=True)
class Target:
    """The version that a catalog has under an encoder; splits and shards do not matter to it."""

    line: str
    version: str
    fingerprint: Mapping[str, Any]

    @classmethod
    def of(cls, catalog: Artifact, settings: Settings) -> Target:
        encoder = fingerprint(settings.encoder)
        version = digest([catalog.files[ITEMS]["sha256"], encoder])[:16]
        return cls(line_of(settings.name, encoder), version, encoder)


def embed(store: Store, settings: Settings, catalog: Artifact, *, publish: bool = True) -> Artifact:
    """Return the title vectors of a catalog, computing those texts that the line has no vector of.

    Holds the line's lease meanwhile and moves its LATEST, unless ``publish`` is off.

    Raises:
        EncoderError: the model cannot be loaded, its worker died again and again, or it refuses too many texts.
        EmbedError: too much of the catalog changed, or the vectors did not pass the gate.
        ArtifactError: another run works on the line, or a file of the version before is gone or damaged.
    """
    target = Target.of(catalog, settings)
    if found := _find(store, target, publish=publish):
        return found
    with ExitStack() as stack:
        lease = stack.enter_context(store.lease(KIND, target.line, LEASE, seconds=LEASE_S)) if publish else None
        if found := _find(store, target, publish=publish):  # made by the run that gave the lease back just now
            return found
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="alpharec-plan-")))
        plan = make_plan(catalog, _base(store, target.line), folder)
        logger.info("%s", format_plan(plan, settings))
        _guard(plan, settings, publish=publish)
        made = _build(store, settings, target, plan, lease)
        if lease:
            lease.check()
            _move_latest(store, made)
        return made


def embed_texts(store: Store, settings: Settings, ids: pa.StringArray, texts: pa.StringArray) -> Artifact:
    """Return the vectors of texts that are no dataset's titles, by the encoder of the titles; nothing is published.

    Raises:
        EncoderError, EmbedError, ArtifactError: as ``embed``.
    """
    version = digest([ids.to_pylist(), texts.to_pylist()])[:16]
    catalog = store.find("catalogs", settings.name, version)
    if catalog is None:
        draft = store.draft("catalogs", settings.name, version)
        draft.write_table(ITEMS, pa.table({"item_id": ids, "title": texts}))
        catalog = draft.commit(settings={"name": settings.name}, inputs={}, summary={"items": len(texts)})
    return embed(store, settings, catalog, publish=False)


def _find(store: Store, target: Target, *, publish: bool) -> Artifact | None:
    found = store.find(KIND, target.line, target.version)
    if found is not None and publish:
        _publish_interrupted(store, found)
    return found


def _publish_interrupted(store: Store, found: Artifact) -> None:
    """Move LATEST to a version whose run was killed after the manifest; an older version is not LATEST again."""
    base = _base(store, found.name)
    if found.manifest["inputs"].get("base") == (base.uri if base else None):
        _move_latest(store, found)
    elif base and base.version != found.version:
        logger.info("embed: %s holds this catalog's vectors already; LATEST stays at %s", found.uri, base.version)


def _move_latest(store: Store, made: Artifact) -> None:
    base = made.manifest["inputs"].get("base")
    store.move_latest(KIND, made.name, made.version, after=base.rsplit("/", 1)[-1] if base else None)


def dry_run(store: Store, settings: Settings, catalog: Artifact) -> str:
    """Return what ``embed`` would do, in words; nothing is computed or written."""
    target = Target.of(catalog, settings)
    if store.find(KIND, target.line, target.version) is not None:
        return f"embed: nothing to do: {store.uri(KIND, target.line, target.version)} holds this catalog's vectors"
    with tempfile.TemporaryDirectory(prefix="alpharec-plan-") as folder:
        return format_plan(make_plan(catalog, _base(store, target.line), Path(folder)), settings)


def _base(store: Store, line: str) -> Artifact | None:
    return store.latest(KIND, line) if store.exists(KIND, line, LATEST) else None


def format_plan(plan: Plan, settings: Settings) -> str:
    """Return the plan as lines for a person: how the catalog changed, and what embedding it takes."""
    counts, before = plan.counts, plan.base
    was = f"compared with {before.version}" if before else "the first version of its line"
    lines = [f"embed: {counts.items:,} items, {was}"]
    kinds = ("unchanged", "new", "changed", "moved", "deleted", "quarantined")
    lines.append("embed: " + ", ".join(f"{getattr(counts, kind):,} {kind}" for kind in kinds))
    lines.append(
        f"embed: {counts.texts:,} distinct texts ({counts.duplicates:,} duplicates), {counts.to_embed:,} to embed"
    )
    if counts.to_embed:
        sample = plan.sample(SAMPLE)
        tokens = sum(count_tokens(settings.encoder, sample)) / len(sample) * counts.to_embed
        lines.append(f"embed: about {tokens:,.0f} tokens, {_cost(plan, settings)}")
    return "\n".join(lines)


def _cost(plan: Plan, settings: Settings) -> str:
    """Say how long embedding takes, going by the version before."""
    rate = plan.base.summary.get("texts_per_second_and_worker") if plan.base else None
    if not rate:
        return "time unknown: no earlier version of the line measured it"
    seconds = plan.counts.to_embed / rate / settings.embed.num_workers
    hours = seconds * settings.embed.num_workers * settings.embed.num_gpus / 3600
    return f"about {seconds:,.0f} s on {settings.embed.num_workers} workers, {hours:.2f} accelerator-hours"


def _guard(plan: Plan, settings: Settings, *, publish: bool) -> None:
    """Stop before too much is paid for, or published, by mistake."""
    limits, counts = settings.embed, plan.counts
    if plan.base and publish and not limits.yes:
        share = counts.changed_share(plan.base.summary["items"])
        if share > limits.max_change:
            raise EmbedError(
                f"{share:.0%} of the items are not as they were in {plan.base.uri} (limit embed.max_change = "
                f"{limits.max_change:.0%}); look at the counts above and pass --yes if they are right"
            )
    if counts.quarantined > limits.max_quarantined * counts.items:
        raise EmbedError(
            f"{counts.quarantined:,} of {counts.items:,} items of {plan.catalog.uri} have no usable title "
            f"(limit embed.max_quarantined = {limits.max_quarantined:.2%}); mend the titles or raise the limit"
        )


# ---------------------------------------------------------------- build a version


def _build(store: Store, settings: Settings, target: Target, plan: Plan, lease: Lease | None) -> Artifact:
    draft = store.draft(KIND, target.line, target.version)
    base, started = plan.base, time.monotonic()
    records = dict(_run_shards(draft, settings, plan))
    spent = _check_shards(records, plan, settings)
    refused = {
        (number << 32) | int(row): why for number, record in records.items() for row, why in record["refused"].items()
    }
    if len(refused) > settings.embed.max_quarantined * plan.counts.items:
        raise EncoderError(_too_many(len(refused), refused, settings.embed.max_quarantined))
    used, quarantined = plan.write_items(draft, refused)
    for number in sorted(used):
        file = shard_file(number)
        if number in records:
            draft.adopt(file, records[number]["file"] | {"folder": SHARDS})
        elif base:
            draft.adopt(file, base.files[file])
    if not used:
        raise EmbedError(f"{plan.catalog.uri}: no item has a vector; its titles cannot be embedded")
    _check_places(draft, plan)
    _keep_probe(draft, plan, used)
    if lease:
        lease.check()
    width = records[min(records)]["width"] if records else base.summary["width"] if base else 0
    return draft.commit(
        settings=settings.model_dump(mode="json", include={"name", "encoder"}),
        inputs={"catalog": plan.catalog} | ({"base": base} if base else {}),
        summary={
            "items": plan.counts.items,
            "texts": plan.counts.texts,
            "width": width,
            "shards": len(used),
            "quarantined": quarantined,
            "plan": dataclasses.asdict(plan.counts),
            "published": lease is not None,
            "seconds": round(time.monotonic() - started, 3),
            **({key: base.summary.get(key) for key in SPENT} if base else {}),
            **spent,
            "fingerprint": target.fingerprint,
        },
    )


SPENT = ("texts_per_second_and_worker", "tokens_per_second_and_worker")


def _run_shards(draft: Draft, settings: Settings, plan: Plan) -> Iterator[tuple[int, Record]]:
    """Yield the records of all shards of work, first those that an earlier run completed."""
    size, total = settings.embed.shard_size, plan.counts.to_embed
    if not total:
        return
    complete = set(draft.store.files(KIND, draft.name, SHARDS))
    work = Draft(draft.store, KIND, draft.name, draft.version)
    missing: list[dict[str, Any]] = []
    done = 0
    with work.stream_table(WORK, pa.schema({"text": pa.string()})) as write:
        for number, name, texts in plan.shards(size):
            record = _read_record(draft.store, draft.name, name) if record_name(name) in complete else None
            if record is not None:
                done += len(texts)
                yield number, record
            else:
                write(pa.table({"text": texts}))
                missing.append({"number": number, "group": len(missing), "digest": name})
    if done:
        logger.info("embed: %s of %s texts were embedded by an earlier run", f"{done:,}", f"{total:,}")
    if missing:
        yield from _compute(work, settings, plan, missing, done)
    draft.store.remove(KIND, draft.name, draft.version, work.files[WORK]["path"])


def _read_record(store: Store, line: str, name: str) -> Record | None:
    """Return the record of a complete shard whose file is there.

    Raises:
        ArtifactError: the record names a file that is no shard of this line.
    """
    place = (KIND, line, SHARDS, record_name(name))
    record: Record = json.loads(store.read(*place))
    path = record["file"]["path"]
    if not is_name(path):
        raise ArtifactError(
            f"{store.uri(*place)}: names a file outside its folder (got {path!r}); the record was changed by hand: "
            "delete it and run again"
        )
    return record if store.exists(KIND, line, SHARDS, path) else None


def _compute(
    work: Draft, settings: Settings, plan: Plan, missing: list[dict[str, Any]], done: int
) -> Iterator[tuple[int, Record]]:
    chosen = settings.embed
    probe = plan.base if plan.base and PROBE in plan.base.files else None
    most_refused = int(chosen.max_quarantined * plan.counts.items)
    # Ray repeats a call without end, as a lost node costs many tries; ``_begin`` counts what kills actors.
    rows = map_on_actors(
        settings,
        ShardEncoder,
        missing,
        work.store,
        work.name,
        work.version,
        work.files[WORK]["path"],
        probe,
        settings,
        most_refused,
        num_actors=chosen.num_workers,
        num_cpus=chosen.num_cpus,
        num_gpus=chosen.num_gpus,
        calls_each=2,  # one reads and tokenises while the other has the engine
    )
    refused, progress = 0, Progress(plan.counts.to_embed, done, min(chosen.num_workers, len(missing)))
    try:
        for row in rows:
            if row["error"]:
                raise EncoderError(row["error"])
            record = json.loads(row["record"])
            yield int(row["number"]), record
            logger.info("embed: %s", progress.add(record))
            refused += len(record["refused"])
            if refused > most_refused:
                raise EncoderError(_too_many(refused, record["refused"], chosen.max_quarantined))
    except RayActorError as error:
        raise EncoderError(
            f"an encoder's worker is gone for good ({str(error).splitlines()[0]}); finished shards are kept: run again"
        ) from error


@dataclass
class Progress:
    """How far a run is, in words; its rates count from the first finished shard, when the engines have started."""

    total: int
    done: int
    num_actors: int
    texts: int = 0
    tokens: int = 0
    busy: float = 0.0
    started: float = field(default_factory=time.monotonic)
    steady: float = 0.0

    def add(self, record: Record) -> str:
        """Count a finished shard and return a line about all of them."""
        now, rows = time.monotonic(), record["file"]["rows"]
        self.done += rows
        far = f"{self.done:,} / {self.total:,} texts"
        if not self.steady:
            self.steady = now
            return f"{far}, the first shard after {now - self.started:.0f} s, engine start included"
        self.texts, self.tokens, self.busy = (
            self.texts + rows,
            self.tokens + record["tokens"],
            self.busy + record["seconds"],
        )
        # Shards come in together: what their encoders took counts where it is more than the time between.
        seconds = max(now - self.steady, self.busy / self.num_actors, 1e-9)
        rates = f"{self.texts / seconds:,.0f} texts/s, {self.tokens / seconds:,.0f} tokens/s"
        left = (self.total - self.done) * seconds / self.texts
        return f"{far}, {rates}, {left:,.0f} s left, encoders {self.busy / seconds / self.num_actors:.0%} busy"


def _too_many(refused: int, reasons: Mapping[Any, str], share: float) -> str:
    why = "; ".join(dict.fromkeys(reasons.values()))[:300]
    return f"{refused} texts cannot be embedded (limit embed.max_quarantined = {share:.2%} of the items): {why}"


class ShardEncoder:
    """An actor with one encoder: reads a shard's texts, writes its vectors, then its record."""

    def __init__(
        self,
        store: Store,
        line: str,
        version: str,
        work: str,
        base: Artifact | None,
        settings: Settings,
        most_refused: int,
    ) -> None:
        self.store, self.line, self.work, self.base = store, line, (KIND, line, version, work), base
        self.settings, self.most_refused = settings, most_refused
        self.reported = (0, 0.0)
        self.making = threading.Lock()  # of the encoder: one thread's
        self.turn = threading.Lock()  # a shard's, from its engine to its record: a kill repeats no second one
        if settings.encoder.backend != "hash":  # which would load torch for nothing
            use_own_cpus()

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, list[Any]]:
        number, group, name = (batch[key][0] for key in ("number", "group", "digest"))
        try:
            record, error = json.dumps(self.encode(int(group), str(name))), ""
        except EncoderDied:
            os._exit(1)  # the engine is gone: only a new actor can start another
        except (EncoderError, ArtifactError, OSError) as caught:  # the driver raises it: a message, no traceback
            record, error = "", str(caught)
        return {"number": [number], "record": [record], "error": [error]}

    @functools.cached_property
    def encoder(self) -> Encoder:
        return make_encoder(self.settings.encoder, self.settings.embed)

    @functools.cached_property
    def probe_cosine(self) -> float | None:
        """The smallest cosine between the probe's vectors and what this actor's engine makes of its texts."""
        if self.base is None:
            return None
        probe = self.base.read_table(PROBE)
        if not len(probe):
            return None
        before = matrix(probe, "vector").astype(np.float32)
        return float(cosines(self.encoder.encode(probe["text"].to_pylist()), before).min())

    def encode(self, group: int, name: str) -> Record:
        if self.store.exists(KIND, self.line, SHARDS, record_name(name)):  # by the actor that died after writing it
            record = _read_record(self.store, self.line, name)
            if record is not None:
                return record
        with self.store.open("rb", *self.work) as file:
            column = pq.ParquetFile(file).read_row_group(group)["text"].combine_chunks()
        keys = text_keys(column)
        if shard_digest(keys) != name:
            raise ArtifactError(
                f"{self.store.uri(*self.work)}: row group {group} is not what the plan wrote; run again"
            )
        texts = column.to_pylist()
        with self.making:
            encoder = self.encoder
        tokens = encoder.tokenize(texts)
        with self.turn:
            tries = self._begin(name)
            vectors, refused = encode_each(encoder, texts, tokens, most_refused=self.most_refused)
            record = self._record(name, keys, vectors, refused)
            self.store.remove(*tries)
            return record

    def _begin(self, name: str) -> tuple[str, ...]:
        """Note in the store that a shard has the engine, once more in this run; return where, to be removed after it.

        Raises:
            EncoderError: every actor died that gave it the engine, and those were many.
        """
        place = (*self.work[:-1], f"{self.work[-1]}-{name}.tries")
        tries = int(self.store.read(*place)) if self.store.exists(*place) else 0
        if tries >= DEATHS:
            raise EncoderError(
                f"an encoder's worker died {tries} times on the same shard: too little memory, or a text that kills "
                "the engine; its log says which. Finished shards are kept: run again"
            )
        self.store.write(str(tries + 1).encode(), *place)
        return place

    def _record(self, name: str, keys: pa.Array, vectors: npt.NDArray[np.float16], refused: dict[int, str]) -> Record:
        """Write a shard, and then its record."""
        there = np.ones(len(vectors), bool)
        there[list(refused)] = False
        draft = Draft(self.store, KIND, self.line, SHARDS)
        table = {"key": key_column(keys, there), "vector": vector_column(vectors)}
        draft.write_table(f"{name}.parquet", pa.table(table))
        probe = self.probe_cosine
        meter, reported = self.encoder.meter, self.reported
        self.reported = (meter.tokens, meter.seconds)
        record = {
            "file": draft.files[f"{name}.parquet"],
            "width": vectors.shape[1],
            "refused": refused,
            "tokens": self.reported[0] - reported[0],
            "seconds": self.reported[1] - reported[1],
            "probe_cosine": probe,
            **quality(vectors[there]),
        }
        self.store.write(json.dumps(record).encode(), KIND, self.line, SHARDS, record_name(name))
        return record


def encode_each(
    encoder: Encoder, texts: Sequence[str], tokens: Tokens | None = None, *, most_refused: int
) -> tuple[npt.NDArray[np.float16], dict[int, str]]:
    """Return the texts' vectors, zero where the encoder refuses a text, and the refusals, by position, with reasons.

    What an engine does not say is found by halving.

    Shapes: -> [n, T], fp16.

    Raises:
        EncoderError: more than ``most_refused`` texts are refused.
    """
    vectors, refused = np.zeros((len(texts), encoder.width), np.float16), dict[int, str]()
    waiting: list[npt.NDArray[np.int64]] = [np.arange(len(texts))]
    while waiting:
        rows = waiting.pop()
        try:
            chosen = rows.tolist()
            made = encoder.encode([texts[row] for row in chosen], tokens and [tokens[row] for row in chosen])
            with np.errstate(over="ignore"):
                vectors[rows] = made
            large = ~np.isfinite(vectors[rows]).all(axis=1)
            vectors[rows[large]] = 0
            for row in rows[large].tolist():
                refused[row] = f"the vector of {texts[row][:60]!r} does not fit fp16; pass --encoder.normalize"
        except EncoderDied:
            raise
        except RefusedTexts as error:
            refused |= {int(rows[position]): why for position, why in error.reasons.items()}
            waiting.append(np.delete(rows, list(error.reasons)))
        except (RuntimeError, ValueError) as error:  # an engine's own words
            if len(rows) > 1:
                waiting += np.array_split(rows, 2)
            else:
                refused[int(rows[0])] = f"{texts[rows[0]][:60]!r}: {type(error).__name__}: {str(error)[:200]}"
        if len(refused) > most_refused:
            raise EncoderError(
                f"{len(refused)} or more texts cannot be embedded, more than embed.max_quarantined allows: "
                + "; ".join(list(refused.values())[:3])
            )
    return vectors, refused


# ---------------------------------------------------------------- gate


def cosines(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the cosine of each pair of rows; -1 where one of them is zero."""
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.where(norms > 0, (left * right).sum(axis=1) / np.where(norms > 0, norms, 1), -1).astype(np.float32)


def quality(vectors: npt.NDArray[np.float16]) -> Record:
    """Return what the gate looks at: least and largest norm, and vectors with a NaN or equal to another text's."""
    norms = np.linalg.norm(vectors.astype(np.float32), axis=1)
    finite = norms[np.isfinite(norms)]
    return {
        "norms": [float(finite.min()), float(finite.max())] if len(finite) else None,
        "not_finite": len(norms) - len(finite),
        "identical": len(vectors) - len({row.tobytes() for row in vectors}),
    }


def _check_shards(records: Mapping[int, Record], plan: Plan, settings: Settings) -> Record:
    """Hold the new shards against the gate's limits; return the speed they were made with."""
    if not records:
        return {}
    limits, faults = settings.embed, []
    made = list(records.values())
    rows = sum(record["file"]["rows"] for record in made)
    if rows != plan.counts.to_embed:
        faults.append(f"{rows} vectors for {plan.counts.to_embed} texts")
    if broken := sum(record["not_finite"] for record in made):
        faults.append(f"{broken} vectors are not finite")
    norms = np.array([record["norms"] for record in made if record["norms"]])
    if len(norms) and norms.min() == 0:
        faults.append("some vectors are zero")
    if settings.encoder.normalize and len(norms) and np.abs(norms - 1).max() > 0.01:
        faults.append(f"norms from {norms.min():.3f} to {norms.max():.3f}, not 1")
    identical = sum(record["identical"] for record in made) / max(rows, 1)
    if identical > limits.max_identical:
        faults.append(f"{identical:.0%} of the texts have another's vector (limit {limits.max_identical:.0%})")
    probes = [record["probe_cosine"] for record in made if record["probe_cosine"] is not None]
    if probes and min(probes) < limits.probe_cosine:
        faults.append(
            f"the probe's vectors differ from those of the version before: cosine {min(probes):.4f} "
            f"(limit {limits.probe_cosine}); the engine or its hardware computes something else now"
        )
    if faults:
        where = plan.catalog.store.uri(KIND, line_of(settings.name, fingerprint(settings.encoder)), SHARDS)
        raise EmbedError(
            f"the vectors did not pass the gate, nothing was published: {'; '.join(faults)}. Their records are in "
            f"{where}: remove those to compute them again, or change the limits embed.max_identical, embed.probe_cosine"
        )
    seconds = sum(record["seconds"] for record in made)
    tokens = sum(record["tokens"] for record in made)
    return dict(zip(SPENT, (round(rows / seconds, 1), round(tokens / seconds, 1)), strict=True)) if seconds else {}


def _check_places(draft: Draft, plan: Plan) -> None:
    written = draft.files[ITEMS]["rows"]
    if written != plan.counts.items:
        raise EmbedError(f"{draft.store.uri(KIND, draft.name, draft.version)}: {written} of {plan.counts.items} items")


def _keep_probe(draft: Draft, plan: Plan, used: set[int]) -> None:
    """Refer to the line's probe, or make it of the first items: later engines must reproduce its vectors."""
    if plan.base and PROBE in plan.base.files:
        draft.adopt(PROBE, plan.base.files[PROBE])
        return
    texts, places = plan.first_texts(PROBE_TEXTS, used)
    new = Draft(draft.store, KIND, draft.name, SHARDS)
    vectors = read_rows(draft.preview(), places)
    there = np.flatnonzero(vectors.any(axis=1))
    new.write_table(PROBE, pa.table({"text": [texts[row] for row in there], "vector": vector_column(vectors[there])}))
    draft.adopt(PROBE, new.files[PROBE] | {"folder": SHARDS})
