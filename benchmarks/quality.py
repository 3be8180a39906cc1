"""Train on a real dataset with MiniLM titles and the paper's settings, and report the test metrics of the best epoch.

    python benchmarks/quality.py --dataset ml-1m                            # h = 1,536, 75 epochs: about 45 minutes
    python benchmarks/quality.py --dataset ml-1m --hidden 108 --epochs 40   # about 7 minutes
    python benchmarks/quality.py --dataset amazon-games --hidden 108        # about 20 minutes

The validation split is ranked as the reference runs did it, with train and test items masked; ``--set
evaluate.valid_mask=train`` is the strict protocol; the test metrics of an epoch are the same under both. A killed run
goes on when started again.
"""

from __future__ import annotations

from common import print_result, run_arguments, run_parser

from alpharec.config import load_settings
from alpharec.pipeline import run_stages
from alpharec.runtime import show_progress


def main() -> None:
    """Run the stages up to the evaluation and print its numbers."""
    given = run_parser("Test metrics of AlphaRec on a real dataset.", epochs=75).parse_args()
    show_progress()
    options = run_arguments(given, evaluate__valid_mask="train+test")
    done = run_stages(settings := load_settings(options), "evaluate")
    metrics, model = done["evaluate"].read_json("metrics.json"), done["train"].summary
    history, select = done["train"].read_json("history.json"), settings.selection
    print_result(
        dataset=given.dataset,
        set=given.set,
        hidden=settings.model.resolve_hidden_width(model["text_width"]),
        **{name: round(metrics["test"][name], 4) for name in ("recall@20", "ndcg@20", "hr@20")},
        **{select: round(model[select], 4)},
        best_epoch=model["best_epoch"],
        epochs=model["epochs"],
        seconds=model["seconds"],
        curve={entry["epoch"]: round(entry[select], 4) for entry in history if select in entry},
        most_popular={name: round(metrics["baselines"]["most-popular"][name], 4) for name in ("recall@20", "ndcg@20")},
    )


if __name__ == "__main__":
    main()
