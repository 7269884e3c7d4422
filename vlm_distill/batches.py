"""Tensors on the device: what adapters build, models read and losses are computed on.

Two encodings, one alignment: each model has its own `PromptBatch` (its processor, its image tokens, its
length); both share one `ResponseBatch`. Response token j is predicted by the hidden state of token j-1, for j
= 0 by the last prompt position.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import linear

from vlm_distill.records import AUTHORS, Author, Example, Response


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptBatch:
    """Left-padded prompts of one model.

    `extras` are the other tensors of its forward (pixel_values, image_grid_thw, ...), concatenated over the
    prompts along their first axis; `extra_counts[name][i]` is how many rows of `extras[name]` belong to
    prompt i, so that prompts can be selected and repeated without knowing the family. `token_extras` have a
    value for every token (token_type_ids, cross_attention_mask, ...), zeros on padding.
    """

    input_ids: Int[Tensor, "prompt prompt_token"]
    attention_mask: Int[Tensor, "prompt prompt_token"]
    extras: Mapping[str, Tensor]
    extra_counts: Mapping[str, tuple[int, ...]]
    token_extras: Mapping[str, Shaped[Tensor, "prompt prompt_token *rest"]] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> "PromptBatch":
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            extras={name: value.to(device) for name, value in self.extras.items()},
            token_extras={name: value.to(device) for name, value in self.token_extras.items()},
        )

    def select(self, index: Int[Tensor, " selected"]) -> "PromptBatch":
        """Return the prompts at `index`, in that order, repeats included."""
        wanted = index.tolist()
        pieces = {name: value.split(list(self.extra_counts[name])) for name, value in self.extras.items()}
        return PromptBatch(
            input_ids=self.input_ids[index],
            attention_mask=self.attention_mask[index],
            extras={name: torch.cat([piece[i] for i in wanted]) for name, piece in pieces.items()},
            extra_counts={
                name: tuple(counts[i] for i in wanted) for name, counts in self.extra_counts.items()
            },
            token_extras={name: value[index] for name, value in self.token_extras.items()},
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseBatch:
    """Right-padded responses.

    `prompt_index` names the prompt of each one, `author` is an index into records.AUTHORS. The responses of
    one author to a prompt stand in the order of their samples. `reference_log_probs` are those of whole
    responses (summed over tokens, in nats) under a fixed reference model, None where nothing reads them.
    """

    prompt_index: Int[Tensor, " response"]
    input_ids: Int[Tensor, "response token"]
    mask: Bool[Tensor, "response token"]
    author: Int[Tensor, " response"]
    reference_log_probs: Float[Tensor, " response"] | None = None

    def to(self, device: torch.device | str) -> "ResponseBatch":
        reference = self.reference_log_probs
        return ResponseBatch(
            prompt_index=self.prompt_index.to(device),
            input_ids=self.input_ids.to(device),
            mask=self.mask.to(device),
            author=self.author.to(device),
            reference_log_probs=None if reference is None else reference.to(device),
        )

    @property
    def labels(self) -> Int[Tensor, " row"]:
        """Valid response tokens, row-major over `mask`: the order of every per-row tensor in the package."""
        return self.input_ids[self.mask]

    @property
    def response_index(self) -> Int[Tensor, " row"]:
        """The response of each row."""
        return self.mask.nonzero()[:, 0]

    @property
    def num_tokens(self) -> Int[Tensor, " response"]:
        return self.mask.sum(dim=1)

    def is_by(self, author: Author) -> Bool[Tensor, " response"]:
        return self.author == AUTHORS.index(author)


def pad_responses(
    groups: Sequence[Sequence[Response]],
    *,
    pad_id: int = 0,
    reference_log_probs: Mapping[str, float] | None = None,
) -> ResponseBatch:
    """Right-pad responses; `groups[i]` answer prompt i.

    `reference_log_probs` are by response id, for every response; None or empty gives a batch without them.
    """
    rows = [(index, response) for index, group in enumerate(groups) for response in group]
    width = max((len(response.token_ids) for _, response in rows), default=0)
    input_ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for row, (_, response) in enumerate(rows):
        input_ids[row, : len(response.token_ids)] = torch.tensor(response.token_ids, dtype=torch.long)
        mask[row, : len(response.token_ids)] = True
    return ResponseBatch(
        prompt_index=torch.tensor([index for index, _ in rows], dtype=torch.long),
        input_ids=input_ids,
        mask=mask,
        author=torch.tensor([AUTHORS.index(response.author) for _, response in rows], dtype=torch.long),
        reference_log_probs=torch.tensor([reference_log_probs[response.id] for _, response in rows])
        if reference_log_probs
        else None,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """The output layer of a model as plain tensors.

    logits = soft_cap * tanh((hidden @ weight.T + bias) * scale / soft_cap); without `soft_cap` (None) the
    logits are the scaled product. The tensors are the live parameters, not copies.
    """

    weight: Float[Tensor, "vocab width"]
    bias: Float[Tensor, " vocab"] | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    def logits(self, hidden: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows vocab"]:
        """Return the logits in the precision of the model, as its own forward computes them.

        They are on the device of the output layer. What training needs more exactly is in losses/rows.py.
        """
        return self.scaled(linear(hidden.to(self.weight), self.weight, self.bias))

    def scaled(self, projected: Float[Tensor, "*rows column"]) -> Float[Tensor, "*rows column"]:
        """Return logits, given hidden @ weight.T + bias for all columns or some."""
        logits = projected if self.scale == 1.0 else projected * self.scale
        return logits if self.soft_cap is None else (logits / self.soft_cap).tanh() * self.soft_cap


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainItem:
    """A prompt with the responses that are trained on it, in the order of records.AUTHORS."""

    example: Example
    responses: tuple[Response, ...]

    @property
    def num_tokens(self) -> int:
        return sum(len(response.token_ids) for response in self.responses)
