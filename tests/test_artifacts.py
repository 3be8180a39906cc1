"""Artifacts on a folder and on S3: written whole, committed once, damage noticed, LATEST moved by compare-and-swap."""

from __future__ import annotations

import errno
import functools
import io
import itertools
import json
import os
import pickle
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alpharec.artifacts import LATEST, MANIFEST, Artifact, ArtifactError, Draft, Store, digest, run_record

VECTORS = np.array([[0.5, -1.0, 65504.0], [0.0, 2.0**-24, 3.0]], dtype=np.float16)  # fp16's largest and smallest


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Return an empty store."""
    if request.param == "folder":
        return Store(str(tmp_path / "store"))
    return Store(f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}")


def objects(store: Store) -> list[str]:
    """List the objects of a store, without its root; the library itself never lists."""
    store.fs.invalidate_cache()
    return sorted(os.path.relpath(path, store.path) for path in store.fs.find(store.path))


def commit(store: Store, version: str, content: object = 1) -> Artifact:
    draft = store.draft("things", "shop", version)
    draft.write_json("value.json", content)
    return draft.commit(settings={}, inputs={}, summary={})


def outcome(attempt: Callable[[], None]) -> str:
    """Return "won", or why the attempt lost."""
    try:
        attempt()
    except ArtifactError as error:
        return str(error)
    return "won"


# ---------------------------------------------------------------- write and read


def test_tables_tensors_and_json_read_back_as_written(store: Store) -> None:
    column = pa.FixedSizeListArray.from_arrays(pa.array(VECTORS.reshape(-1)), 3)
    table = pa.table({"item_id": ["A", "B"], "vector": column})
    weight = torch.arange(6.0).reshape(2, 3)
    tensors = {"transposed": weight.T, "half": weight.half()}
    draft = store.draft("things", "shop", "v1")
    draft.write_table("table.parquet", table)
    draft.write_tensors("weights.safetensors", tensors)
    draft.write_json("value.json", {"title": "Amélie 千"})
    draft.commit(settings={"seed": 101}, inputs={"source": "somewhere"}, summary={"items": 2})

    found = store.find("things", "shop", "v1")
    assert found is not None
    read = found.read_table("table.parquet")
    assert read.equals(table)
    back = read["vector"].combine_chunks().flatten().to_numpy().reshape(-1, 3)
    assert back.dtype == np.float16
    assert back.tobytes() == VECTORS.tobytes()
    assert found.read_table("table.parquet", columns=["item_id"]).column_names == ["item_id"]
    loaded = found.read_tensors("weights.safetensors")
    assert {name: tensor.dtype for name, tensor in loaded.items()} == {
        "transposed": torch.float32,
        "half": torch.float16,
    }
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert found.read_json("value.json") == {"title": "Amélie 千"}
    assert (found.settings, found.summary) == ({"seed": 101}, {"items": 2})
    assert found.manifest["inputs"] == {"source": "somewhere"}


def test_vectors_are_stored_plain_and_other_columns_compressed(store: Store) -> None:
    column = pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(VECTORS, 50, axis=0).reshape(-1)), 3)
    draft = store.draft("things", "shop", "v1")
    draft.write_table("t.parquet", pa.table({"item_id": ["A"] * 100, "vector": column}))
    made = draft.commit(settings={}, inputs={}, summary={})
    file = pq.ParquetFile(io.BytesIO(made.read_bytes("t.parquet"))).metadata
    ids, vectors = file.row_group(0).column(0), file.row_group(0).column(1)
    assert (ids.compression, vectors.compression) == ("ZSTD", "UNCOMPRESSED")
    assert "RLE_DICTIONARY" in ids.encodings
    assert "RLE_DICTIONARY" not in vectors.encodings


def test_the_manifest_says_what_the_version_holds(store: Store) -> None:
    first = commit(store, "v1")
    draft = store.draft("things", "shop", "v2")
    draft.write_table("t.parquet", pa.table({"user": pa.array([1, 2, 3], pa.int32())}))
    second = draft.commit(settings={}, inputs={"first": first}, summary={})
    facts = second.files["t.parquet"]
    assert facts["rows"] == 3
    assert facts["schema"] == {"user": "int32"}
    assert facts["bytes"] == len(second.read_bytes("t.parquet"))
    assert second.manifest["inputs"] == {"first": first.uri}
    assert second.manifest["software"]["torch"] == torch.__version__
    assert second.uri == store.uri("things", "shop", "v2")
    assert second.is_made_from("first", first)
    assert not second.is_made_from("first", second)


# ---------------------------------------------------------------- commit


def test_nobody_sees_a_draft_before_it_is_committed(store: Store) -> None:
    draft = store.draft("things", "shop", "v1")
    draft.write_json("value.json", 1)
    assert store.find("things", "shop", "v1") is None
    with pytest.raises(ArtifactError, match="not committed; LATEST stays"):
        store.move_latest("things", "shop", "v1")
    draft.commit(settings={}, inputs={}, summary={})
    assert store.find("things", "shop", "v1") is not None


def test_a_second_commit_of_a_version_changes_nothing(store: Store) -> None:
    first, second = store.draft("things", "shop", "v1"), store.draft("things", "shop", "v1")
    first.write_json("value.json", "first")
    second.write_json("value.json", "second")
    made = first.commit(settings={"by": "first"}, inputs={}, summary={})
    before = store.read("things", "shop", "v1", MANIFEST)
    late = second.commit(settings={"by": "second"}, inputs={}, summary={})
    assert late.manifest == made.manifest
    assert late.read_json("value.json") == "first"
    assert store.read("things", "shop", "v1", MANIFEST) == before


def test_of_sixteen_writers_exactly_one_creates_an_object(store: Store) -> None:
    clients = [Store(store.root) for _ in range(16)]

    def race(writer: int, round_: int, gate: threading.Barrier) -> str:
        gate.wait()
        return outcome(lambda: clients[writer].create(str(writer).encode(), "race", str(round_)))

    with ThreadPoolExecutor(16) as pool:
        for round_ in range(8):
            gate = threading.Barrier(16)
            results = list(pool.map(race, range(16), [round_] * 16, [gate] * 16))
            winners = [writer for writer, result in enumerate(results) if result == "won"]
            assert len(winners) == 1
            assert sum("exists already" in result for result in results) == 15
            assert store.read("race", str(round_)) == str(winners[0]).encode()
    assert objects(store) == [f"race/{round_}" for round_ in range(8)], "a loser left something behind"


def test_sixteen_concurrent_commits_all_return_the_one_that_won(store: Store) -> None:
    drafts = [store.draft("things", "shop", "v1") for _ in range(16)]
    for writer, draft in enumerate(drafts):
        draft.write_json("value.json", writer)
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda draft: draft.commit(settings={}, inputs={}, summary={}), drafts))
    assert len({artifact.read_json("value.json") for artifact in made}) == 1
    assert len({digest(artifact.manifest) for artifact in made}) == 1


def test_write_replaces_and_leaves_no_other_file(store: Store) -> None:
    store.write(b"old", "a", "b")
    store.write(b"new", "a", "b")
    assert store.read("a", "b") == b"new"
    assert objects(store) == ["a/b"]


# ---------------------------------------------------------------- missing and damaged


def _flip_a_byte(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def test_a_full_disk_is_named_with_the_next_step_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "store"))
    store.write(b"old", "file")
    before = objects(store)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def stream() -> None:
        with store.open("wb", "streamed"):
            full(0)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        for name, attempt in (
            ("file", lambda: store.write(b"new", "file")),
            ("another", lambda: store.create(b"new", "another")),
            ("file", lambda: store.swap(b"old", b"new", "file")),
            ("streamed", stream),
        ):
            with pytest.raises(OSError, match=rf"{store.uri(name)}: the storage is full .*make room, then run"):
                attempt()
    assert store.read("file") == b"old"
    assert set(objects(store)) - set(before) == {"file.lock", "streamed"}, "no half-written file but the streamed one"
    store.write(b"new", "file")
    assert store.read("file") == b"new"


@pytest.mark.parametrize(
    "damage", [_flip_a_byte, lambda data: data[:-1], lambda data: b""], ids=["byte flipped", "cut short", "emptied"]
)
def test_a_damaged_file_is_named(store: Store, damage: Callable[[bytes], bytes]) -> None:
    draft = store.draft("things", "shop", "v1")
    draft.write_table("table.parquet", pa.table({"user": [1]}))
    made = draft.commit(settings={}, inputs={}, summary={})
    path = made.location("table.parquet")
    store.fs.pipe_file(path, damage(store.fs.cat_file(path)))
    with pytest.raises(ArtifactError, match="damaged") as caught:
        made.read_table("table.parquet")
    assert path in str(caught.value)
    assert made.uri in str(caught.value)


def test_a_lost_file_is_named(store: Store) -> None:
    made = commit(store, "v1")
    store.fs.rm_file(made.location("value.json"))
    with pytest.raises(ArtifactError, match="no such object") as caught:
        made.read_json("value.json")
    assert made.location("value.json") in str(caught.value)


def test_a_file_the_manifest_does_not_name_does_not_exist(store: Store) -> None:
    made = commit(store, "v1")
    store.write(b"{}", "things", "shop", "v1", "stray.json")
    with pytest.raises(ArtifactError, match=r"holds no stray\.json \(got value\.json\)"):
        made.read_json("stray.json")


def test_missing_versions_and_objects(store: Store) -> None:
    assert store.find("things", "shop", "v1") is None
    with pytest.raises(ArtifactError, match=r"things/shop: no published version \(got LATEST = none\)"):
        store.latest("things", "shop")
    with pytest.raises(ArtifactError, match="nowhere: no such object"):
        store.read("nowhere")


def test_latest_of_a_version_that_is_gone(store: Store) -> None:
    store.write(b"v9", "things", "shop", LATEST)
    with pytest.raises(ArtifactError, match="LATEST = v9"):
        store.latest("things", "shop")


# ---------------------------------------------------------------- inside the root

NO_NAMES = [
    "..", ".", "", "/", "../x", "a/../../x", "a/b", "a//b", "/etc/passwd", "..\\x", "a\\b", "a\0b", "a\nb", "\ud800",
    "s3://other/x", "file:///etc/passwd", "memory://x", "x?versionId=1",
]  # fmt: skip
SECRET = b'"of another"'
OUT = "../../../../secret"


def plant(store: Store, content: bytes = SECRET) -> str:
    """Put an object beside the root, where ``OUT`` leads from a version's folder; return its path."""
    path = f"{os.path.dirname(store.path)}/secret"
    store.fs.makedirs(os.path.dirname(path), exist_ok=True)
    store.fs.pipe_file(path, content)
    return path


def change_manifest(store: Store, **fields: object) -> Artifact | None:
    """Return what is found where somebody changed a manifest by hand."""
    manifest = json.loads(store.read("things", "shop", "v1", MANIFEST))
    store.write(json.dumps(manifest | fields).encode(), "things", "shop", "v1", MANIFEST)
    return store.find("things", "shop", "v1")


def every_use(store: Store, parts: tuple[str, ...]) -> dict[str, Callable[[], object]]:
    """Return all that can be done with an object."""

    def stream(mode: str) -> None:
        with store.open(mode, *parts) as raw:
            raw.write(b"new") if mode == "wb" else raw.read()

    def hold() -> None:
        with store.lease(*parts, seconds=60):
            pass

    return {
        "at": lambda: store.at(*parts),
        "uri": lambda: store.uri(*parts),
        "read": lambda: store.read(*parts),
        "exists": lambda: store.exists(*parts),
        "stream in": lambda: stream("rb"),
        "stream out": lambda: stream("wb"),
        "write": lambda: store.write(b"new", *parts),
        "create": lambda: store.create(b"new", *parts),
        "swap": lambda: store.swap(SECRET, b"new", *parts),
        "remove": lambda: store.remove(*parts),
        "files": lambda: store.files(*parts),
        "folders": lambda: store.folders(*parts),
        "lease": hold,
    }


def test_no_part_of_a_path_leads_out_whatever_is_done_with_it(store: Store) -> None:
    commit(store, "v1")
    secret = plant(store)
    before = objects(store)
    for name in NO_NAMES:
        for parts in ((name, "shop", "v1"), ("things", name, "v1"), ("things", "shop", name)):
            draft = store.draft(*parts)
            uses = every_use(store, parts) | {
                "find": functools.partial(store.find, *parts),
                "move LATEST": functools.partial(store.move_latest, *parts),
                "add a file": functools.partial(draft.write_json, "value.json", 1),
                "add a table": draft.stream_table("t.parquet", pa.schema({})).__enter__,
                "adopt": functools.partial(draft.adopt, "value.json", {"path": "value.json"}),
                "commit": functools.partial(draft.commit, settings={}, inputs={}, summary={}),
            }
            for use, attempt in uses.items():
                with pytest.raises(ArtifactError) as caught:
                    attempt()
                told = f"a name could lead out of this folder (got {name!r}); choose one that is not empty"
                assert told in str(caught.value), use
        for facts in ({"path": name}, {"path": "value.json", "folder": name}):
            with pytest.raises(ArtifactError, match="could lead out"):
                store.draft("things", "shop", "v2").adopt("value.json", facts)
    assert objects(store) == before
    assert store.fs.cat_file(secret) == SECRET


@pytest.mark.parametrize("root", ["/srv/store", "/", "s3://bucket/prefix", "s3://bucket", "memory://store"])
@settings(deadline=None)
@given(parts=st.lists(st.text(st.characters(exclude_categories=())) | st.sampled_from([*NO_NAMES, "v1"]), max_size=5))
@example(parts=["things", "Bücher 千", "a..b", ".hidden", "~", "%2e%2e", "$HOME", "C:"])
def test_a_path_is_refused_or_lies_below_the_root_one_folder_a_part(root: str, parts: list[str]) -> None:
    store = Store(root)
    refused = [
        part for part in parts if part in (*NO_NAMES, ".", "..") or set(part) & {"/", "\\"} or not part.isprintable()
    ]
    if refused:
        with pytest.raises(ArtifactError, match=re.escape(f"(got {refused[0]!r})")):
            store.at(*parts)
        return
    path = store.at(*parts)
    assert path == store.path.rstrip("/") + "".join(f"/{part}" for part in parts)
    assert os.path.normpath(path or "/") == (path or "/")
    if root.startswith("s3"):
        assert [part for part in store.fs.split_path(path) if part] == [part for part in path.split("/", 1) if part]


def test_a_file_outside_its_folder_is_not_followed(store: Store) -> None:
    made = commit(store, "v1", "of another")
    own, secret = made.files["value.json"]["path"], plant(store)
    for field, name in itertools.product(("path", "folder"), (OUT, *NO_NAMES, None, 7)):
        found = change_manifest(store, files={"value.json": made.files["value.json"] | {field: name}})
        assert found is not None
        got = name if field == "path" else f"{name}/{own}"
        for use in (found.read_bytes, found.read_json, found.read_table, found.check, found.location):
            with pytest.raises(ArtifactError) as caught:
                use("value.json")
            assert str(caught.value) == (
                f"{store.uri('things', 'shop', 'v1', MANIFEST)}: names a file outside its folder (got {got!r}); the "
                "manifest was changed by hand: delete this version and run again"
            )
        with pytest.raises(ArtifactError, match="outside its folder"), found.open_table("value.json"):
            pass
    assert store.fs.cat_file(secret) == SECRET
    store.fs.rm(store.at("things", "shop", "v1"), recursive=True)
    assert commit(store, "v1", "again").read_json("value.json") == "again", "what the message says helps"


@pytest.mark.parametrize(
    "place", [("..", "shop", "v1"), ("things", "../x", "v1"), ("things", "shop", "v2"), ("other", "shop", "v1"), [None]]
)
def test_a_manifest_of_another_version_is_refused(store: Store, place: Sequence[str | None]) -> None:
    commit(store, "v1")
    commit(store, "v2")
    with pytest.raises(ArtifactError):
        change_manifest(store, **dict(zip(("kind", "name", "version"), place, strict=False)))
    for use in (store.find, store.move_latest):
        with pytest.raises(
            ArtifactError, match=r"things/shop/v1/manifest\.json: is of another version \(got "
        ) as caught:
            use("things", "shop", "v1")
        assert "expected things/shop/v1); the manifest was changed by hand: delete this version" in str(caught.value)


@pytest.mark.parametrize(("content", "what"), [(b"{", "no JSON"), (b"[]", "no JSON object"), (b"\xff", "no JSON")])
def test_a_manifest_that_is_no_object_is_refused(store: Store, content: bytes, what: str) -> None:
    commit(store, "v1")
    store.write(content, "things", "shop", "v1", "manifest.json")
    with pytest.raises(ArtifactError, match=rf"things/shop/v1/manifest\.json: is {what} \(got .*delete this version"):
        store.find("things", "shop", "v1")


def test_latest_names_a_version_and_nothing_else(store: Store) -> None:
    commit(store, "v1")
    for version in [*filter(str.isascii, NO_NAMES), "v1\n", "../shop/v1"]:
        store.write(version.encode(), "things", "shop", LATEST)
        for use in (lambda: store.latest("things", "shop"), lambda: store.move_latest("things", "shop", "v1")):
            with pytest.raises(ArtifactError) as caught:
                use()
            place = store.uri("things", "shop", LATEST)
            assert str(caught.value).startswith(
                f"{place}: does not name a version (got {version!r}); it was changed by"
            )
    store.remove("things", "shop", LATEST)
    store.move_latest("things", "shop", "v1")
    assert store.latest("things", "shop").version == "v1", "what the message says helps"


def test_lineage_names_versions_and_nothing_else(store: Store) -> None:
    first = commit(store, "v1")
    for uri in ("..", "../../..", "a/b", "/x/..", "s3://bucket/x", "/srv/x/shop/..", "a/b/c\\d", "a//b", "", 7):
        found = change_manifest(store, inputs={"first": uri})
        assert found is not None
        for use in (found.made_from, functools.partial(found.is_made_from, made=first)):
            with pytest.raises(ArtifactError) as caught:
                use("first")
            place = store.uri("things", "shop", "v1", MANIFEST)
            assert str(caught.value).startswith(f"{place}: its first is no version of a store (got {str(uri)!r}); the")


@pytest.mark.parametrize("uri", ["things/shop/v1", "/elsewhere/things/shop/v1", "s3://moved/things/shop/v1"])
def test_lineage_is_found_wherever_the_root_was(folder: Store, uri: str) -> None:
    change_manifest(folder, inputs={"first": uri})
    assert folder.latest("things", "shop").made_from("first") == ("things", "shop", "v1")


# ---------------------------------------------------------------- links


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    """Return a store in a folder, with one version, that LATEST names."""
    made = Store(str(tmp_path / "store"))
    commit(made, "v1", "own")
    made.move_latest("things", "shop", "v1")
    return made


@pytest.fixture
def outside(tmp_path: Path, folder: Store) -> Path:
    """Return a folder beside the root that looks like one."""
    shutil.copytree(folder.path, tmp_path / "outside")
    (value,) = (tmp_path / "outside/things/shop/v1").glob("*value.json")
    value.rename(value.with_name("value.json"))
    value.with_name("value.json").write_bytes(SECRET)
    return tmp_path / "outside"


def content_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def put_link(store: Store, *parts: str, to: Path | str) -> None:
    place = Path(store.path, *parts)
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.symlink_to(to)


PLACES = {
    "kind": ("things",),
    "name": ("things", "shop"),
    "version": ("things", "shop", "v1"),
    "manifest": ("things", "shop", "v1", MANIFEST),
    "file": ("things", "shop", "v1", "value.json"),
    "latest": ("things", "shop", LATEST),
}


@pytest.mark.parametrize("link", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("how", ["absolute", "relative", "through another link", "to nothing"])
def test_a_link_out_of_the_root_is_not_followed(folder: Store, outside: Path, how: str, link: tuple[str, ...]) -> None:
    target: Path | str = outside.joinpath(*link)
    if how == "relative":
        target = os.path.relpath(target, Path(folder.path, *link).parent)
    elif how == "through another link":
        put_link(folder, "way", to=outside)
        target = Path(folder.path, "way", *link)
    elif how == "to nothing":
        target = outside / "not" / "there"
    put_link(folder, *link, to=target)
    before = content_of(outside)
    end = outside / "not" / "there" if how == "to nothing" else outside.joinpath(*link)
    said = (
        f"{folder.at()}/{'/'.join(link)}: a symbolic link out of the storage root (got {end}); remove it, or put what"
    )
    for parts in PLACES.values():
        if parts[: len(link)] == link:
            for name, use in every_use(folder, parts).items():
                with pytest.raises(ArtifactError) as caught:
                    use()
                assert str(caught.value).startswith(said), name
    if link[-1] in ("things", "shop", "v1", MANIFEST):
        with pytest.raises(ArtifactError, match="a symbolic link out of"):
            folder.find("things", "shop", "v1")
        with pytest.raises(ArtifactError, match="a symbolic link out of"):
            commit(folder, "v1")
    if link[-1] != "value.json":
        with pytest.raises(ArtifactError, match="a symbolic link out of"):
            folder.latest("things", "shop")
        with pytest.raises(ArtifactError, match="a symbolic link out of"):
            folder.move_latest("things", "shop", "v1")
    assert content_of(outside) == before
    assert not (outside / "not").exists()
    assert Path(folder.path, *link).is_symlink(), "nor is the link replaced"


def test_a_link_to_a_file_that_a_manifest_names_is_not_followed(folder: Store, outside: Path) -> None:
    """The content is the committed one, so that its sha256 tells nothing."""
    made = folder.latest("things", "shop")
    path = Path(made.location("value.json"))
    path.rename(outside / "moved")
    path.symlink_to(outside / "moved")
    for use in (made.read_json, made.check, made.location):
        with pytest.raises(ArtifactError, match="a symbolic link out of the storage root"):
            use("value.json")
    os.replace(outside / "moved", path)
    assert made.read_json("value.json") == "own", "what the message says helps"


def test_a_lock_that_is_a_link_out_empties_no_file(folder: Store, outside: Path) -> None:
    commit(folder, "v2")
    (outside / "victim").write_bytes(SECRET)
    put_link(folder, "things", "shop", f"{LATEST}.lock", to=outside / "victim")
    with pytest.raises(ArtifactError, match=r"LATEST\.lock: a symbolic link out of the storage root"):
        folder.move_latest("things", "shop", "v2")
    assert (outside / "victim").read_bytes() == SECRET
    assert folder.latest("things", "shop").version == "v1"


def test_a_listing_tells_of_no_link(folder: Store, outside: Path) -> None:
    """Clearing up goes by listings."""
    put_link(folder, "things", "shop", "v9", to=outside / "things" / "shop" / "v1")
    put_link(folder, "things", "shop", "stray", to=outside / "things" / "shop" / LATEST)
    assert folder.folders("things", "shop") == ["v1"]
    assert folder.files("things", "shop").keys() == {LATEST}


@pytest.mark.parametrize("target", ["..", "../..", "/", "../../../outside"])
def test_a_link_above_the_root_is_a_way_out(folder: Store, outside: Path, target: str) -> None:
    put_link(folder, "up", to=target)
    with pytest.raises(ArtifactError, match="up: a symbolic link out of the storage root"):
        folder.files("up", "outside")


def test_a_link_that_leads_in_a_circle_ends(folder: Store) -> None:
    put_link(folder, "round", to="round")
    with pytest.raises(OSError, match="symbolic links"):
        folder.read("round")


def test_links_inside_the_root_and_a_root_behind_links_work(folder: Store, tmp_path: Path) -> None:
    put_link(folder, "others", to="things")
    assert folder.read("others", "shop", LATEST) == b"v1"
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "one").symlink_to(tmp_path)
    (tmp_path / "links" / "two").symlink_to(Path(folder.path))
    (tmp_path / "links" / "three").symlink_to("two")
    for root in ("one/store", "two", "three", "one/links/two"):
        store = Store(str(tmp_path / "links" / root))
        assert store.latest("things", "shop").read_json("value.json") == "own"
        commit(store, f"v-{root.replace('/', '-')}", root)
        store.move_latest("things", "shop", f"v-{root.replace('/', '-')}")
        assert pickle.loads(pickle.dumps(store)).latest("things", "shop").read_json("value.json") == root
        assert store.uri("things") == f"{tmp_path}/links/{root}/things", "the root as it was given"
        assert store.folders("others") == ["shop"]
        put_link(store, "way", to=tmp_path)
        with pytest.raises(ArtifactError, match=rf"{root}/way: a symbolic link out of the storage root"):
            store.read("way", "x")
        folder.move_latest("things", "shop", "v1")


# ---------------------------------------------------------------- LATEST


def test_latest_moves_from_version_to_version_and_back(store: Store) -> None:
    for version in ("v1", "v2", "v2", "v1"):
        commit(store, version)
        store.move_latest("things", "shop", version)
        assert store.latest("things", "shop").version == version


def swap(store: Store, before: str, after: str) -> None:
    """Swap LATEST as ``move_latest`` does after it has read ``before``."""
    store.swap(before.encode(), after.encode(), "things", "shop", LATEST)


def test_latest_stays_when_somebody_else_moved_it_in_between(store: Store) -> None:
    for version in ("v1", "v2", "v3"):
        commit(store, version)
    store.move_latest("things", "shop", "v1")
    store.move_latest("things", "shop", "v2")
    with pytest.raises(ArtifactError, match=r"moved by another run meanwhile \(got v2, expected v1\)"):
        swap(store, before="v1", after="v3")
    assert store.latest("things", "shop").version == "v2"
    swap(store, before="v2", after="v3")
    assert store.latest("things", "shop").version == "v3"


def test_of_sixteen_swaps_exactly_one_moves_latest(store: Store) -> None:
    store.write(b"start", "things", "shop", LATEST)
    clients = [Store(store.root) for _ in range(16)]

    with ThreadPoolExecutor(16) as pool:
        swaps = [lambda writer=writer: swap(clients[writer], before="start", after=str(writer)) for writer in range(16)]
        results = list(pool.map(outcome, swaps))
    winners = [writer for writer, result in enumerate(results) if result == "won"]
    assert sum("moved by another run" in result for result in results) == 15
    assert len(winners) == 1
    assert store.read("things", "shop", LATEST) == str(winners[0]).encode()


def test_s3_refuses_a_swap_between_the_look_and_the_write(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The window a second read cannot close: only If-Match does."""
    store, rival = (Store(f"{s3}/{name}") for name in [uuid.uuid4().hex] * 2)
    store.write(b"v1", "things", "shop", LATEST)
    put = store.fs.pipe_file

    def put_too_late(path: str, data: bytes, **kwargs: object) -> object:
        monkeypatch.undo()
        rival.write(b"v2", "things", "shop", LATEST)
        return put(path, data, **kwargs)

    monkeypatch.setattr(store.fs, "pipe_file", put_too_late)
    with pytest.raises(ArtifactError, match="moved by another run meanwhile"):
        swap(store, before="v1", after="v3")
    assert store.read("things", "shop", LATEST) == b"v2"


def test_the_first_latest_is_created_only_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("v1", "v2"):
        commit(store, version)
    store.move_latest("things", "shop", "v1")
    monkeypatch.setattr(store, "_pointer", lambda kind, name: None)  # what a run saw that looked before v1 was there
    with pytest.raises(ArtifactError, match="exists already"):
        store.move_latest("things", "shop", "v2")
    monkeypatch.undo()
    assert store.latest("things", "shop").version == "v1"


# ---------------------------------------------------------------- values


def test_digest_does_not_depend_on_key_order() -> None:
    assert digest({"a": 1, "b": {"c": [1, 2], "d": None}}) == digest({"b": {"d": None, "c": [1, 2]}, "a": 1})
    assert digest([1, 2]) != digest([2, 1])
    assert digest({"a": 1}) != digest({"a": "1"})


def test_stores_and_artifacts_survive_pickling(store: Store) -> None:
    made = commit(store, "v1", content=[1, 2])
    again = pickle.loads(pickle.dumps(made))
    assert again.read_json("value.json") == [1, 2]
    assert again.uri == made.uri
    assert pickle.loads(pickle.dumps(store)).path == store.path


def test_a_pickled_store_is_the_same_folder_from_another_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray workers run elsewhere, so a relative root must not travel as it is."""
    monkeypatch.chdir(tmp_path)
    store = Store("store")
    commit(store, "v1")
    packed = pickle.dumps(store)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(packed).find("things", "shop", "v1") is not None


def test_a_worker_adds_a_file_to_a_draft(store: Store) -> None:
    worker = Draft(pickle.loads(pickle.dumps(store)), "things", "shop", "v1")
    worker.write_json("part.json", 7)
    draft = store.draft("things", "shop", "v1")
    draft.adopt("part-0.json", worker.files["part.json"])
    assert draft.commit(settings={}, inputs={}, summary={}).read_json("part-0.json") == 7


# ---------------------------------------------------------------- run records


def record_of(store: Store) -> dict[str, object]:
    (path,) = [path for path in objects(store) if path.startswith("runs/")]
    return json.loads(store.read(*path.split("/")))


def test_a_run_record_goes_from_running_to_succeeded(store: Store) -> None:
    with run_record(store, "shop", "train", {"seed": 101}) as record:
        assert record_of(store)["status"] == "running"
        record["stages"]["train"] = {"uri": "here"}
    found = record_of(store)
    assert found["status"] == "succeeded"
    assert (found["job"], found["settings"], found["stages"]) == ("train", {"seed": 101}, {"train": {"uri": "here"}})
    assert found["uri"].startswith(store.uri("runs", "shop", "train-"))
    assert found["seconds"] >= 0
    assert found["started"] <= found["finished"]
    assert "error" not in found


@pytest.mark.parametrize("error", [ArtifactError("damaged"), KeyboardInterrupt("Ctrl-C"), SystemExit(3)])
def test_a_run_record_of_a_failure_says_why(store: Store, error: BaseException) -> None:
    with pytest.raises(type(error)), run_record(store, "shop", "train", {}):
        raise error
    found = record_of(store)
    assert found["status"] == "failed"
    assert found["error"] == f"{type(error).__name__}: {error}"
    assert "test_artifacts.py" in found["traceback"]
    assert "finished" in found


def test_no_secret_of_the_environment_is_in_a_record_or_manifest(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "RAY_AUTH_TOKEN", "DB_PASSWORD"):
        if name not in os.environ:
            monkeypatch.setenv(name, f"secret-of-{name}")
    secrets = [os.environ[name] for name in os.environ if name.endswith(("_KEY", "_TOKEN", "PASSWORD"))]
    assert len(secrets) >= 5
    commit(store, "v1")
    with pytest.raises(ArtifactError), run_record(store, "shop", "train", {"storage": store.root}):
        store.read("nowhere")
    for path in objects(store):
        content = store.read(*path.split("/")).decode()
        assert not [secret for secret in secrets if secret in content], path
