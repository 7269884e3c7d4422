import sys
from pathlib import Path

import pytest

from vlm_distill.packages import not_installed, package_folder, package_version


def test_the_version_of_what_is_not_installed_is_none() -> None:
    assert package_version("no-such-distribution") is None
    assert package_version("pytest") == pytest.__version__


def test_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_package").mkdir()
    (tmp_path / "a_package" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "a_module.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert package_folder("a_package") == tmp_path / "a_package"
    assert package_folder("a_module") is package_folder("no_such_package") is None
    assert not {"a_package", "a_module"} & set(sys.modules)


def test_a_missing_package_comes_with_the_command_that_installs_it() -> None:
    assert not_installed("easy_vqa").endswith("run: pip install 'vlm-distill[demo]'")
    assert not_installed("other").endswith("run: pip install the distribution that provides other")
