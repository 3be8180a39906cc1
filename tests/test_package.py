"""The shape of the package: modules import in one direction, and only some of them know Ray or an encoder library."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = ["config", "runtime", "report", "artifacts"]
DATA = ["dataset", "files", "formats", "delimited", "json_rows", "values", "tables", "titles", "report", "read"]
DATA += ["splits", "build", "conditions", "requests", "prepare"]
ORDER += [f"data.{module}" for module in DATA]
ORDER += ["encoders", "vectors", "embed", "graph", "model"]
ORDER += ["ranking", "estimate", "baselines", "propagate", "networks", "evaluation"]
ORDER += ["train", "search", "intention", "recommend", "pipeline"]
MAY_IMPORT = {
    "ray": {"runtime", "embed", "train", "search", "intention"},
    "vllm": {"encoders"},
    "sentence_transformers": {"encoders"},
    "optuna": {"search"},
    "pydantic": {"config"},
    "torch_geometric": set(),  # an oracle of the tests: its import takes longer than all others of a worker together
    "matplotlib": {"report"},
}


def _imports(module: str) -> set[str]:
    """Return the dotted names a module imports anywhere, also inside functions."""
    tree = ast.parse((ROOT / "alpharec" / f"{module.replace('.', '/')}.py").read_text())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_every_module_has_its_place_in_the_order() -> None:
    paths = (path.relative_to(ROOT / "alpharec") for path in (ROOT / "alpharec").rglob("*.py"))
    assert {".".join(path.with_suffix("").parts) for path in paths if path.stem != "__init__"} == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_modules_import_only_what_comes_before_them(module: str) -> None:
    inside = {name.removeprefix("alpharec.") for name in _imports(module) if name.startswith("alpharec.")}
    assert inside <= set(ORDER[: ORDER.index(module)])


@pytest.mark.parametrize("library", MAY_IMPORT)
def test_only_some_modules_know_a_library(library: str) -> None:
    users = {module for module in ORDER if any(name.split(".")[0] == library for name in _imports(module))}
    assert users == MAY_IMPORT[library]


def test_the_readme_tree_names_every_module_and_job() -> None:
    readme = (ROOT / "README.md").read_text()
    for module in ORDER:
        assert f"{module.rpartition('.')[2]}.py" in readme
    for benchmark in (ROOT / "benchmarks").glob("*.py"):
        assert benchmark.stem == "common" or benchmark.name in readme
