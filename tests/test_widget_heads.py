"""The head view without a browser: choices, picture, sentence, errors."""

import numpy as np
import pytest

from comet_lib.errors import CometError
from comet_lib.widgets.heads import HeadView
from comet_lib.widgets.view import WIDGET_VIEW

TOKENS = ["<s>", "a", "b", "</s>"]


def maps() -> dict[int, np.ndarray]:
    """Layer 0: uniform, then each token at itself. Layer 2: all at <s>, then all at b."""
    one = np.eye(4)
    return {
        2: np.stack([np.tile(one[0], (4, 1)), np.tile(one[2], (4, 1))]),
        0: np.stack([np.full((4, 4), 0.25), one]),
    }


def test_the_choices_move_map_picture_and_sentence():
    view = HeadView(maps(), TOKENS)
    assert (view.layer, view.head) == (0, 0)
    assert view.entropy == pytest.approx(np.log(4)) and "4.0 of 4 tokens" in view.describe()
    before = view._image.value
    view.layer = 2
    assert view._image.value != before and "looks most at '&lt;s&gt;'" in view._sentence.value
    view.head = 1
    assert np.array_equal(view.map, maps()[2][1])
    assert view.entropy == pytest.approx(0, abs=1e-9) and "looks most at 'b'" in view.describe()
    view._controls["layer"].value = 0
    assert view.layer == 0 and np.array_equal(view.map, np.eye(4))


def test_few_tokens_get_a_picture_of_reading_size():
    figure = HeadView(maps(), TOKENS).draw()
    assert figure.axes[0].get_window_extent().width / figure.dpi > 3  # inches


def test_the_layers_are_those_of_the_maps():
    view = HeadView(maps(), TOKENS, layer=2, head=1)
    assert list(view._controls["layer"].options) == [0, 2]
    with pytest.raises(Exception, match="Invalid selection"):
        view.layer = 1
    assert view.layer == 2


def test_the_static_twin_is_in_the_mime_bundle():
    bundle = HeadView(maps(), TOKENS)._repr_mimebundle_()
    assert bundle["image/png"].startswith(b"\x89PNG")
    assert bundle[WIDGET_VIEW]["model_id"] and "HeadView: Layer 0" in bundle["text/plain"]


@pytest.mark.parametrize(
    ("given", "tokens", "choice", "sentence"),
    [
        ({}, TOKENS, {}, "maps is empty"),
        (maps(), TOKENS[:3], {}, r"layer 0 has shape \(2, 4, 4\)"),
        ({0: np.ones((1, 2, 4, 4))}, TOKENS, {}, "one sentence"),
        (maps(), TOKENS, {"layer": 1}, r"layers are \[0, 2\]"),
        (maps(), TOKENS, {"head": 2}, "heads 0 to 1"),
    ],
)
def test_what_does_not_fit_is_refused(given, tokens, choice, sentence):
    with pytest.raises(CometError, match=sentence):
        HeadView(given, tokens, **choice)
