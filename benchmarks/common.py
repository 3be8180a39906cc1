"""What the benchmarks share: where a dataset lies, and the machine's size."""

from __future__ import annotations

import argparse
import json
import os
import resource
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = {"ml-1m": "ml1m.toml", "amazon-games": "amazon-games.toml", "amazon-toys": "amazon-toys.toml"}


def parser(description: str, datasets: tuple[str, ...] = tuple(CONFIGS)) -> argparse.ArgumentParser:
    """Return a parser with the options every benchmark has."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--dataset", required=True, choices=datasets)
    arguments.add_argument(
        "--data", default=str(ROOT / "../shared/data"), help="folder that holds the datasets' folders"
    )
    return arguments


def settings_arguments(dataset: str, data: str, **options: Any) -> list[str]:
    """Return the command line of a job on this dataset, with ``options_of`` the options."""
    given = ["--config", str(ROOT / "jobs/configs" / CONFIGS[dataset]), "--data.path", str(Path(data) / dataset)]
    return given + options_of(**options)


def options_of(**options: Any) -> list[str]:
    """Return options of a command line: ``train__seed=1`` becomes ``--train.seed 1``, True a flag, None nothing."""
    given = []
    for option, value in options.items():
        if value is not None and value is not False:
            given.append(f"--{option.replace('__', '.').replace('_', '-')}")
            given += [] if value is True else [str(value)]
    return given


def add_set(arguments: argparse.ArgumentParser) -> None:
    """Add ``--set KEY=VALUE …``, and KEY alone for a flag; ``set_options`` reads it."""
    arguments.add_argument("--set", nargs="+", default=[], help="more settings, e.g. model.num_layers=6 model.centred")


def set_options(given: argparse.Namespace) -> dict[str, Any]:
    """Return what ``--set`` asks for, as options of ``settings_arguments``."""
    pairs = (each.partition("=") for each in given.set)
    return {key.replace(".", "__"): value or True for key, _, value in pairs}


def run_parser(description: str, *, epochs: int, datasets: tuple[str, ...] = tuple(CONFIGS)) -> argparse.ArgumentParser:
    """Return a parser with the options of a benchmark that trains AlphaRec once; ``run_arguments`` reads them."""
    arguments = parser(description, datasets)
    arguments.add_argument("--hidden", type=int, default=None, help="hidden width; unset: 1,536 for MiniLM's 384")
    arguments.add_argument("--epochs", type=int, default=epochs)
    arguments.add_argument("--seed", type=int, default=101)
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
    return settings_arguments(given.dataset, given.data, **asked, **options)


def peak_rss_mb() -> float:
    """Return the largest resident size this process has had, in MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def print_result(**result: Any) -> None:
    """Print the result as one JSON object, the last line of a benchmark."""
    print(json.dumps({**result, "cpus": os.cpu_count()}))
