"""The whole game: teacher, student, two stages, an honest table. Wiring only.

:func:`distil` is what ``python -m comet_lib distill`` and notebook 00 run.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from datasets import Dataset, DatasetDict
from matplotlib.figure import Figure
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

import comet_lib
from comet_lib import evaluation, plots
from comet_lib.attention import capture_maps, layer_map
from comet_lib.data import Source, find_source, leakage, load_sentiment, load_text, unseen
from comet_lib.errors import CometError
from comet_lib.files import locked, read_json, whole_folder, write_json, write_text
from comet_lib.initialise import initialise_embeddings
from comet_lib.loading import answering, check_numbers, check_pair, longest_text
from comet_lib.models import (
    build_student,
    count_parameters,
    load_model,
    load_tokenizer,
    model_origin,
    quiet,
    same_body,
    xlmr_config,
)
from comet_lib.processes import give_back_memory, processes
from comet_lib.profiles import PAPER_LANGUAGES, TINY, Profile, Stage
from comet_lib.report import model_card, report_text
from comet_lib.similarity import entropy
from comet_lib.targets import check_enough, cross_fit_and_splice
from comet_lib.text import Corpus, corpus_of
from comet_lib.training import distil_task_agnostic, fine_tune

Say = Callable[[str], None]
Start = Callable[[], PreTrainedModel]
Train = Callable[[PreTrainedModel], list[dict[str, float]]]


@dataclass
class Clock:
    """Seconds by step, of this and of the interrupted calls that it goes on from."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start, before = time.perf_counter(), self.seconds.get(name, 0.0)
        try:
            yield
        finally:
            self.seconds[name] = round(before + time.perf_counter() - start, 1)
            give_back_memory()


def student_config(profile: Profile, teacher: PreTrainedModel) -> transformers.XLMRobertaConfig:
    """The profile's student over the teacher's vocabulary."""
    return xlmr_config(profile.student, teacher.config.vocab_size, max(profile.max_length, 128))


def teacher_probabilities(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    profile: Profile,
) -> np.ndarray:
    """The sentiment teacher's (N, 3) probabilities in LABELS order."""
    return evaluation.predict_probabilities(
        teacher, tokenizer, texts, profile.max_length, profile.eval_batch_size
    )


def soft_targets(
    train: Dataset,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    profile: Profile,
) -> Dataset:
    """The stage-2 training set: every tweet, and spliced tweets, with soft targets.

    A target is the mean of two teachers: the sentiment teacher, and the cross-fitted TF-IDF
    classifier of the fold (which never saw the tweet). Spliced tweets have no label (-100).
    """
    texts, languages = train["text"][:], train["language"][:]
    out_of_fold, made, made_probabilities, made_languages = cross_fit_and_splice(
        texts, train["label"][:], languages, profile.splices, profile.folds, profile.seed
    )
    every = [*texts, *made]
    ngrams = np.concatenate([out_of_fold, made_probabilities])
    weight = profile.teacher_weight
    if weight > 0:
        ngrams = (1 - weight) * ngrams + weight * teacher_probabilities(
            teacher, tokenizer, every, profile
        )
    return Dataset.from_dict(
        {
            "text": every,
            "label": [*train["label"][:], *[-100] * len(made)],
            "language": [*languages, *made_languages],
            "teacher_probs": ngrams.astype(np.float32),
        }
    )


def _settings(profile: Profile) -> dict[str, Any]:
    return {**profile.as_dict(), "library": comet_lib.__version__}


def _nothing(line: str) -> None:
    """What a process says that is not the main one."""


def claim(output: Path, profile: Profile, write: bool = True) -> None:
    """An output folder belongs to one run: same settings resume it, others are refused."""
    path = output / "work" / "settings.json"
    settings = json.loads(json.dumps(_settings(profile)))  # tuples as lists, as the file has them
    if path.is_file():
        old = read_json(path, "library")
        differ = sorted(k for k in settings if old.get(k) != settings[k])
        if differ:
            raise CometError(
                f"{output} holds a run with other settings ({', '.join(differ)}): choose another "
                "--output, or delete the folder"
            )
    elif write:
        write_json(path, settings)


def check_data(data: DatasetDict, texts: Sequence[str] | Corpus, profile: Profile) -> None:
    """Raise if the data is too little for a stage: hours before that stage would say so.

    Raises:
        CometError: fewer than two lines of text (one is held out), a dev split that stands in
            train as a whole, or too few training tweets of a language to cross-fit.
    """
    if len(texts) < 2:
        raise CometError(
            f"stage 1 has {len(texts)} line of text; give two at least, in --data's text/ or train"
        )
    if not len(unseen(data["dev"])):
        raise CometError(
            "dev: every tweet stands in train too, so that no epoch can be chosen; give a dev "
            "split of other tweets"
        )
    train = data["train"]
    check_enough(train["text"][:], train["label"][:], train["language"][:], profile.folds)


def read_teachers(profile: Profile) -> list[tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
    """The masked-LM teacher and the sentiment teacher, each with its tokenizer.

    Raises:
        CometError: one that cannot be read, has no mask piece, takes shorter texts than the
            profile's, or does not answer.
    """
    made = []
    for name, head in ((profile.teacher, "masked-lm"), (profile.sentiment_teacher, "sentiment")):
        model, tokenizer = load_model(name, head), load_tokenizer(name)
        check_pair(model, tokenizer)
        made.append((model, tokenizer))
    (teacher, tokenizer), sentiment = made
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
    layer_map(profile.student["num_hidden_layers"], teacher.config.num_hidden_layers)
    with torch.inference_mode(), answering(teacher):
        check_numbers(teacher, teacher(**tokenizer("a", return_tensors="pt")).logits)
    teacher_probabilities(*sentiment, ["a"], profile)  # and a head without our labels is refused
    return made


def train_student(
    profile: Profile,
    output: Path,
    clock: Clock,
    say: Say,
    data: DatasetDict,
    texts: list[str] | Corpus,
    teachers: Sequence[tuple[PreTrainedModel, PreTrainedTokenizerBase]],
) -> dict[str, Any]:
    """Both stages, each resumed where a former run of the same settings stopped.

    Returns ``student``, ``tokenizer``, ``baseline`` (the same student without distillation),
    ``sentiment_teacher`` with its tokenizer, the teachers' origins, and the logs of the stages. Of
    several processes each trains on its share of every batch, and the main one writes.
    """
    work, here = output / "work", processes()
    logs: dict[str, Any] = {}
    (teacher, tokenizer), (sentiment_teacher, sentiment_tokenizer) = teachers
    config = student_config(profile, teacher)
    dev = unseen(data["dev"])

    def stage(name: str, folder: Path, start: Start, train: Train) -> PreTrainedModel:
        """The model in ``folder``, else ``start()`` trained, its log and itself saved."""
        log_file = work / f"{name}.json"
        if (folder / "config.json").is_file() and log_file.is_file():
            logs[name] = read_json(log_file)
            try:
                return load_model(folder, "masked-lm" if name == "stage1" else "sentiment")
            except CometError as error:
                raise CometError(
                    f"{folder}: what a former call left cannot be read; delete this folder and run "
                    f"again, it goes on from its last checkpoint ({error})"
                ) from error
        set_seed(profile.seed)
        model = start()
        logs[name] = train(model)
        if here.is_main_process:
            write_json(log_file, logs[name])
            with whole_folder(folder) as made, quiet():
                model.save_pretrained(made)
                tokenizer.save_pretrained(made)
        here.wait_for_everyone()
        return model

    def beginning() -> PreTrainedModel:
        model = build_student(config, "masked-lm")
        if config.hidden_size <= teacher.config.hidden_size:
            initialise_embeddings(model, teacher)
        return model

    def stage_one(model: PreTrainedModel) -> list[dict[str, float]]:
        say(f"stage 1: {len(texts):,} sentences without labels, the teacher's masked-LM targets")
        with clock.step("stage1"):
            return distil_task_agnostic(
                model,
                teacher,
                tokenizer,
                texts,
                profile,
                work / "stage1",
                cache=work / "cache" if profile.cached else None,
                resume=True,
            )

    def stage_two(model: PreTrainedModel) -> list[dict[str, float]]:
        say("soft targets: the teacher's, and TF-IDF's out of fold, on real and spliced tweets")
        with clock.step("targets"):
            train = soft_targets(data["train"], sentiment_teacher, sentiment_tokenizer, profile)
        say(f"stage 2: {len(train):,} tweets, {len(data['train']):,} of them with a label")
        with clock.step("stage2"):
            return fine_tune(model, tokenizer, train, dev, profile, work / "stage2", resume=True)

    def labels_alone(model: PreTrainedModel) -> list[dict[str, float]]:
        say("for comparison: the same student from labels alone, with as many steps")
        longer = profile.with_(stage2=_stretched(profile))
        with clock.step("no_distillation"):
            return fine_tune(
                model, tokenizer, data["train"], dev, longer, work / "labels", resume=True
            )

    agnostic = stage("stage1", work / "agnostic", beginning, stage_one)
    student = stage(
        "stage2",
        output / "student",
        lambda: same_body(build_student(config), agnostic),
        stage_two,
    )
    baseline = stage(
        "no_distillation", work / "baseline", lambda: build_student(config), labels_alone
    )
    return {
        "student": student,
        "tokenizer": tokenizer,
        "baseline": baseline,
        "sentiment_teacher": sentiment_teacher,
        "sentiment_tokenizer": sentiment_tokenizer,
        "origins": {
            "masked-lm": model_origin(profile.teacher),
            "sentiment": model_origin(profile.sentiment_teacher),
        },
        "logs": logs,
    }


def _stretched(profile: Profile) -> Stage:
    """Stage 2 with more epochs, so that labels alone get as many steps as labels and splices."""
    return replace(profile.stage2, epochs=profile.stage2.epochs * (1 + profile.splices))


def distil(
    profile: Profile, output: str | Path, split: str = "test", say: Say = print
) -> dict[str, Any]:
    """Run everything and write ``student/``, ``report.json``, ``report.md`` and figures.

    Killed and called again with the same settings, it goes on from the last checkpoint. Returns
    the report. Under ``accelerate launch`` all processes train, the main one alone speaks, writes
    and reports, and the others return an empty dict.
    """
    output, here = Path(output), processes()
    if not here.is_main_process:
        say = _nothing
    source = find_source(profile)
    claim(output, profile, write=False)
    spent = output / "work" / "seconds.json"
    clock = Clock(read_json(spent, "data") if spent.is_file() else {})
    say(f"{profile.budget}; data from {source}")
    with clock.step("data"):
        data = load_sentiment(profile, source=source)
        texts = corpus_of(profile) or load_text(profile, source=source)["text"][:]
        leaks = leakage(data)
        say(
            f"data: {len(data['train']):,} tweets to train on; rows of dev seen in train: "
            + ", ".join(
                f"{r.language} {r.percent} %" for r in leaks.itertuples() if r.split == "dev"
            )
        )
    check_data(data, texts, profile)
    say("teacher: reading")
    teachers = read_teachers(profile)
    # Nothing is written before this line: bad data or a bad teacher leaves no trace.
    with locked(output / "work") if here.is_main_process else nullcontext():
        with here.main_process_first():
            claim(output, profile)
        try:
            made = train_student(profile, output, clock, say, data, texts, teachers)
        finally:
            if here.is_main_process:
                write_json(spent, clock.seconds)
        if not here.is_main_process:
            return {}
        return _report(profile, output, split, source, clock, leaks, data, made)


def _report(
    profile: Profile,
    output: Path,
    split: str,
    source: Source,
    clock: Clock,
    leaks: pd.DataFrame,
    data: DatasetDict,
    made: dict[str, Any],
) -> dict[str, Any]:
    """Score every model on ``split``; write the report, the card and the figures."""
    with clock.step("evaluation"):
        table = data[split]
        here = table["text"][:]
        tfidf, weights = evaluation.tfidf_baseline(data, split)
        teacher = teacher_probabilities(
            made["sentiment_teacher"], made["sentiment_tokenizer"], here, profile
        )
        ours = teacher_probabilities(made["student"], made["tokenizer"], here, profile)
        alone = teacher_probabilities(made["baseline"], made["tokenizer"], here, profile)
        rows = [
            _row("tfidf", table, tfidf, profile, weights, weights * 4 / 1e6),
            _row("teacher", table, teacher, profile, *model_size(made["sentiment_teacher"])),
            _row("student_no_distillation", table, alone, profile, *model_size(made["baseline"])),
            _row("student", table, ours, profile, *model_size(made["student"])),
        ]
        labels, languages = np.asarray(table["label"][:]), np.asarray(table["language"][:])
        compared = {
            f"student - {name}": evaluation.paired_bootstrap(
                labels, ours.argmax(1), other.argmax(1), languages, seed=profile.seed
            )
            for name, other in (
                ("student_no_distillation", alone),
                ("teacher", teacher),
                ("tfidf", tfidf),
            )
        }
        floor = evaluation.mean_weighted_f1(labels, evaluation.most_common(data, split), languages)
    benchmark = source.kind != "sample"
    as_published = benchmark and split == "test" and profile.languages == PAPER_LANGUAGES
    report = {
        "profile": profile.name,
        "source": str(replace(source, why=""))
        + (f"; stage-1 text {Path(profile.text).name}" if profile.text else ""),
        "benchmark": benchmark,
        "teachers": made["origins"],
        "languages": list(profile.languages),
        "split": split,
        "seed": profile.seed,
        "seconds": clock.seconds,
        "rows": rows,
        "comparisons": compared,
        "retention": evaluation.retention(
            rows[3]["weighted_f1"]["mean"], rows[1]["weighted_f1"]["mean"]
        ),
        "floor": floor["mean"],
        "leakage": leaks.to_dict("records"),
        "paper": evaluation.PAPER_ROWS if as_published else [],
        "versions": {
            "comet_lib": comet_lib.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    write_json(output / "report.json", report)
    write_text(output / "report.md", report_text(report))
    write_text(output / "student" / "README.md", model_card(report))
    plots.save(plots.result_bars(report), output / "figures" / "results.png")
    plots.save(plots.training_curves(made["logs"]), output / "figures" / "curves.png")
    if made["sentiment_teacher"].config.vocab_size == made["student"].config.vocab_size:
        figure = attention_figure(
            made["sentiment_teacher"],
            made["student"],
            made["tokenizer"],
            sample_sentence(profile.languages),
        )
        plots.save(figure, output / "figures" / "attention.png")
    return report


def attention_figure(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
) -> Figure:
    """Head-mean maps of both models' last layers on one text, and their difference."""
    batch = tokenizer(text, return_tensors="pt")
    maps, wide = [], []
    for model in (teacher, student):
        (one,) = capture_maps(model, batch, [-1]).values()  # (1, L, L)
        maps.append(one[0].float().numpy())
        wide.append(float(entropy(one, batch["attention_mask"])))
    tokens = [str(tokenizer.decode([i])) or "▁" for i in batch["input_ids"][0].tolist()]
    return plots.attention_maps(
        [*maps, maps[1] - maps[0]],
        tokens,
        ["teacher", "student", "student - teacher"],
        difference=True,
        title=f"Attention of the last layer: entropy {wide[0]:.2f} nats a row in the teacher, "
        f"{wide[1]:.2f} in the student",
    )


def sample_sentence(languages: Sequence[str]) -> str:
    """A positive sentence of the bundled sample, in the first of the languages that it has."""
    sample = load_sentiment(TINY)["test"].to_pandas()
    here = sample[sample["language"].isin(list(languages)) & (sample["label"] == 2)]
    return (here if len(here) else sample)["text"].iloc[-1]


def model_size(model: PreTrainedModel) -> tuple[int, float]:
    """Parameters, and megabytes (10^6 bytes) as fp32."""
    count = count_parameters(model)
    return count, count * 4 / 1e6


def _row(
    name: str, table: Dataset, probabilities: np.ndarray, profile: Profile, count: int, mb: float
) -> dict[str, Any]:
    return evaluation.score_row(
        name,
        table,
        probabilities,
        profile.bootstrap,
        profile.seed,
        parameters=count,
        size_mb=round(mb, 2),
    )
