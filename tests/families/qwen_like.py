"""Tiny families whose pictures are packed patches with a grid each, most of them with positions on several axes.

Two groups by their marks: those of Qwen2-VL and those of GLM-4V. packed_like.py has the others.
"""

from functools import partial
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Glm4vImageProcessor,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    Glm46VImageProcessor,
    Glm46VProcessor,
    Glm46VVideoProcessor,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from tests.families.build import IMAGE_TEXT_TEMPLATE, Build, Tiny, byte_tokenizer, language, randomised

QWEN_MARKS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
QWEN_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
QWEN_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
GLM_IDS = {
    "image_token_id": "<|image|>",
    "video_token_id": "<|video|>",
    "image_start_token_id": "<|begin_of_image|>",
    "image_end_token_id": "<|end_of_image|>",
    "video_start_token_id": "<|begin_of_video|>",
    "video_end_token_id": "<|end_of_video|>",
}
GLM_PICTURE = "<|begin_of_image|><|image|><|end_of_image|>"

PATCH = {"patch_size": 4, "temporal_patch_size": 2}
TOWER = {**PATCH, "depth": 2, "num_heads": 2, "spatial_merge_size": 2}
WIDTH = {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 16}
POSITIONS = {"num_position_embeddings": 16}
# In pixels of a picture, where patches are merged.
AREAS = {"size": {"shortest_edge": 64, "longest_edge": 1024}}


def rope(*section: int, **settings: Any) -> dict[str, Any]:
    """Return rotary positions whose frequencies are shared out to axes."""
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(section), **settings}


AXES = {"rope_parameters": rope(2, 1, 1)}
EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
GLM_EXPERTS = {
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}
# One layer in two is recurrent; rotary positions reach half of a head.
HYBRID = {
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 16,
    "rope_parameters": rope(2, 1, 1, partial_rotary_factor=0.5, mrope_interleaved=True),
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
}
QWEN3 = {"head_dim": 8, "rope_parameters": rope(2, 1, 1, mrope_interleaved=True)}
DEEP = {**TOWER, **WIDTH, **POSITIONS, "deepstack_visual_indexes": [0]}


def assemble(
    model_type: str,
    processor: Any,
    ids: dict[str, str],
    *,
    vision: dict[str, Any],
    text: dict[str, Any],
    **settings: Any,
) -> Tiny:
    """Return a model of a type whose config holds the ids of tokens of the processor, and the processor."""
    tokenizer = processor.tokenizer
    config = AutoConfig.for_model(
        model_type,
        text_config=language(tokenizer, **text),
        vision_config=vision,
        **{key: tokenizer.convert_tokens_to_ids(token) for key, token in ids.items()},
        **settings,
    )
    return randomised(AutoModelForImageTextToText.from_config(config)), processor


def template(picture: str) -> str:
    return IMAGE_TEXT_TEMPLATE.replace("IMAGE", picture)


def _qwen(
    model_type: str, processor_class: Any, video_class: Any, vision: dict[str, Any], **text: Any
) -> Tiny:
    processor = processor_class(
        image_processor=Qwen2VLImageProcessor(**AREAS, **PATCH, merge_size=2),
        tokenizer=byte_tokenizer(*QWEN_MARKS),
        video_processor=video_class(**PATCH, merge_size=2),
        chat_template=template(QWEN_PICTURE),
    )
    return assemble(model_type, processor, QWEN_IDS, vision=vision, text=text)


def _glm(kind: str, classes: tuple[Any, Any, Any], vision: dict[str, Any], **text: Any) -> Tiny:
    processor_class, image_class, video_class = classes
    processor = processor_class(
        image_processor=image_class(**AREAS, **PATCH, merge_size=2),
        tokenizer=byte_tokenizer(*GLM_IDS.values()),
        video_processor=video_class(**AREAS, **PATCH, merge_size=2),
        chat_template=template(GLM_PICTURE),
    )
    return assemble(kind, processor, GLM_IDS, vision=vision, text=text)


_qwen2 = partial(_qwen, video_class=Qwen2VLVideoProcessor, **AXES)
_qwen3 = partial(_qwen, processor_class=Qwen3VLProcessor, video_class=Qwen3VLVideoProcessor)
GLM4V = (Glm4vProcessor, Glm4vImageProcessor, Glm4vVideoProcessor)
GLM46V = (Glm46VProcessor, Glm46VImageProcessor, Glm46VVideoProcessor)
GLM_TOWER = {**TOWER, **WIDTH, "image_size": 32}

FAMILIES: dict[str, Build] = {
    "qwen2_vl": partial(
        _qwen2,
        "qwen2_vl",
        processor_class=Qwen2VLProcessor,
        vision={**TOWER, "embed_dim": 16, "hidden_size": 16, "mlp_ratio": 2},
    ),
    "qwen2_5_vl": partial(
        _qwen2,
        "qwen2_5_vl",
        processor_class=Qwen2_5_VLProcessor,
        vision={**TOWER, **WIDTH, "window_size": 16, "fullatt_block_indexes": [1]},
    ),
    "qwen3_vl": partial(_qwen3, "qwen3_vl", vision=DEEP, **QWEN3),
    "qwen3_vl_moe": partial(_qwen3, "qwen3_vl_moe", vision=DEEP, **QWEN3, **EXPERTS),
    "qwen3_5": partial(_qwen3, "qwen3_5", vision={**TOWER, **WIDTH, **POSITIONS}, **HYBRID),
    "qwen3_5_moe": partial(
        _qwen3,
        "qwen3_5_moe",
        vision={**TOWER, **WIDTH, **POSITIONS},
        shared_expert_intermediate_size=16,
        **HYBRID,
        **EXPERTS,
    ),
    "glm4v": partial(_glm, "glm4v", GLM4V, GLM_TOWER, **AXES),
    "glm4v_moe": partial(
        _glm,
        "glm4v_moe",
        GLM4V,
        GLM_TOWER,
        head_dim=16,
        rope_parameters=rope(2, 1, 1, partial_rotary_factor=0.5),
        **GLM_EXPERTS,
    ),
    "glm46v": partial(
        _glm,
        "glm46v",
        GLM46V,
        {"model_type": "glm4v_vision", **GLM_TOWER},
        model_type="glm4v_text",
        **AXES,
    ),
    "glm_ocr": partial(_glm, "glm_ocr", GLM46V, GLM_TOWER, **AXES),
}
