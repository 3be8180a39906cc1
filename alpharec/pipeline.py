"""The stages in order. A job asks for one stage; what comes before it is done first, unless it is done already."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

from alpharec.artifacts import LATEST, Artifact, ArtifactError, Store, run_record
from alpharec.config import SHORT_OF_ESTIMATE, Settings, SettingsError, load_settings
from alpharec.data.dataset import CatalogError, load_dataset
from alpharec.data.prepare import find_prepared, prepare
from alpharec.data.report import format_report
from alpharec.embed import EmbedError, dry_run, embed
from alpharec.encoders import EncoderError, fingerprint
from alpharec.estimate import DEVICES, EstimateError, estimate, format_estimate, size_of
from alpharec.evaluation import EvaluationError, evaluate_model, find_model
from alpharec.intention import IntentionError, check_measurable, format_intentions, measure_intentions
from alpharec.recommend import RecommendError, publish, recommend
from alpharec.runtime import show_progress
from alpharec.search import SearchError, check_comparable, format_search, search
from alpharec.train import TrainingError, fit, settle_epochs
from alpharec.vectors import collect_garbage, export, line_of, verify

logger = logging.getLogger(__name__)

Done = dict[str, Artifact]

STAGES: dict[str, Callable[[Store, Settings, Done], Artifact]] = {
    "prepare": lambda store, settings, done: prepare(store, settings),
    "embed": lambda store, settings, done: embed(store, settings, done["prepare"]),
    "train": lambda store, settings, done: (
        find_model(store, settings) if settings.evaluate.model else fit(store, settings, done["prepare"], done["embed"])
    ),
    "evaluate": lambda store, settings, done: evaluate_model(
        store, settings, done["prepare"], done["embed"], done["train"]
    ),
    "publish": lambda store, settings, done: publish(
        store, settings, done["prepare"], done["embed"], done["train"], done["evaluate"]
    ),
    "recommend": lambda store, settings, done: recommend(store, _with_bundle(settings, done)),
}
# Beside the flow: nothing goes on from it.
MEASURES: dict[str, Callable[[Store, Settings, Done], Artifact]] = {
    "intention": lambda store, settings, done: measure_intentions(
        store, settings, done["prepare"], done["embed"], done["train"]
    ),
    "search": lambda store, settings, done: search(store, settings, done["prepare"], done["embed"]),
}
# What a stage needs of the dataset. It is checked before the titles are embedded, which may take hours.
NEEDS: dict[str, Callable[[Store, Settings, Artifact], object]] = {
    "train": lambda store, settings, dataset: (
        find_model(store, settings) if settings.evaluate.model else settle_epochs(store, settings, dataset)
    ),
    "intention": lambda store, settings, dataset: check_measurable(dataset),
    "search": lambda store, settings, dataset: check_comparable(settings, dataset),
}


def _with_bundle(settings: Settings, done: Done) -> Settings:
    """Name the bundle that was just published: another run may move LATEST meanwhile."""
    if settings.recommend.bundle or "publish" not in done:
        return settings
    chosen = settings.recommend.model_copy(update={"bundle": done["publish"].version})
    return settings.model_copy(update={"recommend": chosen})


# What a user can cause: shown as one message, without a traceback.
EXPECTED = (
    SettingsError,
    CatalogError,
    ArtifactError,
    EncoderError,
    EmbedError,
    EstimateError,
    TrainingError,
    EvaluationError,
    SearchError,
    IntentionError,
    RecommendError,
    OSError,
)


# Which stages a job asks for. Recommending needs a published bundle, not the data it was made from.
JOBS = {name: list(STAGES)[: position + 1] for position, name in enumerate(STAGES)}
JOBS |= {"recommend": ["recommend"], "pipeline": list(STAGES)}
JOBS |= {"intention": [*JOBS["train"], "intention"], "search": [*JOBS["embed"], "search"]}


def run_stages(settings: Settings, job: str) -> Done:
    """Run a job's stages, those without a result in the store; return their artifacts and write the run record."""
    store = Store(settings.storage)
    done: Done = {}
    with run_record(store, settings.name, job, settings.model_dump(mode="json")) as record:
        for name in JOBS[job]:
            started = time.monotonic()
            if name == "embed" and settings.embed.dry_run:
                logger.info("%s", dry_run(store, settings, done["prepare"]))
                break
            done[name] = (STAGES | MEASURES)[name](store, settings, done)
            seconds = time.monotonic() - started
            record["stages"][name] = {
                "uri": done[name].uri,
                "seconds": round(seconds, 3),
                "summary": done[name].summary,
            }
            logger.info("%s: %s (%.1f s)", name, done[name].uri, seconds)
            if name == "prepare":
                for stage in NEEDS.keys() & set(JOBS[job]):
                    NEEDS[stage](store, settings, done[name])
        if "evaluate" in done:
            record["metrics"] = done["evaluate"].read_json("metrics.json")
        logger.info("run record: %s", record["uri"])
    return done


def main(job: str) -> None:
    """Run a job from the command line and print where its result is; exit 1 with the reason on failure."""
    show_progress()
    try:
        done = run_stages(load_settings(prog=f"{'tune' if job == 'search' else 'jobs'}/{job}.py"), job)
    except EXPECTED as error:
        sys.exit(f"{job}: {error}")
    if job in ("prepare", "pipeline"):
        print(format_report(done["prepare"].read_json("report.json")))
    if "evaluate" in done:
        print(format_metrics(done["evaluate"]))
    if "search" in done:
        print(format_search(done["search"]))
    if "intention" in done:
        print(format_intentions(done["intention"]))
    if "recommend" in done and "prepare" in done:
        print(format_lists(done["prepare"], done["recommend"]))
    print("\n".join(f"{stage:>10}: {artifact.uri}" for stage, artifact in done.items()))


def keep_up() -> None:
    """Run ``jobs/vectors.py verify | gc | export``: upkeep of the line of title vectors that the settings name."""
    show_progress()
    actions = {"verify": _verify, "gc": _collect_garbage, "export": _export}
    action, arguments = (sys.argv[1] if len(sys.argv) > 1 else "nothing"), sys.argv[2:]
    if action not in actions:
        sys.exit(
            f"vectors: expected {', '.join(actions)} and then settings (got {action}); e.g. vectors.py verify --help"
        )
    try:
        settings = load_settings(arguments, prog=f"jobs/vectors.py {action}")
        actions[action](Store(settings.storage), settings, line_of(settings.name, fingerprint(settings.encoder)))
    except EXPECTED as error:
        sys.exit(f"vectors: {error}")


def print_estimate() -> None:
    """Run ``jobs/estimate.py``: memory and time of training, from sizes given or from the manifests in the store."""
    show_progress()
    try:
        settings = load_settings(prog="jobs/estimate.py", short=SHORT_OF_ESTIMATE)
        size = size_of(settings, *_summaries(settings))
        device = settings.estimate.device
        print(format_estimate(size, device, estimate(size, DEVICES[device])))
    except EXPECTED as error:
        sys.exit(f"estimate: {error}")


def _summaries(settings: Settings) -> tuple[dict[str, int] | None, dict[str, int] | None]:
    """Return what the manifests of the dataset and of its vectors say, None for what is given or not there yet."""
    store, given = Store(settings.storage), settings.estimate
    dataset = vectors = None
    if None in (given.users, given.items, given.interactions) and (settings.data.path or settings.data.items):
        dataset = find_prepared(store, settings)
    if given.text_width is None:
        line = line_of(settings.name, fingerprint(settings.encoder))
        vectors = store.latest("vectors", line) if store.exists("vectors", line, LATEST) else None
    return dataset.summary if dataset else None, vectors.summary if vectors else None


def _chosen_vectors(store: Store, settings: Settings, line: str) -> Artifact:
    if not settings.vectors.version:
        return store.latest("vectors", line)
    found = store.find("vectors", line, settings.vectors.version)
    if found is None:
        raise ArtifactError(f"{store.uri('vectors', line, settings.vectors.version)}: no such version")
    return found


def _verify(store: Store, settings: Settings, line: str) -> None:
    artifact = _chosen_vectors(store, settings, line)
    problems = verify(artifact)
    if problems:
        raise ArtifactError("\n".join([f"{artifact.uri}: {len(problems)} problems", *problems]))
    print(f"{artifact.uri}: {len(artifact.files)} files as committed, {artifact.summary['items']:,} items")


def _collect_garbage(store: Store, settings: Settings, line: str) -> None:
    chosen = settings.vectors
    gone = collect_garbage(
        store, line, keep=chosen.keep, grace_s=chosen.grace_hours * 3600, dry_run=settings.embed.dry_run
    )
    print("\n".join([*gone, f"{len(gone)} files {'would go' if settings.embed.dry_run else 'removed'}"]))


def _export(store: Store, settings: Settings, line: str) -> None:
    artifact, path = _chosen_vectors(store, settings, line), Path(settings.vectors.export)
    export(artifact, path)
    print(f"{path}: {artifact.summary['items']:,} x {artifact.summary['width']} vectors of {artifact.uri}")


def format_metrics(evaluation: Artifact) -> str:
    """Return a short table: the model's test metrics beside most-popular's; a line for each split without any."""
    metrics = evaluation.read_json("metrics.json")
    missing = list(metrics.get("not_measured", {}).values())
    if "test" not in metrics:
        return "\n".join(missing)
    model, popular = metrics["test"], metrics["baselines"]["most-popular"]
    k = max(evaluation.settings["evaluate"]["ks"])
    lines = [f"test, K = {k}, all items ranked{'':>8}{'this model':>12}{'most popular':>14}"]
    for name in ("recall", "ndcg", "hr", "precision", "mrr", "map"):
        lines.append(f"  {name + '@' + str(k):<36}{model[f'{name}@{k}']:>12.4f}{popular[f'{name}@{k}']:>14.4f}")
    return "\n".join(lines + missing)


def format_lists(dataset: Artifact, recommendations: Artifact, *, users: int = 5, titles: int = 4) -> str:
    """Return a few users' histories with what is recommended to them; an item outside the dataset shows its id."""
    data = load_dataset(dataset)
    title = dict(zip(data.item_ids.to_pylist(), data.titles.to_pylist(), strict=True))
    lists = recommendations.read_table(min(recommendations.files)).slice(0, users).to_pylist()
    index = {user: row for row, user in enumerate(data.user_ids.to_pylist())}
    lines = []
    for row in lists:
        user = row["user_id"]
        had = [data.titles[int(item)].as_py() for item in data.train.items[data.train.users == index.get(user, -1)]]
        lines.append(f"{user} had: {'; '.join(had[:titles]) or '(a new user)'}")
        lines.append(f"{'':{len(user)}} gets: {'; '.join(title.get(item, item) for item in row['item_ids'][:titles])}")
    return "\n".join(lines)
