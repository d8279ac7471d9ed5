"""Execute notebooks in place, so that the committed outputs are real and change little.

    python tools/execute_notebooks.py --profile laptop --data DIR notebooks/*.ipynb

Each notebook runs in a fresh kernel with an empty ``COMET_HOME`` and without progress bars. The
written file holds no widget state, cell timings, memory addresses or editor metadata, and keeps its
cell ids. A notebook with an error, or with an output that names a path of this machine, is not
written at all. The tool prints minutes and the kernel's peak memory.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import nbformat
import psutil
import typer
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE = {
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
}
# An absolute path: not one inside an address (https://host/home/), not a relative one.
LOCAL_PATH = re.compile(
    r"(?:(?<![\w./~<-])|(?<=file://))"
    r"/(?:home|root|tmp|work|mnt|opt|srv|usr|var|private|content|Users|Volumes|kaggle|workspace)"
    r"(?![\w.-])[^\s\"'<>]*"
    r"|\b[A-Za-z]:\\{1,2}[A-Za-z_][^\s\"'<>]*"
    r"|[/\\]site-packages[/\\][^\s\"'<>]*"
)
# Run when a kernel starts: a figure's text is its titles, not its size. The website gives it to
# those who do not see the picture. (Inline figures first: setting them up would forget the titles.)
TITLED = """
def _titled(figure, printer, _):
    own = [axes.get_title(loc) for axes in figure.axes for loc in ("left", "center", "right")]
    titles = "; ".join(title for title in (figure.get_suptitle(), *own) if title)
    printer.text(f"Figure: {titles}" if titles else repr(figure))

get_ipython().run_line_magic("matplotlib", "inline")
get_ipython().display_formatter.formatters["text/plain"].for_type_by_name(
    "matplotlib.figure", "Figure", _titled)
del _titled
"""
COLOR = re.compile(r"\x1b\[[0-9;]*m")
BAR = re.compile(r"[^|\n]*\d+%\|")  # a progress bar, frozen at its first picture
ADDRESS = re.compile(r"(?<= at )0x[0-9a-fA-F]{6,}")


class NotebookError(ValueError):
    """A notebook that cannot be executed or must not be written, and why."""


@dataclass(frozen=True)
class Run:
    """A finished run: the notebook with its outputs, seconds, and the kernel's peak in MiB."""

    notebook: NotebookNode
    seconds: float
    peak_mib: float


# --- Running -------------------------------------------------------------------------------


def environment(
    profile: str, data: Path | None, home: Path, strict: bool = False
) -> dict[str, str]:
    """The kernel's environment: the profile, the data, its own home, no progress bars."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("COMET_")}
    env |= {
        "COMET_PROFILE": profile,
        "COMET_HOME": str(home),
        "COMET_STRICT": "1" if strict else "0",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), env.get("PYTHONPATH")))),
        "PYTHONHASHSEED": "0",
        "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if data is not None:
        env["COMET_DATA"] = str(data.resolve())
    if profile == "tiny":  # needs no network, so it gets none
        env["HF_HUB_OFFLINE"] = "1"
    return env


def run(notebook: NotebookNode, folder: Path, env: dict[str, str], timeout: int, name: str) -> Run:
    """Execute a copy of a notebook in ``folder``; ``timeout`` is in seconds for each cell.

    Raises ``NotebookError`` if a cell fails, takes too long or kills the kernel.
    """
    notebook = nbformat.from_dict(notebook)
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name=KERNEL["name"],
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        store_widget_state=False,
        extra_arguments=[f"--IPKernelApp.exec_lines={TITLED}"],
    )
    began = time.monotonic()
    with _PeakMemory(client) as memory:
        try:
            client.execute(env=env)
        except CellExecutionError as error:
            raise NotebookError(f"{name}: a cell failed.\n{error}") from None
        except CellTimeoutError:
            raise NotebookError(f"{name}: a cell ran for more than {timeout} seconds.") from None
        except DeadKernelError:
            raise NotebookError(f"{name}: the kernel died; is there enough memory?") from None
    return Run(notebook, time.monotonic() - began, memory.peak / 2**20)


class _PeakMemory:
    """The most resident memory that a client's kernel and its children held, in bytes."""

    def __init__(self, client: NotebookClient, interval: float = 0.1) -> None:
        self.client = client
        self.interval = interval
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(self.interval):
            provisioner = getattr(self.client.km, "provisioner", None)
            pid = getattr(provisioner, "pid", None)
            if pid:
                self.peak = max(self.peak, sum(_resident(pid)))


def _resident(pid: int) -> Iterator[int]:
    try:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            yield one.memory_info().rss
    except psutil.Error:
        return


# --- What is written -----------------------------------------------------------------------


def normalize(notebook: NotebookNode) -> NotebookNode:
    """The notebook as it is committed. Changes it in place and returns it.

    Keeps cell ids, tags and outputs; renumbers the executed cells from 1; drops widget state,
    timings, and all other metadata.
    """
    notebook.nbformat, notebook.nbformat_minor = 4, max(notebook.nbformat_minor, 5)
    kept = {key: notebook.metadata[key] for key in ("accelerator",) if key in notebook.metadata}
    notebook.metadata = nbformat.from_dict(
        {**kept, "kernelspec": dict(KERNEL), "language_info": dict(LANGUAGE)}
    )
    _give_ids(notebook.cells)
    count = 0
    for cell in notebook.cells:
        allowed = {"tags", "jupyter"}
        cell.metadata = nbformat.from_dict(
            {key: value for key, value in cell.metadata.items() if key in allowed and value}
        )
        if cell.cell_type != "code":
            continue
        if cell.execution_count is not None:
            count += 1
            cell.execution_count = count
        cell.outputs = list(_normal_outputs(cell.outputs, cell.execution_count))
    return notebook


def _give_ids(cells: Iterable[NotebookNode]) -> None:
    """Keep ids; a cell without one, or with another's, gets one from its place and source."""
    seen: set[str] = set()
    for place, cell in enumerate(cells):
        if not cell.get("id") or cell.id in seen:
            cell.id = hashlib.sha256(f"{place}\n{cell.source}".encode()).hexdigest()[:8]
        seen.add(cell.id)


def _normal_outputs(outputs: Iterable[NotebookNode], count: int | None) -> Iterator[NotebookNode]:
    last: NotebookNode | None = None
    for output in outputs:
        if output.output_type == "stream":
            text = ADDRESS.sub("0x0", _after_returns(output.text))
            if last is not None and last.output_type == "stream" and last.name == output.name:
                last.text += text
                continue
            output.text = text
        elif output.output_type in ("display_data", "execute_result"):
            output.data.pop(WIDGET_VIEW, None)
            if not output.data or _is_bar(output.data):
                continue
            if "text/plain" in output.data:
                output.data["text/plain"] = ADDRESS.sub("0x0", output.data["text/plain"])
            if output.output_type == "execute_result":
                output.execution_count = count
        last = output
        yield output


def _is_bar(data: NotebookNode) -> bool:
    return set(data) == {"text/plain"} and BAR.match(data["text/plain"]) is not None


def _after_returns(text: str) -> str:
    """What a terminal would still show of lines that were overwritten (carriage return)."""
    lines = (line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))
    return "\n".join(lines)


def output_texts(cell: NotebookNode) -> Iterator[str]:
    """Every text in a cell's outputs, without base64 pictures."""
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            yield output.text
        elif output.output_type == "error":
            yield "\n".join([output.ename, output.evalue, *output.traceback])
        for kind, content in output.get("data", {}).items():
            if not kind.startswith("image/") or kind == "image/svg+xml":
                yield content if isinstance(content, str) else repr(content)


def local_paths(notebook: NotebookNode, also: Iterable[Path] = ()) -> list[str]:
    """Paths of a machine in the outputs: absolute ones, and every mention of a path in ``also``."""
    found = []
    for cell in notebook.cells:
        for colored in output_texts(cell):
            text = COLOR.sub("", colored)
            found += [match.group() for match in LOCAL_PATH.finditer(text)]
            found += [str(path) for path in also if str(path) in text]
    return list(dict.fromkeys(found))


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a valid notebook atomically."""
    nbformat.validate(notebook)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            nbformat.write(notebook, file)
        os.chmod(temporary, path.stat().st_mode if path.exists() else 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(path: Path) -> NotebookNode:
    """A notebook in format 4. Raises ``NotebookError`` if it cannot be read."""
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise NotebookError(f"{path}: not a notebook that can be read ({error}).") from None


def execute(path: Path, env: dict[str, str], timeout: int, also: Iterable[Path] = ()) -> Run:
    """Execute the notebook at ``path`` in its own folder and write it back."""
    done = run(read(path), path.parent.resolve(), env, timeout, path.name)
    normalize(done.notebook)
    paths = local_paths(done.notebook, also)
    if paths:
        raise NotebookError(
            f"{path.name}: not written, because its outputs name paths of this machine: "
            f"{', '.join(paths[:5])}. Print names relative to the course's folder."
        )
    write(done.notebook, path)
    return done


def main(
    notebooks: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False)],
    profile: Annotated[str, typer.Option(help="tiny, laptop or gpu.")] = "laptop",
    data: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="A folder with AfriSenti.")
    ] = None,
    timeout: Annotated[int, typer.Option(help="Seconds for each cell.")] = 1800,
) -> None:
    """Execute notebooks in place."""
    failed = 0
    for path in notebooks:
        with tempfile.TemporaryDirectory(prefix="comet-home-") as home:
            env = environment(profile, data, Path(home))
            also = [p.resolve() for p in (ROOT, data) if p] + [Path(home)]
            try:
                done = execute(path, env, timeout, also)
            except NotebookError as error:
                failed += 1
                typer.echo(str(error), err=True)
                continue
        typer.echo(f"{path.name}: {done.seconds / 60:.1f} min, peak {done.peak_mib:.0f} MiB")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
