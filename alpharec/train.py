"""The training stage and the evaluation stage: Ray Train workers that share the users, checkpoints, early stop, model.

Shapes: U users of this worker, I items, T text width, D representation width.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.fs
import ray
import ray.train
import ray.train.collective
import ray.train.torch
import safetensors.torch
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from alpharec import report
from alpharec.artifacts import Artifact, Store, digest
from alpharec.baselines import BiasMargin, Contrast, IdEmbeddings, Multinomial, MultVae
from alpharec.catalog import SPLITS, Dataset, Pairs, domains_of, load_dataset, read_degrees, read_pairs
from alpharec.config import EvaluateSettings, Settings
from alpharec.estimate import run_problems
from alpharec.graph import InteractionGraph, Part, Sampler, user_range
from alpharec.model import AlphaRec, NonFiniteLossError, Objective, TextFeatures, takes_own_items, train_step
from alpharec.propagate import propagate, read_rows
from alpharec.ranking import Evaluation, Lists, evaluate, item_popularity_groups, user_activity_groups
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


Network = AlphaRec | IdEmbeddings | MultVae
MAPPED, NAMED = 2000, 25  # items on the map of an evaluation, and those whose titles are written there


class TrainingError(RuntimeError):
    """A run cannot start, go on, or end with a model; the message says what to do."""


def model_version(settings: Settings, dataset: Artifact, vectors: Artifact) -> str:
    """Return the version of the model that these settings train on this data; workers do not matter to it."""
    return digest([dataset.version, vectors.version, settings.model_dump(mode="json", include=DECIDES)])[:16]


def fit(store: Store, settings: Settings, dataset: Artifact, vectors: Artifact) -> Artifact:
    """Return the trained model of the best validation epoch, training only if the store does not have it.

    A run lives under ``training/<run>`` in the storage root. Started again under the same name it goes on from its last
    checkpoint, and ends with the numbers of a run that was never interrupted.

    Raises:
        TrainingError: the run's name belongs to other settings; the loss is not finite; workers keep failing.
    """
    version = model_version(settings, dataset, vectors)
    found = store.find("models", settings.name, version)
    if found is not None:
        return found
    run = settings.train.run or f"{settings.name}-{version}"
    _claim_run(store, run, version, settings, vectors)
    result = run_workers(store, settings, run, dataset, source_vectors(store, settings, dataset, vectors))
    if result.return_value:
        raise TrainingError(f"run {run}: {result.return_value}")
    draft = store.draft("models", settings.name, version)
    with result.checkpoint.as_directory() as folder:
        state = State.load(Path(folder))
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
            f"{settings.train.select_on}_recall@{settings.evaluate.select_k}": state.best_score,
            "seconds": round(sum(entry["seconds"] for entry in state.history), 1),
        },
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
            f"{section}.{key} was {old} and is {decides[section].get(key)}"
            for section, values in claimed["settings"].items()
            if isinstance(values, dict)
            for key, old in values.items()
            if decides[section].get(key) != old
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
    """
    train = settings.train
    # An epoch's report waits for the controller's next look at its workers, by default 2 s apart.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    connect(settings)
    memory, kinds = memory_each(train.most_workers), gpu_kinds()
    for problem in run_problems(settings, dataset.summary, vectors.summary, memory=memory, gpu_kinds=kinds):
        logger.warning("train: %s", problem)
    cpus = train.cpus_per_worker or cpus_each(train.most_workers)
    trainer = ray.train.torch.TorchTrainer(
        _worker,  # type: ignore[arg-type]  # its result is a documented part of Result
        train_loop_config={"settings": settings, "dataset": dataset, "vectors": vectors, "threads": cpus},
        scaling_config=ray.train.ScalingConfig(  # type: ignore[call-arg]  # mypy sees the V1 class
            num_workers=train.num_workers,  # type: ignore[arg-type]
            use_gpu=train.use_gpu,
            resources_per_worker={"CPU": cpus},
            elastic_resize_monitor_interval_s=train.resize_seconds,
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # mypy sees the V1 class
            name=run,
            storage_path=store.at("training"),
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
    try:
        for due in training.run(_Lookout(settings.train.checkpoint_minutes * 60)):
            _report(training, due=due)
    except NonFiniteLossError as error:
        return str(error)
    return ""


class _Lookout:
    """Says, at the same step on every worker, when a checkpoint is wanted before the epoch ends.

    That is when a node of the run was told to leave, or when the last checkpoint is ``checkpoint_s`` seconds old.
    Asking is a barrier, so it is done every two seconds or so, counted in steps.
    """

    PERIOD_S = 2.0

    def __init__(self, checkpoint_s: float) -> None:
        self.checkpoint_s, self.saved_at = checkpoint_s, time.monotonic()
        self.asked_at, self.steps, self.left = time.monotonic(), 1, 1

    def __call__(self) -> bool:
        self.left -= 1
        if self.left:
            return False
        now = time.monotonic()
        steps = min(max(1, int(self.steps * self.PERIOD_S / max(now - self.asked_at, 1e-6))), 4 * self.steps)
        wanted = ray.train.get_preemption_info() is not None or now - self.saved_at > self.checkpoint_s
        wanted, steps = ray.train.collective.broadcast_from_rank_zero((wanted, steps))
        self.saved_at = now if wanted else self.saved_at
        self.asked_at, self.steps, self.left = now, steps, steps
        return bool(wanted)


def _report(training: Training, *, due: bool) -> None:
    state, first = training.state, training.graph.part.rank == 0
    entry = {"epoch": state.epoch, "step": state.step} if state.inside_epoch else state.history[-1]
    if first:
        shown = [f"{name} {entry[name]:.4f}" for name in entry if name not in ("epoch", "step", "seconds", "workers")]
        told = f"{', '.join(shown)}, {entry['seconds']:.1f} s" if shown else "checkpoint inside an epoch"
        logger.info("train: epoch %s, %s", entry["epoch"], told)
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
    """

    epoch: int = 0
    step: int = 0
    epoch_loss: float = 0.0
    epoch_seconds: float = 0.0
    best_epoch: int = 0
    best_score: float = -1.0
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
        features = _read_features(settings, vectors, graph, model) if isinstance(model, AlphaRec) else None
        return cls(settings, graph, features, model, selection)

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
        state, score = self.state, self.selection.score(*self.represent())
        if score > state.best_score:
            state.best_epoch, state.best_score, state.waited = state.epoch, score, 0
            state.best_weights = {name: weight.detach().clone() for name, weight in self.model.state_dict().items()}
        else:
            state.waited += 1
        return {self.selection.name: score}

    @torch.no_grad()
    def represent(self) -> tuple[Tensor, Tensor]:
        """Return final representations whose dot products are scores. Shapes: user_UD [U, D], item_ID [I, D]."""
        features = self.features and self.features.divided(self.graph)
        user_UD, item_ID = self.model(self.graph, features)
        return self.objective.scale(user_UD), self.objective.scale(item_ID)

    def snapshot(self) -> State:
        """Return the state with the present weights and Adam's moments in it."""
        self.state.weights = dict(self.model.state_dict())
        moments = self.optimizer.state_dict()["state"]
        self.state.moments = {f"{index}.{name}": value for index in moments for name, value in moments[index].items()}
        return self.state

    def restore(self, state: State) -> None:
        """Go back to a snapshot."""
        self.state = state
        self.model.load_state_dict(state.weights)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in state.moments.items():
            index, moment = name.split(".")
            moments.setdefault(int(index), {})[moment] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})


def _read_features(settings: Settings, vectors: Artifact, graph: InteractionGraph, model: AlphaRec) -> TextFeatures:
    """Read this worker's features, onto the graph's device."""
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


@dataclass(frozen=True)
class Ranked:
    """Users that are ranked together over the same items: those of a worker, and of a dataset where there is a mix."""

    users: slice
    items: slice
    truth: Lists
    seen: Lists

    def to(self, device: torch.device) -> Ranked:
        """Return the same on ``device``."""
        return Ranked(self.users, self.items, self.truth.to(device), self.seen.to(device))


@dataclass(frozen=True)
class Selection:
    """The score that picks the epoch: mean Recall@K on one split, over all workers' users.

    In a mix of datasets a user's items are those of its own dataset.
    """

    name: str
    ranked: list[Ranked]
    part: Part
    settings: EvaluateSettings

    @classmethod
    def build(cls, settings: Settings, pairs: Mapping[str, Pairs], graph: InteractionGraph) -> Selection:
        """Take this worker's users from the splits that ``masked_splits`` names, and the one that picks the epoch."""
        split, chosen = settings.train.select_on, settings.evaluate
        own, ranked = (graph.first_user, graph.first_user + graph.num_local_users), []
        users = [*graph.domain_users.tolist(), graph.num_users]
        for domain, (item, size) in enumerate(
            zip(graph.domain_items.tolist(), graph.domain_sizes.tolist(), strict=True)
        ):
            first, end = (min(max(user, own[0]), own[1]) for user in users[domain : domain + 2])
            truth, seen = truth_and_seen(pairs, split, chosen, first=first, count=end - first, first_item=item)
            ranked.append(Ranked(slice(first - own[0], end - own[0]), slice(item, item + size), truth, seen))
        return cls(f"{split}_recall@{chosen.select_k}", ranked, graph.part, chosen).to(graph.items.device)

    def to(self, device: torch.device) -> Selection:
        """Return the same with its lists on ``device``."""
        return replace(self, ranked=[part.to(device) for part in self.ranked])

    def score(self, user_UD: Tensor, item_ID: Tensor) -> float:
        """Return the mean over all users with truth. Shapes: user_UD [U, D], item_ID [I, D]."""
        k, size, total = self.settings.select_k, self.settings.block_size, torch.zeros(2, dtype=torch.float64)
        for part in self.ranked:
            if len(part.truth.items):
                sides = user_UD[part.users], item_ID[part.items]
                found = evaluate(*sides, truth=part.truth, seen=part.seen, ks=(k,), block_size=size)
                recalls = found.values[f"recall@{k}"]
                total += torch.tensor([float(recalls.sum()), len(recalls)], dtype=torch.float64)
        total = self.part.sum(total.to(user_UD.device))
        return float(total[0] / total[1])


def evaluate_model(store: Store, settings: Settings, dataset: Artifact, vectors: Artifact, model: Artifact) -> Artifact:
    """Return a model's evaluation on valid and test, beside most-popular; ``per_user.parquet`` has each user's values.

    ``metrics.json``: means by split; test also by user activity and, as ``recall@K/group``, by item popularity.
    ``report.html``: the same as figures, the learning curve, and a map of the items before and after training.
    """
    chosen = settings.evaluate.model_dump(mode="json", exclude={"block_size", "model"})
    version = digest([model.version, dataset.version, vectors.version, chosen])[:16]
    found = store.find("evaluations", settings.name, version)
    if found is not None:
        return found
    _check_reads(model, vectors, dataset)
    data, item_IT = load_dataset(dataset), torch.from_numpy(load_vectors(vectors)).float()
    user_UD, item_ID = represent(data, item_IT, model)
    metrics, test = measure(data, user_UD, item_ID, settings.evaluate)
    metrics["baselines"] = {"most-popular": measure(data, *popularity(data), settings.evaluate)[0]["test"]}
    draft = store.draft("evaluations", settings.name, version)
    draft.write_json("metrics.json", metrics)
    draft.write_bytes("report.html", _evaluation_page(data, model, metrics, item_IT, item_ID).encode())
    user_ids = data.user_ids.take(pa.array(test.users.numpy()))
    columns = {name: values.float().numpy() for name, values in test.values.items()}
    draft.write_table("per_user.parquet", pa.table({"user_id": user_ids, **columns}))
    return draft.commit(
        settings=settings.model_dump(mode="json", include={"name", "evaluate"}),
        inputs={"dataset": dataset, "vectors": vectors, "model": model},
        summary=metrics["test"],
    )


def _evaluation_page(data: Dataset, model: Artifact, metrics: dict[str, Any], item_IT: Tensor, item_ID: Tensor) -> str:
    """Return figures of an evaluation. Shapes: title vectors item_IT [I, T], representations item_ID [I, D]."""
    history, test = model.read_json("history.json"), metrics["test"]
    select = next(name for name in model.summary if "_recall@" in name)
    recall = f"recall@{select.rpartition('@')[2]}"
    figures = {}
    for name in ("loss", select):
        entries = [entry for entry in history if name in entry]
        curve = [entry["epoch"] for entry in entries], [entry[name] for entry in entries]
        if len(entries) > 1:
            figures[f"{name} by epoch"] = report.lines({name: curve}, x="epoch", y=name)
    activity = metrics.get("test_by_user_activity", {})
    if activity:
        values = [found.get(recall, 0.0) for found in activity.values()]
        figures[f"test {recall} by the user's train interactions"] = report.bars(list(activity), {"": values}, y=recall)
    popularity = {name.partition("/")[2]: test[name] for name in test if name.startswith(f"{recall}/")}
    if popularity:
        figures[f"test {recall} by the item's popularity"] = report.bars(
            list(popularity), {"": list(popularity.values())}, y=recall
        )
    figures["items, most popular named: first two principal components"] = _map(data, item_IT, item_ID)
    baselines = metrics["baselines"]
    shown = [name for name in test if name.partition("@")[0] in ("recall", "ndcg", "hr") and "/" not in name]
    rows = [
        {"model": name} | {metric: found[metric] for metric in shown if metric in found}
        for name, found in ({f"{model.name} {model.version}": test} | baselines).items()
    ]
    return report.page(f"Evaluation of {model.name} {model.version}", metrics, figures, rows)


def _map(data: Dataset, item_IT: Tensor, item_ID: Tensor) -> Figure:
    """Return the most popular items in the plane, by their title vectors and by their representations."""
    order = torch.argsort(popularity(data)[1][:, 0], descending=True, stable=True)[:MAPPED]
    panels = {}
    for title, rows in (("title vectors", item_IT[order]), ("representations", item_ID[order])):
        centred = (rows - rows.mean(0)).double()
        left, size, _ = torch.linalg.svd(centred, full_matrices=False)
        place = F.pad(left[:, :2] * size[:2], (0, max(0, 2 - left.shape[1])))
        panels[title] = place[:, 0].tolist(), place[:, 1].tolist()
    return report.points(panels, names=[str(data.titles[item]) for item in order[:NAMED].tolist()])


def find_model(store: Store, settings: Settings) -> Artifact:
    """Return the trained model that ``evaluate.model`` names.

    Raises:
        TrainingError: there is none.
    """
    name, _, version = settings.evaluate.model.partition("/")
    found = store.find("models", name, version) if name and version else None
    if found is None:
        raise TrainingError(
            f"{store.uri('models')}: no such model (got evaluate.model = {settings.evaluate.model}, expected "
            "NAME/VERSION); jobs/train.py prints the place of the one it makes"
        )
    return found


def _check_reads(model: Artifact, vectors: Artifact, dataset: Artifact) -> None:
    """Refuse a model that reads other vectors, or that knows only the users and items it was trained on."""
    own, given = model.summary["fingerprint"], vectors.summary["fingerprint"]
    if own != given:
        raise TrainingError(
            f"{model.uri}: was trained on vectors of another encoder (got {json.dumps(given, sort_keys=True)}, "
            f"expected {json.dumps(own, sort_keys=True)}); set the encoder settings as the model's were"
        )
    trained_on = model.manifest["inputs"]["dataset"]
    kind = model.settings["model"]["kind"]
    if kind != "alpharec" and trained_on != dataset.uri:
        raise TrainingError(
            f"{model.uri}: is of model.kind = {kind}, which knows only {trained_on} (got {dataset.uri}); "
            "zero-shot needs a model.kind = alpharec"
        )


def measure(
    dataset: Dataset, user_UD: Tensor, item_ID: Tensor, settings: EvaluateSettings
) -> tuple[dict[str, Any], Evaluation]:
    """Return metrics by split and group, and test's per-user values. Shapes: user_UD [U, D], item_ID [I, D].

    In a mix every user is ranked over the items of its own dataset; each dataset has its metrics under ``domains``.
    """
    if not dataset.domains:
        metrics, found = _measure(dataset, user_UD, item_ID, settings)
        return metrics, found["test"]
    metrics, parts = {"domains": {}}, []
    for domain in dataset.domains:
        sides = user_UD[domain.users], item_ID[domain.items]
        metrics["domains"][domain.name], found = _measure(dataset.of(domain), *sides, settings)
        parts.append({name: Evaluation(of.users + domain.first_user, of.values) for name, of in found.items()})
    joined = {split: _join([part[split] for part in parts]) for split in ("valid", "test")}
    return metrics | {split: found.means() for split, found in joined.items()}, joined["test"]


def _join(found: list[Evaluation]) -> Evaluation:
    """Put evaluations of different users together, with the metrics that all of them have."""
    names = [name for name in found[0].values if all(name in other.values for other in found)]
    values = {name: torch.cat([part.values[name] for part in found]) for name in names}
    return Evaluation(torch.cat([part.users for part in found]), values)


def _measure(
    dataset: Dataset, user_UD: Tensor, item_ID: Tensor, settings: EvaluateSettings
) -> tuple[dict[str, Any], dict[str, Evaluation]]:
    train = _lists([dataset.train], 0, dataset.num_users)
    items, users = item_popularity_groups(train, dataset.num_items), user_activity_groups(train)
    found = {}
    for split in ("valid", "test"):
        truth, seen = truth_and_seen(dataset.splits, split, settings, count=dataset.num_users)
        found[split] = evaluate(
            user_UD, item_ID, truth=truth, seen=seen, ks=settings.ks, block_size=settings.block_size, item_groups=items
        )
    test = found["test"]
    groups = {users.labels[group]: means for group, means in test.by_group(users.index[test.users]).items()}
    return {"valid": found["valid"].means(), "test": test.means(), "test_by_user_activity": groups}, found


@torch.no_grad()
def represent(dataset: Dataset, item_IT: Tensor, model: Artifact) -> tuple[Tensor, Tensor]:
    """Return a trained model's representations, whose dot products are scores. Shapes: -> [U, D], [I, D]."""
    network, objective = load_model(model.settings, model.read_tensors("model.safetensors"))
    graph = build_graph(dataset)
    user_UD, item_ID = network(graph, network.features(item_IT, graph))
    return objective.scale(user_UD), objective.scale(item_ID)


def popularity(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Return representations whose scores are the items' train interactions. Shapes: -> [U, 1], [I, 1]."""
    count_I = torch.bincount(torch.from_numpy(dataset.train.items), minlength=dataset.num_items)
    return torch.ones(dataset.num_users, 1), count_I[:, None].float()


def build_graph(dataset: Dataset) -> InteractionGraph:
    """Return the whole train graph of a dataset."""
    return InteractionGraph(
        torch.from_numpy(dataset.train.users),
        torch.from_numpy(dataset.train.items),
        num_users=dataset.num_users,
        num_items=dataset.num_items,
        domains=[(domain.first_user, domain.first_item) for domain in dataset.domains],
    )


def build_model(settings: Settings, text_width: int, num_users: int = 0, num_items: int = 0) -> Network:
    """Return a model with fresh weights; all but AlphaRec need the sizes of the graph."""
    model = settings.model
    if model.kind == "multvae":
        hidden = model.resolve_hidden_width(text_width)
        return MultVae(num_items, hidden_width=hidden, width=model.width, seed=settings.seed)
    common: dict[str, Any] = {
        "width": model.width,
        "num_layers": model.num_layers,
        "layer_0_weight": model.layer_0_weight,
        "seed": settings.seed,
    }
    if model.kind == "id":
        return IdEmbeddings(num_users, num_items, popularity=settings.train.loss == "bc", **common)
    return AlphaRec(
        text_width,
        hidden_width=model.resolve_hidden_width(text_width),
        projector=model.projector,
        propagate_first=model.order == "propagate-first",
        **common,
    )


def build_objective(settings: Settings) -> Objective:
    """Return the loss of a run, and how its model scores."""
    train, contrast = settings.train, settings.contrast
    if train.loss == "multinomial":
        return Multinomial(train.loss, train.temperature, kl_weight=train.kl_weight)
    if train.loss == "bc":
        return BiasMargin("infonce", train.temperature, bias_weight=train.bias_weight)
    if contrast.kind == "none":
        return Objective(train.loss, train.temperature)
    made_by = {"dropped": contrast.dropped} if contrast.kind == "dropped-edges" else {"noise": contrast.noise}
    return Contrast(
        train.loss, train.temperature, weight=contrast.weight, contrast_temperature=contrast.temperature, **made_by
    )


def load_model(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> tuple[Network, Objective]:
    """Return a trained model by the settings it was trained with."""
    trained = Settings.model_validate(settings)
    text_width = weights["first.weight"].shape[1] if "first.weight" in weights else 0
    num_users = len(weights.get("user_UD", ()))
    num_items = next((len(weights[name]) for name in ("item_ID", "output_IH") if name in weights), 0)
    network = build_model(trained, text_width, num_users, num_items)
    network.load_state_dict(weights)
    return network, build_objective(trained)


def truth_and_seen(
    pairs: Mapping[str, Pairs],
    split: str,
    settings: EvaluateSettings,
    *,
    first: int = 0,
    count: int,
    first_item: int = 0,
) -> tuple[Lists, Lists]:
    """Return a split's truth and the items masked when ranking for it, for users first..first+count-1.

    Items are counted from ``first_item``.
    """
    masked = [pairs[name] for name in masked_splits(split, settings)]
    return _lists([pairs[split]], first, count, first_item), _lists(masked, first, count, first_item)


def masked_splits(split: str, settings: EvaluateSettings) -> list[str]:
    """Name the splits whose items are masked when ranking for one.

    Test masks train and valid. Valid masks train; ``valid_mask = train+test`` also test, as the official code does.
    """
    both = split == "test" or settings.valid_mask == "train+test"
    return [name for name in SPLITS if name != split] if both else ["train"]


def _lists(splits: list[Pairs], first: int, count: int, first_item: int = 0) -> Lists:
    users = torch.cat([torch.from_numpy(pairs.users) for pairs in splits]) - first
    items = torch.cat([torch.from_numpy(pairs.items) for pairs in splits]) - first_item
    mine = (users >= 0) & (users < count)
    return Lists.from_pairs(users[mine], items[mine], count)
