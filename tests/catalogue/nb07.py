"""Right and wrong answers to the exercises of notebook 07."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from comet_lib import evaluation
from comet_lib.data import normalise

Answer = Callable[..., Any]


def slow_weighted_f1(labels: Any, predictions: Any) -> float:
    """Weighted F1 in percent, tweet by tweet."""
    total = 0.0
    for label in range(3):
        hit = sum(1 for y, g in zip(labels, predictions, strict=True) if y == g == label)
        true = sum(1 for y in labels if y == label)
        guessed = sum(1 for g in predictions if g == label)
        if hit:
            precision, recall = hit / guessed, hit / true
            total += true / len(labels) * 2 * precision * recall / (precision + recall)
    return 100 * total


def careless_f1(labels: Any, predictions: Any) -> float:
    """Right until a label is never guessed."""
    total = 0.0
    for label in range(3):
        hit = np.sum((labels == label) & (predictions == label))
        precision = np.float64(hit) / np.sum(predictions == label)
        recall = hit / np.sum(labels == label)
        total += np.mean(labels == label) * 2 * precision * recall / (precision + recall)
    return 100 * total


def forgetful_f1(labels: Any, predictions: Any) -> float:
    """A label that is never guessed loses its weight."""
    guessed = np.unique(predictions)
    return 100 * f1_score(labels, predictions, labels=guessed, average="weighted")


def of_averages(labels: Any, predictions: Any) -> float:
    p = precision_score(labels, predictions, average="weighted", zero_division=0)
    r = recall_score(labels, predictions, average="weighted")
    return 100 * 2 * p * r / (p + r)


f1 = slow_weighted_f1


def paired(labels: Any, ours: Any, theirs: Any, rows: Any) -> np.ndarray:
    return np.array([f1(labels[r], ours[r]) - f1(labels[r], theirs[r]) for r in rows])


def unpaired(labels: Any, ours: Any, theirs: Any, rows: Any) -> np.ndarray:
    other = np.roll(rows, 1, axis=0)
    scores = [f1(labels[r], ours[r]) for r in rows], [f1(labels[r], theirs[r]) for r in other]
    return np.array(scores[0]) - np.array(scores[1])


def leaked(train: list[str], dev: list[str]) -> list[bool]:
    known = {normalise(text) for text in train}
    return [normalise(text) in known for text in dev]


def once(train: list[str], dev: list[str]) -> list[bool]:
    clean = [*map(normalise, dev)]
    return [d in set(train) and clean.index(d) == i for i, d in enumerate(clean)]


SOLUTIONS: dict[str, list[Answer]] = {
    "weighted_f1": [
        lambda y, g: 100 * f1_score(y, g, average="weighted", zero_division=0),
        slow_weighted_f1,
        evaluation.weighted_f1,
    ],
    "bootstrap_interval": [
        lambda s: np.percentile(s, (2.5, 97.5)),
        lambda s: tuple(np.quantile(s, [0.025, 0.975])),
        lambda s: torch.quantile(torch.tensor(s), torch.tensor([0.025, 0.975]).double()),
    ],
    "paired_difference": [
        paired,
        lambda y, a, b, rows: [f1(y[r], a[r]) - f1(y[r], b[r]) for r in rows],
        lambda y, a, b, rows: torch.tensor(paired(y, a, b, rows)),
    ],
    "leaked_rows": [
        leaked,
        lambda train, dev: np.isin([*map(normalise, dev)], [*map(normalise, train)]),
        lambda train, dev: [int(normalise(d) in map(normalise, train)) for d in dev],
    ],
}

MUTANTS: dict[str, dict[str, tuple[Answer, str]]] = {
    "weighted_f1": {
        "accuracy": (lambda y, g: 100 * accuracy_score(y, g), "this is the accuracy"),
        "macro": (lambda y, g: 100 * f1_score(y, g, average="macro"), "macro F1"),
        "swapped": (lambda y, g: evaluation.weighted_f1(g, y), "weights come from the predictions"),
        "fraction": (lambda y, g: f1_score(y, g, average="weighted"), "percent is wanted"),
        "precision": (
            lambda y, g: 100 * precision_score(y, g, average="weighted"),
            "weighted precision",
        ),
        "averages first": (of_averages, "averaged first"),
        "half": (lambda y, g: slow_weighted_f1(y, g) / 2, "factor 2"),
        "nan": (careless_f1, "gives 0/0"),
        "forgets": (forgetful_f1, "the value is wrong when there is"),
        "by label": (lambda y, g: f1_score(y, g, average=None), "a number is wanted"),
        "other": (lambda y, g: slow_weighted_f1(y, g) ** 0.5, "is right, on random input"),
    },
    "bootstrap_interval": {
        "standard error": (
            lambda s: (
                s.mean() - 1.96 * s.std() / len(s) ** 0.5,
                s.mean() + 1.96 * s.std() / len(s) ** 0.5,
            ),
            "root of the number of draws",
        ),
        "normal": (
            lambda s: (s.mean() - 1.96 * s.std(), s.mean() + 1.96 * s.std()),
            "1.96 standard deviations",
        ),
        "width": (lambda s: np.ptp(np.percentile(s, (2.5, 97.5))), "two numbers are wanted"),
        "other": (lambda s: np.percentile(s, (1, 99)), "is right, on random input"),
    },
    "paired_difference": {
        "accuracy": (
            lambda y, a, b, rows: [
                100 * (accuracy_score(y[r], a[r]) - accuracy_score(y[r], b[r])) for r in rows
            ],
            "differences of accuracy",
        ),
        "unpaired": (unpaired, "scored on different tweets"),
        "mean": (lambda y, a, b, rows: paired(y, a, b, rows).mean(), "one for each draw"),
        "too few": (lambda y, a, b, rows: paired(y, a, b, rows)[:3], "returned shape"),
    },
    "leaked_rows": {
        "as written": (lambda tr, dev: [d in tr for d in dev], "as they are written"),
        "case": (
            lambda tr, dev: leaked([t.casefold() for t in tr], [d.casefold() for d in dev]),
            "capital and small",
        ),
        "once": (once, "only the first is marked"),
        "train": (lambda tr, dev: leaked(dev, tr), "the training rows are marked"),
        "texts": (lambda tr, dev: {normalise(d) for d in dev} & set(tr), "these are texts"),
        "rows": (
            lambda tr, dev: [i for i, x in enumerate(leaked(tr, dev)) if x],
            "numbers of the leaked rows",
        ),
        "count": (lambda tr, dev: sum(leaked(tr, dev)), "this is one number"),
    },
}
