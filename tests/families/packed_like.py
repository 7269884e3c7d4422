"""Tiny families of packed patches, grids or tiles that go ways of their own; qwen_like.py has the others."""

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
    MiniCPMOcrImageProcessor,
    MiniCPMOcrProcessor,
    MiniCPMOcrVideoProcessor,
    MiniCPMV4_6ImageProcessor,
    MiniCPMV4_6Processor,
    MiniCPMV4_6VideoProcessor,
    MiniCPMV4_7Processor,
    Ovis2ImageProcessor,
    Ovis2Processor,
    PaddleOCRVLImageProcessor,
    PaddleOCRVLProcessor,
    Qwen2_5OmniProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3OmniMoeProcessor,
    VideoLlama3ImageProcessor,
    VideoLlama3Processor,
    VideoLlama3VideoProcessor,
    WhisperFeatureExtractor,
)

from tests.families.build import Build, Tiny, byte_tokenizer, names
from tests.families.qwen_like import (
    AREAS,
    DEEP_TOWER,
    EXPERTS,
    HYBRID,
    PATCHES,
    QWEN3,
    QWEN_PICTURE,
    ROUTED,
    WIDE,
    assemble,
    rope,
    template,
)


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
        vision={**PATCHES, "image_size": 32},
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
        video_processor=Ernie4_5_VLMoeVideoProcessor(patch_size=4, merge_size=2, draw_on_frames=False),
        chat_template=template("<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"),
    )
    return assemble(
        "ernie4_5_vl_moe",
        processor,
        {f"{name}_id": token for name, token in marks.items()},
        vision={
            key: value for key, value in WIDE.items() if key not in ("temporal_patch_size", "out_hidden_size")
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
        vision={**PATCHES, "image_size": 16, "hidden_stride": 2, "vocab_size": 24},
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
        **ROUTED,
        "n_group": 1,
        "topk_group": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
    }
    tower = {**PATCHES, "pos_emb_height": 8, "pos_emb_width": 8}
    return assemble("kimi_k25", processor, ids, vision=tower, text=text, projection_hidden_size=16)


def video_llama_3() -> Tiny:
    processor = VideoLlama3Processor(
        image_processor=VideoLlama3ImageProcessor(**AREAS, patch_size=4, merge_size=1),
        tokenizer=byte_tokenizer("<|image_pad|>", "<|video_pad|>"),
        video_processor=VideoLlama3VideoProcessor(patch_size=4),
        chat_template=template("<|image_pad|>"),
    )
    ids = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    return assemble("video_llama_3", processor, ids, vision=PATCHES, text={"model_type": "qwen2"})


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
        **PATCHES,
        "out_hidden_size": 16,
        "max_image_size": 32,
        "min_image_size": 8,
        "img_max_token_num": 64,
        "max_vit_seq_len": 64,
    }
    text = {"head_dim": 8, "rope_parameters": rope(1, 1, 1, 1)}
    return assemble("hunyuan_vl", processor, ids, vision=vision, text=text)


def minicpmv4_6() -> Tiny:
    return _minicpm("minicpmv4_6", MiniCPMV4_6Processor)


def minicpmv4_7() -> Tiny:
    return _minicpm("minicpmv4_7", MiniCPMV4_7Processor)


def minicpm_ocr() -> Tiny:
    return _minicpm(
        "minicpm_ocr", MiniCPMOcrProcessor, images=MiniCPMOcrImageProcessor, videos=MiniCPMOcrVideoProcessor
    )


def _minicpm(
    kind: str,
    processor_class: Any,
    *,
    images: Any = MiniCPMV4_6ImageProcessor,
    videos: Any = MiniCPMV4_6VideoProcessor,
) -> Tiny:
    marks = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "image_start_token": "<image>",
        "image_end_token": "</image>",
        "slice_start_token": "<slice>",
        "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>",
        "image_id_end_token": "</image_id>",
    }
    sizes = {"patch_size": 4, "scale_resolution": 16, "max_slice_nums": 4}
    processor = processor_class(
        image_processor=images(**sizes),
        video_processor=videos(**sizes),
        tokenizer=_tokenizer(marks),
        chat_template=template("<|image_pad|>"),
    )
    ids = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    if kind == "minicpmv4_7":
        # It lays out slices by their marks.
        ids |= {f"{place}_id": marks[f"{place}_token"] for place in _PLACES} | {"newline_id": "\u010a"}
    return assemble(
        kind,
        processor,
        ids,
        vision={**PATCHES, "image_size": 32},
        text={**HYBRID, "model_type": "qwen3_5_text"},
        insert_layer_id=0,
        image_size=16,
    )


_PLACES = ("image_start", "image_end", "slice_start", "slice_end")


def qwen2_5_omni_thinker() -> Tiny:
    vision = {**WIDE, "window_size": 16, "fullatt_block_indexes": [1]}
    return _omni("qwen2_5_omni_thinker", Qwen2_5OmniProcessor, vision, {"rope_parameters": rope(2, 1, 1)})


def qwen3_omni_moe_thinker() -> Tiny:
    return _omni("qwen3_omni_moe_thinker", Qwen3OmniMoeProcessor, DEEP_TOWER, QWEN3 | EXPERTS)


def _omni(kind: str, processor_class: Any, vision: dict[str, Any], text: dict[str, Any]) -> Tiny:
    marks = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "audio_token": "<|audio_pad|>",
        "vision_bos_token": "<|vision_start|>",
        "vision_eos_token": "<|vision_end|>",
        "audio_bos_token": "<|audio_start|>",
        "audio_eos_token": "<|audio_end|>",
    }
    patch = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
    processor = processor_class(
        image_processor=Qwen2VLImageProcessor(**AREAS, **patch),
        video_processor=Qwen2VLVideoProcessor(**patch),
        feature_extractor=WhisperFeatureExtractor(feature_size=8),
        tokenizer=_tokenizer(marks),
        chat_template=template(QWEN_PICTURE),
    )
    ids = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "audio_token_id": "<|audio_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "audio_start_token_id": "<|audio_start|>",
        "audio_end_token_id": "<|audio_end|>",
    }
    audio = {
        "num_mel_bins": 8,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "d_model": 16,
        "max_source_positions": 20,
        "n_window": 4,
        "output_dim": 16,
        "downsample_hidden_size": 8,
    }
    return assemble(kind, processor, ids, vision=vision, text=text, audio_config=audio)


def _tokenizer(marks: dict[str, str], *special: str) -> Any:
    """Return a tokenizer with attributes for some of its special tokens."""
    return byte_tokenizer(*marks.values(), *special, extra_special_tokens=marks)


FAMILIES: dict[str, Build] = names(
    (
        paddleocr_vl,
        ernie4_5_vl_moe,
        ovis2,
        kimi_k25,
        video_llama_3,
        hunyuan_vl,
        minicpmv4_6,
        minicpmv4_7,
        minicpm_ocr,
        qwen2_5_omni_thinker,
        qwen3_omni_moe_thinker,
    )
)
