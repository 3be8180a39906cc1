"""Datasets: item titles and interactions from files of several formats, checked, filtered, split, kept as one artifact.

Shapes: U users, I items, E interactions.

One pass: open the files -> read a ``Catalog`` and ``Interactions`` -> ``build_dataset`` (title policy, unknown items,
rating filter, duplicates, k-core, split, cold truth) -> ``prepare`` writes the artifact. What a policy or filter leaves
out is counted in the report; everything else that does not fit is a ``CatalogError``.

Order: an item's index is its place in the catalog file, a user's index the place of the user's first interaction (for
the ``alpharec`` format both are the ids in the files). Items and users without interactions stay; only a k-core removes
them, and only an empty title with ``on_empty_title = skip`` removes another item.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
import html
import io
import json
import os
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import fsspec
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from alpharec.artifacts import Artifact, Store, digest
from alpharec.config import DataSettings, Settings

# Part of a dataset's version: raise it when the same input would give other files.
DATASET_FORMAT = 1
SPLITS = ("train", "valid", "test")
QUANTILES = (0, 25, 50, 75, 90, 99, 100)
NUM_EXAMPLES = 3

Ints = npt.NDArray[np.int64]
Counts = dict[str, int]
Role = Literal["catalog", "interactions", "user lists", "new items", "intentions", "queries", "item texts"]
Split = Literal["given", "ratio-random", "ratio-time", "leave-last-out", "global-time"]


class CatalogError(ValueError):
    """The input data does not hold what it must; the message says where, what was got, and what to do."""


@dataclass(frozen=True)
class Pairs:
    """Interactions of one split.

    Shapes: users (E,), items (E,), both int64 indices; sorted by user, then time if there is one, then file order.
    """

    users: Ints
    items: Ints

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class Domain:
    """One dataset of a mix: users and items first..end-1 are its own."""

    name: str
    first_user: int
    end_user: int
    first_item: int
    end_item: int

    @property
    def users(self) -> slice:
        return slice(self.first_user, self.end_user)

    @property
    def items(self) -> slice:
        return slice(self.first_item, self.end_item)


@dataclass(frozen=True)
class Dataset:
    """Items with titles, users, and three disjoint sets of (user, item) pairs; ``domains`` only of a mix.

    Shapes: item_ids (I,), titles (I,), user_ids (U,).
    """

    item_ids: pa.StringArray
    titles: pa.StringArray
    user_ids: pa.StringArray
    train: Pairs
    valid: Pairs
    test: Pairs
    domains: tuple[Domain, ...] = ()

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    @property
    def splits(self) -> dict[str, Pairs]:
        return {split: getattr(self, split) for split in SPLITS}

    def of(self, domain: Domain) -> Dataset:
        """Return one dataset of the mix, its indices from 0."""

        def own(pairs: Pairs) -> Pairs:
            mine = slice(*np.searchsorted(pairs.users, [domain.first_user, domain.end_user]))
            return Pairs(pairs.users[mine] - domain.first_user, pairs.items[mine] - domain.first_item)

        splits = own(self.train), own(self.valid), own(self.test)
        return Dataset(self.item_ids[domain.items], self.titles[domain.items], self.user_ids[domain.users], *splits)


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
class Catalog:
    """Items as read: a table of item_id, title (may be null), and where they stood for messages: file, row."""

    file: InputFile
    table: pl.DataFrame


@dataclass(frozen=True)
class Interactions:
    """Interactions as read: users in index order, and a table of user_id, item_id, [time, rating, split], file, row."""

    files: tuple[InputFile, ...]
    users: pl.Series
    table: pl.DataFrame


@dataclass(frozen=True)
class _Columns:
    """Names of the columns in the two files; empty: none."""

    item: str
    title: str
    user: str
    time: str = ""
    rating: str = ""
    split: str = ""


FIXED_COLUMNS = {
    "grouplens": _Columns("movieId", "title", "userId", "timestamp", "rating"),
    "amazon-2018": _Columns("asin", "title", "reviewerID", "unixReviewTime", "overall"),
    "amazon-2023": _Columns("parent_asin", "title", "user_id", "timestamp", "rating"),
}
DAT_COLUMNS = {"catalog": ["movieId", "title", "genres"], "interactions": ["userId", "movieId", "rating", "timestamp"]}
JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
TABLE_SUFFIXES = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz")
ROLES: dict[str, Role] = {"items": "catalog", "users": "user lists", "new_items": "new items"}
ROLES |= {"intentions": "intentions", "queries": "queries", "texts": "item texts"}
FILE_SETTINGS: dict[Role, str] = {
    "catalog": "--data.items FILE",
    "interactions": "--data.interactions FILE",
    "user lists": "--recommend.users FILE",
    "new items": "--recommend.new-items FILE",
    "intentions": "--recommend.intentions FILE",
    "queries": "--intention.queries FILE",
    "item texts": "--intention.texts FILE",
}
COLUMN_SETTINGS = ("item_column", "title_column", "user_column", "time_column", "rating_column", "split_column")


# ---------------------------------------------------------------- the artifact


def prepare(store: Store, settings: Settings) -> Artifact:
    """Return the dataset these settings describe, reading and splitting only if the store does not have it.

    The version is the digest of the data settings, the seed where it matters, and the content of every input file;
    where the files lie does not matter.

    Raises:
        CatalogError: the input does not hold what it must.
    """
    if settings.data.format == "mix":
        return _prepare_mix(store, settings)
    inputs = open_inputs(settings.data)
    version = _version(inputs, settings)
    found = store.find("datasets", settings.name, version)
    if found is not None:
        return found
    dataset, report = build_dataset(*read_inputs(inputs, settings.data), settings.data, seed=settings.seed)
    sources = {role: file.address for role, file in inputs.items()}
    return _write_dataset(store, settings, version, dataset, report, sources)


def _write_dataset(
    store: Store,
    settings: Settings,
    version: str,
    dataset: Dataset,
    report: dict[str, Any],
    sources: Mapping[str, str | Artifact],
) -> Artifact:
    draft = store.draft("datasets", settings.name, version)
    draft.write_table("items.parquet", pa.table({"item_id": dataset.item_ids, "title": dataset.titles}))
    draft.write_table("users.parquet", pa.table({"user_id": dataset.user_ids}))
    for split, pairs in dataset.splits.items():
        draft.write_table(
            f"{split}.parquet", pa.table({"user": pairs.users.astype(np.int32), "item": pairs.items.astype(np.int32)})
        )
    draft.write_json("report.json", report)
    return draft.commit(
        settings=settings.model_dump(mode="json", include={"name", "seed", "data"}),
        inputs=sources,
        summary={
            "users": report["users"],
            "items": report["items"],
            **report["interactions"],
            **({"domains": [dataclasses.asdict(domain) for domain in dataset.domains]} if dataset.domains else {}),
        },
    )


def _domain_settings(settings: Settings) -> dict[str, Settings]:
    return {
        name: settings.model_copy(update={"name": f"{settings.name}.{name}", "data": DataSettings(**given)})
        for name, given in settings.data.domains.items()
    }


def _prepare_mix(store: Store, settings: Settings) -> Artifact:
    """Return several datasets as one: users and items follow each other, ids are ``<domain>/<id>``."""
    made = {name: prepare(store, chosen) for name, chosen in _domain_settings(settings).items()}
    version = _mix_version({name: artifact.version for name, artifact in made.items()})
    found = store.find("datasets", settings.name, version)
    if found is not None:
        return found
    parts = {name: load_dataset(artifact) for name, artifact in made.items()}
    domains: list[Domain] = []
    for name, part in parts.items():
        user, item = (domains[-1].end_user, domains[-1].end_item) if domains else (0, 0)
        domains.append(Domain(name, user, user + part.num_users, item, item + part.num_items))

    def joined(split: str) -> Pairs:
        pairs = [(part.splits[split], domain) for part, domain in zip(parts.values(), domains, strict=True)]
        users = [own.users + domain.first_user for own, domain in pairs]
        return Pairs(np.concatenate(users), np.concatenate([own.items + domain.first_item for own, domain in pairs]))

    def ids(column: str) -> pa.StringArray:
        named = [pc.binary_join_element_wise(name, getattr(part, column), "/") for name, part in parts.items()]
        return pa.concat_arrays(named)

    titles = pa.concat_arrays([part.titles for part in parts.values()])
    splits = joined("train"), joined("valid"), joined("test")
    dataset = Dataset(ids("item_ids"), titles, ids("user_ids"), *splits, tuple(domains))
    reports = {name: artifact.read_json("report.json") for name, artifact in made.items()}
    report = describe(dataset, {"empty_titles": sum(own["items_without_title"] for own in reports.values())})
    report["domains"] = reports
    return _write_dataset(store, settings, version, dataset, report, made)


def _mix_version(versions: Mapping[str, str]) -> str:
    return digest({"format": DATASET_FORMAT, "domains": list(versions.items())})[:16]


def find_prepared(store: Store, settings: Settings) -> Artifact | None:
    """Return the dataset these settings describe if the store has it; reads the input files for their digest."""
    if settings.data.format == "mix":
        found = {name: find_prepared(store, chosen) for name, chosen in _domain_settings(settings).items()}
        versions = {name: artifact.version for name, artifact in found.items() if artifact}
        return store.find("datasets", settings.name, _mix_version(versions)) if len(versions) == len(found) else None
    return store.find("datasets", settings.name, _version(open_inputs(settings.data), settings))


def load_dataset(artifact: Artifact) -> Dataset:
    """Load a dataset that ``prepare`` wrote."""
    items = artifact.read_table("items.parquet")
    users = artifact.read_table("users.parquet")
    return Dataset(
        item_ids=items["item_id"].combine_chunks(),
        titles=items["title"].combine_chunks(),
        user_ids=users["user_id"].combine_chunks(),
        **{split: _pairs(artifact.read_table(f"{split}.parquet")) for split in SPLITS},
        domains=domains_of(artifact),
    )


def domains_of(artifact: Artifact) -> tuple[Domain, ...]:
    """Return the datasets that a dataset was mixed from, none if it was not."""
    return tuple(Domain(**domain) for domain in artifact.summary.get("domains", ()))


def read_degrees(artifact: Artifact) -> Ints:
    """Count each user's train interactions in a dataset, a piece of the file at a time. Shapes: -> (U,)."""
    degrees = np.zeros(artifact.summary["users"], np.int64)
    with artifact.open_table("train.parquet") as table:
        for piece in table.iter_batches(columns=["user"]):
            users = piece["user"].to_numpy()  # sorted, so a piece holds a narrow range of users
            if len(users):
                degrees[users[0] : users[-1] + 1] += np.bincount(users - users[0], minlength=users[-1] - users[0] + 1)
    return degrees


def read_pairs(artifact: Artifact, split: str, first: int, last: int) -> Pairs:
    """Read a split's interactions of users ``first`` to ``last`` - 1 alone: pairs are sorted by user."""
    with artifact.open_table(f"{split}.parquet") as table:
        column, found = table.schema_arrow.get_field_index("user"), []
        for group in range(table.num_row_groups):
            users = table.metadata.row_group(group).column(column).statistics
            if users is not None and users.min < last and users.max >= first:
                found.append(group)
        pairs = _pairs(table.read_row_groups(found))
    mine = slice(*np.searchsorted(pairs.users, [first, last]))
    return Pairs(pairs.users[mine], pairs.items[mine])


def _pairs(table: pa.Table) -> Pairs:
    return Pairs(table["user"].to_numpy().astype(np.int64), table["item"].to_numpy().astype(np.int64))


def _version(inputs: dict[str, InputFile], settings: Settings) -> str:
    seed = settings.seed if settings.data.split == "ratio-random" else None
    data = settings.data.model_dump(mode="json", exclude={"path", "items", "interactions"})
    content = {role: file.sha256 for role, file in inputs.items()}
    return digest({"format": DATASET_FORMAT, "data": data, "seed": seed, "content": content})[:16]


# ---------------------------------------------------------------- files


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
    if settings.min_rating is not None and (settings.format == "alpharec" or not _columns(settings).rating):
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


def _columns(settings: DataSettings) -> _Columns:
    return FIXED_COLUMNS.get(settings.format) or _Columns(
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


# ---------------------------------------------------------------- messages


def _refuse(files: Sequence[InputFile], bad: pl.DataFrame, what: str, values: pl.Expr, then: str) -> NoReturn:
    """Raise for the rows ``bad`` (with columns file, row), naming the first few of the first file."""
    file = files[bad["file"][0]]
    bad = bad.filter(pl.col("file") == bad["file"][0])
    shown = bad.head(NUM_EXAMPLES).select(values.cast(pl.String).alias("value"), "row")
    examples = [f"{value} at {file.place(row)}" for value, row in shown.iter_rows()]
    more = ", ..." if bad.height > NUM_EXAMPLES else ""
    _fail(file, f"{bad.height} {what}", ", ".join(examples) + more, then)


def _fail(file: InputFile, problem: str, got: object, then: str) -> NoReturn:
    raise CatalogError(f"{file.role} {file.address}: {problem} (got {got}); {then}")


def _quoted(column: str) -> pl.Expr:
    return pl.format("'{}'", pl.col(column)).fill_null("null")


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


# ---------------------------------------------------------------- readers


def read_inputs(inputs: dict[str, InputFile], settings: DataSettings) -> tuple[Catalog, Interactions]:
    """Read what ``open_inputs`` opened, in the format the settings name.

    Raises:
        CatalogError: a column is missing, an id is null, a number or a text cannot be read, a file is empty.
    """
    columns = _columns(settings)
    catalog = _read_catalog(inputs["items"], columns)
    if settings.format != "alpharec":
        return catalog, _read_interactions(inputs["interactions"], columns, with_rating=settings.min_rating is not None)
    files = tuple(inputs[split] for split in SPLITS)
    return _order_by_number(catalog), _read_user_lines(files, keep_split=settings.split == "given")


def _read_catalog(file: InputFile, columns: _Columns) -> Catalog:
    wanted = {"item": columns.item, "title": columns.title}
    frame = _read_columns(file, wanted)
    kind = frame.schema["title"]
    if kind != pl.String:
        _fail(file, f"column {columns.title} must hold text", kind, _column_hint(file, "title"))
    ids = _ids(file, frame, "item", wanted)
    return Catalog(file, frame.select(item_id=ids, title="title", file="file", row="row"))


def _read_interactions(file: InputFile, columns: _Columns, *, with_rating: bool) -> Interactions:
    wanted = {"user": columns.user, "item": columns.item, "time": columns.time, "split": columns.split}
    wanted |= {"rating": columns.rating} if with_rating else {}
    wanted = {name: column for name, column in wanted.items() if column}
    frame = _read_columns(file, wanted)
    table = frame.select("file", "row").with_columns(
        user_id=_ids(file, frame, "user", wanted), item_id=_ids(file, frame, "item", wanted)
    )
    numbers = {name: _numbers(file, frame, name, wanted) for name in ("time", "rating") if name in wanted}
    table = table.with_columns(**numbers)
    if columns.split:
        table = table.with_columns(split=_split_codes(file, frame, wanted))
    return Interactions((file,), table["user_id"].unique(maintain_order=True), table)


def _read_columns(file: InputFile, wanted: dict[str, str]) -> pl.DataFrame:
    """Read the wanted {name: column} by those names (text files: all as text); add ``file`` = 0 and ``row`` from 0."""
    if file.suffix in (".parquet", ".pq"):
        frame = _read_parquet(file, wanted)
    elif file.suffix == ".csv":
        frame = _read_csv(file, wanted)
    elif file.suffix in JSON_SUFFIXES:
        frame = _read_jsonl(file, wanted)
    elif file.suffix == ".dat" and file.role in DAT_COLUMNS:
        frame = _read_dat(file, wanted)
    else:
        _fail(
            file, "its name must end in the kind of file", file.suffix or "nothing", f"use {', '.join(TABLE_SUFFIXES)}"
        )
    if frame.is_empty():
        _fail(file, "is empty", "no rows", f"pass {FILE_SETTINGS[file.role]} with a file that has some")
    return frame.select(
        **{name: pl.col(column) for name, column in wanted.items()},
        file=pl.lit(0, pl.Int64),
        row=pl.int_range(pl.len(), dtype=pl.Int64),
    )


def _need_columns(file: InputFile, wanted: dict[str, str], there: Sequence[str]) -> None:
    for name, column in wanted.items():
        if there.count(column) != 1:
            then = f"{_column_hint(file, name)}, or another --data.format" if file.role in DAT_COLUMNS else "add it"
            _fail(file, f"must have one column {column!r}", ", ".join(there), then)


def _column_hint(file: InputFile, name: str) -> str:
    return f"pass --data.{name}-column NAME" if file.role in DAT_COLUMNS else "correct the file"


def _read_parquet(file: InputFile, wanted: dict[str, str]) -> pl.DataFrame:
    try:
        _need_columns(file, wanted, list(pl.read_parquet_schema(io.BytesIO(file.data))))
        return pl.read_parquet(io.BytesIO(file.data), columns=sorted(set(wanted.values())))
    except (pl.exceptions.PolarsError, OSError) as error:
        _fail(file, "not a readable Parquet file", error, "write or fetch it again")


def _decode(file: InputFile) -> str:
    """Return the text of a file; the raw MovieLens ``.dat`` files may be Latin-1."""
    try:
        return file.data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if file.suffix == ".dat":
            return file.data.decode("latin-1")
        line = file.data.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{file.data[error.start]:02x} at line {line}"
        _fail(file, "not UTF-8", byte, "convert it, e.g. iconv -f latin1 -t utf-8")


def _read_csv(file: InputFile, wanted: dict[str, str]) -> pl.DataFrame:
    text = _decode(file)
    header = next(csv.reader(io.StringIO(text[: 1 << 20], newline="")), None)
    if not header:
        _fail(file, "is empty", "no header line", f"pass {FILE_SETTINGS[file.role]} with a file that has rows")
    _need_columns(file, wanted, header)
    try:
        # Polars takes a trailing blank line for a row of nulls.
        return pl.read_csv(file.data.rstrip(b"\r\n") + b"\n", columns=sorted(set(wanted.values())), infer_schema=False)
    except pl.exceptions.PolarsError as error:
        line = _ragged_csv_line(text, len(header)) or str(error).splitlines()[0]
        _fail(file, f"not the CSV its header of {len(header)} columns promises", line, "quote or remove that line")


def _ragged_csv_line(text: str, num_columns: int) -> str:
    reader = csv.reader(io.StringIO(text, newline=""))
    start = 1
    for record in reader:
        if len(record) > num_columns:
            return f"{len(record)} columns at line {start}"
        start = reader.line_num + 1
    return ""


def _read_jsonl(file: InputFile, wanted: dict[str, str]) -> pl.DataFrame:
    lines = (line for line in io.StringIO(_decode(file)) if line.strip())
    try:
        frame = pl.read_ndjson(
            file.data.removeprefix(b"\xef\xbb\xbf"), schema=dict.fromkeys(wanted.values(), pl.String)
        )
        # A key may be left out where it has no value, so one that no row has is missing unless the first row names it.
        absent = {name: column for name, column in wanted.items() if frame[column].null_count() == frame.height}
        if absent and not frame.is_empty():
            _need_columns(file, absent, list(json.loads(next(lines))))
        return frame
    except pl.exceptions.PolarsError as error:
        bad = _bad_json_line(file) or str(error).splitlines()[0]
        _fail(file, "not one JSON object a line", bad, "correct or remove that line")


def _bad_json_line(file: InputFile) -> str:
    for number, line in enumerate(io.BytesIO(file.data), 1):
        try:
            if line.strip() and not isinstance(json.loads(line), dict):
                return f"{line.decode().strip()[:40]!r} at line {number}"
        except json.JSONDecodeError:
            return f"{line.decode().strip()[:40]!r} at line {number}"
    return ""


def _read_dat(file: InputFile, wanted: dict[str, str]) -> pl.DataFrame:
    names = DAT_COLUMNS[file.role]
    _need_columns(file, wanted, names)
    text = _decode(file).replace("\r\n", "\n").rstrip("\n")
    lines = pl.Series("line", text.split("\n") if text else [], dtype=pl.String)
    bad = lines.str.count_matches("::", literal=True) != len(names) - 1
    if bad.any():
        row = int(bad.arg_true()[0])
        got = f"{lines[row][:60]!r} at {file.place(row)}"
        _fail(file, f"a line must be {'::'.join(names)}", got, "correct or remove that line")
    return lines.str.split_exact("::", len(names) - 1).struct.rename_fields(names).struct.unnest()


def _ids(file: InputFile, frame: pl.DataFrame, name: str, wanted: dict[str, str]) -> pl.Series:
    kind = frame.schema[name]
    if not (kind.is_integer() or kind in (pl.String, pl.Categorical, pl.Enum)):
        _fail(file, f"column {wanted[name]} must hold text or whole numbers", kind, "write its ids as text")
    ids = frame[name].cast(pl.String)
    bad = frame.filter(ids.is_null() | (ids.str.strip_chars() == ""))
    if not bad.is_empty():
        then = "give those rows an id, or remove them"
        _refuse((file,), bad, f"rows have no {name} id in column {wanted[name]}", _quoted(name), then)
    return ids


def _numbers(file: InputFile, frame: pl.DataFrame, name: str, wanted: dict[str, str]) -> pl.Series:
    values = frame[name].to_physical()
    if values.dtype == pl.String:
        whole = values.cast(pl.Int64, strict=False)
        values = whole if whole.null_count() == values.null_count() else values
    numbers = values.cast(pl.Int64 if values.dtype.is_integer() else pl.Float64, strict=False)
    bad = frame.filter(numbers.is_null() | ~numbers.is_finite())
    if not bad.is_empty():
        then = f"write numbers (a time may be seconds or a position), or pass --data.{name}-column NAME"
        _refuse((file,), bad, f"rows have no number in column {wanted[name]}", _quoted(name), then)
    return numbers


def _split_codes(file: InputFile, frame: pl.DataFrame, wanted: dict[str, str]) -> pl.Series:
    codes_of = dict(zip(SPLITS, range(3), strict=True))
    codes = frame["split"].cast(pl.String).replace_strict(codes_of, default=None, return_dtype=pl.Int8)
    bad = frame.filter(codes.is_null())
    if not bad.is_empty():
        then = f"write {', '.join(SPLITS)}, or pass --data.split-column NAME"
        _refuse((file,), bad, f"rows have an unknown split in column {wanted['split']}", _quoted("split"), then)
    return codes


# ---------------------------------------------------------------- the text format of the AlphaRec authors


def _order_by_number(catalog: Catalog) -> Catalog:
    """Sort items by their number, which is their index in the text files, and check that no number is missing."""
    table = catalog.table.with_columns(number=pl.col("item_id").cast(pl.Int64, strict=False))
    bad = table.filter(pl.col("number").is_null())
    if not bad.is_empty():
        what = "item ids are not the whole numbers that train.txt uses"
        _refuse((catalog.file,), bad, what, _quoted("item_id"), "pass --data.item-column NAME")
    _check_contiguous((catalog.file,), table, "number", "item")
    table = table.sort("number", maintain_order=True)
    return Catalog(catalog.file, table.with_columns(item_id=pl.col("number").cast(pl.String)).drop("number"))


def _check_contiguous(files: Sequence[InputFile], table: pl.DataFrame, column: str, what: str) -> None:
    num = table[column].n_unique()
    bad = table.filter(~pl.col(column).is_between(0, num - 1)).unique(column, maintain_order=True)
    if not bad.is_empty():
        missing = np.setdiff1d(np.arange(num), table[column].to_numpy())[:NUM_EXAMPLES]
        gaps = ", ".join(map(str, missing))
        what = f"{what} ids are above {num - 1} while {gaps} is missing; ids run from 0 without gaps"
        _refuse(files, bad, what, pl.col(column), "number them anew, or pass --data.format table")


def _read_user_lines(files: tuple[InputFile, ...], *, keep_split: bool) -> Interactions:
    parts = [_parse_user_lines(file) for file in files]
    lines = pl.concat(lines.with_columns(file=pl.lit(split, pl.Int64)) for split, (lines, _) in enumerate(parts))
    pairs = pl.concat(pairs.with_columns(file=pl.lit(split, pl.Int64)) for split, (_, pairs) in enumerate(parts))
    _check_contiguous(files, lines, "user", "user")
    ids = (pl.col("user").cast(pl.String).alias("user_id"), pl.col("item").cast(pl.String).alias("item_id"))
    table = pairs.select(*ids, "file", "row")
    if keep_split:
        table = table.with_columns(split=pl.col("file").cast(pl.Int8))
    users = pl.Series("user_id", np.arange(lines["user"].n_unique())).cast(pl.String)
    return Interactions(files, users, table)


def _parse_user_lines(file: InputFile) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the lines (user, row) and the pairs (user, item, row) of ``user item item ...`` lines."""
    _decode(file)
    codes = np.frombuffer(file.data, np.uint8)
    space = np.isin(codes, np.frombuffer(b" \t\r\n", np.uint8))
    if space.all():
        _fail(file, "is empty", "no line", "pass --data.path FOLDER with files that have lines")
    line_of_byte = np.cumsum(codes == ord("\n")) - (codes == ord("\n"))
    bad = np.flatnonzero(~space & ((codes < ord("0")) | (codes > ord("9"))))
    if bad.size:
        line = int(line_of_byte[bad[0]])
        text = io.BytesIO(file.data).readlines()[line].decode().strip()[:40]
        got = f"{text!r} at line {line + 1}"
        _fail(file, "a line must be whole numbers: user item item ...", got, "correct it, or pass --data.format table")
    line = line_of_byte[np.flatnonzero(~space & np.concatenate([[True], space[:-1]]))]
    number = np.fromstring(file.data.decode(), dtype=np.int64, sep=" ")
    is_user = np.concatenate([[True], line[1:] != line[:-1]])
    user = number[is_user][np.cumsum(is_user) - 1]
    lines = pl.DataFrame({"user": user[is_user], "row": line[is_user]})
    twice = lines.filter(pl.col("user").is_duplicated()).with_columns(file=pl.lit(0, pl.Int64))
    if not twice.is_empty():
        _refuse((file,), twice, "lines share a user", pl.format("user {}", "user"), "write one line per user")
    return lines, pl.DataFrame({"user": user[~is_user], "item": number[~is_user], "row": line[~is_user]})


# ---------------------------------------------------------------- titles


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


def _clean_catalog(catalog: Catalog, settings: DataSettings) -> tuple[pl.DataFrame, pl.Series, Counts]:
    """Return items (item_id, title), the ids left out for their empty title, and counts."""
    table = catalog.table.with_columns(raw="title").with_columns(title=normalize_titles(catalog.table["title"]))
    unique, counts = _unique_items(catalog.file, table, settings)
    empty = unique.filter(pl.col("title").is_null())
    counts["empty_titles"] = empty.height
    if settings.on_empty_title == "error" and not empty.is_empty():
        values = pl.format("{} for {}", _quoted("raw"), "item_id")
        then = "pass --data.on-empty-title skip to leave them out, or id to use the item id as the title"
        _refuse((catalog.file,), empty, "items have an empty title", values, then)
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
        values = pl.format("{} with title {}", "item_id", _quoted("title"))
        _refuse((file,), differing, "rows share an item id but not the title", values, "leave one row per item")
    unique = table.unique("item_id", keep="first", maintain_order=True)
    return unique, {
        "repeated_items": table.height - unique.height,
        "repeated_items_with_another_title": differing["item_id"].n_unique(),
    }


# ---------------------------------------------------------------- user lists, new items, intentions, item texts


def open_table(address: str, setting: Literal["users", "new_items", "intentions", "queries", "texts"]) -> InputFile:
    """Read the file that a setting such as ``recommend.users`` or ``intention.queries`` names, whole.

    Raises:
        CatalogError: the file is missing or damaged.
    """
    return _open(_address(DataSettings(), address), setting)


def read_user_lists(file: InputFile, item_ids: pa.StringArray) -> tuple[pa.StringArray, Pairs]:
    """Read users given by their items: user ids, and pairs of a user's row and an index into ``item_ids``.

    Columns ``user_id`` and ``item_ids``: a list in Parquet and JSONL, ids separated by spaces in CSV. An item that a
    user has twice counts once; pairs are sorted.

    Raises:
        CatalogError: a user comes twice, has no item or an unknown one, or what any input is refused for.
    """
    wanted = {"user": "user_id", "items": "item_ids"}
    frame = _read_columns(file, wanted)
    frame = frame.with_columns(user=_ids(file, frame, "user", wanted), items=_id_lists(file, frame["items"]))
    again = frame.filter(pl.col("user").is_duplicated())
    if not again.is_empty():
        _refuse((file,), again, "rows share a user", pl.format("user {}", "user"), "give each user one row")
    empty = frame.filter(pl.col("items").list.len().fill_null(0) == 0)
    if not empty.is_empty():
        then = "give them a known item each, or remove their rows"
        _refuse((file,), empty, "users have no item", pl.format("user {}", "user"), then)
    known = pl.DataFrame({"items": pl.Series(values=item_ids, dtype=pl.String)}).with_row_index("item")
    pairs = frame.explode("items").join(known, on="items", how="left", maintain_order="left")
    unknown = pairs.filter(pl.col("item").is_null())
    if not unknown.is_empty():
        values = pl.format("{} of user {}", _quoted("items"), "user")
        then = "remove them, or add their titles by --recommend.new-items FILE"
        _refuse((file,), unknown, "given items are neither in the bundle nor new items", values, then)
    pairs = pairs.select(pl.col("row", "item").cast(pl.Int64)).unique().sort("row", "item")
    return _strings(frame["user"]), Pairs(pairs["row"].to_numpy(writable=True), pairs["item"].to_numpy(writable=True))


def _id_lists(file: InputFile, lists: pl.Series) -> pl.Series:
    if file.suffix == ".csv":
        return lists.str.extract_all(r"\S+")
    if file.suffix in JSON_SUFFIXES:
        # Not from the column of texts: there Polars leaves a backslash inside a list unescaped.
        lines = (line for line in io.StringIO(_decode(file)) if line.strip())
        values = [_json_ids(file, json.loads(line).get("item_ids"), row) for row, line in enumerate(lines)]
        return pl.Series(values, dtype=pl.List(pl.String))
    inner = getattr(lists.dtype, "inner", None)
    if inner is None or not (inner.is_integer() or inner == pl.String):
        _fail(file, "column item_ids must hold lists of ids", lists.dtype, "write a list of texts for each user")
    return lists.cast(pl.List(pl.String))


def _json_ids(file: InputFile, value: object, row: int) -> list[str | None]:
    if not isinstance(value, list | None):
        got = f"{value!r} at {file.place(row)}"
        _fail(file, "item_ids must be a list of ids", got, 'write it so: "item_ids": ["A", "B"]')
    return [None if item is None else str(item) for item in value or []]


def read_new_items(file: InputFile, item_ids: pa.StringArray) -> tuple[pa.StringArray, pa.StringArray]:
    """Read items to add to those of ``item_ids``, columns ``item_id`` and ``title``: their ids and normalised titles.

    Raises:
        CatalogError: an id comes twice or is known, a title is empty, or what any input is refused for.
    """
    table = _read_catalog(file, _Columns("item_id", "title", "")).table.with_columns(raw="title")
    table = table.with_columns(title=normalize_titles(table["title"]))
    known = pl.Series(values=item_ids, dtype=pl.String).implode()
    for bad, what, then in (
        (pl.col("item_id").is_duplicated(), "rows share an item id", "leave one row per item"),
        (pl.col("item_id").is_in(known), "items are in the bundle already", "remove their rows"),
        (pl.col("title").is_null(), "items have an empty title", "give them a title, or remove their rows"),
    ):
        refused = table.filter(bad)
        if not refused.is_empty():
            _refuse((file,), refused, what, pl.format("{} with title {}", "item_id", _quoted("raw")), then)
    return _strings(table["item_id"]), _strings(table["title"])


def read_intentions(file: InputFile, user_ids: pa.StringArray) -> tuple[Ints, pa.StringArray]:
    """Read what users say they want, columns ``user_id`` and ``query``: rows of ``user_ids``, and normalised texts.

    Raises:
        CatalogError: a user is unknown or comes twice, a query is empty, or what any input is refused for.
    """
    table = _read_statements(file, {"user": "user_id", "query": "query"}, user_ids)
    again = table.filter(pl.col("user").is_duplicated())
    if not again.is_empty():
        _refuse((file,), again, "rows share a user", pl.format("user {}", "user"), "give each user one row")
    return table["user_row"].cast(pl.Int64).to_numpy(writable=True), _strings(table["query"])


def read_queries(file: InputFile, dataset: Dataset) -> pa.Table:
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
            _refuse((file,), refused, what, pl.format("item {} of user {}", "item", "user"), then)
    found = table.select(pl.col("user_row", "item_row").cast(pl.Int64), "split", "query").sort("split", "user_row")
    columns: list[pa.Array] = [pa.array(found[name].to_numpy()) for name in ("user_row", "item_row")]
    return pa.table([*columns, _strings(found["split"]), _strings(found["query"])], ["user", "item", "split", "query"])


def read_item_texts(
    file: InputFile, item_ids: pa.StringArray, item_column: str, text_column: str
) -> tuple[Ints, pa.StringArray]:
    """Read a text for each item: rows of ``item_ids``, and normalised texts. Texts of other items, and empty ones, are
    left out.

    Raises:
        CatalogError: an item comes twice, or what any input is refused for.
    """
    frame = _read_columns(file, wanted := {"item": item_column, "text": text_column})
    frame = frame.with_columns(item=_ids(file, frame, "item", wanted), text=normalize_titles(frame["text"]))
    again = frame.filter(pl.col("item").is_duplicated())
    if not again.is_empty():
        _refuse((file,), again, "rows share an item", pl.format("item {}", "item"), "leave one row per item")
    known = frame.join(_numbered("item", item_ids), on="item").drop_nulls("text").sort("item_row")
    return known["item_row"].cast(pl.Int64).to_numpy(writable=True), _strings(known["text"])


def _read_statements(file: InputFile, wanted: dict[str, str], user_ids: pa.StringArray) -> pl.DataFrame:
    """Read rows with a user and a query; ``user_row`` is the user's place in ``user_ids``."""
    frame = _read_columns(file, wanted)
    ids = {name: _ids(file, frame, name, wanted) for name in wanted if name != "query"}
    frame = frame.with_columns(**ids, query=normalize_titles(frame["query"]))
    frame = frame.join(_numbered("user", user_ids), on="user", how="left", maintain_order="left")
    for bad, what, then in (
        (pl.col("query").is_null(), "queries are empty", "write what the user wants, or remove their rows"),
        (pl.col("user_row").is_null(), "queries have an unknown user", "remove their rows, or give the user's items"),
    ):
        refused = frame.filter(bad)
        if not refused.is_empty():
            _refuse((file,), refused, what, pl.format("user {}", "user"), then)
    return frame


def _numbered(name: str, ids: pa.StringArray) -> pl.DataFrame:
    return pl.DataFrame({name: pl.Series(values=ids, dtype=pl.String)}).with_row_index(f"{name}_row")


# ---------------------------------------------------------------- from files to a dataset


def build_dataset(
    catalog: Catalog, interactions: Interactions, settings: DataSettings, *, seed: int
) -> tuple[Dataset, dict[str, Any]]:
    """Apply the policies, filters and the split; return the dataset and its report.

    Raises:
        CatalogError: a policy is ``error`` and its case occurs, or a split is empty.
    """
    items, skipped, left_out = _clean_catalog(catalog, settings)
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
        _fail(interactions.files[0], "no interactions are left", _nonzero(left_out), then)
    pairs, counts = _split(pairs, interactions.files[0], settings, seed)
    left_out |= counts
    train, valid, test = (_sorted_pairs(pairs.filter(pl.col("split") == split)) for split in range(3))
    dataset = Dataset(
        _strings(items["item_id"].filter(keep_item)),
        _strings(items["title"].filter(keep_item)),
        _strings(interactions.users.filter(keep_user)),
        train,
        valid,
        test,
    )
    return dataset, describe(dataset, left_out)


def _nonzero(left_out: Counts) -> str:
    return "left out: " + (", ".join(f"{name} {count}" for name, count in left_out.items() if count) or "nothing")


def _strings(series: pl.Series) -> pa.StringArray:
    array = series.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    return array.cast(pa.string())


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
        _refuse(interactions.files, unknown, what, pl.col("item_id"), then)
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
        places.append(f"{split}{os.path.basename(file.address)} {file.place(row['row'])}")
    first = interactions.files[rows["file"][0]]
    num = shown["pair"].n_unique()
    what = "(user, item) pairs occur twice" if overlap.is_empty() else "(user, item) pairs are in more than one split"
    pair = f"user {interactions.users[rows['user'][0]]}, item {item_ids[rows['item'][0]]} at {' and '.join(places)}"
    _fail(first, f"{num} {what}", pair, "pass --data.on-duplicate first to keep the first of each")


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


# ---------------------------------------------------------------- splits


def _split(pairs: pl.DataFrame, file: InputFile, settings: DataSettings, seed: int) -> tuple[pl.DataFrame, Counts]:
    if settings.split != "given":
        times = pairs["time"].to_numpy() if "time" in pairs.columns else None
        users = pairs["user"].to_numpy()
        codes = split_interactions(users, times, how=settings.split, ratios=settings.ratios, seed=seed)
        pairs = pairs.with_columns(split=pl.Series(codes))
    trained = pairs.filter(pl.col("split") == 0)["item"].unique()
    cold = pairs.select((pl.col("split") > 0) & ~pl.col("item").is_in(trained.implode())).to_series()
    if settings.drop_cold_truth:
        pairs = pairs.filter(~cold)
    sizes = [pairs.filter(pl.col("split") == split).height for split in range(3)]
    if 0 in sizes:
        got = ", ".join(f"{size} in {split}" for split, size in zip(SPLITS, sizes, strict=True))
        then = "choose another --data.split or other --data.ratios, or give more data"
        _fail(file, f"the split {settings.split} leaves {SPLITS[sizes.index(0)]} empty", got, then)
    return pairs, {"cold_truth_interactions": int(cold.sum()) if settings.drop_cold_truth else 0}


def split_interactions(
    users: Ints, times: npt.NDArray[Any] | None, *, how: Split, ratios: tuple[float, float, float], seed: int
) -> npt.NDArray[np.int8]:
    """Assign each interaction to train (0), valid (1) or test (2); ties in time go by file order.

    ratio-random, ratio-time: each user's interactions in random or time order are cut by ``split_sizes``.
    leave-last-out: a user's last is test, the one before valid; of two, the first is train; a single one is train.
    global-time: two moments for everyone, nearest to the ratios; what happened at one moment stays together.

    Shapes: users (E,), times (E,) -> (E,).
    """
    if how == "global-time":
        assert times is not None
        return _split_by_moment(times, ratios)
    keys = np.random.default_rng(seed).random(len(users)) if how == "ratio-random" else times
    assert keys is not None
    num_of_user = np.bincount(users)
    if how == "leave-last-out":
        num_test = np.minimum(num_of_user - 1, 1).clip(0)
        num_train = num_of_user - num_test - (num_of_user > 2)
    else:
        num_train, _, num_test = split_sizes(num_of_user, ratios)
    order = np.lexsort((keys, users))
    rank = np.empty(len(users), np.int64)
    rank[order] = np.arange(len(users)) - (np.cumsum(num_of_user) - num_of_user)[users[order]]
    codes: npt.NDArray[np.int8] = np.add(
        rank >= num_train[users], rank >= (num_of_user - num_test)[users], dtype=np.int8
    )
    return codes


def split_sizes(num_of_user: Ints, ratios: tuple[float, float, float]) -> tuple[Ints, Ints, Ints]:
    """Return each user's number of train, valid and test interactions by largest remainder, ties to the earlier split.

    Each number is its share rounded down or up, and a user with an interaction has one in train.

    Shapes: num_of_user (U,) -> three of (U,).
    """
    share_3U = np.outer(ratios, num_of_user)
    size_3U = np.floor(share_3U + 1e-9).astype(np.int64)
    remainder_3U = np.round(share_3U - size_3U, 9)
    remainder_3U[0, size_3U[0] == 0] = 1  # the first spare one goes to a train that has none
    rank_3U = np.argsort(np.argsort(-remainder_3U, axis=0, kind="stable"), axis=0)
    size_3U += rank_3U < num_of_user - size_3U.sum(axis=0)
    return size_3U[0], size_3U[1], size_3U[2]


def _split_by_moment(times: npt.NDArray[Any], ratios: tuple[float, float, float]) -> npt.NDArray[np.int8]:
    moments, nums = np.unique(times, return_counts=True)
    num_before = np.concatenate([[0], np.cumsum(nums)])
    first = 1 + int(np.abs(num_before[1:] - ratios[0] * len(times)).argmin())
    second = first + int(np.abs(num_before[first:] - (ratios[0] + ratios[1]) * len(times)).argmin())
    position = np.searchsorted(moments, times)
    codes: npt.NDArray[np.int8] = np.add(position >= first, position >= second, dtype=np.int8)
    return codes


# ---------------------------------------------------------------- the report


def describe(dataset: Dataset, left_out: Counts) -> dict[str, Any]:
    """Return the data report: sizes, degrees in train, what is cold or empty, what policies and filters left out."""
    num_users, num_items = dataset.num_users, dataset.num_items
    sizes = {split: len(getattr(dataset, split)) for split in SPLITS}
    user_degree = np.bincount(dataset.train.users, minlength=num_users)
    item_degree = np.bincount(dataset.train.items, minlength=num_items)
    titles = pl.Series(values=dataset.titles, dtype=pl.String)
    return {
        "users": num_users,
        "items": num_items,
        "interactions": sizes,
        "density": sum(sizes.values()) / (num_users * num_items),
        "user_degree": _quantiles(user_degree),
        "item_degree": _quantiles(item_degree),
        "items_without_title": left_out["empty_titles"],
        "items_without_train": int((item_degree == 0).sum()),
        "items_sharing_a_title": int(titles.is_duplicated().sum()),
        "users_without_train": int((user_degree == 0).sum()),
        "users_without_valid": num_users - len(np.unique(dataset.valid.users)),
        "users_without_test": num_users - len(np.unique(dataset.test.users)),
        "left_out": {name: count for name, count in left_out.items() if name != "empty_titles"},
    }


def _quantiles(degrees: Ints) -> Counts:
    values = np.quantile(degrees, np.array(QUANTILES) / 100, method="inverted_cdf")
    return {str(quantile): int(value) for quantile, value in zip(QUANTILES, values, strict=True)}


def format_report(report: dict[str, Any]) -> str:
    """Return the report as a short table for a terminal."""
    sizes = report["interactions"]
    lines = [
        f"{'users':<28}{report['users']:>12,}",
        f"{'items':<28}{report['items']:>12,}",
        *(f"{'interactions in ' + split:<28}{sizes[split]:>12,}" for split in SPLITS),
        f"{'density':<28}{report['density']:>12.4%}",
    ]
    names = [name for name in report if name.startswith(("items_", "users_"))]
    lines += [f"{name.replace('_', ' '):<28}{report[name]:>12,}" for name in names]
    left_out = {name: count for name, count in report["left_out"].items() if count}
    lines += [f"{'left out: ' + name.replace('_', ' '):<48}{count:>12,}" for name, count in left_out.items()]
    lines.append(f"{'train degree quantiles, %':<28}" + "".join(f"{quantile:>8}" for quantile in QUANTILES))
    for side in ("user", "item"):
        degree = report[f"{side}_degree"]
        lines.append(f"{'  of ' + side + 's':<28}" + "".join(f"{degree[str(quantile)]:>8,}" for quantile in QUANTILES))
    return "\n".join(lines)
