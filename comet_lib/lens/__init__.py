"""The attention lens: teacher, student and their difference, on one token axis.

    lens = AttentionLens.from_models(teacher, student, tokenizer, "Ounjẹ náà dára gan-an.")
    lens                      # in a notebook: the three maps, and a box to type another sentence
    lens.figure(3, 1)         # teacher layer 3, student layer 1, as a matplotlib figure
    lens.export("lens.html")  # one page that opens without a network; or .png, .svg

One data object (:mod:`comet_lib.lens.data`, read from models by :mod:`comet_lib.lens.reading`) and
three faces: :mod:`~comet_lib.lens.static`, :mod:`~comet_lib.lens.widget` (needs anywidget) and
:mod:`~comet_lib.lens.export`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, wraps
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from matplotlib.figure import Figure

from comet_lib.errors import CometError
from comet_lib.lens.data import LensData, from_arrays
from comet_lib.lens.export import MIME, saved, write_lens
from comet_lib.lens.reading import from_models
from comet_lib.lens.static import lens_figure
from comet_lib.widgets.view import live_view, png

if TYPE_CHECKING:
    from comet_lib.lens.widget import LensWidget

__all__ = ["AttentionLens", "LensData"]

P = ParamSpec("P")


def _lens_of(build: Callable[P, LensData]) -> Callable[P, AttentionLens]:
    """``build`` with its arguments and its docstring, returning a lens on the data."""

    @wraps(build)
    def lens(*args: P.args, **kwargs: P.kwargs) -> AttentionLens:
        return AttentionLens(build(*args, **kwargs))

    return lens


class AttentionLens:
    """One lens on one text; ``data`` holds everything it shows, and follows its text box."""

    from_models = staticmethod(_lens_of(from_models))
    from_arrays = staticmethod(_lens_of(from_arrays))

    def __init__(self, data: LensData) -> None:
        self._data = data

    @property
    def data(self) -> LensData:
        live = self.__dict__.get("widget")
        return self._data if live is None else live.data

    @cached_property
    def widget(self) -> LensWidget:
        """The interactive face. Its selection can be read and set: ``lens.widget.step = 0``."""
        if find_spec("anywidget") is None:
            raise CometError(
                "anywidget is not installed, so the lens can only show its picture: "
                'pip install "anywidget>=0.9".'
            )
        from comet_lib.lens.widget import LensWidget

        return LensWidget(self._data)

    @property
    def selection(self) -> dict[str, int]:
        """What the reader has selected in the widget; empty before it is shown."""
        live = self.__dict__.get("widget")
        return {} if live is None else {name: getattr(live, name) for name in self.data.start()}

    def figure(
        self,
        teacher_layer: int | None = None,
        student_layer: int | None = None,
        step: int | None = None,
    ) -> Figure:
        """Teacher, student and difference. What you leave out is as in the widget, or the matched
        pair that differs most. See :func:`comet_lib.lens.static.lens_figure`."""
        asked = {"teacher_layer": teacher_layer, "student_layer": student_layer, "step": step}
        given = {name: value for name, value in asked.items() if value is not None}
        live = {} if given.keys() & {"teacher_layer", "student_layer"} else self.selection
        return lens_figure(self.data, **(live | given))

    def export(self, path: str | Path) -> Path:
        """Write the lens as it stands: ``.html`` (one page, offline), ``.png`` or ``.svg``."""
        return write_lens(self.data, path, self.selection)

    def __repr__(self) -> str:
        return "AttentionLens: " + self.data.finding(**(self.data.start() | self.selection))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        """The picture, what a page draws, and the widget if anywidget is installed."""
        bundle: dict[str, Any] = {}
        metadata: dict[str, Any] = {}
        if find_spec("anywidget") is not None:
            own = getattr(self.widget, "_repr_mimebundle_", None)
            if own is None:  # ipywidgets 7, on Colab
                bundle = live_view(self.widget)
            elif (entries := own()) is not None:
                bundle, metadata = entries if isinstance(entries, tuple) else (entries, {})
        still = {"text/plain": repr(self), "image/png": png(self.figure())}
        return {**bundle, **still, MIME: saved(self.data, self.selection)}, metadata
