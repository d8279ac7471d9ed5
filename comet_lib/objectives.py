"""What a training minimizes: one table of terms, one objective for both stages.

    loss = sum over terms of weight * term                                                (12)

Two terms read logits: ``soft_targets`` (the teacher's answers) and ``hard_labels``. The others
compare something inside the two models, layer by layer: a row of :data:`TERMS` says what the term
looks at, its loss, and what is trained beside the student for it. To add a loss, write one function
in :mod:`comet_lib.losses` and one row here; it then works in both stages, in ``--terms`` and in the
ablation.

Shapes: B rows, L tokens, M masked positions; layers from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from comet_lib import losses
from comet_lib.attention import capture, capture_hidden, capture_qkv
from comet_lib.batches import TOKENS
from comet_lib.errors import CometError
from comet_lib.losses import HeadMix
from comet_lib.models import only_positions
from comet_lib.profiles import Stage
from comet_lib.teacher import (
    Answers,
    Glances,
    LiveTeacher,
    Questions,
    StoredCollator,
    Teacher,
    ask_once,
    stored_answers,
)

PROJECTION = "comet_projection"  # the student's submodule that is trained beside it

Terms = dict[str, Any]
TermsOf = Callable[[nn.Module, Mapping[str, Any]], Terms]


@dataclass(frozen=True)
class Term:
    """One thing inside a model that a student can match.

    Attributes:
        looks_at: "maps", "hidden" or "qkv", a field of the teacher's :class:`Answers`.
        capture: opens the student's side: ``capture(student, layers)`` yields a dict by layer.
        loss: ``loss(student, teacher, mask, beside)`` of one matched layer -> scalar.
        beside: ``beside(student config, teacher width)`` -> what the loss needs besides: a module
            is trained with the student, one for each matched layer.
        count: ``count(mask)`` -> how many items the loss is the mean of; by default, valid tokens.
    """

    looks_at: str
    capture: Callable[..., Any]
    loss: Callable[[Any, Any, Tensor, Any], Tensor]
    beside: Callable[[Any, int], Any] = lambda config, width: None
    count: Callable[[Tensor], Tensor] = torch.sum


def _linear(config: Any, width: int) -> nn.Module:
    return nn.Linear(config.hidden_size, width, bias=False)  # W of eq. (7)


#: Equation numbers are those of the losses.
TERMS: dict[str, Term] = {
    "attention_mse": Term(
        "maps",
        capture,
        lambda s, t, mask, _: losses.attention_mse(s, t, mask),
        count=lambda mask: losses.valid_pairs(mask).sum(),
    ),
    "attention_kl": Term("maps", capture, lambda s, t, mask, _: losses.attention_kl(s, t, mask)),
    "attention_kl_mix": Term(  # the student's heads, mixed by eq. (5), against the head mean
        "maps",
        partial(capture, heads=True),
        lambda s, t, mask, mix: losses.attention_kl(mix(s), t, mask),
        lambda config, width: HeadMix(config.num_attention_heads),
    ),
    "hidden_mse": Term("hidden", capture_hidden, losses.hidden_state_mse, _linear),
    "hidden_cosine": Term("hidden", capture_hidden, losses.hidden_cosine, _linear),
    "relations": Term(  # eq. (9), last layers only, as in MiniLM
        "qkv",
        capture_qkv,
        losses.qkv_relation_kl,
        lambda config, width: config.num_attention_heads,
    ),
}
LOGITS = ("soft_targets", "hard_labels")


def stage_one_weights(stage: Stage) -> dict[str, float]:
    """alpha * soft targets + (1 - alpha) * attention, or the stage's own terms instead of it."""
    return _checked(
        {"soft_targets": stage.alpha, **(stage.terms or {"attention_kl": 1 - stage.alpha})}
    )


def stage_two_weights(stage: Stage) -> dict[str, float]:
    """alpha * soft targets + (1 - alpha) * hard labels, and the stage's own terms besides."""
    return _checked({"soft_targets": stage.alpha, "hard_labels": 1 - stage.alpha, **stage.terms})


def _checked(weights: Mapping[str, float]) -> dict[str, float]:
    """``weights``; raises CometError for a term that is not in the table, or a negative weight."""
    for name, weight in weights.items():
        if name not in TERMS and name not in LOGITS:
            raise CometError(f"unknown term {name!r}: choose from {', '.join([*LOGITS, *TERMS])}")
        if not weight >= 0:
            raise CometError(f"the weight of {name} is {weight}: give a number from 0 up")
    return dict(weights)


def questions_for(
    weights: Mapping[str, float], matches: Mapping[int, int], **more: Any
) -> Questions:
    """What a teacher must be asked for these terms; ``more`` sets other fields."""
    asked = {TERMS[name].looks_at for name in weights if name in TERMS}
    layers = tuple(sorted(set(matches.values())))
    return Questions(
        maps=layers if "maps" in asked else (),
        hidden=layers if "hidden" in asked else (),
        qkv="qkv" in asked,
        **more,
    )


@dataclass
class Objective:
    """Eq. (12) for a student under a teacher.

    A batch has ``input_ids``, ``attention_mask`` and ``labels``, -100 where there is none:
    labels (B, L) are masked pieces (stage 1), labels (B,) classes (stage 2). A batch without soft
    targets (dev, plain fine-tuning) counts its labels in full. ``shares``, if there, holds a factor
    for each term (:func:`~comet_lib.processes.shares_of_step`).

    Attributes:
        teacher: gives the answers to a batch: a :class:`~comet_lib.teacher.LiveTeacher`, or
            :func:`~comet_lib.teacher.stored_answers`.
        weights: term -> weight.
        matches: student layer -> teacher layer.
        width: the teacher's, for terms with a projection to it.
    """

    teacher: Teacher
    weights: Mapping[str, float]
    matches: Mapping[int, int]
    temperature: float = 1.0
    width: int = 0

    def __post_init__(self) -> None:
        _checked(self.weights)

    @classmethod
    def live(
        cls,
        teacher: PreTrainedModel,
        weights: Mapping[str, float],
        matches: Mapping[int, int],
        temperature: float = 1.0,
        glance: int | None = None,
    ) -> Objective:
        """Under a model that answers as the batches come: a masked-LM model of stage 1; or, with
        ``glance``, the sentiment model of stage 2, which shows its inside for one batch in so
        many, while soft targets come with every batch."""
        asked = LiveTeacher(teacher, questions_for(weights, matches, masked_lm=glance is None))
        answers = asked if glance is None else Glances(asked, glance)
        return cls(answers, weights, matches, temperature, teacher.config.hidden_size)

    @classmethod
    def stored(
        cls,
        folder: str | Path,
        table: Dataset,
        teacher: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        weights: Mapping[str, float],
        matches: Mapping[int, int],
        temperature: float = 1.0,
        bar: bool = True,
        **settings: Any,
    ) -> tuple[Objective, Dataset, StoredCollator]:
        """Under a teacher that is asked once about ``table``; its answers are kept in ``folder``.

        ``settings`` are fields of :class:`~comet_lib.teacher.Questions`. Returns the objective,
        the table of answers (columns of ``table`` that are not tokens stay), and its collator.

        Raises:
            CometError: as :func:`~comet_lib.teacher.ask_once`.
        """
        questions = questions_for(weights, matches, temperature=temperature, **settings)
        answers = ask_once(folder, table, teacher, tokenizer, questions, bar)
        for name in set(table.column_names) - set(TOKENS):
            answers = answers.add_column(name, table[name][:])
        objective = cls(stored_answers, weights, matches, temperature, teacher.config.hidden_size)
        return objective, answers, StoredCollator(questions, tokenizer.pad_token_id)

    @contextmanager
    def on(self, student: nn.Module) -> Iterator[TermsOf]:
        """Opens the captures that the terms need, once around a training.

        Yields ``terms_of(student, batch)`` -> every term and the total under ``"loss"``; for
        labels (B,) also ``"logits"``. What the terms train beside the student is its submodule
        inside, and gone afterwards. Gradient checkpointing runs layers again in the backward
        pass, so that pass must happen inside too.
        """
        seen: dict[str, Mapping[int, Any]] = {}
        beside: dict[str, list[Any]] = {}
        trained = nn.ModuleDict()
        with ExitStack() as inside:
            for name in filter(TERMS.__contains__, self.weights):
                term, layers = TERMS[name], self._layers(name)
                seen[name] = inside.enter_context(term.capture(student, layers))
                beside[name] = [term.beside(student.config, self.width) for _ in layers]
                if isinstance(beside[name][0], nn.Module):
                    trained[name] = nn.ModuleList(beside[name])
            if trained:
                student.add_module(PROJECTION, trained)
                inside.callback(student._modules.pop, PROJECTION, None)
            yield partial(self._terms_of, seen, beside)

    def _layers(self, name: str) -> list[int]:
        return [max(self.matches)] if TERMS[name].looks_at == "qkv" else list(self.matches)

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """How many items each term of a batch is the mean of."""
        known = batch["labels"] != -100
        items = {
            "soft_targets": known.sum() if known.ndim == 2 else torch.ones_like(known).sum(),
            "hard_labels": known.sum(),
        }
        mask = batch["attention_mask"]
        return {
            name: items[name] if name in items else TERMS[name].count(mask) for name in self.weights
        }

    def _terms_of(
        self,
        seen: Mapping[str, Mapping[int, Any]],
        beside: Mapping[str, list[Any]],
        student: nn.Module,
        batch: Mapping[str, Any],
    ) -> Terms:
        mask, known = batch["attention_mask"], batch["labels"] != -100
        pieces = known.ndim == 2
        answers = self.teacher(batch)
        with only_positions(student, known) if pieces else ExitStack():
            logits = student(input_ids=batch["input_ids"], attention_mask=mask).logits
        values: dict[str, Tensor] = {}
        for name in self.weights:
            if name == "soft_targets":
                if not pieces and answers.probs is None:
                    continue
                values[name] = soft_targets(logits, answers, self.temperature)
            elif name == "hard_labels":
                values[name] = hard_labels(logits, batch["labels"], known)
            elif getattr(answers, TERMS[name].looks_at):
                each = self._matched(name, seen[name], beside[name], answers, mask)
                values[name] = torch.stack(each).mean()
        weights = dict(self.weights)
        if "soft_targets" in weights and "soft_targets" not in values:
            weights["hard_labels"] = 1.0
        shares = batch.get("shares", {})
        values = {name: value * shares.get(name, 1.0) for name, value in values.items()}
        loss = sum(weights[name] * value for name, value in values.items())
        terms: Terms = {"loss": loss, **{name: x.detach() for name, x in values.items()}}
        return terms if pieces else {**terms, "logits": logits.float()}

    def _matched(
        self,
        name: str,
        seen: Mapping[int, Any],
        beside: list[Any],
        answers: Answers,
        mask: Tensor,
    ) -> list[Tensor]:
        """The term of each matched layer."""
        theirs: Any = getattr(answers, TERMS[name].looks_at)
        return [
            TERMS[name].loss(
                seen[layer],
                theirs if TERMS[name].looks_at == "qkv" else theirs[self.matches[layer]],
                mask,
                extra,
            )
            for layer, extra in zip(self._layers(name), beside, strict=True)
        ]


def soft_targets(logits: Tensor, answers: Answers, temperature: float) -> Tensor:
    """The soft-target loss of student logits (M or B, C) for the form the teacher's answers have:
    all logits (eq. 1), the likeliest pieces and the tail (eq. 10), or probabilities (eq. 2)."""
    if answers.logits is not None:
        return losses.soft_target_loss(logits, answers.logits, temperature)
    if answers.top:
        indices, top, tail = answers.top
        return losses.soft_target_loss_topk(logits, indices, top, tail, temperature)
    if answers.probs is None:
        raise CometError(
            "the teacher gave no soft targets: ask it for logits, or give the batch teacher_probs"
        )
    return losses.soft_target_loss_from_probs(logits.float(), answers.probs, temperature)


def hard_labels(logits: Tensor, labels: Tensor, known: Tensor) -> Tensor:
    """Cross-entropy where a label is known; zero, with a zero gradient, where none is.

    ``logits`` (B, C), or (M, V) at the known positions of ``labels`` (B, L).
    """
    logits = logits.float()
    chosen = logits if known.ndim == 2 else logits[known]
    return F.cross_entropy(chosen, labels[known]) if known.any() else logits.sum() * 0
