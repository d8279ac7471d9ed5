"""One slider, alpha: which term of the hybrid loss moves the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets
import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from comet_lib.errors import CometError
from comet_lib.plots import BLUE, GREEN, ORANGE
from comet_lib.widgets.view import View


def attention_share(alpha: float | np.ndarray, soft: float, attention: float) -> np.ndarray:
    """Percent of the gradient that comes from the attention term.

    ``soft`` and ``attention`` are the gradient norms of the two terms alone; the hybrid loss
    weighs them with alpha and 1 - alpha. 0 where neither term pulls.
    """
    pulls = (1 - np.asarray(alpha, dtype=float)) * attention
    total = pulls + np.asarray(alpha, dtype=float) * soft
    return 100 * np.divide(pulls, total, out=np.zeros_like(total), where=total > 0)


def balance(soft: float, attention: float) -> float:
    """The alpha at which both terms pull with the same strength: alpha s = (1 - alpha) a."""
    return attention / (soft + attention)


class AlphaView(View):
    """Gradient norms of the soft targets and of the two attention terms -> shares by alpha.

    ``soft``, ``mse`` and ``kl`` are norms of the gradients on the student's weights, each term
    alone and without a weight. ``alpha`` (0 to 1) is readable and settable; ``shares`` follows it.
    """

    def __init__(self, soft: float, mse: float, kl: float, alpha: float = 0.5) -> None:
        if min(soft, mse, kl) < 0 or soft == 0:
            raise CometError(
                f"gradient norms are {soft}, {mse} and {kl}: none may be negative, and that of "
                "the soft targets must be above 0."
            )
        self.soft, self.norms = float(soft), {"MSE": float(mse), "row-wise KL": float(kl)}
        slider = ipywidgets.FloatSlider(
            value=alpha, min=0.0, max=1.0, step=0.005, description="alpha", readout_format=".3f"
        )
        super().__init__(alpha=slider)

    @property
    def shares(self) -> Mapping[str, float]:
        """Percent of the gradient from the attention term, by its kind; the rest is the soft
        targets'."""
        return {
            kind: float(attention_share(self.alpha, self.soft, norm))
            for kind, norm in self.norms.items()
        }

    def build(self) -> tuple[Figure, Sequence[Artist]]:
        figure = Figure(figsize=(8.5, 3.1))
        bars, curves = figure.subplots(1, 2, width_ratios=(1.25, 1))
        figure.subplots_adjust(left=0.13, right=0.98, top=0.86, bottom=0.17, wspace=0.25)
        colours = dict(zip(self.norms, (ORANGE, BLUE), strict=True))
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
        self._bars: dict[str, tuple[Any, ...]] = {}
        for y, kind in enumerate(self.norms):
            self._bars[kind] = (
                *bars.barh(kind, 100, color=GREEN, height=0.55),
                *bars.barh(kind, 0, left=100, color=colours[kind], height=0.55),
                bars.text(2, y, "", va="center", ha="left", fontsize=9, bbox=box),
                bars.text(98, y, "", va="center", ha="right", fontsize=9, bbox=box),
            )
        bars.set(xlim=(0, 100), xlabel="percent of the gradient")
        bars.invert_yaxis()
        grid = np.linspace(0, 1, 201)
        self._dots: dict[str, Any] = {}
        for kind, norm in self.norms.items():
            curves.plot(
                grid, attention_share(grid, self.soft, norm), color=colours[kind], label=kind
            )
            (self._dots[kind],) = curves.plot([], [], "o", color=colours[kind])
        self._place = curves.axvline(self.alpha, color="black", linewidth=0.8, linestyle=":")
        curves.set(xlim=(0, 1), ylim=(-3, 103), xlabel="alpha")
        curves.set_title("attention's share, percent", loc="left")
        curves.legend(frameon=False, fontsize=9)
        for axes in (bars, curves):
            axes.spines[["top", "right"]].set_visible(False)
        parts = [part for kind in self._bars.values() for part in kind]
        return figure, [
            *parts,
            bars.set_title(" ", loc="left"),
            self._place,
            *self._dots.values(),
        ]

    def move(self, figure: Figure, moving: Sequence[Artist]) -> None:
        for kind, share in self.shares.items():
            soft, attention, left, right = self._bars[kind]
            soft.set_width(100 - share)
            attention.set_x(100 - share)
            attention.set_width(share)
            left.set_text(f"soft targets {100 - share:.1f} %")
            right.set_text(f"attention {share:.1f} %")
            self._dots[kind].set_data([self.alpha], [share])
        self._place.set_xdata([self.alpha] * 2)
        figure.axes[0].set_title(f"alpha = {self.alpha:g}", loc="left")

    def describe(self) -> str:
        mse, kl = self.shares.values()
        return (
            f"At alpha = {self.alpha:g} the attention term gives {mse:.1f} % of the gradient as "
            f"MSE and {kl:.1f} % as row-wise KL; the rest comes from the soft targets"
        )
