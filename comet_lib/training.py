"""Two stages of distillation on ``transformers.Trainer``.

Stage 1 (task-agnostic): on unlabeled text the student learns the teacher's masked-LM soft
targets, and its attention maps. Stage 2 (task-specific): the student is fine-tuned on sentiment,
from labels and, if given, from a sentiment teacher's soft targets.

What a stage minimizes is an :class:`~comet_lib.objectives.Objective`; the trainer differentiates
its total and logs every term.
"""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from torch import Tensor
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

from comet_lib.attention import layer_map
from comet_lib.batches import LengthBatches, MaskingCollator, SentimentCollator, tokenize
from comet_lib.errors import CometError
from comet_lib.evaluation import mean_weighted_f1
from comet_lib.files import read_json
from comet_lib.models import quiet
from comet_lib.objectives import (
    TERMS,
    Objective,
    TermsOf,
    stage_one_weights,
    stage_two_weights,
)
from comet_lib.processes import shares_of_step, threads_for
from comet_lib.profiles import Profile, Stage
from comet_lib.teacher import Teacher, stored_answers


class Progress(ProgressCallback):
    """A progress bar with the stage (the output folder's name) and the latest loss. It does not
    print the log rows; :func:`fit` returns them."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(Path(args.output_dir).name)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}")


class DistillationTrainer(Trainer):
    """A ``transformers.Trainer`` whose loss is what ``terms_of(model, batch)`` returns under
    ``"loss"``; it logs the mean of every term.

    ``counts_of(batch)`` says how many items each term is the mean of. The trainer gives each batch
    of an optimizer step its ``shares`` of them, a factor for each term.
    """

    def __init__(
        self,
        *args: Any,
        terms_of: TermsOf,
        counts_of: Callable[[Mapping[str, Any]], Mapping[str, Tensor]] = lambda batch: {},
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.terms_of, self.counts_of = terms_of, counts_of
        self.model_accepts_loss_kwargs = False
        for shown in (PrinterCallback, NotebookProgressCallback, ProgressCallback):
            self.remove_callback(shown)
        if not self.args.disable_tqdm:
            self.add_callback(Progress)
        self._terms: dict[str, list[Tensor]] = {}

    def get_batch_samples(self, *args: Any, **kwargs: Any):
        """This process's batches of one optimizer step, with their shares of it."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        counts = [self.counts_of(batch) for batch in batches]
        shares = {
            name: shares_of_step(torch.stack([count[name] for count in counts]))
            for name in (counts[0] if counts else ())
        }
        for i, batch in enumerate(batches):
            batch["shares"] = {name: share[i] for name, share in shares.items()}
        return batches, items

    def compute_loss(
        self, model, inputs, return_outputs=False, num_items_in_batch=None, **kwargs: Any
    ):
        terms = self.terms_of(model, inputs)
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

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """With saves by steps, one may come right before the evaluation at an epoch's end, which a
        run resumed from there skips: so evaluation must not draw from dropout's random state."""
        with torch.random.fork_rng(devices=[], enabled=self.args.save_strategy == "steps"):
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
    cuda = torch.cuda.is_available()
    new = cuda and torch.cuda.get_device_capability()[0] >= 8
    return {"bf16": new, "fp16": cuda and not new}


#: Options of the Trainer that its overridden methods would ignore.
IGNORED = {"label_smoothing_factor", "length_column_name", "train_sampling_strategy"}


def training_arguments(
    output: str | Path, stage: Stage, seed: int, **more: Any
) -> TrainingArguments:
    """The Trainer's settings for one stage: AdamW, cosine decay, length-grouped batches.

    Raises:
        CometError: an option that would be ignored.
    """
    if ignored := IGNORED & set(more):
        raise CometError(
            f"{', '.join(sorted(ignored))} would have no effect, since the loss and the order of "
            "rows are ours: leave it out"
        )
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
        "restore_callback_states_from_checkpoint": True,  # patience goes on where it was
        "report_to": "none",
        "seed": seed,
        "data_seed": seed,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": False,
        **precision(),
        **more,
    }
    made = TrainingArguments(**settings)
    # One process is one device. With more of them, and no accelerate launch, the Trainer would
    # take DataParallel, whose threads capture() and the objectives know nothing of.
    made._n_gpu = min(made.n_gpu, 1)
    return made


def steps_per_epoch(rows: int, stage: Stage) -> int:
    """Optimizer steps in one pass over ``rows`` sentences."""
    return math.ceil(rows / (stage.batch_size * stage.gradient_accumulation))


def last_checkpoint(output: Path) -> str | None:
    """The newest checkpoint that was written to its end; a killed run may leave half of one.

    The Trainer writes ``trainer_state.json`` last. One whose weights, optimizer or random state
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


class Epoch(TrainerCallback):
    """The number of the epoch, for a collator."""

    number = 0

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.number = int(state.epoch or 0)

    def __call__(self) -> int:
        return self.number


def fit(
    student: PreTrainedModel, objective: Objective, resume: bool, **arguments: Any
) -> list[dict[str, float]]:
    """Train ``student`` in place, from the last whole checkpoint if ``resume``; return the log.

    ``arguments`` are the trainer's. The model comes back as it was, in eval mode; accelerate
    leaves its forward inside autocast.
    """
    with objective.on(student) as terms_of:
        trainer = DistillationTrainer(
            model=student, terms_of=terms_of, counts_of=objective.counts, **arguments
        )
        last = last_checkpoint(Path(str(trainer.args.output_dir))) if resume else None
        if last is not None:
            state = read_json(Path(last) / "trainer_state.json", "global_step")
            control = state.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {})
            if control.get("should_training_stop"):  # patience had run out: only load the best
                trainer.args.max_steps = state["global_step"]
        trainer.train(resume_from_checkpoint=last)
        trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
    return [dict(row) for row in trainer.state.log_history]


def uniform_matches(student: PreTrainedModel, teacher: PreTrainedModel) -> dict[int, int]:
    """Student layer -> teacher layer, evenly spread (:func:`~comet_lib.attention.layer_map`)."""
    depth = student.config.num_hidden_layers
    return dict(enumerate(layer_map(depth, teacher.config.num_hidden_layers)))


@torch.no_grad()
def constant_floor(
    teacher: Teacher, batches: Iterable[Mapping[str, Tensor]], temperature: float
) -> float:
    """The soft-target loss of the best constant answer, the teacher's mean one, in nats times T^2:
    T^2 (H(mean p) - mean H(p)). A student that loses as much has learned nothing of the text."""
    total, entropy, count = torch.tensor(0.0), 0.0, 0.0
    for batch in batches:
        logits = teacher(batch).logits
        assert logits is not None, "a stored teacher keeps no logits"
        log_p = F.log_softmax(logits.float() / temperature, -1)
        total = total.to(log_p.device) + log_p.exp().sum(0)
        entropy -= float((log_p.exp() * log_p).sum())
        count += len(log_p)
    count = count or math.nan  # no piece was masked in so little text
    mean = total / count
    return temperature**2 * float(torch.special.entr(mean).sum() - entropy / count)


def distil_task_agnostic(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str] | Dataset,
    profile: Profile,
    output: str | Path,
    *,
    cache: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    **arguments: Any,
) -> list[dict[str, float]]:
    """Stage 1. ``student`` and ``teacher`` are masked-LM models over ``tokenizer``'s vocabulary.

    The student is trained in place. ``texts`` is a list, or a table with a column ``text``; a
    fiftieth of it (at most 1,000 rows) is held out. With ``cache``, a folder, the teacher is asked
    once before the training, which then reads its answers from there (:mod:`comet_lib.teacher`;
    masks stay the same). Returns the log; its first row has the floor of the soft targets
    (:func:`constant_floor`), unless the answers come from a cache.

    Raises:
        CometError: teacher and student have different vocabularies, or the cache is another's.
    """
    stage, output = profile.stage1, Path(output)
    if student.config.vocab_size != teacher.config.vocab_size:
        raise CometError(
            f"the student's vocabulary ({student.config.vocab_size}) is not the teacher's "
            f"({teacher.config.vocab_size}): masked-LM soft targets need one tokenizer"
        )
    weights, matches = stage_one_weights(stage), uniform_matches(student, teacher)
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
    on_disk = output / "tokens.arrow" if isinstance(texts, Dataset) else None
    table = tokenize(texts, tokenizer, profile.max_length, on_disk, shuffle=profile.seed)
    epoch, first = Epoch(), list[dict[str, float]]()
    if cache is None:
        objective = Objective.live(teacher, weights, matches, stage.temperature)
        # The same masks after every epoch for held-out text, others for the rest.
        held_out = Dataset.from_list([{**row, "epoch": 0} for row in table.select(range(held))])
        collator: Any = MaskingCollator(tokenizer, profile.seed, epoch)
        parts = (held_out.select(range(i, min(i + 16, held))) for i in range(0, held, 16))
        batches = (
            {name: values.to(args.device) for name, values in collator(list(part)).items()}
            for part in parts
        )
        floor = constant_floor(objective.teacher, batches, stage.temperature)
        first = [{"step": 0, "soft_targets_floor": floor}]
    else:
        if "hard_labels" in weights:
            raise CometError(
                "hard_labels in stage 1 needs the pieces that were masked, which a cache does not "
                "keep: leave out --cache or the term"
            )
        objective, table, collator = Objective.stored(
            cache,
            table,
            teacher,
            tokenizer,
            weights,
            matches,
            stage.temperature,
            bar=not args.disable_tqdm,
            seed=profile.seed,
            max_length=profile.max_length,
        )
        teacher.cpu()  # it is done: its room on the GPU is the student's
        held_out = table.select(range(held))
    return first + fit(
        student,
        objective,
        resume,
        args=args,
        train_dataset=table.select(range(held, len(table))),
        eval_dataset=held_out,
        data_collator=collator,
        callbacks=[epoch, *callbacks],
    )


def fine_tune(
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    dev: Dataset,
    profile: Profile,
    output: str | Path,
    *,
    teacher: PreTrainedModel | None = None,
    matches: Mapping[int, int] | None = None,
    cache: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    **arguments: Any,
) -> list[dict[str, float]]:
    """Stage 2. ``train`` has text, label (-100: none) and, to distil, ``teacher_probs`` (N, 3).

    The student is trained in place; the epoch with the best mean weighted F1 on ``dev`` (pass it
    without the rows seen in train) is kept. If the profile's stage 2 has terms of :data:`TERMS`,
    the sentiment ``teacher``, which must read the student's tokens, is asked once about every row
    and its answers are kept in ``cache`` (default: in ``output``); or, with the stage's ``glance``
    above 1, about one batch in so many, as it comes. ``matches`` (student layer -> teacher layer)
    are evenly spread by default. Returns the log.

    Raises:
        CometError: terms without a teacher, or a cache that is another's.
    """
    stage, output = profile.stage2, Path(output)
    weights = stage_two_weights(stage)
    columns = {"labels": train["label"][:]}
    if "teacher_probs" in train.column_names:
        columns["teacher_probs"] = train["teacher_probs"][:]
    table = tokenize(train["text"][:], tokenizer, profile.max_length, **columns)
    dev_table = tokenize(dev["text"][:], tokenizer, profile.max_length, labels=dev["label"][:])
    collator: Any = SentimentCollator(tokenizer)
    if not (inside := [name for name in weights if name in TERMS]):
        objective = Objective(stored_answers, weights, {}, stage.temperature)
    elif teacher is None:
        raise CometError(f"{', '.join(inside)} in stage 2 need a teacher: give one")
    elif stage.glance > 1:
        pairs = matches or uniform_matches(student, teacher)
        objective = Objective.live(teacher, weights, pairs, stage.temperature, stage.glance)
    else:
        objective, table, collator = Objective.stored(
            cache or output / "cache",
            table,
            teacher,
            tokenizer,
            weights,
            matches or uniform_matches(student, teacher),
            stage.temperature,
            bar=not arguments.get("disable_tqdm", False),
            masked_lm=False,
            max_length=profile.max_length,
        )
    languages = np.asarray(dev["language"][:])

    def metrics(prediction: Any) -> dict[str, float]:
        guess = np.asarray(prediction.predictions).argmax(-1)
        scores = mean_weighted_f1(np.asarray(prediction.label_ids), guess, languages)
        return {f"f1_{name}": score for name, score in scores.items()}

    steps = round(stage.epochs * steps_per_epoch(len(table), stage))
    steps = stage.max_steps if stage.max_steps > 0 else steps
    settings: dict[str, Any] = {
        "logging_steps": max(1, min(20, steps // 20)),  # a short run has a curve too
        "eval_strategy": "epoch",
        "metric_for_best_model": "f1_mean",
        "greater_is_better": True,
        "load_best_model_at_end": True,
        **arguments,
    }
    with threads_for(student):
        return fit(
            student,
            objective,
            resume,
            args=training_arguments(output, stage, profile.seed, **settings),
            train_dataset=table,
            eval_dataset=dev_table,
            data_collator=collator,
            compute_metrics=metrics,
            callbacks=[EarlyStoppingCallback(stage.patience), *callbacks],
        )
