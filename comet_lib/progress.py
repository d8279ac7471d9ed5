"""What the learner has passed and answered: ``progress.json`` in the folder ``profiles.home()``.

Learners may delete the file. Where it is missing, unreadable or cannot be written, nothing fails:
progress never gets in the way.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Literal

from comet_lib.errors import CometError
from comet_lib.files import read_json, write_json
from comet_lib.profiles import home

#: Exercises passed, with the day of the first pass (ISO date); quick questions with the answer.
Kind = Literal["passed", "answered"]


def progress_file() -> Path:
    with contextlib.redirect_stderr(io.StringIO()):  # a check prints one line and no other
        return home() / "progress.json"


def noted(kind: Kind) -> dict[str, str]:
    """Name -> what was noted."""
    try:
        record = read_json(progress_file(), kind)[kind]
        return {str(name): str(value) for name, value in record.items()}
    except (CometError, OSError, ValueError, AttributeError):
        return {}


def note(kind: Kind, name: str, value: str) -> None:
    """Write ``value`` down for ``name``; the other entries stay."""
    kinds: tuple[Kind, ...] = ("passed", "answered")
    record = {each: noted(each) for each in kinds}
    record[kind][name] = value
    with contextlib.suppress(OSError, ValueError):
        write_json(progress_file(), record)
