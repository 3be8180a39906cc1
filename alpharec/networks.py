"""The network and the loss that settings name, fresh or with trained weights; the graph of a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alpharec.baselines import (
    BiasMargin,
    Contrast,
    GraphFilter,
    IdEmbeddings,
    ItemWeights,
    Multinomial,
    MultVae,
    ease,
    item_scores,
    train_lists,
)
from alpharec.config import Settings
from alpharec.data.dataset import Dataset
from alpharec.graph import InteractionGraph
from alpharec.model import AlphaRec, Objective, TextFeatures
from alpharec.ranking import Scored

Network = AlphaRec | IdEmbeddings | MultVae | ItemWeights


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
    if model.kind == "ease":
        return ItemWeights(num_items, lambda graph: ease(graph, regularization=model.regularization))
    if model.kind == "gf-cf":
        rank = min(model.rank, num_items)

        def solve(graph: InteractionGraph) -> Tensor:
            found = GraphFilter(graph, max_rank=rank, seed=settings.seed)
            return found.into_weights(rank=rank, low_pass=model.low_pass)

        return ItemWeights(num_items, solve)
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
        centred=model.centred,
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
    tables = ("item_ID", "output_IH", "weight_II")
    num_items = next((len(weights[name]) for name in tables if name in weights), 0)
    network = build_model(trained, text_width, num_users, num_items)
    network.load_state_dict(weights, assign=True)
    return network, build_objective(trained)


@torch.no_grad()
def score(network: Network, objective: Objective, graph: InteractionGraph, features: TextFeatures | None) -> Scored:
    """Return what the worker's users and all items are ranked by.

    Shapes: representations [U, D], [I, D], ready for dot products, or scores of U users and I items.
    """
    if isinstance(network, ItemWeights):
        return item_scores(network.weight_II, train_lists(graph))
    user_UD, item_ID = network(graph, features)
    return objective.scale(user_UD), objective.scale(item_ID)
