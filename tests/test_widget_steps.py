"""The slider over training steps, without a browser."""

import numpy as np
import pytest
import torch

from comet_lib.errors import CometError
from comet_lib.losses import attention_kl
from comet_lib.widgets.steps import StepView, row_divergence
from comet_lib.widgets.view import WIDGET_VIEW

TOKENS = ["<s>", "▁a", "▁b", "</s>"]


def maps(seed: int, size: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(size), size)


def a_view(**more: int) -> StepView:
    teacher = {0: maps(1), 1: maps(2)}
    student = {
        step: {k: (1 - mix) * maps(3 + k) + mix * m for k, m in teacher.items()}
        for step, mix in ((0, 0.0), (5, 0.5), (20, 1.0))
    }
    return StepView(student, teacher, TOKENS, **more)


def test_the_divergence_is_the_loss_of_the_library():
    student, teacher = maps(1, 7), maps(2, 7)
    teacher[0] = 0.0
    teacher[0, 3] = 1.0
    wanted = attention_kl(
        torch.tensor(student)[None], torch.tensor(teacher)[None], torch.ones(1, 7)
    )
    assert row_divergence(student, teacher) == pytest.approx(wanted.item(), rel=1e-6)
    assert row_divergence(teacher, teacher) == pytest.approx(0)
    assert np.isfinite(row_divergence(np.eye(4), maps(1)))


def test_the_slider_moves_the_picture_and_the_sentence():
    view = a_view()
    assert view.step == 20 and view.layer == 1  # it opens on the last step of the last layer
    assert view.divergence == pytest.approx(0)
    before, sentence = view._image.value, view._sentence.value
    view.step = 0
    assert view._controls["step"].value == 0
    assert view.divergence == pytest.approx(row_divergence(maps(4), maps(2)))
    assert view._image.value != before and view._sentence.value != sentence
    assert view._sentence.value == view.describe()
    assert np.allclose(view._images[1].get_array(), maps(4))
    assert np.allclose(view._images[0].get_array(), maps(2))
    view.layer = 0
    assert np.allclose(view._images[0].get_array(), maps(1))
    assert view.divergence == pytest.approx(row_divergence(maps(3), maps(1)))


def test_the_same_values_give_the_same_picture_again():
    view = a_view(step=5, layer=0)
    first = view._image.value
    view.step = 20
    view.layer = 1
    view.step = 5
    view.layer = 0
    assert view._image.value == first


def test_the_static_twin_is_in_the_mime_bundle():
    view = a_view(step=5)
    bundle = view._repr_mimebundle_()
    assert bundle["image/png"].startswith(b"\x89PNG")
    assert bundle[WIDGET_VIEW]["model_id"] == view.box.model_id
    assert "Layer 1 at step 5" in bundle["text/plain"]


def test_maps_that_do_not_fit_are_named():
    with pytest.raises(CometError, match="at least one step"):
        StepView({}, {0: maps(1)}, TOKENS)
    with pytest.raises(CometError, match="step 3"):
        StepView({3: {1: maps(1)}}, {0: maps(1)}, TOKENS)
    with pytest.raises(CometError, match="step 3"):
        StepView({3: {0: maps(1, 5)}}, {0: maps(1)}, TOKENS)
    with pytest.raises(CometError, match="teacher"):
        StepView({3: {0: maps(1)}}, {0: maps(1, 5)}, TOKENS)
