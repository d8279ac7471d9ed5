"""Milliseconds from a slider's move to the new picture, for every view of the course.

    python tools/benchmark_sliders.py [--repeats 3]

The tool moves each control of each view through its values, at most twelve of them. The table shows
the median and the slowest response. The views get invented data of the size that the notebooks use.
"""

from __future__ import annotations

import statistics
import time
from typing import Annotated, Any

import numpy as np
import typer

from comet_lib.data import LABELS
from comet_lib.profiles import PAPER_LANGUAGES
from comet_lib.widgets.alpha import AlphaView
from comet_lib.widgets.bootstrap import BootstrapView
from comet_lib.widgets.budget import ParameterBudget
from comet_lib.widgets.heads import HeadView
from comet_lib.widgets.labels import LabelBudgetView
from comet_lib.widgets.pieces import PiecesView
from comet_lib.widgets.temperature import TemperatureView
from comet_lib.widgets.view import View

TOKENS = 20


def views() -> list[View]:
    """One of each, on random numbers."""
    rng = np.random.default_rng(0)
    tokens = [f"▁ẹ̀{i}" for i in range(TOKENS)]

    def maps(*shape: int) -> np.ndarray:
        return rng.dirichlet(np.full(TOKENS, 0.3), shape)

    labels, budgets = rng.integers(0, 3, 2000), [60, 345, 1975]
    guesses = {
        name: np.where(rng.random(2000) < right, labels, rng.integers(0, 3, 2000))
        for name, right in (("student", 0.6), ("TF-IDF", 0.62))
    }
    f1 = {name: [40.0, 50.0, 60.0] for name in ("labels alone", "soft targets")}
    return [
        TemperatureView([2.0, 0.5, -1.0], LABELS),
        HeadView({layer: maps(5, TOKENS) for layer in range(4)}, tokens),
        AlphaView(1.0, 0.01, 0.4),
        LabelBudgetView(
            budgets, f1, {name: [(v - 3, v + 3) for v in row] for name, row in f1.items()}
        ),
        BootstrapView(labels, guesses, tweets=200),
        ParameterBudget(),
        PiecesView(
            list(range(1000, 25000, 1000)),
            {code: np.linspace(60, 100, 24) for code in PAPER_LANGUAGES},
            rest=113_000,
            width=64,
        ),
    ]


def values(control: Any) -> list[Any]:
    """At most twelve values of a control, from one end to the other."""
    if hasattr(control, "options"):
        every = [option[1] if isinstance(option, tuple) else option for option in control.options]
    else:
        every = list(np.arange(control.min, control.max + control.step / 2, control.step).tolist())
        every = [type(control.value)(v) for v in every]
    at = np.linspace(0, len(every) - 1, min(12, len(every))).round().astype(int)
    return [every[i] for i in at]


def main(repeats: Annotated[int, typer.Option(help="Passes over the values.")] = 3) -> None:
    """Milliseconds from a slider's move to the new picture, for every view of the course."""
    typer.echo(f"{'view':<18}{'control':<16}{'median ms':>10}{'slowest ms':>12}")
    for view in views():
        for name, control in view._controls.items():
            spent = []
            for value in values(control) * repeats:
                if control.value == value:
                    continue
                start = time.perf_counter()
                control.value = value
                spent.append(1000 * (time.perf_counter() - start))
            typer.echo(
                f"{type(view).__name__:<18}{name:<16}{statistics.median(spent):>10.0f}"
                f"{max(spent):>12.0f}"
            )


if __name__ == "__main__":
    typer.run(main)
