"""Views without a browser: attributes, callbacks, the static twin."""

import numpy as np
import pytest

from comet_lib.widgets.temperature import TemperatureView, soften
from comet_lib.widgets.view import WIDGET_VIEW


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


def test_unknown_attributes_are_errors():
    with pytest.raises(AttributeError):
        _ = TemperatureView([1.0, 2.0], ["a", "b"]).pressure
