"""Exercises of notebook 07, measure honestly."""

# mypy: disable-error-code=has-type

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from comet_lib.checks.draws import generator, numpy_generator, uniform, whole
from comet_lib.checks.framework import (
    Answer,
    Draws,
    Misconception,
    Slip,
    array_of,
    exercise,
    is_number,
    refuse_nan,
    value_of,
)
from comet_lib.data import normalise

CLASSES = 3


def _guess(rng: np.random.Generator, labels: np.ndarray, right: float) -> np.ndarray:
    """(N,) predictions that agree with the labels about as often as ``right`` says."""
    keep = rng.random(len(labels)) < right
    return np.where(keep, labels, rng.choice(CLASSES, len(labels), p=(0.2, 0.2, 0.6)))


def _labelled(source: torch.Generator) -> Draws:
    rng, draws = numpy_generator(source), []
    for size, right in ((60, 0.5), (90, 0.7), (150, 0.6), (200, 0.4)):
        labels = rng.choice(CLASSES, size, p=(0.55, 0.3, 0.15))
        labels[:CLASSES] = range(CLASSES)
        predictions = _guess(rng, labels, right)
        predictions[:CLASSES] = range(CLASSES)  # every label is guessed at least once
        draws.append((labels, predictions))
    return draws


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


def _weighted_precision(labels: np.ndarray, predictions: np.ndarray) -> float:
    hit, true, guessed = _by_label(labels, predictions)
    return float(100 * (hit / np.maximum(guessed, 1) * true).sum() / true.sum())


def _accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    return float(100 * (labels == predictions).mean())


def _f1_of_averages(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Weighted recall is the accuracy."""
    p, r = _weighted_precision(labels, predictions), _accuracy(labels, predictions)
    return 2 * p * r / (p + r)


def _missing_labels(answer: Answer, draws: Draws) -> None:
    rng = numpy_generator(generator())
    labels = rng.permutation(np.repeat(np.arange(CLASSES), 12))
    lazy = np.where(_guess(rng, labels, 0.6) == 2, 1, labels % 2)  # no label 2
    for name, case in {
        "a label that is never guessed": (labels, lazy),
        "a label that is never true": (lazy, labels),
    }.items():
        with np.errstate(all="ignore"):
            got = refuse_nan(
                answer(*case),
                f"{name} gives 0/0, and the result is not a number",
                "Such a label's F1 is 0: use 2 * hits / max(true + guessed, 1).",
            )
        if not torch.allclose(value_of(got), value_of(_average_f1(*case)), rtol=1e-4):
            raise Misconception(
                f"the value is wrong when there is {name}",
                "Such a label's F1 is 0, and it keeps its weight.",
            )


@exercise(
    look="F1 of each label, times that label's share of the true labels, summed, in percent.",
    draws=_labelled,
    slips={
        "this is the accuracy (and so is the weighted mean of the recalls)": Slip(
            _accuracy, "For each label take F1, 2 * hits / (true + guessed)."
        ),
        "every label counts the same: this is macro F1": Slip(
            partial(_average_f1, weights="equal"), "Weight labels by their share of the true ones."
        ),
        "the weights come from the predictions": Slip(
            partial(_average_f1, weights="guessed"),
            "Count how often a label is true: a model must not choose its own weights.",
        ),
        "this is a fraction, but percent is wanted": Slip(
            lambda y, g: _average_f1(y, g) / 100, "Multiply by 100."
        ),
        "this is the weighted precision, without the recall": Slip(
            _weighted_precision, "Precision alone forgives every missed tweet."
        ),
        "precision and recall are averaged first and F1 is taken of the averages": Slip(
            _f1_of_averages, "Take F1 of each label first, then average."
        ),
        "the factor 2 of F1 is missing": Slip(
            lambda y, g: _average_f1(y, g) / 2, "A perfect model must reach 100."
        ),
    },
    extra=_missing_labels,
)
def weighted_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Weighted F1 in percent; both (N,) integer arrays, 0 to 2."""
    return _average_f1(labels, predictions)


def _skewed(source: torch.Generator) -> Draws:
    """Bootstrap scores to which a normal curve does not fit."""
    rng = numpy_generator(source)
    return [
        (uniform(source, 50, 70) - uniform(source, 2, 5) * rng.exponential(size=size),)
        for size in (400, 1000, 2000)
    ]


def _low_high(result: Any, scores: np.ndarray) -> Tensor:
    if is_number(result):
        raise Misconception(
            "two numbers are wanted, the low end and the high end", "Return the pair: low, high."
        )
    ends = array_of(result, "the pair low, high")
    if ends.shape != (2,):
        raise Misconception(
            f"your function returned shape {ends.shape}, but the pair low, high is wanted"
        )
    return torch.tensor(ends.astype(float))


def _normal_interval(scores: np.ndarray, scale: float = 1.0) -> tuple[float, float]:
    middle, width = scores.mean(), 1.96 * scores.std() * scale
    return middle - width, middle + width


@exercise(
    look="Cut 2.5 % of the sorted scores off at each end: np.percentile(scores, (2.5, 97.5)).",
    draws=_skewed,
    read=_low_high,
    slips={
        "5 % are cut off at each end, which leaves a 90 % interval": Slip(
            partial(np.percentile, q=(5, 95)), "95 % stay inside, so 2.5 % go at each end."
        ),
        "the percentiles are read as fractions of one percent": Slip(
            partial(np.percentile, q=(0.025, 0.975)),
            "np.percentile counts from 0 to 100; np.quantile counts from 0 to 1.",
        ),
        "these are the smallest and the largest score": Slip(
            lambda s: (s.min(), s.max()),
            "More draws would make that interval wider and wider; cut off 2.5 % at each end.",
        ),
        "the standard deviation is divided by the root of the number of draws": Slip(
            lambda s: _normal_interval(s, len(s) ** -0.5),
            "An interval must not shrink with more draws: the spread is the uncertainty.",
        ),
        "this is the mean plus and minus 1.96 standard deviations": Slip(
            _normal_interval, "Percentiles need no normal curve."
        ),
        "the high end comes first": Slip(
            partial(np.percentile, q=(97.5, 2.5)), "Return low, high."
        ),
        "these are the quartiles, which hold half of the scores": Slip(
            partial(np.percentile, q=(25, 75)), "95 % of the scores must lie inside."
        ),
    },
)
def bootstrap_interval(scores: np.ndarray) -> tuple[float, float]:
    """low and high: the 95 % percentile interval of (draws,) resampled scores."""
    low, high = np.percentile(scores, (2.5, 97.5))
    return float(low), float(high)


def _two_models(source: torch.Generator) -> Draws:
    rng, draws = numpy_generator(source), []
    for size, right in ((40, (0.7, 0.4)), (70, (0.4, 0.7))):  # each side wins once
        labels = rng.choice(CLASSES, size, p=(0.5, 0.3, 0.2))
        pair = [_guess(rng, labels, share) for share in right]
        draws.append((labels, *pair, rng.integers(0, size, (12, size))))
    return draws


def _one_per_draw(result: Any, *draw: np.ndarray) -> Tensor:
    if is_number(result):
        raise Misconception(
            "there is one number where one for each draw is wanted",
            "Return all the differences: the interval comes from their spread.",
        )
    return torch.tensor(array_of(result, "an array with one difference a draw").astype(float))


def _differences(
    labels: np.ndarray,
    ours: np.ndarray,
    theirs: np.ndarray,
    rows: np.ndarray,
    score: Answer = _average_f1,
) -> np.ndarray:
    return np.array([score(labels[r], ours[r]) - score(labels[r], theirs[r]) for r in rows])


def _a_model_equals_itself(answer: Answer, draws: Draws) -> None:
    labels, ours, _, rows = draws[0]
    if answer(labels, ours, ours, rows).abs().max() > 1e-6:
        raise Misconception(
            "a model differs from itself: the two are scored on different tweets",
            "That is the unpaired comparison. Pick r once and use it for both models.",
        )


@exercise(
    look="For each row of `rows`, score both models on those tweets, and subtract.",
    draws=_two_models,
    read=_one_per_draw,
    slips={
        "the sign is reversed": Slip(
            lambda y, a, b, rows: _differences(y, b, a, rows),
            "Ours minus theirs, so that a positive difference speaks for us.",
        ),
        "the sign of the differences is dropped": Slip(
            lambda *draw: abs(_differences(*draw)), "A draw that theirs wins must count."
        ),
        "these are fractions, but points are wanted": Slip(
            lambda *draw: _differences(*draw) / 100, "Use weighted F1 in percent."
        ),
        "the labels are not resampled with the predictions": Slip(
            lambda y, a, b, rows: [_average_f1(y, a[r]) - _average_f1(y, b[r]) for r in rows],
            "Row 7 of the draw must be one tweet: pick labels[r] with ours[r] and theirs[r].",
        ),
        "every draw gives the same difference, that of all tweets": Slip(
            lambda y, a, b, rows: [_average_f1(y, a) - _average_f1(y, b)] * len(rows),
            "Use the rows: each draw scores another set of tweets.",
        ),
        "these are differences of accuracy": Slip(
            partial(_differences, score=_accuracy), "Score with weighted_f1."
        ),
    },
    otherwise=_a_model_equals_itself,
    seconds=20.0,
)
def paired_difference(
    labels: np.ndarray, ours: np.ndarray, theirs: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """(draws,) differences of weighted F1, in points.

    ``rows`` (draws, N) holds the row numbers that each draw picked; both models are scored on the
    same ones.
    """
    return _differences(labels, ours, theirs, rows)


def _word(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list("abdeghiklmnorstuwyẹọ\u0300\u0301"), int(rng.integers(4, 9))))


def _tweets(rng: np.random.Generator, count: int) -> list[str]:
    texts = (" ".join(_word(rng) for _ in range(int(rng.integers(3, 7)))) for _ in range(count))
    return [normalise("N" + text + "\u0301.") for text in texts]


def _train_and_dev(source: torch.Generator) -> Draws:
    """Train and dev of other lengths, with leaked rows in every disguise, and near misses."""
    draws = []
    for _ in range(3):
        rng = numpy_generator(source)
        train, fresh = _tweets(rng, whole(source, 16, 21)), _tweets(rng, 5)
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
        draws.append((train, [dev[i] for i in rng.permutation(len(dev))]))
    return draws


def _marks(result: Any, train: list[str], dev: list[str]) -> Tensor:
    if is_number(result) or isinstance(result, bool):
        raise Misconception(
            "this is one number, but a mark for each dev row is wanted",
            "Their sum is the count; return the marks themselves.",
        )
    marks = array_of(result, "a list of bool")
    if marks.dtype.kind in "UO" and len(marks):
        raise Misconception(
            "these are texts, but a mark for each dev row is wanted",
            "Return a list of True and False, as long as dev_texts.",
        )
    if marks.ndim == 1 and len(marks) == len(train):
        raise Misconception(
            "the training rows are marked, not the dev rows",
            "Walk over dev_texts, and look each one up in train.",
        )
    if marks.ndim == 1 and marks.dtype != bool and len(marks) != len(dev):
        raise Misconception(
            "these are the numbers of the leaked rows", "Return True or False for every dev row."
        )
    return torch.tensor(marks.astype(float))


def _without_marks(text: str) -> str:
    parts = unicodedata.normalize("NFD", normalise(text))
    return "".join(c for c in parts if not unicodedata.combining(c))


def _alike(
    train_texts: Sequence[str],
    dev_texts: Sequence[str],
    form: Callable[[str], str] = normalise,
) -> list[bool]:
    """Texts are equal when their ``form`` is."""
    known = {form(text) for text in train_texts}
    return [form(text) in known for text in dev_texts]


def _first_only(train_texts: Sequence[str], dev_texts: Sequence[str]) -> list[bool]:
    forms = [*map(normalise, dev_texts)]
    found = enumerate(_alike(train_texts, dev_texts))
    return [leaked and forms.index(forms[i]) == i for i, leaked in found]


@exercise(
    look="Make a set of the normalised training texts, then ask for each dev text if it is there.",
    draws=_train_and_dev,
    read=_marks,
    slips={
        "texts are compared as they are written": Slip(
            partial(_alike, form=str),
            "Normalise both: one tone mark has two spellings, and spaces may double.",
        ),
        "runs of white space are not made equal": Slip(
            partial(_alike, form=partial(unicodedata.normalize, "NFC")), "Use normalise."
        ),
        "the two spellings of a tone mark in Unicode are not made equal": Slip(
            partial(_alike, form=lambda text: " ".join(text.split())), "Use normalise."
        ),
        "capital and small letters count as equal": Slip(
            partial(_alike, form=lambda text: normalise(text.casefold())),
            "The task is word for word: a looser match is a useful second number, not this one.",
        ),
        "tone marks are stripped, so that other words look the same": Slip(
            partial(_alike, form=_without_marks),
            "In Yoruba and Igbo the marks tell words apart: bring them to NFC, never drop them.",
        ),
        "a text that is only a piece of a training tweet counts as leaked": Slip(
            lambda train, dev: [any(normalise(d) in normalise(t) for t in train) for d in dev],
            "Ask for the whole text in a set, not for a piece of a longer string.",
        ),
        "the answer is inverted: True marks the clean rows": Slip(
            lambda train, dev: [not leaked for leaked in _alike(train, dev)],
            "True must mark the rows whose text is in train.",
        ),
        "of a text that is twice in dev only the first is marked": Slip(
            _first_only, "Every row that is in train is leaked: walk over the rows."
        ),
    },
)
def leaked_rows(train_texts: Sequence[str], dev_texts: Sequence[str]) -> list[bool]:
    """For each dev text: is it in train, word for word?

    Both are lists of str of one language; texts are equal when their normalised forms are.
    """
    return _alike(train_texts, dev_texts)
