"""Figures take any token as it stands, and their titles say what they show."""

import json

import numpy as np
from matplotlib.colors import to_rgba

from comet_lib.plots import COLORS, attention_maps, map_grid, result_bars, training_curves
from comet_lib.profiles import ASSETS

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


def test_bars_are_the_scores_in_the_models_colors():
    report = json.loads((ASSETS / "reference_report.json").read_text(encoding="utf-8"))
    (axes,) = result_bars(report).axes
    rows = [*report["rows"], *report["paper"]]
    assert [bar.get_width() for bar in axes.patches] == [r["weighted_f1"]["mean"] for r in rows]
    assert axes.patches[0].get_facecolor() == to_rgba(COLORS["tfidf"])
    assert axes.get_title(loc="left") == "Best model of ours: tfidf both forms, 70.5"
    low, high = report["rows"][3]["ci95"]["mean"]
    assert axes.collections[0].get_segments()[3].tolist() == [[low, 3], [high, 3]]


def test_an_interval_wider_than_the_bars_is_shown_whole():
    report = json.loads((ASSETS / "reference_report.json").read_text(encoding="utf-8"))
    report["rows"] = report["rows"][:2]
    report["rows"][0]["ci95"]["mean"] = [10.0, 96.0]
    left, right = result_bars(report | {"paper": []}).axes[0].get_xlim()
    assert left < 10.0 and right > 97.0


def test_curves_name_where_the_first_term_ends():
    rows = [
        {"step": 1, "loss": 3.0, "soft_targets": 2.0, "attention_kl": 1.0, "learning_rate": 1.0},
        {"step": 2, "epoch": 1.0, "eval_loss": 1.0},
    ]
    logs = {"stage1": [*rows, {"step": 3, "soft_targets": 0.5}], "stage2": [{"step": 1}]}
    full, empty = training_curves(logs).axes  # a short run may have logged no term
    assert full.get_title(loc="left") == "stage1: soft targets 2.00 → 0.50"
    shown = {line.get_label(): len(line.get_xdata()) for line in full.lines}
    assert shown == {"soft targets": 2, "attention kl": 1}
    assert empty.get_title(loc="left") == "stage2" and not empty.lines
