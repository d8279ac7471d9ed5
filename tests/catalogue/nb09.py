"""Right and wrong answers to the exercises of notebook 09."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
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


def on_record(plan: Any, folder: Any, day: str, **change: Any) -> Any:
    """With a file for each name that is tried."""
    folder.mkdir(parents=True, exist_ok=True)
    names = (f"plan-{day}-{number}.json" for number in count(change.get("first", 1)))
    if change.get("look", True):
        for file in folder.iterdir():
            held = json.loads(file.read_text())
            if held == plan or (change.get("part") and held | plan == held):
                return file
    for name in names:
        if not (folder / name).exists() or change.get("overwrite"):
            (folder / name).write_text(change.get("write", json.dumps)(plan, indent=1))
            return folder / name


def counted(plan: Any, folder: Any, day: str) -> Any:
    """The number of the day's files decides."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if json.loads(file.read_text()) == plan:
            return file
    path = folder / f"plan-{day}-{len([*folder.glob(f'plan-{day}-*')]) + 1}.json"
    path.write_text(json.dumps(plan))
    return path


def concluded(found: str, predicted: str, seeds: int, students: Any, floor: float) -> str:
    if found != "open" and seeds >= 2 and any(f1 - floor > 1 for f1 in students):
        return {True: "held", False: "refuted"}[found == predicted]
    return "undecided"


SOLUTIONS: dict[str, list[Answer]] = {
    "seed_difference": [
        lambda a, b: np.mean(by_seed(a, b)).item(),
        lambda a, b: sum(a[s] - b[s] for s in a.keys() & b.keys()) / len(a.keys() & b.keys()),
        lambda a, b: torch.tensor(by_seed(a, b), dtype=torch.float64).mean(),
    ],
    "holm": [slow_holm, lambda p: np.array(slow_holm(p)), comparison.holm],
    "report": [slow_report, lambda d, t: [d.mean(1).argmax(), t[d.mean(1).argmax()].mean()]],
    "verdict": [words],
    "register": [on_record],
    "conclusion": [concluded],
}

MUTANTS: dict[str, dict[str, tuple[Answer, str]]] = {
    "seed_difference": {
        "list": (by_seed, "a number is wanted"),
        "missing": (lambda a, b: sum(a[s] - b[s] for s in a | b) / len(a), "raised KeyError"),
        "newest": (lambda a, b: by_seed(a, b)[-1], "is right"),
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
        "all": (lambda d, t: t.mean(1), "returned 9 numbers"),
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
        "by width": (
            lambda lo, hi, m: words(lo, hi, m) if lo > 0 or hi < 0 else
            "equal" if hi - lo < 2 * m else "open",
            "because it is narrow",
        ),
    },
    "register": {
        "text": (lambda *draw: str(on_record(*draw)), "a Path is wanted"),
        "part": (lambda *draw: on_record(*draw, part=True), "was returned for a plan that it"),
        "counted": (counted, "number 2 was not free"),
        "overwrites": (lambda *draw: on_record(*draw, overwrite=True), "is gone or overwritten"),
        "twice": (lambda *draw: on_record(*draw, look=False), "was written once more"),
        "from 0": (lambda *draw: on_record(*draw, first=0), "-0.json was written where"),
        "no JSON": (
            lambda *draw: on_record(*draw, write=lambda plan, indent: str(plan)),
            "does not hold the plan as JSON",
        ),
        "name only": (lambda *draw: on_record(*draw).rpartition("/")[2], "a str that names no"),
        "number": (lambda *draw: (on_record(*draw), 1)[1], "returned a int that names no file"),
    },
    "conclusion": {
        "second student": (
            lambda f, p, n, s, low: concluded(f, p, n, s[1:], low), "(+6.0 and -0.5 points",
        ),
        "mean student": (
            lambda f, p, n, s, low: concluded(f, p, n, [sum(s) / 2], low), "(+2.5 and -2.0 points",
        ),
        "one point": (
            lambda f, p, n, s, low: concluded(f, p, n, s, low - 1e-6),
            "exactly one point above",
        ),
        "open refutes": (
            lambda f, p, n, s, low: "undecided" if n < 2 or max(s) <= low + 1 else
            "held" if f == p else "refuted",
            "an open result is called refuted",
        ),
        "one seed": (
            lambda f, p, n, s, low: concluded(f, p, 9, s, low), "one seed decides",
        ),
        "no floor": (
            lambda f, p, n, s, low: concluded(f, p, n, [99], low), "both students stand at",
        ),
        "both above": (
            lambda f, p, n, s, low: concluded(f, p, n, [min(s)], low), "(-2.0 and +6.0 points",
        ),
        "equal is open": (
            lambda f, p, n, s, low: "undecided" if f == "equal" else concluded(f, p, n, s, low),
            "equal is a finding",
        ),
        "turned": (
            lambda f, p, n, s, low: {"held": "refuted", "refuted": "held"}.get(
                concluded(f, p, n, s, low), "undecided"
            ),
            "is called refuted, but it came true",
        ),
        "true": (lambda f, p, n, s, low: f == p, "none of the three words"),
    },
}  # fmt: skip
