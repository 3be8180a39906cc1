"""The other order: title vectors propagated once, ahead of training, as an artifact that workers read rows of.

A distributed sparse product by feature columns: columns do not know each other, so each actor propagates some of them
over the whole graph, and nothing goes between actors.

Shapes: U users, I items, T text width, C columns of a block.
"""

from __future__ import annotations

import functools
import json

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from alpharec.artifacts import Artifact, ArtifactError, Draft, Store, digest
from alpharec.config import Settings
from alpharec.data.dataset import domains_of, read_pairs
from alpharec.graph import InteractionGraph, layer_weights
from alpharec.model import centre, propagate_vectors
from alpharec.runtime import map_on_actors, use_own_cpus
from alpharec.vectors import iter_vectors, matrix, vector_column

KIND = "propagated"
COLUMNS = 64  # of a block; 64 million users are 16 GB of them in float32, twice at the peak
ROWS = 1 << 16  # of a row group: what is read at least


def propagate(store: Store, settings: Settings, dataset: Artifact, vectors: Artifact) -> Artifact:
    """Return users' mean title vectors and items' title vectors, propagated, computing them unless the store has them;
    with ``model.centred`` of the centred ones.

    Writes ``users-<block>.parquet`` and ``items-<block>.parquet``: ``vector``, fp16, some columns of every row.
    ``train.num_workers`` actors share the blocks, on GPUs with ``train.use_gpu``.

    Raises:
        ArtifactError: an input is damaged.
    """
    model, width = settings.model, vectors.summary["width"]
    weights = layer_weights(model.num_layers, model.layer_0_weight)
    version = digest([dataset.version, vectors.version, weights, model.centred])[:16]
    found = store.find(KIND, settings.name, version)
    if found is not None:
        return found
    draft = store.draft(KIND, settings.name, version)
    blocks = -(-width // COLUMNS)
    rows = map_on_actors(
        settings,
        _Propagator,
        [{"block": block} for block in range(blocks)],
        store,
        (KIND, settings.name, version),
        dataset,
        vectors,
        weights,
        model.centred,
        settings.train.use_gpu,
        num_actors=settings.train.most_workers,
        num_cpus=settings.train.cpus_per_worker,
        num_gpus=1 if settings.train.use_gpu else 0,
    )
    for row in rows:
        if row["error"]:
            raise ArtifactError(row["error"])
        for file, facts in json.loads(row["record"]).items():
            draft.adopt(file, facts)
    return draft.commit(
        settings=settings.model_dump(mode="json", include={"name"})
        | {"layer_weights": weights, "centred": model.centred},
        inputs={"dataset": dataset, "vectors": vectors},
        summary={
            "users": dataset.summary["users"],
            "items": dataset.summary["items"],
            "width": width,
            "fingerprint": vectors.summary["fingerprint"],
        },
    )


def read_rows(artifact: Artifact, side: str, first: int, last: int) -> npt.NDArray[np.float16]:
    """Read rows ``first`` to ``last`` - 1 alone of a side, "users" or "items", of what ``propagate`` wrote.

    Shapes: -> [last - first, T], fp16.
    """
    rows = np.empty((last - first, artifact.summary["width"]), np.float16)
    start = 0
    for file in sorted(name for name in artifact.files if name.startswith(side)):
        with artifact.open_table(file) as table:
            columns = table.schema_arrow.field("vector").type.list_size
            groups = range(first // ROWS, -(-last // ROWS)) if last > first else range(0)
            block = matrix(table.read_row_groups(list(groups)), "vector")
        rows[:, start : start + columns] = block[first - groups.start * ROWS :][: last - first]
        start += columns
    return rows


class _Propagator:
    """An actor that builds the graph once and propagates blocks of columns."""

    def __init__(
        self,
        store: Store,
        place: tuple[str, str, str],
        dataset: Artifact,
        vectors: Artifact,
        weights: tuple[float, ...],
        centred: bool,
        on_gpu: bool,
    ) -> None:
        self.store, self.place, self.dataset, self.vectors = store, place, dataset, vectors
        self.weights, self.centred = weights, centred
        self.domain_starts = [domain.first_item for domain in domains_of(dataset)] or [0]
        self.device = torch.device("cuda" if on_gpu else "cpu")
        use_own_cpus()

    @functools.cached_property
    def graph(self) -> InteractionGraph:
        sizes = {f"num_{side}": self.dataset.summary[side] for side in ("users", "items")}
        pairs = read_pairs(self.dataset, "train", 0, sizes["num_users"])
        return InteractionGraph(torch.from_numpy(pairs.users), torch.from_numpy(pairs.items), **sizes).to(self.device)

    @torch.no_grad()
    def __call__(self, batch: dict[str, npt.NDArray[np.int64]]) -> dict[str, list[str]]:
        block, draft = int(batch["block"][0]), Draft(self.store, *self.place)
        try:
            item_IC = torch.from_numpy(self.columns(slice(block * COLUMNS, (block + 1) * COLUMNS)))
            sides = propagate_vectors(item_IC.to(self.device), self.graph, self.weights)
        except ArtifactError as error:  # the driver raises it: a person sees the message, not an actor's traceback
            return {"record": [""], "error": [str(error)]}
        for side, rows_XC in zip(("users", "items"), sides, strict=True):
            table = pa.table({"vector": vector_column(rows_XC.half().cpu().numpy())})
            with draft.stream_table(f"{side}-{block:04d}.parquet", table.schema) as write:
                for first in range(0, len(table), ROWS):
                    write(table.slice(first, ROWS))
        return {"record": [json.dumps(draft.files)], "error": [""]}

    def columns(self, chosen: slice) -> npt.NDArray[np.float32]:
        """Return some columns of the title vectors, as the model reads them. Shapes: -> [I, C]."""
        summary = self.vectors.summary
        columns = np.zeros((summary["items"], len(range(summary["width"])[chosen])), np.float32)
        for rows, part in iter_vectors(self.vectors):
            if self.centred:  # unit length takes every column
                part = centre(torch.from_numpy(part).float(), self.means[self.domain_of(rows)]).numpy()
            columns[rows] = part[:, chosen]
        return columns

    @functools.cached_property
    def means(self) -> torch.Tensor:
        """The mean of each dataset's title vectors. Shapes: -> [datasets, T]."""
        sums = torch.zeros(len(self.domain_starts), self.vectors.summary["width"], dtype=torch.float64)
        counts = torch.diff(torch.tensor([*self.domain_starts, self.vectors.summary["items"]]))
        for rows, part in iter_vectors(self.vectors):
            sums.index_add_(0, self.domain_of(rows), torch.from_numpy(part).double())
        return (sums / counts[:, None]).float()

    def domain_of(self, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return which dataset of a mix items are of, 0 for all where there is one."""
        return torch.from_numpy(np.searchsorted(self.domain_starts, rows, side="right") - 1)
