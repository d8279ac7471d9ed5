"""Faults outside the library: a second run, a full disk, a read-only home, a kill."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from jupyter_client.manager import start_new_kernel
from safetensors.torch import save_file

from comet_lib import __main__ as cli
from comet_lib import recipe
from comet_lib.errors import CometError
from comet_lib.files import locked, whole_file, whole_folder, write_json
from comet_lib.profiles import get_profile, home

fcntl = pytest.importorskip("fcntl")  # Linux and macOS

HOLD = """
import sys, time
from comet_lib.files import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def child(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parent.parent)},
    )


def main(monkeypatch: Any, capsys: Any, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["comet_lib", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return int(stopped.value.code or 0), shown.err.strip().splitlines()[-1]


# --- Two runs ------------------------------------------------------------------------------


def test_a_second_run_is_refused_and_a_killed_ones_lock_blocks_nobody(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    output = tmp_path / "out"
    holder = child(HOLD, output / "work")
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        code, line = main(
            monkeypatch, capsys, "distill", "--profile", "tiny", "--output", str(output)
        )
        assert code == 2 and "another run is writing there" in line
        assert sorted(p.name for p in (output / "work").iterdir()) == [".lock"]
    finally:
        holder.kill()  # SIGKILL: it cleans nothing up
        holder.wait()
    assert (output / "work" / ".lock").exists()
    with locked(output / "work"):
        pass


def test_a_lock_ends_with_its_block(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(CometError, match="another run"), locked(tmp_path):
        pass
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    with locked(tmp_path):
        pass


def test_a_disk_without_locks_gets_none(tmp_path: Path, monkeypatch: Any) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with locked(tmp_path):
        pass


def test_the_run_is_locked_while_it_trains(tmp_path: Path, monkeypatch: Any) -> None:
    seen = []

    def look(*_: Any) -> None:
        with pytest.raises(CometError, match="another run"), locked(tmp_path / "work"):
            pass
        seen.append(True)
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "stage_one", look)
    with pytest.raises(KeyboardInterrupt):
        recipe.distil(get_profile("tiny"), tmp_path, say=lambda _: None)
    assert seen == [True]
    with locked(tmp_path / "work"):  # Ctrl-C gives it back
        pass


# --- A full disk ---------------------------------------------------------------------------

LIMITED = """
import resource, sys
from comet_lib.files import write_json
path = sys.argv[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for write in (lambda: write_json(path, "x" * 99_999), lambda: write_json(path, "short")):
    try:
        write()
    except OSError as error:
        print(type(error).__name__, error.errno)
"""


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "x")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "report.json"
    write_json(path, {"old": True})
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"new": True})
    monkeypatch.undo()
    assert json.loads(path.read_text()) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_full_disk_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with whole_folder(folder) as made:
        (made / "a").write_text("old")
    with pytest.raises(OSError, match="No space"), whole_folder(folder) as made:
        (made / "a").write_text("new")
        full()
    assert (folder / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    """A results folder on a larger disk, say."""
    (tmp_path / "disk").mkdir()
    link = tmp_path / "model"
    link.symlink_to(tmp_path / "disk" / "model")
    for text in ("old", "new"):
        with whole_folder(link) as made:
            (made / "a").write_text(text)
        assert (tmp_path / "disk" / "model" / "a").read_text() == text and link.is_symlink()
    assert [p.name for p in (tmp_path / "disk").iterdir()] == ["model"]


def test_a_kill_between_two_renames_loses_no_folder(tmp_path: Path) -> None:
    """The old folder is then beside its place; the next call, even one that fails, puts it back."""
    folder = tmp_path / "model [1]"
    with whole_folder(folder) as made:
        (made / "a").write_text("old")
    folder.rename(tmp_path / f".{folder.name}.abc.old")
    with pytest.raises(OSError, match="No space"), whole_folder(folder) as made:
        full()
    assert (folder / "a").read_text() == "old"
    (tmp_path / f".{folder.name}.abc.old").mkdir()  # one that was to be removed
    with whole_folder(folder) as made:
        (made / "a").write_text("new")
    assert (folder / "a").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "student/config.json"),
        OSError(errno.EROFS, "Read-only file system"),
        PermissionError(errno.EACCES, "Permission denied", "out"),
        RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed"),
        Exception("Error while serializing: I/O error: File too large (os error 27)"),
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
    ],
    ids=str,
)
def test_each_fault_is_one_sentence(
    error: Exception, monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(recipe, "distil", fail)
    code, line = main(
        monkeypatch, capsys, "distill", "--profile", "tiny", "--output", str(tmp_path)
    )
    assert code == 2 and line.startswith("comet: ")
    assert "memory" in line if "memory" in str(error) or not str(error) else "run again" in line


def test_files_that_may_grow_no_further(tmp_path: Path) -> None:
    """A limit on the size of files, which the kernel enforces as it does a full disk's."""
    path = tmp_path / "report.json"
    limited = child(LIMITED, path)
    assert limited.communicate(timeout=60)[0].split() == ["OSError", str(errno.EFBIG)]
    assert json.loads(path.read_text()) == "short"  # the one that fits is whole
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_safetensors_own_error_is_known(tmp_path: Path) -> None:
    """The sentence for it hangs on its wording."""
    with pytest.raises(Exception, match=r"os error \d") as caught:
        save_file({"w": torch.zeros(3)}, tmp_path / "no" / "such" / "folder")
    assert cli._sentence(caught.value)[1] == 2


@pytest.mark.slow
def test_what_a_disk_lost_of_a_finished_run_is_made_again(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """A log that is gone comes back with the stage; a model that is cut off is named."""
    call = ("distill", "--profile", "tiny", "--output", str(tmp_path / "out"))
    assert main(monkeypatch, capsys, *call)[0] == 0
    student, work = tmp_path / "out" / "student" / "model.safetensors", tmp_path / "out" / "work"
    before = student.read_bytes()
    (work / "stage2.json").write_text("[{")
    code, line = main(monkeypatch, capsys, *call)
    assert code == 2 and "stage2.json: no readable JSON; delete the file and run again" in line
    (work / "stage2.json").unlink()
    assert main(monkeypatch, capsys, *call)[0] == 0
    assert student.read_bytes() == before and json.loads((work / "stage2.json").read_text())
    student.write_bytes(before[:999])
    code, line = main(monkeypatch, capsys, *call)
    assert code == 2 and f"{student.parent}: " in line and "delete this folder" in line


# --- Places that cannot be written ---------------------------------------------------------


def test_a_home_that_cannot_be_written_is_replaced(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("COMET_HOME", str(blocked / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = get_profile("tiny").run_folder("game")
    assert tmp_path in folder.parents and blocked not in folder.parents
    assert "set COMET_HOME" in capsys.readouterr().err
    write_json(folder / "x.json", {})
    assert get_profile("tiny").run_folder("game") == folder  # the second run finds the first
    theirs = tmp_path / f"comet-{os.getuid()}"  # on a shared machine anybody can make that folder
    theirs.rename(tmp_path / "elsewhere")
    theirs.symlink_to(tmp_path / "elsewhere")
    ours = get_profile("tiny").run_folder("game")
    assert theirs not in ours.parents and not (ours / "x.json").exists()


def test_a_read_only_home_is_replaced(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """root may write anywhere, so the refusal is the test's own."""
    wanted = tmp_path / "home"
    monkeypatch.setenv("COMET_HOME", str(wanted))
    assert home() == wanted and capsys.readouterr().err == ""

    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert home() != wanted
    assert "Read-only file system" in capsys.readouterr().err


def test_an_output_that_cannot_be_made(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    (tmp_path / "file").touch()
    code, line = main(
        monkeypatch,
        capsys,
        *("distill", "--profile", "tiny", "--output", str(tmp_path / "file" / "out")),
    )
    assert code == 2 and "check the path, its permissions and free space" in line


# --- A kill in the middle of a write -------------------------------------------------------

WRITE = """
import sys, time
from comet_lib.files import whole_file, whole_folder
kind, path = sys.argv[1:]
with (whole_file if kind == "file" else whole_folder)(path) as temporary:
    target = temporary if kind == "file" else temporary / "part"
    target.write_text("new, and not yet wh")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_kill_leaves_what_was_there(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "thing"
    old = path if kind == "file" else path / "part"
    old.parent.mkdir(exist_ok=True)
    old.write_text("old")
    writer = child(WRITE, kind, path)
    assert writer.stdout is not None and writer.stdout.readline() == "writing\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert old.read_text() == "old"
    with (whole_file if kind == "file" else whole_folder)(path) as temporary:  # and the next goes
        (temporary if kind == "file" else temporary / "part").write_text("new")
    assert old.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == ["thing"]


# --- A kernel that dies --------------------------------------------------------------------

IMPORTS = "from comet_lib.profiles import get_profile\nfrom comet_lib.recipe import distil\n"


def cell_with(name: str, words: str) -> str:
    """The code cell of a notebook with these words."""
    book = json.loads((Path(__file__).parent.parent / "notebooks" / name).read_text("utf-8"))
    (source,) = [
        text
        for cell in book["cells"]
        if cell["cell_type"] == "code" and words in (text := "".join(cell["source"]))
    ]
    return source


@contextmanager
def kernel(place: Path, monkeypatch: Any) -> Iterator[tuple[Any, Any]]:
    """A kernel as notebooks have it, and its client; results go below ``place``."""
    monkeypatch.setenv("COMET_HOME", str(place))
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.mark.slow
def test_a_kernel_that_dies_in_the_middle_loses_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    """Notebook 00's own cell, killed in stage 2; run again it ends with the same student as a run
    that was never stopped. The kernel is real; what needs no killing runs in this process."""
    cell = cell_with("00_the_whole_game.ipynb", "distil(short, folder)")
    code = IMPORTS + "profile = get_profile()\n" + cell
    found = {}
    for place in (tmp_path / "whole", tmp_path / "killed"):
        if place.name == "killed":
            with kernel(place, monkeypatch) as (manager, client):
                client.execute(code)
                while not list(place.glob("**/work/stage2/checkpoint-*/trainer_state.json")):
                    assert manager.is_alive()
                    time.sleep(0.01)
                manager.signal_kernel(signal.SIGKILL)
            assert not list(place.glob("**/student/model.safetensors"))
        monkeypatch.setenv("COMET_HOME", str(place))
        exec(code, {})
        (student,) = place.glob("**/student/model.safetensors")
        found[place.name] = student.read_bytes()
    assert found["killed"] == found["whole"]


@pytest.mark.skipif(sys.platform != "linux", reason="asks the OpenMP of Linux's torch")
def test_threads_that_wait_leave_their_core_to_a_busy_neighbor():
    """They do not spin, which made stage 1 ten times as long."""
    asked = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", "import comet_lib, torch"],
        env={**asked, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
    )
    spins = re.findall("GOMP_SPINCOUNT = '([0-9]+)'", done.stderr)
    assert spins and set(spins) == {"0"}, done.stderr
