"""The stage: the dataset as an artifact."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alpharec.artifacts import Artifact, Store, digest
from alpharec.config import DataSettings, Settings
from alpharec.data.build import build_dataset
from alpharec.data.dataset import Dataset, Domain, Pairs, load_dataset
from alpharec.data.files import Input
from alpharec.data.formats import open_inputs
from alpharec.data.read import read_inputs
from alpharec.data.report import describe

# Part of a dataset's version: raise it when the same input would give other files.
DATASET_FORMAT = 2
ATTRIBUTES = "attributes.parquet"  # item_id and the columns of data.keep_columns, in the order of the items


def prepare(store: Store, settings: Settings) -> Artifact:
    """Return the dataset these settings describe, reading and splitting only if the store does not have it.

    The version is the digest of the data settings, the seed where it matters, and the content of every input file;
    where the files lie does not matter.

    Raises:
        CatalogError: the input does not hold what it must.
    """
    if settings.data.format == "mix":
        return _prepare_mix(store, settings)
    inputs = open_inputs(settings.data)
    version = _version(inputs, settings)
    found = store.find("datasets", settings.name, version)
    if found is not None:
        return found
    dataset, report = build_dataset(*read_inputs(inputs, settings.data), settings.data, seed=settings.seed)
    sources = {role: file.address for role, file in inputs.items()}
    return _write_dataset(store, settings, version, dataset, report, sources)


def _write_dataset(
    store: Store,
    settings: Settings,
    version: str,
    dataset: Dataset,
    report: dict[str, Any],
    sources: Mapping[str, str | Artifact],
) -> Artifact:
    draft = store.draft("datasets", settings.name, version)
    draft.write_table("items.parquet", pa.table({"item_id": dataset.item_ids, "title": dataset.titles}))
    draft.write_table("users.parquet", pa.table({"user_id": dataset.user_ids}))
    for split, pairs in dataset.splits.items():
        draft.write_table(
            f"{split}.parquet", pa.table({"user": pairs.users.astype(np.int32), "item": pairs.items.astype(np.int32)})
        )
    if dataset.attributes is not None:
        draft.write_table(ATTRIBUTES, dataset.attributes)
    draft.write_json("report.json", report)
    return draft.commit(
        settings=settings.model_dump(mode="json", include={"name", "seed", "data"}),
        inputs=sources,
        summary={
            "users": report["users"],
            "items": report["items"],
            **report["interactions"],
            **({"domains": [dataclasses.asdict(domain) for domain in dataset.domains]} if dataset.domains else {}),
        },
    )


def _domain_settings(settings: Settings) -> dict[str, Settings]:
    return {
        name: settings.model_copy(update={"name": f"{settings.name}.{name}", "data": DataSettings(**given)})
        for name, given in settings.data.domains.items()
    }


def _prepare_mix(store: Store, settings: Settings) -> Artifact:
    """Return several datasets as one: users and items follow each other, ids are ``<domain>/<id>``."""
    made = {name: prepare(store, chosen) for name, chosen in _domain_settings(settings).items()}
    version = _mix_version({name: artifact.version for name, artifact in made.items()})
    found = store.find("datasets", settings.name, version)
    if found is not None:
        return found
    parts = {name: load_dataset(artifact) for name, artifact in made.items()}
    domains: list[Domain] = []
    for name, part in parts.items():
        user, item = (domains[-1].end_user, domains[-1].end_item) if domains else (0, 0)
        domains.append(Domain(name, user, user + part.num_users, item, item + part.num_items))

    def joined(split: str) -> Pairs:
        pairs = [(part.splits[split], domain) for part, domain in zip(parts.values(), domains, strict=True)]
        users = [own.users + domain.first_user for own, domain in pairs]
        return Pairs(np.concatenate(users), np.concatenate([own.items + domain.first_item for own, domain in pairs]))

    def ids(column: str) -> pa.StringArray:
        named = [pc.binary_join_element_wise(name, getattr(part, column), "/") for name, part in parts.items()]
        return pa.concat_arrays(named)

    titles = pa.concat_arrays([part.titles for part in parts.values()])
    splits = joined("train"), joined("valid"), joined("test")
    dataset = Dataset(ids("item_ids"), titles, ids("user_ids"), *splits, tuple(domains))
    reports = {name: artifact.read_json("report.json") for name, artifact in made.items()}
    report = describe(dataset, {"empty_titles": sum(own["items_without_title"] for own in reports.values())})
    report["domains"] = reports
    return _write_dataset(store, settings, version, dataset, report, made)


def _mix_version(versions: Mapping[str, str]) -> str:
    return digest({"format": DATASET_FORMAT, "domains": list(versions.items())})[:16]


def find_prepared(store: Store, settings: Settings) -> Artifact | None:
    """Return the dataset these settings describe if the store has it; reads the input files for their digest."""
    if settings.data.format == "mix":
        found = {name: find_prepared(store, chosen) for name, chosen in _domain_settings(settings).items()}
        versions = {name: artifact.version for name, artifact in found.items() if artifact}
        return store.find("datasets", settings.name, _mix_version(versions)) if len(versions) == len(found) else None
    return store.find("datasets", settings.name, _version(open_inputs(settings.data), settings))


def _version(inputs: dict[str, Input], settings: Settings) -> str:
    seed = settings.seed if settings.data.split == "ratio-random" else None
    # Settings at their default are no part of a version, so that a new setting makes no dataset anew.
    places = {"path", "items", "interactions", "max_unpacked_gb"}
    data = settings.data.model_dump(mode="json", exclude=places, exclude_defaults=True)
    content = {role: file.sha256 for role, file in inputs.items()}
    return digest({"format": DATASET_FORMAT, "data": data, "seed": seed, "content": content})[:16]
