"""Build the course's website from the notebooks as they are committed, then check its links.

    python tools/build_site.py              # into build/site; open build/site/index.html
    python tools/build_site.py --out DIR

Nothing is executed: the pages show the committed outputs. The tool lays out the sources in
``build/site-source`` as in the repository (``notebooks/*.ipynb``, ``docs/*.md``, README.md cut
into pages) and points links to files that are not pages at the public repository. Then Sphinx
(``docs/site/conf.py``) builds the pages; every warning is an error. Finally, every link inside the
site must lead somewhere, and no page may load anything from another host, so that the site reads
the same without a network.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

import nbformat
import typer
from badges import BLOCK, setting
from execute_notebooks import NotebookError, read

ROOT = Path(__file__).resolve().parent.parent
INDEX = "index.md"
# Pages cut out of README.md: file, title, and the README sections that go into it. The text before
# the first section opens the landing page.
CUTS = {
    "setup.md": ("Set-up", ("Set-up", "One command, headless", "Profiles: one switch")),
    "results.md": ("Results", ("Result", "Which part pays?", "What it costs")),
    "library.md": ("For researchers", ("For researchers", "Data and licences", "Citation")),
}
LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1[^\S\n]*$", re.DOTALL | re.MULTILINE)
TOCTREE = "```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n"


class SiteError(ValueError):
    """What prevents the site from being built, and where."""


# --- Text to text --------------------------------------------------------------------------


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def outside_fences(text: str, change: Callable[[str], str]) -> str:
    """``change`` applied to everything outside code fences."""
    parts, end = [], 0
    for match in FENCE.finditer(text):
        parts += [change(text[end : match.start()]), match.group()]
        end = match.end()
    return "".join([*parts, change(text[end:])])


def sections(readme: str) -> tuple[str, dict[str, str]]:
    """README's opening (title and badges left out) and its level-2 sections by heading."""
    marked = outside_fences(readme, lambda part: re.sub(r"^## ", "\0", part, flags=re.MULTILINE))
    opening, *rest = marked.split("\0")
    opening = BLOCK.sub("", opening).split("\n", 1)[1].strip()
    split = (part.partition("\n") for part in rest)
    return opening, {heading.strip(): body.strip() for heading, _, body in split}


def cut(readme: str) -> dict[str, str]:
    """The pages of ``CUTS`` and the landing page's text, by file.

    Raises ``SiteError`` if the README has lost a section.
    """
    opening, found = sections(readme)
    title = readme.split("\n", 1)[0]
    pages = {INDEX: f"{title}\n\n{opening}\n"}
    for file, (page_title, headings) in CUTS.items():
        if missing := [heading for heading in headings if heading not in found]:
            raise SiteError(
                f"README.md: no section '## {missing[0]}'; CUTS in {__file__} names it."
            )
        bodies = [found[h] if h == page_title else f"## {h}\n\n{found[h]}" for h in headings]
        if headings[0] == page_title:  # its subsections rise with it
            bodies[0] = outside_fences(
                bodies[0], lambda part: re.sub(r"^###", "##", part, flags=re.MULTILINE)
            )
        pages[file] = f"# {page_title}\n\n" + "\n\n".join(bodies) + "\n"
    return pages


def anchors(pages: Mapping[str, str]) -> dict[str, str]:
    """Which page holds the heading with an anchor."""
    where: dict[str, str] = {}
    for file, text in pages.items():
        for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE):
            where.setdefault(slug(heading), file)
    return where


def relink(text: str, here: str, pages: set[str], where: Mapping[str, str], blob: str) -> str:
    """Markdown with its relative links pointed at pages of the site, or else at the repository.

    ``here`` is the file's place in the repository, ``pages`` are the site's files; ``where``
    says for README.md, which the site cuts up, what page has an anchor.
    """

    def new(match: re.Match[str]) -> str:
        link = match.group()
        parts = urlsplit(link)
        if parts.scheme or parts.netloc or (not parts.path and here != "README.md"):
            return link
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), unquote(parts.path)))
        path = here if not parts.path else path
        anchor = f"#{parts.fragment}" if parts.fragment else ""
        if path == "README.md":
            path = where.get(parts.fragment, INDEX)
            anchor = anchor if parts.fragment in where else ""
        if path in pages:
            start = "" if here == "README.md" else posixpath.dirname(here)
            return posixpath.relpath(path, start or ".") + anchor
        return f"{blob}/{path}{anchor}"

    return outside_fences(text, lambda part: LINK.sub(new, part))


def open_links(badges: str) -> str:
    """The badges as words, because their pictures come from other hosts."""
    links = re.findall(r"\[!\[([^\]]*)\]\([^)]*\)\]\(([^)]*)\)", badges)
    return " · ".join(f"[{name}]({address})" for name, address in links)


# --- The sources ---------------------------------------------------------------------------


def stage(root: Path, target: Path) -> list[str]:
    """Lay out Sphinx's sources for the repository ``root`` in ``target``; the pages' names."""
    if target.exists():
        shutil.rmtree(target)
    (target / "notebooks").mkdir(parents=True)
    for picture in (root / "docs").rglob("*.png"):
        copy = target / picture.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, copy)

    readme = (root / "README.md").read_text(encoding="utf-8")
    cuts = cut(readme)
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    documents = [*sorted((root / "docs").glob("*.md")), root / "CONTRIBUTING.md"]
    names = [path.relative_to(root).as_posix() for path in (*notebooks, *documents)]
    pages = {*cuts, *names, "api.md"}
    files = pages | {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()}
    repository, branch = setting(root)
    blob = f"https://github.com/{repository}/blob/{branch}"
    where = anchors(cuts)

    def linked(text: str, here: str) -> str:
        return relink(text, here, files, where, blob)

    opened = BLOCK.search(readme)
    trees = [
        (
            "The course",
            ["setup", *(name.removesuffix(".ipynb") for name in names[: len(notebooks)])],
        ),
        (
            "Results and guides",
            ["results", *(n.removesuffix(".md") for n in names[len(notebooks) : -1])],
        ),
        ("The library", ["library", "api", "CONTRIBUTING"]),
    ]
    cuts[INDEX] += "".join(
        "\n" + TOCTREE.format(caption=caption, pages="\n".join(pages)) for caption, pages in trees
    )
    if opened:
        first, rest = cuts[INDEX].split("\n", 1)
        cuts[INDEX] = f"{first}\n\n{open_links(opened.group())}\n{rest}"
    for name, text in cuts.items():
        (target / name).write_text(linked(text, "README.md"), encoding="utf-8")
    (target / "api.md").write_text(api(root), encoding="utf-8")
    for path, name in zip(documents, names[len(notebooks) :], strict=True):
        (target / name).write_text(linked(path.read_text(encoding="utf-8"), name), encoding="utf-8")
    for path, name in zip(notebooks, names, strict=False):
        notebook = read(path)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = BLOCK.sub(lambda m: open_links(m.group()), cell.source)
                cell.source = linked(cell.source, name)
        nbformat.write(notebook, target / name)
    return sorted(pages)


# Modules that are wiring, or hold the exercises' answers.
NOT_API = {"__main__", "checks", "errors", "grading", "labels", "processes"}


def api(root: Path) -> str:
    """One page that asks autodoc for each module of the library."""
    library = root / "comet_lib"
    paths = [
        *library.glob("*.py"),
        *(library / "lens").glob("*.py"),
        *(library / "widgets").glob("*.py"),
    ]
    modules = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for path in paths
        if path.stem not in NOT_API
    } - {"comet_lib"}
    lines = [
        "# Reference",
        "",
        "The modules of `comet_lib`, from their docstrings. Imports run downwards: `losses` and "
        "`attention` know nothing of training, `plots` and `lens` take arrays alone.",
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
    """Each link within the site that leads nowhere, and each thing loaded from another host."""
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


def build(root: Path, out: Path) -> None:
    """The whole site for ``root`` in ``out``. Raises ``SiteError``."""
    source = root / "build" / "site-source"
    stage(root, source)
    if out.exists():
        shutil.rmtree(out)
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-q", "-n", "-W", "--keep-going"]
    folders = [root / "docs" / "site", root / "build" / "site-doctrees", source, out]
    command += ["-c", str(folders[0]), "-d", str(folders[1]), str(folders[2]), str(folders[3])]
    if subprocess.run(command, cwd=root).returncode:
        raise SiteError("Sphinx warned or failed, see above; a warning is an error here.")
    if found := broken_links(out):
        raise SiteError("\n".join(found))


def main(
    out: Annotated[Path, typer.Option(help="The folder of the site.")] = ROOT / "build" / "site",
) -> None:
    """Build the course's website and check its links."""
    try:
        build(ROOT, out.resolve())
    except (SiteError, NotebookError) as error:
        typer.echo(str(error), err=True)
        sys.exit(1)
    typer.echo(f"open {out / INDEX.replace('.md', '.html')}")


if __name__ == "__main__":
    typer.run(main)
