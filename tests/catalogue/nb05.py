"""Right and wrong answers to the exercises of notebook 05."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from comet_lib import attention, losses
from comet_lib.attention import capture, capture_maps
from comet_lib.losses import attention_loss, soft_target_loss
from comet_lib.models import only_positions

Answer = Callable[..., Any]


def hidden_pieces(
    ids: torch.Tensor,
    special: torch.Tensor,
    mask_id: int,
    pieces: int,
    g: torch.Generator,
    share: float = 0.15,
    fates: tuple[float, float] = (0.8, 0.9),
    special_too: bool = False,
    rows: bool = True,
    own: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """BERT's recipe, with the parts that an answer may get wrong."""
    drawn = torch.rand(ids.shape if rows else ids.shape[1:], generator=g).expand(ids.shape)
    chosen = (drawn < share) & (special_too | ~special)
    fate = torch.rand(ids.shape, generator=g if own else None)
    seen = ids.clone()
    seen[chosen & (fate < fates[0])] = mask_id
    at = chosen & (fate >= fates[0]) & (fate < fates[1])
    seen[at] = torch.randint(pieces, (int(at.sum()),), generator=g)
    return seen, torch.where(chosen, ids, -100)


def states_of(model: Any, batch: Any) -> torch.Tensor:
    text = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    return model.base_model(**text).last_hidden_state


def gathered(model: Any, batch: Any) -> torch.Tensor:
    return model.lm_head(states_of(model, batch)[batch["labels"] != -100])


def hooked(model: Any, batch: Any) -> torch.Tensor:
    text = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with only_positions(model, batch["labels"] != -100):
        return model(**text).logits


def one_by_one(model: Any, batch: Any) -> torch.Tensor:
    """The head at one position at a time, but at every position."""
    rows = [model.lm_head(state) for state in states_of(model, batch).flatten(0, 1)]
    return torch.stack(rows)[batch["labels"].flatten() != -100]


def without_gradient(model: Any, batch: Any) -> torch.Tensor:
    with torch.no_grad():
        return gathered(model, batch)


def slow_layers(student: int, teacher: int) -> list[int]:
    """The largest whole number not above (i + 1) T / S, less one."""
    return [max(n for n in range(teacher + 1) if n * student <= (i + 1) * teacher) - 1
            for i in range(student)]  # fmt: skip


def one_hole_at_a_time(model: Answer, ids: torch.Tensor, mask_id: int) -> torch.Tensor:
    rows = []
    for place in range(1, ids.shape[1] - 1):
        copy = ids.clone()
        copy[0, place] = mask_id
        rows.append(model(input_ids=copy).logits[0, place].softmax(-1))
    return torch.stack(rows)


def holes_at_once(model: Answer, ids: torch.Tensor, mask_id: int) -> torch.Tensor:
    n = ids.shape[1] - 2
    holes = torch.nn.functional.pad(torch.eye(n, dtype=torch.bool), (1, 1))
    logits = model(input_ids=ids.repeat(n, 1).masked_fill(holes, mask_id)).logits
    return logits[holes].softmax(-1)


def holes_by_gathering(model: Any, ids: torch.Tensor, mask_id: int) -> torch.Tensor:
    """With at_holes, the learner's own function."""
    n = ids.shape[1] - 2
    holes = torch.nn.functional.pad(torch.eye(n, dtype=torch.bool), (1, 1))
    copies = ids.repeat(n, 1)
    batch = {
        "input_ids": copies.masked_fill(holes, mask_id),
        "attention_mask": torch.ones_like(copies),
        "labels": copies.masked_fill(~holes, -100),
    }
    return gathered(model, batch).softmax(-1)


def loss_by_hand(
    student: Any, teacher: Any, batch: Any, matches: Any, T: float, alpha: float
) -> torch.Tensor:
    hidden = batch["labels"] != -100
    text = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad(), only_positions(teacher, hidden):
        answers = teacher(**text).logits
    theirs = capture_maps(teacher, text, list(matches.values()))
    with capture(student, list(matches)) as ours, only_positions(student, hidden):
        logits = student(**text).logits
    attention = attention_loss(
        [ours[i] for i in matches], [theirs[j] for j in matches.values()], text["attention_mask"]
    )
    return alpha * soft_target_loss(logits, answers, T) + (1 - alpha) * attention


def careless_loss(
    student: Any, teacher: Any, batch: Any, matches: Any, T: float, alpha: float
) -> torch.Tensor:
    """The teacher's forward pass keeps its graph, but no gradient reaches the teacher."""
    with capture(student, list(matches)) as ours, capture(teacher) as theirs:
        soft = soft_target_loss(gathered(student, batch), gathered(teacher, batch), T)
    maps = [ours[i] for i in matches], [theirs[j] for j in matches.values()]
    return alpha * soft + (1 - alpha) * attention_loss(*maps, batch["attention_mask"])


def blind_loss(student: Any, *rest: Any) -> torch.Tensor:
    with torch.no_grad():
        return loss_by_hand(student, *rest)


def watched_loss(student: Any, teacher: Any, batch: Any, matches: Any, T: float, a: float) -> Any:
    with only_positions(teacher, batch["labels"] != -100):
        answers = teacher(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits
    with only_positions(student, batch["labels"] != -100):
        logits = student(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits
    return F.mse_loss(logits, answers)


def steps(loss_of: Answer, groups: Any, optimizer: Any, schedule: Any) -> list[Any]:
    history = []
    for batches in groups:
        counts = torch.tensor([(batch["labels"] != -100).sum() for batch in batches])
        optimizer.zero_grad()
        values = []
        for batch, share in zip(batches, counts / counts.sum(), strict=True):
            loss = loss_of(batch) * share
            loss.backward()
            values.append(loss)
        optimizer.step()
        schedule.step()
        history.append(sum(values))
    return history


def floats(values: Any) -> list[float]:
    return [float(value) for value in values]


def steps_at_once(loss_of: Answer, groups: Any, optimizer: Any, schedule: Any) -> list[float]:
    """All graphs of a group are in memory when the backward pass begins."""
    history = []
    for batches in groups:
        counts = torch.tensor([(batch["labels"] != -100).sum() for batch in batches])
        optimizer.zero_grad()
        loss = sum(loss_of(batch) * n for batch, n in zip(batches, counts, strict=True))
        (loss / counts.sum()).backward()
        optimizer.step()
        schedule.step()
        history.append(float(loss / counts.sum()))
    return history


def slow_count(pieces: torch.Tensor, labels: torch.Tensor, vocabulary: int) -> torch.Tensor:
    counts = [1] * vocabulary
    for piece in pieces.tolist():
        counts[piece] += 1
    true = [label for label in labels.flatten().tolist() if label != -100]
    return torch.tensor(-np.mean([np.log(counts[t] / sum(counts)) for t in true]))


def slow_constant(logits: torch.Tensor, T: float) -> torch.Tensor:
    p = (logits / T).softmax(-1)
    m = p.mean(0).clamp_min(1e-30)
    return T**2 * F.kl_div(m.log().expand_as(p), p, reduction="batchmean")


def slow_cached(z: Any, pieces: Any, log_p: Any, log_tail: Any, T: float) -> torch.Tensor:
    total = torch.zeros(())
    for row, kept, top_p, tail in zip(z, pieces, log_p, log_tail, strict=True):
        q = (row / T).softmax(-1)
        total = total + (top_p.exp() * (top_p - q[kept].log())).sum()
        total = total + tail.exp() * (tail - (1 - q[kept].sum()).log())
    return T**2 * total / len(z)


def top(logits: torch.Tensor, k: int, T: float) -> tuple[torch.Tensor, ...]:
    log_p = (logits / T).log_softmax(-1)
    best, pieces = log_p.topk(k, dim=-1)
    return pieces, best, torch.log1p(-best.exp().sum(-1))


SOLUTIONS: dict[str, list[Answer]] = {
    "hide": [hidden_pieces, lambda *a: [*hidden_pieces(*a)]],
    "at_holes": [gathered, hooked],
    "hole_by_hole": [holes_at_once, holes_by_gathering],
    "match_layers": [
        lambda s, t: [(i + 1) * t // s - 1 for i in range(s)],
        lambda s, t: attention.layer_map(s, t),
        lambda s, t: torch.tensor([int((i + 1) * t / s) - 1 for i in range(s)]),
        lambda s, t: np.arange(1, s + 1) * t // s - 1,
        lambda s, t: tuple(slow_layers(s, t)),
        slow_layers,
    ],
    "stage_one_loss": [loss_by_hand, careless_loss],
    "accumulated_steps": [lambda *a: floats(steps(*a)), lambda *a: np.array(floats(steps(*a)))],
    "counting_floor": [slow_count, lambda *a: float(slow_count(*a))],
    "constant_floor": [slow_constant, lambda *a: slow_constant(*a).item()],
    "cached_loss": [slow_cached],
    "top_and_tail": [
        top,
        losses.topk_of_logits,
        lambda x, k, T: tuple(part.flip(-1) if part.ndim == 2 else part for part in top(x, k, T)),
    ],
}

MUTANTS: dict[str, dict[str, tuple[Answer, str]]] = {
    "hide": {
        "all masked": (lambda *a: hidden_pieces(*a, fates=(1.0, 1.0)), "becomes the mask"),
        "no random": (lambda *a: hidden_pieces(*a, fates=(0.8, 0.8)), "becomes a random one"),
        "shares": (lambda *a: hidden_pieces(*a, fates=(0.5, 0.75)), "masked, swapped and kept"),
        "half": (lambda *a: hidden_pieces(*a, share=0.5), "of the pieces are chosen, not 15 %"),
        "special": (lambda *a: hidden_pieces(*a, special_too=True), "special pieces are chosen"),
        "one row": (lambda *a: hidden_pieces(*a, rows=False), "at the same positions"),
        "own luck": (lambda *a: hidden_pieces(*a, own=False), "other holes the second time"),
        "one seed": (
            lambda ids, special, mask, n, g: hidden_pieces(
                ids, special, mask, n, torch.Generator().manual_seed(0)
            ),
            "another seed gives the same holes",
        ),
        "labels": (
            lambda *a: (lambda seen, labels: (seen, seen.where(labels != -100, -100)))(
                *hidden_pieces(*a)
            ),
            "not the pieces that stood there",
        ),
        "piece 0": (
            lambda *a: (lambda seen, labels: (seen, labels.where(labels > 0, -100)))(
                *hidden_pieces(*a)
            ),
            "change that have no label",
        ),
        "one piece": (
            lambda ids, special, mask, n, g: (
                lambda seen, labels: (torch.where((seen != ids) & (seen != mask), 7, seen), labels)
            )(*hidden_pieces(ids, special, mask, n, g)),
            "not drawn from the whole vocabulary",
        ),
        "one": (lambda *a: hidden_pieces(*a)[0], "but two tensors"),
        "short": (lambda *a: [x[:, 1:] for x in hidden_pieces(*a)], "another shape"),
    },
    "at_holes": {
        "head first": (
            lambda model, batch: model.lm_head(states_of(model, batch))[batch["labels"] != -100],
            "the head ran at",
        ),
        "all": (lambda model, batch: model.lm_head(states_of(model, batch)), "logits at all"),
        "hidden": (
            lambda model, batch: states_of(model, batch)[batch["labels"] != -100],
            "the hidden states, not logits",
        ),
        "piece 0": (
            lambda model, batch: model.lm_head(states_of(model, batch)[batch["labels"] > 0]),
            "piece 0 is lost",
        ),
        "no gradient": (without_gradient, "no gradient flows back"),
        "first row": (lambda *a: gathered(*a)[0], "returned shape"),
        "real pieces": (
            lambda model, batch: model.lm_head(
                states_of(model, batch)[batch["attention_mask"] == 1]
            ),
            "you select 19 positions",
        ),
        "masks": (
            lambda model, batch: model.lm_head(states_of(model, batch)[batch["input_ids"] == 4]),
            "you select 0 positions",
        ),
        "columns first": (
            lambda model, batch: model.lm_head(
                states_of(model, batch).mT.mT.transpose(0, 1)[batch["labels"].T != -100]
            ),
            "is right",
        ),
    },
    "hole_by_hole": {
        "with ends": (
            lambda model, ids, mask: (
                model(input_ids=ids.repeat(ids.shape[1], 1).fill_diagonal_(mask))
                .logits.diagonal()
                .T.softmax(-1)
            ),
            "a row for <s>",
        ),
        "plain": (lambda model, ids, mask: model(input_ids=ids).logits.softmax(-1), "one text"),
        "everywhere": (
            lambda model, ids, mask: model(
                input_ids=ids.repeat(ids.shape[1] - 2, 1)
            ).logits.softmax(-1),
            "answers at all its positions",
        ),
        "likeliest": (lambda *a: holes_at_once(*a).argmax(-1), "returned shape"),
        "slow": (one_hole_at_a_time, "the model was asked"),
    },
    "match_layers": {
        "skip": (lambda s, t: [i * t // s for i in range(s)], "first layer of each group"),
        "last": (lambda s, t: [*range(t - s, t)], "top layers only"),
        "backwards": (lambda s, t: attention.layer_map(s, t)[::-1], "runs backwards"),
        "teacher's": (lambda s, t: list(range(t)), "you name"),
        "number": (lambda s, t: t // s, "returned a int"),
        "dict": (lambda s, t: dict(enumerate(attention.layer_map(s, t))), "returned a dict"),
        "floats": (
            lambda s, t: [float(layer) for layer in attention.layer_map(s, t)],
            "layers are fractions",
        ),
        "top down": (lambda s, t: [t - 1 - i for i in range(s)], "is right"),
    },
    "stage_one_loss": {
        "no gradient": (blind_loss, "no gradient reaches the student"),
        "watched": (watched_loss, "gradient reaches the teacher"),
        "number": (lambda *a: loss_by_hand(*a).item(), "returned a float"),
        "doubled": (lambda *a: 2 * loss_by_hand(*a), "is right"),
    },
    "accumulated_steps": {
        "tensors": (steps, "your list holds tensors"),
        "last": (lambda *a: float(steps(*a)[-1]), "but a list of numbers"),
        "batches": (lambda *a: 2 * floats(steps(*a)), "losses for"),
        "at once": (steps_at_once, "no backward pass between"),
        "doubled": (lambda *a: [2 * value for value in floats(steps(*a))], "is right"),
    },
    "counting_floor": {
        "no ones": (
            lambda pieces, labels, n: (
                -(torch.bincount(pieces, minlength=n) / len(pieces))
                .log()[labels[labels != -100]]
                .mean()
            ),
            "infinity",
        ),
        "each": (
            lambda pieces, labels, n: (
                -(torch.bincount(pieces, minlength=n) + 1.0).log()[labels[labels != -100]]
            ),
            "but a scalar",
        ),
        "uniform": (lambda pieces, labels, n: torch.tensor(np.log(n)), "is right"),
    },
    "top_and_tail": {
        "values first": (
            lambda *a: (lambda pieces, best, tail: (best, pieces, tail))(*top(*a)),
            "have changed places",
        ),
        "column": (
            lambda *a: (lambda pieces, best, tail: (pieces, best, tail[:, None]))(*top(*a)),
            "(4, 1)]",
        ),
        "one": (lambda *a: top(*a)[1], "but three tensors"),
        "one more": (lambda x, k, T: top(x, k + 1, T), "(4, 6), (4, 6)"),
        "other axis": (
            lambda x, k, T: (
                top(x, k, T)[0],
                (x / T).log_softmax(0).gather(1, top(x, k, T)[0]),
                top(x, k, T)[2],
            ),
            "is right",
        ),
    },
    "constant_floor": {
        "NaN": (
            lambda z, T: (lambda p: T**2 * (p * (p / p.mean(0)).log()).sum(-1).mean())(
                (z / T).softmax(-1)
            ),
            "where the teacher is certain, your function returned NaN",
        ),
        "each": (lambda z, T: torch.special.entr((z / T).softmax(-1)).sum(-1), "but a scalar"),
        "halved": (lambda *a: slow_constant(*a) / 2, "is right"),
    },
    "cached_loss": {
        "each": (lambda z, *rest: slow_cached(z, *rest) * torch.ones(len(z)), "but a scalar"),
        "no gradient": (lambda *a: slow_cached(*a).detach(), "no gradient"),
        "doubled": (lambda *a: 2 * slow_cached(*a), "is right"),
    },
}
