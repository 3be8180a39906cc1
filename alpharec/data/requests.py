"""User lists, new items, intentions, queries, item texts."""

from __future__ import annotations

import polars as pl
import pyarrow as pa

from alpharec.data.dataset import Dataset, Ints, Pairs
from alpharec.data.files import Input
from alpharec.data.formats import Columns
from alpharec.data.read import read_catalog
from alpharec.data.tables import Wanted, quoted, read_columns, refuse, strings
from alpharec.data.titles import normalize_titles


def read_user_lists(file: Input, item_ids: pa.StringArray) -> tuple[pa.StringArray, Pairs]:
    """Read users given by their items: user ids, and pairs of a user's row and an index into ``item_ids``.

    Columns ``user_id`` and ``item_ids``: a list in Parquet and JSONL, ids separated by spaces in CSV. An item that a
    user has twice counts once; pairs are sorted.

    Raises:
        CatalogError: a user comes twice, has no item or an unknown one, or what any input is refused for.
    """
    frame = _read(file, {"user": Wanted("user_id", "id"), "items": Wanted("item_ids", "ids")})
    again = frame.filter(pl.col("user").is_duplicated())
    if not again.is_empty():
        refuse(file.files, again, "rows share a user", pl.format("user {}", "user"), "give each user one row")
    empty = frame.filter(pl.col("items").list.len().fill_null(0) == 0)
    if not empty.is_empty():
        then = "give them a known item each, or remove their rows"
        refuse(file.files, empty, "users have no item", pl.format("user {}", "user"), then)
    known = pl.DataFrame({"items": pl.Series(values=item_ids, dtype=pl.String)}).with_row_index("item")
    pairs = frame.with_row_index("place").explode("items").join(known, on="items", how="left", maintain_order="left")
    unknown = pairs.filter(pl.col("item").is_null())
    if not unknown.is_empty():
        values = pl.format("{} of user {}", quoted("items"), "user")
        then = "remove them, or add their titles by --recommend.new-items FILE"
        refuse(file.files, unknown, "given items are neither in the bundle nor new items", values, then)
    pairs = pairs.select(pl.col("place", "item").cast(pl.Int64)).unique().sort("place", "item")
    return strings(frame["user"]), Pairs(pairs["place"].to_numpy(writable=True), pairs["item"].to_numpy(writable=True))


def _read(file: Input, wanted: dict[str, Wanted]) -> pl.DataFrame:
    """Read columns and refuse rows that lack an id."""
    frame = read_columns(file, wanted)
    for name, each in wanted.items():
        bad = frame.filter(pl.col(name).is_null())
        if each.kind == "id" and not bad.is_empty():
            then = "give those rows an id, or remove them"
            refuse(file.files, bad, f"rows have no {name} id in column {each.column}", pl.lit("null"), then)
    return frame


def read_new_items(file: Input, item_ids: pa.StringArray) -> tuple[pa.StringArray, pa.StringArray]:
    """Read items to add to those of ``item_ids``, columns ``item_id`` and ``title``: their ids and normalised titles.

    Raises:
        CatalogError: an id comes twice or is known, a title is empty, or what any input is refused for.
    """
    table = read_catalog(file, Columns("item_id", "title", "")).table.with_columns(raw="title")
    table = table.with_columns(title=normalize_titles(table["title"]))
    known = pl.Series(values=item_ids, dtype=pl.String).implode()
    for bad, what, then in (
        (pl.col("item_id").is_duplicated(), "rows share an item id", "leave one row per item"),
        (pl.col("item_id").is_in(known), "items are in the bundle already", "remove their rows"),
        (pl.col("title").is_null(), "items have an empty title", "give them a title, or remove their rows"),
    ):
        refused = table.filter(bad)
        if not refused.is_empty():
            refuse(file.files, refused, what, pl.format("{} with title {}", "item_id", quoted("raw")), then)
    return strings(table["item_id"]), strings(table["title"])


def read_intentions(file: Input, user_ids: pa.StringArray) -> tuple[Ints, pa.StringArray]:
    """Read what users say they want, columns ``user_id`` and ``query``: rows of ``user_ids``, and normalised texts.

    Raises:
        CatalogError: a user is unknown or comes twice, a query is empty, or what any input is refused for.
    """
    table = _read_statements(file, {"user": "user_id", "query": "query"}, user_ids)
    again = table.filter(pl.col("user").is_duplicated())
    if not again.is_empty():
        refuse(file.files, again, "rows share a user", pl.format("user {}", "user"), "give each user one row")
    return table["user_row"].cast(pl.Int64).to_numpy(writable=True), strings(table["query"])


def read_queries(file: Input, dataset: Dataset) -> pa.Table:
    """Read queries with their targets, columns ``user_id``, ``query``, ``item_id``: user and item by index, the split
    (valid or test) that holds the pair, and the normalised query; sorted by split and user.

    Raises:
        CatalogError: a user or an item is unknown, a query is empty, a target is not held out for its user, a user has
            two queries of one split, or what any input is refused for.
    """
    wanted = {"user": "user_id", "query": "query", "item": "item_id"}
    table = _read_statements(file, wanted, dataset.user_ids)
    table = table.join(_numbered("item", dataset.item_ids), on="item", how="left", maintain_order="left")
    held_out = pl.concat(
        pl.DataFrame({"user_row": pairs.users, "item_row": pairs.items}).with_columns(split=pl.lit(split))
        for split, pairs in dataset.splits.items()
        if split != "train"
    ).cast({"user_row": pl.UInt32, "item_row": pl.UInt32})
    table = table.join(held_out, on=["user_row", "item_row"], how="left", maintain_order="left")
    for bad, what, then in (
        (pl.col("item_row").is_null(), "queries have an item the catalog lacks", "remove their rows"),
        (
            pl.col("split").is_null(),
            "queries have a target that is neither in valid nor in test for their user",
            "give each a held-out item, or remove their rows",
        ),
        (
            pl.struct("user", "split").is_duplicated(),
            "queries share a user and a split",
            "leave each user one query with a valid target and one with a test target",
        ),
    ):
        refused = table.filter(bad)
        if not refused.is_empty():
            refuse(file.files, refused, what, pl.format("item {} of user {}", "item", "user"), then)
    found = table.select(pl.col("user_row", "item_row").cast(pl.Int64), "split", "query").sort("split", "user_row")
    columns: list[pa.Array] = [pa.array(found[name].to_numpy()) for name in ("user_row", "item_row")]
    return pa.table([*columns, strings(found["split"]), strings(found["query"])], ["user", "item", "split", "query"])


def read_item_texts(
    file: Input, item_ids: pa.StringArray, item_column: str, text_column: str
) -> tuple[Ints, pa.StringArray]:
    """Read a text for each item: rows of ``item_ids``, and normalised texts. Texts of other items, and empty ones, are
    left out.

    Raises:
        CatalogError: an item comes twice, or what any input is refused for.
    """
    frame = _read(file, {"item": Wanted(item_column, "id"), "text": Wanted(text_column, "text")})
    frame = frame.with_columns(text=normalize_titles(frame["text"]))
    again = frame.filter(pl.col("item").is_duplicated())
    if not again.is_empty():
        refuse(file.files, again, "rows share an item", pl.format("item {}", "item"), "leave one row per item")
    known = frame.join(_numbered("item", item_ids), on="item").drop_nulls("text").sort("item_row")
    return known["item_row"].cast(pl.Int64).to_numpy(writable=True), strings(known["text"])


def _read_statements(file: Input, wanted: dict[str, str], user_ids: pa.StringArray) -> pl.DataFrame:
    """Read rows with a user and a query; ``user_row`` is the user's place in ``user_ids``."""
    frame = _read(file, {name: Wanted(column, "text" if name == "query" else "id") for name, column in wanted.items()})
    frame = frame.with_columns(query=normalize_titles(frame["query"]))
    frame = frame.join(_numbered("user", user_ids), on="user", how="left", maintain_order="left")
    for bad, what, then in (
        (pl.col("query").is_null(), "queries are empty", "write what the user wants, or remove their rows"),
        (pl.col("user_row").is_null(), "queries have an unknown user", "remove their rows, or give the user's items"),
    ):
        refused = frame.filter(bad)
        if not refused.is_empty():
            refuse(file.files, refused, what, pl.format("user {}", "user"), then)
    return frame


def _numbered(name: str, ids: pa.StringArray) -> pl.DataFrame:
    return pl.DataFrame({name: pl.Series(values=ids, dtype=pl.String)}).with_row_index(f"{name}_row")
