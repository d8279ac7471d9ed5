"""The lens's figure, inspected without a screen."""

from __future__ import annotations

import io
import warnings
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.patches import Rectangle

from comet_lib.errors import CometError
from comet_lib.lens.data import Answers, LensData, Occlusion, from_arrays
from comet_lib.lens.static import chosen_pair, layer_tables, lens_figure
from comet_lib.plots import attention_maps, drawable

HOSTILE = ["<script>", "\"'&", "a\u202eb", "👩\u200d🌾", r"$\frac{$", "x" * 500, "ọ́"]


def maps(*shape: int, seed: int = 0) -> np.ndarray:
    *lead, size = shape
    return np.random.default_rng(seed).dirichlet(np.full(size, 0.3), (*lead, size))


def data(size: int = 7, **more) -> LensData:
    tokens = (HOSTILE * size)[:size]
    return from_arrays(tokens, maps(4, size), maps(2, size, seed=1), **more)


def test_three_panels_share_one_axis_and_a_scale() -> None:
    one = data()
    figure = lens_figure(one, 2, 1)
    panels = figure.axes[:3]
    titles = [axes.get_title() for axes in panels]
    assert titles[:2] == ["teacher, layer 2", "student, layer 1"]
    teacher, student, difference = (np.asarray(axes.images[0].get_array()) for axes in panels)
    assert difference == pytest.approx(student - teacher, abs=1e-6)
    assert panels[0].images[0].get_clim() == panels[1].images[0].get_clim()
    low, high = panels[2].images[0].get_clim()
    assert low == -high == -np.abs(difference).max()
    assert panels[2].images[0].norm(0.0) == 0.5  # no difference is the palette's middle
    assert len({tuple(axes.get_xticks()) for axes in panels}) == 1
    assert figure.get_suptitle().replace("\n", " ").startswith("Student layer 1 looks more")
    plt.close(figure)


def test_padding_is_hatched() -> None:
    figure = lens_figure(data(mask=[1] * 5 + [0] * 2))
    hatched = [p for p in figure.axes[0].patches if isinstance(p, Rectangle) and p.get_hatch()]
    assert {p.get_x() for p in hatched if p.get_width() == 1} == {4.5, 5.5}
    assert len(hatched) == 4
    whole = lens_figure(data())
    assert not whole.axes[0].patches
    plt.close("all")


def test_hostile_tokens_are_drawn_as_they_are() -> None:
    for form in ("png", "svg"):
        figure = lens_figure(data())
        labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
        assert labels[0] == "<script>" and labels[2] == "a‹202E›b" and labels[4] == HOSTILE[4]
        assert labels[3] in ("(emoji)", HOSTILE[3]) and len(labels[5]) == 25 and labels[6] == "ọ́"
        out = io.BytesIO()
        figure.savefig(out, format=form)
        plt.close(figure)
        assert b"<script" not in out.getvalue()


def test_a_low_line_marks_where_a_word_begins() -> None:
    one = from_arrays(["▁ab", "c", "▁"], maps(2, 3), maps(1, 3))
    for figure in (lens_figure(one), attention_maps([maps(3)], one.tokens, [""])):
        assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["_ab", "c", "_"]
    plt.close("all")


def test_letters_that_no_font_has_become_numbers_without_a_warning() -> None:
    tokens = ["▁ሰላም", "سلام", "👍", "\U000e1000x", "a"]  # the fourth is no character in any font
    one = from_arrays(tokens, maps(4, 5), maps(2, 5, seed=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in (lens_figure(one), attention_maps([maps(5)], tokens, ["a"])):
            figure.savefig(io.BytesIO())
            labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
            assert labels[3:] == ["#3", "a"] and labels[0] in ("#0", "_ሰላም")
            assert "no installed font" in figure.get_suptitle() + figure.get_supxlabel()
            assert "\U000e1000" not in figure.get_suptitle()
            plt.close(figure)


def test_letters_come_from_another_installed_font() -> None:
    with plt.rc_context({"font.family": "DejaVu Sans Mono"}):
        assert drawable(["a"]) == (["a"], ["DejaVu Sans Mono"], "")
        labels, (first, *others), note = drawable(["aߒ"])  # N'Ko, which DejaVu Sans has
    assert labels == ["aߒ"] and first == "DejaVu Sans Mono" and others and not note


def test_an_emoji_without_a_font_needs_no_note() -> None:
    with plt.rc_context({"font.family": "DejaVu Sans Mono"}):
        labels, _, note = drawable(["▁🙏🏾", "a"])
    assert labels in (["▁(emoji)", "a"], ["▁🙏🏾", "a"]) and not note


def test_long_texts_name_some_tokens_and_stay_small() -> None:
    figure = lens_figure(data(128))
    assert 25 <= len(figure.axes[0].get_xticks()) <= 30
    assert figure.get_size_inches()[0] < 24
    plt.close(figure)


def test_one_token_can_be_drawn() -> None:
    figure = lens_figure(from_arrays(["a"], maps(1, 1), maps(1, 1)))
    figure.canvas.draw()
    assert "nothing to compare" in figure.get_suptitle()
    plt.close(figure)


def test_the_pair_is_asked_for_or_found() -> None:
    one = data(matches=[1, 3])
    assert chosen_pair(one, None, None) == one.widest()
    assert chosen_pair(one, None, 0) == (1, 0)
    assert chosen_pair(one, 3, None) == (3, 1)
    assert chosen_pair(one, 0, None) == (0, one.widest()[1])
    assert chosen_pair(one, -1, -1) == (3, 1)
    for wrong in ((4, 0), (0, 2), (None, 2), (None, -3)):
        with pytest.raises(CometError, match="must be from 0"):
            chosen_pair(one, *wrong)
    with pytest.raises(CometError, match="step is 1"):
        chosen_pair(one, 0, 0, 1)


def test_the_table_of_layers_frames_the_matches_and_the_pair() -> None:
    one = data(matches=[1, 3])
    figure = lens_figure(one, 2, 0)
    (table,) = (axes for axes in figure.axes if axes.get_xlabel() == "teacher layer")
    assert np.asarray(table.images[0].get_array()) == pytest.approx(one.js[-1])
    frames = [
        (round(p.get_x() + p.get_width() / 2), round(p.get_y() + 0.46)) for p in table.patches
    ]
    assert frames == [(1, 0), (3, 1), (2, 0)]
    assert len(table.texts) == 8 and table.texts[0].get_text() == f"{one.js[-1, 0, 0]:.2f}"
    many = lens_figure(from_arrays(["a", "b"], maps(24, 2), maps(6, 2)))
    (table,) = (axes for axes in many.axes if axes.get_xlabel() == "teacher layer")
    assert not table.texts
    alone = lens_figure(from_arrays(["a", "b"], maps(1, 2), maps(1, 2)))
    assert not [axes for axes in alone.axes if axes.get_xlabel() == "teacher layer"]
    plt.close("all")


def test_the_lower_rows_hold_entropies_answers_and_occlusion() -> None:
    answers = Answers(("no", "yes"), np.array([0.3, 0.7]), np.array([[0.6, 0.4]]))
    occlusion = Occlusion(np.linspace(-1, 1, 7), np.zeros((1, 7)))
    one = replace(data(), answers=answers, occlude=lambda: occlusion)
    figure = lens_figure(one)
    titles = {axes.get_title(loc="left").partition(",")[0]: axes for axes in figure.axes}
    heights = [bar.get_height() for bar in titles["entropy"].patches]
    assert heights == pytest.approx([*one.teacher_entropy, *one.student_entropy[0]])
    assert [bar.get_width() for bar in titles["what they answer"].patches] == [0.3, 0.7, 0.6, 0.4]
    lost = titles["what the answer loses when hidden"]
    assert [bar.get_height() for bar in lost.patches[:7]] == pytest.approx(occlusion.teacher)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # room for labels as long as these
        figure.canvas.draw()
    low = [a.get_position() for n, a in titles.items() if n in ("entropy", "what they answer")]
    assert max(place.x1 for place in low) > 0.9, "the lower row leaves room empty"
    sizes = [t.get_fontsize() for axes in figure.axes for t in axes.get_xticklabels()]
    assert min(sizes) >= 9
    plt.close(figure)


def test_tables_stand_side_by_side() -> None:
    tables = {"before": np.arange(8.0).reshape(2, 4), "after": np.ones((2, 4))}
    figure = layer_tables(tables, [1, 3], "what changed")
    assert [axes.get_title() for axes in figure.axes] == ["before", "after"]
    assert figure.axes[0].texts[6].get_text() == "6.00"
    scales = [axes.images[0].get_clim() for axes in figure.axes]
    assert scales == [(0, 7), (0, 7)], "the tables have one scale"
    assert [(p.get_x(), p.get_y()) for p in figure.axes[1].patches] == [(0.54, -0.46), (2.54, 0.54)]
    assert figure.get_suptitle() == "what changed"
    plt.close(figure)
