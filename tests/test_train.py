"""Training: repeatable, independent of the number of workers, resumable after a kill, and it learns."""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import ray
import torch

from alpharec.artifacts import Artifact, ArtifactError, Store
from alpharec.config import DataSettings, Settings
from alpharec.data.dataset import load_dataset
from alpharec.data.prepare import prepare
from alpharec.evaluation import EvaluationError, evaluate_model, find_model, measure, truth_and_seen
from alpharec.graph import Part
from alpharec.ranking import evaluate
from alpharec.train import (
    Training,
    TrainingError,
    check_negatives,
    commit_model,
    fit,
    model_version,
    run_workers,
    settle_epochs,
)
from alpharec.vectors import load_vectors, vector_column

USERS, ITEMS, WIDTH = 40, 60, 16
KILL_TIMEOUT_S = 240


def make_settings(storage: Path | str, **train: Any) -> Settings:
    chosen = {
        "max_epochs": 12,
        "evaluate_every": 2,
        "batch_size": 64,
        "num_negatives": 8,
        "cpus_per_worker": 1,
        "learning_rate": 0.01,
    } | train
    return Settings.model_validate(
        {
            "name": "board",
            "storage": str(storage),
            "data": {"path": str(storage), "items": "items.csv", "interactions": "interactions.csv"},
            "model": {"hidden_width": 32, "width": 8},
            "train": chosen,
            "evaluate": {"ks": [5, 20], "select_k": 5},
        }
    )


def make_inputs(storage: Path, settings: Settings) -> tuple[Store, Artifact, Artifact]:
    """Write a shop where even users like even items, with title vectors that carry parity under noise."""
    random = np.random.default_rng(0)
    storage.mkdir(parents=True, exist_ok=True)
    pairs = [(u, i) for u in range(USERS) for i in range(ITEMS) if u % 2 == i % 2 and random.random() < 0.6]
    (storage / "items.csv").write_text("item_id,title\n" + "".join(f"i{i},title {i}\n" for i in range(ITEMS)))
    (storage / "interactions.csv").write_text("user_id,item_id\n" + "".join(f"u{u},i{i}\n" for u, i in pairs))
    store = Store(str(storage))
    dataset = prepare(store, settings)
    vectors = random.normal(size=(ITEMS, WIDTH)).astype(np.float16)
    vectors[:, 0] += np.where(np.arange(ITEMS) % 2, 1, -1)
    draft = store.draft("vectors", "board", "by-hand")
    ids = [f"i{i}" for i in range(ITEMS)]
    draft.write_table("items.parquet", pa.table({"item_id": ids, "shard": [0] * ITEMS, "row": range(ITEMS)}))
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), WIDTH)
    draft.write_table("vectors-00000.parquet", pa.table({"vector": column}))
    summary = {"items": ITEMS, "width": WIDTH, "fingerprint": {}}
    return store, dataset, draft.commit(settings={}, inputs={}, summary=summary)


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Store, Artifact, Artifact]:
    return make_inputs(tmp_path, make_settings(tmp_path))


def build(inputs: tuple[Store, Artifact, Artifact], settings: Settings, part: Part = Part()) -> Training:
    _, dataset, vectors = inputs
    return Training.build(settings, dataset, vectors, part=part)


def test_it_learns_the_checkerboard(inputs: tuple[Store, Artifact, Artifact], tmp_path: Path) -> None:
    settings = make_settings(tmp_path, max_epochs=3)
    no_layers = settings.model.model_copy(update={"num_layers": 0})  # propagation alone would tell the halves apart
    training = build(inputs, settings.model_copy(update={"model": no_layers}))
    untrained = _share_of_own_half(inputs, training)
    assert list(training.run()) == [True, True, True]
    # Chance is one half; titles hint at the parity under noise as large; 275 train pairs show what to look for.
    assert untrained < 0.65
    assert _share_of_own_half(inputs, training) > 0.75


def _share_of_own_half(inputs: tuple[Store, Artifact, Artifact], training: Training) -> float:
    """Return how often the K best unseen items are of the user's parity, K the number of those there are."""
    dataset, (user_UD, item_ID) = load_dataset(inputs[1]), training.scored()
    right, total = 0, 0
    for user in range(USERS):
        unseen = np.setdiff1d(np.arange(ITEMS), dataset.train.items[dataset.train.users == user])
        num_own = int((unseen % 2 == user % 2).sum())
        best = unseen[(item_ID[unseen] @ user_UD[user]).argsort(descending=True)[:num_own].numpy()]
        right, total = right + int((best % 2 == user % 2).sum()), total + num_own
    return right / total


def test_a_run_whose_folder_is_a_link_out_of_the_store_does_not_start(
    inputs: tuple[Store, Artifact, Artifact], tmp_path: Path
) -> None:
    store, dataset, vectors = inputs
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "mine").symlink_to(outside)
    settings = make_settings(tmp_path, run="mine")
    for start in (fit, functools.partial(run_workers, run="mine")):
        with pytest.raises(ArtifactError, match="training/mine: a symbolic link out of the storage root"):
            start(store, settings, dataset=dataset, vectors=vectors)
    assert not list(outside.iterdir())


def test_bfloat16_products_follow_the_same_curve_and_are_another_model(
    inputs: tuple[Store, Artifact, Artifact], tmp_path: Path
) -> None:
    curves, versions = [], set()
    for precision in ("float32", "bfloat16"):
        settings = make_settings(tmp_path, precision=precision)
        training = build(inputs, settings)
        curves.append([training.step() for _ in range(20)])
        assert all(weight.dtype == torch.float32 for weight in training.model.parameters())
        versions.add(model_version(settings, *inputs[1:]))
    assert curves[0] != curves[1]
    np.testing.assert_allclose(*curves, rtol=0.02)  # 2^-8 = 0.004 a rounding
    assert len(versions) == 2


def test_same_seed_same_bits_and_another_seed_differs(inputs: tuple[Store, Artifact, Artifact], tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    weights = []
    for seed in (7, 7, 8):
        training = build(inputs, settings.model_copy(update={"seed": seed}))
        losses = [training.step() for _ in range(20)]
        weights.append((losses, torch.cat([weight.reshape(-1) for weight in training.model.state_dict().values()])))
    assert weights[0][0] == weights[1][0]
    assert torch.equal(weights[0][1], weights[1][1])
    assert not torch.equal(weights[0][1], weights[2][1])


@pytest.mark.parametrize("stop", [20, 22], ids=["after an epoch", "inside an epoch"])
def test_going_on_from_a_snapshot_equals_never_stopping(
    inputs: tuple[Store, Artifact, Artifact], tmp_path: Path, stop: int
) -> None:
    whole = build(inputs, make_settings(tmp_path))
    list(whole.run())
    first = build(inputs, make_settings(tmp_path))
    assert first.sampler.steps_per_epoch == 4
    for due in first.run(lambda: first.state.step == stop):
        assert due
        if first.state.step == stop:
            break
    assert first.state.inside_epoch == (stop % 4 != 0)
    folder = tmp_path / "snapshot"
    folder.mkdir()
    first.snapshot().save(folder)
    second = build(inputs, make_settings(tmp_path))
    second.restore(type(second.state).load(folder))
    list(second.run())
    assert [entry["loss"] for entry in second.state.history] == [entry["loss"] for entry in whole.state.history]
    assert second.state.best_score == whole.state.best_score
    for name, weight in whole.state.best_weights.items():
        assert torch.equal(weight, second.state.best_weights[name])


def test_the_best_epoch_is_kept_and_patience_counts_validations(
    inputs: tuple[Store, Artifact, Artifact], tmp_path: Path
) -> None:
    training = build(inputs, make_settings(tmp_path, max_epochs=500, patience=3))
    list(training.run())
    scores = {entry["epoch"]: entry["valid_recall@5"] for entry in training.state.history if "valid_recall@5" in entry}
    best = max(scores, key=lambda epoch: (scores[epoch], -epoch))
    assert training.state.best_epoch == best
    assert training.state.epoch == best + 3 * 2, "three validations, two epochs apart, without a better score"


def test_one_and_two_workers_agree_on_the_loss_of_50_steps(
    inputs: tuple[Store, Artifact, Artifact], tmp_path: Path
) -> None:
    settings = make_settings(tmp_path)
    single = build(inputs, settings)
    alone = [single.step() for _ in range(50)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = tmp_path / "losses.pt"
    # The fork server imports once for both, what takes seconds.
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(["alpharec.train", "pytest"])
    torch.multiprocessing.start_processes(
        _train_in_group, (2, port, tmp_path, together), nprocs=2, start_method="forkserver"
    )
    # Float32 sums in another order: 1e-5 is about 80 roundings of a loss near 2.
    assert torch.load(together, weights_only=True) == pytest.approx(alone, abs=1e-5)


def _train_in_group(rank: int, size: int, port: int, storage: Path, out: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    settings = make_settings(storage)
    inputs = make_inputs(storage / f"copy-{rank}", make_settings(storage / f"copy-{rank}"))
    training = build(inputs, settings, Part(rank, size))
    losses = [training.step() for _ in range(50)]
    assert training.selection.num_users == USERS, "those of all workers"
    if rank == 0:
        torch.save(losses, out)
    torch.distributed.destroy_process_group()


# ---------------------------------------------------------------- without a validation part


def with_data(settings: Settings, **data: Any) -> Settings:
    return settings.model_copy(update={"data": settings.data.model_copy(update=data)})


def write_given(folder: Path, dataset: Artifact, *splits: str) -> None:
    """Write the interactions of some splits of a dataset as ``given.csv``, which says of each what it is."""
    data, rows = load_dataset(dataset), ["user_id,item_id,split"]
    for split in splits:
        pairs = data.splits[split]
        users, items = data.user_ids.take(pa.array(pairs.users)), data.item_ids.take(pa.array(pairs.items))
        rows += [f"{user},{item},{split}" for user, item in zip(users, items, strict=True)]
    (folder / "given.csv").write_text("\n".join(rows) + "\n")


GIVEN = {"interactions": "given.csv", "split": "given", "split_column": "split", "on_empty_split": "allow"}


def test_the_last_epoch_is_kept_and_has_the_bits_of_a_validated_one(
    inputs: tuple[Store, Artifact, Artifact], tmp_path: Path
) -> None:
    """Validation only picks: on the same train interactions the weights after an epoch are the same without it."""
    store, dataset, vectors = inputs
    runs = {}
    for splits in (("train", "valid"), ("train",)):
        write_given(tmp_path, dataset, *splits)
        settings = with_data(make_settings(tmp_path, max_epochs=7, patience=1 if len(splits) == 1 else 500), **GIVEN)
        runs[splits] = build((store, prepare(store, settings), vectors), settings)
        list(runs[splits].run())
    validated, alone = runs.values()
    assert (validated.selection.num_users, alone.selection.num_users) == (USERS, 0)
    assert (alone.state.epoch, alone.state.best_epoch, alone.state.waited) == (7, 7, 0)
    assert not alone.curve
    assert [entry["loss"] for entry in alone.state.history] == [entry["loss"] for entry in validated.state.history]
    assert alone.state.best_weights.keys() == validated.model.state_dict().keys()
    for name, weight in validated.model.state_dict().items():
        assert torch.equal(alone.state.best_weights[name], weight)


@pytest.mark.usefixtures("in_process")
def test_a_model_fit_on_everything_is_the_one_whose_given_split_is_all_train(
    inputs: tuple[Store, Artifact, Artifact], tmp_path: Path
) -> None:
    store, dataset, vectors = inputs
    settings, models = make_settings(tmp_path, max_epochs=5), []
    rows = (tmp_path / "interactions.csv").read_text().splitlines()
    (tmp_path / "given.csv").write_text("\n".join(["user_id,item_id,split", *(f"{row},train" for row in rows[1:])]))
    for data in ({"split": "none"}, GIVEN):
        own = with_data(settings, **data)
        everything = prepare(store, own)
        assert everything.summary["train"] == sum(dataset.summary[split] for split in ("train", "valid", "test"))
        models.append(fit(store, own, everything, vectors))
    assert models[0].version != models[1].version
    for model in models:
        assert {key: model.summary[key] for key in ("best_epoch", "epochs")} == {"best_epoch": 5, "epochs": 5}
        assert not [key for key in model.summary if "recall" in key], "nothing was measured"
    weights = [model.read_tensors("model.safetensors") for model in models]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


@pytest.mark.parametrize("stop", [30, 33], ids=["after an epoch", "inside an epoch"])
def test_a_run_without_validation_goes_on_as_if_it_never_stopped(
    inputs: tuple[Store, Artifact, Artifact], tmp_path: Path, stop: int
) -> None:
    store, _, vectors = inputs
    settings = with_data(make_settings(tmp_path, max_epochs=5), split="none")
    everything = store, prepare(store, settings), vectors
    whole, first, second = (build(everything, settings) for _ in range(3))
    list(whole.run())
    assert whole.sampler.steps_per_epoch == 10
    for _ in first.run(lambda: first.state.step == stop):
        if first.state.step >= stop:
            break
    assert first.state.inside_epoch == (stop % 10 != 0)
    folder = tmp_path / "snapshot"
    folder.mkdir()
    first.snapshot().save(folder)
    second.restore(type(second.state).load(folder))
    list(second.run())
    assert (second.state.epoch, second.state.best_epoch) == (5, 5)
    for name, weight in whole.state.best_weights.items():
        assert torch.equal(weight, second.state.best_weights[name])


@pytest.mark.usefixtures("in_process")
def test_the_number_of_epochs_is_given_or_taken_from_an_evaluation(
    inputs: tuple[Store, Artifact, Artifact], tmp_path: Path
) -> None:
    store, dataset, vectors = inputs
    chosen = make_settings(tmp_path)
    model = fit(store, chosen, dataset, vectors)
    evaluation = evaluate_model(store, chosen, dataset, vectors, model)
    epochs = model.summary["best_epoch"]
    assert 0 < epochs <= model.summary["epochs"]

    without = chosen.train.model_dump(exclude_unset=True, exclude={"max_epochs"})

    def final(**train: Any) -> Settings:
        given = chosen.model_dump(exclude_unset=True) | {"train": without | train}
        return with_data(Settings.model_validate(given), split="none")

    everything = prepare(store, final())
    refusal = r"number of epochs must be given .*--train\.max-epochs N, or --train\.epochs-from NAME/VERSION"
    with pytest.raises(TrainingError, match=refusal):
        fit(store, final(), everything, vectors)
    asked = [
        final(max_epochs=epochs),
        final(epochs_from=f"board/{model.version}"),
        final(epochs_from=f"board/{evaluation.version}", max_epochs=500),
    ]
    made = [fit(store, settings, everything, vectors) for settings in asked]
    assert len({one.version for one in made}) == 1, "the same number of epochs is the same model"
    assert made[0].summary["epochs"] == epochs
    assert settle_epochs(store, final(epochs_from=f"board/{made[0].version}"), everything).train.max_epochs == epochs
    # 500 is the default, but given it is a decision; with a validation part the default is only the most there may be.
    assert settle_epochs(store, final(max_epochs=500), everything).train.max_epochs == 500
    assert settle_epochs(store, final(), dataset).train.max_epochs == 500


def test_epochs_from_names_a_trained_model(inputs: tuple[Store, Artifact, Artifact], tmp_path: Path) -> None:
    store, dataset, vectors = inputs
    with pytest.raises(
        EvaluationError, match=r"no such model \(got train\.epochs_from = board/1, expected NAME/VERSION"
    ):
        settle_epochs(store, make_settings(tmp_path, epochs_from="board/1"), dataset)
    untrained = make_settings(tmp_path, max_epochs=0)
    training = build(inputs, untrained)
    list(training.run())
    model = commit_model(store, untrained, dataset, vectors, training.state, run="here")
    asked = make_settings(tmp_path, epochs_from=f"board/{model.version}")
    with pytest.raises(TrainingError, match=r"was never trained, .*pass --train\.epochs-from of a trained model"):
        settle_epochs(store, asked, dataset)
    assert settle_epochs(store, untrained, dataset) is untrained, "nothing is trained, so no number is needed"


def test_an_epoch_cannot_be_picked_on_a_test_part_that_is_not_there(
    inputs: tuple[Store, Artifact, Artifact], tmp_path: Path
) -> None:
    store = inputs[0]
    settings = with_data(make_settings(tmp_path, select_on="test"), split="none")
    dataset = prepare(store, settings)
    with pytest.raises(TrainingError, match=r"train\.select_on = test .*\(got none\); pass --train\.select-on valid"):
        settle_epochs(store, settings, dataset)
    settle_epochs(store, with_data(make_settings(tmp_path, select_on="valid"), split="none"), dataset)


# ---------------------------------------------------------------- several datasets, and datasets never trained on


def write_mix(folder: Path) -> tuple[Settings, Store, Artifact, Artifact]:
    """Mix the checkerboard with a smaller one whose item ids are the same; one title vector for each of both."""
    settings = make_settings(folder)
    store, _, vectors = make_inputs(folder, settings)
    (folder / "few.csv").write_text("item_id,title\n" + "".join(f"i{i},few {i}\n" for i in range(20)))
    pairs = [(u, i) for u in range(10) for i in range(20) if u % 2 == i % 2 and (u + i) % 3]
    (folder / "few-pairs.csv").write_text("user_id,item_id\n" + "".join(f"u{u},i{i}\n" for u, i in pairs))
    few = {"path": str(folder), "items": "few.csv", "interactions": "few-pairs.csv"}
    board = settings.data.model_dump(exclude_unset=True)
    data = DataSettings(format="mix", domains={"board": board, "few": few})
    mixed = settings.model_copy(update={"name": "mixed", "data": data})
    both_IT = np.concatenate([load_vectors(vectors), load_vectors(vectors)[:20]])
    draft = store.draft("vectors", "mixed", "by-hand")
    draft.write_table("items.parquet", pa.table({"item_id": map(str, range(80)), "shard": [0] * 80, "row": range(80)}))
    draft.write_table("vectors-00000.parquet", pa.table({"vector": vector_column(both_IT)}))
    made = draft.commit(settings={}, inputs={}, summary={"items": 80, "width": WIDTH, "fingerprint": {}})
    return mixed, store, prepare(store, mixed), made


def test_a_mix_is_ranked_dataset_by_dataset(tmp_path: Path) -> None:
    settings, _, dataset, vectors = write_mix(tmp_path)
    training, data = Training.build(settings, dataset, vectors), load_dataset(dataset)
    for _ in range(20):
        training.step()
    representations = training.scored()
    metrics, test = measure(data, representations, settings.evaluate)
    own = {}
    for domain in data.domains:
        users, items = slice(domain.first_user, domain.end_user), slice(domain.first_item, domain.end_item)
        sides = representations[0][users], representations[1][items]
        own[domain.name] = measure(data.of(domain), sides, settings.evaluate)
        assert metrics["domains"][domain.name] == own[domain.name][0]
    recalls = torch.cat([found.values["recall@5"] for _, found in own.values()])
    assert torch.equal(test.values["recall@5"], recalls)
    assert metrics["test"]["recall@5"] == pytest.approx(float(recalls.mean()), abs=1e-12)
    assert training.selection.score(representations) == pytest.approx(metrics["valid"]["recall@5"], abs=1e-12)
    # Items of the other dataset would fill some of the lists otherwise.
    truth, seen = truth_and_seen(data.splits, "test", settings.evaluate, count=data.num_users)
    unmasked = evaluate(representations, truth=truth, seen=seen, ks=(5,)).means()["recall@5"]
    assert unmasked < metrics["test"]["recall@5"]


def test_a_model_ranks_a_dataset_it_was_never_trained_on(
    inputs: tuple[Store, Artifact, Artifact], tmp_path: Path
) -> None:
    store, dataset, vectors = inputs
    mixed, _, other, other_vectors = write_mix(tmp_path / "mix")
    settings = make_settings(tmp_path)

    def committed(settings: Settings, weights: Any, fingerprint: dict[str, int]) -> Artifact:
        draft = store.draft("models", "mixed", model_version(settings, other, other_vectors) + str(len(fingerprint)))
        draft.write_tensors("model.safetensors", weights)
        draft.write_json("history.json", training.state.history)
        return draft.commit(
            settings=settings.model_dump(mode="json", exclude={"recommend", "ray", "storage"}),
            inputs={"dataset": other, "vectors": other_vectors},
            summary={"fingerprint": fingerprint, "valid_recall@5": training.state.best_score},
        )

    training = Training.build(mixed, other, other_vectors)
    list(training.run())
    model = committed(mixed, training.state.best_weights, {})
    named = settings.model_copy(
        update={"evaluate": settings.evaluate.model_copy(update={"model": f"mixed/{model.version}"})}
    )
    assert find_model(store, named).uri == model.uri
    evaluation = evaluate_model(store, named, dataset, vectors, model)
    metrics = evaluation.read_json("metrics.json")
    assert evaluation.summary["recall@5"] > 1.3 * metrics["baselines"]["most-popular"]["recall@5"]
    with pytest.raises(EvaluationError, match=r"vectors of another encoder.*set the encoder settings"):
        evaluate_model(store, named, dataset, vectors, committed(mixed, training.state.best_weights, {"width": 3}))
    ids = mixed.model_copy(update={"model": mixed.model.model_copy(update={"kind": "id"})})
    with pytest.raises(EvaluationError, match=r"model.kind = id, which knows only .*zero-shot needs"):
        evaluate_model(store, named, dataset, vectors, committed(ids, training.state.best_weights, {}))
    nowhere = named.evaluate.model_copy(update={"model": "mixed"})
    with pytest.raises(EvaluationError, match=r"no such model .got evaluate.model = mixed, expected NAME/VERSION"):
        find_model(store, named.model_copy(update={"evaluate": nowhere}))


@pytest.fixture(scope="module")
def undisturbed(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """One run of one worker through Ray Train, start to end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    settings = make_settings(folder, max_epochs=30, num_workers=1)
    store, dataset, vectors = make_inputs(folder, settings)
    return settings, store, dataset, vectors, fit(store, settings, dataset, vectors)


def test_the_model_of_a_run_holds_its_best_epoch(undisturbed: tuple[Any, ...]) -> None:
    settings, store, dataset, vectors, model = undisturbed
    history = model.read_json("history.json")
    scores = [entry["valid_recall@5"] for entry in history if "valid_recall@5" in entry]
    assert model.summary["valid_recall@5"] == max(scores)
    evaluation = evaluate_model(store, settings, dataset, vectors, model)
    assert evaluation.read_json("metrics.json")["valid"]["recall@5"] == pytest.approx(max(scores), abs=1e-12)
    assert evaluation.read_table("per_user.parquet").num_rows == USERS
    page = evaluation.read_bytes("report.html").decode()
    assert page.count("<svg") == 5, "loss, validation, activity, popularity, map"
    assert "title 1" in page
    assert fit(store, settings, dataset, vectors).manifest == model.manifest, "the same inputs find the model"


def test_a_run_name_of_other_settings_is_refused(undisturbed: tuple[Any, ...]) -> None:
    settings, store, dataset, vectors, model = undisturbed
    changed = {"run": model.summary["run"], "temperature": 0.3}
    other = settings.model_copy(update={"train": settings.train.model_copy(update=changed)})
    with pytest.raises(TrainingError, match=r"train\.temperature was 0\.15 and is 0\.3.*--train\.run"):
        fit(store, other, dataset, vectors)


def test_a_non_finite_loss_stops_the_run_with_the_reason(undisturbed: tuple[Any, ...]) -> None:
    settings, store, dataset, vectors, _ = undisturbed
    changed = settings.train.model_copy(update={"learning_rate": 1e30, "loss": "bpr", "num_negatives": 1})
    with pytest.raises(TrainingError, match=r"loss is (nan|inf).*weights are unchanged.*learning-rate"):
        fit(store, settings.model_copy(update={"train": changed}), dataset, vectors)


def test_a_run_killed_with_two_workers_ends_with_one_as_if_undisturbed(
    undisturbed: tuple[Any, ...], tmp_path: Path
) -> None:
    settings, _, _, _, expected = undisturbed
    train = settings.train.model_copy(update={"num_workers": 2, "run": "killed"})
    job = settings.model_copy(update={"storage": str(tmp_path), "train": train})
    job = job.model_copy(update={"data": settings.data.model_copy(update={"path": str(tmp_path)})})
    inputs = make_inputs(tmp_path, job)
    _kill_after_epoch(2, job, inputs)
    assert inputs[0].find("models", "board", expected.version) is None, "the kill came before the end"
    alone = job.model_copy(update={"train": train.model_copy(update={"num_workers": 1})})
    model = fit(inputs[0], alone, *inputs[1:])
    workers = [entry["workers"] for entry in model.read_json("history.json")]
    assert workers == sorted(workers, reverse=True)
    assert (workers[1], workers[-1]) == (2, 1)
    history = [(entry["epoch"], entry["loss"]) for entry in model.read_json("history.json")]
    wanted = [(entry["epoch"], entry["loss"]) for entry in expected.read_json("history.json")]
    assert [epoch for epoch, _ in history] == [epoch for epoch, _ in wanted]
    # Two workers add in another order than one; Adam carries that on for 30 epochs.
    assert [loss for _, loss in history] == pytest.approx([loss for _, loss in wanted], abs=1e-4)


def test_actors_ask_the_ray_they_run_on_whatever_others_the_machine_has(ray_local: None) -> None:
    """As Train's own do, to see whether their controller lives."""
    from ray.util.state import get_actor

    @ray.remote(num_cpus=0)
    class Asking:
        def state(self) -> str:
            return str(get_actor(ray.get_runtime_context().get_actor_id()).state)

    assert ray.get(Asking.remote().state.remote()) == "ALIVE"  # type: ignore[attr-defined]
    assert "RAY_API_SERVER_ADDRESS" not in os.environ, "a later job would be sent there"


def _kill_after_epoch(epoch: int, settings: Settings, inputs: tuple[Any, ...]) -> None:
    """Train in a process that is killed when its run has recorded the checkpoint of an epoch."""
    script = (
        "import functools, os, signal, sys\n"
        "import ray.train\n"
        "from alpharec import train\n"
        "from alpharec.artifacts import Store\n"
        "from alpharec.config import Settings\n"
        "class Kill(ray.train.UserCallback):\n"
        "    driver, epoch = os.getpid(), int(sys.argv[3])\n"
        "    def after_report(self, run_context, metrics, checkpoint):\n"
        "        if metrics[0]['epoch'] == self.epoch: os.kill(self.driver, signal.SIGKILL)\n"
        "train.run_workers = functools.partial(train.run_workers, callbacks=[Kill()])\n"
        "settings = Settings.model_validate_json(sys.argv[1]); store = Store(settings.storage)\n"
        "dataset, vectors = store.find('datasets', 'board', sys.argv[2]), store.find('vectors', 'board', 'by-hand')\n"
        "train.fit(store, settings, dataset, vectors)\n"
    )
    others = _of_ray_train()
    process = subprocess.run(
        [sys.executable, "-c", script, settings.model_dump_json(), inputs[1].version, str(epoch)],
        env=os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=KILL_TIMEOUT_S,
    )
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    limit = time.monotonic() + KILL_TIMEOUT_S
    while _of_ray_train() - others:  # they would write on into the folder that the next run reads
        assert time.monotonic() < limit, "Ray ends the actors of a driver that is gone"
        time.sleep(0.02)


def _of_ray_train() -> set[psutil.Process]:
    """Return the controllers and workers on this process's Ray."""
    family = psutil.Process().children(recursive=True)
    return {each for each in family if any(name in title(each) for name in ("TrainController", "RayTrainWorker"))}


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_a_user_who_has_everything_is_named_before_a_worker_starts(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{item},thing {item}\n" for item in range(3)))
    rows = ["all,i0,train", "all,i1,train", "all,i2,train", "some,i0,train", "some,i1,valid", "some,i2,test"]
    (tmp_path / "interactions.csv").write_text("\n".join(["user_id,item_id,split", *rows]) + "\n")
    settings = make_settings(tmp_path / "store")
    given = settings.data.model_copy(update={"path": str(tmp_path), "split": "given", "split_column": "split"})
    dataset = prepare(Store(settings.storage), settings.model_copy(update={"data": given}))
    with pytest.raises(TrainingError, match=r"1 users have every item in train.*\(got user all\); leave them out"):
        check_negatives(dataset)
