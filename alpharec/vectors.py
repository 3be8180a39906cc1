"""Title vectors in versions: what a version holds, what the next one needs computed, how one is read and kept up.

Versions made with one encoder fingerprint form a line; lines are never mixed. A version refers to shards, which are
immutable and shared by the versions of the line, so a text is computed once and its vector is never written again::

    vectors/<name>-<fingerprint>/<version>/manifest.json        all files of the version, those in shards/ too
    vectors/<name>-<fingerprint>/<version>/…-items.parquet      item_id, shard, row: where each item's vector is
    vectors/<name>-<fingerprint>/<version>/…-quarantine.parquet item_id, title, reason: items without a vector
    vectors/<name>-<fingerprint>/shards/…-<digest>.parquet      key (of the text), vector, unreadable: a shard
    vectors/<name>-<fingerprint>/shards/<digest>.json           record of a complete shard, named by its texts
    vectors/<name>-<fingerprint>/shards/…-probe.parquet         text, vector: what a later engine must reproduce

A key is the first half of the sha256 of a text: among 1e8 texts two share one with a chance of 1e-23.

Shapes: I items, T text width, n texts.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import safetensors.numpy

from alpharec.artifacts import LATEST, MANIFEST, Artifact, ArtifactError, Draft, Store, digest

Int64s = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]

KIND = "vectors"
SHARDS = "shards"
ITEMS = "items.parquet"
QUARANTINE = "quarantine.parquet"
PROBE = "probe.parquet"
UNREADABLE = "unreadable"
LEASE = "LEASE"
LEASE_S = 60.0  # a run that dies on another machine blocks the line for this long
KEY_BYTES = 16
BATCH_ROWS = 1 << 17  # rows read at a time: about 10 MB of titles
BUCKET_ROWS = 1 << 21  # rows joined at a time: about 200 MB
READERS = 8  # shards whose keys are read at a time
NOWHERE = np.iinfo(np.int64).min  # the place of an item whose title cannot be embedded
TEXT = np.dtype([("high", np.uint64), ("low", np.uint64), ("at", np.int64)])
ITEM = np.dtype([("id", np.uint64), ("at", np.int64)])


def line_of(name: str, fingerprint: Mapping[str, Any]) -> str:
    """Return the name of the line of versions that this encoder writes."""
    return f"{name}-{digest(fingerprint)[:12]}"


def shard_file(shard: int) -> str:
    """Return a shard's name in the manifests of its line."""
    return f"vectors-{shard:05d}.parquet"


def shards_of(artifact: Artifact) -> dict[int, str]:
    """Return the files of the shards that a version refers to, by number."""
    files = [file for file in artifact.files if file.startswith("vectors-")]
    return {int(file.removeprefix("vectors-").removesuffix(".parquet")): file for file in files}


def record_name(shard_digest: str) -> str:
    """Return the name of the record of a complete shard."""
    return f"{shard_digest}.json"


def text_keys(texts: pa.Array) -> Keys:
    """Return the keys of texts. Shapes: -> [n, 2]."""
    hashes = [hashlib.sha256(text).digest()[:KEY_BYTES] for text in texts.cast(pa.binary()).to_pylist()]
    return np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 2)


def key_column(keys: Keys, there: npt.NDArray[np.bool_]) -> pa.Array:
    """Return the key column of a shard, null where a text got no vector."""
    values = pa.py_buffer(np.ascontiguousarray(keys).tobytes())
    bitmap = pa.py_buffer(np.packbits(there, bitorder="little").tobytes())
    return pa.Array.from_buffers(pa.binary(KEY_BYTES), len(keys), [bitmap, values])


# ---------------------------------------------------------------- plan


@dataclass(frozen=True)
class Counts:
    """How a catalog differs from the version before; every item with a usable title is in one of the first four."""

    items: int
    unchanged: int  # same id, same text
    new: int  # an id and a text that were not there
    changed: int  # same id, other text
    moved: int  # an id that was not there with a text that was
    deleted: int  # ids that are gone
    quarantined: int  # items whose title cannot be embedded
    texts: int  # distinct texts
    duplicates: int  # items whose text another item has too, less one each
    to_embed: int  # distinct texts without a vector

    def changed_share(self, items_before: int) -> float:
        """Return the share of items, of the larger of both catalogs, that are not as they were."""
        return (self.new + self.changed + self.moved + self.deleted) / max(self.items, items_before, 1)


@dataclass
class Plan:
    """What a catalog needs computed, given the version before it.

    ``place`` holds, for each item, where its vector is (shard in the upper, row in the lower 32 bits), ``NOWHERE``, or
    ``-1 - r`` where the item's text is first seen in row r and has no vector yet. It lies on disk, so that the memory
    is the same whatever the size of the catalog.
    """

    catalog: Artifact
    base: Artifact | None
    counts: Counts
    place: Int64s
    first_shard: int
    unreadable: Int64s  # rows of texts that the version before has as unreadable, each text once

    def shards(self, size: int) -> Iterator[tuple[int, str, pa.Array]]:
        """Yield number, digest and texts of the shards to compute, in catalog order, and note where they will be."""
        waiting: list[pa.Array] = []
        done = given = 0
        for start, batch in _batches(self.catalog, ["title"]):
            rows = np.arange(start, start + len(batch))
            first = self.place[rows] == -1 - rows
            texts = batch["title"].filter(pa.array(first))
            positions = done + np.arange(len(texts))
            self.place[rows[first]] = ((self.first_shard + positions // size) << 32) | (positions % size)
            done += len(texts)
            waiting.append(texts)
            ready = done // size if done < self.counts.to_embed else -(-done // size)
            if ready > given:
                whole = pa.concat_arrays(waiting)
                for shard in range(given, ready):
                    texts = whole[(shard - given) * size : (shard - given + 1) * size]
                    yield self.first_shard + shard, shard_digest(text_keys(texts)), texts
                waiting, given = [whole[(ready - given) * size :]], ready

    def sample(self, count: int) -> list[str]:
        """Return some of the texts to embed, evenly spread."""
        every, seen = max(1, self.counts.to_embed // count), 0
        texts: list[str] = []
        for start, batch in _batches(self.catalog, ["title"]):
            rows = np.arange(start, start + len(batch))
            first = np.flatnonzero(self.place[rows] == -1 - rows)
            chosen = first[(seen + np.arange(len(first))) % every == 0]
            texts += batch["title"].take(pa.array(chosen)).to_pylist()
            seen += len(first)
        return texts

    def titles(self, rows: Int64s) -> list[str]:
        """Return the titles of some rows, in the order of the catalog."""
        texts: list[str] = []
        for start, batch in _batches(self.catalog, ["title"]):
            if len(texts) == len(rows):
                break
            chosen = rows[(rows >= start) & (rows < start + len(batch))] - start
            texts += batch["title"].take(pa.array(chosen)).to_pylist()
        return texts

    def first_texts(self, count: int, used: set[int]) -> tuple[list[str], Int64s]:
        """Return texts of the first items in the ``used`` shards, and where; valid after ``write_items``."""
        for start, batch in _batches(self.catalog, ["title"]):
            place = self.place[start : start + len(batch)]
            rows = np.flatnonzero(np.isin(place >> 32, list(used)))[:count]
            if len(rows):
                return batch["title"].take(pa.array(rows)).to_pylist(), np.array(place[rows])
        return [], np.empty(0, np.int64)

    def write_items(self, draft: Draft, refused: Mapping[int, str]) -> tuple[set[int], int]:
        """Write the items' places and the quarantine; return the shards referred to and the number quarantined."""
        places = pa.schema({"item_id": pa.string(), "shard": pa.int32(), "row": pa.int32()})
        reasons = pa.schema({"item_id": pa.string(), "title": pa.binary(), "reason": pa.string()})
        without, used, quarantined = np.array(sorted(refused), np.int64), {-1}, 0
        with draft.stream_table(ITEMS, places) as write, draft.stream_table(QUARANTINE, reasons) as set_aside:
            for start, batch in _batches(self.catalog, ["item_id", "title"], clean=False):
                place = self.place[start : start + len(batch)].copy()
                later = (place < 0) & (place != NOWHERE)
                place[later] = self.place[-1 - place[later]]
                self.place[start : start + len(batch)] = place
                bad = np.flatnonzero((place == NOWHERE) | np.isin(place, without))
                if len(bad):
                    _, why = usable(batch["title"])
                    given = [refused.get(int(place[row]), why.get(int(row), "")) for row in bad]
                    rows = batch.select([0, 1]).take(pa.array(bad))
                    set_aside(pa.table([rows["item_id"], rows["title"].cast(pa.binary()), given], schema=reasons))
                    place[bad] = -1
                    quarantined += len(bad)
                shard, row = (place >> 32).astype(np.int32), (place & 0xFFFFFFFF).astype(np.int32)
                used |= set(np.unique(shard).tolist())
                write(pa.table([batch["item_id"], shard, np.where(place < 0, 0, row)], schema=places))
        return used - {-1}, quarantined


def shard_digest(keys: Keys) -> str:
    """Return the name of a shard's record."""
    return hashlib.sha256(np.ascontiguousarray(keys).tobytes()).hexdigest()[:24]


def make_plan(catalog: Artifact, base: Artifact | None, folder: Path) -> Plan:
    """Compare a catalog with the version before it, in two passes of bounded memory.

    ``folder`` takes about 60 bytes an item of either catalog until the plan is used up.
    """
    rows, known = catalog.files[ITEMS]["rows"], base.files[ITEMS]["rows"] if base else 0
    shards = shards_of(base) if base else {}
    place = np.memmap(folder / "place", np.int64, "w+", shape=(max(rows, 1),))[:rows]
    vectors = sum(base.files[file]["rows"] for file in shards.values()) if base else 0
    spills = [
        _Spill(folder / name, dtype, -(-total // BUCKET_ROWS))
        for name, dtype, total in (
            ("texts-now", TEXT, rows + vectors),
            ("texts-before", TEXT, rows + vectors),
            ("items-now", ITEM, rows + known),
            ("items-before", ITEM, rows + known),
        )
    ]
    texts_now, texts_before, items_now, items_before = spills
    for start, batch in _batches(catalog, ["item_id", "title"] if base else ["title"]):
        there = batch["title"].is_valid().to_numpy(zero_copy_only=False)
        row = np.arange(start, start + len(batch))
        place[row[~there]] = NOWHERE
        texts_now.add(_records(TEXT, row[there], *text_keys(batch["title"].filter(pa.array(there))).T))
        if base:
            items_now.add(_records(ITEM, row, _id_hashes(batch["item_id"])))
    unreadable = [np.empty(0, np.int64)]
    if base:
        for shard, keys, row, marked in _base_keys(base, shards):
            texts_before.add(_records(TEXT, (shard << 32) | row, *keys.T))
            unreadable.append((shard << 32) | marked)
        for _, batch in _batches(base, ["item_id", "shard", "row"]):
            at = (batch["shard"].to_numpy().astype(np.int64) << 32) | batch["row"].to_numpy()
            items_before.add(_records(ITEM, at, _id_hashes(batch["item_id"])))
    texts, to_embed = _find_texts(texts_now, texts_before, place)
    usable_items = texts_now.rows
    unchanged, new, changed, moved, deleted = _classify(items_now, items_before, place) if base else (0,) * 5
    counts = Counts(
        items=rows,
        unchanged=unchanged,
        new=new if base else usable_items,
        changed=changed,
        moved=moved,
        deleted=deleted,
        quarantined=rows - usable_items,
        texts=texts,
        duplicates=usable_items - texts,
        to_embed=to_embed,
    )
    first_shard = max(shards, default=-1) + 1
    return Plan(catalog, base, counts, place, first_shard, _rows_at(place, np.concatenate(unreadable)))


def usable(titles: pa.Array) -> tuple[pa.Array, dict[int, str]]:
    """Return the titles with null for those that cannot be embedded, and why, by row."""
    why = {}
    try:
        titles.validate(full=True)
    except pa.ArrowInvalid:
        values = titles.cast(pa.binary()).to_pylist()
        why = {row: "not UTF-8" for row, value in enumerate(values) if value is not None and not _is_utf8(value)}
        titles = pa.array([None if row in why else value for row, value in enumerate(values)], pa.binary())
        titles = titles.cast(pa.string())
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(titles)), 0)
    without = pc.fill_null(blank, True)
    if pc.any(without).as_py():
        for row in np.flatnonzero(without.to_numpy(zero_copy_only=False)).tolist():
            why.setdefault(row, "no title" if not titles[row].is_valid else "empty title")
        titles = pc.if_else(without, pa.scalar(None, titles.type), titles)
    return titles, why


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _batches(artifact: Artifact, columns: list[str], *, clean: bool = True) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the first row and the columns of each part of the items; unusable titles as null unless not ``clean``."""
    start = 0
    with artifact.open_table(ITEMS) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=columns):
            if clean and "title" in columns:
                titles, _ = usable(batch["title"])
                batch = batch.set_column(batch.schema.get_field_index("title"), "title", titles)
            yield start, batch
            start += len(batch)


def _rows_at(place: Int64s, wanted: Int64s) -> Int64s:
    """Return a row of each wanted place that some item has; the memory goes by those."""
    if not len(wanted):
        return wanted
    rows = [
        start + np.flatnonzero(np.isin(place[start : start + BATCH_ROWS], wanted))
        for start in range(0, len(place), BATCH_ROWS)
    ]
    found = np.concatenate(rows)
    return np.sort(found[np.unique(place[found], return_index=True)[1]])


def _base_keys(base: Artifact, shards: Mapping[int, str]) -> Iterator[tuple[int, Keys, Int64s, Int64s]]:
    """Yield number, keys and rows of each shard's texts, and the rows of unreadable ones.

    Texts that got no vector are left out. A shard that says of no text whether it is unreadable counts as having none.
    """

    def read(shard: int) -> tuple[int, Keys, Int64s, Int64s]:
        with base.open_table(shards[shard]) as file:
            told = UNREADABLE in file.schema_arrow.names
            table = file.read(columns=["key", UNREADABLE] if told else ["key"])
        column = table["key"].combine_chunks()
        marked = table[UNREADABLE].to_numpy() if told else np.zeros(len(column), bool)
        row = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
        raw = np.frombuffer(column.buffers()[1], "<u8").reshape(-1, 2)[column.offset : column.offset + len(column)]
        return shard, raw[row], row.astype(np.int64), row[marked[row]].astype(np.int64)

    numbers = sorted(shards)
    with ThreadPoolExecutor(READERS) as pool:
        for first in range(0, len(numbers), 8 * READERS):
            yield from pool.map(read, numbers[first : first + 8 * READERS])


def _id_hashes(ids: pa.Array) -> Keys:
    # 64 bits, the same within a process: they decide counts only, and one of 1e8 ids is off with a chance of 3e-4.
    return cast(Keys, cast(pl.Series, pl.from_arrow(ids)).hash().to_numpy())


def _records(dtype: np.dtype[Any], at: Int64s, *columns: npt.NDArray[Any]) -> npt.NDArray[Any]:
    records = np.empty(len(at), dtype)
    assert dtype.names
    for name, column in zip(dtype.names, (*columns, at), strict=True):
        records[name] = column
    return records


class _Spill:
    """Records on disk, divided by their first field into buckets that fit the memory."""

    def __init__(self, folder: Path, dtype: np.dtype[Any], num_buckets: int) -> None:
        folder.mkdir()
        self.dtype, self.rows = dtype, 0
        self.paths = [folder / str(bucket) for bucket in range(max(1, num_buckets))]

    def add(self, records: npt.NDArray[Any]) -> None:
        assert self.dtype.names
        self.rows += len(records)
        bucket = records[self.dtype.names[0]] % np.uint64(len(self.paths))
        records = records[np.argsort(bucket, kind="stable")]
        ends = np.cumsum(np.bincount(bucket.astype(np.int64), minlength=len(self.paths)))
        for path, part in zip(self.paths, np.split(records, ends[:-1]), strict=True):
            if len(part):
                with path.open("ab") as file:
                    file.write(part.tobytes())

    def read(self, bucket: int) -> pl.DataFrame:
        """Read a bucket once; its file is gone then."""
        path = self.paths[bucket]
        records = np.fromfile(path, self.dtype) if path.exists() else np.empty(0, self.dtype)
        path.unlink(missing_ok=True)
        return pl.DataFrame({name: records[name] for name in self.dtype.names or ()})


def _find_texts(now: _Spill, before: _Spill, place: Int64s) -> tuple[int, int]:
    """Fill in where each item's text is; return the numbers of distinct texts and of those without a vector."""
    texts = to_embed = 0
    for bucket in range(len(now.paths)):
        old = before.read(bucket).unique(["high", "low"], keep="any").rename({"at": "place"})
        found = now.read(bucket).join(old, on=["high", "low"], how="left")
        there = found.filter(pl.col("place").is_not_null())
        place[there["at"].to_numpy()] = there["place"].to_numpy()
        missing = found.filter(pl.col("place").is_null()).with_columns(first=pl.col("at").min().over(["high", "low"]))
        place[missing["at"].to_numpy()] = -1 - missing["first"].to_numpy()
        without = missing.filter(pl.col("first") == pl.col("at")).height
        texts += without + there.select(pl.struct("high", "low").n_unique()).item()
        to_embed += without
    return texts, to_embed


def _classify(now: _Spill, before: _Spill, place: Int64s) -> tuple[int, int, int, int, int]:
    """Return the numbers of unchanged, new, changed, moved and deleted items."""
    unchanged = new = changed = moved = deleted = 0
    for bucket in range(len(now.paths)):
        old, items = before.read(bucket).rename({"at": "was"}), now.read(bucket)
        items = items.with_columns(place=pl.Series(place[items["at"].to_numpy()]))
        both = items.filter(pl.col("place") != NOWHERE).join(old, on="id", how="left")
        was_there = pl.col("was").is_not_null()
        same = both.filter(was_there & (pl.col("was") == pl.col("place"))).height
        unchanged += same
        changed += both.filter(was_there).height - same
        added = both.filter(~was_there)
        moved += added.filter(pl.col("place") >= 0).height
        new += added.filter(pl.col("place") < 0).height
        deleted += old.join(items, on="id", how="anti").height
    return unchanged, new, changed, moved, deleted


# ---------------------------------------------------------------- read


def load_vectors(artifact: Artifact, items: slice = slice(None)) -> npt.NDArray[np.float16]:
    """Load the vectors of a version, one row an item, zero for an item in quarantine; of some items, or all.

    Shapes: -> [I, T], fp16.
    """
    num_items = len(range(artifact.summary["items"])[items])
    vectors = np.zeros((num_items, artifact.summary["width"]), np.float16)
    for rows, part in iter_vectors(artifact, items):
        vectors[rows] = part
    return vectors


def iter_vectors(artifact: Artifact, items: slice = slice(None)) -> Iterator[tuple[Int64s, npt.NDArray[np.float16]]]:
    """Yield, shard by shard, the rows of items (from the first one asked for) and their vectors.

    Each file is checked against its sha256. Shapes: (m,), [m, T].
    """
    places = artifact.read_table(ITEMS, columns=["shard", "row"])
    shard, row = places["shard"].to_numpy()[items], places["row"].to_numpy()[items]
    order = np.argsort(shard, kind="stable")
    for number, file in shards_of(artifact).items():
        first, last = np.searchsorted(shard, [number, number + 1], sorter=order)
        if first < last:
            vectors = matrix(artifact.read_table(file, columns=["vector"]), "vector")
            yield order[first:last], vectors[row[order[first:last]]]


def matrix(table: pa.Table, column: str) -> npt.NDArray[Any]:
    """Return a column of fixed-size lists as an array. Shapes: -> [n, width of the lists]."""
    width = table.schema.field(column).type.list_size
    return cast(npt.NDArray[Any], table[column].combine_chunks().flatten().to_numpy().reshape(len(table), width))


def vector_column(vectors: npt.NDArray[Any]) -> pa.Array:
    """Return vectors as a column of fixed-size lists; ``matrix`` reads it. Shapes: [n, T]."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def read_rows(artifact: Artifact, places: Int64s) -> npt.NDArray[np.float16]:
    """Read the vectors at some places (shard in the upper, row in the lower 32 bits). Shapes: (n,) -> [n, T], fp16."""
    numbers, out = places >> 32, None
    for number in np.unique(numbers).tolist():
        vectors = matrix(artifact.read_table(shard_file(number), columns=["vector"]), "vector")
        out = np.zeros((len(places), vectors.shape[1]), np.float16) if out is None else out
        out[numbers == number] = vectors[places[numbers == number] & 0xFFFFFFFF]
    return np.zeros((0, 0), np.float16) if out is None else out


def export(artifact: Artifact, path: Path) -> None:
    """Write the vectors of a version to one file, rows in item order, and the ids to ``<path>.items.parquet``.

    ``.npy`` and ``.safetensors`` (one tensor, ``vectors``) hold fp16 [I, T]; ``.faiss`` a flat inner-product index.

    Raises:
        ArtifactError: the file's ending is none of these, faiss is not installed, or a file of the version is damaged.
    """
    shape = (artifact.summary["items"], artifact.summary["width"])
    ids = artifact.read_table(ITEMS, columns=["item_id"])
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    if path.suffix == ".npy":
        out: npt.NDArray[np.float16] = np.lib.format.open_memmap(beside, mode="w+", dtype=np.float16, shape=shape)  # type: ignore[no-untyped-call]
        for rows, part in iter_vectors(artifact):
            out[rows] = part
        del out  # writes what is still in memory
    elif path.suffix == ".safetensors":
        safetensors.numpy.save_file({"vectors": load_vectors(artifact)}, beside, {"version": artifact.version})
    elif path.suffix == ".faiss":
        faiss = _import_faiss()
        index, vectors = faiss.IndexFlatIP(shape[1]), load_vectors(artifact)
        for start in range(0, shape[0], BATCH_ROWS):
            index.add(vectors[start : start + BATCH_ROWS].astype(np.float32))
        faiss.write_index(index, str(beside))
    else:
        raise ArtifactError(f"{path}: cannot export to this (got {path.suffix!r}); use .npy, .safetensors or .faiss")
    beside.replace(path)
    pq.write_table(ids, path.with_name(path.name + ".items.parquet"))


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ArtifactError(f"faiss is not installed ({error}); pip install 'alpharec[faiss]', or use .npy") from None
    return faiss


# ---------------------------------------------------------------- keep up


def verify(artifact: Artifact) -> list[str]:
    """Read a version whole and return what is wrong with it, an empty list if nothing is."""
    problems = []
    for file in artifact.files:
        try:
            artifact.check(file)
        except (ArtifactError, OSError) as error:
            problems.append(str(error))
    if problems:
        return problems
    rows = {number: artifact.files[file]["rows"] for number, file in shards_of(artifact).items()}
    for start, batch in _batches(artifact, ["item_id", "shard", "row"]):
        shard, row = batch["shard"].to_numpy(), batch["row"].to_numpy()
        ends = np.array([rows.get(number, 0) for number in shard.tolist()])
        for wrong in np.flatnonzero((shard >= 0) & (row >= ends))[:3].tolist():
            item = batch["item_id"][wrong].as_py()
            problems.append(f"{artifact.uri}: item {item} (row {start + wrong}) is in no shard of this version")
    return problems


def collect_garbage(store: Store, line: str, *, keep: int, grace_s: float, dry_run: bool = False) -> list[str]:
    """Remove what no kept version refers to and return it: kept are LATEST and the ``keep`` newest published versions.

    Nothing younger than ``grace_s`` seconds goes, so that a run at work loses no shard; nor while one holds the lease.

    Raises:
        ArtifactError: a run holds the lease of the line, or there is no such line.
    """
    with store.lease(KIND, line, LEASE, seconds=LEASE_S) as held:
        names = [name for name in store.folders(KIND, line) if name != SHARDS]
        versions = [found for name in names if (found := store.find(KIND, line, name)) is not None]
        if not versions:
            raise ArtifactError(f"{store.uri(KIND, line)}: holds no version; jobs/embed.py writes one")
        versions.sort(key=lambda found: found.manifest["created"], reverse=True)
        kept = [found for found in versions if found.summary["published"]][:keep]
        if store.exists(KIND, line, LATEST):  # one that cannot be read ends this: it must not count as not there
            kept.append(store.latest(KIND, line))
        now = time.time()
        for found in versions:
            if now - store.files(KIND, line, found.version)[MANIFEST] < grace_s:
                kept.append(found)
        used = {found.location(file) for found in kept for file in found.files}
        used |= {store.at(KIND, line, found.version, MANIFEST) for found in kept}
        # A shard in use keeps its record, for a run that meets the same texts again.
        shards = [found.location(file) for found in kept for file in shards_of(found).values()]
        digests = [path.removesuffix(".parquet").rsplit("-", 1)[-1] for path in shards]
        used |= {store.at(KIND, line, SHARDS, record_name(name)) for name in digests}
        going: list[tuple[str, ...]] = [
            (folder, name)
            for folder in (SHARDS, *names)
            for name, modified in store.files(KIND, line, folder).items()
            if store.at(KIND, line, folder, name) not in used and now - modified >= grace_s
        ]
        # Manifests first: a version is gone before any of its files is.
        going.sort(key=lambda place: place[1] != MANIFEST)
        halves = store.files(KIND, line).items()  # of LATEST or LEASE, written by a process that was killed
        going += [(name,) for name, modified in halves if name.endswith(".tmp") and now - modified >= grace_s]
        for place in going:
            held.check()
            if not dry_run:
                store.remove(KIND, line, *place)
        return [store.uri(KIND, line, *place) for place in going]
