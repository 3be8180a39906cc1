"""A search against as many train jobs one after another: the same settings, wall-clock, in one run.

    python benchmarks/search.py --dataset amazon-toys --trials 30 --epochs 20
    python benchmarks/search.py --dataset ml-1m --trials 4 --epochs 4 --hidden 108     # a small one

First ``tune/search.py`` runs, then ``jobs/train.py`` once for each trial, with that trial's settings, in a store of its
own that holds nothing but the dataset and the title vectors. ``ratio`` is the jobs' time over the search's. A search
stops poor trials early, which the jobs cannot: ``seconds_an_epoch`` compares the two without that. ``overhead_s`` is
what a trial costs beside its own time, its share of starting Ray and Tune, reading the data, and scheduling.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, options_of, parser, print_result, settings_arguments

from alpharec.artifacts import Store
from alpharec.config import Settings, load_settings
from alpharec.pipeline import run_stages
from alpharec.runtime import show_progress


def copy_inputs(settings: Settings, storage: Path) -> None:
    """Prepare and embed where that is not done yet, and copy both to a store of the benchmark's own."""
    done = run_stages(settings, "embed")
    for artifact in (done["prepare"], done["embed"]):
        place = Path(artifact.kind) / artifact.name
        shutil.copytree(Path(artifact.store.at(artifact.kind, artifact.name)), storage / place)


def timed(*command: str) -> float:
    """Run a script of this project to its end; return the seconds that took."""
    started = time.monotonic()
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def main() -> None:
    """Search, train as many jobs, and print both times."""
    arguments = parser("Wall-clock of a search against separate train jobs.")
    arguments.add_argument("--trials", type=int, default=30)
    arguments.add_argument("--epochs", type=int, default=20, help="of a trial and of a job, at most")
    arguments.add_argument("--every", type=int, default=2, help="epochs between two validations")
    arguments.add_argument("--grace", type=int, default=4, help="epochs before a trial may be stopped")
    arguments.add_argument("--hidden", type=int, default=None, help="hidden width; unset: it is searched")
    arguments.add_argument("--concurrency", type=int, default=None, help="trials at a time; unset: one a CPU")
    arguments.add_argument("--storage", default=str(ROOT / "store/benchmarks"), help="a folder")
    given = arguments.parse_args()
    show_progress()
    source = load_settings(settings_arguments(given.dataset, given.data, storage=given.storage))
    space = {
        name: value if isinstance(value, tuple) else value.model_dump()
        for name, value in source.search.parameters.items()
        if given.hidden is None or name != "model.hidden_width"
    }
    with tempfile.TemporaryDirectory() as folder:
        copy_inputs(source, Path(folder))
        options = settings_arguments(
            given.dataset,
            given.data,
            storage=folder,
            train__max_epochs=given.epochs,
            train__evaluate_every=given.every,
            model__hidden_width=given.hidden,
        )
        chosen = ["--search.num-trials", str(given.trials), "--search.grace-epochs", str(given.grace)]
        chosen += ["--search.parameters", json.dumps(space)]
        chosen += ["--search.concurrency", str(given.concurrency)] if given.concurrency else []
        search_s = timed("tune/search.py", *options, *chosen)
        store = Store(folder)
        (version,) = store.folders("searches", source.name)
        found = store.find("searches", source.name, version)
        assert found is not None
        rows, jobs = found.read_table("trials.parquet").to_pylist(), []
        for row in rows:
            values = options_of(**{name.replace(".", "__"): row[name] for name in space})
            jobs.append(timed("jobs/train.py", *options, *values))
            print(f"job {row['trial']}: {jobs[-1]:.1f} s", flush=True)
        models = [store.find("models", source.name, made) for made in store.folders("models", source.name)]
    job_epochs = sum(model.summary["epochs"] for model in models if model is not None)
    facts, concurrency = found.summary, found.summary["concurrency"]
    print_result(
        dataset=given.dataset,
        trials=len(rows),
        epochs=given.epochs,
        search_s=round(search_s, 1),
        jobs_s=round(sum(jobs), 1),
        ratio=round(sum(jobs) / search_s, 2),
        seconds_an_epoch={
            "search": round(search_s / facts["epochs"], 3),
            "jobs": round(sum(jobs) / job_epochs, 3),
        },
        overhead_s=round((search_s * concurrency - facts["trial_seconds"]) / len(rows) / concurrency, 2),
        concurrency=concurrency,
        epochs_run={"search": facts["epochs"], "jobs": job_epochs},
        stopped=facts["stopped"],
        failed=facts["failed"],
        best={name: facts["best"][name] for name in ("trial", "score", *space)},
        first=facts["first"],
    )


if __name__ == "__main__":
    main()
