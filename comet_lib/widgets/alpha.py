"""One slider, alpha: which term of the hybrid loss moves the student."""

from __future__ import annotations

from typing import Any

import ipywidgets
import numpy as np
from matplotlib.figure import Figure

from comet_lib.errors import CometError
from comet_lib.plots import BLUE, GREEN, ORANGE
from comet_lib.widgets.view import LABEL_BOX, Built, View, bars_and_curves


def attention_share(alpha: float | np.ndarray, soft: float, attention: float) -> np.ndarray:
    """Percent of the gradient that comes from the attention term.

    ``soft`` and ``attention`` are the gradient norms of the two unweighted terms; the hybrid loss
    weighs them with alpha and 1 - alpha. 0 if neither term pulls.
    """
    pulls = (1 - np.asarray(alpha, dtype=float)) * attention
    total = pulls + np.asarray(alpha, dtype=float) * soft
    return 100 * np.divide(pulls, total, out=np.zeros_like(total), where=total > 0)


def balance(soft: float, attention: float) -> float:
    """The alpha at which both terms pull equally hard: alpha s = (1 - alpha) a."""
    return attention / (soft + attention)


class AlphaView(View):
    """Gradient norms of the soft targets and of the two attention terms -> shares by alpha.

    ``soft``, ``mse`` and ``kl`` are norms of each term's gradient on the student's weights, without
    a weight. ``alpha`` (0 to 1) can be read and set; ``shares`` follows it.
    """

    def __init__(self, soft: float, mse: float, kl: float, alpha: float = 0.5) -> None:
        if min(soft, mse, kl) < 0 or soft == 0:
            raise CometError(
                f"gradient norms are {soft}, {mse} and {kl}: none may be negative, and that of "
                "the soft targets must be above 0."
            )
        self.soft, self.norms = float(soft), {"MSE": float(mse), "row-wise KL": float(kl)}
        slider = ipywidgets.FloatSlider(
            value=alpha, min=0.0, max=1.0, step=0.005, readout_format=".3f"
        )
        super().__init__(alpha=slider)

    @property
    def shares(self) -> dict[str, float]:
        """Percent of the gradient from the attention term, by its kind; the rest is from the soft
        targets."""
        return {k: float(attention_share(self.alpha, self.soft, n)) for k, n in self.norms.items()}

    def build(self) -> Built:
        figure, bars, curves = bars_and_curves((1.25, 1), left=0.13, bottom=0.17)
        self._parts: dict[str, tuple[Any, ...]] = {}
        grid = np.linspace(0, 1, 201)
        for y, (kind, color) in enumerate(zip(self.norms, (ORANGE, BLUE), strict=True)):
            shares = attention_share(grid, self.soft, self.norms[kind])
            curves.plot(grid, shares, color=color, label=kind)
            text = {"va": "center", "fontsize": 9, "bbox": LABEL_BOX}
            self._parts[kind] = (
                *bars.barh(kind, 100, color=GREEN, height=0.55),
                *bars.barh(kind, 0, left=100, color=color, height=0.55),
                bars.text(2, y, "", ha="left", **text),
                bars.text(98, y, "", ha="right", **text),
                *curves.plot([], [], "o", color=color),
            )
        bars.set(xlim=(0, 100), xlabel="percent of the gradient")
        bars.invert_yaxis()
        self._place = curves.axvline(self.alpha, color="black", linewidth=0.8, linestyle=":")
        curves.set(xlim=(0, 1), ylim=(-3, 103), xlabel="alpha")
        curves.set_title("attention's share, percent", loc="left")
        curves.legend(frameon=False, fontsize=9)
        *_, dots = zip(*self._parts.values(), strict=True)
        parts = [part for kind in self._parts.values() for part in kind[:-1]]
        return figure, [*parts, bars.set_title(" ", loc="left"), self._place, *dots]

    def move(self, figure: Figure) -> None:
        for kind, share in self.shares.items():
            soft, attention, left, right, dot = self._parts[kind]
            soft.set_width(100 - share)
            attention.set(x=100 - share, width=share)
            left.set_text(f"soft targets {100 - share:.1f} %")
            right.set_text(f"attention {share:.1f} %")
            dot.set_data([self.alpha], [share])
        self._place.set_xdata([self.alpha] * 2)
        figure.axes[0].set_title(f"alpha = {self.alpha:g}", loc="left")

    def describe(self) -> str:
        mse, kl = self.shares.values()
        return (
            f"At alpha = {self.alpha:g} the attention term gives {mse:.1f} % of the gradient as "
            f"MSE and {kl:.1f} % as row-wise KL; the rest comes from the soft targets"
        )
