"""The stages in order. A job asks for one stage; what comes before it is done first, unless it is done already."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import ray

from alpharec.artifacts import Artifact, ArtifactError, Store, run_record
from alpharec.catalog import CatalogError, format_report, prepare
from alpharec.config import Settings, SettingsError, load_settings
from alpharec.embed import embed
from alpharec.encoders import EncoderError
from alpharec.recommend import RecommendError, publish, recommend
from alpharec.train import TrainingError, evaluate_model, fit

logger = logging.getLogger(__name__)

Done = dict[str, Artifact]

STAGES: dict[str, Callable[[Store, Settings, Done], Artifact]] = {
    "prepare": lambda store, settings, done: prepare(store, settings),
    "embed": lambda store, settings, done: embed(store, settings, done["prepare"]),
    "train": lambda store, settings, done: fit(store, settings, done["prepare"], done["embed"]),
    "evaluate": lambda store, settings, done: evaluate_model(
        store, settings, done["prepare"], done["embed"], done["train"]
    ),
    "publish": lambda store, settings, done: publish(
        store, settings, done["prepare"], done["embed"], done["train"], done["evaluate"]
    ),
    "recommend": lambda store, settings, done: recommend(store, settings),
}

# What a user can cause: shown as one message, without a traceback.
EXPECTED = (SettingsError, CatalogError, ArtifactError, EncoderError, TrainingError, RecommendError)


def run_stages(settings: Settings, last: str, *, job: str) -> tuple[Done, dict[str, Any]]:
    """Run all stages up to ``last`` that the store has no result of; return their artifacts and the run record."""
    store = Store(settings.storage)
    done: Done = {}
    names = list(STAGES)[: list(STAGES).index(last) + 1]
    with run_record(store, settings.name, job, settings.model_dump(mode="json")) as record:
        logger.info("run record: %s", record["uri"])
        connect(settings)
        for name in names:
            started = time.monotonic()
            done[name] = STAGES[name](store, settings, done)
            seconds = time.monotonic() - started
            record["stages"][name] = {
                "uri": done[name].uri, "seconds": round(seconds, 3), "summary": done[name].summary
            }  # fmt: skip
            logger.info("%s: %s (%.1f s)", name, done[name].uri, seconds)
    return done, record


def connect(settings: Settings) -> None:
    """Join the cluster the job was submitted to or the one the settings name; else start a local one."""
    if ray.is_initialized():
        return
    if settings.ray.address or "RAY_ADDRESS" in os.environ:
        ray.init(address=settings.ray.address or None, log_to_driver=True)
    else:
        ray.init(address="local", num_cpus=settings.ray.num_cpus, include_dashboard=False)


def main(job: str, last: str) -> Done:
    """Run a job from the command line: settings from its arguments, stages up to ``last``; exit 1 with the reason on failure."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        settings = load_settings(prog=f"jobs/{job}.py")
        done, _ = run_stages(settings, last, job=job)
    except EXPECTED as error:
        sys.exit(f"{job}: {error}")
    if job == "prepare":
        print(format_report(done["prepare"].read_json("report.json")))
    return done
