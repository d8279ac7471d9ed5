"""What the student learns from: a teacher's soft targets, honest ones.

A teacher asked about its own training tweets is too sure: it has seen the labels. So the TF-IDF
teacher answers out of fold (a model that never saw the tweet labels it), and new tweets are
spliced from pieces of two tweets of one fold and labelled by that fold's model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
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
    features = make_union(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True),
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
    )
    return make_pipeline(features, LogisticRegression(C=c, max_iter=1000))


def class_probabilities(classifier: Pipeline, texts: Sequence[str]) -> np.ndarray:
    """(N, 3) in LABELS order, even if the classifier met only some of the labels."""
    out = np.zeros((len(texts), len(LABELS)))
    if len(texts):
        out[:, classifier.classes_.astype(int)] = classifier.predict_proba(list(texts))
    return out


@dataclass(frozen=True)
class Fold:
    """Tweets that share a fold; ``classifier`` is fitted, on first use, on all the other folds."""

    language: str
    rows: np.ndarray  # positions in the training table
    texts: list[str]
    others: pd.DataFrame  # the other folds' text and label

    @cached_property
    def classifier(self) -> Pipeline:
        return tfidf_classifier().fit(self.others["text"].tolist(), self.others["label"].to_numpy())


@dataclass(frozen=True)
class SoftTargets:
    """(N, 3) out-of-fold probabilities; spliced texts, their (M, 3) probabilities, languages."""

    probabilities: np.ndarray
    texts: list[str]
    text_probabilities: np.ndarray
    languages: list[str]


def fit_folds(
    texts: Sequence[str],
    labels: Sequence[int],
    languages: Sequence[str],
    folds: int = 5,
    seed: int = 0,
) -> Iterator[Fold]:
    """Every language's folds.

    Copies of one text go to one fold, so that no tweet is labelled by a model that saw its twin.

    Raises:
        CometError: too few training tweets of a language.
    """
    table = pd.DataFrame({"text": texts, "label": labels, "language": languages})
    for language, here in table.groupby("language", sort=False):
        unique = here.drop_duplicates("text")
        count = min(folds, int(unique["label"].value_counts().max()))
        too_few = CometError(
            f"{language}: too few training tweets to cross-fit; give at least two of each of two "
            "labels"
        )
        if count < 2:
            raise too_few
        splitter = StratifiedKFold(count, shuffle=True, random_state=seed)
        for _, out in splitter.split(unique, unique["label"]):
            inside = here["text"].isin(unique["text"].iloc[out])
            fold, others = here[inside], here[~inside]
            if others["label"].nunique() < 2:  # a label's only tweets are held out together
                raise too_few
            yield Fold(str(language), fold.index.to_numpy(), fold["text"].tolist(), others)


def check_enough(
    texts: Sequence[str], labels: Sequence[int], languages: Sequence[str], folds: int = 5
) -> None:
    """Raise CometError if :func:`cross_fit` would, without fitting anything."""
    list(fit_folds(texts, labels, languages, folds))


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
    spliced = [splice([], splices, np.random.default_rng(seed))]  # none, if there is no fold
    for k, fold in enumerate(fit_folds(texts, labels, languages, folds, seed)):
        probabilities[fold.rows] = class_probabilities(fold.classifier, fold.texts)
        spliced.append(splice([fold], splices, np.random.default_rng((seed, k))))
        del fold
        give_back_memory(collect=False)
    new_texts, answers, codes = zip(*spliced, strict=True)
    return SoftTargets(
        probabilities, list(chain(*new_texts)), np.concatenate(answers), list(chain(*codes))
    )


def splice(
    folds: Sequence[Fold], ratio: float, rng: np.random.Generator, max_words: int = 50
) -> tuple[list[str], np.ndarray, list[str]]:
    """About ``ratio`` spliced tweets for each real one, labelled by the fold's own classifier.

    Each is the start or end of one tweet of the fold, followed by that of another.

    Returns:
        texts, (M, 3) probabilities in LABELS order, languages.
    """

    def piece(text: str) -> list[str]:
        words = text.split()
        cut = int(rng.integers(0, len(words) + 1))
        return words[:cut] if rng.random() < 0.5 else words[cut:]

    texts: list[str] = []
    languages: list[str] = []
    parts = [np.zeros((0, len(LABELS)))]
    for fold in folds:
        new = []
        for _ in range(round(ratio * len(fold.texts))):
            first, second = (fold.texts[int(i)] for i in rng.integers(0, len(fold.texts), 2))
            new.append(" ".join((piece(first) + piece(second))[:max_words]) or first)
        texts += new
        languages += [fold.language] * len(new)
        parts.append(class_probabilities(fold.classifier, new))
    return texts, np.concatenate(parts), languages
