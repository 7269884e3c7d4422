"""A back end without a model, whose answers are written down."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_distill.errors import EngineError, did_you_mean
from vlm_distill.generation.engine import Completion, Sampling
from vlm_distill.records import Example


@dataclass(frozen=True, kw_only=True, slots=True)
class ScriptedEngine:
    """Answers from a script: sample i of an example is `script[example.id][i % length]`.

    A text longer than `max_new_tokens` is truncated and finishes by "length".
    """

    script: Mapping[str, Sequence[str]]
    tokenizer: Any
    stop_id: int
    batch_size: int = 8
    version: str = "1"

    @property
    def settings(self) -> Mapping[str, str]:
        return {"kind": "scripted", "version": self.version}

    def plan(self, examples: Sequence[Example], sampling: Sampling) -> list[list[int]]:
        starts = range(0, len(examples), self.batch_size)
        return [list(range(start, min(start + self.batch_size, len(examples)))) for start in starts]

    def generate(self, examples: Sequence[Example], sampling: Sampling) -> list[Completion]:
        return [
            self._answer(example, index, sampling)
            for example in examples
            for index in range(sampling.num_samples)
        ]

    def _answer(self, example: Example, sample_index: int, sampling: Sampling) -> Completion:
        if example.id not in self.script:
            raise EngineError(
                f"script: no text for example {example.id!r}; {did_you_mean(example.id, self.script)}"
            )
        texts = self.script[example.id]
        text = texts[sample_index % len(texts)]
        token_ids = [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.stop_id]
        fits = len(token_ids) <= sampling.max_new_tokens
        if not fits:
            token_ids = token_ids[: sampling.max_new_tokens]
            text = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        return Completion(
            example_id=example.id,
            sample_index=sample_index,
            token_ids=tuple(token_ids),
            text=text,
            finish="stop" if fits else "length",
            prompt_ids_hash=example.prompt_hash(),
        )
