"""The label-budget view without a browser."""

import numpy as np
import pytest

from comet_lib.errors import CometError
from comet_lib.widgets.labels import LabelBudgetView, at_budget, labels_needed
from comet_lib.widgets.view import WIDGET_VIEW

BUDGETS = [10, 100, 1000]
CURVES = {"labels only": [30.0, 40.0, 60.0], "with soft targets": [40.0, 55.0, 62.0]}


def view() -> LabelBudgetView:
    intervals = {name: [(s - 2, s + 2) for s in curve] for name, curve in CURVES.items()}
    return LabelBudgetView(BUDGETS, CURVES, intervals)


def test_scores_lie_on_lines_in_log_labels():
    budgets, curve = np.array(BUDGETS, float), np.array(CURVES["labels only"])
    assert [at_budget(n, budgets, curve) for n in BUDGETS] == pytest.approx(curve.tolist())
    assert at_budget(10**1.5, budgets, curve) == pytest.approx(35)  # half way in log
    assert at_budget(10**2.25, budgets, curve) == pytest.approx(45)


def test_labels_needed_inverts_the_curve():
    budgets, curve = np.array(BUDGETS, float), np.array(CURVES["labels only"])
    assert labels_needed(50, budgets, curve) == pytest.approx(10**2.5, rel=0.02)
    assert labels_needed(30, budgets, curve) == pytest.approx(10)
    assert labels_needed(61, budgets, curve) is None
    down = np.array([50.0, 40.0, 60.0])  # a curve need not rise everywhere
    assert labels_needed(45, budgets, down) == pytest.approx(10)


def test_the_slider_moves_the_picture_and_the_sentence():
    one = view()
    assert set(BUDGETS) <= set(one._controls["labels"].options)
    assert one.labels == 10 and one.gain == pytest.approx(10)
    before = one._image.value
    one.labels = 100
    assert one.scores == pytest.approx({"labels only": 40, "with soft targets": 55})
    assert one._image.value != before and one._sentence.value == one.describe()
    assert "+15.0 points" in one.describe() and "needs about" in one.describe()


def test_the_sentence_says_what_was_not_measured_and_what_is_out_of_reach():
    one = view()
    one.labels = 1000
    assert "more than labels only reaches with all 1,000" in one.describe()
    assert "between" not in one.describe()
    one.labels = next(n for n in one._controls["labels"].options if n not in BUDGETS)
    assert "between two measured budgets" in one.describe()


def test_a_loss_is_called_a_loss():
    one = LabelBudgetView([1, 2], {"a": [50, 50], "b": [40, 40]})
    assert "-10.0 points" in one.describe() and "needs" not in one.describe()


def test_the_static_twin_is_in_the_mime_bundle():
    bundle = view()._repr_mimebundle_()
    assert bundle["image/png"].startswith(b"\x89PNG")
    assert WIDGET_VIEW in bundle and "points" in bundle["text/plain"]


@pytest.mark.parametrize(
    ("budgets", "curves", "fragment"),
    [
        ([10], CURVES, "two or more that grow"),
        ([10, 10, 20], CURVES, "two or more that grow"),
        ([0, 10, 20], CURVES, "two or more that grow"),
        (BUDGETS, {"a": [1, 2, 3]}, "the baseline first"),
        (BUDGETS, {**CURVES, "c": [1, 2]}, "'c' has 2 scores for 3 budgets"),
    ],
)
def test_wrong_input_is_named(budgets, curves, fragment):
    with pytest.raises(CometError, match=fragment):
        LabelBudgetView(budgets, curves)
