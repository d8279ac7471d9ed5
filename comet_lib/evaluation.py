"""Measure honestly: weighted F1 by language with intervals, paired differences, baselines.

The mean is the plain mean over languages, as in the paper. Intervals are 95 % percentile
bootstrap intervals over tweets, drawn within each language.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from sklearn.metrics import f1_score
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from comet_lib.attention import capture_maps
from comet_lib.data import both_forms
from comet_lib.errors import CometError
from comet_lib.loading import answer, check_numbers, label_order
from comet_lib.processes import give_back_memory
from comet_lib.profiles import LABELS
from comet_lib.similarity import js_divergence
from comet_lib.targets import class_probabilities, tfidf_classifier


@torch.inference_mode()
def predict_probabilities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int = 64,
    batch_size: int = 128,
    bar: str = "",
) -> np.ndarray:
    """(N, 3) probabilities in LABELS order, whatever order the model's own head has.

    ``bar`` names a progress bar, if one is wanted. A text is cut at ``max_length`` tokens, or at
    as many as the model takes. The pair is taken to be sound:
    :func:`comet_lib.loading.load_pair` checks it.

    Raises:
        CometError: other labels, or answers that are NaN (training may have diverged).
    """
    order, was_training = label_order(model), model.training
    out = np.zeros((len(texts), len(order)))
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    model.eval()
    try:
        # The longest first: the others then fit into the memory that those leave behind.
        starts = range(0, len(texts), batch_size)[::-1]
        for start in tqdm(starts, desc=bar, disable=not bar, leave=False):
            rows = by_length[start : start + batch_size]
            logits = answer(model, tokenizer, [texts[i] for i in rows], max_length)
            out[rows] = logits[:, order].float().softmax(-1).cpu().numpy()
    finally:
        model.train(was_training)
    check_numbers(model, out)
    return out


def attention_distance(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    matches: Mapping[int, int],
    shuffled: bool = False,
) -> list[float]:
    """How far apart the two look: for each matched student layer, mean JS in nats.

    The mean is over all tokens of ``rows`` of token ids, between the head means of the student's
    layer and of the teacher's layer that ``matches`` gives it. With ``shuffled``, the teacher reads
    another text of the same length: what a student gets for knowing how its teacher looks at texts
    in general. A text whose length no other has is left out of that.
    """
    total, tokens = np.zeros(len(matches)), 0
    for _, same in groupby(sorted(rows, key=len), key=len):
        ids = torch.tensor([list(row) for row in same])
        if shuffled and len(ids) == 1:
            continue
        others = ids.roll(1, 0) if shuffled else ids
        for ours, theirs in zip(ids.split(64), others.split(64), strict=True):
            mask = torch.ones_like(ours)
            mine, its = (
                capture_maps(
                    model,
                    {"input_ids": x.to(model.device), "attention_mask": mask.to(model.device)},
                )
                for model, x in ((student, ours), (teacher, theirs))
            )  # one of them may be on a GPU
            for n, (layer, match) in enumerate(matches.items()):
                total[n] += float(js_divergence(mine[layer].cpu(), its[match].cpu(), mask).sum())
            tokens += mask.numel()
    return (total / max(tokens, 1)).tolist()


def tfidf_baseline(
    data: DatasetDict, split: str = "test", cleaned_too: bool = False
) -> tuple[np.ndarray, int]:
    """The TF-IDF baseline, fitted on train, one classifier per language.

    With ``cleaned_too``, on :func:`~comet_lib.data.both_forms` of each tweet.

    Returns:
        (N, 3) probabilities for ``split``, and the number of weights over all languages.
    """
    out, weights = np.zeros((len(data[split]), len(LABELS))), 0
    train = both_forms(data["train"]) if cleaned_too else data["train"]
    target, train = data[split].to_pandas(), train.to_pandas()
    for language, rows in target.groupby("language", sort=False).indices.items():
        here = train[train["language"] == language]
        classifier = tfidf_classifier().fit(here["text"].tolist(), here["label"].to_numpy())
        out[rows] = class_probabilities(classifier, target["text"].iloc[rows].tolist())
        weights += classifier[-1].coef_.size + classifier[-1].intercept_.size
        del classifier
        give_back_memory(collect=False)
    return out, weights


def most_common(data: DatasetDict, split: str = "test") -> np.ndarray:
    """The floor: for each tweet of ``split`` (N,) its language's most common training label."""
    train, target = data["train"].to_pandas(), data[split].to_pandas()
    common = train.groupby("language")["label"].agg(lambda labels: labels.mode()[0])
    return target["language"].map(common).to_numpy()


def weighted_f1(labels: Sequence[int], predictions: Sequence[int]) -> float:
    """F1 averaged over labels by their frequency in ``labels``, in percent."""
    return 100 * float(f1_score(labels, predictions, average="weighted", zero_division=0))


def mean_weighted_f1(
    labels: np.ndarray, predictions: np.ndarray, languages: np.ndarray
) -> dict[str, float]:
    """Weighted F1 of each language and their plain mean, in percent."""
    return _by_language(languages, lambda at: weighted_f1(labels[at], predictions[at]))


def _by_language(languages: np.ndarray, score: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    """``score`` of the rows (a mask, (N,)) of each language as they come up, and the plain mean."""
    scores = {str(code): score(languages == code) for code in dict.fromkeys(languages.tolist())}
    mean = np.mean(list(scores.values()), axis=0)
    return {**scores, "mean": mean if mean.ndim else float(mean)}


def f1_of_counts(counts: np.ndarray) -> np.ndarray:
    """Weighted F1 in percent of confusion counts (..., labels, predictions)."""
    true, guessed = counts.sum(-1), counts.sum(-2)
    hit = np.diagonal(counts, axis1=-2, axis2=-1)
    f1 = 2 * hit / np.maximum(true + guessed, 1)
    return 100 * (f1 * true).sum(-1) / np.maximum(true.sum(-1), 1)


def interval(draws: np.ndarray) -> list[float]:
    """The 95 % percentile interval: low and high."""
    return [float(x) for x in np.percentile(draws, (2.5, 97.5))]


def _resample(cells: np.ndarray, axes: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Tables of counts (draws, 3, 3, ...) with ``axes`` axes, from each row's cell (N,) in one.

    A bootstrap of rows is a multinomial draw over the cells that they fill.
    """
    counts = np.bincount(cells, minlength=len(LABELS) ** axes)
    drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=draws)
    return drawn.reshape(draws, *[len(LABELS)] * axes)


def bootstrap_f1(
    labels: np.ndarray,
    predictions: np.ndarray,
    languages: np.ndarray,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, list[float]]:
    """95 % percentile intervals of weighted F1 by language and of the mean, in percent."""
    cells, rng = labels * len(LABELS) + predictions, np.random.default_rng(seed)
    sampled = _by_language(languages, lambda at: f1_of_counts(_resample(cells[at], 2, draws, rng)))
    return {name: interval(values) for name, values in sampled.items()}


def paired_bootstrap(
    labels: np.ndarray,
    ours: np.ndarray,
    theirs: np.ndarray,
    languages: np.ndarray,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Is the difference between two models on the same tweets real?

    Returns:
        ``difference`` of mean weighted F1 (points), its ``ci95``, and ``p``: the two-sided
        bootstrap p-value (twice the smaller share of draws on one side of zero).
    """
    cells = (labels * len(LABELS) + ours) * len(LABELS) + theirs
    rng = np.random.default_rng(seed)

    def difference(at: np.ndarray) -> np.ndarray:
        counts = _resample(cells[at], 3, draws, rng)
        return f1_of_counts(counts.sum(3)) - f1_of_counts(counts.sum(2))

    delta = _by_language(languages, difference)["mean"]
    mean = [mean_weighted_f1(labels, guess, languages)["mean"] for guess in (ours, theirs)]
    tail = 2 * min((delta <= 0).mean(), (delta >= 0).mean())
    return {
        "difference": mean[0] - mean[1],
        "ci95": interval(delta),
        "p": float(min(1.0, max(tail, 1 / draws))),
    }


def retention(student: float, teacher: float) -> float:
    """Percent of the teacher's score that the student keeps (the paper promises at least 85)."""
    if teacher <= 0:
        raise CometError(f"the teacher's score is {teacher}: retention needs a score above zero")
    return 100 * student / teacher


def score_row(
    name: str,
    table: Dataset,
    probabilities: np.ndarray,
    draws: int = 1000,
    seed: int = 0,
    **more: Any,
) -> dict[str, Any]:
    """One row of the report: weighted F1, accuracy and intervals of one model on one split.

    ``weighted_f1_unseen`` leaves out the rows that stand word for word in train; it is None if
    a language has no train split, so that nobody knows which these are.
    """
    if len(probabilities) != len(table):
        raise CometError(f"{name}: {len(probabilities)} predictions for {len(table)} rows")
    labels, languages = np.asarray(table["label"][:]), np.asarray(table["language"][:])
    seen = table["seen_in_train"][:]
    fresh = ~np.asarray(seen, dtype=bool)
    guess = probabilities.argmax(1)
    right = guess == labels
    return {
        "name": name,
        **more,
        "weighted_f1": mean_weighted_f1(labels, guess, languages),
        "ci95": bootstrap_f1(labels, guess, languages, draws, seed),
        "accuracy": _by_language(languages, lambda at: 100 * float(right[at].mean())),
        "weighted_f1_unseen": None
        if None in seen
        else mean_weighted_f1(labels[fresh], guess[fresh], languages[fresh]),
    }
