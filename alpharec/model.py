"""AlphaRec: titles' vectors through a shared projector, LightGCN propagation, and a sampled softmax.

Shapes: U users of this worker, I items, S items of this worker, B batch, N candidates, T text width, H hidden width,
D representation width.

The model knows nothing of workers but the graph's own sums. Plain torch; Ray is not needed here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alpharec.graph import Batch, InteractionGraph

# Per hidden unit, a user's mean taken before the first layer costs U x T multiplications, taken after it E additions.
# Measured on 2 CPU cores: before is 3 to 17% faster a step at U T / E = 5.8 (ml-1m, H = 1,536), after is 49% faster
# at 63 (amazon-games, H = 108).
ADDITION_COST = 8
USERS_AT_ONCE = 4096  # of the hidden layer outside training: 25 MB at H = 1,536


@dataclass(frozen=True)
class TextFeatures:
    """Frozen inputs of the projector.

    Attributes:
        item_ST: title vectors of this worker's share of items.
        user_UT: mean vector of each user's train items; None where the mean is taken after the first linear layer,
            which is the same (a mean commutes with a linear map) and needs no users x T matrix.
    """

    item_ST: Tensor
    user_UT: Tensor | None

    @classmethod
    def build(cls, item_IT: Tensor, graph: InteractionGraph, *, commute: bool | None = None) -> TextFeatures:
        """Keep user means where that is cheaper: where U x T <= 8 E; ``commute`` decides by hand.

        Raises:
            ValueError: the vectors do not cover the graph's items, or are not finite.
        """
        if len(item_IT) != graph.num_items:
            raise ValueError(f"title vectors must cover {graph.num_items} items (got {len(item_IT)} rows)")
        if not torch.isfinite(item_IT).all():
            row = int((~torch.isfinite(item_IT)).any(1).nonzero()[0])
            raise ValueError(f"title vectors must be finite (got NaN or infinity for item {row}); embed again")
        if commute is None:
            commute = graph.num_users * item_IT.shape[1] > ADDITION_COST * graph.num_interactions
        item_ST = item_IT[graph.part.rows(graph.num_items)]
        return cls(item_ST, None if commute else graph.mean_of_items(item_IT))


class AlphaRec(nn.Module):
    """The projector's weights and the forward pass.

    Args:
        text_width: T.
        hidden_width: H of the MLP; unused by the linear projector.
        width: D.
        projector: "mlp", Linear(T,H) - LeakyReLU(0.01) - Linear(H,D), or "linear", Linear(T,D) without bias.
        num_layers: L of the propagation; 0 turns it off.
        seed: of the initial weights, uniform in +-1/sqrt(inputs) as torch initialises a Linear.

    Source: arXiv 2407.05441 section 4; one tower for users and items, no user or item IDs.
    """

    def __init__(
        self,
        text_width: int,
        *,
        hidden_width: int = 1536,
        width: int = 64,
        projector: str = "mlp",
        num_layers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.num_layers, self.width = num_layers, width
        # Made on "meta", so that torch's own initialisation does not advance the global generator.
        first_width = hidden_width if projector == "mlp" else width
        self.first = nn.Linear(text_width, first_width, bias=projector == "mlp", device="meta").to_empty(device="cpu")
        last = nn.Linear(hidden_width, width, device="meta").to_empty(device="cpu")
        self.last = last if projector == "mlp" else None
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in filter(None, (self.first, self.last)):
                bound = 1 / math.sqrt(layer.in_features)
                for weight in layer.parameters():
                    weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))

    def project(self, text_XT: Tensor) -> Tensor:
        """Return representations before propagation. Shapes: [X, T] -> [X, D]."""
        return self._finish(F.linear(text_XT, self.first.weight))

    def _finish(self, first_XH: Tensor) -> Tensor:
        if self.last is None:
            return first_XH
        return cast(Tensor, self.last(F.leaky_relu(first_XH + self.first.bias)))

    def forward(self, graph: InteractionGraph, features: TextFeatures) -> tuple[Tensor, Tensor]:
        """Return final representations, not normalised. Shapes: -> user_UD [U, D], item_ID [I, D]."""
        first_SH = F.linear(features.item_ST, self.first.weight)
        if features.user_UT is None:
            user_UD = self._finish(graph.mean_of_items(graph.gather_items(first_SH)))
        else:
            user_UD = self.project(features.user_UT)
        return graph.propagate(user_UD, self._finish(first_SH), self.num_layers)

    @torch.no_grad()
    def represent(self, graph: InteractionGraph, features: TextFeatures) -> tuple[Tensor, Tensor]:
        """Return what ``forward`` returns, without ever holding the users' hidden layer. Shapes: -> [U, D], [I, D]."""
        first_SH = F.linear(features.item_ST, self.first.weight)
        first_IH = graph.gather_items(first_SH) if features.user_UT is None else None
        blocks = []
        for start in range(0, graph.num_local_users, USERS_AT_ONCE):
            rows = slice(start, min(start + USERS_AT_ONCE, graph.num_local_users))
            if first_IH is not None:
                blocks.append(self._finish(graph.mean_of_items(first_IH, rows)))
            else:
                blocks.append(self.project(cast(Tensor, features.user_UT)[rows]))
        user_UD = torch.cat(blocks) if blocks else first_SH.new_zeros(0, self.width)
        return graph.propagate(user_UD, self._finish(first_SH), self.num_layers)


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
        score_BN = sampled_scores(self.scale(user_UD[batch.user_B]), self.scale(item_ID), batch.item_BN)
        if self.loss == "bpr":
            return F.softplus(score_BN[:, 1] - score_BN[:, 0]).sum()
        logit_BN = score_BN / self.temperature
        return (torch.logsumexp(logit_BN, 1) - logit_BN[:, 0]).sum()


def sampled_scores(user_BD: Tensor, item_ID: Tensor, item_BN: Tensor) -> Tensor:
    """Return dot products of each user with its own candidates; no B x N x D tensor exists, forward or backward.

    Shapes: user_BD [B, D], item_ID [I, D], item_BN [B, N] -> [B, N].
    """
    return cast(Tensor, _SampledScores.apply(user_BD, item_ID, item_BN))  # type: ignore[no-untyped-call]


class _SampledScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, user_BD: Tensor, item_ID: Tensor, item_BN: Tensor) -> Tensor:
        ctx.save_for_backward(user_BD, item_ID, item_BN)
        batch, candidates = item_BN.shape
        rowptr = torch.arange(0, batch * candidates + 1, candidates, device=item_BN.device)
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
        start_I = torch.searchsorted(item_sorted, torch.arange(len(item_ID) + 1, device=item_BN.device))
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
    model: AlphaRec,
    optimizer: torch.optim.Optimizer,
    graph: InteractionGraph,
    features: TextFeatures,
    batch: Batch,
    objective: Objective,
    *,
    positives: int,
) -> float:
    """Take one optimiser step on a batch of ``positives`` over all workers; return the mean loss.

    Raises:
        NonFiniteLossError: on every worker, before any weight changes.
    """
    optimizer.zero_grad(set_to_none=True)
    user_UD, item_ID = model(graph, features)
    loss = objective(user_UD, item_ID, batch) / positives
    total = float(graph.part.sum(loss.detach()))
    if not math.isfinite(total):
        raise NonFiniteLossError(
            f"loss is {total}; the weights are unchanged. Lower train.learning-rate or raise train.temperature "
            f"(got {objective.temperature}), and check the title vectors for extreme values"
        )
    loss.backward()
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
