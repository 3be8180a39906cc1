"""Title vectors propagated ahead of training: the artifact, its rows, and a model trained on them by a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import alpharec.propagate
from alpharec.artifacts import Artifact, Store
from alpharec.config import Settings
from alpharec.data.dataset import load_dataset
from alpharec.data.prepare import prepare
from alpharec.evaluation import evaluate_model
from alpharec.graph import layer_weights
from alpharec.model import TextFeatures
from alpharec.networks import build_graph
from alpharec.propagate import propagate, read_rows
from alpharec.train import Training, fit, model_version
from alpharec.vectors import load_vectors, vector_column

USERS, ITEMS, WIDTH = 30, 40, 100  # two blocks of columns, the second of 36


def write_inputs(folder: Path) -> tuple[Store, Settings, Artifact, Artifact]:
    random = np.random.default_rng(0)
    (folder / "items.csv").write_text("item_id,title\n" + "".join(f"i{i},title {i}\n" for i in range(ITEMS)))
    pairs = [(u, i) for u in range(USERS) for i in range(ITEMS) if u % 2 == i % 2 and random.random() < 0.7]
    rows = "".join(f"u{user},i{item}\n" for user, item in pairs)
    (folder / "interactions.csv").write_text("user_id,item_id\n" + rows)
    settings = Settings.model_validate(
        {
            "name": "first",
            "preset": "propagate-first",
            "storage": str(folder),
            "data": {"path": str(folder)},
            "model": {"hidden_width": 16, "width": 8},
            "train": {"max_epochs": 6, "evaluate_every": 2, "batch_size": 32, "num_negatives": 4},
            "evaluate": {"ks": [5], "select_k": 5},
        }
    )
    store = Store(str(folder))
    draft = store.draft("vectors", "first", "by-hand")
    vectors = random.normal(size=(ITEMS, WIDTH)).astype(np.float16)
    ids = [f"i{i}" for i in range(ITEMS)]
    draft.write_table("items.parquet", pa.table({"item_id": ids, "shard": [0] * ITEMS, "row": range(ITEMS)}))
    draft.write_table("vectors-00000.parquet", pa.table({"vector": vector_column(vectors)}))
    summary = {"items": ITEMS, "width": WIDTH, "fingerprint": {}}
    return store, settings, prepare(store, settings), draft.commit(settings={}, inputs={}, summary=summary)


Inputs = tuple[Store, Settings, Artifact, Artifact]


@pytest.fixture(scope="module")
def inputs(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return write_inputs(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def propagated(inputs: Inputs) -> Artifact:
    return propagate(*inputs)


def test_the_artifact_holds_what_propagating_in_memory_gives(inputs: Inputs, propagated: Artifact) -> None:
    _, _, dataset, vectors = inputs
    item_IT = torch.from_numpy(load_vectors(vectors)).float()
    expected = TextFeatures.build(item_IT, build_graph(load_dataset(dataset)), weights=layer_weights(2))
    assert torch.equal(torch.from_numpy(read_rows(propagated, "items", 0, ITEMS)).float(), expected.item_ST)
    assert torch.equal(torch.from_numpy(read_rows(propagated, "users", 0, USERS)).float(), expected.user_UT)
    assert propagate(*inputs).manifest == propagated.manifest, "the same inputs find it"


@pytest.mark.usefixtures("in_process")
def test_centred_title_vectors_are_each_less_the_mean_of_their_own_dataset(inputs: Inputs) -> None:
    store, settings, _, vectors = inputs
    domain = settings.data.model_dump(exclude_unset=True)
    data = {"format": "mix", "domains": {"one": domain, "other": domain}}
    mixed = Settings.model_validate(
        settings.model_dump(exclude_unset=True) | {"data": data, "name": "mixed", "model": {"centred": True}}
    )
    dataset, half = prepare(store, mixed), load_vectors(vectors)
    twice = np.concatenate([half, half[::-1] * 2 + 1])
    draft = store.draft("vectors", "mixed", "by-hand")
    order = np.random.default_rng(1).permutation(2 * ITEMS)  # rows of a shard lie in any order
    shards = [-1, *[0] * (2 * ITEMS - 1)]  # the first item is in quarantine
    draft.write_table("items.parquet", pa.table({"shard": shards, "row": np.argsort(order)}))
    draft.write_table("vectors-00000.parquet", pa.table({"vector": vector_column(twice[order])}))
    made = draft.commit(settings={}, inputs={}, summary={"items": 2 * ITEMS, "width": WIDTH, "fingerprint": {}})
    found = propagate(store, mixed, dataset, made)
    item_IT, weights = torch.from_numpy(load_vectors(made)).float(), layer_weights(2)
    assert not item_IT[0].any()
    graph = build_graph(load_dataset(dataset))
    expected = TextFeatures.build(item_IT, graph, weights=weights, centred=True)
    for side, rows_XT in (("items", expected.item_ST), ("users", expected.user_UT)):
        rows = torch.from_numpy(read_rows(found, side, 0, len(rows_XT))).float()
        # Halves, whose last bit a float32 sum decides.
        torch.testing.assert_close(rows, rows_XT, rtol=2**-10, atol=1e-6)
    plain = mixed.model_copy(update={"model": mixed.model.model_copy(update={"centred": False})})
    assert propagate(store, plain, dataset, made).version != found.version


@pytest.mark.parametrize(("first", "last"), [(0, 40), (0, 7), (6, 8), (7, 14), (39, 40), (20, 20)])
def test_rows_are_read_alone(inputs: Inputs, monkeypatch: pytest.MonkeyPatch, first: int, last: int) -> None:
    monkeypatch.setattr(alpharec.propagate, "ROWS", 7)
    draft = inputs[0].draft("propagated", "rows", f"{first}-{last}")
    whole = np.arange(40 * 5, dtype=np.float16).reshape(40, 5)
    for block, columns in enumerate((slice(0, 3), slice(3, 5))):
        table = pa.table({"vector": vector_column(np.ascontiguousarray(whole[:, columns]))})
        with draft.stream_table(f"items-{block:04d}.parquet", table.schema) as write:
            for start in range(0, 40, 7):
                write(table.slice(start, 7))
    artifact = draft.commit(settings={}, inputs={}, summary={"width": 5})
    assert np.array_equal(read_rows(artifact, "items", first, last), whole[first:last])


@pytest.mark.parametrize(("num_negatives", "whole"), [(4, False), (1, True)])
def test_all_items_are_at_hand_where_a_batch_draws_fewer_than_there_are(
    inputs: Inputs, propagated: Artifact, num_negatives: int, whole: bool
) -> None:
    train = inputs[1].train.model_copy(update={"num_negatives": num_negatives, "batch_size": 12})
    training = Training.build(inputs[1].model_copy(update={"train": train}), inputs[2], propagated)
    assert training.features is not None
    assert training.features.whole == whole, "12 x 2 candidates are fewer than 40 items, 12 x 5 are more"


@pytest.mark.usefixtures("in_process")
def test_a_run_trains_evaluates_and_goes_by_its_own_order(inputs: Inputs) -> None:
    store, settings, dataset, vectors = inputs
    model = fit(store, settings, dataset, vectors)
    evaluation = evaluate_model(store, settings, dataset, vectors, model)
    # Trained on rows of the artifact, evaluated from the title vectors: the same numbers.
    assert evaluation.read_json("metrics.json")["valid"]["recall@5"] == pytest.approx(
        model.summary["valid_recall@5"], abs=1e-12
    )
    other = settings.model_copy(update={"model": settings.model.model_copy(update={"order": "project-first"})})
    assert model_version(other, dataset, vectors) != model.version
