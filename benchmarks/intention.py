"""Intention: HR@5 and NDCG@5 by alpha on a frozen model; queries are the items' descriptions without their titles.

    python benchmarks/intention.py --dataset ml-1m                            # h = 1,536, 15 epochs: under 15 minutes
    python benchmarks/intention.py --dataset ml-1m --hidden 108 --epochs 40   # under 15 minutes

Each user has one test target and one valid target; valid queries choose alpha. The model is that of
``benchmarks/quality.py`` with the same options: what the storage holds is not trained again.
"""

from __future__ import annotations

from pathlib import Path

from common import print_result, run_arguments, run_parser

from alpharec.config import load_settings
from alpharec.intention import WAYS, format_intentions
from alpharec.pipeline import run_stages
from alpharec.runtime import show_progress


def main() -> None:
    """Run the stages up to the search of alpha and print its numbers."""
    arguments = run_parser("HR@5 and NDCG@5 of stated intentions by alpha.", epochs=15, datasets=("ml-1m",))
    given = arguments.parse_args()
    show_progress()
    options = run_arguments(
        given,
        evaluate__valid_mask="train+test",
        intention__texts=str(Path(given.data) / given.dataset / "descriptions.jsonl.gz"),
        intention__text_column="description",
    )
    done = run_stages(settings := load_settings(options), "intention")
    metrics, model = done["intention"].read_json("metrics.json"), done["train"].summary
    print(format_intentions(done["intention"]), done["intention"].location("report.html"), sep="\n")
    ways = {}
    for way in WAYS:
        found, best = metrics[way], f"{metrics[way]['alpha']:g}"
        rise = {name: round(value / found["test"]["0"][name], 2) for name, value in found["test"][best].items()}
        curves = {name: [round(value, 4) for value in values] for name, values in found["curves"]["test"].items()}
        ways[way] = {"alpha": found["alpha"], "test": found["test"], "rise": rise, "curves": curves}
        ways[way]["alpha_of_group"] = found["alpha_of_group"]
    print_result(
        dataset=given.dataset,
        set=given.set,
        queries=metrics["queries"],
        encoder_alone={name: round(value, 4) for name, value in metrics["encoder alone"].items()},
        alphas=metrics["together"]["alphas"],
        **ways,
        best_epoch=model["best_epoch"],
        epochs=model["epochs"],
        **{settings.selection: round(model[settings.selection], 4)},
    )


if __name__ == "__main__":
    main()
