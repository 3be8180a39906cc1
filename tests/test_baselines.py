"""Each model against its formula written out in NumPy, blocks against one block, and learning on a checkerboard.

Names end in their shape: U users, I items, E interactions, T text width, D representation width.
"""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.nn import LightGCN

import alpharec.baselines
from alpharec.baselines import (
    BiasMargin,
    Contrast,
    GraphFilter,
    IdEmbeddings,
    Multinomial,
    MultVae,
    _first_vectors,
    _invert_,
    ease,
    item_scores,
    propagate_noisily,
    train_lists,
)
from alpharec.config import Settings
from alpharec.data.dataset import Dataset, Pairs
from alpharec.evaluation import Selection
from alpharec.graph import Batch, InteractionGraph, Part, Sampler
from alpharec.model import Objective, train_step
from alpharec.networks import build_graph, build_model, build_objective, load_model, score
from alpharec.ranking import Lists, Scores, evaluate, rank
from alpharec.train import Training

NEAR = {"rtol": 1e-4, "atol": 1e-5}  # float32 sums of at most 60 terms, and an inverse with condition below 100

Array = NDArray[np.float64]


@pytest.fixture(params=[1024, 7], ids=["one block", "blocks of 7 items"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Build item-item matrices whole, and some items at a time."""
    monkeypatch.setattr(alpharec.baselines, "ITEMS_AT_ONCE", request.param)
    return int(request.param)


def interactions(num_users: int = 60, num_items: int = 25, seed: int = 0) -> Tensor:
    """Return a random 0/1 matrix [U, I] with user 3 and items 0 and 9 alone."""
    seen_UI = torch.rand(num_users, num_items, generator=torch.Generator().manual_seed(seed)) < 0.25
    seen_UI[3] = False
    seen_UI[:, [0, 9]] = False
    return seen_UI


def graph_of(seen_UI: Tensor, part: Part = Part()) -> InteractionGraph:
    users, items = seen_UI.nonzero(as_tuple=True)
    return InteractionGraph(users, items, num_users=seen_UI.shape[0], num_items=seen_UI.shape[1], part=part)


def inverse_root(x: Array) -> Array:
    return np.divide(1, np.sqrt(x), out=np.zeros_like(x), where=x > 0)


def normalised(seen_UI: Tensor) -> Array:
    x_UI = seen_UI.double().numpy()
    return inverse_root(x_UI.sum(1))[:, None] * x_UI * inverse_root(x_UI.sum(0))


def all_scores(scores: Scores) -> Tensor:
    return scores.of(torch.arange(scores.num_users))


def text(num_items: int, width: int = 6) -> Tensor:
    return torch.randn(num_items, width, generator=torch.Generator().manual_seed(1))


# Closed forms


def untrained(item_IT: Tensor, graph: InteractionGraph, **model: Any) -> tuple[Tensor, Tensor]:
    """Return what the preset "text-propagation" ranks by: users' means and titles propagated, at unit length."""
    settings = Settings.model_validate({"preset": "text-propagation", "model": model})
    network = build_model(settings, item_IT.shape[1])
    assert not any(weight.requires_grad for weight in network.parameters())
    return score(network, build_objective(settings), graph, network.features(item_IT, graph))


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_untrained_titles_equal_powers_of_the_normalised_adjacency(num_layers: int) -> None:
    seen_UI = interactions()
    item_IT = text(25)
    x_UI, n_UI = seen_UI.double().numpy(), normalised(seen_UI)
    mean_UT = x_UI @ item_IT.double().numpy() / np.maximum(x_UI.sum(1), 1)[:, None]
    adjacency = np.block([[np.zeros((60, 60)), n_UI], [n_UI.T, np.zeros((25, 25))]])
    start = np.concatenate([mean_UT, item_IT.double().numpy()])
    layers = [np.linalg.matrix_power(adjacency, layer) @ start for layer in range(num_layers + 1)]
    expected = np.mean(layers, 0)
    expected /= np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-12)
    found = torch.cat(untrained(item_IT, graph_of(seen_UI), num_layers=num_layers))
    np.testing.assert_allclose(found.numpy(), expected, **NEAR)


def test_centred_titles_do_not_know_what_all_of_them_share() -> None:
    item_IT, graph = text(25), graph_of(interactions())
    shared_IT = item_IT + 3 * text(1)
    found, shifted = (torch.cat(untrained(x, graph, num_layers=2, centred=True)) for x in (item_IT, shared_IT))
    torch.testing.assert_close(found, shifted)
    unit_IT = torch.nn.functional.normalize(item_IT - item_IT.mean(0), dim=1)
    torch.testing.assert_close(found, torch.cat(untrained(unit_IT, graph, num_layers=2)))


def test_ease_equals_a_ridge_regression_for_each_item(block: int) -> None:
    # Its definition rather than its closed form: item j from all other items, by least squares with a penalty.
    seen_UI = interactions()
    x_UI = seen_UI.double().numpy()
    weight_II = np.zeros((25, 25))
    for item in range(25):
        others = np.delete(np.arange(25), item)
        gram = x_UI[:, others].T @ x_UI[:, others] + 4 * np.eye(24)
        weight_II[others, item] = np.linalg.solve(gram, x_UI[:, others].T @ x_UI[:, item])
    graph = graph_of(seen_UI)
    found = all_scores(item_scores(ease(graph, regularization=4.0), train_lists(graph)))
    np.testing.assert_allclose(found.numpy(), x_UI @ weight_II, **NEAR)


@pytest.mark.parametrize(("rank", "low_pass"), [(3, 0.0), (1, 1.0), (3, 0.5), (25, 2.0)])
def test_graph_filter_equals_its_formula_with_a_full_singular_value_decomposition(
    block: int, rank: int, low_pass: float
) -> None:
    seen_UI = interactions()
    x_UI, n_UI = seen_UI.double().numpy(), normalised(seen_UI)
    vector_IR = np.linalg.svd(n_UI)[2].T[:, :rank]
    root_I = np.sqrt(x_UI.sum(0))
    low_II = inverse_root(x_UI.sum(0))[:, None] * (vector_IR @ vector_IR.T) * root_I
    graph = graph_of(seen_UI)
    found = GraphFilter(graph, max_rank=25)
    expected = x_UI @ (n_UI.T @ n_UI + low_pass * low_II)
    np.testing.assert_allclose(all_scores(found.scores(rank=rank, low_pass=low_pass)).numpy(), expected, **NEAR)
    weight_II = found.into_weights(rank=rank, low_pass=low_pass)
    np.testing.assert_allclose(all_scores(item_scores(weight_II, train_lists(graph))).numpy(), expected, **NEAR)


def test_first_vectors_hold_what_those_of_a_full_decomposition_hold() -> None:
    # A random matrix: the fifth singular value is only 3% below the fourth.
    seen_UI = interactions(num_users=80, num_items=60)
    n_UI = normalised(seen_UI)
    found_IR = _first_vectors(graph_of(seen_UI), 4, seed=0).double().numpy()
    np.testing.assert_allclose(found_IR.T @ found_IR, np.eye(4), atol=1e-5)
    held = np.linalg.norm(n_UI @ found_IR) ** 2
    np.testing.assert_allclose(held, (np.linalg.svd(n_UI)[1][:4] ** 2).sum(), rtol=1e-3)


@pytest.mark.parametrize("size", [1, 7, 25, 28])
def test_inverse_in_place_reads_no_block_above_the_diagonal(block: int, size: int) -> None:
    root = torch.randn(size, 40, generator=torch.Generator().manual_seed(2))
    matrix_II = root @ root.T / 40 + torch.eye(size)
    expected = torch.linalg.inv(matrix_II.double())
    for first in range(0, size, block):
        matrix_II[first : first + block, first + block :] = torch.nan
    _invert_(matrix_II)
    torch.testing.assert_close(matrix_II.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block_size", [1, 7, 60])
def test_any_block_of_users_gives_the_same_metrics(block_size: int) -> None:
    seen_UI = interactions()
    truth_UI = interactions(seed=5) & ~seen_UI
    seen, truth = (Lists.from_pairs(*of.nonzero(as_tuple=True), 60) for of in (seen_UI, truth_UI))
    graph = graph_of(seen_UI)
    of_ease = item_scores(ease(graph, regularization=4.0), train_lists(graph))
    for scores in (of_ease, GraphFilter(graph, max_rank=8).scores(rank=8, low_pass=0.5)):
        whole = evaluate(scores, truth=truth, seen=seen, ks=(5,))
        parts = evaluate(scores, truth=truth, seen=seen, ks=(5,), block_size=block_size)
        assert all(torch.equal(whole.values[name], parts.values[name]) for name in whole.values)


# Scores of the ranking


def test_scores_of_dot_products_give_the_lists_and_metrics_of_representations() -> None:
    # Whole numbers: products are exact in float32 whatever their order, and most scores tie.
    generator = torch.Generator().manual_seed(3)
    user_UD, item_ID = (torch.randint(-2, 3, (size, 3), generator=generator).float() for size in (60, 500))
    seen_UI = torch.rand(60, 500, generator=generator) < 0.1
    truth_UI = (torch.rand(60, 500, generator=generator) < 0.1) & ~seen_UI
    seen, truth = (Lists.from_pairs(*of.nonzero(as_tuple=True), 60) for of in (seen_UI, truth_UI))
    scores = Scores(lambda users_B: user_UD[users_B] @ item_ID.T, 60, 500, user_UD.device)
    made = evaluate(scores, truth=truth, seen=seen, ks=(5, 20), block_size=13)
    expected = evaluate((user_UD, item_ID), truth=truth, seen=seen, ks=(5, 20))
    assert torch.equal(made.users, expected.users)
    assert all(torch.equal(made.values[name], expected.values[name]) for name in expected.values)
    users_B, item_BK, score_BK = next(rank(scores, 500, users=torch.tensor([4, 2]), seen=seen))
    for user, items, values in zip(users_B.tolist(), item_BK.tolist(), score_BK.tolist(), strict=True):
        score = (item_ID @ user_UD[user]).tolist()
        order = sorted((item for item in range(500) if not seen_UI[user, item]), key=lambda item: (-score[item], item))
        assert items == order + [-1] * (500 - len(order))
        assert values[: len(order)] == [score[item] for item in order]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_or_not_of_this_shape_are_refused(bad: float) -> None:
    truth = Lists.from_pairs(torch.tensor([0, 1]), torch.tensor([0, 2]), 2)
    broken = torch.zeros(2, 3)
    broken[1, 1] = bad
    with pytest.raises(ValueError, match=r"scores must be finite \(got NaN or infinity for user 1\)"):
        evaluate(Scores(lambda users_B: broken[users_B], 2, 3, broken.device), truth=truth)
    with pytest.raises(ValueError, match=r"scores must be \(2, 4\) \(got \(2, 3\)\)"):
        evaluate(Scores(lambda users_B: torch.zeros(2, 3), 2, 4, broken.device), truth=truth)
    with pytest.raises(ValueError, match=r"k must be 1 or more \(got 0\)"):
        rank(Scores(lambda users_B: broken[users_B], 2, 3, broken.device), 0, users=torch.tensor([0]))
    with pytest.raises(ValueError, match="users must be in 0"):
        rank(Scores(lambda users_B: broken[users_B], 2, 3, broken.device), 1, users=torch.tensor([2]))


# ID embeddings


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_id_embeddings_equal_lightgcn_of_torch_geometric(num_layers: int) -> None:
    seen_UI = interactions()
    model = IdEmbeddings(60, 25, width=5, num_layers=num_layers)
    theirs = LightGCN(85, 5, num_layers)
    theirs.embedding.weight = torch.nn.Parameter(torch.cat([model.user_UD, model.item_ID]).detach())
    users, items = seen_UI.nonzero(as_tuple=True)
    edges = torch.stack([torch.cat([users, items + 60]), torch.cat([items + 60, users])])
    torch.testing.assert_close(torch.cat(model(graph_of(seen_UI))), theirs.get_embedding(edges))


OBJECTIVES = {
    "mf": (Objective("infonce", 0.2), {"num_layers": 0}),
    "mf-bpr": (Objective("bpr"), {"num_layers": 0}),
    "lightgcn": (Objective("infonce", 0.2), {}),
    "lightgcn-bpr": (Objective("bpr"), {}),
    "sgl": (Contrast("infonce", 0.2, weight=0.1, dropped=0.2), {}),
    "xsimgcl": (Contrast("infonce", 0.2, weight=0.1, noise=0.1), {"layer_0_weight": 0.0}),
    "xsimgcl-bpr": (Contrast("bpr", weight=0.1, noise=0.1), {"layer_0_weight": 0.0}),
    "bc-loss": (BiasMargin("infonce", 0.2), {"popularity": True}),
    "multvae": (Multinomial("multinomial"), None),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_models_without_titles_learn_the_checkerboard(name: str) -> None:
    objective, options = OBJECTIVES[name]
    # Even users like even items, odd users odd ones; user u's own item u is held out and must come back first.
    size = 24
    likes_UI = (torch.arange(size)[:, None] - torch.arange(size)) % 2 == 0
    graph = graph_of(likes_UI & ~torch.eye(size).bool())
    ids = options is not None
    model = IdEmbeddings(size, size, width=8, seed=1, **options) if ids else MultVae(size, hidden_width=16, width=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    sampler = Sampler(graph, 0, batch_size=len(graph.items), num_negatives=1 if objective.loss == "bpr" else 8)
    for step in range(150):
        train_step(model, optimizer, None, sampler, step, objective)
    with torch.no_grad():
        user_UD, item_ID = (objective.scale(x_XD) for x_XD in model(graph))
    everyone = torch.arange(size)
    truth = Lists.from_pairs(everyone, everyone, size)
    seen = Lists.from_pairs(*(likes_UI & ~torch.eye(size).bool()).nonzero(as_tuple=True), size)
    assert evaluate((user_UD, item_ID), truth=truth, seen=seen, ks=(1,)).means()["recall@1"] == 1


def test_id_embeddings_of_a_seed_are_the_same_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, same, other = (IdEmbeddings(4, 3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.user_UD, same.user_UD)
    assert not torch.equal(one.user_UD, other.user_UD)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_training_loop_takes_id_embeddings_and_resumes_them_bit_for_bit() -> None:
    seen_UI, valid_UI = interactions(), interactions(seed=5)
    pairs = [Pairs(*(x.numpy() for x in of.nonzero(as_tuple=True))) for of in (seen_UI, valid_UI & ~seen_UI)]
    names = pa.array([str(number) for number in range(60)])
    dataset = Dataset(names[:25], names[:25], names, *pairs, Pairs(*(np.zeros(0, np.int64) for _ in range(2))))
    settings = Settings.model_validate(
        {"train": {"batch_size": 64, "max_epochs": 6, "evaluate_every": 2, "num_negatives": 4}}
    )

    def training() -> Training:
        graph, model = build_graph(dataset), IdEmbeddings(60, 25, width=4)
        selection = Selection.build(settings, dataset.splits, graph)
        return Training(settings, graph, None, model, selection)  # type: ignore[arg-type]

    whole, stopped, resumed = training(), training(), training()
    assert sum(1 for _ in whole.run()) == 6
    for _ in stopped.run():
        if stopped.state.epoch == 3:
            break
    resumed.restore(deepcopy(stopped.snapshot()))
    assert sum(1 for _ in resumed.run()) == 3
    assert torch.equal(torch.cat(whole.scored()), torch.cat(resumed.scored()))
    assert whole.state.best_score == resumed.state.best_score > 0


# Bad input


def test_settings_and_graphs_that_do_not_fit_are_refused() -> None:
    seen_UI = interactions()
    graph = graph_of(seen_UI)
    with pytest.raises(ValueError, match=r"regularization must be above 0 \(got 0\.0\)"):
        ease(graph, regularization=0.0)
    with pytest.raises(ValueError, match=r"max_rank must be in 1\.\.25 \(got 26\)"):
        GraphFilter(graph, max_rank=26)
    with pytest.raises(ValueError, match=r"rank must be in 1\.\.3 \(got 4\)"):
        GraphFilter(graph, max_rank=3).scores(rank=4, low_pass=1.0)


# Losses beside InfoNCE and BPR: the value of a step against the formula, a node at a time


def unit(x_D: Tensor) -> Tensor:
    return x_D / x_D.norm()


def softmax_losses(score_XY: Tensor, temperature: float) -> Tensor:
    """Return the mean over rows of -log softmax of the diagonal. Shapes: [X, X] -> []."""
    logit_XY = score_XY / temperature
    return torch.stack([row.logsumexp(0) - row[place] for place, row in enumerate(logit_XY)]).mean()


def step_of(objective: Objective, model: torch.nn.Module) -> tuple[Tensor, Sampler]:
    """Return the mean loss of step 4 on random interactions, as ``train_step`` takes it, and the sampler."""
    sampler = Sampler(graph_of(interactions()), 7, batch_size=40, num_negatives=6)
    batch = sampler.draw(4)
    return objective.of_ends(objective.ends(model, sampler, None, 4), batch, sampler.graph) / 40, sampler


@pytest.mark.parametrize("by", ["dropped", "noise"])
@pytest.mark.parametrize("loss", ["infonce", "bpr"])
def test_contrast_is_the_formula(by: str, loss: str) -> None:
    model = IdEmbeddings(60, 25, width=5, layer_0_weight=0.2, seed=3).double()
    objective = Contrast(loss, 0.3, weight=0.7, contrast_temperature=0.4, **{by: 0.3})
    got, sampler = step_of(objective, model)
    graph, batch, weights = sampler.graph, sampler.draw(4), (0.2, 0.4, 0.4)
    if by == "noise":
        keys = [sampler.key(4, 3 + layer) for layer in range(3)]
        final, other = propagate_noisily(graph, model.user_UD, model.item_ID, weights, noise=0.3, keys=keys)
        one = final
    else:
        final = graph.propagate(model.user_UD, model.item_ID, weights)
        thin = [graph.thinned(0.3, sampler.key(4, stream)) for stream in (3, 4)]
        one, other = (view.propagate(model.user_UD, model.item_ID, weights) for view in thin)
    users, items = set(batch.user_B.tolist()), set(batch.item_BN[:, 0].tolist())
    expected = Objective(loss, 0.3)(*final, batch) / 40
    for one_XD, other_XD, nodes in zip(one, other, (sorted(users), sorted(items)), strict=True):
        cosine_XX = torch.stack(
            [torch.stack([unit(one_XD[node]) @ unit(other_XD[against]) for against in nodes]) for node in nodes]
        )
        expected = expected + 0.7 * softmax_losses(cosine_XX, 0.4)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=0)  # float64


def test_noise_has_its_length_and_the_signs_of_what_it_is_added_to() -> None:
    graph = graph_of(interactions())
    model = IdEmbeddings(60, 25, width=5, seed=3).double()
    keys = [(1, 2), (3, 4), (5, 6)]
    options = {"noise": 0.25, "keys": keys}
    (user_UD, item_ID), first = propagate_noisily(graph, model.user_UD, model.item_ID, (0.0, 1.0, 0.0), **options)
    plain = graph.propagate(model.user_UD, model.item_ID, (0.0, 1.0))
    for noisy_XD, exact_XD in zip((user_UD, item_ID), plain, strict=True):
        added_XD = noisy_XD - exact_XD
        some = exact_XD.abs().sum(1) > 0
        torch.testing.assert_close(added_XD[some].norm(dim=1), torch.full((int(some.sum()),), 0.25).double())
        assert (added_XD * exact_XD >= 0).all()
        assert not added_XD[~some].any()
    torch.testing.assert_close(first, (user_UD, item_ID))
    without, _ = propagate_noisily(graph, model.user_UD, model.item_ID, (0.2, 0.3, 0.5), noise=0.0, keys=keys)
    torch.testing.assert_close(without, graph.propagate(model.user_UD, model.item_ID, (0.2, 0.3, 0.5)))


def test_bias_margin_is_the_formula() -> None:
    model = IdEmbeddings(60, 25, width=5, popularity=True, seed=3).double()
    got, sampler = step_of(BiasMargin("infonce", 0.3, bias_weight=0.4), model)
    graph, batch, tables = sampler.graph, sampler.draw(4), model.popularity
    user_UD, item_ID = model(graph)
    expected = torch.zeros((), dtype=torch.float64)
    for user, items in zip(batch.user_B.tolist(), batch.item_BN.tolist(), strict=True):
        popular_D = tables.user_LD[int(graph.user_degree_U[user])]
        popular_ND = tables.item_LD[graph.item_degree_I[items]]
        cosine_N = torch.stack([unit(user_UD[user]) @ unit(item_ID[item]) for item in items])
        angle = torch.arccos(cosine_N[:1])
        margin = min(float(1 - torch.sigmoid(popular_D @ popular_ND[0]).detach()), math.pi - float(angle.detach()))
        turned_N = torch.cat([torch.cos(angle + margin), cosine_N[1:]])
        bias_N = torch.stack([unit(popular_D) @ unit(item_D) for item_D in popular_ND])
        for share, score_N in ((0.6, turned_N), (0.4, bias_N)):
            expected += share * ((score_N / 0.3).logsumexp(0) - score_N[0] / 0.3)
    torch.testing.assert_close(got, expected / 40, rtol=1e-10, atol=0)  # float64


def test_the_margin_is_not_trained_away_and_turns_nothing_past_the_opposite() -> None:
    model = IdEmbeddings(60, 25, width=5, popularity=True, seed=3).double()
    step_of(BiasMargin("infonce", 0.3, bias_weight=0.0), model)[0].backward()
    assert model.user_UD.grad is not None
    assert all(weight.grad is None or not weight.grad.any() for weight in model.popularity.parameters())
    # One user, whose items lie opposite to it: the angle is pi already, the cosine stays -1.
    ends = [torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.zeros(1, 2), torch.zeros(2, 2)]
    batch = Batch(torch.tensor([0]), torch.tensor([[0, 1]]), 1)
    loss = BiasMargin("infonce", 1.0, bias_weight=0.0).of_ends(ends, batch, graph_of(interactions()))
    assert float(loss) == pytest.approx(math.log(1 + math.exp(2)), abs=1e-5)  # float32, and the clamp before arccos


def test_degrees_past_the_table_share_its_last_row() -> None:
    model = IdEmbeddings(60, 25, width=5, popularity=True)
    graph, tables = graph_of(interactions()), model.popularity
    assert tables is not None
    graph.item_degree_I[4] = tables.LAST + 100
    assert torch.equal(tables(graph)[1][4], tables.item_LD[tables.LAST])


def test_multinomial_is_the_formula() -> None:
    seen_UI = interactions()
    model = MultVae(25, hidden_width=6, width=3, seed=3).double()
    torch.nn.init.normal_(model.biases["output"], generator=torch.Generator().manual_seed(1))
    got, sampler = step_of(Multinomial("multinomial", kl_weight=0.6), model)
    graph, kept = sampler.graph, sampler.graph.thinned(0.5, sampler.key(4, 3))
    draws_UZ = alpharec.baselines._normal(0, torch.zeros(60, 3, dtype=torch.float64), sampler.key(4, 4))
    biases, losses = model.biases, []
    for user in sorted(set(sampler.draw(4).user_B.tolist())):
        given_I = torch.zeros(25, dtype=torch.float64)
        given_I[kept.items[kept.rowptr[user] : kept.rowptr[user + 1]].long()] = (
            2 / graph.user_degree_U[user].double().sqrt()
        )
        hidden_H = torch.tanh(given_I @ model.encoder_IH + biases["encoder"])
        mean_Z, log_variance_Z = (model.latent_2ZH @ hidden_H + biases["latent"]).split(3)
        latent_Z = mean_Z + draws_UZ[user] * torch.exp(log_variance_Z / 2)
        decoded_H = torch.tanh(model.decoder_HZ @ latent_Z + biases["decoder"])
        log_I = torch.log_softmax(model.output_IH @ decoded_H + biases["output"], 0)
        divergence = 0.5 * (mean_Z**2 + log_variance_Z.exp() - 1 - log_variance_Z).sum()
        losses.append(0.6 * divergence - log_I[seen_UI[user]].sum())
    torch.testing.assert_close(got, torch.stack(losses).mean(), rtol=1e-6, atol=0)  # scales are float32


def test_normal_draws_are_normal() -> None:
    draws_XD = alpharec.baselines._normal(0, torch.empty(400, 500, dtype=torch.float64), (3, 4))
    assert abs(draws_XD.mean()) < 4 / 200_000**0.5
    assert abs(draws_XD.var() - 1) < 4 * (2 / 200_000) ** 0.5
    within = (draws_XD.abs() < 1).double().mean()
    assert abs(within - 0.6827) < 4 * (0.6827 * 0.3173 / 200_000) ** 0.5
    some_XD = alpharec.baselines._normal(100, draws_XD[:5], (3, 4))
    assert torch.equal(some_XD, draws_XD[100:105]), "a row's draws depend on its number alone"


@pytest.mark.parametrize("preset", ["paper", "lightgcn", "mf-bpr", "sgl", "xsimgcl", "bc-loss", "multvae"])
@pytest.mark.parametrize("hidden", [6, None])
def test_a_trained_model_is_loaded_as_it_was(preset: str, hidden: int | None) -> None:
    settings = Settings.model_validate({"preset": preset, "model": {"hidden_width": hidden, "width": 4}})
    model = build_model(settings, 8, 60, 25)
    weights = {name: torch.randn_like(weight) for name, weight in model.state_dict().items()}
    model.load_state_dict(weights)
    loaded, objective = load_model(settings.model_dump(mode="json"), weights)
    graph = graph_of(interactions())
    features = model.features(torch.randn(25, 8), graph)
    assert type(loaded) is type(model)
    for one, other in zip(loaded(graph, features), model(graph, features), strict=True):
        assert torch.equal(one, other)
    assert objective == build_objective(settings)
