"""The estimate: its bytes are those of a real graph and model, it grows with size, it says what does not fit."""

from __future__ import annotations

import dataclasses
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alpharec.config import SHORT_OF_ESTIMATE, load_settings
from alpharec.estimate import DEVICES, EstimateError, Size, estimate, num_weights, run_problems, size_of
from alpharec.graph import MOST_INTERACTIONS, InteractionGraph, Part
from alpharec.model import AlphaRec, TextFeatures

ROOT = Path(__file__).resolve().parent.parent
USERS, ITEMS, PER_USER, TEXT = 600, 300, 20, 12
SIZE = Size(USERS, ITEMS, USERS * PER_USER, TEXT, hidden_width=32, width=8, batch_size=64, num_negatives=4)
LARGE = Size(100_000_000, 10_000_000, 1_000_000_000, 384, precision="bfloat16", batch_size=262_144, num_workers=8)


def make_graph(part: Part = Part()) -> InteractionGraph:
    users = torch.arange(USERS).repeat_interleave(PER_USER)
    items = (users * 7 + torch.arange(PER_USER).repeat(USERS) * 3) % ITEMS
    return InteractionGraph(users, items, num_users=USERS, num_items=ITEMS, part=part)


def storage_bytes(*tensors: Tensor) -> int:
    """Return the bytes of the storages, each once however many tensors look into it."""
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


def graph_bytes(graph: InteractionGraph) -> int:
    return storage_bytes(*(value for value in vars(graph).values() if isinstance(value, Tensor)))


@pytest.mark.parametrize("workers", [1, 3])
def test_graph_bytes_are_those_of_a_real_graph(workers: int) -> None:
    size = dataclasses.replace(SIZE, num_workers=workers)
    real = [graph_bytes(make_graph(Part(rank, workers))) for rank in range(workers)]
    # Users all have 20 items, so shares are even but for whole users and the ends of pointer lists.
    assert estimate(size, DEVICES["cpu"]).memory["graph"] == pytest.approx(sum(real) / workers, rel=0.01)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("workers", "text_width"), [(1, 12), (1, 200), (3, 200)])
def test_feature_bytes_are_those_of_real_features(precision: str, text_width: int, workers: int) -> None:
    size = dataclasses.replace(SIZE, text_width=text_width, precision=precision, num_workers=workers)
    graph = make_graph(Part(0, workers))
    rows = graph.part.rows(ITEMS)
    vectors = torch.ones(rows.stop - rows.start, text_width)
    features = TextFeatures.build(vectors, graph, precision=getattr(torch, precision))
    means = 0 if features.user_UT is None else features.user_UT.nbytes * USERS / graph.num_local_users / workers
    found = estimate(size, DEVICES["cpu"]).memory
    assert found["title vectors"] == storage_bytes(features.item_ST)
    assert found["user means"] == means
    assert (means == 0) == (text_width == 200), "12 columns are kept, 200 commute: 600 x 200 > 4 x 12,000"


@pytest.mark.parametrize("projector", ["mlp", "linear", "residual"])
def test_weights_are_those_of_a_real_model(projector: str) -> None:
    size = dataclasses.replace(SIZE, projector=projector, width=TEXT if projector == "residual" else 8)
    model = AlphaRec(TEXT, hidden_width=32, width=8, projector=projector)
    assert num_weights(size) == sum(weight.numel() for weight in model.parameters())


def test_hidden_units_kept_are_counted_in_the_step() -> None:
    wider = dataclasses.replace(LARGE, hidden_width=2 * LARGE.hidden_width)
    more = estimate(wider, DEVICES["h200"]).memory["step"] - estimate(LARGE, DEVICES["h200"]).memory["step"]
    assert more == (100_000_000 + 10_000_000) / 8 * 1536 * 2


@pytest.mark.parametrize("name", ["users", "items", "interactions", "text_width", "hidden_width", "batch_size"])
def test_a_larger_size_never_takes_less(name: str) -> None:
    larger = estimate(dataclasses.replace(LARGE, **{name: 2 * getattr(LARGE, name)}), DEVICES["h200"])
    base = estimate(LARGE, DEVICES["h200"])
    assert larger.peak >= base.peak
    assert larger.setup_host >= base.setup_host
    assert larger.seconds_per_step >= base.seconds_per_step


def test_more_workers_take_less_memory_each_and_send_messages() -> None:
    alone, many = (estimate(dataclasses.replace(LARGE, num_workers=count), DEVICES["h200"]) for count in (1, 8))
    assert many.peak < alone.peak
    assert alone.seconds["messages"] == 0 < many.seconds["messages"]
    assert many.seconds["sums over interactions"] == pytest.approx(alone.seconds["sums over interactions"] / 8)


def test_sums_over_interactions_by_hand() -> None:
    size = dataclasses.replace(SIZE, text_width=200)
    # 2 layers, there and back, forward and backward, rows of 8 float32; and the mean of 32 hidden units and back.
    expected = USERS * PER_USER * (8 * 8 * 4 + 2 * 32 * 4)
    assert estimate(size, DEVICES["h200"]).seconds["sums over interactions"] * DEVICES["h200"].rows == pytest.approx(
        expected
    )


@pytest.mark.parametrize("num_negatives", [4, 1_000])
def test_propagating_first_takes_a_batch_and_no_graph(num_negatives: int) -> None:
    size = dataclasses.replace(LARGE, propagate_first=True, num_negatives=num_negatives)
    found, paper = (estimate(shape, DEVICES["h200"]) for shape in (size, LARGE))
    assert found.seconds["sums over interactions"] == 0
    assert found.seconds_per_step < paper.seconds_per_step / 5
    assert size.whole == (num_negatives == 4), "262,144 x 5 candidates are fewer than 10,000,000 items"
    items = 10_000_000 if size.whole else 10_000_000 / 8
    assert found.memory["title vectors"] == items * LARGE.text_width * 2
    assert found.memory["user means"] == 100_000_000 / 8 * LARGE.text_width * 2


def test_what_does_not_fit_is_a_problem_that_names_the_numbers_and_a_setting() -> None:
    assert estimate(SIZE, DEVICES["cpu"]).problems == []
    found = estimate(SIZE, DEVICES["cpu"], memory=1e5)
    assert len(found.problems) == 1
    assert f"{found.peak / 1e9:.1f} GB" in found.problems[0]
    assert "train.num_workers" in found.problems[0]


def test_index_lists_beyond_int32_are_a_problem() -> None:
    size = Size(10**9, 10**7, MOST_INTERACTIONS + 1, 384)
    assert any("int32" in problem for problem in estimate(size, DEVICES["h200"], memory=1e18).problems)
    halved = dataclasses.replace(size, num_workers=2)
    assert estimate(halved, DEVICES["h200"], memory=1e18).problems == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": 0}, "users must be 1 or more .got 0"),
        ({"num_layers": -1}, "num_layers must be 0 or more .got -1"),
        ({"interactions": USERS * ITEMS + 1}, "at most users x items = 180000 .got 180001"),
        ({"precision": "float16"}, "float32, bfloat16 .got float16"),
    ],
)
def test_bad_sizes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(EstimateError, match=message):
        dataclasses.replace(SIZE, **change)


def test_a_run_is_warned_of_its_hosts_and_of_its_gpus_memory() -> None:
    dataset = {"users": 10**8, "items": 10**7, "train": 10**9, "valid": 10**8, "test": 10**8}
    options = ["--train.use-gpu", "--train.num-workers", "2", "--estimate.users", "5"]
    settings = load_settings(options)
    both = run_problems(settings, dataset, {"width": 384}, memory=1e9, gpu_kinds=["H100", "unknown"])
    assert ["has 80.0" in both[0], "its node's memory" in both[1]] == [True, True]
    assert len(run_problems(settings, dataset, {"width": 384}, memory=1e12, gpu_kinds=["H100"])) == 1
    assert run_problems(settings, dataset, {"width": 384}, memory=1e12) == []
    assert "has 1.0" in run_problems(load_settings([]), dataset, {"width": 384}, memory=1e9)[0]


# ---------------------------------------------------------------- settings and the command line


def test_sizes_come_from_the_manifests_unless_given() -> None:
    dataset = {"users": 50, "items": 40, "train": 300, "valid": 20, "test": 30}
    size = size_of(load_settings(["--users", "70"], short=SHORT_OF_ESTIMATE), dataset, {"width": 768})
    assert (size.users, size.items, size.interactions, size.text_width) == (70, 40, 300, 768)
    assert (size.hidden_width, size.held_out, size.valid) == (6144, 50, 20)


def test_a_size_nobody_knows_is_asked_for() -> None:
    with pytest.raises(EstimateError, match=r"--estimate\.items"):
        size_of(load_settings(["--users", "70"], short=SHORT_OF_ESTIMATE))


def run_job(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["jobs/estimate.py", *arguments])
    runpy.run_path(str(ROOT / "jobs" / "estimate.py"), run_name="__main__")


SIZES = ("--users", "100000000", "--items", "10000000", "--interactions=1000000000")


def test_the_command_line_prints_a_table_and_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_job(monkeypatch, *SIZES, "--text-width", "384", "--workers", "8", "--device", "cpu")
    shown = capsys.readouterr().out
    assert "100,000,000 users, 10,000,000 items, 1,000,000,000 train interactions" in shown
    assert "8 x cpu" in shown
    assert "warning: a worker needs about" in shown


def test_the_command_line_refuses_what_it_cannot_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="device"):
        run_job(monkeypatch, *SIZES, "--text-width", "384", "--device", "abacus")


def test_the_command_line_asks_for_the_size_it_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"items is not known.*--estimate\.items"):
        run_job(monkeypatch, "--users", "5", "--text-width", "8", "--storage", str(tmp_path))


def test_the_command_line_reads_a_prepared_dataset(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from alpharec.pipeline import run_stages

    job = ["--config", str(ROOT / "jobs/configs/sample.toml"), "--storage", str(tmp_path)]
    job += ["--data.path", str(ROOT / "jobs/sample")]
    summary = run_stages(load_settings(job), "prepare")["prepare"].summary
    run_job(monkeypatch, *job, "--text-width", "64")
    expected = f"{summary['users']:,} users, {summary['items']:,} items, {summary['train']:,} train interactions"
    assert expected in capsys.readouterr().out
