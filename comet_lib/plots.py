"""Static figures from arrays; no model runs here.

Colors are Okabe and Ito's, which color-blind readers can tell apart. Titles state the finding.
seaborn draws bars, curves and points. matplotlib draws three things directly: intervals, which come
ready from our bootstraps; attention maps, as ``seaborn.heatmap`` draws the whole figure again for
each (24 maps: 40 seconds instead of 3); and the bars that a slider redraws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any, TypeAlias
from unicodedata import category

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.ticker import LogLocator

from comet_lib.files import whole_file

Maps: TypeAlias = Sequence[np.ndarray]
Names: TypeAlias = Sequence[str]
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#767676"
SKY = "#56B4E9"
#: One color per model, the same in every figure of the course.
COLORS = dict(teacher=BLUE, student=ORANGE, student_no_distillation=PINK, tfidf=GREEN, paper=GREY)
COLORS |= dict(tfidf_both_forms="#66C5AB", soft_targets=SKY)
#: What the Trainer logs beside loss terms, and its evaluations.
NO_TERMS = {"step", "epoch", "loss", "grad_norm", "learning_rate", "total_flos"}
MAP_COLORS = "magma_r"  # attention: light is little
DIFFERENCE_COLORS = "PuOr"  # student minus teacher: orange less, violet more
NO_FONT = "#n is token n, counted from 0, whose letters no installed font has: install a Noto font"


def save(figure: Figure, path: str | Path, dpi: int = 150) -> Path:
    """Write a PNG whole or not at all, and close the figure."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, bbox_inches="tight")
        temporary.chmod(0o644)
    plt.close(figure)
    return Path(path)


@cache
def _characters(font: str) -> frozenset[int]:
    """The code points that a font file draws; one of bitmaps (emoji) draws none at our sizes."""
    opened = get_font(font)
    return frozenset(opened.get_charmap() if opened.scalable else ())


def drawable(tokens: Names) -> tuple[list[str], list[str], str]:
    """What to write for tokens: their labels, the font families, and a note for the caption.

    Letters that the usual font lacks come from the installed ones that have them. A sign that none
    has, such as an emoji, is written (emoji). A token with letters that none has is shown by its
    number, as the note, otherwise empty, says.
    """
    families = list(plt.rcParams["font.family"])
    lacking = set(map(ord, "".join(tokens)))
    for name in families:
        lacking -= _characters(findfont(FontProperties(family=[name])))
    for font in sorted(fontManager.ttflist, key=lambda font: font.name) if lacking else ():
        usable = font.style == "normal" and not font.name.startswith("Last Resort")  # has boxes
        if usable and (found := lacking & _characters(font.fname)):
            families.append(font.name)
            lacking -= found
    labels, note = [*tokens], ""
    for i, token in enumerate(tokens):
        missing = [x for x in token if ord(x) in lacking]
        kinds = set(map(category, missing))
        if "So" in kinds and kinds <= {"So", "Sk", "Mn", "Cf"}:  # with its skin tone and joiners
            rest = [x for x in token if x not in missing and category(x) != "Cf"]
            labels[i] = "".join(rest) + "(emoji)"
        elif missing:
            labels[i], note = f"#{i}", NO_FONT
    return labels, families, note


def on_axis(label: str) -> str:
    """A token's label beside a map: the block that begins a word is too heavy there."""
    return "_" + label[1:] if label.startswith("▁") else label


def result_bars(report: Mapping[str, Any]) -> Figure:
    """Mean weighted F1 of each model with its 95 % interval, the paper's figures below."""
    ours, paper = report["rows"], report.get("paper", [])
    names = [row["name"] for row in (*ours, *paper)]
    means = [row["weighted_f1"]["mean"] for row in (*ours, *paper)]
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(names) + 1.2), layout="constrained")
    colors = {name: COLORS.get(name, GREY) for name in names}
    sns.barplot(x=means, y=names, hue=names, palette=colors, saturation=1, width=0.7, ax=axes)
    low, high = np.array([row["ci95"]["mean"] for row in ours]).T
    axes.hlines(range(len(ours)), low, high, color="black", linewidth=2)
    for y, (mean, end) in enumerate(zip(means, [*high, *means[len(ours) :]], strict=True)):
        axes.text(end + 0.3, y, f"{mean:.1f}", va="center")
    shown = [name.replace("_", " ") for name in names]
    axes.set_yticks(range(len(names)), shown)
    axes.set_xlim(max(0, 5 * (min(*means, *low) // 5) - 5), max(*means, *high) + 4)
    axes.set_xlabel("mean weighted F1, percent (axis does not start at zero; line: 95 % interval)")
    models = [n for n, row in enumerate(ours) if row["name"] != "soft_targets"]
    best = max(models, key=means.__getitem__)
    axes.set_title(f"Best model of ours: {shown[best]}, {means[best]:.1f}", loc="left")
    sns.despine(figure)
    return figure


def training_curves(logs: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Every logged loss term of every stage, one panel per stage; titles follow the first term.
    A term's floor, if logged, is a dashed line: what the best constant answer loses."""
    shape: dict[str, Any] = {"figsize": (3.6 * len(logs), 3), "squeeze": False}
    figure, panels = plt.subplots(1, len(logs), layout="constrained", **shape)
    for axes, (stage, rows) in zip(panels[0], logs.items(), strict=True):
        table, title = pd.DataFrame(rows), stage.replace("_", " ")
        known = [x for x in table if x not in NO_TERMS and not x.startswith(("eval_", "train_"))]
        terms = [x for x in known if not x.endswith("_floor")]
        others = cycle((ORANGE, PINK, GREY))
        for term in terms:
            color = {"soft_targets": BLUE, "hard_labels": GREEN}.get(term) or next(others)
            line = {"label": term.replace("_", " "), "color": color, "estimator": None}
            sns.lineplot(table, x="step", y=term, ax=axes, **line)
        for floor in set(known) - set(terms):
            axes.axhline(table[floor].max(), color=BLUE, ls="--", label="one constant answer")
        if terms:
            values = table[terms[0]].dropna().tolist()
            title += f": {terms[0].replace('_', ' ')} {values[0]:.2f} → {values[-1]:.2f}"
            axes.legend(frameon=False)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set(xlabel="step", ylabel="")
    panels[0][0].set_ylabel("loss term (nats)")
    sns.despine(figure)
    return figure


def attention_maps(
    maps: Maps,
    tokens: Names,
    titles: Names,
    difference: bool = False,
    title: str = "",
    columns: int | None = None,
) -> Figure:
    """Maps (L, L) of one sentence on one color scale, in rows of ``columns`` (default: all).

    With ``difference`` the last is signed and has a scale of its own. Tokens stand only on the
    outer axes, as they are (``$`` starts no formula).
    """
    columns = min(columns or len(maps), len(maps))
    rows, least = -(-len(maps) // columns), 4.2 if len(maps) == 1 else 2.6  # inches
    size = max(least, 0.2 * len(tokens) + 0.9)
    shape = (size * columns + 1, size * rows + 0.4)
    figure, panels = plt.subplots(rows, columns, figsize=shape, layout="constrained", squeeze=False)
    shared = list(maps[:-1] if difference else maps)
    labels, families, note = drawable(tokens)
    labels = [*map(on_axis, labels)]
    names: dict[str, Any] = {"fontsize": 8, "parse_math": False, "fontfamily": families}
    for number, (axes, one, name) in enumerate(zip(panels.flat, maps, titles, strict=False)):
        across = [] if number + columns < len(maps) else labels  # no other panel stands below
        down = [] if number % columns else labels
        axes.set_xticks(range(len(across)), across, rotation=90, **names)
        axes.set_yticks(range(len(down)), down, **names)
        axes.set_title(name, fontsize=10)
        if number < len(shared):
            scale = axes.imshow(one, cmap=MAP_COLORS, vmin=0, vmax=max(m.max() for m in shared))
        else:
            limit = max(float(np.abs(one).max()), 1e-9)
            signed = axes.imshow(one, cmap=DIFFERENCE_COLORS, vmin=-limit, vmax=limit)
            figure.colorbar(signed, ax=axes, shrink=0.7)
    for empty in panels.flat[len(maps) :]:
        empty.axis("off")
    where = panels.flat[: len(shared)].tolist() if difference else panels
    figure.colorbar(scale, ax=where, shrink=0.7, label="attention (each row sums to 1)")
    figure.supxlabel(f"looked at\n{note}".strip(), fontsize=10, wrap=True)
    figure.supylabel("looking", fontsize=10)
    figure.suptitle(title, fontsize=11)
    return figure


def map_grid(maps: Maps, titles: Names, tokens: Names, title: str = "", columns: int = 3) -> Figure:
    """:func:`attention_maps` as a grid."""
    return attention_maps(maps, tokens, titles, title=title, columns=columns)


def soft_target_bars(
    probabilities: Mapping[str, np.ndarray], labels: Sequence[str], title: str = ""
) -> Figure:
    """Probabilities (3,) of several models or temperatures for one text, bars side by side."""
    figure, axes = plt.subplots(figsize=(7, 3))
    figure.subplots_adjust(left=0.1, right=0.98, bottom=0.12, top=0.88)  # quick: a slider redraws
    table = pd.DataFrame(probabilities, index=list(labels))
    table.plot.bar(ax=axes, width=0.8, rot=0, color=[BLUE, ORANGE, GREEN, PINK, GREY])
    bars: Any
    for bars in axes.containers:
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set(ylim=(0, 1.1), ylabel="probability")
    axes.legend(frameon=False)
    axes.set_title(title, loc="left")
    sns.despine(figure)
    return figure


def forest(rows: Sequence[Mapping[str, Any]], split: str = "test") -> Figure:
    """Differences of ``comet_lib.lab.comparison.summarize``: mean, 95 % interval, single seeds.

    Left what distillation adds, right what one change adds to soft targets. A filled point keeps
    p below 0.05 after Holm's correction; a hollow one does not.
    """
    both = {
        "difference": ("against", "none", "Distillation"),
        "added": ("base", "both", "The one change"),
    }
    kinds = [kind for kind in both if any(kind in row[split] for row in rows)]
    shown = [row for row in rows if any(kind in row[split] for kind in kinds)]
    shape = (4 + 4 * len(kinds), 0.36 * len(shown) + 1.7)
    how: dict[str, Any] = {"figsize": shape, "layout": "constrained", "squeeze": False}
    figure, (panels,) = plt.subplots(1, len(kinds), sharey=True, **how)
    for axes, kind in zip(panels, kinds, strict=True):
        other, usual, what = both[kind]
        there = {y: row for y, row in enumerate(shown) if kind in row[split]}
        tests = pd.DataFrame([row[split][kind] for row in there.values()]).assign(y=list(there))
        sure = tests["holm"] < 0.05
        colors, (low, high) = np.where(sure, BLUE, GREY), np.stack(tests["ci95"]).T
        axes.axvline(0, color="black", linewidth=0.8)
        axes.hlines(tests["y"], low, high, color=colors, linewidth=2)
        fill = np.where(sure, BLUE, "white")
        axes.scatter(tests["mean"], tests["y"], c=fill, edgecolor=colors, zorder=3)
        seeds = tests.explode("each").assign(y=lambda seed: seed["y"] + 0.28)
        sns.scatterplot(seeds, x="each", y="y", marker="|", color=ORANGE, linewidth=1, ax=axes)
        for y, row in there.items():
            to = f" (to {row[other]})" if row[other] != usual else ""
            text = f"{row[split][kind]['mean']:+z.1f}{to}"
            axes.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), va="center")
        title = f"{what} adds: p < 0.05 in {sure.sum()} of {len(tests)}"
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xscale("symlog", linthresh=2)  # tenths of a point, and tens
        axes.set_xticks(ticks := [-20, -2, 0, 2, 10], [f"{x:+d}" if x else "0" for x in ticks])
        axes.set_xlim(min(-2, *low) * 1.2, max(2, *high) * 1.2)
        axes.set(xlabel=f"points of mean weighted F1 on {split}", ylabel="")
    panels[0].set_yticks(range(len(shown)), [row["about"] for row in shown])
    panels[0].set_ylim(len(shown) - 0.4, -0.6)
    over = "tweets and seeds" if min(row["seeds"] for row in shown) > 1 else "tweets (one seed)"
    key = "orange: single seeds; filled and blue: p < 0.05 after Holm's correction"
    scale = "the scale is logarithmic beyond 2 points"
    figure.supxlabel(f"line: 95 % interval over {over}; {key}; {scale}", fontsize=9)
    sns.despine(figure)
    return figure


def cost_growth(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Seconds of each kind of step (``step``, ``batch``, ``length``, ``seconds``): over the length
    at the largest batch, and over the batch at the largest length."""
    table = pd.DataFrame(rows)
    kinds = list(table["step"].unique())
    looks: dict[str, Any] = {"style": "step", "markers": True, "dashes": False}
    looks["palette"] = [BLUE, GREY, ORANGE, GREEN]
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
    for axes, name, other in zip(panels, ("length", "batch"), ("batch", "length"), strict=True):
        part = table[table[other] == table[other].max()].sort_values(name)
        sns.lineplot(part, x=name, y="seconds", hue="step", ax=axes, **looks)
        sizes = part[name].unique()
        axes.set(yscale="log", xticks=sizes, ylabel="seconds per step (log scale)")
        axes.set_xlabel(f"{name} (at {other} {table[other].max()})")
        grew = part.groupby("step")["seconds"].agg(lambda s: s.iloc[-1] / s.iloc[0])
        title = f"{sizes[-1] // sizes[0]} times the {name}: {kinds[0]} takes {grew[kinds[0]]:.1f} "
        title += f"times as long,\n{kinds[-1]} {grew[kinds[-1]]:.1f} times"
        axes.set_title(title, loc="left", fontsize=9)
        axes.get_legend().remove()
    panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[0].minorticks_off()
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(kinds), frameon=False)
    sns.despine(figure)
    return figure
