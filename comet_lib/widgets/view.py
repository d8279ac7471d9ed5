"""What every interactive view shares: controls above, one picture below, and a static twin."""

from __future__ import annotations

import io
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def png(figure: Figure, dpi: int = 80) -> bytes:
    """The figure as PNG bytes; it is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    plt.close(figure)
    return buffer.getvalue()


def settled(figure: Figure, dpi: int = 80) -> Figure:
    """The figure with its layout solved for good: to draw it again then takes a fraction."""
    figure.set_dpi(dpi)
    figure.canvas.draw()
    figure.canvas.draw()  # square maps shrink in the first pass, which makes room in the second
    figure.set_layout_engine("none")
    return figure


class View:
    """Controls and a picture that follows them.

    A subclass gives the controls to ``__init__`` and overrides :meth:`draw` (the figure for the
    present values) and :meth:`describe` (one sentence, also for screen readers). Each control's
    value is a plain attribute: ``view.temperature`` reads it, ``view.temperature = 4`` sets it.
    In a live notebook the last line of a cell shows the controls; on GitHub, in nbconvert and in
    nbval it shows the picture alone.
    """

    def __init__(self, **controls: Any) -> None:
        self._controls = controls
        self._image = ipywidgets.Image(format="png", layout={"max_width": "100%"})
        self._sentence = ipywidgets.Label()
        self.box = ipywidgets.VBox(
            [ipywidgets.VBox(list(controls.values())), self._image, self._sentence]
        )
        for control in controls.values():
            control.observe(self._changed, names="value")
        self._changed()

    def draw(self) -> Figure:
        """The figure for the present values."""
        raise NotImplementedError

    def describe(self) -> str:
        """One sentence that says what the figure shows."""
        raise NotImplementedError

    def _changed(self, _: Any = None) -> None:
        self._image.value = png(self.draw())
        self._sentence.value = self.describe()

    def __getattr__(self, name: str) -> Any:
        controls = self.__dict__.get("_controls", {})
        if name in controls:
            return controls[name].value
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        controls = self.__dict__.get("_controls", {})
        if name in controls:
            controls[name].value = value
        else:
            super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self.describe()}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {
            "text/plain": repr(self),
            "image/png": bytes(self._image.value),
            WIDGET_VIEW: {
                "version_major": 2,
                "version_minor": 0,
                "model_id": self.box.model_id,
            },
        }
