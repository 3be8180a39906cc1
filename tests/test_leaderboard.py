"""The leaderboard on data of one's own: presets beside a configuration, a control, and what is trained is kept."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alpharec.artifacts import Store
from alpharec.config import PRESETS
from alpharec.evaluation import EvaluationError
from alpharec.vectors import load_vectors

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
name = "board"
preset = "no-mlp"
seed = 7
storage = "{storage}"
[data]
format = "table"
path = "{sample}"
items = "items.csv"
interactions = "interactions.csv"
split = "ratio-random"
ratios = [0.4, 0.3, 0.3]
[encoder]
backend = "hash"
[model]
num_layers = 3
centred = true
order = "propagate-first"
hidden_width = 8
[train]
max_epochs = 1
evaluate_every = 1
[evaluate]
ks = [5, 20]
select_k = 5
"""
MODELS = ("most-popular", "alpharec-shuffled")


@pytest.fixture
def leaderboard(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import leaderboard

    return leaderboard


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "shop.toml"
    path.write_text(CONFIG.format(storage=tmp_path / "store", sample=ROOT / "jobs/sample"))
    return str(path)


def test_a_preset_counts_for_more_than_a_file_and_set_for_more_than_both(leaderboard: Any, config: str) -> None:
    given = argparse.Namespace(config=config, storage=None, prompt=None, seed=None, epochs=None, patience=None)
    given.hidden, given.set = None, []
    board = leaderboard.Board(given)
    found = {name: board.untuned(name) for name in leaderboard.TRAINED}
    for name, sections in PRESETS.items():
        for section, values in sections.items() if name in found else ():
            own = getattr(found[name], section)
            assert {key: getattr(own, key) for key in values} == values, name
    assert {settings.seed for settings in found.values()} == {7}
    model = found["alpharec"].model
    assert (model.projector, model.num_layers, model.centred, model.hidden_width) == ("mlp", 3, True, 8)
    assert (found["lightgcn"].model.num_layers, found["lightgcn"].model.centred) == (3, False)
    assert found["multvae"].model.hidden_width == 600
    given.set = ["model.num_layers=5", "model.hidden_width=9", "seed=8"]
    assert board.untuned("lightgcn").model.num_layers == 5
    assert (board.untuned("multvae").model.hidden_width, board.untuned("multvae").seed) == (9, 8)


@pytest.mark.usefixtures("in_process")
def test_a_board_of_own_data_trains_nothing_twice(
    leaderboard: Any, config: str, ray_local: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--config", config, "--seeds", "1", "--page", str(tmp_path / "board.html")]

    def run(*models: str) -> dict[str, Any]:
        leaderboard.main([*given, "--models", ",".join(models)])
        result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return result

    first = run(*MODELS)
    models = first["models"]
    assert tuple(models) == MODELS
    trained = models["alpharec-shuffled"]
    assert (trained["setting"]["num_layers"], trained["epochs"]) == (3, [1])
    assert set(first["paired_t_test"]) == {"most-popular - alpharec-shuffled"}
    assert "<svg" in (tmp_path / "board.html").read_text()

    store = Store(str(tmp_path / "store"))
    (model,) = store.folders("models", "board")
    again = run("alpharec-shuffled", "ease")
    assert again["models"]["alpharec-shuffled"] == trained
    assert again["models"]["ease"]["recall@5"] > models["most-popular"]["recall@5"]
    assert store.folders("models", "board") == [model]

    (line,) = store.folders("vectors")
    versions = sorted({*store.folders("vectors", line)} - {"shards"}, key=len)
    found = [store.find("vectors", line, version) for version in versions]
    own_IT, control_IT = (load_vectors(made) for made in found if made)
    assert not np.array_equal(own_IT, control_IT)
    own_IT, control_IT = (found_IT[np.lexsort(found_IT.T)] for found_IT in (own_IT, control_IT))
    assert np.array_equal(own_IT, control_IT), "the same vectors, of other items"


@pytest.mark.parametrize(("ratios", "split"), [("0.6,0,0.4", "valid"), ("0.6,0.4,0", "test")])
def test_a_board_needs_a_part_to_choose_on_and_one_to_compare_on(
    leaderboard: Any, config: str, tmp_path: Path, ratios: str, split: str
) -> None:
    """Before anything is trained or embedded."""
    given = ["--config", config, "--models", "ease", "--set", f"data.ratios={ratios}"]
    with pytest.raises(EvaluationError, match=rf"the leaderboard needs {split} interactions .*leave some in {split}"):
        leaderboard.main(given)
    assert not Store(str(tmp_path / "store")).folders("vectors")
