"""Inputs that users of such systems had, each modelled on a public report: read right, or refused with a way on."""

from __future__ import annotations

import datetime as dt
import decimal
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_data import build, named, refused

from alpharec.config import EncoderSettings
from alpharec.encoders import read_texts

ITEMS = "item_id,title\nP1,Oak shelf\nP2,Tin cup\nP3,Blue jug\nP4,Wool hat\n"
USERS = ("ann", "bob")
TIMED = {"time_column": "at", "split": "leave-last-out"}


def log(times: Callable[[int], Any] = int) -> str:
    """Two users, four items each, one after the other."""
    rows = [f"{user},P{item},{times(item)}" for user in USERS for item in (1, 2, 3, 4)]
    return "\n".join(["user_id,item_id,at", *rows]) + "\n"


def write(folder: Path, **files: str | bytes) -> Path:
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def pairs(folder: Path | str, **data: Any) -> dict[str, list[tuple[str, str]]]:
    dataset, _ = build(folder, **data)
    return {split: named(dataset, rows) for split, rows in dataset.splits.items()}


EXPECTED = {
    "train": [(user, item) for user in USERS for item in ("P1", "P2")],
    "valid": [(user, "P3") for user in USERS],
    "test": [(user, "P4") for user in USERS],
}


def test_01_an_inch_mark_in_a_column_that_is_not_read(tmp_path: Path) -> None:
    items = 'item_id,title,width\nP1,Oak shelf,24"\nP2,Tin cup,3\nP3,Blue jug,5"\nP4,Wool hat,\n'
    write(tmp_path, items__csv=items, interactions__csv=log())
    dataset, report = build(tmp_path, **TIMED)
    assert dataset.item_ids.to_pylist() == ["P1", "P2", "P3", "P4"]
    assert sum(report["interactions"].values()) == 8


def test_02_decimal_ratings(tmp_path: Path) -> None:
    rows = [(user, f"P{item}", item, decimal.Decimal(f"{item}.5")) for user in USERS for item in (1, 2, 3, 4)]
    users, items, times, stars = zip(*rows, strict=True)
    table = pa.table({"user_id": users, "item_id": items, "at": times, "stars": pa.array(stars, pa.decimal128(9, 2))})
    pq.write_table(table, tmp_path / "interactions.parquet")
    write(tmp_path, items__csv=ITEMS)
    _, report = build(tmp_path, rating_column="stars", min_rating=2.5, **TIMED)
    assert sum(report["interactions"].values()) == 6
    assert report["left_out"]["low_rating_interactions"] == 2


def test_03_titles_that_are_lists_or_objects(tmp_path: Path) -> None:
    titles = [["Oak shelf"], "Tin cup", [], {"en": "Wool hat"}]
    lines = [json.dumps({"item_id": f"P{place}", "title": title}) for place, title in enumerate(titles, 1)]
    write(tmp_path, items__jsonl="\n".join(lines), interactions__csv=log())
    got = "(got ['Oak shelf'] at line 1, [] at line 3, {'en': 'Wool hat'} at line 4)"
    refused(tmp_path, "3 values are not text in column title", got, "--data.on-nested-text join", **TIMED)
    refused(tmp_path, "1 items have an empty title (got null for P3", on_nested_text="join", **TIMED)
    dataset, _ = build(tmp_path, on_nested_text="join", on_empty_title="id", **TIMED)
    assert dataset.titles.to_pylist() == ["Oak shelf", "Tin cup", "P3", "Wool hat"]


def test_04_semicolons_latin_1_and_backslashes(tmp_path: Path) -> None:
    items = '"ISBN";"Name"\n"P1";"The \\"Oak\\"; a shelf"\n"P2";"Tin cup"\n"P3";"Blaue Kr\u00fcge"\n"P4";"Wool hat"\n'
    ratings = log().replace(",", '";"').replace("\n", '"\n"').rstrip('"')
    write(tmp_path, items__csv=items.encode("latin-1"), interactions__csv='"' + ratings.replace("item_id", "ISBN"))
    names = {"item_column": "ISBN", "title_column": "Name"} | TIMED
    refused(tmp_path, "not UTF-8 (got byte 0xfc at line 4", "pass --data.encoding latin-1", **names)
    dataset, _ = build(tmp_path, encoding="latin-1", **names)
    assert dataset.titles.to_pylist() == ['The "Oak"; a shelf', "Tin cup", "Blaue Kr\u00fcge", "Wool hat"]


@pytest.mark.parametrize("form", ["2019-12-{:02}", "2019-12-{:02} 10:00:00", "2019-12-{:02}T10:00:00+02:00"])
def test_05_dates_as_text(tmp_path: Path, form: str) -> None:
    write(tmp_path, items__csv=ITEMS, interactions__csv=log(form.format))
    assert pairs(tmp_path, **TIMED) == EXPECTED


def test_06_no_validation_and_no_test_part(tmp_path: Path) -> None:
    write(tmp_path, items__csv=ITEMS, interactions__csv=log())
    time = {"time_column": "at", "split": "ratio-time"}
    parts = pairs(tmp_path, ratios=(0.75, 0, 0.25), **time)
    assert {split: len(rows) for split, rows in parts.items()} == {"train": 6, "valid": 0, "test": 2}
    assert len(pairs(tmp_path, ratios=(1, 0, 0), **time)["train"]) == 8
    assert len(pairs(tmp_path, split="none")["train"]) == 8


def test_07_a_folder_of_part_files(tmp_path: Path) -> None:
    write(tmp_path, items__csv=ITEMS)
    (tmp_path / "interactions.parquet").mkdir()
    for user in USERS:
        rows = [(user, f"P{item}", dt.datetime(2020, 1, item)) for item in (1, 2, 3, 4)]
        table = pa.table(dict(zip(("user_id", "item_id", "at"), zip(*rows, strict=True), strict=True)))
        pq.write_table(table, tmp_path / "interactions.parquet" / f"part-{user}.parquet")
    (tmp_path / "interactions.parquet" / "_SUCCESS").touch()
    for given in ({}, {"interactions": "interactions.parquet"}, {"interactions": "interactions.parquet/part-*"}):
        assert pairs(tmp_path, **given, **TIMED) == EXPECTED


def test_09_one_log_as_both_tables(tmp_path: Path) -> None:
    rows = [f"{user}.0,P{item},Thing {item},2011-01-0{item} 08:20" for user in (101, 102) for item in (1, 2, 3, 4)]
    rows += [",P1,Thing 1,2011-01-05 08:20", "102.0,P2,Thing two,2011-01-06 08:20"]
    write(tmp_path, log__csv="\n".join(["customer,item_id,title,at", *rows]))
    given: dict[str, Any] = {"items": "log.csv", "interactions": "log.csv", "user_column": "customer"}
    given |= {"on_duplicate": "first", **TIMED}
    refused(
        tmp_path,
        "2 rows share an item id but not the title",
        "pass --data.on-different-title",
        **(given | {"on_missing_id": "skip"}),
    )
    given |= {"on_different_title": "most-frequent"}
    refused(
        tmp_path,
        "1 rows have no user id in column customer (got null at line 10)",
        "--data.on-missing-id skip",
        **given,
    )
    dataset, report = build(tmp_path, on_missing_id="skip", **given)
    assert dataset.titles.to_pylist() == ["Thing 1", "Thing 2", "Thing 3", "Thing 4"]
    assert dataset.user_ids.to_pylist() == ["101", "102"]
    assert report["left_out"]["interactions_without_id"] == 1


def test_10_negative_and_fine_times(tmp_path: Path) -> None:
    write(
        tmp_path,
        items__csv=ITEMS,
        interactions__csv=log({1: -7, 2: 1588687728001, 3: 1588687728002, 4: 1588687728003}.get),
    )
    assert pairs(tmp_path, **TIMED) == EXPECTED


def test_11_a_script_that_the_encoder_does_not_know() -> None:
    """The run that stops on it is in test_embed."""
    found = read_texts(EncoderSettings(), ["Oak shelf", "หมวกขนสัตว์", "โคมไฟ"])
    assert found.unreadable.tolist() == [False, True, True]


def test_12_ratings_without_a_header_line(tmp_path: Path) -> None:
    lines = [json.dumps({"asin": f"P{item}", "title": f"Thing {item}"}) for item in (1, 2, 3, 4)]
    ratings = [f"P{item},{user},5.0,{1400000000 + item}" for user in USERS for item in (1, 2, 3, 4)]
    write(tmp_path, meta_Things__json="\n".join(lines), Things__csv="\n".join(ratings))
    assert pairs(tmp_path, format="amazon-2018", split="leave-last-out") == EXPECTED
    table: dict[str, Any] = {"items": "meta_Things.json", "interactions": "Things.csv", "item_column": "asin", **TIMED}
    refused(tmp_path, "its first line looks like a row", "--data.interactions-columns", **table)
    names = ("asin", "user_id", "stars", "at")
    assert pairs(tmp_path, interactions_columns=names, **table) == EXPECTED
