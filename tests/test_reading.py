"""Reading tables: nothing is lost or changed, values are what a person reads, and each message's next step works."""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import gzip
import io
import json
import re
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpharec.config import DataSettings
from alpharec.data import delimited
from alpharec.data.dataset import CatalogError
from alpharec.data.files import Role, open_input
from alpharec.data.tables import Wanted, place, read_columns

ITEM = {"item": Wanted("item_id", "id"), "title": Wanted("title", "text")}
PAIR = {"user": Wanted("user_id", "id"), "item": Wanted("item_id", "id")}
TIMED = PAIR | {"time": Wanted("when", "time")}


def read(source: Path | str, wanted: dict[str, Wanted] = ITEM, role: Role = "catalog", **data: Any) -> pl.DataFrame:
    return read_columns(open_input(str(source), role, DataSettings(**data)), wanted)


def rows(frame: pl.DataFrame) -> list[tuple[Any, ...]]:
    return frame.drop("file", "row").rows()


def table(folder: Path, name: str, content: str | bytes) -> Path:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


def refused(source: Path | str, *parts: str, **given: Any) -> None:
    """Expect a refusal whose message has all parts, in this order."""
    with pytest.raises(CatalogError, match=".*".join(map(re.escape, parts))):
        read(source, **given)


# ---------------------------------------------------------------- records


def test_a_quote_in_a_column_that_is_not_read_costs_no_row(tmp_path: Path) -> None:
    content = 'item_id,title,size\nA,Lamp,24"\nB,"Chair, oak",n/a\nC,Rug,55" x 30"\nD,Desk,\n'
    assert rows(read(table(tmp_path, "t.csv", content))) == [
        ("A", "Lamp"),
        ("B", "Chair, oak"),
        ("C", "Rug"),
        ("D", "Desk"),
    ]


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        ('item_id,title\nA,x\nB,"24" lamp\nC,y\n', 3, 'text after a closing "'),
        ('item_id,title\nA,x\nB,"24 lamp\nC,y\n', 3, 'a quote " that is never closed'),
        ("item_id,title\nA,x\nB\nC,y\n", 3, "1 fields where the others have 2"),
        ('item_id,title\n"A","two\nlines"\nB,Heat, The\n', 4, "3 fields where the others have 2"),
        ("item_id,title\n\n\nA,x\n\nB,Heat, The\n", 6, "3 fields where the others have 2"),
    ],
)
def test_a_damaged_record_stops_at_its_line(tmp_path: Path, content: str, line: int, what: str) -> None:
    refused(table(tmp_path, "t.csv", content), f"got {what} at line {line}: ", "correct that line")


def test_quotes_as_ordinary_characters_are_advised_where_that_reads_the_file(tmp_path: Path) -> None:
    path = table(tmp_path, "t.tsv", 'item_id\ttitle\nA\t"Heroes" of the night\nB\tx\n')
    refused(path, "text after a closing", "pass --data.quote none")
    assert rows(read(path, quote="none")) == [("A", '"Heroes" of the night'), ("B", "x")]


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n"])
def test_the_end_of_the_file_neither_adds_nor_loses_a_row(tmp_path: Path, end: str) -> None:
    assert rows(read(table(tmp_path, "t.csv", "item_id,title\nA,x\n\nB,y" + end))) == [("A", "x"), ("B", "y")]


def test_several_gzip_members_are_one_file(tmp_path: Path) -> None:
    members = gzip.compress(b"item_id,title\nA,x\n") + gzip.compress(b"B,y\n")
    assert rows(read(table(tmp_path, "t.csv.gz", members))) == [("A", "x"), ("B", "y")]


def test_a_file_that_unpacks_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path, "t.csv.gz", gzip.compress(b"item_id,title\n" + b"A,x\n" * 1_000_000))
    refused(
        path, "unpacks beyond the limit (got more than 0.001 GB from", "--data.max-unpacked-gb", max_unpacked_gb=0.001
    )
    assert read(path, max_unpacked_gb=0.01).height == 1_000_000
    once = pa.table({"item_id": pa.array(["A"] * 2_000_000), "title": pa.array(["x"] * 2_000_000)})
    pq.write_table(once, tmp_path / "t.parquet")
    refused(tmp_path / "t.parquet", "unpacks beyond the limit", max_unpacked_gb=0.001)


def test_half_a_gzip_file_is_refused(tmp_path: Path) -> None:
    refused(table(tmp_path, "t.csv.gz", gzip.compress(b"item_id,title\nA,x\n")[:-9]), "not a whole gzip file")


SIGNS = st.sampled_from(["x", "é", "7", " ", '"', "'", ",", ";", "\t", "|", "\\", "\n", "\r\n", '24"', "🦊", "\x00"])
FIELD = st.lists(SIGNS, max_size=5).map("".join)
NAMES = ["item_id", "title", "size"]


@given(
    st.lists(st.tuples(FIELD, FIELD, FIELD), min_size=1, max_size=8),
    st.permutations(NAMES),
    st.sampled_from(",;\t|"),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.booleans(),
)
def test_what_csv_writes_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    values: list[tuple[str, str, str]],
    names: list[str],
    separator: str,
    end: str,
    quoting: int,
    bom: bool,
) -> None:
    """Every dialect that Python's ``csv`` writes, without a setting that names it."""
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, lineterminator=end, quoting=quoting).writerows([names, *values])
    path = tmp_path_factory.getbasetemp() / "written.csv"
    path.write_bytes(text.getvalue().encode("utf-8-sig" if bom else "utf-8"))
    places = [names.index("item_id"), names.index("title")]
    expected = [tuple(row[place] or None for place in places) for row in values]
    frame = read(path, {"item": Wanted("item_id", "text"), "title": Wanted("title", "text")})
    assert rows(frame) == expected


@given(st.text(alphabet='ab,"\n\r;\\', max_size=40), st.sampled_from([{}, {"quote": "none"}, {"escape": "\\"}]))
def test_any_text_is_read_as_a_strict_reader_does_or_refused(
    tmp_path_factory: pytest.TempPathFactory, body: str, dialect: dict[str, str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(b"item_id,title\n" + body.encode())
    quoting = csv.QUOTE_NONE if dialect.get("quote") == "none" else csv.QUOTE_MINIMAL
    readings = []
    for escape in (dialect.get("escape"), "\\"):
        options: dict[str, Any] = {"strict": True, "quoting": quoting, "escapechar": escape}
        try:
            records = [record for record in csv.reader(io.StringIO(body, newline=""), **options) if record]
        except csv.Error:
            continue
        if records and all(len(record) == 2 for record in records):
            readings.append([tuple(value or None for value in record) for record in records])
            break
        if quoting == csv.QUOTE_NONE:
            break
    both = {"item": Wanted("item_id", "text"), "title": Wanted("title", "text")}
    if readings:
        assert rows(read(path, both, **dialect)) == readings[0]
    else:
        with pytest.raises(CatalogError):
            read(path, both, **dialect)


@given(st.lists(st.tuples(FIELD, FIELD), min_size=1, max_size=30), st.booleans())
def test_pieces_of_a_file_join_without_a_seam(
    tmp_path_factory: pytest.TempPathFactory, values: list[tuple[str, str]], lf: bool
) -> None:
    """Files are checked and split some bytes at a time; here 16 at a time."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n" if lf else "\r\n")
    writer.writerows([("item_id", "title"), *values])
    path = tmp_path_factory.getbasetemp() / "pieces.csv"
    path.write_bytes(text.getvalue().encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "PIECE", 16)
        patch.setattr(delimited, "RECORDS", 2)
        frame = read(path, {"item": Wanted("item_id", "text"), "title": Wanted("title", "text")})
    assert rows(frame) == [(item or None, title or None) for item, title in values]


def test_lines_are_found_in_any_dialect(tmp_path: Path) -> None:
    path = table(tmp_path, "t.csv", 'item_id;title\r\n\r\nA;"two\r\nlines"\r\n;x\r\n')
    frame = read(path)
    empty = frame.filter(pl.col("item").is_null())
    opened = open_input(str(path), "catalog", DataSettings())
    read_columns(opened, ITEM)
    assert place(opened.files[0], empty["row"][0]) == "line 5"


# ---------------------------------------------------------------- dialects

LAMP = [("1", 'The Lantern "Keeper"; a Tale'), ("2", "Café")]


@pytest.mark.parametrize(
    ("content", "data"),
    [
        ('item_id;title\n1;"The Lantern ""Keeper""; a Tale"\n2;Café\n', {}),
        ('item_id\ttitle\n1\tThe Lantern "Keeper"; a Tale\n2\tCafé\n', {}),
        ('item_id|title\n1|The Lantern "Keeper"; a Tale\n2|Café\n', {}),
        ('"item_id";"title"\n"1";"The Lantern \\"Keeper\\"; a Tale"\n"2";"Café"\n', {}),
        ("'item_id','title'\n'1','The Lantern \"Keeper\"; a Tale'\n'2','Café'\n", {"quote": "'"}),
        ('item_id^title\n1^The Lantern "Keeper"; a Tale\n2^Café\n', {"separator": "^"}),
        ('item_id:token\ttitle:token_seq\n1\tThe Lantern "Keeper"; a Tale\n2\tCafé\n', {}),
    ],
)
def test_dialects_read_the_same(tmp_path: Path, content: str, data: dict[str, str]) -> None:
    assert rows(read(table(tmp_path, "t.csv", content), **data)) == LAMP


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252", "utf-16-le", "utf-16-be"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    content = 'item_id,title\n1,"The Lantern ""Keeper""; a Tale"\n2,Café\n'
    path = table(tmp_path, "t.csv", content.encode(encoding))
    if encoding not in ("utf-8-sig", "utf-16", "utf-32"):
        named = "latin-1" if encoding == "cp1252" else encoding
        refused(path, f"pass --data.encoding {named}")
    assert rows(read(path, encoding="" if encoding in ("utf-8-sig", "utf-16", "utf-32") else encoding)) == LAMP


def test_encodings_of_json(tmp_path: Path) -> None:
    line = '{"item_id": "A", "title": "Caf\u00e9"}\n'
    assert rows(read(table(tmp_path, "t.jsonl", line.encode("utf-16")))) == [("A", "Caf\u00e9")]
    path = table(tmp_path, "t.jsonl", line.encode("latin-1"))
    refused(path, "not UTF-8 (got byte 0xe9 at line 1", "pass --data.encoding latin-1")
    assert rows(read(path, encoding="latin-1")) == [("A", "Caf\u00e9")]


def test_a_file_of_another_kind_than_its_name_is_named(tmp_path: Path) -> None:
    refused(table(tmp_path, "t.csv", gzip.compress(b"item_id,title\nA,x\n")), "is a .gz file, not text", "ends in .gz")
    pq.write_table(pa.table({"item_id": ["A"], "title": ["x"]}), tmp_path / "t.jsonl")
    refused(tmp_path / "t.jsonl", "is a .parquet file, not text")


def test_a_byte_that_latin_1_does_not_print_is_of_cp1252(tmp_path: Path) -> None:
    path = table(tmp_path, "t.csv", "item_id,title\nA,5 €\n".encode("cp1252"))
    refused(path, "got byte 0x80 at line 2", "pass --data.encoding cp1252")
    assert rows(read(path, encoding="cp1252")) == [("A", "5 €")]


def test_a_separator_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = table(tmp_path, "t.csv", "item_id;title\nA;x\n")
    refused(path, "separated by ',' it has one column (got item_id;title)", "pass --data.separator ';'", separator=",")
    assert rows(read(path, separator=";")) == [("A", "x")]
    path = table(tmp_path, "other.csv", "sku;name\nA;x\n")
    refused(path, "must have one column 'item_id' (got sku, name); pass --data.item-column NAME")


def test_a_file_without_a_header_line(tmp_path: Path) -> None:
    path = table(tmp_path, "ratings.csv", "u1,A,5.0,1400000000\nu2,B,4.0,1400000001\n")
    with pytest.raises(CatalogError, match="its first line looks like a row") as refusal:
        read(path, PAIR, role="interactions")
    advised = re.search(r"--data.interactions-columns (\S+);", str(refusal.value))
    assert advised
    names = tuple(advised[1].split(","))
    assert len(names) == 4
    assert rows(read(path, PAIR, role="interactions", interactions_columns=names)) == [("u1", "A"), ("u2", "B")]
    refused(
        path, "needs 2 fields a line", "(got 4 in the first line", role="interactions", interactions_columns=("a", "b")
    )


# ---------------------------------------------------------------- values

WHOLE = [17850, None, 42]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(WHOLE, pa.int32()),
        pa.array(WHOLE, pa.uint64()),
        pa.array(WHOLE, pa.float64()),
        pa.array([17850.0, float("nan"), 42.0], pa.float32()),
        pa.array([None if v is None else decimal.Decimal(v) for v in WHOLE], pa.decimal128(38, 0)),
        pa.array([None if v is None else decimal.Decimal(v) for v in WHOLE], pa.decimal128(12, 3)),
        pa.array([None if v is None else decimal.Decimal(v) for v in WHOLE], pa.decimal256(50, 2)),
        pa.array(["17850", None, "42"], pa.large_string()),
        pa.array(["17850", " ", "42"], pa.string_view()),
        pa.array(["17850.0", "", "42.0"]),
        pa.array([b"17850", None, b"42"], pa.binary()),
        pa.array(["17850", None, "42"]).dictionary_encode(),
        pa.array(WHOLE, pa.int64()).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_ids_are_what_a_person_reads(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"item_id": column, "title": ["x", "y", "z"]}), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet")["item"].to_list() == ["17850", None, "42"]


def test_ids_from_text_files_and_json_are_the_same(tmp_path: Path) -> None:
    assert read(table(tmp_path, "t.csv", "item_id,title\n17850.0,x\n,y\n42.0,z\n"))["item"].to_list() == [
        "17850",
        None,
        "42",
    ]
    lines = '{"item_id": 17850.0, "title": "x"}\n{"title": "y"}\n{"item_id": 42, "title": "z"}\n'
    assert read(table(tmp_path, "t.jsonl", lines))["item"].to_list() == ["17850", None, "42"]
    # Not all are whole numbers: versions, not floats.
    assert read(table(tmp_path, "v.csv", "item_id,title\n1.0,x\n1.1,y\n"))["item"].to_list() == ["1.0", "1.1"]


def test_a_uuid_is_text(tmp_path: Path) -> None:
    value = uuid.UUID(int=77)
    pq.write_table(pa.table({"item_id": pa.array([value.bytes], pa.uuid()), "title": ["x"]}), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet")["item"].to_list() == [str(value)]


@pytest.mark.parametrize("value", [2.5, 2.0**60, float("inf")])
def test_ids_that_floats_cannot_hold_are_refused(tmp_path: Path, value: float) -> None:
    pq.write_table(pa.table({"item_id": [1.0, value], "title": ["x", "y"]}), tmp_path / "t.parquet")
    refused(
        tmp_path / "t.parquet", "1 ids are not whole numbers in column item_id (got", "at row 2); write them as text"
    )


RATED = PAIR | {"rating": Wanted("rating", "number")}


@pytest.mark.parametrize(
    "column",
    [
        pa.array([decimal.Decimal("2.5"), decimal.Decimal("4.0")], pa.decimal128(3, 1)),
        pa.array([decimal.Decimal("2.5"), decimal.Decimal("4.0")], pa.decimal256(60, 30)),
        pa.array(["2.5", "4"]).dictionary_encode(),
        pa.array([2.5, 4.0], pa.float32()),
        pa.array(["2.5", " 4.0 "]),
    ],
    ids=lambda column: str(column.type),
)
def test_numbers_are_their_values(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"user_id": ["u", "v"], "item_id": ["A", "B"], "rating": column}), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet", RATED, "interactions")["rating"].to_list() == [2.5, 4.0]


def test_truth_values_are_no_numbers(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["A"], "rating": [True]}), tmp_path / "t.parquet")
    given: dict[str, Any] = {"wanted": RATED, "role": "interactions"}
    refused(tmp_path / "t.parquet", "column rating must hold numbers (got Boolean); pass --data.rating-column", **given)
    lines = '{"user_id": "u", "item_id": "A", "rating": true}\n'
    refused(table(tmp_path, "t.jsonl", lines), "1 rows have no number in column rating (got True at line 1)", **given)


NESTED = [["Wall lamp", "Nova"], [], None, ["Desk"]]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_nested_text_is_refused_or_joined(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"item_id": list("ABCD"), "title": NESTED}), path)
    else:
        path.write_text(
            "".join(json.dumps({"item_id": i, "title": t}) + "\n" for i, t in zip("ABCD", NESTED, strict=True))
        )
    where = "row 1" if suffix == "parquet" else "line 1"
    refused(
        path, "3 values are not text in column title (got ['Wall lamp', 'Nova'] at", where, "--data.on-nested-text join"
    )
    assert read(path, on_nested_text="join")["title"].to_list() == ["Wall lamp, Nova", None, None, "Desk"]


def test_an_object_by_language_is_joined_in_order(tmp_path: Path) -> None:
    lines = '{"item_id": "A", "title": {"en": "Desk", "de": ["Tisch", null]}}\n'
    assert read(table(tmp_path, "t.jsonl", lines), on_nested_text="join")["title"].to_list() == ["Desk, Tisch"]
    struct = pa.array([{"en": "Desk", "de": "Tisch"}])
    pq.write_table(pa.table({"item_id": ["A"], "title": struct}), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet", on_nested_text="join")["title"].to_list() == ["Desk, Tisch"]


def test_text_of_other_types(tmp_path: Path) -> None:
    lines = '{"item_id": "A", "title": 1984}\n{"item_id": "B", "title": "x"}\n{"item_id": "C", "title": NaN}\n'
    assert read(table(tmp_path, "t.jsonl", lines))["title"].to_list() == ["1984", "x", None]
    pq.write_table(pa.table({"item_id": ["A"], "title": [1984]}), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet")["title"].to_list() == ["1984"]
    pq.write_table(pa.table({"item_id": ["A"], "title": [b"\xff"]}), tmp_path / "t.parquet")
    refused(tmp_path / "t.parquet", "column title must hold text (got bytes that are not UTF-8)")
    pq.write_table(pa.table({"item_id": ["A"], "title": [dt.date(2020, 1, 1)]}), tmp_path / "t.parquet")
    refused(tmp_path / "t.parquet", "column title must hold text (got Date); pass --data.title-column NAME")


# ---------------------------------------------------------------- JSON


def test_an_array_of_objects_and_python_literals_are_read(tmp_path: Path) -> None:
    expected = [("A", "x"), ("B", "it's")]
    objects = [{"item_id": "A", "title": "x", "more": [1]}, {"item_id": "B", "title": "it's"}]
    assert rows(read(table(tmp_path, "t.json", json.dumps(objects, indent=1)))) == expected
    assert rows(read(table(tmp_path, "t.jsonl", "".join(f"{each!r}\n" for each in objects)))) == expected


@pytest.mark.parametrize(
    ("line", "got"),
    [('{"item_id": ', "'{\"item_id\":' at line 2"), ("[1]", "'[1]' at line 2"), ('{"a": 1} {"a": 2}', "at line 2")],
)
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: str, got: str) -> None:
    path = table(tmp_path, "t.jsonl", '{"item_id": "A", "title": "x"}\n' + line + "\n")
    refused(path, "not one JSON object a line (got", got, "correct or remove that line")


def test_an_id_inside_a_list_is_named_by_its_line(tmp_path: Path) -> None:
    lines = ['{"user_id": "u", "item_ids": ["A", "B", "C"]}', '{"user_id": "v", "item_ids": []}']
    path = table(tmp_path, "t.jsonl", "\n".join([*lines, '{"user_id": "w", "item_ids": ["A", 1.5]}']))
    lists = {"user": Wanted("user_id", "id"), "items": Wanted("item_ids", "ids")}
    what = "1 ids must be text or whole numbers in column item_ids (got 1.5 at line 3)"
    refused(path, what, "write them as text", wanted=lists, role="user lists")


def test_json_that_is_nested_too_deeply_is_named(tmp_path: Path) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    path = table(tmp_path, "t.jsonl", '{"item_id": "A", "title": "x"}\n{"item_id": "B", "title": ' + deep + "}\n")
    refused(path, "not one JSON object a line", "at line 2")


def test_half_a_surrogate_pair_is_named(tmp_path: Path) -> None:
    path = table(tmp_path, "t.jsonl", '{"item_id": "A", "title": "ok"}\n{"item_id": "A\\ud83d", "title": "x"}\n')
    refused(path, "1 values hold half a character", "in column item_id", "at line 2")


@given(
    st.lists(
        st.tuples(
            st.integers(-(10**25), 10**25) | st.text(min_size=1).filter(str.strip),
            st.none() | st.text() | st.integers() | st.floats(allow_nan=False),
        ),
        min_size=1,
    )
)
def test_what_json_writes_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, values: list[tuple[Any, Any]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.jsonl"
    lines = [json.dumps({"item_id": item, "title": title}) for item, title in values]
    path.write_text("\n".join(lines))
    assert rows(read(path)) == [(str(item), None if title is None else str(title)) for item, title in values]


# ---------------------------------------------------------------- times


def times(path: Path, **data: Any) -> list[int]:
    frame = read(path, TIMED, "interactions", **data)
    return frame["time"].to_list()


def moments(*texts: str, folder: Path) -> Path:
    return table(folder, "t.csv", "user_id,item_id,when\n" + "".join(f'u,A,"{text}"\n' for text in texts))


def epoch_us(*parts: int) -> int:
    return int(dt.datetime(*parts, tzinfo=dt.UTC).timestamp()) * 10**6  # type: ignore[arg-type,misc]


def test_iso_dates_are_moments(tmp_path: Path) -> None:
    texts = ("2019-12-31", "2019-12-31 10:00:00", "2019-12-31T10:00", "2019-12-31T10:00:00.25", "1960-02-29")
    seconds = [epoch_us(2019, 12, 31), *[epoch_us(2019, 12, 31, 10)] * 2, epoch_us(2019, 12, 31, 10) + 250_000]
    assert times(moments(*texts, folder=tmp_path)) == [*seconds, epoch_us(1960, 2, 29)]


def test_zones_count(tmp_path: Path) -> None:
    texts = ("2019-12-31T10:00:00Z", "2019-12-31T10:00:00+05:30", "2019-12-31 10:00:00-0800", "2019-12-31 10:00:00 UTC")
    at = epoch_us(2019, 12, 31, 10)
    hours = 3600 * 10**6
    assert times(moments(*texts, folder=tmp_path)) == [at, at - int(5.5 * hours), at + 8 * hours, at]
    mixed = moments("2019-12-31T10:00:00Z", "2019-12-31T10:00:00", folder=tmp_path)
    refused(mixed, "1 times have no zone, while others have one in column when (got", "at line 3)", wanted=TIMED)


def test_nanoseconds_of_text_are_kept(tmp_path: Path) -> None:
    path = moments("2019-12-31T10:00:00.000000001Z", "2019-12-31T10:00:00.000000002Z", folder=tmp_path)
    assert np.diff(times(path)).tolist() == [1]


@pytest.mark.parametrize("bad", ["2019-02-30", "2019-12-31T25:00:00", "31.12.2019", "soon", ""])
def test_text_that_is_no_date_is_named(tmp_path: Path, bad: str) -> None:
    path = moments("2019-12-31", bad, folder=tmp_path)
    got = f"{bad!r}" if bad else "null"
    refused(path, f"1 rows have no time in column when (got {got} at line 3)", "--data.time-format", wanted=TIMED)


def test_dates_of_another_form_are_read_by_their_format(tmp_path: Path) -> None:
    path = moments("31/12/2019 08:26", "01/01/2020 00:00", folder=tmp_path)
    refused(path, "rows have no number", role="interactions", wanted=TIMED)
    expected = [epoch_us(2019, 12, 31, 8, 26), epoch_us(2020, 1, 1)]
    assert times(path, time_format="%d/%m/%Y %H:%M") == expected
    refused(path, "2 times are not written as '%Y'", wanted=TIMED, time_format="%Y")


@pytest.mark.parametrize("kind", [pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")] + [pa.date32(), pa.date64()])
def test_stored_times_of_every_unit_are_one_moment(tmp_path: Path, kind: pa.DataType) -> None:
    day = dt.datetime(2019, 12, 31)
    column = pa.array([day, day + dt.timedelta(days=1)]).cast(kind)
    pq.write_table(pa.table({"user_id": ["u", "u"], "item_id": ["A", "B"], "when": column}), tmp_path / "t.parquet")
    scale = 1000 if str(kind) == "timestamp[ns]" else 1
    assert times(tmp_path / "t.parquet") == [epoch_us(2019, 12, 31) * scale, epoch_us(2020, 1, 1) * scale]


def test_a_stored_zone_counts(tmp_path: Path) -> None:
    column = pa.array([dt.datetime(2019, 12, 31, 10)], pa.timestamp("us", "Asia/Tokyo"))
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["A"], "when": column}), tmp_path / "t.parquet")
    assert times(tmp_path / "t.parquet") == [epoch_us(2019, 12, 31, 10)]


def test_seconds_among_milliseconds_are_refused(tmp_path: Path) -> None:
    path = moments("1577786400000", "1577786400", "1577786400001", folder=tmp_path)
    what = "1 times in column when look like seconds since 1970, while others look like milliseconds"
    refused(path, what, "(got 1577786400 at line 3)", "--data.mixed-time-units", wanted=TIMED)
    assert times(path, mixed_time_units=True) == [1577786400000, 1577786400, 1577786400001]


@pytest.mark.parametrize("numbers", [(0, 1, 2), (-5, 1577786400), (1577786400.25, 1577786401.5), (10**18, 15 * 10**17)])
def test_numbers_in_one_unit_are_taken_as_they_are(tmp_path: Path, numbers: tuple[float, ...]) -> None:
    assert times(moments(*map(str, numbers), folder=tmp_path)) == list(numbers)


# ---------------------------------------------------------------- several files


def parts_of(folder: Path, name: str) -> Path:
    """Two part files of a table and what Spark leaves beside them."""
    root = folder / name
    for day, user in (("2020-01-01", "u"), ("2020-01-02", "v")):
        (root / f"day={day}").mkdir(parents=True)
        pq.write_table(pa.table({"user_id": [user], "item_id": ["A"]}), root / f"day={day}" / "part-0.parquet")
    (root / "_SUCCESS").touch()
    (root / "day=2020-01-01" / ".part-0.parquet.crc").write_bytes(b"x")
    return root


@pytest.mark.parametrize("name", ["plain", "with [brackets] and spaces", "100%", "a,b"])
def test_a_folder_a_glob_and_a_list_are_one_table(tmp_path: Path, name: str) -> None:
    root = parts_of(tmp_path, name)
    both = [("u", "A"), ("v", "A")]
    assert rows(read(root, PAIR, "interactions")) == both
    assert rows(read("*/part-*.parquet", PAIR, "interactions", path=str(root))) == both
    listed = DataSettings(interactions=[str(path) for path in sorted(root.glob("*/*.parquet"))])  # type: ignore[arg-type]
    assert rows(read_columns(open_input(listed.interactions, "interactions", listed), PAIR)) == both
    with_day = PAIR | {"time": Wanted("day", "time")}
    assert read(root, with_day, "interactions")["time"].to_list() == [epoch_us(2020, 1, 1), epoch_us(2020, 1, 2)]


def test_files_with_commas_between_are_one_table(tmp_path: Path) -> None:
    for name in ("x", "y"):
        table(tmp_path, f"{name}.csv", f"item_id,title\n{name},{name}\n")
    assert rows(read("x.csv, y.csv", path=str(tmp_path))) == [("x", "x"), ("y", "y")]
    refused("x.csv,no.csv", "no.csv: no such file", path=str(tmp_path))


def test_files_of_several_kinds_are_no_table(tmp_path: Path) -> None:
    root = parts_of(tmp_path, "parts")
    table(root, "more.csv", "user_id,item_id\nw,A\n")
    refused(root, "files of one kind make a table (got", "more.csv", "e.g. a glob", wanted=PAIR)
    assert read(f"{root}/*/*.parquet", PAIR).height == 2


def test_a_message_names_the_file_of_the_row(tmp_path: Path) -> None:
    table(tmp_path, "a.csv", "user_id,item_id,when\nu,A,2020-01-01\n")
    table(tmp_path, "b.csv", "user_id,item_id,when\nu,A,2020-01-02\nu,B,never\n")
    refused(f"{tmp_path}/*.csv", "b.csv: 1 rows have no time in column when (got 'never' at line 3)", wanted=TIMED)


def test_times_of_several_files_are_brought_into_one_unit(tmp_path: Path) -> None:
    for name, unit in (("a", "us"), ("b", "ns"), ("c", "s")):
        column = pa.array([dt.datetime(2020, 1, 1)], pa.timestamp(unit))
        pq.write_table(pa.table({"user_id": ["u"], "item_id": ["A"], "when": column}), tmp_path / f"{name}.parquet")
    assert len(set(times(tmp_path / "*.parquet"))) == 1
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["A"], "when": [7]}), tmp_path / "d.parquet")
    refused(tmp_path / "*.parquet", "d.parquet: column when holds numbers, and dates in another file", wanted=TIMED)


def test_parts_in_a_bucket_are_one_table(s3: str, tmp_path: Path) -> None:
    import fsspec

    fs = fsspec.filesystem("s3")
    for path in parts_of(tmp_path, "log").rglob("*"):
        if path.is_file():
            fs.pipe_file(f"{s3}/reading [1]/{path.relative_to(tmp_path)}", path.read_bytes())
    assert rows(read(f"{s3}/reading [1]/log", PAIR, "interactions")) == [("u", "A"), ("v", "A")]
    assert rows(read("log/*/*.parquet", PAIR, "interactions", path=f"{s3}/reading [1]")) == [("u", "A"), ("v", "A")]
    refused(f"{s3}/reading/none.csv", "no such file; pass --data.items FILE with a file that is there")
