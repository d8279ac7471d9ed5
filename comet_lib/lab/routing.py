"""A task whose label hangs on *where to look*: when does attention matching pay?

The label of a text is the word behind its marker. Every word also occurs as a distractor, so the
words of a text say little about its label:

    <s> bel dor [here] ama dor cil dor </s>     label: ama

:func:`most_frequent` labels the same texts so that a bag of words is enough (dor). Teacher and
student are stock XLM-R classifiers with a dozen pieces. A seed decides everything that is drawn.

Shapes: N texts (B in a batch), L places, C words and classes, H heads. *Texts* are a dict of
tensors: ``input_ids`` and ``attention_mask`` (N, L), ``labels`` (N,), ``answer_at`` (N,), the place
of the word behind the marker; from :func:`ask` also the teacher's ``logits`` (N, C) and head means
``maps`` (N, layers, L, L).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from comet_lib.attention import capture, capture_maps
from comet_lib.losses import attention_loss, soft_target_loss
from comet_lib.models import build_student, xlmr_config
from comet_lib.profiles import shape

Texts = dict[str, Tensor]

SPECIAL = ("<s>", "<pad>", "</s>", "[here]")  # the first three are numbered as XLM-R does
WORDS = ("ama", "bel", "cil", "dor", "eku", "fin", "gul", "han")
BEGIN, PAD, END, MARKER = range(4)
LENGTHS = (8, 12)  # places between <s> and </s>, the marker's included
TEACHER, STUDENT = shape(64, 2, 4, 256), shape(16, 2, 2, 64)


def draw_texts(count: int, seed: int) -> Texts:
    """``count`` texts, padded to one length; the label is the word behind the marker."""
    source = torch.Generator().manual_seed(seed)
    places = torch.arange(LENGTHS[1] + 2)
    lengths = torch.randint(LENGTHS[0], LENGTHS[1] + 1, (count, 1), generator=source)
    words = torch.randint(len(WORDS), (count, len(places)), generator=source)
    marker = 1 + (torch.rand(count, 1, generator=source) * (lengths - 1)).long()
    ids = (words + len(SPECIAL)).masked_fill(places == marker, MARKER)
    ids = ids.masked_fill(places == 0, BEGIN).masked_fill(places == lengths + 1, END)
    return {
        "input_ids": ids.masked_fill(places > lengths + 1, PAD),
        "attention_mask": (places <= lengths + 1).long(),
        "labels": words.gather(1, marker + 1).squeeze(1),
        "answer_at": marker.squeeze(1) + 1,
    }


def most_frequent(texts: Texts) -> Texts:
    """The same texts, labeled with their most frequent word (of several, the first in WORDS)."""
    counts = F.one_hot(texts["input_ids"], len(SPECIAL) + len(WORDS)).sum(1)
    return {**texts, "labels": counts[:, len(SPECIAL) :].argmax(1)}


def pieces(texts: Texts, number: int) -> list[str]:
    """One text as words, without its padding."""
    ids, mask = texts["input_ids"][number], texts["attention_mask"][number].bool()
    return [(*SPECIAL, *WORDS)[piece] for piece in ids[mask].tolist()]


def new_model(sizes: Mapping[str, Any], seed: int) -> PreTrainedModel:
    """A classifier without dropout, its weights drawn from ``seed``; ``sizes`` as in profiles."""
    more: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    more["initializer_range"] = 0.1  # with 0.02 a narrow model starts slowly
    config = xlmr_config(sizes, len(SPECIAL) + len(WORDS), LENGTHS[1] + 2, **more)
    config.id2label = dict(enumerate(WORDS))
    config.label2id = {word: number for number, word in enumerate(WORDS)}
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it is
        torch.manual_seed(seed)
        return build_student(config)


def inputs(texts: Texts) -> Texts:
    """What a model reads of them."""
    return {name: texts[name] for name in ("input_ids", "attention_mask")}


def batches(texts: Texts, steps: int, seed: int, size: int = 32) -> Iterator[Texts]:
    """``steps`` batches of ``size`` texts each, drawn with replacement."""
    source = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(texts["labels"]), (size,), generator=source)
        yield {name: values[chosen] for name, values in texts.items()}


def hybrid_step(
    student: PreTrainedModel,
    batch: Texts,
    soft: float = 1.0,
    attention: float = 1.0,
    layers: Sequence[int] = (0, 1),
) -> Tensor:
    """One forward and backward pass: returns the loss () and adds its gradient to the weights'.

        loss = hard labels + soft * soft targets (T = 1) + attention * row-wise KL of the maps

    The maps of ``layers`` are matched, student layer i with teacher layer i.
    """
    with capture(student, layers) as maps:
        logits = student(**inputs(batch)).logits
    loss = F.cross_entropy(logits, batch["labels"])
    if soft:
        loss = loss + soft * soft_target_loss(logits, batch["logits"])
    if attention:
        theirs = [batch["maps"][:, layer] for layer in layers]
        loss = loss + attention * attention_loss(maps, theirs, batch["attention_mask"])
    loss.backward()
    return loss


def train(
    model: PreTrainedModel,
    many: Iterable[Texts],
    step: Callable[[PreTrainedModel, Texts], Any],
    rate: float,
    test: Texts,
    at: Collection[int] = (),
) -> dict[int, float]:
    """Train ``model`` in place with AdamW; returns its accuracy on ``test`` after the steps ``at``.

    ``step(model, batch)`` leaves the gradient in the weights, as :func:`hybrid_step` does.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True)
    curve = {}
    for number, batch in enumerate(many, start=1):
        optimizer.zero_grad()
        step(model.train(), batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if number in at:
            curve[number] = accuracy(model, test)
    return curve


@torch.no_grad()
def accuracy(model: PreTrainedModel, texts: Texts) -> float:
    """Percent of the texts that the model answers right."""
    answers = model.eval()(**inputs(texts)).logits.argmax(-1)
    return 100 * (answers == texts["labels"]).float().mean().item()


def ask(teacher: PreTrainedModel, texts: Texts) -> Texts:
    """The texts with their teacher's ``logits`` and ``maps``."""
    maps = capture_maps(teacher, inputs(texts))
    with torch.no_grad():
        logits = teacher(**inputs(texts)).logits
    return {**texts, "logits": logits, "maps": torch.stack([*maps.values()], 1)}


def others_maps(maps: Tensor, mask: Tensor) -> Tensor:
    """The shuffled teacher: each text gets the maps of the next text with as many tokens (the last
    gets the first's). Maps (N, layers, L, L), mask (N, L) -> (N, layers, L, L)."""
    shuffled, lengths = maps.clone(), mask.sum(1)
    for length in lengths.unique():
        same = (lengths == length).nonzero().flatten()
        shuffled[same] = maps[same.roll(-1)]
    return shuffled


def scrambled_maps(maps: Tensor, mask: Tensor, seed: int = 0) -> Tensor:
    """Each row of each map with its numbers in a random order over the valid keys: as sharp as
    before, and about nothing. Shapes as in :func:`others_maps`."""
    source = torch.Generator().manual_seed(seed)
    draws = torch.rand(maps.shape, generator=source) + (mask == 0)[:, None, None]
    return maps.gather(-1, draws.argsort(-1))  # padding sorts last, where it is


def weight_on_answer(maps: Tensor, answer_at: Tensor) -> Tensor:
    """How much <s> looks at the word behind the marker, mean over the texts: one layer's maps
    (N, H, L, L) and places (N,) -> (H,)."""
    return maps[torch.arange(len(maps)), :, 0, answer_at].mean(0)
