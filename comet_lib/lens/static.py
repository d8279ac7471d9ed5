"""The lens as a figure: teacher, student and their signed difference on one token axis; below them
the distance and entropy of the layers, and what classifiers answer and which tokens that needs."""

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
from matplotlib.patheffects import withStroke

from comet_lib.errors import CometError
from comet_lib.lens.data import Answers, LensData, Measures
from comet_lib.plots import (
    BLUE,
    DIFFERENCE_COLORS,
    GREEN,
    GREY,
    MAP_COLORS,
    ORANGE,
    PINK,
    drawable,
    on_axis,
)

NAMED = 30  # tokens written along an axis, at most
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
    table and entropies of all layers if there is more than one pair. For classifiers, also their
    answers, and where they look on average beside what the answer loses when a token is hidden.

    ``step`` counts from 0 in ``data.steps``; head -1 is the mean. Color grows with the square
    root of the attention, so that small numbers show too; the color bars give the numbers.
    Errors as in :func:`chosen_pair`.
    """
    teacher_layer, student_layer = chosen_pair(data, teacher_layer, student_layer, step)
    chosen = (teacher_layer, student_layer, step, teacher_head, student_head)
    teacher, student = data.pair(*chosen)
    measures = data.measures(step, teacher_head, student_head)
    every = -(-len(data.tokens) // NAMED)
    places = list(range(0, len(data.tokens), every))
    labels, families, note = drawable(data.tokens)
    names = [on_axis(labels[i]) for i in places]
    text: dict[str, Any] = {"parse_math": False, "fontfamily": families, "fontsize": 9}

    side = float(np.clip(0.16 * len(data.tokens) + 0.5, 2.6, 4.6))
    students, teachers = data.js.shape[1:]
    tables = students * teachers > 1
    written = 0.075 * max(map(len, names)) + 0.1  # inches of the longest label
    rows = [side + written + 0.4]
    if tables or data.answers:
        rows.append(max(1.5, 0.3 * students) + 0.8)
    if data.occlusion:
        rows += [1.0, 1.1 + written]
    figure = plt.figure(figsize=(3 * side + written + 1.4, sum(rows) + 0.7), layout="constrained")
    grid = figure.add_gridspec(len(rows), 1, height_ratios=rows)

    parts = grid[0].subgridspec(1, 3)
    top = [figure.add_subplot(parts[i]) for i in range(3)]
    titles = (
        _name("teacher", teacher_layer, teacher_head),
        _name("student", student_layer, student_head),
        "student − teacher",
    )
    _draw_maps(top, titles, teacher, student, data.mask)
    for number, axes in enumerate(top):
        axes.set_xticks(places, names, rotation=90, **text)
        axes.set_yticks(places, names if number == 0 else [], **text)
        axes.set_xlabel("token looked at")
    top[0].set_ylabel("token that looks (rows sum to 1)")

    if len(rows) > 1:
        wide = min(1.8, max(1.0, teachers / NUMBERED))
        ratios = [wide, 1] * tables + [1] * bool(data.answers)
        parts = grid[1].subgridspec(1, len(ratios), width_ratios=ratios)
        low = [figure.add_subplot(parts[i]) for i in range(len(ratios))]
        if tables:
            draw_table(low[0], measures.js, data.matches)
            low[0].set_ylabel("student layer")
            of = "" if teacher_head < 0 and student_head < 0 else " of the heads"
            low[0].set_title(
                f"distance{of}, nats; orange: matched; pink: shown", loc="left", fontsize=9
            )
            low[0].add_patch(_frame(teacher_layer, student_layer, 0.38, PINK))
            _draw_entropies(low[1], measures, int(data.mask.sum()))
        if data.answers:
            _draw_answers(low[-1], data.answers, step)
    if data.occlusion:
        own = data.mask[:, None] & data.mask
        looks = [(one * own).sum(0) / data.mask.sum() for one in (teacher, student)]
        lost = [data.occlusion.teacher, data.occlusion.student[step]]
        for place, (pair, title) in enumerate(
            ((looks, "mean attention to each token"), (lost, "what the answer loses when hidden"))
        ):
            axes = figure.add_subplot(grid[2 + place])
            _pairs(axes, *pair)
            axes.set_xlim(-0.6, len(data.tokens) - 0.4)
            axes.set_title(title, loc="left", fontsize=9)
            axes.set_xticks(places, names if place else [], rotation=90, **text)
    sentence = replace(data, tokens=tuple(labels)).finding(*chosen)
    width = int(12 * (3 * side + 1))
    lines = [textwrap.fill(line, width) for line in (sentence, note) if line]
    figure.suptitle("\n".join(lines), **{**text, "fontsize": 12})
    return figure


def _draw_maps(
    panels: Sequence[Any],
    titles: Sequence[str],
    teacher: np.ndarray,
    student: np.ndarray,
    mask: np.ndarray,
) -> None:
    """Two maps (N, N) on one scale, and their difference on its own."""
    top = max(float(teacher.max()), float(student.max()), 1e-9)
    limit = max(float(np.abs(student - teacher).max()), 1e-9)
    for number, one in enumerate((teacher, student, student - teacher)):
        axes = panels[number]
        image = axes.imshow(
            one,
            cmap=DIFFERENCE_COLORS if number == 2 else MAP_COLORS,
            norm=_signed_root(limit) if number == 2 else PowerNorm(0.5, 0, top),
            interpolation="nearest",
        )
        _hatch(axes, mask)
        axes.set_title(titles[number])
        axes.tick_params(length=0, pad=2)
        if number:
            ends = [-limit, -limit / 4, 0, limit / 4, limit] if number == 2 else [0, top / 4, top]
            bar = axes.figure.colorbar(image, ax=axes, shrink=0.7, ticks=ends, format="%.2g")
            bar.ax.minorticks_off()
            bar.outline.set_visible(False)


def _draw_entropies(axes: Any, measures: Measures, tokens: int) -> None:
    """Each layer's entropy: the teacher's layers, then the student's."""
    one, other = measures.teacher_entropy, measures.student_entropy
    at = len(one) + 1 + np.arange(len(other))
    axes.bar(np.arange(len(one)), one, color=BLUE, label="teacher")
    axes.bar(at, other, color=ORANGE, label="student")
    axes.axhline(np.log(max(2, tokens)), color=GREY, linewidth=1)
    every = 1 if len(one) <= NUMBERED else 4
    ticks = [*range(0, len(one), every), *at.tolist()]
    axes.set_xticks(ticks, [str(t if t < len(one) else t - len(one) - 1) for t in ticks])
    axes.set_xlabel("layer")
    axes.set_title("entropy, nats; line: the most it can be", loc="left", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axes.spines[["top", "right"]].set_visible(False)


def _draw_answers(axes: Any, answers: Answers, step: int) -> None:
    """Bars of each model's probabilities, by label."""
    rows = {"teacher": answers.teacher, "student": answers.student[step], **answers.baselines}
    height = 0.8 / len(rows)
    for number, (name, values) in enumerate(rows.items()):
        color = (BLUE, ORANGE, GREEN, GREY)[min(number, 3)]
        at = np.arange(len(values)) + (number - (len(rows) - 1) / 2) * height
        bars = axes.barh(at, values, height, color=color, label=name)
        axes.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
    axes.set_yticks(range(len(answers.labels)), answers.labels)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.12), xticks=(0, 0.5, 1))
    axes.set_title("what they answer", loc="left", fontsize=9)
    if len(rows) > 2:  # the entropies beside it name teacher and student
        axes.legend(fontsize=8, frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)


def _pairs(axes: Any, teacher: np.ndarray, student: np.ndarray) -> None:
    at = np.arange(len(teacher))
    axes.bar(at - 0.2, teacher, 0.4, color=BLUE)
    axes.bar(at + 0.2, student, 0.4, color=ORANGE)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


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

    ``matches[i]`` is the teacher layer that student layer i learns from. The tables share one
    color scale; small tables also show their numbers.
    """
    limits = min(t.min() for t in tables.values()), max(t.max() for t in tables.values())
    students, teachers = next(iter(tables.values())).shape
    figure, panels = plt.subplots(
        1,
        len(tables),
        figsize=(min(max(3.4, 0.5 * teachers + 1.6), 6) * len(tables), 0.5 * students + 1.9),
        layout="constrained",
        squeeze=False,
    )
    for axes, (name, table) in zip(panels[0], tables.items(), strict=True):
        draw_table(axes, table, matches, limits)
        axes.set_title(name, fontsize=10)
    panels[0][0].set_ylabel("student layer")
    figure.suptitle(title, fontsize=11)
    return figure


def draw_table(
    axes: Any,
    table: np.ndarray,
    matches: Sequence[int],
    limits: tuple[float, float] | None = None,
) -> None:
    """Draw one table (student layers, teacher layers), with the matched cells framed.

    ``limits`` are the ends of the color scale (default: the table's own).
    """
    students, teachers = table.shape
    low, high = limits or (table.min(), table.max())
    axes.imshow(table, cmap="cividis", aspect="auto", vmin=low, vmax=high)
    middle = (low + high) / 2
    for (i, j), value in np.ndenumerate(table):
        if teachers <= NUMBERED:
            color = "white" if value < middle else "black"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=color, fontsize=9)
    for i, j in enumerate(matches):
        axes.add_patch(_frame(j, i, 0.46, ORANGE))
    axes.set_xticks(range(teachers))
    axes.set_yticks(range(students))
    axes.set_xlabel("teacher layer")


def _frame(x: int, y: int, half: float, color: str) -> Rectangle:
    corner = (x - half, y - half)
    frame = Rectangle(corner, 2 * half, 2 * half, fill=False, edgecolor=color, linewidth=2.5)
    frame.set_path_effects([withStroke(linewidth=4.5, foreground="black")])  # on every shade
    return frame


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
