"""One process or several (``accelerate launch``): who am I, and how much of the batch is mine."""

from __future__ import annotations

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
