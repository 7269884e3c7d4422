"""Generation inside this process, on the model's own forward: the engine that needs nothing but transformers.

Here: which prompts go together, and turning prompts into tensors and tensors into text. The loop itself is in
decoding.py.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from pydantic import Field
from torch import Tensor

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.batches import PromptBatch
from vlm_distill.config import Record
from vlm_distill.data.images import ImageLoader
from vlm_distill.files import hash_json
from vlm_distill.generation.backend import Asked, Wanted
from vlm_distill.generation.decoding import FINISHES, Decoded, EndsInStop, decode_batch, evaluating
from vlm_distill.generation.engine import Completion, Sampling
from vlm_distill.generation.prompts import decode_ids, prompt_lengths, response_text, unpadded
from vlm_distill.generation.sampling import row_uniforms
from vlm_distill.models.positions import has_room
from vlm_distill.packages import package_version
from vlm_distill.records import Example


class TransformersEngineConfig(Record):
    """Generation inside this process. `batch_size` is the number of responses that are decoded together."""

    kind: Literal["transformers"] = "transformers"
    batch_size: int = Field(default=128, ge=1, le=10**6)

    def open(self, asked: Asked) -> AbstractContextManager["TransformersEngine"]:
        return nullcontext(transformers_engine(self, asked))

    def require(self, wanted: Wanted) -> None:
        """Nothing is missing: it runs on what training runs on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformersEngine:
    """Generates with a loaded model; `batch_size` responses (prompts times samples) are decoded together.

    `suppressed_ids` are never generated: those that the other model of a pair could not read. `full` gives
    the model with all its weights once something is generated, where `loaded` lacks some.
    """

    loaded: LoadedModel
    load_images: ImageLoader
    batch_size: int
    suppressed_ids: tuple[int, ...] = ()
    full: Callable[[], LoadedModel] | None = None

    @property
    def settings(self) -> Mapping[str, str]:
        return {
            "kind": "transformers",
            "version": package_version("transformers") or "",
            "dtype": str(next(self._whole().model.parameters()).dtype).removeprefix("torch."),
        }

    def _whole(self) -> LoadedModel:
        return self.loaded if self.full is None else self.full()

    def plan(self, examples: Sequence[Example], sampling: Sampling) -> list[list[int]]:
        """Return batches of prompts of similar length, the longest first: a lack of memory shows at once."""
        lengths = prompt_lengths(self.loaded, self.load_images, examples)
        fits = [i for i, one in enumerate(lengths) if has_room(self.loaded, one + sampling.max_new_tokens)]
        order = sorted(fits, key=lambda i: -lengths[i])
        prompts = max(1, self.batch_size // sampling.num_samples)
        return [order[start : start + prompts] for start in range(0, len(order), prompts)]

    def generate(self, examples: Sequence[Example], sampling: Sampling) -> list[Completion]:
        loaded = self._whole()
        if len(examples) > 1 and not loaded.adapter.supports_left_padding:
            return [one for example in examples for one in self.generate([example], sampling)]
        prompts = loaded.encode(examples, [self.load_images(example) for example in examples])
        uniforms = row_uniforms([example.id for example in examples], sampling)
        with evaluating(loaded.model):
            decoded = decode_batch(
                loaded,
                prompts.to(loaded.device),
                sampling,
                uniforms=uniforms,
                suppressed_ids=self.suppressed_ids,
                ends_in_stop=_stop_string_test(self.loaded.tokenizer, sampling.stop)
                if sampling.stop
                else None,
            )
        return self._completions(examples, prompts, decoded, sampling)

    def _completions(
        self, examples: Sequence[Example], prompts: PromptBatch, decoded: Decoded, sampling: Sampling
    ) -> list[Completion]:
        hashes = [hash_json(ids) for ids in unpadded(prompts)]
        counts, finish = decoded.num_tokens.tolist(), decoded.finish.tolist()
        ids = [tuple(row[:count]) for row, count in zip(decoded.token_ids.tolist(), counts, strict=True)]
        log_probs = [
            tuple(row[:count]) for row, count in zip(decoded.log_probs.tolist(), counts, strict=True)
        ]
        texts = {row: response_text(self.loaded, row, sampling.stop) for row in set(ids)}
        return [
            Completion(
                example_id=examples[row // sampling.num_samples].id,
                sample_index=row % sampling.num_samples,
                token_ids=ids[row],
                text=texts[ids[row]],
                finish=FINISHES[finish[row]],
                prompt_ids_hash=hashes[row // sampling.num_samples],
                token_log_probs=log_probs[row],
            )
            for row in range(len(ids))
        ]


def _stop_string_test(tokenizer: Any, stop: tuple[str, ...]) -> EndsInStop:
    """Return a test for stop strings in the last tokens."""
    # A token adds at least one byte; four more for one that begins inside a character.
    tail = max(len(string.encode("utf-8")) for string in stop) + 4

    def ends_in_stop(token_ids: Int[Tensor, "live tail"]) -> Bool[Tensor, " live"]:
        texts = [decode_ids(tokenizer, row) for row in token_ids[:, -tail:].tolist()]
        found = [any(string in text for string in stop) for text in texts]
        return torch.tensor(found, device=token_ids.device)

    return ends_in_stop


def transformers_engine(config: TransformersEngineConfig, asked: Asked) -> TransformersEngine:
    """Return the engine with these settings, which holds nothing that must be freed."""
    return TransformersEngine(
        loaded=asked.loaded,
        load_images=asked.load_images,
        batch_size=config.batch_size,
        suppressed_ids=asked.suppressed_ids,
        full=asked.full,
    )
