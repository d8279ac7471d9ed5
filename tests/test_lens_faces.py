"""The lens's payload, page, widget and class, without a browser (tests_browser/ has one)."""

from __future__ import annotations

import base64
import html.parser
import json
import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from comet_lib.errors import CometError
from comet_lib.lens import AttentionLens
from comet_lib.lens import export as export_module
from comet_lib.lens.data import LensData, Occlusion, from_arrays, payload
from comet_lib.lens.export import MIME, drawn, embedded_json, page, saved
from comet_lib.widgets.view import WIDGET_VIEW

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "comet_lib" / "lens"
HOSTILE = [
    "</script><script>window.ran=1</script>",
    "<img src=x onerror=window.ran=1>",
    "\"'`&{}",
    "a\u202eb",
    "👩\u200d🌾",
    "x" * 500,
    "<!--",
]


def maps(*shape: int, seed: int = 0) -> np.ndarray:
    *lead, size = shape
    return np.random.default_rng(seed).dirichlet(np.full(size, 0.3), (*lead, size))


def hostile(**more) -> LensData:
    return from_arrays(HOSTILE, maps(4, 3, 7), maps(2, 2, 7, seed=1), **more)


def full_size() -> LensData:
    """The paper's depths at 128 tokens."""
    tokens = [f"▁ẹ̀{i}" for i in range(128)]
    return from_arrays(tokens, maps(24, 128), maps(6, 128, seed=1))


# ------------------------------------------------------------------------ payload


def test_the_payload_holds_every_map() -> None:
    students = {5: maps(2, 2, 7, seed=1), 9: maps(2, 2, 7, seed=2)}
    data = from_arrays(HOSTILE, maps(4, 3, 7), students)
    header, codes = payload(data)
    json.dumps(header, allow_nan=False)
    for name, part in {
        "teacher": data.teacher,
        "student": data.student,
        "teacherHeads": data.teacher_heads,
        "studentHeads": data.student_heads,
    }.items():
        block = header["blocks"][name]
        size = int(np.prod(block["shape"]))
        cut = np.frombuffer(codes, np.uint8)[block["offset"] : block["offset"] + size]
        values = np.array(block["scale"]).reshape(block["shape"][:-2])[..., None, None] * (
            (cut.reshape(block["shape"]) / 255) ** 2
        )
        assert values == pytest.approx(part.values(), rel=1e-5, abs=1e-7)
    assert header["steps"] == [5, 9] and header["headsLeftOut"] is False
    without, fewer = payload(data, heads=False)
    assert without["headsLeftOut"] is True and set(without["blocks"]) == {"teacher", "student"}
    assert len(fewer) == data.teacher.codes.size + data.student.codes.size


def test_sizes_at_24_and_6_layers_and_128_tokens() -> None:
    data = full_size()
    header, codes = payload(data)
    assert len(codes) + len(json.dumps(header, ensure_ascii=False).encode()) < 500_000
    assert len(page(data).encode()) < 1_000_000


# ------------------------------------------------------------------------ the page


class Reader(html.parser.HTMLParser):
    """The elements of a page, and the text in them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[int, str] = {}
        self.open = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open = True

    def handle_endtag(self, tag: str) -> None:
        self.open = False

    def handle_data(self, data: str) -> None:
        if not self.open:
            return
        at = len(self.elements) - 1
        self.texts[at] = self.texts.get(at, "") + data


def test_the_page_holds_nothing_but_our_elements() -> None:
    made = Reader(page(hostile()))
    tags = [tag for tag, _ in made.elements]
    head = ["html", "head", "meta", "meta", "meta", "title", "meta", "style"]
    body = ["body", "header", "h1", "p", "main", "noscript", "p", "footer", "p", "a"]
    assert tags == [*head, *body, "script", "script"]
    for tag, attributes in made.elements:
        assert "src" not in attributes and ("href" in attributes) == (tag == "a")
        assert not any(name.startswith("on") for name in attributes)
    data, script = (made.texts[i] for i in (len(tags) - 2, len(tags) - 1))
    header = json.loads(data)["header"]
    assert header["tokens"][:2] == [t[:24] + "…" for t in HOSTILE[:2]]
    assert header["tokens"][3] == "a‹202E›b" and header["tokens"][6] == "<!--"
    assert script.startswith((FOLDER / "lens.js").read_text(encoding="utf-8"))
    maps_ = base64.b64decode(json.loads(data)["maps"])
    assert maps_ == payload(hostile())[1]


def test_the_policy_allows_our_script_and_style_alone() -> None:
    text = page(hostile())
    made = Reader(text)
    policy = made.elements[3][1]["content"]
    assert policy is not None and "default-src 'none'" in policy and "unsafe" not in policy
    style, script = (made.texts[i] for i in (7, 19))
    for element in (style, script):
        assert export_module._hash(element) in policy


def test_the_page_says_what_it_is_and_where_it_comes_from() -> None:
    made = Reader(page(replace(hostile(), text="<b>Ẹ kú iṣẹ́</b>")))
    by_tag = {tag: made.texts.get(i, "") for i, (tag, _) in enumerate(made.elements)}
    assert by_tag["title"] == by_tag["h1"] == "Attention lens: “<b>Ẹ kú iṣẹ́</b>”"
    assert "teacher" in made.texts[11]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert made.elements[17][1]["href"] == settings["tool"]["comet"]["repository"]


@pytest.mark.parametrize("text", ["</script>", "<!-- <script", "&lt;", "\u2028", '"\\'])
def test_embedded_json_cannot_end_its_element(text: str) -> None:
    made = embedded_json({text: text})
    assert not set("<>&\u2028") & set(made) and json.loads(made) == {text: text}


def test_our_files_use_no_html_from_text_and_no_network() -> None:
    script = (FOLDER / "lens.js").read_text(encoding="utf-8")
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "Function(",
    ):
        assert word not in script
    for word in (
        "fetch(",
        "import(",
        "XMLHttp",
        "http:",
        "https:",
        "require(",
        "</script",
        "\nimport",
    ):
        assert word not in script
    style = (FOLDER / "lens.css").read_text(encoding="utf-8")
    assert "url(" not in style and "@import" not in style and "</style" not in style


def test_single_heads_stay_out_of_a_page_that_would_be_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = page(hostile())
    assert '"headsLeftOut":false' in whole
    monkeypatch.setattr(export_module, "LIMIT", len(whole.encode()) - 1)
    smaller = page(hostile())
    assert '"headsLeftOut":true' in smaller and len(smaller) < len(whole)
    monkeypatch.setattr(export_module, "SAVED", 0)
    assert saved(hostile())["header"]["headsLeftOut"]


def test_export_writes_the_page_and_pictures(tmp_path: Path) -> None:
    lens, open_before = AttentionLens(hostile()), plt.get_fignums()
    assert "lens-data" in lens.export(tmp_path / "a.html").read_text(encoding="utf-8")
    assert lens.export(tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    svg = lens.export(tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "<svg" in svg and "<script" not in svg and "<img" not in svg
    assert lens.export(tmp_path / "b.svg").read_text(encoding="utf-8") == svg
    with pytest.raises(CometError, match="change the ending"):
        lens.export(tmp_path / "a.pdf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "a.png", "a.svg", "b.svg"]
    assert plt.get_fignums() == open_before


# ------------------------------------------------------------------------ widget and class


def test_the_widget_carries_the_payload_and_the_selection() -> None:
    lens = AttentionLens(hostile(matches=[1, 3]))
    live = lens.widget
    header, codes = payload(lens.data)
    assert live.header == header and live.maps == codes
    assert (live.teacher_layer, live.student_layer) == lens.data.widest()
    assert "export default" in live._esm and ".comet-lens" in live._css
    live.teacher_layer, live.student_head = 2, 1
    assert lens.selection["teacher_layer"] == 2
    titles = [axes.get_title() for axes in lens.figure().axes[:2]]
    assert titles[0] == "teacher, layer 2" and titles[1].endswith("head 1")
    assert lens.figure(0, 0).axes[0].get_title() == "teacher, layer 0"
    plt.close("all")


class Asked:
    """A lens with a reader of numbers for texts, and what its widget answers the browser."""

    def __init__(self) -> None:
        self.lens = AttentionLens(self.read("first"))
        self.said: list[dict] = []
        self.lens.widget.send = self.said.append

    def read(self, text: str) -> LensData:
        if not text.strip():
            raise CometError("text is empty: give a sentence to look at.")
        if text == "broken":
            raise ValueError
        size = len(text)
        data = from_arrays(list(text), maps(4, size), maps(2, size, seed=1))
        hidden = Occlusion(np.ones(size), np.zeros((1, size)))
        return replace(data, text=text, read=self.read, occlude=lambda: hidden)

    def ask(self, **content) -> dict:
        self.lens.widget._handle_custom_msg(content, [])
        return self.said[-1]


def test_a_typed_text_is_answered() -> None:
    asked = Asked()
    live = asked.lens.widget
    assert live.live and live.tried == ["first"] and live.occlusion["teacher"] == [1] * 5
    live.teacher_layer = 2
    said = asked.ask(id=7, text="another")
    assert said["id"] == 7 and said["ms"] >= 0 and "error" not in said
    assert live.header["text"] == "another" and len(live.header["tokens"]) == 7
    assert len(live.maps) == (4 + 2) * 49 and live.occlusion == {} and live.teacher_layer == 2
    assert asked.lens.data.text == "another"
    asked.ask(id=8, hide=True)
    assert live.occlusion["student"] == [[0] * 7]
    asked.ask(id=9, text="first")
    assert live.tried == ["another", "first"]  # each once, the newest last


def test_a_text_that_cannot_be_read_is_told_in_the_box() -> None:
    asked = Asked()
    before = asked.lens.widget.header
    assert asked.ask(id=1, text="  ")["error"].startswith("text is empty")
    assert asked.ask(id=2, text="broken")["error"] == "ValueError"
    assert asked.ask(id=3)["error"]  # no text at all
    assert asked.lens.widget.header == before and asked.lens.widget.tried == ["first"]
    assert not AttentionLens(hostile()).widget.live
    with pytest.raises(CometError, match="no model to read"):
        AttentionLens(hostile()).widget.read("a")


@pytest.mark.parametrize(
    ("name", "value"),
    [("teacher_layer", 4), ("student_layer", -1), ("step", 1), ("teacher_head", 3)],
)
def test_the_widget_refuses_what_the_data_lacks(name: str, value: int) -> None:
    with pytest.raises(CometError, match=f"{name} is {value}, but must be from"):
        setattr(AttentionLens(hostile()).widget, name, value)


def test_the_static_twin_is_in_the_mime_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = AttentionLens(hostile())
    bundle, _ = lens._repr_mimebundle_()
    assert bundle["image/png"].startswith(b"\x89PNG")
    assert bundle[WIDGET_VIEW]["model_id"] == lens.widget.model_id
    assert "nats apart" in bundle["text/plain"]
    kept = json.loads(json.dumps(bundle[MIME]))
    assert kept["maps"] in page(lens.data) and kept["finding"] in html.unescape(drawn(kept))

    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.setattr("comet_lib.lens.find_spec", lambda name: None)
    bare = AttentionLens(hostile())
    bundle, _ = bare._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/png", MIME}
    with pytest.raises(CometError, match="anywidget is not installed"):
        _ = bare.widget


def test_torch_maps_and_lists_are_taken_too() -> None:
    one = AttentionLens.from_arrays(["a", "b"], torch.full((1, 2, 2), 0.5), [[[1.0, 0], [0, 1]]])
    assert one.data.js[0, 0, 0] == pytest.approx(0.2158, abs=1e-4)
    assert "nats apart" in repr(one)


def test_script_and_style_are_package_data() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    declared = settings["tool"]["setuptools"]["package-data"]["comet_lib"]
    for file in ("lens/lens.js", "lens/lens.css"):
        assert any(re.fullmatch(p.replace("*", "[^/]*"), file) for p in declared), file
