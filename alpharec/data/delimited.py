"""Delimited text (CSV, TSV, RecBole's atomic files): which dialect a file is written in, and its columns as text.

A regular file, whose records have one reading, is split by pyarrow, on all cores. Any other is read by Python's own
``csv`` in strict mode: of the readers tried, it is the one that never drops, joins or trims a field without a word
(docs/data.md has the comparison). Both see every field of every record, whichever columns are wanted.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import io
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv

from alpharec.config import DataSettings
from alpharec.data.files import FILE_SETTINGS, SEPARATOR_NAMES, Dialect, InputFile, fail

SEPARATORS = (",", ";", "\t", "|")
RECORDS = 1 << 16  # read at a time
PIECE = 1 << 24  # bytes checked at a time
NEWLINE = ord("\n")
TYPED_NAME = re.compile(r"([^:]+):(?:token|token_seq|float|float_seq)")  # RecBole's: item_id:token
NOT_BLANK = re.compile(rb"[^\r\n]")
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
OTHER_KINDS = {
    b"\x1f\x8b": ".gz",
    b"PAR1": ".parquet",
    b"PK\x03\x04": ".zip",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"BZh": ".bz2",
}


class _Damage(Exception):
    """A record that a strict reader refuses: where it starts, what it is and what is wrong with it."""

    def __init__(self, line: int, what: str, text: str) -> None:
        super().__init__(what)
        self.line, self.what, self.text = line, what, text


# ---------------------------------------------------------------- dialect


def detect(
    file: InputFile,
    data: bytes,
    settings: DataSettings,
    wanted: Sequence[str],
    *,
    names: Sequence[str] = (),
    names_without_header: Sequence[str] = (),
) -> Dialect:
    """Return the dialect of a file: what the settings say, and the rest by what is in it.

    The separator is the one that finds the wanted columns in the first line. ``names``: of a file without a header
    line. ``names_without_header``: names of a known format, for where its first line is no header.

    Raises:
        CatalogError: the encoding is another one, or the file is empty.
    """
    encoding = encoding_of(file, data, settings)
    quote = {"": '"', "none": ""}.get(settings.quote, settings.quote)
    escape = {"none": ""}.get(settings.escape, settings.escape)
    first = {
        separator: _first_record(data, Dialect(separator, quote, escape, encoding, (), True))
        for separator in ([settings.separator] if settings.separator else SEPARATORS)
    }
    if not any(first.values()):
        fail(file, "is empty", "no header line", f"pass {FILE_SETTINGS[file.role]} with a file that has rows")
    for known in filter(None, (names, names_without_header)):
        if known is names_without_header and any(set(wanted) <= set(_plain(record)) for record in first.values()):
            continue
        for separator, record in first.items():
            if len(record) == len(known):
                return Dialect(separator, quote, escape, encoding, tuple(known), False)
    best = max(first, key=lambda separator: (len(set(wanted) & set(_plain(first[separator]))), len(first[separator])))
    if names:
        got = f"{len(first[best])} in the first line, separated by {SEPARATOR_NAMES.get(best, repr(best))}"
        fail(file, f"needs {len(names)} fields a line for the columns {', '.join(names)}", got, _names_hint(file))
    return Dialect(best, quote, escape, encoding, tuple(_plain(first[best])), True)


def _names_hint(file: InputFile) -> str:
    setting = "items" if file.role == "catalog" else "interactions"
    return f"name each column in --data.{setting}-columns"


def _plain(names: Sequence[str]) -> list[str]:
    """Return the names of a header line without RecBole's types."""
    typed = [TYPED_NAME.fullmatch(name) for name in names]
    return [match[1] for match in typed if match] if names and all(typed) else list(names)


def _first_record(data: bytes, dialect: Dialect) -> list[str]:
    with _text(data, dialect.encoding) as text:
        try:
            return next((record for record in csv.reader(text, **dialect.options) if record), [])
        except (csv.Error, UnicodeDecodeError):
            return []


def encoding_of(file: InputFile, data: bytes, settings: DataSettings) -> str:
    """Return the encoding: the setting, else by the byte order mark, else UTF-8, which is checked."""
    other = next((kind for sign, kind in OTHER_KINDS.items() if data.startswith(sign)), "")
    if other:
        fail(file, f"is a {other} file, not text", data[:4], f"give it a name that ends in {other}, or unpack it")
    marked = next((name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)), "")
    encoding = settings.encoding or marked or "utf-8"
    if encoding == "utf-8" and (half := data[: 1 << 12]).count(0) > len(half) / 4:
        endian = "le" if half[1::2].count(0) > half[::2].count(0) else "be"
        got = "a zero byte beside each letter"
        fail(file, "looks like UTF-16 without a byte order mark", got, f"pass --data.encoding utf-16-{endian}")
    decoder, position = codecs.getincrementaldecoder(encoding)(), 0
    try:
        for position in range(0, max(len(data), 1), PIECE):
            decoder.decode(data[position : position + PIECE], final=position + PIECE >= len(data))
    except UnicodeDecodeError as error:
        if file.suffix == ".dat" and not settings.encoding:
            return "latin-1"  # the raw MovieLens files
        bad = position + len(data[position : position + PIECE]) - len(error.object) + error.start
        line = data.count(b"\n", 0, bad) + 1
        shown = data[data.rfind(b"\n", 0, bad) + 1 :].split(b"\n", 1)[0].strip()[:60]
        got = f"byte 0x{data[bad]:02x} at line {line}: {shown.decode('latin-1')!r}"
        other = "cp1252" if re.search(rb"[\x80-\x9f]", data[bad : bad + PIECE]) else "latin-1"
        if encoding != "utf-8":
            fail(file, f"not {encoding}", got, "pass --data.encoding with another one, or fetch the file again")
        fail(file, "not UTF-8", got, f"if it is {other}, pass --data.encoding {other}")
    return encoding


def _text(data: bytes, encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(data), "utf-8-sig" if encoding == "utf-8" else encoding, newline="")


# ---------------------------------------------------------------- columns


def read_delimited(
    file: InputFile, data: bytes, dialect: Dialect, settings: DataSettings, wanted: Sequence[str]
) -> tuple[dict[str, pl.Series], Dialect]:
    """Return the wanted columns as text, empty fields as null, and the dialect with the escape that was found.

    Raises:
        CatalogError: a record has more or fewer fields than the others, or its quotes do not match.
    """
    if dialect.encoding in ("utf-8", "utf-8-sig") and _is_regular(data, dialect):
        columns = _split_by_arrow(data, dialect, wanted)
        if columns is not None:
            return columns, dialect
    try:
        return _read_by_csv(data, dialect, wanted), dialect
    except _Damage as damage:
        backslash = dataclasses.replace(dialect, escape="\\")
        if dialect.quote and not settings.escape and _is_whole(data, backslash):
            return _read_by_csv(data, backslash, wanted), backslash
        _refuse_damage(file, data, dialect, damage)


def _is_regular(data: bytes, dialect: Dialect) -> bool:
    """Say whether every line end ends a record, and each quote encloses a whole field or is one of a doubled pair.

    Then a record has one reading. Quotes are counted: an odd one opens, an even one closes.
    """
    if data.count(b"\r") != data.count(b"\r\n") or (dialect.escape and dialect.escape.encode() in data):
        return False
    if not dialect.quote or dialect.quote.encode() not in data:
        return True
    if not (dialect.quote.isascii() and dialect.separator.isascii()):
        return False
    quote, around = ord(dialect.quote), np.frombuffer(f"{dialect.separator}\r\n".encode(), np.uint8)
    start = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    while start < len(data):
        end = data.find(b"\n", start + PIECE)
        piece = np.frombuffer(data, np.uint8, (len(data) if end < 0 else end + 1) - start, start)
        start += len(piece)
        quotes = np.flatnonzero(piece == quote)
        opening, closing = quotes[::2], quotes[1::2]
        if len(opening) != len(closing) or np.any(np.searchsorted(quotes, np.flatnonzero(piece == NEWLINE)) % 2):
            return False
        before = np.where(opening > 0, piece[opening - 1], NEWLINE)
        after = np.where(closing + 1 < len(piece), piece[np.minimum(closing + 1, len(piece) - 1)], NEWLINE)
        for beside in (before, after):
            if not np.all(np.isin(beside, around) | (beside == quote)):
                return False
    return True


def _split_by_arrow(data: bytes, dialect: Dialect, wanted: Sequence[str]) -> dict[str, pl.Series] | None:
    """Split a regular file; None where a line has another number of fields, which ``csv`` will name."""
    options = pa.csv.ConvertOptions(
        include_columns=[f"f{dialect.names.index(name)}" for name in wanted],
        column_types={f"f{place}": pa.string() for place in range(len(dialect.names))},
        strings_can_be_null=True,
        null_values=[""],
    )
    reading = pa.csv.ReadOptions(
        skip_rows=0, block_size=PIECE, column_names=[f"f{place}" for place in range(len(dialect.names))]
    )
    parsing = pa.csv.ParseOptions(delimiter=dialect.separator, quote_char=dialect.quote or False, escape_char=False)
    start = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    if dialect.has_header:
        first = NOT_BLANK.search(data, start)
        end = data.find(b"\n", first.start() if first else start)
        start = len(data) if end < 0 else end + 1
    if not NOT_BLANK.search(data, start):
        return {name: pl.Series(name, [], pl.String) for name in wanted}
    try:
        table = pa.csv.read_csv(pa.BufferReader(pa.py_buffer(data)[start:]), reading, parsing, options)
    except pa.ArrowInvalid:
        return None
    return {name: pl.Series(name, table[f"f{dialect.names.index(name)}"]) for name in wanted}


def _read_by_csv(data: bytes, dialect: Dialect, wanted: Sequence[str]) -> dict[str, pl.Series]:
    places = [dialect.names.index(name) for name in wanted]
    parts: list[list[pa.Array]] = [[] for _ in wanted]
    for records in _records(data, dialect):
        for part, place in zip(parts, places, strict=True):
            part.append(pa.array([record[place] or None for record in records], pa.large_string()))
    return {
        name: pl.Series(name, pa.chunked_array(part, pa.large_string()))
        for name, part in zip(wanted, parts, strict=True)
    }


def _records(data: bytes, dialect: Dialect) -> Iterator[list[list[str]]]:
    """Yield the records without the header, some at a time; blank lines are no records.

    Raises:
        _Damage: a record is not what a strict reader accepts, or has another number of fields.
    """
    csv.field_size_limit(sys.maxsize)
    with _text(data, dialect.encoding) as text:
        reader = csv.reader(text, **dialect.options)
        skip = int(dialect.has_header)
        try:
            while batch := list(itertools.islice(reader, RECORDS)):
                records = [record for record in batch if record]
                if any(len(record) != len(dialect.names) for record in records):
                    break
                if len(records) > skip:
                    yield records[skip:]
                skip = max(0, skip - len(records))
            else:
                return
        except csv.Error:
            pass
    raise _find_damage(data, dialect)


def _find_damage(data: bytes, dialect: Dialect) -> _Damage:
    """Find the first record that a strict reader refuses, and its line."""
    with _text(data, dialect.encoding) as text:
        reader = csv.reader(text, **dialect.options)
        line, num = 1, len(dialect.names)
        try:
            for record in reader:
                if record and len(record) != num:
                    return _Damage(
                        line, f"{len(record)} fields where the others have {num}", _line(data, dialect, line)
                    )
                line = reader.line_num + 1
        except csv.Error as error:
            unclosed = "unexpected end of data" in str(error)
            what = (
                f"a quote {dialect.quote} that is never closed" if unclosed else f"text after a closing {dialect.quote}"
            )
            at = line if unclosed else max(line, reader.line_num)
            return _Damage(at, what, _line(data, dialect, at))
    raise AssertionError("a strict reader refused a record of this file")


def _is_whole(data: bytes, dialect: Dialect) -> bool:
    """Say whether a strict reader accepts every record in this dialect."""
    try:
        return all(True for _ in _records(data, dialect))
    except _Damage:
        return False


def _refuse_damage(file: InputFile, data: bytes, dialect: Dialect, damage: _Damage) -> NoReturn:
    """Raise for a damaged record, with a next step that was tried where one setting reads the file."""
    got = f"{damage.what} at line {damage.line}: {damage.text!r}"
    then = "correct that line"
    if dialect.quote and _is_whole(data, dataclasses.replace(dialect, quote="", escape="")):
        then += "; if quotes are ordinary characters in this file, pass --data.quote none"
    elif dialect.quote:
        then += ": a field that holds a quote is quoted, and its quotes are doubled"
    num, separator = len(dialect.names), dialect.separator_name
    fail(file, f"not the table of {num} columns, separated by {separator}, that its first line promises", got, then)


def _line(data: bytes, dialect: Dialect, line: int) -> str:
    with _text(data, dialect.encoding) as text:
        text.reconfigure(newline=None)
        return next(itertools.islice(text, line - 1, None), "").strip()[:60]


def csv_line(data: bytes, dialect: Dialect, row: int) -> int:
    """Return the first line of a record; a quoted field may hold line ends, and lines may be blank."""
    row += int(dialect.has_header)
    with _text(data, dialect.encoding) as text:
        reader, line, num = csv.reader(text, **dialect.options), 1, 0
        for record in reader:
            if record:
                if num == row:
                    break
                num += 1
            line = reader.line_num + 1
    return line
