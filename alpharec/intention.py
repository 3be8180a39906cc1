"""Intention: what a user says it wants, mixed into its vector; queries, their check for leaks, and the weight alpha.

A query is a text a user states for one item it wants, its target. As in the paper its vector, from the encoder of the
titles and the projector of users and items, is mixed in at layer 0, after the projector and before propagation::

    e_u^(0) = (1 - alpha) projector(mean of x_i) + alpha projector(x of the query)

Neither side is scaled before mixing. Lists are served by a mixture of scores instead, which finds more targets and lets
other users be::

    score(u, i) = (1 - alpha) score of u's history for i + alpha cos(x of the query, propagated x_i)

with the encoder's vectors less the titles' mean, unprojected: a projector keeps what is liked together, and loses what
tells an item from its like. Nothing is trained for either: alpha is searched on a frozen model.

Shapes: U users, I items, Q queries, n texts, T text width, D representation width.

Source: arXiv 2407.05441 section 5.3; how its queries and targets were made was never published. Scores: this project.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import torch
import torch.nn.functional as F
from torch import Tensor

from alpharec.artifacts import Artifact, Store, digest
from alpharec.config import IntentionSettings, ModelSettings, Settings
from alpharec.data.dataset import Dataset, Pairs, domains_of, load_dataset
from alpharec.data.files import Input
from alpharec.data.formats import open_table
from alpharec.data.requests import read_item_texts, read_queries
from alpharec.data.titles import normalize_title
from alpharec.embed import embed_texts
from alpharec.encoders import Generator
from alpharec.evaluation import check_reads, check_splits, truth_and_seen
from alpharec.graph import InteractionGraph
from alpharec.model import AlphaRec, Objective, centre, mean_of_titles
from alpharec.networks import build_graph, load_model
from alpharec.propagate import propagate, read_rows
from alpharec.ranking import Lists, evaluate, user_activity_groups
from alpharec.report import lines, page
from alpharec.runtime import connect, cpus_each
from alpharec.vectors import load_vectors

logger = logging.getLogger(__name__)

QUERIES_FORMAT = 2  # part of their version: raise it when the same texts would give other queries
INTENTIONS_FORMAT = 4  # the same, of what is measured
ASKED = ("valid", "test")  # splits that targets are of
TAKEN_OUT = ("names", "years", "words")
WAYS = {
    "together": "every user's mixed vector is propagated, as in the paper",
    "served": "the score of history and the cosine of query and propagated title are mixed, as lists are served",
}
TEXTS_AT_ONCE = 256
LEAST_WORDS = 5  # of a query: what is left of a text that was little but its title says nothing
INSIDE_WORDS = 4  # letters from which a word of the title is looked for inside other words, too

ARTICLES = frozenset(re.findall(r"\w+", "a an the la le les l el los las il lo gli das der die den een un una une"))
# Words of titles that give none away, those of any film among them; a title of these alone is looked for as a whole.
FUNCTION_WORDS = ARTICLES | frozenset(
    re.findall(
        r"\w+",
        "and or of in on at to for from by with without as is are was be it its he she you i me my we us our they them "
        "his her your their this that what who when where why how not no do did all up out into over vs aka et de du "
        "des y n s t m ll re ve d film movie",
    )
)
EMPTY = r"\(\W*\)|\[\W*\]|\"\W*\"|\u201c\W*\u201d|''"


class IntentionError(RuntimeError):
    """Queries cannot be made or measured as asked; the message says what to do."""


# ---------------------------------------------------------------- titles and texts


@dataclass(frozen=True)
class Fragments:
    """What of a title may not stand in a query: its names, whole; its year; each word that is not a function word."""

    patterns: Mapping[str, re.Pattern[str]]

    @classmethod
    def of(cls, title: str) -> Fragments:
        """Take a title apart: ``Postino, Il (The Postman) (1994)`` has two names, a year and the words of the names.

        Names are found with or without their article, whatever stands between their words; a word of four letters and
        more also inside another (``Story`` in ``storytelling``); case and accents do not matter.
        """
        year = re.search(r"\((\d{4})(?:[-/]\d*)?\)\s*$", title)
        rest = title[: year.start()] if year else title
        parts = [re.sub(r"\([^)]*\)?", " ", rest), *re.findall(r"\(([^)]*)\)?", rest)]
        names = [words for words in (_words(part) for part in parts) if words]
        told = {word for words in names for word in words} - FUNCTION_WORDS
        inside = sorted(word for word in told if len(word) >= INSIDE_WORDS and not word.isdigit())
        alone = sorted(word for word in told if word not in inside)
        whole = sorted((r"\W+".join(words) for words in names), key=len, reverse=True)
        found = {
            "names": rf"\b(?:(?:{'|'.join(sorted(ARTICLES))})\W+)?(?:{'|'.join(whole)})\b(?:['\u2019]s\b)?"
            if whole
            else "",
            "years": rf"\b{year[1]}\b" if year else "",
            "words": "|".join(
                [rf"\b(?:{'|'.join(alone)})(?:e?s)?\b"] * bool(alone)
                + [rf"\w*(?:{'|'.join(inside)})\w*"] * bool(inside)
            ),
        }
        return cls({kind: re.compile(pattern) for kind, pattern in found.items() if pattern})

    def find(self, text: str) -> Iterator[tuple[str, int, int]]:
        """Yield the fragments in a text: kind, and where it begins and ends."""
        folded = _folded(text)
        for kind, pattern in self.patterns.items():
            for found in pattern.finditer(folded):
                yield kind, *found.span()


def leaks(text: str, title: str) -> list[str]:
    """Return what of a title stands in a text, as it stands there; empty if the text gives none of it away."""
    return [text[start:end] for _, start, end in Fragments.of(title).find(text)]


def names_in(text: str, title: str) -> list[str]:
    """Return the names of a title that stand whole in a text."""
    return [text[start:end] for kind, start, end in Fragments.of(title).find(text) if kind == "names"]


def without_title(text: str, title: str) -> tuple[str, dict[str, int]]:
    """Return the text without its title, so that ``leaks`` finds nothing, and how much was taken out, by kind."""
    fragments, counts = Fragments.of(title), {"names": 0, "years": 0, "words": 0}
    while found := next(iter(fragments.find(text)), None):
        kind = found[0]
        spans = [span for name, *span in fragments.find(text) if name == kind]
        counts[kind] += len(spans)
        for start, end in reversed(spans):
            text = f"{text[:start]} {text[end:]}"
    for _ in range(2):  # quotes inside brackets
        text = re.sub(EMPTY, " ", text)
    text = re.sub(r"\s+([,.;:!?)])", r"\1", " ".join(text.split()))
    return text.lstrip(" ,.;:!?-"), counts


def _words(name: str) -> list[str]:
    """Return the words of a name, without its article, which stands first or, after a comma, last."""
    words = re.findall(r"\w+", _folded(re.sub(r"^\s*a\.?k\.?a\.?\s+", "", name)))
    if len(words) > 1 and words[-1] in ARTICLES and re.search(r",\s*\S+\s*$", name):
        words.pop()
    return words[1:] if len(words) > 1 and words[0] in ARTICLES else words


def _folded(text: str) -> str:
    """Return the text in lower case without accents, each character in its place."""
    if text.isascii():
        return text.lower()
    return "".join(unicodedata.normalize("NFKD", letter)[0].lower()[:1] or letter for letter in text)


# ---------------------------------------------------------------- queries


def make_queries(store: Store, settings: Settings, dataset: Artifact) -> Artifact:
    """Return the queries of a dataset: those of ``intention.queries``, or made of ``intention.texts``.

    Of texts: each user with a valid item gets one of them as its target, drawn by the seed, and so of test; the query
    is the target's text without its title, worded by ``intention.generator`` where one is named.

    ``queries.parquet``: user, item (indices), split, query; ``summary``: how many, and what was taken out of texts.

    Raises:
        IntentionError: neither table is given, or no query is left.
        CatalogError: a table does not hold what it must.
        EncoderError: the generator does not start.
    """
    chosen = settings.intention
    if bool(chosen.queries) == bool(chosen.texts):
        raise IntentionError(
            "queries are read from a table or made of item texts, one of the two (got "
            f"intention.queries = {chosen.queries!r}, intention.texts = {chosen.texts!r}); "
            "pass --intention.queries FILE or --intention.texts FILE"
        )
    file = open_table(chosen.queries or chosen.texts, "queries" if chosen.queries else "texts", settings.data)
    wording = [chosen.text_column, chosen.generator, chosen.generator and chosen.prompt, settings.seed]
    version = digest([QUERIES_FORMAT, dataset.version, file.sha256, None if chosen.queries else wording])[:16]
    found = store.find("queries", settings.name, version)
    if found is not None:
        return found
    data = load_dataset(dataset)
    if chosen.queries:
        table, counts = read_queries(file, data), dict[str, int]()
    else:
        table, counts = _from_texts(settings, data, file)
    if not len(table):
        raise IntentionError(f"{file.address}: no query is left (got {counts}); pass a table with longer texts")
    draft = store.draft("queries", settings.name, version)
    draft.write_table("queries.parquet", table)
    titles = data.titles.take(table["item"].combine_chunks()).to_pylist()
    named = sum(bool(names_in(*pair)) for pair in zip(table["query"].to_pylist(), titles, strict=True))
    if named:
        logger.warning("intention: %s of %s queries name the title of their target", f"{named:,}", f"{len(table):,}")
    return draft.commit(
        settings=settings.model_dump(mode="json", include={"name", "seed", "intention"}),
        inputs={"dataset": dataset, "texts": file.address},
        summary={"queries": len(table), "with_title": named, **counts},
    )


def _from_texts(settings: Settings, data: Dataset, file: Input) -> tuple[pa.Table, dict[str, int]]:
    rows, texts = read_item_texts(file, data.item_ids, settings.data.item_column, settings.intention.text_column)
    if not len(rows):
        raise IntentionError(
            f"{file.address}: no text is about an item of the catalog (expected ids as {data.item_ids[0]} in column "
            f"{settings.data.item_column}); pass another table with --intention.texts, or set data.item_column"
        )
    made = write_queries(settings, pa.table({"item": rows, "title": data.titles.take(pa.array(rows)), "text": texts}))
    told = {kind: int(np.sum(made[kind].to_numpy())) for kind in TAKEN_OUT}
    made = made.filter(pc.greater_equal(made["left"], LEAST_WORDS))
    query_of = np.full(data.num_items, -1)
    query_of[made["item"].to_numpy()] = np.arange(len(made))
    random, parts = np.random.default_rng(settings.seed), []
    for split in ASKED:
        pairs: Pairs = data.splits[split]
        order = random.permutation(len(pairs))
        order = order[query_of[pairs.items[order]] >= 0]
        users, first = np.unique(pairs.users[order], return_index=True)
        items = pairs.items[order][first]
        queries = made["query"].combine_chunks().take(pa.array(query_of[items]))
        parts.append(pa.table({"user": users, "item": items, "split": [split] * len(users), "query": queries}))
    return pa.concat_tables(parts), {"texts": len(rows), "too_short": len(rows) - len(made), **told}


def write_queries(settings: Settings, items: pa.Table) -> pa.Table:
    """Make a query of each item's text on Ray Data: the generator's words, or the text, either without the title.

    ``items``: item, title, text -> item, query, and how many names, years and words of the title were taken out (of the
    text, and of what the generator wrote), and words left. In order of ``item``.
    """
    connect(settings)
    ray.data.DataContext.get_current().enable_progress_bars = False
    chosen, embed = settings.intention, settings.embed
    # Blocks and one operator on them: a task before or after the writers would wait for a CPU that they hold.
    blocks = [items.slice(first, TEXTS_AT_ONCE) for first in range(0, len(items), TEXTS_AT_ONCE)]
    shared: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": TEXTS_AT_ONCE}
    if chosen.generator:
        shared |= {
            "fn_constructor_args": (settings,),
            "compute": ray.data.ActorPoolStrategy(size=embed.num_workers),
            "num_cpus": embed.num_cpus or cpus_each(embed.num_workers),
            "num_gpus": embed.num_gpus,
        }
    work = ray.data.from_arrow(blocks).map_batches(_Writer if chosen.generator else take_titles_out, **shared)
    tables = [table for table in work.iter_batches(batch_format="pyarrow") if len(table)]
    return pa.concat_tables(tables).sort_by("item").rename_columns({"text": "query"})


def take_titles_out(table: pa.Table) -> pa.Table:
    """Take each title out of its text, written or generated; what is taken out adds up over calls.

    ``table``: item, title, text, [names, years, words] -> the same, and ``left``, the words of a text.
    """
    made = [without_title(*pair) for pair in zip(table["text"].to_pylist(), table["title"].to_pylist(), strict=True)]
    texts = [text for text, _ in made]
    columns = {"item": table["item"], "title": table["title"], "text": pa.array(texts, pa.string())}
    for kind in TAKEN_OUT:
        before = table[kind].to_numpy() if kind in table.column_names else 0
        columns[kind] = pa.array(np.array([counts[kind] for _, counts in made], np.int64) + before)
    columns["left"] = pa.array([len(text.split()) for text in texts], pa.int64())
    return pa.table(columns)


class _Writer:
    """An actor with a generative model, which words the queries: of texts without their title, which it may guess."""

    def __init__(self, settings: Settings) -> None:
        self.prompt = settings.intention.prompt
        self.generator = Generator(settings.intention.generator, settings.embed)

    def __call__(self, table: pa.Table) -> pa.Table:
        table = take_titles_out(table)
        prompts = [self.prompt.replace("{text}", text) for text in table["text"].to_pylist()]
        written = [normalize_title(text) for text in self.generator.write(prompts)]
        return take_titles_out(
            table.set_column(table.column_names.index("text"), "text", pa.array(written, pa.string()))
        )


# ---------------------------------------------------------------- mixing


def mix(history_UD: Tensor, query_UD: Tensor, alpha_U: Tensor) -> Tensor:
    """Return (1 - alpha) history + alpha query, layer 0, not scaled. Shapes: [U, D], [U, D], [U] -> [U, D]."""
    return history_UD.lerp(query_UD, alpha_U[:, None])


def mix_scores(history_UD: Tensor, query_UT: Tensor, alpha_U: Tensor) -> Tensor:
    """Return users whose dot product with an item [representation, wanted title] is the mixture of both scores.

    Shapes: history_UD [U, D], query_UT [U, T], each as its own score takes it; alpha_U [U] -> [U, D + T].
    """
    return torch.cat([history_UD * (1 - alpha_U)[:, None], query_UT * alpha_U[:, None]], 1)


def propagate_titles(
    store: Store, settings: Settings, dataset: Artifact, vectors: Artifact, model: Mapping[str, Any]
) -> Artifact:
    """Return the title vectors less their mean, propagated over as many rounds and with the weights of ``model``, the
    settings of a trained one: what queries are compared with, ``wanted_titles`` reads it.
    """
    chosen = ModelSettings.model_validate(model).model_copy(update={"centred": True})
    return propagate(store, settings.model_copy(update={"model": chosen}), dataset, vectors)


def wanted_titles(titles: Artifact) -> Tensor:
    """Return items' propagated titles at unit length. Shapes: -> [I, T], float32."""
    return F.normalize(torch.from_numpy(read_rows(titles, "items", 0, titles.summary["items"])).float(), dim=1)


@dataclass(frozen=True)
class Frozen:
    """A trained model on its graph, encoded, projected and propagated once: every alpha starts from here.

    Shapes: history_UD [U, D], item_ID [I, D], layer 0; trained, [U, D] and [I, D], whose dot products are scores;
    served_items [I, D + T], the trained items beside ``wanted_titles``; mean_T [T], of the titles' vectors.
    """

    network: AlphaRec
    objective: Objective
    graph: InteractionGraph
    history_UD: Tensor
    item_ID: Tensor
    trained: tuple[Tensor, Tensor]
    served_items: Tensor
    mean_T: Tensor

    @classmethod
    @torch.no_grad()
    def load(cls, dataset: Dataset, item_IT: Tensor, model: Artifact, title_IT: Tensor) -> Frozen:
        """Load a trained model. Shapes: title vectors item_IT [I, T], float32; ``wanted_titles`` title_IT [I, T].

        Raises:
            IntentionError: it has no projector for a query.
        """
        network, objective = load_model(model.settings, model.read_tensors("model.safetensors"))
        if not isinstance(network, AlphaRec):
            raise IntentionError(
                f"{model.uri}: is of another model.kind than alpharec, which no query can be mixed into; "
                "set model.kind = alpharec"
            )
        graph = build_graph(dataset)
        first = network.layer_0(graph, network.features(item_IT, graph))
        user_UD, item_ID = graph.propagate(*first, network.step_weights)
        trained = objective.scale(user_UD), objective.scale(item_ID)
        served_items = torch.cat([trained[1], title_IT], 1)
        return cls(network, objective, graph, *first, trained, served_items, mean_of_titles(item_IT))

    def project(self, query_QT: Tensor) -> Tensor:
        """Return queries as ``together`` takes them. Shapes: [Q, T] -> [Q, D]."""
        return self.network.project(self.network.read(query_QT, self.mean_T))

    @torch.no_grad()
    def together(self, query_UD: Tensor, alpha_U: Tensor) -> tuple[Tensor, Tensor]:
        """Return representations whose dot products are scores, all users' mixed vectors propagated as in the paper: so
        queries reach the items, and through them other users.

        Shapes: query_UD [U, D], projected; alpha_U [U], 0 for a user who says nothing -> [U, D], [I, D].
        """
        mixed_UD = mix(self.history_UD, query_UD, alpha_U)
        user_UD, item_ID = self.graph.propagate(mixed_UD, self.item_ID, self.network.step_weights)
        return self.objective.scale(user_UD), self.objective.scale(item_ID)

    def served(self, query_UT: Tensor, alpha_U: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same by ``mix_scores``: each user asks alone, items and other users stay as they were trained.

        Shapes: query_UT [U, T], alpha_U [U], both 0 for a user who says nothing -> [U, D + T], [I, D + T].
        """
        return mix_scores(self.trained[0], centre(query_UT, self.mean_T), alpha_U), self.served_items


# ---------------------------------------------------------------- the sweep


@dataclass(frozen=True)
class Asked:
    """The queries of one split on a frozen model, and what ranks them.

    Shapes: users (Q,) rising; query_UT [U, T], the encoder's, and query_UD [U, D], projected, 0 where a user has none;
    truth, seen: U lists.
    """

    frozen: Frozen
    users: Tensor
    query_UT: Tensor
    query_UD: Tensor
    truth: Lists
    seen: Lists
    k: int
    block_size: int

    def measure(self, alpha: float | Tensor, way: str) -> dict[str, Tensor]:
        """Return HR@K and NDCG@K of each query, all items ranked, at one alpha or at one of each user [U].

        Shapes: -> float64 [Q] each.
        """
        alpha_U = torch.zeros(len(self.query_UD))
        alpha_U[self.users] = alpha[self.users] if isinstance(alpha, Tensor) else alpha
        if way == "together":
            return self._ranked(self.frozen.together(self.query_UD, alpha_U))
        return self._ranked(self.frozen.served(self.query_UT, alpha_U))

    def by_vectors(self, item_IT: Tensor) -> dict[str, Tensor]:
        """Return the same of ranking titles by their cosine with the query: no model, no history.

        Shapes: the encoder's vectors of the titles [I, T].
        """
        return self._ranked((self.query_UT, F.normalize(item_IT, dim=1)))

    def _ranked(self, sides: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        found = evaluate(sides, truth=self.truth, seen=self.seen, ks=(self.k,), block_size=self.block_size)
        return {name: found.values[name] for name in (f"hr@{self.k}", f"ndcg@{self.k}")}


def check_measurable(dataset: Artifact) -> None:
    """Refuse a dataset that no intentions can be measured on.

    Raises:
        IntentionError: it is a mix of datasets.
        EvaluationError: valid or test has no interaction that a query could ask for.
    """
    if domains_of(dataset):
        raise IntentionError(
            f"{dataset.uri}: is a mix of datasets, whose users have items of their own; measure each by its own data "
            "settings and --evaluate.model NAME/VERSION"
        )
    check_splits(dataset, *ASKED, what="measuring intentions")


def measure_intentions(
    store: Store, settings: Settings, dataset: Artifact, vectors: Artifact, model: Artifact
) -> Artifact:
    """Return HR@K and NDCG@K of a frozen model at every alpha, alpha chosen on valid queries and reported on test ones.

    The target is the one right item; all items are ranked, and those of the other splits left out, as the evaluation
    does. The items' and the queries' vectors are computed and projected once.

    ``metrics.json``: ``encoder alone``, titles ranked by their cosine with the query; and by ``together`` (the paper's
    propagation) and ``served`` (scores mixed) the curves, the best alpha by valid NDCG, test at 0, best and 1, and at
    one alpha for each group of users by activity, chosen the same way;
    ``per_query.parquet``; ``report.html``, the curves.

    Raises:
        IntentionError: there are no queries, or none of a split. Besides what ``check_measurable``, ``make_queries``
            and ``embed`` raise.
    """
    check_measurable(dataset)
    check_reads(model, vectors, dataset)
    queries, chosen = make_queries(store, settings, dataset), settings.intention
    masks = settings.evaluate.valid_mask
    version = digest(
        [INTENTIONS_FORMAT, model.version, vectors.version, queries.version, chosen.alphas, chosen.k, masks]
    )[:16]
    found = store.find("intentions", settings.name, version)
    if found is not None:
        return found
    data, table = load_dataset(dataset), queries.read_table("queries.parquet")
    missing = [split for split in ASKED if split not in table["split"].to_pylist()]
    if missing:
        raise IntentionError(
            f"{queries.uri}: alpha is chosen on valid queries and measured on test ones (got none of "
            f"{', '.join(missing)}); add queries whose target is one of the user's {missing[0]} items"
        )
    texts = table["query"].combine_chunks().dictionary_encode()  # each text once
    numbers = pa.array(map(str, range(len(texts.dictionary))), pa.string())
    query_QT = torch.from_numpy(load_vectors(embed_texts(store, settings, numbers, texts.dictionary))).float()
    item_IT = torch.from_numpy(load_vectors(vectors)).float()
    title_IT = wanted_titles(propagate_titles(store, settings, dataset, vectors, model.settings["model"]))
    frozen = Frozen.load(data, item_IT, model, title_IT)
    query_QT = query_QT[torch.from_numpy(texts.indices.to_numpy().astype(np.int64))]
    asked = {split: _asked(frozen, data, settings, table, query_QT, split) for split in ASKED}
    metrics, columns = dict[str, Any](), dict[str, dict[str, Tensor]]()
    for way in WAYS:
        metrics[way], columns[way] = _search(asked, chosen, data, way)
    test = table.filter(pc.equal(table["split"], "test"))
    per_query = {"user_id": data.user_ids.take(test["user"]), "item_id": data.item_ids.take(test["item"])}
    for way, values in columns.items():
        per_query |= {f"{way}/{name}": pa.array(value_Q.float().numpy()) for name, value_Q in values.items()}
    metrics["encoder alone"] = _means(asked["test"].by_vectors(item_IT))
    summary = {"queries": {split: len(asked[split].users) for split in ASKED}, "k": chosen.k}
    metrics.update(summary)
    draft = store.draft("intentions", settings.name, version)
    draft.write_json("metrics.json", metrics)
    draft.write_table("per_query.parquet", pa.table(per_query))
    draft.write_bytes("report.html", report_page(settings.name, metrics).encode())
    return draft.commit(
        settings=settings.model_dump(mode="json", include={"name", "intention", "evaluate"}),
        inputs={"dataset": dataset, "vectors": vectors, "model": model, "queries": queries},
        summary=summary | {way: {key: metrics[way][key] for key in ("alpha", "test")} for way in WAYS},
    )


def _asked(frozen: Frozen, data: Dataset, settings: Settings, table: pa.Table, query_QT: Tensor, split: str) -> Asked:
    rows = np.flatnonzero(pc.equal(table["split"], split).to_numpy())
    users, items = (torch.from_numpy(table[name].to_numpy()[rows].copy()) for name in ("user", "item"))
    query_QT = query_QT[torch.from_numpy(rows)]
    query_UT, query_UD = (
        kind.new_zeros(data.num_users, kind.shape[1]).index_copy_(0, users, kind)
        for kind in (query_QT, frozen.project(query_QT))
    )
    _, seen = truth_and_seen(data.splits, split, settings.evaluate, count=data.num_users)
    truth, chosen = Lists.from_pairs(users, items, data.num_users), settings.intention
    return Asked(frozen, users, query_UT, query_UD, truth, seen, chosen.k, settings.evaluate.block_size)


def _search(
    asked: Mapping[str, Asked], chosen: IntentionSettings, data: Dataset, way: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a way's metrics, and the test queries' values at 0, at the best alpha, at 1 and by groups."""
    alphas, ndcg = sorted(chosen.alphas), f"ndcg@{chosen.k}"
    found = {split: [asked[split].measure(alpha, way) for alpha in alphas] for split in ASKED}
    curves = {
        split: {name: [_means(values)[name] for values in found[split]] for name in found[split][0]} for split in ASKED
    }
    best = int(np.argmax(curves["valid"][ndcg]))
    users, items = torch.from_numpy(data.train.users), torch.from_numpy(data.train.items)
    groups = user_activity_groups(Lists.from_pairs(users, items, data.num_users))
    group_Q = groups.index[asked["valid"].users]
    alpha_G = torch.full((len(groups.labels),), alphas[best])  # a group without a valid query takes everyone's
    for group in group_Q.unique().tolist():
        means = [float(values[ndcg][group_Q == group].mean()) for values in found["valid"]]
        alpha_G[group] = alphas[int(np.argmax(means))]
    test = {f"{alphas[place]:g}": found["test"][place] for place in (0, best, len(alphas) - 1)}
    test["by group"] = asked["test"].measure(alpha_G[groups.index], way)
    metrics = {
        "alphas": alphas,
        "alpha": alphas[best],
        "curves": curves,
        "test": {at: _means(values) for at, values in test.items()},
        "alpha_of_group": {label: round(float(alpha_G[group]), 6) for group, label in enumerate(groups.labels)},
    }
    return metrics, {f"{name} at {at}": value_Q for at, values in test.items() for name, value_Q in values.items()}


def _means(values: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value_Q.mean()) for name, value_Q in values.items()}


def report_page(name: str, metrics: Mapping[str, Any]) -> str:
    """Return the page with a way's curves each, and test at 0, best and 1."""
    figures, rows = {}, []
    for way, meaning in WAYS.items():
        found = metrics[way]
        series = {metric: (found["alphas"], values) for metric, values in found["curves"]["test"].items()}
        caption = f"{way}: {meaning}. Test queries by alpha; valid queries choose {found['alpha']:g}."
        figures[caption] = lines(series, x="alpha: 0 history alone, 1 intention alone", y="test")
        rows += [{"mixed": way, "alpha": at, **values} for at, values in found["test"].items()]
    rows.append({"mixed": "no model: cosine of query and title", "alpha": "-", **metrics["encoder alone"]})
    return page(f"Intention, {name}", metrics, figures, rows)


def format_intentions(artifact: Artifact) -> str:
    """Return a short table: HR and NDCG of test queries at alpha 0, best and 1, and by groups."""
    metrics, told = artifact.read_json("metrics.json"), []
    for way in WAYS:
        told.append(f"{way}, alpha {metrics[way]['alpha']:g} chosen on valid queries; test:")
        for at, values in metrics[way]["test"].items():
            told.append(f"  alpha {at:<10}" + "".join(f"{name:>10} {value:.4f}" for name, value in values.items()))
    encoder = "".join(f"{name:>10} {value:.4f}" for name, value in metrics["encoder alone"].items())
    told.append(f"no model, cosine of query and title vectors:\n{'':18}{encoder}")
    return "\n".join(told)
