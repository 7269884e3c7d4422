"""The families pass the checks, and every check fails a family with one wrong hook."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from PIL import Image as Picture
from torch import Tensor

from tests.families.packed_like import kimi_k25
from tests.tiny import tiny_llava, tiny_text_model
from tests.tiny_families import FAMILIES, tiny_bert, tiny_gpt2, tiny_granite, tiny_jamba
from tests.tiny_qwen import FAMILIES as QWEN
from tests.tiny_qwen import tiny_qwen
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.body import hidden_states
from vlm_distill.adapters.catalog import find_adapter
from vlm_distill.adapters.chat import (
    encode_image_text,
    encode_text,
)
from vlm_distill.adapters.head import output_head
from vlm_distill.adapters.llava import insert_features
from vlm_distill.adapters.positions import own_positions, sequential_positions
from vlm_distill.batches import Head, PromptBatch
from vlm_distill.conformance.checks import CHECKS, examine
from vlm_distill.conformance.facts import measure
from vlm_distill.errors import StorageError
from vlm_distill.models.feature_store import FeatureStore, VisionCacheConfig
from vlm_distill.models.gradient_checkpointing import cache_disabled
from vlm_distill.models.load import load_model, wrap_model
from vlm_distill.models.vision_cache import with_vision_cache

TEXT_ONLY = {"placeholders", "pictures", "token_extras", "vision_cache"}
WITHOUT = {
    "llama": TEXT_ONLY,
    # Its layers are no linear ones for peft.
    "gpt2": TEXT_ONLY | {"lora"},
    "llava": {"token_extras"},
    # Images of any size.
    **{family: {"vision_cache"} for family in QWEN},
}


# The others deviate from these in what a few checks see.
WHOLE = ("llava", "qwen2_5_vl")
FEW = ("parts", "prompt_ids", "generated", "trained")


def assert_passes(loaded: LoadedModel, names: Iterable[str], *, without: set[str]) -> None:
    found = examine(loaded, names)
    assert {name: finding.line for name, finding in found.items() if finding.outcome == "failed"} == {}
    assert {name for name, finding in found.items() if finding.outcome == "does not apply"} == without


@pytest.mark.parametrize("family", WHOLE)
def test_a_family_passes_every_check_that_applies(family: str) -> None:
    assert_passes(FAMILIES[family](), CHECKS, without=WITHOUT[family])


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - WHOLE))
def test_another_family_passes_a_few_checks(family: str) -> None:
    assert_passes(FAMILIES[family](), FEW, without=set())


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - WHOLE))
def test_the_other_families_pass_every_check_that_applies(family: str) -> None:
    assert_passes(FAMILIES[family](), CHECKS, without=WITHOUT[family])


@pytest.mark.slow
def test_the_bundled_teacher_passes_every_check() -> None:
    assert_passes(load_model("bundled:easy_vqa_teacher"), CHECKS, without={"token_extras"})


def cut_encode(tokenizer: Any, *arguments: Any) -> PromptBatch:
    """Return prompts of at most as many tokens as the tokenizer allows."""
    prompts = encode_text(tokenizer, *arguments)
    start = -tokenizer.model_max_length
    return replace(
        prompts, input_ids=prompts.input_ids[:, start:], attention_mask=prompts.attention_mask[:, start:]
    )


def encode_without_first(*arguments: Any) -> PromptBatch:
    prompts = encode_text(*arguments)
    return replace(prompts, input_ids=prompts.input_ids[:, 1:], attention_mask=prompts.attention_mask[:, 1:])


def encode_without_second_image(processor: Any, examples: Any, images: Any) -> PromptBatch:
    """Return prompts whose second image has no placeholders."""
    prompts = encode_image_text(processor, examples, images)
    is_image = prompts.input_ids == processor.image_token_id
    behind = is_image & (is_image.cumsum(dim=1) > 4)
    return replace(prompts, input_ids=prompts.input_ids.masked_fill(behind, processor.tokenizer.pad_token_id))


def encode_with(change: Callable[[list[Any]], list[Any]]) -> dict[str, Any]:
    """Return a hook that encodes prompts with changed pictures."""

    def encode(processor: Any, examples: Any, images: Any) -> PromptBatch:
        changed = iter(change([picture for some in images for picture in some]))
        return encode_image_text(processor, examples, [[next(changed) for _ in some] for some in images])

    return {"encode": encode}


def white(pictures: list[Any]) -> list[Any]:
    return [Picture.new("RGB", one.size, "white") for one in pictures]


def all_the_first(pictures: list[Any]) -> list[Any]:
    return [pictures[0].resize(one.size) for one in pictures]


def gpt2_with_types() -> LoadedModel:
    """Return a model whose token types change what it says."""
    loaded = tiny_gpt2()
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return replace(loaded, tokenizer=tokenizer, processor=tokenizer)


def encode_without_types(*arguments: Any) -> PromptBatch:
    prompts = encode_text(*arguments)
    return replace(prompts, token_extras={})


def encode_pictures_reversed(processor: Any, examples: Any, images: Any) -> PromptBatch:
    return encode_image_text(processor, examples, [some[::-1] for some in images])


def remembered_positions(model: Any, *arguments: Any) -> Tensor:
    """Return positions moved by what the model remembers of the last prompt that it generated for."""
    moved = model.base_model.rope_deltas
    return own_positions(model, *arguments) + (0 if moved is None else int(moved[0]))


def plain_positions(*arguments: Any) -> Tensor:
    return sequential_positions(*arguments).expand(3, -1, -1)


def unscaled_head(model: Any) -> Head:
    return replace(output_head(model), scale=1.0)


def body(change: Callable[..., Tensor]) -> dict[str, Any]:
    """Return a hook for the body; `change(model, hidden, cache)` gives other hidden states."""

    def backbone(
        model: Any, tokens: Tensor, mask: Tensor, positions: Tensor, extras: Any, cache: Any
    ) -> Tensor:
        return change(model, hidden_states(model, tokens, mask, positions, extras, cache), cache)

    return {"backbone": backbone}


def unmasked(model: Any, tokens: Tensor, mask: Tensor, *rest: Any) -> Tensor:
    return hidden_states(model, tokens, torch.ones(mask.shape[0], mask.shape[-1], dtype=torch.long), *rest)


def from_a_cache(_: Any, hidden: Tensor, cache: Any) -> Tensor:
    """Return other hidden states where a response is sampled than where it is trained on."""
    return hidden if cache is None else hidden.flip(-1)


def where(holds: Callable[[Any], bool]) -> dict[str, Any]:
    return body(lambda model, hidden, _: 2 * hidden if holds(model) else hidden)


# Of each check: a model, and the hook that it must refuse.
BROKEN: Mapping[str, tuple[Callable[[], LoadedModel], Mapping[str, Any]]] = {
    "parts": (tiny_qwen, {"parts": {"vision": ("model.visul.",), "language": ("model.language_model.",)}}),
    "prompt_ids": (tiny_text_model, {"encode": encode_without_first}),
    "untruncated": (tiny_text_model, {"encode": cut_encode}),
    "placeholders": (tiny_llava, {"encode": encode_without_second_image}),
    "head": (tiny_granite, {"head": unscaled_head}),
    "positions": (tiny_qwen, {"position_ids": plain_positions}),
    "token_extras": (gpt2_with_types, {"encode": encode_without_types}),
    "boundary": (tiny_text_model, body(lambda _, hidden, cache: hidden.roll(1, dims=1))),
    "mixed": (tiny_llava, encode_with(all_the_first)),
    "pictures": (tiny_llava, encode_with(white)),
    "cached_rows": (tiny_jamba, {}),
    "learning": (tiny_text_model, body(lambda _, hidden, cache: hidden.detach())),
    "generated": (tiny_qwen, {"position_ids": plain_positions}),
    # The values stay, the gradient doubles.
    "plain": (tiny_text_model, body(lambda _, hidden, cache: 2 * hidden - hidden.detach())),
    # As a model that attends both ways.
    "causal": (tiny_text_model, body(lambda _, hidden, cache: hidden + hidden.mean(dim=1, keepdim=True))),
    "padding": (tiny_text_model, {"backbone": unmasked}),
    "alone": (tiny_text_model, body(lambda _, hidden, cache: hidden + hidden.mean(dim=0))),
    "forgetful": (tiny_qwen, {"position_ids": remembered_positions}),
    "prefix_shared": (tiny_jamba, {}),
    "one_sequence": (tiny_text_model, {"backbone": unmasked}),
    "greedy": (tiny_text_model, body(from_a_cache)),
    "sampled": (tiny_text_model, body(from_a_cache)),
    "trained": (tiny_text_model, body(from_a_cache)),
    "checkpointing": (tiny_text_model, where(cache_disabled)),
    "vision_cache": (
        tiny_llava,
        {"insert_features": lambda model, ids, features: insert_features(model, ids, features.flip(0))},
    ),
    "lora": (tiny_text_model, where(lambda model: any(isinstance(m, LoraLayer) for m in model.modules()))),
    "saved": (tiny_text_model, {"state_dict_names": lambda _, name: name.replace("q_proj", "k_projection")}),
}


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_fails_a_family_with_one_wrong_hook(name: str) -> None:
    build, hooks = BROKEN[name]
    loaded = build()
    found = examine(replace(loaded, adapter=replace(loaded.adapter, **hooks)), [name])[name]
    assert found.outcome == "failed"
    assert found.line


def llava_from_features() -> LoadedModel:
    return with_vision_cache(tiny_llava(), FeatureStore(VisionCacheConfig(), folder=None))


@pytest.mark.parametrize("build", [tiny_text_model, llava_from_features])
def test_a_body_of_its_own_is_reached_by_training_and_sampling_alike(
    build: Callable[[], LoadedModel],
) -> None:
    loaded = build()
    hooks = body(lambda _, hidden, cache: hidden + torch.linspace(-3, 3, hidden.shape[-1]))
    names = ("sampled", "trained", "prefix_shared", "one_sequence")
    found = examine(replace(loaded, adapter=replace(loaded.adapter, **hooks)), names)
    # The body is not that of the model's own generate; who went past the hook would differ from the others.
    assert {name for name, one in found.items() if one.outcome == "failed"} == {"sampled"}


def test_a_model_that_attends_both_ways_is_no_causal_one() -> None:
    assert examine(tiny_bert(), ["causal"])["causal"].outcome == "failed"


def test_a_model_in_half_precision_is_judged_on_pixels_in_half_precision() -> None:
    model, processor = kimi_k25()
    loaded = wrap_model(find_adapter("kimi_k25"), model.bfloat16(), processor, path="tiny-kimi")
    [found] = examine(loaded, ["generated"]).values()
    assert found.outcome == "passed", found.line


def test_pictures_in_another_order_are_noticed() -> None:
    loaded = tiny_llava()
    swapped = replace(loaded, adapter=replace(loaded.adapter, encode=encode_pictures_reversed))
    assert examine(swapped, ["generated"])["generated"].outcome == "failed"


def test_a_family_that_claims_no_shared_prefix_is_not_held_to_it() -> None:
    loaded = tiny_jamba()
    honest = replace(loaded, adapter=replace(loaded.adapter, supports_prefix_sharing=False))
    assert examine(honest, ["prefix_shared"])["prefix_shared"].outcome == "does not apply"


def test_what_the_family_raises_is_the_finding() -> None:
    loaded = tiny_llava()
    [finding] = examine(replace(loaded, processor=None), ["prompt_ids"]).values()
    assert finding.outcome == "failed"
    assert finding.line.startswith("AdapterError: NoneType: the model has no chat template")


@pytest.mark.parametrize(
    "lack", [MemoryError(), RuntimeError("CUDA out of memory"), StorageError("/tmp: no room")]
)
def test_a_lack_of_memory_or_room_is_no_finding_about_a_family(lack: Exception) -> None:
    def backbone(*_: Any) -> Tensor:
        raise lack

    loaded = tiny_text_model()
    short = replace(loaded, adapter=replace(loaded.adapter, backbone=backbone))
    with pytest.raises(type(lack)):
        examine(short, ["generated"])
    with pytest.raises(type(lack)):
        measure(short)
