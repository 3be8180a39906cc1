"""The training stage: Ray Train workers that share the users, checkpoints, early stop, the model of the best epoch.

Shapes: U users of this worker, I items, T text width, D representation width.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.fs
import ray
import ray.train
import ray.train.collective
import ray.train.torch
import safetensors.torch
import torch
from torch import Tensor

from alpharec.artifacts import Artifact, Store, digest
from alpharec.baselines import ItemWeights
from alpharec.config import Settings
from alpharec.data.dataset import domains_of, load_dataset, read_degrees, read_pairs
from alpharec.estimate import run_problems
from alpharec.evaluation import Selection, masked_splits, named_model
from alpharec.graph import InteractionGraph, Part, Sampler, user_range
from alpharec.model import AlphaRec, NonFiniteLossError, TextFeatures, takes_own_items, train_step
from alpharec.networks import Network, build_model, build_objective, score
from alpharec.propagate import propagate, read_rows
from alpharec.ranking import Scored
from alpharec.runtime import connect, cpus_each, gpu_kinds, memory_each, show_progress
from alpharec.vectors import load_vectors

logger = logging.getLogger(__name__)

# What decides the numbers: anything else may change between the start of a run and its resumption.
DECIDES: Any = {
    "seed": True,
    "model": True,
    "contrast": True,
    "train": {
        "loss", "temperature", "bias_weight", "kl_weight", "num_negatives", "users_drawn", "batch_size",
        "learning_rate", "precision", "max_epochs", "evaluate_every", "patience", "select_on",
    },
    "evaluate": {"select_k", "valid_mask"},
}  # fmt: skip

NO_SCORE = -1.0  # of an epoch that was not validated; a Recall is 0 or more


class TrainingError(RuntimeError):
    """A run cannot start, go on, or end with a model; the message says what to do."""


def model_version(settings: Settings, dataset: Artifact, vectors: Artifact) -> str:
    """Return the version of the model that these settings train on this data; workers do not matter to it."""
    return digest([dataset.version, vectors.version, settings.model_dump(mode="json", include=DECIDES)])[:16]


def fit(store: Store, settings: Settings, dataset: Artifact, vectors: Artifact) -> Artifact:
    """Return the trained model of the best validation epoch, training only if the store does not have it.

    Where no interactions are there to validate on, it is the model of the last epoch.

    A run lives under ``training/<run>`` in the storage root. Started again under the same name it goes on from its last
    checkpoint, and ends with the numbers of a run that was never interrupted.

    Raises:
        TrainingError: the run's name belongs to other settings; a user has no negative; the loss is not finite; workers
            keep failing. Besides what ``settle_epochs`` raises.
    """
    settings = settle_epochs(store, settings, dataset)
    version = model_version(settings, dataset, vectors)
    found = store.find("models", settings.name, version)
    if found is not None:
        return found
    check_negatives(dataset)
    if not dataset.summary[settings.train.select_on]:
        logger.info("train: no validation part, the model of epoch %s is kept", settings.train.max_epochs)
    run = settings.train.run or f"{settings.name}-{version}"
    _claim_run(store, run, version, settings, vectors)
    result = run_workers(store, settings, run, dataset, source_vectors(store, settings, dataset, vectors))
    if result.return_value:
        raise TrainingError(f"run {run}: {result.return_value}")
    with result.checkpoint.as_directory() as folder:
        return commit_model(store, settings, dataset, vectors, State.load(Path(folder)), run=run)


def settle_epochs(store: Store, settings: Settings, dataset: Artifact) -> Settings:
    """Return the settings with the number of epochs in ``train.max_epochs``, taken from ``train.epochs_from`` if set.

    Raises:
        TrainingError: the split that picks the epoch is empty, and the number of epochs is not given either.
        EvaluationError: ``train.epochs_from`` names no model.
    """
    train = settings.train
    validates = dataset.summary[train.select_on] > 0
    if train.select_on == "test" and not validates:
        raise TrainingError(
            f"{dataset.uri}: train.select_on = test picks the epoch on test interactions (got none); pass "
            "--train.select-on valid"
        )
    if train.max_epochs == 0:
        return settings
    if train.epochs_from:
        model = named_model(store, train.epochs_from, setting="train.epochs_from")
        epochs = model.summary["best_epoch"]
        if epochs == 0:
            raise TrainingError(
                f"{model.uri}: was never trained, so it gives no number of epochs (got train.epochs_from = "
                f"{train.epochs_from}); pass --train.epochs-from of a trained model, or --train.max-epochs N"
            )
        return settings.model_copy(update={"train": train.model_copy(update={"max_epochs": epochs})})
    if not validates and "max_epochs" not in train.model_fields_set:
        raise TrainingError(
            f"{dataset.uri}: no valid interactions pick the epoch, so the number of epochs must be given (got neither "
            "train.max_epochs nor train.epochs_from); pass --train.max-epochs N, or --train.epochs-from NAME/VERSION "
            "of a model that was trained with a validation part"
        )
    return settings


def commit_model(
    store: Store, settings: Settings, dataset: Artifact, vectors: Artifact, state: State, *, run: str
) -> Artifact:
    """Return the model of a run that has ended: the weights of its best epoch, and its history.

    ``settings``: with the number of epochs settled, see ``settle_epochs``.
    """
    draft = store.draft("models", settings.name, model_version(settings, dataset, vectors))
    draft.write_tensors("model.safetensors", state.best_weights)
    draft.write_json("history.json", state.history)
    return draft.commit(
        settings=settings.model_dump(mode="json", exclude={"recommend", "ray", "storage"}),
        inputs={"dataset": dataset, "vectors": vectors},
        summary={
            "run": run,
            "text_width": vectors.summary["width"],
            "fingerprint": vectors.summary["fingerprint"],
            "best_epoch": state.best_epoch,
            "epochs": state.epoch,
            **({settings.selection: state.best_score} if state.best_score != NO_SCORE else {}),
            "seconds": round(sum(entry["seconds"] for entry in state.history), 1),
        },
    )


def check_negatives(dataset: Artifact) -> None:
    """Refuse users for whom no negative can be drawn, before any worker starts.

    Raises: ``TrainingError`` names the first one.
    """
    degree_U, domains = read_degrees(dataset), domains_of(dataset)
    own = np.full(len(degree_U), dataset.summary["items"])
    for domain in domains:
        own[domain.users] = domain.items.stop - domain.items.start
    sated = np.flatnonzero(degree_U == own)
    if len(sated):
        raise TrainingError(
            f"{dataset.uri}: {len(sated)} users have every item in train, so no negative can be drawn for them (got "
            f"user {load_dataset(dataset).user_ids[sated[0]]}); leave them out, or hold more of theirs out of train"
        )


def source_vectors(store: Store, settings: Settings, dataset: Artifact, vectors: Artifact) -> Artifact:
    """Return what the model reads: the title vectors, propagated where it wants them so."""
    propagates_first = settings.model.order == "propagate-first"
    return propagate(store, settings, dataset, vectors) if propagates_first else vectors


def _claim_run(store: Store, run: str, version: str, settings: Settings, vectors: Artifact) -> None:
    """Note what a run's name stands for, or check that it still stands for the same."""
    place = ("training", run, "run.json")
    decides = settings.model_dump(mode="json", include=DECIDES) | {"encoder": vectors.summary["fingerprint"]}
    if not store.exists(*place):
        store.write(json.dumps({"version": version, "settings": decides}, indent=1).encode(), *place)
        return
    claimed = json.loads(store.read(*place))
    if claimed["version"] != version:
        changed = [
            f"{section}.{key} was {values.get(key)} and is {decides[section].get(key)}"
            for section, values in claimed["settings"].items()
            if isinstance(values, dict)
            for key in sorted(values.keys() | decides[section].keys())
            if decides[section].get(key) != values.get(key)
        ]
        raise TrainingError(
            f"run {run} was started with other inputs ({'; '.join(changed) or 'another seed, dataset or vectors'}); "
            f"pass another --train.run, or delete {store.uri('training', run)}"
        )


def run_workers(
    store: Store,
    settings: Settings,
    run: str,
    dataset: Artifact,
    vectors: Artifact,
    callbacks: Sequence[ray.train.UserCallback] = (),
) -> Any:
    """Train on Ray Train and return its result; ``vectors``: ``source_vectors``.

    Raises:
        TrainingError: workers keep failing.
        ArtifactError: the run's folder would not lie in the store.
    """
    train, place = settings.train, store.at("training", run)  # a place that is refused is refused before Ray writes
    # An epoch's report waits for the controller's next look at its workers, by default 2 s apart.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    connect(settings)
    memory, kinds = memory_each(train.fewest_workers), gpu_kinds()
    for problem in run_problems(settings, dataset.summary, vectors.summary, memory=memory, gpu_kinds=kinds):
        logger.warning("train: %s", problem)
    cpus = train.cpus_per_worker or cpus_each(train.most_workers)
    trainer = ray.train.torch.TorchTrainer(
        _worker,  # type: ignore[arg-type]  # its result is a documented part of Result
        train_loop_config={"settings": settings, "dataset": dataset, "vectors": vectors, "threads": cpus},
        # Ray's own choice with GPUs is nccl alone, but the graph is put together, and degrees are summed, on the host.
        torch_config=ray.train.torch.TorchConfig(backend="cpu:gloo,cuda:nccl" if train.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(  # type: ignore[call-arg]  # mypy sees the V1 class
            num_workers=train.num_workers,  # type: ignore[arg-type]
            use_gpu=train.use_gpu,
            resources_per_worker={"CPU": cpus},
            elastic_resize_monitor_interval_s=train.resize_seconds,
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # mypy sees the V1 class
            name=run,
            storage_path=os.path.dirname(place),
            storage_filesystem=pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(store.fs)),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(max_failures=train.max_failures),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            callbacks=list(callbacks),  # type: ignore[arg-type]
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        causes = getattr(error, "worker_failures", {}) or {0: error}
        cause = next(iter(causes.values()))
        raise TrainingError(f"run {run}: {cause}; start it again to go on from its last checkpoint") from error
    return result


def _worker(config: dict[str, Any]) -> str:
    """Train in one Ray Train worker: load, resume, report a checkpoint whenever one is due; return why it cannot end.

    A loss that is not finite is returned, not raised: the same steps would only give it again, whatever the retries.
    """
    settings: Settings = config["settings"]
    torch.set_num_threads(config["threads"])
    show_progress()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    warnings.filterwarnings("ignore", message=".*is deprecated. Please use `torch.distributed")  # new in 2.13
    context = ray.train.get_context()
    training = Training.build(
        settings,
        config["dataset"],
        config["vectors"],
        part=Part(context.get_world_rank(), context.get_world_size()),
        device=ray.train.torch.get_device(),
    )
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            training.restore(State.load(Path(folder)))
        state = training.state
        logger.info("train: going on after epoch %s, step %s", state.epoch, state.step)
    lookout = _Lookout(settings.train.checkpoint_minutes * 60)
    try:
        for due in training.run(lookout):
            _report(training, due=due)
            if due:
                lookout.saved_at = time.monotonic()
    except NonFiniteLossError as error:
        return str(error)
    return ""


class _Lookout:
    """Says, at the same step on every worker, when a checkpoint is wanted before the epoch ends.

    That is once when a node of the run is told to leave, and when the last checkpoint is ``checkpoint_s`` seconds old.
    Asking is a barrier, so it is done every two seconds or so, counted in steps.
    """

    PERIOD_S = 2.0

    def __init__(self, checkpoint_s: float) -> None:
        self.checkpoint_s, self.saved_at = checkpoint_s, time.monotonic()
        self.asked_at, self.steps, self.left = time.monotonic(), 1, 1
        self.answered: ray.train.PreemptionInfo | None = None

    def __call__(self) -> bool:
        self.left -= 1
        if self.left:
            return False
        now = time.monotonic()
        steps = min(max(1, int(self.steps * self.PERIOD_S / max(now - self.asked_at, 1e-6))), 4 * self.steps)
        notice = ray.train.get_preemption_info()
        wanted = notice not in (None, self.answered) or now - self.saved_at > self.checkpoint_s
        wanted, steps = ray.train.collective.broadcast_from_rank_zero((wanted, steps))
        self.answered = notice
        self.asked_at, self.steps, self.left = now, steps, steps
        return bool(wanted)


def _report(training: Training, *, due: bool) -> None:
    state, first = training.state, training.graph.part.rank == 0
    entry = {"epoch": state.epoch, "step": state.step} if state.inside_epoch else state.history[-1]
    if first:
        shown = [f"{name} {entry[name]:.4f}" for name in entry if name not in ("epoch", "step", "seconds", "workers")]
        told = f"{', '.join(shown)}, {entry['seconds']:.1f} s" if shown else "checkpoint inside an epoch"
        logger.info("train: epoch %s, %s", entry["epoch"], told)
    entry = entry | {"curve": training.curve}
    if not due or not first:
        ray.train.report(entry)
        return
    with tempfile.TemporaryDirectory() as folder:
        training.snapshot().save(Path(folder))
        ray.train.report(entry, checkpoint=ray.train.Checkpoint.from_directory(folder))


@dataclass
class State:
    """Everything a run needs to go on: weights, Adam's moments, the best weights so far, and where it stands.

    Attributes:
        epoch, step: how many are done; ``step`` counts over all epochs.
        epoch_loss, epoch_seconds: sums over the steps done of an epoch that is not done.
        best_epoch, best_score: of the validated epoch whose weights are kept; without a validation part of the newest,
            without a score.
        waited: validations since then.
    """

    epoch: int = 0
    step: int = 0
    epoch_loss: float = 0.0
    epoch_seconds: float = 0.0
    best_epoch: int = 0
    best_score: float = NO_SCORE
    waited: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)

    TENSORS: ClassVar = ("weights", "best_weights", "moments")

    @property
    def inside_epoch(self) -> bool:
        return self.epoch_seconds > 0

    def save(self, folder: Path) -> None:
        """Write safetensors files and ``state.json``."""
        for name in self.TENSORS:
            safetensors.torch.save_file(getattr(self, name), folder / f"{name}.safetensors")
        plain = {name: value for name, value in vars(self).items() if name not in self.TENSORS}
        (folder / "state.json").write_text(json.dumps(plain))

    @classmethod
    def load(cls, folder: Path) -> State:
        """Read what ``save`` wrote."""
        tensors: Any = {name: safetensors.torch.load_file(folder / f"{name}.safetensors") for name in cls.TENSORS}
        return cls(**json.loads((folder / "state.json").read_text()), **tensors)


class Training:
    """One worker's share of a run: the loop over epochs, without Ray."""

    def __init__(
        self,
        settings: Settings,
        graph: InteractionGraph,
        features: TextFeatures | None,
        model: Network,
        selection: Selection,
    ) -> None:
        self.settings, self.graph, self.features, self.model, self.selection = (
            settings,
            graph,
            features,
            model,
            selection,
        )
        train = settings.train
        self.objective = build_objective(settings)
        self.sampler = Sampler(
            graph,
            settings.seed,
            train.batch_size,
            train.num_negatives,
            at_once=train.scored_at_once,
            by_interactions=train.users_drawn == "by-interactions",
        )
        self.optimizer = torch.optim.Adam(model.parameters(), lr=train.learning_rate)
        self.state = State()

    @classmethod
    def build(
        cls,
        settings: Settings,
        dataset: Artifact,
        vectors: Artifact,
        *,
        part: Part = Part(),
        device: torch.device = torch.device("cpu"),
    ) -> Training:
        """Set a run up, reading of the artifacts only what this worker works on.

        ``vectors``: title vectors, or with ``model.order = propagate-first`` what ``propagate`` made of them.
        """
        degree = torch.from_numpy(read_degrees(dataset))
        first, last = user_range(degree, part)
        names = {"train", settings.train.select_on, *masked_splits(settings.train.select_on, settings.evaluate)}
        pairs = {name: read_pairs(dataset, name, first, last) for name in names}
        graph = InteractionGraph(
            torch.from_numpy(pairs["train"].users),
            torch.from_numpy(pairs["train"].items),
            num_users=dataset.summary["users"],
            num_items=dataset.summary["items"],
            part=part,
            user_degree=degree,
            domains=[(domain.first_user, domain.first_item) for domain in domains_of(dataset)],
        ).to(device)
        selection = Selection.build(settings, pairs, graph)
        model = build_model(settings, vectors.summary["width"], graph.num_users, graph.num_items).to(device)
        features = read_features(settings, vectors, graph, model) if isinstance(model, AlphaRec) else None
        if isinstance(model, ItemWeights):
            model.solve(graph)
        return cls(settings, graph, features, model, selection)

    @property
    def curve(self) -> tuple[tuple[int, float], ...]:
        """The validations so far: epoch and score."""
        name = self.selection.name
        return tuple((entry["epoch"], entry[name]) for entry in self.state.history if name in entry)

    def run(self, wants_checkpoint: Callable[[], bool] = lambda: False) -> Iterator[bool]:
        """Train to the end, yielding after each epoch whether a checkpoint is due.

        ``wants_checkpoint`` is asked after every step; where it says so, True is yielded inside the epoch.
        """
        train, state = self.settings.train, self.state
        if train.max_epochs == 0:
            state.history = [
                {"epoch": 0, "step": 0, "seconds": 0.0, "workers": self.graph.part.size} | self._validate()
            ]
            yield True
        while state.epoch < train.max_epochs and state.waited < train.patience:
            while self._take_step():
                if wants_checkpoint():
                    yield True
            entry = self._end_epoch()
            last = state.epoch == train.max_epochs
            if state.epoch % train.evaluate_every == 0 or last:
                entry |= self._validate()
            state.history.append(entry)
            stops = last or state.waited >= train.patience
            yield stops or state.epoch % train.checkpoint_every == 0

    def _take_step(self) -> bool:
        """Take the next step; return whether the epoch has more."""
        started = time.monotonic()
        self.state.epoch_loss += self.step()
        self.state.epoch_seconds += time.monotonic() - started
        return self.state.step % self.sampler.steps_per_epoch != 0

    def _end_epoch(self) -> dict[str, Any]:
        state = self.state
        state.epoch += 1
        loss, seconds = state.epoch_loss / self.sampler.steps_per_epoch, round(state.epoch_seconds, 3)
        state.epoch_loss = state.epoch_seconds = 0.0
        workers = self.graph.part.size
        return {"epoch": state.epoch, "step": state.step, "loss": loss, "seconds": seconds, "workers": workers}

    def step(self) -> float:
        """Take the next optimiser step; return the mean loss over all workers."""
        loss = train_step(self.model, self.optimizer, self.features, self.sampler, self.state.step, self.objective)
        self.state.step += 1
        return loss

    def _validate(self) -> dict[str, float]:
        """Keep the weights if their score is the best so far. Without a validation part the newest are kept."""
        state, validates = self.state, self.selection.num_users > 0
        recall = self.selection.score(self.scored()) if validates else NO_SCORE
        if recall > state.best_score or not validates:
            state.best_epoch, state.best_score, state.waited = state.epoch, recall, 0
            weights = self.model.state_dict()
            trains = self.settings.train.max_epochs > 0
            state.best_weights = {name: weight.clone() if trains else weight for name, weight in weights.items()}
        else:
            state.waited += 1
        return {self.selection.name: recall} if validates else {}

    def scored(self) -> Scored:
        """Return what the worker's users and all items are ranked by, as ``networks.score`` does."""
        return score(self.model, self.objective, self.graph, self.features and self.features.divided(self.graph))

    def snapshot(self) -> State:
        """Return the state with the present weights and Adam's moments in it, as far as something is trained."""
        self.state.weights = dict(self.model.state_dict()) if self.settings.train.max_epochs else {}
        moments = self.optimizer.state_dict()["state"]
        self.state.moments = {f"{index}.{name}": value for index in moments for name, value in moments[index].items()}
        return self.state

    def restore(self, state: State) -> None:
        """Go back to a snapshot."""
        self.state = state
        if state.weights:
            self.model.load_state_dict(state.weights)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in state.moments.items():
            index, moment = name.split(".")
            moments.setdefault(int(index), {})[moment] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})


def read_features(settings: Settings, vectors: Artifact, graph: InteractionGraph, model: AlphaRec) -> TextFeatures:
    """Read this worker's features, as the model reads them, onto the graph's device."""
    train, device = settings.train, graph.items.device
    precision = getattr(torch, train.precision)
    share = graph.part.rows(graph.num_items)
    if not model.propagate_first:
        item_ST = torch.from_numpy(load_vectors(vectors, share)).float()
        return model.features(item_ST.to(device), graph, precision=precision)
    whole = takes_own_items(train.batch_size, train.num_negatives, graph.num_items)
    items = range(graph.num_items) if whole else share
    users = range(graph.first_user, graph.first_user + graph.num_local_users)
    item_ST, user_UT = (
        torch.from_numpy(read_rows(vectors, side, rows.start, rows.stop)).to(device, precision)
        for side, rows in (("items", items), ("users", users))
    )
    return TextFeatures(item_ST, user_UT, whole)
