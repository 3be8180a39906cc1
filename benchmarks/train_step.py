"""Time the training step on a real graph: sampling, forward, backward, optimiser.

    python benchmarks/train_step.py --dataset ml-1m --hidden 1536

Needs torch, torch-geometric, and for the Amazon sets pyarrow; neither Ray nor vLLM. Title vectors are random unit
vectors of MiniLM's width: the time does not depend on their values.
"""

from __future__ import annotations

import itertools
import statistics
import time
import warnings
from pathlib import Path

import torch
from common import parser, print_result
from torch import Tensor

from alpharec.graph import InteractionGraph, Sampler
from alpharec.model import AlphaRec, Objective, TextFeatures

PARTS = ("sampling", "forward", "backward", "optimiser")


def load_train(dataset: str, folder: Path) -> tuple[Tensor, Tensor, int, int]:
    """Return users, items and the numbers of both."""
    if dataset == "ml-1m":
        rows = [torch.tensor([int(part) for part in line.split()]) for line in (folder / "train.txt").open()]
        users = torch.cat([row[:1].expand(len(row) - 1) for row in rows])
        return users, torch.cat([row[1:] for row in rows]), 6_040, 3_043
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "interactions.parquet").to_pydict()
    item_of = {item: row for row, item in enumerate(pq.read_table(folder / "items.parquet")["item_id"].to_pylist())}
    user_of = {user: row for row, user in enumerate(dict.fromkeys(table["user_id"]))}
    pairs = [
        (user_of[user], item_of[item])
        for user, item, split in zip(table["user_id"], table["item_id"], table["split"], strict=True)
        if split == "train"
    ]
    users, items = torch.tensor(pairs).T
    return users.contiguous(), items.contiguous(), len(user_of), len(item_of)


def main() -> None:
    """Time steps one by one and print the medians."""
    arguments = parser("Seconds of a training step.", ("ml-1m", "amazon-games"))
    arguments.add_argument("--hidden", type=int, default=1536)
    arguments.add_argument("--width", type=int, default=384, help="text width")
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--commute", choices=["rule", "yes", "no"], default="rule", help="user mean after layer one")
    given = arguments.parse_args()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")

    users, items, num_users, num_items = load_train(given.dataset, Path(given.data) / given.dataset)
    graph = InteractionGraph(users, items, num_users=num_users, num_items=num_items).to(given.device)
    vectors = torch.nn.functional.normalize(
        torch.randn(num_items, given.width, generator=torch.Generator().manual_seed(0))
    )
    commute = {"rule": None, "yes": True, "no": False}[given.commute]
    features = TextFeatures.build(vectors.to(given.device), graph, commute=commute)
    model = AlphaRec(given.width, hidden_width=given.hidden).to(given.device)
    sampler = Sampler(graph, seed=101, batch_size=4096, num_negatives=256)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    objective = Objective("infonce", 0.15)

    def now() -> float:
        if given.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    taken: list[list[float]] = []
    for step in range(given.steps + 3):
        marks = [now()]
        batch = sampler.draw(step)
        marks.append(now())
        optimizer.zero_grad(set_to_none=True)
        user_UD, item_ID = model(graph, features)
        loss = objective(user_UD, item_ID, batch) / sampler.positives_per_step
        marks.append(now())
        loss.backward()
        marks.append(now())
        optimizer.step()
        marks.append(now())
        taken.append([after - before for before, after in itertools.pairwise(marks)])
    parts = [statistics.median(column) for column in zip(*taken[3:], strict=True)]
    seconds = statistics.median(sum(row) for row in taken[3:])
    print_result(
        dataset=given.dataset,
        hidden=given.hidden,
        seconds_per_step=round(seconds, 4),
        seconds_per_epoch=round(seconds * sampler.steps_per_epoch, 2),
        steps_per_epoch=sampler.steps_per_epoch,
        **{name: round(value, 4) for name, value in zip(PARTS, parts, strict=True)},
        commuted=features.user_UT is None,
        device=given.device,
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    main()
