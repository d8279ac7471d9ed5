"""Two sliders, a teacher layer and a student layer: their maps and the signed difference."""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets
import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from comet_lib.errors import CometError
from comet_lib.plots import attention_maps
from comet_lib.widgets.view import View


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Mean Jensen-Shannon divergence of the rows of two maps (L, L), in nats: 0 to log 2."""

    def entropy(x: np.ndarray) -> np.ndarray:
        return -(x * np.log(np.maximum(x, 1e-30))).sum(-1)

    rows = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    return float(np.maximum(rows, 0).mean())


class LayerPairView(View):
    """One sentence's maps at the layers of two sliders: teacher | student | student - teacher.

    ``teacher`` and ``student`` are arrays (layers, L, L), one head-mean map a layer, without
    padding; ``tokens`` are the L pieces. ``teacher_layer`` and ``student_layer`` (from 0) are
    readable and settable; ``maps`` (the three arrays) and ``divergence`` follow them.
    """

    def __init__(
        self,
        teacher: np.ndarray,
        student: np.ndarray,
        tokens: Sequence[str],
        teacher_layer: int = 0,
        student_layer: int = 0,
    ) -> None:
        self.teacher = np.asarray(teacher, dtype=float)
        self.student = np.asarray(student, dtype=float)
        self.tokens = list(tokens)
        length = len(self.tokens)
        for name, maps in (("teacher", self.teacher), ("student", self.student)):
            if maps.ndim != 3 or maps.shape[1:] != (length, length) or not len(maps):
                raise CometError(
                    f"{name} has shape {maps.shape}: give one map of {length} x {length} for each "
                    "layer, (layers, L, L), to go with the tokens"
                )
        super().__init__(
            teacher_layer=_slider("teacher layer", teacher_layer, len(self.teacher)),
            student_layer=_slider("student layer", student_layer, len(self.student)),
        )

    @property
    def maps(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Teacher, student and student minus teacher, each (L, L)."""
        teacher, student = self.teacher[self.teacher_layer], self.student[self.student_layer]
        return teacher, student, student - teacher

    @property
    def divergence(self) -> float:
        """Mean Jensen-Shannon divergence of the two maps' rows, in nats."""
        return divergence(*self.maps[:2])

    @property
    def _titles(self) -> list[str]:
        return [
            f"teacher, layer {self.teacher_layer}",
            f"student, layer {self.student_layer}",
            "student - teacher",
        ]

    def build(self) -> tuple[Figure, Sequence[Artist]]:
        """The colours mean the same for all pairs."""
        figure = attention_maps(self.maps, self.tokens, self._titles, True, self.describe())
        top = max(self.teacher.max(), self.student.max())
        furthest = max(float(np.abs(s - t).max()) for s in self.student for t in self.teacher)
        moving: list[Artist] = [figure.suptitle(self.describe())]
        for axes, low, high in zip(
            figure.axes, (0, 0, -furthest), (top, top, furthest), strict=False
        ):
            axes.images[0].set_clim(low, high)
            moving += [axes.images[0], axes.title]
        return figure, moving

    def move(self, figure: Figure, moving: Sequence[Artist]) -> None:
        for axes, one, name in zip(figure.axes, self.maps, self._titles, strict=False):
            axes.images[0].set_data(one)
            axes.set_title(name)
        figure.suptitle(self.describe())

    def describe(self) -> str:
        return (
            f"Student layer {self.student_layer} is {self.divergence:.3f} nats from teacher layer "
            f"{self.teacher_layer} (0: equal, {np.log(2):.3f}: nothing in common)"
        )


def _slider(description: str, value: int, count: int) -> ipywidgets.IntSlider:
    return ipywidgets.IntSlider(
        value=value,
        min=0,
        max=count - 1,
        description=description,
        style={"description_width": "initial"},
    )
