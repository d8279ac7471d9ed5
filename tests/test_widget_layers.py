"""The layer-pair view without a browser."""

import numpy as np
import pytest
import torch

from comet_lib.attention import js_divergence
from comet_lib.errors import CometError
from comet_lib.widgets.layers import LayerPairView, divergence
from comet_lib.widgets.view import WIDGET_VIEW

TOKENS = ["<s>", "a", "b", "</s>"]


def maps(layers: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(4), size=(layers, 4))


def view() -> LayerPairView:
    return LayerPairView(maps(4, 0), maps(2, 1), TOKENS)


def test_the_divergence_is_that_of_the_library():
    p, q = maps(1, 0)[0], maps(1, 1)[0]
    ours = js_divergence(torch.tensor(p)[None], torch.tensor(q)[None], torch.ones(1, 4)).mean()
    assert divergence(p, q) == pytest.approx(ours.item(), rel=1e-6)
    assert divergence(p, p) == pytest.approx(0, abs=1e-12)
    assert divergence(np.eye(4), np.eye(4)[::-1]) == pytest.approx(np.log(2))


def test_the_sliders_choose_the_layers():
    pair = view()
    picture, sentence = pair._image.value, pair.describe()
    pair.teacher_layer, pair.student_layer = 3, 1
    teacher, student, difference = pair.maps
    assert (teacher == pair.teacher[3]).all() and (student == pair.student[1]).all()
    assert difference == pytest.approx(student - teacher)
    assert pair.divergence == pytest.approx(divergence(teacher, student))
    assert pair._image.value != picture
    assert pair._sentence.value == pair.describe() != sentence
    assert "student layer 1" in pair.describe().lower() and "layer 3" in pair.describe()


def test_the_sliders_end_at_the_last_layer():
    pair = view()
    pair.teacher_layer, pair.student_layer = 99, 99
    assert (pair.teacher_layer, pair.student_layer) == (3, 1)


def test_the_figure_names_what_it_shows():
    figure = view().draw()
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:3] == ["teacher, layer 0", "student, layer 0", "student - teacher"]
    assert "nats" in figure.get_suptitle()


def test_the_static_twin_is_in_the_mime_bundle():
    pair = view()
    bundle = pair._repr_mimebundle_()
    assert bundle["image/png"].startswith(b"\x89PNG")
    assert bundle[WIDGET_VIEW]["model_id"] == pair.box.model_id
    assert "nats" in bundle["text/plain"]


@pytest.mark.parametrize(
    ("teacher", "student", "name"),
    [
        (maps(1, 0)[0], maps(2, 1), "teacher"),
        (maps(4, 0), maps(2, 1)[:, :3], "student"),
        (maps(4, 0), maps(2, 1)[:0], "student"),
    ],
)
def test_maps_that_do_not_fit_are_named(teacher, student, name):
    with pytest.raises(CometError, match=f"{name} has shape"):
        LayerPairView(teacher, student, TOKENS)


def test_the_words_of_the_picture_do_not_overlap():
    tokens = ["▁taarifa"] * 12
    maps = np.random.default_rng(0).dirichlet(np.ones(12), (2, 12))
    figure = LayerPairView(maps, maps, tokens).draw()
    figure.canvas.draw()
    headline = figure.get_suptitle() and figure._suptitle.get_window_extent()
    for axes in figure.axes[:3]:
        assert not headline.overlaps(axes.title.get_window_extent())
        assert axes.xaxis.label.get_window_extent().y0 >= 0
