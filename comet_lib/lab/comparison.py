"""Which differences between an ablation's runs are real: read, resample, correct, tabulate.

The first line of ``runs.jsonl`` holds settings and true labels, every other line a run with its
predictions (:mod:`comet_lib.lab.ablation` writes it), so any comparison can be computed later.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from comet_lib import evaluation, plots
from comet_lib.errors import CometError
from comet_lib.files import write_text
from comet_lib.lab.variants import CONTROL, VARIANTS
from comet_lib.report import markdown_table


def pack(values: np.ndarray) -> str:
    """Small whole numbers (N,) as text: uint8, deflated, base64."""
    return base64.b64encode(zlib.compress(values.astype(np.uint8).tobytes(), 9)).decode()


def unpack(text: str) -> np.ndarray:
    """The inverse of :func:`pack`: (N,) int64."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).astype(np.int64)


def read_runs(path: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The header and the runs of a ``runs.jsonl``.

    Raises:
        CometError: no file, no runs in it, or a damaged header, run or prediction.
    """
    path = Path(path)
    if not path.is_file():
        raise CometError(
            f"{path}: is not there; run lab ablate without --summary, or check --output"
        )
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        header, *runs = [json.loads(line) for line in lines]
        _check_runs(header, runs)
    except (OSError, ValueError, LookupError, TypeError, RecursionError, zlib.error) as error:
        raise CometError(f"{path}: no readable runs; delete the file and run again") from error
    return header, runs


def _check_runs(header: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> None:
    """Raise if a part is missing, or a prediction does not fit the tweets and their labels."""
    if not (runs and isinstance(header, dict) and {"settings", "truth", "versions"} <= set(header)):
        raise ValueError("no runs")
    for run in runs:
        if not (isinstance(run["variant"], str) and isinstance(run["seed"], int)):
            raise TypeError("a variant's name, and a seed")
        for split in ("dev", "test"):
            truth = header["truth"][split]
            columns = [unpack(run[split]), *map(unpack, (truth["labels"], truth["languages"]))]
            if len({len(column) for column in columns}) > 1 or max(map(max, columns[:2])) > 2:
                raise ValueError("other tweets")


# --------------------------------------------------------------------------- the summary


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values of m tests (Holm 1979): the i-th smallest times m - i + 1, never falling.

    However the tests depend on each other, the chance of one or more false finds among those below
    5 % is at most 5 %.
    """
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(np.argsort(p, kind="stable")):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def f1_draws(
    labels: np.ndarray,
    languages: np.ndarray,
    predictions: np.ndarray,
    draws: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Mean weighted F1 (draws, R) of R runs, predictions (R, N), on the same resampled tweets.

    Tweets are drawn with replacement within each language, as in ``evaluation.bootstrap_f1``.
    """
    total, k = np.zeros((draws, len(predictions))), 3
    codes = np.unique(languages)
    for code in codes:
        here = np.flatnonzero(languages == code)
        n = len(here)
        weights = rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float32)
        cells = labels[here] * k + predictions[:, here]  # (R, n)
        one_hot = np.eye(k * k, dtype=np.float32)[cells.T].reshape(n, -1)
        counts = (weights @ one_hot).reshape(draws, -1, k, k)
        total += evaluation.f1_of_counts(counts.astype(float)) / len(codes)
    return total


#: What a variant is compared with: key of the row, field that names the other, the usual other.
DIFFERENCES = (("difference", "against", CONTROL), ("added", "base", "both"))


def summarise(path: str | Path, draws: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """One row per variant, in the order of :data:`VARIANTS`, others last.

    Keys: ``variant``, ``about``, ``against``, ``base``, ``seeds``; ``dev`` and ``test``, each with
    ``mean`` (over seeds, of mean weighted F1) and ``ci95``, and, where the other variant was run,
    ``difference`` (from ``against``, the same without distillation) and ``added`` (from ``base``,
    the same but for one thing). Those hold ``mean`` over the seeds that both have, ``each``
    seed's, ``ci95``, ``p`` and ``holm``, the p-value corrected for all of its kind and split.

    The bootstrap draws tweets and seeds; both sides of a difference get the same tweets and the
    same seeds. Three seeds say little about all seeds: the variance of S drawn seeds is too small
    by (S - 1) / S on average, so intervals are too narrow rather than too wide.
    """
    header, runs = read_runs(path)
    known = {v.name: asdict(v) for v in VARIANTS}
    settings = {r["variant"]: {**r["settings"], **known.get(r["variant"], {})} for r in runs}
    at = {(run["variant"], run["seed"]): i for i, run in enumerate(runs)}
    rows: list[dict[str, Any]] = [
        {
            "variant": name,
            **{key: settings[name].get(key, "") for key in ("about", "against", "base")},
            "seeds": sum(1 for n, _ in at if n == name),
        }
        for name in dict.fromkeys([*known, *settings])
        if name in settings
    ]
    for split in ("dev", "test"):
        labels, languages = (unpack(header["truth"][split][x]) for x in ("labels", "languages"))
        predictions = np.stack([unpack(run[split]) for run in runs])
        rng = np.random.default_rng(seed)
        drawn = f1_draws(labels, languages, predictions, draws, rng)
        scores = np.array(
            [evaluation.mean_weighted_f1(labels, p, languages)["mean"] for p in predictions]
        )
        for row in rows:
            ours = [i for (n, _), i in at.items() if n == row["variant"]]
            row[split] = {
                "mean": float(scores[ours].mean()),
                "ci95": evaluation.interval(_over_seeds(drawn[:, ours], rng)),
            }
        for kind, other, _ in DIFFERENCES:
            tests = []
            for row in rows:
                name, their = row["variant"], row[other]
                both = [s for n, s in at if n == name and (their, s) in at]
                if name != their and both:
                    a, b = [at[name, s] for s in both], [at[their, s] for s in both]
                    test = compared(scores[a] - scores[b], drawn[:, a] - drawn[:, b], rng)
                    row[split][kind] = test
                    tests.append(test)
            for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True):
                test["holm"] = p
    return rows


def compared(each: np.ndarray, drawn: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """A difference by seed (S,) and its bootstrap draws (draws, S); p as in ``evaluation``."""
    delta = _over_seeds(drawn, rng)
    tail = min((delta <= 0).mean(), (delta >= 0).mean())
    return {
        "mean": float(each.mean()),
        "each": each.tolist(),
        "ci95": evaluation.interval(delta),
        "p": float(min(1.0, max(2 * tail, 1 / len(delta)))),
    }


def _over_seeds(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(draws, S) -> (draws,): in each draw the mean of S seeds drawn with replacement."""
    return np.take_along_axis(values, rng.integers(0, values.shape[1], values.shape), 1).mean(1)


def table_text(rows: Sequence[Mapping[str, Any]], header: Mapping[str, Any]) -> str:
    """The summary as Markdown, with the settings it holds for."""
    settings, stage = header["settings"], header["settings"]["stage2"]
    counts = [row["seeds"] for row in rows]
    seeds = " to ".join(map(str, sorted({min(counts), max(counts)})))
    one = " One seed says nothing about others: its interval covers tweets only."
    lines = []
    for row in rows:
        test = row["test"]
        cells = [row["variant"], row["about"], row["seeds"], f"{row['dev']['mean']:.1f}"]
        cells.append("{:.1f} ({:.1f} to {:.1f})".format(test["mean"], *test["ci95"]))
        for kind, other, usual in DIFFERENCES:
            if kind not in test:
                cells += ["", ""]
                continue
            text = "{:+z.1f} ({:+z.1f} to {:+z.1f})".format(test[kind]["mean"], *test[kind]["ci95"])
            to = "" if row[other] == usual else f", against {row[other]}"
            cells += [text + to, f"{test[kind]['holm']:.3f}"]
        lines.append(cells)
    head = ["variant", "what", "seeds", "dev", "test"]
    table = markdown_table([*head, "distillation adds", "p", "the one change adds", "p"], lines)
    return f"""# Which part pays? (`python -m comet_lib lab ablate`)

Profile {settings["profile"]}, {settings["source"]}, {settings["training tweets"]:,} training \
tweets (at most {settings["train_limit"] or "all"} per language), stage 2 of {stage["epochs"]} \
epochs, batch {stage["batch_size"]}, alpha {stage["alpha"]}, temperature {stage["temperature"]}. \
Every student starts from its teacher's embeddings, without stage 1 and spliced tweets, unless its \
row says otherwise. Seeds: {seeds}. Mean weighted F1 in percent; differences in points on the test \
split, paired. Brackets: 95 % interval, bootstrap over tweets and seeds; p after Holm's correction \
over the column.{one * (min(counts) == 1)}

{table}

Versions: {", ".join(f"{name} {version}" for name, version in header["versions"].items())}.
"""


def write_summary(output: str | Path) -> str:
    """``ablation.md`` and ``ablation.png`` beside ``runs.jsonl``; returns the table."""
    path = Path(output) / "runs.jsonl"
    header, _ = read_runs(path)
    rows = summarise(path)
    text = table_text(rows, header)
    write_text(Path(output) / "ablation.md", text)
    if any("difference" in row["test"] for row in rows):  # not after the first run
        plots.save(plots.forest(rows), Path(output) / "ablation.png")
    return text
