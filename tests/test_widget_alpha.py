"""The alpha view: shares of the gradient, without a browser."""

import time

import numpy as np
import pytest

from comet_lib.errors import CometError
from comet_lib.widgets.alpha import AlphaView, attention_share, balance
from comet_lib.widgets.view import WIDGET_VIEW


def test_shares_follow_the_weights():
    assert attention_share(0.5, 1.0, 1.0) == pytest.approx(50)
    assert attention_share(0.5, 3.0, 1.0) == pytest.approx(25)
    assert attention_share(np.array([0.0, 1.0]), 3.0, 1.0) == pytest.approx([100, 0])
    assert attention_share(0.0, 3.0, 0.0) == 0  # nothing pulls: no division by zero


@pytest.mark.parametrize(("soft", "attention"), [(2.0, 0.5), (0.3, 7.0), (1.0, 1.0)])
def test_at_the_balance_both_terms_pull_alike(soft, attention):
    alpha = balance(soft, attention)
    assert alpha * soft == pytest.approx((1 - alpha) * attention)
    assert attention_share(alpha, soft, attention) == pytest.approx(50)


def test_the_slider_moves_the_picture_and_the_sentence():
    view = AlphaView(soft=1.0, mse=0.01, kl=0.5)
    before, sentence, share = view._image.value, view.describe(), view.shares
    assert share["MSE"] < 1.1 and share["row-wise KL"] == pytest.approx(100 / 3)
    view.alpha = 0.1
    assert view.alpha == 0.1 and view._image.value != before and view.describe() != sentence
    assert all(view.shares[kind] > share[kind] for kind in share)
    assert view._sentence.value == view.describe()


def test_the_ends_of_the_slider_draw():
    view = AlphaView(soft=1.0, mse=0.0, kl=0.5)
    for alpha, kl in ((0.0, 100), (1.0, 0)):
        view.alpha = alpha
        assert view.shares == {"MSE": 0, "row-wise KL": pytest.approx(kl)}


def test_the_static_twin_is_in_the_mime_bundle():
    view = AlphaView(soft=1.0, mse=0.01, kl=0.5)
    bundle = view._repr_mimebundle_()
    assert bundle["image/png"].startswith(b"\x89PNG")
    assert bundle[WIDGET_VIEW]["model_id"] == view.box.model_id
    assert "row-wise KL" in bundle["text/plain"]


def test_the_callback_is_quick():
    view = AlphaView(soft=1.0, mse=0.01, kl=0.5)
    seconds = []
    for alpha in np.linspace(0, 0.9, 7):
        began = time.process_time()  # other jobs of the machine do not count
        view.alpha = float(alpha)
        seconds.append(time.process_time() - began)
    assert np.median(seconds[1:]) < 0.25  # 0.1 is the aim; the bound leaves room for slow cores


@pytest.mark.parametrize("norms", [(0.0, 1.0, 1.0), (1.0, -1.0, 1.0)])
def test_impossible_norms_are_errors(norms):
    with pytest.raises(CometError, match="gradient norms"):
        AlphaView(*norms)
