"""``python -m comet_lib``: distill, evaluate, predict, teacher, benchmark, rehearse."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from comet_lib.errors import CometError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Distil a teacher into a small student on African-language text, and measure it honestly.",
)

ProfileOption = Annotated[
    str | None, typer.Option("--profile", help="tiny, laptop or gpu (default: COMET_PROFILE)")
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data", help="folder with afrisenti/ and text/ (default: COMET_DATA, hub, sample)"
    ),
]
LanguagesOption = Annotated[
    str | None, typer.Option("--languages", help="comma-separated codes, such as kin,swa")
]


def _profile(name: str | None, data: Path | None, languages: str | None, seed: int | None = None):
    from comet_lib.data import check_language
    from comet_lib.profiles import get_profile

    profile = get_profile(name, data)
    if languages is not None:
        codes = [check_language(code.strip()) for code in languages.split(",") if code.strip()]
        if not codes or len(set(codes)) != len(codes):
            raise CometError(f"--languages {languages!r}: name each language once, such as kin,swa")
        profile = profile.with_(languages=tuple(codes))
    if seed is not None:
        profile = profile.with_(seed=seed)
    return profile


@app.command()
def distill(
    profile: ProfileOption = None,
    data: DataOption = None,
    languages: LanguagesOption = None,
    teacher: Annotated[
        str | None, typer.Option(help="folder or hub id; its sentiment head must be trained")
    ] = None,
    output: Annotated[Path, typer.Option(help="folder to write to")] = Path("runs/distill"),
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    cache: Annotated[
        bool, typer.Option("--cache", help="ask the teacher once, keep its answers on disk")
    ] = False,
) -> None:
    """Distil in two stages and print an honest result table. Called again, it resumes.

    On several GPUs: accelerate launch -m comet_lib distill ...
    """
    from comet_lib.recipe import distil, report_text

    chosen = _profile(profile, data, languages, seed)
    if teacher is not None:
        chosen = chosen.with_(teacher=teacher, sentiment_teacher=teacher)
    if cache:
        chosen = chosen.with_(cached=True)
    report = distil(chosen, output, say=lambda line: typer.echo(line, err=True))
    if not report:  # one of several processes, and not the one that reports
        return
    typer.echo(report_text(report))
    typer.echo(f"wrote {output}/student, {output}/report.md, {output}/report.json", err=True)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="folder or hub id of a sentiment model")],
    profile: ProfileOption = None,
    data: DataOption = None,
    languages: LanguagesOption = None,
    split: Annotated[str, typer.Option(help="train, dev or test")] = "test",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Weighted F1 by language, with intervals, of any sentiment model."""
    from comet_lib import evaluation
    from comet_lib.data import SPLITS, find_source, load_sentiment
    from comet_lib.models import load_model, load_tokenizer
    from comet_lib.recipe import model_size

    if split not in SPLITS:
        raise CometError(f"--split {split!r}: choose one of {', '.join(SPLITS)}")
    chosen = _profile(profile, data, languages)
    loaded = load_model(model)
    source = find_source(chosen)
    table = load_sentiment(chosen, source=source)[split]
    probabilities = evaluation.predict_probabilities(
        loaded, load_tokenizer(model), table["text"][:], chosen.max_length
    )
    count, megabytes = model_size(loaded)
    row = evaluation.score_row(
        Path(model).name, table, probabilities, parameters=count, size_mb=round(megabytes, 2)
    )
    if as_json:
        typer.echo(json.dumps({"split": split, "source": str(source), **row}, ensure_ascii=False))
        return
    typer.echo(f"{row['name']} on {source}, split {split}: weighted F1, percent (95 % interval)")
    for code, score in row["weighted_f1"].items():
        low, high = row["ci95"][code]
        typer.echo(f"{code:>5}  {score:5.1f}  ({low:.1f} to {high:.1f})")


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="folder or hub id of a sentiment model")],
    texts: Annotated[list[str], typer.Argument(help="one or more texts, each in quotes")],
) -> None:
    """Label texts: one line each, label, probability and text, separated by tabs."""
    from comet_lib import evaluation
    from comet_lib.data import LABELS, normalise
    from comet_lib.models import load_model, load_tokenizer

    clean = [normalise(text) for text in texts]
    if not all(clean):
        raise CometError("a text is empty: give each text in quotes, with at least one word")
    probabilities = evaluation.predict_probabilities(
        load_model(model), load_tokenizer(model), clean
    )
    for text, row in zip(clean, probabilities, strict=True):
        shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
        typer.echo(f"{LABELS[row.argmax()]}\t{row.max():.3f}\t{shown}")


@app.command()
def teacher(
    data: Annotated[Path, typer.Option(help="folder with afrisenti/ (training reads no text/)")],
    output: Annotated[Path, typer.Option(help="folder to write the teacher to")] = Path(
        "runs/teacher"
    ),
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Rebuild the bundled mini teacher from AfriSenti alone (about an hour on 2 cores)."""
    from comet_lib.miniteacher import build
    from comet_lib.profiles import get_profile

    profile = get_profile("laptop", data).with_(seed=seed, max_length=64)
    build(profile, output, say=lambda line: typer.echo(line, err=True))


QuickOption = Annotated[
    bool, typer.Option("--quick", help="small models, seconds: a trial, the figures mean nothing")
]
JsonOption = Annotated[Path | None, typer.Option("--json", help="also write the figures here")]


@app.command()
def benchmark(quick: QuickOption = False, json_file: JsonOption = None) -> None:
    """What each kind of step and answer costs at the paper's sizes (a few minutes, 8 GB)."""
    from comet_lib.benchmark import PAPER, QUICK, benchmark_text
    from comet_lib.benchmark import benchmark as measure
    from comet_lib.files import write_json

    report = measure(QUICK if quick else PAPER)
    typer.echo(benchmark_text(report))
    if json_file is not None:
        write_json(json_file, report)


@app.command()
def rehearse(
    profile: Annotated[str, typer.Option("--profile", help="whose run to rehearse")] = "gpu",
    quick: QuickOption = False,
    json_file: JsonOption = None,
) -> None:
    """A few steps of the whole run at the paper's sizes: memory, and the hours it would take."""
    from comet_lib.benchmark import PAPER, QUICK
    from comet_lib.files import write_json
    from comet_lib.profiles import get_profile
    from comet_lib.rehearsal import rehearsal_text
    from comet_lib.rehearsal import rehearse as measure

    report = measure(get_profile(profile), QUICK if quick else PAPER)
    typer.echo(rehearsal_text(report))
    if json_file is not None:
        write_json(json_file, report)


def main() -> None:
    """Run a command; a :class:`CometError` becomes one line and exit code 2."""
    try:
        app()
    except CometError as error:
        typer.echo(f"comet: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
