"""Draw the README's picture: a student's attention as it becomes the teacher's.

    python tools/draw_copying.py        # writes docs/images/copying.gif; under a minute, no network

A random student of the laptop profile's size trains on the bundled sample, with soft targets and
attention matching (row-wise KL) against the bundled teacher. The sentence shown is not among the
texts it trains on. The picture plays once and ends with the trained student.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import PowerNorm
from PIL import Image
from transformers import set_seed

from comet_lib.attention import capture, layer_map
from comet_lib.loading import load_pair
from comet_lib.losses import attention_loss, hybrid_loss, soft_target_loss
from comet_lib.models import build_student, xlmr_config
from comet_lib.plots import MAP_COLORS
from comet_lib.profiles import ASSETS, get_profile
from comet_lib.similarity import js_divergence

TARGET = Path(__file__).resolve().parent.parent / "docs" / "images" / "copying.gif"
SENTENCE = "Olùkọ́ tuntun yìí mọ bí a ṣe ń kọ́ ọmọ, ìṣirò ti wá rọrùn fún mi."
STEPS, EVERY = 96, 4
LAYER = 0  # of the student


def main() -> None:
    set_seed(0)
    profile = get_profile("tiny")
    teacher, tokenizer = load_pair(profile.teacher)
    student = build_student(xlmr_config(profile.student, len(tokenizer)), head="sentiment")
    layers = layer_map(student.config.num_hidden_layers, teacher.config.num_hidden_layers)
    texts = [
        line
        for path in sorted((ASSETS / "sample" / "transfer").glob("*.txt"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    shown = tokenizer([SENTENCE], return_tensors="pt")
    names = [t.replace("▁", "_") for t in tokenizer.convert_ids_to_tokens(shown.input_ids[0])]

    def maps(model: torch.nn.Module, layer: int) -> torch.Tensor:
        with torch.no_grad(), capture(model, [layer]) as found:
            model(**shown)
        return found[layer]

    theirs = maps(teacher, layers[LAYER])
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    frames = []
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            ours = maps(student.eval(), LAYER)
            apart = js_divergence(theirs, ours, shown.attention_mask).mean().item()
            panels = {
                f"teacher, layer {layers[LAYER]}": theirs[0],
                f"student, after {step} steps": ours[0],
            }
            frames.append(frame(panels, names, f"{apart:.2f} nats apart"))
        chosen = [texts[i] for i in torch.randint(len(texts), (16,))]
        batch = tokenizer(chosen, padding=True, return_tensors="pt")
        with torch.no_grad(), capture(teacher, layers) as teacher_maps:
            answers = teacher(**batch).logits
        with capture(student.train()) as student_maps:
            logits = student(**batch).logits
        soft = soft_target_loss(logits, answers, temperature=2.0)
        attention = attention_loss(student_maps, teacher_maps, batch["attention_mask"], kind="kl")
        optimizer.zero_grad()
        hybrid_loss(soft, attention, alpha=0.5).backward()
        optimizer.step()
    colors = frames[-1].quantize(128)
    pictures = [one.quantize(palette=colors, dither=Image.Dither.NONE) for one in frames]
    pictures[0].save(TARGET, save_all=True, append_images=pictures[1:], duration=130, optimize=True)
    print(f"{TARGET.name}: {TARGET.stat().st_size / 1e3:.0f} KB, {apart:.3f} nats apart at the end")


def frame(panels: dict[str, torch.Tensor], names: list[str], finding: str) -> Image.Image:
    """Maps (L, L) of the same sentence side by side, on one color scale."""
    figure, row = plt.subplots(1, len(panels), figsize=(9, 5.1), layout="constrained", dpi=90)
    norm = PowerNorm(0.5, 0, float(next(iter(panels.values())).max()))  # the teacher's: it stays
    for axes, (title, one) in zip(row, panels.items(), strict=True):
        axes.imshow(one, cmap=MAP_COLORS, norm=norm)
        axes.set_title(title)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axes.set_yticks(range(len(names)), names if axes is row[0] else [], fontsize=8)
        axes.tick_params(length=0)
    figure.suptitle(f"Where each piece of the sentence looks: {finding}\n", fontsize=11)
    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    plt.close(figure)
    return picture


if __name__ == "__main__":
    main()
