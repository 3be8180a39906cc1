"""How quality holds with larger batches: learning rate and temperature searched anew for each, by validation.

    python benchmarks/large_batch.py --dataset ml-1m --hidden 108 --epochs 20    # about an hour on 1 core

Every batch size sees the same number of positives. The learning rate is tried at the paper's times 1, sqrt(k) and k,
where the batch is k times the paper's 4,096; then, at the best of these, the temperature. ``best`` is, for each batch
size, what was best on the validation split.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

from common import ROOT, parser, print_result, settings_arguments

from alpharec.config import load_settings
from alpharec.data.dataset import load_dataset
from alpharec.evaluation import truth_and_seen
from alpharec.pipeline import run_stages
from alpharec.ranking import evaluate
from alpharec.runtime import show_progress
from alpharec.train import Training

PAPER_BATCH, PAPER_RATE = 4096, 5e-4


def main() -> None:
    """Train at each batch size, learning rate and temperature; print what each gives."""
    arguments = parser("Quality by batch size.", ("ml-1m", "amazon-games", "amazon-toys"))
    arguments.add_argument("--hidden", type=int, default=108)
    arguments.add_argument("--epochs", type=int, default=20)
    arguments.add_argument("--every", type=int, default=5, help="epochs between two validations")
    arguments.add_argument("--batch-sizes", type=int, nargs="+", default=[4096, 16_384, 65_536])
    arguments.add_argument("--temperatures", type=float, nargs="*", default=[0.1, 0.2], help="beside the dataset's own")
    arguments.add_argument("--storage", default=str(ROOT / "store/benchmarks"))
    given = arguments.parse_args()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    show_progress()
    options = settings_arguments(given.dataset, given.data, storage=given.storage, evaluate__valid_mask="train+test")
    paper = load_settings([*options, "--model.hidden-width", str(given.hidden)])
    done = run_stages(paper, "embed")
    dataset = load_dataset(done["prepare"])
    truth, seen = truth_and_seen(dataset.splits, "test", paper.evaluate, count=dataset.num_users)
    runs: list[dict[str, Any]] = []

    def train(batch: int, rate: float, temperature: float) -> None:
        chosen = {"batch_size": batch, "learning_rate": rate, "temperature": temperature}
        chosen |= {"max_epochs": given.epochs, "evaluate_every": given.every}
        settings = paper.model_copy(update={"train": paper.train.model_copy(update=chosen)})
        started, training = time.monotonic(), Training.build(settings, done["prepare"], done["embed"])
        for _ in training.run():
            pass
        training.model.load_state_dict(training.state.best_weights)
        test = evaluate(training.scored(), truth=truth, seen=seen, ks=(20,), block_size=1024).means()
        runs.append(
            {
                "batch_size": batch,
                "learning_rate": rate,
                "temperature": temperature,
                "best_epoch": training.state.best_epoch,
                "valid_recall@20": round(training.state.best_score, 4),
                **{name: round(test[name], 4) for name in ("recall@20", "ndcg@20", "hr@20")},
                "seconds": round(time.monotonic() - started, 1),
            }
        )
        print(runs[-1], flush=True)

    def best_of(batch: int) -> dict[str, Any]:
        tried = [run for run in runs if run["batch_size"] == batch]
        return max(tried, key=lambda run: run["valid_recall@20"])

    own = paper.train.temperature
    for batch in given.batch_sizes:
        times = batch / PAPER_BATCH
        for rate in sorted({PAPER_RATE, PAPER_RATE * times**0.5, PAPER_RATE * times}):
            train(batch, rate, own)
        rate = best_of(batch)["learning_rate"]
        for temperature in given.temperatures:
            if temperature != own:
                train(batch, rate, temperature)
    best = {batch: best_of(batch) for batch in given.batch_sizes}
    print_result(dataset=given.dataset, hidden=given.hidden, epochs=given.epochs, best=best, runs=runs)


if __name__ == "__main__":
    main()
