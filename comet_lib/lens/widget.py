"""The lens in a live notebook: an anywidget (0.9 and up) around ``lens.js``.

Imported only when a lens is shown, because anywidget belongs to the extra ``notebooks``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from comet_lib.errors import CometError
from comet_lib.lens.data import LensData, occlusion_payload, payload

HERE = Path(__file__).parent
TRIED = 20  # texts that the lens remembers


class LensWidget(anywidget.AnyWidget):
    """Draws one :class:`LensData`; the selection is plain attributes that follow the reader.

    ``teacher_layer`` and ``student_layer`` count from 0, ``step`` is an index into the steps, and
    head -1 is the mean. A value that the data does not have raises :class:`CometError`.

    If the lens has its models, the reader can type another text. The browser then sends
    ``{"id": number, "text": text}``, and later ``{"id": number, "hide": True}`` for its occlusion,
    which is slower. Each is answered by new traits and a message ``{"id": number, "ms": time}``,
    with ``error`` if the text cannot be read; then nothing else changes.
    """

    _esm = (HERE / "lens.js").read_text(encoding="utf-8")
    _css = (HERE / "lens.css").read_text(encoding="utf-8")

    header = traitlets.Dict().tag(sync=True)
    maps = traitlets.Bytes().tag(sync=True)
    occlusion = traitlets.Dict().tag(sync=True)
    live = traitlets.Bool().tag(sync=True)  # whether another text can be read
    tried = traitlets.List(traitlets.Unicode()).tag(sync=True)  # texts, the newest last
    teacher_layer = traitlets.Int().tag(sync=True)
    student_layer = traitlets.Int().tag(sync=True)
    step = traitlets.Int().tag(sync=True)
    teacher_head = traitlets.Int(-1).tag(sync=True)
    student_head = traitlets.Int(-1).tag(sync=True)

    def __init__(self, data: LensData) -> None:
        header, maps = payload(data)
        self.data, self._limits = data, data.limits()
        super().__init__(
            header=header,
            maps=maps,
            occlusion=occlusion_payload(data.occlusion),
            live=data.read is not None,
            tried=[data.text],
            **data.start(),
        )
        self.on_msg(self._asked)

    def read(self, text: str) -> None:
        """Show another text. Raises :class:`CometError` if it cannot be read."""
        if self.data.read is None:
            raise CometError("this lens was built from arrays, so it has no model to read a text.")
        data = self.data.read(text)
        header, maps = payload(data)
        with self.hold_sync():  # one message to the browser
            self.data, self.header, self.maps, self.occlusion = data, header, maps, {}
            self.tried = [*(old for old in self.tried if old != data.text), data.text][-TRIED:]

    def _asked(self, _: Any, content: dict[str, Any], buffers: Any) -> None:
        begun, reply = time.perf_counter(), {"id": content.get("id")}
        try:
            if content.get("hide"):
                self.occlusion = occlusion_payload(self.data.occlusion)
            else:
                self.read(str(content["text"]))
        except Exception as error:  # here a traceback would go to a log that nobody reads
            reply["error"] = str(error) or type(error).__name__
        self.send(reply | {"ms": round(1000 * (time.perf_counter() - begun))})

    @traitlets.validate("teacher_layer", "student_layer", "step", "teacher_head", "student_head")
    def _within(self, proposal: Any) -> int:
        name, value = proposal.trait.name, proposal.value
        low, high = self._limits[name]
        if not low <= value <= high:
            raise CometError(f"{name} is {value}, but must be from {low} to {high}.")
        return value
