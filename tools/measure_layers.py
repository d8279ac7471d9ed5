"""What a student gains from its teacher's layers, not only its embeddings.

    python tools/measure_layers.py --data DIR [--tweets 4000] [--seeds 3]

The student has the width of the course's small teacher, so that layers fit, and half as many
layers: those that it would learn from. Both starts have the teacher's embeddings and are fine-tuned
only on labels. The interval is a paired bootstrap over tweets and seeds.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from transformers import PreTrainedModel, set_seed

from comet_lib.attention import encoder_layers, layer_map
from comet_lib.data import load_sentiment, unseen
from comet_lib.evaluation import mean_weighted_f1
from comet_lib.lab.comparison import compared, f1_draws
from comet_lib.loading import load_model, load_tokenizer
from comet_lib.models import build_student
from comet_lib.profiles import get_profile
from comet_lib.recipe import teacher_probabilities
from comet_lib.training import fine_tune

RATE = 1e-3  # a third of the narrow student's: this one is three times as wide


def student_of(teacher: PreTrainedModel, layers: bool) -> PreTrainedModel:
    """The teacher's embeddings under half as many layers: its own (``layers``) or random ones."""
    config = type(teacher.config)(**teacher.config.to_dict())
    config.num_hidden_layers = teacher.config.num_hidden_layers // 2
    student = build_student(config)
    student.base_model.embeddings.load_state_dict(teacher.base_model.embeddings.state_dict())
    if layers:
        chosen = layer_map(config.num_hidden_layers, teacher.config.num_hidden_layers)
        for layer, source in zip(encoder_layers(student), chosen, strict=True):
            layer.load_state_dict(encoder_layers(teacher)[source].state_dict())
    return student


def main(
    data: Annotated[Path, typer.Option(help="Folder with afrisenti/.")],
    tweets: Annotated[int, typer.Option(min=10, help="Training tweets per language.")] = 4000,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each start.")] = 3,
) -> None:
    """What a student gains from its teacher's layers, not only its embeddings."""
    profile = get_profile("laptop", data).with_(train_limit=tweets)
    profile = profile.with_(stage2=replace(profile.stage2, learning_rate=RATE, terms={}))
    table = load_sentiment(profile)
    teacher, tokenizer = (
        load_model(profile.sentiment_teacher),
        load_tokenizer(profile.sentiment_teacher),
    )
    labels, languages = (np.array(table["test"][name][:]) for name in ("label", "language"))
    answers = []
    for layers in (True, False):
        for seed in range(seeds):
            set_seed(seed)
            student = student_of(teacher, layers)
            with tempfile.TemporaryDirectory() as folder:
                fine_tune(
                    student,
                    tokenizer,
                    table["train"],
                    unseen(table["dev"]),
                    profile.with_(seed=seed),
                    folder,
                    disable_tqdm=True,
                )
            asked = teacher_probabilities(student, tokenizer, table["test"]["text"][:], profile)
            answers.append(asked.argmax(1))
            score = mean_weighted_f1(labels, answers[-1], languages)["mean"]
            start = "embeddings and layers" if layers else "embeddings alone"
            print(f"{start:22} seed {seed}: {score:.1f}", flush=True)
    guesses, rng = np.stack(answers), np.random.default_rng(0)
    drawn = f1_draws(labels, languages, guesses, 2000, rng)
    f1 = np.array([mean_weighted_f1(labels, g, languages)["mean"] for g in guesses])
    test = compared(f1[:seeds] - f1[seeds:], drawn[:, :seeds] - drawn[:, seeds:], rng)
    low, high = test["ci95"]
    print(
        f"the layers add {test['mean']:+.1f} points ({low:+.1f} to {high:+.1f}, p {test['p']:.3f}) "
        f"of mean weighted F1 on test, from {len(table['train']):,} tweets with labels"
    )


if __name__ == "__main__":
    typer.run(main)
