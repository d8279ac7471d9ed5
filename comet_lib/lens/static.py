"""The lens as a figure: teacher, student and their signed difference on one token axis."""

from __future__ import annotations

import textwrap
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import FuncNorm, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from comet_lib.errors import CometError
from comet_lib.lens.data import LensData
from comet_lib.plots import DIFFERENCE_COLOURS, GREY, MAP_COLOURS, drawable

NAMED = 40  # at most so many tokens are written along an axis


def lens_figure(
    data: LensData,
    teacher_layer: int | None = None,
    student_layer: int | None = None,
    step: int = -1,
    teacher_head: int = -1,
    student_head: int = -1,
) -> Figure:
    """Three maps of one pair of layers (default: the matched pair that differs most).

    ``step`` counts from 0 in ``data.steps``; head -1 is the mean. Colour grows with the square
    root of the attention, so that small numbers are seen too; the bars tell the numbers.

    Raises:
        CometError: a layer or step that ``data`` does not have.
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
    names = [drawable(data.tokens[i]) for i in places]

    side = float(np.clip(0.2 * len(data.tokens) + 0.6, 2.8, 7))
    figure, row = plt.subplots(1, 3, figsize=(3 * side + 1.6, side + 1.2), layout="constrained")
    for number, (axes, (name, one)) in enumerate(zip(row, panels, strict=True)):
        image = axes.imshow(
            one,
            cmap=DIFFERENCE_COLOURS if number == 2 else MAP_COLOURS,
            norm=_signed_root(limit) if number == 2 else PowerNorm(0.5, 0, top),
            interpolation="nearest",
        )
        _hatch(axes, data.mask)
        axes.set_title(name)
        axes.set_xticks(places, names, rotation=90, fontsize=8, parse_math=False)
        axes.set_yticks(places, names if number == 0 else [], fontsize=8, parse_math=False)
        axes.set_xlabel("looked at")
        axes.tick_params(length=0, pad=2)
        if number:
            ends = [-limit, -limit / 4, 0, limit / 4, limit] if number == 2 else [0, top / 4, top]
            bar = figure.colorbar(image, ax=axes, shrink=0.7, ticks=ends, format="%.2g")
            bar.ax.minorticks_off()
            bar.outline.set_visible(False)
    row[0].set_ylabel("looking (each row sums to 1)")
    sentence = drawable(data.finding(teacher_layer, student_layer, step))
    figure.suptitle(textwrap.fill(sentence, int(14 * (3 * side + 1))), parse_math=False)
    return figure


def chosen_pair(
    data: LensData, teacher_layer: int | None, student_layer: int | None, step: int = -1
) -> tuple[int, int]:
    """The pair of layers to show, where None was asked the data's choice; negative from the top."""
    wide_teacher, wide_student = data.widest()
    count, deep = len(data.student_entropy), data.student_entropy.shape[1]
    high = len(data.teacher_entropy)
    if student_layer is None:
        student_layer = wide_student
        if teacher_layer is not None and teacher_layer % high in data.matches:
            student_layer = data.matches.index(teacher_layer % high)
    if teacher_layer is None and -deep <= student_layer < deep:
        teacher_layer = data.matches[student_layer]
    for who, layer, layers in (
        ("teacher_layer", wide_teacher if teacher_layer is None else teacher_layer, high),
        ("student_layer", student_layer, deep),
        ("step", step, count),
    ):
        if not -layers <= layer < layers:
            raise CometError(f"{who} is {layer}, but must be from 0 to {layers - 1}.")
    assert teacher_layer is not None
    return teacher_layer % high, student_layer % deep


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
