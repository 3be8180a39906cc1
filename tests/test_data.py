"""Datasets from files: readers, policies, filters, splits, messages, the artifact."""

from __future__ import annotations

import gzip
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpharec.artifacts import Store
from alpharec.config import DataSettings, Settings, load_settings
from alpharec.data.build import build_dataset, core_mask
from alpharec.data.dataset import CatalogError, Dataset, Domain, Pairs, load_dataset, read_degrees, read_pairs
from alpharec.data.formats import open_inputs
from alpharec.data.prepare import find_prepared, prepare
from alpharec.data.read import read_inputs
from alpharec.data.report import format_report
from alpharec.data.splits import split_interactions, split_sizes
from alpharec.data.titles import fill_template, normalize_title, normalize_titles

REAL = Path(__file__).parents[2] / "shared" / "data"
CONFIGS = Path(__file__).parents[1] / "jobs" / "configs"
RATIOS = (0.4, 0.3, 0.3)

ITEMS = "item_id,title\nA,Alpha\nB,Beta\nC,Gamma\nD,Delta\n"
# u1 has a pair in each split, u2 none in test, u3 none in train; D has no interaction.
GIVEN = """user_id,item_id,split
u1,A,train
u3,C,test
u1,B,valid
u1,C,test
u2,C,train
u2,B,train
u2,A,valid
u3,A,valid
"""


def write(folder: Path, **files: str | bytes) -> Path:
    """Write files; an argument named ``items_csv`` becomes ``items.csv``."""
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def build(folder: Path | str, seed: int = 101, **data: Any) -> tuple[Dataset, dict[str, Any]]:
    """Read and build without an artifact."""
    settings = DataSettings.model_validate({"path": str(folder), **data})
    return build_dataset(*read_inputs(open_inputs(settings), settings), settings, seed=seed)


def given_split(folder: Path | str, **data: Any) -> tuple[Dataset, dict[str, Any]]:
    return build(folder, split="given", split_column="split", **data)


def named(dataset: Dataset, pairs: Pairs) -> list[tuple[str, str]]:
    """Return the pairs by their ids."""
    users, items = dataset.user_ids.to_pylist(), dataset.item_ids.to_pylist()
    return [(users[user], items[item]) for user, item in zip(pairs.users, pairs.items, strict=True)]


def refused(folder: Path, *parts: str, **data: Any) -> None:
    """Expect a CatalogError whose message has all parts, in this order."""
    with pytest.raises(CatalogError, match=".*".join(map(re.escape, parts))):
        build(folder, **data)


# ---------------------------------------------------------------- reading


def test_given_split_by_hand(tmp_path: Path) -> None:
    dataset, report = given_split(write(tmp_path, items_csv=ITEMS, interactions_csv=GIVEN))
    assert dataset.item_ids.to_pylist() == ["A", "B", "C", "D"]
    assert dataset.titles.to_pylist() == ["Alpha", "Beta", "Gamma", "Delta"]
    assert dataset.user_ids.to_pylist() == ["u1", "u3", "u2"]  # by first interaction
    assert named(dataset, dataset.train) == [("u1", "A"), ("u2", "C"), ("u2", "B")]
    assert named(dataset, dataset.valid) == [("u1", "B"), ("u3", "A"), ("u2", "A")]
    assert named(dataset, dataset.test) == [("u1", "C"), ("u3", "C")]
    assert report["interactions"] == {"train": 3, "valid": 3, "test": 2}
    assert report["density"] == 8 / (3 * 4)
    assert report["users_without_train"] == 1
    assert report["users_without_test"] == 1
    assert report["items_without_train"] == 1
    assert list(report["user_degree"].values()) == [0, 0, 1, 2, 2, 2, 2]  # of 0, 1, 2
    assert list(report["item_degree"].values()) == [0, 0, 1, 1, 1, 1, 1]  # of 0, 1, 1, 1


def test_every_kind_of_table_reads_the_same(tmp_path: Path) -> None:
    items = pl.read_csv(ITEMS.encode()).with_columns(item_id=pl.Series([1, 2, 3, 4]))
    pairs = pl.read_csv(GIVEN.encode()).with_columns(pl.col("item_id").replace_strict({"A": 1, "B": 2, "C": 3}))
    results = []
    for suffix in ("csv", "jsonl", "parquet", "csv.gz", "jsonl.gz"):
        folder = tmp_path / suffix
        folder.mkdir()
        for name, table in (("items", items), ("interactions", pairs)):
            if suffix == "parquet":
                table.write_parquet(folder / f"{name}.parquet")
                continue
            text = (table.write_csv() if "csv" in suffix else table.write_ndjson()).encode()
            (folder / f"{name}.{suffix}").write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
        dataset, report = given_split(folder)
        results.append(
            (dataset.item_ids.to_pylist(), dataset.titles.to_pylist(), named(dataset, dataset.train), report)
        )
    assert results[0][0] == ["1", "2", "3", "4"]
    assert results[0][2] == [("u1", "1"), ("u2", "3"), ("u2", "2")]
    assert all(result == results[0] for result in results)


def test_columns_named_like_our_own_are_read_right(tmp_path: Path) -> None:
    items = "row,file\nA,Alpha\nB,Beta\nC,Gamma\n"
    pairs = "time,row,user\n3,A,u\n1,B,u\n2,C,u\n"
    write(tmp_path, items_csv=items, interactions_csv=pairs)
    names = {"item_column": "row", "title_column": "file", "user_column": "user", "time_column": "time"}
    dataset, _ = build(tmp_path, split="leave-last-out", **names)
    assert named(dataset, dataset.train) == [("u", "B")]
    assert named(dataset, dataset.valid) == [("u", "C")]
    assert named(dataset, dataset.test) == [("u", "A")]


@pytest.fixture
def memory_url() -> Iterator[str]:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/catalog-test/items.csv", ITEMS.encode())
    fs.pipe_file("/catalog-test/interactions.csv", GIVEN.encode())
    yield "memory://catalog-test"
    fs.rm("/catalog-test", recursive=True)


def test_a_url_reads_like_a_folder(tmp_path: Path, memory_url: str) -> None:
    write(tmp_path, items_csv=ITEMS, interactions_csv=GIVEN)
    local, _ = given_split(tmp_path)
    by_url, _ = given_split(memory_url)
    by_both, _ = given_split(tmp_path, items=f"{memory_url}/items.csv")
    for dataset in (by_url, by_both):
        assert named(dataset, dataset.test) == named(local, local.test)
        assert dataset.titles == local.titles


def alpharec_files(**changes: str) -> dict[str, str]:
    files = {
        "items_csv": "item_id,title\n2,Gamma\n0,Alpha\n1,Beta\n3,Delta\n",
        "train_txt": "0 3 1\n2 0\n",
        "valid_txt": "0 0\n1 2\n2 3\n",
        "test_txt": "2 1\n1 0\n",
    }
    return files | changes


def test_alpharec_indices_are_the_ids_of_the_files(tmp_path: Path) -> None:
    dataset, report = build(write(tmp_path, **alpharec_files()), format="alpharec", split="given")
    assert dataset.user_ids.to_pylist() == ["0", "1", "2"]
    assert dataset.titles.to_pylist() == ["Alpha", "Beta", "Gamma", "Delta"]
    assert dataset.train.users.tolist() == [0, 0, 2]
    assert dataset.train.items.tolist() == [3, 1, 0]
    assert dataset.valid.users.tolist() == [0, 1, 2]
    assert dataset.test.items.tolist() == [0, 1]
    assert report["users_without_train"] == 1


def test_alpharec_files_can_be_split_anew(tmp_path: Path) -> None:
    write(tmp_path, **alpharec_files())
    dataset, report = build(tmp_path, format="alpharec", split="ratio-random")
    assert sum(report["interactions"].values()) == 8
    assert report["users_without_train"] == 0
    assert dataset.user_ids.to_pylist() == ["0", "1", "2"]


def test_grouplens_csv_and_dat(tmp_path: Path) -> None:
    lines = [("1", "10", "5", "30"), ("1", "20", "4", "10"), ("1", "30", "3", "20"), ("2", "10", "1", "5")]
    (tmp_path / "csv").mkdir()
    (tmp_path / "dat").mkdir()
    movies = [("10", "Café (1990)", "Drama"), ("20", "Heat, The (1995)", "Crime"), ("30", "Up", "Comedy")]
    csv_movies = "".join(f'{movie},"{title}",{genre}\n' for movie, title, genre in movies)
    write(
        tmp_path / "csv",
        movies_csv="movieId,title,genres\n" + csv_movies,
        ratings_csv="userId,movieId,rating,timestamp\n" + "".join(",".join(line) + "\n" for line in lines),
    )
    write(
        tmp_path / "dat",
        movies_dat="".join("::".join(movie) + "\n" for movie in movies).encode("latin-1"),
        ratings_dat="".join("::".join(line) + "\n" for line in lines),
    )
    for kind in ("csv", "dat"):
        dataset, report = build(tmp_path / kind, format="grouplens", split="leave-last-out", min_rating=2)
        assert dataset.titles.to_pylist() == ["Café (1990)", "Heat, The (1995)", "Up"]
        assert named(dataset, dataset.train) == [("1", "20")]
        assert named(dataset, dataset.valid) == [("1", "30")]
        assert named(dataset, dataset.test) == [("1", "10")]
        assert report["left_out"]["low_rating_interactions"] == 1
        assert report["users"] == 2  # user 2 stays, with nothing


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_amazon_2018(tmp_path: Path) -> None:
    meta = [
        {"asin": "A", "title": "Alpha &amp; Omega", "price": "$1"},
        {"asin": "B", "title": "Beta", "also_buy": ["A"]},
        {"asin": "A", "title": "Alpha, scraped later"},
        {"title": "Cold", "asin": "C", "price": 5},
    ]
    reviews = [
        {"reviewerID": "r", "asin": asin, "overall": 5.0, "unixReviewTime": time}
        for asin, time in (("B", 2_000), ("A", 1_000), ("C", 3_000))
    ]
    (tmp_path / "meta_Games.json.gz").write_bytes(gzip.compress(jsonl(meta)))
    (tmp_path / "Games.json.gz").write_bytes(gzip.compress(jsonl(reviews)))
    dataset, report = build(tmp_path, format="amazon-2018", split="leave-last-out")
    assert dataset.titles.to_pylist() == ["Alpha & Omega", "Beta", "Cold"]
    assert named(dataset, dataset.train) == [("r", "A")]
    assert named(dataset, dataset.test) == [("r", "C")]
    assert report["left_out"]["repeated_items"] == 1
    assert report["left_out"]["repeated_items_with_another_title"] == 1


def test_amazon_2023(tmp_path: Path) -> None:
    meta = [{"parent_asin": asin, "title": title, "main_category": "Toys"} for asin, title in (("A", "x"), ("B", "y"))]
    meta.append({"parent_asin": "C", "title": None})
    reviews = [
        {
            "user_id": "r",
            "asin": "variant",
            "parent_asin": asin,
            "rating": rating,
            "timestamp": 1_588_687_728_923 + time,
        }
        for asin, rating, time in (("C", 5.0, 2), ("A", 4.0, 0), ("B", 3.0, 1))
    ]
    (tmp_path / "meta_Toys.jsonl").write_bytes(jsonl(meta))
    (tmp_path / "Toys.jsonl").write_bytes(jsonl(reviews))
    dataset, _ = build(tmp_path, format="amazon-2023", split="leave-last-out", min_rating=3, on_empty_title="id")
    assert dataset.titles.to_pylist() == ["x", "y", "C"]
    assert [named(dataset, pairs) for pairs in (dataset.train, dataset.valid, dataset.test)] == [
        [("r", "A")],
        [("r", "B")],
        [("r", "C")],
    ]


def test_the_given_split_of_amazon_2023(tmp_path: Path) -> None:
    head = "user_id,parent_asin,rating,timestamp,history\n"
    files = {
        "train": head + "r,A,5.0,1588687728000,\nr,B,3.0,1588687728001,A\n",
        "valid": head + "r,C,4.0,1588687728002,A B\n",
        "test": head + "r,D,1.0,1588687728003,A B C\n",
    }
    for split, content in files.items():
        (tmp_path / f"Games.{split}.csv").write_text(content)
    meta = [{"parent_asin": asin, "title": f"title {asin}"} for asin in "ABCD"]
    (tmp_path / "meta_Games.jsonl").write_bytes(jsonl(meta))
    dataset, _ = build(tmp_path, format="amazon-2023", split="given")
    assert [named(dataset, pairs) for pairs in dataset.splits.values()] == [
        [("r", "A"), ("r", "B")],
        [("r", "C")],
        [("r", "D")],
    ]
    (tmp_path / "Games.valid.csv").write_text(head + "r,Z,4.0,1588687728002,A B\n")
    refused(
        tmp_path,
        "Games.valid.csv: 1 interactions have an item that the catalog lacks (got Z at line 2)",
        format="amazon-2023",
        split="given",
    )


# ---------------------------------------------------------------- titles


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Orcs &amp; Humans", "Orcs & Humans"),
        ("18&quot; doll&#39;s", "18\" doll's"),
        ("  two \t spaces\n", "two spaces"),
        ("a&nbsp;b", "a b"),
        ("Cafe\u0301", "Caf\u00e9"),
        ("&nbsp;", ""),
        ("plain title (1995)", "plain title (1995)"),
    ],
)
def test_title_normalisation_by_hand(raw: str, clean: str) -> None:
    assert normalize_title(raw) == clean


@given(st.lists(st.none() | st.text() | st.text(alphabet="a &;amp\t é"), min_size=1))
def test_the_column_route_equals_the_single_title_route(titles: list[str | None]) -> None:
    expected = [None if title is None else normalize_title(title) or None for title in titles]
    assert normalize_titles(pl.Series(titles, dtype=pl.String)).to_list() == expected


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Guitar&amplifier", "Guitar&amplifier"),
        ("Orcs &amp;amp; Humans", "Orcs & Humans"),
        ("AT&T &copy 2019", "AT&T &copy 2019"),
        ("5 &#8364; &#x20AC;", "5 \u20ac \u20ac"),
        ("&nosuch;", "&nosuch;"),
    ],
)
def test_only_whole_entities_are_resolved_and_all_of_them(raw: str, clean: str) -> None:
    assert normalize_title(raw) == clean


PARTS = {
    "title": ["Lamp", "Lamp", None, "Lamp", None, None],
    "brand": ["Acme", None, "Acme", None, None, " "],
    "category": ["Lights", "Lights", "Lights", None, None, "Lights"],
}


@pytest.mark.parametrize(
    ("template", "texts"),
    [
        (
            "{title} by {brand}. {category}",
            ["Lamp by Acme. Lights", "Lamp. Lights", "Acme. Lights", "Lamp", None, "Lights"],
        ),
        (
            "Item: {title}, brand: {brand} ({category})",
            [
                "Item: Lamp, brand: Acme (Lights)",
                "Item: Lamp (Lights)",
                "brand: Acme (Lights)",
                "Item: Lamp",
                None,
                "(Lights)",
            ],
        ),
        ("{brand}", ["Acme", None, "Acme", None, None, None]),
    ],
)
def test_a_template_leaves_out_missing_parts(template: str, texts: list[str | None]) -> None:
    columns = {name: pl.Series(values=values, dtype=pl.String) for name, values in PARTS.items()}
    assert fill_template(template, columns).to_list() == texts


def test_text_of_several_columns_is_the_items_text(tmp_path: Path) -> None:
    items = "item_id,title,brand\nA,Alpha,Acme\nB,Beta,\nC,Gamma,X&amp;Y\nD,,\n"
    write(tmp_path, items_csv=items, interactions_csv=GIVEN)
    dataset, _ = given_split(tmp_path, text="{title} by {brand}", on_empty_title="skip")
    assert dataset.titles.to_pylist() == ["Alpha by Acme", "Beta", "Gamma by X&Y"]
    refused(tmp_path, "'colour' (got item_id, title, brand); pass --data.text TEXT", text="{title} {colour}")
    store = Store(str(tmp_path / "store"))
    settings = {"split": "given", "split_column": "split", "on_empty_title": "skip"}
    plain, composed = (
        prepare(store, settings_for(tmp_path, text=text, **settings)) for text in ("", "{title} by {brand}")
    )
    assert plain.version != composed.version


@pytest.mark.parametrize("text", ["no column", "{}", "{title!r}", "{title:>5}", "{title"])
def test_a_template_that_names_no_column_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="text"):
        DataSettings(text=text)


def test_columns_are_kept_in_the_order_of_the_items(tmp_path: Path) -> None:
    items = "item_id,title,price,shelf\nA,Alpha,9.5,x\nB,Beta,,y\nE,,1,z\nC,Gamma,3,\nD,Delta,4,x\n"
    write(tmp_path, items_csv=items, interactions_csv=GIVEN)
    settings = {"split": "given", "split_column": "split", "on_empty_title": "skip"}
    artifact = prepare(Store(str(tmp_path / "s")), settings_for(tmp_path, keep_columns=("price", "shelf"), **settings))
    table = artifact.read_table("attributes.parquet")
    assert table["item_id"].to_pylist() == load_dataset(artifact).item_ids.to_pylist() == ["A", "B", "C", "D"]
    assert table["shelf"].to_pylist() == ["x", "y", None, "x"]
    assert table["price"].to_pylist() == ["9.5", None, "3", "4"]


# ---------------------------------------------------------------- policies and filters

EMPTY = "item_id,title\nA,Alpha\nB,\nC,Gamma\nD,&nbsp;\n"


def test_empty_title_skip_drops_the_item_and_its_interactions(tmp_path: Path) -> None:
    dataset, report = given_split(write(tmp_path, items_csv=EMPTY, interactions_csv=GIVEN), on_empty_title="skip")
    assert dataset.item_ids.to_pylist() == ["A", "C"]
    assert named(dataset, dataset.train) == [("u1", "A"), ("u2", "C")]
    assert report["left_out"]["empty_title_items"] == 2
    assert report["left_out"]["empty_title_interactions"] == 2
    assert report["items_without_title"] == 2


def test_empty_title_id_keeps_everything(tmp_path: Path) -> None:
    dataset, report = given_split(write(tmp_path, items_csv=EMPTY, interactions_csv=GIVEN), on_empty_title="id")
    assert dataset.titles.to_pylist() == ["Alpha", "B", "Gamma", "D"]
    assert sum(report["interactions"].values()) == 8
    assert report["items_without_title"] == 2


def test_rows_without_an_id_stop_or_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, items_csv=ITEMS + ",No id\n", interactions_csv=GIVEN + ",A,train\nu9,,train\n")
    refused(tmp_path, "1 rows have no item id in column item_id (got null at line 6); pass --data.on-missing-id skip")
    dataset, report = given_split(tmp_path, on_missing_id="skip")
    assert report["left_out"]["items_without_id"] == 1
    assert report["left_out"]["interactions_without_id"] == 2
    assert dataset.user_ids.to_pylist() == ["u1", "u3", "u2"]
    write(tmp_path, interactions_csv="user_id,item_id\n,A\n")
    refused(tmp_path, "no row has an id (got 1 rows); pass --data.user-column NAME", on_missing_id="skip")


@pytest.mark.parametrize(("choice", "title"), [("first", "Other"), ("most-frequent", "Alpha")])
def test_one_of_several_titles_is_chosen(tmp_path: Path, choice: str, title: str) -> None:
    items = "item_id,title\nA,\nA,Other\nB,Beta\nA,Alpha\nC,Gamma\nA, Alpha\nD,Delta\n"
    write(tmp_path, items_csv=items, interactions_csv=GIVEN)
    shown = "(got A with title 'Other' at line 3, A with title 'Alpha' at line 5); pass --data.on-different-title"
    refused(tmp_path, "2 rows share an item id but not the title", shown)
    dataset, report = given_split(tmp_path, on_different_title=choice)
    assert dataset.titles.to_pylist() == [title, "Beta", "Gamma", "Delta"]
    assert report["left_out"]["repeated_items"] == 3
    assert report["left_out"]["repeated_items_with_another_title"] == 1


def test_a_row_without_a_title_takes_that_of_its_items_other_rows(tmp_path: Path) -> None:
    write(tmp_path, items_csv="item_id,title\nA,\nB,Beta\nA,Alpha\nC,Gamma\n", interactions_csv=GIVEN)
    dataset, report = given_split(tmp_path)
    assert dataset.titles.to_pylist() == ["Alpha", "Beta", "Gamma"]
    assert report["items_without_title"] == 0


def test_unknown_item_skip_is_counted_and_shifts_no_user(tmp_path: Path) -> None:
    unknown = GIVEN.replace("u1,A,train", "u0,Z,train\nu1,A,train")
    dataset, report = given_split(write(tmp_path, items_csv=ITEMS, interactions_csv=unknown), on_unknown_item="skip")
    assert report["left_out"]["unknown_item_interactions"] == 1
    assert dataset.user_ids.to_pylist() == ["u0", "u1", "u3", "u2"]
    assert dataset.train.users.tolist() == [1, 3, 3]


def test_duplicate_first_keeps_the_first_in_time(tmp_path: Path) -> None:
    pairs = "user_id,item_id,time\nu,A,9\nu,B,2\nu,A,1\nu,C,5\n"
    write(tmp_path, items_csv=ITEMS, interactions_csv=pairs)
    dataset, report = build(tmp_path, split="leave-last-out", time_column="time", on_duplicate="first")
    assert named(dataset, dataset.train) == [("u", "A")]  # at 1, not at 9
    assert named(dataset, dataset.test) == [("u", "C")]
    assert report["left_out"]["repeated_interactions"] == 1


def test_repeated_item_rows_with_one_title_are_one_item(tmp_path: Path) -> None:
    dataset, report = given_split(write(tmp_path, items_csv=ITEMS + "A, Alpha \n", interactions_csv=GIVEN))
    assert dataset.num_items == 4
    assert report["left_out"]["repeated_items"] == 1


def test_core_goes_round_until_nothing_changes() -> None:
    # First go u2, who has one interaction, and item 0; then item 1 and u1 have one each. u0 and u3 share items 2 and 3.
    users, items = np.array([0, 0, 3, 3, 1, 1, 2]), np.array([2, 3, 2, 3, 0, 1, 1])
    keep, rounds = core_mask(users, items, 2, 2)
    assert keep.tolist() == [True] * 4 + [False] * 3
    assert rounds == 2


def test_core_removes_and_renumbers_users_and_items(tmp_path: Path) -> None:
    rows = [("lone", "A")] + [(user, item) for user in ("p", "q") for item in "BCD"]
    pairs = "user_id,item_id\n" + "".join(f"{user},{item}\n" for user, item in rows)
    write(tmp_path, items_csv=ITEMS, interactions_csv=pairs)
    dataset, report = build(tmp_path, min_user_interactions=2, min_item_interactions=2)
    assert dataset.item_ids.to_pylist() == ["B", "C", "D"]
    assert dataset.user_ids.to_pylist() == ["p", "q"]
    together = sorted(named(dataset, dataset.train) + named(dataset, dataset.valid) + named(dataset, dataset.test))
    assert together == rows[1:]
    core = {name: count for name, count in report["left_out"].items() if name.startswith("core")}
    assert core == {"core_users": 1, "core_items": 1, "core_interactions": 1, "core_rounds": 1}


def test_a_user_core_alone_keeps_cold_items(tmp_path: Path) -> None:
    rows = [("lone", "A")] + [(user, item) for user in ("p", "q") for item in "BCD"]
    pairs = "user_id,item_id\n" + "".join(f"{user},{item}\n" for user, item in rows)
    dataset, _ = build(write(tmp_path, items_csv=ITEMS, interactions_csv=pairs), min_user_interactions=2)
    assert dataset.item_ids.to_pylist() == ["A", "B", "C", "D"]
    assert dataset.user_ids.to_pylist() == ["p", "q"]


def test_drop_cold_truth(tmp_path: Path) -> None:
    cold = GIVEN + "u2,D,test\n"
    dataset, report = given_split(write(tmp_path, items_csv=ITEMS, interactions_csv=cold), drop_cold_truth=True)
    assert ("u2", "D") not in named(dataset, dataset.test)
    assert dataset.num_items == 4  # D can still be recommended
    assert report["left_out"]["cold_truth_interactions"] == 1


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize(
    ("num", "sizes"),
    [
        (0, (0, 0, 0)),
        (1, (1, 0, 0)),
        (2, (1, 1, 0)),
        (3, (1, 1, 1)),
        (5, (2, 2, 1)),
        (10, (4, 3, 3)),
        (53, (21, 16, 16)),
    ],
)
def test_split_sizes_by_hand(num: int, sizes: tuple[int, int, int]) -> None:
    assert tuple(int(size[0]) for size in split_sizes(np.array([num]), RATIOS)) == sizes


shares = st.tuples(st.integers(1, 20), st.integers(0, 20), st.integers(0, 20)).map(
    lambda parts: tuple(part / sum(parts) for part in parts)
)


@given(st.lists(st.integers(0, 60), min_size=1), shares)
def test_split_sizes_are_the_shares_rounded(nums: list[int], ratios: tuple[float, float, float]) -> None:
    num_of_user = np.array(nums)
    sizes = split_sizes(num_of_user, ratios)
    assert np.array_equal(sum(sizes), num_of_user)
    for size, ratio in zip(sizes, ratios, strict=True):
        assert np.all(size >= 0)
        assert np.all(np.abs(size - ratio * num_of_user) < 1 + 1e-9)  # 1e-9: ratios are rounded to floats
        assert ratio > 0 or not size.any()
    assert np.all(sizes[0][num_of_user > 0] >= 1)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), min_size=1, max_size=80),
    st.sampled_from(["ratio-random", "ratio-time", "leave-last-out", "global-time"]),
    st.integers(0, 3),
)
def test_every_interaction_is_in_one_split_every_time(rows: list[tuple[int, int]], how: Any, seed: int) -> None:
    users, times = np.array(rows).T
    codes = split_interactions(users, times, how=how, ratios=RATIOS, seed=seed)
    assert codes.shape == users.shape
    assert set(codes.tolist()) <= {0, 1, 2}
    assert np.array_equal(codes, split_interactions(users, times, how=how, ratios=RATIOS, seed=seed))
    if how == "global-time":
        for early, late in ((0, 1), (1, 2), (0, 2)):
            assert times[codes == early].max(initial=-1) < times[codes == late].min(initial=10)
        return
    for user in np.unique(users):
        own = codes[users == user]
        assert 0 in own
        if how != "ratio-random":
            in_time = own[np.argsort(times[users == user], kind="stable")]
            assert np.all(np.diff(in_time) >= 0)
        if how == "leave-last-out":
            assert np.bincount(own, minlength=3)[1:].tolist() == [int(len(own) > 2), int(len(own) > 1)]
        else:
            assert np.bincount(own, minlength=3).tolist() == [
                int(size[0]) for size in split_sizes(np.array([len(own)]), RATIOS)
            ]


def test_ratio_random_shares_and_seeds() -> None:
    users = np.repeat(np.arange(200), 10)
    first, same, other = (
        split_interactions(users, None, how="ratio-random", ratios=RATIOS, seed=seed) for seed in (1, 1, 2)
    )
    assert np.bincount(first).tolist() == [800, 600, 600]
    assert np.array_equal(first, same)
    # Two independent splits agree on a pair with probability .16 + .09 + .09 = .34, standard deviation about .01.
    assert abs(np.mean(first == other) - 0.34) < 0.05


def test_ties_in_time_go_by_file_order() -> None:
    codes = split_interactions(np.zeros(5, int), np.full(5, 7), how="ratio-time", ratios=(0.6, 0.2, 0.2), seed=0)
    assert codes.tolist() == [0, 0, 0, 1, 2]


def test_global_time_by_hand() -> None:
    times = np.array([5, 1, 2, 3, 4, 4, 4, 6, 7, 8])  # ten: 1 2 3 | 4 4 4 5 | 6 7 8 is nearest to 4:3:3
    codes = split_interactions(np.arange(10), times, how="global-time", ratios=RATIOS, seed=0)
    assert codes.tolist() == [1, 0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("how", ["ratio-random", "ratio-time", "global-time"])
@pytest.mark.parametrize(
    ("ratios", "sizes"),
    [((0.8, 0.0, 0.2), (40, 0, 10)), ((0.8, 0.2, 0.0), (40, 10, 0)), ((1.0, 0.0, 0.0), (50, 0, 0))],
)
def test_a_share_of_zero_leaves_a_part_out(
    how: Any, ratios: tuple[float, float, float], sizes: tuple[int, ...]
) -> None:
    users, times = np.repeat(np.arange(10), 5), np.tile(np.arange(5), 10)
    codes = split_interactions(users, times, how=how, ratios=ratios, seed=0)
    assert tuple(np.bincount(codes, minlength=3)) == sizes


def test_a_share_of_zero_needs_no_other_setting(tmp_path: Path) -> None:
    write(tmp_path, items_csv=ITEMS, interactions_csv=long_pairs())
    dataset, report = build(tmp_path, ratios=(0.5, 0.0, 0.5))
    assert (len(dataset.train), len(dataset.valid), len(dataset.test)) == (18, 0, 18)
    assert (report["users_without_valid"], report["users_without_test"]) == (9, 0)


def test_without_a_split_every_interaction_is_train(tmp_path: Path) -> None:
    """Whatever the split column says, so that one file serves to choose the settings and to fit the final model."""
    write(tmp_path, items_csv=ITEMS, interactions_csv=GIVEN)
    none, report = build(tmp_path, split="none", split_column="split")
    everything, _ = build(tmp_path, ratios=(1.0, 0.0, 0.0))
    assert named(none, none.train) == named(everything, everything.train)
    assert sorted(named(none, none.train)) == sorted(tuple(row.split(",")[:2]) for row in GIVEN.split()[1:])
    assert report["interactions"] == {"train": 8, "valid": 0, "test": 0}
    assert (report["users_without_valid"], report["users_without_test"], report["items_without_train"]) == (3, 3, 1)
    assert "interactions in valid 0" in [" ".join(line.split()) for line in format_report(report).splitlines()]


def test_an_empty_part_that_nobody_asked_for_is_refused_or_allowed(tmp_path: Path) -> None:
    no_valid, no_test = GIVEN.replace(",valid", ",train"), GIVEN.replace(",test", ",train")
    own = {"split": "given", "split_column": "split"}
    for name, pairs, sizes in (("valid", no_valid, (6, 0, 2)), ("test", no_test, (5, 3, 0))):
        write(tmp_path, items_csv=ITEMS, interactions_csv=pairs)
        got = "(got {} in train, {} in valid, {} in test)".format(*sizes)
        then = "pass --data.on-empty-split allow"
        refused(tmp_path, f"the split given leaves {name} empty", got, then, **own)
        dataset, _ = build(tmp_path, on_empty_split="allow", **own)
        assert (len(dataset.train), len(dataset.valid), len(dataset.test)) == sizes
    # Shares that are not 0, of users with too few interactions.
    write(tmp_path, items_csv=ITEMS, interactions_csv="user_id,item_id\nu,A\nv,B\n")
    refused(tmp_path, "the split ratio-random leaves valid empty", then)
    assert len(build(tmp_path, on_empty_split="allow")[0].train) == 2


def test_an_empty_train_is_always_refused(tmp_path: Path) -> None:
    write(tmp_path, items_csv=ITEMS, interactions_csv=GIVEN.replace(",train", ",valid"))
    own = {"split_column": "split", "on_empty_split": "allow"}
    refused(tmp_path, "leaves train empty (got 0 in train, 6", "pass --data.split none", split="given", **own)
    assert len(build(tmp_path, split="none", **own)[0].train) == 8


def test_alpharec_lines_without_items_leave_a_part_empty(tmp_path: Path) -> None:
    write(tmp_path, **alpharec_files(valid_txt="0\n1\n"))
    own = {"format": "alpharec", "split": "given"}
    refused(tmp_path, "the split given leaves valid empty", "pass --data.on-empty-split allow", **own)
    dataset, _ = build(tmp_path, on_empty_split="allow", **own)
    assert len(dataset.valid) == 0
    assert len(dataset.train) > 0 < len(dataset.test)


def test_empty_parts_are_written_and_read_back(tmp_path: Path) -> None:
    write(tmp_path, items_csv=ITEMS, interactions_csv=long_pairs())
    artifact = prepare(Store(str(tmp_path / "store")), settings_for(tmp_path, split="none"))
    assert artifact.summary == {"users": 9, "items": 4, "train": 36, "valid": 0, "test": 0}
    for part in (load_dataset(artifact).valid, read_pairs(artifact, "valid", 0, 9), read_pairs(artifact, "test", 3, 5)):
        assert (len(part.users), part.users.dtype, part.items.dtype) == (0, np.int64, np.int64)
    assert read_degrees(artifact).tolist() == [4] * 9


def test_a_mix_holds_a_dataset_without_a_split(tmp_path: Path) -> None:
    write(tmp_path, items_csv=ITEMS, interactions_csv=GIVEN)
    own = {"path": str(tmp_path), "split_column": "split"}
    domains = {"a": own | {"split": "none"}, "b": own | {"split": "given"}}
    settings = Settings.model_validate({"name": "both", "data": {"format": "mix", "domains": domains}})
    artifact = prepare(Store(str(tmp_path / "store")), settings)
    assert [artifact.summary[split] for split in ("train", "valid", "test")] == [8 + 3, 3, 2]
    assert load_dataset(artifact).valid.users.min() >= 3, "those of b alone"


def test_a_setting_at_its_default_is_no_part_of_a_version(tmp_path: Path) -> None:
    write(tmp_path, items_csv=ITEMS, interactions_csv=long_pairs())
    store = Store(str(tmp_path / "store"))
    plain = prepare(store, settings_for(tmp_path)).version
    assert prepare(store, settings_for(tmp_path, on_empty_split="error", keep_columns=())).version == plain
    assert prepare(store, settings_for(tmp_path, on_empty_split="allow")).version != plain


# ---------------------------------------------------------------- bad input

PAIRS = "user_id,item_id\n" + "".join(f"u,{item}\n" for item in "ABC")


def test_empty_title_error_names_items_lines_and_option(tmp_path: Path) -> None:
    write(tmp_path, items_csv=EMPTY, interactions_csv=PAIRS)
    parts = ("2 items have an empty title", "(got null for B at line 3, '&nbsp;' for D at line 5)")
    refused(tmp_path, f"catalog {tmp_path}/items.csv: ", *parts, "; pass --data.on-empty-title skip")


def test_only_the_first_examples_are_shown(tmp_path: Path) -> None:
    items = "item_id,title\n" + "".join(f"{number},\n" for number in range(9))
    write(tmp_path, items_csv=items, interactions_csv=PAIRS)
    refused(tmp_path, "9 items", "null for 0 at line 2, null for 1 at line 3, null for 2 at line 4, ...)")


def test_lines_are_right_after_a_title_with_a_line_end(tmp_path: Path) -> None:
    write(tmp_path, items_csv='item_id,title\nA,"two\nlines"\nB,""\n', interactions_csv=PAIRS)
    refused(tmp_path, "for B at line 4")


def test_missing_file(tmp_path: Path) -> None:
    write(tmp_path, items_csv=ITEMS)
    refused(tmp_path, f"interactions {tmp_path}/no.csv: no such file", "--data.interactions", interactions="no.csv")
    refused(tmp_path, "one file of interactions", "(got none)", "pass --data.interactions FILE")


def test_two_usual_files(tmp_path: Path) -> None:
    write(tmp_path, items_csv=ITEMS, items_jsonl="{}", interactions_csv=PAIRS)
    refused(tmp_path, "one file of items", "(got items.csv, items.jsonl)", "pass --data.items FILE")


def test_an_unknown_kind_of_url() -> None:
    with pytest.raises(CatalogError, match="nowhere://x/: cannot be read"):
        build("nowhere://x")


def test_nothing_to_read() -> None:
    with pytest.raises(CatalogError, match=re.escape("pass --data.path FOLDER")):
        build("")


def test_missing_column(tmp_path: Path) -> None:
    write(tmp_path, items_csv="asin,name\nA,x\n", interactions_csv=PAIRS)
    refused(tmp_path, "items.csv: must have one column 'item_id' (got asin, name)", "--data.item-column NAME")
    refused(tmp_path, "'title' (got asin, name)", "--data.title-column NAME", item_column="asin")


def test_missing_column_in_jsonl_and_parquet(tmp_path: Path) -> None:
    write(tmp_path, items_jsonl='{"asin": "A", "title": "x"}\n', interactions_csv=PAIRS)
    refused(tmp_path, "items.jsonl: must have one column 'item_id' (got asin, title)", "--data.item-column NAME")
    pl.DataFrame({"asin": ["A"]}).write_parquet(tmp_path / "meta.parquet")
    refused(tmp_path, "meta.parquet: must have one column 'item_id' (got asin)", items="meta.parquet")


def test_duplicate_item_with_another_title(tmp_path: Path) -> None:
    write(tmp_path, items_csv=ITEMS + "A,Another\n", interactions_csv=PAIRS)
    refused(tmp_path, "items.csv: 2 rows share an item id", "A with title 'Alpha' at line 2", "'Another' at line 6")


def test_unknown_item(tmp_path: Path) -> None:
    write(tmp_path, items_csv=ITEMS, interactions_csv=PAIRS + "u,Z\nv,Y\n")
    parts = ("2 interactions have an item that the catalog lacks", "(got Z at line 5, Y at line 6)")
    refused(tmp_path, f"interactions {tmp_path}/interactions.csv: ", *parts, "pass --data.on-unknown-item skip")


def test_duplicate_pair(tmp_path: Path) -> None:
    write(tmp_path, items_csv=ITEMS, interactions_csv=PAIRS + "u,B\n")
    where = "user u, item B at interactions.csv line 3 and interactions.csv line 5"
    refused(tmp_path, "1 (user, item) pairs occur twice", where, "pass --data.on-duplicate first")


def test_the_same_pair_in_two_splits(tmp_path: Path) -> None:
    write(tmp_path, items_csv=ITEMS, interactions_csv=GIVEN + "u1,A,test\n")
    where = "user u1, item A at train, interactions.csv line 2 and test, interactions.csv line 10"
    refused(tmp_path, "1 (user, item) pairs are in more than one split", where, split="given", split_column="split")


def test_the_same_pair_in_two_text_files(tmp_path: Path) -> None:
    write(tmp_path, **alpharec_files(test_txt="2 1\n1 0\n0 3\n"))
    where = "user 0, item 3 at train, train.txt line 1 and test, test.txt line 3"
    refused(tmp_path, "more than one split", where, format="alpharec", split="given")


@pytest.mark.parametrize(("line", "what"), [(",B", "user id in column user_id"), ("u,", "item id in column item_id")])
def test_null_id(tmp_path: Path, line: str, what: str) -> None:
    write(tmp_path, items_csv=ITEMS, interactions_csv=f"{PAIRS}{line}\n")
    refused(tmp_path, "interactions.csv: 1 rows have no ", what, "(got null at line 5)")


def test_null_id_in_a_parquet_file_is_named_by_row(tmp_path: Path) -> None:
    write(tmp_path, items_csv=ITEMS)
    pl.DataFrame({"user_id": [1, None], "item_id": ["A", "B"]}).write_parquet(tmp_path / "interactions.parquet")
    refused(tmp_path, "rows have no user id", "(got null at row 2)")


def test_ids_that_are_fractions(tmp_path: Path) -> None:
    write(tmp_path, items_csv=ITEMS)
    pl.DataFrame({"user_id": [1.0, 1.5], "item_id": ["A", "B"]}).write_parquet(tmp_path / "interactions.parquet")
    refused(tmp_path, "1 ids are not whole numbers in column user_id (got 1.5 at row 2)", "write them as text")


def test_not_utf8(tmp_path: Path) -> None:
    write(tmp_path, items_csv="item_id,title\nA,x\nB,Café\nC,y\n".encode("latin-1"), interactions_csv=PAIRS)
    refused(tmp_path, "items.csv: not UTF-8 (got byte 0xe9 at line 3: 'B,Café')", "pass --data.encoding latin-1")
    assert build(tmp_path, encoding="latin-1")[0].titles[1].as_py() == "Café"


@pytest.mark.parametrize("bad", ["soon", "", "nan"])
def test_time_that_is_no_number(tmp_path: Path, bad: str) -> None:
    write(tmp_path, items_csv=ITEMS, interactions_csv=f"user_id,item_id,when\nu,A,1\nu,B,2.5\nu,C,{bad}\n")
    got = f"(got {repr(bad) if bad else 'null'} at line 4)"
    refused(tmp_path, "no number in column when", got, "--data.time-column", split="ratio-time", time_column="when")


def test_rating_that_is_no_number(tmp_path: Path) -> None:
    write(tmp_path, items_csv=ITEMS, interactions_csv="user_id,item_id,stars\nu,A,5\nu,B,five\n")
    refused(tmp_path, "no number in column stars", "'five' at line 3", rating_column="stars", min_rating=3)


def test_min_rating_without_ratings(tmp_path: Path) -> None:
    refused(write(tmp_path, items_csv=ITEMS, interactions_csv=PAIRS), "pass --data.rating-column NAME", min_rating=3)


def test_unknown_split_label(tmp_path: Path) -> None:
    write(tmp_path, items_csv=ITEMS, interactions_csv=GIVEN.replace("u1,B,valid", "u1,B,dev"))
    refused(
        tmp_path, "unknown split", "(got 'dev' at line 4)", "train, valid, test", split="given", split_column="split"
    )


@pytest.mark.parametrize("content", ["", "item_id,title\n"])
def test_empty_file(tmp_path: Path, content: str) -> None:
    write(tmp_path, items_csv=content, interactions_csv=PAIRS)
    refused(tmp_path, "items.csv: is empty", "pass --data.items FILE")


def test_more_fields_than_the_header(tmp_path: Path) -> None:
    write(tmp_path, items_csv="item_id,title\nA,Alpha\nB,Heat, The\n", interactions_csv=PAIRS)
    what = "not the table of 2 columns, separated by ',', that its first line promises"
    refused(tmp_path, what, "(got 3 fields where the others have 2 at line 3: 'B,Heat, The')", "correct that line")


def test_a_line_that_is_no_json(tmp_path: Path) -> None:
    write(tmp_path, items_jsonl='{"item_id": "A", "title": "x"}\n{"item_id": \n', interactions_csv=PAIRS)
    refused(tmp_path, "items.jsonl: not one JSON object a line", "at line 2")


def test_a_damaged_gzip_file(tmp_path: Path) -> None:
    (tmp_path / "items.csv.gz").write_bytes(gzip.compress(ITEMS.encode())[:-9])
    write(tmp_path, interactions_csv=PAIRS)
    refused(tmp_path, "items.csv.gz: not a whole gzip file")


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    write(tmp_path, items_parquet="item_id,title\n", interactions_csv=PAIRS)
    refused(tmp_path, "items.parquet: not a readable Parquet file")


def test_an_unknown_kind_of_file(tmp_path: Path) -> None:
    write(tmp_path, items_xlsx="x", interactions_csv=PAIRS)
    refused(tmp_path, "items.xlsx: its name must end in the kind of file (got .xlsx)", items="items.xlsx")


def test_nothing_left_after_the_filters(tmp_path: Path) -> None:
    write(tmp_path, items_csv=ITEMS, interactions_csv=PAIRS)
    refused(tmp_path, "no interactions are left", "core_interactions 3", min_user_interactions=4)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"train_txt": "0 3 1\n4 0\n"}, ("train.txt: 1 user ids are above 3 while 3 is missing", "(got 4 at line 2)")),
        (
            {"items_csv": "item_id,title\n0,a\n2,b\n"},
            ("items.csv: 1 item ids are above 1 while 1 is missing", "line 3"),
        ),
        (
            {"test_txt": "2 1\n1 9\n"},
            ("test.txt: 1 interactions have an item that the catalog lacks (got 9 at line 2)",),
        ),
        ({"valid_txt": "0 0\n1 x\n"}, ("valid.txt: a line must be whole numbers", "'1 x' at line 2")),
        ({"valid_txt": "0 0\n1 2\n0 2\n"}, ("valid.txt: 2 lines share a user", "user 0 at line 1, user 0 at line 3")),
        ({"valid_txt": "\n"}, ("valid.txt: is empty",)),
        ({"items_csv": ITEMS}, ("item ids are not the whole numbers that train.txt uses", "'A' at line 2")),
    ],
)
def test_bad_alpharec_files(tmp_path: Path, change: dict[str, str], parts: tuple[str, ...]) -> None:
    refused(write(tmp_path, **alpharec_files(**change)), *parts, format="alpharec", split="given")


def test_a_bad_line_of_a_dat_file(tmp_path: Path) -> None:
    write(tmp_path, movies_dat="1::Up::Comedy\n", ratings_dat="1::1::5::10\n1::1::5\n")
    refused(tmp_path, "a line must be userId::movieId::rating::timestamp", "'1::1::5' at line 2", format="grouplens")


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ({"format": "grouplens", "user_column": "u"}, ("data.user_column = u", "remove --data.user-column")),
        ({"format": "alpharec", "split": "ratio-time"}, ("needs times", "pass --data.split given")),
        ({"format": "alpharec", "interactions": "x.csv"}, ("reads train.txt", "remove --data.interactions")),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(
    tmp_path: Path, data: dict[str, Any], parts: tuple[str, ...]
) -> None:
    refused(tmp_path, *parts, **data)


# ---------------------------------------------------------------- the artifact


def settings_for(folder: Path, seed: int = 101, **data: Any) -> Settings:
    return Settings.model_validate({"name": "tiny", "seed": seed, "data": {"path": str(folder), **data}})


def test_a_mix_holds_its_datasets_one_after_the_other(tmp_path: Path) -> None:
    for name, items in (("a", ITEMS), ("b", ITEMS + 'E,"E, of b alone"\n')):
        (tmp_path / name).mkdir()
        write(tmp_path / name, items_csv=items, interactions_csv=GIVEN)
    own = {"split": "given", "split_column": "split"}
    domains = {name: own | {"path": str(tmp_path / name)} for name in ("a", "b")}
    store, settings = Store(str(tmp_path / "store")), Settings(name="both", data={"format": "mix", "domains": domains})  # type: ignore[arg-type]
    assert find_prepared(store, settings) is None
    artifact = prepare(store, settings)
    assert prepare(store, settings).manifest == artifact.manifest
    found = find_prepared(store, settings)
    assert found is not None
    assert found.uri == artifact.uri
    data = load_dataset(artifact)
    assert data.domains == (Domain("a", 0, 3, 0, 4), Domain("b", 3, 6, 4, 9))
    assert data.item_ids.to_pylist()[3:6] == ["a/D", "b/A", "b/B"]
    assert data.user_ids.to_pylist() == ["a/u1", "a/u3", "a/u2", "b/u1", "b/u3", "b/u2"]
    for domain in data.domains:
        alone, part = load_dataset(prepare(store, settings_for(tmp_path / domain.name, **own))), data.of(domain)
        assert part.titles.to_pylist() == alone.titles.to_pylist()
        for split, pairs in alone.splits.items():
            assert np.array_equal(part.splits[split].users, pairs.users)
            assert np.array_equal(part.splits[split].items, pairs.items)
    assert artifact.read_json("report.json")["domains"]["b"]["items"] == 5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"format": "mix"}, "data.format = mix and data.domains go together .got mix and none."),
        ({"domains": {"a": {"path": "x"}}}, "go together .got table and a."),
        ({"format": "mix", "domains": {"a/b": {"path": "x"}}}, "data.domains.a/b must be a plain dataset"),
        ({"format": "mix", "domains": {"a": {"format": "mix"}}}, "data.domains.a must be a plain dataset"),
        ({"format": "mix", "domains": {"a": {"pth": "x"}}}, "pth"),
    ],
)
def test_a_mix_names_what_does_not_fit(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataSettings.model_validate(data)


def long_pairs() -> str:
    return "user_id,item_id\n" + "".join(f"u{user},{item}\n" for user in range(9) for item in "ABCD")


def test_prepare_writes_what_load_reads(tmp_path: Path) -> None:
    write(tmp_path, items_csv=ITEMS, interactions_csv=GIVEN)
    store = Store(str(tmp_path / "store"))
    artifact = prepare(store, settings_for(tmp_path, split="given", split_column="split"))
    loaded, (built, report) = load_dataset(artifact), given_split(tmp_path)
    for name in ("item_ids", "titles", "user_ids"):
        assert getattr(loaded, name) == getattr(built, name)
    for name in ("train", "valid", "test"):
        pairs: Pairs = getattr(loaded, name)
        assert named(loaded, pairs) == named(built, getattr(built, name))
        assert pairs.users.dtype == pairs.items.dtype == np.int64
        assert artifact.files[f"{name}.parquet"]["schema"] == {"user": "int32", "item": "int32"}
    assert artifact.files["items.parquet"]["schema"] == {"item_id": "string", "title": "string"}
    assert artifact.files["users.parquet"]["schema"] == {"user_id": "string"}
    assert artifact.summary == {"users": 3, "items": 4, "train": 3, "valid": 3, "test": 2}
    assert artifact.manifest["inputs"]["items"] == f"{tmp_path}/items.csv"
    assert artifact.read_json("report.json") == report


def test_pairs_are_sorted_by_user_then_time(tmp_path: Path) -> None:
    rows = [("p", "D", 4), ("q", "C", 3), ("p", "B", 2), ("q", "A", 1), ("p", "A", 1), ("q", "D", 4), ("p", "C", 3)]
    pairs = "user_id,item_id,time\n" + "".join(f"{user},{item},{time}\n" for user, item, time in rows)
    write(tmp_path, items_csv=ITEMS, interactions_csv=pairs)
    dataset, _ = build(tmp_path, split="leave-last-out", time_column="time")
    assert named(dataset, dataset.train) == [("p", "A"), ("p", "B"), ("q", "A")]


def test_the_same_input_finds_the_work_done(tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    store = Store(str(tmp_path / "store"))
    for folder in (tmp_path, tmp_path / "moved"):
        write(folder, items_csv=ITEMS, interactions_csv=long_pairs())
    first = prepare(store, settings_for(tmp_path))
    assert prepare(store, settings_for(tmp_path / "moved")).manifest == first.manifest


def test_version_follows_content_settings_and_seed(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    write(tmp_path, items_csv=ITEMS, interactions_csv=long_pairs())
    made = [
        prepare(store, settings_for(tmp_path)),
        prepare(store, settings_for(tmp_path, seed=7)),
        prepare(store, settings_for(tmp_path, ratios=(0.6, 0.2, 0.2))),
    ]
    write(tmp_path, interactions_csv=long_pairs() + "new,A\n")
    made.append(prepare(store, settings_for(tmp_path)))
    assert len({artifact.version for artifact in made}) == 4
    # Vectors are keyed by the items file, so neither the split nor the seed may touch it.
    assert len({artifact.files["items.parquet"]["sha256"] for artifact in made}) == 1


def test_the_seed_is_no_part_of_a_split_without_chance(tmp_path: Path) -> None:
    write(tmp_path, items_csv=ITEMS, interactions_csv=GIVEN)
    store = Store(str(tmp_path / "store"))
    first, second = (
        prepare(store, settings_for(tmp_path, seed=seed, split="given", split_column="split")) for seed in (1, 2)
    )
    assert first.version == second.version


def test_the_report_reads_as_a_table(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    write(tmp_path, items_csv=EMPTY, interactions_csv=GIVEN)
    artifact = prepare(store, settings_for(tmp_path, split="given", split_column="split", on_empty_title="skip"))
    lines = [" ".join(line.split()) for line in format_report(artifact.read_json("report.json")).splitlines()]
    assert "users 3" in lines
    assert "interactions in train 2" in lines
    assert "left out: empty title items 2" in lines
    assert "of users 0 0 1 1 1 1 1" in lines  # train degrees 1, 0, 1; the order is that of the quantiles


# ---------------------------------------------------------------- real data


def real(folder: str) -> str:
    if not (REAL / folder).is_dir():
        pytest.skip(f"real data absent: {REAL / folder}")
    return str(REAL / folder)


@pytest.mark.parametrize(
    ("config", "folder", "sizes"),
    [
        ("ml1m", "ml-1m", {"users": 6040, "items": 3043, "train": 398_184, "valid": 298_631, "test": 298_677}),
        (
            "amazon-games",
            "amazon-games",
            {"users": 49156, "items": 17332, "train": 299987, "valid": 22609, "test": 19733},
        ),
        (
            "amazon-toys",
            "amazon-toys",
            {"users": 19412, "items": 11924, "train": 128773, "valid": 19412, "test": 19412},
        ),
    ],
)
def test_configs_load_the_real_data(tmp_path: Path, config: str, folder: str, sizes: dict[str, int]) -> None:
    settings = load_settings(["--config", str(CONFIGS / f"{config}.toml"), "--data.path", real(folder)])
    artifact = prepare(Store(str(tmp_path)), settings)
    dataset = load_dataset(artifact)
    assert artifact.summary == sizes
    assert len(dataset.train) == sizes["train"]
    assert not any("&amp;" in title or title != title.strip() for title in dataset.titles.to_pylist())


def test_ml1m_rows_are_the_lines_of_the_file() -> None:
    dataset, _ = build(real("ml-1m"), format="alpharec", split="given", item_column="item")
    with open(REAL / "ml-1m" / "train.txt") as file:
        for line in (next(file), next(file)):
            user, *items = map(int, line.split())
            assert dataset.train.items[dataset.train.users == user].tolist() == items


def test_grouplens_files_of_2016() -> None:
    dataset, report = build(real("ml-latest-small"), format="grouplens", split="ratio-time", ratios=(0.8, 0.1, 0.1))
    assert (dataset.num_users, dataset.num_items) == (671, 9125)
    assert sum(report["interactions"].values()) == 100_004
    assert dataset.titles[0].as_py() == "Toy Story (1995)"


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_a_part_of_the_users_is_read_alone(tmp_path: Path, rows: int) -> None:
    """Row groups of some rows; user 3 has none, user 1 spans several groups."""
    users, items = np.array([0, 1, 1, 1, 1, 2, 4, 4, 5]), np.arange(9)
    draft = Store(str(tmp_path)).draft("datasets", "own", "v1")
    schema = pa.schema({"user": pa.int32(), "item": pa.int32()})
    with draft.stream_table("train.parquet", schema) as write:
        for start in range(0, len(users), rows):
            columns = [pa.array(side[start : start + rows], pa.int32()) for side in (users, items)]
            write(pa.table(columns, schema=schema))
    artifact = draft.commit(settings={}, inputs={}, summary={"users": 7})
    assert read_degrees(artifact).tolist() == [1, 4, 1, 0, 2, 1, 0]
    for first, last in itertools.combinations(range(8), 2):
        found, mine = read_pairs(artifact, "train", first, last), (first <= users) & (users < last)
        assert (found.users.tolist(), found.items.tolist()) == (users[mine].tolist(), items[mine].tolist())
