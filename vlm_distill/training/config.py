"""The record of one training stage. What the values do is in trainer.py."""

from typing import Any, Literal

from pydantic import Field, model_validator

from vlm_distill.config import Record

# How a stage is carried out; it may change when a stage goes on, for example after memory ran out.
MECHANICAL = ("micro_batch_size", "checkpoint_every", "keep_last", "log_every", "loss_byte_budget")
Treatment = Literal["full", "frozen"]


class Trainable(Record):
    """Which components learn."""

    vision: Treatment = "full"
    projector: Treatment = "full"
    language: Treatment = "full"


class TrainConfig(Record):
    """An AdamW stage. Exactly one of `steps`, `epochs` and `tokens` says how long it lasts.

    `tokens` counts trained student response tokens, so that methods with one and with two responses per
    prompt get equal budgets. `batch_size` is the number of prompts of one optimiser step over all processes,
    `micro_batch_size` of one forward.
    """

    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    tokens: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=1)
    micro_batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=2e-5, gt=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = Field(default=1.0, gt=0)
    precision: Literal["float32", "bf16"] = "float32"
    trainable: Trainable = Trainable()
    checkpoint_every: int = Field(default=200, ge=1)
    keep_last: int = Field(default=2, ge=1)
    log_every: int = Field(default=10, ge=1)
    loss_byte_budget: int = Field(default=256 * 2**20, ge=1)

    @model_validator(mode="after")
    def _one_length(self) -> "TrainConfig":
        given = [name for name in ("steps", "epochs", "tokens") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected exactly one of steps, epochs, tokens, found {' and '.join(given) or 'none'}"
            )
        return self

    def decisive(self) -> dict[str, Any]:
        """Return the settings that the trained weights depend on, beyond rounding."""
        return self.model_dump(mode="json", exclude=set(MECHANICAL))
