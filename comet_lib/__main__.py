"""``python -m comet_lib``: distill, evaluate, predict, export, teacher, ablate, benchmark and
rehearse."""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from comet_lib.errors import CometError

DEBUG = [False]
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Distil a teacher into a small student on African-language text, and measure it honestly.",
)


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="on an error show the whole traceback (before COMMAND)")
    ] = False,
) -> None:
    """Distil a teacher into a small student, and measure it honestly."""
    DEBUG[:] = [debug]


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
        str | None,
        typer.Option(
            help="folder or hub id (owner/name, or owner/name@commit); its sentiment head must be "
            "trained"
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="text for stage 1, read as it is needed: a folder or file of .txt (a sentence a "
            "line), .jsonl or .parquet (text), or fineweb-2 (default: --data's text/)"
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="folder to write to")] = Path("runs/distill"),
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**32 - 1, help="of every random choice (default: COMET_SEED)"),
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache", help="ask the teacher once, keep its answers on disk")
    ] = False,
) -> None:
    """Distil in two stages and print an honest result table. Called again, it resumes.

    On several GPUs: accelerate launch -m comet_lib distill ...
    """
    from comet_lib.recipe import distil
    from comet_lib.report import report_text

    chosen = _profile(profile, data, languages, seed)
    if teacher is not None:
        chosen = chosen.with_(teacher=teacher, sentiment_teacher=teacher)
    chosen = chosen.with_(cached=cache or chosen.cached, text=text)
    report = distil(chosen, output, say=_say)
    if not report:  # one of several processes, and not the one that reports
        return
    _say(report_text(report), err=False)
    _say(f"wrote {output}/student, {output}/report.md, {output}/report.json")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="a sentiment model: folder, hub id or export")],
    profile: ProfileOption = None,
    data: DataOption = None,
    languages: LanguagesOption = None,
    split: Annotated[str, typer.Option(help="train, dev or test")] = "test",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Weighted F1 by language, with intervals, of any sentiment model."""
    from comet_lib import evaluation
    from comet_lib.data import SPLITS, find_source, load_sentiment
    from comet_lib.ship.onnx import classifier_size, load_classifier

    if split not in SPLITS:
        raise CometError(f"--split {split!r}: choose one of {', '.join(SPLITS)}")
    chosen = _profile(profile, data, languages)
    loaded, tokenizer = load_classifier(model)
    source = find_source(chosen)
    table = load_sentiment(chosen, source=source)[split]
    probabilities = evaluation.predict_probabilities(
        loaded, tokenizer, table["text"][:], chosen.max_length
    )
    count, megabytes = classifier_size(loaded)
    row = evaluation.score_row(
        Path(model).name, table, probabilities, parameters=count, size_mb=round(megabytes, 2)
    )
    if as_json:
        typer.echo(json.dumps({"split": split, "source": str(source), **row}))
        return
    _say(f"{row['name']} on {source}, split {split}: weighted F1, percent (95 % interval)", False)
    for code, score in row["weighted_f1"].items():
        low, high = row["ci95"][code]
        typer.echo(f"{code:>5}  {score:5.1f}  ({low:.1f} to {high:.1f})")


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="a sentiment model: folder, hub id or export")],
    texts: Annotated[
        list[str],
        typer.Argument(
            help="texts, each in quotes; or - for one text a line on standard input; or a "
            "FILE.tsv with a column tweet or text"
        ),
    ],
) -> None:
    """Label texts: one line each, label, probability and text, separated by tabs."""
    from tqdm.auto import tqdm

    from comet_lib import evaluation
    from comet_lib.data import LABELS
    from comet_lib.ship.onnx import load_classifier

    clean = _texts(texts)
    loaded, tokenizer = load_classifier(model)
    with tqdm(total=len(clean), unit="text", disable=None) as bar:  # None: on a terminal alone
        for start in range(0, len(clean), 1024):
            part = clean[start : start + 1024]
            probabilities = evaluation.predict_probabilities(loaded, tokenizer, part)
            for text, row in zip(part, probabilities, strict=True):
                typer.echo(f"{LABELS[row.argmax()]}\t{row.max():.3f}\t{printable(text)}")
            bar.update(len(part))


def _texts(arguments: list[str]) -> list[str]:
    """The texts that ``predict`` was given: as arguments, on standard input or in a TSV."""
    from comet_lib.data import normalise, read_texts

    if len(arguments) == 1 and arguments[0].lower().endswith(".tsv"):
        return read_texts(arguments[0])
    if arguments == ["-"]:
        if sys.stdin is None:  # closed by the caller: <&-
            raise CometError("standard input is closed: give one text a line")
        try:
            lines = sys.stdin.buffer.read().decode("utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise CometError("standard input is not UTF-8: give the text in UTF-8") from error
        clean = [text for text in map(normalise, lines) if text]
        if not clean:
            raise CometError("standard input is empty: give one text a line")
        return clean
    for text in arguments:
        if text != "-" and not (Path(text).suffix and os.path.isfile(text)):
            continue
        raise CometError(
            f"{text!r} is not a text: give one FILE.tsv alone, or one text a line on standard "
            "input and - alone"
        )
    clean = [normalise(text) for text in arguments]
    if any("\ud800" <= sign <= "\udfff" for text in clean for sign in text):
        raise CometError("a text is not UTF-8: give the text in UTF-8")
    if not all(clean):
        raise CometError("a text is empty: give each text in quotes, with at least one word")
    return clean


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="folder or hub id of a sentiment model")],
    output: Annotated[Path, typer.Option(help="folder to write to; what is there is replaced")],
    int8: Annotated[bool, typer.Option("--int8", help="8-bit weights and embeddings")] = False,
    profile: ProfileOption = None,
    data: DataOption = None,
    languages: LanguagesOption = None,
) -> None:
    """Write an ONNX form of a model, checked against it on the dev split."""
    from comet_lib.data import find_source, load_sentiment
    from comet_lib.loading import load_pair
    from comet_lib.ship.onnx import export as write
    from comet_lib.ship.onnx import is_exported

    chosen = _profile(profile, data, languages)
    if is_exported(model):
        raise CometError(f"{model} is an exported form already: give the model it was made from")
    ours = is_exported(output) and (output / "export.json").is_file()
    if output.exists() and not ours and (output.is_file() or any(output.iterdir())):
        raise CometError(f"--output {output} is there and holds no export: name another folder")
    loaded, tokenizer = load_pair(model)
    source = find_source(chosen)
    dev = load_sentiment(chosen, source=source)["dev"]
    card = Path(model) / "README.md"
    report = write(
        loaded,
        tokenizer,
        output,
        dev["text"][:],
        dev["label"][:],
        dev["language"][:],
        int8=int8,
        max_length=chosen.max_length,
        card=card.read_text(encoding="utf-8", errors="replace") if card.is_file() else "",
    )
    typer.echo(json.dumps({"source": str(source), **report}, indent=2))
    _say(f"wrote {output}")


@app.command()
def teacher(
    data: Annotated[Path, typer.Option(help="folder with afrisenti/ (training reads no text/)")],
    output: Annotated[Path, typer.Option(help="folder to write the teacher to")] = Path(
        "runs/teacher"
    ),
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="of every random choice")] = 0,
) -> None:
    """Rebuild the bundled mini teacher from AfriSenti alone (about an hour)."""
    from comet_lib.lab.small_teacher import build
    from comet_lib.profiles import get_profile

    profile = get_profile("laptop", data).with_(seed=seed, max_length=64)
    build(profile, output, say=_say)


@app.command()
def ablate(
    profile: ProfileOption = None,
    data: DataOption = None,
    languages: LanguagesOption = None,
    output: Annotated[Path, typer.Option(help="folder to write to")] = Path("runs/ablation"),
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="runs of each variant")] = 3,
    only: Annotated[
        str | None, typer.Option(help="comma-separated variants (default: all, hours)")
    ] = None,
    tweets: Annotated[int, typer.Option(min=1, help="training tweets a language, at most")] = 4000,
    summary: Annotated[
        bool, typer.Option("--summary", help="train nothing, read the runs that are there")
    ] = False,
) -> None:
    """Which part of the recipe pays: variants, several seeds each. Called again, it resumes."""
    from comet_lib.lab.ablation import ablate as run
    from comet_lib.lab.comparison import write_summary
    from comet_lib.lab.variants import chosen_variants

    variants = chosen_variants(only)
    if not summary:
        chosen = _profile(profile, data, languages)
        chosen = chosen.with_(train_limit=min(tweets, chosen.train_limit or tweets))
        run(chosen, output, variants, seeds, say=_say)
    _say(write_summary(output), err=False)
    _say(f"wrote {output}/runs.jsonl, ablation.md and ablation.png")


QuickOption = Annotated[
    bool, typer.Option("--quick", help="small models, seconds: a trial, the figures mean nothing")
]
JsonOption = Annotated[Path | None, typer.Option("--json", help="also write the figures here")]


OutputOption = Annotated[
    Path | None, typer.Option("--output", help="folder for the report (JSON, Markdown, figure)")
]


def _places(json_file: Path | None, output: Path | None) -> None:
    """Raise where figures could not be written, before the minutes of measuring them."""
    if json_file is not None and json_file.is_dir():
        raise CometError(f"--json {json_file} is a folder: name a file")
    for folder in (output, json_file and json_file.parent):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)


@app.command()
def benchmark(
    quick: QuickOption = False,
    json_file: JsonOption = None,
    output: OutputOption = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="also the students compiled by torch")
    ] = False,
) -> None:
    """What each kind of step and answer costs at the paper's sizes."""
    from comet_lib.files import write_json
    from comet_lib.lab.benchmark import PAPER, QUICK, benchmark_text, write_benchmark
    from comet_lib.lab.benchmark import benchmark as measure

    _places(json_file, output)
    report = measure(QUICK if quick else PAPER, compiled=compiled)
    typer.echo(benchmark_text(report))
    if json_file is not None:
        write_json(json_file, report)
    if output is not None:
        write_benchmark(report, output)


@app.command()
def rehearse(
    profile: Annotated[
        str, typer.Option(help="whose steps to count, at the paper's sizes")
    ] = "gpu",
    quick: QuickOption = False,
    json_file: JsonOption = None,
    output: OutputOption = None,
) -> None:
    """A few steps of the whole run at the paper's sizes: memory, and the hours it would take."""
    from comet_lib.files import write_json
    from comet_lib.lab.benchmark import PAPER, QUICK
    from comet_lib.lab.rehearsal import rehearsal_text, write_rehearsal
    from comet_lib.lab.rehearsal import rehearse as measure
    from comet_lib.profiles import get_profile

    chosen = get_profile(profile)
    _places(json_file, output)
    report = measure(chosen, QUICK if quick else PAPER)
    typer.echo(rehearsal_text(report))
    if json_file is not None:
        write_json(json_file, report)
    if output is not None:
        write_rehearsal(report, output)


def main() -> None:
    """Run a command; an error becomes one line: exit code 2 if the user can mend it, else 1."""
    DEBUG[:] = [False]
    # A text that the encoding of standard output lacks (Windows, redirected) is no reason to stop.
    with suppress(AttributeError):
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        app()
    except Exception as error:
        if DEBUG[0]:
            raise
        line, code = _sentence(error)
        typer.echo(f"comet: {printable(line)}", err=True)
        sys.exit(code)


def _sentence(error: Exception) -> tuple[str, int]:
    """What to tell the user, and the exit code."""
    text = " ".join(str(error).split())
    if isinstance(error, CometError):
        return text, 2
    if isinstance(error, MemoryError) or re.search("(not enough|out of) memory", text):
        return "the memory is used up; take a smaller profile, batch or model", 2
    # safetensors and torch have their own errors for a disk that takes no more
    if isinstance(error, OSError) or re.search(r"os error \d|PytorchStreamWriter", text):
        return f"{text[:300]}; check path, rights and free space, then run again", 2
    return f"unexpected {type(error).__name__}: {text[:300]}; comet_lib --debug shows where", 1


def _say(text: str, err: bool = True) -> None:
    """Lines for the reader; names of folders and models are other people's text."""
    typer.echo("\n".join(map(printable, text.split("\n"))), err=err)


def printable(text: str) -> str:
    """``text`` with signs that could command a terminal, or turn its writing, replaced."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


if __name__ == "__main__":
    main()
