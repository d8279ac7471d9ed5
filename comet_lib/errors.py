"""The one exception type that users of this library meet."""

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class CometError(ValueError):
    """A mistake that the user can fix: the message names the argument or file, and the fix."""

    exit_code = 2  # of the command line


def pick(what: str, name: str, table: Mapping[str, T]) -> T:
    """``table[name]``; raises :class:`CometError` with the choices if there is none."""
    if name not in table:
        raise CometError(f"unknown {what} {name!r}: choose one of {', '.join(table)}")
    return table[name]
