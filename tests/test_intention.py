"""Intention: no trace of a title is left in a query, mixing is the formula, and a stated wish finds its target.

The shop: item i is of color i mod 4 and has a word of its own, which its title and its text share with nothing else.
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import alpharec.intention
from alpharec.artifacts import Artifact, Store
from alpharec.config import Settings, SettingsError, load_settings
from alpharec.data.dataset import CatalogError, load_dataset
from alpharec.data.formats import open_table
from alpharec.data.prepare import prepare
from alpharec.data.requests import read_item_texts, read_queries
from alpharec.embed import embed
from alpharec.encoders import make_encoder
from alpharec.evaluation import EvaluationError, scored_by
from alpharec.graph import layer_weights
from alpharec.intention import (
    WAYS,
    Asked,
    Frozen,
    IntentionError,
    check_measurable,
    leaks,
    make_queries,
    measure_intentions,
    mix,
    names_in,
    propagate_titles,
    take_titles_out,
    wanted_titles,
    without_title,
)
from alpharec.ranking import Lists
from alpharec.train import Training, commit_model
from alpharec.vectors import load_vectors

NUM_USERS, NUM_ITEMS, NUM_COLORS = 24, 80, 4
COLORS = ("red", "blue", "green", "white")
DESCRIPTIONS = Path(__file__).resolve().parents[2] / "shared/data/ml-1m"

# ---------------------------------------------------------------- titles


@pytest.mark.parametrize(
    ("title", "text", "expected", "counts"),
    [
        ("Heat (1995)", '"Heat (1995)" is a heist film.', "is a heist film.", (1, 1, 0)),
        ("Godfather, The (1972)", "The Godfather, a saga; GODFATHER lives", "a saga; lives", (2, 0, 0)),
        ("Toy Story (1995)", "Toy Story 2 tells a story of toys and storytelling", "2 tells a of and", (1, 0, 3)),
        ("Postino, Il (The Postman) (1994)", "Il Postino: a postman (The Postman) rides", "rides", (3, 0, 0)),
        ("Amélie (2001)", "AMELIE and Amélie's cat, 2001", "and cat,", (2, 1, 0)),
        ("Bug's Life, A (1998)", "\u201cA Bug\u2019s Life\u201d has bugs, in 1998.", "has, in.", (1, 1, 1)),
        ("Them! (1954)", "They fear them, in 1954 (1954)", "They fear, in", (1, 2, 0)),
        ("Twelve Monkeys (a.k.a. 12 Monkeys) (1995)", "12 Monkeys: monkey, 12 and twelve", "monkey, and", (1, 0, 2)),
        ("Se7en", "It is 7 years; se7en", "It is 7 years;", (1, 0, 0)),
        ("2001: A Space Odyssey (1968)", "In 2001 a spaceship, 20013 stars", "In a, 20013 stars", (0, 0, 2)),
        ("Plan 9 (1958)", "An explanation of 9 and 99", "An of and 99", (0, 0, 2)),
        ("Nothing here", "A plain text (with brackets).", "A plain text (with brackets).", (0, 0, 0)),
    ],
)
def test_a_title_is_taken_out_with_its_parts_and_counted(
    title: str, text: str, expected: str, counts: tuple[int, int, int]
) -> None:
    assert without_title(text, title) == (expected, dict(zip(("names", "years", "words"), counts, strict=True)))
    assert leaks(expected, title) == []


def test_leaks_are_named_as_they_stand_and_names_apart() -> None:
    text = "The  GODFATHER of godfathers, 1972"
    assert leaks(text, "Godfather, The (1972)") == ["The  GODFATHER", "1972", "GODFATHER", "godfathers"]
    assert names_in(text, "Godfather, The (1972)") == ["The  GODFATHER"]
    assert leaks("A film about the mob", "Godfather, The (1972)") == []


@pytest.mark.skipif(not DESCRIPTIONS.is_dir(), reason=f"{DESCRIPTIONS} is absent")
def test_no_description_of_ml_1m_keeps_its_title() -> None:
    titles = {
        line.split(",", 1)[0]: line.split(",", 2)[2].rsplit(",", 1)[0].strip('"').replace('""', '"')
        for line in (DESCRIPTIONS / "items.csv").read_text().splitlines()[1:]
    }
    with gzip.open(DESCRIPTIONS / "descriptions.jsonl.gz", "rt") as lines:
        texts = {str(row["item"]): row["description"] for row in map(json.loads, lines)}
    for item in list(texts)[::10]:
        query, counts = without_title(texts[item], titles[item])
        assert leaks(query, titles[item]) == []
        assert sum(counts.values()) > 0
        assert len(query) > 0.5 * len(texts[item])


# ---------------------------------------------------------------- the shop


def shop_settings(folder: Path, **intention: Any) -> Settings:
    train = {"max_epochs": 20, "evaluate_every": 10, "batch_size": 64, "num_negatives": 8, "learning_rate": 0.01}
    return Settings.model_validate(
        {
            "name": "wishes",
            "storage": str(folder / "store"),
            "data": {"path": str(folder), "split": "given", "split_column": "split"},
            "encoder": {"backend": "hash", "hash_width": 64},
            "model": {"hidden_width": 64, "width": 16},
            "train": train,
            "intention": {"alphas": [0, 0.25, 0.5, 0.75, 1], "k": 3} | intention,
        }
    )


def write_shop(folder: Path) -> None:
    """Item i is of color i mod 4 and named by words of its own; users like one color, and say what names the target."""
    items = [f"i{i},{COLORS[i % NUM_COLORS]} what{i} who{i} (1999)" for i in range(NUM_ITEMS)]
    texts = [f"What{i} who{i} (1999) is a thing of {COLORS[i % NUM_COLORS]} in year 2000" for i in range(NUM_ITEMS - 1)]
    random = np.random.default_rng(0)
    pairs, queries = [], []
    for user in range(NUM_USERS):
        liked = random.permutation([item for item in range(NUM_ITEMS) if item % NUM_COLORS == user % NUM_COLORS])
        splits = ["train"] * 5 + ["valid"] * 2 + ["test"] * 2
        pairs += [f"u{user},i{item},{split}" for item, split in zip(liked, splits, strict=False)]
        queries += [f"u{user},I want who{item} and what{item},i{item}" for item in (liked[5], liked[7])]
    (folder / "items.csv").write_text("\n".join(["item_id,title", *items]) + "\n")
    (folder / "interactions.csv").write_text("\n".join(["user_id,item_id,split", *pairs]) + "\n")
    (folder / "queries.csv").write_text("\n".join(["user_id,query,item_id", *queries]) + "\n")
    rows = [{"item_id": f"i{item}", "text": text} for item, text in enumerate(texts)]
    rows += [{"item_id": "unknown", "text": "not sold here"}]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Store, Artifact]:
    folder = tmp_path_factory.mktemp("wishes")
    write_shop(folder)
    store = Store(shop_settings(folder).storage)
    return folder, store, prepare(store, shop_settings(folder))


# ---------------------------------------------------------------- queries


def test_queries_of_texts_have_one_held_out_target_a_split_and_no_title(
    ray_local: None, shop: tuple[Path, Store, Artifact]
) -> None:
    folder, store, dataset = shop
    settings = shop_settings(folder, texts=str(folder / "texts.jsonl"))
    made, data = make_queries(store, settings, dataset), load_dataset(dataset)
    rows = made.read_table("queries.parquet").to_pylist()
    assert {split: sum(row["split"] == split for row in rows) for split in ("valid", "test")} == {
        "valid": NUM_USERS,
        "test": NUM_USERS,
    }
    for row in rows:
        pairs = data.splits[row["split"]]
        assert row["item"] in pairs.items[pairs.users == row["user"]]
        assert leaks(row["query"], data.titles[row["item"]].as_py()) == []
        assert row["query"] == "is a thing of in year 2000"
    # A color a text, two words of a name that stand without it, and the year of the title alone.
    num_texts = NUM_ITEMS - 1
    expected = {"texts": num_texts, "too_short": 0, "names": 0, "years": num_texts, "words": 3 * num_texts}
    assert made.summary == {"queries": len(rows), "with_title": 0, **expected}
    assert make_queries(store, settings, dataset).manifest == made.manifest
    again = make_queries(store, settings.model_copy(update={"seed": 7}), dataset)
    assert again.read_table("queries.parquet")["item"] != made.read_table("queries.parquet")["item"]


def test_what_a_generator_wrote_is_repaired_too_and_counts_add_up() -> None:
    table = pa.table({"item": [4], "title": ["Godfather, The (1972)"], "text": ["The Godfather (1972): a mob family"]})
    clean = take_titles_out(table)
    assert clean.to_pylist()[0] | {"title": ""} == {
        "item": 4, "title": "", "text": "a mob family", "names": 1, "years": 1, "words": 0, "left": 3
    }  # fmt: skip
    written = clean.set_column(2, "text", pa.array(["I want godfather-like films as of 1972"]))
    assert take_titles_out(written).to_pylist()[0] | {"title": ""} == {
        "item": 4, "title": "", "text": "I want -like films as of", "names": 2, "years": 2, "words": 0, "left": 6
    }  # fmt: skip


def test_a_generator_words_queries_of_texts_without_their_title_with_every_cpu_for_itself(
    ray_local: None, shop: tuple[Path, Store, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Parrot:
        def write(self, prompts: list[str]) -> list[str]:
            return [f"I want  what7, {prompt} " for prompt in prompts]

    class Writer(alpharec.intention._Writer):
        def __init__(self, settings: Settings) -> None:
            self.prompt, self.generator = settings.intention.prompt, Parrot()

    monkeypatch.setattr(alpharec.intention, "_Writer", Writer)
    monkeypatch.setattr(alpharec.intention, "TEXTS_AT_ONCE", 9)  # several blocks
    folder, store, dataset = shop
    settings = shop_settings(folder, texts=str(folder / "texts.jsonl"), generator="parrot", prompt="like {text}")
    made, data = make_queries(store, settings, dataset), load_dataset(dataset)
    rows = made.read_table("queries.parquet").to_pylist()
    assert len(rows) == 2 * NUM_USERS
    for row in rows:
        guess = "" if data.titles[row["item"]].as_py().split()[1] == "what7" else "what7"
        assert row["query"] == f"I want {guess}, like is a thing of in year 2000".replace(" ,", ",")


def test_texts_about_other_items_are_refused(shop: tuple[Path, Store, Artifact]) -> None:
    folder, store, dataset = shop
    (folder / "other.jsonl").write_text(json.dumps({"item_id": "elsewhere", "text": "not sold here at all"}) + "\n")
    with pytest.raises(
        IntentionError, match=r"other.jsonl: no text is about an item .*expected ids as i0 in column item"
    ):
        make_queries(store, shop_settings(folder, texts=str(folder / "other.jsonl")), dataset)


def test_texts_of_little_but_their_title_make_no_query(ray_local: None, shop: tuple[Path, Store, Artifact]) -> None:
    folder, store, dataset = shop
    ids = load_dataset(dataset).item_ids.to_pylist()
    short = [json.dumps({"item_id": item, "text": f"What{item[1:]} who{item[1:]}, now on sale"}) for item in ids]
    (folder / "short.jsonl").write_text("\n".join(short) + "\n")
    with pytest.raises(IntentionError, match=r"short.jsonl: no query is left \(got .*'too_short': 80"):
        make_queries(store, shop_settings(folder, texts=str(folder / "short.jsonl")), dataset)


def test_queries_that_name_the_title_are_counted(shop: tuple[Path, Store, Artifact]) -> None:
    folder, store, dataset = shop
    target = load_dataset(dataset).test.items[0]
    title = f"{COLORS[target % NUM_COLORS]} what{target} who{target}"
    (folder / "named.csv").write_text(f"user_id,query,item_id\nu0,show me {title.upper()} please,i{target}\n")
    made = make_queries(store, shop_settings(folder, queries=str(folder / "named.csv")), dataset)
    assert made.summary == {"queries": 1, "with_title": 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["nobody,a,i0"], "1 queries have an unknown user (got user nobody at line 2); remove their rows"),
        (["u0,a,gone"], "1 queries have an item the catalog lacks (got item gone of user u0 at line 2); remove"),
        (["u0,a,{valid}", "u1, ,i1"], "1 queries are empty (got user u1 at line 3); write what the user wants"),
        (["u0,a,{train}"], "1 queries have a target that is neither in valid nor in test for their user (got item"),
        (["u0,a,{valid}", "u0,b,{valid}"], "2 queries share a user and a split (got item {valid} of user u0 at line 2"),
    ],
)
def test_queries_that_do_not_fit_are_refused(shop: tuple[Path, Store, Artifact], rows: list[str], message: str) -> None:
    folder, _, dataset = shop
    data = load_dataset(dataset)
    of_user = {split: f"i{pairs.items[pairs.users == 0][0]}" for split, pairs in data.splits.items()}
    (folder / "bad.csv").write_text("\n".join(["user_id,query,item_id", *rows]).format(**of_user) + "\n")
    with pytest.raises(CatalogError, match=re.escape(message.format(**of_user))) as refusal:
        read_queries(open_table(str(folder / "bad.csv"), "queries"), data)
    assert str(refusal.value).startswith(f"queries {folder}/bad.csv: ")


def test_texts_and_queries_are_asked_for_one_at_a_time(shop: tuple[Path, Store, Artifact]) -> None:
    folder, store, dataset = shop
    with pytest.raises(IntentionError, match=r"one of the two \(got .*pass --intention.queries FILE or"):
        make_queries(store, shop_settings(folder), dataset)
    (folder / "twice.jsonl").write_text('{"item_id": "i0", "text": "a"}\n' * 2)
    with pytest.raises(CatalogError, match=r"item texts .*twice.jsonl: 2 rows share an item \(got item i0 at line 1"):
        read_item_texts(open_table(str(folder / "twice.jsonl"), "texts"), pa.array(["i0"]), "item_id", "text")
    with pytest.raises(SettingsError, match=r"alphas must lie in 0..1, with 0 and 1 among them"):
        load_settings(["--intention.alphas", "0,0.5"])


# ---------------------------------------------------------------- mixing and the sweep


@pytest.fixture(scope="module")
def trained(ray_local: None, shop: tuple[Path, Store, Artifact]) -> tuple[Settings, Artifact, Artifact]:
    folder, store, dataset = shop
    settings = shop_settings(folder, queries=str(folder / "queries.csv"))
    vectors = embed(store, settings, dataset)
    training = Training.build(settings, dataset, vectors)
    assert all(training.run())
    return settings, vectors, commit_model(store, settings, dataset, vectors, training.state, run="here")


def test_mixed_users_are_the_formula_and_alpha_zero_the_trained_model(
    shop: tuple[Path, Store, Artifact], trained: tuple[Settings, Artifact, Artifact]
) -> None:
    """Two routes: layer 0 mixed and propagated, and the ends propagated and mixed, as propagation is linear."""
    data, (_, vectors, model) = load_dataset(shop[2]), trained
    item_IT = torch.from_numpy(load_vectors(vectors)).float()
    frozen = Frozen.load(data, item_IT, model, torch.zeros(NUM_ITEMS, 64))
    query_UD = frozen.project(torch.randn(NUM_USERS, 64, generator=torch.Generator().manual_seed(0)))
    ends = [
        frozen.graph.propagate(user_UD, frozen.item_ID, layer_weights(2)) for user_UD in (frozen.history_UD, query_UD)
    ]
    for alpha in (0.0, 0.3, 1.0):
        found = frozen.together(query_UD, torch.full((NUM_USERS,), alpha))
        for side, ends_of_side in zip(found, zip(*ends, strict=True), strict=True):
            expected = frozen.objective.scale((1 - alpha) * ends_of_side[0] + alpha * ends_of_side[1])
            torch.testing.assert_close(side, expected, atol=1e-5, rtol=0)  # float32 sums in another order
    trained = scored_by(model, data, item_IT)
    for found in (frozen.together(query_UD, torch.zeros(NUM_USERS)), frozen.trained):
        for side, expected in zip(found, trained, strict=True):
            torch.testing.assert_close(side, expected, atol=1e-6, rtol=0)


@pytest.mark.usefixtures("in_process")
def test_scores_served_are_mixed_and_a_user_who_asks_changes_nobody_else(
    shop: tuple[Path, Store, Artifact], trained: tuple[Settings, Artifact, Artifact]
) -> None:
    _, store, dataset = shop
    settings, vectors, model = trained
    data, item_IT = load_dataset(dataset), torch.from_numpy(load_vectors(vectors)).float()
    titles = propagate_titles(store, settings, dataset, vectors, model.settings["model"])
    frozen = Frozen.load(data, item_IT, model, wanted_titles(titles))
    query_UT, alpha_U = torch.randn(NUM_USERS, 64, generator=torch.Generator().manual_seed(0)), torch.zeros(NUM_USERS)
    before = frozen.served(query_UT, alpha_U)
    alpha_U[3] = 0.3
    user_UE, item_IE = frozen.served(query_UT, alpha_U)
    assert torch.equal(item_IE, before[1])
    changed = (user_UE != before[0]).any(1).nonzero().squeeze(1)
    assert changed.tolist() == [3]
    # In float64, from the centred titles on; the graph is the model's own.
    text, mean = load_vectors(vectors).astype(np.float64), load_vectors(vectors).astype(np.float64).mean(0)
    first_IT = torch.from_numpy((text - mean) / np.linalg.norm(text - mean, axis=1, keepdims=True)).float()
    title_IT = frozen.graph.propagate(frozen.graph.mean_of_items(first_IT), first_IT, layer_weights(2))[1].double()
    query_T = query_UT[3].double() - torch.from_numpy(mean)
    cosine_I = title_IT @ query_T / title_IT.norm(dim=1) / query_T.norm()
    user_UD, item_ID = (side.double() for side in scored_by(model, data, item_IT))
    expected = 0.7 * (item_ID @ user_UD[3]) + 0.3 * cosine_I
    torch.testing.assert_close((user_UE @ item_IE.T)[3].double(), expected, atol=5e-4, rtol=0)  # titles as halves
    together_ID = frozen.together(frozen.project(query_UT), alpha_U)[1]
    assert not torch.equal(together_ID, frozen.trained[1])  # through the items of user 3


def test_mix_is_hand_computed() -> None:
    mixed = mix(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 2.0], [5.0, 5.0]]), torch.tensor([0.25, 0]))
    assert mixed.tolist() == [[0.75, 0.5], [1.0, 0.0]]


@pytest.mark.usefixtures("in_process")
def test_a_stated_wish_finds_its_target_and_alpha_is_chosen_on_valid_queries(
    shop: tuple[Path, Store, Artifact], trained: tuple[Settings, Artifact, Artifact]
) -> None:
    _, store, dataset = shop
    settings, vectors, model = trained
    models = store.folders("models", "wishes")
    made = measure_intentions(store, settings, dataset, vectors, model)
    assert store.folders("models", "wishes") == models, "alpha is searched on the frozen model"
    metrics = made.read_json("metrics.json")
    for way in WAYS:
        found, best = metrics[way], f"{metrics[way]['alpha']:g}"
        valid = found["curves"]["valid"]["ndcg@3"]
        assert found["alpha"] == found["alphas"][int(np.argmax(valid))] > 0
        # Any of the 13 unseen items of the color may be asked for: history alone cannot tell them apart.
        assert found["test"][best]["hr@3"] > 1.5 * found["test"]["0"]["hr@3"]
        assert found["test"][best]["ndcg@3"] > 1.5 * found["test"]["0"]["ndcg@3"]
        assert found["curves"]["test"]["hr@3"][0] == found["test"]["0"]["hr@3"]
        assert set(found["alpha_of_group"].values()) <= set(found["alphas"])
        values = made.read_table("per_query.parquet")[f"{way}/ndcg@3 at {best}"].to_numpy()
        np.testing.assert_allclose(values.mean(), found["test"][best]["ndcg@3"], atol=1e-6)  # float32 columns
    html = made.read_bytes("report.html").decode()
    assert html.count("<svg") == 2
    assert measure_intentions(store, settings, dataset, vectors, model).manifest == made.manifest


@pytest.mark.usefixtures("in_process")
def test_a_model_is_asked_in_its_own_encoders_words_alone(
    shop: tuple[Path, Store, Artifact], trained: tuple[Settings, Artifact, Artifact]
) -> None:
    folder, store, dataset = shop
    settings = shop_settings(folder, queries=str(folder / "queries.csv"))
    settings = settings.model_copy(update={"encoder": settings.encoder.model_copy(update={"prompt": "a {title}"})})
    others = embed(store, settings.model_copy(update={"name": "others"}), dataset)
    with pytest.raises(EvaluationError, match="was trained on vectors of another encoder"):
        measure_intentions(store, settings, dataset, others, trained[2])


def test_intentions_are_not_measured_without_valid_and_test_interactions(
    shop: tuple[Path, Store, Artifact], trained: tuple[Settings, Artifact, Artifact]
) -> None:
    folder, store, dataset = shop
    settings = shop_settings(folder, queries=str(folder / "queries.csv"))
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"split": "none"})})
    everything = prepare(store, settings)
    with pytest.raises(
        EvaluationError, match=r"measuring intentions needs valid interactions .*choose a --data\.split"
    ):
        measure_intentions(store, settings, everything, *trained[1:])
    check_measurable(dataset)


def test_queries_of_one_split_cannot_choose_alpha(
    shop: tuple[Path, Store, Artifact], trained: tuple[Settings, Artifact, Artifact]
) -> None:
    folder, store, dataset = shop
    item = load_dataset(dataset).test.items[0]
    (folder / "test_only.csv").write_text(f"user_id,query,item_id\nu0,something,i{item}\n")
    settings = shop_settings(folder, queries=str(folder / "test_only.csv"))
    with pytest.raises(IntentionError, match=r"chosen on valid queries .*\(got none of valid\)"):
        measure_intentions(store, settings, dataset, *trained[1:])


def test_the_encoder_alone_ranks_titles_by_their_cosine_with_the_query() -> None:
    item_IT = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, 5.0], [-1.0, 0.0]])
    query_UT = torch.tensor([[2.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    truth = Lists.from_pairs(torch.tensor([0, 2]), torch.tensor([1, 3]), 3)
    seen = Lists.from_pairs(torch.tensor([0]), torch.tensor([0]), 3)  # left out: item 1 comes first for user 0
    asked = Asked(None, torch.tensor([0, 2]), query_UT, torch.zeros(3, 7), truth, seen, k=2, block_size=8)  # type: ignore[arg-type]
    found = asked.by_vectors(item_IT)
    assert {name: values.tolist() for name, values in found.items()} == {"hr@2": [1.0, 0.0], "ndcg@2": [1.0, 0.0]}


@pytest.mark.usefixtures("in_process")
def test_queries_of_a_centred_model_are_centred_by_its_titles(
    shop: tuple[Path, Store, Artifact], trained: tuple[Settings, Artifact, Artifact]
) -> None:
    """Nothing trained and no rounds: alpha 1 ranks by cosines of the centred vectors, as NumPy has them."""
    folder, store, dataset = shop
    model = {"centred": True, "num_layers": 0, "projector": "identity"}
    settings = shop_settings(folder, queries=str(folder / "queries.csv"))
    settings = Settings.model_validate(
        settings.model_dump(exclude_unset=True) | {"model": model, "train": {"max_epochs": 0}}
    )
    vectors, data = trained[1], load_dataset(dataset)
    training = Training.build(settings, dataset, vectors)
    assert all(training.run())
    frozen = commit_model(store, settings, dataset, vectors, training.state, run="here")
    made = measure_intentions(store, settings, dataset, vectors, frozen)
    item_IT = load_vectors(vectors).astype(np.float64)
    encoder, mean_T = make_encoder(settings.encoder, settings.embed), item_IT.mean(0)
    table = made.read_table("per_query.parquet")
    lines = [line.split(",") for line in (folder / "queries.csv").read_text().splitlines()]
    queries = {(user, item): query for user, query, item in lines}
    ids, found = data.item_ids.to_pylist(), []
    for user, item in zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True):
        query_T = encoder.encode([queries[user, item]])[0] - mean_T
        score_I = (item_IT - mean_T) @ query_T / np.linalg.norm(item_IT - mean_T, axis=1)
        row = data.user_ids.to_pylist().index(user)
        for pairs in (data.train, data.valid):
            score_I[pairs.items[pairs.users == row]] = -np.inf
        place = (score_I > score_I[ids.index(item)]).sum()
        found.append(1 / np.log2(place + 2) if place < 3 else 0.0)
    np.testing.assert_allclose(table["served/ndcg@3 at 1"].to_numpy(), found, atol=1e-6)
    assert 0 < np.mean(found) < 1
