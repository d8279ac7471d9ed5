"""The website's sources, its links, the link checker, the links of the texts themselves, and the
playground's students."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import torch
from notebook_helpers import ROOT

sys.path.insert(0, str(ROOT / "docs" / "site"))

import build_playground
import build_site
from docstrings import keep_formulas

from comet_lib.errors import CometError
from comet_lib.files import read_json
from comet_lib.lens import AttentionLens
from comet_lib.lens.export import MIME, drawn
from comet_lib.loading import load_model
from comet_lib.models import build_student, xlmr_config
from comet_lib.profiles import ASSETS, LABELS

DOCS = sorted((ROOT / "docs").glob("*.md"))
BLOB = "https://github.com/ada/course/blob/main"
PAGES = {"index.md", "docs/guide.md", "notebooks/00_one.ipynb", "docs/images/a.png"}


def turned(link: str, here: str) -> str:
    text = build_site.relink(f"[x]({link})", here, PAGES, BLOB)
    return text.removeprefix("[x](").removesuffix(")")


@pytest.mark.parametrize(
    ("link", "here", "expected"),
    [
        ("notebooks/00_one.ipynb", "README.md", "notebooks/00_one.ipynb"),
        ("#part", "README.md", "#part"),
        ("docs/guide.md#part", "README.md", "docs/guide.md#part"),
        ("LICENSE", "README.md", f"{BLOB}/LICENSE"),
        ("docs/images/a.png", "README.md", "docs/images/a.png"),
        ("../README.md", "docs/guide.md", "../index.md"),
        ("../README.md#start", "docs/guide.md", "../index.md#start"),
        ("guide.md#part", "docs/guide.md", "guide.md#part"),
        ("../notebooks/00_one.ipynb#part", "docs/guide.md", "../notebooks/00_one.ipynb#part"),
        ("#part", "docs/guide.md", "#part"),
        ("../comet_lib/data.py", "docs/guide.md", f"{BLOB}/comet_lib/data.py"),
        ("01_two.ipynb", "notebooks/00_one.ipynb", f"{BLOB}/notebooks/01_two.ipynb"),
        ("https://arxiv.org/abs/1", "README.md", "https://arxiv.org/abs/1"),
    ],
)
def test_links_are_turned(link: str, here: str, expected: str) -> None:
    assert turned(link, here) == expected


def test_code_stays_as_it_is() -> None:
    code = "```python\nx = f[0](y)\n```\n"
    text = f"{code}[x](LICENSE)"
    assert build_site.relink(text, "README.md", PAGES, BLOB) == f"{code}[x]({BLOB}/LICENSE)"


def test_a_page_that_is_lost_or_in_no_list_is_named(tmp_path: Path) -> None:
    for _, names in build_site.contents(ROOT):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("")
    assert build_site.contents(tmp_path) == build_site.contents(ROOT)
    (tmp_path / "docs" / "new.md").write_text("")
    with pytest.raises(build_site.SiteError, match=r"docs/new\.md is in no list"):
        build_site.contents(tmp_path)
    (tmp_path / "docs" / "new.md").rename(tmp_path / "other.md")
    (tmp_path / "docs" / "results.md").unlink()
    with pytest.raises(build_site.SiteError, match=r"docs/results\.md is not there"):
        build_site.contents(tmp_path)


TEXTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", *(f"docs/{p.name}" for p in DOCS))


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a Markdown file."""
    text = build_site.FENCE.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("name", TEXTS)
def test_the_links_of_the_texts_lead_to_files_and_headings(name: str) -> None:
    text = build_site.FENCE.sub("", (ROOT / name).read_text(encoding="utf-8"))
    for link in build_site.LINK.findall(text):
        parts = urlsplit(link)
        if parts.scheme:
            continue
        target = (ROOT / name).parent / unquote(parts.path) if parts.path else ROOT / name
        assert target.exists(), f"{link} leads to no file"
        if parts.fragment and target.suffix == ".md":
            assert parts.fragment in anchors(target), f"{link} leads to no heading"


def test_the_pages_of_this_repository(tmp_path: Path) -> None:
    pages = build_site.stage(ROOT, tmp_path / "site")
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert {f"notebooks/{path.name}" for path in notebooks} < set(pages)
    index = (tmp_path / "site" / "index.md").read_text(encoding="utf-8")
    for page in pages:
        assert (tmp_path / "site" / page).is_file(), page
        stem = page.rsplit(".", 1)[0]
        assert page == "index.md" or f"\n{stem}\n" in index, f"{page} is in no list of pages"
    assert "Open the playground" in index and "<!-- README" not in index
    rows = read_json(ASSETS / "reference_report.json", "rows")["rows"]
    reached = next(row["weighted_f1"]["mean"] for row in rows if row["name"] == "student")
    assert f"reaches {reached:.1f} points" in index and "## Questions people ask" in index
    results = (tmp_path / "site" / "docs" / "results.md").read_text(encoding="utf-8")
    assert "TF-IDF" in results
    staged = nbformat.read(tmp_path / "site" / "notebooks" / notebooks[0].name, as_version=4)
    assert "img.shields" not in staged.cells[0].source and "badge" not in staged.cells[0].source
    assert "[Open in Colab](https://colab.research.google.com/github/" in staged.cells[0].source
    before = nbformat.read(notebooks[0], as_version=4)
    frames = 0
    for cell, old in zip(staged.cells, before.cells, strict=True):
        for output, was in zip(cell.get("outputs", []), old.get("outputs", []), strict=True):
            if MIME in was.get("data", {}):  # a lens becomes a page in a frame
                frame = output.data["text/html"]
                (page,) = re.findall(r'<iframe class="lens" src="([^"]+)"', frame)
                assert (tmp_path / "site" / "notebooks" / page).is_file()
                frames += 1
            elif cell.source == "check.course_map()":
                links = re.findall(r'href="([^"]+)"', output.data["text/html"])
                assert links == [f"{path.stem}.html" for path in notebooks]
            else:
                assert output == was
    assert frames == 2


def test_the_playground_s_links_lead_to_the_site_s_own(tmp_path: Path) -> None:
    address = "https://comet-course.github.io/comet/playground/"
    for own in (False, True):
        build_site.stage(ROOT, tmp_path / "site", playground=own)
        index = (tmp_path / "site" / "index.md").read_text(encoding="utf-8")
        start = (tmp_path / "site" / "notebooks" / "00_the_whole_game.ipynb").read_text("utf-8")
        assert (address in index) == (address in start) == (not own)
        assert ('href="playground/index.html"' in index) == own


def test_a_section_of_the_readme_is_taken_whole() -> None:
    readme = "# R\n\n## One\n\na\n\n### Part\n\nb\n\n## Two\n\nc\n"
    page = build_site.with_sections("x\n\n<!-- README: One -->\n\ny", readme)
    assert page == "x\n\n## One\n\na\n\n### Part\n\nb\n\ny"
    with pytest.raises(build_site.SiteError, match="no section 'Three'"):
        build_site.with_sections("<!-- README: Three -->", readme)


@pytest.mark.parametrize(
    ("plain", "text"),
    [
        ("Figure: It falls\nfrom 3 to 1", "It falls from 3 to 1"),
        ("TemperatureView: At T = 4 it is flat", "At T = 4 it is flat"),
        ("<Figure size 600x240 with 1 Axes>", "Figure: The loss"),
    ],
)
def test_a_figure_s_text_is_its_title_or_where_it_stands(plain: str, text: str) -> None:
    assert build_site.alternative(plain, "The loss") == text


def test_a_saved_lens_becomes_a_page_in_a_frame(tmp_path: Path) -> None:
    lens = AttentionLens.from_arrays(["<b>", "b"], [[[0.5, 0.5], [0, 1]]], [[[1, 0], [0, 1]]])
    bundle, _ = lens._repr_mimebundle_()
    bundle = json.loads(json.dumps(bundle | {"image/png": "AAAA"}))
    output = nbformat.v4.new_output("display_data", bundle)
    cells = [
        nbformat.v4.new_markdown_cell("# Look"),
        nbformat.v4.new_code_cell("lens", outputs=[output], id="here"),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    build_site.shown(notebook, "notebooks/00_one.ipynb", tmp_path)
    data = notebook.cells[1].outputs[0].data
    assert "image/png" not in data and MIME not in data
    frame = build_site.Page()
    frame.feed(data["text/html"])
    assert frame.loads == frame.links == ["lens/here-0.html"]
    assert "nats apart" in data["text/html"] and "<b>" not in data["text/html"]
    page = (tmp_path / "notebooks" / "lens" / "here-0.html").read_text(encoding="utf-8")
    assert page == drawn(bundle[MIME])


def test_the_reference_names_the_library_and_no_answers() -> None:
    text = build_site.api(ROOT)
    for module in ("losses", "attention", "lens", "lab.ablation", "widgets.temperature"):
        assert f".. automodule:: comet_lib.{module}\n" in text
    assert "exercises" not in text and "checks" not in text


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


def test_a_run_s_students_are_kept_with_a_card(tmp_path: Path) -> None:
    run, target = tmp_path / "run", tmp_path / "students"
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = xlmr_config({**shape, "intermediate_size": 8}, 16_000, 64)
    config.id2label = dict(enumerate(LABELS))
    for folder in ("student", "work/baseline", "work/agnostic"):
        head = "masked-lm" if folder == "work/agnostic" else "sentiment"
        build_student(config, head).save_pretrained(run / folder)
        shutil.copy(ASSETS / "teacher" / "tokenizer.json", run / folder)
    shutil.copy(ASSETS / "reference_report.json", run / "report.json")
    build_playground.store(run, target)
    for name in ("student", "student_no_distillation", build_playground.STAGE_ONE):
        files = {path.name: path.stat().st_size for path in (target / name).iterdir()}
        assert set(files) == {"config.json", "model.safetensors"}
        model = load_model(target / name)
        assert files["model.safetensors"] < 2.2 * sum(p.numel() for p in model.parameters())
    card = (target / "README.md").read_text(encoding="utf-8")
    body = load_model(run / "work" / "agnostic", "masked-lm").base_model.embeddings
    early = load_model(target / build_playground.STAGE_ONE).base_model.embeddings
    assert torch.equal(body.word_embeddings.weight.half().float(), early.word_embeddings.weight)
    assert "license: cc-by-4.0" in card and "| student_no_distillation |" in card

    (run / "student" / "tokenizer.json").write_text("{}")
    with pytest.raises(CometError, match="another tokenizer than the teacher"):
        build_playground.store(run, target)
