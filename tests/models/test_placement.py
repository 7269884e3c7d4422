import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from tests.tiny import example, picture, tiny_llava, tiny_text_model
from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.errors import AdapterError
from vlm_distill.generation.engine import Completion, Sampling
from vlm_distill.generation.transformers_engine import TransformersEngine
from vlm_distill.models.load import load_model
from vlm_distill.models.placement import offload_map, quantization_config, require_readable
from vlm_distill.models.save import save_model


def logits_of(loaded: LoadedModel) -> torch.Tensor:
    """Return logits as the loss gets them: hidden states of the backbone times the output layer."""
    num_images = int("vision" in loaded.adapter.parts)
    batch = loaded.encode([example("a", "red?", num_images=num_images)], [[picture()] * num_images])
    batch = batch.to(loaded.device)
    adapter, model = loaded.adapter, loaded.model
    positions = adapter.position_ids(model, batch.input_ids, batch.attention_mask, batch.extras)
    with torch.no_grad():
        hidden = adapter.backbone(model, batch.input_ids, batch.attention_mask, positions, batch.extras, None)
        return loaded.head.logits(hidden)


@pytest.fixture(params=["text", "llava"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    save_model(tiny_text_model() if request.param == "text" else tiny_llava(), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("placement", ["device_map", "cpu_offload"])
def test_logits_do_not_depend_on_the_placement(saved: Path, placement: Any):
    plain, placed = load_model(str(saved)), load_model(str(saved), LoadOptions(placement=placement))
    torch.testing.assert_close(logits_of(placed), logits_of(plain), atol=0, rtol=0)
    assert placed.device == torch.device("cpu")
    assert placed.fingerprint == plain.fingerprint
    assert not placed.model.training


def test_layers_are_offloaded_and_everything_else_stays_on_the_device():
    parts = offload_map(tiny_llava().model, "cuda:1")
    assert parts == {
        "model.vision_tower": "cuda:1",
        "model.multi_modal_projector": "cuda:1",
        "model.language_model.embed_tokens": "cuda:1",
        "model.language_model.layers": "cpu",
        "model.language_model.norm": "cuda:1",
        "model.language_model.rotary_emb": "cuda:1",
        "lm_head": "cuda:1",
    }


def test_every_weight_has_a_place_in_the_offload_map():
    for model in (tiny_text_model().model, tiny_llava().model):
        places = tuple(f"{place}." for place in offload_map(model, "cuda:0"))
        assert all(f"{name}.".startswith(places) for name, _ in model.named_parameters())


def answers_of(loaded: LoadedModel) -> list[Completion]:
    num_images = int("vision" in loaded.adapter.parts)
    engine = TransformersEngine(
        loaded=loaded, load_images=lambda one: [picture() for _ in one.images], batch_size=4
    )
    prompt = example("a", "red?", num_images=num_images)
    return engine.generate([prompt], Sampling(max_new_tokens=4, num_samples=2))


def test_logits_and_answers_of_layers_that_wait_elsewhere_are_those_of_the_plain_model(
    saved: Path, tmp_path: Path
):
    # Without an accelerator the CPU is the device, and the disk is where layers can wait.
    plain = load_model(str(saved))
    places = {
        name: "disk" if name.endswith("layers") else place
        for name, place in offload_map(plain.model, "cpu").items()
    }
    model_class = AutoModelForCausalLM if plain.adapter.name == "causal_lm" else AutoModelForImageTextToText
    model = model_class.from_pretrained(
        saved, device_map=places, offload_folder=tmp_path / "waiting", dtype=torch.float32
    )
    assert any(parameter.is_meta for parameter in model.parameters())
    require_readable(model, path="tiny")
    offloaded = replace(plain, model=model.eval())
    assert offloaded.device == torch.device("cpu")
    torch.testing.assert_close(logits_of(offloaded), logits_of(plain), atol=0, rtol=0)
    assert answers_of(offloaded) == answers_of(plain)


def test_an_output_layer_that_was_offloaded_is_refused():
    model: Any = copy.deepcopy(tiny_text_model().model)
    model.lm_head.to("meta")
    with pytest.raises(AdapterError, match=r"were offloaded.*use `placement: cpu_offload`"):
        require_readable(model, path="big")


def test_an_output_layer_of_integers_is_refused():
    model: Any = copy.deepcopy(tiny_text_model().model)
    whole = torch.zeros_like(model.lm_head.weight, dtype=torch.int8)
    model.lm_head.weight = torch.nn.Parameter(whole, requires_grad=False)
    with pytest.raises(AdapterError, match="its output layer was quantised"):
        require_readable(model, path="small")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"load_in_4bit": True}, r"quantisation\.quant_method: this key is required"),
        ({"quant_method": "bitsandbites"}, "unknown method 'bitsandbites'; did you mean 'bitsandbytes'"),
        (
            {"quant_method": "fp8", "dequantise": True},
            r"dequantise: fp8 has no such option; did you mean 'deq",
        ),
        ({"quant_method": "gptq"}, "quantisation: transformers refuses it: TypeError"),
    ],
)
def test_a_quantisation_that_means_nothing_is_refused_in_one_line(values: dict[str, Any], message: str):
    with pytest.raises(AdapterError, match=message) as caught:
        quantization_config(values)
    assert "\n" not in str(caught.value)


def test_a_quantisation_library_that_is_missing_gives_the_command_to_install_it(
    saved: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.path", [])
    options = LoadOptions(quantisation={"quant_method": "torchao", "quant_type": "int8"})
    with pytest.raises(AdapterError, match=r"torchao needs the package torchao, .* run: pip install torchao"):
        load_model(str(saved), options)


def test_a_quantisation_becomes_the_config_of_transformers():
    config = quantization_config({"quant_method": "fp8", "modules_to_not_convert": ["lm_head"]})
    assert config.modules_to_not_convert == ["lm_head"]


def test_a_quantised_model_has_a_fingerprint_of_its_own_and_answers_like_the_plain_one(tmp_path: Path):
    pytest.importorskip("bitsandbytes")
    save_model(tiny_text_model(hidden_size=64), tmp_path / "model")
    plain = load_model(str(tmp_path / "model"))
    quantised = load_model(
        str(tmp_path / "model"),
        LoadOptions(quantisation={"quant_method": "bitsandbytes", "load_in_8bit": True}),
    )
    assert quantised.fingerprint != plain.fingerprint
    exact = logits_of(plain)
    assert 0 < (logits_of(quantised) - exact).abs().max() < 0.1 * exact.abs().max()
