"""Lists against a sort in pure Python, metrics against arithmetic, pytrec_eval and ranx."""

from __future__ import annotations

import math

import pytest
import pytrec_eval
import ranx
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alpharec.ranking import (
    MARGIN,
    Groups,
    Lists,
    evaluate,
    item_popularity_groups,
    list_metrics,
    rank,
    top_k,
    user_activity_groups,
)

KS = (1, 2, 5, 20)
TREC = {"recall": "recall_", "ndcg": "ndcg_cut_", "hr": "success_", "precision": "P_", "map": "map_cut_"}
RANX = {"recall": "recall", "ndcg": "ndcg", "hr": "hit_rate", "precision": "precision", "map": "map", "mrr": "mrr"}


def lists(*items_of_user: list[int]) -> Lists:
    users = [user for user, items in enumerate(items_of_user) for _ in items]
    items = [item for items in items_of_user for item in items]
    return Lists.from_pairs(torch.tensor(users).long(), torch.tensor(items).long(), len(items_of_user))


def as_sets(of: Lists) -> list[set[int]]:
    return [set(of.rows(torch.tensor([user]))[1].tolist()) for user in range(of.num_users)]


def every_user(of: Tensor) -> Tensor:
    return torch.arange(len(of))


def brute_force(user_D: Tensor, item_ID: Tensor, k: int, seen: set[int]) -> tuple[list[int], list[float]]:
    """Sort by (-score, index), the score summed without error and rounded to float32 once."""
    user = user_D.tolist()
    exact = [math.fsum(a * b for a, b in zip(user, item, strict=True)) for item in item_ID.tolist()]
    score = torch.tensor(exact, dtype=torch.float64).float().tolist()
    order = sorted((item for item in range(len(score)) if item not in seen), key=lambda item: (-score[item], item))[:k]
    rest = k - len(order)
    return order + [-1] * rest, [score[item] for item in order] + [-math.inf] * rest


@st.composite
def problems(draw: st.DrawFn, max_items: int = 40) -> tuple[Tensor, Tensor, Lists, Lists]:
    """Representations (few levels: mostly ties; or normal), seen and truth without a common pair."""
    num_users, num_items, width = draw(st.integers(1, 6)), draw(st.integers(1, max_items)), draw(st.integers(1, 5))
    levels = draw(st.sampled_from([1, 2, 4, None]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    user_UD, item_ID = (torch.randn(size, width, generator=generator) for size in (num_users, num_items))
    if levels is not None:
        user_UD, item_ID = (user_UD * levels).round() / levels, (item_ID * levels).round() / levels
    drawn_UI = torch.rand(num_users, num_items, generator=generator)
    seen_share, truth_share = draw(st.sampled_from([0, 0.3, 0.9])), draw(st.sampled_from([0.1, 0.5, 1]))
    seen_UI = drawn_UI < seen_share
    truth_UI = ~seen_UI & (torch.rand(num_users, num_items, generator=generator) < truth_share)
    seen, truth = (Lists.from_pairs(*mask.nonzero(as_tuple=True), num_users) for mask in (seen_UI, truth_UI))
    return user_UD, item_ID, seen, truth


# Lists


def test_lists_sort_and_drop_duplicates() -> None:
    made = Lists.from_pairs(torch.tensor([2, 0, 2, 2, 0]), torch.tensor([5, 9, 1, 5, 3]), 4)
    assert made.indptr.tolist() == [0, 2, 2, 4, 4]
    assert made.items.tolist() == [3, 9, 1, 5]
    assert made.counts.tolist() == [2, 0, 2, 0]


def test_lists_rows_follow_the_block_in_any_order_and_with_repeats() -> None:
    row, item = lists([3, 9], [], [1, 5]).rows(torch.tensor([2, 1, 0, 2]))
    assert row.tolist() == [0, 0, 2, 2, 3, 3]
    assert item.tolist() == [1, 5, 3, 9, 1, 5]


def test_lists_contain_across_user_borders_and_never_the_empty_place() -> None:
    made = lists([0, 7], [], [0])
    inside = made.contains(torch.tensor([0, 1, 2]), torch.tensor([[-1, 0, 7, 8], [-1, 0, 7, 8], [-1, 0, 7, 8]]))
    assert inside.tolist() == [[False, True, True, False], [False] * 4, [False, True, False, False]]


def test_lists_of_nothing() -> None:
    empty = lists([], [])
    assert empty.counts.tolist() == [0, 0]
    assert not empty.contains(torch.tensor([0, 1]), torch.tensor([[0], [-1]])).any()
    assert as_sets(empty.union(lists([4], []))) == [{4}, set()]


@settings(deadline=None)
@given(problems(), problems())
def test_lists_union_and_shared_equal_sets(
    one: tuple[Tensor, Tensor, Lists, Lists], two: tuple[Tensor, Tensor, Lists, Lists]
) -> None:
    num_users = min(one[2].num_users, two[3].num_users)
    left, right = (lists(*map(list, as_sets(x)[:num_users])) for x in (one[2], two[3]))
    pairs = list(zip(as_sets(left), as_sets(right), strict=True))
    assert as_sets(left.union(right)) == [a | b for a, b in pairs]
    user, item = left.shared(right)
    expected = [(u, i) for u, (a, b) in enumerate(pairs) for i in sorted(a & b)]
    assert list(zip(user.tolist(), item.tolist(), strict=True)) == expected


def test_lists_refuse_what_is_no_list() -> None:
    with pytest.raises(ValueError, match=r"users must be in 0 \.\. 1 \(got 0 \.\. 2\)"):
        Lists.from_pairs(torch.tensor([0, 2]), torch.tensor([1, 1]), 2)
    with pytest.raises(ValueError, match="items must be 0 or more"):
        Lists.from_pairs(torch.tensor([0]), torch.tensor([-1]), 2)
    with pytest.raises(ValueError, match="rise within a user"):
        Lists(torch.tensor([0, 2]), torch.tensor([5, 3]))
    with pytest.raises(ValueError, match="indptr must rise from 0 to 2"):
        Lists(torch.tensor([0, 3]), torch.tensor([3, 5]))
    with pytest.raises(ValueError, match="same users"):
        lists([1]).union(lists([1], [2]))
    assert Lists(torch.tensor([0, 1, 1, 2]), torch.tensor([5, 3])).num_users == 3  # may fall between users


# Order


@settings(max_examples=300, deadline=None)
@given(problems(), st.integers(1, 50))
def test_lists_equal_a_sort_in_pure_python(problem: tuple[Tensor, Tensor, Lists, Lists], k: int) -> None:
    user_UD, item_ID, seen, _ = problem
    item_UK, score_UK = top_k(user_UD, item_ID, k, seen=seen, users=every_user(user_UD))
    for user, seen_items in enumerate(as_sets(seen)):
        assert (item_UK[user].tolist(), score_UK[user].tolist()) == brute_force(user_UD[user], item_ID, k, seen_items)


@pytest.mark.parametrize("copies", [2, MARGIN + 5, 700])
def test_equal_titles_come_by_lower_index_wherever_they_lie(copies: int) -> None:
    """700 copies reach far beyond K and the margin; copies lie where matrix products differ in the last bit."""
    generator = torch.Generator().manual_seed(3)
    item_ID = torch.nn.functional.normalize(torch.randn(1013, 64, generator=generator), dim=1)
    where = torch.randperm(1013, generator=generator)[:copies]
    item_ID[where] = item_ID[5].clone()
    user_BD = item_ID[5] + 0.05 * torch.randn(9, 64, generator=generator)
    item_BK, score_BK = top_k(user_BD, item_ID, 20)
    for user in range(9):
        assert (item_BK[user].tolist(), score_BK[user].tolist()) == brute_force(user_BD[user], item_ID, 20, set())
    expected = sorted({5, *where.tolist()})[:20]
    assert [row[: len(expected)] for row in item_BK.tolist()] == [expected] * 9


def test_users_without_any_preference_get_the_first_unseen_items() -> None:
    item_BK, score_BK = top_k(
        torch.zeros(2, 4), torch.randn(5000, 4), 3, seen=lists([0, 2], []), users=torch.tensor([0, 1])
    )
    assert item_BK.tolist() == [[1, 3, 4], [0, 1, 2]]
    assert score_BK.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_rank_exactly_too(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    user_BD = torch.randn(5, 16, generator=generator).to(dtype)
    item_ID = (torch.randn(200, 16, generator=generator) * 2).round().to(dtype)
    item_BK, score_BK = top_k(user_BD, item_ID, 30)
    assert score_BK.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # Products of half-precision numbers and these sums are exact in float64, so the oracle needs no tolerance.
    score_BI = (user_BD.double() @ item_ID.double().T).to(score_BK.dtype)
    if dtype != torch.float64:
        assert torch.equal(item_BK, score_BI.sort(dim=1, descending=True, stable=True).indices[:, :30])
    torch.testing.assert_close(score_BK, score_BI.gather(1, item_BK), rtol=1e-14, atol=1e-14)


def test_a_product_that_leaves_float32_is_proposed_again_in_float64() -> None:
    """1e20 * 1e20 - 1e20 * 1e20 is NaN in float32, which topk would put first; the true score is 0."""
    item_ID = torch.tensor([[1e20, -1e20], [1e15, 0.0], [-1e15, 0.0]])
    item_BK, score_BK = top_k(torch.tensor([[1e20, 1e20]]), item_ID, 3)
    assert item_BK.tolist() == [[1, 0, 2]]
    torch.testing.assert_close(score_BK, torch.tensor([[1e35, 0.0, -1e35]]))  # tolerance: 1e20 is rounded in float32


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_low_precision_matrix_products_do_not_change_a_list(precision: str) -> None:
    generator = torch.Generator().manual_seed(5)
    user_BD, item_ID = torch.randn(300, 64, generator=generator), torch.randn(2000, 64, generator=generator)
    expected = top_k(user_BD, item_ID, 20)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        got = top_k(user_BD, item_ID, 20)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


@settings(deadline=None)
@given(problems(max_items=90), st.integers(1, 25))
def test_any_block_size_gives_the_same_bits(problem: tuple[Tensor, Tensor, Lists, Lists], k: int) -> None:
    user_UD, item_ID, seen, truth = problem
    whole = top_k(user_UD, item_ID, k, seen=seen, users=every_user(user_UD))
    for block_size in (1, 2, 4, 1024):
        blocks = list(rank((user_UD, item_ID), k, users=every_user(user_UD), seen=seen, block_size=block_size))
        assert all(len(users_B) <= block_size for users_B, _, _ in blocks)
        for part, expected in enumerate((every_user(user_UD), *whole)):
            assert torch.equal(torch.cat([block[part] for block in blocks]), expected)
    if len(truth.items):
        groups = item_popularity_groups(seen, len(item_ID))
        one, all_at_once = (
            evaluate((user_UD, item_ID), truth=truth, seen=seen, ks=(1, k), block_size=size, item_groups=groups)
            for size in (1, 1024)
        )
        for name, value_V in one.values.items():
            assert torch.equal(value_V.nan_to_num(-1), all_at_once.values[name].nan_to_num(-1)), name


def test_blocks_of_real_width_give_the_same_bits() -> None:
    """At D = 64 a product of one row sums in another order than one of many rows."""
    generator = torch.Generator().manual_seed(6)
    user_UD, item_ID = torch.randn(70, 64, generator=generator), torch.randn(3043, 64, generator=generator)
    users = torch.randperm(70, generator=generator)
    whole = top_k(user_UD[users], item_ID, 20)
    for block_size in (1, 3, 64):
        blocks = list(rank((user_UD, item_ID), 20, users=users, block_size=block_size))
        assert torch.equal(torch.cat([block[1] for block in blocks]), whole[0])
        assert torch.equal(torch.cat([block[2] for block in blocks]), whole[1])


def test_ranking_holds_one_block_not_users_times_items() -> None:
    """All scores at once would be 10^6 x 10^5 float32 = 400 GB; a block of 16 is 6.4 MB."""
    blocks = rank((torch.ones(10**6, 1), torch.ones(10**5, 1)), 4, users=torch.arange(10**6), block_size=16)
    for _ in range(3):
        users_B, item_BK, score_BK = next(blocks)
        assert (users_B.shape, item_BK.shape, score_BK.shape) == ((16,), (16, 4), (16, 4))
        assert item_BK.tolist() == [[0, 1, 2, 3]] * 16


def test_ranking_nobody_gives_no_list() -> None:
    assert sum(len(block[1]) for block in rank((torch.ones(3, 2), torch.ones(40, 2)), 4, users=torch.arange(0))) == 0


# Metrics


def test_metrics_by_hand() -> None:
    """Hits at ranks 1 and 3 of five, four truth items; and no hit at all."""
    hit_BK = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()
    values = list_metrics(hit_BK, torch.tensor([4, 1]), (2, 5))
    ideal = 1 + 1 / math.log2(3) + 1 / 2 + 1 / math.log2(5)
    expected = {
        "recall@2": 1 / 4,
        "recall@5": 2 / 4,
        "ndcg@2": 1 / (1 + 1 / math.log2(3)),  # ideal cut at k = 2
        "ndcg@5": (1 + 1 / 2) / ideal,  # ideal cut at the four truth items
        "hr@2": 1,
        "hr@5": 1,
        "precision@2": 1 / 2,
        "precision@5": 2 / 5,
        "mrr@2": 1,
        "mrr@5": 1,
        "map@2": 1 / 4,  # divided by all four, not by the two that fit
        "map@5": (1 + 2 / 3) / 4,
    }
    assert set(values) == set(expected)
    for name, value in expected.items():
        assert values[name].tolist() == pytest.approx([value, 0], abs=1e-15), name  # tolerance: order of float64 sums


def test_a_perfect_list_scores_exactly_one() -> None:
    values = list_metrics(torch.ones(3, 20).bool(), torch.tensor([20, 20, 20]), (20,))
    assert {name: value.tolist() for name, value in values.items()} == {name: [1.0] * 3 for name in values}


def test_evaluate_by_hand() -> None:
    """Scores fall with the index; user 1 has no truth, user 2 has seen all but one item."""
    item_ID = torch.tensor([[4.0], [3.0], [2.0], [1.0]])
    truth, seen = lists([1, 3], [], [3]), lists([0], [1], [0, 1, 2])
    evaluation = evaluate((torch.ones(3, 1), item_ID), truth=truth, seen=seen, ks=(1, 3))
    assert evaluation.users.tolist() == [0, 2]
    assert evaluation.values["recall@1"].tolist() == [1 / 2, 1]  # lists 1 2 3 and 3
    assert evaluation.values["recall@3"].tolist() == [2 / 2, 1]
    assert evaluation.values["precision@3"].tolist() == [2 / 3, 1 / 3]
    assert evaluation.means()["precision@3"] == (2 / 3 + 1 / 3) / 2
    assert evaluation.by_group(torch.tensor([7, 2])) == {
        2: {name: value[1].item() for name, value in evaluation.values.items()},
        7: {name: value[0].item() for name, value in evaluation.values.items()},
    }


def test_checkerboard() -> None:
    """Even users like even items and the diagonal is withheld: the answer for user u is item u."""
    parity_U = torch.arange(20) % 2
    likes_UI = parity_U[:, None] == parity_U[None, :]
    seen_UI = likes_UI & ~torch.eye(20).bool()
    seen = Lists.from_pairs(*seen_UI.nonzero(as_tuple=True), 20)
    truth = Lists.from_pairs(torch.arange(20), torch.arange(20), 20)
    item_ID = torch.nn.functional.one_hot(parity_U).float()
    user_UD = seen_UI.float() @ item_ID / seen_UI.sum(1, keepdim=True)
    item_UK, _ = top_k(user_UD, item_ID, 1, seen=seen, users=torch.arange(20))
    assert item_UK.squeeze(1).tolist() == list(range(20))
    assert set(evaluate((user_UD, item_ID), truth=truth, seen=seen, ks=(1, 5)).means().items()) == {
        *((f"{name}@{k}", 1.0) for name in ("recall", "ndcg", "hr", "mrr", "map") for k in (1, 5)),
        ("precision@1", 1.0),
        ("precision@5", 1 / 5),
    }


def as_run(item_VK: Tensor, users: Tensor) -> dict[str, dict[str, float]]:
    """Give lists to trec_eval and ranx: falling scores for our order, and a filler so that no user is dropped."""
    return {
        str(user): {str(item) if item >= 0 else "none": 1000.0 - place for place, item in enumerate(items)}
        for user, items in zip(users.tolist(), item_VK.tolist(), strict=True)
    }


@settings(max_examples=60, deadline=None)
@given(problems())
def test_metrics_of_every_user_equal_trec_eval_and_ranx(problem: tuple[Tensor, Tensor, Lists, Lists]) -> None:
    user_UD, item_ID, seen, truth = problem
    if not len(truth.items):
        return
    evaluation = evaluate((user_UD, item_ID), truth=truth, seen=seen, ks=KS)
    names = [str(user) for user in evaluation.users.tolist()]
    truth_sets = as_sets(truth)
    qrels = {name: {str(item): 1 for item in truth_sets[int(name)]} for name in names}
    item_VK = torch.cat([block[1] for block in rank((user_UD, item_ID), 20, users=evaluation.users, seen=seen)])
    run = as_run(item_VK, evaluation.users)

    cuts = ",".join(map(str, KS))
    measures = {f"{TREC[name].rstrip('_')}.{cuts}" for name in TREC}
    trec = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    assert set(trec) == set(names)
    for ours, theirs in TREC.items():
        for k in KS:
            expected = [trec[name][f"{theirs}{k}"] for name in names]
            # Tolerance here and below: the three sum the same float64 terms in different orders.
            assert evaluation.values[f"{ours}@{k}"].tolist() == pytest.approx(expected, abs=1e-12), (ours, k)
    for k in KS:  # trec_eval's reciprocal rank has no cut: cut the run
        cut = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(as_run(item_VK[:, :k], evaluation.users))
        expected = [cut[name]["recip_rank"] for name in names]
        assert evaluation.values[f"mrr@{k}"].tolist() == pytest.approx(expected, abs=1e-12)

    ranx_run = ranx.Run(run)
    ranx.evaluate(ranx.Qrels(qrels), ranx_run, [f"{RANX[name]}@{k}" for name in RANX for k in KS])
    for ours, theirs in RANX.items():
        for k in KS:
            expected = [ranx_run.scores[f"{theirs}@{k}"][name] for name in names]
            assert evaluation.values[f"{ours}@{k}"].tolist() == pytest.approx(expected, abs=1e-12), (ours, k)


def test_trap_trec_eval_breaks_ties_by_document_id() -> None:
    """Given equal scores it ranks the higher id first; so the comparison above feeds it our order."""
    equal = evaluate((torch.ones(1, 1), torch.ones(2, 1)), truth=lists([0]), ks=(1,))
    trec = pytrec_eval.RelevanceEvaluator({"u": {"0": 1}}, {"P.1"}).evaluate({"u": {"0": 1.0, "1": 1.0}})
    assert (equal.values["precision@1"].item(), trec["u"]["P_1"]) == (1, 0)


def test_trap_trec_eval_drops_users_without_a_run() -> None:
    """A user whose list holds no hit counts as 0 here; left out of the run, there, the mean would be 1."""
    ours = evaluate((torch.ones(2, 1), torch.tensor([[2.0], [1.0]])), truth=lists([0], [1]), ks=(1,))
    trec = pytrec_eval.RelevanceEvaluator({"a": {"0": 1}, "b": {"1": 1}}, {"recall.1"}).evaluate({"a": {"0": 2.0}})
    assert ours.means()["recall@1"] == (1 + 0) / 2
    assert [of_user["recall_1"] for of_user in trec.values()] == [1]


# Groups


def test_user_activity_groups_by_hand() -> None:
    """Quarters of the eight active users end at 1, 2, 5 and 9 items; the three users with one item stay together."""
    counts = [0, 1, 1, 1, 2, 3, 5, 9, 9]
    groups = user_activity_groups(lists(*(list(range(count)) for count in counts)))
    assert groups.labels == ("0 items", "1 items", "2 items", "3-5 items", "9 items")
    assert groups.index.tolist() == [0, 1, 1, 1, 2, 3, 3, 4, 4]


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.integers(1, 6))
def test_user_activity_groups_are_ranges_that_part_no_equal_users(counts: list[int], num_groups: int) -> None:
    groups = user_activity_groups(lists(*(list(range(count)) for count in counts)), num_groups)
    index = groups.index.tolist()
    assert len(groups.labels) <= num_groups + 1
    assert sorted(set(index) | {0}) == list(range(len(groups.labels)))
    for group, label in enumerate(groups.labels):
        members = [count for count, of_user in zip(counts, index, strict=True) if of_user == group] or [0]
        low, _, high = label.removesuffix(" items").partition("-")
        assert (min(members), max(members)) == (int(low), int(high or low))


def test_recall_of_item_groups_by_hand() -> None:
    """Popularities 3 2 1 0: of six interactions item 0 starts at 0, item 1 at 3, item 2 at 5; item 3 is cold."""
    train = lists([0, 1, 2], [0, 1], [0], [])
    groups = item_popularity_groups(train, 4)
    assert groups.labels == ("head", "mid", "tail", "cold")
    assert groups.index.tolist() == [0, 1, 2, 3]

    two_each = Groups(torch.tensor([0, 0, 1, 1]), ("low", "high"))
    item_ID = torch.tensor([[4.0], [3.0], [2.0], [1.0]])
    evaluation = evaluate(
        (torch.ones(3, 1), item_ID),
        truth=lists([1, 2, 3], [], [1]),
        seen=lists([], [], []),
        ks=(3,),
        item_groups=two_each,
    )
    assert evaluation.values["recall@3/low"].tolist() == [1, 1]
    assert evaluation.values["recall@3/high"].nan_to_num(-1).tolist() == [1 / 2, -1]  # user 2 has no such truth
    assert evaluation.means()["recall@3/high"] == 1 / 2
    assert "recall@3/high" not in evaluation.by_group(torch.tensor([0, 1]))[1]


@settings(deadline=None)
@given(problems())
def test_item_groups_share_out_the_hits(problem: tuple[Tensor, Tensor, Lists, Lists]) -> None:
    """Recall weighted by the truth in each group adds up to recall over all."""
    user_UD, item_ID, seen, truth = problem
    if not len(truth.items):
        return
    groups = item_popularity_groups(seen, len(item_ID))
    evaluation = evaluate((user_UD, item_ID), truth=truth, seen=seen, ks=(5,), item_groups=groups)
    sets = [as_sets(truth)[user] for user in evaluation.users.tolist()]
    in_group_GV = torch.tensor(
        [[sum(groups.index[item].item() == group for item in items) for items in sets] for group in range(4)]
    )
    recall_GV = torch.stack([evaluation.values[f"recall@5/{label}"] for label in groups.labels])
    hits_V = (recall_GV.nan_to_num(0) * in_group_GV).sum(0)
    torch.testing.assert_close(hits_V / in_group_GV.sum(0), evaluation.values["recall@5"], rtol=1e-12, atol=1e-12)


# Refusals


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_representations_that_are_not_finite_are_refused(bad: float) -> None:
    broken = torch.ones(5, 2)
    broken[3, 1] = bad
    with pytest.raises(ValueError, match=r"user representations must be finite \(got .* 1 rows, first in user 3\)"):
        top_k(broken, torch.ones(4, 2), 1)
    with pytest.raises(ValueError, match=r"item representations must be finite \(got .* 1 rows, first in item 3\)"):
        evaluate((torch.ones(4, 2), broken), truth=lists([0], [], [], []))


def test_a_pair_in_truth_and_seen_is_refused() -> None:
    with pytest.raises(ValueError, match=r"splits leak \(got 1 of them, first user 1 with item 2\)"):
        evaluate((torch.ones(2, 1), torch.ones(3, 1)), truth=lists([0], [1, 2]), seen=lists([1], [0, 2]))


def test_shapes_and_sizes_that_do_not_fit_are_refused() -> None:
    user_UD, item_ID = torch.ones(2, 3), torch.ones(4, 3)
    with pytest.raises(ValueError, match="k must be 1 or more"):
        top_k(user_UD, item_ID, 0)
    with pytest.raises(ValueError, match=r"must be \[U, D\] and \[I, D\]"):
        top_k(user_UD, item_ID[:, :2], 1)
    with pytest.raises(ValueError, match="seen and users come together"):
        top_k(user_UD, item_ID, 1, seen=lists([0], [1]))
    with pytest.raises(ValueError, match=r"seen must hold items 0 \.\. 3 \(got 4\)"):
        top_k(user_UD, item_ID, 1, seen=lists([4], []), users=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="block_size"):
        rank((user_UD, item_ID), 1, users=torch.tensor([0]), block_size=0)
    with pytest.raises(ValueError, match=r"users must be in 0 \.\. 1"):
        rank((user_UD, item_ID), 1, users=torch.tensor([2]))
    with pytest.raises(ValueError, match="one list for each of the 2 users"):
        evaluate((user_UD, item_ID), truth=lists([0]))
    with pytest.raises(ValueError, match="item for some user"):
        evaluate((user_UD, item_ID), truth=lists([], []))
    with pytest.raises(ValueError, match="item_groups must group 4 items"):
        evaluate((user_UD, item_ID), truth=lists([0], []), item_groups=Groups(torch.zeros(3).long(), ("all",)))
    with pytest.raises(ValueError, match="ks must be"):
        evaluate((user_UD, item_ID), truth=lists([0], []), ks=())
