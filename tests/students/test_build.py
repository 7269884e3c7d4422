import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from tests.tiny import LANGUAGE, TEXTS, VISION, VOCAB_SIZE, example, picture, tiny_llava, tiny_text_model
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.causal_lm import CAUSAL_LM
from vlm_distill.config import decode
from vlm_distill.errors import AdapterError, ConfigError
from vlm_distill.models.load import wrap_model
from vlm_distill.models.save import save_model
from vlm_distill.students.build import BuildConfig, build_llava
from vlm_distill.students.tokenizer import CHAT_TEMPLATE, END

TRAIN = {"train": {"vocab_size": VOCAB_SIZE}}
OTHER_PROCESS = """
import json, sys
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, picture = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder).eval()
processor = AutoProcessor.from_pretrained(folder)
content = [{"type": "image", "image": Image.open(picture)}, {"type": "text", "text": "What color?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
with torch.no_grad():
    logits = model(**inputs).logits[0, -1]
generated = model.generate(**inputs, do_sample=False, max_new_tokens=5)
assert not [name for name in sys.modules if name.startswith("vlm_distill")]
print(json.dumps({"ids": inputs["input_ids"].tolist(), "logits": logits.tolist(), "new": generated.shape[1]}))
"""


def config_of(**settings: Any) -> BuildConfig:
    value = {
        "vision": VISION,
        "language": LANGUAGE,
        "tokenizer": TRAIN,
        "vision_feature_layer": -1,
        **settings,
    }
    return decode(BuildConfig, value, where="student.build")


def build(*, teacher: LoadedModel | None = None, seed: int = 0, **settings: Any) -> LoadedModel:
    return build_llava(config_of(**settings), teacher=teacher, texts=TEXTS, seed=seed)


def logits_of(loaded: LoadedModel, color: str = "red") -> torch.Tensor:
    batch = loaded.encode([example("a", "What color?", num_images=1)], [[picture(color)]])
    with torch.no_grad():
        return loaded.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, **batch.extras
        ).logits


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Save a text model whose template knows no image parts, as a pretrained language model."""
    folder = tmp_path_factory.mktemp("language") / "text"
    save_model(tiny_text_model(), folder)
    template = "{% for m in messages %}{{ '<|user|>' + m['content'] + '<|end|>' }}{% endfor %}<|assistant|>"
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


def test_a_saved_student_gives_equal_logits_in_a_process_without_this_package(tmp_path: Path):
    loaded = tiny_llava()
    save_model(loaded, tmp_path / "student")
    picture("red").save(tmp_path / "red.png")
    run = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, str(tmp_path / "student"), str(tmp_path / "red.png")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    prompts = loaded.encode([example("a", "What color?", num_images=1)], [[picture("red")]])
    assert found["ids"] == prompts.input_ids.tolist()
    assert found["new"] > len(found["ids"][0])
    torch.testing.assert_close(torch.tensor(found["logits"]), logits_of(loaded)[0, -1], atol=1e-5, rtol=1e-5)


def test_equal_seeds_give_equal_weights_and_the_global_generator_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first, second = build(seed=5), build(seed=5)
    assert torch.equal(torch.rand(4), expected)
    assert first.fingerprint == second.fingerprint
    assert build(seed=6).fingerprint != first.fingerprint


@pytest.mark.parametrize(("strategy", "num_tokens"), [("default", 4), ("full", 5)])
@pytest.mark.parametrize("layer", [-1, -2])
def test_placeholders_match_the_features_for_every_layer_and_strategy(strategy, num_tokens, layer):
    loaded = build(vision_feature_layer=layer, vision_feature_select_strategy=strategy)
    batch = loaded.encode([example("a", "?", num_images=1)], [[picture()]])
    assert int((batch.input_ids == loaded.image_token_ids[0]).sum()) == num_tokens
    assert logits_of(loaded).isfinite().all()


def test_the_feature_layer_decides_what_the_language_model_sees():
    assert not torch.allclose(logits_of(build()), logits_of(build(vision_feature_layer=-2)))


@pytest.mark.parametrize("layer", [-4, 3])
def test_a_feature_layer_outside_the_tower_is_refused(layer):
    with pytest.raises(AdapterError, match=rf"the tower has 2 layers, so expected -3\.\.2, got {layer}"):
        build(vision_feature_layer=layer)


def test_the_model_is_standard_tied_and_never_generates_a_placeholder():
    loaded = tiny_llava()
    model = loaded.model
    assert type(model) is LlavaForConditionalGeneration
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert model.generation_config.suppress_tokens == list(loaded.image_token_ids)
    assert model.config.image_seq_length == 4


def test_any_text_family_of_transformers_can_be_the_language_model():
    loaded = build(language={"model_type": "qwen2", **LANGUAGE, "tie_word_embeddings": False})
    assert loaded.model.config.text_config.model_type == "qwen2"
    assert loaded.model.lm_head.weight is not loaded.model.model.language_model.embed_tokens.weight
    assert not torch.allclose(logits_of(loaded), logits_of(loaded, "blue"))


def test_the_initializer_range_is_the_spread_of_language_model_and_projector():
    model = build(language=LANGUAGE | {"initializer_range": 0.3}).model.model
    learned = [model.language_model.layers[0].mlp.up_proj, model.multi_modal_projector.linear_1]
    assert [layer.weight.std().item() for layer in learned] == pytest.approx([0.3, 0.3], rel=0.2)


@pytest.mark.parametrize(
    ("language", "message"),
    [
        ({**LANGUAGE, "model_type": "lama"}, r"model_type: 'lama' is no causal language model.*'llama'"),
        ({**LANGUAGE, "hidden_size": 15}, "hidden"),
    ],
)
def test_a_language_config_that_makes_no_model_is_refused(language, message):
    with pytest.raises(AdapterError, match=message):
        build(language=language)


@pytest.mark.parametrize(
    "language", [{"model_type": "gpt2"}, {"model_type": "biogpt", "tie_word_embeddings": False}]
)
def test_a_family_whose_embeddings_or_head_llava_does_not_find_is_refused(language):
    match = (
        f"LLaVA cannot take a language model of {language['model_type']}: .*; choose another one, of llama"
    )
    with pytest.raises(AdapterError, match=match):
        build(language={**LANGUAGE, **language})


def test_a_family_with_scaled_logits_is_refused():
    with pytest.raises(AdapterError, match="LLaVA has a plain output layer, but cohere adds"):
        build(language={**LANGUAGE, "model_type": "cohere"})


def test_the_tower_of_the_teacher_is_copied_with_its_image_processor():
    teacher = tiny_llava(seed=1)
    for source in ("teacher", teacher.path):
        student = build(teacher=teacher, vision={"from": source}, tokenizer="teacher")
        theirs, ours = teacher.model.model.vision_tower, student.model.model.vision_tower
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name
            assert value.data_ptr() != theirs.state_dict()[name].data_ptr()
        assert student.processor.image_processor.to_dict() == teacher.processor.image_processor.to_dict()
        assert student.processor.image_processor is not teacher.processor.image_processor


def test_a_tower_is_copied_from_a_folder(tmp_path: Path):
    save_model(tiny_llava(seed=1), tmp_path / "other")
    student = build(vision={"from": str(tmp_path / "other")})
    theirs = tiny_llava(seed=1).model.model.vision_tower.state_dict()
    assert all(
        torch.equal(value, theirs[name])
        for name, value in student.model.model.vision_tower.state_dict().items()
    )


def test_a_tower_of_a_text_model_is_refused(language):
    with pytest.raises(AdapterError, match="is not a LLaVA checkpoint"):
        build(vision={"from": language})


def test_the_tokenizer_of_the_teacher_gives_equal_prompts_and_stop_ids():
    teacher = tiny_llava(seed=1)
    student = build(teacher=teacher, tokenizer="teacher")
    prompt = [example("a", "What color?", num_images=1, system="Be brief.")], [[picture()]]
    assert torch.equal(student.encode(*prompt).input_ids, teacher.encode(*prompt).input_ids)
    assert (student.stop_ids, student.image_token_ids) == (teacher.stop_ids, teacher.image_token_ids)


def test_a_student_with_the_tokenizer_of_its_teacher_also_stops_where_the_teacher_does():
    teacher = tiny_llava(seed=1)
    [end] = teacher.stop_ids
    student = build(teacher=replace(teacher, stop_ids=(7, end)), tokenizer="teacher")
    assert student.stop_ids == (end, 7)
    assert build(teacher=replace(teacher, stop_ids=(7, end))).stop_ids == (end,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer": "teacher"}, "'teacher' needs a teacher"),
        ({"tokenizer": "language"}, "'language' needs student.build.language.model"),
        ({"vision": {"from": "teacher"}}, "'teacher' needs a teacher"),
    ],
)
def test_parts_of_a_teacher_that_is_not_there_are_refused(settings, message):
    with pytest.raises(AdapterError, match=message):
        build(**settings)


def test_a_pretrained_language_model_keeps_its_weights_template_and_ids(language):
    student = build(language={"model": language}, tokenizer="language")
    body, theirs = student.model.model.language_model.state_dict(), tiny_text_model().model.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in body.items())
    assert torch.equal(student.model.lm_head.weight, tiny_text_model().model.lm_head.weight)
    batch = student.encode([example("a", "What color?", num_images=1)], [[picture()]])
    text = student.tokenizer.decode(batch.input_ids[0])
    assert text == "<|user|>" + "<image>" * 4 + "What color?<|end|><|assistant|>"


def test_embeddings_grow_by_an_image_token_that_the_language_model_lacks(language, tmp_path: Path):
    plain = tiny_text_model()
    tokenizer = json.loads((Path(language) / "tokenizer.json").read_text().replace("<image>", "<spare>"))
    save_model(plain, tmp_path / "plain")
    (tmp_path / "plain" / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = (tmp_path / "plain" / "tokenizer_config.json").read_text().replace("<image>", "<spare>")
    (tmp_path / "plain" / "tokenizer_config.json").write_text(settings)
    student = build(language={"model": str(tmp_path / "plain")}, tokenizer="language")
    known = plain.model.lm_head.weight.shape[0]
    assert student.image_token_ids == (known,)
    assert student.model.lm_head.weight.shape[0] == known + 1
    assert torch.equal(student.model.lm_head.weight[:known], plain.model.lm_head.weight)
    assert logits_of(student).shape[-1] == known + 1


@pytest.fixture
def bare(tmp_path: Path) -> Callable[..., str]:
    """Return what saves a text model without <image>, with as many embeddings as asked for."""

    def save(*, lacking: int = 0, is_tied: bool = False, more: Sequence[str] = ()) -> str:
        tokenizer = trained_without_image(more)
        config = LlamaConfig(**LANGUAGE, vocab_size=len(tokenizer) - lacking, tie_word_embeddings=is_tied)
        model = wrap_model(CAUSAL_LM, LlamaForCausalLM(config).eval(), tokenizer, path="bare")
        save_model(model, tmp_path / "bare")
        return str(tmp_path / "bare")

    return save


def trained_without_image(more: Sequence[str]) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({"?": 0, "what": 1, "color": 2, END: 3}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="?", eos_token=END, chat_template=CHAT_TEMPLATE
    )
    tokenizer.add_tokens([AddedToken(token) for token in more])
    return tokenizer


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("lacking", [0, 2])
def test_a_language_model_without_a_spare_row_gets_one_with_and_without_weights(
    bare: Callable[..., str], is_tied: bool, lacking: int, caplog: pytest.LogCaptureFixture
):
    # Two added tokens may lack a row as well: tokenizers are often extended without their models.
    name = bare(lacking=lacking, is_tied=is_tied, more=["<pad>", "<more>"])
    caplog.set_level("INFO")
    with torch.device("meta"):
        skeleton = build(language={"model": name}, tokenizer="language")
    assert f"{name} has {6 - lacking} embeddings, {lacking + 1} more for tokens without one" in caplog.text
    student = build(language={"model": name}, tokenizer="language")
    shapes = {key: value.shape for key, value in skeleton.model.state_dict().items()}
    assert shapes == {key: value.shape for key, value in student.model.state_dict().items()}
    assert student.model.lm_head.weight.shape[0] == 7
    assert (student.model.lm_head.weight is student.model.get_input_embeddings().weight) == is_tied
    assert logits_of(student).isfinite().all()
    assert caplog.text.count("more for tokens") == 1


def test_embeddings_that_lack_ordinary_tokens_are_refused(bare: Callable[..., str]):
    with pytest.raises(AdapterError, match=r"has 2 embeddings, but its tokenizer has 1 tokens beyond them"):
        build(language={"model": bare(lacking=2)}, tokenizer="language")


def test_a_pretrained_language_model_with_another_tokenizer_is_refused(language):
    teacher = build(tokenizer={"train": {"vocab_size": 280}})
    with pytest.raises(AdapterError, match=r"the tokenizer differs from that of .* in \d+ tokens"):
        build(teacher=teacher, language={"model": language}, tokenizer="teacher")
    with pytest.raises(AdapterError, match="a trained tokenizer cannot match"):
        build(language={"model": language})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vision": {**VISION, "widht": 3}}, r"vision\.widht: unknown key; did you mean 'width'"),
        ({"vision": {"name": "ViT-B-32", "pretraind": "x"}}, r"vision\.pretraind: .* 'pretrained'"),
        ({"vision": {"from": 3}}, r"vision\.from: .*string"),
        ({"language": {"model": "x", "hidden_size": 3}}, r"language\.hidden_size: unknown key"),
        ({"language": {"hidden_size": 3}}, r"language\.num_hidden_layers: this key is required"),
        ({"tokenizer": {"train": {"vocab": 300}}}, r"tokenizer\.train\.vocab: .* 'vocab_size'"),
    ],
)
def test_a_wrong_key_is_named_with_its_path(settings, message):
    with pytest.raises(ConfigError, match=message):
        config_of(**settings)


def test_a_resolved_config_decodes_to_itself():
    for vision in (VISION, {"name": "ViT-B-32"}, {"from": "teacher"}):
        config = config_of(vision=vision)
        assert decode(BuildConfig, config.model_dump(mode="json"), where="resolved") == config
