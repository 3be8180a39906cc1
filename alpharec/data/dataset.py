"""A dataset: items with titles, users, and their interactions in three splits; reading it back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alpharec.artifacts import Artifact

SPLITS = ("train", "valid", "test")
Ints = npt.NDArray[np.int64]


class CatalogError(ValueError):
    """The input data does not hold what it must; the message says where, what was got, and what to do."""


@dataclass(frozen=True)
class Pairs:
    """Interactions of one split.

    Shapes: users (E,), items (E,), both int64 indices; sorted by user, then time if there is one, then file order.
    """

    users: Ints
    items: Ints

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class Domain:
    """One dataset of a mix: users and items first..end-1 are its own."""

    name: str
    first_user: int
    end_user: int
    first_item: int
    end_item: int

    @property
    def users(self) -> slice:
        return slice(self.first_user, self.end_user)

    @property
    def items(self) -> slice:
        return slice(self.first_item, self.end_item)


@dataclass(frozen=True)
class Dataset:
    """Items with titles, users, and three disjoint sets of (user, item) pairs; ``domains`` only of a mix.

    ``attributes``: item_id and the columns of ``data.keep_columns``, while the dataset is built.

    Shapes: item_ids (I,), titles (I,), user_ids (U,).
    """

    item_ids: pa.StringArray
    titles: pa.StringArray
    user_ids: pa.StringArray
    train: Pairs
    valid: Pairs
    test: Pairs
    domains: tuple[Domain, ...] = ()
    attributes: pa.Table | None = None

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    @property
    def splits(self) -> dict[str, Pairs]:
        return {split: getattr(self, split) for split in SPLITS}

    def of(self, domain: Domain) -> Dataset:
        """Return one dataset of the mix, its indices from 0."""

        def own(pairs: Pairs) -> Pairs:
            mine = slice(*np.searchsorted(pairs.users, [domain.first_user, domain.end_user]))
            return Pairs(pairs.users[mine] - domain.first_user, pairs.items[mine] - domain.first_item)

        splits = own(self.train), own(self.valid), own(self.test)
        return Dataset(self.item_ids[domain.items], self.titles[domain.items], self.user_ids[domain.users], *splits)


def load_dataset(artifact: Artifact) -> Dataset:
    """Load a dataset that ``prepare`` wrote."""
    items = artifact.read_table("items.parquet")
    users = artifact.read_table("users.parquet")
    return Dataset(
        item_ids=items["item_id"].combine_chunks(),
        titles=items["title"].combine_chunks(),
        user_ids=users["user_id"].combine_chunks(),
        **{split: _pairs(artifact.read_table(f"{split}.parquet")) for split in SPLITS},
        domains=domains_of(artifact),
    )


def domains_of(artifact: Artifact) -> tuple[Domain, ...]:
    """Return the datasets that a dataset was mixed from, none if it was not."""
    return tuple(Domain(**domain) for domain in artifact.summary.get("domains", ()))


def read_degrees(artifact: Artifact) -> Ints:
    """Count each user's train interactions in a dataset, a piece of the file at a time. Shapes: -> (U,)."""
    degrees = np.zeros(artifact.summary["users"], np.int64)
    with artifact.open_table("train.parquet") as table:
        for piece in table.iter_batches(columns=["user"]):
            users = piece["user"].to_numpy()  # sorted, so a piece holds a narrow range of users
            if len(users):
                degrees[users[0] : users[-1] + 1] += np.bincount(users - users[0], minlength=users[-1] - users[0] + 1)
    return degrees


def read_pairs(artifact: Artifact, split: str, first: int, last: int) -> Pairs:
    """Read a split's interactions of users ``first`` to ``last`` - 1 alone: pairs are sorted by user."""
    with artifact.open_table(f"{split}.parquet") as table:
        column, found = table.schema_arrow.get_field_index("user"), []
        for group in range(table.num_row_groups):
            users = table.metadata.row_group(group).column(column).statistics
            if users is not None and users.min < last and users.max >= first:
                found.append(group)
        pairs = _pairs(table.read_row_groups(found))
    mine = slice(*np.searchsorted(pairs.users, [first, last]))
    return Pairs(pairs.users[mine], pairs.items[mine])


def _pairs(table: pa.Table) -> Pairs:
    return Pairs(table["user"].to_numpy().astype(np.int64), table["item"].to_numpy().astype(np.int64))
