"""This process among others (``accelerate launch``): who am I, what share of a batch is mine; and
giving memory back."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor


def processes() -> PartialState:
    """This process among those that ``accelerate launch`` started; without it, the only one."""
    return PartialState(cpu=not torch.cuda.is_available())


def share_of_batch(count: Tensor) -> Tensor:
    """The factor that makes a mean over this process's ``count`` items a mean over everyone's.

        factor = P * count / sum over the P processes of count

    DistributedDataParallel averages gradients over processes as if each had as many items; with
    this factor on each process's loss the average is the mean over the whole batch. 1 when alone.
    """
    own = count.detach().float()
    if not (dist.is_available() and dist.is_initialized()):
        return torch.ones_like(own)
    total = own.clone()
    dist.all_reduce(total)
    return own * dist.get_world_size() / total.clamp_min(1)


def give_back_memory() -> None:
    """Return freed memory to the system; glibc keeps it (after stage 1, 540 of 1,325 MB)."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library returns it by itself
        ctypes.CDLL("libc.so.6").malloc_trim(0)
