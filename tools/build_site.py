"""Build the course's website from the committed notebooks, then check its links.

    python tools/build_site.py              # into build/site; open build/site/index.html
    python tools/build_site.py --run DIR    # the playground's students from what distill wrote
    python tools/build_site.py --out DIR

Nothing is executed: the pages show the committed outputs. The sources are laid out in
``build/site-source`` as in the repository (``docs/site/home.md`` as ``index.md``,
``notebooks/*.ipynb``, ``docs/*.md``), links to files that are not pages point to the public
repository, and Sphinx (``docs/site/conf.py``) builds the pages, treating each warning as an error.
A lens saved in a notebook becomes a page of its own, shown in a frame. The playground
(``tools/build_playground.py``) is added where there are students for it. Finally, every link
inside the site must lead somewhere, and no page may load anything from another host: it reads the
same without a network.
"""

from __future__ import annotations

import html
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

import build_playground
import nbformat
import typer
from badges import BLOCK, setting
from execute_notebooks import NotebookError, read
from nbformat import NotebookNode

from comet_lib.errors import CometError
from comet_lib.files import read_json
from comet_lib.lens import export
from comet_lib.profiles import ASSETS

ROOT = Path(__file__).resolve().parent.parent
HOME = "docs/site/home.md"
INDEX = "index.md"
LENSES = "notebooks/lens"
API = "api.md"
# The navigation, in order: caption, and the pages' patterns in the repository.
CONTENTS = (
    ("The course", ("docs/setup.md", "notebooks/*.ipynb")),
    (
        "Results and guides",
        ("docs/results.md", "docs/command-line.md", "docs/large-runs.md", "docs/instructors.md"),
    ),
    ("The library", ("docs/for-researchers.md", API, "CONTRIBUTING.md")),
)
LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
SECTION = re.compile(r"^<!-- README: (.+) -->$", re.MULTILINE)
PICTURE = re.compile(r"!\[[^]]*\]")
FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1[^\S\n]*$", re.DOTALL | re.MULTILINE)
NOTEBOOK = r'href="(\d\d_\w+)\.ipynb"'
FRAME = """<iframe class="lens" src="{page}" title="{finding}" loading="lazy"></iframe>
<p class="lens-alone"><a href="{page}">This view in a page of its own</a></p>"""
TOCTREE = "```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n"


class SiteError(ValueError):
    """The site cannot be built: why, and where."""


# --- Text to text --------------------------------------------------------------------------


def outside_fences(text: str, change: Callable[[str], str]) -> str:
    """Apply ``change`` to the text outside code fences."""
    parts, end = [], 0
    for match in FENCE.finditer(text):
        parts += [change(text[end : match.start()]), match.group()]
        end = match.end()
    return "".join([*parts, change(text[end:])])


def relink(text: str, here: str, pages: set[str], blob: str) -> str:
    """Markdown whose relative links point to pages of the site, else to the repository.

    ``here`` is the file's place in the repository, and ``pages`` are the site's files.
    """
    folder = posixpath.dirname(here)

    def new(match: re.Match[str]) -> str:
        link = match.group()
        parts = urlsplit(link)
        if parts.scheme or parts.netloc or not parts.path:
            return link
        path = posixpath.normpath(posixpath.join(folder, unquote(parts.path)))
        anchor = f"#{parts.fragment}" if parts.fragment else ""
        path = INDEX if path == "README.md" else path
        if path in pages:
            return posixpath.relpath(path, folder or ".") + anchor
        return f"{blob}/{path}{anchor}"

    return outside_fences(text, lambda part: LINK.sub(new, part))


def open_links(badges: str) -> str:
    """The badges as links in words: their pictures come from other hosts."""
    links = re.findall(r"\[!\[([^\]]*)\]\([^)]*\)\]\(([^)]*)\)", badges)
    return " · ".join(f"[{name}]({address})" for name, address in links)


def with_sections(text: str, readme: str) -> str:
    """``text`` with the sections of ``readme`` that its comments name, heading and all."""

    def section(match: re.Match[str]) -> str:
        heading = re.escape(match[1])
        found = re.search(rf"^## {heading}\n.*?(?=^## |\Z)", readme, re.DOTALL | re.MULTILINE)
        if found is None:
            raise SiteError(f"README.md has no section {match[1]!r}, which {HOME} names.")
        return found.group().rstrip()

    return SECTION.sub(section, text)


def alternative(plain: str, heading: str) -> str:
    """A picture's text for those who do not see it: its sentence, or where it stands."""
    text = f"Figure: {heading}" if plain.startswith("<") else re.sub(r"^[A-Z]\w+: ", "", plain)
    return " ".join(text.split())


# --- The sources ---------------------------------------------------------------------------


def contents(root: Path) -> list[tuple[str, list[str]]]:
    """The navigation with its patterns filled in: caption and pages, by their repository paths.

    Raises ``SiteError`` if a pattern matches no file, or a page of docs/ is in no group.
    """
    groups = []
    for caption, patterns in CONTENTS:
        names: list[str] = []
        for pattern in patterns:
            found = sorted(path.relative_to(root).as_posix() for path in root.glob(pattern))
            if not found and pattern != API:
                raise SiteError(f"{pattern} is not there; CONTENTS in {__file__} lists it.")
            names += found or [pattern]
        groups.append((caption, names))
    listed = {name for _, names in groups for name in names}
    for path in sorted((root / "docs").glob("*.md")):
        if path.relative_to(root).as_posix() not in listed:
            raise SiteError(f"docs/{path.name} is in no list of pages; add it to CONTENTS.")
    return groups


def stage(root: Path, target: Path, playground: bool = False) -> list[str]:
    """Lay out Sphinx's sources for the repository ``root`` in ``target``; the pages' names.

    With ``playground``, links to the public one lead to the site's own.
    """
    if target.exists():
        shutil.rmtree(target)
    (target / "notebooks").mkdir(parents=True)
    for kind in ("*.png", "*.gif", "*.svg"):
        for picture in (root / "docs").rglob(kind):
            copy = target / picture.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(picture, copy)

    groups = contents(root)
    pages = {INDEX, *(name for _, names in groups for name in names)}
    files = pages | {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()}
    repository, branch = setting(root)
    blob = f"https://github.com/{repository}/blob/{branch}"

    owner, name = repository.split("/")
    public = f"https://{owner}.github.io/{name}/playground/"

    def turned(text: str, here: str) -> str:
        if playground:  # in HTML, since Sphinx knows only its own pages
            own = "../" * here.count("/") + "playground/index.html"
            text = re.sub(rf"\[([^]]+)\]\({public}\)", rf'<a href="{own}">\1</a>', text)
            text = text.replace(f'href="{public}"', f'href="{own}"')
        text = BLOCK.sub(lambda match: open_links(match.group()), text)
        text = PICTURE.sub(lambda match: " ".join(match.group().split()), text)  # MyST joins lines
        return relink(text, here, files, blob)

    for name in sorted(pages - {API, INDEX}):
        if name.endswith(".ipynb"):
            notebook = read(root / name)
            for cell in notebook.cells:
                if cell.cell_type == "markdown":
                    cell.source = turned(cell.source, name)
            shown(notebook, name, target)
            nbformat.write(notebook, target / name)
        else:
            text = turned((root / name).read_text(encoding="utf-8"), name)
            (target / name).write_text(text, encoding="utf-8")
    text = with_sections(home(root), (root / "README.md").read_text(encoding="utf-8"))
    (target / INDEX).write_text(turned(text, INDEX) + "\n", encoding="utf-8")
    with (target / INDEX).open("a", encoding="utf-8") as index:
        for caption, names in groups:
            stems = "\n".join(name.rsplit(".", 1)[0] for name in names)
            index.write("\n" + TOCTREE.format(caption=caption, pages=stems))
    (target / API).write_text(api(root), encoding="utf-8")
    return sorted(pages)


def home(root: Path) -> str:
    """The home page's own text, with the scores of the reference run."""
    rows = read_json(ASSETS / "reference_report.json", "rows")["rows"]
    scores = {row["name"]: f"{row['weighted_f1']['mean']:.1f}" for row in rows}
    return (root / HOME).read_text(encoding="utf-8").format(**scores)


def shown(notebook: NotebookNode, name: str, target: Path) -> None:
    """Give a notebook's figures their texts, its lenses their frames, and its links the site's
    pages; changes it in place.

    The lenses' pages go to ``LENSES`` below ``target``.
    """
    heading = name
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE) or [heading])[-1]
        for number, output in enumerate(cell.get("outputs", [])):
            data = output.get("data", {})
            if "image/png" in data:
                text = alternative(data["text/plain"], heading)
                cell.metadata["mystnb"] = {"image": {"alt": text}}
            if "text/html" in data:  # the course map's links to notebooks
                data["text/html"] = re.sub(NOTEBOOK, r'href="\1.html"', data["text/html"])
            if export.MIME in data:
                page = target / LENSES / f"{cell.id}-{number}.html"
                page.parent.mkdir(parents=True, exist_ok=True)
                found = data.pop(export.MIME)
                page.write_text(export.drawn(found), encoding="utf-8")
                data.pop("image/png")
                data["text/html"] = FRAME.format(
                    page=posixpath.relpath(page.relative_to(target), posixpath.dirname(name)),
                    finding=html.escape(found["finding"]),
                )


# Modules that only wire things together; the folder checks holds the exercises' answers.
NOT_API = {"__main__", "commands", "console", "labels"}


def api(root: Path) -> str:
    """One page that asks autodoc for each module of the library."""
    modules = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for path in (root / "comet_lib").rglob("*.py")
        if path.stem not in NOT_API and "checks" not in path.parts
    } - {"comet_lib"}
    lines = [
        "# Reference",
        "",
        "The modules of `comet_lib`, from their docstrings. Imports run downwards: `losses` and "
        "`attention` know nothing about training, `plots` and `lens` take only arrays.",
        "",
    ]
    for module in sorted(modules):
        lines += [f"## {module}", "", "```{eval-rst}", f".. automodule:: {module}", "```", ""]
    return "\n".join(lines)


# --- The links of the finished site --------------------------------------------------------

LOADS = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src")}


@dataclass
class Page(HTMLParser):
    """One page's anchors, its links, and what it loads."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name == "id" or (tag == "a" and name == "name"):
                self.ids.add(value)
            elif tag == "a" and name == "href":
                self.links.append(value)
            elif (tag, name) in LOADS or (
                tag == "link" and name == "href" and self._is_loaded(attrs)
            ):
                self.loads.append(value)

    @staticmethod
    def _is_loaded(attrs: list[tuple[str, str | None]]) -> bool:
        kinds = (dict(attrs).get("rel") or "").split()
        return bool({"stylesheet", "preload", "icon", "shortcut"} & set(kinds))


def _targets(page: Page) -> Iterator[tuple[str, bool]]:
    yield from ((link, False) for link in page.links)
    yield from ((link, True) for link in page.loads)


def broken_links(site: Path) -> list[str]:
    """Each dead link within the site, and each thing loaded from another host."""
    site = site.resolve()
    pages: dict[Path, Page] = {}
    for path in sorted(site.rglob("*.html")):
        if "_static" in path.parts:  # the theme's templates
            continue
        pages[path] = Page()
        pages[path].feed(path.read_text(encoding="utf-8"))
    found = []
    for path, page in pages.items():
        name = path.relative_to(site).as_posix()
        for link, loaded in _targets(page):
            parts = urlsplit(link)
            if parts.scheme == "data" or (parts.scheme and not loaded):
                continue
            if parts.scheme or parts.netloc:
                found.append(f"{name}: {link} is loaded from another host")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                found.append(f"{name}: {link} leads to no file")
            elif parts.fragment and not loaded and target.suffix == ".html":
                known = pages[target].ids if target in pages else set()
                if unquote(parts.fragment) not in known:
                    found.append(f"{name}: {link} has no such anchor")
    for path in sorted(site.rglob("*.css")):
        for address in re.findall(
            r"(?:@import\s*|url\()[\"']?((?:https?:)?//[^\"')]+)", path.read_text()
        ):
            found.append(f"{path.relative_to(site).as_posix()}: {address} is on another host")
    return found


# --- Wiring --------------------------------------------------------------------------------


def build(root: Path, out: Path, run: Path | None = None) -> None:
    """Build the site of ``root`` in ``out``. Raises ``SiteError``, or ``CometError`` of the
    playground."""
    source = root / "build" / "site-source"
    there = run is not None or build_playground.STUDENTS.is_dir()
    if not there:
        typer.echo("the playground is left out: make site RUN=DIR takes its students", err=True)
    stage(root, source, there)
    if out.exists():
        shutil.rmtree(out)
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-q", "-n", "-W", "--keep-going"]
    folders = [root / "docs" / "site", root / "build" / "site-doctrees", source, out]
    command += ["-c", str(folders[0]), "-d", str(folders[1]), str(folders[2]), str(folders[3])]
    if subprocess.run(command, cwd=root).returncode:
        raise SiteError("Sphinx warned or failed, see above; a warning is an error here.")
    if (source / LENSES).is_dir():
        shutil.copytree(source / LENSES, out / LENSES)
    if there:
        folders = build_playground.models(run)
        build_playground.build(folders, build_playground.earlier(run, folders), out / "playground")
    if found := broken_links(out):
        raise SiteError("\n".join(found))


def main(
    out: Annotated[Path, typer.Option(help="The folder of the site.")] = ROOT / "build" / "site",
    run: Annotated[
        Path | None, typer.Option(help="A folder that distill wrote, for the playground.")
    ] = None,
) -> None:
    """Build the course's website and check its links."""
    try:
        build(ROOT, out.resolve(), run)
    except (SiteError, NotebookError, CometError) as error:
        typer.echo(str(error), err=True)
        sys.exit(1)
    typer.echo(f"open {out / 'index.html'}")


if __name__ == "__main__":
    typer.run(main)
