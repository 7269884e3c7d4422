"""Tiny random Qwen2-VL, Qwen2.5-VL and Qwen3-VL models with a byte-level tokenizer, built in memory."""

from functools import lru_cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.catalog import find_adapter
from vlm_distill.models.load import wrap_model

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# That of Qwen2.5-VL without its videos and numbered pictures.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "Be brief.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATCH = {"patch_size": 4, "temporal_patch_size": 2}
TOWER = {**PATCH, "depth": 2, "num_heads": 2, "spatial_merge_size": 2}
WINDOWED = {"hidden_size": 16, "intermediate_size": 32, "window_size": 16, "fullatt_block_indexes": [1]}
DEEP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}
FAMILIES: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
    "qwen2_vl": (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLProcessor,
        {**TOWER, "embed_dim": 16, "hidden_size": 16, "mlp_ratio": 2},
    ),
    "qwen2_5_vl": (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        {**TOWER, **WINDOWED, "out_hidden_size": 16},
    ),
    "qwen3_vl": (
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        {**TOWER, **DEEP, "out_hidden_size": 16},
    ),
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte and the turn and vision tokens of Qwen2.5-VL."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=4096
    )


@lru_cache(maxsize=8)
def tiny_qwen(family: str = "qwen2_5_vl", *, seed: int = 0, vocab_size: int = 264) -> LoadedModel:
    """Return a random model of `family`; the object is shared between tests, so train only a deep copy."""
    config_class, model_class, processor_class, vision = FAMILIES[family]
    tokenizer = byte_tokenizer()
    sizes = {"size": {"shortest_edge": 64, "longest_edge": 1024}, "merge_size": 2, **PATCH}
    processor = processor_class(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(merge_size=2, **PATCH),
        chat_template=TEMPLATE,
    )
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    text = {
        "vocab_size": vocab_size,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
        "initializer_range": 0.3,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "pad_token_id": None,
    }
    text |= {"head_dim": 8} if family == "qwen3_vl" else {}
    config = config_class(
        text_config=text,
        vision_config={**vision, "initializer_range": 0.3},
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
    return wrap_model(find_adapter(family), model.eval(), processor, path=f"tiny-{family}")
