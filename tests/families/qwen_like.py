"""Tiny families of pictures as packed patches, with a grid each and positions on several axes.

Here are those with the marks of Qwen2-VL or of GLM-4V; packed_like.py has the others.
"""

from functools import partial
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CohereCompassImageProcessor,
    CohereCompassProcessor,
    CohereCompassVideoProcessor,
    Glm4vImageProcessor,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    Glm5NextImageProcessor,
    Glm5NextProcessor,
    Glm5NextVideoProcessor,
    Glm46VImageProcessor,
    Glm46VProcessor,
    Glm46VVideoProcessor,
    GlmgaImageProcessor,
    GlmgaVideoProcessor,
    HYV4VLImageProcessor,
    HYV4VLProcessor,
    HYV4VLVideoProcessor,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from tests.families.build import IMAGE_TEXT_TEMPLATE, Build, Tiny, byte_tokenizer, language, randomised

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
# In pixels of a picture, where patches are merged.
AREAS = {"size": {"shortest_edge": 64, "longest_edge": 1024}}

FRAMES = {"temporal_patch_size": 2}
TOWER = {**FRAMES, "patch_size": 4, "depth": 2, "num_heads": 2, "spatial_merge_size": 2}
WIDE = {**TOWER, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 16}
QWEN3_TOWER = {**WIDE, "num_position_embeddings": 16}
DEEP_TOWER = {**QWEN3_TOWER, "deepstack_visual_indexes": [0]}
GLM_TOWER = {**WIDE, "image_size": 32}
# A transformer over patches, with the usual names.
PATCHES = {
    "patch_size": 4,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def rope(*section: int, **settings: Any) -> dict[str, Any]:
    """Return rotary positions whose frequencies are shared out to axes."""
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(section), **settings}


AXES = {"rope_parameters": rope(2, 1, 1)}
QWEN3 = {"head_dim": 8, "rope_parameters": rope(2, 1, 1, mrope_interleaved=True)}
EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
ROUTED = {
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
    # Some weights of one dimension are drawn when a model is built.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config)
    return randomised(model), processor


def template(picture: str) -> str:
    """Return a chat template that writes a picture so."""
    return IMAGE_TEXT_TEMPLATE.replace("IMAGE", picture)


def grids(
    kind: str,
    classes: tuple[Any, Any, Any],
    vision: dict[str, Any],
    text: dict[str, Any],
    *,
    ids: dict[str, str] = QWEN_IDS,
    picture: str = QWEN_PICTURE,
    sizes: dict[str, Any] = AREAS | FRAMES,
) -> Tiny:
    """Return a family whose processor reads pictures and videos as patches of 4 that are merged by 2."""
    processor_class, image_class, video_class = classes
    processor = processor_class(
        image_processor=image_class(**sizes, patch_size=4, merge_size=2),
        tokenizer=byte_tokenizer(*ids.values()),
        video_processor=video_class(**sizes, patch_size=4, merge_size=2),
        chat_template=template(picture),
    )
    return assemble(kind, processor, ids, vision=vision, text=text)


glm = partial(grids, ids=GLM_IDS, picture=GLM_PICTURE)
COMPASS = {
    "ids": {key: token.upper() for key, token in QWEN_IDS.items()},
    "picture": QWEN_PICTURE.upper(),
}
STILL = AREAS | {"temporal_patch_size": 1}

QWEN2_VL = (Qwen2VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor)
QWEN2_5_VL = (Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor)
QWEN3_VL = (Qwen3VLProcessor, Qwen2VLImageProcessor, Qwen3VLVideoProcessor)
COHERE_COMPASS = (CohereCompassProcessor, CohereCompassImageProcessor, CohereCompassVideoProcessor)
HY_V4_VL = (HYV4VLProcessor, HYV4VLImageProcessor, HYV4VLVideoProcessor)
GLM4V = (Glm4vProcessor, Glm4vImageProcessor, Glm4vVideoProcessor)
GLM46V = (Glm46VProcessor, Glm46VImageProcessor, Glm46VVideoProcessor)
GLMGA = (Glm46VProcessor, GlmgaImageProcessor, GlmgaVideoProcessor)
GLM5_NEXT = (Glm5NextProcessor, Glm5NextImageProcessor, Glm5NextVideoProcessor)

FAMILIES: dict[str, Build] = {
    "qwen2_vl": partial(
        grids, "qwen2_vl", QWEN2_VL, {**TOWER, "embed_dim": 16, "hidden_size": 16, "mlp_ratio": 2}, AXES
    ),
    "qwen2_5_vl": partial(
        grids, "qwen2_5_vl", QWEN2_5_VL, {**WIDE, "window_size": 16, "fullatt_block_indexes": [1]}, AXES
    ),
    "qwen3_vl": partial(grids, "qwen3_vl", QWEN3_VL, DEEP_TOWER, QWEN3),
    "qwen3_vl_moe": partial(grids, "qwen3_vl_moe", QWEN3_VL, DEEP_TOWER, QWEN3 | EXPERTS),
    "qwen3_5": partial(grids, "qwen3_5", QWEN3_VL, QWEN3_TOWER, HYBRID),
    "qwen3_5_moe": partial(
        grids,
        "qwen3_5_moe",
        QWEN3_VL,
        QWEN3_TOWER,
        {**HYBRID, **EXPERTS, "shared_expert_intermediate_size": 16},
    ),
    "glm4v": partial(glm, "glm4v", GLM4V, GLM_TOWER, AXES),
    "glm4v_moe": partial(
        glm,
        "glm4v_moe",
        GLM4V,
        GLM_TOWER,
        {**ROUTED, "head_dim": 16, "rope_parameters": rope(2, 1, 1, partial_rotary_factor=0.5)},
    ),
    "glm46v": partial(
        glm,
        "glm46v",
        GLM46V,
        {**GLM_TOWER, "model_type": "glm4v_vision"},
        {**AXES, "model_type": "glm4v_text"},
    ),
    "glmga": partial(
        glm,
        "glmga",
        GLMGA,
        {**GLM_TOWER, "model_type": "glm4v_vision"},
        {**AXES, "model_type": "glm4v_text"},
    ),
    "glm_ocr": partial(glm, "glm_ocr", GLM46V, GLM_TOWER, AXES),
    "glm5_next": partial(
        glm,
        "glm5_next",
        GLM5_NEXT,
        {**GLM_TOWER, "projection_intermediate_size": 16},
        {
            **ROUTED,
            "num_key_value_heads": 2,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "num_hidden_layers": 3,
            "layer_types": ["linear_attention", "indexed_attention", "indexed_attention"],
            "indexer_types": ["full", "full", "shared"],
            "mlp_layer_types": ["dense", "sparse", "sparse"],
            "linear_head_dim": 8,
            "linear_num_heads": 2,
            "index_topk": 8,
            "index_kpool": 2,
            "index_head_dim": 8,
            "index_n_heads": 8,
            "hc_mult": 2,
        },
        sizes={**FRAMES},
    ),
    "cohere_compass": partial(
        grids,
        "cohere_compass",
        COHERE_COMPASS,
        DEEP_TOWER,
        {
            "layer_types": ["sliding_attention", "full_attention"],
            # Layers that see everything have no positions.
            "rope_parameters": {
                "sliding_attention": rope(2, 1, 1, mrope_interleaved=True),
                "full_attention": None,
            },
            "sliding_window": 8,
            "logit_scale": 0.5,
        },
        **COMPASS,
    ),
    "qwen4_exp": partial(
        grids,
        "qwen4_exp",
        QWEN3_VL,
        QWEN3_TOWER,
        {
            **HYBRID,
            **EXPERTS,
            "shared_expert_intermediate_size": 16,
            "hc_count": 2,
            "hc_lowrank": 8,
            "indexer_n_heads": 8,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 8,
            "indexer_budget": 24,
            "indexer_compress_ratio": 2,
            "ple_layer_ids": [1],
            "ngram_size": 3,
            "heads_per_ngram": 2,
            "ngram_vocab_size_base": 50,
            "make_ngram_vocab_size_divisible_by": 8,
            "split_ngram_parts": 1,
        },
    ),
    "hy_v4_vl": partial(
        grids,
        "hy_v4_vl",
        HY_V4_VL,
        {**PATCHES, "out_hidden_size": 16, "max_image_size": 32},
        {
            "rope_parameters": rope(2, 1, 1),
            "moe_intermediate_size": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
            "index_topk": 8,
            "index_head_dim": 8,
            "index_n_heads": 8,
            "indexer_types": ["full", "shared"],
            "hc_mult": 2,
        },
        sizes=STILL,
    ),
}
