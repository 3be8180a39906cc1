"""The text of a title, and the policies for items."""

from __future__ import annotations

import html
import unicodedata

import polars as pl

from alpharec.config import DataSettings
from alpharec.data.formats import InputFile
from alpharec.data.read import Catalog
from alpharec.data.report import Counts
from alpharec.data.tables import quoted, refuse


def normalize_title(title: str) -> str:
    """Return the title as it is embedded: HTML entities resolved, Unicode NFC, white space collapsed and stripped."""
    return " ".join(unicodedata.normalize("NFC", html.unescape(title)).split())


def normalize_titles(titles: pl.Series) -> pl.Series:
    """Apply ``normalize_title`` to each title that it could change; empty becomes null."""
    # Printable ASCII with single spaces and no entity is its own normal form: most titles never reach Python.
    touched = titles.str.contains(r"[^ -~]|&|  |^ | $").fill_null(False)
    changed = pl.Series([normalize_title(title) for title in titles.filter(touched)], dtype=pl.String)
    result = titles.scatter(touched.arg_true(), changed) if len(changed) else titles
    return result.set(result == "", None)


def clean_catalog(catalog: Catalog, settings: DataSettings) -> tuple[pl.DataFrame, pl.Series, Counts]:
    """Return items (item_id, title), the ids left out for their empty title, and counts."""
    table = catalog.table.with_columns(raw="title").with_columns(title=normalize_titles(catalog.table["title"]))
    unique, counts = _unique_items(catalog.file, table, settings)
    empty = unique.filter(pl.col("title").is_null())
    counts["empty_titles"] = empty.height
    if settings.on_empty_title == "error" and not empty.is_empty():
        values = pl.format("{} for {}", quoted("raw"), "item_id")
        then = "pass --data.on-empty-title skip to leave them out, or id to use the item id as the title"
        refuse((catalog.file,), empty, "items have an empty title", values, then)
    if settings.on_empty_title == "id":
        return unique.select("item_id", pl.col("title").fill_null(pl.col("item_id"))), empty["item_id"].clear(), counts
    return unique.filter(pl.col("title").is_not_null()).select("item_id", "title"), empty["item_id"], counts


def _unique_items(file: InputFile, table: pl.DataFrame, settings: DataSettings) -> tuple[pl.DataFrame, Counts]:
    again = table.filter(pl.col("item_id").is_duplicated())
    if again.is_empty():
        return table, {"repeated_items": 0, "repeated_items_with_another_title": 0}
    differing = again.filter(pl.col("title").n_unique().over("item_id") > 1).sort("item_id", "row")
    # The 2018 metadata are known to hold items twice, scraped at different times.
    if not differing.is_empty() and settings.format != "amazon-2018":
        values = pl.format("{} with title {}", "item_id", quoted("title"))
        refuse((file,), differing, "rows share an item id but not the title", values, "leave one row per item")
    unique = table.unique("item_id", keep="first", maintain_order=True)
    return unique, {
        "repeated_items": table.height - unique.height,
        "repeated_items_with_another_title": differing["item_id"].n_unique(),
    }
