"""The leaderboard on data of one's own: presets beside a configuration, a control, and what is trained is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alpharec.artifacts import Store

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
name = "board"
preset = "no-mlp"
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
hidden_width = 8
[train]
max_epochs = 2
evaluate_every = 1
[evaluate]
ks = [5, 20]
select_k = 5
"""
MODELS = "most-popular,alpharec,alpharec-shuffled,no-mlp,mf"


def test_a_board_of_own_data_takes_its_settings_and_trains_nothing_twice(
    ray_local: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import leaderboard

    config = tmp_path / "shop.toml"
    config.write_text(CONFIG.format(storage=tmp_path / "store", sample=ROOT / "jobs/sample"))
    given = ["--config", str(config), "--seeds", "1", "--page", str(tmp_path / "board.html")]

    def run(models: str) -> dict[str, Any]:
        leaderboard.main([*given, "--models", models])
        result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return result

    first = run(MODELS)
    models = first["models"]
    assert list(models) == MODELS.split(",")
    layers = {name: models[name]["setting"]["num_layers"] for name in ("alpharec", "no-mlp", "mf")}
    assert layers == {"alpharec": 3, "no-mlp": 3, "mf": 0}
    assert (models["alpharec"]["setting"]["centred"], models["mf"]["setting"]["centred"]) == (True, False)
    assert models["alpharec"]["epochs"] == [2]
    assert models["alpharec"]["setting"]["weights"] != models["no-mlp"]["setting"]["weights"], "the file's preset"
    assert models["alpharec"]["recall@5"] != models["alpharec-shuffled"]["recall@5"]
    assert set(first["paired_t_test"]) == {f"alpharec - {name}" for name in models if name != "alpharec"}
    assert "<svg" in (tmp_path / "board.html").read_text()

    trained = Store(str(tmp_path / "store")).folders("models", "board")
    assert len(trained) == 4
    again = run("alpharec,ease")
    assert again["models"]["alpharec"] == models["alpharec"]
    assert again["models"]["ease"]["recall@5"] > models["most-popular"]["recall@5"]
    assert Store(str(tmp_path / "store")).folders("models", "board") == trained
