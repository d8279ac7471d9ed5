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

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from comet_lib.attention import layer_map
from comet_lib.errors import CometError
from comet_lib.lens.align import quoted, shown
from comet_lib.similarity import cka_table, entropy, js_divergence

LEVELS = 255
SAME = 0.0005  # attention a token; below it two maps look at the same tokens
SCALE = f"0: alike, {math.log(2):.2f}: nothing in common"


@dataclass(frozen=True, eq=False)
class Quantized:
    """Maps as bytes: ``codes`` uint8 (..., N, N), ``scale`` float32 (...), eq. (1)."""

    codes: np.ndarray
    scale: np.ndarray

    def values(self, *at: int) -> np.ndarray:
        """The maps as float32, all of them or those at the leading indices."""
        shade = self.codes[at].astype(np.float32) / LEVELS
        return self.scale[at][..., None, None] * shade**2


def quantize(maps: np.ndarray) -> Quantized:
    """Maps (..., N, N) without negative numbers -> the same in one byte each, eq. (1)."""
    scale = maps.max((-2, -1)).astype(np.float32)
    share = maps / np.maximum(scale, np.finfo(np.float32).tiny)[..., None, None]
    return Quantized((np.sqrt(share) * LEVELS).round().astype(np.uint8), scale)


@dataclass(frozen=True, eq=False)
class Answers:
    """What two classifiers and any baselines answer, as probabilities of C ``labels``."""

    labels: tuple[str, ...]
    teacher: np.ndarray  # (C,)
    student: np.ndarray  # (K, C)
    baselines: Mapping[str, np.ndarray] = field(default_factory=dict)  # name -> (C,)


@dataclass(frozen=True, eq=False)
class Occlusion:
    """How much probability a model's own answer loses when no token may look at one place.

    Negative: the answer gains. Special tokens are never hidden (0). After Zeiler and Fergus 2014,
    arXiv 1311.2901.
    """

    teacher: np.ndarray  # (N,)
    student: np.ndarray  # (K, N)


@dataclass(frozen=True, eq=False)
class Measures:
    """What the maps of all layers measure at one step, in nats."""

    js: np.ndarray  # (S, T) Jensen-Shannon divergence, mean over the rows
    teacher_entropy: np.ndarray  # (T,) mean over the rows
    student_entropy: np.ndarray  # (S,)


@dataclass(frozen=True, eq=False)
class LensData:
    """Everything the lens draws. Rows of the maps sum to one; what touches padding is zero."""

    tokens: tuple[str, ...]  # N labels, as they are drawn
    mask: np.ndarray  # (N,) bool: True for a token, False for padding
    teacher: Quantized  # (T, N, N), means over the heads
    student: Quantized  # (K, S, N, N)
    steps: tuple[int, ...]  # K training steps, rising; () without checkpoints
    matches: tuple[int, ...]  # S teacher layers: whom each student layer learns from
    js: np.ndarray  # (K, S, T) Jensen-Shannon divergence, mean over the rows, nats
    cka: np.ndarray  # (K, S, T) linear CKA of the maps' rows, 0 to 1
    teacher_entropy: np.ndarray  # (T,) mean over the rows, nats
    student_entropy: np.ndarray  # (K, S)
    teacher_heads: Quantized | None = None  # (T, H, N, N)
    student_heads: Quantized | None = None  # (K, S, H, N, N)
    text: str = ""  # what the models read
    answers: Answers | None = None
    read: Callable[[str], LensData] | None = None  # another text, the same models
    occlude: Callable[[], Occlusion] | None = None

    @cached_property
    def occlusion(self) -> Occlusion | None:
        """Computed when first asked for: it takes a forward pass for every token."""
        return self.occlude() if self.occlude else None

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

    def measures(self, step: int = -1, teacher_head: int = -1, student_head: int = -1) -> Measures:
        """Distances and entropies of the layers' head means, or of one head in every layer."""
        if teacher_head < 0 and student_head < 0:
            return Measures(self.js[step], self.teacher_entropy, self.student_entropy[step])
        teacher, student = self.teacher.values(), self.student.values(step)
        if teacher_head >= 0:
            teacher = _heads(self.teacher_heads, "teacher").values()[:, teacher_head]
        if student_head >= 0:
            student = _heads(self.student_heads, "student").values(step)[:, student_head]
        row = torch.from_numpy(self.mask)[None]
        one, other = torch.from_numpy(teacher), torch.from_numpy(student)
        return Measures(js_table(other, one, row), _entropies(one, row), _entropies(other, row))

    def finding(
        self,
        teacher_layer: int,
        student_layer: int,
        step: int = -1,
        teacher_head: int = -1,
        student_head: int = -1,
    ) -> str:
        """One sentence on a pair of layers: where the student looks otherwise, and how far apart
        the two maps are."""
        teacher_name = f"teacher layer {teacher_layer}" + _head(teacher_head)
        name = f"Student layer {student_layer}" + _head(student_head)
        if self.steps:
            name += f" at step {self.steps[step]}"
        valid = np.flatnonzero(self.mask)
        if len(valid) < 2:
            return f"{name} and {teacher_name}: {len(valid)} token, nothing to compare"
        js = self.measures(step, teacher_head, student_head).js[student_layer, teacher_layer]
        maps = self.pair(teacher_layer, student_layer, step, teacher_head, student_head)
        more = (maps[1] - maps[0])[valid][:, valid].mean(0)
        up, down = (quoted(self.tokens[valid[i]]) for i in (more.argmax(), more.argmin()))
        looks = f"looks more at {up} and less at {down} than {teacher_name}"
        if float(np.abs(more).max()) < SAME:
            looks = f"looks at the same tokens as {teacher_name}"
        return f"{name} {looks.rstrip(',')}: {js:.2f} nats apart ({SCALE})"


def _head(head: int) -> str:
    return "" if head < 0 else f", head {head},"


def _entropies(maps: Tensor, row: Tensor) -> np.ndarray:
    return np.array([float(entropy(one[None], row)) for one in maps])


def _heads(heads: Quantized | None, who: str) -> Quantized:
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
        "text": data.text,
    }
    if data.answers:
        header["answers"] = {
            "labels": list(data.answers.labels),
            "teacher": _short(data.answers.teacher),
            "student": _short(data.answers.student),
            "baselines": {name: _short(p) for name, p in data.answers.baselines.items()},
        }
    return header, b"".join(codes)


def occlusion_payload(occlusion: Occlusion | None) -> dict[str, Any]:
    """An occlusion as JSON; empty without one."""
    if occlusion is None:
        return {}
    return {"teacher": _short(occlusion.teacher), "student": _short(occlusion.student)}


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
        mask: (N,), 1 for a token, 0 for padding (default: all are tokens). Rows are normalized
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
        teacher=quantize(teacher_maps.numpy()),
        student=quantize(student_maps.numpy()),
        steps=steps,
        matches=chosen,
        js=np.stack([js_table(one, teacher_maps, row) for one in student_maps]),
        cka=np.stack([cka_table(one[at], teacher_maps[at]).numpy() for one in student_maps]),
        teacher_entropy=_entropies(teacher_maps, row),
        student_entropy=np.stack([_entropies(one, row) for one in student_maps]),
        teacher_heads=None if teacher_heads is None else quantize(teacher_heads.numpy()),
        student_heads=None if student_heads is None else quantize(student_heads.numpy()),
    )


def js_table(student: Tensor, teacher: Tensor, mask: Tensor) -> np.ndarray:
    """Mean JS divergence over the valid rows: (S, N, N), (T, N, N), mask (1, N) -> (S, T), nats."""
    many = mask.expand(len(teacher), -1)
    rows = [js_divergence(one.expand_as(teacher), teacher, many).sum(-1) for one in student]
    return (torch.stack(rows) / mask.sum().clamp_min(1)).numpy()


def _checked(maps: Any, valid: np.ndarray, who: str) -> tuple[Tensor, Tensor | None]:
    """Head means (layers, N, N) and single heads or None, rows normalized over the valid keys."""
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
