"""Right and wrong answers to the exercises of notebook 07."""

from __future__ import annotations

import re
import statistics
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from comet_lib import evaluation

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


def paired(labels: Any, ours: Any, theirs: Any, drawn: Any, score: Answer = f1) -> np.ndarray:
    by_language = [
        [score(labels[r], ours[r]) - score(labels[r], theirs[r]) for r in rows] for rows in drawn
    ]
    return np.mean(by_language, 0)


def unpaired(labels: Any, ours: Any, theirs: Any, drawn: Any) -> np.ndarray:
    other = [np.roll(rows, 1, axis=0) for rows in drawn]
    mine = paired(labels, ours, labels, drawn)
    return mine - paired(labels, theirs, labels, other)


def mean_by_hand(labels: Any, predictions: Any, languages: Any) -> float:
    total, codes = 0.0, set(languages.tolist())
    for code in codes:
        here = languages == code
        total += f1(labels[here], predictions[here]) / len(codes)
    return total


def calls(change: str = "") -> Answer:
    def timed(calls: Any, warm_up: int, repeats: int, clock: Answer) -> Any:
        times: dict[str, list[float]] = {name: [] for name in calls}
        names = [*calls, *calls][1:][: len(calls)] if change == "other first" else [*calls]
        for i in range(warm_up + repeats):
            for name in names:
                start = clock()
                for _ in range({"no call": 0, "twice": 2}.get(change, 1)):
                    calls[name]()
                if i >= warm_up or change == "cold":
                    times[name].append(clock() - start)
        if change == "median":
            return {name: statistics.median(ts) for name, ts in times.items()}
        if change == "short":
            return {name: ts[1:] for name, ts in times.items()}
        return times["a"] if change == "one" else times

    return timed


def warmed_first(calls: Any, warm_up: int, repeats: int, clock: Answer) -> Any:
    for call in calls.values():
        for _ in range(warm_up):
            call()
    timed = [{n: (-clock(), c(), clock())[::2] for n, c in calls.items()} for _ in range(repeats)]
    return {name: np.array([sum(turn[name]) for turn in timed]) for name in calls}


def in_a_row(calls: Any, warm_up: int, repeats: int, clock: Answer) -> Any:
    return {
        name: warmed_first({name: call}, warm_up, repeats, clock)[name]
        for name, call in calls.items()
    }


def each_language(change: str = "") -> Answer:
    def per_language(fit: Answer, texts: Any, labels: Any, languages: Any) -> Any:
        fitted: dict[str, Answer] = {}
        for code in np.unique(languages):
            here = languages == code
            model = fit(texts if change == "all" else texts[here], labels[here])
            fitted[code] = (lambda t: model(t)) if change == "late" else model  # noqa: B023

        def ask(texts: Any, languages: Any) -> Any:
            rows = [fitted[code](texts[[i]])[0] for i, code in enumerate(languages)]
            return {"argmax": np.argmax(rows, 1), "sorted": sorted(rows, key=list)}.get(
                change, rows
            )

        return ask(texts, languages) if change == "called" else ask

    return per_language


def twins(change: str = "") -> Answer:
    def scores(is_twin: Any, common: int, fit: Answer, score: Answer) -> Any:
        rows = range(len(is_twin))
        copies = [i for i in rows if is_twin[i]]
        others = [i for i in rows if not is_twin[i]]
        more = len(copies) if change != "smaller" else 0
        both = [copies + others[:common], others[: common + more]]
        if change == "tail":
            both[1] = others[: len(copies)] + others[len(copies) + 1 :][:common]
        found = tuple(score(fit(train)) for train in both)
        return found[0] - found[1] if change == "gap" else found

    return scores


def permuted(score: Answer, ours: Any, theirs: Any, swaps: Any, size: Answer = abs) -> float:
    found, count = size(score(ours) - score(theirs)), 1
    for swap in swaps:
        a, b = ours.copy(), theirs.copy()
        a[swap], b[swap] = theirs[swap], ours[swap]
        count += size(score(a) - score(b)) >= found
    return count / (1 + len(swaps))


def key(text: str) -> str:
    text = re.sub(r"@\w+|https?\S+", "", unicodedata.normalize("NFC", text).casefold())
    letters = "".join(c for c in text if unicodedata.category(c)[0] in "LMN")
    return letters or text


SOLUTIONS: dict[str, list[Answer]] = {
    "mean_f1": [
        mean_by_hand,
        lambda y, g, codes: evaluation.mean_weighted_f1(y, g, codes)["mean"],
        lambda y, g, codes: np.mean([f1(y[codes == c], g[codes == c]) for c in np.unique(codes)]),
    ],
    "call_times": [calls(), calls("other first"), warmed_first],
    "one_per_language": [each_language(), lambda *a: lambda *b: np.array(each_language()(*a)(*b))],
    "twin_scores": [twins(), lambda *a: np.array(twins()(*a))],
    "permutation_p": [permuted, lambda *a: np.float64(permuted(*a))],
    "seed_interval": [
        lambda d: stats.t.interval(0.95, len(d) - 1, np.mean(d), stats.sem(d)),
        lambda d: np.array(stats.ttest_1samp(d, 0).confidence_interval()),
        lambda d: list(stats.t.interval(0.95, len(d) - 1, d.mean(), stats.sem(d))),
    ],
    "loose_key": [
        key,
        lambda text: key(text) + "x",
        lambda text: unicodedata.normalize("NFD", key(text)),
    ],
    "weighted_f1": [
        lambda y, g: 100 * f1_score(y, g, average="weighted", zero_division=0),
        slow_weighted_f1,
        evaluation.weighted_f1,
    ],
    "bootstrap_interval": [
        lambda s: np.percentile(s, (2.5, 97.5)),
        lambda s: tuple(np.quantile(s, [0.025, 0.975])),
        lambda s: torch.quantile(torch.tensor(s), torch.tensor([0.025, 0.975]).double()),
        lambda s: (np.sort(s)[int(0.025 * len(s))], np.sort(s)[int(0.975 * len(s))]),
        lambda s: (sorted(s)[round(0.025 * len(s)) - 1], sorted(s)[-round(0.025 * len(s))]),
        *(
            lambda s, how=how: np.percentile(s, (2.5, 97.5), method=how)
            for how in ("nearest", "lower", "higher", "midpoint", "weibull", "median_unbiased")
        ),
    ],
    "paired_difference": [
        paired,
        lambda y, a, b, drawn: sum(paired(y, a, b, [r]) for r in drawn) / len(drawn),
        lambda *draw: torch.tensor(paired(*draw)),
    ],
}

MUTANTS: dict[str, dict[str, tuple[Answer, str]]] = {
    "mean_f1": {
        "pooled": (lambda y, g, codes: slow_weighted_f1(y, g), "were pooled"),
        "swapped": (lambda y, g, codes: mean_by_hand(g, y, codes), "changed places"),
        "accuracy": (
            lambda y, g, codes: np.mean(
                [100 * (y == g)[codes == code].mean() for code in set(codes)]
            ),
            "mean of the accuracies",
        ),
        "dict": (evaluation.mean_weighted_f1, "returned a dict"),
        "median": (
            lambda y, g, codes: np.median([*evaluation.mean_weighted_f1(y, g, codes).values()]),
            "is right, on random input",
        ),
        "rounded": (lambda y, g, codes: round(mean_by_hand(y, g, codes), 3), "rounded"),
    },
    "call_times": {
        "cold": (calls("cold"), "the warm-up calls are in the result"),
        "no warm-up": (lambda c, w, r, clock: calls()(c, 0, r, clock), "there is no warm-up"),
        "in a row": (in_a_row, "one model is finished before the other begins"),
        "median": (calls("median"), "one number where the time of each call"),
        "short": (calls("short"), "one time for each of the"),
        "twice": (calls("twice"), "calls are wanted"),
        "no call": (calls("no call"), "all times are 0"),
        "one": (calls("one"), "a dict from"),
    },
    "one_per_language": {
        "all": (each_language("all"), "your function raised"),
        "late": (each_language("late"), "the last language's model answers"),
        "called": (each_language("called"), "a function is wanted"),
        "argmax": (each_language("argmax"), "returned shape"),
        "sorted": (each_language("sorted"), "is right, on random input"),
    },
    "twin_scores": {
        "smaller": (twins("smaller"), "nothing stands in for the twins"),
        "tail": (twins("tail"), "is right, on random input"),
        "gap": (twins("gap"), "two scores are wanted"),
    },
    "permutation_p": {
        "one-sided": (
            lambda *a: permuted(*a, size=lambda d: d),
            "the test is one-sided",
        ),
        "percent": (lambda *a: 100 * permuted(*a), "in percent"),
        "complement": (lambda *a: 1 - permuted(*a), "is right, on random input"),
        "all": (lambda score, a, b, swaps: [score(a[s]) for s in swaps], "a number is wanted"),
    },
    "seed_interval": {
        "normal": (
            lambda d: stats.norm.interval(0.95, np.mean(d), stats.sem(d)),
            "1.96 is taken for t",
        ),
        "next": (
            lambda d: stats.t.interval(0.95, len(d) - 1, np.mean(d), np.std(d, ddof=1)),
            "where one more seed may fall",
        ),
        "half": (lambda d: 4.3 * stats.sem(d), "two numbers are wanted"),
        "around zero": (
            lambda d: stats.t.interval(0.95, len(d) - 1, 0, stats.sem(d)),
            "is right, on random input",
        ),
    },
    "loose_key": {
        "case": (lambda text: key(text.swapcase()) + text[:1], "in capital and small letters"),
        "stripped": (
            lambda text: (
                "".join(c for c in unicodedata.normalize("NFD", key(text)) if c.isalnum()) or text
            ),
            "though these differ in a tone mark",
        ),
        "no numbers": (lambda text: re.sub(r"\d", "", key(text)) or text, "differ in a number"),
        "links": (
            lambda text: "".join(
                c
                for c in unicodedata.normalize("NFC", re.sub(r"@\w+", "", text).lower())
                if unicodedata.category(c)[0] in "LMN"
            ),
            "differ only in a link",
        ),
        "mention": (
            lambda text: "".join(
                c
                for c in unicodedata.normalize("NFC", re.sub(r"http\S+", "", text).lower())
                if unicodedata.category(c)[0] in "LMN"
            ),
            "differ only in a mention",
        ),
        "words": (lambda text: " ".join(sorted(key(text))), "in the order of their words"),
        "empty": (lambda text: key(text) if any(map(str.isalnum, text)) else "", "have no letters"),
        "list": (lambda text: list(key(text)), "returned a list"),
    },
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
            lambda *draw: paired(*draw, score=lambda y, g: 100 * accuracy_score(y, g)),
            "differences of accuracy",
        ),
        "unpaired": (unpaired, "scored on different tweets"),
        "mean": (lambda *draw: paired(*draw).mean(), "one for each draw"),
        "too few": (lambda *draw: paired(*draw)[:3], "returned shape"),
        "first": (
            lambda y, a, b, drawn: paired(y, a, b, drawn[:1]),
            "is right, on random input",
        ),
        "pooled": (
            lambda y, a, b, drawn: paired(y, a, b, [np.hstack(drawn)]),
            "are pooled",
        ),
    },
}
