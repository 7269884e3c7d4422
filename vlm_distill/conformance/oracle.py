"""What transformers alone says: the model's class on what its processor makes, one unpadded prompt at a time.

Nothing of this package's encoding, positions, masks, caches or heads is used, so that a mistake there cannot
be made on both sides.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessorList

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.conformance.probes import Pairs, Probe
from vlm_distill.errors import AdapterError


def own_inputs(probe: Probe, row: int) -> dict[str, Tensor]:
    """Return what the processor makes of a prompt and the model's forward names, token types included."""
    loaded: Any = probe.loaded
    example = probe.examples[row]
    pictures = iter(probe.load_pictures(example))
    reads_images = "vision" in loaded.adapter.parts
    chat = []
    for message in example.messages:
        turn: Any = message.as_chat()
        parts = [
            {**part, "image": next(pictures)} if part["type"] == "image" else part for part in turn["content"]
        ]
        # Templates of text models join `content` as a string.
        content = parts if reads_images else "".join(part["text"] for part in parts)
        chat.append({**turn, "content": content})
    made = loaded.processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    taken = set(inspect.signature(loaded.model.forward).parameters) - {"labels"}
    return {name: value.to(loaded.device) for name, value in made.items() if name in taken}


def plain_logits(
    loaded: LoadedModel, inputs: dict[str, Tensor], ids: Sequence[int]
) -> Float[Tensor, "token vocab"]:
    """Return the logits of each response token from one forward over prompt and response."""
    prompt = inputs["input_ids"]
    tail = torch.tensor([ids], device=prompt.device)
    longer = {name: _continued(name, value, prompt, len(ids)) for name, value in inputs.items()}
    longer["input_ids"] = torch.cat([prompt, tail], dim=1)
    logits: Tensor = loaded.model(**longer).logits
    return logits[0, prompt.shape[1] - 1 : -1]  # token j is predicted one position before it


def forced_logits(
    loaded: LoadedModel, inputs: dict[str, Tensor], ids: Sequence[int]
) -> Float[Tensor, "token vocab"]:
    """Return the logits of each response token as `generate` sees them when it is made to choose `ids`.

    Raises:
        AdapterError: `generate` of this class asks no logits processor, so that it cannot be made to.
    """
    left = list(ids)

    def force(_: Int[Tensor, "1 seen"], scores: Float[Tensor, "1 vocab"]) -> Float[Tensor, "1 vocab"]:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, left.pop(0)] = 0
        return forced

    model: Any = loaded.model
    output = model.generate(
        **inputs,
        max_new_tokens=len(ids),
        do_sample=False,
        num_beams=1,
        logits_processor=LogitsProcessorList([force]),
        pad_token_id=loaded.stop_ids[0],
        return_dict_in_generate=True,
        output_logits=True,
    )
    if left:
        raise AdapterError(
            f"{type(model).__name__}: generate asked for {len(left)} of {len(ids)} tokens less"
        )
    return torch.cat(output.logits)  # from [1, vocab] a step


def all_plain_logits(probe: Probe, pairs: Pairs) -> Float[Tensor, "row vocab"]:
    """Return `plain_logits` of several responses, one behind the other."""
    return _all(plain_logits, probe, pairs)


def all_forced_logits(probe: Probe, pairs: Pairs) -> Float[Tensor, "row vocab"]:
    """Return `forced_logits` of several responses, one behind the other."""
    return _all(forced_logits, probe, pairs)


def _all(logits_of: Callable[..., Tensor], probe: Probe, pairs: Pairs) -> Float[Tensor, "row vocab"]:
    inputs = {row: own_inputs(probe, row) for row in {row for row, _ in pairs}}
    return torch.cat([logits_of(probe.loaded, inputs[row], ids) for row, ids in pairs])


def _continued(name: str, value: Tensor, prompt: Tensor, count: int) -> Tensor:
    """Return a value per prompt token continued over the response, which is attended text; others as is."""
    if value.is_floating_point() or value.shape != prompt.shape:
        return value
    return torch.nn.functional.pad(value, (0, count), value=int(name == "attention_mask"))
