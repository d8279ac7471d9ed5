"""A run's report as text: the table with its comparisons, and the student's model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comet_lib import evaluation


def report_text(report: Mapping[str, Any]) -> str:
    """``report.md``: what was run, the table, the paired differences."""
    what = "AfriSenti" if report["benchmark"] else "the bundled sample (NOT a benchmark)"
    lines = [
        f"# Result on {what}, {report['split']} split",
        "",
        f"Weighted F1 in percent. Profile {report['profile']}, seed {report['seed']}, data from "
        f"{report['source']}. Intervals: 95 % bootstrap over tweets. `unseen` leaves out the rows "
        "that stand word for word in train.",
        "",
        evaluation.result_table(report),
        "",
        "## Is the difference real? (paired bootstrap, points of mean weighted F1)",
        "",
        "| difference | points | 95 % interval | p |",
        "|---|---|---|---|",
    ]
    for name, test in report["comparisons"].items():
        low, high = test["ci95"]
        lines.append(
            f"| {name} | {test['difference']:+.1f} | {low:+.1f} to {high:+.1f} | {test['p']:.3f} |"
        )
    seconds = report["seconds"]
    lines += [
        "",
        f"The student keeps {report['retention']:.1f} % of the teacher's score. A language's most "
        f"common label, said of each of its tweets, scores {report['floor']:.1f}. Seconds: "
        + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
        + f", in all {sum(seconds.values()):.0f}.",
        "",
    ]
    return "\n".join(lines)


def model_card(report: Mapping[str, Any]) -> str:
    """The student's README.md: a model card with data, recipe, scores and limits."""
    row = report["rows"][3]
    scores = "\n".join(
        f"| {code} | {row['weighted_f1'][code]:.1f} | {row['ci95'][code][0]:.1f} to "
        f"{row['ci95'][code][1]:.1f} |"
        for code in [*report["languages"], "mean"]
    )
    what = "AfriSenti" if report["benchmark"] else "a bundled sample, which is no benchmark"
    teachers = " and ".join(f"`{name}`" for name in dict.fromkeys(report["teachers"].values()))
    return f"""---
license: cc-by-4.0
pipeline_tag: text-classification
library_name: transformers
language: [{", ".join(report["languages"])}]
tags: [distillation, sentiment-analysis, afrisenti]
---
# A distilled sentiment model

A student of {row["parameters"]:,} parameters, distilled in two stages with the comet course
(profile {report["profile"]}, seed {report["seed"]}) from {teachers}. Labels: negative, neutral,
positive.

Weighted F1 on {what}, split {report["split"]}:

| language | weighted F1 | 95 % interval |
|---|---|---|
{scores}

**Data.** {report["source"]}. AfriSenti is CC BY 4.0 (Muhammad et al., EMNLP 2023).
**Limits.** Trained on tweets: other text is out of its domain. It follows the labels' frequencies
and the annotators' views. It must not decide about people. Scores differ by language; read the
table, not the mean.
"""
