"""A model family that neither vlm-distill nor transformers knows: a Llama by another name."""

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from vlm_distill.adapters.adapter import Adapter
from vlm_distill.adapters.chat import encode_text


class ExampleLlamaConfig(LlamaConfig):
    model_type = "example_llama"


class ExampleLlamaForCausalLM(LlamaForCausalLM):
    config_class = ExampleLlamaConfig


AutoConfig.register("example_llama", ExampleLlamaConfig)
AutoModelForCausalLM.register(ExampleLlamaConfig, ExampleLlamaForCausalLM)

EXAMPLE_LLAMA = Adapter(
    name="example_llama",
    model_types=("example_llama",),
    model_class=AutoModelForCausalLM,
    processor_class=AutoTokenizer,
    encode=encode_text,
    parts={"language": ("",)},
)
