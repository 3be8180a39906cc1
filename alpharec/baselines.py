"""Models to compare with: closed forms on the train graph, and ID models and losses that train as AlphaRec does.

Shapes: U users, I items, S items of this worker, B users of a block or a batch, N candidates, C items of a block,
P pairs, R rank, T text width, D representation width, H hidden width, Z latent width.

Closed forms hold one I x I float32 matrix (50,000 items: 10 GB) and never U x I numbers. Most popular is
``alpharec.evaluation.popularity``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alpharec.graph import Batch, InteractionGraph, Key, Part, Sampler, layer_weights, linear, uniform
from alpharec.model import Objective, TextFeatures, sampled_scores
from alpharec.ranking import Lists, Scores

ITEMS_AT_ONCE = 1024  # columns of an item-item matrix: 200 MB of users' columns at 49,156 users


def item_scores(weight_IC: Tensor, lists: Lists) -> Scores:
    """Return X W: for each user, the sum of the rows of its items. W has a column for each item to score."""
    num_items = weight_IC.shape[1]
    return Scores(lambda users_B: _sum_rows(weight_IC, lists, users_B), lists.num_users, num_items, weight_IC.device)


def ease(graph: InteractionGraph, *, regularization: float) -> Tensor:
    """Return weights B_ij = -P_ij / P_jj off the diagonal, P = (X^T X + regularization)^-1, X the train interactions.

    Shapes: -> [I, I], the same on every worker.
    Raises: ``ValueError`` if ``regularization`` is not positive.
    Source: EASE (arXiv 1905.03375) eq. 8.
    """
    if not regularization > 0:
        raise ValueError(f"ease: regularization must be above 0 (got {regularization})")
    weight_II = _gram(graph, torch.ones(graph.num_local_users, device=graph.items.device))
    weight_II.diagonal().add_(regularization)
    _invert_(weight_II)
    weight_II /= -weight_II.diagonal().clone()
    return weight_II.fill_diagonal_(0)


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
        self.lists, self.scale_I1 = train_lists(graph), graph.item_scale_I1
        self.root_I1 = graph.item_degree_I.float().sqrt()[:, None]
        self.linear_II = _gram(graph, graph.user_scale_U1.squeeze(1) ** 2)
        self.linear_II.mul_(self.scale_I1).mul_(self.scale_I1.T)
        self.vector_IR = _first_vectors(graph, max_rank, seed)

    def scores(self, *, rank: int, low_pass: float) -> Scores:
        """Return the scores with the first ``rank`` vectors.

        Raises: ``ValueError`` if ``rank`` is not in 1..max_rank.
        """
        into_IR, out_RI = self._low_rank(rank)

        def of(users_B: Tensor) -> Tensor:
            low_BR = _sum_rows(into_IR, self.lists, users_B)
            return _sum_rows(self.linear_II, self.lists, users_B).addmm_(low_BR, out_RI, alpha=low_pass)

        return Scores(of, self.lists.num_users, len(self.linear_II), self.linear_II.device)

    def into_weights(self, *, rank: int, low_pass: float) -> Tensor:
        """Return the same as one matrix of items' weights, in the place of ``linear_II``. Shapes: -> [I, I]."""
        return self.linear_II.addmm_(*self._low_rank(rank), alpha=low_pass)

    def _low_rank(self, rank: int) -> tuple[Tensor, Tensor]:
        if not 1 <= rank <= self.vector_IR.shape[1]:
            raise ValueError(f"graph filter: rank must be in 1..{self.vector_IR.shape[1]} (got {rank})")
        vector_IR = self.vector_IR[:, :rank]
        return vector_IR * self.scale_I1, (vector_IR * self.root_I1).T


class ItemWeights(nn.Module):
    """EASE or GF-CF as a model: the weights of items in each other's scores, solved on the train graph, not trained.

    It has no representations: its scores are ``item_scores`` of ``weight_II`` [I, I].
    """

    layer_weights = step_weights = (1.0,)
    num_layers, propagate_first = 0, False

    def __init__(self, num_items: int, solve: Callable[[InteractionGraph], Tensor]) -> None:
        super().__init__()
        self.weight_II = nn.Parameter(torch.empty(num_items, num_items), requires_grad=False)
        self._solve = solve

    def solve(self, graph: InteractionGraph) -> None:
        """Solve for the weights on all workers' interactions."""
        self.weight_II.data = self.weight_II.new_empty(0)  # leaves its room to the solution
        self.weight_II.data = self._solve(graph)

    def features(self, item_ST: Tensor, graph: InteractionGraph, *, precision: torch.dtype | None = None) -> None:
        """Read no features."""


class IdEmbeddings(nn.Module):
    """LightGCN: a free vector for each user and item, propagated; matrix factorisation where ``num_layers`` is 0.

    Called, trained and ranked as ``AlphaRec``, on any number of workers; it takes no notice of title vectors.

    Args:
        num_users, num_items: of the whole graph.
        width: D.
        num_layers: L of the propagation.
        layer_0_weight: of a node's own vector in the sum of layers; None: 1 / (L + 1).
        popularity: with the tables of ``BiasMargin``.
        seed: of the initial vectors, normal with deviation 0.01: cosines forget them within an epoch of Adam at 1e-3.

    Source: LightGCN (arXiv 2002.02126).
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        *,
        width: int = 64,
        num_layers: int = 2,
        layer_0_weight: float | None = None,
        popularity: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.num_layers, self.propagate_first = num_layers, False
        self.popularity = PopularityTables(width, seed=seed) if popularity else None
        self.layer_weights = self.step_weights = layer_weights(num_layers, layer_0_weight)
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
        return graph.propagate(*self.layer_0(graph), self.step_weights)


class MultVae(nn.Module):
    """A variational autoencoder of each user's items, by a decoder whose last layer makes scores dot products.

    Trained with ``Multinomial``, called and ranked as ``AlphaRec``; it takes no notice of title vectors.

    Args:
        num_items: of the whole graph.
        hidden_width: H of encoder and decoder.
        width: Z of the latent vector.
        seed: of the initial weights: normal, deviation 1 / sqrt(inputs).

    Source: MultVAE (arXiv 1802.05814), its architecture I - 600 - 200 - 600 - I.
    """

    layer_weights = step_weights = (1.0,)
    num_layers, propagate_first = 0, False
    DROPPED = 0.5  # of a user's items, in training

    def __init__(self, num_items: int, *, hidden_width: int = 600, width: int = 200, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def fresh(rows: int, columns: int, inputs: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns, generator=generator) / inputs**0.5)

        self.encoder_IH = fresh(num_items, hidden_width, num_items)
        self.latent_2ZH = fresh(2 * width, hidden_width, hidden_width)
        self.decoder_HZ = fresh(hidden_width, width, width)
        self.output_IH = fresh(num_items, hidden_width, hidden_width)
        sizes = {"encoder": hidden_width, "latent": 2 * width, "decoder": hidden_width, "output": num_items}
        self.biases = nn.ParameterDict({name: nn.Parameter(torch.zeros(size)) for name, size in sizes.items()})

    def features(self, item_ST: Tensor, graph: InteractionGraph, *, precision: torch.dtype | None = None) -> None:
        """Read no features."""

    def encode(self, graph: InteractionGraph, kept: InteractionGraph | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of users' latent vectors; ``kept``: the graph of what was not dropped.

        Shapes: -> [U, Z], [U, Z].
        """
        sum_UH = (kept or graph).sum_of_items(self.encoder_IH) * graph.user_scale_U1
        if kept is not None:
            sum_UH = sum_UH / (1 - self.DROPPED)
        hidden_UH = torch.tanh(sum_UH + self.biases["encoder"])
        mean_UZ, log_variance_UZ = F.linear(hidden_UH, self.latent_2ZH, self.biases["latent"]).chunk(2, 1)
        return mean_UZ, log_variance_UZ

    def decode(self, latent_UZ: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the output layer multiplies, biases included. Shapes: -> [U, H + 1], [I, H + 1]."""
        hidden_UH = torch.tanh(F.linear(latent_UZ, self.decoder_HZ, self.biases["decoder"]))
        one_U1 = hidden_UH.new_ones(len(hidden_UH), 1)
        return torch.cat([hidden_UH, one_U1], 1), torch.cat([self.output_IH, self.biases["output"][:, None]], 1)

    def layer_0(self, graph: InteractionGraph, features: None = None) -> tuple[Tensor, Tensor]:
        """Return users' and this worker's share of items' representations. Shapes: [U, H + 1], [S, H + 1]."""
        user_UH, item_IH = self(graph)
        return user_UH, item_IH[graph.part.rows(graph.num_items)]

    def forward(self, graph: InteractionGraph, features: None = None) -> tuple[Tensor, Tensor]:
        """Return final representations of the worker's users and all items. Shapes: [U, H + 1], [I, H + 1]."""
        return self.decode(self.encode(graph)[0])


@dataclass(frozen=True)
class Multinomial(Objective):
    """-log likelihood of all of a user's items under a softmax over the catalog, and the latent vector's divergence.

    Of a batch, its users count, each once. A score for each of them and each item is kept: 4,096 users of 50,000 items
    are 0.8 GB, and as much again for gradients.

    Args:
        kl_weight: beta, constant; the original raises it from 0.

    Source: MultVAE (arXiv 1802.05814) eq. 7.
    """

    kl_weight: float = 0.2

    def ends(self, model: nn.Module, sampler: Sampler, features: TextFeatures | None, step: int) -> tuple[Tensor, ...]:
        """Return decoded users, the output layer, and users' divergences."""
        graph, vae = sampler.graph, cast(MultVae, model)
        mean_UZ, log_variance_UZ = vae.encode(graph, graph.thinned(vae.DROPPED, sampler.key(step, 3)))
        noise_UZ = _normal(graph.first_user, mean_UZ, sampler.key(step, 4))
        latent_UZ = mean_UZ + noise_UZ * (log_variance_UZ / 2).exp()
        divergence_U = (mean_UZ**2 + log_variance_UZ.exp() - 1 - log_variance_UZ).sum(1) / 2
        return *vae.decode(latent_UZ), divergence_U

    def of_ends(self, ends: Sequence[Tensor], batch: Batch, graph: InteractionGraph) -> Tensor:
        """Return the mean over the batch's users, times its positives."""
        user_UH, item_IH, divergence_U = ends
        user_R = batch.user_B.unique()
        count = float(graph.part.sum(torch.tensor([len(user_R)], device=user_R.device)))
        row_P, item_P = train_lists(graph).rows(user_R)
        log_RI = F.log_softmax(user_UH[user_R] @ item_IH.T, 1)
        total = self.kl_weight * divergence_U[user_R].sum() - log_RI[row_P, item_P].sum()
        return total * batch.size / count


@dataclass(frozen=True)
class BiasMargin(Objective):
    """InfoNCE whose positives are turned away by a margin, small where popularity alone explains the interaction.

    A second InfoNCE trains what popularity explains: ``PopularityTables``' cosines of users' and items' degrees.

    Args:
        bias_weight: lambda of the second; the first has 1 - lambda.

    Source: BC loss (arXiv 2210.11054) eq. 5-8; the margin 1 - sigmoid(dot product) is the authors' code's. Both train
    from the first step on; theirs trains the tables alone for five epochs, then keeps them.
    """

    bias_weight: float = 0.5

    def ends(self, model: nn.Module, sampler: Sampler, features: TextFeatures | None, step: int) -> tuple[Tensor, ...]:
        """Return users, items scaled already, and the popularity vectors of both."""
        return *super().ends(model, sampler, features, step), *cast(Any, model).popularity(sampler.graph)

    def of_ends(self, ends: Sequence[Tensor], batch: Batch, graph: InteractionGraph) -> Tensor:
        """Return the sum of both losses over a piece's positives."""
        user_UD, item_ID, user_popularity_UD, item_popularity_ID = ends
        popular_BD = user_popularity_UD[batch.user_B]
        cosine_BN = sampled_scores(self.scale(user_UD[batch.user_B]), item_ID, batch.item_BN)
        angle_B = torch.arccos(cosine_BN[:, 0].clamp(-1 + 1e-6, 1 - 1e-6))
        # Not trained by the first loss, which would make it vanish; and nothing is turned past the opposite direction.
        popular_B = (popular_BD * item_popularity_ID[batch.item_BN[:, 0]]).sum(1)
        margin_B = torch.minimum(1 - torch.sigmoid(popular_B), math.pi - angle_B).detach()
        turned_BN = torch.cat([torch.cos(angle_B + margin_B)[:, None], cosine_BN[:, 1:]], 1)
        bias_BN = sampled_scores(self.scale(popular_BD), self.scale(item_popularity_ID), batch.item_BN)
        return (1 - self.bias_weight) * self.softmax_loss(turned_BN) + self.bias_weight * self.softmax_loss(bias_BN)


class PopularityTables(nn.Module):
    """A vector for each degree of a user, and of an item; degrees from ``LAST`` on share one.

    Called with a graph, returns those of its users and of all items. Shapes: -> [U, D], [I, D].
    """

    LAST = 4095

    def __init__(self, width: int, *, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed + 1)
        shape = (self.LAST + 1, width)
        self.user_LD = nn.Parameter(torch.randn(shape, generator=generator) * 0.1)
        self.item_LD = nn.Parameter(torch.randn(shape, generator=generator) * 0.1)

    def forward(self, graph: InteractionGraph) -> tuple[Tensor, Tensor]:
        return (
            F.embedding(graph.user_degree_U.clamp(max=self.LAST), self.user_LD),
            F.embedding(graph.item_degree_I.clamp(max=self.LAST), self.item_LD),
        )


@dataclass(frozen=True)
class Contrast(Objective):
    """The loss beside another: a node's two views against the other view of the batch's other nodes.

    ``dropped`` makes the views by leaving out that share of the interactions, twice (SGL); ``noise`` by adding noise of
    that length to each node at each layer of the propagation itself, whose result and first layer they are (XSimGCL).
    One of the two is 0. Users and positive items of a batch count once each, users against users, items against items.

    Args:
        weight: lambda of the contrast.
        contrast_temperature: tau of the contrast.

    Source: SGL (arXiv 2010.10783) eq. 10-12; XSimGCL (arXiv 2209.02544) eq. 8-10.
    """

    weight: float = 0.1
    contrast_temperature: float = 0.2
    dropped: float = 0.0
    noise: float = 0.0

    def ends(self, model: nn.Module, sampler: Sampler, features: TextFeatures | None, step: int) -> tuple[Tensor, ...]:
        """Return users, items scaled already, and both views of users and items."""
        graph, encoder = sampler.graph, cast(Any, model)
        (user_UD, item_SD), weights = encoder.layer_0(graph, features), encoder.step_weights
        if self.noise:
            keys = [sampler.key(step, 3 + layer) for layer in range(len(weights))]
            final, first = propagate_noisily(graph, user_UD, item_SD, weights, noise=self.noise, keys=keys)
            return final[0], self.scale(final[1]), *final, *first
        final = graph.propagate(user_UD, item_SD, weights)
        thin = [graph.thinned(self.dropped, sampler.key(step, stream)) for stream in (3, 4)]
        one, other = (view.propagate(user_UD, item_SD, weights) for view in thin)
        return final[0], self.scale(final[1]), *one, *other

    def of_ends(self, ends: Sequence[Tensor], batch: Batch, graph: InteractionGraph) -> Tensor:
        """Return the sum of the loss over the batch's positives, and the contrast's mean times their number."""
        loss = super().of_ends(ends[:2], batch, graph)
        user_UD, item_ID, other_UD, other_ID = (F.normalize(view, dim=1) for view in ends[2:])
        part, user_R = graph.part, batch.user_B.unique()
        drawn_I = part.sum(torch.bincount(batch.item_BN[:, 0], minlength=len(item_ID)))
        item_Q = drawn_I.nonzero().squeeze(1)
        mine = item_Q[part.rank :: part.size]
        place = torch.arange(len(item_Q), device=mine.device)[part.rank :: part.size]
        first, whole_RD = _gather_rows(other_UD[user_R], part)
        rows = torch.arange(first, first + len(user_R), device=user_R.device)
        of_users = self._against_others(user_UD[user_R], whole_RD, rows) / max(1, len(whole_RD))
        of_items = self._against_others(item_ID[mine], other_ID[item_Q], place) / max(1, len(item_Q))
        return loss + self.weight * batch.size * (of_users + of_items)

    def _against_others(self, one_XD: Tensor, other_YD: Tensor, place_X: Tensor) -> Tensor:
        score_XY = one_XD / self.contrast_temperature @ other_YD.T  # divided before: X x D numbers, not X x Y
        return F.cross_entropy(score_XY, place_X, reduction="sum")


def propagate_noisily(
    graph: InteractionGraph,
    user_UD: Tensor,
    item_SD: Tensor,
    weights: Sequence[float],
    *,
    noise: float,
    keys: Sequence[Key],
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return ``propagate`` with noise added to every node of layers 1..L, and its layer 1.

    The noise has the node's signs, a random direction of positive numbers, and the length ``noise``.
    Shapes: [U, D], [S, D] -> [U, D], [I, D] twice.
    """
    own = graph.part.rows(graph.num_items)
    total_UD, total_SD, first = user_UD * weights[0], item_SD * weights[0], (user_UD, item_SD)

    def noisy(x_XD: Tensor, first_row: int, key: Key) -> Tensor:
        direction_XD = F.normalize(_uniform_rows(first_row, x_XD, key), dim=1)
        return x_XD + x_XD.detach().sign() * direction_XD * noise

    for layer, (weight, key) in enumerate(zip(weights[1:], keys[1:], strict=True), start=1):
        user_UD, item_ID = graph.propagate(user_UD, item_SD, (0.0, 1.0))
        user_UD = noisy(user_UD, graph.first_user, key)
        item_SD = noisy(item_ID[own], graph.num_users + own.start, key)
        total_UD, total_SD = total_UD + weight * user_UD, total_SD + weight * item_SD
        first = (user_UD, item_SD) if layer == 1 else first
    return graph.propagate(total_UD, total_SD, (1.0,)), graph.propagate(first[0], first[1], (1.0,))


def _uniform_rows(first_row: int, like_XD: Tensor, key: Key) -> Tensor:
    """Return numbers in [0, 1) for rows from ``first_row`` on, the same whoever draws them. Shapes: -> [X, D]."""
    rows, columns = like_XD.shape
    counter = torch.arange(first_row * columns, (first_row + rows) * columns, device=like_XD.device)
    return uniform(counter, key).to(like_XD.dtype).view(rows, columns)


def _normal(first_row: int, like_XD: Tensor, key: Key) -> Tensor:
    """Return standard normal numbers, as ``_uniform_rows``, by Box and Muller."""
    radius = (-2 * torch.log1p(-_uniform_rows(first_row, like_XD, key))).sqrt()
    return radius * torch.cos(2 * math.pi * _uniform_rows(first_row, like_XD, (key[1], key[0])))


def _gather_rows(x_RD: Tensor, part: Part) -> tuple[int, Tensor]:
    """Return all workers' rows, however many each has, and the place of the own first; differentiable."""
    if part.size == 1:
        return 0, x_RD
    count = part.gather(torch.tensor([len(x_RD)], device=x_RD.device), part.size)
    first, total = int(count[: part.rank].sum()), int(count.sum())
    padded = F.pad(x_RD, (0, 0, first, total - first - len(x_RD)))
    return first, linear(padded, part.sum, part.sum)


def train_lists(graph: InteractionGraph) -> Lists:
    """Return the train items of the graph's own users."""
    return Lists(graph.rowptr.long(), graph.items.long())


def _sum_rows(weight_IX: Tensor, lists: Lists, users_B: Tensor) -> Tensor:
    """Return, for each user, the sum of the rows of its items. Unlike a dense product's, its bits know no block."""
    count_B = lists.counts[users_B]
    offsets = torch.cat([count_B.new_zeros(1), count_B.cumsum(0)])
    return F.embedding_bag(lists.rows(users_B)[1], weight_IX, offsets, mode="sum", include_last_offset=True)


def _gram(graph: InteractionGraph, weight_U: Tensor) -> Tensor:
    """Return X^T diag(weight) X of all workers' train interactions X. Shapes: -> [I, I]; costs E x I additions."""
    gram_II = torch.empty(graph.num_items, graph.num_items, device=graph.items.device)
    item_E = torch.repeat_interleave(graph.colptr.diff())
    for item_C in torch.arange(graph.num_items, device=graph.items.device).split(ITEMS_AT_ONCE):
        first, last = int(item_C[0]), int(item_C[-1]) + 1
        mine = slice(int(graph.colptr[first]), int(graph.colptr[last]))
        users = graph.users[mine]
        user_UC = torch.zeros(graph.num_local_users, last - first, device=users.device)
        user_UC[users, item_E[mine] - first] = weight_U[users]
        gram_II[:, first:last] = F.embedding_bag(
            graph.users, user_UC, graph.colptr, mode="sum", include_last_offset=True
        )
    return graph.part.sum(gram_II)


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
    return graph.part.sum(graph.mean_to_items(user_UW)) * graph.item_scale_I1
