"""The publishing stage and the recommending stage: an immutable bundle that is all serving needs, and lists from it.

Shapes: U users, I items, B users of a block, K list length, P (user, item) pairs, E seen interactions, T text width,
D representation width.

A bundle's representations are ready to rank: their dot products are scores. Newcomers, users and items never trained
on, get theirs from the projector and the items' ``context``, without retraining.
"""

from __future__ import annotations

import functools
import json
import logging
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from alpharec.artifacts import Artifact, ArtifactError, Draft, Store, digest
from alpharec.baselines import IdEmbeddings, ItemWeights, MultVae, item_scores
from alpharec.config import CLOSED_FORMS, RecommendSettings, Settings
from alpharec.data.conditions import Condition
from alpharec.data.dataset import Dataset, Ints, Pairs, domains_of, load_dataset, read_pairs
from alpharec.data.files import Input
from alpharec.data.formats import open_table
from alpharec.data.prepare import ATTRIBUTES
from alpharec.data.requests import (
    LeftOut,
    find_items,
    read_candidates,
    read_excluded,
    read_intentions,
    read_new_items,
    read_user_lists,
    read_users_to_list,
)
from alpharec.embed import embed_texts
from alpharec.encoders import fingerprint
from alpharec.evaluation import selection_of
from alpharec.graph import InteractionGraph
from alpharec.intention import mix_scores, propagate_titles, wanted_titles
from alpharec.model import AlphaRec, Objective, centre, mean_of_titles
from alpharec.networks import build_graph, load_model
from alpharec.ranking import Lists, Scored, Scores, rank, restrict
from alpharec.runtime import map_on_actors, use_own_cpus
from alpharec.vectors import load_vectors, matrix, vector_column

logger = logging.getLogger(__name__)

# Part of a bundle's version: raise it when the same model would give other files.
BUNDLE_FORMAT = 2
PARTS_PER_ACTOR = 4  # so that an actor that is slow or lost costs at most a quarter of its work
MEAN = "mean.safetensors"  # of the title vectors
WANTED = "wanted"  # what queries are compared with, of new items
HISTORY = "history"  # of a closed form's users: their train interactions
MAX_PART = 65_536  # users a part file, about 20 MB at K = 20
ITEMS_BY = ("candidates", "exclude", "where")  # settings that say which items are recommended
# Settings that name a file: of users and items never trained on; of those among all of them that lists are made of.
NEWCOMERS: tuple[Literal["users", "new_items", "intentions"], ...] = ("users", "new_items", "intentions")
SELECTING: tuple[Literal["candidates", "exclude", "for_users"], ...] = ("candidates", "exclude", "for_users")
POLICIES = ("on_unknown_item", "on_empty_history", "on_known_item", "on_unknown_user")
NUM_NAMED = 10  # ids that the summary names of those a policy left out

Facts = dict[str, Any]

CARD = """\
# AlphaRec bundle {title}

Recommends items from {what}. Scores are {score}.

- Data: {data}.
- Encoder: `{encoder}`
- Model: {model}.
- Training: {train}. All settings: `settings.json`.

## Metrics on test, all items ranked, seen ones left out

{scores}

More in `metrics.json`.

## Limits

- Representations come from train interactions; valid and test ones are only left out of the lists, as seen.
- {cold_users} users have no train interaction{cold_users_get}.
- {cold_items} items have no train interaction: {cold_items_get}.

## Lineage

{lineage}

## Use

    {use}

{newcomers}
"""

WITH_TITLES = {
    "what": "their titles and past interactions: title vectors of a language model, a projector, LightGCN\n"
    "propagation (arXiv 2407.05441)",
    "cold_users_get": " and share one representation",
    "cold_items_get": "they are ranked by their title alone.\n"
    "- An item is known by its title only: not by price, stock, age rating or date",
    "newcomers": "New users: add `--recommend.users FILE` (user_id, item_ids). New items: `--recommend.new-items FILE` "
    "(item_id,\ntitle), and what users say they want: `--recommend.intentions FILE` (user_id, query), both with the "
    "encoder settings\nabove.",
}
WITHOUT_TITLES = {
    "what": "past interactions alone, to compare with",
    "cold_users_get": "",
    "cold_items_get": "nothing is known of them",
    "newcomers": "It knows no new users and no new items.",
}


class RecommendError(RuntimeError):
    """A bundle cannot be published or used as asked; the message says what to do."""


# ---------------------------------------------------------------- publish


def publish(
    store: Store, settings: Settings, dataset: Artifact, vectors: Artifact, model: Artifact, evaluation: Artifact
) -> Artifact:
    """Return the bundle of a trained model, writing it only if the store does not have it, and move LATEST to it.

    Writes ``projector.safetensors``; ``users.parquet`` (user_id, representation); ``items.parquet`` (item_id, title,
    representation, context); ``seen.parquet`` (user, item: all known interactions, sorted); ``settings.json``, the
    model's; ``metrics.json``; ``MODEL_CARD.md``; of a model of titles ``mean.safetensors``, that of their vectors. A
    closed form has no representations, but weights of items, and ``history.parquet`` (user, item) to sum them over.
    ``attributes.parquet`` (item_id and columns to filter by) is the dataset's, where it has one.

    Raises:
        RecommendError: the artifacts do not belong together.
        ArtifactError: LATEST was moved by another run meanwhile.
    """
    domains = [domain.name for domain in domains_of(dataset)]
    if domains:
        raise RecommendError(
            f"{dataset.uri}: is a mix of {', '.join(domains)}, whose users have items of their own; publish each by "
            f"its own data settings and --evaluate.model {model.name}/{model.version}"
        )
    # Not of the model: one that was trained on other data serves this dataset too, as it was evaluated.
    _check_lineage(evaluation, dataset=dataset, vectors=vectors, model=model)
    version = digest([model.version, evaluation.version, BUNDLE_FORMAT])[:16]
    bundle = store.find("bundles", settings.name, version)
    if bundle is None:
        draft = store.draft("bundles", settings.name, version)
        bundle = _write_bundle(draft, dataset, vectors, model, evaluation)
    store.move_latest("bundles", settings.name, version)
    return bundle


def _write_bundle(
    draft: Draft, dataset: Artifact, vectors: Artifact, model: Artifact, evaluation: Artifact
) -> Artifact:
    data, weights = load_dataset(dataset), model.read_tensors("model.safetensors")
    network, objective = load_model(model.settings, weights)
    users, items = {"user_id": data.user_ids}, {"item_id": data.item_ids, "title": data.titles}
    summary = {"users": data.num_users, "items": data.num_items, "fingerprint": vectors.summary["fingerprint"]}
    summary["text"] = dataset.settings["data"].get("text", "")
    if isinstance(network, ItemWeights):
        draft.write_table(f"{HISTORY}.parquet", _pairs_table(data.train))
    else:
        item_IT = torch.from_numpy(load_vectors(vectors)).float()
        if isinstance(network, AlphaRec):
            draft.write_tensors(MEAN, {"title_T": mean_of_titles(item_IT)})
        user_UD, item_ID, context_ID = represent_trained(data, item_IT, network, objective)
        users["representation"] = _column(user_UD)
        items |= {"representation": _column(item_ID), "context": _column(context_ID)}
        summary["width"] = item_ID.shape[1]
    inputs = {"dataset": dataset, "vectors": vectors, "model": model, "evaluation": evaluation}
    metrics = evaluation.read_json("metrics.json")
    draft.write_tensors("projector.safetensors", weights)
    draft.write_table("users.parquet", pa.table(users))
    draft.write_table("items.parquet", pa.table(items))
    draft.write_table("seen.parquet", _pairs_table(data.train, data.valid, data.test))
    if ATTRIBUTES in dataset.files:
        draft.write_table(ATTRIBUTES, dataset.read_table(ATTRIBUTES))
    draft.write_json("settings.json", model.settings)
    draft.write_json("metrics.json", metrics)
    report = dataset.read_json("report.json")
    draft.write_bytes("MODEL_CARD.md", model_card(draft, model, report, summary, metrics, inputs).encode())
    return draft.commit(settings=model.settings, inputs=inputs, summary=summary)


@torch.no_grad()
def represent_trained(
    dataset: Dataset, item_IT: Tensor, network: AlphaRec | IdEmbeddings | MultVae, objective: Objective
) -> tuple[Tensor, Tensor, Tensor]:
    """Return users' and items' representations, whose dot products are scores, and the items' context; on the GPU
    where there is one.

    The context is of what is propagated: representations, or with "propagate-first" title vectors.

    Shapes: item_IT [I, T], float32 -> [U, D], [I, D], context [I, D] or [I, T], on the CPU.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    graph, network = build_graph(dataset).to(device), network.to(device)
    item_IT = item_IT.to(device)
    features: Any = network.features(item_IT, graph)
    first = network.layer_0(graph, features)
    user_UD, item_ID = graph.propagate(*first, network.step_weights)
    propagated = first
    if isinstance(network, AlphaRec) and network.propagate_first:
        item_IT = network.read(item_IT, mean_of_titles(item_IT))
        propagated = graph.mean_of_items(item_IT), item_IT
    context = item_context(graph, *propagated, network.layer_weights)
    return objective.scale(user_UD).cpu(), objective.scale(item_ID).cpu(), context.cpu()


def item_context(graph: InteractionGraph, first_UD: Tensor, first_ID: Tensor, weights: Sequence[float]) -> Tensor:
    """Return what an item adds to a user who has it, 0 for an item without train interactions::

        context_i = d_i^-1/2 (w_1 e_i^(0) + ... + w_L e_i^(L-1))

    Shapes: layer 0 of users [U, D] and of items [I, D], weights w of layers 0..L -> [I, D].
    """
    if len(weights) == 1:
        return torch.zeros_like(first_ID)
    return graph.item_scale_I1 * graph.propagate(first_UD, first_ID, weights[1:])[1]


@torch.no_grad()
def represent_users(
    network: AlphaRec,
    item_IT: Tensor,
    context: Tensor,
    lists: Lists,
    mean_T: Tensor,
    *,
    block_size: int = 1024,
) -> Tensor:
    """Return final representations, not scaled, of users given by their items N::

        e_u = w_0 projector(mean of x_i) + |N|^-1/2 (sum of context_i), i in N

    The user's row of the propagation e^(k+1) = D^-1/2 A D^-1/2 e^(k), summed over k by the layers' weights w, with the
    items' layers as they were trained; a trained user given by its train items gets its own representation. With
    "propagate-first" the same sum is taken of title vectors and projected.

    Shapes: title vectors item_IT [I, T], any float; context [I, D] or [I, T]; ``lists``, U of them; ``mean_T`` [T], the
        bundle's -> [U, D].
    """
    share = network.layer_weights[0]
    blocks = []
    for users_B in torch.arange(lists.num_users).split(block_size):
        item_P = lists.rows(users_B)[1]
        start_B = lists.indptr[users_B] - lists.indptr[users_B[0]]
        used, place_P = item_P.unique(return_inverse=True)  # fp16 to float32 for the block's items only
        mean_BT = F.embedding_bag(place_P, network.read(item_IT[used].float(), mean_T), start_B, mode="mean")
        scale_B1 = lists.counts[users_B].clamp_min(1).rsqrt()[:, None]
        context_B = scale_B1 * F.embedding_bag(item_P, context, start_B, mode="sum")
        if network.propagate_first:  # the projector comes last
            blocks.append(network.project(share * mean_BT + context_B))
        else:
            blocks.append(share * network.project(mean_BT) + context_B)
    return torch.cat(blocks)


@torch.no_grad()
def represent_items(network: AlphaRec, item_IT: Tensor, mean_T: Tensor) -> Tensor:
    """Return final representations, not scaled, of items nobody has: only their layer 0 is not zero.

    Shapes: item_IT [I, T], float32; ``mean_T`` as for ``represent_users`` -> [I, D].
    """
    share, item_IT = network.layer_weights[0], network.read(item_IT, mean_T)
    return network.project(share * item_IT) if network.propagate_first else share * network.project(item_IT)


def _column(x_XD: Tensor) -> pa.Array:
    return vector_column(x_XD.numpy())


def _matrix(table: pa.Table, column: str) -> Tensor:
    return torch.from_numpy(matrix(table, column).copy())


def _pairs_table(*splits: Pairs) -> pa.Table:
    users = np.concatenate([pairs.users for pairs in splits])
    items = np.concatenate([pairs.items for pairs in splits])
    order = np.lexsort((items, users))
    return pa.table({"user": users[order].astype(np.int32), "item": items[order].astype(np.int32)})


def _check_lineage(artifact: Artifact, **inputs: Artifact) -> None:
    for role, made in inputs.items():
        if not artifact.is_made_from(role, made):
            raise RecommendError(
                f"{artifact.uri}: was made from another {role} (got {made.uri}, expected "
                f"{artifact.manifest['inputs'][role]}); publish the artifacts of one run together"
            )


def model_card(
    draft: Draft,
    trained: Artifact,
    report: Mapping[str, Any],
    summary: Mapping[str, Any],
    metrics: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
) -> str:
    """Return the bundle's card: what it is, data, settings, metrics beside most-popular, limits, lineage, use.

    Without test interactions it says so in place of the metrics.
    """
    settings, dataset = trained.settings, inputs["dataset"]
    own = trained.is_made_from("dataset", dataset)
    model, train, sizes = settings["model"], settings["train"], report["interactions"]
    lineage = [f"- {role}: `{made.kind}/{made.name}/{made.version}`" for role, made in inputs.items()]
    bundle = f"--storage {draft.store.uri()} --name {draft.name} --recommend.bundle {draft.version}"
    return CARD.format(
        title=f"{draft.name} {draft.version}",
        **(WITH_TITLES if model["kind"] == "alpharec" else WITHOUT_TITLES),
        score=_score_line(model, train),
        data=f"{report['users']:,} users, {report['items']:,} items; interactions: {sizes['train']:,} train, "
        f"{sizes['valid']:,} valid, {sizes['test']:,} test; split {dataset.settings['data']['split']}",
        encoder=json.dumps(summary["fingerprint"], sort_keys=True),
        model=_model_line(model, summary),
        train=f"{_loss_line(train)}, {_epoch_line(trained)}, seed {settings['seed']}"
        f"{'' if own else ', on ' + '/'.join(trained.made_from('dataset')) + ' alone: zero-shot here'}",
        scores=_score_table(metrics),
        cold_users=f"{report['users_without_train']:,}",
        cold_items=f"{report['items_without_train']:,}",
        lineage="\n".join(lineage),
        use=f"python jobs/recommend.py {bundle}",
    )


def _score_table(metrics: Mapping[str, Any]) -> str:
    if "test" not in metrics:
        return str(metrics["not_measured"]["test"])
    test, popular = metrics["test"], metrics["baselines"]["most-popular"]
    rows = [f"| {name} | {test[name]:.4f} | {popular[name]:.4f} |" for name in test if name in popular]
    return "\n".join(["| metric | this model | most-popular |", "|---|---|---|", *rows])


def _epoch_line(trained: Artifact) -> str:
    if selection_of(trained):
        return f"epoch picked on {trained.settings['train']['select_on']}"
    return f"{trained.summary['epochs']} epochs without validation"


def _score_line(model: Mapping[str, Any], train: Mapping[str, Any]) -> str:
    if model["kind"] in CLOSED_FORMS:
        return "sums of the weights of a user's items"
    return "cosines" if train["loss"] in ("infonce", "bc") else "dot products"


def _loss_line(train: Mapping[str, Any]) -> str:
    if train["max_epochs"] == 0:
        return "none"
    if train["loss"] == "multinomial":
        return f"multinomial, beta {train['kl_weight']}"
    return f"{train['loss']}, temperature {train['temperature']}, {train['num_negatives']} negatives"


def _model_line(model: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    if model["kind"] == "multvae":
        return f"autoencoder, no titles: latent width {model['width']}"
    if model["kind"] == "id":
        return f"ID embeddings, no titles: width {model['width']}, {model['num_layers']} layers"
    if model["kind"] == "ease":
        return f"EASE, no titles: lambda {model['regularization']:g}"
    if model["kind"] == "gf-cf":
        return f"GF-CF, no titles: rank {model['rank']}, alpha {model['low_pass']:g}"
    titles = "title vectors less their mean" if model.get("centred") else "title vectors as they are"
    if model["projector"] == "identity":
        return f"{titles}, nothing trained: {model['num_layers']} layers"
    projector = f"{model['projector']} projector of {titles}"
    return f"{projector}, width {summary['width']}, {model['num_layers']} layers, {model['order']}"


# ---------------------------------------------------------------- recommend


def recommend(store: Store, settings: Settings) -> Artifact:
    """Return lists of the best items for the bundle's users, for those of ``recommend.users``, or for those of
    ``recommend.intentions``, by what they want and their history.

    ``recommend.for_users`` makes lists for some of the bundle's users alone; ``recommend.candidates``,
    ``recommend.exclude`` and ``recommend.where`` have some items alone recommended, to whichever users.

    Writes ``part-*.parquet`` (user_id, item_ids and scores, best first), users in order. Equal scores go by lower item
    index, new items last. A list is shorter where candidates run out. ``left_out`` of the summary holds, for each case
    that a policy left something out in, how much and the first ids.

    Raises:
        RecommendError: there is no such bundle, its title vectors or interactions are gone, the encoder settings are
            not its own, or no user or no candidate is left.
        CatalogError: a file that a setting names does not hold what it must.
        EncoderError: a new title or a query has no vector.
        ArtifactError: the bundle is damaged.
    """
    chosen, bundle = settings.recommend, _find_bundle(store, settings)
    given, condition = _open_given(settings), Condition.parse(chosen.where) if chosen.where else None
    content = _content(chosen, given) | ({"where": condition.content} if condition else {})
    version = digest([bundle.version, chosen.k, chosen.include_seen, content])[:16]
    found = store.find("recommendations", settings.name, version)
    if found is not None:
        return found
    # Files are read, and refused where they must be, before the encoder starts.
    selection, left_out = Selection.read(bundle, chosen, given, condition)
    of_newcomers: dict[str, Input] = {name: given[name] for name in NEWCOMERS if name in given}
    newcomers = _represent_newcomers(store, settings, bundle, of_newcomers) if of_newcomers else None
    titles = _titles_wanted(store, settings, bundle) if "intentions" in given else None
    users = newcomers if newcomers is not None and "users.parquet" in newcomers.files else bundle
    items = [bundle] if newcomers is None else [bundle, newcomers]
    told = (newcomers.summary.get("left_out", {}) if newcomers is not None else {}) | _facts_of(left_out)
    for case, facts in told.items():
        named = ", ".join(facts["first"]) + (", ..." if len(facts["first"]) == NUM_NAMED else "")
        logger.info("recommend: left out: %s %s (%s)", f"{facts['count']:,}", case.replace("_", " "), named)
    num_items = sum(artifact.summary["items"] for artifact in items)
    draft = store.draft("recommendations", settings.name, version)
    num_users = users.summary["users"] if selection.users is None else len(selection.users)
    for part, facts in sorted(_run_parts(draft, settings, users, items, titles, selection, num_users)):
        draft.adopt(f"part-{part:05d}.parquet", facts)
    return draft.commit(
        settings=settings.model_dump(mode="json", include={"name", "recommend"}),
        inputs={
            "bundle": bundle,
            **({"newcomers": newcomers} if newcomers else {}),
            **{name: given[name].address for name in SELECTING if name in given},
        },
        summary={
            "users": num_users,
            "items": num_items,
            "candidates": num_items if selection.items is None else len(selection.items),
            "k": chosen.k,
            "parts": len(draft.files),
            "left_out": told,
        },
    )


def _find_bundle(store: Store, settings: Settings) -> Artifact:
    version = settings.recommend.bundle
    if not version:
        return store.latest("bundles", settings.name)
    bundle = store.find("bundles", settings.name, version)
    if bundle is None:
        raise RecommendError(
            f"{store.uri('bundles', settings.name)}: no such bundle (got recommend.bundle = {version}); "
            "leave --recommend.bundle out for the latest, or run jobs/publish.py"
        )
    return bundle


def _open_given(settings: Settings) -> dict[str, Input]:
    asked = {name: getattr(settings.recommend, name) for name in (*NEWCOMERS, *SELECTING)}
    return {name: open_table(files, name, settings.data) for name, files in asked.items() if files}


def _content(chosen: RecommendSettings, given: Mapping[str, Input]) -> dict[str, Any]:
    """Return what of the given files a version depends on."""
    alpha = {"alpha": chosen.alpha} if "intentions" in given else {}
    # A policy left at "error" changes no list, so it is no part: lists made before there were policies are found.
    policies = {name: getattr(chosen, name) for name in POLICIES if getattr(chosen, name) != "error"}
    return {setting: file.sha256 for setting, file in given.items()} | alpha | policies


def _facts_of(left_out: LeftOut) -> Facts:
    """Return how many ids each policy left out, and the first few."""
    return {
        case: {"count": len(ids), "first": list(dict.fromkeys(ids))[:NUM_NAMED]}
        for case, ids in left_out.items()
        if ids
    }


@dataclass(frozen=True)
class Selection:
    """Those of the bundle's users, and of its items and the new ones after them, that lists are made of; None: all.

    Shapes: users (U,), items (C,): indices, which rise where they are ranked.
    """

    users: Ints | None = None
    items: Ints | None = None

    @classmethod
    def read(
        cls,
        bundle: Artifact,
        chosen: RecommendSettings,
        given: Mapping[str, Input],
        condition: Condition | None = None,
    ) -> tuple[Selection, LeftOut]:
        """Read the files that select, and what a condition is on; return what policies left out of them, too."""
        users, items, left_out = None, None, LeftOut()
        if "for_users" in given:
            user_ids = bundle.read_table("users.parquet", columns=["user_id"])["user_id"].combine_chunks()
            users, unknown = read_users_to_list(given["for_users"], user_ids, on_unknown_user=chosen.on_unknown_user)
            left_out |= unknown
        if any(getattr(chosen, name) for name in ITEMS_BY):
            item_ids = bundle.read_table("items.parquet", columns=["item_id"])["item_id"].combine_chunks()
            if "new_items" in given:
                new_ids, _, _ = read_new_items(given["new_items"], item_ids, on_known_item=chosen.on_known_item)
                item_ids = pa.concat_arrays([item_ids, new_ids])
            items = np.arange(len(item_ids))
            if "candidates" in given:
                items, unknown = read_candidates(
                    given["candidates"], item_ids, condition=condition, on_unknown_item=chosen.on_unknown_item
                )
                left_out |= unknown
            elif condition is not None:
                items = find_items(
                    condition,
                    bundle.read_table("items.parquet", columns=["item_id", "title"]),
                    bundle.read_table(ATTRIBUTES) if ATTRIBUTES in bundle.files else None,
                    item_ids,
                    place=bundle.uri,
                    new_items=given.get("new_items"),
                )
            if "exclude" in given:
                excluded, unknown = read_excluded(given["exclude"], item_ids)
                items, left_out = np.setdiff1d(items, excluded), left_out | unknown
            if not len(items):
                named = [f"recommend.{name} = {getattr(chosen, name)}" for name in ITEMS_BY if getattr(chosen, name)]
                raise RecommendError(
                    f"{bundle.uri}: no item is left to recommend of {len(item_ids)} (got {', '.join(named)}); "
                    "give more candidates, exclude fewer items, or widen the condition"
                )
        return cls(users, items), left_out

    @property
    def narrows(self) -> bool:
        """Say whether a user or an item may be left out."""
        return self.users is not None or self.items is not None

    def of(self, pairs: Pairs) -> Pairs:
        """Return the pairs of a selected user and a selected item, both by their places in the selection."""
        users, items = _places(self.users, pairs.users), _places(self.items, pairs.items)
        both = (users >= 0) & (items >= 0)
        return Pairs(users[both], items[both])


EVERYTHING = Selection()


def _places(selected: Ints | None, index: Ints) -> Ints:
    """Return the place of each index in ``selected``, -1 where it is not there; the index itself if all are selected.

    Shapes: selected (C,), index (E,) -> (E,).
    """
    if selected is None:
        return index
    place = np.full(max(selected.max(initial=0), index.max(initial=0)) + 1, -1)
    place[selected] = np.arange(len(selected))
    return place[index]


# ---------------------------------------------------------------- newcomers


def _represent_newcomers(store: Store, settings: Settings, bundle: Artifact, given: Mapping[str, Input]) -> Artifact:
    """Return users and items never trained on, in the files of a bundle; ``users.parquet`` only if users are given.

    With intentions items have a vector that queries are compared with, and users both parts of ``mix_scores``.
    """
    version = digest([bundle.version, _content(settings.recommend, given)])[:16]
    found = store.find("newcomers", settings.name, version)
    if found is not None:
        return found
    network, objective = load_model(bundle.read_json("settings.json"), bundle.read_tensors("projector.safetensors"))
    if not isinstance(network, AlphaRec):
        raise RecommendError(
            f"{bundle.uri}: is of another model.kind than alpharec, which knows only the users and items it was "
            f"trained on (got recommend.{' and recommend.'.join(given)}); publish a model.kind = alpharec for newcomers"
        )
    known = bundle.read_table("items.parquet", columns=["item_id", "context"])
    item_ids, new_ids, titles = known["item_id"].combine_chunks(), pa.array([], pa.string()), pa.array([], pa.string())
    left_out: LeftOut = {}
    if "new_items" in given or "intentions" in given:
        _check_encoder(settings, bundle)
    if "new_items" in given:
        _check_text(settings, bundle)
        new_ids, titles, left_out = read_new_items(
            given["new_items"], item_ids, on_known_item=settings.recommend.on_known_item
        )
    people = People.read(store, bundle, settings.recommend, given, pa.concat_arrays([item_ids, new_ids]))
    width = network.first.in_features
    draft = store.draft("newcomers", settings.name, version)
    new_IT = _embed(store, settings, new_ids, titles, width)
    mean_T = bundle.read_tensors(MEAN)["title_T"]
    new_ID = objective.scale(represent_items(network, new_IT.float(), mean_T))
    items = {"item_id": new_ids, "title": titles, "representation": _column(new_ID)}
    if "intentions" in given:
        items[WANTED] = _column(centre(new_IT.float(), mean_T))
    draft.write_table("items.parquet", pa.table(items))
    if people is not None:
        left_out = left_out | people.left_out
        item_IT = torch.cat([_title_vectors(store, bundle), new_IT])
        context_ID = F.pad(_matrix(known, "context"), (0, 0, 0, len(new_ids)))  # nobody has a new item yet
        user_UD = objective.scale(represent_users(network, item_IT, context_ID, people.lists, mean_T))
        if "intentions" in given:
            query_QT = _embed(store, settings, people.ids.take(pa.array(people.asking)), people.queries, width)
            user_UD = people.ask(user_UD, centre(query_QT.float(), mean_T), settings.recommend.alpha)
        draft.write_table("users.parquet", pa.table({"user_id": people.ids, "representation": _column(user_UD)}))
        draft.write_table("seen.parquet", _pairs_table(people.seen))
    return draft.commit(
        settings=settings.model_dump(mode="json", include={"name", "encoder", "recommend"}),
        inputs={"bundle": bundle, **{setting: file.address for setting, file in given.items()}},
        summary={
            "users": len(people.ids) if people is not None else 0,
            "items": len(new_ids),
            "left_out": _facts_of(left_out),
        },
    )


@dataclass(frozen=True)
class People:
    """Users to represent: what they have, what is not recommended to them, and what some of them say they want; and
    what policies left out of their files.

    Shapes: ids (U,); asking (Q,), rows of ``ids``, with queries (Q,).
    """

    ids: pa.StringArray
    history: Pairs
    seen: Pairs
    asking: npt.NDArray[np.int64]
    queries: pa.StringArray
    left_out: LeftOut

    @classmethod
    def read(
        cls,
        store: Store,
        bundle: Artifact,
        chosen: RecommendSettings,
        given: Mapping[str, Input],
        item_ids: pa.StringArray,
    ) -> People | None:
        """Read users given by their items, with or without intentions; or the bundle's users who have an intention,
        with their train items; None where neither is given.
        """
        if "users" in given:
            ids, pairs, left_out = read_user_lists(
                given["users"],
                item_ids,
                on_unknown_item=chosen.on_unknown_item,
                on_empty_history=chosen.on_empty_history,
            )
            asking, queries = np.array([], np.int64), pa.array([], pa.string())
            if "intentions" in given:
                asking, queries, of_intentions = read_intentions(
                    given["intentions"],
                    ids,
                    on_unknown_user=chosen.on_unknown_user,
                    without=left_out["users_without_items"],
                )
                left_out = left_out | of_intentions
            return cls(ids, pairs, pairs, asking, queries, left_out)
        if "intentions" not in given:
            return None
        users = bundle.read_table("users.parquet", columns=["user_id"])["user_id"].combine_chunks()
        rows, queries, left_out = read_intentions(given["intentions"], users, on_unknown_user=chosen.on_unknown_user)
        if not len(rows):
            raise RecommendError(
                f"{given['intentions'].address}: no user is left (got {len(left_out['unknown_users'])} whom "
                f"{bundle.uri} does not know); pass --recommend.intentions FILE with a user of the bundle"
            )
        train, seen = _input_of(store, bundle, "dataset").read_table("train.parquet"), bundle.read_table("seen.parquet")
        history, seen = (Selection(rows).of(_pairs_in(table)) for table in (train, seen))
        return cls(users.take(pa.array(rows)), history, seen, np.arange(len(rows)), queries, left_out)

    @property
    def lists(self) -> Lists:
        """What each user has."""
        users, items = torch.from_numpy(self.history.users), torch.from_numpy(self.history.items)
        return Lists.from_pairs(users, items, len(self.ids))

    def ask(self, user_UD: Tensor, query_QT: Tensor, alpha: float) -> Tensor:
        """Return the users with what some of them want mixed in. Shapes: query_QT [Q, T], centred -> [U, D + T]."""
        asking = torch.from_numpy(self.asking)
        query_UT = query_QT.new_zeros(len(self.ids), query_QT.shape[1]).index_copy_(0, asking, query_QT)
        return mix_scores(user_UD, query_UT, torch.zeros(len(self.ids)).index_fill_(0, asking, alpha))


def _pairs_in(table: pa.Table) -> Pairs:
    return Pairs(table["user"].to_numpy().astype(np.int64), table["item"].to_numpy().astype(np.int64))


def _check_encoder(settings: Settings, bundle: Artifact) -> None:
    own, asked = bundle.summary["fingerprint"], fingerprint(settings.encoder)
    if asked != own:
        names = sorted(name for name in own.keys() | asked.keys() if own.get(name) != asked.get(name))
        got = ", ".join(f"{name} {asked.get(name)!r} instead of {own.get(name)!r}" for name in names)
        raise RecommendError(
            f"{bundle.uri}: new items and intentions need the encoder the bundle was made with (got {got}); "
            "set the encoder settings as its settings.json has them"
        )


def _check_text(settings: Settings, bundle: Artifact) -> None:
    own, asked = bundle.summary.get("text", ""), settings.data.text
    if own != asked:
        raise RecommendError(
            f"{bundle.uri}: new items need the text that the bundle's items have (got data.text = {asked!r} instead of "
            f"{own!r}); pass --data.text {shlex.quote(own)}"
        )


def _embed(store: Store, settings: Settings, ids: pa.StringArray, texts: pa.StringArray, width: int) -> Tensor:
    """Return the texts' vectors. Shapes: -> [n, T], fp16."""
    if not len(texts):
        return torch.empty(0, width, dtype=torch.float16)
    return torch.from_numpy(load_vectors(embed_texts(store, settings, ids, texts)))


def _title_vectors(store: Store, bundle: Artifact) -> Tensor:
    """Return the title vectors of the bundle's items. Shapes: -> [I, T], fp16."""
    return torch.from_numpy(load_vectors(_input_of(store, bundle, "vectors")))


def _titles_wanted(store: Store, settings: Settings, bundle: Artifact) -> Artifact:
    dataset, vectors = (_input_of(store, bundle, role) for role in ("dataset", "vectors"))
    return propagate_titles(store, settings, dataset, vectors, bundle.read_json("settings.json")["model"])


def _input_of(store: Store, bundle: Artifact, role: str) -> Artifact:
    place, what = bundle.made_from(role), {"vectors": "title vectors", "dataset": "interactions"}[role]
    found = store.find(*place)
    if found is None:
        raise RecommendError(
            f"{store.uri(*place)}: the {what} of bundle {bundle.version} are gone, and users given by their "
            "items or intentions need them; run jobs/embed.py with the settings the bundle was made with"
        )
    return found


# ---------------------------------------------------------------- ranking on Ray


def _run_parts(
    draft: Draft,
    settings: Settings,
    users: Artifact,
    items: Sequence[Artifact],
    titles: Artifact | None,
    selection: Selection,
    num_users: int,
) -> Iterator[tuple[int, Facts]]:
    """Rank the users part by part on actors; yield each part's number and file as it is done."""
    chosen = settings.recommend
    size = _part_size(num_users, chosen)
    work = [
        {"part": part, "start": start, "stop": min(start + size, num_users)}
        for part, start in enumerate(range(0, num_users, size))
    ]
    rows = map_on_actors(
        settings,
        _Ranker,
        work,
        draft.store,
        (draft.kind, draft.name, draft.version),
        users,
        items,
        titles,
        selection,
        chosen,
        num_actors=chosen.num_workers,
        num_cpus=chosen.num_cpus,
        num_gpus=chosen.num_gpus,
    )
    started, done = time.monotonic(), 0
    for row in rows:
        if row["error"]:
            raise ArtifactError(row["error"])
        record = json.loads(row["record"])
        done += record["file"]["rows"]
        rate = done / (time.monotonic() - started)
        left = (num_users - done) / rate
        logger.info("recommend: %s / %s users, %.0f a second, %.0f s left", f"{done:,}", f"{num_users:,}", rate, left)
        yield record["part"], record["file"]


def _part_size(num_users: int, chosen: RecommendSettings) -> int:
    """Return users a part: whole blocks, several parts an actor."""
    share = min(MAX_PART, -(-num_users // (PARTS_PER_ACTOR * chosen.num_workers)))
    return -(-share // chosen.block_size) * chosen.block_size


@dataclass(frozen=True)
class Source:
    """Users to list for, items to rank, their scores, and the items that each user has seen.

    Shapes: user_ids (U,), item_ids (I,); ``scored`` of U and I; seen_2E [2, E], user and item, sorted by user.
    """

    user_ids: pa.StringArray
    item_ids: pa.StringArray
    scored: Scored
    seen_2E: Tensor

    @classmethod
    def load(
        cls,
        users: Artifact,
        items: Sequence[Artifact],
        titles: Artifact | None = None,
        selection: Selection = EVERYTHING,
    ) -> Source:
        """Read users and their seen items from one artifact, candidates from the bundle and others, those selected
        alone; with what users say they want, the bundle's ``titles`` that it is compared with.
        """
        people, seen = users.read_table("users.parquet"), users.read_table("seen.parquet")
        if selection.users is not None:
            people = people.take(pa.array(selection.users))
        scored: Scored
        if f"{HISTORY}.parquet" in users.files:
            tables = [users.read_table("items.parquet", columns=["item_id"])]
            ends = (0, len(people) - 1) if selection.users is None else (selection.users[0], selection.users[-1])
            # Items a user had count whether they are candidates or not.
            pairs = Selection(selection.users).of(read_pairs(users, HISTORY, int(ends[0]), int(ends[1]) + 1))
            lists = Lists.from_pairs(torch.from_numpy(pairs.users), torch.from_numpy(pairs.items), len(people))
            weight_IC = users.read_tensors("projector.safetensors")["weight_II"]
            if selection.items is not None:
                weight_IC = weight_IC[:, torch.from_numpy(selection.items)]
            scored = item_scores(weight_IC, lists)
        else:
            tables = [artifact.read_table("items.parquet", columns=["item_id", "representation"]) for artifact in items]
            item_ID = torch.cat([_matrix(table, "representation") for table in tables])
            if titles is not None:
                new = [artifact.read_table("items.parquet", columns=[WANTED]) for artifact in items[1:]]
                title_IT = torch.cat([wanted_titles(titles), *(_matrix(table, WANTED) for table in new)])
                item_ID = torch.cat([item_ID, title_IT], 1)
            if selection.items is not None:
                item_ID = item_ID[torch.from_numpy(selection.items)]
            scored = _matrix(people, "representation"), item_ID
        item_ids = pa.concat_arrays([table["item_id"].combine_chunks() for table in tables])
        if selection.items is not None:
            item_ids = item_ids.take(pa.array(selection.items))
        seen_2E = torch.from_numpy(np.stack([seen["user"].to_numpy(), seen["item"].to_numpy()]))
        if selection.narrows:
            pairs = selection.of(_pairs_in(seen))
            seen_2E = torch.from_numpy(np.stack([pairs.users, pairs.items]).astype(np.int32))
        return cls(people["user_id"].combine_chunks(), item_ids, scored, seen_2E)

    def lists(self, start: int, stop: int, chosen: RecommendSettings) -> pa.Table:
        """Return the lists of users start..stop-1: user_id, item_ids, scores, best first."""
        device = torch.device("cuda" if chosen.num_gpus else "cpu")
        scored = restrict(self.scored, slice(start, stop))
        if not isinstance(scored, Scores):
            scored = scored[0].to(device), scored[1].to(device)
        seen = None if chosen.include_seen else self._seen(start, stop)
        rows = torch.arange(stop - start)
        blocks = rank(scored, chosen.k, users=rows, seen=seen, block_size=chosen.block_size)
        columns = [(item_BK.cpu().numpy(), score_BK.cpu().numpy()) for _, item_BK, score_BK in blocks]
        item_BK, score_BK = (np.concatenate(column) for column in zip(*columns, strict=True))
        there_BK = item_BK >= 0  # -1 where the candidates ran out, at the end of a list
        ends = pa.array(np.concatenate([[0], there_BK.sum(1).cumsum()]).astype(np.int32))
        return pa.table(
            {
                "user_id": self.user_ids[start:stop],
                "item_ids": pa.ListArray.from_arrays(ends, self.item_ids.take(pa.array(item_BK[there_BK]))),
                "scores": pa.ListArray.from_arrays(ends, pa.array(score_BK[there_BK])),
            }
        )

    def _seen(self, start: int, stop: int) -> Lists:
        first, last = torch.searchsorted(self.seen_2E[0], torch.tensor([start, stop], dtype=torch.int32)).tolist()
        user_E, item_E = self.seen_2E[:, first:last].long()
        return Lists.from_pairs(user_E - start, item_E, stop - start)


class _Ranker:
    """An actor that loads the representations once, ranks parts of the users and writes their lists."""

    def __init__(
        self,
        store: Store,
        place: tuple[str, str, str],
        users: Artifact,
        items: Sequence[Artifact],
        titles: Artifact | None,
        selection: Selection,
        chosen: RecommendSettings,
    ) -> None:
        self.store, self.place, self.chosen, self.read = store, place, chosen, (users, items, titles, selection)
        use_own_cpus()

    @functools.cached_property
    def source(self) -> Source:
        return Source.load(*self.read)

    def __call__(self, batch: dict[str, npt.NDArray[np.int64]]) -> dict[str, list[str]]:
        part, start, stop = (int(batch[name][0]) for name in ("part", "start", "stop"))
        try:
            table = self.source.lists(start, stop, self.chosen)
        except ArtifactError as error:  # the driver raises it: a person sees the message, not an actor's traceback
            return {"record": [""], "error": [str(error)]}
        draft = Draft(self.store, *self.place)
        draft.write_table("part.parquet", table)
        return {"record": [json.dumps({"part": part, "file": draft.files["part.parquet"]})], "error": [""]}
