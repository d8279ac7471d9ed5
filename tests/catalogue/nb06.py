"""Right and wrong answers to the exercises of notebook 06."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Answer = Callable[..., Any]


def fold_by_fold(rows: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    out = torch.full((sum(len(r) for r in rows), parts[0].shape[1]), float("nan"))
    for r, part in zip(rows, parts, strict=True):
        for i, row in enumerate(r.tolist()):
            out[row] = part[i]
    return out


def fold_sum(rows: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    """The whole table divided by the number of folds, as if every fold had judged every tweet."""
    return fold_by_fold(rows, parts) / len(rows)


def first_fold(rows: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    out = torch.zeros(sum(len(r) for r in rows), parts[0].shape[1])
    out[rows[0]] = parts[0]
    return out


def kl(logits: Tensor, probs: Tensor, reduction: str = "batchmean") -> Tensor:
    return F.kl_div(F.log_softmax(logits, -1), probs, reduction=reduction)


def hard_of(logits: Tensor, labels: Tensor) -> Tensor:
    known = labels != -100
    return F.cross_entropy(logits[known], labels[known]) if known.any() else logits.sum() * 0


def slow_mixed(logits: Tensor, labels: Tensor, probs: Tensor, alpha: float) -> Tensor:
    """Row by row and class by class."""
    soft, hard, count = torch.zeros(()), torch.zeros(()), 0
    for z, y, q in zip(logits, labels.tolist(), probs, strict=True):
        log_p = z - torch.logsumexp(z, 0)
        for c in range(len(z)):
            soft = soft + torch.xlogy(q[c], q[c]) - q[c] * log_p[c]
        if y != -100:
            hard, count = hard - log_p[y], count + 1
    return alpha * soft / len(logits) + (1 - alpha) * hard / max(count, 1)


def naive_kl(logits: Tensor, probs: Tensor) -> Tensor:
    return (probs * (probs.log() - F.log_softmax(logits, -1))).sum(-1).mean()


def no_labels_no_loss(z: Tensor, y: Tensor, q: Tensor, a: float) -> Tensor:
    return a * kl(z, q) + (1 - a) * hard_of(z, y) if (y != -100).any() else z.sum() * 0


def no_labels_no_alpha(z: Tensor, y: Tensor, q: Tensor, a: float) -> Tensor:
    return a * kl(z, q) + (1 - a) * hard_of(z, y) if (y != -100).any() else kl(z, q)


SOLUTIONS: dict[str, list[Answer]] = {
    "fold_targets": [
        fold_by_fold,
        lambda rows, parts: torch.cat(parts)[torch.cat(rows).argsort()],
        lambda rows, parts: torch.zeros(sum(map(len, rows)), 3).index_copy_(
            0, torch.cat(rows), torch.cat(parts)
        ),
    ],
    "mix_targets": [
        lambda a, b, w: (1 - w) * a + w * b,
        lambda a, b, w: torch.lerp(a, b, w),
        lambda a, b, w: a + w * (b - a),
    ],
    "mixed_loss": [
        slow_mixed,
        lambda z, y, q, a: a * kl(z, q) + (1 - a) * hard_of(z, y),
        lambda z, y, q, a: (
            a * kl(z, q)
            + (1 - a)
            * F.cross_entropy(z, y, ignore_index=-100, reduction="sum")
            / (y != -100).sum().clamp_min(1)
        ),
    ],
}

MUTANTS: dict[str, dict[str, tuple[Answer, str]]] = {
    "fold_targets": {
        "one fold": (first_fold, "a row of zeros"),
        "divided": (fold_sum, "no longer sum to 1"),
        "one hot": (
            lambda rows, parts: F.one_hot(fold_by_fold(rows, parts).argmax(-1), 3).float(),
            "is right, on random input",
        ),
        "stack": (lambda rows, parts: fold_by_fold(rows, parts).flatten(), "returned shape"),
        "list": (lambda rows, parts: list(parts), "returned a list"),
    },
    "mix_targets": {
        "logits": (
            lambda a, b, w: torch.softmax((1 - w) * a.log() + w * b.log(), -1),
            "the logits are averaged",
        ),
        "first": (lambda a, b, w: a, "is right, on random input"),
        "in place": (lambda a, b, w: a.mul_(1 - w) + w * b, "argument 1 in place"),
    },
    "mixed_loss": {
        "over all rows": (
            lambda z, y, q, a: (
                a * kl(z, q)
                + (1 - a) * F.cross_entropy(z, y, ignore_index=-100, reduction="none").mean()
            ),
            "divided by all rows",
        ),
        "summed": (
            lambda z, y, q, a: (
                a * kl(z, q) + (1 - a) * F.cross_entropy(z, y, ignore_index=-100, reduction="sum")
            ),
            "summed, not averaged",
        ),
        "soft labelled": (
            lambda z, y, q, a: a * kl(z[y >= 0], q[y >= 0]) + (1 - a) * hard_of(z, y),
            "reach only the labelled rows",
        ),
        "soft unlabelled": (
            lambda z, y, q, a: a * kl(z[y < 0], q[y < 0]) + (1 - a) * hard_of(z, y),
            "reach only the unlabelled rows",
        ),
        "alpha": (lambda z, y, q, a: (1 - a) * kl(z, q) + a * hard_of(z, y), "of the hard labels"),
        "no alpha": (lambda z, y, q, a: kl(z, q) + hard_of(z, y), "added without alpha"),
        "hard in full": (lambda z, y, q, a: a * kl(z, q) + hard_of(z, y), "has weight 1"),
        "no hard": (lambda z, y, q, a: a * kl(z, q), "are left out"),
        "class 0": (
            lambda z, y, q, a: a * kl(z, q) + (1 - a) * F.cross_entropy(z, y.clamp_min(0)),
            "taught class 0",
        ),
        "pseudo": (
            lambda z, y, q, a: (
                a * kl(z, q) + (1 - a) * F.cross_entropy(z, torch.where(y < 0, q.argmax(-1), y))
            ),
            "replaces a missing one",
        ),
        "cross-entropy": (
            lambda z, y, q, a: a * F.cross_entropy(z, q) + (1 - a) * hard_of(z, y),
            "plus the teacher's entropy",
        ),
        "swapped": (
            lambda z, y, q, a: (
                a * F.kl_div(q.log(), F.softmax(z, -1), reduction="batchmean")
                + (1 - a) * hard_of(z, y)
            ),
            "sides of the KL divergence are swapped",
        ),
        "mean": (
            lambda z, y, q, a: a * kl(z, q, "mean") + (1 - a) * hard_of(z, y),
            "averaged over the classes",
        ),
        "two slips": (
            lambda z, y, q, a: (1 - a) * kl(z[y >= 0], q[y >= 0]) + a * hard_of(z, y),
            "two things at once",
        ),
        "NaN": (
            lambda z, y, q, a: a * kl(z, q) + (1 - a) * F.cross_entropy(z, y),
            "without labels, the result is NaN",
        ),
        "raises without": (
            lambda z, y, q, a: a * kl(z, q) + (1 - a) * hard_of(z, y) + 0 * float(y[y >= 0].max()),
            "without labels, your function raised",
        ),
        "no alpha without": (no_labels_no_alpha, "no longer weighted by alpha"),
        "nothing without": (no_labels_no_loss, "the soft loss is lost"),
        "log of zero": (
            lambda z, y, q, a: a * naive_kl(z, q) + (1 - a) * hard_of(z, y),
            "probability of exactly 0 gives NaN",
        ),
        "detached": (
            lambda z, y, q, a: slow_mixed(z.detach(), y, q, a),
            "no gradient reaches the student",
        ),
        "item": (lambda z, y, q, a: slow_mixed(z, y, q, a).item(), "returned a float"),
    },
}
