"""Time a training step on 1 and on 2 workers of one thread each, and compare the losses of 1 to 4 workers.

    python benchmarks/scaling.py --dataset amazon-games --hidden 108

``speedup`` is the median seconds of a step on one worker over those on two, same global batch, rounds in turns;
``loss_difference`` the largest relative distance of any worker count's losses to those of one worker, and
``metric_difference`` of Recall, NDCG and HR@20 after the last step, on a tenth of the interactions held out. More
workers than cores say nothing of speed: 3 and 4 are compared by these alone. ``--double`` compares in float64: what is
left of a difference then is not of rounding. Plain torch processes over gloo, no Ray.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing
from common import parser, print_result
from torch import Tensor
from train_step import LEARNING_RATE, TEMPERATURE, load_train

from alpharec.baselines import train_lists
from alpharec.graph import InteractionGraph, Part, Sampler
from alpharec.model import AlphaRec, Objective, TextFeatures, train_step
from alpharec.ranking import Lists, evaluate

WARM_UP = 3


Graph = tuple[Tensor, Tensor, int, int]


def work(
    rank: int, size: int, folder: str, graph: Graph, held: Graph | None, hidden: int, steps: int, double: bool
) -> None:
    """Train in one process; the first writes losses, seconds a step, and metrics on what is held out."""
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    warnings.filterwarnings("ignore", message=".*is deprecated. Please use `torch.distributed")  # new in 2.13
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    users, items, num_users, num_items = graph
    part = InteractionGraph(users, items, num_users=num_users, num_items=num_items, part=Part(rank, size))
    vectors = torch.nn.functional.normalize(torch.randn(num_items, 384, generator=torch.Generator().manual_seed(0)))
    precision = torch.float64 if double else torch.float32
    features = TextFeatures.build(vectors[part.part.rows(num_items)].to(precision), part)
    model = AlphaRec(384, hidden_width=hidden).to(precision)
    sampler = Sampler(part, seed=101, batch_size=4096, num_negatives=256)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    objective, losses, seconds = Objective("infonce", TEMPERATURE), [], []
    for step in range(steps):
        started = time.perf_counter()
        losses.append(train_step(model, optimizer, features, sampler, step, objective))
        seconds.append(time.perf_counter() - started)
    metrics = rank_held_out(model, features, part, held) if held else {}
    if rank == 0:
        torch.save((losses, seconds, metrics), f"{folder}/result")
    torch.distributed.destroy_process_group()


@torch.no_grad()
def rank_held_out(model: AlphaRec, features: TextFeatures, graph: InteractionGraph, held: Graph) -> dict[str, float]:
    """Return means over all workers' users of their metrics on held-out pairs, train items masked."""
    user_UD, item_ID = (Objective("infonce", TEMPERATURE).scale(side) for side in model(graph, features))
    users, items = held[0] - graph.first_user, held[1]
    mine = (users >= 0) & (users < graph.num_local_users)
    truth = Lists.from_pairs(users[mine], items[mine], graph.num_local_users)
    found = evaluate((user_UD, item_ID), truth=truth, seen=train_lists(graph), ks=(20,))
    names = ("recall@20", "ndcg@20", "hr@20")
    total = torch.tensor([*(float(found.values[name].sum()) for name in names), len(found.users)], dtype=torch.float64)
    total = graph.part.sum(total)
    return {name: float(total[place] / total[-1]) for place, name in enumerate(names)}


def measure(
    size: int, graph: Graph, hidden: int, steps: int, held: Graph | None = None, double: bool = False
) -> tuple[list[float], float, dict[str, float]]:
    """Return the losses, the median seconds of a step, and metrics on ``held`` pairs."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (size, folder, graph, held, hidden, steps, double), nprocs=size)
        losses, seconds, metrics = torch.load(f"{folder}/result")
    return losses, statistics.median(seconds[WARM_UP:]), metrics


def main() -> None:
    """Run worker counts in turns and print the ratio."""
    arguments = parser("Seconds of a step by workers.", ("ml-1m", "amazon-games", "books-shape"))
    arguments.add_argument("--hidden", type=int, default=108)
    arguments.add_argument("--steps", type=int, default=40, help="of each timed run")
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--curve-steps", type=int, default=200, help="over which losses are compared")
    arguments.add_argument("--double", action="store_true", help="compare losses and metrics in float64")
    given = arguments.parse_args()
    graph = load_train(given.dataset, Path(given.data) / given.dataset)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(given.rounds):
        for size in seconds:
            seconds[size].append(measure(size, graph, given.hidden, given.steps)[1])
            print(f"{size} workers: {seconds[size][-1]:.4f} s a step", flush=True)
    speedups = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    order = torch.randperm(len(graph[0]), generator=torch.Generator().manual_seed(0))
    held, kept = ((graph[0][rows], graph[1][rows], *graph[2:]) for rows in order.tensor_split([len(order) // 10]))
    curves = (kept, given.hidden, given.curve_steps, held, given.double)
    found = {size: measure(size, *curves) for size in (1, 2, 3, 4)}
    alone, metrics = found[1][0], {size: of for size, (_, _, of) in found.items()}
    differences = {
        size: max(abs(loss - one) / abs(one) for loss, one in zip(curve, alone, strict=True))
        for size, (curve, _, _) in found.items()
        if size > 1
    }
    print_result(
        dataset=given.dataset,
        hidden=given.hidden,
        speedup=round(statistics.median(speedups), 3),
        speedups=[round(value, 3) for value in speedups],
        seconds_per_step={size: round(statistics.median(values), 4) for size, values in seconds.items()},
        loss_difference=max(differences.values()),
        loss_differences=differences,
        metric_difference=max(abs(of[name] - metrics[1][name]) for of in metrics.values() for name in of),
        metrics=metrics,
        double=given.double,
        curve_steps=given.curve_steps,
    )


if __name__ == "__main__":
    main()
