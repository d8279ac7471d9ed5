"""What a cache rounds away: the top-k targets' and the maps' errors, and the bytes of a row.

    python tools/measure_cache.py

The teacher and the text come with the library; the text is masked as in a cache. Two students stand
for the two ends of training: the teacher's shape with random weights, and the teacher itself with a
little noise on its weights. The profiles train at temperature 2.
"""

from __future__ import annotations

import copy

import torch
import typer
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel, set_seed

from comet_lib.attention import capture
from comet_lib.batches import mask_row, tokenize
from comet_lib.loading import load_model, load_tokenizer
from comet_lib.losses import attention_kl, soft_target_loss, soft_target_loss_topk, topk_of_logits
from comet_lib.models import build_student, only_positions
from comet_lib.profiles import get_profile
from comet_lib.teacher import Questions, decode_maps, encode_maps, predicted_bytes
from comet_lib.text import load_text


@torch.no_grad()
def answers(
    model: PreTrainedModel, batches: list[tuple[Tensor, ...]]
) -> tuple[Tensor, list[dict[int, Tensor]]]:
    """Logits (M, V) at all masked positions, and the maps of each batch."""
    logits, maps = [], []
    for ids, mask, masked in batches:
        with capture(model) as here, only_positions(model, masked):
            logits.append(model(input_ids=ids, attention_mask=mask).logits)
        maps.append(dict(here))
    return torch.cat(logits), maps


def main() -> None:
    """What a cache rounds away: errors of targets and maps, and the bytes of a row."""
    profile = get_profile("tiny")
    teacher, tokenizer = load_model(profile.teacher, "masked-lm"), load_tokenizer(profile.teacher)
    table = tokenize(load_text(profile)["text"][:], tokenizer, profile.max_length)
    made = [mask_row(ids, tokenizer, 0, i) for i, ids in enumerate(table["input_ids"])]
    batches = []
    for start in range(0, len(made), 32):
        rows = made[start : start + 32]
        ids = torch.full((len(rows), max(len(r[0]) for r in rows)), int(tokenizer.pad_token_id))
        mask, masked = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for at, (row, positions) in enumerate(rows):
            ids[at, : len(row)], mask[at, : len(row)] = torch.from_numpy(row), 1
            masked[at, positions] = True
        batches.append((ids, mask, masked))
    set_seed(0)
    fresh, near = build_student(teacher.config, "masked-lm").eval(), copy.deepcopy(teacher)
    with torch.no_grad():
        for weight in near.parameters():
            weight.add_(0.2 * weight.std().nan_to_num() * torch.randn_like(weight))
    truth, maps = answers(teacher, batches)
    print(f"{len(table)} rows, {len(truth)} masked positions, {truth.shape[-1]} pieces")
    students = [("random", answers(fresh, batches)[0]), ("near", answers(near, batches)[0])]
    print("  T    k  tail mass  student   dense loss  top-k loss    error   gradient's cosine")
    for temperature, k in [(t, k) for t in (1.0, 2.0) for k in (8, 64, 256)]:
        indices, top, tail = topk_of_logits(truth, k, temperature)
        stored = (indices, top.half(), tail)
        for name, logits in students:
            logits = logits.detach().requires_grad_()
            dense = soft_target_loss(logits, truth, temperature)
            short = soft_target_loss_topk(logits, *stored, temperature)
            one, other = (torch.autograd.grad(loss, logits)[0] for loss in (short, dense))
            cosine = cosine_similarity(one.flatten(), other.flatten(), dim=0)
            print(
                f"{temperature:3.0f}  {k:3d}  {tail.exp().mean().item():9.4f}  {name:8}  "
                f"{dense.item():10.4f}  {short.item():10.4f}  "
                f"{100 * (1 - short.item() / dense.item()):5.1f} %   {cosine.item():.4f}"
            )
    print("layer  KL(map || map from uint8), nats a row   largest error of an entry")
    for layer in maps[0]:
        errors, largest, weights = [], 0.0, []
        for (_, mask, _), one in zip(batches, maps, strict=True):
            back = decode_maps(encode_maps(one[layer], mask))
            errors.append(float(attention_kl(back, one[layer], mask) * mask.sum()))
            weights.append(float(mask.sum()))
            valid = (mask[:, :, None] * mask[:, None, :]).bool()
            largest = max(largest, float((back - one[layer])[valid].abs().max()))
        print(f"{layer:5d}  {sum(errors) / sum(weights):.2e}   {largest:.4f}")
    lengths = table["length"][:]
    print(
        "bytes a row: "
        + ", ".join(
            f"{predicted_bytes(lengths, Questions(tuple(range(6)), k=k)) / len(lengths):,.0f} "
            f"with k = {k}"
            for k in (8, 64, 256)
        )
        + f" (6 layers, {sum(lengths) / len(lengths):.0f} tokens a row)"
    )


if __name__ == "__main__":
    typer.run(main)
