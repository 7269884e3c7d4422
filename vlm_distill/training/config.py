"""The record of one training stage. What the values do is in trainer.py, parts.py and budget.py."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from vlm_distill.config import Record
from vlm_distill.models.lora import Lora

# How a stage is carried out; it may change when a stage goes on, for example after memory ran out.
MECHANICAL = (
    "micro_batch_size",
    "micro_batch_tokens",
    "gradient_checkpointing",
    "checkpoint_every",
    "keep_last",
    "log_every",
    "loss_byte_budget",
    "trackers",
)
Beta = Annotated[float, Field(ge=0, lt=1)]
Precision = Literal["float32", "bf16", "fp16"]


def _treatment(value: Any) -> str:
    return "word" if isinstance(value, str) else "lora"


Treatment = Annotated[
    Annotated[Literal["full", "frozen"], Tag("word")] | Annotated[Lora, Tag("lora")],
    Discriminator(_treatment),
]


class Trainable(Record):
    """Which components learn: all weights, none, or LoRA matrices beside frozen weights."""

    vision: Treatment = "full"
    projector: Treatment = "full"
    language: Treatment = "full"


class TrainConfig(Record):
    """An AdamW stage. Exactly one of `steps`, `epochs` and `tokens` says how long it lasts.

    `tokens` counts trained student response tokens, so that methods with one and with two responses per
    prompt get equal budgets. `batch_size` is the number of prompts of one optimiser step over all processes,
    `micro_batch_size` of one forward; with `micro_batch_tokens` a forward of the student has at most so many
    positions instead, padding and image tokens included, and a prompt that alone has more goes alone.
    `group_by_length` orders an epoch so that a step holds prompts of similar lengths. With `evaluate_every`
    the live student is compared with its teacher on held-out prompts every so many steps; `patience` such
    evaluations in a row without a new lowest KL end the stage, and the student of the lowest one is its
    result.
    """

    steps: int | None = Field(default=None, ge=1, le=10**9)
    epochs: float | None = Field(default=None, gt=0, le=10**6)
    tokens: int | None = Field(default=None, ge=1, le=10**15)
    batch_size: int = Field(default=32, ge=1, le=10**6)
    micro_batch_tokens: int | None = Field(default=None, ge=1, le=10**9)
    micro_batch_size: int | None = Field(
        default_factory=lambda given: 32 if given.get("micro_batch_tokens") is None else None, ge=1, le=10**6
    )
    group_by_length: bool = False
    learning_rate: float = Field(default=2e-5, gt=0, le=1e6)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, le=1e6)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    max_grad_norm: float = Field(default=1.0, gt=0)
    precision: Precision = "float32"
    gradient_checkpointing: bool = False
    trainable: Trainable = Trainable()
    evaluate_every: int | None = Field(default=None, ge=1)
    patience: int | None = Field(default=None, ge=1)
    checkpoint_every: int = Field(default=200, ge=1)
    keep_last: int = Field(default=2, ge=1)
    log_every: int = Field(default=10, ge=1)
    loss_byte_budget: int = Field(default=256 * 2**20, ge=1)
    trackers: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        given = [name for name in ("steps", "epochs", "tokens") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected exactly one of steps, epochs, tokens, found {' and '.join(given) or 'none'}"
            )
        if (self.micro_batch_size is None) == (self.micro_batch_tokens is None):
            raise ValueError(
                f"expected one of micro_batch_size and micro_batch_tokens, found {self.micro_batch_size} and "
                f"{self.micro_batch_tokens}; set one, and the other to null where the config names it"
            )
        if self.patience is not None and self.evaluate_every is None:
            raise ValueError("`patience` counts evaluations of the live student: set `evaluate_every` too")
        return self

    def prompts_per_forward(self, positions: int) -> int:
        """Return how many prompts a forward has where each takes `positions`, responses included."""
        if self.micro_batch_size is not None:
            return self.micro_batch_size
        assert self.micro_batch_tokens is not None
        return min(self.batch_size, max(1, self.micro_batch_tokens // positions))

    def decisive(self) -> dict[str, Any]:
        """Return the settings that the trained weights depend on, beyond rounding."""
        return self.model_dump(mode="json", exclude=set(MECHANICAL))
