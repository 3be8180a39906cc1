"""Encoders: titles in, one vector each out. The one seam between AlphaRec and a language model.

Shapes: n texts, L tokens of the longest text of a batch, T text width.

Both real encoders share this module's tokens, truncation, finite check and normalisation, so they differ in the forward
pass only. ``vllm`` and ``sentence_transformers`` are imported by the encoder that needs them.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import itertools
import json
import os
import re
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from alpharec.artifacts import digest
from alpharec.config import EmbedSettings, EncoderSettings

Vectors = npt.NDArray[np.float32]
Tokens = Sequence[Sequence[Any]]  # a text's token ids; of the hash encoder, its words

# What the vectors of a model folder depend on; a README or a sentence-transformers file changes none of them.
MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
VOCABULARY_FILES = ("vocab.txt", "vocab.json", "merges.txt", "*.model", "*.tiktoken")
READ_FILES = (*MODEL_FILES, *TOKENIZER_FILES, *VOCABULARY_FILES)
# Read to refuse what no setting can express (a projection after the pooling, a shorter longest text).
CHECKED_FILES = ("modules.json", "sentence_bert_config.json")

# Options of vllm.LLM that would change the vectors behind the fingerprint's back, or run the model's own code.
REFUSED_ENGINE_OPTIONS = frozenset(
    {"model", "revision", "tokenizer", "tokenizer_revision", "hf_config_path", "hf_overrides", "trust_remote_code"}
    | {"runner", "convert", "pooler_config", "dtype", "quantization", "load_format", "max_model_len"}
)
CPU_KV_CACHE_BYTES = 1 << 30  # 2,048 tokens of a 7B Llama in bfloat16; an encoder model uses none of it
GENERATED_TOKENS = 96  # of a query
MALLOC_TRIM_THRESHOLD, MALLOC_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt(3)
# A batch's texts have at least this share of its longest's tokens: padding adds 5% to shards of 2,048 titles, not 43%.
LEAST_FILLED = 0.9
BERT_LIKE_MODULES = ("Transformer", "Pooling", "Normalize")
SENTENCE_TRANSFORMERS_POOLING: dict[str, Any] = {"mean": "mean", "last": "lasttoken", "cls": "cls"}
VLLM_POOLING: dict[str, Any] = {"mean": "MEAN", "last": "LAST", "cls": "CLS"}


class EncoderError(RuntimeError):
    """A model cannot be found or started, or a text has no usable vector."""


class RefusedTexts(EncoderError):
    """Some texts have no usable vector; the others of the call have one when asked for without them."""

    def __init__(self, message: str, reasons: Mapping[int, str]) -> None:
        super().__init__(message)
        self.reasons = dict(reasons)  # by position


class EncoderDied(EncoderError):
    """The engine is gone for good; only a new process helps."""


class Meter:
    """Counts the tokens that an engine took, and its seconds."""

    def __init__(self) -> None:
        self.tokens, self.seconds = 0, 0.0

    @contextlib.contextmanager
    def engine(self, tokens: int) -> Iterator[None]:
        """Count a call over this many tokens."""
        started = time.monotonic()
        yield
        self.tokens += tokens
        self.seconds += time.monotonic() - started


@dataclass(frozen=True)
class Reading:
    """How much of each text is left in its tokens; an entry a text.

    A token is unknown when it stands for whatever the tokenizer has no token for. A text is unreadable when it has at
    least as many unknown tokens as known ones with a letter or a digit, or no token at all. Special tokens, the prompt
    and what was cut off at ``encoder.max_length`` do not count.

    Shapes: (n,) each.
    """

    lengths: npt.NDArray[np.int64]  # tokens, the prompt's and special ones included
    unknown: npt.NDArray[np.bool_]  # has an unknown token
    unreadable: npt.NDArray[np.bool_]
    twin: npt.NDArray[np.int64]  # position of the first text with the same tokens, often the text's own
    full: npt.NDArray[np.bool_]  # as many tokens as are kept of any text: more may have been cut off


class Encoder(Protocol):
    """Turns texts into vectors; the same text gives the same vector up to float addition order, whatever its batch.

    One call of ``encode`` at a time; ``tokenize`` may run meanwhile in another thread.
    """

    width: int
    meter: Meter

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Return what ``encode`` would make of the texts first: the tokens of each, truncated."""
        ...

    def reading(self, texts: Sequence[str], tokens: Tokens) -> Reading:
        """Return how much of the texts is left in what ``tokenize`` returned for them."""
        ...

    def encode(self, texts: Sequence[str], tokens: Tokens | None = None) -> Vectors:
        """Return one vector a text, in the order of the texts; thousands of texts a call is normal.

        Args:
            tokens: what ``tokenize`` returned for these texts, where the caller had it done ahead.

        Shapes:
            float32 [n, T].

        Raises:
            RefusedTexts: a text has no token, or its vector is zero or not finite.
            EncoderDied: the engine is gone.
        """
        ...


def make_encoder(settings: EncoderSettings, embed: EmbedSettings) -> Encoder:
    """Load the encoder that ``settings.backend`` names.

    Raises:
        EncoderError: the model is not there, is no plain text encoder, or does not start.
    """
    if settings.backend == "hash":
        return HashEncoder(settings)
    if settings.backend == "vllm":
        return VllmEncoder(settings, embed)
    return SentenceTransformersEncoder(settings, embed)


def fingerprint(settings: EncoderSettings) -> dict[str, Any]:
    """Return what the vectors depend on; equal fingerprints mean equal vectors (cosine 0.9999 between vllm and
    sentence-transformers, which therefore share one).

    A folder counts by its content and a hub model by its commit, so neither a path nor a cache changes the result.
    Reads the weights of a folder: 0.1 s per 100 MB.

    Raises:
        EncoderError: the model is not there, or is a hub model without a pinned commit.
    """
    shared = {"normalize": settings.normalize, "prompt": settings.prompt, "max_length": settings.max_length}
    if settings.backend == "hash":
        return {"model": "alpharec-hash", "revision": "1", "width": settings.hash_width, **shared}
    folder = _local_folder(settings.model)
    if folder is None:
        identity = {"model": settings.model, "revision": _pinned(settings)}
    else:
        identity = {"model": "folder", "revision": f"sha256:{_content_digest(folder)}"}
    return {**identity, "pooling": settings.pooling, "dtype": settings.dtype, **shared}


def fingerprint_digest(settings: EncoderSettings) -> str:
    """Return the first 16 hex digits of the fingerprint's sha256."""
    return digest(fingerprint(settings))[:16]


def resolve_model(settings: EncoderSettings) -> Path:
    """Return the folder with the model's files, fetching a pinned hub model that the local cache lacks.

    Raises:
        EncoderError: there is no such model, or it is a hub model without a pinned commit.
    """
    return _local_folder(settings.model) or _snapshot(settings.model, _pinned(settings))


class HashEncoder:
    """Feature hashing for tests: a text is the sum of a fixed vector of signs a word; shared words bring texts near."""

    def __init__(self, settings: EncoderSettings) -> None:
        self.width, self.meter = settings.hash_width, Meter()
        self._settings = settings

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        return _words(texts, self._settings)

    def reading(self, texts: Sequence[str], tokens: Tokens) -> Reading:
        return _read_words(tokens, self._settings)

    def encode(self, texts: Sequence[str], tokens: Tokens | None = None) -> Vectors:
        vectors = np.empty((len(texts), self.width), np.float32)
        words = self.tokenize(texts) if tokens is None else tokens
        with self.meter.engine(sum(map(len, words))):
            for position, found in enumerate(words):
                vectors[position] = np.sum([self._signs(word) for word in found], axis=0)
        return _finished(vectors, texts, normalize=self._settings.normalize)

    def _signs(self, word: str) -> npt.NDArray[np.int32]:
        bits = np.frombuffer(hashlib.shake_128(word.encode()).digest((self.width + 7) // 8), np.uint8)
        return np.unpackbits(bits)[: self.width].astype(np.int32) * 2 - 1


class SentenceTransformersEncoder:
    """A Transformer and a Pooling module of sentence-transformers, on the GPU where there is one."""

    def __init__(self, settings: EncoderSettings, embed: EmbedSettings) -> None:
        import torch
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

        folder = resolve_model(settings)
        self._settings, self.meter = settings, Meter()
        self._batch_tokens = embed.batch_tokens
        self._tokens = _Tokenizer(folder, settings)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._device.type == "cpu":
            _keep_freed_memory()
        options = {"dtype": getattr(torch, settings.dtype), "use_safetensors": True, "trust_remote_code": False}
        try:
            transformer = Transformer(str(folder), model_kwargs=options)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise EncoderError(f"{folder}: sentence-transformers cannot load it ({error})") from error
        self.width = int(transformer.get_embedding_dimension())
        self._transformer = transformer.to(self._device).eval()
        self._pooling = Pooling(self.width, SENTENCE_TRANSFORMERS_POOLING[settings.pooling])

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        return self._tokens.ids(texts)

    def reading(self, texts: Sequence[str], tokens: Tokens) -> Reading:
        return self._tokens.reading(texts, tokens)

    def encode(self, texts: Sequence[str], tokens: Tokens | None = None) -> Vectors:
        tokens = _checked(texts, self.tokenize(texts) if tokens is None else tokens)
        vectors = np.empty((len(texts), self.width), np.float32)
        lengths = np.array([len(ids) for ids in tokens], np.int64)
        # Longest first: padding is small, and a batch too big for the memory fails at once.
        order = np.argsort(-lengths, kind="stable")
        with self.meter.engine(int(lengths.sum())):
            while len(order):
                longest = int(lengths[order[0]])
                near = int(np.searchsorted(-lengths[order], -LEAST_FILLED * longest, side="right"))
                size = max(1, min(near, self._batch_tokens // longest))
                batch, order = order[:size], order[size:]
                vectors[batch] = self._forward([tokens[position] for position in batch])
        return _finished(vectors, texts, normalize=self._settings.normalize)

    def _forward(self, tokens: Sequence[Sequence[int]]) -> Vectors:
        import torch

        longest = len(tokens[0])
        lengths = torch.tensor([len(ids) for ids in tokens])
        mask_nL = (torch.arange(longest) < lengths[:, None]).long()
        ids_nL = torch.full((len(tokens), longest), self._tokens.padding, dtype=torch.long)
        ids_nL[mask_nL.bool()] = torch.from_numpy(np.fromiter(itertools.chain.from_iterable(tokens), np.int64))
        with torch.inference_mode():
            features = {"input_ids": ids_nL.to(self._device), "attention_mask": mask_nL.to(self._device)}
            features = self._transformer(features)
            # vLLM pools in float32 too; a mean in bfloat16 would cost three digits.
            features["token_embeddings"] = features["token_embeddings"].float()
            return cast(Vectors, self._pooling(features)["sentence_embedding"].cpu().numpy())


def _keep_freed_memory() -> None:
    """Let glibc keep what one batch frees for the next, in this process; other C libraries are left as they are.

    To give it back and ask for it again, page by page, took a seventh of the time on 2 CPU cores.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((MALLOC_MMAP_THRESHOLD, 1 << 25), (MALLOC_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(option, value)


class VllmEncoder:
    """A vLLM engine, on a GPU in a process of its own, fed with token ids."""

    def __init__(self, settings: EncoderSettings, embed: EmbedSettings) -> None:
        folder = resolve_model(settings)
        self._settings, self.meter = settings, Meter()
        self._tokens = _Tokenizer(folder, settings)
        self._engine = _start_engine(folder, settings, embed)
        self.width = int(self._engine.model_config.embedding_size)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        return self._tokens.ids(texts)

    def reading(self, texts: Sequence[str], tokens: Tokens) -> Reading:
        return self._tokens.reading(texts, tokens)

    def encode(self, texts: Sequence[str], tokens: Tokens | None = None) -> Vectors:
        from vllm.v1.engine.exceptions import EngineDeadError

        if not texts:
            return np.empty((0, self.width), np.float32)
        tokens = _checked(texts, self.tokenize(texts) if tokens is None else tokens)
        order = np.argsort([-len(ids) for ids in tokens], kind="stable")
        prompts = [{"prompt_token_ids": tokens[position]} for position in order]
        try:
            with self.meter.engine(sum(map(len, tokens))):
                outputs = self._engine.encode(prompts, pooling_task="embed", use_tqdm=False)
        except Exception as error:
            # One that fails in this process lives on, and would answer what it left undone beside the next call's.
            if isinstance(error, EngineDeadError) or self._engine.llm_engine.has_unfinished_requests():
                raise EncoderDied(f"vllm: the engine died ({error}); its log says why; start a new process") from error
            raise
        vectors = np.empty((len(texts), self.width), np.float32)
        for position, output in zip(order, outputs, strict=True):
            vectors[position] = output.outputs.data.float().numpy()
        return _finished(vectors, texts, normalize=self._settings.normalize)


class Generator:
    """A vLLM engine that answers prompts, always with the likeliest token.

    A model with a chat template is asked by it, without thinking aloud where it knows how; any other goes on with the
    prompt.

    ``model``: a folder, or a hub name with its commit, ``NAME@COMMIT``.

    Raises:
        EncoderError: the model is not there, or does not start.
    """

    def __init__(self, model: str, embed: EmbedSettings) -> None:
        name, _, revision = model.partition("@")
        folder = resolve_model(EncoderSettings(model=name, revision=revision))
        options = _engine_options(embed.num_gpus)
        import vllm

        shared: dict[str, Any] = {"runner": "generate", "trust_remote_code": False, "load_format": "safetensors"}
        try:
            self._engine = vllm.LLM(str(folder), **shared | options | embed.engine_options)
        except (RuntimeError, ValueError, TypeError, OSError, AssertionError, ImportError) as error:
            raise EncoderError(f"{folder}: vllm did not start ({type(error).__name__}: {error})") from error
        self._sampling = vllm.SamplingParams(temperature=0.0, max_tokens=GENERATED_TOKENS)
        self._chats = getattr(self._engine.get_tokenizer(), "chat_template", None) is not None

    def write(self, prompts: Sequence[str]) -> list[str]:
        """Return the first line of each answer that is not empty; "" where none is."""
        shared: dict[str, Any] = {"sampling_params": self._sampling, "use_tqdm": False}
        if self._chats:
            asked: list[Any] = [[{"role": "user", "content": prompt}] for prompt in prompts]
            outputs = self._engine.chat(asked, chat_template_kwargs={"enable_thinking": False}, **shared)
        else:
            outputs = self._engine.generate(list(prompts), **shared)
        lines = (output.outputs[0].text.splitlines() for output in outputs)
        return [next(filter(None, map(str.strip, answer)), "") for answer in lines]


class _Tokenizer:
    """The token ids of texts, special tokens included, at most ``max_length`` a text."""

    def __init__(self, folder: Path, settings: EncoderSettings) -> None:
        from transformers import AutoTokenizer

        _check_folder(folder, settings.max_length)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, truncation_side="right")
        except (OSError, ValueError) as error:
            raise EncoderError(f"{folder}: no tokenizer can be read ({error}); save one beside the model") from error
        self._settings, self._unknown = settings, _unknown_id(self._tokenizer)
        padding = self._tokenizer.pad_token_id
        self.padding = 0 if padding is None else int(padding)  # masked; a real id matters to RoBERTa's positions only

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self._ids(_prompted(texts, self._settings), special=True)

    def _ids(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        if not texts:
            return []
        encoded = self._tokenizer(
            texts,
            add_special_tokens=special,
            padding=False,
            truncation=True,
            max_length=self._settings.max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return cast(list[list[int]], encoded["input_ids"])

    def reading(self, texts: Sequence[str], tokens: Tokens) -> Reading:
        lengths, ids = _concatenated(tokens)
        ends = lengths.cumsum()
        places = zip((ends - lengths).tolist(), ends.tolist(), strict=True)
        content = ids.tobytes()
        twin = _first_equal([content[ids.itemsize * start : ids.itemsize * end] for start, end in places])
        unknown, unreadable = np.zeros(len(lengths), bool), np.zeros(len(lengths), bool)
        special, empty = self._without_title
        counts = np.bincount(np.searchsorted(ends, np.flatnonzero(ids == self._unknown), "right"), minlength=len(ends))
        # Few texts, as a rule: only theirs are worth looking at one by one, without prompt and special tokens.
        doubtful = np.flatnonzero((lengths > 0) & ((counts > special) | (lengths <= empty)))
        full = lengths >= self._settings.max_length
        room = np.where(full, np.maximum(lengths - empty, 0), self._settings.max_length)[doubtful]
        unknown[doubtful], unreadable[doubtful] = self._judged([texts[row] for row in doubtful.tolist()], room.tolist())
        return Reading(lengths, unknown, unreadable, twin, full)

    @functools.cached_property
    def _without_title(self) -> tuple[int, int]:
        """The unknown tokens among the special ones of any text, and the tokens of the prompt around nothing.

        A tokenizer may end each text with a token that it also names its unknown one.
        """
        special, prompt = self._ids([""], special=True)[0], self.ids([""])[0]
        return special.count(self._unknown), len(prompt)

    def _judged(self, texts: Sequence[str], room: Sequence[int]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Return which of the texts have an unknown token, and which are unreadable. Shapes: -> (n,), (n,).

        ``room``: the tokens that are kept of each.
        """
        bare = self._ids([_valid_unicode(text) for text in texts], special=False)
        lengths, ids = _concatenated([tokens[:most] for tokens, most in zip(bare, room, strict=True)])
        kinds, which = np.unique(ids, return_inverse=True)
        words = [any(map(str.isalnum, word)) for word in self._tokenizer.convert_ids_to_tokens(kinds.tolist())]
        says = np.array(words, bool)[which] if len(ids) else np.zeros(0, bool)
        text = np.repeat(np.arange(len(lengths)), lengths)
        unknown = np.bincount(text[ids == self._unknown], minlength=len(lengths))
        known = np.bincount(text[says & (ids != self._unknown)], minlength=len(lengths))
        return unknown > 0, (unknown >= known) & ((unknown > 0) | (lengths == 0))


def _unknown_id(tokenizer: Any) -> int:
    """Return the token that stands for whatever has none, -1 where everything has one, as in a BPE of bytes.

    Such a tokenizer may name an unknown token all the same, the one that ends a text; its model knows better.
    """
    model: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if hasattr(model, "unk_token"):
        token = None if model.unk_token is None else model.token_to_id(model.unk_token)
    else:
        token = tokenizer.unk_token_id
    return -1 if token is None else int(token)


def _concatenated(tokens: Sequence[Sequence[int]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Return the number of each text's tokens, and all their ids."""
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
    return lengths, np.fromiter(itertools.chain.from_iterable(tokens), np.int32, int(lengths.sum()))


def _first_equal(values: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    """Return for each value the position of the first one that equals it."""
    first: dict[Hashable, int] = {}
    found = (first.setdefault(value, position) for position, value in enumerate(values))
    return np.fromiter(found, np.int64, len(values))


def _checked(texts: Sequence[str], tokens: Tokens) -> Tokens:
    """Refuse texts without a token."""
    empty = [position for position, ids in enumerate(tokens) if not ids]
    if empty:
        raise RefusedTexts(
            f"{len(empty)} of {len(texts)} texts have no token ({_name(texts, empty)}); "
            "leave them out, or give encoder.prompt some words",
            dict.fromkeys(empty, "no token"),
        )
    return tokens


def _start_engine(folder: Path, settings: EncoderSettings, embed: EmbedSettings) -> Any:
    refused = sorted(REFUSED_ENGINE_OPTIONS.intersection(embed.engine_options))
    if refused:
        raise EncoderError(
            f"embed.engine_options must not change the vectors (got {', '.join(refused)}); "
            "set encoder.model, pooling, dtype, max_length instead"
        )
    shared = _engine_options(embed.num_gpus)
    import vllm
    from vllm.config import PoolerConfig

    options: dict[str, Any] = {
        "runner": "pooling",
        "convert": "embed",
        "dtype": settings.dtype,
        "max_model_len": settings.max_length,
        # Explicit, else a modules.json beside the model decides; normalisation is ours, in float32, for every backend.
        "pooler_config": PoolerConfig(pooling_type=VLLM_POOLING[settings.pooling], use_activation=False),
        "trust_remote_code": False,
        "load_format": "safetensors",
        "enable_prefix_caching": False,
        **shared,
        **embed.engine_options,
    }
    try:
        return vllm.LLM(str(folder), **options)
    # The engine starts in another process, whose errors come back as any of these.
    except (RuntimeError, ValueError, TypeError, OSError, AssertionError, ImportError) as error:
        raise EncoderError(
            f"{folder}: vllm did not start ({type(error).__name__}: {error}); its log above has the cause. "
            "Too little memory: lower embed.engine_options.gpu_memory_utilization or kv_cache_memory_bytes. "
            "A model vllm lacks: set encoder.backend to sentence-transformers"
        ) from error


def _engine_options(num_gpus: float) -> dict[str, Any]:
    """Return what any engine is started with, the processors' part; imports vLLM with an environment that suits."""
    # vLLM reads these while it is imported. What a person set stays.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # a warning for each weight it casts
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # Its own binding pins every engine of a machine to the same cores; unbound, Ray's OMP_NUM_THREADS counts.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        # In this process, which is the engine's anyway: three more processes would share the same cores, each with
        # vLLM's imports, and the engine would start in 33 s where it takes 15, in twice the memory.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        # An explicit cache also lets vLLM skip its check that 92% of the machine's memory is free.
        explicit = {} if os.environ.get("VLLM_CPU_KVCACHE_SPACE") else {"kv_cache_memory_bytes": CPU_KV_CACHE_BYTES}
        return {"enforce_eager": True, **explicit}
    # Two actors on one GPU: each takes its share of the 0.92 that vLLM takes by default.
    return {"gpu_memory_utilization": round(0.9 * num_gpus, 3)} if 0 < num_gpus < 1 else {}


def _local_folder(model: str) -> Path | None:
    if model.startswith("package:"):
        return _package_folder(model.removeprefix("package:"))
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or model.startswith("."):
        raise EncoderError(f"encoder.model: no such folder (got {model!r}); a hub name reads owner/name")
    return None


def _package_folder(package: str) -> Path:
    # find_spec does not run the package's code.
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    for location in (found.submodule_search_locations or []) if found else []:
        folder = Path(location) / "model"
        if folder.is_dir():
            return folder
    raise EncoderError(
        f"encoder.model: no installed Python package {package!r} with a folder model/; install it, or pass a folder"
    )


def _pinned(settings: EncoderSettings) -> str:
    if not re.fullmatch(r"[0-9a-f]{40}", settings.revision):
        raise EncoderError(
            f"encoder.revision must pin the hub model {settings.model} to a commit, 40 hex digits "
            f"(got {settings.revision!r}); its page at huggingface.co/{settings.model}/commits lists them"
        )
    return settings.revision


def _snapshot(model: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=[*READ_FILES, *CHECKED_FILES]))
    # Offline, unknown, gated and unreachable are all subclasses of these two.
    except (OSError, ValueError) as error:
        raise EncoderError(
            f"{model}@{revision}: neither in the local cache nor fetched ({error}); "
            "download it where there is a network and pass its folder as encoder.model"
        ) from error


def _content_digest(folder: Path) -> str:
    """Return the sha256 over the names and contents of the files that decide a vector."""
    found = sorted({path for pattern in READ_FILES for path in folder.glob(pattern)}, key=lambda path: path.name)
    contents = {}
    for path in found:
        with path.open("rb") as file:
            contents[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    _check_weights(folder, contents)
    return digest(contents)


def _check_weights(folder: Path, files: Mapping[str, Any]) -> None:
    if "config.json" not in files or not any(name.endswith(".safetensors") for name in files):
        raise EncoderError(
            f"{folder}: not a model folder: needs config.json and *.safetensors (got {', '.join(files) or 'neither'}); "
            "convert pickled weights with model.save_pretrained"
        )


def _check_folder(folder: Path, max_length: int) -> None:
    """Refuse what the settings cannot express and the two backends would treat differently."""
    _check_weights(folder, {path.name: path for path in folder.iterdir()})
    modules = [module["type"].rsplit(".", 1)[-1] for module in _read_json(folder / "modules.json", [])]
    unknown = [module for module in modules if module not in BERT_LIKE_MODULES]
    if unknown:
        raise EncoderError(f"{folder}/modules.json: one step too many, no backend takes it (got {', '.join(unknown)})")
    config = _read_json(folder / "config.json", {})
    sentence = _read_json(folder / "sentence_bert_config.json", {})
    if sentence.get("do_lower_case"):
        raise EncoderError(f"{folder}/sentence_bert_config.json: do_lower_case is not applied; let the tokenizer do it")
    # vLLM refuses longer texts than the model's own longest as well, but in words nobody can act on.
    positions = config.get("max_position_embeddings")
    offset = 2 if config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
    longest = sentence.get("max_seq_length") or (positions and positions - offset)
    if longest and max_length > longest:
        raise EncoderError(f"{folder}: reads at most {longest} tokens; lower encoder.max_length (got {max_length})")


def _read_json(path: Path, default: Any) -> Any:
    return json.loads(path.read_text()) if path.is_file() else default


def read_texts(settings: EncoderSettings, texts: Sequence[str]) -> Reading:
    """Return how the encoder would read the texts; no engine starts.

    Raises:
        EncoderError: the model is not there.
    """
    if settings.backend == "hash":
        return _read_words(_words(texts, settings), settings)
    tokenizer = _Tokenizer(resolve_model(settings), settings)
    return tokenizer.reading(texts, tokenizer.ids(texts))


def _words(texts: Sequence[str], settings: EncoderSettings) -> list[list[str]]:
    prompted = _prompted(texts, settings)
    return [(re.findall(r"\w+", text.lower()) or [text])[: settings.max_length] for text in prompted]


def _read_words(words: Tokens, settings: EncoderSettings) -> Reading:
    """Return how the hash encoder reads texts: it knows every word."""
    lengths, none = np.fromiter(map(len, words), np.int64, len(words)), np.zeros(len(words), bool)
    return Reading(lengths, none, none, _first_equal([*map(tuple, words)]), lengths >= settings.max_length)


def _prompted(texts: Sequence[str], settings: EncoderSettings) -> list[str]:
    return [settings.prompt.replace("{title}", _valid_unicode(text)) for text in texts]


def _valid_unicode(text: str) -> str:
    """Join surrogate pairs and turn lone surrogates into U+FFFD; tokenizers refuse a batch that holds one."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _finished(vectors: Vectors, texts: Sequence[str], *, normalize: bool) -> Vectors:
    """Check each vector and scale it to norm 1 where asked."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    broken = np.flatnonzero(~(np.isfinite(norms) & (norms > 0))).tolist()
    if broken:
        raise RefusedTexts(
            f"{len(broken)} of {len(texts)} texts have a vector that is zero or not finite ({_name(texts, broken)}); "
            "float16 overflows in some models: try encoder.dtype bfloat16 or float32",
            dict.fromkeys(broken, "its vector is zero or not finite"),
        )
    return (vectors / norms[:, None]).astype(np.float32) if normalize else vectors


def _name(texts: Sequence[str], positions: Sequence[int]) -> str:
    return ", ".join(f"position {position}: {texts[position][:60]!r}" for position in positions[:3])
