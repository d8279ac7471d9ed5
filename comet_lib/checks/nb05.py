"""Exercises of notebook 05, stage one: distil without labels."""

# mypy: disable-error-code=has-type

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from comet_lib import losses
from comet_lib.attention import capture, layer_map
from comet_lib.checks.draws import generator, normal, uniform, whole
from comet_lib.checks.framework import (
    Answer,
    Draws,
    Misconception,
    Slip,
    check_gradients,
    exercise,
    is_number,
    numbers,
    refuse_nan,
    value_of,
)
from comet_lib.models import build_student, only_positions, xlmr_config

IGNORE = -100


class _Wrong(NamedTuple):
    """What a count of holes shows: ``wrong`` -> say it."""

    wrong: bool
    message: str
    look: str


def _two_tensors(result: Any, shape: torch.Size) -> tuple[Tensor, Tensor]:
    if not isinstance(result, tuple | list) or len(result) != 2:
        kind = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else ""
        raise Misconception(
            f"your function returned {kind or 'a ' + type(result).__name__}, but two tensors are "
            "wanted",
            "Return seen, labels.",
        )
    for part in result:
        if not isinstance(part, Tensor) or part.shape != shape:
            raise Misconception(
                "your function returned tensors of another shape than ids", "Both are (B, L)."
            )
    return result[0], result[1]


def _holes(answer: Answer) -> None:
    """Compare the shares of 60,000 pieces with the recipe, within five standard deviations."""
    source = generator()
    pieces, mask_id = 1000, 4
    ids = torch.randint(5, pieces, (600, 100), generator=source)
    ids[:, 10:20] = 0  # piece 0 is a piece like any other
    special = torch.zeros_like(ids, dtype=torch.bool)
    special[:, 0], special[:, -1], special[:, 50:] = True, True, True
    seed = whole(source, 0, 2**40)
    seen, labels = _two_tensors(
        answer(ids, special, mask_id, pieces, torch.Generator().manual_seed(seed)), ids.shape
    )
    chosen = labels != IGNORE
    masked, kept = (chosen & (seen == x) for x in (mask_id, ids))
    swapped = chosen & ~masked & ~kept
    share = chosen[~special].float().mean().item()
    parts = [part.sum().item() / max(1, chosen.sum().item()) for part in (masked, swapped, kept)]
    said = ", ".join(f"{100 * part:.0f} %" for part in parts)
    others = seen[swapped]
    again = _two_tensors(
        answer(ids, special, mask_id, pieces, torch.Generator().manual_seed(seed)), ids.shape
    )
    other_seed = torch.Generator().manual_seed(seed + 1)
    elsewhere = _two_tensors(answer(ids, special, mask_id, pieces, other_seed), ids.shape)
    for found in (
        _Wrong(
            not chosen.any() or bool((labels[chosen] != ids[chosen]).any()),
            "the labels are not the pieces that stood there",
            "labels: ids where a piece was chosen, -100 elsewhere. Take them before you hide.",
        ),
        _Wrong(
            bool((chosen & special).any()),
            "special pieces are chosen",
            "Choose only where ~special.",
        ),
        _Wrong(
            bool(((seen != ids) & ~chosen).any()),
            "pieces change that have no label",
            "What the model sees differs from ids only where a piece was chosen.",
        ),
        _Wrong(
            bool((chosen == chosen[0]).all()),
            "every text has its holes at the same positions",
            "Draw one number for each piece: torch.rand(ids.shape, generator=generator).",
        ),
        _Wrong(
            abs(share - 0.15) > 0.012,
            f"{100 * share:.0f} % of the pieces are chosen, not 15 %",
            "Choose where a random number is below 0.15, and count special pieces neither way.",
        ),
        _Wrong(
            parts[0] > 0.99,
            "every chosen piece becomes the mask",
            "80 % do; 10 % become a random piece, and 10 % stay as they are.",
        ),
        _Wrong(
            parts[1] < 0.01,
            "no chosen piece becomes a random one",
            "80 % become the mask, 10 % a random piece, and 10 % stay as they are.",
        ),
        _Wrong(
            max(abs(a - b) for a, b in zip(parts, (0.8, 0.1, 0.1), strict=True)) > 0.035,
            f"of the chosen pieces {said} are masked, swapped and kept",
            "80 % mask, 10 % random, 10 % unchanged: one random number decides among the three.",
        ),
        _Wrong(
            len(others.unique()) < 100 or int(others.max()) < 0.9 * pieces,
            "the random pieces are not drawn from the whole vocabulary, one for each place",
            "torch.randint(pieces, ids.shape, generator=generator).",
        ),
        _Wrong(
            not torch.equal(again[0], seen) or not torch.equal(again[1], labels),
            "the same seed gives other holes the second time",
            "Pass generator=generator to every random function.",
        ),
        _Wrong(
            torch.equal(elsewhere[1], labels),
            "another seed gives the same holes",
            "Use the generator that you are given, not one of your own.",
        ),
    ):
        if found.wrong:
            raise Misconception(found.message, found.look)


@exercise(look="Draw which pieces are chosen, then what happens to each.", verify=_holes)
def hide(
    ids: Tensor, special: Tensor, mask_id: int, pieces: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What the model sees (B, L) and the labels (B, L), -100 where nothing was chosen.

    15 % of the pieces (B, L) that are not special are chosen: 80 % of them become ``mask_id``,
    10 % a random one of ``pieces``, 10 % stay. Devlin et al. 2019, arXiv 1810.04805.
    """
    chosen = (torch.rand(ids.shape, generator=generator) < 0.15) & ~special
    fate = torch.rand(ids.shape, generator=generator)
    other = torch.randint(pieces, ids.shape, generator=generator)
    seen = torch.where(chosen & (fate >= 0.9), other, ids)
    return seen.masked_fill(chosen & (fate < 0.8), mask_id), ids.masked_fill(~chosen, IGNORE)


INVERTED = "you keep the positions that were not hidden"


def _masked_shape(result: Any, model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Any:
    """Name a wrong selection by its shape."""
    labels, classes = batch["labels"], model.config.vocab_size
    masked = int((labels != IGNORE).sum())
    if not isinstance(result, Tensor) or result.shape == (masked, classes):
        return result
    named = {
        (*labels.shape, classes): "you return logits at all positions, shape (B, L, V)",
        (int((labels > 0).sum()), classes): "piece 0 is lost: only -100 means no label",
        (labels.numel() - masked, classes): INVERTED,
        (masked, model.config.hidden_size): "these are the hidden states, not logits",
    }
    if tuple(result.shape) in named:
        raise Misconception(named[tuple(result.shape)])
    if result.ndim == 2 and result.shape[1] == classes:
        raise Misconception(
            f"you select {len(result)} positions, but {masked} have a label",
            "Select where labels != -100: attention_mask marks padding, and not every hidden piece "
            "became the mask.",
        )
    return result


def _head_runs_on_few(answer: Answer, draws: Draws) -> None:
    model, batch = draws[0]
    seen: list[int] = []
    count = model.lm_head.register_forward_hook(lambda _, x, y: seen.append(y[..., 0].numel()))
    logits = answer(model, batch)
    count.remove()
    if not logits.requires_grad:
        raise Misconception(
            "the numbers are right, but no gradient flows back through them",
            "The student learns from these logits: leave out .detach() and torch.no_grad().",
        )
    wanted = int((batch["labels"] != IGNORE).sum())
    if sum(seen) > wanted:
        raise Misconception(
            f"the numbers are right, but the head ran at {sum(seen)} positions where {wanted} are "
            "enough",
            "Gather first, then apply the head: the other order computes the full (B, L, V) "
            "logits, which is what we want to avoid.",
        )


def _logits(
    model: PreTrainedModel,
    batch: Mapping[str, Tensor],
    *,
    keep: Callable[[Tensor], Tensor] = lambda labels: labels != IGNORE,
    masked: bool = True,
    of: Callable[[Tensor], Tensor] = lambda logits: logits,
) -> Tensor:
    """The logits with some parts replaced by slips."""
    mask = batch["attention_mask"] if masked else None
    states = model.base_model(batch["input_ids"], attention_mask=mask).last_hidden_state
    return of(model.lm_head(states[keep(batch["labels"])]))


def _labels(
    source: torch.Generator, batch: int, length: int, classes: int, ignore: int = IGNORE
) -> Tensor:
    """(B, L) labels: about a third of the positions have one, piece 0 among them."""
    labels = torch.randint(1, classes, (batch, length), generator=source)
    hidden = torch.rand(batch, length, generator=source) < 0.35
    hidden[0, 0], hidden[-1, -1], hidden[0, 2] = True, False, False
    hidden[:, 1] = True  # no text without a hole
    if ignore != 0:
        labels[0, 0] = 0  # piece 0 is a piece like any other
    return torch.where(hidden, labels, ignore)


def _models(source: torch.Generator) -> Draws:
    """A student of two layers under a teacher of three; padding, and holes."""
    torch_state = torch.get_rng_state()
    torch.manual_seed(whole(source, 0, 2**40))
    models = []
    for width, depth in ((8, 2), (12, 3)):
        sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": 2}
        config = xlmr_config({**sizes, "intermediate_size": 16}, 40, 12)
        config.initializer_range = 0.8  # maps that are not flat
        # float64: the order of additions changes no digit that is compared
        models.append(build_student(config, "masked-lm").double().eval())
    torch.set_rng_state(torch_state)
    draws = []
    for alpha, T in ((0.3, uniform(source, 1.5, 3.0)), (0.8, uniform(source, 0.4, 0.7))):
        ids = torch.randint(5, 40, (3, 9), generator=source)
        mask = torch.ones_like(ids)
        mask[1, 6:] = mask[2, 4:] = 0
        labels = _labels(source, 3, 9, 40).masked_fill(mask == 0, IGNORE)
        if (labels != IGNORE).sum() == (mask == 0).sum():
            labels[0, 1] = IGNORE  # else not hidden and not padding would be equally many
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        draws.append((*models, batch, {0: 2, 1: 0} if alpha < 0.5 else {0: 1, 1: 2}, T, alpha))
    return draws


@exercise(
    look="Select the hidden states at the masked positions, then apply the head only to those.",
    draws=lambda source: [(model, batch) for model, _, batch, *_ in _models(source)],
    read=_masked_shape,
    slips={
        INVERTED: Slip(partial(_logits, keep=lambda labels: labels == IGNORE)),
        "the positions come in another order": Slip(
            partial(_logits, of=lambda logits: logits.flip(0)),
            "Keep the order of labels[labels != -100]: row after row.",
        ),
        "the model reads the padding too": Slip(
            partial(_logits, masked=False), "Pass attention_mask to the base model."
        ),
        "these are probabilities, not logits": Slip(
            partial(_logits, of=lambda logits: logits.softmax(-1)),
            "Return what the head gives; the loss takes its own log-softmax.",
        ),
        "these are log-probabilities, not logits": Slip(
            partial(_logits, of=lambda logits: logits.log_softmax(-1)),
            "Return what the head gives; the loss takes its own log-softmax.",
        ),
    },
    extra=_head_runs_on_few,
)
def at_holes(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits (M, V) at the hidden pieces: input_ids, attention_mask and labels are each (B, L)."""
    return _logits(model, batch)


def _ask(
    model: Answer,
    ids: Tensor,
    mask_id: int,
    *,
    read: int = 0,
    hidden: str = "one",
    of: Callable[[Tensor], Tensor] = lambda logits: logits.softmax(-1),
) -> Tensor:
    """The answers with some parts replaced by slips; ``read``: how far from the hole."""
    places = torch.arange(1, ids.shape[1] - 1)
    copies = ids.repeat(len(places), 1)
    if hidden == "one":
        copies[places - 1, places] = mask_id
    elif hidden == "all":
        copies[:, 1:-1] = mask_id
    return of(model(input_ids=copies).logits[places - 1, places + read])


def _one_row_a_hole(result: Any, model: PreTrainedModel, ids: Tensor, mask_id: int) -> Any:
    length, pieces = ids.shape[1], model.config.vocab_size
    named = {
        (length, pieces): "there is a row for <s> and </s> too, or there is no row for each hole",
        (length - 2, length, pieces): "each copy has answers at all its positions",
        (1, length, pieces): "this is the answer to one text, with no copies of it",
    }
    if isinstance(result, Tensor) and tuple(result.shape) in named:
        raise Misconception(
            named[tuple(result.shape)],
            "One copy for each place from 1 to L - 2; keep of each only the answer at its hole.",
        )
    return result


def _asked_once(answer: Answer, draws: Draws) -> None:
    calls: list[int] = []
    count = draws[0][0].base_model.register_forward_hook(lambda *_: calls.append(1))
    answer(*draws[0])
    count.remove()
    if len(calls) > 1:
        raise Misconception(
            f"the numbers are right, but the model was asked {len(calls)} times",
            "Ask once about all copies, a batch of L - 2 texts: that is much faster.",
        )


@exercise(
    look="As many copies of the text as holes; in copy i, hide and read one place.",
    extra=_asked_once,
    draws=lambda source: [
        (model, torch.randint(5, 40, (1, n), generator=source), 4)
        for n, (model, *_) in zip((6, 9), _models(source), strict=True)
    ],
    read=_one_row_a_hole,
    slips={
        "nothing was hidden: the model sees each piece that it is asked for": Slip(
            partial(_ask, hidden="nothing"), "Write mask_id into copy i at its place."
        ),
        "all pieces are hidden at once": Slip(
            partial(_ask, hidden="all"), "Hide one place in each copy."
        ),
        "the answers are read one place after the hole": Slip(
            partial(_ask, read=1), "Read at the place that you hid: places start at 1."
        ),
        "the answers are read one place before the hole": Slip(
            partial(_ask, read=-1), "Read at the place that you hid: places start at 1."
        ),
        "these are logits, not probabilities": Slip(
            partial(_ask, of=lambda logits: logits), "Finish with .softmax(-1)."
        ),
        "these are log-probabilities": Slip(
            partial(_ask, of=lambda logits: logits.log_softmax(-1)), "Finish with .softmax(-1)."
        ),
        "the softmax runs over the holes": Slip(
            partial(_ask, of=lambda logits: logits.softmax(0)), "The pieces are the last axis."
        ),
    },
)
def hole_by_hole(model: Answer, ids: Tensor, mask_id: int) -> Tensor:
    """(L - 2, V): row i is what the model says of ids (1, L) with only piece i + 1 hidden."""
    return _ask(model, ids, mask_id)


def _one_layer_each(result: Any, student_layers: int, teacher_layers: int) -> Tensor:
    if isinstance(result, Tensor) and result.ndim != 1:
        raise Misconception(
            f"your function returned shape {tuple(result.shape)}, but a list is wanted"
        )
    if not isinstance(result, list | tuple | range | Tensor | np.ndarray):
        raise Misconception(
            f"your function returned a {type(result).__name__}, but a list is wanted",
            "One teacher layer for each student layer, in the student's order: [3, 7, ...].",
        )
    if len(result) != student_layers:
        raise Misconception(
            f"for {student_layers} student layers you name {len(result)} teacher layers",
            "Each student layer learns from one teacher layer: a list of S numbers.",
        )
    layers = torch.as_tensor(result if isinstance(result, Tensor) else np.asarray([*result]))
    if layers.is_floating_point():
        raise Misconception(
            "your layers are fractions (3.0 is one too), and a layer has a whole number",
            "Divide with // rather than /.",
        )
    return layers


@exercise(
    look="Cut the teacher into S equal groups; each student layer takes the last one of its group.",
    draws=lambda source: [(6, 24), (2, 4), (3, 4), (3, 12), (5, 12), (4, 4), (1, 7)],
    read=_one_layer_each,
    slips={
        "the layers are counted from 1": Slip(
            lambda s, t: [(i + 1) * t // s for i in range(s)], "Count from 0: subtract 1."
        ),
        "i counts from 0, so i * T / S is one group too low": Slip(
            lambda s, t: [i * t // s - 1 for i in range(s)], "(i + 1) * T // S - 1."
        ),
        "you take the first layer of each group": Slip(
            partial(layer_map, how="skip"),
            "Take the last one, so that the student's last layer learns from the teacher's last.",
        ),
        "you take the top layers only": Slip(
            partial(layer_map, how="last"), "Spread the student's layers evenly over the teacher's."
        ),
        "you take the bottom layers only": Slip(
            lambda s, t: range(s), "Spread the student's layers evenly over the teacher's."
        ),
        "the size of a group is rounded before it is multiplied": Slip(
            lambda s, t: [(i + 1) * (t // s) - 1 for i in range(s)],
            "Multiply first, then divide: 4 // 3 is 1 and never reaches the last layer.",
        ),
        "fractions are rounded to the nearest layer": Slip(
            lambda s, t: [round((i + 1) * t / s) - 1 for i in range(s)], "Divide with //."
        ),
        "fractions are rounded up": Slip(
            lambda s, t: [-(-(i + 1) * t // s) - 1 for i in range(s)], "Divide with //."
        ),
        "the layers run from the first to the last, both included": Slip(
            lambda s, t: torch.linspace(0, t - 1, s).long(),
            "The first student layer takes the end of the first group, not teacher layer 0.",
        ),
        "the list runs backwards": Slip(lambda s, t: layer_map(s, t)[::-1], "Layer 0 comes first."),
    },
)
def match_layers(student_layers: int, teacher_layers: int) -> list[int]:
    """S teacher layers (counted from 0): the last of each of S equal groups."""
    return layer_map(student_layers, teacher_layers)


def _stage_one(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    batch: Mapping[str, Tensor],
    matches: Mapping[int, int],
    T: float,
    alpha: float,
    *,
    layers: Callable[[Mapping[int, int]], list[int]] = lambda matches: [*matches.values()],
    temperature: Callable[[float], float] = lambda T: T,
    weights: Callable[[float], tuple[float, float]] = lambda a: (a, 1 - a),
    everywhere: bool = False,
    over: Callable[[Tensor, Tensor], Tensor] = lambda mask, hidden: mask,
    kind: str = "kl",
    swapped: bool = False,
    maps_swapped: bool = False,
    heated: bool = False,
    soft_loss: Answer = losses.soft_target_loss,
) -> Tensor:
    """The loss with some parts replaced by slips."""
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    mask = text["attention_mask"]
    hidden = mask == 1 if everywhere else batch["labels"] != IGNORE
    with torch.no_grad(), capture(teacher) as theirs, only_positions(teacher, hidden):
        answers = teacher(**text).logits
    with capture(student) as ours, only_positions(student, hidden):
        logits = student(**text).logits
    logits, answers = (answers, logits) if swapped else (logits, answers)
    if heated:
        logits, answers = logits / T, answers / T
    soft = soft_loss(logits, answers, temperature(T))
    maps = [ours[i] for i in matches], [theirs[j] for j in layers(matches)]
    first, second = maps[::-1] if maps_swapped else maps
    attention = losses.attention_loss(first, second, over(mask, hidden), kind)
    a, b = weights(alpha)
    return a * soft + b * attention


def _with_gradients(result: Any, student: nn.Module, teacher: nn.Module, *rest: Any) -> Any:
    """The loss, and its gradient in the student's weights."""
    if not isinstance(result, Tensor) or result.ndim:
        shape = f" of shape {tuple(result.shape)}" if isinstance(result, Tensor) else ""
        raise Misconception(
            f"your function returned a {type(result).__name__}{shape}, but a scalar tensor is "
            "wanted",
            "Return the loss itself, so that backward() can be called on it.",
        )
    if not result.requires_grad:
        raise Misconception(
            "no gradient reaches the student",
            "torch.no_grad() belongs around the teacher only, and capture_maps has it inside: use "
            "capture for the student.",
        )
    options: dict[str, Any] = {"retain_graph": True, "allow_unused": True}
    if any(g is not None for g in torch.autograd.grad(result, [*teacher.parameters()], **options)):
        raise Misconception(
            "the gradient reaches the teacher", "Run the teacher inside torch.no_grad()."
        )
    each = torch.autograd.grad(result, [*student.parameters()], materialize_grads=True, **options)
    return result, torch.cat([g.flatten() for g in each])


@exercise(
    look="Teacher without gradients, student with them, then the two losses and their weights.",
    draws=_models,
    read=_with_gradients,
    seconds=20.0,
    slips={
        "alpha weights the attention": Slip(
            partial(_stage_one, weights=lambda a: (1 - a, a)), "alpha belongs to the soft targets."
        ),
        "the two terms are added without weights": Slip(
            partial(_stage_one, weights=lambda a: (1, 1)), "Use alpha and 1 - alpha."
        ),
        "the attention term is missing": Slip(
            partial(_stage_one, weights=lambda a: (a, 0)), "Add (1 - alpha) times attention_loss."
        ),
        "the soft targets are missing": Slip(
            partial(_stage_one, weights=lambda a: (0, 1 - a)), "Add alpha times soft_target_loss."
        ),
        "the temperature is left at 1": Slip(
            partial(_stage_one, temperature=lambda T: 1.0), "Pass T to soft_target_loss."
        ),
        "the student's layers meet the teacher's first ones": Slip(
            partial(_stage_one, layers=lambda m: [0, 1]),
            "Student layer i learns from teacher layer matches[i].",
        ),
        "the teacher's layers are sorted, and lose their partners": Slip(
            partial(_stage_one, layers=lambda m: sorted(m.values())),
            "Take them in the order of matches: [theirs[j] for j in matches.values()].",
        ),
        "teacher and student are swapped in the soft targets": Slip(
            partial(_stage_one, swapped=True), "The student's logits come first."
        ),
        "the logits are divided by T twice": Slip(
            partial(_stage_one, heated=True), "losses.soft_target_loss divides by T itself."
        ),
        "T squared is there twice": Slip(
            partial(_stage_one, soft_loss=lambda a, b, T: T**2 * losses.soft_target_loss(a, b, T)),
            "losses.soft_target_loss has it.",
        ),
        "the teacher's logits are matched by their squared error": Slip(
            partial(_stage_one, soft_loss=lambda a, b, T: F.mse_loss(a, b)),
            "Call losses.soft_target_loss.",
        ),
        "the soft targets count pieces in plain sight": Slip(
            partial(_stage_one, everywhere=True), "Only where the labels are not -100."
        ),
        "the attention term counts padding": Slip(
            partial(_stage_one, over=lambda mask, hidden: torch.ones_like(mask)),
            "Pass batch['attention_mask'] to attention_loss.",
        ),
        "the attention term counts only the rows of hidden pieces": Slip(
            partial(_stage_one, over=lambda mask, hidden: hidden.long()),
            "Pass batch['attention_mask'] to attention_loss.",
        ),
        "teacher and student are swapped in the maps": Slip(
            partial(_stage_one, maps_swapped=True), "The student's maps come first."
        ),
        "the attention term is the MSE": Slip(
            partial(_stage_one, kind="mse"), "Leave attention_loss at its row-wise KL."
        ),
    },
)
def stage_one_loss(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    batch: Mapping[str, Tensor],
    matches: Mapping[int, int],
    T: float,
    alpha: float,
) -> Tensor:
    """Scalar: alpha * soft targets at the hidden pieces + (1 - alpha) * row-wise attention KL."""
    return _stage_one(student, teacher, batch, matches, T, alpha)


class _Line:
    """``loss_of(batch)``: the mean squared error of one weight over the hidden pieces.

    ``piled`` says whether it was asked twice with no backward pass between.
    """

    def __init__(self, source: torch.Generator) -> None:
        self.start, self.left = normal(source, 3, scale=1.0), normal(source, 3)
        self.weight = self.start.clone().requires_grad_()
        self.again()

    def again(self) -> None:
        self.weight.data, self.weight.grad = self.start.clone(), self.left.clone()
        self.piled = self.waits = False

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        self.piled |= self.waits
        self.waits = True
        loss = ((batch["x"] @ self.weight - 1) ** 2)[batch["labels"] != IGNORE].mean()
        loss.register_hook(lambda _: setattr(self, "waits", False))
        return loss


def _groups(source: torch.Generator) -> Draws:
    """Groups of batches whose numbers of holes differ; a schedule that halves the rate."""
    draws = []
    for sizes in ((2,), (3, 2), (1, 4, 2)):
        line, groups = _Line(source), []
        for count in sizes:
            batches = []
            for i in range(count):
                labels = _labels(source, 2 + i % 2, 5 + i, 9)
                labels[0, : i + 2] = 0  # piece 0 is a piece; how many holes there are differs
                mask, x = torch.ones_like(labels), normal(source, *labels.shape, 3, scale=1.0)
                batches.append({"x": x, "labels": labels, "attention_mask": mask})
            groups.append(batches)
        optimizer = torch.optim.SGD([line.weight], lr=0.1)
        draws.append(
            (line, groups, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5))
        )
    return draws


def _after(
    result: Any, line: _Line, groups: Any, optimizer: torch.optim.Optimizer, schedule: Any
) -> tuple[Tensor, Tensor, Tensor]:
    weight, piled, rate = line.weight.detach().clone(), line.piled, schedule.get_last_lr()
    line.again()
    optimizer.param_groups[0]["lr"] = 0.1
    schedule.last_epoch = 0
    schedule._last_lr = [0.1]
    values = numbers(result, len(groups))
    if piled:
        raise Misconception(
            "two batches were asked with no backward pass between",
            "Call backward() inside the loop: only one batch's graph is in memory then.",
        )
    return values, weight, value_of(rate)


def _accumulate(
    loss_of: Answer,
    groups: list[list[Mapping[str, Tensor]]],
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    *,
    count: Callable[[Mapping[str, Tensor]], Any] = lambda b: (b["labels"] != IGNORE).sum().item(),
    total: Callable[[list[Any]], Any] = sum,
    pull: Callable[[Any], Any] = lambda total: 1,
    zero: str = "group",
    steps: str = "group",
    rates: str = "group",
    reported: bool = True,
) -> list[float]:
    """The updates with some parts replaced by slips; "group", "batch", "end" or "never".

    ``pull``: a factor of the gradient only.
    """
    history = []
    for batches in groups:
        counts = [count(batch) for batch in batches]
        if zero == "group":
            optimizer.zero_grad()
        mean, plain = 0.0, 0.0
        for batch, n in zip(batches, counts, strict=True):
            if zero == "batch":
                optimizer.zero_grad()
            raw = loss_of(batch)
            loss = raw * n / total(counts)
            (loss * pull(total(counts))).backward()
            mean, plain = mean + loss.item(), plain + raw.item() / len(batches)
            if steps == "batch":
                optimizer.step()
            if rates == "batch":
                schedule.step()
        if steps == "group":
            optimizer.step()
        if zero == "end":
            optimizer.zero_grad()
        if rates == "group":
            schedule.step()
        history.append(mean if reported else plain)
    if steps == "end":
        optimizer.step()
    return history


@exercise(
    look="One backward for each batch, weighted by its hidden pieces; one update for each group.",
    draws=_groups,
    read=_after,
    slips={
        "this is a mean of means: a piece in a batch with few holes counts more": Slip(
            partial(_accumulate, count=lambda batch: 1), "Weigh each batch by its hidden pieces."
        ),
        "the gradients are added up, not averaged": Slip(
            partial(_accumulate, count=lambda batch: 1, total=lambda counts: 1),
            "Multiply each loss by the batch's share of the hidden pieces.",
        ),
        "each loss is multiplied by its count, but not divided by the sum": Slip(
            partial(_accumulate, total=lambda counts: 1), "Divide by the group's hidden pieces."
        ),
        "the losses are right, but their gradients are not divided by the sum of the counts": Slip(
            partial(_accumulate, pull=lambda total: total),
            "Call backward() on the loss times n / sum(counts).",
        ),
        "the batches are weighed by all their pieces, not by the hidden ones": Slip(
            partial(_accumulate, count=lambda batch: batch["labels"].numel()),
            "Count where the labels are not -100.",
        ),
        "piece 0 is not counted": Slip(
            partial(_accumulate, count=lambda batch: (batch["labels"] > 0).sum().item()),
            "Only -100 means that there is no label.",
        ),
        "the batches are weighed by their texts": Slip(
            partial(_accumulate, count=lambda batch: len(batch["labels"])),
            "Count the hidden pieces: where the labels are not -100.",
        ),
        "the gradients of the group before are still in this one": Slip(
            partial(_accumulate, zero="never"), "Call optimizer.zero_grad() once for each group."
        ),
        "gradients that were there before the first step are added": Slip(
            partial(_accumulate, zero="end"),
            "Clear them before backward(), not at the end: optimizer.zero_grad().",
        ),
        "there is an update after each batch": Slip(
            partial(_accumulate, steps="batch", zero="batch"),
            "Call optimizer.step() after a group's loop.",
        ),
        "there is an update after each batch, and it repeats those before it": Slip(
            partial(_accumulate, steps="batch"), "Call optimizer.step() after a group's loop."
        ),
        "only the last batch of a group is in its update": Slip(
            partial(_accumulate, zero="batch"), "Call zero_grad() before a group's loop."
        ),
        "there is one update, after all groups": Slip(
            partial(_accumulate, steps="end"), "Call optimizer.step() for each group."
        ),
        "the weights did not move": Slip(
            partial(_accumulate, steps="never"), "Call optimizer.step() after a group's loop."
        ),
        "the learning rate stays where it is": Slip(
            partial(_accumulate, rates="never"), "Call schedule.step() after each update."
        ),
        "the learning rate changes with each batch": Slip(
            partial(_accumulate, rates="batch"), "One schedule.step() for each update."
        ),
        "the updates are right, but the numbers returned are means of means": Slip(
            partial(_accumulate, reported=False), "Add up the weighted losses."
        ),
    },
)
def accumulated_steps(
    loss_of: Answer,
    groups: list[list[Mapping[str, Tensor]]],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> list[float]:
    """One update from each group of batches, as if it were one batch; the mean loss over its hidden
    pieces.

    ``loss_of(batch)`` is the mean over the hidden pieces of one batch.
    """
    return _accumulate(loss_of, groups, optimizer, schedule)


def _scalar(result: Any, *draw: Any) -> Any:
    """A number counts as a scalar tensor."""
    return value_of(result) if is_number(result) else result


def _count(
    pieces: Tensor,
    labels: Tensor,
    vocabulary: int,
    *,
    more: float = 1.0,
    keep: Callable[[Tensor], Tensor] = lambda labels: labels[labels != IGNORE],
    by: Callable[[Tensor], Tensor] = torch.mean,
    log: Callable[[Tensor], Tensor] = torch.log,
    size: Callable[[Tensor, int], Any] = lambda counts, n: counts.sum(),
) -> Tensor:
    """The floor with some parts replaced by slips."""
    counts = torch.bincount(pieces, minlength=vocabulary) + more
    return by(-log(counts / size(counts, len(pieces)))[keep(labels)])


@exercise(
    look="Frequencies from the training pieces, then their mean surprise at the hidden ones.",
    draws=lambda source: [
        (
            torch.cat([torch.randint(used, (n,), generator=source), torch.zeros(9).long()]),
            _labels(source, b, length, size),
            size,
        )
        for n, used, b, length, size in ((60, 7, 3, 9, 12), (200, 20, 2, 14, 20))
    ],
    read=_scalar,
    slips={
        "the mean runs over the training pieces": Slip(
            lambda pieces, labels, n: _count(pieces, pieces, n),
            "Measure at the hidden pieces of labels: held-out text.",
        ),
        "the frequencies come from the labels": Slip(
            lambda pieces, labels, n: _count(labels[labels != IGNORE], labels, n),
            "That peeks: count the training pieces.",
        ),
        "a piece starts at less than one": Slip(partial(_count, more=0.5), "Add 1 to each count."),
        "the counts are divided by the number of pieces without the added ones": Slip(
            partial(_count, size=lambda counts, n: n),
            "Divide by the sum of the counts: add 1 first.",
        ),
        "piece 0 is left out": Slip(
            partial(_count, keep=lambda labels: labels[labels > 0]), "Only -100 means: no label."
        ),
        "positions without a label count as piece 0": Slip(
            partial(_count, keep=lambda labels: labels.clamp_min(0)), "Leave out labels of -100."
        ),
        "the losses are summed, not averaged": Slip(
            partial(_count, by=torch.sum), "Take the mean."
        ),
        "this is the perplexity": Slip(
            lambda *draw: _count(*draw).exp(), "Stop at the mean, in nats."
        ),
        "the sign is wrong": Slip(lambda *draw: -_count(*draw), "A loss is minus the logarithm."),
        "the logarithms are to base 2": Slip(partial(_count, log=torch.log2), "Use torch.log."),
        "this is the entropy of the frequencies": Slip(
            lambda pieces, labels, n: torch.special.entr(
                (c := torch.bincount(pieces, minlength=n) + 1.0) / c.sum()
            ).sum(),
            "Look up the frequency of each hidden piece, then take the mean.",
        ),
    },
)
def counting_floor(pieces: Tensor, labels: Tensor, vocabulary: int) -> Tensor:
    """Scalar, nats: the loss at ``labels`` (B, L) of a model that knows only how frequent each
    piece is among ``pieces`` (n,); every count starts at 1."""
    return _count(pieces, labels, vocabulary)


def _constant(
    logits: Tensor,
    T: float,
    *,
    heat: Callable[[float], float] = lambda T: T,
    power: int = 2,
    fixed: Callable[[Tensor, Tensor], Tensor] = lambda p, logits: p.mean(0),
    turned: bool = False,
    by: Callable[[Tensor], Tensor] = torch.mean,
    entropy: bool = True,
) -> Tensor:
    """The floor with some parts replaced by slips; ``fixed``: the one answer."""
    p = (logits / heat(T)).softmax(-1)
    m = fixed(p, logits / heat(T)).expand_as(p)
    p, m = (m, p) if turned else (p, m)
    own = torch.xlogy(p, p) if entropy else torch.zeros_like(p)
    return T**power * by((own - torch.xlogy(p, m.clamp_min(1e-30))).sum(-1))


@exercise(
    look="The entropy of the mean answer, minus the mean entropy of the answers, times T squared.",
    draws=lambda source: [
        (normal(source, m, v, scale=2.0), uniform(source, *ends))
        for m, v, ends in ((5, 7, (1.5, 3.0)), (9, 4, (0.5, 0.8)))
    ],
    read=lambda result, *draw: refuse_nan(
        _scalar(result),
        "your function returned NaN: 0 log 0",
        "torch.special.entr(p) is -p log p, and 0 where p is 0.",
    ),
    slips={
        "the factor T squared is missing": Slip(
            partial(_constant, power=0), "Multiply by T * T, as soft_target_loss does."
        ),
        "there is only one factor T": Slip(partial(_constant, power=1), "Multiply by T * T."),
        "the temperature is left at 1 in the softmax": Slip(
            partial(_constant, heat=lambda T: 1.0), "Divide the logits by T."
        ),
        "the fixed answer is the uniform one": Slip(
            partial(_constant, fixed=lambda p, z: torch.full_like(p[0], 1 / p.shape[-1])),
            "That is a student that knows nothing. The best fixed answer is the mean of p.",
        ),
        "the fixed answer is the softmax of the mean logits": Slip(
            partial(_constant, fixed=lambda p, z: z.mean(0).softmax(-1)),
            "Take the softmax of each row first, then their mean.",
        ),
        "the mean runs over the pieces, not over the holes": Slip(
            lambda logits, T: (
                T**2
                * (
                    torch.special.entr((p := (logits / T).softmax(-1)).mean(-1)).sum()
                    - torch.special.entr(p).sum(-1).mean()
                )
            ),
            "p.mean(0) has one entry for each of the V pieces.",
        ),
        "the divergence is turned around: KL(m || p)": Slip(
            partial(_constant, turned=True), "The teacher's answers p come first."
        ),
        "the holes are summed, not averaged": Slip(
            partial(_constant, by=torch.sum), "Take the mean over the holes."
        ),
        "this is the entropy of the mean answer only": Slip(
            partial(_constant, entropy=False), "Subtract the mean entropy of the answers."
        ),
        "the sign is wrong: a divergence is never negative": Slip(
            partial(_constant, by=lambda rows: -rows.mean()),
            "The entropy of the mean is the larger one.",
        ),
    },
    edge_case="where the teacher is certain",
    edges=lambda source: [(1000.0 * torch.eye(4)[torch.randint(3, (6,), generator=source)], 2.0)],
)
def constant_floor(logits: Tensor, T: float) -> Tensor:
    """Scalar: the soft-target loss at temperature T of a model that always gives the mean of the
    teacher's answers; ``logits`` are the teacher's, (M, V)."""
    return _constant(logits, T)


def _top(
    logits: Tensor,
    k: int,
    T: float,
    *,
    heat: Callable[[float], float] = lambda T: T,
    of_top: Callable[[Tensor], Tensor] = lambda top: top,
    of_tail: Callable[[Tensor], Tensor] = torch.log,
    renormalized: bool = False,
    least: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """What is kept, with some parts replaced by slips."""
    log_p = (logits / heat(T)).log_softmax(-1)
    top, pieces = log_p.topk(k, dim=-1, largest=not least)
    tail = of_tail((1 - top.exp().sum(-1)).clamp_min(1e-8))  # a certain teacher leaves nothing
    return pieces, of_top(top.log_softmax(-1) if renormalized else top), tail


def _three(result: Any, logits: Tensor, k: int, T: float) -> tuple[Tensor, ...]:
    """Pieces in ascending order, with their numbers beside them; and the tail."""
    if not isinstance(result, tuple | list) or len(result) != 3:
        kind = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else ""
        raise Misconception(
            f"your function returned {kind or 'a ' + type(result).__name__}, but three tensors are "
            "wanted",
            "Return pieces, their log-probabilities, and the logarithm of the tail.",
        )
    pieces, top, tail = map(torch.as_tensor, result)
    n = len(logits)
    if pieces.is_floating_point() and not top.is_floating_point():
        raise Misconception(
            "the pieces and their logarithms have changed places",
            "topk returns values first, then their numbers; you return the numbers first.",
        )
    if pieces.shape != (n, k) or top.shape != (n, k) or tail.shape != (n,):
        raise Misconception(
            f"your tensors have the shapes {[tuple(x.shape) for x in (pieces, top, tail)]}",
            "(M, k), (M, k) and (M,) are wanted: topk along the last axis.",
        )
    order = pieces.argsort(-1)
    return pieces.gather(-1, order), top.gather(-1, order), tail


@exercise(
    look="Log-softmax at the temperature, topk, and what is left of 1.",
    draws=lambda source: [
        (normal(source, m, v, scale=1.5), k, uniform(source, *ends))
        for m, v, k, ends in ((4, 30, 5, (1.5, 3.0)), (6, 20, 3, (0.8, 0.95)))
    ],
    read=_three,
    slips={
        "the temperature is missing": Slip(
            partial(_top, heat=lambda T: 1.0), "Divide logits by T."
        ),
        "the logits are multiplied by the temperature": Slip(
            partial(_top, heat=lambda T: 1 / T), "Divide logits by T."
        ),
        "these are probabilities, and logarithms are wanted": Slip(
            partial(_top, of_top=torch.exp), "Keep log p: .log_softmax(-1)."
        ),
        "the tail is a probability, and its logarithm is wanted": Slip(
            partial(_top, of_tail=lambda tail: tail), "Finish with .log()."
        ),
        "the tail is empty": Slip(
            partial(_top, of_tail=lambda tail: torch.zeros_like(tail)),
            "1 minus what the top holds.",
        ),
        "the tail is the mass of the top": Slip(
            partial(_top, of_tail=lambda tail: (1 - tail).log()), "It is what the top leaves of 1."
        ),
        "the top is divided by its sum, as if there were no tail": Slip(
            partial(_top, renormalized=True), "Keep the probabilities among all pieces."
        ),
        "these are the unlikeliest pieces": Slip(partial(_top, least=True), "topk: the largest."),
        "these are logits, not log-probabilities": Slip(
            lambda logits, k, T: (
                _top(logits, k, T)[0],
                (logits / T).topk(k).values,
                _top(logits, k, T)[2],
            ),
            "Take the log-softmax over all pieces first.",
        ),
    },
)
def top_and_tail(logits: Tensor, k: int, T: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of logits (M, V) at temperature T: the k likeliest pieces (M, k), their log p (M, k), and the
    logarithm (M,) of the mass of all others."""
    return _top(logits, k, T)


def _cached(
    logits: Tensor,
    pieces: Tensor,
    log_p: Tensor,
    log_tail: Tensor,
    T: float,
    *,
    heat: Callable[[float], float] = lambda T: T,
    power: int = 2,
    with_tail: bool = True,
    among_kept: bool = False,
    turned: bool = False,
    entropy: bool = True,
    by: Callable[[Tensor], Tensor] = torch.mean,
) -> Tensor:
    """The loss with some parts replaced by slips."""
    log_q = (logits / heat(T)).log_softmax(-1)
    tail_q = log_q.scatter(-1, pieces, -torch.inf).logsumexp(-1, keepdim=True)
    top_q = log_q.gather(-1, pieces)
    q = torch.cat([top_q.log_softmax(-1) if among_kept else top_q, tail_q], -1)
    p = torch.cat([log_p, log_tail[:, None]], -1)
    p, q = (q, p) if turned else (p, q)
    terms = p.exp() * ((p if entropy else 0) - q)
    return T**power * by((terms if with_tail else terms[:, :-1]).sum(-1))


def _cached_draws(source: torch.Generator) -> Draws:
    draws = []
    for m, v, k, ends in ((4, 30, 5, (1.5, 3.0)), (6, 20, 3, (0.5, 0.8))):
        T = uniform(source, *ends)
        kept = _top(normal(source, m, v, scale=1.5), k, T)
        draws.append((normal(source, m, v, scale=1.5), *kept, T))
    return draws


@exercise(
    look="The student's log-softmax at T, at the kept pieces; and what these leave of 1.",
    draws=_cached_draws,
    slips={
        "the tail is missing": Slip(
            partial(_cached, with_tail=False), "Add the term with p_* and q_*."
        ),
        "the factor T squared is missing": Slip(partial(_cached, power=0), "Multiply by T * T."),
        "the student's logits are not divided by T": Slip(
            partial(_cached, heat=lambda T: 1.0), "Both sides are at temperature T."
        ),
        "the student's softmax runs over the kept pieces only": Slip(
            partial(_cached, among_kept=True), "Log-softmax over all pieces first, then gather."
        ),
        "teacher and student are swapped": Slip(
            partial(_cached, turned=True), "The teacher's p stands before the logarithms."
        ),
        "this is the cross-entropy, not the KL": Slip(
            partial(_cached, entropy=False), "Subtract from log p: p (log p - log q)."
        ),
        "the holes are summed, not averaged": Slip(
            partial(_cached, by=torch.sum), "Take the mean over the M holes."
        ),
        "the mean runs over the pieces too: the loss is divided by k + 1": Slip(
            lambda z, pieces, *rest: _cached(z, pieces, *rest) / (pieces.shape[1] + 1),
            "Sum over the kept pieces and the tail, then take the mean over the M holes.",
        ),
        "the student's first pieces stand beside the teacher's": Slip(
            lambda z, pieces, p, tail, T: _cached(z, z.topk(pieces.shape[1]).indices, p, tail, T),
            "gather(-1, pieces): the same pieces on both sides.",
        ),
    },
    extra=lambda answer, draws: check_gradients(
        answer, draws[0], teachers=(), reference=cached_loss.reference
    ),
)
def cached_loss(
    logits: Tensor, pieces: Tensor, log_p: Tensor, log_tail: Tensor, T: float
) -> Tensor:
    """Scalar, eq. (10) of comet_lib.losses: the student's logits (M, V) against what is kept of the
    teacher's, pieces (M, k), log p (M, k) and the logarithm (M,) of the mass of all others."""
    return losses.soft_target_loss_topk(logits, pieces, log_p, log_tail, T)
