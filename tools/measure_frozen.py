"""What a student loses if its embeddings are frozen in stage 1, throughout or at first.

    python tools/measure_frozen.py --data DIR [--sentences 2000] [--seeds 3]

Runs stage 1 of the laptop profile, from the teacher's embeddings and from random ones, three ways:
all weights trained; the table frozen; the table frozen for the first two thirds and then thawed.
Prints the final loss on held-out sentences, which none of the three has seen: lower is better.
``python -m comet_lib lab benchmark`` says how much faster a frozen step is.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from transformers import TrainerCallback, set_seed

from comet_lib.loading import load_model, load_tokenizer
from comet_lib.models import build_student, initialize_embeddings
from comet_lib.profiles import get_profile
from comet_lib.recipe import student_config
from comet_lib.text import load_text
from comet_lib.training import distil_task_agnostic

WAYS = {"trained": 0.0, "frozen": 1.0, "thawed": 2 / 3}  # way -> share of steps with a frozen table


class Frozen(TrainerCallback):
    """No gradient for the embeddings in the first ``share`` of the steps."""

    def __init__(self, share: float) -> None:
        self.share = share

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        table = kwargs["model"].get_input_embeddings().weight
        table.requires_grad_(state.global_step >= self.share * state.max_steps)


def main(
    data: Annotated[Path, typer.Option(help="Folder with text/.")],
    sentences: Annotated[int, typer.Option(min=100, help="Of each language.")] = 2000,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each way.")] = 3,
) -> None:
    """What a student loses if its embeddings are frozen in stage 1, throughout or at first."""
    profile = get_profile("laptop", data).with_(default_text_limit=sentences)
    texts = load_text(profile)["text"][:]
    teacher, tokenizer = load_model(profile.teacher, "masked-lm"), load_tokenizer(profile.teacher)
    print(f"{len(texts):,} sentences, {profile.stage1.epochs:g} epoch, {seeds} seeds")
    for start in ("teacher's", "random"):
        for way, share in WAYS.items():
            losses = []
            for seed in range(seeds):
                set_seed(seed)
                student = build_student(student_config(profile, teacher), "masked-lm")
                if start == "teacher's":
                    initialize_embeddings(student, teacher)
                with tempfile.TemporaryDirectory() as folder:
                    log = distil_task_agnostic(
                        student,
                        teacher,
                        tokenizer,
                        texts,
                        profile.with_(seed=seed),
                        folder,
                        callbacks=[Frozen(share)],
                        save_strategy="no",
                        disable_tqdm=True,
                    )
                losses += [row["eval_loss"] for row in log if "eval_loss" in row][-1:]
            each = ", ".join(f"{loss:.3f}" for loss in losses)
            print(f"{start:10} {way:8} held-out loss {mean(losses):.3f} ({each})", flush=True)


if __name__ == "__main__":
    typer.run(main)
