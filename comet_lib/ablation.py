"""Which part of the recipe pays? Variants of stage 2, several seeds each, and honest differences.

A run trains one student and keeps its predictions, not its weights: one line of
``runs.jsonl`` (the first line holds settings and the right labels, no text). So every comparison
can be made afterwards, and a stopped ablation goes on with the runs that are missing.

A *variant* differs from another in one thing. Unless its name says otherwise, a student starts from
its teacher's embeddings made narrower. To be quick, it has no spliced tweets and no stage 1, and at
most ``tweets`` tweets a language: a result here is one about that shortened recipe.
"""

from __future__ import annotations

import base64
import json
import platform
import shutil
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from transformers import PreTrainedModel, set_seed

import comet_lib
from comet_lib import evaluation, plots
from comet_lib.attention import layer_map
from comet_lib.batches import tokenise
from comet_lib.cache import CacheSettings, fingerprint
from comet_lib.data import find_source, load_sentiment, load_text, unseen
from comet_lib.errors import CometError
from comet_lib.files import read_json, whole_file, write_text
from comet_lib.initialise import initialise_embeddings
from comet_lib.losses import mean_of_teachers
from comet_lib.methods import Guided, TeacherStates, ask_states, projected
from comet_lib.models import build_student, load_model, load_tokenizer, quiet, same_body
from comet_lib.processes import give_back_memory
from comet_lib.profiles import Profile
from comet_lib.recipe import soft_targets, student_config, teacher_probabilities
from comet_lib.targets import class_probabilities, cross_fit, tfidf_classifier
from comet_lib.training import TaskSpecific, distil_task_agnostic, fine_tune

CONTROL = "none"


@dataclass(frozen=True)
class Variant:
    """One student's recipe; None means the profile's value."""

    name: str
    about: str
    soft: str = ""  # whose soft targets: "", "tfidf", "teacher" or "both"
    term: str = ""  # one of comet_lib.methods.TERMS
    weight: float = 1.0  # of the term
    layers: str = "uniform"  # layer_map's
    alpha: float | None = None
    temperature: float | None = None
    stage1: str = ""  # "", "soft" (targets alone), or with attention: "mse", "kl"
    labels: float = 1.0  # share of the training labels that are known
    embeddings: bool = True  # start from the teacher's, made narrower; else from random ones
    splices: float = 0.0  # spliced tweets for each real one
    against: str = CONTROL  # the same without distillation; "": it is without
    base: str = ""  # another variant that it differs from in one thing
    first: bool = False  # run before the others, for every seed


def _variants() -> tuple[Variant, ...]:
    none = Variant(CONTROL, "labels alone", first=True)
    both = Variant("both", "soft targets: TF-IDF and teacher", soft="both", first=True)

    def and_(name: str, about: str, **changes: Any) -> Variant:
        """``both`` with one change."""
        changes = {"first": False, "base": "both", **changes}
        return replace(both, name=name, about=f"both {about}", **changes)

    few = {
        share: replace(none, name=f"labels-{share}", about=f"labels alone, {share} % of them",
                       labels=share / 100, first=False, against="", base=CONTROL)
        for share in (10, 1)
    }  # fmt: skip
    return (
        none,
        both,
        replace(both, name="tfidf", about="soft targets: TF-IDF", soft="tfidf"),
        replace(both, name="teacher", about="soft targets: teacher", soft="teacher"),
        and_("attention-mse", "+ attention, MSE x 100", term="attention-mse", weight=100.0,
             first=True),
        and_("hidden-mse", "+ hidden states, MSE", term="hidden-mse", first=True),
        and_("relations", "+ Q-K-V relations", term="relations", first=True),
        and_("random", "from random embeddings", embeddings=False, first=True,
             against="none-random"),
        few[10],
        and_("labels-10-both", "with 10 % of the labels", labels=0.1, against="labels-10", base=""),
        few[1],
        and_("labels-1-both", "with 1 % of the labels", labels=0.01, against="labels-1", base=""),
        replace(none, name="none-random", about="labels alone, from random embeddings",
                embeddings=False, first=True, against="", base=CONTROL),
        and_("attention-kl", "+ attention, row-wise KL", term="attention-kl"),
        and_("hidden-cosine", "+ hidden states, cosine", term="hidden-cosine"),
        and_("alpha-25", "with alpha 0.25", alpha=0.25),
        and_("alpha-50", "with alpha 0.5", alpha=0.5),
        and_("alpha-100", "with alpha 1: no label", alpha=1.0),
        and_("temperature-2", "at temperature 2", temperature=2.0),
        and_("temperature-4", "at temperature 4", temperature=4.0),
        and_("splices", "+ 0.5 spliced tweets for each", splices=0.5),
        and_("stage1-soft", "after stage 1, soft targets alone", stage1="soft"),
        and_("stage1-mse", "after stage 1 with attention MSE", stage1="mse"),
        and_("stage1-kl", "after stage 1 with attention KL", stage1="kl"),
        and_("hidden-last", "+ hidden states of the top layers", term="hidden-mse", layers="last",
             base="hidden-mse"),
        and_("hidden-skip", "+ hidden states, first of each group", term="hidden-mse",
             layers="skip", base="hidden-mse"),
    )  # fmt: skip


VARIANTS = _variants()


def chosen_variants(only: str | None) -> list[Variant]:
    """Those that ``only`` (names with commas) names, with what they are compared with; else all."""
    by_name = {v.name: v for v in VARIANTS}
    if only is None:
        return list(VARIANTS)
    names = [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in names if name not in by_name]
    if unknown or not names:
        raise CometError(
            f"--only names no variant {', '.join(unknown) or 'at all'}: choose from "
            f"{', '.join(by_name)}"
        )
    others = {x for name in names for x in (by_name[name].against, by_name[name].base) if x}
    wanted = {CONTROL, *names, *others}
    return [v for v in VARIANTS if v.name in wanted]


# --------------------------------------------------------------------------- one run


class Laboratory:
    """What all runs share, each made once: data, teacher, soft targets, states, stage 1."""

    def __init__(self, profile: Profile, work: Path, variants: Sequence[Variant]) -> None:
        self.profile, self.work, self.variants = profile, work, variants
        self.source = find_source(profile)
        self.data = load_sentiment(profile, source=self.source)
        self.tokenizer = load_tokenizer(profile.sentiment_teacher)
        self.teacher = load_model(profile.sentiment_teacher, "sentiment")
        self.config = student_config(profile, self.teacher)
        self.splits = {"dev": unseen(self.data["dev"]), "test": self.data["test"]}
        train = self.data["train"]
        self.texts, self.languages = train["text"][:], train["language"][:]
        self.labels = np.asarray(train["label"][:])
        self.table = tokenise(self.texts, self.tokenizer, profile.max_length)
        self._targets: dict[float, dict[str, np.ndarray]] = {}

    def matches(self, how: str) -> dict[int, int]:
        depth = self.config.num_hidden_layers
        return dict(enumerate(layer_map(depth, self.teacher.config.num_hidden_layers, how)))

    def header(self) -> dict[str, Any]:
        """The first line of the file: what must be equal for runs to be compared."""
        kept = ("languages", "train_limit", "max_length", "student", "stage1", "stage2", "folds",
                "text_limit", "default_text_limit", "teacher_weight")  # fmt: skip
        values = self.profile.as_dict()
        mark = fingerprint(
            self.table,
            self.teacher,
            self.tokenizer,
            CacheSettings((), 1.0, 0, self.profile.max_length),
        )
        truth = {
            split: {
                "labels": pack(np.asarray(table["label"][:])),
                "languages": pack(
                    np.asarray([self.profile.languages.index(x) for x in table["language"][:]])
                ),
            }
            for split, table in self.splits.items()
        }
        return json.loads(
            json.dumps(
                {
                    "settings": {
                        "profile": self.profile.name,
                        "source": str(self.source),
                        **{name: values[name] for name in kept},
                        **{n: mark[n] for n in ("teacher weights", "tokenizer", "texts")},
                        "training tweets": len(self.texts),
                    },
                    "truth": truth,
                    "versions": {
                        "comet_lib": comet_lib.__version__,
                        "python": platform.python_version(),
                        "torch": torch.__version__,
                        "transformers": transformers.__version__,
                    },
                }
            )
        )

    def known(self, share: float) -> np.ndarray:
        """Which training labels are known: (N,) bool, ``share`` of each language, at least ten."""
        known, rng = np.zeros(len(self.labels), dtype=bool), np.random.default_rng(0)
        languages = np.asarray(self.languages)
        for language in self.profile.languages:
            rows = rng.permutation(np.flatnonzero(languages == language))
            known[rows[: max(10, round(share * len(rows)))]] = True
        return known

    def targets(self, share: float) -> dict[str, np.ndarray]:
        """Soft targets (N, 3) by teacher. TF-IDF sees the known labels alone: out of fold where a
        label is known, by a model of all known ones elsewhere. The neural teacher comes as it is:
        it has seen all labels."""
        path = self.work / f"targets-{share:g}.npz"
        if share not in self._targets and not path.is_file():
            known = self.known(share)
            at, rest = np.flatnonzero(known), np.flatnonzero(~known)
            ngrams = np.zeros((len(known), 3))
            ngrams[at], _ = cross_fit(
                [self.texts[i] for i in at],
                self.labels[at].tolist(),
                [self.languages[i] for i in at],
                self.profile.folds,
            )
            for language in self.profile.languages if len(rest) else ():
                own, others = (
                    [int(i) for i in rows if self.languages[i] == language] for rows in (at, rest)
                )
                model = tfidf_classifier().fit([self.texts[i] for i in own], self.labels[own])
                ngrams[others] = class_probabilities(model, [self.texts[i] for i in others])
            teacher = teacher_probabilities(self.teacher, self.tokenizer, self.texts, self.profile)
            with whole_file(path) as made, made.open("wb") as file:
                np.savez(file, tfidf=ngrams, teacher=teacher)
        if share not in self._targets:
            with np.load(path) as kept:
                tfidf, teacher = kept["tfidf"], kept["teacher"]
            weight = self.profile.teacher_weight
            both = mean_of_teachers(
                [torch.from_numpy(tfidf), torch.from_numpy(teacher)], [1 - weight, weight]
            )
            self._targets[share] = {"tfidf": tfidf, "teacher": teacher, "both": both.numpy()}
        return self._targets[share]

    @cached_property
    def states(self) -> TeacherStates:
        layers = [j for v in self.variants if v.term for j in self.matches(v.layers).values()]
        return ask_states(
            self.work / "states",
            self.table,
            self.teacher,
            self.tokenizer,
            layers,
            self.profile.max_length,
        )

    @cached_property
    def spliced(self) -> Dataset:
        ratio = max(v.splices for v in self.variants)
        profile = self.profile.with_(splices=ratio, seed=0)
        return soft_targets(self.data["train"], self.teacher, self.tokenizer, profile)

    def agnostic(self, kind: str, seed: int) -> PreTrainedModel:
        """The student after stage 1, kept on disk: variants of one seed share it."""
        folder = self.work / f"stage1-{kind}-{seed}"
        if not (folder / "config.json").is_file():
            stage = self.profile.stage1
            profile = self.profile.with_(
                seed=seed, stage1=replace(stage, alpha=1.0 if kind == "soft" else stage.alpha)
            )
            set_seed(seed)
            student = build_student(self.config, "masked-lm")
            teacher = load_model(self.profile.teacher, "masked-lm")
            initialise_embeddings(student, teacher)
            with quiet():
                distil_task_agnostic(
                    student,
                    teacher,
                    self.tokenizer,
                    load_text(profile, source=self.source)["text"][:],
                    profile,
                    self.work / "trainer",
                    kind="mse" if kind == "mse" else "kl",
                    disable_tqdm=True,
                )
                student.save_pretrained(folder)
            shutil.rmtree(self.work / "trainer", ignore_errors=True)
        return load_model(folder, "masked-lm")

    def train_table(self, variant: Variant) -> Dataset:
        """The variant's training set. Where few labels are known and there are no soft targets,
        the labelled tweets are repeated, so that an epoch has as many steps."""
        if variant.splices:
            return self.spliced
        rows, known = np.arange(len(self.labels)), self.known(variant.labels)
        columns: dict[str, Any] = {}
        if variant.soft:
            columns["teacher_probs"] = self.targets(variant.labels)[variant.soft].astype(np.float32)
        else:
            rows = np.resize(np.flatnonzero(known), len(rows))
        if variant.term:
            columns["row"] = rows
        return Dataset.from_dict(
            {
                "text": [self.texts[i] for i in rows],
                "label": np.where(known, self.labels, -100)[rows],
                **columns,
            }
        )

    def run(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Train one student and return its line."""
        start = time.perf_counter()
        stage = self.profile.stage2
        given = {
            name: value
            for name in ("alpha", "temperature")
            if (value := getattr(variant, name)) is not None
        }
        stage = replace(stage, **given)
        train = self.train_table(variant)
        body = self.agnostic(variant.stage1, seed) if variant.stage1 else None
        set_seed(seed)
        student = build_student(self.config)
        if body is not None:
            same_body(student, body)
        elif variant.embeddings:
            initialise_embeddings(student, self.teacher)
        objective: Any = TaskSpecific(stage.temperature, stage.alpha)
        matches = self.matches(variant.layers)
        width = self.states.width if variant.term else 0
        if variant.term:
            heads = self.config.num_attention_heads
            objective = Guided(objective, self.states, variant.term, matches, variant.weight, heads)
        folder = self.work / "trainer"
        with quiet(), projected(student, variant.term, len(matches), width):
            log = fine_tune(
                student,
                self.tokenizer,
                train,
                self.splits["dev"],
                self.profile.with_(stage2=stage, seed=seed),
                folder,
                objective=objective,
                disable_tqdm=True,
            )
        shutil.rmtree(folder, ignore_errors=True)
        line: dict[str, Any] = {"variant": variant.name, "seed": seed, "settings": asdict(variant)}
        for split, table in self.splits.items():
            guess = teacher_probabilities(
                student, self.tokenizer, table["text"][:], self.profile
            ).argmax(1)
            languages = np.asarray(table["language"][:])
            scores = evaluation.mean_weighted_f1(np.asarray(table["label"][:]), guess, languages)
            line[f"{split}_f1"] = {name: round(value, 3) for name, value in scores.items()}
            line[split] = pack(guess)
        kept = ("hard_labels", "soft_targets", variant.term)
        logged = [row for row in log if "hard_labels" in row]
        line["terms"] = {
            name: [row[name] for row in (*logged[:1], *logged[-1:])]
            for name in kept
            if logged and name in logged[0]
        }
        line["epochs"] = [round(r["eval_f1_mean"], 3) for r in log if "eval_f1_mean" in r]
        line["seconds"] = round(time.perf_counter() - start, 1)
        give_back_memory()
        return line


def pack(values: np.ndarray) -> str:
    """Small whole numbers (N,) as text: uint8, deflated, base64."""
    return base64.b64encode(zlib.compress(values.astype(np.uint8).tobytes(), 9)).decode()


def unpack(text: str) -> np.ndarray:
    """The inverse of :func:`pack`: (N,) int64."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).astype(np.int64)


# --------------------------------------------------------------------------- all runs


def read_runs(path: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The header and the runs of a ``runs.jsonl``."""
    path = Path(path)
    try:
        header, *runs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise CometError(f"{path}: no readable runs; delete the file and run again") from error
    return header, runs


def ablate(
    profile: Profile,
    output: str | Path,
    variants: Sequence[Variant] = VARIANTS,
    seeds: int = 3,
    say: Callable[[str], None] = print,
) -> Path:
    """Run what is missing of ``variants`` x ``seeds``; return the path of ``runs.jsonl``.

    The file is written anew, whole, after each run: a kill loses the run that was going on.

    Raises:
        CometError: the file holds runs of other settings.
    """
    output = Path(output)
    path, work = output / "runs.jsonl", output / "work"
    work.mkdir(parents=True, exist_ok=True)
    laboratory = Laboratory(profile, work, variants)
    header = laboratory.header()
    runs: list[dict[str, Any]] = []
    if path.is_file():
        old, runs = read_runs(path)
        differ = [k for k in header["settings"] if old["settings"].get(k) != header["settings"][k]]
        _refuse(path, differ + ["dev or test"] * (old["truth"] != header["truth"]))
        for run in runs:
            now = {v.name: v for v in variants}.get(run["variant"])
            if now is not None:
                was = run["settings"]
                _refuse(path, [f"{now.name}: {k}" for k, v in _matter(now).items() if was[k] != v])
        header = old  # with the versions of the first run
    # Targets on disk are another run's if there is no file of runs, or its settings are the same.
    _claim_work(work, header["settings"])
    done = {(run["variant"], run["seed"]) for run in runs}
    order = [
        (v, seed)
        for first in (True, False)
        for seed in range(seeds)
        for v in variants
        if v.first == first and (v.name, seed) not in done
    ]
    for number, (variant, seed) in enumerate(order, start=1):
        run = laboratory.run(variant, seed)
        runs.append(run)
        lines = [json.dumps(line, ensure_ascii=False) for line in (header, *runs)]
        write_text(path, "\n".join(lines) + "\n")
        say(
            f"{number}/{len(order)} {variant.name}, seed {seed}: dev {run['dev_f1']['mean']:.1f}, "
            f"{run['seconds']:.0f} s"
        )
    return path


def _matter(variant: Variant) -> dict[str, Any]:
    """What a variant does, without its caption, its place in the order and its comparisons."""
    shown = ("about", "first", "against", "base")
    return {k: v for k, v in asdict(variant).items() if k not in shown}


def _refuse(path: Path, differ: Sequence[str]) -> None:
    if differ:
        raise CometError(
            f"{path} holds runs with other settings ({', '.join(differ)}): choose another "
            "--output, or delete the folder"
        )


def _claim_work(work: Path, settings: Mapping[str, Any]) -> None:
    """Empty the working folder if what it holds was made with other settings."""
    path = work / "settings.json"
    if path.is_file() and read_json(path) == settings:
        return
    shutil.rmtree(work)
    write_text(path, json.dumps(settings, indent=1) + "\n")


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
