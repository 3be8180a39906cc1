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
import math
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    Reading,
    RefusedTexts,
    Tokens,
    fingerprint,
    make_encoder,
    read_texts,
)
from alpharec.runtime import map_on_actors, use_own_cpus
from alpharec.vectors import (
    ITEMS,
    KIND,
    LEASE,
    LEASE_S,
    PROBE,
    SHARDS,
    UNREADABLE,
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
EXAMPLES = 3  # texts that a record or a message names
EXAMPLE_CHARACTERS = 60
MULTILINGUAL = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"  # the other settings suit as they are
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
        EncoderError: the model cannot be loaded, its worker died again and again, or it refuses, or cannot read, too
            many texts.
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
        sample, seen = read_sample(plan, settings), Unreadable.before(plan, publish=publish)
        logger.info("%s", format_plan(plan, settings, sample))
        _guard(plan, settings, publish=publish)
        seen.add(sample.reading).check(settings)
        made = _build(store, settings, target, plan, seen, lease)
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
        plan = make_plan(catalog, _base(store, target.line), Path(folder))
        return format_plan(plan, settings, read_sample(plan, settings))


def _base(store: Store, line: str) -> Artifact | None:
    return store.latest(KIND, line) if store.exists(KIND, line, LATEST) else None


@dataclass(frozen=True)
class Sample:
    """How the encoder reads some of the texts to embed."""

    tokens: float  # a text
    reading: Record


def read_sample(plan: Plan, settings: Settings) -> Sample:
    """Tokenise some of the texts to embed, all of them where they are few."""
    if not plan.counts.to_embed:
        return Sample(0.0, merge_readings([]))
    texts = plan.sample(SAMPLE)
    reading = read_texts(settings.encoder, texts)
    return Sample(float(reading.lengths.mean()), reading_record(texts, reading))


def format_plan(plan: Plan, settings: Settings, sample: Sample) -> str:
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
        lines.append(f"embed: about {sample.tokens * counts.to_embed:,.0f} tokens, {_cost(plan, settings)}")
    found = sample.reading["unreadable"] / max(sample.reading["texts"], 1) * counts.to_embed + len(plan.unreadable)
    if found:
        share, limit = found / counts.texts, settings.embed.max_unreadable
        named = _named(sample.reading["examples"]["unreadable"])
        within = "more than" if share > limit else "within"
        lines.append(
            f"embed: the encoder cannot read about {share:.1%} of the texts{named} ({within} embed.max_unreadable = "
            f"{limit:.2%})"
        )
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


def _build(
    store: Store, settings: Settings, target: Target, plan: Plan, seen: Unreadable, lease: Lease | None
) -> Artifact:
    draft = store.draft(KIND, target.line, target.version)
    base, started = plan.base, time.monotonic()
    records = dict(_run_shards(draft, settings, plan, seen))
    reading = merge_readings(record.get("reading") for record in records.values())
    for line in format_reading(reading):
        logger.info("%s", line)
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
            "unreadable": seen.add(reading).found,
            "reading": {key: value for key, value in reading.items() if key != "examples"},
            "plan": dataclasses.asdict(plan.counts),
            "published": lease is not None,
            "seconds": round(time.monotonic() - started, 3),
            **({key: base.summary.get(key) for key in SPENT} if base else {}),
            **spent,
            "fingerprint": target.fingerprint,
        },
    )


SPENT = ("texts_per_second_and_worker", "tokens_per_second_and_worker")


def _run_shards(draft: Draft, settings: Settings, plan: Plan, seen: Unreadable) -> Iterator[tuple[int, Record]]:
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
                seen = seen.add(record.get("reading"))
                yield number, record
            else:
                write(pa.table({"text": texts}))
                missing.append({"number": number, "group": len(missing), "digest": name})
    if done:
        logger.info("embed: %s of %s texts were embedded by an earlier run", f"{done:,}", f"{total:,}")
    seen.check(settings)
    if missing:
        yield from _compute(work, settings, plan, missing, done, seen)
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
    work: Draft, settings: Settings, plan: Plan, missing: list[dict[str, Any]], done: int, seen: Unreadable
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
        seen,
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
            seen = seen.add(record["reading"])
            seen.check(settings)
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
        seen: Unreadable,
    ) -> None:
        self.store, self.line, self.work, self.base = store, line, (KIND, line, version, work), base
        self.settings, self.most_refused, self.seen = settings, most_refused, seen
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
        reading = encoder.reading(texts, tokens)
        read = reading_record(texts, reading)
        self.seen.add(read).check(self.settings)  # before the engine has a text of a shard that says enough alone
        with self.turn:
            tries = self._begin(name)
            vectors, refused = encode_each(encoder, texts, tokens, most_refused=self.most_refused)
            record = self._record(name, keys, vectors, refused, reading.unreadable, read)
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

    def _record(
        self,
        name: str,
        keys: npt.NDArray[np.uint64],
        vectors: npt.NDArray[np.float16],
        refused: dict[int, str],
        unreadable: npt.NDArray[np.bool_],
        read: Record,
    ) -> Record:
        """Write a shard, and then its record."""
        there = np.ones(len(vectors), bool)
        there[list(refused)] = False
        draft = Draft(self.store, KIND, self.line, SHARDS)
        table = {"key": key_column(keys, there), "vector": vector_column(vectors), UNREADABLE: unreadable}
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
            "reading": read,
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


# ---------------------------------------------------------------- what the encoder reads


@dataclass(frozen=True)
class Unreadable:
    """The texts of a version that the encoder cannot read, as far as a run has looked."""

    texts: int  # distinct ones of the version
    publish: bool
    kept: int = 0  # of the version before
    read: int = 0  # by this run
    same: int = 0  # of those, with the tokens of another
    found: int = 0
    examples: tuple[str, ...] = ()

    @classmethod
    def before(cls, plan: Plan, *, publish: bool) -> Unreadable:
        """Return what the version before says of the texts that are taken from it."""
        counts, rows = plan.counts, plan.unreadable
        examples = tuple(map(_example, plan.titles(rows[:EXAMPLES]))) if len(rows) else ()
        kept = counts.texts - counts.to_embed
        return cls(counts.texts, publish, kept=kept, found=len(rows), examples=examples)

    def add(self, reading: Record | None) -> Unreadable:
        """Return the same with a shard's texts; a record written before there were readings counts for nothing."""
        if reading is None:
            return self
        return dataclasses.replace(
            self,
            read=self.read + reading["texts"],
            same=self.same + reading["same_tokens"],
            found=self.found + reading["unreadable"],
            examples=(*reading["examples"]["unreadable"], *self.examples)[:EXAMPLES],
        )

    def check(self, settings: Settings) -> None:
        """Stop where the texts found are too many already.

        Raises:
            EncoderError: with what to do.
        """
        if not self.found or self.found / self.texts <= settings.embed.max_unreadable:
            return
        limits, share, whole = settings.embed, self.found / self.texts, self.kept + self.read == self.texts
        enough = math.ceil(100 * share) / 100 if whole else 1
        same = math.ceil(100 * self.same / max(self.read, 1)) / 100 if whole else 1
        lifted = f"--embed.max-unreadable {enough}"
        if same > limits.max_identical:  # the gate would stop the run next
            lifted += f" --embed.max-identical {same}"
        again = "" if self.publish else " and make the items' vectors, model and bundle with it"
        raise EncoderError(
            f"the encoder {settings.encoder.model} cannot read {'' if whole else 'at least '}{self.found:,} of "
            f"{self.texts:,} distinct texts ({share:.1%}; limit embed.max_unreadable = {limits.max_unreadable:.2%})"
            f"{_named(self.examples)}: it does not know their script and has one token, the unknown one, for most of "
            "their words, so that their vectors would say nothing; nothing was published. Choose a multilingual model, "
            f"e.g. --encoder.model {MULTILINGUAL} --encoder.revision COMMIT{again}; or embed them as they are: {lifted}"
        )


def reading_record(texts: Sequence[str], reading: Reading) -> Record:
    """Return what a record says of how its texts were read: counts, and a few of the texts."""
    twins = np.flatnonzero(reading.twin != np.arange(len(texts)))

    def first(rows: npt.NDArray[np.int64]) -> list[str]:
        return [_example(texts[row]) for row in rows[:EXAMPLES].tolist()]

    return {
        "texts": len(texts),
        "unknown": int(reading.unknown.sum()),
        "unreadable": int(reading.unreadable.sum()),
        "same_tokens": len(twins),  # as another text of the shard
        "same_when_cut": int(reading.full[twins].sum()),  # those of them as long as any text may be
        "examples": {
            "unknown": first(np.flatnonzero(reading.unknown & ~reading.unreadable)),
            "unreadable": first(np.flatnonzero(reading.unreadable)),
            "same_tokens": [*zip(first(reading.twin[twins]), first(twins), strict=True)],
        },
    }


def merge_readings(readings: Iterable[Record | None]) -> Record:
    """Sum the readings of shards; a shard whose record has none counts for nothing."""
    there = [reading for reading in readings if reading]
    counts = ("texts", "unknown", "unreadable", "same_tokens", "same_when_cut")
    examples = {
        kind: [example for reading in there for example in reading["examples"][kind]][:EXAMPLES]
        for kind in ("unknown", "unreadable", "same_tokens")
    }
    return {key: sum(reading[key] for reading in there) for key in counts} | {"examples": examples}


def format_reading(reading: Record) -> list[str]:
    """Return lines about texts of which the encoder's tokens keep too little; none where they keep all."""
    total, examples, lines = f"{reading['texts']:,} texts", reading["examples"], []
    if reading["unknown"]:
        lines.append(
            f"embed: {reading['unknown']:,} of {total} have a token that stands for what the encoder does not know"
            f"{_named(examples['unknown'])}"
        )
    if reading["unreadable"]:
        lines.append(
            f"embed: {reading['unreadable']:,} of {total} cannot be read by the encoder{_named(examples['unreadable'])}"
        )
    if reading["same_tokens"]:
        cut = reading["same_when_cut"]
        pairs = "; ".join(f"{first!r} and {second!r}" for first, second in examples["same_tokens"])
        lines.append(
            f"embed: {reading['same_tokens']:,} of {total} have the tokens, and so the vector, of another"
            f"{f', {cut:,} of them when cut at encoder.max_length' if cut else ''}, e.g. {pairs}"
        )
    return lines


def _example(text: str) -> str:
    return text[:EXAMPLE_CHARACTERS]


def _named(examples: Sequence[str]) -> str:
    return f", e.g. {', '.join(map(repr, examples))}" if examples else ""


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
