"""What every command shares: its options, the profile they choose, and text safe to print."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from comet_lib.errors import CometError

if TYPE_CHECKING:  # profiles imports torch, and --help must be quick
    from comet_lib.profiles import Profile

ProfileOption = Annotated[
    str | None, Option("--profile", help="tiny, laptop or gpu (default: COMET_PROFILE)")
]
DataOption = Annotated[
    Path | None,
    Option("--data", help="folder with afrisenti/, transfer/ (default: COMET_DATA, hub, sample)"),
]
LanguagesOption = Annotated[
    str | None, Option("--languages", help="comma-separated codes, such as kin,swa")
]

LabelsOption = Annotated[
    str | None,
    Option(
        "--labels",
        help="the sentiment model's labels in the order of its columns, if it has other names for "
        "them, such as negative,neutral,positive",
    ),
]


def label_names(text: str | None) -> tuple[str, ...] | None:
    """``--labels``: each of LABELS once. Raises CometError otherwise."""
    from comet_lib.loading import label_name
    from comet_lib.profiles import LABELS

    if text is None:
        return None
    names = tuple(map(label_name, text.split(",")))
    if sorted(names) != sorted(LABELS):
        raise CometError(
            f"--labels {text!r}: name {', '.join(LABELS)} once each, in the order of the model's "
            "columns"
        )
    return names


def chosen_profile(
    name: str | None,
    data: Path | None = None,
    languages: str | None = None,
    student: str | None = None,
    terms: str | None = None,
    **fields: Any,
) -> Profile:
    """The profile that the options choose, with those of its ``fields`` that are not None.

    ``terms`` take the place of attention matching in stage 1, and are added in stage 2. They can
    also set the weights of soft targets and labels.

    Raises:
        CometError: an unknown name, a size that is not a positive integer, a weight that is not a
            number from 0 up, or a hidden size that the attention heads do not divide.
    """
    from comet_lib.data import check_language
    from comet_lib.objectives import LOGITS, TERMS
    from comet_lib.profiles import get_profile

    profile = get_profile(name, data)
    if languages is not None:
        codes = [check_language(code.strip()) for code in languages.split(",") if code.strip()]
        if not codes or len(set(codes)) != len(codes):
            raise CometError(f"--languages {languages!r}: name each language once, such as kin,swa")
        fields["languages"] = tuple(codes)
    if student is not None:
        sizes = [key for key, value in profile.student.items() if isinstance(value, int)]
        number = "[1-9][0-9]{0,5}", "a positive integer"
        fields["student"] = profile.student | _pairs("--student", student, sizes, int, *number)
        width, heads = (fields["student"][key] for key in ("hidden_size", "num_attention_heads"))
        if width % heads:
            raise CometError(
                f"--student: hidden_size {width} is not divisible by num_attention_heads {heads}; "
                "change one of them"
            )
    if terms is not None:
        number = r"[0-9]{1,6}(\.[0-9]{1,6})?", "a number"
        weights = _pairs("--terms", terms, [*LOGITS, *TERMS], float, *number)
        for key in ("stage1", "stage2"):
            fields[key] = replace(getattr(profile, key), terms=weights)
    return profile.with_(**{key: value for key, value in fields.items() if value is not None})


def _pairs(
    option: str, text: str, names: Sequence[str], kind: type, pattern: str, what: str
) -> dict[str, Any]:
    """``a=1,b=2`` as a dict; raise CometError for other names, or values that are not ``what``."""
    pairs = {}
    for part in text.split(","):
        name, _, given = (word.strip() for word in part.partition("="))
        if name not in names or not re.fullmatch(pattern, given):
            raise CometError(
                f"{option} {part.strip()!r}: give NAME=VALUE, where VALUE is {what} and NAME one "
                f"of {', '.join(names)}"
            )
        pairs[name] = kind(given)
    return pairs


def say(text: str, err: bool = True) -> None:
    """Print lines for the reader; names of folders and models come from other people."""
    typer.echo("\n".join(map(printable, text.split("\n"))), err=err)


def printable(text: str) -> str:
    """``text`` without characters that could control a terminal or reverse its writing."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
