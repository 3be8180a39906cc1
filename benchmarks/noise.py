"""The quality of every epoch, with this project's draws or with independent ones: how far one figure can be trusted.

    python benchmarks/noise.py --dataset ml-1m --hidden 108 --epochs 45 --draws independent    # about 10 minutes
    python benchmarks/noise.py --dataset amazon-games --hidden 108 --epochs 10 --draws own     # about 4 minutes

``independent`` replaces what a faithful re-implementation could do otherwise: batches come from NumPy's generator, with
a listed permutation and negatives drawn until they fit, and the weights from torch's own initialisation.
"""

from __future__ import annotations

import itertools
import statistics
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from common import print_result, run_arguments, run_parser
from torch import nn

from alpharec.config import load_settings
from alpharec.data.dataset import load_dataset
from alpharec.evaluation import truth_and_seen
from alpharec.graph import Batch, Sampler
from alpharec.pipeline import run_stages
from alpharec.ranking import evaluate
from alpharec.runtime import show_progress
from alpharec.train import Training

TEST = ("recall@20", "ndcg@20", "hr@20")


class IndependentSampler:
    """The same distribution of batches by other means: stateful, rejecting, with every user's items in a bit table."""

    def __init__(self, sampler: Sampler, seed: int) -> None:
        self.graph = graph = sampler.graph
        self.steps_per_epoch, self.positives_per_step = sampler.steps_per_epoch, sampler.positives_per_step
        self.num_negatives, self.num_items = sampler.num_negatives, graph.num_items
        self.rowptr, self.items, self.users = (x.numpy() for x in (graph.rowptr, graph.items, graph.train_users))
        self.random = np.random.default_rng(seed)
        self.seen_UI = np.zeros((graph.num_users, graph.num_items), bool)
        self.seen_UI[np.arange(graph.num_users).repeat(np.diff(self.rowptr)), self.items] = True

    def pieces(self, step: int) -> Iterator[Batch]:
        yield self.draw(step)

    def draw(self, step: int) -> Batch:
        position, size = step % self.steps_per_epoch, self.positives_per_step
        if position == 0:
            self.order = self.random.permutation(len(self.items))
        user_B = self.users[self.order[position * size : (position + 1) * size] % len(self.users)]
        degree_B = self.rowptr[user_B + 1] - self.rowptr[user_B]
        positive_B = self.items[self.rowptr[user_B] + self.random.integers(degree_B)]
        negative_BN = self.random.integers(self.num_items, size=(size, self.num_negatives))
        while (seen_BN := self.seen_UI[user_B[:, None], negative_BN]).any():
            negative_BN[seen_BN] = self.random.integers(self.num_items, size=seen_BN.sum())
        item_BN = np.column_stack([positive_B, negative_BN])
        return Batch(torch.from_numpy(user_B), torch.from_numpy(item_BN), len(user_B))


def make_independent(training: Training, seed: int) -> None:
    """Give a run torch's own first weights and independent batches."""
    torch.manual_seed(seed)
    for layer in filter(None, (training.model.first, training.model.last)):
        fresh = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        layer.load_state_dict(fresh.state_dict())
    training.sampler = IndependentSampler(training.sampler, seed)  # type: ignore[assignment]


def main() -> None:
    """Train and evaluate every few epochs; print the curve and how far neighbours lie apart."""
    arguments = run_parser("Validation and test metrics, epoch by epoch.", epochs=20)
    arguments.add_argument("--every", type=int, default=1, help="epochs between two evaluations")
    arguments.add_argument("--draws", choices=["own", "independent"], default="own")
    given = arguments.parse_args()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    show_progress()
    settings = load_settings(run_arguments(given, evaluate__valid_mask="train+test"))
    done = run_stages(settings, "embed")
    dataset = load_dataset(done["prepare"])
    training = Training.build(settings, done["prepare"], done["embed"])
    if given.draws == "independent":
        make_independent(training, given.seed)
    truth, seen = truth_and_seen(dataset.splits, "test", settings.evaluate, count=dataset.num_users)
    curve = []
    for epoch in range(1, given.epochs + 1):
        for _ in range(training.sampler.steps_per_epoch):
            training.step()
        if epoch % given.every == 0:
            scored = training.scored()
            found = evaluate(scored, truth=truth, seen=seen, ks=(20,), block_size=1024).means()
            valid = training.selection.score(scored)
            curve.append({"epoch": epoch, "valid_recall@20": round(valid, 4)})
            curve[-1] |= {name: round(found[name], 4) for name in TEST}
            print(curve[-1], flush=True)
    late = [entry["recall@20"] for entry in curve[len(curve) // 2 :]]
    steps = [abs(after - before) for before, after in itertools.pairwise(late)]
    print_result(
        dataset=given.dataset,
        set=given.set,
        hidden=settings.model.resolve_hidden_width(done["embed"].summary["width"]),
        draws=given.draws,
        seed=given.seed,
        curve=curve,
        late_recall_mean=round(statistics.mean(late), 4),
        late_recall_min=min(late),
        late_recall_max=max(late),
        mean_change_between_neighbours=round(statistics.mean(steps), 4) if steps else None,
    )


if __name__ == "__main__":
    main()
