"""Honest soft targets: no tweet is labeled by a model that saw it or its twin."""

import numpy as np
import pytest
from datasets import Dataset
from scipy.sparse import csr_matrix

from comet_lib import targets
from comet_lib.errors import CometError

WORDS = {0: "bad poor sad", 1: "note report list", 2: "good fine glad"}


def tweets(n: int = 60):
    texts = [f"{WORDS[i % 3]} thing{i} word{i % 7}" for i in range(n)]
    return texts, [i % 3 for i in range(n)], ["kin" if i < n // 2 else "swa" for i in range(n)]


def test_out_of_fold_never_sees_its_own_row(monkeypatch):
    texts, labels, languages = tweets()
    texts[4] = texts[1]  # twins in one language
    fitted: list[set[str]] = []

    def spy(ngrams, rows, own_labels):
        fitted.append({ngrams.texts[row] for row in rows})
        return fit(ngrams, rows, own_labels)

    fit = targets.Ngrams.fit
    monkeypatch.setattr(targets.Ngrams, "fit", spy)
    folds = list(targets.fit_folds(texts, labels, languages, folds=3))
    assert len(folds) == 6 and not fitted  # each is fitted when it is asked for
    assert all(fold.classifier is fold.classifier for fold in folds)  # and once
    assert all(not (a & set(fold.texts)) for a, fold in zip(fitted, folds, strict=True))
    assert sorted(np.concatenate([f.rows for f in folds])) == list(range(len(texts)))
    probabilities = targets.cross_fit(texts, labels, languages, folds=3).probabilities
    assert probabilities.shape == (60, 3)
    assert probabilities.sum(1) == pytest.approx(np.ones(60))
    assert (probabilities.argmax(1) == labels).mean() > 0.9


def test_too_few_labels_are_refused():
    with pytest.raises(CometError, match="kin: too few"):
        targets.cross_fit(["a b", "c d"], [0, 0], ["kin", "kin"])


def test_one_tweet_of_a_second_label_is_too_few_before_anything_is_fitted():
    """The fold that holds it leaves a single label to fit on."""
    texts, labels = [f"good thing{i}" for i in range(12)] + ["bad thing"], [2] * 12 + [0]
    with pytest.raises(CometError, match="kin: too few"):
        targets.check_enough(texts, labels, ["kin"] * 13, folds=3)
    more = [*texts, "sad word", "poor word", "bad word"]
    targets.check_enough(more, [*labels, 0, 0, 0], ["kin"] * 16, folds=3)


def test_probabilities_keep_label_order_with_a_label_missing():
    classifier = targets.tfidf_classifier().fit(["bad sad", "good glad"] * 4, [0, 2] * 4)
    probabilities = targets.class_probabilities(classifier, ["good glad"])
    assert probabilities[0, 1] == 0 and probabilities[0].argmax() == 2


def test_splices_are_made_of_pieces_and_labeled_by_their_own_fold():
    texts, labels, languages = tweets()
    folds = list(targets.fit_folds(texts, labels, languages, folds=3))
    made, probabilities, codes = targets.splice(folds, 2.0, np.random.default_rng(0))
    assert len(made) == len(codes) == len(probabilities) == 120
    start = 0
    for fold in folds:
        own = " ".join(fold.texts).split()
        count = round(2.0 * len(fold.texts))
        part = made[start : start + count]
        assert all(word in own for text in part for word in text.split())
        expected = fold.answers(part)
        assert probabilities[start : start + count] == pytest.approx(expected)
        start += count
    assert all(text.strip() for text in made)


def test_splice_ratio_zero_and_reproducibility():
    texts, labels, languages = tweets()
    folds = list(targets.fit_folds(texts, labels, languages, folds=2))
    none, probabilities, _ = targets.splice(folds, 0.0, np.random.default_rng(0))
    assert none == [] and probabilities.shape == (0, 3)
    first, again = (targets.splice(folds, 1.0, np.random.default_rng(5))[0] for _ in range(2))
    assert first == again


def test_cross_fit_is_its_folds_answers_and_their_splices():
    texts, labels, languages = tweets()
    made = targets.cross_fit(texts, labels, languages, folds=3, splices=1.5)
    assert len(made.texts) == len(made.languages) == len(made.text_probabilities) == 90
    slow, new_texts, answers = np.zeros((60, 3)), [], []
    for k, fold in enumerate(targets.fit_folds(texts, labels, languages, folds=3)):
        slow[fold.rows] = fold.answers(fold.texts)  # counted again, text by text
        new, answer, _ = targets.splice([fold], 1.5, np.random.default_rng((0, k)))
        new_texts += new
        answers.append(answer)
    assert made.probabilities == pytest.approx(slow)
    assert made.texts == new_texts
    assert made.text_probabilities == pytest.approx(np.concatenate(answers))
    none = targets.cross_fit(texts, labels, languages, folds=3)
    assert none.texts == [] and none.text_probabilities.shape == (0, 3)


def test_unlabeled_texts_get_the_mean_of_their_language_s_folds():
    texts, labels, languages = tweets()
    new = {"kin": ["good glad", "bad poor"], "xyz": ["no tweets to learn from"]}
    made = targets.cross_fit(texts, labels, languages, folds=3, splices=0.5, unlabeled=new)
    assert made.texts[-2:] == new["kin"] and made.languages[-2:] == ["kin", "kin"]
    assert len(made.texts) == 30 + 2
    folds = [f for f in targets.fit_folds(texts, labels, languages, folds=3) if f.language == "kin"]
    mean = np.mean([fold.answers(new["kin"]) for fold in folds], axis=0)
    assert made.text_probabilities[-2:] == pytest.approx(mean)
    assert mean.argmax(1).tolist() == [2, 0]


def test_a_bar_is_shown_if_it_has_a_name(capsys):
    texts, labels, languages = tweets()
    for name in ("", "out of fold"):
        targets.cross_fit(texts, labels, languages, folds=3, bar=name)
        assert ("out of fold" in capsys.readouterr().err) == bool(name)


def test_words_keep_their_combining_marks():
    assert targets.WORDS("gbọ́n a ẹ̀rín x1") == ["gbọ́n", "ẹ̀rín", "x1"]


def test_log_count_ratios_weigh_a_feature_by_the_labels_that_have_it():
    features = csr_matrix(np.array([[1.0, 0.5], [0.2, 0.0], [0.0, 0.7]]))
    ratios = targets.LogCountRatios().fit(features, np.array([1, 1, 0]))
    expected = np.log([3 / 5, 2 / 5]) - np.log([1 / 3, 2 / 3])  # counts 2, 1 and 0, 1; plus one
    assert ratios.transform(features).toarray() == pytest.approx(features.toarray() * expected)


def test_less_prior_takes_the_frequency_of_a_label_out():
    even = np.array([[0.25, 0.5, 0.25]] * 8)
    train = Dataset.from_dict(
        {"language": ["swa"] * 7 + ["kin"], "label": [1, 1, 1, 1, 1, 0, 2, 0]}
    )
    frequencies = targets.label_frequencies(train)
    assert frequencies["swa"] == pytest.approx(np.array([0.2, 0.6, 0.2]))  # 1, 5, 1, plus one each
    out = targets.less_prior(even, ["swa"] * 8, frequencies, 1.0)
    assert out[0] == pytest.approx(np.array([0.25 / 0.2, 0.5 / 0.6, 0.25 / 0.2]) / (10 / 3))
    assert targets.less_prior(even, ["swa"] * 8, frequencies, 0.0) == pytest.approx(even)
    mixed = targets.less_prior(even, ["kin", *["swa"] * 7], frequencies, 0.5)
    assert mixed.sum(1) == pytest.approx(np.ones(8)) and mixed[0, 1] != mixed[1, 1]
