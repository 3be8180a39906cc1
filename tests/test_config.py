"""Settings: the paper's defaults, what overrides what, and a message for all that does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from alpharec.config import (
    CLOSED_FORMS,
    PAPER_HIDDEN_WIDTH,
    PRESETS,
    ModelSettings,
    Settings,
    SettingsError,
    idle_parameters,
    load_settings,
)

CONFIGS = sorted((Path(__file__).parents[1] / "jobs" / "configs").glob("*.toml"))
NUM_SETTINGS = 146


def toml(folder: Path, content: str) -> str:
    (folder / "settings.toml").write_text(content)
    return str(folder / "settings.toml")


def value(settings: BaseModel, key: str) -> Any:
    """Return what ``section.key`` is."""
    for part in key.split("."):
        settings = getattr(settings, part)
    return settings


def keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    """List every ``section.key``."""
    found = []
    for name, field in section.model_fields.items():
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        found += keys(field.annotation, f"{prefix}{name}.") if nested else [prefix + name]
    return found


# ---------------------------------------------------------------- defaults


@pytest.mark.parametrize(
    ("key", "expected"),
    {
        "train.learning_rate": 5e-4,
        "train.batch_size": 4096,
        "train.num_negatives": 256,
        "train.temperature": 0.15,
        "train.loss": "infonce",
        "train.precision": "float32",
        "train.max_epochs": 500,
        "train.evaluate_every": 5,
        "train.patience": 20,
        "train.select_on": "valid",
        "model.projector": "mlp",
        "model.num_layers": 2,
        "model.width": 64,
        "encoder.prompt": "{title}",
        "evaluate.select_k": 20,
        "evaluate.valid_mask": "train",
        "data.split": "ratio-random",
        "data.ratios": (0.4, 0.3, 0.3),
        "seed": 101,
        "preset": "paper",
    }.items(),
)
def test_defaults_are_the_papers(key: str, expected: Any) -> None:
    assert value(load_settings([]), key) == expected


def test_hidden_width_is_the_papers_for_its_text_widths() -> None:
    assert {width: ModelSettings().resolve_hidden_width(width) for width in PAPER_HIDDEN_WIDTH} == PAPER_HIDDEN_WIDTH
    # The paper's widths spend the same weights on any text width: d h + 64 h, within 5% of 4.9 million.
    assert all(abs(hidden * (text + 64) / 4.9e6 - 1) < 0.05 for text, hidden in PAPER_HIDDEN_WIDTH.items())
    assert ModelSettings().resolve_hidden_width(384) == 1536
    assert ModelSettings(hidden_width=7).resolve_hidden_width(4096) == 7


def test_a_new_setting_is_a_decision() -> None:
    """Change the number together with the README's table of settings, and only for what a user asks for."""
    assert len(keys(Settings)) == NUM_SETTINGS


# ---------------------------------------------------------------- where a value comes from


def test_the_command_line_beats_the_file_and_the_file_beats_the_default(tmp_path: Path) -> None:
    config = toml(tmp_path, "seed = 7\n[train]\nbatch_size = 8\nmax_epochs = 3\n[model]\nwidth = 32\n")
    settings = load_settings(["--config", config, "--train.batch-size", "16"])
    assert (settings.train.batch_size, settings.train.max_epochs, settings.train.patience) == (16, 3, 20)
    assert (settings.seed, settings.model.width) == (7, 32)


def test_config_may_stand_anywhere_and_be_joined_by_an_equals_sign(tmp_path: Path) -> None:
    config = toml(tmp_path, "seed = 7")
    for argv in (["--name", "a", "--config", config], [f"--config={config}", "--name=a"]):
        assert (load_settings(argv).seed, load_settings(argv).name) == (7, "a")


def test_options_are_accepted_with_underscores_and_with_hyphens() -> None:
    for option in ("--train.batch_size", "--train.batch-size"):
        assert load_settings([option, "16"]).train.batch_size == 16
        assert load_settings([f"{option}=16"]).train.batch_size == 16


def test_underscores_in_values_stay() -> None:
    settings = load_settings(["--data.time_column", "rated_at", "--data.title-column=long_name", "--name=a_b"])
    assert (settings.data.time_column, settings.data.title_column, settings.name) == ("rated_at", "long_name", "a_b")


@pytest.mark.parametrize(
    ("argv", "key", "expected"),
    [
        (["--train.use-gpu"], "train.use_gpu", True),
        (["--no-encoder.normalize"], "encoder.normalize", False),
        (["--evaluate.ks", "20,50"], "evaluate.ks", (20, 50)),
        (["--evaluate.ks", "20", "--evaluate.ks", "50"], "evaluate.ks", (20, 50)),
        (["--data.ratios", "0.8,0.1,0.1"], "data.ratios", (0.8, 0.1, 0.1)),
        (["--train.learning-rate", "1e-3"], "train.learning_rate", 1e-3),
        (["--encoder.prompt", "Title: {title}"], "encoder.prompt", "Title: {title}"),
        (["--data.min-rating", "4"], "data.min_rating", 4.0),
        (["--embed.engine-options", "tensor_parallel_size=2"], "embed.engine_options", {"tensor_parallel_size": "2"}),
    ],
)
def test_values_on_the_command_line(argv: list[str], key: str, expected: Any) -> None:
    assert value(load_settings(argv), key) == expected


def test_environment_and_dotenv_change_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SEED", "seed", "NAME", "STORAGE", "TRAIN", "TRAIN__BATCH_SIZE", "TRAIN.BATCH_SIZE", "RAY", "MODEL"):
        monkeypatch.setenv(name, '{"batch_size": 1}' if name in ("TRAIN", "RAY", "MODEL") else "1")
    (tmp_path / ".env").write_text("SEED=1\nTRAIN__BATCH_SIZE=1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["pytest", "--seed", "1"])
    assert load_settings([]) == Settings()
    assert load_settings([]).seed == 101


def test_without_arguments_the_process_own_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["jobs/train.py", "--seed", "9"])
    assert load_settings().seed == 9


def test_dumped_settings_load_as_they_were() -> None:
    settings = load_settings(["--preset", "no-contrast", "--evaluate.ks", "20", "--data.min-rating", "4"])
    assert Settings.model_validate(settings.model_dump(mode="json")) == settings


# ---------------------------------------------------------------- presets


@pytest.mark.parametrize(
    ("preset", "projector", "num_layers", "loss", "num_negatives", "kind", "order", "contrast"),
    [
        ("paper", "mlp", 2, "infonce", 256, "alpharec", "project-first", "none"),
        ("linear-mapping", "linear", 0, "infonce", 256, "alpharec", "project-first", "none"),
        ("no-mlp", "linear", 2, "infonce", 256, "alpharec", "project-first", "none"),
        ("residual", "residual", 2, "infonce", 256, "alpharec", "project-first", "none"),
        ("no-propagation", "mlp", 0, "infonce", 256, "alpharec", "project-first", "none"),
        ("no-contrast", "mlp", 2, "bpr", 1, "alpharec", "project-first", "none"),
        ("propagate-first", "mlp", 2, "infonce", 256, "alpharec", "propagate-first", "none"),
        ("text-propagation", "identity", 2, "infonce", 256, "alpharec", "project-first", "none"),
        ("text-neighbors", "identity", 0, "infonce", 256, "alpharec", "project-first", "none"),
        ("lightgcn", "mlp", 2, "infonce", 256, "id", "project-first", "none"),
        ("lightgcn-bpr", "mlp", 2, "bpr", 1, "id", "project-first", "none"),
        ("mf", "mlp", 0, "infonce", 256, "id", "project-first", "none"),
        ("mf-bpr", "mlp", 0, "bpr", 1, "id", "project-first", "none"),
        ("sgl", "mlp", 2, "infonce", 256, "id", "project-first", "dropped-edges"),
        ("sgl-bpr", "mlp", 2, "bpr", 1, "id", "project-first", "dropped-edges"),
        ("xsimgcl", "mlp", 2, "infonce", 256, "id", "project-first", "noise"),
        ("xsimgcl-bpr", "mlp", 2, "bpr", 1, "id", "project-first", "noise"),
        ("bc-loss", "mlp", 2, "bc", 256, "id", "project-first", "none"),
        ("multvae", "mlp", 2, "multinomial", 256, "multvae", "project-first", "none"),
        ("ease", "mlp", 2, "infonce", 256, "ease", "project-first", "none"),
        ("gf-cf", "mlp", 2, "infonce", 256, "gf-cf", "project-first", "none"),
    ],
)
def test_presets(
    preset: str, projector: str, num_layers: int, loss: str, num_negatives: int, kind: str, order: str, contrast: str
) -> None:
    model, train = (settings := load_settings(["--preset", preset])).model, settings.train
    found = (model.projector, model.num_layers, train.loss, train.num_negatives, model.kind, model.order)
    assert settings.contrast.kind == contrast
    assert found == (projector, num_layers, loss, num_negatives, kind, order)
    assert train.learning_rate == (1e-3 if kind in ("id", "multvae") else 5e-4)
    assert (train.max_epochs == 0) == (kind in CLOSED_FORMS or projector == "identity")
    assert model.layer_0_weight == (0.0 if contrast == "noise" else None)


def test_every_preset_is_tested_and_can_be_chosen() -> None:
    (cases,) = (mark.args[1] for mark in test_presets.pytestmark)
    assert set(PRESETS) == {case[0] for case in cases}
    assert all(load_settings(["--preset", preset]).preset == preset for preset in PRESETS)


@pytest.mark.parametrize("given", [["--model.num-layers", "0"], ["--model.kind", "id"]])
def test_propagating_first_needs_vectors_and_rounds(given: list[str]) -> None:
    with pytest.raises(SettingsError, match=r"propagate-first needs title vectors and rounds.*project-first"):
        load_settings(["--preset", "propagate-first", *given])


def test_an_explicit_setting_beats_the_preset(tmp_path: Path) -> None:
    assert load_settings(["--preset", "no-propagation", "--model.num-layers", "3"]).model.num_layers == 3
    config = toml(tmp_path, 'preset = "no-propagation"\n[model]\nnum_layers = 1\nwidth = 32\n')
    assert load_settings(["--config", config]).model == ModelSettings(num_layers=1, width=32)
    assert load_settings(["--config", config, "--preset", "no-mlp"]).model.projector == "linear"
    chosen = load_settings(["--preset", "linear-mapping", "--model.width", "32"]).model
    assert chosen == ModelSettings(projector="linear", num_layers=0, width=32)


def test_a_preset_applies_to_settings_made_in_python() -> None:
    settings = Settings(preset="linear-mapping", model=ModelSettings(width=32))
    assert settings.model == ModelSettings(projector="linear", num_layers=0, width=32)


def test_making_settings_leaves_what_was_passed_as_it_was() -> None:
    given: dict[str, Any] = {"preset": "no-contrast", "train": {"batch_size": 8}}
    Settings.model_validate(given)
    assert given == {"preset": "no-contrast", "train": {"batch_size": 8}}


# ---------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("sead = 1", "sead"),
        ("[train]\nbatchsize = 1", "train.batchsize"),
        ("[train]\nbatch_size = 0", "train.batch_size"),
        ("[trian]\nbatch_size = 8", "trian"),
        ('train = "fast"', "train"),
        ("[model]\nnum_layers = 1.5", "model.num_layers"),
        ("[ray]\naddress = 3", "ray.address"),
    ],
)
def test_a_wrong_key_or_value_in_the_file_is_named(tmp_path: Path, content: str, named: str) -> None:
    config = toml(tmp_path, content)
    with pytest.raises(SettingsError, match="do not fit") as caught:
        load_settings(["--config", config])
    assert f"  {named}: " in str(caught.value)
    assert config in str(caught.value)


def test_every_wrong_value_is_named_at_once(tmp_path: Path) -> None:
    config = toml(tmp_path, "seed = -1\n[train]\nbatchsize = 1\npatience = 0\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(["--config", config])
    assert all(f"  {key}: " in str(caught.value) for key in ("seed", "train.batchsize", "train.patience"))


@pytest.mark.parametrize("option", ["--sead", "--train.batchsize", "--trian.batch-size", "--batch-size"])
def test_an_unknown_option_ends_with_status_2_and_is_named(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_settings([option, "1"], prog="jobs/train.py")
    assert caught.value.code == 2
    assert option in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--train.batch", "--see", "--train.temp"])
def test_a_shortened_option_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A prefix that is unique today means something else once a setting is added."""
    with pytest.raises(SystemExit) as caught:
        load_settings([option, "1"])
    assert caught.value.code == 2
    assert option in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    [
        "--seed=-1",
        "--name=a/b",
        "--name=",
        "--preset=best",
        "--data.format=csv",
        "--data.split=random",
        "--data.min-user-interactions=-1",
        "--encoder.backend=openai",
        "--encoder.max-length=3",
        "--encoder.hash-width=1",
        "--embed.shard-size=0",
        "--embed.num-gpus=-1",
        "--model.width=0",
        "--model.num-layers=-1",
        "--model.hidden-width=0",
        "--train.temperature=0",
        "--train.learning-rate=0",
        "--train.learning-rate=fast",
        "--train.num-negatives=0",
        "--train.batch-size=0",
        "--train.max-epochs=-1",
        "--train.patience=0",
        "--train.evaluate-every=0",
        "--train.checkpoint-every=0",
        "--train.num-workers=0",
        "--train.max-failures=-1",
        "--evaluate.block-size=0",
        "--evaluate.select-k=0",
        "--recommend.k=0",
        "--ray.num-cpus=0",
    ],
)
def test_values_out_of_range_are_refused(option: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings([option])
    key, _, _ = option.removeprefix("--").replace("-", "_").partition("=")
    assert f"  {key}: " in str(caught.value)
    assert "--help" in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data.ratios", "0.5,0.3,0.3"], r"data\.ratios must be shares .*got \(0\.5, 0\.3, 0\.3\)"),
        (["--data.ratios", "0,0.5,0.5"], r"data\.ratios must be shares"),
        (["--data.ratios", "1.2,-0.1,-0.1"], r"data\.ratios must be shares"),
        (["--data.split", "leave-last-out"], r"leave-last-out needs data\.time_column"),
        (["--data.split", "ratio-time"], r"ratio-time needs data\.time_column"),
        (["--data.split", "global-time"], r"global-time needs data\.time_column"),
        (["--data.split", "given"], r"data\.split = given needs data\.split_column"),
        (["--data.split", "given", "--data.format", "grouplens"], "grouplens files carry no split"),
        (["--data.split-column", "split"], r"data\.split_column is set but data\.split = ratio-random"),
        (["--encoder.prompt", "no slot"], r"encoder\.prompt must contain \{title\} exactly once \(got 'no slot'\)"),
        (["--encoder.prompt", "{title} {title}"], r"encoder\.prompt must contain"),
        (["--train.loss", "bpr"], r"train\.loss = bpr takes one negative \(got train\.num_negatives = 256\)"),
        (["--preset", "no-contrast", "--train.num-negatives", "2"], "bpr takes one negative"),
        (
            ["--preset", "text-propagation", "--train.max-epochs", "3"],
            r"identity has nothing to train .*max_epochs = 3",
        ),
        (["--model.projector", "identity"], r"identity has nothing to train .*max_epochs = 500"),
        (["--preset", "ease", "--train.max-epochs", "3"], r"model\.kind = ease .*nothing to train .*max_epochs = 3"),
        (["--model.kind", "gf-cf"], r"model\.kind = gf-cf .*nothing to train .*max_epochs = 500"),
        (["--preset", "ease", "--model.projector", "identity"], r"are for model\.kind = alpharec, .* \(got ease"),
        (["--preset", "mf", "--model.centred"], r"centred are for model\.kind = alpharec, .* \(got id"),
        (["--preset", "sgl", "--train.batch-size", "20000"], r"contrast needs a batch scored at once .*20000.*16384"),
        (["--preset", "multvae", "--train.scored-at-once", "9"], r"train\.loss = multinomial needs a batch scored at"),
        (["--model.layer-0-weight", "0"], r"layer_0_weight must be above 0 for model\.kind = alpharec \(got 0"),
        (["--train.loss", "bc"], r"train\.loss = bc with model\.kind = id \(got bc and alpharec\)"),
        (["--model.kind", "multvae"], r"multinomial and model\.kind = multvae go together.*got infonce and multvae"),
        (["--preset", "sgl", "--model.num-layers", "0"], r"contrast needs propagation.*dropped-edges.*num_layers = 0"),
        (["--preset", "bc-loss", "--contrast.kind", "noise"], r"contrast needs .*noise.*train\.loss = bc"),
        (["--evaluate.ks", "0,20"], r"evaluate\.ks must be different whole numbers"),
        (["--evaluate.ks", "20,20"], r"evaluate\.ks must be different whole numbers"),
        (["--evaluate.select-k", "7"], r"evaluate\.select_k must be one of evaluate\.ks \(5, 10, 20\) \(got 7\)"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(argv: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(argv)


NO_NAMES = [
    "..",
    ".",
    ".hidden",
    "../x",
    "/x",
    "a/..",
    "a\\b",
    "a\0b",
    "a b",
    "v1\n",
    "s3://x/y",
    "file:///x",
    "a?b",
    "é",
]


@pytest.mark.parametrize("key", ["name", "train.run", "vectors.version", "recommend.bundle"])
def test_a_setting_that_becomes_a_folder_is_a_plain_name(key: str) -> None:
    for given in NO_NAMES:
        with pytest.raises(
            SettingsError, match=rf"  {key}: .*must be a name of letters, digits, .*no '\.' \(got "
        ) as caught:
            load_settings([f"--{key}={given}"])
        assert f"(got {given!r})" in str(caught.value)
    for given in ("v1", "a.b", "a..b", "3", "_x", "a-B.c_9"):
        assert value(load_settings([f"--{key}={given}"]), key) == given
    assert key == "name" or value(load_settings([f"--{key}="]), key) == ""


def test_a_trained_model_is_a_name_and_a_version() -> None:
    for given in [*NO_NAMES, "shop", "shop/", "/v1", "shop/..", "../v1", "shop//v1", "a/shop/v1", "shop/.v1"]:
        with pytest.raises(
            SettingsError, match=r"  evaluate\.model: .*must be NAME/VERSION, each of letters"
        ) as caught:
            load_settings([f"--evaluate.model={given}"])
        assert f"(got {given!r})" in str(caught.value)
    for given in ("shop/v1", "shop.games/0a1b", ""):
        assert load_settings([f"--evaluate.model={given}"]).evaluate.model == given


def test_a_dataset_of_a_mix_has_a_plain_name(tmp_path: Path) -> None:
    for given in [*NO_NAMES, ""]:
        with pytest.raises(ValidationError, match=r"must be a plain dataset, its name of letters, digits, .*no '\.'"):
            Settings.model_validate({"data": {"format": "mix", "domains": {given: {"path": "x"}}}})
    config = toml(tmp_path, '[data]\nformat = "mix"\n[data.domains.".."]\npath = "x"\n')
    with pytest.raises(SettingsError, match=r"data\.domains\.\.\. must be a plain dataset"):
        load_settings(["--config", config])


@pytest.mark.parametrize("number", ["nan", "inf"])
@pytest.mark.parametrize("key", ["train.temperature", "train.learning-rate", "embed.num-gpus", "data.min-rating"])
def test_numbers_must_be_finite(key: str, number: str) -> None:
    with pytest.raises(SettingsError, match=key.replace("-", "_")):
        load_settings([f"--{key}={number}"])


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--data.ratios=nan,0.5,0.5", "data"),
        ("--data.ratios=0.5,0.5", "data.ratios.2"),
        ("--embed.engine-options=tensor_parallel_size", "embed.engine_options"),
        ("--train={", "train"),
        ("--evaluate.ks=5,five", "evaluate.ks.1"),
    ],
)
def test_values_that_cannot_be_read_are_named(option: str, named: str) -> None:
    with pytest.raises(SettingsError, match=named.replace(".", r"\.")) as caught:
        load_settings([option])
    assert "--help" in str(caught.value)


def test_a_config_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no such file \(got .*missing\.toml\)"):
        load_settings(["--config", str(tmp_path / "missing.toml")])
    with pytest.raises(SettingsError, match="expected a TOML file"):
        load_settings(["--config"])
    with pytest.raises(SettingsError, match="--config"):
        load_settings(["--config="])


@pytest.mark.parametrize("content", [b"seed: 7", b"[train", b"\x89PNG\xff"], ids=["yaml", "cut", "binary"])
def test_a_config_file_that_is_not_toml(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "settings.toml").write_bytes(content)
    with pytest.raises(SettingsError, match=r"settings\.toml: not TOML"):
        load_settings(["--config", str(tmp_path / "settings.toml")])


def test_settings_do_not_change_after_they_are_made() -> None:
    settings = load_settings([])
    for section in (settings, settings.train):
        with pytest.raises(ValueError, match="frozen"):
            section.__setattr__(next(iter(type(section).model_fields)), "other")


# ---------------------------------------------------------------- help and examples


def test_help_tells_the_meaning_of_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_settings(["--help"], prog="jobs/train.py")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"--{key.replace('_', '-')} " in shown for key in keys(Settings) if value(Settings(), key) is not True)
    assert "--config" in shown
    assert "tau of infonce; the paper: 0.15" in " ".join(shown.split())


def test_every_setting_has_a_meaning() -> None:
    def described(section: type[BaseModel]) -> bool:
        return all(
            described(field.annotation)
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
            else field.description
            for field in section.model_fields.values()
        )

    assert described(Settings)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_the_example_configs_load(config: Path) -> None:
    settings = load_settings(["--config", str(config), "--data.path", "elsewhere"])
    assert settings.name.replace("-", "") == config.stem.replace("-", "")
    assert settings.data.path == "elsewhere"
    assert f"--config jobs/configs/{config.name}" in config.read_text(), "the header shows the command"


def test_there_are_example_configs() -> None:
    assert {"sample", "ml1m"} <= {config.stem for config in CONFIGS}


ROUNDS = ("model.num_layers", "model.layer_0_weight")


@pytest.mark.parametrize(
    ("preset", "idle"),
    [
        ("paper", set()),
        ("lightgcn", {"model.centred", "model.hidden_width"}),
        ("no-mlp", {"model.hidden_width"}),
        ("mf-bpr", {"model.centred", "model.hidden_width", *ROUNDS, "train.temperature"}),
        ("propagate-first", {"model.centred", *ROUNDS}),
        ("multvae", {"model.centred", *ROUNDS, "train.temperature", "train.num_negatives"}),
    ],
)
def test_parameters_that_a_model_takes_no_notice_of(preset: str, idle: set[str]) -> None:
    assert idle_parameters(load_settings(["--preset", preset])) == idle


@pytest.mark.parametrize("name", ["[v1] a, b/part-*.csv", "x.csv,y.csv", '["a"]', "{a}", "a b.csv", "100%.csv"])
def test_names_of_files_come_from_the_command_line_to_the_letter(name: str) -> None:
    assert load_settings([f"--data.interactions={name}"]).data.interactions == name
    assert load_settings(["--data.items", name]).data.items == name


def test_files_are_a_list_in_toml(tmp_path: Path) -> None:
    config = toml(tmp_path, '[data]\nitems = "a,b.csv"\ninteractions = ["x,1.csv", "y.csv"]\n')
    data = load_settings(["--config", config]).data
    assert (data.items, data.interactions) == ("a,b.csv", "x,1.csv\ny.csv")
