"""Exercises of notebook 07, measure honestly."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from comet_lib.checks.framework import (
    Misconception,
    Slip,
    compare,
    exercise,
    generator,
    uniform,
    value_of,
)
from comet_lib.data import normalise

CLASSES = 3


def _random(seed_from: torch.Generator) -> np.random.Generator:
    return np.random.default_rng(int(torch.randint(2**40, (), generator=seed_from)))


def _guess(rng: np.random.Generator, labels: np.ndarray, right: float) -> np.ndarray:
    """(N,) predictions that agree with the labels about as often as ``right`` says."""
    keep = rng.random(len(labels)) < right
    return np.where(keep, labels, rng.choice(CLASSES, len(labels), p=(0.2, 0.2, 0.6)))


# --- Weighted F1 ---------------------------------------------------------------------------


def _by_label(labels: np.ndarray, predictions: np.ndarray) -> tuple[np.ndarray, ...]:
    """Hits, true and guessed counts (3,), as floats."""
    both = np.bincount(CLASSES * labels + predictions, minlength=CLASSES**2)
    counts = both.reshape(CLASSES, CLASSES).astype(float)
    return np.diagonal(counts), counts.sum(1), counts.sum(0)


def _average_f1(labels: np.ndarray, predictions: np.ndarray, weights: str = "true") -> float:
    """F1 in percent, averaged over the labels with the given weights."""
    hit, true, guessed = _by_label(labels, predictions)
    f1 = 2 * hit / np.maximum(true + guessed, 1)
    share = {"true": true, "guessed": guessed, "equal": np.ones(CLASSES)}[weights]
    return float(100 * (f1 * share).sum() / share.sum())


def _f1_of_averages(labels: np.ndarray, predictions: np.ndarray) -> float:
    """F1 of the averaged precision and recall, which is not the average of the F1s."""
    hit, true, guessed = _by_label(labels, predictions)
    share = true / true.sum()
    p, r = ((hit / np.maximum(n, 1) * share).sum() for n in (guessed, true))
    return float(100 * 2 * p * r / (p + r))


def _half_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    return _average_f1(labels, predictions) / 2


def _precision(labels: np.ndarray, predictions: np.ndarray) -> float:
    hit, true, guessed = _by_label(labels, predictions)
    return float(100 * (hit / np.maximum(guessed, 1) * true).sum() / true.sum())


def _accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    return float(100 * (labels == predictions).mean())


@exercise(
    "weighted_f1",
    notebook="07",
    reference=_average_f1,
    look="F1 of each label, times that label's share of the true labels, summed, in percent.",
)
def weighted_f1(answer: Callable[..., Any]) -> None:
    """answer(labels, predictions) -> weighted F1 in percent; both (N,) integer arrays, 0 to 2."""
    rng = _random(generator())
    draws = []
    for size, right in ((60, 0.5), (90, 0.7), (150, 0.6), (200, 0.4)):
        labels = rng.choice(CLASSES, size, p=(0.55, 0.3, 0.15))
        labels[:CLASSES] = range(CLASSES)
        predictions = _guess(rng, labels, right)
        predictions[:CLASSES] = range(CLASSES)  # every label is guessed at least once
        draws.append((labels, predictions))
    slips = [
        Slip(
            "this is the accuracy (and so is the weighted mean of the recalls)",
            _accuracy,
            "Take precision and recall together: 2 * hits / (true + guessed) for each label.",
        ),
        Slip(
            "every label counts the same: this is macro F1",
            lambda y, g: _average_f1(y, g, "equal"),
            "Weight each label by its share of the true labels.",
        ),
        Slip(
            "the weights come from the predictions",
            lambda y, g: _average_f1(y, g, "guessed"),
            "Count how often a label is true, not how often it is guessed; a model must not "
            "choose its own weights.",
        ),
        Slip(
            "this is a fraction, and percent is wanted",
            lambda y, g: _average_f1(y, g) / 100,
            "Multiply by 100.",
        ),
        Slip(
            "this is the weighted precision, without the recall",
            _precision,
            "Precision alone forgives every missed tweet.",
        ),
        Slip(
            "precision and recall are averaged first and F1 is taken of the averages",
            _f1_of_averages,
            "Take F1 of each label first, then average.",
        ),
        Slip(
            "the factor 2 of F1 is missing",
            _half_f1,
            "F1 is 2 * hits / (true + guessed): a perfect model must reach 100.",
        ),
    ]
    compare(answer, draws, _average_f1, slips)

    labels = rng.permutation(np.repeat(np.arange(CLASSES), 12))
    lazy = np.where(_guess(rng, labels, 0.6) == 2, 1, labels % 2)  # no label 2
    for name, case in {
        "a label that is never guessed": (labels, lazy),
        "a label that is never true": (lazy, labels),
    }.items():
        with np.errstate(all="ignore"):
            got = value_of(answer(*case))
        if got.isnan().any():
            raise Misconception(
                f"{name} gives 0/0, and the result is not a number",
                "Such a label's F1 is 0: use 2 * hits / max(true + guessed, 1).",
            )
        if not torch.allclose(got, value_of(_average_f1(*case)), rtol=1e-4):
            raise Misconception(
                f"the value is wrong when there is {name}",
                "Such a label's F1 is 0, and it keeps its weight.",
            )


# --- The bootstrap interval ----------------------------------------------------------------


def _interval_reference(scores: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(scores, (2.5, 97.5))
    return float(low), float(high)


def _array(result: Any, wanted: str) -> np.ndarray:
    """An answer's list, tuple, array or tensor. Raises ``Misconception`` for anything else."""
    if isinstance(result, str | bytes | dict) or not hasattr(result, "__len__"):
        raise Misconception(
            f"your function returned a {type(result).__name__} where {wanted} is wanted"
        )
    if isinstance(result, Tensor):
        result = result.detach().cpu()
    return np.asarray(list(result) if isinstance(result, set) else result)


def _is_number(result: Any) -> bool:
    return isinstance(result, Real) or (isinstance(result, Tensor) and result.ndim == 0)


def _pair(result: Any) -> Tensor:
    """An answer's two numbers as a tensor (2,). Raises ``Misconception`` for anything else."""
    wanted = "the pair low, high"
    if _is_number(result):
        raise Misconception(
            "two numbers are wanted, the low end and the high end",
            "Return the pair: low, high.",
        )
    ends = _array(result, wanted)
    if ends.shape != (2,):
        raise Misconception(f"your function returned shape {ends.shape} where {wanted} is wanted")
    return torch.tensor(ends.astype(float))


def _as_tensor(function: Callable[..., Any]) -> Callable[..., Tensor]:
    return lambda *arguments: torch.tensor(np.asarray(function(*arguments), dtype=float))


def _normal_interval(scores: np.ndarray, scale: float = 1.0) -> tuple[float, float]:
    middle, width = scores.mean(), 1.96 * scores.std() * scale
    return middle - width, middle + width


@exercise(
    "bootstrap_interval",
    notebook="07",
    reference=_interval_reference,
    look="Cut 2.5 % of the sorted scores off at each end: np.percentile(scores, (2.5, 97.5)).",
)
def bootstrap_interval(answer: Callable[..., Any]) -> None:
    """answer(scores) -> low, high: the 95 % percentile interval of (draws,) resampled scores."""
    source = generator()
    rng = _random(source)
    draws = []
    for size in (400, 1000, 2000):  # skewed, so that a normal curve does not fit
        middle, width = uniform(source, 50, 70), uniform(source, 2, 5)
        draws.append((middle - width * rng.exponential(size=size),))
    slips = [
        Slip(
            "5 % are cut off at each end, which leaves a 90 % interval",
            _as_tensor(lambda s: np.percentile(s, (5, 95))),
            "95 % stay inside, so 2.5 % go at each end.",
        ),
        Slip(
            "the percentiles are read as fractions of one percent",
            _as_tensor(lambda s: np.percentile(s, (0.025, 0.975))),
            "np.percentile counts from 0 to 100; np.quantile counts from 0 to 1.",
        ),
        Slip(
            "these are the smallest and the largest score",
            _as_tensor(lambda s: (s.min(), s.max())),
            "More draws would make that interval wider and wider; cut off 2.5 % at each end.",
        ),
        Slip(
            "the standard deviation is divided by the root of the number of draws",
            _as_tensor(lambda s: _normal_interval(s, len(s) ** -0.5)),
            "The number of draws is ours to choose: an interval must not shrink with it. The "
            "spread of the scores is already the uncertainty.",
        ),
        Slip(
            "this is the mean plus and minus 1.96 standard deviations",
            _as_tensor(_normal_interval),
            "That trusts in a normal curve; take the percentiles, which follow any shape.",
        ),
        Slip(
            "the high end comes first",
            _as_tensor(lambda s: np.percentile(s, (97.5, 2.5))),
            "Return low, high.",
        ),
        Slip(
            "these are the quartiles, which hold half of the scores",
            _as_tensor(lambda s: np.percentile(s, (25, 75))),
            "95 % of the scores must lie inside.",
        ),
    ]
    compare(lambda s: _pair(answer(s)), draws, _as_tensor(_interval_reference), slips)


# --- The paired difference -----------------------------------------------------------------


def _paired_reference(
    labels: np.ndarray, ours: np.ndarray, theirs: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    score = _average_f1
    return np.array([score(labels[r], ours[r]) - score(labels[r], theirs[r]) for r in rows])


def _paired_variant(change: str) -> Callable[..., Tensor]:
    """The differences with one usual slip in them."""

    def formula(labels: Any, ours: Any, theirs: Any, rows: Any) -> Tensor:
        score, order = _average_f1, range(len(rows))
        if change == "unpaired":
            pairs = [
                score(labels[a], ours[a]) - score(labels[b], theirs[b])
                for a, b in zip(rows, rows[::-1], strict=True)
            ]
        elif change == "labels":
            pairs = [score(labels, ours[rows[i]]) - score(labels, theirs[rows[i]]) for i in order]
        elif change == "whole":
            pairs = [score(labels, ours) - score(labels, theirs) for i in order]
        elif change == "accuracy":
            pairs = [
                100 * ((ours == labels)[r].mean() - (theirs == labels)[r].mean()) for r in rows
            ]
        else:
            pairs = list(_paired_reference(labels, ours, theirs, rows))
        out = torch.tensor(np.array(pairs))
        return {"sign": -out, "absolute": out.abs(), "fraction": out / 100}.get(change, out)

    return formula


@exercise(
    "paired_difference",
    notebook="07",
    reference=_paired_reference,
    look="For each row of `rows`, score both models on those tweets, and subtract.",
    seconds=20.0,
)
def paired_difference(answer: Callable[..., Any]) -> None:
    """answer(labels, ours, theirs, rows) -> (draws,) differences of weighted F1, in points.

    ``rows`` (draws, N) holds the row numbers that each draw picked; both models are scored on the
    same ones.
    """
    rng = _random(generator())
    draws = []
    for size, right in ((40, (0.7, 0.4)), (70, (0.4, 0.7))):  # each side wins once
        labels = rng.choice(CLASSES, size, p=(0.5, 0.3, 0.2))
        pair = [_guess(rng, labels, share) for share in right]
        draws.append((labels, *pair, rng.integers(0, size, (12, size))))

    def asked(*arguments: Any) -> Tensor:
        got = answer(*arguments)
        if _is_number(got):
            raise Misconception(
                "there is one number where one for each draw is wanted",
                "Return all the differences: their spread is what the interval is made of.",
            )
        return torch.tensor(_array(got, "an array with one difference a draw").astype(float))

    slips = [
        Slip(
            "the sign is turned round",
            _paired_variant("sign"),
            "Ours minus theirs, so that a positive difference speaks for us.",
        ),
        Slip(
            "the sign of the differences is dropped",
            _paired_variant("absolute"),
            "A draw in which theirs wins must count against ours.",
        ),
        Slip(
            "these are fractions, and points are wanted",
            _paired_variant("fraction"),
            "Use weighted F1 in percent.",
        ),
        Slip(
            "the labels are not resampled with the predictions",
            _paired_variant("labels"),
            "Row 7 of the draw must be one tweet: pick labels[r] with ours[r] and theirs[r].",
        ),
        Slip(
            "every draw gives the same difference, that of all tweets",
            _paired_variant("whole"),
            "Use the rows: each draw scores another set of tweets.",
        ),
        Slip(
            "these are differences of accuracy",
            _paired_variant("accuracy"),
            "Score with weighted_f1.",
        ),
    ]

    def a_model_equals_itself() -> None:
        labels, ours, _, rows = draws[0]
        if asked(labels, ours, ours, rows).abs().max() > 1e-6:
            raise Misconception(
                "a model differs from itself: the two are scored on different tweets",
                "That is the unpaired comparison. Pick r once and use it for both models.",
            )

    compare(asked, draws, _as_tensor(_paired_reference), slips, a_model_equals_itself)


# --- Leaked rows ---------------------------------------------------------------------------


def _leaked_reference(train_texts: Sequence[str], dev_texts: Sequence[str]) -> list[bool]:
    known = {normalise(text) for text in train_texts}
    return [normalise(text) in known for text in dev_texts]


def _as_written(train_texts: Sequence[str], dev_texts: Sequence[str]) -> list[bool]:
    return [text in set(train_texts) for text in dev_texts]


def _only_nfc(train_texts: Sequence[str], dev_texts: Sequence[str]) -> list[bool]:
    known = {unicodedata.normalize("NFC", text) for text in train_texts}
    return [unicodedata.normalize("NFC", text) in known for text in dev_texts]


def _only_spaces(train_texts: Sequence[str], dev_texts: Sequence[str]) -> list[bool]:
    known = {" ".join(text.split()) for text in train_texts}
    return [" ".join(text.split()) in known for text in dev_texts]


def _without_marks(text: str) -> str:
    parts = unicodedata.normalize("NFD", normalise(text))
    return "".join(c for c in parts if not unicodedata.combining(c))


def _first_only(train_texts: Sequence[str], dev_texts: Sequence[str]) -> list[bool]:
    leaked, seen = [], set()
    marks = _leaked_reference(train_texts, dev_texts)
    for text, found in zip(map(normalise, dev_texts), marks, strict=True):
        leaked.append(found and text not in seen)
        seen.add(text)
    return leaked


def _changed(change: Callable[[str], str]) -> Callable[..., list[bool]]:
    return lambda train, dev: _leaked_reference([*map(change, train)], [*map(change, dev)])


_LEAK_SLIPS: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    (
        "texts are compared as they are written",
        "One tone mark has two spellings in Unicode, and spaces may double: normalise both sides.",
        _as_written,
    ),
    (
        "runs of white space are not made equal",
        "Use normalise, which does that as well.",
        _only_nfc,
    ),
    (
        "the two spellings of a tone mark in Unicode are not made equal",
        "Use normalise, which brings both sides to NFC.",
        _only_spaces,
    ),
    (
        "capital and small letters are taken as equal",
        "Word for word is asked here: a looser match is a useful second number, not this one.",
        _changed(str.casefold),
    ),
    (
        "tone marks are stripped, so that other words look the same",
        "In Yoruba and Igbo the marks tell words apart: bring them to NFC, never drop them.",
        _changed(_without_marks),
    ),
    (
        "a text that is only a piece of a training tweet counts as leaked",
        "Ask for the whole text in a set, not for a piece of a longer string.",
        lambda train, dev: [any(normalise(d) in normalise(t) for t in train) for d in dev],
    ),
    (
        "the answer is turned round: True marks the clean rows",
        "True must mark the rows whose text stands in train.",
        lambda train, dev: [not found for found in _leaked_reference(train, dev)],
    ),
    (
        "of a text that stands twice in dev only the first is marked",
        "Every row that stands in train is leaked, so walk over the rows, not over a set.",
        _first_only,
    ),
)


def _word(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list("abdeghiklmnorstuwyẹọ\u0300\u0301"), int(rng.integers(4, 9))))


def _tweets(rng: np.random.Generator, count: int) -> list[str]:
    made = (" ".join(_word(rng) for _ in range(int(rng.integers(3, 7)))) for _ in range(count))
    return [normalise("N" + text + "\u0301.") for text in made]


def _leak_draw(rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Train and dev of other lengths, with leaked rows in every disguise, and near misses."""
    train, fresh = _tweets(rng, int(rng.integers(16, 22))), _tweets(rng, 5)
    dev = [
        *fresh,
        train[0],
        train[1],
        train[1],  # twice
        unicodedata.normalize("NFD", train[2]),
        train[3].replace(" ", "  "),
        train[4].swapcase(),  # not word for word
        _without_marks(train[5]),  # other words
        train[6].rsplit(" ", 1)[0],  # a piece
    ]
    return train, [dev[i] for i in rng.permutation(len(dev))]


@exercise(
    "leaked_rows",
    notebook="07",
    reference=_leaked_reference,
    look="Make a set of the normalised training texts, then ask for each dev text if it is there.",
)
def leaked_rows(answer: Callable[..., Any]) -> None:
    """answer(train_texts, dev_texts) -> for each dev text: does it stand in train, word for word?

    Both are lists of str of one language; texts are equal when their normalised forms are.
    """
    rng = _random(generator())
    draws = [_leak_draw(rng) for _ in range(3)]

    def asked(train: list[str], dev: list[str]) -> Tensor:
        got = answer(list(train), list(dev))
        if _is_number(got):
            raise Misconception(
                "this is one number, and a mark for each dev row is wanted",
                "Their sum is the count; return the marks themselves.",
            )
        marks = _array(got, "a list of bool")
        if marks.dtype.kind in "UO" and len(marks):
            raise Misconception(
                "these are texts, and a mark for each dev row is wanted",
                "Return a list of True and False, as long as dev_texts.",
            )
        if marks.ndim == 1 and len(marks) == len(train):
            raise Misconception(
                "the training rows are marked, not the dev rows",
                "Walk over dev_texts, and look each one up in train.",
            )
        if marks.ndim == 1 and marks.dtype != bool and len(marks) != len(dev):
            raise Misconception(
                "these are the numbers of the leaked rows",
                "Return True or False for every dev row.",
            )
        return torch.tensor(marks.astype(float))

    def tensors(function: Callable[..., Any]) -> Callable[..., Tensor]:
        return lambda *draw: torch.tensor(np.asarray(function(*draw), dtype=float))

    slips = [Slip(message, tensors(formula), look) for message, look, formula in _LEAK_SLIPS]
    compare(asked, draws, tensors(_leaked_reference), slips)
