"""Tiny families with packed patches, grids or tiles that go ways of their own; qwen_like.py has their relatives."""

from typing import Any

from transformers import (
    Ernie4_5_VLMoeImageProcessor,
    Ernie4_5_VLMoeProcessor,
    Ernie4_5_VLMoeVideoProcessor,
    HunYuanVLImageProcessor,
    HunYuanVLProcessor,
    Kimi_K25ImageProcessor,
    Kimi_K25Processor,
    Kimi_K25VideoProcessor,
    Ovis2ImageProcessor,
    Ovis2Processor,
    PaddleOCRVLImageProcessor,
    PaddleOCRVLProcessor,
    VideoLlama3ImageProcessor,
    VideoLlama3Processor,
    VideoLlama3VideoProcessor,
)

from tests.families.build import Build, Tiny, byte_tokenizer, names
from tests.families.qwen_like import AREAS, assemble, rope, template

# A transformer over patches of one picture, without what belongs to pictures of several frames.
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
}


def paddleocr_vl() -> Tiny:
    processor = PaddleOCRVLProcessor(
        image_processor=PaddleOCRVLImageProcessor(**AREAS, patch_size=4, merge_size=2),
        tokenizer=_tokenizer({"image_token": "<|IMAGE_PLACEHOLDER|>"}, "<|IMAGE_START|>", "<|IMAGE_END|>"),
        chat_template=template("<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"),
    )
    ids = {
        "image_token_id": "<|IMAGE_PLACEHOLDER|>",
        "vision_start_token_id": "<|IMAGE_START|>",
        "vision_end_token_id": "<|IMAGE_END|>",
    }
    return assemble(
        "paddleocr_vl",
        processor,
        ids,
        vision={**TOWER, "image_size": 32},
        text={"head_dim": 8, "rope_parameters": rope(2, 1, 1)},
    )


def ernie4_5_vl_moe() -> Tiny:
    marks = {
        "image_token": "<|IMAGE_PLACEHOLDER|>",
        "image_start_token": "<|IMAGE_START|>",
        "image_end_token": "<|IMAGE_END|>",
        "video_token": "<|VIDEO_PLACEHOLDER|>",
        "video_start_token": "<|VIDEO_START|>",
        "video_end_token": "<|VIDEO_END|>",
    }
    processor = Ernie4_5_VLMoeProcessor(
        image_processor=Ernie4_5_VLMoeImageProcessor(**AREAS, patch_size=4, merge_size=2),
        tokenizer=_tokenizer(marks),
        video_processor=Ernie4_5_VLMoeVideoProcessor(patch_size=4, merge_size=2),
        chat_template=template("<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"),
    )
    return assemble(
        "ernie4_5_vl_moe",
        processor,
        {f"{name}_id": token for name, token in marks.items()},
        vision={
            "depth": 2,
            "num_heads": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
        },
        # Height and width have as many frequencies as each other.
        text={
            "rope_parameters": rope(1, 1, 2),
            "moe_intermediate_size": [16, 16],
            "moe_num_experts": 4,
            "moe_k": 2,
        },
    )


def ovis2() -> Tiny:
    marks = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    tokenizer = byte_tokenizer("<image>", "<IMG_ATOM>", *marks)
    processor = Ovis2Processor(
        image_processor=Ovis2ImageProcessor(
            size={"height": 16, "width": 16}, crop_to_patches=True, max_patches=4
        ),
        tokenizer=tokenizer,
        chat_template=template("<image>"),
        image_seq_length=4,
    )
    return assemble(
        "ovis2",
        processor,
        {"image_token_id": "<IMG_ATOM>"},
        vision={**TOWER, "image_size": 16, "hidden_stride": 2, "vocab_size": 24},
        text={"model_type": "qwen2"},
        visual_indicator_token_ids=tokenizer.convert_tokens_to_ids(list(marks)),
        hidden_size=16,
        vocab_size=len(tokenizer),
    )


def kimi_k25() -> Tiny:
    marks = ("<|media_begin|>", "<|media_content|>", "<|media_end|>", "<|kimi_k25_video_placeholder|>")
    processor = Kimi_K25Processor(
        image_processor=Kimi_K25ImageProcessor(
            size={"max_height": 16, "max_width": 16}, max_patches=64, patch_size=4, merge_size=2
        ),
        tokenizer=byte_tokenizer("<|media_pad|>", *marks),
        video_processor=Kimi_K25VideoProcessor(),
        chat_template=template("<|media_begin|>image<|media_content|><|media_pad|><|media_end|>"),
    )
    ids = {
        "image_token_id": "<|media_pad|>",
        "video_token_id": "<|kimi_k25_video_placeholder|>",
        "vision_start_token_id": "<|media_begin|>",
        "vision_end_token_id": "<|media_end|>",
    }
    text = {
        "model_type": "deepseek_v3",
        "num_key_value_heads": 2,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
    }
    tower = {**TOWER, "pos_emb_height": 8, "pos_emb_width": 8}
    return assemble("kimi_k25", processor, ids, vision=tower, text=text, projection_hidden_size=16)


def video_llama_3() -> Tiny:
    processor = VideoLlama3Processor(
        image_processor=VideoLlama3ImageProcessor(**AREAS, patch_size=4, merge_size=1),
        tokenizer=byte_tokenizer("<|image_pad|>", "<|video_pad|>"),
        video_processor=VideoLlama3VideoProcessor(patch_size=4),
        chat_template=template("<|image_pad|>"),
    )
    ids = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    return assemble("video_llama_3", processor, ids, vision=TOWER, text={"model_type": "qwen2"})


def hunyuan_vl() -> Tiny:
    marks = {
        "image_token": "<image>",
        "image_start_token": "<image_start>",
        "image_end_token": "<image_end>",
    }
    processor = HunYuanVLProcessor(
        image_processor=HunYuanVLImageProcessor(**AREAS, patch_size=4, merge_size=2),
        tokenizer=_tokenizer(marks, "<image_newline>"),
        chat_template=template("<image_start><image><image_end>"),
    )
    ids = {
        "image_token_id": "<image>",
        "im_start_id": "<image_start>",
        "im_end_id": "<image_end>",
        "im_newline_id": "<image_newline>",
    }
    vision = {
        **TOWER,
        "out_hidden_size": 16,
        "max_image_size": 32,
        "min_image_size": 8,
        "img_max_token_num": 64,
        "max_vit_seq_len": 64,
    }
    text = {"head_dim": 8, "rope_parameters": rope(1, 1, 1, 1)}
    return assemble("hunyuan_vl", processor, ids, vision=vision, text=text)


def _tokenizer(marks: dict[str, str], *special: str) -> Any:
    """Return a tokenizer with attributes for some of its special tokens."""
    return byte_tokenizer(*marks.values(), *special, extra_special_tokens=marks)


FAMILIES: dict[str, Build] = names(
    (paddleocr_vl, ernie4_5_vl_moe, ovis2, kimi_k25, video_llama_3, hunyuan_vl)
)
