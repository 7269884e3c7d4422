"""What cannot work is refused before the first step."""

from vlm_distill.errors import ConfigError, DataError
from vlm_distill.training.config import TrainConfig
from vlm_distill.training.parts import learning_parts
from vlm_distill.training.step import Stage


def check_stage(config: TrainConfig, stage: Stage) -> None:
    """Refuse what cannot work before the first step."""
    if stage.student.vision_cache is not None and config.trainable.vision != "frozen":
        raise ConfigError(
            "train.trainable.vision: expected `frozen` for a student whose image features are cached, found "
            "a tower that learns; take `without_vision_cache(student)`"
        )
    reads_text = "language" in learning_parts(stage.student)
    if not reads_text and not any(item.example.images for item in stage.items):
        raise ConfigError(
            "train.trainable: only parts that read images learn, and no prompt has an image; "
            "let `language` learn"
        )
    source = stage.objective.source
    if source.needs_validation and (config.evaluate_every is None or stage.evaluate is None):
        raise ConfigError(
            "train.evaluate_every: the adaptive off-policy share of this objective follows the held-out KL; "
            "set it, and let the recipe hold prompts out"
        )
    if config.evaluate_every is not None and stage.evaluate is None:
        raise ConfigError(
            "train.evaluate_every: nothing to evaluate on; it needs a teacher, `evaluate` with "
            "agreement_examples, and a recipe that holds prompts out"
        )
    if not source.samples and not any(item.num_tokens for item in stage.items):
        raise DataError("training items: every response is empty, so there is nothing to train on")


def check_sharded(config: TrainConfig, stage: Stage, *, num_processes: int) -> None:
    """Refuse what needs the whole student on every process.

    Also steps in which the processes would not run the same layers equally often, and so wait forever.
    """
    hint = "launch with data parallelism (MULTI_GPU) instead of FSDP"
    if stage.objective.source.samples:
        raise ConfigError(
            f"objective: sampling during training needs the whole student on every process; {hint} or choose "
            "an objective on stored responses"
        )
    if config.evaluate_every is not None:
        raise ConfigError(
            f"train.evaluate_every: the live student is needed whole on every process; {hint} or leave it out"
        )
    if config.batch_size % num_processes:
        raise ConfigError(
            f"train.batch_size: expected a multiple of the {num_processes} processes, got "
            f"{config.batch_size}; sharded weights need as many prompts on each"
        )
    if len({bool(item.example.images) for item in stage.items}) > 1:
        raise ConfigError(
            f"data: some prompts have images and some have none, so processes would not run the same layers; "
            f"{hint}"
        )
