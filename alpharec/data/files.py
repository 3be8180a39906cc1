"""Input files: one file, several, a glob or a folder of part files, local or at any fsspec URL, as one table's input.

A folder is read as Spark, Hive and pandas write it: all files below it but those whose name starts with ``_`` or ``.``,
sorted by path, with ``key=value`` folders as columns of text.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import os
import urllib.parse
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NoReturn

import fsspec

from alpharec.config import DataSettings
from alpharec.data.dataset import CatalogError

Role = Literal[
    "catalog", "interactions", "user lists", "new items", "intentions", "queries", "item texts", "candidates",
    "excluded items", "users to list for",
]  # fmt: skip

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
PARQUET_SUFFIXES = (".parquet", ".pq")
DELIMITED_SUFFIXES = (".csv", ".tsv", ".txt", ".inter", ".item", ".dat")  # .inter, .item: RecBole's atomic files
SUFFIXES = (*PARQUET_SUFFIXES, *DELIMITED_SUFFIXES, *JSON_SUFFIXES)
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
SEPARATOR_NAMES = {"\t": "a tab"}
GLOB = "*?["
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
KEPT_BYTES = 32 << 20  # a file up to this size is fetched once; a larger one is digested first, and fetched to be read
CHUNK_BYTES = 16 << 20
LEAST_UNPACKED_GB, USUAL_UNPACKING = 1.0, 100  # a gzip file may unpack to 1 GB, or to 100 times its size


@dataclass(frozen=True)
class Dialect:
    """How a file is written; ``quote`` and ``escape`` are empty where there is none."""

    separator: str
    quote: str
    escape: str
    encoding: str
    names: tuple[str, ...]
    has_header: bool

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of ``csv.reader``."""
        quoting = csv.QUOTE_MINIMAL if self.quote else csv.QUOTE_NONE
        return {
            "delimiter": self.separator,
            "quotechar": self.quote or None,
            "escapechar": self.escape or None,
            "quoting": quoting,
            "strict": True,
        }

    @property
    def separator_name(self) -> str:
        return SEPARATOR_NAMES.get(self.separator, repr(self.separator))


@dataclass(eq=False)
class InputFile:
    """One file as it is stored; ``sha256`` is of the stored bytes.

    ``partition``: columns that the names of its folders hold. ``dialect``: how the reader read it, for line numbers.
    """

    role: Role
    address: str
    fs: Any
    path: str
    max_unpacked_gb: float | None = None
    partition: dict[str, str | None] = field(default_factory=dict)
    kind: str = ""  # the suffix that says how to read it, where its own name has none
    dialect: Dialect | None = None

    @property
    def suffix(self) -> str:
        return os.path.splitext(self.address.lower().removesuffix(".gz"))[1] or self.kind

    @cached_property
    def _kept(self) -> tuple[bytes | None, str]:
        """The stored bytes of a small file, and the sha256."""
        sha256, kept, size = hashlib.sha256(), list[bytes](), 0
        for chunk in self._chunks():
            sha256.update(chunk)
            size += len(chunk)
            kept = [*kept, chunk] if size <= KEPT_BYTES else []
        return b"".join(kept) if size <= KEPT_BYTES else None, sha256.hexdigest()

    @property
    def sha256(self) -> str:
        return self._kept[1]

    def _chunks(self) -> Iterator[bytes]:
        try:
            with self.fs.open(self.path, "rb", block_size=CHUNK_BYTES) as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    yield chunk
        except (OSError, ValueError) as error:
            _unreadable(self.role, self.address, error, FILE_SETTINGS[self.role])

    @property
    def stored(self) -> bytes:
        """The bytes as they are stored, those that ``sha256`` was made of."""
        kept, sha256 = self._kept
        if kept is not None:
            return kept
        data = b"".join(self._chunks())
        if hashlib.sha256(data).hexdigest() != sha256:
            fail(self, "it changed while it was read", "another sha256", "run again when nothing writes to it")
        return data

    @property
    def data(self) -> bytes:
        """The content, decompressed.

        Raises:
            CatalogError: not a whole gzip file, or it unpacks beyond ``data.max_unpacked_gb``.
        """
        if not self.address.lower().endswith(".gz"):
            return self.stored
        stored = self.stored
        limit = self.unpacked_limit(len(stored))
        try:
            data = _unpack(stored, limit)
        except (EOFError, zlib.error) as error:
            fail(self, "not a whole gzip file", error, "fetch it again")
        if len(data) > limit:
            self.refuse_size(f"more than {limit / 1e9:.3g} GB from {len(stored) / 1e6:.3g} MB")
        return data

    def unpacked_limit(self, stored: int) -> int:
        """Return the bytes that a compressed file of this size may unpack to."""
        return int(1e9 * (self.max_unpacked_gb or max(LEAST_UNPACKED_GB, USUAL_UNPACKING * stored / 1e9)))

    def refuse_size(self, got: str) -> NoReturn:
        then = "if the file is right, pass --data.max-unpacked-gb with the size it may have in memory"
        fail(self, "unpacks beyond the limit", got, then)


@dataclass(frozen=True)
class Input:
    """The files of one table, in the order of their rows, and the settings that say how to read it."""

    role: Role
    address: str
    files: tuple[InputFile, ...]
    settings: DataSettings

    @cached_property
    def sha256(self) -> str:
        """The digest of one file; of several, that of their digests and partitions in order."""
        if len(self.files) == 1 and not self.files[0].partition:
            return self.files[0].sha256
        parts = [(file.sha256, sorted(file.partition.items())) for file in self.files]
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def _unpack(stored: bytes, limit: int) -> bytes:
    """Return the content of a gzip file of one or several members, cut behind ``limit`` bytes."""
    members, size = list[bytes](), 0
    while stored and size <= limit:
        member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        members.append(member.decompress(stored, limit + 1 - size))
        size += len(members[-1])
        if not member.eof and size <= limit:
            raise EOFError("it ends in the middle")
        stored = member.unused_data.lstrip(b"\0")  # zeros may fill a file up
    return members[0] if len(members) == 1 else b"".join(members)


def fail(file: InputFile | Input, problem: str, got: object, then: str) -> NoReturn:
    """Raise a ``CatalogError`` that says which file, what must hold, what was got and what to do."""
    raise CatalogError(f"{file.role} {file.address}: {problem} (got {got}); {then}")


def address_of(settings: DataSettings, name: str) -> str:
    """Return the full address of a file of the settings; a relative one starts from ``data.path``."""
    if "://" not in name and not os.path.isabs(name) and settings.path:
        name = f"{settings.path.rstrip('/')}/{name}"
    return name if "://" in name else os.path.abspath(os.path.expanduser(name))


def open_input(names: str, role: Role, settings: DataSettings, setting: str = "") -> Input:
    """Find the files that one setting names: files, globs and folders, several of them on lines or with commas between.

    Raises:
        CatalogError: there is no such file, or it cannot be reached.
    """
    setting = setting or FILE_SETTINGS[role]
    listed = names.split("\n")
    files = [file for name in listed for file in _find(name, role, settings, setting)]
    kinds = {suffix: file for file in files if (suffix := file.suffix)}
    if len(kinds) > 1:
        got = " and ".join(os.path.basename(file.address) for file in kinds.values())
        what = "files of one kind make a table"
        raise CatalogError(f"{role} {', '.join(listed)}: {what} (got {got}); pass {setting}, e.g. a glob")
    return Input(role, ", ".join(address_of(settings, name) for name in listed), tuple(files), settings)


def _find(name: str, role: Role, settings: DataSettings, setting: str) -> list[InputFile]:
    address = address_of(settings, name)
    try:
        fs, path = fsspec.core.url_to_fs(address)
        found = _paths(fs, path, name)
    except (OSError, ValueError, ImportError) as error:
        _unreadable(role, address, error, setting)
    if not found and "," in name:
        return [file for part in name.split(",") for file in _find(part.strip(), role, settings, setting)]
    if not found:
        _unreadable(role, address, FileNotFoundError(), setting)
    folder = next((part for part in reversed(path.split("/")) if part.lower().endswith(SUFFIXES)), "")
    kind = os.path.splitext(folder.lower())[1]
    files = []
    for each in found:
        shown = address if each == path else (each if address.startswith("/") else fs.unstrip_protocol(each))
        partition = _partition(each[len(path) :] if each.startswith(path) else each)
        files.append(InputFile(role, shown, fs, each, settings.max_unpacked_gb, partition, kind))
    return files


def _paths(fs: Any, path: str, name: str) -> list[str]:
    """Return the paths of files that a name stands for; a name that is there is taken to the letter, before globs."""
    pattern = glob.escape(path.removesuffix(name)) + name if path.endswith(name) else path  # not of signs in data.path
    try:
        if fs.isfile(path):
            return [path]
        # Stores of objects and web servers may not know folders; what is no file is asked for its parts.
        parts = fs.find(path) if fs.isdir(path) else []
    except NotImplementedError:
        parts = []
    if not parts and any(sign in name for sign in GLOB):
        matched: list[str] = []
        for each in sorted(fs.glob(pattern)):
            matched += [each] if fs.isfile(each) else [part for part in fs.find(each) if _is_part(part, each)]
        return matched
    return sorted(part for part in parts if _is_part(part, path))


def _is_part(path: str, folder: str) -> bool:
    """Say whether a file below a folder holds rows; Spark's ``_SUCCESS`` and hidden files do not."""
    below = path[len(folder.rstrip("/")) :].strip("/").split("/")
    return not any(part.startswith(("_", ".")) for part in below)


def _partition(path: str) -> dict[str, str | None]:
    """Return the columns that ``key=value`` folders of a path name, as Hive and Spark write them."""
    columns: dict[str, str | None] = {}
    for folder in path.split("/")[:-1]:
        key, equals, value = folder.partition("=")
        if key and equals:
            columns[urllib.parse.unquote(key)] = None if value == HIVE_NULL else urllib.parse.unquote(value)
    return columns


def _unreadable(role: str, address: str, error: BaseException, setting: str) -> NoReturn:
    why = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
    raise CatalogError(f"{role} {address}: {why}; pass {setting} with a file that is there") from error
