"""Publishing and recommending, end to end on a checkerboard: even users like even items, odd users odd ones.

Every list is compared with a dense computation that shares no code with the ranking or the propagation of the package.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import in_this_process

from alpharec.artifacts import Artifact, ArtifactError, Store
from alpharec.config import Settings
from alpharec.data.dataset import CatalogError, Dataset, Pairs, load_dataset
from alpharec.data.formats import open_table
from alpharec.data.prepare import prepare
from alpharec.data.requests import read_user_lists
from alpharec.embed import embed
from alpharec.encoders import make_encoder
from alpharec.evaluation import evaluate_model, scored_by
from alpharec.graph import layer_weights
from alpharec.model import Objective, mean_of_titles
from alpharec.networks import build_graph, build_model
from alpharec.ranking import Lists
from alpharec.recommend import (
    RecommendError,
    Source,
    item_context,
    publish,
    recommend,
    represent_items,
    represent_trained,
    represent_users,
)
from alpharec.train import fit
from alpharec.vectors import load_vectors

NUM_USERS, NUM_ITEMS, K = 24, 20, 5
COLORS = ("red", "blue")

Matrix = npt.NDArray[np.float64]


def write_shop(folder: Path) -> None:
    """Item i is red if even, blue if odd; users have 8 of the 9 of their colour but one; ``late`` has none in train."""
    items = [f"i{item},{COLORS[item % 2]} thing number{item}" for item in range(NUM_ITEMS)]
    rows = []
    for user in range(NUM_USERS):
        liked = [item for item in range(NUM_ITEMS - 2) if item % 2 == user % 2]
        del liked[user // 2 % len(liked)]
        splits = ["train"] * 5 + ["valid"] + ["test"] * 2
        rows += [f"u{user},i{item},{split}" for item, split in zip(liked, splits, strict=True)]
    rows += [f"late,i{NUM_ITEMS - 2},test", "late,i0,valid"]  # a user and an item without a train interaction
    (folder / "items.csv").write_text("\n".join(["item_id,title", *items]) + "\n")
    (folder / "interactions.csv").write_text("\n".join(["user_id,item_id,split", *rows]) + "\n")


def shop_settings(folder: Path, **sections: Any) -> Settings:
    given: dict[str, Any] = {
        "name": "shop",
        "storage": str(folder / "store"),
        "data": {"path": str(folder), "split": "given", "split_column": "split"},
        "encoder": {"backend": "hash", "hash_width": 32},
        "model": {"hidden_width": 16, "width": 8},
        "train": {"max_epochs": 4, "evaluate_every": 2, "batch_size": 64, "num_negatives": 4, "learning_rate": 0.01},
        "recommend": {"k": K, "block_size": 4},
    }
    return Settings.model_validate(given | sections)


@dataclasses.dataclass(frozen=True)
class Shop:
    """A trained and published shop."""

    folder: Path
    store: Store
    settings: Settings
    dataset: Artifact
    vectors: Artifact
    model: Artifact
    evaluation: Artifact
    bundle: Artifact

    def asking(self, **recommend: Any) -> Settings:
        """Return the settings with other recommend settings."""
        changed = self.settings.recommend.model_copy(update=recommend)
        return self.settings.model_copy(update={"recommend": changed})


def write_evaluation(store: Store, model: Artifact, recall: float = 0.5) -> Artifact:
    draft = store.draft("evaluations", "shop", f"{model.version[:8]}-{recall}")
    metrics = {"test": {"recall@5": recall}, "valid": {"recall@5": 0.6}}
    draft.write_json("metrics.json", metrics | {"baselines": {"most-popular": {"recall@5": 0.25}}})
    inputs = {role: model.manifest["inputs"][role] for role in ("dataset", "vectors")} | {"model": model}
    return draft.commit(settings={}, inputs=inputs, summary=metrics["test"])


@pytest.fixture(scope="module")
def shop(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("shop")
    write_shop(folder)
    settings = shop_settings(folder)
    store = Store(settings.storage)
    dataset = prepare(store, settings)
    vectors = embed(store, settings, dataset)
    with in_this_process(folder):
        model = fit(store, settings, dataset, vectors)
    evaluation = write_evaluation(store, model)
    bundle = publish(store, settings, dataset, vectors, model, evaluation)
    return Shop(folder, store, settings, dataset, vectors, model, evaluation, bundle)


# ---------------------------------------------------------------- the dense oracle


def matrix(artifact: Artifact, file: str, column: str) -> Matrix:
    return np.array(artifact.read_table(file)[column].to_pylist(), np.float64)


def unit(x: Matrix) -> Matrix:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def project(artifact: Artifact, file: str, text: Matrix) -> Matrix:
    weight = {name: tensor.double().numpy() for name, tensor in artifact.read_tensors(file).items()}
    hidden = text @ weight["first.weight"].T + weight["first.bias"]
    return np.where(hidden > 0, hidden, 0.01 * hidden) @ weight["last.weight"].T + weight["last.bias"]


def best(ids: list[str], scores: Matrix, k: int, without: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    order = sorted(range(len(ids)), key=lambda item: (-scores[item], item))
    return [ids[item] for item in order if ids[item] not in without][:k]


def histories(dataset: Dataset, *splits: str) -> list[list[int]]:
    lists: list[list[int]] = [[] for _ in range(dataset.num_users)]
    for split in splits or ("train", "valid", "test"):
        pairs: Pairs = getattr(dataset, split)
        for user, item in zip(pairs.users.tolist(), pairs.items.tolist(), strict=True):
            lists[user].append(item)
    return lists


def read_lists(artifact: Artifact) -> dict[str, dict[str, Any]]:
    parts = [artifact.read_table(file).to_pylist() for file in sorted(artifact.files)]
    return {row["user_id"]: row for part in parts for row in part}


def table_file(folder: Path, name: str, *lines: str) -> str:
    (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder / name)


def objects(store: Store) -> set[str]:
    return set(store.fs.find(store.path))


# ---------------------------------------------------------------- publish


def test_bundle_holds_the_model_the_data_and_where_they_came_from(shop: Shop) -> None:
    dataset = load_dataset(shop.dataset)
    user_UD, item_ID = scored_by(shop.model, dataset, torch.from_numpy(load_vectors(shop.vectors)).float())
    np.testing.assert_array_equal(matrix(shop.bundle, "users.parquet", "representation"), user_UD.double().numpy())
    np.testing.assert_array_equal(matrix(shop.bundle, "items.parquet", "representation"), item_ID.double().numpy())
    seen = shop.bundle.read_table("seen.parquet")
    expected = [(user, item) for user, items in enumerate(histories(dataset)) for item in sorted(items)]
    assert list(zip(seen["user"].to_pylist(), seen["item"].to_pylist(), strict=True)) == expected
    assert shop.bundle.read_table("items.parquet")["title"].to_pylist() == dataset.titles.to_pylist()
    assert shop.bundle.read_json("settings.json") == shop.model.settings
    assert shop.bundle.read_json("metrics.json") == shop.evaluation.read_json("metrics.json")
    assert shop.bundle.manifest["inputs"] == {
        "dataset": shop.dataset.uri,
        "vectors": shop.vectors.uri,
        "model": shop.model.uri,
        "evaluation": shop.evaluation.uri,
    }


def test_model_card_states_counts_metrics_limits_and_a_command(shop: Shop) -> None:
    card = shop.bundle.read_bytes("MODEL_CARD.md").decode()
    num_train = 5 * NUM_USERS
    assert f"{NUM_USERS + 1} users, {NUM_ITEMS} items; interactions: {num_train} train" in card
    assert "| recall@5 | 0.5000 | 0.2500 |" in card
    assert "alpharec-hash" in card
    assert "- 1 users have no train interaction" in card
    assert f"--name shop --recommend.bundle {shop.bundle.version}" in card


def test_publishing_again_writes_nothing_but_moves_latest_back(shop: Shop) -> None:
    other = publish(
        shop.store, shop.settings, shop.dataset, shop.vectors, shop.model, write_evaluation(shop.store, shop.model, 0.7)
    )
    assert other.version != shop.bundle.version
    assert shop.store.latest("bundles", "shop").version == other.version
    before = objects(shop.store)
    again = publish(shop.store, shop.settings, shop.dataset, shop.vectors, shop.model, shop.evaluation)
    assert again.version == shop.bundle.version
    assert shop.store.latest("bundles", "shop").version == shop.bundle.version
    assert {path for path in objects(shop.store) - before if not path.endswith("LATEST.lock")} == set()


def test_artifacts_of_two_runs_are_not_published_together(shop: Shop) -> None:
    other = dataclasses.replace(shop.vectors, manifest=shop.vectors.manifest | {"version": "other"})
    with pytest.raises(RecommendError, match=r"was made from another vectors .*publish the artifacts of one run"):
        publish(shop.store, shop.settings, shop.dataset, other, shop.model, shop.evaluation)


def test_a_mix_is_published_dataset_by_dataset(shop: Shop) -> None:
    domain = {"name": "a", "first_user": 0, "end_user": 1, "first_item": 0, "end_item": 1}
    summary = shop.dataset.summary | {"domains": [domain, domain | {"name": "b"}]}
    mix = dataclasses.replace(shop.dataset, manifest=shop.dataset.manifest | {"summary": summary})
    with pytest.raises(RecommendError, match=r"is a mix of a, b, .*--evaluate.model shop/"):
        publish(shop.store, shop.settings, mix, shop.vectors, shop.model, shop.evaluation)


# ---------------------------------------------------------------- lists for the bundle's users


@pytest.fixture(scope="module")
def made(shop: Shop) -> Artifact:
    return recommend(shop.store, shop.settings)


def dense_scores(bundle: Artifact) -> Matrix:
    return matrix(bundle, "users.parquet", "representation") @ matrix(bundle, "items.parquet", "representation").T


def test_lists_are_those_of_a_dense_computation_without_seen_items(shop: Shop, made: Artifact) -> None:
    lists, dataset, scores = read_lists(made), load_dataset(shop.dataset), dense_scores(shop.bundle)
    ids = dataset.item_ids.to_pylist()
    assert list(lists) == dataset.user_ids.to_pylist()
    for user, (user_id, seen) in enumerate(zip(lists, histories(dataset), strict=True)):
        assert lists[user_id]["item_ids"] == best(ids, scores[user], K, {ids[item] for item in seen})
        expected = [scores[user][ids.index(item)] for item in lists[user_id]["item_ids"]]
        np.testing.assert_allclose(lists[user_id]["scores"], expected, atol=1e-6)  # float32 against float64


def test_training_was_learning_items_of_the_own_color_lead(made: Artifact) -> None:
    lists = read_lists(made)
    right = [int(lists[f"u{user}"]["item_ids"][0][1:]) % 2 == user % 2 for user in range(NUM_USERS)]
    assert np.mean(right) > 0.9


def test_second_call_does_nothing_and_other_parts_and_actors_give_the_same_lists(shop: Shop, made: Artifact) -> None:
    before = objects(shop.store)
    assert recommend(shop.store, shop.settings).manifest == made.manifest
    assert objects(shop.store) == before
    elsewhere = Store(str(shop.folder / "elsewhere"))
    shop.store.fs.copy(f"{shop.store.path}/bundles", f"{elsewhere.path}/bundles", recursive=True)
    both = recommend(elsewhere, shop.asking(num_workers=2, num_cpus=1, block_size=3))
    assert both.version == made.version
    assert len(both.files) > len(made.files) > 1
    assert read_lists(both) == read_lists(made)


def test_seen_items_are_ranked_where_asked(shop: Shop) -> None:
    ids, scores = load_dataset(shop.dataset).item_ids.to_pylist(), dense_scores(shop.bundle)
    chosen = shop.asking(include_seen=True, k=NUM_ITEMS).recommend
    lists = Source.load(shop.bundle, [shop.bundle]).lists(0, NUM_USERS + 1, chosen)["item_ids"].to_pylist()
    assert lists == [best(ids, row, NUM_ITEMS) for row in scores]


def test_lists_are_shorter_where_candidates_run_out(shop: Shop) -> None:
    table = Source.load(shop.bundle, [shop.bundle]).lists(3, NUM_USERS + 1, shop.asking(k=100).recommend)
    expected = [NUM_ITEMS - len(seen) for seen in histories(load_dataset(shop.dataset))[3:]]
    assert [len(items) for items in table["item_ids"].to_pylist()] == expected
    assert [len(scores) for scores in table["scores"].to_pylist()] == expected
    assert (table.schema.field("item_ids").type, table.schema.field("scores").type) == (
        pa.list_(pa.string()),
        pa.list_(pa.float32()),
    )


def test_a_bundle_is_found_by_version_or_by_latest(shop: Shop, made: Artifact) -> None:
    by_version = recommend(shop.store, shop.asking(bundle=shop.bundle.version))
    assert by_version.version == made.version
    assert by_version.manifest["inputs"] == {"bundle": shop.bundle.uri}
    with pytest.raises(RecommendError, match=r"no such bundle \(got recommend.bundle = nowhere\); leave"):
        recommend(shop.store, shop.asking(bundle="nowhere"))
    with pytest.raises(ArtifactError, match="no published version"):
        recommend(shop.store, shop.settings.model_copy(update={"name": "another"}))


def test_a_damaged_bundle_is_refused_by_name(shop: Shop) -> None:
    broken = Store(str(shop.folder / "broken"))
    shop.store.fs.copy(f"{shop.store.path}/bundles", f"{broken.path}/bundles", recursive=True)
    Path(dataclasses.replace(shop.bundle, store=broken).location("users.parquet")).write_bytes(b"no Parquet")
    with pytest.raises(ArtifactError, match=r"users.parquet: damaged"):
        recommend(broken, shop.asking(k=2))


# ---------------------------------------------------------------- new users


@pytest.mark.parametrize(
    ("num_layers", "order"),
    [
        (layers, order)
        for layers in range(4)
        for order in ("project-first", "propagate-first")
        if layers or "j" in order
    ],
)
@pytest.mark.parametrize("loss", ["infonce", "bpr"])
@pytest.mark.parametrize("centred", [False, True])
def test_a_trained_user_given_by_its_train_items_gets_its_own_representation(
    shop: Shop, num_layers: int, order: str, loss: str, centred: bool
) -> None:
    """Two routes: propagation over the graph, and projector plus the items' context."""
    own = {} if num_layers < 3 else {"layer_0_weight": 0.6, "projector": "residual"}
    settings = Settings.model_validate(
        {
            "model": {"num_layers": num_layers, "order": order, "hidden_width": 16, "width": 8, "centred": centred}
            | own,
            "train": {"loss": loss, "num_negatives": 1},
            "seed": 7,
        }
    )
    network = build_model(settings, 32)
    objective = Objective(loss)
    dataset, item_IT = load_dataset(shop.dataset), torch.from_numpy(load_vectors(shop.vectors))
    user_UD, _, context_ID = represent_trained(dataset, item_IT.float(), network, objective)
    pairs = [torch.from_numpy(part) for part in (dataset.train.users, dataset.train.items)]
    lists = Lists.from_pairs(*pairs, NUM_USERS)  # all but the user without train items
    mean_T = mean_of_titles(item_IT.float())
    found = objective.scale(represent_users(network, item_IT, context_ID, lists, mean_T, block_size=7))
    # Float32 sums in another order; with propagate-first vectors of half precision, 2^-11, whose dot products are 0.1.
    tolerance = 1e-5 if order == "project-first" else 1e-3
    torch.testing.assert_close(found, user_UD[:NUM_USERS], atol=tolerance, rtol=0)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("kind", "loss", "epochs", "line"),
    [
        ("id", "bc", 40, "ID embeddings, no titles"),
        ("multvae", "multinomial", 40, "autoencoder"),
        ("ease", "infonce", 0, "EASE, no titles: lambda 500"),
        ("gf-cf", "infonce", 0, "GF-CF, no titles: rank 256, alpha 0.3"),
    ],
)
def test_models_without_titles_are_published_and_ranked_and_refuse_newcomers(
    shop: Shop, kind: str, loss: str, epochs: int, line: str
) -> None:
    settings = shop.settings.model_copy(
        update={"name": kind, "model": shop.settings.model.model_copy(update={"kind": kind})}
    )
    train = {"max_epochs": epochs, "evaluate_every": 40, "learning_rate": 0.05, "loss": loss}
    settings = settings.model_copy(update={"train": settings.train.model_copy(update=train)})
    model = fit(shop.store, settings, shop.dataset, shop.vectors)
    evaluation = evaluate_model(shop.store, settings, shop.dataset, shop.vectors, model)
    assert evaluation.summary["recall@20"] == 1.0, "all 20 items are ranked"
    publish(shop.store, settings, shop.dataset, shop.vectors, model, evaluation)
    bundle = shop.store.latest("bundles", kind)
    assert line in bundle.read_bytes("MODEL_CARD.md").decode()
    lists = read_lists(recommend(shop.store, settings))
    right = [int(lists[f"u{user}"]["item_ids"][0][1:]) % 2 == user % 2 for user in range(NUM_USERS)]
    assert np.mean(right) > 0.7, "half is chance; items that nobody has in train keep their first vectors"
    users = table_file(shop.folder, "someone.csv", "user_id,item_ids", "new,i1 i3")
    asking = settings.model_copy(update={"recommend": settings.recommend.model_copy(update={"users": users})})
    with pytest.raises(
        RecommendError, match=r"another model.kind than alpharec.*got recommend.users.*model.kind = alpharec"
    ):
        recommend(shop.store, asking)


@pytest.mark.usefixtures("in_process")
def test_propagated_titles_are_published_untrained_and_serve_newcomers(shop: Shop) -> None:
    sections = {"model": {"projector": "identity"}, "train": {"max_epochs": 0}}
    settings = shop_settings(shop.folder, name="titles", **sections)
    model = fit(shop.store, settings, shop.dataset, shop.vectors)
    assert (model.summary["epochs"], model.summary["best_epoch"]) == (0, 0)
    assert model.summary["valid_recall@20"] == 1.0, "all 20 items are ranked"
    evaluation = evaluate_model(shop.store, settings, shop.dataset, shop.vectors, model)
    assert "first two principal components" in evaluation.read_bytes("report.html").decode()
    bundle = publish(shop.store, settings, shop.dataset, shop.vectors, model, evaluation)
    assert "nothing trained: 2 layers" in bundle.read_bytes("MODEL_CARD.md").decode()
    users = table_file(shop.folder, "someone.csv", "user_id,item_ids", "new,i1 i3 i5")
    asking = settings.model_copy(update={"recommend": settings.recommend.model_copy(update={"users": users})})
    items = read_lists(recommend(shop.store, asking))["new"]["item_ids"]
    graph, item_IT = build_graph(load_dataset(shop.dataset)), torch.from_numpy(load_vectors(shop.vectors)).float()
    first_UD, first_ID = graph.mean_of_items(item_IT), item_IT
    context_ID = item_context(graph, first_UD, first_ID, layer_weights(2))
    user_D = item_IT[[1, 3, 5]].mean(0) / 3 + context_ID[[1, 3, 5]].sum(0) / 3**0.5
    score_I = torch.nn.functional.normalize(graph.propagate(first_UD, first_ID, layer_weights(2))[1], dim=1) @ user_D
    score_I[[1, 3, 5]] = -torch.inf
    assert sorted(items) == sorted(f"i{item}" for item in score_I.topk(K).indices.tolist())


def test_context_is_the_hand_computed_sum_of_layers() -> None:
    """One user with items 0 and 1 of three: e_u = 6, e_i = 1, 2, 9; D^-1/2 A D^-1/2 sends x to x / sqrt(2)."""
    pairs = Pairs(np.array([0, 0]), np.array([0, 1]))
    nothing = Pairs(np.array([], np.int64), np.array([], np.int64))
    dataset = Dataset(pa.array(["a", "b", "c"]), pa.array(["A", "B", "C"]), pa.array(["u"]), pairs, nothing, nothing)
    first_UD, first_ID = torch.tensor([[6.0]]), torch.tensor([[1.0], [2.0], [9.0]])
    context_ID = item_context(build_graph(dataset), first_UD, first_ID, layer_weights(2))
    expected = [[(1 + 6 / 2**0.5) / 3], [(2 + 6 / 2**0.5) / 3], [0.0]]
    torch.testing.assert_close(context_ID, torch.tensor(expected), atol=1e-6, rtol=0)
    assert item_context(build_graph(dataset), first_UD, first_ID, layer_weights(0)).tolist() == [[0.0], [0.0], [0.0]]


def dense_new_user(shop: Shop, items: list[int], new_text: Matrix | None = None) -> Matrix:
    """Return the formula in float64: projector(mean text) / 3 + |N|^-1/2 sum of context; new items have no context."""
    text = load_vectors(shop.vectors).astype(np.float64)
    context = matrix(shop.bundle, "items.parquet", "context")
    if new_text is not None:
        text = np.concatenate([text, new_text])
        context = np.concatenate([context, np.zeros((len(new_text), context.shape[1]))])
    mean = text[items].mean(0, keepdims=True) if items else np.zeros((1, text.shape[1]))
    first = project(shop.bundle, "projector.safetensors", mean)
    return unit(first / 3 + context[items].sum(0) / np.sqrt(max(1, len(items))))


@pytest.mark.usefixtures("in_process")
def test_new_users_get_lists_by_their_items_alone(shop: Shop) -> None:
    given = {"fresh": [0, 2, 4], "odd one": [1, 7], "lone": [NUM_ITEMS - 1]}
    rows = [f"{user},{' '.join(f'i{item}' for item in items)}" for user, items in given.items()]
    rows[1] += " i1"  # an item twice counts once
    users = table_file(shop.folder, "users.csv", "user_id,item_ids", *rows)
    made = recommend(shop.store, shop.asking(users=users))
    lists = read_lists(made)
    ids = load_dataset(shop.dataset).item_ids.to_pylist()
    item_ID = matrix(shop.bundle, "items.parquet", "representation")
    assert list(lists) == list(given)
    for user, items in given.items():
        scores = (dense_new_user(shop, items) @ item_ID.T)[0]
        assert lists[user]["item_ids"] == best(ids, scores, K, {f"i{item}" for item in items})
    assert made.summary["users"] == len(given)


def test_user_lists_read_the_same_from_csv_jsonl_and_parquet(shop: Shop, tmp_path: Path) -> None:
    ids = pa.array(["7", "b", 'q"\\ x'])
    given = [{"user_id": "v", "item_ids": ["b", "7", "b"]}, {"user_id": "w", "item_ids": ["7"]}]
    csv = table_file(tmp_path, "users.csv", "user_id,item_ids", "v,b  7 b ", "w,7")
    jsonl = table_file(tmp_path, "users.jsonl", *map(json.dumps, given))
    pq.write_table(pa.Table.from_pylist(given), tmp_path / "users.parquet")
    for address in (csv, jsonl, str(tmp_path / "users.parquet")):
        users, pairs, _ = read_user_lists(open_table(address, "users"), ids)
        assert users.to_pylist() == ["v", "w"]
        assert list(zip(pairs.users.tolist(), pairs.items.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0)]
    odd = table_file(tmp_path, "odd.jsonl", json.dumps({"user_id": 1, "item_ids": ['q"\\ x', 7]}))
    users, pairs, _ = read_user_lists(open_table(odd, "users"), ids)
    assert (users.to_pylist(), pairs.items.tolist()) == (["1"], [0, 2])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["a,i0", "b,i1 nope"],
            "1 given items are neither in the bundle nor new items (got 'nope' of user b at line 3)",
        ),
        (["a,i0", "b,"], "1 users have no item (got user b at line 3); give them a known item each"),
        (["a,i0", "b,gone"], "pass --recommend.on-unknown-item skip to leave them out"),
        (["a,i0", "a,i1"], "2 rows share a user (got user a at line 2, user a at line 3); give each user one row"),
        ([",i0"], "1 rows have no user id in column user_id"),
        ([], "is empty (got no rows); pass --recommend.users FILE"),
    ],
)
def test_user_lists_that_do_not_fit_are_refused(shop: Shop, lines: list[str], message: str) -> None:
    users = table_file(shop.folder, "bad.csv", "user_id,item_ids", *lines)
    with pytest.raises(CatalogError, match=re.escape(message)) as refusal:
        recommend(shop.store, shop.asking(users=users))
    assert str(refusal.value).startswith(f"user lists {users}: ")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "users.jsonl",
            '{"user_id": "a", "item_ids": "i0 i1"}',
            "values are not lists of ids in column item_ids (got 'i0 i1' at line 1)",
        ),
        ("users.csv", "user,item_ids\na,i0", "must have one column 'user_id' (got user, item_ids); add it"),
        ("users.xlsx", "a::i0", "its name must end in the kind of file (got .xlsx); use .parquet"),
    ],
)
def test_user_tables_of_another_shape_are_refused(shop: Shop, name: str, text: str, message: str) -> None:
    with pytest.raises(CatalogError, match=re.escape(message)):
        recommend(shop.store, shop.asking(users=table_file(shop.folder, name, text)))


def test_a_missing_file_names_its_setting(shop: Shop) -> None:
    with pytest.raises(CatalogError, match=r"gone.csv: no such file; pass --recommend.users FILE"):
        recommend(shop.store, shop.asking(users=str(shop.folder / "gone.csv")))
    with pytest.raises(CatalogError, match=r"gone.csv: no such file; pass --recommend.new-items FILE"):
        recommend(shop.store, shop.asking(new_items=str(shop.folder / "gone.csv")))


def test_new_users_need_the_title_vectors(shop: Shop) -> None:
    bare = Store(str(shop.folder / "bare"))
    shop.store.fs.copy(f"{shop.store.path}/bundles", f"{bare.path}/bundles", recursive=True)
    users = table_file(shop.folder, "one.csv", "user_id,item_ids", "a,i0")
    with pytest.raises(RecommendError, match=r"vectors of bundle .* are gone.*run jobs/embed.py"):
        recommend(bare, shop.asking(users=users))


# ---------------------------------------------------------------- policies


def setting_in(message: str) -> dict[str, str]:
    """Return the setting that a message recommends, as ``shop.asking`` takes it."""
    name, value = re.search(r"--recommend\.([a-z-]+) ([a-z]+) to ", message).groups()  # type: ignore[union-attr]
    return {name.replace("-", "_"): value}


@pytest.mark.usefixtures("in_process")
def test_delisted_items_and_users_left_without_one_are_left_out_by_the_settings_that_the_messages_name(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    rows = ["a,i0 old-7 i2", "b,old-7 old-8", "c,", "d,i1 i3"]
    users = table_file(shop.folder, "delisted.csv", "user_id,item_ids", *rows)
    asked: dict[str, Any] = {"users": users}
    with pytest.raises(CatalogError, match=r"3 given items are neither .*got 'old-7' of user a at line 2") as refusal:
        recommend(shop.store, shop.asking(**asked))
    asked |= setting_in(str(refusal.value))
    with pytest.raises(CatalogError, match=r"2 users have no item that is known \(got user b at line 3, ") as refusal:
        recommend(shop.store, shop.asking(**asked))
    asked |= setting_in(str(refusal.value))
    with caplog.at_level("INFO", "alpharec"):
        made = recommend(shop.store, shop.asking(**asked))
    assert asked == {"users": users, "on_unknown_item": "skip", "on_empty_history": "skip"}
    assert made.summary["left_out"] == {
        "unknown_items": {"count": 3, "first": ["old-7", "old-8"]},
        "users_without_items": {"count": 2, "first": ["b", "c"]},
    }
    assert "recommend: left out: 2 users without items (b, c)" in caplog.messages
    clean = table_file(shop.folder, "clean.csv", "user_id,item_ids", "a,i0 i2", "d,i1 i3")
    expected = recommend(shop.store, shop.asking(users=clean))
    assert read_lists(made) == read_lists(expected)
    assert (expected.summary["users"], expected.summary["left_out"]) == (2, {})


@pytest.mark.usefixtures("in_process")
def test_a_user_without_an_item_is_left_out_with_what_it_wants(shop: Shop) -> None:
    users = table_file(shop.folder, "some_cold.csv", "user_id,item_ids", "a,i0 i2", "b,", "c,i1")
    wishes = table_file(shop.folder, "cold_wishes.csv", "user_id,query", "b,red thing", "c,red thing")
    made = recommend(shop.store, shop.asking(users=users, intentions=wishes, on_empty_history="skip"))
    assert list(read_lists(made)) == ["a", "c"]
    assert made.summary["left_out"] == {"users_without_items": {"count": 1, "first": ["b"]}}


@pytest.mark.usefixtures("in_process")
def test_known_new_items_are_the_bundles_own_where_asked(shop: Shop) -> None:
    new = table_file(shop.folder, "half_new.csv", "item_id,title", "i4,another title", "n4,red thing", "i5,")
    with pytest.raises(CatalogError, match=r"2 items are in the bundle already \(got i4 with .* at line 2") as refusal:
        recommend(shop.store, shop.asking(new_items=new))
    made = recommend(shop.store, shop.asking(new_items=new, **setting_in(str(refusal.value))))
    assert made.summary["left_out"] == {"known_new_items": {"count": 2, "first": ["i4", "i5"]}}
    alone = table_file(shop.folder, "all_new.csv", "item_id,title", "n4,red thing")
    assert read_lists(made) == read_lists(recommend(shop.store, shop.asking(new_items=alone)))


@pytest.mark.usefixtures("in_process")
def test_intentions_of_unknown_users_are_left_out_where_asked(shop: Shop) -> None:
    wishes = table_file(shop.folder, "strangers.csv", "user_id,query", "who,", "u4,red thing", "who,red")
    with pytest.raises(CatalogError, match=r"1 queries are empty"):
        recommend(shop.store, shop.asking(intentions=wishes))
    wishes = table_file(shop.folder, "strangers.csv", "user_id,query", "who,blue", "u4,red thing", "who,red")
    with pytest.raises(CatalogError, match=r"2 queries have an unknown user \(got user who at line 2") as refusal:
        recommend(shop.store, shop.asking(intentions=wishes))
    asked = setting_in(str(refusal.value))
    made = recommend(shop.store, shop.asking(intentions=wishes, **asked))
    assert made.summary["left_out"] == {"unknown_users": {"count": 2, "first": ["who"]}}
    known = table_file(shop.folder, "friends.csv", "user_id,query", "u4,red thing")
    assert read_lists(made) == read_lists(recommend(shop.store, shop.asking(intentions=known)))
    nobody = table_file(shop.folder, "nobody.csv", "user_id,query", "who,red")
    with pytest.raises(RecommendError, match=r"nobody.csv: no user is left \(got 1 whom .* does not know\); pass"):
        recommend(shop.store, shop.asking(intentions=nobody, **asked))
    # With a file of users, who get lists without an intention too, no intention is needed.
    users = table_file(shop.folder, "no_wish.csv", "user_id,item_ids", "a,i0 i2")
    made = recommend(shop.store, shop.asking(users=users, intentions=nobody, **asked))
    assert list(read_lists(made)) == ["a"]


def test_a_file_whose_users_are_all_left_out_is_refused(shop: Shop) -> None:
    users = table_file(shop.folder, "all_cold.csv", "user_id,item_ids", "a,", "b,gone")
    skipping = shop.asking(users=users, on_unknown_item="skip", on_empty_history="skip")
    with pytest.raises(CatalogError, match=r"no user is left \(got 2 users without a known item\); give one of them"):
        recommend(shop.store, skipping)


# ---------------------------------------------------------------- which items, which users

STOCK = [0, 3, 4, 5, 8, 9, 12, 17, 19]


def cut(lists: dict[str, dict[str, Any]], allowed: set[str], k: int = K) -> dict[str, dict[str, Any]]:
    """Return what is left of whole lists: allowed items alone, the first k."""
    left = {}
    for user, row in lists.items():
        pairs = [pair for pair in zip(row["item_ids"], row["scores"], strict=True) if pair[0] in allowed][:k]
        left[user] = {"user_id": user, "item_ids": [item for item, _ in pairs], "scores": [score for _, score in pairs]}
    return left


def with_new(shop: Shop) -> dict[str, Any]:
    """Return settings that name users by their items, some with an intention, and new items."""
    rows = ["a,i0 i2 i5", "b,i1 n1", "c,i3"]
    return {
        "users": table_file(shop.folder, "w_users.csv", "user_id,item_ids", *rows),
        "new_items": table_file(shop.folder, "w_new.csv", "item_id,title", "n0,red thing", "n1,blue thing"),
        "intentions": table_file(shop.folder, "w_wishes.csv", "user_id,query", "c,red thing", "a,blue thing"),
    }


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("asked", ["bundle", "new items", "users", "intentions", "everything"])
@pytest.mark.parametrize("include_seen", [False, True])
def test_candidates_less_the_excluded_are_whole_lists_filtered_and_cut(
    shop: Shop, asked: str, include_seen: bool
) -> None:
    names = {"bundle": [], "new items": ["new_items"], "users": ["users", "new_items"], "intentions": ["intentions"]}
    every = with_new(shop)
    given = {name: every[name] for name in names.get(asked, every)}
    if asked == "intentions":
        given["intentions"] = table_file(shop.folder, "w_known.csv", "user_id,query", "u7,red", "u2,blue", "late,red")
    given["include_seen"] = include_seen
    whole = read_lists(recommend(shop.store, shop.asking(**given, k=100)))
    new = ["n0"] if "new_items" in given else []
    stock = {f"i{item}" for item in STOCK} | set(new)
    candidates = table_file(shop.folder, "stock.csv", "item_id,price", *(f"{item},1" for item in [*stock, "i0"]))
    exclude = table_file(shop.folder, "never.csv", "item_id", "i4", "i5", "i7", "i4", "long-gone")
    made = recommend(shop.store, shop.asking(**given, candidates=candidates))
    assert read_lists(made) == cut(whole, stock)
    assert (made.summary["candidates"], made.summary["items"]) == (len(stock), NUM_ITEMS + 2 * bool(new))
    banned = {"i4", "i5", "i7"}
    made = recommend(shop.store, shop.asking(**given, exclude=exclude))
    assert read_lists(made) == cut(whole, ({f"i{item}" for item in range(NUM_ITEMS)} | {"n0", "n1"}) - banned)
    assert made.summary["left_out"] == {"unknown_excluded_items": {"count": 1, "first": ["long-gone"]}}
    both = recommend(shop.store, shop.asking(**given, candidates=candidates, exclude=exclude))
    assert read_lists(both) == cut(whole, stock - banned)
    assert set(both.manifest["inputs"]) >= {"bundle", "candidates", "exclude"}


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("kind", "loss", "epochs"), [("ease", "infonce", 0), ("id", "bc", 2), ("multvae", "multinomial", 2)]
)
def test_models_without_titles_rank_candidates_for_some_users(shop: Shop, kind: str, loss: str, epochs: int) -> None:
    name = f"{kind}-narrowed"
    settings = shop.settings.model_copy(
        update={"name": name, "model": shop.settings.model.model_copy(update={"kind": kind})}
    )
    train = {"max_epochs": epochs, "learning_rate": 0.05, "loss": loss}
    settings = settings.model_copy(update={"train": settings.train.model_copy(update=train)})
    model = fit(shop.store, settings, shop.dataset, shop.vectors)
    evaluation = evaluate_model(shop.store, settings, shop.dataset, shop.vectors, model)
    publish(shop.store, settings, shop.dataset, shop.vectors, model, evaluation)

    def lists(**asked: Any) -> dict[str, dict[str, Any]]:
        chosen = settings.recommend.model_copy(update=asked)
        return read_lists(recommend(shop.store, settings.model_copy(update={"recommend": chosen})))

    whole = lists(k=100)
    candidates = table_file(shop.folder, "stock.csv", "item_id", *(f"i{item}" for item in STOCK))
    exclude = table_file(shop.folder, "banned.csv", "item_id", "i4", "i5")
    left = cut(whole, {f"i{item}" for item in STOCK} - {"i4", "i5"})
    assert lists(candidates=candidates, exclude=exclude) == left
    people = table_file(shop.folder, "people.csv", "user_id", "u9", "late", "u3", "u9")
    assert lists(candidates=candidates, exclude=exclude, for_users=people) == {
        user: left[user] for user in ("u3", "u9", "late")
    }


@pytest.mark.usefixtures("in_process")
def test_lists_for_some_users_are_those_they_have_among_all(shop: Shop, made: Artifact) -> None:
    all_lists, people = read_lists(made), ["u17", "u3", "late", "u4"]
    table = table_file(shop.folder, "some.jsonl", *(json.dumps({"user_id": user, "since": 1}) for user in people))
    some = recommend(shop.store, shop.asking(for_users=table))
    assert (some.summary["users"], list(read_lists(some))) == (4, ["u3", "u4", "u17", "late"])
    assert read_lists(some) == {user: all_lists[user] for user in people}
    new = with_new(shop)["new_items"]
    whole = read_lists(recommend(shop.store, shop.asking(new_items=new)))
    some = recommend(shop.store, shop.asking(for_users=table, new_items=new))
    assert read_lists(some) == {user: whole[user] for user in people}


def test_actors_of_their_own_get_the_selection(shop: Shop, made: Artifact) -> None:
    people = table_file(shop.folder, "actors.csv", "user_id", *(f"u{user}" for user in range(0, NUM_USERS, 3)))
    stock = table_file(shop.folder, "actors_stock.csv", "item_id", *(f"i{item}" for item in STOCK))
    some = read_lists(recommend(shop.store, shop.asking(for_users=people, candidates=stock, num_cpus=1)))
    whole = Source.load(shop.bundle, [shop.bundle]).lists(0, NUM_USERS + 1, shop.asking(k=100).recommend).to_pylist()
    expected = cut({row["user_id"]: row for row in whole}, {f"i{item}" for item in STOCK})
    assert some == {f"u{user}": expected[f"u{user}"] for user in range(0, NUM_USERS, 3)}


@pytest.mark.usefixtures("in_process")
def test_unknown_candidates_and_users_stop_unless_left_out(shop: Shop) -> None:
    stock = table_file(shop.folder, "whole_stock.csv", "item_id", "i3", "tv-1", "i4", "tv-2", "tv-1")
    with pytest.raises(CatalogError, match=r"3 candidates are neither .*\(got 'tv-1' at line 3, 'tv-2' at") as refusal:
        recommend(shop.store, shop.asking(candidates=stock))
    made = recommend(shop.store, shop.asking(candidates=stock, **setting_in(str(refusal.value))))
    assert made.summary["left_out"] == {"unknown_candidates": {"count": 3, "first": ["tv-1", "tv-2"]}}
    assert {item for row in read_lists(made).values() for item in row["item_ids"]} == {"i3", "i4"}
    # The other next step of the message.
    new = table_file(shop.folder, "tvs.csv", "item_id,title", "tv-1,red tv", "tv-2,blue tv")
    made = recommend(shop.store, shop.asking(candidates=stock, new_items=new))
    assert (made.summary["candidates"], made.summary["left_out"]) == (4, {})
    people = table_file(shop.folder, "strange_people.csv", "user_id", "u1", "nobody")
    with pytest.raises(CatalogError, match=r"1 users are not in the bundle \(got user nobody at line 3\)") as refusal:
        recommend(shop.store, shop.asking(for_users=people))
    made = recommend(shop.store, shop.asking(for_users=people, **setting_in(str(refusal.value))))
    assert made.summary["left_out"] == {"unknown_users": {"count": 1, "first": ["nobody"]}}
    assert list(read_lists(made)) == ["u1"]
    nobody = table_file(shop.folder, "no_people.csv", "user_id", "nobody")
    with pytest.raises(CatalogError, match=r"no user is left \(got 1 users unknown to the bundle\); pass"):
        recommend(shop.store, shop.asking(for_users=nobody, on_unknown_user="skip"))


def test_no_candidate_left_is_refused(shop: Shop) -> None:
    stock = table_file(shop.folder, "foreign.csv", "item_id", "tv-1", "i2")
    exclude = table_file(shop.folder, "none_left.csv", "item_id", "i2")
    with pytest.raises(RecommendError, match=r"no item is left .* of 20 \(got recommend.candidates = .*foreign.csv, "):
        recommend(shop.store, shop.asking(candidates=stock, exclude=exclude, on_unknown_item="skip"))


def test_users_of_the_bundle_are_picked_without_others() -> None:
    with pytest.raises(ValueError, match=r"picks users of the bundle.*got it with recommend.users and recommend.int"):
        Settings.model_validate({"recommend": {"for_users": "a.csv", "users": "b.csv", "intentions": "c.csv"}})


# ---------------------------------------------------------------- a condition

PRICES = {item: None if item % 7 == 6 else 1 + 2.5 * item for item in range(NUM_ITEMS)}
CATEGORIES = {item: ["Toys", "Games, board", "Books"][item % 3] for item in range(NUM_ITEMS)}


@pytest.fixture(scope="module")
def with_columns(shop: Shop) -> Shop:
    """Return the shop whose dataset keeps columns of its items table, published under another name."""
    draft = shop.store.draft("datasets", "columns", "kept")
    for file, facts in shop.dataset.files.items():
        draft.write_bytes(
            file, shop.dataset.read_bytes(file), **{name: facts[name] for name in facts.keys() & {"rows"}}
        )
    kept = {"item_id": [f"i{item}" for item in range(NUM_ITEMS)], "category": [*CATEGORIES.values()]}
    draft.write_table("attributes.parquet", pa.table(kept | {"price": [*PRICES.values()]}))
    dataset = draft.commit(settings=shop.dataset.settings, inputs={}, summary=shop.dataset.summary)
    evaluation = shop.store.draft("evaluations", "columns", "kept")
    evaluation.write_json("metrics.json", shop.evaluation.read_json("metrics.json"))
    inputs = {"dataset": dataset, "vectors": shop.vectors, "model": shop.model}
    made = evaluation.commit(settings={}, inputs=inputs, summary={})
    settings = shop.settings.model_copy(update={"name": "columns"})
    bundle = publish(shop.store, settings, dataset, shop.vectors, shop.model, made)
    return dataclasses.replace(shop, settings=settings, dataset=dataset, evaluation=made, bundle=bundle)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("asked", ["bundle", "users", "intentions"])
@pytest.mark.parametrize(
    ("where", "meets"),
    [
        ("category = 'Toys'", lambda item: item % 3 == 0),
        ("category IN ('Toys', 'Books') AND price < 20", lambda item: item % 3 != 1 and (PRICES[item] or 99) < 20),
        ("price IS NULL OR title LIKE 'blue%'", lambda item: PRICES[item] is None or item % 2 == 1),
        ("item_id <> 'i4'", lambda item: item != 4),
        (
            "price > AVG(price)",
            lambda item: (PRICES[item] or 0) > np.mean([p for p in PRICES.values() if p is not None]),
        ),
    ],
)
def test_a_condition_on_columns_kept_with_the_bundle_filters_lists(
    with_columns: Shop, asked: str, where: str, meets: Any
) -> None:
    shop, given = with_columns, dict[str, Any]()
    if asked != "bundle":
        lines = {"users": ["user_id,item_ids", "a,i0 i2", "b,i1"], "intentions": ["user_id,query", "u1,red", "u2,blue"]}
        given[asked] = table_file(shop.folder, f"{asked}_who.csv", *lines[asked])
    whole = read_lists(recommend(shop.store, shop.asking(**given, k=100)))
    made = recommend(shop.store, shop.asking(**given, where=where))
    allowed = {f"i{item}" for item in range(NUM_ITEMS) if meets(item)}
    assert 0 < len(allowed) < NUM_ITEMS
    assert read_lists(made) == cut(whole, allowed)
    assert made.summary["candidates"] == len(allowed)


@pytest.mark.usefixtures("in_process")
def test_a_condition_finds_new_items_by_the_columns_of_their_own_file(with_columns: Shop) -> None:
    shop = with_columns
    rows = ["n0,red thing,Toys,1.5", "n1,red thing,Toys,", "n2,red thing,Books,2", "i3,known,Toys,1"]
    new = table_file(shop.folder, "priced.csv", "item_id,title,category,price", *rows)
    where = "category = 'Toys' AND price < 40"
    given: dict[str, Any] = {"new_items": new, "on_known_item": "skip"}
    whole = read_lists(recommend(shop.store, shop.asking(**given, k=100)))
    made = recommend(shop.store, shop.asking(**given, where=where))
    allowed = {f"i{item}" for item in range(NUM_ITEMS) if item % 3 == 0 and (PRICES[item] or 99) < 40} | {"n0"}
    assert read_lists(made) == cut(whole, allowed)
    # A file without the column: its items have no price, so none is cheap.
    new = table_file(shop.folder, "unpriced.jsonl", json.dumps({"item_id": "n0", "title": "red", "category": "Toys"}))
    made = recommend(shop.store, shop.asking(new_items=new, where=where))
    assert made.summary["candidates"] == len(allowed) - 1
    new = table_file(shop.folder, "badly_priced.csv", "item_id,title,price", "n0,red,dear")
    with pytest.raises(
        CatalogError, match=r"1 new items have a price that is not Float64, .*got 'dear' at line 2\); c"
    ):
        recommend(shop.store, shop.asking(new_items=new, where=where))


@pytest.mark.usefixtures("in_process")
def test_a_condition_on_the_candidates_table_comes_first(shop: Shop) -> None:
    rows = ["i3,Toys,5,1", "i4,Books,5,1", "i5,Toys,50,1", "tv-1,Toys,500,2", "i4,Toys,7,1", "i6,Toys,,1"]
    stock = table_file(shop.folder, "priced_stock.csv", "item_id,kind,unit price,file", *rows)
    asked = {"candidates": stock, "where": "kind = 'Toys' AND TRY_CAST(\"unit price\" AS DOUBLE) < 20 AND file = '1'"}
    made = recommend(shop.store, shop.asking(**asked))
    whole = Source.load(shop.bundle, [shop.bundle]).lists(0, NUM_USERS + 1, shop.asking(k=100).recommend).to_pylist()
    assert read_lists(made) == cut({row["user_id"]: row for row in whole}, {"i3", "i4"})
    assert made.summary["left_out"] == {}, "the unknown candidate does not meet the condition"


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            "category = ",
            r"recommend.where = category = : is not an SQL condition \(got unable to parse .*write it like",
        ),
        ("SELECT 1", r"is not an SQL condition \(got expected an expression \(found 'SELECT' clause\)\); write it"),
        ("colour = 'red'", r"has no column colour for .*got item_id, title, category, price\); name one of these"),
        ('category = "Toys"', r"has no column Toys for .*texts stand in single quotes"),
        ("category < 20", r"does not fit its columns category String \(got cannot compare string with numeric type"),
        ("price", r"does not fit its columns price Float64 \(got its value is Float64, not true or false\)"),
        ("CAST(category AS DOUBLE) < 20", r"got conversion from `str` to `f64` failed .*write TRY_CAST"),
        ("price > 1000", r"no item is left to recommend of 20 \(got recommend.where = price > 1000\)"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(with_columns: Shop, where: str, message: str) -> None:
    with pytest.raises((CatalogError, RecommendError), match=message):
        recommend(with_columns.store, with_columns.asking(where=where))


@pytest.mark.usefixtures("in_process")
def test_a_bundle_without_columns_says_what_to_do(shop: Shop) -> None:
    message = r"has no column price, kind for .*pass --recommend.candidates FILE .* --data.keep-columns price,kind$"
    where = "TRY_CAST(price AS DOUBLE) < 20 AND kind = 'Toys'"
    with pytest.raises(CatalogError, match=message):
        recommend(shop.store, shop.asking(where=where))
    stock = table_file(shop.folder, "columns.csv", "item_id,price,kind", "i3,5,Toys", "i4,7,Books")
    assert recommend(shop.store, shop.asking(where=where, candidates=stock)).summary["candidates"] == 1
    bare = table_file(shop.folder, "bare.csv", "item_id,price", "i3,5", "i4,7")
    with pytest.raises(CatalogError, match=r"must have one column 'kind' \(got item_id, price\); add it, or correct"):
        recommend(shop.store, shop.asking(where=where, candidates=bare))


@pytest.mark.usefixtures("in_process")
def test_what_changes_lists_changes_their_version(shop: Shop, made: Artifact) -> None:
    stock = [
        table_file(shop.folder, f"v{size}.csv", "item_id", *(f"i{item}" for item in range(size))) for size in (8, 9)
    ]
    people = table_file(shop.folder, "v_users.csv", "user_id", "u1", "u2")
    asked: list[dict[str, Any]] = [
        {"candidates": stock[0]},
        {"candidates": stock[1]},
        {"exclude": stock[0]},
        {"candidates": stock[1], "exclude": stock[0]},
        {"for_users": people},
        {"where": "title LIKE 'red%'"},
        {"where": "title LIKE 'blue%'"},
        {"candidates": stock[0], "where": "item_id <> 'i2'"},
    ]
    versions = [recommend(shop.store, shop.asking(**each)).version for each in asked]
    assert len({made.version, *versions}) == 1 + len(asked)
    before = objects(shop.store)
    copy = table_file(shop.folder, "v8_again.csv", "item_id", *(f"i{item}" for item in range(8)))
    assert recommend(shop.store, shop.asking(candidates=copy)).version == versions[0], "content counts, not its place"
    assert objects(shop.store) == before


# ---------------------------------------------------------------- intentions


def dense_wanted_scores(shop: Shop, query: str) -> Matrix:
    """Return the cosine of a query with each item's propagated title, both less the titles' mean, in float64."""
    text, train = load_vectors(shop.vectors).astype(np.float64), load_dataset(shop.dataset).train
    asked = make_encoder(shop.settings.encoder, shop.settings.embed).encode([query]).astype(np.float64)
    has = np.zeros((NUM_USERS + 1, NUM_ITEMS))
    has[train.users, train.items] = 1
    counts = [np.maximum(1, has.sum(side, keepdims=True)) for side in (1, 0)]
    item = first = unit(text - text.mean(0))
    user, spread = has @ item / counts[0], has / np.sqrt(counts[0] * counts[1])
    second, user = spread.T @ user, spread @ item
    return (unit(asked - text.mean(0)) @ unit(first + second + spread.T @ user).T)[0]


def dense_asked_scores(shop: Shop, items: list[int], query: str, alpha: float) -> Matrix:
    """Return (1 - alpha) the score of who has these items + alpha ``dense_wanted_scores``."""
    item_ID = matrix(shop.bundle, "items.parquet", "representation")
    return (1 - alpha) * (dense_new_user(shop, items) @ item_ID.T)[0] + alpha * dense_wanted_scores(shop, query)


@pytest.mark.usefixtures("in_process")
def test_users_of_the_bundle_get_lists_by_their_history_and_what_they_want(shop: Shop) -> None:
    said = {"u4": "blue thing", "late": "red thing", "u1": "blue thing"}
    wishes = table_file(shop.folder, "wishes.csv", "user_id,query", *(f"{user},{said[user]}" for user in said))
    lists = read_lists(recommend(shop.store, shop.asking(intentions=wishes, alpha=0.7)))
    dataset = load_dataset(shop.dataset)
    ids, users = dataset.item_ids.to_pylist(), dataset.user_ids.to_pylist()
    assert list(lists) == list(said)
    for user, query in said.items():
        train, seen = (histories(dataset, *splits)[users.index(user)] for splits in (["train"], []))
        scores = dense_asked_scores(shop, train, query, 0.7)
        assert lists[user]["item_ids"] == best(ids, scores, K, {ids[item] for item in seen})
        # Propagated titles are kept as halves, 2^-11.
        expected = [scores[ids.index(item)] for item in lists[user]["item_ids"]]
        np.testing.assert_allclose(lists[user]["scores"], expected, atol=1e-3)


def test_some_of_the_new_users_say_what_they_want_and_new_items_are_wanted_too(shop: Shop) -> None:
    users = table_file(shop.folder, "askers.csv", "user_id,item_ids", "a,i0 i2", "b,i1 i3", "c,i0 i2")
    wishes = table_file(shop.folder, "wish.jsonl", json.dumps({"user_id": "c", "query": " blue \n thing"}))
    new = table_file(shop.folder, "wanted.csv", "item_id,title", "w0,blue thing")
    asked = shop.asking(users=users, intentions=wishes, new_items=new, alpha=1.0, k=100)
    lists = read_lists(recommend(shop.store, asked))
    ids = load_dataset(shop.dataset).item_ids.to_pylist()
    for user, items, alpha in (("a", [0, 2], 0.0), ("b", [1, 3], 0.0), ("c", [0, 2], 1.0)):
        scores = dense_asked_scores(shop, items, "blue thing", alpha)
        found = [item for item in lists[user]["item_ids"] if item != "w0"]
        assert found == best(ids, scores, 100, {ids[item] for item in items})
    assert lists["c"]["item_ids"][0] == "w0"
    assert lists["c"]["scores"][0] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["u0,red", "nobody,red"], "1 queries have an unknown user (got user nobody at line 3)"),
        (["u0,red", "u0,blue"], "2 rows share a user (got user u0 at line 2, user u0 at line 3); give each user one"),
        (["u0,red", "u1, "], "1 queries are empty (got user u1 at line 3); write what the user wants"),
        ([], "is empty (got no rows); pass --recommend.intentions FILE"),
    ],
)
def test_intentions_that_do_not_fit_are_refused(shop: Shop, lines: list[str], message: str) -> None:
    wishes = table_file(shop.folder, "bad_wishes.csv", "user_id,query", *lines)
    with pytest.raises(CatalogError, match=re.escape(message)) as refusal:
        recommend(shop.store, shop.asking(intentions=wishes))
    assert str(refusal.value).startswith(f"intentions {wishes}: ")


# ---------------------------------------------------------------- new items


@pytest.mark.usefixtures("in_process")
def test_new_items_are_ranked_where_their_titles_say(shop: Shop) -> None:
    titles = ["red thing number0", "blue &amp; brand  new", "blue thing number3"]
    new = table_file(shop.folder, "new.csv", "item_id,title", *(f"n{i},{title}" for i, title in enumerate(titles)))
    users = table_file(shop.folder, "mixed.csv", "user_id,item_ids", "a,i0 i2", "b,i1 n2", "c,n1")
    lists = read_lists(recommend(shop.store, shop.asking(users=users, new_items=new, k=100)))
    catalogs = shop.store.fs.glob(f"{shop.store.path}/catalogs/shop/*/manifest.json")
    kept = [Artifact(shop.store, json.loads(Path(path).read_text())) for path in catalogs]
    ids = ["n0", "n1", "n2"]
    catalog = next(each for each in kept if each.read_table("items.parquet")["item_id"].to_pylist() == ids)
    assert catalog.read_table("items.parquet")["title"].to_pylist()[1] == "blue & brand new"
    text = load_vectors(embed(shop.store, shop.settings, catalog)).astype(np.float64)
    item_ID = matrix(shop.bundle, "items.parquet", "representation")
    item_ID = np.concatenate([item_ID, unit(project(shop.bundle, "projector.safetensors", text) / 3)])
    ids = [*load_dataset(shop.dataset).item_ids.to_pylist(), "n0", "n1", "n2"]
    for user, items in {"a": [0, 2], "b": [1, NUM_ITEMS + 2], "c": [NUM_ITEMS + 1]}.items():
        scores = (dense_new_user(shop, items, text) @ item_ID.T)[0]
        found = lists[user]["item_ids"]
        expected = best(ids, scores, 100, {ids[item] for item in items})
        assert found == expected
        np.testing.assert_allclose(lists[user]["scores"], [scores[ids.index(item)] for item in found], atol=1e-5)


@pytest.mark.usefixtures("in_process")
def test_the_bundles_users_get_new_items_too(shop: Shop) -> None:
    new = table_file(shop.folder, "more.jsonl", '{"item_id": "n9", "title": "red thing"}')
    made = recommend(shop.store, shop.asking(new_items=new, k=100))
    assert made.summary["items"] == NUM_ITEMS + 1
    assert set(made.manifest["inputs"]) == {"bundle", "newcomers"}
    lists = read_lists(made)
    assert len(lists) == NUM_USERS + 1
    assert all("n9" in row["item_ids"] for row in lists.values())
    place = [lists[f"u{user}"]["item_ids"].index("n9") for user in range(NUM_USERS)]
    assert np.mean(place[0::2]) < np.mean(place[1::2])  # red's lovers see it earlier


def test_a_new_item_has_only_layer_zero(shop: Shop) -> None:
    network = build_model(shop.settings, 32)
    text_IT = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    found = represent_items(network, text_IT, mean_of_titles(text_IT))
    torch.testing.assert_close(found, network.project(text_IT).detach() / 3)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("order", "num_layers", "projector", "width"),
    [("project-first", 0, "mlp", 8), ("propagate-first", 2, "mlp", 8), ("project-first", 0, "residual", 32)],
)
def test_newcomers_of_a_centred_model_are_read_by_the_bundles_own_mean(
    shop: Shop, order: str, num_layers: int, projector: str, width: int
) -> None:
    """A user and an item that the bundle knows already come out as it has them."""
    model = {"centred": True, "order": order, "num_layers": num_layers, "hidden_width": 16, "width": 8}
    name = f"centred-{order}-{num_layers}-{projector}"
    settings = shop_settings(shop.folder, name=name, model=model | {"projector": projector})
    trained = fit(shop.store, settings, shop.dataset, shop.vectors)
    evaluation = evaluate_model(shop.store, settings, shop.dataset, shop.vectors, trained)
    bundle = publish(shop.store, settings, shop.dataset, shop.vectors, trained, evaluation)
    card = bundle.read_bytes("MODEL_CARD.md").decode()
    assert f"{projector} projector of title vectors less their mean, width {width}," in card
    # Items 18 and 19 have no train interaction: layer 0 is all a known item without interactions has.
    title = f"{COLORS[0]} thing number{NUM_ITEMS - 2}"
    train = histories(load_dataset(shop.dataset), "train")[0]
    users = table_file(shop.folder, "twin.csv", "user_id,item_ids", "twin," + " ".join(f"i{item}" for item in train))
    new = table_file(shop.folder, "twin_item.csv", "item_id,title", f"twin,{title}")
    chosen = settings.recommend.model_copy(update={"k": 100, "users": users, "new_items": new})
    row = read_lists(recommend(shop.store, settings.model_copy(update={"recommend": chosen})))["twin"]
    found, scores = dict(zip(row["item_ids"], row["scores"], strict=True)), dense_scores(bundle)[0]
    # propagate-first trains on halves, 2^-11, whose dot products are about 0.1.
    tolerance = 1e-5 if order == "project-first" else 1e-3
    assert found["twin"] == pytest.approx(found[f"i{NUM_ITEMS - 2}"], abs=tolerance)
    for item in set(range(NUM_ITEMS)) - set(train):
        assert found[f"i{item}"] == pytest.approx(scores[item], abs=tolerance)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["n0,one", "n0,two"],
            "2 rows share an item id (got n0 with title 'one' at line 2, n0 with title 'two' at line 3)",
        ),
        (
            ["n0,one", "i3,two"],
            "1 items are in the bundle already (got i3 with title 'two' at line 3); remove their rows",
        ),
        (["n0,one", "n1, "], "1 items have an empty title (got n1 with title ' ' at line 3); give them a title"),
        ([], "is empty (got no rows); pass --recommend.new-items FILE"),
    ],
)
def test_new_items_that_do_not_fit_are_refused(shop: Shop, lines: list[str], message: str) -> None:
    new = table_file(shop.folder, "bad.csv", "item_id,title", *lines)
    with pytest.raises(CatalogError, match=re.escape(message)) as refusal:
        recommend(shop.store, shop.asking(new_items=new))
    assert str(refusal.value).startswith(f"new items {new}: ")


def test_new_items_under_another_encoder_are_refused(shop: Shop) -> None:
    new = table_file(shop.folder, "other.csv", "item_id,title", "n0,one")
    wider = shop.settings.encoder.model_copy(update={"hash_width": 64})
    settings = shop.asking(new_items=new).model_copy(update={"encoder": wider})
    with pytest.raises(RecommendError, match=r"need the encoder .* \(got width 64 instead of 32\); set the encoder"):
        recommend(shop.store, settings)


# ---------------------------------------------------------------- ranking without Ray


def test_equal_scores_go_by_lower_item_index() -> None:
    source = Source(
        pa.array(["u"]), pa.array(["a", "b", "c"]), (torch.ones(1, 1), torch.ones(3, 1)), torch.tensor([[0], [1]])
    )
    chosen = Settings.model_validate({"recommend": {"k": 3}}).recommend
    assert source.lists(0, 1, chosen).to_pylist() == [{"user_id": "u", "item_ids": ["a", "c"], "scores": [1.0, 1.0]}]
