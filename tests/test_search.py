"""The search: what is tried first, data shared without copies, a stopped sweep goes on, and best.toml is the best."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from test_train import make_inputs, make_settings

from alpharec.artifacts import Artifact, Store
from alpharec.config import Settings, SettingsError, load_settings
from alpharec.data.prepare import prepare
from alpharec.evaluation import EvaluationError
from alpharec.graph import InteractionGraph
from alpharec.search import (
    SearchError,
    _Job,
    _row,
    _trial,
    check_comparable,
    first_points,
    format_search,
    search,
    share,
    to_toml,
    with_parameters,
)
from alpharec.train import Training

SPACE = {
    "train.temperature": {"low": 0.05, "high": 0.5, "log": True},
    "model.num_layers": [0, 1, 2],
    "model.centred": [False, True],
}


def make_search(storage: Path, train: dict[str, Any] | None = None, **chosen: Any) -> Settings:
    settings = make_settings(storage, **{"max_epochs": 4} | (train or {}))
    given = {"num_trials": 4, "grace_epochs": 2, "parameters": SPACE} | chosen
    return Settings.model_validate(settings.model_dump() | {"search": given})


@pytest.fixture(scope="module")
def searched(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    folder = tmp_path_factory.mktemp("searched")
    settings = make_search(folder)
    inputs = make_inputs(folder, settings)
    return settings, inputs, search(inputs[0], settings, *inputs[1:])


def rows_of(found: Artifact) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = found.read_table("trials.parquet").to_pylist()
    return rows


# ---------------------------------------------------------------- the result


def test_the_settings_themselves_and_the_papers_temperatures_are_tried_first(searched: tuple[Any, ...]) -> None:
    tried = [tuple(row[name] for name in SPACE) for row in rows_of(searched[2])]
    assert tried == [(0.15, 2, False), (0.05, 2, False), (0.1, 2, False), (0.2, 2, False)]


def test_trials_are_centred_or_not_as_they_ask_on_one_graph(searched: tuple[Any, ...], tmp_path: Path) -> None:
    parameters = {"model.centred": [False, True]}
    settings = make_search(tmp_path, {"max_epochs": 2}, num_trials=2, parameters=parameters)
    inputs = make_inputs(tmp_path, settings)
    found = search(inputs[0], settings, *inputs[1:])
    scores = {row["model.centred"]: row["score"] for row in rows_of(found)}
    for centred, score in scores.items():
        alone = Training.build(with_parameters(settings, {"model.centred": centred}), *inputs[1:])
        list(alone.run())
        assert score == alone.state.best_score
    assert scores.keys() == {False, True}
    assert scores[False] != scores[True]
    winner = load_settings(["--config", found.location("best.toml")])
    assert winner.model.centred is max(scores, key=lambda centred: scores[centred])


def test_best_toml_trains_the_best_trial_bit_for_bit(searched: tuple[Any, ...]) -> None:
    settings, (_, dataset, vectors), found = searched
    rows = rows_of(found)
    best = rows[found.summary["best"]["trial"]]
    assert best["score"] == max(row["score"] for row in rows)
    winner = load_settings(["--config", found.location("best.toml")])
    assert winner == with_parameters(settings, {name: best[name] for name in SPACE}).model_copy(
        update={"search": winner.search}
    )
    training = Training.build(winner, dataset, vectors)
    list(training.run())
    scores = {entry["epoch"]: entry["valid_recall@5"] for entry in training.state.history if entry["epoch"] % 2 == 0}
    assert scores[best["best_epoch"]] == best["score"]
    if best["state"] == "ended":
        assert (training.state.best_epoch, training.state.best_score) == (best["best_epoch"], best["score"])


def test_the_report_and_the_table_show_every_trial(searched: tuple[Any, ...]) -> None:
    found = searched[2]
    html = found.read_bytes("report.html").decode()
    assert all(f"valid_recall@5 by {name}" in html for name in SPACE)
    assert html.count("<svg") == 2 + len(SPACE)
    best = found.summary["best"]
    lines = format_search(found).splitlines()
    assert lines[1].split()[:2] == [str(best["trial"]), f"{best['score']:.4f}"]
    assert lines[-1].endswith("best.toml")
    assert {row["state"] for row in rows_of(found)} <= {"ended", "stopped"}


def test_a_finished_search_is_found_whatever_its_concurrency(searched: tuple[Any, ...]) -> None:
    settings, inputs, found = searched
    again = settings.model_copy(update={"search": settings.search.model_copy(update={"concurrency": 1})})
    assert search(inputs[0], again, *inputs[1:]).manifest == found.manifest


# ---------------------------------------------------------------- sharing


def test_shared_tensors_lie_in_one_place_and_are_what_was_shared(ray_local: None) -> None:
    users, items = torch.arange(60) % 20, torch.arange(60) % 30
    graph = InteractionGraph(users, items, num_users=20, num_items=30)
    reference = share((graph, torch.arange(64.0).bfloat16(), None))  # type: ignore[arg-type]
    one, other = ray.get(reference), ray.get(reference)
    for name, value in vars(graph).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(one[0], name))
            assert getattr(one[0], name).data_ptr() == getattr(other[0], name).data_ptr()
    assert torch.equal(one[1], torch.arange(64.0).bfloat16())
    copied = ray.get([ray.put(users), ray.put(users)])
    assert copied[0].data_ptr() != copied[1].data_ptr(), "tensors outside of a search are sent as ever"


# ---------------------------------------------------------------- going on


def test_a_killed_sweep_goes_on_and_repeats_no_finished_trial(ray_local: None, tmp_path: Path) -> None:
    settings = make_search(tmp_path, num_trials=6)
    store, dataset, vectors = make_inputs(tmp_path, settings)
    script = (
        "import sys, ray\n"
        "from alpharec.artifacts import Store\n"
        "from alpharec.config import Settings\n"
        "from alpharec.runtime import show_progress\n"
        "from alpharec.search import search\n"
        "ray.init(address=sys.argv[3], log_to_driver=False); show_progress()\n"
        "settings = Settings.model_validate_json(sys.argv[1]); store = Store(settings.storage)\n"
        "dataset, vectors = store.find('datasets', 'board', sys.argv[2]), store.find('vectors', 'board', 'by-hand')\n"
        "search(store, settings, dataset, vectors)\n"
    )
    address = ray.get_runtime_context().gcs_address
    process = subprocess.Popen(
        [sys.executable, "-c", script, settings.model_dump_json(), dataset.version, address],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    told = []
    for line in process.stderr:
        told.append(line)
        if line.startswith("search: 2 / 6"):
            break
    process.kill()
    process.stderr.close()
    process.wait()
    assert told[-1].startswith("search: 2 / 6"), "".join(told)
    (sweep,) = store.folders("sweeps")
    finished = _finished(store, sweep, tmp_path / "kept")
    for trial in store.folders("sweeps", sweep):  # Tune uploads what it logs in its own time
        store.remove("sweeps", sweep, trial, "result.json")
    states = [name for name in store.files("sweeps", sweep) if "state-" in name or name == "tuner.pkl"]
    assert len(states) >= 4
    for name in [*states, "experiment_state-2999-01-01_00-00-00.json"]:
        store.write(b"", "sweeps", sweep, name)  # as a kill in the middle of Tune's own write leaves it
    found = search(store, settings, dataset, vectors)
    rows = rows_of(found)
    assert [row["trial"] for row in rows] == list(range(6))
    temperatures = [row["train.temperature"] for row in rows]
    assert temperatures[:4] == [0.15, 0.05, 0.1, 0.2], "in the order in which they were begun"
    assert all(row["score"] is not None for row in rows)
    assert len({tuple(row[name] for name in SPACE) for row in rows}) == 6, "the sampler knows what was tried"
    assert finished
    assert {trial: (rows[trial]["epochs"], rows[trial]["seconds"]) for trial in finished} == finished, "not repeated"


def _finished(store: Store, sweep: str, folder: Path) -> dict[int, tuple[int, float]]:
    """Return the epochs and the seconds of the trials that had ended when the sweep was killed."""
    with zipfile.ZipFile(io.BytesIO(store.read("sweeps", sweep, "snapshot.zip"))) as kept:
        kept.extractall(folder)
    trials = ray.tune.ExperimentAnalysis(str(folder)).trials
    return {
        int(trial.custom_dirname.partition("-")[0]): (
            trial.last_result["epoch"],
            round(trial.last_result["time_total_s"], 2),
        )
        for trial in trials
        if trial.status == "TERMINATED"
    }


def test_a_trial_of_two_workers_scores_as_one_of_one_and_tells_it_though_it_had_ended(
    searched: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_search(tmp_path, {"num_workers": 2, "max_epochs": 2}, num_trials=1)
    inputs = make_inputs(tmp_path, settings)
    found = search(inputs[0], settings, *inputs[1:])
    (row,) = rows_of(found)
    assert (row["epochs"], row["state"]) == (2, "ended")
    alone = Training.build(make_search(tmp_path, {"max_epochs": 2}), *inputs[1:])
    list(alone.run())
    # Sums in another order may swap two items of nearly the same score: one of 5 places of one of 40 users.
    assert row["score"] == pytest.approx(alone.state.best_score, abs=0.2 / 40 * 5)

    # Its sweep killed before Tune knew of it, the trial is started again, with nothing left to train.
    (run,) = (path.name for path in (tmp_path / "training").iterdir())
    sweep, told = found.summary["sweep"], list[dict[str, Any]]()
    trial_id = run.removeprefix(f"{sweep}-")
    monkeypatch.setattr("ray.tune.get_context", lambda: SimpleNamespace(get_trial_id=lambda: trial_id))
    monkeypatch.setattr("ray.tune.report", told.append)
    monkeypatch.setattr("alpharec.search._TellTune", ray.train.UserCallback)
    _trial({name: row[name] for name in SPACE}, _Job(inputs[0], settings, sweep, *inputs[1:], threads=1))
    assert [(each["score"], each["epoch"], each["failure"]) for each in told] == [(row["score"], 2, "")]


# ---------------------------------------------------------------- what goes wrong


def test_a_search_of_failing_trials_says_why(ray_local: None, tmp_path: Path) -> None:
    settings = make_search(
        tmp_path, {"loss": "bpr", "num_negatives": 1}, num_trials=2, parameters={"train.learning_rate": [1e30, 2e30]}
    )
    inputs = make_inputs(tmp_path, settings)
    with pytest.raises(SearchError, match=r"every trial failed.*loss is (nan|inf).*search\.parameters.*delete"):
        search(inputs[0], settings, *inputs[1:])


def test_values_that_contradict_the_settings_are_refused_before_a_trial(tmp_path: Path) -> None:
    settings = make_search(tmp_path)
    contrast = settings.contrast.model_copy(update={"kind": "noise"})
    inputs = make_inputs(tmp_path, settings)
    with pytest.raises(SearchError, match=r"search\.parameters: model\.num_layers = 0: .*contrast needs propagation"):
        search(inputs[0], settings.model_copy(update={"contrast": contrast}), *inputs[1:])
    untrained = settings.train.model_copy(update={"max_epochs": 0})
    with pytest.raises(SearchError, match=r"compares trained models .got train\.max_epochs = 0"):
        search(inputs[0], settings.model_copy(update={"train": untrained}), *inputs[1:])


def test_trials_that_nothing_compares_are_refused_before_the_first(tmp_path: Path) -> None:
    settings = make_search(tmp_path)
    store, _, vectors = make_inputs(tmp_path, settings)
    shares = {"no valid": (0.6, 0.0, 0.4), "no test": (0.6, 0.4, 0.0)}
    datasets = {
        name: prepare(store, settings.model_copy(update={"data": settings.data.model_copy(update={"ratios": ratios})}))
        for name, ratios in shares.items()
    }
    with pytest.raises(EvaluationError, match=r"a search needs valid interactions .*choose a --data\.split and"):
        search(store, settings, datasets["no valid"], vectors)
    check_comparable(settings, datasets["no test"])  # which a search does not look at


def test_a_search_of_nothing_that_the_model_minds_is_refused(tmp_path: Path) -> None:
    settings = make_search(tmp_path, parameters={"model.num_layers": [1, 2]})
    first = settings.model_copy(update={"model": settings.model.model_copy(update={"order": "propagate-first"})})
    inputs = make_inputs(tmp_path, settings)
    with pytest.raises(SearchError, match=r"takes no notice of model\.num_layers.*add one of .*train\.temperature"):
        search(inputs[0], first, *inputs[1:])


def test_a_trial_that_failed_after_a_good_validation_does_not_win() -> None:
    settings = Settings.model_validate({"search": {"parameters": {"train.learning_rate": [0.1]}}})
    result = SimpleNamespace(config={"train.learning_rate": 0.1}, metrics={})
    assert _row(settings, 0, result, [2, 4], [0.5, 0.6], "")["score"] == 0.6
    failed = _row(settings, 0, result, [2, 4], [0.5, 0.6], "loss is nan")
    assert (failed["score"], failed["best_epoch"], failed["state"], failed["epochs"]) == (None, None, "failed", 4)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"train.temprature": [0.1]}, r"must be some of .*train\.temperature.* \(got train\.temprature\)"),
        ({"train.seed": [1]}, r"must be some of .* \(got train\.seed\)"),
        ({}, r"must be some of .* \(got nothing\)"),
        ({"train.temperature": []}, r"train\.temperature needs one or more different values .*search\.parameters"),
        ({"model.num_layers": [1, 1]}, r"model\.num_layers needs one or more different values"),
        ({"train.temperature": {"low": 0.2, "high": 0.1}}, r"train\.temperature needs low < high.*low = 0\.2"),
        ({"train.temperature": {"low": -0.2, "high": 0.1}}, r"train\.temperature cannot be -0\.2"),
        ({"model.num_layers": {"low": 0, "high": 2, "log": True}}, r"with log low > 0"),
        ({"model.num_layers": [1.5]}, r"model\.num_layers cannot be 1\.5"),
        ({"model.num_layers": {"low": 1}}, r"high"),
        ({"model.centred": [0.5]}, r"model\.centred cannot be 0\.5"),
        ({"model.centred": {"low": 0, "high": 1}}, r"model\.centred needs a list of values"),
    ],
)
def test_a_space_that_cannot_be_searched_is_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Settings.model_validate({"search": {"parameters": parameters}})
    assert "search.parameters" in str(caught.value)


def test_parameters_come_from_a_file_and_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        '[search.parameters]\n"train.temperature" = { low = 0.1, high = 0.3 }\n"model.num_layers" = [1, 3]\n'
    )
    found = load_settings(["--config", str(tmp_path / "a.toml")]).search.parameters
    assert found["model.num_layers"] == (1, 3)
    given = '{"train.temperature": [0.1, 0.2]}'
    assert load_settings(["--search.parameters", given]).search.parameters == {"train.temperature": (0.1, 0.2)}
    with pytest.raises(SettingsError, match=r"search\.parameters"):
        load_settings(["--search.parameters", '{"train.temprature": [0.1, 0.2]}'])


# ---------------------------------------------------------------- settings of a trial


def test_first_points_stay_inside_the_space() -> None:
    space = {"model.hidden_width": {"low": 16, "high": 1024}, "train.temperature": [0.1, 0.4], "train.batch_size": [64]}
    found = first_points(Settings.model_validate({"search": {"parameters": space}}), text_width=384)
    assert found == [
        {"model.hidden_width": 1024, "train.temperature": 0.1, "train.batch_size": 64},
    ], "1,536 and 0.15 lie outside; the paper's other temperatures are nearest to 0.1 too"


def test_settings_written_as_toml_load_as_they_were(tmp_path: Path) -> None:
    settings = Settings.model_validate(
        {
            "preset": "no-contrast",
            "name": "shop",
            "data": {
                "path": 'ü "quoted" \\ back',
                "split": "ratio-time",
                "time_column": "ts",
                "ratios": [0.8, 0.1, 0.1],
            },
            "embed": {"engine_options": {"tensor_parallel_size": 2, "compilation": {"a b": [1, 2]}}},
            "train": {"learning_rate": 1e-5, "use_gpu": True, "num_workers": [2, 8], "run": "mine"},
            "model": {"num_layers": 0},
        }
    )
    (tmp_path / "a.toml").write_text(to_toml(with_parameters(settings, {"model.num_layers": 2})))
    train = settings.train.model_copy(update={"run": ""})
    model = settings.model.model_copy(update={"num_layers": 2})
    expected = settings.model_copy(update={"preset": "paper", "train": train, "model": model})
    assert load_settings(["--config", str(tmp_path / "a.toml")]) == expected
