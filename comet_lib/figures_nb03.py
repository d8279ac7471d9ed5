"""The figure of notebook 03: many maps in one grid. Arrays in."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from comet_lib.plots import MAP_COLOURS


def map_grid(
    maps: Sequence[np.ndarray],
    titles: Sequence[str],
    tokens: Sequence[str],
    title: str = "",
    columns: int = 3,
) -> Figure:
    """Maps (L, L) of one sentence on one colour scale; tokens on the outer axes alone."""
    columns = min(columns, len(maps))
    rows = -(-len(maps) // columns)
    figure, panels = plt.subplots(
        rows,
        columns,
        figsize=(3.0 * columns + 1, 2.9 * rows + 0.8),
        layout="constrained",
        squeeze=False,
    )
    top = max(float(m.max()) for m in maps)
    places = range(len(tokens))
    for number, axes in enumerate(panels.flat):
        if number >= len(maps):
            axes.axis("off")
            continue
        image = axes.imshow(maps[number], cmap=MAP_COLOURS, vmin=0, vmax=top)
        axes.set_title(titles[number], fontsize=10)
        below = number + columns < len(maps)  # another panel stands below
        axes.set_xticks(places, [] if below else tokens, rotation=90, fontsize=8, parse_math=False)
        axes.set_yticks(
            places, tokens if number % columns == 0 else [], fontsize=8, parse_math=False
        )
    figure.colorbar(image, ax=panels, shrink=0.6, label="attention (each row sums to 1)")
    figure.suptitle(title, fontsize=11)
    return figure
