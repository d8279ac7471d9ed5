"""Views without a browser: attributes, callbacks, the static twin."""

import io

import numpy as np
import pytest
from matplotlib.image import imread

from comet_lib.profiles import LABELS
from comet_lib.widgets.alpha import AlphaView
from comet_lib.widgets.bootstrap import BootstrapView
from comet_lib.widgets.heads import HeadView
from comet_lib.widgets.pieces import PiecesView
from comet_lib.widgets.temperature import TemperatureView, soften
from comet_lib.widgets.view import DPI, WIDGET_VIEW


def test_soften_flattens_and_sums_to_one():
    logits = np.array([3.0, 1.0, -2.0])
    sharp, flat = soften(logits, 1.0), soften(logits, 8.0)
    assert sharp.sum() == pytest.approx(1) and flat.sum() == pytest.approx(1)
    assert sharp.max() > flat.max() and sharp.argmax() == flat.argmax()
    assert np.isfinite(soften(np.array([1e4, 0.0]), 0.5)).all()


def test_the_slider_moves_the_picture_and_the_sentence():
    view = TemperatureView([3.0, 1.0, -2.0], ["a", "b", "c"])
    before, sentence = view._image.value, view.describe()
    view.temperature = 4.0
    assert view.temperature == 4.0 and view._controls["temperature"].value == 4.0
    assert view._image.value != before and view.describe() != sentence
    assert view._sentence.value == view.describe()
    assert view.probabilities == pytest.approx(soften(view.logits, 4.0))


def test_the_static_twin_is_in_the_mime_bundle():
    view = TemperatureView([3.0, 1.0, -2.0], ["a", "b", "c"])
    bundle = view._repr_mimebundle_()
    assert bundle["image/png"].startswith(b"\x89PNG")
    assert bundle[WIDGET_VIEW]["model_id"] == view.box.model_id
    assert "nats" in bundle["text/plain"]


def test_the_picture_fits_its_page_light_or_dark():
    view = TemperatureView([3.0, 1.0, -2.0], ["a", "b", "c"])
    assert view._image.layout.width == "700px" and view._image.layout.max_width.startswith("calc")
    assert "comet-view" in view._image._dom_classes
    styles = [one.value for one in view.box.children if "<style>" in getattr(one, "value", "")]
    assert len(styles) == 1 and ".comet-view" in styles[0]


def test_unknown_attributes_are_errors():
    with pytest.raises(AttributeError):
        _ = TemperatureView([1.0, 2.0], ["a", "b"]).pressure


def _pixels(view):
    return imread(io.BytesIO(view._image.value))[..., :3]


MAPS = np.random.default_rng(0).dirichlet(np.full(4, 0.3), (3, 4))  # (layers or heads, L, L)
WORDS = ["▁a", "▁b", "▁c", "▁d"]
GUESSES = {"student": np.arange(60) % 3, "TF-IDF": np.arange(60) % 2}


@pytest.mark.parametrize(
    ("make", "start", "end"),
    [
        (lambda **at: TemperatureView([2.0, 0.5, -1.0], LABELS, **at), {"temperature": 1.0},
         {"temperature": 6.0}),
        (lambda **at: AlphaView(1.0, 0.01, 0.4, **at), {"alpha": 0.5}, {"alpha": 0.02}),
        (lambda **at: HeadView({0: MAPS, 1: MAPS[::-1]}, WORDS, **at), {"layer": 0, "head": 0},
         {"layer": 1, "head": 2}),
        (lambda **at: BootstrapView(np.arange(60) % 3, GUESSES, **at), {"tweets": 400},
         {"tweets": 50}),
        (lambda **at: PiecesView([9, 99], {"kin": [30, 99], "yor": [40, 98]}, 5, 4, **at),
         {"pieces": 9}, {"pieces": 99}),
    ],
    ids=["temperature", "alpha", "heads", "bootstrap", "pieces"],
)  # fmt: skip
def test_a_moved_slider_shows_the_picture_of_a_view_that_began_there(make, start, end):
    moved, fresh = make(**start), make(**end)
    before = _pixels(moved)
    for name, value in end.items():
        setattr(moved, name, value)
    assert (before != _pixels(fresh)).any()
    assert (_pixels(moved) == _pixels(fresh)).all()
    whole = io.BytesIO()
    moved.draw().savefig(whole, dpi=DPI)  # everything drawn, nothing kept
    missed = np.abs(imread(io.BytesIO(whole.getvalue()))[..., :3] - _pixels(moved)).max(-1) > 0.5
    assert missed.sum() < 10
