import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config

from tests.families.seen_both_ways import t5gemma2
from tests.families.text import FAMILIES
from tests.tiny import example, picture, tiny_llava, tiny_text_model
from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.adapters.catalog import find_adapter
from vlm_distill.errors import AdapterError
from vlm_distill.models import names
from vlm_distill.models.fingerprint import fingerprint, weights_fingerprint
from vlm_distill.models.load import load_model, load_tokenizer, wrap_model
from vlm_distill.models.names import resolve
from vlm_distill.models.save import save_model
from vlm_distill.models.skeleton import load_skeleton

QUESTION = example("a", "What color?", num_images=1)


def logits_of(loaded: LoadedModel) -> torch.Tensor:
    batch = loaded.encode([QUESTION], [[picture()]])
    with torch.no_grad():
        return loaded.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, **batch.extras
        ).logits


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "model.safetensors"
    weights = edit({name: value.clone() for name, value in load_file(path).items()})
    save_file(weights, path, {"format": "pt"})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(tiny_llava(), tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_llava_comes_back_with_equal_logits_stop_ids_and_image_tokens(saved: Path):
    loaded = load_model(str(saved))
    assert loaded.adapter.name == "llava"
    assert not loaded.model.training
    assert (loaded.stop_ids, loaded.image_token_ids) == (tiny_llava().stop_ids, tiny_llava().image_token_ids)
    torch.testing.assert_close(logits_of(loaded), logits_of(tiny_llava()), atol=0, rtol=0)


def test_a_saved_text_model_comes_back_with_equal_prompts_and_hidden_states(tmp_path: Path):
    save_model(tiny_text_model(), tmp_path / "text")
    loaded = load_model(str(tmp_path / "text"))
    assert loaded.adapter.name == "causal_lm"
    examples = [example("a", "What color?", system="Be brief."), example("b", "hi")]
    first, second = loaded.encode(examples, [[], []]), tiny_text_model().encode(examples, [[], []])
    assert torch.equal(first.input_ids, second.input_ids)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.model(first.input_ids).logits, tiny_text_model().model(second.input_ids).logits
        )


def test_the_dtype_of_the_options_is_used(saved: Path):
    assert (
        next(load_model(str(saved), LoadOptions(dtype="bfloat16")).model.parameters()).dtype == torch.bfloat16
    )
    with pytest.raises(AdapterError, match="unknown dtype 'float31'; did you mean 'float32'"):
        load_model(str(saved), LoadOptions(dtype="float31"))


@pytest.mark.parametrize("device", ["gpu", "hpu"])
def test_a_device_that_is_unknown_or_not_there_is_an_adapter_error(saved: Path, device: str):
    with pytest.raises(AdapterError, match=f"device '{device}' cannot be used: "):
        load_model(str(saved), LoadOptions(device=device))


def test_tower_weights_are_saved_under_the_names_that_vllm_reads(saved: Path):
    names = [name for name in load_file(saved / "model.safetensors") if name.startswith("vision_tower.")]
    assert names
    assert all(name.startswith("vision_tower.vision_model.") for name in names)


def test_saving_again_replaces_the_folder_and_leaves_nothing_beside_it(saved: Path):
    save_model(tiny_llava(seed=1), saved)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
    torch.testing.assert_close(logits_of(load_model(str(saved))), logits_of(tiny_llava(seed=1)))


def test_a_save_that_fails_leaves_the_old_folder(saved: Path):
    before = fingerprint(saved)
    broken = LoadedModel(
        adapter=tiny_llava().adapter,
        model=tiny_llava(seed=1).model,
        processor=object(),
        tokenizer=None,
        path="",
        fingerprint="",
        stop_ids=(1,),
    )
    with pytest.raises(AttributeError):
        save_model(broken, saved)
    assert fingerprint(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_a_fingerprint_follows_content_not_place_or_other_files(saved: Path, tmp_path: Path):
    before = fingerprint(saved)
    (saved / "README.md").write_text("unrelated")
    moved = saved.rename(tmp_path / "moved")
    assert fingerprint(moved) == before == load_model(str(moved)).fingerprint
    template = moved / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert fingerprint(moved) != before


@pytest.fixture
def sharded(saved: Path) -> Path:
    """Return the model with its weights in two parts."""
    weights = load_file(saved / "model.safetensors")
    parts = {"one.safetensors": [*weights][::2], "two.safetensors": [*weights][1::2]}
    for name, keys in parts.items():
        save_file({key: weights[key] for key in keys}, saved / name, {"format": "pt"})
    (saved / "model.safetensors").unlink()
    write_index(saved, {key: name for name, keys in parts.items() for key in keys})
    return saved


def write_index(folder: Path, weight_map: object) -> None:
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / names.WEIGHTS_INDEX).write_text(json.dumps(index))


def test_the_fingerprint_of_parts_is_that_of_what_is_loaded(sharded: Path):
    torch.testing.assert_close(logits_of(load_model(str(sharded))), logits_of(tiny_llava()), atol=0, rtol=0)
    before = fingerprint(sharded)
    (sharded / "three.safetensors").write_bytes((sharded / "two.safetensors").read_bytes())
    assert fingerprint(sharded) == before
    weights = {key: value + 1 for key, value in load_file(sharded / "two.safetensors").items()}
    save_file(weights, sharded / "two.safetensors", {"format": "pt"})
    assert fingerprint(sharded) != before


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("../outside.safetensors", r"expected names of files beside it, got '\.\./outside"),
        ("/outside.safetensors", "expected names of files beside it"),
        ("sub\\\\outside.safetensors", "expected names of files beside it"),
        (7, "expected names of files beside it, got 7"),
        ("three.safetensors", "names three.safetensors, which is not there"),
    ],
)
def test_an_index_names_nothing_outside_of_its_folder(sharded: Path, name: object, line: str):
    shutil.copy(sharded / "two.safetensors", sharded.parent / "outside.safetensors")
    index = json.loads((sharded / names.WEIGHTS_INDEX).read_text())["weight_map"]
    write_index(sharded, index | {next(iter(index)): name})
    for reads in (load_model, resolve, fingerprint):
        with pytest.raises(AdapterError, match=line):
            reads(sharded if reads is fingerprint else str(sharded))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": []}}'])
def test_a_damaged_index_is_one_line(sharded: Path, content: str):
    (sharded / names.WEIGHTS_INDEX).write_text(content)
    with pytest.raises(AdapterError, match=r"damaged; expected a `weight_map`|expected names of files"):
        load_model(str(sharded))


def test_a_fingerprint_in_memory_follows_the_weights():
    assert weights_fingerprint(tiny_llava().model) == tiny_llava().fingerprint
    assert tiny_llava(seed=1).fingerprint != tiny_llava().fingerprint


def test_an_unknown_name_lists_the_bundled_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    folder = tmp_path / "easy_vqa_teacher"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(names, "ASSETS", tmp_path)
    assert names.bundled_models() == {"easy_vqa_teacher": folder}
    with pytest.raises(AdapterError, match="did you mean 'bundled:easy_vqa_teacher'"):
        resolve("easy_vqa_teacher")
    with pytest.raises(AdapterError, match="no such bundled model; did you mean 'easy_vqa_teacher'"):
        resolve("bundled:easy_vqa_techer")
    with pytest.raises(AdapterError, match="safetensors"):
        resolve("bundled:easy_vqa_teacher")
    assert resolve("bundled:easy_vqa_teacher", weights=False) == folder


def test_a_hub_id_that_cannot_be_fetched_is_an_adapter_error():
    with pytest.raises(
        AdapterError, match="nobody/nothing-at-all: no such folder, and the hub did not give it"
    ):
        resolve("nobody/nothing-at-all")


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path):
    with pytest.raises(AdapterError, match=r"expected a model folder with config\.json"):
        load_model(str(tmp_path))


def test_a_file_is_no_model_folder(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(AdapterError, match=r"expected a model folder with config\.json"):
        load_model(str(tmp_path / "model.safetensors"))


def test_pickled_weights_are_refused(tmp_path: Path):
    GPT2Config(n_embd=8, n_layer=1, n_head=1).save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04K*.")
    with pytest.raises(AdapterError, match=r"pytorch_model\.bin can run code when read"):
        load_model(str(tmp_path))


def test_a_missing_processor_is_an_adapter_error(saved: Path):
    for name in ("processor_config.json", "tokenizer_config.json", "tokenizer.json"):
        (saved / name).unlink()
    with pytest.raises(AdapterError, match="cannot load it"):
        load_model(str(saved))


def test_damaged_weights_are_an_adapter_error(saved: Path):
    (saved / "model.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(AdapterError, match="cannot load it"):
        load_model(str(saved))


def test_a_checkpoint_that_lacks_weights_is_an_adapter_error(saved: Path):
    edit_weights(saved, lambda weights: {n: value for n, value in weights.items() if "linear_1" not in n})
    with pytest.raises(AdapterError, match=r"weights are missing.*linear_1"):
        load_model(str(saved))


def test_weights_of_another_shape_are_an_adapter_error(saved: Path):
    edit_weights(saved, lambda weights: {n: v[..., :-1].contiguous() for n, v in weights.items()})
    with pytest.raises(AdapterError, match="cannot load it"):
        load_model(str(saved))


def test_a_config_of_no_known_family_is_an_adapter_error(saved: Path):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "model_type": "lava"}))
    with pytest.raises(AdapterError, match=r"config\.json cannot be read"):
        load_model(str(saved))


@pytest.mark.parametrize("content", ["[]", '{"model_type": [1]}', "{"])
def test_a_config_that_names_no_family_is_an_adapter_error_of_every_reader(saved: Path, content: str):
    (saved / "config.json").write_text(content)
    for read in (load_model, load_skeleton, load_tokenizer):
        with pytest.raises(AdapterError, match=r"model: config\.json"):
            read(str(saved))


def test_a_model_that_reads_prompts_by_an_encoder_is_refused():
    with pytest.raises(AdapterError, match="t5gemma2: an encoder reads its prompts"):
        wrap_model(find_adapter("t5gemma2"), *t5gemma2(), path="t5gemma2")
    # A decoder alone, whose config says that it is none of a pair.
    with pytest.raises(AdapterError, match="bart: an encoder reads its prompts"):
        wrap_model(find_adapter("bart"), *FAMILIES["bart"](), path="bart")


@pytest.mark.parametrize(
    ("model_type", "parts"),
    [
        ("phi4_multimodal", "vision_config and audio_config"),
        ("moshi", "audio_encoder_config"),
        ("moss_transcribe_diarize", "audio_config"),
    ],
)
def test_a_text_model_that_reads_more_than_text_is_not_taken_for_one_without_a_word(
    saved: Path, model_type: str, parts: str
):
    (saved / "config.json").write_text(json.dumps({"model_type": model_type}))
    for read in (load_model, load_skeleton):
        with pytest.raises(AdapterError) as caught:
            read(str(saved))
        assert f"model type '{model_type}' has " in str(caught.value)
        assert all(part in str(caught.value) for part in parts.split(" and "))
        assert "beside text is not supported" in str(caught.value)


def test_any_model_of_transformers_goes_the_generic_path_of_what_it_reads():
    assert find_adapter("llama").name == find_adapter("gpt2").name == "causal_lm"
    assert find_adapter("llava").name == "llava"
    assert find_adapter("idefics3").name == find_adapter("gemma3").name == "image_text"
    with pytest.raises(AdapterError, match="'clip': not a text or image-text model"):
        find_adapter("clip")
