"""The text of an item: normalised, and made of several columns where a template says so."""

from __future__ import annotations

import html
import re
import string
import unicodedata

import polars as pl

# An entity with its semicolon; html.unescape alone also takes Guitar&amplifier for Guitar&lifier.
ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|[A-Za-z][A-Za-z0-9]*);")


def normalize_title(title: str) -> str:
    """Return the title as it is embedded: HTML entities resolved, Unicode NFC, white space collapsed and stripped.

    Entities are resolved until none is left: some shops' titles were escaped twice.
    """
    while (resolved := ENTITY.sub(lambda entity: html.unescape(entity[0]), title)) != title:
        title = resolved
    return " ".join(unicodedata.normalize("NFC", title).split())


def normalize_titles(titles: pl.Series) -> pl.Series:
    """Apply ``normalize_title`` to each title that it could change; empty becomes null."""
    # Printable ASCII with single spaces and no entity is its own normal form: most titles never reach Python.
    touched = titles.str.contains(r"[^ -~]|&|  |^ | $").fill_null(False)
    changed = pl.Series([normalize_title(title) for title in titles.filter(touched)], dtype=pl.String)
    result = titles.scatter(touched.arg_true(), changed) if len(changed) else titles
    return result.set(result == "", None)


def template_columns(template: str) -> list[str]:
    """Return the columns that a template such as ``"{title} by {brand}"`` names, in order."""
    return [column for _, column, _, _ in string.Formatter().parse(template) if column]


def fill_template(template: str, columns: dict[str, pl.Series]) -> pl.Series:
    """Return the text of each item; a missing value takes the words before it along, null where all are missing.

    With ``"{title} by {brand}. {category}"`` an item without a brand is ``"Lamp. Lights"``, one without a title is
    ``"Acme. Lights"``. Words that end in a colon name the value behind them and stay with it:
    ``"{title}, size: {size}"`` without a title is ``"size: 9"``.
    """
    text, after = pl.lit(""), ""
    for place, (before, column, _, _) in enumerate(string.Formatter().parse(template)):
        if not column:
            after = before
            continue
        label = re.sub(r"^\W+", "", before) if before.rstrip().endswith(":") else ""
        first = before if place == 0 else label
        joined = pl.when(text == "").then(pl.lit(first)).otherwise(text + before) + pl.col(column)
        text = pl.when(pl.col(column).is_null()).then(text).otherwise(joined)
    frame = pl.DataFrame([normalize_titles(values).alias(name) for name, values in columns.items()])
    return frame.select(pl.when(text != "").then(text + after).alias("title")).to_series()
