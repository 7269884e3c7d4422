"""Settings of text families with recurrent layers, alone or beside attention."""

from typing import Any

from tests.families.text_dense import GRANITE, HEADS, LATENT
from tests.families.text_moe import EXPERTS, LOCAL, ROUTED

MIXED = {"layer_types": ["linear_attention", "full_attention"]}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 3,
}
# Delta-rule layers beside attention with compressed keys, and experts.
DELTA_LATENT = {
    **LATENT,
    **MIXED,
    "mlp_layer_types": ["dense", "sparse"],
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 8,
}
# State-space layers, under the names that families have for them.
SCAN = {"mamba_d_state": 4, "mamba_d_conv": 3, "mamba_dt_rank": 4, "use_mamba_kernels": False}
HEADED_SCAN = {
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 4,
    "mamba_d_conv": 3,
    "mamba_chunk_size": 4,
}
# A whole prompt is scanned with time steps of at least this much, a single token is not.
NO_LEAST_STEP = {"time_step_min": 1e-9}
# Norms of small values amplify rounding.
STEADY = {"rms_norm_eps": 0.5}
MAMBA = {"state_size": 4, "time_step_rank": 4, "conv_kernel": 3}

SETTINGS: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {**DELTA_LATENT, "head_dim": 8, "short_conv_kernel_size": 3},
    "bamba": {**HEADED_SCAN, "attn_layer_indices": [1]},
    # What its projection adds to padding goes through its convolution.
    "bamba_biased": {
        "model_type": "bamba",
        **HEADED_SCAN,
        "attn_layer_indices": [1],
        "mamba_proj_bias": True,
    },
    "falcon_h1": {**HEADED_SCAN, **HEADS, "mamba_d_ssm": 32, "lm_head_multiplier": 0.5},
    "falcon_mamba": MAMBA,
    "granitemoehybrid": {**GRANITE, **LOCAL, **HEADED_SCAN, **MIXED, "shared_intermediate_size": 8},
    "jamba": {**SCAN, **EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "num_key_value_heads": 2},
    "kimi_linear": {**DELTA_LATENT, "linear_head_dim": 8, "linear_num_heads": 2, "linear_conv_kernel_dim": 3},
    "lara_mini": {
        **EXPERTS,
        **DELTA,
        **HEADS,
        "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "sliding_attention", "full_attention"],
        "sliding_window": 6,
        "shared_expert_intermediate_size": 8,
        **STEADY,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {**EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": {
        **HEADS,
        "layer_types": ["conv", "full_attention", "sliding_attention"],
        "num_hidden_layers": 3,
        "sliding_window": 6,
        "conv_L_cache": 3,
    },
    "mamba": MAMBA,
    "mamba_biased": {"model_type": "mamba", **MAMBA, "use_bias": True},
    "mamba2": {
        "num_heads": 4,
        "head_dim": 8,
        "state_size": 4,
        "n_groups": 2,
        "chunk_size": 4,
        "conv_kernel": 3,
    },
    "minimax": {**LOCAL, **HEADS, **MIXED, "block_size": 4, "linear_attn_alpha_factor": 2.0},
    "nemotron_h": {
        **ROUTED,
        **HEADS,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "ssm_state_size": 4,
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "chunk_size": 4,
        "conv_kernel": 3,
        "moe_shared_expert_intermediate_size": 8,
        **NO_LEAST_STEP,
    },
    "olmo_hybrid": {**MIXED, **DELTA, "linear_num_key_heads": 2, "linear_num_value_heads": 2},
    "qwen3_5_moe_text": {**EXPERTS, **MIXED, **DELTA, **HEADS, "shared_expert_intermediate_size": 8},
    "qwen3_5_text": {**MIXED, **DELTA, **HEADS},
    "qwen3_next": {
        **EXPERTS,
        **MIXED,
        **DELTA,
        **HEADS,
        "linear_num_value_heads": 2,
        "shared_expert_intermediate_size": 8,
    },
    "qwen4_exp_text": {
        **EXPERTS,
        **DELTA,
        **HEADS,
        "layer_types": ["linear_attention", "indexed_attention"],
        "shared_expert_intermediate_size": 8,
        "hc_count": 2,
        "hc_lowrank": 4,
        "ple_layer_ids": [1],
        "ple_embed_dim": 8,
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 50,
        "split_ngram_parts": 1,
        "indexer_n_heads": 8,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
    },
    "recurrent_gemma": {
        "num_hidden_layers": 3,
        "lru_width": 16,
        "attention_window_size": 6,
        "conv1d_width": 3,
        "logits_soft_cap": 3.0,
        "head_dim": 8,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
    "rwkv": {"attention_hidden_size": 16},
    "xlstm": {
        "hidden_size": 128,
        "num_heads": 4,
        "gate_soft_cap": 3.0,
        "output_logit_soft_cap": 3.0,
        "chunk_size": 16,
    },
    "zamba": {
        **SCAN,
        "num_hidden_layers": 4,
        "layers_block_type": 2 * ["linear_attention", "hybrid"],
        "num_key_value_heads": 2,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": 2 * ["linear_attention", "hybrid"],
        "num_key_value_heads": 2,
        "mamba_d_state": 4,
        "mamba_d_conv": 3,
        "mamba_ngroups": 2,
        "n_mamba_heads": 4,
        "chunk_size": 4,
        "num_mem_blocks": 1,
        "use_shared_attention_adapter": True,
        "adapter_rank": 4,
        "use_mem_rope": True,
        **STEADY,
        **NO_LEAST_STEP,
    },
    "zaya": {
        **HEADS,
        "layer_types": ["hybrid_sliding", "hybrid"],
        "sliding_window": 6,
        "moe_intermediate_size": 8,
        "num_experts": 4,
        "router_hidden_size": 8,
    },
}
