"""What storage, memory and libraries of file formats refuse, as one line with what to do: the one place.

Writers name their file with `writing`; the command line asks `explained` about what comes up to it.
No library is imported: most commands need none of them.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlm_distill.errors import StorageError, UserError, one_line

_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room, or raise the quota",
    errno.EFBIG: "make room, or raise the limit of file sizes (ulimit -f),",
    errno.EACCES: "give this user access to it",
    errno.EPERM: "give this user access to it",
    errno.EROFS: "make it writable, or choose another folder",
    errno.EISDIR: "move the folder away that stands where a file belongs",
    errno.ENOTDIR: "move the file away that stands where a folder belongs",
    errno.EEXIST: "move away what stands in its place",
    errno.ENOTEMPTY: "move away what stands in its place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "check the disk",
    errno.ENOMEM: "free memory",
}
# Libraries written in Rust have no OSError: its number stands in the text. So does it in torch's.
_IN_TEXT = re.compile(r"(?:os error|errno) (\d+)\b", re.IGNORECASE)
_NO_MEMORY = re.compile(r"out of memory|can(?:'t|not) allocate memory|bad_alloc", re.IGNORECASE)
# How torch says that a stream did not take all bytes, without a number.
_CUT = re.compile(r"PytorchStreamWriter failed|unexpected pos|failed to write", re.IGNORECASE)
# What gloo and NCCL say of a collective whose other processes are gone.
_LOST = re.compile(r"Connection (?:closed|reset) by peer|Connection refused|NCCL (?:error|communicator)")
_LIBRARIES = ("safetensors", "safetensors_rust", "pyarrow", "PIL", "tokenizers")
_SMALLER = "use smaller batches (micro_batch_size, batch_size) or free memory,"
_AGAIN = "and start the same command again: what is stored is kept"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name `path` in the error of whoever cannot write it.

    Raises:
        StorageError: the disk is full, a name cannot be taken, memory is short, and the like.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = _refusal(error)
        if reason is None:
            raise
        raise StorageError(f"{path}: cannot be written ({reason[0]}); {reason[1]} {_AGAIN}") from None


def explained(error: BaseException) -> str | None:
    """Return the line for an error that storage, memory or a file is to blame for, None for any other."""
    reason = _refusal(error)
    if reason is not None:
        return f"{_place(error)}{reason[0]}; {reason[1]} {_AGAIN}"
    if isinstance(error, RuntimeError) and _LOST.search(str(error)):
        rest = "start the same command again: what is stored is kept"
        return f"lost another process of this job, whose own lines say why ({one_line(error)}); {rest}"
    library = type(error).__module__.partition(".")[0]
    # tokenizers raises Exception itself.
    if library in _LIBRARIES or type(error) is Exception:
        name = type(error).__name__ if library == "builtins" else f"{library}, {type(error).__name__}"
        return f"a file cannot be read or written ({name}: {one_line(error)}); replace the damaged file"
    return None


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error says that memory is short, which torch says in words alone on a CPU."""
    is_named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_named or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))


def _refusal(error: BaseException) -> tuple[str, str] | None:
    """Return what was refused and what to do about it."""
    text = one_line(error)
    if lacks_memory(error):
        return f"out of memory{f': {text}' if text else ''}", _SMALLER
    number = _number(error, text)
    if number is not None:
        return os.strerror(number), _REMEDIES.get(number, "mend the cause")
    if isinstance(error, OSError):
        return text, "mend the cause"
    return (text, "make room") if isinstance(error, RuntimeError) and _CUT.search(text) else None


def _number(error: BaseException, text: str) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _IN_TEXT.search(text)
    return int(found[1]) if found else None


def _place(error: BaseException) -> str:
    names = (getattr(error, "filename", None), getattr(error, "filename2", None))
    known = [os.fsdecode(name) for name in names if isinstance(name, str | bytes)]
    return f"{' -> '.join(known)}: " if known else ""
