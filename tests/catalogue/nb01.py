"""Right and wrong answers to the exercises of notebook 01."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
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
                    out[head] -= torch.xlogy(p, p)
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


def slow_places(m: torch.Tensor) -> dict[str, float]:
    length, table = len(m), m.tolist()
    where = {"itself": lambda q: q, "left": lambda q: q - 1, "right": lambda q: q + 1}
    where |= {"<s>": lambda q: 0, "</s>": lambda q: length - 1}
    return {
        name: sum(table[q][key(q)] for q in range(length) if 0 <= key(q) < length) / length
        for name, key in where.items()
    }


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
    "chance_error": [
        lambda p, u, n: np.percentile([slow_ece(p, row < p, n) for row in u], 95),
        lambda p, u, n: np.quantile(np.array([slow_ece(p, p > row, n) for row in u]), 0.95),
        lambda p, u, n: torch.quantile(torch.tensor([slow_ece(p, row < p, n) for row in u]), 0.95),
    ],
    "fit_temperature": [
        lambda x, y, ts: min(ts, key=lambda t: F.cross_entropy(x / t, y)),
        lambda x, y, ts: max(ts, key=lambda t: (x / t).log_softmax(-1)[range(len(y)), y].sum()),
        lambda x, y, ts: np.float64(ts[np.argmin([F.cross_entropy(x / t, y) for t in ts])]),
    ],
    "recall": [
        lambda m: torch.stack([100 * m[i, i] / max(int(m[i].sum()), 1) for i in range(len(m))]),
        lambda m: 100 * np.diag(m.numpy()) / np.maximum(m.numpy().sum(1), 1),
        lambda m: (100 * m.diag() / m.sum(1)).nan_to_num(0),
    ],
    "always_most_common": [
        lambda t, y: 100 * (y == t.mode().values).float().mean().item(),
        lambda t, y: 100 * float(np.mean(y.numpy() == np.bincount(t.numpy()).argmax())),
        lambda t, y: 100 * y.tolist().count(max(range(3), key=t.tolist().count)) / len(y),
    ],
    "places": [
        slow_places,
        lambda m: {k: torch.tensor(v) for k, v in slow_places(m).items()},
        lambda m: {k: np.float32(v) for k, v in reversed(slow_places(m).items())},
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
    "chance_error": {
        "all draws": (lambda p, u, n: [slow_ece(p, r < p, n) for r in u], "returned a list"),
        "confidence": (lambda p, u, n: p.mean(), "is right, on random input"),
    },
    "fit_temperature": {
        "one": (lambda x, y, ts: 5.0, "is right, on random input"),
        "all": (lambda x, y, ts: [F.cross_entropy(x / t, y) for t in ts], "returned a list"),
        "exact accuracy": (
            lambda x, y, ts: max(ts, key=lambda t: ((x / t).argmax(-1) == y).float().mean()),
            "chosen every time",
        ),
    },
    "recall": {
        "NaN": (lambda m: 100 * m.diag() / m.sum(1), "never occurs, your function returned NaN"),
        "mean": (lambda m: (100 * m.diag() / m.sum(1).clamp(min=1)).mean(), "returned shape ()"),
        "all": (lambda m: 100 * m / m.sum(1, keepdim=True).clamp(min=1), "returned shape (3, 3)"),
    },
    "always_most_common": {
        "largest": (lambda t, y: 100 * (y == t.max()).float().mean().item(), "on random input"),
        "each": (lambda t, y: y == t.mode().values, "returned a Tensor"),
    },
    "places": {
        "numbers": (lambda m: [*slow_places(m).values()], "a dictionary is wanted"),
        "keys": (lambda m: {"self": 0.5, "left": 0.1}, "the keys self, left"),
        "first query": (lambda m: slow_places(m) | {"<s>": m[0].mean().item()}, "on random input"),
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
