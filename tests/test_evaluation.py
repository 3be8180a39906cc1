"""What an evaluation takes as right and leaves out, and most-popular."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from alpharec.config import Settings
from alpharec.data.dataset import Dataset, Domain, Pairs
from alpharec.evaluation import measure, popularity, truth_and_seen
from alpharec.ranking import evaluate


def test_valid_masks_train_and_the_official_mask_is_by_name_only() -> None:
    def pairs(*of: tuple[int, int]) -> Pairs:
        return Pairs(np.array([u for u, _ in of]), np.array([i for _, i in of]))

    ids = pa.array(["a", "b", "c", "d"])
    dataset = Dataset(ids, ids, ids, pairs((0, 0), (2, 1)), pairs((0, 1)), pairs((0, 2), (2, 3)))
    strict = Settings().evaluate
    official = strict.model_copy(update={"valid_mask": "train+test"})
    seen = {
        name: truth_and_seen(dataset.splits, "valid", chosen, count=3)[1]
        for name, chosen in (("s", strict), ("o", official))
    }
    assert seen["s"].rows(torch.tensor([0]))[1].tolist() == [0]
    assert seen["o"].rows(torch.tensor([0]))[1].tolist() == [0, 2]
    truth, masked = truth_and_seen(dataset.splits, "test", strict, first=2, count=2)
    assert (truth.rows(torch.tensor([0]))[1].tolist(), masked.rows(torch.tensor([0]))[1].tolist()) == ([3], [1])


def test_most_popular_ranks_by_train_interactions() -> None:
    train = Pairs(np.array([0, 1, 2, 0]), np.array([2, 2, 2, 1]))
    ids = pa.array(["a", "b", "c"])
    nothing = Pairs(np.array([1]), np.array([1]))
    dataset = Dataset(ids, ids, ids, train, nothing, Pairs(np.array([1]), np.array([0])))
    user_UD, item_ID = popularity(dataset)
    truth, seen = truth_and_seen(dataset.splits, "test", Settings().evaluate, count=3)
    # User 1 has seen item 2 and item 1: item 0, never bought, is all that is left.
    assert evaluate((user_UD, item_ID), truth=truth, seen=seen, ks=(1,)).values["recall@1"].tolist() == [1.0]


def test_a_part_without_interactions_is_named_and_not_measured() -> None:
    nothing = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64))
    train, some = Pairs(np.array([0, 0, 1]), np.array([0, 1, 0])), Pairs(np.array([0]), np.array([2]))
    ids, settings = pa.array(["a", "b", "c"]), Settings(evaluate={"ks": (1, 2), "select_k": 1}).evaluate  # type: ignore[arg-type]
    users = ids[:2]
    told = {split: f"no {split} interactions: nothing was measured" for split in ("valid", "test")}

    # User 0 has seen the items 0 and 1: item 2, which is right, leads its list.
    no_test = Dataset(ids, ids, users, train, some, nothing)
    metrics, test = measure(no_test, popularity(no_test), settings)
    assert metrics.keys() == {"valid", "not_measured"}
    assert (metrics["valid"]["recall@1"], metrics["valid"]["precision@2"]) == (1.0, 0.5)
    assert metrics["not_measured"] == {"test": told["test"]}
    assert (len(test.users), test.values) == (0, {})

    no_valid = Dataset(ids, ids, users, train, nothing, some)
    metrics, test = measure(no_valid, popularity(no_valid), settings)
    assert metrics.keys() == {"test", "test_by_user_activity", "not_measured"}
    assert (metrics["test"]["recall@1"], test.users.tolist()) == (1.0, [0])
    assert metrics["not_measured"] == {"valid": told["valid"]}

    neither = Dataset(ids, ids, users, train, nothing, nothing)
    assert measure(neither, popularity(neither), settings)[0] == {"not_measured": told}


def test_a_mix_is_measured_where_a_dataset_of_it_has_interactions() -> None:
    train = Pairs(np.array([0, 1]), np.array([0, 2]))
    nothing, one = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64)), Pairs(np.array([1]), np.array([3]))
    ids = pa.array(["a/0", "a/1", "b/0", "b/1"])
    domains = (Domain("a", 0, 1, 0, 2), Domain("b", 1, 2, 2, 4))
    mix = Dataset(ids, ids, pa.array(["a/u", "b/u"]), train, nothing, one, domains)
    settings = Settings(evaluate={"ks": (1,), "select_k": 1}).evaluate  # type: ignore[arg-type]
    metrics, test = measure(mix, popularity(mix), settings)
    assert metrics["domains"]["a"]["not_measured"].keys() == {"valid", "test"}
    assert metrics["domains"]["b"]["not_measured"].keys() == metrics["not_measured"].keys() == {"valid"}
    # One item of b is left to its user, the right one.
    assert metrics["test"]["recall@1"] == metrics["domains"]["b"]["test"]["recall@1"] == 1.0
    assert test.users.tolist() == [1]
