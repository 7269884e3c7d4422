"""Whether a model can be used at all: what is odd in models of others shows before anything is written.

Loading shows what files lack (models/load.py); here plain prompts go through tokenizer, template and body.
"""

from collections.abc import Sequence

import torch

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.chat import pad_id
from vlm_distill.adapters.foreign import blaming
from vlm_distill.adapters.plain_text import names_of
from vlm_distill.batches import PromptBatch
from vlm_distill.data.examples import RecipeSource
from vlm_distill.data.image_counts import ImageCounts, count_images
from vlm_distill.data.recipe import Recipe
from vlm_distill.errors import AdapterError
from vlm_distill.evaluation.task import Task
from vlm_distill.forward import forward_prompts
from vlm_distill.generation.decoding import evaluating, own_suppressed_ids
from vlm_distill.models.trial_prompts import trial_prompts


def require_readable_prompts(loaded: LoadedModel) -> None:
    """Refuse a model that cannot read the ids of its tokenizer, or a plain prompt; weights are not needed.

    Raises:
        AdapterError: there are fewer embeddings than ids that prompts and responses need, or no prompt can
            be encoded.
    """
    num_rows, tokenizer = len(loaded.model.get_input_embeddings().weight), loaded.tokenizer  # type: ignore
    with blaming(f"{loaded.path}: its tokenizer cannot be used"):
        # Tokenizers are extended without their models, by special tokens, as which no text is read.
        special = {*names_of(loaded.processor).names}
        needed = {i for token, i in tokenizer.get_vocab().items() if token not in special}
        needed |= {pad_id(tokenizer), loaded.stop_ids[0]}
    with blaming(f"{loaded.path}: generation_config.json: expected `suppress_tokens` to be a list of ids"):
        torch.tensor(own_suppressed_ids(loaded), dtype=torch.long)
    try:
        prompts = trial_prompts(loaded).values()
    except AdapterError as error:
        raise AdapterError(f"{loaded.path}: it cannot read a trial prompt: {error}") from error
    read = {i for one in prompts for i in one.input_ids[0].tolist()}
    outside = sorted(i for i in needed | read if i >= num_rows)
    if outside:
        first = tokenizer.convert_ids_to_tokens(outside[:5])
        raise AdapterError(
            f"{loaded.path}: its tokenizer has ids up to {outside[-1]}, but the model {num_rows} embeddings: "
            f"{len(outside)} tokens cannot be read (first: {first}); fetch both from the same place"
        )


def require_images_read(loaded: LoadedModel, role: str, recipe: Recipe | None, tasks: Sequence[Task]) -> None:
    """Refuse pictures for a model that reads text only, in a recipe or in the questions of tasks.

    A recipe that skips bad rows leaves prompts with images out, as long as others remain.

    Raises:
        AdapterError: one line with how many prompts have images. DataError: a source cannot be read.
    """
    if loaded.image_token_ids or "vision" in loaded.adapter.parts:
        return
    found = count_images(recipe.sources) if recipe else None
    skips = recipe is not None and recipe.on_bad_row == "skip"
    if found and found.with_images > (found.prompts - 1 if skips else 0):
        raise _unseen(loaded, role, found, "prompts have images")
    for task in tasks:
        found = count_images([RecipeSource(source=task.data, prompt=task.prompt)])
        if found and found.with_images:
            raise _unseen(loaded, role, found, f"questions of task {task.name} have images")


def _unseen(loaded: LoadedModel, role: str, found: ImageCounts, what: str) -> AdapterError:
    return AdapterError(
        f"{loaded.path}: the {role} reads text only: {found.with_images:,} of {found.prompts:,} {what}; "
        "choose an image-text model, or data without images"
    )


def require_answers(loaded: LoadedModel) -> LoadedModel:
    """Return the model, or refuse one whose body fails on a trial prompt or says nothing finite of it."""
    for what, prompts in trial_prompts(loaded).items():
        _require_finite(loaded, prompts, what)
    return loaded


def _require_finite(loaded: LoadedModel, prompts: PromptBatch, what: str) -> None:
    with (
        blaming(f"{loaded.path}: the model fails on {what}"),
        torch.inference_mode(),
        evaluating(loaded.model),
    ):
        hidden, _ = forward_prompts(loaded, prompts.to(loaded.device))
        is_finite = bool(loaded.head.logits(hidden[:, -1:]).isfinite().all())
    if not is_finite:
        raise AdapterError(
            f"{loaded.path}: its logits on {what} are not finite; check its weights or load it in float32"
        )
