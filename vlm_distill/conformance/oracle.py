"""What transformers alone says: the model's class on what its processor makes, one unpadded prompt at a time.

Nothing of this package's encoding, positions, masks, caches or heads is used, so that a mistake there cannot
be made on both sides.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.utils import ModelOutput

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.conformance.findings import OWN_DIFFERENCE, VALUE_UNITS, difference
from vlm_distill.conformance.inputs import processed
from vlm_distill.conformance.probes import Pairs, Probe


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """Logits of responses by both ways of transformers, one row a token.

    `forced` is None where `generate` of the class asks no logits processor, so that it cannot be made to
    choose.
    """

    forced: Float[Tensor, "row vocab"] | None
    plain: Float[Tensor, "row vocab"]

    @property
    def logits(self) -> Float[Tensor, "row vocab"]:
        """What `generate` says, or the plain forward where it cannot be asked."""
        return self.plain if self.forced is None else self.forced

    @property
    def difference(self) -> float:
        """How far the two are from each other, relative to the largest logit."""
        return 0.0 if self.forced is None else difference(self.forced, self.plain)

    @property
    def slack(self) -> float:
        """By how much more than rounding ours may differ: where their own two ways do, either is right."""
        if self.difference > OWN_DIFFERENCE:
            return 1.0
        return max(1.0, 2 * self.difference / (VALUE_UNITS * torch.finfo(self.plain.dtype).eps))

    @property
    def line(self) -> str:
        if self.forced is None:
            return "one plain forward of transformers: generate of this class asks no logits processor"
        named = f"which differ by {self.difference:.1e}"
        far = ", more than rounding explains" if self.difference > OWN_DIFFERENCE else ""
        return f"generate and one plain forward of transformers, {named}{far}"


def judged(probe: Probe) -> Judged:
    """Return what transformers says about the responses of a probe, both ways."""
    return probe.remembered("judged", lambda: _judge(probe))


@torch.no_grad()
def _judge(probe: Probe) -> Judged:
    plain = all_plain_logits(probe, probe.pairs)
    return Judged(forced=all_forced_logits(probe, probe.pairs), plain=plain)


def own_inputs(probe: Probe, row: int) -> dict[str, Tensor]:
    """Return what the processor makes of a prompt and the model's forward names."""
    example = probe.examples[row]

    def make() -> dict[str, Tensor]:
        return processed(probe.loaded, example, probe.load_pictures(example))

    return dict(probe.remembered(("own inputs", row), make))


def plain_logits(
    loaded: LoadedModel, inputs: dict[str, Tensor], ids: Sequence[int]
) -> Float[Tensor, "token vocab"]:
    """Return the logits of each response token from one forward over prompt and response."""
    model: Any = loaded.model
    # Token j is predicted one position before it.
    longer = continued(loaded, inputs, ids)
    logits: Tensor = model(**longer, **keeping(model, len(ids) + 1)).logits
    return logits[0, -1 - len(ids) : -1]


def keeping(model: Any, count: int) -> dict[str, int]:
    """Return the argument with which a forward gives its last logits alone, where its class has one."""
    named = inspect.signature(model.forward).parameters
    return {"logits_to_keep": count} if "logits_to_keep" in named else {}


def continued(loaded: LoadedModel, inputs: dict[str, Tensor], ids: Sequence[int]) -> dict[str, Tensor]:
    """Return the inputs of prompt and response, whose values per token go on as `generate` has them go on."""
    model: Any = loaded.model
    prompt = inputs["input_ids"]
    longer = {name: value for name, value in inputs.items() if name != "input_ids"}
    for _ in ids:
        longer = model._update_model_kwargs_for_generation(ModelOutput(), longer, False)
    longer = {name: longer[name] for name in inputs if name in longer}
    left = [name for name, value in longer.items() if is_per_token(value, prompt)]
    # What a class does not name there it takes for text.
    longer |= {name: torch.nn.functional.pad(longer[name], (0, len(ids))) for name in left}
    return {**longer, "input_ids": torch.cat([prompt, torch.tensor([ids], device=prompt.device)], dim=1)}


def is_per_token(value: Tensor, prompt: Int[Tensor, "1 token"]) -> bool:
    """Return whether a tensor has a whole number for each token of a prompt."""
    return value.shape == prompt.shape and not value.is_floating_point()


def forced_logits(
    loaded: LoadedModel, inputs: dict[str, Tensor], ids: Sequence[int]
) -> Float[Tensor, "token vocab"] | None:
    """Return the logits of each response token as `generate` sees them when it is made to choose `ids`.

    None where `generate` of this class asks no logits processor, or not for each token.
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
    return None if left else torch.cat(output.logits)  # from [1, vocab] a step


def all_plain_logits(probe: Probe, pairs: Pairs) -> Float[Tensor, "row vocab"]:
    """Return `plain_logits` of several responses, one behind the other."""
    return torch.cat([plain_logits(probe.loaded, own_inputs(probe, row), ids) for row, ids in pairs])


def all_forced_logits(probe: Probe, pairs: Pairs) -> Float[Tensor, "row vocab"] | None:
    """Return `forced_logits` of several responses, one behind the other."""
    found = []
    for row, ids in pairs:
        logits = forced_logits(probe.loaded, own_inputs(probe, row), ids)
        if logits is None:
            return None
        found.append(logits)
    return torch.cat(found)
