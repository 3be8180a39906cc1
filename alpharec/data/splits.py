"""Train, valid and test."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from alpharec.config import DataSettings
from alpharec.data.dataset import SPLITS, Ints
from alpharec.data.files import InputFile, fail
from alpharec.data.report import Counts

Split = Literal["given", "ratio-random", "ratio-time", "leave-last-out", "global-time", "none"]


def split(pairs: pl.DataFrame, file: InputFile, settings: DataSettings, seed: int) -> tuple[pl.DataFrame, Counts]:
    """Add the column ``split`` (0 train, 1 valid, 2 test); return the pairs that stay, and how many were left out.

    Raises:
        CatalogError: train is empty, or valid or test is and the settings do not allow it.
    """
    if settings.split != "given":
        times = pairs["time"].to_numpy() if "time" in pairs.columns else None
        users = pairs["user"].to_numpy()
        codes = split_interactions(users, times, how=settings.split, ratios=settings.ratios, seed=seed)
        pairs = pairs.with_columns(split=pl.Series(codes))
    trained = pairs.filter(pl.col("split") == 0)["item"].unique()
    cold = pairs.select((pl.col("split") > 0) & ~pl.col("item").is_in(trained.implode())).to_series()
    if settings.drop_cold_truth:
        pairs = pairs.filter(~cold)
    _check_sizes(pairs, file, settings)
    return pairs, {"cold_truth_interactions": int(cold.sum()) if settings.drop_cold_truth else 0}


def _check_sizes(pairs: pl.DataFrame, file: InputFile, settings: DataSettings) -> None:
    sizes = {name: pairs.filter(pl.col("split") == code).height for code, name in enumerate(SPLITS)}
    shares = dict(zip(SPLITS, settings.shares or (1, 1, 1), strict=True))
    got = ", ".join(f"{size} in {name}" for name, size in sizes.items())
    for name, size in sizes.items():
        problem = f"the split {settings.split} leaves {name} empty"
        if size == 0 and name == "train":
            fail(file, problem, got, "give train some, or pass --data.split none to train on every interaction")
        if size == 0 and shares[name] and settings.on_empty_split == "error":
            fail(file, problem, got, "pass --data.on-empty-split allow to continue without it, or give it some")


def split_interactions(
    users: Ints, times: npt.NDArray[Any] | None, *, how: Split, ratios: tuple[float, float, float], seed: int
) -> npt.NDArray[np.int8]:
    """Assign each interaction to train (0), valid (1) or test (2); ties in time go by file order.

    ratio-random, ratio-time: each user's interactions in random or time order are cut by ``split_sizes``.
    leave-last-out: a user's last is test, the one before valid; of two, the first is train; a single one is train.
    global-time: two moments for everyone, nearest to the ratios; what happened at one moment stays together.
    none: all are train.

    Shapes: users (E,), times (E,) -> (E,).
    """
    if how == "none":
        return np.zeros(len(users), np.int8)
    if how == "global-time":
        assert times is not None
        return _split_by_moment(times, ratios)
    keys = np.random.default_rng(seed).random(len(users)) if how == "ratio-random" else times
    assert keys is not None
    num_of_user = np.bincount(users)
    if how == "leave-last-out":
        num_test = np.minimum(num_of_user - 1, 1).clip(0)
        num_train = num_of_user - num_test - (num_of_user > 2)
    else:
        num_train, _, num_test = split_sizes(num_of_user, ratios)
    order = np.lexsort((keys, users))
    rank = np.empty(len(users), np.int64)
    rank[order] = np.arange(len(users)) - (np.cumsum(num_of_user) - num_of_user)[users[order]]
    codes: npt.NDArray[np.int8] = np.add(
        rank >= num_train[users], rank >= (num_of_user - num_test)[users], dtype=np.int8
    )
    return codes


def split_sizes(num_of_user: Ints, ratios: tuple[float, float, float]) -> tuple[Ints, Ints, Ints]:
    """Return each user's number of train, valid and test interactions by largest remainder, ties to the earlier split.

    Each number is its share rounded down or up, and a user with an interaction has one in train.

    Shapes: num_of_user (U,) -> three of (U,).
    """
    share_3U = np.outer(ratios, num_of_user)
    size_3U = np.floor(share_3U + 1e-9).astype(np.int64)
    remainder_3U = np.round(share_3U - size_3U, 9)
    remainder_3U[0, size_3U[0] == 0] = 1  # the first spare one goes to a train that has none
    rank_3U = np.argsort(np.argsort(-remainder_3U, axis=0, kind="stable"), axis=0)
    size_3U += rank_3U < num_of_user - size_3U.sum(axis=0)
    return size_3U[0], size_3U[1], size_3U[2]


def _split_by_moment(times: npt.NDArray[Any], ratios: tuple[float, float, float]) -> npt.NDArray[np.int8]:
    moments, nums = np.unique(times, return_counts=True)
    num_before = np.concatenate([[0], np.cumsum(nums)])
    first = 1 + int(np.abs(num_before[1:] - ratios[0] * len(times)).argmin())
    second = first + int(np.abs(num_before[first:] - (ratios[0] + ratios[1]) * len(times)).argmin())
    position = np.searchsorted(moments, times)
    codes: npt.NDArray[np.int8] = np.add(position >= first, position >= second, dtype=np.int8)
    return codes
