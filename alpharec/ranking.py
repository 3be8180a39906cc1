"""Full ranking and its metrics: lists of the best unseen items, in an order that is exact and the same everywhere.

Names end in their shape: U users, I items, B users of a block, K list length, C candidates, P pairs, E interactions,
V users with truth, G groups, D representation width.

A matrix product can give equal items unequal last bits (the order of its sums depends on shape, column and device), so
ranking by it breaks ties at random and changes with the block size. Here it only proposes candidates. Their scores are
computed again in float64 with a fixed order of sums, and rounded. A rounding bound proves that no other item can enter;
the few rows where it cannot (more ties than the margin holds) look at every item the bound leaves possible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MARGIN = 8  # candidates beyond K: room for ties; 4 prove all of 10,240 random rows of 17,332 items, at K = 20 and 100
PAIRS_AT_ONCE = 2**12  # pairs scored in one go: 2 MiB a temporary at D = 64, which stays in cache
CELLS_AT_ONCE = 2**20  # rows x items the slow path looks at in one go


@dataclass(frozen=True, eq=False)
class Lists:
    """A list of items for every user, as compressed rows.

    Shapes: ``indptr`` int64 [U + 1], ``items`` int64 [E], rising strictly within a user.
    Raises: ``ValueError`` if the two do not fit together or a user's items do not rise.
    """

    indptr: Tensor
    items: Tensor

    def __post_init__(self) -> None:
        if self.indptr.dtype != torch.int64 or self.items.dtype != torch.int64:
            raise ValueError(f"indptr and items must be int64 (got {self.indptr.dtype}, {self.items.dtype})")
        if self.indptr.dim() != 1 or self.items.dim() != 1 or not len(self.indptr):
            raise ValueError(f"indptr must be [U + 1], items [E] (got {self.indptr.shape}, {self.items.shape})")
        if self.indptr[0] != 0 or self.indptr[-1] != len(self.items) or (self.indptr.diff() < 0).any():
            raise ValueError(f"indptr must rise from 0 to {len(self.items)} (got {self.indptr[:5].tolist()}, ...)")
        rises_E = torch.ones(len(self.items) + 1, dtype=torch.bool, device=self.items.device)
        rises_E[1:-1] = self.items[1:] > self.items[:-1]
        rises_E[self.indptr] = True
        if not rises_E.all() or (self.items < 0).any():
            raise ValueError("items must be 0 or more and rise within a user (got others); use Lists.from_pairs")

    @classmethod
    def from_pairs(cls, users: Tensor, items: Tensor, num_users: int) -> Lists:
        """Build lists from (user, item) pairs in any order; a pair that comes twice counts once.

        Shapes: ``users`` int64 [E], ``items`` int64 [E].
        Raises: ``ValueError`` if they differ in length, a user is not in 0 .. num_users - 1, or an item is negative.
        """
        if users.dim() != 1 or users.shape != items.shape:
            raise ValueError(f"users and items must be two equally long lists (got {users.shape}, {items.shape})")
        _check_index("users", users, num_users)
        if len(items) and items.min() < 0:
            raise ValueError(f"items must be 0 or more (got {items.min()})")
        stride = _largest(items) + 1
        key_E = torch.unique(users * stride + items)
        count_U = torch.bincount(key_E // stride, minlength=num_users)
        return cls(torch.cat([count_U.new_zeros(1), count_U.cumsum(0)]), key_E % stride)

    @property
    def num_users(self) -> int:
        """Number of users, those without an item included."""
        return len(self.indptr) - 1

    @property
    def counts(self) -> Tensor:
        """Number of items of every user, int64 [U]."""
        return self.indptr.diff()

    def to(self, device: torch.device) -> Lists:
        """Return the same lists on ``device``."""
        return self if self.items.device == device else Lists(self.indptr.to(device), self.items.to(device))

    def rows(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """Return the items of a block of users as pairs (position in the block, item), sorted.

        Shapes: ``users`` int64 [B] -> row int64 [P], item int64 [P].
        """
        start_B = self.indptr[users]
        count_B = self.indptr[users + 1] - start_B
        row_P = torch.repeat_interleave(torch.arange(len(users), device=users.device), count_B)
        shift_B = start_B - count_B.cumsum(0) + count_B
        return row_P, self.items[torch.arange(len(row_P), device=users.device) + shift_B[row_P]]

    def contains(self, users: Tensor, item_BK: Tensor) -> Tensor:
        """Tell which items of row b are in the list of ``users[b]``; the empty place -1 never is.

        Shapes: ``users`` int64 [B], ``item_BK`` int64 [B, K] -> bool [B, K].
        """
        row_P, item_P = self.rows(users)
        row_B1 = torch.arange(len(users), device=users.device)[:, None]
        stride = max(_largest(item_P), _largest(item_BK)) + 2
        return _is_in(row_P * stride + item_P + 1, row_B1 * stride + item_BK + 1)

    def union(self, other: Lists) -> Lists:
        """Return, user by user, the items of either.

        Raises: ``ValueError`` if the two have different numbers of users.
        """
        if self.num_users != other.num_users:
            raise ValueError(f"both lists must have the same users (got {self.num_users} and {other.num_users})")
        users = torch.arange(self.num_users, device=self.items.device)
        (user_E, item_E), (other_user_E, other_item_E) = self.rows(users), other.rows(users)
        return Lists.from_pairs(torch.cat([user_E, other_user_E]), torch.cat([item_E, other_item_E]), self.num_users)

    def shared(self, other: Lists) -> tuple[Tensor, Tensor]:
        """Return the (user, item) pairs that are in both, sorted.

        Shapes: user int64 [P], item int64 [P].
        """
        users = torch.arange(self.num_users, device=self.items.device)
        (user_E, item_E), (other_user_E, other_item_E) = self.rows(users), other.rows(users)
        stride = max(_largest(item_E), _largest(other_item_E)) + 1
        in_both_E = _is_in(other_user_E * stride + other_item_E, user_E * stride + item_E)
        return user_E[in_both_E], item_E[in_both_E]


@dataclass(frozen=True, eq=False)
class Groups:
    """A group for every user, or for every item.

    Shapes: ``index`` int64 [U] or [I], values 0 .. G - 1; ``labels``: G names.
    """

    index: Tensor
    labels: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Metrics of every user with truth, by name: ``recall@20``, and ``recall@20/tail`` for a group of items.

    Shapes: ``users`` int64 [V]; each of ``values`` float64 [V], NaN where a user has no truth in that group of items.
    """

    users: Tensor
    values: dict[str, Tensor]

    def means(self) -> dict[str, float]:
        """Return the mean of each metric over the users it is defined for; a metric of no user is left out."""
        return _means(self.values)

    def by_group(self, group_V: Tensor) -> dict[int, dict[str, float]]:
        """Return the means within each group of users, e.g. of ``user_activity_groups(train).index[evaluation.users]``.

        Raises: ``ValueError`` if there is not one group for each of ``users``.
        """
        if group_V.shape != self.users.shape:
            raise ValueError(f"group_V must have a group for each of {len(self.users)} users (got {group_V.shape})")
        group_V = group_V.to(self.users.device)
        return {
            group: _means({name: value_V[group_V == group] for name, value_V in self.values.items()})
            for group in torch.unique(group_V).tolist()
        }


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of a model that has no narrow representations, made for a block of users at a time.

    They are ranked as they are: equal ones by lower item, but whether two are equal is for the model to say.

    Shapes: ``of``: users int64 [B] -> score [B, I], float32 or float64, which the ranking may overwrite.
    """

    of: Callable[[Tensor], Tensor]
    num_users: int
    num_items: int
    device: torch.device


# What a model ranks by: users' and items' representations [U, D] and [I, D], whose dot products are scores; or scores.
Scored = tuple[Tensor, Tensor] | Scores


def sizes_of(scored: Scored) -> tuple[int, int, torch.device]:
    """Return the number of users, of items, and where the scores are made."""
    if isinstance(scored, Scores):
        return scored.num_users, scored.num_items, scored.device
    user_UD, item_ID = scored
    return len(user_UD), len(item_ID), user_UD.device


def restrict(scored: Scored, users: slice, items: slice = slice(None)) -> Scored:
    """Return the same for some users and some items alone, both counted from the first of them."""
    if not isinstance(scored, Scores):
        return scored[0][users], scored[1][items]
    user_X, whole = torch.arange(scored.num_users, device=scored.device)[users], scored
    num_items = len(range(scored.num_items)[items])
    return Scores(lambda users_B: whole.of(user_X[users_B])[:, items], len(user_X), num_items, scored.device)


def top_k(
    user_BD: Tensor, item_ID: Tensor, k: int, *, seen: Lists | None = None, users: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """List the K unseen items of highest score for a block of users: ``score = user . item``, equal ones by lower item.

    The score is rounded once, to the dtype of the representations (float32 at least). Scores, order and ties do not
    depend on the block, and matrix products of low precision (TF32) do not touch them. Memory: B x I scores.

    Shapes: ``user_BD``, ``item_ID`` -> item int64 [B, K], score [B, K]; where items run out, item -1 and score -inf.
        ``users`` int64 [B]: the rows of ``seen`` that the block's users have.
    Raises: ``ValueError`` if k < 1, shapes do not fit, a representation is NaN or infinite (tells side and first row),
        or ``seen`` comes without ``users``.
    """
    if (seen is None) != (users is None) or (users is not None and users.shape != user_BD.shape[:1]):
        raise ValueError(f"seen and users come together, a user for each row of user_BD (got {users})")
    user_BD, item_ID, bound_B = _check_representations(user_BD, item_ID, k)
    if seen is None or users is None:
        return _top_k_block(user_BD, item_ID, k, bound_B=bound_B, masked=None)
    _check_lists("seen", seen, None, len(item_ID))
    _check_index("users", users, seen.num_users)
    return _top_k_block(user_BD, item_ID, k, bound_B=bound_B, masked=seen.rows(users))


def rank(
    scored: Scored, k: int, *, users: Tensor, seen: Lists | None = None, block_size: int = 1024
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the lists of ``users``, ``block_size`` of them at a time, as ``top_k`` makes them.

    Memory: block_size x I scores at most (1,024 x 17,332 in float32: 71 MB), kept from block to block.

    Shapes: ``users`` int64 [V], rows of ``scored`` and of ``seen`` -> (users [B], item int64 [B, K], score [B, K]).
    Raises: at once what ``top_k`` raises, and ``ValueError`` if a user does not exist or ``block_size`` < 1; for
        ``Scores``, which are not made yet, later if one is NaN or infinite.
    """
    if block_size < 1:
        raise ValueError(f"block_size must be 1 or more (got {block_size})")
    num_users, num_items, device = sizes_of(scored)
    _check_index("users", users, num_users)
    largest = min(block_size, len(users))
    block = _by_scores(scored, k) if isinstance(scored, Scores) else _by_dot_products(*scored, k, largest)
    if seen is not None:
        seen = seen.to(device)
        _check_lists("seen", seen, num_users, num_items)
    return _blocks(block, users=users.to(device), seen=seen, block_size=block_size)


def evaluate(
    scored: Scored,
    *,
    truth: Lists,
    seen: Lists | None = None,
    ks: Sequence[int] = (20,),
    block_size: int = 1024,
    item_groups: Groups | None = None,
) -> Evaluation:
    """Rank all items but the seen ones for every user with truth, and measure the lists (see ``list_metrics``).

    With ``item_groups``, also ``recall@K/label``: hits in the group / truth in the group, over users with truth in it.

    Shapes: ``truth`` and ``seen`` U lists each; ``item_groups.index`` [I].
    Raises: ``ValueError`` for what ``rank`` refuses; for a pair in both ``truth`` and ``seen``, which means that splits
        leak (tells user and item); if no user has truth.
    """
    num_users, num_items, device = sizes_of(scored)
    truth, seen = truth.to(device), seen.to(device) if seen is not None else None
    _check_lists("truth", truth, num_users, num_items)
    if seen is not None:
        _check_lists("seen", seen, num_users, num_items)
        _check_disjoint(truth, seen)
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be list lengths of 1 or more (got {tuple(ks)})")
    if item_groups is not None and len(item_groups.index) != num_items:
        raise ValueError(f"item_groups must group {num_items} items (got {len(item_groups.index)})")
    count_U = truth.counts
    users_V = count_U.nonzero().squeeze(1)
    if not len(users_V):
        raise ValueError(f"truth must have an item for some user (got none for {truth.num_users} users)")
    blocks = []
    for users_B, item_BK, _ in rank(scored, max(ks), users=users_V, seen=seen, block_size=block_size):
        hit_BK = truth.contains(users_B, item_BK)
        values = list_metrics(hit_BK, count_U[users_B], ks)
        if item_groups is not None:
            values |= _group_recall(hit_BK, item_BK, truth.rows(users_B), ks, item_groups)
        blocks.append(values)
    return Evaluation(users_V, {name: torch.cat([values[name] for values in blocks]) for name in blocks[0]})


def list_metrics(hit_BK: Tensor, count_B: Tensor, ks: Sequence[int]) -> dict[str, Tensor]:
    """Measure lists whose hits are known, at each length k of ``ks``; n is the number of truth items of the user::

        recall@k     hits / n                              hr@k    1 if there is a hit
        precision@k  hits / k, also where items run out    mrr@k   1 / rank of the first hit
        ndcg@k       sum over hits of 1 / log2(rank + 1), divided by the same sum over ranks 1 .. min(n, k)
        map@k        sum over hits of precision@rank, divided by n (not by min(n, k)); hits beyond k count nothing

    Each equals trec_eval (``recall``, ``success``, ``P``, ``recip_rank``, ``ndcg_cut``, ``map_cut``) and ranx, which
    agree with each other once the order of the list is settled.

    Shapes: ``hit_BK`` bool [B, K] in list order, K >= max(ks); ``count_B`` int64 [B], 1 or more -> float64 [B] each.
    """
    rank_K = torch.arange(1, hit_BK.shape[1] + 1, device=hit_BK.device, dtype=torch.float64)
    discount_K = 1 / torch.log2(rank_K + 1)
    found_BK, n_B = hit_BK.cumsum(1), count_B.double()
    ideal_BK = (rank_K <= n_B[:, None]) * discount_K
    gain_BK, precision_BK, inverse_BK = hit_BK * discount_K, hit_BK * found_BK / rank_K, hit_BK / rank_K
    values = {}
    for k in ks:
        found_B = found_BK[:, k - 1].double()
        values[f"recall@{k}"] = found_B / n_B
        values[f"ndcg@{k}"] = gain_BK[:, :k].sum(1) / ideal_BK[:, :k].sum(1)
        values[f"hr@{k}"] = (found_B > 0).double()
        values[f"precision@{k}"] = found_B / k
        values[f"mrr@{k}"] = inverse_BK[:, :k].amax(1)
        values[f"map@{k}"] = precision_BK[:, :k].sum(1) / n_B
    return values


def user_activity_groups(train: Lists, num_groups: int = 4) -> Groups:
    """Group users by quantile of their number of train items: 0 for those with none, then 1 .. at most ``num_groups``.

    Users with equally many items are never parted: groups are as even as that allows, and fewer where one is empty.
    Labels tell the range of each: ``0 items``, ``1-3 items``, ``4-9 items``.

    Raises: ``ValueError`` if ``num_groups`` < 1.
    """
    if num_groups < 1:
        raise ValueError(f"num_groups must be 1 or more (got {num_groups})")
    count_U = train.counts
    sorted_A = count_U[count_U > 0].sort().values
    if not len(sorted_A):
        return Groups(torch.zeros_like(count_U), ("0 items",))
    last_G = torch.tensor([-(-len(sorted_A) * q // num_groups) - 1 for q in range(1, num_groups + 1)])  # rounded up
    upper_G = torch.unique(sorted_A[last_G.to(sorted_A.device)])
    index_U = torch.where(count_U > 0, torch.bucketize(count_U, upper_G) + 1, 0)
    lower_G = [sorted_A[0].item(), *(sorted_A[sorted_A > upper].min().item() for upper in upper_G[:-1])]
    ranges = [f"{low}" if low == high else f"{low}-{high}" for low, high in zip(lower_G, upper_G.tolist(), strict=True)]
    return Groups(index_U, ("0 items", *(f"{text} items" for text in ranges)))


def item_popularity_groups(train: Lists, num_items: int) -> Groups:
    """Group items by train popularity: head, mid and tail carry a third of the train interactions each; cold has none.

    An item is where its first interaction falls with items laid out from the most popular down, equal ones by index.

    Raises: ``ValueError`` if ``train`` has an item that is not in 0 .. num_items - 1.
    """
    _check_lists("train", train, None, num_items)
    count_I = torch.bincount(train.items, minlength=num_items)
    order_I = count_I.sort(descending=True, stable=True).indices
    before_I = torch.empty_like(count_I)
    before_I[order_I] = count_I[order_I].cumsum(0) - count_I[order_I]
    index_I = torch.where(count_I > 0, before_I * 3 // max(len(train.items), 1), 3)
    return Groups(index_I, ("head", "mid", "tail", "cold"))


Block = Callable[[Tensor, tuple[Tensor, Tensor] | None], tuple[Tensor, Tensor]]


def _by_dot_products(user_UD: Tensor, item_ID: Tensor, k: int, largest: int) -> Block:
    """Return what lists a block of at most ``largest`` users by their representations."""
    user_UD, item_ID, bound_U = _check_representations(user_UD, item_ID, k)
    # One buffer for all blocks: the page faults of a fresh 71 MB a block cost as much as the ranking.
    buffer_BI = item_ID.new_empty(largest, len(item_ID))

    def block(users_B: Tensor, masked: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        user_BD, bound_B, buffer = user_UD[users_B], bound_U[users_B], buffer_BI[: len(users_B)]
        return _top_k_block(user_BD, item_ID, k, bound_B=bound_B, masked=masked, buffer_BI=buffer)

    return block


def _by_scores(scores: Scores, k: int) -> Block:
    """Return what lists a block of users by scores."""
    if k < 1:
        raise ValueError(f"k must be 1 or more (got {k})")

    def block(users_B: Tensor, masked: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        score_BI = scores.of(users_B)
        if score_BI.shape != (len(users_B), scores.num_items):
            raise ValueError(f"scores must be {(len(users_B), scores.num_items)} (got {tuple(score_BI.shape)})")
        if not score_BI.isfinite().all():
            row = int((~score_BI.isfinite()).any(1).nonzero()[0])
            raise ValueError(f"scores must be finite (got NaN or infinity for user {users_B[row].item()})")
        if masked is not None:
            score_BI[masked] = -torch.inf
        none_B = score_BI.new_zeros(len(users_B))
        found = _best_of(score_BI, lambda row_P, item_P: score_BI[row_P, item_P], k, bound_B=none_B)
        assert found is not None, "no score is off itself"
        return found

    return block


def _blocks(
    block: Block, *, users: Tensor, seen: Lists | None, block_size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for users_B in torch.split(users, block_size):
        yield users_B, *block(users_B, seen.rows(users_B) if seen is not None else None)


def _top_k_block(
    user_BD: Tensor,
    item_ID: Tensor,
    k: int,
    *,
    bound_B: Tensor,
    masked: tuple[Tensor, Tensor] | None,
    buffer_BI: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """List by dot products, rounded to ``dtype``: roughly by a matrix product, then exactly."""
    dtype = dtype or item_ID.dtype
    rough_BI = torch.mm(user_BD, item_ID.T, out=buffer_BI)
    if masked is not None:
        rough_BI[masked] = -torch.inf
    found = _best_of(
        rough_BI, lambda row_P, item_P: _score_pairs(user_BD, item_ID, row_P, item_P, dtype), k, bound_B=bound_B
    )
    if found is None:
        # TF32 or bfloat16 products are on, or the product left float32's range: float64 is safe from both.
        return _top_k_block(user_BD.double(), item_ID.double(), k, bound_B=bound_B, masked=masked, dtype=dtype)
    return found


def _best_of(
    rough_BI: Tensor, exact: Callable[[Tensor, Tensor], Tensor], k: int, *, bound_B: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Propose candidates by rough scores, look their ``exact`` ones up, prove or repair the list.

    None if a float32 rough score is further off than the bound.
    """
    num_items = rough_BI.shape[1]
    rough_BC, item_BC = rough_BI.topk(min(k + MARGIN, num_items))
    item_BC, by_item_BC = item_BC.sort(dim=1)
    rough_in_order_BC = rough_BC.gather(1, by_item_BC)
    row_BC = torch.arange(len(rough_BI), device=item_BC.device)[:, None].expand_as(item_BC)
    score_BC = exact(row_BC.flatten(), item_BC.flatten()).view_as(item_BC)
    score_BC = score_BC.masked_fill(rough_in_order_BC == -torch.inf, -torch.inf)

    off_BC = (rough_in_order_BC - score_BC).abs().masked_fill(score_BC == -torch.inf, 0)
    if rough_BI.dtype == torch.float32 and not (off_BC <= bound_B[:, None]).all():
        return None

    score_BK, best_BK = score_BC.sort(dim=1, descending=True, stable=True)
    score_BK, item_BK = _pad(score_BK, k, -torch.inf), _pad(item_BC.gather(1, best_BK), k, -1)
    if rough_BC.shape[1] < num_items:
        at_stake_B = rough_BC[:, -1] + bound_B
        open_R = ((at_stake_B > -torch.inf) & (score_BK[:, -1] <= at_stake_B)).nonzero().squeeze(1)
        for rows in torch.split(open_R, max(1, CELLS_AT_ONCE // num_items)) if len(open_R) else ():
            floor_R = score_BK[rows, -1] - bound_B[rows]
            item_BK[rows], score_BK[rows] = _best_possible(rough_BI, exact, k, rows=rows, floor_R=floor_R)
    return item_BK.masked_fill(score_BK == -torch.inf, -1), score_BK


def _best_possible(
    rough_BI: Tensor, exact: Callable[[Tensor, Tensor], Tensor], k: int, *, rows: Tensor, floor_R: Tensor
) -> tuple[Tensor, Tensor]:
    """List the best of all items whose rough score reaches the floor; every row has at least K of them."""
    row_P, item_P = (rough_BI[rows] >= floor_R[:, None]).nonzero(as_tuple=True)
    score_P, by_score_P = exact(rows[row_P], item_P).sort(descending=True, stable=True)
    row_P, by_row_P = row_P[by_score_P].sort(stable=True)
    start_R = torch.searchsorted(row_P, torch.arange(len(rows), device=row_P.device))
    place_RK = start_R[:, None] + torch.arange(k, device=row_P.device)
    return item_P[by_score_P][by_row_P][place_RK], score_P[by_row_P][place_RK]


def _score_pairs(user_BD: Tensor, item_ID: Tensor, row_P: Tensor, item_P: Tensor, dtype: torch.dtype) -> Tensor:
    """Score pairs in float64 by halving sums, an order that only D decides; float32 products are exact in it."""
    scores = []
    for rows, items in zip(torch.split(row_P, PAIRS_AT_ONCE), torch.split(item_P, PAIRS_AT_ONCE), strict=True):
        term_PD = user_BD[rows].double() * item_ID[items].double()
        while term_PD.shape[1] > 1:
            half = (term_PD.shape[1] + 1) // 2
            rest_PD = term_PD[:, half:]
            term_PD = term_PD[:, :half]
            term_PD[:, : rest_PD.shape[1]] += rest_PD
        scores.append(term_PD.squeeze(1).to(dtype))
    return torch.cat(scores)


def _group_recall(
    hit_BK: Tensor, item_BK: Tensor, truth_pairs: tuple[Tensor, Tensor], ks: Sequence[int], groups: Groups
) -> dict[str, Tensor]:
    row_P, item_P = truth_pairs
    index_I, num_groups = groups.index.to(item_BK.device), len(groups.labels)
    cell_P = row_P * num_groups + index_I[item_P]
    count_BG = torch.bincount(cell_P, minlength=len(hit_BK) * num_groups).view(-1, num_groups)
    group_BK = index_I[item_BK.clamp_min(0)]
    values = {}
    for group, label in enumerate(groups.labels):
        found_BK = (hit_BK & (group_BK == group)).cumsum(1)
        for k in ks:
            values[f"recall@{k}/{label}"] = found_BK[:, k - 1].double() / count_BG[:, group].double()  # 0 / 0 is NaN
    return values


def _means(values: dict[str, Tensor]) -> dict[str, float]:
    defined = {name: value_V[~value_V.isnan()] for name, value_V in values.items()}
    return {name: value_V.mean().item() for name, value_V in defined.items() if len(value_V)}


def _check_representations(user_UD: Tensor, item_ID: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return both sides in one float dtype, and how far a user's rough scores can be from the exact ones."""
    if k < 1:
        raise ValueError(f"k must be 1 or more (got {k})")
    if user_UD.dim() != 2 or item_ID.dim() != 2 or user_UD.shape[1] != item_ID.shape[1] or 0 in item_ID.shape:
        raise ValueError(f"representations must be [U, D] and [I, D] (got {user_UD.shape} and {item_ID.shape})")
    dtype = torch.promote_types(torch.promote_types(user_UD.dtype, item_ID.dtype), torch.float32)
    user_UD, item_ID = user_UD.detach().to(dtype), item_ID.detach().to(dtype)
    norm_U, norm_I = _finite_norms("user", user_UD), _finite_norms("item", item_ID)
    info, width = torch.finfo(dtype), item_ID.shape[1]
    # |float(x . y) - x . y| <= width u |x| |y| for any order of sums, u = eps / 2; the rest covers the last rounding.
    return user_UD, item_ID, (width + 2) * (info.eps * norm_U * norm_I.max() + info.tiny)


def _finite_norms(side: str, representation_ND: Tensor) -> Tensor:
    norm_N: Tensor = torch.linalg.vector_norm(representation_ND, dim=1, dtype=torch.float64)
    bad_N = (~norm_N.isfinite()).nonzero()
    if len(bad_N):
        raise ValueError(
            f"{side} representations must be finite "
            f"(got NaN or infinity in {len(bad_N)} rows, first in {side} {bad_N[0].item()})"
        )
    return norm_N


def _check_lists(name: str, lists: Lists, num_users: int | None, num_items: int) -> None:
    if num_users is not None and lists.num_users != num_users:
        raise ValueError(f"{name} must have one list for each of the {num_users} users (got {lists.num_users})")
    if _largest(lists.items) >= num_items:
        raise ValueError(f"{name} must hold items 0 .. {num_items - 1} (got {_largest(lists.items)})")


def _check_disjoint(truth: Lists, seen: Lists) -> None:
    user_P, item_P = truth.shared(seen)
    if len(user_P):
        raise ValueError(
            f"no pair may be in both truth and seen, the splits leak (got {len(user_P)} of them, "
            f"first user {user_P[0].item()} with item {item_P[0].item()})"
        )


def _check_index(name: str, index: Tensor, size: int) -> None:
    if len(index) and (index.min() < 0 or index.max() >= size):
        raise ValueError(f"{name} must be in 0 .. {size - 1} (got {index.min()} .. {index.max()})")


def _largest(index: Tensor) -> int:
    return int(index.max()) if index.numel() else -1


def _is_in(sorted_P: Tensor, value: Tensor) -> Tensor:
    if not len(sorted_P):
        return torch.zeros_like(value, dtype=torch.bool)
    place = torch.searchsorted(sorted_P, value).clamp_max(len(sorted_P) - 1)
    found: Tensor = sorted_P[place] == value
    return found


def _pad(value_BC: Tensor, k: int, filler: float) -> Tensor:
    """Cut or fill rows to K."""
    return torch.nn.functional.pad(value_BC[:, :k], (0, max(0, k - value_BC.shape[1])), value=filler)
