"""What travels to the browser: a small header that JSON can hold, and one block of bytes.

The block is the ``codes`` of the teacher's and the student's maps, then of single heads, if any;
``header["blocks"]`` says where each begins, its shape, and the scales.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from comet_lib.lens.data import LensData


def payload(data: LensData, heads: bool = True) -> tuple[dict[str, Any], bytes]:
    """Header and bytes of a lens; without single heads if ``heads`` is False."""
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
