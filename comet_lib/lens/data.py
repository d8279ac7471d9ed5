"""What a lens shows: two models' attention maps on one text, on one token axis, and their distance.

Maps are stored as one byte per number. A map's largest number is its ``scale``, and

    p = scale * (code / 255)^2                                                               (1)

The square spends the codes on small numbers: with linear steps, a row spread over 128 tokens
would use only 2 codes. The error is at most 0.4 % of ``scale``, and smallest where ``p`` is small.
All distances are computed before the maps are rounded.

Shapes: T and S layers of the teacher and the student, K training steps (1 without checkpoints),
H heads, N places on the token axis.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from comet_lib.attention import capture_maps, layer_map
from comet_lib.errors import CometError
from comet_lib.lens.align import aggregate, labels, quoted, segments, shown, token_starts
from comet_lib.similarity import cka_table, entropy, js_divergence

LEVELS = 255


@dataclass(frozen=True, eq=False)
class Quantised:
    """Maps as bytes: ``codes`` uint8 (..., N, N), ``scale`` float32 (...), eq. (1)."""

    codes: np.ndarray
    scale: np.ndarray

    def values(self, *at: int) -> np.ndarray:
        """The maps as float32, all of them or those at the leading indices."""
        shade = self.codes[at].astype(np.float32) / LEVELS
        return self.scale[at][..., None, None] * shade**2


def quantise(maps: np.ndarray) -> Quantised:
    """Maps (..., N, N) without negative numbers -> the same in one byte each, eq. (1)."""
    scale = maps.max((-2, -1)).astype(np.float32)
    share = maps / np.maximum(scale, np.finfo(np.float32).tiny)[..., None, None]
    return Quantised((np.sqrt(share) * LEVELS).round().astype(np.uint8), scale)


@dataclass(frozen=True, eq=False)
class LensData:
    """Everything the lens draws. Rows of the maps sum to one; what touches padding is zero."""

    tokens: tuple[str, ...]  # N labels, as they are drawn
    mask: np.ndarray  # (N,) bool: True for a token, False for padding
    teacher: Quantised  # (T, N, N), means over the heads
    student: Quantised  # (K, S, N, N)
    steps: tuple[int, ...]  # K training steps, rising; () without checkpoints
    matches: tuple[int, ...]  # S teacher layers: whom each student layer learns from
    js: np.ndarray  # (K, S, T) Jensen-Shannon divergence, mean over the rows, nats
    cka: np.ndarray  # (K, S, T) linear CKA of the maps' rows, 0 to 1
    teacher_entropy: np.ndarray  # (T,) mean over the rows, nats
    student_entropy: np.ndarray  # (K, S)
    teacher_heads: Quantised | None = None  # (T, H, N, N)
    student_heads: Quantised | None = None  # (K, S, H, N, N)

    def pair(
        self,
        teacher_layer: int,
        student_layer: int,
        step: int = -1,
        teacher_head: int = -1,
        student_head: int = -1,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The two maps (N, N) of a pair of layers; ``step`` is an index, head -1 is the mean."""
        teacher = self.teacher.values(teacher_layer)
        student = self.student.values(step, student_layer)
        if teacher_head >= 0:
            teacher = _heads(self.teacher_heads, "teacher").values(teacher_layer, teacher_head)
        if student_head >= 0:
            heads = _heads(self.student_heads, "student")
            student = heads.values(step, student_layer, student_head)
        return teacher, student

    def widest(self) -> tuple[int, int]:
        """Teacher and student layer of the matched pair that differs most at the last step."""
        student = int(np.argmax([self.js[-1, s, t] for s, t in enumerate(self.matches)]))
        return self.matches[student], student

    def start(self) -> dict[str, int]:
        """What a lens shows first: the widest pair, at the last step, means over the heads."""
        names = ("teacher_layer", "student_layer", "step", "teacher_head", "student_head")
        return dict(zip(names, (*self.widest(), len(self.js) - 1, -1, -1), strict=True))

    def limits(self) -> dict[str, tuple[int, int]]:
        """The lowest and highest value of each choice in :meth:`start`."""
        steps, students, teachers = self.js.shape
        heads = [h.codes.shape[-3] if h else 0 for h in (self.teacher_heads, self.student_heads)]
        counts = dict(zip(self.start(), (teachers, students, steps, *heads), strict=True))
        return {name: (-name.endswith("_head"), n - 1) for name, n in counts.items()}

    def finding(self, teacher_layer: int, student_layer: int, step: int = -1) -> str:
        """One sentence on a pair of layers (head means)."""
        name = f"Teacher layer {teacher_layer} and student layer {student_layer}"
        if self.steps:
            name += f" at step {self.steps[step]}"
        js = float(self.js[step, student_layer, teacher_layer])
        valid = np.flatnonzero(self.mask)
        if len(valid) < 2:
            return f"{name}: {len(valid)} token, nothing to compare"
        teacher, student = self.pair(teacher_layer, student_layer, step)
        more = (student - teacher)[valid][:, valid].mean(0)
        up, down = (quoted(self.tokens[valid[i]]) for i in (more.argmax(), more.argmin()))
        return (
            f"{name} are {js:.2f} nats apart (JS): "
            f"the student looks more at {up} and less at {down}"
        )


def _heads(heads: Quantised | None, who: str) -> Quantised:
    if heads is None:
        raise CometError(
            f"this lens has no single heads of the {who}: build it with heads=True, or from arrays "
            "of shape (layers, heads, N, N)."
        )
    return heads


# ------------------------------------------------------------------------ to the browser


def payload(data: LensData, heads: bool = True) -> tuple[dict[str, Any], bytes]:
    """What travels to the browser: a small header that fits into JSON, and one block of bytes.

    The block is the ``codes`` of the teacher's and the student's maps, then of single heads, if any
    and if ``heads``; ``header["blocks"]`` says where each begins, its shape, and the scales.
    """
    parts = {"teacher": data.teacher, "student": data.student}
    singles = {"teacherHeads": data.teacher_heads, "studentHeads": data.student_heads}
    if heads:
        parts |= {name: part for name, part in singles.items() if part is not None}
    blocks, codes, offset = {}, [], 0
    for name, part in parts.items():
        shape = list(part.codes.shape)
        scale = _short(part.scale.ravel(), digits=8)
        blocks[name] = {"shape": shape, "offset": offset, "scale": scale}
        codes.append(part.codes.tobytes())
        offset += part.codes.size
    header = {
        "tokens": list(data.tokens),
        "mask": data.mask.astype(int).tolist(),
        "matches": list(data.matches),
        "steps": list(data.steps),
        "js": _short(data.js),
        "cka": _short(data.cka),
        "teacherEntropy": _short(data.teacher_entropy),
        "studentEntropy": _short(data.student_entropy),
        "headsLeftOut": not heads and (data.teacher_heads or data.student_heads) is not None,
        "blocks": blocks,
    }
    return header, b"".join(codes)


def _short(numbers: np.ndarray, digits: int = 5) -> Any:
    return np.round(numbers.astype(np.float64), digits).tolist()


# ------------------------------------------------------------------------ from arrays


def from_arrays(
    tokens: Sequence[str],
    teacher: Any,
    student: Any,
    matches: Sequence[int] | None = None,
    mask: Any = None,
) -> LensData:
    """A lens on maps you already have.

    Args:
        tokens: N labels.
        teacher: maps (T, N, N), or with heads (T, H, N, N); numpy or torch.
        student: maps (S, N, N) or (S, H, N, N), or several training steps: a dict from step to
            such maps.
        matches: for each student layer, the teacher layer it learns from (default: the uniform
            map of :func:`comet_lib.attention.layer_map`).
        mask: (N,), 1 for a token, 0 for padding (default: all are tokens). Rows are normalised
            over the tokens.

    Raises:
        CometError: shapes that do not fit, negative or missing numbers, or an empty row.
    """
    names = tuple(shown(str(token)) for token in tokens)
    if not names:
        raise CometError("tokens is empty: a lens needs at least one token.")
    valid = np.ones(len(names), bool) if mask is None else np.asarray(mask).astype(bool)
    if valid.shape != (len(names),):
        raise CometError(f"mask has shape {valid.shape}, but there are {len(names)} tokens.")
    steps = tuple(sorted(student)) if isinstance(student, Mapping) else ()
    if isinstance(student, Mapping) and not steps:
        raise CometError("student is an empty dict: give the maps of at least one training step.")
    several = [student[step] for step in steps] if isinstance(student, Mapping) else [student]

    teacher_maps, teacher_heads = _checked(teacher, valid, "teacher")
    found = [
        _checked(one, valid, f"student at step {s}" if steps else "student")
        for one, s in zip(several, steps or (0,), strict=True)
    ]
    if len({(maps.shape, None if heads is None else heads.shape) for maps, heads in found}) > 1:
        raise CometError("the student's maps differ in shape from step to step.")
    student_maps = torch.stack([maps for maps, _ in found])
    heads = [single for _, single in found if single is not None]
    student_heads = torch.stack(heads) if heads else None
    chosen = _matches(matches, student_maps.shape[1], len(teacher_maps))
    row = torch.from_numpy(valid)[None]
    kept = torch.from_numpy(np.flatnonzero(valid))
    at = (..., kept[:, None], kept)
    return LensData(
        tokens=names,
        mask=valid,
        teacher=quantise(teacher_maps.numpy()),
        student=quantise(student_maps.numpy()),
        steps=steps,
        matches=chosen,
        js=np.stack([js_table(one, teacher_maps, row) for one in student_maps]),
        cka=np.stack([cka_table(one[at], teacher_maps[at]).numpy() for one in student_maps]),
        teacher_entropy=np.array([float(entropy(one[None], row)) for one in teacher_maps]),
        student_entropy=np.array(
            [[float(entropy(one[None], row)) for one in maps] for maps in student_maps]
        ),
        teacher_heads=None if teacher_heads is None else quantise(teacher_heads.numpy()),
        student_heads=None if student_heads is None else quantise(student_heads.numpy()),
    )


def js_table(student: Tensor, teacher: Tensor, mask: Tensor) -> np.ndarray:
    """Mean JS divergence over the valid rows: (S, N, N), (T, N, N), mask (1, N) -> (S, T), nats."""
    many = mask.expand(len(teacher), -1)
    rows = [js_divergence(one.expand_as(teacher), teacher, many).sum(-1) for one in student]
    return (torch.stack(rows) / mask.sum().clamp_min(1)).numpy()


def _checked(maps: Any, valid: np.ndarray, who: str) -> tuple[Tensor, Tensor | None]:
    """Head means (layers, N, N) and single heads or None, rows normalised over the valid keys."""
    array = torch.as_tensor(maps).detach().to("cpu", torch.float32)
    size = len(valid)
    if array.ndim not in (3, 4) or not all(array.shape) or array.shape[-2:] != (size, size):
        raise CometError(
            f"{who} has maps of shape {tuple(array.shape)}: for {size} tokens give "
            f"(layers, {size}, {size}) or (layers, heads, {size}, {size})."
        )
    pairs = torch.from_numpy(valid[:, None] & valid)
    array = torch.where(pairs, array, 0.0)  # padding may hold anything
    if not bool(array.isfinite().all()) or bool((array < 0).any()):
        raise CometError(f"{who} has maps with negative or missing numbers: give probabilities.")
    total = array.sum(-1, keepdim=True)
    if bool((total[..., torch.from_numpy(valid), :] <= 0).any()):
        raise CometError(f"{who} has a row without any attention: mask it as padding.")
    array = array / total.clamp_min(torch.finfo(array.dtype).tiny)
    return (array, None) if array.ndim == 3 else (array.mean(1), array)


def _matches(matches: Sequence[int] | None, students: int, teachers: int) -> tuple[int, ...]:
    if matches is None:
        if students <= teachers:
            return tuple(layer_map(students, teachers))
        return tuple(i * teachers // students for i in range(students))
    if len(matches) != students or not all(0 <= t < teachers for t in matches):
        raise CometError(
            f"matches is {list(matches)}: give one teacher layer, 0 to {teachers - 1}, for each "
            f"of the {students} student layers."
        )
    return tuple(int(t) for t in matches)


# ------------------------------------------------------------------------ from models


def from_models(
    teacher: PreTrainedModel,
    student: PreTrainedModel | Mapping[int, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    student_tokenizer: PreTrainedTokenizerBase | None = None,
    matches: Sequence[int] | None = None,
    heads: bool = False,
    max_length: int = 128,
) -> LensData:
    """A lens on two models: one forward pass of each, every layer's head mean captured.

    Args:
        teacher, student: encoders that :func:`comet_lib.attention.capture` supports. ``student``
            may be a dict from training step to checkpoint.
        tokenizer: the teacher's, and the student's too unless ``student_tokenizer`` is given;
            then both maps are brought to the segments that both tokenizers share (see
            :mod:`comet_lib.lens.align`).
        text: one text; at most ``max_length`` tokens of it are read.
        matches: as in :func:`from_arrays`.
        heads: keep every single head too (that multiplies the size by the number of heads).

    Raises:
        CometError: no text, a tokenizer without character offsets, or ids that a model's
            vocabulary does not have.
    """
    text = unicodedata.normalize("NFC", text)
    if not text.strip():
        raise CometError("text is empty: give a sentence to look at.")
    tokenizers = [tokenizer] if student_tokenizer is None else [tokenizer, student_tokenizer]
    read = [_read(one, text, max_length) for one in tokenizers]
    end = min(max(stop for _, stop in one.spans) for one in read)
    if len(read) == 2 and end < len(text.rstrip()):  # one was cut: let both read the same
        text = text[:end]
        read = [_read(one, text, max_length) for one in tokenizers]
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

    def maps(model: PreTrainedModel, one: _Read, segment: np.ndarray, who: str) -> np.ndarray:
        size = int(model.config.vocab_size)
        if int(one.ids.max()) >= size:
            raise CometError(
                f"the {who} has {size} word embeddings, but the tokenizer gave the id "
                f"{int(one.ids.max())}: give the {who}'s own tokenizer."
            )
        ids = one.ids[None].to(model.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        found = capture_maps(model, inputs, heads=heads, small=True)
        array = torch.stack([found[k][0].float().cpu() for k in sorted(found)]).numpy()
        return aggregate(array, segment) if len(read) == 2 else array

    checkpoints = student if isinstance(student, Mapping) else {0: student}
    students = {step: maps(model, read[-1], last, "student") for step, model in checkpoints.items()}
    return from_arrays(
        names,
        maps(teacher, read[0], first, "teacher"),
        students if isinstance(student, Mapping) else students[0],
        matches,
    )


@dataclass(frozen=True)
class _Read:
    """One text as a tokenizer sees it."""

    ids: Tensor  # (n,)
    spans: list[tuple[int, int]]  # characters of the text
    special: list[int]
    pieces: list[str]


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
    )
