"""Right and wrong answers to the exercises of notebook 03."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Answer = Callable[..., Any]
INF = float("inf")


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5


def hidden(m: Tensor) -> Tensor:
    """(B, 1, 1, L): True at padded keys."""
    return m[:, None, None, :] == 0


def fast_map(q: Tensor, k: Tensor, m: Tensor) -> Tensor:
    return scores(q, k).masked_fill(hidden(m), -INF).softmax(-1)


def slow_map(q: Tensor, k: Tensor, m: Tensor) -> Tensor:
    """Entry by entry, without a softmax function."""
    batch, heads, length, width = q.shape
    out = torch.zeros(batch, heads, length, length)
    for b in range(batch):
        keys = [j for j in range(length) if m[b, j]]
        for h in range(heads):
            for i in range(length):
                row = torch.stack([(q[b, h, i] * k[b, h, j]).sum() for j in keys]) / width**0.5
                row = torch.exp(row - row.max())
                for j, weight in zip(keys, row / row.sum(), strict=True):
                    out[b, h, i, j] = weight
    return out


def raw_exp(q: Tensor, k: Tensor, m: Tensor) -> Tensor:
    e = torch.exp(scores(q, k)) * ~hidden(m)
    return e / e.sum(-1, keepdim=True)


def slow_pairs(v: Tensor, m: Tensor) -> Tensor:
    kept = [
        v[b, i, j]
        for b in range(v.shape[0])
        for i in range(v.shape[1])
        for j in range(v.shape[2])
        if m[b, i] and m[b, j]
    ]
    return torch.stack(kept).mean()


def pairs(m: Tensor) -> Tensor:
    return m[:, :, None] * m[:, None, :]


def half(a: Tensor) -> Tensor:
    return (a + torch.eye(a.shape[-1])) / 2


def slow_rollout(a: Tensor, r: Tensor) -> Tensor:
    out = torch.zeros_like(r)
    for b in range(len(a)):
        for i in range(a.shape[1]):
            out[b, i] = 0.5 * r[b, i]
            for j in range(a.shape[2]):
                out[b, i] = out[b, i] + 0.5 * a[b, i, j] * r[b, j]
    return out


SOLUTIONS: dict[str, list[Answer]] = {
    "attention_map": [
        lambda q, k, m: torch.softmax(scores(q, k).masked_fill(hidden(m), -INF), dim=-1),
        lambda q, k, m: (scores(q, k) - 1e4 * (1 - m[:, None, None, :])).softmax(-1),
        slow_map,
    ],
    "head_mean": [
        lambda q, k, m: fast_map(q, k, m).mean(1),
        lambda q, k, m: fast_map(q, k, m).sum(1) / q.shape[1],
        lambda q, k, m: torch.stack([*slow_map(q, k, m).unbind(1)]).mean(0),
        lambda q, k, m: fast_map(q, k, m).mean(1).numpy(),
    ],
    "masked_rows": [
        lambda v, m: (v * pairs(m)).sum() / pairs(m).sum(),
        lambda v, m: v[pairs(m).bool()].mean(),
        slow_pairs,
    ],
    "rollout_step": [
        lambda a, r: half(a) @ r,
        lambda a, r: 0.5 * (a @ r) + 0.5 * r,
        lambda a, r: F.normalize(a + torch.eye(a.shape[-1]), p=1, dim=-1) @ r,
        slow_rollout,
    ],
}

MUTANTS: dict[str, dict[str, tuple[Answer, str]]] = {
    "attention_map": {
        "no scale": (
            lambda q, k, m: (q @ k.mT).masked_fill(hidden(m), -INF).softmax(-1),
            "not divided by the square root of d",
        ),
        "over d": (
            lambda q, k, m: (q @ k.mT / q.shape[-1]).masked_fill(hidden(m), -INF).softmax(-1),
            "divided by d, not by its square root",
        ),
        "times root d": (
            lambda q, k, m: (
                (q @ k.mT * q.shape[-1] ** 0.5).masked_fill(hidden(m), -INF).softmax(-1)
            ),
            "multiplied by the square root of d",
        ),
        "whole width": (
            lambda q, k, m: (
                (q @ k.mT / (q.shape[1] * q.shape[-1]) ** 0.5)
                .masked_fill(hidden(m), -INF)
                .softmax(-1)
            ),
            "model's whole width",
        ),
        "no mask": (lambda q, k, m: scores(q, k).softmax(-1), "mask is ignored"),
        "zero score": (
            lambda q, k, m: (scores(q, k) * m[:, None, None, :]).softmax(-1),
            "get the score 0",
        ),
        "mask after": (
            lambda q, k, m: scores(q, k).softmax(-1) * m[:, None, None, :],
            "applied after the softmax",
        ),
        "queries": (
            lambda q, k, m: scores(q, k).masked_fill(m[:, None, :, None] == 0, -1e30).softmax(-1),
            "hides queries and not keys",
        ),
        "upside down": (
            lambda q, k, m: scores(q, k).masked_fill(~hidden(m), -1e30).softmax(-1),
            "upside down",
        ),
        "over the queries": (
            lambda q, k, m: scores(q, k).masked_fill(hidden(m), -1e30).softmax(-2),
            "runs over the queries",
        ),
        "swapped": (
            lambda q, k, m: scores(k, q).masked_fill(hidden(m), -INF).softmax(-1),
            "queries and keys are swapped",
        ),
        "log": (
            lambda q, k, m: (
                scores(q, k)
                .double()
                .masked_fill(hidden(m), torch.finfo(torch.double).min)
                .log_softmax(-1)
            ),
            "log-probabilities",
        ),
        "sigmoid": (
            lambda q, k, m: scores(q, k).masked_fill(hidden(m), -INF).sigmoid(),
            "a sigmoid",
        ),
        "overflow": (raw_exp, "overflow"),
        "exp alone": (lambda q, k, m: torch.exp(scores(q, k)) * ~hidden(m), "do not sum to 1"),
        "two slips": (lambda q, k, m: (q @ k.mT).softmax(-1), "two things at once"),
        "minus infinity over queries": (
            lambda q, k, m: scores(q, k).masked_fill(m[:, None, :, None] == 0, -INF).softmax(-1),
            "returned NaN",
        ),
        "mean of heads": (lambda q, k, m: slow_map(q, k, m).mean(1), "returned shape"),
        "other": (lambda q, k, m: slow_map(q * 1.1, k, m), "is right, on random input"),
        "raises": (lambda q, k, m: q @ k, "RuntimeError"),
    },
    "head_mean": {
        "batch": (lambda q, k, m: fast_map(q, k, m).mean(0), "over the batch, axis 0"),
        "tokens": (lambda q, k, m: fast_map(q, k, m).mean(-1), "runs over the tokens"),
        "keepdim": (lambda q, k, m: fast_map(q, k, m).mean(1, keepdim=True), "still there"),
        "no mean": (lambda q, k, m: fast_map(q, k, m), "every head still has"),
        "batch and heads": (lambda q, k, m: fast_map(q, k, m).mean((0, 1)), "over the batch as"),
        "everything": (lambda q, k, m: fast_map(q, k, m).mean(), "returned shape ()"),
        "other": (lambda q, k, m: fast_map(q, k, m).mean(1) * 0.9, "is right, on random input"),
    },
    "masked_rows": {
        "keys": (
            lambda v, m: (v * m[:, None, :]).sum() / (m.sum() * m.shape[1]),
            "padded keys are left out, but",
        ),
        "queries": (
            lambda v, m: (v * m[:, :, None]).sum() / (m.sum() * m.shape[1]),
            "padded queries are left out, but",
        ),
        "by sentence": (
            lambda v, m: ((v * pairs(m)).sum((1, 2)) / pairs(m).sum((1, 2))).mean(),
            "averaged by itself first",
        ),
        "upside down": (lambda v, m: v[pairs(m) == 0].mean(), "upside down"),
        "or": (
            lambda v, m: v[(m[:, :, None] + m[:, None, :]) > 0].mean(),
            "as soon as one of its two",
        ),
        "by row": (lambda v, m: (v * pairs(m)).mean(-1), "but a scalar"),
        "item": (lambda v, m: slow_pairs(v, m).item(), "returned a float"),
        "other": (lambda v, m: slow_pairs(v, m) * 1.01, "is right, on random input"),
        "in place": (lambda v, m: v.mul_(pairs(m)).sum() / pairs(m).sum(), "changed its argument"),
    },
    "rollout_step": {
        "not halved": (lambda a, r: a @ r + r, "but nothing is halved"),
        "identity after": (
            lambda a, r: (a @ r + torch.eye(a.shape[-1])) / 2,
            "mixed in after the product",
        ),
        "weights": (lambda a, r: (0.5 * a + torch.eye(a.shape[-1])) @ r, "do not sum to 1"),
        "first sentence": (lambda a, r: (half(a) @ r)[0], "returned shape"),
        "other": (
            lambda a, r: (0.9 * a + 0.1 * torch.eye(a.shape[-1])) @ r,
            "is right, on random input",
        ),
        "list": (lambda a, r: (half(a) @ r).tolist(), "returned a list"),
    },
}
