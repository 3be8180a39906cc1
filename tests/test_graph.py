"""Propagation against the formula and PyG, workers against one, draws against counting.

Names end in their shape: U users, I items, E interactions, B batch, N negatives, D any width.
"""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor
from torch_geometric.nn import LGConv

import alpharec.graph
from alpharec.baselines import BiasMargin, Contrast, GraphFilter, IdEmbeddings, Multinomial, MultVae, ease
from alpharec.graph import VIRTUAL_SHARDS, Batch, InteractionGraph, Part, Sampler, _shuffle, layer_weights, user_range
from alpharec.model import AlphaRec, NonFiniteLossError, Objective, TextFeatures, train_step

WORKERS = (1, 2, 3, 7)
UNLIKELY = 1e-4  # p value: with the seeds fixed, a test passes always or never; a fair draw fails one seed in 10,000


def random_seen(num_users: int, num_items: int, *, share: float = 0.3, seed: int = 0) -> Tensor:
    """Return a random 0/1 matrix [U, I]; no user has every item."""
    generator = torch.Generator().manual_seed(seed)
    seen_UI = torch.rand(num_users, num_items, generator=generator) < share
    seen_UI[seen_UI.all(1), 0] = False
    return seen_UI


def isolated_seen(seed: int = 0) -> Tensor:
    """The same of 13 users and 17 items, with users 0, 6, 12 and items 0, 8, 16 alone: first, middle, last."""
    seen_UI = random_seen(13, 17, seed=seed)
    seen_UI[[0, 6, 12]] = False
    seen_UI[:, [0, 8, 16]] = False
    return seen_UI


def exact_seen() -> Tensor:
    """Degrees 0, 1, 4 and 16 only, whose inverse square roots the graph's float32 scales hold exactly."""
    ring = torch.stack([torch.ones(8).index_fill(0, torch.tensor([2, 4, 5, 7]), 0).roll(shift) for shift in range(8)])
    blocks = (ring, torch.ones(1, 4), torch.ones(16, 1), torch.ones(4, 16), torch.zeros(2, 3), torch.ones(1, 1))
    seen_UI = torch.block_diag(*blocks).bool()
    generator = torch.Generator().manual_seed(0)
    users, items = (torch.randperm(size, generator=generator) for size in seen_UI.shape)
    return seen_UI[users][:, items]


def graph_of(seen_UI: Tensor, part: Part = Part(), order: int | None = None) -> InteractionGraph:
    """Build the graph of a 0/1 matrix, its pairs in a random order if asked."""
    users, items = seen_UI.nonzero(as_tuple=True)
    if order is not None:
        mixed = torch.randperm(len(users), generator=torch.Generator().manual_seed(order))
        users, items = users[mixed], items[mixed]
    num_users, num_items = seen_UI.shape
    return InteractionGraph(users, items, num_users=num_users, num_items=num_items, part=part)


def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def literal_propagation(
    seen_UI: Tensor, user_UD: Tensor, item_ID: Tensor, weights: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """Sum over k = 0..L of w_k A_hat^k [user; item], A_hat = D^-1/2 A D^-1/2 as a dense float64 matrix."""
    num_users, num_items = seen_UI.shape
    adjacency = torch.zeros(num_users + num_items, num_users + num_items, dtype=torch.float64)
    adjacency[:num_users, num_users:] = seen_UI.double()
    adjacency += adjacency.T.clone()
    degree = adjacency.sum(1)
    root = torch.where(degree > 0, degree**-0.5, 0.0)
    normalised = torch.diag(root) @ adjacency @ torch.diag(root)
    start = torch.cat([user_UD, item_ID]).double()
    layers = [torch.linalg.matrix_power(normalised, layer) @ start for layer in range(len(weights))]
    final = torch.stack([weight * layer for weight, layer in zip(weights, layers, strict=True)]).sum(0)
    return final[:num_users], final[num_users:]


def test_a_thinned_graph_is_the_graph_of_what_is_left() -> None:
    graph, seen_UI = graph_of(random_seen(60, 40)), random_seen(60, 40)
    key = Sampler(graph, 3, batch_size=8, num_negatives=2).key(5, 3)
    thin = graph.thinned(0.4, key)
    users, items = torch.repeat_interleave(thin.user_degree_U), thin.items.long()
    left_UI = torch.zeros_like(seen_UI)
    left_UI[users, items] = True
    assert not (left_UI & ~seen_UI).any()
    share = 1 - left_UI.sum() / seen_UI.sum()
    assert abs(share - 0.4) < 3 * (0.24 / seen_UI.sum()) ** 0.5  # three deviations
    user_UD, item_ID = normal(60, 3), normal(40, 3, seed=2)
    got, expected = (of.propagate(user_UD, item_ID, layer_weights(2)) for of in (thin, graph_of(left_UI)))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-15)
    other = graph.thinned(0.4, Sampler(graph, 3, batch_size=8, num_negatives=2).key(6, 3))
    assert not torch.equal(other.user_degree_U, thin.user_degree_U), "another step leaves out others"
    assert torch.equal(graph.items, graph_of(seen_UI).items), "the graph itself is as it was"


# Propagation


@pytest.mark.parametrize(
    "weights", [(1.0,), (1 / 2, 1 / 2), (1 / 3,) * 3, (1 / 4,) * 4, (0.0, 1.0), (0.6, 0.2, 0.2), (0.5, 0.0, 0.3, 0.7)]
)
def test_propagate_is_the_formula(weights: tuple[float, ...]) -> None:
    exact = exact_seen()
    assert set(exact.sum(1).tolist()) | set(exact.sum(0).tolist()) == {0, 1, 4, 16}
    # 1e-12: float64 sums of at most 16 terms of size 1. 1e-6: any other degree's scale is rounded to float32.
    for seen_UI, tolerance in ((exact, 1e-12), (isolated_seen(), 1e-6)):
        user_UD, item_ID = normal(seen_UI.shape[0], 5), normal(seen_UI.shape[1], 5, seed=2)
        got = graph_of(seen_UI, order=3).propagate(user_UD, item_ID, weights)
        for one, other in zip(got, literal_propagation(seen_UI, user_UD, item_ID, weights), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def test_layer_weights_add_up_to_one() -> None:
    assert layer_weights(2) == (1 / 3, 1 / 3, 1 / 3)
    assert layer_weights(0) == layer_weights(0, 0.3) == (1.0,)
    assert layer_weights(2, 0.5) == (0.5, 0.25, 0.25)
    assert layer_weights(3, 0.0) == (0.0, 1 / 3, 1 / 3, 1 / 3)


def test_an_isolated_node_keeps_its_first_layer_only() -> None:
    seen_UI = isolated_seen()
    user_UD, item_ID = normal(13, 4), normal(17, 4, seed=2)
    user, item = graph_of(seen_UI).propagate(user_UD, item_ID, layer_weights(2))
    torch.testing.assert_close(user[[0, 6, 12]], user_UD[[0, 6, 12]] / 3, rtol=1e-15, atol=0)  # float64
    torch.testing.assert_close(item[[0, 8, 16]], item_ID[[0, 8, 16]] / 3, rtol=1e-15, atol=0)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_propagate_equals_pyg(num_layers: int) -> None:
    seen_UI = isolated_seen(seed=4)
    user_UD, item_ID = normal(13, 6, dtype=torch.float32), normal(17, 6, seed=2, dtype=torch.float32)
    users, items = seen_UI.nonzero(as_tuple=True)
    edge_index = torch.stack([torch.cat([users, items + 13]), torch.cat([items + 13, users])])
    layers = [torch.cat([user_UD, item_ID])]
    for _ in range(num_layers):
        layers.append(LGConv()(layers[-1], edge_index))
    expected = torch.stack(layers).mean(0)
    got = torch.cat(graph_of(seen_UI).propagate(user_UD, item_ID, layer_weights(num_layers)))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)  # float32, values of size 1, under 17 terms a sum


def test_mean_of_items_is_the_loop() -> None:
    for seen_UI, tolerance in ((exact_seen(), 1e-15), (isolated_seen(), 1e-6)):  # 1e-6: float32 scales, as above
        item_ID = normal(seen_UI.shape[1], 3)
        got = graph_of(seen_UI, order=5).mean_of_items(item_ID)
        for user, seen_I in enumerate(seen_UI):
            expected = item_ID[seen_I].mean(0) if seen_I.any() else torch.zeros(3, dtype=torch.float64)
            torch.testing.assert_close(got[user], expected, rtol=0, atol=tolerance)


def test_gradients_by_finite_differences() -> None:
    graph = graph_of(isolated_seen()[3:9, 5:12])
    user_UD, item_ID = normal(6, 2).requires_grad_(), normal(7, 2, seed=2).requires_grad_()
    # gradcheck's own 1e-6 step and 1e-5 + 1e-3 relative tolerance: float64 finite differences of linear maps.
    # The transposed mean, on all of whose calls the projector's gradient rests: <M x, y> = <x, M^T y>.
    product = (graph.mean_of_items(item_ID.detach()) * user_UD.detach()).sum()
    transposed = (item_ID.detach() * graph.mean_to_items(user_UD.detach().clone())).sum()
    torch.testing.assert_close(product, transposed, rtol=0, atol=1e-6)  # float32 scales, 2 x 7 terms of size 1
    for num_layers in range(4):
        assert torch.autograd.gradcheck(
            lambda user, item, layers=num_layers: graph.propagate(user, item, layer_weights(layers)), (user_UD, item_ID)
        )
        for side in (0, 1):  # only one output used: the other's gradient is zero, not missing
            assert torch.autograd.gradcheck(
                lambda user, item, layers=num_layers, side=side: graph.propagate(user, item, layer_weights(layers))[
                    side
                ],
                (user_UD, item_ID),
            )


# What the graph refuses


def test_a_pair_given_twice_is_refused() -> None:
    users, items = torch.tensor([0, 1, 2, 1]), torch.tensor([1, 3, 0, 3])
    with pytest.raises(ValueError, match=r"1 pairs occur twice \(got user 1, item 3\)"):
        InteractionGraph(users, items, num_users=3, num_items=4)


@pytest.mark.parametrize(
    ("users", "items", "message"),
    [
        ([0, 3], [0, 0], r"user indices must lie in 0\.\.2 \(got 0\.\.3\)"),
        ([-1, 0], [0, 0], r"user indices must lie in 0\.\.2 \(got -1\.\.0\)"),
        ([0, 1], [0, 4], r"item indices must lie in 0\.\.3 \(got 0\.\.4\)"),
        ([0, 1], [-2, 0], r"item indices must lie in 0\.\.3 \(got -2\.\.0\)"),
    ],
)
def test_an_index_out_of_range_is_refused(users: list[int], items: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InteractionGraph(torch.tensor(users), torch.tensor(items), num_users=3, num_items=4)


# Workers


@settings(max_examples=60, deadline=None)
@given(num_users=st.integers(1, 40), num_items=st.integers(1, 20), size=st.integers(1, 12), seed=st.integers(0, 2**32))
def test_ranges_partition_the_users(num_users: int, num_items: int, size: int, seed: int) -> None:
    seen_UI = random_seen(num_users, num_items, share=seed % 5 / 5, seed=seed)
    parts = [graph_of(seen_UI, Part(rank, size)) for rank in range(size)]
    ranges = [(part.first_user, part.first_user + part.num_local_users) for part in parts]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == num_users
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(ranges))
    for part, (start, end) in zip(parts, ranges, strict=True):
        rows, items = seen_UI[start:end].nonzero(as_tuple=True)
        assert part.items.tolist() == items.tolist()
        assert part.user_degree_U.tolist() == torch.bincount(rows, minlength=end - start).tolist()
        assert part.item_degree_I.tolist() == seen_UI.sum(0).tolist()  # of all users, not of its own


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_users_of_a_worker_are_whole_virtual_shards(size: int) -> None:
    degree = torch.randint(0, 50, (20_000,), generator=torch.Generator().manual_seed(1))
    shards = [user_range(degree, Part(shard, VIRTUAL_SHARDS)) for shard in range(VIRTUAL_SHARDS)]
    for rank in range(size):
        first, last = user_range(degree, Part(rank, size))
        own = shards[VIRTUAL_SHARDS * rank // size : VIRTUAL_SHARDS * (rank + 1) // size]
        assert (first, last) == (own[0][0], own[-1][1])
        assert (degree[first:last] + 8).sum().item() == pytest.approx((degree + 8).sum().item() / size, rel=0.01)


def test_degrees_that_do_not_count_the_pairs_are_refused() -> None:
    degree = torch.tensor([2, 1])
    pairs = {"users": torch.tensor([0, 1]), "items": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match="user_degree does not count the pairs"):
        InteractionGraph(**pairs, num_users=2, num_items=2, user_degree=degree)
    graph = InteractionGraph(**pairs, num_users=2, num_items=2, user_degree=torch.tensor([1, 1]))
    assert graph.item_degree_I.tolist() == [1, 1]


def test_a_worker_with_more_interactions_than_int32_counts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alpharec.graph, "MOST_INTERACTIONS", 3)
    with pytest.raises(ValueError, match=r"at most 2\^31 - 1 interactions \(got 4\); use more workers"):
        graph_of(torch.ones(2, 2).bool())


@given(num_rows=st.integers(0, 100), size=st.integers(1, 12))
def test_shares_partition_the_rows(num_rows: int, size: int) -> None:
    rows = [row for rank in range(size) for row in range(num_rows)[Part(rank, size).rows(num_rows)]]
    assert rows == list(range(num_rows))


STEPS = 3


def share(part: Part, item_IT: Tensor) -> Tensor:
    return item_IT[part.rows(len(item_IT))]


# float64 and widths of 4; every loss but the last adds to InfoNCE
OTHERS: dict[str, tuple[Any, Objective]] = {
    "ids": (lambda *sizes: IdEmbeddings(*sizes, width=4, seed=5), Objective()),
    "sgl": (lambda *sizes: IdEmbeddings(*sizes, width=4, seed=5), Contrast(weight=0.3, dropped=0.3)),
    "residual": (lambda *sizes: AlphaRec(6, hidden_width=10, projector="residual", seed=5), Objective()),
    "sgl of titles": (lambda *sizes: AlphaRec(6, hidden_width=10, width=4, seed=5), Contrast(weight=0.3, dropped=0.3)),
    "xsimgcl": (
        lambda *sizes: IdEmbeddings(*sizes, width=4, layer_0_weight=0.0, seed=5),
        Contrast(weight=0.3, noise=0.1),
    ),
    "bc": (lambda *sizes: IdEmbeddings(*sizes, width=4, popularity=True, seed=5), BiasMargin()),
    "multvae": (lambda users, items: MultVae(items, hidden_width=6, width=4, seed=5), Multinomial("multinomial")),
}


def take_steps(
    part: Part,
    seen_UI: Tensor,
    *,
    commute: bool,
    other: str = "",
    first: bool = False,
    whole: bool = False,
    centred: bool = False,
) -> dict[str, Tensor]:
    """Take three steps of a float64 model; return representations and gradients of the first, losses, weights.

    ``other``: a model and a loss of ``OTHERS``; ``first``: vectors are propagated before; ``whole``: every worker has
    all items.
    """
    graph, item_IT = graph_of(seen_UI, part), normal(seen_UI.shape[1], 6)
    text_model = AlphaRec(6, hidden_width=10, width=4, num_layers=2, propagate_first=first, seed=5)
    make, objective = OTHERS.get(other, (lambda *sizes: text_model, Objective()))
    model = make(*seen_UI.shape).double()
    commute &= other != "residual"  # which keeps users' means
    weights = layer_weights(2 if first else 0)
    features = TextFeatures.build(share(part, item_IT), graph, commute=commute, weights=weights, centred=centred)
    assert (features.user_UT is None) == commute
    user_UD, item_ID = model(graph, features)
    if whole:
        features = TextFeatures(graph.gather_items(features.item_ST), features.user_UT, whole)
    result = {"user": user_UD.detach(), "item": item_ID.detach()}
    sampler = Sampler(graph, seed=9, batch_size=24, num_negatives=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for step in range(STEPS):
        losses.append(train_step(model, optimizer, features, sampler, step, objective))
        if step == 0:
            result |= {f"gradient of {name}": weight.grad.clone() for name, weight in model.named_parameters()}
    result["losses"] = torch.tensor(losses, dtype=torch.float64)
    return result | {name: weight.detach() for name, weight in model.named_parameters()}


def two_users() -> Tensor:
    """Fewer users than three workers: worker 0 has none."""
    return torch.eye(2, 24).bool()


def spoil_one_worker(part: Part) -> bool:
    """Let the loss be NaN on the last worker alone; return whether this one stopped with its weights unchanged."""
    graph = graph_of(random_seen(30, 12), part)
    model = AlphaRec(6, hidden_width=10, width=4, num_layers=0).double()
    before = [weight.detach().clone() for weight in model.parameters()]
    features = TextFeatures.build(share(part, normal(12, 6)), graph, commute=False)
    if part.rank == part.size - 1:
        features.user_UT.fill_(float("nan"))
    sampler = Sampler(graph, seed=1, batch_size=60, num_negatives=3)
    assert len(sampler.draw(0).user_B)
    with pytest.raises(NonFiniteLossError, match="loss is nan"):
        train_step(model, torch.optim.Adam(model.parameters()), features, sampler, 0, Objective())
    return all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def centred_mix(part: Part) -> dict[str, Tensor]:
    """Return users' means and items of two datasets, each centred by its own; items on all workers."""
    users, items = isolated_seen().nonzero(as_tuple=True)
    sizes = dict(zip(("num_users", "num_items"), isolated_seen().shape, strict=True))
    graph = InteractionGraph(users, items, **sizes, part=part, domains=[(0, 0), (11, 9)])
    features = TextFeatures.build(share(part, normal(sizes["num_items"], 6)), graph, commute=False, centred=True)
    return {"user": features.user_UT, "item": graph.gather_items(features.item_ST)}


def closed_forms(part: Part) -> dict[str, Tensor]:
    graph = graph_of(isolated_seen(), part)
    graph_filter = GraphFilter(graph, max_rank=3)
    return {"ease": ease(graph, regularization=2.0), "gf-cf": graph_filter.into_weights(rank=3, low_pass=0.5)}


def work(rank: int, folder: Path) -> None:
    """Be one of three workers, then, without the third, one of two."""
    torch.set_num_threads(1)
    for size in (3, 2):
        if rank >= size:
            return
        part = Part(rank, size)
        rendezvous = f"file://{folder}/rendezvous{size}"
        torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=size)
        results = {
            "commuted": take_steps(part, isolated_seen(), commute=True),
            "stored": take_steps(part, isolated_seen(), commute=False),
            "centred": take_steps(part, isolated_seen(), commute=True, centred=True),
            "centred mix": centred_mix(part),
            "few": take_steps(part, two_users(), commute=True),
            **{other: take_steps(part, isolated_seen(), commute=True, other=other) for other in OTHERS},
            **{f"few {other}": take_steps(part, two_users(), commute=True, other=other) for other in OTHERS},
            "first": take_steps(part, isolated_seen(), commute=False, first=True),
            "whole": take_steps(part, isolated_seen(), commute=False, first=True, whole=True),
            "closed forms": closed_forms(part),
            "stopped": spoil_one_worker(part),
        }
        torch.save(results, folder / f"{size}-{rank}.pt")
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def test_workers_equal_one_worker(tmp_path: Path) -> None:
    # The fork server imports once for all three; three spawned workers would each take seconds to import PyG.
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["alpharec.model", "torch_geometric.nn", "pytest", "hypothesis", "scipy.stats"]
    )
    torch.multiprocessing.start_processes(work, (tmp_path,), nprocs=3, start_method="forkserver")
    alone = {
        "commuted": take_steps(Part(), isolated_seen(), commute=True),
        "stored": take_steps(Part(), isolated_seen(), commute=False),
        "centred": take_steps(Part(), isolated_seen(), commute=True, centred=True),
        "centred mix": centred_mix(Part()),
        "few": take_steps(Part(), two_users(), commute=True),
        **{other: take_steps(Part(), isolated_seen(), commute=True, other=other) for other in OTHERS},
        **{f"few {other}": take_steps(Part(), two_users(), commute=True, other=other) for other in OTHERS},
        "first": take_steps(Part(), isolated_seen(), commute=False, first=True),
        "whole": take_steps(Part(), isolated_seen(), commute=False, first=True, whole=True),
    }
    assert alone["commuted"]["first.weight"].abs().max() > 0.1  # the comparison below is of numbers of size 1
    for size in (2, 3):
        workers = [torch.load(tmp_path / f"{size}-{rank}.pt") for rank in range(size)]
        for case, expected in alone.items():
            users = torch.cat([worker[case].pop("user") for worker in workers])
            # Relative 1e-10, absolute 1e-12: float64, and only the order of sums differs between worker counts.
            torch.testing.assert_close(users, expected["user"], rtol=1e-10, atol=1e-12)
            for worker in workers:
                assert worker[case].keys() == expected.keys() - {"user"}
                for name, value in worker[case].items():
                    torch.testing.assert_close(
                        value, expected[name], rtol=1e-10, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}"
                    )
            weights = [name for name in expected if name not in ("user", "item", "losses") and "gradient" not in name]
            for name in weights:  # every worker holds the same bits, or they would drift apart
                assert all(torch.equal(worker[case][name], workers[0][case][name]) for worker in workers)
        assert all(worker["stopped"] for worker in workers)
        solved = closed_forms(Part())
        for worker in workers:
            assert torch.equal(worker["closed forms"]["ease"], solved["ease"]), "counts add up to the same bits"
            torch.testing.assert_close(worker["closed forms"]["gf-cf"], solved["gf-cf"], rtol=0, atol=1e-6)


# Drawing


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, int, int, int]:
    """A graph with at least one pair and an unseen item for everyone; a seed, a batch size, a number of negatives."""
    seed = draw(st.integers(0, 2**63))
    share = draw(st.sampled_from([0.05, 0.3, 0.9, 1.0]))
    seen_UI = random_seen(draw(st.integers(1, 12)), draw(st.integers(2, 12)), share=share, seed=seed)
    seen_UI[0, :2] = torch.tensor([True, False])
    return seen_UI, seed, draw(st.integers(1, 40)), draw(st.integers(1, 8))


@settings(max_examples=80, deadline=None)
@given(problem=problems(), step=st.integers(0, 1000))
def test_positives_are_seen_and_negatives_are_not(problem: tuple[Tensor, int, int, int], step: int) -> None:
    seen_UI, seed, batch_size, num_negatives = problem
    batch = Sampler(graph_of(seen_UI), seed, batch_size, num_negatives).draw(step)
    assert batch.item_BN.shape == (min(batch_size, int(seen_UI.sum())), 1 + num_negatives)
    seen_BN = seen_UI[batch.user_B[:, None], batch.item_BN]
    assert seen_BN[:, 0].all()
    assert not seen_BN[:, 1:].any()


MIX = [(0, 0), (5, 4), (12, 10)]  # first user and first item of three datasets; 20 users, 17 items in all


def mixed_seen() -> Tensor:
    """Three datasets: users of one have items of it alone, and leave at least one unseen."""
    seen_UI = torch.zeros(20, 17, dtype=torch.bool)
    ends = [*MIX[1:], (20, 17)]
    for number, ((user, item), (end_user, end_item)) in enumerate(zip(MIX, ends, strict=True)):
        seen_UI[user:end_user, item:end_item] = random_seen(end_user - user, end_item - item, share=0.4, seed=number)
        seen_UI[user:end_user, item] = False
    return seen_UI


def mixed_graph(seen_UI: Tensor) -> InteractionGraph:
    users, items = seen_UI.nonzero(as_tuple=True)
    return InteractionGraph(users, items, num_users=20, num_items=17, domains=MIX)


def test_negatives_of_a_mix_are_all_the_unseen_items_of_the_own_dataset() -> None:
    seen_UI = mixed_seen()
    sampler, drawn = Sampler(mixed_graph(seen_UI), 3, 64, 9), torch.zeros(20, 17, dtype=torch.bool)
    for step in range(60):
        batch = sampler.draw(step)
        assert seen_UI[batch.user_B, batch.item_BN[:, 0].long()].all()
        drawn[batch.user_B[:, None], batch.item_BN[:, 1:].long()] = True
    expected = torch.zeros(20, 17, dtype=torch.bool)
    for (user, item), (end_user, end_item) in zip(MIX, [*MIX[1:], (20, 17)], strict=True):
        expected[user:end_user, item:end_item] = ~seen_UI[user:end_user, item:end_item]
    expected[seen_UI.sum(1) == 0] = False  # without a train item a user is never drawn
    assert torch.equal(drawn, expected)


def test_a_user_with_all_items_of_its_own_dataset_is_refused() -> None:
    seen_UI = mixed_seen()
    seen_UI[6, 4:10] = True
    with pytest.raises(ValueError, match="user 6 has every item in train"):
        Sampler(mixed_graph(seen_UI), 3, 64, 9)


def test_users_drawn_by_interactions_come_as_often_as_they_have_items() -> None:
    seen_UI = random_seen(12, 20)
    graph = graph_of(seen_UI)
    epoch = Sampler(graph, 5, graph.num_interactions, 2, by_interactions=True).draw(0)
    assert torch.equal(torch.bincount(epoch.user_B, minlength=12), seen_UI.sum(1))
    alike = torch.bincount(Sampler(graph, 5, graph.num_interactions, 2).draw(0).user_B, minlength=12)
    there = alike[seen_UI.any(1)]
    assert there.max() - there.min() <= 1


@settings(max_examples=30, deadline=None)
@given(problem=problems(), step=st.integers(0, 1000))
def test_workers_share_one_batch(problem: tuple[Tensor, int, int, int], step: int) -> None:
    seen_UI, *choices = problem
    whole = Sampler(graph_of(seen_UI), *choices).draw(step)
    for size in WORKERS:
        drawn = 0
        for rank in range(size):
            graph = graph_of(seen_UI, Part(rank, size))
            batch = Sampler(graph, *choices).draw(step)
            end = graph.first_user + graph.num_local_users
            mine = (graph.first_user <= whole.user_B) & (whole.user_B < end)
            assert (batch.user_B + graph.first_user).tolist() == whole.user_B[mine].tolist()
            assert batch.item_BN.tolist() == whole.item_BN[mine].tolist()
            drawn += len(batch.user_B)
        assert drawn == len(whole.user_B)


@settings(max_examples=30, deadline=None)
@given(problem=problems(), step=st.integers(0, 1000), at_once=st.integers(1, 40))
def test_pieces_are_the_batch(problem: tuple[Tensor, int, int, int], step: int, at_once: int) -> None:
    seen_UI, *choices = problem
    sampler = Sampler(graph_of(seen_UI), *choices, at_once=at_once)
    pieces, whole = list(sampler.pieces(step)), sampler.draw(step)
    assert all(len(piece.user_B) <= at_once for piece in pieces)
    joined = (torch.cat([getattr(piece, field) for piece in pieces]) for field in ("user_B", "item_BN"))
    assert same(Batch(*joined, sum(piece.size for piece in pieces)), whole)


def same(one: Batch, other: Batch) -> bool:
    same_rows = torch.equal(one.user_B, other.user_B) and torch.equal(one.item_BN, other.item_BN)
    return same_rows and one.size == other.size


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    seen_UI = random_seen(20, 30)
    sampler = Sampler(graph_of(seen_UI), seed=7, batch_size=50, num_negatives=4)
    in_order = [sampler.draw(step) for step in range(8)]
    torch.manual_seed(123)
    fresh = Sampler(graph_of(seen_UI, order=2), seed=7, batch_size=50, num_negatives=4)
    assert all(same(fresh.draw(step), in_order[step]) for step in reversed(range(8)))
    other_seed = Sampler(graph_of(seen_UI), seed=8, batch_size=50, num_negatives=4)
    for field in ("user_B", "item_BN"):
        drawn = [getattr(batch, field) for batch in (*in_order, *(other_seed.draw(step) for step in range(8)))]
        assert len({tuple(values.flatten().tolist()) for values in drawn}) == 16


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    Sampler(graph_of(random_seen(5, 6)), seed=1, batch_size=4, num_negatives=2).draw(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_epoch_draws_every_train_user_equally_often() -> None:
    seen_UI = isolated_seen()
    while int(seen_UI.sum()) % 4:  # whole batches only
        seen_UI[tuple(seen_UI.nonzero()[-1])] = False
    num_interactions, train_users = int(seen_UI.sum()), seen_UI.any(1).nonzero().squeeze(1).tolist()
    assert num_interactions % len(train_users), "an uneven share, or floor and ceil would be the same"
    sampler = Sampler(graph_of(seen_UI), seed=3, batch_size=num_interactions // 4, num_negatives=1)
    assert sampler.steps_per_epoch == 4
    for epoch in range(5):
        counts = Counter(user for step in range(4) for user in sampler.draw(4 * epoch + step).user_B.tolist())
        assert sorted(counts) == train_users  # so no user without train items is drawn
        floor = num_interactions // len(train_users)
        assert set(counts.values()) == {floor, floor + 1}


def test_negatives_are_uniform_over_unseen_items() -> None:
    seen_UI = random_seen(6, 15)
    sampler = Sampler(graph_of(seen_UI), seed=11, batch_size=12, num_negatives=64)
    batches = [sampler.draw(step) for step in range(60)]
    users, items = torch.cat([batch.user_B for batch in batches]), torch.cat([batch.item_BN for batch in batches])
    for user in range(6):
        drawn_I = torch.bincount(items[users == user, 1:].flatten(), minlength=15)
        assert drawn_I[seen_UI[user]].sum() == 0
        assert chisquare(drawn_I[~seen_UI[user]].numpy()).pvalue > UNLIKELY
    # The places of a row are independent: neighbours in a row meet as often as chance has them.
    unseen = (~seen_UI[0]).sum()
    pair = items[users == 0, 1] * 15 + items[users == 0, 2]
    meetings = torch.bincount(pair, minlength=225).view(15, 15)[~seen_UI[0]][:, ~seen_UI[0]]
    assert meetings.numel() == unseen**2
    assert chisquare(meetings.flatten().numpy()).pvalue > UNLIKELY


def test_positives_are_uniform_over_train_items() -> None:
    seen_UI = random_seen(6, 15)
    sampler = Sampler(graph_of(seen_UI), seed=13, batch_size=12, num_negatives=1)
    batches = [sampler.draw(step) for step in range(1000)]
    users = torch.cat([batch.user_B for batch in batches])
    positives = torch.cat([batch.item_BN[:, 0] for batch in batches])
    for user in range(6):
        drawn_I = torch.bincount(positives[users == user], minlength=15)
        assert drawn_I[~seen_UI[user]].sum() == 0
        assert chisquare(drawn_I[seen_UI[user]].numpy()).pvalue > UNLIKELY


def test_a_user_with_every_item_is_refused() -> None:
    seen_UI = random_seen(4, 3)
    seen_UI[2] = True
    with pytest.raises(ValueError, match="user 2 has every item in train"):
        Sampler(graph_of(seen_UI), seed=0, batch_size=2, num_negatives=1)


def test_a_batch_larger_than_the_graph_is_one_epoch() -> None:
    seen_UI = isolated_seen()
    num_interactions = int(seen_UI.sum())
    large, equal = (Sampler(graph_of(seen_UI), 2, size, 3) for size in (10 * num_interactions, num_interactions))
    assert (large.steps_per_epoch, large.positives_per_step) == (1, num_interactions)
    for step in range(3):
        assert len(large.draw(step).user_B) == num_interactions
        assert same(large.draw(step), equal.draw(step))


@pytest.mark.parametrize("size", [1000, 4096, 4097, 65_537])
def test_shuffle_is_a_bijection_of_large_sizes(size: int) -> None:
    place = _shuffle(torch.arange(size), size, (12345, 67890))
    assert torch.equal(place.sort().values, torch.arange(size))
    fixed = int((place == torch.arange(size)).sum())
    assert fixed < 10  # a random permutation has one fixed point on average, 10 or more once in 9 million


def test_shuffle_is_a_bijection_of_small_sizes() -> None:
    for size in range(1, 201):
        for key in ((0, 0), (size, 2**32 - 1)):
            assert sorted(_shuffle(torch.arange(size), size, key).tolist()) == list(range(size))


@pytest.mark.parametrize("size", [100, 30_000])
def test_shuffle_puts_an_index_anywhere(size: int) -> None:
    keys = torch.randint(2**32, (2000, 2), generator=torch.Generator().manual_seed(0)).tolist()
    index = torch.tensor([0, 1, size // 2, size - 1])
    place = torch.stack([_shuffle(index, size, (low, high)) for low, high in keys])
    for tenth in (place * 10 // size).T:
        assert chisquare(torch.bincount(tenth, minlength=10).numpy()).pvalue > UNLIKELY
