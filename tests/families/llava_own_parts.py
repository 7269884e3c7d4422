"""Families of the LLaVA kind with a tower, a projector or a language model of their own."""

from typing import Any

from transformers import (
    Apertus1p5ImageProcessor,
    Apertus1p5Processor,
    AutoConfig,
    AutoModelForImageTextToText,
    DeepseekOcr2ImageProcessor,
    DeepseekOcr2Processor,
    Exaone4_5_Processor,
    GotOcr2ImageProcessor,
    GraniteDoclingImageProcessor,
    GraniteDoclingProcessor,
    HyperCLOVAXVisionV2Processor,
    NemotronH_Omni_Reasoning_V3ImageProcessor,
    NemotronH_Omni_Reasoning_V3Processor,
    NemotronH_Omni_Reasoning_V3VideoProcessor,
    ParakeetFeatureExtractor,
    QianfanOCRProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Step3p7ImageProcessor,
    Step3p7Processor,
    WavTokenizerFeatureExtractor,
)

from tests.families.build import TEXT_TEMPLATE, Tiny, byte_tokenizer, language, names, randomised
from tests.families.llava_like import (
    PATCH,
    PIXTRAL,
    SIZE,
    SQUARE,
    TOWER,
    built,
    pixtral_processor,
    template,
)
from tests.families.text_hybrid import NO_LEAST_STEP

LATENT = {
    "num_key_value_heads": 2,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}
MISTRAL4 = {**LATENT, "model_type": "mistral4", "q_lora_rank": 8, "first_k_dense_replace": 1}
# Patches of any number, four of which become one token.
PATCHES = {"patch_size": 4, "temporal_patch_size": 2}
GRID = {"size": {"shortest_edge": 64, "longest_edge": 1024}, "merge_size": 2, **PATCHES}
WINDOWED = {
    **PATCHES,
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_heads": 2,
    "spatial_merge_size": 2,
    "window_size": 16,
    "fullatt_block_indexes": [1],
    "out_hidden_size": 16,
}


def mistral3_mistral4() -> Tiny:
    return built("mistral3", pixtral_processor(2), vision=PIXTRAL, text=MISTRAL4)


def mistral4() -> Tiny:
    tokenizer = byte_tokenizer(chat_template=TEXT_TEMPLATE)
    text = language(tokenizer, **MISTRAL4)
    return randomised(AutoModelForImageTextToText.from_config(AutoConfig.for_model(**text))), tokenizer


def mistral_large4() -> Tiny:
    text = {
        **LATENT,
        "num_hidden_layers": 3,
        "no_rope_layers": [1, 0, 1],
        "kv_source_layers": [0, 1, 0],
        "indexer_types": ["full", "shared", "full"],
        "index_topk": 16,
        "index_head_dim": 8,
        # With few heads, keys tie at zero, and which of them are chosen depends on the length.
        "index_n_heads": 16,
    }
    return built("mistral_large4", pixtral_processor(2), vision=PIXTRAL, text=text)


def granite_docling() -> Tiny:
    tags = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    processor = GraniteDoclingProcessor(
        image_processor=GraniteDoclingImageProcessor(size=SQUARE, max_patches=3),
        tokenizer=byte_tokenizer("<image>", "<fake_token_around_image>", "<global-img>", *tags),
        image_seq_len=4,
        chat_template=template("<image>"),
    )
    vision = {
        **TOWER,
        "image_size": SIZE,
        "patch_size": PATCH // 4,
        "scale_factor": 4,
        "out_hidden_size": 16,
        "deepstack_visual_indexes": [0, 1],
    }
    text = {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "attention_multiplier": 0.3}
    return built("granite_docling", processor, vision=vision, text=text, pad_token_id=None)


def qianfan_ocr() -> Tiny:
    special = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
    }
    processor = QianfanOCRProcessor(
        image_processor=GotOcr2ImageProcessor(size=SQUARE, max_patches=3),
        tokenizer=byte_tokenizer(*special.values(), "<image>", extra_special_tokens=special),
        image_seq_length=4,
        chat_template=template("<image>\n"),
    )
    vision = {**TOWER, "image_size": [SIZE, SIZE], "patch_size": [PATCH // 2, PATCH // 2]}
    text = {"model_type": "qwen3", "head_dim": 8}
    return built("qianfan_ocr", processor, vision=vision, text=text, image_seq_length=4)


def exaone4_5() -> Tiny:
    # Only layers with a window are rotary.
    text = {
        "model_type": "exaone4",
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    vision = {**WINDOWED, "num_key_value_heads": 1}
    return built("exaone4_5", _grid_processor(Exaone4_5_Processor), vision=vision, text=text)


def hyperclovax_vision_v2() -> Tiny:
    text = {
        "model_type": "hyperclovax",
        "logits_scaling": 0.5,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.3,
    }
    processor = _grid_processor(HyperCLOVAXVisionV2Processor)
    vision = {**WINDOWED, "model_type": "qwen2_5_vl_vision"}
    return built("hyperclovax_vision_v2", processor, vision=vision, text=text)


def _grid_processor(processor_class: Any) -> Any:
    """Return a processor of a class that takes a picture apart as Qwen2-VL does."""
    return processor_class(
        image_processor=Qwen2VLImageProcessor(**GRID),
        tokenizer=byte_tokenizer("<|image_pad|>", "<|video_pad|>"),
        video_processor=Qwen2VLVideoProcessor(merge_size=2, **PATCHES),
        chat_template=template("<|image_pad|>"),
    )


def nemotron_h_omni() -> Tiny:
    patches = {"patch_size": 4, "min_num_patches": 4, "max_num_patches": 24}
    special = ("<image>", "<img>", "</img>", "<video>", "<so_embedding>", "<so_start>", "<so_end>")
    processor = NemotronH_Omni_Reasoning_V3Processor(
        image_processor=NemotronH_Omni_Reasoning_V3ImageProcessor(**patches),
        video_processor=NemotronH_Omni_Reasoning_V3VideoProcessor(patch_size=4),
        tokenizer=byte_tokenizer(*special),
        feature_extractor=ParakeetFeatureExtractor(),
        chat_template=template("<image>"),
    )
    vision = {
        "model_type": "radio",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_ratio": 2.0,
        "patch_size": 4,
        "image_size": SIZE,
        "max_img_size": 64,
        "video_temporal_patch_size": 2,
    }
    text = {
        "model_type": "nemotron_h",
        "layers_block_type": ["mamba", "moe", "attention", "mlp"],
        "num_hidden_layers": 4,
        "head_dim": 8,
        "ssm_state_size": 4,
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "chunk_size": 8,
        "n_routed_experts": 4,
        "moe_intermediate_size": 16,
        "moe_shared_expert_intermediate_size": 16,
        **NO_LEAST_STEP,
    }
    return built(
        "nemotron_h_omni",
        processor,
        vision=vision,
        text=text,
        projector_hidden_size=32,
        vision_hidden_size=16,
        audio_config=None,
        audio_token_id=processor.audio_token_id,
    )


APERTUS_SPECIAL = {
    "image_token": "<|image|>",
    "audio_token": "<|audio|>",
    "boi_token": "<|image_start|>",
    "eoi_token": "<|image_end|>",
    "image_wrapper_token": "<|image_wrapper|>",
    "eol_token": "<|eol|>",
    "boa_token": "<|audio_start|>",
    "eoa_token": "<|audio_end|>",
}
APERTUS_VISION = {
    "codebook_size": 16,
    "embed_dim": 8,
    "latent_channels": 8,
    "base_channels": 32,
    "channel_multiplier": [1, 1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [4],
    "resolution": 16,
}
APERTUS_AUDIO = {
    "model_type": "wavtokenizer_encoder",
    "num_filters": 4,
    "upsampling_ratios": [2, 2],
    "hidden_size": 8,
    "codebook_size": 4,
    "codebook_dim": 8,
    "num_lstm_layers": 1,
}


def apertus1p5() -> Tiny:
    codes = [f"<|visual token {code}|>" for code in range(16)]
    codes += [f"<|audio token {code}|>" for code in range(4)]
    processor = Apertus1p5Processor(
        image_processor=Apertus1p5ImageProcessor(
            spatial_factor=4, size={"min_pixels": 64, "max_pixels": 512}
        ),
        feature_extractor=WavTokenizerFeatureExtractor(hop_length=4),
        tokenizer=byte_tokenizer(*APERTUS_SPECIAL.values(), *codes, extra_special_tokens=APERTUS_SPECIAL),
        chat_template=template("<|image|>"),
    )
    first = processor.tokenizer.convert_tokens_to_ids(codes[0])
    return built(
        "apertus1p5",
        processor,
        vision=APERTUS_VISION,
        text={},
        audio_config=APERTUS_AUDIO,
        audio_token_id=processor.audio_token_id,
        image_token_offset=first,
        audio_token_offset=first + 16,
    )


def deepseek_ocr2() -> Tiny:
    # Its tower asks 144 queries of a picture, which has to have as many patches.
    side = 12 * 4
    processor = DeepseekOcr2Processor(
        image_processor=DeepseekOcr2ImageProcessor(size={"height": side, "width": side}, tile_size=side),
        tokenizer=byte_tokenizer("<image>"),
        patch_size=1,
        downsample_ratio=4,
        chat_template=template("<image>\n"),
    )
    sam = {
        "hidden_size": 16,
        "output_channels": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": 1,
        "mlp_ratio": 2.0,
        "window_size": 7,
        # One layer that sees all would take most of the time of a check.
        "global_attn_indexes": [],
        "downsample_channels": [8, 16],
    }
    encoder = {**TOWER, "num_key_value_heads": 1, "vocab_size": 2}
    text = {
        "num_key_value_heads": 2,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "mlp_layer_types": ["dense", "sparse"],
    }
    vision = {"sam_config": sam, "encoder_config": encoder}
    return built("deepseek_ocr2", processor, vision=vision, text=text)


def step3p7() -> Tiny:
    special = ("<im_patch>", "<im_start>", "<im_end>", "<patch_start>", "<patch_end>", "<patch_newline>")
    processor = Step3p7Processor(
        image_processor=Step3p7ImageProcessor(
            size={"height": 16, "width": 16}, patch_size=8, vision_patch_size=2, max_image_size=64
        ),
        tokenizer=byte_tokenizer(*special),
        chat_template=template("<im_patch>"),
    )
    vision = {**TOWER, "image_size": SIZE, "patch_size": 2, "mlp_ratio": 2.0, "max_position_embeddings": 64}
    text = {
        "head_dim": 8,
        "pad_token_id": processor.tokenizer.pad_token_id,
        "num_hidden_layers": 3,
        "sliding_window": 8,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "num_sliding_attention_heads": 3,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "share_expert_dim": 16,
    }
    return built("step3p7", processor, vision=vision, text=text)


FAMILIES = names(
    [
        mistral3_mistral4,
        mistral4,
        mistral_large4,
        granite_docling,
        qianfan_ocr,
        exaone4_5,
        nemotron_h_omni,
        apertus1p5,
        deepseek_ocr2,
        hyperclovax_vision_v2,
        step3p7,
    ]
)
