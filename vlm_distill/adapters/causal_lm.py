"""Any causal language model of transformers: text only, with a tokenizer for its processor."""

from transformers import AutoModelForCausalLM, AutoTokenizer

from vlm_distill.adapters.adapter import Adapter
from vlm_distill.adapters.chat import encode_text

CAUSAL_LM = Adapter(
    name="causal_lm",
    # catalog.py gives it every type that no other family claims.
    model_types=(),
    model_class=AutoModelForCausalLM,
    processor_class=AutoTokenizer,
    encode=encode_text,
    parts={"language": ("",)},
)
