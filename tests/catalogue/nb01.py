"""Right and wrong answers to the exercises of notebook 01."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.metrics import confusion_matrix

from comet_lib.similarity import entropy

Answer = Callable[..., Any]


def slow_tokens_per_word(tokenize: Any, texts: list[str]) -> float:
    pieces = words = 0
    for text in texts:
        pieces += len(tokenize(text))
        words += len(text.split())
    return pieces / words


def slow_entropy(maps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Row by row, entry by entry."""
    out = torch.zeros(maps.shape[1])
    for head in range(maps.shape[1]):
        for b, length in enumerate(mask.sum(1).tolist()):
            for q in range(length):
                for p in maps[b, head, q, :length]:
                    out[head] -= p * p.log()
    return out / mask.sum()


def rows(maps: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(maps).sum(-1)


def slow_ece(confidence: torch.Tensor, correct: torch.Tensor, bins: int) -> float:
    """A loop over the bins, with edges."""
    total = 0.0
    for low, high in zip(range(bins), range(1, bins + 1), strict=True):
        here = (confidence > low / bins) & (confidence <= high / bins)
        if here.any():
            gap = correct[here].float().mean() - confidence[here].mean()
            total += here.float().mean().item() * abs(gap.item())
    return total


def ece_of(confidence: Any, correct: Any, bins: int, gap: Any, weigh: Any, one: int = 1) -> float:
    """``weigh(gaps, counts)`` of ``gap(accuracy, confidence, bin)`` in each bin."""
    at = np.minimum((confidence.numpy() * bins).astype(int), bins - one)
    gaps, counts = [], []
    for index in range(bins):
        here = at == index
        if here.any():
            sure, right = confidence.numpy()[here].mean(), correct.numpy()[here].mean()
            gaps.append(gap(right, sure, index))
            counts.append(here.sum())
    return float(weigh(np.array(gaps), np.array(counts)))


def absolute(right: float, sure: float, _: int) -> float:
    return abs(right - sure)


def signed(right: float, sure: float, _: int) -> float:
    return right - sure


def mean(gaps: Any, counts: Any) -> float:
    return float((gaps * counts).sum() / counts.sum())


def slow_confusion(labels: torch.Tensor, predictions: torch.Tensor, classes: int) -> torch.Tensor:
    matrix = torch.zeros(classes, classes, dtype=torch.long)
    for i, j in zip(labels.tolist(), predictions.tolist(), strict=True):
        matrix[i, j] += 1
    return matrix


def fancy(labels: torch.Tensor, predictions: torch.Tensor, classes: int) -> torch.Tensor:
    matrix = torch.zeros(classes, classes, dtype=torch.long)
    matrix[labels, predictions] += 1
    return matrix


SOLUTIONS: dict[str, list[Answer]] = {
    "tokens_per_word": [
        slow_tokens_per_word,
        lambda f, x: np.mean([len(f(w)) for t in x for w in t.split()]),
        lambda f, x: len(f(" ".join(x))) / len(" ".join(x).split()),
    ],
    "attention_entropy": [
        slow_entropy,
        lambda m, k: torch.stack([entropy(m[:, h], k) for h in range(m.shape[1])]),
        lambda m, k: rows(m).transpose(1, 2)[k.bool()].mean(0),
        lambda m, k: -(m * m.clamp_min(1e-12).log()).sum(-1).mul(k[:, None]).sum((0, 2)) / k.sum(),
    ],
    "calibration_error": [
        slow_ece,
        lambda p, y, n: torch.tensor(slow_ece(p, y, n)),
        lambda p, y, n: ece_of(p, y, n, absolute, mean),
    ],
    "confusion": [
        slow_confusion,
        lambda y, p, c: torch.bincount(y * c + p, minlength=c * c).reshape(c, c),
        lambda y, p, c: torch.as_tensor(confusion_matrix(y, p, labels=range(c))),
        lambda y, p, c: torch.eye(c)[y].T @ torch.eye(c)[p],
        lambda y, p, c: slow_confusion(y, p, c).numpy(),
    ],
}

MUTANTS: dict[str, dict[str, tuple[Answer, str]]] = {
    "tokens_per_word": {
        "inverse": (lambda f, x: 1 / slow_tokens_per_word(f, x), "words per token"),
        "first text": (lambda f, x: len(f(x[0])) / len(x[0].split()), "on random input"),
        "list": (lambda f, x: [len(f(t)) / len(t.split()) for t in x], "returned a list"),
        "tokenizes the list": (lambda f, x: len(f(x)) / len(x), "AttributeError"),
    },
    "attention_entropy": {
        "sentences": (
            lambda m, k: ((rows(m) * k[:, None]).sum(-1) / k.sum(-1)[:, None]).mean(0),
            "each sentence weighs the same",
        ),
        "mean of keys": (
            lambda m, k: torch.special.entr(m).mean(-1).transpose(1, 2)[k.bool()].mean(0),
            "averaged and not summed",
        ),
        "columns": (
            lambda m, k: torch.special.entr(m).sum(-2).transpose(1, 2)[k.bool()].mean(0),
            "over the queries",
        ),
        "bits": (lambda m, k: slow_entropy(m, k) / np.log(2), "bits"),
        "sign": (lambda m, k: -slow_entropy(m, k), "sign is wrong"),
        "zero times log zero": (lambda m, k: -(m * m.log()).sum(-1).mean((0, 2)), "NaN"),
        "head mean": (lambda m, k: entropy(m.mean(1), k), "returned shape ()"),
        "each sentence": (lambda m, k: rows(m).mean(-1), "returned shape (2, 3)"),
        "a little": (lambda m, k: slow_entropy(m, k) + 0.1, "on random input"),
        "list": (lambda m, k: slow_entropy(m, k).tolist(), "returned a list"),
        "in place": (lambda m, k: slow_entropy(m.clamp_(1e-9), k), "changed its argument 1"),
    },
    "calibration_error": {
        "bins alike": (
            lambda p, y, n: ece_of(p, y, n, absolute, lambda g, c: g.mean()),
            "every bin weighs the same. ",
        ),
        "empty bins": (
            lambda p, y, n: ece_of(p, y, n, absolute, lambda g, c: g.sum() / n),
            "the empty ones too",
        ),
        "worst": (lambda p, y, n: ece_of(p, y, n, absolute, lambda g, c: g.max()), "worst bin"),
        "signed": (lambda p, y, n: ece_of(p, y, n, signed, mean), "underconfident bins cancel"),
        "minus": (lambda p, y, n: -ece_of(p, y, n, signed, mean), "confidence minus accuracy"),
        "one bin": (
            lambda p, y, n: (y.float().mean() - p.mean()).abs().item(),
            "once, at the end",
        ),
        "squared": (
            lambda p, y, n: ece_of(p, y, n, lambda a, b, _: (a - b) ** 2, mean),
            "are squared",
        ),
        "root": (
            lambda p, y, n: ece_of(p, y, n, lambda a, b, _: (a - b) ** 2, mean) ** 0.5,
            "root of the mean",
        ),
        "middle": (
            lambda p, y, n: ece_of(p, y, n, lambda a, b, i: abs(a - (i + 0.5) / n), mean),
            "middle of the bin",
        ),
        "counts": (
            lambda p, y, n: ece_of(p, y, n, absolute, lambda g, c: (g * c).sum()),
            "by counts",
        ),
        "percent": (lambda p, y, n: 100 * slow_ece(p, y, n), "in percent"),
        "one lost": (
            lambda p, y, n: ece_of(p, y, n, absolute, lambda g, c: (g * c).sum() / len(p), one=0),
            "exactly 1",
        ),
        "ten bins": (lambda p, y, n: slow_ece(p, y, 10), "on random input"),
        "empty mean": (
            lambda p, y, n: sum(
                (y[(p * n).long() == i].float().mean() - p[(p * n).long() == i].mean()).abs()
                for i in range(n)
            ),
            "NaN",
        ),
        "vector": (lambda p, y, n: (p - y.float()).abs(), "returned a Tensor"),
    },
    "confusion": {
        "transposed": (lambda y, p, c: slow_confusion(p, y, c), "swapped"),
        "fancy index": (fancy, "several times"),
        "size from the data": (
            lambda y, p, c: slow_confusion(y, p, int(max(y.max(), p.max())) + 1),
            "returned shape (3, 3)",
        ),
        "one more": (lambda y, p, c: slow_confusion(y, p, c) + 1, "on random input"),
    },
}
