"""Right and wrong answers to the exercises of notebook 01."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.metrics import confusion_matrix, recall_score

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


def slow_bins(confidence: torch.Tensor, correct: torch.Tensor, bins: int) -> tuple[list, ...]:
    """A loop over the bins, with edges."""
    rows, sure, right = [], [], []
    for low, high in zip(range(bins), range(1, bins + 1), strict=True):
        here = (confidence > low / bins) & (confidence <= high / bins)
        if here.any():
            rows.append(int(here.sum()))
            sure.append(confidence[here].mean().item())
            right.append(correct[here].float().mean().item())
    return rows, sure, right


def with_pandas(confidence: torch.Tensor, correct: torch.Tensor, bins: int) -> tuple[Any, ...]:
    table = pd.DataFrame({"sure": confidence.double(), "right": correct})
    groups = table.groupby(np.minimum((table["sure"] * bins).astype(int), bins - 1))
    means = groups.mean().to_numpy(float)
    return groups.size().to_numpy(), means[:, 0], means[:, 1]


def slow_ece(rows: Any, confidence: Any, accuracy: Any) -> float:
    total = sum(n * abs(a - c) for n, c, a in zip(rows, confidence, accuracy, strict=True))
    return float(total / sum(rows))


def chance(confidence: torch.Tensor, uniforms: torch.Tensor, bins: int) -> list[float]:
    return [slow_ece(*slow_bins(confidence, row < confidence, bins)) for row in uniforms]


def slow_recall(labels: torch.Tensor, predictions: torch.Tensor, classes: int) -> list[float]:
    matrix = confusion_matrix(labels, predictions, labels=range(classes))
    return [100 * row[i] / max(row.sum(), 1) for i, row in enumerate(matrix)]


def slow_marked(texts: list[str], patterns: Any) -> dict[str, float]:
    return {
        name: 100 * len([text for text in texts if pattern.search(text)]) / len(texts)
        for name, pattern in patterns.items()
    }


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
    "marked": [
        slow_marked,
        lambda x, ps: {
            name: np.mean([pattern.search(text) is not None for text in x]) * 100
            for name, pattern in reversed(ps.items())
        },
    ],
    "reliability": [
        lambda p, y, n: tuple(map(torch.tensor, slow_bins(p, y, n))),
        lambda p, y, n: [*map(np.array, slow_bins(p, y, n))],
        slow_bins,
        with_pandas,
    ],
    "calibration_error": [
        slow_ece,
        lambda n, c, a: torch.dot(n.double() / n.sum(), (a - c).abs().double()),
        lambda n, c, a: np.average((c - a).abs().numpy(), weights=n.numpy()),
    ],
    "chance_error": [
        lambda p, u, n: np.percentile(chance(p, u, n), 95),
        lambda p, u, n: np.quantile(np.array(chance(p, u, n)), 0.95),
        lambda p, u, n: torch.quantile(torch.tensor(chance(p, u, n)), 0.95),
    ],
    "fit_temperature": [
        lambda x, y, ts: min(ts, key=lambda t: F.cross_entropy(x / t, y)),
        lambda x, y, ts: max(ts, key=lambda t: (x / t).log_softmax(-1)[range(len(y)), y].sum()),
        lambda x, y, ts: np.float64(ts[np.argmin([F.cross_entropy(x / t, y) for t in ts])]),
    ],
    "recall": [
        lambda y, p, c: torch.tensor(slow_recall(y, p, c)),
        lambda y, p, c: np.array(slow_recall(y, p, c)),
        lambda y, p, c: 100 * recall_score(y, p, labels=range(c), average=None, zero_division=0),
        lambda y, p, c: torch.stack(
            [100 * (p[y == i] == i).float().mean().nan_to_num(0) for i in range(c)]
        ),
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
    "marked": {
        "numbers": (lambda x, ps: [*slow_marked(x, ps).values()], "a dictionary is wanted"),
        "one": (lambda x, ps: {"a number": 3.0}, "the keys a number"),
        "a little": (
            lambda x, ps: {name: share + 1 for name, share in slow_marked(x, ps).items()},
            "is right, on random input",
        ),
    },
    "reliability": {
        "one table": (
            lambda *a: torch.stack([*map(torch.tensor, slow_bins(*a))]),
            "three tensors are wanted",
        ),
        "lengths": (lambda *a: (slow_bins(*a)[0], [0.5], [0.5]), "one entry each"),
        "one bin": (
            lambda p, y, n: ([len(p)], [p.mean()], [y.float().mean()]),
            "bins have rows, but you return 1",
        ),
        "a little": (
            lambda *a: (*slow_bins(*a)[:2], [x + 0.1 for x in slow_bins(*a)[2]]),
            "is right, on random input",
        ),
    },
    "calibration_error": {
        "vector": (lambda n, c, a: (a - c).abs(), "returned a Tensor"),
        "mean confidence": (lambda n, c, a: c.mean(), "is right, on random input"),
    },
    "chance_error": {
        "all draws": (chance, "returned a list"),
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
        "NaN": (
            lambda y, p, c: torch.stack([100 * (p[y == i] == i).float().mean() for i in range(c)]),
            "never occurs, your function returned NaN",
        ),
        "mean": (lambda *a: torch.tensor(slow_recall(*a)).mean(), "returned shape ()"),
        "list": (slow_recall, "returned a list"),
        "labels up to the last": (
            lambda y, p, c: torch.tensor(slow_recall(y, p, int(y.max()) + 1)),
            "never occurs, your function returned shape (2,)",
        ),
    },
    "always_most_common": {
        "least mean": (lambda t, y: 100 * (y == t.min()).float().mean().item(), "on random input"),
        "each": (lambda t, y: y == t.mode().values, "returned a Tensor"),
    },
    "places": {
        "numbers": (lambda m: [*slow_places(m).values()], "a dictionary is wanted"),
        "keys": (lambda m: {"self": 0.5, "left": 0.1}, "the keys self, left"),
        "first query": (lambda m: slow_places(m) | {"<s>": m[0].mean().item()}, "on random input"),
    },
}
