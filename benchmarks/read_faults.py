"""Read generated tables, whole and damaged, and compare each with what Python's own readers find in it.

    python benchmarks/read_faults.py --tables 10000    # a minute on two cores

A table is delimited text (any separator, quotes, escapes, encoding, line end), JSON or Parquet (any type that can hold
its values), and half of the text ones are damaged: a sign added or removed, a line cut, fields added, bytes replaced.
``silent_losses``: tables that were accepted though the values differ from those of ``csv`` in strict mode, ``json`` or
``pyarrow``, or though those refuse them. ``tracebacks``: errors that are no message for a user. ``needless_refusals``:
tables that were refused though Python reads them. The last line is JSON; the exit status is 1 if one of the first two
is not 0.
"""

from __future__ import annotations

import argparse
import collections
import csv
import datetime as dt
import decimal
import io
import itertools
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from common import peak_rss_mb, print_result

from alpharec.config import DataSettings
from alpharec.data.dataset import CatalogError
from alpharec.data.files import open_input
from alpharec.data.tables import Wanted, read_columns

NAMES = ("item_id", "title", "rating", "when", "size")
WANTED = {
    "item": Wanted("item_id", "id"),
    "title": Wanted("title", "text"),
    "rating": Wanted("rating", "number"),
    "time": Wanted("when", "time"),
}
SIGNS = ("lamp", "é", "ß", " ", '"', "'", ",", ";", "\t", "|", "\\", "\n", "\r\n", '24"', "0.5", "&amp;")
START = dt.datetime(2019, 12, 31, 10)
Rows = list[tuple[Any, ...]]


@dataclass
class Table:
    """A file's content, the settings to read it with, and the readings of it that are right; none: refuse it."""

    name: str
    content: bytes
    readings: list[Rows] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------- delimited text


def delimited(draw: random.Random) -> Table:
    """Write a table in some dialect, and damage half of them."""
    separator, end = draw.choice(",;\t|"), draw.choice(["\n", "\r\n"])
    escape, quoting = draw.choice([None, None, "\\"]), draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    names = draw.sample(NAMES, len(NAMES))
    values = [{name: value(draw, name) for name in names} for _ in range(draw.randint(1, 12))]
    text = io.StringIO(newline="")
    options: dict[str, Any] = {"delimiter": separator, "lineterminator": end, "quoting": quoting}
    options |= {"escapechar": escape, "doublequote": escape is None}
    writer = csv.writer(text, **options)
    writer.writerow(names)
    writer.writerows([[row[name] for name in names] for row in values])
    body = text.getvalue()
    head = body.index(end) + len(end)
    if draw.random() < 0.5:
        body = body[:head] + damage(draw, body[head:], separator)
    encoding = draw.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"])
    settings = {"encoding": encoding} if encoding == "latin-1" else {}
    content = body.encode(encoding)
    if draw.random() < 0.05 and encoding == "utf-8" and len(content) > head + 4:
        place = draw.randrange(len(content) - 2, len(content))
        content = content[:place] + b"\xff" + content[place + 1 :]
        return Table("t.csv", content, [], settings)
    readings = []
    for sign in (None, "\\"):
        records = strict(body, separator, sign)
        if records:
            readings.append([tuple(record[names.index(each.column)] for each in WANTED.values()) for record in records])
            break
    return Table("t.csv", content, [clean for each in readings if (clean := checked(each)) is not None], settings)


def value(draw: random.Random, name: str) -> str:
    if name == "item_id":
        return draw.choice(["A1", "0042", "x y", "17850.0", "é7", "9" * 20]) + str(draw.randint(0, 9))
    if name == "rating":
        return draw.choice(["1", "2.5", "4.0", "5"])
    if name == "when":
        return (START + dt.timedelta(hours=draw.randint(0, 999))).isoformat(sep=draw.choice("T "))
    return "".join(draw.choice(SIGNS) for _ in range(draw.randint(0, 4)))


def damage(draw: random.Random, body: str, separator: str) -> str:
    """Add or remove something at a random place."""
    place = draw.randint(0, len(body))
    kinds: list[Callable[[], str]] = [
        lambda: body[:place] + '"' + body[place:],
        lambda: body[:place] + body[place + 1 :],
        lambda: body[:place] + separator + body[place:],
        lambda: body[:place],
        lambda: body[:place] + "\n" + body[place:],
        lambda: body[:place] + "\\" + body[place:],
        lambda: body + draw.choice(["\n", "\n\n", "x\n", separator * 7 + "\n"]),
        lambda: body[:place] + body[place:].replace('""', '"', 1),
    ]
    return draw.choice(kinds)()


def strict(body: str, separator: str, escape: str | None) -> list[list[str]] | None:
    """Return the records that ``csv`` finds in strict mode, None where it refuses or their lengths differ."""
    try:
        reader = csv.reader(io.StringIO(body, newline=""), delimiter=separator, escapechar=escape, strict=True)
        records = [record for record in reader if record]
    except csv.Error:
        return None
    return records[1:] if all(len(record) == len(NAMES) for record in records) else None


def checked(records: Rows) -> Rows | None:
    """Return the values of records of text: ids, titles, ratings, times; None where one is none."""
    rows = []
    whole = all(re.fullmatch(r"[+-]?\d+\.0+", item) for item, *_ in records if item.strip())
    numbered = all(re.fullmatch(r"\s*\d+\s*", when) for *_, when in records)
    for item, title, rating, when in records:
        try:
            moment, number = (int(when) if numbered else moment_of(when)), float(rating)
        except ValueError:
            return None
        shown = item.partition(".")[0] if whole else item
        rows.append((shown if shown.strip() else None, title or None, number, moment))
    return rows


def moment_of(text: str) -> dt.datetime:
    """Read a date and time whose month, day and hour may lack a leading zero."""
    return dt.datetime.fromisoformat(re.sub(r"(?<=[-T ])(\d)(?=[-T :]|$)", r"0\1", text.strip()))


# ---------------------------------------------------------------- JSON and Parquet


def json_lines(draw: random.Random) -> Table:
    """Write objects a line, or an array; titles may be nested."""
    objects = []
    for _ in range(draw.randint(1, 12)):
        title: Any = draw.choice([value(draw, "title"), value(draw, "title"), None, 1984, ["a", "b"], {"en": "a"}, []])
        item = draw.choice(["A", 7, 7.0, 10**25, "é"])
        when = (START + dt.timedelta(hours=draw.randint(0, 999))).isoformat()
        objects.append(
            {"item_id": item, "title": title, "rating": draw.choice([1, 2.5, "4"]), "when": when, "size": [1]}
        )
    lines = [json.dumps(each, ensure_ascii=draw.random() < 0.5) for each in objects]
    as_array = draw.random() < 0.2
    text = json.dumps(objects) if as_array else "\n".join(lines) + draw.choice(["", "\n", "\n\n"])
    whole = True
    if draw.random() < 0.4:
        place = draw.randrange(len(text))
        text = draw.choice([text[:place], text[:place] + text[place + 1 :], text[:place] + "}" + text[place:]])
        try:
            objects = json.loads(text) if as_array else [json.loads(line) for line in text.split("\n") if line.strip()]
            whole = all(isinstance(each, dict) for each in objects)
        except ValueError:
            whole = False
    readings = [[of_object(each) for each in objects]] if whole and objects and objects != [] else []
    keys = {key for each in objects for key in each} if whole else set()
    fits = readings and all(None not in row[2:] for row in readings[0]) and set(NAMES[:4]) <= keys
    return Table("t.json", text.encode(), readings if fits else [], {"on_nested_text": "join"})


def of_object(each: dict[str, Any]) -> tuple[Any, ...]:
    title, item = each.get("title"), each.get("item_id")
    if isinstance(title, list | dict):
        inside = title.values() if isinstance(title, dict) else title
        title = ", ".join(str(text) for text in inside if text not in (None, "")) or None
    if isinstance(item, float):
        item = int(item)
    try:
        rating, when = float(each["rating"]), moment_of(each["when"])
    except (KeyError, ValueError, TypeError):
        rating = when = None
    item = None if item is None or not str(item).strip() else str(item)
    return item, None if title is None else str(title), rating, when


def parquet(draw: random.Random) -> Table:
    """Write a table whose columns are stored in types that a warehouse uses."""
    count = draw.randint(1, 12)
    numbers = [draw.randint(0, 99) for _ in range(count)]
    halves = [draw.choice([0.5, 1.0, 2.5, 4.0]) for _ in range(count)]
    moments = [START + dt.timedelta(hours=draw.randint(0, 999)) for _ in range(count)]
    texts = [draw.choice(["Lamp", "é", 'a "b"', None]) for _ in range(count)]
    ids = draw.choice(
        [
            pa.array(numbers, draw.choice([pa.int8(), pa.uint16(), pa.uint64(), pa.float64()])),
            pa.array(map(decimal.Decimal, numbers), draw.choice([pa.decimal128(38, 0), pa.decimal256(60, 4)])),
            pa.array(map(str, numbers), draw.choice([pa.string(), pa.large_string(), pa.string_view()])),
            pa.array(map(str, numbers)).dictionary_encode(),
            pa.array([str(number).encode() for number in numbers]),
        ]
    )
    ratings = draw.choice(
        [
            pa.array(halves, draw.choice([pa.float32(), pa.float64()])),
            pa.array([decimal.Decimal(str(half)) for half in halves], pa.decimal128(3, 1)),
            pa.array(map(str, halves)).dictionary_encode(),
        ]
    )
    zone = draw.choice([None, "UTC", "Asia/Tokyo"])
    kind = draw.choice([pa.timestamp(unit, zone) for unit in ("s", "ms", "us", "ns")])
    times = pa.array(moments, kind) if zone is None else pa.array(moments, pa.timestamp("us", "UTC")).cast(kind)
    titles = pa.array(texts, draw.choice([pa.string(), pa.large_string()]))
    if draw.random() < 0.3:
        titles = titles.dictionary_encode()
    sink = io.BytesIO()
    pq.write_table(pa.table([ids, titles, ratings, times], list(NAMES[:4])), sink)
    content = sink.getvalue()
    if draw.random() < 0.2:
        return Table("t.parquet", content[: draw.randrange(len(content))], [])
    rows = [(str(n), t, h, m) for n, t, h, m in zip(numbers, texts, halves, moments, strict=True)]
    return Table("t.parquet", content, [rows])


# ---------------------------------------------------------------- the comparison


def shown_time(when: float) -> dt.datetime | float:
    """Return the moment that a number of micro- or nanoseconds is, a smaller number as it is."""
    if when < 10**14:
        return when
    return dt.datetime.fromtimestamp(when / (10**9 if when > 10**17 else 10**6), dt.UTC).replace(tzinfo=None)


def outcome(table: Table, folder: Path) -> tuple[str, str]:
    """Read a table; return what came of it and a line that shows it."""
    path = folder / table.name
    path.write_bytes(table.content)
    try:
        frame = read_columns(open_input(str(path), "catalog", DataSettings(**table.settings)), WANTED)
    except CatalogError as error:
        return ("refused" if not table.readings else "needless_refusals"), str(error)
    except Exception as error:
        return "tracebacks", f"{type(error).__name__}: {error}"
    found = [
        (item, title, float(rating), shown_time(when)) for item, title, rating, when in frame.drop("file", "row").rows()
    ]
    expected = table.readings[0] if table.readings else []
    differing = [pair for pair in itertools.zip_longest(found, expected) if pair[0] != pair[1]]
    return ("read" if found in table.readings else "silent_losses"), f"{differing[:2]} in {len(found)} rows"


def main() -> None:
    """Read the tables and count what came of them."""
    arguments = argparse.ArgumentParser(description="Generated tables against Python's own readers.")
    arguments.add_argument("--tables", type=int, default=10_000)
    arguments.add_argument("--seed", type=int, default=101)
    arguments.add_argument("--show", type=int, default=3, help="examples printed of each kind that should not be")
    given = arguments.parse_args()
    draw, counts, shown = random.Random(given.seed), collections.Counter[str](), collections.Counter[str]()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(given.tables):
            table = draw.choices([delimited, json_lines, parquet], [6, 2, 2])[0](draw)
            kind, why = outcome(table, Path(folder))
            counts[kind] += 1
            if kind in ("silent_losses", "tracebacks", "needless_refusals") and shown[kind] < given.show:
                shown[kind] += 1
                print(f"{kind}: {table.name} {table.settings} {table.content[:400]!r}\n    {why[:600]}", flush=True)
    kinds = ("read", "refused", "needless_refusals", "silent_losses", "tracebacks")
    numbers = {kind: counts[kind] for kind in kinds}
    print_result(
        tables=given.tables, **numbers, seconds=round(time.monotonic() - started, 1), peak_rss_mb=peak_rss_mb()
    )
    sys.exit(1 if counts["silent_losses"] or counts["tracebacks"] else 0)


if __name__ == "__main__":
    main()
