"""Encoders against plain transformers and against each other; run as a script it encodes in a process of its own."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from alpharec.config import EmbedSettings, EncoderSettings
from alpharec.encoders import (
    GENERATED_TOKENS,
    EncoderError,
    Generator,
    fingerprint,
    fingerprint_digest,
    make_encoder,
    read_texts,
    resolve_model,
)

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed here")

Results = tuple[list[np.ndarray], list[list[str]]]  # vectors of each engine, what each generator wrote

NAMES = [
    "Dune",
    "The Left Hand of Darkness",
    "Super Mario Galaxy - Nintendo Wii",
    "Léon: The Professional (Director's Cut) [Blu-ray]",
    "千と千尋の神隠し",
    "USB-C cable, 2 m",
    "Gran Turismo 4 with steering wheel, pedals and a guide to all 721 cars",
    "It's a Wonderful Life (60th Anniversary Edition)",
]
EDITIONS = [
    "",
    " (Paperback)",
    ", Volume 3",
    " - Collector's Edition with 48-page booklet and a poster",
    " " + "& more " * 15,
]
TITLES = [name + edition for name in NAMES for edition in EDITIONS] + [
    f"{name} {year}" for name in NAMES for year in (1999, 2014, 2023)
]


def encode(texts: list[str], **settings: Any) -> np.ndarray:
    return make_encoder(EncoderSettings(**settings), EmbedSettings(batch_tokens=256)).encode(texts)


def run_in_own_process(folder: Path, **given: Any) -> Results:
    """Run engines one after the other, see ``main``; their memory is free again when this returns."""
    request, vectors, written = (folder / name for name in ("request.json", "vectors.npz", "written.json"))
    request.write_text(json.dumps(given))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, __file__, request, vectors, written],
        env=environment, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return list(np.load(vectors, allow_pickle=False).values()), json.loads(written.read_text())


@functools.cache
def loaded(folder: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


def token_states(folder: Path, text: str, max_length: int) -> np.ndarray:
    """Return the last hidden states of one text, by transformers alone and without padding."""
    import torch

    tokenizer, model = loaded(folder)
    tokens = tokenizer(text, truncation=True, max_length=max_length, padding=False, return_tensors="pt")
    with torch.inference_mode():
        return model(input_ids=tokens["input_ids"]).last_hidden_state[0].numpy()


def pooled(states: np.ndarray, pooling: str) -> np.ndarray:
    return {"mean": states.mean(axis=0), "last": states[-1], "cls": states[0]}[pooling]


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return (left * right).sum(axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


@pytest.fixture(scope="module")
def minilm() -> Path:
    return resolve_model(EncoderSettings())


@pytest.fixture(scope="module")
def causal_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a word tokenizer; its modules.json asks for mean and norm 1, the tests for neither."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("causal")
    words = ["[UNK]", *sorted({word for title in TITLES for word in title.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config)
    # A final norm of all ones could be left out without a test seeing it.
    model.model.norm.weight.data.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 128, "pooling_mode_mean_tokens": True})
    )
    return folder


def test_hash_vectors_of_titles_that_share_words_are_near() -> None:
    same, near, far = encode(
        ["Dune Messiah, book two", "dune MESSIAH", "Super Mario Galaxy"], backend="hash", hash_width=256
    )
    assert same @ near > 0.5  # 2 of 4 words: sqrt(2 / 4) = 0.71 in the mean
    assert abs(same @ far) < 0.3  # 0 in the mean, 1 / sqrt(256) = 0.06 its deviation


def test_hash_vectors_do_not_depend_on_the_process() -> None:
    # `printf dune | openssl dgst -shake128 -xoflen 1` prints 6c = 0b01101100; a 1 is +, a 0 is -.
    vector = encode(["Dune"], backend="hash", hash_width=8, normalize=False)
    assert vector.tolist() == [[-1, 1, 1, -1, 1, 1, -1, -1]]


def test_hash_vector_of_a_text_without_words_is_a_unit_vector() -> None:
    assert np.linalg.norm(encode(["", "!!!", "\ud800"], backend="hash"), axis=1) == pytest.approx([1, 1, 1])


def test_a_zero_vector_names_its_text() -> None:
    # Two signs only: some two words cancel.
    words = [f"alpha word{number}" for number in range(40)]
    with pytest.raises(EncoderError, match=r"zero or not finite \(position \d+: 'alpha word"):
        encode(words, backend="hash", hash_width=2)


@pytest.mark.parametrize(
    "change",
    [
        {"pooling": "last"},
        {"normalize": False},
        {"prompt": "film: {title}"},
        {"max_length": 64},
        {"dtype": "bfloat16"},
        {"backend": "hash"},
        {"model": "sentence-transformers/all-MiniLM-L6-v2", "revision": "c" * 40},
    ],
    ids=lambda change: next(iter(change)),
)
def test_fingerprint_changes_with_each_setting(change: dict[str, Any]) -> None:
    assert fingerprint_digest(EncoderSettings(**change)) != fingerprint_digest(EncoderSettings())


def test_fingerprint_of_a_hub_model_changes_with_its_revision() -> None:
    first, second = (EncoderSettings(model="owner/name", revision=digit * 40) for digit in "ab")
    assert fingerprint(first) | {"revision": "b" * 40} == fingerprint(second)


def test_both_real_backends_share_a_fingerprint() -> None:
    assert fingerprint(EncoderSettings(backend="vllm")) == fingerprint(EncoderSettings(backend="sentence-transformers"))


def test_fingerprint_follows_the_content_of_a_folder_not_its_path(minilm: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(minilm, tmp_path / "moved")
    (moved / "README.md").write_text("another text")
    assert fingerprint(EncoderSettings(model=str(moved))) == fingerprint(EncoderSettings())
    vocabulary = json.loads((moved / "tokenizer.json").read_text())
    (moved / "tokenizer.json").write_text(json.dumps(vocabulary | {"truncation": None}))
    assert fingerprint(EncoderSettings(model=str(moved))) != fingerprint(EncoderSettings())


@pytest.mark.parametrize("revision", ["", "main", "c0ffee"])
def test_hub_model_without_a_pinned_commit_is_refused(revision: str) -> None:
    with pytest.raises(EncoderError, match=r"encoder.revision must pin the hub model owner/name to a commit"):
        make_encoder(EncoderSettings(model="owner/name", revision=revision), EmbedSettings())


@pytest.mark.parametrize(
    ("model", "why"), [("package:no_such_package", "no installed Python package"), ("./nowhere", "no such folder")]
)
def test_missing_model_is_refused(model: str, why: str) -> None:
    with pytest.raises(EncoderError, match=why):
        fingerprint(EncoderSettings(model=model))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    for use in (fingerprint, lambda settings: make_encoder(settings, EmbedSettings())):
        with pytest.raises(EncoderError, match=r"needs config.json and \*.safetensors"):
            use(EncoderSettings(model=str(tmp_path)))


def test_a_projection_after_the_pooling_is_refused(minilm: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(minilm, tmp_path / "dense")
    modules = json.loads((minilm / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (changed / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(EncoderError, match=r"no backend takes it \(got Dense\)"):
        encode(["Dune"], model=str(changed))


def test_max_length_beyond_the_model_is_refused() -> None:
    with pytest.raises(EncoderError, match=r"reads at most 256 tokens; lower encoder.max_length \(got 300\)"):
        encode(["Dune"], max_length=300)


@needs_vllm
def test_engine_options_that_change_vectors_are_refused() -> None:
    options = EmbedSettings(engine_options={"dtype": "float16", "trust_remote_code": True})
    with pytest.raises(EncoderError, match=r"must not change the vectors \(got dtype, trust_remote_code\)"):
        make_encoder(EncoderSettings(backend="vllm"), options)


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_sentence_transformers_equals_transformers(minilm: Path, pooling: str) -> None:
    # Lengths far from sorted, more than one batch, texts beyond max_length: order, padding and truncation at once.
    titles = TITLES[::3]
    vectors = encode(titles, pooling=pooling, normalize=False, max_length=16)
    expected = [pooled(token_states(minilm, title, 16), pooling) for title in titles]
    np.testing.assert_allclose(vectors, expected, atol=1e-5)  # float32, other order of additions


def test_normalised_vectors_have_norm_one_and_the_same_direction() -> None:
    raw, unit = (encode(TITLES[:8], normalize=normalize) for normalize in (False, True))
    np.testing.assert_allclose(unit, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-6)


def test_prompt_goes_around_the_title() -> None:
    wrapped = encode(["Dune {x}"], prompt="film: {title}!")
    np.testing.assert_allclose(wrapped, encode(["film: Dune {x}!"]), atol=1e-6)


def test_odd_texts_do_not_break_a_batch() -> None:
    odd = ["", "lone \ud800 surrogate", "pair \ud83d\ude00", "word " * 20_000, "Dune"]
    vectors = encode(odd)
    np.testing.assert_allclose(vectors[1], encode(["lone \ufffd surrogate"])[0], atol=1e-6)
    np.testing.assert_allclose(vectors[3], encode(["word " * 126])[0], atol=1e-6)  # 128 tokens less [CLS] and [SEP]
    np.testing.assert_allclose(vectors[4], encode(["Dune"])[0], atol=1e-6)


def test_no_texts_give_no_vectors() -> None:
    assert encode([]).shape == (0, 384)


def test_a_text_without_a_token_is_named(causal_model: Path) -> None:
    with pytest.raises(EncoderError, match=r"1 of 2 texts have no token \(position 1: ''\)"):
        encode(["Dune", ""], model=str(causal_model), pooling="last")


def test_last_pooling_of_a_causal_model_takes_the_last_real_token(causal_model: Path) -> None:
    vectors = encode(TITLES, model=str(causal_model), pooling="last", normalize=False)
    expected = [pooled(token_states(causal_model, title, 128), "last") for title in TITLES]
    np.testing.assert_allclose(vectors, expected, atol=1e-4)  # entries up to 4, other order of additions


# ---------------------------------------------------------------- what tokens keep of a text


MUGS, BOOKS = "กาแฟคั่วบด", "อ่านหนังสือ"  # one unknown token each to the English model
READ = {  # (has an unknown token, is unreadable) by the English model
    "Dune": (False, False),
    "!!!": (False, False),
    MUGS: (True, True),
    f"{BOOKS} !": (True, True),
    f"{MUGS} (2019)": (True, True),  # one known against one unknown, punctuation aside
    f"{MUGS} (2019), new": (True, False),
    f"Coffee {MUGS} {BOOKS}": (True, True),
    f"Coffee from the hills {MUGS}": (True, False),
    "千と千尋の神隠し": (True, False),  # two of eight
    "Война и мир": (False, False),  # single letters, but known ones
    "\u200b": (False, True),  # nothing is left of it
}


@pytest.mark.parametrize("prompt", ["{title}", "film: {title}, for the whole family", f"{MUGS} {{title}} {BOOKS}"])
def test_a_text_is_unreadable_when_its_own_words_are_unknown_whatever_the_prompt(prompt: str) -> None:
    reading = read_texts(EncoderSettings(prompt=prompt), list(READ))
    found = zip(reading.unknown.tolist(), reading.unreadable.tolist(), strict=True)
    assert dict(zip(READ, found, strict=True)) == READ


def test_texts_of_the_same_tokens_and_full_ones_are_found() -> None:
    texts = ["Lamp", MUGS, "lamp", "blue lamp of glass", BOOKS, "blue lamp of oak"]
    reading = read_texts(EncoderSettings(max_length=5), texts)
    assert reading.twin.tolist() == [0, 1, 0, 3, 1, 3]
    assert reading.full.tolist() == [False, False, False, True, False, True]
    assert reading.lengths.tolist() == [3, 3, 3, 5, 3, 5], "[CLS] and [SEP] too"
    vectors = encode(texts, max_length=5)
    np.testing.assert_allclose(vectors, vectors[reading.twin], atol=1e-6)


def test_words_that_were_cut_off_do_not_make_a_text_readable() -> None:
    text = f"{MUGS} {BOOKS} in a bag of paper"
    for length, unreadable in ((4, True), (6, True), (7, False)):
        assert read_texts(EncoderSettings(max_length=length), [text]).unreadable.tolist() == [unreadable], length


def test_no_texts_are_no_reading() -> None:
    for settings in (EncoderSettings(), EncoderSettings(backend="hash")):
        assert read_texts(settings, []).unreadable.tolist() == []


def test_hash_encoder_reads_every_text_and_takes_case_for_nothing() -> None:
    reading = read_texts(EncoderSettings(backend="hash", max_length=4), ["Lamp", MUGS, "!!!", "LAMP", "a b c d e"])
    assert not reading.unknown.any()
    assert not reading.unreadable.any()
    assert reading.twin.tolist() == [0, 1, 2, 0, 4]
    assert reading.full.tolist() == [False, False, False, False, True]


END = "<|endoftext|>"


@pytest.mark.parametrize(("kind", "unreadable"), [("bytes", False), ("words", True)])
def test_an_unknown_token_that_also_ends_every_text_counts_where_it_stands_for_a_word(
    minilm: Path, tmp_path: Path, kind: str, unreadable: bool
) -> None:
    """Of bytes every text is made; a tokenizer of bytes names an unknown token nevertheless, as GPT-2's and Qwen's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=[END], show_progress=False)
        tokenizer.train_from_iterator(["Dune"], trainer)
    else:
        tokenizer = Tokenizer(models.WordLevel({END: 0, "Dune": 1}, unk_token=END))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 0)])
    folder = tmp_path / kind
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=END, eos_token=END).save_pretrained(folder)
    for file in ("config.json", "model.safetensors"):
        shutil.copy(minilm / file, folder)
    reading = read_texts(EncoderSettings(model=str(folder)), ["Dune", MUGS, "Dune Dune Dune " + BOOKS])
    assert reading.unreadable.tolist() == [False, unreadable, False]
    assert reading.unknown.tolist() == [False, unreadable, unreadable]


# ---------------------------------------------------------------- engines


BFLOAT16_CLS = {"dtype": "bfloat16", "pooling": "cls", "normalize": False, "max_length": 12}


TEMPLATE = "{% for message in messages %}Dune {{ message['content'] }} Volume{% endfor %}"


@pytest.fixture(scope="module")
def chat_model(causal_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The causal model with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(causal_model, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def vllm_results(causal_model: Path, chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Vectors of the default settings, of ``BFLOAT16_CLS`` and of the causal model; what the generators write.

    One process for all: the imports cost more than they.
    """
    causal = {"model": str(causal_model), "pooling": "last", "normalize": False}
    each = [{"backend": "vllm", **settings} for settings in ({}, BFLOAT16_CLS, causal)]
    generators = [str(causal_model), str(chat_model)]
    return run_in_own_process(tmp_path_factory.mktemp("vllm"), texts=TITLES, each=each, generators=generators)


@needs_vllm
@pytest.mark.parametrize(
    ("engine", "settings", "least", "rtol"),
    [
        (0, {}, 0.9999, 1e-3),
        (1, BFLOAT16_CLS, 0.999, 1e-2),  # eight bits of mantissa: 2**-8 an entry in each of 12 sublayers
    ],
    ids=["float32", "bfloat16-cls-truncated"],
)
def test_vllm_equals_sentence_transformers(
    vllm_results: Results,
    engine: int,
    settings: dict[str, Any],
    least: float,
    rtol: float,
) -> None:
    vectors, expected = vllm_results[0][engine], encode(TITLES, **settings)
    assert cosines(vectors, expected).min() >= least
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), np.linalg.norm(expected, axis=1), rtol=rtol)


@needs_vllm
def test_vllm_equals_transformers_on_a_causal_model(causal_model: Path, vllm_results: Results) -> None:
    expected = [pooled(token_states(causal_model, title, 128), "last") for title in TITLES]
    np.testing.assert_allclose(vllm_results[0][2], expected, atol=1e-3)  # entries up to 4, another attention kernel


@needs_vllm
def test_a_vllm_engine_that_failed_leaves_nothing_to_the_next_call(vllm_results: Results) -> None:
    np.testing.assert_array_equal(vllm_results[0][3], vllm_results[0][2])


@needs_vllm
@pytest.mark.parametrize("generator", [0, 1], ids=["goes on with the prompt", "is asked by its chat template"])
def test_a_generator_writes_what_transformers_writes(causal_model: Path, vllm_results: Results, generator: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(causal_model)
    model = AutoModelForCausalLM.from_pretrained(causal_model, dtype=torch.float32).eval()
    written, around = vllm_results[1][generator], ("{}", "Dune {} Volume")[generator]
    for text, prompt in zip(written, map(around.format, TITLES[::5]), strict=True):
        tokens = tokenizer(prompt, return_tensors="pt")["input_ids"]
        found = model.generate(tokens, do_sample=False, max_new_tokens=GENERATED_TOKENS)[0, tokens.shape[1] :]
        found = found[: -1 if found[-1] == model.config.eos_token_id else None]
        assert text == tokenizer.decode(found, skip_special_tokens=True).strip()
    assert len(set(written)) > 1


def after_a_failure(encoder: Any, texts: list[str]) -> np.ndarray:
    """Have the engine, which works in this process, fail in the middle of a call; return what the next one gives."""
    executor = encoder._engine.llm_engine.engine_core.engine_core.model_executor
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "execute_model", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            encoder.encode(texts[::-1])
    return encoder.encode(texts)


def main(request: str, vectors: str, written: str) -> None:
    """Encode the texts of a request by ``each`` settings, then let each of ``generators`` write on every fifth."""
    given, found = json.loads(Path(request).read_text()), []
    small: dict[str, Any] = {"kv_cache_memory_bytes": 1 << 26}  # vLLM fills it with zeros
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"  # the first engine as on a GPU, in another process
    for settings in given["each"]:
        encoder = None  # one engine at a time: the end of another would take this one's groups
        encoder = make_encoder(EncoderSettings(**settings), EmbedSettings(engine_options=small))
        found.append(encoder.encode(given["texts"]))
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the others as on processors
    found.append(after_a_failure(encoder, given["texts"]))
    del encoder
    np.savez(vectors, *found)
    exact = EmbedSettings(engine_options=small | {"dtype": "float32"})
    answers = [Generator(model, exact).write(given["texts"][::5]) for model in given["generators"]]
    Path(written).write_text(json.dumps(answers))
    # vLLM's daemon threads now and then abort an interpreter that ends by itself, and its engine outlives one that does
    # not: it would hold this process's output open.
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
