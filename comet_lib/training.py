"""Two stages of distillation on ``transformers.Trainer``.

Stage 1 (task-agnostic): on unlabelled text the student learns the teacher's masked-LM soft
targets, and its attention maps. Stage 2 (task-specific): the student is fine-tuned on sentiment,
from labels and, if given, from a sentiment teacher's soft targets.

A stage is an *objective*: a function of (student, batch) that returns named loss terms, the total
under ``"loss"``. The trainer differentiates the total and logs every term.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
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
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils.notebook import NotebookProgressCallback

from comet_lib.attention import capture, layer_map
from comet_lib.batches import LengthBatches, MaskingCollator, SentimentCollator, tokenise
from comet_lib.errors import CometError
from comet_lib.evaluation import mean_weighted_f1
from comet_lib.losses import (
    attention_loss,
    hybrid_loss,
    soft_target_loss,
    soft_target_loss_from_probs,
)
from comet_lib.profiles import Profile, Stage

Objective = Callable[[nn.Module, dict[str, Tensor]], dict[str, Any]]


@contextlib.contextmanager
def only_positions(model: nn.Module, positions: Tensor) -> Iterator[None]:
    """Inside, a masked-LM model gives logits at ``positions`` (B, L) bool alone: (M, V).

    The hidden states are gathered before the head, so the full (B, L, V) logits, 2 GB at batch 16
    x 128 with XLM-R's vocabulary, are never made.
    """
    core = getattr(model, "module", model)
    head = getattr(core, "lm_head", None)
    if head is None:
        head = getattr(core, "cls", None)
    if not isinstance(head, nn.Module):
        raise CometError(f"{type(core).__name__} has no masked-LM head under lm_head or cls")
    handle = head.register_forward_pre_hook(lambda _, args: (args[0][positions], *args[1:]))
    try:
        yield
    finally:
        handle.remove()


class TaskAgnostic:
    """Stage 1: alpha * soft targets at masked positions + (1 - alpha) * attention matching.

    Args:
        teacher: masked-LM model with the student's vocabulary; it is never trained.
        matches: student layer -> teacher layer whose head-mean map it should copy.
        kind: ``mse`` (the paper) or ``kl`` (row-wise, scale-free).
    """

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
        text = {"input_ids": batch["input_ids"], "attention_mask": mask}
        masked = batch["labels"] != -100  # (B, L)
        core: Any = getattr(student, "module", student)  # without DistributedDataParallel
        self.teacher.to(mask.device)
        with (
            torch.no_grad(),
            capture(self.teacher, list(self.matches.values())) as teacher_maps,
            only_positions(self.teacher, masked),
        ):
            teacher_logits = self.teacher(**text).logits  # (M, V)
        with (
            capture(core, list(self.matches)) as student_maps,
            only_positions(student, masked),
        ):
            student_logits = student(**text).logits  # (M, V)
        soft = soft_target_loss(student_logits, teacher_logits, self.temperature)
        attention = attention_loss(
            [student_maps[i] for i in self.matches],
            [teacher_maps[j] for j in self.matches.values()],
            mask,
            kind=self.kind,
        )
        return {
            "loss": hybrid_loss(soft, attention, self.alpha),
            "soft_targets": soft.detach(),
            "attention": attention.detach(),
        }


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
        terms = {"loss": hard, "hard_labels": hard.detach()}
        if "teacher_probs" in batch:
            soft = soft_target_loss_from_probs(logits, batch["teacher_probs"], self.temperature)
            terms = {
                "loss": hybrid_loss(soft, hard, self.alpha),
                "soft_targets": soft.detach(),
                "hard_labels": hard.detach(),
            }
        return {**terms, "logits": logits}


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
            self.args.train_batch_size,
            self.args.seed,
            epoch=lambda: int(self.state.epoch or 0),
        )

    def _get_eval_sampler(self, eval_dataset):
        """In the table's order: scores by language need it."""
        return SequentialSampler(eval_dataset)

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
        **more,
    }
    return TrainingArguments(**settings)


def steps_per_epoch(rows: int, stage: Stage) -> int:
    """Optimiser steps in one pass over ``rows`` sentences."""
    return math.ceil(rows / (stage.batch_size * stage.gradient_accumulation))


def history(trainer: Trainer) -> list[dict[str, float]]:
    """The trainer's log rows: step, epoch and every loss term."""
    return [dict(row) for row in trainer.state.log_history]


def _run(trainer: Trainer, output: Path, resume: bool) -> None:
    last = get_last_checkpoint(str(output)) if resume and output.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    # Give the model back as it came: accelerate leaves its forward inside autocast.
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)


def distil_task_agnostic(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    profile: Profile,
    output: str | Path,
    *,
    kind: str = "kl",
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    **arguments: Any,
) -> list[dict[str, float]]:
    """Stage 1. ``student`` and ``teacher`` are masked-LM models over ``tokenizer``'s vocabulary.

    The student is trained in place. Two hundredths of the text (at most 1,000 sentences) are held
    out; with ``patience`` the best held-out loss decides when to stop. Returns the log.

    Raises:
        CometError: teacher and student have different vocabularies.
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
    table = tokenise(texts, tokenizer, profile.max_length).shuffle(seed=profile.seed)
    held = min(1000, max(1, len(table) // 50))
    steps = round(stage.epochs * steps_per_epoch(len(table) - held, stage))
    trainer = DistillationTrainer(
        model=student,
        args=training_arguments(
            output,
            stage,
            profile.seed,
            **{
                "eval_strategy": "epoch",
                "prediction_loss_only": True,
                "per_device_eval_batch_size": stage.batch_size,  # logits are large here
                "save_strategy": "steps",
                "save_steps": max(1, steps // 10),  # one epoch on a laptop takes minutes
                **arguments,
            },
        ),
        train_dataset=table.select(range(held, len(table))),
        eval_dataset=table.select(range(held)),
        data_collator=MaskingCollator(tokenizer, run_seed=profile.seed),
        objective=TaskAgnostic(teacher, matches, stage.temperature, stage.alpha, kind),
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
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    **arguments: Any,
) -> list[dict[str, float]]:
    """Stage 2. ``train`` has text, label (-100: none) and, to distil, ``teacher_probs`` (N, 3).

    The student is trained in place; the epoch with the best mean weighted F1 on ``dev`` (give it
    without the rows seen in train) is kept. Returns the log.
    """
    stage, output = profile.stage2, Path(output)
    columns = {"labels": train["label"][:]}
    if "teacher_probs" in train.column_names:
        columns["teacher_probs"] = train["teacher_probs"][:]
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
        objective=TaskSpecific(stage.temperature, stage.alpha),
        compute_metrics=metrics,
        callbacks=[EarlyStoppingCallback(stage.patience), *callbacks],
    )
    _run(trainer, output, resume)
    student.eval()
    return history(trainer)
