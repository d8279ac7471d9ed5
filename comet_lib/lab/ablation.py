"""Which part of the recipe pays? Train variants of the student with several seeds each.

A run trains one student and keeps its predictions, not its weights, as one line of ``runs.jsonl``
(the first line holds settings and true labels, no text). So every comparison can be computed later
(:mod:`comet_lib.lab.comparison`), and a stopped ablation continues with the missing runs.

To be quick, a student has tweets in one form, no transfer text, no spliced tweets and no stage 1
unless its variant names them (:mod:`comet_lib.lab.variants`): a result holds for that shortened
recipe.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from comet_lib.attention import layer_map
from comet_lib.batches import tokenize
from comet_lib.data import find_source, load_sentiment, unseen
from comet_lib.evaluation import mean_weighted_f1
from comet_lib.files import claim, refuse_others, write_text
from comet_lib.lab.comparison import pack, read_runs
from comet_lib.lab.variants import VARIANTS, Variant
from comet_lib.loading import load_model, load_pair
from comet_lib.models import build_student, initialize_embeddings, quiet, same_body, student_config
from comet_lib.objectives import TERMS
from comet_lib.processes import give_back_memory, versions
from comet_lib.profiles import Profile
from comet_lib.recipe import Run, Teachers, soft_targets, stage_one, teacher_probabilities
from comet_lib.targets import Ngrams, cross_fit, mean_answer
from comet_lib.teacher import Questions, fingerprint
from comet_lib.text import load_text
from comet_lib.training import fine_tune

#: Fields of the profile that must be equal for runs to be compared, and parts of the fingerprint.
FIELDS = ("languages", "train_limit", "max_length", "student", "stage1", "stage2", "folds",
          "text_limit", "default_text_limit", "teacher_weight")  # fmt: skip
DIGESTS = ("teacher weights", "tokenizer", "texts")


class Laboratory:
    """What all runs share, each computed once: data, teacher, soft targets, stage 1.

    ``texts``, ``labels`` and ``languages`` are the N training tweets' columns; ``targets(share)``
    and ``spliced(ratio)`` are :meth:`_targets` and the stage-2 table of the whole recipe.
    """

    def __init__(self, profile: Profile, work: Path) -> None:
        self.profile, self.work, self.source = profile, work, find_source(profile)
        data = load_sentiment(profile, source=self.source)
        self.splits = {"dev": unseen(data["dev"]), "test": data["test"]}
        train = data["train"].to_pandas()
        self.texts, self.languages = train["text"].to_numpy(object), train["language"].to_numpy()
        self.labels = train["label"].to_numpy()
        self.teacher, self.tokenizer = load_pair(profile.sentiment_teacher, labels=profile.labels)
        self.config = student_config(profile, self.teacher, self.tokenizer.pad_token_id)
        self.other_reader = cache(lambda: reads_other_pieces(self.teacher, self.tokenizer))
        self.teacher_answers = cache(lambda: self.answers(self.teacher, self.texts.tolist()))
        self.targets = cache(self._targets)
        pair = self.teacher, self.tokenizer
        self.spliced = cache(
            lambda ratio: soft_targets(
                data["train"], *pair, profile.with_(splices=ratio, seed=0, prior=0.0)
            )
        )

    def answers(self, model: PreTrainedModel, texts: list[str]) -> np.ndarray:
        """A sentiment model's (N, 3) probabilities."""
        return teacher_probabilities(model, self.tokenizer, texts, self.profile)

    def header(self) -> dict[str, Any]:
        """The first line of the file: settings and true labels."""
        table = tokenize(self.texts.tolist(), self.tokenizer, self.profile.max_length)
        mark = fingerprint(table, self.teacher, self.tokenizer, Questions())
        values, truth = self.profile.as_dict(), {}
        for split, rows in self.splits.items():
            codes = [self.profile.languages.index(code) for code in rows["language"][:]]
            truth[split] = {"labels": pack(rows["label"][:]), "languages": pack(codes)}
        return {
            "settings": {
                "profile": self.profile.name,
                "source": str(self.source),
                **{name: values[name] for name in FIELDS},
                **{name: mark[name] for name in DIGESTS},
                "training tweets": len(self.texts),
            },
            "truth": truth,
            "versions": versions(),
        }

    def known(self, share: float) -> np.ndarray:
        """Which training labels are known: (N,) bool, ``share`` of each language, at least ten."""
        known, rng = np.zeros(len(self.labels), dtype=bool), np.random.default_rng(0)
        for language in self.profile.languages:
            rows = rng.permutation(np.flatnonzero(self.languages == language))
            known[rows[: max(10, round(share * len(rows)))]] = True
        return known

    def _targets(self, share: float) -> dict[str, np.ndarray]:
        """Soft targets (N, 3) by teacher, if ``share`` of the labels is known.

        TF-IDF sees only the known labels: out of fold where a label is known, elsewhere by a model
        of all known ones. The neural teacher has seen all labels.
        """
        known = self.known(share)
        ngrams, weight = np.zeros((len(known), 3)), self.profile.teacher_weight
        every = self.texts, self.labels, self.languages
        texts, labels, codes = (column[known].tolist() for column in every)
        ngrams[known] = cross_fit(texts, labels, codes, self.profile.folds).probabilities
        for language in self.profile.languages if not known.all() else ():
            own, others = ((self.languages == language) & x for x in (known, ~known))
            table = Ngrams(self.texts[own].tolist())
            model = table.fit(np.arange(own.sum()), self.labels[own])
            ngrams[others] = mean_answer(model, table.forms_of(self.texts[others].tolist()))
        teacher = self.teacher_answers()
        both = (1 - weight) * ngrams + weight * teacher
        return {"tfidf": ngrams, "teacher": teacher, "both": both}

    def train_table(self, variant: Variant) -> Dataset:
        """The variant's training set. Without soft targets, known tweets are repeated so that an
        epoch has as many steps."""
        if variant.splices:
            return self.spliced(variant.splices)
        known = self.known(variant.labels)
        columns = {"text": self.texts.tolist(), "label": np.where(known, self.labels, -100)}
        if not variant.soft:
            rows = np.resize(np.flatnonzero(known), len(known))
            return Dataset.from_dict(columns).select(rows)
        answers = self.targets(variant.labels)[variant.soft].astype(np.float32)
        return Dataset.from_dict({**columns, "teacher_probs": answers})

    def agnostic(self, kind: str, seed: int) -> PreTrainedModel:
        """The student after stage 1, kept on disk: variants of one seed share it."""
        stage = self.profile.stage1
        mse: dict[str, Any] = {"terms": {"attention_mse": 1 - stage.alpha}}
        changes = {"soft": {"alpha": 1.0}, "mse": mse, "kl": {}}[kind]
        profile = self.profile.with_(seed=seed, stage1=replace(stage, **changes))
        pair = self.teacher, self.tokenizer
        masked_lm = load_model(profile.teacher, "masked-lm"), self.tokenizer
        teachers = Teachers(*masked_lm, *pair, self.config)
        run = Run(profile, self.work / f"stage1-{kind}-{seed}", self.source, say=lambda _: None)
        student = stage_one(run, teachers, load_text(profile, source=self.source))
        shutil.rmtree(run.work / "stage1", ignore_errors=True)  # its checkpoints
        return student

    def run(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Train one student and return its line."""
        start = time.perf_counter()
        given = {name: getattr(variant, name) for name in ("alpha", "temperature")}
        stage = replace(
            self.profile.stage2,
            terms={variant.term: variant.weight} if variant.term else {},
            glance=1,  # every batch, from answers that variants share
            **{name: value for name, value in given.items() if value is not None},
        )
        body = self.agnostic(variant.stage1, seed) if variant.stage1 else None
        set_seed(seed)
        student = build_student(self.config)
        if body is not None:
            same_body(student, body)
        elif variant.embeddings:
            initialize_embeddings(student, self.teacher)
        looks_at = TERMS[variant.term].looks_at if variant.term else ""
        table = variant.splices if variant.soft else variant.labels  # what tells two tables apart
        cached = "-".join(
            map(str, ("answers", looks_at, variant.layers, variant.soft, table, variant.swapped))
        )
        depth, theirs = (model.config.num_hidden_layers for model in (student, self.teacher))
        with quiet():
            log = fine_tune(
                student,
                self.tokenizer,
                self.train_table(variant),
                self.splits["dev"],
                self.profile.with_(stage2=stage, seed=seed),
                self.work / "trainer",
                teacher=self.other_reader() if variant.swapped else self.teacher,
                matches=dict(enumerate(layer_map(depth, theirs, variant.layers))),
                cache=self.work / cached,
                disable_tqdm=True,
            )
        shutil.rmtree(self.work / "trainer", ignore_errors=True)
        line = {"variant": variant.name, "seed": seed, "settings": asdict(variant), "log": log}
        for split, table in self.splits.items():
            guess = self.answers(student, table["text"][:]).argmax(1)
            truth = np.asarray(table["label"][:])
            scores = mean_weighted_f1(truth, guess, np.asarray(table["language"][:]))
            line[f"{split}_f1"] = {name: round(value, 3) for name, value in scores.items()}
            line[split] = pack(guess)
        give_back_memory()
        return {**line, "seconds": round(time.perf_counter() - start, 1)}


def ablate(
    profile: Profile,
    output: str | Path,
    variants: Sequence[Variant] = VARIANTS,
    seeds: int = 3,
    say: Callable[[str], None] = print,
) -> Path:
    """Run what is missing of ``variants`` x ``seeds``; return the path of ``runs.jsonl``.

    The whole file is written again after each run: a kill loses only the run in progress.

    Raises:
        CometError: the file holds runs with other settings.
    """
    output = Path(output)
    path, work = output / "runs.jsonl", output / "work"
    laboratory = Laboratory(profile, work)
    header, runs = laboratory.header(), list[dict[str, Any]]()
    if path.is_file():
        old, runs = read_runs(path)
        ran = {run["variant"]: run["settings"] for run in runs}
        now = {v.name: asdict(v) for v in variants if v.name in ran}
        refuse_others(output, _identity(old, ran), _identity(header, now))
        header = old  # with the versions of the first run
    claim(work / "settings.json", header["settings"])
    done = {(run["variant"], run["seed"]) for run in runs}
    missing = [(v, seed) for seed in range(seeds) for v in variants if (v.name, seed) not in done]
    missing.sort(key=lambda pair: not pair[0].first)
    for number, (variant, seed) in enumerate(missing, start=1):
        run = laboratory.run(variant, seed)
        runs.append(run)
        lines = [json.dumps(line, ensure_ascii=False) for line in (header, *runs)]
        write_text(path, "\n".join(lines) + "\n")
        say(
            f"{number}/{len(missing)} {variant.name}, seed {seed}: dev {run['dev_f1']['mean']:.1f}"
            f", {run['seconds']:.0f} s"
        )
    return path


def reads_other_pieces(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """A copy of ``teacher`` that takes each piece for another, always the same one (special pieces
    stay). Its maps keep what depends on places and special pieces, and are about another text."""
    other = deepcopy(teacher)
    table: Any = other.get_input_embeddings().weight.data
    common = np.setdiff1d(np.arange(len(table)), tokenizer.all_special_ids)
    table[common] = table[np.random.default_rng(0).permutation(common)]
    return other


def _identity(header: Mapping[str, Any], variants: Mapping[str, Mapping[str, Any]]) -> dict:
    """All that runs in one file must share: settings, labels, and what each variant does."""
    same = {**header["settings"], "dev or test": header["truth"]}
    shown = ("about", "first", "against", "base")
    for name, fields in variants.items():
        same |= {f"{name}: {key}": value for key, value in fields.items() if key not in shown}
    return same
