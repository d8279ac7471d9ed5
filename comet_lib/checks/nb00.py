"""Exercises of notebook 00, the whole game."""

# mypy: disable-error-code=has-type

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from comet_lib import losses
from comet_lib.checks.draws import generator, mask_of, normal, uniform, whole
from comet_lib.checks.framework import (
    Answer,
    Draws,
    Misconception,
    Slip,
    all_close,
    check_gradients,
    exercise,
    numbers,
    refuse_infinity,
    refuse_nan,
    rows_must_sum_to_one,
    value_of,
)


@exercise(
    look="Divide the logits by the temperature, then take the softmax over the last axis.",
    draws=lambda source: [
        (normal(source, *shape), uniform(source, *ends))
        for shape, ends in (((2, 3), (1.5, 4.0)), ((2, 3, 5), (0.3, 0.8)), ((4, 7), (2.0, 9.0)))
    ],
    slips={
        "the logits are multiplied by the temperature": Slip(
            lambda x, t: torch.softmax(x * t, -1), "A high temperature flattens the result: divide."
        ),
        "the softmax runs over the first axis": Slip(
            lambda x, t: torch.softmax(x / t, 0), "The classes are the last axis: dim=-1."
        ),
        "the softmax runs over axis 1, which is the last one only where there are two": Slip(
            lambda x, t: torch.softmax(x / t, 1), "The classes are the last axis: dim=-1."
        ),
        "a temperature below 1 is held at 1": Slip(
            lambda x, t: torch.softmax(x / max(t, 1.0), -1),
            "Below 1 the temperature sharpens the result; divide by it as it is.",
        ),
        "the logits are divided by T squared": Slip(
            lambda x, t: torch.softmax(x / t**2, -1), "T squared belongs to the loss, not here."
        ),
        "the division drops the fractions": Slip(
            lambda x, t: torch.softmax(x // t, -1), "Divide with / rather than //."
        ),
        "the logits have the wrong sign": Slip(
            lambda x, t: torch.softmax(-x / t, -1), "The largest logit has the largest probability."
        ),
        "the softmax is taken twice": Slip(
            lambda x, t: torch.softmax(torch.softmax(x, -1) / t, -1),
            "Divide the logits, not their probabilities.",
        ),
        "one softmax runs over the whole tensor": Slip(
            lambda x, t: torch.softmax((x / t).flatten(), 0).reshape(x.shape),
            "Each row is a distribution of its own: give the axis of the classes (dim=-1).",
        ),
        "these are log-probabilities, not probabilities": Slip(
            lambda x, t: torch.log_softmax(x / t, -1), "Use softmax, not log_softmax."
        ),
        "the temperature is ignored": Slip(
            lambda x, t: torch.softmax(x, -1), "The result must change when the temperature does."
        ),
        "the temperature is applied after the softmax": Slip(
            lambda x, t: torch.softmax(x, -1) / t,
            "Divide the logits, which come before the softmax; then each row sums to 1 again.",
        ),
        "the exponentials are not normalized": Slip(
            lambda x, t: torch.exp(x / t), "Divide by their sum over the last axis."
        ),
        "each class is squashed by itself (a sigmoid)": Slip(
            lambda x, t: torch.sigmoid(x / t), "The classes share a total of 1: that is a softmax."
        ),
    },
    otherwise=rows_must_sum_to_one(
        "the probabilities of a row",
        "Divide by the sum over the last axis, and keep that axis (keepdim=True).",
    ),
    edge_case="with the logits of one text, shape (classes,)",
    edges=lambda source: [(normal(source, 4), uniform(source, 0.3, 4.0))],
)
def soft_targets(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / T) over the last axis."""
    return torch.softmax(logits / temperature, dim=-1)


class _Toy(nn.Module):
    """A small student (mean of embeddings, one layer) that can go back to where it began."""

    def __init__(self, source: torch.Generator, pieces: int = 7, classes: int = 3) -> None:
        super().__init__()
        self.first = nn.Parameter(normal(source, pieces, 4, scale=1.0))
        self.second = nn.Parameter(normal(source, 4, classes, scale=1.0))
        self.began = copy.deepcopy(self.state_dict())
        self.modes: list[bool] = []
        self.graphs: list[bool] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        self.modes.append(self.training)
        self.graphs.append(torch.is_grad_enabled())
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask = real[..., None].to(self.first.dtype)
        return SimpleNamespace(
            logits=torch.tanh((self.first[input_ids] * mask).sum(1)) @ self.second
        )


def _tokenize_numbers(texts: Sequence[str]) -> dict[str, Tensor]:
    """A toy tokenizer, which pads: a text is a list of piece numbers."""
    if isinstance(texts, str):
        raise TypeError("tokenize takes a list of texts, not one text")
    rows = [[int(piece) for piece in text.split()] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask_of([*map(len, rows)])}


def _asked(source: torch.Generator) -> Draws:
    draws = []
    for count, size in ((7, 3), (5, 2), (4, 2)):
        lengths = [1, 6, *(whole(source, 2, 5) for _ in range(count - 2))]  # so that all are padded
        texts = [" ".join(str(whole(source, 0, 6)) for _ in range(length)) for length in lengths]
        draws.append((_Toy(source).eval(), _tokenize_numbers, texts, size))
    return draws


def _in_batches(texts: Sequence[str], size: int) -> list[Sequence[str]]:
    return [texts[start : start + size] for start in range(0, len(texts), size)]


def _ask(
    model: Any,
    tokenize: Any,
    texts: Sequence[str],
    size: int,
    *,
    logits_of: Answer = lambda model, inputs: model(**inputs).logits,
    batches: Answer = _in_batches,
) -> list[tuple[dict[str, Tensor], Tensor]]:
    """The pairs with some parts replaced by slips; with none, the right ones."""
    with torch.no_grad():
        inputs = [tokenize(some) for some in batches(texts, size)]
        return [(one, logits_of(model, one)) for one in inputs]


def _logits_and_sizes(result: Any, model: _Toy, *rest: Any) -> tuple[Tensor, ...]:
    """All logits, the logits of all inputs, and how many texts each pair holds."""
    modes, graphs, model.modes, model.graphs = model.modes, model.graphs, [], []
    if any(modes):
        raise Misconception("the model is asked in training mode", "Leave its mode as it is.")
    if any(graphs):
        raise Misconception(
            "the model keeps what it would need for gradients, which costs memory and time",
            "Call it inside `with torch.no_grad():`.",
        )
    pairs = isinstance(result, list | tuple) and all(
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and isinstance(pair[0], Mapping)
        and isinstance(pair[1], Tensor)
        for pair in result
    )
    if not pairs or not result:
        raise Misconception(
            f"your function returned a {type(result).__name__}, but a list of pairs (inputs, "
            "logits) is wanted",
            "Start an empty list before the loop, append (inputs, logits) in it.",
        )
    again = [model(**inputs).logits for inputs, _ in result]
    for (_, logits), right in zip(result, again, strict=True):
        if logits.shape != right.shape:
            raise Misconception(
                f"the second part of a pair has shape {tuple(logits.shape)}, but the model's "
                f"logits have shape {tuple(right.shape)}",
                "Append model(**inputs).logits as they are.",
            )
    model.modes, model.graphs = [], []
    sizes = torch.tensor([len(logits) for logits in again])
    return torch.cat([logits for _, logits in result]), torch.cat(again), sizes


def _sizes(answer: Answer, draws: Draws) -> None:
    for draw in draws:
        got, wanted = (f(*draw)[2].tolist() for f in (answer, _read_reference))
        if got != wanted:
            raise Misconception(
                f"{len(draw[2])} texts, {draw[3]} at a time, give batches of {wanted}, but yours "
                f"hold {got}",
                "The batches start at 0, size, 2 * size, ...",
            )


def _read_reference(*draw: Any) -> tuple[Tensor, ...]:
    return _logits_and_sizes(_ask(*draw), *draw)


@exercise(
    look="For each batch: tokenize, call the model without gradients, append both to the list.",
    draws=_asked,
    read=_logits_and_sizes,
    slips={
        "these are probabilities, not logits": Slip(
            partial(_ask, logits_of=lambda m, x: m(**x).logits.softmax(-1)),
            "Keep the logits: the loss divides them by the temperature first.",
        ),
        "these are log-probabilities, not logits": Slip(
            partial(_ask, logits_of=lambda m, x: m(**x).logits.log_softmax(-1)),
            "Append model(**inputs).logits as they are.",
        ),
        "the model reads the padding": Slip(
            partial(_ask, logits_of=lambda m, x: m(x["input_ids"]).logits),
            "Hand on the mask, too: model(**inputs).",
        ),
        "the last texts are left out where they do not fill a batch": Slip(
            partial(_ask, batches=lambda x, n: [x[i : i + n] for i in range(0, len(x) - n + 1, n)]),
            "Go on to len(texts): a slice may be shorter.",
        ),
        "only the first batch is returned": Slip(
            partial(_ask, batches=lambda x, n: [x[:n]]), "The return belongs after the loop."
        ),
        "only the last batch is returned": Slip(
            partial(_ask, batches=lambda x, n: [x[(len(x) - 1) // n * n :]]),
            "The list must start before the loop.",
        ),
        "all texts are asked at once": Slip(
            partial(_ask, batches=lambda x, n: [x]),
            "With thousands of texts there is no memory for that: `size` at a time.",
        ),
        "the texts are asked one by one": Slip(
            partial(_ask, batches=lambda x, n: [[one] for one in x]),
            "That is slow: `size` at a time.",
        ),
        "the batches overlap": Slip(
            partial(_ask, batches=lambda x, n: [x[i : i + n] for i in range(len(x))]),
            "range(0, len(texts), size) takes steps of `size`.",
        ),
        "each batch holds the first texts": Slip(
            partial(_ask, batches=lambda x, n: [x[:n] for _ in range(0, len(x), n)]),
            "texts[start : start + size].",
        ),
        "there are `size` batches, not batches of `size` texts": Slip(
            partial(_ask, batches=lambda x, n: [x[i::n] for i in range(n)]),
            "texts[start : start + size].",
        ),
    },
    otherwise=_sizes,
)
def answers(
    model: Any, tokenize: Any, texts: Sequence[str], size: int = 64
) -> list[tuple[dict[str, Tensor], Tensor]]:
    """Pairs (inputs, logits) of ``size`` texts each, the last of the rest, without gradients.

    ``tokenize(list of texts)`` gives inputs, and ``model(**inputs).logits`` the logits (N, C).
    """
    return _ask(model, tokenize, texts, size)


def _kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    *,
    factor: int = 2,
    kind: str = "KL",
    swapped: bool = False,
    reduction: str = "batchmean",
    softened: tuple[int, int] = (1, 1),
    student_as: str = "log",
    teacher_as: str = "log",
    axis: int = -1,
    sign: int = 1,
) -> Tensor:
    """The loss with some parts replaced by common slips; with none, the right value.

    ``factor`` is the power of T in front, ``softened`` that under the student's and the teacher's
    logits.
    """
    s, t = student_logits.double(), teacher_logits.double()
    s, t = s / temperature ** softened[0], t / temperature ** softened[1]
    log_q, log_p = F.log_softmax(s, axis), F.log_softmax(t, axis)
    log_q = {"log": log_q, "probabilities": log_q.exp(), "logits": s}[student_as]
    log_p = {"log": log_p, "probabilities": log_p.exp()}[teacher_as]
    if swapped:
        log_p, log_q = log_q, log_p
    if kind == "hard labels":
        total = -log_q.gather(-1, teacher_logits.argmax(-1, keepdim=True)).sum()
    else:
        total = (log_p.exp() * ((log_p if kind == "KL" else 0) - log_q)).sum()
    count = {"batchmean": s.shape[0], "mean": s.numel(), "sum": 1}[reduction]
    return sign * total / count * temperature**factor


def _jensen_shannon(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    p, q = (x.div(temperature).softmax(-1) for x in (teacher, student))
    both = torch.special.entr((p + q) / 2) - (torch.special.entr(p) + torch.special.entr(q)) / 2
    return temperature**2 * both.sum(-1).mean()


def _not_nan(result: Any, student: Tensor, *rest: Any) -> Any:
    if student.abs().max() > 100:  # `_kd_gradient_and_range` asks what happens there
        return result
    return refuse_nan(
        result,
        "the result is NaN: F.kl_div was given a logarithm as its second argument",
        "First come the student's log-probabilities, then the teacher's probabilities; another "
        "order, or two logarithms without log_target=True, takes the logarithm of a logarithm.",
    )


def _kd_properties(answer: Answer, draws: Draws) -> None:
    same = normal(generator(), 5, 4)
    if value_of(answer(same, same, 2.0)).abs() > 1e-4:
        raise Misconception(
            "a student equal to its teacher has a loss other than 0",
            "A KL divergence of a distribution from itself is 0: treat both sides the same way.",
        )
    student, teacher, temperature = draws[0]
    here, there = (answer(x, teacher, temperature) for x in (student, student + 5))
    if not torch.allclose(value_of(here), value_of(there), rtol=1e-3, atol=1e-4):
        raise Misconception(
            "adding 5 to all of the student's logits changes the loss",
            "A softmax does not see such a shift: is there one on the student?",
        )
    small = [(student / 20, teacher / 20, T) for student, teacher, T in draws]
    got = [value_of(answer(*draw)) for draw in small]
    if all_close(got, [value_of(losses.soft_target_loss(*draw)) for draw in small]):
        raise Misconception(
            "right for small logits, wrong for large ones",
            "A small number under the logarithm, or a floor, holds the loss: F.log_softmax needs "
            "none.",
        )
    at_one = [(student, teacher, 1.0) for student, teacher, _ in draws]
    got = [value_of(answer(*draw)) for draw in at_one]
    if all_close(got, [value_of(losses.soft_target_loss(*draw)) for draw in at_one]):
        raise Misconception(
            "right at temperature 1, wrong at any other",
            "Look at every place where the temperature enters.",
        )


def _kd_gradient_and_range(answer: Answer, draws: Draws) -> None:
    # dL/ds = T (softmax(s/T) - softmax(t/T)) / B, the equation that T squared keeps in scale.
    check_gradients(answer, draws[0], reference=losses.soft_target_loss)
    source = generator()
    large = normal(source, 4, 6) * 200, normal(source, 4, 6) * 200, 1.0
    loss = answer(*large)
    refuse_infinity(
        loss,
        "with large logits the loss is not finite",
        "log(softmax(x)) meets log(0); use F.log_softmax(x).",
    )
    if not all_close([value_of(loss)], [value_of(losses.soft_target_loss(*large))]):
        raise Misconception(
            "where a model is very sure, the loss is too small",
            "A small number under the logarithm, or a floor, holds it: F.log_softmax needs none.",
        )


@exercise(
    look="Soften both sides, take KL(teacher || student), average over the batch, times T*T.",
    draws=lambda source: [
        (normal(source, *shape), normal(source, *shape), uniform(source, *ends))
        for shape, ends in (
            ((2, 3), (1.5, 4.0)),
            ((4, 7), (0.3, 0.8)),
            ((3, 8), (1.5, 4.0)),
            ((6, 4), (0.4, 0.7)),
        )
    ],
    read=_not_nan,
    slips={
        "the factor T squared is missing": Slip(
            partial(_kd, factor=0),
            "Gradients shrink by T squared when both sides are softened; multiply the loss by T*T.",
        ),
        "the loss is multiplied by T, not by T squared": Slip(
            partial(_kd, factor=1), "Student and teacher are both softened: one factor T for each."
        ),
        "the loss is divided by T squared": Slip(
            partial(_kd, factor=-2), "Softening shrinks the gradients; multiply to undo it."
        ),
        "the two sides of the KL divergence are swapped": Slip(
            partial(_kd, swapped=True),
            "F.kl_div takes the student's log-probabilities first and the teacher as target.",
        ),
        "the loss is averaged over the classes too (reduction='mean')": Slip(
            partial(_kd, reduction="mean"),
            "A KL is a sum over classes: average over the batch only (reduction='batchmean').",
        ),
        "the loss is summed over the batch (reduction='sum')": Slip(
            partial(_kd, reduction="sum"),
            "It must not grow with the batch: divide by the rows (reduction='batchmean').",
        ),
        "the student enters as probabilities, without the logarithm": Slip(
            partial(_kd, student_as="probabilities"),
            "F.kl_div takes the logarithm of the student's probabilities: F.log_softmax.",
        ),
        "the student enters as raw logits, without a log-softmax": Slip(
            partial(_kd, student_as="logits"), "F.kl_div takes log-probabilities: F.log_softmax."
        ),
        "the teacher's probabilities are read as logarithms": Slip(
            partial(_kd, teacher_as="probabilities"),
            "With log_target=True the target is a log_softmax; without it, a softmax.",
        ),
        "the temperature softens the student only": Slip(
            partial(_kd, softened=(1, 0)), "Divide the teacher's logits by it as well."
        ),
        "the temperature softens the teacher only": Slip(
            partial(_kd, softened=(0, 1)), "Divide the student's logits by it as well."
        ),
        "the temperature does not soften the logits": Slip(
            partial(_kd, softened=(0, 0)), "Divide the logits of both by it, before the softmax."
        ),
        "a temperature below 1 is held at 1": Slip(
            lambda s, t, T: _kd(s, t, max(T, 1.0)), "Use the temperature as it is."
        ),
        "both sides enter as probabilities, without a logarithm, and swapped": Slip(
            lambda s, t, T: (
                F.kl_div(F.softmax(t / T, -1), F.softmax(s / T, -1), reduction="batchmean") * T**2
            ),
            "F.kl_div takes the student's log-probabilities first, then the teacher's.",
        ),
        "this is the mean squared error of the logits": Slip(
            lambda s, t, T: F.mse_loss(s, t),
            "That pulls on every logit alike; compare the two distributions with a KL divergence.",
        ),
        "this is the mean squared error of the probabilities": Slip(
            lambda s, t, T: F.mse_loss(F.softmax(s / T, -1), F.softmax(t / T, -1)),
            "Compare the two distributions with a KL divergence.",
        ),
        "this is the Jensen-Shannon divergence, which compares both sides with their mean": Slip(
            _jensen_shannon, "Only KL(teacher || student) is asked for."
        ),
        "the two directions of the KL divergence are averaged": Slip(
            lambda s, t, T: (_kd(s, t, T) + _kd(s, t, T, swapped=True)) / 2,
            "Only KL(teacher || student) is asked for.",
        ),
        "the logits are multiplied by the temperature": Slip(
            partial(_kd, softened=(-1, -1)), "A high temperature flattens the softmax: divide."
        ),
        "this is the cross-entropy, which is the KL plus the teacher's entropy": Slip(
            partial(_kd, kind="cross-entropy"),
            "Subtract that entropy: the loss of a student equal to its teacher must be 0.",
        ),
        "the teacher's most likely class is taken as a hard label": Slip(
            partial(_kd, kind="hard labels"), "Use all of the probabilities, not their argmax."
        ),
        "the softmax runs over the batch": Slip(
            partial(_kd, axis=0), "The classes are the last axis (dim=-1)."
        ),
        "the sign is wrong: a KL divergence is never negative": Slip(
            partial(_kd, sign=-1), "Write p * (log p - log q), with p from the teacher."
        ),
    },
    otherwise=_kd_properties,
    extra=_kd_gradient_and_range,
)
def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of logits (batch, classes): a scalar, averaged over the batch.

    Hinton, Vinyals and Dean 2015, section 2.
    """
    return losses.soft_target_loss(student_logits, teacher_logits, temperature)


def _batches(source: torch.Generator) -> Draws:
    draws = []
    for epochs, temperature in ((2, uniform(source, 1.5, 4.0)), (3, uniform(source, 0.5, 0.8))):
        batches = []
        for rows in (3, 2, 4):
            ids = torch.randint(0, 7, (rows, 4), generator=source)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            batches.append((inputs, normal(source, rows, 3)))
        draws.append((_Toy(source), batches, epochs, 0.1, temperature))
    return draws


def _losses_and_weights(result: Any, student: _Toy, batches: Any, epochs: int, *rest: Any) -> Any:
    """What was returned, and where the student ended; it then goes back to where it began."""
    weights = torch.cat([w.detach().flatten() for w in student.parameters()])
    moved = not torch.equal(weights, torch.cat([w.flatten() for w in student.began.values()]))
    student.load_state_dict(student.began)
    student.zero_grad()
    modes, student.modes = student.modes, []
    values = numbers(result, epochs * len(batches))
    if student.training:
        raise Misconception(
            "the student is left in training mode, where dropout would disturb its answers",
            "Call student.eval() after the loops.",
        )
    if not moved:
        raise Misconception(
            "the student's weights have not changed",
            "loss.backward() writes the gradients; optimizer.step() moves the weights.",
        )
    if not all(modes):
        raise Misconception(
            "the student is trained in eval mode, without its dropout",
            "Call student.train() before the loop.",
        )
    return values, weights.double()


def _train(
    student: Any,
    batches: Sequence[tuple[Mapping[str, Tensor], Tensor]],
    epochs: int,
    learning_rate: float,
    temperature: float,
    *,
    clear: str = "each step",
    loss_of: Answer = losses.soft_target_loss,
    optimizer: Any = torch.optim.AdamW,
    afresh: bool = False,
    sign: int = 1,
) -> list[float]:
    """The loop with some parts replaced by slips; with none, the right one."""
    steps = optimizer(student.parameters(), lr=learning_rate)
    student.train()
    found = []
    for _ in range(epochs):
        if clear == "each epoch":
            steps.zero_grad()
        for inputs, teacher_logits in batches:
            if afresh:
                steps = optimizer(student.parameters(), lr=learning_rate)
            loss = loss_of(student(**inputs).logits, teacher_logits, temperature)
            if clear == "each step":
                steps.zero_grad()
            (sign * loss).backward()
            steps.step()
            found.append(loss.item())
    student.eval()
    return found


def _hard(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    return F.cross_entropy(student_logits, teacher_logits.argmax(-1))


@exercise(
    look="For each batch: logits, loss, zero_grad, backward, step, and note the loss.",
    draws=_batches,
    read=_losses_and_weights,
    slips={
        "the gradients of earlier steps are never cleared, so they add up": Slip(
            partial(_train, clear="never"), "Call optimizer.zero_grad() in each step."
        ),
        "the gradients are cleared once an epoch, so they add up within it": Slip(
            partial(_train, clear="each epoch"), "Call optimizer.zero_grad() in each step."
        ),
        "the temperature is not used": Slip(
            partial(_train, loss_of=lambda s, t, T: losses.soft_target_loss(s, t, 1.0)),
            "Hand it on: kd_loss(student_logits, teacher_logits, temperature).",
        ),
        "the two arguments of kd_loss are swapped": Slip(
            partial(_train, loss_of=lambda s, t, T: _kd(s, t, T, swapped=True).float()),
            "The student's logits come first.",
        ),
        "the student learns the teacher's most likely class only": Slip(
            partial(_train, loss_of=_hard), "Use kd_loss: all of the teacher's probabilities."
        ),
        "the loss is the mean squared error of the logits": Slip(
            partial(_train, loss_of=lambda s, t, T: F.mse_loss(s, t)), "Use your kd_loss."
        ),
        "the loss lacks the factor T squared": Slip(
            partial(_train, loss_of=lambda s, t, T: losses.soft_target_loss(s, t, T) / T**2),
            "Use your kd_loss.",
        ),
        "the learning rate is not used": Slip(
            lambda m, b, e, lr, T: _train(m, b, e, 1e-3, T), "AdamW(..., lr=learning_rate)."
        ),
        "the weights move up the loss": Slip(
            partial(_train, sign=-1), "The optimizer goes down by itself: loss.backward()."
        ),
        "the optimizer is built anew in each step and forgets what it has seen": Slip(
            partial(_train, afresh=True), "Build it once, before the loops."
        ),
        "the optimizer is Adam, without weight decay": Slip(
            partial(_train, optimizer=torch.optim.Adam), "Keep the line that builds AdamW."
        ),
        "the optimizer is SGD": Slip(
            partial(_train, optimizer=torch.optim.SGD), "Keep the line that builds AdamW."
        ),
    },
    seconds=20.0,
)
def train(
    student: Any,
    batches: Sequence[tuple[Mapping[str, Tensor], Tensor]],
    epochs: int,
    learning_rate: float,
    temperature: float,
) -> list[float]:
    """Train ``student`` in place with AdamW on :func:`kd_loss`; the loss of each step.

    ``batches`` are pairs of inputs (for ``student(**inputs).logits``) and teacher logits (N, C).
    """
    return _train(student, batches, epochs, learning_rate, temperature)


def _two_models(source: torch.Generator) -> Draws:
    draws = []
    for rows in (1, 7, 20, 40):
        ours, theirs = normal(source, rows, 3), normal(source, rows, 3)
        theirs[: rows // 3] = 2 * ours[: rows // 3] + 1  # same order, other values
        theirs[rows // 2] = ours[rows // 2]
        draws.append((ours, theirs))
    return draws


@exercise(
    look="Compare the places of the largest entries, row by row; take the mean, in percent.",
    draws=_two_models,
    apart=True,
    slips={
        "this is a fraction, but percent is wanted": Slip(
            lambda a, b: float((a.argmax(-1) == b.argmax(-1)).double().mean()), "Multiply by 100."
        ),
        "this is a count, not a percentage": Slip(
            lambda a, b: float((a.argmax(-1) == b.argmax(-1)).sum()), "Divide by the rows."
        ),
        "this is the percentage of rows where they differ": Slip(
            lambda a, b: 100 * float((a.argmax(-1) != b.argmax(-1)).double().mean()),
            "Agreement counts the rows where both answer the same.",
        ),
        "the largest entry is looked for down the rows, not across the classes": Slip(
            lambda a, b: 100 * float((a.argmax(0) == b.argmax(0)).double().mean()),
            "The classes are the last axis: argmax(-1).",
        ),
        "the values themselves are compared": Slip(
            lambda a, b: 100 * float(torch.isclose(a, b).double().mean()),
            "Two models may give the same answer with other numbers: compare the argmax.",
        ),
        "the least likely classes are compared": Slip(
            lambda a, b: 100 * float((a.argmin(-1) == b.argmin(-1)).double().mean()), "Use argmax."
        ),
        "the count is divided by all entries": Slip(
            lambda a, b: 100 * float((a.argmax(-1) == b.argmax(-1)).sum()) / a.numel(),
            "Divide by the number of rows, len(first).",
        ),
        "the result is rounded to a whole number": Slip(
            lambda a, b: float(round(100 * float((a.argmax(-1) == b.argmax(-1)).double().mean()))),
            "Return all digits; round when you print.",
        ),
        "the whole order of the classes is compared": Slip(
            lambda a, b: 100 * float((a.argsort(-1) == b.argsort(-1)).all(-1).double().mean()),
            "Compare the place of the largest entry only: argmax(-1).",
        ),
        "only the signs are compared": Slip(
            lambda a, b: 100 * float((a.sign() == b.sign()).double().mean()), "Use argmax(-1)."
        ),
    },
)
def agreement(first: Tensor, second: Tensor) -> float:
    """Percent of the rows of two tensors (N, C) whose largest entry is at the same place."""
    return 100 * float((first.argmax(-1) == second.argmax(-1)).double().mean())


def _scores(source: torch.Generator) -> Draws:
    draws = []
    # Percentages that round up and down, so that rounding and cutting differ.
    for low, high in ((0.1, 0.4), (0.6, 0.9)) * 2:
        kept, teacher = (
            whole(source, 30, 94) + uniform(source, low, high),
            uniform(source, 0.6, 0.9),
        )
        draws.append((kept / 100 * teacher, teacher))
    return draws + [(100 * student, 100 * teacher) for student, teacher in draws[:2]]


@exercise(
    look="It is the student's score as a percentage of the teacher's.",
    draws=_scores,
    slips={
        "the percentage is held at 100": Slip(
            lambda s, t: min(100.0, 100 * s / t), "Leave the min() out."
        ),
        "this is a fraction, not a percentage": Slip(lambda s, t: s / t, "Multiply by 100."),
        "teacher and student are swapped": Slip(
            lambda s, t: 100 * t / s, "The teacher's score is the whole: divide by it."
        ),
        "this is the difference of the two scores": Slip(
            lambda s, t: s - t, "What is kept is a ratio: divide by the teacher's score."
        ),
        "this is the difference of the two scores, teacher minus student": Slip(
            lambda s, t: t - s, "What is kept is a ratio: divide by the teacher's score."
        ),
        "this is the percentage lost, not the percentage kept": Slip(
            lambda s, t: 100 * (t - s) / t, "The two add up to 100."
        ),
        "this is the relative change, not the percentage kept": Slip(
            lambda s, t: 100 * (s - t) / t, "Add 100, or just divide by the teacher's score."
        ),
        "the teacher's score is ignored": Slip(lambda s, t: 100 * s, "Divide by the teacher's."),
        "the result is rounded to a whole number": Slip(
            lambda s, t: float(round(100 * s / t)), "Return all digits; round when you print."
        ),
        "the result is cut to a whole number": Slip(
            lambda s, t: float(int(100 * s / t)), "Return all digits: / rather than //, no int()."
        ),
    },
    edge_case="with a student better than its teacher",
    edges=lambda source: [(t * uniform(source, 1.05, 1.2), t) for t in (0.61, 0.74, 0.88)],
)
def retention(student_f1: float, teacher_f1: float) -> float:
    """The percentage of the teacher's score that the student keeps."""
    return 100.0 * student_f1 / teacher_f1
