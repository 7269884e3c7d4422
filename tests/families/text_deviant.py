"""Settings of text families that transformers itself does not give one distribution of the next token.

Their `generate` and one plain forward over the same tokens differ by far more than rounding.
"""

from typing import Any

from tests.families.text_dense import BERT, HEADS, LONGROPE, WINDOW
from tests.families.text_moe import EXPERTS

BOTH_WAYS = {**HEADS, "use_bidirectional_attention": True}
# They count positions from the id of the padding, `generate` counts them from 0.
ROBERTA = {**BERT, "pad_token_id": 256}

SETTINGS: dict[str, dict[str, Any]] = {
    "bert_both_ways": {**BERT, "model_type": "bert", "is_decoder": False},
    "camembert": ROBERTA,
    "cpmant": {"dim_head": 8, "dim_ff": 32, "prompt_length": 4, "position_bias_num_buckets": 8},
    "data2vec-text": ROBERTA,
    "doge_moe": {"model_type": "doge", "is_moe": True, **EXPERTS, "keep_window_size": 4},
    "gemma_both_ways": {"model_type": "gemma", **BOTH_WAYS},
    "gemma3_both_ways": {"model_type": "gemma3_text", **BOTH_WAYS, **WINDOW},
    "llama_dynamic": {
        "model_type": "llama",
        "max_position_embeddings": 40,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    },
    "phi3_longrope_crossed": {"model_type": "phi3", **LONGROPE, "original_max_position_embeddings": 40},
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh"],
        "attention_head_size": 8,
        "axial_pos_shape": [16, 32],
        "axial_pos_embds_dim": [8, 8],
        "feed_forward_size": 32,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "num_buckets": 4,
        "hash_seed": 0,
        "pad_token_id": 256,
        "hidden_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,
    },
    "roberta": ROBERTA,
    "roberta-prelayernorm": ROBERTA,
    "xlm": {"causal": True, "n_langs": 1, "dropout": 0.0, "attention_dropout": 0.0, "pad_token_id": 256},
    "xlm-roberta": ROBERTA,
    "xlm-roberta-xl": ROBERTA,
    "xlnet": {"d_inner": 32, "d_head": 8, "dropout": 0.0, "without": ("max_position_embeddings",)},
    "xmod": {**ROBERTA, "languages": ["en"], "default_language": "en"},
}
