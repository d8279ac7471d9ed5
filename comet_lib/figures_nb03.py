"""Figures of notebook 03: many maps in one grid, and layer x layer tables. Arrays in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from comet_lib.plots import MAP_COLOURS, ORANGE


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


def layer_tables(
    tables: Mapping[str, np.ndarray], matches: Sequence[int], title: str = ""
) -> Figure:
    """Tables (student layers, teacher layers) side by side; the matched cells are framed.

    ``matches[i]`` is the teacher layer that student layer i learns from. Each table has its own
    colour scale; few cells also carry their number.
    """
    students, teachers = next(iter(tables.values())).shape
    figure, panels = plt.subplots(
        1,
        len(tables),
        figsize=(min(max(3.4, 0.5 * teachers + 1.6), 6) * len(tables), 0.5 * students + 1.9),
        layout="constrained",
        squeeze=False,
    )
    for axes, (name, table) in zip(panels[0], tables.items(), strict=True):
        axes.imshow(table, cmap="cividis", aspect="auto")
        middle = (table.min() + table.max()) / 2
        for (i, j), value in np.ndenumerate(table):
            if teachers <= 12:
                colour = "white" if value < middle else "black"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=9)
        for i, j in enumerate(matches):
            frame = Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, fill=False, edgecolor=ORANGE, lw=3)
            axes.add_patch(frame)
        axes.set_xticks(range(teachers))
        axes.set_yticks(range(students))
        axes.set_xlabel("teacher layer")
        axes.set_title(name, fontsize=10)
    panels[0][0].set_ylabel("student layer")
    figure.suptitle(title, fontsize=11)
    return figure
