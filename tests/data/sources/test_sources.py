from typing import Any, get_args

import pytest
from pydantic import Field

from vlm_distill.config import Record, decode
from vlm_distill.data.columns import Columns
from vlm_distill.data.sources import Files, Hub, ImageFolder, KnownSource, PackageData, Source
from vlm_distill.errors import ConfigError

COLUMNS = Columns(question="q")
UNNAMED = {
    Files: {"paths": ["/home/me/a.jsonl", "/home/me/b.jsonl"], "columns": COLUMNS},
    ImageFolder: {"path": "/home/me/photos"},
    Hub: {"path": "org/set", "split": "test", "columns": COLUMNS},
    PackageData: {"package": "shapes", "file": "data/q.json", "columns": COLUMNS},
}
ANSWERS = {
    Files: ("a", None, "local files", "local files `mine`"),
    ImageFolder: ("photos", None, "local image folder", "local image folder `mine`"),
    Hub: ("set", "org/set", "`org/set`, split test", "`org/set`, split test"),
    PackageData: ("shapes", None, *["`data/q.json` of the Python package `shapes`"] * 2),
}


@pytest.mark.parametrize("kind", get_args(KnownSource))
def test_every_kind_says_what_it_is_called_and_what_it_is(kind: Any) -> None:
    unnamed = kind(**UNNAMED[kind])
    named = kind(**UNNAMED[kind], name="mine")
    assert (unnamed.label, unnamed.hub_id, unnamed.describe(), named.describe()) == ANSWERS[kind]
    assert named.label == "mine"


def test_a_hub_data_set_is_its_revision() -> None:
    source = Hub(**UNNAMED[Hub], revision="3f1a9c0")
    assert source.describe() == "`org/set`, split test at revision 3f1a9c0"
    assert source.state() == "3f1a9c0"


def test_sources_are_told_apart_by_kind() -> None:
    class Holder(Record):
        source: Source = Field()

    value = {"source": {"kind": "hub", "path": "org/set", "split": "test", "columns": {"question": "q"}}}
    assert decode(Holder, value, where="x.yaml").source.label == "set"
    with pytest.raises(ConfigError, match=r"source.kind: unknown kind 'hubb'; did you mean 'hub'"):
        decode(Holder, {"source": {"kind": "hubb"}}, where="x.yaml")
    with pytest.raises(ConfigError, match="paths"):
        decode(Holder, {"source": {"kind": "files", "paths": [], "columns": {}}}, where="x.yaml")
