"""Families of the LLaVA kind: the features of a tower, projected, in the places of image tokens."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AyaVisionProcessor,
    CLIPImageProcessor,
    Cohere2VisionImageProcessor,
    Cohere2VisionProcessor,
    GotOcr2ImageProcessor,
    Granite4VisionProcessor,
    InternVLProcessor,
    InternVLVideoProcessor,
    LightOnOcrProcessor,
    LlavaImageProcessor,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaNextVideoProcessor,
    LlavaNextVideoVideoProcessor,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    PerceptionLMImageProcessor,
    PerceptionLMProcessor,
    PerceptionLMVideoProcessor,
    PixtralImageProcessor,
    PixtralProcessor,
    SiglipImageProcessor,
    VideoLlavaImageProcessor,
    VideoLlavaProcessor,
    VideoLlavaVideoProcessor,
)

from tests.families.build import IMAGE_TEXT_TEMPLATE, Tiny, byte_tokenizer, language, names, randomised

SIZE, PATCH = 16, 8
SQUARE = {"height": SIZE, "width": SIZE}
CROP = {"size": {"shortest_edge": SIZE}, "crop_size": SQUARE}
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP = {**TOWER, "model_type": "clip_vision_model", "image_size": SIZE, "patch_size": PATCH}
SIGLIP = {**CLIP, "model_type": "siglip_vision_model", "vision_use_head": False}
# Of smaller patches, four of which become one token.
MERGED = {**SIGLIP, "patch_size": PATCH // 2}
PIXTRAL = {**TOWER, "model_type": "pixtral", "image_size": 64, "patch_size": PATCH // 2}
TILES = [[SIZE, 2 * SIZE], [2 * SIZE, SIZE], [2 * SIZE, 2 * SIZE]]
# A class token that is counted and taken away again.
CLIP_TOKENS = {
    "patch_size": PATCH,
    "num_additional_image_tokens": 1,
    "vision_feature_select_strategy": "default",
}


def template(image: str) -> str:
    return IMAGE_TEXT_TEMPLATE.replace("IMAGE", image)


def built(
    model_type: str, processor: Any, *, vision: Mapping[str, Any], text: Mapping[str, Any], **settings: Any
) -> Tiny:
    """Return a random model of a type, and the processor whose placeholders its config gets."""
    ids = {
        f"{kind}_token_id": getattr(processor, f"{kind}_token_id")
        for kind in ("image", "video")
        if hasattr(processor, f"{kind}_token_id")
    }
    config = AutoConfig.for_model(
        model_type,
        vision_config=dict(vision),
        text_config=language(processor.tokenizer, **text),
        **{**ids, **settings},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomised(AutoModelForImageTextToText.from_config(config)), processor


def llava() -> Tiny:
    processor = LlavaProcessor(
        image_processor=LlavaImageProcessor(**CROP),
        tokenizer=byte_tokenizer("<image>"),
        chat_template=template("<image>\n"),
        **CLIP_TOKENS,
    )
    return built("llava", processor, vision=CLIP, text={"model_type": "llama"})


def llava_siglip() -> Tiny:
    processor = LlavaProcessor(
        image_processor=SiglipImageProcessor(size=SQUARE),
        tokenizer=byte_tokenizer("<image>"),
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=template("<image>\n"),
    )
    settings = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}
    return built("llava", processor, vision=SIGLIP, text={"model_type": "qwen2"}, **settings)


def llava_pixtral() -> Tiny:
    settings = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}
    text = {"model_type": "mistral", "head_dim": 8, "sliding_window": None}
    return built("llava", pixtral_processor(), vision=PIXTRAL, text=text, **settings)


def pixtral_processor(spatial_merge_size: int = 1) -> PixtralProcessor:
    return PixtralProcessor(
        image_processor=PixtralImageProcessor(size={"longest_edge": 24}, patch_size=PATCH // 2),
        tokenizer=byte_tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        patch_size=PATCH // 2,
        spatial_merge_size=spatial_merge_size,
        chat_template=template("[IMG]"),
    )


def llava_next() -> Tiny:
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(**CROP, image_grid_pinpoints=TILES),
        tokenizer=byte_tokenizer("<image>"),
        chat_template=template("<image>\n"),
        **CLIP_TOKENS,
    )
    text = {"model_type": "mistral", "head_dim": 8, "sliding_window": None}
    return built("llava_next", processor, vision=CLIP, text=text, image_grid_pinpoints=TILES)


def llava_onevision() -> Tiny:
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=TILES),
        tokenizer=byte_tokenizer("<image>", "<video>"),
        video_processor=LlavaOnevisionVideoProcessor(size=SQUARE),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=template("<image>\n"),
    )
    text = {"model_type": "qwen2"}
    return built("llava_onevision", processor, vision=SIGLIP, text=text, image_grid_pinpoints=TILES)


def llava_next_video() -> Tiny:
    processor = LlavaNextVideoProcessor(
        video_processor=LlavaNextVideoVideoProcessor(**CROP),
        image_processor=LlavaNextImageProcessor(**CROP, image_grid_pinpoints=TILES),
        tokenizer=byte_tokenizer("<image>", "<video>"),
        chat_template=template("<image>\n"),
        **CLIP_TOKENS,
    )
    text = {"model_type": "llama"}
    return built("llava_next_video", processor, vision=CLIP, text=text, image_grid_pinpoints=TILES)


def vipllava() -> Tiny:
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(**CROP),
        tokenizer=byte_tokenizer("<image>"),
        chat_template=template("<image>\n"),
        **CLIP_TOKENS,
    )
    text = {"model_type": "llama"}
    return built("vipllava", processor, vision=CLIP, text=text, vision_feature_layer=[-1, -2, 0])


def video_llava() -> Tiny:
    processor = VideoLlavaProcessor(
        image_processor=VideoLlavaImageProcessor(**CROP),
        video_processor=VideoLlavaVideoProcessor(**CROP),
        tokenizer=byte_tokenizer("<image>", "<video>"),
        chat_template=template("<image>\n"),
        **CLIP_TOKENS,
    )
    return built("video_llava", processor, vision=CLIP, text={"model_type": "llama"})


# Every second layer sees all, and the window is shorter than a prompt.
COHERE2 = {
    "model_type": "cohere2",
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}


def aya_vision() -> Tiny:
    special = ("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>")
    processor = AyaVisionProcessor(
        image_processor=GotOcr2ImageProcessor(size=SQUARE, max_patches=3),
        tokenizer=byte_tokenizer(*special, "TILE", "TILE_GLOBAL"),
        patch_size=PATCH // 2,
        img_size=SIZE,
        downsample_factor=2,
        chat_template=template("<image>"),
    )
    return built("aya_vision", processor, vision=MERGED, text=COHERE2)


def cohere2_vision() -> Tiny:
    special = {
        "boi_token": "<|START_OF_IMG|>",
        "eoi_token": "<|END_OF_IMG|>",
        "image_token": "<|IMG_PATCH|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    }
    processor = Cohere2VisionProcessor(
        # Its patch size is the number of tokens along a side of a tile.
        image_processor=Cohere2VisionImageProcessor(size=SQUARE, max_patches=3, patch_size=2),
        tokenizer=byte_tokenizer(*special.values(), extra_special_tokens=special),
        chat_template=template("<|IMG_PATCH|>"),
    )
    return built("cohere2_vision", processor, vision=MERGED, text=COHERE2, alignment_intermediate_size=32)


def mistral3() -> Tiny:
    text = {"model_type": "mistral", "head_dim": 8, "sliding_window": None}
    return built("mistral3", pixtral_processor(2), vision=PIXTRAL, text=text)


def lighton_ocr() -> Tiny:
    special = {
        "image_token": "<|image_pad|>",
        "image_break_token": "<|vision_pad|>",
        "image_end_token": "<|vision_end|>",
    }
    processor = LightOnOcrProcessor(
        image_processor=PixtralImageProcessor(size={"longest_edge": 24}, patch_size=PATCH),
        tokenizer=byte_tokenizer(*special.values(), extra_special_tokens=special),
        patch_size=PATCH // 2,
        spatial_merge_size=2,
        chat_template=template("<|image_pad|>"),
    )
    text = {"model_type": "qwen3", "head_dim": 8}
    return built("lighton_ocr", processor, vision=PIXTRAL, text=text)


def perception_lm() -> Tiny:
    special = {"image_token": "<|image|>", "video_token": "<|video|>"}
    processor = PerceptionLMProcessor(
        video_processor=PerceptionLMVideoProcessor(size=SQUARE),
        image_processor=PerceptionLMImageProcessor(tile_size=SIZE, max_num_tiles=4),
        tokenizer=byte_tokenizer(*special.values(), extra_special_tokens=special),
        patch_size=PATCH // 2,
        pooling_ratio=2,
        chat_template=template("<|image|>"),
    )
    vision = {
        "model_type": "timm_wrapper",
        "architecture": "vit_pe_core_large_patch14_336",
        "model_args": {
            "embed_dim": 64,
            "depth": 2,
            "img_size": (SIZE, SIZE),
            "patch_size": PATCH // 2,
            "ref_feat_shape": (4, 4),
            "global_pool": "",
            "use_post_transformer_norm": False,
            "init_values": 0.1,
        },
    }
    return built(
        "perception_lm", processor, vision=vision, text={"model_type": "llama"}, projector_pooling_ratio=2
    )


def fast_vlm() -> Tiny:
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": 128}, crop_size={"height": 128, "width": 128}
        ),
        tokenizer=byte_tokenizer("<image>"),
        patch_size=64,
        chat_template=template("<image>\n"),
    )
    vision = {
        "model_type": "timm_wrapper",
        "architecture": "fastvit_mci3",
        "do_pooling": True,
        "global_pool": "avg",
        "hidden_size": 64,
        "model_args": {
            "inference_mode": True,
            "layers": (1, 1, 1, 1, 1),
            "embed_dims": (2, 4, 8, 32, 32),
            "mlp_ratios": (2, 2, 2, 2, 2),
        },
    }
    return built("fast_vlm", processor, vision=vision, text={"model_type": "qwen2"})


def granite4_vision() -> Tiny:
    processor = Granite4VisionProcessor(
        image_processor=LlavaNextImageProcessor(**CROP, image_grid_pinpoints=TILES),
        tokenizer=byte_tokenizer("<image>"),
        chat_template=template("<image>\n"),
        **{**CLIP_TOKENS, "patch_size": PATCH // 2},
        downsample_rate="1/2",
    )
    # The heads of its query transformer are 64 wide.
    vision = {**CLIP, "patch_size": PATCH // 2, "hidden_size": 64}
    text = {"num_hidden_layers": 4, "logits_scaling": 2.0, "embedding_multiplier": 3.0}
    return built(
        "granite4_vision",
        processor,
        vision=vision,
        text={**text, "residual_multiplier": 0.5, "attention_multiplier": 0.3},
        qformer_config={
            "model_type": "blip_2_qformer",
            "num_hidden_layers": 1,
            "intermediate_size": 32,
            "cross_attention_frequency": 1,
            "use_qformer_text_input": False,
        },
        image_grid_pinpoints=TILES,
        downsample_rate="1/2",
        deepstack_layer_map=[(-1, 0), (-2, 1)],
        spatial_target_layers=[0, 1, 2, 3],
    )


def internvl() -> Tiny:
    special = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=SQUARE, max_patches=3),
        tokenizer=byte_tokenizer(*special.values(), extra_special_tokens=special),
        video_processor=InternVLVideoProcessor(size=SQUARE),
        image_seq_length=4,
        chat_template=template("<IMG_CONTEXT>\n"),
    )
    vision = {**TOWER, "image_size": [SIZE, SIZE], "patch_size": [PATCH // 2, PATCH // 2]}
    text = {"model_type": "qwen2"}
    return built("internvl", processor, vision=vision, text=text, image_seq_length=4)


FAMILIES = names(
    [
        llava,
        llava_siglip,
        llava_pixtral,
        llava_next,
        llava_onevision,
        llava_next_video,
        vipllava,
        video_llava,
        aya_vision,
        cohere2_vision,
        mistral3,
        lighton_ocr,
        perception_lm,
        fast_vlm,
        granite4_vision,
        internvl,
    ]
)
