"""Random arguments for the checks. Each function takes its randomness from ``source``."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def generator() -> torch.Generator:
    """A torch generator with a fresh seed; torch's global random state stays as it is."""
    return torch.Generator().manual_seed(secrets.randbits(48))


def numpy_generator(source: torch.Generator) -> np.random.Generator:
    return np.random.default_rng(whole(source, 0, 2**40))


def whole(source: torch.Generator, low: int, high: int) -> int:
    """A whole number from ``low`` to ``high``, both included."""
    return int(torch.randint(low, high + 1, (), generator=source))


def uniform(source: torch.Generator, low: float, high: float) -> float:
    """A number between ``low`` and ``high``."""
    return low + (high - low) * torch.rand((), generator=source).item()


def normal(source: torch.Generator, *shape: int, scale: float = 3.0) -> Tensor:
    """Float32 tensor of ``shape`` with normal entries of standard deviation ``scale``."""
    return torch.randn(*shape, generator=source) * scale


def probabilities(source: torch.Generator, *shape: int) -> Tensor:
    """Float32 tensor of ``shape`` whose last axis sums to 1."""
    return normal(source, *shape, scale=1.5).softmax(-1)


def mask_of(lengths: Sequence[int]) -> Tensor:
    """(B, L) int64 as a tokenizer returns it: row b has ``lengths[b]`` ones, then zeros."""
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def random_mask(source: torch.Generator, batch: int, length: int) -> Tensor:
    """(B, L) int64: one full sentence, the others of random lengths from 2 to L - 1."""
    return mask_of([length, *(whole(source, 2, length - 1) for _ in range(batch - 1))])


def attention_maps(source: torch.Generator, mask: Tensor, *heads: int) -> Tensor:
    """(B, *heads, L, L) as a model returns them: padded keys get 0, padded queries do not."""
    batch, length = mask.shape
    scores = normal(source, batch, *heads, length, length, scale=1.5)
    padded = mask.view(batch, *(1 for _ in heads), 1, length) == 0
    return scores.masked_fill(padded, -torch.inf).softmax(-1)
