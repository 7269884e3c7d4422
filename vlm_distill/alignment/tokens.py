"""What the routes ask of a model's tokenizer and output layer."""

from typing import Any

from vlm_distill.adapters.adapter import LoadedModel


def vocabulary_width(loaded: LoadedModel) -> int:
    """Return the number of ids of the output layer, its padding included."""
    config: Any = loaded.model.config
    return int(config.get_text_config().vocab_size)


def added_tokens(tokenizer: Any) -> set[str]:
    """Return the tokens that no merge makes: special ones, and what was added behind the vocabulary."""
    return {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(
        tokenizer.all_special_tokens
    )
