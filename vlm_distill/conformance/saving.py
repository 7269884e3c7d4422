"""The check of a saved folder: plain transformers reads back what was written."""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from vlm_distill.conformance.findings import Finding, compare_values, failed
from vlm_distill.conformance.oracle import all_plain_logits, own_inputs
from vlm_distill.conformance.probes import Probe
from vlm_distill.models.load import wrap_model
from vlm_distill.models.save import save_model


@torch.no_grad()
def saved(probe: Probe) -> Finding:
    """A saved folder, read by plain transformers, has the same prompts, stop ids, weights and logits."""
    loaded, some = probe.loaded, probe.pairs[:2]
    expected = all_plain_logits(probe, some)
    with tempfile.TemporaryDirectory() as folder:
        save_model(loaded, Path(folder) / "model")
        path = str(Path(folder) / "model")
        processor = loaded.adapter.processor_class.from_pretrained(path)
        model, report = loaded.adapter.model_class.from_pretrained(
            path, dtype=expected.dtype, output_loading_info=True
        )
    again = wrap_model(loaded.adapter, model.to(loaded.device).eval(), processor, path=path)
    others = [f"{kind} {key}" for kind, keys in report.items() for key in sorted(map(str, keys))]
    if others:
        return failed(f"saved: expected the weights of the model, got {len(others)} others: {others[0]}")
    read = replace(probe, loaded=again)
    if again.stop_ids != loaded.stop_ids or not _same_prompts(read, probe):
        return failed(f"saved: expected the prompts and stop ids {loaded.stop_ids}, got {again.stop_ids}")
    return compare_values("logits after saving", all_plain_logits(read, some), expected)


def _same_prompts(read: Probe, probe: Probe) -> bool:
    rows = range(len(probe.examples))
    pairs = [[own_inputs(one, row)["input_ids"] for one in (read, probe)] for row in rows]
    return all(torch.equal(*pair) for pair in pairs)
