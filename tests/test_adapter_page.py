"""docs/adapters.md and its template: the family that the page shows, installed as a package and distilled."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest

from tests.distributions import declare
from tests.installed import command, install, python
from tests.tiny_run import write_run
from tests.whole_runs import once
from vlm_distill.adapters.adapter import Adapter
from vlm_distill.adapters.catalog import GROUP
from vlm_distill.conformance.checks import CHECKS
from vlm_distill.files import read_json, write_json

DOCS = Path(__file__).parents[1] / "docs"
TEMPLATE = DOCS / "adapter_template"
PAGE = (DOCS / "adapters.md").read_text(encoding="utf-8")
[FAMILY] = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
HOOK = ", head=head"
ADAPTER = "tempered_llava/adapter.py"


def filled(folder: Path, model_type: str) -> Path:
    """Write the template, filled in for a model type; return the folder."""
    name = model_type.replace("-", "_")
    shutil.copytree(TEMPLATE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "my_family").rename(folder / name)
    for path in filter(Path.is_file, folder.rglob("*")):
        text = path.read_text(encoding="utf-8").replace("my_family", name).replace("my-type", model_type)
        path.write_text(text, encoding="utf-8")
    return folder


def with_settings(model: Path, copy: Path, **changes: object) -> Path:
    """Return a copy of a model's folder with other values in its config."""
    shutil.copytree(model, copy)
    write_json(copy / "config.json", {**read_json(copy / "config.json"), **changes})
    return copy


def write_family_run(model: Path, folder: Path) -> Path:
    """Write a run with a model as the teacher and another one of its family as the student."""
    shutil.copytree(model, folder / "teacher")
    return write_run(
        folder,
        student={"model": str(with_settings(model, folder / "student", sharpness=2.0))},
        warmup=None,
        rounds=1,
        train={"steps": 2, "batch_size": 4, "learning_rate": 1e-3},
        controls=[],
        evaluate={"agreement_tokens": 5},
    )


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of packages and of `model`, one of the page's family.

    `llava` is the bare template, `deviant` has the page's adapter, `bare` that without its hook.
    """

    def make(folder: Path) -> None:
        install(filled(folder / "llava", "llava"), folder / "llava" / "installed")
        filled(folder / "deviant", "tempered-llava")
        (folder / "deviant" / ADAPTER).write_text(FAMILY, encoding="utf-8")
        install(folder / "deviant", folder / "deviant" / "installed")
        shutil.copytree(folder / "deviant" / "installed", folder / "bare" / "installed")
        (folder / "bare" / "installed" / ADAPTER).write_text(FAMILY.replace(HOOK, ""), encoding="utf-8")
        arguments = ("-m", "tempered_llava.tiny", str(folder / "model"))
        python(*arguments, paths=(folder / "deviant" / "installed",))

    return once(tmp_path_factory, "adapter_page", make)


def test_the_page_shows_the_template_filled_in(packages: Path) -> None:
    [declared] = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    assert (packages / "deviant" / "pyproject.toml").read_text(encoding="utf-8") == declared
    assert HOOK in FAMILY
    assert len([line for line in FAMILY.splitlines() if line]) <= 30


def test_the_page_names_every_check_and_every_hook() -> None:
    first_cells = [line.split(" | ")[0] for line in PAGE.splitlines() if line.startswith("| `")]
    named = {name for cell in first_cells for name in re.findall(r"`(\w+)", cell)}
    assert named == {*CHECKS, *(field.name for field in dataclasses.fields(Adapter))}


def test_the_tests_of_the_template_pass_where_it_is_installed(packages: Path) -> None:
    tests, installed = packages / "llava" / "tests", packages / "llava" / "installed"
    done = python("-m", "pytest", "-q", str(tests), paths=(installed,))
    assert re.search(r"\b[1-9]\d* passed", done.stdout)
    assert "skipped" not in done.stdout


def test_the_family_is_distilled_with_its_hook_and_meets_no_broken_neighbour(
    packages: Path, tmp_path: Path
) -> None:
    config = write_family_run(packages / "model", tmp_path)
    broken = with_settings(packages / "model", tmp_path / "broken", model_type="broken_llava")
    (tmp_path / "others").mkdir()
    declare(tmp_path / "others", "broken_parts", GROUP, broken_llava="no_such_module:ADAPTER")
    done = command(
        f"check-adapter {broken}",
        f"run {config} teacher.model={broken} output={tmp_path / 'nothing'}",
        f"check-adapter {packages / 'model'}",
        f"run {config}",
        paths=(packages / "deviant" / "installed", tmp_path / "others"),
    )
    assert done.codes == [2, 2, 0, 0], done.said
    line = "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'; mend or uninstall it"
    told = f"vlm-distill: error: broken_parts 0.3 ({GROUP}: broken_llava) {line}"
    assert [said for said in done.said if "broken" in said] == [told, told]
    assert not (tmp_path / "nothing").exists()
    trained = read_json(tmp_path / "run" / "round_1" / "model" / "config.json")
    assert (trained["model_type"], trained["sharpness"]) == ("tempered-llava", 2.0)


def test_the_family_without_its_hook_is_refused_by_the_lines_that_the_page_names(
    packages: Path, tmp_path: Path
) -> None:
    config = write_family_run(packages / "model", tmp_path)
    verbs = (f"check-adapter {packages / 'model'} --json", f"run {config}")
    done = command(*verbs, paths=(packages / "bare" / "installed",))
    assert done.codes == [1, 2], done.said
    findings = json.loads(done.printed)["findings"]
    failed = [name for name, finding in findings.items() if finding["outcome"] == "failed"]
    said = PAGE.partition("## An example\n")[2].partition(" fail on the generic path")[0]
    assert [name for name in failed if not name.startswith("weights")] == re.findall(r"`(\w+)`", said)
    assert failed[0] == "head"
    assert "`head`" in findings["head"]["remedy"]
    assert "teacher: check 'head' failed: " in done.said[-1]
    assert not (tmp_path / "run").exists()
