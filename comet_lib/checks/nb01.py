"""Exercises of notebook 01, meet the teacher."""

# mypy: disable-error-code=has-type

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from comet_lib.checks.draws import attention_maps, mask_of, uniform, whole
from comet_lib.checks.framework import Draws, Slip, exercise

Tokenize = Callable[[str], list[str]]


def _chopper(size: int) -> Tokenize:
    """A toy tokenizer: each word in pieces of at most ``size`` letters."""

    def tokenize(text: str) -> list[str]:
        return [w[i : i + size] for w in text.split() for i in range(0, len(w), size)]

    return tokenize


def _texts(source: torch.Generator, space: str = " ") -> list[str]:
    """Texts from 1 to 15 words long, of a few words that come back."""
    letters = string.ascii_lowercase
    vocabulary = [
        "".join(letters[whole(source, 0, 25)] for _ in range(length)) for length in range(1, 13)
    ]
    sizes = (1, 15, 2, whole(source, 4, 12))
    return [space.join(vocabulary[whole(source, 0, 11)] for _ in range(size)) for size in sizes]


def _words(texts: Sequence[str]) -> list[str]:
    return [word for text in texts for word in text.split()]


def _pieces(tokenize: Tokenize, texts: Sequence[str]) -> list[str]:
    return [piece for text in texts for piece in tokenize(text)]


@exercise(
    look="Count all pieces of all texts, count all their words, and divide once.",
    draws=lambda source: [(_chopper(size), _texts(source)) for size in (1, 2, 3, 4)],
    slips={
        "an empty string is counted as a word": Slip(
            lambda f, x: len(_pieces(f, x)) / sum(len(t.split(" ")) for t in x),
            "Use text.split() without an argument.",
        ),
        "these are words per token": Slip(
            lambda f, x: len(_words(x)) / len(_pieces(f, x)), "Divide the pieces by the words."
        ),
        "this is the mean of each text's own ratio, in which a text of one word weighs as "
        "much as a text of fifteen": Slip(
            lambda f, x: sum(len(f(t)) / len(t.split()) for t in x) / len(x),
            "Sum the pieces and the words over all texts first, and divide once.",
        ),
        "these are tokens per character": Slip(
            lambda f, x: len(_pieces(f, x)) / sum(map(len, x)),
            "len(text) counts characters; text.split() gives the words.",
        ),
        "these are tokens per text": Slip(
            lambda f, x: len(_pieces(f, x)) / len(x), "Divide by the number of words, not of texts."
        ),
        "this is the number of tokens, not yet divided": Slip(
            lambda f, x: len(_pieces(f, x)), "Divide by the number of words."
        ),
        "a piece that comes back is counted once": Slip(
            lambda f, x: len(set(_pieces(f, x))) / len(_words(x)),
            "Each piece costs a place in the sequence each time: no set() over the pieces.",
        ),
        "a word that comes back is counted once": Slip(
            lambda f, x: len(_pieces(f, x)) / len(set(_words(x))),
            "Count running words, with repetition: no set() over the words.",
        ),
        "two special tokens are added to each text": Slip(
            lambda f, x: (len(_pieces(f, x)) + 2 * len(x)) / len(_words(x)),
            "<s> and </s> belong to no word: count what tokenize(text) returns and no more.",
        ),
    },
    edge_case="where two spaces follow each other",
    edges=lambda source: [(_chopper(size), _texts(source, space="  ")) for size in (1, 2, 3, 4)],
)
def tokens_per_word(tokenize: Tokenize, texts: Sequence[str]) -> float:
    """All pieces of the texts divided by all their words."""
    return len(_pieces(tokenize, texts)) / len(_words(texts))


def _entropy(
    maps: Tensor,
    mask: Tensor,
    *,
    over: str = "valid",
    keys: str = "sum",
    axis: int = -1,
    base: float = math.e,
    sign: int = 1,
) -> Tensor:
    """Entropy of each head with some parts replaced by slips; with none, the right value."""
    each = torch.special.entr(maps.double())  # (B, H, L, L)
    rows = each.sum(axis) if keys == "sum" else each.mean(axis)  # (B, H, L)
    valid = mask.double()[:, None, :]  # (B, 1, L)
    value = {
        "valid": (rows * valid).sum((0, 2)) / valid.sum(),
        "all": rows.mean((0, 2)),
        "B L": (rows * valid).mean((0, 2)),
        "sentences": ((rows * valid).sum(-1) / valid.sum(-1)).mean(0),
        "sum": (rows * valid).sum((0, 2)),
    }[over]
    return (sign * value / math.log(base)).to(maps.dtype)


@exercise(
    look="Sum -p log p over the keys, then average the rows of real tokens, for each head.",
    draws=lambda source: [
        (attention_maps(source, mask, heads), mask)
        for heads, mask in ((3, mask_of((7, 3))), (2, mask_of((5, 9, 2))), (4, mask_of((4, 8))))
    ],
    slips={
        "rows of padded queries are counted": Slip(
            partial(_entropy, over="all"),
            "A padded row means nothing: multiply by the mask, divide by mask.sum().",
        ),
        "padded rows are set to zero but still counted in the division": Slip(
            partial(_entropy, over="B L"), "Divide by the number of real tokens, mask.sum()."
        ),
        "each sentence weighs the same, however short it is": Slip(
            partial(_entropy, over="sentences"),
            "Sum over all valid rows of the batch first, and divide once by mask.sum().",
        ),
        "the rows are summed and not averaged": Slip(
            partial(_entropy, over="sum"), "Divide by the number of real tokens, mask.sum()."
        ),
        "the keys are averaged and not summed": Slip(
            partial(_entropy, keys="mean"), "An entropy is a sum over the keys: .sum(-1)."
        ),
        "the entropy runs over the queries": Slip(
            partial(_entropy, axis=-2), "A row (last axis) is a distribution; a column is not."
        ),
        "these are bits, not nats": Slip(partial(_entropy, base=2.0), "Use torch.log."),
        "the sign is wrong": Slip(
            partial(_entropy, sign=-1), "log p is negative: take minus the sum of p log p."
        ),
    },
)
def attention_entropy(maps: Tensor, mask: Tensor) -> Tensor:
    """(H,) mean entropy in nats of the rows whose query is a real token.

    Maps (B, H, L, L), mask (B, L). Every valid row of the batch weighs the same.
    """
    return _entropy(maps, mask)


def _ece(confidence: Tensor, correct: Tensor, bins: int, kind: str = "right") -> float:
    """Expected calibration error with one part replaced by a slip."""
    confidence, correct = confidence.double(), correct.double()
    at = (confidence * bins).long()
    if kind != "one lost":  # else the last bin stops before 1
        at = at.clamp(max=bins - 1)
    found = []
    for index in at.unique()[at.unique() < bins].tolist():
        here = at == index
        sure = (index + 0.5) / bins if kind == "middle" else confidence[here].mean().item()
        found.append((correct[here].mean().item() - sure, here.sum().item()))
    gaps, counts = torch.tensor(found, dtype=torch.float64).T
    share = counts / len(confidence)
    value = {
        "mean of bins": gaps.abs().mean(),
        "all bins": gaps.abs().sum() / bins,
        "worst": gaps.abs().max(),
        "signed": (gaps * share).sum(),
        "minus": -(gaps * share).sum(),
        "one bin": (gaps * share).sum().abs(),
        "squared": (gaps.square() * share).sum(),
        "root": (gaps.square() * share).sum().sqrt(),
        "sum": (gaps.abs() * counts).sum(),
        "percent": 100 * (gaps.abs() * share).sum(),
    }.get(kind, (gaps.abs() * share).sum())
    return value.item()


def _answers(source: torch.Generator, bins: int, too_sure: bool) -> tuple[Any, ...]:
    """Confidences away from the edges of the bins, an empty bin between them, gaps of both signs.

    Overall the answers are too sure, or, as the mirror image, not sure enough.
    """
    confidences, correct = [], []
    for number, index in enumerate(i for i in range(bins // 3, bins) if i != bins // 2):
        shift, most = ((-0.4, 60), (0.2, 20))[number % 2]
        count = whole(source, most - 12, most)
        inside = 0.05 + 0.6 * torch.rand(count, generator=source)
        confidences.append((index + inside) / bins)
        middle = (index + 0.35) / bins + shift * uniform(source, 0.7, 1.0)
        correct.append(torch.arange(count) < round(count * min(max(middle, 0.0), 1.0)))
    order = torch.randperm(sum(map(len, confidences)), generator=source)
    sure, right = torch.cat(confidences)[order], torch.cat(correct)[order]
    return (sure, right, bins) if too_sure else (1 - sure, ~right, bins)


def _three_answers(source: torch.Generator) -> Draws:
    return [_answers(source, bins, bins != 10) for bins in (6, 10, 15)]


@exercise(
    look="In each bin take |accuracy - mean confidence|, weighted by the bin's share of the rows.",
    draws=_three_answers,
    slips={
        "rows fall out of the last bin": Slip(
            partial(_ece, kind="one lost"),
            "int(confidence * bins) is `bins` there; hold it at bins - 1.",
        ),
        "every bin weighs the same": Slip(
            partial(_ece, kind="mean of bins"),
            "Weight each gap by the bin's share of the rows: larger bins count more.",
        ),
        "every bin weighs the same, the empty ones too": Slip(
            partial(_ece, kind="all bins"),
            "Weight each gap by the bin's share of the rows; an empty bin then weighs nothing.",
        ),
        "this is the gap of the worst bin (the maximum calibration error)": Slip(
            partial(_ece, kind="worst"), "Average the gaps, weighted by the bins' shares."
        ),
        "the gaps keep their signs, so overconfident and underconfident bins cancel": Slip(
            partial(_ece, kind="signed"), "Take the absolute value in each bin, before the sum."
        ),
        "the gaps keep their signs, confidence minus accuracy, so they cancel": Slip(
            partial(_ece, kind="minus"), "Take the absolute value in each bin, before the sum."
        ),
        "the absolute value is taken once, at the end": Slip(
            partial(_ece, kind="one bin"),
            "That is |accuracy - mean confidence| of one large bin; take it bin by bin.",
        ),
        "the gaps are squared": Slip(
            partial(_ece, kind="squared"), "Take the absolute value of each gap, not its square."
        ),
        "this is the root of the mean squared gap": Slip(
            partial(_ece, kind="root"), "Take the absolute value of each gap instead."
        ),
        "the middle of the bin replaces the mean confidence": Slip(
            partial(_ece, kind="middle"), "Average the confidences that fall into the bin."
        ),
        "the gaps are weighted by counts and not by shares": Slip(
            partial(_ece, kind="sum"), "Divide by the number of all rows."
        ),
        "this is in percent": Slip(partial(_ece, kind="percent"), "Return a fraction, 0 to 1."),
    },
    edge_case="with confidences of exactly 1",
    edges=lambda source: [
        (torch.cat((sure, torch.ones(9))), torch.cat((right, torch.zeros(9).bool())), bins)
        for sure, right, bins in _three_answers(source)
    ],
)
def calibration_error(confidence: Tensor, correct: Tensor, bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017, eq. 3).

    Confidence (N,) from 0 to 1, correct (N,) bool; equally wide bins from 0 to 1.
    """
    return _ece(confidence, correct, bins)


def _labels(source: torch.Generator) -> Draws:
    draws = []
    for classes, absent in ((3, 0), (4, 1), (5, 0)):  # in the second the last class never occurs
        labels = torch.randint(0, classes - absent, (60,), generator=source)
        predictions = torch.randint(0, classes - absent, (60,), generator=source)
        # One pair occurs often and its mirror image never, so that no draw is symmetric.
        predictions[(labels == 1) & (predictions == 0)] = 1
        labels[:8], predictions[:8] = 0, 1
        draws.append((labels, predictions, classes))
    return draws


def _shares(labels: Tensor, predictions: Tensor, classes: int, over: tuple[int, ...]) -> Tensor:
    counts = confusion.reference(labels, predictions, classes).double()
    return counts / counts.sum(over, keepdim=True).clamp_min(1)


@exercise(
    look="Entry [i, j] is the number of rows whose label is i and whose prediction is j.",
    draws=_labels,
    slips={
        "labels and predictions are swapped": Slip(
            lambda y, p, c: confusion.reference(p, y, c),
            "The label chooses the row (first index), the prediction the column.",
        ),
        "a pair that comes several times is counted once": Slip(
            lambda y, p, c: confusion.reference(y, p, c).clamp(max=1),
            "Indexing with += adds once per distinct pair: use a loop or torch.bincount.",
        ),
        "each row is divided by its sum": Slip(
            partial(_shares, over=(1,)), "Return the counts; shares come later."
        ),
        "each column is divided by its sum": Slip(
            partial(_shares, over=(0,)), "Return the counts; shares come later."
        ),
        "the counts are divided by the number of all rows": Slip(
            partial(_shares, over=(0, 1)), "Return the counts; shares come later."
        ),
        "the right answers are left out": Slip(
            lambda y, p, c: confusion.reference(y, p, c).fill_diagonal_(0),
            "The diagonal, where label and prediction agree, belongs to the matrix.",
        ),
        "only the right answers are counted": Slip(
            lambda y, p, c: confusion.reference(y, p, c).diagonal().diag(),
            "Count every pair of label and prediction, also where they differ.",
        ),
    },
)
def confusion(labels: Tensor, predictions: Tensor, classes: int = 3) -> Tensor:
    """(C, C) counts, labels down, predictions across."""
    pairs = torch.bincount(labels * classes + predictions, minlength=classes * classes)
    return pairs.reshape(classes, classes)
