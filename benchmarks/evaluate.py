"""Time the full ranking of all users: encode once, then score blockwise, K = 20; and the memory it takes.

    python benchmarks/evaluate.py --dataset amazon-games

The model is untrained and its title vectors are random: neither changes the time.
"""

from __future__ import annotations

import tempfile
import time
import warnings

import torch
from common import parser, peak_rss_mb, print_result, settings_arguments

from alpharec.artifacts import Store
from alpharec.config import load_settings
from alpharec.data.dataset import load_dataset
from alpharec.data.prepare import prepare
from alpharec.evaluation import truth_and_seen
from alpharec.model import Objective, TextFeatures
from alpharec.networks import build_graph, build_model
from alpharec.ranking import evaluate, rank


def main() -> None:
    """Encode, evaluate the test split, and print seconds and memory."""
    arguments = parser("Seconds and memory of evaluating all users.")
    arguments.add_argument("--hidden", type=int, default=1536)
    given = arguments.parse_args()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(settings_arguments(given.dataset, given.data, model__hidden_width=given.hidden))
        dataset = load_dataset(prepare(Store(folder), settings))
    vectors = torch.nn.functional.normalize(
        torch.randn(dataset.num_items, 384, generator=torch.Generator().manual_seed(0))
    )
    graph = build_graph(dataset)
    features, model = TextFeatures.build(vectors, graph), build_model(settings, vectors.shape[1])
    loaded = peak_rss_mb()
    started = time.perf_counter()
    with torch.no_grad():
        user_UD, item_ID = map(Objective().scale, model(graph, features))
    encoded = time.perf_counter()
    truth, seen = truth_and_seen(dataset.splits, "test", settings.evaluate, count=dataset.num_users)
    found = evaluate((user_UD, item_ID), truth=truth, seen=seen, ks=(20,), block_size=settings.evaluate.block_size)
    ended = time.perf_counter()
    # All users, those without a test item too: what publishing a list for everybody costs.
    everyone = torch.arange(dataset.num_users)
    lists = sum(len(users_B) for users_B, _, _ in rank((user_UD, item_ID), 20, users=everyone, seen=seen))
    ranked = time.perf_counter()
    print_result(
        dataset=given.dataset,
        hidden=given.hidden,
        users=lists,
        users_with_truth=len(found.users),
        items=dataset.num_items,
        seconds=round(ranked - started, 3),
        seconds_encode=round(encoded - started, 3),
        seconds_evaluate=round(ended - encoded, 3),
        seconds_rank_everyone=round(ranked - ended, 3),
        peak_rss_mb=peak_rss_mb(),
        peak_rss_mb_before=loaded,
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    main()
