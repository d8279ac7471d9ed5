"""What distillation adds over several seeds: the same command, run once per seed.

    python -m comet_lib distill --profile laptop --data DIR --seed 0 --output runs/seed0  # ...
    python tools/compare_seeds.py runs/seed0 runs/seed1 runs/seed2 --data DIR

Each run holds its student and the same student without distillation. Both answer the test split.
The interval is a paired bootstrap over tweets and seeds, as in ``comet_lib lab ablate``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from comet_lib.data import find_source, load_sentiment
from comet_lib.evaluation import mean_weighted_f1
from comet_lib.lab.comparison import compared, f1_draws
from comet_lib.loading import load_model, load_tokenizer
from comet_lib.profiles import get_profile
from comet_lib.recipe import teacher_probabilities

DRAWS = 2000


def main(
    runs: Annotated[list[Path], typer.Argument(exists=True, file_okay=False)],
    data: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="A folder with AfriSenti.")
    ],
    profile: Annotated[str, typer.Option(help="The runs' profile.")] = "laptop",
) -> None:
    """What distillation adds over several seeds: each seed's scores, and the difference."""
    chosen = get_profile(profile, data)
    table = load_sentiment(chosen, source=find_source(chosen))["test"]
    labels, languages = np.array(table["label"][:]), np.array(table["language"][:])

    def answers(folder: Path) -> np.ndarray:
        model, tokenizer = load_model(folder, "sentiment"), load_tokenizer(folder)
        return teacher_probabilities(model, tokenizer, table["text"][:], chosen).argmax(1)

    ours = np.stack([answers(run / "student") for run in runs])
    alone = np.stack([answers(run / "work" / "baseline") for run in runs])
    f1 = np.array(
        [[mean_weighted_f1(labels, p, languages)["mean"] for p in side] for side in (ours, alone)]
    )
    for run, student, baseline in zip(runs, *f1, strict=True):
        typer.echo(f"{run.name}: student {student:.1f}, without distillation {baseline:.1f}")
    rng = np.random.default_rng(0)
    drawn = f1_draws(labels, languages, np.concatenate([ours, alone]), DRAWS, rng)
    test = compared(f1[0] - f1[1], drawn[:, : len(runs)] - drawn[:, len(runs) :], rng)
    low, high = test["ci95"]
    typer.echo(
        f"means {f1[0].mean():.1f} and {f1[1].mean():.1f}: distillation adds {test['mean']:+.1f} "
        f"({low:+.1f} to {high:+.1f}) points of mean weighted F1 on test, p {test['p']:.3f}"
    )


if __name__ == "__main__":
    typer.run(main)
