"""A lens's data from two models, and again for every further text that a reader types."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from comet_lib.attention import capture
from comet_lib.errors import CometError
from comet_lib.lens.align import aggregate, labels, segments, token_starts
from comet_lib.lens.data import Answers, LensData, Occlusion, from_arrays
from comet_lib.loading import label_name, longest_text

ROWS = 64  # texts with a hidden token in one batch


def from_models(
    teacher: PreTrainedModel,
    student: PreTrainedModel | Mapping[int, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    student_tokenizer: PreTrainedTokenizerBase | None = None,
    matches: Sequence[int] | None = None,
    heads: bool = False,
    max_length: int = 128,
    baselines: Mapping[str, Callable[[Sequence[str]], np.ndarray]] | None = None,
) -> LensData:
    """A lens on two models: one forward pass of each, every layer's head mean captured.

    If both are classifiers of the same labels, the lens also shows what they answer, and what each
    answer loses when a token is hidden.

    Args:
        teacher, student: encoders that :func:`comet_lib.attention.capture` supports. ``student``
            may be a dict from training step to checkpoint.
        tokenizer: the teacher's, and the student's too unless ``student_tokenizer`` is given;
            then both maps are brought to the segments that both tokenizers share (see
            :mod:`comet_lib.lens.align`).
        text: one text; at most ``max_length`` tokens of it are read, or as many as both models
            take. The lens keeps the models, to read what is typed into its text box.
        matches: as in :func:`comet_lib.lens.data.from_arrays`.
        heads: keep every single head too (that multiplies the size by the number of heads).
        baselines: other answers to show, by name: a function from N texts to (N, C) probabilities
            in the order of the teacher's labels, for example
            ``{"TF-IDF": partial(class_probabilities, pipeline)}``.

    Raises:
        CometError: no text, a tokenizer without character offsets, or ids that a model's
            vocabulary does not have.
    """
    checkpoints = dict(student) if isinstance(student, Mapping) else {0: student}
    limits = [longest_text(model) or max_length for model in (teacher, *checkpoints.values())]
    reader = _Reader(
        teacher,
        checkpoints,
        isinstance(student, Mapping),
        [tokenizer] if student_tokenizer is None else [tokenizer, student_tokenizer],
        matches,
        heads,
        min(max_length, *limits),
        baselines or {},
    )
    return reader(text, cut=True)


@dataclass(frozen=True)
class _Reader:
    """What stays the same from text to text."""

    teacher: PreTrainedModel
    students: Mapping[int, PreTrainedModel]  # training step -> checkpoint
    steps: bool  # whether the steps mean anything
    tokenizers: Sequence[PreTrainedTokenizerBase]
    matches: Sequence[int] | None
    heads: bool
    max_length: int
    baselines: Mapping[str, Callable[[Sequence[str]], np.ndarray]]

    def __call__(self, text: str, cut: bool = False) -> LensData:
        """The lens's data on ``text``. Too long a text raises, or is ``cut``."""
        text = unicodedata.normalize("NFC", text)
        if not text.strip():
            raise CometError("text is empty: give a sentence to look at.")
        read = [_read(one, text, self.max_length) for one in self.tokenizers]
        if not cut and any(one.cut for one in read):
            raise CometError(
                f"this text has more than {self.max_length} tokens: shorten it, or give "
                "from_models a larger max_length."
            )
        end = min(max(stop for _, stop in one.spans) for one in read)
        if len(read) == 2 and end < len(text.rstrip()):  # one was cut: let both read the same
            text = text[:end]
            read = [_read(one, text, self.max_length) for one in self.tokenizers]
        starts = [token_starts(one.spans, one.special, text) for one in read]
        if len(read) == 2:
            first, last, common = segments(*starts)
        else:
            first = last = np.arange(len(starts[0]))
            common = starts[0]
        groups = [np.flatnonzero(first == k) for k in range(len(common))]
        names = labels(
            common,
            np.array([max(read[0].spans[i][1] for i in group) for group in groups]),
            ["".join(read[0].pieces[i] for i in group) for group in groups],
            text,
        )

        def look(
            model: PreTrainedModel, one: _Read, segment: np.ndarray, who: str
        ) -> tuple[np.ndarray, dict[str, float]]:
            size = int(model.config.vocab_size)
            if int(one.ids.max()) >= size:
                raise CometError(
                    f"the {who} has {size} word embeddings, but the tokenizer gave the id "
                    f"{int(one.ids.max())}: give the {who}'s own tokenizer."
                )
            with capture(model, heads=self.heads, small=True) as found:
                output = _ask(model, one.ids[None])
                maps = torch.stack([found[k][0].float().cpu() for k in sorted(found)]).numpy()
            return aggregate(maps, segment) if len(read) == 2 else maps, _answer(model, output)

        teacher_maps, teacher_answer = look(self.teacher, read[0], first, "teacher")
        found = {k: look(one, read[-1], last, "student") for k, one in self.students.items()}
        students = {step: maps for step, (maps, _) in found.items()}
        data = from_arrays(
            names, teacher_maps, students if self.steps else students[0], self.matches
        )
        answers = [found[step][1] for step in sorted(found)]
        data = replace(data, text=text, read=self)
        if not teacher_answer or any(set(one) != set(teacher_answer) for one in answers):
            return data
        order = tuple(teacher_answer)
        return replace(
            data,
            answers=Answers(
                order,
                np.array(list(teacher_answer.values())),
                np.array([[one[label] for label in order] for one in answers]),
                {name: np.asarray(ask([text]))[0] for name, ask in self.baselines.items()},
            ),
            occlude=partial(self.occlude, read, (first, last)),
        )

    def occlude(self, read: Sequence[_Read], segment: Sequence[np.ndarray]) -> Occlusion:
        """What each answer loses when one place of the shared axis is hidden."""
        steps = sorted(self.students)
        return Occlusion(
            _losses(self.teacher, read[0], segment[0]),
            np.stack([_losses(self.students[k], read[-1], segment[1]) for k in steps]),
        )


def _losses(model: PreTrainedModel, one: _Read, segment: np.ndarray) -> np.ndarray:
    """(N,) loss of the model's own answer when no token may look at place n's tokens.

    The whole text is row 0 of the first batch.
    """
    places = int(segment.max()) + 1
    special = np.array(one.special, dtype=bool)
    hidden = [(segment == place) & ~special for place in range(places)]
    masks = torch.from_numpy(~np.stack([np.zeros_like(special), *hidden])).long()
    rows = [
        _ask(model, one.ids.expand(len(part), -1), part).logits.float().softmax(-1).cpu()
        for part in masks.split(ROWS)
    ]
    probabilities = torch.cat(rows)
    own = probabilities[:, int(probabilities[0].argmax())].numpy()
    return np.where([one.any() for one in hidden], own[0] - own[1:], 0.0)


def _ask(model: PreTrainedModel, ids: Tensor, mask: Tensor | None = None) -> Any:
    """The model's output for ids (B, n), in eval mode and without gradients."""
    training = model.training
    mask = torch.ones_like(ids) if mask is None else mask
    inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
    if training:  # for a small model, switching takes as long as a layer
        model.eval()
    try:
        with torch.no_grad():
            return model(**inputs)
    finally:
        if training:
            model.train()


def _answer(model: PreTrainedModel, output: Any) -> dict[str, float]:
    """Label -> probability for one text; empty if the model classifies no texts."""
    logits = getattr(output, "logits", None)
    if logits is None or logits.ndim != 2 or logits.shape[-1] < 2:
        return {}
    columns = {int(column): name for column, name in (model.config.id2label or {}).items()}
    names = [label_name(columns.get(i, i)) for i in range(logits.shape[-1])]
    return dict(zip(names, logits[0].float().softmax(-1).tolist(), strict=True))


@dataclass(frozen=True)
class _Read:
    """One text as a tokenizer sees it."""

    ids: Tensor  # (n,)
    spans: list[tuple[int, int]]  # characters of the text
    special: list[int]
    pieces: list[str]
    cut: bool  # whether the text was longer


def _read(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> _Read:
    if not tokenizer.is_fast:
        raise CometError(
            f"{type(tokenizer).__name__} gives no character offsets: load the fast tokenizer."
        )
    batch = tokenizer(
        text,
        truncation=True,
        max_length=max_length,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    ids = list(batch["input_ids"])
    if not ids:
        raise CometError("the tokenizer found no token in text: give a sentence to look at.")
    return _Read(
        torch.tensor(ids),
        [(int(a), int(b)) for a, b in batch["offset_mapping"]],
        list(batch["special_tokens_mask"]),
        [str(piece) for piece in tokenizer.convert_ids_to_tokens(ids)],
        bool(batch.encodings[0].overflowing),
    )
