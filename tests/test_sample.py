"""The bundled sample: the same bytes every time, whole, and with tastes that follow the themes of the titles."""

from __future__ import annotations

import csv
import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

SAMPLE = Path(__file__).parents[1] / "jobs" / "sample"


@pytest.fixture(scope="module")
def make_sample() -> ModuleType:
    """Load the script by its path: ``jobs/`` is no package."""
    spec = importlib.util.spec_from_file_location("make_sample", SAMPLE / "make_sample.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def read_rows(name: str) -> list[dict[str, str]]:
    with (SAMPLE / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def items() -> list[dict[str, str]]:
    return read_rows("items.csv")


@pytest.fixture(scope="module")
def interactions() -> list[dict[str, str]]:
    return read_rows("interactions.csv")


def test_regenerating_gives_the_committed_bytes(make_sample: ModuleType, tmp_path: Path) -> None:
    make_sample.write_sample(tmp_path)
    for name in ("items.csv", "interactions.csv"):
        assert (tmp_path / name).read_bytes() == (SAMPLE / name).read_bytes(), name


def test_counts(items: list[dict[str, str]], interactions: list[dict[str, str]]) -> None:
    of_user = Counter(row["user_id"] for row in interactions)
    assert len(items) == 40 * 50
    assert len(of_user) == 3000
    assert 60_000 <= len(interactions) <= 80_000
    assert (min(of_user.values()), max(of_user.values())) == (10, 60)


def test_items_are_whole_with_their_warts(items: list[dict[str, str]], interactions: list[dict[str, str]]) -> None:
    titles = [row["title"] for row in items]
    assert len({row["item_id"] for row in items}) == len(items)
    assert all(title == title.strip() != "" for title in titles)
    assert any("&amp;" in title for title in titles)
    assert 0 < len(titles) - len(set(titles)) <= 15
    assert len(items) - len({row["item_id"] for row in interactions}) >= 30


def test_interactions_are_known_single_and_in_order(
    items: list[dict[str, str]], interactions: list[dict[str, str]]
) -> None:
    pairs = [(row["user_id"], row["item_id"]) for row in interactions]
    times = [int(row["time"]) for row in interactions]
    moments = {(row["user_id"], row["time"]) for row in interactions}
    assert {item for _, item in pairs} <= {row["item_id"] for row in items}
    assert len(set(pairs)) == len(pairs)
    assert times == sorted(times)
    assert len(moments) == len(interactions), "a user's times strictly increase"


def test_tastes_concentrate_on_few_themes(make_sample: ModuleType, interactions: list[dict[str, str]]) -> None:
    theme_of = {item.item_id: item.theme for item in make_sample.make_items()}
    themes: dict[str, Counter[int]] = {}
    for row in interactions:
        themes.setdefault(row["user_id"], Counter())[theme_of[row["item_id"]]] += 1
    shares = [sum(count for _, count in user.most_common(3)) / user.total() for user in themes.values()]
    # 85% follow one to three themes by construction; without tastes the top three of 40 would hold about a third.
    assert sum(shares) / len(shares) > 0.85
    assert sum(share > 0.6 for share in shares) > 0.99 * len(shares)


def test_themes_of_a_circle_share_their_fans(make_sample: ModuleType, interactions: list[dict[str, str]]) -> None:
    circle_of_theme = [theme.circle for theme in make_sample.read_themes()]
    theme_of = {item.item_id: item.theme for item in make_sample.make_items()}
    themes: dict[str, Counter[int]] = {}
    for row in interactions:
        themes.setdefault(row["user_id"], Counter())[theme_of[row["item_id"]]] += 1
    top_two = [[theme for theme, _ in user.most_common(2)] for user in themes.values() if len(user) > 1]
    related = sum(circle_of_theme[first] == circle_of_theme[second] for first, second in top_two) / len(top_two)
    assert related > 5 * 3 / 39  # by chance 3 of the other 39 themes are of the same circle
