"""Settings of text families whose layers are attention and one feed-forward network."""

from typing import Any

# Shorter than every prompt.
WINDOW = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
# The last two of four layers read the keys and values of the first two.
FOUR_WINDOWS = {"sliding_window": 6, "layer_types": 2 * WINDOW["layer_types"], "num_hidden_layers": 4}
CAPS = {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0}
BIASED = {"attention_bias": True, "mlp_bias": True}
HEADS = {"head_dim": 8}
# Compressed keys and values, part of which have no positions.
LATENT = {
    "num_key_value_heads": 2,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}
HALF_ROTATED = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# One of two rotations for the whole batch, by its longest row.
LONGROPE: dict[str, Any] = {
    "original_max_position_embeddings": 256,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "factor": 2.0,
        "short_factor": [1.0, 1.5, 2.0, 2.5],
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "original_max_position_embeddings": 256,
    },
}
GRANITE = {
    "embedding_multiplier": 2.0,
    "logits_scaling": 4.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.3,
}
GEMMA4 = {
    **HEADS,
    **FOUR_WINDOWS,
    "global_head_dim": 16,
    "num_kv_shared_layers": 2,
    "final_logit_softcapping": 3.0,
}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
BERT = {"is_decoder": True, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# The decoder of a family of encoders and decoders.
BART = {
    "is_decoder": True,
    "is_encoder_decoder": False,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 32,
    "dropout": 0.0,
    "decoder_start_token_id": 0,
    "forced_eos_token_id": None,
}

SETTINGS: dict[str, dict[str, Any]] = {
    "apertus": {"attention_bias": True},
    "apertus1p5_text": {"attention_bias": True},
    "arcee": {**BIASED, **HEADS},
    "bart": BART,
    "bert": BERT,
    "bert-generation": BERT,
    "big_bird": {**BERT, "attention_type": "original_full", "sep_token_id": None},
    "bigbird_pegasus": {**BART, "attention_type": "original_full"},
    "biogpt": {**BERT, "num_key_value_heads": 2},
    "bitnet": {},
    "blenderbot": BART,
    "blenderbot-small": BART,
    "bloom": {"num_key_value_heads": 2},
    "codegen": {**NO_DROPOUT, "rotary_dim": 4},
    "cohere": {"logit_scale": 0.25, "use_qk_norm": True, "attention_bias": True},
    "cohere2": {**WINDOW, **HEADS, "logit_scale": 0.25},
    "cohere_compass_text": {
        **WINDOW,
        "logit_scale": 0.25,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in WINDOW["layer_types"]
        },
    },
    "ctrl": {**NO_DROPOUT, "dff": 32},
    "cwm": {**WINDOW, **HEADS, "bos_token_id": 257},
    "diffllama": {**HEADS, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32},
    "doge": {"sliding_window": 6, "keep_window_size": 4},
    "dory": {**HEADS, **WINDOW, "n_input_layers": 1, "n_output_layers": 0},
    "electra": {**BERT, "embedding_size": 8},
    "ernie": {**BERT, "use_task_id": True},
    "ernie4_5": {**HEADS, "use_bias": True},
    "exaone": HEADS,
    "exaone4": WINDOW,
    "falcon": {"num_kv_heads": 1, "bias": True, "ffn_hidden_size": 32},
    "falcon_alibi": {"model_type": "falcon", "alibi": True, "bias": True, "ffn_hidden_size": 32},
    "falcon_new": {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 1},
    "gemma": HEADS,
    "gemma2": {**HEADS, **WINDOW, **CAPS, "query_pre_attn_scalar": 4},
    "gemma3_text": {**HEADS, **WINDOW, **CAPS, "query_pre_attn_scalar": 4},
    "gemma3n_text": {
        **HEADS,
        **FOUR_WINDOWS,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.5, 0.0, 0.5, 0.0],
        "vocab_size_per_layer_input": 259,
        "hidden_size_per_layer_input": 4,
        "laurel_rank": 4,
        "altup_num_inputs": 2,
        "final_logit_softcapping": 3.0,
    },
    "gemma4_text": {**GEMMA4, "vocab_size_per_layer_input": 259, "hidden_size_per_layer_input": 4},
    "gemma4_unified_text": {**GEMMA4, "attention_k_eq_v": True, "num_global_key_value_heads": 1},
    "glm": {**HEADS},
    "glm4": {**HEADS},
    "gpt2": {**NO_DROPOUT, "scale_attn_by_inverse_layer_idx": True},
    "gpt-sw3": NO_DROPOUT,
    "gpt_bigcode": NO_DROPOUT,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 6},
    "gpt_neox": {},
    "gpt_neox_japanese": {},
    "gptj": {**NO_DROPOUT, "rotary_dim": 4},
    "granite": {**GRANITE, **BIASED},
    "granite_swa": {**GRANITE, **WINDOW},
    "helium": HEADS,
    "hrm_text": {**HEADS, "num_hidden_layers": 1, "L_cycles": 2, "embedding_scale": 2.0},
    "hunyuan_v1_dense": HEADS,
    "hyperclovax": {**GRANITE, **HEADS, "embedding_multiplier": 0.5},
    "internlm3": {**BIASED, **HEADS},
    "iquestcoder": HEADS,
    "jais2": HEADS,
    "llama": {**BIASED, **HEADS},
    "llama_llama3": {"model_type": "llama", "rope_parameters": LLAMA3},
    "llama_tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama_yarn": {"model_type": "llama", "rope_parameters": YARN},
    "marian": BART,
    "mbart": BART,
    "megatron-bert": BERT,
    "minicpm3": {**LATENT, "head_dim": 4, "scale_emb": 2, "dim_model_base": 8},
    "ministral": {**WINDOW, **HEADS},
    "ministral3": HEADS,
    "mistral": HEADS,
    "mistral_window": {"model_type": "mistral", **HEADS, "sliding_window": 6},
    "modernbert-decoder": {
        **WINDOW,
        "local_attention": 12,
        "pad_token_id": 256,
        "bos_token_id": 257,
        "mlp_bias": True,
    },
    # Its cache forgets what its masks still show: a window shorter than the prompts has two meanings.
    "moshi": {**HEADS, "sliding_window": 512, "ffn_dim": 32},
    "mpt": {"logit_scale": 0.5},
    "mvp": BART,
    "nanochat": {"final_logit_softcapping": 3.0},
    "nemotron": HEADS,
    "olmo": {"clip_qkv": 1.0},
    "olmo2": {"attention_bias": True},
    "olmo3": WINDOW,
    "openai-gpt": NO_DROPOUT,
    "opt": {"ffn_dim": 32, "dropout": 0.0, "word_embed_proj_dim": 8},
    "opt_norm_after": {"model_type": "opt", "ffn_dim": 32, "dropout": 0.0, "do_layer_norm_before": False},
    "pegasus": BART,
    "persimmon": {},
    "phi": {"qk_layernorm": True},
    "phi3": {"sliding_window": 6},
    "phi3_longrope": {"model_type": "phi3", **LONGROPE},
    "plbart": BART,
    "qwen2": {},
    "qwen2_window": {"model_type": "qwen2", **WINDOW, "use_sliding_window": True},
    "qwen3": {**HEADS, "attention_bias": True},
    "rembert": {**BERT, "input_embedding_size": 8, "output_embedding_size": 8},
    "roc_bert": {**BERT, "pronunciation_embed_dim": 8, "shape_embed_dim": 8, "shape_vocab_size": 32},
    "roformer": {**BERT, "embedding_size": 8},
    "seed_oss": {**HEADS, "residual_dropout": 0.0, "attention_out_bias": True},
    "smollm3": {"no_rope_layers": [1, 0], "attention_bias": True},
    "stablelm": {"use_qkv_bias": True, "qk_layernorm": True},
    "starcoder2": {"sliding_window": 6},
    "trocr": BART,
    "vaultgemma": {**HEADS, **WINDOW, **CAPS, "query_pre_attn_scalar": 4},
    "xglm": {"ffn_dim": 32, "dropout": 0.0},
    "youtu": LATENT,
}
