"""This process among others (``accelerate launch``): who am I, which share of a batch is mine?

And how to return memory to the system.
"""

from __future__ import annotations

import ctypes
import gc
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedModel

import comet_lib


def processes() -> PartialState:
    """This process among those that ``accelerate launch`` started; without it, the only one."""
    return PartialState(cpu=not torch.cuda.is_available())


def shares_of_step(counts: Tensor) -> Tensor:
    """The factors that turn means over N batches' items into one mean over an optimizer step.

        factor_i = P * N * count_i / sum over the P processes of their N counts

    The Trainer averages the gradients of N accumulated batches, and DistributedDataParallel those
    of P processes, as if each batch had the same number of items. With this factor on each loss,
    the average is the mean over all items. ``counts`` (N,) are this process's, and so are the
    factors (N,); for one batch in one process, 1.
    """
    own = counts.detach().float()
    total, parts = own.sum(), len(own)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
        parts *= dist.get_world_size()
    return own * parts / total.clamp_min(1)


@contextmanager
def threads_for(model: PreTrainedModel) -> Iterator[None]:
    """Inside, a model with less than a million weights beside its pieces computes in one thread.

    On a CPU its steps are too short to share: 46 ms in one thread, 52 ms in two for the laptop's
    student. One thread never waits for another that a busy neighbor holds up, and its digits do
    not depend on the number of cores.
    """
    pieces: Any = model.get_input_embeddings().weight
    inner = sum(p.numel() for p in model.parameters()) - pieces.numel()
    before = torch.get_num_threads()
    if not torch.cuda.is_available() and inner < 1_000_000:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def give_back_memory(collect: bool = True) -> None:
    """Return freed memory to the system; glibc keeps it (540 of 1,325 MB after stage 1).

    ``collect`` looks for reference cycles first: after a training, which leaves some. It takes a
    quarter of a second, so a loop over models without cycles, such as scikit-learn's, does without.
    """
    if collect:
        gc.collect()
    with suppress(OSError, AttributeError):  # other C libraries return it themselves
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def versions() -> dict[str, str]:
    """The libraries that a result depends on."""
    return {
        "comet_lib": comet_lib.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "transformers")},
    }
