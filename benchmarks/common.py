"""What the benchmarks share: where a dataset lies, and the machine's size."""

from __future__ import annotations

import argparse
import json
import os
import resource
from pathlib import Path
from typing import Any

from torch import Tensor

from alpharec.config import Settings
from alpharec.graph import InteractionGraph
from alpharec.networks import build_model, build_objective, score
from alpharec.ranking import Scored

ROOT = Path(__file__).resolve().parent.parent
DATA = str(ROOT / "../shared/data")
CONFIGS = {"ml-1m": "ml1m.toml", "amazon-games": "amazon-games.toml", "amazon-toys": "amazon-toys.toml"}


def parser(description: str, datasets: tuple[str, ...] = tuple(CONFIGS)) -> argparse.ArgumentParser:
    """Return a parser with the options every benchmark has."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--dataset", required=True, choices=datasets)
    arguments.add_argument("--data", default=DATA, help="folder that holds the datasets' folders")
    return arguments


def settings_arguments(dataset: str, data: str, **options: Any) -> list[str]:
    """Return the command line of a job on this dataset, with ``options_of`` the options."""
    given = ["--config", str(ROOT / "jobs/configs" / CONFIGS[dataset]), "--data.path", str(Path(data) / dataset)]
    return given + options_of(**options)


def options_of(**options: Any) -> list[str]:
    """Return options of a command line: ``train__batch_size=1`` becomes ``--train.batch-size 1``, None nothing."""
    given = []
    for option, value in options.items():
        name = option.replace("__", ".").replace("_", "-")
        if isinstance(value, bool):
            given.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            given += [f"--{name}", str(value)]
    return given


def add_set(arguments: argparse.ArgumentParser) -> None:
    """Add ``--set KEY=VALUE …``; ``set_options`` reads it."""
    arguments.add_argument("--set", nargs="+", default=[], help="settings, e.g. model.num_layers=6 model.centred=true")


def set_options(given: argparse.Namespace) -> dict[str, Any]:
    """Return what ``--set`` asks for, as options of ``settings_arguments``."""
    pairs, flags = (each.partition("=") for each in given.set), {"true": True, "false": False}
    return {key.replace(".", "__").replace("-", "_"): flags.get(value, value) for key, _, value in pairs}


def run_parser(description: str, *, epochs: int, datasets: tuple[str, ...] = tuple(CONFIGS)) -> argparse.ArgumentParser:
    """Return a parser with the options of a benchmark that trains AlphaRec once; ``run_arguments`` reads them."""
    arguments = parser(description, datasets)
    arguments.add_argument("--hidden", type=int, default=None, help="hidden width; unset: 1,536 for MiniLM's 384")
    arguments.add_argument("--epochs", type=int, default=epochs)
    arguments.add_argument("--seed", type=int, default=101)
    add_set(arguments)
    arguments.add_argument("--storage", default=str(ROOT / "store/benchmarks"))
    return arguments


def run_arguments(given: argparse.Namespace, **options: Any) -> list[str]:
    """Return the command line of the job that the options of ``run_parser`` ask for."""
    asked = {
        "storage": given.storage,
        "seed": given.seed,
        "model__hidden_width": given.hidden,
        "train__max_epochs": given.epochs,
    }
    return settings_arguments(given.dataset, given.data, **asked | options | set_options(given))


def propagated_titles(item_IT: Tensor, graph: InteractionGraph, **model: Any) -> Scored:
    """Return what the preset "text-propagation" ranks by, with other model settings. Shapes: item_IT [I, T]."""
    settings = Settings.model_validate({"preset": "text-propagation", "model": model})
    network = build_model(settings, item_IT.shape[1])
    return score(network, build_objective(settings), graph, network.features(item_IT, graph))


def peak_rss_mb() -> float:
    """Return the largest resident size this process has had, in MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def print_result(**result: Any) -> None:
    """Print the result as one JSON object, the last line of a benchmark."""
    print(json.dumps({**result, "cpus": os.cpu_count()}))
