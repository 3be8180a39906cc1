"""Items and interactions from the input tables; rows without an id follow ``data.on_missing_id``."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from alpharec.config import DataSettings
from alpharec.data.dataset import SPLITS
from alpharec.data.delimited import encoding_of
from alpharec.data.files import Input, InputFile, fail
from alpharec.data.formats import Columns, columns_of
from alpharec.data.tables import NUM_EXAMPLES, Wanted, column_hint, quoted, read_columns, refuse
from alpharec.data.titles import fill_template, template_columns


@dataclass(frozen=True)
class Catalog:
    """Items as read: a table of item_id, title (may be null), the columns to keep, and where they stood: file, row.

    ``without_id``: rows left out because they have no id.
    """

    files: tuple[InputFile, ...]
    table: pl.DataFrame
    without_id: int = 0


@dataclass(frozen=True)
class Interactions:
    """Interactions as read: users in index order, and a table of user_id, item_id, [time, rating, split], file, row.

    ``without_id``: rows left out because they have no user or no item.
    """

    files: tuple[InputFile, ...]
    users: pl.Series
    table: pl.DataFrame
    without_id: int = 0


def read_inputs(inputs: Mapping[str, Input], settings: DataSettings) -> tuple[Catalog, Interactions]:
    """Read what ``open_inputs`` opened, in the format the settings name.

    Raises:
        CatalogError: a column is missing, an id is null, a number or a text cannot be read, a file is empty.
    """
    columns = columns_of(settings)
    catalog = read_catalog(inputs["items"], columns)
    with_rating = settings.min_rating is not None
    if "interactions" in inputs:
        return catalog, _read_interactions(inputs["interactions"], columns, with_rating=with_rating)
    if settings.format != "alpharec":
        parts = [_read_interactions(inputs[split], columns, with_rating=with_rating) for split in SPLITS]
        return catalog, _join_splits(parts)
    files = tuple(file for split in SPLITS for file in inputs[split].files)
    return _order_by_number(catalog), _read_user_lines(files, keep_split=settings.split == "given")


def read_catalog(table: Input, columns: Columns) -> Catalog:
    """Read items: their ids, their titles or the text that ``data.text`` makes, and the columns to keep."""
    settings = table.settings
    wanted = {"item": Wanted(columns.item, "id"), "title": Wanted(columns.title, "text")}
    if settings.text:
        del wanted["title"]
        parts = {f"text {column}": column for column in template_columns(settings.text)}
        wanted |= {name: Wanted(column, "text", setting="--data.text TEXT") for name, column in parts.items()}
    kept = {f"keep {column}": column for column in settings.keep_columns}
    keep, new = "--data.keep-columns NAMES", table.role == "new items"
    wanted |= {name: Wanted(column, "attribute", optional=new, setting=keep) for name, column in kept.items()}
    frame = read_columns(table, wanted)
    if settings.text:
        title = fill_template(settings.text, {column: frame[name] for name, column in parts.items()})
        frame = frame.with_columns(title=title)
    frame, without_id = _with_ids(table, frame, ("item",), wanted)
    return Catalog(
        table.files, frame.select(pl.col("item").alias("item_id"), "title", *kept, "file", "row"), without_id
    )


def _read_interactions(table: Input, columns: Columns, *, with_rating: bool) -> Interactions:
    wanted = {"user": Wanted(columns.user, "id"), "item": Wanted(columns.item, "id")}
    wanted |= {"time": Wanted(columns.time, "time")} if columns.time else {}
    wanted |= {"rating": Wanted(columns.rating, "number")} if with_rating else {}
    wanted |= {"split": Wanted(columns.split, "text")} if columns.split else {}
    frame, without_id = _with_ids(table, read_columns(table, wanted), ("user", "item"), wanted)
    if columns.split:
        frame = frame.with_columns(split=_split_codes(table.files, frame, wanted["split"].column))
    frame = frame.rename({"user": "user_id", "item": "item_id"})
    return Interactions(table.files, frame["user_id"].unique(maintain_order=True), frame, without_id)


def _join_splits(parts: Sequence[Interactions]) -> Interactions:
    """Join the interactions of a file for each split."""
    files, tables = list[InputFile](), []
    for code, part in enumerate(parts):
        file = pl.col("file") + len(files)
        tables.append(part.table.with_columns(file=file, split=pl.lit(code, pl.Int8)))
        files += part.files
    table = pl.concat(tables, how="vertical_relaxed")
    users = table["user_id"].unique(maintain_order=True)
    return Interactions(tuple(files), users, table, sum(part.without_id for part in parts))


def _with_ids(
    table: Input, frame: pl.DataFrame, names: Sequence[str], wanted: Mapping[str, Wanted]
) -> tuple[pl.DataFrame, int]:
    """Return the rows that have each id, and the number of those that lack one."""
    for name in names:
        bad = frame.filter(pl.col(name).is_null())
        if not bad.is_empty() and table.settings.on_missing_id == "error":
            column = wanted[name].column
            then = f"pass --data.on-missing-id skip to leave them out, or {column_hint(table, name)}"
            refuse(table.files, bad, f"rows have no {name} id in column {column}", pl.lit("null"), then)
    whole = frame.drop_nulls(list(names))
    if whole.is_empty():
        fail(table, "no row has an id", f"{frame.height} rows", column_hint(table, names[0]))
    return whole, frame.height - whole.height


def _split_codes(files: Sequence[InputFile], frame: pl.DataFrame, column: str) -> pl.Series:
    codes_of = dict(zip(SPLITS, range(3), strict=True))
    codes = frame["split"].replace_strict(codes_of, default=None, return_dtype=pl.Int8)
    bad = frame.filter(codes.is_null())
    if not bad.is_empty():
        then = f"write {', '.join(SPLITS)}, or pass --data.split-column NAME"
        refuse(files, bad, f"rows have an unknown split in column {column}", quoted("split"), then)
    return codes


def _order_by_number(catalog: Catalog) -> Catalog:
    """Sort items by their number, which is their index in the text files, and check that no number is missing."""
    table = catalog.table.with_columns(number=pl.col("item_id").cast(pl.Int64, strict=False))
    bad = table.filter(pl.col("number").is_null())
    if not bad.is_empty():
        what = "item ids are not the whole numbers that train.txt uses"
        refuse(catalog.files, bad, what, quoted("item_id"), "pass --data.item-column NAME")
    _check_contiguous(catalog.files, table, "number", "item")
    table = table.sort("number", maintain_order=True)
    return dataclasses.replace(
        catalog, table=table.with_columns(item_id=pl.col("number").cast(pl.String)).drop("number")
    )


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
    data = file.data
    encoding_of(file, data, DataSettings())
    codes = np.frombuffer(data, np.uint8)
    space = np.isin(codes, np.frombuffer(b" \t\r\n", np.uint8))
    if space.all():
        fail(file, "is empty", "no line", "pass --data.path FOLDER with files that have lines")
    line_of_byte = np.cumsum(codes == ord("\n")) - (codes == ord("\n"))
    bad = np.flatnonzero(~space & ((codes < ord("0")) | (codes > ord("9"))))
    if bad.size:
        line = int(line_of_byte[bad[0]])
        text = io.BytesIO(data).readlines()[line].decode().strip()[:40]
        got = f"{text!r} at line {line + 1}"
        fail(file, "a line must be whole numbers: user item item ...", got, "correct it, or pass --data.format table")
    line = line_of_byte[np.flatnonzero(~space & np.concatenate([[True], space[:-1]]))]
    number = np.fromstring(data.decode(), dtype=np.int64, sep=" ")
    is_user = np.concatenate([[True], line[1:] != line[:-1]])
    user = number[is_user][np.cumsum(is_user) - 1]
    lines = pl.DataFrame({"user": user[is_user], "row": line[is_user]})
    twice = lines.filter(pl.col("user").is_duplicated()).with_columns(file=pl.lit(0, pl.Int64))
    if not twice.is_empty():
        refuse((file,), twice, "lines share a user", pl.format("user {}", "user"), "write one line per user")
    return lines, pl.DataFrame({"user": user[~is_user], "item": number[~is_user], "row": line[~is_user]})
