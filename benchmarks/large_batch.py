"""How quality holds with larger batches: learning rate and temperature searched anew for each, by validation.

    python benchmarks/large_batch.py --dataset ml-1m --hidden 108 --epochs 20    # about half an hour on 2 cores

Every batch size sees the same number of positives. The learning rate is tried at the paper's times 1, sqrt(k) and k,
where the batch is k times the paper's 4,096. ``best`` is, for each batch size, what was best on the validation split.
"""

from __future__ import annotations

import time
import warnings

from common import ROOT, parser, print_result, settings_arguments

from alpharec.catalog import load_dataset
from alpharec.config import load_settings
from alpharec.pipeline import run_stages
from alpharec.ranking import evaluate
from alpharec.runtime import show_progress
from alpharec.train import Training, truth_and_seen

PAPER_BATCH, PAPER_RATE = 4096, 5e-4


def main() -> None:
    """Train at each batch size, learning rate and temperature; print what each gives."""
    arguments = parser("Quality by batch size.", ("ml-1m", "amazon-games", "amazon-toys"))
    arguments.add_argument("--hidden", type=int, default=108)
    arguments.add_argument("--epochs", type=int, default=20)
    arguments.add_argument("--every", type=int, default=5, help="epochs between two validations")
    arguments.add_argument("--batch-sizes", type=int, nargs="+", default=[4096, 16_384, 65_536])
    arguments.add_argument("--temperatures", type=float, nargs="+", default=None, help="unset: the dataset's own")
    arguments.add_argument("--storage", default=str(ROOT / "store/benchmarks"))
    given = arguments.parse_args()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    show_progress()
    options = settings_arguments(given.dataset, given.data, storage=given.storage, evaluate__valid_mask="train+test")
    paper = load_settings([*options, "--model.hidden-width", str(given.hidden)])
    done = run_stages(paper, "embed")
    dataset = load_dataset(done["prepare"])
    truth, seen = truth_and_seen(dataset.splits, "test", paper.evaluate, count=dataset.num_users)
    runs = []
    for batch in given.batch_sizes:
        times = batch / PAPER_BATCH
        for rate in sorted({PAPER_RATE, PAPER_RATE * times**0.5, PAPER_RATE * times}):
            for temperature in given.temperatures or [paper.train.temperature]:
                chosen = {"batch_size": batch, "learning_rate": rate, "temperature": temperature}
                chosen |= {"max_epochs": given.epochs, "evaluate_every": given.every}
                settings = paper.model_copy(update={"train": paper.train.model_copy(update=chosen)})
                started, training = time.monotonic(), Training.build(settings, done["prepare"], done["embed"])
                for _ in training.run():
                    pass
                training.model.load_state_dict(training.state.best_weights)
                test = evaluate(*training.represent(), truth=truth, seen=seen, ks=(20,), block_size=1024).means()
                runs.append(
                    {
                        "batch_size": batch,
                        "learning_rate": round(rate, 6),
                        "temperature": temperature,
                        "best_epoch": training.state.best_epoch,
                        "valid_recall@20": round(training.state.best_score, 4),
                        **{name: round(test[name], 4) for name in ("recall@20", "ndcg@20", "hr@20")},
                        "seconds": round(time.monotonic() - started, 1),
                    }
                )
                print(runs[-1], flush=True)
    best = {
        batch: max((run for run in runs if run["batch_size"] == batch), key=lambda run: run["valid_recall@20"])
        for batch in given.batch_sizes
    }
    print_result(dataset=given.dataset, hidden=given.hidden, epochs=given.epochs, best=best, runs=runs)


if __name__ == "__main__":
    main()
