"""Two stages of distillation on ``transformers.Trainer``.

Stage 1 (task-agnostic): on unlabelled text the student learns the teacher's masked-LM soft
targets, and its attention maps. Stage 2 (task-specific): the student is fine-tuned on sentiment,
from labels and, if given, from a sentiment teacher's soft targets.

A stage is an *objective*: a function of (student, batch) that returns named loss terms, the total
under ``"loss"``. The trainer differentiates the total and logs every term.
"""

from __future__ import annotations

import contextlib
import json
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils.notebook import NotebookProgressCallback

from comet_lib.attention import capture, layer_map
from comet_lib.batches import LengthBatches, MaskingCollator, SentimentCollator, tokenise
from comet_lib.errors import CometError
from comet_lib.evaluation import mean_weighted_f1
from comet_lib.files import read_json
from comet_lib.losses import (
    attention_loss,
    hybrid_loss,
    soft_target_loss,
    soft_target_loss_from_probs,
    soft_target_loss_topk,
)
from comet_lib.models import only_positions, quiet
from comet_lib.processes import share_of_batch
from comet_lib.profiles import Profile, Stage
from comet_lib.teacher import CachedCollator, CacheSettings, cache_targets, decode_maps
from comet_lib.text import NO_CACHE, Corpus, CorpusRows

Objective = Callable[[nn.Module, dict[str, Tensor]], dict[str, Any]]


class TaskAgnostic:
    """Stage 1: alpha * soft targets at masked positions + (1 - alpha) * attention matching.

    Args:
        teacher: masked-LM model with the student's vocabulary; it is never trained.
        matches: student layer -> teacher layer whose head-mean map it should copy.
        kind: ``mse`` (the paper) or ``kl`` (row-wise, scale-free).
    """

    captures: ExitStack | None = None  # what keeps captures of the student open for the trainer

    def __init__(
        self,
        teacher: PreTrainedModel,
        matches: Mapping[int, int],
        temperature: float = 2.0,
        alpha: float = 0.5,
        kind: str = "kl",
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.matches, self.temperature, self.alpha, self.kind = matches, temperature, alpha, kind

    def __call__(self, student: nn.Module, batch: dict[str, Tensor]) -> dict[str, Any]:
        mask = batch["attention_mask"]
        masked = batch["labels"] != -100  # (B, L)
        self.teacher.to(mask.device)
        with (
            torch.no_grad(),
            capture(self.teacher, list(self.matches.values())) as teacher_maps,
            only_positions(self.teacher, masked),
        ):
            text = {"input_ids": batch["input_ids"], "attention_mask": mask}
            teacher_logits = self.teacher(**text).logits  # (M, V)
        logits, maps = _answers(student, batch, masked, list(self.matches), self.captures)
        soft = soft_target_loss(logits, teacher_logits, self.temperature)
        attention = attention_loss(
            maps, [teacher_maps[j] for j in self.matches.values()], mask, kind=self.kind
        )
        return _weighed(student, soft, attention, self.alpha, masked, mask)


class CachedTaskAgnostic:
    """:class:`TaskAgnostic` with the teacher's answers from a batch of ``CachedCollator``.

    ``matches`` and ``temperature`` are those that the cache was made with. The soft targets are
    eq. (10) of the losses, on the k likeliest pieces and the tail.
    """

    captures: ExitStack | None = None  # as in TaskAgnostic

    def __init__(
        self,
        matches: Mapping[int, int],
        temperature: float = 2.0,
        alpha: float = 0.5,
        kind: str = "kl",
    ) -> None:
        self.matches, self.temperature, self.alpha, self.kind = matches, temperature, alpha, kind
        self.layers = sorted(set(matches.values()))

    def __call__(self, student: nn.Module, batch: dict[str, Tensor]) -> dict[str, Any]:
        mask, masked = batch["attention_mask"], batch["labels"] != -100
        logits, maps = _answers(student, batch, masked, list(self.matches), self.captures)
        soft = soft_target_loss_topk(
            logits, batch["top_indices"], batch["top_logprobs"], batch["tail"], self.temperature
        )
        teacher_maps = [
            decode_maps(batch["teacher_maps"][:, self.layers.index(j)])
            for j in self.matches.values()
        ]
        attention = attention_loss(maps, teacher_maps, mask, kind=self.kind)
        return _weighed(student, soft, attention, self.alpha, masked, mask)


def _answers(
    student: nn.Module,
    batch: Mapping[str, Tensor],
    masked: Tensor,
    layers: Sequence[int],
    captures: ExitStack | None,
) -> tuple[Tensor, list[Tensor]]:
    """The student's logits (M, V) at the masked positions, and the maps of its ``layers``."""
    core: Any = getattr(student, "module", student)  # without DistributedDataParallel
    with ExitStack() as here, only_positions(student, masked):
        maps = (captures or here).enter_context(capture(core, layers))
        logits = student(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits
    return logits, [maps[i] for i in layers]


def _weighed(
    student: nn.Module, soft: Tensor, attention: Tensor, alpha: float, masked: Tensor, mask: Tensor
) -> dict[str, Any]:
    """Stage 1's terms. Among several processes a term counts by its masked positions, or rows."""
    terms = {"soft_targets": soft.detach(), "attention": attention.detach()}
    if student.training:
        soft, attention = (
            loss * share_of_batch(what.sum()) for loss, what in ((soft, masked), (attention, mask))
        )
    return {"loss": hybrid_loss(soft, attention, alpha), **terms}


class TaskSpecific:
    """Stage 2: alpha * soft targets + (1 - alpha) * cross-entropy with the labels.

    A batch may mix tweets with a label and tweets without (label -100); ``teacher_probs`` (B, 3)
    are the stored soft targets. Without them, it is plain fine-tuning.
    """

    def __init__(self, temperature: float = 1.0, alpha: float = 0.5) -> None:
        self.temperature, self.alpha = temperature, alpha

    def __call__(self, student: nn.Module, batch: dict[str, Tensor]) -> dict[str, Any]:
        output = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        logits, labels = output.logits.float(), batch["labels"]
        known = labels != -100
        hard = F.cross_entropy(logits[known], labels[known]) if known.any() else logits.sum() * 0
        terms = {"hard_labels": hard.detach()}
        if getattr(student, "training", True):
            hard = hard * share_of_batch(known.sum())
        if "teacher_probs" not in batch:
            return {"loss": hard, **terms, "logits": logits}
        soft = soft_target_loss_from_probs(logits, batch["teacher_probs"], self.temperature)
        loss = hybrid_loss(soft, hard, self.alpha)
        return {"loss": loss, "soft_targets": soft.detach(), **terms, "logits": logits}


class Progress(ProgressCallback):
    """A progress bar that does not print the log rows; :func:`history` has them."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        pass


class DistillationTrainer(Trainer):
    """A ``transformers.Trainer`` whose loss is an objective; it logs the mean of every term."""

    def __init__(self, *args: Any, objective: Objective, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.objective: Objective = objective
        self.model_accepts_loss_kwargs = False
        for shown in (PrinterCallback, NotebookProgressCallback, ProgressCallback):
            self.remove_callback(shown)
        if not self.args.disable_tqdm:
            self.add_callback(Progress)
        self._terms: dict[str, list[Tensor]] = {}

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Captures stay open for the backward pass: with gradient checkpointing it runs the layers
        again, which must then do what they did."""
        objective: Any = self.objective
        if not hasattr(objective, "captures"):
            return super().training_step(*args, **kwargs)
        with ExitStack() as objective.captures:
            try:
                return super().training_step(*args, **kwargs)
            finally:
                objective.captures = None

    def compute_loss(
        self, model, inputs, return_outputs=False, num_items_in_batch=None, **kwargs: Any
    ):
        terms = self.objective(model, inputs)
        loss, logits = terms["loss"], terms.get("logits")
        if model.training:
            for name, value in terms.items():
                if name not in ("loss", "logits"):
                    self._terms.setdefault(name, []).append(value)
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def _get_train_sampler(self, train_dataset=None):
        table: Any = self.train_dataset if train_dataset is None else train_dataset
        return LengthBatches(
            table["length"][:],
            self.args.train_batch_size * self.args.world_size,  # one batch over all processes
            self.args.seed,
            epoch=lambda: int(self.state.epoch or 0),
        )

    def _get_eval_sampler(self, eval_dataset):
        """In the table's order: scores by language need it."""
        return SequentialSampler(eval_dataset)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """With saves by steps, one may come right before the evaluation at an epoch's end, which a
        run resumed from there leaves out: so the evaluation's loader must not draw from the shared
        random state, on which dropout depends."""
        apart = self.args.save_strategy == "steps"
        with torch.random.fork_rng(devices=[], enabled=apart):
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with quiet():  # its bars, of one file each, run through the training's own
            super()._save_checkpoint(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            for name, values in self._terms.items():
                logs[name] = round(float(torch.stack(values).mean()), 5)
            self._terms = {}
        super().log(logs, *args, **kwargs)


def precision() -> dict[str, bool]:
    """bf16 on GPUs that multiply it (compute 8 or up), fp16 on older ones, fp32 on a CPU.

    A CPU with AVX512-BF16 or AMX has bf16 too, but it does not pay for students as narrow as the
    laptop's (tools/benchmark_precision.py); a wide one may be given ``bf16=True``.
    """
    if not torch.cuda.is_available():
        return {"bf16": False, "fp16": False}
    new = torch.cuda.get_device_capability()[0] >= 8
    return {"bf16": new, "fp16": not new}


def training_arguments(
    output: str | Path, stage: Stage, seed: int, **more: Any
) -> TrainingArguments:
    """The Trainer's settings for one stage: AdamW, cosine decay, length-grouped batches."""
    settings: dict[str, Any] = {
        "output_dir": str(output),
        "num_train_epochs": stage.epochs,
        "max_steps": stage.max_steps,
        "learning_rate": stage.learning_rate,
        "per_device_train_batch_size": stage.batch_size,
        "per_device_eval_batch_size": 128,
        "gradient_accumulation_steps": stage.gradient_accumulation,
        "lr_scheduler_type": "cosine",
        "warmup_steps": stage.warmup,  # below 1: a share of all steps
        "weight_decay": 0.01,
        "adam_beta2": 0.98,
        "optim": "adamw_torch_fused",
        "remove_unused_columns": False,
        "logging_steps": 20,
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "report_to": "none",
        "seed": seed,
        "data_seed": seed,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": False,
        **precision(),
        # Each process picks its rows from a stream; else the first one would send batches around.
        "accelerator_config": {"dispatch_batches": False},
        **more,
    }
    made = TrainingArguments(**settings)
    # One process is one device. With more of them, and no accelerate launch, the Trainer would
    # take DataParallel, whose threads capture() and the objectives know nothing of.
    made._n_gpu = min(made.n_gpu, 1)
    return made


def steps_per_epoch(rows: int, stage: Stage) -> int:
    """Optimiser steps in one pass over ``rows`` sentences."""
    return math.ceil(rows / (stage.batch_size * stage.gradient_accumulation))


def history(trainer: Trainer) -> list[dict[str, float]]:
    """The trainer's log rows: step, epoch and every loss term."""
    return [dict(row) for row in trainer.state.log_history]


def last_checkpoint(output: Path) -> str | None:
    """The newest checkpoint that was written to its end; a killed run may leave half of one.

    The Trainer writes ``trainer_state.json`` last. One whose weights, optimiser or random state
    were damaged since (a full disk, a broken copy) is passed over too.
    """
    found = [p for p in output.glob("checkpoint-*") if p.name.rpartition("-")[2].isdecimal()]
    for folder in sorted(found, key=lambda p: int(p.name.rpartition("-")[2]), reverse=True):
        with contextlib.suppress(OSError, CometError, SafetensorError, zipfile.BadZipFile):
            read_json(folder / "trainer_state.json", "global_step")
            with safe_open(folder / "model.safetensors", "pt"):
                pass
            states = [folder / "optimizer.pt", folder / "scheduler.pt"]
            if not any(map(_damaged, [*states, *folder.glob("rng_state*.pth")])):
                return str(folder)
    return None


def _damaged(path: Path) -> bool:
    """Whether a file of torch, which is a ZIP archive, has a part with another checksum."""
    with zipfile.ZipFile(path) as archive:
        return archive.testzip() is not None


def _run(trainer: Trainer, output: Path, resume: bool) -> None:
    last = last_checkpoint(output) if resume else None
    if last is not None and isinstance(trainer.train_dataset, CorpusRows):
        step = json.loads((Path(last) / "trainer_state.json").read_text("utf-8"))["global_step"]
        args = trainer.args
        rows = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        trainer.train_dataset.resume(step % math.ceil(len(trainer.train_dataset) / rows) * rows)
    trainer.train(resume_from_checkpoint=last)
    # Give the model back as it came: accelerate leaves its forward inside autocast.
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)


def distil_task_agnostic(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str] | Corpus,
    profile: Profile,
    output: str | Path,
    *,
    kind: str = "kl",
    cache: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    **arguments: Any,
) -> list[dict[str, float]]:
    """Stage 1. ``student`` and ``teacher`` are masked-LM models over ``tokenizer``'s vocabulary.

    The student is trained in place. Two hundredths of the text (at most 1,000 sentences) are held
    out; of a :class:`~comet_lib.text.Corpus`, which is read as it is needed, the first. With
    ``cache``, a folder, the teacher is asked once before the training, which then reads its answers
    from there (:mod:`comet_lib.teacher`; masks stay the same). Returns the log.

    Raises:
        CometError: teacher and student have different vocabularies, the cache is another's, or it
            is asked for with a corpus.
    """
    stage, output = profile.stage1, Path(output)
    if student.config.vocab_size != teacher.config.vocab_size:
        raise CometError(
            f"the student's vocabulary ({student.config.vocab_size}) is not the teacher's "
            f"({teacher.config.vocab_size}): masked-LM soft targets need one tokenizer"
        )
    depth = student.config.num_hidden_layers
    matches = dict(
        zip(range(depth), layer_map(depth, teacher.config.num_hidden_layers), strict=True)
    )
    held = min(1000, max(1, len(texts) // 50))
    steps = round(stage.epochs * steps_per_epoch(len(texts) - held, stage))
    args = training_arguments(
        output,
        stage,
        profile.seed,
        **{
            "eval_strategy": "epoch",
            "prediction_loss_only": True,
            "per_device_eval_batch_size": stage.batch_size,  # logits are large here
            "save_strategy": "steps",
            "save_steps": max(1, steps // 10),  # one epoch on a laptop takes minutes
            "logging_steps": max(1, min(20, steps // 20)),  # a short run has a curve too
            **arguments,
        },
    )
    collator: Any = MaskingCollator(
        tokenizer, profile.seed, epoch=lambda: int(trainer.state.epoch or 0)
    )
    objective: Objective = TaskAgnostic(teacher, matches, stage.temperature, stage.alpha, kind)
    rows: Dataset | CorpusRows
    if isinstance(texts, Corpus):
        if cache is not None:
            raise CometError(NO_CACHE)
        batch = args.train_batch_size * args.world_size  # over all processes
        held_out = tokenise(list(islice(texts, held)), tokenizer, profile.max_length)
        rows = CorpusRows(texts, tokenizer, profile.max_length, batch, profile.seed, held)
    else:
        table = tokenise(texts, tokenizer, profile.max_length).shuffle(seed=profile.seed)
        if cache is not None:
            layers = tuple(sorted(set(matches.values())))
            settings = CacheSettings(layers, stage.temperature, profile.seed, profile.max_length)
            bar = not arguments.get("disable_tqdm", False)
            table = cache_targets(cache, table, teacher, tokenizer, settings, bar)
            teacher.cpu()  # it is done: its room on the GPU is the student's
            collator = CachedCollator(len(layers), tokenizer.pad_token_id)
            objective = CachedTaskAgnostic(matches, stage.temperature, stage.alpha, kind)
        held_out, rows = table.select(range(held)), table.select(range(held, len(table)))
    if cache is None:  # the same masks after every epoch
        held_out = Dataset.from_list([{**row, "epoch": 0} for row in held_out])
    trainer = DistillationTrainer(
        model=student,
        args=args,
        train_dataset=rows,
        eval_dataset=held_out,
        data_collator=collator,
        objective=objective,
        callbacks=list(callbacks),
    )
    _run(trainer, output, resume)
    student.eval()
    return history(trainer)


def fine_tune(
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    dev: Dataset,
    profile: Profile,
    output: str | Path,
    *,
    objective: Objective | None = None,
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    **arguments: Any,
) -> list[dict[str, float]]:
    """Stage 2. ``train`` has text, label (-100: none) and, to distil, ``teacher_probs`` (N, 3).

    The student is trained in place; the epoch with the best mean weighted F1 on ``dev`` (give it
    without the rows seen in train) is kept. ``objective`` is :class:`TaskSpecific` with the
    profile's temperature and alpha by default; one of :mod:`comet_lib.objectives` needs the column
    ``row`` too. Returns the log.
    """
    stage, output = profile.stage2, Path(output)
    columns = {"labels": train["label"][:]}
    for name in ("teacher_probs", "row"):
        if name in train.column_names:
            columns[name] = train[name][:]
    languages = np.asarray(dev["language"][:])

    def metrics(prediction: Any) -> dict[str, float]:
        guess = np.asarray(prediction.predictions).argmax(-1)
        scores = mean_weighted_f1(np.asarray(prediction.label_ids), guess, languages)
        return {f"f1_{name}": score for name, score in scores.items()}

    trainer = DistillationTrainer(
        model=student,
        args=training_arguments(
            output,
            stage,
            profile.seed,
            **{
                "eval_strategy": "epoch",
                "metric_for_best_model": "f1_mean",
                "greater_is_better": True,
                "load_best_model_at_end": True,
                **arguments,
            },
        ),
        train_dataset=tokenise(train["text"][:], tokenizer, profile.max_length, **columns),
        eval_dataset=tokenise(
            dev["text"][:], tokenizer, profile.max_length, labels=dev["label"][:]
        ),
        data_collator=SentimentCollator(tokenizer),
        objective=objective or TaskSpecific(stage.temperature, stage.alpha),
        compute_metrics=metrics,
        callbacks=[EarlyStoppingCallback(stage.patience), *callbacks],
    )
    _run(trainer, output, resume)
    student.eval()
    return history(trainer)
