"""What all interactive views share: controls above, one picture below, and a static twin."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
DPI = 110  # of a view's picture
SHOWN = 100  # page pixels an inch, where there is room
# A white picture glares on a dark page: white becomes black there, and hues stay.
DARK = """<style>
body[data-jp-theme-light="false"] .comet-view, body.vscode-dark .comet-view,
html[theme="dark"] .comet-view { filter: invert(0.88) hue-rotate(180deg); }
</style>"""
#: The background of numbers that stand on bars.
LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}

Built = tuple[Figure, Sequence[Artist]]


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes; it is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    plt.close(figure)
    return buffer.getvalue()


def live_view(widget: Any) -> dict[str, Any]:
    """The entry of a mime bundle that shows a widget in a live notebook."""
    return {WIDGET_VIEW: {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}}


def bare(*panels: Any) -> None:
    """Remove the lines at the top and right of the panels."""
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)


def log_ticks(axes: Any, values: Sequence[float] | np.ndarray) -> None:
    """A logarithmic x axis with ticks only at ``values``, written out."""
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(values, [f"{value:,.0f}" for value in values])


def bars_and_curves(ratios: tuple[float, float], **margins: float) -> tuple[Figure, Any, Any]:
    """A wide figure with bars on the left and curves on the right: figure and both panels.

    It has neither pyplot nor a layout engine, because a slider must answer in under 100 ms.
    """
    figure = Figure(figsize=(8.5, 3.1))
    bars, curves = figure.subplots(1, 2, width_ratios=ratios)
    figure.subplots_adjust(right=0.98, top=0.86, wspace=0.25, **margins)
    bare(bars, curves)
    return figure, bars, curves


class Painter:
    """Paints one figure again and again; what never moves is drawn once (blitting)."""

    def __init__(self, figure: Figure, moving: Sequence[Artist]) -> None:
        plt.close(figure)  # or a notebook would show it a second time
        edges = [edge for axes in figure.axes for edge in axes.spines.values()]
        above = [edge for edge in edges if edge.axes in {artist.axes for artist in moving}]
        self.figure, self._moving = figure, [*moving, *above]
        figure.set_dpi(DPI)
        self._canvas = FigureCanvasAgg(figure)
        self._canvas.draw()
        if figure.get_layout_engine() is not None:
            self._canvas.draw()  # square maps shrink in the first pass, which makes room
            figure.set_layout_engine("none")
        for artist in self._moving:
            artist.set_animated(True)
        self._canvas.draw()
        self._still: Any = self._canvas.copy_from_bbox(figure.bbox)

    def png(self) -> bytes:
        """The figure as it is now, as PNG bytes."""
        self._canvas.restore_region(self._still)
        for artist in self._moving:
            self.figure.draw_artist(artist)
        buffer, pixels = io.BytesIO(), np.asarray(self._canvas.buffer_rgba())
        imsave(buffer, pixels, format="png", pil_kwargs={"compress_level": 1})
        return buffer.getvalue()


class View:
    """Controls and a picture that follows them.

    A subclass passes the controls to ``__init__`` and overrides :meth:`build`, :meth:`move` and
    :meth:`describe`. Each control's value is a plain attribute: ``view.temperature`` reads it,
    ``view.temperature = 4`` sets it. In a live notebook the last line of a cell shows the controls;
    on GitHub, in nbconvert and in nbval it shows only the picture.
    """

    def __init__(self, **controls: Any) -> None:
        self._controls = controls
        # A box stretches its contents in both directions; 4 px are its margins.
        shape = {"max_width": "calc(100% - 4px)", "height": "auto", "align_self": "flex-start"}
        self._image = ipywidgets.Image(format="png", layout=shape)
        self._image.add_class("comet-view")
        self._sentence = ipywidgets.HTML()  # a Label is one line, cut off where it is too long
        dark = ipywidgets.HTML(DARK, layout={"display": "none"})
        self.box = ipywidgets.VBox(
            [ipywidgets.VBox(list(controls.values())), self._image, self._sentence, dark]
        )
        for name, control in controls.items():
            control.description = name.replace("_", "-")
            control.observe(self._changed, names="value")
        self._painter: Painter | None = None
        self._changed()

    def build(self) -> Built:
        """The figure, and what moves in it: these artists are painted last, in this order."""
        raise NotImplementedError

    def move(self, figure: Figure) -> None:
        """Put the artists of :meth:`build` where the present values want them."""
        raise NotImplementedError

    def describe(self) -> str:
        """One sentence that says what the figure shows, also for screen readers."""
        raise NotImplementedError

    def draw(self) -> Figure:
        """The figure for the present values."""
        if self._painter is None:
            self._painter = Painter(*self.build())
            inches = self._painter.figure.get_size_inches()[0]
            self._image.layout.width = f"{SHOWN * inches:.0f}px"
        self.move(self._painter.figure)
        return self._painter.figure

    def _changed(self, _: Any = None) -> None:
        self.draw()
        assert self._painter is not None
        self._image.value = self._painter.png()
        self._sentence.value = html.escape(self.describe(), quote=False)

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
        picture = {"text/plain": repr(self), "image/png": bytes(self._image.value)}
        return picture | live_view(self.box)
