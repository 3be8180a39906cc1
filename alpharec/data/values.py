"""Values of a column as a person reads them in the file, whatever type stores them; all tables are checked here.

A column comes as a ``polars`` series (text of delimited files, any type of Parquet) or as a list of Python values
(JSON, nested Parquet). It leaves as text, as numbers or as times.
"""

from __future__ import annotations

import bisect
import decimal
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl
import pyarrow as pa

Column = pl.Series | list[Any]
# id, text: text. ids: lists of ids. number, time: numbers. attribute: text or numbers, as stored.
Kind = Literal["id", "text", "ids", "number", "time", "attribute"]

SLICE = 1 << 20  # times parsed at a time, which takes some hundred bytes each
EXACT = 2**53  # whole numbers up to here are exact in a float
WHOLE = r"^[+-]?\d+\.0+$"  # what a column of floats makes of whole numbers
MOMENT = (
    r"^\s*(?P<year>\d{4})[-/](?P<month>\d{1,2})[-/](?P<day>\d{1,2})"
    r"(?:[T ]+(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9})\d*)?)?"
    r"\s*(?P<zone>Z|z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)?)?\s*$"
)
OTHER_TIMES = (
    "write dates as 2019-12-31 or 2019-12-31T10:00:00+00:00, or numbers (seconds, or a position); or pass "
    "--data.time-format with how they are written, e.g. %d/%m/%Y %H:%M, or --data.time-column NAME"
)
# Numbers that are moments from 1990 to 2100 in this unit; the ranges do not meet.
UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
FIRST_S, LAST_S = 631_152_000, 4_102_444_800
PER_SECOND = {"ms": 10**3, "us": 10**6, "ns": 10**9}


class BadValues(Exception):
    """Rows whose value does not fit: row -> value as shown; what must hold, and what to do."""

    def __init__(self, rows: Sequence[int], shown: Sequence[object], what: str, then: str) -> None:
        super().__init__(what)
        self.rows, self.shown, self.what, self.then = list(rows), list(shown), what, then


class BadType(Exception):
    """A column of a type that cannot hold what is wanted."""

    def __init__(self, wanted: str, got: object) -> None:
        super().__init__(wanted)
        self.wanted, self.got = wanted, got


@dataclass(frozen=True)
class Options:
    """How values are read: settings of the data section."""

    join_nested: bool = False
    time_format: str = ""


# ---------------------------------------------------------------- ids and texts


def as_ids(column: Column, _: Options) -> pl.Series:
    """Return ids as text, null where there is none. Whole numbers stored as floats or decimals are whole numbers."""
    if isinstance(column, list):
        return _each(column, _id_text, "ids must be text or whole numbers", "write them as text")
    kind = column.dtype
    if kind.is_float() or kind.is_decimal():
        return _whole_text(column)
    text = _plain_text(column, "text or whole numbers")
    if (blank := text.str.strip_chars() == "").any():
        text = text.set(blank, None)
    first = text.slice(text.is_not_null().arg_max() or 0, 1)
    whole = first.str.contains(WHOLE).all() and text.str.contains(WHOLE).all()
    return text.str.replace(r"\.0+$", "") if whole else text  # 17850.0: pandas writes whole numbers so beside a gap


def as_texts(column: Column, options: Options) -> pl.Series:
    """Return text, null where there is none; numbers as they are written."""
    if isinstance(column, list):
        join = _join if options.join_nested else None
        then = "pass --data.on-nested-text join to join the texts inside, or name another column"
        return _each(column, lambda value: _text(value, join), "values are not text", then)
    if column.dtype.is_float() or column.dtype.is_decimal():
        return column.cast(pl.String)
    return _plain_text(column, "text")


def as_attributes(column: Column, options: Options) -> pl.Series:
    """Return text, or the numbers and truth values that a column holds."""
    if isinstance(column, list):
        plain = all(isinstance(value, int | float | None) for value in column)
        return pl.Series(values=column, strict=False) if plain and column else as_texts(column, options)
    return column if column.dtype.is_numeric() or column.dtype == pl.Boolean else as_texts(column, options)


def as_id_lists(column: Column, options: Options) -> pl.Series:
    """Return lists of ids; text is split at spaces, and a missing list has no ids."""
    if isinstance(column, pl.Series):
        if column.dtype == pl.String or column.dtype == pl.Null:
            return column.cast(pl.String).fill_null("").str.extract_all(r"\S+")
        raise BadType("lists of ids", column.dtype)
    lists = [[] if value is None else value for value in column]
    bad = [row for row, value in enumerate(lists) if not isinstance(value, list | tuple)]
    if bad:
        then = 'write it so: "item_ids": ["A", "B"]'
        raise BadValues(bad, [repr(column[row]) for row in bad], "values are not lists of ids", then)
    ends = list(itertools.accumulate(map(len, lists), initial=0))
    try:
        flat = as_ids([item for value in lists for item in value], options)
    except BadValues as error:
        rows = [bisect.bisect_right(ends, place) - 1 for place in error.rows]
        raise BadValues(rows, error.shown, error.what, error.then) from None
    arrow = flat.to_arrow(compat_level=pl.CompatLevel.oldest())
    return pl.Series(values=pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), arrow))


def _plain_text(column: pl.Series, wanted: str) -> pl.Series:
    kind = column.dtype
    if kind == pl.Binary:  # text, as some writers of Parquet store it
        try:
            return column.cast(pl.String)
        except pl.exceptions.PolarsError:
            raise BadType(wanted, "bytes that are not UTF-8") from None
    if kind in (pl.String, pl.Categorical, pl.Enum, pl.Null) or kind.is_integer():
        return column.cast(pl.String)
    raise BadType(wanted, kind)


def _whole_text(column: pl.Series) -> pl.Series:
    """Return floats or decimals that are whole numbers as text."""
    if column.dtype.is_decimal():
        text = column.cast(pl.String)
        bad = ~text.str.contains(r"^-?\d+(?:\.0+)?$")
        text = text.str.replace(r"\.0+$", "")
    else:
        column = column.cast(pl.Float64)
        there = column.is_finite() & (column == column.round()) & (column.abs() < EXACT)
        bad = ~there & ~column.is_nan()  # NaN is pandas' missing value
        column = column.set(column.is_nan(), None)
        text = column.set(~there.fill_null(False), None).cast(pl.Int64).cast(pl.String)
    rows = bad.fill_null(False).arg_true().to_list()
    if rows:
        raise BadValues(rows, column.gather(rows).to_list(), "ids are not whole numbers", "write them as text")
    return text


def _each(column: list[Any], read: Callable[[Any], str | None], what: str, then: str) -> pl.Series:
    """Return texts of Python values, one by one unless all are text."""
    if not all(isinstance(value, str | None) for value in column):
        texts, bad = [], []
        for row, value in enumerate(column):
            try:
                texts.append(read(value))
            except ValueError:
                texts.append(None)
                bad.append(row)
        if bad:
            raise BadValues(bad, [_shown(column[row]) for row in bad], what, then)
        column = texts
    try:
        return pl.Series(values=column, dtype=pl.String)
    except UnicodeEncodeError:
        halves = [row for row, value in enumerate(column) if value and _has_half_a_pair(value)]
        what, then = "values hold half a character (a surrogate without its other)", "mend or remove those rows"
        raise BadValues(halves, [_shown(column[row]) for row in halves], what, then) from None


def _has_half_a_pair(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _id_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | decimal.Decimal):
        raise ValueError
    if isinstance(value, float) and math.isnan(value):
        return None
    if value != int(value) or (isinstance(value, float) and abs(value) >= EXACT):
        raise ValueError
    return str(int(value))


def _text(value: Any, join: Callable[[Any], str | None] | None) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, int | float | decimal.Decimal) and not isinstance(value, bool):
        return str(value)
    if join is None or not isinstance(value, list | tuple | dict):
        raise ValueError
    return join(value)


def _join(value: Any) -> str | None:
    """Return the texts inside a list or an object, in order, with commas between; None where there are none."""
    inside = value.values() if isinstance(value, dict) else value
    texts = [text for each in inside if (text := _text(each, _join))]
    return ", ".join(texts) or None


def _shown(value: Any) -> str:
    return repr(value)[:60]


# ---------------------------------------------------------------- numbers and times


def as_numbers(column: Column, _: Options) -> pl.Series:
    """Return numbers, Int64 where all are whole and stored so, else Float64."""
    values = _stored(column)
    if values.dtype == pl.String:
        return _numbers_of_text(values)
    if not (values.dtype.is_numeric() or values.dtype == pl.Null):
        raise BadType("numbers", values.dtype)
    numbers = values.cast(pl.Int64 if values.dtype.is_integer() else pl.Float64, strict=False)
    _refuse_no_number(values, numbers)
    return numbers


def _numbers_of_text(values: pl.Series, then: str = "") -> pl.Series:
    text = values.str.strip_chars()
    numbers = text.cast(pl.Int64, strict=False)
    if numbers.null_count() > text.null_count():
        numbers = text.cast(pl.Float64, strict=False)
    _refuse_no_number(values, numbers, then)
    return numbers


def _refuse_no_number(values: pl.Series, numbers: pl.Series, then: str = "") -> None:
    bad = (numbers.is_null() | ~numbers.is_finite()).arg_true().to_list()
    if bad:
        shown = [value if value is None else repr(str(value)) for value in values.gather(bad).to_list()]
        raise BadValues(bad, ["null" if value is None else value for value in shown], "rows have no number", then)


def as_times(column: Column, options: Options) -> tuple[pl.Series, str]:
    """Return times in one unit, and which: "us" or "ns" since 1970 of dates, "" of numbers, taken as they are."""
    values = _stored(column)
    if values.dtype == pl.Date:
        return values.cast(pl.Datetime("us")).to_physical(), "us"
    if isinstance(values.dtype, pl.Datetime):
        return _in_unit(values.to_physical(), values.dtype.time_unit)
    if isinstance(values.dtype, pl.Duration):
        return values.to_physical(), ""
    if values.dtype != pl.String:
        return as_numbers(values, options), ""
    if options.time_format:
        return _by_format(values, options.time_format)
    if values.str.contains(r"^\s*\d{4}[-/]\d{1,2}[-/]").any():
        return _of_iso_text(values)
    return _numbers_of_text(values, OTHER_TIMES), ""


def _stored(column: Column) -> pl.Series:
    """Return a series of one type; Python values of several types as text."""
    if isinstance(column, pl.Series):
        return column.cast(pl.String) if column.dtype in (pl.Categorical, pl.Enum) else column
    kinds = {type(value) for value in column} - {type(None)}  # bool is a type of its own here
    if kinds <= {int}:
        return (
            pl.Series(values=column, dtype=pl.Int64, strict=False) if kinds else pl.Series(values=column, dtype=pl.Null)
        )
    if kinds <= {int, float} and all(abs(value or 0) < EXACT or isinstance(value, float) for value in column):
        return pl.Series(values=column, dtype=pl.Float64, strict=False)
    if kinds <= {str, int, float, decimal.Decimal}:
        return pl.Series(values=[value if value is None else str(value) for value in column], dtype=pl.String)
    fit = (str, int, float, decimal.Decimal, type(None))
    bad = [row for row, value in enumerate(column) if type(value) not in fit]
    raise BadValues(bad, [_shown(column[row]) for row in bad], "rows have no number", "")


def _in_unit(values: pl.Series, unit: str) -> tuple[pl.Series, str]:
    return (values * 1000, "us") if unit == "ms" else (values, unit)


def _by_format(values: pl.Series, time_format: str) -> tuple[pl.Series, str]:
    try:
        moments = values.str.to_datetime(time_format, strict=False, time_unit="us")
    except pl.exceptions.PolarsError as error:
        raise BadType(f"times written as --data.time-format {time_format}", error) from None
    _refuse_moments(values, moments.is_null(), f"times are not written as {time_format!r}", "--data.time-format FORMAT")
    return moments.dt.replace_time_zone(None).to_physical(), "us"


def _of_iso_text(values: pl.Series) -> tuple[pl.Series, str]:
    moments = pl.concat([_moments(values.slice(start, SLICE)) for start in range(0, len(values), SLICE)])
    _refuse_moments(values, moments["seconds"].is_null(), "rows have no time", OTHER_TIMES)
    timed, zoned = moments["timed"], moments["zoned"]
    if 0 < zoned.sum() < timed.sum():
        rows = (timed & ~zoned).arg_true().to_list()
        shown = [repr(value) for value in values.gather(rows).to_list()]
        raise BadValues(rows, shown, "times have no zone, while others have one", "write all with a zone, or none")
    seconds, nanos = moments["seconds"], moments["nanos"]
    if (nanos % 1000 != 0).any():
        return seconds * 10**9 + nanos, "ns"
    return seconds * 10**6 + nanos // 1000, "us"


def _moments(values: pl.Series) -> pl.DataFrame:
    """Return seconds since 1970, null where there is no moment; nanoseconds; whether it has a clock, and a zone."""
    parts = values.str.extract_groups(MOMENT).struct.unnest()
    date = pl.concat_str([pl.col("year"), pl.col("month").str.zfill(2), pl.col("day").str.zfill(2)], separator="-")
    day = date.str.to_date("%Y-%m-%d", strict=False).cast(pl.Int64)
    hour, minute, second = (pl.col(name).fill_null("0").cast(pl.Int64) for name in ("hour", "minute", "second"))
    clock = pl.when((hour < 24) & (minute < 60) & (second <= 60)).then(hour * 3600 + minute * 60 + second)
    digits = pl.col("zone").str.replace_all(":", "").str.extract(r"[+-](\d+)").str.pad_end(4, "0")
    offset = digits.str.slice(0, 2).cast(pl.Int64) * 3600 + digits.str.slice(2, 2).cast(pl.Int64) * 60
    sign = pl.when(pl.col("zone").str.starts_with("-")).then(-1).otherwise(1)
    return parts.select(
        seconds=day * 86_400 + clock - (sign * offset).fill_null(0),
        nanos=pl.col("fraction").fill_null("0").str.pad_end(9, "0").cast(pl.Int64),
        timed=pl.col("hour").is_not_null(),
        zoned=pl.col("zone").is_not_null(),
    )


def _refuse_moments(values: pl.Series, bad: pl.Series, what: str, then: str) -> None:
    rows = bad.arg_true().to_list()
    if rows:
        shown = ["null" if value is None else repr(value) for value in values.gather(rows).to_list()]
        raise BadValues(rows, shown, what, then)


def mixed_units(times: pl.Series) -> tuple[str, pl.Series, str, pl.Series] | None:
    """Return two units that numbers of one column look like, each with the mask of its rows; None where there is one.

    A number looks like a moment from 1990 to 2100 in seconds, milliseconds, microseconds or nanoseconds.
    """
    found = []
    for unit, scale in UNITS.items():
        mask = times.is_between(FIRST_S * scale, LAST_S * scale)
        if mask.any():
            found.append((unit, mask))
    return (*found[0], *found[1]) if len(found) > 1 else None
