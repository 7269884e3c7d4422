"""Families of other packages: one entry point a model type."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributions import declare, forget
from tests.tiny import tiny_text_model
from vlm_distill.adapters.catalog import GROUP, find_adapter
from vlm_distill.cli import main
from vlm_distill.errors import AdapterError, PluginError
from vlm_distill.models.load import load_tokenizer
from vlm_distill.models.save import save_model

MODULE = """
from dataclasses import replace
from vlm_distill.adapters.causal_lm import CAUSAL_LM

FAMILY = replace(CAUSAL_LM, name="family", model_types=("idefics3", "llava", "gpt2"))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a folder in which distributions are seen; it has a module with an adapter."""
    (tmp_path / "my_family.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    yield tmp_path
    forget()
    sys.modules.pop("my_family", None)


def test_one_is_loaded_for_its_model_type_alone(folder: Path) -> None:
    declare(folder, "families", GROUP, idefics3="my_family:FAMILY", idefics2="no_such_module:FAMILY")
    assert find_adapter("llava").name == "llava"
    assert find_adapter("gpt2").name == "causal_lm"
    assert "my_family" not in sys.modules
    assert find_adapter("idefics3").name == "family"


@pytest.mark.parametrize(("model_type", "built_in"), [("llava", "llava"), ("gpt2", "causal_lm")])
def test_one_that_takes_the_place_of_a_built_in_one_is_said(
    folder: Path, model_type: str, built_in: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert find_adapter(model_type).name == built_in
    declare(folder, "families", GROUP, **{model_type: "my_family:FAMILY"})
    forget()
    assert find_adapter(model_type).name == "family"
    line = f"families 0.3 ({GROUP}: {model_type}) takes the place of the built-in {built_in}"
    assert caplog.messages == [line]


def test_what_is_no_adapter_of_that_type_is_refused(folder: Path) -> None:
    declare(folder, "families", GROUP, mllama="my_family:FAMILY", kosmos="my_family:replace")
    for model_type in ("mllama", "kosmos"):
        expected = rf"families 0\.3 \({GROUP}: {model_type}\): expected an Adapter with '{model_type}' among"
        with pytest.raises(PluginError, match=expected):
            find_adapter(model_type)


def test_names_of_other_packages_are_proposed(folder: Path) -> None:
    declare(folder, "families", GROUP, idefics3="my_family:FAMILY")
    with pytest.raises(AdapterError, match=r"'idefics4': not a text.*; did you mean 'idefics3'\?"):
        find_adapter("idefics4")


def test_a_broken_one_ends_the_load_of_its_models_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    declare(folder, "families", GROUP, lava="no_such_module:FAMILY")
    save_model(tiny_text_model(), folder / "model")
    values = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps({**values, "model_type": "lava"}))
    with pytest.raises(PluginError, match=r"lava\) cannot be loaded"):
        load_tokenizer(str(folder / "model"))
    suite = Path(__file__).parents[2] / "eval" / "suites" / "easy_vqa.yaml"
    assert main(["eval", str(folder / "model"), "--suite", str(suite), "--output", str(folder)]) == 2
    line = f"families 0.3 ({GROUP}: lava) cannot be loaded: ModuleNotFoundError: No module named 'no_such_"
    assert f"vlm-distill: error: {line}" in capsys.readouterr().err
