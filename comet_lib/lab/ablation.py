"""Which part of the recipe pays? Variants of stage 2, several seeds each, and honest differences.

A run trains one student and keeps its predictions, not its weights: one line of
``runs.jsonl`` (the first line holds settings and the right labels, no text). So every comparison
can be made afterwards, and a stopped ablation goes on with the runs that are missing.

The variants are those of :mod:`comet_lib.lab.variants`. To be quick, a student has no spliced
tweets and no stage 1 where a variant does not name them, and at most ``tweets`` tweets a language:
a result is one about that shortened recipe. :mod:`comet_lib.lab.comparison` reads the runs.
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from transformers import PreTrainedModel, set_seed

import comet_lib
from comet_lib import evaluation
from comet_lib.attention import layer_map
from comet_lib.batches import tokenise
from comet_lib.data import find_source, load_sentiment, unseen
from comet_lib.errors import CometError
from comet_lib.files import claim, whole_folder, write_text
from comet_lib.lab.comparison import pack, read_runs
from comet_lib.lab.variants import VARIANTS, Variant
from comet_lib.loading import load_model, load_pair
from comet_lib.losses import mean_of_teachers
from comet_lib.models import build_student, initialise_embeddings, quiet, same_body
from comet_lib.objectives import TERMS
from comet_lib.processes import give_back_memory
from comet_lib.profiles import Profile
from comet_lib.recipe import soft_targets, student_config, teacher_probabilities
from comet_lib.targets import class_probabilities, cross_fit, tfidf_classifier
from comet_lib.teacher import Questions, fingerprint
from comet_lib.text import load_text
from comet_lib.training import distil_task_agnostic, fine_tune

# --------------------------------------------------------------------------- one run


class Laboratory:
    """What all runs share, each computed once: data, teacher, soft targets, stage 1."""

    def __init__(self, profile: Profile, work: Path, variants: Sequence[Variant]) -> None:
        self.profile, self.work, self.variants = profile, work, variants
        self.source = find_source(profile)
        self.data = load_sentiment(profile, source=self.source)
        self.teacher, self.tokenizer = load_pair(profile.sentiment_teacher)
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
        mark = fingerprint(self.table, self.teacher, self.tokenizer, Questions())
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
        """Soft targets (N, 3) by teacher. TF-IDF sees only the known labels: out of fold where a
        label is known, by a model of all known ones elsewhere. The neural teacher comes as it is:
        it has seen all labels."""
        if share not in self._targets:
            known = self.known(share)
            at, rest = np.flatnonzero(known), np.flatnonzero(~known)
            ngrams = np.zeros((len(known), 3))
            ngrams[at] = cross_fit(
                [self.texts[i] for i in at],
                self.labels[at].tolist(),
                [self.languages[i] for i in at],
                self.profile.folds,
            ).probabilities
            for language in self.profile.languages if len(rest) else ():
                own, others = (
                    [int(i) for i in rows if self.languages[i] == language] for rows in (at, rest)
                )
                model = tfidf_classifier().fit([self.texts[i] for i in own], self.labels[own])
                ngrams[others] = class_probabilities(model, [self.texts[i] for i in others])
            weight = self.profile.teacher_weight
            both = mean_of_teachers(
                [torch.from_numpy(ngrams), torch.from_numpy(self.teacher_answers)],
                [1 - weight, weight],
            )
            self._targets[share] = {
                "tfidf": ngrams,
                "teacher": self.teacher_answers,
                "both": both.numpy(),
            }
        return self._targets[share]

    @cached_property
    def teacher_answers(self) -> np.ndarray:
        """The sentiment teacher's (N, 3) probabilities for the training tweets."""
        return teacher_probabilities(self.teacher, self.tokenizer, self.texts, self.profile)

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
            stage = {
                "soft": replace(stage, alpha=1.0),
                "mse": replace(stage, terms={"attention_mse": 1 - stage.alpha}),
                "kl": stage,
            }[kind]
            profile = self.profile.with_(seed=seed, stage1=stage)
            set_seed(seed)
            student = build_student(self.config, "masked-lm")
            teacher = load_model(self.profile.teacher, "masked-lm")
            initialise_embeddings(student, teacher)
            with quiet():
                distil_task_agnostic(
                    student,
                    teacher,
                    self.tokenizer,
                    load_text(profile, source=self.source),
                    profile,
                    self.work / "trainer",
                    disable_tqdm=True,
                )
                with whole_folder(folder) as temporary:
                    student.save_pretrained(temporary)
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
        given: dict[str, Any] = {
            name: value
            for name in ("alpha", "temperature")
            if (value := getattr(variant, name)) is not None
        }
        given["terms"] = {variant.term: variant.weight} if variant.term else {}
        stage = replace(stage, **given)
        body = self.agnostic(variant.stage1, seed) if variant.stage1 else None
        set_seed(seed)
        student = build_student(self.config)
        if body is not None:
            same_body(student, body)
        elif variant.embeddings:
            initialise_embeddings(student, self.teacher)
        looks_at = TERMS[variant.term].looks_at if variant.term else ""
        folder = self.work / "trainer"
        with quiet():
            log = fine_tune(
                student,
                self.tokenizer,
                self.train_table(variant),
                self.splits["dev"],
                self.profile.with_(stage2=stage, seed=seed),
                folder,
                teacher=self.teacher,
                matches=self.matches(variant.layers),
                cache=self.work / f"answers-{looks_at}-{variant.layers}-{variant.splices:g}",
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


# --------------------------------------------------------------------------- all runs


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
    laboratory = Laboratory(profile, work, variants)
    header = laboratory.header()
    runs: list[dict[str, Any]] = []
    if path.is_file():
        old, runs = read_runs(path)
        differ = [k for k in header["settings"] if old["settings"].get(k) != header["settings"][k]]
        differ += ["dev or test"] * (old["truth"] != header["truth"])
        now = {v.name: _matter(v) for v in variants}
        differ += [
            f"{run['variant']}: {k}"
            for run in runs
            for k, v in now.get(run["variant"], {}).items()
            if run["settings"][k] != v
        ]
        if differ:
            raise CometError(
                f"{path} holds runs with other settings ({', '.join(differ)}): choose another "
                "--output, or delete the folder"
            )
        header = old  # with the versions of the first run
    claim(work / "settings.json", header["settings"])
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
