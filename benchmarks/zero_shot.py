"""Train on some datasets, rank others that the model never saw: its weights stay as they are.

    python benchmarks/zero_shot.py --train amazon-games amazon-toys --test ml-1m --epochs 15
    python benchmarks/zero_shot.py --train ml-1m --test amazon-games amazon-toys --epochs 15

Beside it, on each dataset: most popular; title vectors propagated without any training, as they are and centred, rounds
of propagation chosen on the validation split; and the trained model with its rounds chosen so. Users weigh alike, as in
the paper; ``--set train.users_drawn=by-interactions`` weighs them by their interactions.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

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

from alpharec.artifacts import Artifact
from alpharec.config import Settings, load_settings
from alpharec.data.dataset import load_dataset
from alpharec.evaluation import measure
from alpharec.networks import build_graph, load_model, score
from alpharec.pipeline import run_stages
from alpharec.ranking import Scored
from alpharec.runtime import show_progress
from alpharec.vectors import load_vectors

METRICS = ("recall@20", "ndcg@20", "hr@20")
ROUNDS = range(1, 9)


def mixed(given: Any) -> Settings:
    """Return settings that train on all of the datasets; their vectors are those of a line of their own."""
    options: dict[str, Any] = {"storage": given.storage, "seed": given.seed}
    options |= {"train__max_epochs": given.epochs, "train__patience": 3, "evaluate__valid_mask": "train+test"}
    options |= {"model__hidden_width": given.hidden, "name": "-and-".join(["mix", *given.train]), "data__format": "mix"}
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
        for name in given.train:
            data = load_settings(settings_arguments(name, given.data)).data.model_dump(exclude_unset=True)
            config.write("".join([f"[data.domains.{name}]\n", *(f"{key} = {json.dumps(data[key])}\n" for key in data)]))
        config.flush()
        return load_settings(["--config", config.name, *options_of(**options | set_options(given))])


def choose_rounds(settings: Settings, model: Artifact) -> dict[str, Any]:
    """Return the trained model and title vectors with nothing trained, each at the number of rounds of propagation that
    is the validation split's best: rounds have no weights.
    """
    done = run_stages(settings, "embed")
    data, item_IT = load_dataset(done["prepare"]), torch.from_numpy(load_vectors(done["embed"])).float()
    graph, weights = build_graph(data), model.read_tensors("model.safetensors")

    def trained(**changed: Any) -> Scored:
        network, objective = load_model(model.settings | {"model": model.settings["model"] | changed}, weights)
        return score(network, objective, graph, network.features(item_IT, graph))

    models: dict[str, Callable[..., Scored]] = {
        "alpharec, rounds chosen": trained,
        "propagated titles": partial(propagated_titles, item_IT, graph),
        "propagated, centred": partial(propagated_titles, item_IT, graph, centred=True),
    }
    found = {}
    for name, scored in models.items():
        tried = {rounds: measure(data, scored(num_layers=rounds), settings.evaluate)[0] for rounds in ROUNDS}
        best = max(tried, key=lambda rounds: tried[rounds]["valid"]["recall@20"])
        found[name] = {"num_layers": best} | {metric: round(tried[best]["test"][metric], 4) for metric in METRICS}
        print(name, {rounds: round(of["valid"]["recall@20"], 4) for rounds, of in tried.items()}, flush=True)
    return found


def main() -> None:
    """Train once, evaluate everywhere."""
    arguments = argparse.ArgumentParser(description="Test metrics on datasets that were never trained on.")
    arguments.add_argument("--train", nargs="+", required=True, choices=CONFIGS)
    arguments.add_argument("--test", nargs="+", required=True, choices=CONFIGS)
    arguments.add_argument("--data", default=DATA, help="folder of the datasets' folders")
    arguments.add_argument("--hidden", type=int, default=1536)
    arguments.add_argument("--epochs", type=int, default=15)
    arguments.add_argument("--seed", type=int, default=101)
    add_set(arguments)
    arguments.add_argument("--storage", default=str(ROOT / "store/benchmarks"))
    given = arguments.parse_args()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    show_progress()
    trained = run_stages(mixed(given), "evaluate")
    model = trained["train"]
    found = {}
    for name in given.test:
        options = {"storage": given.storage, "evaluate__model": f"{model.name}/{model.version}"}
        options["evaluate__valid_mask"] = "train+test"
        settings = load_settings(settings_arguments(name, given.data, **options))
        metrics = run_stages(settings, "evaluate")["evaluate"].read_json("metrics.json")
        found[name] = {
            "alpharec": {metric: round(metrics["test"][metric], 4) for metric in METRICS},
            "most-popular": {metric: round(metrics["baselines"]["most-popular"][metric], 4) for metric in METRICS},
        } | choose_rounds(settings, model)
    own = trained["evaluate"].read_json("metrics.json")
    print_result(
        train=given.train,
        set=given.set,
        hidden=given.hidden,
        epochs=model.summary["epochs"],
        best_epoch=model.summary["best_epoch"],
        seconds=model.summary["seconds"],
        zero_shot=found,
        trained_on={
            name: {metric: round(of["test"][metric], 4) for metric in METRICS} for name, of in own["domains"].items()
        },
    )


if __name__ == "__main__":
    main()
