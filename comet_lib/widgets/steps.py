"""A slider over training steps: the student's attention map as it nears the teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets
import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from comet_lib.errors import CometError
from comet_lib.losses import EPS
from comet_lib.plots import BLUE, MAP_COLOURS, ORANGE
from comet_lib.widgets.view import View


def row_divergence(student: np.ndarray, teacher: np.ndarray) -> float:
    """Mean over the rows of KL(teacher || student) in nats, for maps (L, L) without padding.

    As :func:`comet_lib.losses.attention_kl` of one sentence, in numpy.
    """
    student = np.maximum(student / student.sum(-1, keepdims=True), EPS)
    teacher = teacher / teacher.sum(-1, keepdims=True)
    rows = np.where(teacher > 0, teacher * np.log(np.maximum(teacher, EPS**4) / student), 0.0)
    return float(rows.sum(-1).mean())


class StepView(View):
    """Maps of one sentence at several training steps, beside the teacher's.

    Args:
        student: training step -> student layer -> map (L, L).
        teacher: student layer -> the map (L, L) of the teacher layer that it learns from.
        tokens: the L pieces of the sentence.

    ``step`` (a key of ``student``) and ``layer`` (a key of ``teacher``) are readable and settable;
    ``divergence`` follows them: the row-wise KL from the teacher's map, in nats.

    Raises:
        CometError: no step, or maps that do not fit the layers or the tokens.
    """

    def __init__(
        self,
        student: Mapping[int, Mapping[int, np.ndarray]],
        teacher: Mapping[int, np.ndarray],
        tokens: Sequence[str],
        step: int | None = None,
        layer: int | None = None,
    ) -> None:
        self.student = {s: {k: np.asarray(m) for k, m in student[s].items()} for s in student}
        self.teacher = {k: np.asarray(m) for k, m in teacher.items()}
        self.tokens = list(tokens)
        self._check()
        self.curves = {
            k: {s: row_divergence(self.student[s][k], m) for s in sorted(self.student)}
            for k, m in self.teacher.items()
        }
        steps, layers = sorted(self.student), sorted(self.teacher)
        super().__init__(
            step=ipywidgets.SelectionSlider(
                options=steps, value=steps[-1] if step is None else step, description="step"
            ),
            layer=ipywidgets.Dropdown(
                options=layers, value=layers[-1] if layer is None else layer, description="layer"
            ),
        )

    def _check(self) -> None:
        if not self.student or not self.teacher:
            raise CometError("StepView needs the student's maps of at least one step and layer.")
        size = (len(self.tokens),) * 2
        for step, maps in [*self.student.items(), ("teacher", self.teacher)]:
            if set(maps) != set(self.teacher) or any(m.shape != size for m in maps.values()):
                raise CometError(
                    f"the maps of step {step} are not one map {size} for each of the layers "
                    f"{sorted(self.teacher)}: capture the same sentence and layers at each step."
                )

    @property
    def divergence(self) -> float:
        """KL(teacher || student) at the present step and layer, mean over rows, in nats."""
        return self.curves[self.layer][self.step]

    def build(self) -> tuple[Figure, Sequence[Artist]]:
        """The teacher's map, the student's at the step, and the divergence by step."""
        figure = self._empty()
        return figure, [*self._images, *self._titles, self._panel]

    def move(self, figure: Figure, moving: Sequence[Artist]) -> None:
        teacher, student = self.teacher[self.layer], self.student[self.step][self.layer]
        top = max(m[self.layer].max() for m in [self.teacher, *self.student.values()])
        for image, data in zip(self._images, (teacher, student), strict=True):
            image.set_data(data)
            image.set_clim(0, top)
        self._titles[1].set_text(f"student at step {self.step}")
        curve = self.curves[self.layer]
        self._line.set_data(list(curve), list(curve.values()))
        self._dot.set_data([self.step], [self.divergence])
        self._panel.set_ylim(0, 1.1 * max(curve.values()) + EPS)
        self._panel.set_title(f"KL {self.divergence:.2f} nats at step {self.step}", fontsize=10)

    def _empty(self) -> Figure:
        """The figure without its numbers."""
        side = max(2.4, 0.17 * len(self.tokens) + 0.4)
        figure = Figure(figsize=(3 * side + 1.8, side + 0.8))
        panels: Any = figure.subplots(1, 3)
        figure.subplots_adjust(left=0.1, right=0.985, bottom=0.25, top=0.91, wspace=0.22)
        self._images, self._titles = [], []
        blank = np.zeros((len(self.tokens),) * 2)
        for number, axes in enumerate(panels[:2]):
            self._images.append(axes.imshow(blank, cmap=MAP_COLOURS))
            self._titles.append(axes.set_title("" if number else "teacher", fontsize=10))
            axes.set_xticks(
                range(len(self.tokens)), self.tokens, rotation=90, fontsize=8, parse_math=False
            )
            axes.set_yticks(
                range(len(self.tokens)), [] if number else self.tokens, fontsize=8, parse_math=False
            )
        panels[0].set_ylabel("looking (each row sums to 1)", fontsize=9)
        self._panel = panels[2]
        (self._line,) = self._panel.plot([], [], color=BLUE, marker=".")
        (self._dot,) = self._panel.plot([], [], "o", color=ORANGE, markersize=10)
        last = max(self.student)
        self._panel.set_xlim(-0.04 * last - 0.5, 1.04 * last + 0.5)
        self._panel.set_xlabel("training step", fontsize=9)
        self._panel.set_ylabel("KL(teacher || student), nats", fontsize=9)
        self._panel.spines[["top", "right"]].set_visible(False)
        return figure

    def describe(self) -> str:
        start = self.curves[self.layer][min(self.student)]
        return (
            f"Layer {self.layer} at step {self.step}: {self.divergence:.2f} nats from the "
            f"teacher's map ({start:.2f} at step {min(self.student)})"
        )
