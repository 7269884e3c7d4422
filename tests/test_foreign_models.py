"""A model folder of a stranger: no verb runs its code unasked, and nothing is loaded that is not hashed."""

import json
import shutil
from pathlib import Path

import pytest

from tests.commands import error_of
from tests.tiny_run import write_run
from vlm_distill.adapters.adapter import LoadOptions
from vlm_distill.cli import main
from vlm_distill.errors import AdapterError
from vlm_distill.files import read_json
from vlm_distill.models.load import load_model

AUTO_MAP = {
    f"Auto{name}": "code.X"
    for name in (
        "Config",
        "Model",
        "ModelForCausalLM",
        "ModelForImageTextToText",
        "Processor",
        "ImageProcessor",
    )
}
SETTINGS = ("config", "processor_config", "preprocessor_config", "tokenizer_config", "generation_config")
ODD = {
    "known classes": {},
    "an unknown family": {"config": {"model_type": "odd"}},
    "unknown processors": {
        "tokenizer_config": {"tokenizer_class": "OddTokenizer"},
        "processor_config": {"processor_class": "OddProcessor"},
        "preprocessor_config": {"image_processor_type": "OddImageProcessor"},
    },
}
COMMANDS = {
    "teacher": ["check", "CONFIG", "teacher.model=MODEL"],
    "student": ["check", "CONFIG", "student={model: MODEL}"],
    "tower": ["check", "CONFIG", "student.build.vision={from: MODEL}"],
    "tokenizer": ["check", "CONFIG", "student.build.tokenizer=MODEL"],
    "language": ["check", "CONFIG", "student.build.language={model: MODEL}"],
    "run": ["run", "CONFIG", "--stage", "data.prepare", "teacher.model=MODEL"],
    "cache": ["cache", "CONFIG", "teacher.model=MODEL", "cache={}"],
    "eval": ["eval", "MODEL", "--suite", "SUITE", "--output", "RESULTS", "--limit", "1", "--device", "cpu"],
    "export": ["export", "MODEL", "TARGET"],
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("foreign"))


def with_code(model: Path, odd: dict[str, dict[str, str]], *, seen: Path) -> Path:
    """Give every settings file a map to a module that creates `seen`; return the folder."""
    code = f"import pathlib\npathlib.Path({str(seen)!r}).touch()\n"
    for name in SETTINGS:
        path = model / f"{name}.json"
        values = read_json(path) if path.exists() else {}
        tokenizer = {"AutoTokenizer": ["code.X", "code.X"]} if name == "tokenizer_config" else {}
        values |= {"auto_map": AUTO_MAP | tokenizer} | odd.get(name, {})
        path.write_text(json.dumps(values))
    (model / "custom_generate").mkdir()
    for name in ("code.py", "__init__.py", "custom_generate/generate.py"):
        (model / name).write_text(code)
    return model


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_verb_runs_the_code_of_a_model_unasked(
    command: str, odd: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = tmp_path / "seen"
    model = with_code(Path(shutil.copytree(config.parent / "teacher", tmp_path / "m")), ODD[odd], seen=seen)
    names = {
        "CONFIG": config,
        "MODEL": model,
        "SUITE": config.with_name("suite.yaml"),
        "RESULTS": tmp_path / "results",
        "TARGET": tmp_path / "out",
    }
    arguments = COMMANDS[command]
    for name, path in names.items():
        arguments = [one.replace(name, str(path)) for one in arguments]
    code = main([*arguments, *([f"output={tmp_path / 'run'}"] if "CONFIG" in COMMANDS[command] else [])])
    assert not seen.exists()
    if code:
        error_of(capsys, code)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transformers_weights": "other.safetensors"}, "`transformers_weights` names other weights"),
        ({"transformers_weights": "../other.safetensors"}, "`transformers_weights` names other weights"),
        ({"attn_implementation": "kernels-community/flash-attn"}, "asks for code from the hub"),
    ],
)
def test_a_config_that_asks_for_other_files_is_refused(
    settings: dict[str, str], message: str, config: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(config.parent / "teacher", tmp_path / "m"))
    values = read_json(model / "config.json")
    (model / "config.json").write_text(json.dumps(values | settings))
    with pytest.raises(AdapterError, match=message):
        load_model(str(model), LoadOptions(dtype="float32"))


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("config", {"vision_config": {"num_hidden_layers": 10**9}}, "at most 1,000 num_hidden_layers"),
        ("config", {"model_type": "qwen2_vl", "vision_config": {"depth": 10**9}}, "at most 1,000 depth"),
        ("config", {"model_type": "qwen2", "num_hidden_layers": 10**10}, "at most 1,000 num_hidden_layers"),
        ("generation_config", {"eos_token_id": [*range(5000)]}, "at most 1,000 ids"),
        ("generation_config", {"eos_token_id": 10**30}, "at most 1,000 ids"),
    ],
)
def test_what_a_model_asks_to_count_is_bounded(
    file: str, settings: dict[str, object], message: str, config: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(config.parent / "teacher", tmp_path / "m"))
    path = model / f"{file}.json"
    values = read_json(path) if path.exists() else {}
    path.write_text(json.dumps(values | settings))
    with pytest.raises(AdapterError, match=message):
        load_model(str(model))


def test_an_adapter_beside_the_weights_is_refused(config: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(config.parent / "teacher", tmp_path / "m"))
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/elsewhere"}))
    with pytest.raises(AdapterError, match=r"adapter_config\.json would change the weights"):
        load_model(str(model))


@pytest.mark.parametrize(
    "name",
    ["../m.safetensors", "..", ".", "", "/m.safetensors", "a\\b", "a\0b", "a/b", 3, None, ["a"], "x" * 300],
)
def test_an_index_names_files_beside_it(name: object, config: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(config.parent / "teacher", tmp_path / "m"))
    (model / "model.safetensors").rename(tmp_path / "m.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises((AdapterError, OSError)) as caught:
        load_model(str(model))
    assert "\n" not in str(caught.value)


def test_weights_that_are_links_are_followed_as_in_the_cache_of_the_hub(config: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(config.parent / "teacher", tmp_path / "m"))
    whole = load_model(str(model)).fingerprint
    (model / "model.safetensors").rename(tmp_path / "blob")
    (model / "model.safetensors").symlink_to(tmp_path / "blob")
    assert load_model(str(model)).fingerprint == whole
