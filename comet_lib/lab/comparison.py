"""Which differences between an ablation's runs are real: read, resample, correct, tabulate.

``runs.jsonl`` holds a line of settings and right labels, then a line for each run with its
predictions (:mod:`comet_lib.lab.ablation` writes it), so every comparison can be made afterwards.
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


def pack(values: np.ndarray) -> str:
    """Small whole numbers (N,) as text: uint8, deflated, base64."""
    return base64.b64encode(zlib.compress(values.astype(np.uint8).tobytes(), 9)).decode()


def unpack(text: str) -> np.ndarray:
    """The inverse of :func:`pack`: (N,) int64."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).astype(np.int64)


def read_runs(path: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The header and the runs of a ``runs.jsonl``.

    Raises:
        CometError: no file, no runs in it, or what is no header, no run or no prediction.
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
    """Raise if a part is missing, or a prediction is none of the labels of that many tweets."""
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

    Whatever depends on what, the chance of one false find or more among those below 5 % is at
    most 5 %.
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


def summarise(path: str | Path, draws: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """One row a variant, in the order of :data:`VARIANTS`, others behind.

    Keys: ``variant``, ``about``, ``against``, ``base``, ``seeds``; ``dev`` and ``test``, each with
    ``mean`` (over seeds, of mean weighted F1) and ``ci95``, and, where the other variant is there,
    ``difference`` (from ``against``, the same without distillation) and ``added`` (from ``base``,
    the same but for one thing). These hold ``mean`` over the seeds that both have, ``each``
    seed's, ``ci95``, ``p`` and ``holm``, the p-value corrected for all of its kind and split.

    The bootstrap draws tweets and seeds, both sides of a difference with the same tweets and the
    same seeds. Three seeds say little about all seeds: the variance of S drawn seeds is too small
    by (S - 1) / S on average, so intervals are rather too narrow than too wide.
    """
    header, runs = read_runs(path)
    known = {v.name: asdict(v) for v in VARIANTS}
    order = list(known)
    settings = {r["variant"]: {**r["settings"], **known.get(r["variant"], {})} for r in runs}
    names = sorted(settings, key=lambda n: order.index(n) if n in known else len(order))
    at = {(run["variant"], run["seed"]): i for i, run in enumerate(runs)}
    rows: list[dict[str, Any]] = [
        {
            "variant": name,
            **{key: settings[name].get(key, "") for key in ("about", "against", "base")},
            "seeds": sum(1 for n, _ in at if n == name),
        }
        for name in names
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
        for kind, other in (("difference", "against"), ("added", "base")):
            tests = []
            for row in rows:
                pair = (row["variant"], row[other])
                both = [s for n, s in at if n == pair[0] and (pair[1], s) in at]
                if pair[0] != pair[1] and both:
                    a, b = ([at[n, s] for s in both] for n in pair)
                    row[split][kind] = compared(
                        scores[a] - scores[b], drawn[:, a] - drawn[:, b], rng
                    )
                    tests.append(row[split][kind])
            for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True):
                test["holm"] = p
    return rows


def compared(each: np.ndarray, drawn: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """A difference by seed (S,), and drawn anew (draws, S); p as in evaluation's."""
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
    settings, versions = header["settings"], header["versions"]
    stage = settings["stage2"]
    seeds = sorted({row["seeds"] for row in rows})
    lines = [
        "# Which part pays? (`python -m comet_lib lab ablate`)",
        "",
        f"Profile {settings['profile']}, {settings['source']}, {settings['training tweets']:,} "
        f"training tweets (at most {settings['train_limit'] or 'all'} a language), stage 2 of "
        f"{stage['epochs']} epochs, batch {stage['batch_size']}, alpha {stage['alpha']}, "
        f"temperature {stage['temperature']}; every student starts from its teacher's embeddings, "
        "no stage 1 and no spliced tweets but where a row says so. Seeds: "
        f"{' to '.join(str(n) for n in sorted({seeds[0], seeds[-1]}))}. Mean weighted F1 in "
        "percent, differences in points on the test split, paired. Brackets: 95 % interval, "
        "bootstrap over tweets and seeds; p after Holm's correction over the column."
        + " One seed says nothing about others: its interval is over tweets alone."
        * (seeds[0] == 1),
        "",
        "| variant | what | seeds | dev | test | distillation adds | p | the one change adds | p |",
        "|" + "---|" * 9,
    ]
    for row in rows:
        test = row["test"]
        low, high = test["ci95"]
        cells = [row["variant"], row["about"], str(row["seeds"]), f"{row['dev']['mean']:.1f}"]
        cells.append(f"{test['mean']:.1f} ({low:.1f} to {high:.1f})")
        for kind, other, usual in (("difference", "against", CONTROL), ("added", "base", "both")):
            if kind not in test:
                cells += ["", ""]
                continue
            low, high = test[kind]["ci95"]
            to = "" if row[other] == usual else f", against {row[other]}"
            cells.append(f"{test[kind]['mean']:+z.1f} ({low:+z.1f} to {high:+z.1f}){to}")
            cells.append(f"{test[kind]['holm']:.3f}")
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Versions: " + ", ".join(f"{k} {v}" for k, v in versions.items()) + "."]
    return "\n".join(lines) + "\n"


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
