"""The processes of one job under `torchrun` or `accelerate launch`: who am I, who writes, who waits for whom.

Without a launcher there is one process, no process group is made and every function here is trivial.
Tensors are exchanged by the trainer through accelerate; here are only the waits and small objects between
stages.

A process that fails prints its line and exits; the launcher's agent looks every 0.1 s, ends the others with
SIGTERM (SIGKILL after 30 s) and exits itself with 1, whatever the code of the failed process was. It also
exits with 1 on a SIGTERM or SIGINT, which it hands to all processes (stopping.py). Those that wait for one
that has ended see the closed connection at once, so nobody hangs until a timeout.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState

from vlm_distill.errors import ConfigError, UserError
from vlm_distill.stopping import Interrupted, is_asked

T = TypeVar("T")

# One process may generate for hours while another has nothing left to do, so waits have a group of their own
# whose timeout no stage reaches. The default group keeps its 10 (NCCL) or 30 (gloo) minutes: collectives in
# a training step that take longer hang.
WAIT_TIMEOUT = timedelta(days=30)


def start(device: str) -> None:
    """Join the processes of this job; the first call decides whether they train on the CPU.

    Does nothing without a launcher, and when called again.

    Raises:
        ConfigError: the environment is that of several processes but not of a launcher, or there are more
            processes than devices.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    missing = [
        name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ
    ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: expected a launcher's {', '.join(missing)} as well; "
            "start with torchrun or accelerate launch, or unset WORLD_SIZE"
        )
    kind = _kind(device)
    wanted = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if kind != "cpu" and wanted > torch.accelerator.device_count():
        raise ConfigError(
            f"device: expected one {kind} device for each of the {wanted} processes of this machine, "
            f"found {torch.accelerator.device_count()}; start fewer processes or set device=cpu"
        )
    PartialState(cpu=kind == "cpu")
    _waiting_group()


def stop() -> None:
    """Leave the process group at the end of a successful job.

    A process that failed must not: NCCL would wait here for the others, and the launcher for this process.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        _waiting_group.cache_clear()


def rank() -> int:
    """Return the number of this process, from 0, over all machines."""
    return dist.get_rank() if _started() else 0


def num_processes() -> int:
    return dist.get_world_size() if _started() else 1


def is_main() -> bool:
    """Say whether this is the process that writes what all share."""
    return rank() == 0


def local_device(device: str) -> str:
    """Return the device of this process: "cuda" is "cuda:1" in the second process of a machine.

    "auto" is the accelerator of this machine, or the CPU. Without a launcher a kind of device stays as it is.
    """
    kind = _kind(device)
    return kind if num_processes() == 1 or kind in ("cpu", "mps") else f"{kind}:{os.environ['LOCAL_RANK']}"


def wait() -> None:
    """Return when every process has come here.

    Raises:
        UserError: another process ended.
    """
    if num_processes() > 1:
        with _others_alive():
            dist.barrier(group=_waiting_group())


def on_main(function: Callable[[], T]) -> T:
    """Call `function` in the main process only; return its result in all processes.

    The others wait for it. The result is pickled; a user's error is raised in all processes.

    Raises:
        UserError: another process ended.
    """
    if num_processes() == 1:
        return function()
    outcome: list[Any] = [None, None]
    if is_main():
        try:
            outcome[0] = function()
        except (UserError, OSError) as error:
            outcome[1] = error
    with _others_alive():
        dist.broadcast_object_list(outcome, src=0, group=_waiting_group())
    result: T
    result, failure = outcome
    if failure is not None:
        raise failure
    return result


def _started() -> bool:
    if dist.is_initialized():
        return True
    # Else every process would believe that it is alone, and all would write the same files.
    assert int(os.environ.get("WORLD_SIZE", "1")) == 1, "several processes: `start` comes first"
    return False


def _kind(device: str) -> str:
    if device != "auto":
        return device
    # The current accelerator is that of the torch build, whether or not this machine has one.
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator.type if accelerator is not None else "cpu"


@cache
def _waiting_group() -> Any:
    """Return the group for waits; all processes make it in their first call. Gloo sleeps, NCCL would spin."""
    return dist.new_group(backend="gloo", timeout=WAIT_TIMEOUT)


@contextmanager
def _others_alive() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if is_asked():
            raise Interrupted from None  # so were they
        raise UserError(
            f"process {rank()}: lost the others, one of them ended and its own lines say why "
            f"({type(error).__name__}: {str(error).partition('. ')[0]})"
        ) from None
