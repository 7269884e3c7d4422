"""Tiny families whose towers or language models are of newer or rarer kinds."""

from typing import Any

from transformers import (
    Dots3NoteFeatureExtractor,
    Dots3NoteProcessor,
    Emu3ImageProcessor,
    Emu3Processor,
    Gemma3nAudioFeatureExtractor,
    Gemma3nProcessor,
    Lfm3VlProcessor,
    MiniMaxM3VLImageProcessor,
    MiniMaxM3VLProcessor,
    MiniMaxM3VLVideoProcessor,
    Molmo2ImageProcessor,
    Molmo2Processor,
    Molmo2VideoProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLVideoProcessor,
    SiglipImageProcessor,
)

from tests.families.build import Build, Tiny, byte_tokenizer, language, names
from tests.families.image_text_parts import (
    PATCH,
    SIZE,
    SQUARE,
    TOWER,
    built,
    ids_of,
    template,
    tokenizer_of,
)

PATCHES = {"patch_size": PATCH, "temporal_patch_size": 2, "merge_size": 2}
BOUNDS = {"size": {"shortest_edge": 64, "longest_edge": 1024}}


def lfm3_vl() -> Tiny:
    """Convolutions and windows in the language model, convolutions in the tower."""
    tokenizer = byte_tokenizer("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    processor = Lfm3VlProcessor(
        image_processor=Qwen2VLImageProcessor(**BOUNDS, **PATCHES),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**PATCHES),
        chat_template=template("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    text = {
        "model_type": "lfm3",
        "head_dim": 8,
        "num_hidden_layers": 3,
        "layer_types": ["conv", "sliding_attention", "full_attention"],
        "sliding_window": 16,
    }
    tower = {
        "num_hidden_layers": 3,
        "layer_types": ["conv", "conv", "full_attention"],
        "num_key_value_heads": 1,
        "temporal_patch_size": 2,
    }
    kinds = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return built(
        "lfm3_vl",
        processor,
        text_config=language(tokenizer, **text),
        vision_config={**TOWER, **tower},
        projector_hidden_size=16,
        **{kind: getattr(processor, kind) for kind in kinds},
    )


def molmo2() -> Tiny:
    """Pictures see each other both ways; patches of overlapping crops are pooled by attention."""
    kinds = (
        "im_patch",
        "im_col",
        "im_start",
        "low_res_im_start",
        "frame_start",
        "im_end",
        "frame_end",
        "im_low",
    )
    special = [f"<{kind}>" for kind in kinds]
    tokenizer = byte_tokenizer("<bos>", "<|image|>", "<|video|>", *special, bos_token="<bos>")
    processor = Molmo2Processor(
        image_processor=Molmo2ImageProcessor(
            size=SQUARE, patch_size=PATCH, max_crops=4, overlap_margins=[1, 1]
        ),
        video_processor=Molmo2VideoProcessor(size=SQUARE, patch_size=PATCH),
        tokenizer=tokenizer,
        chat_template=template("<|image|>"),
    )
    ids = dict(zip(kinds, tokenizer.convert_tokens_to_ids(special), strict=True))
    heads = {"num_attention_heads": 2, "head_dim": 8}
    first = ids["im_patch"]
    return built(
        "molmo2",
        processor,
        text_config=language(tokenizer, vocab_size=first, additional_vocab_size=len(special), head_dim=8),
        vision_config={**TOWER, **heads, "num_key_value_heads": 2, "image_size": [SIZE, SIZE]},
        adapter_config={
            "vision_feature_layer": [-1, -2],
            "hidden_size": 16,
            **heads,
            "num_key_value_heads": 2,
            "intermediate_size": 32,
            "text_hidden_size": 16,
        },
        image_patch_id=first,
        image_start_token_id=ids["im_start"],
        low_res_image_start_token_id=ids["low_res_im_start"],
        image_end_token_id=ids["im_end"],
        frame_start_token_id=ids["frame_start"],
        frame_end_token_id=ids["frame_end"],
    )


def emu3() -> Tiny:
    """A codebook makes tokens of pictures; it sees the padding to the largest picture of a batch."""
    codes = [f"<|visual token {number:06d}|>" for number in range(8)]
    tokenizer = tokenizer_of(
        "<image>",
        "<|extra_200|>",
        *codes,
        boi_token="<|image start|>",
        eoi_token="<|image end|>",
        image_wrapper_token="<|image token|>",
        eof_token="<|extra_201|>",
        bos_token="<bos>",
    )
    processor = Emu3Processor(
        image_processor=Emu3ImageProcessor(min_pixels=16 * 16, max_pixels=32 * 32),
        tokenizer=tokenizer,
        chat_template=template("<image>"),
    )
    known = ["<image>", "<|extra_200|>", *codes]
    codebook = {
        "codebook_size": 8,
        "base_channels": 32,
        "channel_multiplier": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "hidden_size": 32,
    }
    return built(
        "emu3",
        processor,
        text_config={**language(tokenizer), **ids_of(tokenizer, "pad_token", "bos_token")},
        vq_config=codebook,
        vocabulary_map=dict(zip(known, tokenizer.convert_tokens_to_ids(known), strict=True)),
    )


def minimax_m3_vl() -> Tiny:
    """Blocks of keys are chosen; they are counted from the padding left of a prompt on."""
    special = (MiniMaxM3VLProcessor.IMAGE_TOKEN, MiniMaxM3VLProcessor.VIDEO_TOKEN)
    around = (MiniMaxM3VLProcessor.VISION_START_TOKEN, MiniMaxM3VLProcessor.VISION_END_TOKEN)
    tokenizer = byte_tokenizer(*special, *around)
    processor = MiniMaxM3VLProcessor(
        image_processor=MiniMaxM3VLImageProcessor(**BOUNDS, **PATCHES),
        tokenizer=tokenizer,
        video_processor=MiniMaxM3VLVideoProcessor(**PATCHES),
        chat_template=template(special[0]),
    )
    text = {
        "dense_intermediate_size": 32,
        "shared_intermediate_size": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 8,
        "rotary_dim": 4,
        "mlp_layer_types": ["dense", "sparse"],
        "layer_types": ["full_attention", "minimax_m3_sparse"],
        "index_n_heads": 1,
        "index_head_dim": 8,
        "index_block_size": 8,
        "index_topk_blocks": 2,
    }
    return built(
        "minimax_m3_vl",
        processor,
        text_config=language(tokenizer, **text),
        vision_config={**TOWER, "temporal_patch_size": 2},
        projector_hidden_size=16,
        image_token_index=processor.image_token_id,
        video_token_index=processor.video_token_id,
    )


def gemma3n() -> Tiny:
    """A tower of timm; layers that share keys, several residual streams, a second table of embeddings."""
    tokenizer = tokenizer_of(
        "<image_soft_token>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        audio_token="<audio_soft_token>",
        boa_token="<start_of_audio>",
        eoa_token="<end_of_audio>",
    )
    processor = Gemma3nProcessor(
        feature_extractor=Gemma3nAudioFeatureExtractor(),
        image_processor=SiglipImageProcessor(size={"height": 64, "width": 64}),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=template("<image_soft_token>"),
    )
    text: dict[str, Any] = {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "sliding_window": 16,
        "head_dim": 8,
        "hidden_size_per_layer_input": 4,
        "vocab_size_per_layer_input": len(tokenizer),
        "laurel_rank": 4,
        "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    }
    return built(
        "gemma3n",
        processor,
        text_config=language(tokenizer, **text),
        vision_config={
            "architecture": "test_efficientnet_ln",
            "hidden_size": 256,
            "vocab_offset": len(tokenizer),
            "vocab_size": 8,
        },
        audio_config={
            "hidden_size": 16,
            "conf_num_hidden_layers": 1,
            "conf_num_attention_heads": 2,
            "vocab_offset": len(tokenizer) + 8,
            "vocab_size": 8,
            "sscp_conv_channel_size": [4, 4],
        },
        vision_soft_tokens_per_image=4,
        **ids_of(tokenizer, "image_token", "audio_token", "boi_token", "eoi_token", "boa_token", "eoa_token"),
    )


DOTS_LATENT = {
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "head_dim": 12,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
DOTS_TEXT = {
    **DOTS_LATENT,
    **{f"swa_{name}": value for name, value in DOTS_LATENT.items()},
    "qk_rope_head_dim": 4,
    "moe_intermediate_size": 16,
    "shared_experts_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "index_topk": 8,
    "index_head_dim": 8,
    # So many that no two keys have equal scores of zero.
    "index_n_heads": 16,
    "num_hidden_layers": 3,
    "layer_types": ["indexed_attention", "sliding_attention", "indexed_attention"],
    "sliding_window": 16,
}
DOTS_TOWER = {
    "moe_intermediate_size": 16,
    "mlp_layer_types": ["dense", "sparse"],
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "adapter_in_dim": 16,
    "adapter_out_dim": 16,
}
DOTS_SOUND = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "downsample_hidden_size": 4,
    "adapter_input_size": 16,
    "adapter_out_dim": 16,
}


def dots3_note() -> Tiny:
    """Keys chosen by an indexer beside windows, latent keys, experts in the tower too; a tower of sound."""
    tokenizer = byte_tokenizer("<|imgpad|>", "<|video_pad|>", "<|audio_comp_pad|>")
    processor = Dots3NoteProcessor(
        image_processor=Qwen2VLImageProcessor(**BOUNDS, **{**PATCHES, "temporal_patch_size": 1}),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**PATCHES),
        feature_extractor=Dots3NoteFeatureExtractor(),
        chat_template=template("<|imgpad|>"),
    )
    return built(
        "dots3_note",
        processor,
        text_config=language(tokenizer, **DOTS_TEXT),
        vision_config={**TOWER, **DOTS_TOWER},
        audio_config=DOTS_SOUND,
        **{
            f"{kind}_token_id": getattr(processor, f"{kind}_token_id") for kind in ("image", "video", "audio")
        },
    )


FAMILIES: dict[str, Build] = names([lfm3_vl, molmo2, gemma3n, emu3, dots3_note, minimax_m3_vl])
