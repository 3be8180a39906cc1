"""Versions of title vectors: what the next one needs computed, what is read back, what verify finds, what gc removes.

No Ray: ``make_version`` does what a run does, with the hash encoder in this process.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from alpharec import vectors
from alpharec.artifacts import LATEST, MANIFEST, Artifact, ArtifactError, Draft, Lease, Store
from alpharec.config import EmbedSettings, EncoderSettings
from alpharec.encoders import make_encoder
from alpharec.vectors import (
    ITEMS,
    KIND,
    LEASE,
    QUARANTINE,
    SHARDS,
    UNREADABLE,
    Counts,
    Plan,
    collect_garbage,
    export,
    iter_vectors,
    key_column,
    load_vectors,
    make_plan,
    read_rows,
    record_name,
    shard_digest,
    shard_file,
    shards_of,
    text_keys,
    usable,
    verify,
)

LINE = "shop-0"
ENCODER = make_encoder(EncoderSettings(backend="hash", hash_width=16), EmbedSettings())
NEW_IDS = itertools.count()

Titles = Sequence[str | bytes | None]


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Return an empty store."""
    if request.param == "folder":
        return Store(str(tmp_path / "store"))
    return Store(f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}")


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def objects(store: Store) -> set[str]:
    """List the objects of a store, without its root and the lock files that a folder needs."""
    store.fs.invalidate_cache()
    found = {os.path.relpath(path, store.path) for path in store.fs.find(store.path)}
    return {path for path in found if not path.endswith(".lock")}


def string_array(titles: Titles) -> pa.Array:
    """Return titles as Parquet hands them over: strings of any bytes."""
    raw = pa.array([title.encode() if isinstance(title, str) else title for title in titles], pa.binary())
    return pa.StringArray.from_buffers(len(raw), *raw.buffers()[1:], raw.buffers()[0])


def write_catalog(store: Store, titles: Titles | Mapping[str, str | None]) -> Artifact:
    """Commit the part of a dataset that embedding reads; items without a given id are i0, i1, ..."""
    items = titles if isinstance(titles, Mapping) else {f"i{row}": title for row, title in enumerate(titles)}
    ids = pa.array(items.keys(), pa.string())
    draft = store.draft("datasets", "shop", f"d{next(NEW_IDS)}")
    draft.write_table(ITEMS, pa.table({"item_id": ids, "title": string_array(list(items.values()))}))
    return draft.commit(settings={}, inputs={}, summary={})


def plan_for(catalog: Artifact, base: Artifact | None = None) -> Plan:
    with tempfile.TemporaryDirectory() as folder:  # the place stays mapped when its file has no name any more
        return make_plan(catalog, base, Path(folder))


def texts_to_embed(plan: Plan, size: int = 3) -> list[list[str]]:
    return [texts.to_pylist() for _, _, texts in plan.shards(size)]


def vectors_of(titles: Titles, refuses: Set[str] = frozenset()) -> npt.NDArray[np.float16]:
    """Return the encoder's own vectors, zero for what cannot be embedded."""
    made = np.zeros((len(titles), ENCODER.width), np.float16)
    rows = [row for row, title in enumerate(titles) if title and title.strip() and title not in refuses]
    made[rows] = ENCODER.encode([titles[row] for row in rows])
    return made


def write_shard(
    store: Store, name: str, texts: list[str], refuses: Set[str], unreadable: Set[str] | None = None
) -> dict[str, object]:
    made = vectors_of(texts, refuses)
    there = np.array([text not in refuses for text in texts])
    column = pa.FixedSizeListArray.from_arrays(pa.array(made.reshape(-1)), ENCODER.width)
    draft = Draft(store, KIND, LINE, SHARDS)
    table = pa.table({"key": key_column(text_keys(pa.array(texts)), there), "vector": column})
    if unreadable is not None:
        table = table.append_column(UNREADABLE, pa.array([text in unreadable for text in texts]))
    draft.write_table(f"{name}.parquet", table)
    facts = draft.files[f"{name}.parquet"]
    store.write(json.dumps({"file": facts}).encode(), KIND, LINE, SHARDS, record_name(name))
    return facts | {"folder": SHARDS}


def make_version(
    store: Store,
    titles: Titles | Mapping[str, str | None],
    base: Artifact | None = None,
    *,
    version: str = "",
    size: int = 3,
    refuses: Set[str] = frozenset(),
    unreadable: Set[str] | None = None,
    published: bool = True,
) -> Artifact:
    """Make the version of a catalog after ``base``; the encoder refuses some texts and cannot read others.

    ``unreadable``: None writes shards as releases did that did not ask.
    """
    plan = plan_for(write_catalog(store, titles), base)
    draft = store.draft(KIND, LINE, version or f"v{next(NEW_IDS)}")
    known = base.files if base else {}
    made, refused = {}, {}
    for number, name, texts in plan.shards(size):
        made[shard_file(number)] = write_shard(store, name, texts.to_pylist(), refuses, unreadable)
        refused |= {(number << 32) | row: "refused" for row, text in enumerate(texts.to_pylist()) if text in refuses}
    used, quarantined = plan.write_items(draft, refused)
    for file in map(shard_file, used):
        draft.adopt(file, made[file] if file in made else known[file])
    summary = {"items": plan.counts.items, "width": ENCODER.width, "quarantined": quarantined, "published": published}
    return draft.commit(settings={}, inputs={}, summary=summary)


# ---------------------------------------------------------------- plan


def test_a_plan_has_each_text_once_that_shards_before_mark_as_unreadable(store: Store) -> None:
    first = make_version(store, ["a", "b", "c", "d", "e"])
    marked = make_version(store, ["a", "b", "f", "g", "h", "i"], first, unreadable={"b", "f", "i", "refused"})
    titles = ["new", "i", "a", "f", None, "i", "b", "d"]
    plan = plan_for(write_catalog(store, titles), marked)
    assert plan.unreadable.tolist() == [1, 3], "b is of a shard without marks"
    assert plan.titles(plan.unreadable) == ["i", "f"]
    assert plan_for(write_catalog(store, titles), first).unreadable.tolist() == []
    assert plan_for(write_catalog(store, titles)).unreadable.tolist() == []


def naive_counts(old: Mapping[str, str | None], known: Set[str], titles: Mapping[str, str | None]) -> Counts:
    """Compare catalogs that fit the memory: ``old`` titles with a vector by id, ``known`` texts of its shards."""
    here = {item: title for item, title in titles.items() if title and title.strip()}
    texts = set(here.values())
    unchanged = sum(old.get(item) == title for item, title in here.items())
    added = here.keys() - old.keys()
    moved = sum(here[item] in known for item in added)
    return Counts(
        items=len(titles),
        unchanged=unchanged,
        new=len(added) - moved,
        changed=len(here) - unchanged - len(added),
        moved=moved,
        deleted=len(old.keys() - titles.keys()),
        quarantined=len(titles) - len(here),
        texts=len(texts),
        duplicates=len(here) - len(texts),
        to_embed=len(texts - known),
    )


TITLE = st.sampled_from([None, "", "  ", *"abcdefgh"])
CATALOG = st.dictionaries(st.sampled_from("ABCDEFGHIJKLMNOP"), TITLE, min_size=1, max_size=14)


@settings(max_examples=60, deadline=None)
@given(
    history=st.lists(CATALOG, min_size=1, max_size=4),
    first_refuses=st.sets(st.sampled_from("abcdefgh"), max_size=2),
    size=st.integers(1, 5),
    rows=st.sampled_from([(4, 3), (1, 1), (5, 100), (100, 2)]),
)
def test_plans_and_vectors_are_those_of_a_naive_reference(
    history: list[dict[str, str | None]], first_refuses: set[str], size: int, rows: tuple[int, int]
) -> None:
    """The reference knows nothing of batches and buckets; texts refused once are tried again by the next version."""
    old: dict[str, str | None] = {}
    shards: list[set[str]] = []
    base = None
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "BATCH_ROWS", rows[0])
        patch.setattr(vectors, "BUCKET_ROWS", rows[1])
        store, refuses = Store(root), first_refuses
        for titles in history:
            known = set().union(*shards)
            plan = plan_for(write_catalog(store, titles), base)
            assert plan.counts == naive_counts(old, known, titles)
            texts = list(dict.fromkeys(text for text in titles.values() if text and text.strip()))
            new = [text for text in texts if text not in known]
            assert texts_to_embed(plan, size) == [new[start : start + size] for start in range(0, len(new), size)]

            base = make_version(store, titles, base, size=size, refuses=refuses)
            assert np.array_equal(load_vectors(base), vectors_of(list(titles.values()), refuses))
            there = {item: text if text in set(texts) - refuses else None for item, text in titles.items()}
            quarantine = base.read_table(QUARANTINE)["item_id"].to_pylist()
            assert quarantine == [item for item, text in there.items() if text is None]
            shards += [set(new[start : start + size]) - refuses for start in range(0, len(new), size)]
            old, shards = there, [shard for shard in shards if shard & set(there.values())]
            assert len(shards_of(base)) == len(shards)
            refuses = set()


def test_a_text_of_no_item_is_not_embedded_again_while_its_shard_is_referred_to(local: Store) -> None:
    first = make_version(local, {"A": "Dune", "B": "Emma", "C": "Momo", "D": "Heidi"}, size=2)
    second = make_version(local, {"A": "Dune"}, first)
    assert shards_of(second) == {0: "vectors-00000.parquet"}
    back = plan_for(write_catalog(local, {"A": "Dune", "E": "Emma", "F": "Heidi"}), second)
    assert (back.counts.unchanged, back.counts.moved, back.counts.new) == (1, 1, 1)
    assert texts_to_embed(back) == [["Heidi"]], "Emma is in the shard of Dune, Heidi's shard is not referred to"
    assert back.first_shard == 1


def test_an_item_in_quarantine_before_and_after_is_not_deleted(local: Store) -> None:
    base = make_version(local, {"A": "Dune", "B": None})
    counts = plan_for(write_catalog(local, {"A": "Dune", "B": None}), base).counts
    assert (counts.unchanged, counts.quarantined, counts.deleted) == (1, 1, 0)
    assert counts.changed_share(items_before=2) == 0


def test_titles_that_are_no_text_go_to_quarantine_with_their_bytes_and_the_reason(store: Store) -> None:
    titles = ["Dune", b"\xff\xfeEmma", None, "", " \t\u00a0", "Café", b"Em\xed\xa0\x80", "Dune"]
    made = make_version(store, titles)
    assert made.summary["quarantined"] == 5
    assert made.read_table(QUARANTINE).to_pylist() == [
        {"item_id": "i1", "title": b"\xff\xfeEmma", "reason": "not UTF-8"},
        {"item_id": "i2", "title": None, "reason": "no title"},
        {"item_id": "i3", "title": b"", "reason": "empty title"},
        {"item_id": "i4", "title": " \t\u00a0".encode(), "reason": "empty title"},
        {"item_id": "i6", "title": b"Em\xed\xa0\x80", "reason": "not UTF-8"},
    ]
    places = made.read_table(ITEMS)
    assert places["item_id"].to_pylist() == [f"i{row}" for row in range(8)]
    assert list(zip(places["shard"].to_pylist(), places["row"].to_pylist(), strict=True)) == [
        *((0, 0), (-1, 0), (-1, 0), (-1, 0), (-1, 0), (0, 1), (-1, 0), (0, 0))
    ]
    assert np.array_equal(load_vectors(made), vectors_of(["Dune", None, None, "", "", "Café", None, "Dune"]))


def test_usable_leaves_good_titles_as_they_are() -> None:
    titles = pa.array(["Dune", "Café", " 千 "])
    same, why = usable(titles)
    assert same.equals(titles)
    assert why == {}


def test_refused_texts_have_no_key_and_are_planned_again(local: Store) -> None:
    titles = ["Dune", "Emma", "Momo", "Emma"]
    first = make_version(local, titles, refuses={"Emma"})
    assert [key is None for key in first.read_table(shard_file(0))["key"].to_pylist()] == [False, True, False]
    reasons = first.read_table(QUARANTINE).to_pylist()
    assert reasons == [{"item_id": f"i{row}", "title": b"Emma", "reason": "refused"} for row in (1, 3)]
    assert texts_to_embed(plan_for(write_catalog(local, titles), first)) == [["Emma"]]
    second = make_version(local, titles, first)
    assert np.array_equal(load_vectors(second), vectors_of(titles))
    assert second.files[shard_file(0)] == first.files[shard_file(0)]


def test_a_sample_is_spread_evenly_over_the_texts_to_embed(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "BATCH_ROWS", 4)
    base = make_version(local, {"A": "b"})
    plan = plan_for(write_catalog(local, ["a", "b", "a", "c", "d", None, "e", "f", "g", "h"]), base)
    assert plan.counts.to_embed == 7
    assert plan.sample(2) == ["a", "e", "h"]
    assert plan.sample(100) == ["a", "c", "d", "e", "f", "g", "h"]


def test_a_key_is_the_first_half_of_the_sha256_of_the_text() -> None:
    texts = pa.array(["Emma", "Dune"])
    assert text_keys(texts)[1].tobytes().hex() == "baa25eb4ed6ca6eda34b8af32f78de3a"
    assert text_keys(texts.slice(1)).tobytes().hex() == "baa25eb4ed6ca6eda34b8af32f78de3a"
    keys = key_column(text_keys(texts), np.array([False, True]))
    assert keys.to_pylist() == [None, bytes.fromhex("baa25eb4ed6ca6eda34b8af32f78de3a")]
    keys = text_keys(texts)
    assert shard_digest(keys) == hashlib.sha256(keys.tobytes()).hexdigest()[:24]
    assert shard_digest(keys[::-1]) != shard_digest(keys)


# ---------------------------------------------------------------- read


def test_each_item_with_a_vector_is_read_once_and_rows_in_any_order(store: Store) -> None:
    titles = ["Dune", "Emma", None, "Momo", "Heidi", "Dune"]
    made = make_version(store, [*titles, "Ulysses"], make_version(store, titles[:3]))
    assert sorted(shards_of(made)) == [0, 1]
    read = list(iter_vectors(made))
    assert [rows.tolist() for rows, _ in read] == [[0, 1, 5], [3, 4, 6]]
    assert np.array_equal(
        np.concatenate([part for _, part in read]),
        vectors_of([*titles[:2], *titles[3:], "Ulysses"])[[0, 1, 4, 2, 3, 5]],
    )
    places = np.array([(1 << 32) | 1, 1, (1 << 32) | 0, 1])
    assert np.array_equal(read_rows(made, places), vectors_of(["Heidi", "Emma", "Momo", "Emma"]))


def flip_a_byte(store: Store, path: str) -> None:
    data = store.fs.cat_file(path)
    store.fs.pipe_file(path, data[:99] + bytes([data[99] ^ 1]) + data[100:])


def test_vectors_of_a_damaged_shard_are_not_read(store: Store) -> None:
    made = make_version(store, ["Dune", "Emma"])
    flip_a_byte(store, made.location(shard_file(0)))
    with pytest.raises(ArtifactError, match="damaged: its sha256 is not the committed one"):
        load_vectors(made)


def read_npy(path: Path) -> npt.NDArray[np.float16]:
    return np.load(path)


def read_safetensors(path: Path) -> npt.NDArray[np.float16]:
    return safetensors.numpy.load_file(path)["vectors"]


def read_faiss(path: Path) -> npt.NDArray[np.float16]:
    faiss = pytest.importorskip("faiss")
    index = faiss.read_index(str(path))
    return index.reconstruct_n(0, index.ntotal).astype(np.float16)


@pytest.mark.parametrize(
    ("ending", "read"), [(".npy", read_npy), (".safetensors", read_safetensors), (".faiss", read_faiss)]
)
def test_an_export_holds_the_vectors_and_the_ids_beside_them(
    ending: str, read: Callable[[Path], npt.NDArray[np.float16]], local: Store, tmp_path: Path
) -> None:
    if ending == ".faiss":
        pytest.importorskip("faiss")
    titles = {"A": "Dune", "B": None, "C": "Emma", "D": "Dune", "E": "Momo"}
    made, path = make_version(local, titles, size=2), tmp_path / "out" / f"vectors{ending}"
    export(made, path)
    found = read(path)
    assert found.dtype == np.float16
    assert np.array_equal(found, vectors_of(list(titles.values())))
    assert pq.read_table(f"{path}.items.parquet").to_pydict() == {"item_id": list("ABCDE")}
    assert sorted(os.listdir(path.parent)) == [path.name, f"{path.name}.items.parquet"]


def test_an_export_to_another_ending_or_without_faiss_says_what_to_use(
    local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_version(local, ["Dune"])
    with pytest.raises(ArtifactError, match=r"\(got '\.csv'\); use \.npy, \.safetensors or \.faiss"):
        export(made, tmp_path / "vectors.csv")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ArtifactError, match=r"faiss is not installed .*pip install 'alpharec\[faiss\]', or use \.npy"):
        export(made, tmp_path / "vectors.faiss")
    assert list(tmp_path.glob("vectors*")) == []


# ---------------------------------------------------------------- verify


def test_verify_names_each_damaged_and_each_missing_file(store: Store) -> None:
    made = make_version(store, ["Dune", "Emma", "Momo", "Heidi", None])
    assert verify(made) == []
    damaged, missing = made.location(shard_file(0)), made.location(shard_file(1))
    flip_a_byte(store, damaged)
    store.fs.rm_file(missing)
    problems = dict(problem.split(": ", 1) for problem in verify(made))
    assert problems.keys() == {damaged, missing}
    assert problems[damaged].startswith("damaged: its sha256")
    assert problems[missing].startswith("no such object")


def test_verify_finds_items_that_are_outside_their_shards(store: Store) -> None:
    good = make_version(store, ["Dune", "Emma", None])
    draft = store.draft(KIND, LINE, "wrong")
    places = {"item_id": [*"ABCDE"], "shard": [0, 0, -1, 0, 7], "row": [0, 1, 0, 2, 0]}
    draft.write_table(ITEMS, pa.table(places))
    draft.adopt(shard_file(0), good.files[shard_file(0)])
    wrong = draft.commit(settings={}, inputs={}, summary={})
    assert verify(wrong) == [
        f"{wrong.uri}: item {item} (row {row}) is in no shard of this version" for item, row in (("D", 3), ("E", 4))
    ]


# ---------------------------------------------------------------- garbage


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Date each version a second after the one before."""
    seconds = itertools.count()
    monkeypatch.setattr("alpharec.artifacts.now", lambda: f"2026-01-01T00:00:{next(seconds):02}Z")


def fill_line(store: Store) -> dict[str, Artifact]:
    """Make a line: v2 is LATEST, v3 the newest published; v1 and v4 alone refer to a shard, a killed run left some."""
    made = {"v1": make_version(store, ["a", "b", "c", "d", "e", "f"], version="v1")}
    made["v2"] = make_version(store, ["a", "b", "g", "h"], made["v1"], version="v2")
    made["v3"] = make_version(store, ["b", "h", "i", None], made["v2"], version="v3")
    made["v4"] = make_version(store, ["b", "j"], made["v3"], version="v4", published=False)
    store.move_latest(KIND, LINE, "v2")
    write_shard(store, "killed", ["x", "y"], frozenset())
    store.write(b"", KIND, LINE, SHARDS, "0123-no-record.parquet")
    store.write(b"", KIND, LINE, "v5", "0123-work.parquet")
    return made


def state_of(folder: Path) -> dict[str, bytes]:
    """Return the content of each file, of the lock files not."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def folder_of(store: Store, *parts: str) -> set[str]:
    return {path for path in objects(store) if path.startswith("/".join([KIND, LINE, *parts]))}


def files_of(store: Store, artifact: Artifact) -> set[str]:
    """Return the objects that a version needs, records of its shards included."""
    paths = {os.path.relpath(artifact.location(file), store.path) for file in artifact.files}
    shards = {os.path.relpath(artifact.location(file), store.path) for file in shards_of(artifact).values()}
    names = {path.removesuffix(".parquet").rsplit("-", 1)[-1] for path in shards}
    records = {f"{KIND}/{LINE}/{SHARDS}/{record_name(name)}" for name in names}
    return paths | records | {f"{KIND}/{LINE}/{artifact.version}/{MANIFEST}"}


@pytest.mark.usefixtures("clock")
def test_garbage_is_what_neither_latest_nor_the_newest_published_versions_refer_to(store: Store) -> None:
    made = fill_line(store)
    before, line = objects(store), folder_of(store)
    kept = files_of(store, made["v2"]) | files_of(store, made["v3"]) | {f"{KIND}/{LINE}/{LATEST}"}
    assert collect_garbage(store, LINE, keep=1, grace_s=3600) == [], "all of it is young"
    would_go = collect_garbage(store, LINE, keep=1, grace_s=0, dry_run=True)
    assert objects(store) == before, "a dry run removes nothing"

    gone = collect_garbage(store, LINE, keep=1, grace_s=0)
    assert gone == would_go
    assert set(gone) == {store.uri(*path.split("/")) for path in line - kept}
    assert objects(store) == before - (line - kept)
    assert {uri.rsplit("/", 2)[1] for uri in gone[:2]} == {"v1", "v4"}, "manifests go first"
    assert gone[0].endswith(MANIFEST)
    assert gone[1].endswith(MANIFEST)
    for version in ("v2", "v3"):
        assert verify(made[version]) == []
    assert np.array_equal(load_vectors(made["v3"]), vectors_of(["b", "h", "i", None]))
    assert store.find(KIND, LINE, "v1") is None
    assert collect_garbage(store, LINE, keep=1, grace_s=0) == []


@pytest.mark.usefixtures("clock")
def test_keep_counts_published_versions_from_the_newest(local: Store) -> None:
    made = fill_line(local)
    collect_garbage(local, LINE, keep=3, grace_s=0)
    assert [version for version in made if local.find(KIND, LINE, version)] == ["v1", "v2", "v3"]
    assert [verify(made[version]) for version in ("v1", "v2", "v3")] == [[], [], []]


@pytest.mark.usefixtures("clock")
def test_a_young_version_stays_whole_with_its_old_shards_and_young_leftovers_stay(local: Store) -> None:
    made = fill_line(local)
    young = {f"{KIND}/{LINE}/v4/{MANIFEST}", f"{KIND}/{LINE}/v5/0123-work.parquet"}
    for path in folder_of(local) - young:
        os.utime(local.at(*path.split("/")), (time.time() - 7200,) * 2)
    kept = {f"{KIND}/{LINE}/{LATEST}"} | young
    for version in ("v2", "v3", "v4"):
        kept |= files_of(local, made[version])
    collect_garbage(local, LINE, keep=1, grace_s=3600)
    assert folder_of(local) == kept
    assert verify(made["v4"]) == []


def test_nothing_goes_while_latest_cannot_be_read(store: Store) -> None:
    """The published version was once taken for garbage where LATEST named one that was not found."""
    fill_line(store)
    store.remove(KIND, LINE, "v2", MANIFEST)
    before = objects(store)
    with pytest.raises(ArtifactError, match=r"no published version \(got LATEST = v2\)"):
        collect_garbage(store, LINE, keep=1, grace_s=0)
    assert objects(store) == before


def test_nothing_goes_where_the_line_leads_out_of_the_store(local: Store, tmp_path: Path) -> None:
    fill_line(local)
    line, outside = Path(local.at(KIND, LINE)), tmp_path / "outside"
    shutil.copytree(line, outside)
    (line / "v0").symlink_to(outside / "v1")  # no version: listings tell of no link

    def change_facts(version: str, file: str, change: dict[str, str]) -> None:
        manifest = json.loads((line / version / MANIFEST).read_text())
        manifest["files"][file] |= change
        (line / version / MANIFEST).write_text(json.dumps(manifest))

    def replace_by_link(place: Path) -> None:
        shutil.rmtree(place)
        place.symlink_to(outside / place.name)

    said = "a symbolic link out of the storage root"
    for tamper, message in (
        (lambda: (line / LATEST).write_text("../../v2"), r"LATEST: does not name a version \(got '../../v2'\)"),
        (lambda: change_facts("v2", ITEMS, {"path": "../../../outside/x"}), "v2/manifest.json: names a file outside"),
        (lambda: change_facts("v2", shard_file(0), {"folder": ".."}), "v2/manifest.json: names a file outside"),
        (lambda: replace_by_link(line / SHARDS), f"{SHARDS}: {said}"),
        (lambda: replace_by_link(line / "v2"), f"v2: {said}"),
        (lambda: replace_by_link(line), f"{LINE}: {said}"),
    ):
        tamper()
        before = state_of(tmp_path)
        with pytest.raises(ArtifactError, match=message):
            collect_garbage(local, LINE, keep=1, grace_s=0)
        assert state_of(tmp_path) == before
        if line.is_symlink():
            line.unlink()
        else:
            shutil.rmtree(line)
        shutil.copytree(outside, line)
    assert collect_garbage(local, LINE, keep=1, grace_s=0)


def test_a_version_that_names_a_file_elsewhere_is_not_as_it_was_committed(store: Store) -> None:
    made = make_version(store, ["a", "b"])
    files = made.files | {shard_file(0): made.files[shard_file(0)] | {"folder": ".."}}
    changed = dataclasses.replace(made, manifest=made.manifest | {"files": files})
    (problem,) = verify(changed)
    assert "names a file outside its folder" in problem
    with pytest.raises(ArtifactError, match="names a file outside its folder"):
        load_vectors(changed)


@pytest.mark.usefixtures("clock")
def test_what_a_process_left_that_was_killed_while_it_moved_latest_goes(local: Store) -> None:
    fill_line(local)
    local.write(b"v2", KIND, LINE, "LATEST.0123.tmp")
    gone = collect_garbage(local, LINE, keep=1, grace_s=0)
    assert local.uri(KIND, LINE, "LATEST.0123.tmp") in gone
    assert not local.exists(KIND, LINE, "LATEST.0123.tmp")
    assert local.latest(KIND, LINE).version == "v2"


def test_garbage_stays_while_a_run_holds_the_lease_and_where_there_is_no_line(store: Store) -> None:
    fill_line(store)
    before = objects(store)
    with store.lease(KIND, LINE, LEASE, seconds=60), pytest.raises(ArtifactError, match="another run works on this"):
        collect_garbage(store, LINE, keep=1, grace_s=0)
    assert objects(store) == before
    with pytest.raises(ArtifactError, match=r"nowhere: holds no version; jobs/embed\.py writes one"):
        collect_garbage(store, "nowhere", keep=1, grace_s=0)


# ---------------------------------------------------------------- lease


def lease_of(*, host: str, pid: int, expires_in: float) -> bytes:
    holder = {"owner": "other", "host": host, "pid": pid, "taken": "then", "expires": time.time() + expires_in}
    return json.dumps(holder).encode()


def wait_until(condition: Callable[[], bool]) -> bool:
    """Look again and again; a minute is a hang."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def is_lost(lease: Lease) -> bool:
    try:
        lease.check()
    except ArtifactError:
        return True
    return False


def test_a_second_run_is_told_who_holds_the_lease(store: Store) -> None:
    with store.lease("line", LEASE, seconds=60) as held:
        who = re.escape(f"(host {platform.node()}, process {os.getpid()}); wait for it")
        with pytest.raises(ArtifactError, match=who), Store(store.root).lease("line", LEASE, seconds=60):
            pass
        held.check()
    assert not store.exists("line", LEASE), "a released lease is gone"
    with store.lease("line", LEASE, seconds=60):
        pass


def test_a_lease_is_given_back_when_its_run_fails(store: Store) -> None:
    with pytest.raises(KeyError), store.lease("line", LEASE, seconds=60):
        raise KeyError
    assert not store.exists("line", LEASE)


def test_the_lease_of_a_dead_process_of_this_machine_is_taken_over_at_once(store: Store) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    store.write(lease_of(host=platform.node(), pid=dead.pid, expires_in=1000), "line", LEASE)
    with store.lease("line", LEASE, seconds=60) as held:
        assert json.loads(store.read("line", LEASE)) == held.owner | {"expires": json.loads(held._content)["expires"]}


def test_a_lease_of_another_machine_is_taken_over_when_it_has_run_out(store: Store) -> None:
    store.write(lease_of(host="elsewhere", pid=1, expires_in=5000), "line", LEASE)
    with pytest.raises(ArtifactError, match=r"since then \(host elsewhere, process 1\).* [45]\d\d\d s for its lease"):
        store.lease("line", LEASE, seconds=60).__enter__()
    store.write(lease_of(host="elsewhere", pid=1, expires_in=-1), "line", LEASE)
    with store.lease("line", LEASE, seconds=60) as held:
        held.check()
        assert json.loads(store.read("line", LEASE))["pid"] == os.getpid()


def test_a_lease_is_renewed_while_it_is_held(store: Store, hurried: list[float]) -> None:
    def expires() -> float:
        return float(json.loads(store.read("line", LEASE))["expires"])

    with store.lease("line", LEASE, seconds=60) as held:
        for _ in range(2):
            before = expires()
            assert wait_until(lambda before=before: expires() > before)
        held.check()
    assert not store.exists("line", LEASE)
    assert set(hurried) == {20}, "a renewal may fail, and the next one is in time"


@pytest.mark.usefixtures("hurried")
def test_a_lease_that_another_run_took_over_is_noticed_and_left_to_it(store: Store) -> None:
    def take_over() -> bool:
        try:
            store.swap(store.read("line", LEASE), lease_of(host="elsewhere", pid=1, expires_in=100), "line", LEASE)
        except ArtifactError:  # renewed in between
            return False
        return True

    with store.lease("line", LEASE, seconds=60) as held:
        assert wait_until(take_over)
        assert wait_until(lambda: is_lost(held))
    assert json.loads(store.read("line", LEASE))["owner"] == "other"


@pytest.mark.usefixtures("hurried")
def test_a_lease_that_another_run_took_over_and_gave_back_is_noticed(store: Store) -> None:
    def give_back() -> bool:
        store.remove("line", LEASE)  # again, where a renewal that had found its lease has put it back
        return is_lost(held)

    with store.lease("line", LEASE, seconds=60) as held:
        assert wait_until(give_back)


def test_a_lease_that_cannot_be_renewed_in_time_is_lost(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run may have taken it by now, whether this one could see it or not."""

    def fail(*arguments: object) -> None:
        raise OSError("the store is away")

    with store.lease("line", LEASE, seconds=0.3) as held:
        monkeypatch.setattr(store, "swap", fail)
        assert wait_until(lambda: is_lost(held))


@pytest.mark.usefixtures("hurried")
def test_a_renewal_that_fails_once_on_s3_is_tried_again(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, failed = Store(f"{s3}/{uuid.uuid4().hex}"), []
    with store.lease("line", LEASE, seconds=60) as held:
        put, first = store.fs.pipe_file, store.read("line", LEASE)

        def fail_once(*arguments: object, **options: object) -> object:
            if failed:
                return put(*arguments, **options)
            failed.append(arguments)
            raise OSError("connection reset")

        monkeypatch.setattr(store.fs, "pipe_file", fail_once)
        assert wait_until(lambda: bool(failed) and (is_lost(held) or store.read("line", LEASE) != first))
        held.check()


# ---------------------------------------------------------------- swap, LATEST, large tables


def test_swap_replaces_only_what_it_expects(store: Store) -> None:
    store.write(b"one", "thing")
    store.swap(b"one", b"two", "thing")
    with pytest.raises(ArtifactError, match=r"moved by another run meanwhile \(got two, expected one\)"):
        store.swap(b"one", b"three", "thing")
    assert store.read("thing") == b"two"


def test_latest_moves_only_after_the_version_that_a_run_started_from(store: Store) -> None:
    for version in ("v1", "v2", "v3"):
        store.draft(KIND, LINE, version).commit(settings={}, inputs={}, summary={})
    store.move_latest(KIND, LINE, "v1", after=None)
    with pytest.raises(ArtifactError, match=r"\(got v1, expected None\); run again"):
        store.move_latest(KIND, LINE, "v2", after=None)
    store.move_latest(KIND, LINE, "v2", after="v1")
    with pytest.raises(ArtifactError, match=r"\(got v2, expected v1\); run again"):
        store.move_latest(KIND, LINE, "v3", after="v1")
    assert store.latest(KIND, LINE).version == "v2"
    store.move_latest(KIND, LINE, "v2", after="v1")  # by the run itself, before its answer was lost


def test_of_sixteen_publishers_one_wins_each_round_and_no_reader_sees_half_a_version(store: Store) -> None:
    """All sixteen start from the version before and commit another; a reader reads whatever LATEST names, all along."""
    rounds, publishers = 4, 16
    first = make_version(store, ["0"], version="v-0")
    store.move_latest(KIND, LINE, first.version)
    seen, over = [], threading.Event()

    def read_on() -> None:
        while not over.is_set():
            found = store.latest(KIND, LINE)
            titles = found.version.split("-")[1:]
            assert np.array_equal(load_vectors(found), vectors_of(titles)), found.version
            seen.append(found.version)

    def publish(base: Artifact, number: int) -> str | None:
        mine = Store(store.root)
        made = make_version(mine, [*base.version.split("-")[1:], str(number)], base, version=f"{base.version}-{number}")
        together.wait(300)
        try:
            mine.move_latest(KIND, LINE, made.version, after=base.version)
        except ArtifactError as error:
            if "moved by another run meanwhile" not in str(error):
                raise
            return None
        return made.version

    with ThreadPoolExecutor(publishers + 1) as pool:
        reader = pool.submit(read_on)
        try:
            for _ in range(rounds):
                base, together = store.latest(KIND, LINE), threading.Barrier(publishers)
                ends = list(pool.map(publish, [base] * publishers, range(1, publishers + 1)))
                winners = [version for version in ends if version]
                assert winners == [store.latest(KIND, LINE).version]
                assert wait_until(lambda won=winners[0]: reader.done() or won in seen), "the reader is there all along"
        finally:
            over.set()
        reader.result()


def test_a_streamed_table_is_read_in_parts_and_checked(store: Store) -> None:
    schema = pa.schema({"item_id": pa.string(), "row": pa.int32()})
    parts = [pa.table([[f"i{row}" for row in rows], list(rows)], schema=schema) for rows in (range(5), [], range(5, 7))]
    draft = store.draft("things", "shop", "v1")
    with draft.stream_table("t.parquet", schema) as write:
        for part in parts:
            write(part)
    made = draft.commit(settings={}, inputs={}, summary={})
    facts, data = made.files["t.parquet"], store.fs.cat_file(made.location("t.parquet"))
    assert (facts["rows"], facts["bytes"], facts["sha256"]) == (7, len(data), hashlib.sha256(data).hexdigest())
    assert facts["schema"] == {"item_id": "string", "row": "int32"}
    assert made.read_table("t.parquet").equals(pa.concat_tables(parts))
    with made.open_table("t.parquet") as file:
        assert file.read_row_group(0).equals(parts[0])
        assert [len(batch) for batch in file.iter_batches(4, columns=["row"])] == [4, 3]
    made.check("t.parquet")


def test_an_opened_table_that_is_gone_cut_short_or_another_is_named(store: Store) -> None:
    draft = store.draft("things", "shop", "v1")
    with draft.stream_table("t.parquet", pa.schema({"row": pa.int32()})) as write:
        write(pa.table({"row": pa.array(range(7), pa.int32())}))
    made = draft.commit(settings={}, inputs={}, summary={})
    path = made.location("t.parquet")
    data = store.fs.cat_file(path)
    other = Draft(store, "things", "shop", "v1")
    other.write_table("t.parquet", pa.table({"row": [1]}))
    longer = store.fs.cat_file(store.at("things", "shop", "v1", other.files["t.parquet"]["path"]))
    for content, why in ((data[:-9], "not the Parquet file committed"), (longer, "got 1 rows, committed 7")):
        store.fs.pipe_file(path, content)
        with pytest.raises(ArtifactError, match=f"damaged.*{why}"), made.open_table("t.parquet"):
            pass
        with pytest.raises(ArtifactError, match="damaged: its sha256"):
            made.check("t.parquet")
    store.fs.rm_file(path)
    for look in (lambda: made.check("t.parquet"), lambda: made.open_table("t.parquet").__enter__()):
        with pytest.raises(ArtifactError, match="no such object"):
            look()
