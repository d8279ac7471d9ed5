"""A student that starts from its teacher: embeddings by a singular value decomposition, layers by
copying where widths fit.

Shapes: V pieces, D the teacher's width, d the student's, d at most D.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from comet_lib.attention import encoder_layers
from comet_lib.errors import CometError


def reduce_width(table: Tensor, width: int) -> Tensor:
    """Rows (V, D) -> (V, d) with the inner products kept best in the least-squares sense.

        E = U S V^T,    E' = E V_d = U_d S_d                                             (1)

    E' E'^T is the matrix of rank d that is nearest to E E^T in the Frobenius norm (Eckart and
    Young 1936); what is lost of E itself is the tail, sum over i > d of s_i^2. The columns come
    in falling order of variance, so the first ones are much larger than the last. Signs are fixed:
    the largest entry of each column of V is positive.
    """
    if table.ndim != 2 or not 1 <= width <= table.shape[1]:
        raise CometError(
            f"width is {width}, but must be from 1 to the teacher's, for a table of shape "
            f"{tuple(table.shape)}."
        )
    wide = table.detach().double()
    # V from E^T E (D, D): E itself may have a quarter of a million rows.
    _, vectors = torch.linalg.eigh(wide.T @ wide)
    vectors = vectors.flip(-1)[:, :width]
    largest = vectors.abs().argmax(0, keepdim=True)
    return (wide @ (vectors * vectors.gather(0, largest).sign())).to(table.dtype)


def initialise_embeddings(
    student: PreTrainedModel, teacher: PreTrainedModel, scale: float | None = None
) -> float:
    """Set the student's word embeddings to eq. (1) of the teacher's, times a factor; return it.

    The factor gives all entries together the root mean square ``scale``, by default the student's
    own ``initializer_range``, the one its other weights were drawn with. One factor for the table
    changes no angle between pieces. The padding row is zero. In place; nothing else changes.

    Raises:
        CometError: another vocabulary, or a student wider than its teacher.
    """
    target, source = _embeddings(student), _embeddings(teacher)
    if len(target) != len(source):
        raise CometError(
            f"the student has {len(target)} pieces and the teacher {len(source)}: embeddings can "
            "be taken over with one vocabulary alone"
        )
    if target.shape[1] > source.shape[1]:
        raise CometError(
            f"the student is {target.shape[1]} wide and the teacher {source.shape[1]}: a wider "
            "table cannot be made from a narrower one"
        )
    made = reduce_width(source, target.shape[1])
    padding = student.config.pad_token_id
    if padding is not None:
        made[padding] = 0
    scale = student.config.initializer_range if scale is None else scale
    factor = scale / float(made.double().square().mean().sqrt())
    with torch.no_grad():
        target.copy_(factor * made)
    return factor


def _embeddings(model: PreTrainedModel) -> Tensor:
    table: Any = model.get_input_embeddings()
    return table.weight


def copy_layers(
    student: PreTrainedModel, teacher: PreTrainedModel, matches: Mapping[int, int]
) -> None:
    """Copy whole encoder layers, student layer -> teacher layer (both from 0), in place.

    After DistilBERT, which takes every second layer (Sanh et al. 2019, arXiv 1910.01108).

    Raises:
        CometError: a layer that is not there, or another width: then only training can bring the
            two together.
    """
    ours, theirs = encoder_layers(student), encoder_layers(teacher)
    for i, j in matches.items():
        if not (0 <= i < len(ours) and 0 <= j < len(theirs)):
            raise CometError(
                f"layer {i} cannot be taken from the teacher's {j}: the student has {len(ours)} "
                f"layers and the teacher {len(theirs)}, counted from 0"
            )
        weights = theirs[j].state_dict()
        for name, value in ours[i].state_dict().items():
            if name not in weights or weights[name].shape != value.shape:
                there = tuple(weights[name].shape) if name in weights else "none"
                raise CometError(
                    f"layer {i}: {name} is {tuple(value.shape)} in the student and {there} in the "
                    "teacher; copy layers of equal sizes alone, or take the embeddings only"
                )
    heads = [getattr(m.config, "num_attention_heads", None) for m in (student, teacher)]
    if heads[0] != heads[1]:
        raise CometError(
            f"the student has {heads[0]} attention heads and the teacher {heads[1]}: the same "
            "weights would mean other maps; give both the same number"
        )
    for i, j in matches.items():
        ours[i].load_state_dict(theirs[j].state_dict())
