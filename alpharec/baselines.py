"""Models to compare with: closed forms on the train graph, and ID embeddings that train as AlphaRec does.

Shapes: U users, I items, B users of a block, C items of a block, P pairs, R rank, T text width, D representation width.

Closed forms hold at most one I x I float32 matrix (50,000 items: 10 GB) and never U x I numbers. Most popular is
``alpharec.train.popularity``.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alpharec.graph import InteractionGraph
from alpharec.model import propagate_vectors
from alpharec.ranking import Lists, Scores

ITEMS_AT_ONCE = 1024  # columns of an item-item matrix: 200 MB of users' columns at 49,156 users


def text_neighbors(item_IT: Tensor, graph: InteractionGraph, *, num_layers: int = 0) -> tuple[Tensor, Tensor]:
    """Return title vectors and users' means of them, propagated and scaled to unit length; nothing is trained.

    Shapes: -> [U, T], [I, T]; dot products are scores.
    Raises: ``ValueError`` if the vectors do not cover the graph's items.
    Source: TextGCN (arXiv 2510.12461); with ``num_layers = 0``, the items nearest to the mean of the user's titles.
    """
    _check_whole(graph)
    if len(item_IT) != graph.num_items:
        raise ValueError(f"title vectors must cover {graph.num_items} items (got {len(item_IT)} rows)")
    user_UT, item_IT = propagate_vectors(item_IT, graph, num_layers)
    return F.normalize(user_UT, dim=1), F.normalize(item_IT, dim=1)


def ease(graph: InteractionGraph, *, regularization: float) -> Scores:
    """Return X B for train interactions X, B_ij = -P_ij / P_jj off the diagonal, P = (X^T X + regularization)^-1.

    Raises: ``ValueError`` if ``regularization`` is not positive.
    Source: EASE (arXiv 1905.03375) eq. 8.
    """
    if not regularization > 0:
        raise ValueError(f"ease: regularization must be above 0 (got {regularization})")
    weight_II = _gram(graph, torch.ones(graph.num_users, device=graph.items.device))
    weight_II.diagonal().add_(regularization)
    _invert_(weight_II)
    weight_II /= -weight_II.diagonal().clone()
    weight_II.fill_diagonal_(0)
    lists = _train_lists(graph)
    return Scores(
        lambda users_B: _sum_rows(weight_II, lists, users_B), graph.num_users, graph.num_items, weight_II.device
    )


class GraphFilter:
    """X (S + low_pass D^-1/2 V V^T D^1/2), S = N^T N of the normalised train matrix N, V its first right vectors.

    N = D_U^-1/2 X D^-1/2, X the train interactions, D_U and D the users' and items' degrees.

    Args:
        graph: the train graph.
        max_rank: largest rank that ``scores`` can be asked for.
        seed: of the subspace iteration's first guess.

    Raises:
        ValueError: ``max_rank`` is not in 1..I.

    Source: GF-CF (arXiv 2108.07567) eq. 13.
    """

    def __init__(self, graph: InteractionGraph, *, max_rank: int = 256, seed: int = 0) -> None:
        if not 1 <= max_rank <= graph.num_items:
            raise ValueError(f"graph filter: max_rank must be in 1..{graph.num_items} (got {max_rank})")
        self.lists, self.scale_I1 = _train_lists(graph), graph.item_scale_I1
        self.root_I1 = graph.item_degree_I.float().sqrt()[:, None]
        self.linear_II = _gram(graph, graph.user_scale_U1.squeeze(1) ** 2)
        self.linear_II.mul_(self.scale_I1).mul_(self.scale_I1.T)
        self.vector_IR = _first_vectors(graph, max_rank, seed)

    def scores(self, *, rank: int, low_pass: float) -> Scores:
        """Return the scores with the first ``rank`` vectors.

        Raises: ``ValueError`` if ``rank`` is not in 1..max_rank.
        """
        if not 1 <= rank <= self.vector_IR.shape[1]:
            raise ValueError(f"graph filter: rank must be in 1..{self.vector_IR.shape[1]} (got {rank})")
        vector_IR = self.vector_IR[:, :rank]
        into_IR, out_RI = vector_IR * self.scale_I1, (vector_IR * self.root_I1).T

        def of(users_B: Tensor) -> Tensor:
            low_BR = _sum_rows(into_IR, self.lists, users_B)
            return _sum_rows(self.linear_II, self.lists, users_B).addmm_(low_BR, out_RI, alpha=low_pass)

        return Scores(of, self.lists.num_users, len(self.linear_II), self.linear_II.device)


class IdEmbeddings(nn.Module):
    """LightGCN: a free vector for each user and item, propagated; matrix factorisation where ``num_layers`` is 0.

    Called, trained and ranked as ``AlphaRec``, on any number of workers; it takes no notice of title vectors.

    Args:
        num_users, num_items: of the whole graph.
        width: D.
        num_layers: L of the propagation.
        seed: of the initial vectors, normal with deviation 0.01: cosines forget them within an epoch of Adam at 1e-3.

    Source: LightGCN (arXiv 2002.02126).
    """

    def __init__(self, num_users: int, num_items: int, *, width: int = 64, num_layers: int = 2, seed: int = 0) -> None:
        super().__init__()
        self.num_layers = self.num_rounds = num_layers
        self.width = width
        generator = torch.Generator().manual_seed(seed)
        self.user_UD = nn.Parameter(torch.randn(num_users, width, generator=generator) * 0.01)
        self.item_ID = nn.Parameter(torch.randn(num_items, width, generator=generator) * 0.01)

    def features(self, item_ST: Tensor, graph: InteractionGraph, *, precision: torch.dtype | None = None) -> None:
        """Read no features."""

    def layer_0(self, graph: InteractionGraph, features: None = None) -> tuple[Tensor, Tensor]:
        """Return the free vectors of the worker's users and of its share of items. Shapes: [U, D], [S, D]."""
        mine = slice(graph.first_user, graph.first_user + graph.num_local_users)
        return self.user_UD[mine], self.item_ID[graph.part.rows(graph.num_items)]

    def forward(self, graph: InteractionGraph, features: None = None) -> tuple[Tensor, Tensor]:
        """Return final representations of the worker's users and all items, not normalised. Shapes: [U, D], [I, D]."""
        return graph.propagate(*self.layer_0(graph), self.num_layers)


def _check_whole(graph: InteractionGraph) -> None:
    if graph.part.size != 1:
        raise ValueError(f"closed forms need all users on one worker (got {graph.part.size} workers)")


def _train_lists(graph: InteractionGraph) -> Lists:
    _check_whole(graph)
    return Lists(graph.rowptr.long(), graph.items.long())


def _sum_rows(weight_IX: Tensor, lists: Lists, users_B: Tensor) -> Tensor:
    """Return, for each user, the sum of the rows of its items. Unlike a dense product's, its bits know no block."""
    count_B = lists.counts[users_B]
    offsets = torch.cat([count_B.new_zeros(1), count_B.cumsum(0)])
    return F.embedding_bag(lists.rows(users_B)[1], weight_IX, offsets, mode="sum", include_last_offset=True)


def _gram(graph: InteractionGraph, weight_U: Tensor) -> Tensor:
    """Return X^T diag(weight) X of the train interactions X. Shapes: -> [I, I]; costs E x I additions."""
    _check_whole(graph)
    gram_II = torch.empty(graph.num_items, graph.num_items, device=graph.items.device)
    item_E = torch.repeat_interleave(graph.item_degree_I)
    for item_C in torch.arange(graph.num_items, device=graph.items.device).split(ITEMS_AT_ONCE):
        first, last = int(item_C[0]), int(item_C[-1]) + 1
        mine = slice(int(graph.colptr[first]), int(graph.colptr[last]))
        users = graph.users[mine]
        user_UC = torch.zeros(graph.num_users, last - first, device=users.device)
        user_UC[users, item_E[mine] - first] = weight_U[users]
        gram_II[:, first:last] = F.embedding_bag(
            graph.users, user_UC, graph.colptr, mode="sum", include_last_offset=True
        )
    return gram_II


def _invert_(matrix_II: Tensor) -> None:
    """Invert a symmetric positive definite matrix in place; blocks above the diagonal are not read.

    The sweep operator, some pivots at a time: I^3 / 2 multiplications, all in matrix products. Every pivot block is a
    Schur complement, so positive definite too, and needs no search for a pivot.
    """
    size = len(matrix_II)
    blocks = [slice(first, min(first + ITEMS_AT_ONCE, size)) for first in range(0, size, ITEMS_AT_ONCE)]
    for pivot in blocks:
        inverse_CC = torch.linalg.inv(matrix_II[pivot, pivot])
        column_IC = torch.cat([matrix_II[pivot, : pivot.start].T, matrix_II[pivot.start :, pivot]])
        column_IC[pivot] = 0
        swept_IC = column_IC @ inverse_CC
        for rows in blocks:
            matrix_II[rows, : rows.stop].addmm_(column_IC[rows], swept_IC[: rows.stop].T, alpha=-1)
        matrix_II[pivot, : pivot.start] = swept_IC[: pivot.start].T
        matrix_II[pivot.stop :, pivot] = swept_IC[pivot.stop :]
        matrix_II[pivot, pivot] = -inverse_CC
    for rows in blocks:
        matrix_II[rows, : rows.stop].neg_()
        matrix_II[: rows.start, rows] = matrix_II[rows, : rows.start].T


def _first_vectors(graph: InteractionGraph, rank: int, seed: int, num_rounds: int = 20) -> Tensor:
    """Return the first right singular vectors of the normalised train matrix, by subspace iteration of twice the rank.

    Shapes: -> [I, R]. Source: Halko et al. (arXiv 0909.4061) algorithm 4.4.
    """
    width = min(2 * rank, graph.num_items)
    guess_IW = torch.randn(graph.num_items, width, generator=torch.Generator().manual_seed(seed))
    basis_IW = guess_IW.to(graph.items.device)
    for _ in range(num_rounds):
        basis_IW = torch.linalg.qr(_smooth(graph, basis_IW)).Q
    within_WW = basis_IW.T @ _smooth(graph, basis_IW)
    vector_WW = torch.linalg.eigh((within_WW + within_WW.T) / 2).eigenvectors
    return cast(Tensor, basis_IW @ vector_WW.flip(1)[:, :rank])


def _smooth(graph: InteractionGraph, x_IW: Tensor) -> Tensor:
    """Return N^T N x of the normalised train matrix N."""
    user_UW = graph.mean_of_items(x_IW * graph.item_scale_I1) * graph.user_degree_U[:, None]
    return graph.mean_to_items(user_UW) * graph.item_scale_I1
