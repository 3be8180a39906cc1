"""Items and interactions from the input files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from alpharec.config import DataSettings
from alpharec.data.dataset import SPLITS
from alpharec.data.formats import Columns, InputFile, columns_of
from alpharec.data.tables import (
    NUM_EXAMPLES,
    column_hint,
    decode,
    fail,
    id_column,
    number_column,
    quoted,
    read_columns,
    refuse,
)


@dataclass(frozen=True)
class Catalog:
    """Items as read: a table of item_id, title (may be null), and where they stood for messages: file, row."""

    file: InputFile
    table: pl.DataFrame


@dataclass(frozen=True)
class Interactions:
    """Interactions as read: users in index order, and a table of user_id, item_id, [time, rating, split], file, row."""

    files: tuple[InputFile, ...]
    users: pl.Series
    table: pl.DataFrame


def read_inputs(inputs: dict[str, InputFile], settings: DataSettings) -> tuple[Catalog, Interactions]:
    """Read what ``open_inputs`` opened, in the format the settings name.

    Raises:
        CatalogError: a column is missing, an id is null, a number or a text cannot be read, a file is empty.
    """
    columns = columns_of(settings)
    catalog = read_catalog(inputs["items"], columns)
    if settings.format != "alpharec":
        return catalog, _read_interactions(inputs["interactions"], columns, with_rating=settings.min_rating is not None)
    files = tuple(inputs[split] for split in SPLITS)
    return _order_by_number(catalog), _read_user_lines(files, keep_split=settings.split == "given")


def read_catalog(file: InputFile, columns: Columns) -> Catalog:
    wanted = {"item": columns.item, "title": columns.title}
    frame = read_columns(file, wanted)
    kind = frame.schema["title"]
    if kind != pl.String:
        fail(file, f"column {columns.title} must hold text", kind, column_hint(file, "title"))
    ids = id_column(file, frame, "item", wanted)
    return Catalog(file, frame.select(item_id=ids, title="title", file="file", row="row"))


def _read_interactions(file: InputFile, columns: Columns, *, with_rating: bool) -> Interactions:
    wanted = {"user": columns.user, "item": columns.item, "time": columns.time, "split": columns.split}
    wanted |= {"rating": columns.rating} if with_rating else {}
    wanted = {name: column for name, column in wanted.items() if column}
    frame = read_columns(file, wanted)
    table = frame.select("file", "row").with_columns(
        user_id=id_column(file, frame, "user", wanted), item_id=id_column(file, frame, "item", wanted)
    )
    numbers = {name: number_column(file, frame, name, wanted) for name in ("time", "rating") if name in wanted}
    table = table.with_columns(**numbers)
    if columns.split:
        table = table.with_columns(split=_split_codes(file, frame, wanted))
    return Interactions((file,), table["user_id"].unique(maintain_order=True), table)


def _split_codes(file: InputFile, frame: pl.DataFrame, wanted: dict[str, str]) -> pl.Series:
    codes_of = dict(zip(SPLITS, range(3), strict=True))
    codes = frame["split"].cast(pl.String).replace_strict(codes_of, default=None, return_dtype=pl.Int8)
    bad = frame.filter(codes.is_null())
    if not bad.is_empty():
        then = f"write {', '.join(SPLITS)}, or pass --data.split-column NAME"
        refuse((file,), bad, f"rows have an unknown split in column {wanted['split']}", quoted("split"), then)
    return codes


def _order_by_number(catalog: Catalog) -> Catalog:
    """Sort items by their number, which is their index in the text files, and check that no number is missing."""
    table = catalog.table.with_columns(number=pl.col("item_id").cast(pl.Int64, strict=False))
    bad = table.filter(pl.col("number").is_null())
    if not bad.is_empty():
        what = "item ids are not the whole numbers that train.txt uses"
        refuse((catalog.file,), bad, what, quoted("item_id"), "pass --data.item-column NAME")
    _check_contiguous((catalog.file,), table, "number", "item")
    table = table.sort("number", maintain_order=True)
    return Catalog(catalog.file, table.with_columns(item_id=pl.col("number").cast(pl.String)).drop("number"))


def _check_contiguous(files: Sequence[InputFile], table: pl.DataFrame, column: str, what: str) -> None:
    num = table[column].n_unique()
    bad = table.filter(~pl.col(column).is_between(0, num - 1)).unique(column, maintain_order=True)
    if not bad.is_empty():
        missing = np.setdiff1d(np.arange(num), table[column].to_numpy())[:NUM_EXAMPLES]
        gaps = ", ".join(map(str, missing))
        what = f"{what} ids are above {num - 1} while {gaps} is missing; ids run from 0 without gaps"
        refuse(files, bad, what, pl.col(column), "number them anew, or pass --data.format table")


def _read_user_lines(files: tuple[InputFile, ...], *, keep_split: bool) -> Interactions:
    parts = [_parse_user_lines(file) for file in files]
    lines = pl.concat(lines.with_columns(file=pl.lit(split, pl.Int64)) for split, (lines, _) in enumerate(parts))
    pairs = pl.concat(pairs.with_columns(file=pl.lit(split, pl.Int64)) for split, (_, pairs) in enumerate(parts))
    _check_contiguous(files, lines, "user", "user")
    ids = (pl.col("user").cast(pl.String).alias("user_id"), pl.col("item").cast(pl.String).alias("item_id"))
    table = pairs.select(*ids, "file", "row")
    if keep_split:
        table = table.with_columns(split=pl.col("file").cast(pl.Int8))
    users = pl.Series("user_id", np.arange(lines["user"].n_unique())).cast(pl.String)
    return Interactions(files, users, table)


def _parse_user_lines(file: InputFile) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the lines (user, row) and the pairs (user, item, row) of ``user item item ...`` lines."""
    decode(file)
    codes = np.frombuffer(file.data, np.uint8)
    space = np.isin(codes, np.frombuffer(b" \t\r\n", np.uint8))
    if space.all():
        fail(file, "is empty", "no line", "pass --data.path FOLDER with files that have lines")
    line_of_byte = np.cumsum(codes == ord("\n")) - (codes == ord("\n"))
    bad = np.flatnonzero(~space & ((codes < ord("0")) | (codes > ord("9"))))
    if bad.size:
        line = int(line_of_byte[bad[0]])
        text = io.BytesIO(file.data).readlines()[line].decode().strip()[:40]
        got = f"{text!r} at line {line + 1}"
        fail(file, "a line must be whole numbers: user item item ...", got, "correct it, or pass --data.format table")
    line = line_of_byte[np.flatnonzero(~space & np.concatenate([[True], space[:-1]]))]
    number = np.fromstring(file.data.decode(), dtype=np.int64, sep=" ")
    is_user = np.concatenate([[True], line[1:] != line[:-1]])
    user = number[is_user][np.cumsum(is_user) - 1]
    lines = pl.DataFrame({"user": user[is_user], "row": line[is_user]})
    twice = lines.filter(pl.col("user").is_duplicated()).with_columns(file=pl.lit(0, pl.Int64))
    if not twice.is_empty():
        refuse((file,), twice, "lines share a user", pl.format("user {}", "user"), "write one line per user")
    return lines, pl.DataFrame({"user": user[~is_user], "item": number[~is_user], "row": line[~is_user]})
