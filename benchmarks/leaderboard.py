"""AlphaRec beside other models: one split, one evaluator, every setting and epoch chosen on the validation split.

    python benchmarks/leaderboard.py --dataset ml-1m --models closed                    # under 2 minutes
    python benchmarks/leaderboard.py --dataset amazon-games --models mf,lightgcn,alpharec --seeds 3 --hidden 108
    python benchmarks/leaderboard.py --config shop.toml --models alpharec,lightgcn,ease    # on data of your own

Closed forms walk their grid. Trained models are the presets of the settings: AlphaRec and its ablations, and models
without titles, which take AlphaRec's batches, and but for bc-loss and multvae its loss ("-bpr": BPR, one negative).
"alpharec-shuffled" is the control: titles of other items; "alpharec-centred" reads title vectors less their mean.
``--prompt`` puts noise around every title. With ``--trials``, each trained model's settings are searched first, by as
many trials in the same ranges (the control takes alpharec's); ``--set`` gives all of them other settings.

What is trained lies in the storage, as the jobs leave it, each evaluation with its page: the same command goes on where
it was stopped, and further models join what is there. Each model is compared with "alpharec", or else the first, by a
paired t-test on the users' test Recall.
"""

from __future__ import annotations

import argparse
import itertools
import re
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from common import (
    CONFIGS,
    DATA,
    ROOT,
    add_set,
    options_of,
    print_result,
    propagated_titles,
    set_options,
    settings_arguments,
)
from scipy.stats import ttest_rel
from torch import Tensor

from alpharec.artifacts import Artifact, Store
from alpharec.baselines import GraphFilter, ease, item_scores, train_lists
from alpharec.config import PRESETS, SearchSettings, Settings, load_settings
from alpharec.data.dataset import Dataset, load_dataset
from alpharec.evaluation import Selection, check_splits, evaluate_model, measure, popularity
from alpharec.graph import InteractionGraph
from alpharec.networks import build_graph, load_model
from alpharec.pipeline import EXPECTED, run_stages
from alpharec.ranking import Scored
from alpharec.report import bars, lines, page
from alpharec.runtime import show_progress
from alpharec.search import search, with_parameters
from alpharec.train import fit
from alpharec.vectors import ITEMS, KIND, load_vectors

CLOSED = ("most-popular", "text-neighbors", "text-propagation", "ease", "gf-cf")
SEARCHED = ("train.temperature", "train.learning_rate", "model.num_layers", "model.layer_0_weight")
OF_MODELS = re.compile("(model|contrast|search)__|train__(?!select_on)")  # settings that a closed form does not read
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
        """Return the settings of the data, and of a model where ``options`` name one's."""
        given = {name: value for name, value in set_options(self.given).items() if not OF_MODELS.match(name)}
        options |= {"storage": self.given.storage, "encoder__prompt": self.given.prompt} | given
        if self.given.config:
            return load_settings(["--config", self.given.config, *options_of(**options)])
        defaults = {
            "storage": str(ROOT / "store/benchmarks"),
            "evaluate__valid_mask": "train+test",
            "train__max_epochs": 75,
            "train__patience": 3,
        }
        options = defaults | {name: value for name, value in options.items() if value is not None}
        return load_settings(settings_arguments(self.given.dataset, self.given.data, **options))

    @cached_property
    def own(self) -> Settings:
        return self.settings()

    @cached_property
    def store(self) -> Store:
        return Store(self.own.storage)

    @property
    def metrics(self) -> tuple[str, str, str]:
        k = self.own.evaluate.select_k
        return f"recall@{k}", f"ndcg@{k}", f"hr@{k}"

    @cached_property
    def prepared(self) -> Artifact:
        return run_stages(self.own, "prepare")["prepare"]

    @cached_property
    def vectors(self) -> Artifact:
        return run_stages(self.own, "embed")["embed"]

    @cached_property
    def shuffled(self) -> Artifact:
        """The vectors, each of another item's title: a version whose items point to other rows of the same shards."""
        vectors, version = self.vectors, f"{self.vectors.version}-shuffled"
        found = self.store.find(KIND, vectors.name, version)
        if found is not None:
            return found
        draft = self.store.draft(KIND, vectors.name, version)
        for file, facts in vectors.files.items():
            draft.adopt(file, {"folder": vectors.version} | facts)
        places = vectors.read_table(ITEMS)
        order = np.random.default_rng(0).permutation(len(places))
        draft.write_table(ITEMS, places.take(order).set_column(0, "item_id", places["item_id"]))
        return draft.commit(settings={}, inputs={"vectors": vectors}, summary=vectors.summary | {"published": False})

    @cached_property
    def dataset(self) -> Dataset:
        return load_dataset(self.prepared)

    @cached_property
    def graph(self) -> InteractionGraph:
        return build_graph(self.dataset)

    @cached_property
    def item_IT(self) -> Tensor:
        return torch.from_numpy(load_vectors(self.vectors)).float()

    def closed(self, name: str) -> Iterator[Candidate]:
        """Yield a closed form at each setting of its grid."""
        graph = self.graph
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
            ranks = [rank for rank in (32, 64, 128, 256, 512) if rank <= graph.num_items] or [graph.num_items]
            graph_filter = GraphFilter(graph, max_rank=ranks[-1], seed=self.own.seed)
            for rank, low_pass in itertools.product(ranks, (0.25, 0.5, 1.0, 2.0)):
                setting = {"rank": rank, "low_pass": low_pass}
                yield setting, graph_filter.scores(**setting)

    def untuned(self, name: str) -> Settings:
        """Return the settings of a trained model. Its preset's count for more than those of a --config file."""
        preset = PRESETS.get(name, {"model": {"centred": True}} if name == "alpharec-centred" else {})
        options: dict[str, Any] = {
            "preset": "paper",
            "model__kind": "alpharec",
            "seed": self.given.seed,
            "train__max_epochs": self.given.epochs,
            "train__patience": self.given.patience,
            "model__hidden_width": self.given.hidden,
        }
        options |= {f"{section}__{key}": value for section, of in preset.items() for key, value in of.items()}
        return with_parameters(self.settings(**options | set_options(self.given)), {})

    def tuned(self, name: str) -> Settings:
        """Return the settings of a trained model, the best of a search where one is asked for."""
        untuned = self.untuned(name)
        if not self.given.trials:
            return untuned
        ranges = SearchSettings().parameters | untuned.search.parameters
        chosen = {
            "num_trials": self.given.trials,
            "grace_epochs": untuned.train.evaluate_every,
            "parameters": {key: ranges[key] for key in SEARCHED},
        }
        settings = untuned.model_copy(update={"search": untuned.search.model_copy(update=chosen)})
        best = search(self.store, settings, self.prepared, self.vectors).summary["best"]
        print(name, "tuned:", best, flush=True)
        return with_parameters(settings, {key: best[key] for key in SEARCHED if key in best})

    def trained(self, name: str, settings: Settings) -> tuple[Artifact, Artifact]:
        """Return a trained model and its evaluation, made unless the storage has them."""
        vectors = self.shuffled if name == "alpharec-shuffled" else self.vectors
        model = fit(self.store, settings, self.prepared, vectors)
        return model, evaluate_model(self.store, settings, self.prepared, vectors, model)


def run_closed(board: Board, name: str) -> tuple[dict[str, Any], npt.NDArray[np.floating[Any]]]:
    """Return the test metrics of the setting that is best on the validation split, and each user's Recall."""
    selection = Selection.build(board.own, board.dataset.splits, board.graph)
    best_score, best, grid = -1.0, dict[str, Any](), {}
    for setting, found in board.closed(name):
        score = selection.score(found)
        grid[" ".join(f"{key}={value}" for key, value in setting.items())] = round(score, 4)
        print(name, setting, f"{selection.name} {score:.4f}", flush=True)
        if score > best_score:
            metrics, test = measure(board.dataset, found, board.own.evaluate)
            best_score, values = score, test.values[board.metrics[0]].numpy()
            best = {"setting": setting, selection.name: round(score, 4)}
            best |= {metric: round(metrics["test"][metric], 4) for metric in board.metrics}
        del found  # an item-item matrix, whose room the next one takes
    return best | {"grid": grid}, values


def run_trained(board: Board, name: str) -> tuple[dict[str, Any], npt.NDArray[np.floating[Any]]]:
    """Return the mean test metrics over seeds, each seed at its best validation epoch, and each user's mean Recall."""
    recall, tuned, found = board.metrics[0], board.tuned(name), []
    for seed in range(tuned.seed, tuned.seed + board.given.seeds):
        found.append(board.trained(name, tuned.model_copy(update={"seed": seed})))
        print(name, seed, {metric: round(found[-1][1].summary[metric], 4) for metric in board.metrics}, flush=True)
    models = [model for model, _ in found]
    result: dict[str, Any] = {}
    for metric in board.metrics:
        values = [evaluation.summary[metric] for _, evaluation in found]
        result[metric] = round(statistics.mean(values), 4)
        result[f"{metric}_std"] = round(statistics.stdev(values), 4) if len(values) > 1 else None
    network, _ = load_model(models[0].settings, models[0].read_tensors("model.safetensors"))
    result["setting"] = {
        "loss": tuned.train.loss,
        "learning_rate": tuned.train.learning_rate,
        "num_layers": network.num_layers,
        "layer_0_weight": tuned.model.layer_0_weight,
        "width": tuned.model.resolve_width(models[0].summary["text_width"]),
        "centred": tuned.model.centred,
        "temperature": tuned.train.temperature if tuned.train.loss in ("infonce", "bc") else None,
        "weights": sum(weight.numel() for weight in network.parameters()),
    }
    result[tuned.selection] = [round(model.summary[tuned.selection], 4) for model in models]
    result |= {key: [model.summary[key] for model in models] for key in ("best_epoch", "epochs")}
    result["seconds"] = round(sum(model.summary["seconds"] for model in models), 1)
    result["curve"] = curve(models[0], tuned.selection)
    tests = [evaluation.read_table("per_user.parquet", columns=[recall])[recall] for _, evaluation in found]
    return result, np.mean([test.to_numpy() for test in tests], axis=0, dtype=np.float64)


def curve(model: Artifact, select: str) -> list[tuple[int, float, float]]:
    """Return epoch, seconds trained until then, and the validation score, at each validation."""
    seconds, points = 0.0, []
    for entry in model.read_json("history.json"):
        seconds += entry["seconds"]
        if select in entry:
            points.append((entry["epoch"], round(seconds, 1), round(entry[select], 4)))
    return points


def write_page(path: Path, board: Board, result: dict[str, Any]) -> None:
    """Write the page: the table, the metrics as bars, and how fast the trained models get there."""
    models = result["models"]
    figures = {
        f"test {metric}": bars(list(models), {"": [model[metric] for model in models.values()]}, y=metric)
        for metric in board.metrics
    }
    curves = {name: list(zip(*model["curve"], strict=True)) for name, model in models.items() if "curve" in model}
    for place, axis in enumerate(("epoch", "seconds of training steps")):
        if curves:
            series = {name: (points[place], points[2]) for name, points in curves.items()}
            figures[f"validation by {axis}, first seed"] = lines(series, x=axis, y=board.own.selection)
    columns = [column for metric in board.metrics for column in (metric, f"{metric}_std")]
    rows = [{"model": name} | {column: model.get(column) for column in columns} for name, model in models.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(f"Models on {board.own.name}", result, figures, rows))
    print(f"page: {path}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the models asked for and print their metrics."""
    arguments = argparse.ArgumentParser(
        description="Test metrics of AlphaRec and of other models, chosen on validation."
    )
    data = arguments.add_mutually_exclusive_group(required=True)
    data.add_argument("--dataset", choices=CONFIGS)
    data.add_argument("--config", help="settings of your own data, as the jobs take them: TOML file")
    arguments.add_argument("--data", default=DATA, help="folder that holds the datasets' folders")
    arguments.add_argument(
        "--models", default="closed", help=f"names, or 'closed', 'trained', 'all': {', '.join((*CLOSED, *TRAINED))}"
    )
    arguments.add_argument("--seeds", type=int, default=3, help="runs of each trained model")
    arguments.add_argument("--seed", type=int, default=None, help="the first of them; unset: 101, or the file's")
    arguments.add_argument("--epochs", type=int, default=None, help="at most; unset: 75, or as the --config file says")
    arguments.add_argument(
        "--patience", type=int, default=None, help="validations without a better one, one in 5 epochs; unset: 3, or so"
    )
    arguments.add_argument("--trials", type=int, default=0, help="of a search of each trained model's settings before")
    arguments.add_argument("--hidden", type=int, default=None, help="alpharec's hidden width; unset: 1,536 for MiniLM")
    add_set(arguments)
    arguments.add_argument(
        "--prompt", default=None, help="text around titles, e.g. '{title} xq zvw': noise; unset: none"
    )
    arguments.add_argument("--storage", default=None, help="unset: store/benchmarks, or as the --config file says")
    arguments.add_argument("--page", default="", help="HTML file; unset: store/benchmarks/leaderboard-NAME.html")
    given = arguments.parse_args(argv)
    groups = {"closed": CLOSED, "trained": TRAINED, "all": (*CLOSED, *TRAINED)}
    names = groups.get(given.models, given.models.split(","))
    unknown = set(names) - set(groups["all"])
    if unknown:
        arguments.error(f"--models: expected some of {', '.join(groups['all'])} (got {', '.join(sorted(unknown))})")
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    show_progress()
    board, models, recall = Board(given), {}, {}
    for name in names:
        if name not in CLOSED:
            board.untuned(name)  # settings that do not fit are told of before anything is trained
    check_splits(board.prepared, board.own.train.select_on, "test", what="the leaderboard")
    for name in names:
        started = time.monotonic()
        models[name], recall[name] = (run_closed if name in CLOSED else run_trained)(board, name)
        models[name].setdefault("seconds", round(time.monotonic() - started, 1))
        print(name, models[name], flush=True)
    pairs, first = {}, "alpharec" if "alpharec" in names else names[0]
    for name in recall.keys() - {first}:
        found = ttest_rel(recall[first], recall[name])
        difference = float((recall[first] - recall[name]).mean())
        pairs[f"{first} - {name}"] = {
            board.metrics[0]: round(difference, 4),
            "p": float(f"{found.pvalue:.2g}") if difference else None,
        }
    users = len(next(iter(recall.values())))
    result = {"models": models, "paired_t_test": pairs, "users": users, "seeds": given.seeds}
    name = board.own.name
    file = f"leaderboard-{name}{'-prompt' if given.prompt else ''}.html"
    write_page(Path(given.page or ROOT / "store/benchmarks" / file), board, result)
    print_result(dataset=name, prompt=given.prompt, set=given.set, **result)


if __name__ == "__main__":
    try:
        main()
    except EXPECTED as error:
        sys.exit(f"leaderboard: {error}")
