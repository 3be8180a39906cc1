"""The embedding stage: each distinct title once, in item order, and only the work that is missing."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.numpy

from alpharec.artifacts import MANIFEST, Artifact, Store
from alpharec.config import EmbedSettings, Settings
from alpharec.embed import Target, embed
from alpharec.vectors import load_vectors
from alpharec.encoders import EncoderError, make_encoder

# Ten items, seven distinct titles: shards of three are 3 + 3 + 1.
TITLES = ["Dune", "Emma", "Dune", "Ulysses", "The Trial", "Emma", "Dune", "Momo", "Solaris", "Heidi"]
HASH = {"backend": "hash", "hash_width": 16}


def settings_with(encoder: Mapping[str, Any] = HASH, **embed: Any) -> Settings:
    return Settings.model_validate(
        {"name": "shop", "encoder": dict(encoder), "embed": {"shard_size": 3, "num_cpus": 1, **embed}}
    )


def write_dataset(store: Store, titles: list[str]) -> Artifact:
    """Commit the part of a dataset that embedding reads."""
    draft = store.draft("datasets", "shop", "d1")
    ids = [f"i{number}" for number in range(len(titles))]
    draft.write_table("items.parquet", pa.table({"item_id": ids, "title": titles}))
    return draft.commit(settings={}, inputs={}, summary={})


@dataclass
class Run:
    """A store with the vectors of ``TITLES``."""

    store: Store
    dataset: Artifact
    made: Artifact

    @property
    def folder(self) -> Path:
        return Path(self.made.uri)

    @classmethod
    def open(cls, root: Path) -> Run:
        store = Store(str(root))
        found = [store.find("datasets", "shop", "d1"), None]
        found[1] = store.find("vectors", "shop", vectors_version(found[0], settings_with()))
        return cls(store, *found)


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


@pytest.fixture
def store(tmp_path: Path, ray_local: None) -> Store:
    return Store(str(tmp_path / "empty"))


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return each file's modification time and content."""
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def test_vectors_are_the_encoders_own_in_item_order_and_duplicates_are_embedded_once(run: Run) -> None:
    vectors, settings = load_vectors(run.made), settings_with()
    direct = make_encoder(settings.encoder, settings.embed).encode(TITLES)
    assert vectors.dtype == np.float16
    assert np.array_equal(vectors, direct.astype(np.float16))

    items = run.made.read_table("items.parquet")
    assert items["item_id"].to_pylist() == [f"i{number}" for number in range(10)]
    assert items["row"].to_pylist() == [0, 1, 0, 2, 3, 1, 0, 4, 5, 6]
    assert [run.made.files[f"vectors-{shard:05d}.parquet"]["rows"] for shard in range(3)] == [3, 3, 1]
    summary = {key: run.made.summary[key] for key in ("items", "texts", "width", "shards")}
    assert summary == {"items": 10, "texts": 7, "width": 16, "shards": 3}
    _, _, version = run.made.manifest["inputs"]["dataset"].rsplit("/", 2)
    assert version == run.dataset.version


def test_a_second_call_computes_nothing(run: Run) -> None:
    before = state_of(run.folder)
    assert embed(run.store, settings_with(), run.dataset).manifest == run.made.manifest
    resharded = embed(run.store, settings_with(shard_size=2), run.dataset)
    assert resharded.manifest == run.made.manifest, "shards do not change vectors"
    assert state_of(run.folder) == before


def test_a_killed_run_computes_only_the_shards_without_a_record(run: Run) -> None:
    (run.folder / MANIFEST).unlink()
    (run.folder / "shard-3-00001.json").unlink()
    before = state_of(run.folder)

    again = embed(run.store, settings_with(), run.dataset)
    after = state_of(run.folder)
    assert {name: after[name] for name in before} == before, "a file of another shard was written again"
    new = sorted(name.split("-", 1)[-1] for name in after.keys() - before.keys())
    assert new == sorted(["3-00001.json", MANIFEST, "items.parquet", "texts.parquet", "vectors.parquet"])
    kept = {shard: f"vectors-{shard:05d}.parquet" for shard in range(3)}
    assert {shard for shard, file in kept.items() if again.files[file] == run.made.files[file]} == {0, 2}
    assert again.files[kept[1]]["sha256"] == run.made.files[kept[1]]["sha256"]
    assert load_vectors(again).tobytes() == load_vectors(run.made).tobytes()


def test_records_of_another_shard_size_are_not_taken_and_two_workers_give_the_vectors_of_one(run: Run) -> None:
    (run.folder / MANIFEST).unlink()
    again = embed(run.store, settings_with(shard_size=4, num_workers=2), run.dataset)
    assert again.version == run.made.version
    assert again.summary["shards"] == 2
    assert load_vectors(again).tobytes() == load_vectors(run.made).tobytes()


def test_another_encoder_or_another_title_is_another_version(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    dataset = write_dataset(store, TITLES)
    base = vectors_version(dataset, settings_with())
    changes = [{"hash_width": 32}, {"prompt": "Title: {title}"}, {"normalize": False}, {"max_length": 64}]
    versions = {vectors_version(dataset, settings_with(HASH | change)) for change in changes}
    assert len(versions | {base}) == 5
    other = write_dataset(Store(str(tmp_path / "other")), [*TITLES[:-1], "Dune Messiah"])
    assert vectors_version(other, settings_with()) != base
    assert vectors_version(dataset, settings_with(shard_size=99, num_workers=2)) == base


def test_a_model_that_is_not_there_is_named_before_anything_starts(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    missing = {"backend": "sentence-transformers", "model": "/nowhere/model"}
    with pytest.raises(EncoderError, match=r"^encoder\.model: no such folder \(got '/nowhere/model'\)") as caught:
        embed(store, settings_with(missing), write_dataset(store, TITLES))
    assert "\n" not in str(caught.value)


def test_a_model_that_an_actor_cannot_load_is_an_encoder_error(store: Store, tmp_path: Path) -> None:
    """The folder is there, so the fingerprint is too; only loading it finds that it holds no model."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    safetensors.numpy.save_file({"weight": np.zeros(2, np.float32)}, folder / "model.safetensors")
    with pytest.raises(EncoderError) as caught:
        embed(
            store,
            settings_with({"backend": "sentence-transformers", "model": str(folder)}),
            write_dataset(store, TITLES),
        )
    assert str(folder) in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert "ray::" not in str(caught.value)
    assert len(str(caught.value)) < 600, "one message, not a wall"


def test_a_vector_that_does_not_fit_fp16_is_an_error_that_names_the_text(store: Store) -> None:
    """A word said 70,000 times gives entries of 70,000, above fp16's largest 65,504."""
    shouted = "loud " * 70_000
    dataset = write_dataset(store, ["Dune", shouted, "Emma"])
    settings = settings_with(HASH | {"normalize": False, "max_length": 80_000})
    direct = make_encoder(settings.encoder, EmbedSettings()).encode([shouted])
    assert np.abs(direct).max() == 70_000
    with pytest.raises(EncoderError, match=r"'loud loud .* does not fit fp16; pass --encoder\.normalize") as caught:
        embed(store, settings, dataset)
    assert len(str(caught.value)) < 600, "one message, not the whole text"
    assert store.find("vectors", "shop", vectors_version(dataset, settings)) is None


def test_vectors_on_s3_are_those_of_a_folder(run: Run, s3: str) -> None:
    remote = Store(f"{s3}/embed")
    made = embed(remote, settings_with(), write_dataset(remote, TITLES))
    assert load_vectors(made).tobytes() == load_vectors(run.made).tobytes()
    assert made.uri.startswith("s3://")
