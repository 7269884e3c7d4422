"""Tiny Muse and Inkling: scaled and capped logits, windows beside layers without positions, convolutions."""

from typing import Any

from transformers import (
    Inkling2ImageProcessor,
    Inkling2Processor,
    InklingFeatureExtractor,
    InklingImageProcessor,
    InklingProcessor,
    MuseGlimmerImageProcessor,
    MuseGlimmerProcessor,
    MuseGlimmerVideoProcessor,
    MuseSparkFeatureExtractor,
    MuseSparkProcessor,
)

from tests.families.build import Build, Tiny, byte_tokenizer, language, names
from tests.families.image_text_parts import PATCH, SQUARE, TOWER, built, template

MUSE_KINDS = ("patch", "image_start", "image_end", "video", "vid_frame_separator", "vid_start", "vid_end")
MUSE_PATCHES = {"patch_size": PATCH, "temporal_patch_size": 2, "merge_size": 2}
MUSE_TEXT = {"head_dim": 8, "num_hidden_layers": 4, "sliding_window": 16}
MUSE_TOWER = {
    **TOWER,
    "pos_emb_height": 8,
    "pos_emb_width": 8,
    "layer_types": ["window_attention", "full_attention"],
    "max_position_embeddings": 64,
}

INKLING = {
    "head_dim": 8,
    "swa_num_attention_heads": 2,
    "swa_num_key_value_heads": 1,
    "swa_head_dim": 8,
    "sliding_window_size": 16,
    "d_rel": 4,
    "rel_extent": 16,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
}


def muse_glimmer() -> Tiny:
    """Logits are scaled and capped; layers with all keys have no positions; the tower has windows."""
    tokenizer = byte_tokenizer(*(f"<|{kind}|>" for kind in MUSE_KINDS))
    processor = MuseGlimmerProcessor(
        image_processor=MuseGlimmerImageProcessor(**MUSE_PATCHES, max_image_tokens=16),
        video_processor=MuseGlimmerVideoProcessor(**MUSE_PATCHES),
        tokenizer=tokenizer,
        chat_template=template("<|patch|>"),
    )
    return muse("muse_glimmer", processor)


def muse_spark() -> Tiny:
    """Muse Glimmer with experts and an encoder of sound."""
    sounds = ("audio", "soft_audio_start", "soft_audio_end")
    tokenizer = byte_tokenizer(*(f"<|{kind}|>" for kind in (*MUSE_KINDS, *sounds)))
    processor = MuseSparkProcessor(
        image_processor=MuseGlimmerImageProcessor(**MUSE_PATCHES, max_image_tokens=16),
        video_processor=MuseGlimmerVideoProcessor(**MUSE_PATCHES),
        tokenizer=tokenizer,
        feature_extractor=MuseSparkFeatureExtractor(),
        chat_template=template("<|patch|>"),
    )
    experts = {
        "moe_intermediate_size": 16,
        "moe_hidden_size": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    }
    sound = {
        "patch_sizes": [2, 2],
        "hidden_sizes": [4, 8],
        "depths": [1, 1],
        "num_hidden_layers": 2,
        "out_hidden_size": 16,
    }
    return muse(
        "muse_spark", processor, text=experts, audio_config=sound, audio_token_id=processor.audio_token_id
    )


def muse(model_type: str, processor: Any, *, text: Any = (), **settings: Any) -> Tiny:
    return built(
        model_type,
        processor,
        text_config=language(processor.tokenizer, **{**MUSE_TEXT, **dict(text)}),
        vision_config=MUSE_TOWER,
        out_hidden_size=64,
        projector_hidden_size=16,
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        **settings,
    )


def inkling_mm_model() -> Tiny:
    """Short convolutions in every layer; logits are divided."""
    tokenizer = byte_tokenizer(
        "<|unused_200054|>", "<|unused_200053|>", "<|content_image|>", "<|content_audio_input|>"
    )
    processor = InklingProcessor(
        feature_extractor=InklingFeatureExtractor(),
        image_processor=InklingImageProcessor(size=SQUARE),
        tokenizer=tokenizer,
        chat_template=template("<|content_image|><|unused_200054|>"),
    )
    text = {
        **INKLING,
        "layer_types": ["hybrid_sliding", "hybrid"],
        "mlp_layer_types": ["dense", "sparse"],
        "n_shared_experts": 1,
        "logits_mup_width_multiplier": 2.0,
    }
    return built(
        "inkling_mm_model",
        processor,
        text_config=language(tokenizer, **text),
        vision_config={"patch_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        audio_config={"n_mel_bins": 4, "mel_vocab_size": 16},
        image_token_id=processor.image_token_id,
        audio_token_id=processor.audio_token_id,
        image_bos_token_id=processor.image_bos_token_id,
        audio_bos_token_id=processor.audio_bos_token_id,
    )


def inkling2() -> Tiny:
    """Short convolutions in every layer; logits are capped."""
    return capped_inkling("inkling2", num_hidden_layers=2)


def inkling2_loop() -> Tiny:
    """Inkling 2 in which a layer is passed several times."""
    loop = {"loop_layer_index_start": 1, "loop_layer_index_end": 2, "loop_num_passes": 2, "loop_gate_rank": 4}
    return capped_inkling("inkling2_loop", num_hidden_layers=3, **loop)


def capped_inkling(model_type: str, *, num_hidden_layers: int, **loop: int) -> Tiny:
    tokenizer = byte_tokenizer("<|unused_200054|>")
    processor = Inkling2Processor(
        image_processor=Inkling2ImageProcessor(size={"height": 8, "width": 8}),
        tokenizer=tokenizer,
        chat_template=template("<|unused_200054|>"),
    )
    text = {
        **INKLING,
        "unpadded_vocab_size": len(tokenizer),
        "num_hidden_layers": num_hidden_layers,
        "layer_types": ["hybrid_sliding", *["hybrid"] * (num_hidden_layers - 1)],
        "n_layers_per_attn_res_block": 1,
        **loop,
    }
    tower = {**TOWER, "posemb_grid_size": 4, "projection_hidden_dim": 16, "text_hidden_size": 16}
    return built(
        model_type,
        processor,
        text_config=language(tokenizer, **text),
        vision_config={"model_type": "inkling2_vision", **tower},
        image_token_id=processor.image_token_id,
    )


FAMILIES: dict[str, Build] = names([muse_glimmer, muse_spark, inkling_mm_model, inkling2, inkling2_loop])
