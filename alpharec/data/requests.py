"""User lists, new items, intentions, candidates, users to list for, queries, item texts."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Literal, cast

import polars as pl
import pyarrow as pa

from alpharec.data.conditions import Condition
from alpharec.data.dataset import CatalogError, Dataset, Ints, Pairs
from alpharec.data.files import Input, fail
from alpharec.data.formats import Columns
from alpharec.data.read import read_catalog
from alpharec.data.tables import Wanted, quoted, read_columns, refuse, strings
from alpharec.data.titles import normalize_titles

Policy = Literal["error", "skip"]
# The ids that each policy left out of a request, e.g. "unknown_items"; an id is there as often as the file has it.
LeftOut = dict[str, list[str]]


def read_user_lists(
    file: Input,
    item_ids: pa.StringArray,
    *,
    on_unknown_item: Policy = "error",
    on_empty_history: Policy = "error",
) -> tuple[pa.StringArray, Pairs, LeftOut]:
    """Read users given by their items: user ids, pairs of a user's row and an index into ``item_ids``, and what was
    left out.

    Columns ``user_id`` and ``item_ids``: a list in Parquet and JSONL, ids separated by spaces in CSV. An item that a
    user has twice counts once; pairs are sorted.

    Raises:
        CatalogError: a user comes twice; a policy is ``error`` and its case occurs; no user is left; or what any input
            is refused for.
    """
    frame = _read(file, {"user": Wanted("user_id", "id"), "items": Wanted("item_ids", "ids")}).with_row_index("place")
    again = frame.filter(pl.col("user").is_duplicated())
    if not again.is_empty():
        refuse(file.files, again, "rows share a user", pl.format("user {}", "user"), "give each user one row")
    known = pl.DataFrame({"items": pl.Series(values=item_ids, dtype=pl.String)}).with_row_index("item")
    has_item = pl.col("items").list.len().fill_null(0) > 0
    empty = frame.filter(~has_item)
    pairs = (frame if empty.is_empty() else frame.filter(has_item)).explode("items")
    pairs = pairs.join(known, on="items", how="left", maintain_order="left")
    unknown = pairs.filter(pl.col("item").is_null())
    if not unknown.is_empty():
        if on_unknown_item == "error":
            values = pl.format("{} of user {}", quoted("items"), "user")
            then = (
                "add their titles by --recommend.new-items FILE, or pass --recommend.on-unknown-item skip to leave "
                "them out"
            )
            refuse(file.files, unknown, "given items are neither in the bundle nor new items", values, then)
        pairs = pairs.drop_nulls("item")
        has_item = pl.col("place").is_in(pairs["place"].unique().implode())
        empty = frame.filter(~has_item)
    if not empty.is_empty():
        if on_empty_history == "error":
            what = "users have no item" if unknown.is_empty() else "users have no item that is known"
            then = "give them a known item each, or pass --recommend.on-empty-history skip to leave them out"
            refuse(file.files, empty, what, pl.format("user {}", "user"), then)
        if empty.height == frame.height:
            got = f"{empty.height} users without a known item"
            fail(file, "no user is left", got, "give one of them a known item")
        frame = frame.filter(has_item)
        # Users are numbered anew: the ranks of the rows that are left run from 1 without gaps.
        pairs = pairs.with_columns(pl.col("place").rank("dense") - 1)
    pairs = pairs.select(pl.col("place", "item").cast(pl.Int64)).unique().sort("place", "item")
    left_out = {"unknown_items": _ids(unknown, "items"), "users_without_items": _ids(empty, "user")}
    found = Pairs(pairs["place"].to_numpy(writable=True), pairs["item"].to_numpy(writable=True))
    return strings(frame["user"]), found, left_out


def _part(frame: pl.DataFrame, bad: pl.Expr) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the rows that are not bad, and those that are."""
    return frame.filter(~bad), frame.filter(bad)


def _ids(frame: pl.DataFrame, column: str) -> list[str]:
    return frame[column].fill_null("null").to_list()


def _read(file: Input, wanted: dict[str, Wanted]) -> pl.DataFrame:
    """Read columns and refuse rows that lack an id."""
    frame = read_columns(file, wanted)
    for name, each in wanted.items():
        bad = frame.filter(pl.col(name).is_null())
        if each.kind == "id" and not bad.is_empty():
            then = "give those rows an id, or remove them"
            refuse(file.files, bad, f"rows have no {name} id in column {each.column}", pl.lit("null"), then)
    return frame


def read_new_items(
    file: Input, item_ids: pa.StringArray, *, on_known_item: Policy = "error"
) -> tuple[pa.StringArray, pa.StringArray, LeftOut]:
    """Read items to add to those of ``item_ids``, columns ``item_id`` and ``title``: their ids, normalised titles, and
    what was left out.

    Raises:
        CatalogError: an id comes twice or a title is empty; an id is known, unless the policy leaves it out; or what
            any input is refused for.
    """
    table = read_catalog(file, Columns("item_id", "title", "")).table.with_columns(raw="title")
    table = table.with_columns(title=normalize_titles(table["title"]))
    is_known = pl.col("item_id").is_in(pl.Series(values=item_ids, dtype=pl.String).implode())
    left_out: LeftOut = {"known_new_items": []}
    if on_known_item == "skip":
        table, known = _part(table, is_known)
        left_out = {"known_new_items": _ids(known, "item_id")}
    for bad, what, then in (
        (pl.col("item_id").is_duplicated(), "rows share an item id", "leave one row per item"),
        (
            is_known,
            "items are in the bundle already",
            "remove their rows, or pass --recommend.on-known-item skip to use the bundle's own",
        ),
        (pl.col("title").is_null(), "items have an empty title", "give them a title, or remove their rows"),
    ):
        refused = table.filter(bad)
        if not refused.is_empty():
            refuse(file.files, refused, what, pl.format("{} with title {}", "item_id", quoted("raw")), then)
    return strings(table["item_id"]), strings(table["title"]), left_out


def read_intentions(
    file: Input, user_ids: pa.StringArray, *, on_unknown_user: Policy = "error", without: Sequence[str] = ()
) -> tuple[Ints, pa.StringArray, LeftOut]:
    """Read what users say they want, columns ``user_id`` and ``query``: rows of ``user_ids``, normalised texts, and
    what was left out. Intentions of users in ``without``, who were left out before, are left out with them.

    Raises:
        CatalogError: a user comes twice or a query is empty; a user is unknown, unless the policy leaves it out; or
            what any input is refused for.
    """
    table = _read_statements(file, {"user": "user_id", "query": "query"}, user_ids)
    table = table.filter(~pl.col("user").is_in(list(without)))
    left_out: LeftOut = {"unknown_users": []}
    if on_unknown_user == "skip":
        table, unknown = _part(table, pl.col("user_row").is_null())
        left_out = {"unknown_users": _ids(unknown, "user")}
    then = "give the users' items by --recommend.users FILE, or pass --recommend.on-unknown-user skip to leave them out"
    _check_statements(file, table, then)
    again = table.filter(pl.col("user").is_duplicated())
    if not again.is_empty():
        refuse(file.files, again, "rows share a user", pl.format("user {}", "user"), "give each user one row")
    return table["user_row"].cast(pl.Int64).to_numpy(writable=True), strings(table["query"]), left_out


def read_candidates(
    file: Input,
    item_ids: pa.StringArray,
    *,
    condition: Condition | None = None,
    on_unknown_item: Policy = "error",
) -> tuple[Ints, LeftOut]:
    """Read the only items to recommend, column ``item_id``, of rows that meet a condition on the other columns: rising
    indices into ``item_ids``, and what was left out.

    Raises:
        CatalogError: an item is unknown, unless the policy leaves it out; the condition does not fit the columns; or
            what any input is refused for.
    """
    frame = _read_ids(file, "item", item_ids)
    if condition is not None:
        frame = frame.filter(condition.met(_read_values(file, condition), f"{file.role} {file.address}"))
    frame, unknown = _part(frame, pl.col("item_row").is_null())
    if on_unknown_item == "error" and not unknown.is_empty():
        then = (
            "pass --recommend.on-unknown-item skip to leave them out, or add their titles by --recommend.new-items FILE"
        )
        refuse(file.files, unknown, "candidates are neither in the bundle nor new items", quoted("item"), then)
    return _rising(frame["item_row"]), {"unknown_candidates": _ids(unknown, "item")}


def _read_values(file: Input, condition: Condition) -> pl.DataFrame:
    """Read item ids and the columns of a condition, under their own names."""
    # Read under other names, for a column may be called as those that ``read_columns`` adds.
    names = {f"column {place}": name for place, name in enumerate(condition.columns) if name != "item_id"}
    wanted = {"item": Wanted("item_id", "id")} | {key: Wanted(name, "attribute") for key, name in names.items()}
    try:
        frame = _read(file, wanted)
    except CatalogError as error:  # of a column: the ids were read before
        raise CatalogError(f"{error}, or correct --recommend.where, with texts in single quotes") from error
    return frame.select("item", *names).rename({"item": "item_id"} | names)


def find_items(
    condition: Condition,
    items: pa.Table,
    kept: pa.Table | None,
    item_ids: pa.StringArray,
    *,
    place: str,
    new_items: Input | None = None,
) -> Ints:
    """Return the items that meet a condition on columns of ``items`` or ``kept``, both with ``item_id``: rising indices
    into ``item_ids``. Those of ``new_items`` have the values of that file, null in a column that it lacks.

    Raises:
        CatalogError: a column is missing or its type does not fit, in the table or in the file.
    """
    table = cast(pl.DataFrame, pl.from_arrow(items))
    if kept is not None:
        own = [name for name in kept.column_names if name != "item_id"]
        table = table.drop(own, strict=False).join(cast(pl.DataFrame, pl.from_arrow(kept)), on="item_id", how="left")
    missing = [name for name in condition.columns if name not in table.columns]
    if missing:
        then = shlex.quote(",".join(name for name in (*table.columns, *missing) if name not in ("item_id", "title")))
        raise CatalogError(
            f"{place}: has no column {', '.join(missing)} for recommend.where = {condition.text} (got "
            f"{', '.join(table.columns)}); name one of these (texts stand in single quotes), pass "
            f"--recommend.candidates FILE with such a column, or publish again with --data.keep-columns {then}"
        )
    table = table.select("item_id", *(name for name in condition.columns if name != "item_id"))
    if new_items is not None:
        new = _read_new_values(new_items, table.schema)
        table = pl.concat([table, new.join(table, on="item_id", how="anti")])
    found = table.filter(condition.met(table, place)).join(_numbered("item_id", item_ids), on="item_id")
    return _rising(found["item_id_row"])


def _read_new_values(file: Input, schema: pl.Schema) -> pl.DataFrame:
    """Read new items' values in the columns of a schema, in its types; null in a column that the file lacks."""
    names = {f"column {place}": name for place, name in enumerate(schema) if name != "item_id"}
    wanted = {key: Wanted(name, "attribute", optional=True) for key, name in names.items()}
    frame = _read(file, {"item": Wanted("item_id", "id")} | wanted)
    columns = [frame["item"].alias("item_id")]
    for key, name in names.items():
        kind = schema[name]
        try:
            values = frame[key].cast(kind, strict=False)
        except pl.exceptions.PolarsError:  # of a kind that no value there can be read as
            values = pl.Series(None, [None] * frame.height, kind)
        bad = frame.filter(frame[key].is_not_null() & values.is_null())
        if not bad.is_empty():
            what = f"new items have a {name} that is not {kind}, as the bundle's is"
            refuse(file.files, bad, what, quoted(key), "correct them, or leave them empty")
        columns.append(values.alias(name))
    return pl.DataFrame(columns)


def read_excluded(file: Input, item_ids: pa.StringArray) -> tuple[Ints, LeftOut]:
    """Read items never to recommend, column ``item_id``: rising indices into ``item_ids``, and the unknown ids, which
    exclude nothing.

    Raises:
        CatalogError: what any input is refused for.
    """
    frame, unknown = _part(_read_ids(file, "item", item_ids), pl.col("item_row").is_null())
    return _rising(frame["item_row"]), {"unknown_excluded_items": _ids(unknown, "item")}


def read_users_to_list(
    file: Input, user_ids: pa.StringArray, *, on_unknown_user: Policy = "error"
) -> tuple[Ints, LeftOut]:
    """Read known users, column ``user_id``: rising indices into ``user_ids``, and what was left out.

    Raises:
        CatalogError: a user is unknown, unless the policy leaves it out; no user is left; or what any input is refused
            for.
    """
    frame, unknown = _part(_read_ids(file, "user", user_ids), pl.col("user_row").is_null())
    if on_unknown_user == "error" and not unknown.is_empty():
        then = (
            "pass --recommend.on-unknown-user skip to leave them out, or name users by their items in "
            "--recommend.users FILE"
        )
        refuse(file.files, unknown, "users are not in the bundle", pl.format("user {}", "user"), then)
    if frame.is_empty():
        got = f"{unknown.height} users unknown to the bundle"
        fail(file, "no user is left", got, "pass --recommend.for-users FILE with a user of the bundle")
    return _rising(frame["user_row"]), {"unknown_users": _ids(unknown, "user")}


def _read_ids(file: Input, name: str, known: pa.StringArray) -> pl.DataFrame:
    """Read a column of ids, each with its place in ``known``; an id may come twice."""
    frame = _read(file, {name: Wanted(f"{name}_id", "id")})
    return frame.join(_numbered(name, known), on=name, how="left", maintain_order="left")


def _rising(rows: pl.Series) -> Ints:
    return rows.unique().sort().cast(pl.Int64).to_numpy(writable=True)


def read_queries(file: Input, dataset: Dataset) -> pa.Table:
    """Read queries with their targets, columns ``user_id``, ``query``, ``item_id``: user and item by index, the split
    (valid or test) that holds the pair, and the normalised query; sorted by split and user.

    Raises:
        CatalogError: a user or an item is unknown, a query is empty, a target is not held out for its user, a user has
            two queries of one split, or what any input is refused for.
    """
    wanted = {"user": "user_id", "query": "query", "item": "item_id"}
    table = _read_statements(file, wanted, dataset.user_ids)
    _check_statements(file, table, "remove their rows")
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
    return frame.join(_numbered("user", user_ids), on="user", how="left", maintain_order="left")


def _check_statements(file: Input, table: pl.DataFrame, then_of_unknown: str) -> None:
    for bad, what, then in (
        (pl.col("query").is_null(), "queries are empty", "write what the user wants, or remove their rows"),
        (pl.col("user_row").is_null(), "queries have an unknown user", then_of_unknown),
    ):
        refused = table.filter(bad)
        if not refused.is_empty():
            refuse(file.files, refused, what, pl.format("user {}", "user"), then)


def _numbered(name: str, ids: pa.StringArray) -> pl.DataFrame:
    return pl.DataFrame({name: pl.Series(values=ids, dtype=pl.String)}).with_row_index(f"{name}_row")
