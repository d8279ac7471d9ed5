"""The attention lens: teacher, student and their difference, on one token axis.

    lens = AttentionLens.from_models(teacher, student, tokenizer, "Ounjẹ náà dára gan-an.")
    lens                      # in a notebook: the three maps, linked, with a picture beside them
    lens.figure(3, 1)         # teacher layer 3, student layer 1, as a matplotlib figure
    lens.export("lens.html")  # one page that opens without a network; or .png, .svg

One data object (:mod:`comet_lib.lens.data`) and three faces: :mod:`~comet_lib.lens.static`,
:mod:`~comet_lib.lens.widget` (needs anywidget) and :mod:`~comet_lib.lens.export`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from comet_lib.errors import CometError
from comet_lib.lens import data as _data
from comet_lib.lens.data import LensData
from comet_lib.lens.export import write_lens
from comet_lib.lens.static import lens_figure
from comet_lib.widgets.view import WIDGET_VIEW, png

if TYPE_CHECKING:
    from comet_lib.lens.widget import LensWidget

__all__ = ["AttentionLens", "LensData"]

SELECTION = ("teacher_layer", "student_layer", "step", "teacher_head", "student_head")


class AttentionLens:
    """One lens on one text; ``data`` holds all that it shows."""

    def __init__(self, data: LensData) -> None:
        self.data = data

    @classmethod
    def from_models(
        cls,
        teacher: PreTrainedModel,
        student: PreTrainedModel | Mapping[int, PreTrainedModel],
        tokenizer: PreTrainedTokenizerBase,
        text: str,
        student_tokenizer: PreTrainedTokenizerBase | None = None,
        matches: Sequence[int] | None = None,
        heads: bool = False,
        max_length: int = 128,
    ) -> AttentionLens:
        """See :func:`comet_lib.lens.data.from_models`."""
        return cls(
            _data.from_models(
                teacher, student, tokenizer, text, student_tokenizer, matches, heads, max_length
            )
        )

    @classmethod
    def from_arrays(
        cls,
        tokens: Sequence[str],
        teacher: Any,
        student: Any,
        matches: Sequence[int] | None = None,
        mask: Any = None,
    ) -> AttentionLens:
        """See :func:`comet_lib.lens.data.from_arrays`."""
        return cls(_data.from_arrays(tokens, teacher, student, matches, mask))

    @cached_property
    def widget(self) -> LensWidget:
        """The interactive face. Its selection can be read and set: ``lens.widget.step = 0``."""
        if find_spec("anywidget") is None:
            raise CometError(
                "anywidget is not installed, so the lens can only show its picture: "
                'pip install "anywidget>=0.9".'
            )
        from comet_lib.lens.widget import LensWidget

        return LensWidget(self.data)

    @property
    def selection(self) -> dict[str, int]:
        """What the reader has selected in the widget; empty before it is shown."""
        live = self.__dict__.get("widget")
        return {name: getattr(live, name) for name in SELECTION} if live is not None else {}

    def figure(
        self,
        teacher_layer: int | None = None,
        student_layer: int | None = None,
        step: int | None = None,
    ) -> Figure:
        """Teacher, student and difference; what is left out is as in the widget, or the matched
        pair that differs most. See :func:`comet_lib.lens.static.lens_figure`."""
        asked = {"teacher_layer": teacher_layer, "student_layer": student_layer, "step": step}
        given = {name: value for name, value in asked.items() if value is not None}
        layers = given.keys() & {"teacher_layer", "student_layer"}
        live = {} if layers else self.selection
        return lens_figure(self.data, **(live | given))

    def export(self, path: str | Path) -> Path:
        """Write the lens as it stands: ``.html`` (one page, offline), ``.png`` or ``.svg``."""
        return write_lens(self.data, path, self.selection)

    def __repr__(self) -> str:
        chosen = self.selection or dict(
            zip(("teacher_layer", "student_layer"), self.data.widest(), strict=True)
        )
        return "AttentionLens: " + self.data.finding(
            chosen["teacher_layer"], chosen["student_layer"], chosen.get("step", -1)
        )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        """The picture for everywhere, and the widget where anywidget is installed."""
        bundle: dict[str, Any] = {}
        metadata: dict[str, Any] = {}
        if find_spec("anywidget") is not None:
            own = getattr(self.widget, "_repr_mimebundle_", None)
            if own is None:  # ipywidgets 7, on Colab
                view = {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}
                bundle = {WIDGET_VIEW: view}
            elif (made := own()) is not None:
                bundle, metadata = made if isinstance(made, tuple) else (made, {})
        picture = png(self.figure())
        return {**bundle, "text/plain": repr(self), "image/png": picture}, metadata
