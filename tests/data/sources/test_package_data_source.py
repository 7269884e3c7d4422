import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vlm_distill.data.columns import Columns
from vlm_distill.data.sources import PackageData
from vlm_distill.errors import DataError

COLUMNS = Columns(image="file", question="q", references="a", meta={"type": "type"})


def test_package_data_is_read_without_importing_the_package(
    tmp_path: Path, picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "tiny_vqa_package"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "data" / "q.json").write_text(json.dumps([["what?", "red", 5]]))
    (package / "data" / "5.png").write_bytes(picture())
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    columns = Columns(question=0, references=1, image="data/{2}.png")
    source = PackageData(package="tiny_vqa_package", file="data/q.json", columns=columns)
    row = next(iter(source.rows()))
    assert (row.id, row.question, row.images[0]()) == ("tiny_vqa_package-0", "what?", picture())
    assert "tiny_vqa_package" not in sys.modules
    with pytest.raises(DataError, match=r"no file 'data/x.json'"):
        list(source.model_copy(update={"file": "data/x.json"}).rows())
    with pytest.raises(DataError, match="leaves"):
        list(source.model_copy(update={"file": "../secret.json"}).rows())


def test_a_package_that_is_not_installed_says_how_to_install_it() -> None:
    source = PackageData(package="no_such_package_here", file="q.json", columns=Columns())
    with pytest.raises(DataError, match=r"'no_such_package_here' is not installed .* pip install"):
        list(source.rows())
