"""What an evaluation takes as right and leaves out, and most-popular."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from alpharec.config import Settings
from alpharec.data.dataset import Dataset, Pairs
from alpharec.evaluation import popularity, truth_and_seen
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
