"""AlphaRec beside other models: one split, one evaluator, every setting and epoch chosen on the validation split.

    python benchmarks/leaderboard.py --dataset ml-1m --models closed                    # under 8 minutes
    python benchmarks/leaderboard.py --dataset amazon-games --models mf,lightgcn,alpharec --seeds 3 --hidden 108

Closed forms walk their grid. Trained models are the presets of the settings: AlphaRec and its ablations, and models
without titles, which take AlphaRec's batches, and but for bc-loss and multvae its loss ("-bpr": BPR, one negative).
"alpharec-shuffled" is the control: titles of other items; "alpharec-centred" reads title vectors less their mean.
``--prompt`` puts noise around every title. With ``--trials``, each trained model's settings are searched first, by as
many trials in the same ranges (the control takes alpharec's); ``--set`` gives all of them other settings.
Each model is compared with "alpharec", or else the first, by a paired t-test on the users' test Recall@20.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from common import ROOT, add_set, parser, print_result, propagated_titles, set_options, settings_arguments
from scipy.stats import ttest_rel
from torch import Tensor

from alpharec.artifacts import Artifact, Store
from alpharec.baselines import GraphFilter, ease, item_scores, train_lists
from alpharec.catalog import Dataset, load_dataset
from alpharec.config import PRESETS, Settings, load_settings
from alpharec.evaluation import popularity, truth_and_seen
from alpharec.networks import build_graph
from alpharec.pipeline import run_stages
from alpharec.ranking import Evaluation, Scored, evaluate
from alpharec.report import bars, lines, page
from alpharec.runtime import show_progress
from alpharec.search import search, with_parameters
from alpharec.train import State, Training, source_vectors
from alpharec.vectors import load_vectors

METRICS = ("recall@20", "ndcg@20", "hr@20")
CLOSED = ("most-popular", "text-neighbors", "text-propagation", "ease", "gf-cf")
SEARCHED = ("train.temperature", "train.learning_rate", "model.num_layers", "model.layer_0_weight")
Candidate = tuple[dict[str, Any], Scored]
TRAINED = (
    "alpharec",
    "alpharec-centred",
    "alpharec-shuffled",
    *(name for name in PRESETS if name not in ("paper", *CLOSED)),
)


@dataclass
class Board:
    """A dataset and the options of the run."""

    given: Any

    def settings(self, **options: Any) -> Settings:
        return load_settings(
            settings_arguments(
                self.given.dataset,
                self.given.data,
                storage=self.given.storage,
                encoder__prompt=self.given.prompt,
                evaluate__valid_mask="train+test",
                **options,
            )
        )

    @cached_property
    def embedded(self) -> dict[str, Artifact]:
        return run_stages(self.settings(), "embed")

    @cached_property
    def prepared(self) -> Artifact:
        return run_stages(self.settings(), "prepare")["prepare"]

    @cached_property
    def dataset(self) -> Dataset:
        return load_dataset(self.prepared)

    @cached_property
    def item_IT(self) -> Tensor:
        return torch.from_numpy(load_vectors(self.embedded["embed"])).float()

    def measure(self, found: Scored, split: str) -> Evaluation:
        settings = self.settings().evaluate
        truth, seen = truth_and_seen(self.dataset.splits, split, settings, count=self.dataset.num_users)
        chosen: dict[str, Any] = {"truth": truth, "seen": seen, "ks": (20,), "block_size": settings.block_size}
        return evaluate(found, **chosen)

    def closed(self, name: str) -> Iterator[Candidate]:
        """Yield a closed form at each setting of its grid."""
        graph = build_graph(self.dataset)
        if name == "most-popular":
            yield {}, popularity(self.dataset)
        elif name in ("text-neighbors", "text-propagation"):
            layers = range(1, 9) if name == "text-propagation" else (0,)
            for centred, num_layers in itertools.product((False, True), layers):
                setting = {"num_layers": num_layers, "centred": centred}
                yield setting, propagated_titles(self.item_IT, graph, **setting)
        elif name == "ease":
            for regularization in (50, 100, 200, 400, 800, 1600, 3200):
                setting = {"regularization": regularization}
                yield setting, item_scores(ease(graph, **setting), train_lists(graph))  # no name keeps the matrix
        else:
            graph_filter = GraphFilter(graph, max_rank=512, seed=self.given.seed)
            for rank, low_pass in itertools.product((32, 64, 128, 256, 512), (0.25, 0.5, 1.0, 2.0)):
                setting = {"rank": rank, "low_pass": low_pass}
                yield setting, graph_filter.scores(**setting)

    def tuned(self, name: str) -> Settings:
        """Return the settings of a trained model, the best of a search where one is asked for."""
        options: dict[str, Any] = {
            "preset": name if name in PRESETS else "paper",
            "model__centred": name == "alpharec-centred",
            "seed": self.given.seed,
            "train__max_epochs": self.given.epochs,
            "train__patience": self.given.patience,
            "model__hidden_width": None if name == "multvae" else self.given.hidden,
        }
        options |= set_options(self.given)
        untuned = self.settings(**options)
        if not self.given.trials:
            return untuned
        space = untuned.search.model_dump(mode="json", include={"parameters"})["parameters"]
        options |= {
            "search__num_trials": self.given.trials,
            "search__grace_epochs": untuned.train.evaluate_every,
            "search__parameters": json.dumps({key: space[key] for key in SEARCHED}),
        }
        settings = self.settings(**options)
        best = search(Store(settings.storage), settings, self.prepared, self.embedded["embed"]).summary["best"]
        print(name, "tuned:", best, flush=True)
        return with_parameters(settings, {key: best[key] for key in SEARCHED if key in best})

    def trained(self, name: str, tuned: Settings, seed: int) -> Training:
        """Return a run of a trained model, set up."""
        settings = tuned.model_copy(update={"seed": seed})
        vectors = source_vectors(Store(settings.storage), settings, self.prepared, self.embedded["embed"])
        training = Training.build(settings, self.prepared, vectors)
        if name == "alpharec-shuffled":
            order = torch.randperm(len(self.item_IT), generator=torch.Generator().manual_seed(0))
            training.features = training.model.features(self.item_IT[order], training.graph)
        return training


def run_closed(board: Board, name: str) -> tuple[dict[str, Any], Tensor]:
    """Return the test metrics of the setting that is best on the validation split, and each user's Recall."""
    best: dict[str, Any] = {"valid_recall@20": -1.0}
    test, valid_by_setting = None, {}
    for setting, found in board.closed(name):
        valid = board.measure(found, "valid").means()["recall@20"]
        valid_by_setting[" ".join(f"{key}={value}" for key, value in setting.items())] = round(valid, 4)
        print(name, setting, f"valid_recall@20 {valid:.4f}", flush=True)
        if valid > best["valid_recall@20"]:
            test = board.measure(found, "test")
            best = {"setting": setting, "valid_recall@20": round(valid, 4)}
            best |= {metric: round(test.means()[metric], 4) for metric in METRICS}
        del found  # an item-item matrix, whose room the next one takes
    assert test is not None
    return best | {"grid": valid_by_setting}, test.values["recall@20"]


def run_trained(board: Board, name: str) -> tuple[dict[str, Any], Tensor]:
    """Return the mean test metrics over seeds, each seed at its best validation epoch, and each user's mean Recall."""
    tests, states = [], []
    tuned = board.tuned(name)
    for seed in range(board.given.seed, board.given.seed + board.given.seeds):
        training = board.trained(name, tuned, seed)
        for _ in training.run():
            entry = training.state.history[-1]
            if "valid_recall@20" in entry:
                print(name, seed, {key: round(value, 4) for key, value in entry.items()}, flush=True)
        training.model.load_state_dict(training.state.best_weights)
        tests.append(board.measure(training.scored(), "test"))
        states.append(training.state)
        print(name, seed, tests[-1].means(), flush=True)
    train = training.settings.train
    result: dict[str, Any] = {}
    for metric in METRICS:
        values = [test.means()[metric] for test in tests]
        result[metric] = round(statistics.mean(values), 4)
        result[f"{metric}_std"] = round(statistics.stdev(values), 4) if len(values) > 1 else None
    result["setting"] = {
        "loss": train.loss,
        "learning_rate": train.learning_rate,
        "num_layers": training.model.num_layers,
        "layer_0_weight": training.settings.model.layer_0_weight,
        "width": training.settings.model.width,
        "centred": training.settings.model.centred,
        "temperature": train.temperature if train.loss in ("infonce", "bc") else None,
        "weights": sum(weight.numel() for weight in training.model.parameters()),
    }
    result["valid_recall@20"] = [round(state.best_score, 4) for state in states]
    result["best_epoch"], result["epochs"] = [state.best_epoch for state in states], [state.epoch for state in states]
    result["curve"] = curve(states[0])
    return result, torch.stack([test.values["recall@20"] for test in tests]).mean(0)


def curve(state: State) -> list[tuple[int, float, float]]:
    """Return epoch, seconds trained until then, and the validation score, at each validation."""
    seconds, points = 0.0, []
    for entry in state.history:
        seconds += entry["seconds"]
        if "valid_recall@20" in entry:
            points.append((entry["epoch"], round(seconds, 1), round(entry["valid_recall@20"], 4)))
    return points


def write_page(path: Path, dataset: str, result: dict[str, Any]) -> None:
    """Write the page: the table, the metrics as bars, and how fast the trained models get there."""
    models = result["models"]
    figures = {
        f"test {metric}": bars(list(models), {"": [model[metric] for model in models.values()]}, y=metric)
        for metric in METRICS
    }
    curves = {name: list(zip(*model["curve"], strict=True)) for name, model in models.items() if "curve" in model}
    for place, axis in enumerate(("epoch", "seconds of training steps")):
        if curves:
            series = {name: (points[place], points[2]) for name, points in curves.items()}
            figures[f"validation by {axis}, first seed"] = lines(series, x=axis, y="valid recall@20")
    columns = [column for metric in METRICS for column in (metric, f"{metric}_std")]
    rows = [{"model": name} | {column: model.get(column) for column in columns} for name, model in models.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(f"Models on {dataset}", result, figures, rows))
    print(f"page: {path}")


def main() -> None:
    """Run the models asked for and print their metrics."""
    arguments = parser("Test metrics of AlphaRec and of other models, chosen on validation.")
    arguments.add_argument(
        "--models", default="closed", help=f"names, or 'closed', 'trained', 'all': {', '.join((*CLOSED, *TRAINED))}"
    )
    arguments.add_argument("--seeds", type=int, default=3, help="runs of each trained model")
    arguments.add_argument("--seed", type=int, default=101, help="the first of them")
    arguments.add_argument("--epochs", type=int, default=75, help="at most")
    arguments.add_argument("--patience", type=int, default=3, help="validations without a better one, one in 5 epochs")
    arguments.add_argument("--trials", type=int, default=0, help="of a search of each trained model's settings before")
    arguments.add_argument("--hidden", type=int, default=None, help="alpharec's hidden width; unset: 1,536 for MiniLM")
    add_set(arguments)
    arguments.add_argument(
        "--prompt", default=None, help="text around titles, e.g. '{title} xq zvw': noise; unset: none"
    )
    arguments.add_argument("--storage", default=str(ROOT / "store/benchmarks"))
    arguments.add_argument("--page", default="", help="HTML file; unset: store/benchmarks/leaderboard-DATASET.html")
    given = arguments.parse_args()
    groups = {"closed": CLOSED, "trained": TRAINED, "all": (*CLOSED, *TRAINED)}
    names = groups.get(given.models, given.models.split(","))
    unknown = set(names) - set(groups["all"])
    if unknown:
        arguments.error(f"--models: expected some of {', '.join(groups['all'])} (got {', '.join(sorted(unknown))})")
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    show_progress()
    board, models, recall = Board(given), {}, {}
    for name in names:
        started = time.monotonic()
        models[name], recall[name] = (run_closed if name in CLOSED else run_trained)(board, name)
        models[name]["seconds"] = round(time.monotonic() - started, 1)
        print(name, models[name], flush=True)
    pairs, first = {}, "alpharec" if "alpharec" in names else names[0]
    for name in recall.keys() - {first}:
        found = ttest_rel(recall[first].numpy(), recall[name].numpy())
        difference = float((recall[first] - recall[name]).mean())
        pairs[f"{first} - {name}"] = {"recall@20": round(difference, 4), "p": float(f"{found.pvalue:.2g}")}
    users = len(next(iter(recall.values())))
    result = {"models": models, "paired_t_test": pairs, "users": users, "seeds": given.seeds}
    name = f"leaderboard-{given.dataset}{'-prompt' if given.prompt else ''}.html"
    write_page(Path(given.page or ROOT / "store/benchmarks" / name), given.dataset, result)
    print_result(dataset=given.dataset, prompt=given.prompt, **result)


if __name__ == "__main__":
    main()
