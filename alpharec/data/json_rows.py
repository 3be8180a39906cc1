"""JSON tables: one object a line, or one array of objects. Values keep their type; only wanted keys are kept.

msgspec reads them; a line that it refuses is tried by Python's ``json``, which knows NaN. A file of Python literals,
as the Amazon metadata of 2014, is read as such.
"""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from alpharec.data.files import InputFile, fail

PIECE = 1 << 24  # bytes decoded at a time
ARRAY = re.compile(rb"\s*\[")
LITERAL = re.compile(rb"\s*\{\s*u?'")
NOT_BLANK = re.compile(rb"\S[^\n]*")  # what is left of a line
Row = Any  # a Struct with a field for each wanted key


ABSENT = object()  # stands for a key that a row does not have


def read_json(file: InputFile, data: bytes, wanted: Sequence[str]) -> tuple[dict[str, list[Any]], list[str]]:
    """Return the wanted values, None where a row has no such key, and the keys that are there.

    A writer may leave out a key that has no value, so a key is there if any row has it.

    Raises:
        CatalogError: a line is no JSON object.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    keys = list(dict.fromkeys(wanted))
    fields = [(f"f{place}", Any, ABSENT) for place in range(len(keys))]
    rows = msgspec.defstruct("Row", fields, rename={f"f{place}": key for place, key in enumerate(keys)}, gc=False)
    values: dict[str, list[Any]] = {key: [] for key in keys}
    there: set[str] = set()
    for batch in _batches(file, data, rows, keys):
        for place, key in enumerate(keys):
            column = [getattr(row, f"f{place}") for row in batch]
            if column.count(ABSENT) < len(column):
                there.add(key)
            values[key] += [None if value is ABSENT else value for value in column]
    # For a message: what the first row has.
    return values, keys if len(there) == len(keys) else [*dict.fromkeys([*_first_keys(data), *there])]


def _batches(file: InputFile, data: bytes, rows: type[Row], keys: Sequence[str]) -> Iterator[list[Row]]:
    if ARRAY.match(data):
        try:
            yield msgspec.json.decode(data, type=list[rows])  # type: ignore[valid-type]
        except (msgspec.MsgspecError, RecursionError) as error:
            fail(file, "not a JSON array of objects", error, "correct it, or write one JSON object a line")
        return
    decoder, literals = msgspec.json.Decoder(rows), _holds_literals(data)
    for piece, line in _pieces(data):
        try:
            batch = [] if literals else decoder.decode_lines(piece)
        except (msgspec.MsgspecError, RecursionError):
            batch = []
        # decode_lines also takes two objects in a line, and one over several lines.
        if len(batch) != sum(1 for _ in NOT_BLANK.finditer(piece)):
            batch = list(_one_by_one(file, piece, line, rows, keys, ast.literal_eval if literals else json.loads))
        yield batch


def _holds_literals(data: bytes) -> bool:
    """Say whether the first row is a Python dictionary, whose keys are in single quotes."""
    return LITERAL.match(data) is not None


def _pieces(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield whole lines, some megabytes at a time, and the number of the first of them."""
    start, line = 0, 1
    while start < len(data):
        end = data.find(b"\n", start + PIECE)
        end = len(data) if end < 0 else end + 1
        piece = data[start:end]
        yield piece, line
        start, line = end, line + piece.count(b"\n")


def _one_by_one(
    file: InputFile, piece: bytes, line: int, rows: type[Row], keys: Sequence[str], read: Callable[[str], Any]
) -> Iterator[Row]:
    """Read lines that msgspec refuses: with NaN, with half a surrogate pair, or Python literals."""
    for number, text in enumerate(piece.split(b"\n"), line):
        if not text.strip():
            continue
        value = _decode(text, read)
        if not isinstance(value, dict):
            got = f"{text.decode(errors='replace').strip()[:40]!r} at line {number}"
            fail(file, "not one JSON object a line", got, "correct or remove that line")
        yield rows(**{f"f{place}": value[key] for place, key in enumerate(keys) if key in value})


def _decode(text: bytes, read: Callable[[str], Any]) -> Any:
    """Return what a line holds, None where it cannot be read."""
    try:
        return read(text.decode().strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _first_keys(data: bytes) -> list[str]:
    first = next((line for line in io.BytesIO(data) if line.strip()), b"{}")
    read = ast.literal_eval if _holds_literals(data) else json.loads
    rows = json.loads(data)[:1] if ARRAY.match(data) else [_decode(first, read)]
    return [key for row in rows if isinstance(row, dict) for key in row]


def json_place(data: bytes, row: int) -> str:
    """Name a row's place: its line, or its number in an array."""
    if ARRAY.match(data.removeprefix(b"\xef\xbb\xbf")):
        return f"element {row + 1}"
    lines = (number for number, line in enumerate(data.split(b"\n"), 1) if line.strip())
    return f"line {next(number for count, number in enumerate(lines) if count == row)}"
