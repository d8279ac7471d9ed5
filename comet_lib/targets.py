"""What the student learns from: a teacher's soft targets, honest ones.

A teacher asked about its own training tweets is too sure: it has seen the labels. So the TF-IDF
teacher answers out of fold (a model that never saw the tweet labels it), and new tweets are
spliced from pieces of two tweets of one fold and labeled by that fold's model. Text without labels
is labeled by the models of all folds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from typing import Any

import numpy as np
import pandas as pd
import regex
from datasets import Dataset
from scipy.sparse import vstack
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.ensemble import VotingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline, make_union
from tqdm.auto import tqdm

from comet_lib.data import cleaned
from comet_lib.errors import CometError
from comet_lib.processes import give_back_memory
from comet_lib.profiles import LABELS

#: Two letters or more, with their combining marks: Yoruba's gbọ́n is one word.
WORDS = regex.compile(r"[\w\p{M}]{2,}").findall


def tfidf_features() -> FeatureUnion:
    """Character n-grams (char_wb 2-5, min_df 2) and words (1-2), both in sublinear TF-IDF."""
    common: dict[str, Any] = {"sublinear_tf": True, "dtype": np.float32}
    return make_union(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2, **common),
        TfidfVectorizer(ngram_range=(1, 2), tokenizer=WORDS, token_pattern=None, **common),
    )


def logistic(c: float = 8.0) -> LogisticRegression:
    """SAGA, stopped at a tolerance of 0.01: the scores of a longer fit in a tenth of its time."""
    return LogisticRegression(C=c, solver="saga", tol=1e-2, random_state=0)


def tfidf_classifier(c: float = 8.0) -> Pipeline:
    """The course's baseline: :func:`tfidf_features` into logistic regression, C = 8. Fit one for
    each language."""
    return make_pipeline(tfidf_features(), logistic(c))


class LogCountRatios(TransformerMixin, BaseEstimator):
    """Weights sparse features (N, F) by how much likelier each is with a label than without it.

        r_f = log (n_f^+ + 1) / sum_g (n_g^+ + 1)  -  log (n_f^- + 1) / sum_g (n_g^- + 1)

    n_f^+ counts the texts of the label that have feature f. Wang and Manning, ACL 2012.
    """

    def fit(self, features: Any, labels: np.ndarray) -> LogCountRatios:
        own, rest = ((features[labels == y] > 0).sum(0).A1 + 1.0 for y in (1, 0))
        ratios = np.log(own / own.sum()) - np.log(rest / rest.sum())
        self.ratios_ = ratios.astype(np.float32)
        return self

    def transform(self, features: Any) -> Any:
        return features.multiply(self.ratios_).tocsr()


def class_probabilities(classifier: Any, rows: Any) -> np.ndarray:
    """(N, 3) in LABELS order, even if the classifier met only some of the labels. ``rows`` are what
    it takes: N texts for a pipeline, or their features."""
    out = np.zeros((np.shape(rows)[0], len(LABELS)))
    if len(out):
        out[:, classifier.classes_.astype(int)] = classifier.predict_proba(rows)
    return out


@dataclass
class Ngrams:
    """One language's tweets as n-grams, counted once for all folds: counting needs no labels."""

    texts: Sequence[str]

    @cached_property
    def _counted(self) -> tuple[FeatureUnion, list[Any]]:
        features = tfidf_features()
        rows = features.fit_transform([*self.texts, *map(cleaned, self.texts)])
        return features, [rows[: len(self.texts)], rows[len(self.texts) :]]

    @property
    def forms(self) -> list[Any]:
        """The tweets' sparse features (N, F) as they are, and cleaned."""
        return self._counted[1]

    def forms_of(self, texts: Sequence[str]) -> list[Any]:
        """Those of other texts."""
        if not len(texts):
            return [np.zeros((0, 0))] * 2  # scikit-learn refuses to count nothing
        return [self._counted[0].transform(x) for x in (texts, [cleaned(x) for x in texts])]

    def fit(self, rows: np.ndarray, labels: np.ndarray) -> VotingClassifier:
        """A teacher of some tweets (positions, and their labels), in both forms.

        It is the mean of the baseline's logistic regression and of one for each label on
        :class:`LogCountRatios`, which together score 0.25 points more on dev than the first.
        """
        ratios = LogisticRegression(C=4.0, solver="liblinear", tol=1e-2, random_state=0)
        each = OneVsRestClassifier(make_pipeline(LogCountRatios(), ratios))
        teacher = VotingClassifier([("tfidf", logistic()), ("ratios", each)], voting="soft")
        return teacher.fit(vstack([form[rows] for form in self.forms]).tocsr(), np.tile(labels, 2))


def mean_answer(classifier: Any, forms: Sequence[Any]) -> np.ndarray:
    """(N, 3): the classifier's mean answer to both forms of N texts."""
    return np.mean([class_probabilities(classifier, form) for form in forms], axis=0)


@dataclass(frozen=True)
class Fold:
    """Tweets that share a fold; ``classifier`` is fitted, on first use, on all the other folds."""

    language: str
    rows: np.ndarray  # positions in the training table
    texts: list[str]
    ngrams: Ngrams  # of the whole language
    inside: np.ndarray  # (n,) bool: which of its tweets are in this fold
    labels: np.ndarray  # (n,) of the whole language

    @cached_property
    def classifier(self) -> VotingClassifier:
        others = np.flatnonzero(~self.inside)
        return self.ngrams.fit(others, self.labels[others])

    def own_answers(self) -> np.ndarray:
        """(N, 3): what the classifier says of the fold's own tweets, which it never saw."""
        return mean_answer(self.classifier, [form[self.inside] for form in self.ngrams.forms])

    def answers(self, texts: Sequence[str]) -> np.ndarray:
        """(N, 3): what it says of other texts."""
        return mean_answer(self.classifier, self.ngrams.forms_of(texts))


@dataclass(frozen=True)
class SoftTargets:
    """(N, 3) out-of-fold probabilities; new texts (spliced ones first), their (M, 3)
    probabilities and languages."""

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

    Copies of one text go to one fold, so that no tweet is labeled by a model that saw its twin.

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
        ngrams, known = Ngrams(here["text"].tolist()), here["label"].to_numpy()
        for _, out in splitter.split(unique, unique["label"]):
            inside = here["text"].isin(unique["text"].iloc[out]).to_numpy()
            if len(set(known[~inside])) < 2:  # a label's only tweets are held out together
                raise too_few
            fold = here[inside]
            rows, own = fold.index.to_numpy(), fold["text"].tolist()
            yield Fold(str(language), rows, own, ngrams, inside, known)


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
    unlabeled: Mapping[str, Sequence[str]] | None = None,
    bar: str = "",
) -> SoftTargets:
    """Out-of-fold TF-IDF soft targets: every row is labeled by a classifier that never saw it.

    With ``splices``, about as many spliced tweets for each real one, labeled by the classifier
    of the fold that their pieces come from. ``unlabeled`` texts of a language get the mean answer
    of its folds' classifiers. ``bar`` names a progress bar, if one is wanted.

    Raises:
        CometError: too few training tweets of a language.
    """
    probabilities = np.zeros((len(texts), len(LABELS)))
    spliced = [splice([], splices, np.random.default_rng(seed))]  # none, if there is no fold
    others, k = [], 0
    fitted = fit_folds(texts, labels, languages, folds, seed)
    most = folds * len(set(languages))
    counted = tqdm(fitted, desc=bar, total=most, disable=not bar, leave=False)
    folded = groupby(counted, lambda fold: fold.language)
    for language, group in folded:
        lines = list((unlabeled or {}).get(language, ()))
        forms, each = None, []
        for fold in group:
            forms = forms or fold.ngrams.forms_of(lines)
            probabilities[fold.rows] = fold.own_answers()
            spliced.append(splice([fold], splices, np.random.default_rng((seed, k))))
            each.append(mean_answer(fold.classifier, forms))
            k += 1
        others.append((lines, np.mean(each, axis=0), [language] * len(lines)))
        give_back_memory(collect=False)
    new_texts, new_answers, codes = zip(*spliced, *others, strict=True)
    return SoftTargets(
        probabilities, list(chain(*new_texts)), np.concatenate(new_answers), list(chain(*codes))
    )


def label_frequencies(train: Dataset) -> dict[str, np.ndarray]:
    """The share (3,) of each label among a language's tweets, each label counted once more than it
    occurs."""
    codes, labels = np.asarray(train["language"][:]), np.asarray(train["label"][:])
    counts = {x: 1 + np.bincount(labels[codes == x], minlength=len(LABELS)) for x in set(codes)}
    return {str(code): n / n.sum() for code, n in counts.items()}


def less_prior(
    probabilities: np.ndarray,
    languages: Sequence[str],
    frequencies: Mapping[str, np.ndarray],
    power: float,
) -> np.ndarray:
    """(N, 3) soft targets that lean less on how frequent a label is in its language.

        q'_c  proportional to  q_c / pi_c^power

    At power 1 all labels count as equally frequent; at 0 nothing changes. Menon et al. 2021, arXiv
    2007.07314. Without it, where 59 % of the labels are neutral (Swahili), a student of soft
    targets calls nearly every tweet neutral.
    """
    out = probabilities / np.stack([frequencies[code] for code in languages]) ** power
    return out / out.sum(1, keepdims=True)


def splice(
    folds: Sequence[Fold], ratio: float, rng: np.random.Generator, max_words: int = 50
) -> tuple[list[str], np.ndarray, list[str]]:
    """About ``ratio`` spliced tweets for each real one, labeled by the fold's own classifier.

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
        parts.append(fold.answers(new))
    return texts, np.concatenate(parts), languages
