"""A structure is proven once; a model that fails what is needed of it is refused in one line."""

import copy
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import fresh, tiny_llava, tiny_text_model
from tests.tiny_families import tiny_bert, tiny_granite, tiny_jamba
from vlm_distill.adapters.chat import encode_image_text
from vlm_distill.adapters.head import plain_head
from vlm_distill.conformance import prove as module
from vlm_distill.conformance.facts import measure
from vlm_distill.conformance.prove import prove, settle, verdict_on
from vlm_distill.conformance.verdict import CACHE, cache_folder, structure_key
from vlm_distill.errors import AdapterError


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Count which checks are made."""
    names: list[str] = []
    real = module.find

    def find(check: Any, probe: Any) -> Any:
        names.append(check.run.__name__)
        return real(check, probe)

    monkeypatch.setattr(module, "find", find)
    return names


def test_what_is_known_of_a_structure_is_not_made_again_for_other_weights(made: list[str]) -> None:
    lines: list[str] = []
    first = verdict_on(tiny_text_model(0), uses=("answers",), role="teacher", log=lines.append)
    count = len(made)
    second = verdict_on(tiny_text_model(1), uses=("answers",), role="teacher", log=lines.append)
    assert len(made) == count > 5
    assert first == second
    [line] = lines
    assert line.startswith("conformance: llama teacher is proven in ")
    assert first.hash[:12] in line


def test_another_use_makes_the_checks_that_it_adds_and_no_others(made: list[str]) -> None:
    verdict_on(tiny_text_model(), uses=("answers",), role="teacher")
    known = {*made}
    made.clear()
    grown = verdict_on(tiny_text_model(), uses=("answers", "saves"), role="student")
    assert made == ["saved"]
    assert {"saved", "generated"} <= {*grown.findings}
    assert "saved" not in known


@pytest.mark.parametrize("change", ["width", "template", "hook"])
def test_another_config_processor_or_hook_is_another_structure(change: str) -> None:
    loaded = tiny_text_model()
    if change == "width":
        other = tiny_text_model(hidden_size=32)
    elif change == "hook":
        other = replace(loaded, adapter=replace(loaded.adapter, head=plain_head))
    else:
        tokenizer = copy.deepcopy(loaded.tokenizer)
        tokenizer.chat_template += " "
        other = replace(loaded, tokenizer=tokenizer, processor=tokenizer)
    assert structure_key(other) != structure_key(loaded)
    assert structure_key(fresh(loaded)) == structure_key(loaded)


def test_a_hook_of_the_same_name_with_other_code_is_another_structure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, keys = tiny_text_model(), set()
    for scale in ("1.0", "2.0"):
        (tmp_path / scale).mkdir()
        code = f"def head(model):\n    return Head(model.get_output_embeddings().weight, scale={scale})\n"
        (tmp_path / scale / "hooks_of_another_package.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path / scale)
        monkeypatch.delitem(sys.modules, "hooks_of_another_package", raising=False)
        head = import_module("hooks_of_another_package").head
        keys.add(structure_key(replace(loaded, adapter=replace(loaded.adapter, head=head))))
    assert len(keys) == 2


def test_a_hook_with_given_arguments_is_known_by_them_in_every_process() -> None:
    def key(**given: object) -> str:
        encode = partial(encode_image_text, **given)
        return structure_key(replace(loaded, adapter=replace(loaded.adapter, encode=encode)))

    loaded = tiny_llava()
    assert key(with_rows=len) == key(with_rows=len)
    assert key(with_rows=len) != key(with_rows=dict)


def test_a_damaged_verdict_is_a_line_and_made_again(kept: Path) -> None:
    verdict = verdict_on(tiny_text_model(), uses=("saves",), role="student")
    [file] = (kept / "conformance" / "structure").iterdir()
    file.write_text(file.read_text()[:-20])
    lines: list[str] = []
    again = verdict_on(tiny_text_model(), uses=("saves",), role="student", log=lines.append)
    assert again.hash == verdict.hash
    assert "damaged" in lines[0]
    assert json.loads(file.read_text())["model_type"] == "llama"


def test_a_cache_that_cannot_be_written_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE, str(tmp_path / "file"))
    lines: list[str] = []
    verdict_on(tiny_text_model(), uses=("saves",), role="student", log=lines.append)
    assert any("not kept" in line for line in lines)


def test_the_cache_is_that_of_the_user_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_folder() == Path("/cache/vlm_distill")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/home/someone/.cache/vlm_distill")


def test_a_model_that_attends_both_ways_is_refused_in_one_line() -> None:
    with pytest.raises(AdapterError, match=r"^bert: check '\w+' failed: .*; ") as refused:
        prove(tiny_bert(), uses=("answers", "learns"))
    assert "\n" not in str(refused.value)


def test_a_recurrent_model_is_used_without_shared_prefixes_which_is_measured() -> None:
    # A cache is filled with the responses to a prompt together, in the way that was measured.
    proven = prove(tiny_jamba(), uses=("answers", "learns", "caches"))
    assert not proven.adapter.supports_prefix_sharing
    assert prove(tiny_text_model(), uses=("learns",)).adapter.supports_prefix_sharing


def test_a_record_can_forbid_what_is_exact() -> None:
    loaded = tiny_text_model()
    adapter = replace(loaded.adapter, supports_prefix_sharing=False, supports_one_sequence=False)
    careful = prove(replace(loaded, adapter=adapter), uses=("learns",))
    assert not careful.adapter.supports_prefix_sharing
    assert not careful.adapter.supports_one_sequence


def test_a_scale_that_the_class_does_not_apply_is_left_out() -> None:
    loaded = tiny_llava()
    model = fresh(loaded).model
    # As Aya Vision has it: the scale of a text config that only the text class applies.
    model.config.text_config.logit_scale = 0.25
    facts = measure(replace(loaded, model=model))
    assert facts.head == "plain"
    assert "does not apply" in facts.lines["output layer"]
    assert measure(tiny_granite()).head == "adapter"


def test_weights_are_looked_at_too_and_what_they_show_is_kept(made: list[str]) -> None:
    loaded = tiny_text_model()
    prove(loaded)
    assert made[-2:] == ["head", "generated"]
    made.clear()
    prove(loaded)
    assert made == []
    broken = replace(fresh(loaded), fingerprint="other")
    verdict = verdict_on(broken, uses=("answers",), role="model")
    with torch.no_grad():
        broken.model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(AdapterError, match="check 'head' failed"):
        module.weighed(settle(broken, verdict))
