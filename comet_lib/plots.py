"""Static figures from arrays: no model is run here.

Colours are Okabe and Ito's, which stay apart for colour-blind readers; titles state the finding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from comet_lib.files import whole_file

BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#767676"
#: One colour a model, the same in every figure of the course.
COLOURS = {
    "teacher": BLUE,
    "student": ORANGE,
    "student_no_distillation": PINK,
    "tfidf": GREEN,
    "paper": GREY,
}
MAP_COLOURS = "magma_r"  # attention: light is little
DIFFERENCE_COLOURS = "PuOr"  # student minus teacher: orange less, violet more


def save(figure: Figure, path: str | Path, dpi: int = 150) -> Path:
    """Write a PNG whole or not at all, and close the figure."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, bbox_inches="tight")
        temporary.chmod(0o644)
    plt.close(figure)
    return Path(path)


def _bare(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def result_bars(report: Mapping[str, Any]) -> Figure:
    """Mean weighted F1 of each model with its 95 % interval, the paper's figures below."""
    rows = [(r["name"], r["weighted_f1"]["mean"], r["ci95"]["mean"]) for r in report["rows"]]
    rows += [(r["name"], r["weighted_f1"]["mean"], None) for r in report.get("paper", [])]
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(rows) + 1.2), layout="constrained")
    for y, (name, mean, interval) in enumerate(rows):
        axes.barh(y, mean, color=COLOURS.get(name, GREY), height=0.7)
        if interval:
            axes.plot(interval, [y, y], color="black", linewidth=2, solid_capstyle="butt")
        axes.text((interval or (mean, mean))[1] + 0.3, y, f"{mean:.1f}", va="center")
    axes.set_yticks(range(len(rows)), [name.replace("_", " ") for name, *_ in rows])
    axes.invert_yaxis()
    low = min(mean for _, mean, _ in rows)
    axes.set_xlim(max(0, 5 * (low // 5) - 5), max(mean for _, mean, _ in rows) + 4)
    axes.set_xlabel("mean weighted F1, percent (axis does not start at zero; line: 95 % interval)")
    best = max(rows, key=lambda row: row[1])[0].replace("_", " ")
    axes.set_title(f"Highest mean: {best}", loc="left")
    _bare(axes)
    return figure


def training_curves(logs: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Every logged loss term of every stage, one panel a stage."""
    figure, panels = plt.subplots(
        1, len(logs), figsize=(3.6 * len(logs), 3), layout="constrained", squeeze=False
    )
    names = {"soft_targets": BLUE, "attention": ORANGE, "hard_labels": GREEN}
    for axes, (stage, rows) in zip(panels[0], logs.items(), strict=True):
        for name, colour in names.items():
            points = [(r["step"], r[name]) for r in rows if name in r]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, label=name.replace("_", " "))
        axes.set_title(stage.replace("_", " "), loc="left")
        axes.set_xlabel("step")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
        _bare(axes)
    panels[0][0].set_ylabel("loss term (nats)")
    return figure


def drawable(token: str) -> str:
    """The token with emoji and other signs that matplotlib's font lacks as boxes."""
    return "".join("□" if ord(c) >= 0x2600 else c for c in token)


def attention_maps(
    maps: Sequence[np.ndarray],
    tokens: Sequence[str],
    titles: Sequence[str],
    difference: bool = False,
    title: str = "",
) -> Figure:
    """Maps (L, L) side by side on one token axis; with ``difference`` the last is signed."""
    tokens = [drawable(token) for token in tokens]
    size = max(2.6, 0.2 * len(tokens) + 0.9)
    figure, panels = plt.subplots(
        1,
        len(maps),
        figsize=(size * len(maps) + 1, size + 0.4),
        layout="constrained",
        squeeze=False,
    )
    top = max(float(m.max()) for m in (maps[:-1] if difference else maps))
    for number, (axes, one, name) in enumerate(zip(panels[0], maps, titles, strict=True)):
        signed = difference and number == len(maps) - 1
        limit = max(float(np.abs(one).max()), 1e-9)
        image = axes.imshow(
            one,
            cmap=DIFFERENCE_COLOURS if signed else MAP_COLOURS,
            vmin=-limit if signed else 0,
            vmax=limit if signed else top,
        )
        axes.set_title(name)
        axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=8, parse_math=False)
        axes.set_yticks(
            range(len(tokens)), tokens if number == 0 else [], fontsize=8, parse_math=False
        )
        axes.set_xlabel("looked at")
        figure.colorbar(image, ax=axes, shrink=0.7)
    panels[0][0].set_ylabel("looking (each row sums to 1)")
    if title:
        figure.suptitle(title)
    return figure


def map_grid(
    maps: Sequence[np.ndarray],
    titles: Sequence[str],
    tokens: Sequence[str],
    title: str = "",
    columns: int = 3,
) -> Figure:
    """Maps (L, L) of one sentence on one colour scale; tokens on the outer axes alone."""
    columns = min(columns, len(maps))
    rows = -(-len(maps) // columns)
    figure, panels = plt.subplots(
        rows,
        columns,
        figsize=(3.0 * columns + 1, 2.9 * rows + 0.8),
        layout="constrained",
        squeeze=False,
    )
    top = max(float(m.max()) for m in maps)
    places = range(len(tokens))
    for number, axes in enumerate(panels.flat):
        if number >= len(maps):
            axes.axis("off")
            continue
        image = axes.imshow(maps[number], cmap=MAP_COLOURS, vmin=0, vmax=top)
        axes.set_title(titles[number], fontsize=10)
        below = number + columns < len(maps)  # another panel stands below
        axes.set_xticks(places, [] if below else tokens, rotation=90, fontsize=8, parse_math=False)
        axes.set_yticks(
            places, tokens if number % columns == 0 else [], fontsize=8, parse_math=False
        )
    figure.colorbar(image, ax=panels, shrink=0.6, label="attention (each row sums to 1)")
    figure.suptitle(title, fontsize=11)
    return figure


def soft_target_bars(
    probabilities: Mapping[str, np.ndarray], labels: Sequence[str], title: str = ""
) -> Figure:
    """Probabilities (3,) of several models or temperatures for one text, bars side by side."""
    figure, axes = plt.subplots(figsize=(7, 3))
    figure.subplots_adjust(left=0.1, right=0.98, bottom=0.12, top=0.88)  # quick: a slider redraws
    width = 0.8 / len(probabilities)
    palette = (BLUE, ORANGE, GREEN, PINK, GREY)
    for i, (name, values) in enumerate(probabilities.items()):
        at = np.arange(len(labels)) + (i - (len(probabilities) - 1) / 2) * width
        bars = axes.bar(at, values, width, label=name, color=palette[i % len(palette)])
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylim(0, 1.1)
    axes.set_ylabel("probability")
    axes.legend(frameon=False)
    axes.set_title(title, loc="left")
    _bare(axes)
    return figure


def forest(rows: Sequence[Mapping[str, Any]], split: str = "test") -> Figure:
    """Differences of ``comet_lib.lab.comparison.summarise``: point, 95 % interval, each seed's own.

    Left what distillation adds, right what one change adds to soft targets. A filled point keeps
    p below 0.05 after Holm's correction; a hollow one does not.
    """
    panels = [
        panel
        for panel in (
            ("difference", "against", "none", "Distillation"),
            ("added", "base", "both", "The one change"),
        )
        if any(panel[0] in row[split] for row in rows)
    ]
    shown = [row for row in rows if any(kind in row[split] for kind, *_ in panels)]
    size = (3 + 3.5 * len(panels), 0.36 * len(shown) + 1.7)
    figure, grid = plt.subplots(
        1, len(panels), sharey=True, figsize=size, layout="constrained", squeeze=False
    )
    axes = grid[0]
    for axis, (kind, other, usual, title) in zip(axes, panels, strict=True):
        axis.axvline(0, color="black", linewidth=0.8)
        tests = [(y, row) for y, row in enumerate(shown) if kind in row[split]]
        for y, row in tests:
            test = row[split][kind]
            sure = test["holm"] < 0.05
            colour = BLUE if sure else GREY
            axis.plot(test["ci95"], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
            axis.plot(test["each"], [y + 0.28] * len(test["each"]), "|", color=ORANGE, markersize=6)
            axis.plot(
                test["mean"], y, "o", color=colour, markerfacecolor=colour if sure else "white"
            )
            to = "" if row[other] == usual else f" (to {row[other]})"
            axis.annotate(
                f"{test['mean']:+z.1f}{to}",
                (1.01, y),
                xycoords=("axes fraction", "data"),
                va="center",
            )
        found = sum(row[split][kind]["holm"] < 0.05 for _, row in tests)
        axis.set_title(
            f"{title} adds: p < 0.05 in {found} of {len(tests)}", loc="left", fontsize=10
        )
        axis.set_xlabel(f"points of mean weighted F1 on {split}")
        _bare(axis)
    axes[0].set_yticks(range(len(shown)), [row["about"] for row in shown])
    axes[0].set_ylim(len(shown) - 0.4, -0.6)
    seeds = "tweets and seeds" if min(row["seeds"] for row in shown) > 1 else "tweets (one seed)"
    figure.supxlabel(
        f"line: 95 % interval over {seeds}; orange: single seeds; "
        "filled and blue: p < 0.05 after Holm's correction",
        fontsize=9,
    )
    return figure


def cost_growth(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Seconds of each kind of step (``step``, ``batch``, ``length``, ``seconds``): over the length
    at the largest batch, and over the batch at the largest length. Both axes are logarithmic."""
    largest = {name: max(row[name] for row in rows) for name in ("batch", "length")}
    kinds = list(dict.fromkeys(row["step"] for row in rows))
    styles = dict(zip(kinds, zip((BLUE, GREY, ORANGE, GREEN), "os^D", strict=True), strict=False))
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
    for axes, name, other in zip(panels, ("length", "batch"), ("batch", "length"), strict=True):
        times = {
            kind: sorted(
                (row[name], row["seconds"])
                for row in rows
                if row["step"] == kind and row[other] == largest[other]
            )
            for kind in kinds
        }
        for kind, points in times.items():
            colour, marker = styles[kind]
            axes.plot(*zip(*points, strict=True), marker=marker, color=colour, label=kind)
        ticks = [x for x, _ in times[kinds[0]]]
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(ticks, [str(x) for x in ticks])
        unit = {"length": "tokens a row", "batch": "rows"}
        axes.set_xlabel(f"{unit[name]} ({largest[other]} {unit[other]})")
        grew = [times[kind][-1][1] / times[kind][0][1] for kind in (kinds[0], kinds[-1])]
        axes.set_title(
            f"{ticks[-1] // ticks[0]} times the {name}: {kinds[0]} takes {grew[0]:.1f} times as "
            f"long,\n{kinds[-1]} {grew[1]:.1f} times",
            loc="left",
            fontsize=9,
        )
        _bare(axes)
    panels[0].set_ylabel("seconds of a step")
    panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[0].yaxis.set_minor_formatter(NullFormatter())
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=len(kinds),
        frameon=False,
        fontsize=8,
    )
    return figure
