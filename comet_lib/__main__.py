"""``python -m comet_lib``: distill, evaluate, predict, export, and the commands of the lab."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from comet_lib.console import (
    DataOption,
    LanguagesOption,
    ProfileOption,
    chosen_profile,
    printable,
    say,
)
from comet_lib.errors import CometError
from comet_lib.lab import commands

if TYPE_CHECKING:
    from comet_lib.profiles import Profile

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(commands.app, name="lab")


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="on an error, show the whole traceback (before COMMAND)")
    ] = False,
) -> None:
    """Distil a teacher into a small student on African-language text, and measure it honestly."""


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
    student: Annotated[
        str | None,
        typer.Option(help="sizes to change, such as hidden_size=128,num_hidden_layers=4"),
    ] = None,
    terms: Annotated[
        str | None,
        typer.Option(
            help="terms of both stages' losses and their weights, such as hidden_mse=1,relations=1 "
            "(default: soft targets; attention in stage 1, labels in stage 2)"
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="text for stage 1: a folder or file of .txt (one sentence per line), .jsonl or "
            ".parquet (column text), or fineweb-2 (default: --data's text/)"
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="folder to write to")] = Path("runs/distill"),
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**32 - 1, help="for every random choice (default: COMET_SEED)"),
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache", help="ask the teacher once and keep its answers on disk")
    ] = False,
) -> None:
    """Distil in two stages and print an honest result table. Run it again to resume.

    On several GPUs: accelerate launch -m comet_lib distill ...
    """
    from comet_lib.recipe import distil
    from comet_lib.report import report_text

    chosen = chosen_profile(profile, data, languages)
    if seed is not None:
        chosen = chosen.with_(seed=seed)
    if student is not None:
        chosen = resized(chosen, student)
    if terms is not None:
        chosen = matching(chosen, terms)
    if teacher is not None:
        chosen = chosen.with_(teacher=teacher, sentiment_teacher=teacher)
    chosen = chosen.with_(cached=cache or chosen.cached, text=text)
    report = distil(chosen, output, say=say)
    if not report:  # one of several processes, and not the one that reports
        return
    say(report_text(report), err=False)
    say(f"wrote {output}/student, {output}/report.md, {output}/report.json")


def resized(profile: Profile, sizes: str) -> Profile:
    """``profile`` with some of its student's sizes changed, as ``--student`` names them.

    Raises:
        CometError: an unknown name, a value that is not a positive integer, or a hidden size that
            the attention heads do not divide.
    """
    names = [name for name, value in profile.student.items() if isinstance(value, int)]
    changes = _pairs("--student", sizes, names, "[1-9][0-9]{0,5}", "a positive integer")
    student = {**profile.student, **{name: int(value) for name, value in changes.items()}}
    width, heads = student["hidden_size"], student["num_attention_heads"]
    if width % heads:
        raise CometError(
            f"--student: hidden_size {width} is not divisible by num_attention_heads {heads}; "
            "change one of them"
        )
    return profile.with_(student=student)


def matching(profile: Profile, terms: str) -> Profile:
    """``profile`` with the terms of ``--terms`` in both stages: in stage 1 instead of attention
    matching, in stage 2 in addition. They can also set the weights of soft targets and labels.

    Raises:
        CometError: an unknown term, or a weight that is not a number from 0 up.
    """
    from comet_lib.objectives import LOGITS, TERMS

    number = r"[0-9]{1,6}(\.[0-9]{1,6})?"
    pairs = _pairs("--terms", terms, [*LOGITS, *TERMS], number, "a number")
    weights = {name: float(value) for name, value in pairs.items()}
    return profile.with_(
        stage1=replace(profile.stage1, terms=weights), stage2=replace(profile.stage2, terms=weights)
    )


def _pairs(option: str, text: str, names: Sequence[str], value: str, what: str) -> dict[str, str]:
    """``a=1,b=2`` as a dict; raise CometError for other names, or values that are not ``what``."""
    pairs = {}
    for part in text.split(","):
        name, _, given = (word.strip() for word in part.partition("="))
        if name not in names or not re.fullmatch(value, given):
            raise CometError(
                f"{option} {part.strip()!r}: give NAME=VALUE, where VALUE is {what} and NAME one "
                f"of {', '.join(names)}"
            )
        pairs[name] = given
    return pairs


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="a sentiment model: folder, hub id or export")],
    profile: ProfileOption = None,
    data: DataOption = None,
    languages: LanguagesOption = None,
    split: Annotated[str, typer.Option(help="train, dev or test")] = "test",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Score any sentiment model: weighted F1 by language, with intervals."""
    from comet_lib import evaluation
    from comet_lib.data import SPLITS, find_source, load_sentiment
    from comet_lib.ship.onnx import classifier_size, load_classifier

    if split not in SPLITS:
        raise CometError(f"--split {split!r}: choose one of {', '.join(SPLITS)}")
    chosen = chosen_profile(profile, data, languages)
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
    say(f"{row['name']} on {source}, split {split}: weighted F1, percent (95 % interval)", False)
    for code, score in row["weighted_f1"].items():
        low, high = row["ci95"][code]
        typer.echo(f"{code:>5}  {score:5.1f}  ({low:.1f} to {high:.1f})")


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="a sentiment model: folder, hub id or export")],
    texts: Annotated[
        list[str],
        typer.Argument(
            help="texts, each in quotes; or - for one text per line on standard input; or a "
            "FILE.tsv with a column tweet or text"
        ),
    ],
) -> None:
    """Label texts. Prints a line for each: label, probability and text, separated by tabs."""
    from tqdm.auto import tqdm

    from comet_lib import evaluation
    from comet_lib.data import LABELS
    from comet_lib.ship.onnx import load_classifier

    clean = _texts(texts)
    loaded, tokenizer = load_classifier(model)
    with tqdm(total=len(clean), unit="text", disable=None) as bar:  # None: only on a terminal
        for start in range(0, len(clean), 1024):
            part = clean[start : start + 1024]
            probabilities = evaluation.predict_probabilities(loaded, tokenizer, part)
            for text, row in zip(part, probabilities, strict=True):
                typer.echo(f"{LABELS[row.argmax()]}\t{row.max():.3f}\t{printable(text)}")
            bar.update(len(part))


def _texts(arguments: list[str]) -> list[str]:
    """The texts given to ``predict``: as arguments, on standard input or in a TSV file."""
    from comet_lib.data import normalise, read_texts

    if len(arguments) == 1 and arguments[0].lower().endswith(".tsv"):
        return read_texts(arguments[0])
    if arguments == ["-"]:
        if sys.stdin is None:  # closed by the caller: <&-
            raise CometError("standard input is closed: give one text per line")
        try:
            lines = sys.stdin.buffer.read().decode("utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise CometError("standard input is not UTF-8: give the text in UTF-8") from error
        clean = [text for text in map(normalise, lines) if text]
        if not clean:
            raise CometError("standard input is empty: give one text per line")
        return clean
    for text in arguments:
        if text != "-" and not (Path(text).suffix and os.path.isfile(text)):
            continue
        raise CometError(
            f"{text!r} is not a text: give only one FILE.tsv, or only - and one text per line on "
            "standard input"
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
    output: Annotated[Path, typer.Option(help="folder to write to; an export there is replaced")],
    int8: Annotated[bool, typer.Option("--int8", help="8-bit weights and embeddings")] = False,
    profile: ProfileOption = None,
    data: DataOption = None,
    languages: LanguagesOption = None,
) -> None:
    """Export a model to ONNX and check the export against it on the dev split."""
    from comet_lib.data import find_source, load_sentiment
    from comet_lib.loading import load_pair
    from comet_lib.ship.onnx import export as write
    from comet_lib.ship.onnx import is_exported

    chosen = chosen_profile(profile, data, languages)
    if is_exported(model):
        raise CometError(f"{model} is already an export: give the model it came from")
    ours = is_exported(output) and (output / "export.json").is_file()
    if output.exists() and not ours and (output.is_file() or any(output.iterdir())):
        raise CometError(f"--output {output} exists and holds no export: name another folder")
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
    say(f"wrote {output}")


def main() -> None:
    """Run a command; an error becomes one line. Exit code 2 if the user can fix it, else 1."""
    # A text that standard output cannot encode (Windows, redirected) is no reason to stop.
    with suppress(AttributeError):
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        app()
    except Exception as error:
        if "--debug" in sys.argv:
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
        return "out of memory; use a smaller profile, batch or model", 2
    # safetensors and torch raise errors of their own when the disk is full
    if isinstance(error, OSError) or re.search(r"os error \d|PytorchStreamWriter", text):
        return f"{text[:300]}; check the path, its permissions and free space, then run again", 2
    return f"unexpected {type(error).__name__}: {text[:300]}; comet_lib --debug shows where", 1


if __name__ == "__main__":
    main()
