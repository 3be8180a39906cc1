"""The text of an item: normalised, and made of several columns where a template says so."""

from __future__ import annotations

import html
import re
import string
import unicodedata

import polars as pl

# An entity with its semicolon; html.unescape alone also takes Guitar&amplifier for Guitar&lifier.
ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|[A-Za-z][A-Za-z0-9]*);")

# Between two parts: what closes the first, the words between, what opens the second.
ENCLOSED = re.compile(r"""([)\]}»"']*)(.*?)([(\[{«"']*)""", re.DOTALL)


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
    """Return the text of each item; a missing part is left out with the words before it, null where all are missing.

    ``"{title} by {brand} ({kind})"`` is ``"Lamp (Lights)"`` without a brand and ``"Acme (Lights)"`` without a title.
    Brackets and quotes belong to the part inside. Words that end in a colon name the part behind them and stay with
    it: ``"{title}, size: {size}"`` without a title is ``"size: 9"``.
    """
    parts = [(before, column) for before, column, _, _ in string.Formatter().parse(template)]
    ends = [*(before for before, _ in parts[1:]), *([""] if parts[-1][1] else [])]  # what follows each column
    text, opening = pl.lit(""), parts[0][0]
    joint = ""
    for place, (_, column) in enumerate(part for part in parts if part[1]):
        last = place + 1 == len(ends)
        closing, between, opening_next = ENCLOSED.fullmatch(ends[place]).groups()  # type: ignore[union-attr]
        if last:
            closing = ends[place]
        label = re.sub(r"^\W+", "", joint) if joint.rstrip().endswith(":") else ""
        start = pl.when(text == "").then(pl.lit(label)).otherwise(text + joint)
        filled = start + opening + pl.col(str(column)) + closing
        text = pl.when(pl.col(str(column)).is_null()).then(text).otherwise(filled)
        joint, opening = between, opening_next
    frame = pl.DataFrame([normalize_titles(values).alias(name) for name, values in columns.items()])
    return frame.select(pl.when(text != "").then(text).alias("title")).to_series()
