"""The website's sources: README.md cut into pages, every link redirected, and the link checker."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
import pytest
from notebook_helpers import ROOT

sys.path.insert(0, str(ROOT / "docs" / "site"))

import build_site
from docstrings import keep_formulas

BLOB = "https://github.com/ada/course/blob/main"
PAGES = {"index.md", "setup.md", "docs/guide.md", "notebooks/00_one.ipynb", "docs/images/a.png"}


def turned(link: str, here: str) -> str:
    where = {"a-machine": "setup.md"}
    text = build_site.relink(f"[x]({link})", here, PAGES, where, BLOB)
    return text.removeprefix("[x](").removesuffix(")")


@pytest.mark.parametrize(
    ("link", "here", "expected"),
    [
        ("notebooks/00_one.ipynb", "README.md", "notebooks/00_one.ipynb"),
        ("#a-machine", "README.md", "setup.md#a-machine"),
        ("LICENSE", "README.md", f"{BLOB}/LICENSE"),
        ("docs/images/a.png", "README.md", "docs/images/a.png"),
        ("../README.md", "docs/guide.md", "../index.md"),
        ("../README.md#a-machine", "docs/guide.md", "../setup.md#a-machine"),
        ("../notebooks/00_one.ipynb#part", "docs/guide.md", "../notebooks/00_one.ipynb#part"),
        ("#part", "docs/guide.md", "#part"),
        ("../comet_lib/data.py", "docs/guide.md", f"{BLOB}/comet_lib/data.py"),
        ("01_two.ipynb", "notebooks/00_one.ipynb", f"{BLOB}/notebooks/01_two.ipynb"),
        ("https://arxiv.org/abs/1", "README.md", "https://arxiv.org/abs/1"),
    ],
)
def test_links_are_turned(link: str, here: str, expected: str) -> None:
    assert turned(link, here) == expected


def test_code_is_left_alone() -> None:
    code = "```python\nx = f[0](y)\n```\n"
    text = f"{code}[x](LICENSE)"
    assert build_site.relink(text, "README.md", PAGES, {}, BLOB) == f"{code}[x]({BLOB}/LICENSE)"


def test_the_readme_is_cut_at_its_headings() -> None:
    readme = (
        "# T\n\nHello.\n\n## Result\n\n```sh\n## no heading\n```\n\n### Part\n\n## Other\n\nx\n"
    )
    opening, sections = build_site.sections(readme)
    assert opening == "Hello."
    assert sections == {"Result": "```sh\n## no heading\n```\n\n### Part", "Other": "x"}


def test_a_lost_section_is_named() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = build_site.cut(readme)
    assert pages["results.md"].startswith("# Results\n\n## Result\n")
    assert "TF-IDF" in pages["results.md"] and "cost.png" in pages["results.md"]
    with pytest.raises(build_site.SiteError, match="no section '## Result'"):
        build_site.cut(readme.replace("\n## Result\n", "\n## Results\n"))


def test_the_pages_of_this_repository(tmp_path: Path) -> None:
    pages = build_site.stage(ROOT, tmp_path / "site")
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert {f"notebooks/{path.name}" for path in notebooks} < set(pages)
    index = (tmp_path / "site" / "index.md").read_text(encoding="utf-8")
    for page in pages:
        assert (tmp_path / "site" / page).is_file(), page
        stem = page.rsplit(".", 1)[0]
        assert page == "index.md" or f"\n{stem}\n" in index, f"{page} is in no list of pages"
    assert "make lab" in index and "make test" in index and "attention.png" in index
    staged = nbformat.read(tmp_path / "site" / "notebooks" / notebooks[0].name, as_version=4)
    assert "img.shields" not in staged.cells[0].source and "badge" not in staged.cells[0].source
    assert "[Open in Colab](https://colab.research.google.com/github/" in staged.cells[0].source
    before = nbformat.read(notebooks[0], as_version=4)
    assert [c.get("outputs") for c in staged.cells] == [c.get("outputs") for c in before.cells]


def test_the_reference_names_the_library_and_no_answers() -> None:
    text = build_site.api(ROOT)
    for module in ("losses", "attention", "lens", "widgets.temperature"):
        assert f".. automodule:: comet_lib.{module}\n" in text
    assert "exercises" not in text and "grading" not in text


GOOD = """<head><link rel="stylesheet" href="s.css"><link rel="canonical" href="https://x.org">
</head><body><h1 id="top"></h1><a href="b/#part">b</a><a href="#top"></a>
<a href="https://x.org"></a><img src="data:image/png;base64,AAAA"></body>"""


def site(folder: Path, page: str = GOOD, css: str = "p { color: red }") -> list[str]:
    (folder / "b").mkdir()
    (folder / "index.html").write_text(page)
    (folder / "b" / "index.html").write_text('<h2 id="part"></h2><a href="../index.html#top"></a>')
    (folder / "s.css").write_text(css)
    return build_site.broken_links(folder)


def test_a_good_site_has_no_broken_link(tmp_path: Path) -> None:
    assert site(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"page": GOOD.replace("b/#part", "b/#lost")}, "b/#lost has no such anchor"),
        ({"page": GOOD.replace("#top", "#lost")}, "#lost has no such anchor"),
        ({"page": GOOD.replace("b/#part", "c/")}, "c/ leads to no file"),
        ({"page": GOOD.replace("s.css", "t.css")}, "t.css leads to no file"),
        ({"page": GOOD.replace("s.css", "https://cdn.org/s.css")}, "from another host"),
        ({"page": GOOD.replace("s.css", "//cdn.org/s.css")}, "from another host"),
        ({"page": GOOD + '<script src="https://cdn.org/r.js"></script>'}, "from another host"),
        ({"page": GOOD + '<img src="https://x.org/badge.svg">'}, "from another host"),
        ({"css": "@import 'https://fonts.org/a.css';"}, "on another host"),
        ({"css": "a { background: url(https://x.org/a.png) }"}, "on another host"),
    ],
)
def test_each_broken_link_is_found(change: dict[str, str], message: str, tmp_path: Path) -> None:
    found = site(tmp_path, **change)
    assert any(message in sentence for sentence in found), found


def kept(text: str) -> str:
    lines = text.split("\n")
    keep_formulas(lines)
    return "\n".join(lines)


def test_formulas_in_docstrings_keep_their_lines() -> None:
    assert kept("Text:\n\n    a = b\n\n    c = d\nmore") == (
        "Text:\n\n::\n\n    a = b\n\n    c = d\nmore"
    )
    for same in (
        "Text\n    goes on",
        "- an item\n\n    of two paragraphs",
        "Text::\n\n    a",
        ".. note::\n\n    a",
        "Text\n\nmore",
    ):
        assert kept(same) == same
