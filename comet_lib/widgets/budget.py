"""Sliders over the budget of an XLM-R encoder: parameters and FLOPs in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ipywidgets
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from comet_lib.models import component_counts, flops_per_token, mebibytes
from comet_lib.plots import BLUE, GREEN, GREY, ORANGE, PINK
from comet_lib.profiles import PAPER_STUDENT, PAPER_TEACHER, PAPER_VOCABULARY, shape
from comet_lib.widgets.view import Built, View, bare

#: One color per component; the names are those of :func:`comet_lib.models.parameter_table`.
COMPONENT_COLORS = {
    "word embeddings": BLUE,
    "other embeddings": PINK,
    "attention": ORANGE,
    "feed-forward": GREEN,
    "pooler": GREY,
}


def stacked_shares(axes: Any, rows: Mapping[str, Mapping[str, int]], percent: bool) -> None:
    """One horizontal stacked bar per row: parameters in millions, or percent of the row's total.

    Removes bars and numbers that are already there; the axis stays.
    """
    for old in [*axes.patches, *axes.texts]:
        old.remove()
    for y, counts in enumerate(rows.values()):
        total, left = sum(counts.values()), 0.0
        for name, count in counts.items():
            width = 100 * count / total if percent else count / 1e6
            axes.barh(y, width, left=left, height=0.7, color=COMPONENT_COLORS[name], label=name)
            if percent and width >= 7:
                color = "white" if COMPONENT_COLORS[name] in (BLUE, GREY) else "black"
                at = left + width / 2, y
                axes.text(*at, f"{width:.1f} %", ha="center", va="center", color=color)
            left += width
        if not percent:
            size = f" {total / 1e6:,.1f} M, {mebibytes(total):,.0f} MiB"
            axes.text(left, y, size, va="center")


class ParameterBudget(View):
    """Five sliders and what they cost, beside a teacher.

    ``layers``, ``width``, ``heads``, ``feed_forward`` and ``vocabulary`` can be read and set;
    ``counts``, ``parameters``, ``mib`` and ``flops`` follow them.
    """

    def __init__(
        self,
        student: Mapping[str, int] = PAPER_STUDENT,
        vocabulary: int = PAPER_VOCABULARY,
        teacher: Mapping[str, int] = PAPER_TEACHER,
        teacher_vocabulary: int = PAPER_VOCABULARY,
        max_length: int = 512,
        length: int = 128,
    ) -> None:
        self.max_length, self.length = max_length, length
        self.teacher_counts = component_counts(teacher, teacher_vocabulary, max_length)
        self.teacher_flops = _flops(teacher, length)

        def slider(value: int, low: int, high: int, step: int = 1) -> Any:
            look: Any = {"style": {"description_width": "7em"}}
            look["layout"] = {"width": "auto", "max_width": "34em"}
            return ipywidgets.IntSlider(value=value, min=low, max=high, step=step, **look)

        super().__init__(
            layers=slider(student["num_hidden_layers"], 1, 24),
            width=slider(student["hidden_size"], 32, 1024, 32),
            heads=slider(student["num_attention_heads"], 1, 16),
            feed_forward=slider(student["intermediate_size"], 64, 4096, 64),
            vocabulary=slider(vocabulary, 1_002, 250_002, 1_000),
        )

    @property
    def sizes(self) -> dict[str, int]:
        """The student in the form that ``xlmr_config`` takes."""
        return shape(self.width, self.layers, self.heads, self.feed_forward)

    @property
    def counts(self) -> dict[str, int]:
        """Parameters of the student by component."""
        return component_counts(self.sizes, self.vocabulary, self.max_length)

    @property
    def parameters(self) -> int:
        return sum(self.counts.values())

    @property
    def mib(self) -> float:
        """Weights in fp32."""
        return mebibytes(self.parameters)

    @property
    def flops(self) -> int:
        """Forward FLOPs a token, see :func:`comet_lib.models.flops_per_token`."""
        return _flops(self.sizes, self.length)

    def build(self) -> Built:
        # As bars_and_curves, and with few ticks: a slider must answer in under 100 ms.
        figure = Figure(figsize=(8, 3.4))
        both, alone = figure.subplots(2, 1, height_ratios=(2, 1))
        figure.subplots_adjust(left=0.09, right=0.98, top=0.91, bottom=0.12, hspace=0.5)
        for place, (name, color) in enumerate(COMPONENT_COLORS.items()):
            x = 0.09 + 0.185 * place
            figure.patches.append(
                Rectangle((x, 0.035), 0.02, 0.05, color=color, transform=figure.transFigure)
            )
            figure.text(x + 0.026, 0.06, name, va="center", fontsize=9)
        for axes, rows in ((both, ("teacher", "student")), (alone, ("student",))):
            axes.set_yticks(range(len(rows)), rows)
            axes.set_ylim(len(rows) - 0.5, -0.5)
        bare(both, alone)
        both.xaxis.set_major_locator(MaxNLocator(4))
        both.set_xlabel("parameters, millions")
        alone.set(xlim=(0, 100), xticks=[])
        alone.spines["bottom"].set_visible(False)
        return figure, [both, alone]

    def move(self, figure: Figure) -> None:
        both, alone = figure.axes
        counts = self.counts
        stacked_shares(both, {"teacher": self.teacher_counts, "student": counts}, percent=False)
        largest = max(sum(self.teacher_counts.values()), sum(counts.values())) / 1e6
        both.set_xlim(0, 1.27 * largest)
        share = 100 * self.parameters / sum(self.teacher_counts.values())
        word = 100 * counts["word embeddings"] / self.parameters
        title = (
            f"{share:.1f} % of the teacher's size; {word:.1f} % of the student is word embeddings"
        )
        both.set_title(title, loc="left", fontsize=11)
        stacked_shares(alone, {"student": counts}, percent=True)

    def describe(self) -> str:
        text = (
            f"{self.parameters:,} parameters, {self.mib:,.1f} MiB in fp32; "
            f"{self.flops / 1e6:,.2f} MFLOPs a token at length {self.length}, "
            f"the teacher {self.teacher_flops / self.flops:,.1f} times that"
        )
        if self.width % self.heads:
            text += f"; but {self.heads} heads do not divide width {self.width}: no such model"
        return text


def _flops(sizes: Mapping[str, int], length: int) -> int:
    return flops_per_token(
        sizes["hidden_size"], sizes["intermediate_size"], sizes["num_hidden_layers"], length
    )
