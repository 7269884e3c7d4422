"""A model with weights in its output layer alone: what it knows, and how the layer is found in the files."""

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GraniteConfig, GraniteForCausalLM

from tests.families.text import FAMILIES
from tests.models.gguf_writer import write_gguf
from tests.tiny import example, picture, tiny_llava, tiny_text_model
from tests.tiny_qwen import tiny_qwen
from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.adapters.causal_lm import CAUSAL_LM
from vlm_distill.adapters.head import output_layer
from vlm_distill.errors import AdapterError
from vlm_distill.models.load import load_model, wrap_model
from vlm_distill.models.output_layer import light_model, require_same_head
from vlm_distill.models.save import save_model


def tied_with_a_scale() -> LoadedModel:
    """Return a Granite, which divides its logits, with its embeddings as output layer."""
    tokenizer = tiny_text_model().tokenizer
    config = GraniteConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        logits_scaling=8.0,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return wrap_model(CAUSAL_LM, GraniteForCausalLM(config).eval(), tokenizer, path="granite")


def of_family(name: str) -> LoadedModel:
    model, tokenizer = FAMILIES[name]()
    return wrap_model(CAUSAL_LM, model, tokenizer, path=name)


MODELS = {
    "text": tiny_text_model,
    "llava": tiny_llava,
    "qwen2.5-vl": tiny_qwen,
    "tied": tied_with_a_scale,
    "under another name in its files": partial(of_family, "gpt_neox"),
    "with a tied bias": partial(of_family, "bert"),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_the_light_model_has_the_head_of_the_whole_one_and_no_body(
    tmp_path: Path, name: str, dtype: str
) -> None:
    save_model(MODELS[name](), tmp_path / "model")
    options = LoadOptions(dtype=dtype)
    light, whole = light_model(str(tmp_path / "model"), options), load_model(str(tmp_path / "model"), options)
    require_same_head(light, whole)
    found, expected = (one.head for one in (light, whole))
    assert found.weight.dtype == expected.weight.dtype
    assert (found.scale, found.soft_cap) == (expected.scale, expected.soft_cap)
    assert (found.bias is None) == (expected.bias is None)
    own = {id(parameter) for parameter in output_layer(light.model).parameters()}
    assert all(parameter.is_meta for parameter in light.model.parameters() if id(parameter) not in own)


@pytest.mark.parametrize("name", ["text", "llava"])
def test_the_light_model_encodes_stops_and_is_named_like_the_whole_one(tmp_path: Path, name: str) -> None:
    save_model(MODELS[name](), tmp_path / "model")
    light, whole = light_model(str(tmp_path / "model"), LoadOptions()), load_model(str(tmp_path / "model"))
    assert light.fingerprint == whole.fingerprint
    assert (light.stop_ids, light.image_token_ids) == (whole.stop_ids, whole.image_token_ids)
    count = int(name == "llava")
    ids = [
        one.encode([example("a", "red?", num_images=count)], [[picture()] * count]) for one in (light, whole)
    ]
    assert torch.equal(ids[0].input_ids, ids[1].input_ids)


def test_quantisation_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    save_model(tiny_text_model(), tmp_path / "model")
    plain = light_model(str(tmp_path / "model"), LoadOptions())
    quantised = light_model(str(tmp_path / "model"), LoadOptions(quantisation={"quant_method": "torchao"}))
    assert plain.fingerprint != quantised.fingerprint


def test_the_head_of_a_gguf_file_is_dequantised_as_the_model_is(tmp_path: Path) -> None:
    write_gguf(tiny_text_model(hidden_size=32), tmp_path / "model.gguf", quantised=True)
    path = str(tmp_path / "model.gguf")
    light, whole = light_model(path, LoadOptions()), load_model(path)
    require_same_head(light, whole)
    assert light.fingerprint == whole.fingerprint


def test_an_output_layer_that_differs_or_is_missing_is_refused(tmp_path: Path) -> None:
    save_model(tiny_text_model(), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    whole, tensors = load_model(str(tmp_path / "model")), load_file(path)
    save_file({**tensors, "lm_head.weight": tensors["lm_head.weight"] + 1}, path)
    with pytest.raises(AdapterError, match="not the one that the loaded model has; train without `cache`"):
        require_same_head(light_model(str(tmp_path / "model"), LoadOptions()), whole)
    save_file({name: value for name, value in tensors.items() if name != "lm_head.weight"}, path)
    with pytest.raises(AdapterError, match=r"expected the output layer as a tensor lm_head.weight of shape"):
        light_model(str(tmp_path / "model"), LoadOptions())
    head = tensors.pop("lm_head.weight")
    save_file({**tensors, "lm_head.weight": head, "model.lm_head.weight": head.clone()}, path)
    with pytest.raises(AdapterError, match=r"several tensors .*: lm_head.weight, model.lm_head"):
        light_model(str(tmp_path / "model"), LoadOptions())
