"""AlphaRec: titles' vectors through a shared projector, LightGCN propagation, and a sampled softmax.

Shapes: U users of this worker, I items, S items of this worker, B batch, N candidates, T text width, H hidden width,
D representation width.

The model knows nothing of workers but the graph's own sums. Plain torch; Ray is not needed here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alpharec.graph import Batch, InteractionGraph, Sampler, layer_weights

# Per hidden unit, a user's mean taken before the first layer costs U x T multiplications, taken after it E additions.
# Measured on 2 CPU cores at U T / E = 5.8 (ml-1m, H = 1,536): after is 20 to 30% faster a step.
ADDITION_COST = 4
# Items per candidate up to which it is cheaper to score all of them: on 2 CPU cores with N = 257, forward and backward
# took 0.6 times as long as the sampled ones with 1,000 items and 2.4 times with 3,043.
PICK_COST = 4
# Hidden units taken at a time by matrix products, in float32: with vectors of width 3,072, 64 units take twice as long
# as 256. In bfloat16 half as many. And by sums over interactions, whose rows should stay in the cache: 64 units of
# 4,000 items are 1 MB; on ml-1m wider slices take up to a third longer.
UNITS_AT_ONCE, UNITS_SUMMED = 512, 64
GATHERED_BYTES = 1 << 30  # of all items' hidden units at a time, where that leaves more than UNITS_SUMMED
ROWS_AT_ONCE = 4096  # of texts outside training: 25 MB of hidden layer at H = 1,536
SLOPE = 0.01  # of the leaky ReLU below 0


def mean_commutes(num_users: int, num_interactions: int, text_width: int) -> bool:
    """Return whether users' means are cheaper taken after the first layer than kept: where U x T > 4 E."""
    return num_users * text_width > ADDITION_COST * num_interactions


def takes_own_items(batch_size: int, num_negatives: int, num_items: int) -> bool:
    """Return whether, without propagation, workers take the items of their batch from all items, or share all of them.

    Where a batch draws fewer candidates than there are items.
    """
    return batch_size * (1 + num_negatives) < num_items


@dataclass(frozen=True)
class TextFeatures:
    """Frozen inputs of the projector.

    Attributes:
        item_ST: title vectors of this worker's share of items; of all items where ``whole``.
        user_UT: mean vector of each user's train items; None where the mean is taken after the first linear layer,
            which is the same (a mean commutes with a linear map) and needs no users x T matrix.
        whole: every worker has all items and takes those of its batch; without propagation no other is needed.
    """

    item_ST: Tensor
    user_UT: Tensor | None
    whole: bool = False

    @classmethod
    def build(
        cls,
        item_ST: Tensor,
        graph: InteractionGraph,
        *,
        commute: bool | None = None,
        precision: torch.dtype | None = None,
        weights: Sequence[float] = (1.0,),
        centred: bool = False,
    ) -> TextFeatures:
        """Keep user means where that is cheaper: where U x T <= 4 E; ``commute`` decides by hand.

        ``item_ST`` are the vectors of this worker's share of items (``part.rows``). ``precision``, e.g. bfloat16, is
        that of the projector's matrix products; weights, their gradients and representations keep the weights' own.
        None: the vectors'. With ``weights`` of several layers the vectors themselves are propagated, and user means
        always kept. ``centred``: by ``centre``, each by the mean over its own dataset of the graph.

        Raises:
            ValueError: the vectors do not cover the worker's items, or are not finite.
        """
        rows = graph.part.rows(graph.num_items)
        if len(item_ST) != rows.stop - rows.start:
            raise ValueError(f"title vectors must cover {rows.stop - rows.start} items (got {len(item_ST)} rows)")
        if not torch.isfinite(item_ST).all():
            row = rows.start + int((~torch.isfinite(item_ST)).any(1).nonzero()[0])
            raise ValueError(f"title vectors must be finite (got NaN or infinity for item {row}); embed again")
        if centred:
            item_ST = _centre_items(item_ST, graph)
        precision = precision or item_ST.dtype
        if commute is None:
            commute = mean_commutes(graph.num_users, graph.num_interactions, item_ST.shape[1])
        propagated = len(weights) > 1
        if commute and not propagated:
            return cls(item_ST.to(precision), None)
        # Some columns at a time, so that no worker ever holds the vectors of all items.
        users, items = [], []
        for part in item_ST.split(UNITS_SUMMED, 1):
            user_UT, item_IT = propagate_vectors(graph.gather_items(part.contiguous()), graph, weights)
            if propagated:  # rounded as they are stored
                user_UT, item_IT = user_UT.half(), item_IT.half()
            users.append(user_UT.to(precision))
            items.append(item_IT[rows].to(precision))
        return cls(torch.cat(items, 1), torch.cat(users, 1))

    def to(self, device: torch.device) -> TextFeatures:
        """Return the same on ``device``."""
        user_UT = None if self.user_UT is None else self.user_UT.to(device)
        return TextFeatures(self.item_ST.to(device), user_UT, self.whole)

    def divided(self, graph: InteractionGraph) -> TextFeatures:
        """Return the features with this worker's share of items alone."""
        return TextFeatures(self.item_ST[graph.part.rows(graph.num_items)], self.user_UT) if self.whole else self

    def of_batch(self, pieces: list[Batch]) -> tuple[TextFeatures, Iterator[Batch]]:
        """Return the features of a batch's own rows, and the batch in terms of those rows.

        Items stay divided over workers unless ``whole``.

        Raises:
            ValueError: user means are not kept.
        """
        if self.user_UT is None:
            raise ValueError("a batch can only take its own rows where user means are kept (got none)")
        rows_B = torch.cat([piece.user_B for piece in pieces])
        user_R, place_B = rows_B.unique(return_inverse=True)
        places = place_B.split([len(piece.user_B) for piece in pieces])
        items, item_ST = [piece.item_BN for piece in pieces], self.item_ST
        if self.whole:
            drawn_I = torch.zeros(len(item_ST), dtype=torch.bool, device=item_ST.device)
            for item_BN in items:
                drawn_I[item_BN.reshape(-1)] = True
            place_I = drawn_I.cumsum(0, dtype=torch.int32) - 1
            items, item_ST = [place_I[item_BN] for item_BN in items], item_ST[drawn_I]
        of_batch = TextFeatures(item_ST, self.user_UT[user_R], self.whole)
        return of_batch, itertools.starmap(Batch, zip(places, items, [piece.size for piece in pieces], strict=True))


def centre(text_XT: Tensor, mean_T: Tensor) -> Tensor:
    """Return texts' vectors without the mean of a catalog's title vectors, ``mean_of_titles``, at unit length.

    Left in, that mean becomes the larger by propagation the more interactions a node has, and ranks by popularity. A
    row of zeros, an item in quarantine, stays one.

    Shapes: [X, T], [T] -> [X, T].
    """
    return F.normalize((text_XT - mean_T) * text_XT.any(1, keepdim=True), dim=1)


def mean_of_titles(item_IT: Tensor) -> Tensor:
    """Return what a catalog's title vectors share, their mean, summed in double precision. Shapes: [I, T] -> [T]."""
    return (_sum_of_rows(item_IT) / len(item_IT)).to(item_IT.dtype)


def _sum_of_rows(item_XT: Tensor) -> Tensor:
    # Some rows at a time: a sum in double precision makes a copy first.
    return torch.stack([part.sum(0, dtype=torch.float64) for part in item_XT.split(ROWS_AT_ONCE)]).sum(0)


def _centre_items(item_ST: Tensor, graph: InteractionGraph) -> Tensor:
    first, starts = graph.part.rows(graph.num_items).start, [*graph.domain_items.tolist(), graph.num_items]
    shares = [slice(max(0, start - first), max(0, end - first)) for start, end in itertools.pairwise(starts)]
    sums = graph.part.sum(torch.stack([_sum_of_rows(item_ST[share]) for share in shares]))
    means = (sums / graph.domain_sizes[:, None]).to(item_ST.dtype)
    centred_ST = torch.empty_like(item_ST)
    for share, mean_T in zip(shares, means, strict=True):
        for rows, read in zip(*(x_ST[share].split(ROWS_AT_ONCE) for x_ST in (centred_ST, item_ST)), strict=True):
            rows.copy_(centre(read, mean_T))
    return centred_ST


def propagate_vectors(item_IC: Tensor, graph: InteractionGraph, weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return some columns of users' means and items' vectors, propagated: the features of "propagate-first".

    Shapes: [I, C] -> [U, C], [I, C]. Source: TextGCN (arXiv 2510.12461).
    """
    user_UC = graph.mean_of_items(item_IC)
    if len(weights) == 1:
        return user_UC, item_IC
    return graph.propagate(user_UC, item_IC[graph.part.rows(graph.num_items)], weights)


class AlphaRec(nn.Module):
    """The projector's weights and the forward pass.

    Args:
        text_width: T.
        hidden_width: H of the MLP; unused by the linear projector.
        width: D; the identity's and the residual's is T.
        projector: "mlp", Linear(T,H) - LeakyReLU(0.01) - Linear(H,D); "linear", Linear(T,D) without bias; "residual",
            the text itself plus an MLP of it, whose last layer starts at 0; or "identity", which is not trained.
        num_layers: L of the propagation; 0 turns it off.
        layer_0_weight: of a node's own vector in the sum of layers; None: 1 / (L + 1).
        propagate_first: it is the vectors that were propagated, before the projector; no graph is left in a step.
        centred: it reads title vectors, and any text's, by ``centre``.
        seed: of the initial weights, uniform in +-1/sqrt(inputs) as torch initialises a Linear.

    Source: arXiv 2407.05441 section 4; one tower for users and items, no user or item IDs. The other order: TextGCN-MLP
    (arXiv 2510.12461), here with the one tower.
    """

    def __init__(
        self,
        text_width: int,
        *,
        hidden_width: int = 1536,
        width: int = 64,
        projector: str = "mlp",
        num_layers: int = 2,
        layer_0_weight: float | None = None,
        propagate_first: bool = False,
        centred: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        width = text_width if projector in ("identity", "residual") else width
        self.residual, mlp = projector == "residual", projector in ("mlp", "residual")
        self.num_layers, self.propagate_first, self.centred = num_layers, propagate_first, centred
        self.layer_weights = layer_weights(num_layers, layer_0_weight)
        # Made on "meta", so that torch's own initialisation does not advance the global generator.
        first_width = hidden_width if mlp else width
        self.first = nn.Linear(text_width, first_width, bias=mlp, device="meta").to_empty(device="cpu")
        self.last = nn.Linear(hidden_width, width, device="meta").to_empty(device="cpu") if mlp else None
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in filter(None, (self.first, self.last)):
                bound = 1 / math.sqrt(layer.in_features)
                for weight in layer.parameters():
                    weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))
            if self.residual and self.last is not None:
                nn.init.zeros_(self.last.weight)
                nn.init.zeros_(self.last.bias)
        if projector == "identity":
            nn.init.eye_(self.first.weight)
            self.first.requires_grad_(False)

    def read(self, text_XT: Tensor, mean_T: Tensor) -> Tensor:
        """Return texts' vectors as ``project`` takes them; ``mean_T`` of the catalog's titles."""
        return centre(text_XT, mean_T) if self.centred else text_XT

    @torch.no_grad()
    def project(self, text_XT: Tensor) -> Tensor:
        """Return representations before propagation, without gradient, of what ``read`` gives. [X, T] -> [X, D]."""
        blocks = []
        for text_BT in text_XT.split(ROWS_AT_ONCE):
            first_BH = F.linear(text_BT, self.first.weight, self.first.bias)
            out_BD = first_BH if self.last is None else self.last(F.leaky_relu_(first_BH, SLOPE))
            blocks.append(out_BD.add_(text_BT) if self.residual else out_BD)
        return torch.cat(blocks)

    def _weights(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        last = self.last
        rest = (None, None, None) if last is None else (self.first.bias, last.weight, last.bias)
        return self.first.weight, *rest

    @property
    def step_weights(self) -> tuple[float, ...]:
        """Layer weights of the propagation after the projector."""
        return (1.0,) if self.propagate_first else self.layer_weights

    def features(
        self, item_ST: Tensor, graph: InteractionGraph, *, precision: torch.dtype | None = None
    ) -> TextFeatures:
        """Return the features that this model reads, from title vectors; see ``TextFeatures.build``."""
        weights = self.layer_weights if self.propagate_first else (1.0,)
        commute = False if self.residual else None  # it adds the means themselves
        chosen: dict[str, Any] = {"commute": commute, "precision": precision, "centred": self.centred}
        return TextFeatures.build(item_ST, graph, weights=weights, **chosen)

    def layer_0(self, graph: InteractionGraph, features: TextFeatures) -> tuple[Tensor, Tensor]:
        """Return representations before propagation. Shapes: -> user_UD [U, D], item_SD [S, D]."""
        return cast(
            tuple[Tensor, Tensor],
            _Project.apply(*self._weights(), graph, features, self.residual, torch.is_grad_enabled()),  # type: ignore[no-untyped-call]
        )

    def forward(self, graph: InteractionGraph, features: TextFeatures) -> tuple[Tensor, Tensor]:
        """Return final representations, not normalised. Shapes: -> user_UD [U, D], item_ID [I, D]."""
        user_UD, item_SD = self.layer_0(graph, features)
        return (user_UD, item_SD) if features.whole else graph.propagate(user_UD, item_SD, self.step_weights)


class _Project(torch.autograd.Function):
    """The projector on all users and items, some hidden units at a time.

    Hidden units do not know each other before the last layer. Never are all of them needed unless gradients are; then
    they are kept once, and their own gradients overwrite them.

    Shapes: G hidden units of a matrix product, H those of a sum over interactions.
    """

    @staticmethod
    def forward(
        ctx: Any,
        first_HT: Tensor,
        bias_H: Tensor | None,
        last_DH: Tensor | None,
        bias_D: Tensor | None,
        graph: InteractionGraph,
        features: TextFeatures,
        residual: bool,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        item_ST, user_UT = features.item_ST, features.user_UT
        width = len(first_HT if last_DH is None else last_DH)
        rows = (graph.num_local_users if user_UT is None else len(user_UT), len(item_ST))
        user_UD, item_SD = (first_HT.new_zeros(count, width) for count in rows)
        if bias_D is not None:
            user_UD += bias_D
            item_SD += bias_D
        if residual:  # no gradient reaches the text: the backward pass is the same
            assert user_UT is not None, "a residual projector needs the users' means: AlphaRec.features keeps them"
            user_UD += user_UT
            item_SD += item_ST

        def finish(hidden_XH: Tensor, units: slice, out_XD: Tensor) -> None:
            if bias_H is None or last_DH is None:
                out_XD[:, units] = hidden_XH
            else:
                F.leaky_relu_(hidden_XH.add_(bias_H[units]), SLOPE)
                _add_product(out_XD, hidden_XH, last_DH[:, units].T)

        kept = []
        for group in _groups(first_HT, graph, features):
            layer_TG = first_HT[group].to(item_ST.dtype).T
            item_SG = item_ST @ layer_TG
            item_IG = graph.gather_items(item_SG) if user_UT is None else None
            users = []
            for units in _of_users(group, features):
                columns = slice(units.start - group.start, units.stop - group.start)
                if item_IG is not None:
                    user_UH = graph.mean_of_items(item_IG[:, columns].contiguous())
                elif user_UT is not None:
                    user_UH = user_UT @ layer_TG[:, columns]
                finish(user_UH, units, user_UD)
                users.append(user_UH)
            finish(item_SG, group, item_SD)
            if keep:
                kept.append((users, item_SG))
        ctx.graph, ctx.features, ctx.kept = graph, features, kept
        ctx.save_for_backward(first_HT, last_DH)
        return user_UD, item_SD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        graph, features = ctx.graph, ctx.features
        first_HT, last_DH = ctx.saved_tensors
        kept, ctx.kept = ctx.kept, None  # what follows overwrites it: a second backward pass must fail
        first_gradient_HT = torch.zeros_like(first_HT)
        user_gradient_UD, item_gradient_SD = (gradient.to(features.item_ST.dtype) for gradient in gradients)
        rest: tuple[Tensor | None, ...] = (None, None, None)
        if last_DH is not None:
            bias_H, last_gradient_DH = first_HT.new_zeros(len(first_HT)), torch.zeros_like(last_DH)
            rest = (bias_H, last_gradient_DH, gradients[0].sum(0) + gradients[1].sum(0))

        def go_back(hidden_XH: Tensor, units: slice, gradient_XD: Tensor) -> None:
            if last_DH is None:
                hidden_XH.copy_(gradient_XD[:, units])
                return
            _add_product(last_gradient_DH[:, units], gradient_XD.T, hidden_XH)
            gradient_XH = gradient_XD @ last_DH[:, units].to(gradient_XD.dtype)
            torch.ops.aten.leaky_relu_backward.grad_input(gradient_XH, hidden_XH, SLOPE, True, grad_input=hidden_XH)
            bias_H[units] += hidden_XH.sum(0, dtype=bias_H.dtype)

        for group, (users, item_SG) in zip(_groups(first_HT, graph, features), kept, strict=True):
            go_back(item_SG, group, item_gradient_SD)
            to_items = []
            for units, user_UH in zip(_of_users(group, features), users, strict=True):
                go_back(user_UH, units, user_gradient_UD)
                if features.user_UT is None:
                    to_items.append(graph.mean_to_items(user_UH))
                else:
                    _add_product(first_gradient_HT[units], user_UH.T, features.user_UT)
            if to_items:
                item_SG += graph.share_of_items(torch.cat(to_items, 1))
            _add_product(first_gradient_HT[group], item_SG.T, features.item_ST)
        return first_gradient_HT, *rest, None, None, None, None


def _slices(first: int, end: int, at_once: int) -> list[slice]:
    """Divide hidden units evenly into slices of at most ``at_once``."""
    count = -(-(end - first) // at_once)
    ends = [first + (end - first) * part // count for part in range(count + 1)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def units_at_once(num_items: int, cell: int) -> int:
    """Return how many hidden units a matrix product takes at a time, with numbers of ``cell`` bytes."""
    return max(UNITS_SUMMED, min(UNITS_AT_ONCE * cell // 4, GATHERED_BYTES // max(1, num_items * cell)))


def _groups(first_HT: Tensor, graph: InteractionGraph, features: TextFeatures) -> list[slice]:
    return _slices(0, len(first_HT), units_at_once(graph.num_items, features.item_ST.element_size()))


def _of_users(group: slice, features: TextFeatures) -> list[slice]:
    summed_in_cache = features.user_UT is None and features.item_ST.is_cpu
    return _slices(group.start, group.stop, UNITS_SUMMED if summed_in_cache else group.stop - group.start)


def _add_product(total_XY: Tensor, left_XB: Tensor, right_BY: Tensor) -> None:
    """Add a matrix product of whatever precision to a total of full precision."""
    if left_XB.dtype == total_XY.dtype:
        total_XY.addmm_(left_XB, right_BY)
    else:
        total_XY += left_XB @ right_BY.to(left_XB.dtype)


@dataclass(frozen=True)
class Objective:
    """The loss of a batch, and the score it trains.

    Args:
        loss: "infonce", -log softmax of cosine / temperature over the positive and the negatives; or "bpr",
            -log sigmoid of the positive's minus the negative's dot product.
        temperature: tau of infonce.

    Source: arXiv 2407.05441 eq. 4; BPR: arXiv 1205.2618.
    """

    loss: str = "infonce"
    temperature: float = 0.15

    def scale(self, x_XD: Tensor) -> Tensor:
        """Return the rows whose dot products are scores: unit length for cosines, as they are for bpr."""
        return F.normalize(x_XD, dim=1) if self.loss == "infonce" else x_XD

    def __call__(self, user_UD: Tensor, item_ID: Tensor, batch: Batch) -> Tensor:
        """Return the sum of the loss over the batch's positives."""
        return self._of_scaled((user_UD, self.scale(item_ID)), batch)

    def ends(self, model: nn.Module, sampler: Sampler, features: TextFeatures | None, step: int) -> tuple[Tensor, ...]:
        """Return what the pieces of a batch share of a pass through the model: users, and items scaled already."""
        user_UD, item_ID = model(sampler.graph, features)
        return user_UD, self.scale(item_ID)

    def of_ends(self, ends: Sequence[Tensor], batch: Batch, graph: InteractionGraph) -> Tensor:
        """Return the sum of the loss over a piece's positives."""
        return self._of_scaled(ends, batch)

    def _of_scaled(self, ends: Sequence[Tensor], batch: Batch) -> Tensor:
        user_UD, item_ID = ends
        score_BN = sampled_scores(self.scale(user_UD[batch.user_B]), item_ID, batch.item_BN)
        if self.loss == "bpr":
            return F.softplus(score_BN[:, 1] - score_BN[:, 0]).sum()
        return self.softmax_loss(score_BN)

    def softmax_loss(self, score_BN: Tensor) -> Tensor:
        """Return the sum of -log softmax(scores / temperature) of the first candidates."""
        logit_BN = score_BN / self.temperature
        return (torch.logsumexp(logit_BN, 1) - logit_BN[:, 0]).sum()


def sampled_scores(user_BD: Tensor, item_ID: Tensor, item_BN: Tensor) -> Tensor:
    """Return dot products of each user with its own candidates; no B x N x D tensor exists, forward or backward.

    With few items, I <= 4 N, all scores are computed and the candidates' picked: that is a plain matrix product.

    Shapes: user_BD [B, D], item_ID [I, D], item_BN [B, N] -> [B, N].
    """
    if len(item_ID) <= PICK_COST * item_BN.shape[1]:
        return (user_BD @ item_ID.T).gather(1, item_BN.long())
    return cast(Tensor, _SampledScores.apply(user_BD, item_ID, item_BN))  # type: ignore[no-untyped-call]


class _SampledScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, user_BD: Tensor, item_ID: Tensor, item_BN: Tensor) -> Tensor:
        ctx.save_for_backward(user_BD, item_ID, item_BN)
        batch, candidates = item_BN.shape
        rowptr = torch.arange(0, batch * candidates + 1, candidates, dtype=item_BN.dtype, device=item_BN.device)
        pattern = torch.sparse_csr_tensor(
            rowptr,
            item_BN.reshape(-1),
            user_BD.new_zeros(batch * candidates),
            (batch, len(item_ID)),
            check_invariants=False,
        )
        scores: Tensor = torch.sparse.sampled_addmm(pattern, user_BD, item_ID.T, beta=0.0).values()
        return scores.view(batch, candidates)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        user_BD, item_ID, item_BN = ctx.saved_tensors
        weight_BN = gradients[0].contiguous()
        user_gradient_BD = F.embedding_bag(item_BN, item_ID, mode="sum", per_sample_weights=weight_BN)
        # The transposed product: group the candidates by item, then sum the users that drew it. Stable, so repeatable.
        item_sorted, order = torch.sort(item_BN.reshape(-1), stable=True)
        every_item = torch.arange(len(item_ID) + 1, dtype=item_BN.dtype, device=item_BN.device)
        start_I = torch.searchsorted(item_sorted, every_item)
        item_gradient_ID = F.embedding_bag(
            torch.div(order, item_BN.shape[1], rounding_mode="floor"),
            user_BD,
            start_I,
            mode="sum",
            per_sample_weights=weight_BN.reshape(-1)[order],
            include_last_offset=True,
        )
        return user_gradient_BD, item_gradient_ID, None


class NonFiniteLossError(RuntimeError):
    """The loss is NaN or infinite; the weights were left as they were before the step."""


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    features: TextFeatures | None,
    sampler: Sampler,
    step: int,
    objective: Objective,
) -> float:
    """Take one optimiser step on the sampler's batch of ``step``; return its mean loss, over all workers.

    The batch may come in pieces: they share one pass through the model, forward and backward, and give the step of the
    whole batch.

    Raises:
        NonFiniteLossError: on every worker, before any weight changes.
    """
    graph, pieces = sampler.graph, sampler.pieces(step)
    optimizer.zero_grad(set_to_none=True)
    if features is not None and features.user_UT is not None and model.step_weights == (1.0,):
        # No other row takes part.
        features, pieces = features.of_batch(list(pieces))
    ends = objective.ends(model, sampler, features, step)
    # Cut from the model here: the scores of a piece are gone before those of the next are made.
    leaves = [end.detach().requires_grad_() for end in ends]
    loss = ends[0].new_zeros(())
    for batch in pieces:
        of_piece = objective.of_ends(leaves, batch, graph) / sampler.positives_per_step
        of_piece.backward()
        loss += of_piece.detach()
    total = float(graph.part.sum(loss))
    if not math.isfinite(total):
        raise NonFiniteLossError(
            f"loss is {total}; the weights are unchanged. Lower train.learning-rate or raise train.temperature "
            f"(got {objective.temperature}), and check the title vectors for extreme values"
        )
    torch.autograd.backward(ends, [leaf.grad for leaf in leaves])
    sum_gradients(model, graph)
    optimizer.step()
    return total


def sum_gradients(model: nn.Module, graph: InteractionGraph) -> None:
    """Add the gradients up over workers, in one message."""
    if graph.part.size == 1:
        return
    weights = list(model.parameters())
    flat = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    total = graph.part.sum(torch.cat([gradient.reshape(-1) for gradient in flat]))
    for weight, gradient in zip(weights, total.split([weight.numel() for weight in weights]), strict=True):
        weight.grad = gradient.view_as(weight)
