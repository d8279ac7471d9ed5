"""Reports as Markdown: the result table with its comparisons, and the student's model card."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: Rows of a report that a model card sets beside the student, and their titles there.
BASELINES = {
    "student_no_distillation": "without distillation",
    "teacher": "teacher",
    "tfidf_both_forms": "TF-IDF",
}
_NUMBER = re.compile(r"\**[-+]?[\d,]*\.?\d+(e[-+]\d+)?\**|")


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table. Columns after the first that hold only numbers are right-aligned.

    Integers keep every digit; floats keep three, or all before the point. Format a cell yourself,
    as a string, to have it printed as it stands.
    """
    cells = [list(map(_cell, row)) for row in rows]
    right = [n > 0 and all(_NUMBER.fullmatch(row[n]) for row in cells) for n in range(len(columns))]
    lines = [columns, ["---:" if number else "---" for number in right], *cells]
    head, rule, *body = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, rule.replace(" ", ""), *body])


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def result_table(report: Mapping[str, Any]) -> str:
    """Every model's scores: our rows with intervals, then the paper's if the report has any."""
    languages, paper = list(report["languages"]), report.get("paper", [])
    rows = []
    for row in [*report["rows"], *paper]:
        f1, count = row["weighted_f1"], row["parameters"]
        scores = [f"{f1[code]:.1f}" if code in f1 else "" for code in languages]
        if "provenance" in row:  # a published row: no tweets of ours, so no interval
            last = [f"{f1['mean']:.1f}", ""]
            rows.append([row["name"] + " ¹", count, f"{count * 4 / 1e6:.0f}", *scores, *last])
            continue
        low, high = row["ci95"]["mean"]
        last = [f"**{f1['mean']:.1f}** ({low:.1f} to {high:.1f})"]
        last += [f"{row['weighted_f1_unseen']['mean']:.1f}"]
        rows.append([row["name"], count, f"{row['size_mb']:.1f}", *scores, *last])
    columns = ["model", "parameters", "MB", *languages, "mean (95 % interval)", "mean unseen"]
    table = markdown_table(columns, rows)
    return f"{table}\n\n¹ {paper[0]['provenance']}." if paper else table


def summary_text(report: Mapping[str, Any]) -> str:
    """What a terminal shows of a report: each model's mean score, and the student's differences."""
    what = "AfriSenti" if report["benchmark"] else "the bundled sample (NOT a benchmark)"
    lines = [f"weighted F1 in percent, mean of {len(report['languages'])} languages, {what}"]
    for row in report["rows"]:
        score = "{:5.1f}  ({:.1f} to {:.1f})".format(
            row["weighted_f1"]["mean"], *row["ci95"]["mean"]
        )
        lines.append(f"{row['name']:<26}{row['parameters']:>12,} parameters  {score}")
    lines.append(f"{'most common label':<38}{report['floor']:>18.1f}")
    for name, test in report["comparisons"].items():
        low, high = test["ci95"]
        lines.append(f"{name:<38}{test['difference']:>+18.1f}  ({low:+.1f} to {high:+.1f})")
    return "\n".join(lines) + _untrained(report)


def report_text(report: Mapping[str, Any]) -> str:
    """``report.md``: what was run, the table, the paired differences."""
    what = "AfriSenti" if report["benchmark"] else "the bundled sample (NOT a benchmark)"
    differences = [
        (name, f"{t['difference']:+.1f}", "{:+.1f} to {:+.1f}".format(*t["ci95"]), f"{t['p']:.3f}")
        for name, t in report["comparisons"].items()
    ]
    seconds = report["seconds"]
    times = ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
    return f"""# Result on {what}, {report["split"]} split

Weighted F1 in percent. Profile {report["profile"]}, seed {report["seed"]}, data from \
{report["source"]}. Intervals: 95 % bootstrap over tweets. `unseen` leaves out tweets that train \
repeats word for word.

{result_table(report)}
{_untrained(report)}
## Is the difference real? (paired bootstrap, points of mean weighted F1)

{markdown_table(("difference", "points", "95 % interval", "p"), differences)}

The student keeps {report["retention"]:.1f} % of the teacher's score. Always guessing a language's \
most common label scores {report["floor"]:.1f}. Seconds: {times}; {sum(seconds.values()):.0f} in \
total.

{_leakage(report)}
{_looks(report)}"""


def _untrained(report: Mapping[str, Any]) -> str:
    """A warning, before any verdict, about models that do no better than the floor."""
    if not (names := report["untrained"]):
        return ""
    return f"""
**Not trained: {", ".join(names)}.** The interval reaches down to the score of always guessing a
language's most common label ({report["floor"]:.1f}). Train longer, or on more data, before you
compare.
"""


def _looks(report: Mapping[str, Any]) -> str:
    """How far the student's attention is from its teacher's, stage by stage."""
    looks = report["attention"]
    columns = [f"layer {mine} to teacher's {its}" for mine, its in looks["matches"]]
    rows = [(name, *(f"{js:.3f}" for js in values)) for name, values in looks["rows"].items()]
    return f"""
## Does it look where its teacher looks?

Jensen-Shannon divergence of the head means on 200 dev tweets, in nats: 0 for equal maps, 0.69 for
maps with no token in common. The last row is what the student gets for knowing how its teacher
looks at tweets in general.

{markdown_table(("student", *columns), rows)}
"""


def _leakage(report: Mapping[str, Any]) -> str:
    """Copies of training tweets in dev and test, and training tweets with conflicting labels."""
    shares = [
        f"{split} "
        + ", ".join(
            f"{row['language']} {row['percent']} ({row['loose_percent']})"
            for row in report["leakage"]
            if row["split"] == split
        )
        for split in ("dev", "test")
    ]
    counts = ", ".join(f"{code} {n}" for code, n in report["conflicting_labels"].items())
    return f"""Percent of tweets that train repeats word for word (in brackets: also without case, \
signs, spaces, mentions and links): {"; ".join(shares)}. Training tweets with conflicting \
labels: {counts}."""


def model_card(report: Mapping[str, Any]) -> str:
    """The student's README.md: a model card with usage, recipe, scores beside baselines, limits."""
    rows = {row["name"]: row for row in report["rows"]}
    row = rows["student"]
    codes = [*report["languages"], "mean"]
    scores = [
        (
            code,
            "{:.1f} ({:.1f} to {:.1f})".format(row["weighted_f1"][code], *row["ci95"][code]),
            *(f"{rows[name]['weighted_f1'][code]:.1f}" for name in BASELINES),
        )
        for code in codes
    ]
    what = "AfriSenti" if report["benchmark"] else "a bundled sample, which is no benchmark"
    names = dict.fromkeys(report["teachers"].values())
    teachers = " and ".join(f"`{name}`" for name in names)
    hub = next((name for name in names if re.fullmatch(r"[\w.-]+/[\w.-]+(@\w+)?", name)), "")
    return f"""---
license: cc-by-4.0
pipeline_tag: text-classification
library_name: transformers
language: [{", ".join(report["languages"])}]
tags: [distillation, sentiment-analysis, afrisenti]
{f"base_model: {hub.partition('@')[0]}" if hub else "# no base model on the hub"}
model-index:
- name: student
  results:
  - task: {{type: text-classification}}
    dataset: {{type: afrisenti, name: {what.split(",")[0]}, split: {report["split"]}}}
    metrics:
    - {{type: f1, name: weighted F1 (mean of languages), value: {row["weighted_f1"]["mean"]:.1f}}}
---
# A distilled sentiment model
{_untrained(report)}
A student of {row["parameters"]:,} parameters, distilled in two stages with the comet course
(profile {report["profile"]}, seed {report["seed"]}) from {teachers}.
Labels: negative, neutral, positive.

```python
from transformers import pipeline
pipeline("text-classification", model="FOLDER")("Kitabu hiki kinanifurahisha.")
```

Weighted F1 on {what}, split {report["split"]}, with 95 % intervals, beside the baselines. Always
guessing a language's most common label scores {report["floor"]:.1f}.

{markdown_table(("language", "student", *BASELINES.values()), scores)}

**Data.** {report["source"]}. AfriSenti is CC BY 4.0 (Muhammad et al., EMNLP 2023).
**Limits.** The student learned from tweets: other text is out of its domain. It follows the label
frequencies and the annotators' views. Do not use it to decide about people. Scores differ between
languages; read the table, not the mean.
"""
