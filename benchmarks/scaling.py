"""Time a training step on 1 and on 2 workers of one thread each, and compare the losses of 1 to 4 workers.

    python benchmarks/scaling.py --dataset amazon-games --hidden 108

``speedup`` is the median seconds of a step on one worker over those on two, same global batch, rounds in turns;
``loss_difference`` the largest relative distance of any worker count's losses to those of one worker. More workers than
cores say nothing of speed, so 3 and 4 are compared by their losses alone. Plain torch processes over gloo, without Ray.
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

from alpharec.graph import InteractionGraph, Part, Sampler
from alpharec.model import AlphaRec, Objective, TextFeatures, train_step

WARM_UP = 3


def work(rank: int, size: int, folder: str, graph: tuple[Tensor, Tensor, int, int], hidden: int, steps: int) -> None:
    """Train in one process; the first writes losses and seconds a step."""
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    warnings.filterwarnings("ignore", message=".*is deprecated. Please use `torch.distributed")  # new in 2.13
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    users, items, num_users, num_items = graph
    part = InteractionGraph(users, items, num_users=num_users, num_items=num_items, part=Part(rank, size))
    vectors = torch.nn.functional.normalize(torch.randn(num_items, 384, generator=torch.Generator().manual_seed(0)))
    features, model = TextFeatures.build(vectors[part.part.rows(num_items)], part), AlphaRec(384, hidden_width=hidden)
    sampler = Sampler(part, seed=101, batch_size=4096, num_negatives=256)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    objective, losses, seconds = Objective("infonce", TEMPERATURE), [], []
    for step in range(steps):
        started = time.perf_counter()
        losses.append(train_step(model, optimizer, features, sampler, step, objective))
        seconds.append(time.perf_counter() - started)
    if rank == 0:
        torch.save((losses, seconds), f"{folder}/result")
    torch.distributed.destroy_process_group()


def measure(size: int, graph: tuple[Tensor, Tensor, int, int], hidden: int, steps: int) -> tuple[list[float], float]:
    """Return the losses and the median seconds of a step."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (size, folder, graph, hidden, steps), nprocs=size)
        losses, seconds = torch.load(f"{folder}/result")
    return losses, statistics.median(seconds[WARM_UP:])


def main() -> None:
    """Run worker counts in turns and print the ratio."""
    arguments = parser("Seconds of a step by workers.", ("ml-1m", "amazon-games", "books-shape"))
    arguments.add_argument("--hidden", type=int, default=108)
    arguments.add_argument("--steps", type=int, default=40, help="of each timed run")
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--curve-steps", type=int, default=200, help="over which losses are compared")
    given = arguments.parse_args()
    graph = load_train(given.dataset, Path(given.data) / given.dataset)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(given.rounds):
        for size in seconds:
            seconds[size].append(measure(size, graph, given.hidden, given.steps)[1])
            print(f"{size} workers: {seconds[size][-1]:.4f} s a step", flush=True)
    speedups = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    curves = {size: measure(size, graph, given.hidden, given.curve_steps)[0] for size in (1, 2, 3, 4)}
    differences = {
        size: max(abs(loss - alone) / abs(alone) for loss, alone in zip(curve, curves[1], strict=True))
        for size, curve in curves.items()
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
        curve_steps=given.curve_steps,
    )


if __name__ == "__main__":
    main()
