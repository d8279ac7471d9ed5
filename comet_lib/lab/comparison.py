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

from comet_lib import plots
from comet_lib.errors import CometError
from comet_lib.evaluation import f1_of_counts, interval, mean_weighted_f1
from comet_lib.files import write_text
from comet_lib.lab.variants import CONTROL, VARIANTS
from comet_lib.report import markdown_table


def pack(values: Sequence[int] | np.ndarray) -> str:
    """Small whole numbers (N,) as text: uint8, deflated, base64."""
    return base64.b64encode(zlib.compress(np.asarray(values, np.uint8).tobytes(), 9)).decode()


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
        raise CometError(f"{path} is not there; run lab ablate without --summary or check --output")
    try:
        header, *runs = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        if not (runs and {"settings", "truth", "versions"} <= header.keys()):
            raise ValueError("no runs")
        truth = {
            split: [unpack(header["truth"][split][name]) for name in ("labels", "languages")]
            for split in ("dev", "test")
        }
        for run in runs:
            if not (isinstance(run["variant"], str) and isinstance(run["seed"], int)):
                raise TypeError("a variant's name, and a seed")
            for split, (labels, languages) in truth.items():
                guess = unpack(run[split])
                equal = len(guess) == len(labels) == len(languages)
                if not equal or max(guess.max(), labels.max()) > 2:
                    raise ValueError("other tweets")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError,
            zlib.error) as error:  # fmt: skip
        raise CometError(f"{path}: no readable runs; delete the file and run again") from error
    return header, runs


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
    each = []
    for code in np.unique(languages):
        here = np.flatnonzero(languages == code)
        times = rng.multinomial(len(here), np.full(len(here), 1 / len(here)), size=draws)
        cells = labels[here] * 3 + predictions[:, here]  # (R, n)
        one_hot = np.eye(9, dtype=np.float32)[cells.T].reshape(len(here), -1)
        counts = (times.astype(np.float32) @ one_hot).reshape(draws, -1, 3, 3)
        each.append(f1_of_counts(counts.astype(float)))
    return np.sum([f1 / len(each) for f1 in each], axis=0)


#: What a variant is compared with: key of the row, field that names the other, the usual other.
DIFFERENCES = (("difference", "against", CONTROL), ("added", "base", "both"))


def summarize(path: str | Path, draws: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
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
    at: dict[str, dict[int, int]] = {}  # variant -> seed -> number of the run
    for i, run in enumerate(runs):
        at.setdefault(run["variant"], {})[run["seed"]] = i
    rows: list[dict[str, Any]] = []
    for name in sorted(at, key=[*known, *at].index):
        others = {key: settings[name].get(key, "") for key in ("about", "against", "base")}
        rows.append({"variant": name, **others, "seeds": len(at[name])})
    for split in ("dev", "test"):
        labels, languages = (unpack(header["truth"][split][x]) for x in ("labels", "languages"))
        predictions = np.stack([unpack(run[split]) for run in runs])
        rng = np.random.default_rng(seed)
        drawn = f1_draws(labels, languages, predictions, draws, rng)
        scores = np.array([mean_weighted_f1(labels, p, languages)["mean"] for p in predictions])
        for row in rows:
            ours = list(at[row["variant"]].values())
            low_high = interval(_over_seeds(drawn[:, ours], rng))
            row[split] = {"mean": float(scores[ours].mean()), "ci95": low_high}
        for kind, other, _ in DIFFERENCES:
            tests = []
            for row in rows:
                mine, theirs = at[row["variant"]], at.get(row[other], {})
                pairs = [(i, theirs[seed]) for seed, i in mine.items() if seed in theirs]
                if mine is not theirs and pairs:
                    a, b = np.transpose(pairs)
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
        "ci95": interval(delta),
        "p": float(min(1.0, max(2 * tail, 1 / len(delta)))),
    }


def _over_seeds(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(draws, S) -> (draws,): in each draw the mean of S seeds drawn with replacement."""
    return np.take_along_axis(values, rng.integers(0, values.shape[1], values.shape), 1).mean(1)


def table_text(rows: Sequence[Mapping[str, Any]], header: Mapping[str, Any]) -> str:
    """The summary as Markdown, with the settings it holds for."""
    settings, stage = header["settings"], header["settings"]["stage2"]
    fewest, most = (pick(row["seeds"] for row in rows) for pick in (min, max))
    one = " One seed says nothing about others: its interval covers tweets only."
    lines = []
    for row in rows:
        test = row["test"]
        cells = [row["variant"], row["about"], row["seeds"], f"{row['dev']['mean']:.1f}"]
        cells.append("{:.1f} ({:.1f} to {:.1f})".format(test["mean"], *test["ci95"]))
        for kind, other, usual in DIFFERENCES:
            text, p = "", ""
            if found := test.get(kind):
                text = "{:+z.1f} ({:+z.1f} to {:+z.1f})".format(found["mean"], *found["ci95"])
                text += f", against {row[other]}" * (row[other] != usual)
                p = f"{found['holm']:.3f}"
            cells += [text, p]
        lines.append(cells)
    columns = ["variant", "what", "seeds", "dev", "test"]
    columns += ["distillation adds", "p", "the one change adds", "p"]
    return f"""# Which part pays? (`python -m comet_lib lab ablate`)

Profile {settings["profile"]}, {settings["source"]}, {settings["training tweets"]:,} training \
tweets (at most {settings["train_limit"] or "all"} per language), stage 2 of {stage["epochs"]} \
epochs, batch {stage["batch_size"]}, alpha {stage["alpha"]}, temperature {stage["temperature"]}. \
Every student starts from its teacher's embeddings, without stage 1 and spliced tweets, unless its \
row says otherwise. Seeds: {fewest if fewest == most else f"{fewest} to {most}"}. Mean weighted F1 \
in percent; differences in points on the test split, paired. Brackets: 95 % interval, bootstrap \
over tweets and seeds; p after Holm's correction over the column.{one * (fewest == 1)}

{markdown_table(columns, lines)}

Versions: {", ".join(f"{name} {version}" for name, version in header["versions"].items())}.
"""


def write_summary(output: str | Path) -> str:
    """``ablation.md`` and ``ablation.png`` beside ``runs.jsonl``; returns the table."""
    output = Path(output)
    rows = summarize(output / "runs.jsonl")
    text = table_text(rows, read_runs(output / "runs.jsonl")[0])
    write_text(output / "ablation.md", text)
    if any("difference" in row["test"] for row in rows):  # not after the first run
        plots.save(plots.forest(rows), output / "ablation.png")
    return text
