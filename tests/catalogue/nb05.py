"""Right and wrong answers to the exercises of notebook 05."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from comet_lib import attention

Answer = Callable[..., Any]


def slow_positions(labels: torch.Tensor, ignore: int) -> torch.Tensor:
    rows = [[label != ignore for label in row] for row in labels.tolist()]
    return torch.tensor(rows)


def slow_logits(hidden: torch.Tensor, labels: torch.Tensor, head: Answer) -> torch.Tensor:
    return torch.stack(
        [
            head(hidden[b, i])
            for b in range(len(labels))
            for i in range(labels.shape[1])
            if labels[b, i] != -100
        ]
    )


def slow_layers(student: int, teacher: int) -> list[int]:
    """The largest whole number not above (i + 1) T / S, less one."""
    return [max(n for n in range(teacher + 1) if n * student <= (i + 1) * teacher) - 1
            for i in range(student)]  # fmt: skip


def nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(M,) minus the log-probability of each hidden piece."""
    keep = labels != -100
    return -F.log_softmax(logits[keep], -1).gather(-1, labels[keep][:, None])[:, 0]


SOLUTIONS: dict[str, list[Answer]] = {
    "masked_positions": [
        lambda y, ignore: y != ignore,
        lambda y, ignore: ~(y == ignore),
        lambda y, ignore: y.ne(ignore),
        slow_positions,
    ],
    "gathered_logits": [
        lambda h, y, head: head(h[y != -100]),
        lambda h, y, head: head(h[(y != -100).nonzero(as_tuple=True)]),
        slow_logits,
    ],
    "match_layers": [
        lambda s, t: [(i + 1) * t // s - 1 for i in range(s)],
        lambda s, t: attention.layer_map(s, t),
        lambda s, t: torch.tensor([int((i + 1) * t / s) - 1 for i in range(s)]),
        slow_layers,
    ],
    "perplexity": [
        lambda x, y: F.cross_entropy(x.transpose(1, 2), y).exp(),
        lambda x, y: F.cross_entropy(x[y != -100], y[y != -100]).exp(),
        lambda x, y: nll(x, y).mean().exp(),
    ],
}

MUTANTS: dict[str, dict[str, tuple[Answer, str]]] = {
    "masked_positions": {
        "long": (lambda y, ignore: (y != ignore).long(), "torch.int64, not torch.bool"),
        "indices": (lambda y, ignore: (y != ignore).nonzero(), "returned shape"),
        "list": (lambda y, ignore: (y != ignore).tolist(), "returned a list"),
        "in place": (lambda y, ignore: y.masked_fill_(y == ignore, 0) > 0, "changed its argument"),
    },
    "gathered_logits": {
        "head first": (lambda h, y, head: head(h)[y != -100], "the head ran at"),
        "all": (lambda h, y, head: head(h), "logits at all positions"),
        "hidden": (lambda h, y, head: h[y != -100], "the hidden states, not logits"),
        "piece 0": (lambda h, y, head: head(h[y > 0]), "piece 0 is lost"),
        "order": (lambda h, y, head: head(h[y != -100]).flip(0), "another order"),
        "first row": (lambda h, y, head: head(h[y != -100])[:1], "returned shape"),
    },
    "match_layers": {
        "skip": (lambda s, t: [i * t // s for i in range(s)], "first layer of each group"),
        "last": (lambda s, t: [*range(t - s, t)], "top layers only"),
        "backwards": (lambda s, t: attention.layer_map(s, t)[::-1], "runs backwards"),
        "teacher's": (lambda s, t: list(range(t)), "you name"),
        "number": (lambda s, t: t // s, "returned a int"),
        "dict": (lambda s, t: dict(enumerate(attention.layer_map(s, t))), "returned a dict"),
        "rounded": (
            lambda s, t: np.round(np.arange(1, s + 1) * t / s + 0.01).astype(int).tolist(),
            "is right, on random input",
        ),
    },
    "perplexity": {
        "piece 0": (
            lambda x, y: F.cross_entropy(x.transpose(1, 2), y.clamp_min(0)).exp(),
            "count as piece 0",
        ),
        "by row": (lambda x, y: nll(x, y).exp(), "but a scalar"),
    },
}
