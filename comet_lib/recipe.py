"""The whole game: teacher, student, two stages, an honest table. Read :func:`distil` first.

``python -m comet_lib distill`` and notebook 00 run it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

import comet_lib
from comet_lib import evaluation, plots
from comet_lib.attention import layer_map
from comet_lib.batches import tokenize
from comet_lib.data import (
    Source,
    both_forms,
    conflicting_labels,
    find_source,
    leakage,
    load_sentiment,
    seen_percent,
    unseen,
)
from comet_lib.errors import CometError
from comet_lib.files import claim, locked, read_json, whole_folder, write_json, write_text
from comet_lib.lens import AttentionLens
from comet_lib.loading import (
    load_model,
    load_pair,
    longest_text,
    model_origin,
    save_tokenizer,
)
from comet_lib.models import (
    build_student,
    count_parameters,
    initialize_embeddings,
    quiet,
    same_body,
    student_config,
)
from comet_lib.objectives import TERMS, stage_one_weights, stage_two_weights
from comet_lib.processes import give_back_memory, processes, versions
from comet_lib.profiles import PAPER_LANGUAGES, PAPER_ROWS, TINY, Profile
from comet_lib.report import model_card, report_text
from comet_lib.targets import check_enough, cross_fit, label_frequencies, less_prior
from comet_lib.text import load_text, load_transfer
from comet_lib.training import distil_task_agnostic, fine_tune, uniform_matches

Say = Callable[[str], None]


def distil(
    profile: Profile, output: str | Path, split: str = "test", say: Say = print
) -> dict[str, Any]:
    """Run everything; write ``student/``, ``report.json``, ``report.md``, figures, ``lens.html``.

    Killed and called again with the same settings, it goes on from the last checkpoint. Returns
    the report. Under ``accelerate launch`` all processes train; only the main one speaks, writes
    and reports, and the others return an empty dict.
    """
    main = processes().is_main_process
    run = Run(profile, Path(output), find_source(profile), say if main else lambda line: None)
    run.claim(write=False)
    run.say(f"{profile.budget}; data from {run.source}")
    data, texts, transfer = read_data(run)
    run.say("teacher: reading")
    teachers = read_teachers(profile)
    # Nothing is written before this line: bad data or a bad teacher leaves no trace.
    with locked(run.work) if main else nullcontext():
        with processes().main_process_first():
            run.claim()
        try:
            agnostic = stage_one(run, teachers, texts)
            student = stage_two(run, teachers, data, transfer, agnostic)
            baseline = without_distillation(run, teachers, data)
        finally:
            if main:
                write_json(run.work / "seconds.json", run.seconds)
        if not main:
            return {}
        return write_report(run, teachers, data, split, agnostic, student, baseline)


# --------------------------------------------------------------------------- a run


@dataclass
class Run:
    """One run and its folder: ``work/`` holds what resuming needs.

    ``logs`` are the trainings', ``seconds`` the steps' (of this call and of the interrupted calls
    that it continues), both by name.
    """

    profile: Profile
    output: Path
    source: Source
    say: Say
    logs: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.work = self.output / "work"
        if (self.work / "seconds.json").is_file():
            self.seconds = read_json(self.work / "seconds.json", "data")

    def claim(self, write: bool = True) -> None:
        """The folder belongs to one run: the same profile and library resume it, others are
        refused."""
        settings = {**self.profile.as_dict(), "library": comet_lib.__version__}
        claim(self.work / "settings.json", settings, write)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Counts the seconds inside."""
        start, before = time.perf_counter(), self.seconds.get(name, 0.0)
        try:
            yield
        finally:
            self.seconds[name] = round(before + time.perf_counter() - start, 1)
            give_back_memory()

    def finished(self, stage: str, folder: Path, head: str = "sentiment") -> PreTrainedModel | None:
        """The model that an earlier call trained in this stage, if there is one."""
        log = self.work / f"{stage}.json"
        if not ((folder / "config.json").is_file() and log.is_file()):
            return None
        self.logs[stage] = read_json(log)
        try:
            return load_model(folder, head)
        except CometError as error:
            raise CometError(
                f"{folder}: what an earlier call left cannot be read; delete this folder and run "
                f"again, it goes on from its last checkpoint ({error})"
            ) from error

    def keep(
        self, stage: str, folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> PreTrainedModel:
        """Save the stage's log and model; return the model."""
        here = processes()
        if here.is_main_process:
            write_json(self.work / f"{stage}.json", self.logs[stage])
            with whole_folder(folder) as temporary, quiet():
                model.save_pretrained(temporary)
                save_tokenizer(tokenizer, model, temporary, self.profile.max_length)
        here.wait_for_everyone()
        return model


# --------------------------------------------------------------------------- data and teachers


def read_data(run: Run) -> tuple[DatasetDict, Dataset, dict[str, list[str]]]:
    """AfriSenti, the text of stage 1, and unlabeled posts by language for stage 2.

    Raises:
        CometError: too little data for a stage, hours before that stage would say so: fewer than
            two lines of text (one is held out), a dev split of which every tweet is in train, or
            too few training tweets of a language to cross-fit.
    """
    profile = run.profile
    with run.step("data"):
        data = load_sentiment(profile, source=run.source)
        with processes().main_process_first():
            texts = load_text(profile, source=run.source)
        transfer = load_transfer(profile, source=run.source)
    train = data["train"]
    run.say(
        f"data: {len(train):,} tweets to train on; rows of dev seen in train: "
        + ", ".join(f"{code} {percent} %" for code, percent in seen_percent(data["dev"]).items())
    )
    if len(texts) < 2:
        raise CometError(
            f"stage 1 has {len(texts)} line of text; give two at least, in "
            f"{profile.text or '--data: its transfer/, text/ or train'}"
        )
    if not len(unseen(data["dev"])):
        raise CometError(
            "dev: every tweet is in train too, so no epoch can be chosen; give a dev split of "
            "other tweets"
        )
    check_enough(train["text"][:], train["label"][:], train["language"][:], profile.folds)
    return data, texts, transfer


@dataclass(frozen=True)
class Teachers:
    """The masked-LM teacher of stage 1, the sentiment teacher of stage 2, and what student they
    can have."""

    masked_lm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase  # the masked-LM teacher's, and the student's
    sentiment: PreTrainedModel
    sentiment_tokenizer: PreTrainedTokenizerBase
    student: transformers.XLMRobertaConfig  # over the masked-LM teacher's vocabulary


def read_teachers(profile: Profile) -> Teachers:
    """Both teachers, each with its tokenizer.

    Raises:
        CometError: one that cannot be read, has no mask piece, takes shorter texts than the
            profile's, or does not answer; terms that are unknown; or terms of stage 2 with
            a sentiment teacher of another tokenizer.
    """
    stage_one_weights(profile.stage1), stage_two_weights(profile.stage2)
    teacher, tokenizer = load_pair(profile.teacher, "masked-lm")
    sentiment = load_pair(profile.sentiment_teacher, "sentiment", profile.labels)
    if tokenizer.mask_token_id is None:
        raise CometError(
            f"{profile.teacher}: its tokenizer has no mask piece, which stage 1 needs; set "
            "mask_token in its tokenizer_config.json"
        )
    if (longest := longest_text(teacher) or profile.max_length) < profile.max_length:
        raise CometError(
            f"{profile.teacher}: takes {longest} tokens of a text, and profile {profile.name} has "
            f"{profile.max_length}; give a teacher with more max_position_embeddings"
        )
    inside = [name for name in profile.stage2.terms if name in TERMS]
    if inside and tokenizer.get_vocab() != sentiment[1].get_vocab():
        raise CometError(
            f"{profile.sentiment_teacher}: its pieces are not those of {profile.teacher}, and "
            f"{', '.join(inside)} in stage 2 compare student and teacher token by token; leave "
            "the terms out, or give teachers with one tokenizer"
        )
    layer_map(profile.student["num_hidden_layers"], teacher.config.num_hidden_layers)
    student = student_config(profile, teacher, tokenizer.pad_token_id)
    return Teachers(teacher, tokenizer, *sentiment, student)


def teacher_probabilities(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    profile: Profile,
    bar: str = "",
) -> np.ndarray:
    """A sentiment model's (N, 3) probabilities in LABELS order."""
    return evaluation.predict_probabilities(
        teacher, tokenizer, texts, profile.max_length, profile.eval_batch_size, bar
    )


def soft_targets(
    train: Dataset,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    profile: Profile,
    transfer: Mapping[str, Sequence[str]] | None = None,
    bars: bool = False,
) -> Dataset:
    """The stage-2 training set: tweets, spliced tweets and transfer text, with soft targets.

    A target is the mean of two teachers: the sentiment teacher, and the cross-fitted TF-IDF
    classifier of the fold (which never saw the tweet). Only tweets have a label; that of the
    others is -100.
    """
    texts, languages = train["text"][:], train["language"][:]
    ngrams = cross_fit(
        texts,
        train["label"][:],
        languages,
        profile.folds,
        profile.seed,
        profile.splices,
        transfer,
        "TF-IDF, out of fold" if bars else "",
    )
    every = [*texts, *ngrams.texts]
    probabilities = np.concatenate([ngrams.probabilities, ngrams.text_probabilities])
    weight = profile.teacher_weight
    if weight > 0:
        bar = "the teacher's answers" if bars else ""
        theirs = teacher_probabilities(teacher, tokenizer, every, profile, bar)
        probabilities = (1 - weight) * probabilities + weight * theirs
    labels = [*train["label"][:], *[-100] * len(ngrams.texts)]
    codes = [*languages, *ngrams.languages]
    frequencies = label_frequencies(train)
    probabilities = less_prior(probabilities, codes, frequencies, profile.prior)
    rows = {
        "text": every,
        "label": labels,
        "language": codes,
        "teacher_probs": list(probabilities.astype(np.float32)),
    }
    return Dataset.from_dict(rows)


# --------------------------------------------------------------------------- the stages


def stage_one(run: Run, teachers: Teachers, texts: Dataset) -> PreTrainedModel:
    """Task-agnostic: the student learns the masked-LM teacher's soft targets and attention."""
    profile, folder = run.profile, run.work / "agnostic"
    if (student := run.finished("stage1", folder, "masked-lm")) is not None:
        return student
    student = first_student(run, teachers)
    run.say(f"stage 1: {len(texts):,} sentences without labels, the teacher's masked-LM targets")
    with run.step("stage1"):
        run.logs["stage1"] = distil_task_agnostic(
            student,
            teachers.masked_lm,
            teachers.tokenizer,
            texts,
            profile,
            run.work / "stage1",
            cache=run.work / "cache" if profile.cached else None,
            resume=True,
        )
    return run.keep("stage1", folder, student, teachers.tokenizer)


def first_student(run: Run, teachers: Teachers) -> PreTrainedModel:
    """The student before stage 1: random weights, its teacher's embeddings at its own width."""
    set_seed(run.profile.seed)
    student = build_student(teachers.student, "masked-lm")
    if teachers.student.hidden_size <= teachers.masked_lm.config.hidden_size:
        initialize_embeddings(student, teachers.masked_lm)
    return student


def stage_two(
    run: Run,
    teachers: Teachers,
    data: DatasetDict,
    transfer: Mapping[str, Sequence[str]],
    agnostic: PreTrainedModel,
) -> PreTrainedModel:
    """Task-specific: from labels and soft targets, on tweets and transfer text in both forms."""
    profile, folder = run.profile, run.output / "student"
    if (student := run.finished("stage2", folder)) is not None:
        return student
    set_seed(profile.seed)
    student = build_student(teachers.student)
    same_body(student, agnostic)
    run.say("soft targets: the teacher's, and TF-IDF's out of fold")
    with run.step("targets"):
        # A cleaned copy has its original's targets: the teachers saw the emoji that it lost.
        pair = teachers.sentiment, teachers.sentiment_tokenizer
        bars = processes().is_main_process
        train = both_forms(soft_targets(data["train"], *pair, profile, transfer, bars))
    labeled = sum(label != -100 for label in train["label"][:])
    run.say(f"stage 2: {len(train):,} texts in both forms, {labeled:,} with a label")
    with run.step("stage2"):
        run.logs["stage2"] = fine_tune(
            student,
            teachers.tokenizer,
            train,
            both_forms(unseen(data["dev"])),
            profile,
            run.work / "stage2",
            teacher=teachers.sentiment,
            resume=True,
        )
    return run.keep("stage2", folder, student, teachers.tokenizer)


def without_distillation(run: Run, teachers: Teachers, data: DatasetDict) -> PreTrainedModel:
    """The same shape from random weights, trained on labels only, in both forms, with as many
    steps as stage 2."""
    profile, folder = run.profile, run.work / "baseline"
    if (student := run.finished("no_distillation", folder)) is not None:
        return student
    set_seed(profile.seed)
    student = build_student(teachers.student)
    run.say("for comparison: that shape from random weights, labels only, with as many steps")
    steps = run.logs["stage2"][-1]["step"]
    with run.step("no_distillation"):
        run.logs["no_distillation"] = fine_tune(
            student,
            teachers.tokenizer,
            both_forms(data["train"]),
            both_forms(unseen(data["dev"])),
            profile.with_(stage2=replace(profile.stage2, max_steps=int(steps), terms={})),
            run.work / "labels",
            resume=True,
        )
    return run.keep("no_distillation", folder, student, teachers.tokenizer)


# --------------------------------------------------------------------------- the report


def write_report(
    run: Run,
    teachers: Teachers,
    data: DatasetDict,
    split: str,
    agnostic: PreTrainedModel,
    student: PreTrainedModel,
    baseline: PreTrainedModel,
) -> dict[str, Any]:
    """Score every model on ``split``; write the report, the card, the figures and the lens."""
    profile, table = run.profile, data[split]
    models = {
        "teacher": (teachers.sentiment, teachers.sentiment_tokenizer),
        "student_no_distillation": (baseline, teachers.tokenizer),
        "student": (student, teachers.tokenizer),
    }
    stages = {
        "untrained": first_student(run, teachers),
        "after stage 1": agnostic,
        "after stage 2": student,
        "without distillation": baseline,
    }
    run.say(f"evaluation on {split}: TF-IDF, {', '.join(models)}")
    with run.step("evaluation"):
        looks = where_they_look(run, teachers, data, stages)
        answers, sizes = dict[str, np.ndarray](), dict[str, int]()
        for name, forms in (("tfidf", False), ("tfidf_both_forms", True)):
            answers[name], sizes[name] = evaluation.tfidf_baseline(data, split, forms)
        for name, pair in models.items():
            model, texts, bar = pair[0], table["text"][:], f"evaluation: {name}"
            answers[name] = teacher_probabilities(*pair, texts, profile, bar)
            sizes[name] = count_parameters(model)
            if name == "teacher":  # and what the student imitates, its ceiling
                weight, ngrams = profile.teacher_weight, "tfidf_both_forms"
                mixed = (1 - weight) * answers[ngrams] + weight * answers[name]
                answers["soft_targets"] = less_prior(
                    mixed, table["language"][:], label_frequencies(data["train"]), profile.prior
                )
                sizes["soft_targets"] = sizes[ngrams] + sizes[name]
        rows = {
            name: evaluation.score_row(
                name,
                table,
                answers[name],
                profile.bootstrap,
                profile.seed,
                parameters=count,
                size_mb=round(count * 4 / 1e6, 2),
            )
            for name, count in sizes.items()
        }
        labels, languages = np.asarray(table["label"][:]), np.asarray(table["language"][:])
        guesses = {name: values.argmax(1) for name, values in answers.items()}
        compared = {
            f"student - {name}": evaluation.paired_bootstrap(
                labels, guesses["student"], guesses[name], languages, seed=profile.seed
            )
            for name in ("student_no_distillation", "teacher", "tfidf", "tfidf_both_forms")
        }
        floor = evaluation.mean_weighted_f1(labels, evaluation.most_common(data, split), languages)
        untrained = [name for name, row in rows.items() if row["ci95"]["mean"][0] <= floor["mean"]]
    conflicts = conflicting_labels(data["train"]).groupby("language")["text"].nunique()
    benchmark = run.source.kind != "sample"
    as_published = benchmark and split == "test" and profile.languages == PAPER_LANGUAGES
    report = {
        "profile": profile.name,
        "source": str(replace(run.source, why=""))
        + (f"; stage-1 text {Path(profile.text).name}" if profile.text else ""),
        "benchmark": benchmark,
        "teachers": {
            "masked-lm": model_origin(profile.teacher),
            "sentiment": model_origin(profile.sentiment_teacher),
        },
        "languages": list(profile.languages),
        "split": split,
        "seed": profile.seed,
        "seconds": run.seconds,
        "rows": list(rows.values()),
        "comparisons": compared,
        "retention": evaluation.retention(
            rows["student"]["weighted_f1"]["mean"], rows["teacher"]["weighted_f1"]["mean"]
        ),
        "floor": floor["mean"],
        "untrained": untrained,
        "attention": looks,
        "leakage": leakage(data).to_dict("records"),
        "conflicting_labels": {code: int(conflicts.get(code, 0)) for code in profile.languages},
        "paper": PAPER_ROWS if as_published else [],
        "versions": versions(),
    }
    output = run.output
    write_json(output / "report.json", report)
    write_text(output / "report.md", report_text(report))
    write_text(output / "student" / "README.md", model_card(report))
    plots.save(plots.result_bars(report), output / "figures" / "results.png")
    plots.save(plots.training_curves(run.logs), output / "figures" / "curves.png")
    if teachers.sentiment.config.vocab_size == student.config.vocab_size:
        sentence = sample_sentence(profile.languages)
        lens = AttentionLens.from_models(teachers.sentiment, student, teachers.tokenizer, sentence)
        lens.export(output / "figures" / "attention.png")
        lens.export(output / "lens.html")
    return report


def where_they_look(
    run: Run, teachers: Teachers, data: DatasetDict, stages: Mapping[str, PreTrainedModel]
) -> dict[str, Any]:
    """Mean JS in nats of each matched pair of layers, on 200 dev tweets, at each of ``stages``; and
    what the final student would have if its teacher read another tweet."""
    profile, dev = run.profile, unseen(data["dev"]).shuffle(seed=0)
    texts = dev["text"][: min(200, len(dev))]
    table = tokenize(texts, teachers.tokenizer, profile.max_length)["input_ids"][:]
    teacher, last = teachers.masked_lm, stages["after stage 2"]
    matches = uniform_matches(last, teacher)
    rows = {
        name: evaluation.attention_distance(model, teacher, table, matches)
        for name, model in stages.items()
    }
    rows["after stage 2, teacher reads another tweet"] = evaluation.attention_distance(
        last, teacher, table, matches, shuffled=True
    )
    return {"matches": [list(pair) for pair in matches.items()], "rows": rows}


def sample_sentence(languages: Sequence[str]) -> str:
    """A positive sentence of the bundled sample, in the first of the languages that it has."""
    sample = load_sentiment(TINY, splits=["test"])["test"].to_pandas()
    here = sample[sample["language"].isin(list(languages)) & (sample["label"] == 2)]
    return (here if len(here) else sample)["text"].iloc[-1]
