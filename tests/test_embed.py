"""The embedding stage: each distinct text once in the life of a line, in item order, nothing published unchecked."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from alpharec.artifacts import LATEST, MANIFEST, Artifact, ArtifactError, Store
from alpharec.config import EmbedSettings, Settings
from alpharec.embed import (
    WORK,
    EmbedError,
    Progress,
    ShardEncoder,
    Target,
    Unreadable,
    dry_run,
    embed,
    embed_texts,
    encode_each,
    quality,
)
from alpharec.encoders import EncoderDied, EncoderError, Meter, Reading, RefusedTexts, make_encoder
from alpharec.vectors import (
    KIND,
    LEASE,
    PROBE,
    QUARANTINE,
    SHARDS,
    load_vectors,
    shard_digest,
    text_keys,
    verify,
)

# Ten items, seven distinct titles: shards of three are 3 + 3 + 1.
TITLES = ["Dune", "Emma", "Dune", "Ulysses", "The Trial", "Emma", "Dune", "Momo", "Solaris", "Heidi"]
ITEMS = {f"i{number}": title for number, title in enumerate(TITLES)}
# One item is gone, one has another title, one is new: shard 2 holds no title any more.
NEXT = {item: title for item, title in ITEMS.items() if item != "i8"} | {"i9": "Heidi again", "i10": "Persuasion"}
HASH = {"backend": "hash", "hash_width": 16}
LOUD = "loud " * 70_000  # entries of 70,000 where not normalised, above fp16's largest 65,504
UNSCALED = HASH | {"normalize": False, "max_length": 80_000}


def settings_with(encoder: Mapping[str, Any] = HASH, **embed: Any) -> Settings:
    return Settings.model_validate(
        {"name": "shop", "encoder": dict(encoder), "embed": {"shard_size": 3, "num_cpus": 1, **embed}}
    )


def write_dataset(
    store: Store, titles: Sequence[str | None] | Mapping[str, str | None], version: str = "d1"
) -> Artifact:
    """Commit the part of a dataset that embedding reads; items without a given id are i0, i1, ..."""
    items = titles if isinstance(titles, Mapping) else {f"i{row}": title for row, title in enumerate(titles)}
    draft = store.draft("datasets", "shop", version)
    columns = {"item_id": list(items), "title": pa.array(items.values(), pa.string())}
    draft.write_table("items.parquet", pa.table(columns))
    return draft.commit(settings={}, inputs={}, summary={})


def encoded(titles: Sequence[str], settings: Settings) -> np.ndarray:
    """Return the encoder's own vectors."""
    return make_encoder(settings.encoder, settings.embed).encode(titles).astype(np.float16)


@dataclasses.dataclass
class Run:
    """A store with the vectors of ``TITLES``."""

    store: Store
    dataset: Artifact
    made: Artifact

    @property
    def line(self) -> Path:
        return Path(self.made.uri).parent

    @classmethod
    def open(cls, root: Path) -> Run:
        store = Store(str(root))
        dataset = store.find("datasets", "shop", "d1")
        return cls(store, dataset, find(store, dataset, settings_with()))

    def forget(self) -> None:
        """Leave what a run leaves that is killed before it commits."""
        (self.line / self.made.version / MANIFEST).unlink()
        (self.line / LATEST).unlink()

    def record(self, shard: int) -> Path:
        """Return the record of a shard."""
        file = self.made.files[f"vectors-{shard:05d}.parquet"]["path"]
        return self.line / SHARDS / f"{file.removesuffix('.parquet').split('-')[1]}.json"


def find(store: Store, dataset: Artifact, settings: Settings) -> Artifact | None:
    target = Target.of(dataset, settings)
    return store.find(KIND, target.line, target.version)


@pytest.fixture(scope="module")
def first_root(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("embed") / "store"
    store = Store(str(root))
    embed(store, settings_with(), write_dataset(store, TITLES))
    return root


@pytest.fixture
def run(first_root: Path, tmp_path: Path) -> Run:
    """Return a copy of the first run to work on; a Ray Data job costs seconds, a copy nothing."""
    return Run.open(Path(shutil.copytree(first_root, tmp_path / "store")))


@pytest.fixture(scope="module")
def loud_root(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make vectors of three titles, of which one does not fit fp16."""
    root = tmp_path_factory.mktemp("loud") / "store"
    store = Store(str(root))
    embed(store, settings_with(UNSCALED, max_quarantined=0.4), write_dataset(store, ["Dune", LOUD, "Emma"]))
    return root


@pytest.fixture
def store(tmp_path: Path, ray_local: None) -> Store:
    return Store(str(tmp_path / "empty"))


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a run starts Ray work."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("this run starts Ray work")

    monkeypatch.setattr("alpharec.embed.map_on_actors", refuse)


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return each file's modification time and content, lock files left out."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def written_since(before: Mapping[str, object], folder: Path) -> list[str]:
    """Return the new files, without their unique part; what was there must be as it was."""
    after = state_of(folder)
    assert {name: after.get(name) for name in before} == before, "a file was written again or removed"
    return sorted(name.split("/")[-1].split("-", 1)[-1] for name in after.keys() - before.keys())


# ---------------------------------------------------------------- the first version


def test_vectors_are_the_encoders_own_in_item_order_and_duplicates_are_embedded_once(
    run: Run, first_root: Path
) -> None:
    vectors = load_vectors(run.made)
    assert vectors.dtype == np.float16
    assert np.array_equal(vectors, encoded(TITLES, settings_with()))

    items = run.made.read_table("items.parquet")
    assert items["item_id"].to_pylist() == list(ITEMS)
    assert items["shard"].to_pylist() == [0, 0, 0, 0, 1, 0, 0, 1, 1, 2]
    assert items["row"].to_pylist() == [0, 1, 0, 2, 0, 1, 0, 1, 2, 0]
    assert [run.made.files[f"vectors-{shard:05d}.parquet"]["rows"] for shard in range(3)] == [3, 3, 1]
    summary = {key: run.made.summary[key] for key in ("items", "texts", "width", "shards", "quarantined", "published")}
    assert summary == {"items": 10, "texts": 7, "width": 16, "shards": 3, "quarantined": 0, "published": True}
    assert run.made.manifest["inputs"] == {"catalog": f"{first_root}/datasets/shop/d1"}
    assert verify(run.made) == []


def test_the_line_leaves_nothing_but_the_version_its_shards_and_latest(run: Run) -> None:
    files = {str(Path(run.made.location(file)).relative_to(run.line)) for file in run.made.files}
    records = {str(run.record(shard).relative_to(run.line)) for shard in range(3)}
    assert state_of(run.line).keys() == files | records | {f"{run.made.version}/{MANIFEST}", LATEST}
    assert (run.line / LATEST).read_text() == run.made.version
    probe = run.made.read_table(PROBE)
    assert probe["text"].to_pylist() == TITLES, "the first items, fewer than 64"
    assert run.made.files[PROBE]["folder"] == SHARDS


@pytest.mark.usefixtures("no_ray")
def test_a_second_call_computes_nothing(run: Run) -> None:
    before = state_of(run.line)
    assert embed(run.store, settings_with(), run.dataset).manifest == run.made.manifest
    resharded = embed(run.store, settings_with(shard_size=2), run.dataset)
    assert resharded.manifest == run.made.manifest, "shards do not change vectors"
    same_items = write_dataset(run.store, TITLES, "d2")
    assert embed(run.store, settings_with(), same_items).manifest == run.made.manifest, "nor does another split"
    assert state_of(run.line) == before


def test_a_killed_run_computes_only_the_shards_without_a_record(run: Run) -> None:
    run.forget()
    run.record(1).unlink()
    name = run.record(1).stem
    before = state_of(run.line)

    again = embed(run.store, settings_with(), run.dataset)
    new = [f"{name}.json", f"{name}.parquet", "items.parquet", "quarantine.parquet", "probe.parquet", MANIFEST, LATEST]
    assert written_since(before, run.line) == sorted(new)
    kept = {shard: f"vectors-{shard:05d}.parquet" for shard in range(3)}
    assert {shard for shard, file in kept.items() if again.files[file] == run.made.files[file]} == {0, 2}
    assert again.files[kept[1]]["sha256"] == run.made.files[kept[1]]["sha256"]
    assert load_vectors(again).tobytes() == load_vectors(run.made).tobytes()


def test_records_of_another_shard_size_are_not_taken_and_two_workers_give_the_vectors_of_one(run: Run) -> None:
    run.forget()
    again = embed(run.store, settings_with(shard_size=4, num_workers=2), run.dataset)
    assert again.version == run.made.version
    assert again.summary["shards"] == 2
    assert load_vectors(again).tobytes() == load_vectors(run.made).tobytes()


def test_another_encoder_is_another_line_and_another_title_another_version(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    dataset = write_dataset(store, TITLES)
    base = Target.of(dataset, settings_with())
    changes = [{"hash_width": 32}, {"prompt": "Title: {title}"}, {"normalize": False}, {"max_length": 64}]
    others = [Target.of(dataset, settings_with(HASH | change)) for change in changes]
    assert len({target.line for target in [base, *others]}) == 5
    assert len({target.version for target in [base, *others]}) == 5
    other = Target.of(write_dataset(store, [*TITLES[:-1], "Dune Messiah"], "d2"), settings_with())
    assert other.line == base.line
    assert other.version != base.version
    assert Target.of(write_dataset(store, TITLES, "d3"), settings_with(shard_size=99, num_workers=2)) == base


# ---------------------------------------------------------------- the next version


def test_the_next_version_computes_only_new_texts_and_refers_to_the_shards_before(run: Run) -> None:
    before = state_of(run.line)
    before.pop(LATEST)
    made = embed(run.store, settings_with(), write_dataset(run.store, NEXT, "d2"))
    assert np.array_equal(load_vectors(made), encoded(list(NEXT.values()), settings_with()))
    kept = ("vectors-00000.parquet", "vectors-00001.parquet", PROBE)
    assert [made.files[file] for file in kept] == [run.made.files[file] for file in kept]
    assert made.files.keys() == {*kept, "vectors-00003.parquet", "items.parquet", QUARANTINE}
    items = made.read_table("items.parquet")
    assert items["item_id"].to_pylist() == list(NEXT)
    assert items["shard"].to_pylist() == [0, 0, 0, 0, 1, 0, 0, 1, 3, 3]
    assert items["row"].to_pylist() == [0, 1, 0, 2, 0, 1, 0, 1, 0, 1]

    name = made.files["vectors-00003.parquet"]["path"].removesuffix(".parquet").split("-")[1]
    new = [f"{name}.json", f"{name}.parquet", "items.parquet", "quarantine.parquet", MANIFEST, LATEST]
    assert written_since(before, run.line) == sorted(new)
    assert made.summary["plan"] == {
        "items": 10,
        "unchanged": 8,
        "new": 1,
        "changed": 1,
        "moved": 0,
        "deleted": 1,
        "quarantined": 0,
        "texts": 7,
        "duplicates": 3,
        "to_embed": 2,
    }
    assert made.manifest["inputs"]["base"] == run.made.uri
    assert run.store.latest(KIND, made.name).version == made.version
    record = json.loads(run.store.read(KIND, made.name, SHARDS, f"{name}.json"))
    assert record["probe_cosine"] == pytest.approx(1, abs=1e-3), "fp16 keeps three digits"
    assert (verify(made), verify(run.made)) == ([], [])


@pytest.mark.usefixtures("no_ray")
def test_items_in_another_order_are_a_version_without_computing(run: Run) -> None:
    turned = dict(reversed(ITEMS.items()))
    made = embed(run.store, settings_with(), write_dataset(run.store, turned, "d2"))
    assert made.version != run.made.version
    assert made.summary["plan"]["unchanged"] == 10
    assert np.array_equal(load_vectors(made), load_vectors(run.made)[::-1])
    shards = [file for file in made.files if file.startswith("vectors-")]
    assert [made.files[file] for file in shards] == [run.made.files[file] for file in shards]
    speeds = ("texts_per_second_and_worker", "tokens_per_second_and_worker")
    assert [made.summary[key] for key in speeds] == [run.made.summary[key] for key in speeds]


@pytest.mark.usefixtures("no_ray")
def test_an_unpublished_version_needs_no_lease_and_leaves_latest(run: Run) -> None:
    turned = write_dataset(run.store, dict(reversed(ITEMS.items())), "d2")
    with run.store.lease(KIND, run.made.name, LEASE, seconds=60):
        made = embed(run.store, settings_with(), turned, publish=False)
        assert made.summary["published"] is False
        assert run.store.latest(KIND, made.name).version == run.made.version
        assert made.manifest["inputs"]["base"] == run.made.uri
        assert embed(run.store, settings_with(), turned, publish=False).manifest == made.manifest


@pytest.mark.usefixtures("no_ray")
def test_a_version_whose_run_was_killed_before_latest_moved_is_published_by_the_next_call(run: Run) -> None:
    (run.line / LATEST).unlink()
    assert embed(run.store, settings_with(), run.dataset, publish=False).manifest == run.made.manifest
    assert not (run.line / LATEST).exists()
    assert embed(run.store, settings_with(), run.dataset).manifest == run.made.manifest
    assert (run.line / LATEST).read_text() == run.made.version


@pytest.mark.usefixtures("in_process")
def test_a_record_that_names_a_file_outside_the_shards_is_refused(run: Run) -> None:
    run.forget()
    record = json.loads(run.record(1).read_text())
    for path in ("../../../../secret", "/etc/passwd", "..", "a\\b", None):
        run.record(1).write_text(json.dumps(record | {"file": record["file"] | {"path": path}}))
        with pytest.raises(ArtifactError) as caught:
            embed(run.store, settings_with(), run.dataset)
        assert str(caught.value) == (
            f"{run.record(1)}: names a file outside its folder (got {path!r}); the record was changed by hand: "
            "delete it and run again"
        )
    run.record(1).unlink()
    assert np.array_equal(load_vectors(embed(run.store, settings_with(), run.dataset)), load_vectors(run.made))


@pytest.mark.usefixtures("no_ray")
def test_an_older_version_is_found_but_is_not_latest_again(run: Run) -> None:
    newer = embed(run.store, settings_with(), write_dataset(run.store, dict(reversed(ITEMS.items())), "d2"))
    assert embed(run.store, settings_with(), run.dataset).manifest == run.made.manifest
    assert run.store.latest(KIND, newer.name).version == newer.version


@pytest.mark.usefixtures("no_ray")
def test_a_run_leaves_the_line_to_another_that_holds_its_lease(run: Run) -> None:
    next_dataset = write_dataset(run.store, NEXT, "d2")
    with run.store.lease(KIND, run.made.name, LEASE, seconds=60):
        before = state_of(run.line)
        with pytest.raises(ArtifactError, match=r"another run works on this since .* \(host .*, process \d+\)"):
            embed(run.store, settings_with(), next_dataset)
        assert state_of(run.line) == before


@pytest.mark.usefixtures("no_ray")
def test_a_catalog_that_changed_too_much_stops_before_anything_is_paid_for(run: Run) -> None:
    before = state_of(run.line)
    few = write_dataset(run.store, TITLES[:4], "d2")
    with pytest.raises(EmbedError, match=r"^60% of the items are not as they were .* = 50%\); .* pass --yes"):
        embed(run.store, settings_with(), few)
    assert state_of(run.line) == before
    made = embed(run.store, settings_with(yes=True), few)
    assert np.array_equal(load_vectors(made), load_vectors(run.made)[:4])
    assert run.store.latest(KIND, made.name).version == made.version


@pytest.mark.usefixtures("no_ray")
def test_titles_that_cannot_be_embedded_stop_the_run_above_their_share(run: Run) -> None:
    titles = write_dataset(run.store, ITEMS | {"i2": None, "i5": " "}, "d2")
    with pytest.raises(EmbedError, match=r"^2 of 10 items of .* have no usable title \(limit .* = 10\.00%\)"):
        embed(run.store, settings_with(max_quarantined=0.1), titles)
    made = embed(run.store, settings_with(max_quarantined=0.2), titles)
    reasons = {row["item_id"]: row["reason"] for row in made.read_table(QUARANTINE).to_pylist()}
    assert reasons == {"i2": "no title", "i5": "empty title"}
    there = np.array([row not in (2, 5) for row in range(10)])
    assert np.array_equal(load_vectors(made), load_vectors(run.made) * there[:, None])


@pytest.mark.usefixtures("no_ray")
def test_a_dry_run_says_what_would_be_done_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    next_dataset = write_dataset(run.store, NEXT, "d2")
    before = state_of(Path(run.store.path))
    text = dry_run(run.store, settings_with(), next_dataset).splitlines()
    assert text[:-1] == [
        f"embed: 10 items, compared with {run.made.version}",
        "embed: 8 unchanged, 1 new, 1 changed, 0 moved, 1 deleted, 0 quarantined",
        "embed: 7 distinct texts (3 duplicates), 2 to embed",
    ]
    assert text[-1].startswith("embed: about 3 tokens, about 0 s on 1 workers, 0.00 accelerator-hours")
    assert dry_run(run.store, settings_with(), run.dataset).startswith("embed: nothing to do: ")
    assert state_of(Path(run.store.path)) == before

    empty = Store(str(tmp_path / "empty"))
    assert dry_run(empty, settings_with(), run.dataset).splitlines() == [
        "embed: 10 items, the first version of its line",
        "embed: 0 unchanged, 10 new, 0 changed, 0 moved, 0 deleted, 0 quarantined",
        "embed: 7 distinct texts (3 duplicates), 7 to embed",
        "embed: about 8 tokens, time unknown: no earlier version of the line measured it",
    ]
    assert not Path(empty.path).exists()


# ---------------------------------------------------------------- gate


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        ({"identical": 2}, r"29% of the texts have another's vector \(limit 20%\)"),
        ({"not_finite": 1}, "1 vectors are not finite"),
        ({"norms": [0.0, 1.0]}, "some vectors are zero"),
        ({"norms": [0.97, 1.0]}, r"norms from 0\.970 to 1\.000, not 1"),
        ({"probe_cosine": 0.99}, r"the probe's vectors differ .* cosine 0\.9900 \(limit 0\.999\)"),
    ],
)
@pytest.mark.usefixtures("no_ray")
def test_shards_that_do_not_pass_the_gate_are_not_published(run: Run, found: dict[str, Any], fault: str) -> None:
    run.forget()
    record = json.loads(run.record(1).read_text())
    run.record(1).write_text(json.dumps(record | found))
    with pytest.raises(EmbedError, match=f"nothing was published: {fault}") as caught:
        embed(run.store, settings_with(), run.dataset)
    assert str(run.line / SHARDS) in str(caught.value)
    assert find(run.store, run.dataset, settings_with()) is None
    assert not (run.line / LATEST).exists()
    assert not (run.line / LEASE).exists()


def test_an_engine_that_does_not_reproduce_the_probe_publishes_nothing(run: Run) -> None:
    """Swap the vectors of the probe's texts, as another engine might: LATEST stays where it was."""
    manifest, probe = run.line / run.made.version / MANIFEST, run.made.read_table(PROBE)
    draft = run.store.draft(KIND, run.made.name, SHARDS)
    draft.write_table(PROBE, pa.table({"text": probe["text"].to_pylist()[::-1], "vector": probe["vector"]}))
    made = json.loads(manifest.read_text())
    made["files"][PROBE] = draft.files[PROBE] | {"folder": SHARDS}
    manifest.write_text(json.dumps(made))
    next_dataset = write_dataset(run.store, NEXT, "d2")
    with pytest.raises(EmbedError, match=r"the probe's vectors differ .*: cosine -?0\.\d{4} \(limit 0\.999\)"):
        embed(run.store, settings_with(), next_dataset)
    assert find(run.store, next_dataset, settings_with()) is None
    assert (run.line / LATEST).read_text() == run.made.version
    again = embed(run.store, settings_with(probe_cosine=-1), next_dataset)
    assert run.store.latest(KIND, again.name).version == again.version, "its shards were kept"


def test_quality_counts_vectors_that_are_equal_or_not_finite() -> None:
    vectors = np.array([[3, 4], [0, 1], [3, 4], [np.nan, 0], [3, 4]], np.float16)
    assert quality(vectors) == {"norms": [1.0, 5.0], "not_finite": 1, "identical": 2}
    assert quality(vectors[:0]) == {"norms": None, "not_finite": 0, "identical": 0}


# ---------------------------------------------------------------- texts that the encoder cannot read

ENGLISH = ["Lamp", "lamp", "Teapot", "Blue mug", "Wool scarf", "Oak chair", "Garden hose", "Tea towel", "Red boots"]
THAI = ["กาแฟคั่วบด", "อ่านหนังสือ", "เสื้อยืดสีขาว"]  # one unknown token each to MiniLM
MIXED = ENGLISH + THAI  # a quarter is unreadable
MINILM: dict[str, Any] = {}


@pytest.fixture(scope="module")
def mixed_root(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make vectors of ``MIXED`` as they are."""
    root = tmp_path_factory.mktemp("mixed") / "store"
    store = Store(str(root))
    embed(store, settings_with(MINILM, max_unreadable=0.25, max_identical=0.25), write_dataset(store, MIXED))
    return root


@pytest.fixture
def mixed(mixed_root: Path, tmp_path: Path) -> Run:
    store = Store(str(shutil.copytree(mixed_root, tmp_path / "store")))
    dataset = store.find("datasets", "shop", "d1")
    return Run(store, dataset, find(store, dataset, settings_with(MINILM)))


def advised(message: str) -> dict[str, float]:
    """Return the settings of ``embed`` that a message tells to pass."""
    words = message.split()
    options = {"--embed.max-unreadable": "max_unreadable", "--embed.max-identical": "max_identical"}
    return {options[word]: float(words[at + 1]) for at, word in enumerate(words) if word in options}


@pytest.mark.usefixtures("no_ray")
def test_a_catalog_in_a_script_that_the_encoder_does_not_know_stops_before_anything_is_computed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(str(tmp_path))
    dataset = write_dataset(store, MIXED)
    target = Target.of(dataset, settings_with(MINILM))
    with pytest.raises(EncoderError) as caught:
        embed(store, settings_with(MINILM), dataset)
    message = str(caught.value)
    assert "cannot read 3 of 12 distinct texts (25.0%; limit embed.max_unreadable = 5.00%)" in message
    assert all(repr(title) in message for title in THAI)
    assert "--encoder.model sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2 --encoder.revision" in message
    assert store.find(KIND, target.line, target.version) is None
    assert state_of(tmp_path / KIND) == {}
    told = "embed: the encoder cannot read about 25.0% of the texts, e.g. 'กาแฟคั่วบด', 'อ่านหนังสือ', 'เสื้อยืดสีขาว' ("
    text = dry_run(store, settings_with(MINILM), dataset)
    assert text.splitlines()[-1] == f"{told}more than embed.max_unreadable = 5.00%)"
    text = dry_run(store, settings_with(MINILM, max_unreadable=0.25), dataset)
    assert text.splitlines()[-1] == f"{told}within embed.max_unreadable = 25.00%)"
    assert "cannot read" not in dry_run(store, settings_with(), dataset), "the hash encoder reads all"


def test_what_the_message_advises_publishes_the_texts_as_they_are_and_tells_of_them(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = write_dataset(store, [*MIXED, "Coffee and more กาแฟคั่วบด"])
    with pytest.raises(EncoderError, match=r"3 of 13 .*--embed\.max-unreadable 0\.24 --embed\.max-iden") as caught:
        embed(store, settings_with(MINILM), dataset)
    with caplog.at_level("INFO", "alpharec"):
        made = embed(store, settings_with(MINILM, **advised(str(caught.value))), dataset)
    vectors = load_vectors(made)
    assert np.array_equal(vectors[9], vectors[11]), "as the report says"
    assert made.summary["unreadable"] == 3
    shards = {"texts": 13, "unknown": 4, "unreadable": 3, "same_tokens": 3, "same_when_cut": 0}
    assert made.summary["reading"] == shards, "in shards of three: lamp, and two of the Thai titles"
    told = [line for line in caplog.messages if " 13 texts " in line]
    assert [line.split(", e.g.")[0] for line in told] == [
        "embed: 4 of 13 texts have a token that stands for what the encoder does not know",
        "embed: 3 of 13 texts cannot be read by the encoder",
        "embed: 3 of 13 texts have the tokens, and so the vector, of another",
    ]
    assert told[0].endswith("e.g. 'Coffee and more กาแฟคั่วบด'")
    assert "'Lamp' and 'lamp'" in told[2]


@pytest.mark.parametrize(
    ("found", "texts", "limit", "passes"),
    [(1, 20, 0.05, True), (2, 39, 0.05, False), (29, 100, 0.29, True), (7, 100, 0.07, True), (1, 3, 0, False),
     (0, 3, 0, True), (3, 3, 1, True), (0, 0, 0, True)],
)  # fmt: skip
def test_a_share_at_the_limit_passes(found: int, texts: int, limit: float, passes: bool) -> None:
    seen, settings = Unreadable(texts, True, read=texts, found=found), settings_with(max_unreadable=limit)
    if passes:
        seen.check(settings)
    else:
        with pytest.raises(EncoderError, match=f"{found} of {texts} distinct texts") as caught:
            seen.check(settings)
        seen.check(settings_with(**advised(str(caught.value))))


@pytest.mark.usefixtures("no_ray")
def test_finished_shards_do_not_let_a_run_past_the_limit(mixed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed.forget()
    monkeypatch.setattr("alpharec.embed.SAMPLE", 1)  # one text of twelve says nothing
    with pytest.raises(EncoderError, match=r"cannot read 3 of 12 distinct texts") as caught:
        embed(mixed.store, settings_with(MINILM, max_unreadable=0.2), mixed.dataset)
    again = embed(mixed.store, settings_with(MINILM, **advised(str(caught.value))), mixed.dataset)
    assert again.summary["unreadable"] == 3


@pytest.mark.usefixtures("no_ray")
def test_records_without_a_reading_count_for_nothing(mixed: Run) -> None:
    """An earlier release wrote them."""
    mixed.forget()
    for shard in range(4):
        record = json.loads(mixed.record(shard).read_text())
        del record["reading"]
        mixed.record(shard).write_text(json.dumps(record))
    made = embed(mixed.store, settings_with(MINILM, max_unreadable=0.25, max_identical=0.25), mixed.dataset)
    assert made.summary["unreadable"] == 0
    assert made.summary["reading"]["texts"] == 0


@pytest.mark.usefixtures("no_ray")
def test_the_limit_holds_for_the_whole_version_not_for_what_is_new_in_it(mixed: Run) -> None:
    settings = settings_with(MINILM, yes=True)
    fewer = write_dataset(mixed.store, {f"i{row}": MIXED[row] for row in (0, 2, 3, 4, 5, 6, 9)}, "d2")
    with pytest.raises(EncoderError, match=r"cannot read 1 of 7 distinct texts \(14\.3%; .*, e\.g\. 'กาแฟคั่วบด':"):
        embed(mixed.store, settings, fewer)
    kept = embed(mixed.store, settings_with(MINILM, max_unreadable=0.15, yes=True), fewer)
    assert kept.summary["unreadable"] == 1
    assert kept.summary["reading"]["texts"] == 0
    mended = embed(mixed.store, settings, write_dataset(mixed.store, ENGLISH, "d3"))
    assert mended.summary["unreadable"] == 0, "of its own texts, whatever else the shards before hold"


@pytest.mark.usefixtures("no_ray")
def test_a_wish_that_the_encoder_cannot_read_stops_with_the_same_words(mixed: Run) -> None:
    ids = pa.array(["0", "1"], pa.string())
    for wishes in (["กระเป๋าเดินทาง", "a lamp"], [THAI[0], "Lamp"]):  # new, and the title of an item
        with pytest.raises(EncoderError, match=r"cannot read 1 of 2 distinct texts .* model and bundle with it; or"):
            embed_texts(mixed.store, settings_with(MINILM), ids, pa.array(wishes, pa.string()))


def test_wishes_are_embedded_as_they_are_where_that_is_asked_for(mixed: Run) -> None:
    ids, wishes = pa.array(["0", "1"], pa.string()), pa.array(["กระเป๋าเดินทาง", "หนังสือเก่า"], pa.string())
    with pytest.raises(EncoderError, match="cannot read 2 of 2") as caught:
        embed_texts(mixed.store, settings_with(MINILM), ids, wishes)
    made = embed_texts(mixed.store, settings_with(MINILM, **advised(str(caught.value))), ids, wishes)
    assert made.summary["unreadable"] == 2


def test_an_actor_stops_before_its_engine_has_a_text_of_a_shard_that_says_enough(tmp_path: Path) -> None:
    class Reader:
        def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
            return [[0] for _ in texts]

        def reading(self, texts: Sequence[str], tokens: Sequence[Sequence[int]]) -> Reading:
            found = np.array([text in THAI for text in texts])
            return Reading(np.ones(len(texts), np.int64), found, found, np.arange(len(texts)), ~found)

        def encode(self, *_: object) -> np.ndarray:
            raise AssertionError("the engine has the shard")

    store, texts = Store(str(tmp_path)), pa.array(MIXED)
    draft = store.draft(KIND, "line", "v1")
    with draft.stream_table(WORK, pa.schema({"text": pa.string()})) as write:
        write(pa.table({"text": texts}))
    seen, name = Unreadable(texts=100, publish=True, kept=10, found=3), shard_digest(text_keys(texts))
    settings = settings_with(max_unreadable=0.05)
    worker = ShardEncoder(store, "line", "v1", draft.files[WORK]["path"], None, settings, most_refused=0, seen=seen)
    worker.encoder = Reader()
    row = worker({"number": np.array([0]), "group": np.array([0]), "digest": np.array([name])})
    assert row["error"][0].count("cannot read at least 6 of 100 distinct texts (6.0%; limit embed.max_unreadable") == 1
    assert advised(row["error"][0])["max_unreadable"] == 1, "the rest of the texts may be no better"
    assert list((tmp_path / KIND / "line").glob("shards/*")) == []


# ---------------------------------------------------------------- texts and models that do not work


class Picky:
    """An encoder of numbers that does not take some texts: alone or not, without or with saying which."""

    width = 2

    def __init__(self, *, bad: set[str] = frozenset(), named: set[str] = frozenset()) -> None:
        self.bad, self.named, self.meter, self.calls = bad, named, Meter(), 0

    def encode(self, texts: Sequence[str], tokens: Sequence[Sequence[str]] | None = None) -> np.ndarray:
        self.calls += 1
        assert tokens is None or [word for (word,) in tokens] == list(texts)
        if self.bad & set(texts):
            raise ValueError("a token out of range")
        if found := {position: "no token" for position, text in enumerate(texts) if text in self.named}:
            raise RefusedTexts("some have no token", found)
        return np.array([[float(text), 1] for text in texts], np.float32).reshape(len(texts), self.width)


def test_a_text_that_an_engine_does_not_name_is_found_by_halving() -> None:
    encoder = Picky(bad={"5"})
    vectors, refused = encode_each(encoder, [str(number) for number in range(16)], most_refused=1)
    assert refused == {5: "'5': ValueError: a token out of range"}
    assert encoder.calls == 9, "1 whole, then two halves at each of four levels"
    expected = np.array([[number, 1] for number in range(16)], np.float16)
    expected[5] = 0
    assert np.array_equal(vectors, expected)


def test_refused_texts_are_named_by_their_position_in_the_shard() -> None:
    texts = [str(number) for number in range(10)] + ["70000"]
    tokens = [[text] for text in texts]
    vectors, refused = encode_each(Picky(bad={"2"}, named={"0", "7", "8"}), texts, tokens, most_refused=5)
    assert refused == {
        **dict.fromkeys((0, 7, 8), "no token"),
        2: "'2': ValueError: a token out of range",
        10: "the vector of '70000' does not fit fp16; pass --encoder.normalize",
    }
    expected = np.array([[number, 1] for number in range(11)], np.float16)
    expected[[0, 2, 7, 8, 10]] = 0
    assert np.array_equal(vectors, expected)
    assert encode_each(Picky(named={"1", "2"}), ["1", "2"], most_refused=2)[1] == {0: "no token", 1: "no token"}


def test_too_many_refused_texts_are_an_error_with_reasons() -> None:
    with pytest.raises(EncoderError, match=r"^2 or more texts cannot be embedded, .*max_quarantined.*: no token"):
        encode_each(Picky(named={"1", "2"}), ["0", "1", "2"], most_refused=1)
    with pytest.raises(EncoderError, match=r"'[12]': ValueError: a token out of range"):
        encode_each(Picky(bad={"1", "2"}), ["0", "1", "2"], most_refused=1)


def test_an_engine_that_died_is_not_asked_again() -> None:
    encoder = Picky()
    encoder.encode = lambda texts, tokens: (_ for _ in ()).throw(EncoderDied("gone"))
    with pytest.raises(EncoderDied, match="gone"):
        encode_each(encoder, ["0", "1"], most_refused=2)


def test_a_text_without_a_vector_goes_to_quarantine_and_the_others_on(loud_root: Path) -> None:
    store, settings = Store(str(loud_root)), settings_with(UNSCALED)
    made = find(store, store.find("datasets", "shop", "d1"), settings)
    expected = encoded(["Dune", "Dune", "Emma"], settings)
    expected[1] = 0
    assert np.array_equal(load_vectors(made), expected)
    (row,) = made.read_table(QUARANTINE).to_pylist()
    assert (row["item_id"], row["title"]) == ("i1", LOUD.encode())
    assert row["reason"].startswith("the vector of 'loud loud ")
    assert made.summary["quarantined"] == 1
    assert made.read_table(PROBE)["text"].to_pylist() == ["Dune", "Emma"]
    assert verify(made) == []


@pytest.mark.usefixtures("no_ray")
def test_texts_refused_by_an_earlier_run_count_too(loud_root: Path, tmp_path: Path) -> None:
    """Finished shards must not let a run past the limit that the run before stopped at."""
    store = Store(shutil.copytree(loud_root, tmp_path / "store"))
    dataset = store.find("datasets", "shop", "d1")
    made = find(store, dataset, settings_with(UNSCALED))
    store.remove(KIND, made.name, made.version, MANIFEST)
    store.remove(KIND, made.name, LATEST)
    with pytest.raises((EncoderError, EmbedError), match=r"embed\.max_quarantined = 30\.00%"):
        embed(store, settings_with(UNSCALED, max_quarantined=0.3), dataset)
    assert find(store, dataset, settings_with(UNSCALED)) is None


def test_a_first_shard_without_any_vector_does_not_stop_the_run(store: Store) -> None:
    dataset = write_dataset(store, [LOUD, "Dune", "Emma"])
    settings = settings_with(UNSCALED, shard_size=1, max_quarantined=0.4)
    made = embed(store, settings, dataset)
    assert np.array_equal(load_vectors(made)[1:], encoded(["Dune", "Emma"], settings))
    assert not load_vectors(made)[0].any()
    assert verify(made) == []


def test_a_vector_that_does_not_fit_fp16_is_an_error_that_names_the_text(store: Store) -> None:
    dataset, settings = write_dataset(store, ["Dune", LOUD, "Emma"]), settings_with(UNSCALED)
    direct = make_encoder(settings.encoder, EmbedSettings()).encode([LOUD])
    assert np.abs(direct).max() == 70_000
    with pytest.raises(EncoderError, match=r"'loud loud .* does not fit fp16; pass --encoder\.normalize") as caught:
        embed(store, settings, dataset)
    assert len(str(caught.value)) < 600, "one message, not the whole text"
    assert find(store, dataset, settings) is None


def test_a_storage_that_fails_a_worker_is_one_message_for_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    seen = Unreadable(texts=9, publish=True)
    worker = ShardEncoder(store, "shop", "v1", "work.parquet", None, settings_with(), most_refused=0, seen=seen)

    def full(_group: int, name: str) -> None:
        with store.asking(name):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(worker, "encode", full)
    row = worker({"number": np.array([3]), "group": np.array([0]), "digest": np.array(["shard"])})
    assert (row["number"], row["record"]) == ([3], [""])
    assert row["error"][0].startswith(f"{store.uri('shard')}: the storage is full")


def test_a_model_that_is_not_there_is_named_before_anything_starts(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    missing = {"backend": "sentence-transformers", "model": "/nowhere/model"}
    with pytest.raises(EncoderError, match=r"^encoder\.model: no such folder \(got '/nowhere/model'\)") as caught:
        embed(store, settings_with(missing), write_dataset(store, TITLES))
    assert "\n" not in str(caught.value)


def test_shards_that_come_in_together_are_told_at_the_rate_of_their_encoders() -> None:
    progress = Progress(total=100, done=0, num_actors=2)
    assert progress.add({"file": {"rows": 20}, "tokens": 60, "seconds": 5.0}).startswith("20 / 100 texts, the first")
    line = progress.add({"file": {"rows": 40}, "tokens": 120, "seconds": 8.0})
    assert line == "60 / 100 texts, 10 texts/s, 30 tokens/s, 4 s left, encoders 100% busy"
