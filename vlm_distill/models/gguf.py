"""Text models in GGUF files, which hold config, tokenizer, chat template and quantised weights in one file.

transformers dequantises the weights while loading; the result is an ordinary model, which can be trained and
saved.
"""

import importlib.util
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from vlm_distill.adapters.adapter import LoadOptions
from vlm_distill.errors import AdapterError
from vlm_distill.models.placement import finish_loading, placement_arguments, require_dtype

SUFFIX = ".gguf"


def is_gguf(path: Path) -> bool:
    return path.suffix == SUFFIX and not path.is_dir()


def location(path: Path) -> dict[str, str]:
    """Return the arguments by which `from_pretrained` finds a model folder, or a GGUF file in its folder."""
    if not is_gguf(path):
        return {"pretrained_model_name_or_path": str(path)}
    if importlib.util.find_spec("gguf") is None:
        raise AdapterError(f"{path}: reading GGUF files needs the package gguf; run: pip install gguf")
    return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}


def load_gguf(path: str, config: Any, options: LoadOptions) -> tuple[nn.Module, Any]:
    """Return the causal language model of a GGUF file in eval mode, dequantised, and its tokenizer.

    `config` is that of the file: every look into it takes seconds, because its tokens are read one by one.
    """
    require_dtype(path, options)
    if options.quantisation is not None:
        raise AdapterError(
            f"{path}: quantisation is for model folders; the weights of a GGUF file are dequantised"
        )
    where: dict[str, Any] = {**location(Path(path)), "local_files_only": True}
    placing = placement_arguments(AutoModelForCausalLM, config, options)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model, report = AutoModelForCausalLM.from_pretrained(
        **where,
        config=config,
        dtype=options.dtype,
        # Otherwise the model cannot be saved, and some families keep their weights packed, with a kernel
        # that is downloaded.
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
        **placing,
    )
    return finish_loading(model, report, path=path, options=options), tokenizer
