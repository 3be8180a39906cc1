"""Time the training step, part by part, and against the literal one in turns on the same batches.

    python benchmarks/train_step.py --dataset ml-1m --hidden 1536
    python benchmarks/train_step.py --dataset amazon-games --hidden 108
    python benchmarks/train_step.py --dataset books-shape --width 3072 --steps 4    # a generated graph; 5 GB

``ratio`` is the literal step's seconds over this one's: every formula of the paper as it is written, MLP over all users
and items, sampled rows gathered and normalised one by one, COO product. Both draw their batch with the same sampler.
``products_s`` are the seconds of the projector's matrix products alone, into memory that is there, in turns with the
steps (project-first only); ``ratio_of_products`` the literal step's over those: of a step that did nothing else.

Needs torch, torch-geometric, and for the Amazon sets pyarrow; neither Ray nor vLLM. Title vectors are random unit
vectors of MiniLM's width: the time does not depend on their values.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from common import parser, print_result
from torch import Tensor, nn

from alpharec.graph import Batch, InteractionGraph, Sampler
from alpharec.model import AlphaRec, Objective, TextFeatures

PARTS = ("sampling", "forward", "backward", "optimiser")
BOOKS = (71_306, 40_523, 884_000)  # users, items, train interactions of the paper's Amazon-Books
TEMPERATURE, LEARNING_RATE = 0.15, 5e-4


class Literal:
    """The method of arXiv 2407.05441 section 4 formula by formula, as the oracle of loss and cost."""

    def __init__(self, users: Tensor, items: Tensor, num_users: int, item_IT: Tensor, model: AlphaRec) -> None:
        device, num_items = item_IT.device, len(item_IT)
        users, items = users.to(device), items.to(device)
        ones, sizes = torch.ones(len(users), device=device), (num_users, num_items)
        degree_U = torch.bincount(users, minlength=num_users).float()
        seen_UI = torch.sparse_coo_tensor(torch.stack([users, items]), ones, sizes)
        self.text_NT = torch.cat([torch.sparse.mm(seen_UI, item_IT) / degree_U.clamp(min=1)[:, None], item_IT])
        pair_2E = torch.stack([torch.cat([users, items + num_users]), torch.cat([items + num_users, users])])
        degree_N = torch.bincount(pair_2E[0], minlength=sum(sizes)).float()
        weight_E = (degree_N[pair_2E[0]] * degree_N[pair_2E[1]]).rsqrt()
        self.adjacency_NN = torch.sparse_coo_tensor(pair_2E, weight_E, (sum(sizes),) * 2).coalesce()
        self.num_users, self.num_layers = num_users, model.num_layers
        self.mlp = nn.Sequential(copy.deepcopy(model.first), nn.LeakyReLU(), copy.deepcopy(model.last))
        self.optimizer = torch.optim.Adam(self.mlp.parameters(), lr=LEARNING_RATE)

    def step(self, batch: Batch) -> float:
        """Take one step and return its loss."""
        layers = [self.mlp(self.text_NT)]
        for _ in range(self.num_layers):
            layers.append(torch.sparse.mm(self.adjacency_NN, layers[-1]))
        final_ND = torch.stack(layers).mean(0)
        user_UD, item_ID = final_ND[: self.num_users], final_ND[self.num_users :]
        user_BD = F.normalize(user_UD[batch.user_B], dim=-1)
        item_BND = F.normalize(item_ID[batch.item_BN], dim=-1)
        score_BN = torch.exp((user_BD[:, None] * item_BND).sum(-1) / TEMPERATURE)
        loss = -torch.log(score_BN[:, 0] / score_BN.sum(1)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


class Products:
    """The matrix products of the projector, forward and backward, and nothing else."""

    def __init__(self, features: TextFeatures, model: AlphaRec, num_users: int) -> None:
        assert model.last is not None
        precision = features.item_ST.dtype
        self.first_HT, self.last_DH = (layer.weight.detach().to(precision) for layer in (model.first, model.last))
        # A user mean taken after the first layer is a sum: of it only the last layer is a product.
        self.sides = [
            (text_XT, self.first_HT.new_ones(rows, len(self.first_HT)), self.first_HT.new_ones(rows, len(self.last_DH)))
            for rows, text_XT in ((len(features.item_ST), features.item_ST), (num_users, features.user_UT))
        ]
        self.gradients = torch.empty_like(self.first_HT), torch.empty_like(self.last_DH)

    def take(self) -> None:
        for text_XT, hidden_XH, out_XD in self.sides:
            if text_XT is not None:
                torch.mm(text_XT, self.first_HT.T, out=hidden_XH)
            torch.mm(hidden_XH, self.last_DH.T, out=out_XD)
            torch.mm(out_XD.T, hidden_XH, out=self.gradients[1])
            torch.mm(out_XD, self.last_DH, out=hidden_XH)
            if text_XT is not None:
                torch.mm(hidden_XH.T, text_XT, out=self.gradients[0])


def books_shape() -> tuple[Tensor, Tensor, int, int]:
    """Generate a graph of the Amazon-Books shape: log-normal activity, popularity by a power law."""
    num_users, num_items, num_pairs = BOOKS
    generator = torch.Generator().manual_seed(0)
    activity_U = torch.randn(num_users, generator=generator).exp()
    popularity_I = torch.arange(1, num_items + 1).float().pow(-0.6)[torch.randperm(num_items, generator=generator)]
    draws = num_pairs * 5 // 4
    users = torch.multinomial(activity_U, draws, replacement=True, generator=generator)
    items = torch.multinomial(popularity_I, draws, replacement=True, generator=generator)
    keys = torch.unique(users * num_items + items)
    keys = keys[torch.randperm(len(keys), generator=generator)[:num_pairs]]
    return keys // num_items, keys % num_items, num_users, num_items


def load_train(dataset: str, folder: Path) -> tuple[Tensor, Tensor, int, int]:
    """Return users, items and the numbers of both."""
    if dataset == "books-shape":
        return books_shape()
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
    arguments = parser("Seconds of a training step.", ("ml-1m", "amazon-games", "books-shape"))
    arguments.add_argument("--hidden", type=int, default=1536)
    arguments.add_argument("--width", type=int, default=384, help="text width")
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--commute", choices=["rule", "yes", "no"], default="rule", help="user mean after layer one")
    arguments.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="of matrix products")
    arguments.add_argument(
        "--order", choices=["project-first", "propagate-first"], default="project-first", help="literal: project-first"
    )
    arguments.add_argument("--literal-steps", type=int, default=3, help="steps of the literal form; 0 leaves it out")
    given = arguments.parse_args()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")

    users, items, num_users, num_items = load_train(given.dataset, Path(given.data) / given.dataset)
    graph = InteractionGraph(users, items, num_users=num_users, num_items=num_items).to(given.device)
    vectors = torch.nn.functional.normalize(
        torch.randn(num_items, given.width, generator=torch.Generator().manual_seed(0))
    )
    precision = getattr(torch, given.precision)
    commute = {"rule": None, "yes": True, "no": False}[given.commute]
    by_rows = given.order == "propagate-first"
    model = AlphaRec(given.width, hidden_width=given.hidden, propagate_first=by_rows).to(given.device)
    weights = model.layer_weights if model.propagate_first else (1.0,)
    features = TextFeatures.build(
        vectors.to(given.device), graph, commute=commute, precision=precision, weights=weights
    )
    sampler = Sampler(graph, seed=101, batch_size=4096, num_negatives=256)
    literal = Literal(users, items, num_users, vectors.to(given.device), model) if given.literal_steps else None
    products = None if by_rows else Products(features, model, num_users)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    objective = Objective("infonce", TEMPERATURE)

    def now() -> float:
        if given.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    taken: list[list[float]] = []
    literal_taken: list[float] = []
    products_taken: list[float] = []
    losses: list[tuple[float, float]] = []
    for step in range(given.steps + 3):
        if literal and step <= given.literal_steps:  # the first warms up
            started = now()
            literal_loss = literal.step(sampler.draw(step))
            literal_taken.append(now() - started)
        marks = [now()]
        batch = sampler.draw(step)
        marks.append(now())
        optimizer.zero_grad(set_to_none=True)
        own = features
        if by_rows:
            own, (batch,) = features.of_batch([batch])
        user_UD, item_ID = model(graph, own)
        loss = objective(user_UD, item_ID, batch) / sampler.positives_per_step
        marks.append(now())
        loss.backward()
        marks.append(now())
        optimizer.step()
        marks.append(now())
        if literal and step <= given.literal_steps:
            losses.append((round(float(loss.detach()), 6), round(literal_loss, 6)))
            if not by_rows and abs(losses[-1][0] - losses[-1][1]) > (1e-3 if given.precision == "float32" else 2e-2):
                raise SystemExit(f"step {step}: loss {losses[-1][0]}, of the literal form {losses[-1][1]}")
        started = now()
        if products:
            products.take()
        products_taken.append(now() - started)
        taken.append([after - before for before, after in itertools.pairwise(marks)])
    parts = [statistics.median(column) for column in zip(*taken[3:], strict=True)]
    seconds = statistics.median(sum(row) for row in taken[3:])
    literal_seconds = statistics.median(literal_taken[1:]) if literal else None
    products_seconds = statistics.median(products_taken[3:])
    print_result(
        dataset=given.dataset,
        ratio=round(literal_seconds / seconds, 2) if literal_seconds else None,
        products_s=round(products_seconds, 4) if products else None,
        ratio_of_products=round(literal_seconds / products_seconds, 2) if products and literal_seconds else None,
        literal_seconds_per_step=literal_seconds and round(literal_seconds, 3),
        hidden=given.hidden,
        precision=given.precision,
        order=given.order,
        losses_beside_the_literal=losses,
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
