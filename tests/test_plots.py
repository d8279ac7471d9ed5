"""Figures of maps show any token unchanged."""

import numpy as np

from comet_lib.plots import attention_maps, map_grid

TOKENS = ["$\\frac{$", "a_{", "ẹ̀", "</s>"]  # the first two are broken formulas


def test_no_token_is_taken_for_a_formula():
    one = np.full((4, 4), 0.25)
    for figure in (
        attention_maps([one, one], TOKENS, ["teacher", "student"]),
        map_grid([one], ["layer 0"], TOKENS),
    ):
        figure.canvas.draw()  # mathtext would raise here
        shown = [label.get_text() for label in figure.axes[0].get_xticklabels()]
        assert shown == TOKENS
