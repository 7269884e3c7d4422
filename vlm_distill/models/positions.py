"""How many positions a model has, which bounds what it may read and write together.

Learned positions end there with an error, rotary ones go on without one, at angles that were never trained.
"""

from typing import Any

from jaxtyping import Int
from torch import Tensor

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.batches import PromptBatch

# Whose `factor` lengthens the positions that the config counts; of the others they are counted with it.
STRETCHED = ("linear", "yarn")
# Whose angles are chosen for a whole batch by its longest row: beyond the base rows would change each other.
CHOSEN_BY_LONGEST = ("longrope", "dynamic")


def max_positions(loaded: LoadedModel) -> int | None:
    """Return how many positions the language model has, None for families without a limit in their config.

    A sliding window is no limit: what lies behind it is still read through the layers.
    """
    model: Any = loaded.model
    config = model.config.get_text_config()
    known = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)  # MPT
    # XLNet says -1.
    if known is None or known <= 0:
        return None
    # Families with a rope for each kind of layer have no type here, and count all of their positions.
    rope = getattr(config, "rope_parameters", None) or {}
    # YaRN's base may stand beside the product of both (arXiv:2309.00071; vLLM reads it in the same way).
    base = rope.get("original_max_position_embeddings") or known
    if rope.get("rope_type") in CHOSEN_BY_LONGEST:
        return int(min(known, base))
    if rope.get("rope_type") not in STRETCHED:
        return int(known)
    return int(max(known, base * (rope.get("factor") or 1)))


def has_room(loaded: LoadedModel, num_tokens: int) -> bool:
    """Return whether so many tokens, of a prompt and its response together, are within the positions."""
    room = max_positions(loaded)
    return room is None or num_tokens <= room


def have_room(loaded: LoadedModel, prompts: PromptBatch, num_tokens: Int[Tensor, " prompt"]) -> list[bool]:
    """Return which prompts have room for so many tokens of a response to each."""
    total = prompts.attention_mask.sum(dim=1) + num_tokens.to(prompts.attention_mask.device)
    return [has_room(loaded, number) for number in total.tolist()]
