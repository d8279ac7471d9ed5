"""One slider, the number of labels: what soft targets are worth at that budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from comet_lib.errors import CometError
from comet_lib.plots import BLUE, GREEN, GREY, ORANGE, PINK
from comet_lib.widgets.view import Built, View, bare, log_ticks

STEPS = 24  # stops of the slider between the smallest and the largest budget
PALETTE = (PINK, ORANGE, GREEN, BLUE, GREY)


def at_budget(labels: float, budgets: np.ndarray, scores: np.ndarray) -> float:
    """The score at ``labels``, on straight lines between the measured budgets in log(labels)."""
    return float(np.interp(np.log(labels), np.log(budgets), scores))


def labels_needed(score: float, budgets: np.ndarray, scores: np.ndarray) -> float | None:
    """The least number of labels at which the curve reaches ``score``; None if it never does."""
    stops = np.geomspace(budgets[0], budgets[-1], 400)
    reached = np.flatnonzero([at_budget(n, budgets, scores) >= score - 1e-9 for n in stops])
    return float(stops[reached[0]]) if len(reached) else None


class LabelBudgetView(View):
    """Learning curves, and what they say at the number of labels of the slider.

    ``budgets`` (K,) are rising numbers of labels. ``curves`` maps a name to its scores (K,) in
    percent: the first is the baseline with only labels, the second is the one whose gain the
    sentence states. ``intervals`` maps names to (K, 2). ``labels`` can be read and set.

    Raises:
        CometError: fewer than two budgets or curves, budgets that do not rise, a curve of another
            length.
    """

    def __init__(
        self,
        budgets: Sequence[int],
        curves: Mapping[str, Sequence[float]],
        intervals: Mapping[str, Sequence[Sequence[float]]] | None = None,
        score: str = "weighted F1",
    ) -> None:
        self.budgets = np.asarray(budgets, dtype=float)
        self.curves = {name: np.asarray(c, dtype=float) for name, c in curves.items()}
        self.intervals = {n: np.asarray(i, dtype=float) for n, i in (intervals or {}).items()}
        self.score = score
        if len(self.budgets) < 2 or self.budgets[0] < 1 or (np.diff(self.budgets) <= 0).any():
            raise CometError(f"budgets are {list(budgets)}: give two or more that grow, from 1 up")
        if len(self.curves) < 2:
            raise CometError("curves: give two or more, the baseline first")
        for name, curve in self.curves.items():
            if curve.shape != self.budgets.shape:
                raise CometError(
                    f"curve {name!r} has {curve.size} scores for {len(self.budgets)} budgets"
                )
        between = np.geomspace(self.budgets[0], self.budgets[-1], STEPS).round()
        stops = sorted({int(n) for n in (*between, *self.budgets)})
        slider = ipywidgets.SelectionSlider(options=stops, continuous_update=False)
        super().__init__(labels=slider)

    @property
    def scores(self) -> dict[str, float]:
        """The score of each curve at the present number of labels."""
        return {n: at_budget(self.labels, self.budgets, c) for n, c in self.curves.items()}

    @property
    def gain(self) -> float:
        """Points that the second curve lies above the first."""
        first, second = list(self.scores.values())[:2]
        return second - first

    def build(self) -> Built:
        figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
        for (name, curve), color in zip(self.curves.items(), PALETTE, strict=False):
            axes.plot(self.budgets, curve, color=color, marker="o", label=name)
            if name in self.intervals:
                low, high = self.intervals[name].T
                axes.fill_between(self.budgets, low, high, color=color, alpha=0.15, linewidth=0)
        log_ticks(axes, self.budgets)
        axes.set(xlabel="labeled tweets (log scale)", ylabel=f"{self.score}, percent")
        axes.legend(frameon=False)
        bare(axes)
        self._place = axes.axvline(self.labels, color=GREY, linewidth=1, linestyle="--")
        (self._gap,) = axes.plot([self.labels] * 2, [axes.dataLim.y0] * 2, "black", linewidth=3)
        return figure, [self._place, self._gap, axes.set_title(" ", loc="left")]

    def move(self, figure: Figure) -> None:
        (first, low), (second, high) = list(self.scores.items())[:2]
        self._place.set_xdata([self.labels] * 2)
        self._gap.set_data([self.labels] * 2, [low, high])
        figure.axes[0].set_title(
            f"{self.labels:,} labels: {second} {high:.1f}, {first} {low:.1f}", loc="left"
        )

    def describe(self) -> str:
        (first, low), (second, high) = list(self.scores.items())[:2]
        measured = "" if self.labels in self.budgets else " (between two measured budgets)"
        text = (
            f"With {self.labels:,} labels{measured}, {second} gives {high:.1f} and {first} "
            f"{low:.1f}: {self.gain:+.1f} points"
        )
        if self.gain <= 0:
            return text
        curve = next(iter(self.curves.values()))
        needed = labels_needed(high, self.budgets, curve)
        if needed is None:
            return f"{text}, more than {first} reaches with all {self.budgets[-1]:,.0f}"
        return f"{text}, for which {first} needs about {needed:,.0f} labels"
