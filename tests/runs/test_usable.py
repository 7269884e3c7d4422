"""Models of others whose files are odd: one line and exit code 2, whichever verb meets them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tests.commands import error_of
from tests.tiny import tiny_llava, tiny_text_model
from tests.tiny_run import STAGE, write_run
from tests.whole_runs import once
from vlm_distill.adapters.adapter import LoadOptions
from vlm_distill.cli import main
from vlm_distill.errors import AdapterError
from vlm_distill.models.load import load_model
from vlm_distill.models.save import save_model
from vlm_distill.models.skeleton import load_skeleton
from vlm_distill.runs.usable import require_answers, require_readable_prompts

Edit = Callable[[Path], object]


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a text model of which tests change a copy."""
    return once(tmp_path_factory, "sound", lambda folder: save_model(tiny_text_model(), folder / "model"))


@pytest.fixture
def odd(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound / "model", tmp_path / "odd"))


def settings(name: str, **changes: object) -> Edit:
    def edit(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, **changes}))

    return edit


def content(name: str, text: str) -> Edit:
    return lambda folder: (folder / name).write_text(text)


def filled(value: float) -> Edit:
    def edit(folder: Path) -> None:
        weights = {name: tensor.clone().fill_(value) for name, tensor in load_file(folder / WEIGHTS).items()}
        save_file(weights, folder / WEIGHTS, {"format": "pt"})

    return edit


WEIGHTS = "model.safetensors"
BEFORE_ANY_WEIGHT: dict[str, Edit] = {
    "no heads": settings("config.json", num_attention_heads=0),
    "no layers": settings("config.json", num_hidden_layers=0),
    "an embedding for each atom": settings("config.json", vocab_size=10**12),
    "a billion layers": settings("config.json", num_hidden_layers=10**9),
    "a rope that nobody knows": settings("config.json", rope_parameters={"rope_type": "nope"}),
    "an activation that nobody knows": settings("config.json", hidden_act="nope"),
    "padding beyond the embeddings": settings("config.json", pad_token_id=10**6),
    "a list as config": content("config.json", "[]"),
    "a deep config": content("config.json", "[" * 100_000),
    "no JSON as tokenizer": content("tokenizer.json", "{"),
    "a tokenizer of no kind": content("tokenizer.json", "{}"),
    "a template that does not compile": content("chat_template.jinja", "{{"),
    "a template that divides by zero": content("chat_template.jinja", "{{ 1 / 0 }}"),
    "a template without end": content(
        "chat_template.jinja", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"
    ),
    "a template that sums strings": content("chat_template.jinja", "{{ messages[0].content + 5 }}"),
    "a string of ids to suppress": settings("generation_config.json", suppress_tokens="x"),
    "stop ids that are no numbers": settings("generation_config.json", eos_token_id=["x"]),
}
WITH_WEIGHTS: dict[str, Edit] = {
    "many more embeddings than there are": settings("config.json", vocab_size=10**7),
    "a norm without a number": settings("config.json", rms_norm_eps=None),
    "weights that are cut": content(WEIGHTS, "{"),
    "weights that are not numbers": filled(float("nan")),
    "weights without end": filled(float("inf")),
}


@pytest.mark.parametrize("edit", BEFORE_ANY_WEIGHT.values(), ids=BEFORE_ANY_WEIGHT)
def test_what_is_odd_in_config_tokenizer_or_template_shows_without_weights(odd: Path, edit: Edit):
    edit(odd)
    with pytest.raises(AdapterError, match="odd") as caught:
        require_readable_prompts(load_skeleton(str(odd)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("edit", WITH_WEIGHTS.values(), ids=WITH_WEIGHTS)
def test_what_is_odd_in_the_weights_shows_on_a_plain_prompt(odd: Path, edit: Edit):
    edit(odd)
    with pytest.raises(AdapterError, match="odd") as caught:
        require_answers(load_model(str(odd), LoadOptions()))
    assert "\n" not in str(caught.value)


def test_a_tower_that_fails_shows_on_a_prompt_with_an_image(tmp_path: Path):
    save_model(tiny_llava(), tmp_path / "odd")
    require_answers(load_model(str(tmp_path / "odd")))
    settings("config.json", vision_feature_layer=99)(tmp_path / "odd")
    with pytest.raises(AdapterError, match="odd: the model fails on a prompt with an image: IndexError"):
        require_answers(load_model(str(tmp_path / "odd")))


def test_a_sound_model_is_neither_refused_nor_changed(sound: Path):
    require_readable_prompts(load_skeleton(str(sound / "model")))
    loaded = load_model(str(sound / "model"))
    loaded.model.train()
    assert require_answers(loaded) is loaded
    assert loaded.model.training


def test_a_tokenizer_with_more_ids_than_embeddings_is_refused(odd: Path):
    values = json.loads((odd / "tokenizer.json").read_text())
    values["model"]["vocab"]["zebra"] = 10_000
    (odd / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(
        AdapterError, match="has ids up to 10000, but the model 300 embeddings: 1 tokens cannot"
    ):
        require_readable_prompts(load_skeleton(str(odd)))


@pytest.mark.parametrize("is_special", [True, False])
def test_an_added_token_without_an_embedding_is_refused_where_text_is_read_as_it(odd: Path, is_special: bool):
    tokenizer = AutoTokenizer.from_pretrained(odd)
    tokenizer.add_tokens(["<think>"], special_tokens=is_special)
    tokenizer.save_pretrained(odd)
    skeleton = load_skeleton(str(odd))
    if is_special:
        require_readable_prompts(skeleton)
    else:
        with pytest.raises(AdapterError, match=r"1 tokens cannot be read \(first: \['<think>'\]\)"):
            require_readable_prompts(skeleton)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_that_a_model_brings_is_named_with_the_way_to_trust_it(odd: Path, name: str):
    settings(name, auto_map={"AutoConfig": "code.Config", "AutoTokenizer": ["code.Tokenizer", None]})(odd)
    settings("config.json", model_type="of_their_own")(odd)
    for read in (load_model, load_skeleton):
        with pytest.raises(AdapterError, match=r"`trust_remote_code: true` .*, `--trust-remote-code` for"):
            read(str(odd))


@pytest.mark.parametrize("verb", ["check", "run", "cache", "eval", "export"])
def test_every_verb_refuses_an_odd_model_before_it_writes(
    odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
):
    config = write_run(
        tmp_path,
        teacher={"model": str(odd)},
        student={"shrink": {"layers": 1}},
        warmup={"objective": {"kind": "kd"}, "train": STAGE},
        cache={"tier": "hidden"},
        rounds=0,
        objective=None,
        train=None,
        controls=[],
    )
    settings("config.json", num_attention_heads=0)(odd)
    arguments = {
        "eval": [str(odd), "--suite", str(tmp_path / "suite.yaml"), "--output", str(tmp_path / "run")],
        "export": [str(odd), str(tmp_path / "run")],
    }.get(verb, [str(config)])
    line = error_of(capsys, main([verb, *arguments]))
    assert "odd: " in line
    assert "ZeroDivisionError" in line
    assert not (tmp_path / "run").exists()
