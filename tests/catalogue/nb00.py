"""Right and wrong answers to the exercises of notebook 00."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from comet_lib import evaluation

Answer = Callable[..., Any]


def slow_kd(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(teacher || student), entry by entry."""
    total = torch.zeros(())
    for s_row, t_row in zip(student, teacher.detach(), strict=True):
        s_sum = torch.logsumexp(s_row / temperature, 0)
        t_sum = torch.logsumexp(t_row / temperature, 0)
        for s, t in zip(s_row, t_row, strict=True):
            log_p, log_q = t / temperature - t_sum, s / temperature - s_sum
            total = total + log_p.exp() * (log_p - log_q)
    return total / len(student) * temperature**2


def hand_train(
    student, batches, epochs, learning_rate, temperature, mode=True, keep=float, left=False
):
    optimizer = torch.optim.AdamW(student.parameters(), learning_rate)
    student.train(mode)
    losses = []
    for _ in range(epochs):
        for inputs, teacher_logits in batches:
            optimizer.zero_grad()
            loss = slow_kd(student(**inputs).logits, teacher_logits, temperature)
            loss.backward()
            optimizer.step()
            losses.append(keep(loss))
    student.train(left)
    return losses


def no_step(student, batches, epochs, learning_rate, temperature):
    losses = []
    for inputs, teacher_logits in batches * epochs:
        loss = slow_kd(student(**inputs).logits, teacher_logits, temperature)
        loss.backward()
        losses.append(loss.item())
    return losses


def ask_in(how, model, tokenize, texts, size, inside=lambda x: x):
    pairs = []
    for start in range(0, len(texts), size):
        inputs = tokenize(list(texts[start : start + size]))
        with how:
            pairs.append((inputs, inside(model(**inputs).logits)))
    return pairs


def ask_the_rest(model, tokenize, texts, size):
    first = ask_in(torch.no_grad(), model, tokenize, texts[:size], size)
    return first + ask_the_rest(model, tokenize, texts[size:], size) if texts else first


def kl_of(log_q: torch.Tensor, p: torch.Tensor, reduction: str = "batchmean") -> torch.Tensor:
    return F.kl_div(log_q, p, reduction=reduction)


SOLUTIONS: dict[str, list[Answer]] = {
    "soft_targets": [
        lambda x, T: torch.softmax(x / T, dim=-1),
        lambda x, T: F.log_softmax(x / T, -1).exp(),
        lambda x, T: torch.exp(x / T) / torch.exp(x / T).sum(-1, keepdim=True),
        lambda x, T: torch.softmax(x / T, -1).numpy(),
        lambda x, T: F.normalize(torch.exp((x - x.amax(-1, keepdim=True)) / T), p=1, dim=-1),
    ],
    "kd_loss": [
        lambda s, t, T: kl_of(F.log_softmax(s / T, -1), F.softmax(t.detach() / T, -1)) * T * T,
        lambda s, t, T: (
            T**2
            * F.kl_div(
                F.log_softmax(s / T, -1),
                F.log_softmax(t.detach() / T, -1),
                reduction="sum",
                log_target=True,
            )
            / s.shape[0]
        ),
        slow_kd,
    ],
    "answers": [
        lambda *a: ask_in(torch.no_grad(), *a),
        lambda *a: tuple(list(pair) for pair in ask_in(torch.inference_mode(), *a)),
        ask_the_rest,
    ],
    "train": [
        hand_train,
        lambda *a: tuple(hand_train(*a)),
        lambda *a: np.array(hand_train(*a)),
        lambda *a: hand_train(*a, keep=torch.Tensor.detach),
    ],
    "agreement": [
        lambda a, b: 100 * (a.argmax(-1) == b.argmax(-1)).float().mean().item(),
        lambda a, b: np.mean(a.numpy().argmax(1) == b.numpy().argmax(1)) * 100,
        lambda a, b: (
            sum(x.argmax() == y.argmax() for x, y in zip(a, b, strict=True)) / len(a) * 100
        ),
    ],
    "retention": [
        lambda s, t: 100 * s / t,
        lambda s, t: torch.tensor(100 * s / t),
        lambda s, t: np.float64(s / t * 100),
        evaluation.retention,
    ],
}

MUTANTS: dict[str, dict[str, tuple[Answer, str]]] = {
    "soft_targets": {
        "power": (lambda x, T: torch.softmax(x, -1) ** (1 / T), "do not sum to 1"),
        "argmax": (lambda x, T: x.argmax(-1), "shape"),
        "other": (lambda x, T: torch.softmax(x / T**0.5, -1), "is right, on random input"),
        "list": (lambda x, T: torch.softmax(x / T, -1).tolist(), "returned a list"),
        "in place": (lambda x, T: torch.softmax(x.div_(T), -1), "changed its argument 1"),
        "nan": (lambda x, T: torch.log(x), "NaN"),
        "infinite": (lambda x, T: x / 0, "infinity"),
        "raises": (lambda x, T: torch.softmax(x / T, 9), "IndexError"),
        "no return": (lambda x, T: None, "returned None"),
        "two arguments": (lambda x: torch.softmax(x, -1), "TypeError"),
    },
    "kd_loss": {
        "floor": (
            lambda s, t, T: (
                T**2
                * kl_of((s / T).softmax(-1).clamp_min(1e-30).log(), (t.detach() / T).softmax(-1))
            ),
            "where a model is very sure, the loss is too small",
        ),
        "no T squared": (
            lambda s, t, T: kl_of(F.log_softmax(s / T, -1), F.softmax(t.detach() / T, -1)),
            "T squared is missing",
        ),
        "one T": (
            lambda s, t, T: kl_of(F.log_softmax(s / T, -1), F.softmax(t.detach() / T, -1)) * T,
            "multiplied by T, not by T squared",
        ),
        "over T squared": (
            lambda s, t, T: kl_of(F.log_softmax(s / T, -1), F.softmax(t / T, -1)) / T**2,
            "divided by T squared",
        ),
        "swapped": (
            lambda s, t, T: kl_of(F.log_softmax(t / T, -1), F.softmax(s / T, -1)) * T * T,
            "sides of the KL divergence are swapped",
        ),
        "mean": (
            lambda s, t, T: kl_of(F.log_softmax(s / T, -1), F.softmax(t / T, -1), "mean") * T**2,
            "reduction='mean'",
        ),
        "sum": (
            lambda s, t, T: kl_of(F.log_softmax(s / T, -1), F.softmax(t / T, -1), "sum") * T**2,
            "summed over the batch",
        ),
        "no log": (
            lambda s, t, T: kl_of(F.softmax(s / T, -1), F.softmax(t / T, -1)) * T * T,
            "without the logarithm",
        ),
        "raw logits": (
            lambda s, t, T: kl_of(s / T, F.softmax(t / T, -1)) * T * T,
            "raw logits",
        ),
        "log target": (
            lambda s, t, T: (
                F.kl_div(
                    F.log_softmax(s / T, -1),
                    F.softmax(t / T, -1),
                    log_target=True,
                    reduction="batchmean",
                )
                * T**2
            ),
            "read as logarithms",
        ),
        "log target forgotten": (
            lambda s, t, T: kl_of(F.log_softmax(s / T, -1), F.log_softmax(t / T, -1)) * T * T,
            "logarithm as its second argument. First",
        ),
        "student only": (
            lambda s, t, T: kl_of(F.log_softmax(s / T, -1), F.softmax(t, -1)) * T * T,
            "softens the student only",
        ),
        "teacher only": (
            lambda s, t, T: kl_of(F.log_softmax(s, -1), F.softmax(t / T, -1)) * T * T,
            "softens the teacher only",
        ),
        "no T in the softmax": (
            lambda s, t, T: kl_of(F.log_softmax(s, -1), F.softmax(t, -1)) * T * T,
            "does not soften the logits",
        ),
        "times T": (
            lambda s, t, T: kl_of(F.log_softmax(s * T, -1), F.softmax(t * T, -1)) * T * T,
            "multiplied by the temperature",
        ),
        "not detached": (
            lambda s, t, T: kl_of(F.log_softmax(s / T, -1), F.softmax(t / T, -1)) * T * T,
            "gradient reaches the teacher",
        ),
        "cross-entropy": (
            lambda s, t, T: F.cross_entropy(s / T, F.softmax(t / T, -1)) * T * T,
            "cross-entropy",
        ),
        "hard labels": (
            lambda s, t, T: F.cross_entropy(s / T, t.argmax(-1)) * T * T,
            "hard label",
        ),
        "first axis": (
            lambda s, t, T: kl_of(F.log_softmax(s / T, 0), F.softmax(t / T, 0)) * T * T,
            "over the batch. The classes are the last axis",
        ),
        "negative": (
            lambda s, t, T: -kl_of(F.log_softmax(s / T, -1), F.softmax(t / T, -1)) * T * T,
            "sign is wrong",
        ),
        "two slips": (
            lambda s, t, T: kl_of(F.log_softmax(s / T, -1), F.softmax(t / T, -1), "mean"),
            "two things at once",
        ),
        "no gradient": (
            lambda s, t, T: slow_kd(s.detach(), t, T),
            "no gradient reaches the student",
        ),
        "half a gradient": (
            lambda s, t, T: (slow_kd(s, t, T) + slow_kd(s.detach(), t, T)) / 2,
            "the student's gradient is not",
        ),
        "underflow": (
            lambda s, t, T: (
                (
                    (
                        F.softmax(t.detach() / T, -1)
                        * (F.softmax(t.detach() / T, -1).log() - F.softmax(s / T, -1).log())
                    ).sum(-1)
                ).mean()
                * T
                * T
            ),
            "large logits",
        ),
        "squared error": (lambda s, t, T: (s - t).pow(2).mean(), "squared error of the logits"),
        "shifted": (lambda s, t, T: slow_kd(s, t, T) + s.mean() - t.mean(), "changes the loss"),
        "not zero": (lambda s, t, T: slow_kd(s, t, T) + 1, "a loss other than 0"),
        "wrong power": (lambda s, t, T: slow_kd(s, t, T) * T, "right at temperature 1"),
        "not reduced": (
            lambda s, t, T: kl_of(F.log_softmax(s / T, -1), F.softmax(t / T, -1), "none"),
            "but a scalar",
        ),
        "item": (lambda s, t, T: slow_kd(s, t, T).item(), "returned a float"),
        "raises": (lambda s, t, T: s @ t, "RuntimeError"),
    },
    "answers": {
        "detached": (
            lambda *a: ask_in(torch.enable_grad(), *a, torch.Tensor.detach),
            "would need for gradients",
        ),
        "training mode": (
            lambda m, *a: ask_in(torch.no_grad(), m.train(), *a),
            "in training mode",
        ),
        "logits only": (lambda *a: [p for _, p in ask_in(torch.no_grad(), *a)], "a list of pairs"),
        "classes": (
            lambda *a: ask_in(torch.no_grad(), *a, lambda x: x.argmax(-1)),
            "of a pair has shape (3,)",
        ),
        "one text": (lambda m, f, x, n: [(f(t), m(**f(t)).logits) for t in x], "a list of texts"),
        "one more": (
            lambda m, f, x, n: ask_in(torch.no_grad(), m, f, x, n + 1),
            "at a time, give batches of",
        ),
        "a little": (
            lambda *a: ask_in(torch.no_grad(), *a, lambda x: x + 0.1),
            "is right, on random input",
        ),
    },
    "train": {
        "no step": (no_step, "weights have not changed"),
        "eval mode": (lambda *a: hand_train(*a, mode=False), "in eval mode"),
        "no eval": (lambda *a: hand_train(*a, left=True), "left in training mode"),
        "graphs": (
            lambda *a: hand_train(*a, keep=lambda x: x),
            "each with the computation behind it",
        ),
        "last epoch": (lambda *a: hand_train(*a)[-3:], "there are 3 losses for 6 updates"),
        "one number": (lambda *a: hand_train(*a)[-1], "a list of numbers is wanted"),
        "means": (
            lambda *a: [sum(hand_train(*a)) / 6] * (3 * a[2]),
            "is right, on random input",
        ),
    },
    "agreement": {
        "each row": (lambda a, b: a.argmax(-1) == b.argmax(-1), "returned a Tensor"),
        "all": (lambda a, b: bool((a.argmax(-1) == b.argmax(-1)).all()), "returned a bool"),
        "fraction": (lambda a, b: (a.argmax(-1) == b.argmax(-1)).float().mean(), "a fraction"),
    },
    "retention": {
        "lost": (lambda s, t: 100 * (1 - s / t), "percentage lost"),
        "cut": (lambda s, t: 100 * s // t, "is cut"),
        "text": (lambda s, t: f"{100 * s / t} %", "returned a str"),
        "truth": (lambda s, t: s > t, "returned a bool"),
    },
}
