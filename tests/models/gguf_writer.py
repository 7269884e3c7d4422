"""Writes a tiny Llama as a GGUF file, from the description of the format and not through transformers."""

import json
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from vlm_distill.adapters.adapter import LoadedModel

LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
NORMAL, CONTROL = 1, 3  # token types


def write_gguf(loaded: LoadedModel, path: Path, *, quantised: bool = False) -> None:
    """Write the model with float32 weights, or with matrices in Q8_0."""
    model: Any = loaded.model
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, loaded.tokenizer)
    for name, value in model.state_dict().items():
        array = _reordered(name, value, config).to(torch.float32).numpy()
        small = quantised and array.ndim == 2
        kind = GGMLQuantizationType.Q8_0 if small else GGMLQuantizationType.F32
        writer.add_tensor(_gguf_name(name), quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: GGUFWriter, tokenizer: Any) -> None:
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    state = tokenizer.backend_tokenizer.to_str()
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in special else NORMAL for token in tokens])
    writer.add_token_merges(_merges(state))
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)


def _merges(state: str) -> list[str]:
    return [
        merge if isinstance(merge, str) else " ".join(merge) for merge in json.loads(state)["model"]["merges"]
    ]


def _reordered(name: str, value: torch.Tensor, config: Any) -> torch.Tensor:
    """Interleave the halves of every query and key head, as llama.cpp rotates neighbours."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for key, count in heads.items():
        if key in name:
            return value.unflatten(0, (count, 2, -1)).transpose(1, 2).reshape(value.shape).contiguous()
    return value


def _gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in NAMES:
        return f"{NAMES[stem]}.weight"
    number, _, inner = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{LAYER_NAMES[inner]}.weight"
