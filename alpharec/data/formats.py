"""Formats: where a dataset's files lie, and the names of their columns."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import fsspec

from alpharec.config import DataSettings
from alpharec.data.dataset import SPLITS, CatalogError
from alpharec.data.files import FILE_SETTINGS, JSON_SUFFIXES, Input, Role, address_of, open_input


@dataclass(frozen=True)
class Columns:
    """Names of the columns in the two tables; empty: none."""

    item: str
    title: str
    user: str
    time: str = ""
    rating: str = ""
    split: str = ""


FIXED_COLUMNS = {
    "grouplens": Columns("movieId", "title", "userId", "timestamp", "rating"),
    "amazon-2018": Columns("asin", "title", "reviewerID", "unixReviewTime", "overall"),
    "amazon-2023": Columns("parent_asin", "title", "user_id", "timestamp", "rating"),
}
TABLE_SUFFIXES = (".parquet", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz")
ROLES: dict[str, Role] = {"items": "catalog", "users": "user lists", "new_items": "new items"}
ROLES |= {"intentions": "intentions", "queries": "queries", "texts": "item texts"}
ROLES |= {"candidates": "candidates", "exclude": "excluded items", "for_users": "users to list for"}
COLUMN_SETTINGS = ("item_column", "title_column", "user_column", "time_column", "rating_column", "split_column")


def open_inputs(settings: DataSettings) -> dict[str, Input]:
    """Find the input files, in a folder or at any fsspec URL.

    Raises:
        CatalogError: a file is missing, or a setting asks for what the format does not have.
    """
    _check_format(settings)
    inputs = {"items": open_input(_locate(settings, "items"), "catalog", settings)}
    if settings.format == "alpharec":
        for split in SPLITS:
            inputs[split] = open_input(f"{split}.txt", "interactions", settings, "--data.path FOLDER")
    elif settings.format == "amazon-2023" and settings.split == "given":
        for split in SPLITS:  # Video_Games.train.csv and its like, of the 5-core and 0-core benchmarks
            inputs[split] = open_input(f"*.{split}.csv*", "interactions", settings, "--data.path FOLDER")
    else:
        inputs["interactions"] = open_input(_locate(settings, "interactions"), "interactions", settings)
    return inputs


def open_table(
    names: str,
    setting: Literal["users", "new_items", "intentions", "candidates", "exclude", "for_users", "queries", "texts"],
    settings: DataSettings = DataSettings(),
) -> Input:
    """Find the files that a setting such as ``recommend.users`` or ``intention.queries`` names.

    Relative paths start from the working directory; how to read text files is told by the data settings.

    Raises:
        CatalogError: a file is missing.
    """
    return open_input(names, ROLES[setting], settings.model_copy(update={"path": ""}))


def _check_format(settings: DataSettings) -> None:
    own = {"table": COLUMN_SETTINGS, "alpharec": COLUMN_SETTINGS[:2]}.get(settings.format, ())
    for name in COLUMN_SETTINGS:
        value = getattr(settings, name)
        if name not in own and value != DataSettings.model_fields[name].default:
            raise CatalogError(
                f"data.{name} = {value} means nothing for data.format = {settings.format}, whose columns are fixed; "
                f"remove --data.{name.replace('_', '-')}, or pass --data.format table"
            )
    if settings.min_rating is not None and (settings.format == "alpharec" or not columns_of(settings).rating):
        raise CatalogError(
            f"data.min_rating = {settings.min_rating} needs ratings (got none); pass --data.rating-column NAME"
        )
    if settings.format == "alpharec" and settings.split not in ("given", "ratio-random", "none"):
        raise CatalogError(
            f"data.split = {settings.split} needs times, which data.format = alpharec has not; pass --data.split given"
        )
    if settings.format == "alpharec" and settings.interactions:
        raise CatalogError(
            "data.format = alpharec reads train.txt, valid.txt and test.txt "
            f"(got data.interactions = {settings.interactions}); remove --data.interactions"
        )


def columns_of(settings: DataSettings) -> Columns:
    """Return the names of the columns that the settings or the format say."""
    return FIXED_COLUMNS.get(settings.format) or Columns(
        settings.item_column,
        settings.title_column,
        settings.user_column,
        settings.time_column,
        settings.rating_column,
        settings.split_column,
    )


def _locate(settings: DataSettings, setting: Literal["items", "interactions"]) -> str:
    name: str = getattr(settings, setting)
    if name:
        return name
    if not settings.path:
        raise CatalogError(f"data.path and data.{setting} are empty: nothing to read; pass --data.path FOLDER")
    folder = address_of(settings, "")
    found = _usual_names(settings, setting, folder)
    if len(found) != 1:
        raise CatalogError(
            f"{folder}: expected one file of {setting} with a usual name for data.format = {settings.format} "
            f"(got {', '.join(found) or 'none'}); pass {FILE_SETTINGS[ROLES.get(setting, 'interactions')]}"
        )
    return found[0]


def _usual_names(settings: DataSettings, setting: Literal["items", "interactions"], folder: str) -> list[str]:
    """Return the names in the folder that the format's files usually have."""
    try:
        fs, path = fsspec.core.url_to_fs(folder)
        names = sorted(os.path.basename(found.rstrip("/")) for found in fs.ls(path, detail=False))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, ImportError) as error:
        raise CatalogError(f"{folder}: cannot be read (got {error}); pass --data.path FOLDER") from error
    if settings.format.startswith("amazon"):
        # Video_Games.json.gz beside meta_Video_Games.json.gz: the category is part of the name.
        names = [name for name in names if name.removesuffix(".gz").endswith((*JSON_SUFFIXES, ".csv"))]
        names = [name for name in names if not any(f".{split}.csv" in name for split in SPLITS)]
        return [name for name in names if name.startswith("meta_") == (setting == "items")]
    if settings.format == "grouplens":
        stem = {"items": "movies", "interactions": "ratings"}[setting]
        usual = [f"{stem}.csv", f"{stem}.dat"]
    else:
        usual = [setting, *(f"{setting}{suffix}" for suffix in TABLE_SUFFIXES)]
        usual += [name for name in names if name.endswith({"items": ".item", "interactions": ".inter"}[setting])]
    return [name for name in usual if name in names]
