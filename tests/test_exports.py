"""The names that `vlm_distill` offers: each resolves, none is loaded before it is asked for."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import vlm_distill

NAMES = [name for name in vlm_distill.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_the_package_is_the_one_that_a_type_checker_sees(name: str) -> None:
    tree = ast.parse(Path(vlm_distill.__file__).read_text())
    typed = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }
    assert typed.keys() == set(NAMES)
    assert getattr(vlm_distill, name) is getattr(importlib.import_module(typed[name]), name)


def test_the_package_imports_none_of_its_modules_and_lists_their_names() -> None:
    program = "import sys, vlm_distill; assert 'SkewKL' in dir(vlm_distill)\n"
    program += "print(*(name for name in sys.modules if name.startswith(('vlm_distill.', 'torch'))))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'SkewKl'"):
        vlm_distill.SkewKl  # noqa: B018


def test_every_import_that_the_documentation_shows_works() -> None:
    text = (Path(__file__).parents[1] / "docs" / "usage.md").read_text()
    [snippet] = [block for block in text.split("```python\n")[1:] if "from vlm_distill" in block]
    found: dict[str, object] = {}
    exec(snippet.partition("```")[0], found)
    assert {"DistiLLM2", "build_llava", "load_model", "run"} <= found.keys()
