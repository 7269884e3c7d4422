"""Llama 3.2 Vision: prompts with and without pictures in one batch are what each of them is alone."""

import torch

from tests.families.other_image_text import mllama
from vlm_distill.adapters.catalog import find_adapter
from vlm_distill.conformance.checks import examine
from vlm_distill.conformance.probes import probe_of, response_batch
from vlm_distill.forward import forward_prompts, unshared_hidden
from vlm_distill.models.load import wrap_model


def test_batches_caches_and_one_sequence_give_what_generate_gives_for_each_prompt() -> None:
    loaded = wrap_model(find_adapter("mllama"), *mllama(), path="mllama")
    assert {name: one.line for name, one in examine(loaded).items() if one.outcome == "failed"} == {}


def test_a_prompt_without_pictures_skips_the_cross_attention_beside_one_with_pictures() -> None:
    loaded = wrap_model(find_adapter("mllama"), *mllama(), path="mllama")
    probe = probe_of(loaded)
    [text] = [pair for pair in probe.pairs if not probe.examples[pair[0]].images]
    batch = unshared_hidden(loaded, probe.prompts, response_batch(probe, [text, probe.pairs[0]]))
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "cross_attn" in name or "vision_model" in name:
                parameter.mul_(2)
    moved = unshared_hidden(loaded, probe.prompts, response_batch(probe, [text, probe.pairs[0]]))
    count = len(text[1])
    assert torch.equal(moved[:count], batch[:count])
    assert not torch.allclose(moved[count:], batch[count:])


def test_a_prompt_without_pictures_goes_on_when_those_with_pictures_have_ended() -> None:
    loaded = wrap_model(find_adapter("mllama"), *mllama(), path="mllama")
    probe = probe_of(loaded)
    text = torch.tensor([row for row, example in enumerate(probe.examples) if not example.images])
    _, batch = forward_prompts(loaded, probe.prompts)
    batch.select(text)
    _, alone = forward_prompts(loaded, probe.prompts.select(text))
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(batch.extend(ids), alone.extend(ids))
