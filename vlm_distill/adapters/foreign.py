"""The one guard around files of others: configs, templates, tokenizers and weights may hold anything."""

from collections.abc import Iterator
from contextlib import contextmanager

from vlm_distill.errors import AdapterError, UserError, one_line
from vlm_distill.faults import lacks_memory

REMEDY = "fetch the model again, or choose another one"


@contextmanager
def blaming(what: str, *, remedy: str = REMEDY) -> Iterator[None]:
    """Turn whatever is raised inside into one AdapterError: `what`, the kind of the error, and `remedy`.

    For calls of transformers, tokenizers, safetensors and Jinja on files of a model, which raise all kinds
    of errors for odd ones. A lack of memory is nobody's fault and passes, as a refusal of our own does.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if lacks_memory(error):
            raise
        raise AdapterError(f"{what}: {type(error).__name__}: {one_line(error)}; {remedy}") from error
