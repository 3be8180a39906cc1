"""From what was read to a dataset: policies, filters, split."""

from __future__ import annotations

import os
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from alpharec.config import DataSettings
from alpharec.data.dataset import SPLITS, Dataset, Ints, Pairs
from alpharec.data.files import fail
from alpharec.data.read import Catalog, Interactions
from alpharec.data.report import Counts, describe
from alpharec.data.splits import split
from alpharec.data.tables import NUM_EXAMPLES, place, quoted, refuse, strings
from alpharec.data.titles import normalize_titles


def build_dataset(
    catalog: Catalog, interactions: Interactions, settings: DataSettings, *, seed: int
) -> tuple[Dataset, dict[str, Any]]:
    """Apply the policies, filters and the split; return the dataset and its report.

    Raises:
        CatalogError: a policy is ``error`` and its case occurs, or a split is empty.
    """
    items, skipped, left_out = _clean_items(catalog, settings)
    left_out |= {"items_without_id": catalog.without_id, "interactions_without_id": interactions.without_id}
    pairs, counts = _code_pairs(items, skipped, interactions, settings)
    left_out |= counts
    if settings.min_rating is not None:
        left_out["low_rating_interactions"] = pairs.filter(pl.col("rating") < settings.min_rating).height
        pairs = pairs.filter(pl.col("rating") >= settings.min_rating)
    pairs, counts = _unique_pairs(pairs, interactions, items["item_id"], settings)
    left_out |= counts
    pairs, keep_user, keep_item, counts = _apply_core(pairs, len(interactions.users), items.height, settings)
    left_out |= counts
    if pairs.is_empty():
        then = "loosen --data.min-rating, --data.min-user-interactions or --data.min-item-interactions"
        fail(interactions.files[0], "no interactions are left", _nonzero(left_out), then)
    pairs, counts = split(pairs, interactions.files[0], settings, seed)
    left_out |= counts
    train, valid, test = (_sorted_pairs(pairs.filter(pl.col("split") == split)) for split in range(3))
    dataset = Dataset(
        strings(items["item_id"].filter(keep_item)),
        strings(items["title"].filter(keep_item)),
        strings(interactions.users.filter(keep_user)),
        train,
        valid,
        test,
        attributes=_attributes(items.filter(keep_item)),
    )
    return dataset, describe(dataset, left_out)


def _attributes(items: pl.DataFrame) -> pa.Table | None:
    """Return item_id and the columns to keep, None where there are none."""
    kept = {name: name.removeprefix("keep ") for name in items.columns if name.startswith("keep ")}
    if not kept:
        return None
    table = items.select(
        "item_id", *(pl.col(name).alias(column) for name, column in kept.items() if column != "item_id")
    )
    return table.to_arrow(compat_level=pl.CompatLevel.oldest())


def _clean_items(catalog: Catalog, settings: DataSettings) -> tuple[pl.DataFrame, pl.Series, Counts]:
    """Return items with one title each, the ids left out for their empty title, and counts."""
    table = catalog.table.with_columns(raw="title").with_columns(title=normalize_titles(catalog.table["title"]))
    unique, counts = _unique_items(catalog, table, settings)
    empty = unique.filter(pl.col("title").is_null())
    counts["empty_titles"] = empty.height
    if settings.on_empty_title == "error" and not empty.is_empty():
        values = pl.format("{} for {}", quoted("raw"), "item_id")
        then = "pass --data.on-empty-title skip to leave them out, or id to use the item id as the title"
        refuse(catalog.files, empty, "items have an empty title", values, then)
    unique = unique.drop("raw", "file", "row")
    if settings.on_empty_title == "id":
        return unique.with_columns(pl.col("title").fill_null(pl.col("item_id"))), empty["item_id"].clear(), counts
    return unique.filter(pl.col("title").is_not_null()), empty["item_id"], counts


def _unique_items(catalog: Catalog, table: pl.DataFrame, settings: DataSettings) -> tuple[pl.DataFrame, Counts]:
    """Leave one row of each item, with the title that ``data.on_different_title`` chooses among those that it has."""
    again = table.filter(pl.col("item_id").is_duplicated())
    if again.is_empty():
        return table, {"repeated_items": 0, "repeated_items_with_another_title": 0}
    differing = again.filter(pl.col("title").drop_nulls().n_unique().over("item_id") > 1).sort("item_id", "file", "row")
    # The 2018 metadata are known to hold items twice, scraped at different times.
    choice = settings.on_different_title or ("first" if settings.format == "amazon-2018" else "error")
    if choice == "error" and not differing.is_empty():
        values = pl.format("{} with title {}", "item_id", quoted("title"))
        then = "pass --data.on-different-title first or most-frequent, or leave one row per item"
        shown = differing.drop_nulls("title").unique(["item_id", "title"], keep="first", maintain_order=True)
        refuse(catalog.files, shown, "rows share an item id but not the title", values, then)
    if choice == "most-frequent":
        counted = differing.drop_nulls("title").group_by("item_id", "title", maintain_order=True).len()
        chosen = counted.sort("len", descending=True, maintain_order=True).unique("item_id", keep="first")
    else:
        chosen = again.drop_nulls("title").unique("item_id", keep="first", maintain_order=True)
    chosen = chosen.select("item_id", pl.col("title").alias("chosen"))
    unique = table.unique("item_id", keep="first", maintain_order=True)
    unique = unique.join(chosen, on="item_id", how="left", maintain_order="left")
    unique = unique.with_columns(title=pl.coalesce("chosen", "title")).drop("chosen")
    return unique, {
        "repeated_items": table.height - unique.height,
        "repeated_items_with_another_title": differing["item_id"].n_unique(),
    }


def _nonzero(left_out: Counts) -> str:
    return "left out: " + (", ".join(f"{name} {count}" for name, count in left_out.items() if count) or "nothing")


def _sorted_pairs(pairs: pl.DataFrame) -> Pairs:
    keys = ["user", "time"] if "time" in pairs.columns else ["user"]
    pairs = pairs.sort(keys, maintain_order=True)
    return Pairs(pairs["user"].to_numpy(writable=True), pairs["item"].to_numpy(writable=True))


def _code_pairs(
    items: pl.DataFrame, skipped: pl.Series, interactions: Interactions, settings: DataSettings
) -> tuple[pl.DataFrame, Counts]:
    """Replace ids by indices (user, item), leaving out interactions without an item; a skipped item is -1 meanwhile."""
    known = pl.concat(
        [
            items.select("item_id", pl.int_range(pl.len(), dtype=pl.Int64).alias("item")),
            pl.DataFrame({"item_id": skipped}).with_columns(item=pl.lit(-1, pl.Int64)),
        ]
    )
    users = pl.DataFrame({"user_id": interactions.users}).with_columns(user=pl.int_range(pl.len(), dtype=pl.Int64))
    pairs = interactions.table.join(known, on="item_id", how="left", maintain_order="left")
    unknown = pairs.filter(pl.col("item").is_null())
    if settings.on_unknown_item == "error" and not unknown.is_empty():
        what = "interactions have an item that the catalog lacks"
        then = "pass --data.on-unknown-item skip to leave them out"
        refuse(interactions.files, unknown, what, pl.col("item_id"), then)
    counts = {
        "unknown_item_interactions": unknown.height,
        "empty_title_items": len(skipped),
        "empty_title_interactions": pairs.filter(pl.col("item") == -1).height,
    }
    pairs = pairs.filter(pl.col("item") >= 0).drop("item_id")
    return pairs.join(users, on="user_id", how="left", maintain_order="left").drop("user_id"), counts


def _unique_pairs(
    pairs: pl.DataFrame, interactions: Interactions, item_ids: pl.Series, settings: DataSettings
) -> tuple[pl.DataFrame, Counts]:
    """Leave one of each (user, item) pair: the first in time, else in file order."""
    pairs = pairs.with_columns(pair=pl.col("user") * len(item_ids) + pl.col("item"), place=pl.int_range(pl.len()))
    again = pairs.filter(pl.col("pair").is_duplicated())
    if again.is_empty():
        return pairs.drop("pair", "place"), {"repeated_interactions": 0}
    if settings.on_duplicate == "error":
        _refuse_pairs(again, interactions, item_ids)
    ordered = pairs.sort("time", maintain_order=True) if "time" in pairs.columns else pairs
    unique = ordered.unique("pair", keep="first", maintain_order=True).sort("place")
    return unique.drop("pair", "place"), {"repeated_interactions": pairs.height - unique.height}


def _refuse_pairs(again: pl.DataFrame, interactions: Interactions, item_ids: pl.Series) -> NoReturn:
    overlap = again.clear()
    if "split" in again.columns:
        overlap = again.filter(pl.col("split").n_unique().over("pair") > 1)
    shown = again if overlap.is_empty() else overlap
    rows = shown.filter(pl.col("pair") == shown["pair"][0]).head(NUM_EXAMPLES)
    places = []
    for row in rows.iter_rows(named=True):
        file = interactions.files[row["file"]]
        split = "" if overlap.is_empty() else f"{SPLITS[row['split']]}, "
        places.append(f"{split}{os.path.basename(file.address)} {place(file, row['row'])}")
    first = interactions.files[rows["file"][0]]
    num = shown["pair"].n_unique()
    what = "(user, item) pairs occur twice" if overlap.is_empty() else "(user, item) pairs are in more than one split"
    pair = f"user {interactions.users[rows['user'][0]]}, item {item_ids[rows['item'][0]]} at {' and '.join(places)}"
    fail(first, f"{num} {what}", pair, "pass --data.on-duplicate first to keep the first of each")


def _apply_core(
    pairs: pl.DataFrame, num_users: int, num_items: int, settings: DataSettings
) -> tuple[pl.DataFrame, npt.NDArray[np.bool_], npt.NDArray[np.bool_], Counts]:
    """Filter to the k-core and renumber; return the pairs, which users and items stay, and counts."""
    users, items = pairs["user"].to_numpy(), pairs["item"].to_numpy()
    fewest = (settings.min_user_interactions, settings.min_item_interactions)
    keep, rounds = core_mask(users, items, *fewest)
    keep_user = np.bincount(users[keep], minlength=num_users) >= fewest[0]
    keep_item = np.bincount(items[keep], minlength=num_items) >= fewest[1]
    pairs = pairs.filter(keep).with_columns(
        user=pl.Series((np.cumsum(keep_user) - 1)[users[keep]]), item=pl.Series((np.cumsum(keep_item) - 1)[items[keep]])
    )
    return (
        pairs,
        keep_user,
        keep_item,
        {
            "core_users": int((~keep_user).sum()),
            "core_items": int((~keep_item).sum()),
            "core_interactions": int((~keep).sum()),
            "core_rounds": rounds,
        },
    )


def core_mask(users: Ints, items: Ints, min_user: int, min_item: int) -> tuple[npt.NDArray[np.bool_], int]:
    """Return which interactions lie in the k-core, and the rounds it took.

    The k-core is the largest set in which every user has ``min_user`` and every item ``min_item`` interactions.
    """
    keep = np.ones(len(users), bool)
    rounds = 0
    while keep.any():
        num_of_user, num_of_item = np.bincount(users[keep]), np.bincount(items[keep])
        poor = np.flatnonzero(keep)
        poor = poor[(num_of_user[users[poor]] < min_user) | (num_of_item[items[poor]] < min_item)]
        if not poor.size:
            break
        keep[poor] = False
        rounds += 1
    return keep, rounds
