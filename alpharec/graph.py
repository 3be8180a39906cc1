"""The user-item graph of train interactions: propagation, user means and sampling, on any number of workers.

Shapes: U users of this worker, I items, E interactions, B batch, N negatives, D any width.

Users are divided over workers, items are known to all. What goes between workers goes through ``Part``: sums of a
matrix, rows gathered from all, and one's own rows of a sum. Plain torch and torch-geometric; Ray is not needed here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

MOST_INTERACTIONS = 2**31 - 1  # of a worker: index lists are int32
VIRTUAL_SHARDS = 1024  # ranges of users of about equal cost; workers divide them, so at most 0.1% is out of balance


def layer_weights(num_layers: int, layer_0_weight: float | None = None) -> tuple[float, ...]:
    """Return the weights of layers 0..L in a representation, which add up to 1.

    Alike, as LightGCN's; or ``layer_0_weight`` for a node's own vector, the rest shared alike by layers 1..L.
    """
    if layer_0_weight is None or num_layers == 0:
        return (1 / (num_layers + 1),) * (num_layers + 1)
    return (layer_0_weight, *((1 - layer_0_weight) / num_layers,) * num_layers)


@dataclass(frozen=True)
class Part:
    """Which worker this is, of how many."""

    rank: int = 0
    size: int = 1

    def sum(self, x: Tensor) -> Tensor:
        """Add ``x`` up over all workers; alone, return it unchanged."""
        if self.size == 1:
            return x
        total = x.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total

    def start_sum(self, x: Tensor) -> Callable[[], object]:
        """Begin to add ``x`` up over all workers, in place; call the result to wait for it."""
        if self.size == 1:
            return lambda: None
        return cast(torch.distributed.Work, torch.distributed.all_reduce(x, async_op=True)).wait

    def rows(self, num_rows: int) -> slice:
        """Return this worker's share of the rows of a matrix that is divided in equal blocks, the last ones shorter."""
        block = self._block(num_rows)
        return slice(min(block * self.rank, num_rows), min(block * (self.rank + 1), num_rows))

    def gather(self, x: Tensor, num_rows: int) -> Tensor:
        """Return the whole matrix of which every worker holds its share ``rows``."""
        if self.size == 1:
            return x
        block = self._block(num_rows)
        whole = x.new_empty(block * self.size, *x.shape[1:])
        torch.distributed.all_gather_into_tensor(whole, _padded(x, block))
        return whole[:num_rows]

    def sum_share(self, x: Tensor) -> Tensor:
        """Add ``x`` up over all workers; return this worker's share ``rows`` of the sum."""
        if self.size == 1:
            return x
        rows, block = self.rows(len(x)), self._block(len(x))
        share = x.new_empty(block, *x.shape[1:])
        torch.distributed.reduce_scatter_tensor(share, _padded(x, block * self.size))
        return share[: rows.stop - rows.start]

    def _block(self, num_rows: int) -> int:
        return -(-num_rows // self.size)


def _padded(x: Tensor, num_rows: int) -> Tensor:
    if len(x) == num_rows:
        return x.contiguous()
    return torch.cat([x, x.new_zeros(num_rows - len(x), *x.shape[1:])])


class InteractionGraph:
    """Train interactions of one worker's users, as CSR and CSC without edge values.

    Symmetric normalisation D^-1/2 R D^-1/2 scales rows before and after a product, so that edges carry no values; the
    product is ``embedding_bag`` over the index lists, measured 3 to 5 times as fast on CPU as torch's CSR product.

    Args:
        users, items: int64 [E], train interactions, in any order; a pair may occur once.
        num_users, num_items: sizes of the whole graph.
        part: the worker; it keeps the users of its share of the virtual shards.
        user_degree: int64 [num_users], train interactions of every user. Then ``users`` and ``items`` need to hold only
            those of the worker's own users (``user_range``); without it, those of all users.
        domains: first user and first item of each dataset of a mix, ascending from (0, 0): a user's negatives are
            items of its own dataset. Empty: one dataset.

    Raises:
        ValueError: an index is out of range, a pair occurs twice, or the worker's part is too large for its lists.
    """

    def __init__(
        self,
        users: Tensor,
        items: Tensor,
        *,
        num_users: int,
        num_items: int,
        part: Part = Part(),
        user_degree: Tensor | None = None,
        domains: Sequence[tuple[int, int]] = (),
    ) -> None:
        _check_pairs(users, items, num_users, num_items)
        starts = torch.tensor(list(domains) or [(0, 0)])
        self.domain_users, self.domain_items = starts[:, 0].contiguous(), starts[:, 1].contiguous()
        self.domain_sizes = torch.diff(self.domain_items, append=torch.tensor([num_items]))
        own_alone = user_degree is not None
        if user_degree is None:
            user_degree = torch.bincount(users, minlength=num_users)
        self.part, self.num_users, self.num_items = part, num_users, num_items
        self.num_interactions = int(user_degree.sum())
        self.train_users = user_degree.nonzero().squeeze(1)
        self.all_degrees = user_degree
        self.first_user, last_user = user_range(user_degree, part)
        own_items = self.domain_sizes[self.domain_of(torch.arange(num_users))] if len(starts) > 1 else num_items
        self.sated_users = (user_degree == own_items).nonzero().squeeze(1)
        self.user_degree_U = user_degree[self.first_user : last_user]
        self.item_degree_I = torch.bincount(items, minlength=num_items)
        if own_alone:
            self.item_degree_I = part.sum(self.item_degree_I)
        mine = (users >= self.first_user) & (users < last_user)
        users, items = users[mine] - self.first_user, items[mine]
        _check_own(users, self.user_degree_U)
        order = torch.argsort(users * num_items + items)
        users, items = users[order], items[order]
        # Half the bytes of the index lists: products wait for memory, not for arithmetic.
        self.items = items.int()
        self.users = users.int()[torch.argsort(self.items, stable=True)]
        self.rowptr = _pointers(self.user_degree_U)
        self.colptr = _pointers(torch.bincount(items, minlength=num_items))  # of this worker's users alone
        self.user_scale_U1 = _inverse(self.user_degree_U.float().sqrt())[:, None]
        self.item_scale_I1 = _inverse(self.item_degree_I.float().sqrt())[:, None]
        # The r-th item a user has not seen is r + the number of seen items s_k with s_k - k <= r (s sorted, k = 0..).
        rank_in_user = torch.arange(len(items)) - self.rowptr[users]
        first_item = self.domain_items[self.domain_of(users + self.first_user)] if len(starts) > 1 else 0
        self._gap_keys = users * (num_items + 1) + items - first_item - rank_in_user

    @property
    def num_local_users(self) -> int:
        return len(self.user_degree_U)

    def domain_of(self, user_X: Tensor) -> Tensor:
        """Return which dataset of the mix users are of, by their index in the whole graph. Shapes: [X] -> [X]."""
        return torch.bucketize(user_X, self.domain_users, right=True) - 1

    def to(self, device: torch.device | str) -> InteractionGraph:
        """Return the graph on ``device``."""
        moved = object.__new__(InteractionGraph)
        moved.__dict__.update(
            (name, value.to(device) if isinstance(value, Tensor) else value) for name, value in vars(self).items()
        )
        return moved

    def thinned(self, share: float, key: Key) -> InteractionGraph:
        """Return the graph without a random ``share`` of its interactions, its degrees those of what is left.

        For products alone; batches are drawn from the whole graph.
        """
        thin = self.to(self.items.device)
        user_E = torch.repeat_interleave(self.user_degree_U) + self.first_user
        item_E = torch.repeat_interleave(self.colptr.diff())
        by_user = uniform(user_E * self.num_items + self.items, key) >= share
        by_item = uniform((self.users + self.first_user).long() * self.num_items + item_E, key) >= share
        thin.rowptr, thin.items = _kept(self.rowptr, self.items, by_user)
        thin.colptr, thin.users = _kept(self.colptr, self.users, by_item)
        thin.user_degree_U = thin.rowptr.diff().long()
        thin.item_degree_I = self.part.sum(thin.colptr.diff().long())
        thin.user_scale_U1 = _inverse(thin.user_degree_U.float().sqrt())[:, None]
        thin.item_scale_I1 = _inverse(thin.item_degree_I.float().sqrt())[:, None]
        return thin

    def sum_of_items(self, item_ID: Tensor) -> Tensor:
        """Return the sum of the rows of each user's train items; differentiable. Shapes: [I, D] -> [U, D]."""
        return linear(item_ID, self._user_sum, self._item_sum)

    def _user_sum(self, item_ID: Tensor) -> Tensor:
        return F.embedding_bag(self.items, item_ID, self.rowptr, mode="sum", include_last_offset=True)

    def _item_sum(self, user_UD: Tensor) -> Tensor:
        return F.embedding_bag(self.users, user_UD, self.colptr, mode="sum", include_last_offset=True)

    def mean_of_items(self, item_ID: Tensor) -> Tensor:
        """Return the mean row of each user's train items, 0 for a user without any. Shapes: [I, D] -> [U, D]."""
        return self._user_sum(item_ID).mul_(self._mean_scale(item_ID.dtype))

    def mean_to_items(self, user_UD: Tensor) -> Tensor:
        """Return this worker's part of the transposed mean; ``user_UD`` is overwritten. Shapes: [U, D] -> [I, D]."""
        return self._item_sum(user_UD.mul_(self._mean_scale(user_UD.dtype)))

    def _mean_scale(self, precision: torch.dtype) -> Tensor:
        return (self.user_scale_U1**2).to(precision)  # a product of two precisions takes ten times as long

    def gather_items(self, item_SD: Tensor) -> Tensor:
        """Return all items' rows from each worker's share. Shapes: [S, D] -> [I, D]."""
        return self.part.gather(item_SD, self.num_items)

    def share_of_items(self, item_ID: Tensor) -> Tensor:
        """Return this worker's share of the sum over workers. Shapes: [I, D] -> [S, D]."""
        return self.part.sum_share(item_ID)

    def propagate(self, user_UD: Tensor, item_SD: Tensor, weights: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Return the sum of layers 0..L, weighted, of E^(k+1) = D^-1/2 A D^-1/2 E^(k), own users and all items.

        ``weights`` [L + 1]: ``layer_weights`` gives LightGCN's, their mean.

        Shapes: user_UD [U, D]; item_SD, this worker's share of item rows (``part.rows``) -> [U, D], [I, D].
        Source: LightGCN (arXiv 2002.02126) eq. 3-8; AlphaRec (arXiv 2407.05441) eq. 2-3.
        """
        return cast(tuple[Tensor, Tensor], _Propagate.apply(user_UD, item_SD, self, tuple(weights)))  # type: ignore[no-untyped-call]

    def _sum_of_layers(self, user_UD: Tensor, item_ID: Tensor, weights: Sequence[float]) -> tuple[Tensor, Tensor]:
        # Horner: w0 e + A(w1 e + A w2 e) sums the layers without keeping them. Users stay on their worker, items are
        # summed while the users' product runs.
        user, item = user_UD * weights[-1], item_ID * weights[-1]
        for weight in reversed(weights[:-1]):
            to_items = self._item_sum(user.mul_(self.user_scale_U1))
            arrives = self.part.start_sum(to_items)
            user = self._user_sum(item.mul_(self.item_scale_I1)).mul_(self.user_scale_U1).add_(user_UD, alpha=weight)
            arrives()
            item = to_items.mul_(self.item_scale_I1).add_(item_ID, alpha=weight)
        return user, item


class _Propagate(torch.autograd.Function):
    """Propagation is a symmetric matrix, so its backward pass is itself."""

    @staticmethod
    def forward(
        ctx: Any, user_UD: Tensor, item_SD: Tensor, graph: InteractionGraph, weights: tuple[float, ...]
    ) -> tuple[Tensor, Tensor]:
        ctx.graph, ctx.weights = graph, weights
        return graph._sum_of_layers(user_UD, graph.gather_items(item_SD), weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        graph = ctx.graph
        if len(ctx.weights) == 1:
            weight = ctx.weights[0]
            return gradients[0] * weight, graph.share_of_items(gradients[1]) * weight, None, None
        user, item = graph._sum_of_layers(gradients[0], graph.part.sum(gradients[1]), ctx.weights)
        return user, item[graph.part.rows(graph.num_items)], None, None


def linear(x: Tensor, apply: Callable[[Tensor], Tensor], transposed: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a linear map of ``x``, differentiable: its gradient is the transposed map of the result's."""
    return cast(Tensor, _Linear.apply(x, apply, transposed))  # type: ignore[no-untyped-call]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, apply: Callable[[Tensor], Tensor], transposed: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.transposed = transposed
        return apply(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.transposed(gradients[0].contiguous()), None, None


def _kept(pointers: Tensor, indices: Tensor, keep_E: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row pointers and column indices of the entries that are kept."""
    return _pointers(keep_E)[pointers.long()], indices[keep_E]


def _inverse(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1 / x, torch.zeros_like(x))


def user_range(user_degree_U: Tensor, part: Part) -> tuple[int, int]:
    """Return the first user of a worker and the one after its last, from all users' train interactions.

    Its users are its share of the virtual shards, which are the same whatever the workers.
    """
    # A user costs its interactions plus about 8 for its row in the projector.
    cost = torch.cumsum(user_degree_U + 8, 0)
    total = int(cost[-1]) if len(cost) else 0
    shards = [VIRTUAL_SHARDS * rank // part.size for rank in (part.rank, part.rank + 1)]
    first, last = torch.searchsorted(cost, torch.tensor([total * shard // VIRTUAL_SHARDS for shard in shards])).tolist()
    return first, len(user_degree_U) if part.rank == part.size - 1 else last


def _pointers(count_X: Tensor) -> Tensor:
    """Return where each row's entries begin in an index list, and the end of the last: int32 [X + 1]."""
    return F.pad(count_X.cumsum(0, dtype=torch.int32), (1, 0))


def _check_pairs(users: Tensor, items: Tensor, num_users: int, num_items: int) -> None:
    for name, index, size in (("user", users, num_users), ("item", items, num_items)):
        if len(index) and (index.min() < 0 or index.max() >= size):
            raise ValueError(f"graph: {name} indices must lie in 0..{size - 1} (got {index.min()}..{index.max()})")
    keys = torch.sort(users * num_items + items).values
    twice = keys[1:][keys[1:] == keys[:-1]]
    if len(twice):
        user, item = divmod(int(twice[0]), num_items)
        raise ValueError(f"graph: {len(twice)} pairs occur twice (got user {user}, item {item}); keep each pair once")


def _check_own(users: Tensor, user_degree_U: Tensor) -> None:
    if len(users) > MOST_INTERACTIONS:
        raise ValueError(f"graph: a worker holds at most 2^31 - 1 interactions (got {len(users)}); use more workers")
    if not torch.equal(torch.bincount(users, minlength=len(user_degree_U)), user_degree_U):
        raise ValueError("graph: user_degree does not count the pairs of this worker's users; pass all of their pairs")


@dataclass(frozen=True)
class Batch:
    """Positives and negatives whose user belongs to this worker.

    Shapes: user_B [B] rows of the worker's users; item_BN [B, 1 + N] int32, the positive first.

    Attributes:
        size: positives drawn with these, over all workers.
    """

    user_B: Tensor
    item_BN: Tensor
    size: int


@dataclass(frozen=True)
class Sampler:
    """Draw batches as a pure function of (seed, step): no state, the same batch on any device and worker count.

    An epoch is as many whole batches as there are positives for in the train interactions, and users come equally often
    up to the rest: index mod users of a shuffled epoch picks the user, then one of its train items at random. Negatives
    are uniform, with replacement, over the items the user has not in train.

    ``at_once`` is how many positives ``pieces`` draws at a time; None: the whole batch. ``by_interactions``: a user is
    drawn as often as it has train items.

    Source: AlphaRec's official loader, behaviour only.
    """

    graph: InteractionGraph
    seed: int
    batch_size: int
    num_negatives: int
    at_once: int | None = None
    by_interactions: bool = False

    def __post_init__(self) -> None:
        if len(self.graph.sated_users):
            user = int(self.graph.sated_users[0])
            raise ValueError(
                f"sampling: user {user} has every item in train, so no negative exists; leave that user out"
            )

    @functools.cached_property
    def _ends_U(self) -> Tensor:
        return self.graph.all_degrees.cumsum(0)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; at least one."""
        return max(1, self.graph.num_interactions // self.batch_size)

    @property
    def positives_per_step(self) -> int:
        """Positives in a batch, over all workers."""
        return min(self.batch_size, self.graph.num_interactions)

    def pieces(self, step: int) -> Iterator[Batch]:
        """Draw the batch of ``step`` piece by piece, so that a large one never has to be there whole."""
        size = self.at_once or self.positives_per_step
        for start in range(0, self.positives_per_step, size):
            yield self.draw(step, range(start, min(start + size, self.positives_per_step)))

    def draw(self, step: int, rows: range | None = None) -> Batch:
        """Return this worker's part of the batch of ``step``, counted from 0 over all epochs, or of some rows."""
        graph, device = self.graph, self.graph.items.device
        epoch, position = divmod(step, self.steps_per_epoch)
        rows = range(self.positives_per_step) if rows is None else rows
        row_B = torch.arange(rows.start, rows.stop, device=device)
        shuffled_B = _shuffle(row_B + position * self.positives_per_step, graph.num_interactions, self.key(epoch, 0))
        if self.by_interactions:
            user_B = torch.bucketize(shuffled_B, self._ends_U, right=True) - graph.first_user
        else:
            user_B = graph.train_users[shuffled_B % len(graph.train_users)] - graph.first_user
        mine = (user_B >= 0) & (user_B < graph.num_local_users)
        user_B, row_B = user_B[mine], row_B[mine]
        start_B, degree_B = graph.rowptr[user_B].long(), graph.user_degree_U[user_B]
        domain_B = graph.domain_of(user_B + graph.first_user)
        positive_B = graph.items[start_B + _below(degree_B, row_B, self.key(step, 1))]
        counter_BN = row_B[:, None] * self.num_negatives + torch.arange(self.num_negatives, device=device)
        gap_BN = _below((graph.domain_sizes[domain_B] - degree_B)[:, None], counter_BN, self.key(step, 2))
        seen_before_BN = (
            torch.searchsorted(graph._gap_keys, user_B[:, None] * (graph.num_items + 1) + gap_BN, right=True)
            - (start_B - graph.domain_items[domain_B])[:, None]
        )
        item_BN = torch.cat([positive_B[:, None], gap_BN.add_(seen_before_BN).int()], 1)
        return Batch(user_B, item_BN, len(rows))

    def key(self, counter: int, stream: int) -> Key:
        """Return the key of a stream of random numbers, of a step or an epoch; 0 to 2 are the sampler's own."""
        mixed = _mix64(_mix64(_mix64(self.seed) ^ counter) ^ stream)
        return mixed & _MASK32, mixed >> 32


Key = tuple[int, int]
_MASK32 = 0xFFFFFFFF


def uniform(counter: Tensor, key: Key) -> Tensor:
    """Return a number in [0, 1) for each counter, a pure function of both. Shapes: int64 [...] -> float32 [...]."""
    return (_uniform32(counter, key) >> 8).float() * 2.0**-24


def _mix64(value: int) -> int:
    """SplitMix64's finaliser, on Python integers."""
    value = (value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)


def _hash32(x: Tensor) -> Tensor:
    """Mix the bits of int32, in place, products wrapping around; the bijection is "lowbias32" (Wellons)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - (1 << 32)), (16, None)):
        x ^= (x >> shift).bitwise_and_((1 << (32 - shift)) - 1)  # a shift of the bits, not of the signed number
        if factor is not None:
            x *= factor
    return x


def _uniform32(counter: Tensor, key: Key) -> Tensor:
    """Return 32 random bits for each counter, as int64 in 0..2^32-1."""
    low, high = (word - (1 << 32) if word >> 31 else word for word in key)
    bits = _hash32(_hash32(counter.int().add_(low)).bitwise_xor_(high))
    return bits.long().bitwise_and_(_MASK32)


def _below(bound: Tensor, counter: Tensor, key: Key) -> Tensor:
    """Draw integers in 0..bound-1; the bias is bound / 2^32: under 0.3% for 10 million items."""
    draw = _uniform32(counter, key)
    draw *= bound
    draw >>= 32
    return draw


def _shuffle(index: Tensor, size: int, key: Key) -> Tensor:
    """Return the places of ``index`` in a pseudo-random permutation of 0..size-1, without ever listing it.

    A four-round Feistel network over the next power of four; places past the end walk on until they fall inside.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    place = _feistel(index, half, key)
    while (outside := place >= size).any():
        place[outside] = _feistel(place[outside], half, key)
    return place


def _feistel(index: Tensor, half: int, key: Key) -> Tensor:
    left, right = index >> half, index & ((1 << half) - 1)
    for turn in range(4):
        left, right = right, left ^ (_uniform32(right, (key[0], key[1] ^ turn)) & ((1 << half) - 1))
    return (left << half) | right
