"""The whole flow on a shop with a known answer, on a folder and on S3: once, again, changed, and failing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import in_this_process

from alpharec.artifacts import Artifact, ArtifactError, Store
from alpharec.config import EvaluateSettings, Settings, TrainSettings
from alpharec.data.dataset import CatalogError
from alpharec.encoders import EncoderError
from alpharec.pipeline import EXPECTED, JOBS, STAGES, main, run_stages

ROOT = Path(__file__).parents[1]
USERS, ITEMS = 24, 20
K = 3


def write_shop(folder: Path) -> Path:
    """Write a checkerboard: even users have all even items, odd users all odd ones; titles tell which is which."""
    items = [f"i{item:02d},{'red apple' if item % 2 == 0 else 'blue whale'} number{item}" for item in range(ITEMS)]
    pairs = [f"u{user:02d},i{item:02d}" for user in range(USERS) for item in range(user % 2, ITEMS, 2)]
    (folder / "items.csv").write_text("\n".join(["item_id,title", *items]))
    (folder / "interactions.csv").write_text("\n".join(["user_id,item_id", *pairs]))
    return folder


def settings_for(folder: Path, storage: str, /, **changes: dict[str, Any]) -> Settings:
    sections: dict[str, dict[str, Any]] = {
        "data": {"path": str(folder)},
        "encoder": {"backend": "hash", "hash_width": 32},
        "embed": {"shard_size": 8, "num_cpus": 1},
        "model": {"hidden_width": 16, "width": 8},
        "train": {
            "learning_rate": 0.01, "batch_size": 32, "num_negatives": 8,
            "max_epochs": 3, "evaluate_every": 1, "cpus_per_worker": 1,
        },
        "evaluate": {"ks": (K,), "select_k": K},
        "recommend": {"k": K, "num_cpus": 1},
    }  # fmt: skip
    changed = {name: sections.get(name, {}) | changes.get(name, {}) for name in sections | changes}
    return Settings.model_validate({"name": "shop", "storage": storage, **changed})


def objects(store: Store) -> set[str]:
    store.fs.invalidate_cache()
    return {os.path.relpath(path, store.path) for path in store.fs.find(store.path)}


def records(store: Store) -> list[dict[str, Any]]:
    """Return the run records, oldest first."""
    found = [json.loads(store.read(*path.split("/"))) for path in objects(store) if path.startswith("runs/")]
    return sorted(found, key=lambda record: (record["started"], record["seconds"]))


@dataclass
class Shop:
    """A store after the first run of the pipeline."""

    data: Path
    settings: Settings
    store: Store
    done: dict[str, Artifact]
    record: dict[str, Any]

    @classmethod
    def run(cls, data: Path, storage: str) -> Shop:
        settings, store = settings_for(data, storage), Store(storage)
        done = run_stages(settings, "pipeline")
        (record,) = records(store)
        return cls(data, settings, store, done, record)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shop(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def folder_shop(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Made in this process, which gives the bits that Ray's give."""
    folder = tmp_path_factory.mktemp("pipeline")
    with in_this_process(folder):
        return Shop.run(data, str(folder / "store"))


@pytest.fixture(scope="module")
def s3_shop(ray_local: None, s3: str, data: Path) -> Shop:
    return Shop.run(data, f"{s3}/pipeline")


@pytest.fixture(params=["folder", "s3"])
def shop(request: pytest.FixtureRequest) -> Shop:
    return request.getfixturevalue(f"{request.param}_shop")


def versions(done: dict[str, Artifact]) -> dict[str, str]:
    return {stage: artifact.version for stage, artifact in done.items()}


# ---------------------------------------------------------------- once


def test_every_stage_leaves_an_artifact_made_from_the_ones_before(shop: Shop) -> None:
    assert list(shop.done) == list(STAGES) == JOBS["pipeline"]
    for artifact in shop.done.values():
        found = shop.store.find(artifact.kind, artifact.name, artifact.version)
        assert found is not None
        assert found.manifest == artifact.manifest
        assert all(artifact.read_bytes(file) for file in artifact.files)
        assert artifact.uri.startswith("s3://") != shop.store.is_local
    uri = {stage: artifact.uri for stage, artifact in shop.done.items()}
    made_from = shop.done["publish"].manifest["inputs"]
    assert made_from == {
        "dataset": uri["prepare"], "vectors": uri["embed"], "model": uri["train"], "evaluation": uri["evaluate"]
    }  # fmt: skip
    assert shop.store.latest("bundles", "shop").version == shop.done["publish"].version


def test_users_get_the_items_of_their_own_colour(shop: Shop) -> None:
    """Ten of each colour, four in train, three in valid: for test the three left are the answer."""
    metrics = shop.done["evaluate"].read_json("metrics.json")
    assert metrics["test"][f"recall@{K}"] == pytest.approx(1.0)
    assert metrics["baselines"]["most-popular"][f"recall@{K}"] < 0.7
    lists = shop.done["recommend"].read_table("part-00000.parquet").to_pylist()
    assert len(lists) == USERS
    # Everything of the own colour is seen after train, valid and test: only the other colour is left to recommend.
    assert all(int(item[1:]) % 2 != int(row["user_id"][1:]) % 2 for row in lists for item in row["item_ids"])
    assert all(len(set(row["item_ids"])) == K for row in lists)


def test_the_run_record_says_what_was_done(shop: Shop) -> None:
    record = shop.record
    assert (record["job"], record["status"]) == ("pipeline", "succeeded")
    assert {stage: facts["uri"] for stage, facts in record["stages"].items()} == {
        stage: artifact.uri for stage, artifact in shop.done.items()
    }
    assert all(facts["seconds"] >= 0 for facts in record["stages"].values())
    assert sum(facts["seconds"] for facts in record["stages"].values()) <= record["seconds"]
    assert record["metrics"] == shop.done["evaluate"].read_json("metrics.json")
    assert Settings.model_validate(record["settings"]) == shop.settings
    assert record["software"]["ray"]


def test_a_folder_and_s3_hold_the_same_numbers(folder_shop: Shop, s3_shop: Shop) -> None:
    assert versions(folder_shop.done) == versions(s3_shop.done)
    assert folder_shop.record["metrics"] == s3_shop.record["metrics"]
    for stage, file in (("embed", "vectors-00000.parquet"), ("train", "model.safetensors")):
        assert folder_shop.done[stage].read_bytes(file) == s3_shop.done[stage].read_bytes(file)
    lists = [shop.done["recommend"].read_table("part-00000.parquet") for shop in (folder_shop, s3_shop)]
    assert lists[0].equals(lists[1])


# ---------------------------------------------------------------- again


def test_a_second_run_finds_everything_done(shop: Shop) -> None:
    before = objects(shop.store)
    done = run_stages(shop.settings, "pipeline")
    assert {stage: made.manifest for stage, made in done.items()} == {
        stage: made.manifest for stage, made in shop.done.items()
    }
    (new,) = objects(shop.store) - before
    assert new.startswith("runs/shop/pipeline-")
    assert json.loads(shop.store.read(*new.split("/")))["metrics"] == shop.record["metrics"]


@pytest.mark.usefixtures("in_process")
def test_another_temperature_trains_again_on_the_same_dataset_and_vectors(folder_shop: Shop) -> None:
    changed = settings_for(folder_shop.data, folder_shop.settings.storage, train={"temperature": 0.5})
    done = run_stages(changed, "pipeline")
    first, second = versions(folder_shop.done), versions(done)
    assert {stage for stage in STAGES if first[stage] == second[stage]} == {"prepare", "embed"}
    latest = folder_shop.store.latest("bundles", "shop")
    assert latest.version == second["publish"]
    assert latest.read_json("settings.json")["train"]["temperature"] == 0.5

    assert versions(run_stages(folder_shop.settings, "pipeline")) == first, "the first settings lead back"
    assert folder_shop.store.latest("bundles", "shop").version == first["publish"]


def test_a_job_prints_the_report_the_metrics_the_lists_and_where_they_are(
    folder_shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = [
        f"--{section}.{key}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
        for section in ("data", "encoder", "embed", "model", "train", "evaluate", "recommend")
        for key, value in getattr(folder_shop.settings, section).model_dump(exclude_unset=True).items()
    ]
    monkeypatch.setattr("sys.argv", ["pipeline.py", "--name=shop", f"--storage={folder_shop.store.path}", *argv])
    main("pipeline")
    shown = capsys.readouterr().out
    assert f"recall@{K}" in shown
    assert "u00 had: red apple" in shown
    assert all(f"{stage:>10}: {artifact.uri}" in shown for stage, artifact in folder_shop.done.items())


# ---------------------------------------------------------------- on everything

NOTHING = "no test interactions: nothing was measured"


@pytest.mark.usefixtures("in_process")
def test_the_final_model_is_fit_on_everything_and_published(
    folder_shop: Shop, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Settings and epoch are chosen with a split; then everything is train, and nothing is left to measure on."""
    chosen = folder_shop.done["evaluate"]
    final = settings_for(
        data, folder_shop.store.path, data={"split": "none"}, train={"epochs_from": f"shop/{chosen.version}"}
    )
    monkeypatch.setattr("alpharec.pipeline.load_settings", lambda **_: final)
    main("pipeline")
    shown = capsys.readouterr().out
    assert NOTHING in shown
    assert "nan" not in shown

    record = records(folder_shop.store)[-1]
    done = run_stages(final, "pipeline")
    assert done["prepare"].summary["train"] == USERS * ITEMS // 2
    assert done["train"].summary["epochs"] == folder_shop.done["train"].summary["best_epoch"]
    assert done["embed"].version == folder_shop.done["embed"].version
    told = {split: f"no {split} interactions: nothing was measured" for split in ("valid", "test")}
    assert record["metrics"] == {"baselines": {}, "not_measured": told}
    assert record["stages"]["evaluate"]["summary"] == told
    bundle = done["publish"]
    assert bundle.read_json("metrics.json") == record["metrics"]
    card = bundle.read_bytes("MODEL_CARD.md").decode()
    assert NOTHING in card
    assert "| metric |" not in card
    assert "epochs without validation" in card
    page = done["evaluate"].read_bytes("report.html").decode()
    assert NOTHING in page
    assert "NaN" not in page
    assert done["evaluate"].read_table("per_user.parquet").num_rows == 0
    lists = done["recommend"].read_table("part-00000.parquet").to_pylist()
    assert len(lists) == USERS
    # All of the own colour is train, so seen.
    assert all(int(item[1:]) % 2 != int(row["user_id"][1:]) % 2 for row in lists for item in row["item_ids"])

    zero_shot = settings_for(
        data, folder_shop.store.path, data={"split": "none"},
        evaluate={"model": f"shop/{folder_shop.done['train'].version}"},
    )  # fmt: skip
    done = run_stages(zero_shot, "pipeline")
    assert done["train"].version == folder_shop.done["train"].version
    assert done["evaluate"].read_json("metrics.json")["not_measured"] == told
    card = done["publish"].read_bytes("MODEL_CARD.md").decode()
    assert NOTHING in card
    assert "zero-shot here" in card


@pytest.mark.usefixtures("in_process")
def test_a_solved_model_is_fit_on_everything_without_a_number_of_epochs(data: Path, tmp_path: Path) -> None:
    settings = settings_for(data, str(tmp_path / "store"), data={"split": "none"})
    given = settings.model_dump(exclude_unset=True, exclude={"model", "train"}) | {"preset": "ease"}
    done = run_stages(Settings.model_validate(given), "publish")
    card = done["publish"].read_bytes("MODEL_CARD.md").decode()
    assert NOTHING in card
    assert "Training: none, 0 epochs without validation" in card


@pytest.mark.parametrize(
    ("job", "sections", "message"),
    [
        ("train", {"train": TrainSettings()}, "the number of epochs must be given"),
        ("train", {"train": TrainSettings(epochs_from="shop/1")}, "no such model (got train.epochs_from = shop/1"),
        ("train", {"train": TrainSettings(select_on="test")}, "pass --train.select-on valid"),
        ("pipeline", {"evaluate": EvaluateSettings(model="shop/1")}, "no such model (got evaluate.model = shop/1"),
        ("search", {}, "a search needs valid interactions (got 240 train, 0 valid, 0 test); choose a --data.split"),
        ("intention", {}, "measuring intentions needs valid interactions"),
    ],
)
def test_what_needs_a_split_says_so_before_titles_are_embedded(
    data: Path, tmp_path: Path, job: str, sections: dict[str, Any], message: str
) -> None:
    store = Store(str(tmp_path / "store"))
    settings = settings_for(data, store.path, data={"split": "none"})
    with pytest.raises(EXPECTED, match=re.escape(message)):
        run_stages(settings.model_copy(update=sections), job)
    (record,) = records(store)
    assert (record["status"], list(record["stages"])) == ("failed", ["prepare"])


# ---------------------------------------------------------------- failing


def test_a_failing_stage_leaves_a_record_with_the_reason(ray_local: None, data: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    settings = settings_for(data, store.path, data={"items": "nowhere.csv"})
    with pytest.raises(CatalogError):
        run_stages(settings, "pipeline")
    (record,) = records(store)
    assert (record["status"], record["stages"]) == ("failed", {})
    assert record["error"].startswith(f"CatalogError: catalog {data}/nowhere.csv: no such file")


def test_the_record_of_a_failure_names_the_stages_before_it(ray_local: None, data: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    settings = settings_for(data, store.path, encoder={"backend": "sentence-transformers", "model": "/nowhere"})
    with pytest.raises(EncoderError):
        run_stages(settings, "pipeline")
    (record,) = records(store)
    assert (record["status"], list(record["stages"])) == ("failed", ["prepare"])
    assert record["error"].startswith("EncoderError: encoder.model: no such folder (got '/nowhere')")


def test_recommending_before_publishing_says_so(ray_local: None, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no published version"):
        run_stages(settings_for(data, str(tmp_path)), "recommend")


def test_settings_that_do_not_fit_end_a_job_with_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--train.batch-size", "0"])
    with pytest.raises(SystemExit, match=r"^train: settings from the command line do not fit:\n  train\.batch_size: "):
        main("train")


def test_a_job_that_fails_exits_1_with_one_message(data: Path, tmp_path: Path) -> None:
    argv = ["--storage", str(tmp_path / "store"), "--data.path", str(data), "--data.items", "nowhere.csv"]
    job = subprocess.run(
        [sys.executable, "jobs/prepare.py", *argv, "--ray.num-cpus", "1"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert job.returncode == 1
    assert job.stdout == ""
    assert f"prepare: catalog {data}/nowhere.csv: no such file; pass --data.items FILE" in job.stderr
    assert "Traceback" not in job.stderr
    (record,) = records(Store(str(tmp_path / "store")))
    assert record["status"] == "failed"
