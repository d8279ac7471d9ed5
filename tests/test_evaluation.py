"""Metrics against scikit-learn and slow resampling."""

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from transformers import set_seed

from comet_lib import evaluation
from comet_lib.attention import capture_maps
from comet_lib.data import FEATURES
from comet_lib.errors import CometError
from comet_lib.models import build_student, xlmr_config
from comet_lib.profiles import PAPER_ROWS, shape
from comet_lib.report import markdown_table, result_table
from comet_lib.similarity import js_divergence


def answers(seed: int = 0, n: int = 300, right: float = 0.6):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    guess = np.where(rng.random(n) < right, labels, rng.integers(0, 3, n))
    languages = np.array(["kin", "yor"])[(np.arange(n) > n // 3).astype(int)]
    return labels, guess, languages


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_f1_from_counts_equals_scikit_learn(pairs):
    labels, guess = np.array(pairs).T
    counts = np.bincount(labels * 3 + guess, minlength=9).reshape(3, 3)
    slow = 100 * f1_score(labels, guess, average="weighted", zero_division=0)
    assert evaluation.f1_of_counts(counts) == pytest.approx(slow)
    assert evaluation.weighted_f1(labels, guess) == pytest.approx(slow)


def test_mean_is_over_languages_not_rows():
    labels, guess, languages = answers()
    scores = evaluation.mean_weighted_f1(labels, guess, languages)
    assert scores["mean"] == pytest.approx((scores["kin"] + scores["yor"]) / 2)


def test_interval_agrees_with_resampling_rows_one_by_one():
    labels, guess, languages = answers()
    fast = evaluation.bootstrap_f1(labels, guess, languages, draws=4000)
    rng, slow = np.random.default_rng(1), []
    groups = [np.flatnonzero(languages == code) for code in ("kin", "yor")]
    for _ in range(1500):
        drawn = [rng.choice(rows, len(rows)) for rows in groups]
        slow.append(
            np.mean([100 * f1_score(labels[d], guess[d], average="weighted") for d in drawn])
        )
    assert fast["mean"] == pytest.approx(np.percentile(slow, (2.5, 97.5)), abs=0.6)
    point = evaluation.mean_weighted_f1(labels, guess, languages)
    for name, (low, high) in fast.items():
        assert low < point[name] < high


def test_paired_bootstrap_sees_a_real_difference_and_no_other():
    labels, good, languages = answers(0, right=0.75)
    _, bad, _ = answers(0, right=0.4)
    bad = np.where(np.random.default_rng(3).random(len(good)) < 0.5, good, bad)
    real = evaluation.paired_bootstrap(labels, good, bad, languages)
    assert real["difference"] > 0 and real["ci95"][0] > 0 and real["p"] < 0.01
    same = evaluation.paired_bootstrap(labels, good, good, languages)
    assert same["difference"] == 0 and same["p"] == 1.0
    turned = evaluation.paired_bootstrap(labels, bad, good, languages)
    assert turned["difference"] == pytest.approx(-real["difference"])


def table(labels, languages, seen=None) -> Dataset:
    return Dataset.from_dict(
        {
            "text": [f"t{i}" for i in range(len(labels))],
            "label": labels.tolist(),
            "language": languages.tolist(),
            "seen_in_train": (np.zeros(len(labels)) if seen is None else seen)
            .astype(bool)
            .tolist(),
        },
        features=FEATURES,
    )


def test_score_row_and_unseen():
    labels, guess, languages = answers()
    seen = np.arange(len(labels)) % 4 == 0
    guess = np.where(seen, labels, guess)  # the leaked rows are all right
    row = evaluation.score_row("m", table(labels, languages, seen), np.eye(3)[guess], parameters=1)
    assert row["weighted_f1"]["mean"] > row["weighted_f1_unseen"]["mean"]
    assert row["accuracy"]["kin"] == pytest.approx(
        100 * (guess == labels)[languages == "kin"].mean()
    )
    with pytest.raises(CometError, match="predictions"):
        evaluation.score_row("m", table(labels, languages), np.eye(3)[guess][:-1])


def test_retention():
    assert evaluation.retention(60.0, 75.0) == 80.0
    with pytest.raises(CometError):
        evaluation.retention(60.0, 0.0)


def test_paper_rows_add_up():
    for row in PAPER_ROWS:
        f1 = row["weighted_f1"]
        mean = np.mean([v for k, v in f1.items() if k != "mean"])
        assert f1["mean"] == pytest.approx(mean, abs=0.015)  # rounded
        assert "not verified" in row["provenance"]


def test_result_table_shows_every_row():
    labels, guess, languages = answers()
    row = evaluation.score_row(
        "ours", table(labels, languages), np.eye(3)[guess], parameters=1234, size_mb=0.5
    )
    text = result_table({"languages": ["kin", "yor"], "rows": [row], "paper": PAPER_ROWS})
    assert "| ours | 1,234 |" in text and text.count("(paper) ¹") == 4
    assert f"**{row['weighted_f1']['mean']:.1f}**" in text
    alone = result_table({"languages": ["kin", "yor"], "rows": [row], "paper": []})
    assert "ours" in alone and "¹" not in alone


def test_only_columns_of_numbers_are_right_aligned():
    rows = [("a", 1234, 0.0625, "+1.5", "1 to 2"), ("b", 5, 2560.4, "", "-")]
    assert markdown_table(["name", "n", "x", "signed", "range"], rows).splitlines() == [
        "| name | n | x | signed | range |",
        "|---|---:|---:|---:|---|",
        "| a | 1,234 | 0.0625 | +1.5 | 1 to 2 |",
        "| b | 5 | 2,560 |  | - |",
    ]


def test_the_floor_is_the_most_common_training_label_of_each_language():
    train = table(np.array([0, 0, 1, 2, 2, 1]), np.repeat(["kin", "yor"], 3))
    test = table(np.array([1, 1, 1, 0]), np.array(["yor", "kin", "kin", "yor"]))  # not looked at
    floor = evaluation.most_common(DatasetDict(train=train, test=test))
    assert floor.tolist() == [2, 0, 0, 2]


def test_attention_distance_is_zero_for_the_teacher_itself_and_not_if_it_reads_another_text():
    set_seed(0)
    teacher = build_student(xlmr_config(shape(16, 2, 2, 32) | {"initializer_range": 1.0}, 40, 32))
    rows = [[0, 7, 9, 2], [0, 5, 2], [0, 8, 6, 2], [0, 30, 31, 32, 2]]
    same = evaluation.attention_distance(teacher, teacher, rows, {0: 0, 1: 1})
    assert same == pytest.approx([0, 0], abs=1e-6)
    shuffled = evaluation.attention_distance(teacher, teacher, rows, {0: 0, 1: 1}, shuffled=True)
    assert all(value > 0.001 for value in shuffled)
    by_hand = []
    batch = {"input_ids": torch.tensor([rows[0], rows[2]]), "attention_mask": torch.ones(2, 4)}
    for layer in (0, 1):  # the two rows of equal length change places
        maps = capture_maps(teacher, batch)[layer]
        by_hand.append(float(js_divergence(maps, maps.flip(0), batch["attention_mask"]).mean()))
    assert shuffled == pytest.approx(by_hand, rel=1e-4)
