"""Kills at every moment and S3 at its worst: embedding started again leaves one vector an item and repeats little.

Run as a script, this file is the driver that the tests kill.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import ray
from faulty_s3 import ALWAYS, FaultyS3, Rule
from s3fs import S3FileSystem

from alpharec.artifacts import LATEST, MANIFEST, Artifact, ArtifactError, Lease, Store
from alpharec.config import Settings
from alpharec.embed import Target, embed
from alpharec.encoders import EncoderError, make_encoder
from alpharec.vectors import KIND, LEASE, SHARDS, load_vectors, shards_of, verify

TITLES = [f"the {colour} {number}" for colour in ("red", "green", "blue", "black") for number in range(8)]
SHARD_SIZE = 4
NUM_SHARDS = 8
LIMIT_S = 120

State = dict[str, tuple[int, bytes]]


def settings_with(shard_size: int = SHARD_SIZE, **encoder: Any) -> Settings:
    encoder = {"backend": "hash", "hash_width": 16} | encoder
    sizes = {"shard_size": shard_size, "num_cpus": 1}
    return Settings.model_validate({"name": "shop", "encoder": encoder, "embed": sizes, "ray": {"num_cpus": 2}})


def catalog_of(store: Store) -> Artifact:
    """Return the catalog of ``TITLES``, committed by the first call."""
    if found := store.find("datasets", "shop", "d1"):
        return found
    draft = store.draft("datasets", "shop", "d1")
    ids = [f"i{number}" for number in range(len(TITLES))]
    draft.write_table("items.parquet", pa.table({"item_id": ids, "title": TITLES}))
    return draft.commit(settings={}, inputs={}, summary={})


def run(store: Store) -> Artifact:
    return embed(store, settings_with(), catalog_of(store))


# ---------------------------------------------------------------- the driver


class HeldStore(Store):
    """A store in which who writes a record waits, once ``hold`` records are there, until the file ``go`` is.

    Who waits leaves a file ``held-<process>``. Actors get this class from the driver.
    """

    def __init__(self, root: str, hold: int) -> None:
        super().__init__(root)
        self.hold = hold

    def __reduce__(self) -> tuple[type[Store], tuple[str, int]]:
        return HeldStore, (self.path, self.hold)

    def write(self, data: bytes, *parts: str) -> None:
        root = Path(self.path)
        if parts[-2] == SHARDS and parts[-1].endswith(".json"):
            records = list(root.joinpath(*parts[:-1]).glob("*.json"))
            while len(records) >= self.hold and not root.with_name("go").exists():
                root.with_name(f"held-{os.getpid()}").touch()
                time.sleep(0.02)
        super().write(data, *parts)


class DeadlyStore(Store):
    """A store in which who writes a record dies, as of a text that kills the engine."""

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return DeadlyStore, (self.path,)

    def write(self, data: bytes, *parts: str) -> None:
        if parts[-2] == SHARDS and parts[-1].endswith(".json"):
            os.kill(os.getpid(), signal.SIGKILL)
        super().write(data, *parts)


def drive(root: str, hold: str) -> None:
    """Embed on the Ray that the environment names or one of its own; a refusal is the last line."""
    try:
        run(HeldStore(root, int(hold)))
    except ArtifactError as error:
        sys.exit(str(error))


def drive_before_ray(root: str, hold: str) -> None:
    """Embed, and die when Ray is about to start: the plan is made and its texts are written."""

    def look(event: str, given: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen" and "gcs_server" in str(given[0]):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    drive(root, hold)


def drive_three(root: str, deadly: str, model: str) -> None:
    """Embed with a model that does not load, where each worker dies, and for good; say how the first two ended."""
    # Actors of a Ray that was there before would have its environment, and reach S3 without faults.
    ray.init(runtime_env={"env_vars": {"AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"]}})
    one_shard = settings_with(shard_size=len(TITLES))  # of several, more workers die before one of them has its four
    attempts: list[Callable[[], object]] = [
        lambda: embed(
            Store(deadly), settings_with(backend="sentence-transformers", model=model), catalog_of(Store(deadly))
        ),
        lambda: embed(DeadlyStore(deadly), one_shard, catalog_of(DeadlyStore(deadly))),
    ]
    for attempt in attempts:
        try:
            attempt()
        except EncoderError as error:
            print(f"EncoderError: {str(error)!r}", flush=True)
    run(Store(root))


def drive_drained(root: str) -> None:
    """Embed on a cluster whose one working node is drained, as of a spot instance, and gone soon after."""
    from ray.cluster_utils import Cluster

    # Connected while the head is the only node: a driver on the node that goes would lose what it put in its store.
    cluster = Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 0})
    going, folder = cluster.add_node(num_cpus=2), Path(root).parent

    store = HeldStore(root, 3)
    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(lambda: run(store))
        wait_for(lambda: list(folder.glob("held-*")))
        cluster.add_node(num_cpus=2)
        command = [Path(sys.executable).with_name("ray"), "drain-node", "--address", cluster.address]
        command += ["--node-id", going.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        command += ["--reason-message", "spot", "--deadline-remaining-seconds", "2"]
        subprocess.run(command, check=True)
        time.sleep(2)
        cluster.remove_node(going, allow_graceful=False)
        (folder / "go").touch()
        task.result(LIMIT_S)
    ray.shutdown()
    cluster.shutdown()
    os._exit(0)  # the interpreter's own end answers 1 for a raylet that was killed


def sweep(done: str, folder: str) -> None:
    """Kill runs that find every shard complete, each before another of its changes to the store, and run again."""
    for change in itertools.count():
        root = shutil.copytree(done, Path(folder) / str(change))
        killed = in_child(lambda root=root, change=change: (kill_before(change, root), run(Store(str(root)))))
        assert in_child(lambda root=root: run(Store(str(root)))) == 0
        if not killed:
            return


def in_child(work: Callable[[], object]) -> int:
    """Return the status of a child that does the work; a fork, as an interpreter with torch takes seconds."""
    if child := os.fork():
        return os.waitpid(child, 0)[1]
    work()
    os._exit(0)


def kill_before(change: int, root: Path) -> None:
    """Kill this process before the change of this number that it makes below a folder."""
    left = itertools.count(change, -1)

    def look(event: str, given: tuple[Any, ...]) -> None:
        writes = event in ("os.link", "os.rename", "os.remove", "os.mkdir") or (
            event == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if writes and str(root) in f"{given[0]}" and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


# ---------------------------------------------------------------- kills on Ray


@contextlib.contextmanager
def started(log: Path, *arguments: object, **environment: str) -> Iterator[psutil.Popen]:
    """Run this file as a script; none of its processes outlives the block."""
    command = [sys.executable, __file__, *map(str, arguments)]
    with log.open("w") as file:
        process = psutil.Popen(command, env=os.environ | environment, stdout=file, stderr=file, start_new_session=True)
    try:
        yield process
    finally:
        end(process, family_of(process))


def family_of(process: psutil.Popen) -> list[psutil.Process]:
    """Return a driver and the processes of its Ray."""
    return [process, *process.children(recursive=True)] if process.is_running() else [process]


def address_of_ray() -> str:
    return str(ray.get_runtime_context().gcs_address)


def end(process: psutil.Popen, family: list[psutil.Process]) -> None:
    for each in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait(LIMIT_S)


def wait_for(there: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not there():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def state_of(folder: Path) -> State:
    """Return each file's modification time and content."""
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("*")}


def assert_right(store: Store) -> Artifact:
    """Make sure that LATEST names the one version and that each item has the encoder's own vector."""
    catalog, settings = catalog_of(store), settings_with()
    target = Target.of(catalog, settings)
    made = store.latest(KIND, target.line)
    assert (made.version, store.folders(KIND, target.line)) == (target.version, sorted([SHARDS, target.version]))
    direct = make_encoder(settings.encoder, settings.embed).encode(TITLES)
    assert np.array_equal(load_vectors(made), direct.astype(np.float16))
    assert sum(made.files[file]["rows"] for file in shards_of(made).values()) == len(TITLES)
    assert verify(made) == []
    with store.lease(KIND, target.line, LEASE, seconds=9):
        pass  # nobody is shut out
    return made


@dataclass
class History:
    """What one catalog's runs left, one after the other: each lost what ``KILLS`` says, the last one went on."""

    folder: Path
    states: list[State] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    second: str = ""

    @property
    def store(self) -> Store:
        return Store(str(self.folder / "store"))

    @property
    def shards(self) -> Path:
        return next(self.folder.glob("store/vectors/*")) / SHARDS

    @property
    def held(self) -> list[psutil.Process]:
        return [psutil.Process(int(path.name.removeprefix("held-"))) for path in self.folder.glob("held-*")]

    def run(
        self, driver: str, hold: int, victims: Callable[[list[psutil.Process]], list[psutil.Process]], **env: str
    ) -> None:
        """Start a driver, kill some of its processes at ``hold`` records, and see what that leaves."""
        with started(self.folder / "log", driver, self.store.path, hold, **env) as process:
            wait_for(lambda: list(self.folder.glob("held-*")) or process.poll() is not None)
            family, held = family_of(process), self.held
            for victim in victims(family):
                victim.kill()
            self.status.append(process.wait(LIMIT_S))
            end(process, family)
            assert psutil.wait_procs(held, LIMIT_S)[1] == [], "Ray ends the actors of a driver that is gone"
        for file in self.folder.glob("held-*"):
            file.unlink()
        self.states.append(state_of(self.shards))


KILLS = ("before Ray", "head of Ray", "driver", "actor")
HELD_AT = (0, 1, 3, 5)  # records that are there when it happens


@pytest.fixture(scope="module")
def history(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> History:
    made = History(tmp_path_factory.mktemp("crash"))

    def meet_a_second_run(family: list[psutil.Process]) -> list[psutil.Process]:
        log = made.folder / "second-log"
        with started(log, "drive", made.store.path, NUM_SHARDS) as second:
            second.wait(LIMIT_S)
        made.second = log.read_text()
        for actor in made.held:
            actor.kill()
        (made.folder / "go").touch()  # not sooner: the actor would be at another shard, or done
        return []

    def head(family: list[psutil.Process]) -> list[psutil.Process]:
        return [each for each in family if each.name() in ("raylet", "gcs_server")]

    made.run("drive_before_ray", HELD_AT[0], lambda family: [])
    made.run("drive", HELD_AT[1], head, RAY_gcs_rpc_server_reconnect_timeout_s="2")
    made.run("drive", HELD_AT[2], lambda family: family[:1], RAY_ADDRESS=address_of_ray())
    made.run("drive", HELD_AT[3], meet_a_second_run, RAY_ADDRESS=address_of_ray())
    return made


def records_of(state: State) -> dict[str, str]:
    """Return the shard file of each record."""
    return {name: json.loads(state[name][1])["file"]["path"] for name in state if name.endswith(".json")}


def test_the_last_run_leaves_one_vector_an_item(history: History) -> None:
    assert history.status[-1] == 0
    made = assert_right(history.store)
    assert made.summary["shards"] == NUM_SHARDS
    assert len(records_of(history.states[-1])) == NUM_SHARDS


@pytest.mark.parametrize("kill", range(3), ids=KILLS[:3])
def test_a_recorded_shard_is_never_computed_again(history: History, kill: int) -> None:
    left, last = history.states[kill], history.states[-1]
    records = records_of(left)
    assert HELD_AT[kill] <= len(records) < NUM_SHARDS, "the run was killed between its first shard and its last"
    assert history.status[kill] != 0
    for record, file in records.items():
        assert (last[record], last[file]) == (left[record], left[file])


@pytest.mark.parametrize("kill", range(4), ids=KILLS)
def test_only_what_a_dead_worker_had_in_work_is_computed_again(history: History, kill: int) -> None:
    before = history.states[kill - 1] if kill else {}
    new = history.states[kill].keys() - before.keys()
    computed, recorded = sum(name.endswith(".parquet") for name in new), sum(name.endswith(".json") for name in new)
    probes = sum(name.endswith("probe.parquet") for name in new)
    assert computed - probes - recorded <= 1


def test_a_second_run_leaves_while_the_first_is_at_work(history: History) -> None:
    assert "another run works on this since" in history.second
    assert "Traceback" not in history.second


def test_a_run_goes_on_elsewhere_when_its_node_is_drained(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with started(tmp_path / "log", "drive_drained", root) as process:
        status = process.wait(LIMIT_S)
    assert status == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "go").exists(), "the node was drained while a shard waited for its record"
    made = assert_right(Store(str(root)))
    files = [name.rsplit(".", 1)[-1] for name in made.store.files(KIND, made.name, SHARDS)]
    assert files.count("json") == NUM_SHARDS
    assert files.count("parquet") <= NUM_SHARDS + 2, "the probe, and at most one shard computed twice"


# ---------------------------------------------------------------- kills while a version is put together


@pytest.fixture(scope="module")
def recorded(history: History, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with every shard complete and no version; nothing is left for Ray to do."""
    folder = Path(shutil.copytree(history.store.path, tmp_path_factory.mktemp("recorded") / "store"))
    for line in folder.glob("vectors/*"):
        (line / LATEST).unlink()
        for version in line.glob("*/manifest.json"):
            shutil.rmtree(version.parent)
    return folder


def test_a_run_killed_before_any_change_to_the_store_is_made_good_by_the_next(recorded: Path, tmp_path: Path) -> None:
    """Lease, work file, items, quarantine, probe, manifest, LATEST: each of their opens, links and renames."""
    before = state_of(next(recorded.glob("vectors/*/shards")))
    with started(tmp_path / "log", "sweep", recorded, tmp_path) as process:
        assert process.wait(LIMIT_S) == 0, (tmp_path / "log").read_text()
    roots = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(roots) > 20
    for root in roots:
        assert_right(Store(str(root)))
        after = state_of(next(root.glob("vectors/*/shards")))
        assert {name: after[name] for name in before} == before


# ---------------------------------------------------------------- two runs, and damage


@pytest.mark.parametrize("remote", [False, True], ids=["folder", "s3"])
def test_of_two_runs_without_a_lease_one_commits(
    recorded: Path, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch, remote: bool
) -> None:
    """Both stand before the manifest when either writes it."""
    store = copy_of(recorded, f"{s3}/{uuid.uuid4().hex}" if remote else str(tmp_path / "store"))
    both, create = threading.Barrier(2), Store.create

    def create_together(self: Store, data: bytes, *parts: str) -> None:
        if parts[-1] == MANIFEST:
            both.wait(LIMIT_S)
        create(self, data, *parts)

    monkeypatch.setattr(Store, "lease", lambda *_, **__: contextlib.nullcontext(SimpleNamespace(check=lambda: None)))
    monkeypatch.setattr(Store, "create", create_together)
    with ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(run, store) for _ in range(2)]
    monkeypatch.undo()
    errors = [task.exception() for task in tasks if task.exception()]
    assert len(errors) < 2, errors
    assert all(isinstance(error, ArtifactError) for error in errors)
    made = assert_right(store)
    assert [task.result().manifest for task in tasks if not task.exception()] == [made.manifest] * (2 - len(errors))


def copy_of(folder: Path, root: str) -> Store:
    """Return a store with the files of a folder."""
    store = Store(root)
    for path in folder.rglob("*"):
        if path.is_file():
            store.write(path.read_bytes(), *path.relative_to(folder).parts)
    return store


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: data[:90] + b"?" + data[91:]], ids=["cut", "flipped"]
)
def test_a_damaged_shard_is_noticed(history: History, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    root = shutil.copytree(history.store.path, tmp_path / "store")
    made = assert_right(Store(str(root)))
    shard = Path(made.location("vectors-00007.parquet"))
    shard.write_bytes(damage(shard.read_bytes()))
    assert [str(shard) in problem for problem in verify(made)] == [True]
    with pytest.raises(ArtifactError, match="damaged"):
        load_vectors(made)


# ---------------------------------------------------------------- S3 at its worst


@pytest.fixture
def faulty(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """Put the proxy between this process, and processes started later, and S3."""
    proxy = FaultyS3(os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    S3FileSystem.clear_instance_cache()
    yield proxy
    S3FileSystem.clear_instance_cache()
    proxy.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up on S3 after two tries and not after minutes."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(S3FileSystem, "retries", 2)


def prepared(root: str) -> Store:
    """Return a store with an object and a version."""
    store = Store(f"{root}/{uuid.uuid4().hex}")
    store.write(b"old", "object")
    commit(store, "v1")
    return store


def commit(store: Store, version: str) -> None:
    draft = store.draft("things", "shop", version)
    draft.write_json("value.json", [version])
    with draft.stream_table("table.parquet", pa.schema({"x": pa.int64()})) as write:
        write(pa.table({"x": [1, 2, 3]}))
    draft.commit(settings={}, inputs={}, summary={})


def hold(store: Store) -> None:
    with store.lease("LEASE", seconds=60) as lease:
        store.write(b"new", "object")
        lease.check()
    assert not store.exists("LEASE")


def content(store: Store, *parts: str) -> bytes | None:
    return store.read(*parts) if store.exists(*parts) else None


def version(store: Store, name: str) -> list[Any] | None:
    """Return what a reader finds in a version, or None."""
    found = store.find("things", "shop", name)
    if found is None:
        return None
    found.check("table.parquet")
    with found.open_table("table.parquet") as table:
        return [found.read_json("value.json"), found.read_table("table.parquet"), table.read()]


# What is done, the requests that fail, and what a reader sees of it.
CHANGES: dict[str, tuple[Callable[[Store], None], str, Callable[[Store], object]]] = {
    "write": (lambda store: store.write(b"new", "object"), "object", lambda store: content(store, "object")),
    "create": (lambda store: store.create(b"new", "another"), "another", lambda store: content(store, "another")),
    "swap": (lambda store: store.swap(b"old", b"new", "object"), "object", lambda store: content(store, "object")),
    "lease": (hold, "LEASE", lambda store: content(store, "object")),
    "move_latest": (
        lambda store: store.move_latest("things", "shop", "v1"),
        LATEST,
        lambda store: content(store, "things", "shop", LATEST),
    ),
    "stream_table": (lambda store: commit(store, "v2"), "table.parquet", lambda store: version(store, "v2")),
    "commit": (lambda store: commit(store, "v2"), MANIFEST, lambda store: version(store, "v2")),
}


@pytest.mark.parametrize("fault", ["slow_down", "reset", "timeout", "done_then_reset"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_outlives_a_fault(faulty: FaultyS3, s3: str, tmp_path: Path, change: str, fault: str) -> None:
    """An answer lost after success is a success: whoever wrote the manifest, LATEST or the lease is told so."""
    act, path, look = CHANGES[change]
    store, twin = prepared(s3), prepared(str(tmp_path))
    act(twin)
    rule = faulty.rule("PUT", path, fault)
    act(store)
    assert rule.done == 1
    assert look(store) == look(twin)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", ["slow_down", "reset", "done_then_reset"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_s3_never_answers_is_reported_and_half_done_nowhere(
    faulty: FaultyS3, s3: str, tmp_path: Path, change: str, fault: str
) -> None:
    act, path, look = CHANGES[change]
    store, twin = prepared(s3), prepared(str(tmp_path))
    before = look(store)
    act(twin)
    rule = faulty.rule("PUT", path, fault, ALWAYS)
    with pytest.raises((ArtifactError, OSError)):
        act(store)
    assert rule.done > 1
    faulty.rules.clear()
    assert look(store) in (before, look(twin))


@pytest.mark.parametrize("fault", ["slow_down", "reset", "timeout", "cut"])
def test_a_reader_outlives_a_fault(faulty: FaultyS3, s3: str, fault: str) -> None:
    store = prepared(s3)
    right = version(store, "v1")
    for at in itertools.count():
        rule = faulty.rule("GET", "", fault, skip=at)
        assert version(store, "v1") == right
        if not rule.done:
            break
    assert at > 3, "manifest, whole table, JSON, table's end"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", ["slow_down", "reset", "timeout", "cut"])
def test_an_object_that_s3_never_gives_is_an_artifact_or_os_error(faulty: FaultyS3, s3: str, fault: str) -> None:
    store = prepared(s3)
    faulty.rule("GET", "object", fault, ALWAYS)
    with pytest.raises((ArtifactError, OSError)):
        store.read("object")


@pytest.mark.usefixtures("impatient", "hurried")
@pytest.mark.parametrize(
    ("method", "fault"),
    [("HEAD", "reset"), ("PUT", "slow_down")],
)
def test_a_lease_goes_on_when_s3_was_away_for_one_renewal(
    faulty: FaultyS3, s3: str, caplog: pytest.LogCaptureFixture, method: str, fault: str
) -> None:
    store = prepared(s3)
    lease = Lease(store, ("LEASE",), 60.0)
    lease.take()
    try:
        taken = store.read("LEASE")
        rule = faulty.rule(method, "LEASE", fault, ALWAYS)
        wait_for(lambda: not lease._renewer.is_alive() or "not renewed" in caplog.text)
        assert rule.done
        faulty.rules.clear()
        wait_for(lambda: not lease._renewer.is_alive() or lease.lost or store.read("LEASE") != taken)
        assert lease._renewer.is_alive()
        lease.check()
    finally:
        faulty.rules.clear()
        lease.release()


PART_BYTES = 5 << 20  # the least that S3 takes for a part that is not the last
NUMBERS = np.random.default_rng(0).integers(1 << 62, size=PART_BYTES // 8 * 2 + 9)
IN_PARTS = ("model.safetensors", "table.parquet")
# Requests of an upload in parts, and what can go wrong with each.
STEPS = {"begin": ("POST", "uploads"), "part": ("PUT", "partNumber=1"), "join": ("POST", "uploadId=")}
PART_FAULTS = [
    *[("begin", fault) for fault in ("slow_down", "done_then_reset")],
    *[("part", fault) for fault in ("slow_down", "reset", "torn", "timeout", "done_then_reset")],
    *[("join", fault) for fault in ("slow_down", "reset", "timeout", "cut", "done_then_reset", "error_in_200")],
]


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upload in parts of 5 MiB and not of 50."""
    monkeypatch.setattr(S3FileSystem, "default_block_size", PART_BYTES)
    monkeypatch.setattr(S3FileSystem, "_pipe_file", partialmethod(S3FileSystem._pipe_file, chunksize=PART_BYTES))


def fail_at(faulty: FaultyS3, file: str, step: str, fault: str, count: int = 1) -> Rule:
    method, query = STEPS[step]
    return faulty.rule(method, rf"{file}\?(.*&)?{query}", fault, count)


def commit_in_parts(store: Store) -> Artifact:
    """Commit a file that is there whole before it is written, and one that is not."""
    import torch  # the drivers, this file as a script, start in half the time without

    draft = store.draft("things", "shop", "v1")
    draft.write_tensors(IN_PARTS[0], {"x": torch.from_numpy(NUMBERS)})
    with draft.stream_table(IN_PARTS[1], pa.schema({"x": pa.int64()})) as write:
        for numbers in np.array_split(NUMBERS, 4):
            write(pa.table({"x": numbers}))
    return draft.commit(settings={}, inputs={}, summary={})


def assert_numbers(made: Artifact) -> None:
    assert np.array_equal(made.read_tensors(IN_PARTS[0])["x"], NUMBERS)
    assert np.array_equal(made.read_table(IN_PARTS[1])["x"], NUMBERS)


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize(("step", "fault"), PART_FAULTS)
def test_files_uploaded_in_parts_outlive_a_fault(faulty: FaultyS3, s3: str, step: str, fault: str) -> None:
    rules = [fail_at(faulty, file, step, fault) for file in IN_PARTS]
    made = commit_in_parts(Store(f"{s3}/{uuid.uuid4().hex}"))
    assert [rule.done for rule in rules] == [1, 1]
    assert_numbers(made)


@pytest.mark.usefixtures("in_parts", "impatient")
@pytest.mark.parametrize("file", IN_PARTS)
@pytest.mark.parametrize(("step", "fault"), [each for each in PART_FAULTS if each[1] not in ("torn", "timeout", "cut")])
def test_a_file_whose_upload_s3_never_answers_is_not_committed(
    faulty: FaultyS3, s3: str, file: str, step: str, fault: str
) -> None:
    """One that S3 did put together, unheard, may be: it is right."""
    store = Store(f"{s3}/{uuid.uuid4().hex}")
    rule = fail_at(faulty, file, step, fault, ALWAYS)
    try:
        made = commit_in_parts(store)
    except (ArtifactError, OSError):
        faulty.rules.clear()
        assert store.find("things", "shop", "v1") is None
    else:
        assert (step, fault) == ("join", "done_then_reset")
        assert_numbers(made)
    assert rule.done


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("file", IN_PARTS)
@pytest.mark.parametrize("done", [True, False], ids=["joined", "lost"])
def test_an_upload_that_the_server_knows_no_more_is_judged_by_its_object(
    faulty: FaultyS3, s3: str, file: str, done: bool
) -> None:
    """S3 joins the same parts twice; MinIO answers that there is no such upload."""
    store = Store(f"{s3}/{uuid.uuid4().hex}")
    if done:
        fail_at(faulty, file, "join", "done_then_reset")
    rule = fail_at(faulty, file, "join", "no_such_upload", ALWAYS)
    if done:
        assert_numbers(commit_in_parts(store))
    else:
        with pytest.raises(FileNotFoundError):
            commit_in_parts(store)
        assert store.find("things", "shop", "v1") is None
    assert rule.done


def forget_version(store: Store) -> None:
    """Remove the version, LATEST and a lease: this process, which holds it, is alive, unlike a run that S3 ended."""
    for line in store.folders(KIND):
        for folder in set(store.folders(KIND, line)) - {SHARDS}:
            for file in store.files(KIND, line, folder):
                store.remove(KIND, line, folder, file)
        for file in store.files(KIND, line):
            store.remove(KIND, line, file)


def test_a_run_is_right_whichever_answer_is_lost_after_success(faulty: FaultyS3, recorded: Path, s3: str) -> None:
    """Lease, work file, items, quarantine, probe, manifest, LATEST, one run each."""
    store = copy_of(recorded, f"{s3}/{uuid.uuid4().hex}")
    for at in itertools.count():
        rule = faulty.rule("PUT", "", "done_then_reset", skip=at)
        run(store)
        if not rule.done:
            break
        assert_right(store)
        forget_version(store)
    assert at == 7


@pytest.mark.usefixtures("impatient")
def test_a_run_that_lost_s3_half_way_is_made_good_by_the_next(faulty: FaultyS3, recorded: Path, s3: str) -> None:
    """S3 goes away for good before each fifth request."""
    store, first = copy_of(recorded, f"{s3}/{uuid.uuid4().hex}"), len(faulty.requests)
    run(store)
    requests = len(faulty.requests) - first
    for at in range(0, requests, 5):
        forget_version(store)
        rule = faulty.rule("", "", "reset", ALWAYS, skip=at)
        with contextlib.suppress(ArtifactError, OSError):
            run(store)
        assert rule.done
        faulty.rules.clear()
        for line in store.folders(KIND):
            store.remove(KIND, line, LEASE)
        run(store)
        assert_right(store)


def test_a_run_on_ray_outlives_a_dying_worker_a_broken_model_and_s3(
    ray_local: None, faulty: FaultyS3, s3: str, tmp_path: Path
) -> None:
    """The first two end with an error that says why, in the same Ray in which the third is right."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"no tensors")
    rules = [
        faulty.rule("PUT", r"shards/\w+-\w+\.parquet", "slow_down", 2),
        faulty.rule("PUT", r"shards/\w+\.json", "reset"),
        faulty.rule("PUT", r"shards/\w+\.json", "done_then_reset", skip=3),
        faulty.rule("HEAD", r"shards/\w+\.json", "timeout"),
        faulty.rule("GET", r"work\.parquet", "cut", 2),
        faulty.rule("PUT", r"vectors/.*/manifest\.json", "done_then_reset"),
        faulty.rule("PUT", r"vectors/.*/LATEST", "done_then_reset"),
        faulty.rule("PUT", r"vectors/.*/LEASE", "done_then_reset"),
    ]
    root = f"{s3}/{uuid.uuid4().hex}"
    given = (root, tmp_path / "deadly", model)
    with started(tmp_path / "log", "drive_three", *given, RAY_ADDRESS=address_of_ray()) as process:
        status = process.wait(2 * LIMIT_S)
    log = (tmp_path / "log").read_text()
    assert status == 0, log
    broken, deadly = [line for line in log.splitlines() if line.startswith("EncoderError: ")]
    assert str(model) in broken
    assert "Traceback" not in broken
    assert "ray::" not in broken
    assert len(broken) < 600, "one message, not a wall"
    assert "worker died 4 times on the same shard" in deadly
    assert [rule.done for rule in rules] == [rule.count for rule in rules]
    made = assert_right(Store(root))
    files = [name.rsplit(".", 1)[-1] for name in made.store.files(KIND, made.name, SHARDS)]
    assert (files.count("json"), files.count("parquet")) == (NUM_SHARDS, NUM_SHARDS + 1), "with the probe"


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
