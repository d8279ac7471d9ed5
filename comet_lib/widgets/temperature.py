"""One slider, temperature: how a teacher's soft targets flatten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets
import numpy as np
from matplotlib.figure import Figure

from comet_lib.plots import soft_target_bars
from comet_lib.widgets.view import Built, View


def soften(logits: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(logits / T) over the last axis (Hinton et al. 2015, eq. 1)."""
    scaled = np.asarray(logits, dtype=float) / temperature
    scaled -= scaled.max(-1, keepdims=True)
    return np.exp(scaled) / np.exp(scaled).sum(-1, keepdims=True)


class TemperatureView(View):
    """Logits (C,) of one text and their softmax at the temperature of the slider.

    ``temperature`` (0.5 to 8) can be read and set; ``probabilities`` follows it.
    """

    def __init__(
        self, logits: Sequence[float], labels: Sequence[str], temperature: float = 1.0
    ) -> None:
        self.logits, self.labels = np.asarray(logits, dtype=float), list(labels)
        whole = {"description_width": "initial"}  # or the slider's name is cut off
        slider = ipywidgets.FloatSlider(value=temperature, min=0.5, max=8.0, step=0.5, style=whole)
        super().__init__(temperature=slider)

    @property
    def probabilities(self) -> np.ndarray:
        """(C,) soft targets at the present temperature."""
        return soften(self.logits, self.temperature)

    def build(self) -> Built:
        both = {"T = 1": soften(self.logits, 1.0), "slider": self.probabilities}
        figure = soft_target_bars(both, self.labels, " ")
        (axes,) = figure.axes
        bars: Any = axes.containers[1]
        self._values: list[Any] = axes.texts[len(self.labels) :]
        self._legend: Any = axes.get_legend()
        return figure, [*bars, *self._values, self._legend, axes.set_title(" ", loc="left")]

    def move(self, figure: Figure) -> None:
        (axes,) = figure.axes
        for bar, value, p in zip(axes.containers[1], self._values, self.probabilities, strict=True):
            bar.set_height(p)
            value.xy = (value.xy[0], p)
            value.set_text(f"{p:.2f}")
        self._legend.get_texts()[1].set_text(f"T = {self.temperature:g}")
        axes.set_title(self.describe(), loc="left")

    def describe(self) -> str:
        p = self.probabilities
        entropy = float(-(p * np.log(np.maximum(p, 1e-12))).sum())
        return f"At T = {self.temperature:g} the soft targets hold {entropy:.2f} nats of entropy"
