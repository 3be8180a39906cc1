"""Tables from input files, one way for every table: columns by name, values by kind, and messages that name rows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alpharec.config import DataSettings
from alpharec.data.delimited import SEPARATORS, csv_line, detect, encoding_of, read_delimited
from alpharec.data.files import (
    DELIMITED_SUFFIXES,
    FILE_SETTINGS,
    JSON_SUFFIXES,
    PARQUET_SUFFIXES,
    SEPARATOR_NAMES,
    SUFFIXES,
    Input,
    InputFile,
    fail,
)
from alpharec.data.json_rows import json_place, read_json
from alpharec.data.values import (
    BadType,
    BadValues,
    Column,
    Kind,
    Options,
    as_attributes,
    as_id_lists,
    as_ids,
    as_numbers,
    as_texts,
    as_times,
    mixed_units,
)

NUM_EXAMPLES = 3
DAT_COLUMNS = {"catalog": ["movieId", "title", "genres"], "interactions": ["userId", "movieId", "rating", "timestamp"]}
READ = {"id": as_ids, "text": as_texts, "ids": as_id_lists, "number": as_numbers, "attribute": as_attributes}


@dataclass(frozen=True)
class Wanted:
    """A column to read: its name in the files, what its values are, and whether files may lack it.

    ``setting``: the setting that names it, where that is not ``data.<name>_column``.
    """

    column: str
    kind: Kind
    optional: bool = False
    setting: str = ""


# ---------------------------------------------------------------- messages


def refuse(files: Sequence[InputFile], bad: pl.DataFrame, what: str, values: pl.Expr, then: str) -> NoReturn:
    """Raise for the rows ``bad`` (with columns file, row), naming the first few of the first file."""
    file = files[bad["file"][0]]
    bad = bad.filter(pl.col("file") == bad["file"][0])
    shown = bad.head(NUM_EXAMPLES).select(values.cast(pl.String).alias("value"), "row")
    _refuse_rows(file, shown["row"].to_list(), shown["value"].to_list(), what, then, num=bad.height)


def _refuse_rows(file: InputFile, rows: list[int], shown: list[Any], what: str, then: str, *, num: int) -> NoReturn:
    pairs = zip(shown[:NUM_EXAMPLES], rows[:NUM_EXAMPLES], strict=True)
    examples = ", ".join(f"{value} at {place(file, row)}" for value, row in pairs)
    fail(file, f"{num} {what}", examples + (", ..." if num > NUM_EXAMPLES else ""), then)


def place(file: InputFile, row: int) -> str:
    """Name a row (from 0, without header) as a person finds it: line of a text file or row of a table, from 1."""
    if file.dialect is not None:
        return f"line {csv_line(file.data, file.dialect, row)}"
    if file.suffix in JSON_SUFFIXES:
        return json_place(file.data, row)
    return f"{'line' if file.suffix in ('.dat', '.txt') else 'row'} {row + 1}"


def quoted(column: str) -> pl.Expr:
    """Return a column's values in quotes, null as null."""
    return pl.format("'{}'", pl.col(column)).fill_null("null")


def column_hint(file: InputFile | Input, name: str, setting: str = "") -> str:
    """Return the step that names another column, for tables whose columns the settings name."""
    if file.role not in DAT_COLUMNS:
        return "correct the file"
    return f"pass {setting} with other columns" if setting else f"pass --data.{name}-column NAME"


# ---------------------------------------------------------------- reading


def read_columns(table: Input, wanted: dict[str, Wanted]) -> pl.DataFrame:
    """Read columns by {name: what is wanted}; add ``file``, the file's place in the input, and ``row`` in it, from 0.

    An optional column that a file lacks is null.

    Raises:
        CatalogError: a column is missing, a value does not fit its kind, a record is damaged, or there is no row.
    """
    frames, units = [], {}
    for number, file in enumerate(table.files):
        frame, found = _read_file(file, table.settings, wanted)
        frames.append(frame.with_columns(pl.lit(number, pl.Int64).alias("file")))
        units[number] = found
    if not any(frame.height for frame in frames):
        fail(table, "is empty", "no rows", f"pass {FILE_SETTINGS[table.role]} with a file that has some")
    frames = _in_one_unit(table, frames, units, wanted)
    try:
        whole = pl.concat(frames, how="vertical_relaxed") if len(frames) > 1 else frames[0]
    except pl.exceptions.PolarsError:  # numbers in one file, text in another
        texts = pl.col([name for name, each in wanted.items() if each.kind == "attribute"]).cast(pl.String)
        whole = pl.concat([frame.with_columns(texts) for frame in frames], how="vertical_relaxed")
    for name, each in wanted.items():
        if each.kind == "time" and not table.settings.mixed_time_units and not any(u.get(name) for u in units.values()):
            _check_one_unit(table, whole, name, each.column)
    return whole


def _read_file(
    file: InputFile, settings: DataSettings, wanted: dict[str, Wanted]
) -> tuple[pl.DataFrame, dict[str, str]]:
    raw = _raw_columns(file, settings, wanted)
    options = Options(settings.on_nested_text == "join", settings.time_format)
    columns, units = {}, {}
    for name, each in wanted.items():
        if each.column not in raw:
            continue
        try:
            if each.kind == "time":
                columns[name], units[name] = as_times(raw[each.column], options)
            else:
                columns[name] = READ[each.kind](raw[each.column], options)
        except BadType as error:
            fail(file, f"column {each.column} must hold {error.wanted}", error.got, _hint(file, name, each))
        except BadValues as bad:
            what = f"{bad.what} in column {each.column}"
            then = bad.then or f"write numbers, or {_hint(file, name, each)}"
            _refuse_rows(file, bad.rows, bad.shown, what, then, num=len(bad.rows))
    height = len(next(iter(columns.values()))) if columns else 0
    frame = pl.DataFrame([series.alias(name) for name, series in columns.items()])
    absent = [pl.lit(None).alias(name) for name in wanted if name not in columns]
    frame = frame.with_columns(absent).select(list(wanted))
    return frame.with_columns(pl.int_range(height, dtype=pl.Int64).alias("row")), units


def _hint(file: InputFile, name: str, each: Wanted) -> str:
    if each.kind == "id":
        return f"write its ids as text, or {column_hint(file, name)}"
    return column_hint(file, name, each.setting)


def _raw_columns(file: InputFile, settings: DataSettings, wanted: dict[str, Wanted]) -> dict[str, Column]:
    """Return the wanted columns of one file by their own names, as stored."""
    inside = {name: each for name, each in wanted.items() if each.column not in file.partition}
    columns: dict[str, Column]
    if file.suffix in PARQUET_SUFFIXES:
        columns = _read_parquet(file, inside)
    elif file.suffix == ".dat" and settings.format == "grouplens" and file.role in DAT_COLUMNS:
        columns = _read_dat(file, settings, inside)
    elif file.suffix in DELIMITED_SUFFIXES:
        columns = _read_delimited(file, settings, inside)
    elif file.suffix in JSON_SUFFIXES:
        columns = _read_json(file, settings, inside)
    else:
        then = f"use {', '.join(SUFFIXES)}, the text ones also with .gz"
        fail(file, "its name must end in the kind of file", file.suffix or "nothing", then)
    height = len(next(iter(columns.values()), ()))
    for each in wanted.values():
        if each.column in file.partition:
            columns[each.column] = pl.Series(values=[file.partition[each.column]], dtype=pl.String).new_from_index(
                0, height
            )
    return columns


def _need_columns(file: InputFile, wanted: dict[str, Wanted], there: Sequence[str]) -> dict[str, Wanted]:
    """Return the wanted columns that are there.

    Raises:
        CatalogError: one that must be there is not, or is there twice.
    """
    for name, each in wanted.items():
        if there.count(each.column) != 1 and not (each.optional and each.column not in there):
            then = (
                f"{column_hint(file, name, each.setting)}, or another --data.format"
                if file.role in DAT_COLUMNS
                else "add it"
            )
            fail(file, f"must have one column {each.column!r}", ", ".join(there), then)
    return {name: each for name, each in wanted.items() if each.column in there}


def _read_parquet(file: InputFile, wanted: dict[str, Wanted]) -> dict[str, Column]:
    data = file.data
    try:
        table = pq.ParquetFile(io.BytesIO(data))
        wanted = _need_columns(file, wanted, table.schema_arrow.names)
        unpacked = sum(table.metadata.row_group(group).total_byte_size for group in range(table.num_row_groups))
        unpacked = max(unpacked, table.metadata.num_rows)  # a column of one value takes no room
        if unpacked > file.unpacked_limit(len(data)):
            file.refuse_size(f"{unpacked / 1e9:.3g} GB from {len(data) / 1e6:.3g} MB")
        read = table.read(columns=sorted({each.column for each in wanted.values()}))
        return {name: _from_arrow(read[name]) for name in read.column_names}
    except (pa.ArrowException, OSError) as error:
        fail(file, "not a readable Parquet file", error, "write or fetch it again")


def _from_arrow(column: pa.ChunkedArray) -> Column:
    """Return a column's values: no codes of a dictionary, no unscaled decimals; nested ones as Python values."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        if str(kind) == "extension<arrow.uuid>":
            return [None if value is None else str(value) for value in column.to_pylist()]
        column, kind = pc.cast(column, kind.storage_type), kind.storage_type
    if pa.types.is_dictionary(kind):
        column, kind = pc.cast(column, kind.value_type), kind.value_type
    if pa.types.is_nested(kind):
        return list(column.to_pylist())
    if pa.types.is_decimal256(kind):
        column = pc.cast(column, pa.string())
    if pa.types.is_fixed_size_binary(kind):
        column = pc.cast(column, pa.binary())
    return pl.Series(values=column)


def _read_delimited(file: InputFile, settings: DataSettings, wanted: dict[str, Wanted]) -> dict[str, Column]:
    data = file.data
    names = {"catalog": settings.items_columns, "interactions": settings.interactions_columns}.get(file.role, ())
    known = KNOWN_WITHOUT_HEADER.get((settings.format, file.role), ())
    needed = [each.column for each in wanted.values() if not each.optional]
    file.dialect = detect(file, data, settings, needed, names=names, names_without_header=known)
    wanted = _need_delimited(file, settings, wanted)
    columns = list(dict.fromkeys(each.column for each in wanted.values()))
    read, file.dialect = read_delimited(file, data, file.dialect, settings, columns)
    return dict(read)


# Published files whose first line is a row: Amazon's ratings of 2018.
KNOWN_WITHOUT_HEADER = {("amazon-2018", "interactions"): ("asin", "reviewerID", "overall", "unixReviewTime")}


def _need_delimited(file: InputFile, settings: DataSettings, wanted: dict[str, Wanted]) -> dict[str, Wanted]:
    """As ``_need_columns``, with what a missing column of a text file may come from."""
    dialect = file.dialect
    assert dialect is not None
    there, missing = dialect.names, [each.column for each in wanted.values() if not each.optional]
    missing = [column for column in missing if column not in there]
    if missing and len(there) == 1 and (other := next((s for s in SEPARATORS if s in there[0]), "")):
        shown = SEPARATOR_NAMES.get(other, repr(other))
        name = "tab" if other == "\t" else other
        what = f"must have one column {missing[0]!r}; separated by {dialect.separator_name} it has one column"
        fail(file, what, there[0], f"it seems to be separated by {shown}: pass --data.separator '{name}'")
    if missing and dialect.has_header and file.role in DAT_COLUMNS and any(map(_looks_like_a_value, there)):
        setting = "items" if file.role == "catalog" else "interactions"
        free = iter(dict.fromkeys(each.column for each in wanted.values()))
        names = ",".join(next(free, f"column_{number}") for number, _ in enumerate(there, 1))
        what = f"must have one column {missing[0]!r}, and its first line looks like a row"
        then = (
            f"if it has no header line, name its {len(there)} columns in their order, e.g. "
            f"--data.{setting}-columns {names}; else {_hint_for(file, wanted, missing[0])}"
        )
        fail(file, what, ", ".join(there), then)
    return _need_columns(file, wanted, list(there))


def _hint_for(file: InputFile, wanted: dict[str, Wanted], column: str) -> str:
    name, each = next((name, each) for name, each in wanted.items() if each.column == column)
    return column_hint(file, name, each.setting)


def _looks_like_a_value(name: str) -> bool:
    """Say whether a name of a header line is a number or a date."""
    return (
        bool(name)
        and not any(sign.isalpha() for sign in name.lower().replace("e+", ""))
        and any(map(str.isdigit, name))
    )


def _read_json(file: InputFile, settings: DataSettings, wanted: dict[str, Wanted]) -> dict[str, Column]:
    keys = list(dict.fromkeys(each.column for each in wanted.values()))
    data = file.data
    encoding = encoding_of(file, data, settings)
    if encoding not in ("utf-8", "utf-8-sig"):
        data = data.decode(encoding).encode()
    columns, there = read_json(file, data, keys)
    if columns[keys[0]]:
        wanted = _need_columns(file, wanted, there)
    return {each.column: columns[each.column] for each in wanted.values()}


def _read_dat(file: InputFile, settings: DataSettings, wanted: dict[str, Wanted]) -> dict[str, Column]:
    names = DAT_COLUMNS[file.role]
    _need_columns(file, wanted, names)
    data = file.data
    encoding = encoding_of(file, data, settings)
    text = data.decode(encoding).replace("\r\n", "\n").rstrip("\n")
    lines = pl.Series("line", text.split("\n") if text else [], dtype=pl.String)
    bad = lines.str.count_matches("::", literal=True) != len(names) - 1
    if bad.any():
        row = int(bad.arg_true()[0])
        got = f"{lines[row][:60]!r} at line {row + 1}"
        fail(file, f"a line must be {'::'.join(names)}", got, "correct or remove that line")
    frame = lines.str.split_exact("::", len(names) - 1).struct.rename_fields(names).struct.unnest()
    return {each.column: frame[each.column] for each in wanted.values()}


# ---------------------------------------------------------------- units of time


def _in_one_unit(
    table: Input, frames: list[pl.DataFrame], units: dict[int, dict[str, str]], wanted: dict[str, Wanted]
) -> list[pl.DataFrame]:
    """Bring the times of several files into one unit."""
    for name in {name for found in units.values() for name in found}:
        kinds = {found.get(name, "") for found in units.values()}
        if "" in kinds and len(kinds) > 1:
            number = next(number for number, found in units.items() if not found.get(name))
            what = f"column {wanted[name].column} holds numbers, and dates in another file"
            fail(table.files[number], what, table.address, "write dates in all files, or numbers in all")
        if kinds == {"us", "ns"}:
            frames = [
                frame.with_columns(pl.col(name) * 1000) if units[number][name] == "us" else frame
                for number, frame in enumerate(frames)
            ]
    return frames


def _check_one_unit(table: Input, frame: pl.DataFrame, name: str, column: str) -> None:
    mixed = mixed_units(frame[name])
    if mixed is None:
        return
    unit, mask, other, other_mask = mixed
    if mask.sum() > other_mask.sum():
        unit, mask, other = other, other_mask, unit
    what = f"times in column {column} look like {unit} since 1970, while others look like {other}"
    then = "write all in one unit, or pass --data.mixed-time-units to take the numbers as they are"
    refuse(table.files, frame.filter(mask), what, pl.col(name), then)


def strings(series: pl.Series) -> pa.StringArray:
    """Return text as an Arrow array."""
    array = series.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    return array.cast(pa.string())
