"""Right and wrong answers to the exercises of notebook 02."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from comet_lib.models import count_parameters, on_meta, xlmr_config

Answer = Callable[..., Any]


def built(v: int, d: int, n: int, h: int, f: int, m: int) -> Any:
    """The model itself, without memory for its weights."""
    shape = {
        "hidden_size": d,
        "num_hidden_layers": n,
        "num_attention_heads": h,
        "intermediate_size": f,
    }
    return on_meta(xlmr_config(shape, v, m))


def emb(v: int, d: int, m: int) -> int:
    return v * d + (m + 2) * d + d + 2 * d


def layer(d: int, f: int, h: int) -> int:
    return 4 * (d * d + d) + 2 * d + (d * f + f) + (f * d + d) + 2 * d


def whole(v: int, d: int, n: int, h: int, f: int, m: int) -> int:
    return emb(v, d, m) + n * layer(d, f, h) + d * d + d


def flops(d: int, f: int, n: int, length: int) -> int:
    return n * (8 * d * d + 4 * length * d + 4 * d * f)


SOLUTIONS: dict[str, list[Answer]] = {
    "embedding_parameters": [
        emb,
        lambda v, d, m: torch.tensor(d * (v + m + 5)),
        lambda v, d, m: np.int64(emb(v, d, m)),
        lambda v, d, m: count_parameters(built(v, d, 1, 1, 4, m).embeddings),
    ],
    "layer_parameters": [
        layer,
        lambda d, f, h: 4 * d**2 + 2 * d * f + 9 * d + f,
        lambda d, f, h: h * (3 * d * (d // h) + 3 * (d // h)) + layer(d, f, h) - 3 * (d * d + d),
        lambda d, f, h: count_parameters(built(9, d, 1, h, f, 9).encoder.layer[0]),
    ],
    "student_parameters": [whole, lambda *sizes: count_parameters(built(*sizes))],
    "flops_per_token": [
        flops,
        lambda d, f, n, length: 2.0 * n * (4 * d**2 + 2 * length * d + 2 * d * f),
    ],
}

MUTANTS: dict[str, dict[str, tuple[Answer, str]]] = {
    "embedding_parameters": {
        "one row": (lambda v, d, m: d * (v + m + 2 + 2), "one row of"),
        "two rows": (lambda v, d, m: d * (v + m + 2 + 1), "two rows of"),
        "three rows": (lambda v, d, m: d * (v + m + 2), "three rows of"),
        "four rows": (lambda v, d, m: d * (v + m + 1), "four rows of"),
        "five rows": (lambda v, d, m: d * (v + m), "five rows of"),
        "words": (lambda v, d, m: d * v, "only the word embeddings"),
        "no positions": (lambda v, d, m: d * (v + 3), "position embeddings are missing"),
        "no words": (lambda v, d, m: d * (m + 5), "word embeddings are missing"),
        "tied": (lambda v, d, m: emb(v, d, m) + v * d, "counted twice"),
        "rows": (lambda v, d, m: v + m + 5, "rows are counted, not numbers"),
        "bytes": (lambda v, d, m: 4 * emb(v, d, m), "these are bytes"),
        "product": (lambda v, d, m: d * (v * (m + 2) + 3), "are multiplied"),
        "two slips": (lambda v, d, m: d * (2 * v + m + 3), "two things at once"),
        "float32": (
            lambda v, d, m: torch.tensor(float(d)) * (v + m + 5),
            "right at small sizes",
        ),
        "tuple": (lambda v, d, m: (v * d, m * d), "returned a tuple"),
        "two types": (lambda v, d, m: d * (v + m + 6), "1 too many"),
        "three positions": (lambda v, d, m: d * (v + m + 7), "2 too many"),
        "other": (lambda v, d, m: d**2 * v, "is right, on random input"),
    },
    "layer_parameters": {
        "no feed-forward": (lambda d, f, h: 4 * (d * d + d) + 4 * d, "block is missing"),
        "four times": (lambda d, f, h: layer(d, 4 * d, h), "assumed to be 4 * hidden"),
        "no biases": (lambda d, f, h: 4 * d * d + 2 * d * f + 4 * d, "no bias is counted"),
        "matrices": (lambda d, f, h: 4 * d * d + 2 * d * f, "only the matrices"),
        "two slips": (
            lambda d, f, h: layer(d, f, h) - d * d - d - f * d - d,
            "two things at once",
        ),
        "other": (lambda d, f, h: d * f * h, "is right, on random input"),
    },
    "student_parameters": {
        "poolers": (
            lambda v, d, n, h, f, m: emb(v, d, m) + n * (layer(d, f, h) + d * d + d),
            "pooler in every layer",
        ),
        "one layer": (
            lambda v, d, n, h, f, m: whole(v, d, 1, h, f, m),
            "only one layer is counted",
        ),
        "no layer": (lambda v, d, n, h, f, m: whole(v, d, 0, h, f, m), "layers are missing"),
        "heads": (
            lambda v, d, n, h, f, m: whole(v, d, n * h, h, f, m),
            "heads multiplies the layers",
        ),
        "no embeddings": (
            lambda v, d, n, h, f, m: n * layer(d, f, h) + d * d + d,
            "the embeddings are missing",
        ),
        "embeddings": (
            lambda v, d, n, h, f, m: n * (emb(v, d, m) + layer(d, f, h)) + d * d + d,
            "embeddings in every layer",
        ),
        "words": (
            lambda v, d, n, h, f, m: v * d + n * layer(d, f, h) + d * d + d,
            "only the word table",
        ),
        "two slips": (
            lambda v, d, n, h, f, m: v * d + n * layer(d, f, h),
            "two things at once",
        ),
        "rounded": (
            lambda *s: np.float32(whole(*s)) + np.float32(0),
            "right at small sizes",
        ),
    },
    "flops_per_token": {
        "multiply-adds": (lambda d, f, n, t: flops(d, f, n, t) / 2, "multiply-adds are counted"),
        "backward": (lambda d, f, n, t: flops(d, f, n, t) * 3, "backward pass"),
        "one layer": (lambda d, f, n, t: flops(d, f, 1, t), "only one layer"),
        "whole text": (lambda d, f, n, t: flops(d, f, n, t) * t, "for the whole text"),
        "no scores": (lambda d, f, n, t: flops(d, f, n, 0), "attention products are missing"),
        "no values": (
            lambda d, f, n, t: flops(d, f, n, t) - 2 * n * t * d,
            "only one of the two attention products",
        ),
        "squared": (lambda d, f, n, t: flops(d, f, n, t * t), "length squared"),
        "no length": (lambda d, f, n, t: flops(d, f, n, 1), "do not grow with the length"),
        "no output": (lambda d, f, n, t: flops(d, f, n, t) - 2 * n * d * d, "output matrix"),
        "one projection": (
            lambda d, f, n, t: flops(d, f, n, t) - 6 * n * d * d,
            "only one projection",
        ),
        "one way": (
            lambda d, f, n, t: flops(d, f, n, t) - 2 * n * d * f,
            "only one feed-forward matrix",
        ),
        "no feed-forward": (lambda d, f, n, t: flops(d, 0, n, t), "feed-forward block is missing"),
        "biases": (
            lambda d, f, n, t: flops(d, f, n, t) + 2 * n * (9 * d + f),
            "biases and LayerNorms",
        ),
        "two slips": (
            lambda d, f, n, t: 2 * n * (layer(d, f, 1)),
            "two things at once",
        ),
        "other": (lambda d, f, n, t: d * f * n * t, "is right, on random input"),
    },
}


def widest(layers: int, budget: int, v: int, heads: int, m: int) -> int:
    fits = [w for w in range(heads, 500, heads) if whole(v, w, layers, heads, 4 * w, m) <= budget]
    return max(fits, default=0)


def needed(ids: Any, share: float) -> int:
    counts = np.sort(np.unique([i for text in ids for i in text], return_counts=True)[1])[::-1]
    return int((counts.cumsum() < share * counts.sum()).sum()) + 1


def learn(model: Any, batches: Any, rate: float) -> list[float]:
    worker = torch.optim.AdamW(model.parameters(), lr=rate)
    losses = []
    for pointers, targets in batches:
        worker.zero_grad(set_to_none=False)
        loss = -model(pointers).log_softmax(-1).gather(-1, targets[..., None]).mean()
        loss.backward()
        worker.step()
        losses.append(loss.detach())
    return losses


def with_graphs(model: Any, batches: Any, rate: float) -> list[Any]:
    worker = torch.optim.AdamW(model.parameters(), lr=rate)
    losses = []
    for pointers, targets in batches:
        loss = F.cross_entropy(model(pointers).flatten(0, 2), targets.flatten())
        worker.zero_grad()
        loss.backward()
        worker.step()
        losses.append(loss)
    return losses


def late(model: Any, batches: Any, rate: float) -> list[float]:
    """Clears the gradients between backward and step."""
    worker = torch.optim.AdamW(model.parameters(), lr=rate)
    losses = []
    for pointers, targets in batches:
        loss = F.cross_entropy(model(pointers).flatten(0, 2), targets.flatten())
        loss.backward()
        worker.zero_grad()
        worker.step()
        losses.append(loss.item())
    return losses


def one_short(model: Any, batches: Any, rate: float) -> list[float]:
    last = learn(copy.deepcopy(model), batches, rate)[-1]
    return [*learn(model, batches[:-1], rate), last]


def halved(model: Any, batches: Any, rate: float) -> list[float]:
    return learn(model, batches, rate / 2)


def start(student: Any, teacher: Any, chosen: Any) -> Any:
    mine, theirs = student.state_dict(), teacher.state_dict()
    for name in mine:
        if name.startswith("embeddings"):
            mine[name] = theirs[name]
        for i, j in enumerate(chosen):
            if name.startswith(f"encoder.layer.{i}."):
                mine[name] = theirs[name.replace(f"layer.{i}.", f"layer.{j}.", 1)]
    student.load_state_dict(mine)
    return student


def shared(student: Any, teacher: Any, chosen: Any) -> Any:
    for i, j in enumerate(chosen):
        student.encoder.layer[i] = teacher.encoder.layer[j]
    return student


def with_pooler(student: Any, teacher: Any, chosen: Any) -> Any:
    student.pooler.load_state_dict(teacher.pooler.state_dict())
    return start(student, teacher, chosen)


def backwards(student: Any, teacher: Any, chosen: Any) -> Any:
    for i, j in enumerate(chosen):
        teacher.encoder.layer[j].load_state_dict(student.encoder.layer[i].state_dict())
    return student


SOLUTIONS["widest_student"] = [widest, lambda *a: torch.tensor(widest(*a))]
SOLUTIONS["pieces_needed"] = [needed, lambda ids, share: np.int64(needed(ids, share))]
SOLUTIONS["learn"] = [
    learn,
    lambda m, b, r: tuple(map(float, learn(m, b, r))),
    lambda m, b, r: torch.stack(learn(m, b, r)),
]
SOLUTIONS["start_from"] = [start, lambda s, t, chosen: start(s, t, tuple(chosen))]

MUTANTS["widest_student"] = {
    "closest": (
        lambda n, b, v, h, m: min(
            range(h, 500, h), key=lambda w: abs(whole(v, w, n, h, 4 * w, m) - b)
        ),
        "parameters and does not fit",
    ),
    "smallest": (lambda n, b, v, h, m: h, "fits, and so does"),
    "not 0": (lambda *a: max(widest(*a), a[3]), "where not even one column"),
    "nothing": (lambda *a: 1, "is not a multiple of the heads"),
    "list": (lambda *a: [widest(*a)], "returned a list"),
}
MUTANTS["pieces_needed"] = {
    "fractions": (lambda ids, share: needed(ids, share) + (share == 1), "with share = 1"),
    "few": (lambda ids, share: needed(ids, share * 0.9), "make up less than"),
    "many": (lambda ids, share: needed(ids, share) + 2, "pieces do, not"),
    "floor": (
        lambda ids, share: needed(ids, int(share * 256) / 256),
        "the number of tokens wanted is rounded down",
    ),
    "ids": (lambda ids, share: list(range(needed(ids, share))), "returned a list"),
}
MUTANTS["learn"] = {
    "cleared late": (late, "the model never changes"),
    "one step short": (one_short, "the last step is missing"),
    "half the rate": (halved, "the first loss is right and the second"),
    "graphs": (with_graphs, "each with the computation behind it"),
    "last loss": (lambda m, b, r: learn(m, b, r)[-1], "returned a Tensor, but a list of numbers"),
    "every second": (lambda m, b, r: learn(m, b, r)[::2], "there are 3 losses for 6 updates"),
    "other loss": (
        lambda m, b, r: [-x for x in learn(m, b, r)],
        "the first loss is -",
    ),
}
MUTANTS["start_from"] = {
    "shared": (shared, "share a tensor"),
    "the teacher": (lambda s, t, chosen: t, "its own number of layers"),
    "backwards": (backwards, "the teacher was changed"),
    "pooler": (with_pooler, "pooler.dense.weight does not hold"),
    "sorted": (lambda s, t, chosen: start(s, t, sorted(chosen)), "chosen layers are sorted"),
    "frozen": (lambda s, t, chosen: start(s, t, chosen).requires_grad_(False), "be trained"),
    "states": (lambda s, t, chosen: start(s, t, chosen).state_dict(), "returned a OrderedDict"),
    "nothing": (lambda s, t, chosen: s, "embeddings.word_embeddings.weight does not"),
}


def walk(pointers: Any, jumps: int) -> Any:
    ends = np.zeros((*pointers.shape, jumps), dtype=int)
    for b, place in np.ndindex(*pointers.shape):
        here = place
        for jump in range(jumps):
            here = int(pointers[b, here])
            ends[b, place, jump] = here
    return ends


def nats(student: Any, teacher: Any, hidden: Any) -> Any:
    q, p = (x[hidden].log_softmax(-1) for x in (student, teacher))
    return F.kl_div(q, p, log_target=True, reduction="batchmean")


SOLUTIONS["follow"] = [walk, lambda *a: torch.from_numpy(walk(*a))]
SOLUTIONS["nats_apart"] = [
    nats,
    lambda s, t, hidden: (
        ((t.softmax(-1) * (t.softmax(-1) / s.softmax(-1)).log()).sum(-1) * hidden).sum()
        / hidden.sum()
    ),
]
MUTANTS["follow"] = {
    "second axis": (lambda *a: walk(*a).swapaxes(1, 2), "the jumps are the second axis"),
    "first axis": (lambda *a: np.moveaxis(walk(*a), 2, 0), "the jumps are the first axis"),
    "last only": (lambda *a: walk(*a)[..., -1], "there is one end for each place"),
    "list": (lambda *a: walk(*a).tolist(), "returned a list"),
    "other": (lambda p, jumps: walk((p + 1) % p.shape[1], jumps), "is right, on random input"),
}
MUTANTS["nats_apart"] = {
    "swapped": (lambda s, t, h: nats(t, s, h), "teacher and student are swapped"),
    "mean": (
        lambda s, t, h: F.kl_div(s[h].log_softmax(-1), t[h].softmax(-1), reduction="mean"),
        "the pieces are averaged",
    ),
    "no logs": (
        lambda s, t, h: F.kl_div(s[h].softmax(-1), t[h].softmax(-1), reduction="batchmean"),
        "is right, on random input",
    ),
    "by place": (
        lambda s, t, h: F.kl_div(
            s.log_softmax(-1), t.log_softmax(-1), log_target=True, reduction="none"
        ).sum(-1),
        "but a scalar",
    ),
    "number": (lambda *a: nats(*a).item(), "returned a float"),
}
