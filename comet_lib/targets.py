"""What the student learns from: a teacher's soft targets, honest ones.

A teacher asked about its own training tweets is too sure: it has seen the labels. So the TF-IDF
teacher answers out of fold (a model that never saw the tweet labels it), and new tweets are
spliced from pieces of two tweets of one fold and labelled by that fold's model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline, make_union

from comet_lib.errors import CometError
from comet_lib.processes import give_back_memory
from comet_lib.profiles import LABELS


def tfidf_classifier(c: float = 8.0) -> Pipeline:
    """Character n-grams and words, TF-IDF weighted, into logistic regression.

    The course's baseline: char_wb 2-5 with min_df 2, words 1-2, sublinear TF, C = 8. Fit one for
    each language.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    features = make_union(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True),
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
    )
    return make_pipeline(features, LogisticRegression(C=c, max_iter=1000))


def class_probabilities(classifier: Pipeline, texts: Sequence[str]) -> np.ndarray:
    """(N, 3) in LABELS order, even if the classifier met only some of the labels."""
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


@dataclass(frozen=True)
class SoftTargets:
    """(N, 3) out-of-fold probabilities; spliced texts, their (M, 3) probabilities, languages."""

    probabilities: np.ndarray
    texts: list[str]
    text_probabilities: np.ndarray
    languages: list[str]


def _splits(
    texts: Sequence[str], labels: Sequence[int], languages: Sequence[str], folds: int, seed: int
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Language, rows to fit on and rows held out (positions), for every language and fold.

    Copies of one text go to one fold, so that no tweet is labelled by a model that saw its twin.
    """
    label_array, language_array = np.asarray(labels), np.asarray(languages)
    for language in dict.fromkeys(languages):
        rows = np.flatnonzero(language_array == language)
        first: dict[str, int] = {}
        for row in rows:
            first.setdefault(texts[int(row)], int(row))
        unique = np.array(sorted(first.values()))
        count = min(folds, int(np.bincount(label_array[unique]).max()))
        if count < 2 or len(set(label_array[rows])) < 2:
            raise CometError(
                f"{language}: too few training tweets to cross-fit; give at least two of each of "
                "two labels"
            )
        fold_of_text: dict[str, int] = {}
        splitter = StratifiedKFold(count, shuffle=True, random_state=seed)
        for k, (_, out) in enumerate(splitter.split(unique, label_array[unique])):
            fold_of_text |= {texts[int(row)]: k for row in unique[out]}
        fold_of = np.array([fold_of_text[texts[int(row)]] for row in rows])
        for k in range(count):
            yield language, rows[fold_of != k], rows[fold_of == k]


def check_enough(
    texts: Sequence[str], labels: Sequence[int], languages: Sequence[str], folds: int = 5
) -> None:
    """Raise CometError if :func:`fit_folds` would, without fitting anything."""
    for _ in _splits(texts, labels, languages, folds, seed=0):
        pass


def fit_folds(
    texts: Sequence[str],
    labels: Sequence[int],
    languages: Sequence[str],
    folds: int = 5,
    seed: int = 0,
) -> Iterator[Fold]:
    """Every language's folds, each fitted when it is asked for, so that one is in memory."""
    label_array = np.asarray(labels)
    for language, inside, outside in list(_splits(texts, labels, languages, folds, seed)):
        own, held_out = ([texts[i] for i in rows] for rows in (inside, outside))
        # No local name for the classifier: it would live on while the next one is fitted.
        yield Fold(language, outside, held_out, tfidf_classifier().fit(own, label_array[inside]))


def cross_fit(
    texts: Sequence[str],
    labels: Sequence[int],
    languages: Sequence[str],
    folds: int = 5,
    seed: int = 0,
    splices: float = 0.0,
) -> SoftTargets:
    """Out-of-fold TF-IDF soft targets: every row is labelled by a classifier that never saw it.

    With ``splices``, about as many spliced tweets for each real one, labelled by the classifier
    of the fold that their pieces come from.

    Raises:
        CometError: too few training tweets of a language.
    """
    probabilities = np.zeros((len(texts), len(LABELS)))
    spliced: list[tuple[list[str], np.ndarray, list[str]]] = [([], np.zeros((0, len(LABELS))), [])]
    for k, fold in enumerate(fit_folds(texts, labels, languages, folds, seed)):
        probabilities[fold.rows] = class_probabilities(fold.classifier, fold.texts)
        spliced.append(splice([fold], splices, np.random.default_rng((seed, k))))
        del fold
        give_back_memory(collect=False)
    new_texts, answers, codes = zip(*spliced, strict=True)
    return SoftTargets(
        probabilities, list(chain(*new_texts)), np.concatenate(answers), list(chain(*codes))
    )


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
