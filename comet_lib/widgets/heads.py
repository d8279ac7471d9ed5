"""Two choices, layer and head: where one head of a model looks in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets
import numpy as np
from matplotlib.figure import Figure

from comet_lib.errors import CometError
from comet_lib.plots import attention_maps
from comet_lib.widgets.view import Built, View


class HeadView(View):
    """The map of one head in one sentence, chosen by layer and head.

    ``maps`` takes a layer number to an array (H, L, L) whose rows sum to 1, as
    ``capture_maps(..., heads=True)`` gives it for one sentence; ``tokens`` has L strings.
    ``layer`` and ``head`` can be read and set; ``map`` (L, L) and ``entropy`` (mean over the rows,
    in nats) follow them. The colors mean the same for all heads.

    Raises:
        CometError: no layer, a map that is not (H, L, L), or a number of tokens other than L.
    """

    def __init__(
        self,
        maps: Mapping[int, Any],
        tokens: Sequence[str],
        layer: int | None = None,
        head: int = 0,
    ) -> None:
        self.tokens = list(tokens)
        self.maps = {int(k): np.asarray(m, dtype=float) for k, m in sorted(maps.items())}
        length = len(self.tokens)
        if not self.maps:
            raise CometError("maps is empty: give the maps of at least one layer")
        for number, one in self.maps.items():
            if one.ndim != 3 or one.shape[1:] != (length, length):
                raise CometError(
                    f"the map of layer {number} has shape {one.shape}; for {length} tokens it "
                    f"must be (heads, {length}, {length}): pass one sentence and all its tokens"
                )
        heads = range(min(len(one) for one in self.maps.values()))
        layer = next(iter(self.maps)) if layer is None else layer
        if layer not in self.maps or head not in heads:
            raise CometError(
                f"layer {layer}, head {head} is not there: layers are {list(self.maps)}, heads 0 "
                f"to {len(heads) - 1}"
            )
        super().__init__(
            layer=ipywidgets.SelectionSlider(options=list(self.maps), value=layer),
            head=ipywidgets.SelectionSlider(options=list(heads), value=head),
        )

    @property
    def map(self) -> np.ndarray:
        """(L, L) attention of the chosen head; row: who looks, column: who is looked at."""
        return self.maps[self.layer][self.head]

    @property
    def entropy(self) -> float:
        """Mean entropy of the rows in nats: 0 is one token, log L is all tokens equally."""
        p = self.map
        return float(-(p * np.log(np.maximum(p, 1e-12))).sum(-1).mean())

    def build(self) -> Built:
        figure = attention_maps([self.map], self.tokens, [" "])
        axes = figure.axes[0]
        axes.images[0].set_clim(0, max(m.max() for m in self.maps.values()))
        return figure, [axes.images[0], axes.title]

    def move(self, figure: Figure) -> None:
        axes = figure.axes[0]
        axes.images[0].set_data(self.map)
        axes.set_title(f"layer {self.layer}, head {self.head}: entropy {self.entropy:.2f} nats")

    def describe(self) -> str:
        most = self.tokens[int(self.map.mean(0).argmax())]
        return (
            f"Layer {self.layer}, head {self.head}: a row spreads over about "
            f"{np.exp(self.entropy):.1f} of {len(self.tokens)} tokens; "
            f"the sentence looks most at {most!r}"
        )
