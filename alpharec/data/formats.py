"""Which files hold the input, and which columns of them."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import zlib
from dataclasses import dataclass
from typing import Literal

import fsspec

from alpharec.config import DataSettings
from alpharec.data.dataset import SPLITS, CatalogError

Role = Literal[
    "catalog", "interactions", "user lists", "new items", "intentions", "queries", "item texts", "candidates",
    "excluded items", "users to list for",
]  # fmt: skip


@dataclass(frozen=True)
class InputFile:
    """A file read whole; ``sha256`` is of the file as it is stored, ``data`` is decompressed."""

    role: Role
    address: str
    data: bytes
    sha256: str

    @property
    def suffix(self) -> str:
        return os.path.splitext(self.address.lower().removesuffix(".gz"))[1]

    def place(self, row: int) -> str:
        """Name a row (from 0, without header) as a person finds it: line of a text file or row of a table, from 1."""
        if self.suffix == ".csv":
            return f"line {_csv_line(self.data, row)}"
        if self.suffix in JSON_SUFFIXES:
            lines = (number for number, line in enumerate(io.BytesIO(self.data), 1) if line.strip())
            return f"line {next(number for count, number in enumerate(lines) if count == row)}"
        return f"{'line' if self.suffix in ('.dat', '.txt') else 'row'} {row + 1}"


@dataclass(frozen=True)
class Columns:
    """Names of the columns in the two files; empty: none."""

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
DAT_COLUMNS = {"catalog": ["movieId", "title", "genres"], "interactions": ["userId", "movieId", "rating", "timestamp"]}
JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
TABLE_SUFFIXES = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz")
ROLES: dict[str, Role] = {"items": "catalog", "users": "user lists", "new_items": "new items"}
ROLES |= {"intentions": "intentions", "queries": "queries", "texts": "item texts"}
ROLES |= {"candidates": "candidates", "exclude": "excluded items", "for_users": "users to list for"}
FILE_SETTINGS: dict[Role, str] = {
    "catalog": "--data.items FILE",
    "interactions": "--data.interactions FILE",
    "user lists": "--recommend.users FILE",
    "new items": "--recommend.new-items FILE",
    "intentions": "--recommend.intentions FILE",
    "queries": "--intention.queries FILE",
    "item texts": "--intention.texts FILE",
    "candidates": "--recommend.candidates FILE",
    "excluded items": "--recommend.exclude FILE",
    "users to list for": "--recommend.for-users FILE",
}
COLUMN_SETTINGS = ("item_column", "title_column", "user_column", "time_column", "rating_column", "split_column")


def open_inputs(settings: DataSettings) -> dict[str, InputFile]:
    """Read the input files whole, from a folder or any fsspec URL.

    Raises:
        CatalogError: a file is missing or damaged, or a setting asks for what the format does not have.
    """
    _check_format(settings)
    addresses = {"items": _locate(settings, "items")}
    if settings.format == "alpharec":
        addresses |= {split: _address(settings, f"{split}.txt") for split in SPLITS}
    else:
        addresses["interactions"] = _locate(settings, "interactions")
    return {role: _open(address, role) for role, address in addresses.items()}


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
    if settings.format == "alpharec" and settings.split not in ("given", "ratio-random"):
        raise CatalogError(
            f"data.split = {settings.split} needs times, which data.format = alpharec has not; pass --data.split given"
        )
    if settings.format == "alpharec" and settings.interactions:
        raise CatalogError(
            "data.format = alpharec reads train.txt, valid.txt and test.txt "
            f"(got data.interactions = {settings.interactions}); remove --data.interactions"
        )


def columns_of(settings: DataSettings) -> Columns:
    return FIXED_COLUMNS.get(settings.format) or Columns(
        settings.item_column,
        settings.title_column,
        settings.user_column,
        settings.time_column,
        settings.rating_column,
        settings.split_column,
    )


def _address(settings: DataSettings, name: str) -> str:
    if "://" not in name and not os.path.isabs(name) and settings.path:
        name = f"{settings.path.rstrip('/')}/{name}"
    return name if "://" in name else os.path.abspath(os.path.expanduser(name))


def _locate(settings: DataSettings, setting: Literal["items", "interactions"]) -> str:
    name: str = getattr(settings, setting)
    if name:
        return _address(settings, name)
    if not settings.path:
        raise CatalogError(f"data.path and data.{setting} are empty: nothing to read; pass --data.path FOLDER")
    folder = _address(settings, "")
    found = _usual_names(settings, setting, folder)
    if len(found) != 1:
        raise CatalogError(
            f"{folder}: expected one file of {setting} with a usual name for data.format = {settings.format} "
            f"(got {', '.join(found) or 'none'}); pass --data.{setting} FILE"
        )
    return _address(settings, found[0])


def _usual_names(settings: DataSettings, setting: Literal["items", "interactions"], folder: str) -> list[str]:
    try:
        fs, path = fsspec.core.url_to_fs(folder)
    except (ValueError, ImportError) as error:
        raise CatalogError(f"{folder}: cannot be read (got {error}); pass --data.path FOLDER") from error
    if settings.format.startswith("amazon"):
        # Video_Games.json.gz beside meta_Video_Games.json.gz: the category is part of the name.
        names = sorted(found.rsplit("/", 1)[-1] for found in fs.glob(f"{path.rstrip('/')}/*"))
        names = [name for name in names if name.removesuffix(".gz").endswith((*JSON_SUFFIXES, ".csv"))]
        return [name for name in names if name.startswith("meta_") == (setting == "items")]
    if settings.format == "grouplens":
        stem = {"items": "movies", "interactions": "ratings"}[setting]
        candidates = [f"{stem}.csv", f"{stem}.dat"]
    else:
        candidates = [f"{setting}{suffix}" for suffix in TABLE_SUFFIXES]
    return [name for name in candidates if fs.exists(f"{path.rstrip('/')}/{name}")]


def _open(address: str, role: str) -> InputFile:
    kind = ROLES.get(role, "interactions")
    setting = "--data.path FOLDER" if role in SPLITS else FILE_SETTINGS[kind]
    try:
        fs, path = fsspec.core.url_to_fs(address)
        stored = fs.cat_file(path)
    except (OSError, ValueError, ImportError) as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise CatalogError(f"{kind} {address}: {why}; pass {setting} with a file that is there") from error
    try:
        data = gzip.decompress(stored) if address.lower().endswith(".gz") else stored
    except (OSError, EOFError, zlib.error) as error:
        raise CatalogError(f"{kind} {address}: not a whole gzip file (got {error}); fetch it again") from error
    return InputFile(kind, address, data, hashlib.sha256(stored).hexdigest())


def _csv_line(data: bytes, row: int) -> str:
    """Return the first line of a record; a quoted field may hold line ends, so rows and lines differ."""
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline=""))
    try:
        for record, _ in enumerate(reader):
            if record == row:
                return str(reader.line_num + 1)
    except csv.Error:
        pass
    return f"of record {row + 1}"


def open_table(
    address: str,
    setting: Literal["users", "new_items", "intentions", "candidates", "exclude", "for_users", "queries", "texts"],
) -> InputFile:
    """Read the file that a setting such as ``recommend.users`` or ``intention.queries`` names, whole.

    Raises:
        CatalogError: the file is missing or damaged.
    """
    return _open(_address(DataSettings(), address), setting)
