"""The lens in a live notebook: an anywidget (0.9 and up) around ``lens.js``.

Imported only when a lens is shown: anywidget belongs to the extra ``notebooks``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import traitlets

from comet_lib.errors import CometError
from comet_lib.lens.data import LensData
from comet_lib.lens.payload import payload
from comet_lib.lens.static import chosen_pair

HERE = Path(__file__).parent


class LensWidget(anywidget.AnyWidget):
    """Draws one :class:`LensData`; what is selected is a plain attribute and follows the reader.

    ``teacher_layer`` and ``student_layer`` count from 0, ``step`` is an index into the steps, and a
    head of -1 is the mean. A value that the data does not have raises :class:`CometError`.
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
        teacher, student = chosen_pair(data, None, None)
        super().__init__(
            header=header,
            maps=maps,
            teacher_layer=teacher,
            student_layer=student,
            step=len(data.js) - 1,
        )

    @traitlets.validate("teacher_layer", "student_layer", "step", "teacher_head", "student_head")
    def _within(self, proposal: Any) -> int:
        name, value = proposal.trait.name, proposal.value
        low, high = limits(self.header)[name]
        if not low <= value <= high:
            raise CometError(f"{name} is {value}, but must be from {low} to {high}.")
        return value


def limits(header: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """The lowest and highest value of each selection."""
    blocks = header["blocks"]

    def heads(name: str) -> int:
        return int(blocks[name]["shape"][-3]) if name in blocks else 0

    return {
        "teacher_layer": (0, blocks["teacher"]["shape"][0] - 1),
        "student_layer": (0, blocks["student"]["shape"][1] - 1),
        "step": (0, blocks["student"]["shape"][0] - 1),
        "teacher_head": (-1, heads("teacherHeads") - 1),
        "student_head": (-1, heads("studentHeads") - 1),
    }
