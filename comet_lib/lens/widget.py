"""The lens in a live notebook: an anywidget (0.9 and up) around ``lens.js``.

Imported only when a lens is shown, because anywidget belongs to the extra ``notebooks``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import traitlets

from comet_lib.errors import CometError
from comet_lib.lens.data import LensData, payload

HERE = Path(__file__).parent


class LensWidget(anywidget.AnyWidget):
    """Draws one :class:`LensData`; the selection is plain attributes that follow the reader.

    ``teacher_layer`` and ``student_layer`` count from 0, ``step`` is an index into the steps, and
    head -1 is the mean. A value that the data does not have raises :class:`CometError`.
    """

    _esm = (HERE / "lens.js").read_text(encoding="utf-8")
    _css = (HERE / "lens.css").read_text(encoding="utf-8")

    header = traitlets.Dict().tag(sync=True)
    maps = traitlets.Bytes().tag(sync=True)
    teacher_layer = traitlets.Int().tag(sync=True)
    student_layer = traitlets.Int().tag(sync=True)
    step = traitlets.Int().tag(sync=True)
    teacher_head = traitlets.Int(-1).tag(sync=True)
    student_head = traitlets.Int(-1).tag(sync=True)

    def __init__(self, data: LensData) -> None:
        header, maps = payload(data)
        self._limits = data.limits()
        super().__init__(header=header, maps=maps, **data.start())

    @traitlets.validate("teacher_layer", "student_layer", "step", "teacher_head", "student_head")
    def _within(self, proposal: Any) -> int:
        name, value = proposal.trait.name, proposal.value
        low, high = self._limits[name]
        if not low <= value <= high:
            raise CometError(f"{name} is {value}, but must be from {low} to {high}.")
        return value
