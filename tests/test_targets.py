"""Honest soft targets: no tweet is labeled by a model that saw it or its twin."""

import numpy as np
import pytest

from comet_lib import targets
from comet_lib.errors import CometError

WORDS = {0: "bad poor sad", 1: "note report list", 2: "good fine glad"}


def tweets(n: int = 60):
    texts = [f"{WORDS[i % 3]} thing{i} word{i % 7}" for i in range(n)]
    return texts, [i % 3 for i in range(n)], ["kin" if i < n // 2 else "swa" for i in range(n)]


def test_out_of_fold_never_sees_its_own_row(monkeypatch):
    texts, labels, languages = tweets()
    texts[4] = texts[1]  # twins in one language
    seen: list[tuple[set[str], set[str]]] = []
    fit = targets._fit_fold

    def spy(language, rows, here, y, inside, outside):
        seen.append(({here[i] for i in inside}, {here[i] for i in outside}))
        return fit(language, rows, here, y, inside, outside)

    monkeypatch.setattr(targets, "_fit_fold", spy)
    probabilities, folds = targets.cross_fit(texts, labels, languages, folds=3)
    assert len(folds) == 6 and all(not (a & b) for a, b in seen)
    assert sorted(np.concatenate([f.rows for f in folds])) == list(range(len(texts)))
    assert probabilities.shape == (60, 3)
    assert probabilities.sum(1) == pytest.approx(np.ones(60))
    assert (probabilities.argmax(1) == labels).mean() > 0.9


def test_too_few_labels_are_refused():
    with pytest.raises(CometError, match="kin: too few"):
        targets.cross_fit(["a b", "c d"], [0, 0], ["kin", "kin"])


def test_probabilities_keep_label_order_with_a_label_missing():
    classifier = targets.tfidf_classifier().fit(["bad sad", "good glad"] * 4, [0, 2] * 4)
    probabilities = targets.class_probabilities(classifier, ["good glad"])
    assert probabilities[0, 1] == 0 and probabilities[0].argmax() == 2


def test_splices_are_made_of_pieces_and_labelled_by_their_own_fold():
    texts, labels, languages = tweets()
    _, folds = targets.cross_fit(texts, labels, languages, folds=3)
    made, probabilities, codes = targets.splice(folds, 2.0, np.random.default_rng(0))
    assert len(made) == len(codes) == len(probabilities) == 120
    start = 0
    for fold in folds:
        own = " ".join(fold.texts).split()
        count = round(2.0 * len(fold.texts))
        part = made[start : start + count]
        assert all(word in own for text in part for word in text.split())
        expected = targets.class_probabilities(fold.classifier, part)
        assert probabilities[start : start + count] == pytest.approx(expected)
        start += count
    assert all(text.strip() for text in made)


def test_splice_ratio_zero_and_reproducibility():
    texts, labels, languages = tweets()
    _, folds = targets.cross_fit(texts, labels, languages, folds=2)
    none, probabilities, _ = targets.splice(folds, 0.0, np.random.default_rng(0))
    assert none == [] and probabilities.shape == (0, 3)
    first, again = (targets.splice(folds, 1.0, np.random.default_rng(5))[0] for _ in range(2))
    assert first == again


def test_one_pass_equals_the_two_steps():
    texts, labels, languages = tweets()
    slow, folds = targets.cross_fit(texts, labels, languages, folds=3)
    fast, made, probabilities, codes = targets.cross_fit_and_splice(
        texts, labels, languages, 1.5, folds=3
    )
    assert fast == pytest.approx(slow)
    assert len(made) == len(codes) == len(probabilities) == 90
    expected = []
    for k, fold in enumerate(folds):
        new, answer, _ = targets.splice([fold], 1.5, np.random.default_rng((0, k)))
        assert made[: len(new)] == new
        made = made[len(new) :]
        expected.append(answer)
    assert probabilities == pytest.approx(np.concatenate(expected))
