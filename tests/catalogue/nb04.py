"""Right and wrong answers to the exercises of notebook 04."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from comet_lib import losses

Answer = Callable[..., Any]


def slow_kl(p: Tensor, q: Tensor) -> Tensor:
    """Entry by entry."""
    total = torch.zeros(())
    for p_row, q_row in zip(p, q, strict=True):
        for one, other in zip(p_row, q_row, strict=True):
            if one > 0:
                total = total + one * (one / other).log()
    return total / len(p)


def gradient(s: Tensor, t: Tensor, T: float) -> Tensor:
    return T * (torch.softmax(s / T, -1) - torch.softmax(t / T, -1)) / len(s)


def by_autograd(s: Tensor, t: Tensor, T: float) -> Tensor:
    leaf = s.clone().requires_grad_()
    return torch.autograd.grad(losses.soft_target_loss(leaf, t, T), leaf)[0]


def slow_mse(s: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    total, count = torch.zeros(()), 0
    for b, valid in enumerate(mask.bool()):
        for i in valid.nonzero().flatten():
            for j in valid.nonzero().flatten():
                total, count = total + (s[b, i, j] - t[b, i, j].detach()) ** 2, count + 1
    return total / count


def pairs_of(mask: Tensor) -> Tensor:
    return mask.bool()[:, :, None] & mask.bool()[:, None, :]


def rows(s: Tensor, t: Tensor) -> Tensor:
    """(B, L) KL of each row, safe at 0."""
    return (torch.xlogy(t, t) - t * s.clamp_min(1e-8).log()).sum(-1)


def row_kl(s: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    return rows(s, t.detach())[mask.bool()].mean()


def slow_row_kl(s: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    each = []
    for b, valid in enumerate(mask.bool()):
        n = int(valid.sum())
        for i in range(n):
            each.append(
                F.kl_div(s[b, i, :n].clamp_min(1e-8).log(), t[b, i, :n].detach(), reduction="sum")
            )
    return torch.stack(each).mean()


def soft(s: Tensor, t: Tensor, T: float) -> Tensor:
    return losses.soft_target_loss(s, t, T)


SOLUTIONS: dict[str, list[Answer]] = {
    "kl_divergence": [
        slow_kl,
        lambda p, q: (torch.xlogy(p, p) - p * q.log()).sum(-1).mean(),
        lambda p, q: F.kl_div(q.log(), p, reduction="batchmean"),
    ],
    "temperature_gradient": [gradient, by_autograd],
    "masked_attention_mse": [
        slow_mse,
        lambda s, t, m: (s - t.detach())[pairs_of(m)].square().mean(),
        losses.attention_mse,
    ],
    "attention_row_kl": [row_kl, slow_row_kl, losses.attention_kl],
    "hybrid": [
        lambda sl, tl, sm, tm, m, T, a: a * soft(sl, tl, T) + (1 - a) * row_kl(sm, tm, m),
        lambda sl, tl, sm, tm, m, T, a: losses.hybrid_loss(
            soft(sl, tl, T), losses.attention_kl(sm, tm, m), a
        ),
    ],
}

MUTANTS: dict[str, dict[str, tuple[Answer, str]]] = {
    "kl_divergence": {
        "swapped": (lambda p, q: (q * (q.log() - p.log())).sum(-1).mean(), "swapped"),
        "negative": (lambda p, q: (p * (q.log() - p.log())).sum(-1).mean(), "sign is wrong"),
        "cross-entropy": (lambda p, q: -(p * q.log()).sum(-1).mean(), "cross-entropy"),
        "mean": (lambda p, q: (p * (p.log() - q.log())).mean(), "mean runs over the classes"),
        "sum": (lambda p, q: (p * (p.log() - q.log())).sum(), "rows are summed"),
        "softmax": (
            lambda p, q: slow_kl(p.softmax(-1), q.softmax(-1)),
            "softmax is applied to probabilities",
        ),
        "zero": (lambda p, q: (p * (p / q).log()).sum(-1).mean(), "probability 0"),
        "rows": (lambda p, q: (p * (p / q).log()).sum(-1), "but a scalar"),
        "not zero": (lambda p, q: slow_kl(p, q) + 1, "KL(p || p) is not 0"),
        "squared": (lambda p, q: slow_kl(p, q) ** 2, "is right, on random input"),
        "item": (lambda p, q: slow_kl(p, q).item(), "returned a float"),
    },
    "temperature_gradient": {
        "negative": (lambda s, t, T: gradient(t, s, T), "from the student to the teacher"),
        "hard": (
            lambda s, t, T: T * (s.softmax(-1) - t.softmax(-1)) / len(s),
            "the logits are not softened",
        ),
        "hard student": (
            lambda s, t, T: T * (s.softmax(-1) - (t / T).softmax(-1)) / len(s),
            "the student's logits are not",
        ),
        "hard teacher": (
            lambda s, t, T: T * ((s / T).softmax(-1) - t.softmax(-1)) / len(s),
            "the teacher's logits are not",
        ),
        "first axis": (
            lambda s, t, T: T * ((s / T).softmax(0) - (t / T).softmax(0)) / len(s),
            "softmax runs over the rows",
        ),
        "logs": (
            lambda s, t, T: T * ((s / T).log_softmax(-1) - (t / T).log_softmax(-1)) / len(s),
            "logarithms of the probabilities",
        ),
        "student alone": (lambda s, t, T: T * (s / T).softmax(-1) / len(s), "does not sum to 0"),
        "loss": (losses.soft_target_loss, "shape (), but shape"),
    },
    "masked_attention_mse": {
        "no mask": (lambda s, t, m: F.mse_loss(s, t), "neither queries nor keys"),
        "keys": (
            lambda s, t, m: (s - t)[m.bool()[:, None, :].expand_as(s)].square().mean(),
            "padded queries are counted",
        ),
        "queries": (lambda s, t, m: (s - t)[m.bool()].square().mean(), "padded keys are counted"),
        "B L L": (
            lambda s, t, m: ((s - t) * pairs_of(m)).square().mean(),
            "still counts in the division",
        ),
        "rows": (
            lambda s, t, m: ((s - t) * pairs_of(m)).square().sum() / m.sum(),
            "number of rows, not of pairs",
        ),
        "batch": (
            lambda s, t, m: ((s - t) * pairs_of(m)).square().sum() / len(m),
            "number of sentences",
        ),
        "sum": (
            lambda s, t, m: ((s - t) * pairs_of(m)).square().sum(),
            "errors are summed",
        ),
        "each sentence": (
            lambda s, t, m: torch.stack(
                [(a - b)[v][:, v].square().mean() for a, b, v in zip(s, t, m.bool(), strict=True)]
            ).mean(),
            "same weight",
        ),
        "absolute": (lambda s, t, m: (s - t)[pairs_of(m)].abs().mean(), "absolute"),
        "root": (lambda s, t, m: slow_mse(s, t, m).sqrt(), "root"),
        "not detached": (
            lambda s, t, m: (s - t)[pairs_of(m)].square().mean(),
            "reaches the teacher",
        ),
        "no gradient": (lambda s, t, m: slow_mse(s.detach(), t, m), "no gradient"),
        "more padding": (
            lambda s, t, m: slow_mse(s, t, m) * m.shape[1],
            "two more columns of padding",
        ),
        "doubled": (lambda s, t, m: slow_mse(s, t, m) * 2, "is right, on random input"),
    },
    "attention_row_kl": {
        "padding": (lambda s, t, m: rows(s, t).mean(), "padded queries are counted"),
        "B L": (
            lambda s, t, m: (rows(s, t) * m).mean(),
            "not of the division",
        ),
        "swapped": (lambda s, t, m: rows(t, s)[m.bool()].mean(), "swapped"),
        "batchmean": (
            lambda s, t, m: (rows(s, t) * m).sum() / len(m),
            "number of sentences",
        ),
        "pairs": (
            lambda s, t, m: (rows(s, t) * m).sum() / pairs_of(m).sum(),
            "number of pairs",
        ),
        "sum": (lambda s, t, m: (rows(s, t) * m).sum(), "rows are summed"),
        "cross-entropy": (
            lambda s, t, m: -(t * s.clamp_min(1e-8).log()).sum(-1)[m.bool()].mean(),
            "cross-entropy",
        ),
        "negative": (lambda s, t, m: -row_kl(s, t, m), "sign is wrong"),
        "softmax": (
            lambda s, t, m: slow_row_kl(
                *(x.masked_fill(m[:, None, :] == 0, -1e9).softmax(-1) for x in (s, t)), m
            ),
            "second softmax",
        ),
        "each sentence": (
            lambda s, t, m: ((rows(s, t) * m).sum(-1) / m.sum(-1)).mean(),
            "same weight",
        ),
        "nan": (lambda s, t, m: (t * (t / s).log()).sum(-1)[m.bool()].mean(), "make the result"),
        "not detached": (
            lambda s, t, m: rows(s, t)[m.bool()].mean(),
            "reaches the teacher",
        ),
        "nan gradient": (
            lambda s, t, m: (torch.xlogy(t, t) - torch.xlogy(t, s)).sum(-1)[m.bool()].mean(),
            "student's gradient is NaN",
        ),
        "infinite": (
            lambda s, t, m: (
                F.kl_div(s.masked_fill(m[:, None, :] == 0, 1.0).log(), t.detach(), reduction="none")
                .sum(-1)[m.bool()]
                .mean()
            ),
            "exactly 0",
        ),
        "not zero": (lambda s, t, m: row_kl(s, t, m) + 1, "a loss other than 0"),
        "mse": (losses.attention_mse, "is right, on random input"),
    },
    "hybrid": {
        "no T squared": (
            lambda sl, tl, sm, tm, m, T, a: (
                a * soft(sl / T, tl / T, 1.0) + (1 - a) * row_kl(sm, tm, m)
            ),
            "lack the factor T squared",
        ),
        "padding": (
            lambda sl, tl, sm, tm, m, T, a: a * soft(sl, tl, T) + (1 - a) * rows(sm, tm).mean(),
            "counts padding",
        ),
        "not detached": (
            lambda sl, tl, sm, tm, m, T, a: (
                a * soft(sl, tl, T) + (1 - a) * rows(sm, tm)[m.bool()].mean()
            ),
            "reaches the teacher",
        ),
        "half a student": (
            lambda sl, tl, sm, tm, m, T, a: (
                a * soft(sl, tl, T) + (1 - a) * row_kl(sm.detach(), tm, m)
            ),
            "a part of the student",
        ),
        "other": (lambda sl, tl, sm, tm, m, T, a: soft(sl, tl, T) * 3, "on random input"),
    },
}
