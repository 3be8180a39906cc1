"""Tables from files: CSV, JSONL, Parquet, .dat."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import NoReturn

import polars as pl
import pyarrow as pa

from alpharec.data.dataset import CatalogError
from alpharec.data.formats import DAT_COLUMNS, FILE_SETTINGS, JSON_SUFFIXES, TABLE_SUFFIXES, InputFile

NUM_EXAMPLES = 3


def refuse(files: Sequence[InputFile], bad: pl.DataFrame, what: str, values: pl.Expr, then: str) -> NoReturn:
    """Raise for the rows ``bad`` (with columns file, row), naming the first few of the first file."""
    file = files[bad["file"][0]]
    bad = bad.filter(pl.col("file") == bad["file"][0])
    shown = bad.head(NUM_EXAMPLES).select(values.cast(pl.String).alias("value"), "row")
    examples = [f"{value} at {file.place(row)}" for value, row in shown.iter_rows()]
    more = ", ..." if bad.height > NUM_EXAMPLES else ""
    fail(file, f"{bad.height} {what}", ", ".join(examples) + more, then)


def fail(file: InputFile, problem: str, got: object, then: str) -> NoReturn:
    raise CatalogError(f"{file.role} {file.address}: {problem} (got {got}); {then}")


def quoted(column: str) -> pl.Expr:
    return pl.format("'{}'", pl.col(column)).fill_null("null")


def read_columns(file: InputFile, wanted: dict[str, str]) -> pl.DataFrame:
    """Read the wanted {name: column} by those names (text files: all as text); add ``file`` = 0 and ``row`` from 0."""
    if file.suffix in (".parquet", ".pq"):
        frame = _read_parquet(file, wanted)
    elif file.suffix == ".csv":
        frame = _read_csv(file, wanted)
    elif file.suffix in JSON_SUFFIXES:
        frame = _read_jsonl(file, wanted)
    elif file.suffix == ".dat" and file.role in DAT_COLUMNS:
        frame = _read_dat(file, wanted)
    else:
        fail(
            file, "its name must end in the kind of file", file.suffix or "nothing", f"use {', '.join(TABLE_SUFFIXES)}"
        )
    if frame.is_empty():
        fail(file, "is empty", "no rows", f"pass {FILE_SETTINGS[file.role]} with a file that has some")
    return frame.select(
        **{name: pl.col(column) for name, column in wanted.items()},
        file=pl.lit(0, pl.Int64),
        row=pl.int_range(pl.len(), dtype=pl.Int64),
    )


def _need_columns(file: InputFile, wanted: dict[str, str], there: Sequence[str]) -> None:
    for name, column in wanted.items():
        if there.count(column) != 1:
            then = f"{column_hint(file, name)}, or another --data.format" if file.role in DAT_COLUMNS else "add it"
            fail(file, f"must have one column {column!r}", ", ".join(there), then)


def column_hint(file: InputFile, name: str) -> str:
    return f"pass --data.{name}-column NAME" if file.role in DAT_COLUMNS else "correct the file"


def _read_parquet(file: InputFile, wanted: dict[str, str]) -> pl.DataFrame:
    try:
        _need_columns(file, wanted, list(pl.read_parquet_schema(io.BytesIO(file.data))))
        return pl.read_parquet(io.BytesIO(file.data), columns=sorted(set(wanted.values())))
    except (pl.exceptions.PolarsError, OSError) as error:
        fail(file, "not a readable Parquet file", error, "write or fetch it again")


def decode(file: InputFile) -> str:
    """Return the text of a file; the raw MovieLens ``.dat`` files may be Latin-1."""
    try:
        return file.data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if file.suffix == ".dat":
            return file.data.decode("latin-1")
        line = file.data.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{file.data[error.start]:02x} at line {line}"
        fail(file, "not UTF-8", byte, "convert it, e.g. iconv -f latin1 -t utf-8")


def _read_csv(file: InputFile, wanted: dict[str, str]) -> pl.DataFrame:
    text = decode(file)
    header = next(csv.reader(io.StringIO(text[: 1 << 20], newline="")), None)
    if not header:
        fail(file, "is empty", "no header line", f"pass {FILE_SETTINGS[file.role]} with a file that has rows")
    _need_columns(file, wanted, header)
    try:
        # Polars takes a trailing blank line for a row of nulls.
        return pl.read_csv(file.data.rstrip(b"\r\n") + b"\n", columns=sorted(set(wanted.values())), infer_schema=False)
    except pl.exceptions.PolarsError as error:
        line = _ragged_csv_line(text, len(header)) or str(error).splitlines()[0]
        fail(file, f"not the CSV its header of {len(header)} columns promises", line, "quote or remove that line")


def _ragged_csv_line(text: str, num_columns: int) -> str:
    reader = csv.reader(io.StringIO(text, newline=""))
    start = 1
    for record in reader:
        if len(record) > num_columns:
            return f"{len(record)} columns at line {start}"
        start = reader.line_num + 1
    return ""


def _read_jsonl(file: InputFile, wanted: dict[str, str]) -> pl.DataFrame:
    lines = (line for line in io.StringIO(decode(file)) if line.strip())
    try:
        frame = pl.read_ndjson(
            file.data.removeprefix(b"\xef\xbb\xbf"), schema=dict.fromkeys(wanted.values(), pl.String)
        )
        # A key may be left out where it has no value, so one that no row has is missing unless the first row names it.
        absent = {name: column for name, column in wanted.items() if frame[column].null_count() == frame.height}
        if absent and not frame.is_empty():
            _need_columns(file, absent, list(json.loads(next(lines))))
        return frame
    except pl.exceptions.PolarsError as error:
        bad = _bad_json_line(file) or str(error).splitlines()[0]
        fail(file, "not one JSON object a line", bad, "correct or remove that line")


def _bad_json_line(file: InputFile) -> str:
    for number, line in enumerate(io.BytesIO(file.data), 1):
        try:
            if line.strip() and not isinstance(json.loads(line), dict):
                return f"{line.decode().strip()[:40]!r} at line {number}"
        except json.JSONDecodeError:
            return f"{line.decode().strip()[:40]!r} at line {number}"
    return ""


def _read_dat(file: InputFile, wanted: dict[str, str]) -> pl.DataFrame:
    names = DAT_COLUMNS[file.role]
    _need_columns(file, wanted, names)
    text = decode(file).replace("\r\n", "\n").rstrip("\n")
    lines = pl.Series("line", text.split("\n") if text else [], dtype=pl.String)
    bad = lines.str.count_matches("::", literal=True) != len(names) - 1
    if bad.any():
        row = int(bad.arg_true()[0])
        got = f"{lines[row][:60]!r} at {file.place(row)}"
        fail(file, f"a line must be {'::'.join(names)}", got, "correct or remove that line")
    return lines.str.split_exact("::", len(names) - 1).struct.rename_fields(names).struct.unnest()


def id_column(file: InputFile, frame: pl.DataFrame, name: str, wanted: dict[str, str]) -> pl.Series:
    kind = frame.schema[name]
    if not (kind.is_integer() or kind in (pl.String, pl.Categorical, pl.Enum)):
        fail(file, f"column {wanted[name]} must hold text or whole numbers", kind, "write its ids as text")
    ids = frame[name].cast(pl.String)
    bad = frame.filter(ids.is_null() | (ids.str.strip_chars() == ""))
    if not bad.is_empty():
        then = "give those rows an id, or remove them"
        refuse((file,), bad, f"rows have no {name} id in column {wanted[name]}", quoted(name), then)
    return ids


def number_column(file: InputFile, frame: pl.DataFrame, name: str, wanted: dict[str, str]) -> pl.Series:
    values = frame[name].to_physical()
    if values.dtype == pl.String:
        whole = values.cast(pl.Int64, strict=False)
        values = whole if whole.null_count() == values.null_count() else values
    numbers = values.cast(pl.Int64 if values.dtype.is_integer() else pl.Float64, strict=False)
    bad = frame.filter(numbers.is_null() | ~numbers.is_finite())
    if not bad.is_empty():
        then = f"write numbers (a time may be seconds or a position), or pass --data.{name}-column NAME"
        refuse((file,), bad, f"rows have no number in column {wanted[name]}", quoted(name), then)
    return numbers


def strings(series: pl.Series) -> pa.StringArray:
    array = series.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    return array.cast(pa.string())
