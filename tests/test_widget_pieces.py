"""The view of kept pieces: coverage and size, without a browser."""

import pytest

from comet_lib.errors import CometError
from comet_lib.widgets.pieces import PiecesView
from comet_lib.widgets.view import WIDGET_VIEW

KEPT = [10, 100, 1000]
COVERAGE = {"kin": [40.0, 80.0, 100.0], "yor": [50.0, 70.0, 99.0]}


def view(**more):
    return PiecesView(KEPT, COVERAGE, rest=500, width=4, **more)


def test_parameters_and_coverage_follow_the_slider():
    one = view(pieces=10)
    assert one.parameters == 540 and one.covered == {"kin": 40.0, "yor": 50.0}
    assert "40.0 % in kin, the least" in one.describe() and "(12 %)" in one.describe()
    before = one._image.value
    one.pieces = 100
    assert one.parameters == 900 and one.covered == {"kin": 80.0, "yor": 70.0}
    assert "70.0 % in yor, the least" in one.describe() and "75.0 % (mean" in one.describe()
    assert one._image.value != before and one._sentence.value == one.describe()


def test_the_slider_starts_in_the_middle_and_reaches_both_ends():
    one = view()
    assert one.pieces == 100
    for pieces, count in ((10, 540), (1000, 4500)):
        one.pieces = pieces
        assert one.parameters == count
    assert "(100 %)" in one.describe()


def test_the_static_twin_is_in_the_mime_bundle():
    one = view()
    bundle = one._repr_mimebundle_()
    assert bundle["image/png"].startswith(b"\x89PNG")
    assert bundle[WIDGET_VIEW]["model_id"] == one.box.model_id
    assert "100 of 1,000 pieces" in bundle["text/plain"]


@pytest.mark.parametrize(
    ("kept", "coverage", "words"),
    [
        ([], {"kin": []}, "rising order"),
        ([5, 5], {"kin": [1, 2]}, "rising order"),
        ([9, 5], {"kin": [1, 2]}, "rising order"),
        ([5, 9], {}, "2 percentages"),
        ([5, 9], {"kin": [1]}, "2 percentages"),
    ],
)
def test_what_does_not_fit_is_refused(kept, coverage, words):
    with pytest.raises(CometError, match=words):
        PiecesView(kept, coverage, rest=1, width=1)
