"""Write whole files or nothing: write under a temporary name first, then rename."""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from comet_lib.errors import CometError


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; on success, renames it to ``path``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder beside ``path``; on success, it replaces ``path``.

    Two folders cannot be swapped in one step: a kill between the two renames leaves the old one
    beside its place, and the next call first moves it back. A link stays a link: its target is
    replaced.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.old"):
        shutil.rmtree(old) if path.exists() else os.replace(old, path)
    new = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield new
        new.chmod(0o755)
        for inside in new.rglob("*"):
            inside.chmod(0o755 if inside.is_dir() else 0o644)
        old = new.with_name(new.name + ".old")
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
        if old.exists():
            shutil.rmtree(old)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_text(path: str | Path, text: str) -> Path:
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(0o644)
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path, *keys: str) -> Any:
    """The content of a JSON file; with ``keys``, an object that must have them.

    Raises:
        CometError: not readable, not JSON, or a missing key.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CometError(f"{path}: no readable JSON; delete the file and run again") from error
    if keys and not (isinstance(value, dict) and value.keys() >= set(keys)):
        raise CometError(f"{path}: has no {', '.join(keys)}; delete the file and run again")
    return value


def claim(path: str | Path, settings: Mapping[str, Any], write: bool = True) -> None:
    """Reserve the folder of ``path``, a JSON file, for ``settings``.

    The first call writes them; every later call must bring the same ones.

    Raises:
        CometError: the folder holds something with other settings; the message names them.
    """
    path = Path(path)
    if path.is_file():  # its first name shows that it is a file of this kind
        refuse_others(path.parent, read_json(path, *list(settings)[:1]), settings)
    elif write:
        write_json(path, settings)


def refuse_others(folder: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise CometError if what is ``there`` lacks a setting of ``now``'s; the message names it."""
    differ = []
    for name, new in json.loads(json.dumps(now)).items():  # tuples as lists, as in a file
        if (old := there.get(name)) != new:
            short = max(len(str(old)), len(str(new))) <= 20
            differ.append(f"{name} ({old} there, {new} now)" if short else name)
    if differ:
        raise CometError(
            f"{folder}: what is there differs in {', '.join(differ)}; choose another folder, or "
            "delete this one"
        )


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Inside, ``folder`` belongs to this process.

    The lock is the kernel's (``flock``) on ``folder/.lock``, so it ends with the process, however
    that ends: the file that a killed run leaves behind blocks no one. Without ``flock`` (Windows,
    some network disks) there is no lock.

    Raises:
        CometError: another process holds the lock.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CometError(
                f"{folder}: another run is writing there; wait, or choose another output folder"
            ) from error
        except (ImportError, OSError):
            pass
        yield
