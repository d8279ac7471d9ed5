"""One slider, the number of tweets scored: how the bootstrap interval narrows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from comet_lib.errors import CometError
from comet_lib.evaluation import f1_of_counts
from comet_lib.plots import BLUE, COLORS, GREY, ORANGE
from comet_lib.profiles import LABELS
from comet_lib.widgets.view import Built, View, bare, log_ticks

SIZES = (50, 100, 200, 400, 800, 1600, 3200, 6400)


def confusion(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """(labels, predictions) counts."""
    k = len(LABELS)
    cells = np.asarray(labels) * k + np.asarray(predictions)
    return np.bincount(cells, minlength=k * k).reshape(k, k)


def intervals_by_size(
    labels: np.ndarray,
    predictions: np.ndarray,
    sizes: Sequence[int],
    draws: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """(len(sizes), 2) low and high end, in percent, of the 95 % interval of weighted F1.

    As if ``size`` tweets were scored: each draw picks that many of the given ones, with
    replacement. Labels and predictions (N,) are integers in LABELS order.
    """
    if not len(labels) or len(labels) != len(predictions):
        raise CometError(
            f"{len(labels)} labels and {len(predictions)} predictions: give as many of both, "
            "and at least one"
        )
    rng, k = np.random.default_rng(seed), len(LABELS)
    share = confusion(labels, predictions).flatten() / len(labels)
    ends = []
    for size in sizes:
        counts = rng.multinomial(size, share, size=draws).reshape(draws, k, k)
        ends.append(np.percentile(f1_of_counts(counts), (2.5, 97.5)))
    return np.array(ends)


class BootstrapView(View):
    """Weighted F1 of one or two models and its 95 % interval, against the number of tweets.

    ``models`` gives names and predictions (N,) for the same ``labels`` (N,). ``tweets`` (one of
    ``SIZES``) can be read and set; ``intervals`` and ``width`` follow it.
    """

    def __init__(
        self,
        labels: np.ndarray,
        models: Mapping[str, np.ndarray],
        tweets: int = 400,
        draws: int = 1000,
        seed: int = 0,
    ) -> None:
        if not 1 <= len(models) <= 2:
            raise CometError(f"BootstrapView draws one or two models, not {len(models)}")
        self.bands = {
            name: intervals_by_size(labels, guess, SIZES, draws, seed)
            for name, guess in models.items()
        }
        self.scores = {
            name: float(f1_of_counts(confusion(labels, guess))) for name, guess in models.items()
        }
        super().__init__(tweets=ipywidgets.SelectionSlider(options=SIZES, value=tweets))

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Low and high end, in percent, of each model's interval at the present size."""
        at = SIZES.index(self.tweets)
        return {name: (float(b[at, 0]), float(b[at, 1])) for name, b in self.bands.items()}

    @property
    def width(self) -> float:
        """Points from the low to the high end of the first model's interval."""
        low, high = next(iter(self.intervals.values()))
        return high - low

    @property
    def apart(self) -> bool:
        """Whether the intervals of the two models do not overlap."""
        ends = list(self.intervals.values())
        return len(ends) == 2 and (ends[0][1] < ends[1][0] or ends[1][1] < ends[0][0])

    def build(self) -> Built:
        figure, axes = plt.subplots(figsize=(7.5, 3.4))
        figure.subplots_adjust(left=0.09, right=0.8, bottom=0.16, top=0.88)
        self._ends = {}
        best = max(self.scores, key=lambda name: self.scores[name])
        for (name, band), spare in zip(self.bands.items(), (ORANGE, BLUE), strict=False):
            color = COLORS.get(name.partition(",")[0], spare)
            axes.fill_between(SIZES, band[:, 0], band[:, 1], color=color, alpha=0.25)
            axes.plot(SIZES, np.full(len(SIZES), self.scores[name]), color=color, linewidth=1)
            (self._ends[name],) = axes.plot(
                [self.tweets] * 2, [self.scores[name]] * 2, color=color, linewidth=5, alpha=0.8
            )
            side = "bottom" if name == best else "top"  # scores may be almost the same
            axes.text(SIZES[-1] * 1.15, self.scores[name], name, color="black", va=side)
        self._place = axes.axvline(self.tweets, color=GREY, linestyle=":", linewidth=1)
        log_ticks(axes, SIZES)
        axes.set_xlim(SIZES[0] * 0.9, SIZES[-1] * 1.1)
        axes.set(xlabel="tweets scored (log scale)", ylabel="weighted F1, percent")
        bare(axes)
        title = axes.set_title(" ", loc="left", fontsize=11)
        return figure, [self._place, *self._ends.values(), title]

    def move(self, figure: Figure) -> None:
        self._place.set_xdata([self.tweets] * 2)
        for name, ends in self.intervals.items():
            self._ends[name].set_data([self.tweets] * 2, ends)
        figure.axes[0].set_title(self._title(), loc="left", fontsize=11)

    def _title(self) -> str:
        text = f"{self.tweets:,} tweets: the 95 % interval is {self.width:.1f} points wide"
        if len(self.bands) == 2:
            text += ", the two are apart" if self.apart else ", the two overlap"
        return text

    def describe(self) -> str:
        parts = [
            f"{name} lies between {low:.1f} and {high:.1f}"
            for name, (low, high) in self.intervals.items()
        ]
        return f"With {self.tweets:,} tweets " + " and ".join(parts)
