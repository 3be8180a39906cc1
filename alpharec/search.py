"""The search stage: Ray Tune with Optuna and ASHA over settings of the model and of training; trials share the data."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import math
import os
import tempfile
import time
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.fs
import ray
import ray.train
import ray.tune
import ray.util
import torch
from ray.tune.integration.ray_train import TuneReportCallback
from torch import Tensor

from alpharec.artifacts import Artifact, Store, digest
from alpharec.config import SEARCHABLE, SearchRange, Settings, SettingsError, change_settings, idle_parameters
from alpharec.evaluation import Selection, check_splits
from alpharec.graph import InteractionGraph, layer_weights
from alpharec.model import AlphaRec, NonFiniteLossError, TextFeatures
from alpharec.networks import build_model
from alpharec.report import lines, page, points
from alpharec.runtime import connect, cpus_each, show_progress
from alpharec.train import (
    DECIDES,
    State,
    Training,
    TrainingError,
    check_negatives,
    read_features,
    run_workers,
    settle_epochs,
    source_vectors,
)

logger = logging.getLogger(__name__)

PAPER_TEMPERATURES = (0.05, 0.1, 0.15, 0.2)  # the authors' grid
REDUCTION = 3  # ASHA: one trial in so many goes on at each rung, and rungs are so many times apart
LEASE_S = 600
TOP = 5
TUNER, SNAPSHOT = "tuner.pkl", "snapshot.zip"
Parameters = Mapping[str, float]
Row = dict[str, Any]


class SearchError(RuntimeError):
    """A search cannot start, or ended without a result; the message says what to change."""


def search(store: Store, settings: Settings, dataset: Artifact, vectors: Artifact) -> Artifact:
    """Return the result of a search, searching only if the store does not have it.

    ``best.toml`` are the settings of the best trial, for jobs/train.py; ``trials.parquet`` has a row a trial and
    ``report.html`` the figures. Tune's own state lies under ``sweeps/<sweep>``: a search that was stopped goes on there
    when it is started again.

    Raises:
        SearchError: the settings leave nothing to search with, or every trial failed.
        EvaluationError: no interactions compare the trials.
    """
    check_comparable(settings, dataset)
    settings = _without_idle(settle_epochs(store, settings, dataset))
    chosen, kept = settings.search, settings.model_dump(mode="json", include=DECIDES)
    version = digest([dataset.version, vectors.version, kept, chosen.model_dump(exclude={"concurrency"})])[:16]
    found = store.find("searches", settings.name, version)
    if found is not None:
        return found
    for name, space in chosen.parameters.items():
        for value in (space.low, space.high) if isinstance(space, SearchRange) else space:
            try:
                with_parameters(settings, {name: value})
            except SettingsError as error:
                raise SearchError(f"search.parameters: {name} = {value:g}: {error}") from None
    try:
        check_negatives(dataset)
    except TrainingError as error:
        raise SearchError(str(error)) from None
    started = time.monotonic()
    connect(settings)
    sweep = f"{settings.name}-{version}"
    with store.lease("sweeps", f"{sweep}.lease", seconds=LEASE_S):
        rows, curves, concurrency = _run(store, settings, sweep, dataset, vectors)
    scored = [row for row in rows if row["score"] is not None]
    if not scored:
        raise SearchError(
            f"search {sweep}: every trial failed, the first by: {rows[0]['error']}; change search.parameters, or, to "
            f"try again, delete {store.uri('sweeps', sweep)}"
        )
    best = min(scored, key=lambda row: (-row["score"], row["trial"]))
    summary = _summary(settings, sweep, rows, best)
    summary |= {"concurrency": concurrency, "seconds": round(time.monotonic() - started, 1)}
    draft = store.draft("searches", settings.name, version)
    winner = with_parameters(settings, {name: best[name] for name in chosen.parameters})
    draft.write_bytes("best.toml", (_header(summary) + to_toml(winner)).encode())
    draft.write_table("trials.parquet", pa.Table.from_pylist(rows))
    draft.write_bytes("report.html", _report(settings, summary, rows, curves).encode())
    inputs = {"dataset": dataset, "vectors": vectors}
    return draft.commit(
        settings=settings.model_dump(mode="json", exclude={"ray", "storage"}), inputs=inputs, summary=summary
    )


def check_comparable(settings: Settings, dataset: Artifact) -> None:
    """Refuse to search where trials cannot be compared.

    Raises:
        SearchError: nothing is trained.
        EvaluationError: the split that picks the epoch has no interactions.
    """
    if settings.train.max_epochs == 0:
        raise SearchError("a search compares trained models (got train.max_epochs = 0); choose a model that is trained")
    check_splits(dataset, settings.train.select_on, what="a search")


# ---------------------------------------------------------------- settings of a trial


def _without_idle(settings: Settings) -> Settings:
    """Leave out of the search what this model takes no notice of."""
    idle = idle_parameters(settings) & settings.search.parameters.keys()
    kept = {name: space for name, space in settings.search.parameters.items() if name not in idle}
    if not kept:
        raise SearchError(
            f"search.parameters: this model takes no notice of {', '.join(sorted(idle))}, or has it given (got nothing "
            f"else); add one of {', '.join(sorted(SEARCHABLE.keys() - idle_parameters(settings)))}"
        )
    if idle:
        logger.info("search: leaves out %s, of which this model takes no notice", ", ".join(sorted(idle)))
    return settings.model_copy(update={"search": settings.search.model_copy(update={"parameters": kept})})


def with_parameters(settings: Settings, parameters: Parameters) -> Settings:
    """Return the settings of a trial: those of the search with its parameters in them."""
    return change_settings(settings, {"train.run": "", **parameters})


def first_points(settings: Settings, text_width: int) -> list[dict[str, float]]:
    """Return what is tried first: the settings as they are, by default the paper's, and the paper's other taus.

    A value that ``search.parameters`` leave out is moved to the nearest that they have.
    """
    space = settings.search.parameters
    model = settings.model
    resolved = {
        "hidden_width": model.resolve_hidden_width(text_width),
        "layer_0_weight": layer_weights(model.num_layers, model.layer_0_weight)[0],
    }
    model = model.model_copy(update=resolved)
    own = {
        name: getattr(model if name.startswith("model.") else settings.train, name.partition(".")[2]) for name in space
    }
    temperatures = PAPER_TEMPERATURES if "train.temperature" in space else ()
    tried = [own, *(own | {"train.temperature": value} for value in temperatures)]
    nearest = [{name: _nearest(space[name], value) for name, value in point.items()} for point in tried]
    return list({tuple(point.values()): point for point in nearest}.values())


def _nearest(space: SearchRange | tuple[float, ...], value: float) -> float:
    if isinstance(space, SearchRange):
        return type(value)(min(max(value, space.low), space.high))
    return min(space, key=lambda choice: abs(choice - value))


def to_toml(settings: Settings) -> str:
    """Return settings as a file for ``--config``: what differs from the defaults."""
    values = settings.model_dump(
        mode="json", exclude={"preset", "search", "recommend", "ray"}, exclude_defaults=True, exclude_none=True
    )
    return "".join(_toml_table("", values))


def _toml_table(name: str, values: Mapping[str, Any]) -> list[str]:
    plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
    text = [f"\n[{name}]\n"] if name and plain else []
    # A JSON string, number, boolean or list of them is one of TOML too; other keys than ours may need quotes.
    text += [f"{_toml_key(key)} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in plain.items()]
    for key, value in values.items():
        if key not in plain:
            text += _toml_table(f"{name}.{_toml_key(key)}".lstrip("."), value)
    return text


def _toml_key(key: str) -> str:
    return key if key.replace("_", "").isalnum() and key.isascii() else json.dumps(key, ensure_ascii=False)


# ---------------------------------------------------------------- the sweep


@dataclass(frozen=True)
class _Job:
    """What all trials have in common. ``shared`` refers to the graph, features and validation lists in Ray's object
    store; it is empty where a trial is a run of several workers, which read their own shares.
    """

    store: Store
    settings: Settings
    sweep: str
    dataset: Artifact
    vectors: Artifact
    threads: int
    shared: tuple[ray.ObjectRef[Any], ...] = ()

    def training(self, settings: Settings) -> Training:
        """Return a run in this process, on the data as it lies in the object store, or on its copy on the GPU."""
        graph, features_of, selection = ray.get(self.shared[0])
        features = features_of[settings.model.centred]
        device = torch.device("cuda" if settings.train.use_gpu else "cpu")
        graph, features, selection = graph.to(device), features and features.to(device), selection.to(device)
        sizes = self.vectors.summary["width"], graph.num_users, graph.num_items
        return Training(settings, graph, features, build_model(settings, *sizes).to(device), selection)


def share(parts: tuple[InteractionGraph, Mapping[bool, TextFeatures | None], Selection]) -> ray.ObjectRef[Any]:
    """Put data with tensors into Ray's object store, once for all processes of a node: the graph, features by
    ``model.centred``, the validation lists.

    Who gets it reads it where it lies: no copy, and nothing may be written to it.
    """
    ray.util.register_serializer(Tensor, serializer=_to_array, deserializer=_from_array)
    try:
        return ray.put(parts)
    finally:
        ray.util.deregister_serializer(Tensor)


def _to_array(x: Tensor) -> tuple[np.ndarray[Any, Any], bool]:
    half = x.dtype == torch.bfloat16  # numpy has none
    return (x.contiguous().view(torch.int16) if half else x.contiguous()).numpy(), half


def _from_array(given: tuple[np.ndarray[Any, Any], bool]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        x = torch.from_numpy(given[0])
    return x.view(torch.bfloat16) if given[1] else x


def _run(
    store: Store, settings: Settings, sweep: str, dataset: Artifact, vectors: Artifact
) -> tuple[list[Row], dict[int, tuple[list[float], list[float]]], int]:
    """Run the trials, or those a stopped sweep left.

    Returns a row a trial; by trial, its validated epochs and their scores; and how many ran at a time.
    """
    # Interrupted, a search must not end as if it were done.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    # Tune deletes a trial's older checkpoints before its snapshot of the sweep knows the newest (Ray 2.60): killed in
    # between, it would go on at one that is gone. So it keeps two, and takes a snapshot after every event.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "0")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    source = source_vectors(store, settings, dataset, vectors)
    concurrency, resources, threads = _shares(settings)
    if settings.train.most_workers > 1:
        cpus = settings.train.model_copy(update={"cpus_per_worker": threads})
        settings = settings.model_copy(update={"train": cpus})
    job = _Job(store, settings, sweep, dataset, source, threads)
    if settings.train.most_workers == 1:
        built = Training.build(settings, dataset, source)
        features = {settings.model.centred: built.features}
        for centred in cast(tuple[bool, ...], settings.search.parameters.get("model.centred", ())):
            if centred not in features:
                other = with_parameters(settings, {"model.centred": centred})
                network = cast(AlphaRec, build_model(other, source.summary["width"]))
                features[centred] = read_features(other, source, built.graph, network)
        job = dataclasses.replace(job, shared=(share((built.graph, features, built.selection)),))
    trainable = ray.tune.with_resources(ray.tune.with_parameters(_trial, job=job), resources)
    filesystem = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(store.fs))
    place = store.at("sweeps", sweep)
    if _unpack(store, sweep):
        logger.info("search: going on with %s", store.uri("sweeps", sweep))
        tuner = ray.tune.Tuner.restore(place, trainable, resume_errored=True, storage_filesystem=filesystem)
    else:
        tuner = ray.tune.Tuner(
            trainable,
            tune_config=ray.tune.TuneConfig(
                metric="score",
                mode="max",
                search_alg=_searcher(settings, vectors.summary["width"]),
                scheduler=_scheduler(settings),
                num_samples=settings.search.num_trials,
                max_concurrent_trials=concurrency,
                reuse_actors=True,
                trial_dirname_creator=_folder,
            ),
            run_config=ray.tune.RunConfig(
                name=sweep,
                storage_path=store.at("sweeps"),
                storage_filesystem=filesystem,
                checkpoint_config=ray.tune.CheckpointConfig(num_to_keep=2),
                failure_config=ray.tune.FailureConfig(max_failures=settings.train.max_failures),
                callbacks=[_Progress(settings.search.num_trials), _Snapshot()],
                verbose=0,
            ),
        )
    found: Any = tuner.fit()
    rows, curves = [], {}
    for result in sorted(found, key=_number):  # a sweep that went on lists its latest trials first
        trial = _number(result)
        epochs, scores, failure = _curve(result)
        curves[trial] = (epochs, scores)
        rows.append(_row(settings, trial, result, epochs, scores, failure))
    return rows, curves, concurrency


def _shares(settings: Settings) -> tuple[int, dict[str, float], int]:
    """Return how many trials run at a time, what each reserves, and the CPUs (torch threads) of a process of its."""
    train, chosen = settings.train, settings.search.concurrency
    cluster = ray.cluster_resources()
    gpus = int(cluster.get("GPU", 0)) if train.use_gpu else 0
    if train.use_gpu and not gpus:
        raise SearchError("train.use_gpu needs a cluster with GPUs (got none); leave it out to search on CPUs")
    if train.most_workers > 1:
        concurrency = min(chosen or 1, settings.search.num_trials)
        # The trial itself only waits for its workers, who reserve the CPUs; Tune wants it to reserve something.
        return concurrency, {"memory": 1}, train.cpus_per_worker or cpus_each(concurrency * train.most_workers)
    concurrency = min(chosen or gpus or max(1, int(cluster["CPU"])), settings.search.num_trials)
    cpus = train.cpus_per_worker or cpus_each(concurrency)
    resources = {"CPU": float(cpus)}
    if gpus:
        resources["GPU"] = 1 / math.ceil(concurrency / gpus)
    return concurrency, resources, cpus


def _scheduler(settings: Settings) -> Any:
    """Return ASHA, or nothing where trials are runs of several workers.

    Stopped from outside, such a run leaves its CPUs reserved (Ray 2.60), and the next trial waits for ever.
    """
    if settings.train.most_workers > 1:
        return None
    epochs = settings.train.max_epochs
    grace = min(settings.search.grace_epochs, epochs)
    return ray.tune.schedulers.ASHAScheduler(
        time_attr="epoch", max_t=epochs, grace_period=grace, reduction_factor=REDUCTION
    )


def _searcher(settings: Settings, text_width: int) -> Any:
    try:
        import optuna
        from ray.tune.search.optuna import OptunaSearch
    except ImportError:
        raise SearchError("a search needs Optuna (got none installed); pip install '.[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    own = first_points(settings, text_width)
    space: dict[str, Any] = {}
    for name, given in settings.search.parameters.items():
        if not isinstance(given, SearchRange):
            space[name] = optuna.distributions.CategoricalDistribution(given)
        elif isinstance(own[0][name], int):
            space[name] = optuna.distributions.IntDistribution(int(given.low), int(given.high), log=given.log)
        else:
            space[name] = optuna.distributions.FloatDistribution(given.low, given.high, log=given.log)
    return OptunaSearch(space, metric="score", mode="max", points_to_evaluate=own, seed=settings.seed)


def _folder(trial: Any) -> str:
    """Name a trial's folder by its number, which Optuna's generator puts before the tag, and its id."""
    return f"{int(trial.experiment_tag.partition('_')[0]) - 1}-{trial.trial_id}"


def _number(result: Any) -> int:
    return int(Path(result.path).name.partition("-")[0])


class _Progress(ray.tune.Callback):
    """Tells of each trial that ends."""

    def __init__(self, num_trials: int) -> None:
        self.num_trials = num_trials

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        done, last = 1 + sum(each.is_finished() for each in trials if each is not trial), trial.last_result
        told = ", ".join(f"{name} {value:.4g}" for name, value in trial.config.items())
        logger.info("search: %s / %s, score %.4f: %s", done, self.num_trials, last.get("score", -1), told)


class _Snapshot(ray.tune.Callback):
    """Keeps all that Tune knows of the sweep in one object, replaced as one after each event.

    Tune itself overwrites its files one by one, from a thread that reads what the next event writes (Ray 2.60). Killed
    then, a sweep would find a file cut short, begin anew and tell of the new trials alone; or a trial that its searcher
    does not know.
    """

    def __init__(self) -> None:
        self.told, self.tuner = False, b""

    def _tell(self, *event: Any, **info: Any) -> None:
        self.told = True

    on_trial_start = on_trial_save = on_trial_result = on_trial_complete = on_trial_error = _tell

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if not self.told:
            return
        storage, packed = trials[0].storage, io.BytesIO()
        place = Store(storage.storage_filesystem.handler.fs.unstrip_protocol(storage.experiment_fs_path))
        states = Path(storage.experiment_driver_staging_path)
        begun = max(file.stem for file in states.glob("experiment_state-*")).partition("-")[2]
        try:
            self.tuner = self.tuner or place.read(TUNER)
            with zipfile.ZipFile(packed, "w") as files:
                files.writestr(TUNER, self.tuner)
                for file in states.glob(f"*state-{begun}.*"):
                    files.write(file, file.name)
            place.write(packed.getvalue(), SNAPSHOT)
        except OSError as error:  # the next step tries again
            logger.warning("search: %s", error)
        else:
            self.told = False


def _unpack(store: Store, sweep: str) -> bool:
    """Lay out what a stopped sweep kept as Tune looks for it; return whether it kept anything."""
    if not store.exists("sweeps", sweep, SNAPSHOT):
        return False
    with zipfile.ZipFile(io.BytesIO(store.read("sweeps", sweep, SNAPSHOT))) as kept:
        # Of several files of a kind, Tune takes the one that was begun last.
        for name in store.files("sweeps", sweep).keys() - {SNAPSHOT, *kept.namelist()}:
            if "state-" in name:
                store.remove("sweeps", sweep, name)
        for name in kept.namelist():
            store.write(kept.read(name), "sweeps", sweep, name)
    return True


def _trial(config: dict[str, float], job: _Job) -> None:
    """Run one trial, telling Tune of every validation."""
    # A process that is slow to end a stopped trial is still cheaper to wait for than to replace; 2 s by default.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
    torch.set_num_threads(job.threads)
    show_progress()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    settings = with_parameters(job.settings, config)
    if job.shared:
        _train_here(job.training(settings))
        return
    run = f"{job.sweep}-{ray.tune.get_context().get_trial_id()}"
    result = run_workers(job.store, settings, run, job.dataset, job.vectors, [_TellTune()])
    # Told once more, at the end: a run that had ended when its sweep was killed has no further validation to tell of.
    curve = tuple((epoch, score) for epoch, score in (result.metrics or {}).get("curve", ()))
    if curve or result.return_value:
        ray.tune.report(_told(curve, result.return_value))


def _train_here(training: Training) -> None:
    checkpoint = ray.tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            training.restore(State.load(Path(folder)))
    try:
        for due in training.run():
            if training.selection.name not in training.state.history[-1]:
                continue
            told = _told(training.curve)
            if not due:
                ray.tune.report(told)
                continue
            with tempfile.TemporaryDirectory() as folder:
                training.snapshot().save(Path(folder))
                ray.tune.report(told, checkpoint=ray.tune.Checkpoint.from_directory(folder))
    except NonFiniteLossError as error:
        ray.tune.report(_told(training.curve, str(error)))


def _told(curve: tuple[tuple[int, float], ...], failure: str = "") -> dict[str, Any]:
    """Return what Tune is told: each time the whole curve, so that the last report alone, which the snapshot keeps,
    says all of a trial. (Tune's TensorBoard logger draws a list, not a tuple, as a histogram.)
    """
    score = -1.0 if failure else max(score for _, score in curve)
    return {"epoch": curve[-1][0] if curve else 0, "score": score, "curve": curve, "failure": failure}


class _TellTune(TuneReportCallback):
    """Tells Tune of the validations of a run of Ray Train."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.curve: tuple[tuple[int, float], ...] = ()

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if len(metrics[0]["curve"]) > len(self.curve):
            self.curve = metrics[0]["curve"]
            super().after_report(run_context, [_told(self.curve)], None)


# ---------------------------------------------------------------- what is kept of it


def _curve(result: Any) -> tuple[list[float], list[float], str]:
    """Return a trial's validated epochs, their scores, and why it failed, if it did."""
    last = result.metrics or {}
    curve = last.get("curve", ())
    failure = str(result.error or last.get("failure") or ("" if curve else "no validation was reached"))
    return [epoch for epoch, _ in curve], [score for _, score in curve], failure


def _row(settings: Settings, trial: int, result: Any, epochs: list[float], scores: list[float], failure: str) -> Row:
    score = None if failure else max(scores, default=None)  # its settings would only fail again
    best_epoch = None if score is None else int(epochs[scores.index(score)])
    waited = 0 if score is None else len(scores) - 1 - scores.index(score)
    ended = bool(epochs) and (epochs[-1] == settings.train.max_epochs or waited >= settings.train.patience)
    return {
        "trial": trial,
        **{name: result.config[name] for name in settings.search.parameters},
        "score": score,
        "best_epoch": best_epoch,
        "epochs": int(epochs[-1]) if epochs else 0,
        "seconds": round(float((result.metrics or {}).get("time_total_s", 0.0)), 2),
        "state": "failed" if failure else "ended" if ended else "stopped",
        "error": failure,
    }


def _summary(settings: Settings, sweep: str, rows: list[Row], best: Row) -> dict[str, Any]:
    return {
        "sweep": sweep,
        "metric": settings.selection,
        "best": {name: value for name, value in best.items() if name not in ("error", "state", "seconds")},
        "first": rows[0]["score"],
        "trials": len(rows),
        "stopped": sum(row["state"] == "stopped" for row in rows),
        "failed": sum(row["state"] == "failed" for row in rows),
        "epochs": sum(row["epochs"] for row in rows),
        "trial_seconds": round(sum(row["seconds"] for row in rows), 1),
    }


def _header(summary: dict[str, Any]) -> str:
    best = summary["best"]
    return (
        f"# Best of {summary['trials']} trials of sweep {summary['sweep']}: trial {best['trial']}, {summary['metric']} "
        f"{best['score']:.4f} at epoch {best['best_epoch']} of {best['epochs']}.\n#\n"
        "#   python jobs/train.py --config THIS_FILE\n\n"
    )


def _report(
    settings: Settings, summary: dict[str, Any], rows: list[Row], curves: dict[int, tuple[list[float], list[float]]]
) -> str:
    scored = [row for row in rows if row["score"] is not None]
    ranked = sorted(scored, key=lambda row: (-row["score"], row["trial"]))
    number, score = [row["trial"] for row in scored], [row["score"] for row in scored]
    best_so_far = np.maximum.accumulate(score).tolist()
    metric = summary["metric"]
    figures = {
        "Trials in the order they were started": lines(
            {"trial": (number, score), "best so far": (number, best_so_far)}, x="trial", y=metric
        ),
        f"Learning curves of the {min(TOP, len(ranked))} best": lines(
            {f"trial {row['trial']}": curves[row["trial"]] for row in ranked[:TOP]}, x="epoch", y=metric
        ),
    }
    for name in settings.search.parameters:
        values = [float(row[name]) for row in scored]
        figures[f"{metric} by {name}"] = points({name: (values, score)}, names=[str(each) for each in number])
    return page(f"Search {summary['sweep']}", summary, figures, ranked + [row for row in rows if row["score"] is None])


def format_search(found: Artifact) -> str:
    """Return a short table of the best trials, and the command that trains the best."""
    rows = sorted(found.read_table("trials.parquet").to_pylist(), key=lambda row: (-(row["score"] or 0), row["trial"]))
    names = [name for name in rows[0] if "." in name]
    heads = [name.partition(".")[2] for name in names]
    text = [f"{'trial':>5} {found.summary['metric']:>16} {'epoch':>6} " + " ".join(f"{head:>14}" for head in heads)]
    for row in rows[:TOP]:
        score = "-" if row["score"] is None else f"{row['score']:.4f}"
        values = " ".join(f"{row[name]:>14.5g}" for name in names)
        text.append(f"{row['trial']:>5} {score:>16} {row['best_epoch'] or '-':>6} {values}")
    facts = found.summary
    text.append(f"{facts['trials']} trials, {facts['stopped']} stopped early, {facts['failed']} failed")
    text.append(f"python jobs/train.py --config {found.location('best.toml')}")
    return "\n".join(text)
