"""The lens as a figure: teacher, student and their signed difference on one token axis, and below
them the distance of each student layer from each teacher layer."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import FuncNorm, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from comet_lib.errors import CometError
from comet_lib.lens.data import LensData
from comet_lib.plots import DIFFERENCE_COLOURS, GREY, MAP_COLOURS, ORANGE, PINK, drawable

NAMED = 40  # tokens written along an axis, at most
NUMBERED = 12  # teacher layers of a table that shows its numbers, at most


def lens_figure(
    data: LensData,
    teacher_layer: int | None = None,
    student_layer: int | None = None,
    step: int = -1,
    teacher_head: int = -1,
    student_head: int = -1,
) -> Figure:
    """Three maps of one pair of layers (default: the matched pair that differs most), and the
    table of all pairs (head means) if there is more than one.

    ``step`` counts from 0 in ``data.steps``; head -1 is the mean. Colour grows with the square
    root of the attention, so that small numbers show too; the colour bars give the numbers.
    Errors as in :func:`chosen_pair`.
    """
    teacher_layer, student_layer = chosen_pair(data, teacher_layer, student_layer, step)
    teacher, student = data.pair(teacher_layer, student_layer, step, teacher_head, student_head)
    panels = (
        (_name("teacher", teacher_layer, teacher_head), teacher),
        (_name("student", student_layer, student_head), student),
        ("student − teacher", student - teacher),
    )
    top = max(float(teacher.max()), float(student.max()), 1e-9)
    limit = max(float(np.abs(student - teacher).max()), 1e-9)
    every = -(-len(data.tokens) // NAMED)
    places = list(range(0, len(data.tokens), every))
    labels, families, note = drawable(data.tokens)
    names = [labels[i] for i in places]
    text: dict[str, Any] = {"parse_math": False, "fontfamily": families}

    side = float(np.clip(0.2 * len(data.tokens) + 0.6, 2.8, 7))
    students, teachers = data.js.shape[1:]
    low = 0.3 * students + 0.9 if students * teachers > 1 else 0.0
    figure = plt.figure(figsize=(3 * side + 1.6, side + 1.2 + low), layout="constrained")
    grid = figure.add_gridspec(2 if low else 1, 3, height_ratios=[side, low] if low else None)
    row = [figure.add_subplot(grid[0, i]) for i in range(3)]
    for number, (axes, (name, one)) in enumerate(zip(row, panels, strict=True)):
        image = axes.imshow(
            one,
            cmap=DIFFERENCE_COLOURS if number == 2 else MAP_COLOURS,
            norm=_signed_root(limit) if number == 2 else PowerNorm(0.5, 0, top),
            interpolation="nearest",
        )
        _hatch(axes, data.mask)
        axes.set_title(name)
        axes.set_xticks(places, names, rotation=90, fontsize=8, **text)
        axes.set_yticks(places, names if number == 0 else [], fontsize=8, **text)
        axes.set_xlabel("looked at")
        axes.tick_params(length=0, pad=2)
        if number:
            ends = [-limit, -limit / 4, 0, limit / 4, limit] if number == 2 else [0, top / 4, top]
            bar = figure.colorbar(image, ax=axes, shrink=0.7, ticks=ends, format="%.2g")
            bar.ax.minorticks_off()
            bar.outline.set_visible(False)
    row[0].set_ylabel("looking (each row sums to 1)")
    if low:
        axes = figure.add_subplot(grid[1, : 1 if teachers <= NUMBERED else 2])
        draw_table(axes, data.js[step], data.matches)
        axes.set_ylabel("student layer")
        axes.set_title(
            "all layers, nats apart (JS); orange: matched; pink: shown above",
            loc="left",
            fontsize=9,
        )
        axes.add_patch(_frame(teacher_layer, student_layer, 0.39, PINK))
    sentence = replace(data, tokens=tuple(labels)).finding(teacher_layer, student_layer, step)
    width = int(14 * (3 * side + 1))
    lines = [textwrap.fill(line, width) for line in (sentence, note) if line]
    figure.suptitle("\n".join(lines), **text)
    return figure


def chosen_pair(
    data: LensData, teacher_layer: int | None, student_layer: int | None, step: int = -1
) -> tuple[int, int]:
    """The pair of layers to show. None leaves the choice to the data; negative counts from the top.

    Raises:
        CometError: a layer or step that ``data`` does not have.
    """
    steps, students, teachers = data.js.shape
    if student_layer is None:
        student_layer = data.widest()[1]
        if teacher_layer is not None and teacher_layer % teachers in data.matches:
            student_layer = data.matches.index(teacher_layer % teachers)
    for who, index, count in (
        ("teacher_layer", teacher_layer, teachers),
        ("student_layer", student_layer, students),
        ("step", step, steps),
    ):
        if index is not None and not -count <= index < count:
            raise CometError(f"{who} is {index}, but must be from 0 to {count - 1}.")
    if teacher_layer is None:
        teacher_layer = data.matches[student_layer]
    return teacher_layer % teachers, student_layer % students


def layer_tables(
    tables: Mapping[str, np.ndarray], matches: Sequence[int], title: str = ""
) -> Figure:
    """Tables (student layers, teacher layers) side by side, with the matched cells framed.

    ``matches[i]`` is the teacher layer that student layer i learns from. Each table has its own
    colour scale; small tables also show their numbers.
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
        draw_table(axes, table, matches)
        axes.set_title(name, fontsize=10)
    panels[0][0].set_ylabel("student layer")
    figure.suptitle(title, fontsize=11)
    return figure


def draw_table(axes: Any, table: np.ndarray, matches: Sequence[int]) -> None:
    """Draw one table (student layers, teacher layers), with the matched cells framed."""
    students, teachers = table.shape
    axes.imshow(table, cmap="cividis", aspect="auto")
    middle = (table.min() + table.max()) / 2
    for (i, j), value in np.ndenumerate(table):
        if teachers <= NUMBERED:
            colour = "white" if value < middle else "black"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=9)
    for i, j in enumerate(matches):
        axes.add_patch(_frame(j, i, 0.46, ORANGE))
    axes.set_xticks(range(teachers))
    axes.set_yticks(range(students))
    axes.set_xlabel("teacher layer")


def _frame(x: int, y: int, half: float, colour: str) -> Rectangle:
    corner = (x - half, y - half)
    return Rectangle(corner, 2 * half, 2 * half, fill=False, edgecolor=colour, linewidth=3)


def _name(who: str, layer: int, head: int) -> str:
    return f"{who}, layer {layer}" + ("" if head < 0 else f", head {head}")


def _signed_root(limit: float) -> Normalize:
    def forward(x: Any) -> Any:
        return np.sign(x) * np.sqrt(np.abs(x))

    def inverse(x: Any) -> Any:
        return np.sign(x) * np.square(x)

    return FuncNorm((forward, inverse), -limit, limit)


def _hatch(axes: Any, mask: np.ndarray) -> None:
    """Hatch the rows and columns of padding."""
    size = len(mask)
    style: dict[str, Any] = dict(facecolor="white", edgecolor=GREY, hatch="////", linewidth=0)
    for i in np.flatnonzero(~mask):
        axes.add_patch(Rectangle((i - 0.5, -0.5), 1, size, **style))
        axes.add_patch(Rectangle((-0.5, i - 0.5), size, 1, **style))
