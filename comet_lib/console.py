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
    Option("--data", help="folder with afrisenti/ and text/ (default: COMET_DATA, hub, sample)"),
]
LanguagesOption = Annotated[
    str | None, Option("--languages", help="comma-separated codes, such as kin,swa")
]


def chosen_profile(
    name: str | None, data: Path | None = None, languages: str | None = None, **changes: Any
) -> Profile:
    """The profile that ``--profile``, ``--data`` and ``--languages`` choose, with the ``changes``
    that are not None."""
    from comet_lib.data import check_language
    from comet_lib.profiles import get_profile

    profile = get_profile(name, data)
    if languages is not None:
        codes = [check_language(code.strip()) for code in languages.split(",") if code.strip()]
        if not codes or len(set(codes)) != len(codes):
            raise CometError(f"--languages {languages!r}: name each language once, such as kin,swa")
        changes["languages"] = tuple(codes)
    return profile.with_(**{key: value for key, value in changes.items() if value is not None})


def resized(profile: Profile, sizes: str) -> Profile:
    """``profile`` with the sizes of its student that ``--student`` names changed.

    Raises:
        CometError: an unknown name, a value that is not a positive integer, or a hidden size that
            the attention heads do not divide.
    """
    names = [name for name, value in profile.student.items() if isinstance(value, int)]
    changes = _pairs("--student", sizes, names, "[1-9][0-9]{0,5}", "a positive integer")
    student = profile.student | {name: int(value) for name, value in changes.items()}
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
    one, two = (replace(stage, terms=weights) for stage in (profile.stage1, profile.stage2))
    return profile.with_(stage1=one, stage2=two)


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


def say(text: str, err: bool = True) -> None:
    """Print lines for the reader; names of folders and models come from other people."""
    typer.echo("\n".join(map(printable, text.split("\n"))), err=err)


def printable(text: str) -> str:
    """``text`` without characters that could control a terminal or reverse its writing."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
