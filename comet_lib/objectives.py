"""Stage 2 with one more thing to copy: the teacher's attention, states or relations.

The losses are those of :mod:`comet_lib.losses`; here they become one term of a training. The
teacher's side of it does not change from epoch to epoch, so :class:`TeacherStates` asks the teacher
once and keeps the answers on disk.

Shapes: B sequences, L tokens, n tokens of one row, D the teacher's width, layers in rising order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from comet_lib.attention import capture, capture_hidden, capture_qkv
from comet_lib.errors import CometError
from comet_lib.files import read_json, whole_folder, write_json
from comet_lib.losses import attention_loss, hidden_cosine, hidden_state_mse, qkv_relation_kl
from comet_lib.processes import share_of_batch
from comet_lib.teacher import CacheSettings, decode_maps, encode_maps, fingerprint
from comet_lib.training import Objective

#: What a student can copy -> how to see it in a model.
TERMS: dict[str, Any] = {
    "attention-mse": capture,  # eq. (3) of the losses
    "attention-kl": capture,  # eq. (4)
    "hidden-mse": capture_hidden,  # eq. (7)
    "hidden-cosine": capture_hidden,  # eq. (8)
    "relations": capture_qkv,  # eq. (9), the last layer of each, as MiniLM has it
}
PROJECTION = "comet_projection"  # a student's submodule, while it is trained with one
BATCH = 64  # rows in one forward pass of the teacher


class TeacherStates:
    """A teacher's maps, hidden states and queries, keys and values for the rows of a table.

    On disk, memory-mapped: head-mean maps as uint8 (:func:`comet_lib.teacher.encode_maps`), the
    others as float16. ``layers`` (from 0) have maps and states; Q, K, V are of the last layer.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.layers: list[int] = read_json(folder / "fingerprint.json")["layers"]
        self.lengths = np.load(folder / "lengths.npy")
        self.maps, self.hidden, self.qkv = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("maps", "hidden", "qkv")
        )
        self.first = np.concatenate([[0], np.cumsum(self.lengths)])
        self.first_pair = np.concatenate([[0], np.cumsum(self.lengths.astype(np.int64) ** 2)])

    @property
    def width(self) -> int:
        return self.hidden.shape[-1]

    def get(self, term: str, rows: Sequence[int], length: int, layers: Sequence[int]) -> Any:
        """The teacher's side of ``term`` for ``rows``, padded with zeros to ``length`` tokens.

        Maps: one (B, L, L) for each of ``layers``; states: one (B, L, D) for each; relations: Q, K
        and V, (B, L, D) each.
        """
        longest = max(self.lengths[row] for row in rows)
        if longest > length:
            raise CometError(
                f"a row has {longest} tokens for the teacher but {length} for the student: use one "
                "tokenizer and one max_length"
            )
        unknown = set(layers) - set(self.layers)
        if unknown:
            raise CometError(
                f"layer {min(unknown)} of the teacher was not kept, {self.layers} were"
            )
        at = [self.layers.index(layer) for layer in layers]
        if term.startswith("attention"):
            maps = np.zeros((len(at), len(rows), length, length), dtype=np.uint8)
            for b, row in enumerate(rows):
                n = self.lengths[row]
                kept = self.maps[at, self.first_pair[row] : self.first_pair[row + 1]]
                maps[:, b, :n, :n] = kept.reshape(len(at), n, n)
            return [decode_maps(torch.from_numpy(one)) for one in maps]
        source = self.qkv if term == "relations" else self.hidden
        at = [0, 1, 2] if term == "relations" else at
        out = np.zeros((len(at), len(rows), length, source.shape[-1]), dtype=np.float16)
        for b, row in enumerate(rows):
            out[:, b, : self.lengths[row]] = source[at, self.first[row] : self.first[row + 1]]
        return list(torch.from_numpy(out).float())


@torch.no_grad()
def ask_states(
    folder: str | Path,
    table: Dataset,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    layers: Sequence[int],
    max_length: int,
) -> TeacherStates:
    """Ask ``teacher`` about every row of ``table`` (of ``tokenise``), or open what a run before
    kept in ``folder``; a folder of other rows, layers or weights is made anew."""
    folder, last = Path(folder), teacher.config.num_hidden_layers - 1
    layers = sorted(set(layers))
    mark = fingerprint(table, teacher, tokenizer, CacheSettings(tuple(layers), 1.0, 0, max_length))
    if (folder / "fingerprint.json").is_file() and read_json(folder / "fingerprint.json") == mark:
        return TeacherStates(folder)
    lengths = np.asarray(table["length"][:], dtype=np.int64)
    first, first_pair = (np.concatenate([[0], np.cumsum(x)]) for x in (lengths, lengths**2))
    shapes = {
        "maps": (np.uint8, (len(layers), int(first_pair[-1]))),
        "hidden": (np.float16, (len(layers), int(first[-1]), teacher.config.hidden_size)),
        "qkv": (np.float16, (3, int(first[-1]), teacher.config.hidden_size)),
    }
    teacher.eval()
    with whole_folder(folder) as made:
        kept = {
            name: np.lib.format.open_memmap(made / f"{name}.npy", "w+", kind, shape)
            for name, (kind, shape) in shapes.items()
        }
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH].tolist()
            ids = table[rows]
            batch = tokenizer.pad(
                {name: ids[name] for name in ("input_ids", "attention_mask")}, return_tensors="pt"
            ).to(teacher.device)
            mask = batch["attention_mask"]
            with (
                capture(teacher, layers) as maps,
                capture_hidden(teacher, layers) as hidden,
                capture_qkv(teacher, [last]) as qkv,
            ):
                teacher(input_ids=batch["input_ids"], attention_mask=mask)
            codes = torch.stack([encode_maps(maps[i], mask) for i in layers]).cpu().numpy()
            states = torch.stack([hidden[i] for i in layers]).half().cpu().numpy()
            three = torch.stack(qkv[last]).half().cpu().numpy()
            for b, row in enumerate(rows):
                n, here = lengths[row], slice(first[row], first[row + 1])
                kept["maps"][:, first_pair[row] : first_pair[row + 1]] = codes[
                    :, b, :n, :n
                ].reshape(len(layers), -1)
                kept["hidden"][:, here] = states[:, b, :n]
                kept["qkv"][:, here] = three[:, b, :n]
        for array in kept.values():
            array.flush()
        np.save(made / "lengths.npy", lengths)
        write_json(made / "fingerprint.json", mark)
    return TeacherStates(folder)


@contextmanager
def projected(student: PreTrainedModel, term: str, count: int, width: int) -> Iterator[None]:
    """Inside, a student that copies hidden states has ``count`` maps ``Linear(d, width)``, W of
    eq. (7), which are trained with it; other terms need none. They are gone afterwards."""
    if term.startswith("hidden"):
        size = student.config.hidden_size
        student.add_module(
            PROJECTION, nn.ModuleList(nn.Linear(size, width, bias=False) for _ in range(count))
        )
    try:
        yield
    finally:
        student._modules.pop(PROJECTION, None)


class Guided:
    """An objective and one more term:  loss = objective + weight * term                 (12)

    Args:
        objective: stage 2's, which runs the student once.
        states: the teacher's answers; a batch's ``row`` (B,) says which. A batch without ``row``
            (evaluation) gets the objective alone.
        matches: student layer -> teacher layer (relations: the last layers, whatever it says).
        relation_heads: r of eq. (9); it must divide both widths.
    """

    def __init__(
        self,
        objective: Objective,
        states: TeacherStates,
        term: str,
        matches: Mapping[int, int],
        weight: float = 1.0,
        relation_heads: int = 1,
    ) -> None:
        if term not in TERMS:
            raise CometError(f"unknown term {term!r}: choose one of {', '.join(TERMS)}")
        self.objective, self.states, self.term = objective, states, term
        self.matches, self.weight, self.relation_heads = dict(matches), weight, relation_heads

    def __call__(self, student: nn.Module, batch: dict[str, Tensor]) -> dict[str, Any]:
        if "row" not in batch:
            return self.objective(student, batch)
        core: Any = getattr(student, "module", student)  # without DistributedDataParallel
        mask = batch["attention_mask"]
        layers = [-1] if self.term == "relations" else list(self.matches)
        with TERMS[self.term](core, layers) as found:
            terms = self.objective(student, batch)
        teacher = [
            x.to(mask.device)
            for x in self.states.get(
                self.term, batch["row"].tolist(), mask.shape[1], list(self.matches.values())
            )
        ]
        extra = self._term(core, found, teacher, mask)
        share = share_of_batch(mask.sum()) if student.training else 1.0
        loss = terms["loss"] + self.weight * share * extra
        return {**terms, "loss": loss, self.term: extra.detach()}

    def _term(
        self, core: Any, found: Mapping[int, Any], teacher: list[Tensor], mask: Tensor
    ) -> Tensor:
        if self.term == "relations":
            (ours,) = found.values()
            return qkv_relation_kl(ours, teacher, mask, self.relation_heads)
        ours = [found[layer] for layer in self.matches]
        if self.term.startswith("attention"):
            return attention_loss(ours, teacher, mask, self.term.removeprefix("attention-"))
        compare = hidden_state_mse if self.term == "hidden-mse" else hidden_cosine
        return torch.stack(
            [
                compare(s, t, mask, projection)
                for s, t, projection in zip(ours, teacher, getattr(core, PROJECTION), strict=True)
            ]
        ).mean()
