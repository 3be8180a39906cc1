"""The evaluation stage: a trained model ranked on valid and test, by split, group and user; and the score of an epoch.

Shapes: U users of this worker, I items, T text width, D representation width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from alpharec import report
from alpharec.artifacts import Artifact, Store, digest
from alpharec.config import EvaluateSettings, Settings
from alpharec.data.dataset import SPLITS, Dataset, Pairs, load_dataset
from alpharec.graph import InteractionGraph, Part
from alpharec.networks import build_graph, load_model, score
from alpharec.ranking import (
    Evaluation,
    Lists,
    Scored,
    Scores,
    evaluate,
    item_popularity_groups,
    restrict,
    sizes_of,
    user_activity_groups,
)
from alpharec.vectors import load_vectors

MEASURED = ("valid", "test")  # splits that an evaluation ranks for
MAPPED, NAMED = 2000, 25  # items on the map of an evaluation, and those whose titles are written there


class EvaluationError(RuntimeError):
    """A model cannot be evaluated on this data; the message says what to do."""


# ---------------------------------------------------------------- the evaluation of a model


def evaluate_model(store: Store, settings: Settings, dataset: Artifact, vectors: Artifact, model: Artifact) -> Artifact:
    """Return a model's evaluation on valid and test, beside most-popular; ``per_user.parquet`` has each user's values.

    ``metrics.json``: means by split; test also by user activity and, as ``recall@K/group``, by item popularity. A split
    without interactions has no means, and is named under ``not_measured``.
    ``report.html``: the same as figures, the learning curve, and a map of the items before and after training.
    """
    chosen = settings.evaluate.model_dump(mode="json", exclude={"block_size", "model"})
    version = digest([model.version, dataset.version, vectors.version, chosen])[:16]
    found = store.find("evaluations", settings.name, version)
    if found is not None:
        return found
    check_reads(model, vectors, dataset)
    data, item_IT = load_dataset(dataset), torch.from_numpy(load_vectors(vectors)).float()
    scored = scored_by(model, data, item_IT)
    metrics, test = measure(data, scored, settings.evaluate)
    popular, _ = measure(data, popularity(data), settings.evaluate)
    metrics["baselines"] = {"most-popular": popular["test"]} if "test" in popular else {}
    draft = store.draft("evaluations", settings.name, version)
    draft.write_json("metrics.json", metrics)
    maps = {"title vectors": item_IT} | ({} if isinstance(scored, Scores) else {"representations": scored[1]})
    page = _evaluation_page(data, model, metrics, settings.evaluate.select_k, maps)
    draft.write_bytes("report.html", page.encode())
    user_ids = data.user_ids.take(pa.array(test.users.numpy()))
    columns = {name: values.float().numpy() for name, values in test.values.items()}
    draft.write_table("per_user.parquet", pa.table({"user_id": user_ids, **columns}))
    return draft.commit(
        settings=settings.model_dump(mode="json", include={"name", "evaluate"}),
        inputs={"dataset": dataset, "vectors": vectors, "model": model},
        summary=metrics["test"] if "test" in metrics else metrics["not_measured"],
    )


def _evaluation_page(
    data: Dataset, model: Artifact, metrics: dict[str, Any], k: int, maps: Mapping[str, Tensor]
) -> str:
    """Return figures of an evaluation, groups by Recall@k, and a map of the items by each of ``maps``, [I, any]."""
    history, test = model.read_json("history.json"), metrics.get("test", {})
    recall = f"recall@{k}"
    figures = {}
    for name in ("loss", *selection_of(model)):
        entries = [entry for entry in history if name in entry]
        curve = [entry["epoch"] for entry in entries], [entry[name] for entry in entries]
        if len(entries) > 1:
            figures[f"{name} by epoch"] = report.lines({name: curve}, x="epoch", y=name)
    activity = metrics.get("test_by_user_activity", {})
    if activity:
        values = [found[recall] for found in activity.values()]
        figures[f"test {recall} by the user's train interactions"] = report.bars(list(activity), {"": values}, y=recall)
    popularity = {name.partition("/")[2]: test[name] for name in test if name.startswith(f"{recall}/")}
    if popularity:
        figures[f"test {recall} by the item's popularity"] = report.bars(
            list(popularity), {"": list(popularity.values())}, y=recall
        )
    figures["items, most popular named: first two principal components"] = _map(data, maps)
    baselines = metrics["baselines"]
    shown = [name for name in test if name.partition("@")[0] in ("recall", "ndcg", "hr") and "/" not in name]
    rows = [
        {"model": name} | {metric: found[metric] for metric in shown if metric in found}
        for name, found in ({f"{model.name} {model.version}": test} | baselines).items()
    ]
    rows[0] |= metrics.get("not_measured", {})
    return report.page(f"Evaluation of {model.name} {model.version}", metrics, figures, rows)


def selection_of(model: Artifact) -> list[str]:
    """Return the name of the score that picked a model's epoch, e.g. ``valid_recall@20``; none where nothing did."""
    return [name for name in model.summary if "_recall@" in name]


def _map(data: Dataset, maps: Mapping[str, Tensor]) -> str:
    """Return the most popular items in the plane, a panel for each of ``maps``."""
    order = torch.argsort(popularity(data)[1][:, 0], descending=True, stable=True)[:MAPPED]
    panels = {}
    for title, item_IX in maps.items():
        rows = item_IX[order].double()
        centred = rows - rows.mean(0)
        left, size, _ = torch.linalg.svd(centred, full_matrices=False)
        place = F.pad(left[:, :2] * size[:2], (0, max(0, 2 - left.shape[1])))
        panels[title] = place[:, 0].tolist(), place[:, 1].tolist()
    return report.points(panels, names=[str(data.titles[item]) for item in order[:NAMED].tolist()])


def find_model(store: Store, settings: Settings) -> Artifact:
    """Return the trained model that ``evaluate.model`` names.

    Raises:
        EvaluationError: there is none.
    """
    return named_model(store, settings.evaluate.model, setting="evaluate.model")


def named_model(store: Store, place: str, *, setting: str) -> Artifact:
    """Return the model at ``place``, NAME/VERSION of a trained model or of an evaluation of it.

    Raises:
        EvaluationError: there is none; the message names ``setting``.
    """
    name, _, version = place.partition("/")
    found = store.find("models", name, version) if name and version else None
    evaluation = store.find("evaluations", name, version) if name and version and found is None else None
    if evaluation is not None:
        found = store.find(*evaluation.made_from("model"))
    if found is None:
        raise EvaluationError(
            f"{store.uri('models')}: no such model (got {setting} = {place}, expected NAME/VERSION); jobs/train.py "
            "prints the place of the one it makes"
        )
    return found


def check_splits(dataset: Artifact, *needed: str, what: str) -> None:
    """Refuse a dataset that has no interactions in a split that ``what`` is measured on.

    Raises: ``EvaluationError`` names the split and the settings that fill it.
    """
    for split in needed:
        if not dataset.summary[split]:
            sizes = ", ".join(f"{dataset.summary[name]} {name}" for name in SPLITS)
            raise EvaluationError(
                f"{dataset.uri}: {what} needs {split} interactions (got {sizes}); choose a --data.split and "
                f"--data.ratios that leave some in {split}"
            )


def check_reads(model: Artifact, vectors: Artifact, dataset: Artifact) -> None:
    """Refuse a model that reads other vectors, or that knows only the users and items it was trained on.

    Raises: ``EvaluationError`` names the model and what it expects.
    """
    own, given = model.summary["fingerprint"], vectors.summary["fingerprint"]
    if own != given:
        raise EvaluationError(
            f"{model.uri}: was trained on vectors of another encoder (got {json.dumps(given, sort_keys=True)}, "
            f"expected {json.dumps(own, sort_keys=True)}); set the encoder settings as the model's were"
        )
    kind = model.settings["model"]["kind"]
    if kind != "alpharec" and not model.is_made_from("dataset", dataset):
        raise EvaluationError(
            f"{model.uri}: is of model.kind = {kind}, which knows only {'/'.join(model.made_from('dataset'))} (got "
            f"{dataset.uri}); "
            "zero-shot needs a model.kind = alpharec"
        )


def measure(dataset: Dataset, scored: Scored, settings: EvaluateSettings) -> tuple[dict[str, Any], Evaluation]:
    """Return metrics by split and group, and test's per-user values, of no user where test has no interactions.

    In a mix every user is ranked over the items of its own dataset; each dataset has its metrics under ``domains``.
    """
    nobody = Evaluation(torch.zeros(0, dtype=torch.int64), {})
    if not dataset.domains:
        metrics, found = _measure(dataset, scored, settings)
        return metrics, found.get("test", nobody)
    metrics, parts = {"domains": {}}, []
    for domain in dataset.domains:
        own = restrict(scored, domain.users, domain.items)
        metrics["domains"][domain.name], found = _measure(dataset.of(domain), own, settings)
        parts.append({name: Evaluation(of.users + domain.first_user, of.values) for name, of in found.items()})
    measured = [split for split in MEASURED if any(split in part for part in parts)]
    joined = {split: _join([part[split] for part in parts if split in part]) for split in measured}
    return metrics | _means_by_split(joined), joined.get("test", nobody)


def _means_by_split(found: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Return the means of each split that was measured, and the reason for each that was not."""
    missing = {split: f"no {split} interactions: nothing was measured" for split in MEASURED if split not in found}
    return {split: of.means() for split, of in found.items()} | ({"not_measured": missing} if missing else {})


def _join(found: list[Evaluation]) -> Evaluation:
    """Put evaluations of different users together."""
    values = {name: torch.cat([part.values[name] for part in found]) for name in found[0].values}
    return Evaluation(torch.cat([part.users for part in found]), values)


def _measure(
    dataset: Dataset, scored: Scored, settings: EvaluateSettings
) -> tuple[dict[str, Any], dict[str, Evaluation]]:
    train = _lists([dataset.train], 0, dataset.num_users)
    items, users = item_popularity_groups(train, dataset.num_items), user_activity_groups(train)
    found = {}
    for split in (name for name in MEASURED if len(dataset.splits[name])):
        truth, seen = truth_and_seen(dataset.splits, split, settings, count=dataset.num_users)
        chosen: dict[str, Any] = {"ks": settings.ks, "block_size": settings.block_size, "item_groups": items}
        found[split] = evaluate(scored, truth=truth, seen=seen, **chosen)
    metrics = _means_by_split(found)
    if "test" in found:
        groups = found["test"].by_group(users.index[found["test"].users])
        metrics["test_by_user_activity"] = {users.labels[group]: means for group, means in groups.items()}
    return metrics, found


def scored_by(model: Artifact, dataset: Dataset, item_IT: Tensor) -> Scored:
    """Return what a trained model ranks the users of a dataset by: ``networks.score``."""
    network, objective = load_model(model.settings, model.read_tensors("model.safetensors"))
    graph = build_graph(dataset)
    return score(network, objective, graph, network.features(item_IT, graph))


def popularity(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Return representations whose scores are the items' train interactions. Shapes: -> [U, 1], [I, 1]."""
    count_I = torch.bincount(torch.from_numpy(dataset.train.items), minlength=dataset.num_items)
    return torch.ones(dataset.num_users, 1), count_I[:, None].float()


# ---------------------------------------------------------------- what counts as right; the score of an epoch


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

    Attributes:
        num_users: users with truth, over all workers; with none of them nothing picks an epoch.
    """

    name: str
    num_users: int
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
        local = torch.tensor(sum(int((part.truth.counts > 0).sum()) for part in ranked))
        num_users = int(graph.part.sum(local.to(graph.items.device)))
        return cls(settings.selection, num_users, ranked, graph.part, chosen).to(graph.items.device)

    def to(self, device: torch.device) -> Selection:
        """Return the same with its lists on ``device``."""
        return replace(self, ranked=[part.to(device) for part in self.ranked])

    def score(self, scored: Scored) -> float:
        """Return the mean over all users with truth, of whom there must be some."""
        k, size, total = self.settings.select_k, self.settings.block_size, torch.zeros(1, dtype=torch.float64)
        for part in self.ranked:
            if len(part.truth.items):
                own = restrict(scored, part.users, part.items)
                found = evaluate(own, truth=part.truth, seen=part.seen, ks=(k,), block_size=size)
                total += float(found.values[f"recall@{k}"].sum())
        *_, device = sizes_of(scored)
        return float(self.part.sum(total.to(device))) / self.num_users
