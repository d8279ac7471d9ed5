"""Exercises of notebook 10, when attention pays."""

# mypy: disable-error-code=has-type

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from comet_lib.attention import capture
from comet_lib.checks.draws import attention_maps, mask_of, whole
from comet_lib.checks.framework import Answer, Draws, Misconception, Slip, exercise
from comet_lib.lab import routing
from comet_lib.losses import attention_loss, soft_target_loss

# --- Which head finds the marker? ----------------------------------------------------------


def _heads_and_places(source: torch.Generator) -> Draws:
    draws: list[tuple[Any, ...]] = []
    for lengths, heads in (((9, 7, 5), 4), ((6, 8), 3), ((7, 5, 6, 7), 2)):
        maps = attention_maps(source, mask_of(lengths), heads)
        draws.append((maps, torch.tensor([whole(source, 2, n - 2) for n in lengths])))
    return draws


def _read(maps: Tensor, at: Tensor) -> Tensor:
    return maps[torch.arange(len(maps)), :, 0, at]


@exercise(
    look="Row 0 of each map, the column of that text's answer, one number for each head.",
    draws=_heads_and_places,
    slips={
        "query and key are swapped: this is how much the answer looks at <s>": Slip(
            lambda maps, at: maps[torch.arange(len(maps)), :, at, 0].mean(0),
            "Rows look, columns are looked at: maps[text, head, 0, answer].",
        ),
        "the place before the answer is read: the marker": Slip(
            lambda maps, at: _read(maps, at - 1).mean(0), "answer_at is already the answer's place."
        ),
        "the heads are averaged away": Slip(
            lambda maps, at: _read(maps, at).mean(0).mean().expand(maps.shape[1]),
            "Average over the texts only (dim 0).",
        ),
        "every text is read at every text's place": Slip(
            lambda maps, at: maps[:, :, 0, at].mean((0, 2)),
            "maps[:, :, 0, answer_at] crosses all texts with all places. Pair them: "
            "maps[torch.arange(len(maps)), :, 0, answer_at].",
        ),
        "the mean runs over all queries, not only <s>": Slip(
            lambda maps, at: maps[torch.arange(len(maps)), :, :, at].mean((0, 2)),
            "The classifier reads <s>, so take row 0.",
        ),
        "the texts are added up, not averaged": Slip(
            lambda maps, at: _read(maps, at).sum(0), "Divide by the number of texts: .mean(0)."
        ),
    },
)
def weight_on_answer(maps: Tensor, answer_at: Tensor) -> Tensor:
    """(H,) from one layer's maps (N, H, L, L) and the places (N,) of the answers: how much <s>
    looks there, mean over the texts."""
    return routing.weight_on_answer(maps, answer_at)


# --- One training step ---------------------------------------------------------------------


def _steps(source: torch.Generator) -> Draws:
    draws = []
    for soft, attention in ((0.7, 1.6), (1.8, 0.6), (1.3, 2.2)):
        student = routing.new_model(routing.STUDENT, 0)
        with torch.no_grad():
            for weight in student.parameters():
                weight.add_(0.1 * torch.randn(weight.shape, generator=source))
        batch = routing.draw_texts(6, whole(source, 0, 2**40))
        maps = attention_maps(source, batch["attention_mask"], 2).double()
        logits = 2 * torch.randn(6, len(routing.WORDS), generator=source).double()
        draws.append((student.double(), {**batch, "logits": logits, "maps": maps}, soft, attention))
    return draws


def _loss_and_gradient(result: Any, student: PreTrainedModel, *draw: Any) -> Tensor:
    """The loss and every weight's gradient, side by side; the gradients are then cleared."""
    gradients = [weight.grad for weight in student.parameters()]
    student.zero_grad()
    if not isinstance(result, Tensor) or result.is_complex():
        raise Misconception(
            f"your function returned a {type(result).__name__}, but the loss is wanted, a tensor"
        )
    if result.ndim:
        raise Misconception(
            f"your function returned shape {tuple(result.shape)}, but a scalar, shape (), is wanted"
        )
    if all(gradient is None for gradient in gradients):
        raise Misconception(
            "no weight of the student has a gradient", "Call loss.backward() before you return."
        )
    pairs = zip(gradients, student.parameters(), strict=True)
    flat = [(torch.zeros_like(w) if g is None else g).flatten() for g, w in pairs]
    return torch.cat([result.detach().reshape(1), *flat]).double()


def _step(
    student: PreTrainedModel,
    batch: routing.Texts,
    soft: float,
    attention: float,
    *,
    labels: float = 1.0,
    frozen: bool = False,
    kind: str = "kl",
    swapped: bool = False,
    weighted: tuple[bool, bool] = (True, True),
    passes: int = 1,
    scale: float = 1.0,
) -> Tensor:
    """:func:`comet_lib.lab.routing.hybrid_step` with some parts replaced by slips."""
    with capture(student) as maps:
        logits = student(**routing.inputs(batch)).logits
    ours, theirs = [*maps.values()], [*batch["maps"].unbind(1)]
    if frozen:
        ours = [one.detach() for one in ours]
    if swapped:
        theirs.reverse()
    term = attention_loss(ours, theirs, batch["attention_mask"], kind)
    loss = labels * F.cross_entropy(logits, batch["labels"])
    loss = loss + (soft if weighted[0] else 1) * soft_target_loss(logits, batch["logits"])
    loss = loss + (attention if weighted[1] else 1) * scale * term
    for _ in range(passes):
        loss.backward(retain_graph=True)
    return loss


@exercise(
    look="labels + soft * soft targets + attention * row-wise KL of the maps; then backward.",
    draws=_steps,
    read=_loss_and_gradient,
    slips={
        "the attention term is missing": Slip(
            partial(_step, scale=0.0), "Add attention * attention_loss(maps, theirs, mask)."
        ),
        "the soft targets are missing": Slip(
            lambda s, b, soft, a: _step(s, b, 0.0, a),
            "Add soft * soft_target_loss(logits, batch['logits']).",
        ),
        "the hard labels are missing": Slip(
            partial(_step, labels=0.0), "Start from F.cross_entropy(logits, batch['labels'])."
        ),
        "the attention term has a value, but no gradient: it teaches nothing": Slip(
            partial(_step, frozen=True), "Detach nothing, and use capture rather than capture_maps."
        ),
        "the maps are compared by their squared error": Slip(
            partial(_step, kind="mse"), 'Use the row-wise KL: kind="kl", the default.'
        ),
        "the first layer is compared with the teacher's second": Slip(
            partial(_step, swapped=True), "Keep the order: layer i learns from layer i."
        ),
        "the weight soft is not used": Slip(
            partial(_step, weighted=(False, True)), "Multiply the soft targets by soft."
        ),
        "the weight attention is not used": Slip(
            partial(_step, weighted=(True, False)), "Multiply the attention term by attention."
        ),
        "the two layers are summed, not averaged": Slip(
            partial(_step, scale=2.0), "attention_loss takes the mean over the layers."
        ),
        "backward runs twice, so the gradient is twice too large": Slip(
            partial(_step, passes=2), "Call loss.backward() once, on the sum of the terms."
        ),
    },
    seconds=20.0,
)
def hybrid_step(
    student: PreTrainedModel,
    batch: routing.Texts,
    soft: float,
    attention: float,
    layers: Sequence[int] = (0, 1),
) -> Tensor:
    """The loss (); its gradient is added to the student's weights."""
    return routing.hybrid_step(student, batch, soft, attention, layers)


# --- The shuffled teacher ------------------------------------------------------------------


def _maps_of_texts(source: torch.Generator) -> Draws:
    draws = []
    for lengths in ((7, 5, 7, 5, 7), (6, 4, 4, 6, 4, 6), (5, 8, 8, 5, 6, 6)):
        mask = mask_of(lengths)
        maps = attention_maps(source, mask, 2) * mask[:, None, :, None]  # padded queries: zero
        draws.append((maps, mask))
    return draws


def _valid_maps(answer: Answer, draws: Draws) -> None:
    """What is wrong with maps that no slip explains."""
    for maps, mask in draws:
        got = answer(maps, mask)
        lost = (got * mask[:, None, None]).sum(-1)[mask.bool()[:, None].expand(got.shape[:-1])]
        if (lost - 1).abs().max() > 1e-4:
            raise Misconception(
                "some rows no longer sum to 1 over their text's tokens",
                "Move whole maps, and only between texts with as many tokens: mask.sum(1).",
            )
        if any(torch.equal(a, b) for a, b in zip(got, maps, strict=True)):
            raise Misconception(
                "some texts still have their own maps", "Move every map one place on: roll(-1)."
            )


def _rolled(maps: Tensor, mask: Tensor, by: int) -> Tensor:
    out, lengths = maps.clone(), mask.sum(1)
    for length in lengths.unique():
        same = (lengths == length).nonzero().flatten()
        out[same] = maps[same.roll(by)]
    return out


@exercise(
    look="For each number of tokens: which texts have it? Give each of them the next one's maps.",
    draws=_maps_of_texts,
    slips={
        "nothing is shuffled: every text has its own maps": Slip(
            lambda maps, mask: maps, "Assign to the copy what stands at other texts' places."
        ),
        "maps go to texts of another length, so rows look at padding": Slip(
            lambda maps, mask: maps.roll(-1, 0),
            "Shuffle among the texts with as many tokens: mask.sum(1).",
        ),
        "each text gets the maps of the one before": Slip(
            lambda maps, mask: _rolled(maps, mask, 1),
            "That is a fair control too; here take the next one's, same.roll(-1).",
        ),
        "all texts of a length get the maps of one": Slip(
            lambda maps, mask: torch.stack(
                [maps[(mask.sum(1) == n).nonzero()[0, 0]] for n in mask.sum(1)]
            ),
            "Each map must be used once, or the control knows less than the teacher.",
        ),
        "the layers are swapped, but each text keeps its own maps": Slip(
            lambda maps, mask: maps.flip(1), "Shuffle over the texts, the first axis."
        ),
        "the mean over the texts is used, not another text's maps": Slip(
            lambda maps, mask: maps.mean(0, keepdim=True).expand_as(maps),
            "A mean map is blurred; the control must be as sharp as the teacher.",
        ),
    },
    otherwise=_valid_maps,
)
def others_maps(maps: Tensor, mask: Tensor) -> Tensor:
    """(N, layers, L, L) from maps of the same shape and mask (N, L): each text has the maps of the
    next text with as many tokens; the last of them has the first's."""
    return routing.others_maps(maps, mask)
