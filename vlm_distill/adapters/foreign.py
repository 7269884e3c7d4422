"""The one guard around files of others: configs, templates, tokenizers and weights may hold anything."""

from collections.abc import Iterator
from contextlib import contextmanager

from vlm_distill.errors import AdapterError, StorageError, UserError, one_line
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
        raise AdapterError(f"{what}: {blame(error)}; {remedy}") from error


def blame(error: Exception) -> str:
    """Return what a stranger's code raised, as a line.

    What is nobody's fault, a lack of memory or of room on a disk, is raised again.
    """
    if lacks_memory(error) or isinstance(error, StorageError):
        raise error
    return f"{type(error).__name__}: {one_line(error)}"
