"""Right and wrong answers to the exercises of notebook 09."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from comet_lib.lab import comparison

Answer = Callable[..., Any]


def by_seed(ours: Any, theirs: Any) -> list[float]:
    return [ours[s] - theirs[s] for s in ours if s in theirs]


def slow_holm(p: Any, cap: bool = True, rise: bool = True) -> list[float]:
    """Each p-value times the number of those not smaller, and what went before."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    out, before = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        value = (len(p) - rank) * p[i]
        before = max(before, value) if rise else value
        out[i] = min(before, 1.0) if cap else before
    return out


def slow_report(dev: Any, test: Any) -> tuple[int, float]:
    best = max(range(len(dev)), key=lambda i: sum(dev[i]))
    return best, sum(test[best]) / len(test[best])


def words(low: float, high: float, margin: float) -> str:
    if low <= 0 <= high:
        return "equal" if max(-low, high) < margin else "open"
    return "better" if low > 0 else "worse"


SOLUTIONS: dict[str, list[Answer]] = {
    "seed_difference": [
        lambda a, b: np.mean(by_seed(a, b)).item(),
        lambda a, b: sum(a[s] - b[s] for s in a.keys() & b.keys()) / len(a.keys() & b.keys()),
        lambda a, b: torch.tensor(by_seed(a, b), dtype=torch.float64).mean(),
    ],
    "holm": [slow_holm, lambda p: np.array(slow_holm(p)), comparison.holm],
    "report": [slow_report, lambda d, t: [d.mean(1).argmax(), t[d.mean(1).argmax()].mean()]],
    "verdict": [words],
}

MUTANTS: dict[str, dict[str, tuple[Answer, str]]] = {
    "seed_difference": {
        "list": (by_seed, "a number is wanted"),
        "missing": (lambda a, b: sum(a[s] - b[s] for s in a | b) / len(a), "raised KeyError"),
    },
    "holm": {
        "bonferroni": (lambda p: np.minimum(1, len(p) * p), "Bonferroni"),
        "falls": (lambda p: slow_holm(p, rise=False), "smaller than that of a smaller p-value"),
        "no cap": (lambda p: slow_holm(p, cap=False), "above 1"),
        "sorted": (lambda p: sorted(slow_holm(p)), "come back sorted"),
        "turned": (
            lambda p: np.minimum(
                1, np.maximum.accumulate(np.sort(p) * (1 + np.arange(len(p))))
            )[np.argsort(np.argsort(p))],
            "smallest p-value gets the smallest factor",
        ),
        "late": (
            lambda p: np.minimum(
                1, np.maximum.accumulate(np.sort(p) * np.arange(len(p))[::-1])
            )[np.argsort(np.argsort(p))],
            "one too small",
        ),
        "verdicts": (lambda p: True, "returned a bool"),
        "too few": (lambda p: slow_holm(p)[:2], "returned shape"),
    },
    "report": {
        "score alone": (lambda d, t: t[d.mean(1).argmax()].mean(), "returned a float64"),
        "all": (lambda d, t: t.mean(1), "returned 5 numbers"),
    },
    "verdict": {
        "no evidence": (
            lambda lo, hi, m: "better" if lo > 0 else "worse" if hi < 0 else "equal",
            "no difference found is taken for no difference",
        ),
        "middle": (
            lambda lo, hi, m: "equal" if max(-lo, hi) < m and lo < 0 < hi else
            "better" if lo + hi > 0 else "worse",
            "though the interval holds 0",
        ),
        "no margin": (
            lambda lo, hi, m: "better" if lo > 0 else "worse" if hi < 0 else "open",
            "margin is not used",
        ),
        "margin first": (
            lambda lo, hi, m: "equal" if max(-lo, hi) < m else words(lo, hi, m),
            "small but certain",
        ),
        "turned": (
            lambda lo, hi, m: {"better": "worse", "worse": "better"}.get(
                words(lo, hi, m), words(lo, hi, m)
            ),
            "better and worse are mixed up",
        ),
        "other words": (lambda lo, hi, m: "yes", "none of the four words"),
    },
}  # fmt: skip
