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


def slow_logits(hidden: torch.Tensor, labels: torch.Tensor, head: Answer) -> torch.Tensor:
    return torch.stack(
        [
            head(hidden[b, i])
            for b in range(len(labels))
            for i in range(labels.shape[1])
            if labels[b, i] != -100
        ]
    )


def without_gradient(h: torch.Tensor, y: torch.Tensor, head: Answer) -> torch.Tensor:
    with torch.no_grad():
        return head(h[y != -100])


def slow_layers(student: int, teacher: int) -> list[int]:
    """The largest whole number not above (i + 1) T / S, less one."""
    return [max(n for n in range(teacher + 1) if n * student <= (i + 1) * teacher) - 1
            for i in range(student)]  # fmt: skip


def nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(M,) minus the log-probability of each hidden piece."""
    keep = labels != -100
    return -F.log_softmax(logits[keep], -1).gather(-1, labels[keep][:, None])[:, 0]


def one_hole_at_a_time(model: Answer, ids: torch.Tensor, mask_id: int) -> torch.Tensor:
    rows = []
    for place in range(1, ids.shape[1] - 1):
        copy = ids.clone()
        copy[0, place] = mask_id
        rows.append(model(input_ids=copy).logits[0, place].softmax(-1))
    return torch.stack(rows)


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


def step(loss_of: Answer, batches: Any, optimiser: Any) -> Any:
    counts = torch.tensor([(batch["labels"] != -100).sum() for batch in batches])
    optimiser.zero_grad()
    total = sum(
        loss_of(batch) * share for batch, share in zip(batches, counts / counts.sum(), strict=True)
    )
    total.backward()
    optimiser.step()
    return total


def slow_count(pieces: torch.Tensor, labels: torch.Tensor, vocabulary: int) -> torch.Tensor:
    counts = [1] * vocabulary
    for piece in pieces.tolist():
        counts[piece] += 1
    true = [label for label in labels.flatten().tolist() if label != -100]
    return torch.tensor(-np.mean([np.log(counts[t] / sum(counts)) for t in true]))


def top(logits: torch.Tensor, k: int, T: float) -> tuple[torch.Tensor, ...]:
    log_p = (logits / T).log_softmax(-1)
    best, pieces = log_p.topk(k, dim=-1)
    return pieces, best, torch.log1p(-best.exp().sum(-1))


SOLUTIONS: dict[str, list[Answer]] = {
    "hide": [hidden_pieces, lambda *a: [*hidden_pieces(*a)]],
    "gathered_logits": [
        lambda h, y, head: head(h[y != -100]),
        lambda h, y, head: head(h[(y != -100).nonzero(as_tuple=True)]),
        slow_logits,
    ],
    "hole_by_hole": [one_hole_at_a_time],
    "match_layers": [
        lambda s, t: [(i + 1) * t // s - 1 for i in range(s)],
        lambda s, t: attention.layer_map(s, t),
        lambda s, t: torch.tensor([int((i + 1) * t / s) - 1 for i in range(s)]),
        lambda s, t: np.arange(1, s + 1) * t // s - 1,
        lambda s, t: tuple(slow_layers(s, t)),
        slow_layers,
    ],
    "stage_one_loss": [loss_by_hand],
    "accumulated_step": [step, lambda *a: step(*a).item()],
    "perplexity": [
        lambda x, y: F.cross_entropy(x.transpose(1, 2), y).exp(),
        lambda x, y: F.cross_entropy(x[y != -100], y[y != -100]).exp(),
        lambda x, y: nll(x, y).mean().exp(),
    ],
    "counting_floor": [slow_count],
    "top_and_tail": [
        top,
        lambda x, k, T: losses.topk_of_logits(x, k, T),
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
    "gathered_logits": {
        "head first": (lambda h, y, head: head(h)[y != -100], "the head ran at"),
        "all": (lambda h, y, head: head(h), "logits at all positions"),
        "hidden": (lambda h, y, head: h[y != -100], "the hidden states, not logits"),
        "piece 0": (lambda h, y, head: head(h[y > 0]), "piece 0 is lost"),
        "order": (lambda h, y, head: head(h[y != -100]).flip(0), "another order"),
        "no gradient": (without_gradient, "no gradient flows back"),
        "first row": (lambda h, y, head: head(h[y != -100])[:1], "returned shape"),
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
        "likeliest": (lambda *a: one_hole_at_a_time(*a).argmax(-1), "returned shape"),
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
        "rounded": (
            lambda s, t: np.round(np.arange(1, s + 1) * t / s + 0.01).astype(int).tolist(),
            "is right",
        ),
    },
    "stage_one_loss": {
        "no gradient": (blind_loss, "no gradient reaches the student"),
        "watched": (watched_loss, "gradient reaches the teacher"),
        "number": (lambda *a: loss_by_hand(*a).item(), "returned a float"),
        "twice": (lambda *a: 2 * loss_by_hand(*a), "is right"),
    },
    "accumulated_step": {
        "tensor": (lambda *a: step(*a)[None], "of shape (1,)"),
        "list": (lambda *a: [step(*a)], "returned a list"),
        "twice": (lambda *a: 2 * step(*a), "is right"),
    },
    "perplexity": {
        "piece 0": (
            lambda x, y: F.cross_entropy(x.transpose(1, 2), y.clamp_min(0)).exp(),
            "count as piece 0",
        ),
        "by row": (lambda x, y: nll(x, y).exp(), "but a scalar"),
        "each text": (
            lambda x, y: torch.stack(
                [nll(a[None], b[None]).mean().exp() for a, b in zip(x, y, strict=True)]
            ).mean(),
            "perplexities of the texts",
        ),
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
        "one": (lambda *a: top(*a)[1], "but three tensors"),
        "one more": (lambda x, k, T: top(x, k + 1, T), "have the shapes"),
        "other axis": (
            lambda x, k, T: (
                top(x, k, T)[0],
                (x / T).log_softmax(0).gather(1, top(x, k, T)[0]),
                top(x, k, T)[2],
            ),
            "is right",
        ),
    },
}
