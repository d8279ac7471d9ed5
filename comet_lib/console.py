"""What every command shares: its options, the profile they choose, and text safe to print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from comet_lib.errors import CometError

if TYPE_CHECKING:  # profiles imports torch, and --help must be quick
    from comet_lib.profiles import Profile

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


def chosen_profile(name: str | None, data: Path | None, languages: str | None) -> Profile:
    """The profile that ``--profile``, ``--data`` and ``--languages`` choose."""
    from comet_lib.data import check_language
    from comet_lib.profiles import get_profile

    profile = get_profile(name, data)
    if languages is None:
        return profile
    codes = [check_language(code.strip()) for code in languages.split(",") if code.strip()]
    if not codes or len(set(codes)) != len(codes):
        raise CometError(f"--languages {languages!r}: name each language once, such as kin,swa")
    return profile.with_(languages=tuple(codes))


def say(text: str, err: bool = True) -> None:
    """Print lines for the reader; names of folders and models come from other people."""
    typer.echo("\n".join(map(printable, text.split("\n"))), err=err)


def printable(text: str) -> str:
    """``text`` without characters that could control a terminal or reverse its writing."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
