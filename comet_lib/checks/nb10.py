"""Exercises of notebook 10, when attention pays."""

# mypy: disable-error-code=has-type

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from comet_lib.attention import capture
from comet_lib.checks.draws import (
    attention_maps,
    generator,
    mask_of,
    normal,
    numpy_generator,
    uniform,
    whole,
)
from comet_lib.checks.framework import (
    Answer,
    Draws,
    Misconception,
    Slip,
    exercise,
    is_number,
    refuse_nan,
)
from comet_lib.lab import routing
from comet_lib.losses import attention_loss, soft_target_loss

# --- What counting can do ------------------------------------------------------------------


def _tensor(result: Any, *draw: Any) -> Any:
    """A list of numbers counts as a tensor."""
    numbers = isinstance(result, list | tuple) and all(map(is_number, result))
    return torch.tensor([float(number) for number in result]) if numbers else result


def _first_in_text(ids: Tensor) -> Tensor:
    words = [[piece - len(routing.SPECIAL) for piece in row if piece > 3] for row in ids.tolist()]
    return torch.tensor([max(row, key=row.count) for row in words])


def _ids(source: torch.Generator) -> Draws:
    draws = []
    for count in (40, 60):
        texts = routing.draw_texts(count, whole(source, 0, 2**40))["input_ids"]
        texts[:3, 1:9] = torch.tensor([4, 11, 11, 4, 5, 6, 7, 8])  # a tie, and the last word
        texts[3:5, :11] = torch.tensor([0, 7, 9, 3, 11, 5, 6, 8, 10, 2, 1])  # no word comes twice
        texts[3:5, 11:] = routing.PAD
        draws.append((texts[torch.randperm(count, generator=source)],))
    return draws


def _counted(ids: Tensor, first: int = len(routing.SPECIAL), shift: bool = True) -> Tensor:
    counts = F.one_hot(ids, len(routing.SPECIAL) + len(routing.WORDS)).sum(1)
    return counts[:, first:].argmax(1) + (0 if shift else first)


@exercise(
    look="Count each word in each text; the first word with the largest count; words start at 0.",
    draws=_ids,
    read=_tensor,
    slips={
        "special pieces are counted as words": Slip(
            partial(_counted, first=0), "Leave out the first len(routing.SPECIAL) counts."
        ),
        "special pieces are counted, then subtracted: some numbers are below 0": Slip(
            lambda ids: _counted(ids, 0) - len(routing.SPECIAL),
            "Leave out the first len(routing.SPECIAL) counts before argmax.",
        ),
        "these are numbers of pieces, not of words": Slip(
            partial(_counted, shift=False), "Word 0 is piece 4: subtract len(routing.SPECIAL)."
        ),
        "the marker is counted as a word": Slip(
            lambda ids: _counted(ids, 3), "[here] is piece 3, and words begin at 4."
        ),
        "word 0 has number 1: one is subtracted too little": Slip(
            lambda ids: _counted(ids) + 1, "Word 0 is piece 4: subtract len(routing.SPECIAL)."
        ),
        "in a tie the word that stands first in the text is taken": Slip(
            _first_in_text, "Take the first in the order of routing.WORDS: argmax over the counts."
        ),
        "in a tie the last word is taken": Slip(
            lambda ids: 7 - F.one_hot(ids, 12).sum(1)[:, 4:].flip(1).argmax(1),
            "In a tie take the smallest number: argmax does.",
        ),
        "this is how often the word occurs, not which word it is": Slip(
            lambda ids: F.one_hot(ids, 12).sum(1)[:, 4:].amax(1), "argmax, not max."
        ),
        "the least frequent word is returned": Slip(
            lambda ids: F.one_hot(ids, 12).sum(1)[:, 4:].argmin(1), "argmax."
        ),
        "all texts are counted together": Slip(
            lambda ids: F.one_hot(ids, 12).sum((0, 1))[4:].argmax().expand(len(ids)),
            "Sum over the places of a text, dim 1.",
        ),
        "the first word of each text is returned": Slip(
            lambda ids: torch.where(ids[:, 1] == 3, ids[:, 2], ids[:, 1]) - 4, "Count them."
        ),
    },
)
def most_frequent(input_ids: Tensor) -> Tensor:
    """(N,) the most frequent word of each text, in a tie the first, from pieces (N, L)."""
    return _counted(input_ids)


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
    read=_tensor,
    slips={
        "query and key are swapped: this is how much the answer looks at <s>": Slip(
            lambda maps, at: maps[torch.arange(len(maps)), :, at, 0].mean(0),
            "Rows look, columns are looked at: maps[text, head, 0, answer].",
        ),
        "the place before the answer is read: the marker": Slip(
            lambda maps, at: _read(maps, at - 1).mean(0), "answer_at is already the answer's place."
        ),
        "the place after the answer is read": Slip(
            lambda maps, at: _read(maps, (at + 1) % maps.shape[-1]).mean(0),
            "answer_at is already the answer's place.",
        ),
        "this is how often <s> looks at the answer most": Slip(
            lambda maps, at: (maps[:, :, 0].argmax(-1) == at[:, None]).float().mean(0),
            "Average the weight itself, not whether it is the largest.",
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
        "the largest weight of any text is taken": Slip(
            lambda maps, at: _read(maps, at).amax(0), "Average over the texts: .mean(0)."
        ),
        "this is how much the answer looks at itself": Slip(
            lambda maps, at: maps[torch.arange(len(maps)), :, at, at].mean(0),
            "The row is that of <s>: 0.",
        ),
        "the first text's place is read in every text": Slip(
            lambda maps, at: maps[:, :, 0, at[0]].mean(0), "Pair each text with its own place."
        ),
        "the row after that of <s> is read": Slip(
            lambda maps, at: maps[torch.arange(len(maps)), :, 1, at].mean(0), "<s> is token 0."
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


# --- Ask the teacher ------------------------------------------------------------------------


def _teacher_and_texts(source: torch.Generator) -> Draws:
    draws = []
    for count in (3, 5):
        teacher = routing.new_model(routing.STUDENT, whole(source, 0, 2**40))
        draws.append((teacher, routing.draw_texts(count, whole(source, 0, 2**40))))
    return draws


def _logits_and_maps(result: Any, teacher: PreTrainedModel, texts: routing.Texts) -> Any:
    """The two tensors that are new, once the rest is as it was."""
    if not isinstance(result, Mapping):
        raise Misconception(f"your function returned a {type(result).__name__}, not a dict")
    if missing := {*texts, "logits", "maps"} - {*result}:
        raise Misconception(
            f"your function returned a dict without {', '.join(sorted(missing))}",
            'Start from {**texts, "logits": ...}.',
        )
    if not all(result[name] is texts[name] or result[name].equal(texts[name]) for name in texts):
        raise Misconception("the texts are no longer what they were", "Keep all that texts holds.")
    logits, maps = result["logits"], result["maps"]
    for name, value, axes in (("logits", logits, 2), ("maps", maps, 4)):
        if not isinstance(value, Tensor):
            raise Misconception(
                f"{name} is a {type(value).__name__}, not a tensor", "torch.stack takes a list."
            )
        if value.requires_grad:
            raise Misconception(
                f"{name} still has its graph, and keeps the whole forward pass in memory",
                "Ask the teacher inside torch.no_grad().",
            )
        if value.ndim != axes:
            raise Misconception(
                f"{name} has shape {tuple(value.shape)}, but {axes} axes are wanted",
                "maps: torch.stack(list of (N, L, L), 1).",
            )
    return logits, maps


def _told(
    teacher: PreTrainedModel,
    texts: routing.Texts,
    *,
    stack: int = 1,
    mask: bool = True,
    flip: bool = False,
    change: Callable[[Tensor], Tensor] = lambda logits: logits,
) -> dict[str, Tensor]:
    read = routing.inputs(texts) if mask else {"input_ids": texts["input_ids"]}
    with capture(teacher) as maps, torch.no_grad():
        logits = teacher(**read).logits
    layers = [maps[layer] for layer in sorted(maps, reverse=flip)]
    return {**texts, "logits": change(logits), "maps": torch.stack(layers, stack)}


@exercise(
    look="One forward pass inside capture(teacher) and torch.no_grad(); then {**texts, ...}.",
    draws=_teacher_and_texts,
    read=_logits_and_maps,
    slips={
        "the first axis of maps is the layer, not the text": Slip(
            partial(_told, stack=0), "torch.stack(layers, 1)."
        ),
        "the layers of maps stand behind the places that are looked at": Slip(
            partial(_told, stack=-1), "torch.stack(layers, 1)."
        ),
        "the teacher reads padding": Slip(
            partial(_told, mask=False), "Give it the mask too: **routing.inputs(texts)."
        ),
        "the upper layer comes first": Slip(
            partial(_told, flip=True), "In the order of the layers."
        ),
        "logits are probabilities": Slip(
            partial(_told, change=lambda logits: logits.softmax(-1)),
            "Keep .logits as they are: the loss takes its own softmax.",
        ),
        "logits are logarithms of probabilities": Slip(
            partial(_told, change=lambda logits: logits.log_softmax(-1)),
            "Keep .logits as they are: the loss takes its own softmax.",
        ),
    },
)
def answers_and_maps(teacher: PreTrainedModel, texts: routing.Texts) -> routing.Texts:
    """``texts`` and the teacher's logits (N, C) and head-mean maps (N, layers, L, L)."""
    return routing.ask(teacher, texts)


# --- One training step ---------------------------------------------------------------------


def _steps(source: torch.Generator) -> Draws:
    draws = []
    for soft, attention, layers in ((0.7, 1.6, (0, 1)), (1.8, 0.6, (1,)), (1.3, 2.2, (0,))):
        student = routing.new_model(routing.STUDENT, 0)
        with torch.no_grad():
            for weight in student.parameters():
                weight.add_(0.1 * torch.randn(weight.shape, generator=source))
        batch = routing.draw_texts(6, whole(source, 0, 2**40))
        maps = attention_maps(source, batch["attention_mask"], 2).double()
        logits = 2 * torch.randn(6, len(routing.WORDS), generator=source).double()
        told = {**batch, "logits": logits, "maps": maps}
        draws.append((student.double(), told, soft, attention, layers))
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
    layers: Sequence[int] = (0, 1),
    *,
    all_layers: bool = False,
    padding: bool = False,
    turned: bool = False,
    temperature: float = 1.0,
    labels: float = 1.0,
    frozen: bool = False,
    kind: str = "kl",
    swapped: bool = False,
    first: bool = False,
    teacher_first: bool = False,
    weighted: tuple[bool, bool] = (True, True),
    passes: int = 1,
    scale: float = 1.0,
) -> Tensor:
    """:func:`comet_lib.lab.routing.hybrid_step` with some parts replaced by slips."""
    layers = (0, 1) if all_layers else layers
    with capture(student, layers) as maps:
        logits = student(**routing.inputs(batch)).logits
    ours, theirs = [*maps.values()], [batch["maps"][:, layer] for layer in layers]
    if frozen:
        ours = [one.detach() for one in ours]
    if swapped:
        theirs = [batch["maps"][:, 1 - layer] for layer in layers]
    if first:
        theirs = [batch["maps"][:, number] for number in range(len(layers))]
    mask = batch["attention_mask"]
    mask = torch.ones_like(mask) if padding else mask
    term = attention_loss(*((theirs, ours) if turned else (ours, theirs)), mask, kind)
    loss = labels * F.cross_entropy(logits, batch["labels"])
    pair = (batch["logits"], logits) if teacher_first else (logits, batch["logits"])
    answers = soft_target_loss(pair[0], pair[1], temperature)
    loss = loss + (soft if weighted[0] else 1) * answers
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
            lambda s, b, soft, a, layers: _step(s, b, 0.0, a, layers),
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
        "layers is not used: both layers are matched whatever it says": Slip(
            partial(_step, all_layers=True),
            "Take the student's and the teacher's maps of `layers` only: section 5 needs one.",
        ),
        "rows of padding are counted": Slip(
            partial(_step, padding=True), "Give attention_loss the batch's attention_mask."
        ),
        "the maps are swapped: the teacher is measured against the student": Slip(
            partial(_step, turned=True), "attention_loss takes the student's maps first."
        ),
        "the soft targets are at temperature 2": Slip(
            partial(_step, temperature=2.0), "Here the temperature is 1."
        ),
        "the first layer is compared with the teacher's second": Slip(
            partial(_step, swapped=True), "Keep the order: layer i learns from layer i."
        ),
        "the teacher's first maps are taken, whatever layers says": Slip(
            partial(_step, first=True), "theirs = [batch['maps'][:, i] for i in layers]."
        ),
        "the soft targets are swapped: the teacher is measured against the student": Slip(
            partial(_step, teacher_first=True), "soft_target_loss takes the student's logits first."
        ),
        "the weights are swapped: soft weighs the maps": Slip(
            lambda s, b, soft, a, layers: _step(s, b, a, soft, layers),
            "soft * soft targets + attention * attention term.",
        ),
        "the labels are weighted by 1 - soft": Slip(
            lambda s, b, soft, a, layers: _step(s, b, soft, a, layers, labels=1 - soft),
            "The cross-entropy has the weight 1.",
        ),
        "the weight soft is not used": Slip(
            partial(_step, weighted=(False, True)), "Multiply the soft targets by soft."
        ),
        "the weight attention is not used": Slip(
            partial(_step, weighted=(True, False)), "Multiply the attention term by attention."
        ),
        "the two layers are summed, not averaged": Slip(
            lambda s, b, soft, a, layers: _step(s, b, soft, a, layers, scale=len(layers)),
            "attention_loss takes the mean over the layers.",
        ),
        "the two layers are averaged twice": Slip(
            lambda s, b, soft, a, layers: _step(s, b, soft, a, layers, scale=1 / len(layers)),
            "attention_loss takes the mean over the layers already.",
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
        "only the lower layer's maps are another text's": Slip(
            lambda maps, mask: torch.stack([_rolled(maps, mask, -1)[:, 0], maps[:, 1]], 1),
            "Move both layers: shuffled[same] = maps[same.roll(-1)].",
        ),
        "only the upper layer's maps are another text's": Slip(
            lambda maps, mask: torch.stack([maps[:, 0], _rolled(maps, mask, -1)[:, 1]], 1),
            "Move both layers: shuffled[same] = maps[same.roll(-1)].",
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


#: Orders of the last axis that follow a rule.
RULES: dict[str, Any] = {
    "turned round": lambda rows: rows.flip(-1),
    "sorted": lambda rows: rows.sort(-1)[0],
    "sorted, the largest first,": lambda rows: rows.sort(-1, descending=True)[0],
    "moved on by one": lambda rows: rows.roll(1, -1),
    "moved back by one": lambda rows: rows.roll(-1, -1),
}


def _is_scrambled(answer: Answer) -> None:
    source = generator()
    for lengths in ((9, 6, 7), (8, 8, 5, 6)):
        mask = mask_of(lengths)
        maps = attention_maps(source, mask, 2)
        got = answer(maps, mask)
        if not isinstance(got, Tensor) or got.shape != maps.shape:
            shape = tuple(got.shape) if isinstance(got, Tensor) else f"a {type(got).__name__}"
            raise Misconception(f"your function returned {shape}, not {tuple(maps.shape)}")
        if (got * (1 - mask)[:, None, None]).any():
            raise Misconception(
                "padding gets weight", "Draw an order of each text's own first n places only."
            )
        valid = [(g[:, :n, :n], m[:, :n, :n]) for g, m, n in zip(got, maps, lengths, strict=True)]
        if not all(torch.allclose(g.sum(-1), m.sum(-1), atol=1e-5) for g, m in valid):
            raise Misconception("rows no longer sum to 1", "Keep the numbers; move them only.")
        if not all(torch.allclose(g.sort(-1)[0], m.sort(-1)[0], atol=1e-6) for g, m in valid):
            what = "the rows hold other numbers than before"
            if all(torch.allclose(g.sum(-2), m.sum(-2), atol=1e-5) for g, m in valid):
                what = "the rows themselves are in another order, and their numbers in the old one"
            raise Misconception(what, "Each row keeps its own numbers: gather along the last axis.")
        if all(torch.equal(g, m) for g, m in valid):
            raise Misconception("nothing has moved", "Draw an order: torch.rand(...).argsort(-1).")
        for name, rule in RULES.items():
            if all(torch.equal(g, rule(m)) for g, m in valid):
                raise Misconception(f"each row is {name}, which is a rule", "Draw the order.")
        # Which of its old places does each number come from? The same for each row is a rule.
        orders = [(g[..., :, None] - m[..., None, :]).abs().argmin(-1) for g, m in valid]
        if all((order == order[:1, :1]).all() for order in orders):
            raise Misconception(
                "all rows are put into the same order, so a rule is left",
                "Each row needs an order of its own: one random number for each entry.",
            )
        if all((order == order[:, :1]).all() for order in orders):
            raise Misconception(
                "all rows of a map are put into the same order, so a column stays a column",
                "Each row needs an order of its own: one random number for each entry.",
            )
        if all((order == order[:1]).all() for order in orders):
            raise Misconception(
                "both layers get the same order", "Draw one random number for each entry."
            )
        if all(
            ((o - o[..., :1] - torch.arange(o.shape[-1])) % o.shape[-1] == 0).all() for o in orders
        ):
            raise Misconception(
                "each row is only turned on, so what was side by side stays so",
                "Draw an order: torch.rand(...).argsort(-1).",
            )
        # One order for all texts, cut to each text's length, puts the same tokens in a row.
        longest = max(orders, key=lambda order: order.shape[-1])
        same = [longest[longest < o.shape[-1]].view(o.shape[0], -1, o.shape[-1]) for o in orders]
        if all((o == s[:, : o.shape[1]]).all() for o, s in zip(orders, same, strict=True)):
            raise Misconception(
                "all texts get the same orders", "Draw inside the loop over the texts."
            )


@exercise(
    look="For each text of n tokens: a random order of n places for each row; gather.",
    verify=_is_scrambled,
)
def scrambled_maps(maps: Tensor, mask: Tensor) -> Tensor:
    """Maps (N, layers, L, L), mask (N, L): each row's numbers in a random order over the valid
    keys."""
    scrambled = torch.zeros_like(maps)
    for number, length in enumerate(mask.sum(1).tolist()):
        rows = maps[number, :, :, :length]
        scrambled[number, :, :, :length] = rows.gather(-1, torch.rand(rows.shape).argsort(-1))
    return scrambled


# --- A start from the teacher's embeddings -------------------------------------------------


def _tables(source: torch.Generator) -> Draws:
    draws = []
    for rows, wide, width in ((9, 6, 2), (7, 12, 3), (12, 5, 5)):
        # Entries of one sign, some columns much larger: to center, to cut off columns or to give
        # every direction the same spread shows.
        table = normal(source, rows, wide) * normal(source, wide) + uniform(source, 3, 6)
        draws.append((table.double(), width, uniform(source, 0.05, 0.4)))
    return draws


def _angles(result: Any, table: Tensor, width: int, size: float) -> Any:
    """(n, n) inner products of the rows: a direction has no sign. And their root mean square."""
    if not isinstance(result, Tensor):
        raise Misconception(f"your function returned a {type(result).__name__}, not a tensor")
    if result.shape != (len(table), width):
        raise Misconception(
            f"your function returned shape {tuple(result.shape)}, but {(len(table), width)} is "
            "wanted",
            "Each of the n rows gets a coordinate in each of the first width directions.",
        )
    refuse_nan(result, "your function returned NaN", "Is something divided by 0?")
    exact = result.double()
    return exact @ exact.T / size**2


def _directions(
    table: Tensor,
    width: int,
    size: float,
    *,
    center: bool = False,
    last: bool = False,
    white: bool = False,
    each: bool = False,
    scale: Callable[[Tensor, float], Tensor] | None = None,
) -> Tensor:
    """The reference with some parts replaced by slips."""
    table = table - table.mean(0) if center else table
    u, _, directions = torch.linalg.svd(table, full_matrices=False)
    reduced = table @ (directions[-width:] if last else directions[:width]).T
    reduced = u[:, :width] if white else reduced
    if scale:
        return scale(reduced, size)
    mean = reduced.square().mean(1, keepdim=True) if each else reduced.square().mean()
    return reduced * size / mean.sqrt()


def _columns(table: Tensor, width: int, size: float) -> Tensor:
    kept = table[:, :width]
    return kept * size / kept.square().mean().sqrt()


@exercise(
    look="table @ directions[:width].T, then times size over its root mean square.",
    draws=_tables,
    read=_angles,
    slips={
        "the result has another root mean square than size": Slip(
            partial(_directions, scale=lambda reduced, size: reduced),
            "Multiply by size / reduced.square().mean().sqrt().",
        ),
        "these are the first columns of the table: they are no main directions": Slip(
            _columns, "The directions are the rows of the third result of svd."
        ),
        "these are the last directions, in which the rows hardly differ": Slip(
            partial(_directions, last=True), "directions[:width]: the most important come first."
        ),
        "every direction gets the same weight, as in U or if each column is scaled by itself": Slip(
            partial(_directions, white=True),
            "Coordinates are table @ directions[:width].T, or U times S. Use one number for all.",
        ),
        "each row is scaled by itself, so all get the same length": Slip(
            partial(_directions, each=True), "One number for all: .square().mean() over everything."
        ),
        "the mean row is subtracted first": Slip(
            partial(_directions, center=True), "Take the table as it is: the mean is meaning, too."
        ),
        "the result is multiplied by size, whatever its spread was": Slip(
            partial(_directions, scale=lambda reduced, size: reduced * size),
            "Divide by the root mean square too.",
        ),
        "the standard deviation is set, not the root mean square": Slip(
            partial(_directions, scale=lambda reduced, size: reduced * size / reduced.std()),
            "The mean counts too: .square().mean().sqrt().",
        ),
        "the mean square is set, not its root": Slip(
            partial(
                _directions, scale=lambda reduced, size: reduced * size / reduced.square().mean()
            ),
            "Take the root: .sqrt().",
        ),
        "the largest entry is set, not the root mean square": Slip(
            partial(_directions, scale=lambda reduced, size: reduced * size / reduced.abs().max()),
            "Divide by .square().mean().sqrt().",
        ),
    },
)
def main_directions(table: Tensor, width: int, size: float) -> Tensor:
    """(n, width) the coordinates of the rows of ``table`` (n, D) in its main directions, scaled
    to the root mean square ``size``."""
    return _directions(table, width, size)


# --- What the term adds --------------------------------------------------------------------


def _measurements(source: torch.Generator) -> Draws:
    rng = numpy_generator(source)
    draws = []
    for _ in range(2):
        texts, steps = (rng.choice([8, 20, 100, 1000, 3000], size=n, replace=False) for n in (3, 4))
        rows = [
            (int(n), a, int(k), rng.uniform(10, 60))
            for n, a, k in itertools.product(texts, (0, 1), steps)
        ]
        table = pd.DataFrame(rows, columns=["texts", "attention", "steps", "percent"])
        draws.append((table.sample(frac=1, random_state=int(rng.integers(2**31))),))
    return draws


def _wide_table(result: Any, measured: pd.DataFrame) -> Tensor:
    texts, steps = (sorted(measured[name].unique()) for name in ("texts", "steps"))
    if not isinstance(result, pd.DataFrame):
        raise Misconception(f"your function returned a {type(result).__name__}, not a DataFrame")
    if [*result.index] != texts or [*result.columns] != steps:
        turned = [*result.index] == steps and [*result.columns] == texts
        raise Misconception(
            "steps are rows and texts columns"
            if turned
            else f"rows are {[*result.index]} and columns {[*result.columns]}",
            f"Rows are the numbers of texts, {texts}, columns those of steps, {steps}, rising.",
        )
    return torch.tensor(result.to_numpy(float).copy())


def _adds(measured: pd.DataFrame, change: Callable[[Any, Any], Any]) -> pd.DataFrame:
    wide = measured.pivot(index="texts", columns=["attention", "steps"], values="percent")
    found: pd.DataFrame = change(wide[1], wide[0])
    return found.sort_index().sort_index(axis=1)


@exercise(
    look="pivot: texts are the index, attention and steps the columns; then wide[1] - wide[0].",
    draws=_measurements,
    read=_wide_table,
    slips={
        "the sign is reversed": Slip(
            partial(_adds, change=lambda w, o: o - w), "With the term minus without it."
        ),
        "this is the percentage with the term": Slip(
            partial(_adds, change=lambda w, o: w), "Subtract the percentage without it."
        ),
        "this is the percentage without the term": Slip(
            partial(_adds, change=lambda w, o: o), "Subtract it from the percentage with the term."
        ),
        "this is a ratio": Slip(
            partial(_adds, change=lambda w, o: w / o), "Points are a difference."
        ),
        "the differences have lost their sign": Slip(
            partial(_adds, change=lambda w, o: (w - o).abs()), "A loss is a loss: no abs."
        ),
        "this is the mean of both": Slip(
            partial(_adds, change=lambda w, o: (w + o) / 2), "Subtract."
        ),
    },
)
def term_adds(measured: pd.DataFrame) -> pd.DataFrame:
    """Percent with the attention term minus without it: number of texts by number of steps."""
    return _adds(measured, lambda with_, without: with_ - without)
