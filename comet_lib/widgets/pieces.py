"""One slider, the pieces that stay in the vocabulary: coverage against size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ipywidgets
import numpy as np
from matplotlib.figure import Figure

from comet_lib.errors import CometError
from comet_lib.plots import BLUE, GREY, ORANGE
from comet_lib.widgets.view import LABEL_BOX, Built, View, bars_and_curves


class PiecesView(View):
    """Coverage by language at some numbers of kept pieces -> coverage beside parameters.

    ``kept`` are the numbers of pieces, rising, up to the whole vocabulary; ``coverage`` has as many
    percentages for each language. A model has ``rest`` parameters without its embedding table, and
    ``width`` for each piece. ``pieces`` (a number of ``kept``) can be read and set; ``parameters``
    and ``covered`` follow it.
    """

    def __init__(
        self,
        kept: Sequence[int],
        coverage: Mapping[str, Sequence[float]],
        rest: int,
        width: int,
        pieces: int | None = None,
    ) -> None:
        self.kept = [int(k) for k in kept]
        if not self.kept or self.kept != sorted(set(self.kept)):
            raise CometError("kept must be numbers of pieces in rising order, each once")
        if not coverage or any(len(row) != len(self.kept) for row in coverage.values()):
            raise CometError(f"coverage needs {len(self.kept)} percentages for each language")
        self.coverage = {name: np.asarray(row, dtype=float) for name, row in coverage.items()}
        self.rest, self.width = int(rest), int(width)
        chosen = self.kept[len(self.kept) // 2] if pieces is None else pieces
        options = [(f"{k:,}", k) for k in self.kept]
        super().__init__(pieces=ipywidgets.SelectionSlider(options=options, value=chosen))

    @property
    def parameters(self) -> int:
        """Parameters of the model with the chosen number of pieces."""
        return self.rest + self.width * self.pieces

    @property
    def covered(self) -> dict[str, float]:
        """Percent of each language's tokens whose piece is kept."""
        at = self.kept.index(self.pieces)
        return {name: float(row[at]) for name, row in self.coverage.items()}

    @property
    def least(self) -> str:
        """The language that is covered least."""
        return min(self.covered, key=lambda name: self.covered[name])

    def build(self) -> Built:
        figure, bars, curves = bars_and_curves((1, 1.2), left=0.07, bottom=0.18)
        self._bars = bars.barh(list(self.coverage), 0, height=0.6).patches
        self._values = [
            bars.text(2, name, "", va="center", fontsize=9, bbox=LABEL_BOX)
            for name in self.coverage
        ]
        bars.invert_yaxis()
        bars.set(xlim=(0, 100), xlabel="percent of the tokens covered")
        millions = (self.rest + self.width * np.array(self.kept)) / 1e6
        self._curves = [
            curves.plot(millions, row, linewidth=1.3)[0] for row in self.coverage.values()
        ]
        self._place = curves.axvline(millions[0], color="black", linewidth=0.8, linestyle=":")
        (self._dot,) = curves.plot([], [], "o", color=ORANGE)
        curves.set(xlabel="million parameters", ylim=(None, 102))
        titles = [axes.set_title(" ", loc="left") for axes in (bars, curves)]
        parts = [*self._bars, *self._values, *self._curves, self._place, self._dot]
        return figure, [*parts, *titles]

    def move(self, figure: Figure) -> None:
        covered, least, (bars, curves) = self.covered, self.least, figure.axes
        parts = zip(covered.items(), self._bars, self._values, self._curves, strict=True)
        for (name, value), bar, text, curve in parts:
            bar.set(width=value, color=ORANGE if name == least else BLUE)
            text.set_text(f"{value:.1f} %")
            curve.set_color(ORANGE if name == least else GREY)
        self._place.set_xdata([self.parameters / 1e6] * 2)
        self._dot.set_data([self.parameters / 1e6], [covered[least]])
        bars.set_title(f"{self.pieces:,} pieces", loc="left")
        curves.set_title(f"coverage, percent ({least} in orange)", loc="left")

    def describe(self) -> str:
        covered, whole = self.covered, self.rest + self.width * self.kept[-1]
        return (
            f"With {self.pieces:,} of {self.kept[-1]:,} pieces the model has {self.parameters:,} "
            f"parameters ({100 * self.parameters / whole:.0f} %); of the tokens it covers "
            f"{np.mean(list(covered.values())):.1f} % (mean over languages), and "
            f"{covered[self.least]:.1f} % in {self.least}, the least"
        )
