"""The data report."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from alpharec.data.dataset import SPLITS, Dataset, Ints

QUANTILES = (0, 25, 50, 75, 90, 99, 100)
Counts = dict[str, int]


def describe(dataset: Dataset, left_out: Counts) -> dict[str, Any]:
    """Return the data report: sizes, degrees in train, what is cold or empty, what policies and filters left out."""
    num_users, num_items = dataset.num_users, dataset.num_items
    sizes = {split: len(getattr(dataset, split)) for split in SPLITS}
    user_degree = np.bincount(dataset.train.users, minlength=num_users)
    item_degree = np.bincount(dataset.train.items, minlength=num_items)
    titles = pl.Series(values=dataset.titles, dtype=pl.String)
    return {
        "users": num_users,
        "items": num_items,
        "interactions": sizes,
        "density": sum(sizes.values()) / (num_users * num_items),
        "user_degree": _quantiles(user_degree),
        "item_degree": _quantiles(item_degree),
        "items_without_title": left_out["empty_titles"],
        "items_without_train": int((item_degree == 0).sum()),
        "items_sharing_a_title": int(titles.is_duplicated().sum()),
        "users_without_train": int((user_degree == 0).sum()),
        "users_without_valid": num_users - len(np.unique(dataset.valid.users)),
        "users_without_test": num_users - len(np.unique(dataset.test.users)),
        "left_out": {name: count for name, count in left_out.items() if name != "empty_titles"},
    }


def _quantiles(degrees: Ints) -> Counts:
    values = np.quantile(degrees, np.array(QUANTILES) / 100, method="inverted_cdf")
    return {str(quantile): int(value) for quantile, value in zip(QUANTILES, values, strict=True)}


def format_report(report: dict[str, Any]) -> str:
    """Return the report as a short table for a terminal."""
    sizes = report["interactions"]
    lines = [
        f"{'users':<28}{report['users']:>12,}",
        f"{'items':<28}{report['items']:>12,}",
        *(f"{'interactions in ' + split:<28}{sizes[split]:>12,}" for split in SPLITS),
        f"{'density':<28}{report['density']:>12.4%}",
    ]
    names = [name for name in report if name.startswith(("items_", "users_"))]
    lines += [f"{name.replace('_', ' '):<28}{report[name]:>12,}" for name in names]
    left_out = {name: count for name, count in report["left_out"].items() if count}
    lines += [f"{'left out: ' + name.replace('_', ' '):<48}{count:>12,}" for name, count in left_out.items()]
    lines.append(f"{'train degree quantiles, %':<28}" + "".join(f"{quantile:>8}" for quantile in QUANTILES))
    for side in ("user", "item"):
        degree = report[f"{side}_degree"]
        lines.append(f"{'  of ' + side + 's':<28}" + "".join(f"{degree[str(quantile)]:>8,}" for quantile in QUANTILES))
    return "\n".join(lines)
