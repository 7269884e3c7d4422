"""The hashes by which a model is known, on disk and in memory."""

import hashlib
from pathlib import Path

import torch
from torch import nn

from vlm_distill.adapters.adapter import LoadOptions
from vlm_distill.files import hash_json, sha256_file
from vlm_distill.models.gguf import is_gguf
from vlm_distill.models.names import SETTINGS_FILES, weight_files


def fingerprint(path: Path) -> str:
    """Return a hash of everything that decides what a model on disk answers.

    Of a folder: weights, config, tokenizer and processor files, not their location or other files beside
    them. Of a GGUF file: the file.
    """
    if is_gguf(path):
        return hash_json({"gguf": sha256_file(path)})
    files = [path / name for name in SETTINGS_FILES] + weight_files(path)
    return hash_json({path.name: sha256_file(path) for path in files if path.is_file()})


def model_fingerprint(path: Path, options: LoadOptions) -> str:
    """Return the fingerprint of a model that is loaded from `path` with `options`."""
    known = fingerprint(path)
    # Quantised weights answer differently.
    return known if options.quantisation is None else hash_json([known, dict(options.quantisation)])


def weights_fingerprint(model: nn.Module) -> str:
    """Return a hash of the state dict of a model in memory, which differs from that of its files."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        # numpy has no bfloat16, so the bytes are hashed.
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
