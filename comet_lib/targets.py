"""What the student learns from: a teacher's soft targets, honest ones.

A teacher asked about its own training tweets is too sure: it has seen the labels. So the TF-IDF
teacher answers out of fold (each tweet is labelled by a model that never saw it), and new tweets
are spliced from pieces of two tweets of one fold and labelled by that fold's model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline, make_union

from comet_lib.errors import CometError
from comet_lib.processes import give_back_memory
from comet_lib.profiles import LABELS


def tfidf_classifier(c: float = 8.0) -> Pipeline:
    """Character n-grams and words, TF-IDF weighted, into logistic regression.

    The course's baseline: char_wb 2-5 with min_df 2, words 1-2, sublinear TF, C = 8. Fit one per
    language.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    features = make_union(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True),
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
    )
    return make_pipeline(features, LogisticRegression(C=c, max_iter=1000))


def class_probabilities(classifier: Pipeline, texts: Sequence[str]) -> np.ndarray:
    """(N, 3) in LABELS order, also where the classifier met only some of the labels."""
    out = np.zeros((len(texts), len(LABELS)))
    out[:, classifier.classes_.astype(int)] = classifier.predict_proba(list(texts))
    return out


@dataclass(frozen=True)
class Fold:
    """Tweets that share a fold, and the classifier that was fitted on all the other folds."""

    language: str
    rows: np.ndarray  # positions in the training table
    texts: list[str]
    classifier: Pipeline


def _fit_fold(language, rows, texts, labels, inside, outside) -> Fold:
    classifier = tfidf_classifier().fit([texts[i] for i in inside], labels[inside])
    return Fold(language, rows[outside], [texts[i] for i in outside], classifier)


def _tasks(
    texts: Sequence[str], labels: Sequence[int], languages: Sequence[str], folds: int, seed: int
) -> list[tuple]:
    """The arguments of :func:`_fit_fold` for every language and fold."""
    label_array, language_array = np.asarray(labels), np.asarray(languages)
    tasks = []
    for language in dict.fromkeys(languages):
        rows = np.flatnonzero(language_array == language)
        here = [texts[int(i)] for i in rows]
        first = {text: i for i, text in reversed(list(enumerate(here)))}
        unique = np.array(sorted(first.values()))
        splits = min(folds, int(np.bincount(label_array[rows[unique]]).max()))
        if splits < 2 or len(set(label_array[rows])) < 2:
            raise CometError(
                f"{language}: too few training tweets to cross-fit; give at least two of each of "
                "two labels"
            )
        fold_of = np.zeros(len(here), dtype=int)
        splitter = StratifiedKFold(splits, shuffle=True, random_state=seed)
        for k, (_, out) in enumerate(splitter.split(unique, label_array[rows[unique]])):
            fold_of[unique[out]] = k
        fold_of = np.array([fold_of[first[text]] for text in here])  # twins share a fold
        for k in range(splits):
            inside, outside = np.flatnonzero(fold_of != k), np.flatnonzero(fold_of == k)
            tasks.append((language, rows, here, label_array[rows], inside, outside))
    return tasks


def check_enough(
    texts: Sequence[str], labels: Sequence[int], languages: Sequence[str], folds: int = 5
) -> None:
    """Raise CometError if :func:`cross_fit` would, without fitting anything."""
    _tasks(texts, labels, languages, folds, seed=0)


def cross_fit(
    texts: Sequence[str],
    labels: Sequence[int],
    languages: Sequence[str],
    folds: int = 5,
    seed: int = 0,
) -> tuple[np.ndarray, list[Fold]]:
    """Out-of-fold TF-IDF soft targets: (N, 3) probabilities, and the folds with their classifiers.

    Every row is labelled by a classifier that was not fitted on it. Copies of one text go to one
    fold, so that no tweet is labelled by a model that saw its twin.
    """
    tasks = _tasks(texts, labels, languages, folds, seed)
    fitted = [_fit_fold(*task) for task in tasks]
    probabilities = np.zeros((len(texts), len(LABELS)))
    for fold in fitted:
        probabilities[fold.rows] = class_probabilities(fold.classifier, fold.texts)
    return probabilities, fitted


def _answers(task: tuple, ratio: float, seed: Sequence[int]) -> tuple:
    """What one fold's classifier says of its tweets and of tweets spliced from them."""
    fold = _fit_fold(*task)
    own = class_probabilities(fold.classifier, fold.texts)
    return fold.rows, own, splice([fold], ratio, np.random.default_rng(seed))


def cross_fit_and_splice(
    texts: Sequence[str],
    labels: Sequence[int],
    languages: Sequence[str],
    ratio: float,
    folds: int = 5,
    seed: int = 0,
) -> tuple[np.ndarray, list[str], np.ndarray, list[str]]:
    """:func:`cross_fit` and :func:`splice` in one pass that keeps one classifier at a time.

    Returns:
        (N, 3) out-of-fold probabilities; spliced texts, their (M, 3) probabilities, languages.
    """
    tasks = _tasks(texts, labels, languages, folds, seed)
    answers = []
    for k, task in enumerate(tasks):
        answers.append(_answers(task, ratio, (seed, k)))
        give_back_memory()
    probabilities = np.zeros((len(texts), len(LABELS)))
    made: list[str] = []
    made_languages: list[str] = []
    for rows, own, (new, _, codes) in answers:
        probabilities[rows] = own
        made += new
        made_languages += codes
    return probabilities, made, np.concatenate([a[2][1] for a in answers]), made_languages


def splice_texts(
    texts: Sequence[str], count: int, rng: np.random.Generator, max_words: int = 50
) -> list[str]:
    """``count`` new texts, each the start or end of one tweet followed by that of another."""

    def piece(text: str) -> list[str]:
        words = text.split()
        cut = int(rng.integers(0, len(words) + 1))
        return words[:cut] if rng.random() < 0.5 else words[cut:]

    out = []
    for _ in range(count):
        first, second = (texts[int(i)] for i in rng.integers(0, len(texts), 2))
        out.append(" ".join((piece(first) + piece(second))[:max_words]) or first)
    return out


def splice(
    folds: Sequence[Fold], ratio: float, rng: np.random.Generator
) -> tuple[list[str], np.ndarray, list[str]]:
    """About ``ratio`` spliced tweets for each real one, labelled by the fold's own classifier.

    Returns:
        texts, (M, 3) probabilities in LABELS order, languages.
    """
    texts: list[str] = []
    languages: list[str] = []
    parts = []
    for fold in folds:
        made = splice_texts(fold.texts, round(ratio * len(fold.texts)), rng)
        if made:
            texts += made
            languages += [fold.language] * len(made)
            parts.append(class_probabilities(fold.classifier, made))
    return texts, np.concatenate(parts) if parts else np.zeros((0, len(LABELS))), languages
