"""Tiny families with tiles padded per call, cross attention, experts, convolutions or several towers."""

from typing import Any

from transformers import (
    AriaImageProcessor,
    AriaProcessor,
    DeepseekVLHybridImageProcessor,
    DeepseekVLHybridProcessor,
    DeepseekVLImageProcessor,
    DeepseekVLProcessor,
    Idefics2ImageProcessor,
    Idefics2Processor,
    Idefics3ImageProcessor,
    Idefics3Processor,
    JanusImageProcessor,
    JanusProcessor,
    Lfm2VlImageProcessor,
    Lfm2VlProcessor,
    MllamaImageProcessor,
    MllamaProcessor,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)
from transformers.utils import is_num2words_available

from tests.families.build import Build, Tiny, byte_tokenizer, language, names
from tests.families.image_text_parts import (
    PATCH,
    SIGLIP,
    SIZE,
    SQUARE,
    TOWER,
    built,
    template,
    tokenizer_of,
)

TILES = {"size": {"longest_edge": 2 * SIZE}, "max_image_size": {"longest_edge": SIZE}}
PLACES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
TILE_TOKENS = ("<fake_token_around_image>", "<image>", "<global-img>", *PLACES)
LARGER = {"height": 2 * SIZE, "width": 2 * SIZE}


def idefics2() -> Tiny:
    """Pictures are padded to the largest of a call; a perceiver makes as many tokens of any size."""
    tokenizer = byte_tokenizer("<end_of_utterance>")
    processor = Idefics2Processor(
        image_processor=Idefics2ImageProcessor(size={"shortest_edge": 8, "longest_edge": 24}),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=template("<image>"),
    )
    perceiver = {
        "hidden_size": 16,
        "resampler_n_latents": 4,
        "resampler_depth": 1,
        "resampler_n_heads": 2,
        "resampler_head_dim": 8,
        "num_key_value_heads": 1,
    }
    return built(
        "idefics2",
        processor,
        text_config=language(tokenizer, model_type="mistral"),
        vision_config={**TOWER, "image_size": 24},
        perceiver_config=perceiver,
        image_token_id=processor.image_token_id,
    )


def idefics3() -> Tiny:
    """Pictures become as many tiles as their size asks for, padded to the most of a call."""
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessor(**TILES),
        tokenizer=byte_tokenizer(*TILE_TOKENS),
        image_seq_len=4,
        chat_template=template("<image>"),
    )
    return tiled("idefics3", processor)


def smolvlm() -> Tiny:
    """Idefics 3 with videos; its processor needs the package num2words."""
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(**TILES),
        tokenizer=byte_tokenizer(*TILE_TOKENS, "<end_of_utterance>", "<video>"),
        video_processor=SmolVLMVideoProcessor(**TILES),
        image_seq_len=4,
        chat_template=template("<image>"),
    )
    return tiled("smolvlm", processor)


def tiled(model_type: str, processor: Any) -> Tiny:
    return built(
        model_type,
        processor,
        text_config=language(processor.tokenizer, model_type="llama"),
        vision_config=TOWER,
        scale_factor=2,
        image_token_id=processor.image_token_id,
    )


def mllama() -> Tiny:
    """Pictures are seen by cross attention; their token has an embedding and no logit."""
    tokenizer = byte_tokenizer("<|python_tag|>", "<bos>", "<|image|>", bos_token="<bos>")
    processor = MllamaProcessor(
        image_processor=MllamaImageProcessor(size=SQUARE),
        tokenizer=tokenizer,
        chat_template=template("<|image|>", start="<bos>"),
    )
    text = {
        "vocab_size": len(tokenizer) - 1,
        "bos_token_id": tokenizer.bos_token_id,
        "num_hidden_layers": 4,
        "cross_attention_layers": [1, 3],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    tower = {
        "attention_heads": 2,
        "num_global_layers": 1,
        "vision_output_dim": 48,
        "intermediate_layers_indices": [0, 1],
    }
    return built(
        "mllama",
        processor,
        text_config={**language(tokenizer), **text},
        vision_config={**TOWER, **tower},
        image_token_index=processor.image_token_id,
    )


def janus() -> Tiny:
    """A second tower, for pictures to draw, which no prompt reaches; `generate` is its own."""
    tokenizer = tokenizer_of("<image_placeholder>", boi_token="<begin_of_image>", eoi_token="<end_of_image>")
    processor = JanusProcessor(
        image_processor=JanusImageProcessor(size=SQUARE),
        tokenizer=tokenizer,
        num_image_tokens=16,
        chat_template=template("<image_placeholder>"),
    )
    drawing = {
        "num_embeddings": 8,
        "latent_channels": 32,
        "base_channels": 32,
        "channel_multiplier": [1, 1],
        "num_res_blocks": 1,
        "projection_dim": 16,
        "image_token_embed_dim": 16,
    }
    return built(
        "janus",
        processor,
        text_config=language(tokenizer, model_type="llama"),
        vision_config={**TOWER, "projection_dim": 16, "num_image_tokens": 16, "mlp_ratio": 2.0},
        vq_config=drawing,
        image_token_id=tokenizer.image_token_id,
    )


def aria() -> Tiny:
    """Experts of text; pixels have a mask; cross attention to as many queries as the size asks for."""
    tokenizer = tokenizer_of("<|img|>")
    # The image processor knows only the sides 490 and 980, the processor uses the larger one.
    processor = AriaProcessor(
        image_processor=AriaImageProcessor(),
        tokenizer=tokenizer,
        size_conversion={980: 4},
        chat_template=template("<|img|>"),
    )
    return built(
        "aria",
        processor,
        text_config=language(tokenizer, moe_num_experts=4, moe_num_shared_experts=1),
        vision_config={**TOWER, "model_type": "idefics3_vision", "image_size": 980, "patch_size": 140},
        projector_patch_to_query_dict={49: 4},
        image_token_index=tokenizer.image_token_id,
    )


def deepseek_vl() -> Tiny:
    tokenizer = tokenizer_of("<image_placeholder>")
    processor = DeepseekVLProcessor(
        image_processor=DeepseekVLImageProcessor(size=SQUARE),
        tokenizer=tokenizer,
        num_image_tokens=16,
        chat_template=template("<image_placeholder>"),
    )
    return built(
        "deepseek_vl",
        processor,
        text_config=language(tokenizer, model_type="llama"),
        vision_config=SIGLIP,
        image_token_id=tokenizer.image_token_id,
    )


def deepseek_vl_hybrid() -> Tiny:
    """Two towers see a picture in two sizes."""
    tokenizer = tokenizer_of("<image_placeholder>")
    processor = DeepseekVLHybridProcessor(
        image_processor=DeepseekVLHybridImageProcessor(size=SQUARE, high_res_size=LARGER),
        tokenizer=tokenizer,
        num_image_tokens=16,
        chat_template=template("<image_placeholder>"),
    )
    second = {
        "model_type": "sam_vision_model",
        **TOWER,
        "image_size": 2 * SIZE,
        "output_channels": 8,
        "window_size": 2,
        "global_attn_indexes": [1],
        "mlp_dim": 32,
    }
    return built(
        "deepseek_vl_hybrid",
        processor,
        text_config=language(tokenizer, model_type="llama"),
        vision_config=SIGLIP,
        high_res_vision_config=second,
        image_token_id=tokenizer.image_token_id,
    )


def lfm2_vl() -> Tiny:
    """Short convolutions beside attention; tiles of patches, padded to the most of a call."""
    places = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)]
    tokenizer = tokenizer_of(
        "<image>",
        *places,
        image_start_token="<|image_start|>",
        image_end_token="<|image_end|>",
        image_thumbnail_token="<|img_thumbnail|>",
    )
    processor = Lfm2VlProcessor(
        image_processor=Lfm2VlImageProcessor(
            encoder_patch_size=PATCH, tile_size=SIZE, min_image_tokens=2, max_image_tokens=4, max_tiles=4
        ),
        tokenizer=tokenizer,
        chat_template=template("<image>"),
    )
    return built(
        "lfm2_vl",
        processor,
        text_config=language(tokenizer, model_type="lfm2", layer_types=["conv", "full_attention"]),
        vision_config={**SIGLIP, "model_type": "siglip2_vision_model", "num_patches": 16},
        projector_hidden_size=16,
        image_token_id=tokenizer.image_token_id,
    )


FAMILIES: dict[str, Build] = names(
    [idefics2, idefics3, mllama, janus, aria, deepseek_vl, deepseek_vl_hybrid, lfm2_vl]
)
if is_num2words_available():
    FAMILIES["smolvlm"] = smolvlm
