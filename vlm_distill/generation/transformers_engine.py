"""Generation inside this process, on the model's own forward: the engine that needs nothing but transformers.

Here: which prompts go together, and turning prompts into tensors and tensors into text. The loop itself is in
decoding.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from PIL import Image
from torch import Tensor

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.batches import PromptBatch
from vlm_distill.files import hash_json
from vlm_distill.generation.decoding import FINISHES, Decoded, EndsInStop, decode_batch, evaluating
from vlm_distill.generation.engine import Completion, Sampling
from vlm_distill.generation.sampling import row_uniforms
from vlm_distill.records import Example, Message

# How many prompts are encoded at once when only their lengths are wanted.
MEASURED_TOGETHER = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformersEngine:
    """Generates with a loaded model; `batch_size` responses (prompts times samples) are decoded together.

    `forbidden_ids` are never generated: those that the other model of a pair could not read.
    """

    loaded: LoadedModel
    load_images: Callable[[Example], list[Image.Image]]
    batch_size: int
    forbidden_ids: tuple[int, ...] = ()

    @property
    def fingerprint(self) -> str:
        return self.loaded.fingerprint

    @property
    def settings(self) -> Mapping[str, str]:
        settings = {"kind": "transformers", "dtype": str(next(self.loaded.model.parameters()).dtype)}
        return settings | ({"forbidden_ids": str(self.forbidden_ids)} if self.forbidden_ids else {})

    def plan(self, examples: Sequence[Example], sampling: Sampling) -> list[list[int]]:
        """Return batches of prompts of similar length, the longest first: a lack of memory shows at once."""
        lengths = self._prompt_lengths(examples)
        room = _max_positions(self.loaded)
        fits = [
            i for i, length in enumerate(lengths) if room is None or length + sampling.max_new_tokens <= room
        ]
        order = sorted(fits, key=lambda i: -lengths[i])
        prompts = max(1, self.batch_size // sampling.num_samples)
        return [order[start : start + prompts] for start in range(0, len(order), prompts)]

    def generate(self, examples: Sequence[Example], sampling: Sampling) -> list[Completion]:
        prompts = self.loaded.encode(examples, [self.load_images(example) for example in examples])
        uniforms = row_uniforms([example.id for example in examples], sampling)
        with evaluating(self.loaded.model):
            decoded = decode_batch(
                self.loaded,
                prompts.to(self.loaded.device),
                sampling,
                uniforms=uniforms,
                forbidden_ids=self.forbidden_ids,
                ends_in_stop=_stop_string_test(self.loaded.tokenizer, sampling.stop)
                if sampling.stop
                else None,
            )
        return self._completions(examples, prompts, decoded, sampling)

    def _prompt_lengths(self, examples: Sequence[Example]) -> list[int]:
        """Return prompt lengths in tokens, image tokens included.

        They follow from messages and image sizes, so each distinct pair of these is encoded once.
        """
        sizes: dict[tuple[str, ...], tuple[tuple[int, int], ...]] = {}
        keys: list[tuple[tuple[Message, ...], tuple[tuple[int, int], ...]]] = []
        for example in examples:
            if example.images not in sizes:
                sizes[example.images] = tuple(image.size for image in self.load_images(example))
            keys.append((example.messages, sizes[example.images]))
        first = dict(zip(reversed(keys), reversed(examples), strict=True))
        distinct, lengths = list(first.values()), list[int]()
        for start in range(0, len(distinct), MEASURED_TOGETHER):
            some = distinct[start : start + MEASURED_TOGETHER]
            prompts = self.loaded.encode(some, [self.load_images(example) for example in some])
            lengths += prompts.attention_mask.sum(dim=1).tolist()
        length_of = dict(zip(first, lengths, strict=True))
        return [length_of[key] for key in keys]

    def _completions(
        self, examples: Sequence[Example], prompts: PromptBatch, decoded: Decoded, sampling: Sampling
    ) -> list[Completion]:
        hashes = _prompt_ids_hashes(prompts)
        counts, finish = decoded.num_tokens.tolist(), decoded.finish.tolist()
        ids = [tuple(row[:count]) for row, count in zip(decoded.token_ids.tolist(), counts, strict=True)]
        log_probs = [
            tuple(row[:count]) for row, count in zip(decoded.log_probs.tolist(), counts, strict=True)
        ]
        texts = {row: self._text(row, sampling.stop) for row in set(ids)}
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

    def _text(self, token_ids: tuple[int, ...], stop: tuple[str, ...]) -> str:
        # A stop token need not be a special token, so it is taken off here and not left to the tokenizer.
        shown = token_ids[:-1] if token_ids and token_ids[-1] in self.loaded.stop_ids else token_ids
        text = _decode(self.loaded.tokenizer, shown)
        ends = [text.find(string) for string in stop if string in text]
        return text[: min(ends)] if ends else text


def _decode(tokenizer: Any, token_ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(
        list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def _stop_string_test(tokenizer: Any, stop: tuple[str, ...]) -> EndsInStop:
    """Return a test for stop strings in the last tokens."""
    # A token adds at least one byte; four more for one that begins inside a character.
    tail = max(len(string.encode("utf-8")) for string in stop) + 4

    def ends_in_stop(token_ids: Int[Tensor, "live tail"]) -> Bool[Tensor, " live"]:
        texts = [_decode(tokenizer, row) for row in token_ids[:, -tail:].tolist()]
        found = [any(string in text for string in stop) for text in texts]
        return torch.tensor(found, device=token_ids.device)

    return ends_in_stop


def _prompt_ids_hashes(prompts: PromptBatch) -> list[str]:
    lengths = prompts.attention_mask.sum(dim=1).tolist()
    rows = prompts.input_ids.tolist()
    return [hash_json(row[len(row) - length :]) for row, length in zip(rows, lengths, strict=True)]


def _max_positions(loaded: LoadedModel) -> int | None:
    """Return how many positions the language model has, None for families without a limit in their config."""
    config: Any = loaded.model.config
    return getattr(config.get_text_config(), "max_position_embeddings", None)
